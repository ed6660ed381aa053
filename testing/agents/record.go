// SPDX-License-Identifier: Apache-2.0

package agents

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	gocmp "github.com/google/go-cmp/cmp"
)

// Recorder takes down what is on the bus, in its order. Nothing escapes it, also when the broker restarts.
type Recorder struct {
	tb      testing.TB
	publish func(topic string, retained bool, data []byte) mqtt.Token

	mu       sync.Mutex
	messages []Message
}

// Record starts to record the topics and returns once the broker knows.
func Record(tb testing.TB, broker string, topics ...string) *Recorder {
	tb.Helper()
	r := &Recorder{tb: tb}
	up := make(chan struct{}, 100)
	publish, end := dial(tb, broker, session(), topics, func() { up <- struct{}{} }, func(m Message) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.messages = append(r.messages, m)
	})
	r.publish = publish
	tb.Cleanup(end)
	select {
	case <-up:
	case <-time.After(10 * time.Second):
		tb.Fatalf("no connection to %s", broker)
	}
	return r
}

// Publish publishes a message and waits until the broker has it.
func (r *Recorder) Publish(topic, id string, payload any) {
	r.tb.Helper()
	r.PublishRaw(topic, encode(id, payload))
}

// PublishRaw publishes what need not be a message of the protocol.
func (r *Recorder) PublishRaw(topic string, data []byte) {
	r.tb.Helper()
	if t := r.publish(topic, false, data); !t.WaitTimeout(10*time.Second) || t.Error() != nil {
		r.tb.Fatalf("publish to %s: %v", topic, t.Error())
	}
}

// Messages returns all messages so far.
func (r *Recorder) Messages() []Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.messages)
}

// Of returns the messages of one activity.
func (r *Recorder) Of(id string) []Message {
	return slices.DeleteFunc(r.Messages(), func(m Message) bool { return m.ID != id })
}

// Forget drops all messages so far.
func (r *Recorder) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.messages = nil
}

// Manager is the north side of an update manager: all it says, and who asks it.
type Manager struct {
	*Recorder
	prefix string
}

// Watch records what the update manager of a domain says and is told.
func Watch(tb testing.TB, broker, domain string) *Manager {
	tb.Helper()
	p := Prefix(domain)
	return &Manager{Record(tb, broker, p+"/#"), p}
}

// Apply asks for a desired state.
func (m *Manager) Apply(id string, desiredState any) {
	m.tb.Helper()
	m.Publish(m.prefix+"/desiredstate", id, desiredState)
}

// Feedback returns what the manager has said about an activity.
func (m *Manager) Feedback(id string) []Feedback {
	var said []Feedback
	for _, msg := range m.Of(id) {
		if f, ok := msg.Feedback(); ok {
			said = append(said, f)
		}
	}
	return said
}

// End waits for the terminal feedback of an activity.
func (m *Manager) End(id string, limit time.Duration) Feedback {
	m.tb.Helper()
	var last Feedback
	Eventually(m.tb, limit, "terminal feedback of "+id, func() bool {
		i := slices.IndexFunc(m.Feedback(id), Feedback.Terminal)
		if i >= 0 {
			last = m.Feedback(id)[i]
		}
		return i >= 0
	})
	return last
}

// Target is a component that a desired state wants, in a version.
type Target struct {
	Domain, Component, Version string
	Image                      string // URL; one that leads nowhere when empty
}

// Desire makes the payload of a desired state. Every component has an image, because agents in the field need one.
func Desire(targets ...Target) any {
	type component struct {
		ID      string      `json:"id"`
		Version string      `json:"version"`
		Config  []parameter `json:"config"`
	}
	type domain struct {
		ID         string      `json:"id"`
		Components []component `json:"components"`
	}
	var domains []domain
	for _, t := range targets {
		c := component{t.Component, t.Version, []parameter{{"image", cmp.Or(t.Image, "https://images.example/"+t.Component)}}}
		i := slices.IndexFunc(domains, func(d domain) bool { return d.ID == t.Domain })
		if i < 0 {
			i = len(domains)
			domains = append(domains, domain{ID: t.Domain})
		}
		domains[i].Components = append(domains[i].Components, c)
	}
	return map[string]any{"domains": domains}
}

// String describes a message in one line: its topic and what matters in it, lists in order.
func (m Message) String() string {
	words := []string{m.Topic}
	if m.Retained {
		words = append(words, "(retained)")
	}
	var list []string
	switch _, kind, _ := strings.Cut(m.Topic, "/"); kind {
	case "desiredstate":
		var d desired
		_ = json.Unmarshal(m.Payload, &d)
		for _, domain := range d.Domains {
			for _, c := range domain.Components {
				list = append(list, fmt.Sprintf("%s:%s@%s", domain.ID, c.ID, c.Version))
			}
		}
	case "desiredstate/command":
		words = append(words, m.order())
	case "desiredstatefeedback":
		f, _ := m.Feedback()
		words = append(words, f.Status)
		for _, a := range f.Actions {
			list = append(list, fmt.Sprintf("%s@%s=%s", a.Component.ID, a.Component.Version, a.Status))
		}
	case "currentstate":
		var inventory struct{ SoftwareNodes []node }
		_ = json.Unmarshal(m.Payload, &inventory)
		for _, n := range inventory.SoftwareNodes {
			list = append(list, n.ID)
		}
	}
	slices.Sort(list)
	return strings.Join(append(words, list...), " ")
}

// Compare compares messages with a golden text of their lines, as String makes them, in steps with an empty line in
// between. Within a step the messages may come in any order, except that those of one topic keep theirs. A line that begins
// with ~ may also come in a later step; those that begin with # are comments. Compare returns the differences, or nothing.
func Compare(golden string, messages []Message) string {
	var diff strings.Builder
	var late []string
	next := func() string {
		line := messages[0].String()
		messages = messages[1:]
		return line
	}
	for n, step := range steps(golden) {
		var want, got []string
		for _, line := range step {
			if l, ok := strings.CutPrefix(line, "~ "); ok {
				late = append(late, l)
			} else {
				want = append(want, line)
			}
		}
		for len(got) < len(want) && len(messages) > 0 {
			line := next()
			if i := slices.Index(late, line); i >= 0 && !slices.Contains(want, line) {
				late = slices.Delete(late, i, i+1)
			} else {
				got = append(got, line)
			}
		}
		if d := gocmp.Diff(byTopic(want), byTopic(got)); d != "" {
			fmt.Fprintf(&diff, "step %d (-want +got):\n%s", n+1, d)
		}
	}
	var rest []string
	for len(messages) > 0 {
		rest = append(rest, next())
	}
	if d := gocmp.Diff(byTopic(late), byTopic(rest)); d != "" {
		fmt.Fprintf(&diff, "at the end (-want +got):\n%s", d)
	}
	return diff.String()
}

// steps parses a golden text.
func steps(golden string) [][]string {
	var all [][]string
	var step []string
	for line := range strings.Lines(golden + "\n\n") {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "#"):
		case line != "":
			step = append(step, line)
		case step != nil:
			all = append(all, step)
			step = nil
		}
	}
	return all
}

// byTopic sorts lines by topic and keeps the order of those with the same.
func byTopic(lines []string) []string {
	sorted := append([]string{}, lines...)
	slices.SortStableFunc(sorted, func(a, b string) int {
		a, _, _ = strings.Cut(a, " ")
		b, _, _ = strings.Cut(b, " ")
		return strings.Compare(a, b)
	})
	return sorted
}
