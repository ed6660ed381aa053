// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"context"
	"sync"

	"sdvbox/platform/ctrmodel"
)

// backlog is how many events a subscriber may be behind.
const backlog = 1024

// hub hands events on to those who subscribed.
type hub struct {
	mu   sync.Mutex
	subs map[chan ctrmodel.Event]bool
}

// subscribe returns a channel of all events from now on, those of one container in order. It is closed when ctx ends, and
// when the reader is so far behind that events would be lost.
func (h *hub) subscribe(ctx context.Context) <-chan ctrmodel.Event {
	c := make(chan ctrmodel.Event, backlog)
	h.mu.Lock()
	if h.subs == nil {
		h.subs = map[chan ctrmodel.Event]bool{}
	}
	h.subs[c] = true
	h.mu.Unlock()
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.drop(c)
	})
	return c
}

// drop ends a subscription. The lock is held.
func (h *hub) drop(c chan ctrmodel.Event) {
	if h.subs[c] {
		delete(h.subs, c)
		close(c)
	}
}

// publish never waits.
func (h *hub) publish(e ctrmodel.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.subs {
		select {
		case c <- e:
		default:
			h.drop(c)
		}
	}
}
