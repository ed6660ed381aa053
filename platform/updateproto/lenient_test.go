// SPDX-License-Identifier: Apache-2.0

package updateproto

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func wantError(t *testing.T, message string, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%.80s: error %v, want %q", message, err, want)
	}
}

func TestPrefixIsTheDomainWithoutDashesAndEndsInUpdate(t *testing.T) {
	for domain, want := range map[string]string{
		"device": "deviceupdate", "vehicle": "vehicleupdate", "containers": "containersupdate", "self-update": "selfupdate",
		"a-b-c": "abcupdate", "up-date": "update", "": "update", "Update": "Updateupdate",
	} {
		if got := Prefix(domain); got != want {
			t.Errorf("%q: %q, want %q", domain, got, want)
		}
	}
}

func TestFeedbackIsUnderstoodAsFarAsPossible(t *testing.T) {
	action := func(id, version, status string, progress int, message string) Action {
		return Action{ComponentRef{id, version}, status, progress, message}
	}
	long := strings.Repeat("ä", MaxMessage)
	for _, test := range []struct {
		payload string
		want    Feedback
	}{
		{`{"status":"UPDATING","baseline":"b","message":"m","actions":[{"component":{"id":"d:c","version":"1"},"status":"UPDATING","progress":12,"message":"am"}]}`,
			Feedback{"UPDATING", "b", "m", []Action{action("d:c", "1", "UPDATING", 12, "am")}}},
		{`{"STATUS":"IDENTIFIED"}`, Feedback{Status: "IDENTIFIED"}},
		{`{"status":"NEWER_THAN_ME","more":{}}`, Feedback{Status: "NEWER_THAN_ME"}},
		{`{"status":"RUNNING","baseline":1,"message":["m"],"actions":{}}`, Feedback{Status: "RUNNING"}},
		{`{"status":"RUNNING","actions":[null,7,[],{},{"component":null},{"component":"d:c"},{"component":{"version":"1"}},{"component":{"id":7}},{"component":{"id":"d:c"}}]}`,
			Feedback{Status: "RUNNING", Actions: []Action{action("d:c", "", "", 0, "")}}},
		{`{"status":"RUNNING","actions":[{"component":{"id":"d:c","version":2},"status":3,"progress":"4","message":{}}]}`,
			Feedback{Status: "RUNNING", Actions: []Action{action("d:c", "", "", 0, "")}}},
		{`{"status":"RUNNING","message":"` + long + `"}`, Feedback{Status: "RUNNING", Message: strings.Repeat("ä", (MaxMessage-4)/2) + "…"}},
	} {
		message := `{"activityId":"a","timestamp":"now","payload":` + test.payload + `}`
		id, got, err := DecodeFeedback([]byte(message))
		wantError(t, test.payload, err, "")
		if d := cmp.Diff(test.want, got); id != "a" || d != "" {
			t.Errorf("%.200s: id %q\n%s", test.payload, id, d)
		}
	}
}

func TestProgressIsCutToPercents(t *testing.T) {
	for number, want := range map[string]int{
		"0": 0, "1": 1, "100": 100, "101": 100, "255": 100, "256": 100, "1e400": 100, "99.99": 99, "0.5": 0, "1e1": 10,
		"-1": 0, "-1e400": 0, "-0": 0, "true": 0, "null": 0, `"50"`: 0, "[50]": 0, "184467440737095516160": 100,
	} {
		_, f, err := DecodeFeedback([]byte(`{"payload":{"status":"RUNNING","actions":[{"component":{"id":"c"},"progress":` + number + `}]}}`))
		if err != nil || len(f.Actions) != 1 || f.Actions[0].Progress != want {
			t.Errorf("%s: %+v, error %v, want %d", number, f.Actions, err, want)
		}
	}
}

func TestFeedbackWithoutStatusOrReadableActivityIsAnError(t *testing.T) {
	for _, test := range []struct{ message, id, err string }{
		{`{"payload":{"status":"RUNNING"}}`, "", ""},
		{`{"activityId":null,"payload":{"status":"RUNNING"}}`, "", ""},
		{`{"activityId":7,"payload":{"status":"RUNNING"}}`, "", "activityId: expected a string, got a number"},
		{`{"activityId":"a","payload":{"status":7}}`, "a", "payload.status: expected a string, got a number"},
		{`{"activityId":"a","payload":{"status":""}}`, "a", "payload.status: missing or empty"},
		{`{"activityId":"a","payload":{}}`, "a", "payload.status: missing or empty"},
		{`{"activityId":"a","payload":[]}`, "a", "payload: expected an object, got an array"},
		{`{"activityId":"a","payload":null}`, "a", "payload: missing"},
		{`{"activityId":"a",`, "a", "message is not JSON"},
	} {
		id, f, err := DecodeFeedback([]byte(test.message))
		wantError(t, test.message, err, test.err)
		if id != test.id || err != nil && !cmp.Equal(f, Feedback{}) {
			t.Errorf("%s: id %q, want %q, feedback %+v", test.message, id, test.id, f)
		}
	}
}

func TestInventoryWithHolesIsUnderstood(t *testing.T) {
	for _, test := range []struct {
		message, id string
		at          int64
		want        Inventory
	}{
		{`{"activityId":"a","timestamp":5,"payload":{
			"softwareNodes":[null,7,{"version":"1"},{"id":"s","version":"1","name":"S","type":"APPLICATION","parameters":[null,{"value":"v"},{"key":"k","value":"v"},{"key":"n","value":1}]}],
			"hardwareNodes":[null,{"id":"h","version":1,"addressable":true,"parameters":{}},{"id":""}],
			"associations":[null,{"sourceId":"s"},{"targetId":"h"},{"sourceId":"s","targetId":"h"}]}}`, "a", 5,
			Inventory{
				SoftwareNodes: []SoftwareNode{{"s", "1", "S", TypeApplication, []KeyValue{{"k", "v"}, {"n", ""}}}},
				HardwareNodes: []HardwareNode{{ID: "h", Addressable: true}},
				Associations:  []Association{{"s", "h"}},
			}},
		{`{"timestamp":"5","payload":{"softwareNodes":null,"hardwareNodes":{},"associations":"none"}}`, "", 0, Inventory{}},
		{`{"activityId":"a","payload":{}}`, "a", 0, Inventory{}},
	} {
		id, at, got, err := DecodeInventory([]byte(test.message))
		wantError(t, test.message, err, "")
		if d := cmp.Diff(test.want, got); id != test.id || at != test.at || d != "" {
			t.Errorf("%s: id %q, at %d\n%s", test.message, id, at, d)
		}
	}
	for message, want := range map[string]string{
		`{"activityId":"a"}`:              "payload: missing",
		`{"activityId":"a","payload":[]}`: "payload: expected an object, got an array",
		`[`:                               "message is not JSON",
	} {
		_, _, inv, err := DecodeInventory([]byte(message))
		wantError(t, message, err, want)
		if !cmp.Equal(inv, Inventory{}) {
			t.Errorf("%s: %+v", message, inv)
		}
	}
}

func TestOnlyApprovedIsConsent(t *testing.T) {
	for _, test := range []struct {
		message  string
		approved bool
		err      string
	}{
		{`{"activityId":"a","payload":{"status":"APPROVED"}}`, true, ""},
		{`{"activityId":"a","payload":{"status":"DENIED"}}`, false, ""},
		{`{"activityId":"a","payload":{"status":"approved"}}`, false, ""},
		{`{"activityId":"a","payload":{"status":"APPROVED "}}`, false, ""},
		{`{"activityId":"a","payload":{}}`, false, ""},
		{`{"activityId":"a","payload":{"status":true}}`, false, "payload.status: expected a string, got a boolean"},
		{`{"activityId":"a","payload":{"status":"APPROVED","status":7}}`, false, "payload.status: expected a string, got a number"},
		{`{"activityId":"a","payload":null}`, false, "payload: missing"},
		{`{"activityId":"a"`, false, "message is not JSON"},
	} {
		id, approved, err := DecodeConsent([]byte(test.message))
		wantError(t, test.message, err, test.err)
		if id != "a" || approved != test.approved {
			t.Errorf("%s: id %q, approved %v", test.message, id, approved)
		}
	}
}

func TestResumingAgentsSaySoInAnApplication(t *testing.T) {
	node := func(typ, key, value string) SoftwareNode {
		return SoftwareNode{ID: "n", Type: typ, Parameters: []KeyValue{{"domain", "d"}, {key, value}}}
	}
	for _, test := range []struct {
		nodes []SoftwareNode
		want  bool
	}{
		{nil, false},
		{[]SoftwareNode{{ID: "n", Type: TypeApplication}}, false},
		{[]SoftwareNode{node(TypeContainer, "resumes", "true")}, false},
		{[]SoftwareNode{node(TypeApplication, "resumes", "false")}, false},
		{[]SoftwareNode{node(TypeApplication, "true", "resumes")}, false},
		{[]SoftwareNode{node(TypeImage, "k", "v"), node(TypeApplication, "resumes", "true")}, true},
	} {
		if got := Resumes(Inventory{SoftwareNodes: test.nodes}); got != test.want {
			t.Errorf("%+v: %v", test.nodes, got)
		}
	}
}

func FuzzLenientFeedback(f *testing.F) {
	f.Add([]byte(`{"activityId":"a","payload":{"status":"UPDATING","message":"m","actions":[null,{"component":{"id":"d:c"},"progress":-1e9}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		id, got, err := DecodeFeedback(data)
		// What the strict decoder takes has to come out the same.
		var strict Feedback
		if _, serr := decodeStrict(data, &strict); serr == nil && strict.Status != "" && err != nil {
			t.Fatalf("strict decoding works, lenient does not: %v", err)
		}
		if err != nil {
			return
		}
		if got.Status == "" || len(got.Message) > MaxMessage || !utf8.ValidString(got.Message) {
			t.Fatalf("%+v", got)
		}
		for _, a := range got.Actions {
			if a.Component.ID == "" || a.Progress < 0 || a.Progress > 100 || len(a.Message) > MaxMessage {
				t.Fatalf("%+v", a)
			}
		}
		stable(t, id, got, func(data []byte) (string, Feedback, error) { return DecodeFeedback(data) })
	})
}

func FuzzLenientInventory(f *testing.F) {
	f.Add([]byte(`{"timestamp":1,"payload":{"softwareNodes":[null,{"id":"n","parameters":[{"key":"k","value":"v"},null]}],"hardwareNodes":[{"id":"h","addressable":1}],"associations":[null]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		id, _, got, err := DecodeInventory(data)
		var strict Inventory
		if _, serr := decodeStrict(data, &strict); serr == nil && err != nil {
			t.Fatalf("strict decoding works, lenient does not: %v", err)
		}
		if err == nil {
			stable(t, id, got, func(data []byte) (string, Inventory, error) {
				id, _, inv, err := DecodeInventory(data)
				return id, inv, err
			})
		}
	})
}

func FuzzConsent(f *testing.F) {
	f.Add([]byte(`{"activityId":"a","payload":{"status":"APPROVED"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, approved, err := DecodeConsent(data); approved && (err != nil || !strings.Contains(string(data), "PPROVED") && !strings.Contains(string(data), `\u00`)) {
			t.Fatalf("approved, error %v", err)
		}
	})
}

func FuzzDesiredStateOfTheVehicle(f *testing.F) {
	f.Add([]byte(`{"activityId":"a","timestamp":1,"payload":{"baselines":[{"title":"t","components":["d:c"]}],"domains":[{"id":"d"},{"id":"d","components":[{"id":"c","version":"1","config":[{"key":"k","value":"v"}]}]}]}}`))
	f.Add([]byte(`{"payload":{"domains":[null]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		id, ds, err := DecodeDesiredState(data)
		if err != nil {
			if !cmp.Equal(ds, DesiredState{}) {
				t.Fatalf("%+v beside error %v", ds, err)
			}
			return
		}
		seen := map[string]bool{}
		for _, d := range ds.Domains {
			if d.ID == "" || seen[d.ID] {
				t.Fatalf("domain %q is empty or there twice", d.ID)
			}
			seen[d.ID] = true
			if own := Split(ds, d.ID); len(own.Domains) != 1 || !cmp.Equal(own.Domains[0], d) {
				t.Fatalf("split of %q: %+v", d.ID, own)
			}
		}
		stable(t, id, ds, DecodeDesiredState)
	})
}

// decodeStrict is Decode for messages that may do without an activity id.
func decodeStrict(data []byte, payload any) (string, error) {
	e, err := decodeAnonymous(data)
	if err == nil {
		err = e.DecodePayload(payload)
	}
	return e.ActivityID, err
}

// stable checks that what was decoded survives encoding, in both ways to write.
func stable[T any](t *testing.T, id string, v T, decode func([]byte) (string, T, error)) {
	t.Helper()
	for _, encode := range []func(string, time.Time, any) ([]byte, error){Encode, EncodeCompact} {
		text, err := encode(id, time.UnixMilli(1), v)
		if err != nil || !json.Valid(text) {
			t.Fatalf("error %v\n%s", err, text)
		}
		if len(text) > MaxSize {
			continue // written longer than it was read
		}
		id2, again, err := decode(text)
		if err != nil || id2 != id {
			t.Fatalf("decoding what was encoded: id %q, want %q, error %v\n%s", id2, id, err, text)
		}
		a, _ := EncodeCompact(id, time.UnixMilli(1), v)
		b, _ := EncodeCompact(id, time.UnixMilli(1), again)
		if string(a) != string(b) {
			t.Fatalf("not stable:\n%s\n%s", a, b)
		}
	}
}
