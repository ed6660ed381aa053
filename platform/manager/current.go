// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"slices"
	"time"
)

// collection decides when the agents are asked for their current state, and
// when what they have said is published. It has no clock and does no I/O.
type collection struct {
	agents  map[string]time.Duration // how long each may take to answer, by domain
	delay   time.Duration            // until what agents tell of their own accord is published
	ask     func(id string)          // all agents
	publish func(id string, r *refresh)

	up       bool
	running  []*refresh // oldest first
	asked    []string   // ids that agents have been asked under, newest last
	due      time.Time  // when to publish what agents have told; zero: nothing new
	requests int        // without an id
}

// refresh is a request for the current state under way.
type refresh struct {
	id      string               // to publish under
	ask     string               // to ask the agents under
	initial bool                 // nobody has asked for it
	waiting map[string]time.Time // until when, by domain
	partial bool                 // some agent has answered
}

// maxRefreshes is how many requests wait for agents at the same time. Further
// ones are answered with what is known.
const maxRefreshes = 32

// connected asks again for all that is wanted: neither question nor answer
// need have outlived the connection.
func (c *collection) connected(now time.Time) {
	c.up = true
	c.due = time.Time{}
	old := c.running
	c.running = nil
	c.begin(now, &refresh{id: fmt.Sprintf("initial-current-state-%d", now.UnixMilli()), initial: true})
	for _, r := range old {
		if !r.initial {
			c.begin(now, &refresh{id: r.id})
		}
	}
}

func (c *collection) disconnected() { c.up = false }

// refresh begins to answer a request.
func (c *collection) refresh(now time.Time, id string) {
	if slices.ContainsFunc(c.running, func(r *refresh) bool { return r.id == id && !r.partial }) {
		return // what comes of that one will be new enough
	}
	if len(c.running) >= maxRefreshes {
		c.finish(&refresh{id: id})
		return
	}
	c.begin(now, &refresh{id: id})
}

func (c *collection) begin(now time.Time, r *refresh) {
	c.running = append(c.running, r)
	if !c.up {
		return
	}
	r.ask = r.id
	if r.ask == "" { // agents need not answer a request without an id
		c.requests++
		r.ask = fmt.Sprintf("current-state-%d-%d", now.UnixMilli(), c.requests)
	}
	r.waiting = make(map[string]time.Time)
	for domain, limit := range c.agents {
		r.waiting[domain] = now.Add(limit)
	}
	c.asked = append(c.asked, r.ask)
	c.asked = c.asked[max(0, len(c.asked)-maxRefreshes):]
	c.ask(r.ask)
	c.check(r)
}

// answered takes a live current state under an id. It reports whether that
// answers a request of this process, be it too late.
func (c *collection) answered(domain, id string) bool {
	for _, r := range slices.Clone(c.running) {
		if _, waits := r.waiting[domain]; waits && r.ask == id {
			delete(r.waiting, domain)
			r.partial = true
			c.check(r)
		}
	}
	return slices.Contains(c.asked, id)
}

// told takes that an agent has said something new of its own accord.
func (c *collection) told(now time.Time) {
	switch {
	case !c.up: // connecting refreshes all
	case c.delay <= 0:
		c.publish("", nil)
	case c.due.IsZero():
		c.due = now.Add(c.delay)
	}
}

// deadline is when tick has something to do; zero: not at all.
func (c *collection) deadline() time.Time {
	if !c.up {
		return time.Time{}
	}
	next := c.due
	for _, r := range c.running {
		for _, t := range r.waiting {
			if next.IsZero() || t.Before(next) {
				next = t
			}
		}
	}
	return next
}

func (c *collection) tick(now time.Time) {
	if !c.up {
		return
	}
	for _, r := range slices.Clone(c.running) {
		for domain, t := range r.waiting {
			if !now.Before(t) {
				delete(r.waiting, domain)
				c.check(r)
			}
		}
	}
	if !c.due.IsZero() && !now.Before(c.due) {
		c.due = time.Time{}
		c.publish("", nil)
	}
}

// check publishes what has been gathered when no agent is waited for any more.
func (c *collection) check(r *refresh) {
	if len(r.waiting) == 0 {
		c.finish(r)
	}
}

func (c *collection) finish(r *refresh) {
	c.due = time.Time{}
	c.publish(r.id, r)
}

// published takes the outcome of a publication. One that did not get through
// begins again with the next connection.
func (c *collection) published(r *refresh, ok bool) {
	if ok {
		c.running = slices.DeleteFunc(c.running, func(x *refresh) bool { return x == r })
	}
}
