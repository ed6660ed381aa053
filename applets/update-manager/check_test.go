// SPDX-License-Identifier: Apache-2.0

package updatemanager

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sdvbox/platform/config"
	"sdvbox/platform/daemon"
)

func TestCheckConfigShowsWhatIsOddInAFile(t *testing.T) {
	const full = `testdata/full.json:10: connection.broker: no scheme, taken as tcp://
testdata/full.json:11: connection.keepAlive: number without a unit, taken as 500ms
testdata/full.json:12: connection.disconnectTimeout: number without a unit, taken as 500ms
testdata/full.json:12: connection.disconnectTimeout: has no effect
testdata/full.json:15: connection.connectTimeout: number without a unit, taken as 500ms
testdata/full.json:16: connection.acknowledgeTimeout: number without a unit, taken as 500ms
testdata/full.json:17: connection.subscribeTimeout: number without a unit, taken as 500ms
testdata/full.json:18: connection.unsubscribeTimeout: number without a unit, taken as 500ms
testdata/full.json:18: connection.unsubscribeTimeout: has no effect
testdata/full.json: 9 warnings
`
	for _, test := range []struct {
		args string
		want result
	}{
		{"testdata/minimal.json", result{0, "testdata/minimal.json: 0 warnings\n", ""}},
		{"--strict testdata/minimal.json", result{0, "testdata/minimal.json: 0 warnings\n", ""}},
		{"--strict etc/update-manager/config.json", result{0, "etc/update-manager/config.json: 0 warnings\n", ""}},
		{"testdata/full.json", result{0, full, ""}},
		{"testdata/full.json --strict", result{3, full, ""}},
		{"--output json testdata/minimal.json", result{0, `{"file":"testdata/minimal.json","warnings":[]}` + "\n", ""}},
		{"testdata", result{1, "", "update-manager: read configuration: read testdata: is a directory\n"}},
		{"a b", result{2, "", "update-manager: expected one FILE\n"}},
	} {
		got := call("", append([]string{"check-config"}, strings.Fields(test.args)...)...)
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("check-config %s (-want +got):\n%s", test.args, diff)
		}
	}

	for _, args := range []string{"-cfg-file testdata/minimal.json check-config", "--config-file testdata/minimal.json --domains=a -a-reboot-required=true check-config"} {
		want := result{0, "testdata/minimal.json: 0 warnings\n", ""}
		if diff := cmp.Diff(want, call("", strings.Fields(args)...)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", args, diff)
		}
	}

	file := filepath.Join(t.TempDir(), "c.json")
	if err := os.WriteFile(file, []byte("{\"domain\":\"x\",\n\"colour\":\"red\"}"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got daemon.CheckedConfig
	r := call("", "check-config", "--strict", "--output=json", file)
	if err := json.Unmarshal([]byte(r.Stdout), &got); err != nil || r.Code != 3 || r.Stderr != "" {
		t.Fatalf("%+v, %v", r, err)
	}
	want := daemon.CheckedConfig{File: file, Warnings: []config.Warning{{File: file, Line: 2, Key: "colour", Text: "unknown key"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCheckConfigRefusesWhatTheDaemonRefuses(t *testing.T) {
	for text, want := range map[string]string{
		`{"domain":"a+b"}`:                  `configuration FILE: domain "a+b": expected a name`,
		`{"connection":{"broker":"udp:x"}}`: `configuration FILE: broker "udp:x": port "x" is not a number`,
		"{\n":                               "configuration FILE:1: not JSON",
	} {
		file := filepath.Join(t.TempDir(), "c.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got := call("", "check-config", file)
		if want := strings.Replace(want, "FILE", file, 1); got.Code != 1 || !strings.Contains(got.Stderr, want) {
			t.Errorf("%s: %+v, want %s", text, got, want)
		}
	}
}
