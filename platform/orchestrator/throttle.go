// SPDX-License-Identifier: Apache-2.0

package orchestrator

import (
	"reflect"
	"time"
)

// throttle decides which RUNNING feedback is published. The first one is, and
// begins an interval; of those that follow within it only the newest is kept, to
// be published at its end if it says something else. The next one begins an
// interval again.
type throttle struct {
	interval time.Duration // none is published if it is not positive

	end  time.Time // of the interval; zero outside of one
	said Say       // published last
	held *Say      // newest within the interval
}

// pass takes a RUNNING and reports whether it is to be published now.
func (t *throttle) pass(now time.Time, s Say) bool {
	switch {
	case t.interval <= 0:
		return false
	case t.end.IsZero() || t.said.ID != s.ID:
		t.end, t.said, t.held = now.Add(t.interval), s, nil
		return true
	default:
		t.held = &s
		return false
	}
}

// expire returns what is to be published now that an interval may have ended,
// if anything.
func (t *throttle) expire(now time.Time) *Say {
	if t.end.IsZero() || now.Before(t.end) {
		return nil
	}
	s := t.held
	t.end, t.held = time.Time{}, nil
	if s == nil || reflect.DeepEqual(s.Feedback, t.said.Feedback) {
		return nil
	}
	t.said = *s
	return s
}

// stop forgets all about the activity id: nothing follows its terminal feedback.
func (t *throttle) stop(id string) {
	if t.said.ID == id {
		t.reset()
	}
}

// reset makes the next RUNNING the first one.
func (t *throttle) reset() { *t = throttle{interval: t.interval} }
