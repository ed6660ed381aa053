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
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/ctrnet"
	"sdvbox/platform/daemon"
	"sdvbox/platform/grpc"
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

// runcEnv is the environment variable that names the program to test with in place of runc.
const runcEnv = "SDVBOX_RUNC"

// The tests of a real containerd are the same for all versions and runtimes.
func TestOtherRuntimes(t *testing.T) {
	if os.Getenv("SDVBOX_LONG") != "1" {
		t.Skip("takes its time; set SDVBOX_LONG=1")
	}
	for _, env := range []string{runcEnv + "=crun", ctrd.Env + "=1.7", ctrd.Env + "=2"} {
		t.Run(env, func(t *testing.T) {
			// crun will not have control groups of both versions, which some hosts have.
			cmd := exec.Command("unshare", "-m", "sh", "-c", `umount -l /sys/fs/cgroup/unified 2>/dev/null; exec "$0" -test.run=^TestReal`, os.Args[0])
			cmd.Env = append(os.Environ(), env)
			begin := time.Now()
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			t.Logf("took %v", time.Since(begin))
		})
	}
}

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
		LogDir: filepath.Join(r.cfg.StateDir, "logs"), ExecDir: filepath.Join(r.cfg.StateDir, "run"), Log: log, Runc: os.Getenv(runcEnv)}
	r.start()
	list, err := store.Import(t.Context(), busyboxArchive(t, "PATH=/bin"))
	if err != nil || len(list) != 1 || list[0].Ref != busybox {
		t.Fatalf("import: %+v, %v", list, err)
	}
	return r, d
}

// busyboxArchive makes an OCI archive.
func busyboxArchive(t testing.TB, env ...string) (file string) {
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
	config := v1.Image{Platform: v1.Platform{Architecture: runtime.GOARCH, OS: "linux"}, Config: v1.ImageConfig{Env: env},
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
	obedient = cmd("/bin/sh", "-c", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done")
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
	for ready := false; !ready; time.Sleep(time.Millisecond) {
		r.must(r.Logs(ctx, id, ctrmodel.LogOptions{Tail: 1}, func([]byte) error { ready = true; return nil }))
	}
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
	dir := r.parts.ExecDir
	r.stop()
	r.parts.ExecDir = filepath.Join(dir, "fifo", "77") // where the next agent finds what it knows nothing of
	r.start()
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
		t.Helper()
		end := time.Now().Add(20 * time.Second)
		for whole = lines(); lines() < whole+1000; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("its output is not read")
			}
		}
	}
	more()
	r.stop()
	whole = lines()
	r.parts.ExecDir = dir // the next agent is another one, and the line that was just being written is cut
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
	out.Reset()
	resize := make(chan ctrmodel.WindowSize, 1)
	resize <- ctrmodel.WindowSize{Width: 101, Height: 23}
	size := []string{"busybox", "stty", "size"}
	if r.parts.Runc == "crun" { // which makes the terminal first
		size = []string{"sh", "-c", "until [ \"$(busybox stty size 2>/dev/null)\" = '23 101' ]; do sleep 0.02; done; busybox stty size"}
	}
	code, err = r.Exec(ctx, id, ctrmodel.ExecOptions{Args: size, TTY: true},
		ctrmodel.Streams{Stdout: &out, Resize: resize})
	if code != 0 || err != nil || out.String() != "23 101\r\n" {
		t.Errorf("size of the terminal: %d, %v, %q", code, err, out.String())
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
	for range 5 { // as soon as it is given up nothing is written any more
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		var over atomic.Bool
		_, err = r.Exec(short, id, ctrmodel.ExecOptions{Args: []string{"busybox", "yes"}}, ctrmodel.Streams{Stdout: writer(func([]byte) {
			time.Sleep(time.Millisecond)
			if over.Load() {
				t.Error("written after the end")
			}
		})})
		over.Store(true)
		r.wantKind(err, ctrmodel.DeadlineExceeded)
	}
	if s, err := r.Stats(ctx, id); err != nil || s.PIDs > 3 { // the shell and its sleep
		t.Errorf("an exec that nobody waits for goes on: %+v, %v", s, err)
	}

	// The terminal of a process that is yet to come gets its size, too.
	id = r.make("screen", cmd("/bin/sh", "-c", "while [ \"$(stty size)\" != '23 101' ]; do sleep 0.02; done"), policy(ctrmodel.RestartNever, 0),
		func(c *ctrmodel.Container) { c.IOConfig.TTY = true })
	resize <- ctrmodel.WindowSize{Width: 101, Height: 23}
	screen := make(chan error, 1)
	go func() {
		screen <- r.Attach(ctx, id, ctrmodel.Streams{Resize: resize}, func() {})
	}()
	for len(resize) > 0 {
		time.Sleep(time.Millisecond)
	}
	r.must(r.Start(ctx, id))
	r.awaitStatus(id, ctrmodel.Exited)
	r.must(<-screen)

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
	r.restart()
	if left, _ := filepath.Glob(filepath.Join(r.parts.ExecDir, "*", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(r.parts.LogDir, "*", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

type writer func([]byte)

func (w writer) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}

// What a container has said while no agent was there is in its log, even if it has ended; if it has more to say than a pipe
// holds, it waits for the next agent.
func TestRealOutputWhileTheAgentIsAway(t *testing.T) {
	t.Parallel()
	r, _ := newRealRig(t)
	systemd := newSystemd(t)
	r.stop()
	r.parts.Files = daemon.OpenFileStore(systemd.socket)
	r.start()
	gate := t.TempDir()
	say := func(lines int) (id string, alive func() bool) {
		script := fmt.Sprintf("until [ -e /tmp/open ]; do sleep 0.02; done; seq %d; echo bad >&2", lines)
		id = r.running(fmt.Sprint("says", lines), cmd("/bin/sh", "-c", script), policy(ctrmodel.RestartNever, 0), func(c *ctrmodel.Container) {
			c.Mounts = []ctrmodel.Mount{{Source: gate, Destination: "/tmp"}}
		})
		pid := int(r.get(id).State.PID)
		return id, func() bool { return syscall.Kill(pid, 0) == nil }
	}
	brief, briefAlive := say(1000)
	more, moreAlive := say(20000) // than one pipe holds, but there are two
	long, longAlive := say(50000)
	r.stop()
	r.must(os.WriteFile(filepath.Join(gate, "open"), nil, 0o644))
	for end := time.Now().Add(10 * time.Second); briefAlive() || moreAlive(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not end without the agent")
		}
	}
	if !longAlive() {
		t.Error("it did not wait for the agent")
	}
	r.start()
	for id, lines := range map[string]int{brief: 1000, more: 20000, long: 50000} {
		r.awaitStatus(id, ctrmodel.Exited)
		n, bad := 0, 0
		r.must(r.Logs(t.Context(), id, ctrmodel.LogOptions{Tail: -1}, func(line []byte) error {
			var l struct{ Log, Stream string }
			if err := json.Unmarshal(line, &l); err != nil {
				return err
			}
			if l.Stream == "stderr" {
				bad++
			} else if n++; l.Log != fmt.Sprintln(n) {
				t.Fatalf("line %d is %q", n, l.Log)
			}
			return nil
		}))
		if n != lines || bad != 1 {
			t.Errorf("%d lines of %d, %d of 1", n, lines, bad)
		}
		r.must(r.Remove(t.Context(), id, false, force))
	}
	r.clean()
	if held := systemd.held(); len(held) > 0 {
		t.Errorf("still held: %v", held)
	}
}

// systemd is the part of it that holds files.
type systemd struct {
	socket string
	conn   *net.UnixConn
	mu     sync.Mutex
	files  map[string][]int
}

func newSystemd(t *testing.T) *systemd {
	s := &systemd{socket: filepath.Join(t.TempDir(), "notify"), files: map[string][]int{}}
	var err error
	if s.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.socket, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close() })
	go func() {
		text, rights := make([]byte, 1024), make([]byte, 1024)
		for {
			n, m, _, _, err := s.conn.ReadMsgUnix(text, rights)
			if err != nil {
				return
			}
			s.take(string(text[:n]), rights[:m])
		}
	}()
	return s
}

func (s *systemd) take(text string, rights []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, name, _ := strings.Cut(text, "FDNAME=")
	if strings.HasPrefix(text, "FDSTOREREMOVE=1\n") {
		for _, fd := range s.files[name] {
			syscall.Close(fd)
		}
		delete(s.files, name)
		return
	}
	messages, _ := syscall.ParseSocketControlMessage(rights)
	for _, m := range messages {
		fds, _ := syscall.ParseUnixRights(&m)
		s.files[name] = append(s.files[name], fds...)
	}
}

// held is what there is in the end.
func (s *systemd) held() (names []string) {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		names = slices.Collect(maps.Keys(s.files))
		s.mu.Unlock()
		if len(names) == 0 || time.Now().After(end) {
			return names
		}
	}
}

// A killed agent leaves things that no other one would ever need, and an original one a lease that ends.
func TestRealLeftoversAreClearedAway(t *testing.T) {
	t.Parallel()
	r, _ := newRealRig(t)
	ctx := t.Context()
	id, stopped := r.running("a", obedient), r.make("b", obedient)
	c := r.parts.Client
	r.stop()

	mounted := filepath.Join(r.parts.ExecDir, "rootfs-x")
	r.must(os.MkdirAll(mounted, 0o700))
	r.must(syscall.Mount("tmpfs", mounted, "tmpfs", 0, ""))
	t.Cleanup(func() { syscall.Unmount(mounted, syscall.MNT_DETACH) })
	for _, fifo := range []string{"gone", "exec-left", "exec-ended"} {
		dir := filepath.Join(r.parts.ExecDir, "fifo", fifo)
		r.must(os.MkdirAll(dir, 0o700))
		r.must(syscall.Mkfifo(filepath.Join(dir, "stdout"), 0o600))
		r.must(syscall.Mkfifo(filepath.Join(dir, "stderr"), 0o600))
	}
	dir := filepath.Join(r.parts.ExecDir, "fifo", "exec-left")
	var readers []*os.File
	for _, name := range []string{"stdout", "stderr"} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
		r.must(err)
		readers = append(readers, f)
	}
	process := rspec.Process{Args: []string{"sleep", "1000"}, Env: []string{"PATH=/bin"}, Cwd: "/"}
	r.must(c.Tasks.Exec(ctx, id, "exec-left", process, containerd.IO{Stdout: dir + "/stdout", Stderr: dir + "/stderr"}))
	_, err := c.Tasks.Start(ctx, id, "exec-left")
	r.must(err)
	for _, f := range readers {
		f.Close()
	}

	const lease = "kanto-cm.lease"
	held, err := c.Leases.Resources(ctx, lease)
	r.must(err)
	if len(held) != 2 {
		t.Fatalf("the lease holds %+v", held)
	}
	r.must(c.Leases.Create(ctx, "keep", nil))
	for _, h := range held {
		r.must(c.Leases.Add(ctx, "keep", *h))
	}
	r.must(c.Leases.Delete(ctx, lease, true))
	r.must(c.Leases.Create(ctx, lease, containerd.ExpireAfter(time.Hour)))
	images, err := c.Images.List(ctx)
	r.must(err)
	r.must(c.Leases.Add(ctx, lease, containerd.Resource{ID: images[0].Target.Digest, Type: "content"}))
	for _, h := range held {
		r.must(c.Leases.Add(ctx, lease, *h))
	}
	r.must(c.Leases.Delete(ctx, "keep", true))

	r.start()
	r.awaitStatus(id, ctrmodel.Running)
	left, _ := filepath.Glob(filepath.Join(r.parts.ExecDir, "*", "*"))
	more, _ := filepath.Glob(filepath.Join(r.parts.ExecDir, "rootfs-*"))
	if len(left) != 1 || len(more) > 0 {
		t.Errorf("left behind: %v %v", left, more)
	}
	if _, err := c.Tasks.Get(ctx, id, "exec-left"); !gone(err) {
		t.Errorf("what was executed goes on: %v", err)
	}
	leases, err := c.Leases.List(ctx)
	r.must(err)
	if len(leases) != 1 || leases[0].ID != lease || leases[0].Labels[containerd.ExpireLabel] != "" {
		t.Errorf("leases %+v", leases)
	}
	now, err := c.Leases.Resources(ctx, lease)
	r.must(err)
	if !reflect.DeepEqual(now, held) {
		t.Errorf("the lease holds %+v, held %+v", now, held)
	}
	r.must(r.Start(ctx, stopped))
	for _, a := range r.list() {
		r.must(r.Remove(ctx, a.id, true, ctrmodel.StopOptions{Signal: "KILL"}))
	}
	r.clean()
}

// A shim that starts a process waits for who reads its output, and answers nothing about the container meanwhile.
func TestRealAgentIsKilledWhileItExecutes(t *testing.T) {
	t.Parallel()
	r, _ := newRealRig(t)
	id := r.running("a", obedient)
	c := r.parts.Client
	r.stop()

	const left = execPrefix + "left"
	dir := filepath.Join(r.parts.ExecDir, "fifo", left)
	r.must(os.MkdirAll(dir, 0o700))
	r.must(syscall.Mkfifo(filepath.Join(dir, "stdout"), 0o600))
	r.must(syscall.Mkfifo(filepath.Join(dir, "stderr"), 0o600))
	process := rspec.Process{Args: []string{"sleep", "1000"}, Env: []string{"PATH=/bin"}, Cwd: "/"}
	r.must(c.Tasks.Exec(t.Context(), id, left, process, containerd.IO{Stdout: dir + "/stdout", Stderr: dir + "/stderr"}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // for so long the shim waits
	time.AfterFunc(500*time.Millisecond, cancel)
	if _, err := c.Tasks.Start(ctx, id, left); err == nil {
		t.Fatal("it has started, and nobody reads what it says")
	}

	begin := time.Now()
	r.start()
	code, err := r.Exec(t.Context(), id, ctrmodel.ExecOptions{Args: []string{"true"}}, ctrmodel.Streams{})
	if took := time.Since(begin); err != nil || code != 0 || took > sweepTimeout {
		t.Errorf("the next process ended after %v: exit code %d, %v", took, code, err)
	}
	if _, err := c.Tasks.Get(t.Context(), id, left); !gone(err) {
		t.Errorf("what was executed goes on: %v", err)
	}
	r.must(r.Remove(t.Context(), id, true, ctrmodel.StopOptions{Signal: "KILL"}))
	r.clean()
}

// A container is what it was made of, whatever the name of the image has come to stand for.
func TestRealMovedTag(t *testing.T) {
	t.Parallel()
	r, _ := newRealRig(t)
	ctx := t.Context()
	id := r.make("a", cmd("/bin/sh", "-c", "echo $PATH $NEW"), policy(ctrmodel.RestartNever, 0))
	first, err := r.ImageDigest(id)
	r.must(err)
	list, err := r.parts.Images.Import(ctx, busyboxArchive(t, "PATH=/bin", "NEW=yes"))
	r.must(err)
	if list[0].Digest == first || first == "" {
		t.Fatalf("made of %s, imported %s", first, list[0].Digest)
	}
	r.must(r.backend.Collect(ctx, r.UsedImages()))
	said := func(id string) (text string) {
		r.must(r.Start(ctx, id))
		r.awaitStatus(id, ctrmodel.Exited)
		r.must(r.Logs(ctx, id, ctrmodel.LogOptions{Tail: 1}, func(line []byte) error {
			var l struct{ Log string }
			err := json.Unmarshal(line, &l)
			text = l.Log
			return err
		}))
		return text
	}
	if got := said(id); got != "/bin\n" {
		t.Errorf("said %q", got)
	}
	other := r.make("b", cmd("/bin/sh", "-c", "echo $PATH $NEW"), policy(ctrmodel.RestartNever, 0))
	if got := said(other); got != "/bin yes\n" {
		t.Errorf("said %q", got)
	}
	if got, err := r.ImageDigest(other); err != nil || got != list[0].Digest {
		t.Errorf("made of %s, %v", got, err)
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
	// They know each other, as long as they run, and over the end of an agent, even if it was killed before it could write down
	// that one of them runs.
	client := r.running("client", obedient, func(c *ctrmodel.Container) { c.HostConfig.ExtraHosts = []string{"server:container_web-host"} })
	want := r.get(web)
	r.stop()
	a, err := r.actor(web)
	r.must(err)
	a.rec.State.SetCreated()
	a.rec.NetworkSettings, a.rec.HostsPath = nil, ""
	r.must(r.store.save(a.rec))
	use()
	r.start()
	r.awaitStatus(client, ctrmodel.Running)
	if c := r.awaitStatus(web, ctrmodel.Running); c.State.PID != want.State.PID || !reflect.DeepEqual(c.NetworkSettings, want.NetworkSettings) ||
		c.HostsPath != want.HostsPath {
		t.Errorf("adopted: %+v", c)
	}
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

// kernelLog makes a log that gives one record at a time, as /dev/kmsg does.
func kernelLog(t *testing.T, records ...string) (file string) {
	t.Helper()
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_NONBLOCK|syscall.O_DIRECT|syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	for _, fd := range ends {
		t.Cleanup(func() { syscall.Close(fd) })
	}
	for _, r := range records {
		if _, err := syscall.Write(ends[1], []byte(r)); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprint("/proc/self/fd/", ends[0])
}

// The log tells even if the shim does not.
func TestOOMIsToldByTheLogAlone(t *testing.T) {
	t.Parallel()
	const tasks = "/containerd.services.tasks.v1.Tasks/"
	type exit struct {
		Status uint32 `pb:"1"`
	}
	type answer struct {
		Process *containerd.Process `pb:"1"`
	}
	s := grpc.NewServer()
	s.Unary(tasks+"Wait", func(context.Context, func(any) error) (any, error) { return &exit{137}, nil })
	s.Unary(tasks+"Get", func(context.Context, func(any) error) (any, error) {
		return &answer{&containerd.Process{Pid: 4711}}, nil
	})
	s.Unary(tasks+"Metrics", func(ctx context.Context, _ func(any) error) (any, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	socket := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	client := containerd.New(socket, "kanto-cm")
	t.Cleanup(func() {
		client.Close()
		s.Shutdown(context.Background())
	})
	m := newMachine(Parts{Client: client, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		kmsg: kernelLog(t, "6,1,1,-;oom-kill:constraint=CONSTRAINT_MEMCG,task_memcg=/kanto-cm/a,task=sh,pid=4711,uid=0\n")})
	if exit, err := m.Wait(t.Context(), "a"); err != nil || !exit.OOM {
		t.Errorf("%+v, %v", exit, err)
	}
}

func TestOOMKilled(t *testing.T) {
	const id = "762ea426-60ec"
	record := func(group string, pid int) string {
		return fmt.Sprintf("6,3120,56125451111,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,"+
			"oom_memcg=%[1]s,task_memcg=%[1]s,task=probe,pid=%[2]d,uid=0\n SUBSYSTEM=memory\n", group, pid)
	}
	// What the kernel writes about each process, however many there are.
	victim := func(what string, pid int) string {
		return fmt.Sprintf("3,3121,56125451120,-;%sKilled process %d (sh) total-vm:26852kB, anon-rss:16012kB, UID:0 pgtables:76kB oom_score_adj:1\n", what, pid)
	}
	const memcg = "Memory cgroup out of memory: "
	own, other := record("/kanto-cm/"+id, 4711), record("/kanto-cm/other", 4711)
	yes := [][]string{
		{own},
		{record("/system.slice/kanto-cm-"+id+".scope", 4711)},
		{record("/kanto-cm/"+id+"/inner", 4711)},
		{own, victim(memcg, 4711), victim(memcg, 4712)},
		{victim(memcg, 4711)},
		{victim("Out of memory: ", 4711)},
		{victim("Out of memory (oom_kill_allocating_task): ", 4711)},
		{victim("", 4711)},
		{other, victim(memcg, 4711), victim(memcg, 4711)},
		{other, victim(memcg, 4711), own, victim(memcg, 4711)},
	}
	no := [][]string{
		{},
		{"6,1,1,-;Linux version 6.12\n", record("/kanto-cm/"+id, 47110), victim(memcg, 47110)},
		{other, victim(memcg, 4711)}, // which had the number before
		{record("/kanto-cm/"+id+"1", 4711)},
		{record("/kanto-cm/1"+id, 4711)},
		{record("/kanto-cm/"+id+"/inner", 47)},
		{"12,1,1,-;said by " + id + " with pid=4711,uid=0\n", "12" + own[1:], "12" + victim(memcg, 4711)[1:]},
	}
	for i, records := range append(yes, no...) {
		if got, err := oomKilled(kernelLog(t, records...), id, 4711); got != (i < len(yes)) || err != nil {
			t.Errorf("%q: %v, %v", records, got, err)
		}
	}
	if _, err := oomKilled(filepath.Join(t.TempDir(), "none"), id, 1); err == nil {
		t.Error("a log that is not there says something")
	}
}

// A start that comes while containerd clears up after one that has been cut off may work later; others may not.
func TestFailedStartsHaveKinds(t *testing.T) {
	const dir = "/run/containerd/io.containerd.runtime.v2.task/ns/1"
	for text, want := range map[string]ctrmodel.Kind{
		"failed to start shim: mkdir " + dir + ": file exists":                                                                                ctrmodel.Unavailable,
		"mkdir " + dir + ": file exists":                                                                                                      ctrmodel.Unavailable,
		"failed to create shim task: OCI runtime create failed: mkdir " + dir + "/rootfs/x: file exists":                                      ctrmodel.FailedPrecondition,
		"failed to start shim: start failed: open shim log pipe: error creating fifo " + dir + "/log: no such file or directory":              ctrmodel.Unavailable,
		"failed to start shim: failed to resolve runtime path: runtime \"io.containerd.none.v1\" binary not installed":                        ctrmodel.FailedPrecondition,
		"failed to create shim task: OCI runtime create failed: exec: \"nothing-there\": executable file not found in $PATH: " + dir + "/log": ctrmodel.FailedPrecondition,
	} {
		if got := ctrmodel.KindOf(started(grpc.Errorf(grpc.Unknown, "%s", text))); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
	if started(nil) != nil {
		t.Error("no error is one")
	}
}
