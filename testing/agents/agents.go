// SPDX-License-Identifier: Apache-2.0

// Package agents has update agents for tests of an update manager: MQTT clients that behave as the agents in the field do,
// good and bad manners included, and do what a Script says instead of updating anything.
//
// Two of the styles are written from the description of the protocol alone and share no code with the manager, so that a
// mistake in a package that both would use cannot hide. They remember what they were sent, in its order.
package agents

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Style is whose manners an agent has.
type Style int

const (
	// Original answers as the container update agent of Eclipse Kanto: a command that does not fit gets its failure status,
	// what comes in while a step is under way is done after it.
	Original Style = iota
	// Leda answers as the self-update agent of Eclipse Leda: "nothing to do" is COMPLETED without IDENTIFIED, ROLLBACK is done
	// without a word, success is spelled COMPLETE, what does not fit is ignored, also a desired state unless it is idle.
	Leda
	// Resuming is an agent of sdvbox: it goes on after a restart and says so in its current state.
	Resuming
)

// Identify stands for the desired state where a Script speaks of commands, and CurrentState for the request of the inventory.
const (
	Identify     = "IDENTIFY"
	CurrentState = "CURRENTSTATE"
)

// Script is what an agent is and does.
type Script struct {
	Domain string
	Style  Style
	// Installed are the versions of the components that are there at the beginning. Each component of a desired state that
	// is there in another version, or not at all, is an action.
	Installed map[string]string
	Fail      map[string]string // text of the failure, by command
	Silent    map[string]bool   // commands that get no answer and are not followed
	Delay     time.Duration     // time that each step takes
	Progress  int               // messages of progress in each step; at least one
	// RebootRequired says that what was activated is there only after a Reboot.
	RebootRequired bool
}

// Agent is a running agent.
type Agent struct {
	tb     testing.TB
	broker string

	mu        sync.Mutex
	script    Script
	installed map[string]string
	pending   map[string]string // there after a reboot
	orders    []Message
	idle      bool
	end       func() // of the process
	journal   string // of a resuming agent
}

// Start starts an agent that ends with the test, and returns once it has published its current state. The broker is
// tcp://HOST:PORT; it may go and come back later.
func Start(tb testing.TB, broker string, s Script) *Agent {
	tb.Helper()
	a := &Agent{tb: tb, broker: broker, script: s, installed: maps.Clone(s.Installed), idle: true}
	if a.installed == nil {
		a.installed = map[string]string{}
	}
	if s.Style == Resuming {
		a.journal = tb.TempDir()
	}
	tb.Cleanup(a.Stop)
	a.launch()
	return a
}

// launch starts the agent's process, so to say, and waits until it is there.
func (a *Agent) launch() {
	a.tb.Helper()
	there := make(chan struct{}, 1)
	present := func() {
		select {
		case there <- struct{}{}:
		default:
		}
	}
	if a.script.Style == Resuming {
		a.end = a.resume(present)
	} else {
		a.end = a.serve(present)
	}
	select {
	case <-there:
	case <-time.After(20 * time.Second):
		a.tb.Fatalf("agent %s: no current state", a.script.Domain)
	}
}

// Stop ends the agent as a crash would: without a word.
func (a *Agent) Stop() {
	if a.end != nil {
		a.end()
		a.end = nil
	}
}

// Restart starts the agent again, after Stop if it runs. Only a resuming agent remembers what it was doing.
func (a *Agent) Restart() {
	a.Stop()
	a.mu.Lock()
	if a.script.Style != Resuming {
		a.idle = true
	}
	a.mu.Unlock()
	a.launch()
}

// Reboot restarts the agent on what was activated, or on what was there before if that does not start.
func (a *Agent) Reboot(starts bool) {
	a.Stop()
	a.mu.Lock()
	if starts && a.pending != nil {
		a.installed = a.pending
	}
	a.pending = nil
	a.mu.Unlock()
	a.Restart()
}

// Change changes the script of a running agent.
func (a *Agent) Change(change func(*Script)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(&a.script)
}

// Sent returns what the agent was sent, oldest first.
func (a *Agent) Sent() []Message {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.orders)
}

// Orders returns what the agent was sent about one activity, in words: IDENTIFY for the desired state, then the commands.
func (a *Agent) Orders(id string) []string {
	var orders []string
	for _, m := range a.Sent() {
		if what := m.order(); m.ID == id && what != CurrentState {
			orders = append(orders, what)
		}
	}
	return orders
}

// Forget drops what Sent would return.
func (a *Agent) Forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.orders = nil
}

// Idle says whether the agent has no activity open: nobody has to send it anything.
func (a *Agent) Idle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.idle
}

// Installed returns the version of each component that is there now.
func (a *Agent) Installed() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.installed)
}

func (a *Agent) setIdle(idle bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.idle = idle
}

// heard takes down what the agent was sent.
func (a *Agent) heard(m Message) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.orders = append(a.orders, m)
}

// now returns the script as it is at the moment.
func (a *Agent) now() Script {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.script
	s.Fail, s.Silent = maps.Clone(s.Fail), maps.Clone(s.Silent)
	s.Progress = max(s.Progress, 1)
	return s
}

// differing returns what a target would change, by component in order.
func (a *Agent) differing(target map[string]string) []Action {
	a.mu.Lock()
	defer a.mu.Unlock()
	var actions []Action
	for _, id := range slices.Sorted(maps.Keys(target)) {
		if a.installed[id] != target[id] {
			actions = append(actions, Action{Component: Component{a.script.Domain + ":" + id, target[id]}, Status: "IDENTIFIED"})
		}
	}
	return actions
}

// install makes the target be there, at once or after a reboot, and returns how to undo it.
func (a *Agent) install(target map[string]string) (undo func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.installed
	after := maps.Clone(before)
	maps.Copy(after, target)
	if a.script.RebootRequired {
		a.pending = after
	} else {
		a.installed = after
	}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.installed, a.pending = before, nil
	}
}

// Prefix is the first part of the topics of a domain.
func Prefix(domain string) string {
	return strings.TrimSuffix(strings.ReplaceAll(domain, "-", ""), "update") + "update"
}

// Component names what an action is about.
type Component struct {
	ID      string `json:"id,omitempty"`
	Version string `json:"version,omitempty"`
}

// Action is the progress of one component.
type Action struct {
	Component Component `json:"component"`
	Status    string    `json:"status,omitempty"`
	Progress  int       `json:"progress,omitempty"`
	Message   string    `json:"message,omitempty"`
}

// Feedback is how far an update is, of a domain or of the vehicle.
type Feedback struct {
	Status   string   `json:"status,omitempty"`
	Baseline string   `json:"baseline,omitempty"`
	Message  string   `json:"message,omitempty"`
	Actions  []Action `json:"actions,omitempty"`
}

// Terminal says whether the feedback of an update manager is the last one of its activity.
func (f Feedback) Terminal() bool {
	return f.Status == "COMPLETED" || f.Status == "INCOMPLETE" || f.Status == "IDENTIFICATION_FAILED"
}

// desired is the part of a desired state that an agent reads.
type desired struct {
	Domains []struct {
		ID         string `json:"id"`
		Components []struct {
			ID      string `json:"id"`
			Version string `json:"version"`
			Config  []struct{ Key, Value string }
		} `json:"components"`
	} `json:"domains"`
}

// envelope is what all messages have in common.
type envelope struct {
	ActivityID string `json:"activityId"`
	Timestamp  int64  `json:"timestamp"`
	Payload    any    `json:"payload"`
}

func encode(id string, payload any) []byte {
	data, err := json.Marshal(envelope{id, time.Now().UnixMilli(), payload})
	if err != nil {
		panic(err) // only types of this package and of tests come here
	}
	return data
}

// Eventually waits until the condition is true, for at most the given time.
func Eventually(tb testing.TB, limit time.Duration, what string, condition func() bool) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), limit)
	defer cancel()
	for !condition() {
		select {
		case <-ctx.Done():
			tb.Fatalf("not within %s: %s", limit, what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
