// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sdvbox/platform/orchestrator"
	"sdvbox/testing/agents"
)

// cloud is the connector and what is behind it.
type cloud struct {
	*agents.Recorder
	r *rig
}

const (
	thingID = "org.example:gateway:vehicle-7"
	channel = "org.example/gateway:vehicle-7/things/live/messages/"
	feature = "/features/UpdateManager"
)

// things starts a manager in things mode and its cloud, which has not said yet which thing it is.
func things(t *testing.T, change func(*Config)) (*rig, *cloud) {
	t.Helper()
	r := prepare(t, func(c *Config) {
		c.Things = true
		c.Domain = "device"
		if change != nil {
			change(c)
		}
	})
	c := &cloud{agents.Record(t, r.broker.URL(), "e", "edge/thing/request", "command///res/#", "deviceupdate/#"), r}
	r.launch()
	c.requested(1)
	return r, c
}

// requested waits until the manager has asked n times which thing it is.
func (c *cloud) requested(n int) {
	c.r.t.Helper()
	c.r.eventually("request for the identity", func() bool { return on(c.Messages(), "edge/thing/request", "") == n })
}

func (c *cloud) identify() {
	c.PublishRaw("edge/thing/response", []byte(`{"deviceId":"`+thingID+`","tenantId":"t"}`))
}

// ask sends an operation with the request id and correlation id n.
func (c *cloud) ask(n, operation, value string, headers ...string) {
	all := append([]string{`"response-required":true`, `"correlation-id":"` + n + `"`}, headers...) // of several the last one counts
	c.PublishRaw("command///req/"+n+"/"+operation, fmt.Appendf(nil, `{"topic":"%s%s","headers":{%s},"path":"%s/inbox/messages/%s","value":%s}`,
		channel, operation, strings.Join(all, ","), feature, operation, value))
}

// said is a message of the twin.
type said struct {
	Topic   string
	Headers map[string]any
	Path    string
	Value   struct {
		ActivityID string
		Feedback   agents.Feedback          `json:"desiredStateFeedback"`
		Consent    struct{ Command string } `json:"ownerConsent"`
		Message    string
	}
	Status int
}

// heard returns the messages whose path ends with the text.
func (c *cloud) heard(path string) []said {
	var list []said
	for _, m := range c.Messages() {
		var s said
		if json.Unmarshal(m.Raw, &s) == nil && strings.HasSuffix(s.Path, path) && m.Topic == "e" {
			list = append(list, s)
		}
	}
	return list
}

func (c *cloud) feedback(id string) (all []agents.Feedback) {
	for _, s := range c.heard("/outbox/messages/feedback") {
		if s.Value.ActivityID == id {
			all = append(all, s.Value.Feedback)
		}
	}
	return all
}

func (c *cloud) end(id string) (end agents.Feedback) {
	c.r.t.Helper()
	c.r.eventually("terminal feedback of "+id, func() bool {
		for _, f := range c.feedback(id) {
			if f.Terminal() {
				end = f
				return true
			}
		}
		return false
	})
	return end
}

// apply is the value of the operation for an update of both domains.
func apply(id, version string) string {
	ds, _ := json.Marshal(desire(version))
	return fmt.Sprintf(`{"activityId":"%s","timestamp":1,"desiredState":%s}`, id, ds)
}

func TestTheTwinIsAskedForAnUpdate(t *testing.T) {
	t.Parallel()
	r, c := things(t, func(c *Config) { c.Orchestrator.Consent = []string{"ACTIVATE"} })
	r.both()
	c.identify()
	r.eventually("first current state", func() bool { return len(c.heard("/properties")) > 0 })
	c.ask("77", "apply", apply("a1", "2"))
	r.eventually("question to the owner", func() bool { return len(c.heard("consent")) == 1 })
	correlation := c.heard("consent")[0].Headers["correlation-id"].(string)
	c.ask("78", "consent", `{"activityId":"a1","timestamp":1,"ownerConsentFeedback":{"status":"APPROVED"}}`, `"correlation-id":"`+correlation+`"`)
	if end := c.end("a1"); end.Status != "COMPLETED" {
		t.Errorf("ended as %+v", end)
	}
	r.eventually("current state of a1", func() bool {
		return strings.Contains(fmt.Sprint(contents(c.Messages())["e"]), `"path":"/features/UpdateManager/properties","value":{"activityId":"a1",`)
	})

	const (
		live  = `{"topic":"org.example/gateway:vehicle-7/things/live/messages/`
		twin  = `{"topic":"org.example/gateway:vehicle-7/things/twin/commands/modify","headers":{`
		plain = `,"headers":{"content-type":"application/json","response-required":false},"path":"/features/UpdateManager`
		node  = `"inventory":{"softwareNodes":[{"id":"device-update-manager","version":"1.2","name":"Update Manager","type":"APPLICATION"},`
		head  = `"value":{"activityId":"a1","timestamp":0,`
	)
	want := []string{
		twin + `"response-required":false},"path":"/features/UpdateManager","value":{"definition":["com.bosch.iot.suite.edge.update:UpdateManager:1.0.0"],"properties":{"domain":"device"}}}`,
		twin + `"content-type":"application/json","response-required":false},"path":"/features/UpdateManager/properties","value":{"activityId":"initial-current-state-0","timestamp":0,"domain":"device",` + node + `…`,
		live + `feedback"` + plain + `/outbox/messages/feedback",` + head + `"desiredStateFeedback":{"status":"IDENTIFYING"}}}`,
		live + `feedback"` + plain + `/outbox/messages/feedback",` + head + `"desiredStateFeedback":{"status":"IDENTIFIED","actions":[{"component":{"id":"containers:app",…`,
		live + `feedback"` + plain + `/outbox/messages/feedback",` + head + `"desiredStateFeedback":{"status":"RUNNING",…`,
		live + `consent","headers":{"content-type":"application/json","correlation-id":"` + correlation + `","response-required":true},` +
			`"path":"/features/UpdateManager/outbox/messages/consent",` + head + `"ownerConsent":{"command":"ACTIVATE"}}}`,
		live + `feedback"` + plain + `/outbox/messages/feedback",` + head + `"desiredStateFeedback":{"status":"COMPLETED",…`,
		twin + `"content-type":"application/json","response-required":false},"path":"/features/UpdateManager/properties",` + head + `"domain":"device",` + node + `…`,
	}
	got := contents(c.Messages())
	events := got["e"]
	initial := regexp.MustCompile(`initial-current-state-\d+`)
	for i := range events {
		events[i] = initial.ReplaceAllString(events[i], "initial-current-state-0")
		if i < len(want) {
			if begin, cut := strings.CutSuffix(want[i], "…"); cut && strings.HasPrefix(events[i], begin) {
				events[i] = want[i]
			}
		}
	}
	if diff := cmp.Diff(want, events); diff != "" {
		t.Error(diff)
	}
	delete(got, "e")
	delete(got, "edge/thing/request")
	answers := map[string][]string{
		"command///res/77/204": {live + `apply","headers":{"correlation-id":"77","response-required":false},"path":"/features/UpdateManager/outbox/messages/apply","status":204}`},
		"command///res/78/204": {live + `consent","headers":{"correlation-id":"` + correlation + `","response-required":false},"path":"/features/UpdateManager/outbox/messages/consent","status":204}`},
	}
	if diff := cmp.Diff(answers, got); diff != "" {
		t.Error(diff)
	}
}

func TestTheTwinIsAskedForTheCurrentState(t *testing.T) {
	t.Parallel()
	r, c := things(t, nil)
	r.both()
	c.identify()
	c.ask("1", "refresh", `{"activityId":"c1","timestamp":1}`)
	c.ask("", "refresh", `{"activityId":"c2"}`, `"response-required":false`)
	for _, id := range []string{"c1", "c2"} {
		r.eventually(id, func() bool { return on(c.Messages(), "e", `/properties","value":{"activityId":"`+id+`",`) == 1 })
	}
	if on(c.Messages(), "command///res/1/204", "") != 1 || on(c.Messages(), "command///res//204", "") != 0 {
		t.Errorf("answers: %v", c.Messages())
	}
}

func TestCommandsWaitUntilTheThingIsKnown(t *testing.T) {
	t.Parallel()
	r, c := things(t, nil)
	r.both()
	r.eventually("current states of the agents", func() bool { return r.m.Counters().Messages == 2 })
	c.ask("1", "apply", apply("a1", "2"))
	r.eventually("held command", func() bool { return r.m.Counters().Messages == 3 })
	if len(c.heard("")) != 0 {
		t.Errorf("the twin of an unknown thing said %v", c.heard(""))
	}
	r.stop() // the command is not lost, and
	r.launch()
	c.requested(2)
	r.broker.Restart() // not done twice
	c.requested(3)
	c.identify()
	if end := c.end("a1"); end.Status != "COMPLETED" {
		t.Errorf("ended as %+v", end)
	}
	if n := on(c.Messages(), "command///res/1/204", ""); n != 1 {
		t.Errorf("answered %d times", n)
	}
}

func TestTheCurrentStateWaitsUntilTheThingIsKnown(t *testing.T) {
	t.Parallel()
	r := prepare(t, func(c *Config) { c.Things = true })
	r.both()
	c := &cloud{agents.Record(t, r.broker.URL(), "e"), r}
	r.launch()
	r.eventually("current states of the agents, retained and asked for", func() bool { return r.m.Counters().Messages == 4 })
	c.identify()
	r.eventually("current state", func() bool { return on(c.Messages(), "e", "self-update:os-image") == 1 })
}

func TestAQuestionIsAskedAgainOnceTheThingIsKnown(t *testing.T) {
	t.Parallel()
	r, c, first := consent(t)
	r.stop()
	r.launch()
	c.requested(2)
	r.eventually("question to nobody", func() bool { return strings.Contains(r.log.String(), "cannot ask the owner") })
	c.identify()
	if again := c.question(1); again != first {
		t.Errorf("asked under %s and %s", first, again)
	}
}

func TestAnotherIdentityMovesTheFeature(t *testing.T) {
	t.Parallel()
	r, c := things(t, nil)
	r.both()
	for _, bad := range []string{"", "null", `{"deviceId":7}`, `{"deviceId":"x"}`} {
		c.PublishRaw("edge/thing/response", []byte(bad))
	}
	for _, id := range []string{"a:b", "a:b", "a:c"} {
		c.PublishRaw("edge/thing/response", []byte(`{"deviceId":"`+id+`"}`))
	}
	r.eventually("description", func() bool { return len(c.heard("/UpdateManager")) == 2 })
	if h := c.heard("/UpdateManager"); h[0].Topic != "a/b/things/twin/commands/modify" || h[1].Topic != "a/c/things/twin/commands/modify" {
		t.Errorf("described %v", h)
	}
	r.eventually("current state", func() bool {
		h := c.heard("/properties")
		return len(h) > 0 && h[len(h)-1].Topic == "a/c/things/twin/commands/modify"
	})
	if n := r.m.Counters().Malformed; n != 4 {
		t.Errorf("%d malformed messages", n)
	}
}

// consent starts a manager that waits in the activity a1 for the owner's consent, first to DOWNLOAD and then to UPDATE.
func consent(t *testing.T) (*rig, *cloud, string) {
	t.Helper()
	r, c := things(t, func(c *Config) {
		c.Agents = map[string]orchestrator.Agent{"containers": {ReadTimeout: patience}}
		c.Orchestrator.Consent = []string{"DOWNLOAD", "UPDATE"}
	})
	r.agent(agents.Script{Domain: "containers"})
	c.identify()
	c.ask("1", "apply", `{"activityId":"a1","timestamp":1,"desiredState":{"domains":[{"id":"containers","components":[{"id":"app","version":"2"}]}]}}`)
	return r, c, c.question(0)
}

// question waits for the n-th question to the owner and returns its correlation id.
func (c *cloud) question(n int) string {
	c.r.t.Helper()
	c.r.eventually("question to the owner", func() bool { return len(c.heard("consent")) > n })
	return c.heard("consent")[n].Headers["correlation-id"].(string)
}

const approved = `{"activityId":"a1","ownerConsentFeedback":{"status":"APPROVED"}}`

func TestAnAnswerCountsForItsQuestionOnly(t *testing.T) {
	t.Parallel()
	_, c, first := consent(t)
	for i, bad := range []struct{ value, correlation string }{
		{approved, "other"},
		{approved, ""},
		{`{"activityId":"a1"}`, first},
		{`{"activityId":"a1","ownerConsentFeedback":null}`, first},
		{`{"activityId":"a1","ownerConsentFeedback":{"status":7}}`, first},
		{`{"activityId":"a2","ownerConsentFeedback":{"status":"APPROVED"}}`, first},
		{`7`, first},
	} {
		n := fmt.Sprint("bad", i)
		c.ask(n, "consent", bad.value, `"correlation-id":"`+bad.correlation+`"`)
		c.r.eventually("refusal of "+bad.value, func() bool {
			return on(c.Messages(), "command///res/"+n+"/400", `{"error":"messages:parameter.invalid","status":400,"message":"`) == 1
		})
	}
	if len(c.heard("consent")) != 1 {
		t.Error("a bad answer counted")
	}
	c.ask("2", "consent", approved, `"correlation-id":"`+first+`"`)
	second := c.question(1)
	c.ask("3", "consent", approved, `"correlation-id":"`+first+`"`) // pressed twice
	c.r.eventually("refusal of the second press", func() bool { return on(c.Messages(), "command///res/3/400", "") == 1 })
	c.ask("4", "consent", `{"activityId":"a1","ownerConsentFeedback":{"status":"DENIED"}}`, `"correlation-id":"`+second+`"`)
	if end := c.end("a1"); end.Status != "INCOMPLETE" {
		t.Errorf("ended as %+v", end)
	}
	c.r.eventually("rest", func() bool { return c.r.m.Status().ActivityID == "" })
	c.ask("5", "consent", approved, `"correlation-id":"`+second+`"`)
	c.r.eventually("refusal of an answer that comes too late", func() bool { return on(c.Messages(), "command///res/5/400", "") == 1 })
}

func TestAnAnswerToTheTwinWhileTheManagerIsAwayCounts(t *testing.T) {
	t.Parallel()
	r, c, first := consent(t)
	r.stop()
	c.ask("2", "consent", approved, `"correlation-id":"`+first+`"`)
	r.launch()
	c.requested(2)
	c.identify()
	r.eventually("question about UPDATE", func() bool { h := c.heard("consent"); return h[len(h)-1].Value.Consent.Command == "UPDATE" })
}

func TestOperationsOfOthersAreLeftAlone(t *testing.T) {
	t.Parallel()
	r, c := things(t, nil)
	c.identify()
	c.PublishRaw("command///req/1/apply", []byte(`{"topic":"a/b/things/live/messages/apply","headers":{"response-required":true},"path":"/features/UpdateManager/inbox/messages/apply","value":{}}`))
	c.PublishRaw("command///req/1/apply", []byte(`{"topic":"`+channel+`apply","headers":{"response-required":true},"path":"/features/Other/inbox/messages/apply","value":{}}`))
	c.ask("1", "dance", `{}`)
	c.ask("2", "apply", `{}`)
	r.eventually("refusal", func() bool { return on(c.Messages(), "command///res/2/400", "") == 1 })
	for _, m := range c.Messages() {
		if strings.HasPrefix(m.Topic, "command///res/1") {
			t.Errorf("answered with %s", m.Raw)
		}
	}
}
