// SPDX-License-Identifier: Apache-2.0

package updateproto

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFaultsOfADesiredStateAreNamed(t *testing.T) {
	many := func(n int, entry string) string { return "[" + strings.Repeat(entry+",", n-1) + entry + "]" }
	long := strings.Repeat("x", MaxName)
	sized := func(n int) string { // n bytes without the spaces
		text := func(value string) string {
			return `{"domains":[{"id":"d","config":[{"key":"k","value":"` + value + `"}],"components":null}]}`
		}
		return strings.Repeat(" ", MaxDesiredState) + text(strings.Repeat("<", n-len(text(""))))
	}
	for _, test := range []struct{ payload, err string }{
		{`{}`, ""},
		{`{"domains":[]}`, ""},
		{`{"domains":[{"id":"d"}]}`, ""},
		{`{"domains":[{"id":"` + long + `"}]}`, ""},
		{`{"baselines":[{"title":"t"},{"components":["d:c"]}]}`, ""},
		{`{"baselines":[{"title":"t","components":["d:docker.io/c:1"]}]}`, ""},
		{`{"domains":` + many(MaxDomains, `{"id":"d"}`) + `}`, ""},

		{`{"domains":[null]}`, "payload.domains[0].id: missing or empty"},
		{`{"domains":[{"id":"d"},{}]}`, "payload.domains[1].id: missing or empty"},
		{`{"domains":[{"id":"x` + long + `"}]}`, "payload.domains[0].id: 257 bytes, expected at most 256"},
		{`{"domains":[{"id":"\u0007"}]}`, "payload.domains[0].id: contains a control character"},
		{`{"domains":{}}`, "payload.domains: expected an array, got an object"},
		{`{"domains":` + many(MaxDomains+1, `{"id":"d"}`) + `}`, "payload.domains: 129 entries, expected at most 128"},
		{`{"domains":[{"id":"d","components":[null]}]}`, "payload.domains[0].components[0].id: missing or empty"},
		{`{"domains":[{"id":"d","components":[{"id":"c"},{"version":"1"}]}]}`, "payload.domains[0].components[1].id: missing or empty"},
		{`{"domains":[{"id":"d","components":[{"id":"c","config":[null]}]}]}`, "payload.domains[0].components[0].config[0].key: missing or empty"},
		{`{"domains":[{"id":"d","config":[{"key":"k"},{"value":"v"}]}]}`, "payload.domains[0].config[1].key: missing or empty"},
		{`{"baselines":[null]}`, "payload.baselines[0]: neither title nor components"},
		{`{"baselines":[{"title":"t"},{}]}`, "payload.baselines[1]: neither title nor components"},
		{`{"baselines":[{"title":"\n","components":["d:c"]}]}`, "payload.baselines[0].title: contains a control character"},
		{`{"baselines":[{"title":"t","components":[null]}]}`, `payload.baselines[0].components[0]: "", expected DOMAIN:COMPONENT`},
		{`{"baselines":[{"title":"t","components":["d:c","d"]}]}`, `payload.baselines[0].components[1]: "d", expected DOMAIN:COMPONENT`},
		{`{"baselines":[{"title":"t","components":[":c"]}]}`, `payload.baselines[0].components[0]: ":c", expected DOMAIN:COMPONENT`},
		{`{"baselines":` + many(MaxBaselines+1, `{"title":"t"}`) + `}`, "payload.baselines: 129 entries, expected at most 128"},
		{`null`, "payload: missing"},
		{sized(MaxDesiredState), ""},
		{sized(MaxDesiredState + 1), "payload: 262144 bytes, expected at most 262143"},
	} {
		id, ds, err := DecodeDesiredState([]byte(`{"activityId":"a","payload":` + test.payload + `}`))
		wantError(t, test.payload, err, test.err)
		if id != "a" || err != nil && !cmp.Equal(ds, DesiredState{}) {
			t.Errorf("%.80s: id %q, desired state %+v", test.payload, id, ds)
		}
	}
}

func TestDesiredStateMayComeWithoutAnActivityID(t *testing.T) {
	for message, want := range map[string]string{
		`{"payload":{"domains":[{"id":"d"}]}}`:                   "",
		`{"activityId":"","payload":{"domains":[{"id":"d"}]}}`:   "",
		`{"activityId":null,"payload":{"domains":[{"id":"d"}]}}`: "",
		`{"activityId":7,"payload":{"domains":[{"id":"d"}]}}`:    "activityId: expected a string, got a number",
		`{"activityId":"\u0000","payload":{}}`:                   "activityId: contains a control character",
	} {
		id, ds, err := DecodeDesiredState([]byte(message))
		wantError(t, message, err, want)
		if id != "" || (err == nil) != (len(ds.Domains) == 1) {
			t.Errorf("%s: id %q, %+v", message, id, ds)
		}
	}
}

func TestLastEntryOfADomainCounts(t *testing.T) {
	_, ds, err := DecodeDesiredState([]byte(`{"payload":{"domains":[
		{"id":"a","components":[{"id":"old"}]},{"id":"b"},{"id":"a","components":[{"id":"new"}]},{"id":"c"}]}}`))
	want := []Domain{{ID: "b"}, {ID: "a", Components: []Component{{ID: "new"}}}, {ID: "c"}}
	if d := cmp.Diff(want, ds.Domains); err != nil || d != "" {
		t.Errorf("error %v\n%s", err, d)
	}
}

func TestSplitLeavesToADomainWhatIsItsOwn(t *testing.T) {
	containers := Domain{ID: "containers", Config: []KeyValue{{"k", "v"}}, Components: []Component{{ID: "nav", Version: "2.1"}}}
	selfUpdate := Domain{ID: "self-update", Components: []Component{{ID: "os-image", Version: "7"}}}
	ds := DesiredState{
		Baselines: []Baseline{
			{"nav-stack", "text", "parked", []string{"containers:nav", "self-update:os-image", "containers:map"}},
			{"other", "", "", []string{"containers-more:x"}},
			{"empty", "", "", nil},
		},
		Domains: []Domain{{ID: "containers"}, selfUpdate, containers},
	}
	before := fmt.Sprint(ds)
	for domain, want := range map[string]DesiredState{
		"containers":  {[]Baseline{{"nav-stack", "text", "parked", []string{"containers:nav", "containers:map"}}}, []Domain{containers}},
		"self-update": {[]Baseline{{"nav-stack", "text", "parked", []string{"self-update:os-image"}}}, []Domain{selfUpdate}},
		"nobody":      {},
	} {
		if d := cmp.Diff(want, Split(ds, domain)); d != "" {
			t.Errorf("%s:\n%s", domain, d)
		}
	}
	if fmt.Sprint(ds) != before {
		t.Errorf("split has changed the desired state to %v", ds)
	}
}
