// SPDX-License-Identifier: Apache-2.0

package orchestrator

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"sdvbox/platform/updateproto"
)

const (
	gatePause      = 5 * time.Second  // between two looks whether a reboot is safe
	gateLeast      = 1 * time.Minute  // for the gate to answer, however short its timeout
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
	s.Version = stateVersion
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

// running reports progress. Nothing follows the terminal feedback.
func (m *Machine) running() {
	if m.Activity.Status == "" {
		m.say(Running, updateproto.StatusRunning, "")
	}
}

// started takes up what a former process or boot has left.
func (m *Machine) started(ev Started) {
	m.boot = ev.Boot
	if r := m.Reboot; r != nil && r.Boot != m.boot {
		m.logf(slog.LevelInfo, "the reboot after activity %q has taken place", r.ID)
		m.Reboot, m.dirty = nil, true
	}
	switch {
	case m.Reboot == nil:
	case m.c.RebootEnabled:
		m.waitForReboot()
	default:
		m.drop("the configuration does not allow it any more")
	}
	a := m.Activity
	if a == nil {
		return
	}
	if m.foreign {
		m.adopt()
		return
	}
	m.logf(slog.LevelInfo, "going on with activity %q, phase %s", a.ID, a.Phase)
	for _, d := range a.Domains {
		if _, known := m.c.Agents[d.ID]; !known && d.State != done {
			m.finish(d, ResultUnknown, "its agent is no longer configured")
			m.takeBack(d)
		}
	}
	switch {
	case a.Phase != Restart:
	case a.Boot == m.boot:
		m.waitForReboot()
	default:
		a.Phase, m.dirty = Verify, true
		for _, d := range a.Domains {
			if m.needsReboot(d) {
				d.Order, d.Booted = orderVerify, true
			}
		}
	}
}

// adopt ends what another version of the update manager has begun: nobody knows
// here what it meant to do next, but every agent understands ROLLBACK.
func (m *Machine) adopt() {
	a := m.Activity
	m.logf(slog.LevelError, "activity %q was begun by another version of the update manager and is given up", a.ID)
	m.foreign = false
	a.Phase = Ending
	for _, d := range a.Domains {
		if _, known := m.c.Agents[d.ID]; !known || d.State == done {
			m.finish(d, cmp.Or(d.Result, ResultUnknown), d.Message)
			continue
		}
		d.State, d.Order, d.Touched = updated, "", true
	}
	m.giveUp("it was begun by another version of the update manager")
}

// connect says again what is not known to have arrived. Before, no deadline
// ran.
func (m *Machine) connect() {
	m.connected = true
	for _, o := range m.Unsent {
		m.do(o.say())
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
		patience := m.readTimeout(d)
		back := d.Back && d.Order != updateproto.CommandRollback && d.Order != updateproto.CommandCleanup
		switch {
		case back && m.Resumes[d.ID]:
			m.back(d)
		case back:
			// It must not begin what it has to take back. It ends that step, or gets
			// ROLLBACK when it is silent.
			d.resend, d.deadline = time.Time{}, m.now.Add(patience)
		case d.Order == orderVerify:
			d.resend = m.now.Add(patience)
			m.do(Refresh{a.ID})
		case m.Resumes[d.ID]:
			m.send(d)
		default:
			// It may take a second order for an error, and the first one for done.
			d.resend = m.now.Add(patience)
			if t := d.resend.Add(patience); d.deadline.Before(t) {
				d.deadline = t
			}
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
	case a != nil && a.Status == "" && a.ID == ev.ID && (ev.ID != "" || ev.Duplicate):
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
		m.identifying(ev.ID)
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
	m.finally(Outgoing{ID: id, At: m.now.UnixMilli(), Rejected: true,
		Feedback: updateproto.Feedback{Status: updateproto.StatusIdentificationFailed, Message: clip(why)}})
}

// finally says the last word about an activity, and again until the broker has
// it.
func (m *Machine) finally(o Outgoing) {
	m.Unsent = append(m.Unsent, o)
	if len(m.Unsent) > maxUnsent {
		i := max(0, slices.IndexFunc(m.Unsent, func(o Outgoing) bool { return o.Rejected }))
		m.Unsent = slices.Delete(m.Unsent, i, i+1)
	}
	m.dirty = true
	m.do(o.say())
}

func (o Outgoing) say() Say {
	kind := Final
	if o.Rejected {
		kind = Refusal
	}
	return Say{o.ID, time.UnixMilli(o.At), o.Feedback, kind}
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
	a := &Activity{ID: r.ID, Request: r.State, Started: m.now.UnixMilli(), Phase: Identification, Policy: m.c.FailurePolicy}
	m.Activity, m.dirty = a, true
	var unknown []string
	for _, dom := range r.State.Domains {
		if agent, known := m.c.Agents[dom.ID]; known {
			a.Domains = append(a.Domains, &Domain{ID: dom.ID, State: identifying, Reboots: agent.RebootRequired})
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
	case len(unknown) > 0 && a.Policy == All:
		a.Unidentified = true
	default:
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
	if m.Activity.Policy == All || x == y {
		return true
	}
	members := make(map[string][]string) // domains by the title of the baseline
	for i, b := range m.Activity.Request.Baselines {
		title := cmp.Or(b.Title, fmt.Sprintf("\x00%d", i))
		for _, c := range b.Components {
			domain, _, _ := strings.Cut(c, ":")
			members[title] = append(members[title], domain)
		}
	}
	group := map[string]bool{x: true}
	for grown := true; grown; {
		grown = false
		for _, domains := range members {
			in := slices.ContainsFunc(domains, func(d string) bool { return group[d] })
			for _, d := range domains {
				if in && !group[d] {
					group[d], grown = true, true
				}
			}
		}
	}
	return group[y]
}

func (m *Machine) backAll() {
	for _, d := range m.Activity.Domains {
		m.back(d)
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
		if !m.downBy.IsZero() {
			return fmt.Errorf("the vehicle is rebooting after activity %q, it is too late to cancel that", m.Reboot.ID)
		}
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
		m.drop(why)
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
	if a.Consent != "" && !slices.ContainsFunc(a.Domains, (*Domain).forward) {
		a.Consent, m.dirty = "", true // nobody needs it any more
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
		return slices.ContainsFunc(a.Domains, func(d *Domain) bool { return d.forward() && yes(d) })
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
		if a.Failed && !forward(any) && slices.ContainsFunc(a.Domains, func(d *Domain) bool { return d.Back }) {
			return next(Ending) // it was taken back before it was identified
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
			if d.forward() && ready(d) {
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
		if !m.c.RebootEnabled || !slices.ContainsFunc(a.Domains, m.needsReboot) {
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
			if d.forward() && d.State == activated && d.Order == "" {
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
	certain := func(d *Domain) bool { return d.State == done || d.Back && !d.Touched }
	if a.Status == "" {
		if slices.ContainsFunc(a.Domains, func(d *Domain) bool { return !certain(d) }) {
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
		if slices.ContainsFunc(a.Domains, (*Domain).unverified) {
			message = unverified
			m.reboot()
		}
	}
	if slices.ContainsFunc(a.Domains, (*Domain).halfBack) {
		m.reboot()
	}
	a.Phase = Ending
	e := Entry{ID: a.ID, Started: a.Started, Status: a.Status, Message: message}
	for _, d := range a.Domains {
		message := d.Message
		if note := d.note(); note != "" {
			message = strings.TrimPrefix(message+"; "+note, "; ")
		}
		e.Domains = append(e.Domains, EntryDomain{d.ID, d.Result, message})
	}
	m.end(e, a.actions())
	m.do(Refresh{a.ID})
}

// end takes down an activity that has ended and says so.
func (m *Machine) end(e Entry, actions []updateproto.Action) {
	e.Ended = m.now.UnixMilli()
	m.History = append(m.History, e)
	if len(m.History) > maxHistory {
		m.History = m.History[len(m.History)-maxHistory:]
	}
	m.finally(Outgoing{ID: e.ID, At: e.Ended, Feedback: updateproto.Feedback{Status: e.Status, Message: e.Message, Actions: actions}})
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
				d.resend = m.now.Add(m.readTimeout(d))
				m.do(Refresh{a.ID})
			case d.Order == orderVerify:
				m.send(d)
			default:
				d.Resent, d.working, m.dirty = true, false, true
				m.send(d)
			}
		}
	}
}
