// SPDX-License-Identifier: Apache-2.0

package ctrupdate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/updateagent"
	"sdvbox/platform/updateproto"
)

// Download gets images, some at a time, and makes the new containers. The old ones run.
func (b *Backend) Download(ctx context.Context, job *updateagent.Job) []updateproto.Feedback {
	w := b.work(job)
	var (
		all   sync.WaitGroup
		mu    sync.Mutex
		first string // failure
		slots = make(chan struct{}, max(1, b.Downloads))
	)
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, a := range w.mine {
		if a.Kind != create && a.Kind != recreate {
			continue
		}
		slots <- struct{}{}
		if inner.Err() != nil {
			break
		}
		w.set(a, updateproto.ActionDownloading, "Getting the image.")
		w.progress(updateproto.StatusDownloading)
		all.Go(func() {
			defer func() { <-slots }()
			err := w.prepare(inner, a)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				w.set(a, updateproto.ActionDownloadSuccess, "New container has been created.")
			case first == "" && ctx.Err() == nil:
				first = w.fail(a, updateproto.ActionDownloadFailure, err)
				cancel()
			default:
				w.set(a, updateproto.ActionDownloadFailure, "Not gone on with.")
			}
		})
	}
	all.Wait()
	if first != "" {
		return w.end(updateproto.StatusDownloadFailure, first)
	}
	return w.end(updateproto.StatusDownloadSuccess, "")
}

// prepare makes the new container of an action, unless it is there.
func (w *work) prepare(ctx context.Context, a *action) error {
	want := w.wants[a.Name]
	if want == nil {
		return fmt.Errorf("the desired state says nothing about %s", a.Name)
	}
	var made bool
	err := w.persist(ctx, func() (err error) {
		made, err = w.made(ctx, a)
		return err
	})
	if made || err != nil {
		return err
	}
	pull := w.Engine.Pull
	if a.Moved && w.Tags != nil {
		pull = w.Tags.Refresh
	}
	err = w.persist(ctx, func() error {
		_, err := pull(ctx, want.Image.Name, func(p ctrmodel.Progress) { w.pulled(a, p) })
		return err
	})
	if err != nil {
		return err
	}
	c := want.Clone()
	c.ID = a.New
	return w.persist(ctx, func() error {
		if a.Kind == create {
			if made, err := w.made(ctx, a); made || err != nil { // by the attempt before
				return err
			}
			_, err := w.Engine.Create(ctx, c)
			return err
		}
		old, err := w.Engine.Get(ctx, a.Old)
		if err != nil {
			return err
		}
		inherit(c, old)
		_, err = w.Engine.Succeed(ctx, a.Old, owner, c)
		return err
	})
}

// made reports whether the new container of an action is there. Half of one is waited for: it goes.
func (w *work) made(ctx context.Context, a *action) (bool, error) {
	c, err := w.Engine.Get(ctx, a.New)
	if err != nil {
		return false, unlessGone(err)
	}
	if c.State.Status == ctrmodel.Creating || c.State.Status == ctrmodel.Dead {
		return false, ctrmodel.Errorf(ctrmodel.Unavailable, "what an attempt that was cut off has made is not gone yet")
	}
	return true, nil
}

// pulled tells now and then how far an image is.
func (w *work) pulled(a *action, p ctrmodel.Progress) {
	w.mu.Lock()
	percent := a.progress
	switch {
	case p.Total <= 0:
	case p.Phase == "downloading":
		percent = int(90 * p.Done / p.Total)
	case p.Phase == "unpacking":
		percent = 90 + int(9*p.Done/p.Total)
	}
	tell := a.Status == updateproto.ActionDownloading && percent > a.progress && time.Since(w.told) > cmp.Or(w.Often, time.Second)
	a.progress = max(a.progress, min(percent, 99))
	if tell {
		w.told = time.Now()
	}
	w.mu.Unlock()
	if tell {
		w.progress(updateproto.StatusDownloading)
	}
}

// Update changes what can be changed of containers as they run. Those that are replaced or removed run on until ACTIVATE.
func (b *Backend) Update(ctx context.Context, job *updateagent.Job) []updateproto.Feedback {
	w := b.work(job)
	for _, a := range w.mine {
		if a.Kind == create || a.Kind == check {
			continue
		}
		w.set(a, updateproto.ActionUpdating, "")
		w.progress(updateproto.StatusUpdating)
		var err error
		said := "Ready to take the place of the existing container."
		switch a.Kind {
		case recreate:
			err = w.prepare(ctx, a) // again only if somebody has removed it
		case update:
			said, err = "Existing container has been updated.", w.change(ctx, a)
		case destroy:
			said = "Existing container is to be stopped by the activation."
		}
		if err != nil {
			return w.end(updateproto.StatusUpdateFailure, w.fail(a, updateproto.ActionUpdateFailure, err))
		}
		w.set(a, updateproto.ActionUpdateSuccess, said)
	}
	return w.end(updateproto.StatusUpdateSuccess, "")
}

// settings are what can be changed of a container as it runs.
type settings struct {
	Policy    ctrmodel.RestartPolicy `json:"policy"`
	Resources ctrmodel.Resources     `json:"resources"`
}

func (s *settings) options() ctrmodel.UpdateOptions {
	return ctrmodel.UpdateOptions{RestartPolicy: &s.Policy, Resources: &s.Resources}
}

// change updates a container. What it was like is kept before.
func (w *work) change(ctx context.Context, a *action) error {
	if a.Before == nil {
		c, err := w.Engine.Get(ctx, a.Old)
		if err != nil {
			return err
		}
		a.Before = &settings{c.HostConfig.RestartPolicy, c.HostConfig.Resources}
		if err := w.save(); err != nil {
			return err
		}
	}
	want := w.wants[a.Name].Clone()
	want.Defaults(func() string { return a.Old })
	s := &settings{want.HostConfig.RestartPolicy, want.HostConfig.Resources}
	return w.persist(ctx, func() error { return w.Engine.Update(ctx, a.Old, s.options()) })
}

// Activate lets the new containers take their places, one by one, and sees whether they are any good. If one is not, all is as
// before.
func (b *Backend) Activate(ctx context.Context, job *updateagent.Job) []updateproto.Feedback {
	w := b.work(job)
	if a := w.failed(); a != nil { // and the agent has been restarted on the way back
		return w.back(ctx, a.Name+": "+a.Message)
	}
	for _, a := range w.mine {
		a.With = w.mine[0].Baseline
	}
	for _, a := range inOrder(w.mine, w.wants) {
		if a.Kind == destroy {
			continue
		}
		w.set(a, updateproto.ActionActivating, "")
		w.progress(updateproto.StatusActivating)
		said, err := w.activate(ctx, a)
		if err != nil {
			return w.giveUp(ctx, a, err)
		}
		w.set(a, updateproto.ActionActivationSuccess, said)
	}
	for _, a := range w.mine {
		var err error
		switch a.Kind {
		case create, recreate: // one may not have lived until the last was there
			err = w.alive(ctx, a)
		case destroy:
			err = w.park(ctx, a)
		}
		if err != nil {
			return w.giveUp(ctx, a, err)
		}
	}
	return w.end(updateproto.StatusActivationSuccess, "")
}

// failed returns the action because of which an activation is taken back.
func (w *work) failed() *action {
	for _, a := range w.mine {
		if a.Status == updateproto.ActionActivationFailure {
			return a
		}
	}
	return nil
}

// giveUp takes everything back because of one action.
func (w *work) giveUp(ctx context.Context, a *action, cause error) []updateproto.Feedback {
	if ctx.Err() != nil {
		return nil // somebody else decides what comes next
	}
	why := w.fail(a, updateproto.ActionActivationFailure, cause)
	if err := w.save(); err != nil {
		w.Log.Error("cannot keep that the activation has failed", "error", err)
	}
	return w.back(ctx, why)
}

// back takes everything back.
func (w *work) back(ctx context.Context, why string) []updateproto.Feedback {
	w.undoAll(ctx, w.mine, func(*action) {}, func(a *action, err error) {
		switch {
		case err != nil:
			why += "; " + a.Name + " cannot be taken back: " + err.Error()
		case a.Status == updateproto.ActionActivationSuccess && a.Kind != check:
			w.set(a, updateproto.ActionUpdateFailure, "Taken back.")
		}
	})
	if ctx.Err() != nil {
		return nil
	}
	return w.end(updateproto.StatusActivationFailure, why)
}

// activate lets a container take its place.
func (w *work) activate(ctx context.Context, a *action) (said string, err error) {
	if err := w.makeWay(ctx, a); err != nil {
		return "", err
	}
	switch a.Kind {
	case check:
		return "Existing container runs.", w.persist(ctx, func() error { return w.ensure(ctx, a) })
	case recreate:
		return w.prove(ctx, a, w.health(a), 0, func() error { return w.Engine.Switch(ctx, a.New) })
	case create:
		return w.prove(ctx, a, w.health(a), 0, func() error { return w.Engine.Ensure(ctx, a.New) })
	}
	return w.prove(ctx, a, w.health(a), fromNow, func() error { return w.ensure(ctx, a) })
}

// ensure makes the container of an action run. That somebody has stopped one which was there before is kept.
func (w *work) ensure(ctx context.Context, a *action) error {
	if a.New == "" && !a.Woken {
		c, err := w.Engine.Get(ctx, a.Old)
		if err != nil {
			return err
		}
		if a.Woken = !c.State.HasProcess() && (c.ManuallyStopped || c.State.Status == ctrmodel.Created); a.Woken {
			if err := w.save(); err != nil {
				return err
			}
		}
	}
	return w.Engine.Ensure(ctx, a.id())
}

// health is what a container has to prove.
func (w *work) health(a *action) proof {
	p := defaultProof()
	if want := w.wants[a.Name]; want != nil {
		p = want.proof
	}
	if p.time < 0 {
		p.time = w.Health
	}
	return p
}

// makeWay parks the containers that are to go and have a port which the container of an action needs.
func (w *work) makeWay(ctx context.Context, a *action) error {
	for _, other := range w.mine {
		if other == a || other.Kind != destroy && other.Kind != recreate {
			continue
		}
		c, err := w.Engine.Get(ctx, other.Old)
		if err == nil && contend(c, w.wants[a.Name].Container) {
			err = w.park(ctx, other)
		}
		if unlessGone(err) != nil {
			return err
		}
	}
	return nil
}

// park stops the old container of an action until it is clear whether it is to go.
func (w *work) park(ctx context.Context, a *action) error {
	return unlessGone(w.persist(ctx, func() error { return w.Engine.Park(ctx, a.Old, owner) }))
}

// undoAll makes the containers what they were. What has been parked comes back when all that took its place is gone. It calls
// begin before each action and end after it.
func (w *work) undoAll(ctx context.Context, list []*action, begin func(*action), end func(*action, error)) {
	list = inOrder(list, w.wants)
	slices.Reverse(list)
	slices.SortStableFunc(list, func(a, b *action) int {
		last := map[kind]int{destroy: 1}
		return last[a.Kind] - last[b.Kind]
	})
	var parked []*action
	for _, a := range list {
		begin(a)
		err := unlessGone(w.undo(ctx, a))
		if a.Kind == recreate && err == nil {
			parked = append(parked, a)
		}
		if err != nil {
			w.Log.Error("cannot take back the update of a container", "container", a.Name, "error", err)
		}
		end(a, err)
	}
	for _, a := range parked {
		if err := w.unpark(ctx, a); err != nil {
			w.Log.Error("cannot start a container again", "container", a.Name, "error", err)
			end(a, err)
		}
	}
}

// undo makes the container of an action what it was.
func (w *work) undo(ctx context.Context, a *action) error {
	return w.persist(ctx, func() error {
		switch a.Kind {
		case create:
			return w.Engine.Remove(ctx, a.New, true, ctrmodel.StopOptions{})
		case recreate:
			return w.Engine.Abandon(ctx, a.New)
		case update, check:
			if a.Woken {
				if err := w.Engine.Stop(ctx, a.Old, ctrmodel.StopOptions{}); err != nil {
					return err
				}
			}
			if a.Before != nil {
				return w.Engine.Update(ctx, a.Old, a.Before.options())
			}
		case destroy:
			return w.unpark(ctx, a)
		}
		return nil
	})
}

func (w *work) unpark(ctx context.Context, a *action) error {
	if !slices.Contains(w.Engine.Parked(owner), a.Old) {
		return nil
	}
	return unlessGone(w.persist(ctx, func() error { return w.Engine.Unpark(ctx, a.Old) }))
}

// Verify finds out after a restart of the agent, or of the device, whether the new containers still are any good. What has been
// activated together goes back together. If not all does, there is a result for each baseline.
func (b *Backend) Verify(ctx context.Context, job *updateagent.Job) []updateproto.Feedback {
	w := b.work(job)
	known, cancel := context.WithTimeout(ctx, 5*b.patience()) // the device may just have been started
	err := b.Engine.Known(known)
	cancel()
	var results []updateproto.Feedback
	for rest := w.mine; len(rest) > 0; {
		with := rest[0].With
		apart := func(a *action) bool { return a.With != with }
		w.mine = slices.DeleteFunc(slices.Clone(rest), apart)
		rest = slices.DeleteFunc(slices.Clone(rest), func(a *action) bool { return !apart(a) })
		for _, f := range w.verify(ctx, err) {
			for _, f.Baseline = range titles(w.mine) {
				results = append(results, f)
			}
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	differs := func(f updateproto.Feedback) bool { return f.Status != results[0].Status }
	if len(results) == 0 || slices.ContainsFunc(results, differs) {
		return results
	}
	return []updateproto.Feedback{w.feedback(results[0].Status, results[0].Message)}
}

// verify finds out about containers that have been activated together, unless err says that nobody can.
func (w *work) verify(ctx context.Context, err error) []updateproto.Feedback {
	if a := w.failed(); a != nil { // and the agent has been restarted on the way back
		return w.back(ctx, a.Name+": "+a.Message)
	}
	for _, a := range w.mine {
		switch {
		case err != nil || a.Kind == destroy || a.Once:
		case a.Kind == check:
			err = w.persist(ctx, func() error { return w.ensure(ctx, a) })
		default:
			_, err = w.prove(ctx, a, w.health(a), fromNow, func() error { return w.ensure(ctx, a) })
		}
		if err != nil {
			return w.giveUp(ctx, a, err)
		}
	}
	for _, a := range w.mine {
		if err := w.alive(ctx, a); err != nil {
			return w.giveUp(ctx, a, err)
		}
	}
	return w.end(updateproto.StatusActivationSuccess, "")
}

// Rollback makes the containers what they were before the update, however far it has got.
func (b *Backend) Rollback(ctx context.Context, job *updateagent.Job) []updateproto.Feedback {
	w := b.work(job)
	var errs []error
	w.undoAll(ctx, w.mine, func(a *action) {
		if a.Kind != check {
			w.set(a, updateproto.ActionUpdating, "Rolling back.")
			w.progress(updateproto.StatusRollback)
		}
	}, func(a *action, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.Name, err))
			w.set(a, updateproto.ActionUpdateFailure, "Cannot be rolled back: "+err.Error())
		} else if a.Kind != check {
			w.set(a, updateproto.ActionUpdateFailure, "Rolled back.")
		}
		w.progress(updateproto.StatusRollback)
	})
	if err := errors.Join(errs...); err != nil {
		return w.end(updateproto.StatusRollbackFailure, err.Error())
	}
	return w.end(updateproto.StatusRollbackSuccess, "")
}

// Cleanup removes what is no longer needed: the old containers after a success, the new ones after anything else.
func (b *Backend) Cleanup(ctx context.Context, job *updateagent.Job) []updateproto.Feedback {
	w := b.work(job)
	var errs []error
	failed := func(a *action, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.Name, err))
		}
	}
	w.decide(ctx, failed)
	if ctx.Err() != nil {
		return nil
	}
	w.undoAll(ctx, slices.DeleteFunc(slices.Clone(w.mine), (*action).stays), func(*action) {}, failed)
	for _, a := range w.mine {
		if a.stays() {
			failed(a, w.commit(ctx, a))
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	status, message := updateproto.StatusCleanupSuccess, ""
	if err := errors.Join(errs...); err != nil {
		status, message = updateproto.StatusCleanupFailure, err.Error()
	}
	terminal, why := updateproto.StatusCompleted, message
	if len(w.all) == 0 || slices.ContainsFunc(w.all, func(a *action) bool { return !a.stays() }) {
		terminal, why = updateproto.StatusIncomplete, cmp.Or(w.cause, message)
	}
	return append(w.end(status, message), w.feedback(terminal, why))
}

// decide takes down which actions are to stay, before the first way back is given up: those of baselines that have been
// activated, unless a new container that was activated with them has come to harm since.
func (w *work) decide(ctx context.Context, failed func(*action, error)) {
	harmed := map[string]bool{}
	for _, a := range w.mine {
		if a.Over != "" || !w.success(a) {
			continue
		}
		if err := w.alive(ctx, a); err != nil {
			w.fail(a, updateproto.ActionActivationFailure, err)
			failed(a, err)
			harmed[a.With] = true
		}
	}
	for _, a := range w.mine {
		switch {
		case a.Over != "":
		case w.success(a) && !harmed[a.With]:
			a.Over = committed
		default:
			a.Over = undone
		}
	}
	if err := w.save(); err != nil {
		w.Log.Error("cannot keep what is to become of the update", "error", err)
	}
}

// commit gives up the way back.
func (w *work) commit(ctx context.Context, a *action) error {
	switch a.Kind {
	case recreate:
		if err := w.persist(ctx, func() error { return w.Engine.Commit(ctx, a.New) }); err != nil {
			w.Log.Error("cannot remove the container that has been replaced, trying again with the next update", "container", a.Name, "error", err)
		}
	case destroy:
		err := unlessGone(w.persist(ctx, func() error { return w.Engine.Remove(ctx, a.Old, true, ctrmodel.StopOptions{}) }))
		if err != nil {
			a.Over = undone
			w.fail(a, updateproto.ActionRemovalFailure, err)
			return err
		}
		w.set(a, updateproto.ActionRemovalSuccess, "Existing container has been removed.")
	}
	return nil
}

// success reports whether the baseline of an action has been activated.
func (w *work) success(a *action) bool {
	for _, t := range w.job.Baselines {
		if t.Title == a.Baseline {
			return t.Success
		}
	}
	return w.job.Success
}
