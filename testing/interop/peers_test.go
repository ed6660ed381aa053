// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"net/http"
	"net/http/httptest"
	"os/exec"
	"syscall"
	"testing"

	"sdvbox/testing/agents"
	"sdvbox/testing/broker"
	"sdvbox/testing/managers"
)

// Our agent installs nothing, but speaks as it does in the vehicle.
func TestTheOriginalManagerDrivesOurAgent(t *testing.T) {
	drivesOurAgent(t, managers.Original(t), "COMPLETE")
}

func TestOurManagerDrivesOurAgent(t *testing.T) {
	drivesOurAgent(t, managers.Build(t, "update-manager"), "COMPLETE")
}

func drivesOurAgent(t *testing.T, manager, end string) {
	b := broker.Start(t, broker.Options{})
	domains := []string{"containers", "self-update"}
	agents.Start(t, b.URL(), agents.Script{Domain: domains[0]})
	startAgent(t, b.URL())
	managers.Start(t, manager, b.URL(), managers.Config(b.URL(), t.TempDir(), domains, map[string]any{"phaseTimeout": "20s"}))
	south := agents.Record(t, b.URL(), "selfupdate/#")
	north := agents.Watch(t, b.URL(), "vehicle")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1<<20)) }))
	defer server.Close()
	want := agents.Desire(agents.Target{Domain: domains[0], Component: "app", Version: "2"},
		agents.Target{Domain: domains[1], Component: "os-image", Version: "dummy_version", Image: server.URL})
	// Twice, because an agent must not be left behind; what the dummy installs is not there after all.
	for _, id := range []string{"first", "second"} {
		north.Apply(id, want)
		if f := north.End(id, limit); f.Status != "COMPLETED" || len(f.Actions) == 0 {
			t.Errorf("%s ends with %+v", id, f)
		}
		agents.Eventually(t, limit, "last word of the agent", func() bool {
			said := statuses(south.Of(id))
			return len(said) > 0 && said[len(said)-1] == end
		})
	}
	north.Apply("third", agents.Desire(agents.Target{Domain: domains[1], Component: "os-image", Version: ""}))
	if f := north.End("third", limit); f.Status != "IDENTIFICATION_FAILED" || f.Message == "" {
		t.Errorf("a desired state without a version ends with %+v", f)
	}
}

// statuses returns those of the feedback among the messages.
func statuses(messages []agents.Message) []string {
	var list []string
	for _, m := range messages {
		if f, ok := m.Feedback(); ok {
			list = append(list, f.Status)
		}
	}
	return list
}

// startAgent runs our self-update agent with its dummy installer.
func startAgent(t *testing.T, url string) {
	cmd := exec.Command(managers.Build(t, "self-update-agent"), "--installer", "dummy", "--server", url, "--state-dir", t.TempDir(), "--path", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r := agents.Record(t, url, "selfupdate/currentstate")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	agents.Eventually(t, limit, "current state of the agent", func() bool { return len(r.Messages()) > 0 })
}
