// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
	"golang.org/x/sys/unix"

	"sdvbox/platform/systemd/systemdtest"
	"sdvbox/testing/raucd"
)

// judge runs one check and returns its reason, "" when it passes.
func judge(t *testing.T, c Check) string {
	t.Helper()
	r := Run(t.Context(), []Check{c})[0]
	if !r.OK && r.Reason == "" {
		t.Error("failed without a reason")
	}
	return r.Reason
}

// expect fails the test unless reason contains want; want "" stands for a pass.
func expect(t *testing.T, what, reason, want string) {
	t.Helper()
	if want == "" && reason != "" || !strings.Contains(reason, want) {
		t.Errorf("%s: reason %q, want %q", what, reason, want)
	}
}

func TestWritableLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	expect(t, "directory", judge(t, Writable(dir)), "")
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	expect(t, "missing", judge(t, Writable(filepath.Join(dir, "none"))), "no such file")

	killed := filepath.Join(dir, ".sdvbox-health")
	if err := os.WriteFile(killed, []byte("from before a power cut"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, "after a power cut", judge(t, Writable(dir)), "")
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind after a power cut: %v", left)
	}
}

func TestRAUCGateFollowsTheService(t *testing.T) {
	f := raucd.Start(t, raucd.Options{})
	expect(t, "running", judge(t, RAUC(f.Address)), "")
	f.StopService(t)
	expect(t, "stopped", judge(t, RAUC(f.Address)), "not available")
	f.StopBus(t)
	expect(t, "no bus", judge(t, RAUC(f.Address)), "bus")
}

func TestBootTargetNamesTheUnitThatBlocks(t *testing.T) {
	f := systemdtest.Start(t)
	f.Change(func() {
		f.Alias["default.target"] = "graphical.target"
		f.Units["graphical.target"] = systemdtest.Props{"ActiveState": "inactive"}
		f.Jobs = [][3]string{
			{"graphical.target", "start", "waiting"},
			{"block.service", "start", "running"},
			{ConfirmUnit, "start", "running"},
		}
	})
	expect(t, "blocked", judge(t, BootTarget(f.Address)), "graphical.target is inactive, waiting for block.service")
	f.Change(func() { f.Units["graphical.target"] = systemdtest.Props{"ActiveState": "active"} })
	expect(t, "reached", judge(t, BootTarget(f.Address)), "")
	expect(t, "no systemd", judge(t, BootTarget("unix:path=/nonexistent")), "no such file")
}

func TestUnitsWantsEnabledUnitsSettled(t *testing.T) {
	f := systemdtest.Start(t)
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	ago := func(d time.Duration) uint64 { return uint64((time.Duration(now.Nano()) - d) / time.Microsecond) }
	good := systemdtest.Props{"ActiveState": "active", "SubState": "running", "Result": "success", "ActiveEnterTimestampMonotonic": ago(time.Minute)}
	f.Change(func() {
		f.Units["a.service"] = good
		f.Units[ConfirmUnit] = systemdtest.Props{"ActiveState": "activating", "SubState": "start"}
		f.Units["other.service"] = systemdtest.Props{"ActiveState": "failed", "SubState": "failed", "Result": "timeout"}
		for _, name := range []string{"a.service", "b.service", "b@.service", ConfirmUnit, "other.service"} {
			f.Enabled = append(f.Enabled, "/usr/lib/systemd/system/"+name)
		}
	})
	check := Units(f.Address, []string{"a.service", "b*.service", "sdvbox-*.service"}, 5*time.Second)
	for _, test := range []struct {
		name string
		b    systemdtest.Props
		want string
	}{
		{"running", good, ""},
		{"just restarted", systemdtest.Props{"ActiveState": "active", "SubState": "running", "Result": "success", "ActiveEnterTimestampMonotonic": ago(time.Second)}, "b.service is active for"},
		{"dying", systemdtest.Props{"ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code"}, "b.service is activating (auto-restart, exit-code)"},
		{"failed", systemdtest.Props{"ActiveState": "failed", "SubState": "failed", "Result": "watchdog"}, "b.service is failed (failed, watchdog)"},
		{"not started", systemdtest.Props{"ActiveState": "inactive", "SubState": "dead", "Result": "success"}, "b.service is inactive (dead)"},
		{"condition", systemdtest.Props{"ActiveState": "inactive", "ConditionResult": false, "ConditionTimestampMonotonic": ago(time.Second)}, ""},
		{"oneshot", systemdtest.Props{"ActiveState": "inactive", "Result": "success", "Type": "oneshot", "ExecMainExitTimestampMonotonic": ago(time.Second)}, ""},
	} {
		f.Change(func() { f.Units["b.service"] = test.b })
		expect(t, test.name, judge(t, check), test.want)
	}
}

func TestBrokerAcceptsARealOne(t *testing.T) {
	for _, allow := range []bool{true, false} {
		server := mqtt.New(&mqtt.Options{Logger: slog.New(slog.DiscardHandler)})
		tcp := listeners.NewTCP(listeners.Config{ID: "t", Address: "127.0.0.1:0"})
		if allow {
			server.AddHook(new(auth.AllowHook), nil)
		}
		if err := server.AddListener(tcp); err != nil {
			t.Fatal(err)
		}
		if err := server.Serve(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { server.Close() })
		// A broker that refuses us for want of a password is at work as well.
		expect(t, "broker", judge(t, Broker("tcp://"+tcp.Address())), "")
		expect(t, "TLS to a plain listener", judge(t, Broker("ssl://"+tcp.Address())), "TLS with")
	}
}

func TestBrokerThatDoesNotAcceptFails(t *testing.T) {
	for _, test := range []struct{ answer, want string }{
		{"\x20\x02\x00\x00", ""},
		{"\x20\x02\x00\x05", ""},
		{"\x20\x02\x00\x03", "code 3"},
		{"HTTP/1.1 400 Bad Request\r\n", "does not speak MQTT"},
		{"\x20\x02", "no answer"},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer l.Close()
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			io.ReadFull(conn, make([]byte, 14))
			io.WriteString(conn, test.answer)
		}()
		expect(t, test.answer, judge(t, Broker(l.Addr().String())), test.want)
	}
	expect(t, "nobody listens", judge(t, Broker("127.0.0.1:1")), "refused")
	expect(t, "nonsense", judge(t, Broker("gopher://x")), "expected HOST:PORT")
	if _, _, err := brokerAddress("gopher://user:hunter2@x"); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("an address with a password: %v", err)
	}
}

func TestSilentBrokerIsGivenUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := Broker(l.Addr().String())
	c.Timeout = 100 * time.Millisecond
	if reason := judge(t, c); reason == "" {
		t.Error("a broker that says nothing passes")
	}
}

func TestBrokerAddressTakesTheUsualSpellings(t *testing.T) {
	for _, test := range []struct {
		in, want string
		secure   bool
	}{
		{"localhost", "localhost:1883", false},
		{"tcp://10.0.0.1:1884", "10.0.0.1:1884", false},
		{"mqtt://[fe80::1]", "[fe80::1]:1883", false},
		{"ssl://broker", "broker:8883", true},
		{"mqtts://broker:443", "broker:443", true},
		{"ws://broker", "", false},
		{"", "", false},
	} {
		got, secure, err := brokerAddress(test.in)
		if got != test.want || secure != test.secure || (err == nil) != (test.want != "") {
			t.Errorf("%q: %q, %v, %v", test.in, got, secure, err)
		}
	}
}

func TestDropInsJudgeByExitCodeAndFirstLine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "health.d")
	if checks := DropIns(dir, time.Second); checks != nil {
		t.Errorf("checks without a directory: %v", checks)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string]string{
		"10-good":    "echo fine; exit 0",
		"20-bad":     "echo; echo '  no water ' >&2; echo more; exit 3",
		"30-silent":  "exit 7",
		"40-slow":    "sleep 100",
		"50-left":    "sleep 100 & exit 0",
		"60-chatter": "yes | head -c 10000000; exit 1",
		".hidden":    "exit 1",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "README"), []byte("no check"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "70-dangling")); err != nil {
		t.Fatal(err)
	}
	checks := DropIns(dir, 20*time.Second)
	for i := range checks {
		if strings.HasSuffix(checks[i].Name, "40-slow") {
			checks[i].Timeout = 100 * time.Millisecond
		}
	}
	var got []string
	for _, r := range Run(t.Context(), checks) {
		got = append(got, strings.TrimPrefix(r.Name, dir+"/")+": "+r.Reason)
	}
	want := []string{
		"health.d/10-good: ",
		"health.d/20-bad: no water",
		"health.d/30-silent: failed without a word: exit status 7",
		"health.d/40-slow: no answer within 100ms",
		"health.d/50-left: ",
		"health.d/60-chatter: y",
		"70-dangling: stat " + filepath.Join(dir, "70-dangling") + ": no such file or directory",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestUnreadableDropInsAreAFailure(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	results := Run(context.Background(), DropIns(file, time.Second))
	expect(t, "a file instead of a directory", Failed(results), "not a directory")
}
