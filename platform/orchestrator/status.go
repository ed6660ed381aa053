// SPDX-License-Identifier: Apache-2.0

package orchestrator

import (
	"cmp"
	"strings"
	"unicode/utf8"

	"sdvbox/platform/updateproto"
)

// actions is what the domains have reported, in a stable order and in the words
// that the north knows.
func (a *Activity) actions() []updateproto.Action {
	var all []updateproto.Action
	for _, d := range a.Domains {
		for _, x := range d.Actions {
			switch x.Status {
			case updateproto.ActionActivating:
				x.Status = updateproto.ActionUpdating
			case updateproto.ActionActivationSuccess:
				x.Status = updateproto.ActionUpdateSuccess
			case updateproto.ActionActivationFailure:
				x.Status = updateproto.ActionUpdateFailure
			}
			all = append(all, x)
		}
	}
	return all
}

// note is what a domain's result leaves open.
func (d *Domain) note() string {
	switch {
	case d.unverified():
		return unverified
	case d.halfBack():
		return "reboot pending"
	}
	return ""
}

// summary is why an activity has not completed, and what has become of each
// domain.
func (a *Activity) summary() string {
	var parts []string
	if a.Reason != "" {
		parts = append(parts, a.Reason)
	}
	for _, d := range a.Domains {
		switch {
		case d.Message != "" && d.Result == ResultRolledBack && !strings.Contains(d.Message, ResultRolledBack):
			parts = append(parts, d.ID+": "+d.Message+" (rolled back)")
		case d.Message != "":
			parts = append(parts, d.ID+": "+d.Message)
		default:
			parts = append(parts, d.ID+": "+d.Result)
		}
		if note := d.note(); note != "" {
			parts[len(parts)-1] += ", " + note
		}
	}
	return strings.Join(parts, "; ")
}

// Snapshot is for people.
func (m *Machine) Snapshot() Status {
	s := Status{Phase: "idle", Connected: m.connected}
	if m.Next != nil {
		s.Next = m.Next.ID
	}
	if r := m.Reboot; r != nil {
		s.ActivityID, s.Phase, s.Waiting = r.ID, string(Restart), m.waitsForReboot()
	}
	a := m.Activity
	if a == nil {
		return s
	}
	s.ActivityID, s.Phase, s.Since = a.ID, string(a.Phase), a.Started
	var slow []string
	for _, d := range a.Domains {
		ds := DomainStatus{ID: d.ID, State: string(d.State), Order: d.Order, Message: d.Message}
		if d.State == done {
			ds.State = cmp.Or(d.Result, ds.State)
		}
		for i, x := range d.Actions {
			if i == 0 || x.Progress < ds.Progress {
				ds.Progress = x.Progress
			}
		}
		if d.Order != "" {
			slow = append(slow, d.ID+" ("+d.Order+")")
		}
		s.Domains = append(s.Domains, ds)
	}
	switch {
	case a.Consent != "":
		s.Waiting = "the owner's consent to " + a.Consent
	case len(slow) > 0:
		s.Waiting = strings.Join(slow, ", ")
	case a.Phase == Restart:
		s.Waiting = m.waitsForReboot()
	}
	return s
}

func (m *Machine) waitsForReboot() string {
	if m.unsafe != "" {
		return "a safe moment to reboot: " + m.unsafe
	}
	return "the reboot"
}

// clip bounds a text that came from outside.
func clip(s string) string {
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\ufffd")
	}
	return s
}
