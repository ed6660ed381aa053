// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"sdvbox/platform/durable"
	"sdvbox/platform/manager"
	"sdvbox/platform/mqttbus"
	"sdvbox/platform/orchestrator"
	"sdvbox/platform/rebootgate"
	"sdvbox/testing/agents"
	"sdvbox/testing/broker"
)

const (
	domains    = 12
	limit      = time.Minute            // for one update and what comes after it
	growth     = 1.2                    // of the heap
	readTime   = 500 * time.Millisecond // until an agent is asked again
	cancelled  = 20                     // one update in so many is cancelled
	incomplete = 5                      // and in one in so many a domain fails
)

// TestUpdatesLeaveNothingBehind does a thousand updates where it may take long and races are looked for, and some elsewhere.
func TestUpdatesLeaveNothingBehind(t *testing.T) {
	warm, updates, restart := 5, 20, 10
	if os.Getenv("SDVBOX_LONG") == "1" && race {
		// The history of the manager has to be full.
		warm, updates, restart = 110, 1000, 50
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	s := &soak{T: t, rand: rand.New(rand.NewPCG(seed, 0)), broker: broker.Start(t, broker.Options{Config: "max_queued_messages 0"})}
	for n := range domains {
		style := []agents.Style{agents.Original, agents.Leda, agents.Resuming}[n%3]
		s.agents = append(s.agents, agents.Start(t, s.broker.URL(), agents.Script{Domain: domain(n), Style: style, Progress: 2}))
	}
	s.north = agents.Watch(t, s.broker.URL(), "vehicle")
	alone := settled()
	stop := s.start()

	for n := range warm {
		s.update(n, false)
	}
	idle, before := settled(), heap()
	begin := time.Now()
	for n := range updates {
		s.update(warm+n, n%restart == restart/2)
	}
	t.Logf("%d updates of %d domains in %s, race detector %v", updates, domains, time.Since(begin).Round(time.Second), race)
	agents.Eventually(t, limit, fmt.Sprintf("%d goroutines, as before the updates", idle), func() bool { return runtime.NumGoroutine() <= idle })
	after := heap()
	t.Logf("goroutines %d, heap %d KiB before and %d KiB after", idle, before>>10, after>>10)
	if float64(after) > growth*float64(before) {
		t.Errorf("the heap has grown from %d to %d bytes", before, after)
	}
	stop()
	agents.Eventually(t, limit, fmt.Sprintf("%d goroutines, as before the manager", alone), func() bool { return runtime.NumGoroutine() <= alone })
}

func domain(n int) string { return fmt.Sprintf("domain%d", n) }

// settled returns how many goroutines there are when all is quiet.
func settled() int {
	time.Sleep(time.Second)
	return runtime.NumGoroutine()
}

// heap returns how much memory is in use.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what had a finalizer
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// soak is the vehicle.
type soak struct {
	*testing.T
	rand    *rand.Rand
	broker  *broker.Broker
	agents  []*agents.Agent
	north   *agents.Manager
	manager *manager.Manager
}

// start starts the manager and returns how to stop it.
func (s *soak) start() (stop func()) {
	s.Helper()
	c := manager.Config{
		Domain:           "vehicle",
		Agents:           map[string]orchestrator.Agent{},
		FeedbackInterval: 10 * time.Millisecond,
		Orchestrator: orchestrator.Config{
			FailurePolicy: orchestrator.All,
			PhaseTimeout:  20 * time.Second,
			VerifyTimeout: 20 * time.Second,
		},
	}
	for n := range domains {
		c.Agents[domain(n)] = orchestrator.Agent{ReadTimeout: readTime}
	}
	c.Orchestrator.Agents = c.Agents
	journal, err := durable.OpenJournal(filepath.Join(s.TempDir(), "journal"), orchestrator.Capacity)
	s.must(err)
	gate, err := rebootgate.New(rebootgate.Config{})
	s.must(err)
	log := slog.New(slog.NewTextHandler(s.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	bus, err := mqttbus.Connect(context.Background(), mqttbus.Config{Broker: s.broker.URL(), ClientID: "update-manager"}, log, mqttbus.Options{Subscriptions: manager.Subscriptions(c)})
	s.must(err)
	s.manager = manager.New(c, journal, bus, gate, func(context.Context) error { return errors.New("no reboot here") }, log)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.manager.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				s.Error(err)
			}
		case <-time.After(limit):
			s.Error("the manager does not end")
		}
		bus.Close()
		journal.Close()
	})
	s.Cleanup(stop)
	agents.Eventually(s, limit, "connection of the manager", func() bool { return s.manager.Status().Connected })
	return stop
}

// update does one update of all domains. It has to end with one terminal feedback, and every agent has to be idle after it.
// A restart of the broker in the middle of it changes nothing of that: what the agents were not told is repeated, and what they
// refuse because they know it already is no failure. Their answers wait for the broker.
func (s *soak) update(n int, restart bool) {
	s.Helper()
	id := fmt.Sprint("update-", n)
	s.north.Forget()
	var targets []agents.Target
	for d, a := range s.agents {
		a.Forget()
		targets = append(targets, agents.Target{Domain: domain(d), Component: "c", Version: fmt.Sprint(n + 1)})
	}
	want := "COMPLETED"
	sick := s.agents[s.rand.IntN(domains)]
	switch {
	case s.rand.IntN(incomplete) == 0:
		want = "INCOMPLETE"
		command := []string{"DOWNLOAD", "UPDATE", "ACTIVATE"}[s.rand.IntN(3)]
		sick.Change(func(c *agents.Script) { c.Fail = map[string]string{command: "no " + command} })
		defer sick.Change(func(c *agents.Script) { c.Fail = nil })
	case s.rand.IntN(cancelled) == 0:
		want = "" // it may come too late
		go func(after time.Duration) {
			time.Sleep(after)
			s.manager.Cancel(context.Background(), id)
		}(time.Duration(s.rand.IntN(100)) * time.Millisecond)
	}
	s.north.Apply(id, agents.Desire(targets...))
	if restart {
		time.Sleep(time.Duration(s.rand.IntN(100)) * time.Millisecond)
		s.broker.Restart()
	}
	if f := s.north.End(id, limit); want != "" && f.Status != want {
		s.Errorf("%s ends with %s, want %s: %s", id, f.Status, want, f.Message)
	}
	agents.Eventually(s, limit, id+": all agents idle", func() bool {
		return !slices.ContainsFunc(s.agents, func(a *agents.Agent) bool { return !a.Idle() })
	})
	agents.Eventually(s, limit, id+": manager idle", func() bool { return s.manager.Status().Phase == "idle" })
	var terminal []agents.Feedback
	for _, f := range s.north.Feedback(id) {
		if f.Terminal() && !slices.ContainsFunc(terminal, func(g agents.Feedback) bool { return g.Status == f.Status }) {
			terminal = append(terminal, f)
		}
	}
	if len(terminal) != 1 {
		s.Errorf("%s has %d ends: %+v", id, len(terminal), terminal)
	}
}

func (s *soak) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}
