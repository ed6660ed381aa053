// SPDX-License-Identifier: Apache-2.0

package updateagent

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sdvbox/platform/durable"
	"sdvbox/platform/mqttbus"
	"sdvbox/platform/updateproto"
)

// What Kanto's agent has to answer it answers also without an activity id, and
// what makes no sense beyond that it drops.
func TestWhatCannotBeUnderstoodIsAnsweredIfThereIsAnybodyToAnswer(t *testing.T) {
	const state, command = "xupdate/desiredstate", "xupdate/desiredstate/command"
	long := strings.Repeat("b", updateproto.MaxName+1)
	of := func(component string) string {
		return `{"activityId":"1","payload":{"domains":[{"id":"x","components":[{"id":"` + component + `","version":"1"}]}]}}`
	}
	for _, tc := range []struct{ topic, message, leda, kanto string }{
		{state, `{"activityId":"1","payload":{"domains":7}}`, "1:IDENTIFYING 1:IDENTIFICATION_FAILED", "1:IDENTIFICATION_FAILED"},
		{state, `{"activityId":"","payload":{"domains":7}}`, "", ":IDENTIFICATION_FAILED"},
		{state, `{"payload":{"domains":[]}}`, "", ":IDENTIFICATION_FAILED"},
		{state, `{"payload":null}`, "", ":IDENTIFICATION_FAILED"},
		{state, `{"activityId":"1","payload":`, "1:IDENTIFYING 1:IDENTIFICATION_FAILED", "1:IDENTIFICATION_FAILED"},
		{state, `{"payload":`, "", ""},
		{state, `null`, "", ""},
		{state, ``, "", ""},
		{state, of(long[1:]), "1:IDENTIFYING", "1:IDENTIFYING"},
		{state, of(long), "1:IDENTIFYING", "1:IDENTIFICATION_FAILED"},
		{command, `{"activityId":"1","payload":{"command":"FOO"}}`, "1:IDENTIFYING 1:IDENTIFICATION_FAILED", ""},
		{command, `{"activityId":"1","payload":{"command":7}}`, "1:IDENTIFYING 1:IDENTIFICATION_FAILED", ""},
		{command, `{"payload":{"command":"FOO"}}`, "", ""},
		{command, `{"activityId":"1","payload":{"command":"DOWNLOAD"}}`, "1:DOWNLOAD_FAILURE", "1:DOWNLOAD_FAILURE"},
		{command, `{"activityId":"1","payload":{"command":"DOWNLOAD","baseline":"` + long + `"}}`, "1:DOWNLOAD_FAILURE", ""},
		{command, `{"activityId":"1","payload":{"command":"DOWNLOAD","baseline":"` + long[1:] + `"}}`, "1:DOWNLOAD_FAILURE", "1:DOWNLOAD_FAILURE"},
	} {
		for kanto, want := range map[bool]string{false: tc.leda, true: tc.kanto} {
			a := Agent{Config: Config{Domain: "x", Kanto: kanto, Capacity: Capacity, Log: slog.New(slog.DiscardHandler)}, m: machine{kanto: kanto}}
			a.receive(&mqttbus.Message{Topic: tc.topic, Payload: []byte(tc.message)})
			var said []string
			effects, _ := a.m.take()
			for _, e := range effects {
				if e.publish != nil {
					said = append(said, e.publish.ID+":"+e.publish.Feedback.Status)
				}
			}
			if got := strings.Join(said, " "); got != want {
				t.Errorf("kanto %t: %.80s is answered %q, want %q", kanto, tc.message, got, want)
			}
		}
	}
}

// slow is a backend that takes its time to stop.
type slow struct {
	Backend
	began chan struct{}
	runs  atomic.Int32
}

func (s *slow) Download(ctx context.Context, _ *Job) []updateproto.Feedback {
	s.runs.Add(1)
	defer s.runs.Add(-1)
	close(s.began)
	<-ctx.Done()
	time.Sleep(50 * time.Millisecond)
	return nil
}

func TestNothingRunsAnyMoreWhenAnAgentHasEnded(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	journal, err := durable.OpenJournal(filepath.Join(t.TempDir(), "journal"), Capacity)
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Close()
	rec, err := json.Marshal(State{Activity: &Activity{ID: "1", Origin: "1", Phase: Downloading, Request: json.RawMessage("{}")}})
	if err == nil {
		err = journal.Save(rec)
	}
	if err != nil {
		t.Fatal(err)
	}
	bus, err := mqttbus.Connect(t.Context(), mqttbus.Config{Broker: "127.0.0.1:1", ClientID: "x"}, log, mqttbus.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	backend := &slow{began: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-backend.began
		cancel()
	}()
	if err := New(Config{Domain: "x", Journal: journal, Bus: bus, Backend: backend, Log: log}).Run(ctx); err != nil {
		t.Error(err)
	}
	if backend.runs.Load() != 0 {
		t.Error("the work still runs")
	}
}
