// SPDX-License-Identifier: Apache-2.0

package twin

import (
	"errors"
	"strings"
	"testing"
)

var containersThing = ID{"org.example", "gateway:vehicle-7:edge:containers"}

const (
	startTopic   = "command//org.example:gateway:vehicle-7:edge:containers/req/77/start"
	startRequest = `{"topic":"org.example/gateway:vehicle-7:edge:containers/things/live/messages/start","headers":{"correlation-id":"c1","response-required":true},"path":"/features/Container:5f0c/inbox/messages/start"}`
)

func TestAnOperationIsAnswered(t *testing.T) {
	o, err := containersThing.Decode(startTopic, []byte(startRequest))
	if err != nil || o.Feature != "Container:5f0c" || o.Name != "start" || o.Value != nil || o.CorrelationID != "c1" || !o.Answer {
		t.Fatalf("%+v, %v", o, err)
	}
	topic, data, err := o.Reply(nil, nil)
	const done = `{"topic":"org.example/gateway:vehicle-7:edge:containers/things/live/messages/start","headers":{"correlation-id":"c1"},"path":"/features/Container:5f0c/outbox/messages/start","status":204}`
	if topic != "command//org.example:gateway:vehicle-7:edge:containers/res/77/204" || string(data) != done || err != nil {
		t.Errorf("%s %s %v", topic, data, err)
	}
	topic, data, _ = o.Reply("5f0c", nil)
	if !strings.HasSuffix(topic, "/77/200") || !strings.Contains(string(data), `"headers":{"content-type":"application/json","correlation-id":"c1"}`) ||
		!strings.HasSuffix(string(data), `,"value":"5f0c","status":200}`) {
		t.Errorf("%s %s", topic, data)
	}
	topic, data, _ = o.Reply(nil, errors.New("it <broke>"))
	if !strings.HasSuffix(topic, "/77/500") || !strings.HasSuffix(string(data), `"value":{"error":"messages:execution.failed","status":500,"message":"it <broke>"},"status":500}`) {
		t.Errorf("%s %s", topic, data)
	}
}

func TestOperationsThatAreNotUnderstoodAreRefused(t *testing.T) {
	for _, c := range []struct {
		old, new string
		status   int
		answer   bool
	}{
		{`"correlation-id":"c1"`, `"correlation-id":7`, 400, true},
		{`"correlation-id":"c1",`, ``, 400, true},
		{`"response-required":true`, `"response-required":"true"`, 400, true},
		{`"response-required":true`, `"response-required":1`, 400, true},
		{`"correlation-id":"c1","response-required":true`, `"correlation-id":{},"response-required":false`, 400, false},
		{`"correlation-id":"c1","response-required":true`, ``, 400, false},
		{`"response-required":true`, `"response-required":true,"content-type":"application/json"`, 400, true},
		{`"response-required":true`, `"response-required":true,"content-type":[]`, 400, true},
		{`"path"`, `"value":true,"path"`, 400, true},
		{`"response-required":true},`, `"response-required":true,"content-type":"text/plain"},"value":true,`, 400, true},
		{`{"correlation-id":"c1","response-required":true}`, `[]`, 400, false},
		{`{"correlation-id":"c1","response-required":true}`, `"x"`, 400, false},
		{`"topic":"org.example/gateway`, `"topic":"org.example/getaway`, 404, true},
		{`"topic":"org.example/gateway:vehicle-7:edge:containers/things/live/messages/start"`, `"topic":""`, 404, true},
		{`/inbox/messages/start`, `/outbox/messages/start`, 400, true},
		{`/inbox/messages/start`, `/inbox/messages/stop`, 400, true},
		{`/features/Container:5f0c`, ``, 400, true},
	} {
		data := strings.Replace(startRequest, c.old, c.new, 1)
		if data == startRequest {
			t.Fatalf("%q is not in the request", c.old)
		}
		o, err := containersThing.Decode(startTopic, []byte(data))
		var f *Failure
		if !errors.As(err, &f) || f.Status != c.status || o.Answer != c.answer {
			t.Errorf("%s: answer %v, error %v, want %d, %v", c.new, o.Answer, err, c.status, c.answer)
			continue
		}
		if topic, data, err := o.Refuse(f); err != nil || !strings.HasPrefix(topic, "command//org.example:gateway:vehicle-7:edge:containers/res/77/4") || !strings.Contains(string(data), `"message":"`) {
			t.Errorf("%s: %s %s %v", c.new, topic, data, err)
		}
	}
	o, err := containersThing.Decode(strings.Replace(startTopic, "/77/", "//", 1), []byte(startRequest))
	if err != nil || o.Answer {
		t.Errorf("without an id of the request: %+v, %v", o, err)
	}
	o, err = containersThing.Decode(startTopic, []byte(strings.Replace(startRequest, `"path"`, `"value":null,"path"`, 1)))
	if err != nil || o.Value != nil {
		t.Errorf("with nothing as value: %+v, %v", o, err)
	}
}

func TestMessagesThatAreNoOperations(t *testing.T) {
	for _, c := range []struct{ topic, data string }{
		{"command///req/77/start", startRequest},
		{strings.Replace(startTopic, "vehicle-7", "vehicle-8", 1), startRequest},
		{startTopic, strings.Replace(startRequest, "/live/messages/start", "/twin/events/created", 1)},
	} {
		if o, err := containersThing.Decode(c.topic, []byte(c.data)); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %+v, error %v", c.topic, o, err)
		}
	}
	for _, data := range []string{"", "{", "[]", "7", `{"topic":7}`, `{"path":[]}`, strings.Repeat(" ", maxSize) + "{}"} {
		var f *Failure
		if o, err := containersThing.Decode(startTopic, []byte(data)); err == nil || errors.As(err, &f) {
			t.Errorf("%.40s: %+v, error %v", data, o, err)
		}
	}
}

func TestTopicsOfEventsCanBePublished(t *testing.T) {
	if topic, err := EventTopicOf("fleet", containersThing); topic != "e/fleet/org.example:gateway:vehicle-7:edge:containers" || err != nil {
		t.Errorf("%s, %v", topic, err)
	}
	for _, tenant := range []string{"a/b", "+", "#", "a\x00"} {
		if topic, err := EventTopicOf(tenant, containersThing); err == nil {
			t.Errorf("tenant %q: %s", tenant, topic)
		}
	}
	if topic, err := EventTopicOf("fleet", ID{"a", "#"}); err == nil {
		t.Error(topic)
	}
}

func TestPropertiesAreSetAndFeaturesDeleted(t *testing.T) {
	f := Feature{containersThing, "Container:5f0c"}
	got, err := f.Set("status/name", "radio")
	const set = `{"topic":"org.example/gateway:vehicle-7:edge:containers/things/twin/commands/modify","headers":{"response-required":false},"path":"/features/Container:5f0c/properties/status/name","value":"radio"}`
	if string(got) != set || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	got, err = f.Delete()
	const del = `{"topic":"org.example/gateway:vehicle-7:edge:containers/things/twin/commands/delete","headers":{"response-required":false},"path":"/features/Container:5f0c"}`
	if string(got) != del || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	got, err = f.Describe("ns:Container:1.0.0", nil)
	if !strings.HasSuffix(string(got), `"value":{"definition":["ns:Container:1.0.0"]}}`) || err != nil {
		t.Errorf("%s, %v", got, err)
	}
}

func FuzzOperation(f *testing.F) {
	f.Add(startTopic, []byte(startRequest))
	f.Add(startTopic, []byte(strings.Replace(startRequest, `"c1"`, `7`, 1)))
	f.Add(startTopic, []byte(`{"topic":"","headers":null,"path":""}`))
	f.Fuzz(func(t *testing.T, topic string, data []byte) {
		o, err := containersThing.Decode(topic, data)
		var failure *Failure
		switch {
		case errors.As(err, &failure):
			_, _, err = o.Refuse(failure)
		case err != nil:
			return
		default:
			_, _, err = o.Reply(o.Value, nil)
		}
		if err != nil {
			t.Error(err)
		}
	})
}
