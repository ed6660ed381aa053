// SPDX-License-Identifier: Apache-2.0

package agents

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sdvbox/platform/durable"
	"sdvbox/platform/mqttbus"
	"sdvbox/platform/updateagent"
	"sdvbox/platform/updateproto"
)

// resume runs sdvbox's own agent on a backend that follows the script, and returns how to end it. It calls present
// whenever the agent has published its current state.
func (a *Agent) resume(present func()) (end func()) {
	tb, domain := a.tb, a.script.Domain
	ctx, cancel := context.WithCancel(context.Background())
	journal, err := durable.OpenJournal(filepath.Join(a.journal, "journal"), updateagent.Capacity)
	if err != nil {
		tb.Fatal(err)
	}
	// The agent itself does not tell what it was sent; a witness does.
	p := Prefix(domain)
	connected := make(chan struct{}, 100)
	_, leave := dial(tb, a.broker, session(), []string{p + "/#"}, func() { connected <- struct{}{} }, func(m Message) {
		f, ok := m.Feedback()
		switch order := m.order(); {
		case order != "":
			if order == Identify {
				a.setIdle(false)
			}
			a.heard(m)
		case ok && (f.Terminal() || f.Status == updateproto.StatusComplete):
			a.setIdle(true)
		case m.Topic == p+"/currentstate" && !m.Retained:
			present()
		}
	})
	select {
	case <-connected:
	case <-time.After(10 * time.Second):
		tb.Fatalf("agent %s: no connection to %s", domain, a.broker)
	}
	log := slog.New(slog.DiscardHandler)
	bus, err := mqttbus.Connect(context.Background(), mqttbus.Config{Broker: a.broker, ClientID: "agent-" + domain}, log, mqttbus.Options{Subscriptions: updateagent.Subscriptions(domain)})
	if err != nil {
		tb.Fatal(err)
	}
	agent := updateagent.New(updateagent.Config{
		Domain:      domain,
		Identifying: "evaluating",
		Journal:     journal,
		Bus:         bus,
		Backend:     backend{a},
		Log:         log,
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := agent.Run(ctx); err != nil {
			tb.Error(err)
		}
	}()
	return func() {
		cancel()
		<-ended
		bus.Close()
		journal.Close()
		leave()
	}
}

// backend does the work of a resuming agent.
type backend struct{ *Agent }

// notes are what a backend finds again after a restart.
type notes struct {
	Before map[string]string // was there before the activation
}

func (b backend) Identify(ctx context.Context, j *updateagent.Job) []updateproto.Feedback {
	if r := b.spend(ctx, Identify, nil); r != nil {
		return result(updateproto.StatusIdentificationFailed, *r, nil)
	}
	actions := b.actions(j, updateproto.ActionIdentified, "")
	r := result(updateproto.StatusIdentified, "", actions)
	if len(actions) == 0 {
		r = append(r, result(updateproto.StatusCompleted, "", nil)...)
	}
	return r
}

func (b backend) Download(ctx context.Context, j *updateagent.Job) []updateproto.Feedback {
	return b.step(ctx, j, updateproto.CommandDownload, updateproto.StatusDownloading, updateproto.StatusDownloadSuccess, updateproto.StatusDownloadFailure)
}

func (b backend) Update(ctx context.Context, j *updateagent.Job) []updateproto.Feedback {
	return b.step(ctx, j, updateproto.CommandUpdate, updateproto.StatusUpdating, updateproto.StatusUpdateSuccess, updateproto.StatusUpdateFailure)
}

func (b backend) Activate(ctx context.Context, j *updateagent.Job) []updateproto.Feedback {
	r := b.step(ctx, j, updateproto.CommandActivate, updateproto.StatusActivating, updateproto.StatusActivationSuccess, updateproto.StatusActivationFailure)
	if r[0].Status == updateproto.StatusActivationSuccess {
		var n notes
		if j.Load(&n); n.Before == nil {
			if err := j.Save(notes{b.Installed()}); err != nil {
				return result(updateproto.StatusActivationFailure, err.Error(), nil)
			}
		}
		b.install(target(j))
	}
	return r
}

// Verify finds out what a reboot has made of the activation.
func (b backend) Verify(_ context.Context, j *updateagent.Job) []updateproto.Feedback {
	b.mu.Lock()
	waits := b.pending != nil
	b.mu.Unlock()
	if waits {
		return nil
	}
	if len(b.differing(target(j))) > 0 {
		return result(updateproto.StatusActivationFailure, "rolled back: the new version did not start", b.actions(j, updateproto.ActionActivationFailure, ""))
	}
	return result(updateproto.StatusActivationSuccess, "", b.actions(j, updateproto.ActionActivationSuccess, ""))
}

func (b backend) Rollback(ctx context.Context, j *updateagent.Job) []updateproto.Feedback {
	text := b.spend(ctx, updateproto.CommandRollback, nil)
	if text != nil {
		return append(result(updateproto.StatusRollbackFailure, *text, nil), result(updateproto.StatusIncomplete, *text, nil)...)
	}
	message := b.undo(j)
	actions := b.actions(j, updateproto.ActionUpdateFailure, message)
	return append(result(updateproto.StatusRollbackSuccess, message, actions), result(updateproto.StatusIncomplete, "rolled back", actions)...)
}

func (b backend) Cleanup(ctx context.Context, j *updateagent.Job) []updateproto.Feedback {
	text := b.spend(ctx, updateproto.CommandCleanup, nil)
	end := result(updateproto.StatusIncomplete, "", b.actions(j, updateproto.ActionUpdateFailure, ""))
	switch {
	case text != nil:
		return append(result(updateproto.StatusCleanupFailure, *text, nil), end...)
	case j.Success:
		end = result(updateproto.StatusCompleted, "", b.actions(j, updateproto.ActionUpdateSuccess, ""))
	default:
		b.undo(j)
	}
	return append(result(updateproto.StatusCleanupSuccess, "", end[0].Actions), end...)
}

func (b backend) Inventory(context.Context) (updateproto.Inventory, error) {
	root := updateproto.SoftwareNode{
		ID: b.script.Domain + "-update-agent", Version: "test", Name: "Update Agent", Type: updateproto.TypeApplication,
		Parameters: []updateproto.KeyValue{{Key: "domain", Value: b.script.Domain}, {Key: "resumes", Value: "true"}},
	}
	inv := updateproto.Inventory{SoftwareNodes: []updateproto.SoftwareNode{root}}
	installed := b.Installed()
	for _, id := range slices.Sorted(maps.Keys(installed)) {
		n := updateproto.SoftwareNode{ID: b.script.Domain + ":" + id, Version: installed[id], Name: id, Type: updateproto.TypeContainer}
		inv.SoftwareNodes = append(inv.SoftwareNodes, n)
		inv.Associations = append(inv.Associations, updateproto.Association{SourceID: root.ID, TargetID: n.ID})
	}
	return inv, nil
}

// step does one command of the way forward.
func (b backend) step(ctx context.Context, j *updateagent.Job, command, doing, success, failure string) []updateproto.Feedback {
	text := b.spend(ctx, command, func(percent int) {
		actions := b.actions(j, doing, "")
		for i := range actions {
			actions[i].Progress = percent
		}
		j.Progress(updateproto.Feedback{Status: doing, Actions: actions})
	})
	if text != nil {
		return result(failure, *text, b.actions(j, failure, *text))
	}
	return result(success, "", b.actions(j, success, ""))
}

// spend takes the time of a step. It returns the text of its failure, if the script wants it to fail.
func (b backend) spend(ctx context.Context, command string, progress func(percent int)) *string {
	s := b.now()
	if s.Silent[command] {
		<-ctx.Done()
	}
	if progress == nil {
		s.Progress = 0
	}
	for n := range s.Progress + 1 {
		if n < s.Progress {
			progress(100 * n / s.Progress)
		}
		select {
		case <-ctx.Done():
		case <-time.After(s.Delay / time.Duration(s.Progress+1)):
		}
	}
	if text, ok := s.Fail[command]; ok {
		return &text
	}
	return nil
}

// undo goes back to what was there before the activation. When the new version runs since a reboot, the old one does so only
// after another; the message says it in the words of the self-update agent.
func (b backend) undo(j *updateagent.Job) (message string) {
	var n notes
	if j.Load(&n); n.Before == nil {
		return ""
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.script.RebootRequired && !maps.Equal(b.installed, n.Before) {
		b.pending = n.Before
		old := strings.Join(slices.Sorted(maps.Values(n.Before)), ", ")
		return fmt.Sprintf("Slot A with version %q is next, reboot required.", old)
	}
	b.installed, b.pending = n.Before, nil
	return ""
}

// actions are those of a request, all with the same status.
func (b backend) actions(j *updateagent.Job, status, message string) []updateproto.Action {
	var n notes
	j.Load(&n)
	if n.Before == nil {
		n.Before = b.Installed()
	}
	wanted := target(j)
	var actions []updateproto.Action
	for _, id := range slices.Sorted(maps.Keys(wanted)) {
		if n.Before[id] != wanted[id] {
			ref := updateproto.ComponentRef{ID: b.script.Domain + ":" + id, Version: wanted[id]}
			actions = append(actions, updateproto.Action{Component: ref, Status: status, Message: message})
		}
	}
	return actions
}

func target(j *updateagent.Job) map[string]string {
	versions := map[string]string{}
	for _, d := range j.Request.Domains {
		for _, c := range d.Components {
			versions[c.ID] = c.Version
		}
	}
	return versions
}

func result(status, message string, actions []updateproto.Action) []updateproto.Feedback {
	if actions == nil {
		actions = []updateproto.Action{}
	}
	return []updateproto.Feedback{{Status: status, Message: message, Actions: actions}}
}
