// SPDX-License-Identifier: Apache-2.0

package kantocm_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/ctragent"
	"sdvbox/testing/ctrd"
)

func TestMain(m *testing.M) { ctragent.OwnHost(m) }

const box = "example.org/box:1"

// rig is a real agent with the tools.
type rig struct {
	*testing.T
	agent   *ctragent.Agent
	program string
}

// run runs kanto-cm, which has to end with an exit code.
func (r *rig) run(code int, args ...string) (stdout, stderr string) {
	r.Helper()
	stdout, stderr, got := r.agent.Run("kanto-cm", args...)
	if got != code {
		r.Errorf("kanto-cm %q: exit code %d, want %d: %s%s", args, got, code, stdout, stderr)
	}
	return stdout, stderr
}

// do runs kanto-cm, which has to succeed.
func (r *rig) do(line string) (stdout string) {
	r.Helper()
	stdout, _ = r.run(0, strings.Fields(line)...)
	return stdout
}

// background runs kanto-cm until wait is called, which returns what it said.
func (r *rig) background(args ...string) (cmd *exec.Cmd, wait func() (output string, code int)) {
	r.Helper()
	cmd = r.agent.Command("kanto-cm", args...)
	out, err := os.Create(filepath.Join(r.TempDir(), "output"))
	if err != nil {
		r.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	return cmd, func() (string, int) {
		r.Helper()
		late := time.AfterFunc(20*time.Second, func() {
			r.Errorf("kanto-cm %q does not end", args)
			cmd.Process.Kill()
		})
		defer late.Stop()
		cmd.Wait()
		out.Close()
		text, _ := os.ReadFile(out.Name())
		return string(text), cmd.ProcessState.ExitCode()
	}
}

// said is what a command in the background has said.
func said(cmd *exec.Cmd) string {
	text, _ := os.ReadFile(cmd.Stdout.(*os.File).Name())
	return string(text)
}

func (r *rig) get(name string) (c *ctrmodel.Container) {
	r.Helper()
	if err := json.Unmarshal([]byte(r.do("get --output json -n "+name)), &c); err != nil {
		r.Fatal(err)
	}
	return c
}

func (r *rig) await(name string, status ctrmodel.Status) {
	r.Helper()
	r.agent.Eventually(20*time.Second, fmt.Sprint(name, " is ", status), func() bool {
		out, _, _ := r.agent.Run("kanto-cm", "list", "-q", "-n", name, "--filter", "status="+status.String())
		return out != ""
	})
}

func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in:\n%s", part, text)
		}
	}
}

func TestEveryCommandWithARealAgent(t *testing.T) {
	shell, err := os.ReadFile("/bin/busybox")
	if err != nil && os.Getenv("SDVBOX_REQUIRE") != "1" {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	program := ctragent.Build(t)
	agent := ctragent.Start(t, program, ctrd.Start(t), map[string]ctragent.Section{"containers": {"insecure_registries": []string{"localhost", "127.0.0.1"}}})
	image := ctragent.NewImage(box, v1.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"sleep", "1000"}},
		map[string][]byte{"bin/sh": shell, "bin/cat": shell, "bin/sleep": shell, "bin/stty": shell})
	agent.Import(image)
	for _, part := range []struct {
		name string
		test func(*rig)
	}{
		{"life", life}, {"processes", processes}, {"output", output}, {"registry", registry}, {"deployment", deployment},
		{"auto-deployer", autoDeployer}, {"not allowed", notAllowed}, {"nobody there", nobody},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(&rig{t, agent, program}) })
	}
}

func life(r *rig) {
	events, heard := r.background("events")
	r.agent.Eventually(20*time.Second, "events are heard", func() bool {
		r.do("create -n early " + box)
		r.do("remove -n early")
		return said(events) != ""
	})
	id := strings.TrimSpace(r.do("create --name life --ports 127.0.0.1:18480:80 --hosts a:10.0.0.1 --e A=b -m 64M " + box + " sleep 1000"))
	contains(r.T, r.do("list"), fmt.Sprintf("%-37s\t|%-37s\t|%-60s\t|Created   \t|", id, "life", box))
	r.do("start -n life")
	before := r.get("life")
	if before.ID != id || before.State.Status != ctrmodel.Running || before.HostConfig.Resources.Memory != "64M" || before.HostConfig.Ports[0].HostPort != 18480 {
		r.Errorf("it is not as wanted: %+v", before)
	}
	_, stderr := r.run(1, "start", "-n", "life")
	contains(r.T, stderr, "life", "Running")
	_, stderr = r.run(1, "create", "-n", "life", box)
	contains(r.T, stderr, "life")
	r.do("pause -n life")
	contains(r.T, r.do("list"), "Paused")
	r.do("unpause " + id)
	r.do("restart -t 1s -n life")
	if after := r.get("life"); after.State.PID == before.State.PID || after.State.Status != ctrmodel.Running {
		r.Errorf("after the restart: %+v, before %+v", after.State, before.State)
	}
	r.do("update -n life --rp on-failure --rp-cnt 2 -m 32M")
	r.do("rename -n life lives")
	var all []ctrmodel.Container
	if err := json.Unmarshal([]byte(r.do("list --output json")), &all); err != nil || len(all) != 1 || all[0].Name != "lives" ||
		all[0].HostConfig.Resources.Memory != "32M" || all[0].HostConfig.RestartPolicy.MaxRetries != 2 {
		r.Errorf("%v, after the update: %+v", err, all)
	}
	var used []struct {
		Name   string
		Memory int
		PIDs   int
	}
	if err := json.Unmarshal([]byte(r.do("stats --interval 100ms --output json")), &used); err != nil || len(used) != 1 || used[0].Name != "lives" || used[0].PIDs != 1 || used[0].Memory < 4096 {
		r.Errorf("%v, stats: %+v", err, used)
	}
	contains(r.T, r.do("stats --interval 100ms -n lives"), "lives", "MEMORY")
	_, stderr = r.run(1, "remove", id)
	contains(r.T, stderr, "force")
	r.do("stop -f -t 1s " + id)
	if state := r.get("lives").State; state.Status != ctrmodel.Stopped || state.ExitCode != 137 && state.ExitCode != 143 {
		r.Errorf("after the stop: %+v", state)
	}
	_, stderr = r.run(1, "stop", id)
	contains(r.T, stderr, "lives")
	r.do("remove " + id)
	_, stderr = r.run(3, "get", id)
	contains(r.T, stderr, id)
	if out := r.do("list"); out != "No containers found.\n" {
		r.Errorf("list: %q", out)
	}
	contains(r.T, r.do("sysinfo"), "Engine v", "CLI v")
	r.do("create -n alone --network none " + box)
	r.do("start -n alone")
	if out, _ := r.run(0, "exec", "-n", "alone", "cat", "/proc/net/dev"); strings.Count(out, ":") != 1 || !strings.Contains(out, "lo:") {
		r.Errorf("without a network there is %s", out)
	}
	r.do("stop -s SIGKILL -n alone")
	r.do("remove -n alone")

	events.Process.Signal(syscall.SIGINT)
	text, code := heard()
	if code != 130 {
		r.Errorf("events ended with %d", code)
	}
	for _, action := range []string{"created", "running", "paused", "resumed", "updated", "renamed", "stopped", "removed"} {
		at := strings.Index(text, " "+action+" ")
		if at < 0 {
			r.Errorf("no event %s in order:\n%s", action, text)
			break
		}
		text = text[at:]
	}
}

func processes(r *rig) {
	r.run(0, "create", "-n", "short", "--rp", "no", box, "sh", "-c", "echo out; echo err >/dev/stderr; exit 5")
	out, stderr := r.run(5, "start", "--a", "-n", "short")
	if out != "out\n" || stderr != "err\n" {
		r.Errorf("start --a: %q, %q", out, stderr)
	}
	_, stderr = r.run(1, "attach", "-n", "short")
	contains(r.T, stderr, "does not run")
	r.do("remove -n short")
	r.run(0, "create", "-n", "gone", "--rp", "no", box, "sh", "-c", "echo begun; sleep 1000")
	starter, started := r.background("start", "--a", "-n", "gone")
	r.agent.Eventually(20*time.Second, "it has begun", func() bool { return said(starter) == "begun\n" })
	r.await("gone", ctrmodel.Running)
	watcher, watched := r.background("attach", "-n", "gone")
	r.agent.Eventually(20*time.Second, "it is attached to", func() bool {
		r.agent.Run("kanto-cm", "exec", "-n", "gone", "sh", "-c", "echo again >/proc/1/fd/1")
		return said(watcher) != ""
	})
	r.do("remove -f -t 1s -n gone")
	for _, wait := range []func() (string, int){started, watched} {
		if out, code := wait(); code != 1 || !strings.HasSuffix(out, "container gone was removed\n") {
			r.Errorf("attached to what is removed: exit code %d, %q", code, out)
		}
	}

	r.run(0, "create", "-n", "long", "--rp", "no", box, "sh", "-c", "while [ ! -e /end ]; do echo tick; sleep 0.05; done; echo bye; exit 7")
	r.do("start -n long")
	patient, attached := r.background("attach", "-n", "long")
	interrupted, wait := r.background("attach", "-n", "long")
	r.agent.Eventually(20*time.Second, "output of both", func() bool { return said(patient) != "" && said(interrupted) != "" })
	interrupted.Process.Signal(syscall.SIGINT)
	if out, code := wait(); code != 130 || !strings.HasSuffix(out, "tick\n") {
		r.Errorf("attach that is interrupted: exit code %d, %q", code, out)
	}
	if out, _ := r.run(4, "exec", "-e", "B=c", "-w", "/bin", "-n", "long", "sh", "-c", "echo $B $(pwd); exit 4"); out != "c /bin\n" {
		r.Errorf("exec: %q", out)
	}
	_, stderr = r.run(127, "exec", "-n", "long", "sh", "-c", "nonsense")
	contains(r.T, stderr, "nonsense")
	for tool, line := range map[string]string{
		"kanto-cm":     "kanto-cm --host " + r.agent.Socket + " exec -i -t -n long sh -c 'test -t 0 && echo terminal; exit 3'",
		"sdv-ctr-exec": "sdv-ctr-exec --host " + r.agent.Socket + " -n long sh -c 'test -t 0 && echo terminal; exit 3'",
	} {
		cmd := exec.Command("script", "-qec", r.program+" "+line, "/dev/null")
		text, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != 3 || !strings.Contains(string(text), "terminal") {
			r.Errorf("%s in a terminal: exit code %d, %v, %q", tool, code, err, text)
		}
	}
	for _, options := range []string{"-t", "-i -t"} {
		line := "stty rows 23 cols 101; " + r.program + " kanto-cm --host " + r.agent.Socket + " exec " + options + " -n long stty size"
		if text, err := exec.Command("script", "-qec", line, "/dev/null").CombinedOutput(); err != nil || !strings.Contains(string(text), "23 101\r") {
			r.Errorf("the terminal of exec %s: %v, %q", options, err, text)
		}
	}
	cmd := exec.Command(r.program, "sdv-ctr-exec", "--host", r.agent.Socket, r.get("long").ID, "cat")
	cmd.Stdin = strings.NewReader("input")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "input" {
		r.Errorf("sdv-ctr-exec: %v, %s", err, out)
	}
	r.agent.Run("kanto-cm", "exec", "-n", "long", "sh", "-c", "echo >/end") // the container may end first
	if out, code := attached(); !strings.HasSuffix(out, "tick\nbye\n") || code != 7 {
		r.Errorf("attach: exit code %d, %q", code, out)
	}
	r.do("remove -n long")

	r.run(0, "create", "-n", "screen", "--t", "--i", box, "sh", "-c", "echo ready; read a; echo got $a; read a")
	leave := func(line, typed, shown string) {
		r.Helper()
		cmd := exec.Command("script", "-qec", r.program+" kanto-cm --host "+r.agent.Socket+" "+line, "/dev/null")
		keys, err := cmd.StdinPipe()
		out, err2 := os.Create(filepath.Join(r.TempDir(), "screen"))
		if err != nil || err2 != nil {
			r.Fatal(err, err2)
		}
		defer out.Close()
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			r.Fatal(err)
		}
		contains := func(part string) func() bool { return func() bool { return strings.Contains(said(cmd), part) } }
		r.agent.Eventually(20*time.Second, line, contains("Ctrl-P Ctrl-Q"))
		io.WriteString(keys, typed)
		r.agent.Eventually(20*time.Second, line+" shows "+shown, contains(shown))
		io.WriteString(keys, leaveKeys)
		late := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		defer late.Stop()
		if err := cmd.Wait(); err != nil {
			r.Errorf("%s: %v, %q", line, err, said(cmd))
		}
		if state := r.get("screen").State; state.Status != ctrmodel.Running {
			r.Errorf("after it was left: %+v", state)
		}
	}
	leave("start --i -n screen", "", "ready")
	leave("attach --i -n screen", "x\r", "got x")
	r.do("remove -f -t 1s -n screen")
}

const leaveKeys = "\x10\x11"

func output(r *rig) {
	r.run(0, "create", "-n", "talker", "--rp", "no", box, "sh", "-c",
		"i=1; while [ $i -le 120 ]; do echo grün $i; i=$((i+1)); done; sleep 0.3; echo late; sleep 0.3; echo oops >/dev/stderr; while [ ! -e /end ]; do sleep 0.05; done; echo end")
	r.do("start -n talker")
	r.agent.Eventually(20*time.Second, "all is said", func() bool {
		_, stderr, _ := r.agent.Run("kanto-cm", "logs", "-t", "1", "-n", "talker")
		return stderr == "oops\n"
	})
	for options, want := range map[string]int{"": 99, "-t 3": 2, "-t 1000": 121, "--tail -1": 121, "--since 1h": 121, "--since 1h -t 2": 1} {
		if out := r.do("logs -n talker " + options); strings.Count(out, "\n") != want || !strings.HasSuffix(out, "late\n") {
			r.Errorf("logs %s: %d lines, want %d: %.100q", options, strings.Count(out, "\n"), want, out)
		}
	}
	line := r.do("logs -n talker --output json -t 2")
	var entry struct {
		Log  string
		Time time.Time
	}
	if err := json.Unmarshal([]byte(strings.SplitAfter(line, "\n")[0]), &entry); err != nil || entry.Log != "late\n" {
		r.Fatalf("%v: %s", err, line)
	}
	if out := r.do("logs -n talker --timestamps --since " + entry.Time.Format(time.RFC3339Nano)); !strings.HasSuffix(out, "Z late\n") || strings.Count(out, "\n") != 1 {
		r.Errorf("logs --since: %q", out)
	}
	follower, followed := r.background("logs", "-n", "talker", "--follow", "-t", "1")
	// The last line would be another one once the container has ended.
	r.agent.Eventually(20*time.Second, "it is followed", func() bool { return said(follower) == "oops\n" })
	r.agent.Run("kanto-cm", "exec", "-n", "talker", "sh", "-c", "echo >/end")
	r.await("talker", ctrmodel.Exited)
	r.agent.Eventually(20*time.Second, "the end is followed", func() bool { return strings.HasSuffix(said(follower), "end\n") })
	r.do("remove -n talker")
	if out, code := followed(); out != "oops\nend\n" || code != 0 {
		r.Errorf("logs --follow: exit code %d, %q", code, out)
	}
	r.run(3, "logs", "-n", "talker")
}

// registry pulls from one that wants a password, which is added while the agent runs.
func registry(r *rig) {
	var manifests atomic.Int32
	const password = "top secret"
	server := ctragent.Serve(r, func(w http.ResponseWriter, q *http.Request) bool {
		if user, given, _ := q.BasicAuth(); user != "github" || given != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return true
		}
		if strings.Contains(q.URL.Path, "/manifests/") {
			manifests.Add(1)
		}
		return false
	}, ctragent.NewImage("registry/app:1", v1.ImageConfig{}, map[string][]byte{"a": bytes.Repeat([]byte("a"), 1<<20)}))
	name := server.Host + "/app:1"
	_, stderr := r.run(1, "pull", name)
	contains(r.T, stderr, server.Host)

	bin := r.TempDir()
	script := fmt.Sprintf("#!/bin/sh\n[ $1 != reload ] || kill -HUP %d\n", r.agent.Pid())
	if err := os.WriteFile(filepath.Join(bin, "systemctl"), []byte(script), 0o755); err != nil {
		r.Fatal(err)
	}
	cmd := exec.Command(r.program, "sdv-kanto-ctl", "--config-file", r.agent.Dir+"/config.json", "add-registry", "-h", server.Host, "-u", "github", "-p", password)
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), password) {
		r.Fatalf("add-registry: %v, %s", err, out)
	}
	r.agent.Eventually(10*time.Second, "registries are read again", func() bool { return strings.Contains(r.agent.Log(), "registries=1") })
	out, stderr := r.run(0, "pull", name)
	contains(r.T, out, name+"@sha256:")
	contains(r.T, stderr, "downloading\n", "unpacking\n")
	asked := manifests.Load()
	r.do("pull " + name)
	if manifests.Load() != asked {
		r.Error("the registry was asked for an image that is here")
	}
	r.do("pull --refresh " + name)
	if manifests.Load() == asked {
		r.Error("the registry was not asked with --refresh")
	}
	contains(r.T, r.do("images"), name, box, "1.0 MiB")
	r.do("create -n app " + name)
	_, stderr = r.run(1, "remove-image", name)
	contains(r.T, stderr, name)
	r.do("remove -n app")
	r.do("remove-image " + name)
	r.run(1, "remove-image", name)
	if out := r.do("images --output json"); strings.Contains(out, name) || !strings.Contains(out, box) {
		r.Errorf("images: %s", out)
	}
}

func deployment(r *rig) {
	_, stderr := r.run(1, "deploy")
	contains(r.T, stderr, "no descriptors")
	r.agent.Write("containers/web.json", []byte(`{"container_name":"web","image":{"name":"`+box+`"}}`))
	r.await("web", ctrmodel.Running)
	r.do("stop -s SIGKILL -n web")
	r.do("deploy")
	if state := r.get("web").State; state.Status != ctrmodel.Running {
		r.Errorf("after another deployment: %+v", state)
	}
	r.do("stop -s SIGKILL -n web")
	r.do("remove -n web")
	r.do("deploy")
	r.await("web", ctrmodel.Running)
}

func autoDeployer(r *rig) {
	dir := r.TempDir()
	run := func(code int, args ...string) (output string) {
		r.Helper()
		out, err := exec.Command(r.program, append([]string{"kanto-auto-deployer", "-s", r.agent.Socket}, args...)...).CombinedOutput()
		if e := (*exec.ExitError)(nil); err == nil && code != 0 || errors.As(err, &e) && e.ExitCode() != code {
			r.Errorf("kanto-auto-deployer %q: %v, want exit code %d: %s", args, err, code, out)
		}
		return string(out)
	}
	run(255, dir+"/none")
	contains(r.T, run(1, dir), "No manifests found in "+dir)
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			r.Fatal(err)
		}
	}
	write("app.json", `{"container_name":"app","image":{"name":"`+box+`"},"config":{"env":["A=1"]}}`)
	contains(r.T, run(0, dir), "Creating [app]", "Started [app]")
	r.do("stop -s SIGKILL -n app")
	contains(r.T, run(0, dir), "Already exists [app]", "Started [app]")
	write("bad.json", `{"image":`)
	contains(r.T, run(1, dir), dir+"/bad.json")
	os.Remove(dir + "/bad.json")

	daemon := exec.Command(r.program, "kanto-auto-deployer", "--socket-cm", r.agent.Socket, "--daemon", "--mqtt", dir)
	log, err := os.Create(filepath.Join(r.TempDir(), "log"))
	if err != nil {
		r.Fatal(err)
	}
	defer log.Close()
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		r.Fatal(err)
	}
	r.agent.Eventually(10*time.Second, "the daemon has begun", func() bool { return strings.Contains(said(daemon), "daemon mode") })
	if log := r.get("app").HostConfig.Log.Driver; log.MaxFiles != 2 || log.MaxSize != "1M" {
		r.Errorf("the log of app: %+v", log)
	}
	before := r.get("app")
	write("app.json", `{"container_name":"app","image":{"name":"`+box+`"},"config":{"env":["A=2"]}}`)
	r.agent.Eventually(10*time.Second, "app has changed", func() bool {
		out, _, _ := r.agent.Run("kanto-cm", "get", "-n", "app", "--output", "json")
		return strings.Contains(out, `"A=2"`) && strings.Contains(out, `"status":2`)
	})
	changed := r.get("app")
	if changed.ID == before.ID {
		r.Error("app is the same container")
	}
	if err := os.Chtimes(dir+"/app.json", time.Now(), time.Now()); err != nil {
		r.Fatal(err)
	}
	r.agent.Eventually(10*time.Second, "app is made anew", func() bool {
		out, _, code := r.agent.Run("kanto-cm", "get", "-n", "app", "--output", "json")
		return code == 0 && !strings.Contains(out, changed.ID) && strings.Contains(out, `"status":2`)
	})
	daemon.Process.Signal(syscall.SIGTERM)
	if err := daemon.Wait(); err != nil || !strings.Contains(said(daemon), "Removing [app]") {
		r.Errorf("%v: %s", err, said(daemon))
	}
	r.do("stop -s SIGKILL -n app")
	r.do("remove -n app")
}

// notAllowed asks as a user who may not.
func notAllowed(r *rig) {
	dir, err := os.MkdirTemp("", "kcm") // where everybody may go
	if err != nil {
		r.Fatal(err)
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "sdvbox")
	if out, err := exec.Command("cp", r.program, program).CombinedOutput(); err != nil {
		r.Fatalf("%v, %s", err, out)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(program, 0o755), os.Chmod(r.agent.Dir, 0o711), os.Chown(r.agent.Socket, 0, 1)); err != nil {
		r.Fatal(err)
	}
	defer os.Chmod(r.agent.Dir, 0o700)
	for mode, want := range map[os.FileMode]string{0o600: "needs root: permission denied\n", 0o660: "needs root or the group daemon: permission denied\n"} {
		if err := os.Chmod(r.agent.Socket, mode); err != nil {
			r.Fatal(err)
		}
		cmd := exec.Command(program, "kanto-cm", "--host", r.agent.Socket, "--timeout", "30", "list")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		start := time.Now()
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != 4 || !strings.HasSuffix(string(out), want) || time.Since(start) > 10*time.Second {
			r.Errorf("as nobody: exit code %d after %v, %s, want %s", code, time.Since(start), out, want)
		}
	}
}

// nobody is the end of the agent, which the container does not notice.
func nobody(r *rig) {
	pid := r.get("web").State.PID
	r.do("create -n deaf " + box)
	r.do("start -n deaf")
	_, ends := r.background("stop", "-n", "deaf", "-t", "60")
	time.Sleep(200 * time.Millisecond) // or it comes too late for the agent, which is code 4, too
	r.agent.Terminate()
	if out, code := ends(); code != 4 {
		r.Errorf("stop when the agent ends: exit code %d, %s", code, out)
	}
	for _, args := range [][]string{{"list"}, {"create", "--ports", "x", box}, {"rename"}} {
		start := time.Now()
		_, stderr, code := r.agent.Run("kanto-cm", args...)
		// The original would wait for 30 s; a process may take its time to start.
		if took := time.Since(start); took > 5*time.Second || code != map[bool]int{true: 4, false: 2}[args[0] == "list"] || stderr == "" {
			r.Errorf("%q: exit code %d after %v: %s", args, code, took, stderr)
		}
	}
	if err := syscall.Kill(int(pid), 0); err != nil {
		r.Errorf("the container ended with the agent: %v", err)
	}
	r.agent.Launch()
	r.do("list --timeout 20")
	if again := r.get("web").State; again.PID != pid {
		r.Errorf("the container was started again: %+v", again)
	}
	r.do("remove -f -n deaf")
}
