// SPDX-License-Identifier: Apache-2.0

package rauchelper

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"sdvbox/platform/applet"
	"sdvbox/platform/osrelease"
	"sdvbox/platform/rauc"
	"sdvbox/platform/slots"
)

func statusCommand(m machine) applet.Command {
	return applet.Command{
		Name:    "status",
		Summary: "show which slot runs and why, what boots next, and the state of all slots",
		Description: `A slot is good (confirmed), on trial (running, not confirmed yet), bootable (not running, has attempts left), exhausted (no attempts left) or bad. Without RAUC the versions of slots that do not run are unknown.

The exit code tells what runs.`,
		Options: func() any { return new(storeOptions) },
		Exit: []applet.ExitCode{
			{Code: exitTrial, Meaning: "the running slot is on trial"},
			{Code: exitFallback, Meaning: "the boot loader fell back to the running slot from a preferred one"},
			{Code: exitRescue, Meaning: "no slot runs: this is the rescue system"},
		},
		Run: func(ctx context.Context, c *applet.Call) error {
			s := m.gather(ctx, c.Options.(*storeOptions).Bootenv)
			var err error
			if c.JSON {
				err = writeJSON(c.Stdout, s)
			} else {
				err = s.write(c.Stdout)
			}
			if code := s.exitCode(); err == nil && code != 0 {
				return applet.Exit(code, nil)
			}
			return err
		},
	}
}

// Status is what "status --output json" prints.
type Status struct {
	Booted      string      `json:"booted"` // boot name, "" in the rescue system
	Reason      string      `json:"boot_reason"`
	OnTrial     bool        `json:"on_trial"`
	Next        string      `json:"next"` // boot name, "" if only the rescue system can start
	Good        string      `json:"good"` // slot confirmed last
	LastFailure *Failure    `json:"last_failure,omitempty"`
	Environment Environment `json:"environment"`
	RAUC        RAUC        `json:"rauc"`
	Slots       []Slot      `json:"slots"`
}

// Failure says why a slot was given up.
type Failure struct {
	Slot   string `json:"slot"`
	Reason string `json:"reason"`
}

// Environment is where the boot state comes from.
type Environment struct {
	Store string `json:"store,omitempty"`
	Error string `json:"error,omitempty"`
}

// RAUC tells whether the service answers.
type RAUC struct {
	Reachable  bool   `json:"reachable"`
	Compatible string `json:"compatible,omitempty"`
	Error      string `json:"error,omitempty"`
}

// Slot is all that is known of a slot. Slots without boot name are known to RAUC only.
type Slot struct {
	Bootname     string `json:"bootname,omitempty"`
	Name         string `json:"name,omitempty"`
	Booted       bool   `json:"booted"`
	State        string `json:"state,omitempty"`
	AttemptsLeft int    `json:"attempts_left"`
	Version      string `json:"version,omitempty"`
	Device       string `json:"device,omitempty"`
	RAUCStatus   string `json:"rauc_status,omitempty"`
}

// gather asks the kernel command line, the boot environment and RAUC. What cannot be found out is part of the answer.
func (m machine) gather(ctx context.Context, spec string) *Status {
	s := new(Status)
	s.Booted, s.Reason = m.booted()
	list, err := m.askRAUC(ctx, s)
	if err != nil {
		s.RAUC.Error = err.Error()
	}
	store, st, err := load(spec)
	if store != nil {
		s.Environment.Store = store.String()
	}
	if err != nil {
		s.Environment.Error = invalid(err).Error()
		for _, r := range list {
			s.add(st, r)
		}
		return s
	}
	s.Next, _ = st.Next()
	s.Good = st.Good
	s.OnTrial = s.Booted != "" && st.OnTrial(s.Booted)
	if slot, reason := st.Reason(); reason != "" {
		s.LastFailure = &Failure{slot, reason}
	}
	for _, name := range st.Order {
		i := slices.IndexFunc(list, func(r rauc.Slot) bool { return r.Bootname == name })
		if i < 0 {
			s.add(st, rauc.Slot{Bootname: name})
			continue
		}
		s.add(st, list[i])
		list = slices.Delete(list, i, i+1)
	}
	slices.SortStableFunc(s.Slots, func(a, b Slot) int { return cmp.Compare(a.Bootname, b.Bootname) })
	for _, r := range list {
		s.add(st, r)
	}
	for i := range s.Slots {
		if slot := &s.Slots[i]; slot.Booted && slot.Version == "" {
			slot.Version = m.version()
		}
	}
	return s
}

func (m machine) askRAUC(ctx context.Context, s *Status) ([]rauc.Slot, error) {
	client, list, err := m.raucSlots(ctx)
	s.RAUC.Reachable = err == nil || !errors.Is(err, rauc.ErrUnavailable) && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	s.RAUC.Compatible, err = client.Compatible(ctx)
	if s.Booted == "" && s.Reason == "" {
		// A command line without rauc.slot: RAUC has other ways to find out.
		for _, r := range list {
			if r.State == "booted" {
				s.Booted = cmp.Or(r.Bootname, r.Name)
			}
		}
	}
	return list, err
}

func (s *Status) add(st slots.State, r rauc.Slot) {
	slot := Slot{
		Bootname: r.Bootname, Name: r.Name, Version: r.Version, Device: r.Device, RAUCStatus: r.Status,
		Booted:       s.Booted != "" && (r.Bootname == s.Booted || r.Name == s.Booted),
		AttemptsLeft: st.Left(r.Bootname),
	}
	switch b, ok := st.Slots[r.Bootname]; {
	case !ok:
		slot.State = r.BootStatus
	case !b.OK:
		slot.State = "bad"
	case slot.AttemptsLeft == 0:
		slot.State = "exhausted"
	case r.Bootname == st.Good:
		slot.State = "good"
	case slot.Booted:
		slot.State = "on trial"
	default:
		slot.State = "bootable"
	}
	s.Slots = append(s.Slots, slot)
}

// version returns the version of the running system for a slot that RAUC has not written.
func (m machine) version() string {
	v, _ := osrelease.Version(m.root) // none is shown as none
	return v
}

func (s *Status) exitCode() int {
	switch {
	case s.Booted == "" && s.Reason != "":
		return exitRescue
	case s.OnTrial:
		return exitTrial
	case s.Reason == "fallback":
		return exitFallback
	}
	return 0
}

func (s *Status) write(w io.Writer) error {
	b := bufio.NewWriter(w)
	line := func(label, format string, args ...any) {
		fmt.Fprintf(b, "%-13s %s\n", label+":", fmt.Sprintf(format, args...))
	}
	switch {
	case s.Booted != "" && s.Reason != "":
		line("Running", "%s, %s", s.Booted, explain(s.Reason))
	case s.Booted != "":
		line("Running", "%s", s.Booted)
	case s.Reason != "":
		line("Running", "rescue system, %s", explain(s.Reason))
	default:
		line("Running", "unknown: the kernel command line names no slot")
	}
	switch {
	case s.Environment.Error != "":
		line("Environment", "%s", strings.TrimSpace(s.Environment.Store+" "+s.Environment.Error))
	default:
		line("Next", "%s", cmp.Or(s.Next, "rescue system: no slot may be booted"))
		line("Confirmed", "%s", cmp.Or(s.Good, "none yet"))
		line("Environment", "%s", s.Environment.Store)
	}
	if s.LastFailure != nil {
		line("Last failure", "%s: %s", s.LastFailure.Slot, s.LastFailure.Reason)
	}
	if s.RAUC.Error != "" {
		line("RAUC", "%s", s.RAUC.Error)
	} else {
		line("RAUC", "answers, compatible %q", s.RAUC.Compatible)
	}
	if len(s.Slots) > 0 {
		fmt.Fprintln(b)
	}
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	if len(s.Slots) > 0 {
		fmt.Fprintln(t, "\tSLOT\tNAME\tSTATE\tATTEMPTS\tVERSION\tDEVICE")
	}
	for _, slot := range s.Slots {
		mark, attempts, state := " ", "-", slot.State
		if slot.Booted {
			mark = "*"
		}
		if slot.Bootname != "" && s.Environment.Error == "" {
			attempts = strconv.Itoa(slot.AttemptsLeft)
		}
		if slot.RAUCStatus != "" && slot.RAUCStatus != "ok" {
			state += ", installation " + slot.RAUCStatus
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", mark, dash(slot.Bootname), dash(slot.Name), dash(state), attempts,
			dash(slot.Version), dash(slot.Device))
	}
	t.Flush()
	return b.Flush()
}

func dash(s string) string { return cmp.Or(s, "-") }

// explain puts the reason of a boot into words.
func explain(reason string) string {
	switch reason {
	case "first":
		return "the preferred slot"
	case "fallback":
		return "a fallback: the preferred slot is bad, has no attempts left or could not be loaded"
	case "unsaved":
		return "because attempts could not be counted: the boot environment cannot be written"
	case "manual":
		return "chosen in the boot menu"
	case "exhausted":
		return "because no slot is good or has attempts left"
	case "unreadable":
		return "because the boot environment could not be read"
	case "external":
		return "started without a boot loader's choice"
	}
	return reason
}
