// SPDX-License-Identifier: Apache-2.0

// Package health judges whether this system does its work: checks with a name, a verdict and a hint. Together they are the
// gates that a freshly started slot must pass before it is confirmed.
package health

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Check is one thing that has to be in order.
type Check struct {
	Name    string
	Hint    string // what a technician can do about a failure
	Timeout time.Duration
	Run     func(ctx context.Context) error // nil means in order; the error says what is wrong
}

// Result is the verdict of a check.
type Result struct {
	Name   string        `json:"name"`
	OK     bool          `json:"ok"`
	Reason string        `json:"reason,omitempty"`
	Hint   string        `json:"hint,omitempty"`
	Took   time.Duration `json:"-"`
}

// Run runs all checks at once and returns their results in the same order. It returns in time even if a check does not heed
// its context, as one that writes to a dead disk.
func Run(ctx context.Context, checks []Check) []Result {
	results := make([]Result, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() { results[i] = c.run(ctx) })
	}
	wg.Wait()
	return results
}

func (c Check) run(ctx context.Context) Result {
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("no answer within %v", c.Timeout))
	defer cancel()
	start := time.Now()
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	var err error
	select {
	case err = <-done:
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	r := Result{Name: c.Name, OK: err == nil, Took: time.Since(start)}
	if err != nil {
		r.Reason, r.Hint = err.Error(), c.Hint
	}
	return r
}

// Failed joins the names and reasons of the checks that failed, "" if none did.
func Failed(results []Result) string {
	var failed []string
	for _, r := range results {
		if !r.OK {
			failed = append(failed, r.Name+": "+r.Reason)
		}
	}
	return strings.Join(failed, "; ")
}
