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
	if err == nil && len(rec) > Capacity {
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
	case !a.knows(id):
		m.refuseRequest(id, fmt.Sprintf("activity %q is under way (%s); it has to end first, for instance with ROLLBACK", a.ID, a.Phase.waitsFor()))
	default:
		if !sameJSON(a.Request, payload) {
			m.warnf("desired state with the id %q of the activity under way but with other content is ignored", id)
		}
		m.repeat()
	}
}

// reject answers a message that cannot be understood: a desired state, or else a
// command.
func (m *machine) reject(id, why string, request bool) {
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
	m.publish(id, m.identifyingFeedback())
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
func (m *machine) command(id, command string) {
	a := m.Activity
	m.lastID = id
	if a == nil {
		m.idle(id, command)
		return
	}
	if !a.knows(id) && !m.mayAdopt(id, command) {
		if _, old := m.endedWith(id); old {
			m.idle(id, command)
		} else {
			m.refuse(id, command, fmt.Sprintf("activity %q is under way (%s)", a.ID, a.Phase.waitsFor()))
		}
		return
	}
	switch command {
	case updateproto.CommandRollback:
		m.rollback(id)
	case updateproto.CommandCleanup:
		m.cleanup(id)
	default:
		m.forward(id, command)
	}
}

// mayAdopt decides whether a command with a foreign id belongs to the one
// activity there is: the documentation's own example starts an update under
// one id and commands it under another. The id of a finished activity is
// taken only if it was such an id there too, and only to begin.
func (m *machine) mayAdopt(id, command string) bool {
	a := m.Activity
	if e, old := m.endedWith(id); old {
		return slices.Contains(e.Adopted, id) && command == updateproto.CommandDownload && m.fits(command)
	}
	return command == updateproto.CommandRollback && a.Phase != RollingBack && a.Phase != Cleaning || !a.Phase.working() || m.fits(command)
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
func (m *machine) fits(command string) bool {
	p := m.Activity.Phase.afterSuccess()
	for _, q := range m.Activity.Queue {
		if s, ok := stepOf(q.Command); ok {
			p = s.done
		} else {
			return false // nothing comes after CLEANUP
		}
	}
	if command == updateproto.CommandCleanup {
		return p == Activated
	}
	s, ok := stepOf(command)
	return ok && s.from == p
}

func (m *machine) enqueue(id, command string) {
	a := m.Activity
	if len(a.Queue) < maxQueue {
		a.Queue = append(a.Queue, queued{id, command})
		m.dirty = true
	}
}

// forward handles DOWNLOAD, UPDATE and ACTIVATE.
func (m *machine) forward(id, command string) {
	a := m.Activity
	s, _ := stepOf(command)
	switch {
	case a.Phase == s.from:
		m.adopt(id)
		m.start(s.work)
	case a.Phase == s.work || a.Phase.passed(s.work):
		m.adopt(id)
		m.repeat()
	case slices.Contains(a.Queue, queued{id, command}):
	case m.fits(command):
		m.enqueue(id, command)
	default:
		m.refuse(id, command, fmt.Sprintf("%s is not allowed now: the activity is %s and %s", command, a.Phase, a.Phase.waitsFor()))
	}
}

func (m *machine) rollback(id string) {
	a := m.Activity
	switch a.Phase {
	case RollingBack:
		m.publish(a.ID, a.Last)
	case Cleaning:
		m.refuse(id, updateproto.CommandRollback, "the activity is being cleaned up")
	default:
		m.adopt(id)
		a.Queue = nil
		a.Last = updateproto.Feedback{Status: updateproto.StatusRollback, Message: "Rolling back.", Actions: a.Last.Actions}
		m.verifying = false
		m.start(RollingBack)
		m.publish(a.ID, a.Last)
	}
}

func (m *machine) cleanup(id string) {
	a := m.Activity
	switch {
	case a.Phase == Cleaning:
		// The answer is on its way.
	case a.Phase == RollingBack, m.verifying, a.Phase.working() && m.fits(updateproto.CommandCleanup):
		if !slices.Contains(a.Queue, queued{id, updateproto.CommandCleanup}) {
			m.enqueue(id, updateproto.CommandCleanup)
		}
	default:
		// Before its turn CLEANUP abandons the update.
		m.adopt(id)
		a.Success = a.Phase == Activated
		a.Queue = nil
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
	m.start(Cleaning)
}

// idle answers a command for which no activity is open.
func (m *machine) idle(id, command string) {
	e, old := m.endedWith(id)
	switch {
	case command == updateproto.CommandCleanup:
		m.lastWord(id, feedback(updateproto.StatusCleanupSuccess, "There is nothing left to clean up."))
	case old && command == updateproto.CommandRollback && e.Status == updateproto.StatusIncomplete:
		m.publish(id, feedback(updateproto.StatusRollbackSuccess, "The activity has ended and nothing of it is in use."))
	case old:
		m.refuse(id, command, fmt.Sprintf("activity %q has ended with %s", id, e.Status))
	default:
		m.refuse(id, command, "no activity is open: send a desired state first")
	}
}

// refuse answers a command with its failure status; the activity under way,
// if any, stays as it is.
func (m *machine) refuse(id, command, why string) {
	status := updateproto.StatusRollbackFailure
	if s, ok := stepOf(command); ok {
		status = s.failure
	}
	m.warnf("%s for activity %q is refused: %s", command, id, why)
	m.publish(id, feedback(status, why))
}

// progress takes an intermediate feedback of the running work.
func (m *machine) progress(f updateproto.Feedback) {
	if a := m.Activity; a != nil {
		a.Last = clip(f)
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
	if m.verifying {
		m.verifying = false
		m.effects = append(m.effects, effect{inventory: &m.lastID})
	}
	if len(results) == 0 { // a verification that found nothing new
		m.repeat()
		m.runQueue(a.Queue)
		return
	}
	for i, f := range results {
		results[i] = clip(f)
	}
	a.Last = results[0]
	queue := a.Queue
	switch {
	case results[0].Status == updateproto.StatusRollbackFailure:
		// It may be tried again; CLEANUP tries once more, and ends it.
		a.Phase = Failed
		m.dirty = true
		m.publish(a.ID, results[0])
	case a.Phase == RollingBack, a.Phase == Cleaning, len(results) > 1, results[0].Status == updateproto.StatusIdentificationFailed:
		m.end(results)
	default:
		a.Phase = a.afterWork(results[0].Status)
		m.dirty = true
		m.publish(a.ID, results[0])
	}
	m.runQueue(queue)
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
	m.effects = append(m.effects, effect{inventory: &m.lastID})
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
			if _, forward := stepOf(q.Command); forward && a.Phase == Failed {
				m.warnf("%s for activity %q is dropped: a step before it has failed", q.Command, a.ID)
				continue
			}
		}
		m.command(q.ID, q.Command)
	}
}

// sameJSON compares two documents without their white space.
func sameJSON(a, b []byte) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}
