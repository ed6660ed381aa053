// SPDX-License-Identifier: Apache-2.0

package updatemanager

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"sdvbox/platform/daemon"
	"sdvbox/platform/manager"
	"sdvbox/platform/metrics"
	"sdvbox/platform/orchestrator"
	"sdvbox/platform/updateproto"
)

// lookEvery is how often the observer looks at the history. In that time fewer activities end than the history keeps.
const lookEvery = 2 * time.Second

// observer tells what the manager does: the service manager in a line, Prometheus in numbers.
type observer struct {
	manager *manager.Manager
	version string

	mu      sync.Mutex
	last    orchestrator.Entry // that has been counted
	ended   map[string]uint64  // activities, by terminal status
	seconds float64            // that they took
}

// newObserver counts from now on; what the history has already is of former processes.
func newObserver(m *manager.Manager, version string) *observer {
	o := &observer{manager: m, version: version, ended: map[string]uint64{
		updateproto.StatusCompleted: 0, updateproto.StatusIncomplete: 0, updateproto.StatusIdentificationFailed: 0,
	}}
	if list := m.History(); len(list) > 0 {
		o.last = list[len(list)-1]
	}
	return o
}

// run keeps the status line up to date until ctx ends.
func (o *observer) run(ctx context.Context, n *daemon.Notifier) {
	said := ""
	for {
		if line := statusLine(o.manager.Status()); line != said {
			said = line
			n.Status(line)
		}
		o.count(o.manager.History())
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookEvery):
		}
	}
}

// count counts the activities that have ended since the last time.
func (o *observer) count(list []orchestrator.Entry) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range slices.Backward(list) {
		if e.ID == o.last.ID && e.Ended == o.last.Ended {
			break
		}
		o.ended[e.Status]++
		o.seconds += max(0, float64(e.Ended-e.Started)/1000)
	}
	if len(list) > 0 {
		o.last = list[len(list)-1]
	}
}

// metrics returns all numbers as Prometheus wants them.
func (o *observer) metrics(now time.Time) []byte {
	o.count(o.manager.History())
	s, c := o.manager.Status(), o.manager.Counters()
	o.mu.Lock()
	defer o.mu.Unlock()
	return text(s, c, o.ended, o.seconds, o.version, now)
}

func text(s orchestrator.Status, c manager.Counters, ended map[string]uint64, seconds float64, version string, now time.Time) []byte {
	var t metrics.Text
	t.Gauge("update_manager_info", "The version that runs.", 1, "version", version)
	t.Gauge("update_manager_bus_connected", "Whether there is a connection to the broker.", number(c.Up))
	t.Counter("update_manager_bus_connects_total", "Connections to the broker.", float64(c.Connects))
	t.Counter("update_manager_messages_total", "Messages received.", float64(c.Messages))
	t.Counter("update_manager_malformed_messages_total", "Messages that could not be understood.", float64(c.Malformed))
	var all uint64
	for _, outcome := range slices.Sorted(maps.Keys(ended)) {
		all += ended[outcome]
		t.Counter("update_manager_activities_total", "Activities that have ended, by terminal status.", float64(ended[outcome]), "outcome", outcome)
	}
	t.Summary("update_manager_activity_seconds", "How long the activities that have ended took.", seconds, all)
	for _, phase := range phases() {
		t.Gauge("update_manager_phase", "1 for the phase under way.", number(phase == s.Phase), "phase", phase)
	}
	running := 0.0
	if s.Since != 0 {
		running = max(0, now.Sub(time.UnixMilli(s.Since)).Seconds())
	}
	t.Gauge("update_manager_activity_running_seconds", "For how long the activity under way has been.", running)
	return t.Bytes()
}

func phases() []string {
	return []string{
		idle, string(orchestrator.Identification), string(orchestrator.Download), string(orchestrator.Update), string(orchestrator.Activate),
		string(orchestrator.Restart), string(orchestrator.Verify), string(orchestrator.Cleanup), string(orchestrator.Ending),
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// statusLine is what "systemctl status" shows.
func statusLine(s orchestrator.Status) string {
	var parts []string
	if !s.Connected {
		parts = append(parts, "not connected to the bus")
	}
	if s.ActivityID == "" && s.Phase == idle {
		parts = append(parts, "no activity")
	} else {
		parts = append(parts, fmt.Sprintf("activity %q: %s", s.ActivityID, s.Phase))
	}
	if s.Waiting != "" {
		parts = append(parts, "waits for "+s.Waiting)
	}
	return strings.Join(parts, ", ")
}
