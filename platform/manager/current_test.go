// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// clerk runs a collection in a time of its own and notes what it does.
type clerk struct {
	collection
	now   time.Time
	notes []string
	runs  []*refresh // published, by nobody confirmed yet
}

const (
	quick = 10 * time.Second
	slow  = 30 * time.Second
	delay = 20 * time.Second
)

func newClerk() *clerk {
	c := &clerk{now: time.UnixMilli(1_000_000)}
	c.agents = map[string]time.Duration{"quick": quick, "slow": slow}
	c.delay = delay
	c.ask = func(id string) { c.notes = append(c.notes, "ask "+id) }
	c.publish = func(id string, r *refresh) {
		c.notes = append(c.notes, "publish "+id)
		c.runs = append(c.runs, r)
	}
	return c
}

// pass lets time pass, as long as there is something to do.
func (c *clerk) pass(d time.Duration) {
	for end := c.now.Add(d); ; {
		next := c.deadline()
		if next.IsZero() || next.After(end) {
			c.now = end
			return
		}
		c.now = next
		c.tick(c.now)
	}
}

func (c *clerk) confirm(ok bool) {
	for _, r := range c.runs {
		c.published(r, ok)
	}
	c.runs = nil
}

// did compares what has happened since the last call.
func (c *clerk) did(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(c.notes, want) {
		t.Errorf("did %q, want %q", c.notes, want)
	}
	c.notes = nil
}

func TestAConnectCollectsAndPublishes(t *testing.T) {
	c := newClerk()
	c.connected(c.now)
	c.did(t, "ask initial-current-state-1000000")
	c.answered("quick", "initial-current-state-1000000")
	c.answered("quick", "initial-current-state-1000000")
	c.answered("slow", "other")
	c.did(t)
	c.answered("slow", "initial-current-state-1000000")
	c.did(t, "publish initial-current-state-1000000")
	c.confirm(true)
	c.pass(time.Hour)
	c.did(t)
}

func TestEachAgentIsWaitedForNoLongerThanItMayTake(t *testing.T) {
	c := newClerk()
	c.connected(c.now)
	c.did(t, "ask initial-current-state-1000000")
	c.pass(quick)
	if !c.answered("slow", "initial-current-state-1000000") {
		t.Error("an answer is not taken for one")
	}
	c.did(t, "publish initial-current-state-1000000") // without quick
	if !c.answered("quick", "initial-current-state-1000000") {
		t.Error("a late answer is not taken for one")
	}
	if c.answered("quick", "initial-current-state-1") {
		t.Error("an answer to another process is taken for one")
	}
	c.confirm(true)
	c.refresh(c.now, "a")
	c.did(t, "ask a")
	c.pass(slow - 1)
	c.did(t)
	c.pass(1)
	c.did(t, "publish a")
}

func TestRequestsAreAnsweredAtTheSameTime(t *testing.T) {
	c := newClerk()
	c.connected(c.now)
	c.refresh(c.now, "a")
	c.refresh(c.now, "a") // the same
	c.refresh(c.now, "b")
	c.did(t, "ask initial-current-state-1000000", "ask a", "ask b")
	c.answered("quick", "b")
	c.answered("slow", "b")
	c.did(t, "publish b")
	c.answered("quick", "a")
	c.refresh(c.now, "a") // quick may have something new to say by now
	c.did(t, "ask a")
	c.answered("slow", "a")
	c.did(t, "publish a")
	c.answered("quick", "a")
	c.did(t, "publish a")
}

func TestARequestWithoutAnIDIsAnsweredWithoutOne(t *testing.T) {
	c := newClerk()
	c.connected(c.now)
	c.notes = nil
	c.refresh(c.now, "")
	c.did(t, "ask current-state-1000000-1")
	c.answered("quick", "current-state-1000000-1")
	c.answered("slow", "current-state-1000000-1")
	c.did(t, "publish ")
}

func TestTooManyRequestsAreAnsweredWithWhatIsKnown(t *testing.T) {
	c := newClerk()
	c.connected(c.now)
	for i := range maxRefreshes - 1 {
		c.refresh(c.now, fmt.Sprint(i))
	}
	c.notes = nil
	c.refresh(c.now, "late")
	c.did(t, "publish late")
	c.pass(slow)
	c.confirm(true)
	c.notes = nil
	c.refresh(c.now, "later")
	c.did(t, "ask later")
}

func TestAnOutageBeginsRequestsAgain(t *testing.T) {
	c := newClerk()
	c.connected(c.now)
	c.refresh(c.now, "asked before")
	c.answered("quick", "asked before")
	c.refresh(c.now, "not through")
	c.answered("quick", "not through")
	c.answered("slow", "not through")
	c.confirm(false)
	c.disconnected()
	c.refresh(c.now, "asked meanwhile")
	c.notes = nil
	c.pass(time.Hour)
	c.did(t)
	c.connected(c.now)
	c.did(t, "ask initial-current-state-4600000", "ask asked before", "ask not through", "ask asked meanwhile")
	c.pass(slow)
	slices.Sort(c.notes)
	c.did(t, "publish asked before", "publish asked meanwhile", "publish initial-current-state-4600000", "publish not through")
	c.confirm(true)
	if len(c.running) != 0 {
		t.Errorf("%d requests remain", len(c.running))
	}
}

func TestWhatAgentsTellIsPublishedTogether(t *testing.T) {
	c := newClerk()
	c.told(c.now) // the connect will tell it
	c.connected(c.now)
	c.pass(slow)
	c.confirm(true)
	c.notes = nil

	c.told(c.now)
	c.pass(delay / 2)
	c.told(c.now)
	c.did(t)
	c.pass(delay / 2)
	c.did(t, "publish ")
	c.pass(time.Hour)
	c.did(t)

	c.told(c.now)
	c.refresh(c.now, "a")
	c.answered("quick", "a")
	c.answered("slow", "a")
	c.pass(time.Hour)
	c.did(t, "ask a", "publish a") // with that all is told

	c.collection.delay = 0
	c.told(c.now)
	c.did(t, "publish ")
}

func TestWithoutAgentsTheAnswerComesAtOnce(t *testing.T) {
	c := newClerk()
	c.agents = nil
	c.connected(c.now)
	c.refresh(c.now, "a")
	if got := strings.Join(c.notes, ", "); got != "ask initial-current-state-1000000, publish initial-current-state-1000000, ask a, publish a" {
		t.Error(got)
	}
}
