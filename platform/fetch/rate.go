// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"time"
)

// limiter spreads bytes over time. Time in which nothing came is not made up
// for later.
type limiter struct {
	rate int64 // bytes per second, 0: no limit
	next time.Time
}

// wait accounts for n bytes and returns when the next may come.
func (l *limiter) wait(ctx context.Context, n int) error {
	if l.rate <= 0 {
		return nil
	}
	now := time.Now()
	if l.next.Before(now) {
		l.next = now
	}
	l.next = l.next.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	return sleep(ctx, l.next.Sub(now))
}

// chunk is how much to read at once, at most limit, so that a slow rate still
// flows instead of stuttering.
func (l *limiter) chunk(limit int) int {
	if l.rate <= 0 {
		return limit
	}
	return int(max(1, min(int64(limit), l.rate/10)))
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
