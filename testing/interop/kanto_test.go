// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
	"testing"

	"sdvbox/testing/agents"
	"sdvbox/testing/broker"
	"sdvbox/testing/managers"
)

// containersPeer is the environment variable with the path of the original container management, whose update agent is the
// agent of the domain containers in the field.
const containersPeer = "PEER_KANTO_CM"

func TestOurManagerDrivesTheOriginalContainerAgent(t *testing.T) {
	peer := os.Getenv(containersPeer)
	if peer == "" {
		t.Skip(containersPeer + " does not name the original container management, nothing to drive")
	}
	for _, tool := range []string{"containerd", "ctr", "runc"} {
		if _, err := exec.LookPath(tool); err != nil || os.Geteuid() != 0 {
			t.Fatalf("the original container management needs root and %s: %v", tool, err)
		}
	}
	dir, err := os.MkdirTemp("/tmp", "kanto") // short, for the names of sockets
	must(t, err)
	t.Cleanup(func() {
		unmount(t, dir)
		os.RemoveAll(dir)
	})
	runtime := startContainerd(t, dir)
	b := broker.Start(t, broker.Options{})
	domains := []string{"containers", "self-update"}
	heard := agents.Record(t, b.URL(), "containersupdate/#")
	defer func() {
		if t.Failed() {
			for _, m := range heard.Messages() {
				t.Log(m.At.Format("05.000"), m.ID, m)
			}
		}
	}()
	start(t, peer, "--conn-broker-url", b.URL(), "--ua-enable", "--things-enable=false", "--deployment-enable=false", "--net-tbr-disable",
		"--ccl-ap", runtime.socket, "--ccl-home-dir", dir+"/home", "--ccl-exec-root-dir", dir+"/exec", "--cm-home-dir", dir+"/home", "--cm-exec-root-dir", dir+"/exec",
		"--net-home-dir", dir+"/home", "--net-exec-root-dir", dir+"/exec", "--grpc-serv-ap", dir+"/cm.sock", "--log-file", dir+"/cm.log", "--log-level", "DEBUG")
	t.Cleanup(func() {
		if log, err := os.ReadFile(dir + "/cm.log"); err == nil && t.Failed() {
			t.Logf("%s:\n%s", peer, log)
		}
	})
	agents.Eventually(t, limit, "current state of the original agent", func() bool { return len(heard.Messages()) > 0 })
	self := agents.Start(t, b.URL(), agents.Script{Domain: domains[1], Style: agents.Leda})
	managers.Start(t, managers.Build(t, "update-manager"), b.URL(), managers.Config(b.URL(), t.TempDir(), domains, map[string]any{"failurePolicy": "all"}))
	north := agents.Watch(t, b.URL(), "vehicle")

	// update asks for a version of the container beside one of the image, and says what then is there.
	update := func(id, version, image, want string) (state string) {
		t.Helper()
		north.Apply(id, map[string]any{"domains": []any{
			map[string]any{"id": "containers", "components": []any{map[string]any{"id": "app", "version": version, "config": []any{
				map[string]string{"key": "image", "value": image}, map[string]string{"key": "network", "value": "host"}}}}},
			map[string]any{"id": "self-update", "components": []any{map[string]any{"id": "os-image", "version": version, "config": []any{
				map[string]string{"key": "image", "value": "https://bundles.example/" + version}}}}},
		}})
		f := north.End(id, limit)
		t.Logf("%s: %s %s: %q", id, f.Status, f.Message, statuses(heard.Of(id)))
		if f.Status != want {
			t.Errorf("%s ends with %+v, want %s", id, f, want)
		}
		agents.Eventually(t, limit, "end of "+id+" in the domains", func() bool {
			said := statuses(heard.Of(id))
			last := said[len(said)-1]
			return self.Idle() && (last == "COMPLETED" || last == "INCOMPLETE" || last == "IDENTIFICATION_FAILED")
		})
		if n := strings.Count(runtime.ctr("tasks", "ls"), "RUNNING"); n != 1 {
			t.Errorf("%d containers run after %s, want 1", n, id)
		}
		agents.Eventually(t, limit, "current state after "+id, func() bool { return current(north.Of(id)) != "" })
		return current(north.Of(id))
	}
	if state := update("first", "1", "localhost/pause:1", "COMPLETED"); state != "localhost/pause:1" {
		t.Errorf("running after the first update: %q", state)
	}
	if state := update("second", "2", "localhost/pause:2", "COMPLETED"); state != "localhost/pause:2" {
		t.Errorf("running after the second update: %q", state)
	}
	// The other domain fails after the new container has been started: the old one has to come back.
	self.Change(func(s *agents.Script) { s.Fail = map[string]string{"ACTIVATE": "the slot cannot be marked"} })
	if state := update("third", "3", "localhost/pause:1", "INCOMPLETE"); state != "localhost/pause:2" {
		t.Errorf("running after the third update, which was rolled back: %q", state)
	}
	self.Change(func(s *agents.Script) { s.Fail = nil })
	// An image that nobody has: the agent writes why to its action only.
	if state := update("bad", "5", "localhost:1/nothing:1", "INCOMPLETE"); state != "localhost/pause:2" {
		t.Errorf("running after an update with a bad image: %q", state)
	}
	if f := north.End("bad", limit); !strings.Contains(f.Message, "localhost:1/nothing:1") || self.Installed()["os-image"] != "2" {
		t.Errorf("a bad image is explained by %q, and the other domain has version %s", f.Message, self.Installed()["os-image"])
	}
	if state := update("fourth", "4", "localhost/pause:1", "COMPLETED"); state != "localhost/pause:1" {
		t.Errorf("running after the fourth update: %q", state)
	}
}

// start starts a program that ends with the test.
func start(t *testing.T, path string, args ...string) {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", path, &log)
		}
	})
}

// containerd is a private one.
type containerd struct {
	t      *testing.T
	socket string
}

// startContainerd starts a containerd in a directory, with two images.
func startContainerd(t *testing.T, dir string) *containerd {
	c := &containerd{t, dir + "/c.sock"}
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n", dir+"/root", dir+"/state", c.socket)
	must(t, os.WriteFile(dir+"/config.toml", []byte(config), 0o600))
	start(t, "containerd", "--config", dir+"/config.toml")
	t.Cleanup(c.clear)
	agents.Eventually(t, limit, "containerd", func() bool { return exec.Command("ctr", "-a", c.socket, "version").Run() == nil })
	pause := filepath.Join(dir, "pause")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", pause, "./testdata/pause")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", build, err, out)
	}
	program, err := os.ReadFile(pause)
	must(t, err)
	must(t, os.WriteFile(dir+"/images.tar", image(t, program, "localhost/pause:1", "localhost/pause:2"), 0o600))
	c.ctr("images", "import", dir+"/images.tar")
	return c
}

func (c *containerd) ctr(args ...string) string {
	c.t.Helper()
	out, err := exec.Command("ctr", append([]string{"-a", c.socket, "-n", "kanto-cm"}, args...)...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("ctr %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// current returns the images of the containers in the current state of the vehicle.
func current(messages []agents.Message) string {
	var images []string
	for _, m := range messages {
		var inventory struct {
			SoftwareNodes []struct {
				ID         string
				Parameters []struct{ Key, Value string }
			}
		}
		if m.Topic != "vehicleupdate/currentstate" || json.Unmarshal(m.Payload, &inventory) != nil {
			continue
		}
		for _, n := range inventory.SoftwareNodes {
			for _, p := range n.Parameters {
				if n.ID == "containers:app" && p.Key == "image" {
					images = append(images, p.Value)
				}
			}
		}
	}
	return strings.Join(images, " ")
}

// clear ends the containers, which would live on without containerd.
func (c *containerd) clear() {
	for line := range strings.Lines(c.ctr("tasks", "ls", "-q")) {
		c.ctr("tasks", "rm", "-f", strings.TrimSpace(line))
	}
}

// unmount ends what is mounted below a directory.
func unmount(t *testing.T, dir string) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		if path := strings.Fields(line)[1]; strings.HasPrefix(path, dir+"/") {
			if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", path, err)
			}
		}
	}
}

// image packs one program as an image with some names, as "docker save" does.
func image(t *testing.T, program []byte, names ...string) []byte {
	layer := archive(t, map[string][]byte{"pause": program})
	config, err := json.Marshal(map[string]any{
		"architecture": goruntime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/pause"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	must(t, err)
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": names, "Layers": []string{"layer.tar"}}})
	must(t, err)
	return archive(t, map[string][]byte{"manifest.json": manifest, "config.json": config, "layer.tar": layer})
}

func archive(t *testing.T, files map[string][]byte) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, data := range files {
		must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data))}))
		_, err := w.Write(data)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
