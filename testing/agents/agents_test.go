// SPDX-License-Identifier: Apache-2.0

package agents_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sdvbox/testing/agents"
	"sdvbox/testing/broker"
)

const limit = 10 * time.Second

// Each agent is sent orders, separated by spaces; what it says to each is expected.
func TestAgentsHaveTheMannersOfTheirStyle(t *testing.T) {
	type exchange struct{ order, answer string }
	for _, test := range []struct {
		name      string
		script    agents.Script
		exchanges []exchange
		version   string // installed at the end
		busy      bool
	}{
		{"original, happy", agents.Script{}, []exchange{
			{"IDENTIFY", "IDENTIFYING IDENTIFIED"}, {"DOWNLOAD", "DOWNLOADING DOWNLOAD_SUCCESS"}, {"UPDATE", "UPDATING UPDATE_SUCCESS"},
			{"ACTIVATE", "ACTIVATING ACTIVATION_SUCCESS"}, {"CLEANUP", "CLEANUP_SUCCESS COMPLETED"}}, "2", false},
		{"original, nothing to do", agents.Script{Installed: map[string]string{"app": "2"}}, []exchange{
			{"IDENTIFY", "IDENTIFYING IDENTIFIED COMPLETED"}}, "2", false},
		{"original, cannot identify", agents.Script{Fail: map[string]string{"IDENTIFY": "no"}}, []exchange{
			{"IDENTIFY", "IDENTIFYING IDENTIFICATION_FAILED"}}, "1", false},
		{"original, refuses what does not fit", agents.Script{}, []exchange{
			{"IDENTIFY", "IDENTIFYING IDENTIFIED"}, {"UPDATE", "UPDATE_FAILURE"}, {"ROLLBACK", "ROLLBACK_FAILURE"},
			{"DOWNLOAD", "DOWNLOADING DOWNLOAD_SUCCESS"}, {"CLEANUP", "CLEANUP_SUCCESS INCOMPLETE"}}, "1", false},
		{"original, works off what has come", agents.Script{Delay: 50 * time.Millisecond}, []exchange{
			{"IDENTIFY DOWNLOAD UPDATE", "IDENTIFYING IDENTIFIED DOWNLOADING DOWNLOAD_SUCCESS UPDATING UPDATE_SUCCESS"}}, "1", true},
		{"original, fails to activate and goes back", agents.Script{Fail: map[string]string{"ACTIVATE": "no"}}, []exchange{
			{"IDENTIFY DOWNLOAD UPDATE", "IDENTIFYING IDENTIFIED DOWNLOADING DOWNLOAD_SUCCESS UPDATING UPDATE_SUCCESS"},
			{"ACTIVATE", "ACTIVATING ACTIVATION_FAILURE"}, {"ROLLBACK", "ROLLBACK ROLLBACK_SUCCESS"}, {"CLEANUP", "CLEANUP_SUCCESS INCOMPLETE"}}, "1", false},
		{"original, goes back after activation", agents.Script{}, []exchange{
			{"IDENTIFY DOWNLOAD UPDATE", "IDENTIFYING IDENTIFIED DOWNLOADING DOWNLOAD_SUCCESS UPDATING UPDATE_SUCCESS"},
			{"ACTIVATE", "ACTIVATING ACTIVATION_SUCCESS"}, {"ROLLBACK", "ROLLBACK ROLLBACK_SUCCESS"}, {"CLEANUP", "CLEANUP_SUCCESS INCOMPLETE"}}, "1", false},

		{"leda, happy", agents.Script{Style: agents.Leda}, []exchange{
			{"IDENTIFY", "IDENTIFYING IDENTIFIED"}, {"UPDATE", ""}, {"CLEANUP", ""}, {"DOWNLOAD", "DOWNLOADING DOWNLOAD_SUCCESS"},
			{"UPDATE", "UPDATING UPDATE_SUCCESS"}, {"ACTIVATE", "ACTIVATING ACTIVATION_SUCCESS"}, {"CLEANUP", "CLEANUP_SUCCESS COMPLETE"}}, "2", false},
		{"leda, installed already, blocks until released", agents.Script{Style: agents.Leda, Installed: map[string]string{"app": "2"}}, []exchange{
			{"IDENTIFY", "IDENTIFYING COMPLETED"}, {"IDENTIFY", ""}, {"CLEANUP", "CLEANUP_SUCCESS INCOMPLETE"}, {"IDENTIFY", "IDENTIFYING COMPLETED"}}, "2", true},
		{"leda, goes back silently", agents.Script{Style: agents.Leda}, []exchange{
			{"IDENTIFY", "IDENTIFYING IDENTIFIED"}, {"DOWNLOAD", "DOWNLOADING DOWNLOAD_SUCCESS"}, {"ROLLBACK", ""}, {"CLEANUP", ""}}, "1", false},
		{"leda, fails to download", agents.Script{Style: agents.Leda, Fail: map[string]string{"DOWNLOAD": "no"}}, []exchange{
			{"IDENTIFY", "IDENTIFYING IDENTIFIED"}, {"DOWNLOAD", "DOWNLOADING DOWNLOAD_FAILURE"}, {"CLEANUP", "CLEANUP_SUCCESS INCOMPLETE"}}, "1", false},

		{"resuming, happy", agents.Script{Style: agents.Resuming}, []exchange{
			{"IDENTIFY", "IDENTIFYING IDENTIFIED"}, {"DOWNLOAD", "DOWNLOADING DOWNLOAD_SUCCESS"}, {"UPDATE", "UPDATING UPDATE_SUCCESS"},
			{"ACTIVATE", "ACTIVATING ACTIVATION_SUCCESS"}, {"CLEANUP", "CLEANUP_SUCCESS COMPLETED"}}, "2", false},
		{"resuming, goes back after activation", agents.Script{Style: agents.Resuming}, []exchange{
			{"IDENTIFY", "IDENTIFYING IDENTIFIED"}, {"DOWNLOAD", "DOWNLOADING DOWNLOAD_SUCCESS"}, {"UPDATE", "UPDATING UPDATE_SUCCESS"},
			{"ACTIVATE", "ACTIVATING ACTIVATION_SUCCESS"}, {"ROLLBACK", "ROLLBACK ROLLBACK_SUCCESS INCOMPLETE"}, {"CLEANUP", "CLEANUP_SUCCESS"}}, "1", false},
		{"silent", agents.Script{Silent: map[string]bool{"DOWNLOAD": true}}, []exchange{
			{"IDENTIFY", "IDENTIFYING IDENTIFIED"}, {"DOWNLOAD", ""}}, "1", true},
		{"progress", agents.Script{Progress: 3, Delay: 20 * time.Millisecond}, []exchange{
			{"IDENTIFY", "IDENTIFYING IDENTIFIED"}, {"DOWNLOAD", "DOWNLOADING DOWNLOADING DOWNLOADING DOWNLOAD_SUCCESS"}}, "1", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := broker.Start(t, broker.Options{})
			test.script.Domain = "test-domain"
			if test.script.Installed == nil {
				test.script.Installed = map[string]string{"app": "1"}
			}
			r := agents.Record(t, b.URL(), "testdomainupdate/#")
			a := agents.Start(t, b.URL(), test.script)
			var asked []string
			for _, e := range test.exchanges {
				before := len(said(r))
				for order := range strings.FieldsSeq(e.order) {
					asked = append(asked, order)
					if order == agents.Identify {
						r.Publish("testdomainupdate/desiredstate", "a", agents.Desire(agents.Target{Domain: "test-domain", Component: "app", Version: "2"}))
					} else {
						r.Publish("testdomainupdate/desiredstate/command", "a", map[string]string{"command": order})
					}
				}
				want := strings.Fields(e.answer)
				if len(want) == 0 {
					time.Sleep(100 * time.Millisecond)
				}
				agents.Eventually(t, limit, e.answer, func() bool { return len(said(r)) >= before+len(want) })
				if d := cmp.Diff(want, said(r)[before:]); len(want)+len(said(r)[before:]) > 0 && d != "" {
					t.Fatalf("%s: %s", e.order, d)
				}
			}
			agents.Eventually(t, limit, "idle", func() bool { return a.Idle() == !test.busy })
			if v := a.Installed()["app"]; v != test.version {
				t.Errorf("installed is %s, want %s", v, test.version)
			}
			agents.Eventually(t, limit, "all orders", func() bool { return len(a.Orders("a")) == len(asked) })
			if d := cmp.Diff(asked, a.Orders("a")); d != "" {
				t.Error(d)
			}
		})
	}
}

// said returns the statuses of all feedback.
func said(r *agents.Recorder) []string {
	var statuses []string
	for _, m := range r.Messages() {
		if f, ok := m.Feedback(); ok {
			statuses = append(statuses, f.Status)
		}
	}
	return statuses
}

func TestOnlyAResumingAgentRemembersItsActivity(t *testing.T) {
	for style, want := range map[agents.Style]bool{agents.Original: false, agents.Leda: false, agents.Resuming: true} {
		for _, starts := range []bool{true, false} {
			b := broker.Start(t, broker.Options{})
			a := agents.Start(t, b.URL(), agents.Script{Domain: "d", Style: style, Installed: map[string]string{"os": "1"}, RebootRequired: true})
			r := agents.Record(t, b.URL(), "dupdate/#")
			r.Publish("dupdate/desiredstate", "a", agents.Desire(agents.Target{Domain: "d", Component: "os", Version: "2"}))
			for i, command := range []string{"DOWNLOAD", "UPDATE", "ACTIVATE"} {
				agents.Eventually(t, limit, "answer", func() bool { return len(said(r)) == 2+2*i })
				r.Publish("dupdate/desiredstate/command", "a", map[string]string{"command": command})
			}
			agents.Eventually(t, limit, "activation", func() bool { return len(said(r)) == 8 })
			if v := a.Installed()["os"]; v != "1" {
				t.Errorf("version %s runs before the reboot", v)
			}
			b.Restart()
			r.Forget()
			a.Reboot(starts)
			if v := a.Installed()["os"]; (v == "2") != starts {
				t.Errorf("version %s runs after the reboot, the new one starts: %v", v, starts)
			}
			if !want {
				if !a.Idle() {
					t.Errorf("style %d remembers its activity", style)
				}
				continue
			}
			outcome := map[bool]string{true: "ACTIVATION_SUCCESS", false: "ACTIVATION_FAILURE"}[starts]
			agents.Eventually(t, limit, outcome, func() bool { s := said(r); return len(s) > 0 && s[len(s)-1] == outcome })
		}
	}
}

// The way back from a system that runs since a reboot is another reboot.
func TestAResumingAgentGoesBackAsItCame(t *testing.T) {
	for _, test := range []struct {
		rebooted bool
		word     string // in the answer to ROLLBACK, beside the status
		version  string // that runs after it
	}{
		{false, "", "1"},
		{true, `Slot A with version "1" is next, reboot required.`, "2"},
	} {
		b := broker.Start(t, broker.Options{})
		a := agents.Start(t, b.URL(), agents.Script{Domain: "d", Style: agents.Resuming, Installed: map[string]string{"os": "1"}, RebootRequired: true})
		r := agents.Record(t, b.URL(), "dupdate/#")
		hears := func(status string) (heard agents.Feedback) {
			t.Helper()
			agents.Eventually(t, limit, status, func() bool {
				return slices.ContainsFunc(r.Messages(), func(m agents.Message) bool {
					f, ok := m.Feedback()
					heard = f
					return ok && f.Status == status
				})
			})
			return heard
		}
		command := func(command string) {
			r.Publish("dupdate/desiredstate/command", "a", map[string]string{"command": command})
		}
		r.Publish("dupdate/desiredstate", "a", agents.Desire(agents.Target{Domain: "d", Component: "os", Version: "2"}))
		hears("IDENTIFIED")
		command("DOWNLOAD")
		hears("DOWNLOAD_SUCCESS")
		command("UPDATE")
		hears("UPDATE_SUCCESS")
		command("ACTIVATE")
		hears("ACTIVATION_SUCCESS")
		if test.rebooted {
			r.Forget()
			a.Reboot(true)
			hears("ACTIVATION_SUCCESS")
		}
		command("ROLLBACK")
		if f := hears("ROLLBACK_SUCCESS"); f.Message != test.word {
			t.Errorf("rebooted %v: ROLLBACK_SUCCESS says %q, want %q", test.rebooted, f.Message, test.word)
		}
		hears("INCOMPLETE")
		if v := a.Installed()["os"]; v != test.version {
			t.Errorf("rebooted %v: version %s runs after ROLLBACK, want %s", test.rebooted, v, test.version)
		}
		a.Reboot(true)
		if v := a.Installed()["os"]; v != "1" {
			t.Errorf("rebooted %v: version %s runs after a further reboot, want 1", test.rebooted, v)
		}
	}
}

func TestAgentsLiveThroughARestartOfTheBroker(t *testing.T) {
	for _, style := range []agents.Style{agents.Original, agents.Leda, agents.Resuming} {
		b := broker.Start(t, broker.Options{})
		a := agents.Start(t, b.URL(), agents.Script{Domain: "d", Style: style})
		r := agents.Record(t, b.URL(), "dupdate/#")
		b.Restart()
		agents.Eventually(t, limit, "answer", func() bool {
			r.Publish("dupdate/currentstate/get", "there", nil)
			time.Sleep(20 * time.Millisecond)
			return slices.ContainsFunc(r.Of("there"), func(m agents.Message) bool { return m.Topic == "dupdate/currentstate" })
		})
		r.Publish("dupdate/desiredstate", "a", agents.Desire(agents.Target{Domain: "d", Component: "c", Version: "2"}))
		agents.Eventually(t, limit, "IDENTIFIED", func() bool { s := said(r); return len(s) > 0 && s[len(s)-1] == "IDENTIFIED" })
		if a.Idle() {
			t.Error("idle in an activity")
		}
	}
}

func TestCompareNamesWhatDiffers(t *testing.T) {
	at := func(topic, payload string) agents.Message {
		return agents.Message{Topic: topic, Payload: []byte(payload)}
	}
	heard := []agents.Message{
		at("v/desiredstatefeedback", `{"status":"IDENTIFYING"}`),
		at("b/desiredstate", `{"domains":[{"id":"b","components":[{"id":"y","version":"2"},{"id":"x","version":"1"}]}]}`),
		at("a/desiredstatefeedback", `{"status":"IDENTIFIED","actions":[{"component":{"id":"a:c","version":"1"},"status":"IDENTIFIED"}]}`),
		at("b/desiredstate/command", `{"command":"DOWNLOAD"}`),
		at("b/currentstate/get", `null`),
		at("b/currentstate", `{"softwareNodes":[{"id":"n"},{"id":"m"}]}`),
	}
	const golden = `
# start
v/desiredstatefeedback IDENTIFYING

a/desiredstatefeedback IDENTIFIED a:c@1=IDENTIFIED
b/desiredstate b:x@1 b:y@2
b/desiredstate/command DOWNLOAD

b/currentstate/get
b/currentstate m n
`
	if d := agents.Compare(golden, heard); d != "" {
		t.Error(d)
	}
	if d := agents.Compare(strings.Replace(golden, "a/desired", "~ a/desired", 1), append(slices.Delete(slices.Clone(heard), 2, 3), heard[2])); d != "" {
		t.Errorf("what may come late: %s", d)
	}
	twice := []agents.Message{heard[0], heard[0]}
	for name, wrong := range map[string]string{
		"other status":  strings.Replace(golden, "IDENTIFYING", "RUNNING", 1),
		"other step":    strings.Replace(golden, "\n\nb/currentstate/get", "\nb/currentstate/get\n", 1) + "\n\nb/currentstate m n",
		"one missing":   strings.Replace(golden, "b/desiredstate/command DOWNLOAD\n", "", 1),
		"one too many":  golden + "\nv/desiredstatefeedback COMPLETED",
		"late missing":  golden + "~ v/desiredstatefeedback COMPLETED",
		"other version": strings.Replace(golden, "y@2", "y@3", 1),
	} {
		if agents.Compare(wrong, heard) == "" {
			t.Errorf("%s is not noticed", name)
		}
	}
	if agents.Compare("v/desiredstatefeedback IDENTIFYING", twice) == "" {
		t.Error("a repetition is not noticed")
	}
	swapped := "v/desiredstatefeedback RUNNING\nv/desiredstatefeedback COMPLETED"
	if agents.Compare(swapped, []agents.Message{at("v/desiredstatefeedback", `{"status":"COMPLETED"}`), at("v/desiredstatefeedback", `{"status":"RUNNING"}`)}) == "" {
		t.Error("the order within a topic does not count")
	}
}
