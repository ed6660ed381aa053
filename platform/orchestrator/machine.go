// SPDX-License-Identifier: Apache-2.0

package orchestrator

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"sdvbox/platform/updateproto"
)

const (
	gatePause      = 5 * time.Second  // between two looks whether a reboot is safe
	rebootPatience = 5 * time.Minute  // for a reboot that was ordered to happen
	rebootPause    = 30 * time.Second // after one that failed
	rebootAttempts = 3
	// patienceFactor is how many timeouts an agent gets that always reports
	// progress and never a result.
	patienceFactor = 100
)

// unverified is the message of a COMPLETED that comes before its reboot.
const unverified = "reboot pending, unverified"

// Machine is the pure state machine. It is not for concurrent use.
type Machine struct {
	State
	c         Config
	boot      string
	connected bool
	now       time.Time
	effects   []Effect
	dirty     bool

	consentBy time.Time // the owner has to answer by then
	// Of a reboot.
	gateAt    time.Time // next look at the gate
	gateBy    time.Time // it has to open by then
	gateAsked bool
	downBy    time.Time // the machine should be down by then
	unsafe    string    // what the gate said last
}

// NewMachine makes a machine that goes on from s. Its first event has to be
// Started.
func NewMachine(c Config, s State) *Machine {
	if s.Resumes == nil {
		s.Resumes = map[string]bool{}
	}
	return &Machine{State: s, c: c}
}

// Handle takes one event. The effects have to be carried out in their order
// once the state is durable; dirty says that it has changed.
func (m *Machine) Handle(now time.Time, ev Event) (effects []Effect, dirty bool) {
	m.now = now
	switch ev := ev.(type) {
	case Started:
		m.started(ev)
	case Connected:
		m.connect()
	case Disconnected:
		m.connected = false
	case Requested:
		m.requested(ev)
	case Refused:
		m.refused(ev)
	case Reported:
		m.reported(ev)
	case Seen:
		m.seen(ev)
	case Answered:
		m.answered(ev)
	case Cancelled:
		m.cancelled(ev)
	case Tick:
		m.tick()
	case GateSaid:
		m.gateSaid(ev)
	case RebootFailed:
		m.rebootFailed(ev.Reason)
	case Delivered:
		m.delivered(ev.Outgoing)
	}
	m.advance()
	effects, dirty = m.effects, m.dirty
	m.effects, m.dirty = nil, false
	return effects, dirty
}

func (m *Machine) do(e Effect) { m.effects = append(m.effects, e) }

func (m *Machine) logf(l slog.Level, format string, args ...any) {
	m.do(Log{l, fmt.Sprintf(format, args...)})
}

// say reports on the activity under way.
func (m *Machine) say(kind SayKind, status, message string) {
	a := m.Activity
	m.do(Say{a.ID, m.now, updateproto.Feedback{Status: status, Message: message, Actions: a.actions()}, kind})
}

func (m *Machine) running() { m.say(Running, updateproto.StatusRunning, "") }

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

// started takes up what a former process or boot has left.
func (m *Machine) started(ev Started) {
	m.boot = ev.Boot
	if r := m.Reboot; r != nil && r.Boot != m.boot {
		m.logf(slog.LevelInfo, "the reboot after activity %q has taken place", r.ID)
		m.Reboot, m.dirty = nil, true
	}
	if m.Reboot != nil {
		m.waitForReboot()
	}
	a := m.Activity
	if a == nil {
		return
	}
	m.logf(slog.LevelInfo, "going on with activity %q, phase %s", a.ID, a.Phase)
	if a.Phase != Restart {
		return
	}
	if a.Boot == m.boot {
		m.waitForReboot()
		return
	}
	a.Phase, m.dirty = Verify, true
	for _, d := range a.Domains {
		if m.needsReboot(d) {
			d.Order = orderVerify
		}
	}
}

// connect says again what is not known to have arrived. Before, no deadline
// ran.
func (m *Machine) connect() {
	m.connected = true
	for _, o := range m.Unsent {
		m.do(Say{o.ID, time.UnixMilli(o.At), o.Feedback, Final})
	}
	a := m.Activity
	if a == nil {
		return
	}
	if a.Status == "" && a.Phase != Identification {
		m.running()
	}
	if a.Consent != "" {
		m.ask()
	}
	for _, d := range a.Domains {
		if d.Order == "" {
			continue
		}
		m.arm(d)
		if d.Order == orderVerify {
			d.resend = m.now.Add(m.agent(d).ReadTimeout)
			m.do(Refresh{a.ID})
		} else if m.Resumes[d.ID] {
			m.send(d)
		} else {
			// It may take a second order for an error, and the first one for done.
			d.resend = m.now.Add(m.agent(d).ReadTimeout)
		}
	}
}

func (m *Machine) delivered(o Outgoing) {
	if i := slices.IndexFunc(m.Unsent, func(u Outgoing) bool { return u.ID == o.ID && u.At == o.At }); i >= 0 {
		m.Unsent = slices.Delete(m.Unsent, i, i+1)
		m.dirty = true
	}
}

// requested takes a desired state.
func (m *Machine) requested(ev Requested) {
	a := m.Activity
	entry, ended := m.ended(ev.ID)
	switch {
	case a != nil && a.Status == "" && a.ID == ev.ID:
		if a.Phase == Identification {
			m.say(Normal, updateproto.StatusIdentifying, "")
		} else {
			m.say(Normal, updateproto.StatusRunning, "")
		}
	case m.Next != nil && m.Next.ID == ev.ID:
		m.identifying(ev.ID)
	case ended && ev.ID != "":
		if slices.ContainsFunc(m.Unsent, func(o Outgoing) bool { return o.ID == ev.ID }) {
			return
		}
		message := "this activity has ended already; a new run needs a new activityId"
		if entry.Message != "" {
			message = entry.Message + " (" + message + ")"
		}
		m.do(Say{ev.ID, m.now, updateproto.Feedback{Status: entry.Status, Message: message}, Normal})
	case a != nil && a.Status == "":
		m.reject(ev.ID, fmt.Sprintf("activity %q is under way (%s): wait for its end or cancel it", a.ID, a.Phase))
	case m.Next != nil:
		m.reject(ev.ID, fmt.Sprintf("activity %q waits to begin: wait for its end or cancel it", m.Next.ID))
	case m.Reboot != nil:
		m.reject(ev.ID, fmt.Sprintf("the vehicle is going to reboot after activity %q", m.Reboot.ID))
	case a != nil:
		m.Next, m.dirty = &Request{ev.ID, ev.State}, true
		m.identifying(ev.ID)
	default:
		m.begin(Request{ev.ID, ev.State})
	}
}

func (m *Machine) identifying(id string) {
	m.do(Say{id, m.now, updateproto.Feedback{Status: updateproto.StatusIdentifying}, Early})
}

// refused answers a desired state that cannot be understood. It does not end an
// activity whose id it bears.
func (m *Machine) refused(ev Refused) {
	a := m.Activity
	_, ended := m.ended(ev.ID)
	if ev.ID != "" && (a != nil && a.ID == ev.ID || m.Next != nil && m.Next.ID == ev.ID || ended) {
		m.logf(slog.LevelWarn, "another desired state with the id %q of a known activity is ignored: %s", ev.ID, ev.Reason)
		return
	}
	m.reject(ev.ID, ev.Reason)
}

func (m *Machine) reject(id, why string) {
	m.logf(slog.LevelWarn, "desired state %q is rejected: %s", id, why)
	m.do(Say{id, m.now, updateproto.Feedback{Status: updateproto.StatusIdentificationFailed, Message: clip(why)}, Normal})
}

// ended looks an activity up that has ended.
func (m *Machine) ended(id string) (Entry, bool) {
	for _, e := range slices.Backward(m.History) {
		if e.ID == id {
			return e, true
		}
	}
	return Entry{}, false
}

// begin starts an activity. No other is under way.
func (m *Machine) begin(r Request) {
	a := &Activity{ID: r.ID, Request: r.State, Started: m.now.UnixMilli(), Phase: Identification}
	m.Activity, m.dirty = a, true
	var unknown []string
	for _, dom := range r.State.Domains {
		if _, known := m.c.Agents[dom.ID]; known {
			a.Domains = append(a.Domains, &Domain{ID: dom.ID, State: identifying})
		} else {
			unknown = append(unknown, dom.ID)
		}
	}
	if len(unknown) > 0 {
		a.Failed = true
		a.Reason = "there is no agent for " + clip(strings.Join(unknown, ", "))
	}
	switch {
	case len(r.State.Domains) == 0:
		a.Failed, a.Reason = true, "the desired state has no domains"
	case len(a.Domains) == 0:
	case len(unknown) > 0 && m.c.FailurePolicy == All:
		a.Unidentified = true
	default:
		m.identifying(a.ID)
		for _, d := range a.Domains {
			if u := slices.IndexFunc(unknown, func(u string) bool { return m.together(d.ID, u) }); u >= 0 {
				m.finish(d, ResultUnchanged, "it shares a baseline with "+clip(unknown[u]))
				continue
			}
			m.order(d, orderDesired)
		}
		return
	}
	for _, d := range a.Domains {
		m.finish(d, ResultUnchanged, "")
	}
	a.Phase = Ending
}

// together reports whether two domains share a baseline, directly or through
// others.
func (m *Machine) together(x, y string) bool {
	if m.c.FailurePolicy == All || x == y {
		return true
	}
	group := map[string]bool{x: true}
	for grown := true; grown; {
		grown = false
		for _, b := range m.Activity.Request.Baselines {
			var in bool
			for _, c := range b.Components {
				domain, _, _ := strings.Cut(c, ":")
				in = in || group[domain]
			}
			for _, c := range b.Components {
				domain, _, _ := strings.Cut(c, ":")
				if in && !group[domain] {
					group[domain], grown = true, true
				}
			}
		}
	}
	return group[y]
}

func (m *Machine) agent(d *Domain) Agent { return m.c.Agents[d.ID] }

func (m *Machine) needsReboot(d *Domain) bool {
	return m.agent(d).RebootRequired && d.State == activated && !d.Back && len(d.Actions) > 0
}

// order gives a domain something to do.
func (m *Machine) order(d *Domain, order string) {
	d.Order, d.Resent, d.heard, d.working = order, false, false, false
	if order != orderDesired && order != orderVerify {
		d.Touched = true
	}
	d.limit = time.Time{}
	m.dirty = true
	m.arm(d)
	m.send(d)
}

// send tells the agent its order.
func (m *Machine) send(d *Domain) {
	d.resend = time.Time{}
	s := Send{Domain: d.ID, ID: m.Activity.ID, At: m.now, Command: d.Order}
	switch d.Order {
	case orderDesired:
		ds := updateproto.Split(m.Activity.Request, d.ID)
		s.Desired, s.Command = &ds, ""
	case orderVerify:
		// It is activated already and says so again.
		s.Command = updateproto.CommandActivate
		d.resend = m.now.Add(m.agent(d).ReadTimeout)
	}
	m.do(s)
}

// arm sets the deadline for the answer to an order.
func (m *Machine) arm(d *Domain) {
	wait := m.c.PhaseTimeout
	switch {
	case d.Order == orderVerify:
		wait = m.c.VerifyTimeout
	case !d.heard && (d.Back || d.Silent):
		// One that may never answer must not hold up the end for long.
		wait = min(wait, m.agent(d).ReadTimeout)
	}
	d.deadline = m.now.Add(wait)
	if d.limit.IsZero() {
		d.limit = m.now.Add(patienceFactor * wait)
	}
	if d.limit.Before(d.deadline) {
		d.deadline = d.limit
	}
}

// reported takes the feedback of an agent.
func (m *Machine) reported(ev Reported) {
	a := m.Activity
	var d *Domain
	if a != nil && a.ID == ev.ID {
		if i := slices.IndexFunc(a.Domains, func(d *Domain) bool { return d.ID == ev.Domain }); i >= 0 {
			d = a.Domains[i]
		}
	}
	if d == nil {
		m.logf(slog.LevelDebug, "feedback %s of %s for activity %q is of no concern", ev.Feedback.Status, ev.Domain, ev.ID)
		return
	}
	d.record(ev.Feedback.Actions)
	if d.State == done {
		return
	}
	d.heard, d.resend = true, time.Time{}
	if d.Order == orderVerify && !d.fresh {
		d.resend = m.now.Add(m.agent(d).ReadTimeout)
	}
	if d.Order != "" {
		m.arm(d)
	}
	f := ev.Feedback
	f.Message = clip(f.Message)
	switch status := f.Status; status {
	case updateproto.StatusIdentifying:
	case updateproto.StatusIdentified:
		switch {
		case d.Order != orderDesired:
		case len(d.Actions) == 0:
			m.finish(d, ResultUnchanged, "")
		default:
			m.reached(d, identified)
		}
	case updateproto.StatusIdentificationFailed:
		if d.Order == orderDesired {
			a.Unidentified = true
			m.finish(d, ResultFailed, cmp.Or(f.Message, "identification failed"))
		}
	case updateproto.StatusCompleted, updateproto.StatusComplete:
		m.completed(d)
	case updateproto.StatusIncomplete:
		m.incomplete(d, f.Message)
	case updateproto.StatusRollback, updateproto.StatusCleanup:
		if d.Order == status {
			d.working = true
			m.running()
		}
	case updateproto.StatusRollbackSuccess:
		if d.Order == updateproto.CommandRollback {
			d.State, d.Order, d.Result, m.dirty = rolledBack, "", ResultRolledBack, true
		}
	case updateproto.StatusRollbackFailure:
		if d.Order == updateproto.CommandRollback && !m.refusal(d, f) {
			d.State, d.Order, d.Result, m.dirty = notRolledBack, "", ResultUnknown, true
			d.Message = cmp.Or(d.Message, "rollback failed: "+cmp.Or(f.Message, "no reason given"))
		}
	case updateproto.StatusCleanupSuccess, updateproto.StatusCleanupFailure:
		if d.Order == updateproto.CommandCleanup {
			m.cleaned(d, status == updateproto.StatusCleanupFailure, f.Message)
		}
	case updateproto.StatusRunning:
		m.fellBack(d)
	default:
		m.forward(d, f)
	}
}

// record takes the actions that an agent reports; the newest word on a component
// counts.
func (d *Domain) record(actions []updateproto.Action) {
	for _, x := range actions {
		x.Message = clip(x.Message)
		x.Status = clip(x.Status)
		i := slices.IndexFunc(d.Actions, func(o updateproto.Action) bool { return o.Component.ID == x.Component.ID })
		switch {
		case i >= 0:
			d.Actions[i] = x
		case len(d.Actions) < maxActions:
			d.Actions = append(d.Actions, x)
		}
	}
}

// step is one command on the way forward.
type step struct {
	phase                     Phase
	command                   string
	from, to                  DomainState
	progress, success, failed string
}

func steps() [3]step {
	return [...]step{
		{Download, updateproto.CommandDownload, identified, downloaded,
			updateproto.StatusDownloading, updateproto.StatusDownloadSuccess, updateproto.StatusDownloadFailure},
		{Update, updateproto.CommandUpdate, downloaded, updated,
			updateproto.StatusUpdating, updateproto.StatusUpdateSuccess, updateproto.StatusUpdateFailure},
		{Activate, updateproto.CommandActivate, updated, activated,
			updateproto.StatusActivating, updateproto.StatusActivationSuccess, updateproto.StatusActivationFailure},
	}
}

// forward takes what an agent says about DOWNLOAD, UPDATE and ACTIVATE.
func (m *Machine) forward(d *Domain, f updateproto.Feedback) {
	verifying := d.Order == orderVerify
	known := false
	for _, s := range steps() {
		ordered := d.Order == s.command || verifying && s.phase == Activate
		working := ordered || d.Order == updateproto.CommandDownload || d.Order == updateproto.CommandUpdate || d.Order == updateproto.CommandActivate
		switch f.Status {
		case s.progress:
			known = true
			if ordered {
				d.working = true
				m.running()
			}
		case s.success:
			known = true
			switch {
			case verifying && ordered:
				// What was said before the reboot may come after it.
				if d.fresh {
					d.Order, d.Verified, m.dirty = "", true, true
				}
			case ordered:
				m.reached(d, s.to)
			}
		case s.failed:
			known = true
			// Some agents fail a step with the status of a later one.
			if working && !m.refusal(d, f) {
				m.fail(d, cmp.Or(f.Message, strings.ToLower(s.command)+" failed"))
			}
		}
	}
	if !known {
		m.logf(slog.LevelWarn, "status %.40q of %s is unknown", f.Status, d.ID)
	}
}

// refusal reports whether a failure may only mean that an order was known
// already when it came a second time.
func (m *Machine) refusal(d *Domain, f updateproto.Feedback) bool {
	if !d.Resent || d.working || m.Resumes[d.ID] {
		return false
	}
	d.Resent, m.dirty = false, true
	m.logf(slog.LevelWarn, "%s of %s after the order was repeated is taken for a refusal: %s", f.Status, d.ID, f.Message)
	return true
}

// reached takes down that an agent has carried out its order.
func (m *Machine) reached(d *Domain, s DomainState) {
	d.State, d.Order, m.dirty = s, "", true
	if d.Back {
		m.back(d)
	}
}

// fellBack sends DOWNLOAD again to an agent that could not install while
// downloading and now waits for it.
func (m *Machine) fellBack(d *Domain) {
	again := d.Order == updateproto.CommandUpdate && !d.FellBack && !d.Back && !m.Resumes[d.ID] &&
		slices.ContainsFunc(d.Actions, func(x updateproto.Action) bool { return x.Status == updateproto.ActionUpdating })
	if again {
		d.FellBack, d.State = true, identified
		m.order(d, updateproto.CommandDownload)
	}
}

// completed takes an agent's word that it has ended well.
func (m *Machine) completed(d *Domain) {
	switch {
	case d.Order == updateproto.CommandCleanup:
		m.cleaned(d, false, "")
	case d.Back:
		m.finish(d, ResultUpdated, cmp.Or(d.Message, "completed before it could be taken back"))
	case d.Order == orderDesired:
		m.finish(d, ResultUnchanged, "")
		// One that does not say IDENTIFIED before takes no other desired state
		// until it is released; nobody has to wait for that.
		if !m.Resumes[d.ID] {
			m.do(Send{Domain: d.ID, ID: m.Activity.ID, At: m.now, Command: updateproto.CommandCleanup})
		}
	default:
		m.finish(d, ResultUpdated, "")
	}
}

// incomplete takes an agent's word that it has ended without success.
func (m *Machine) incomplete(d *Domain, why string) {
	switch {
	case d.Order == updateproto.CommandCleanup && (d.Back || d.State == failed):
		m.cleaned(d, false, "")
	case d.Back:
		m.finish(d, ResultRolledBack, d.Message)
	default:
		m.Activity.Failed = true
		m.finish(d, ResultFailed, cmp.Or(why, "it ended as incomplete"))
		m.takeBack(d)
	}
}

// cleaned ends a domain.
func (m *Machine) cleaned(d *Domain, fail bool, why string) {
	if fail {
		m.logf(slog.LevelWarn, "%s could not clean up: %s", d.ID, why)
	}
	result := d.Result
	switch {
	case result != "":
	case d.Back:
		result = ResultUnknown
	case d.State == failed:
		result = ResultFailed
	default:
		result = ResultUpdated
	}
	m.finish(d, result, d.Message)
}

func (m *Machine) finish(d *Domain, result, message string) {
	d.State, d.Order, d.Result, d.Message = done, "", result, message
	d.deadline, d.resend = time.Time{}, time.Time{}
	if result == ResultFailed || result == ResultUnknown {
		m.Activity.Failed = true
	}
	m.dirty = true
}

// fail takes down that an agent could not do what it was told. It cleans up at
// once; those that belong to it go back.
func (m *Machine) fail(d *Domain, why string) {
	m.Activity.Failed = true
	d.State, d.Message = failed, why
	m.order(d, updateproto.CommandCleanup)
	m.takeBack(d)
}

// takeBack sends the domains back that belong to one that has failed.
func (m *Machine) takeBack(cause *Domain) {
	for _, d := range m.Activity.Domains {
		if d != cause && d.State != done && d.State != failed && m.together(cause.ID, d.ID) {
			m.back(d)
		}
	}
}

// back makes a domain return to its old state as soon as its agent can take
// the order.
func (m *Machine) back(d *Domain) {
	if d.State == done || d.State == failed || d.State == rolledBack || d.State == notRolledBack {
		return
	}
	m.Activity.Failed = true
	if !d.Back {
		d.Back, m.dirty = true, true
	}
	switch d.Order {
	case updateproto.CommandRollback:
	case "":
		m.order(d, updateproto.CommandRollback)
	default:
		// One of the original kind takes ROLLBACK only between two steps.
		if m.Resumes[d.ID] || d.Silent || d.Order == orderVerify || d.Order == updateproto.CommandCleanup {
			m.order(d, updateproto.CommandRollback)
		}
	}
}

func (m *Machine) backAll() {
	for _, d := range m.Activity.Domains {
		m.back(d)
	}
}

// seen takes what an agent's current state says about it.
func (m *Machine) seen(ev Seen) {
	if _, known := m.c.Agents[ev.Domain]; !known {
		return
	}
	if m.Resumes[ev.Domain] != ev.Resumes {
		m.Resumes[ev.Domain], m.dirty = ev.Resumes, true
	}
	a := m.Activity
	if a == nil || !ev.Fresh {
		return
	}
	for _, d := range a.Domains {
		if d.ID == ev.Domain && d.Order == orderVerify && !d.fresh {
			d.fresh = true
			m.send(d)
		}
	}
}

// answered takes the owner's answer. It counts only while one is awaited.
func (m *Machine) answered(ev Answered) {
	a := m.Activity
	if a == nil || a.ID != ev.ID || a.Consent == "" || ev.Duplicate && ev.Fingerprint == a.Answer {
		m.logf(slog.LevelWarn, "nobody has asked for the owner's consent that came for activity %q", ev.ID)
		return
	}
	command := a.Consent
	a.Consent, a.Answer, m.dirty = "", ev.Fingerprint, true
	if ev.Approved {
		a.Granted = command
		return
	}
	m.giveUp("the owner has refused " + command)
}

// giveUp takes every domain back.
func (m *Machine) giveUp(why string) {
	a := m.Activity
	a.Consent, a.Failed, m.dirty = "", true, true
	if a.Reason != "" {
		why = a.Reason + "; " + why
	}
	a.Reason = why
	m.backAll()
}

func (m *Machine) ask() {
	m.consentBy = m.now.Add(m.c.ConsentTimeout)
	m.do(Ask{m.Activity.ID, m.Activity.Consent, m.now})
}

// Cancellable returns why an activity cannot be cancelled; an empty id is the
// one there is.
func (m *Machine) Cancellable(id string) error {
	a := m.Activity
	switch {
	case m.Next != nil && m.Next.ID == id:
		return nil
	case m.Reboot != nil && (id == "" || id == m.Reboot.ID) && (a == nil || a.Status != ""):
		return nil
	case a == nil || a.Status != "":
		if e, ended := m.ended(id); ended && id != "" {
			return fmt.Errorf("activity %q has ended already: %s", id, e.Status)
		}
		return fmt.Errorf("no activity is under way")
	case id != "" && id != a.ID:
		return fmt.Errorf("activity %q is not under way, %q is", id, a.ID)
	case a.Phase == Cleanup || a.Phase == Ending:
		return fmt.Errorf("activity %q is ending (%s), it is too late to cancel it", a.ID, a.Phase)
	case a.Phase == Restart && !m.downBy.IsZero():
		return fmt.Errorf("the vehicle is rebooting for activity %q, it is too late to cancel it", a.ID)
	}
	return nil
}

func (m *Machine) cancelled(ev Cancelled) {
	if err := m.Cancellable(ev.ID); err != nil {
		m.logf(slog.LevelWarn, "cannot cancel: %v", err)
		return
	}
	why := "cancelled"
	if ev.By != "" {
		why += " by " + clip(ev.By)
	}
	a := m.Activity
	switch {
	case m.Next != nil && m.Next.ID == ev.ID:
		m.end(Entry{ID: ev.ID, Started: m.now.UnixMilli(), Status: updateproto.StatusIncomplete, Message: why}, nil)
		m.Next = nil
	case a == nil || a.Status != "":
		m.logf(slog.LevelWarn, "the reboot after activity %q is %s", m.Reboot.ID, why)
		m.Reboot, m.dirty = nil, true
		m.gateAt, m.downBy = time.Time{}, time.Time{}
	default:
		m.giveUp(why)
	}
}

// advance does what follows from the state, again and again until nothing
// does.
func (m *Machine) advance() {
	for m.step() {
	}
}

func (m *Machine) step() bool {
	a := m.Activity
	if a == nil {
		if m.Next == nil {
			return false
		}
		r := *m.Next
		m.Next, m.dirty = nil, true
		m.do(Log{slog.LevelInfo, fmt.Sprintf("beginning activity %q", r.ID)})
		m.begin(r)
		return true
	}
	if a.Status == "" && a.Consent == "" && m.phase() {
		return true
	}
	m.release()
	return m.conclude()
}

// phase goes on to the next phase when all that takes part in this one has
// ended, and reports whether it did.
func (m *Machine) phase() bool {
	a := m.Activity
	next := func(p Phase) bool {
		a.Phase, m.dirty = p, true
		return true
	}
	forward := func(yes func(*Domain) bool) bool {
		return slices.ContainsFunc(a.Domains, func(d *Domain) bool { return !d.Back && d.State != done && d.State != failed && yes(d) })
	}
	any := func(*Domain) bool { return true }
	busy := func(d *Domain) bool { return d.Order != "" }

	switch a.Phase {
	case Identification:
		if slices.ContainsFunc(a.Domains, func(d *Domain) bool { return d.Order == orderDesired }) {
			return false
		}
		if a.Unidentified {
			m.backAll()
			return next(Ending)
		}
		m.say(Normal, updateproto.StatusIdentified, "")
		if !forward(any) {
			return next(Ending)
		}
		m.running()
		return next(Download)
	case Download, Update, Activate:
		steps := steps()
		i := slices.IndexFunc(steps[:], func(s step) bool { return s.phase == a.Phase })
		s := steps[i]
		if !forward(any) {
			return next(Ending)
		}
		ready := func(d *Domain) bool { return d.State == s.from && d.Order == "" }
		if forward(ready) && slices.Contains(m.c.Consent, s.command) && a.Granted != s.command {
			a.Consent, m.dirty = s.command, true
			m.ask()
			return false
		}
		for _, d := range a.Domains {
			if !d.Back && ready(d) {
				m.order(d, s.command)
			}
		}
		if forward(busy) {
			return false
		}
		m.running()
		switch {
		case i+1 < len(steps):
			return next(steps[i+1].phase)
		case m.rebootsFirst():
			a.Boot = m.boot
			m.waitForReboot()
			return next(Restart)
		}
		return next(Cleanup)
	case Restart:
		if !slices.ContainsFunc(a.Domains, m.needsReboot) {
			return next(Cleanup)
		}
		return false
	case Verify:
		if forward(busy) {
			return false
		}
		return next(Cleanup)
	case Cleanup:
		for _, d := range a.Domains {
			if !d.Back && d.State == activated && d.Order == "" {
				m.order(d, updateproto.CommandCleanup)
			}
		}
		if forward(any) {
			return false
		}
		return next(Ending)
	}
	return false
}

// rebootsFirst reports whether the reboot is part of the transaction: agents
// that go on after it can say what has become of it.
func (m *Machine) rebootsFirst() bool {
	if !m.c.RebootEnabled || !slices.ContainsFunc(m.Activity.Domains, m.needsReboot) {
		return false
	}
	return !slices.ContainsFunc(m.Activity.Domains, func(d *Domain) bool { return len(d.Actions) > 0 && !m.Resumes[d.ID] })
}

// release sends CLEANUP to what has been rolled back, all together.
func (m *Machine) release() {
	domains := m.Activity.Domains
	if slices.ContainsFunc(domains, func(d *Domain) bool { return d.Back && d.Order != "" && d.Order != updateproto.CommandCleanup }) {
		for _, d := range domains {
			if d.State == notRolledBack && d.Order == "" {
				m.order(d, updateproto.CommandCleanup)
			}
		}
		return
	}
	for _, d := range domains {
		if d.Back && d.Order == "" && d.State != done {
			m.order(d, updateproto.CommandCleanup)
		}
	}
}

// conclude says how the activity has ended once that is certain, and forgets it
// once all agents are free.
func (m *Machine) conclude() bool {
	a := m.Activity
	certain := func(d *Domain) bool { return d.State == done || d.Back && !d.Touched || d.Back && d.unchanged() }
	if a.Status == "" {
		if slices.ContainsFunc(a.Domains, func(d *Domain) bool { return !certain(d) }) {
			return false
		}
		if a.Phase == Identification && !a.Failed {
			return false
		}
		m.terminal()
	}
	if slices.ContainsFunc(a.Domains, func(d *Domain) bool { return d.State != done }) {
		return false
	}
	m.Activity, m.dirty = nil, true
	return m.Next != nil
}

// unchanged reports whether nothing but ROLLBACK and CLEANUP was sent to a
// domain that has to go back.
func (d *Domain) unchanged() bool {
	if d.State != identifying && d.State != identified {
		return false
	}
	return d.Order == updateproto.CommandRollback && d.State == identifying
}

// terminal says how the activity has ended.
func (m *Machine) terminal() {
	a := m.Activity
	for _, d := range a.Domains {
		if d.Result == "" {
			d.Result = ResultUnchanged
		}
	}
	message := a.summary()
	switch {
	case a.Unidentified:
		a.Status = updateproto.StatusIdentificationFailed
	case a.Failed:
		a.Status = updateproto.StatusIncomplete
	default:
		a.Status, message = updateproto.StatusCompleted, ""
		if m.leavesReboot() {
			message = unverified
			if m.c.RebootEnabled {
				m.Reboot = &PendingReboot{ID: a.ID, Boot: m.boot}
				m.waitForReboot()
			}
		}
	}
	a.Phase = Ending
	e := Entry{ID: a.ID, Started: a.Started, Status: a.Status, Message: message}
	for _, d := range a.Domains {
		e.Domains = append(e.Domains, EntryDomain{d.ID, d.Result, d.Message})
	}
	m.end(e, a.actions())
	m.do(Refresh{a.ID})
}

// leavesReboot reports whether what was activated is not in effect yet.
func (m *Machine) leavesReboot() bool {
	return slices.ContainsFunc(m.Activity.Domains, func(d *Domain) bool {
		return m.agent(d).RebootRequired && len(d.Actions) > 0 && d.Result == ResultUpdated && !d.Verified
	})
}

// end takes down an activity that has ended and says so.
func (m *Machine) end(e Entry, actions []updateproto.Action) {
	e.Ended = m.now.UnixMilli()
	o := Outgoing{e.ID, e.Ended, updateproto.Feedback{Status: e.Status, Message: e.Message, Actions: actions}}
	m.Unsent = append(m.Unsent, o)
	if len(m.Unsent) > maxUnsent {
		m.Unsent = m.Unsent[1:]
	}
	m.History = append(m.History, e)
	if len(m.History) > maxHistory {
		m.History = m.History[len(m.History)-maxHistory:]
	}
	m.dirty = true
	m.do(Say{o.ID, time.UnixMilli(o.At), o.Feedback, Final})
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
	}
	return strings.Join(parts, "; ")
}

// waitForReboot begins the delay before a reboot.
func (m *Machine) waitForReboot() {
	m.gateAt = m.now.Add(m.c.RebootAfter)
	m.gateBy = m.gateAt.Add(m.c.GateTimeout)
	m.gateAsked, m.downBy, m.unsafe = false, time.Time{}, ""
}

// rebooting reports whether a reboot is waited for, and after which activity.
func (m *Machine) rebooting() (id string, yes bool) {
	switch {
	case m.Reboot != nil:
		return m.Reboot.ID, true
	case m.Activity != nil && m.Activity.Phase == Restart:
		return m.Activity.ID, true
	}
	return "", false
}

// free reports whether no agent has anything to do that a reboot would
// interrupt.
func (m *Machine) free() bool {
	return m.Activity == nil || !slices.ContainsFunc(m.Activity.Domains, func(d *Domain) bool { return d.Order != "" })
}

func (m *Machine) gateSaid(ev GateSaid) {
	id, yes := m.rebooting()
	if !yes || !m.gateAsked {
		return
	}
	m.gateAsked = false
	switch {
	case !ev.Safe:
		m.gateAt = m.now.Add(gatePause)
		why := clip(ev.Reason)
		if why == m.unsafe {
			return
		}
		m.unsafe = why
		m.logf(slog.LevelInfo, "the reboot for activity %q has to wait: %s", id, why)
		if m.Reboot == nil {
			m.say(Normal, updateproto.StatusRunning, "the reboot has to wait: "+why)
		}
	case !m.free():
		m.gateAt = m.now.Add(gatePause)
	default:
		m.downBy = m.now.Add(rebootPatience)
		m.gateAt = time.Time{}
		if m.Reboot != nil {
			m.Reboot.Attempts++
		} else {
			m.Activity.Attempts++
		}
		m.dirty = true
		m.logf(slog.LevelInfo, "rebooting for activity %q", id)
		m.do(Reboot{id})
	}
}

func (m *Machine) rebootFailed(why string) {
	id, yes := m.rebooting()
	if !yes || m.downBy.IsZero() {
		return
	}
	m.downBy = time.Time{}
	m.logf(slog.LevelError, "the reboot for activity %q has failed: %s", id, why)
	switch {
	case m.Reboot != nil && m.Reboot.Attempts >= rebootAttempts:
		m.Reboot, m.dirty = nil, true
	case m.Reboot == nil && m.Activity.Attempts >= rebootAttempts:
		m.noReboot("the vehicle cannot be rebooted: " + clip(why))
	default:
		m.gateAt = m.now.Add(rebootPause)
	}
}

// noReboot ends an activity whose reboot cannot take place.
func (m *Machine) noReboot(why string) {
	m.gateAt, m.gateAsked, m.downBy = time.Time{}, false, time.Time{}
	m.giveUp(why)
}

// Deadline is when Handle wants a Tick; zero when it does not.
func (m *Machine) Deadline() time.Time {
	var first time.Time
	add := func(t time.Time) {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	if _, yes := m.rebooting(); yes {
		add(m.downBy)
		if !m.gateAsked {
			add(m.gateAt)
		}
		if m.downBy.IsZero() {
			add(m.gateBy)
		}
	}
	a := m.Activity
	if a == nil || !m.connected {
		return first
	}
	if a.Consent != "" {
		add(m.consentBy)
	}
	for _, d := range a.Domains {
		if d.Order != "" {
			add(d.deadline)
			add(d.resend)
		}
	}
	return first
}

func (m *Machine) due(t time.Time) bool { return !t.IsZero() && !m.now.Before(t) }

func (m *Machine) tick() {
	if id, yes := m.rebooting(); yes {
		m.tickReboot(id)
	}
	a := m.Activity
	if a == nil || !m.connected {
		return
	}
	if a.Consent != "" && m.due(m.consentBy) {
		m.giveUp(fmt.Sprintf("the owner has not answered within %s whether to %s", m.c.ConsentTimeout, a.Consent))
	}
	for _, d := range a.Domains {
		switch {
		case d.Order == "":
		case m.due(d.deadline):
			m.timeout(d)
		case m.due(d.resend):
			switch {
			case d.Order == orderVerify && !d.fresh:
				d.resend = m.now.Add(m.agent(d).ReadTimeout)
				m.do(Refresh{a.ID})
			case d.Order == orderVerify:
				m.send(d)
			default:
				d.Resent, m.dirty = true, true
				m.send(d)
			}
		}
	}
}

func (m *Machine) tickReboot(id string) {
	switch {
	case m.due(m.downBy):
		m.rebootFailed(fmt.Sprintf("it has not taken place within %s", rebootPatience))
	case !m.downBy.IsZero():
	case m.due(m.gateBy):
		why := fmt.Sprintf("it was not safe to reboot within %s: %s", m.c.GateTimeout, cmp.Or(m.unsafe, "no answer"))
		if m.Reboot == nil {
			m.noReboot(why)
			return
		}
		m.logf(slog.LevelError, "the reboot after activity %q is given up: %s", id, why)
		m.Reboot, m.dirty = nil, true
	case !m.gateAsked && m.due(m.gateAt):
		m.gateAsked = true
		m.do(CheckGate{id})
	}
}

// timeout ends the wait for an agent.
func (m *Machine) timeout(d *Domain) {
	a := m.Activity
	waited := m.c.PhaseTimeout
	if d.Order == orderVerify {
		waited = m.c.VerifyTimeout
	}
	silent := fmt.Sprintf("no answer to %s within %s", d.Order, waited)
	m.logf(slog.LevelWarn, "%s: %s", d.ID, silent)
	d.Silent, m.dirty = true, true
	switch order := d.Order; {
	case order == updateproto.CommandCleanup:
		switch {
		case d.Result != "":
			m.finish(d, d.Result, d.Message)
		case d.Back || d.State == failed:
			m.finish(d, ResultUnknown, cmp.Or(d.Message, silent))
		default:
			m.finish(d, ResultUnknown, "activated, but "+silent)
		}
	case order == updateproto.CommandRollback:
		d.State, d.Order = notRolledBack, ""
		d.Result = ResultUnknown
		d.Message = cmp.Or(d.Message, "it did not confirm the rollback")
	default:
		a.Failed = true
		d.Message = cmp.Or(d.Message, silent)
		if order == orderDesired {
			a.Unidentified = true
		} else if order == orderVerify {
			d.Message = "after the reboot it did not say what runs within " + waited.String()
		}
		m.back(d)
		if order != orderDesired {
			m.takeBack(d)
		}
	}
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
