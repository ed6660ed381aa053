// SPDX-License-Identifier: Apache-2.0

package ctrtwin

import (
	"context"
	"errors"
	"slices"
	"time"

	"sdvbox/platform/mqttbus"
)

const (
	maxOutgoing = 8192                   // messages; far more than there are features
	retry       = 200 * time.Millisecond // before the next attempt, when the bus has not noticed yet that it is down
)

// outgoing is a message to publish.
type outgoing struct {
	topic  string
	data   []byte
	keep   bool   // it is of use after the next connect; all else is said anew then
	latest bool   // it takes the place of another such message that still waits
	done   func() // when the broker has it; may be nil
}

// outbox has the messages that are to be published, one after the other.
type outbox struct {
	queue []outgoing
	up    bool
	busy  bool
	over  bool // messages have been left out, the twin has to be described again
}

func (b *outbox) put(o outgoing) {
	if !b.up && !o.keep {
		return
	}
	if o.latest {
		b.queue = slices.DeleteFunc(b.queue, func(o outgoing) bool { return o.latest })
	}
	if len(b.queue) >= maxOutgoing {
		b.drop()
		b.over = true
	}
	b.queue = append(b.queue, o)
}

// down takes note that there is no connection.
func (b *outbox) down() {
	b.up = false
	b.drop()
}

// drop leaves out what would be said anew.
func (b *outbox) drop() {
	b.queue = slices.DeleteFunc(b.queue, func(o outgoing) bool { return !o.keep })
}

// send has the next message published, if it is its turn.
func (t *Twin) send(ctx context.Context) {
	b := &t.out
	if !b.up || b.busy {
		return
	}
	if len(b.queue) == 0 {
		if !b.over {
			return
		}
		b.over = false
		if t.describe(ctx); len(b.queue) == 0 {
			return
		}
	}
	o := b.queue[0]
	b.queue = b.queue[1:]
	b.busy = true
	t.others.Go(func() {
		err := t.bus.Publish(ctx, o.topic, false, o.data)
		if err != nil && ctx.Err() == nil {
			if !errors.Is(err, mqttbus.ErrDown) {
				t.Log.Warn("cannot publish", "topic", o.topic, "error", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(retry):
			}
		}
		t.do(ctx, func() {
			b.busy = false
			switch {
			case err == nil && o.done != nil:
				o.done()
			case err != nil && o.keep:
				b.queue = slices.Insert(b.queue, 0, o)
			}
		})
	})
}
