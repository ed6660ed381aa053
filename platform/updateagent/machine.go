// SPDX-License-Identifier: Apache-2.0

package updateagent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"sdvbox/platform/updateproto"
)

// effect is one thing the shell has to do, after the State is saved.
type effect struct {
	publish   *outgoing // feedback to send
	progress  bool      // the feedback may be dropped while there is no broker
	last      bool      // the feedback is in Unsent: say so when the broker has it
	start     Phase     // work to begin, after what runs has been cancelled
	inventory *string   // publish the inventory under this id
	warn      string    // line for the log
}

// machine is the protocol's rules. Each method takes one event; effects
// gathers what follows from it and dirty whether State has to be saved first.
type machine struct {
	State
	kanto       bool   // see Config
	capacity    int    // of the journal
	lastID      string // of any message; inventories carry it
	identifying string // message of IDENTIFYING
	verifying   bool   // the outcome of a reboot is being found out
	effects     []effect
	dirty       bool
}

// take returns and clears what the last event brought about.
func (m *machine) take() (effects []effect, dirty bool) {
	effects, dirty = m.effects, m.dirty
	m.effects, m.dirty = nil, false
	return effects, dirty
}

// encode returns the record for the journal. What no single bound keeps small
// enough loses what can be done without.
func (m *machine) encode() ([]byte, error) {
	rec, err := json.Marshal(m.State)
	if err == nil && len(rec) > m.capacity {
		m.shrink()
		rec, err = json.Marshal(m.State)
	}
	if err != nil {
		return nil, fmt.Errorf("encode journal: %w", err)
	}
	return rec, nil
}

func (m *machine) publish(id string, f updateproto.Feedback) {
	m.effects = append(m.effects, effect{publish: &outgoing{id, f}})
}

func (m *machine) warnf(format string, args ...any) {
	m.effects = append(m.effects, effect{warn: fmt.Sprintf(format, args...)})
}

func (m *machine) start(p Phase) {
	m.Activity.Phase = p
	m.dirty = true
	m.effects = append(m.effects, effect{start: p})
}

// resume begins again what a restart interrupted.
func (m *machine) resume() {
	a := m.Activity
	switch {
	case a == nil:
	case a.Phase.working():
		m.start(a.Phase)
	case a.Phase == Activated:
		m.verifying = true
		m.effects = append(m.effects, effect{start: Activated})
	default:
		m.runQueue(a.Queue)
	}
}

// connected tells the other side where things stand: it may have missed
// anything since the last connection.
func (m *machine) connected() {
	m.effects = append(m.effects, effect{inventory: &m.lastID})
	for _, o := range m.Unsent {
		m.effects = append(m.effects, effect{publish: &o, last: true})
	}
	m.repeat()
}

// changed publishes the inventory. Those of Kanto have an id only when they
// answer a request: an update manager does not pass on the others.
func (m *machine) changed() {
	id := m.lastID
	if m.kanto {
		id = ""
	}
	m.effects = append(m.effects, effect{inventory: &id})
}

// repeat says again where the activity stands. What was said before a reboot
// is not repeated until it is known to be true after it.
func (m *machine) repeat() {
	a := m.Activity
	switch {
	case a == nil:
	case m.verifying:
		f := a.Last
		f.Status, f.Message = updateproto.StatusActivating, "Finding out what became of the activation."
		m.publish(a.ID, f)
	default:
		m.publish(a.ID, a.Last)
	}
}

// sent takes note that the broker has the oldest unsent message.
func (m *machine) sent(o outgoing) {
	i := slices.IndexFunc(m.Unsent, func(u outgoing) bool { return u.ID == o.ID && u.Feedback.Status == o.Feedback.Status })
	if i >= 0 {
		m.Unsent = slices.Delete(m.Unsent, i, i+1)
		m.dirty = true
	}
}

// inventoryWanted answers a request for the inventory, in every phase.
func (m *machine) inventoryWanted(id string) {
	m.lastID = id
	m.effects = append(m.effects, effect{inventory: &id})
}

// request takes a desired state. One that is delivered again after its activity
// has ended does not begin it again.
func (m *machine) request(id string, payload json.RawMessage, duplicate bool) {
	a := m.Activity
	m.lastID = id
	e, old := m.endedWith(id)
	switch {
	case a == nil && old && duplicate:
		m.publish(id, feedback(e.Status, "The activity has ended already."))
	case a == nil:
		m.forget(id)
		m.Activity = &Activity{ID: id, Origin: id, Request: payload, Last: m.identifyingFeedback()}
		m.publish(id, m.Activity.Last)
		m.start(Identifying)
	case a.Next != nil && a.Next.ID == id:
		// It is about to begin.
	case !a.knows(id) && m.kanto && a.mayEnd():
		m.supersede(id, payload)
	case !a.knows(id):
		m.refuseRequest(id, fmt.Sprintf("activity %q is under way (%s); it has to end first, for instance with ROLLBACK", a.ID, a.Phase.waitsFor()))
	default:
		if !sameJSON(a.Request, payload) {
			m.warnf("desired state with the id %q of the activity under way but with other content is ignored", id)
		}
		m.repeat()
	}
}

// mayEnd reports whether an activity can give way to another one: nothing of it
// is in use, or it ends already.
func (a *Activity) mayEnd() bool {
	ends := (a.Phase == RollingBack || a.Phase == Cleaning) && len(a.at(a.Phase)) == len(a.open(""))
	return a.Next == nil && (ends || a.Phase.expires())
}

// supersede gives up an activity for another one.
func (m *machine) supersede(id string, payload json.RawMessage) {
	a := m.Activity
	a.Next, a.Queue, m.dirty = &next{ID: id, Request: payload}, nil, true
	if a.Phase.expires() {
		m.warnf("activity %q is given up for %q", a.ID, id)
		m.abandon()
	}
}

// abandon cleans up although nobody has said so.
func (m *machine) abandon() {
	a := m.Activity
	a.Scope, a.Success, a.Yields = "", false, a.Next != nil
	m.start(Cleaning)
}

// reject answers a message that cannot be understood: a desired state, or else a
// command. In Kanto's words there is no answer to the latter that would not end
// an activity, maybe a second time.
func (m *machine) reject(id, why string, request bool) {
	if m.kanto && !request {
		m.warnf("message for activity %q is dropped: %s", id, why)
		return
	}
	if a := m.Activity; a != nil && a.knows(id) {
		// A failure of identification would end an update that goes on.
		f := a.Last
		f.Message = clipText(why)
		m.publish(a.ID, f)
		return
	}
	if request {
		m.refuseRequest(id, why)
	} else {
		m.identificationFailed(id, why)
	}
}

func (m *machine) identificationFailed(id, why string) {
	if !m.kanto {
		m.publish(id, m.identifyingFeedback())
	}
	m.publish(id, feedback(updateproto.StatusIdentificationFailed, clipText(why)))
}

// refuseRequest also takes the id down: commands under it must not be taken
// for those of the activity under way.
func (m *machine) refuseRequest(id, why string) {
	m.identificationFailed(id, why)
	if e, old := m.endedWith(id); !old || e.Status != updateproto.StatusIdentificationFailed {
		m.remember(ended{ID: id, Status: updateproto.StatusIdentificationFailed})
		m.dirty = true
	}
}

func (m *machine) identifyingFeedback() updateproto.Feedback {
	return feedback(updateproto.StatusIdentifying, m.identifying)
}

func feedback(status, message string) updateproto.Feedback {
	return updateproto.Feedback{Status: status, Message: message, Actions: []updateproto.Action{}}
}

// command takes one step of an update.
func (m *machine) command(q queued) {
	a := m.Activity
	m.lastID = q.ID
	if a == nil {
		m.idle(q)
		return
	}
	if a.Next != nil && a.Next.ID == q.ID {
		m.enqueueIn(&a.Next.Queue, q)
		return
	}
	if !a.knows(q.ID) && !m.mayAdopt(q) {
		if _, old := m.endedWith(q.ID); old {
			m.idle(q)
		} else {
			m.refuse(q, fmt.Sprintf("activity %q is under way (%s)", a.ID, a.Phase.waitsFor()))
		}
		return
	}
	isPart := func(p part) bool { return p.Title == q.Baseline }
	switch {
	case len(a.Parts) > 0 && !everything(q.Baseline) && !slices.ContainsFunc(a.Parts, isPart):
		m.refuse(q, fmt.Sprintf("there is no baseline %q", q.Baseline))
	case a.elsewhere(q.Baseline, m.verifying) && (q.Command != updateproto.CommandRollback || !everything(q.Baseline)):
		m.enqueue(q)
	case q.Command == updateproto.CommandRollback:
		m.rollback(q)
	case q.Command == updateproto.CommandCleanup:
		m.cleanup(q)
	default:
		m.forward(q)
	}
}

// elsewhere reports whether a command has to wait because work runs for
// another baseline, or may turn out to be about it.
func (a *Activity) elsewhere(baseline string, verifying bool) bool {
	return a.Phase.working() && !same(a.Scope, baseline) || verifying && len(a.Parts) > 0
}

// mayAdopt decides whether a command with a foreign id belongs to the one
// activity there is: the documentation's own example starts an update under
// one id and commands it under another. The id of a finished activity is
// taken only if it was such an id there too, and only to begin.
func (m *machine) mayAdopt(q queued) bool {
	a := m.Activity
	if m.kanto {
		return false
	}
	if e, old := m.endedWith(q.ID); old {
		return slices.Contains(e.Adopted, q.ID) && q.Command == updateproto.CommandDownload && m.fits(q)
	}
	return q.Command == updateproto.CommandRollback && a.Phase != RollingBack && a.Phase != Cleaning || !a.Phase.working() || m.fits(q)
}

// adopt makes id the one that the activity goes by.
func (m *machine) adopt(id string) {
	a := m.Activity
	if a.ID == id {
		return
	}
	if !a.knows(id) {
		m.warnf("activity %q goes on under the id %q of a command", a.ID, id)
		if len(a.Adopted) >= maxAdopted {
			a.Adopted = a.Adopted[1:]
		}
		a.Adopted = append(a.Adopted, id)
	}
	a.ID = id
	m.dirty = true
}

// fits reports whether the command is the next one, once all that runs and
// all that is queued has succeeded.
func (m *machine) fits(q queued) bool {
	p := m.Activity.Phase.afterSuccess()
	for _, before := range m.Activity.Queue {
		if !same(before.Baseline, q.Baseline) {
			continue
		}
		if s, ok := stepOf(before.Command); ok {
			p = s.done
		} else {
			return false // nothing comes after CLEANUP
		}
	}
	if q.Command == updateproto.CommandCleanup {
		return p == Activated
	}
	s, ok := stepOf(q.Command)
	return ok && s.from == p
}

func (m *machine) enqueue(q queued) { m.enqueueIn(&m.Activity.Queue, q) }

func (m *machine) enqueueIn(queue *[]queued, q queued) {
	most := maxQueue
	if m.kanto {
		most = maxPartQueue
	}
	switch {
	case slices.Contains(*queue, q):
	case len(*queue) < most:
		*queue = append(*queue, q)
		m.dirty = true
	case m.kanto:
		m.refuse(q, "too many commands wait already")
	}
}

// forward handles DOWNLOAD, UPDATE and ACTIVATE.
func (m *machine) forward(q queued) {
	a := m.Activity
	s, _ := stepOf(q.Command)
	p := a.phaseOf(q.Baseline, s.from)
	switch {
	case p == s.from:
		m.adopt(q.ID)
		a.Scope = q.Baseline
		m.start(s.work)
	case m.kanto && (p == Failed || p == RolledBack || p == over) && a.said(q.Baseline) != s.failure:
		m.refuse(q, fmt.Sprintf("%s is not allowed now: it is %s", q.Command, p))
	case p == s.work || p.passed(s.work):
		m.adopt(q.ID)
		m.repeatFor(q.Baseline)
	case slices.Contains(a.Queue, q):
	case m.fits(q):
		m.enqueue(q)
	default:
		m.refuse(q, fmt.Sprintf("%s is not allowed now: the activity is %s and %s", q.Command, p, p.waitsFor()))
	}
}

// said is the last result for a baseline, of several the worst.
func (a *Activity) said(baseline string) string {
	if parts := a.open(baseline); len(parts) > 0 && !a.Phase.working() && !same(a.Scope, baseline) {
		hasFailed := func(p *part) bool { return p.Phase == Failed }
		return parts[max(0, slices.IndexFunc(parts, hasFailed))].Status
	}
	return a.Last.Status
}

// repeatFor says again where a baseline stands.
func (m *machine) repeatFor(baseline string) {
	if a := m.Activity; !m.verifying && !a.Phase.working() && !same(a.Scope, baseline) {
		m.publish(a.ID, updateproto.Feedback{Status: a.said(baseline), Baseline: baseline, Actions: a.Last.Actions})
		return
	}
	m.repeat()
}

func (m *machine) rollback(q queued) {
	a := m.Activity
	switch p := a.phaseOf(q.Baseline, ""); p {
	case RollingBack:
		m.publish(a.ID, a.Last)
	case RolledBack:
		m.repeatFor(q.Baseline)
	case Cleaning:
		m.refuse(q, "the activity is being cleaned up")
	case over:
		m.refuse(q, "the baseline has been cleaned up")
	default:
		m.adopt(q.ID)
		m.dropQueue(q.Baseline)
		a.Last = updateproto.Feedback{Status: updateproto.StatusRollback, Message: "Rolling back.", Actions: a.Last.Actions}
		a.Scope = q.Baseline
		m.verifying = false
		m.start(RollingBack)
		m.speak(&a.Last)
		m.publish(a.ID, a.Last)
	}
}

// dropQueue forgets the commands for a baseline that wait.
func (m *machine) dropQueue(baseline string) {
	a := m.Activity
	a.Queue = slices.DeleteFunc(a.Queue, func(q queued) bool { return covers(baseline, q.Baseline) })
}

func (m *machine) cleanup(q queued) {
	a := m.Activity
	switch {
	case a.Phase == Cleaning:
		// The answer is on its way.
	case a.Phase == RollingBack, m.verifying, a.Phase.working() && m.fits(q):
		m.enqueue(q)
	case len(a.Parts) > 0 && a.phaseOf(q.Baseline, "") == over:
		m.publish(a.ID, updateproto.Feedback{Status: updateproto.StatusCleanupSuccess, Baseline: q.Baseline, Actions: a.Last.Actions})
	default:
		// Before its turn CLEANUP abandons the update.
		m.adopt(q.ID)
		a.Success = a.Phase == Activated
		for _, p := range a.open(q.Baseline) {
			a.Success = a.Success && p.Phase == Activated
		}
		m.dropQueue(q.Baseline)
		a.Scope = q.Baseline
		m.start(Cleaning)
	}
}

// expire ends an activity that nobody goes on with: a manager that was
// restarted may have forgotten it, and no other could be served.
func (m *machine) expire() {
	a := m.Activity
	if a == nil || !a.Phase.expires() {
		return
	}
	m.warnf("activity %q has waited too long for a command and is given up", a.ID)
	m.abandon()
}

// idle answers a command for which no activity is open.
func (m *machine) idle(q queued) {
	e, old := m.endedWith(q.ID)
	switch {
	case q.Command == updateproto.CommandCleanup:
		m.lastWord(q.ID, feedback(updateproto.StatusCleanupSuccess, "There is nothing left to clean up."))
	case old && q.Command == updateproto.CommandRollback && e.Status == updateproto.StatusIncomplete:
		m.publish(q.ID, feedback(updateproto.StatusRollbackSuccess, "The activity has ended and nothing of it is in use."))
	case old:
		m.refuse(q, fmt.Sprintf("activity %q has ended with %s", q.ID, e.Status))
	default:
		m.refuse(q, "no activity is open: send a desired state first")
	}
}

// refuse answers a command with its failure status; the activity under way,
// if any, stays as it is.
func (m *machine) refuse(q queued, why string) {
	f := feedback(updateproto.StatusRollbackFailure, why)
	if s, ok := stepOf(q.Command); ok {
		f.Status = s.failure
	} else if q.Command == updateproto.CommandCleanup {
		f.Status = updateproto.StatusCleanup
	}
	if m.kanto {
		f.Baseline = q.Baseline
		if a := m.Activity; a != nil && a.knows(q.ID) {
			f.Actions = a.Last.Actions
		}
	}
	m.warnf("%s for activity %q is refused: %s", q.Command, q.ID, why)
	m.publish(q.ID, f)
}

// speak lets a feedback say what it is about, for those who ask baseline by
// baseline.
func (m *machine) speak(f *updateproto.Feedback) {
	if m.kanto {
		f.Baseline = m.Activity.Scope
	}
}

// progress takes an intermediate feedback of the running work.
func (m *machine) progress(f updateproto.Feedback) {
	if a := m.Activity; a != nil {
		a.Last = clip(f)
		m.speak(&a.Last)
		m.effects = append(m.effects, effect{publish: &outgoing{a.ID, a.Last}, progress: true})
	}
}

// note keeps what the backend wants to find again after a restart.
func (m *machine) note(notes json.RawMessage) {
	if m.Activity != nil {
		m.Activity.Notes = notes
		m.dirty = true
	}
}

// done takes the outcome of the work that ran in the current phase: one
// feedback, or two where the second is the activity's terminal one.
func (m *machine) done(results []updateproto.Feedback) {
	a := m.Activity
	if a == nil {
		return
	}
	verified := m.verifying
	if verified {
		m.verifying = false
		m.changed()
	}
	if len(results) == 0 { // a verification that found nothing new
		m.repeat()
		m.runQueue(a.Queue)
		return
	}
	for i, f := range results {
		results[i] = clip(f)
	}
	if verified && len(a.Parts) > 0 {
		m.verified(results)
		m.runQueue(a.Queue)
		return
	}
	m.speak(&results[0])
	a.Last = results[0]
	queue, worked := a.Queue, a.at(a.Phase)
	switch {
	case results[0].Status == updateproto.StatusRollbackFailure:
		// It may be tried again; CLEANUP tries once more, and ends it.
		m.became(Failed, worked)
	case a.Phase == RollingBack && len(results) == 1:
		m.became(RolledBack, worked)
	case a.Phase == Cleaning && len(worked) < len(a.open("")):
		m.became(over, worked)
	case a.Phase == RollingBack, a.Phase == Cleaning, len(results) > 1, results[0].Status == updateproto.StatusIdentificationFailed:
		if f := &results[len(results)-1]; a.Yields && f.Message == "" {
			f.Message = fmt.Sprintf("given up for activity %q", a.Next.ID)
		}
		m.end(results)
	default:
		m.became(a.afterWork(results[0].Status), worked)
	}
	if a := m.Activity; a != nil && a.Next != nil && a.Phase.expires() {
		m.abandon()
		return
	}
	m.runQueue(queue)
}

// verified takes what became of an activation, baseline by baseline. Who has
// commanded all of them hears the worst.
func (m *machine) verified(results []updateproto.Feedback) {
	a := m.Activity
	if f := results[0]; f.Baseline == "" {
		results = nil
		for _, part := range a.at(Activated) {
			f.Baseline = part.Title
			results = append(results, f)
		}
	}
	worst := results[0]
	for _, f := range results {
		a.Phase = Activated
		p := a.afterWork(f.Status)
		for _, part := range a.at(Activated) {
			if part.Title == f.Baseline {
				part.Phase, part.Status = p, f.Status
			}
		}
		if p == Failed {
			worst = f
		}
		if !everything(a.Scope) {
			a.Scope, a.Last = f.Baseline, f
			m.publish(a.ID, f)
		}
	}
	if everything(a.Scope) {
		m.speak(&worst)
		a.Last = worst
		m.publish(a.ID, worst)
	}
	a.settle()
	m.dirty = true
}

// became takes down what the work has led to, and says it.
func (m *machine) became(p Phase, worked []*part) {
	a := m.Activity
	a.Phase, m.dirty = p, true
	for _, part := range worked {
		part.Phase, part.Status = p, a.Last.Status
	}
	a.settle()
	m.publish(a.ID, a.Last)
}

// divide notes the baselines that an identification has found.
func (m *machine) divide(titles []string) {
	if a := m.Activity; a != nil && a.Phase == Identifying {
		a.Parts = nil
		for _, title := range titles {
			a.Parts = append(a.Parts, part{Title: title})
		}
	}
}

// afterWork is the phase that follows a result.
func (a *Activity) afterWork(status string) Phase {
	for _, s := range steps() {
		if (s.work == a.Phase || s.done == a.Phase) && s.success == status {
			return s.done
		}
	}
	return Failed
}

// end closes the activity with its last words.
func (m *machine) end(results []updateproto.Feedback) {
	a := m.Activity
	m.remember(ended{ID: a.Origin, Adopted: a.Adopted, Status: results[len(results)-1].Status})
	for _, f := range results {
		m.lastWord(a.ID, f)
	}
	m.Activity = nil
	m.changed()
	if a.Next != nil {
		m.request(a.Next.ID, a.Next.Request, false)
		for _, q := range a.Next.Queue {
			m.command(q)
		}
	}
}

// lastWord publishes what must arrive although no activity is open to repeat
// it.
func (m *machine) lastWord(id string, f updateproto.Feedback) {
	o := outgoing{id, f}
	m.Unsent = append(m.Unsent, o)
	if n := len(m.Unsent) - maxUnsent; n > 0 {
		m.Unsent = m.Unsent[n:]
	}
	m.dirty = true
	m.effects = append(m.effects, effect{publish: &o, last: true})
}

// runQueue executes commands that came early, as far as it is their turn.
func (m *machine) runQueue(queue []queued) {
	for len(queue) > 0 && (m.Activity == nil || !m.Activity.Phase.working()) && !m.verifying {
		q := queue[0]
		queue = queue[1:]
		if a := m.Activity; a != nil {
			a.Queue = queue
			m.dirty = true
			if _, forward := stepOf(q.Command); forward && a.phaseOf(q.Baseline, "") == Failed {
				m.warnf("%s for activity %q is dropped: a step before it has failed", q.Command, a.ID)
				continue
			}
		}
		m.command(q)
	}
}

// sameJSON compares two documents without their white space.
func sameJSON(a, b []byte) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}
