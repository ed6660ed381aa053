// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
)

// Whatever becomes of an order: the container is as wanted then, or becomes so without anybody asking again.

// eventually waits for something to be so.
func (r *rig) eventually(what string, is func() bool) {
	r.t.Helper()
	for end := time.Now().Add(5 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatal("never: ", what)
		}
	}
}

// behave changes how the fake behaves.
func (f *fake) behave(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// fillable makes an engine's disk one that can be full.
func (r *rig) fillable() *atomic.Bool {
	full, _ := r.breakable(syscall.ENOSPC)
	return full
}

// breakable makes it one on which writing can fail, and counts that.
func (r *rig) breakable(err error) (broken *atomic.Bool, failed *atomic.Int32) {
	broken, failed = new(atomic.Bool), new(atomic.Int32)
	r.store.guard = func(room bool, write func() error) error {
		if broken.Load() && (room || !errors.Is(err, syscall.ENOSPC)) {
			failed.Add(1)
			return err
		}
		return write()
	}
	return broken, failed
}

func TestStartThatAFailedStopInterruptedGoesOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a", policy(ctrmodel.RestartAlways, 0))
	begun := make(chan bool, 1)
	broken, _ := r.breakable(syscall.EIO)
	r.fake.behave(func() {
		r.fake.boxes[id].snapshot = false
		r.fake.prepare = func(ctx context.Context, c *ctrmodel.Container) error {
			if !broken.Swap(true) {
				begun <- true
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
	})
	r.fake.exit(id, 1)
	<-begun
	r.wantKind(r.Stop(t.Context(), id, force), ctrmodel.Internal)
	broken.Store(false)
	r.fake.behave(func() { r.fake.prepare = nil })
	r.awaitStatus(id, ctrmodel.Running)
}

func TestRestartThatFailsHalfWayGoesOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a")
	var busy atomic.Bool
	busy.Store(true)
	r.fake.behave(func() {
		r.fake.release = func(string) error {
			if busy.Load() {
				return errors.New("device busy")
			}
			return nil
		}
	})
	if err := r.Restart(t.Context(), id, force); err == nil {
		t.Fatal("no error")
	}
	busy.Store(false)
	r.await(id, "running", func(c *ctrmodel.Container) bool { return c.State.Running && r.fake.launched(id) == 2 })
}

func TestRemovalIsNotForgottenByTheNextAgent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.running("a", func(c *ctrmodel.Container) { c.ID = "id" })
	r.stop()
	if !r.killed(2, false, false, func(e *Engine) error { return e.Remove(context.Background(), "id", true, force) }) {
		t.Fatal("not killed")
	}
	var tries atomic.Int32
	r.fake.release = func(string) error {
		if tries.Add(1) == 1 {
			return errors.New("device busy")
		}
		return nil
	}
	r.start()
	r.eventually("removed", func() bool { return len(r.list()) == 0 })
}

func TestContainerThatCannotBeLookedAtHoldsUpNoOthers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	sick := r.running("sick")
	r.stop()
	r.fake.look = func(id string) error {
		if id == sick {
			return ctrmodel.Errorf(ctrmodel.DeadlineExceeded, "the shim does not answer")
		}
		return nil
	}
	r.start()
	r.must(r.Known(t.Context()))
	r.fake.behave(func() { r.fake.look = nil })
	r.await(sick, "adopted", func(c *ctrmodel.Container) bool { return c.State.PID == 4712 })
}

func TestNothingIsLeftOfACreationNobodyWaitsFor(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 200 {
		if _, err := r.Create(ctx, &ctrmodel.Container{Image: ctrmodel.Image{Name: busybox}}); err == nil {
			t.Fatal("created")
		}
	}
	r.eventually("nothing is left", func() bool { return len(r.list()) == 0 })
	r.must(r.Known(t.Context()))
}

func TestStopOfAContainerBeingCreatedWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	begun, loaded := make(chan bool), make(chan bool)
	r.fake.prepare = func(ctx context.Context, _ *ctrmodel.Container) error {
		begun <- true
		select {
		case <-loaded:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	created, stopped := make(chan error), make(chan error)
	go func() {
		_, err := r.Create(context.Background(), &ctrmodel.Container{ID: "id", Image: ctrmodel.Image{Name: busybox}})
		created <- err
	}()
	<-begun
	go func() { stopped <- r.Stop(context.Background(), "id", force) }()
	select {
	case err := <-created:
		t.Errorf("creation ended: %v", err)
	case <-time.After(250 * time.Millisecond):
		close(loaded)
		r.must(<-created)
	}
	r.wantKind(<-stopped, ctrmodel.FailedPrecondition)
	r.awaitStatus("id", ctrmodel.Created)
}

func TestStopNeedNotWaitForAnotherOne(t *testing.T) {
	t.Parallel()
	for name, second := range map[string]func(r *rig, id string) error{
		"stop": func(r *rig, id string) error {
			return r.Stop(t.Context(), id, ctrmodel.StopOptions{Signal: "SIGKILL", Force: true})
		},
		"park":         func(r *rig, id string) error { return r.Park(t.Context(), id, "update") },
		"engine's end": func(r *rig, id string) error { r.stop(); return nil },
	} {
		r := newRig(t, func(c *Config) { c.StopOnExit, c.StopTimeout = true, 50*time.Millisecond })
		told := make(chan bool, 10)
		r.fake.kill = func(string, syscall.Signal) bool { told <- true; return false }
		id := r.running("deaf")
		first := make(chan error)
		go func() { first <- r.Stop(context.Background(), id, ctrmodel.StopOptions{Timeout: 3600, Force: true}) }()
		<-told
		r.must(second(r, id))
		r.wantKind(<-first, ctrmodel.Cancelled)
		if n := r.fake.running(); n != 0 {
			t.Errorf("%s: %d processes", name, n)
		}
	}
}

func TestRemovalNeedNotWaitForAnotherOne(t *testing.T) {
	t.Parallel()
	for name, second := range map[string]func(r *rig, id string) error{
		"removal": func(r *rig, id string) error {
			return r.Remove(t.Context(), id, true, ctrmodel.StopOptions{Signal: "SIGKILL"})
		},
		"removal that fails": func(r *rig, id string) error {
			var tries atomic.Int32
			r.fake.behave(func() {
				r.fake.release = func(string) error {
					if tries.Add(1) == 1 {
						return errors.New("device busy")
					}
					return nil
				}
			})
			if err := r.Remove(t.Context(), id, true, ctrmodel.StopOptions{Signal: "SIGKILL"}); err == nil {
				t.Error("no error")
			}
			r.eventually("removed", func() bool { return len(r.list()) == 0 })
			return nil
		},
		"engine's end": func(r *rig, id string) error { r.stop(); return nil },
	} {
		r := newRig(t, func(c *Config) { c.StopOnExit, c.StopTimeout = true, 50*time.Millisecond })
		told := make(chan bool, 10)
		r.fake.kill = func(string, syscall.Signal) bool { told <- true; return false }
		id := r.running("deaf")
		first := make(chan error)
		go func() { first <- r.Remove(context.Background(), id, true, ctrmodel.StopOptions{Timeout: 3600}) }()
		<-told
		r.must(second(r, id))
		r.must(<-first)
		if left := r.fake.left(); len(left) > 0 || len(r.list()) > 0 {
			t.Errorf("%s: left behind %v", name, left)
		}
	}
}

// However often somebody asks, a process that heeds no signal is killed when the first one wanted it to be, or earlier.
func TestRepeatedOrdersGiveNoMoreTime(t *testing.T) {
	t.Parallel()
	patient := ctrmodel.StopOptions{Timeout: 3600}
	for name, c := range map[string]struct{ first, again func(r *rig, id string) error }{
		"removal": {
			func(r *rig, id string) error { return r.Remove(context.Background(), id, true, force) },
			func(r *rig, id string) error { return r.Remove(context.Background(), id, true, patient) },
		},
		"stop": {
			func(r *rig, id string) error { return r.Stop(context.Background(), id, force) },
			func(r *rig, id string) error {
				return r.Stop(context.Background(), id, ctrmodel.StopOptions{Timeout: 3600, Force: true})
			},
		},
		"stop without force": {
			func(r *rig, id string) error { return r.Stop(context.Background(), id, force) },
			func(r *rig, id string) error { return r.Stop(context.Background(), id, patient) },
		},
		"stop of what is parked": {
			func(r *rig, id string) error { return r.Park(context.Background(), id, "update") },
			func(r *rig, id string) error { return r.Stop(context.Background(), id, patient) },
		},
	} {
		r := newRig(t, func(c *Config) { c.StopTimeout = 200 * time.Millisecond })
		told := make(chan bool, 100)
		r.fake.kill = func(string, syscall.Signal) bool { told <- true; return false }
		id := r.running("deaf", policy(ctrmodel.RestartAlways, 0))
		go c.first(r, id)
		<-told
		go c.again(r, id)
		r.eventually(name+" kills it", func() bool { return r.fake.running() == 0 })
	}
}

func TestLaterOrderHasAllItsTime(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.StopTimeout = 50 * time.Millisecond })
	told := make(chan bool, 100)
	r.fake.kill = func(string, syscall.Signal) bool { told <- true; return false }
	id := r.running("deaf")
	restarted := make(chan error)
	go func() { restarted <- r.Restart(context.Background(), id, ctrmodel.StopOptions{Timeout: 1}) }()
	<-told
	r.wantKind(r.Stop(t.Context(), id, ctrmodel.StopOptions{Timeout: 1}), ctrmodel.DeadlineExceeded)
	r.wantKind(<-restarted, ctrmodel.Cancelled)
	r.fake.behave(func() {
		r.fake.kill = func(string, syscall.Signal) bool {
			time.AfterFunc(10*time.Millisecond, func() { r.fake.exit(id, 0) })
			return false
		}
	})
	r.must(r.Stop(t.Context(), id, ctrmodel.StopOptions{Timeout: 60, Force: true}))
	if code := r.get(id).State.ExitCode; code != 0 {
		t.Errorf("killed at once, exit code %d", code)
	}
}

// It has been told that the process goes on if it does not heed the signal.
func TestUnforcedStopIsNeverForced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	told := make(chan bool, 10)
	r.fake.kill = func(string, syscall.Signal) bool { told <- true; return false }
	id := r.running("deaf")
	stopped := make(chan error, 1)
	go func() { stopped <- r.Stop(context.Background(), id, ctrmodel.StopOptions{Timeout: 60}) }()
	<-told
	r.restart()
	r.must(r.Known(t.Context()))
	r.steady(id, ctrmodel.Running)
	if c := r.get(id); c.ManuallyStopped || r.fake.launched(id) != 1 {
		t.Errorf("manually stopped: %v, launched %d times", c.ManuallyStopped, r.fake.launched(id))
	}
	r.fake.behave(func() { r.fake.kill = nil })
	events := r.Subscribe(t.Context())
	r.must(r.Stop(t.Context(), id, ctrmodel.StopOptions{}))
	if e := <-events; e.Action != ctrmodel.ActionStopped || !e.Container.ManuallyStopped {
		t.Errorf("event %s, manually stopped: %v", e.Action, e.Container.ManuallyStopped)
	}
	r.restart()
	r.must(r.Known(t.Context()))
	r.steady(id, ctrmodel.Stopped)
}

func TestForcedStopThatTakesTooLongIsNotTakenBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a")
	r.fake.behave(func() {
		r.fake.refuse = func() error { return ctrmodel.Errorf(ctrmodel.DeadlineExceeded, "containerd is busy") }
	})
	r.wantKind(r.Stop(t.Context(), id, force), ctrmodel.DeadlineExceeded)
	r.fake.behave(func() { r.fake.refuse = nil })
	r.awaitStatus(id, ctrmodel.Stopped)
	r.steady(id, ctrmodel.Stopped)
	if c := r.get(id); !c.ManuallyStopped || c.RestartCount != 0 {
		t.Errorf("manually stopped: %v, restarts %d", c.ManuallyStopped, c.RestartCount)
	}
}

func TestLongestTimeoutIsNotNone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fake.kill = func(string, syscall.Signal) bool { return false }
	id := r.running("deaf")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	r.wantKind(r.Stop(ctx, id, ctrmodel.StopOptions{Timeout: 1 << 62, Force: true}), ctrmodel.DeadlineExceeded)
	if r.fake.running() != 1 {
		t.Error("killed at once")
	}
}

// Machines are slow while they boot; that is no failure of a container.
func TestSlowContainerdIsNotBlamedOnAContainer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a", policy(ctrmodel.RestartOnFailure, 1))
	r.stop()
	r.fake.boxes[id].task = NoTask
	r.boot = "another one"
	var tries atomic.Int32
	r.fake.launch = func(*ctrmodel.Container) error {
		if tries.Add(1) < 6 {
			return ctrmodel.Errorf(ctrmodel.DeadlineExceeded, "no answer in time")
		}
		return nil
	}
	r.start()
	if c := r.await(id, "running", func(c *ctrmodel.Container) bool { return r.fake.launched(id) == 2 }); c.RestartCount != 0 {
		t.Errorf("%d restarts counted", c.RestartCount)
	}
}

// Others freeze containers, too, and containerd may do so after it has been given up.
func TestPausedIsWhatContainerdSays(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a")
	set := func(task Task) { r.fake.behave(func() { r.fake.box(id).task = task }) }
	r.fake.behave(func() {
		r.fake.pause = func(context.Context) error {
			time.AfterFunc(time.Millisecond, func() { set(TaskPaused) })
			return context.DeadlineExceeded
		}
	})
	r.wantKind(r.Pause(t.Context(), id), ctrmodel.DeadlineExceeded)
	r.awaitStatus(id, ctrmodel.Paused)
	r.must(r.Unpause(t.Context(), id))
	set(TaskPaused)
	r.must(r.Unpause(t.Context(), id))
	r.awaitStatus(id, ctrmodel.Running)
	set(TaskPaused)
	r.must(r.Ensure(t.Context(), id))
	if is, _ := r.fake.Look(t.Context(), id); is.Task != TaskRunning {
		t.Errorf("made sure of, but %v", is.Task)
	}
}

// The restart policy's pause is not cut short by what has to be tried again meanwhile, nor by containerd.
func TestPauseBeforeARestartIsKept(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a", func(c *ctrmodel.Container) {
		c.HostConfig.RestartPolicy = ctrmodel.RestartPolicy{Type: ctrmodel.RestartAlways, RetryTimeout: time.Hour}
	})
	var tries atomic.Int32
	r.fake.behave(func() {
		r.fake.release = func(string) error {
			if tries.Add(1)%2 == 1 {
				return errors.New("device busy")
			}
			return nil
		}
	})
	begin := time.Now()
	for n := range 3 { // 0.1 + 0.2 + 0.4 s
		r.fake.exit(id, 1)
		r.awaitStatus(id, ctrmodel.Exited)
		r.fake.setDown(true)
		r.eventually("down", func() bool { return r.Ready() != nil })
		r.fake.setDown(false)
		r.await(id, "restarted", func(*ctrmodel.Container) bool { return r.fake.launched(id) == n+2 })
	}
	if took := time.Since(begin); took < 700*time.Millisecond {
		t.Errorf("three restarts took %v", took)
	}
}

// A successor that has not started is no reason to remove the one it is to replace.
func TestNothingIsCommittedThatHasNeverRun(t *testing.T) {
	t.Parallel()
	for _, owner := range []string{"", "update"} {
		r := newRig(t)
		ctx := t.Context()
		old := r.running("seat")
		var stuck atomic.Bool
		stuck.Store(true)
		r.fake.behave(func() {
			r.fake.launch = func(c *ctrmodel.Container) error {
				if c.ID == "next" {
					return errors.New("bad program")
				}
				return nil
			}
			r.fake.release = func(id string) error {
				if id == old && stuck.Load() {
					return ctrmodel.Errorf(ctrmodel.Unavailable, "no answer")
				}
				return nil
			}
		})
		if owner == "" {
			if _, err := r.Replace(ctx, old, next()); !passing(err) {
				t.Fatalf("replace: %v", err)
			}
			time.Sleep(50 * time.Millisecond) // the engine tries on
			stuck.Store(false)
		} else {
			_, err := r.Succeed(ctx, old, owner, next())
			r.must(err)
			r.wantKind(r.Switch(ctx, "next"), ctrmodel.Unavailable)
			r.wantKind(r.Ensure(ctx, "next"), ctrmodel.Unavailable)
			r.wantKind(r.Start(ctx, "next"), ctrmodel.Unavailable)
			stuck.Store(false)
			if err := r.Switch(ctx, "next"); err == nil || !strings.Contains(err.Error(), "bad program") {
				t.Errorf("switch: %v", err)
			}
			r.wantKind(r.Commit(ctx, "next"), ctrmodel.FailedPrecondition)
			r.must(r.Abandon(ctx, "next"))
		}
		r.eventually("only the old one is left", func() bool { return len(r.list()) == 1 })
		r.awaitStatus(old, ctrmodel.Running)
		r.inCharge(old)
	}
}

// An order may come before anybody has looked whether the process is still there that the record tells of.
func TestOrderBeforeTheFirstLook(t *testing.T) {
	t.Parallel()
	update := ctrmodel.UpdateOptions{Resources: &ctrmodel.Resources{Memory: "64M"}}
	for _, c := range []struct {
		name    string
		order   func(*actor, context.Context) error
		refused bool            // while there is a process
		lost    ctrmodel.Status // after it, if there is none; Unknown: the container is gone
	}{
		{"start", (*actor).start, true, ctrmodel.Running},
		{"switch", (*actor).succeed, false, ctrmodel.Running},
		{"update", func(a *actor, ctx context.Context) error { return a.update(ctx, update) }, false, ctrmodel.Exited},
		{"remove", func(a *actor, ctx context.Context) error { return a.remove(ctx, false, force) }, true, ctrmodel.Unknown},
	} {
		for _, lost := range []bool{false, true} {
			r := newRig(t)
			id := r.running("a", policy(ctrmodel.RestartNever, 0))
			r.stop()
			if lost {
				r.fake.boxes[id].task = NoTask
				r.boot = "another one"
			}
			r.fake.setDown(true)
			r.start()
			a, err := r.actor(id)
			r.must(err)
			o := newOrder(starting, func(a *actor, ctx context.Context) error {
				r.fake.setDown(false)
				for r.Ready() != nil {
					time.Sleep(time.Millisecond)
				}
				return c.order(a, ctx)
			})
			a.orders <- o
			err = o.wait(t.Context())
			want, launched := ctrmodel.Running, 1
			if lost {
				want = c.lost
			}
			if lost && want == ctrmodel.Running {
				launched = 2
			}
			if refused := ctrmodel.KindOf(errors.Join(err)) == ctrmodel.FailedPrecondition; refused != (c.refused && !lost) || err != nil && !refused {
				t.Errorf("%s, process lost: %v: %v", c.name, lost, err)
			}
			if want == ctrmodel.Unknown { // removed
				if _, err := r.Get(t.Context(), id); ctrmodel.KindOf(err) != ctrmodel.NotFound {
					t.Errorf("%s, process lost: %v: it is still there, %v", c.name, lost, err)
				}
			} else if s := a.view.Load().State.Status; s != want {
				t.Errorf("%s, process lost: %v: then it is %v, expected %v", c.name, lost, s, want)
			} else if n := r.fake.launched(id); want == ctrmodel.Running && n != launched {
				t.Errorf("%s, process lost: %v: launched %d times", c.name, lost, n)
			}
			r.stop()
		}
	}
}

// saved is what the store has of a container.
func (r *rig) saved(id string) *record {
	r.t.Helper()
	list, _, err := r.store.load(r.Log)
	r.must(err)
	for _, rec := range list {
		if rec.ID == id {
			return rec
		}
	}
	r.t.Fatalf("there is no record of %s", id)
	return nil
}

func TestWhatHasHappenedIsWrittenOnceThereIsRoom(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ends, stops := r.running("ends", policy(ctrmodel.RestartOnFailure, 0)), r.running("stops", policy(ctrmodel.RestartAlways, 0))
	waits, forced := r.running("waits", policy(ctrmodel.RestartAlways, 0)), r.running("forced", policy(ctrmodel.RestartAlways, 0))
	forcedToWait := r.running("forced-to-wait", policy(ctrmodel.RestartAlways, 0))
	r.fake.behave(func() {
		r.fake.launch = func(*ctrmodel.Container) error { return errors.New("no such device") }
	})
	for _, id := range []string{waits, forcedToWait} {
		r.fake.exit(id, 1)
		r.await(id, "tried", func(c *ctrmodel.Container) bool { return c.State.Error == "no such device" })
	}
	full := r.fillable()
	full.Store(true)
	r.fake.exit(ends, 0)
	r.awaitStatus(ends, ctrmodel.Exited)
	orders := map[string]ctrmodel.StopOptions{stops: {}, forced: force, waits: {}, forcedToWait: force}
	for id, o := range orders { // an order that would be forgotten has failed, whatever has come of it
		r.wantKind(r.Stop(t.Context(), id, o), ctrmodel.ResourceExhausted)
		r.steady(id, ctrmodel.Stopped)
		if !r.saved(id).Run {
			t.Error("written to a full disk")
		}
	}
	full.Store(false)
	for _, id := range []string{ends, stops, forced, waits, forcedToWait} {
		r.eventually("written", func() bool { return !r.saved(id).Run })
	}
	r.restart()
	r.must(r.Known(t.Context()))
	r.steady(stops, ctrmodel.Stopped)
	r.steady(forced, ctrmodel.Stopped)
	if n := r.fake.running(); n != 0 {
		t.Errorf("%d processes", n)
	}
}

// A removal makes room, and needs none.
func TestContainersCanBeRemovedFromAFullDisk(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	full := r.fillable()
	running, atRest := r.running("running", policy(ctrmodel.RestartAlways, 0)), r.make("idle")
	old := r.running("seat", policy(ctrmodel.RestartAlways, 0))
	_, err := r.Succeed(ctx, old, "update", next())
	r.must(err)
	r.must(r.Switch(ctx, "next"))
	busy := r.running("busy", policy(ctrmodel.RestartAlways, 0))
	var stuck atomic.Bool
	r.fake.behave(func() {
		r.fake.release = func(id string) error {
			if id == busy && stuck.Load() {
				return errors.New("device busy")
			}
			return nil
		}
	})
	full.Store(true)
	r.must(r.Remove(ctx, running, true, force))
	r.must(r.Remove(ctx, atRest, false, force))
	r.must(r.Remove(ctx, "next", true, force)) // whose place the old one takes again
	stuck.Store(true)
	if err := r.Remove(ctx, busy, true, force); err == nil || !strings.Contains(err.Error(), "device busy") {
		t.Errorf("error %v", err)
	}
	stuck.Store(false)
	r.eventually("removed", func() bool { return len(r.list()) == 1 })
	r.awaitStatus(old, ctrmodel.Running)
	r.restart() // the disk of the next agent is not full
	r.must(r.Known(ctx))
	r.awaitStatus(old, ctrmodel.Running)
	if n := len(r.list()); n != 1 || len(r.fake.left()) != 1 {
		t.Errorf("%d containers, left behind %v", n, r.fake.left())
	}
}

// What is wanted has been written down before.
func TestForcedStopThatHasSucceededIsNoFailure(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	full := r.fillable()
	r.fake.kill = func(string, syscall.Signal) bool {
		full.Store(true)
		return true
	}
	id := r.running("a", policy(ctrmodel.RestartAlways, 0))
	r.must(r.Stop(t.Context(), id, force))
	r.restart()
	r.must(r.Known(t.Context()))
	r.steady(id, ctrmodel.Stopped)
}

// Who tries by hand what the restart policy is trying does not end that.
func TestFailedStartByHandEndsNoRestartPolicy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		order func(r *rig, id string) error
	}{
		{"start", func(r *rig, id string) error { return r.Start(t.Context(), id) }},
		{"restart", func(r *rig, id string) error { return r.Restart(t.Context(), id, force) }},
	} {
		r := newRig(t)
		pending, stopped := r.running("pending", policy(ctrmodel.RestartAlways, 0)), r.running("stopped", policy(ctrmodel.RestartAlways, 0))
		never := r.running("never", policy(ctrmodel.RestartNever, 0))
		r.must(r.Stop(t.Context(), stopped, force))
		var missing atomic.Bool
		missing.Store(true)
		r.fake.behave(func() {
			r.fake.launch = func(*ctrmodel.Container) error {
				if missing.Load() {
					return errors.New("no such device")
				}
				return nil
			}
		})
		for _, id := range []string{pending, never} {
			r.fake.exit(id, 1)
		}
		r.await(pending, "tried", func(c *ctrmodel.Container) bool { return c.RestartCount >= 2 })
		r.awaitStatus(never, ctrmodel.Exited)
		for _, id := range []string{pending, stopped, never} {
			if err := c.order(r, id); err == nil || !strings.Contains(err.Error(), "no such device") {
				t.Errorf("%s: %v", c.name, err)
			}
			if s := r.get(id).State; s.Status != ctrmodel.Stopped || s.Error != "no such device" {
				t.Errorf("%s: state %+v", c.name, s)
			}
			if got := r.saved(id).Run; got != (id == pending) {
				t.Errorf("%s: %s is to run: %v", c.name, r.get(id).Name, got)
			}
		}
		missing.Store(false)
		r.awaitStatus(pending, ctrmodel.Running)
		// Whom a user has stopped does not run for another policy either.
		if !r.get(stopped).ManuallyStopped || !r.saved(stopped).ManuallyStopped || r.get(never).ManuallyStopped {
			t.Errorf("%s: what was stopped by hand is not told from what was not", c.name)
		}
		other := ctrmodel.RestartPolicy{Type: ctrmodel.RestartUnlessStopped}
		r.must(r.Update(t.Context(), stopped, ctrmodel.UpdateOptions{RestartPolicy: &other}))
		r.steady(stopped, ctrmodel.Stopped)
		r.steady(never, ctrmodel.Stopped)
		r.stop()
	}
}

func TestFailedStartByHandIsTriedAfterTheNextBoot(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a", policy(ctrmodel.RestartAlways, 0))
	r.fake.behave(func() {
		r.fake.launch = func(*ctrmodel.Container) error { return errors.New("no such device") }
	})
	r.fake.exit(id, 1)
	r.await(id, "tried", func(c *ctrmodel.Container) bool { return c.State.Error == "no such device" })
	if err := r.Start(t.Context(), id); err == nil {
		t.Fatal("started")
	}
	r.stop()
	r.boot, r.fake.launch = "another one", nil
	r.start()
	r.awaitStatus(id, ctrmodel.Running)
}

func TestUpdateIsMadeWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a")
	full := r.fillable()
	old := ctrmodel.Resources{Memory: "64M", MemorySwap: ctrmodel.Unlimited}
	r.must(r.Update(t.Context(), id, ctrmodel.UpdateOptions{Resources: &old}))
	for name, fail := range map[string]func(bool){
		"full disk": full.Store,
		"limits that the kernel does not take": func(on bool) {
			r.fake.behave(func() {
				r.fake.limit = nil
				if on {
					r.fake.limit = func() error { return errors.New("device busy") }
				}
			})
		},
	} {
		fail(true)
		if err := r.Update(t.Context(), id, ctrmodel.UpdateOptions{Resources: &ctrmodel.Resources{Memory: "32M"}}); err == nil {
			t.Errorf("%s: updated", name)
		}
		fail(false)
		if is, want, saved := r.fake.boxes[id].limits, r.get(id).HostConfig.Resources, r.saved(id).HostConfig.Resources; is != old || want != old || saved != old {
			t.Errorf("%s: the process has %+v, the container %+v, the record %+v", name, is, want, saved)
		}
	}
	// Containerd may have set them even if it does not say so.
	var lost atomic.Bool
	lost.Store(true)
	r.fake.behave(func() {
		r.fake.limit = func() error {
			if lost.Load() {
				r.fake.box(id).limits = ctrmodel.Resources{Memory: "32M"}
				return context.DeadlineExceeded
			}
			return nil
		}
	})
	r.wantKind(r.Update(t.Context(), id, ctrmodel.UpdateOptions{Resources: &ctrmodel.Resources{Memory: "32M"}}), ctrmodel.DeadlineExceeded)
	lost.Store(false)
	r.eventually("as before", func() bool {
		r.fake.mu.Lock()
		defer r.fake.mu.Unlock()
		return r.fake.box(id).limits == old
	})
	if want := r.get(id).HostConfig.Resources; want != old {
		t.Errorf("the container has %+v", want)
	}
	// Nor is what cannot be put back at once left so.
	r.fake.behave(func() {
		r.fake.limit = func() error {
			full.Store(true)
			return errors.New("device busy")
		}
	})
	if err := r.Update(t.Context(), id, ctrmodel.UpdateOptions{Resources: &ctrmodel.Resources{Memory: "32M"}}); err == nil {
		t.Error("updated")
	}
	full.Store(false)
	r.eventually("put back", func() bool { return r.saved(id).HostConfig.Resources == old })
}
