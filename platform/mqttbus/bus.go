// SPDX-License-Identifier: Apache-2.0

// Package mqttbus is the vehicle's bus: a session at an MQTT 3.1.1 broker that
// outlives broker, network and process.
//
// What comes in is handed out as one ordered stream of events. A message counts
// as received only when it is acknowledged: what was not is delivered again
// after the next connect, marked as a duplicate, also to the next process of
// the same client id. Handling therefore has to be idempotent.
package mqttbus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// ErrDown is the error of a Publish that found no connection or lost it before
// the broker had answered.
var ErrDown = errors.New("not connected to the bus")

const (
	timeout    = 10 * time.Second // for what the broker has to do
	backoffMin = 100 * time.Millisecond
	backoffMax = 5 * time.Second
	queueLimit = 512
)

// Kind is what an Event is about.
type Kind int

const (
	Up       Kind = iota + 1 // connected and subscribed
	Down                     // connection lost
	Received                 // a message
)

// Event is one thing that happened on the bus. Messages of a connection come
// after its Up; the first Up may take for ever to come.
type Event struct {
	Kind    Kind
	Message *Message // of Received
}

// Message is a message from the bus.
type Message struct {
	Topic     string
	Payload   []byte
	Retained  bool
	Duplicate bool // may have been delivered before
	ack       func()
	link      *link // it came over
}

// Ack tells the broker not to deliver the message again. It has no effect when
// the connection that brought the message is gone.
func (m *Message) Ack() {
	if m.ack != nil {
		m.ack()
	}
}

// Options are the client's wishes.
type Options struct {
	Subscriptions []string // topic filters, with QoS 1
	queue         int      // messages that wait to be taken, for tests
}

// Bus is a connection that is kept up. Its methods may be called concurrently.
type Bus struct {
	cfg    Config
	opt    Options
	log    *slog.Logger
	cancel context.CancelFunc
	events chan Event
	wake   chan struct{}
	done   chan struct{}

	mu    sync.Mutex
	queue []Event
	held  int   // messages in queue
	link  *link // nil when down
}

// link is one connection.
type link struct {
	client mqtt.Client
	down   chan struct{} // closed when it is no longer of use
	cycle  chan struct{} // asks for another connection

	// Guarded by Bus.mu.
	up    bool
	early []Event // messages that came before the link was up
	deaf  bool    // messages are no longer accepted, for want of space
}

// Connect starts to connect and returns at once. It only fails when cfg is not
// valid. Broker, network and files may come late and go: connecting is tried
// until ctx ends or Close is called, and each outage is logged once.
func Connect(ctx context.Context, cfg Config, log *slog.Logger, o Options) (*Bus, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	if o.queue == 0 {
		o.queue = queueLimit
	}
	ctx, cancel := context.WithCancel(ctx)
	b := &Bus{
		cfg:    cfg,
		opt:    o,
		log:    log,
		cancel: cancel,
		events: make(chan Event),
		wake:   make(chan struct{}, 1),
		done:   make(chan struct{}),
	}
	go b.pump(ctx)
	go b.run(ctx)
	return b, nil
}

// Events is the stream of all that happens. It is closed when the Bus is.
func (b *Bus) Events() <-chan Event { return b.events }

// Close ends the connection but not the session: the broker keeps messages
// for the next Connect with the same client id.
func (b *Bus) Close() {
	b.cancel()
	<-b.done
}

// Publish sends a message with QoS 1 and waits for the broker to have it. On
// any error the broker may have it or not. A broker that does not answer in
// time loses the connection.
func (b *Bus) Publish(ctx context.Context, topic string, retained bool, payload []byte) error {
	b.mu.Lock()
	l := b.link
	b.mu.Unlock()
	if l == nil {
		return fmt.Errorf("publish to %s: %w", topic, ErrDown)
	}
	sent := make(chan error, 1)
	go func() { // because the client may need long to notice that it is no longer connected
		t := l.client.Publish(topic, 1, retained, payload)
		select {
		case <-t.Done():
			sent <- t.Error()
		case <-l.down:
		}
	}()
	var err error
	select {
	case err = <-sent:
	case <-l.down:
		err = ErrDown
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(b.cfg.PublishTimeout):
		b.mu.Lock()
		if b.link == l {
			b.link = nil
			close(l.cycle)
		}
		b.mu.Unlock()
		err = fmt.Errorf("no answer from the broker: %w", ErrDown)
	}
	if err != nil {
		return fmt.Errorf("publish to %s: %w", topic, err)
	}
	return nil
}

// run keeps a link up.
func (b *Bus) run(ctx context.Context) {
	defer close(b.done)
	said := map[string]bool{} // what has been logged about this outage
	wait := backoffMin
	for {
		began := time.Now()
		up, err := b.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		lived := time.Since(began)
		switch reason := err.Error(); {
		case up:
			clear(said)
			said[kind(reason)] = true
			attrs := []any{"broker", b.cfg.Broker, "error", reason}
			if lived < backoffMax {
				attrs = append(attrs, "hint", fmt.Sprintf("if this repeats: is there another client with the id %q?", b.cfg.ClientID))
			}
			b.log.Warn("lost the connection to the bus, connecting again", attrs...)
		case !said[kind(reason)]:
			said[kind(reason)] = true
			b.log.Warn("cannot connect to the bus, will keep trying", "broker", b.cfg.Broker, "error", reason)
		}
		if up && lived > backoffMax {
			wait = backoffMin
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, backoffMax)
	}
}

// kind is the text of an error without what differs from attempt to attempt:
// the port on this side.
func kind(reason string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return -1
		}
		return r
	}, reason)
}

// serve connects, subscribes and stays until the link is lost. It says
// whether the link was up.
func (b *Bus) serve(ctx context.Context) (up bool, err error) {
	l := &link{down: make(chan struct{}), cycle: make(chan struct{})}
	lost := make(chan error, 1)
	if err := b.connect(ctx, l, lost); err != nil {
		return false, err
	}
	defer l.client.Disconnect(250)
	defer b.setDown(l)

	if err := b.subscribe(ctx, l, lost); err != nil {
		return false, err
	}
	b.setUp(l)
	b.log.Info("connected to the bus", "broker", b.cfg.Broker)
	select {
	case err = <-lost:
	case <-l.cycle:
		err = errors.New("too many messages at once, the broker has to deliver the rest again")
	case <-ctx.Done():
		err = ctx.Err()
	}
	return true, err
}

func (b *Bus) connect(ctx context.Context, l *link, lost chan<- error) error {
	password, err := b.cfg.password()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer cancel()

	var unhook func() bool
	o := mqtt.NewClientOptions().
		AddBroker("tcp://broker"). // dial knows the address
		SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) {
			conn, err := b.dial(ctx)
			if err == nil {
				unhook = context.AfterFunc(ctx, func() { conn.Close() })
			}
			return conn, err
		}).
		SetProtocolVersion(4).
		SetClientID(b.cfg.ClientID).
		SetCleanSession(false).
		SetUsername(b.cfg.User).
		SetPassword(password).
		SetKeepAlive(b.cfg.KeepAlive).
		SetPingTimeout(timeout).
		SetConnectTimeout(b.cfg.ConnectTimeout).
		SetWriteTimeout(timeout).
		SetAutoReconnect(false).
		SetConnectRetry(false).
		SetOrderMatters(true).
		SetAutoAckDisabled(true).
		SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { b.receive(l, m) }).
		SetConnectionLostHandler(func(_ mqtt.Client, err error) { lost <- err })
	l.client = mqtt.NewClient(o)

	t := l.client.Connect().(*mqtt.ConnectToken)
	<-t.Done()
	if t.Error() == nil && !unhook() {
		l.client.Disconnect(0)
		return ctx.Err()
	}
	return b.explain(t)
}

// explain returns the reason why a connect failed.
func (b *Bus) explain(t *mqtt.ConnectToken) error {
	err := t.Error()
	if err == nil {
		return nil
	}
	const badUserOrPassword, notAuthorized = 4, 5 // MQTT 3.1.1, table 3.1
	switch rc := t.ReturnCode(); {
	case rc == badUserOrPassword || rc == notAuthorized:
		if b.cfg.User == "" {
			return fmt.Errorf("the broker wants a user name and password, or a client certificate: %w", err)
		}
		return fmt.Errorf("the broker refuses user %q, or the password is wrong: %w", b.cfg.User, err)
	}
	// The client wraps what went wrong in words that say less.
	if list, ok := err.(interface{ Unwrap() []error }); ok {
		if errs := list.Unwrap(); len(errs) > 0 && errs[len(errs)-1] != nil {
			return errs[len(errs)-1]
		}
	}
	return err
}

// dial opens the connection.
func (b *Bus) dial(ctx context.Context) (net.Conn, error) {
	addr, secure, err := b.cfg.address()
	if err != nil {
		return nil, err
	}
	var config *tls.Config
	if secure {
		if config, err = b.cfg.tls(addr); err != nil {
			return nil, err
		}
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if !secure {
		return deadlineConn{conn}, nil
	}
	t := tls.Client(conn, config)
	if err := t.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("TLS handshake with %s: %w", addr, err)
	}
	return deadlineConn{t}, nil
}

// deadlineConn is a connection whose writes end, also when the broker has
// stopped reading. The client sets a deadline for some packets only.
type deadlineConn struct{ net.Conn }

func (c deadlineConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

func (b *Bus) subscribe(ctx context.Context, l *link, lost <-chan error) error {
	if len(b.opt.Subscriptions) == 0 {
		return nil
	}
	filters := make(map[string]byte)
	for _, topic := range b.opt.Subscriptions {
		filters[topic] = 1
	}
	t := l.client.SubscribeMultiple(filters, nil).(*mqtt.SubscribeToken)
	select {
	case <-t.Done():
	case err := <-lost:
		return fmt.Errorf("subscribe: %w", err)
	case <-time.After(b.cfg.SubscribeTimeout):
		return errors.New("subscribe: the broker does not answer")
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := t.Error(); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	const refused = 0x80 // MQTT 3.1.1, 3.9.3
	for topic, code := range t.Result() {
		if code == refused {
			return fmt.Errorf("subscribe: the broker does not allow %s", topic)
		}
	}
	return nil
}

// receive is called by the client for each message, in order. It never blocks.
func (b *Bus) receive(l *link, m mqtt.Message) {
	ev := Event{Received, &Message{m.Topic(), m.Payload(), m.Retained(), m.Duplicate(), m.Ack, l}}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case l.deaf:
	case b.held+len(l.early) >= b.opt.queue:
		// Later messages must not overtake this one: the connection has served
		// its time once the messages that wait have been taken.
		l.deaf = true
	case l.up:
		b.push(ev)
	default:
		l.early = append(l.early, ev)
	}
}

func (b *Bus) setUp(l *link) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.link = l
	l.up = true
	b.push(Event{Kind: Up})
	for _, ev := range l.early {
		b.push(ev)
	}
	l.early = nil
}

func (b *Bus) setDown(l *link) {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(l.down)
	b.link = nil
	if !l.up {
		return
	}
	// What came over this link and waits here can no longer be acknowledged;
	// the next link brings it again.
	b.queue = slices.DeleteFunc(b.queue, func(ev Event) bool {
		lost := ev.Kind == Received && ev.Message.link == l
		if lost {
			b.held--
		}
		return lost
	})
	// An Up that nobody has seen yet is not worth mentioning any more. This
	// also keeps the queue short when nobody takes from it.
	if n := len(b.queue); n > 0 && b.queue[n-1].Kind == Up {
		b.queue = b.queue[:n-1]
		return
	}
	b.push(Event{Kind: Down})
}

// push is called with b.mu held.
func (b *Bus) push(ev Event) {
	b.queue = append(b.queue, ev)
	if ev.Kind == Received {
		b.held++
	}
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// pump hands out the queue.
func (b *Bus) pump(ctx context.Context) {
	defer close(b.events)
	for {
		ev, ok := b.pop()
		if !ok {
			select {
			case <-b.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case b.events <- ev:
		case <-ctx.Done():
			return
		}
	}
}

func (b *Bus) pop() (Event, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 {
		if l := b.link; l != nil && l.deaf {
			b.link = nil
			close(l.cycle)
		}
		return Event{}, false
	}
	ev := b.queue[0]
	b.queue[0] = Event{}
	b.queue = b.queue[1:]
	if ev.Kind == Received {
		b.held--
	}
	return ev, true
}
