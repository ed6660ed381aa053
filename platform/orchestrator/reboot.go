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

func (m *Machine) needsReboot(d *Domain) bool {
	return d.Reboots && d.State == activated && !d.Back && len(d.Actions) > 0
}

// rebootsFirst reports whether the reboot is part of the transaction: agents
// that go on after it can say what has become of it.
func (m *Machine) rebootsFirst() bool {
	if !m.c.RebootEnabled || !slices.ContainsFunc(m.Activity.Domains, m.needsReboot) {
		return false
	}
	return !slices.ContainsFunc(m.Activity.Domains, func(d *Domain) bool { return len(d.Actions) > 0 && !m.Resumes[d.ID] })
}

// unverified reports whether what was activated is not in effect yet.
func (d *Domain) unverified() bool {
	return d.Reboots && len(d.Actions) > 0 && d.Result == ResultUpdated && !d.Verified
}

// halfBack reports whether the old state takes effect at the next boot only.
func (d *Domain) halfBack() bool { return d.Booted && d.Result == ResultRolledBack }

// reboot leaves a reboot behind.
func (m *Machine) reboot() {
	if m.c.RebootEnabled {
		m.Reboot = &PendingReboot{ID: m.Activity.ID, Boot: m.boot}
		m.waitForReboot()
	}
}

// drop gives up a reboot that an activity has left behind, and takes that down.
func (m *Machine) drop(why string) {
	why = fmt.Sprintf("the reboot is given up: %s", why)
	m.logf(slog.LevelError, "activity %q: %s", m.Reboot.ID, why)
	for i := range m.History {
		if e := &m.History[i]; e.ID == m.Reboot.ID {
			e.Message = clip(strings.TrimPrefix(e.Message+"; "+why, "; "))
		}
	}
	m.Reboot, m.dirty = nil, true
	m.gateAt, m.gateAsked, m.downBy = time.Time{}, false, time.Time{}
}

// waitForReboot begins the delay before a reboot.
func (m *Machine) waitForReboot() {
	m.gateAt = m.now.Add(m.c.RebootAfter)
	m.gateBy = m.gateAt.Add(max(m.c.GateTimeout, gateLeast))
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
		kind := Running
		if m.unsafe == "" {
			kind = Normal // that it waits at all is worth knowing at once
		}
		m.unsafe = why
		m.logf(slog.LevelInfo, "the reboot for activity %q has to wait: %s", id, why)
		if m.Reboot == nil {
			m.say(kind, updateproto.StatusRunning, "the reboot has to wait: "+why)
		}
	case !m.free():
		m.gateAt = m.now.Add(gatePause)
	default:
		m.downBy = m.now.Add(rebootPatience)
		m.gateAt, m.unsafe = time.Time{}, ""
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
		m.drop("the vehicle cannot be rebooted: " + clip(why))
	case m.Reboot == nil && m.Activity.Attempts >= rebootAttempts:
		m.noReboot("the vehicle cannot be rebooted: " + clip(why))
	default:
		m.gateAt = m.now.Add(rebootPause)
		m.gateBy = m.gateAt.Add(max(m.c.GateTimeout, gateLeast))
	}
}

// noReboot ends an activity whose reboot cannot take place.
func (m *Machine) noReboot(why string) {
	m.gateAt, m.gateAsked, m.downBy = time.Time{}, false, time.Time{}
	m.giveUp(why)
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
		m.drop(why)
	case !m.gateAsked && m.due(m.gateAt):
		m.gateAsked = true
		m.do(CheckGate{id})
	}
}
