// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"sdvbox/platform/ctrmodel"
)

// Succession is one container that is to take the place of another one, of the same name. It stays open, over restarts and
// reboots, until its owner commits or abandons it:
//
// Succeed creates the new one beside the old one. Switch ends the process of the old one and starts the new one. Commit
// removes the old one; Abandon removes the new one instead, and the old one is as wanted again. Each of them may be repeated,
// and goes on where it was cut off. At any time only the one in charge may have a process: the old one, until the switch
// has been written down, then the new one.
type Succession struct {
	ID       string // of the new container
	Replaces string // id of the old one
	Owner    string // who is to say how it ends; the engine itself if it is empty, and the deployer's
	Switched bool
}

// deployOwner is the owner of what the deployer replaces.
const deployOwner = "descriptor"

// Succeed creates c, which may have the name of the container with an id, to replace that. If there is such a succession with
// the id of c already, it returns that container as it is.
func (e *Engine) Succeed(ctx context.Context, id, owner string, c *ctrmodel.Container) (*ctrmodel.Container, error) {
	if _, err := e.actor(id); err != nil {
		return nil, err
	}
	if a, err := e.actor(c.ID); err == nil {
		if s, open := e.succession(c.ID); open && s.Replaces == id && s.Owner == owner {
			err := e.do(ctx, c.ID, starting, func(a *actor, _ context.Context) error { // not before it is made
				if a.rec.State.Status == ctrmodel.Dead {
					return a.refuse("is being removed")
				}
				return nil
			})
			if err == nil {
				return e.Get(ctx, c.ID)
			}
			if k := ctrmodel.KindOf(err); k != ctrmodel.NotFound && k != ctrmodel.FailedPrecondition {
				return nil, err
			}
			select { // half of one, which an agent that was killed has left
			case <-a.gone:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	return e.create(ctx, c, Succession{Replaces: id, Owner: owner})
}

// Switch lets the container with an id take the place of the one that it is to replace. It fails if that does not start.
func (e *Engine) Switch(ctx context.Context, id string) error {
	err := e.do(ctx, id, stopping, func(a *actor, _ context.Context) error {
		switch {
		case a.rec.State.Status == ctrmodel.Dead:
			return a.refuse("is being removed")
		case a.rec.Replaces == "" || a.rec.Switched:
			return nil
		}
		// To be written at once: whoever reads it starts the new one, after the end of the old one.
		return a.want(func(r *record) { r.Switched, r.Run, r.ManuallyStopped, r.RestartCount = true, true, false, 0 })
	})
	if err != nil {
		return err
	}
	if s, open := e.succession(id); open {
		err := e.do(ctx, s.Replaces, stopping, func(a *actor, ctx context.Context) error {
			return a.settle(ctx, ctrmodel.StopOptions{Force: true})
		})
		if err := e.ifThere(s.Replaces, err); err != nil {
			return err
		}
	}
	return e.do(ctx, id, starting, (*actor).succeed)
}

// Commit removes the container that has been replaced.
func (e *Engine) Commit(ctx context.Context, id string) error {
	s, open := e.succession(id)
	if !open {
		return nil
	}
	if !s.Switched {
		return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "container %s has not taken the place of container %s yet", id, s.Replaces)
	}
	if a, err := e.actor(id); err == nil && e.there(s.Replaces) && !a.view.Load().StartedBefore {
		return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "container %s, which is to replace container %s, has never run", id, s.Replaces)
	}
	err := e.Remove(ctx, s.Replaces, true, ctrmodel.StopOptions{})
	if err := e.ifThere(s.Replaces, err); err != nil {
		return err
	}
	return e.do(ctx, id, starting, func(a *actor, _ context.Context) error {
		return a.want(func(r *record) { r.Replaces, r.Owner, r.Switched = "", "", false })
	})
}

// Abandon removes a container that was to replace another one, and makes that as wanted again. There is no way back once
// Commit has begun to remove that.
func (e *Engine) Abandon(ctx context.Context, id string) error {
	a, err := e.actor(id)
	if err != nil {
		return nil
	}
	s, open := e.succession(id)
	switch {
	case !open:
		return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "container %s replaces no other one", a.view.Load().Name)
	case s.Switched && !e.there(s.Replaces):
		return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "container %s has been removed, and cannot come back for container %s", s.Replaces, id)
	}
	err = e.Remove(ctx, id, true, ctrmodel.StopOptions{})
	if err := e.ifThere(id, err); err != nil {
		return err
	}
	return e.ifThere(s.Replaces, e.do(ctx, s.Replaces, starting, func(a *actor, ctx context.Context) error {
		a.cancelTimer() // it may have failed to come back already: whoever waits wants to know
		return a.keep(ctx)
	}))
}

// Successions returns those of an owner that are open.
func (e *Engine) Successions(owner string) []Succession {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []Succession
	for _, s := range e.successions {
		if s.Owner == owner && e.actors[s.ID].view.Load().State.Status != ctrmodel.Dead {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b Succession) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Park takes the process from a container until Unpark, over restarts and reboots. What is wanted of the container stays as it
// is. Whoever starts it by hand unparks it.
func (e *Engine) Park(ctx context.Context, id, owner string) error {
	return e.do(ctx, id, stopping, func(a *actor, ctx context.Context) error {
		if err := a.want(func(r *record) { r.Parked, r.Parker = true, owner }); err != nil {
			return err
		}
		a.cancelTimer()
		return a.settle(ctx, ctrmodel.StopOptions{Force: true})
	})
}

// Unpark makes a container as wanted again.
func (e *Engine) Unpark(ctx context.Context, id string) error {
	err := e.do(ctx, id, starting, func(a *actor, ctx context.Context) error {
		if err := a.want(func(r *record) { r.Parked, r.Parker = false, "" }); err != nil {
			return err
		}
		return a.keep(ctx)
	})
	return e.ifThere(id, err)
}

// Parked returns the ids of the containers that an owner has parked.
func (e *Engine) Parked(owner string) []string {
	var ids []string
	for _, a := range e.list() {
		if r := a.view.Load(); r.Parked && r.Parker == owner {
			ids = append(ids, a.id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Ensure makes a container run, not paused. The restart policy takes care of a start that fails, but it is an error.
func (e *Engine) Ensure(ctx context.Context, id string) error {
	return e.do(ctx, id, starting, (*actor).ensure)
}

// Known waits until containerd is there and every container has been looked at since the engine began.
func (e *Engine) Known(ctx context.Context) error {
	for _, a := range e.list() {
		select {
		case <-a.looked:
		case <-a.gone:
		case <-e.life.Done():
			return stoppingError()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	e.mu.Lock()
	up := e.up
	e.mu.Unlock()
	select {
	case <-up:
		return nil
	case <-e.life.Done():
		return stoppingError()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Replace puts c in the place of the container with an id, which comes back if c does not start.
func (e *Engine) Replace(ctx context.Context, id string, c *ctrmodel.Container) (*ctrmodel.Container, error) {
	c, err := e.Succeed(ctx, id, "", c)
	if err == nil {
		err = e.takeOver(ctx, c.ID)
	}
	if err != nil {
		return nil, err
	}
	return e.Get(ctx, c.ID)
}

// takeOver ends a succession in one go, one way or the other. What circumstances do not permit now is done later.
func (e *Engine) takeOver(ctx context.Context, id string) error {
	err := e.Switch(ctx, id)
	if err == nil {
		err = e.Commit(ctx, id)
	} else if !passing(err) {
		err = errors.Join(err, e.Abandon(context.WithoutCancel(ctx), id))
	}
	if _, open := e.succession(id); open {
		e.orphan(id)
	}
	return err
}

// passing tells whether an error is about circumstances rather than a container: the same may work later.
func passing(err error) bool {
	switch ctrmodel.KindOf(err) {
	case ctrmodel.Unavailable, ctrmodel.DeadlineExceeded, ctrmodel.Cancelled:
		return true
	}
	return false
}

// orphan leaves a succession of the engine's own to resolve.
func (e *Engine) orphan(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.orphans[id] = true
	select {
	case e.orphaned <- struct{}{}:
	default:
	}
}

// resolve ends the successions of the engine's own that have been cut off.
func (e *Engine) resolve(ctx context.Context) {
	for {
		e.mu.Lock()
		var ids []string
		for id := range e.orphans {
			ids = append(ids, id)
		}
		e.mu.Unlock()
		failed := false
		for _, id := range ids {
			err := e.Known(ctx)
			if err == nil {
				err = e.resolveOne(ctx, id)
			}
			if err != nil {
				failed = true
				continue
			}
			e.mu.Lock()
			delete(e.orphans, id)
			e.mu.Unlock()
		}
		var again <-chan time.Time
		if failed {
			again = time.After(e.times.retry)
		}
		select {
		case <-again:
		case <-e.orphaned:
		case <-ctx.Done():
			return
		}
	}
}

// resolveOne goes on with a switch as long as the new container starts, or the old one is no more; else it goes back.
func (e *Engine) resolveOne(ctx context.Context, id string) error {
	s, open := e.succession(id)
	if !open {
		return nil
	}
	if s.Switched {
		err := e.Ensure(ctx, id)
		if err != nil && passing(err) {
			return err
		}
		if err == nil || !e.there(s.Replaces) {
			return e.Commit(ctx, id)
		}
		e.Log.Warn("container does not start, the one that it has replaced comes back", "id", id, "error", err)
	}
	return e.Abandon(ctx, id)
}

func (e *Engine) succession(id string) (s Succession, open bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, open = e.successions[id]
	return s, open
}

// ifThere is an error about a container that does not count if there is no such container.
func (e *Engine) ifThere(id string, err error) error {
	if _, gone := e.actor(id); gone != nil {
		return nil
	}
	return err
}

// there reports whether there is a container that is not about to go.
func (e *Engine) there(id string) bool {
	a, err := e.actor(id)
	return err == nil && a.view.Load().State.Status != ctrmodel.Dead
}

// busy reports whether somebody is about to replace a container, or has taken its process away for a while.
func (e *Engine) busy(id string) bool {
	a, err := e.actor(id)
	if err != nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	_, old := e.successor(id)
	_, fresh := e.successions[id]
	return old || fresh || a.view.Load().Parked
}

// successor returns the succession in which a container is the old one. The lock is held.
func (e *Engine) successor(id string) (Succession, bool) {
	for _, s := range e.successions {
		if s.Replaces == id {
			return s, true
		}
	}
	return Succession{}, false
}

// superseded reports whether another container is in charge in place of this one. The lock is held.
func (e *Engine) superseded(id string) bool {
	s, open := e.successor(id)
	return open && s.Switched
}

// note takes over what a record says of a succession, and who has the name for that. The lock is held.
func (e *Engine) note(r *record) {
	if r.Replaces == "" {
		delete(e.successions, r.ID)
		return
	}
	e.successions[r.ID] = Succession{r.ID, r.Replaces, r.Owner, r.Switched}
	old := e.actors[r.Replaces]
	same := old != nil && old.view.Load().Name == r.Name
	if same && (e.names[r.Name] == r.ID || e.names[r.Name] == r.Replaces) {
		e.names[r.Name] = r.ID
		if !r.Switched {
			e.names[r.Name] = r.Replaces
		}
	}
	if old != nil {
		old.look()
	}
}

// enter lets a container have a process, unless another one is in charge or still in its place.
func (e *Engine) enter(a *actor) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.superseded(a.id) {
		return false
	}
	if e.displaced(a.id) {
		return false
	}
	a.inside = true
	return true
}

// displaced reports whether the container that this one is to replace is in charge, or still in the place. The lock is held.
func (e *Engine) displaced(id string) bool {
	s, open := e.successions[id]
	old := e.actors[s.Replaces]
	return open && (!s.Switched || old != nil && old.inside)
}

// leave says that a container has no process, and will not get one without enter.
func (e *Engine) leave(a *actor) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a.inside = false
	if s, open := e.successor(a.id); open {
		if next := e.actors[s.ID]; next != nil {
			next.look()
		}
	}
}
