// SPDX-License-Identifier: Apache-2.0

package containeragent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"sdvbox/platform/applet"
)

// edits runs sdv-kanto-ctl on a file and returns what systemctl was asked, too.
func edits(t *testing.T, file, stdin string, args ...string) (code int, stdout, stderr, systemctl string) {
	t.Helper()
	dir := t.TempDir()
	script := "#!/bin/sh\necho \"$@\" >>" + dir + "/calls\n" +
		"case $1 in is-failed) test -n \"$FAILED\";; is-active) test -z \"$FAILED\";; esac\n"
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
		{before: `{}`, args: `add-entry containers.insecure_registries a"b`, systemctl: reload,
			after: "{\n  \"containers\": {\n    \"insecure_registries\": [\n      \"a\\\"b\"\n    ]\n  }\n}\n"},
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
		{before: `{"log":1}`, args: "set-value log.log_level DEBUG", code: 1, stderr: "not in an object"},
		{before: `{"connection":{"client_username":"u"}}`, args: "set-value connection.client_password mypass", systemctl: restart, stderr: "standard input",
			stdout: `"client_password": "***"`, after: "{\n  \"connection\": {\n    \"client_username\": \"u\",\n    \"client_password\": \"mypass\"\n  }\n}\n"},
		{before: `{}`, args: "set-value connection.client_password mypass", code: 1, stderr: "client_username: empty"},
		{before: `{}`, stdin: "mypass\n", args: "set-value connection.client_password - connection.client_username u", systemctl: restart, stdout: `"***"`,
			after: "{\n  \"connection\": {\n    \"client_password\": \"mypass\",\n    \"client_username\": \"u\"\n  }\n}\n"},
		{before: `{"connection":{"broker_url":"mqtts://b"}}`, args: "set-value connection.transport.client_cert /c connection.transport.client_key /k", systemctl: restart,
			after: "{\n  \"connection\": {\n    \"broker_url\": \"mqtts://b\",\n    \"transport\": {\n" +
				"      \"client_cert\": \"/c\",\n      \"client_key\": \"/k\"\n    }\n  }\n}\n"},
		{before: `{"connection":{"broker_url":"mqtts://b"}}`, args: "set-value connection.transport.client_cert /c", code: 1, stderr: "belong together"},
		{before: `{}`, args: "set-value log.log_file /l network.default_bridge.mtu 20", code: 1, stderr: "network.default_bridge.mtu: expected 68"},
		{before: `{}`, args: "set-value containers.image_expiry 744", code: 1, stderr: "with its unit"},
		{before: `{}`, args: "set-value log.log_level 5", code: 1, stderr: "DEBUG or TRACE"},
		{before: `{}`, args: "set-value log.log_level", code: 2, stderr: "pairs of KEY and VALUE"},
		{before: `{}`, args: "add-entry containers.insecure_registries", code: 2, stderr: "2 arguments"},
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
