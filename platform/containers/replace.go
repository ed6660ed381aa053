// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"context"
	"errors"

	"sdvbox/platform/ctrmodel"
)

// Replacing a container goes in steps, between which the agent may be killed: Succeed creates the new one beside the old
// one, Switch ends the old process and starts the new one, Commit removes the old container. Abandon goes back instead. A
// replacement that has not been switched when the agent starts is abandoned; one that has waits for Commit or Abandon.

// Replace puts c in the place of the container with an id, which comes back if c does not start.
func (e *Engine) Replace(ctx context.Context, id string, c *ctrmodel.Container) (*ctrmodel.Container, error) {
	c, err := e.Succeed(ctx, id, c)
	if err != nil {
		return nil, err
	}
	if err := e.Switch(ctx, c.ID); err != nil {
		return nil, errors.Join(err, e.Abandon(context.WithoutCancel(ctx), c.ID))
	}
	if err := e.Commit(ctx, c.ID); err != nil {
		return nil, err
	}
	return e.Get(ctx, c.ID)
}

// Succeed creates c, which may have the name of the container with an id, to replace that.
func (e *Engine) Succeed(ctx context.Context, id string, c *ctrmodel.Container) (*ctrmodel.Container, error) {
	if _, err := e.actor(id); err != nil {
		return nil, err
	}
	return e.create(ctx, c, id)
}

// Switch starts the container with an id after it has stopped the one that is to be replaced.
func (e *Engine) Switch(ctx context.Context, id string) error {
	old, err := e.replaced(ctx, id)
	if err != nil {
		return err
	}
	if err := e.do(ctx, old, stopping, (*actor).hold); err != nil && ctrmodel.KindOf(err) != ctrmodel.NotFound {
		return err
	}
	return e.Start(ctx, id)
}

// Commit removes the container that has been replaced.
func (e *Engine) Commit(ctx context.Context, id string) error {
	old, err := e.replaced(ctx, id)
	if err != nil {
		return err
	}
	if err := e.Remove(ctx, old, true, ctrmodel.StopOptions{}); err != nil && ctrmodel.KindOf(err) != ctrmodel.NotFound {
		return err
	}
	return e.do(ctx, id, starting, func(a *actor, _ context.Context) error {
		return a.want(func(r *record) { r.Replaces = "" })
	})
}

// Abandon removes a container that was to replace another one, and makes that as wanted again.
func (e *Engine) Abandon(ctx context.Context, id string) error {
	old, err := e.replaced(ctx, id)
	if err != nil {
		return err
	}
	if err := e.Remove(ctx, id, true, ctrmodel.StopOptions{}); err != nil {
		return err
	}
	return e.do(ctx, old, starting, (*actor).unhold)
}

// replaced returns the id of the container that another one is to replace.
func (e *Engine) replaced(ctx context.Context, id string) (old string, err error) {
	err = e.do(ctx, id, starting, func(a *actor, _ context.Context) error {
		if old = a.rec.Replaces; old == "" {
			return a.refuse("replaces no other one")
		}
		return nil
	})
	return old, err
}

// resumeReplacements goes on where an agent was killed while it replaced containers.
func (e *Engine) resumeReplacements() {
	for _, a := range e.actors {
		r := a.rec
		if r.Replaces == "" {
			continue
		}
		old := e.actors[r.Replaces]
		switch {
		case old == nil || old.rec.State.Status == ctrmodel.Dead:
			r.Replaces = "" // written when the record is the next time; until then it is found out again
			e.names[r.Name] = a.id
		case r.StartedBefore:
			old.held = true
			e.names[old.rec.Name] = old.id
		default:
			r.State.SetDead()
			e.names[old.rec.Name] = old.id
		}
	}
}
