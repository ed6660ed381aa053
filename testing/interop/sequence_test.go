// SPDX-License-Identifier: Apache-2.0

// Package interop tests sdvbox against the other programs of its protocol: our update manager drives agents that were written
// from the protocol's description only, and, where peers are named, the original update manager drives our agent, and our
// manager the original agent.
package interop

import (
	"embed"
	"path"
	"strings"
	"testing"
	"time"

	"sdvbox/testing/agents"
	"sdvbox/testing/broker"
	"sdvbox/testing/managers"
)

const limit = 30 * time.Second

//go:embed testdata/*.txt
var golden embed.FS

// sequences are updates of two domains. What is published in each has to be, step by step, what the file of its name says.
var sequences = []struct {
	name             string
	containers, self agents.Script
	text             string // is in the last feedback of our manager
	both             bool   // the original manager does the same
}{
	{"happy", agents.Script{}, agents.Script{Style: agents.Leda}, "", true},
	{"nothing", agents.Script{Installed: versions("app", "2")}, agents.Script{Installed: versions("os-image", "2")}, "", true},
	{"installed-already", agents.Script{}, agents.Script{Style: agents.Leda, Installed: versions("os-image", "2")}, "", false},
	{"download-fails-first", agents.Script{Delay: slow}, agents.Script{Style: agents.Leda, Fail: versions("DOWNLOAD", "no route")}, "self-update: no route", true},
	{"download-fails-last", agents.Script{}, agents.Script{Style: agents.Leda, Delay: slow, Fail: versions("DOWNLOAD", "no route")}, "self-update: no route", false},
	{"identification-fails", agents.Script{Fail: versions(agents.Identify, "no such image")}, agents.Script{Style: agents.Leda}, "containers: no such image", false},
}

const slow = time.Second

func versions(component, version string) map[string]string {
	return map[string]string{component: version}
}

func TestOurManagerSpeaksTheSequencesOfTheProtocol(t *testing.T) {
	ours := managers.Build(t, "update-manager")
	for _, s := range sequences {
		t.Run(s.name, func(t *testing.T) {
			if f := compare(t, ours, s.name, s.containers, s.self); !strings.Contains(f.Message, s.text) || s.text == "" && f.Message != "" {
				t.Errorf("the last message is %q, want %q", f.Message, s.text)
			}
		})
	}
}

// The sequences are right: the original manager speaks them, too. Left out are those in which it hangs or forgets an agent.
func TestTheOriginalManagerSpeaksTheSameSequences(t *testing.T) {
	original := managers.Original(t)
	for _, s := range sequences {
		if s.both {
			t.Run(s.name, func(t *testing.T) { compare(t, original, s.name, s.containers, s.self) })
		}
	}
}

// compare does one update and returns its last feedback.
func compare(t *testing.T, manager, name string, containers, self agents.Script) agents.Feedback {
	t.Parallel()
	b := broker.Start(t, broker.Options{})
	containers.Domain, self.Domain = "containers", "self-update"
	c, s := agents.Start(t, b.URL(), containers), agents.Start(t, b.URL(), self)
	managers.Start(t, manager, b.URL(), managers.Config(b.URL(), t.TempDir(), []string{"containers", "self-update"}, nil))
	all := agents.Record(t, b.URL(), "#")
	north := agents.Watch(t, b.URL(), "vehicle")
	north.Apply("a1", agents.Desire(agents.Target{Domain: "containers", Component: "app", Version: "2"}, agents.Target{Domain: "self-update", Component: "os-image", Version: "2"}))
	end := north.End("a1", limit)
	want, err := golden.ReadFile(path.Join("testdata", name+".txt"))
	must(t, err)
	for begin := time.Now(); agents.Compare(string(want), all.Of("a1")) != "" && time.Since(begin) < limit/3; {
		time.Sleep(50 * time.Millisecond)
	}
	time.Sleep(slow) // nothing may follow
	if d := agents.Compare(string(want), all.Of("a1")); d != "" {
		t.Error(d)
		for _, m := range all.Of("a1") {
			t.Log(m)
		}
	}
	if !c.Idle() || !s.Idle() {
		t.Errorf("left behind: containers idle %v, self-update idle %v", c.Idle(), s.Idle())
	}
	return end
}
