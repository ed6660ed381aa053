// SPDX-License-Identifier: Apache-2.0

package orchestrator

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"sdvbox/platform/updateproto"
)

func TestRunningIsPublishedOnceAtOnceAndThenAtTheEndOfTheInterval(t *testing.T) {
	for _, test := range []struct {
		name     string
		interval time.Duration
		script   string // second:what, what is a RUNNING (id and progress), "." for time passing, "stop ID" or "reset"
		want     string // second:what is published
	}{
		{"never without an interval", 0, "0:a1 5:a2 70:a3", ""},
		{"first one at once", 60 * time.Second, "3:a1", "3:a1"},
		{"newest one at the end of the interval", 60 * time.Second, "0:a1 10:a2 20:a3 59:. 60:.", "0:a1 60:a3"},
		{"nothing at the end if it says the same", 60 * time.Second, "0:a1 10:a2 20:a1 60:. 61:.", "0:a1"},
		{"the end begins no interval", 60 * time.Second, "0:a1 10:a2 60:. 61:a3 62:a4 120:. 121:.", "0:a1 60:a2 61:a3 121:a4"},
		{"at once again after a silent end, even if it says the same", 60 * time.Second, "0:a1 60:. 61:a1", "0:a1 61:a1"},
		{"nothing follows the end of the activity", 60 * time.Second, "0:a1 10:a2 11:stop-a 60:.", "0:a1"},
		{"the end of another activity changes nothing", 60 * time.Second, "0:a1 10:a2 11:stop-b 60:.", "0:a1 60:a2"},
		{"the next activity waits for nothing", 60 * time.Second, "0:a1 10:a2 11:stop-a 12:b1 13:b2 60:. 72:.", "0:a1 12:b1 72:b2"},
		{"nor if the one before did not end", 60 * time.Second, "0:a1 10:a2 12:b1 60:. 72:.", "0:a1 12:b1"},
		{"a new connection begins anew", 60 * time.Second, "0:a1 10:a2 11:reset 12:a3 60:. 72:.", "0:a1 12:a3"},
	} {
		th := throttle{interval: test.interval}
		var got []string
		for _, step := range strings.Fields(test.script) {
			var second int
			var what string
			fmt.Sscanf(step, "%d:%s", &second, &what)
			now := time.Unix(int64(second), 0)
			if s := th.expire(now); s != nil {
				got = append(got, fmt.Sprintf("%d:%s%s", second, s.ID, s.Feedback.Message))
			}
			switch id, stop := strings.CutPrefix(what, "stop-"); {
			case stop:
				th.stop(id)
			case what == "reset":
				th.reset()
			case what != ".":
				s := Say{ID: what[:1], At: now, Feedback: updateproto.Feedback{Message: what[1:]}, Kind: Running}
				if th.pass(now, s) {
					got = append(got, step)
				}
			}
		}
		if s := strings.Join(got, " "); s != test.want {
			t.Errorf("%s: published %q, want %q", test.name, s, test.want)
		}
	}
}
