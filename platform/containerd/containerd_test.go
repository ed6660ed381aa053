// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/grpc"
	"sdvbox/testing/ctrd"
)

// connect gives a client of a containerd of its own. In the end, no goroutine may be left.
func connect(t testing.TB) (*Client, *ctrd.Daemon, context.Context) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for range 200 {
			if runtime.NumGoroutine() <= before {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		stacks := make([]byte, 1<<20)
		t.Errorf("goroutines are left\n%s", stacks[:runtime.Stack(stacks, true)])
	})
	d := ctrd.Start(t)
	c := New(d.Socket, "sdvbox-test")
	t.Cleanup(func() { c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	if err := c.CreateNamespace(ctx); err != nil {
		t.Fatal(err)
	}
	return c, d, ctx
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func expect(t testing.TB, err error, code grpc.Code) {
	t.Helper()
	if grpc.CodeOf(err) != code {
		t.Errorf("error %v has the code %s, expected %s", err, grpc.CodeOf(err), code)
	}
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func TestVersionAndNamespaceOfARealContainerd(t *testing.T) {
	c, _, ctx := connect(t)
	version := must(c.Version(ctx))(t)
	want := map[string]string{"": "1.", "1.7": "v1.7.", "2": "v2."}[os.Getenv(ctrd.Env)]
	if !strings.HasPrefix(version, want) {
		t.Errorf("version %q, expected %s", version, want)
	}
	ok(t, c.CreateNamespace(ctx)) // once more
	ok(t, c.DeleteNamespace(ctx))
	expect(t, c.DeleteNamespace(ctx), grpc.NotFound)
}

func TestContentIsWrittenInPiecesAndGoesOnAfterABreak(t *testing.T) {
	c, d, ctx := connect(t)
	blob := make([]byte, 5<<20+123)
	rand.Read(blob)
	digest := digestOf(blob)

	w := must(c.Content.Writer(ctx, "layer", int64(len(blob)), digest))(t)
	if n, err := w.Write(blob[:3<<20]); err != nil || n != 3<<20 || w.Offset() != 3<<20 {
		t.Fatalf("wrote %d, offset %d, %v", n, w.Offset(), err)
	}
	if _, err := c.Content.Writer(ctx, "layer", 0, ""); grpc.CodeOf(err) != grpc.Unavailable {
		t.Errorf("a second writer of the same reference: %v", err)
	}
	w.Close()
	status := must(c.Content.Status(ctx, "layer"))(t)
	if status.Offset != 3<<20 || status.Expected != digest && status.Expected != "" {
		t.Errorf("status %+v", status)
	}
	d.Kill()
	expect(t, func() error { _, err := c.Content.Status(ctx, "layer"); return err }(), grpc.Unavailable)
	d.Run()

	if all := must(c.Content.Ingests(ctx))(t); len(all) != 1 || all[0].Ref != "layer" || all[0].Offset != 3<<20 {
		t.Errorf("ingests after a restart: %+v", all)
	}
	w = must(c.Content.Writer(ctx, "layer", int64(len(blob)), digest))(t)
	if w.Offset() != 3<<20 {
		t.Fatalf("goes on at %d", w.Offset())
	}
	must(w.Write(blob[3<<20:]))(t)
	ok(t, w.Commit(map[string]string{"containerd.io/gc.root": "yes", "other": "1"}))

	if _, err := c.Content.Writer(ctx, "again", int64(len(blob)), digest); grpc.CodeOf(err) != grpc.AlreadyExists {
		t.Errorf("writing what is there: %v", err)
	}
	info := must(c.Content.Info(ctx, digest))(t)
	if info.Size != int64(len(blob)) || info.Labels["other"] != "1" || time.Since(info.Created.Time()) > time.Minute {
		t.Errorf("info %+v", info)
	}
	if got := must(c.Content.Read(ctx, digest, 8<<20))(t); !bytes.Equal(got, blob) {
		t.Error("read something else than written")
	}
	_, err := c.Content.Read(ctx, digest, 1<<20)
	expect(t, err, grpc.ResourceExhausted)
	r := must(c.Content.Open(ctx, digest, 5<<20))(t)
	if got := must(io.ReadAll(r))(t); !bytes.Equal(got, blob[5<<20:]) {
		t.Errorf("read %d bytes from the offset", len(got))
	}
	r.Close()

	ok(t, c.Content.SetLabels(ctx, digest, map[string]string{"other": "", "third": "3"}))
	info = must(c.Content.Info(ctx, digest))(t)
	if _, there := info.Labels["other"]; there || info.Labels["third"] != "3" || info.Labels["containerd.io/gc.root"] != "yes" {
		t.Errorf("labels %v", info.Labels)
	}
	if all := must(c.Content.List(ctx, `labels."third"==3`))(t); len(all) != 1 || all[0].Digest != digest {
		t.Errorf("list %+v", all)
	}
	if all := must(c.Content.List(ctx, `labels."third"==4`))(t); len(all) != 0 {
		t.Errorf("list %+v", all)
	}
	ok(t, c.Content.Delete(ctx, digest))
	_, err = c.Content.Open(ctx, digest, 0)
	expect(t, err, grpc.NotFound)
	_, err = c.Content.Info(ctx, digest)
	expect(t, err, grpc.NotFound)
}

func TestContentThatIsNotWhatItShouldBeIsNotCommitted(t *testing.T) {
	c, _, ctx := connect(t)
	right, wrong := []byte("right"), []byte("wrong")
	w := must(c.Content.Writer(ctx, "r", 5, digestOf(right)))(t)
	must(w.Write(wrong))(t)
	expect(t, w.Commit(nil), grpc.FailedPrecondition)
	_, err := c.Content.Info(ctx, digestOf(wrong))
	expect(t, err, grpc.NotFound)

	w = must(c.Content.Writer(ctx, "r", 5, digestOf(right)))(t)
	ok(t, w.Truncate())
	must(w.Write(right))(t)
	ok(t, w.Commit(nil))
	must(c.Content.Info(ctx, digestOf(right)))(t)

	w = must(c.Content.Writer(ctx, "half", 100, ""))(t)
	must(w.Write(right))(t)
	w.Close()
	ok(t, c.Content.Abort(ctx, "half"))
	_, err = c.Content.Status(ctx, "half")
	expect(t, err, grpc.NotFound)
}

func TestLeasesHoldWhatTheyAreGiven(t *testing.T) {
	c, _, ctx := connect(t)
	ok(t, c.Leases.Create(ctx, "lease", ExpireAfter(time.Hour)))
	expect(t, c.Leases.Create(ctx, "lease", nil), grpc.AlreadyExists)
	leases := must(c.Leases.List(ctx, "id==lease"))(t)
	if len(leases) != 1 || leases[0].Labels[ExpireLabel] == "" {
		t.Errorf("leases %+v", leases)
	}
	kept := []byte("kept")
	digest := digestOf(kept)
	w := must(c.Content.Writer(WithLease(ctx, "lease"), "kept", int64(len(kept)), digest))(t)
	must(w.Write(kept))(t)
	ok(t, w.Commit(nil))
	held := must(c.Leases.Resources(ctx, "lease"))(t)
	if len(held) != 1 || *held[0] != (Resource{digest, "content"}) {
		t.Errorf("the lease holds %+v", held)
	}
	ok(t, c.Leases.Add(ctx, "lease", Resource{digest, "content"}))
	ok(t, c.Leases.Delete(ctx, "lease", true))
	_, err := c.Content.Info(ctx, digest)
	expect(t, err, grpc.NotFound)
}

func write(t testing.TB, c *Client, ctx context.Context, blob []byte) (digest string) {
	t.Helper()
	digest = digestOf(blob)
	w := must(c.Content.Writer(ctx, digest, int64(len(blob)), digest))(t)
	must(w.Write(blob))(t)
	ok(t, w.Commit(map[string]string{"containerd.io/gc.root": "test"}))
	return digest
}

// layer is an image layer with busybox in it, and the digest of it unpacked.
func layer(t testing.TB) (packed []byte, diffID string) {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		if os.Getenv("SDVBOX_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip("busybox-static is not installed")
	}
	var plain, zipped bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, dir := range []string{"bin/", "proc/", "dev/", "sys/", "tmp/"} {
		ok(t, w.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}))
	}
	ok(t, w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(busybox))}))
	must(w.Write(busybox))(t)
	ok(t, w.WriteHeader(&tar.Header{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox"}))
	ok(t, w.Close())
	z := gzip.NewWriter(&zipped)
	must(z.Write(plain.Bytes()))(t)
	ok(t, z.Close())
	return zipped.Bytes(), digestOf(plain.Bytes())
}

func TestImagesAreNamesForContent(t *testing.T) {
	c, _, ctx := connect(t)
	target := &Descriptor{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: digestOf([]byte("x")), Size: 1, Annotations: map[string]string{"a": "b"}}
	made := must(c.Images.Create(ctx, &Image{Name: "example.org/x:1", Labels: map[string]string{"l": "1", "m": "2"}, Target: target}))(t)
	if made.Created.Time().IsZero() {
		t.Errorf("created %+v", made)
	}
	_, err := c.Images.Create(ctx, &Image{Name: "example.org/x:1", Target: target})
	expect(t, err, grpc.AlreadyExists)
	other := &Descriptor{MediaType: target.MediaType, Digest: digestOf([]byte("y")), Size: 2}
	must(c.Images.Update(ctx, &Image{Name: "example.org/x:1", Target: other, Labels: map[string]string{"l": "one"}}, "target", "labels.l"))(t)
	got := must(c.Images.Get(ctx, "example.org/x:1"))(t)
	if got.Target.Digest != other.Digest || got.Labels["l"] != "one" || got.Labels["m"] != "2" {
		t.Errorf("after an update: %+v", got)
	}
	if all := must(c.Images.List(ctx, "name==example.org/x:1"))(t); len(all) != 1 {
		t.Errorf("list %+v", all)
	}
	ok(t, c.Images.Delete(ctx, "example.org/x:1", true))
	_, err = c.Images.Get(ctx, "example.org/x:1")
	expect(t, err, grpc.NotFound)
}

// rootfs unpacks the layer, and prepares a snapshot on it.
func rootfs(t testing.TB, c *Client, ctx context.Context, key string) []*Mount {
	t.Helper()
	packed, diffID := layer(t)
	if _, err := c.Snapshots.Stat(ctx, diffID); grpc.CodeOf(err) == grpc.NotFound {
		digest := write(t, c, ctx, packed)
		mounts := must(c.Snapshots.Prepare(ctx, "extract", "", map[string]string{"containerd.io/gc.root": "test"}))(t)
		applied := must(c.Apply(ctx, &Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: digest, Size: int64(len(packed))}, mounts))(t)
		if applied.Digest != diffID {
			t.Fatalf("unpacked %s, expected %s", applied.Digest, diffID)
		}
		ok(t, c.Snapshots.Commit(ctx, diffID, "extract", map[string]string{"containerd.io/gc.root": "test"}))
	}
	return must(c.Snapshots.Prepare(ctx, key, diffID, map[string]string{"containerd.io/gc.root": "test"}))(t)
}

func TestSnapshotsBuildOnEachOther(t *testing.T) {
	c, _, ctx := connect(t)
	mounts := rootfs(t, c, ctx, "one")
	if again := must(c.Snapshots.Mounts(ctx, "one"))(t); len(again) != 1 || !slices.Equal(again[0].Options, mounts[0].Options) || again[0].Type != "overlay" && again[0].Type != "bind" {
		t.Errorf("mounts %+v, then %+v", mounts[0], again)
	}
	s := must(c.Snapshots.Stat(ctx, "one"))(t)
	if s.Kind != Active || s.Parent == "" || s.Labels["containerd.io/gc.root"] != "test" {
		t.Errorf("snapshot %+v", s)
	}
	if all := must(c.Snapshots.List(ctx, fmt.Sprintf("parent==%q", s.Parent)))(t); len(all) != 1 || all[0].Name != "one" {
		t.Errorf("list %+v", all)
	}
	expect(t, c.Snapshots.Remove(ctx, s.Parent), grpc.FailedPrecondition)
	must(c.Snapshots.View(ctx, "look", s.Parent, nil))(t)
	ok(t, c.Snapshots.Remove(ctx, "look"))
	ok(t, c.Snapshots.Remove(ctx, "one"))
	ok(t, c.Snapshots.Remove(ctx, s.Parent))
	_, err := c.Snapshots.Stat(ctx, "one")
	expect(t, err, grpc.NotFound)
	_, err = c.Snapshots.Prepare(ctx, "two", "missing", nil)
	expect(t, err, grpc.NotFound)
}

type object = map[string]any

// spec is the least that a container needs.
func spec(terminal bool, args ...string) object {
	return object{
		"ociVersion": "1.0.2",
		"process":    object{"cwd": "/", "args": args, "env": []string{"PATH=/bin"}, "user": object{"uid": 0, "gid": 0}, "terminal": terminal},
		"root":       object{"path": "rootfs"},
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
			{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666"}},
		},
		"linux": object{
			"cgroupsPath": "/sdvbox-test/" + strings.ToLower(rand.Text()),
			"resources":   object{"memory": object{"limit": 64 << 20}, "pids": object{"limit": 100}},
			"namespaces":  []object{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}},
		},
	}
}

// container makes a container with an id that no other test has, because runc keeps a list of its own.
func container(t testing.TB, c *Client, ctx context.Context, terminal bool, args ...string) (id string, mounts []*Mount) {
	t.Helper()
	id = "p-" + strings.ToLower(rand.Text()[:12])
	mounts = rootfs(t, c, ctx, id)
	made := must(c.Containers.Create(ctx, &Container{
		ID: id, Image: "none", Labels: map[string]string{"l": "1"}, Snapshotter: c.Snapshots.Snapshotter, SnapshotKey: id,
		Runtime: &Runtime{Name: "io.containerd.runc.v2"}, Spec: must(Spec(spec(terminal, args...)))(t),
	}))(t)
	if made.Created.Time().IsZero() {
		t.Errorf("created %+v", made)
	}
	return id, mounts
}

// fifo makes a FIFO and collects what is written to it.
func fifo(t testing.TB, name string) (path string, content func() string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	ok(t, syscall.Mkfifo(path, 0o600))
	f := must(os.OpenFile(path, os.O_RDWR, 0))(t) // so that opening does not wait
	t.Cleanup(func() { f.Close() })
	return path, func() string {
		t.Helper()
		b := make([]byte, 4096)
		f.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := f.Read(b)
		if err != nil {
			t.Fatalf("nothing came out of %s: %v", name, err)
		}
		return string(b[:n])
	}
}

func TestLifeOfAContainer(t *testing.T) {
	c, _, ctx := connect(t)
	events := must(c.Subscribe(ctx, `topic~="^/tasks/"`))(t)
	defer events.Close()
	next := func() any {
		t.Helper()
		e := must(events.Next())(t)
		if time.Since(e.Time) > time.Minute || !strings.HasPrefix(e.Topic, "/tasks/") {
			t.Errorf("event %+v", e)
		}
		return e.Event
	}
	stdout, output := fifo(t, "stdout")
	id, mounts := container(t, c, ctx, false, "/bin/sh", "-c", "echo up; trap 'exit 7' TERM; while :; do busybox sleep 0.05; done")

	pid := must(c.Tasks.Create(ctx, id, mounts, IO{Stdout: stdout, Stderr: stdout}, &RuncOptions{BinaryName: "runc"}))(t)
	_, err := c.Tasks.Create(ctx, id, mounts, IO{Stdout: stdout, Stderr: stdout}, nil)
	expect(t, err, grpc.AlreadyExists)
	if e, ok := next().(*TaskCreate); !ok || e.ContainerID != id || e.Pid != pid || pid == 0 {
		t.Errorf("event %+v of task %d", e, pid)
	}
	if p := must(c.Tasks.Get(ctx, id, ""))(t); p.Status != Created || p.Pid != pid || p.Stdout != stdout {
		t.Errorf("created task %+v", p)
	}
	exited := make(chan Exit, 1)
	go func() {
		exit, err := c.Tasks.Wait(ctx, id, "")
		if err != nil {
			t.Error(err)
		}
		exited <- exit
	}()
	must(c.Tasks.Start(ctx, id, ""))(t)
	if e, ok := next().(*TaskStart); !ok || e.ContainerID != id || e.Pid != pid {
		t.Errorf("event %+v", e)
	}
	if out := output(); out != "up\n" {
		t.Errorf("the container said %q", out)
	}

	ok(t, c.Tasks.Pause(ctx, id))
	if e, ok := next().(*TaskPaused); !ok || e.ContainerID != id {
		t.Errorf("event %+v", e)
	}
	if all := must(c.Tasks.List(ctx))(t); len(all) != 1 || all[0].ID != id || all[0].Status != Paused {
		t.Errorf("tasks %+v", all)
	}
	ok(t, c.Tasks.Resume(ctx, id))
	if e, ok := next().(*TaskResumed); !ok || e.ContainerID != id {
		t.Errorf("event %+v", e)
	}

	metrics := must(c.Tasks.Metrics(ctx, id))(t)
	if len(metrics) != 1 {
		t.Fatalf("metrics %+v", metrics)
	}
	if m := metrics[0]; m.ID != id || m.CPU <= 0 || m.Memory == 0 || m.MemoryLimit != 64<<20 || m.Pids == 0 || time.Since(m.Time) > time.Minute {
		t.Errorf("metrics %+v", m)
	}
	ok(t, c.Tasks.Update(ctx, id, object{"memory": object{"limit": 48 << 20}}))
	if m := must(c.Tasks.Metrics(ctx, id))(t); len(m) != 1 || m[0].MemoryLimit != 48<<20 {
		t.Errorf("metrics after an update: %+v", m)
	}

	execOut, execOutput := fifo(t, "exec-out")
	execIn, _ := fifo(t, "exec-in")
	process := object{"cwd": "/", "args": []string{"/bin/sh", "-c", "read line; echo got $line; read line || exit 3"},
		"env": []string{"PATH=/bin"}, "user": object{"uid": 0, "gid": 0}}
	ok(t, c.Tasks.Exec(ctx, id, "look", process, IO{Stdin: execIn, Stdout: execOut, Stderr: execOut}))
	execPid := must(c.Tasks.Start(ctx, id, "look"))(t)
	if e, ok := next().(*TaskExecAdded); !ok || e.ExecID != "look" {
		t.Errorf("event %+v", e)
	}
	if e, ok := next().(*TaskExecStarted); !ok || e.ExecID != "look" || e.Pid != execPid {
		t.Errorf("event %+v", e)
	}
	in := must(os.OpenFile(execIn, os.O_WRONLY, 0))(t)
	must(in.WriteString("hello\n"))(t)
	if out := execOutput(); out != "got hello\n" {
		t.Errorf("exec said %q", out)
	}
	ok(t, c.Tasks.Kill(ctx, id, "look", syscall.SIGKILL, false))
	if exit := must(c.Tasks.Wait(ctx, id, "look"))(t); exit.Status != 128+9 {
		t.Errorf("exec ended with %+v", exit)
	}
	if e, ok := next().(*TaskExit); !ok || e.ContainerID != id || e.ID != "look" || e.ExitStatus != 128+9 {
		t.Errorf("event %+v", e)
	}
	if exit := must(c.Tasks.Delete(ctx, id, "look"))(t); exit.Status != 128+9 {
		t.Errorf("deleted %+v", exit)
	}
	in.Close()

	select {
	case exit := <-exited:
		t.Fatalf("the container has ended: %+v", exit)
	default:
	}
	ok(t, c.Tasks.Kill(ctx, id, "", syscall.SIGTERM, false))
	if exit := <-exited; exit.Status != 7 || time.Since(exit.At) > time.Minute {
		t.Errorf("the container ended with %+v", exit)
	}
	for {
		e := next()
		if exit, ok := e.(*TaskExit); ok && exit.ID == id {
			if exit.ExitStatus != 7 || exit.Pid != pid {
				t.Errorf("event %+v", exit)
			}
			break
		}
	}
	if p := must(c.Tasks.Get(ctx, id, ""))(t); p.Status != Stopped || p.ExitStatus != 7 {
		t.Errorf("stopped task %+v", p)
	}
	expect(t, c.Tasks.Kill(ctx, id, "", syscall.SIGTERM, false), grpc.NotFound)
	if exit := must(c.Tasks.Delete(ctx, id, ""))(t); exit.Status != 7 {
		t.Errorf("deleted %+v", exit)
	}
	_, err = c.Tasks.Get(ctx, id, "")
	expect(t, err, grpc.NotFound)

	got := must(c.Containers.Get(ctx, id))(t)
	if got.Labels["l"] != "1" || got.Runtime.Name != "io.containerd.runc.v2" || !bytes.Contains(got.Spec.Value, []byte("echo up")) {
		t.Errorf("container %+v", got)
	}
	if all := must(c.Containers.List(ctx, "id=="+id))(t); len(all) != 1 || all[0].SnapshotKey != id {
		t.Errorf("containers %+v", all)
	}
	if all := must(c.Containers.List(ctx, "id==other"))(t); len(all) != 0 {
		t.Errorf("containers %+v", all)
	}
	ok(t, c.Containers.Delete(ctx, id))
	_, err = c.Containers.Get(ctx, id)
	expect(t, err, grpc.NotFound)
	ok(t, c.Snapshots.Remove(ctx, id))
}

func TestTerminalsHaveASizeAndInputEnds(t *testing.T) {
	c, _, ctx := connect(t)
	stdout, output := fifo(t, "stdout")
	stdin, _ := fifo(t, "stdin")
	id, mounts := container(t, c, ctx, true, "/bin/sh", "-c", "while busybox sleep 0.05; do busybox stty size; done")
	must(c.Tasks.Create(ctx, id, mounts, IO{Stdin: stdin, Stdout: stdout, Terminal: true}, nil))(t)
	must(c.Tasks.Start(ctx, id, ""))(t)
	ok(t, c.Tasks.Resize(ctx, id, "", 123, 45))
	for !strings.Contains(output(), "45 123") {
	}
	ok(t, c.Tasks.CloseStdin(ctx, id, ""))
	ok(t, c.Tasks.Kill(ctx, id, "", syscall.SIGKILL, true))
	if exit := must(c.Tasks.Wait(ctx, id, ""))(t); exit.Status != 128+9 {
		t.Errorf("ended with %+v", exit)
	}
}

func TestWantOfMemoryIsAnEvent(t *testing.T) {
	c, _, ctx := connect(t)
	events := must(c.Subscribe(ctx, `topic=="/tasks/oom"`, `topic=="/tasks/exit"`))(t)
	defer events.Close()
	stdin, _ := fifo(t, "stdin")
	stdout, _ := fifo(t, "stdout") // without one, Create hangs if there is an input
	id, mounts := container(t, c, ctx, false, "/bin/sh", "-c", "read line; x=12345678; while :; do x=$x$x; done")
	must(c.Tasks.Create(ctx, id, mounts, IO{Stdin: stdin, Stdout: stdout, Stderr: stdout}, nil))(t)
	must(c.Tasks.Start(ctx, id, ""))(t)
	must(c.Tasks.Metrics(ctx, id))(t) // by now its shim looks out for what happens in the group
	in := must(os.OpenFile(stdin, os.O_WRONLY, 0))(t)
	defer in.Close()
	must(in.WriteString("go\n"))(t)
	var seen []string
	for len(seen) < 2 {
		e := must(events.Next())(t)
		seen = append(seen, e.Topic)
		switch e := e.Event.(type) {
		case *TaskOOM:
			if e.ContainerID != id {
				t.Errorf("event %+v", e)
			}
		case *TaskExit:
			if e.ContainerID != id || e.ExitStatus != 128+9 {
				t.Errorf("event %+v", e)
			}
		default:
			t.Errorf("event %+v", e)
		}
	}
	if !slices.Contains(seen, "/tasks/oom") {
		t.Errorf("seen %v", seen)
	}
}

// An event after Subscribe has returned is never missed, and one of another namespace never seen.
func TestSubscriptionsMissNothing(t *testing.T) {
	c, d, ctx := connect(t)
	other := New(d.Socket, "other")
	defer other.Close()
	ok(t, other.CreateNamespace(ctx))
	for i := range 50 {
		s := must(c.Subscribe(ctx, `topic=="/images/delete"`))(t)
		name := fmt.Sprint("image", i)
		for _, c := range []*Client{other, c} {
			must(c.Images.Create(ctx, &Image{Name: name, Target: &Descriptor{MediaType: "m", Digest: digestOf(nil), Size: 1}}))(t)
			ok(t, c.Images.Delete(ctx, name, false))
		}
		e := must(s.Next())(t)
		if d, ok := e.Event.(*ImageDelete); !ok || d.Name != name {
			t.Fatalf("event %+v", e)
		}
		s.Close()
	}
}

func TestLossOfContainerdIsUnavailableAndTheNextCallConnects(t *testing.T) {
	c, d, ctx := connect(t)
	s := must(c.Subscribe(ctx))(t)
	id, mounts := container(t, c, ctx, false, "/bin/sh", "-c", "busybox sleep 60")
	must(c.Tasks.Create(ctx, id, mounts, IO{}, nil))(t)
	must(c.Tasks.Start(ctx, id, ""))(t)
	waited := make(chan error, 1)
	go func() {
		_, err := c.Tasks.Wait(ctx, id, "")
		waited <- err
	}()
	time.Sleep(50 * time.Millisecond)
	d.Kill()
	expect(t, <-waited, grpc.Unavailable)
	for {
		if _, err := s.Next(); err != nil {
			expect(t, err, grpc.Unavailable)
			break
		}
	}
	s.Close()
	start := time.Now()
	_, err := c.Version(ctx)
	expect(t, err, grpc.Unavailable)
	_, err = c.Subscribe(ctx)
	expect(t, err, grpc.Unavailable)
	if spent := time.Since(start); spent > 5*time.Second {
		t.Errorf("it took %v to know that containerd is not there", spent)
	}
	d.Run()
	if p := must(c.Tasks.Get(ctx, id, ""))(t); p.Status != Running {
		t.Errorf("task %+v", p)
	}
	ok(t, c.Tasks.Kill(ctx, id, "", syscall.SIGKILL, true))
	must(c.Tasks.Wait(ctx, id, ""))(t)
}

func TestAContainerdThatHangsCostsNoMoreThanTheDeadline(t *testing.T) {
	c, d, ctx := connect(t)
	w := must(c.Content.Writer(ctx, "blob", 0, ""))(t)
	s := must(c.Subscribe(ctx))(t)
	ok(t, syscall.Kill(d.Pid(), syscall.SIGSTOP))
	defer syscall.Kill(d.Pid(), syscall.SIGCONT)
	for range 100 { // not all threads stop at once
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		_, err := c.Version(short)
		cancel()
		if err != nil {
			break
		}
	}

	start := time.Now()
	for range 5 {
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		_, err := c.Version(short)
		expect(t, err, grpc.DeadlineExceeded)
		_, err = c.Images.Create(short, &Image{Name: strings.Repeat("x", 10<<20)}) // more than flow control lets pass
		expect(t, err, grpc.DeadlineExceeded)
		cancel()
	}
	if spent := time.Since(start); spent > 5*time.Second {
		t.Errorf("it took %v", spent)
	}
	closed := make(chan bool)
	go func() {
		s.Close()
		s.Next()
		closed <- true
	}()
	select {
	case <-closed:
	case <-time.After(5 * time.Second):
		t.Fatal("closing a subscription hangs, too")
	}
	ok(t, syscall.Kill(d.Pid(), syscall.SIGCONT))
	must(c.Version(ctx))(t)
	must(w.Write([]byte("goes on")))(t)
	w.Close()
}

// The server of grpc-go ends connections that ping too often, and HTTP/2 clients ping when calls are cancelled.
func TestManyCancelledCallsDoNotCostTheConnection(t *testing.T) {
	c, _, ctx := connect(t)
	s := must(c.Subscribe(ctx))(t)
	defer s.Close()
	id, mounts := container(t, c, ctx, false, "/bin/sh", "-c", "busybox sleep 60")
	must(c.Tasks.Create(ctx, id, mounts, IO{}, nil))(t)
	must(c.Tasks.Start(ctx, id, ""))(t)
	for range 300 {
		short, cancel := context.WithTimeout(ctx, 2*time.Millisecond)
		_, err := c.Tasks.Wait(short, id, "")
		expect(t, err, grpc.DeadlineExceeded)
		cancel()
	}
	ended := make(chan error, 1)
	go func() {
		for {
			if e, err := s.Next(); err != nil || e.Topic == "/images/delete" {
				ended <- err
				return
			}
		}
	}()
	must(c.Images.Create(ctx, &Image{Name: "x", Target: &Descriptor{MediaType: "m", Digest: digestOf(nil), Size: 1}}))(t)
	ok(t, c.Images.Delete(ctx, "x", false))
	ok(t, <-ended)
	ok(t, c.Tasks.Kill(ctx, id, "", syscall.SIGKILL, true))
}
