// SPDX-License-Identifier: Apache-2.0

package updatemanager

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sdvbox/platform/applet"
	"sdvbox/platform/control"
	"sdvbox/platform/durable"
	"sdvbox/platform/orchestrator"
	"sdvbox/platform/updateproto"
)

type result struct {
	Code           int
	Stdout, Stderr string
}

// call runs the applet in this process.
func call(stdin string, args ...string) result {
	var out, err bytes.Buffer
	table := []applet.Command{Command()}
	code := applet.Main(table, append([]string{name}, args...), strings.NewReader(stdin), &out, &err)
	return result{code, out.String(), err.String()}
}

func busy() orchestrator.Status {
	return orchestrator.Status{
		ActivityID: "a1", Phase: "download", Since: time.Now().Add(-90 * time.Second).UnixMilli(), Waiting: "self-update (DOWNLOAD)",
		Connected: true, Next: "a2",
		Domains: []orchestrator.DomainStatus{
			{ID: "containers", State: "downloaded", Progress: 100},
			{ID: "self-update", State: "identified", Order: "DOWNLOAD", Progress: 40, Message: "red\x1b[31m"},
		},
	}
}

// serveAt answers at a socket as the daemon would, and returns its path.
func serveAt(t *testing.T, h control.Handlers) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control.sock")
	l, err := control.Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- control.Serve(ctx, l, h) }()
	t.Cleanup(func() { cancel(); <-done })
	return path
}

func answer(v any) func(context.Context, url.Values) (any, error) {
	return func(context.Context, url.Values) (any, error) { return v, nil }
}

func TestStatusTellsWhatIsUnderWay(t *testing.T) {
	socket := serveAt(t, control.Handlers{"GET /status": answer(&Overview{true, "1.2", busy()})})
	got := call("", "status", "--control-socket", socket)
	want := result{exitBusy, `daemon:     runs (1.2), connected to the bus
activity:   a1
phase:      download
for:        1m30s
waits for:  self-update (DOWNLOAD)
next:       a2

DOMAIN       STATE       ORDER     PROGRESS  MESSAGE
containers   downloaded  -         100%      
self-update  identified  DOWNLOAD  40%       red?[31m
`, ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	got = call("", "status", "--output=json", "--control-socket", socket)
	var o Overview
	if err := json.Unmarshal([]byte(got.Stdout), &o); err != nil || got.Code != exitBusy || !o.Running || o.Domains[1].Progress != 40 {
		t.Errorf("%+v, %v", got, err)
	}

	socket = serveAt(t, control.Handlers{"GET /status": answer(&Overview{true, "1.2", orchestrator.Status{Phase: idle}})})
	got = call("", "status", "--control-socket", socket)
	want = result{0, "daemon:    runs (1.2), not connected to the bus\nactivity:  none (idle)\n", ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// state makes a journal in a state directory, which is returned.
func state(t *testing.T, s orchestrator.State) string {
	t.Helper()
	dir := t.TempDir()
	j, err := durable.OpenJournal(filepath.Join(dir, journalFile), 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	rec, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Save(rec); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestJournalAnswersForADaemonThatIsDown(t *testing.T) {
	m := orchestrator.NewMachine(orchestrator.Config{Agents: map[string]orchestrator.Agent{"containers": {}}}, orchestrator.State{})
	m.Handle(time.Now(), orchestrator.Started{Boot: "b"})
	m.Handle(time.Now(), orchestrator.Connected{})
	m.Handle(time.Now(), orchestrator.Requested{ID: "a1", State: updateproto.DesiredState{Domains: []updateproto.Domain{{ID: "containers"}}}})
	s := m.State
	s.History = entries(2)
	down := []string{"--control-socket", "/nowhere/socket", "--state-dir", state(t, s)}

	got := call("", append([]string{"status"}, down...)...)
	if got.Code != exitDown || !strings.Contains(got.Stdout, "does not run") || !strings.Contains(got.Stdout, "a1") ||
		!strings.Contains(got.Stdout, "containers  identifying") {
		t.Errorf("status: %+v", got)
	}
	got = call("", append([]string{"history"}, down...)...)
	if got.Code != 0 || !strings.Contains(got.Stdout, "does not run") || !strings.Contains(got.Stdout, "old2") {
		t.Errorf("history: %+v", got)
	}
	got = call("", append([]string{"cancel"}, down[:2]...)...)
	if got.Code != exitDown || !strings.Contains(got.Stderr, "cannot cancel: not running: nobody listens at /nowhere/socket") {
		t.Errorf("cancel: %+v", got)
	}

	// There may be no state at all, or one that nobody can read.
	down[3] = t.TempDir()
	for _, command := range []string{"status", "history"} {
		got = call("", append([]string{command}, down...)...)
		want := result{exitDown, "", "update-manager: the daemon does not run, and has left no state in " + down[3] + "\n"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", command, diff)
		}
	}
	if err := os.WriteFile(filepath.Join(down[3], journalFile), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got = call("", append([]string{"status"}, down...)...); got.Code != exitDown || !strings.Contains(got.Stdout, "activity:  none") {
		t.Errorf("status with a broken journal: %+v", got)
	}
}

// entries makes n entries of a history: old1, old2 …
func entries(n int) []orchestrator.Entry {
	var list []orchestrator.Entry
	for i := range n {
		at := time.Date(2026, 11, 21, 9, i, 0, 0, time.Local)
		list = append(list, orchestrator.Entry{
			ID: fmt.Sprintf("old%d", i+1), Started: at.UnixMilli(), Ended: at.Add(61500 * time.Millisecond).UnixMilli(),
			Status: updateproto.StatusIncomplete, Message: "self-update: no space", Domains: []orchestrator.EntryDomain{
				{ID: "containers", State: orchestrator.ResultRolledBack}, {ID: "self-update", State: orchestrator.ResultFailed, Message: "no space"},
			},
		})
	}
	return list
}

func TestHistoryShowsDurationAndOutcome(t *testing.T) {
	socket := serveAt(t, control.Handlers{"GET /history": answer(&Record{true, entries(3)})})
	got := call("", "history", "--last=1", "--control-socket", socket)
	want := result{0, `ENDED                TOOK    STATUS       ACTIVITY     MESSAGE
2026-11-21 09:03:01  1m1.5s  INCOMPLETE   old3         self-update: no space
                             rolled back  containers   
                             failed       self-update  no space
`, ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, test := range []struct {
		args string
		code int
		want []string // activities
	}{
		{"", 0, []string{"old1", "old2", "old3"}},
		{"-n 2", 0, []string{"old2", "old3"}},
		{"-n 0", 0, []string{}},
		{"old1", 0, []string{"old1"}},
		{"other", exitNothing, nil},
		{"a b", exitUsage, nil},
		{"-n -1", exitUsage, nil},
	} {
		got := call("", append(strings.Fields("history --output json --control-socket "+socket), strings.Fields(test.args)...)...)
		var r Record
		if got.Code == 0 {
			if err := json.Unmarshal([]byte(got.Stdout), &r); err != nil {
				t.Errorf("%s: %v", test.args, err)
			}
		}
		var ids []string
		if r.Activities != nil {
			ids = []string{}
		}
		for _, e := range r.Activities {
			ids = append(ids, e.ID)
		}
		if diff := cmp.Diff(test.want, ids); diff != "" || got.Code != test.code {
			t.Errorf("history %s: exit code %d, want %d (-want +got):\n%s%s", test.args, got.Code, test.code, diff, got.Stderr)
		}
	}
	socket = serveAt(t, control.Handlers{"GET /history": answer(&Record{Running: true})})
	if got := call("", "history", "--control-socket", socket); got.Stdout != "No activity has ended yet.\n" {
		t.Errorf("empty history: %+v", got)
	}
}

func TestCancelNamesTheActivity(t *testing.T) {
	var asked []string
	socket := serveAt(t, control.Handlers{"POST /cancel": func(_ context.Context, q url.Values) (any, error) {
		asked = append(asked, q.Get("activity"))
		switch q.Get("activity") {
		case "other":
			return nil, control.Refusal(`activity "other" is not under way, "a1" is`)
		case "broken":
			return nil, fmt.Errorf("the disk is gone")
		}
		return &Overview{true, "1.2", busy()}, nil
	}})
	for _, test := range []struct {
		args string
		want result
	}{
		{"other", result{exitNothing, "", `update-manager: cannot cancel: activity "other" is not under way, "a1" is` + "\n"}},
		{"broken", result{1, "", "update-manager: cannot cancel: the disk is gone\n"}},
		{"a b", result{exitUsage, "", "update-manager: expected at most one activity id\n"}},
	} {
		got := call("", append(strings.Fields("cancel --control-socket "+socket), strings.Fields(test.args)...)...)
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("cancel %s (-want +got):\n%s", test.args, diff)
		}
	}
	for _, id := range []string{"", "a 1&b"} {
		args := []string{"cancel", "--control-socket", socket}
		if id != "" {
			args = append(args, id)
		}
		if got := call("", args...); got.Code != 0 || !strings.Contains(got.Stdout, "activity:   a1") {
			t.Errorf("cancel %q: %+v", id, got)
		}
	}
	if diff := cmp.Diff([]string{"other", "broken", "", "a 1&b"}, asked); diff != "" {
		t.Errorf("the daemon was asked (-want +got):\n%s", diff)
	}
}
