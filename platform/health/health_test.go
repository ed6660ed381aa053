// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestRunKeepsTheOrderAndSurvivesADeafCheck(t *testing.T) {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	start := time.Now()
	results := Run(t.Context(), []Check{
		{Name: "deaf", Hint: "h", Timeout: 50 * time.Millisecond, Run: func(context.Context) error { <-release; return nil }},
		{Name: "good", Hint: "h", Timeout: time.Minute, Run: func(context.Context) error { return nil }},
		{Name: "polite", Timeout: 50 * time.Millisecond, Run: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }},
		{Name: "bad", Hint: "do this", Timeout: time.Minute, Run: func(context.Context) error { return errors.New("broken") }},
	})
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	if got, want := Failed(results), "deaf: no answer within 50ms; polite: no answer within 50ms; bad: broken"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !results[1].OK || results[1].Hint != "" || results[3].Hint != "do this" {
		t.Errorf("results %+v", results)
	}
	if got := Failed(results[1:2]); got != "" {
		t.Errorf("a good result is listed as failed: %q", got)
	}
}

func TestCancelEndsTheRun(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("shutdown"))
	results := Run(ctx, []Check{{Name: "x", Timeout: time.Hour, Run: func(context.Context) error { select {} }}})
	if got := Failed(results); !strings.Contains(got, "shutdown") {
		t.Errorf("got %q", got)
	}
}
