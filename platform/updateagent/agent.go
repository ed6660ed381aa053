// SPDX-License-Identifier: Apache-2.0

package updateagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"sdvbox/platform/durable"
	"sdvbox/platform/mqttbus"
	"sdvbox/platform/updateproto"
)

// Backend does the work of one domain. Its methods run one at a time, each in
// a goroutine of its own; ROLLBACK and CLEANUP cancel the context of what runs
// and wait for it to return. A method that was interrupted by a restart is
// called again, so each has to look first at what is already done.
//
// The first result is the outcome, named by its status. A second one is the
// terminal feedback that ends the activity: Cleanup always returns one, Identify
// when there is nothing to do, Rollback unless a CLEANUP is to come after it.
type Backend interface {
	// Identify decides what a request means. It changes nothing.
	Identify(context.Context, *Job) []updateproto.Feedback
	Download(context.Context, *Job) []updateproto.Feedback
	Update(context.Context, *Job) []updateproto.Feedback
	Activate(context.Context, *Job) []updateproto.Feedback
	// Verify is called after a restart when Activate has succeeded. It returns
	// ACTIVATION_SUCCESS or ACTIVATION_FAILURE when there is news of it, such
	// as the outcome of a reboot, and nothing otherwise. Of baselines there may
	// be one result each, which names it; the others stay as they are. One that
	// names none is for all of them.
	Verify(context.Context, *Job) []updateproto.Feedback
	Rollback(context.Context, *Job) []updateproto.Feedback
	Cleanup(context.Context, *Job) []updateproto.Feedback
	// Inventory describes what is installed. It may be called at any time. The
	// inventory is published also beside an error, which is logged.
	Inventory(context.Context) (updateproto.Inventory, error)
}

// Job is what a Backend works on.
type Job struct {
	Request updateproto.DesiredState // its own domain only
	Success bool                     // for Cleanup: the update has succeeded
	// Baselines are those that the work is about. There are none for an agent
	// that does not divide its work.
	Baselines []Baseline

	titles   []string
	notes    json.RawMessage
	progress func(updateproto.Feedback)
	save     func(json.RawMessage) error
}

// Baseline is a part of an update that has commands of its own.
type Baseline struct {
	Title   string
	Success bool // for Cleanup: this part has succeeded
}

// Divide lets Identify say which baselines there are, for an agent of the kind
// of Kanto.
func (j *Job) Divide(titles []string) { j.titles = titles }

// NewJob makes a job outside of an Agent, to drive a Backend directly.
func NewJob(r updateproto.DesiredState, progress func(updateproto.Feedback)) *Job {
	return &Job{Request: r, progress: progress, save: func(json.RawMessage) error { return nil }}
}

// ResumeJob is NewJob for a Backend that has been restarted, with the notes that it has kept, and who keeps more.
func ResumeJob(r updateproto.DesiredState, notes json.RawMessage, save func(json.RawMessage) error, progress func(updateproto.Feedback)) *Job {
	return &Job{Request: r, notes: notes, save: save, progress: progress}
}

// Titles are what Divide was told.
func (j *Job) Titles() []string { return j.titles }

// Progress publishes an intermediate feedback.
func (j *Job) Progress(f updateproto.Feedback) { j.progress(f) }

// Save keeps v, encoded as JSON, with the activity; it is durable on return.
func (j *Job) Save(v any) error {
	notes, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := j.save(notes); err != nil {
		return fmt.Errorf("save notes of the update: %w", err)
	}
	j.notes = notes
	return nil
}

// Load decodes into v what Save has kept; without any v stays as it is.
func (j *Job) Load(v any) {
	if len(j.notes) > 0 {
		// Notes of a newer version may not fit; what does is taken.
		_ = json.Unmarshal(j.notes, v)
	}
}

// Capacity is the size of record that an Agent's journal needs, if its
// configuration does not say otherwise.
const Capacity = 256 << 10

// Bounds of a request and of a backend's notes leave room for everything else
// in the journal.
const (
	maxRequest = Capacity / 4
	maxNotes   = Capacity / 4
)

// inventoryWait is how long an inventory may take: those who ask for it wait
// for some 30 s.
const inventoryWait = 5 * time.Second

// Config is what an Agent consists of. Patience and what comes after Log may be
// left out.
type Config struct {
	// Patience is how long an activity that has nothing in use yet waits for
	// its next command before it is given up; 0 is for ever.
	Patience    time.Duration
	Domain      string // such as self-update
	Identifying string // message of the first feedback
	Journal     *durable.Journal
	Bus         *mqttbus.Bus
	Backend     Backend
	Log         *slog.Logger

	// Capacity is the size of record that fits into the journal.
	Capacity int
	// Kanto makes the agent one as those of Eclipse Kanto are: it takes commands
	// for single baselines, does not adopt foreign ids and does without any, gives
	// up what is not in use yet for another desired state, and leaves out of its
	// messages what is empty.
	Kanto bool
	// Check says what is wrong with a desired state before anything is said.
	Check func(updateproto.DesiredState) error
}

// Agent serves one domain.
type Agent struct {
	Config
	m      machine
	in     chan any // events from the agent's own goroutines
	out    outbox
	wanted chan string // ids of inventories to publish
	gen    int         // number of the work that runs
	cancel context.CancelFunc
	ended  chan struct{} // closed when the work before has returned
	active time.Time     // when the activity last had a message or a result
}

// The agent's own events.
type (
	progressed struct {
		gen int
		f   updateproto.Feedback
	}
	finished struct {
		gen     int
		results []updateproto.Feedback
		titles  []string
	}
	noted struct {
		gen   int
		notes json.RawMessage
		done  chan error
	}
	delivered struct{ o outgoing }
	missed    struct{ connection int } // a feedback could not be published
	ping      struct{}                 // is anybody there
)

// Subscriptions are the topics that the Bus of an Agent has to subscribe to.
func Subscriptions(domain string) []string {
	p := updateproto.Prefix(domain)
	return []string{p + "/desiredstate", p + "/desiredstate/command", p + "/currentstate/get"}
}

// New makes an agent that goes on where its journal ends.
func New(c Config) *Agent {
	if c.Capacity == 0 {
		c.Capacity = Capacity
	}
	a := &Agent{Config: c, in: make(chan any), wanted: make(chan string, 64), ended: make(chan struct{})}
	close(a.ended)
	a.out.init()
	a.m.identifying, a.m.kanto, a.m.capacity = c.Identifying, c.Kanto, c.Capacity
	if rec := c.Journal.Load(); rec != nil {
		if err := json.Unmarshal(rec, &a.m.State); err != nil {
			c.Log.Error("journal does not make sense, starting without it", "error", err)
			a.m.State = State{}
		}
	}
	a.m.Version = stateVersion
	return a
}

// Alive returns nil when the agent handles events.
func (a *Agent) Alive() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if !a.post(ctx, ping{}) {
		return errors.New("the agent does not handle events")
	}
	return nil
}

// Run serves until ctx ends. It fails when the journal can no longer be
// written: what cannot be remembered must not be promised. When it returns,
// nothing of the Backend runs any more, so that another Agent may go on.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var side sync.WaitGroup
	defer func() {
		cancel()
		<-a.ended
		side.Wait()
	}()
	side.Go(func() { a.publish(ctx) })
	side.Go(func() { a.inventory(ctx) })
	a.active = time.Now()
	a.m.resume()
	if act := a.m.Activity; act != nil {
		a.Log.Info("resuming", "activity", act.ID, "phase", act.Phase)
	}
	if err := a.apply(ctx); err != nil {
		return err
	}
	for {
		if err := a.next(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// next handles one event. This is the only goroutine that touches a.m.
func (a *Agent) next(ctx context.Context) error {
	var expired <-chan time.Time
	if patience := a.m.Activity.patience(a.Patience); patience > 0 {
		expired = time.After(time.Until(a.active.Add(patience)))
	}
	select {
	case <-expired:
		a.m.expire()
	case <-ctx.Done():
		return ctx.Err()
	case ev, ok := <-a.Bus.Events():
		if !ok {
			return errors.New("the bus is closed")
		}
		switch ev.Kind {
		case mqttbus.Up:
			a.out.open()
			if a.Kanto {
				a.m.lastID = fmt.Sprintf("initial-current-state-%d", time.Now().UnixMilli())
			}
			a.m.connected()
		case mqttbus.Down:
			a.out.close()
		case mqttbus.Received:
			a.active = time.Now()
			a.receive(ev.Message)
			if err := a.apply(ctx); err != nil {
				return err
			}
			ev.Message.Ack()
		}
	case ev := <-a.in:
		switch ev := ev.(type) {
		case progressed:
			if ev.gen == a.gen {
				a.m.progress(ev.f)
			}
		case finished:
			if ev.gen == a.gen {
				a.active = time.Now()
				a.m.divide(ev.titles)
				a.m.done(ev.results)
			}
		case noted:
			if ev.gen != a.gen {
				ev.done <- context.Canceled
				break
			}
			if most := a.Capacity / 4; len(ev.notes) > most {
				ev.done <- fmt.Errorf("%d bytes, expected at most %d", len(ev.notes), most)
				break
			}
			a.m.note(ev.notes)
			err := a.apply(ctx)
			ev.done <- err
			return err
		case delivered:
			a.m.sent(ev.o)
		case missed:
			if a.out.is(ev.connection) {
				a.out.open()
				a.m.connected()
			}
		}
	}
	return a.apply(ctx)
}

// receive turns a message into an event of the machine.
func (a *Agent) receive(msg *mqttbus.Message) {
	if msg.Retained {
		// A retained request would start the same update at every connect.
		a.Log.Warn("retained message is ignored", "topic", msg.Topic)
		return
	}
	drop := func(err error) {
		a.Log.Warn("message cannot be understood and has no activityId to answer to", "topic", msg.Topic, "error", err)
	}
	switch _, kind, _ := strings.Cut(msg.Topic, "/"); kind {
	case "desiredstate":
		id, request, err := a.request(msg.Payload)
		switch {
		case !a.answerable(id, msg.Payload):
			drop(err)
		case err != nil:
			a.m.reject(id, "desired state: "+err.Error(), true)
		default:
			a.m.request(id, request, msg.Duplicate)
		}
	case "desiredstate/command":
		var c queued
		id, err := updateproto.Decode(msg.Payload, &struct { // the baseline is of no concern here
			Command *string `json:"command"`
		}{&c.Command})
		if a.Kanto {
			_, err = updateproto.Decode(msg.Payload, &c)
			err = anonymous(err)
			if err == nil && len(c.Baseline) > updateproto.MaxName {
				err = fmt.Errorf("payload.baseline: %d bytes, expected at most %d", len(c.Baseline), updateproto.MaxName)
			}
		}
		_, known := stepOf(c.Command)
		known = known || c.Command == updateproto.CommandCleanup || c.Command == updateproto.CommandRollback
		switch {
		case id == "" && (!a.Kanto || err != nil):
			drop(err)
		case err != nil:
			a.m.reject(id, "command: "+err.Error(), false)
		case !known:
			a.m.reject(id, fmt.Sprintf("payload.command: %.40q is unknown, expected DOWNLOAD, UPDATE, ACTIVATE, CLEANUP or ROLLBACK", c.Command), false)
		default:
			a.Log.Info("command", "activity", id, "command", c.Command, "baseline", c.Baseline)
			c.ID = id
			a.m.command(c)
		}
	case "currentstate/get":
		id, err := updateproto.Decode(msg.Payload, nil)
		if id == "" && !(a.Kanto && (len(msg.Payload) == 0 || anonymous(err) == nil)) {
			drop(err)
			return
		}
		a.m.inventoryWanted(id)
	default:
		a.Log.Warn("message on an unexpected topic", "topic", msg.Topic)
	}
}

// answerable reports whether somebody can be told what is wrong with a desired
// state. One of Kanto's that has no activity id is answered without one.
func (a *Agent) answerable(id string, msg []byte) bool {
	e, err := updateproto.DecodeEnvelope(msg)
	return id != "" || a.Kanto && anonymous(err) == nil && e.Payload != nil
}

// anonymous lets a message do without an activity id.
func anonymous(err error) error {
	if errors.Is(err, updateproto.ErrNoActivityID) {
		return nil
	}
	return err
}

// request returns what a desired state says to this agent.
func (a *Agent) request(msg []byte) (id string, request json.RawMessage, err error) {
	if !a.Kanto {
		var ds struct {
			Domains []json.RawMessage `json:"domains"`
		}
		if id, err = updateproto.Decode(msg, &ds); err == nil {
			request, err = a.own(ds.Domains)
		}
		return id, request, err
	}
	e, err := updateproto.DecodeEnvelope(msg)
	if err = anonymous(err); err != nil {
		return e.ActivityID, nil, err
	}
	ds, err := e.DesiredState()
	switch {
	case err != nil:
	case len(ds.Domains) != 1:
		err = fmt.Errorf("payload.domains: %d entries, expected one for %q", len(ds.Domains), a.Domain)
	case ds.Domains[0].ID != a.Domain:
		err = fmt.Errorf("payload.domains[0].id: %q, expected %q", ds.Domains[0].ID, a.Domain)
	default:
		ds = updateproto.Split(ds, a.Domain)
		for i, c := range ds.Domains[0].Components {
			if len(c.ID) > updateproto.MaxName {
				return e.ActivityID, nil, fmt.Errorf("payload.domains[0].components[%d].id: %d bytes, expected at most %d", i, len(c.ID), updateproto.MaxName)
			}
		}
		if a.Check != nil {
			err = a.Check(ds)
		}
		if err == nil {
			request, err = json.Marshal(ds)
		}
		if most := a.Capacity / 4; err == nil && len(request) > most {
			err = fmt.Errorf("%d bytes, expected at most %d", len(request), most)
		}
	}
	return e.ActivityID, request, err
}

// own reduces the domains of a desired state to what this agent has to know and
// keep. What the others are made of is theirs to judge.
func (a *Agent) own(domains []json.RawMessage) (json.RawMessage, error) {
	var own updateproto.DesiredState
	for i, raw := range domains {
		var d struct {
			ID *string `json:"id"`
		}
		if err := json.Unmarshal(raw, &d); err != nil || d.ID == nil {
			return nil, fmt.Errorf("payload.domains[%d]: expected an object with an id", i)
		}
		if *d.ID == a.Domain {
			// Decoded like a message of its own, errors name what is wrong.
			var domain updateproto.Domain
			if err := (updateproto.Envelope{Payload: raw}).DecodePayload(&domain); err != nil {
				return nil, fmt.Errorf("domain %q: %w", a.Domain, err)
			}
			own.Domains = append(own.Domains, domain)
			break
		}
	}
	data, err := json.Marshal(own)
	if err == nil && len(data) > maxRequest {
		err = fmt.Errorf("domain %q takes %d bytes, expected at most %d", a.Domain, len(data), maxRequest)
	}
	return data, err
}

// apply saves the state and carries out what follows from the last event.
func (a *Agent) apply(ctx context.Context) error {
	effects, dirty := a.m.take()
	if dirty {
		rec, err := a.m.encode()
		if err != nil {
			return err
		}
		if err := a.Journal.Save(rec); err != nil {
			return err
		}
	}
	for _, e := range effects {
		switch {
		case e.warn != "":
			a.Log.Warn(e.warn)
		case e.publish != nil:
			if !e.progress {
				a.Log.Info("feedback", "activity", e.publish.ID, "status", e.publish.Feedback.Status, "message", e.publish.Feedback.Message)
			}
			a.out.add(item{outgoing: *e.publish, last: e.last, progress: e.progress})
		case e.inventory != nil:
			select {
			case a.wanted <- *e.inventory:
			default:
				a.Log.Warn("too many inventories are wanted at once, one is left out", "activity", *e.inventory)
			}
		case e.start != "":
			a.start(ctx, e.start)
		}
	}
	return nil
}

// start runs the backend's method for a phase, after the one that runs has
// been cancelled and has returned.
func (a *Agent) start(ctx context.Context, p Phase) {
	if a.cancel != nil {
		a.cancel()
	}
	a.gen++
	gen := a.gen
	ctx, a.cancel = context.WithCancel(ctx)
	before, ended := a.ended, make(chan struct{})
	a.ended = ended
	act := a.m.Activity
	job := &Job{
		Success:  act.Success,
		notes:    act.Notes,
		progress: func(f updateproto.Feedback) { a.post(ctx, progressed{gen, f}) },
		save: func(notes json.RawMessage) error {
			done := make(chan error, 1)
			if !a.post(ctx, noted{gen, notes, done}) {
				return ctx.Err()
			}
			select {
			case err := <-done:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	}
	_ = json.Unmarshal(act.Request, &job.Request) // it was encoded here
	for _, part := range act.at(p) {
		job.Baselines = append(job.Baselines, Baseline{part.Title, part.Phase == Activated})
	}
	go func() {
		defer close(ended)
		<-before
		results := a.work(ctx, p, job)
		a.post(ctx, finished{gen, results, job.titles})
	}()
}

// Changed has the inventory published again: something is installed that was
// not, or the other way round.
func (a *Agent) Changed() {
	select {
	case a.wanted <- "":
	default: // one is about to be published
	}
}

// encode is how messages are written.
func (a *Agent) encode(id string, payload any) ([]byte, error) {
	if a.Kanto {
		return updateproto.EncodeCompact(id, time.Now(), payload)
	}
	return updateproto.Encode(id, time.Now(), payload)
}

// work calls the backend. A panic there, on whatever a peer has sent, fails
// the step; it would come back at every restart otherwise.
func (a *Agent) work(ctx context.Context, p Phase, job *Job) (results []updateproto.Feedback) {
	defer func() {
		if r := recover(); r != nil {
			a.Log.Error("panic in "+string(p), "panic", r, "stack", string(debug.Stack()))
			results = failure(p, fmt.Sprintf("internal error: %v", r))
		}
	}()
	switch p {
	case Identifying:
		return a.Backend.Identify(ctx, job)
	case Downloading:
		return a.Backend.Download(ctx, job)
	case Updating:
		return a.Backend.Update(ctx, job)
	case Activating:
		return a.Backend.Activate(ctx, job)
	case Activated:
		return a.Backend.Verify(ctx, job)
	case RollingBack:
		return a.Backend.Rollback(ctx, job)
	default:
		return a.Backend.Cleanup(ctx, job)
	}
}

// failure is the result of a phase that could not be carried out at all.
func failure(p Phase, why string) []updateproto.Feedback {
	incomplete := feedback(updateproto.StatusIncomplete, why)
	switch p {
	case RollingBack:
		return []updateproto.Feedback{feedback(updateproto.StatusRollbackFailure, why), incomplete}
	case Cleaning:
		return []updateproto.Feedback{feedback(updateproto.StatusCleanupFailure, why), incomplete}
	}
	for _, s := range steps() {
		if s.work == p || s.done == p {
			return []updateproto.Feedback{feedback(s.failure, why)}
		}
	}
	return nil
}

// post hands an event to the agent's loop.
func (a *Agent) post(ctx context.Context, ev any) bool {
	select {
	case a.in <- ev:
		return true
	case <-ctx.Done():
		return false
	}
}

// publish sends what is in the outbox, in its order.
func (a *Agent) publish(ctx context.Context) {
	topic := updateproto.Prefix(a.Domain) + "/desiredstatefeedback"
	for {
		it, err := a.out.next(ctx)
		if err != nil {
			return
		}
		if !a.out.is(it.connection) {
			continue
		}
		data, err := a.encode(it.ID, it.Feedback)
		if err != nil {
			a.Log.Error("cannot encode feedback", "error", err)
			continue
		}
		err = a.Bus.Publish(ctx, topic, false, data)
		switch {
		case err == nil && it.last:
			a.post(ctx, delivered{it.outgoing})
		case err == nil, it.progress, errors.Is(err, mqttbus.ErrDown):
			// After a lost connection everything is said again anyway.
		default:
			a.Log.Warn("cannot publish feedback, trying again", "topic", topic, "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
			a.post(ctx, missed{it.connection})
		}
	}
}

// inventory publishes the inventory as often as it is wanted, and again until
// it is complete.
func (a *Agent) inventory(ctx context.Context) {
	topic := updateproto.Prefix(a.Domain) + "/currentstate"
	var retry <-chan time.Time
	var failed string // why the last one was not complete
	for {
		var ids []string
		select {
		case <-ctx.Done():
			return
		case <-retry:
		case id := <-a.wanted:
			ids = append(ids, id)
		}
		for more := true; more; { // one look serves all that wait
			select {
			case id := <-a.wanted:
				if !slices.Contains(ids, id) {
					ids = append(ids, id)
				}
			default:
				more = false
			}
		}
		c, cancel := context.WithTimeout(ctx, inventoryWait)
		inv, err := a.Backend.Inventory(c)
		cancel()
		retry = nil
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if err.Error() != failed {
				a.Log.Warn("the inventory is not complete", "error", err)
			}
			failed, retry = err.Error(), time.After(2*inventoryWait)
		case failed != "":
			failed = ""
			if len(ids) == 0 {
				ids = append(ids, "")
			}
		}
		for _, id := range ids {
			data, err := a.encode(id, inv)
			if err != nil {
				a.Log.Error("cannot encode inventory", "error", err)
				continue
			}
			if err := a.Bus.Publish(ctx, topic, true, data); err != nil && !errors.Is(err, mqttbus.ErrDown) {
				a.Log.Warn("cannot publish inventory", "topic", topic, "error", err)
			}
		}
	}
}
