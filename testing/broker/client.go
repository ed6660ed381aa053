// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// Client is another party on the bus: it publishes and hears what is published.
// It fails the test when something does not work. It does not live through a
// restart of the broker.
type Client struct {
	tb       testing.TB
	mqtt     mqtt.Client
	messages chan Message
}

// Message is what a Client has heard.
type Message struct {
	Topic    string
	Payload  string
	Retained bool
	At       time.Time
}

// Login says where a client connects, and as whom.
type Login struct {
	Addr, User, Password string
	TLS                  *tls.Config
	Session              string // name of a session that the broker keeps when the client leaves
}

// Client connects a client that hears the given topics.
func (b *Broker) Client(tb testing.TB, topics ...string) *Client {
	tb.Helper()
	l := Login{Addr: b.Addr, User: b.opt.User, Password: b.opt.Password}
	if b.opt.TLS {
		l.TLS = b.clientTLS()
	}
	return Connect(tb, l, topics...)
}

// Connect connects a client to any broker.
func Connect(tb testing.TB, l Login, topics ...string) *Client {
	tb.Helper()
	c := &Client{tb: tb, messages: make(chan Message, 10000)}
	o := l.options()
	o.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) {
		select {
		case c.messages <- Message{m.Topic(), string(m.Payload()), m.Retained(), time.Now()}:
		default:
			tb.Error("test client: too many messages")
		}
	})
	c.mqtt = mqtt.NewClient(o)
	c.wait("connect", c.mqtt.Connect())
	tb.Cleanup(c.Leave)
	for _, topic := range topics {
		c.wait("subscribe", c.mqtt.Subscribe(topic, 1, nil))
	}
	return c
}

// Try connects, and returns why that did not work.
func (l Login) Try() error {
	c := mqtt.NewClient(l.options())
	t := c.Connect()
	if t.WaitTimeout(10*time.Second) && t.Error() == nil {
		c.Disconnect(0)
	}
	return t.Error()
}

func (l Login) options() *mqtt.ClientOptions {
	url := "tcp://" + l.Addr
	if l.TLS != nil {
		url = "ssl://" + l.Addr
	}
	return mqtt.NewClientOptions().AddBroker(url).SetTLSConfig(l.TLS).SetAutoReconnect(false).
		SetClientID(cmp.Or(l.Session, fmt.Sprintf("test-%d", time.Now().UnixNano()))).SetCleanSession(l.Session == "").
		SetUsername(l.User).SetPassword(l.Password)
}

// Leave ends the connection.
func (c *Client) Leave() { c.mqtt.Disconnect(100) }

// Publish publishes a message with QoS 1.
func (c *Client) Publish(topic, payload string) {
	c.tb.Helper()
	c.wait("publish", c.mqtt.Publish(topic, 1, false, payload))
}

// Retain publishes a retained message with QoS 1.
func (c *Client) Retain(topic, payload string) {
	c.tb.Helper()
	c.wait("publish", c.mqtt.Publish(topic, 1, true, payload))
}

// Next returns the next message, which has to come within the timeout.
func (c *Client) Next(timeout time.Duration) Message {
	c.tb.Helper()
	select {
	case m := <-c.messages:
		return m
	case <-time.After(timeout):
		c.tb.Fatalf("no message within %s", timeout)
		panic("unreachable")
	}
}

// Quiet fails the test if a message comes within d.
func (c *Client) Quiet(d time.Duration) {
	c.tb.Helper()
	select {
	case m := <-c.messages:
		c.tb.Fatalf("unexpected message on %s: %s", m.Topic, m.Payload)
	case <-time.After(d):
	}
}

// Messages is the stream behind Next.
func (c *Client) Messages() <-chan Message { return c.messages }

func (c *Client) wait(what string, t mqtt.Token) {
	c.tb.Helper()
	if !t.WaitTimeout(10 * time.Second) {
		c.tb.Fatalf("test client: %s: no answer from the broker", what)
	}
	if err := t.Error(); err != nil {
		c.tb.Fatalf("test client: %s: %v", what, err)
	}
}

func (b *Broker) clientTLS() *tls.Config {
	pem, err := os.ReadFile(b.CAFile)
	if err != nil {
		b.tb.Fatal(err)
	}
	t := &tls.Config{RootCAs: x509.NewCertPool()}
	t.RootCAs.AppendCertsFromPEM(pem)
	if b.opt.MTLS {
		cert, err := tls.LoadX509KeyPair(b.CertFile, b.KeyFile)
		if err != nil {
			b.tb.Fatal(err)
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return t
}
