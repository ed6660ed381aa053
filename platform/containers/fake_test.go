// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/images"
)

// fake is a containerd that does what a test tells it to.
type fake struct {
	mu    sync.Mutex
	boxes map[string]*box
	down  chan struct{} // closed to cut the connection
	off   bool

	alone    bool // there is to be one process at most
	crowd    bool // there were more
	imported []string
	removed  []string        // images
	moved    int             // how often image names have come to stand for something else
	used     map[string]bool // when images were collected the last time
	kept     []string        // what the engine wanted to be kept when it connected the last time

	// Behaviour by name of the container.
	prepare func(ctx context.Context, c *ctrmodel.Container) error
	launch  func(c *ctrmodel.Container) error
	kill    func(id string, s syscall.Signal) (ends bool)
	release func(id string) error
	discard func(id string) error
	pause   func(ctx context.Context) error
	unpack  func(archive string) error
	look    func(id string) error
	limit   func() error
	refuse  func() error  // to kill
	slow    time.Duration // how long it takes to look at a container that runs
}

// box is what the fake has of a container.
type box struct {
	snapshot bool
	object   bool // containerd's description
	task     Task
	end      *end
	limits   ctrmodel.Resources
	launched int
	digest   string // of the image
}

type end struct {
	done chan struct{}
	exit Exit
}

func newFake() *fake {
	return &fake{boxes: map[string]*box{}, down: make(chan struct{})}
}

var errDown = ctrmodel.Errorf(ctrmodel.Unavailable, "connection refused")

func (f *fake) box(id string) *box {
	if f.boxes[id] == nil {
		f.boxes[id] = &box{}
	}
	return f.boxes[id]
}

// call begins a method: it fails while containerd is away.
func (f *fake) call() (unlock func(), err error) {
	f.mu.Lock()
	if f.off {
		f.mu.Unlock()
		return nil, errDown
	}
	return f.mu.Unlock, nil
}

// setDown takes containerd away, or brings it back.
func (f *fake) setDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.off == down {
		return
	}
	if f.off = down; down {
		close(f.down)
	} else {
		f.down = make(chan struct{})
	}
}

// left is what there is of containers.
func (f *fake) left() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.boxes))
}

// running is how many processes there are.
func (f *fake) running() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.boxes {
		if b.task.Live() {
			n++
		}
	}
	return n
}

func (f *fake) crowded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.crowd
}

// exit ends a process by itself.
func (f *fake) exit(id string, code int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.box(id).exit(code)
}

func (b *box) exit(code int64) {
	if b.task.Live() {
		b.task = TaskEnded
		b.end.exit = Exit{Code: code, At: time.Now()}
		close(b.end.done)
	}
}

// launched is how many processes a container has had.
func (f *fake) launched(id string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.box(id).launched
}

func (f *fake) Connect(ctx context.Context, keep []*ctrmodel.Container, up func(), oom func(string)) error {
	f.mu.Lock()
	down, off := f.down, f.off
	f.kept = nil
	for _, c := range keep {
		f.kept = append(f.kept, c.ID)
	}
	f.mu.Unlock()
	if off {
		return errDown
	}
	up()
	select {
	case <-down:
		return errDown
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *fake) Look(_ context.Context, id string) (Actual, error) {
	unlock, err := f.call()
	if err != nil {
		return Actual{}, err
	}
	b := f.boxes[id]
	if b != nil && b.task.Live() && f.slow > 0 {
		unlock()
		time.Sleep(f.slow)
		f.mu.Lock()
	}
	defer unlock()
	if f.look != nil {
		if err := f.look(id); err != nil {
			return Actual{}, err
		}
	}
	if b == nil {
		return Actual{}, nil
	}
	return Actual{Snapshot: b.snapshot, Object: b.object, Task: b.task}, nil
}

func (f *fake) Prepare(ctx context.Context, c *ctrmodel.Container) (string, error) {
	if f.prepare != nil {
		if err := f.prepare(ctx, c); err != nil {
			return "", err
		}
	}
	unlock, err := f.call()
	if err != nil {
		return "", err
	}
	defer unlock()
	f.box(c.ID).snapshot = true
	return f.digest(c.Image.Name), nil
}

// digest is that of what an image name stands for.
func (f *fake) digest(name string) string { return fmt.Sprint("sha256:", f.moved, name) }

func (f *fake) Image(_ context.Context, _ *ctrmodel.Container, digest string) (images.Image, error) {
	return images.Image{Digest: digest}, nil
}

func (f *fake) Launch(_ context.Context, c *ctrmodel.Container, image images.Image) (int64, error) {
	unlock, err := f.call()
	if err != nil {
		return 0, err
	}
	defer unlock()
	b := f.box(c.ID)
	if b.task != NoTask {
		return 0, errors.New("task exists already")
	}
	for _, other := range f.boxes {
		f.crowd = f.crowd || f.alone && other.task.Live()
	}
	b.object, b.task = true, TaskUnstarted
	if f.launch != nil {
		if err := f.launch(c); err != nil {
			return 0, err
		}
	}
	b.task, b.end, b.digest = TaskRunning, &end{done: make(chan struct{})}, image.Digest
	b.limits = c.HostConfig.Resources
	b.launched++
	f.describe(c)
	return 4711, nil
}

func (f *fake) describe(c *ctrmodel.Container) {
	c.NetworkSettings, c.HostsPath = &ctrmodel.NetworkSettings{SandboxID: "net-" + c.ID}, "/run/hosts-"+c.ID
}

func (f *fake) Adopt(_ context.Context, c *ctrmodel.Container) (int64, error) {
	unlock, err := f.call()
	if err != nil {
		return 0, err
	}
	defer unlock()
	f.describe(c)
	return 4712, nil
}

func (f *fake) Wait(ctx context.Context, id string) (Exit, error) {
	unlock, err := f.call()
	if err != nil {
		return Exit{}, err
	}
	var task Task
	var end *end
	if b := f.boxes[id]; b != nil {
		task, end = b.task, b.end
	}
	down := f.down
	unlock()
	if task == NoTask {
		return Exit{Lost: true, At: time.Now()}, nil
	}
	select {
	case <-end.done:
		return end.exit, nil
	case <-down:
		return Exit{}, errDown
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

func (f *fake) Kill(_ context.Context, id string, s syscall.Signal) error {
	unlock, err := f.call()
	if err != nil {
		return err
	}
	defer unlock()
	if f.refuse != nil {
		return f.refuse()
	}
	b := f.box(id)
	if s == syscall.SIGKILL || f.kill == nil || f.kill(id, s) {
		b.exit(128 + int64(s))
	}
	return nil
}

func (f *fake) Pause(ctx context.Context, id string) error {
	if f.pause != nil {
		return f.pause(ctx)
	}
	unlock, err := f.call()
	if err != nil {
		return err
	}
	defer unlock()
	f.box(id).task = TaskPaused
	return nil
}

func (f *fake) Resume(_ context.Context, id string) error {
	unlock, err := f.call()
	if err != nil {
		return err
	}
	defer unlock()
	if b := f.box(id); b.task == TaskPaused {
		b.task = TaskRunning
	}
	return nil
}

func (f *fake) Limit(_ context.Context, c *ctrmodel.Container) error {
	unlock, err := f.call()
	if err != nil {
		return err
	}
	defer unlock()
	if f.limit != nil {
		if err := f.limit(); err != nil {
			return err
		}
	}
	if f.box(c.ID).task == NoTask {
		return errors.New("no such task")
	}
	f.box(c.ID).limits = c.HostConfig.Resources
	return nil
}

func (f *fake) Release(_ context.Context, c *ctrmodel.Container) error {
	unlock, err := f.call()
	if err != nil {
		return err
	}
	defer unlock()
	if f.release != nil {
		if err := f.release(c.ID); err != nil {
			return err
		}
	}
	b := f.box(c.ID)
	if b.task.Live() {
		return errors.New("the process still runs")
	}
	b.object, b.task = false, NoTask
	c.NetworkSettings = nil
	return nil
}

func (f *fake) Discard(_ context.Context, c *ctrmodel.Container) error {
	unlock, err := f.call()
	if err != nil {
		return err
	}
	defer unlock()
	if f.discard != nil {
		if err := f.discard(c.ID); err != nil {
			return err
		}
	}
	if b := f.box(c.ID); b.task != NoTask {
		return errors.New("still in use")
	}
	delete(f.boxes, c.ID)
	return nil
}

func (f *fake) Attach(context.Context, *ctrmodel.Container, ctrmodel.Streams, func()) error {
	return nil
}

func (f *fake) Exec(context.Context, *ctrmodel.Container, ctrmodel.ExecOptions, ctrmodel.Streams) (int, error) {
	return 0, nil
}

func (f *fake) Logs(context.Context, *ctrmodel.Container, ctrmodel.LogOptions, func([]byte) error) error {
	return nil
}

func (f *fake) Stats(context.Context, *ctrmodel.Container) (ctrmodel.Stats, error) {
	return ctrmodel.Stats{}, nil
}

func (f *fake) Pull(_ context.Context, name string, _ func(ctrmodel.Progress)) (ctrmodel.StoredImage, error) {
	return ctrmodel.StoredImage{Name: name}, nil
}

func (f *fake) Resolve(_ context.Context, name string) (string, error) { return "", nil }

func (f *fake) Refresh(_ context.Context, name string, _ func(ctrmodel.Progress)) (ctrmodel.StoredImage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.moved++
	return ctrmodel.StoredImage{Name: name, Digest: f.digest(name)}, nil
}

func (f *fake) RemoveImage(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removed = append(f.removed, name)
	return nil
}

func (f *fake) Import(_ context.Context, archive string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unpack != nil {
		if err := f.unpack(archive); err != nil {
			return err
		}
	}
	f.imported = append(f.imported, filepath.Base(archive))
	return nil
}

func (f *fake) Images(context.Context) ([]ctrmodel.StoredImage, error) {
	return []ctrmodel.StoredImage{{Name: busybox}, {Name: "other"}}, nil
}

func (f *fake) Collect(_ context.Context, used map[string]bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.used = used
	return nil
}

func (f *fake) Leave() {}

// rig is an engine on a fake.
type rig struct {
	*Engine
	t     *testing.T
	fake  *fake // nil with a real backend
	parts Parts // of a real one
	cfg   Config
	boot  string // of the machine
	stop  func() // ends the engine, containers go on
}

// memoryDir is a directory where files are quickly written, if there is one.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "containers")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newRig(t *testing.T, change ...func(*Config)) *rig {
	cfg := Config{StateDir: memoryDir(t), StopTimeout: time.Second, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, f := range change {
		f(&cfg)
	}
	r := &rig{t: t, fake: newFake(), cfg: cfg}
	r.start()
	return r
}

// start begins with an engine, in the state that the one before has left.
func (r *rig) start() {
	r.t.Helper()
	var b backend = r.fake
	if r.fake == nil {
		b = newMachine(r.parts)
	}
	e, err := newEngine(r.cfg, b)
	if err != nil {
		r.t.Fatal(err)
	}
	e.times = times{connect: 50 * time.Millisecond, retry: 10 * time.Millisecond, call: 20 * time.Second}
	e.boot = cmp.Or(r.boot, e.boot)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Run(ctx)
	}()
	r.Engine = e
	r.stop = func() {
		cancel()
		select {
		case <-done:
		case <-time.After(time.Minute):
			panic("the engine does not end")
		}
	}
	r.t.Cleanup(r.stop)
	off := r.fake != nil && r.fake.off
	for end := time.Now().Add(time.Minute); !off && e.Ready() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatal(e.Ready())
		}
	}
}

func (r *rig) restart() {
	r.t.Helper()
	r.stop()
	r.start()
}

// make creates a container.
func (r *rig) make(name string, change ...func(*ctrmodel.Container)) string {
	r.t.Helper()
	c := &ctrmodel.Container{Name: name, Image: ctrmodel.Image{Name: busybox}}
	for _, f := range change {
		f(c)
	}
	c, err := r.Create(r.t.Context(), c)
	if err != nil {
		r.t.Fatal(err)
	}
	return c.ID
}

// running creates a container and starts it.
func (r *rig) running(name string, change ...func(*ctrmodel.Container)) string {
	r.t.Helper()
	id := r.make(name, change...)
	r.must(r.Start(r.t.Context(), id))
	return id
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) wantKind(err error, kind ctrmodel.Kind) {
	r.t.Helper()
	if err == nil || ctrmodel.KindOf(err) != kind {
		r.t.Fatalf("error %v of kind %v, want kind %v", err, ctrmodel.KindOf(errors.Join(err)), kind)
	}
}

func (r *rig) get(id string) *ctrmodel.Container {
	r.t.Helper()
	c, err := r.Get(r.t.Context(), id)
	r.must(err)
	return c
}

// await waits for a container to be as told.
func (r *rig) await(id, what string, is func(*ctrmodel.Container) bool) *ctrmodel.Container {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		c := r.get(id)
		if is(c) {
			return c
		}
		if time.Now().After(end) {
			r.t.Fatalf("container %s is not %s but %+v", c.Name, what, c.State)
		}
	}
}

func (r *rig) awaitStatus(id string, s ctrmodel.Status) *ctrmodel.Container {
	r.t.Helper()
	return r.await(id, s.String(), func(c *ctrmodel.Container) bool { return c.State.Status == s })
}

// steady makes sure that a container stays as it is.
func (r *rig) steady(id string, s ctrmodel.Status) {
	r.t.Helper()
	for end := time.Now().Add(250 * time.Millisecond); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if c := r.get(id); c.State.Status != s {
			r.t.Fatalf("container %s did not stay %v: %+v", c.Name, s, c.State)
		}
	}
}

func policy(kind string, retries int64) func(*ctrmodel.Container) {
	return func(c *ctrmodel.Container) {
		c.HostConfig.RestartPolicy = ctrmodel.RestartPolicy{Type: kind, MaxRetries: retries, RetryTimeout: 20 * time.Millisecond}
	}
}

var force = ctrmodel.StopOptions{Force: true}
