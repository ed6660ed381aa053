// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"context"
	"errors"
	"time"

	"sdvbox/platform/ctrmodel"
)

// The orders that clients give. They run in the goroutine of the container.

func (a *actor) refuse(why string) error {
	return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "container %s %s", a.rec.Name, why)
}

// create is ended also by the end of caller.
func (a *actor) create(ctx, caller context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(caller, func() { cancel(context.Cause(caller)) })()
	err := a.save()
	if err == nil {
		a.publish("")
		err = a.clear(ctx)
	}
	if err == nil {
		err = a.prepare(ctx)
	}
	if err == nil {
		err = caller.Err() // nobody would know of it
	}
	if err == nil {
		a.rec.State.SetCreated()
		err = a.save()
	}
	if err == nil {
		a.publish(ctrmodel.ActionCreated)
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	a.rec.State.SetDead()
	if cerr := a.keep(context.WithoutCancel(ctx)); cerr != nil {
		err = errors.Join(err, cerr)
	}
	return err
}

// clear removes what there is under the id of a container that is yet to be made: it is of one whose record has been lost, and
// would be taken for this one.
func (a *actor) clear(ctx context.Context) error {
	is, err := a.see(ctx)
	if err != nil || is == (Actual{}) {
		return err
	}
	a.e.Log.Warn("clearing away what is left of a container with the id of a new one", "container", a.rec.Name, "id", a.id)
	if is.Task.Live() {
		a.watch(time.Now())
		if err := a.kill(ctx, ctrmodel.StopOptions{Force: true}, is.Task == TaskPaused); err != nil {
			return err
		}
		a.proc = nil
	}
	if err := a.release(ctx); err != nil {
		return err
	}
	return a.bounded(ctx, a.e.backend.Discard)
}

// startable tells why a container may have no process.
func (a *actor) startable() error {
	a.e.mu.Lock()
	defer a.e.mu.Unlock()
	switch {
	case a.rec.State.Status == ctrmodel.Dead:
		return a.refuse("is being removed")
	case a.e.superseded(a.id):
		return a.refuse("is replaced by another one")
	case a.rec.Replaces != "" && !a.rec.Switched:
		return a.refuse("is to replace another one, and has not been switched to")
	case a.e.displaced(a.id):
		return a.displaced()
	}
	return nil
}

func (a *actor) displaced() error {
	return ctrmodel.Errorf(ctrmodel.Unavailable, "the place of container %s is still taken by another one", a.rec.Name)
}

// lives is an error unless there is a process, after all that has been done for that.
func (a *actor) lives() error {
	if !a.rec.State.HasProcess() {
		return a.displaced()
	}
	return nil
}

// verify makes sure that a process which the record tells of is there: it may have gone with the machine, or with containerd,
// and nobody has looked yet.
func (a *actor) verify(ctx context.Context) error {
	if a.rec.State.HasProcess() && !a.proc.alive() {
		return a.keep(ctx)
	}
	return nil
}

// begin writes down that there is to be a process.
func (a *actor) begin() error {
	if err := a.startable(); err != nil {
		return err
	}
	if a.rec.State.HasProcess() {
		return a.refuse("is " + a.rec.State.Status.String() + " already")
	}
	err := a.want(func(r *record) {
		r.Run, r.ManuallyStopped, r.RestartCount, r.Parked, r.Parker = true, false, 0, false, ""
	})
	if err != nil {
		return err
	}
	a.cancelTimer()
	a.held, a.pauses = false, pauses{}
	return nil
}

// start tries once. A container that was to run before goes on being tried by its restart policy if that fails.
func (a *actor) start(ctx context.Context) error {
	if err := a.verify(ctx); err != nil {
		return err
	}
	return a.try(ctx, a.rec.Run, a.rec.ManuallyStopped)
}

// try is a start that the restart policy goes on with or not, if it fails. One that was stopped by hand is so again then.
func (a *actor) try(ctx context.Context, goesOn, stopped bool) error {
	if err := a.begin(); err != nil {
		return err
	}
	err := a.settle(ctx, ctrmodel.StopOptions{})
	switch {
	case err == nil:
		return a.lives()
	case ctx.Err() != nil: // whoever interrupted it decides
	case goesOn:
		a.failed(err)
	default:
		a.rec.Run, a.rec.ManuallyStopped = false, stopped
		a.commit("")
	}
	return err
}

// succeed is a start, if there is no process, of the container that has been switched to. Its owner decides what comes after it.
func (a *actor) succeed(ctx context.Context) error {
	if err := a.verify(ctx); err != nil || a.rec.State.HasProcess() {
		return err
	}
	return a.try(ctx, false, a.rec.ManuallyStopped)
}

// ensure is a start, if there is no process, of which the restart policy takes care if it fails.
func (a *actor) ensure(ctx context.Context) error {
	if err := a.startable(); err != nil {
		return err
	}
	if a.rec.Parked {
		return a.refuse("is parked")
	}
	if err := a.keep(ctx); err != nil { // what was running may have ended
		return err
	}
	switch a.rec.State.Status {
	case ctrmodel.Running:
		return nil
	case ctrmodel.Paused:
		return a.resume(ctx)
	}
	if err := a.begin(); err != nil {
		return err
	}
	if err := a.keep(ctx); err != nil {
		return err
	}
	return a.lives()
}

// stop writes down beforehand only what it is able to see through: a process that heeds no signal goes on without o.Force.
func (a *actor) stop(ctx context.Context, o ctrmodel.StopOptions) error {
	if !a.rec.State.HasProcess() && !a.rec.Run || a.rec.State.Status == ctrmodel.Dead {
		return a.refuse("is not running but " + a.rec.State.Status.String())
	}
	o.Force = o.Force || a.rec.State.HasProcess() && a.goal() != Running // somebody else has said so
	written := false
	if o.Force {
		if err := a.insist(func(r *record) { r.Run, r.ManuallyStopped = false, true }); err != nil {
			return err
		}
		written = a.unsaved == nil
	}
	held := a.held
	a.held, a.final = true, true
	defer func() { a.held, a.final = held, false }()
	had := a.rec.State.HasProcess()
	if err := a.settle(ctx, o); err != nil {
		return err
	}
	a.cancelTimer()
	if !had { // there was only the next attempt to call off
		a.rec.Run, a.rec.ManuallyStopped = false, true
		a.rec.State.Status, a.rec.State.Exited = ctrmodel.Stopped, false
		a.commit(ctrmodel.ActionStopped)
	}
	if written { // whatever can be of what came then
		return nil
	}
	return a.unsaved
}

func (a *actor) restart(ctx context.Context, o ctrmodel.StopOptions) error {
	if err := a.startable(); err != nil {
		return err
	}
	ran, stopped := a.rec.Run, a.rec.ManuallyStopped
	err := a.want(func(r *record) { r.Run, r.ManuallyStopped, r.RestartCount = true, false, 0 })
	if err != nil {
		return err
	}
	o.Force = true
	a.cancelTimer()
	a.held = true
	err = a.settle(ctx, o)
	a.held = false
	if err != nil {
		return err
	}
	return a.try(ctx, ran, stopped)
}

// hold ends the process for a while; what is wanted of the container stays as it is.
func (a *actor) hold(ctx context.Context) error {
	a.cancelTimer()
	a.held = true
	return a.settle(ctx, ctrmodel.StopOptions{Force: true})
}

// notice takes note of what others have done to the process meanwhile.
func (a *actor) notice(ctx context.Context) error {
	is, err := a.see(ctx)
	if err == nil {
		a.freeze(is.Task)
	}
	return err
}

func (a *actor) suspend(ctx context.Context) error {
	if err := a.notice(ctx); err != nil {
		return err
	}
	if a.rec.State.Status != ctrmodel.Running {
		return a.refuse("is not running but " + a.rec.State.Status.String())
	}
	pause := func(ctx context.Context, c *ctrmodel.Container) error { return a.e.backend.Pause(ctx, c.ID) }
	if err := a.bounded(ctx, pause); err != nil {
		return err
	}
	a.rec.State.SetPaused()
	a.commit(ctrmodel.ActionPaused)
	return nil
}

func (a *actor) resume(ctx context.Context) error {
	if err := a.notice(ctx); err != nil {
		return err
	}
	if a.rec.State.Status != ctrmodel.Paused {
		return a.refuse("is not paused but " + a.rec.State.Status.String())
	}
	resume := func(ctx context.Context, c *ctrmodel.Container) error { return a.e.backend.Resume(ctx, c.ID) }
	if err := a.bounded(ctx, resume); err != nil {
		return err
	}
	a.rec.State.SetResumed()
	a.commit(ctrmodel.ActionResumed)
	return nil
}

func (a *actor) update(ctx context.Context, o ctrmodel.UpdateOptions) error {
	if err := a.verify(ctx); err != nil {
		return err
	}
	before, pending := a.rec.HostConfig, a.rec.Relimit
	changed, err := a.rec.Update(o)
	if err != nil {
		return err
	}
	if changed {
		a.rec.Relimit = pending || before.Resources != a.rec.HostConfig.Resources
		if err = a.resize(); err == nil {
			err = a.save()
		}
		if err != nil {
			a.rec.HostConfig, a.rec.Relimit = before, pending
			a.resize()
			return err
		}
	}
	if err := a.limit(ctx); err != nil { // nobody knows which limits there are now: those of before are set again
		a.rec.HostConfig = before
		a.resize()
		a.write()
		return err
	}
	if !changed {
		return nil
	}
	a.publish(ctrmodel.ActionUpdated)
	ended := a.rec.StartedBefore && !a.rec.ManuallyStopped && !a.rec.State.HasProcess() && a.rec.State.Status != ctrmodel.Dead
	if before.RestartPolicy != a.rec.HostConfig.RestartPolicy && ended && !a.resting() {
		a.cancelTimer()
		a.restartable(a.rec.State.ExitCode != 0 || a.rec.State.Error != "")
		a.commit("")
	}
	return nil
}

// limit gives the process the limits that it may not have yet.
func (a *actor) limit(ctx context.Context) error {
	if !a.rec.Relimit || !a.rec.State.HasProcess() {
		return nil
	}
	if err := a.bounded(ctx, a.e.backend.Limit); err != nil {
		return err
	}
	a.rec.Relimit = false
	a.commit("")
	return nil
}

// resize takes note of how long the description has become.
func (a *actor) resize() error {
	size := sizeOf(&a.rec.Container)
	a.e.mu.Lock()
	defer a.e.mu.Unlock()
	return a.e.reserve(a, size)
}

func (a *actor) rename(name string) error {
	renamed := a.rec.Container
	renamed.Name = name
	size := sizeOf(&renamed)
	a.e.mu.Lock()
	err := a.e.reserve(a, size)
	if err == nil {
		err = a.e.claim(name, a.id, "")
	}
	a.e.mu.Unlock()
	defer a.resize() // it may have its old name
	if err != nil {
		return err
	}
	old := a.rec.Name
	if err = a.want(func(r *record) { r.Name = name }); err == nil {
		a.publish(ctrmodel.ActionRenamed)
	} else {
		old = name
	}
	a.e.mu.Lock()
	defer a.e.mu.Unlock()
	a.e.unclaim(old, a.id)
	return err
}

// retreat gives the place back to the container that this one has replaced.
func (a *actor) retreat(ctx context.Context, o ctrmodel.StopOptions) error {
	a.cancelTimer()
	a.held = true
	defer func() { a.held = false }()
	if err := a.settle(ctx, o); err != nil {
		return err
	}
	return a.insist(func(r *record) { r.Switched, r.Run = false, false })
}

func (a *actor) remove(ctx context.Context, force bool, o ctrmodel.StopOptions) error {
	if !force {
		if err := a.verify(ctx); err != nil {
			return err
		}
		if a.rec.State.HasProcess() {
			return a.refuse("is " + a.rec.State.Status.String() + ", stop it first or use force")
		}
	}
	o.Force = true
	if a.rec.Switched && a.e.there(a.rec.Replaces) && a.rec.State.Status != ctrmodel.Dead {
		// The one that it has replaced need not wait for all of it to be gone.
		if err := a.retreat(ctx, o); err != nil {
			return err
		}
	}
	if err := a.insist(func(r *record) { r.Run = false; r.State.SetDead() }); err != nil {
		return err
	}
	a.cancelTimer()
	err := a.settle(ctx, o)
	if err != nil {
		a.failed(err) // goes on, even if nobody asks again
	}
	return err
}
