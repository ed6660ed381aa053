// SPDX-License-Identifier: Apache-2.0

package ctrtwin

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"sdvbox/platform/mqttbus"
)

type noServer struct{}

func (noServer) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("no network")
}

// FuzzMessages has a twin go on whatever it receives.
func FuzzMessages(f *testing.F) {
	dir := f.TempDir()
	engine := newFakeEngine()
	engine.add("5f0c", "radio", "x:1", true)
	bus := &fakeBus{events: make(chan mqttbus.Event)}
	cfg := Config{Features: Features(), Dir: dir, Client: &http.Client{Transport: noServer{}}, GiveUp: time.Millisecond, Log: slog.New(slog.DiscardHandler)}
	twin, err := New(cfg, engine, bus)
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- twin.Run(ctx) }()
	f.Cleanup(func() { cancel(); <-ended })
	receive := func(topic, payload string) {
		bus.events <- mqttbus.Event{Kind: mqttbus.Received, Message: &mqttbus.Message{Topic: topic, Payload: []byte(payload)}}
	}
	bus.events <- mqttbus.Event{Kind: mqttbus.Up}
	receive("edge/thing/response", fleetID)

	for _, c := range []struct{ feature, operation, value string }{
		{"ContainerFactory", "create", `{"imageRef":"x:1","start":true}`},
		{"ContainerFactory", "createWithConfig", `{"imageRef":"x:1","name":"n","config":{"mountPoints":[{}],"devices":[{}],"portMappings":[{}],"restartPolicy":{"retryTimeout":1e300}}}`},
		{"Container:5f0c", "start", ""},
		{"Container:5f0c", "stopWithOptions", `{"timeout":-1,"signal":"SIGKILL","force":true}`},
		{"Container:5f0c", "update", `{"restartPolicy":{"type":"NO"},"resources":{}}`},
		{"Container:5f0c", "rename", `""`},
		{"SoftwareUpdatable", "install", installOf("1", moduleOf("m", `{"download":{"HTTP":{"url":"http://x/"}},"checksums":{"MD5":""}}`))},
		{"SoftwareUpdatable", "remove", `{"software":[{"name":"x"},{}],"forced":true}`},
		{"Metrics", "request", `{"frequency":"1s","filter":[{"originator":"x","id":["*"]}]}`},
	} {
		f.Add("command//"+thing+"/req/1/"+c.operation, requestOf("1", c.feature, c.operation, c.value))
	}
	f.Add("edge/thing/response", `{"deviceId":"a:b"}`)
	f.Add("command//"+thing+"/req//created", `{"topic":"","headers":{"correlation-id":7,"response-required":"true"},"path":""}`)
	f.Fuzz(func(t *testing.T, topic, payload string) {
		receive(topic, payload)
		receive("edge/thing/response", fleetID)
		brief, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if !twin.ask(brief, func() {}) {
			t.Fatal("it does not go on")
		}
		for _, m := range bus.take() {
			if strings.ContainsAny(strings.Fields(m)[0], "+#") {
				t.Errorf("published: %s", m)
			}
		}
		select {
		case err := <-ended:
			t.Fatalf("it has ended: %v", err)
		default:
		}
	})
}
