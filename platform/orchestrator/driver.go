// SPDX-License-Identifier: Apache-2.0

package orchestrator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"sdvbox/platform/durable"
	"sdvbox/platform/updateproto"
)

// Ports are what a Driver acts through. Each may block up to a limit of its own
// and returns when its context ends. They are never called from the goroutine
// that handles events: Feedback and Consent are called one at a time, Desired and
// Command one at a time for each domain, Refresh one at a time.
type Ports struct {
	Feedback func(ctx context.Context, id string, at time.Time, f updateproto.Feedback) error // nil: the broker has it
	Desired  func(ctx context.Context, domain, id string, at time.Time, ds updateproto.DesiredState) error
	Command  func(ctx context.Context, domain, id string, at time.Time, command string) error
	Consent  func(ctx context.Context, id string, at time.Time, command string) error
	Refresh  func(ctx context.Context, id string)
	Safe     func(ctx context.Context) (safe bool, reason string)
	Reboot   func(ctx context.Context) error // returns once the reboot is under way
}

const (
	// Capacity is the size of record that a Driver's journal needs. There may be
	// two desired states in it.
	Capacity   = 1 << 20
	maxRequest = Capacity / 4 // bytes of a desired state

	retryAfter = 2 * time.Second // until a terminal feedback is published again that the broker did not take
	aliveLimit = 10 * time.Second
)

// Driver runs a Machine: it feeds it with events and the time, saves its state
// in a journal, and carries out its effects.
type Driver struct {
	journal *durable.Journal
	ports   Ports
	log     *slog.Logger
	in      chan input

	mu sync.Mutex // held to change m, and to read it outside of Run
	m  *Machine

	ended chan struct{} // closed when Run has returned
	err   error         // why, from then on

	// The rest belongs to Run.
	throttle   throttle
	connection int  // number of the connection to the bus
	up         bool // it is there
	checking   bool // the gate is being asked
	north      outbox
	refresh    outbox
	agents     map[string]outbox
	workers    sync.WaitGroup
}

// input is an event on its way to Run.
type input struct {
	ev   Event
	done chan<- error // gets the outcome; nil if nobody waits for it
}

// The driver's own events.
type (
	ping  struct{} // is anybody there
	again struct { // a terminal feedback that the broker did not take
		say        Say
		connection int // when that was
	}
)

// outbox has jobs for one goroutine, which does them in their order.
type outbox chan func(context.Context)

// add appends a job unless too many wait already.
func (o outbox) add(job func(context.Context)) bool {
	select {
	case o <- job:
		return true
	default:
		return false
	}
}

func (o outbox) run(ctx context.Context) {
	for {
		select {
		case job := <-o:
			job(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// NewDriver makes a driver that goes on where the journal ends. RUNNING feedback
// is published at most about once in each interval, and never if that is 0.
func NewDriver(c Config, interval time.Duration, j *durable.Journal, p Ports, log *slog.Logger) *Driver {
	s, err := ParseState(j.Load())
	if err != nil {
		log.Error("journal does not make sense, starting without it", "error", err)
	}
	d := &Driver{
		journal:  j,
		ports:    p,
		log:      log,
		in:       make(chan input),
		m:        NewMachine(c, s),
		ended:    make(chan struct{}),
		throttle: throttle{interval: interval},
		north:    make(outbox, 1024),
		refresh:  make(outbox, 16),
		agents:   make(map[string]outbox),
	}
	for domain := range c.Agents {
		d.agents[domain] = make(outbox, 64)
	}
	return d
}

// Run handles events until ctx ends. It is called once. It fails when the journal
// can no longer be written: what cannot be remembered must not be promised.
func (d *Driver) Run(ctx context.Context, boot string) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		d.workers.Wait()
		d.err = err
		close(d.ended)
	}()
	d.workers.Go(func() { d.north.run(ctx) })
	d.workers.Go(func() { d.refresh.run(ctx) })
	for _, o := range d.agents {
		d.workers.Go(func() { o.run(ctx) })
	}
	if err := d.step(ctx, Started{Boot: boot}); err != nil {
		return err
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if next := d.deadline(); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			err = d.expire(ctx)
		case in := <-d.in:
			err = d.step(ctx, in.ev)
			if in.done != nil {
				in.done <- err
			}
		}
		if err != nil {
			return err
		}
	}
}

// deadline is when expire has something to do; zero: not at all.
func (d *Driver) deadline() time.Time {
	next := d.m.Deadline()
	if t := d.throttle.end; next.IsZero() || !t.IsZero() && t.Before(next) {
		next = t
	}
	return next
}

// expire does what is due.
func (d *Driver) expire(ctx context.Context) error {
	now := time.Now()
	if s := d.throttle.expire(now); s != nil {
		d.publish(ctx, *s)
	}
	if t := d.m.Deadline(); t.IsZero() || now.Before(t) {
		return nil
	}
	return d.step(ctx, Tick{})
}

// step handles one event.
func (d *Driver) step(ctx context.Context, ev Event) error {
	switch ev := ev.(type) {
	case ping:
		return nil
	case again:
		// Over a new connection the machine says it again by itself.
		if d.up && d.connection == ev.connection {
			d.publish(ctx, ev.say)
		}
		return nil
	case Connected:
		d.up = true
		d.connection++
		d.throttle.reset()
	case Disconnected:
		d.up = false
	case GateSaid:
		d.checking = false
	case Requested:
		if rec, err := encode(ev.State); err != nil {
			return err
		} else if len(rec) > maxRequest {
			return d.step(ctx, Refused{ev.ID, fmt.Sprintf("desired state takes %d bytes, expected at most %d", len(rec), maxRequest)})
		}
	}
	d.mu.Lock()
	effects, dirty := d.m.Handle(time.Now(), ev)
	d.mu.Unlock()
	var said <-chan struct{} // closed when the north has heard what the agents must not know before it
	if dirty {
		early := false
		effects = slices.DeleteFunc(effects, func(e Effect) bool {
			s, ok := e.(Say)
			if !ok || s.Kind != Early {
				return false
			}
			said = d.publish(ctx, s)
			early = true
			return true
		})
		if early {
			runtime.Gosched() // on a single CPU it would wait for the disk all the same
		}
		if err := d.save(); err != nil {
			return err
		}
	}
	for _, e := range effects {
		switch e := e.(type) {
		case Say:
			if s := d.say(ctx, e); e.Kind != Running {
				said = s
			}
		case Send:
			d.send(e, said)
		default:
			d.do(ctx, e)
		}
	}
	return nil
}

// save makes the machine's state durable.
func (d *Driver) save() error {
	rec, err := encode(d.m.State)
	for range maxHistory { // each time drops half of something
		if err != nil || len(rec) <= Capacity {
			break
		}
		d.mu.Lock()
		d.m.shrink()
		d.mu.Unlock()
		rec, err = encode(d.m.State)
	}
	if err != nil {
		return err
	}
	return d.journal.Save(rec)
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode journal: %w", err)
	}
	return b.Bytes(), nil
}

// shrink drops what an update can go on without, when agents have reported more
// than the journal can hold.
func (s *State) shrink() {
	if len(s.History) > 1 {
		s.History = s.History[len(s.History)/2:]
		return
	}
	for i := range s.Unsent {
		s.Unsent[i].Feedback.Actions = nil
	}
	if s.Activity == nil {
		return
	}
	for _, d := range s.Activity.Domains {
		if len(d.Actions) > 0 { // that there are any matters
			x := d.Actions[0]
			x.Component.ID, x.Component.Version = clip(x.Component.ID), clip(x.Component.Version)
			d.Actions = []updateproto.Action{x}
		}
	}
}

// do carries out an effect, as far as it does not take time.
func (d *Driver) do(ctx context.Context, e Effect) {
	switch e := e.(type) {
	case Ask:
		d.queue(d.north, "consent request", func(ctx context.Context) {
			if err := d.ports.Consent(ctx, e.ID, e.At, e.Command); err != nil {
				d.failed(ctx, "cannot ask the owner for consent", err, "activity", e.ID, "command", e.Command)
			}
		})
	case Refresh:
		// It takes its turn, but nothing has to wait until the last agent has
		// answered it.
		d.queue(d.north, "refresh", func(context.Context) {
			d.queue(d.refresh, "refresh", func(ctx context.Context) { d.ports.Refresh(ctx, e.ID) })
		})
	case CheckGate:
		if d.checking { // that answer will do
			return
		}
		d.checking = true
		d.workers.Go(func() {
			safe, reason := d.ports.Safe(ctx)
			d.post(ctx, GateSaid{safe, reason})
		})
	case Reboot:
		d.workers.Go(func() {
			if err := d.ports.Reboot(ctx); err != nil && ctx.Err() == nil {
				d.post(ctx, RebootFailed{err.Error()})
			}
		})
	case Log:
		d.log.Log(ctx, e.Level, e.Text)
	}
}

// say publishes a feedback unless it comes too soon after another.
func (d *Driver) say(ctx context.Context, s Say) (said <-chan struct{}) {
	if s.Kind == Running && !d.throttle.pass(time.Now(), s) {
		return nil
	}
	if s.Kind == Final {
		d.throttle.stop(s.ID)
	}
	return d.publish(ctx, s)
}

// publish queues a feedback. The channel is closed when it has been published, or could not be.
func (d *Driver) publish(ctx context.Context, s Say) <-chan struct{} {
	said := make(chan struct{})
	connection := d.connection
	retry := func() {
		if s.lasting() {
			time.AfterFunc(retryAfter, func() { d.post(ctx, again{s, connection}) })
		}
	}
	queued := d.queue(d.north, "feedback", func(ctx context.Context) {
		err := d.ports.Feedback(ctx, s.ID, s.At, s.Feedback)
		close(said)
		switch {
		case err != nil:
			d.failed(ctx, "cannot publish feedback", err, "activity", s.ID, "status", s.Feedback.Status)
			retry()
		case s.lasting():
			// The next feedback does not wait until this one is forgotten.
			d.workers.Go(func() { d.post(ctx, Delivered{Outgoing{ID: s.ID, At: s.At.UnixMilli(), Feedback: s.Feedback}}) })
		}
	})
	if !queued {
		close(said)
		retry()
	}
	return said
}

// send queues an order for an agent, which waits until the north has been told; nil: there is nothing to tell.
func (d *Driver) send(s Send, said <-chan struct{}) {
	o, ok := d.agents[s.Domain]
	if !ok {
		d.log.Error("no agent is configured for the domain of an order", "domain", s.Domain, "activity", s.ID)
		return
	}
	d.queue(o, "order", func(ctx context.Context) {
		if said != nil {
			select {
			case <-said:
			case <-ctx.Done():
				return
			}
		}
		var err error
		if s.Desired != nil {
			err = d.ports.Desired(ctx, s.Domain, s.ID, s.At, *s.Desired)
		} else {
			err = d.ports.Command(ctx, s.Domain, s.ID, s.At, s.Command)
		}
		if err != nil {
			d.failed(ctx, "cannot send to an agent", err, "domain", s.Domain, "activity", s.ID, "command", s.Command)
		}
	})
}

func (d *Driver) queue(o outbox, what string, job func(context.Context)) bool {
	if o.add(job) {
		return true
	}
	d.log.Warn("too many messages wait to be published, one is left out", "message", what)
	return false
}

// failed logs what could not be published, unless it is the driver that ends.
func (d *Driver) failed(ctx context.Context, what string, err error, attrs ...any) {
	if ctx.Err() == nil {
		d.log.Warn(what, append(attrs, "error", err)...)
	}
}

// post hands an event of the driver's own goroutines to Run.
func (d *Driver) post(ctx context.Context, ev Event) {
	select {
	case d.in <- input{ev: ev}:
	case <-ctx.Done():
	}
}

// Handle hands an event to Run, and returns when the state that follows from it
// is durable. After an error it may be or not.
func (d *Driver) Handle(ctx context.Context, ev Event) error {
	done := make(chan error, 1)
	select {
	case d.in <- input{ev, done}:
	case <-d.ended:
		return d.over()
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// over is the error of calls that come too late.
func (d *Driver) over() error {
	if d.err != nil {
		return fmt.Errorf("the orchestrator has ended: %w", d.err)
	}
	return errors.New("the orchestrator has ended")
}

// Alive returns nil when events are handled.
func (d *Driver) Alive() error {
	ctx, cancel := context.WithTimeout(context.Background(), aliveLimit)
	defer cancel()
	if err := d.Handle(ctx, ping{}); err != nil {
		return fmt.Errorf("the orchestrator does not handle events: %w", err)
	}
	return nil
}

// Status says what is going on.
func (d *Driver) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.m.Snapshot()
}

// History has the activities that have ended, the newest last.
func (d *Driver) History() []Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.m.History)
}

// Cancel ends the activity with the given id in the old state; an empty id is
// the one there is.
func (d *Driver) Cancel(ctx context.Context, id string) error {
	d.mu.Lock()
	err := d.m.Cancellable(id)
	d.mu.Unlock()
	if err != nil {
		return err
	}
	return d.Handle(ctx, Cancelled{ID: id, By: "the operator"})
}
