// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"slices"
	"strings"
	"testing"
	"time"

	"sdvbox/platform/orchestrator"
	"sdvbox/testing/agents"
)

func TestTheBrokerMayRestart(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c, s := r.both()
	m := agents.Watch(t, r.broker.URL(), "vehicle")
	r.update(m, "a1", "2")

	m.Forget()
	r.broker.Stop()
	r.eventually("loss of the connection", func() bool { _, up := r.running(); return !up && !r.m.Counters().Up && !r.m.Status().Connected })
	r.broker.Restart()
	r.eventually("current state after the restart", func() bool { return on(m.Messages(), "vehicleupdate/currentstate", "initial-current-state-") > 0 })
	r.update(m, "a2", "3")

	for _, a := range []*agents.Agent{c, s} {
		a.Change(func(s *agents.Script) { s.Delay = 400 * time.Millisecond })
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
		a.Change(func(s *agents.Script) { s.Delay = 400 * time.Millisecond })
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

// rebooting has the agent of one domain updated up to the reboot, which then happens.
func rebooting(c *Config) {
	c.Agents = map[string]orchestrator.Agent{"self-update": {RebootRequired: true, ReadTimeout: 2 * time.Second}}
	c.Orchestrator.RebootEnabled = true
	c.Boot = "1"
}

// goesDown waits for the reboot.
func (r *rig) goesDown() {
	r.t.Helper()
	select {
	case <-r.reboot:
	case <-time.After(patience):
		r.t.Fatal("no reboot")
	}
	r.stop()
}

func (r *rig) rebooted(a *agents.Agent) {
	r.t.Helper()
	r.goesDown()
	r.broker.Restart()
	a.Reboot(true)
	r.cfg.Boot += "2"
	r.launch()
}

func TestTheRebootIsPartOfTheUpdate(t *testing.T) {
	t.Parallel()
	r := start(t, rebooting)
	a := r.agent(agents.Script{Domain: "self-update", Style: agents.Resuming, RebootRequired: true, Installed: map[string]string{"os-image": "1"}})
	m := agents.Watch(t, r.broker.URL(), "vehicle")
	m.Apply("a1", agents.Desire(agents.Target{Domain: "self-update", Component: "os-image", Version: "2"}))
	r.rebooted(a)
	if end := m.End("a1", patience); end.Status != "COMPLETED" || a.Installed()["os-image"] != "2" || strings.Contains(end.Message, "unverified") {
		t.Errorf("ended as %+v with %v", end, a.Installed())
	}
}

func TestWhatIsTakenBackAfterTheRebootNeedsAnother(t *testing.T) {
	t.Parallel()
	r := start(t, rebooting)
	a := r.agent(agents.Script{Domain: "self-update", Style: agents.Resuming, RebootRequired: true, Installed: map[string]string{"os-image": "1"}})
	m := agents.Watch(t, r.broker.URL(), "vehicle")
	m.Apply("a1", agents.Desire(agents.Target{Domain: "self-update", Component: "os-image", Version: "2"}))
	r.goesDown()
	a.Stop()
	r.cfg.Boot += "2"
	r.launch()
	if err := r.m.Cancel(t.Context(), "a1"); err != nil { // before the agent has said what runs
		t.Error(err)
	}
	a.Reboot(true)
	if end := m.End("a1", patience); end.Status != "INCOMPLETE" || !strings.Contains(end.Message, "rolled back, reboot pending") || a.Installed()["os-image"] != "2" {
		t.Errorf("ended as %+v with %v", end, a.Installed())
	}
	r.rebooted(a)
	if v := a.Installed()["os-image"]; v != "1" {
		t.Errorf("version %s runs at the end", v)
	}
	r.eventually("end of the activity", func() bool { return r.m.Status().Phase == "idle" })
	if len(r.reboot) > 0 {
		t.Error("one more reboot")
	}
}

func TestAfterARebootNobodyWaitsForTheConnector(t *testing.T) {
	t.Parallel()
	r, c := things(t, rebooting)
	a := r.agent(agents.Script{Domain: "self-update", Style: agents.Resuming, RebootRequired: true, Installed: map[string]string{"os-image": "1"}})
	c.identify()
	c.ask("1", "apply", `{"activityId":"a1","desiredState":{"domains":[{"id":"self-update","components":[{"id":"os-image","version":"2"}]}]}}`)
	r.rebooted(a)
	r.eventually("CLEANUP", func() bool { return slices.Contains(a.Orders("a1"), "CLEANUP") && a.Idle() })
	if f := c.feedback("a1"); f[len(f)-1].Terminal() {
		t.Errorf("ended as %+v without a connector", f)
	}
	c.identify()
	if end := c.end("a1"); end.Status != "COMPLETED" {
		t.Errorf("ended as %+v", end)
	}
	r.eventually("current state of a1", func() bool { return on(c.Messages(), "e", `/properties","value":{"activityId":"a1",`) > 0 })
}
