// SPDX-License-Identifier: Apache-2.0

package updateproto

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
)

// MaxMessage is how many bytes of the text for people are kept of a feedback
// and of each of its actions.
const MaxMessage = 4096

// DecodeFeedback decodes a feedback and makes the best of it: an update must
// not wait for ever because of a member that only informs. Members of the
// wrong type count as missing, actions that do not name their component are
// left out, progress is cut to 0..100. What has to be right is what decides:
// the activity id, which may be missing, and the status.
func DecodeFeedback(data []byte) (activityID string, f Feedback, err error) {
	e, err := decodeAnonymous(data)
	if err == nil {
		f, err = e.feedback()
	}
	return e.ActivityID, f, err
}

func (e Envelope) feedback() (Feedback, error) {
	var p struct {
		Status   string          `json:"status"`
		Baseline lenient[string] `json:"baseline"`
		Message  lenient[string] `json:"message"`
		Actions  lenient[[]lenient[struct {
			Component lenient[struct {
				ID      lenient[string] `json:"id"`
				Version lenient[string] `json:"version"`
			}] `json:"component"`
			Status   lenient[string] `json:"status"`
			Progress percent         `json:"progress"`
			Message  lenient[string] `json:"message"`
		}]] `json:"actions"`
	}
	if err := e.DecodePayload(&p); err != nil {
		return Feedback{}, err
	}
	if p.Status == "" {
		return Feedback{}, errors.New("payload.status: missing or empty")
	}
	f := Feedback{Status: p.Status, Baseline: p.Baseline.v, Message: shorten(p.Message.v)}
	for _, a := range p.Actions.v {
		if c := a.v.Component.v; c.ID.v != "" {
			f.Actions = append(f.Actions, Action{
				Component: ComponentRef{c.ID.v, c.Version.v},
				Status:    a.v.Status.v,
				Progress:  int(a.v.Progress),
				Message:   shorten(a.v.Message.v),
			})
		}
	}
	return f, nil
}

// DecodeInventory decodes a current state, and when it was taken in
// milliseconds since 1970, 0 if it does not say. Nodes without an id and links
// without both ends are left out, members of the wrong type count as missing.
// The activity id may be missing: agents also tell without being asked.
func DecodeInventory(data []byte) (activityID string, at int64, inv Inventory, err error) {
	e, err := decodeAnonymous(data)
	if err == nil {
		inv, err = e.inventory()
	}
	return e.ActivityID, e.Timestamp, inv, err
}

func (e Envelope) inventory() (Inventory, error) {
	type parameters = lenient[[]lenient[struct {
		Key   lenient[string] `json:"key"`
		Value lenient[string] `json:"value"`
	}]]
	type node struct {
		ID          lenient[string] `json:"id"`
		Version     lenient[string] `json:"version"`
		Name        lenient[string] `json:"name"`
		Type        lenient[string] `json:"type"`
		Parameters  parameters      `json:"parameters"`
		Addressable lenient[bool]   `json:"addressable"`
	}
	var p struct {
		SoftwareNodes lenient[[]lenient[node]] `json:"softwareNodes"`
		HardwareNodes lenient[[]lenient[node]] `json:"hardwareNodes"`
		Associations  lenient[[]lenient[struct {
			SourceID lenient[string] `json:"sourceId"`
			TargetID lenient[string] `json:"targetId"`
		}]] `json:"associations"`
	}
	if err := e.DecodePayload(&p); err != nil {
		return Inventory{}, err
	}
	settings := func(p parameters) (list []KeyValue) {
		for _, kv := range p.v {
			if kv.v.Key.v != "" {
				list = append(list, KeyValue{kv.v.Key.v, kv.v.Value.v})
			}
		}
		return list
	}
	var inv Inventory
	for _, l := range p.SoftwareNodes.v {
		if n := l.v; n.ID.v != "" {
			inv.SoftwareNodes = append(inv.SoftwareNodes, SoftwareNode{n.ID.v, n.Version.v, n.Name.v, n.Type.v, settings(n.Parameters)})
		}
	}
	for _, l := range p.HardwareNodes.v {
		if n := l.v; n.ID.v != "" {
			inv.HardwareNodes = append(inv.HardwareNodes, HardwareNode{n.ID.v, n.Version.v, n.Name.v, settings(n.Parameters), n.Addressable.v})
		}
	}
	for _, l := range p.Associations.v {
		if a := l.v; a.SourceID.v != "" && a.TargetID.v != "" {
			inv.Associations = append(inv.Associations, Association{a.SourceID.v, a.TargetID.v})
		}
	}
	return inv, nil
}

// DecodeConsent decodes the answer of the owner. Only APPROVED is a yes; what
// is no answer at all is an error.
func DecodeConsent(data []byte) (activityID string, approved bool, err error) {
	e, err := decodeAnonymous(data)
	var answer OwnerConsentFeedback
	if err == nil {
		err = e.DecodePayload(&answer)
	}
	return e.ActivityID, err == nil && answer.Status == ConsentApproved, err
}

// decodeAnonymous is DecodeEnvelope for messages that may do without an activity id.
func decodeAnonymous(data []byte) (Envelope, error) {
	e, err := DecodeEnvelope(data)
	if errors.Is(err, ErrNoActivityID) {
		err = nil
	}
	return e, err
}

// Resumes says whether the agent whose inventory this is goes on with an
// update after a reboot: one of its applications has the parameter resumes=true.
func Resumes(inv Inventory) bool {
	for _, n := range inv.SoftwareNodes {
		for _, kv := range n.Parameters {
			if n.Type == TypeApplication && kv.Key == "resumes" && kv.Value == "true" {
				return true
			}
		}
	}
	return false
}

// lenient is a T that takes what is not one as nothing.
type lenient[T any] struct{ v T }

func (l *lenient[T]) UnmarshalJSON(data []byte) error {
	var v T
	if json.Unmarshal(data, &v) == nil {
		l.v = v
	}
	return nil
}

// percent is a number of any kind, cut to 0..100.
type percent int

func (p *percent) UnmarshalJSON(data []byte) error {
	n, err := strconv.ParseFloat(string(data), 64)
	if err == nil || errors.Is(err, strconv.ErrRange) { // infinite then
		*p = percent(min(max(n, 0), 100))
	}
	return nil
}

// shorten cuts a text so that a talkative agent cannot fill anybody's memory.
func shorten(s string) string {
	if len(s) <= MaxMessage {
		return s
	}
	const more = "…"
	return strings.ToValidUTF8(s[:MaxMessage-len(more)], "") + more
}
