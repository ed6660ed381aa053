// SPDX-License-Identifier: Apache-2.0

package updateproto

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// EncodeCompact encodes a message as the update manager does: activityId,
// timestamp and payload are always there, within the payload members that are
// empty are left out. A nil payload is null.
func EncodeCompact(activityID string, at time.Time, payload any) ([]byte, error) {
	raw, err := Compact(payload)
	if err != nil {
		return nil, err
	}
	return marshal(struct {
		ActivityID string          `json:"activityId"`
		Timestamp  int64           `json:"timestamp"`
		Payload    json.RawMessage `json:"payload"`
	}{activityID, at.UnixMilli(), raw})
}

// Compact encodes a payload without the members that are an empty string, an
// empty list, null, 0 or false, at every level.
func Compact(payload any) (json.RawMessage, error) {
	raw, err := marshal(payload)
	if err != nil {
		return nil, err
	}
	return compact(raw)
}

func compact(raw json.RawMessage) (json.RawMessage, error) {
	if raw[0] != '{' && raw[0] != '[' {
		return raw, nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	out := json.RawMessage{raw[0]}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	for dec.More() {
		var name []byte
		if raw[0] == '{' {
			key, err := dec.Token()
			if err != nil {
				return nil, err
			}
			if name, err = marshal(key); err != nil {
				return nil, err
			}
			name = append(name, ':')
		}
		var value json.RawMessage
		err := dec.Decode(&value)
		if err == nil {
			value, err = compact(value)
		}
		if err != nil {
			return nil, err
		}
		if name != nil && isEmpty(value) {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(out, name...), value...)
	}
	return append(out, raw[len(raw)-1]), nil
}

func isEmpty(value []byte) bool {
	switch string(value) {
	case `""`, `[]`, `null`, `0`, `false`:
		return true
	}
	return false
}

// marshal is json.Marshal without the escapes for HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
