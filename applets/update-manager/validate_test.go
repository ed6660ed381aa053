// SPDX-License-Identifier: Apache-2.0

package updatemanager

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestValidateSaysWhatIsWrong(t *testing.T) {
	const good = `{"activityId":"a","timestamp":1,"payload":{"domains":[{"id":"containers","components":[]}]}}`
	file := filepath.Join(t.TempDir(), "message.json")
	if err := os.WriteFile(file, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, args, stdin string
		code              int
		want              []string // in stdout or stderr
	}{
		{"file", file, "", 0, []string{"valid as desiredstate\n"}},
		{"stdin", "-", good, 0, []string{"valid as desiredstate\n"}},
		{"topic", "--kind vehicleupdate/desiredstate -", good, 0, []string{"valid as desiredstate\n"}},
		{"feedback", "-", `{"activityId":"a","timestamp":1,"payload":{"status":"RUNNING"}}`, 0, []string{"valid as desiredstatefeedback"}},
		{"wrong kind", "--kind desiredstatefeedback -", good, exitInvalid, []string{"payload.status: missing", "NOT valid as desiredstatefeedback"}},
		{"wrong type", "-", strings.Replace(good, "[]", "7", 1), exitInvalid, []string{"payload.domains[0].components", "array"}},
		{"misspelled", "-", strings.Replace(good, `"id"`, `"version":"1","id"`, 1), 0, []string{"payload.domains[0].version: unknown, nobody reads it", "\nvalid"}},
		{"not JSON", "-", `{"activityId":`, exitInvalid, []string{"not JSON", "NOT valid as desiredstate"}},
		{"empty", "-", "", exitInvalid, []string{"NOT valid"}},
		{"large", "-", `"` + strings.Repeat("x", 1<<20) + `"`, exitInvalid, []string{"NOT valid"}},
		{"terminal", "-", `{"activityId":"a","timestamp":1,"payload":{"domains":[],"\u001b[2J":1}}`, exitInvalid, []string{"NOT valid"}},
		{"no such file", "/nowhere/x.json", "", 1, []string{"/nowhere/x.json", "no such file"}},
		{"no such kind", "--kind rubbish -", good, exitUsage, []string{`"rubbish" is no kind of message`, "desiredstate/command"}},
		{"no file", "", "", exitUsage, []string{"expected one file"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := call(test.stdin, append([]string{"validate"}, strings.Fields(test.args)...)...)
			all := got.Stdout + got.Stderr
			if got.Code != test.code || strings.Contains(all, "\x1b") {
				t.Errorf("exit code %d, want %d: %q", got.Code, test.code, all)
			}
			for _, want := range test.want {
				if !strings.Contains(all, want) {
					t.Errorf("%q is not in %q", want, all)
				}
			}
		})
	}

	got := call(`{"payload":{"status":7,"actions":[],"x":1}}`, "validate", "-", "--output", "json")
	var v Verdict
	if err := json.Unmarshal([]byte(got.Stdout), &v); err != nil {
		t.Fatal(err)
	}
	if v.Valid || v.Kind != "desiredstatefeedback" || len(v.Faults) == 0 || got.Code != exitInvalid {
		t.Errorf("%+v, exit code %d", v, got.Code)
	}
	if diff := cmp.Diff([]string{"payload.x"}, v.Unknown); diff != "" {
		t.Error(diff)
	}
}
