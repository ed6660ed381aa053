// SPDX-License-Identifier: Apache-2.0

package agents

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// Message is one that was on the bus.
type Message struct {
	At       time.Time
	Topic    string
	ID       string // of the activity
	Payload  json.RawMessage
	Retained bool
	Raw      []byte
}

// order is what the message asks of an agent, empty for a message from one.
func (m Message) order() string {
	switch _, kind, _ := strings.Cut(m.Topic, "/"); kind {
	case "desiredstate":
		return Identify
	case "currentstate/get":
		return CurrentState
	case "desiredstate/command":
		var c struct {
			Command string `json:"command"`
		}
		_ = json.Unmarshal(m.Payload, &c)
		return cmp.Or(c.Command, "?")
	}
	return ""
}

// Feedback returns the payload of a message that is one.
func (m Message) Feedback() (Feedback, bool) {
	var f Feedback
	ok := strings.HasSuffix(m.Topic, "/desiredstatefeedback") && json.Unmarshal(m.Payload, &f) == nil
	return f, ok
}

// dial connects a client that takes each message of the topics and connects again for ever. With a session of its own it
// misses nothing that is published meanwhile. Returned is how to publish, and how to end.
func dial(tb testing.TB, broker, session string, topics []string, connected func(), take func(Message)) (publish func(topic string, retained bool, data []byte) mqtt.Token, end func()) {
	filters := map[string]byte{}
	for _, topic := range topics {
		filters[topic] = 1
	}
	o := mqtt.NewClientOptions().
		AddBroker(broker).
		SetClientID(session).
		SetCleanSession(session == "").
		SetConnectRetry(true).
		SetConnectRetryInterval(50 * time.Millisecond).
		SetMaxReconnectInterval(50 * time.Millisecond).
		SetOnConnectHandler(func(c mqtt.Client) {
			if c.SubscribeMultiple(filters, nil).WaitTimeout(10*time.Second) && connected != nil {
				connected()
			}
		}).
		SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) {
			msg := Message{At: time.Now(), Topic: m.Topic(), Retained: m.Retained(), Raw: m.Payload()}
			var e struct {
				ActivityID string          `json:"activityId"`
				Payload    json.RawMessage `json:"payload"`
			}
			_ = json.Unmarshal(m.Payload(), &e)
			msg.ID, msg.Payload = e.ActivityID, e.Payload
			take(msg)
		})
	c := mqtt.NewClient(o)
	c.Connect()
	return func(topic string, retained bool, data []byte) mqtt.Token { return c.Publish(topic, 1, retained, data) },
		sync.OnceFunc(func() { c.Disconnect(100) })
}

// session returns a name that no other client has.
func session() string { return fmt.Sprintf("test-%d", time.Now().UnixNano()) }
