// SPDX-License-Identifier: Apache-2.0

package updatemanager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/applet"
	"sdvbox/platform/control"
	"sdvbox/platform/updateproto"
	"sdvbox/testing/agents"
	"sdvbox/testing/broker"
)

// With this variable set the test binary is the applet itself, so that it can be killed like one. Instead of rebooting it
// makes the file that the variable names.
const rebootEnv = "SDVBOX_TEST_REBOOT"

func TestMain(m *testing.M) {
	file := os.Getenv(rebootEnv)
	if file == "" {
		os.Exit(m.Run())
	}
	cmd := Command()
	cmd.Run = func(ctx context.Context, c *applet.Call) error {
		return run(ctx, c, func(context.Context) error { return os.WriteFile(file, nil, 0o600) })
	}
	os.Exit(applet.Main([]applet.Command{cmd}, append([]string{name}, os.Args[1:]...), os.Stdin, os.Stdout, os.Stderr))
}

// rig is an update manager in a process of its own, with its shipped configuration, at a real broker.
type rig struct {
	t      *testing.T
	broker *broker.Broker
	client *broker.Client // hears what the manager says
	dir    string
	args   []string
	cmd    *exec.Cmd
	exited chan error
	notify *net.UnixConn
	stderr bytes.Buffer
}

func newRig(t *testing.T, args ...string) *rig {
	t.Helper()
	r := &rig{t: t, broker: broker.Start(t, broker.Options{}), dir: t.TempDir()}
	r.client = r.broker.Client(t, "vehicleupdate/desiredstatefeedback")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: r.file("notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r.notify = conn
	r.args = append([]string{
		"-cfg-file", "etc/update-manager/config.json", "--mqtt-conn-broker=" + r.broker.URL(), "-report-feedback-interval=10ms",
		"--state-dir", r.file("state"), "--control-socket", r.file("control"),
	}, args...)
	t.Cleanup(func() {
		r.stop(syscall.SIGKILL)
		if t.Failed() {
			t.Logf("log of the update manager:\n%s", &r.stderr)
		}
	})
	return r
}

func (r *rig) file(name string) string { return filepath.Join(r.dir, name) }

// start starts the daemon and waits until it is ready.
func (r *rig) start() {
	r.t.Helper()
	r.cmd = exec.Command(os.Args[0], r.args...)
	r.cmd.Env = append(os.Environ(), rebootEnv+"="+r.file("rebooted"), "NOTIFY_SOCKET="+r.file("notify"))
	r.cmd.Stderr = &r.stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.exited = make(chan error, 1)
	go func() { r.exited <- r.cmd.Wait() }()
	r.hears("READY=1")
}

// hears waits until the service manager hears something that begins so.
func (r *rig) hears(want string) {
	r.t.Helper()
	var heard []string
	b := make([]byte, 4096)
	r.notify.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		n, err := r.notify.Read(b)
		if err != nil {
			r.t.Fatalf("the service manager hears %q, want %q", heard, want)
		}
		if heard = append(heard, string(b[:n])); strings.HasPrefix(string(b[:n]), want) {
			return
		}
	}
}

// stop ends the daemon, if it runs.
func (r *rig) stop(sig syscall.Signal) error {
	if r.cmd == nil {
		return nil
	}
	r.cmd.Process.Signal(sig)
	r.cmd = nil
	select {
	case err := <-r.exited:
		return err
	case <-time.After(30 * time.Second):
		r.t.Error("the update manager does not end")
		return nil
	}
}

// ask runs a sub-command against the daemon.
func (r *rig) ask(args ...string) result {
	r.t.Helper()
	args = append(args, "--control-socket", r.file("control"))
	if args[0] != "cancel" {
		args = append(args, "--state-dir", r.file("state"))
	}
	return call("", args...)
}

// until waits until status says what is wanted.
func (r *rig) until(code int, want string) {
	r.t.Helper()
	var got result
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if got = r.ask("status"); got.Code == code && strings.Contains(got.Stdout, want) {
			return
		}
	}
	r.t.Fatalf("status never had exit code %d and %q, at last: %+v", code, want, got)
}

// desired publishes the desired state of both domains.
func (r *rig) desired(id string) {
	r.client.Publish("vehicleupdate/desiredstate", fmt.Sprintf(`{"activityId":%q,"timestamp":123456789,"payload":{"domains":[
		{"id":"self-update","components":[{"id":"os-image","version":"2","config":[{"key":"image","value":"http://server/x"}]}]},
		{"id":"containers","config":[],"components":[{"id":"hello-world","version":"latest","config":[
			{"key":"image","value":"docker.io/library/hello-world:latest"},{"key":"env","value":"FOO=BAR"}]}]}]}}`, id))
}

// end waits for the terminal feedback, and checks that all before it belongs to the same activity.
func (r *rig) end(id string) (status, message string) {
	r.t.Helper()
	for {
		m := r.client.Next(20 * time.Second)
		var f updateproto.Feedback
		got, err := updateproto.Decode([]byte(m.Payload), &f)
		if err != nil && !errors.Is(err, updateproto.ErrNoActivityID) || got != id {
			r.t.Fatalf("feedback %s: %v; want activity %q", m.Payload, err, id)
		}
		switch f.Status {
		case updateproto.StatusIdentifying, updateproto.StatusIdentified, updateproto.StatusRunning:
		default:
			return f.Status, f.Message
		}
	}
}

func (r *rig) agents(delay time.Duration) (containers, system *agents.Agent) {
	installed := map[string]string{"os-image": "1"}
	return agents.Start(r.t, r.broker.URL(), agents.Script{Domain: "containers", Delay: delay}),
		agents.Start(r.t, r.broker.URL(), agents.Script{Domain: "self-update", Style: agents.Leda, Installed: installed, Delay: delay})
}

// metric returns the value of a sample.
func metric(t *testing.T, text, sample string) string {
	t.Helper()
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, sample+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Errorf("there is no sample %s in:\n%s", sample, text)
	return ""
}

func TestShippedConfigurationUpdatesTheVehicle(t *testing.T) {
	t.Parallel()
	metricsAddress := broker.FreeAddr(t, "127.0.0.1")
	r := newRig(t, "--reboot-after=500ms", "--metrics-address", metricsAddress)
	r.agents(100 * time.Millisecond)
	r.start()
	r.until(0, "), connected to the bus\nactivity:  none (idle)\n")
	if got := r.ask("cancel"); got.Code != exitNothing || !strings.Contains(got.Stderr, "no activity is under way") {
		t.Errorf("cancel of nothing: %+v", got)
	}
	r.client.Publish("vehicleupdate/desiredstate", `{"activityId":`)
	if status, message := r.end(""); status != updateproto.StatusIdentificationFailed || !strings.Contains(message, "not JSON") {
		t.Errorf("after rubbish: %s %s", status, message)
	}

	r.desired("u1")
	r.until(exitBusy, "activity:   u1")
	r.hears(`STATUS=activity "u1": `)
	status, message := r.end("u1")
	if status != updateproto.StatusCompleted || message != "reboot pending, unverified" {
		t.Fatalf("ended as %s %s", status, message)
	}
	r.until(exitBusy, "phase:      reboot")
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(r.file("rebooted")); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("no reboot")
		}
	}

	got := r.ask("history", "--output", "json")
	var record Record
	if err := json.Unmarshal([]byte(got.Stdout), &record); err != nil || !record.Running {
		t.Fatalf("history: %+v, %v", got, err)
	}
	e := record.Activities[len(record.Activities)-1]
	if e.ID != "u1" || e.Status != updateproto.StatusCompleted || len(e.Domains) != 2 || e.Ended-e.Started < 300 {
		t.Errorf("history: %+v", e)
	}

	var socket control.Text
	if err := control.Ask(t.Context(), r.file("control"), "GET", "/metrics", &socket); err != nil {
		t.Error(err)
	}
	res, err := http.Get("http://" + metricsAddress + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	port, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("%q, %v", res.Header, err)
	}
	for where, text := range map[string]string{"socket": string(socket.Body), "port": string(port)} {
		for sample, want := range map[string]string{
			`update_manager_activities_total{outcome="COMPLETED"}`: "1",
			`update_manager_malformed_messages_total`:              "1",
			`update_manager_bus_connected`:                         "1",
			`update_manager_phase{phase="reboot"}`:                 "1",
			`update_manager_phase{phase="idle"}`:                   "0",
		} {
			if value := metric(t, text, sample); value != want {
				t.Errorf("%s: %s is %s, want %s", where, sample, value, want)
			}
		}
	}
	// Nobody may cancel at the port for metrics.
	if res, err = http.Post("http://"+metricsAddress+"/cancel", "", nil); err != nil || res.StatusCode != http.StatusNotFound {
		t.Errorf("cancel at the port for metrics: %v, %v", res, err)
	}
	res.Body.Close()

	if err := r.stop(syscall.SIGTERM); err != nil {
		t.Errorf("ended by SIGTERM: %v", err)
	}
	got = r.ask("history")
	if got.Code != 0 || !strings.Contains(got.Stdout, "does not run") || !strings.Contains(got.Stdout, "u1") {
		t.Errorf("history of a daemon that is down: %+v", got)
	}
}

func TestKilledDaemonGoesOnAndCanBeCancelled(t *testing.T) {
	t.Parallel()
	// The kill may come before an order has gone out, and self-update takes ROLLBACK without a word.
	r := newRig(t, "--reboot-enabled=false", "-self-update-read-timeout", "2s", "--containers-read-timeout=2s")
	containers, system := r.agents(700 * time.Millisecond)
	r.start()
	r.hears("STATUS=no activity")
	r.desired("u1")
	r.until(exitBusy, "phase:      update")
	r.stop(syscall.SIGKILL)
	if got := r.ask("status"); got.Code != exitDown || !strings.Contains(got.Stdout, "phase:      update") {
		t.Errorf("status of a killed daemon: %+v", got)
	}
	if got := r.ask("cancel"); got.Code != exitDown {
		t.Errorf("cancel of a killed daemon: %+v", got)
	}

	r.start()
	r.until(exitBusy, "), connected to the bus")
	if got := r.ask("cancel", "u2"); got.Code != exitNothing || !strings.Contains(got.Stderr, `"u1" is`) {
		t.Errorf("cancel of another activity: %+v", got)
	}
	if got := r.ask("cancel", "u1"); got.Code != 0 {
		t.Errorf("cancel: %+v", got)
	}
	if status, message := r.end("u1"); status != updateproto.StatusIncomplete || !strings.Contains(message, "cancelled by the operator") {
		t.Errorf("ended as %s %s", status, message)
	}
	r.until(0, "activity:  none")
	for _, a := range []*agents.Agent{containers, system} {
		if orders := a.Orders("u1"); !a.Idle() || !slices.Contains(orders, updateproto.CommandRollback) {
			t.Errorf("an agent was told %q, idle: %t", orders, a.Idle())
		}
	}
	if got := r.ask("history", "u1"); got.Code != 0 || !strings.Contains(got.Stdout, "cancelled by the operator") {
		t.Errorf("history: %+v", got)
	}
}

// Updates do not depend on who looks at them, nor on where the log goes.
func TestDaemonRunsWithoutSocketsAndWithALogFile(t *testing.T) {
	t.Parallel()
	r := newRig(t, "--control-socket", "/proc/nowhere/control", "--metrics-address", "unix:/proc/nowhere/metrics")
	r.args = append(r.args, "--phase-timeout=200ms", "--log-file", r.file("log/update-manager.log"))
	r.start()
	r.hears("STATUS=no activity") // and is connected
	r.desired("u1")
	if status, message := r.end("u1"); status != updateproto.StatusIdentificationFailed || !strings.Contains(message, "no answer") {
		t.Errorf("without agents it ended as %s %s", status, message)
	}
	r.stop(syscall.SIGTERM)
	log, err := os.ReadFile(r.file("log/update-manager.log"))
	for _, want := range []string{"connected to the bus", "/proc/nowhere/control", "/proc/nowhere/metrics"} {
		if !strings.Contains(string(log), want) {
			t.Errorf("%q is not in the log file: %s, %v", want, log, err)
		}
	}
	if strings.Contains(r.stderr.String(), "connected") {
		t.Errorf("beside the log file: %s", &r.stderr)
	}
}

func TestMistakesAreNamedAndSetTheExitCode(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(broken, []byte("{\n  \"domain\": vehicle\n}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args string
		code int
		want string // in standard error
	}{
		{"--bogus", 2, "unknown flag `bogus'"},
		{"--other-read-timeout=1s", 2, "unknown flag `other-read-timeout'"},
		{"--cfg-file /nowhere/config.json", 1, "/nowhere/config.json"},
		{"--cfg-file " + broken, 1, broken + ":2: "},
		{"--mqtt-conn-broker=http://x", 1, `unknown scheme, expected tcp or mqtts`},
		{"--state-dir /proc/nowhere", 1, "/proc/nowhere"},
		{"stauts", 2, `the nearest is "status"`},
		{"status extra", 2, "unexpected argument"},
		{"status --control-socket /dev/null --output json", exitDown, `"code":4`},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0], strings.Fields(test.args)...)
		cmd.Env = append(os.Environ(), rebootEnv+"=/nowhere")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != test.code || !strings.Contains(stderr.String(), test.want) {
			t.Errorf("%s: exit code %d, want %d: %s", test.args, code, test.code, &stderr)
		}
	}
	if got := call("", "--version"); got != (result{0, applet.Version + "\n", ""}) {
		t.Errorf("--version: %+v", got)
	}
}
