// SPDX-License-Identifier: Apache-2.0

package containeragent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/applet"
	"sdvbox/platform/images"
	"sdvbox/testing/output"
)

// edits runs sdv-kanto-ctl on a file and returns what systemctl was asked, too.
func edits(t *testing.T, file, stdin string, args ...string) (code int, stdout, stderr, systemctl string) {
	t.Helper()
	dir := t.TempDir()
	script := "#!/bin/sh\necho \"$@\" >>" + dir + "/calls\n" +
		"case $1 in is-failed) test -n \"$FAILED\";; is-active) test -z \"$FAILED\";; *) test -z \"$REFUSED\";; esac\n"
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	var out, err bytes.Buffer
	code = applet.Main([]applet.Command{ControlCommand()}, append([]string{"sdv-kanto-ctl", "--config-file", file}, args...), strings.NewReader(stdin), &out, &err)
	calls, _ := os.ReadFile(dir + "/calls")
	return code, out.String(), err.String(), strings.ReplaceAll(string(calls), "\n", ";")
}

func TestConfigurationIsEdited(t *testing.T) {
	const reload = "is-active --quiet container-agent.service;reload container-agent.service;"
	const restart = "is-failed --quiet container-agent.service;try-restart container-agent.service;"
	registry := "{\n  \"containers\": {\n    \"registry_configurations\": {\n      \"myhost\": {\n        \"credentials\": {\n" +
		"          \"user_id\": \"myuser\",\n          \"password\": \"mypass\"\n        }\n      }\n    }\n  }\n}\n"
	for _, test := range []struct {
		before, stdin, args string
		after               string // "" as before
		systemctl           string
		stdout, stderr      string // parts
		code                int
	}{
		{before: `{}`, args: "add-registry -h myhost -u myuser -p mypass", after: registry, systemctl: reload, stdout: `"myuser"`, stderr: "--password-stdin"},
		{before: ``, stdin: "mypass\n", args: "add-registry --hostname myhost --username myuser --password-stdin", after: registry, systemctl: reload},
		{before: `{}`, stdin: "mypass", args: "-r add-registry -h myhost -u myuser --password-stdin", after: registry},
		{before: registry, args: "add-registry -h myhost -u myuser -p mypass", stderr: "No difference"},
		{before: `{}`, args: "add-registry -h ghcr.io -u github -p mypass", after: strings.NewReplacer("myhost", "ghcr.io", "myuser", "github").Replace(registry), systemctl: reload,
			stdout: `"ghcr.io"`},
		{before: `{}`, args: "add-registry -h myhost -u myuser", code: 2, stderr: "--password-file"},
		{before: `{}`, args: "add-registry -u myuser -p x", code: 2, stderr: "hostname"},
		{before: `{}`, args: "add-registry -h https://a/ -u myuser -p x", code: 2, stderr: "HOST:PORT"},
		{before: registry, args: "remove-registry -h myhost", systemctl: reload, after: "{\n  \"containers\": {\n    \"registry_configurations\": {}\n  }\n}\n", stdout: "{}"},
		{before: registry, args: "remove-all-registries", systemctl: reload, after: "{\n  \"containers\": {}\n}\n"},
		{before: registry, args: "list-registries", stdout: "\"myhost\"\n"},
		{before: `{}`, args: "list-registries", stderr: "no registry"},
		{before: registry, args: "show-config", stdout: `"password": "***"`},
		{before: `{}`, args: "add-entry containers.insecure_registries localhost:5000", systemctl: reload,
			after: "{\n  \"containers\": {\n    \"insecure_registries\": [\n      \"localhost:5000\"\n    ]\n  }\n}\n"},
		{before: `{"containers":{"insecure_registries":["a","b"]}}`, args: "remove-entry containers.insecure_registries a", systemctl: reload,
			after: "{\n  \"containers\": {\n    \"insecure_registries\": [\n      \"b\"\n    ]\n  }\n}\n"},
		{before: `{}`, args: `add-entry update_agent.system_containers a"b`, systemctl: restart,
			after: "{\n  \"update_agent\": {\n    \"system_containers\": [\n      \"a\\\"b\"\n    ]\n  }\n}\n"},
		{before: `{}`, args: "add-entry containers.insecure_registries http://x", code: 1, stderr: `insecure_registries: "http://x": expected HOST or HOST:PORT`},
		{before: `{"containers":{"insecure_registries":["x/","y/"]}}`, args: "remove-entry containers.insecure_registries y/", systemctl: reload,
			after: "{\n  \"containers\": {\n    \"insecure_registries\": [\n      \"x/\"\n    ]\n  }\n}\n"},
		{before: `{"containers":{"insecure_registries":["x/"]}}`, args: "add-entry containers.insecure_registries y/", code: 1, stderr: `"y/": expected`},
		{before: `{"containers":{"insecure_registries":["x/","y"]}}`, args: "remove-entry containers.insecure_registries y", systemctl: reload,
			after: "{\n  \"containers\": {\n    \"insecure_registries\": [\n      \"x/\"\n    ]\n  }\n}\n"},
		{before: `{"containers":{"registry_configurations":{"x/":{}}}}`, args: "remove-registry -h x/", systemctl: reload,
			after: "{\n  \"containers\": {\n    \"registry_configurations\": {}\n  }\n}\n"},
		{before: `{}`, args: "add-registry -h reg:99999999 -u myuser -p x", code: 2, stderr: "HOST:PORT"},
		{before: `{}`, args: "add-registry -h reg --username= -p x", code: 2, stderr: "the user name is empty"},
		{before: `{}`, args: "remove-entry deployment.manifest_dirs /data/typo", stderr: "No difference"},
		{before: `{}`, args: "remove-entry things.features Typo", stderr: "No difference"},
		{before: `{}`, args: "remove-entry containers.insecure_registries a", stderr: "No difference"},
		{before: `{"things":{"features":["Metrics"]}}`, args: "remove-entry things.features Typo", stderr: "No difference"},
		{before: `{}`, args: "add-entry deployment.manifest_dirs /data/var/containers/manifests", stderr: "No difference"},
		{before: `{}`, args: "add-entry containers.insecure_registries localhost", stderr: "No difference"},
		{before: `{}`, args: "add-entry deployment.manifest_dirs /data/extra", systemctl: restart,
			after: "{\n  \"deployment\": {\n    \"manifest_dirs\": [\n      \"/data/var/containers/manifests\",\n      \"/data/extra\"\n    ]\n  }\n}\n"},
		{before: `{}`, args: "remove-entry things.features Metrics", systemctl: restart,
			after: "{\n  \"things\": {\n    \"features\": [\n      \"ContainerFactory\",\n      \"SoftwareUpdatable\"\n    ]\n  }\n}\n"},
		{before: `{}`, args: "remove-entry containers.insecure_registries localhost", systemctl: reload,
			after: "{\n  \"containers\": {\n    \"insecure_registries\": []\n  }\n}\n"},
		{before: `{"containers":{"insecure_registries":["a"]}}`, args: "remove-entry containers.insecure_registries a", systemctl: reload,
			after: "{\n  \"containers\": {\n    \"insecure_registries\": []\n  }\n}\n"},
		{before: `{}`, args: "add-entry update_agent.system_containers a", systemctl: restart,
			after: "{\n  \"update_agent\": {\n    \"system_containers\": [\n      \"a\"\n    ]\n  }\n}\n"},
		{before: `{}`, args: "remove-entry containers.typo x", code: 1, stderr: "containers.typo: unknown key"},
		{before: `{}`, args: "remove-entry log.log_level x", code: 1, stderr: "expected a string, found a list"},
		{before: `{}`, args: "set-value update_agent.domain -x", systemctl: restart, after: "{\n  \"update_agent\": {\n    \"domain\": \"-x\"\n  }\n}\n"},
		{before: `{}`, args: "set-value update_agent.domain -- -x", systemctl: restart, after: "{\n  \"update_agent\": {\n    \"domain\": \"-x\"\n  }\n}\n"},
		{before: `{}`, args: "set-value -r -- update_agent.domain -x", after: "{\n  \"update_agent\": {\n    \"domain\": \"-x\"\n  }\n}\n"},
		{before: `{}`, args: "set-value log.log_level DEBUG -r", code: 2, stderr: "options before"},
		{before: `{}`, args: "set-value log.log_level DEBUG --output json", code: 2, stderr: "options go before"},
		{before: `{"z":1,"log":{"log_level":"INFO"}}`, args: "set-value log.log_level DEBUG", systemctl: restart,
			after: "{\n  \"z\": 1,\n  \"log\": {\n    \"log_level\": \"DEBUG\"\n  }\n}\n"},
		{before: `{"log":{"log_level":"INFO"},"log":{"log_level":"WARN"}}`, args: "set-value log.log_level DEBUG", systemctl: restart,
			after: "{\n  \"log\": {\n    \"log_level\": \"DEBUG\"\n  }\n}\n"},
		{before: `{}`, args: "set things.enable true", systemctl: restart, after: "{\n  \"things\": {\n    \"enable\": true\n  }\n}\n"},
		{before: `{}`, args: "set-value network.default_bridge.mtu 1400", systemctl: restart,
			after: "{\n  \"network\": {\n    \"default_bridge\": {\n      \"mtu\": 1400\n    }\n  }\n}\n"},
		{before: `{}`, args: "set-value network.default_bridge.mtu many", code: 1, stderr: "network.default_bridge.mtu: expected a whole number"},
		{before: `{}`, args: "set-value containers.image_expiry soon", code: 1, stderr: "expected a duration"},
		{before: `{}`, args: "set-value containers.image_expire 24h", code: 1, stderr: "containers.image_expire: unknown key"},
		{before: `{}`, args: "set-value log.log_level LOUD", code: 1, stderr: "DEBUG or TRACE"},
		{before: `{"log":1}`, args: "set-value log.log_level DEBUG", code: 1, stderr: "log: not an object"},
		{before: `{"network":{"default_bridge":[]}}`, args: "set-value network.default_bridge.mtu 1400", code: 1, stderr: "network.default_bridge: not an object"},
		{before: `{"containers":null}`, args: "add-registry -h myhost -u myuser -p mypass", after: registry, systemctl: reload},
		{before: `{"containers":{"registry_configurations":null}}`, args: "add-registry -h myhost -u myuser -p mypass", after: registry, systemctl: reload},
		{before: `{"containers":{"registry_configurations":{"myhost":null}}}`, args: "add-registry -h myhost -u myuser -p mypass", after: registry, systemctl: reload},
		{before: `{"containers":null}`, args: "remove-registry -h myhost", stderr: "No difference"},
		{before: `{"containers":{"insecure_registries":null}}`, args: "add-entry containers.insecure_registries a", systemctl: reload,
			after: "{\n  \"containers\": {\n    \"insecure_registries\": [\n      \"a\"\n    ]\n  }\n}\n"},
		{before: `{"connection":{"client_username":"u"}}`, args: "set-value connection.client_password mypass", systemctl: restart, stderr: "standard input",
			stdout: `"client_password": "***"`, after: "{\n  \"connection\": {\n    \"client_username\": \"u\",\n    \"client_password\": \"mypass\"\n  }\n}\n"},
		{before: `{}`, args: "set-value connection.client_password mypass", code: 1, stderr: "client_username: empty"},
		{before: `{}`, stdin: "mypass\n", args: "set-value connection.client_password - connection.client_username u", systemctl: restart, stdout: `"***"`,
			after: "{\n  \"connection\": {\n    \"client_password\": \"mypass\",\n    \"client_username\": \"u\"\n  }\n}\n"},
		{before: `{}`, stdin: "INFO\r\nmypass\n", args: "set-value log.log_level - connection.client_username u connection.client_password -", systemctl: restart,
			after: "{\n  \"log\": {\n    \"log_level\": \"INFO\"\n  },\n  \"connection\": {\n    \"client_username\": \"u\",\n    \"client_password\": \"mypass\"\n  }\n}\n"},
		{before: `{}`, stdin: "INFO\n", args: "set-value log.log_level - connection.client_password -", code: 1, stderr: "connection.client_password: the value is empty"},
		{before: `{}`, stdin: "a\nb\n", args: "set-value update_agent.domain -", code: 1, stderr: "update_agent.domain: expected a name"}, // all of it is one value
		{before: `{"connection":{"broker_url":"mqtts://b"}}`, args: "set-value connection.transport.client_cert /c connection.transport.client_key /k", systemctl: restart,
			after: "{\n  \"connection\": {\n    \"broker_url\": \"mqtts://b\",\n    \"transport\": {\n" +
				"      \"client_cert\": \"/c\",\n      \"client_key\": \"/k\"\n    }\n  }\n}\n"},
		{before: `{"connection":{"broker_url":"mqtts://b"}}`, args: "set-value connection.transport.client_cert /c", code: 1, stderr: "belong together"},
		{before: `{}`, args: "set-value log.log_file /l network.default_bridge.mtu 20", code: 1, stderr: "network.default_bridge.mtu: expected 68"},
		{before: `{}`, args: "set-value containers.image_expiry 744", code: 1, stderr: "with its unit"},
		{before: `{}`, args: "set-value log.log_level 5", code: 1, stderr: "DEBUG or TRACE"},
		{before: `{}`, args: "set-value log.log_level", code: 2, stderr: "pairs of KEY and VALUE"},
		{before: `{}`, args: "add-entry containers.insecure_registries", code: 2, stderr: "expected KEY TEXT"},
		{before: `{}`, args: "remove-all-registries x", code: 2, stderr: `unexpected argument "x"`},
		{before: `{}`, args: "add-entry log.log_level x", code: 1, stderr: "expected a string, found a list"},
		{before: `{`, args: "set-value log.log_level DEBUG", code: 1, stderr: "not JSON"},
		{before: `{}`, args: "bogus", code: 2, stderr: "bogus"},
		{before: `{}`, args: "", stdout: "add-registry"},
	} {
		file := filepath.Join(t.TempDir(), "c.json")
		if err := os.WriteFile(file, []byte(test.before), 0o644); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr, systemctl := edits(t, file, test.stdin, strings.Fields(test.args)...)
		if code != test.code || systemctl != test.systemctl || !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) {
			t.Errorf("%s: exit code %d, %q, %q, systemctl %q", test.args, code, stdout, stderr, systemctl)
		}
		if strings.Contains(stdout+stderr, "mypass") {
			t.Errorf("%s shows the password: %s%s", test.args, stdout, stderr)
		}
		want := test.after
		if want == "" {
			want = test.before
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("%s makes %q, %v, want %q", test.args, got, err, want)
		}
		if fi, err := os.Stat(file); err != nil || strings.Contains(test.after, "mypass") && fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: others can read the password: %v, %v", test.args, fi.Mode(), err)
		}
	}
}

func TestFailedAgentIsStartedForAnyChange(t *testing.T) {
	t.Setenv("FAILED", "1")
	for args, want := range map[string]string{
		"set-value log.log_level DEBUG":              "is-failed --quiet container-agent.service;restart container-agent.service;",
		"add-entry containers.insecure_registries a": "is-active --quiet container-agent.service;is-failed --quiet container-agent.service;restart container-agent.service;",
	} {
		if code, _, stderr, systemctl := edits(t, t.TempDir()+"/c.json", "", strings.Fields(args)...); code != 0 || systemctl != want || stderr != "" {
			t.Errorf("%s: exit code %d, %s, systemctl %q", args, code, stderr, systemctl)
		}
	}
}

func TestHelpShowsTheDefaults(t *testing.T) {
	for _, args := range []string{"-r", "-r --help"} {
		code, stdout, stderr, _ := edits(t, t.TempDir()+"/c.json", "", strings.Fields(args)...)
		if code != 0 || stderr != "" || strings.Contains(stdout, "(default true)") || !strings.Contains(stdout, configFile+")") {
			t.Errorf("%s: exit code %d, %s%s", args, code, stdout, stderr)
		}
	}
}

func TestAgentThatCannotBeToldIsAnError(t *testing.T) {
	t.Setenv("REFUSED", "1")
	for _, args := range []string{"add-registry -h h -u u --password-stdin", "set-value log.log_level DEBUG", "add-entry things.features x"} {
		file := t.TempDir() + "/c.json"
		code, _, stderr, _ := edits(t, file, "mypass", strings.Fields(args)...)
		data, err := os.ReadFile(file)
		if refused := strings.HasPrefix(args, "add-entry"); refused && code != 1 || !refused && (code != 3 || err != nil || len(data) < 10 || !strings.Contains(stderr, "is changed, but")) {
			t.Errorf("%s: exit code %d, %s, %s, %v", args, code, stderr, data, err)
		}
		code, _, stderr, systemctl := edits(t, t.TempDir()+"/c.json", "mypass", append([]string{"--no-reload"}, strings.Fields(args)...)...)
		if refused := strings.HasPrefix(args, "add-entry"); !refused && code != 0 || systemctl != "" {
			t.Errorf("%s --no-reload: exit code %d, %s, systemctl %q", args, code, stderr, systemctl)
		}
	}
}

func TestPasswordsAreStoredAsTheyAre(t *testing.T) {
	for _, test := range []struct {
		stdin string
		args  []string
		want  string // user and password, none if they are refused
	}{
		{"", []string{"-u", `"me"`, "-p", `"quoted"`}, `"me" "quoted"`},
		{"", []string{"-u", "me", "-p", `"pa"ss`}, `me "pa"ss`},
		{"", []string{"-u", "me", "-p", `-abc123`}, `me -abc123`},
		{"", []string{"-u", "me", "--password=-abc123"}, `me -abc123`},
		{"-abc<\n", []string{"-u", "me", "--password-stdin"}, `me -abc<`},
		{"pässword \r\n", []string{"-u", "me", "--password-stdin"}, `me pässword `},
		{"secret\xff", []string{"-u", "me", "--password-stdin"}, ""},
		{"secret", []string{"-u", "m\xff", "--password-stdin"}, ""},
		{"", []string{"-u", "me", "-p", "secret\xff"}, ""},
		{strings.Repeat("x", maxInput+1), []string{"-u", "me", "--password-stdin"}, ""},
		{"\n", []string{"-u", "me", "--password-stdin"}, ""},
	} {
		file := t.TempDir() + "/c.json"
		code, stdout, stderr, _ := edits(t, file, test.stdin, append([]string{"-r", "add-registry", "-h", "h"}, test.args...)...)
		data, _ := os.ReadFile(file)
		var got struct {
			Containers struct {
				Registries map[string]struct{ Credentials images.Credentials } `json:"registry_configurations"`
			}
		}
		json.Unmarshal(data, &got)
		c := got.Containers.Registries["h"].Credentials
		if test.want == "" && (code == 0 || len(data) > 0) || test.want != "" && (code != 0 || c.UserID+" "+c.Password != test.want) {
			t.Errorf("%.80q: exit code %d, %s, %.200s", test.args, code, stderr, data)
		}
		if strings.Contains(stdout+stderr, "abc") || strings.Contains(stdout+stderr, "secret") {
			t.Errorf("%q shows the password: %s%s", test.args, stdout, stderr)
		}
	}
	for _, args := range [][]string{
		{"set-value", "update_agent.domain", "a\xff"}, {"add-entry", "containers.insecure_registries", "a\xff"}, {"set-value", "connection.client_password", "-"},
	} {
		file := t.TempDir() + "/c.json"
		code, _, stderr, _ := edits(t, file, "a\xff", append([]string{"-r"}, args...)...)
		if _, err := os.Stat(file); code != 2 || !strings.Contains(stderr, "UTF-8") || err == nil {
			t.Errorf("%q: exit code %d, %s", args, code, stderr)
		}
	}
}

// screen is a terminal with sdv-kanto-ctl.
type screen struct {
	master, tty *os.File
	stderr      output.Buffer
	ended       chan int
}

func newScreen(t *testing.T, file string, args ...string) *screen {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err = errors.Join(err, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	s := &screen{master: master, tty: tty, ended: make(chan int, 1)}
	go func() {
		args := append([]string{"sdv-kanto-ctl", "-r", "--config-file", file}, args...)
		s.ended <- applet.Main([]applet.Command{ControlCommand()}, args, tty, io.Discard, &s.stderr)
	}()
	return s
}

func (s *screen) await(t *testing.T, prompt string) {
	t.Helper()
	for range 1000 {
		if strings.Contains(s.stderr.String(), prompt) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%q does not come: %s", prompt, s.stderr.String())
}

func (s *screen) end(t *testing.T) int {
	t.Helper()
	select {
	case code := <-s.ended:
		return code
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
		return 0
	}
}

func (s *screen) echoes(t *testing.T) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(s.tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

func TestValuesAreTypedAtATerminal(t *testing.T) {
	interrupted := make(chan os.Signal, 1) // the tests are not
	signal.Notify(interrupted, os.Interrupt, unix.SIGHUP)
	defer signal.Stop(interrupted)
	for _, test := range []struct {
		args, prompt string
		shown        bool
		typed, want  string
	}{
		{"add-registry -h h -u u --password-stdin", "Password: ", false, "mypass\n", `"password": "mypass"`},
		{"set-value connection.client_username u connection.client_password -", "connection.client_password: ", false, "mypass\nmore\n", `"client_password": "mypass"`},
		{"set-value update_agent.domain -", "update_agent.domain: ", true, "mypass\n", `"domain": "mypass"`},
		{"set-value update_agent.domain - connection.broker_url -", "update_agent.domain: ", true, "mypass\ntcp://h\n", `"broker_url": "tcp://h"`},
	} {
		file := t.TempDir() + "/c.json"
		s := newScreen(t, file, strings.Fields(test.args)...)
		s.await(t, test.prompt)
		if s.echoes(t) != test.shown {
			t.Errorf("%s: shown %t", test.args, !test.shown)
		}
		io.WriteString(s.master, test.typed)
		code := s.end(t)
		if data, err := os.ReadFile(file); code != 0 || err != nil || !strings.Contains(string(data), test.want) || !strings.Contains(string(data), "mypass") {
			t.Errorf("%s: exit code %d, %s, %s, %v", test.args, code, s.stderr.String(), data, err)
		}
		if !s.echoes(t) {
			t.Errorf("%s leaves a terminal that does not show what is typed", test.args)
		}
		for _, sig := range []os.Signal{os.Interrupt, unix.SIGHUP} {
			file := t.TempDir() + "/c.json"
			s := newScreen(t, file, strings.Fields(test.args)...)
			s.await(t, test.prompt)
			unix.Kill(os.Getpid(), sig.(unix.Signal))
			code := s.end(t)
			if _, err := os.Stat(file); code != 130 || err == nil || !s.echoes(t) {
				t.Errorf("%s, %v: exit code %d, %s, %v, shown again %t", test.args, sig, code, s.stderr.String(), err, s.echoes(t))
			}
		}
	}
}

// An interrupt that comes after the value does count.
func TestInterruptedEditIsNotMade(t *testing.T) {
	file := t.TempDir() + "/c.json"
	interrupted := applet.Command{Name: "x", Run: func(ctx context.Context, c *applet.Call) error {
		ctx, cancel := context.WithCancel(ctx)
		e := &Editor{File: file, NoReload: true}
		_, err := e.update(ctx, c, func(f *edited) error {
			cancel()
			return f.put([]string{"log", "log_level"}, "DEBUG")
		})
		return err
	}}
	code := applet.Main([]applet.Command{interrupted}, []string{"x"}, nil, t.Output(), t.Output())
	if _, err := os.Stat(file); code != 130 || err == nil {
		t.Errorf("exit code %d, %v", code, err)
	}
}

func TestWaitForAnotherEditIsSaidAndCanBeInterrupted(t *testing.T) {
	interrupted := make(chan os.Signal, 1) // the tests are not
	signal.Notify(interrupted, os.Interrupt)
	defer signal.Stop(interrupted)
	dir := t.TempDir()
	other, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	s := newScreen(t, dir+"/c.json", "set-value", "log.log_level", "DEBUG")
	s.await(t, "waiting for another edit of "+dir+"/c.json\n")
	unix.Kill(os.Getpid(), unix.SIGINT)
	code := s.end(t)
	if _, err := os.Stat(dir + "/c.json"); code != 130 || err == nil || !strings.Contains(s.stderr.String(), "nothing is changed") {
		t.Errorf("exit code %d, %s, %v", code, s.stderr.String(), err)
	}
	s = newScreen(t, dir+"/c.json", "set-value", "log.log_level", "DEBUG")
	s.await(t, "waiting for another edit")
	other.Close()
	if code := s.end(t); code != 0 || strings.Count(s.stderr.String(), "waiting") != 1 {
		t.Errorf("exit code %d, %s", code, s.stderr.String())
	}
}

func TestMountedFileIsWrittenInPlace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	file, real := dir+"/c.json", t.TempDir()+"/real"
	old := `{"connection":{"client_username":"` + strings.Repeat("u", 1000) + `"}}`
	err := errors.Join(os.WriteFile(real, []byte(old), 0o644), os.WriteFile(file, nil, 0o644), unix.Mount(real, file, "", unix.MS_BIND, ""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(file, unix.MNT_DETACH) })
	code, _, stderr, _ := edits(t, file, "mypass", "set-value", "connection.client_password", "-", "connection.client_username", "u")
	data, err := os.ReadFile(real)
	if code != 0 || err != nil || !json.Valid(data) || !strings.Contains(string(data), "mypass") {
		t.Errorf("exit code %d, %s, %s, %v", code, stderr, data, err)
	}
	if fi, err := os.Stat(real); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}

	if err := unix.Mount("", file, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	code, _, stderr, _ = edits(t, file, "", "set-value", "log.log_level", "DEBUG")
	if code != 1 || !strings.Contains(stderr, "read-only") || !strings.Contains(stderr, "remount") || strings.Contains(stderr, "backup") {
		t.Errorf("read-only: exit code %d, %s", code, stderr)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind where nothing can be written: %v, %v", left, err)
	}
}

func TestFileThatCannotBeWrittenComesWithARemedy(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	code, _, stderr, systemctl := edits(t, dir+"/c.json", "", "set-value", "log.log_level", "DEBUG")
	if code != 1 || !strings.Contains(stderr, "read-only") || !strings.Contains(stderr, "remount") || systemctl != "" {
		t.Errorf("exit code %d, %s, systemctl %q", code, stderr, systemctl)
	}
	asAnother := make(chan []error)
	go func() {
		runtime.LockOSThread() // with it ends the thread, which is another user's
		unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 65534, ^uintptr(0))
		var errs []error
		for _, number := range []error{unix.EACCES, unix.EPERM} {
			errs = append(errs, remedy(&os.PathError{Op: "open", Path: "c", Err: number}))
		}
		asAnother <- errs
	}()
	for _, err := range <-asAnother {
		if !strings.Contains(err.Error(), "run this as root") || !errors.Is(err, fs.ErrPermission) {
			t.Error(err)
		}
	}
}

func TestEditsAtTheSameTimeAreAllMade(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("c.json", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			args := []string{"sdv-kanto-ctl", "--no-reload", "--config-file", dir + []string{"/c.json", "/link"}[i%2],
				"add-entry", "containers.insecure_registries", fmt.Sprintf("entry%d.example", i)}
			if code := applet.Main([]applet.Command{ControlCommand()}, args, nil, io.Discard, t.Output()); code != 0 {
				t.Errorf("%q: exit code %d", args, code)
			}
		})
	}
	all.Wait()
	data, err := os.ReadFile(dir + "/c.json")
	if n := strings.Count(string(data), ".example"); err != nil || n != 20 {
		t.Errorf("%d of 20 entries, %v", n, err)
	}
}

func TestLinkAndOwnerStay(t *testing.T) {
	dir := t.TempDir()
	file, link := dir+"/real/c.json", dir+"/c.json"
	if err := errors.Join(os.Mkdir(dir+"/real", 0o755), os.Symlink("real/c.json", link)); err != nil {
		t.Fatal(err)
	}
	for _, level := range []string{"DEBUG", "WARN"} { // at first there is no file
		if code, _, stderr, _ := edits(t, link, "", "set-value", "log.log_level", level); code != 0 {
			t.Fatalf("exit code %d, %s", code, stderr)
		}
		fi, err := os.Lstat(link)
		if err != nil || fi.Mode().Type() != os.ModeSymlink {
			t.Errorf("the link: %v, %v", fi, err)
		}
		if data, err := os.ReadFile(file); err != nil || !strings.Contains(string(data), level) {
			t.Errorf("the file: %s, %v", data, err)
		}
		if level == "WARN" || os.Getuid() != 0 {
			continue
		}
		if err := os.Chown(file, 1, 2); err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := os.Stat(file); err != nil || os.Getuid() == 0 && (fi.Sys().(*syscall.Stat_t).Uid != 1 || fi.Sys().(*syscall.Stat_t).Gid != 2) {
		t.Errorf("its owner: %+v, %v", fi.Sys(), err)
	}
}

func TestPasswordIsReadFromAFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/password", []byte("mypass\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr, _ := edits(t, dir+"/c.json", "", "add-registry", "-h", "myhost", "-u", "me", "--password-file", dir+"/password")
	data, err := os.ReadFile(dir + "/c.json")
	if code != 0 || stderr != "" || err != nil || !strings.Contains(string(data), `"password": "mypass"`) {
		t.Errorf("exit code %d, %s, %s, %v", code, stderr, data, err)
	}
}

func TestSecretsAreMaskedWhereverTheyAre(t *testing.T) {
	for before, want := range map[string]string{
		`{"a":{"Password":"x"},"client_password":"y","b":[{"password":"z"}]}`:     `{"a":{"Password":"***"},"client_password":"***","b":[{"password":"***"}]}`,
		`{"password":["x"],"client_password":{"x":1}}`:                            `{"password":"***","client_password":"***"}`,
		`{"client_password":"","password_file":"/p","passwords":1.50}`:            `{"client_password":"","password_file":"/p","passwords":1.50}`,
		`{"image_dec_keys":["/k:x","/k:x:y","/l"],"Image_Dec_Keys":"/k:x"}`:       `{"image_dec_keys":["/k:***","/k:***","/l"],"Image_Dec_Keys":"/k:***"}`,
		`{"broker_url":"tcp://u:x@h:1","x":["http://x@h/p@q"]}`:                   `{"broker_url":"tcp://***@h:1","x":["http://***@h/p@q"]}`,
		`{"broker_url":"tcp://h:1","x":"http://h/p@q","y":"a@b","z":[],"n":null}`: `{"broker_url":"tcp://h:1","x":"http://h/p@q","y":"a@b","z":[],"n":null}`,
	} {
		if got := mask("", []byte(before)); string(got) != want {
			t.Errorf("%s becomes %s, want %s", before, got, want)
		}
	}
}

func TestFileWithSecretsIsOnlyForItsOwner(t *testing.T) {
	for before, want := range map[string]os.FileMode{
		`{}`: 0o644,
		`{"connection":{"client_username":"u","client_password":"x"}}`:      0o600,
		`{"containers":{"image_dec_keys":["/k:x"]}}`:                        0o600,
		`{"containers":{"image_dec_keys":["/k"]}}`:                          0o644,
		`{"connection":{"broker_url":"tcp://u:x@h"}}`:                       0o600,
		`{"containers":{"registry_configurations":{"h":{"transport":{}}}}}`: 0o644,
	} {
		file := filepath.Join(t.TempDir(), "c.json")
		if err := os.WriteFile(file, []byte(before), 0o644); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr, _ := edits(t, file, "", "set-value", "log.log_level", "DEBUG")
		if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != want || code != 0 {
			t.Errorf("%s: exit code %d, %s%s: %v, %v, want %v", before, code, stdout, stderr, fi.Mode(), err, want)
		}
	}
}

func TestPasswordIsReadFromStandardInput(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.json")
	if err := os.WriteFile(file, []byte(`{"connection":{"client_username":"u"}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr, _ := edits(t, file, "mypass\n", "set-value", "connection.client_password", "-")
	data, err := os.ReadFile(file)
	if code != 0 || stderr != "" || strings.Contains(stdout, "mypass") || err != nil || !strings.Contains(string(data), `"client_password": "mypass"`) {
		t.Errorf("exit code %d, %s%s, %s, %v", code, stdout, stderr, data, err)
	}
}

func FuzzEdit(f *testing.F) {
	f.Add([]byte(`{"a":{"b":[1,2],"password":"x"},"c":null}`), "a.b", []byte(`"v"`))
	f.Add([]byte(`{}`), "a.b.c", []byte(`1`))
	f.Fuzz(func(t *testing.T, data []byte, key string, value []byte) {
		path := strings.Split(key, ".")
		after, err := edit(data, path, value)
		if err != nil || members(data) == nil || len(value) == 0 || !bytes.Equal(compact(value), value) {
			return
		}
		if got := lookup(after, path); !bytes.Equal(got, value) {
			t.Errorf("%s is %s in %s, want %s", key, got, after, value)
		}
		mask("", after)
	})
}
