// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/images"
)

// mortal is the backend, and the store, of an agent that is killed at one of its steps: it never comes back from it, and does
// no more.
type mortal struct {
	*fake
	mu     sync.Mutex // of a step
	left   int        // steps that change something before the last one
	effect bool       // of that one
	dead   chan struct{}
}

func (m *mortal) step(do func() error) error {
	m.mu.Lock()
	if m.left--; m.left > 0 {
		defer m.mu.Unlock()
		return do()
	}
	if m.left == 0 {
		if m.effect {
			do()
		}
		close(m.dead)
	}
	m.mu.Unlock()
	select {}
}

func (m *mortal) Prepare(ctx context.Context, c *ctrmodel.Container) (digest string, err error) {
	err = m.step(func() error {
		digest, err = m.fake.Prepare(ctx, c)
		return err
	})
	return digest, err
}

func (m *mortal) Launch(ctx context.Context, c *ctrmodel.Container, i images.Image) (pid int64, err error) {
	err = m.step(func() error {
		pid, err = m.fake.Launch(ctx, c, i)
		return err
	})
	return pid, err
}

func (m *mortal) Kill(ctx context.Context, id string, s syscall.Signal) error {
	return m.step(func() error { return m.fake.Kill(ctx, id, s) })
}

func (m *mortal) Limit(ctx context.Context, c *ctrmodel.Container) error {
	return m.step(func() error { return m.fake.Limit(ctx, c) })
}

func (m *mortal) Release(ctx context.Context, c *ctrmodel.Container) error {
	return m.step(func() error { return m.fake.Release(ctx, c) })
}

func (m *mortal) Discard(ctx context.Context, c *ctrmodel.Container) error {
	return m.step(func() error { return m.fake.Discard(ctx, c) })
}

// killed runs an engine that does something, and is killed at a step: one of do, or from its very start on. It is no
// longer when killed returns; if there are not so many steps, that is false.
func (r *rig) killed(cut int, effect, fromStart bool, do func(e *Engine) error) bool {
	r.t.Helper()
	m := &mortal{fake: r.fake, left: 1 << 30, effect: effect, dead: make(chan struct{})}
	e, err := newEngine(r.cfg, m)
	r.must(err)
	e.Log = slog.New(slog.DiscardHandler)
	e.times = times{connect: time.Second, retry: 5 * time.Millisecond, call: time.Minute}
	e.store.guard = func(_ bool, write func() error) error { return m.step(write) }
	if fromStart {
		m.left = cut
	}
	ctx, end := context.WithCancel(context.Background())
	defer end()
	ran := make(chan struct{})
	go func() {
		e.Run(ctx) // never ends when it is killed
		close(ran)
	}()
	ended := make(chan error, 1)
	go func() {
		if err := e.Known(ctx); err != nil {
			return
		}
		if !fromStart {
			m.mu.Lock()
			m.left = cut
			m.mu.Unlock()
		}
		ended <- do(e)
	}()
	select {
	case err := <-ended:
		r.must(err)
		end()
		select {
		case <-ran:
			return false
		case <-m.dead: // in what it did by itself
		}
	case <-m.dead:
	case <-time.After(10 * time.Second):
		r.t.Fatal("neither killed nor at the end")
	}
	e.end() // what has not been held up yet
	return true
}

func TestAgentKilledAtEachStep(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	orders := map[string]struct {
		from  ctrmodel.Status // Unknown: there is none
		do    func(e *Engine) error
		to    ctrmodel.Status // Unknown: it is gone
		steps int             // at least
	}{
		"create": {ctrmodel.Unknown, func(e *Engine) error {
			_, err := e.Create(ctx, &ctrmodel.Container{ID: "id", Image: ctrmodel.Image{Name: busybox}})
			return err
		}, ctrmodel.Unknown, 3},
		"start":              {ctrmodel.Created, func(e *Engine) error { return e.Start(ctx, "id") }, ctrmodel.Running, 2},
		"stop":               {ctrmodel.Running, func(e *Engine) error { return e.Stop(ctx, "id", force) }, ctrmodel.Stopped, 3},
		"restart":            {ctrmodel.Running, func(e *Engine) error { return e.Restart(ctx, "id", force) }, ctrmodel.Running, 5},
		"remove":             {ctrmodel.Running, func(e *Engine) error { return e.Remove(ctx, "id", true, force) }, ctrmodel.Unknown, 4},
		"remove one at rest": {ctrmodel.Created, func(e *Engine) error { return e.Remove(ctx, "id", false, force) }, ctrmodel.Unknown, 3},
	}
	for name, o := range orders {
		steps := 0 // at which the agent was killed
		for cut, killed := 1, true; killed; cut++ {
			killed = false
			for _, effect := range []bool{false, true} {
				for again, twice := 0, true; twice; again++ { // each step of the next agent, too, but for the first time
					what := fmt.Sprintf("%s, killed at step %d, done: %v, and again at %d", name, cut, effect, again)
					r := newRig(t)
					if o.from != ctrmodel.Unknown {
						r.make("a", func(c *ctrmodel.Container) { c.ID = "id" })
					}
					if o.from == ctrmodel.Running {
						r.must(r.Start(ctx, "id"))
					}
					r.stop()
					// What had not been written down has not been asked for; what is half there, though, goes.
					settled := func(e *Engine) bool {
						c, err := e.Get(ctx, "id")
						switch {
						case err != nil:
							return o.to == ctrmodel.Unknown
						case o.to == ctrmodel.Unknown && (cut > 1 || effect) && name != "create":
							return false
						}
						s := c.State.Status
						return s == o.to || s == o.from && cut == 1 && !effect || s == ctrmodel.Created && o.to == ctrmodel.Unknown
					}
					if !r.killed(cut, effect, false, o.do) {
						break
					}
					killed, steps = true, cut
					if again > 0 {
						twice = r.killed(again, effect, true, func(e *Engine) error {
							for end := time.Now().Add(5 * time.Second); !settled(e) && time.Now().Before(end); {
								time.Sleep(time.Millisecond)
							}
							return nil
						})
					}
					r.start()
					r.must(r.Known(ctx))
					for end := time.Now().Add(5 * time.Second); !settled(r.Engine); time.Sleep(time.Millisecond) {
						if time.Now().After(end) {
							t.Fatalf("%s: containers %+v", what, r.list())
						}
					}
					if _, err := r.Get(ctx, "id"); err == nil {
						r.must(r.Remove(ctx, "id", true, force))
					}
					if left := r.fake.left(); len(left) > 0 {
						t.Errorf("%s: left behind %v", what, left)
					}
					r.stop()
				}
			}
		}
		if steps < o.steps {
			t.Errorf("%s has only %d steps, expected at least %d", name, steps, o.steps)
		}
	}
}

// Wherever the agent is killed while one container replaces another, and again while that is put right, never do both have a
// process, and one of them is left, running, once the owner has acted.
func TestAgentKilledAtEachStepOfASuccession(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	forward := func(owner string) func(e *Engine) error {
		return func(e *Engine) error {
			if _, err := e.Get(ctx, "old"); err == nil {
				if _, err := e.Succeed(ctx, "old", owner, next()); err != nil {
					return err
				}
			}
			if err := e.Switch(ctx, "next"); err != nil {
				return err
			}
			return e.Commit(ctx, "next")
		}
	}
	back := func(e *Engine) error {
		for _, s := range e.Successions("update") {
			err := e.Abandon(ctx, s.ID)
			if err != nil && ctrmodel.KindOf(err) == ctrmodel.FailedPrecondition {
				err = e.Commit(ctx, s.ID)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	thereAndBack := func(e *Engine) error {
		if _, err := e.Succeed(ctx, "old", "update", next()); err != nil {
			return err
		}
		if err := e.Switch(ctx, "next"); err != nil {
			return err
		}
		return e.Abandon(ctx, "next")
	}
	wait := func(*Engine) error { return nil }
	type act func(*Engine) error
	all := 0
	for _, c := range []struct {
		name        string
		first, then act
		steps       int // of the first, at least
	}{
		{"forward, then forward", forward("update"), forward("update"), 12},
		{"forward, then back", forward("update"), back, 12},
		{"there and back, then back", thereAndBack, back, 16},
		{"there and back, then forward", thereAndBack, forward("update"), 16},
		{"by the deployer, then nobody", forward(deployOwner), wait, 12},
		{"by the engine, then nobody", forward(""), wait, 12},
	} {
		settled := func(r *rig, what string) {
			t.Helper()
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
				list, _ := r.List(ctx)
				c, err := r.ByName(ctx, "seat")
				if len(list) == 1 && err == nil && c.State.Running && len(r.fake.left()) == 1 {
					break
				}
				if time.Now().After(end) {
					for _, c := range list {
						t.Logf("%s %+v", c.ID, c.State)
					}
					t.Fatalf("%s: %d containers, by name %v, successions %v, backend %v", what, len(list), err, r.successions, r.fake.left())
				}
			}
			if r.fake.crowded() {
				t.Fatalf("%s: both had a process", what)
			}
		}
		steps := 0 // at which the agent was killed
		for cut, more := 1, true; more; cut++ {
			more = false
			for _, effect := range []bool{false, true} {
				again := 1 // each later step of the next agent, too
				for {
					what := fmt.Sprintf("%s, killed at step %d, done: %v", c.name, cut, effect)
					r := newRig(t)
					r.running("seat", policy(ctrmodel.RestartNever, 0), func(c *ctrmodel.Container) { c.ID = "old" })
					r.stop()
					r.fake.mu.Lock()
					r.fake.alone = true
					r.fake.mu.Unlock()
					killed := r.killed(cut, effect, false, c.first)
					if killed {
						more, steps = true, cut
					}
					twice := false
					if killed && os.Getenv("SDVBOX_LONG") == "1" {
						twice = r.killed(again, effect, true, c.then)
						what += fmt.Sprintf(" and again at %d", again)
					}
					r.start()
					r.must(r.Known(ctx))
					for end := time.Now().Add(5 * time.Second); r.fake.running() != 1; time.Sleep(time.Millisecond) {
						if time.Now().After(end) {
							t.Fatalf("%s: before anybody acts, %d processes", what, r.fake.running())
						}
					}
					r.must(c.then(r.Engine))
					settled(r, what)
					r.stop()
					all++
					if again++; !twice {
						break
					}
				}
			}
		}
		if steps < c.steps {
			t.Errorf("%s has only %d steps, expected at least %d", c.name, steps, c.steps)
		}
	}
	t.Logf("%d runs", all)
}

func TestAgentKilledAtEachStepOfParking(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	steps := 0 // at which the agent was killed
	for cut, more := 1, true; more; cut++ {
		more = false
		for _, effect := range []bool{false, true} {
			r := newRig(t)
			r.running("seat", func(c *ctrmodel.Container) { c.ID = "id" })
			r.stop()
			if r.killed(cut, effect, false, func(e *Engine) error {
				return errors.Join(e.Park(ctx, "id", "update"), e.Unpark(ctx, "id"))
			}) {
				more, steps = true, cut
			}
			r.start()
			r.must(r.Known(ctx))
			if len(r.Parked("update")) > 0 {
				r.steady("id", ctrmodel.Stopped)
			} else {
				r.awaitStatus("id", ctrmodel.Running)
			}
			r.must(r.Park(ctx, "id", "update"))
			r.must(r.Unpark(ctx, "id"))
			r.awaitStatus("id", ctrmodel.Running)
			r.stop()
		}
	}
	if steps < 5 {
		t.Errorf("there and back has only %d steps", steps)
	}
}

// What the record says of limits is what the process has, or gets from the next agent, whoever asks for the same again.
func TestAgentKilledAtEachStepOfAnUpdate(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	steps := 0 // at which the agent was killed
	for cut, more := 1, true; more; cut++ {
		more = false
		for _, effect := range []bool{false, true} {
			for _, memory := range []string{"64M", ""} {
				r := newRig(t)
				r.running("seat", func(c *ctrmodel.Container) {
					c.ID, c.HostConfig.Resources = "id", ctrmodel.Resources{Memory: "32M"}
				})
				r.stop()
				limits := ctrmodel.UpdateOptions{Resources: &ctrmodel.Resources{Memory: memory}}
				if r.killed(cut, effect, false, func(e *Engine) error { return e.Update(ctx, "id", limits) }) {
					more, steps = true, cut
				}
				r.start()
				r.must(r.Known(ctx))
				has := func() ctrmodel.Resources {
					r.fake.mu.Lock()
					defer r.fake.mu.Unlock()
					return r.fake.box("id").limits
				}
				r.eventually(fmt.Sprintf("limits as recorded, killed at step %d, done: %v", cut, effect), func() bool {
					return has() == r.get("id").HostConfig.Resources
				})
				r.must(r.Update(ctx, "id", limits))
				if is := has(); is.Memory != memory || r.saved("id").Relimit {
					t.Errorf("killed at step %d, done: %v: the process has %+v", cut, effect, is)
				}
				r.stop()
			}
		}
	}
	if steps < 3 {
		t.Errorf("an update has only %d steps", steps)
	}
}
