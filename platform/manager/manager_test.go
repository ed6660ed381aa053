// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sdvbox/platform/durable"
	"sdvbox/platform/mqttbus"
	"sdvbox/platform/orchestrator"
	"sdvbox/platform/rebootgate"
	"sdvbox/platform/schema"
	"sdvbox/testing/agents"
	"sdvbox/testing/broker"
	"sdvbox/testing/output"
)

const patience = 30 * time.Second

// rig is a manager on a bus.
type rig struct {
	t      *testing.T
	broker *broker.Broker
	dir    string
	cfg    Config
	m      *Manager
	stop   func() // ends the manager, which has to be alive
	abort  func() // ends it in any case
	reboot chan struct{}
	log    *output.Buffer

	journal *durable.Journal
	ended   chan error // of the manager
}

// start starts a broker and a manager for two domains, as changed by the test.
func start(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	r := prepare(t, change)
	r.launch()
	return r
}

// prepare starts the broker only.
func prepare(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, broker: broker.Start(t, broker.Options{}), dir: t.TempDir(), reboot: make(chan struct{}, 10), log: new(output.Buffer)}
	r.cfg = Config{
		Domain: "vehicle",
		Agents: map[string]orchestrator.Agent{
			"containers":  {ReadTimeout: 2 * time.Second},
			"self-update": {ReadTimeout: 2 * time.Second},
		},
		Orchestrator: orchestrator.Config{
			FailurePolicy:  orchestrator.Baseline,
			PhaseTimeout:   patience,
			VerifyTimeout:  patience,
			ConsentTimeout: patience,
			GateTimeout:    patience,
		},
		FeedbackInterval:  time.Minute,
		CurrentStateDelay: time.Minute,
		Version:           "1.2",
	}
	if change != nil {
		change(&r.cfg)
	}
	r.stop = func() {}
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			t.Logf("manager:\n%s", r.log)
		}
	})
	return r
}

// launch starts the manager, or a new one where the one before has ended.
func (r *rig) launch() {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var j *durable.Journal
	r.eventually("journal", func() bool { // another test may be starting a broker, which has all files until it runs
		var err error
		j, err = durable.OpenJournal(filepath.Join(r.dir, "journal"), orchestrator.Capacity)
		return err == nil
	})
	gate, err := rebootgate.New(rebootgate.Config{Topic: r.cfg.SafeTopic})
	if err != nil {
		r.t.Fatal(err)
	}
	bus, err := mqttbus.Connect(context.Background(), mqttbus.Config{Broker: r.broker.URL(), ClientID: "update-manager"}, log,
		mqttbus.Options{Subscriptions: Subscriptions(r.cfg)})
	if err != nil {
		r.t.Fatal(err)
	}
	r.m = New(r.cfg, j, bus, gate, func(context.Context) error { r.reboot <- struct{}{}; return nil }, log)
	ended := make(chan error, 1)
	r.journal, r.ended = j, ended
	go func() { ended <- r.m.Run(ctx) }()
	r.abort = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Errorf("Run: %v", err)
		}
		bus.Close()
		j.Close()
		r.stop = func() {}
	})
	r.stop = func() {
		if err := r.m.Alive(); err != nil {
			r.t.Error(err)
		}
		r.abort()
	}
	r.eventually("connection to the bus", func() bool { return r.m.Counters().Up })
}

// running returns how many requests for the current state are under way, and whether it is thought that there is a connection.
func (r *rig) running() (n int, up bool) {
	r.t.Helper()
	looked := make(chan struct{})
	r.m.sent <- func() {
		n, up = len(r.m.current.running), r.m.current.up
		close(looked)
	}
	<-looked
	return n, up
}

func (r *rig) agent(s agents.Script) *agents.Agent {
	r.t.Helper()
	return agents.Start(r.t, r.broker.URL(), s)
}

// both starts the usual two agents.
func (r *rig) both() (containers, selfUpdate *agents.Agent) {
	r.t.Helper()
	return r.agent(agents.Script{Domain: "containers", Installed: map[string]string{"app": "1"}}),
		r.agent(agents.Script{Domain: "self-update", Style: agents.Leda, Installed: map[string]string{"os-image": "1"}})
}

func (r *rig) eventually(what string, cond func() bool) {
	r.t.Helper()
	agents.Eventually(r.t, patience, what, cond)
}

// desire is the desired state that both agents have something to do for.
func desire(version string) any {
	return agents.Desire(agents.Target{Domain: "containers", Component: "app", Version: version},
		agents.Target{Domain: "self-update", Component: "os-image", Version: version})
}

// update updates both domains.
func (r *rig) update(m *agents.Manager, id, version string) {
	r.t.Helper()
	m.Apply(id, desire(version))
	if end := m.End(id, patience); end.Status != "COMPLETED" {
		r.t.Fatalf("%s ended as %+v", id, end)
	}
}

// statuses are what feedback messages say, in their order.
func statuses(feedback []agents.Feedback) string {
	var list []string
	for _, f := range feedback {
		list = append(list, f.Status)
	}
	return strings.Join(list, " ")
}

// on counts messages on a topic whose text contains another.
func on(messages []agents.Message, topic, text string) int {
	n := 0
	for _, m := range messages {
		if m.Topic == topic && strings.Contains(string(m.Raw), text) {
			n++
		}
	}
	return n
}

// contents are messages without their times, by topic.
func contents(messages []agents.Message) map[string][]string {
	at := regexp.MustCompile(`"timestamp":\d+`)
	all := make(map[string][]string)
	for _, m := range messages {
		all[m.Topic] = append(all[m.Topic], at.ReplaceAllString(string(m.Raw), `"timestamp":0`))
	}
	return all
}

// valid checks messages on topics that begin in one of these ways against their schemas.
func valid(t *testing.T, messages []agents.Message, prefixes ...string) {
	t.Helper()
	for _, m := range messages {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(m.Topic, p) }) {
			if err := schema.Validate(schema.OfTopic(m.Topic), m.Raw); err != nil {
				t.Errorf("%s: %s: %v", m.Topic, m.Raw, err)
			}
		}
	}
}

func TestMessagesHaveTheMembersOfTheProtocol(t *testing.T) {
	t.Parallel()
	r := start(t, func(c *Config) {
		c.Agents = map[string]orchestrator.Agent{"containers": {ReadTimeout: patience}}
		c.Orchestrator.Consent = []string{"ACTIVATE"}
	})
	r.agent(agents.Script{Domain: "containers"})
	all := agents.Record(t, r.broker.URL(), "vehicleupdate/#", "containersupdate/desiredstate/#", "containersupdate/currentstate/get")
	all.PublishRaw("vehicleupdate/desiredstate", []byte(`{"activityId":"a<1>","payload":{"x":1,"domains":[{"id":"containers","y":2,"config":[],"components":[{"id":"app","version":"2"}]}]}}`))
	r.eventually("question to the owner", func() bool { return on(all.Messages(), "vehicleupdate/ownerconsent", "") > 0 })
	all.PublishRaw("vehicleupdate/ownerconsentfeedback", []byte(`{"activityId":"a<1>","payload":{"status":"APPROVED"}}`))
	r.eventually("current state", func() bool { return on(all.Messages(), "vehicleupdate/currentstate", "a<1>") > 0 })
	const head = `{"activityId":"a<1>","timestamp":0,"payload":`
	want := map[string][]string{
		"vehicleupdate/desiredstatefeedback": {
			head + `{"status":"IDENTIFYING"}}`,
			head + `{"status":"IDENTIFIED","actions":[{"component":{"id":"containers:app","version":"2"},"status":"IDENTIFIED"}]}}`,
			head + `{"status":"RUNNING","actions":[{"component":{"id":"containers:app","version":"2"},"status":"IDENTIFIED"}]}}`,
			head + `{"status":"COMPLETED","actions":[{"component":{"id":"containers:app","version":"2"},"status":"UPDATE_SUCCESS"}]}}`,
		},
		"vehicleupdate/ownerconsent":        {head + `{"command":"ACTIVATE"}}`},
		"containersupdate/desiredstate":     {head + `{"domains":[{"id":"containers","components":[{"id":"app","version":"2"}]}]}}`},
		"containersupdate/currentstate/get": {head + `null}`},
		"containersupdate/desiredstate/command": {
			head + `{"command":"DOWNLOAD"}}`, head + `{"command":"UPDATE"}}`, head + `{"command":"ACTIVATE"}}`, head + `{"command":"CLEANUP"}}`,
		},
		"vehicleupdate/currentstate": {head + `{"softwareNodes":[{"id":"vehicle-update-manager","version":"1.2","name":"Update Manager","type":"APPLICATION"},` +
			`{"id":"containers-update-agent","version":"test","name":"Update Agent","type":"APPLICATION","parameters":[{"key":"domain","value":"containers"}]},` +
			`{"id":"containers:app","version":"2","name":"app","type":"CONTAINER"}],"associations":[{"sourceId":"vehicle-update-manager","targetId":"containers-update-agent"},` +
			`{"sourceId":"containers-update-agent","targetId":"containers:app"}]}}`},
	}
	got := contents(all.Of("a<1>"))
	delete(got, "vehicleupdate/desiredstate")
	delete(got, "vehicleupdate/ownerconsentfeedback")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	valid(t, all.Messages(), "vehicleupdate/", "containersupdate/")
	late := agents.Record(t, r.broker.URL(), "vehicleupdate/#", "containersupdate/desiredstate/#")
	r.eventually("retained current state", func() bool {
		return len(late.Messages()) == 1 && late.Messages()[0].Topic == "vehicleupdate/currentstate"
	})
}

// waiting starts a manager that waits, in the activity a1 of one domain, for the owner's consent to UPDATE.
func waiting(t *testing.T) (*rig, *agents.Agent, *agents.Manager) {
	t.Helper()
	return waitingIn(t, "a1")
}

func waitingIn(t *testing.T, id string) (*rig, *agents.Agent, *agents.Manager) {
	t.Helper()
	r := start(t, func(c *Config) {
		c.Agents = map[string]orchestrator.Agent{"containers": {ReadTimeout: patience}}
		c.Orchestrator.Consent = []string{"UPDATE"}
	})
	a := r.agent(agents.Script{Domain: "containers"})
	m := agents.Watch(t, r.broker.URL(), "vehicle")
	m.Apply(id, agents.Desire(agents.Target{Domain: "containers", Component: "app", Version: "2"}))
	r.eventually("question to the owner", func() bool { return on(m.Messages(), "vehicleupdate/ownerconsent", `"`+id+`"`) > 0 })
	return r, a, m
}

func TestASecondDesiredStateIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	r, _, m := waiting(t)
	m.Apply("a2", desire("3"))
	if end := m.End("a2", time.Second); end.Status != "IDENTIFICATION_FAILED" || !strings.Contains(end.Message, "a1") {
		t.Errorf("a2 ended as %+v", end)
	}
	if s := r.m.Status(); s.ActivityID != "a1" || !s.Connected {
		t.Errorf("status %+v", s)
	}
}

func TestOnlyARollbackOfTheActivityCancels(t *testing.T) {
	t.Parallel()
	_, a, m := waiting(t)
	for _, c := range []string{
		`{"activityId":"a2","payload":{"command":"ROLLBACK"}}`, `{"activityId":"","payload":{"command":"ROLLBACK"}}`, `{"payload":{"command":"ROLLBACK"}}`,
		`{"activityId":"a1","payload":{"command":"UPDATE"}}`, `{"activityId":"a1","payload":{"command":"CLEANUP"}}`,
	} {
		m.PublishRaw("vehicleupdate/desiredstate/command", []byte(c))
	}
	m.Publish("vehicleupdate/ownerconsentfeedback", "a1", map[string]string{"status": "APPROVED"})
	if end := m.End("a1", patience); end.Status != "COMPLETED" {
		t.Errorf("a1 ended as %+v", end)
	}
	if got := strings.Join(a.Orders("a1"), " "); got != "IDENTIFY DOWNLOAD UPDATE ACTIVATE CLEANUP" {
		t.Error(got)
	}
}

func TestAnActivityWithoutAnIDIsCancelledWithoutOne(t *testing.T) {
	t.Parallel()
	r, a, m := waitingIn(t, "")
	m.Publish("vehicleupdate/desiredstate/command", "", map[string]string{"command": "ROLLBACK"})
	if end := m.End("", patience); end.Status != "INCOMPLETE" || !strings.Contains(end.Message, "cancel") {
		t.Errorf("ended as %+v", end)
	}
	r.eventually("free agent", a.Idle)
}

func TestACommandCancels(t *testing.T) {
	t.Parallel()
	r, a, m := waiting(t)
	m.Publish("vehicleupdate/desiredstate/command", "a1", map[string]string{"command": "ROLLBACK"})
	if end := m.End("a1", patience); end.Status != "INCOMPLETE" || !strings.Contains(end.Message, "cancel") {
		t.Errorf("a1 ended as %+v", end)
	}
	r.eventually("free agent", a.Idle)
	if got := strings.Join(a.Orders("a1"), " "); got != "IDENTIFY DOWNLOAD ROLLBACK CLEANUP" {
		t.Error(got)
	}
	if h := r.m.History(); len(h) != 1 || h[0].ID != "a1" || h[0].Status != "INCOMPLETE" {
		t.Errorf("history %+v", h)
	}
}

func TestTheOperatorCanCancel(t *testing.T) {
	t.Parallel()
	r, a, m := waiting(t)
	if err := r.m.Cancel(t.Context(), "a2"); err == nil {
		t.Error("what does not run was cancelled without an error")
	}
	if err := r.m.Cancel(t.Context(), ""); err != nil {
		t.Error(err)
	}
	if end := m.End("a1", patience); end.Status != "INCOMPLETE" {
		t.Errorf("a1 ended as %+v", end)
	}
	r.eventually("free agent", a.Idle)
	r.eventually("nothing to cancel", func() bool { return r.m.Cancel(t.Context(), "") != nil })
}

func TestTheOwnerDecides(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{"APPROVED": "COMPLETED", "DENIED": "INCOMPLETE", "approved": "INCOMPLETE"} {
		_, a, m := waiting(t)
		for _, junk := range []string{"", "{", "null", `{"activityId":"a1"}`, `{"activityId":"a1","payload":{"status":7}}`, `{"activityId":"a2","payload":{"status":"DENIED"}}`} {
			m.PublishRaw("vehicleupdate/ownerconsentfeedback", []byte(junk))
		}
		m.Publish("vehicleupdate/ownerconsentfeedback", "a1", map[string]string{"status": answer})
		if end := m.End("a1", patience); end.Status != want || a.Installed()["app"] == "2" != (want == "COMPLETED") {
			t.Errorf("%s ended as %+v, installed %v", answer, end, a.Installed())
		}
	}
}

func TestAnAnswerWhileTheManagerIsAwayCounts(t *testing.T) {
	t.Parallel()
	r, _, m := waiting(t)
	r.stop()
	m.Publish("vehicleupdate/ownerconsentfeedback", "a1", map[string]string{"status": "APPROVED"})
	r.launch()
	if end := m.End("a1", patience); end.Status != "COMPLETED" {
		t.Errorf("ended as %+v", end)
	}
}

func TestWhatCannotBeRememberedIsDeliveredAgain(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	r.both()
	m := agents.Watch(t, r.broker.URL(), "vehicle")
	r.eventually("first current state", func() bool { return on(m.Messages(), "vehicleupdate/currentstate", "initial-current-state-") > 0 })
	r.journal.Close()
	m.Apply("a1", desire("2"))
	select {
	case err := <-r.ended:
		if err == nil || !strings.Contains(err.Error(), "journal") {
			t.Errorf("ended with %v", err)
		}
		r.ended <- nil
	case <-time.After(patience):
		t.Fatal("the manager goes on without a journal")
	}
	r.abort()
	r.launch()
	if end := m.End("a1", patience); end.Status != "COMPLETED" {
		t.Errorf("ended as %+v", end)
	}
}

func TestTheCurrentStateIsPublishedOnRequest(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c, _ := r.both()
	m := agents.Watch(t, r.broker.URL(), "vehicle")
	idle := func() bool { n, _ := r.running(); return n == 0 }
	r.eventually("end of the first request", idle)
	begin := time.Now()
	for i, request := range []string{`{"activityId":"c0"}`, `{"activityId":"c1","timestamp":"x","payload":{"y":[]}}`, `{"activityId":"c2"`} {
		m.PublishRaw("vehicleupdate/currentstate/get", []byte(request))
		id := fmt.Sprintf(`{"activityId":"c%d",`, i)
		r.eventually(id, func() bool { return on(m.Messages(), "vehicleupdate/currentstate", id) == 1 })
	}
	anonymous := func() int { return on(m.Messages(), "vehicleupdate/currentstate", `{"activityId":"",`) }
	for i, request := range []string{"", "null", "{", `{"activityId":7}`} {
		m.PublishRaw("vehicleupdate/currentstate/get", []byte(request))
		r.eventually(request, func() bool { return anonymous() == i+1 })
	}
	r.eventually("end of all requests", idle)
	if took := time.Since(begin); took > r.cfg.Agents["containers"].ReadTimeout {
		t.Errorf("took %s although all agents have answered", took)
	}
	c.Change(func(s *agents.Script) { s.Silent = map[string]bool{agents.CurrentState: true} })
	m.Publish("vehicleupdate/currentstate/get", "late", nil)
	r.update(m, "a1", "2") // is not held up
	if on(m.Messages(), "vehicleupdate/currentstate", `"late"`) != 0 {
		t.Error("nobody has waited for the silent agent")
	}
	r.eventually("current state without an answer", func() bool { return on(m.Messages(), "vehicleupdate/currentstate", `"late"`) == 1 })
}

func TestWhatAgentsTellIsPublished(t *testing.T) {
	t.Parallel()
	r := start(t, func(c *Config) {
		c.CurrentStateDelay = 500 * time.Millisecond
		for domain := range c.Agents {
			c.Agents[domain] = orchestrator.Agent{ReadTimeout: 100 * time.Millisecond}
		}
	})
	m := agents.Watch(t, r.broker.URL(), "vehicle")
	r.eventually("first current state", func() bool { return on(m.Messages(), "vehicleupdate/currentstate", "initial-current-state-") == 1 })
	r.both() // each tells at its start
	r.eventually("news of both", func() bool {
		return slices.ContainsFunc(m.Messages(), func(m agents.Message) bool {
			news := string(m.Raw)
			return strings.HasPrefix(news, `{"activityId":"",`) && strings.Contains(news, "containers:app") && strings.Contains(news, "self-update:os-image")
		})
	})
}

func TestTheVehicleSaysWhetherItMayBeRebooted(t *testing.T) {
	t.Parallel()
	r := start(t, func(c *Config) { c.SafeTopic = true })
	client := r.broker.Client(t)
	safe := func() (bool, string) { return r.m.gate.Safe(t.Context(), time.Now()) }
	if ok, _ := safe(); ok {
		t.Error("safe without a word from the vehicle")
	}
	for _, word := range []struct {
		payload string
		safe    bool
		reason  string
	}{
		{`{"activityId":"","timestamp":1,"payload":{"safe":true,"reason":"parked"}}`, true, ""},
		{`{"payload":{"safe":false,"reason":"on the road"}}`, false, "on the road"},
		{`{"payload":{"safe":true}}`, true, ""},
		{`{"payload":{"safe":"yes"}}`, false, "cannot be understood"},
		{`{"payload":{"safe":true}}`, true, ""},
		{``, false, "taken back"},
		{`{"payload":{"safe":true}}`, true, ""},
		{`{"payload":{}}`, false, "not safe"},
	} {
		client.Retain("vehicleupdate/safetoreboot", word.payload)
		r.eventually(word.payload, func() bool {
			ok, reason := safe()
			return ok == word.safe && strings.Contains(reason, word.reason)
		})
	}
	client.Retain("vehicleupdate/safetoreboot", `{"payload":{"safe":true}}`)
	r.stop()
	r.launch()
	r.eventually("retained word", func() bool { ok, _ := safe(); return ok })
}

func TestTheVehiclesWordHoldsOnlyWhileItCanBeHeard(t *testing.T) {
	t.Parallel()
	r := start(t, func(c *Config) { c.SafeTopic = true })
	says := func(safe bool, reason string) func() bool {
		return func() bool {
			ok, why := r.m.gate.Safe(t.Context(), time.Now())
			return ok == safe && strings.Contains(why, reason)
		}
	}
	r.broker.Client(t).Retain("vehicleupdate/safetoreboot", `{"payload":{"safe":true}}`)
	r.eventually("yes", says(true, ""))
	r.broker.Stop()
	r.eventually("no, without a connection", says(false, "cannot be heard"))
	r.broker.Restart()
	r.eventually("retained yes", says(true, ""))
}

func TestSubscriptionsAreThoseOfTheProtocol(t *testing.T) {
	t.Parallel()
	c := Config{Domain: "vehicle", Agents: map[string]orchestrator.Agent{"self-update": {}, "containers": {}}}
	south := []string{"containersupdate/desiredstatefeedback", "containersupdate/currentstate", "selfupdate/desiredstatefeedback", "selfupdate/currentstate"}
	plain := append([]string{"vehicleupdate/desiredstate", "vehicleupdate/desiredstate/command", "vehicleupdate/currentstate/get", "vehicleupdate/ownerconsentfeedback"}, south...)
	if diff := cmp.Diff(plain, Subscriptions(c)); diff != "" {
		t.Error(diff)
	}
	c.Things, c.SafeTopic = true, true
	things := append([]string{"edge/thing/response", "command///req/#", "vehicleupdate/safetoreboot"}, south...)
	if diff := cmp.Diff(things, Subscriptions(c)); diff != "" {
		t.Error(diff)
	}
}
