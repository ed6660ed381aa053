// SPDX-License-Identifier: Apache-2.0

package agents

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// foreign is the process of an agent in the style of Original or Leda.
type foreign struct {
	*Agent
	s       Script // the one of the step under way
	publish func(topic string, retained bool, data []byte) mqtt.Token
	update  *update
	waiting []Message // until the step under way has ended
	work    *work
}

// update is the one activity that the agent has open.
type update struct {
	id      string
	at      phase
	target  map[string]string
	actions []Action
	undo    func()
}

// phase is how far an update has come.
type phase int

const (
	identified phase = iota
	downloaded
	updated
	activated
	failed // in any step before activation, or there was nothing to do
	notActivated
	rolledBack
)

// work is a step that takes time.
type work struct {
	left   int // messages of progress still to come
	pause  time.Duration
	say    func(left int)
	finish func()
	next   *time.Timer
}

// step is what a command of the way forward does.
type step struct {
	from, to, fail               phase
	doing, success, failure      string
	action, actionOK, actionFail string
}

func (f *foreign) step(command string) (step, bool) {
	switch command {
	case "DOWNLOAD":
		return step{identified, downloaded, failed, "DOWNLOADING", "DOWNLOAD_SUCCESS", "DOWNLOAD_FAILURE",
			"DOWNLOADING", "DOWNLOAD_SUCCESS", "DOWNLOAD_FAILURE"}, true
	case "UPDATE":
		return step{downloaded, updated, failed, "UPDATING", "UPDATE_SUCCESS", "UPDATE_FAILURE",
			"UPDATING", "UPDATE_SUCCESS", "UPDATE_FAILURE"}, true
	case "ACTIVATE":
		s := step{updated, activated, notActivated, "ACTIVATING", "ACTIVATION_SUCCESS", "ACTIVATION_FAILURE",
			"ACTIVATING", "ACTIVATION_SUCCESS", "ACTIVATION_FAILURE"}
		if f.s.Style == Leda {
			s.fail, s.action, s.actionOK, s.actionFail = failed, "UPDATING", "UPDATED", "UPDATE_FAILURE"
		}
		return s, true
	}
	return step{}, false
}

// serve connects the agent and returns how to end it. Each time that the agent has connected it calls present.
func (a *Agent) serve(present func()) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	inbox, up := make(chan Message, 10000), make(chan struct{}, 1)
	p := Prefix(a.script.Domain)
	f := &foreign{Agent: a}
	publish, disconnect := dial(a.tb, a.broker, "", []string{p + "/desiredstate", p + "/desiredstate/command", p + "/currentstate/get"},
		func() { up <- struct{}{} },
		func(m Message) { inbox <- m })
	f.publish = publish
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			var next <-chan time.Time
			if f.work != nil {
				next = f.work.next.C
			}
			select {
			case <-ctx.Done():
				return
			case <-up:
				f.s = f.now()
				t := f.currentState("")
				go func() {
					if t.Wait() && t.Error() == nil {
						present()
					}
				}()
			case m := <-inbox:
				f.heard(m)
				f.take(m)
			case <-next:
				f.proceed()
			}
		}
	}()
	return func() {
		cancel()
		<-ended
		disconnect()
	}
}

// take handles a message as soon as its turn has come.
func (f *foreign) take(m Message) {
	order := m.order()
	switch {
	case order == CurrentState:
		// The agent of Leda does not answer in an update.
		if s := f.now(); !s.Silent[CurrentState] && (s.Style == Original || f.update == nil) {
			f.currentState(m.ID)
		}
	case f.work != nil && f.s.Style == Original:
		f.waiting = append(f.waiting, m)
	case f.work != nil && order != "ROLLBACK":
	default:
		f.s = f.now()
		if f.s.Silent[order] {
			return
		}
		if order == Identify {
			f.identify(m)
		} else {
			f.command(m.ID, order)
		}
	}
}

func (f *foreign) identify(m Message) {
	if f.s.Style == Leda && f.update != nil {
		return
	}
	f.open(&update{id: m.ID})
	f.say("IDENTIFYING", "")
	f.begin(0, nil, func() {
		u := f.update
		target, why := f.target(m)
		if text, ok := f.s.Fail[Identify]; ok {
			why = text
		}
		u.target, u.actions = target, f.differing(target)
		switch {
		case why != "":
			u.actions = nil
			u.at = failed
			f.say("IDENTIFICATION_FAILED", why)
			if f.s.Style == Original {
				f.open(nil)
			}
		case len(u.actions) == 0 && f.s.Style == Leda:
			u.at = failed
			f.say("COMPLETED", "")
		case len(u.actions) == 0:
			f.say("IDENTIFIED", "")
			f.say("COMPLETED", "")
			f.open(nil)
		default:
			f.say("IDENTIFIED", "")
		}
	})
}

// target reads a desired state: the version of each component, or what is wrong with it.
func (f *foreign) target(m Message) (map[string]string, string) {
	var d desired
	if err := json.Unmarshal(m.Payload, &d); err != nil {
		return nil, err.Error()
	}
	if len(d.Domains) != 1 || d.Domains[0].ID != f.s.Domain {
		return nil, "not exactly one domain, " + f.s.Domain
	}
	target := map[string]string{}
	for _, c := range d.Domains[0].Components {
		target[c.ID] = c.Version
		image := slices.ContainsFunc(c.Config, func(kv struct{ Key, Value string }) bool { return kv.Key == "image" && kv.Value != "" })
		if f.s.Style == Leda && (m.ID == "" || c.Version == "" || !image) {
			return nil, "activityId, version and image are needed"
		}
	}
	return target, ""
}

func (f *foreign) command(id, command string) {
	u := f.update
	if u == nil || u.id != id {
		return
	}
	s, forward := f.step(command)
	switch {
	case forward && u.at == s.from:
		f.forward(command, s)
	case forward && f.s.Style == Original:
		f.say(s.failure, "")
	case command == "ROLLBACK" && f.s.Style == Leda:
		f.undo()
		f.open(nil)
	case command == "ROLLBACK":
		if u.at == identified || u.at == failed || u.at == rolledBack {
			f.say("ROLLBACK_FAILURE", "")
			return
		}
		f.say("ROLLBACK", "")
		f.begin(0, nil, func() {
			if text, ok := f.s.Fail[command]; ok {
				f.mark("UPDATE_FAILURE", text)
				f.say("ROLLBACK_FAILURE", "")
				return
			}
			f.undo()
			u.at = rolledBack
			f.mark("UPDATE_FAILURE", "")
			f.say("ROLLBACK_SUCCESS", "")
		})
	case command == "CLEANUP" && (f.s.Style == Original || u.at == activated || u.at == failed):
		f.begin(0, nil, f.cleanup)
	}
}

func (f *foreign) forward(command string, s step) {
	u := f.update
	progress := func(left int) {
		f.mark(s.action, "")
		for i := range u.actions {
			u.actions[i].Progress = 100 * (f.s.Progress - 1 - left) / f.s.Progress
		}
		f.say(s.doing, "")
	}
	f.begin(f.s.Progress, progress, func() {
		if text, ok := f.s.Fail[command]; ok {
			u.at = s.fail
			f.mark(s.actionFail, text)
			f.say(s.failure, f.spoken(text))
			return
		}
		u.at = s.to
		if command == "ACTIVATE" {
			u.undo = f.install(u.target)
		}
		f.mark(s.actionOK, "")
		f.say(s.success, "")
	})
}

func (f *foreign) cleanup() {
	text, bad := f.s.Fail["CLEANUP"]
	success := f.update.at == activated && !bad
	switch {
	case success && f.s.Style == Leda:
		f.mark("UPDATE_SUCCESS", "")
	case !success && !bad:
		f.undo()
	}
	if bad {
		f.say("CLEANUP_FAILURE", f.spoken(text))
	} else {
		f.say("CLEANUP_SUCCESS", "")
	}
	switch {
	case !success:
		f.say("INCOMPLETE", "")
	case f.s.Style == Leda:
		f.say("COMPLETE", "")
	default:
		f.say("COMPLETED", "")
	}
	f.open(nil)
}

// spoken is what becomes of a text: the agent of Kanto only writes it to the actions.
func (f *foreign) spoken(text string) string {
	if f.s.Style == Original {
		return ""
	}
	return text
}

func (f *foreign) open(u *update) {
	f.update = u
	f.work = nil
	f.setIdle(u == nil)
}

func (f *foreign) undo() {
	if f.update.undo != nil {
		f.update.undo()
		f.update.undo = nil
	}
}

// mark sets the status of all actions.
func (f *foreign) mark(status, message string) {
	for i := range f.update.actions {
		a := &f.update.actions[i]
		a.Status, a.Message, a.Progress = status, message, 0
	}
}

// begin starts a step that takes the script's time.
func (f *foreign) begin(messages int, say func(left int), finish func()) {
	pause := f.s.Delay / time.Duration(messages+1)
	f.work = &work{left: messages, pause: pause, say: say, finish: finish, next: time.NewTimer(0)}
	if messages == 0 {
		f.work.next.Reset(pause)
	}
}

// proceed does the next bit of the step under way, and what has waited for its end.
func (f *foreign) proceed() {
	w := f.work
	if w.left > 0 {
		w.left--
		w.say(w.left)
		w.next.Reset(w.pause)
		return
	}
	f.work = nil
	w.finish()
	for f.work == nil && len(f.waiting) > 0 {
		m := f.waiting[0]
		f.waiting = f.waiting[1:]
		f.take(m)
	}
}

func (f *foreign) say(status, message string) {
	f.publish(Prefix(f.s.Domain)+"/desiredstatefeedback", false, encode(f.update.id, Feedback{Status: status, Message: message, Actions: f.update.actions}))
}

// parameter is a setting of a node.
type parameter struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// node is a piece of software in an inventory.
type node struct {
	ID         string      `json:"id"`
	Version    string      `json:"version,omitempty"`
	Name       string      `json:"name,omitempty"`
	Type       string      `json:"type"`
	Parameters []parameter `json:"parameters,omitempty"`
}

// currentState publishes the inventory.
func (f *foreign) currentState(id string) mqtt.Token {
	type association struct {
		SourceID string `json:"sourceId"`
		TargetID string `json:"targetId"`
	}
	root := node{ID: f.s.Domain + "-update-agent", Version: "test", Name: "Update Agent", Type: "APPLICATION", Parameters: []parameter{{"domain", f.s.Domain}}}
	kind := "CONTAINER"
	if f.s.Style == Leda {
		root.ID, root.Parameters, kind = f.s.Domain+"-agent", nil, "IMAGE"
	}
	inventory := struct {
		SoftwareNodes []node        `json:"softwareNodes"`
		Associations  []association `json:"associations,omitempty"`
	}{SoftwareNodes: []node{root}}
	for component, version := range f.Installed() {
		n := node{ID: f.s.Domain + ":" + component, Version: version, Name: component, Type: kind}
		inventory.SoftwareNodes = append(inventory.SoftwareNodes, n)
		inventory.Associations = append(inventory.Associations, association{root.ID, n.ID})
	}
	return f.publish(Prefix(f.s.Domain)+"/currentstate", true, encode(id, inventory))
}
