// SPDX-License-Identifier: Apache-2.0

package ctrupdate

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"sdvbox/platform/containers"
	"sdvbox/platform/ctrmodel"
)

// fake is an engine that keeps its promises, and can be cut off at any call. What the image of a container is called tells how it
// behaves: "bad" ends with exit code 1, "once" with 0, "stuck" does not start, "sick" has a health command that fails, "missing" is
// in no registry, "late" dies when the device is started again, "frail" when another one is started after it, containerd loses the
// connection when it starts "lost" for the first time, the engine itself tries to start "second" once more and
// starts "killed" again, and what is "stubborn" cannot be removed.
type fake struct {
	mu    sync.Mutex
	boxes map[string]*box
	subs  map[chan ctrmodel.Event]bool
	moved map[string]bool // images whose name stands for another one now

	calls int // so far
	cut   int // the number of the call that is the last, or 0
	dead  chan struct{}
	log   []string

	pulling, pulledAtOnce int
	slow                  time.Duration // a pull
	twice                 string        // name of which there were two processes
	lost                  bool          // the connection has been
	down                  int           // calls that containerd does not answer
}

// box is a container of the fake.
type box struct {
	*ctrmodel.Container
	run      bool // wanted
	parked   bool
	replaces string
	owner    string
	switched bool
}

func newFake() *fake {
	return &fake{boxes: map[string]*box{}, subs: map[chan ctrmodel.Event]bool{}, moved: map[string]bool{}, dead: make(chan struct{})}
}

// revive starts the agent again after it has been cut off; also the device, perhaps.
func (f *fake) revive(reboot bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead, f.down = make(chan struct{}), 0
	for _, id := range slices.Sorted(maps.Keys(f.boxes)) {
		b := f.boxes[id]
		if reboot && b.State.HasProcess() {
			b.State.SetExited(255, time.Now(), false, "lost")
			if strings.Contains(b.Image.Name, "late") {
				b.Image.Name = strings.ReplaceAll(b.Image.Name, "late", "bad")
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(f.boxes)) {
		f.settle(f.boxes[id])
	}
}

// step is at the beginning and at the end of each call. From the cut on none returns before its caller is gone.
func (f *fake) step(ctx context.Context, what string) error {
	f.mu.Lock()
	f.calls++
	if f.calls == f.cut {
		f.log = append(f.log, "CUT at "+what)
		close(f.dead)
	}
	dead := f.dead
	if f.down > 0 {
		f.down--
		f.mu.Unlock()
		return ctrmodel.Errorf(ctrmodel.Unavailable, "containerd does not answer")
	}
	f.mu.Unlock()
	select {
	case <-dead:
		<-ctx.Done()
		return ctx.Err()
	default:
		return ctx.Err()
	}
}

// do is a call that changes something.
func (f *fake) do(ctx context.Context, what, id string, change func() error) error {
	if err := f.step(ctx, "before "+what); err != nil {
		return err
	}
	f.mu.Lock()
	name := f.name(id)
	err := change()
	f.log = append(f.log, fmt.Sprint(what, " ", name, errText(err)))
	f.mu.Unlock()
	if e := f.step(ctx, "after "+what); e != nil && ctrmodel.KindOf(e) != ctrmodel.Unavailable {
		return e
	}
	return err
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

func (f *fake) name(id string) string {
	if b := f.boxes[id]; b != nil {
		return b.Name
	}
	return id
}

func (f *fake) publish(what ctrmodel.Action, b *box) {
	for c := range f.subs {
		select {
		case c <- ctrmodel.Event{Action: what, Container: b.Clone()}:
		default:
		}
	}
}

// successor is the container that has taken, or is to take, the place of another one.
func (f *fake) successor(id string) *box {
	for _, b := range f.boxes {
		if b.replaces == id {
			return b
		}
	}
	return nil
}

// inCharge reports whether a container may have a process.
func (f *fake) inCharge(b *box) bool {
	next := f.successor(b.ID)
	return !b.parked && (b.replaces == "" || b.switched) && (next == nil || !next.switched)
}

// settle makes a container as it is wanted.
func (f *fake) settle(b *box) {
	switch {
	case b.run && f.inCharge(b) && !b.State.HasProcess():
		if strings.Contains(b.Image.Name, "stuck") {
			b.State.SetNotStarted("no such program")
			return
		}
		b.State.SetRunning(1, time.Now())
		f.publish(ctrmodel.ActionRunning, b)
		for _, other := range f.boxes {
			if other != b && kindOf(other) == "frail" && other.State.HasProcess() {
				other.State.SetExited(1, time.Now(), false, "")
				f.publish(ctrmodel.ActionExited, other)
			}
			if other != b && other.Name == b.Name && other.State.HasProcess() {
				f.twice = b.Name
			}
			if other != b && other.State.HasProcess() && contend(other.Container, b.Container) {
				b.State.SetNotStarted("the port is taken")
				return
			}
		}
		if code, ends := map[string]int64{"bad": 1, "once": 0}[kindOf(b)]; ends {
			b.State.SetExited(code, time.Now(), false, "")
			f.publish(ctrmodel.ActionExited, b)
		}
	case !(b.run && f.inCharge(b)) && b.State.HasProcess():
		b.State.SetStopped(0, time.Now())
		f.publish(ctrmodel.ActionStopped, b)
	}
}

func kindOf(b *box) string {
	_, tag, _ := strings.Cut(b.Image.Name, ":")
	return tag
}

// add is a container that is there before the test. Its id is its name.
func (f *fake) add(c *ctrmodel.Container, run bool) {
	c.ID = c.Name
	c.Defaults(newID)
	b := &box{Container: c, run: run}
	c.Created = "then"
	c.State.SetCreated()
	f.boxes[c.ID] = b
	f.settle(b)
}

// world describes what is wanted and what is; for those that were there before with their ids.
func (f *fake) world() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []string
	for _, b := range f.boxes {
		id := b.ID
		if len(id) == 36 {
			id = "new"
		}
		data, _ := json.Marshal([]any{b.HostConfig.RestartPolicy, b.HostConfig.Resources, b.Config, b.HostConfig.Ports})
		line := fmt.Sprintf("%s id=%s image=%s %v %s", b.Name, id, b.Image.Name, b.State.Status, data)
		if b.parked || b.replaces != "" {
			line += fmt.Sprintf(" LEFT parked=%v replaces=%s", b.parked, b.replaces)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (f *fake) get(id string) (*box, error) {
	if b := f.boxes[id]; b != nil {
		return b, nil
	}
	return nil, ctrmodel.Errorf(ctrmodel.NotFound, "no container with id %s", id)
}

func (f *fake) Known(ctx context.Context) error { return f.step(ctx, "Known") }

func (f *fake) List(ctx context.Context) ([]*ctrmodel.Container, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []*ctrmodel.Container
	for _, b := range f.boxes {
		list = append(list, b.Clone())
	}
	slices.SortFunc(list, func(a, b *ctrmodel.Container) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

func (f *fake) Get(_ context.Context, id string) (*ctrmodel.Container, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.get(id)
	if err != nil {
		return nil, err
	}
	return b.Clone(), nil
}

func (f *fake) ByName(_ context.Context, name string) (*ctrmodel.Container, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.boxes {
		next := f.successor(b.ID)
		if b.Name == name && (b.replaces == "" || b.switched) && (next == nil || !next.switched) {
			return b.Clone(), nil
		}
	}
	return nil, ctrmodel.Errorf(ctrmodel.NotFound, "no container with name %s", name)
}

func (f *fake) Subscribe(ctx context.Context) <-chan ctrmodel.Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := make(chan ctrmodel.Event, 100)
	f.subs[c] = true
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.subs, c)
		close(c)
	})
	return c
}

func (f *fake) Pull(ctx context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error) {
	f.mu.Lock()
	f.pulling++
	f.pulledAtOnce = max(f.pulledAtOnce, f.pulling)
	f.mu.Unlock()
	err := f.do(ctx, "Pull", name, func() error {
		if strings.Contains(name, "missing") {
			return ctrmodel.Errorf(ctrmodel.NotFound, "image %s: not found", name)
		}
		return nil
	})
	time.Sleep(f.slow)
	progress(ctrmodel.Progress{Phase: "downloading", Done: 50, Total: 100})
	f.mu.Lock()
	f.pulling--
	f.mu.Unlock()
	return ctrmodel.StoredImage{Name: name, Digest: "sha256:1"}, err
}

func (f *fake) Refresh(_ context.Context, name string, _ func(ctrmodel.Progress)) (ctrmodel.StoredImage, error) {
	f.log = append(f.log, "Refresh "+name)
	return ctrmodel.StoredImage{Name: name}, nil
}

func (f *fake) Resolve(_ context.Context, name string) (string, error) {
	f.log = append(f.log, "Resolve "+name)
	if f.moved[name] {
		return "sha256:2", nil
	}
	return "sha256:1", nil
}

func (f *fake) ImageDigest(string) (string, error) { return "sha256:1", nil }

func (f *fake) create(c *ctrmodel.Container, s box) error {
	c = c.Clone()
	c.Defaults(newID)
	if err := c.Validate(); err != nil {
		return err
	}
	for _, b := range f.boxes {
		if b.ID == c.ID || b.Name == c.Name && b.ID != s.replaces {
			return ctrmodel.Errorf(ctrmodel.AlreadyExists, "there is a container with name %s already", c.Name)
		}
	}
	c.State.SetCreated()
	s.Container = c
	f.boxes[c.ID] = &s
	f.publish(ctrmodel.ActionCreated, &s)
	return nil
}

func (f *fake) Create(ctx context.Context, c *ctrmodel.Container) (*ctrmodel.Container, error) {
	return c, f.do(ctx, "Create", c.Name, func() error { return f.create(c, box{}) })
}

func (f *fake) Succeed(ctx context.Context, id, owner string, c *ctrmodel.Container) (*ctrmodel.Container, error) {
	return c, f.do(ctx, "Succeed", c.Name, func() error {
		if b := f.boxes[c.ID]; b != nil && b.replaces == id {
			return nil
		}
		if _, err := f.get(id); err != nil {
			return err
		}
		if f.successor(id) != nil {
			return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "container %s is being replaced already", c.Name)
		}
		return f.create(c, box{replaces: id, owner: owner})
	})
}

func (f *fake) with(ctx context.Context, what, id string, change func(*box) error) error {
	return f.do(ctx, what, id, func() error {
		b, err := f.get(id)
		if err == nil {
			err = change(b)
		}
		return err
	})
}

func (f *fake) start(b *box) error {
	if kindOf(b) == "lost" && !f.lost {
		f.lost = true
		b.State.SetNotStarted("connection lost")
		f.publish(ctrmodel.ActionStopped, b)
		return ctrmodel.Errorf(ctrmodel.Unavailable, "connection lost")
	}
	if kindOf(b) == "killed" && !b.State.HasProcess() {
		b.State.SetExited(137, time.Now(), false, "")
		f.publish(ctrmodel.ActionExited, b)
	}
	if kindOf(b) == "second" && !b.State.HasProcess() {
		b.State.SetNotStarted("no room for now")
		f.publish(ctrmodel.ActionStopped, b)
	}
	f.settle(b)
	if b.State.Status == ctrmodel.Stopped {
		return fmt.Errorf("cannot start: %s", b.State.Error)
	}
	return nil
}

func (f *fake) Ensure(ctx context.Context, id string) error {
	return f.with(ctx, "Ensure", id, func(b *box) error {
		if !f.inCharge(b) {
			return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "container %s is not in charge", b.Name)
		}
		b.run, b.ManuallyStopped = true, false
		return f.start(b)
	})
}

func (f *fake) Switch(ctx context.Context, id string) error {
	return f.with(ctx, "Switch", id, func(b *box) error {
		if b.replaces != "" && !b.switched {
			b.switched, b.run = true, true
			if old := f.boxes[b.replaces]; old != nil {
				f.settle(old)
			}
		}
		return f.start(b)
	})
}

func (f *fake) Commit(ctx context.Context, id string) error {
	return f.do(ctx, "Commit", id, func() error {
		b := f.boxes[id]
		if b == nil || b.replaces == "" {
			return nil
		}
		if !b.switched {
			return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "not switched")
		}
		if old := f.boxes[b.replaces]; old != nil {
			f.remove(old)
		}
		b.replaces, b.owner, b.switched = "", "", false
		return nil
	})
}

func (f *fake) remove(b *box) {
	b.State.SetDead()
	delete(f.boxes, b.ID)
	f.publish(ctrmodel.ActionRemoved, b)
}

func (f *fake) Abandon(ctx context.Context, id string) error {
	return f.do(ctx, "Abandon", id, func() error {
		b := f.boxes[id]
		if b == nil {
			return nil
		}
		if b.replaces == "" {
			return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "container %s replaces no other one", b.Name)
		}
		f.remove(b)
		if old := f.boxes[b.replaces]; old != nil {
			f.settle(old)
		}
		return nil
	})
}

func (f *fake) Successions(owner string) (list []containers.Succession) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.boxes {
		if b.replaces != "" && b.owner == owner {
			list = append(list, containers.Succession{ID: b.ID, Replaces: b.replaces, Owner: owner, Switched: b.switched})
		}
	}
	return list
}

func (f *fake) Park(ctx context.Context, id, _ string) error {
	return f.with(ctx, "Park", id, func(b *box) error {
		b.parked = true
		f.settle(b)
		return nil
	})
}

func (f *fake) Unpark(ctx context.Context, id string) error {
	return f.with(ctx, "Unpark", id, func(b *box) error {
		b.parked = false
		f.settle(b)
		return nil
	})
}

func (f *fake) Parked(string) (ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, b := range f.boxes {
		if b.parked {
			ids = append(ids, id)
		}
	}
	return ids
}

func (f *fake) Update(ctx context.Context, id string, o ctrmodel.UpdateOptions) error {
	return f.with(ctx, "Update", id, func(b *box) error {
		_, err := b.Container.Update(o)
		return err
	})
}

func (f *fake) Remove(ctx context.Context, id string, _ bool, _ ctrmodel.StopOptions) error {
	return f.with(ctx, "Remove", id, func(b *box) error {
		if kindOf(b) == "stubborn" {
			return ctrmodel.Errorf(ctrmodel.DeadlineExceeded, "container %s does not end", b.Name)
		}
		f.remove(b)
		if old := f.boxes[b.replaces]; old != nil {
			f.settle(old)
		}
		return nil
	})
}

func (f *fake) Stop(ctx context.Context, id string, _ ctrmodel.StopOptions) error {
	return f.with(ctx, "Stop", id, func(b *box) error {
		b.run, b.ManuallyStopped = false, true
		f.settle(b)
		return nil
	})
}

func (f *fake) Exec(ctx context.Context, id string, o ctrmodel.ExecOptions, s ctrmodel.Streams) (int, error) {
	if err := f.step(ctx, "Exec"); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.get(id)
	if err != nil {
		return 0, err
	}
	if kindOf(b) == "sick" {
		fmt.Fprintln(s.Stderr, "no answer from port 80")
		return 7, nil
	}
	return 0, nil
}
