// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
)

// next is what is to replace a container in these tests.
func next() *ctrmodel.Container {
	return &ctrmodel.Container{ID: "next", Name: "seat", Image: ctrmodel.Image{Name: "example.org/seat:2"}}
}

// inCharge is the one that has the name.
func (r *rig) inCharge(id string) {
	r.t.Helper()
	if c, err := r.ByName(r.t.Context(), "seat"); err != nil || c.ID != id {
		r.t.Fatalf("by name: %v, %v; expected %s", c, err, id)
	}
}

func TestSuccession(t *testing.T) {
	t.Parallel()
	for _, restarts := range []bool{false, true} {
		for _, end := range []string{"commit", "abandon before the switch", "abandon after the switch", "removal of the new one", "removal of the old one"} {
			r := newRig(t)
			ctx := t.Context()
			step := func(f func() error) {
				t.Helper()
				for range 2 { // each can be repeated
					r.must(f())
					if restarts {
						r.restart()
						r.must(r.Known(ctx))
					}
				}
			}
			old := r.running("seat", policy(ctrmodel.RestartAlways, 0))
			step(func() error {
				_, err := r.Succeed(ctx, old, "update", next())
				return err
			})
			open := []Succession{{ID: "next", Replaces: old, Owner: "update"}}
			if got := r.Successions("update"); !reflect.DeepEqual(got, open) || len(r.Successions("")) != 0 {
				t.Fatalf("open: %+v", got)
			}
			r.inCharge(old)
			r.wantKind(r.Start(ctx, "next"), ctrmodel.FailedPrecondition)
			r.wantKind(r.Ensure(ctx, "next"), ctrmodel.FailedPrecondition)
			r.wantKind(r.Restart(ctx, "next", force), ctrmodel.FailedPrecondition)
			r.wantKind(r.Commit(ctx, "next"), ctrmodel.FailedPrecondition)
			other := next()
			other.ID = "other"
			for _, id := range []string{old, "next"} {
				_, err := r.Succeed(ctx, id, "update", other)
				r.wantKind(err, ctrmodel.FailedPrecondition)
			}
			r.awaitStatus(old, ctrmodel.Running)
			if r.fake.launched("next") != 0 {
				t.Fatal("the new one has been started before the switch")
			}
			if end != "abandon before the switch" {
				step(func() error { return r.Switch(ctx, "next") })
				open[0].Switched = true
				if got := r.Successions("update"); !reflect.DeepEqual(got, open) {
					t.Fatalf("open: %+v", got)
				}
				r.inCharge("next")
				r.awaitStatus("next", ctrmodel.Running)
				r.awaitStatus(old, ctrmodel.Stopped)
				r.wantKind(r.Start(ctx, old), ctrmodel.FailedPrecondition)
				r.wantKind(r.Ensure(ctx, old), ctrmodel.FailedPrecondition)
				r.wantKind(r.Restart(ctx, old, force), ctrmodel.FailedPrecondition)
			}
			stays := old
			switch end {
			case "commit":
				step(func() error { return r.Commit(ctx, "next") })
				r.wantKind(r.Abandon(ctx, "next"), ctrmodel.FailedPrecondition)
				stays = "next"
			case "removal of the new one":
				r.must(r.Remove(ctx, "next", true, force))
			case "removal of the old one":
				r.must(r.Remove(ctx, old, true, force))
				r.wantKind(r.Abandon(ctx, "next"), ctrmodel.FailedPrecondition)
				step(func() error { return r.Commit(ctx, "next") })
				stays = "next"
			default:
				step(func() error { return r.Abandon(ctx, "next") })
			}
			r.awaitStatus(stays, ctrmodel.Running)
			r.inCharge(stays)
			if list, got := r.list(), r.Successions("update"); len(list) != 1 || len(got) != 0 {
				t.Errorf("%s: %d containers, open %+v", end, len(list), got)
			}
			// It is one as all others.
			if n := r.fake.launched(stays); restarts == false && n > 2 {
				t.Errorf("%s: launched %d times", end, n)
			}
			r.must(r.Restart(ctx, stays, force))
		}
	}
}

func TestSwitchTakesTheProcessOfTheOldOneFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	old := r.running("seat", policy(ctrmodel.RestartNever, 0)) // nor does the policy count while another one is in its place
	_, err := r.Succeed(t.Context(), old, "update", next())
	r.must(err)
	r.fake.mu.Lock()
	both := false
	r.fake.launch = func(c *ctrmodel.Container) error {
		both = both || c.ID == "next" && r.fake.boxes[old].task != NoTask
		return nil
	}
	r.fake.mu.Unlock()
	r.must(r.Switch(t.Context(), "next"))
	if both {
		t.Error("both had a process")
	}
	r.must(r.Abandon(t.Context(), "next"))
	r.awaitStatus(old, ctrmodel.Running)
}

// It is not there to start, which is another thing than that it is not there.
func TestOldOneThatDoesNotComeBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	old := r.running("seat")
	_, err := r.Succeed(t.Context(), old, "update", next())
	r.must(err)
	r.must(r.Switch(t.Context(), "next"))
	r.fake.mu.Lock()
	r.fake.launch = func(*ctrmodel.Container) error { return ctrmodel.Errorf(ctrmodel.NotFound, "no such image") }
	r.fake.mu.Unlock()
	r.wantKind(r.Abandon(t.Context(), "next"), ctrmodel.NotFound)
	r.must(r.Abandon(t.Context(), "next"))
	r.wantKind(r.Ensure(t.Context(), old), ctrmodel.NotFound)
	r.inCharge(old)
}

func TestNewOneThatDoesNotStart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	old := r.running("seat")
	r.fake.launch = func(c *ctrmodel.Container) error {
		if c.ID == "next" {
			return errors.New("bad program")
		}
		return nil
	}
	_, err := r.Succeed(t.Context(), old, "update", next())
	r.must(err)
	for range 2 {
		if err := r.Switch(t.Context(), "next"); err == nil || passing(err) {
			t.Fatalf("switch: %v", err)
		}
		r.steady(old, ctrmodel.Stopped) // the owner decides
	}
	r.must(r.Abandon(t.Context(), "next"))
	r.awaitStatus(old, ctrmodel.Running)
	if _, err := r.Replace(t.Context(), old, next()); err == nil {
		t.Error("replaced")
	}
	r.awaitStatus(old, ctrmodel.Running)
	if len(r.list()) != 1 {
		t.Errorf("%d containers", len(r.list()))
	}
}

// The old one need not wait until all of the new one is gone.
func TestNewOneThatCannotBeRemoved(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	old := r.running("seat")
	_, err := r.Succeed(t.Context(), old, "update", next())
	r.must(err)
	r.must(r.Switch(t.Context(), "next"))
	r.fake.mu.Lock()
	r.fake.discard = func(id string) error { return errors.New("device busy") }
	r.fake.mu.Unlock()
	for range 2 {
		if err := r.Abandon(t.Context(), "next"); err == nil || !strings.Contains(err.Error(), "device busy") {
			t.Errorf("abandon: %v", err)
		}
		r.awaitStatus(old, ctrmodel.Running)
		r.inCharge(old)
		r.restart()
		r.must(r.Known(t.Context()))
	}
}

// A power cut before the old one is stopped leaves the new one waiting for that.
func TestNewOneWaitsForTheEndOfTheOldOne(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	old := r.running("seat")
	_, err := r.Succeed(t.Context(), old, "update", next())
	r.must(err)
	a, err := r.actor("next")
	r.must(err)
	r.must(r.do(t.Context(), "next", starting, func(a *actor, _ context.Context) error {
		return a.want(func(r *record) { r.Switched, r.Run = true, true })
	}))
	r.stop()
	r.fake.alone, r.fake.slow = true, 50*time.Millisecond
	r.start()
	r.awaitStatus(a.id, ctrmodel.Running)
	if r.fake.crowded() {
		t.Error("both had a process")
	}
}

// Nobody comes back who has been removed, so that the new one stays even if it does not start.
func TestCommitCutAfterTheRemoval(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	old := r.running("seat")
	_, err := r.Succeed(t.Context(), old, "", next())
	r.must(err)
	r.must(r.Switch(t.Context(), "next"))
	r.must(r.Remove(t.Context(), old, true, force))
	r.stop()
	r.fake.exit("next", 1)
	r.fake.launch = func(*ctrmodel.Container) error { return errors.New("bad program") }
	r.start()
	for end := time.Now().Add(5 * time.Second); len(r.Successions("")) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never ended")
		}
	}
	r.inCharge("next")
}

// What cannot be decided while containerd is away is decided later, without anybody asking.
func TestReplacementWhileContainerdGoesAway(t *testing.T) {
	t.Parallel()
	for _, starts := range []bool{true, false} {
		r := newRig(t)
		old := r.running("seat")
		var down atomic.Bool
		down.Store(true)
		r.fake.launch = func(c *ctrmodel.Container) error {
			switch {
			case c.ID != "next":
				return nil
			case down.Load():
				return errDown
			case starts:
				return nil
			}
			return errors.New("bad program")
		}
		if _, err := r.Replace(t.Context(), old, next()); !passing(err) {
			t.Fatalf("replace: %v", err)
		}
		down.Store(false)
		stays := old
		if starts {
			stays = "next"
		}
		for end := time.Now().Add(5 * time.Second); len(r.list()) != 1; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("never ended")
			}
		}
		r.awaitStatus(stays, ctrmodel.Running)
		r.inCharge(stays)
	}
}

func TestParkedContainerStaysDown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	id := r.running("seat", policy(ctrmodel.RestartAlways, 0))
	r.must(r.Pause(ctx, id))
	down := func() {
		t.Helper()
		for range 2 {
			r.must(r.Park(ctx, id, "update"))
			if got := strings.Join(r.Parked("update"), " "); got != id || len(r.Parked("")) != 0 {
				t.Errorf("parked: %q", got)
			}
		}
		r.steady(id, ctrmodel.Stopped)
		r.wantKind(r.Ensure(ctx, id), ctrmodel.FailedPrecondition)
		r.must(r.Update(ctx, id, ctrmodel.UpdateOptions{RestartPolicy: &ctrmodel.RestartPolicy{Type: ctrmodel.RestartOnFailure}}))
		r.must(r.Update(ctx, id, ctrmodel.UpdateOptions{RestartPolicy: &ctrmodel.RestartPolicy{Type: ctrmodel.RestartAlways}}))
		r.restart()
		r.must(r.Known(ctx))
		r.steady(id, ctrmodel.Stopped)
		r.fake.setDown(true)
		for r.Ready() == nil {
			time.Sleep(time.Millisecond)
		}
		r.fake.setDown(false)
		r.steady(id, ctrmodel.Stopped)
	}
	down()
	for range 2 {
		r.must(r.Unpark(ctx, id))
		r.awaitStatus(id, ctrmodel.Running)
	}
	down()
	r.must(r.Start(ctx, id)) // a user knows
	if len(r.Parked("update")) != 0 {
		t.Error("still parked")
	}
	r.must(r.Stop(ctx, id, force))
	r.must(r.Park(ctx, id, "update"))
	r.must(r.Unpark(ctx, id)) // what was wanted is that it is stopped
	r.steady(id, ctrmodel.Stopped)
	r.must(r.Start(ctx, id))
	r.must(r.Park(ctx, id, "update"))
	r.must(r.Remove(ctx, id, false, force))
	if len(r.Parked("update")) != 0 {
		t.Error("parked, but gone")
	}
}

// Nothing brings up a container that another one has replaced for now, and nothing is forgotten of what was wanted of it.
func TestReplacedContainerStaysDown(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{ctrmodel.RestartAlways, ctrmodel.RestartNever, ctrmodel.RestartOnFailure} {
		r := newRig(t)
		ctx := t.Context()
		r.fake.alone = true
		old := r.running("seat", policy(kind, 0))
		_, err := r.Succeed(ctx, old, "update", next())
		r.must(err)
		r.must(r.Switch(ctx, "next"))
		r.fake.exit("next", 1) // its own policy counts
		r.await("next", "restarted", func(c *ctrmodel.Container) bool { return c.RestartCount == 1 && c.State.Running })
		for _, p := range []string{ctrmodel.RestartOnFailure, kind} {
			r.must(r.Update(ctx, old, ctrmodel.UpdateOptions{RestartPolicy: &ctrmodel.RestartPolicy{Type: p}}))
		}
		for range 2 {
			r.fake.setDown(true)
			for r.Ready() == nil {
				time.Sleep(time.Millisecond)
			}
			r.fake.setDown(false)
			r.steady(old, ctrmodel.Stopped)
			r.stop()
			r.fake.boxes["next"].task, r.fake.boxes[old].task = NoTask, NoTask
			r.boot += "x"
			r.start()
			r.must(r.Known(ctx))
			r.await("next", "running", func(c *ctrmodel.Container) bool { return c.State.Running && r.fake.running() == 1 })
		}
		r.steady(old, ctrmodel.Stopped)
		r.must(r.Abandon(ctx, "next"))
		r.awaitStatus(old, ctrmodel.Running)
		if r.fake.crowded() {
			t.Error("both had a process")
		}
	}
}

func TestEnsure(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	id := r.make("seat")
	r.must(r.Ensure(ctx, id))
	r.must(r.Ensure(ctx, id))
	if n := r.fake.launched(id); n != 1 {
		t.Errorf("launched %d times", n)
	}
	r.must(r.Pause(ctx, id))
	r.must(r.Ensure(ctx, id))
	if s := r.get(id).State; !s.Running {
		t.Errorf("state %+v", s)
	}
	r.must(r.Stop(ctx, id, force))
	r.must(r.Ensure(ctx, id))
	var missing atomic.Bool
	missing.Store(true)
	r.fake.mu.Lock()
	r.fake.launch = func(*ctrmodel.Container) error {
		if missing.Load() {
			return errors.New("no such device")
		}
		return nil
	}
	r.fake.mu.Unlock()
	r.must(r.Stop(ctx, id, force))
	if err := r.Ensure(ctx, id); err == nil || !strings.Contains(err.Error(), "no such device") {
		t.Errorf("error %v", err)
	}
	missing.Store(false)
	r.awaitStatus(id, ctrmodel.Running) // the policy has seen to it
}

func TestKnownWaitsForContainerd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("seat", policy(ctrmodel.RestartNever, 0))
	r.stop()
	r.fake.exit(id, 3)
	r.fake.setDown(true)
	r.start()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	r.wantKind(r.Known(short), ctrmodel.DeadlineExceeded)
	r.fake.setDown(false)
	r.must(r.Known(t.Context()))
	if s := r.get(id).State; s.Status != ctrmodel.Exited {
		t.Errorf("known, but not that it has ended: %+v", s)
	}
	r.restart()
	r.must(r.Remove(t.Context(), id, false, force))
	r.must(r.Known(t.Context()))
}
