// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/testing/agents"
	"sdvbox/testing/broker"
	"sdvbox/testing/managers"
)

// updates is how often each manager is asked, in turn with the other.
const updates = 300

// BenchmarkUpdateManager measures the memory of an idle update manager, and how long it takes from a desired state to the first
// feedback and to the desired states of the agents, with its journal on a disk. If PEER_UPDATE_MANAGER names the original, that
// is measured in turn with ours.
func BenchmarkUpdateManager(b *testing.B) {
	list := []*measured{measure(b, "", managers.Build(b, "update-manager"))}
	if path := os.Getenv(managers.Peer); path != "" {
		list = append(list, measure(b, "-original", path))
	} else {
		b.Logf("%s does not name the original update manager, nothing to compare with", managers.Peer)
	}
	for b.Loop() {
		time.Sleep(5 * time.Second)
		for _, m := range list {
			b.ReportMetric(float64(m.manager.PSS())/(1<<20), "MiB-PSS"+m.suffix)
		}
		for n := range updates {
			for _, m := range list {
				m.update(fmt.Sprint("bench-", n))
			}
		}
		for _, m := range list {
			b.ReportMetric(milliseconds(m.feedback, 50), "ms-feedback-median"+m.suffix)
			b.ReportMetric(milliseconds(m.feedback, 99), "ms-feedback-p99"+m.suffix)
			b.ReportMetric(milliseconds(m.agents, 50), "ms-agents-median"+m.suffix)
			b.ReportMetric(milliseconds(m.agents, 99), "ms-agents-p99"+m.suffix)
			b.ReportMetric(float64(m.manager.PSS())/(1<<20), "MiB-PSS-busy"+m.suffix)
		}
	}
}

// measured is an update manager with a broker and agents of its own. The agents have nothing to do.
type measured struct {
	b                *testing.B
	suffix           string // of what is reported
	manager          *managers.Manager
	bus              *agents.Recorder
	feedback, agents []float64 // seconds
}

func measure(b *testing.B, suffix, path string) *measured {
	dir := b.TempDir()
	var fs unix.Statfs_t
	check(b, unix.Statfs(dir, &fs))
	if fs.Type == unix.TMPFS_MAGIC {
		b.Fatal("temporary files are kept in memory, expected TMPDIR to name a directory on a disk")
	}
	broker := broker.Start(b, broker.Options{})
	domains := []string{"containers", "self-update"}
	for _, d := range domains {
		agents.Start(b, broker.URL(), agents.Script{Domain: d, Installed: map[string]string{"c": "1"}})
	}
	return &measured{
		b:       b,
		suffix:  suffix,
		manager: managers.Start(b, path, broker.URL(), managers.Config(broker.URL(), dir, domains, map[string]any{"log": map[string]any{"logLevel": "WARN"}})),
		bus:     agents.Record(b, broker.URL(), "vehicleupdate/desiredstatefeedback", "vehicleupdate/currentstate", "+/desiredstate"),
	}
}

// update does one update up to the current state that follows it.
func (m *measured) update(id string) {
	m.b.Helper()
	m.bus.Forget()
	begin := time.Now()
	m.bus.Publish("vehicleupdate/desiredstate", id, agents.Desire(agents.Target{Domain: "containers", Component: "c", Version: "1"}, agents.Target{Domain: "self-update", Component: "c", Version: "1"}))
	var list []agents.Message
	agents.Eventually(m.b, 30*time.Second, "current state after "+id, func() bool {
		list = m.bus.Of(id)
		return len(list) > 0 && list[len(list)-1].Topic == "vehicleupdate/currentstate"
	})
	first := func(topics ...string) float64 {
		i := slices.IndexFunc(list, func(msg agents.Message) bool { return slices.Contains(topics, msg.Topic) })
		if i < 0 {
			m.b.Fatalf("nothing on %q", topics)
		}
		return list[i].At.Sub(begin).Seconds()
	}
	m.feedback = append(m.feedback, first("vehicleupdate/desiredstatefeedback"))
	m.agents = append(m.agents, max(first("containersupdate/desiredstate"), first("selfupdate/desiredstate")))
}

// milliseconds returns the percentile of times.
func milliseconds(seconds []float64, percent int) float64 {
	s := slices.Sorted(slices.Values(seconds))
	return 1000 * s[min(len(s)*percent/100, len(s)-1)]
}
