// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/ctragent"
	"sdvbox/testing/ctrd"
)

// cliPeer is the environment variable with the path of the original kanto-cm.
const cliPeer = "PEER_KANTO_CLI"

// box is the image of the containers.
const box = "example.org/box:1"

// clis are both command lines, with our agent.
type clis struct {
	t     *testing.T
	agent *ctragent.Agent
	path  string // of the original
}

// original runs the original.
func (c *clis) original(stdin string, args ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), c.path, append([]string{args[0], "--host", c.agent.Socket}, args[1:]...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		c.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must runs the original, which has to succeed.
func (c *clis) must(line string) (stdout string) {
	c.t.Helper()
	stdout, stderr, code := c.original("", strings.Fields(line)...)
	if code != 0 {
		c.t.Fatalf("%s: exit code %d, %s%s", line, code, stdout, stderr)
	}
	return stdout
}

// same has both say the same.
func (c *clis) same(line string) {
	c.t.Helper()
	theirs := c.must(line)
	ours, stderr, code := c.agent.Run("kanto-cm", strings.Fields(line)...)
	if diff := cmp.Diff(theirs, ours); diff != "" || code != 0 {
		c.t.Errorf("%s: ours: exit code %d, %s(-original +ours):\n%s", line, code, stderr, diff)
	}
}

// get returns what the engine has of a container.
func (c *clis) get(name string) *ctrmodel.Container {
	c.t.Helper()
	list, err := c.agent.List(c.t.Context())
	must(c.t, err)
	for _, found := range list {
		if found.Name == name {
			return found
		}
	}
	c.t.Fatalf("there is no container %s", name)
	return nil
}

func TestTheOriginalCommandLineManagesOurContainers(t *testing.T) {
	path := os.Getenv(cliPeer)
	if path == "" {
		t.Skip(cliPeer + " does not name the original kanto-cm")
	}
	shell, err := os.ReadFile("/bin/busybox")
	must(t, err)
	agent := ctragent.Start(t, ctragent.Build(t), ctrd.Start(t), nil)
	agent.Import(ctragent.NewImage(box, v1.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"sleep", "1000"}},
		map[string][]byte{"bin/sh": shell, "bin/cat": shell, "bin/sleep": shell}))
	c := &clis{t, agent, path}

	t.Run("create", c.create)
	t.Run("list, get and sysinfo", c.show)
	t.Run("logs", c.logs)
	t.Run("start and stop", c.startAndStop)
	t.Run("attached", c.attached)
	t.Run("update and rename", c.change)
	t.Run("errors", c.errors)
	t.Run("remove", c.remove)
}

// create makes containers of the same options with both.
func (c *clis) create(t *testing.T) {
	c.t = t
	file := filepath.Join(t.TempDir(), "container.json")
	must(t, os.WriteFile(file, []byte(`{"image":{"name":"`+box+`"},"config":{"env":["A=1"]},"host_config":{"network_mode":"host"}}`), 0o600))
	key := filepath.Join(t.TempDir(), "key.pem")
	for _, options := range []string{
		"", "--t --i", "--privileged", "--rp no", "--rp always", "--rp unless-stopped", "--rp on-failure --rp-cnt 3 --rp-to 5",
		"--devices /dev/null:/dev/a,/dev/zero:/dev/b:rm", "--ports 18080:80 --ports 127.0.0.1:18081-18089:81/udp", "--network host", "--network bridge",
		"--hosts a:10.0.0.1,b:host_ip --hosts c:container_x", "--cap-add CAP_NET_ADMIN,CAP_SYS_TIME", "--mp /tmp:/a,/var:/b:rshared", "--e A=1 --e B=2,3 --e PATH",
		"--log-driver none", "--log-max-files 3 --log-max-size 2M --log-path /tmp/logs", "--log-mode non-blocking --log-max-buffer-size 64k",
		"--memory 64M", "-m 64M --memory-reservation 32M --memory-swap 96M", "-m 64M --memory-swap -1", "--dec-keys " + key + ":x --dec-recipients pkcs7:" + key,
	} {
		var made [2]*ctrmodel.Container
		for i, run := range []func(...string) (string, string, int){
			func(args ...string) (string, string, int) {
				return c.original("", append([]string{"create"}, args...)...)
			},
			func(args ...string) (string, string, int) {
				return c.agent.Run("kanto-cm", append([]string{"create"}, args...)...)
			},
		} {
			args := append(strings.Fields("-n same "+options), box, "sleep", "7")
			out, stderr, code := run(args...)
			if code != 0 || strings.Count(out, "\n") != 1 {
				t.Errorf("create %q: exit code %d, %q, %s", args, code, out, stderr)
				break
			}
			var err error
			made[i], err = c.agent.Get(t.Context(), strings.TrimSpace(out))
			must(t, err)
			made[i].ID, made[i].Created = "", ""
			c.must("remove -n same")
		}
		if diff := cmp.Diff(made[0], made[1]); diff != "" {
			t.Errorf("create %s (-original +ours):\n%s", options, diff)
		}
	}
	if id := strings.TrimSpace(c.must("create --file " + file)); c.get(id).HostConfig.NetworkMode != "host" {
		t.Error("the file is not as it was written")
	} else {
		c.must("remove " + id)
	}
}

func (c *clis) show(t *testing.T) {
	c.t = t
	c.same("list")
	c.same("list -q")
	one := strings.TrimSpace(c.must("create --name one --e A=1 " + box + " sleep 1000"))
	c.must("create --name two --rp no " + box + " sh -c false")
	c.must("start -n one")
	c.must("start " + c.get("two").ID)
	c.agent.Eventually(limit, "end of two", func() bool { return c.get("two").State.Status == ctrmodel.Exited })
	for _, line := range []string{
		"list", "list -n two", "list --quiet", "list --filter status=running", "list --filter status=exited,exitcode=1", "list --filter image=" + box + " -q",
		"list --filter exitcode=7", "list -n nobody", "get -n one", "get " + one, "get --name two",
	} {
		c.same(line)
	}
	ours, _, _ := c.agent.Run("kanto-cm", "sysinfo")
	engine := regexp.MustCompile(`^Engine v\S+, API v1\.0\.0, \(build \S+ \S+\) \nCLI v`)
	if theirs := c.must("sysinfo"); !engine.MatchString(theirs) || !engine.MatchString(ours) {
		t.Errorf("sysinfo: original %q, ours %q", theirs, ours)
	}
}

func (c *clis) logs(t *testing.T) {
	c.t = t
	c.original("", "create", "--name", "speaker", "--rp", "no", box, "sh", "-c", "i=0; while [ $i -lt 150 ]; do echo grün $i; i=$((i+1)); done; echo last >/dev/stderr")
	c.must("start -n speaker")
	c.agent.Eventually(limit, "the speaker's end", func() bool { return c.get("speaker").State.Status == ctrmodel.Exited })
	for options, want := range map[string]int{"": 100, "-t 3": 3, "--tail 151": 151, "--tail 1000": 151, "-t -1": 151, "-t 0": 0} {
		args := strings.Fields("logs -n speaker " + options)
		theirs, stderr, code := c.original("", args...)
		ours, _, _ := c.agent.Run("kanto-cm", append(args, "--output", "json")...)
		if got := strings.Count(strings.TrimSpace(theirs)+"\n", "\n"); code != 0 || want > 0 && got != want || strings.TrimSpace(theirs) != strings.TrimSpace(ours) {
			t.Errorf("%q: exit code %d, %s, %d lines, want %d:\n%.200q\nours:\n%.200q", args, code, stderr, got, want, theirs, ours)
		}
	}
	c.must("remove -n speaker")
}

func (c *clis) startAndStop(t *testing.T) {
	c.t = t
	c.original("", "create", "--name", "stubborn", box, "sh", "-c", `trap "" TERM; echo deaf; while true; do sleep 0.1; done`)
	c.must("start -n stubborn")
	c.deaf(1)
	if _, _, code := c.original("", "stop", "-n", "stubborn", "--time", "1s"); code != 1 || c.get("stubborn").State.Status != ctrmodel.Running {
		t.Errorf("stop without force: exit code %d, then %v", code, c.get("stubborn").State.Status)
	}
	for n, options := range []string{"--time 1s --force", "-s SIGKILL", "-t 1m15s -f -s 9"} {
		c.must("stop -n stubborn " + options)
		if state := c.get("stubborn").State; state.Status != ctrmodel.Stopped || state.ExitCode != 137 {
			t.Errorf("stop %s: %+v", options, state)
		}
		c.must("start -n stubborn")
		c.deaf(n + 2)
	}
	c.must("remove -f -t 1s -n stubborn")
}

// deaf waits until the container does not hear a signal any more, for the n-th time.
func (c *clis) deaf(n int) {
	c.agent.Eventually(limit, "the trap", func() bool {
		out, _, _ := c.agent.Run("kanto-cm", "logs", "-n", "stubborn")
		return strings.Count(out, "deaf\n") == n
	})
}

func (c *clis) attached(t *testing.T) {
	c.t = t
	c.original("", "create", "--name", "short", "--rp", "no", box, "sh", "-c", "echo out; echo err >/dev/stderr")
	if out, stderr, code := c.original("", "start", "-n", "short", "--a"); code != 0 || !strings.Contains(out, "out\n") || !strings.Contains(out, "err\n") {
		t.Errorf("start --a: exit code %d, %q, %s", code, out, stderr)
	}
	c.must("remove -n short")
	c.original("", "create", "--name", "echo", "--rp", "no", "--i", box, "sh", "-c", "read a; echo got $a")
	if out, stderr, code := c.original("hello\n", "start", "-n", "echo", "--a", "--i"); code != 0 || !strings.Contains(out, "got hello\n") {
		t.Errorf("start --a --i: exit code %d, %q, %s", code, out, stderr)
	}
	c.must("remove -n echo")
	c.original("", "create", "--name", "screen", "--rp", "no", "--i", "--t", box, "sh", "-c", "test -t 0 && test -t 1 && read a && echo got $a")
	command := c.path + " start --host " + c.agent.Socket + " -n screen --a --i"
	cmd := exec.Command("script", "-qec", command, "/dev/null")
	input, err := cmd.StdinPipe()
	must(t, err)
	time.AfterFunc(500*time.Millisecond, func() { input.Write([]byte("hello\r")) })
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "got hello") {
		t.Errorf("with a terminal: %v, %q", err, out)
	}
	c.must("remove -n screen")
}

func (c *clis) change(t *testing.T) {
	c.t = t
	c.must("create --name it " + box)
	c.must("start -n it")
	for _, step := range []struct {
		options string
		policy  ctrmodel.RestartPolicy
		limits  ctrmodel.Resources
	}{
		{"--rp on-failure --rp-cnt 3 --rp-to 7", ctrmodel.RestartPolicy{Type: "on-failure", MaxRetries: 3, RetryTimeout: ctrmodel.Seconds(7)}, ctrmodel.Resources{}},
		{"--rp-cnt 4", ctrmodel.RestartPolicy{Type: "on-failure", MaxRetries: 4, RetryTimeout: ctrmodel.Seconds(7)}, ctrmodel.Resources{}},
		{"--rp always", ctrmodel.RestartPolicy{Type: "always"}, ctrmodel.Resources{}},
		{"-m 64M --memory-swap 128M --memory-reservation 32M", ctrmodel.RestartPolicy{Type: "always"}, ctrmodel.Resources{Memory: "64M", MemorySwap: "128M", MemoryReservation: "32M"}},
		{"--memory-reservation -1", ctrmodel.RestartPolicy{Type: "always"}, ctrmodel.Resources{Memory: "64M", MemorySwap: "128M"}},
		{"--memory -1 --memory-swap -1", ctrmodel.RestartPolicy{Type: "always"}, ctrmodel.Resources{}},
	} {
		c.must("update -n it " + step.options)
		if got := c.get("it").HostConfig; got.RestartPolicy != step.policy || got.Resources != step.limits {
			t.Errorf("update %s: %+v, %+v", step.options, got.RestartPolicy, got.Resources)
		}
	}
	c.must("rename -n it other")
	c.must("rename " + c.get("other").ID + " it")
	c.get("it")
}

// errors are the same mistakes: the original exits with 1 then, and ours not with 0.
func (c *clis) errors(t *testing.T) {
	c.t = t
	for _, line := range []string{
		"get", "get nobody", "get -n nobody", "get -n it x", "start", "start nobody", "start -n it", "stop -n two", "stop -n nobody", "stop -n it -s SIGFOO", "stop -n it -t soon",
		"rename -n nobody x", "rename -n it a/b", "rename -n it one", "remove nobody", "remove -n it", "remove", "remove x y", "update", "update nobody --rp no",
		"update -n it --memory 1M", "update -n it --rp never", "logs", "logs nobody", "list --filter colour=red", "create", "create --name one " + box, "create --ports 80 " + box,
		"create --network host --ports 80:80 " + box, "create --mp bad " + box, "create --devices a:b:rwx " + box, "create --hosts a:b:c " + box, "create localhost:1/none:1",
		"create --file /none/x.json", "create --name a/b " + box, "create --privileged --cap-add CAP_SYS_TIME " + box, "create --e =1 " + box, "bogus",
	} {
		_, theirs, code := c.original("", strings.Fields(line)...)
		_, ours, other := c.agent.Run("kanto-cm", strings.Fields(line)...)
		if code != 1 || other == 0 || !strings.Contains(theirs, "Error") || ours == "" {
			t.Errorf("%s: original: exit code %d, %s; ours: %d, %s", line, code, theirs, other, ours)
		}
	}
	var all []*ctrmodel.Container
	out, _, _ := c.agent.Run("kanto-cm", "list", "--output", "json")
	must(t, json.Unmarshal([]byte(out), &all))
	if len(all) != 3 {
		t.Errorf("after mistakes there are %d containers, want 3", len(all))
	}
}

func (c *clis) remove(t *testing.T) {
	c.t = t
	if _, stderr, code := c.original("", "remove", c.get("two").ID, "nobody", "--force", "--time", "1s"); code != 1 || !strings.Contains(stderr, "nobody") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	c.must("remove -f -t 1s " + c.get("one").ID + " " + c.get("it").ID)
	if list, err := c.agent.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
	c.same("list")
}
