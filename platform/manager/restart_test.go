// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"strings"
	"testing"
	"time"

	"sdvbox/testing/agents"
)

func TestTheBrokerMayRestart(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c, s := r.both()
	m := agents.Watch(t, r.broker.URL(), "vehicle")
	r.update(m, "a1", "2")

	m.Forget()
	r.broker.Restart()
	r.eventually("current state after the restart", func() bool { return on(m.Messages(), "vehicleupdate/currentstate", "initial-current-state-") > 0 })
	r.update(m, "a2", "3")

	for _, a := range []*agents.Agent{c, s} {
		a.Change(func(s *agents.Script) { s.Delay = time.Second })
	}
	m.Apply("a3", desire("4"))
	r.eventually("UPDATE", func() bool { return strings.HasSuffix(strings.Join(c.Orders("a3"), " "), "UPDATE") })
	r.broker.Restart()
	if end := m.End("a3", 3*patience); end.Status != "COMPLETED" {
		t.Errorf("a3 ended as %+v", end)
	}
}

func TestTheBrokerMayRestartBelowATwin(t *testing.T) {
	t.Parallel()
	r, c := things(t, nil)
	a, s := r.both()
	c.identify()
	r.eventually("first current state", func() bool { return len(c.heard("/properties")) > 0 })
	r.broker.Restart()
	c.requested(2)
	c.identify() // nothing new
	c.ask("1", "apply", apply("a1", "2"))
	if end := c.end("a1"); end.Status != "COMPLETED" {
		t.Errorf("a1 ended as %+v", end)
	}
	for _, a := range []*agents.Agent{a, s} {
		a.Change(func(s *agents.Script) { s.Delay = time.Second })
	}
	c.ask("2", "apply", apply("a2", "3"))
	r.eventually("UPDATE", func() bool { return strings.HasSuffix(strings.Join(a.Orders("a2"), " "), "UPDATE") })
	r.broker.Restart()
	if end := c.end("a2"); end.Status != "COMPLETED" {
		t.Errorf("a2 ended as %+v", end)
	}
	if n := len(c.heard("/UpdateManager")); n != 1 {
		t.Errorf("described %d times", n)
	}
}
