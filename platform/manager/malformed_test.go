// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"strings"
	"testing"

	"sdvbox/platform/orchestrator"
	"sdvbox/platform/schema"
	"sdvbox/platform/updateproto"
	"sdvbox/testing/agents"
)

// unreadable are desired states that cannot be understood, with the activity id they are answered under. Some of them are
// known to end other update managers.
func unreadable() []struct{ id, data string } {
	deep := strings.Repeat(`{"a":[`, 100) + strings.Repeat(`]}`, 100)
	return []struct{ id, data string }{
		{"", ""}, {"", "{"}, {"", "null"}, {"", "[]"}, {"", `"x"`}, {"", "7"}, {"", "\xff\xfe"}, {"", "{}"}, {"", strings.Repeat("[", 100000)},
		{"", `{"activityId":7,"payload":{"domains":[]}}`}, {"", `{"activityId":"` + strings.Repeat("x", 300) + `","payload":{"domains":[]}}`},
		{"m1", `{"activityId":"m1","payload":{"domains":[nul`}, {"m2", `{"activityId":"m2"}`}, {"m3", `{"activityId":"m3","payload":null}`},
		{"m4", `{"activityId":"m4","payload":[]}`}, {"m5", `{"activityId":"m5","payload":{"domains":[null]}}`},
		{"m6", `{"activityId":"m6","payload":{"domains":[{"id":"containers"}],"baselines":[null]}}`},
		{"m7", `{"activityId":"m7","payload":{"domains":{"id":"containers"}}}`}, {"m8", `{"activityId":"m8","payload":{"domains":[{"id":7}]}}`},
		{"m9", `{"activityId":"m9","payload":{"domains":[{}]}}`}, {"m10", `{"activityId":"m10","payload":{"domains":[{"id":"containers","components":[null]}]}}`},
		{"m11", `{"activityId":"m11","payload":{"domains":[{"id":"containers","config":[null]}]}}`},
		{"m12", `{"activityId":"m12","payload":{"domains":[{"id":"containers","components":"app"}]}}`},
		{"m13", `{"activityId":"m13","payload":` + deep + `}`},
		{"m14", `{"activityId":"m14","payload":{"domains":[{"id":"containers","components":[{"id":"app","version":"` + strings.Repeat("x", 1<<20) + `"}]}]}}`},
	}
}

// junk is for all other topics.
func junk() []string {
	list := []string{
		`{"activityId":"j","payload":{"softwareNodes":[null],"hardwareNodes":[null],"associations":[null]}}`,
		`{"activityId":"j","payload":{"softwareNodes":7,"hardwareNodes":{},"associations":"x"}}`,
		`{"activityId":"j","payload":{"softwareNodes":[{"id":7,"parameters":[null]}]}}`,
		`{"activityId":"j","payload":{"status":"IDENTIFIED","actions":[null,{},{"component":null},{"component":{"id":7}}]}}`,
		`{"activityId":"j","payload":{"status":"IDENTIFIED","actions":[{"component":{"id":"c:a"},"progress":300}]}}`,
		`{"activityId":"j","timestamp":"now","payload":{"status":"100%d"}}`,
		`{"activityId":"j","payload":{"status":7}}`, `{"activityId":"j","payload":{"command":7}}`, `{"activityId":"j","payload":{"command":"ROLLBACK"}}`,
	}
	for _, u := range unreadable() {
		list = append(list, u.data)
	}
	return list
}

// A desired state that is just small enough to be valid is not too big for the orchestrator.
func TestTheLargestDesiredStateIsTaken(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	r.both()
	m := agents.Watch(t, r.broker.URL(), "vehicle")
	message := func(id string, size int) []byte {
		return fmt.Appendf(nil, `{"activityId":%q,"payload":{"domains":[{"id":"containers","config":[{"key":"k","value":%q}],"components":[{"id":"app","version":"2"}]}]}}`,
			id, strings.Repeat("x", size))
	}
	size := updateproto.MaxDesiredState
	for schema.Validate("desiredstate", message("", size)) != nil {
		size--
	}
	m.PublishRaw("vehicleupdate/desiredstate", message("big", size+1))
	if end := m.End("big", patience); end.Status != "IDENTIFICATION_FAILED" || !strings.Contains(end.Message, "262144 bytes, expected at most 262143") {
		t.Errorf("too big: ended as %+v", end)
	}
	m.PublishRaw("vehicleupdate/desiredstate", message("fits", size))
	if end := m.End("fits", patience); end.Status != "COMPLETED" {
		t.Errorf("%d bytes: ended as %+v", len(message("", size)), end)
	}
}

func TestNoMessageEndsTheManagerAndEachDesiredStateIsAnswered(t *testing.T) {
	t.Parallel()
	r := start(t, func(c *Config) { c.SafeTopic = true })
	r.both()
	m := agents.Watch(t, r.broker.URL(), "vehicle")
	for _, topic := range Subscriptions(r.cfg) {
		if topic == "vehicleupdate/desiredstate" {
			continue
		}
		for _, j := range junk() {
			m.PublishRaw(topic, []byte(j))
		}
	}
	m.Forget()
	anonymous := 0
	for _, u := range unreadable() {
		m.PublishRaw("vehicleupdate/desiredstate", []byte(u.data))
		if u.id == "" {
			anonymous++
		}
		r.eventually(fmt.Sprintf("answer to %.60s", u.data), func() bool {
			n := on(m.Messages(), "vehicleupdate/desiredstatefeedback", `{"activityId":"`+u.id+`",`)
			return n == 1 && u.id != "" || n == anonymous && u.id == ""
		})
	}
	for _, f := range append(m.Feedback(""), m.Feedback("m5")...) {
		if f.Status != "IDENTIFICATION_FAILED" || !strings.HasPrefix(f.Message, "desired state: ") {
			t.Errorf("answered %+v", f)
		}
	}
	if n := r.m.Counters().Malformed; n < uint64(len(unreadable())) {
		t.Errorf("%d malformed messages are counted", n)
	}
	r.update(m, "a1", "2")
	valid(t, m.Messages(), "vehicleupdate/desiredstatefeedback", "vehicleupdate/currentstate")
}

func TestNoOperationEndsTheManagerAndEachIsAnswered(t *testing.T) {
	t.Parallel()
	r, c := things(t, nil)
	r.both()
	for _, j := range junk() {
		c.PublishRaw("command///req/1/apply", []byte(j)) // before and
		c.PublishRaw("edge/thing/response", []byte(j))
	}
	c.identify()
	for i, u := range unreadable() {
		c.PublishRaw("command///req/1/apply", []byte(u.data)) // after the thing is known
		value := strings.ReplaceAll(u.data, `"payload"`, `"desiredState"`)
		if strings.HasSuffix(value, "nul") || !strings.HasPrefix(value, "{\"") && value != "null" && value != "[]" || len(value) > 1<<20 {
			continue // would not be JSON
		}
		n := fmt.Sprint("r", i)
		c.ask(n, "apply", value)
		r.eventually("answer to "+value, func() bool { return on(c.Messages(), "command///res/"+n+"/400", "messages:parameter.invalid") == 1 })
		r.eventually("feedback to "+value, func() bool {
			f := c.feedback(u.id)
			return len(f) > 0 && f[len(f)-1].Status == "IDENTIFICATION_FAILED"
		})
		c.ask(n+"c", "consent", value)
		r.eventually("answer to "+value, func() bool { return on(c.Messages(), "command///res/"+n+"c/400", "messages:parameter.invalid") == 1 })
	}
	for i, value := range []string{"7", `"x"`, "[]"} {
		n := fmt.Sprint("f", i)
		c.ask(n, "refresh", value)
		r.eventually("answer to "+value, func() bool { return on(c.Messages(), "command///res/"+n+"/400", "") == 1 })
	}
	c.ask("last", "apply", apply("a1", "2"))
	if end := c.end("a1"); end.Status != "COMPLETED" {
		t.Errorf("ended as %+v", end)
	}
}

// The agent's messages have what it takes and much that is wrong besides.
func TestAnAgentMayBeCareless(t *testing.T) {
	t.Parallel()
	r := start(t, func(c *Config) { c.Agents = map[string]orchestrator.Agent{"containers": {ReadTimeout: patience}} })
	m := agents.Watch(t, r.broker.URL(), "vehicle")
	orders := agents.Record(t, r.broker.URL(), "containersupdate/desiredstate/#")
	m.Apply("a1", agents.Desire(agents.Target{Domain: "containers", Component: "app", Version: "2"}))
	for i, status := range []string{"IDENTIFIED", "DOWNLOAD_SUCCESS", "UPDATE_SUCCESS", "ACTIVATION_SUCCESS", "CLEANUP_SUCCESS"} {
		r.eventually("order before "+status, func() bool { return len(orders.Messages()) == i+1 })
		m.PublishRaw("containersupdate/desiredstatefeedback", fmt.Appendf(nil, `{"activityId":"a1","timestamp":"soon","payload":{"status":"%s","message":7,"baseline":[],
			"actions":[null,7,{},{"component":null},{"component":{"id":"containers:app","version":2},"status":[],"progress":300.5,"message":"100%%d"}]}}`, status))
	}
	end := m.End("a1", patience)
	if end.Status != "COMPLETED" || len(end.Actions) != 1 || end.Actions[0].Component.ID != "containers:app" || end.Actions[0].Progress != 100 || end.Actions[0].Message != "100%d" {
		t.Errorf("ended as %+v", end)
	}
}

func TestRetainedMessagesStartNothing(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"plain", "things"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			r := prepare(t, func(c *Config) { c.Things, c.SafeTopic = mode == "things", true })
			bus := r.broker.Client(t)
			for _, topic := range Subscriptions(r.cfg) {
				switch {
				case topic == "edge/thing/response":
				case strings.HasSuffix(topic, "/desiredstate"):
					bus.Retain(topic, `{"activityId":"old","payload":{"domains":[{"id":"containers","components":[{"id":"app","version":"2"}]}]}}`)
				case strings.HasSuffix(topic, "#"):
					bus.Retain("command///req/1/apply", fmt.Sprintf(`{"topic":"%sapply","headers":{"response-required":true},"path":"%s/inbox/messages/apply","value":%s}`, channel, feature, apply("old", "2")))
				default:
					bus.Retain(topic, junk()[0])
				}
			}
			all := agents.Record(t, r.broker.URL(), "#")
			r.eventually("retained messages", func() bool {
				return len(all.Messages()) == len(Subscriptions(r.cfg))-map[string]int{"plain": 0, "things": 1}[mode]
			})
			all.Forget()
			r.launch()
			if mode == "things" {
				r.eventually("request for the identity", func() bool { return on(all.Messages(), "edge/thing/request", "") == 1 })
				bus.Publish("edge/thing/response", `{"deviceId":"`+thingID+`"}`)
			}
			topic := map[string]string{"plain": "vehicleupdate/currentstate", "things": "e"}[mode]
			r.eventually("first current state", func() bool { return on(all.Messages(), topic, "initial-current-state-") > 0 })
			for _, m := range all.Messages() {
				if strings.Contains(string(m.Raw), `"old"`) || strings.HasSuffix(m.Topic, "desiredstatefeedback") || strings.HasPrefix(m.Topic, "command///res/") {
					t.Errorf("%s: %s", m.Topic, m.Raw)
				}
			}
			r.eventually("warning", func() bool { return strings.Contains(r.log.String(), "retained message is ignored") })
			if s := r.m.Status(); s.ActivityID != "" {
				t.Errorf("status %+v", s)
			}
		})
	}
}

func FuzzDecodeValue(f *testing.F) {
	f.Add([]byte(apply("a1", "2")))
	f.Add([]byte(approved))
	for _, u := range unreadable() {
		f.Add([]byte(strings.ReplaceAll(u.data, `"payload"`, `"desiredState"`)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, desired, consent, err := decodeValue(data)
		if err != nil && (desired != nil || consent != nil) {
			t.Errorf("%s, %s beside %v", desired, consent, err)
		}
		e.Payload = desired
		_, _ = e.DesiredState()
		e.Payload = consent
		_ = e.DecodePayload(&updateproto.OwnerConsentFeedback{})
	})
}
