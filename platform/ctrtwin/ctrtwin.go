// SPDX-License-Identifier: Apache-2.0

// Package ctrtwin is the digital twin of the containers of a device: a thing of its own, beside that of the device, with a
// feature for each container, one that makes containers, one that installs and removes them as Eclipse hawkBit wants it, and
// one that tells what they use.
//
// One goroutine, that of Run, has all there is to remember. What takes time is done by others: those of operations, of which
// there is one at a time for each container, the one that installs, one that measures and one that publishes. They hand
// what is to be done about their outcome to the first one, as a function. It takes no such function before it has dealt with
// all events of the engine until then, so an operation is answered after the messages about what it has changed.
package ctrtwin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/durable"
	"sdvbox/platform/mqttbus"
	"sdvbox/platform/twin"
)

// The features, but for those of containers.
const (
	ContainerFactory  = "ContainerFactory"
	SoftwareUpdatable = "SoftwareUpdatable"
	Metrics           = "Metrics"
)

// Features are all features that can be chosen.
func Features() []string { return []string{ContainerFactory, SoftwareUpdatable, Metrics} }

const (
	factoryDefinition   = "com.bosch.iot.suite.edge.containers:ContainerFactory:1.3.0"
	containerDefinition = "com.bosch.iot.suite.edge.containers:Container:1.5.0"
	softwareDefinition  = "org.eclipse.hawkbit.swupdatable:SoftwareUpdatable:2.0.0"
	metricsDefinition   = "com.bosch.iot.suite.edge.metric:Metrics:1.0.0"

	containerPrefix = "Container:"
	suffix          = ":edge:containers" // of the thing, after the name of the device
)

// Subscriptions are the topics that the Bus of a Twin has to subscribe to.
func Subscriptions() []string { return []string{twin.ResponseTopic, twin.ThingCommands} }

// Config is what a Twin needs to know.
type Config struct {
	Features []string      // those that there are
	Dir      string        // for what has to outlive the process
	Original string        // where an original agent has left what it had published, which is only read; may be empty
	Client   *http.Client  // of downloads, nil: the usual one
	GiveUp   time.Duration // downloads without progress, 0: 1 min
	Log      *slog.Logger
}

// Engine has the containers.
type Engine interface {
	Known(ctx context.Context) error // waits until something can be done
	List(ctx context.Context) ([]*ctrmodel.Container, error)
	Get(ctx context.Context, id string) (*ctrmodel.Container, error)
	Create(ctx context.Context, c *ctrmodel.Container) (*ctrmodel.Container, error)
	Start(ctx context.Context, id string) error
	Stop(ctx context.Context, id string, o ctrmodel.StopOptions) error
	Pause(ctx context.Context, id string) error
	Unpause(ctx context.Context, id string) error
	Update(ctx context.Context, id string, o ctrmodel.UpdateOptions) error
	Rename(ctx context.Context, id, name string) error
	Remove(ctx context.Context, id string, force bool, o ctrmodel.StopOptions) error
	Stats(ctx context.Context, id string) (ctrmodel.Stats, error)
	Subscribe(ctx context.Context) <-chan ctrmodel.Event
}

// Bus is the connection to the cloud connector, as in package mqttbus.
type Bus interface {
	Events() <-chan mqttbus.Event
	Publish(ctx context.Context, topic string, retained bool, payload []byte) error
}

// Twin is the twin of an engine's containers.
type Twin struct {
	Config
	engine Engine
	bus    Bus
	todo   chan func() // for the goroutine of Run
	others sync.WaitGroup

	// What only the goroutine of Run uses.
	who        twin.Identity // with the name of the twin
	topic      string        // of what it says
	live       bool          // the connector has said who this is since the last connect
	held       []*mqttbus.Message
	containers map[string]*ctrmodel.Container
	published  map[string]string // name of the feature by id of the container, as far as not known to be gone
	out        outbox
	work       work
	meter      meter
	software   software
}

// New returns the twin of an engine's containers. It works once it runs.
func New(cfg Config, e Engine, b Bus) (*Twin, error) {
	for _, f := range cfg.Features {
		if !slices.Contains(Features(), f) {
			return nil, fmt.Errorf("feature %q of the twin: expected any of %s", f, strings.Join(Features(), " "))
		}
	}
	if err := durable.MkdirAll(cfg.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("state of the twin: %w", err)
	}
	t := &Twin{Config: cfg, engine: e, bus: b, todo: make(chan func()), work: newWork()}
	if t.has(SoftwareUpdatable) {
		if err := t.openSoftware(); err != nil {
			return nil, fmt.Errorf("state of the twin: %w", err)
		}
	}
	return t, nil
}

func (t *Twin) has(feature string) bool { return slices.Contains(t.Features, feature) }

// Run keeps the twin until ctx ends.
func (t *Twin) Run(ctx context.Context) error {
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer t.software.close()
	defer t.others.Wait()
	defer cancel()
	events := t.engine.Subscribe(ctx)
	if err := t.list(ctx); err != nil {
		return err
	}
	if t.has(SoftwareUpdatable) {
		t.others.Go(func() { t.install(ctx) })
	}
	for {
		t.send(ctx)
		select {
		case <-outer.Done():
			return nil
		case ev, ok := <-t.bus.Events():
			if !ok && outer.Err() == nil {
				return errors.New("the bus is closed")
			}
			if ok {
				t.handle(ctx, ev)
			}
		case ev, ok := <-events:
			if !ok {
				events = t.miss(ctx)
				continue
			}
			t.happened(ev)
		case do := <-t.todo:
			for caught := false; !caught; {
				select {
				case ev, ok := <-events:
					if caught = !ok; !ok {
						events = t.miss(ctx)
					} else {
						t.happened(ev)
					}
				default:
					caught = true
				}
			}
			do()
		case <-t.meter.due():
			t.measure(ctx)
		}
	}
}

// Alive says that Run is stuck, or nothing.
func (t *Twin) Alive(ctx context.Context) error {
	brief, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if !t.do(brief, func() {}) && ctx.Err() == nil {
		return errors.New("the twin of the containers does not go on")
	}
	return nil
}

// do has the goroutine of Run do something, and reports whether it will.
func (t *Twin) do(ctx context.Context, f func()) bool {
	select {
	case t.todo <- f:
		return true
	case <-ctx.Done():
		return false
	}
}

// miss subscribes again when there were too many events at once, and says anew how everything is.
func (t *Twin) miss(ctx context.Context) <-chan ctrmodel.Event {
	events := t.engine.Subscribe(ctx)
	if ctx.Err() == nil {
		t.describe(ctx)
	}
	return events
}

// handle takes what happens on the bus.
func (t *Twin) handle(ctx context.Context, ev mqttbus.Event) {
	switch ev.Kind {
	case mqttbus.Up:
		t.out.up = true
		t.out.put(outgoing{topic: twin.RequestTopic, data: []byte(twin.EmptyRequest)})
	case mqttbus.Down:
		t.live, t.held = false, nil // the messages come again
		t.out.down()
	case mqttbus.Received:
		t.receive(ctx, ev.Message)
	}
}

// maxHeld is how many commands wait until the twin's name is known. They are not acknowledged yet, and brokers deliver only so
// many messages at a time that are not: further ones must not keep the name itself from coming.
const maxHeld = 8

func (t *Twin) receive(ctx context.Context, msg *mqttbus.Message) {
	switch {
	case msg.Topic == twin.ResponseTopic:
		t.identify(ctx, msg.Payload)
	case !strings.Contains(msg.Topic, suffix+"/req/"): // of another kind of thing
	case msg.Retained: // would come again with every connect
		t.Log.Warn("retained command is ignored", "topic", msg.Topic)
	case !t.live && len(t.held) < maxHeld:
		t.held = append(t.held, msg)
		return
	case !t.live:
		t.Log.Warn("too many commands before the cloud connector has said which thing this is, one is ignored", "topic", msg.Topic)
	default:
		t.operate(ctx, msg)
	}
	msg.Ack()
}

// identify takes the name of the device.
func (t *Twin) identify(ctx context.Context, data []byte) {
	who, err := twin.DecodeIdentity(data)
	var topic string
	if err == nil {
		who.Thing.Name += suffix
		topic, err = twin.EventTopicOf(who.Tenant, who.Thing)
	}
	if err != nil {
		t.Log.Warn("the cloud connector's answer cannot be used", "error", err)
		return
	}
	if t.live && t.who == who {
		return
	}
	if t.topic != topic {
		t.Log.Info("the twin of the containers is a thing", "thing", who.Thing, "tenant", who.Tenant)
		t.published = t.load(who.Thing)
		t.meter.stop() // who asked for it is no longer there
		t.work.forget()
		t.out.drop()
	}
	t.who, t.topic, t.live = who, topic, true
	t.describe(ctx)
	held := t.held
	t.held = nil
	for _, msg := range held {
		t.operate(ctx, msg)
		msg.Ack()
	}
}

// list takes over what containers there are.
func (t *Twin) list(ctx context.Context) error {
	list, err := t.engine.List(ctx)
	if err != nil {
		return fmt.Errorf("containers of the twin: %w", err)
	}
	t.containers = map[string]*ctrmodel.Container{}
	for _, c := range list {
		if c.State.Status != ctrmodel.Creating && c.State.Status != ctrmodel.Dead {
			t.containers[c.ID] = c
		}
	}
	return nil
}

// describe says how everything is, always in the same order.
func (t *Twin) describe(ctx context.Context) {
	if err := t.list(ctx); err != nil {
		t.Log.Error("cannot describe the twin", "error", err)
		return
	}
	if !t.live {
		return
	}
	if t.has(SoftwareUpdatable) {
		t.say(t.feature(SoftwareUpdatable).Describe(softwareDefinition, properties{t.softwareStatus()}))
	}
	if t.has(ContainerFactory) {
		gone := slices.Sorted(maps.Keys(t.published))
		for _, c := range t.sorted() {
			t.published[c.ID] = containerPrefix + c.ID
		}
		t.save() // before it is so: what is there and not written down would stay for ever
		for _, c := range t.sorted() {
			t.sayContainer(c)
		}
		for _, id := range gone {
			if t.containers[id] == nil {
				t.sayGone(id)
			}
		}
		t.say(t.feature(ContainerFactory).Describe(factoryDefinition, nil))
	}
	if t.has(Metrics) {
		t.say(t.feature(Metrics).Describe(metricsDefinition, nil))
	}
}

type properties struct {
	Status any `json:"status"`
}

func (t *Twin) feature(name string) twin.Feature { return twin.Feature{Thing: t.who.Thing, Name: name} }

func (t *Twin) sorted() []*ctrmodel.Container {
	return slices.SortedFunc(maps.Values(t.containers), before)
}

func (t *Twin) sayContainer(c *ctrmodel.Container) {
	t.say(t.feature(containerPrefix+c.ID).Describe(containerDefinition, properties{statusOf(c)}))
}

// sayGone takes the feature of a container away.
func (t *Twin) sayGone(id string) {
	data, err := t.feature(t.published[id]).Delete()
	t.put(outgoing{topic: t.topic, data: data, done: func() {
		if t.containers[id] == nil {
			delete(t.published, id)
			t.save()
		}
	}}, err)
}

// happened takes an event of the engine.
func (t *Twin) happened(ev ctrmodel.Event) {
	c := ev.Container
	known := t.containers[c.ID] != nil
	if ev.Action == ctrmodel.ActionRemoved {
		delete(t.containers, c.ID)
	} else {
		t.containers[c.ID] = c
	}
	t.meter.happened(ev)
	if !t.live {
		return
	}
	factory := t.has(ContainerFactory)
	f := t.feature(containerPrefix + c.ID)
	if factory && ev.Action == ctrmodel.ActionRemoved {
		if known {
			t.say(f.Set("status/state", stateOf(c)))
		}
		if t.published[c.ID] != "" {
			t.sayGone(c.ID)
		}
	} else if factory && !known {
		t.published[c.ID] = f.Name
		t.save()
		t.sayContainer(c)
	}
	if known == (ev.Action == ctrmodel.ActionRemoved) && t.has(SoftwareUpdatable) {
		t.say(t.feature(SoftwareUpdatable).Set("status/installedDependencies", orNull(t.dependencies())))
	}
	switch {
	case !factory || ev.Action == ctrmodel.ActionRemoved:
	case ev.Action == ctrmodel.ActionRenamed:
		t.say(f.Set("status/name", c.Name))
	case ev.Action == ctrmodel.ActionUpdated:
		t.say(f.Set("status/config", configurationOf(c)))
	default:
		t.say(f.Set("status/state", stateOf(c)))
	}
}

func (t *Twin) dependencies() map[string]dependency {
	all := map[string]dependency{}
	for _, c := range t.containers {
		d := dependencyOf(c)
		all[d.key()] = d
	}
	return all
}

// orNull is v, or what is written as null if there is nothing in it.
func orNull(v map[string]dependency) any {
	if len(v) == 0 {
		return json.RawMessage("null")
	}
	return v
}

// file is where the names of published features are.
func file(dir string, thing twin.ID) string {
	return filepath.Join(dir, "sup_back_"+strings.ReplaceAll(thing.String(), ":", "_")+".json")
}

// load returns what has been published for a thing before.
func (t *Twin) load(thing twin.ID) map[string]string {
	names := map[string]string{}
	data, err := os.ReadFile(file(t.Dir, thing))
	if errors.Is(err, fs.ErrNotExist) && t.Original != "" {
		data, err = os.ReadFile(file(t.Original, thing))
	}
	if err == nil {
		err = json.Unmarshal(data, &names)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Log.Warn("features of containers that are gone may stay in the twin", "error", err)
	}
	if names == nil { // the file says null
		names = map[string]string{}
	}
	for id, name := range names {
		if !strings.HasPrefix(name, containerPrefix) || strings.Contains(name, "/") {
			delete(names, id)
		}
	}
	return names
}

func (t *Twin) save() {
	data, err := json.Marshal(t.published)
	if err == nil {
		err = durable.WriteFile(file(t.Dir, t.who.Thing), data, 0o644)
	}
	if err != nil {
		t.Log.Error("features of containers may stay in the twin once these are gone", "error", err)
	}
}

// say publishes what a feature says.
func (t *Twin) say(data []byte, err error) { t.put(outgoing{topic: t.topic, data: data}, err) }

func (t *Twin) put(o outgoing, err error) {
	if err != nil {
		t.Log.Error("message of the twin is left out", "error", err)
		return
	}
	t.out.put(o)
}
