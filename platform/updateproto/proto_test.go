// SPDX-License-Identifier: Apache-2.0

package updateproto

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDesiredStateIsDecoded(t *testing.T) {
	const message = `{"activityId":"a1","timestamp":1700000000000,"extra":1,"payload":{
		"baselines":[{"title":"nav-stack","components":["containers:nav","self-update:os-image"]}],
		"domains":[
			{"id":"containers","config":[{"key":"k","value":"v"}],"components":[{"id":"nav","version":"2.1"}]},
			{"id":"self-update","more":{},"components":[{"id":"os-image","version":"7","config":[{"key":"image","value":"https://h.example/7.raucb"}]}]}]}}`
	want := DesiredState{
		Baselines: []Baseline{{Title: "nav-stack", Components: []string{"containers:nav", "self-update:os-image"}}},
		Domains: []Domain{
			{ID: "containers", Config: []KeyValue{{"k", "v"}}, Components: []Component{{ID: "nav", Version: "2.1"}}},
			{ID: "self-update", Components: []Component{{ID: "os-image", Version: "7", Config: []KeyValue{{"image", "https://h.example/7.raucb"}}}}},
		},
	}
	var got DesiredState
	id, err := Decode([]byte(message), &got)
	if err != nil || id != "a1" {
		t.Fatalf("id %q, error %v", id, err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	e, err := DecodeEnvelope([]byte(message))
	if err != nil || e.Timestamp != 1700000000000 {
		t.Errorf("timestamp %d, error %v", e.Timestamp, err)
	}
}

func TestBadMessagesNameTheirFaultAndTheirActivity(t *testing.T) {
	long := strings.Repeat("x", MaxActivityID)
	deep := strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth)
	for _, test := range []struct{ message, id, err string }{
		{`{"activityId":"a","payload":{"domains":[]}}`, "a", ""},
		{`{"ACTIVITYID":"a","Payload":{"Domains":[]}}`, "a", ""},
		{`{"activityId":"a","timestamp":"now","payload":{}}`, "a", ""},
		{`{"activityId":"` + long + `","payload":{}}`, long, ""},
		{`{"activityId":"a","payload":{"more":"\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["}}`, "a", ""},

		{``, "", "message is not JSON: unexpected end of JSON input at byte 0"},
		{`hello`, "", "message is not JSON"},
		{`[]`, "", "message: expected an object, got an array"},
		{`null`, "", "payload: missing"},
		{`7`, "", "message: expected an object, got a number"},
		{`{}`, "", "payload: missing"},
		{`{"payload":{}}`, "", "activityId: missing or empty"},
		{`{"activityId":"","payload":{}}`, "", "activityId: missing or empty"},
		{`{"activityId":null,"payload":{}}`, "", "activityId: missing or empty"},
		{`{"activityId":7,"payload":{}}`, "", "activityId: expected a string, got a number"},
		{`{"activityId":["a"],"payload":{}}`, "", "activityId: expected a string, got an array"},
		{`{"activityId":"x` + long + `","payload":{}}`, "", "activityId: 257 bytes, expected at most 256"},
		{`{"activityId":"a\nb","payload":{}}`, "", "activityId: contains a control character"},

		{`{"activityId":"a"}`, "a", "payload: missing"},
		{`{"activityId":"a","payload":null}`, "a", "payload: missing"},
		{`{"activityId":"a","payload":[]}`, "a", "payload: expected an object, got an array"},
		{`{"activityId":"a","payload":"domains"}`, "a", "payload: expected an object, got a string"},
		{`{"activityId":"a","payload":{"domains":{}}}`, "a", "payload.domains: expected an array, got an object"},
		{`{"activityId":"a","payload":{"domains":[true]}}`, "a", "payload.domains: expected an object, got a boolean"},
		{`{"activityId":"a","payload":{"domains":[{"id":1}]}}`, "a", "payload.domains.id: expected a string, got a number"},
		{`{"activityId":"a","payload":{"domains":[{"components":[{"version":1.5}]}]}}`, "a", "payload.domains.components.version: expected a string, got a number"},
		{`{"activityId":"a","payload":{"domains":[{"components":[{"config":[{"value":false}]}]}]}}`, "a", "payload.domains.components.config.value: expected a string, got a boolean"},

		{`{"activityId":"a","payload":{"domains":[}`, "a", "message is not JSON: invalid character '}'"},
		{`{"payload":{"x":[{}]},"activityId":"a","more":`, "a", "message is not JSON: unexpected end"},
		{`{"payload":{,"activityId":"a"}`, "", "message is not JSON"},
		{`{"activityId":"a"} {}`, "a", "message is not JSON: invalid character '{' after top-level value"},
		{`{"activityId":7,`, "", "message is not JSON"},
		{`{"activityId":"a\u0000",`, "", "message is not JSON"},
		{`{"activityId":"a","payload":{"x":` + deep + `}}`, "a", "nested more than 32 levels deep"},
		{`{"payload":` + deep + `,"activityId":"a"}`, "a", "nested more than 32 levels deep"},
		{`{"activityId":"a","payload":"` + strings.Repeat("x", MaxSize) + `"}`, "a", "expected at most 1048576"},
	} {
		name := fmt.Sprintf("%.60s", test.message)
		id, err := Decode([]byte(test.message), new(DesiredState))
		if id != test.id {
			t.Errorf("%s: id %q, want %q", name, id, test.id)
		}
		if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
			t.Errorf("%s: error %v, want %q", name, err, test.err)
		}
	}
}

func TestPayloadIsOptionalForRequestsOfTheInventory(t *testing.T) {
	for _, message := range []string{
		`{"activityId":"a","timestamp":1}`,
		`{"activityId":"a","payload":null}`,
		`{"activityId":"a","payload":[7]}`,
	} {
		if id, err := Decode([]byte(message), nil); id != "a" || err != nil {
			t.Errorf("%s: id %q, error %v", message, id, err)
		}
	}
	if id, err := Decode([]byte(`{"timestamp":1}`), nil); id != "" || !errors.Is(err, ErrNoActivityID) {
		t.Errorf("id %q, error %v, want %v", id, err, ErrNoActivityID)
	}
}

// Agents may publish their inventory without being asked.
func TestPayloadIsDecodedAlsoWithoutActivityID(t *testing.T) {
	var got Inventory
	_, err := Decode([]byte(`{"timestamp":1,"payload":{"softwareNodes":[{"id":"n"}]}}`), &got)
	if !errors.Is(err, ErrNoActivityID) {
		t.Errorf("error %v, want %v", err, ErrNoActivityID)
	}
	if len(got.SoftwareNodes) != 1 || got.SoftwareNodes[0].ID != "n" {
		t.Errorf("got %+v", got)
	}
	_, err = Decode([]byte(`{"payload":{"softwareNodes":7}}`), &got)
	if err == nil || errors.Is(err, ErrNoActivityID) {
		t.Errorf("error %v, want that of the payload", err)
	}
}

// The texts are those that the documentation of Eclipse Leda prints.
func TestMessagesLookAsDocumented(t *testing.T) {
	at := time.UnixMilli(1687786390123)
	action := Action{Component: ComponentRef{"self-update:os-image", "v1"}, Status: ActionDownloading, Message: "Downloading 0.0 MiB..."}
	inventory := Inventory{
		SoftwareNodes: []SoftwareNode{{ID: "self-update-agent", Version: "build-152", Name: "OTA NG Self Update Agent", Type: TypeApplication}},
		Associations:  []Association{{"self-update-agent", "self-update:os-image"}},
	}
	for _, test := range []struct {
		id      string
		payload any
		want    string
	}{
		{"1", Feedback{Status: StatusIdentifying, Message: "m"}, `{"activityId":"1","timestamp":1687786390123,"payload":{"status":"IDENTIFYING","message":"m","actions":[]}}`},
		{"1", &Feedback{Status: StatusDownloading, Message: "m", Actions: []Action{action}}, `{"activityId":"1","timestamp":1687786390123,"payload":{"status":"DOWNLOADING","message":"m","actions":[` +
			`{"component":{"id":"self-update:os-image","version":"v1"},"status":"DOWNLOADING","progress":0,"message":"Downloading 0.0 MiB..."}]}}`},
		{"1", Feedback{Status: StatusCleanupSuccess, Baseline: "b"}, `{"activityId":"1","timestamp":1687786390123,"payload":{"status":"CLEANUP_SUCCESS","baseline":"b","message":"","actions":[]}}`},
		{"", &inventory, `{"timestamp":1687786390123,"payload":{"softwareNodes":[` +
			`{"id":"self-update-agent","version":"build-152","name":"OTA NG Self Update Agent","type":"APPLICATION"}],"hardwareNodes":[],` +
			`"associations":[{"sourceId":"self-update-agent","targetId":"self-update:os-image"}]}}`},
		{"1", Inventory{}, `{"activityId":"1","timestamp":1687786390123,"payload":{"softwareNodes":[],"hardwareNodes":[],"associations":[]}}`},
		{"1", Command{Command: CommandUpdate}, `{"activityId":"1","timestamp":1687786390123,"payload":{"command":"UPDATE"}}`},
		{"1", nil, `{"activityId":"1","timestamp":1687786390123,"payload":null}`},
		{"a\"b", Feedback{Status: StatusUpdateFailure, Message: "line\n<\\>&"}, `{"activityId":"a\"b","timestamp":1687786390123,"payload":{"status":"UPDATE_FAILURE","message":"line\n<\\>&","actions":[]}}`},
	} {
		got, err := Encode(test.id, at, test.payload)
		if err != nil {
			t.Error(err)
		}
		if string(got) != test.want {
			t.Errorf("encoded\n%s\nwant\n%s", got, test.want)
		}
	}
}

func fuzz[T any](f *testing.F, seeds ...string) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Add([]byte(`{"activityId":"a","payload":{"`))
	f.Add([]byte(`{"payload":[[[[]]]],"activityId":"a","timestamp":1e99}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var payload T
		id, err := Decode(data, &payload)
		var ref struct {
			ID any `json:"activityId"`
		}
		// Whoever is able to read the id has to find it.
		if json.Unmarshal(data, &ref) == nil && len(data) <= MaxSize {
			if want, ok := ref.ID.(string); ok && checkID(want) == nil && depth(data) <= MaxDepth && id != want {
				t.Fatalf("id %q, want %q", id, want)
			}
		}
		if id != "" && checkID(id) != nil {
			t.Fatalf("bad id %q is returned", id)
		}
		if err != nil {
			if s := err.Error(); s == "" || strings.Contains(s, "updateproto") {
				t.Fatalf("error %q is not for people", s)
			}
			return
		}
		text, err := Encode(id, time.UnixMilli(1), payload)
		if err != nil {
			t.Fatal(err)
		}
		var again T
		id2, err := Decode(text, &again)
		if err != nil || id2 != id {
			t.Fatalf("decoding what was encoded: id %q, error %v\n%s", id2, err, text)
		}
		text2, err := Encode(id, time.UnixMilli(1), again)
		if err != nil || string(text2) != string(text) {
			t.Fatalf("not stable: error %v\n%s\n%s", err, text, text2)
		}
	})
}

func FuzzDesiredState(f *testing.F) {
	fuzz[DesiredState](f,
		`{"activityId":"a","timestamp":1,"payload":{"baselines":[{"title":"t","components":["a:b"]}],"domains":[{"id":"d","config":[{"key":"k","value":"v"}],"components":[{"id":"c","version":"1","config":[]}]}]}}`,
		`{"ActivityID":"a","payload":{"domains":[null,{"components":[null]}]}}`)
}

func FuzzCommand(f *testing.F) {
	fuzz[Command](f, `{"activityId":"a","timestamp":1,"payload":{"baseline":"*","command":"DOWNLOAD"}}`)
}

func FuzzFeedback(f *testing.F) {
	fuzz[Feedback](f, `{"activityId":"a","timestamp":1,"payload":{"status":"UPDATING","message":"m","actions":[{"component":{"id":"d:c","version":"1"},"status":"UPDATING","progress":12,"message":"m"},null]}}`)
}

func FuzzInventory(f *testing.F) {
	fuzz[Inventory](f, `{"timestamp":1,"payload":{"softwareNodes":[{"id":"n","version":"1","name":"N","type":"IMAGE","parameters":[{"key":"k","value":"v"}]}],"hardwareNodes":[{"id":"h","addressable":true}],"associations":[{"sourceId":"n","targetId":"h"}]}}`)
}
