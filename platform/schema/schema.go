// SPDX-License-Identifier: Apache-2.0

// Package schema checks messages of the update protocol against the JSON
// Schemas (2020-12) in docs/schema, which has a file for each kind. A kind of
// message is called like the topic it is sent on, without the domain's prefix:
//
//	desiredstate            asks for an update
//	desiredstate/command    starts its next step
//	desiredstatefeedback    says how it goes
//	currentstate/get        asks what is installed
//	currentstate            says what is installed
//	ownerconsent            asks the owner
//	ownerconsentfeedback    is the owner's answer
//	safetoreboot            says whether the vehicle may be rebooted
//
// The schemas say what has to be written. Readers are more tolerant: they
// ignore members they do not know, and in reports also what they cannot use.
//
// Schemas are checked by a validator of our own that knows the few keywords
// they use: the libraries there are would add half a megabyte or more.
package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	docs "sdvbox/docs/schema"
	"sdvbox/platform/updateproto"
)

// Kinds returns the kinds of messages there are.
func Kinds() []string {
	return []string{
		"desiredstate", "desiredstate/command", "desiredstatefeedback", "currentstate/get", "currentstate",
		"ownerconsent", "ownerconsentfeedback", "safetoreboot",
	}
}

// Text returns the schema of a kind of messages.
func Text(kind string) ([]byte, error) {
	if !slices.Contains(Kinds(), kind) {
		return nil, fmt.Errorf("%q is no kind of message, expected one of %s", kind, strings.Join(Kinds(), ", "))
	}
	return docs.Files.ReadFile(strings.ReplaceAll(kind, "/", "-") + ".json")
}

// OfTopic returns the kind of the messages on a topic, such as desiredstate
// for vehicleupdate/desiredstate, and "" if it has none of ours.
func OfTopic(topic string) string {
	if _, kind, _ := strings.Cut(topic, "/"); slices.Contains(Kinds(), kind) {
		return kind
	}
	return ""
}

// Guess returns what kind of message this seems to be, and "" if it is like
// none. A request for the owner's consent cannot be told from a command.
func Guess(data []byte) string {
	var m struct {
		Payload map[string]any `json:"payload"`
	}
	if json.Unmarshal(data, &m) != nil {
		return ""
	}
	for _, hint := range []struct{ member, kind string }{
		{"domains", "desiredstate"}, {"baselines", "desiredstate"},
		{"command", "desiredstate/command"},
		{"softwareNodes", "currentstate"}, {"hardwareNodes", "currentstate"}, {"associations", "currentstate"},
		{"safe", "safetoreboot"},
		{"actions", "desiredstatefeedback"},
	} {
		if _, ok := m.Payload[hint.member]; ok {
			return hint.kind
		}
	}
	switch m.Payload["status"] {
	case nil:
		if len(m.Payload) == 0 {
			return "currentstate/get"
		}
		return ""
	case updateproto.ConsentApproved, updateproto.ConsentDenied:
		return "ownerconsentfeedback"
	}
	return "desiredstatefeedback"
}

// Validate checks a message of this kind. The error has one error for each
// fault, as errors.Join makes it, which names the member and what was expected
// there. A desired state that passes is one that the update manager takes.
func Validate(kind string, data []byte) error {
	c, err := check(kind, data)
	if err != nil {
		return err
	}
	if c.faults != nil {
		return errors.Join(c.faults...)
	}
	// There is more to a message than a schema is able to say.
	decode := func() error { _, err := updateproto.DecodeEnvelope(data); return err }
	if kind == "desiredstate" {
		decode = func() error { _, _, err := updateproto.DecodeDesiredState(data); return err }
	}
	if err := decode(); err != nil && !errors.Is(err, updateproto.ErrNoActivityID) {
		return err
	}
	return nil
}

// Unknown returns the members of a message that its schema does not know, so
// that nobody will read them: mostly misspelled ones. They are no fault.
func Unknown(kind string, data []byte) ([]string, error) {
	c, err := check(kind, data)
	if err != nil {
		return nil, err
	}
	return c.unknown, nil
}

func check(kind string, data []byte) (*checker, error) {
	text, err := Text(kind)
	if err != nil {
		return nil, err
	}
	var root node
	if err := json.Unmarshal(text, &root); err != nil {
		return nil, fmt.Errorf("schema of %s: %w", kind, err)
	}
	var message any
	var syntax *json.SyntaxError
	switch err := json.Unmarshal(data, &message); {
	case errors.As(err, &syntax):
		return nil, fmt.Errorf("message is not JSON: line %d: %w", 1+bytes.Count(data[:syntax.Offset], []byte("\n")), err)
	case err != nil:
		return nil, fmt.Errorf("message: %w", err)
	}
	c := &checker{defs: root.Defs}
	c.check("", &root, message)
	return c, nil
}
