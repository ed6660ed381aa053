// SPDX-License-Identifier: Apache-2.0

package dropin

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// program writes a shell script and returns its path.
func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// getAway leaves a child behind that is out of reach but holds the output open.
const getAway = `setsid sh -c 'touch $0.away; sleep 8' $0 & while [ ! -e $0.away ]; do sleep 0.01; done`

func TestRunJudgesByExitCodeAndFirstLine(t *testing.T) {
	for _, test := range []struct{ name, script, want string }{
		{"yes", "echo fine", ""},
		{"no", "echo; echo '  no water ' >&2; echo more; exit 3", "no water"},
		{"silent", "exit 7", "failed without a word: exit status 7"},
		{"killed", "kill -9 $$", "failed without a word: signal: killed"},
		{"chatter", "yes | head -c 1000000; exit 1", "y"},
		{"one long line", "yes | tr -d '\\n' | head -c 1000000; exit 1", strings.Repeat("y", 4096)},
		{"child left behind", "sleep 100 & exit 0", ""},
		{"child that got away", getAway, ""},
		{"no and a child that got away", getAway + "; echo no; exit 1", "no"},
	} {
		start := time.Now()
		err := Run(t.Context(), program(t, test.script))
		if test.want == "" && err != nil || test.want != "" && (err == nil || err.Error() != test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
		if took := time.Since(start); took > 6*time.Second {
			t.Errorf("%s: took %v", test.name, took)
		}
	}
	if err := Run(t.Context(), "/nonexistent/program"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing program: %v", err)
	}
}

func TestNothingOfAHangingProgramIsLeft(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	path := program(t, "trap '' TERM INT HUP\n(trap '' TERM INT HUP; sleep 1000) & echo $$ $! >"+pids+".tmp; mv "+pids+".tmp "+pids+"; sleep 1000")
	late := errors.New("too late")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		defer cancel(late)
		for range 1000 {
			if _, err := os.Stat(pids); err == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	if err := Run(ctx, path); err != late {
		t.Errorf("got %v, want the reason for which it was stopped", err)
	}
	expectGone(t, pids)
}

func TestNothingOfAnEndedProgramIsLeft(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	if err := Run(t.Context(), program(t, "sleep 1000 >/dev/null 2>&1 & echo $$ $! >"+pids)); err != nil {
		t.Error(err)
	}
	expectGone(t, pids)
}

// expectGone waits until no process listed in the file runs.
func expectGone(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for field := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil || pid <= 0 {
			t.Fatalf("%q", text)
		}
		for deadline := time.Now().Add(10 * time.Second); running(pid); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("process %d still runs", pid)
				unix.Kill(pid, unix.SIGKILL)
				break
			}
		}
	}
}

// running tells whether the process is there and not merely waits for being reaped by whoever inherited it.
func running(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func TestRunGivesNoSecretsAway(t *testing.T) {
	t.Setenv("MQTT_CONN_PASSWORD", "secret")
	t.Setenv("NOTIFY_SOCKET", "/run/notify")
	if err := Run(t.Context(), program(t, `[ -n "$PATH" ] || echo no PATH; env | grep -e secret -e notify; exit 1`)); err == nil || err.Error() != "failed without a word: exit status 1" {
		t.Errorf("its environment: %v", err)
	}
}
