// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/broker"
	"sdvbox/testing/ctragent"
	"sdvbox/testing/ctrd"
)

// BenchmarkMetrics measures what it takes of one processor to tell every second what 50 containers use: of the agent, and of
// containerd and its shims.
func BenchmarkMetrics(b *testing.B) {
	const containers, span = 50, 20 * time.Second
	program := ctragent.Program(b, "sdvbox/testing/fields/probe")
	archive := ctragent.Archive(ctragent.NewImage(image, v1.ImageConfig{Entrypoint: []string{"/probe"}, Cmd: []string{"serve", "7000"}}, map[string][]byte{"probe": program}))
	d := ctrd.Start(b)
	mosquitto := broker.Start(b, broker.Options{})
	a := ctragent.New(b, ctragent.Build(b), d)
	a.Config["log"]["log_level"] = "WARN"
	a.Config["deployment"] = ctragent.Section{"enable": false}
	a.Config["things"] = ctragent.Section{"enable": true, "home_dir": a.Dir}
	a.Config["connection"] = ctragent.Section{"broker_url": "tcp://" + mosquitto.Addr}
	load(b, d, "kanto-cm", archive)
	a.Launch()
	m := &measured{b: b, client: a.Client, ctrd: d, pid: a.Pid}
	m.ready()
	for range containers {
		c, err := a.Create(b.Context(), &ctrmodel.Container{Image: ctrmodel.Image{Name: image}})
		check(b, err)
		check(b, a.Start(b.Context(), c.ID))
	}
	const thing = "ns:device:edge:containers"
	cloud := mosquitto.Client(b, "e/t/"+thing)
	cloud.Publish("edge/thing/response", `{"deviceId":"ns:device","tenantId":"t"}`)
	for range containers + 3 {
		cloud.Next(10 * time.Second)
	}
	request := func(frequency string) {
		cloud.Publish("command//"+thing+"/req/1/request", fmt.Sprintf(`{"topic":"ns/device:edge:containers/things/live/messages/request",
			"headers":{"correlation-id":%q,"content-type":"application/json"},"path":"/features/Metrics/inbox/messages/request","value":{"frequency":%[1]q}}`, frequency))
	}
	used := func() (agent, rest time.Duration) {
		agent, rest = processorTime(b, a.Pid()), processorTime(b, d.Pid())
		for _, s := range d.Shims() {
			rest += processorTime(b, s.Pid)
		}
		return agent, rest
	}
	percent := func(d time.Duration) float64 { return 100 * d.Seconds() / span.Seconds() }
	time.Sleep(10 * time.Second) // until all is quiet
	for b.Loop() {
		agent0, rest0 := used()
		time.Sleep(span)
		agent1, rest1 := used()
		request("1s")
		cloud.Next(10 * time.Second)
		agent2, rest2 := used()
		time.Sleep(span)
		agent3, rest3 := used()
		messages := 0
		for len(cloud.Messages()) > 0 {
			<-cloud.Messages()
			messages++
		}
		request("0s")
		time.Sleep(2 * time.Second)
		if messages < int(span.Seconds())-1 {
			b.Errorf("%d messages in %v", messages, span)
		}
		m.report(percent(agent1-agent0), "%-of-a-core-idle")
		m.report(percent(rest1-rest0), "%-of-a-core-idle-containerd")
		m.report(percent(agent3-agent2), "%-of-a-core-metrics")
		m.report(percent(rest3-rest2), "%-of-a-core-metrics-containerd")
	}
}

// processorTime is what a process has used.
func processorTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	check(b, err)
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var ticks int
	for _, field := range f[11:13] { // utime and stime
		n, err := strconv.Atoi(field)
		check(b, err)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
