// SPDX-License-Identifier: Apache-2.0

package containeragent

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/applet"
	"sdvbox/platform/cmapi"
	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/ctrd"
	"sdvbox/testing/output"
)

// rig is an agent on a containerd of its own, with an image that is in an archive.
type rig struct {
	t      *testing.T
	dir    string
	config string
	socket string
	client *cmapi.Client
	log    output.Buffer
	stop   func() error // ends the agent
}

func newRig(t *testing.T) *rig {
	d := ctrd.Start(t)
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, dir: dir, config: dir + "/config.json", socket: dir + "/run/sock"}
	for _, sub := range []string{"containers", "images"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.write("config.json", fmt.Sprintf(`{
		"log": {"log_level": "DEBUG"},
		"manager": {"home_dir": "%[1]s/home", "state_dir": "%[1]s/state", "exec_root_dir": "%[1]s/run", "default_ctrs_stop_timeout": 2},
		"containers": {"address_path": %[2]q, "exec_root_dir": "%[1]s/run", "home_dir": "%[1]s/home", "containerd_root": %[3]q},
		"network": {"exec_root_dir": "%[1]s/run", "default_bridge": {"name": "agent-test0"}},
		"grpc_server": {"address_path": %[4]q, "group": "daemon"},
		"deployment": {"ctr_dir": "%[1]s/containers", "manifest_dirs": [], "image_dirs": ["%[1]s/images"], "period": "100ms"},
		"things": {"enable": false}
	}`, dir, d.Socket, d.Dir, r.socket))
	r.write("images/box.tar", archive(t))
	t.Cleanup(func() { // networks outlive agents
		for _, args := range []string{"ip link del agent-test0", "nft delete table inet sdvbox-agent-test0"} {
			words := strings.Fields(args)
			if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
				t.Logf("%s: %v: %s", args, err, out)
			}
		}
	})
	r.client = cmapi.NewClient(r.socket)
	t.Cleanup(func() { r.client.Close() })
	return r
}

func (r *rig) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// start starts the agent.
func (r *rig) start() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	o := newOptions()
	o.CfgFile = r.config
	go func() { ended <- run(ctx, &applet.Call{Name: name, Options: o, Stdout: &r.log, Stderr: &r.log}) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	r.t.Cleanup(func() {
		r.stop()
		if r.t.Failed() {
			r.t.Log(r.log.String())
		}
	})
}

// await waits until a condition is met.
func (r *rig) await(what string, met func() bool) {
	r.t.Helper()
	for range 1500 {
		if met() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.t.Fatalf("%s: not within 15 s", what)
}

// running waits until a container runs.
func (r *rig) running(name string) (found *ctrmodel.Container) {
	r.t.Helper()
	r.await(name+" runs", func() bool {
		list, _ := r.client.List(r.t.Context())
		for _, c := range list {
			if c.Name == name && c.State.Status == ctrmodel.Running {
				found = c
			}
		}
		return found != nil
	})
	return found
}

// archive is an image with busybox, as docker save writes it.
func archive(t *testing.T) string {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		if os.Getenv("SDVBOX_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	pack := func(files ...string) string {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i := 0; i < len(files); i += 2 {
			w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o755, Size: int64(len(files[i+1]))})
			w.Write([]byte(files[i+1]))
		}
		w.Close()
		return b.String()
	}
	layer := pack("bin/sh", string(program), "bin/cat", string(program), "bin/sleep", string(program), "etc/passwd", "root:x:0:0::/:/bin/sh\n")
	config := fmt.Sprintf(`{"architecture":%q,"os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sleep","1000"]},"rootfs":{"type":"layers","diff_ids":["sha256:%x"]}}`,
		runtime.GOARCH, sha256.Sum256([]byte(layer)))
	return pack("config.json", config, "layer.tar", layer,
		"manifest.json", `[{"Config":"config.json","RepoTags":["example.org/box:1"],"Layers":["layer.tar"]}]`)
}

func TestAgentDeploysKeepsAndReloads(t *testing.T) {
	r := newRig(t)
	r.write("containers/web.json", `{"container_name": "web", "image": {"name": "example.org/box:1"}, "config": {"cmd": ["sh", "-c", "echo hello; exec sleep 1000"]}}`)
	r.start()
	web := r.running("web")
	if endpoint := web.NetworkSettings.Networks["bridge"]; endpoint.IPAddress == "" {
		t.Errorf("network %+v", web.NetworkSettings)
	}
	fi, err := os.Stat(r.socket)
	if err != nil || fi.Mode().Perm() != 0o660 || fi.Sys().(*syscall.Stat_t).Gid != 1 {
		t.Errorf("socket: %v, %v", fi, err)
	}
	var out bytes.Buffer
	code, err := r.client.Exec(t.Context(), web.ID, ctrmodel.ExecOptions{Args: []string{"cat", "/etc/hostname"}}, ctrmodel.Streams{Stdout: &out})
	if err != nil || code != 0 || out.String() != "web-host\n" {
		t.Errorf("exec: %d, %v, %q", code, err, &out)
	}

	other := newOptions()
	other.CfgFile = r.config
	if err := run(t.Context(), &applet.Call{Options: other, Stderr: t.Output()}); err == nil || !strings.Contains(err.Error(), "another container agent runs") {
		t.Errorf("a second agent: %v", err)
	}

	data, err := os.ReadFile(r.config)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]map[string]any
	if err := json.Unmarshal(data, &config); err != nil {
		t.Fatal(err)
	}
	config["containers"]["registry_configurations"] = map[string]any{"a.example": map[string]any{}, "b.example": map[string]any{}}
	data, _ = json.Marshal(config)
	r.write("config.json", string(data))
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	r.await("registries are read again", func() bool { return strings.Contains(r.log.String(), "registries=2") })
	if err := errors.Join(os.Rename(r.config, r.config+"~"), syscall.Kill(os.Getpid(), syscall.SIGHUP)); err != nil {
		t.Fatal(err)
	}
	r.await("it is noticed that the file is gone", func() bool { return strings.Contains(r.log.String(), "cannot read the configuration again") })
	if err := os.Rename(r.config+"~", r.config); err != nil {
		t.Fatal(err)
	}

	if err := r.stop(); err != nil {
		t.Errorf("the agent ended with %v", err)
	}
	if err := syscall.Kill(int(web.State.PID), 0); err != nil {
		t.Fatalf("the container ended with the agent: %v", err)
	}
	r.start()
	if again := r.running("web"); again.State.PID != web.State.PID || again.ID != web.ID {
		t.Errorf("it was started again: %+v, before %+v", again.State, web.State)
	}
	var lines []string
	if err := r.client.Logs(t.Context(), web.ID, ctrmodel.LogOptions{Tail: -1}, func(line []byte) error {
		lines = append(lines, string(line))
		return nil
	}); err != nil || len(lines) != 1 || !strings.Contains(lines[0], `"log":"hello\n"`) {
		t.Errorf("logs: %v, %q", err, lines)
	}
	if err := r.client.Remove(t.Context(), web.ID, true, ctrmodel.StopOptions{Timeout: 1, Force: true}); err != nil {
		t.Error(err)
	}
}

func TestEngineGoesOnWithoutAServiceThatFails(t *testing.T) {
	r := newRig(t)
	journal := r.dir + "/state/update-journal" // a directory, so that it cannot be opened
	if err := os.MkdirAll(journal, 0o700); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(r.config)
	if err != nil {
		t.Fatal(err)
	}
	r.write("config.json", strings.Replace(string(data), `"things"`, `"update_agent": {"enable": true}, "things"`, 1))
	r.write("containers/web.json", `{"container_name": "web", "image": {"name": "example.org/box:1"}}`)
	r.start()
	r.await("the failure is told", func() bool { return strings.Contains(r.log.String(), "update agent: open journal: ") })
	web := r.running("web")
	if err := os.Remove(journal); err != nil {
		t.Fatal(err)
	}
	r.await("the service is started again", func() bool {
		fi, err := os.Stat(journal)
		return err == nil && fi.Mode().IsRegular()
	})
	if err := r.client.Remove(t.Context(), web.ID, true, ctrmodel.StopOptions{Timeout: 1, Force: true}); err != nil {
		t.Error(err)
	}
	if err := r.stop(); err != nil {
		t.Errorf("the agent ended with %v", err)
	}
}

func TestWatchdogForgetsAServiceThatHasFailed(t *testing.T) {
	var c checks
	attempts := 0
	keep(t.Context(), 1, slog.New(slog.DiscardHandler), func(ctx context.Context) error {
		if err := c.all(); err != nil {
			t.Error("the one before is asked:", err)
		}
		if attempts++; attempts == 3 {
			return nil
		}
		c.add(ctx, func() error { return errors.New("dead") })
		if c.all() == nil {
			t.Error("is not asked")
		}
		return errors.New("failed")
	})
	if attempts != 3 || len(c.list) != 1 {
		t.Errorf("%d attempts, %d checks", attempts, len(c.list))
	}
}
