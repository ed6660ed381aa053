// SPDX-License-Identifier: Apache-2.0

// Package ota plays the one who updates a vehicle, or one domain of it: it
// publishes the desired state and commands, as the documentation's tutorials
// do by hand, and follows the feedback.
package ota

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"sdvbox/platform/mqttbus"
	"sdvbox/platform/updateproto"
)

// Feedback is one message of the vehicle about an activity.
type Feedback struct {
	ActivityID string
	At         time.Time
	updateproto.Feedback
}

// Detail is the message of the one action, or that of the whole.
func (f Feedback) Detail() string {
	if len(f.Actions) > 0 && f.Actions[0].Message != "" {
		return f.Actions[0].Message
	}
	return f.Message
}

// Progress is the percentage of the one action.
func (f Feedback) Progress() int {
	if len(f.Actions) > 0 {
		return f.Actions[0].Progress
	}
	return 0
}

// Failed reports whether the status says that a step did not succeed.
func (f Feedback) Failed() bool {
	return strings.HasSuffix(f.Status, "_FAILURE") || strings.HasSuffix(f.Status, "_FAILED") || f.Status == updateproto.StatusIncomplete
}

var errClosed = errors.New("the connection has been closed")

// Driver is connected to a vehicle's broker. It is for one goroutine.
type Driver struct {
	bus             *mqttbus.Bus
	prefix, session string
	// Heard is everything heard so far, in order.
	Heard []Feedback
	// OnFeedback, when set, is called with each feedback as it comes.
	OnFeedback func(Feedback)

	inventory updateproto.Inventory
	answered  string // activity id of the last one
}

// Dial connects to a broker and waits until it is there. What is driven is the domain: "vehicle", by way of its update manager,
// or one of the vehicle's own.
func Dial(ctx context.Context, domain string, broker mqttbus.Config) (*Driver, error) {
	d := &Driver{prefix: updateproto.Prefix(domain), session: "ota-" + rand.Text()}
	return d, d.connect(ctx, broker)
}

// Again connects again, as after a reboot. What has been said since comes, too.
func (d *Driver) Again(ctx context.Context, broker mqttbus.Config) error {
	d.Close()
	return d.connect(ctx, broker)
}

func (d *Driver) connect(ctx context.Context, broker mqttbus.Config) error {
	broker.ClientID = d.session
	// The connection outlives ctx, which is about connecting.
	bus, err := mqttbus.Connect(context.WithoutCancel(ctx), broker, slog.New(slog.DiscardHandler), mqttbus.Options{
		Subscriptions: []string{d.prefix + "/desiredstatefeedback", d.prefix + "/currentstate"},
	})
	if err != nil {
		return err
	}
	d.bus = bus
	if err := d.until(ctx, func(ev mqttbus.Event) bool { return ev.Kind == mqttbus.Up }); err != nil {
		bus.Close()
		return fmt.Errorf("connect to %s: %w", broker.Broker, err)
	}
	return nil
}

// Close disconnects.
func (d *Driver) Close() { d.bus.Close() }

// until takes events until done.
func (d *Driver) until(ctx context.Context, done func(mqttbus.Event) bool) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ev, ok := <-d.bus.Events():
			if !ok {
				return errClosed
			}
			if ev.Kind == mqttbus.Received {
				d.receive(ev.Message)
				ev.Message.Ack()
			}
			if done(ev) {
				return nil
			}
		}
	}
}

func (d *Driver) receive(m *mqttbus.Message) {
	switch m.Topic {
	case d.prefix + "/desiredstatefeedback":
		var f updateproto.Feedback
		if id, err := updateproto.Decode(m.Payload, &f); err == nil {
			d.Heard = append(d.Heard, Feedback{id, time.Now(), f})
			if d.OnFeedback != nil {
				d.OnFeedback(d.Heard[len(d.Heard)-1])
			}
		}
	case d.prefix + "/currentstate":
		var inv updateproto.Inventory
		id, _ := updateproto.Decode(m.Payload, &inv)
		d.inventory, d.answered = inv, id
	}
}

// publish retries over a broker that is away.
func (d *Driver) publish(ctx context.Context, topic, id string, payload any) error {
	data, err := updateproto.Encode(id, time.Now(), payload)
	if err != nil {
		return err
	}
	return d.send(ctx, topic, data)
}

// Send publishes a desired state as it is.
func (d *Driver) Send(ctx context.Context, message []byte) error {
	return d.send(ctx, d.prefix+"/desiredstate", message)
}

func (d *Driver) send(ctx context.Context, topic string, data []byte) error {
	for {
		err := d.bus.Publish(ctx, topic, false, data)
		if err == nil {
			return nil
		}
		wait, cancel := context.WithTimeout(ctx, time.Second)
		closed := d.until(wait, func(ev mqttbus.Event) bool { return ev.Kind == mqttbus.Up })
		cancel()
		if ctx.Err() != nil || errors.Is(closed, errClosed) {
			return fmt.Errorf("publish to %s: %w", topic, err)
		}
	}
}

// Inventory asks for the inventory, again and again until the vehicle
// answers: its agent may not have subscribed yet.
func (d *Driver) Inventory(ctx context.Context) (updateproto.Inventory, error) {
	for {
		id := "inventory-" + rand.Text()
		if err := d.publish(ctx, d.prefix+"/currentstate/get", id, nil); err != nil {
			return updateproto.Inventory{}, err
		}
		wait, cancel := context.WithTimeout(ctx, 3*time.Second)
		err := d.until(wait, func(mqttbus.Event) bool { return d.answered == id })
		cancel()
		if err == nil {
			return d.inventory, nil
		}
		if ctx.Err() != nil {
			return updateproto.Inventory{}, fmt.Errorf("wait for the inventory: %w", ctx.Err())
		}
	}
}

// Version asks which version of the OS image runs.
func (d *Driver) Version(ctx context.Context) (string, error) {
	inv, err := d.Inventory(ctx)
	if err != nil {
		return "", err
	}
	for _, n := range inv.SoftwareNodes {
		if n.ID == "self-update:os-image" {
			return n.Version, nil
		}
	}
	return "", fmt.Errorf("the inventory names no OS image: %+v", inv)
}

// Request publishes a desired state with the bundle at url.
func (d *Driver) Request(ctx context.Context, id, version, url string) error {
	return d.publish(ctx, d.prefix+"/desiredstate", id, updateproto.DesiredState{Domains: []updateproto.Domain{{
		ID: "self-update",
		Components: []updateproto.Component{{
			ID: "os-image", Version: version,
			Config: []updateproto.KeyValue{{Key: "image", Value: url}},
		}},
	}}})
}

// Command publishes a command.
func (d *Driver) Command(ctx context.Context, id, command string) error {
	return d.publish(ctx, d.prefix+"/desiredstate/command", id, updateproto.Command{Command: command})
}

// Await returns the next feedback for the activity with one of the statuses.
func (d *Driver) Await(ctx context.Context, id string, statuses ...string) (Feedback, error) {
	heard := len(d.Heard)
	var found Feedback
	err := d.until(ctx, func(mqttbus.Event) bool {
		for ; heard < len(d.Heard); heard++ {
			if f := d.Heard[heard]; f.ActivityID == id && slices.Contains(statuses, f.Status) {
				found = f
				return true
			}
		}
		return false
	})
	if err != nil {
		return found, fmt.Errorf("wait for %s of activity %s: %w; last heard: %s", strings.Join(statuses, " or "), id, err, d.last())
	}
	return found, nil
}

func (d *Driver) last() string {
	if len(d.Heard) == 0 {
		return "nothing"
	}
	data, _ := json.Marshal(d.Heard[len(d.Heard)-1].Feedback)
	return string(data)
}

// answers are the statuses that end a step.
func answers(command string) []string {
	switch command {
	case "":
		return []string{"IDENTIFIED", "IDENTIFICATION_FAILED"}
	case updateproto.CommandDownload:
		return []string{"DOWNLOAD_SUCCESS", "DOWNLOAD_FAILURE"}
	case updateproto.CommandUpdate:
		return []string{"UPDATE_SUCCESS", "UPDATE_FAILURE"}
	case updateproto.CommandActivate:
		return []string{"ACTIVATION_SUCCESS", "ACTIVATION_FAILURE"}
	}
	return []string{"COMPLETE", "COMPLETED", "INCOMPLETE"}
}

// Step sends a command and waits for its answer: for CLEANUP and ROLLBACK the
// terminal status, for the others success or failure of the step. A failure is
// a Feedback, not an error.
func (d *Driver) Step(ctx context.Context, id, command string) (Feedback, error) {
	if err := d.Command(ctx, id, command); err != nil {
		return Feedback{}, err
	}
	return d.Await(ctx, id, answers(command)...)
}

// Update requests a version and sends the commands one after the other as long
// as the steps succeed; CLEANUP is sent also after a failure. It returns the
// last answer.
func (d *Driver) Update(ctx context.Context, id, version, url string, commands ...string) (Feedback, error) {
	if err := d.Request(ctx, id, version, url); err != nil {
		return Feedback{}, err
	}
	f, err := d.Await(ctx, id, answers("")...)
	for _, c := range commands {
		if err != nil {
			break
		}
		if f.Failed() && c != updateproto.CommandCleanup {
			continue
		}
		f, err = d.Step(ctx, id, c)
	}
	return f, err
}

// Terminals counts the terminal statuses heard of an activity.
func (d *Driver) Terminals(id string) int {
	n := 0
	for _, f := range d.Heard {
		if f.ActivityID == id && slices.Contains(answers(updateproto.CommandCleanup), f.Status) {
			n++
		}
	}
	return n
}
