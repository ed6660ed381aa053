// SPDX-License-Identifier: Apache-2.0

// Package updateagent is the agent's side of the update protocol: it takes
// desired states and commands for one domain, drives a Backend through the
// phases of an update, and answers each of them, across crashes, reboots and
// broker outages.
//
// The rules live in machine, a plain state machine without clock, socket or
// disk: an event goes in, a new State and a list of effects come out. Agent is
// the shell around it: it saves the State in a journal before it carries out
// any effect, so that a restart at any instant finds what was promised and
// goes on with it.
package updateagent

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"sdvbox/platform/updateproto"
)

// Phase is where an activity stands.
type Phase string

// The phases in their order. Those in -ing have work running; in the others
// the activity waits for a command.
const (
	Identifying Phase = "identifying"
	Identified  Phase = "identified"
	Downloading Phase = "downloading"
	Downloaded  Phase = "downloaded"
	Updating    Phase = "updating"
	Updated     Phase = "updated"
	Activating  Phase = "activating"
	Activated   Phase = "activated"
	Failed      Phase = "failed"
	RollingBack Phase = "rolling back"
	RolledBack  Phase = "rolled back"
	Cleaning    Phase = "cleaning"
)

// step ties a command to the phases around it.
type step struct {
	command          string
	from, work, done Phase
	success, failure string // feedback statuses that end the work
}

// steps are the forward steps in their order; identification comes from a
// desired state, not from a command.
func steps() []step {
	return []step{
		{"", "", Identifying, Identified, updateproto.StatusIdentified, updateproto.StatusIdentificationFailed},
		{updateproto.CommandDownload, Identified, Downloading, Downloaded, updateproto.StatusDownloadSuccess, updateproto.StatusDownloadFailure},
		{updateproto.CommandUpdate, Downloaded, Updating, Updated, updateproto.StatusUpdateSuccess, updateproto.StatusUpdateFailure},
		{updateproto.CommandActivate, Updated, Activating, Activated, updateproto.StatusActivationSuccess, updateproto.StatusActivationFailure},
	}
}

// stepOf returns the forward step of a command.
func stepOf(command string) (step, bool) {
	for _, s := range steps() {
		if s.command == command && command != "" {
			return s, true
		}
	}
	return step{}, false
}

// working reports whether the phase has work running.
func (p Phase) working() bool {
	switch p {
	case Identifying, Downloading, Updating, Activating, RollingBack, Cleaning:
		return true
	}
	return false
}

// expires reports whether an activity may be given up in this phase: nothing it
// has done so far is in use.
func (p Phase) expires() bool {
	return p == Identified || p == Downloaded || p == Updated || p == Failed || p == RolledBack
}

// waitsFor says in words what an activity in this phase expects next.
func (p Phase) waitsFor() string {
	for _, s := range steps() {
		if s.from == p && s.command != "" {
			return "it waits for " + s.command
		}
	}
	switch p {
	case Activated, Failed, RolledBack:
		return "it waits for CLEANUP"
	}
	return "it is " + string(p)
}

// passed reports whether the phase lies behind the waiting phase q on the way
// forward.
func (p Phase) passed(q Phase) bool {
	order := []Phase{Identifying, Identified, Downloading, Downloaded, Updating, Updated, Activating, Activated, Failed, RollingBack, RolledBack, Cleaning}
	return slices.Index(order, p) > slices.Index(order, q)
}

// afterSuccess is the phase that follows when running work succeeds.
func (p Phase) afterSuccess() Phase {
	for _, s := range steps() {
		if s.work == p {
			return s.done
		}
	}
	return p
}

// Activity is one update under way.
type Activity struct {
	ID      string          `json:"id"`                // as used in feedback now
	Origin  string          `json:"origin"`            // of the desired state
	Adopted []string        `json:"adopted,omitempty"` // ids that came with a command only, newest last
	Request json.RawMessage `json:"request"`           // payload of the desired state
	Phase   Phase           `json:"phase"`
	// Success tells Cleaning whether it ends a successful update.
	Success bool `json:"success,omitempty"`
	// Last is the newest feedback, repeated when somebody may have missed it.
	Last updateproto.Feedback `json:"last"`
	// Queue holds commands that came before their turn.
	Queue []queued `json:"queue,omitempty"`
	// Parts are the baselines, for an agent that takes commands for one of
	// them. Phase is then that of the work that runs, or else of the part that
	// got furthest.
	Parts []part `json:"parts,omitempty"`
	// Scope is the baseline of the command that runs, as it was written.
	Scope string `json:"scope,omitempty"`
	// Next is the desired state for which this activity is given up.
	Next *next `json:"next,omitempty"`
	// Yields is whether that is why it is cleaned up.
	Yields bool `json:"yields,omitempty"`
	// Notes are the backend's own.
	Notes json.RawMessage `json:"notes,omitempty"`
}

type queued struct {
	ID       string `json:"id"`
	Command  string `json:"command"`
	Baseline string `json:"baseline,omitempty"`
}

type next struct {
	ID      string          `json:"id"`
	Request json.RawMessage `json:"request"`
	Queue   []queued        `json:"queue,omitempty"` // commands that came since
}

// part is a baseline. While work runs it is still in the phase before.
type part struct {
	Title  string `json:"title"`
	Phase  Phase  `json:"phase"`
	Status string `json:"status"` // of the last result
}

// over is the phase of a part that has been cleaned up.
const over Phase = "over"

// covers reports whether a command for a baseline is one for the part with
// this title.
func covers(baseline, title string) bool {
	return everything(baseline) || baseline == title
}

// everything reports whether a baseline stands for all of them.
func everything(baseline string) bool { return baseline == "" || baseline == "*" }

// same reports whether two commands are for the same baseline.
func same(a, b string) bool { return a == b || everything(a) && everything(b) }

// open returns the parts that a command for a baseline can mean.
func (a *Activity) open(baseline string) []*part {
	var list []*part
	for i := range a.Parts {
		if p := &a.Parts[i]; covers(baseline, p.Title) && p.Phase != over {
			list = append(list, p)
		}
	}
	return list
}

// at returns the parts that the work of a phase is about.
func (a *Activity) at(work Phase) []*part {
	list := a.open(a.Scope)
	for _, s := range steps() {
		if s.work == work {
			return slices.DeleteFunc(list, func(p *part) bool { return p.Phase != s.from })
		}
	}
	if work == Activated { // the outcome of a reboot
		return slices.DeleteFunc(a.open(""), func(p *part) bool { return p.Phase != Activated })
	}
	return list
}

// phaseOf returns the phase that a command for a baseline finds: want if any
// part of it is there, or else that of the part which is furthest behind.
func (a *Activity) phaseOf(baseline string, want Phase) Phase {
	if a.Phase.working() || len(a.Parts) == 0 {
		return a.Phase
	}
	found := over
	for _, p := range a.open(baseline) {
		switch {
		case p.Phase == want:
			return want
		case found == over || found.passed(p.Phase):
			found = p.Phase
		}
	}
	return found
}

// rest is how long the CLEANUP may take to come that ends an activity of which
// all that is left has been rolled back.
const rest = 10 * time.Second

// patience is how long the activity waits for a command, if it is usual to wait
// that long; 0 is for ever.
func (a *Activity) patience(usual time.Duration) time.Duration {
	goesOn := func(p *part) bool { return p.Phase != RolledBack }
	switch {
	case a == nil || !a.Phase.expires():
		return 0
	case a.Phase == RolledBack && !slices.ContainsFunc(a.open(""), goesOn):
		return rest
	}
	return usual
}

// settle makes the phase that of the parts, now that no work runs.
func (a *Activity) settle() {
	for i, p := range a.open("") {
		if i == 0 || p.Phase == Activated || a.Phase != Activated && p.Phase.passed(a.Phase) {
			a.Phase = p.Phase
		}
	}
}

func (a *Activity) knows(id string) bool {
	return a.Origin == id || slices.Contains(a.Adopted, id)
}

// ended is what is remembered of a finished activity: enough to refuse or to
// answer again whoever comes back to it.
type ended struct {
	ID      string   `json:"id"`
	Adopted []string `json:"adopted,omitempty"`
	Status  string   `json:"status"` // terminal status
}

func (e ended) knows(id string) bool {
	return e.ID == id || slices.Contains(e.Adopted, id)
}

// outgoing is a feedback message on its way.
type outgoing struct {
	ID       string               `json:"id"`
	Feedback updateproto.Feedback `json:"feedback"`
}

// State is all that an agent keeps across restarts.
type State struct {
	Version  int       `json:"version"`
	Activity *Activity `json:"activity,omitempty"`
	// Ended are activities that are finished or were refused, newest last.
	Ended []ended `json:"ended,omitempty"`
	// Unsent are the last words of finished activities that the broker has
	// not taken yet.
	Unsent []outgoing `json:"unsent,omitempty"`
}

// Bounds of what is kept. Everything a peer can send has to fit into the
// journal.
const (
	stateVersion = 1
	maxEnded     = 16
	maxUnsent    = 8
	maxQueue     = 8
	maxPartQueue = 64 // with baselines
	maxAdopted   = 4
	maxText      = 1000 // bytes of a message
)

func (s *State) endedWith(id string) (ended, bool) {
	for i := len(s.Ended) - 1; i >= 0; i-- {
		if s.Ended[i].knows(id) {
			return s.Ended[i], true
		}
	}
	return ended{}, false
}

// remember adds to Ended.
func (s *State) remember(e ended) {
	s.Ended = append(s.Ended, e)
	if n := len(s.Ended) - maxEnded; n > 0 {
		s.Ended = s.Ended[n:]
	}
}

// forget drops finished activities known as id, so that the id can be used
// anew.
func (s *State) forget(id string) {
	s.Ended = slices.DeleteFunc(s.Ended, func(e ended) bool { return e.knows(id) })
}

// shrink drops what the agent can do without.
func (s *State) shrink() {
	s.Ended = nil
	for i := range s.Unsent {
		s.Unsent[i].Feedback.Actions = []updateproto.Action{}
	}
	if a := s.Activity; a != nil {
		a.Last.Actions, a.Queue = []updateproto.Action{}, nil
		if a.Next != nil {
			a.Next.Queue = nil
		}
	}
}

// clip shortens the texts of a feedback to what can be kept.
func clip(f updateproto.Feedback) updateproto.Feedback {
	f.Message = clipText(f.Message)
	f.Actions = slices.Clone(f.Actions)
	for i := range f.Actions {
		f.Actions[i].Message = clipText(f.Actions[i].Message)
	}
	return f
}

func clipText(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + "..."
}
