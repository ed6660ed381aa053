// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
)

// mortal is the backend of an agent that is killed at one of its calls: it never comes back from it, and does no more.
type mortal struct {
	*fake
	mu     sync.Mutex
	left   int  // calls that change something before the last one
	effect bool // of that one
	dead   chan struct{}
}

func (m *mortal) step(do func() error) error {
	m.mu.Lock()
	m.left--
	left := m.left
	m.mu.Unlock()
	if left > 0 {
		return do()
	}
	if left == 0 {
		if m.effect {
			do()
		}
		close(m.dead)
	}
	select {}
}

func (m *mortal) Prepare(ctx context.Context, c *ctrmodel.Container) error {
	return m.step(func() error { return m.fake.Prepare(ctx, c) })
}

func (m *mortal) Launch(ctx context.Context, c *ctrmodel.Container) (pid int64, err error) {
	err = m.step(func() error {
		pid, err = m.fake.Launch(ctx, c)
		return err
	})
	return pid, err
}

func (m *mortal) Kill(ctx context.Context, id string, s syscall.Signal) error {
	return m.step(func() error { return m.fake.Kill(ctx, id, s) })
}

func (m *mortal) Release(ctx context.Context, c *ctrmodel.Container) error {
	return m.step(func() error { return m.fake.Release(ctx, c) })
}

func (m *mortal) Discard(ctx context.Context, c *ctrmodel.Container) error {
	return m.step(func() error { return m.fake.Discard(ctx, c) })
}

func TestAgentKilledAtEachStep(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	orders := map[string]struct {
		from ctrmodel.Status // Unknown: there is none
		do   func(e *Engine) error
		to   ctrmodel.Status // Unknown: it is gone
	}{
		"create": {ctrmodel.Unknown, func(e *Engine) error {
			_, err := e.Create(ctx, &ctrmodel.Container{ID: "id", Image: ctrmodel.Image{Name: busybox}})
			return err
		}, ctrmodel.Unknown},
		"start":              {ctrmodel.Created, func(e *Engine) error { return e.Start(ctx, "id") }, ctrmodel.Running},
		"stop":               {ctrmodel.Running, func(e *Engine) error { return e.Stop(ctx, "id", force) }, ctrmodel.Stopped},
		"restart":            {ctrmodel.Running, func(e *Engine) error { return e.Restart(ctx, "id", force) }, ctrmodel.Running},
		"remove":             {ctrmodel.Running, func(e *Engine) error { return e.Remove(ctx, "id", true, force) }, ctrmodel.Unknown},
		"remove one at rest": {ctrmodel.Created, func(e *Engine) error { return e.Remove(ctx, "id", false, force) }, ctrmodel.Unknown},
		"replace, never ended": {ctrmodel.Running, func(e *Engine) error {
			_, err := e.Replace(ctx, "id", &ctrmodel.Container{Name: "a", Image: ctrmodel.Image{Name: busybox}})
			return err
		}, ctrmodel.Running},
	}
	for name, o := range orders {
		for cut := 1; ; cut++ {
			killed := false
			for _, effect := range []bool{false, true} {
				what := fmt.Sprintf("%s, killed at step %d, done: %v", name, cut, effect)
				r := newRig(t)
				if o.from != ctrmodel.Unknown {
					r.make("a", func(c *ctrmodel.Container) { c.ID = "id" })
				}
				if o.from == ctrmodel.Running {
					r.must(r.Start(ctx, "id"))
				}
				r.stop()

				m := &mortal{fake: r.fake, left: 1 << 30, effect: effect, dead: make(chan struct{})}
				e, err := newEngine(r.cfg, m)
				r.must(err)
				e.Log = slog.New(slog.DiscardHandler)
				e.times = times{connect: time.Second, retry: 10 * time.Millisecond, call: time.Minute}
				go e.Run(ctx) // never ends
				for _, a := range e.list() {
					<-a.looked
				}
				m.mu.Lock()
				m.left = cut
				m.mu.Unlock()
				ended := make(chan error, 1)
				go func() { ended <- o.do(e) }()
				select {
				case err := <-ended:
					r.must(err)
				case <-m.dead:
					killed = true
				}
				if !killed {
					e.end()
					continue
				}
				r.start()
				switch c, err := r.ByName(ctx, "a"); {
				case o.to == ctrmodel.Unknown:
					for end := time.Now().Add(5 * time.Second); len(r.list()) > 0; time.Sleep(time.Millisecond) {
						if time.Now().After(end) {
							t.Fatalf("%s: container is left", what)
						}
					}
				case err != nil:
					t.Fatalf("%s: %v", what, err)
				default:
					r.await(c.ID, o.to.String()+" after "+what, func(c *ctrmodel.Container) bool { return c.State.Status == o.to })
				}
				for _, a := range r.list() { // replaced ones
					err := r.Remove(ctx, a.id, true, force)
					if err != nil && ctrmodel.KindOf(err) != ctrmodel.NotFound {
						t.Errorf("%s: %v", what, err)
					}
				}
				if left := r.fake.left(); len(left) > 0 {
					t.Errorf("%s: left behind %v", what, left)
				}
				r.stop()
			}
			if !killed {
				break
			}
		}
	}
}
