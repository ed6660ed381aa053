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

// readTimeout is how long the agent of a domain may be silent after a question
// of any kind. There is a least one: without it orders would be repeated without
// a pause.
func (m *Machine) readTimeout(d *Domain) time.Duration {
	return max(m.c.Agents[d.ID].ReadTimeout, time.Second)
}

// order gives a domain something to do.
func (m *Machine) order(d *Domain, order string) {
	d.Order, d.Resent, d.Refused, d.heard, d.working = order, false, "", false, false
	switch order {
	case updateproto.CommandDownload, updateproto.CommandUpdate, updateproto.CommandActivate:
		d.Touched = true
	}
	d.deadline, d.limit = time.Time{}, time.Time{}
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
		d.resend = m.now.Add(m.readTimeout(d))
	}
	m.do(s)
}

// arm puts off the deadline for the answer to an order.
func (m *Machine) arm(d *Domain) {
	wait := m.c.PhaseTimeout
	switch {
	case d.Order == orderVerify:
		wait = m.c.VerifyTimeout
	case !d.heard && (d.Back || d.Silent):
		// One that may never answer must not hold up the end for long.
		wait = min(wait, m.readTimeout(d))
	}
	if t := m.now.Add(wait); d.deadline.Before(t) {
		d.wait, d.deadline = wait, t
	}
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
	if answers(ev.Feedback.Status, d.Order) {
		d.heard, d.resend = true, time.Time{}
	}
	if d.Order == orderVerify && !d.fresh {
		d.resend = m.now.Add(m.readTimeout(d))
	}
	if d.Order != "" {
		m.arm(d)
	}
	f := ev.Feedback
	f.Message = clip(cmp.Or(f.Message, reason(f.Actions)))
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
		if d.Order == orderDesired && !m.refusal(d, f) {
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
		m.stepped(d, f)
	}
}

// reason is why a domain has failed, if its agent has written that to an action only, as that of Eclipse Kanto does.
func reason(actions []updateproto.Action) string {
	for _, x := range actions {
		if strings.HasSuffix(x.Status, "_FAILURE") {
			return x.Message
		}
	}
	return ""
}

// answers reports whether a status shows that the order has arrived. What was
// said before may come late, or again.
func answers(status, order string) bool {
	switch order {
	case orderDesired:
		return strings.HasPrefix(status, "IDENTIF")
	case updateproto.CommandUpdate:
		return strings.HasPrefix(status, "UPDAT")
	case updateproto.CommandActivate, orderVerify:
		return strings.HasPrefix(status, "ACTIVAT")
	}
	return order != "" && strings.HasPrefix(status, order)
}

// record takes the actions that an agent reports; the newest word on a component
// counts.
func (d *Domain) record(actions []updateproto.Action) {
	for _, x := range actions {
		x.Message = clip(x.Message)
		x.Status = clip(x.Status)
		x.Component.ID, x.Component.Version = clip(x.Component.ID), clip(x.Component.Version)
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

// stepped takes what an agent says about DOWNLOAD, UPDATE and ACTIVATE.
func (m *Machine) stepped(d *Domain, f updateproto.Feedback) {
	verifying := d.Order == orderVerify
	known, reached := false, false
	for _, s := range steps() {
		ordered := d.Order == s.command || verifying && s.phase == Activate
		reached = reached || ordered
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
			// Some agents fail a step with the status of a later one. That of one
			// before refuses an order that came twice.
			if reached && !m.refusal(d, f) && !m.goesOn(d) {
				m.fail(d, cmp.Or(f.Message, strings.ToLower(s.command)+" failed"))
			}
		}
	}
	if !known {
		m.logf(slog.LevelWarn, "status %.40q of %s is unknown", f.Status, d.ID)
	}
}

// refusal reports whether a failure may only mean that an order was known
// already when it came a second time. The agent is waited for a little longer
// then; if it says nothing else, that was its answer.
func (m *Machine) refusal(d *Domain, f updateproto.Feedback) bool {
	if !d.Resent || d.working || m.Resumes[d.ID] {
		return false
	}
	d.Resent, d.Refused, m.dirty = false, cmp.Or(f.Message, f.Status), true
	d.wait = m.readTimeout(d)
	d.deadline = m.now.Add(d.wait)
	m.logf(slog.LevelWarn, "%s of %s after the order was repeated may be a refusal: %s", f.Status, d.ID, f.Message)
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

// goesOn takes the failure of a DOWNLOAD that fellBack has sent for the word of
// an agent that did not need it and goes on with UPDATE.
func (m *Machine) goesOn(d *Domain) bool {
	if !d.FellBack || d.State != identified || d.Order != updateproto.CommandDownload || d.working {
		return false
	}
	d.State, d.Order, m.dirty = downloaded, updateproto.CommandUpdate, true
	m.arm(d)
	return true
}

// completed takes an agent's word that it has ended well.
func (m *Machine) completed(d *Domain) {
	switch {
	case d.State == rolledBack:
		// It was said before.
	case d.Order == updateproto.CommandCleanup:
		m.cleaned(d, false, "")
	case d.Back:
		m.finish(d, ResultUpdated, cmp.Or(d.Message, "completed before it could be taken back"))
	case d.Order == orderDesired:
		if m.Resumes[d.ID] {
			m.finish(d, ResultUnchanged, "")
			return
		}
		// One that does not say IDENTIFIED before takes no other desired state
		// until it is released; nobody has to wait for that.
		d.Back, d.State, d.Result = true, rolledBack, ResultUnchanged
		m.order(d, updateproto.CommandCleanup)
	case !d.Touched:
		m.finish(d, ResultUnchanged, "")
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
	if d.Order == updateproto.CommandCleanup {
		return // it is giving up the old state
	}
	if !d.Back {
		d.Back, m.dirty = true, true
	}
	switch d.Order {
	case updateproto.CommandRollback:
	case "":
		m.order(d, updateproto.CommandRollback)
	default:
		// One of the original kind takes ROLLBACK only between two steps.
		if m.Resumes[d.ID] || d.Silent || d.Order == orderVerify {
			m.order(d, updateproto.CommandRollback)
		}
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

// forward reports whether a domain is still on its way to the new state.
func (d *Domain) forward() bool { return !d.Back && d.State != done && d.State != failed }

// timeout ends the wait for an agent.
func (m *Machine) timeout(d *Domain) {
	a := m.Activity
	silent := fmt.Sprintf("no answer to %s within %s", d.Order, d.wait)
	m.logf(slog.LevelWarn, "%s: %s", d.ID, silent)
	if why := d.Refused; why != "" && !d.Back && d.Order != updateproto.CommandCleanup {
		// It has failed after all.
		if d.Order == orderDesired {
			a.Unidentified = true
			m.finish(d, ResultFailed, why)
		} else {
			m.fail(d, why)
		}
		return
	}
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
		d.Message = cmp.Or(d.Message, d.Refused, "it did not confirm the rollback")
	case d.Back:
		m.back(d)
	default:
		a.Failed = true
		d.Message = cmp.Or(d.Message, silent)
		if order == orderDesired {
			a.Unidentified = true
		} else if order == orderVerify {
			d.Message = fmt.Sprintf("it did not say within %s of the reboot what runs", d.wait)
		}
		m.back(d)
		if order != orderDesired {
			m.takeBack(d)
		}
	}
}
