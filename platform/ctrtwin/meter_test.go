// SPDX-License-Identifier: Apache-2.0

package ctrtwin

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sdvbox/platform/ctrmodel"
)

// measured is a running container that has used a certain part of all processors up to now.
func (r *rig) measured(id string, s ctrmodel.Stats) {
	r.engine.add(id, id, "x:1", true)
	r.use(id, s)
}

func (r *rig) use(id string, s ctrmodel.Stats) {
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	r.engine.stats[id] = s
}

func processors(d time.Duration) time.Duration { return d * time.Duration(runtime.NumCPU()) }

func TestMetricsAreWrittenAsPrinted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		s := ctrmodel.Stats{CPU: processors(time.Second), Memory: 2097152, MemoryMax: 67108864, NetRead: 4096, NetWritten: 512, PIDs: 3}
		r.measured("5f0c", s)
		r.begin()
		r.request("c1", "Metrics", "request", `{"frequency":"10s","filter":[{"originator":"Container:5f0c","id":["cpu.*","memory.total","memory.used","memory.utilization","net*"]},{"id":["pids"]}]}`)
		const done = `{"topic":"org.example/gateway:vehicle-7:edge:containers/things/live/messages/request","headers":{"correlation-id":"c1"},"path":"/features/Metrics/outbox/messages/request","status":204}`
		r.want("command//" + thing + "/res/c1/204 " + done)
		s.CPU += processors(125 * time.Millisecond) // in 10 s
		r.use("5f0c", s)
		time.Sleep(10 * time.Second)
		data := `{"topic":"org.example/gateway:vehicle-7:edge:containers/things/live/messages/data",` +
			`"headers":{"content-type":"application/json","response-required":false},` +
			`"path":"/features/Metrics/outbox/messages/data",` +
			`"value":{"snapshot":[{"originator":"Container:5f0c","measurements":[` +
			`{"id":"cpu.utilization","value":1.25},{"id":"memory.total","value":67108864},{"id":"memory.used","value":2097152},` +
			`{"id":"memory.utilization","value":3.125},{"id":"net.readBytes","value":4096},{"id":"net.writeBytes","value":512},{"id":"pids","value":3}]}],` +
			`"timestamp":` + fmt.Sprint(time.Now().Unix()) + `}}`
		r.want(events + data)
	})
}

// values are the measurements in a message, by container and name.
func values(message string) map[string]float64 {
	var m struct{ Value report }
	_, payload, _ := strings.Cut(message, " ")
	json.Unmarshal([]byte(payload), &m)
	all := map[string]float64{}
	for _, s := range m.Value.Snapshot {
		for _, x := range s.Measurements {
			all[s.Originator+" "+x.ID] = x.Value
		}
	}
	return all
}

func TestProcessorsAreComparedWithTheReportBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.measured("old", ctrmodel.Stats{CPU: processors(time.Hour)})
		r.engine.add("new", "new", "x:1", false)
		r.begin()
		r.request("1", "Metrics", "request", `{"frequency":2}`)
		synctest.Wait()
		time.Sleep(time.Second)
		r.engine.Start(t.Context(), "new")
		r.use("new", ctrmodel.Stats{CPU: processors(500 * time.Millisecond)}) // of the one second
		r.use("old", ctrmodel.Stats{CPU: processors(time.Hour + time.Second)})
		r.hear()
		time.Sleep(time.Second)
		said := r.hear()
		if len(said) != 1 {
			t.Fatalf("%q", said)
		}
		if v := values(said[0]); v["Container:old cpu.utilization"] != 50 || v["Container:new cpu.utilization"] != 50 {
			t.Errorf("%v", v)
		}
		if _, ok := values(said[0])["Container:old pids"]; ok {
			t.Error("no processes are not worth mentioning")
		}
		// As after a restart that nobody noticed.
		r.use("old", ctrmodel.Stats{CPU: processors(200 * time.Millisecond)})
		time.Sleep(2 * time.Second)
		if v := values(r.hear()[0]); v["Container:old cpu.utilization"] != 10 || v["Container:new cpu.utilization"] != 0 {
			t.Errorf("%v", v)
		}
		r.engine.Stop(t.Context(), "old", ctrmodel.StopOptions{})
		r.engine.Pause(t.Context(), "new")
		r.hear()
		time.Sleep(2 * time.Second)
		if v := values(r.hear()[0]); v["Container:new io.readBytes"] != 0 || len(v) != 5 {
			t.Errorf("only the paused one has something to tell: %v", v)
		}
	})
}

func TestFrequencyOfMetrics(t *testing.T) {
	for _, c := range []struct {
		value string
		count int // in 10 s
	}{
		{`{"frequency":"5s"}`, 2}, {`{"frequency":"2500ms"}`, 4}, {`{"frequency":2}`, 5}, {`{"frequency":2.5}`, 4},
		{`{"frequency":"10ms"}`, 10}, {`{"frequency":0.01}`, 10}, {`{"frequency":1e300}`, 0},
		{`{"frequency":"0s"}`, 0}, {`{"frequency":0}`, 0}, {`{"frequency":-1}`, 0}, {`{"frequency":"-5s"}`, 0}, {`{}`, 0}, {`{"frequency":null}`, 0},
		{`{"frequency":1,"filter":[]}`, 10}, {`{"frequency":1,"filter":null}`, 10}, {`{"frequency":1,"filter":[{}]}`, 10},
		{`{"frequency":1,"filter":[{"id":["memory"]}]}`, 10}, {`{"frequency":1,"filter":[{"id":["*memory*"]}]}`, 10},
		{`{"frequency":1,"filter":[{"id":["swap"]}]}`, 0}, {`{"frequency":1,"filter":[{"originator":"SYSTEM"}]}`, 0},
		{`{"frequency":1,"filter":[{"originator":"SYSTEM"},{"originator":"Container:a","id":["pids"]}]}`, 10},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			r.measured("a", ctrmodel.Stats{MemoryMax: 1, PIDs: 1})
			r.begin()
			r.request("0", "Metrics", "request", `{"frequency":3}`) // the new one takes its place
			r.request("1", "Metrics", "request", c.value)
			r.hear()
			time.Sleep(10*time.Second + time.Millisecond)
			if said := r.hear(); len(said) != c.count {
				t.Errorf("%s: %d messages, want %d", c.value, len(said), c.count)
			}
		})
	}
}

// As when containerd does not answer: the original stood still for good.
func TestMetricsThatTakeLongerThanTheirIntervalDoNotHoldUpAnything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.measured("a", ctrmodel.Stats{PIDs: 1})
		var calls atomic.Int32
		r.engine.before = func(ctx context.Context, what, _ string) error {
			if what != "stats" {
				return nil
			}
			if n := calls.Add(1); n > 1 {
				t.Errorf("%d measurements at a time", n)
			}
			defer calls.Add(-1)
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Second):
			}
			return ctx.Err()
		}
		r.begin()
		for i := range 50 {
			begin := time.Now()
			r.request(fmt.Sprint("on", i), "Metrics", "request", `{"frequency":"1s"}`)
			time.Sleep(time.Duration(i) * 333 * time.Millisecond)
			r.request(fmt.Sprint("off", i), "Metrics", "request", `{"frequency":"0s"}`)
			synctest.Wait()
			if took := time.Since(begin) - time.Duration(i)*333*time.Millisecond; took != 0 {
				t.Fatalf("requests have waited %v", took)
			}
			r.hear()
			time.Sleep(3 * time.Second)
			r.wantGists() // nothing after the end
		}
		r.request("c", "Container:a", "stop", "")
		if said := gists(r.hear()); len(said) != 2 || said[1] != "reply c/204" {
			t.Errorf("%q", said)
		}
	})
}

func TestMetricsGoOnWithTheSameDeviceOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.measured("a", ctrmodel.Stats{PIDs: 1})
		r.begin()
		r.request("1", "Metrics", "request", `{"frequency":1}`)
		r.hear()
		r.down()
		time.Sleep(10 * time.Second)
		r.wantGists()
		r.up()
		r.receive("edge/thing/response", fleetID)
		r.hear()
		time.Sleep(time.Second)
		r.wantGists("Metrics/outbox/messages/data")
		r.receive("edge/thing/response", strings.Replace(fleetID, "vehicle-7", "vehicle-8", 1))
		r.hear()
		time.Sleep(10 * time.Second)
		r.wantGists()
	})
}

func TestMetricsDoNotPileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.measured("a", ctrmodel.Stats{PIDs: 1})
		r.begin()
		r.bus.slow = time.Minute
		r.request("1", "Metrics", "request", `{"frequency":1}`)
		time.Sleep(10*time.Minute + time.Second)
		said := r.hear()
		if len(said) != 10 {
			t.Fatalf("%d messages in 10 minutes at one a minute", len(said))
		}
		var last struct{ Value report }
		_, payload, _ := strings.Cut(said[9], " ")
		json.Unmarshal([]byte(payload), &last)
		if age := time.Now().Unix() - last.Value.Timestamp; age > 62 {
			t.Errorf("the last one is %d s old", age)
		}
	})
}
