// SPDX-License-Identifier: Apache-2.0

// Package updateproto has the messages of the update protocol which the update
// manager, its agents and the cloud speak over MQTT: their types, a decoder
// that no message can harm, and an encoder.
//
// Every message is a JSON object with the members activityId, timestamp
// (milliseconds since 1970) and payload. Decoding is strict about what is used
// and tolerant about the rest: unknown members are ignored, a member of the
// wrong type is an error that names it and what was expected there. What many
// kinds of agents report is decoded more tolerantly, see DecodeFeedback and
// DecodeInventory.
//
// There are two ways to write a message: Encode writes what the agent of
// Eclipse Leda is documented to write, EncodeCompact what the update manager
// and the cloud expect of a manager.
package updateproto

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode"
)

// Limits of a message.
const (
	MaxSize       = 1 << 20 // bytes of a message
	MaxDepth      = 32      // arrays and objects within each other
	MaxActivityID = 256     // bytes of an activity id
)

// ErrNoActivityID says that a message carries no activity id. The payload has
// been decoded all the same, for those messages that may do without one.
var ErrNoActivityID = errors.New("activityId: missing or empty")

// Envelope is what all messages have in common.
type Envelope struct {
	ActivityID string          `json:"activityId,omitempty"`
	Timestamp  int64           `json:"timestamp"`
	Payload    json.RawMessage `json:"payload"`
}

// Decode decodes a message with its payload into the value that payload points
// to. A nil payload is for messages that need none: it is not looked at then.
//
// The activity id is returned whenever it can be read, however bad the rest is,
// so that the sender can be answered. Of several errors the one about the
// payload is returned; an error other than ErrNoActivityID and an empty id is
// a message nobody can be told about.
func Decode(data []byte, payload any) (activityID string, err error) {
	e, err := DecodeEnvelope(data)
	if err != nil && !errors.Is(err, ErrNoActivityID) {
		return e.ActivityID, err
	}
	if payload != nil {
		if err := e.DecodePayload(payload); err != nil {
			return e.ActivityID, err
		}
	}
	return e.ActivityID, err
}

// DecodeEnvelope decodes what all messages have in common and leaves the
// payload as it is. Like Decode it returns the activity id also beside an error.
// The timestamp is zero unless it is a whole number.
func DecodeEnvelope(data []byte) (Envelope, error) {
	if len(data) > MaxSize {
		return Envelope{ActivityID: salvage(data[:MaxSize])}, fmt.Errorf("message of %d bytes, expected at most %d", len(data), MaxSize)
	}
	if depth(data) > MaxDepth {
		return Envelope{ActivityID: salvage(data)}, fmt.Errorf("message is nested more than %d levels deep", MaxDepth)
	}
	var m struct {
		ActivityID json.RawMessage `json:"activityId"`
		Timestamp  json.RawMessage `json:"timestamp"`
		Payload    json.RawMessage `json:"payload"`
	}
	if err := unmarshal("message", data, &m); err != nil {
		return Envelope{ActivityID: salvage(data)}, err
	}
	e := Envelope{Payload: m.Payload}
	if json.Unmarshal(m.Timestamp, &e.Timestamp) != nil {
		e.Timestamp = 0
	}
	var id string
	if m.ActivityID != nil {
		if err := unmarshal("activityId", m.ActivityID, &id); err != nil {
			return e, err
		}
	}
	if id == "" {
		return e, ErrNoActivityID
	}
	if err := checkID(id); err != nil {
		return e, err
	}
	e.ActivityID = id
	return e, nil
}

// DecodePayload decodes the payload into the value that v points to.
func (e Envelope) DecodePayload(v any) error {
	if p := bytes.TrimSpace(e.Payload); len(p) == 0 || bytes.Equal(p, []byte("null")) {
		return errors.New("payload: missing")
	}
	return unmarshal("payload", e.Payload, v)
}

// Encode encodes a message. The payload is one of the types of this package, or
// nil for null; lists that have to be on the wire are never null. An empty
// activity id is left out.
func Encode(activityID string, at time.Time, payload any) ([]byte, error) {
	switch p := payload.(type) {
	case *Feedback:
		return Encode(activityID, at, *p)
	case *Inventory:
		return Encode(activityID, at, *p)
	case Feedback:
		p.Actions = list(p.Actions)
		payload = p
	case Inventory:
		p.SoftwareNodes, p.HardwareNodes, p.Associations = list(p.SoftwareNodes), list(p.HardwareNodes), list(p.Associations)
		payload = p
	}
	return marshal(struct {
		ActivityID string `json:"activityId,omitempty"`
		Timestamp  int64  `json:"timestamp"`
		Payload    any    `json:"payload"`
	}{activityID, at.UnixMilli(), payload})
}

func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func checkID(id string) error {
	if len(id) > MaxActivityID {
		return fmt.Errorf("activityId: %d bytes, expected at most %d", len(id), MaxActivityID)
	}
	if strings.ContainsFunc(id, unicode.IsControl) {
		return errors.New("activityId: contains a control character")
	}
	return nil
}

// unmarshal is json.Unmarshal with errors that name the member below root, in
// the words of JSON.
func unmarshal(root string, data []byte, v any) error {
	err := json.Unmarshal(data, v)
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("%s is not JSON: %w at byte %d", root, err, syntax.Offset)
	case errors.As(err, &typ):
		path := root
		if typ.Field != "" {
			path += "." + typ.Field
		}
		got, _, _ := strings.Cut(typ.Value, " ")
		if got == "bool" {
			got = "boolean"
		}
		return fmt.Errorf("%s: expected %s, got %s", path, nameOf(typ.Type.Kind()), article(got))
	case err != nil:
		return fmt.Errorf("%s: %w", root, err)
	}
	return nil
}

func nameOf(k reflect.Kind) string {
	switch k {
	case reflect.String:
		return "a string"
	case reflect.Int:
		return "a whole number"
	case reflect.Bool:
		return "a boolean"
	case reflect.Slice:
		return "an array"
	default:
		return "an object"
	}
}

func article(noun string) string {
	if strings.HasPrefix(noun, "a") || strings.HasPrefix(noun, "o") {
		return "an " + noun
	}
	return "a " + noun
}

// depth returns how deep arrays and objects are nested, without recursion. For
// what is not JSON the result means nothing.
func depth(data []byte) int {
	var now, most int
	var quoted, escaped bool
	for _, c := range data {
		switch {
		case escaped:
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			now++
			most = max(most, now)
		case c == '}' || c == ']':
			now--
		}
	}
	return most
}

// salvage finds the activity id in front of the place where a message breaks.
func salvage(data []byte) string {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return ""
	}
	for {
		key, err := dec.Token()
		if err != nil {
			return ""
		}
		if name, ok := key.(string); !ok || !strings.EqualFold(name, "activityId") {
			var skip json.RawMessage
			if dec.Decode(&skip) != nil {
				return ""
			}
			continue
		}
		var id string
		if dec.Decode(&id) != nil || checkID(id) != nil {
			return ""
		}
		return id
	}
}
