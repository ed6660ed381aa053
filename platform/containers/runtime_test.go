// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/ctrnet"
	"sdvbox/platform/images"
	"sdvbox/testing/ctrd"
)

// noNetwork leaves each container alone.
type noNetwork struct{}

func (noNetwork) Attach(context.Context, *ctrmodel.Container) (string, error) { return "", nil }
func (noNetwork) Describe(*ctrmodel.Container)                                {}
func (noNetwork) Detach(context.Context, string) error                        { return nil }
func (noNetwork) Restore(context.Context, []string) error                     { return nil }

const busybox = "example.org/busybox:1"

// newRealRig is an engine on a real containerd that has an image with busybox.
func newRealRig(t *testing.T) (*rig, *ctrd.Daemon) {
	d := ctrd.Start(t)
	client := containerd.New(d.Socket, "kanto-cm")
	t.Cleanup(func() { client.Close() })
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	store, err := images.New(images.Config{Client: client, Root: d.Dir, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, cfg: Config{StateDir: t.TempDir(), StopTimeout: 5 * time.Second, Log: log}}
	r.parts = Parts{Client: client, Images: store, Network: noNetwork{}, Namespace: "kanto-cm",
		LogDir: filepath.Join(r.cfg.StateDir, "logs"), ExecDir: filepath.Join(r.cfg.StateDir, "run"), Log: log}
	r.start()
	list, err := store.Import(t.Context(), busyboxArchive(t))
	if err != nil || len(list) != 1 || list[0].Ref != busybox {
		t.Fatalf("import: %+v, %v", list, err)
	}
	return r, d
}

// busyboxArchive makes an OCI archive.
func busyboxArchive(t testing.TB) (file string) {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	var plain, packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	layer := tar.NewWriter(io.MultiWriter(&plain, z))
	for _, dir := range []string{"bin", "etc", "proc", "dev", "sys", "tmp"} {
		layer.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755})
	}
	add := func(w *tar.Writer, name string, mode int64, data []byte) {
		w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(data))})
		w.Write(data)
	}
	add(layer, "bin/busybox", 0o755, program)
	add(layer, "etc/passwd", 0o644, []byte("root:x:0:0::/:/bin/sh\nradio:x:77:78::/:/bin/sh\n"))
	for _, link := range []string{"sh", "sleep", "cat", "true", "id", "seq", "httpd"} {
		layer.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + link, Linkname: "busybox"})
	}
	layer.Close()
	z.Close()

	file = filepath.Join(t.TempDir(), "busybox.tar")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	blob := func(kind string, data []byte) v1.Descriptor {
		d := digest.FromBytes(data)
		add(w, "blobs/sha256/"+d.Encoded(), 0o644, data)
		return v1.Descriptor{MediaType: kind, Digest: d, Size: int64(len(data))}
	}
	object := func(kind string, v any) v1.Descriptor {
		data, _ := json.Marshal(v)
		return blob(kind, data)
	}
	config := v1.Image{Platform: v1.Platform{Architecture: runtime.GOARCH, OS: "linux"}, Config: v1.ImageConfig{Env: []string{"PATH=/bin"}},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(plain.Bytes())}}}
	manifest := object(v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: object(v1.MediaTypeImageConfig, config), Layers: []v1.Descriptor{blob(v1.MediaTypeImageLayerGzip, packed.Bytes())},
	})
	manifest.Annotations = map[string]string{"io.containerd.image.name": busybox}
	index, _ := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{manifest}})
	add(w, "index.json", 0o644, index)
	add(w, "oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return file
}

func cmd(args ...string) func(*ctrmodel.Container) {
	return func(c *ctrmodel.Container) { c.Config.Cmd = args }
}

var (
	stubborn = cmd("/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done")
	obedient = cmd("/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done")
)

func TestRealStops(t *testing.T) {
	t.Parallel()
	r, _ := newRealRig(t)
	ctx := t.Context()
	id := r.make("quick", cmd("/bin/sleep", "1000"), policy(ctrmodel.RestartAlways, 0))
	stops := 10
	if os.Getenv("SDVBOX_LONG") == "1" {
		stops = 200
	}
	begin := time.Now()
	for n := range stops {
		r.must(r.Start(ctx, id))
		if err := r.Stop(ctx, id, ctrmodel.StopOptions{Timeout: 5, Signal: "SIGKILL"}); err != nil {
			t.Fatalf("stop %d: %v", n, err)
		}
	}
	t.Logf("start and stop: %v each", time.Since(begin)/time.Duration(stops))
	id = r.running("obedient", obedient)
	r.must(r.Stop(ctx, id, ctrmodel.StopOptions{}))
	if s := r.get(id).State; s.ExitCode != 0 || s.Status != ctrmodel.Stopped {
		t.Errorf("state %+v", s)
	}
	id = r.running("stubborn", stubborn)
	r.wantKind(r.Stop(ctx, id, ctrmodel.StopOptions{Timeout: 1}), ctrmodel.DeadlineExceeded)
	r.must(r.Pause(ctx, id))
	r.must(r.Stop(ctx, id, ctrmodel.StopOptions{Timeout: 1, Force: true}))
	if s := r.get(id).State; s.ExitCode != 137 {
		t.Errorf("state %+v", s)
	}
	id = r.running("short", cmd("/bin/sh", "-c", "exit 3"), policy(ctrmodel.RestartNever, 0))
	if s := r.awaitStatus(id, ctrmodel.Exited).State; s.ExitCode != 3 {
		t.Errorf("state %+v", s)
	}
	id = r.running("greedy", cmd("/bin/sh", "-c", "x=12345678; while :; do x=$x$x; done"), policy(ctrmodel.RestartNever, 0),
		func(c *ctrmodel.Container) { c.HostConfig.Resources.Memory = "16M" })
	if s := r.awaitStatus(id, ctrmodel.Exited).State; s.ExitCode != 137 || !s.OOMKilled {
		t.Errorf("state %+v", s)
	}
	id = r.make("nothing", cmd("/bin/missing"))
	if err := r.Start(ctx, id); err == nil || !strings.Contains(err.Error(), "/bin/missing") {
		t.Errorf("error %v", err)
	}
	for _, a := range r.list() {
		r.must(r.Remove(ctx, a.id, true, ctrmodel.StopOptions{Signal: "KILL"}))
	}
	r.clean()
}

// clean makes sure that nothing is left in containerd.
func (r *rig) clean() {
	r.t.Helper()
	c := r.parts.Client
	objects, err := c.Containers.List(r.t.Context())
	r.must(err)
	tasks, err := c.Tasks.List(r.t.Context())
	r.must(err)
	snapshots, err := c.Snapshots.List(r.t.Context())
	r.must(err)
	if len(objects) != 0 || len(tasks) != 0 || len(snapshots) != 1 {
		r.t.Errorf("left behind: containers %v, tasks %v, snapshots %v", objects, tasks, snapshots)
	}
}

func TestRealContainerdIsKilled(t *testing.T) {
	t.Parallel()
	r, d := newRealRig(t)
	ctx := t.Context()
	goesOn, ends, never := r.running("goes-on", obedient), r.running("ends", obedient), r.running("never", obedient, policy(ctrmodel.RestartNever, 0))
	d.Kill()
	for r.Ready() == nil {
		time.Sleep(time.Millisecond)
	}
	r.wantKind(r.Stop(ctx, goesOn, force), ctrmodel.Unavailable)
	for _, id := range []string{ends, never} {
		r.must(syscall.Kill(int(r.get(id).State.PID), syscall.SIGKILL))
	}
	d.Run()
	r.await(ends, "restarted", func(c *ctrmodel.Container) bool { return c.RestartCount == 1 && c.State.Running })
	// From version 1.7 on, containerd throws away at its start what has ended before.
	if s := r.awaitStatus(never, ctrmodel.Exited).State; s.ExitCode != 137 && s.Error == "" {
		t.Errorf("state %+v", s)
	}
	r.must(syscall.Kill(int(r.get(goesOn).State.PID), syscall.SIGKILL))
	r.await(goesOn, "restarted", func(c *ctrmodel.Container) bool { return c.RestartCount == 1 && c.State.Running })
	r.must(r.Stop(ctx, goesOn, force))
	for _, a := range r.list() {
		r.must(r.Remove(ctx, a.id, true, ctrmodel.StopOptions{Signal: "KILL"}))
	}
	r.clean()
}

func TestRealShimIsKilled(t *testing.T) {
	t.Parallel()
	r, d := newRealRig(t)
	id := r.running("a", obedient)
	for _, s := range d.Shims() {
		syscall.Kill(s.Pid, syscall.SIGKILL)
	}
	r.await(id, "restarted", func(c *ctrmodel.Container) bool { return c.RestartCount == 1 && c.State.Running })
	r.must(r.Remove(t.Context(), id, true, force))
	r.clean()
}

func TestRealAgentRestart(t *testing.T) {
	t.Parallel()
	r, _ := newRealRig(t)
	id, ended := r.running("a", obedient), r.running("b", obedient, policy(ctrmodel.RestartNever, 0))
	pid := r.get(id).State.PID
	r.stop()
	r.must(syscall.Kill(int(r.get(ended).State.PID), syscall.SIGKILL))
	r.start()
	if s := r.awaitStatus(ended, ctrmodel.Exited).State; s.ExitCode != 137 {
		t.Errorf("state %+v", s)
	}
	if c := r.awaitStatus(id, ctrmodel.Running); c.State.PID != pid {
		t.Errorf("pid %d, was %d", c.State.PID, pid)
	}
	s, err := r.Stats(t.Context(), id)
	if err != nil || s.PIDs == 0 || s.Memory == 0 || s.CPU == 0 || s.SystemCPU <= s.CPU || s.MemoryMax == 0 {
		t.Errorf("stats %+v, %v", s, err)
	}
	r.must(syscall.Kill(int(pid), syscall.SIGKILL))
	r.await(id, "restarted", func(c *ctrmodel.Container) bool { return c.RestartCount == 1 && c.State.Running })
	for _, a := range r.list() {
		r.must(r.Remove(t.Context(), a.id, true, ctrmodel.StopOptions{Signal: "KILL"}))
	}
	r.clean()
}

func TestRealStreams(t *testing.T) {
	t.Parallel()
	r, _ := newRealRig(t)
	ctx := t.Context()
	count := cmd("/bin/sh", "-c", "i=0; while :; do echo line $i; i=$((i+1)); done")
	id := r.running("chatty", count, func(c *ctrmodel.Container) {
		c.HostConfig.Log.Driver = ctrmodel.LogDriver{Type: ctrmodel.LogFile, MaxFiles: 1, MaxSize: "1G"}
	})
	for range 3 { // what it says while nobody is there waits
		time.Sleep(50 * time.Millisecond)
		r.restart()
	}
	lines := func() (n int) {
		r.must(r.Logs(ctx, id, ctrmodel.LogOptions{Tail: -1}, func([]byte) error { n++; return nil }))
		return n
	}
	whole := 0
	more := func() {
		for whole = lines(); lines() < whole+1000; {
			time.Sleep(time.Millisecond)
		}
	}
	more()
	r.stop()
	whole = lines()
	r.parts.ExecDir += "-other" // the next agent is another one, and the line that was just being written is cut
	r.start()
	r.awaitStatus(id, ctrmodel.Running)
	before := whole
	more()
	whole = before
	r.must(r.Stop(ctx, id, ctrmodel.StopOptions{Signal: "KILL"}))
	n := 0
	r.must(r.Logs(ctx, id, ctrmodel.LogOptions{Tail: -1}, func(line []byte) error {
		var l struct{ Log string }
		if err := json.Unmarshal(line, &l); err != nil || l.Log != fmt.Sprintf("line %d\n", n) && n < whole {
			t.Fatalf("line %d of the log: %s", n, line)
		}
		n++
		return nil
	}))
	if n < 100 {
		t.Errorf("%d lines", n)
	}

	// Exec: output, exit code, user, input, and many at a time.
	id = r.running("a", obedient)
	var out, errs bytes.Buffer
	code, err := r.Exec(ctx, id, ctrmodel.ExecOptions{Args: []string{"sh", "-c", "id -u; cat; echo bad >&2; echo $X; exit 7"}, User: "radio", Env: []string{"X=y"}},
		ctrmodel.Streams{Stdin: strings.NewReader("typed\n"), Stdout: &out, Stderr: &errs})
	if code != 7 || err != nil || out.String() != "77\ntyped\ny\n" || errs.String() != "bad\n" {
		t.Errorf("exec: %d, %v, %q, %q", code, err, out.String(), errs.String())
	}
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			var out bytes.Buffer
			code, err := r.Exec(ctx, id, ctrmodel.ExecOptions{Args: []string{"seq", "5000"}}, ctrmodel.Streams{Stdout: &out})
			if code != 0 || err != nil || out.Len() != 23893 {
				t.Errorf("exec: %d, %v, %d bytes", code, err, out.Len())
			}
		})
	}
	all.Wait()
	_, err = r.Exec(ctx, id, ctrmodel.ExecOptions{Args: []string{"missing"}}, ctrmodel.Streams{})
	r.wantKind(err, ctrmodel.FailedPrecondition)
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	_, err = r.Exec(short, id, ctrmodel.ExecOptions{Args: []string{"sleep", "1000"}}, ctrmodel.Streams{})
	r.wantKind(err, ctrmodel.DeadlineExceeded)
	if s, err := r.Stats(ctx, id); err != nil || s.PIDs > 3 { // the shell and its sleep
		t.Errorf("an exec that nobody waits for goes on: %+v, %v", s, err)
	}

	// Attached before the start, nothing is missed.
	id = r.make("cat", cmd("cat"), policy(ctrmodel.RestartNever, 0), func(c *ctrmodel.Container) { c.IOConfig.OpenStdin, c.IOConfig.StdinOnce = true, true })
	attached, ended := make(chan struct{}), make(chan error, 1)
	in, typed := io.Pipe()
	var echo bytes.Buffer
	go func() {
		ended <- r.Attach(ctx, id, ctrmodel.Streams{Stdin: in, Stdout: &echo}, func() { close(attached) })
	}()
	<-attached
	r.must(r.Start(ctx, id))
	io.WriteString(typed, "hello\n")
	typed.Close()
	if err := <-ended; err != nil || echo.String() != "hello\n" {
		t.Errorf("attached: %v, %q", err, echo.String())
	}
	if s := r.awaitStatus(id, ctrmodel.Exited).State; s.ExitCode != 0 {
		t.Errorf("state %+v", s)
	}
	for _, a := range r.list() {
		r.must(r.Remove(ctx, a.id, true, ctrmodel.StopOptions{Signal: "KILL"}))
	}
	r.clean()
	if left, _ := filepath.Glob(filepath.Join(r.parts.ExecDir, "*", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(r.parts.LogDir, "*", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

var _ Network = (*ctrnet.Network)(nil)

func TestRealNetwork(t *testing.T) {
	t.Parallel()
	r, _ := newRealRig(t)
	ctx := t.Context()
	// Others may run this test at the same time.
	pid := os.Getpid()
	bridge, subnet := fmt.Sprintf("sdv-e%d", pid), fmt.Sprintf("10.%d.%d.", 200+pid>>8%50, pid%256)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	r.must(err)
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	published := fmt.Sprint("127.0.0.1:", port)
	use := func() {
		network, err := ctrnet.New(ctrnet.Config{Dir: filepath.Join(r.cfg.StateDir, "net"), Bridge: bridge, IP4: subnet + "1/24", ICC: true, Rules: true,
			Forward: true, Masq: true, Log: r.parts.Log})
		r.must(err)
		r.parts.Network = network
	}
	r.stop()
	use()
	r.start()
	t.Cleanup(func() {
		exec.Command("ip", "link", "delete", bridge).Run()
		exec.Command("nft", "delete", "table", "inet", "sdvbox-"+bridge).Run()
	})
	web := r.running("web", cmd("/bin/sh", "-c", "echo hello >/tmp/index.html; exec httpd -f -p 80 -h /tmp"), func(c *ctrmodel.Container) {
		c.HostConfig.Ports = []ctrmodel.Port{{Container: 80, HostPort: port}}
	})
	c := r.get(web)
	address := c.NetworkSettings.Networks["bridge"].IPAddress
	if !strings.HasPrefix(address, subnet) {
		t.Errorf("address %q", address)
	}
	get := func(host string) {
		t.Helper()
		var err error
		hasty := &http.Client{Timeout: time.Second}
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
			var resp *http.Response
			if resp, err = hasty.Get("http://" + host + "/"); err == nil {
				text, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if string(text) != "hello\n" {
					t.Errorf("%s says %q", host, text)
				}
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("%s: %v", host, err)
	}
	get(address)
	get(published)
	// Another one cannot have the port, and is not half there.
	other := r.make("other", obedient, func(c *ctrmodel.Container) {
		c.HostConfig.Ports = []ctrmodel.Port{{Container: 80, HostPort: port}}
	})
	if err := r.Start(ctx, other); err == nil || !strings.Contains(err.Error(), fmt.Sprint(port)) {
		t.Errorf("error %v", err)
	}
	if s := r.get(other).State; s.Status != ctrmodel.Stopped || s.Error == "" {
		t.Errorf("state %+v", s)
	}
	r.must(r.Remove(ctx, other, false, force))
	// They know each other, as long as they run, and over the end of an agent.
	client := r.running("client", obedient, func(c *ctrmodel.Container) { c.HostConfig.ExtraHosts = []string{"server:container_web-host"} })
	r.restart()
	r.awaitStatus(client, ctrmodel.Running)
	get(address)
	get(published)
	var hosts bytes.Buffer
	code, err := r.Exec(ctx, client, ctrmodel.ExecOptions{Args: []string{"cat", "/etc/hosts"}}, ctrmodel.Streams{Stdout: &hosts})
	if code != 0 || err != nil || !regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(address)+`\s.*\bserver\b`).MatchString(hosts.String()) {
		t.Errorf("cat: %d, %v, %q", code, err, hosts.String())
	}
	if s, err := r.Stats(ctx, web); err != nil || s.NetRead == 0 || s.NetWritten == 0 {
		t.Errorf("stats %+v, %v", s, err)
	}
	for _, a := range r.list() {
		r.must(r.Remove(ctx, a.id, true, ctrmodel.StopOptions{Signal: "KILL"}))
	}
	r.clean()
	if left, _ := filepath.Glob(filepath.Join(r.cfg.StateDir, "net", "*", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
