// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/ctrd"
)

// plain is a machine without images, networks and logs: busybox on containerd.
type plain struct {
	*machine
	t      testing.TB
	parent string // snapshot with busybox
}

func newPlain(t testing.TB) (*plain, *ctrd.Daemon) {
	d := ctrd.Start(t)
	client := containerd.New(d.Socket, "kanto-cm")
	t.Cleanup(func() { client.Close() })
	p := &plain{&machine{Parts: Parts{Client: client}, lease: "kanto-cm.lease"}, t, ""}
	p.must(client.CreateNamespace(t.Context()))
	p.parent = p.layer()
	return p, d
}

func (p *plain) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// layer unpacks a layer with busybox.
func (p *plain) layer() (name string) {
	p.t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	p.must(err)
	var plain, packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	w := tar.NewWriter(io.MultiWriter(&plain, z))
	for _, dir := range []string{"bin", "proc", "dev", "sys", "tmp"} {
		p.must(w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}))
	}
	p.must(w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(program))}))
	w.Write(program)
	for _, link := range []string{"sh", "sleep", "cat", "true"} {
		p.must(w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + link, Linkname: "busybox"}))
	}
	p.must(w.Close())
	p.must(z.Close())
	ctx := p.t.Context()
	digest, diff := fmt.Sprintf("sha256:%x", sha256.Sum256(packed.Bytes())), fmt.Sprintf("sha256:%x", sha256.Sum256(plain.Bytes()))
	cw, err := p.Client.Content.Writer(ctx, "layer", int64(packed.Len()), digest)
	p.must(err)
	_, err = cw.Write(packed.Bytes())
	p.must(err)
	p.must(cw.Commit(map[string]string{"containerd.io/gc.root": "test"}))
	mounts, err := p.Client.Snapshots.Prepare(ctx, "extract", "", nil)
	p.must(err)
	_, err = p.Client.Apply(ctx, &containerd.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: digest, Size: int64(packed.Len())}, mounts)
	p.must(err)
	p.must(p.Client.Snapshots.Commit(ctx, diff, "extract", map[string]string{"containerd.io/gc.root": "test"}))
	return diff
}

func (p *plain) Prepare(ctx context.Context, c *ctrmodel.Container) error {
	_, err := p.Client.Snapshots.Prepare(containerd.WithLease(ctx, p.lease), snapshotOf(c.ID), p.parent, nil)
	return err
}

func (p *plain) Launch(ctx context.Context, c *ctrmodel.Container) (int64, error) {
	type object = map[string]any
	memory := object{}
	if limit, _, _, err := c.HostConfig.Resources.Limits(); err == nil && limit > 0 {
		memory["limit"] = limit
	}
	spec, err := containerd.Spec(object{
		"ociVersion": "1.0.2",
		"process":    object{"cwd": "/", "args": c.Config.Cmd, "env": []string{"PATH=/bin"}, "user": object{"uid": 0, "gid": 0}},
		"root":       object{"path": "rootfs"},
		"mounts":     []object{{"destination": "/proc", "type": "proc", "source": "proc"}, {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}},
		"linux": object{"cgroupsPath": "/sdvbox-test/" + c.ID, "resources": object{"memory": memory},
			"namespaces": []object{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}}},
	})
	if err != nil {
		return 0, err
	}
	_, err = p.Client.Containers.Create(ctx, &containerd.Container{ID: c.ID, Image: "none", Snapshotter: snapshotter, SnapshotKey: snapshotOf(c.ID),
		Runtime: &containerd.Runtime{Name: "io.containerd.runc.v2"}, Spec: spec})
	if err != nil {
		return 0, model(err)
	}
	mounts, err := p.Client.Snapshots.Mounts(ctx, snapshotOf(c.ID))
	if err != nil {
		return 0, model(err)
	}
	if _, err = p.Client.Tasks.Create(ctx, c.ID, mounts, containerd.IO{}, nil); err != nil {
		return 0, model(err)
	}
	pid, err := p.Client.Tasks.Start(ctx, c.ID, "")
	return int64(pid), model(err)
}

func (p *plain) Adopt(ctx context.Context, c *ctrmodel.Container) (int64, error) {
	task, err := p.Client.Tasks.Get(ctx, c.ID, "")
	if err != nil {
		return 0, model(err)
	}
	return int64(task.Pid), nil
}

func (p *plain) Limit(context.Context, *ctrmodel.Container) error { return nil }
func (p *plain) Release(ctx context.Context, c *ctrmodel.Container) error {
	return p.clearTask(ctx, c.ID)
}
func (p *plain) Discard(ctx context.Context, c *ctrmodel.Container) error {
	return unlessGone(p.Client.Snapshots.Remove(ctx, snapshotOf(c.ID)))
}
func (p *plain) Attach(context.Context, *ctrmodel.Container, ctrmodel.Streams, func()) error {
	return nil
}
func (p *plain) Exec(context.Context, *ctrmodel.Container, ctrmodel.ExecOptions, ctrmodel.Streams) (int, error) {
	return 0, nil
}
func (p *plain) Logs(context.Context, *ctrmodel.Container, ctrmodel.LogOptions, func([]byte) error) error {
	return nil
}

func newRealRig(t *testing.T) (*rig, *ctrd.Daemon) {
	p, d := newPlain(t)
	r := &rig{t: t, backend: p, cfg: Config{StateDir: t.TempDir(), StopTimeout: 5 * time.Second, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}}
	r.start()
	return r, d
}

func cmd(args ...string) func(*ctrmodel.Container) {
	return func(c *ctrmodel.Container) { c.Config.Cmd = args }
}

var (
	stubborn = cmd("/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done")
	obedient = cmd("/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done")
)

func TestRealStops(t *testing.T) {
	r, _ := newRealRig(t)
	ctx := t.Context()
	id := r.make("quick", cmd("/bin/sleep", "1000"), policy(ctrmodel.RestartAlways, 0))
	stops := 20
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
		r.must(r.Remove(ctx, a.id, true, force))
	}
	r.clean()
}

// clean makes sure that nothing is left in containerd.
func (r *rig) clean() {
	r.t.Helper()
	c := r.backend.(*plain).Client
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
	if s := r.awaitStatus(never, ctrmodel.Exited).State; s.ExitCode != 137 {
		t.Errorf("state %+v", s)
	}
	r.must(syscall.Kill(int(r.get(goesOn).State.PID), syscall.SIGKILL))
	r.await(goesOn, "restarted", func(c *ctrmodel.Container) bool { return c.RestartCount == 1 && c.State.Running })
	r.must(r.Stop(ctx, goesOn, force))
	for _, a := range r.list() {
		r.must(r.Remove(ctx, a.id, true, force))
	}
	r.clean()
}

func TestRealShimIsKilled(t *testing.T) {
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
		r.must(r.Remove(t.Context(), a.id, true, force))
	}
	r.clean()
}
