// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrlog"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/grpc"
	"sdvbox/platform/images"
	"sdvbox/platform/ocispec"
)

func (m *machine) Prepare(ctx context.Context, c *ctrmodel.Container) (digest string, err error) {
	image, err := m.Parts.Images.Pull(ctx, c.Image.Name, nil)
	if err != nil {
		return "", err
	}
	_, err = m.Client.Snapshots.Prepare(containerd.WithLease(ctx, m.Lease), snapshotOf(c.ID), image.ChainID, nil)
	if grpc.CodeOf(err) == grpc.AlreadyExists { // perhaps of an agent that did not keep the digest, and made before a refresh
		var made *containerd.Snapshot
		if made, err = m.Client.Snapshots.Stat(ctx, snapshotOf(c.ID)); err == nil && made.Parent != image.ChainID {
			old, err := m.Parts.Images.ByLayers(ctx, c.Image.Name, made.Parent)
			if err == nil || ctrmodel.KindOf(err) != ctrmodel.NotFound {
				return old.Digest, err
			}
		}
	}
	if err != nil {
		return "", model(err)
	}
	return image.Digest, nil
}

func (m *machine) Discard(ctx context.Context, c *ctrmodel.Container) error {
	if err := unlessGone(m.Client.Snapshots.Remove(containerd.WithLease(ctx, m.Lease), snapshotOf(c.ID))); err != nil {
		return err
	}
	if con, err := m.console(c); err == nil {
		if err := con.Remove(); err != nil {
			return fmt.Errorf("remove the log of container %s: %w", c.Name, err)
		}
	}
	removeCgroups("/sys/fs/cgroup", m.Namespace, c.ID)
	m.mu.Lock()
	delete(m.consoles, c.ID)
	m.mu.Unlock()
	return nil
}

func stored(i images.Image) ctrmodel.StoredImage {
	return ctrmodel.StoredImage{Name: i.Ref, Digest: i.Digest, Size: i.Size, Created: i.Created}
}

func (m *machine) Pull(ctx context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error) {
	i, err := m.Parts.Images.Pull(ctx, name, progress)
	return stored(i), err
}

func (m *machine) Refresh(ctx context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error) {
	i, err := m.Parts.Images.Refresh(ctx, name, progress)
	return stored(i), err
}

func (m *machine) Resolve(ctx context.Context, name string) (string, error) {
	return m.Parts.Images.Resolve(ctx, name)
}

func (m *machine) RemoveImage(ctx context.Context, name string) error {
	return m.Parts.Images.Remove(ctx, name)
}

func (m *machine) Import(ctx context.Context, archive string) error {
	_, err := m.Parts.Images.Import(ctx, archive)
	return err
}

func (m *machine) Images(ctx context.Context) (list []ctrmodel.StoredImage, err error) {
	all, err := m.Parts.Images.List(ctx)
	for _, i := range all {
		list = append(list, stored(i))
	}
	return list, err
}

func (m *machine) Collect(ctx context.Context, used map[string]bool) error {
	removed, err := m.Parts.Images.Collect(ctx, used)
	if len(removed) > 0 {
		m.Log.Info("removed images that were not used for long", "images", removed)
	}
	return err
}

// console returns the standard streams of a container.
func (m *machine) console(c *ctrmodel.Container) (*ctrlog.Console, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if con := m.consoles[c.ID]; con != nil {
		return con, nil
	}
	cfg, err := ctrlog.ConfigOf(c, m.LogDir, m.fifos(c.ID), m.Log)
	if err != nil {
		return nil, err
	}
	if c.IOConfig.StdinOnce {
		cfg.StdinEnded = m.endStdin(c.ID, "")
	}
	con := ctrlog.New(cfg)
	m.consoles[c.ID] = con
	return con, nil
}

// fifos is the directory with the streams of a process.
func (m *machine) fifos(id string) string { return filepath.Join(m.ExecDir, "fifo", id) }

const heldPrefix = "output-" // of the name under which the outputs of a container are held

// hold keeps the outputs of a process open while there is no agent. The shim does so, too, but only as long as there is a process.
func (m *machine) hold(id string, fifos ctrlog.Paths) {
	var files []*os.File
	for _, path := range []string{fifos.Stdout, fifos.Stderr} {
		if f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
			defer f.Close()
			files = append(files, f)
		}
	}
	if err := m.Files.Put(heldPrefix+id, files...); err != nil {
		m.Log.Warn("what a container says when the agent is away may be lost", "id", id, "error", err)
	}
}

func (m *machine) drop(id string) {
	if err := m.Files.Remove(heldPrefix + id); err != nil {
		m.Log.Warn("output of a container that has ended is still open", "id", id, "error", err)
	}
}

// endStdin returns what tells the shim that a process gets no more to read.
func (m *machine) endStdin(id, execID string) func() error {
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return unlessGone(m.Client.Tasks.CloseStdin(ctx, id, execID))
	}
}

func (m *machine) Image(ctx context.Context, c *ctrmodel.Container, digest string) (images.Image, error) {
	return m.Parts.Images.ByDigest(ctx, c.Image.Name, digest)
}

func (m *machine) Launch(ctx context.Context, c *ctrmodel.Container, image images.Image) (pid int64, err error) {
	mounts, err := m.Client.Snapshots.Mounts(ctx, snapshotOf(c.ID))
	if err != nil {
		return 0, model(err)
	}
	if c.HostConfig.NetworkMode == ctrmodel.HostNetwork {
		if name, err := os.Hostname(); err == nil {
			setHostName(c, name)
		}
	}
	netNS, err := m.Network.Attach(ctx, c)
	if err != nil {
		return 0, err
	}
	spec, err := m.spec(c, image.Config, netNS, mounts)
	if err != nil {
		return 0, err
	}
	con, err := m.console(c)
	if err != nil {
		return 0, err
	}
	fifos, err := con.Open()
	if err != nil {
		return 0, fmt.Errorf("streams of container %s: %w", c.Name, err)
	}
	m.hold(c.ID, fifos)
	if err := m.createObject(ctx, c, spec); err != nil {
		return 0, err
	}
	io := containerd.IO{Stdin: fifos.Stdin, Stdout: fifos.Stdout, Stderr: fifos.Stderr, Terminal: c.IOConfig.TTY}
	whole, cancel := whole(ctx)
	defer cancel()
	_, err = m.Client.Tasks.Create(whole, c.ID, mounts, io, m.options(c))
	if dir := leftover(err); dir != "" {
		m.learn(dir) // so that it is cleared away before the next attempt
	}
	if err != nil {
		return 0, started(err)
	}
	n, err := m.Client.Tasks.Start(whole, c.ID, "")
	return int64(n), started(err)
}

// setHostName gives a container the host name of the machine, unless no container may have that: before it is told, it is "(none)".
func setHostName(c *ctrmodel.Container, host string) {
	before := c.HostName
	if c.HostName = host; c.Validate() != nil {
		c.HostName = before
	}
}

// whole is for steps that go on although nobody waits for them any more: what they would leave when they are cut off, the shim
// goes on with, and nobody knows when.
func whole(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
}

// started gives the failure of a runtime to start something a kind: as a rule, it is about the container.
func started(err error) error {
	if err == nil {
		return nil
	}
	if err = model(err); ctrmodel.KindOf(err) != ctrmodel.Internal {
		return err
	}
	kind := ctrmodel.FailedPrecondition
	// An agent that was killed has been starting it: containerd still clears the directory of that shim away.
	if text := err.Error(); leftover(err) != "" ||
		strings.Contains(text, "failed to start shim: ") && strings.Contains(text, "/io.containerd.runtime.v2.task/") {
		kind = ctrmodel.Unavailable
	}
	return ctrmodel.Errorf(kind, "%w", err)
}

func (m *machine) spec(c *ctrmodel.Container, image v1.ImageConfig, netNS string, mounts []*containerd.Mount) (spec *specs.Spec, err error) {
	o := ocispec.Options{Namespace: m.Namespace, NetNS: netNS, Host: m.host}
	if ocispec.NeedsRootfs(image.User) {
		dir, unmount, err := mountReadOnly(filepath.Join(m.ExecDir, rootfsPrefix+c.ID), mounts)
		if err != nil {
			return nil, fmt.Errorf("look at the file system of container %s: %w", c.Name, err)
		}
		defer unmount()
		o.Rootfs = dir
	}
	return ocispec.Build(c, image, o)
}

// mountReadOnly mounts a file system for a look at it.
func mountReadOnly(dir string, mounts []*containerd.Mount) (path string, unmount func(), err error) {
	if len(mounts) != 1 {
		return "", nil, fmt.Errorf("%d mounts, expected 1", len(mounts))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	var flags uintptr = unix.MS_RDONLY
	var data []string
	for _, o := range mounts[0].Options {
		switch o {
		case "rbind", "bind":
			flags |= unix.MS_BIND
		case "ro", "rw":
		default:
			data = append(data, o)
		}
	}
	if err := unix.Mount(mounts[0].Source, dir, mounts[0].Type, flags, strings.Join(data, ",")); err != nil {
		os.Remove(dir)
		return "", nil, &os.PathError{Op: "mount", Path: dir, Err: err}
	}
	return dir, func() {
		unix.Unmount(dir, unix.MNT_DETACH)
		os.Remove(dir)
	}, nil
}

func (m *machine) createObject(ctx context.Context, c *ctrmodel.Container, spec *specs.Spec) error {
	any, err := containerd.Spec(spec)
	if err != nil {
		return err
	}
	r := &containerd.Runtime{Name: m.runtime(c)}
	if o := m.options(c); o != nil {
		if r.Options, err = o.Any(); err != nil {
			return err
		}
	}
	_, err = m.Client.Containers.Create(ctx, &containerd.Container{
		ID: c.ID, Image: c.Image.Name, Runtime: r, Spec: any, Snapshotter: snapshotter, SnapshotKey: snapshotOf(c.ID),
	})
	return model(err)
}

func isRunc(runtime string) bool {
	return strings.HasPrefix(runtime, "io.containerd.runc.") || runtime == "io.containerd.runtime.v1.linux"
}

func (m *machine) runtime(c *ctrmodel.Container) string {
	if isRunc(c.HostConfig.Runtime) {
		return m.Runtime
	}
	return c.HostConfig.Runtime
}

func (m *machine) options(c *ctrmodel.Container) *containerd.RuncOptions {
	if !isRunc(c.HostConfig.Runtime) {
		return nil
	}
	return &containerd.RuncOptions{SystemdCgroup: m.host.Systemd, BinaryName: m.Runc}
}

func (m *machine) Adopt(ctx context.Context, c *ctrmodel.Container) (int64, error) {
	task, err := m.Client.Tasks.Get(ctx, c.ID, "")
	if err != nil {
		return 0, model(err)
	}
	con, err := m.console(c)
	if err == nil {
		err = m.linkStreams(c.ID, task)
	}
	var fifos ctrlog.Paths
	if err == nil {
		fifos, err = con.Open()
	}
	if err == nil {
		m.hold(c.ID, fifos)
	} else { // better without its output than not at all
		m.Log.Error("output of a container is not read", "container", c.Name, "error", err)
	}
	m.Network.Describe(c)
	return int64(task.Pid), nil
}

// linkStreams lets a console find the streams of a process which another agent, with other directories, has left behind.
func (m *machine) linkStreams(id string, task *containerd.Process) error {
	dir := m.fifos(id)
	for name, path := range map[string]string{"stdin": task.Stdin, "stdout": task.Stdout, "stderr": task.Stderr} {
		own := filepath.Join(dir, name)
		if path == "" || path == own {
			continue
		}
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
		if err := os.Symlink(path, own); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

func (m *machine) Release(ctx context.Context, c *ctrmodel.Container) error {
	m.lastWords(ctx, c)
	if err := m.clearTask(ctx, c.ID); err != nil {
		return err
	}
	if con, err := m.console(c); err == nil {
		if err := con.Close(); err != nil {
			m.Log.Warn("cannot clear away the streams of a container", "container", c.Name, "error", err)
		}
	}
	m.drop(c.ID)
	c.NetworkSettings = nil
	return m.Network.Detach(ctx, c.ID)
}

// lastWords takes up what a process has said that has ended while no agent was there. It is lost with the task: only the shim
// holds it.
func (m *machine) lastWords(ctx context.Context, c *ctrmodel.Container) {
	task, err := m.Client.Tasks.Get(ctx, c.ID, "")
	if err != nil {
		return
	}
	con, err := m.console(c)
	if err == nil {
		err = m.linkStreams(c.ID, task)
	}
	if err == nil {
		err = con.Reopen()
	}
	if err != nil {
		m.Log.Error("the last output of a container is lost", "container", c.Name, "error", err)
	}
}

// clearTask removes task and object of a container whose process has ended, or was never started.
func (m *machine) clearTask(ctx context.Context, id string) error {
	_, err := m.Client.Tasks.Delete(ctx, id, "")
	if err != nil && !gone(err) {
		// Perhaps it is an unstarted one, which some shims want to have killed first.
		m.Client.Tasks.Kill(ctx, id, "", syscall.SIGKILL, true)
		_, err = m.Client.Tasks.Delete(ctx, id, "")
	}
	if gone(err) {
		if err := m.reclaim(ctx, id); err != nil {
			return err
		}
	} else if err != nil {
		return model(err)
	}
	return unlessGone(m.Client.Containers.Delete(ctx, id))
}

// Leave lets go of the containers, which go on.
func (m *machine) Leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, con := range m.consoles {
		con.Leave()
	}
}

func (m *machine) Limit(ctx context.Context, c *ctrmodel.Container) error {
	limits, err := ocispec.Limits(c.HostConfig.Resources, m.host)
	if err != nil {
		return err
	}
	return model(m.Client.Tasks.Update(ctx, c.ID, limits))
}

func (m *machine) Logs(ctx context.Context, c *ctrmodel.Container, o ctrmodel.LogOptions, yield func([]byte) error) error {
	con, err := m.console(c)
	if err != nil {
		return err
	}
	return con.Logs(ctx, o, yield)
}

func (m *machine) Attach(ctx context.Context, c *ctrmodel.Container, s ctrmodel.Streams, attached func()) error {
	con, err := m.console(c)
	if err != nil {
		return err
	}
	defer m.resize(ctx, c.ID, "", s.Resize)()
	return con.Attach(ctx, s, attached)
}

// resize makes the terminal of a process as large as told until stop is called. The process may be yet to come.
func (m *machine) resize(ctx context.Context, id, execID string, sizes <-chan ctrmodel.WindowSize) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	if sizes != nil {
		go func() {
			var s ctrmodel.WindowSize
			var again <-chan time.Time
			for ok := true; ; {
				select {
				case s, ok = <-sizes:
					if !ok {
						return
					}
				case <-again:
				case <-ctx.Done():
					return
				}
				again = nil
				if err := m.Client.Tasks.Resize(ctx, id, execID, s.Width, s.Height); err != nil {
					again = time.After(resizeAgain)
				}
			}
		}()
	}
	return cancel
}

const resizeAgain = 100 * time.Millisecond

func (m *machine) Exec(ctx context.Context, c *ctrmodel.Container, o ctrmodel.ExecOptions, s ctrmodel.Streams) (code int, err error) {
	object, err := m.Client.Containers.Get(ctx, c.ID)
	if err != nil {
		return 0, model(err)
	}
	var spec specs.Spec
	if object.Spec == nil {
		return 0, fmt.Errorf("container %s has no specification", c.Name)
	}
	if err := json.Unmarshal(object.Spec.Value, &spec); err != nil {
		return 0, fmt.Errorf("specification of container %s: %w", c.Name, err)
	}
	process, err := ocispec.Process(&spec, o, m.host, fmt.Sprintf("/proc/%d/root", c.State.PID))
	if err != nil {
		return 0, err
	}
	var size ctrmodel.WindowSize
	if o.TTY {
		select { // so that it never sees another size
		case size = <-s.Resize:
			process.ConsoleSize = &specs.Box{Height: uint(size.Height), Width: uint(size.Width)}
		default:
		}
	}
	execID := execPrefix + strings.ToLower(rand.Text())
	con := ctrlog.New(ctrlog.Config{
		Dir: m.fifos(execID), Stdin: s.Stdin != nil, TTY: o.TTY, Patient: true,
		StdinEnded: m.endStdin(c.ID, execID), Log: m.Log,
	})
	defer con.Close()
	fifos, err := con.Open()
	if err != nil {
		return 0, err
	}
	io := containerd.IO{Stdin: fifos.Stdin, Stdout: fifos.Stdout, Stderr: fifos.Stderr, Terminal: o.TTY}
	end := func() { // whatever is left of it, even if nobody waits any more
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		m.endExec(ctx, c.ID, execID)
	}
	ctx, cancel := context.WithCancel(ctx)
	ready, streams, detached := make(chan struct{}), make(chan error, 1), make(chan struct{})
	go func() {
		defer close(detached)
		streams <- con.Attach(ctx, s, func() { close(ready) })
	}()
	defer func() { // nothing is written to the caller's streams once it has its answer
		cancel()
		<-detached
	}()
	<-ready
	whole, done := whole(ctx)
	defer done()
	if err = m.Client.Tasks.Exec(whole, c.ID, execID, process, io); err == nil {
		_, err = m.Client.Tasks.Start(whole, c.ID, execID)
	}
	if err != nil {
		end()
		return 0, started(err)
	}
	if process.ConsoleSize != nil { // crun takes no notice of that
		m.Client.Tasks.Resize(ctx, c.ID, execID, size.Width, size.Height)
	}
	defer m.resize(ctx, c.ID, execID, s.Resize)()
	type result struct {
		exit containerd.Exit
		err  error
	}
	ended := make(chan result, 1)
	go func() {
		exit, err := m.Client.Tasks.Wait(ctx, c.ID, execID)
		ended <- result{exit, err}
	}()
	var r result
	select {
	case r = <-ended:
	case err := <-streams:
		if err != nil { // whoever is there does not take the output
			end()
			return 0, err
		}
		streams <- nil
		r = <-ended
	}
	end()
	con.Close() // after all output
	if r.err != nil {
		return 0, errors.Join(context.Cause(ctx), model(r.err))
	}
	return int(r.exit.Status), <-streams
}
