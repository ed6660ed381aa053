// SPDX-License-Identifier: Apache-2.0

// Package manager is the update manager on the bus: it takes desired states for
// the whole vehicle, from a local backend or from the vehicle's digital twin,
// speaks with the update agents, and publishes what comes of it and what is
// installed. What happens in which order is the business of the orchestrator.
package manager

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sdvbox/platform/durable"
	"sdvbox/platform/inventory"
	"sdvbox/platform/mqttbus"
	"sdvbox/platform/orchestrator"
	"sdvbox/platform/rebootgate"
	"sdvbox/platform/twin"
	"sdvbox/platform/updateproto"
)

// Config says what a Manager manages, and how. Each domain has to have topics of
// its own: a prefix that no other has.
type Config struct {
	Domain       string // its own, such as vehicle
	Things       bool   // it is asked and answers as a feature of the vehicle's twin, not on topics of its own
	Agents       map[string]orchestrator.Agent
	Orchestrator orchestrator.Config // the Agents here are those above, too
	// FeedbackInterval is the least time between two messages of progress; 0 is
	// for none at all.
	FeedbackInterval time.Duration
	// CurrentStateDelay is how long what agents tell of their own accord waits
	// for more of that, until it is published.
	CurrentStateDelay time.Duration
	Version           string // of this program
	SafeTopic         bool   // the vehicle says on the topic safetoreboot when it may be rebooted
	Boot              string // id of the running boot; empty: the kernel's
}

// The topics of a domain, below its prefix.
const (
	desiredState     = "/desiredstate"
	command          = "/desiredstate/command"
	feedback         = "/desiredstatefeedback"
	currentState     = "/currentstate"
	currentStateGet  = "/currentstate/get"
	ownerConsent     = "/ownerconsent"
	ownerConsentSaid = "/ownerconsentfeedback"
	safeToReboot     = "/safetoreboot"
)

// Subscriptions are the topics that the Bus of a Manager has to subscribe to.
func Subscriptions(c Config) []string {
	own := updateproto.Prefix(c.Domain)
	var topics []string
	if c.Things {
		topics = []string{twin.ResponseTopic, twin.CommandTopics}
	} else {
		topics = []string{own + desiredState, own + command, own + currentStateGet, own + ownerConsentSaid}
	}
	if c.SafeTopic {
		topics = append(topics, own+safeToReboot)
	}
	for _, domain := range slices.Sorted(maps.Keys(c.Agents)) {
		p := updateproto.Prefix(domain)
		topics = append(topics, p+feedback, p+currentState)
	}
	return topics
}

// Manager is an update manager.
type Manager struct {
	cfg    Config
	bus    *mqttbus.Bus
	gate   *rebootgate.Gate
	log    *slog.Logger
	driver *orchestrator.Driver
	routes map[string]route

	north    atomic.Pointer[north]    // nil until the twin's name is known
	asked    atomic.Pointer[question] // the owner was asked last
	wanted   chan string              // ids to publish the current state under
	out      chan outgoing            // waits to be published
	sent     chan func()              // what has to be done after that
	inflight sync.WaitGroup
	counters counters

	// The rest belongs to Run.
	cache     inventory.Cache
	current   collection
	described bool               // the twin has the feature
	held      []*mqttbus.Message // commands from before the twin's name was known
}

// route says what is done with the messages of a topic.
type route struct {
	handle   func(context.Context, *mqttbus.Message) error // fails when there is no point in going on
	retained bool                                          // they may be
}

// outgoing is a message to publish.
type outgoing struct {
	topic    string
	retained bool
	data     []byte
	done     func(ok bool) // called by Run; may be nil
}

// Counters say what has happened since the start.
type Counters struct {
	Up        bool   // there is a connection to the bus
	Connects  uint64 // connections there have been
	Messages  uint64 // received
	Malformed uint64 // of these, not understood
}

type counters struct {
	up                            atomic.Bool
	connects, messages, malformed atomic.Uint64
}

// New makes a manager that goes on where its journal ends. The bus has to
// subscribe to Subscriptions(c). The function reboot returns once a reboot is
// under way.
func New(c Config, j *durable.Journal, bus *mqttbus.Bus, gate *rebootgate.Gate, reboot func(context.Context) error, log *slog.Logger) *Manager {
	m := &Manager{
		cfg:    c,
		bus:    bus,
		gate:   gate,
		log:    log,
		wanted: make(chan string),
		out:    make(chan outgoing, 2*maxRefreshes),
		sent:   make(chan func()),
	}
	m.current = collection{agents: make(map[string]time.Duration), delay: c.CurrentStateDelay, publish: m.publishCurrent}
	for domain, a := range c.Agents {
		m.current.agents[domain] = a.ReadTimeout
	}
	if !c.Things {
		m.north.Store(&north{domain: c.Domain})
	}
	m.route()
	c.Orchestrator.Agents = c.Agents
	m.driver = orchestrator.NewDriver(c.Orchestrator, c.FeedbackInterval, j, orchestrator.Ports{
		Feedback: m.sayFeedback,
		Desired: func(ctx context.Context, domain, id string, at time.Time, ds updateproto.DesiredState) error {
			return m.tell(ctx, domain, desiredState, id, at, ds)
		},
		Command: func(ctx context.Context, domain, id string, at time.Time, c string) error {
			return m.tell(ctx, domain, command, id, at, updateproto.Command{Command: c})
		},
		Consent: m.askOwner,
		Refresh: func(ctx context.Context, id string) {
			select {
			case m.wanted <- id:
			case <-ctx.Done():
			}
		},
		Safe:   func(ctx context.Context) (bool, string) { return gate.Safe(ctx, time.Now()) },
		Reboot: reboot,
	}, log)
	return m
}

// route fills in what is done with the messages of which topic.
func (m *Manager) route() {
	own := updateproto.Prefix(m.cfg.Domain)
	m.routes = make(map[string]route)
	if m.cfg.Things {
		m.routes[twin.ResponseTopic] = route{m.identified, true}
	} else {
		m.routes[own+desiredState] = route{handle: m.desired}
		m.routes[own+command] = route{handle: m.command}
		m.routes[own+currentStateGet] = route{handle: m.get}
		m.routes[own+ownerConsentSaid] = route{handle: m.consented}
	}
	if m.cfg.SafeTopic {
		m.routes[own+safeToReboot] = route{m.safe, true}
	}
	for domain := range m.cfg.Agents {
		p := updateproto.Prefix(domain)
		m.routes[p+feedback] = route{handle: func(ctx context.Context, msg *mqttbus.Message) error { return m.reported(ctx, domain, msg) }}
		m.routes[p+currentState] = route{func(ctx context.Context, msg *mqttbus.Message) error { return m.seen(ctx, domain, msg) }, true}
	}
}

// Run manages until ctx ends. It fails when the journal can no longer be written.
func (m *Manager) Run(ctx context.Context) error {
	boot := m.cfg.Boot
	if boot == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return fmt.Errorf("find out which boot this is: %w", err)
		}
		boot = strings.TrimSpace(string(id))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer m.inflight.Wait()
	ended := make(chan error, 1)
	m.inflight.Go(func() { ended <- m.driver.Run(ctx, boot) })
	m.inflight.Go(func() { m.publish(ctx) })
	defer cancel()
	m.current.ask = func(id string) { m.askAgents(ctx, id) }

	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if next := m.current.deadline(); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
		var err error
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return err
		case ev, ok := <-m.bus.Events():
			if !ok && ctx.Err() == nil {
				return errors.New("the bus is closed")
			}
			err = m.handle(ctx, ev)
		case id := <-m.wanted:
			m.current.refresh(time.Now(), id)
		case done := <-m.sent:
			done()
		case <-timer.C:
			m.current.tick(time.Now())
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// handle takes what happens on the bus. A message is acknowledged when what
// follows from it is durable.
func (m *Manager) handle(ctx context.Context, ev mqttbus.Event) error {
	switch ev.Kind {
	case mqttbus.Up:
		m.counters.up.Store(true)
		m.counters.connects.Add(1)
		if m.cfg.Things {
			m.queue(outgoing{topic: twin.RequestTopic})
			m.describe()
		}
		m.current.connected(time.Now())
		return m.driver.Handle(ctx, orchestrator.Connected{})
	case mqttbus.Down:
		m.counters.up.Store(false)
		m.held = nil // they come again
		m.current.disconnected()
		if m.cfg.SafeTopic {
			// It may say something else meanwhile. What the broker retains comes again with the next connection.
			m.gate.Said(false, "it cannot be heard, there is no connection to the broker")
		}
		return m.driver.Handle(ctx, orchestrator.Disconnected{})
	case mqttbus.Received:
		return m.receive(ctx, ev.Message)
	}
	return nil
}

func (m *Manager) receive(ctx context.Context, msg *mqttbus.Message) error {
	m.counters.messages.Add(1)
	r, ok := m.routes[msg.Topic]
	switch {
	case !ok && m.cfg.Things && twin.IsCommand(msg.Topic):
		r.handle = m.operation
		if m.north.Load() == nil && !msg.Retained {
			return m.hold(msg)
		}
	case !ok:
		m.log.Warn("message on an unexpected topic", "topic", msg.Topic)
		msg.Ack()
		return nil
	}
	if msg.Retained && !r.retained {
		// It would come again with every connect: what was asked for once would
		// be done again and again.
		m.log.Warn("retained message is ignored", "topic", msg.Topic)
		msg.Ack()
		return nil
	}
	if err := r.handle(ctx, msg); err != nil {
		return err
	}
	msg.Ack()
	return nil
}

// malformed notes a message that cannot be understood.
func (m *Manager) malformed(msg *mqttbus.Message, id string, err error) {
	m.counters.malformed.Add(1)
	m.log.Warn("message cannot be understood", "topic", msg.Topic, "activity", id, "error", err)
}

// desired takes a desired state.
func (m *Manager) desired(ctx context.Context, msg *mqttbus.Message) error {
	id, ds, err := updateproto.DecodeDesiredState(msg.Payload)
	if err != nil {
		m.malformed(msg, id, err)
		return m.driver.Handle(ctx, orchestrator.Refused{ID: id, Reason: "desired state: " + err.Error()})
	}
	return m.driver.Handle(ctx, orchestrator.Requested{ID: id, State: ds, Duplicate: msg.Duplicate})
}

// command takes a command to the manager itself.
func (m *Manager) command(ctx context.Context, msg *mqttbus.Message) error {
	var c updateproto.Command
	id, err := updateproto.Decode(msg.Payload, &c)
	switch {
	case err != nil && !errors.Is(err, updateproto.ErrNoActivityID):
		m.malformed(msg, id, err)
	case c.Command == updateproto.CommandRollback:
		// Without an id the orchestrator would take it for whatever runs. Who sends a message cannot know that: it may come late.
		if running := m.driver.Status().ActivityID; id == "" && running != "" {
			m.log.Warn("ROLLBACK without an activityId is ignored, expected that of the activity to cancel", "running", running)
			return nil
		}
		return m.driver.Handle(ctx, orchestrator.Cancelled{ID: id, By: "a command"})
	default:
		m.log.Warn(fmt.Sprintf("command %.40q is ignored, expected ROLLBACK to cancel: the agents get theirs from the update manager", c.Command), "activity", id)
	}
	return nil
}

// get takes a request for the current state. One that is malformed is answered
// as well: there is nothing in it to get wrong but the id.
func (m *Manager) get(_ context.Context, msg *mqttbus.Message) error {
	var id string
	if len(msg.Payload) > 0 {
		e, err := updateproto.DecodeEnvelope(msg.Payload)
		if id = e.ActivityID; err != nil && !errors.Is(err, updateproto.ErrNoActivityID) {
			m.malformed(msg, id, err)
		}
	}
	m.current.refresh(time.Now(), id)
	return nil
}

// consented takes the owner's answer.
func (m *Manager) consented(ctx context.Context, msg *mqttbus.Message) error {
	id, approved, err := updateproto.DecodeConsent(msg.Payload)
	if err != nil {
		m.malformed(msg, id, err)
		return nil
	}
	return m.answered(ctx, msg, id, approved)
}

func (m *Manager) answered(ctx context.Context, msg *mqttbus.Message, id string, approved bool) error {
	sum := sha256.Sum256(msg.Payload)
	return m.driver.Handle(ctx, orchestrator.Answered{
		ID: id, Approved: approved, Duplicate: msg.Duplicate, Fingerprint: hex.EncodeToString(sum[:16]),
	})
}

// reported takes the feedback of an agent.
func (m *Manager) reported(ctx context.Context, domain string, msg *mqttbus.Message) error {
	id, f, err := updateproto.DecodeFeedback(msg.Payload)
	if err != nil {
		m.malformed(msg, id, err)
		return nil
	}
	return m.driver.Handle(ctx, orchestrator.Reported{Domain: domain, ID: id, Feedback: f})
}

// seen takes the current state of an agent.
func (m *Manager) seen(ctx context.Context, domain string, msg *mqttbus.Message) error {
	if len(msg.Payload) == 0 {
		return nil // somebody has removed a retained one
	}
	id, at, inv, err := updateproto.DecodeInventory(msg.Payload)
	known := err == nil && m.cache.Put(domain, at, inv)
	fresh := !msg.Retained && m.current.answered(domain, id) // even a bad answer is one less to wait for
	switch {
	case err != nil:
		m.malformed(msg, id, err)
		return nil
	case !known:
		m.log.Warn("current state is older than the one before and is ignored", "domain", domain)
		return nil
	case id == "" && !msg.Retained:
		m.current.told(time.Now())
	}
	return m.driver.Handle(ctx, orchestrator.Seen{Domain: domain, Resumes: updateproto.Resumes(inv), Fresh: fresh})
}

// safe takes the vehicle's word on whether it may be rebooted. What is no
// clear yes is a no.
func (m *Manager) safe(_ context.Context, msg *mqttbus.Message) error {
	var word struct {
		Safe   bool   `json:"safe"`
		Reason string `json:"reason"`
	}
	if len(msg.Payload) == 0 {
		m.gate.Said(false, "the vehicle has taken back its word")
		return nil
	}
	if id, err := updateproto.Decode(msg.Payload, &word); err != nil && !errors.Is(err, updateproto.ErrNoActivityID) {
		m.malformed(msg, id, err)
		m.gate.Said(false, "what the vehicle says cannot be understood")
		return nil
	}
	m.gate.Said(word.Safe, word.Reason)
	return nil
}

// tell sends something to an agent.
func (m *Manager) tell(ctx context.Context, domain, topic, id string, at time.Time, payload any) error {
	data, err := updateproto.EncodeCompact(id, at, payload)
	if err != nil {
		return err
	}
	return m.bus.Publish(ctx, updateproto.Prefix(domain)+topic, false, data)
}

// askAgents asks all agents at once for their current state.
func (m *Manager) askAgents(ctx context.Context, id string) {
	for domain := range m.cfg.Agents {
		m.inflight.Go(func() {
			err := m.tell(ctx, domain, currentStateGet, id, time.Now(), nil)
			if err != nil && !errors.Is(err, mqttbus.ErrDown) && ctx.Err() == nil {
				m.log.Warn("cannot ask an agent for its current state", "domain", domain, "error", err)
			}
		})
	}
}

// publishCurrent publishes what is known of all domains, to answer r if there
// is one.
func (m *Manager) publishCurrent(id string, r *refresh) {
	n := m.north.Load()
	if n == nil {
		return // once the twin's name is known all is asked for again
	}
	all := m.cache.Merge(m.cfg.Domain+"-update-manager", m.cfg.Version, slices.Collect(maps.Keys(m.cfg.Agents)))
	o, err := n.current(id, time.Now(), all)
	if err != nil {
		m.log.Error("cannot encode the current state", "error", err)
	}
	o.done = func(ok bool) { m.current.published(r, ok) }
	if err != nil || !m.queue(o) {
		m.current.published(r, true)
	}
}

// queue hands a message to publish, which keeps the order.
func (m *Manager) queue(o outgoing) bool {
	select {
	case m.out <- o:
		return true
	default:
		m.log.Warn("too many messages wait to be published, one is left out", "topic", o.topic)
		return false
	}
}

// publish publishes what is queued.
func (m *Manager) publish(ctx context.Context) {
	for {
		var o outgoing
		select {
		case <-ctx.Done():
			return
		case o = <-m.out:
		}
		err := m.bus.Publish(ctx, o.topic, o.retained, o.data)
		down := errors.Is(err, mqttbus.ErrDown)
		if err != nil && !down && ctx.Err() == nil {
			m.log.Warn("cannot publish", "topic", o.topic, "error", err)
		}
		if o.done == nil {
			continue
		}
		select {
		case m.sent <- func() { o.done(!down) }:
		case <-ctx.Done():
			return
		}
	}
}

// Status says what is going on.
func (m *Manager) Status() orchestrator.Status { return m.driver.Status() }

// History has the activities that have ended, the newest last.
func (m *Manager) History() []orchestrator.Entry { return m.driver.History() }

// Cancel ends the activity with the given id in the old state, or whichever
// there is if id is empty.
func (m *Manager) Cancel(ctx context.Context, id string) error { return m.driver.Cancel(ctx, id) }

// Alive returns nil when messages and events are handled.
func (m *Manager) Alive() error {
	const limit = 10 * time.Second
	handled := make(chan struct{})
	late := time.After(limit)
	select {
	case m.sent <- func() { close(handled) }:
		<-handled
	case <-late:
		return errors.New("the update manager does not handle messages")
	}
	return m.driver.Alive()
}

// Counters says what has happened so far.
func (m *Manager) Counters() Counters {
	c := &m.counters
	return Counters{c.up.Load(), c.connects.Load(), c.messages.Load(), c.malformed.Load()}
}
