// SPDX-License-Identifier: Apache-2.0

package ctrtwin

import (
	"context"
	"encoding/json"
	"math"
	"runtime"
	"strings"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/twin"
)

const (
	shortest = time.Second      // between two reports
	patience = 10 * time.Second // with an engine that is to tell what containers use
)

// meter tells what containers use, as often as it has been asked to.
type meter struct {
	ticker  *time.Ticker // nil: not at all
	filter  []filter
	turn    int  // of requests
	busy    bool // with measuring
	first   bool // measurement of this turn, to compare the next one with
	samples map[string]sample
}

// sample is how much of the processors a container had used.
type sample struct {
	cpu time.Duration
	at  time.Time
}

// filter chooses measurements.
type filter struct {
	Originator string   `json:"originator"` // empty: all
	ID         []string `json:"id"`         // whole, or how they begin; empty: all
}

type report struct {
	Snapshot  []snapshot `json:"snapshot"`
	Timestamp int64      `json:"timestamp"` // seconds
}

type snapshot struct {
	Originator   string        `json:"originator"`
	Measurements []measurement `json:"measurements"`
}

type measurement struct {
	ID    string  `json:"id"`
	Value float64 `json:"value"`
}

// request takes what the meter is asked for, in place of what was before.
func (t *Twin) request(ctx context.Context, op twin.Operation) error {
	if op.Name != "request" {
		return unknown(op)
	}
	var v struct {
		Frequency json.RawMessage `json:"frequency"`
		Filter    []filter        `json:"filter"`
	}
	if err := value(op, &v); err != nil {
		return err
	}
	every, err := frequency(v.Frequency)
	if err != nil {
		return err
	}
	m := &t.meter
	m.stop()
	if every > 0 {
		m.filter, m.first, m.ticker = v.Filter, true, time.NewTicker(max(every, shortest))
		t.measure(ctx)
	}
	return nil
}

// frequency reads a duration such as "5s", or a number of seconds.
func frequency(data json.RawMessage) (time.Duration, error) {
	var text string
	var seconds float64
	switch {
	case data == nil || json.Unmarshal(data, &seconds) == nil:
		return time.Duration(min(max(seconds, 0), math.MaxInt32) * float64(time.Second)), nil
	case json.Unmarshal(data, &text) == nil:
		if d, err := time.ParseDuration(text); err == nil {
			return d, nil
		}
	}
	return 0, twin.Invalid("frequency %.40s: expected a duration such as \"5s\", or seconds", data)
}

func (m *meter) stop() {
	if m.ticker != nil {
		m.ticker.Stop()
	}
	m.turn++
	m.ticker, m.filter, m.first, m.samples = nil, nil, false, map[string]sample{}
}

// due tells when to measure.
func (m *meter) due() <-chan time.Time {
	if m.ticker == nil || m.busy {
		return nil
	}
	return m.ticker.C
}

// happened takes note of processes that have just begun, and have used nothing yet.
func (m *meter) happened(ev ctrmodel.Event) {
	switch {
	case ev.Action == ctrmodel.ActionRunning && m.ticker != nil:
		m.samples[ev.Container.ID] = sample{at: time.Now()}
	case !ev.Container.State.HasProcess():
		delete(m.samples, ev.Container.ID)
	}
}

// measure finds out what containers use, once at a time.
func (t *Twin) measure(ctx context.Context) {
	m := &t.meter
	if m.busy {
		return
	}
	m.busy = true
	turn := m.turn
	var wanted []*ctrmodel.Container
	for _, c := range t.sorted() {
		if c.State.HasProcess() {
			wanted = append(wanted, c)
		}
	}
	t.others.Go(func() {
		brief, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		stats := make([]ctrmodel.Stats, len(wanted))
		for i, c := range wanted {
			stats[i], _ = t.engine.Stats(brief, c.ID) // else without time: it has just ended
		}
		t.do(ctx, func() {
			m.busy = false
			if m.turn == turn {
				t.report(wanted, stats)
			} else if m.first {
				t.measure(ctx)
			}
		})
	})
}

// report publishes what has been measured.
func (t *Twin) report(measured []*ctrmodel.Container, stats []ctrmodel.Stats) {
	m := &t.meter
	var r report
	for i, c := range measured {
		s := stats[i]
		if is := t.containers[c.ID]; s.Time.IsZero() || is == nil || !is.State.HasProcess() {
			continue
		}
		all := m.measurements(c, s)
		m.samples[c.ID] = sample{s.CPU, s.Time}
		if some := m.chosen(containerPrefix+c.ID, all); len(some) > 0 {
			r.Snapshot = append(r.Snapshot, snapshot{containerPrefix + c.ID, some})
		}
		r.Timestamp = s.Time.Unix()
	}
	first := m.first
	m.first = false
	if first || len(r.Snapshot) == 0 || !t.live || !t.out.up {
		return
	}
	data, err := t.feature(Metrics).Message("data", "", r)
	t.put(outgoing{topic: t.topic, data: data, latest: true}, err)
}

// measurements are those of a container, in their usual order.
func (m *meter) measurements(c *ctrmodel.Container, s ctrmodel.Stats) []measurement {
	var all []measurement
	add := func(id string, value float64) { all = append(all, measurement{id, math.Round(value*1000) / 1000}) }
	if last, ok := m.samples[c.ID]; ok && s.Time.After(last.at) {
		used := s.CPU
		if used >= last.cpu { // else it has been started again
			used -= last.cpu
		}
		add("cpu.utilization", min(100, 100*float64(used)/float64(s.Time.Sub(last.at))/float64(runtime.NumCPU())))
	}
	if s.MemoryMax > 0 {
		add("memory.total", float64(s.MemoryMax))
		add("memory.used", float64(s.Memory))
		add("memory.utilization", 100*float64(s.Memory)/float64(s.MemoryMax))
	}
	add("io.readBytes", float64(s.ReadBytes))
	add("io.writeBytes", float64(s.WriteBytes))
	if c.HostConfig.NetworkMode == ctrmodel.BridgeNetwork {
		add("net.readBytes", float64(s.NetRead))
		add("net.writeBytes", float64(s.NetWritten))
	}
	if s.PIDs > 0 {
		add("pids", float64(s.PIDs))
	}
	return all
}

// chosen are those measurements that the filter lets through.
func (m *meter) chosen(originator string, all []measurement) []measurement {
	if len(m.filter) == 0 {
		return all
	}
	var some []measurement
	for _, x := range all {
		for _, f := range m.filter {
			if f.lets(originator, x.ID) {
				some = append(some, x)
				break
			}
		}
	}
	return some
}

func (f filter) lets(originator, id string) bool {
	if f.Originator != "" && f.Originator != originator {
		return false
	}
	for _, want := range f.ID {
		if want == id || strings.HasPrefix(id, strings.Trim(want, "*")) {
			return true
		}
	}
	return len(f.ID) == 0
}
