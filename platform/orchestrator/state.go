// SPDX-License-Identifier: Apache-2.0

// Package orchestrator decides in which order the domains of a vehicle are
// updated, what each of their agents is told, and how an update ends: with one
// true answer.
//
// [Machine] is that decision and nothing else: events and the time come in,
// effects come out, and all it has to remember is in its [State]. [Driver] makes
// the state durable before it carries out the effects, so that an update goes on
// after a crash, a reboot or a power cut in any phase.
package orchestrator

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"sdvbox/platform/updateproto"
)

// Policy says which domains have to end together in the old or in the new state.
type Policy string

const (
	Baseline Policy = "baseline" // those that share a baseline
	All      Policy = "all"      // all of a desired state
)

// Config is what a Machine goes by.
type Config struct {
	Agents        map[string]Agent // by domain
	FailurePolicy Policy           // empty: Baseline
	PhaseTimeout  time.Duration    // how long an agent may be silent while it works
	VerifyTimeout time.Duration    // the same after a reboot, while it finds out what became of the activation
	Consent       []string         // commands that need the owner's consent: DOWNLOAD, UPDATE, ACTIVATE
	// ConsentTimeout is how long the owner may take.
	ConsentTimeout time.Duration
	RebootEnabled  bool
	RebootAfter    time.Duration // before a reboot
	GateTimeout    time.Duration // how long a reboot may be unsafe before it is given up
}

// Agent is what is known of the agent of a domain from the configuration.
type Agent struct {
	RebootRequired bool          // what it activates takes effect at the next boot
	ReadTimeout    time.Duration // how long it may take to answer at all
}

// State is all that outlives the process.
type State struct {
	Version  int             `json:"version"`
	Activity *Activity       `json:"activity,omitempty"` // the one under way
	Next     *Request        `json:"next,omitempty"`     // accepted, begins once the agents are free
	Reboot   *PendingReboot  `json:"reboot,omitempty"`   // after an activity that has ended
	Resumes  map[string]bool `json:"resumes,omitempty"`  // agents that go on after a reboot, by domain
	Unsent   []Outgoing      `json:"unsent,omitempty"`   // last feedback of activities that the broker does not have yet
	History  []Entry         `json:"history,omitempty"`  // newest last

	foreign bool // the activity is of a version that does things differently
}

const (
	stateVersion = 1
	maxHistory   = 100
	maxUnsent    = 16
	maxText      = 1 << 10 // bytes of a text that came from outside
	maxActions   = 1000    // of a domain
)

// Request is a desired state.
type Request struct {
	ID    string                   `json:"id"`
	State updateproto.DesiredState `json:"state"`
}

// PendingReboot is a reboot that an activity has left behind.
type PendingReboot struct {
	ID       string `json:"id"`   // of the activity
	Boot     string `json:"boot"` // in which it was wanted: gone when another boot runs
	Attempts int    `json:"attempts,omitempty"`
}

// Outgoing is a terminal feedback, or the rejection of a desired state.
type Outgoing struct {
	ID       string               `json:"id"`
	At       int64                `json:"at"` // milliseconds since 1970
	Feedback updateproto.Feedback `json:"feedback"`
	Rejected bool                 `json:"rejected,omitempty"` // the activity never began
}

// Entry is an activity that has ended.
type Entry struct {
	ID      string        `json:"activityId"`
	Started int64         `json:"started"` // milliseconds since 1970
	Ended   int64         `json:"ended"`
	Status  string        `json:"status"` // terminal
	Message string        `json:"message,omitempty"`
	Domains []EntryDomain `json:"domains,omitempty"`
}

// EntryDomain is what became of a domain.
type EntryDomain struct {
	ID      string `json:"id"`
	State   string `json:"state"` // one of the Result constants
	Message string `json:"message,omitempty"`
}

// What became of a domain.
const (
	ResultUpdated    = "updated"
	ResultUnchanged  = "unchanged" // nothing was to do, or nothing had been done yet
	ResultRolledBack = "rolled back"
	ResultFailed     = "failed"  // by its own word; its agent has cleaned up
	ResultUnknown    = "unknown" // its agent did not say
)

// Phase is how far an activity is.
type Phase string

const (
	Identification Phase = "identification"
	Download       Phase = "download"
	Update         Phase = "update"
	Activate       Phase = "activate"
	Restart        Phase = "reboot" // until the machine goes down
	Verify         Phase = "verify" // after the reboot
	Cleanup        Phase = "cleanup"
	Ending         Phase = "ending" // no domain goes forward any more
)

// Activity is an update under way.
type Activity struct {
	ID      string                   `json:"id"`
	Request updateproto.DesiredState `json:"request"`
	Started int64                    `json:"started"`
	Phase   Phase                    `json:"phase"`
	Domains []*Domain                `json:"domains"`
	// Reason is why it cannot end as COMPLETED, as far as no single domain is
	// the cause.
	Reason       string `json:"reason,omitempty"`
	Failed       bool   `json:"failed,omitempty"`       // not COMPLETED
	Unidentified bool   `json:"unidentified,omitempty"` // identification has failed
	Status       string `json:"status,omitempty"`       // terminal, once said
	Policy       Policy `json:"policy,omitempty"`       // as it was when the activity began
	Consent      string `json:"consent,omitempty"`      // command that the owner is asked for
	Granted      string `json:"granted,omitempty"`      // command that the owner has agreed to
	Answer       string `json:"answer,omitempty"`       // fingerprint of the owner's last answer
	Boot         string `json:"boot,omitempty"`         // in which the reboot was wanted
	Attempts     int    `json:"attempts,omitempty"`     // to reboot
}

// DomainState is what the agent of a domain has achieved.
type DomainState string

const (
	identifying   DomainState = "identifying"
	identified    DomainState = "identified"
	downloaded    DomainState = "downloaded"
	updated       DomainState = "updated"
	activated     DomainState = "activated"
	failed        DomainState = "failed" // by its own word
	rolledBack    DomainState = "rolled back"
	notRolledBack DomainState = "rollback failed"
	done          DomainState = "done" // nothing more is expected of the agent, and nothing more is sent to it
)

// Domain is one domain of an activity.
type Domain struct {
	ID    string      `json:"id"`
	State DomainState `json:"state"`
	// Order is what the agent has been told and has not answered yet: a command,
	// DESIREDSTATE or VERIFY.
	Order    string               `json:"order,omitempty"`
	Reboots  bool                 `json:"reboots,omitempty"`  // what it activates takes effect at a reboot
	Booted   bool                 `json:"booted,omitempty"`   // that reboot has taken place
	Back     bool                 `json:"back,omitempty"`     // it has to return to the old state
	Touched  bool                 `json:"touched,omitempty"`  // it was given a command
	Silent   bool                 `json:"silent,omitempty"`   // it did not answer in time
	Verified bool                 `json:"verified,omitempty"` // its activation outlived the reboot
	Resent   bool                 `json:"resent,omitempty"`   // the order was sent again: a failure may mean that it was known
	Refused  string               `json:"refused,omitempty"`  // such a failure
	FellBack bool                 `json:"fellBack,omitempty"` // a streaming update goes on as a download
	Result   string               `json:"result,omitempty"`   // one of the Result constants, once known
	Message  string               `json:"message,omitempty"`  // why it failed
	Actions  []updateproto.Action `json:"actions,omitempty"`

	heard    bool          // since the order was sent
	fresh    bool          // what it says now was said in this boot
	working  bool          // it has reported progress of the order
	wait     time.Duration // that deadline stands for
	deadline time.Time     // for an answer
	resend   time.Time     // for a sign of life
	limit    time.Time     // however much progress it reports
}

// Orders that are no commands.
const (
	orderDesired = "DESIREDSTATE"
	orderVerify  = "VERIFY"
)

// ParseState decodes a journal's record; nil is the State to begin with.
func ParseState(rec []byte) (State, error) {
	s := State{Version: stateVersion}
	if rec == nil {
		return s, nil
	}
	if err := json.Unmarshal(rec, &s); err != nil {
		return State{Version: stateVersion}, fmt.Errorf("decode the state of the update manager: %w", err)
	}
	if a := s.Activity; a != nil {
		if slices.Contains(a.Domains, nil) {
			return State{Version: stateVersion}, fmt.Errorf("decode the state of the update manager: activity %q has a null domain", a.ID)
		}
		s.foreign = s.Version != stateVersion || !a.known()
	}
	s.Version = stateVersion
	return s, nil
}

// known reports whether the activity is one that this version can go on with.
func (a *Activity) known() bool {
	phases := []Phase{Identification, Download, Update, Activate, Restart, Verify, Cleanup, Ending}
	states := []DomainState{identifying, identified, downloaded, updated, activated, failed, rolledBack, notRolledBack, done}
	orders := []string{"", orderDesired, orderVerify, updateproto.CommandDownload, updateproto.CommandUpdate, updateproto.CommandActivate,
		updateproto.CommandRollback, updateproto.CommandCleanup}
	return slices.Contains(phases, a.Phase) && !slices.ContainsFunc(a.Domains, func(d *Domain) bool {
		return !slices.Contains(states, d.State) || !slices.Contains(orders, d.Order)
	})
}

// Event is one of the types below.
type Event any

type (
	// Started is the first event of a Machine.
	Started struct{ Boot string } // id of the running boot
	// Connected says that the bus is up, or up again.
	Connected struct{}
	// Disconnected says that the bus is down.
	Disconnected struct{}
	// Requested is a desired state.
	Requested struct {
		ID        string
		State     updateproto.DesiredState
		Duplicate bool // it may have been delivered before
	}
	// Refused is a desired state that cannot be understood.
	Refused struct{ ID, Reason string }
	// Reported is the feedback of an agent.
	Reported struct {
		Domain, ID string
		Feedback   updateproto.Feedback
	}
	// Seen is the current state of an agent.
	Seen struct {
		Domain  string
		Resumes bool // it goes on after a reboot
		Fresh   bool // it answers a request of this process
	}
	// Answered is the owner's answer.
	Answered struct {
		ID          string
		Approved    bool
		Duplicate   bool   // it may have been delivered before
		Fingerprint string // of the message
	}
	// Cancelled is the wish to end an activity.
	Cancelled struct{ ID, By string }
	// Tick says that Deadline has come.
	Tick struct{}
	// GateSaid answers CheckGate.
	GateSaid struct {
		Safe   bool
		Reason string
	}
	// RebootFailed answers Reboot.
	RebootFailed struct{ Reason string }
	// Delivered says that the broker has a terminal feedback.
	Delivered struct{ Outgoing Outgoing }
)

// Effect is one of the types below.
type Effect any

type (
	// Say is feedback about an activity.
	Say struct {
		ID       string
		At       time.Time
		Feedback updateproto.Feedback
		Kind     SayKind
	}
	// Send is for an agent: a desired state or else a command.
	Send struct {
		Domain, ID string
		At         time.Time
		Desired    *updateproto.DesiredState
		Command    string
	}
	// Ask asks the owner.
	Ask struct {
		ID, Command string
		At          time.Time
	}
	// Refresh asks all agents for their current state and publishes it.
	Refresh struct{ ID string }
	// CheckGate finds out once whether a reboot is safe.
	CheckGate struct{ ID string }
	// Reboot restarts the vehicle.
	Reboot struct{ ID string }
	// Log is a line for the log.
	Log struct {
		Level slog.Level
		Text  string
	}
)

// SayKind is how a feedback is to be published.
type SayKind int

const (
	Normal  SayKind = iota
	Early           // may go out before the state is durable
	Running         // progress, which may be throttled
	Final           // is in State.Unsent until Delivered
	Refusal         // the same, of an activity that never began
)

// lasting reports whether the feedback is repeated until the broker has it.
func (s Say) lasting() bool { return s.Kind == Final || s.Kind == Refusal }

// Status is for people.
type Status struct {
	ActivityID string         `json:"activityId,omitempty"`
	Phase      string         `json:"phase"`           // "idle" without an activity
	Since      int64          `json:"since,omitempty"` // when the activity began, milliseconds since 1970
	Waiting    string         `json:"waiting,omitempty"`
	Domains    []DomainStatus `json:"domains,omitempty"`
	Next       string         `json:"next,omitempty"` // id of the desired state that waits
	Connected  bool           `json:"connected"`
}

// DomainStatus is how far a domain is.
type DomainStatus struct {
	ID       string `json:"id"`
	State    string `json:"state"`
	Order    string `json:"order,omitempty"` // not answered yet
	Progress int    `json:"progress"`        // percent of the action that is least far
	Message  string `json:"message,omitempty"`
}
