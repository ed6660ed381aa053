// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"sync/atomic"
	"syscall"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/images"
)

// rank is what an order may interrupt: those of lower rank, and a stop or a removal another one, which might take for ever.
type rank int

const (
	starting rank = iota
	stopping
	creating
	removing
)

func (r rank) interrupts(other rank) bool {
	return other < r || other == r && (r == stopping || r == removing)
}

var errInterrupted = ctrmodel.Errorf(ctrmodel.Cancelled, "interrupted by an order to stop or remove the container")

// order is something to be done by the goroutine of a container.
type order struct {
	rank   rank
	run    func(*actor, context.Context) error
	cancel context.CancelCauseFunc
	done   chan error
}

func newOrder(r rank, run func(*actor, context.Context) error) *order {
	return &order{rank: r, run: run, done: make(chan error, 1)}
}

// wait returns the outcome, unless the caller has to go before.
func (o *order) wait(ctx context.Context) error {
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// actor is the goroutine of one container.
type actor struct {
	e       *Engine
	id      string
	orders  chan *order
	again   chan struct{} // what there is may have changed
	gone    chan struct{} // closed when the container is
	current atomic.Pointer[order]
	view    atomic.Pointer[record] // what others see, never changed
	oom     atomic.Bool
	looked  chan struct{} // closed when what there is of it has been seen for the first time
	inside  bool          // there is a process, or may be; the engine's lock is for it, and for size
	size    int           // of the description, see reserve

	// What only the goroutine uses.
	rec       *record
	proc      *process    // that is watched
	timer     *time.Timer // until the next settle
	due       time.Time   // of that
	notBefore time.Time   // the restart policy's pause ends
	stuck     bool        // the end of the process could not be dealt with, which the timer repeats
	held      bool        // at rest for a while, whatever is wanted
	final     bool        // if it gets there, that is what is wanted from then on
	unclean   bool        // something may be left of a process that has not been started
	pauses    pauses
	unsaved   error  // why what has happened is not written down yet
	said      string // the last failure, to be said once
	untold    func() // tells that a process has ended; everybody expects its output to be in the log then
}

// process is one that runs, or ran. Its end is a state, not an event: it does not matter who looks when.
type process struct {
	since time.Time
	ended chan struct{}
	exit  Exit      // once ended is closed
	doom  time.Time // it is killed then by the order that ends it; the orders that interrupt one another keep to that
}

func (p *process) alive() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

func newActor(e *Engine, r *record) *actor {
	a := &actor{e: e, id: r.ID, rec: r, orders: make(chan *order), again: make(chan struct{}, 1), gone: make(chan struct{}), looked: make(chan struct{}), inside: true}
	a.view.Store(r.clone())
	return a
}

// do has a container's goroutine run something. Who does not wait for the end any more does not end it.
func (e *Engine) do(ctx context.Context, id string, r rank, run func(*actor, context.Context) error) error {
	a, err := e.actor(id)
	if err != nil {
		return err
	}
	if err := e.connected(ctx); err != nil {
		return err
	}
	o := newOrder(r, run)
	for sent := false; !sent; {
		if cur := a.current.Load(); cur != nil && r.interrupts(cur.rank) {
			cur.cancel(errInterrupted)
		}
		select {
		case a.orders <- o:
			sent = true
		case <-time.After(100 * time.Millisecond): // there may be another one to interrupt
		case <-a.gone:
			return noContainer(id)
		case <-e.life.Done():
			return stoppingError()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return o.wait(ctx)
}

// look makes the actor compare what is wanted with what there is.
func (a *actor) look() {
	select {
	case a.again <- struct{}{}:
	default:
	}
}

// loop runs the first order, if there is one, and those that come then.
func (a *actor) loop(ctx context.Context, next *order) {
	for {
		if next != nil {
			a.run(ctx, next)
			select {
			case <-a.gone:
				return
			default:
			}
		}
		var ended <-chan struct{}
		if a.proc != nil && !a.stuck {
			ended = a.proc.ended
		}
		var due <-chan time.Time
		if a.timer != nil {
			due = a.timer.C
		}
		next = &order{rank: starting, run: (*actor).keep}
		select {
		case next = <-a.orders:
		case <-ended:
		case <-due:
			a.timer, a.stuck = nil, false
		case <-a.again:
			a.stuck = false
		case <-ctx.Done():
			return
		}
	}
}

// run carries out an order. Whatever comes of it, after that the container is as wanted, or something is armed that goes on.
func (a *actor) run(ctx context.Context, o *order) {
	ctx, o.cancel = context.WithCancelCause(ctx)
	a.current.Store(o)
	if a.unsaved != nil { // there may be room now
		a.write()
	}
	err := o.run(a, ctx)
	a.current.Store(nil)
	if cause := context.Cause(ctx); cause == nil && a.proc != nil {
		a.proc.doom = time.Time{} // no other order takes over from this one
	} else if cause != nil && err != nil {
		err = cause
	}
	o.cancel(nil)
	if err != nil || a.unsaved != nil {
		a.wait(a.e.times.retry)
	}
	if pause := time.Until(a.notBefore); pause > 0 {
		a.wait(pause)
	} else if err == nil && a.proc == nil && !a.notBefore.IsZero() { // the pause was over before the order was
		a.notBefore = time.Time{}
		a.wait(0)
	}
	if o.done != nil {
		o.done <- err
	}
}

// goal is what the record wants, at this moment.
func (a *actor) goal() Goal {
	switch {
	case a.rec.State.Status == ctrmodel.Dead:
		return Gone
	case a.rec.Run && !a.rec.Parked && !a.held && time.Until(a.notBefore) <= 0 && a.e.enter(a):
		return Running
	}
	return AtRest
}

// resting reports whether there is to be no process for now, whatever is wanted.
func (a *actor) resting() bool {
	a.e.mu.Lock()
	defer a.e.mu.Unlock()
	return a.held || a.rec.Parked || a.e.superseded(a.id)
}

// settle takes the container to its goal. The options are for a process that has to be ended on the way.
func (a *actor) settle(ctx context.Context, o ctrmodel.StopOptions) error {
	is, err := a.see(ctx)
	if err == nil || a.e.Ready() == nil { // one that cannot be looked at must not hold up all others
		defer a.settled()
	}
	if err != nil {
		return err
	}
	is.Watched, is.Recorded = a.proc.alive(), a.rec.State.HasProcess() || a.proc != nil
	a.freeze(is.Task)
	defer func() {
		if a.untold != nil {
			a.untold()
			a.untold = nil
		}
	}()
	is.Object = is.Object || a.unclean
	killed := false
	goal := a.goal()
	for _, step := range Reconcile(goal, is) {
		switch step {
		case Prepare:
			err = a.prepare(ctx)
		case Adopt:
			err = a.adopt(ctx, is.Task)
		case Kill:
			killed = true
			err = a.kill(ctx, o, is.Task == TaskPaused)
		case Collect:
			err = a.collect(ctx, killed, is.Task == TaskEnded)
		case Release:
			err = a.release(ctx)
		case Launch:
			err = a.launch(ctx)
		case Discard:
			err = a.bounded(ctx, a.e.backend.Discard)
		case Forget:
			err = a.forget()
		}
		if err != nil {
			return err
		}
	}
	if goal != Running {
		a.e.leave(a)
		return nil
	}
	if err := a.limit(ctx); err != nil {
		if passing(err) {
			return err
		}
		// It will not do so the next time either; who updates the container again is told, and another process gets them.
		a.e.Log.Error("container does not take its limits", "container", a.rec.Name, "id", a.id, "error", err)
	}
	return nil
}

func (a *actor) see(ctx context.Context) (Actual, error) {
	ctx, cancel := context.WithTimeout(ctx, a.e.times.call)
	defer cancel()
	return a.e.backend.Look(ctx, a.id)
}

func (a *actor) bounded(ctx context.Context, step func(context.Context, *ctrmodel.Container) error) error {
	ctx, cancel := context.WithTimeout(ctx, a.e.times.call)
	defer cancel()
	return step(ctx, &a.rec.Container)
}

// prepare gets the image and makes the file system.
func (a *actor) prepare(ctx context.Context) error {
	digest, err := a.e.backend.Prepare(ctx, &a.rec.Container)
	if err != nil {
		if !passing(err) {
			err = notLaunched{err}
		}
		return err
	}
	a.rec.Digest = digest
	return a.save()
}

// release clears away what a process needs. What fails must not be forgotten: nobody but the actor may know of it.
func (a *actor) release(ctx context.Context) error {
	err := a.bounded(ctx, a.e.backend.Release)
	a.unclean = err != nil
	return err
}

// keep is settle when nobody asked for it: failures are a matter of the restart policy, or of time.
func (a *actor) keep(ctx context.Context) error {
	err := a.settle(ctx, ctrmodel.StopOptions{Force: true})
	if err != nil && ctx.Err() == nil {
		a.failed(err)
	}
	return err
}

func (a *actor) settled() {
	select {
	case <-a.looked:
	default:
		close(a.looked)
	}
}

// notLaunched is the failure of a container to start.
type notLaunched struct{ error }

func (n notLaunched) Unwrap() error { return n.error }

// failed decides what comes after an attempt of the engine's own that has failed.
func (a *actor) failed(err error) {
	log := a.e.Log.With("container", a.rec.Name, "id", a.id, "error", err)
	var n notLaunched
	if !errors.As(err, &n) {
		a.stuck = true
		if a.said != err.Error() {
			a.said = err.Error()
			log.Warn("container is not as wanted, trying again")
		}
		return
	}
	if !a.restartable(true) {
		log.Error("container cannot be started, given up")
	} else {
		log.Warn("container cannot be started, trying again", "attempt", a.rec.RestartCount, "pause", a.pauses.last)
	}
	a.commit("")
}

// restartable asks the restart policy, and sets the time for the next attempt.
func (a *actor) restartable(failed bool) bool {
	p := a.rec.HostConfig.RestartPolicy
	a.rec.Run = again(p, failed, a.rec.RestartCount)
	if a.rec.Run {
		var ran time.Duration
		if a.proc != nil {
			ran = time.Since(a.proc.since)
		}
		a.rec.RestartCount++
		a.notBefore = time.Now().Add(a.pauses.next(ran, p.RetryTimeout))
	}
	return a.rec.Run
}

// wait arms the timer, unless it is to go off before that anyway.
func (a *actor) wait(d time.Duration) {
	due := time.Now().Add(d)
	if a.timer != nil {
		if a.due.Before(due) {
			return
		}
		a.timer.Stop()
	}
	a.timer, a.due = time.NewTimer(d), due
}

// cancelTimer calls off all that is still to come.
func (a *actor) cancelTimer() {
	if a.timer != nil {
		a.timer.Stop()
	}
	a.timer, a.notBefore, a.stuck = nil, time.Time{}, false
}

// save writes the record.
func (a *actor) save() error {
	if err := a.e.store.save(a.rec); err != nil {
		kind := ctrmodel.Internal
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			kind = ctrmodel.ResourceExhausted
		}
		return ctrmodel.Errorf(kind, "save the record of container %s: %w", a.rec.Name, err)
	}
	a.unsaved = nil
	return nil
}

// write is save of what has happened. It did, even if that cannot be written down; then it is tried again.
func (a *actor) write() {
	if err := a.save(); err != nil {
		if a.unsaved == nil {
			a.e.Log.Error("state of a container cannot be written down, trying again", "container", a.rec.Name, "id", a.id, "error", err)
		}
		a.unsaved = err
	}
}

// commit writes down what has happened and tells everybody.
func (a *actor) commit(what ctrmodel.Action) {
	a.write()
	a.publish(what)
}

func (a *actor) publish(what ctrmodel.Action) {
	r := a.rec.clone()
	a.view.Store(r)
	if what != "" {
		a.e.events.publish(ctrmodel.Event{Time: time.Now(), Action: what, Container: &r.Container})
	}
}

// want writes down a wish before it is acted on; it is taken back if that is not possible.
func (a *actor) want(change func(*record)) error {
	before := *a.rec
	change(a.rec)
	if err := a.save(); err != nil {
		*a.rec = before
		return err
	}
	a.wanted()
	return nil
}

// insist is want that goes on if there is no room to write: what is wanted makes some, or ends what uses it.
func (a *actor) insist(change func(*record)) error {
	err := a.want(change)
	if err == nil || ctrmodel.KindOf(err) != ctrmodel.ResourceExhausted {
		return err
	}
	change(a.rec)
	a.write()
	a.wanted()
	return nil
}

// wanted tells everybody of a wish.
func (a *actor) wanted() {
	a.publish("")
	a.e.mu.Lock()
	defer a.e.mu.Unlock()
	a.e.note(a.rec)
}

// watch waits for the end of the process, however often containerd goes away meanwhile.
func (a *actor) watch(since time.Time) {
	p := &process{since: since, ended: make(chan struct{})}
	a.proc = p
	a.e.all.Go(func() {
		for {
			exit, err := a.e.backend.Wait(a.e.life, a.id)
			if err == nil {
				p.exit = exit
				close(p.ended)
				return
			}
			select {
			case <-a.e.life.Done():
				return
			case <-time.After(a.e.times.retry):
			}
		}
	})
}

func (a *actor) launch(ctx context.Context) error {
	if a.rec.Digest == "" { // of an agent that did not keep it
		if err := a.prepare(ctx); err != nil {
			return err
		}
	}
	before := a.rec.State
	var image images.Image
	var pid int64
	err := a.rec.Validate() // of a record from the disk, nobody else has done so
	if err == nil {
		image, err = a.e.backend.Image(ctx, &a.rec.Container, a.rec.Digest)
	}
	if err == nil {
		pid, err = a.process(ctx, image)
	}
	if err != nil {
		// Whatever has been made must not be in the way of the next attempt, even if this one has been interrupted.
		if rerr := a.release(context.WithoutCancel(ctx)); rerr != nil {
			a.e.Log.Warn("cannot clear away a failed start", "container", a.rec.Name, "error", rerr)
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		a.rec.NetworkSettings = nil
		if a.rec.State.SetNotStarted(err.Error()); a.rec.State != before {
			a.commit(ctrmodel.ActionStopped)
		}
		if passing(err) {
			return err
		}
		return notLaunched{err}
	}
	now := time.Now()
	a.watch(now)
	a.rec.State.SetRunning(pid, now)
	a.rec.StartedBefore, a.rec.Boot, a.rec.Relimit = true, a.e.boot, false
	a.commit(ctrmodel.ActionRunning)
	return nil
}

// process starts one. Many at a time would only hinder each other.
func (a *actor) process(ctx context.Context, image images.Image) (pid int64, err error) {
	select {
	case a.e.launches <- struct{}{}:
		defer func() { <-a.e.launches }()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	a.oom.Store(false)
	ctx, cancel := context.WithTimeout(ctx, a.e.times.call)
	defer cancel()
	return a.e.backend.Launch(ctx, &a.rec.Container, image)
}

// freeze takes note of a process that is paused, or goes on, whoever did that.
func (a *actor) freeze(t Task) {
	switch s := &a.rec.State; {
	case !a.proc.alive():
	case t == TaskPaused && s.Status == ctrmodel.Running:
		s.SetPaused()
		a.commit(ctrmodel.ActionPaused)
	case t == TaskRunning && s.Status == ctrmodel.Paused:
		s.SetResumed()
		a.commit(ctrmodel.ActionResumed)
	}
}

func (a *actor) adopt(ctx context.Context, t Task) error {
	bound, cancel := context.WithTimeout(ctx, a.e.times.call)
	defer cancel()
	pid, err := a.e.backend.Adopt(bound, &a.rec.Container)
	if err != nil {
		return err
	}
	since, err := time.Parse(time.RFC3339Nano, a.rec.State.StartedAt)
	if err != nil || !a.rec.State.HasProcess() {
		since = time.Now()
	}
	a.watch(since)
	if a.rec.State.Status == ctrmodel.Dead { // which is also the wish that it goes
		return nil
	}
	before := a.rec.State
	if !before.HasProcess() {
		a.rec.State.SetRunning(pid, since)
	}
	a.rec.State.PID, a.rec.StartedBefore, a.rec.Boot = pid, true, a.e.boot
	switch {
	case t == TaskPaused:
		a.rec.State.SetPaused()
	case before.Status == ctrmodel.Paused:
		a.rec.State.SetResumed()
	}
	if a.rec.State != before {
		a.commit(ctrmodel.ActionRunning)
	} else if !reflect.DeepEqual(a.rec, a.view.Load()) {
		a.commit("")
	}
	return nil
}

const killTimeout = 30 * time.Second

// kill ends the process and waits for that.
func (a *actor) kill(ctx context.Context, o ctrmodel.StopOptions, paused bool) error {
	signal, err := ctrmodel.ParseSignal(o.Signal)
	if err != nil {
		return err
	}
	timeout := a.e.StopTimeout
	if o.Timeout > 0 {
		timeout = time.Duration(min(o.Timeout, math.MaxInt64/int64(time.Second))) * time.Second
	}
	if o.Force {
		end := time.Now().Add(timeout)
		if a.proc.doom.IsZero() || end.Before(a.proc.doom) {
			a.proc.doom = end
		}
		timeout = time.Until(a.proc.doom)
	}
	for {
		if signal == syscall.SIGKILL { // which nobody can ignore, but a busy machine may take its time
			timeout = max(timeout, killTimeout)
		}
		if err := a.signal(ctx, signal, paused); err != nil {
			return err
		}
		select {
		case <-a.proc.ended:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(timeout):
		}
		if signal == syscall.SIGKILL || !o.Force {
			return ctrmodel.Errorf(ctrmodel.DeadlineExceeded, "container %s still runs %v after %v", a.rec.Name, timeout, signal)
		}
		signal = syscall.SIGKILL
		if is, err := a.see(ctx); err == nil { // it may not have heeded the signal because it is frozen meanwhile
			paused = is.Task == TaskPaused
		}
	}
}

func (a *actor) signal(ctx context.Context, s syscall.Signal, paused bool) error {
	ctx, cancel := context.WithTimeout(ctx, a.e.times.call)
	defer cancel()
	if err := a.e.backend.Kill(ctx, a.id, s); err != nil {
		return err
	}
	if paused { // frozen processes get no signals; one that was killed all the same cannot be resumed
		if err := a.e.backend.Resume(ctx, a.id); ctrmodel.KindOf(err) == ctrmodel.Unavailable {
			return err
		}
	}
	return nil
}

// collect writes down how the process has ended, and what follows from that.
func (a *actor) collect(ctx context.Context, killed, known bool) error {
	restored := a.proc == nil
	exit := Exit{Lost: true, At: time.Now()}
	if !restored && !a.proc.alive() {
		exit = a.proc.exit
	} else if known { // before whoever watches the process could tell
		bound, cancel := context.WithTimeout(ctx, a.e.times.call)
		defer cancel()
		var err error
		if exit, err = a.e.backend.Wait(bound, a.id); err != nil {
			return err
		}
	}
	a.rec.NetworkSettings = nil
	what := ctrmodel.ActionExited
	switch {
	case a.rec.State.Status == ctrmodel.Dead:
		what = ""
	case killed || !a.rec.Run || a.resting():
		what = ctrmodel.ActionStopped
		if a.final {
			a.rec.Run, a.rec.ManuallyStopped = false, true
		}
		a.rec.State.SetStopped(exit.Code, exit.At)
	default:
		oom, reason := exit.OOM || a.oom.Load() && exit.Code == 128+int64(syscall.SIGKILL), ""
		if exit.Lost {
			reason = "the process was lost, its exit code is not known"
		} else if oom {
			reason = "killed because its memory was used up"
		}
		a.rec.State.SetExited(exit.Code, exit.At, oom, reason)
		if exit.Lost && restored && a.rec.Boot != a.e.boot {
			// It did not end by itself: the machine was restarted. That is no failure to be counted.
			a.rec.Run = again(a.rec.HostConfig.RestartPolicy, true, 0)
			a.wait(0)
		} else {
			a.restartable(exit.Lost || exit.Code != 0)
		}
	}
	a.proc = nil
	a.write()
	a.untold = func() { a.publish(what) }
	return nil
}

func (a *actor) forget() error {
	if err := a.e.store.forget(a.id); err != nil {
		return fmt.Errorf("remove the record of container %s: %w", a.rec.Name, err)
	}
	a.e.drop(a)
	a.cancelTimer()
	a.settled()
	a.publish(ctrmodel.ActionRemoved)
	close(a.gone)
	return nil
}
