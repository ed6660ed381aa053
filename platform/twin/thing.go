// SPDX-License-Identifier: Apache-2.0

package twin

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Things other than the gateway's have their ids in the topics.

// ThingCommands is the filter of the commands to all things, see ID.Decode.
const ThingCommands = "command//+/req/#"

// EventTopicOf is the topic of what a thing's features encode. A tenant that cannot be part of a topic is an error.
func EventTopicOf(tenant string, thing ID) (string, error) {
	if strings.ContainsAny(tenant, "/+#\x00") || strings.ContainsAny(thing.String(), "+#") {
		return "", fmt.Errorf("thing %.60q of tenant %.60q: expected names without any of / + #", thing, tenant)
	}
	return "e/" + tenant + "/" + thing.String(), nil
}

// Set encodes the message that replaces one property, such as status/state.
func (f Feature) Set(path string, value any) ([]byte, error) {
	return f.encode("twin/commands/modify", "/properties/"+path, headers{}, value)
}

// Delete encodes the message that takes the feature away.
func (f Feature) Delete() ([]byte, error) {
	return f.encode("twin/commands/delete", "", headers{}, nil)
}

// Operation is what a feature of a thing is asked for, through its inbox.
type Operation struct {
	Feature, Name string
	Value         json.RawMessage // nil without one
	CorrelationID string
	Answer        bool // one is wanted

	to          string // MQTT topic of answers, without the status
	topic, path string // of Ditto
}

// Failure is why an operation has not been carried out, as the one who asked for it is told.
type Failure struct {
	Code    string `json:"error"`
	Status  int    `json:"status"`
	Message string `json:"message"`
}

func (f *Failure) Error() string { return f.Message }

// Invalid is the Failure of an operation that is not understood as it is.
func Invalid(format string, args ...any) *Failure {
	return &Failure{"messages:parameter.invalid", 400, fmt.Sprintf(format, args...)}
}

// NotFound is the Failure of an operation that there is not.
func NotFound(format string, args ...any) *Failure {
	return &Failure{"messages:subject.notfound", 404, fmt.Sprintf(format, args...)}
}

// Failed is the Failure of an operation that did not work.
func Failed(why error) *Failure {
	return &Failure{"messages:execution.failed", 500, why.Error()}
}

// Decode decodes a message to a feature of the thing, from an MQTT topic that ThingCommands stands for. When the error is a
// Failure, Operation.Refuse has the answer.
func (id ID) Decode(topic string, data []byte) (Operation, error) {
	rest, ok := strings.CutPrefix(topic, "command//"+id.String()+"/req/")
	if !ok {
		return Operation{}, ErrForeign
	}
	request, _, _ := strings.Cut(rest, "/")
	var m struct {
		Topic   string          `json:"topic"`
		Headers json.RawMessage `json:"headers"`
		Path    string          `json:"path"`
		Value   json.RawMessage `json:"value"`
	}
	if err := unmarshal(data, &m); err != nil {
		return Operation{}, fmt.Errorf("message of a twin: %w", err)
	}
	if strings.Contains(m.Topic, "/things/twin/") { // an event, or an answer to a command
		return Operation{}, ErrForeign
	}
	o := Operation{to: "command//" + id.String() + "/res/" + request + "/", topic: m.Topic, path: m.Path}
	if string(m.Value) != "null" {
		o.Value = m.Value
	}
	if err := o.decodeHeaders(m.Headers, request); err != nil {
		return o, err
	}
	subject, ok := strings.CutPrefix(m.Topic, id.Namespace+"/"+id.Name+"/things/live/messages/")
	if !ok {
		return o, NotFound("topic %.100q is not of thing %s", m.Topic, id)
	}
	feature, ok := strings.CutPrefix(m.Path, "/features/")
	if ok {
		feature, o.Name, ok = strings.Cut(feature, "/inbox/messages/")
	}
	if o.Feature = feature; !ok || o.Name != subject {
		return o, Invalid("path %.100q: expected /features/ID/inbox/messages/%.40s", m.Path, subject)
	}
	return o, nil
}

func (o *Operation) decodeHeaders(data json.RawMessage, request string) error {
	var h struct {
		CorrelationID    json.RawMessage `json:"correlation-id"`
		ContentType      json.RawMessage `json:"content-type"`
		ResponseRequired json.RawMessage `json:"response-required"`
	}
	var wrong error
	if json.Unmarshal(data, &h) != nil {
		wrong = Invalid("headers: expected an object")
	}
	var contentType string
	for _, header := range []struct {
		name     string
		data     json.RawMessage
		into     any
		expected string
	}{
		{"response-required", h.ResponseRequired, &o.Answer, "true or false"},
		{"correlation-id", h.CorrelationID, &o.CorrelationID, "a string"},
		{"content-type", h.ContentType, &contentType, "a string"},
	} {
		if header.data == nil || json.Unmarshal(header.data, header.into) == nil {
			continue
		}
		if wrong == nil {
			wrong = Invalid("header %s: expected %s", header.name, header.expected)
		}
		o.Answer = o.Answer || header.into == &o.Answer // whoever wrote something there wants to hear something
	}
	o.Answer = o.Answer && request != ""
	switch {
	case wrong != nil:
		return wrong
	case o.CorrelationID == "":
		return Invalid("header correlation-id is missing")
	case o.Value != nil && contentType != contentJSON:
		return Invalid("header content-type: expected %s, as there is a value", contentJSON)
	case o.Value == nil && contentType != "":
		return Invalid("header content-type: expected none, as there is no value")
	}
	return nil
}

// Refuse encodes the answer to an operation that no feature has been asked for, and its MQTT topic.
func (o Operation) Refuse(f *Failure) (topic string, data []byte, err error) {
	return o.reply(o.path, f.Status, f)
}

// Reply encodes the answer of a feature, and its MQTT topic: the result, which may be nil, or why there is none.
func (o Operation) Reply(result any, why error) (topic string, data []byte, err error) {
	path := "/features/" + o.Feature + "/outbox/messages/" + o.Name
	var f *Failure
	switch {
	case errors.As(why, &f):
		return o.reply(path, f.Status, f)
	case why != nil:
		f = Failed(why)
		return o.reply(path, f.Status, f)
	case result != nil:
		return o.reply(path, 200, result)
	}
	return o.reply(path, 204, nil)
}

func (o Operation) reply(path string, status int, value any) (string, []byte, error) {
	h := map[string]string{}
	if o.CorrelationID != "" {
		h["correlation-id"] = o.CorrelationID
	}
	if value != nil {
		h["content-type"] = contentJSON
	}
	data, err := encode(envelope{Topic: o.topic, Headers: h, Path: path, Value: value, Status: status})
	return o.to + strconv.Itoa(status), data, err
}
