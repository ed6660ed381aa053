// SPDX-License-Identifier: Apache-2.0

package ctrupdate

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"sdvbox/platform/ctrmodel"
)

// proof is when a new container counts as good.
type proof struct {
	time     time.Duration // that it has to run without being restarted; negative: as configured
	cmd      []string      // has to succeed in the container, if there is one
	interval time.Duration // between attempts
	timeout  time.Duration // of one
	retries  int           // attempts that may fail before the last one
}

func defaultProof() proof {
	return proof{time: -1, interval: time.Second, timeout: 5 * time.Second, retries: 3}
}

// fromNow is the number of restarts that a container has had already, whatever it is.
const fromNow = -1

// prove starts the container of an action and waits until it has proved itself, with no restart beyond those it has had already.
func (w *work) prove(ctx context.Context, a *action, p proof, restarts int64, start func() error) (said string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := w.Engine.Subscribe(ctx) // before anything can happen to it
	c, err := w.Engine.Get(ctx, a.id())
	if err != nil {
		return "", err
	}
	if restarts == fromNow {
		restarts = c.RestartCount
	}
	begin := func() error {
		for len(events) > 0 { // of an attempt that has failed
			<-events
		}
		return start()
	}
	if err = w.persist(ctx, begin); err != nil { // perhaps because of what one that was cut off has left
		select {
		case <-ctx.Done():
		case <-time.After(cmp.Or(w.Pause, time.Second)):
			err = w.persist(ctx, begin)
		}
	}
	if err != nil {
		return "", err
	}
	up := time.NewTimer(p.time)
	defer up.Stop()
	for due := false; !due; {
		select {
		case ev, ok := <-events:
			if c = ev.Container; !ok && ctx.Err() == nil { // there were too many at once
				events = w.Engine.Subscribe(ctx)
				c, err = w.Engine.Get(ctx, a.id())
			}
		case <-up.C:
			due = true
			c, err = w.Engine.Get(ctx, a.id())
		case <-ctx.Done():
		}
		if err = cmp.Or(ctx.Err(), err); err != nil {
			return "", err
		}
		if c.ID != a.id() {
			continue
		}
		if c.State.Status == ctrmodel.Stopped { // perhaps by a start that was no good, before the one that has succeeded
			if c, err = w.Engine.Get(ctx, a.id()); err != nil {
				return "", err
			}
		}
		if a.Once, err = judge(c, a.Steady, restarts); err != nil {
			return "", err
		} else if a.Once {
			return "Container has ended with exit code 0.", nil
		}
	}
	if len(p.cmd) == 0 {
		return "Container runs.", nil
	}
	return "Container runs and is healthy.", w.ask(ctx, a, p, restarts)
}

// judge says what is wrong with a container, or whether it has ended as it should. One that ends without an error is right if
// no other one had been running for long in its place, or if it is not to be restarted then.
func judge(c *ctrmodel.Container, steady bool, restarts int64) (once bool, err error) {
	s := &c.State
	policy := c.HostConfig.RestartPolicy.Type
	switch {
	case s.HasProcess() && c.RestartCount <= restarts:
		return false, nil
	case s.HasProcess():
		return false, fmt.Errorf("the container has been restarted %d times already", c.RestartCount-restarts)
	case s.Dead:
		return false, fmt.Errorf("the container has been removed")
	case s.Status == ctrmodel.Exited && s.ExitCode == 0 && s.Error == "" &&
		(!steady || policy == ctrmodel.RestartNever || policy == ctrmodel.RestartOnFailure):
		return true, nil
	case s.Status == ctrmodel.Exited && s.Error == "":
		return false, fmt.Errorf("the container has ended with exit code %d", s.ExitCode)
	case s.Error != "":
		return false, fmt.Errorf("the container is %s: %s", strings.ToLower(s.Status.String()), s.Error)
	}
	return false, fmt.Errorf("the container is %s", strings.ToLower(s.Status.String()))
}

// alive looks whether a new container that has proved itself still runs.
func (w *work) alive(ctx context.Context, a *action) error {
	if a.New == "" {
		return nil
	}
	c, err := w.Engine.Get(ctx, a.New)
	if err != nil || a.Once {
		return err
	}
	restarts := int64(0)
	if runsFor(c, w.health(a).time) {
		restarts = c.RestartCount
	}
	_, err = judge(c, a.Steady, restarts)
	return err
}

// runsFor reports whether the process of a container is at least as old as that.
func runsFor(c *ctrmodel.Container, age time.Duration) bool {
	since, err := time.Parse(time.RFC3339Nano, c.State.StartedAt)
	return err == nil && c.State.HasProcess() && time.Since(since) >= age
}

// ask runs the health command until it succeeds.
func (w *work) ask(ctx context.Context, a *action, p proof, restarts int64) error {
	for attempt := 0; ; attempt++ {
		err := w.askOnce(ctx, a.id(), p)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c, e := w.Engine.Get(ctx, a.id())
		if e == nil {
			_, e = judge(c, true, restarts)
		}
		switch {
		case e != nil:
			return e
		case err == nil || attempt >= p.retries:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(p.interval):
		}
	}
}

func (w *work) askOnce(ctx context.Context, id string, p proof) error {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	var out output
	code, err := w.Engine.Exec(ctx, id, ctrmodel.ExecOptions{Args: p.cmd}, ctrmodel.Streams{Stdout: &out, Stderr: &out})
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the health command %q did not end within %v", p.cmd, p.timeout)
	case err != nil:
		return fmt.Errorf("the health command %q: %w", p.cmd, err)
	case code != 0:
		return fmt.Errorf("the health command %q has failed with exit code %d: %s", p.cmd, code, out.String())
	}
	return nil
}

// output keeps the beginning of what a command writes.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if room := 200 - o.text.Len(); room > 0 {
		o.text.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.TrimSpace(strings.ToValidUTF8(o.text.String(), "?"))
}
