// SPDX-License-Identifier: Apache-2.0

package rebootgate

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestNewNamesTheKeyThatIsWrong(t *testing.T) {
	for _, test := range []struct{ config, want string }{
		{`{}`, ""},
		{`{"topic": true, "dropIns": "/etc/sdvbox/reboot.d", "windows": [{"days": ["mon", "tue"], "from": "22:00", "to": "05:00"}]}`, ""},
		{`{"windows": [{"from": "00:00", "to": "24:00"}]}`, ""},
		{`{"windows": [{"from": "00:00", "to": "01:00"}, {"from": "22:00", "to": "5:00"}]}`, `windows[1].to: "5:00": expected HH:MM`},
		{`{"windows": [{"from": "24:00", "to": "05:00"}]}`, `windows[0].from: "24:00": expected HH:MM`},
		{`{"windows": [{"from": "10:60", "to": "05:00"}]}`, `windows[0].from: "10:60": expected HH:MM`},
		{`{"windows": [{"to": "05:00"}]}`, `windows[0].from: "": expected HH:MM`},
		{`{"windows": [{"from": "05:00", "to": "05:00"}]}`, `windows[0].to: "05:00": expected another time than in from; a whole day is 00:00 to 24:00`},
		{`{"windows": [{"days": ["mon", "Dienstag"], "from": "05:00", "to": "06:00"}]}`, `windows[0].days: "Dienstag": expected mon, tue, wed, thu, fri, sat or sun`},
		{`{"dropIns": "reboot.d"}`, `dropIns: "reboot.d": expected an absolute path`},
		{`{"dropInTimeout": -1000000000}`, `dropInTimeout: -1s: expected a positive duration`},
	} {
		var c Config
		if err := json.Unmarshal([]byte(test.config), &c); err != nil {
			t.Fatal(err)
		}
		_, err := New(c)
		if test.want == "" && err != nil || test.want != "" && (err == nil || err.Error() != test.want) {
			t.Errorf("%s:\n got %v\nwant %s", test.config, err, test.want)
		}
	}
}

func TestAGateWithoutKeepersIsOpen(t *testing.T) {
	g := mustNew(t, Config{DropIns: filepath.Join(t.TempDir(), "none")})
	g.Said(false, "nobody listens")
	expect(t, g, "")
}

func TestAClosedGateAlwaysObjects(t *testing.T) {
	g := Closed("nobody knows")
	expect(t, g, "nobody knows")
	g.Said(true, "parked")
	expect(t, g, "nobody knows")
}

func TestTheVehiclesLastWordCounts(t *testing.T) {
	g := mustNew(t, Config{Topic: true})
	expect(t, g, "the vehicle is not safe: no word from it yet")
	g.Said(true, "parked")
	expect(t, g, "")
	g.Said(false, "driving")
	expect(t, g, "the vehicle is not safe: driving")
	g.Said(false, "")
	expect(t, g, "the vehicle says that it is not safe")
}

// expect fails the test unless the gate's reason is want; want "" stands for safe.
func expect(t *testing.T, g *Gate, want string) {
	t.Helper()
	safe, reason := g.Safe(t.Context(), time.Now())
	if safe != (want == "") || reason != want {
		t.Errorf("safe %v, reason %q, want %q", safe, reason, want)
	}
}

// dropIn writes a shell script into dir.
func dropIn(t *testing.T, dir, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestEveryDropInHasToAgree(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(dir string) error
		want    string // after the directory
	}{
		{"no", func(dir string) error { dropIn(t, dir, "50-charge", "echo battery at 3 %; exit 1"); return nil }, "/50-charge: battery at 3 %"},
		{"silent", func(dir string) error { dropIn(t, dir, "50-charge", "exit 2"); return nil }, "/50-charge: failed without a word: exit status 2"},
		{"hangs", func(dir string) error { dropIn(t, dir, "50-charge", "sleep 100 & sleep 100"); return nil }, "/50-charge: no answer within 1s"},
		{"forks", func(dir string) error { dropIn(t, dir, "50-charge", "sleep 100 & exit 0"); return nil }, ""},
		{"no program", func(dir string) error { return os.WriteFile(dir+"/50-charge", []byte("\x01\x02"), 0o755) }, "/50-charge: fork/exec DIR/50-charge: exec format error"},
		{"first of two", func(dir string) error {
			dropIn(t, dir, "40-doors", "echo open; exit 1")
			dropIn(t, dir, "50-charge", "echo low; exit 1")
			return nil
		}, "/40-doors: open"},
		{"not executable", func(dir string) error { return os.WriteFile(dir+"/50-charge", nil, 0o644) }, "/50-charge: not executable"},
		{"open to all", func(dir string) error {
			dropIn(t, dir, "50-charge", "exit 0")
			return os.Chmod(dir+"/50-charge", 0o757)
		}, "/50-charge: anybody may write to it, so it is not run"},
		{"directory", func(dir string) error { return os.Mkdir(dir+"/50-charge", 0o755) }, "/50-charge: not a file"},
		{"leads nowhere", func(dir string) error { return os.Symlink("nowhere", dir+"/50-charge") }, "/50-charge: no such file or directory"},
		{"leads to a program", func(dir string) error { return os.Symlink("/bin/true", dir+"/50-charge") }, ""},
		{"hidden", func(dir string) error { dropIn(t, dir, ".50-charge.swp", "exit 1"); return nil }, ""},
	} {
		dir := t.TempDir()
		if err := test.prepare(dir); err != nil {
			t.Fatal(err)
		}
		dropIn(t, dir, "10-parked", "exit 0")
		dropIn(t, dir, "90-last", "touch "+dir+"/.asked")
		want := test.want
		if want != "" {
			want = dir + strings.ReplaceAll(want, "DIR", dir)
		}
		g := mustNew(t, Config{DropIns: dir, DropInTimeout: time.Second})
		start := time.Now()
		if safe, reason := g.Safe(t.Context(), start); safe != (want == "") || reason != want {
			t.Errorf("%s: safe %v, reason %q, want %q", test.name, safe, reason, want)
		}
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("%s: took %v", test.name, took)
		}
		if _, err := os.Stat(dir + "/.asked"); (err == nil) != (want == "") {
			t.Errorf("%s: the last program: %v", test.name, err)
		}
	}
}

func TestAnUnreadableDirectoryObjects(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, mustNew(t, Config{DropIns: file}), "open "+file+": not a directory")
}

func TestProgramsAreNotAskedInVain(t *testing.T) {
	dir := t.TempDir()
	dropIn(t, dir, "ask-driver", "touch "+dir+"/.asked")
	g := mustNew(t, Config{Topic: true, DropIns: dir, Windows: []Window{{From: "01:00", To: "02:00"}}})
	g.Said(false, "driving")
	_, reason := g.Safe(t.Context(), time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC))
	if want := "outside of the hours of maintenance, which begin again on Sun 22 Nov at 01:00 UTC; the vehicle is not safe: driving"; reason != want {
		t.Errorf("got %q, want %q", reason, want)
	}
	if _, err := os.Stat(dir + "/.asked"); err == nil {
		t.Error("the driver was asked though the answer was known")
	}
}

func TestTheVehicleMayDriveOffWhileProgramsRun(t *testing.T) {
	dir := t.TempDir()
	dropIn(t, dir, "ask-driver", "touch "+dir+"/.asked; while [ ! -e "+dir+"/.answer ]; do sleep 0.01; done")
	g := mustNew(t, Config{Topic: true, DropIns: dir})
	g.Said(true, "parked")
	go func() {
		for {
			if _, err := os.Stat(dir + "/.asked"); err == nil || t.Context().Err() != nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		g.Said(false, "driving")
		os.WriteFile(dir+"/.answer", nil, 0o600)
	}()
	expect(t, g, "the vehicle is not safe: driving")
}

func TestTheEndOfTheContextIsNoConsent(t *testing.T) {
	dir := t.TempDir()
	dropIn(t, dir, "slow", "sleep 100")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(errors.New("shutting down")) })
	safe, reason := mustNew(t, Config{DropIns: dir}).Safe(ctx, time.Now())
	if want := dir + "/slow: shutting down"; safe || reason != want {
		t.Errorf("safe %v, reason %q, want %q", safe, reason, want)
	}
}
