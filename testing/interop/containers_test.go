// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"os"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/agents"
	"sdvbox/testing/broker"
	"sdvbox/testing/ctragent"
	"sdvbox/testing/ctrd"
	"sdvbox/testing/managers"
)

func TestTheOriginalManagerDrivesOurContainerAgent(t *testing.T) {
	drivesOurContainerAgent(t, managers.Original(t))
}

func TestOurManagerDrivesOurContainerAgent(t *testing.T) {
	drivesOurContainerAgent(t, managers.Build(t, "update-manager"))
}

// Beside it is an agent that installs whatever it is told to.
func drivesOurContainerAgent(t *testing.T, manager string) {
	b := broker.Start(t, broker.Options{})
	domains := []string{"containers", "self-update"}
	heard := agents.Record(t, b.URL(), "containersupdate/#")
	program, err := os.ReadFile("/bin/busybox")
	must(t, err)
	var images []*ctragent.Image
	for _, tag := range []string{"1", "2", "3"} {
		images = append(images, ctragent.NewImage("example.org/app:"+tag, v1.ImageConfig{
			Env: []string{"PATH=/bin"}, Cmd: []string{"sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"},
		}, map[string][]byte{"bin/sh": program, "bin/sleep": program, "etc/tag": []byte(tag)}))
	}
	registry := ctragent.Serve(t, nil, images...)
	agent := ctragent.New(t, ctragent.Build(t), ctrd.Start(t))
	agent.Config["connection"] = ctragent.Section{"broker_url": b.URL()}
	agent.Config["update_agent"] = ctragent.Section{"enable": true, "health_time": "300ms"}
	agent.Config["containers"]["insecure_registries"] = []string{registry.Host}
	agent.Launch()
	agents.Eventually(t, limit, "current state of the agent", func() bool { return len(heard.Messages()) > 0 })
	self := agents.Start(t, b.URL(), agents.Script{Domain: domains[1], Style: agents.Leda})
	managers.Start(t, manager, b.URL(), managers.Config(b.URL(), t.TempDir(), domains, map[string]any{"failurePolicy": "all", "phaseTimeout": "30s"}))
	north := agents.Watch(t, b.URL(), "vehicle")

	update := func(id, tag, image, want string, runs ...string) {
		t.Helper()
		list := []any{
			map[string]any{"id": "containers", "config": []any{}, "components": []any{map[string]any{"id": "app", "version": tag, "config": []any{
				map[string]string{"key": "image", "value": registry.Host + "/" + image}, map[string]string{"key": "env", "value": "FOO=BAR"}}}}},
			map[string]any{"id": "self-update", "components": []any{map[string]any{"id": "os-image", "version": tag, "config": []any{
				map[string]string{"key": "image", "value": "https://bundles.example/" + tag}}}}},
		}
		if strings.HasSuffix(image, ":9") { // alone: the original manager does not end when another one is left waiting
			list = list[:1]
		}
		north.Apply(id, map[string]any{"domains": list})
		f := north.End(id, limit)
		t.Logf("%s: %s %s: %q", id, f.Status, f.Message, statuses(heard.Of(id)))
		if f.Status != want {
			t.Errorf("%s ends with %+v, want %s", id, f, want)
		}
		agents.Eventually(t, limit, "end of "+id+" in the domains", func() bool {
			said := statuses(heard.Of(id))
			return self.Idle() && strings.Contains("COMPLETED INCOMPLETE IDENTIFICATION_FAILED", said[len(said)-1])
		})
		there, err := agent.List(t.Context())
		must(t, err)
		if len(there) != len(runs) {
			t.Errorf("after %s there are %d containers, want %q", id, len(there), runs)
		}
		for i, c := range there {
			if c.State.Status != ctrmodel.Running || c.Image.Name != registry.Host+"/"+runs[i] {
				t.Errorf("after %s %s is %v, want %q running", id, c.Image.Name, c.State.Status, runs)
			}
		}
		agents.Eventually(t, limit, "current state of the vehicle after "+id, func() bool {
			return strings.HasSuffix(current(north.Messages()), registry.Host+"/"+runs[0])
		})
	}
	update("first", "1", "app:1", "COMPLETED", "app:1")
	update("second", "2", "app:2", "COMPLETED", "app:2")
	update("bad image", "3", "app:9", "INCOMPLETE", "app:2")
	if manager == os.Getenv(managers.Peer) {
		return // it takes no domain back because of another one
	}
	self.Change(func(s *agents.Script) { s.Fail = map[string]string{"DOWNLOAD": "no such bundle"} })
	update("other domain fails", "3", "app:3", "INCOMPLETE", "app:2")
	self.Change(func(s *agents.Script) { s.Fail = map[string]string{"ACTIVATE": "the slot cannot be marked"} })
	update("other domain fails late", "3", "app:3", "INCOMPLETE", "app:2")
	self.Change(func(s *agents.Script) { s.Fail = nil })
	update("last", "3", "app:3", "COMPLETED", "app:3")
}
