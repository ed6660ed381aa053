// SPDX-License-Identifier: Apache-2.0

package twin

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func feature() Feature {
	return Feature{Thing: ID{"org.example", "gateway:vehicle-7"}, Name: "UpdateManager"}
}

func TestAnIdentityIsDecoded(t *testing.T) {
	got, err := DecodeIdentity([]byte(`{"deviceId":"org.example:gateway:vehicle-7","tenantId":"fleet","policyId":"org.example:p","new":[]}`))
	want := Identity{ID{"org.example", "gateway:vehicle-7"}, "fleet", "org.example:p"}
	if err != nil || got != want {
		t.Fatalf("%+v, %v, want %+v", got, err, want)
	}
	if s := got.Thing.String(); s != "org.example:gateway:vehicle-7" {
		t.Error(s)
	}
}

func TestAnIdentityWithoutAThingIsRefused(t *testing.T) {
	for _, data := range []string{
		"", "null", "[]", "{}", `{"deviceId":7}`, `{"deviceId":""}`, `{"deviceId":"no-colon"}`, `{"deviceId":":name"}`,
		`{"deviceId":"ns:"}`, `{"deviceId":"ns:a/b"}`, `{"deviceId":"ns:a\u0000"}`, `{"deviceId":"ns:` + strings.Repeat("n", 300) + `"}`,
	} {
		if id, err := DecodeIdentity([]byte(data)); err == nil || !strings.Contains(err.Error(), "identity of the thing: ") {
			t.Errorf("%.40s: %+v, error %v", data, id, err)
		}
	}
}

func TestMessagesAreWrittenAsDittoReadsThem(t *testing.T) {
	f := feature()
	for _, c := range []struct {
		name string
		make func() ([]byte, error)
		want string
	}{
		{
			"description",
			func() ([]byte, error) {
				return f.Describe("ns:UpdateManager:1.0.0", map[string]string{"domain": "device"})
			},
			`{"topic":"org.example/gateway:vehicle-7/things/twin/commands/modify","headers":{"response-required":false},` +
				`"path":"/features/UpdateManager","value":{"definition":["ns:UpdateManager:1.0.0"],"properties":{"domain":"device"}}}`,
		}, {
			"properties",
			func() ([]byte, error) { return f.Modify(map[string]string{"text": "a<b>&c"}) },
			`{"topic":"org.example/gateway:vehicle-7/things/twin/commands/modify","headers":{"content-type":"application/json","response-required":false},` +
				`"path":"/features/UpdateManager/properties","value":{"text":"a<b>&c"}}`,
		}, {
			"message",
			func() ([]byte, error) { return f.Message("feedback", "", 1) },
			`{"topic":"org.example/gateway:vehicle-7/things/live/messages/feedback","headers":{"content-type":"application/json","response-required":false},` +
				`"path":"/features/UpdateManager/outbox/messages/feedback","value":1}`,
		}, {
			"message that wants an answer",
			func() ([]byte, error) { return f.Message("consent", "c-1", 1) },
			`{"topic":"org.example/gateway:vehicle-7/things/live/messages/consent",` +
				`"headers":{"content-type":"application/json","correlation-id":"c-1","response-required":true},` +
				`"path":"/features/UpdateManager/outbox/messages/consent","value":1}`,
		},
	} {
		got, err := c.make()
		if err != nil || string(got) != c.want {
			t.Errorf("%s:\n got %s, %v\nwant %s", c.name, got, err, c.want)
		}
	}
	if _, err := f.Modify(func() {}); err == nil {
		t.Error("a function was encoded")
	}
}

const request = `{"topic":"org.example/gateway:vehicle-7/things/live/messages/apply","headers":HEADERS,
	"path":"/features/UpdateManager/inbox/messages/apply","value":{"a":1},"revision":7}`

func TestARequestIsDecodedAndAnswered(t *testing.T) {
	f := feature()
	const topic = "command///req/77/apply"
	r, err := f.Decode(topic, []byte(strings.Replace(request, "HEADERS", `{"Correlation-Id":"c","response-required":true,"x":{}}`, 1)))
	if err != nil || r.Subject != "apply" || string(r.Value) != `{"a":1}` || r.CorrelationID != "c" || !r.Answer {
		t.Fatalf("%+v, %v", r, err)
	}
	topicOut, data, err := f.Done(r)
	const done = `{"topic":"org.example/gateway:vehicle-7/things/live/messages/apply","headers":{"correlation-id":"c","response-required":false},` +
		`"path":"/features/UpdateManager/outbox/messages/apply","status":204}`
	if topicOut != "command///res/77/204" || string(data) != done || err != nil {
		t.Errorf("%s %s %v", topicOut, data, err)
	}
	topicOut, data, err = f.Invalid(r, errors.New("it is bad"))
	const invalid = `{"topic":"org.example/gateway:vehicle-7/things/live/messages/apply",` +
		`"headers":{"content-type":"application/json","correlation-id":"c","response-required":false},"path":"/features/UpdateManager/outbox/messages/apply",` +
		`"value":{"error":"messages:parameter.invalid","status":400,"message":"it is bad"},"status":400}`
	if topicOut != "command///res/77/400" || string(data) != invalid || err != nil {
		t.Errorf("%s %s %v", topicOut, data, err)
	}
}

func TestARequestWithoutAnIDIsAnsweredWithoutOne(t *testing.T) {
	f := feature()
	r, err := f.Decode("command///req//apply", []byte(strings.Replace(request, "HEADERS", `{"response-required":true}`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	if topic, _, _ := f.Done(r); topic != "command///res//204" {
		t.Error(topic)
	}
}

func TestHeadersOfAWrongTypeCountAsAbsent(t *testing.T) {
	f := feature()
	for _, h := range []string{`null`, `[]`, `7`, `{}`, `{"correlation-id":7,"response-required":"true"}`, `{"correlation-id":null,"response-required":[]}`} {
		r, err := f.Decode("command///req/1/apply", []byte(strings.Replace(request, "HEADERS", h, 1)))
		if err != nil || r.CorrelationID != "" || r.Answer {
			t.Errorf("%s: %+v, %v", h, r, err)
		}
	}
}

func TestWhatIsForOthersIsTold(t *testing.T) {
	f := feature()
	const good = "command///req/1/apply"
	plain := strings.Replace(request, "HEADERS", `{}`, 1)
	for _, c := range []struct{ topic, old, new string }{
		{"command//other/req/1/apply", "", ""},
		{"elsewhere", "", ""},
		{good, "org.example/gateway:vehicle-7", "org.example/gateway:vehicle-8"},
		{good, "org.example/", "com.example/"},
		{good, "/features/UpdateManager/", "/features/Metrics/"},
		{good, "/inbox/", "/outbox/"},
		{good, "/live/", "/twin/"},
		{good, "messages/apply\",\"headers", "messages/refresh\",\"headers"}, // another subject than the path's
	} {
		data := strings.Replace(plain, c.old, c.new, 1)
		if data == plain && c.old != "" {
			t.Fatalf("%q is not in the request", c.old)
		}
		if r, err := f.Decode(c.topic, []byte(data)); !errors.Is(err, ErrForeign) {
			t.Errorf("%s %s: %+v, error %v", c.topic, c.new, r, err)
		}
	}
	for _, data := range []string{"", "{", "[]", `"x"`, `{"topic":7}`, `{"path":{}}`, `{"value":"` + strings.Repeat("x", maxSize) + `"}`} {
		if r, err := f.Decode(good, []byte(data)); err == nil || errors.Is(err, ErrForeign) {
			t.Errorf("%.40s: %+v, error %v", data, r, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("command///req/1/apply", []byte(strings.Replace(request, "HEADERS", `{"correlation-id":"c","response-required":true}`, 1)))
	f.Add("command///req//", []byte(`{"topic":"","headers":null,"path":""}`))
	f.Add("edge/thing/response", []byte(`{"deviceId":"org.example:gateway","tenantId":"t"}`))
	f.Fuzz(func(t *testing.T, topic string, data []byte) {
		if i, err := DecodeIdentity(data); err == nil {
			if again, err := ParseID(i.Thing.String()); err != nil || again != i.Thing {
				t.Errorf("%+v becomes %+v, %v", i.Thing, again, err)
			}
		}
		r, err := feature().Decode(topic, data)
		if err != nil {
			return
		}
		for _, reply := range []func() (string, []byte, error){
			func() (string, []byte, error) { return feature().Done(r) },
			func() (string, []byte, error) { return feature().Invalid(r, errors.New(r.Subject)) },
		} {
			topic, out, err := reply()
			if err != nil || !json.Valid(out) || !strings.HasPrefix(topic, "command///res/") {
				t.Errorf("answer %q on %q, %v", out, topic, err)
			}
		}
	})
}
