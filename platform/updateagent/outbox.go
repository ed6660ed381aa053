// SPDX-License-Identifier: Apache-2.0

package updateagent

import (
	"context"
	"sync"
)

// item is a feedback in the outbox.
type item struct {
	outgoing
	last     bool // of State.Unsent
	progress bool // may be left out

	connection int
}

// maxWaiting is how many items may wait before progress is left out.
const maxWaiting = 64

// outbox is a queue between the agent's loop, which never waits, and its
// publisher. While there is no connection it takes nothing in: at the next one
// the machine repeats what matters.
type outbox struct {
	mu         sync.Mutex
	closed     bool
	connection int // which one the items are for
	items      []item
	wake       chan struct{}
}

func (o *outbox) init() {
	o.closed = true
	o.wake = make(chan struct{}, 1)
}

func (o *outbox) open() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = false
	o.connection++
	o.items = nil
}

// is reports whether the connection is still the one of an item that could not
// be sent.
func (o *outbox) is(connection int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.closed && o.connection == connection
}

func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.items = nil
}

func (o *outbox) add(it item) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	if it.progress && len(o.items) >= maxWaiting || len(o.items) >= 10*maxWaiting {
		return
	}
	it.connection = o.connection
	o.items = append(o.items, it)
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *outbox) next(ctx context.Context) (item, error) {
	for {
		o.mu.Lock()
		if len(o.items) > 0 {
			it := o.items[0]
			o.items = o.items[1:]
			o.mu.Unlock()
			return it, nil
		}
		o.mu.Unlock()
		select {
		case <-ctx.Done():
			return item{}, ctx.Err()
		case <-o.wake:
		}
	}
}
