// SPDX-License-Identifier: Apache-2.0

package ctrtwin

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/mqttbus"
)

// fakeEngine has containers in memory.
type fakeEngine struct {
	mu    sync.Mutex
	all   map[string]*ctrmodel.Container
	subs  []chan ctrmodel.Event
	calls []string
	stats map[string]ctrmodel.Stats
	known chan struct{} // closed once something can be done, nil: it always can

	stopped ctrmodel.StopOptions // of the last Stop

	// before is called first by everything that changes a container, and may take its time or fail.
	before func(ctx context.Context, what, name string) error
}

func newFakeEngine() *fakeEngine {
	return &fakeEngine{
		all: map[string]*ctrmodel.Container{}, stats: map[string]ctrmodel.Stats{},
		before: func(context.Context, string, string) error { return nil },
	}
}

func (e *fakeEngine) Known(ctx context.Context) error {
	if e.known == nil {
		return nil
	}
	select {
	case <-e.known:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *fakeEngine) List(context.Context) (list []*ctrmodel.Container, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.all {
		list = append(list, c.Clone())
	}
	return list, nil
}

func (e *fakeEngine) Get(_ context.Context, id string) (*ctrmodel.Container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.all[id]; c != nil {
		return c.Clone(), nil
	}
	return nil, ctrmodel.Errorf(ctrmodel.NotFound, "no container with id %s", id)
}

func (e *fakeEngine) Subscribe(ctx context.Context) <-chan ctrmodel.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := make(chan ctrmodel.Event, 1024)
	if ctx.Err() != nil {
		close(c)
		return c
	}
	e.subs = append(e.subs, c)
	return c
}

// overrun ends the subscriptions as if their readers had been too slow.
func (e *fakeEngine) overrun() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.subs {
		close(c)
	}
	e.subs = nil
}

// change does something to a container, and tells of it.
func (e *fakeEngine) change(ctx context.Context, what ctrmodel.Action, id string, f func(c *ctrmodel.Container) error) error {
	if c, err := e.Get(ctx, id); err != nil {
		return err
	} else if what == ctrmodel.ActionCreated {
	} else if err := e.before(ctx, string(what), c.Name); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.all[id]
	if c == nil {
		return ctrmodel.Errorf(ctrmodel.NotFound, "no container with id %s", id)
	}
	e.calls = append(e.calls, string(what)+" "+c.Name)
	if err := f(c); err != nil {
		return err
	}
	if what == ctrmodel.ActionRemoved {
		delete(e.all, id)
	}
	for _, s := range e.subs {
		s <- ctrmodel.Event{Time: time.Now(), Action: what, Container: c.Clone()}
	}
	return nil
}

func (e *fakeEngine) Create(ctx context.Context, c *ctrmodel.Container) (*ctrmodel.Container, error) {
	if err := e.before(ctx, "created", c.Name); err != nil {
		return nil, err
	}
	c = c.Clone()
	c.Defaults(newID)
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c.Created = ctrmodel.Time(time.Now())
	c.State.SetCreated()
	e.mu.Lock()
	e.all[c.ID] = c
	e.mu.Unlock()
	return c.Clone(), e.change(ctx, ctrmodel.ActionCreated, c.ID, func(*ctrmodel.Container) error { return nil })
}

func (e *fakeEngine) Start(ctx context.Context, id string) error {
	return e.change(ctx, ctrmodel.ActionRunning, id, func(c *ctrmodel.Container) error {
		if c.State.HasProcess() {
			return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "container %s is running already", c.Name)
		}
		c.State.SetRunning(4711, time.Now())
		return nil
	})
}

func (e *fakeEngine) Stop(ctx context.Context, id string, o ctrmodel.StopOptions) error {
	if err := o.Validate(); err != nil {
		return err
	}
	return e.change(ctx, ctrmodel.ActionStopped, id, func(c *ctrmodel.Container) error {
		e.stopped = o
		c.State.SetStopped(143, time.Now())
		return nil
	})
}

func (e *fakeEngine) Pause(ctx context.Context, id string) error {
	return e.change(ctx, ctrmodel.ActionPaused, id, func(c *ctrmodel.Container) error { c.State.SetPaused(); return nil })
}

func (e *fakeEngine) Unpause(ctx context.Context, id string) error {
	return e.change(ctx, ctrmodel.ActionResumed, id, func(c *ctrmodel.Container) error { c.State.SetResumed(); return nil })
}

func (e *fakeEngine) Update(ctx context.Context, id string, o ctrmodel.UpdateOptions) error {
	return e.change(ctx, ctrmodel.ActionUpdated, id, func(c *ctrmodel.Container) error {
		if o.RestartPolicy != nil {
			c.HostConfig.RestartPolicy = *o.RestartPolicy
		}
		if o.Resources != nil {
			c.HostConfig.Resources = *o.Resources
		}
		return nil
	})
}

func (e *fakeEngine) Rename(ctx context.Context, id, name string) error {
	return e.change(ctx, ctrmodel.ActionRenamed, id, func(c *ctrmodel.Container) error { c.Name = name; return nil })
}

func (e *fakeEngine) Remove(ctx context.Context, id string, force bool, _ ctrmodel.StopOptions) error {
	return e.change(ctx, ctrmodel.ActionRemoved, id, func(c *ctrmodel.Container) error {
		if c.State.HasProcess() && !force {
			return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "container %s is running", c.Name)
		}
		c.State.SetDead()
		c.State.PID = 4711 // what an engine forgets is not told
		return nil
	})
}

func (e *fakeEngine) Stats(ctx context.Context, id string) (ctrmodel.Stats, error) {
	if err := e.before(ctx, "stats", id); err != nil {
		return ctrmodel.Stats{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s, ok := e.stats[id]
	if !ok {
		return s, ctrmodel.Errorf(ctrmodel.NotFound, "no container with id %s", id)
	}
	s.Time = time.Now()
	return s, nil
}

// add has a container without telling of it.
func (e *fakeEngine) add(id, name, image string, running bool) {
	c := &ctrmodel.Container{ID: id, Name: name, Image: ctrmodel.Image{Name: image}}
	c.Defaults(newID)
	c.Created = ctrmodel.Time(time.Now())
	c.State.SetCreated()
	if running {
		c.State.SetRunning(4711, time.Now())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all[id] = c
}

// fakeBus keeps what is published.
type fakeBus struct {
	events chan mqttbus.Event
	mu     sync.Mutex
	said   []string // TOPIC MESSAGE
	slow   time.Duration
	fail   error
}

func (b *fakeBus) Events() <-chan mqttbus.Event { return b.events }

func (b *fakeBus) Publish(_ context.Context, topic string, retained bool, payload []byte) error {
	time.Sleep(b.slow)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return b.fail
	}
	if retained {
		topic = "retained " + topic
	}
	b.said = append(b.said, topic+" "+string(payload))
	return nil
}

// refuse has the broker take nothing, or everything again.
func (b *fakeBus) refuse(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

func (b *fakeBus) take() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	said := b.said
	b.said = nil
	return said
}

const (
	gateway = "org.example:gateway:vehicle-7"
	thing   = gateway + ":edge:containers"
	ditto   = "org.example/gateway:vehicle-7:edge:containers/things/"
	events  = "e/fleet/" + thing + " "
	fleetID = `{"deviceId":"org.example:gateway:vehicle-7","tenantId":"fleet","policyId":"org.example:policy"}`
)

// rig is a twin with a broker and an engine that are not real.
type rig struct {
	*testing.T
	engine *fakeEngine
	bus    *fakeBus
	twin   *Twin
	cfg    Config
	stop   func()
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "twin") // not t.TempDir: the bubble of a test has another T
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &rig{
		T: t, engine: newFakeEngine(),
		cfg: Config{Features: Features(), Dir: dir, GiveUp: time.Second, Log: slog.New(slog.NewTextHandler(t.Output(), nil))},
	}
}

// start starts the agent's process, so to speak.
func (r *rig) start() {
	r.Helper()
	r.bus = &fakeBus{events: make(chan mqttbus.Event)}
	var err error
	if r.twin, err = New(r.cfg, r.engine, r.bus); err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- r.twin.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			r.Errorf("the twin has ended: %v", err)
		}
	})
	r.Cleanup(r.stop)
}

func (r *rig) up()   { r.bus.events <- mqttbus.Event{Kind: mqttbus.Up} }
func (r *rig) down() { r.bus.events <- mqttbus.Event{Kind: mqttbus.Down} }

func (r *rig) receive(topic, payload string) {
	r.bus.events <- mqttbus.Event{Kind: mqttbus.Received, Message: &mqttbus.Message{Topic: topic, Payload: []byte(payload)}}
}

// begin starts a twin that knows its name, and forgets what it has said until then.
func (r *rig) begin() {
	r.Helper()
	r.start()
	r.up()
	r.receive("edge/thing/response", fleetID)
	synctest.Wait()
	if said := r.bus.take(); len(said) == 0 {
		r.Fatal("nothing is said of the twin")
	}
}

// request sends an operation that wants an answer.
func (r *rig) request(id, feature, operation, value string) {
	r.receive("command//"+thing+"/req/"+id+"/"+operation, requestOf(id, feature, operation, value))
}

func requestOf(id, feature, operation, value string) string {
	contentType := ""
	if value != "" {
		contentType, value = `,"content-type":"application/json"`, `,"value":`+value
	}
	return fmt.Sprintf(`{"topic":%q,"headers":{"correlation-id":%q,"response-required":true%s},"path":%q%s}`,
		ditto+"live/messages/"+operation, id, contentType, "/features/"+feature+"/inbox/messages/"+operation, value)
}

// hear returns what has been said, once all has.
func (r *rig) hear() []string {
	synctest.Wait()
	return r.bus.take()
}

// want compares what has been said with what should have.
func (r *rig) want(want ...string) {
	r.Helper()
	got := r.hear()
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			r.Fatalf("message %d is missing:\n want %s", i, want[i])
		case i >= len(want):
			r.Fatalf("message %d is one too many:\n  got %s", i, got[i])
		case got[i] != want[i]:
			r.Fatalf("message %d:\n  got %s\n want %s", i, got[i], want[i])
		}
	}
}

// gist is a message in short: of a reply its MQTT topic, else path and value.
func gist(message string) string {
	topic, payload, _ := strings.Cut(message, " ")
	if rest, ok := strings.CutPrefix(topic, "command//"+thing+"/res/"); ok {
		return "reply " + rest
	}
	var m struct {
		Topic, Path string
		Value       json.RawMessage
	}
	json.Unmarshal([]byte(payload), &m)
	words := strings.Split(m.Path, "/")
	text := strings.Join(words[min(len(words), 2):], "/")
	if strings.HasSuffix(m.Topic, "/delete") {
		return "delete " + text
	}
	var is struct{ Status, SoftwareModuleType string }
	if json.Unmarshal(m.Value, &is) == nil && is.Status != "" {
		text += " " + is.Status
	}
	return text
}

func gists(messages []string) (short []string) {
	for _, m := range messages {
		short = append(short, gist(m))
	}
	return short
}

func (r *rig) wantGists(want ...string) {
	r.Helper()
	got := gists(r.hear())
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		r.Fatalf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}
