// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
)

func TestPausesDoubleUpToTheLongest(t *testing.T) {
	var p pauses
	for i, want := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
		if got := p.next(time.Second, time.Second); got != want*time.Millisecond {
			t.Errorf("pause %d: %v, want %v ms", i, got, int(want))
		}
	}
	if got := p.next(10*time.Second, time.Second); got != firstPause {
		t.Errorf("after a long run: %v", got)
	}
	for range 20 {
		p.next(0, 0)
	}
	if got := p.next(0, 0); got != time.Minute {
		t.Errorf("longest pause by default: %v", got)
	}
	if got := new(pauses).next(0, time.Millisecond); got != time.Millisecond {
		t.Errorf("first pause, longer than the longest: %v", got)
	}
}

func TestPolicies(t *testing.T) {
	for _, c := range []struct {
		policy   string
		max      int64
		failed   bool
		attempts int64
		want     bool
	}{
		{ctrmodel.RestartNever, 0, true, 0, false},
		{ctrmodel.RestartAlways, 0, false, 1000, true},
		{ctrmodel.RestartUnlessStopped, 0, false, 1000, true},
		{ctrmodel.RestartOnFailure, 0, false, 0, false},
		{ctrmodel.RestartOnFailure, 0, true, 1000, true},
		{ctrmodel.RestartOnFailure, 3, true, 2, true},
		{ctrmodel.RestartOnFailure, 3, true, 3, false},
	} {
		p := ctrmodel.RestartPolicy{Type: c.policy, MaxRetries: c.max}
		if got := again(p, c.failed, c.attempts); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// A machine that is busy clears away what has ended more slowly than the first pause takes.
func TestPauseThatIsOverEarlyIsNotTheLast(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a", policy(ctrmodel.RestartAlways, 0))
	r.fake.behave(func() {
		r.fake.release = func(string) error {
			time.Sleep(2 * firstPause)
			return nil
		}
	})
	r.fake.exit(id, 0)
	r.await(id, "restarted", func(c *ctrmodel.Container) bool { return c.RestartCount == 1 && c.State.Running })
}
