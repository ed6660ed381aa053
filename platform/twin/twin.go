// SPDX-License-Identifier: Apache-2.0

// Package twin has the messages of a digital twin: a thing with features, as
// Eclipse Ditto describes them in JSON and a cloud connector carries them over
// the local MQTT broker, in the topics of Eclipse Hono.
//
// The connector says which thing this device is. A program then describes one
// feature of it, keeps the feature's properties up to date, sends messages out
// of the feature's outbox and is asked for operations through its inbox.
package twin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// Topics between the connector and the gateway thing's own programs. What a
// request on RequestTopic carries does not matter; EmptyRequest is usual.
const (
	RequestTopic  = "edge/thing/request"  // asks which thing this is
	ResponseTopic = "edge/thing/response" // see DecodeIdentity
	EventTopic    = "e"                   // what a Feature encodes
	CommandTopics = "command///req/#"     // filter of what Feature.Decode takes
)

// EmptyRequest is an envelope with nothing in it.
const EmptyRequest = `{"topic":"","headers":null,"path":""}`

const commandPrefix = "command///req/"

// maxSize is the largest message that is looked at, in bytes.
const maxSize = 1 << 20

// ID is the name of a thing.
type ID struct{ Namespace, Name string }

func (id ID) String() string { return id.Namespace + ":" + id.Name }

// ParseID takes an ID apart. The name may contain further colons.
func ParseID(s string) (ID, error) {
	ns, name, _ := strings.Cut(s, ":")
	bad := func(r rune) bool { return r == '/' || unicode.IsControl(r) || r == unicode.ReplacementChar }
	if ns == "" || name == "" || len(s) > 256 || strings.ContainsFunc(s, bad) {
		return ID{}, fmt.Errorf("thing id %.60q: expected NAMESPACE:NAME without a slash", s)
	}
	return ID{ns, name}, nil
}

// Identity is what the connector knows about this device.
type Identity struct {
	Thing  ID
	Tenant string
	Policy string
}

// DecodeIdentity decodes a message of ResponseTopic.
func DecodeIdentity(data []byte) (Identity, error) {
	var m struct {
		DeviceID string `json:"deviceId"`
		TenantID string `json:"tenantId"`
		PolicyID string `json:"policyId"`
	}
	if err := unmarshal(data, &m); err != nil {
		return Identity{}, fmt.Errorf("identity of the thing: %w", err)
	}
	thing, err := ParseID(m.DeviceID)
	if err != nil {
		return Identity{}, fmt.Errorf("identity of the thing: deviceId: %w", err)
	}
	return Identity{thing, m.TenantID, m.PolicyID}, nil
}

// Feature is one feature of a thing.
type Feature struct {
	Thing ID
	Name  string
}

// headers are the ones that matter here.
type headers struct {
	ContentType      string `json:"content-type,omitempty"`
	CorrelationID    string `json:"correlation-id,omitempty"`
	ResponseRequired bool   `json:"response-required"`
}

const contentJSON = "application/json"

// Describe encodes the message that makes the feature, with a definition such
// as "namespace:Name:1.0.0" and its first properties, nil for none.
func (f Feature) Describe(definition string, properties any) ([]byte, error) {
	return f.encode("twin/commands/modify", "", headers{}, struct {
		Definition []string `json:"definition"`
		Properties any      `json:"properties,omitempty"`
	}{[]string{definition}, properties})
}

// Modify encodes the message that replaces all properties.
func (f Feature) Modify(properties any) ([]byte, error) {
	return f.encode("twin/commands/modify", "/properties", headers{ContentType: contentJSON}, properties)
}

// Message encodes a message out of the outbox. Who gets one with a correlation
// id is asked to answer, with the same correlation id.
func (f Feature) Message(subject, correlationID string, value any) ([]byte, error) {
	h := headers{ContentType: contentJSON, CorrelationID: correlationID, ResponseRequired: correlationID != ""}
	return f.encode("live/messages/"+subject, "/outbox/messages/"+subject, h, value)
}

func (f Feature) encode(topic, path string, h headers, value any) ([]byte, error) {
	return encode(envelope{
		Topic:   f.Thing.Namespace + "/" + f.Thing.Name + "/things/" + topic,
		Headers: h,
		Path:    "/features/" + f.Name + path,
		Value:   value,
	})
}

type envelope struct {
	Topic   string `json:"topic"`
	Headers any    `json:"headers"`
	Path    string `json:"path"`
	Value   any    `json:"value,omitempty"`
	Status  int    `json:"status,omitempty"`
}

func encode(e envelope) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, fmt.Errorf("encode message of %s: %w", e.Path, err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// Request is a message into a feature's inbox.
type Request struct {
	Subject       string
	Value         json.RawMessage // nil without one
	CorrelationID string
	Answer        bool // one is wanted

	id    string // of MQTT
	topic string // of Ditto
}

// ErrForeign is the error of a message that is for another feature or thing.
var ErrForeign = errors.New("not for this feature")

// IsCommand says whether CommandTopics stands for an MQTT topic.
func IsCommand(topic string) bool { return strings.HasPrefix(topic, commandPrefix) }

// Decode decodes a message that came on an MQTT topic that CommandTopics stands for.
func (f Feature) Decode(topic string, data []byte) (Request, error) {
	if !IsCommand(topic) {
		return Request{}, ErrForeign
	}
	id, _, _ := strings.Cut(topic[len(commandPrefix):], "/")
	var m struct {
		Topic   string          `json:"topic"`
		Headers json.RawMessage `json:"headers"`
		Path    string          `json:"path"`
		Value   json.RawMessage `json:"value"`
	}
	if err := unmarshal(data, &m); err != nil {
		return Request{}, fmt.Errorf("message of a twin: %w", err)
	}
	channel := f.Thing.Namespace + "/" + f.Thing.Name + "/things/live/messages/"
	subject, ok := strings.CutPrefix(m.Path, "/features/"+f.Name+"/inbox/messages/")
	if !ok || m.Topic != channel+subject {
		return Request{}, ErrForeign
	}
	// Headers of a wrong type count as absent.
	var h struct {
		CorrelationID    json.RawMessage `json:"correlation-id"`
		ResponseRequired json.RawMessage `json:"response-required"`
	}
	r := Request{Subject: subject, Value: m.Value, id: id, topic: m.Topic}
	if json.Unmarshal(m.Headers, &h) == nil {
		_ = json.Unmarshal(h.CorrelationID, &r.CorrelationID)
		_ = json.Unmarshal(h.ResponseRequired, &r.Answer)
	}
	return r, nil
}

// Done encodes the answer that a request is accepted, and its MQTT topic.
func (f Feature) Done(r Request) (topic string, data []byte, err error) {
	return f.reply(r, 204, nil)
}

// Invalid encodes the answer that a request cannot be accepted as it is, and
// its MQTT topic.
func (f Feature) Invalid(r Request, why error) (topic string, data []byte, err error) {
	const status = 400
	return f.reply(r, status, struct {
		Error   string `json:"error"`
		Status  int    `json:"status"`
		Message string `json:"message"`
	}{"messages:parameter.invalid", status, why.Error()})
}

func (f Feature) reply(r Request, status int, value any) (string, []byte, error) {
	h := headers{CorrelationID: r.CorrelationID}
	if value != nil {
		h.ContentType = contentJSON
	}
	data, err := encode(envelope{
		Topic:   r.topic,
		Headers: h,
		Path:    "/features/" + f.Name + "/outbox/messages/" + r.Subject,
		Value:   value,
		Status:  status,
	})
	return "command///res/" + r.id + "/" + strconv.Itoa(status), data, err
}

func unmarshal(data []byte, v any) error {
	if len(data) > maxSize {
		return fmt.Errorf("%d bytes, expected at most %d", len(data), maxSize)
	}
	err := json.Unmarshal(data, v)
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &typ) && typ.Field != "":
		return fmt.Errorf("%s: expected a string, got: %s", typ.Field, typ.Value)
	case errors.As(err, &typ):
		return fmt.Errorf("expected an object, got: %s", typ.Value)
	case err != nil:
		return fmt.Errorf("not JSON: %w", err)
	}
	return nil
}
