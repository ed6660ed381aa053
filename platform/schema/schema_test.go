// SPDX-License-Identifier: Apache-2.0

package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/jsonschema-go/jsonschema"

	"sdvbox/platform/updateproto"
)

func text(t testing.TB, kind string) []byte {
	t.Helper()
	text, err := Text(kind)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func parse(t testing.TB, kind string) *node {
	t.Helper()
	n := new(node)
	if err := json.Unmarshal(text(t, kind), n); err != nil {
		t.Fatal(err)
	}
	return n
}

// A keyword that the validator does not know would be no check at all.
func TestSchemasUseOnlyWhatTheValidatorKnows(t *testing.T) {
	known := []string{"$ref", "$defs", "type", "enum", "required", "properties", "items", "minItems", "maxItems",
		"minLength", "maxLength", "minimum", "maximum", "$schema", "title", "description", "examples"}
	var walk func(where string, schema map[string]any)
	walk = func(where string, schema map[string]any) {
		for keyword, value := range schema {
			if !slices.Contains(known, keyword) {
				t.Errorf("%s: keyword %s", where, keyword)
			}
			switch keyword {
			case "items":
				walk(where+".items", value.(map[string]any))
			case "properties", "$defs":
				for name, sub := range value.(map[string]any) {
					walk(where+"."+name, sub.(map[string]any))
				}
			}
		}
		if ref, ok := schema["$ref"]; ok && len(schema) > 1 {
			t.Errorf("%s: the validator reads nothing next to the $ref %v", where, ref)
		}
		if _, ok := schema["enum"]; ok && schema["type"] != "string" {
			t.Errorf("%s: the validator has enum only for strings", where)
		}
	}
	listed, err := filepath.Glob("../../docs/schema/*.json")
	if err != nil || len(listed) != len(Kinds()) {
		t.Errorf("files %v, error %v, kinds %v", listed, err, Kinds())
	}
	for _, kind := range Kinds() {
		var schema map[string]any
		if err := json.Unmarshal(text(t, kind), &schema); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if schema["$schema"] != "https://json-schema.org/draft/2020-12/schema" || schema["title"] == nil || schema["description"] == nil {
			t.Errorf("%s: $schema %v, title %v, description %v", kind, schema["$schema"], schema["title"], schema["description"])
		}
		walk(kind, schema)
	}
}

func TestExamplesAreValid(t *testing.T) {
	for _, kind := range Kinds() {
		var schema struct{ Examples []json.RawMessage }
		if err := json.Unmarshal(text(t, kind), &schema); err != nil || len(schema.Examples) == 0 {
			t.Errorf("%s: error %v, %d examples", kind, err, len(schema.Examples))
		}
		for _, example := range schema.Examples {
			if err := Validate(kind, example); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
			if unknown, err := Unknown(kind, example); unknown != nil || err != nil {
				t.Errorf("%s: unknown members %v, error %v", kind, unknown, err)
			}
		}
	}
}

// The messages are those that the documentation of Eclipse Leda prints.
func TestDocumentedMessagesAreValid(t *testing.T) {
	data, err := os.ReadFile("testdata/documented.txt")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(lines) != 24 {
		t.Errorf("%d messages, want 24", len(lines))
	}
	for _, line := range lines {
		kind, message, _ := strings.Cut(line, " ")
		if err := Validate(kind, []byte(message)); err != nil {
			t.Errorf("%s\n%v", line, err)
		}
		if unknown, err := Unknown(kind, []byte(message)); unknown != nil || err != nil {
			t.Errorf("%s\nunknown members %v, error %v", line, unknown, err)
		}
		if got := Guess([]byte(message)); got != kind {
			t.Errorf("%s\nlooks like %s", line, got)
		}
	}
}

// Schemas and protocol must not drift apart: each constant of the protocol is a value of its schema, and the other way round.
func TestValuesAreThoseOfTheProtocol(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../updateproto/messages.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	constants := map[string][]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok {
			for _, group := range []string{"Status", "Action", "Command", "Consent", "Type"} {
				if strings.HasPrefix(spec.Names[0].Name, group) {
					value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
					if err != nil {
						t.Fatal(err)
					}
					constants[group] = append(constants[group], value)
				}
			}
		}
		return true
	})
	for _, test := range []struct{ group, kind, path string }{
		{"Status", "desiredstatefeedback", "payload status"},
		{"Action", "desiredstatefeedback", "payload actions status"},
		{"Command", "desiredstate/command", "payload command"},
		{"Consent", "ownerconsentfeedback", "payload status"},
		{"Type", "currentstate", "payload softwareNodes type"},
	} {
		n := parse(t, test.kind)
		for _, name := range strings.Fields(test.path) {
			if n = n.Properties[name]; n.Items != nil {
				n = n.Items
			}
		}
		if d := cmp.Diff(slices.Sorted(slices.Values(constants[test.group])), slices.Sorted(slices.Values(n.Enum))); d != "" {
			t.Errorf("%s of %s:\n%s", test.path, test.kind, d)
		}
	}
}

func TestWhatIsEncodedIsValid(t *testing.T) {
	component := updateproto.ComponentRef{ID: "d:c", Version: "1"}
	parameters := []updateproto.KeyValue{{Key: "k", Value: "v"}, {Key: "empty"}}
	for kind, payloads := range map[string][]any{
		"desiredstate": {
			updateproto.DesiredState{Domains: []updateproto.Domain{{ID: "d"}}},
			updateproto.DesiredState{
				Baselines: []updateproto.Baseline{{Title: "t", Description: "d", Preconditions: "p", Components: []string{"d:c"}}, {Title: "u"}},
				Domains:   []updateproto.Domain{{ID: "d", Config: parameters, Components: []updateproto.Component{{ID: "c", Version: "1", Config: parameters}, {ID: "e"}}}},
			}},
		"desiredstate/command": {updateproto.Command{Command: updateproto.CommandRollback}, updateproto.Command{Command: updateproto.CommandUpdate, Baseline: "*"}},
		"desiredstatefeedback": {
			updateproto.Feedback{Status: updateproto.StatusIdentifying},
			&updateproto.Feedback{Status: updateproto.StatusRunning, Baseline: "b", Message: "m", Actions: []updateproto.Action{
				{Component: component, Status: updateproto.ActionUpdating},
				{Component: component, Status: updateproto.ActionUpdateSuccess, Progress: 100, Message: "m"}}}},
		"currentstate/get": {nil},
		"currentstate": {
			updateproto.Inventory{},
			updateproto.Inventory{
				SoftwareNodes: []updateproto.SoftwareNode{{ID: "s", Version: "1", Name: "n", Type: updateproto.TypeImage, Parameters: parameters}},
				HardwareNodes: []updateproto.HardwareNode{{ID: "h", Version: "1", Name: "n", Parameters: parameters, Addressable: true}, {ID: "i"}},
				Associations:  []updateproto.Association{{SourceID: "s", TargetID: "h"}},
			}},
		"ownerconsent":         {updateproto.OwnerConsent{Command: updateproto.CommandDownload}},
		"ownerconsentfeedback": {updateproto.OwnerConsentFeedback{Status: updateproto.ConsentApproved}},
	} {
		for _, payload := range payloads {
			for _, id := range []string{"", "a"} {
				message, err := updateproto.EncodeCompact(id, time.Now(), payload)
				if err = errors.Join(err, Validate(kind, message)); err != nil {
					t.Errorf("%s\n%v", message, err)
				}
				if unknown, err := Unknown(kind, message); unknown != nil || err != nil {
					t.Errorf("%s\nunknown members %v, error %v", message, unknown, err)
				}
				if kind == "desiredstate" {
					continue // only agents encode the other way, and they send none
				}
				message, err = updateproto.Encode(id, time.Now(), payload)
				if err = errors.Join(err, Validate(kind, message)); err != nil {
					t.Errorf("%s\n%v", message, err)
				}
			}
		}
	}
}

func TestFaultsAreNamed(t *testing.T) {
	for _, test := range []struct {
		kind, message string
		want          []string
	}{
		{"desiredstate", `{"payload":{"domains":[{"id":"d"}]}}`, nil},
		{"desiredstate", ``, []string{"message is not JSON: line 1: unexpected end of JSON input"}},
		{"desiredstate", "{\n\"payload\":\n}", []string{"message is not JSON: line 3: invalid character '}' looking for beginning of value"}},
		{"desiredstate", `[]`, []string{"message: expected an object, got an array"}},
		{"desiredstate", `{}`, []string{"payload: missing"}},
		{"desiredstate", `{"payload":null}`, []string{"payload: expected an object, got null"}},
		{"desiredstate", `{"Payload":{}}`, []string{"payload: missing"}},
		{"desiredstate", `{"activityId":7,"timestamp":"now","payload":{"domains":[]}}`, []string{
			"activityId: expected a string, got a whole number", "payload.domains: too few: 0 entries, expected at least 1", "timestamp: expected a whole number, got a string"}},
		{"desiredstate", `{"timestamp":1.5,"payload":{"domains":[{"id":""},null,{"components":[{"id":"c","config":[{"value":true}]}]}]}}`, []string{
			"payload.domains[0].id: too short: 0 characters, expected at least 1",
			"payload.domains[1]: expected an object, got null",
			"payload.domains[2].id: missing",
			"payload.domains[2].components[0].config[0].key: missing",
			"payload.domains[2].components[0].config[0].value: expected a string, got a boolean",
			"timestamp: expected a whole number, got a number"}},
		{"desiredstate", `{"payload":{"domains":[` + strings.Repeat(`{"id":"d"},`, 128) + `{"id":"d"}]}}`, []string{"payload.domains: too many: 129 entries, expected at most 128"}},
		{"desiredstate", `{"activityId":"` + strings.Repeat("ä", 257) + `","payload":{"domains":[{"id":"d"}]}}`, []string{"activityId: too long: 257 characters, expected at most 256"}},
		{"desiredstate", `{"payload":{"domains":[` + strings.Repeat(`7,`, 30) + `7]}}`, slices.Collect(func(yield func(string) bool) {
			for i := 0; i < most && yield(fmt.Sprintf("payload.domains[%d]: expected an object, got a whole number", i)); i++ {
			}
		})},
		// What only the decoder knows:
		{"desiredstate", `{"payload":{"baselines":[{"title":"t","components":["nav"]}],"domains":[{"id":"d"}]}}`, []string{`payload.baselines[0].components[0]: "nav", expected DOMAIN:COMPONENT`}},
		{"desiredstate", `{"payload":{"domains":[{"id":"d","config":[{"key":"k","value":"` + strings.Repeat("x", updateproto.MaxDesiredState) + `"}]}]}}`, []string{
			"payload: 262219 bytes, expected at most 262143"}},
		{"currentstate/get", `{"activityId":"\u0007"}`, []string{"activityId: contains a control character"}},
		{"safetoreboot", `{"payload":{"safe":true,"x":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}}`, []string{"message is nested more than 32 levels deep"}},

		{"desiredstate/command", `{"payload":{"command":"download"}}`, []string{`payload.command: expected one of DOWNLOAD, UPDATE, ACTIVATE, CLEANUP, ROLLBACK, got "download"`}},
		{"desiredstatefeedback", `{"payload":{"status":7}}`, []string{"payload.status: expected a string, got a whole number"}},
		{"desiredstatefeedback", `{"payload":{"status":"RUNNING","actions":[null,{"status":"IDENTIFIED","progress":-1},{"component":{"id":"d:c"},"progress":101}]}}`, []string{
			"payload.actions[0]: expected an object, got null",
			"payload.actions[1].component: missing",
			"payload.actions[1].progress: too small: -1, expected at least 0",
			"payload.actions[2].progress: too big: 101, expected at most 100"}},
		{"currentstate/get", `{"payload":7}`, []string{"payload: expected an object or null, got a whole number"}},
		{"currentstate/get", `{"payload":{}}`, nil},
		{"currentstate/get", `{}`, nil},
		{"currentstate/get", `{"timestamp":1e400}`, []string{"message: json: cannot unmarshal number 1e400 into Go value of type float64"}},
		{"safetoreboot", `{"payload":{"safe":"yes"}}`, []string{"payload.safe: expected a boolean, got a string"}},
		{"nothing", `{}`, []string{`"nothing" is no kind of message, expected one of desiredstate, desiredstate/command, desiredstatefeedback, currentstate/get, ` +
			`currentstate, ownerconsent, ownerconsentfeedback, safetoreboot`}},
	} {
		var got []string
		if err := Validate(test.kind, []byte(test.message)); err != nil {
			got = strings.Split(err.Error(), "\n")
		}
		if d := cmp.Diff(test.want, got); d != "" {
			t.Errorf("%s: %.200s\n%s", test.kind, test.message, d)
		}
	}
}

func TestMembersNobodyReadsAreNamed(t *testing.T) {
	const message = `{"Activityid":"a","payload":{"domains":[{"id":"d","conifg":[],"components":[{"id":"c","verison":"1","config":[{"key":"k","":"v"}]}]}],"\u001b[31m":1}}`
	want := []string{"Activityid", `payload.\x1b[31m`, "payload.domains[0].components[0].config[0].", "payload.domains[0].components[0].verison", "payload.domains[0].conifg"}
	got, err := Unknown("desiredstate", []byte(message))
	slices.Sort(got)
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("error %v\n%s", err, d)
	}
	if err := Validate("desiredstate", []byte(message)); err != nil {
		t.Errorf("they are taken for a fault: %v", err)
	}
	if _, err := Unknown("desiredstate", []byte("{")); err == nil {
		t.Error("no error for what is not JSON")
	}
}

func TestKindIsFoundByTopicAndByContent(t *testing.T) {
	for topic, want := range map[string]string{
		"vehicleupdate/desiredstate": "desiredstate", "selfupdate/desiredstate/command": "desiredstate/command",
		"x/currentstate/get": "currentstate/get", "vehicleupdate/safetoreboot": "safetoreboot",
		"desiredstate": "", "a/b/desiredstate": "", "vehicleupdate/": "", "": "",
	} {
		if got := OfTopic(topic); got != want {
			t.Errorf("%q: %q, want %q", topic, got, want)
		}
	}
	for payload, want := range map[string]string{
		`{"domains":[]}`: "desiredstate", `{"baselines":7}`: "desiredstate", `{"command":"X"}`: "desiredstate/command",
		`{"status":"X"}`: "desiredstatefeedback", `{"actions":[]}`: "desiredstatefeedback", `{"status":7}`: "desiredstatefeedback",
		`{"status":"DENIED"}`: "ownerconsentfeedback", `{"status":"APPROVED"}`: "ownerconsentfeedback",
		`{"associations":[]}`: "currentstate", `{"hardwareNodes":[]}`: "currentstate", `{"safe":false}`: "safetoreboot",
		`{}`: "currentstate/get", `null`: "currentstate/get", `{"other":1}`: "", `[]`: "",
	} {
		if got := Guess([]byte(`{"payload":` + payload + `}`)); got != want {
			t.Errorf("%s: %q, want %q", payload, got, want)
		}
	}
	if got := Guess([]byte("{")); got != "" {
		t.Errorf("what is not JSON looks like %q", got)
	}
}

// peers are the schemas as a validator takes them that many use.
type peers map[string]*jsonschema.Resolved

func newPeers(t testing.TB) peers {
	p := peers{}
	for _, kind := range Kinds() {
		var schema jsonschema.Schema
		err := json.Unmarshal(text(t, kind), &schema)
		if err == nil {
			p[kind], err = schema.Resolve(nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// agree checks that the peer finds a fault if and only if we do, and that what is valid can be decoded.
func (p peers) agree(t *testing.T, kind string, data []byte) {
	t.Helper()
	c, err := check(kind, data)
	if err != nil {
		return
	}
	var message any
	if err := json.Unmarshal(data, &message); err != nil {
		t.Fatal(err)
	}
	if err := p[kind].Validate(message); (err == nil) != (c.faults == nil) {
		t.Fatalf("%s\n%s: faults %v, the peer says %v", data, kind, c.faults, err)
	}
	if Validate(kind, data) != nil {
		return
	}
	switch kind {
	case "desiredstate":
		_, _, err = updateproto.DecodeDesiredState(data)
	case "desiredstatefeedback":
		_, _, err = updateproto.DecodeFeedback(data)
	case "currentstate":
		_, _, _, err = updateproto.DecodeInventory(data)
	case "ownerconsentfeedback":
		_, _, err = updateproto.DecodeConsent(data)
	}
	if err != nil {
		t.Fatalf("%s\n%s is valid, but cannot be decoded: %v", data, kind, err)
	}
}

// Every value of the examples is replaced by values of all kinds, one at a time, and left out.
func TestValidatorAgreesWithAPeer(t *testing.T) {
	p := newPeers(t)
	others := []any{nil, true, 0.0, -1.0, 1.5, 101.0, "", "ä:x", strings.Repeat("ä", 256), strings.Repeat("x", 257), []any{}, []any{nil},
		make([]any, 129), map[string]any{}, map[string]any{"id": "x", "key": "k", "safe": true, "status": "COMPLETED", "command": "CLEANUP"}}
	runs := 0
	for _, kind := range Kinds() {
		var schema struct{ Examples []any }
		if err := json.Unmarshal(text(t, kind), &schema); err != nil {
			t.Fatal(err)
		}
		for _, message := range schema.Examples {
			run := func() {
				data, err := json.Marshal(message)
				if err != nil {
					t.Fatal(err)
				}
				p.agree(t, kind, data)
				runs++
			}
			var change func(value any, set func(any))
			change = func(value any, set func(any)) {
				for _, other := range others {
					set(other)
					run()
				}
				set(value)
				switch v := value.(type) {
				case map[string]any:
					for _, name := range slices.Collect(maps.Keys(v)) {
						member := v[name]
						delete(v, name)
						run()
						change(member, func(value any) { v[name] = value })
					}
				case []any:
					for i := range v {
						change(v[i], func(value any) { v[i] = value })
					}
				}
			}
			change(message, func(value any) { message = value })
		}
	}
	if runs < 1000 {
		t.Errorf("only %d messages were compared", runs)
	}
}

func FuzzValidate(f *testing.F) {
	documented, err := os.ReadFile("testdata/documented.txt")
	if err != nil {
		f.Fatal(err)
	}
	for line := range bytes.Lines(documented) {
		_, message, _ := bytes.Cut(line, []byte(" "))
		f.Add(message)
	}
	f.Add([]byte(`{"timestamp":1e3,"payload":{"domains":[null],"status":"APPROVED","safe":1,"actions":[{"component":{},"progress":1.5}],"command":"UPDATE"}}`))
	p := newPeers(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		Guess(data)
		for _, kind := range Kinds() {
			if !json.Valid(data) && Validate(kind, data) == nil {
				t.Fatal("what is not JSON is valid")
			}
			p.agree(t, kind, data)
		}
	})
}
