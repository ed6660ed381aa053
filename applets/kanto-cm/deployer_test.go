// SPDX-License-Identifier: Apache-2.0

package kantocm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/applet"
	"sdvbox/platform/cmapi"
)

func TestDeployerKeepsWhatItCannotReplaceAndTakesItsTime(t *testing.T) {
	f := newFake()
	client := cmapi.NewClient(serve(t, f))
	defer client.Close()
	dir, link := t.TempDir(), filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	d := &deployer{dir: link, watch: true, begun: true, tried: map[string]attempt{}, say: t.Logf}
	for _, step := range []struct {
		text  string // none: it is not written
		fails string
		calls []string
	}{
		{`{"container_name":"one","image":{"name":"host/none:1"}}`, "no image", nil},
		{"", "", nil}, // not yet again
		{`{"container_name":"one","image":{"name":"host/one:1"},"config":{"env":["=x"]}}`, "env", nil},
		{`{"container_name":"one","image":{"name":"host/one:1"},"config":{"env":["A=1"]}}`, "", []string{"remove id1", "create", "start new"}},
		{"", "", nil},
	} {
		f.calls = nil
		if step.text != "" {
			if err := os.WriteFile(filepath.Join(dir, "one.json"), []byte(step.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := d.deploy(t.Context(), client)
		if step.fails == "" && err != nil || step.fails != "" && (err == nil || !strings.Contains(err.Error(), step.fails)) {
			t.Errorf("%s: %v, want %q", step.text, err, step.fails)
		}
		if !slices.EqualFunc(f.calls, step.calls, strings.HasPrefix) {
			t.Errorf("%s: engine %q, want %q", step.text, f.calls, step.calls)
		}
	}
}

// manifest is one of a container that newFake has not, or has.
func manifest(name string) string {
	return `{"container_name":"` + name + `","image":{"name":"host/` + name + `:1"}}`
}

func TestDeployerFollowsItsDirectory(t *testing.T) {
	again := []string{"remove id1", "create", "start new"}
	write := func(name, text string) func(dir string) error {
		return func(dir string) error {
			file := filepath.Join(dir, name)
			return errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o600))
		}
	}
	touch := func(name string) func(dir string) error {
		return func(dir string) error { return os.Chtimes(filepath.Join(dir, name), time.Now(), time.Unix(1, 0)) }
	}
	remove := func(name string) func(dir string) error {
		return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
	}
	nothing := func(string) error { return nil }
	type step struct {
		do    func(dir string) error
		calls []string
		fails string
	}
	for name, steps := range map[string][]step{
		"one that is there stays at first": {
			{write("a.json", manifest("one")), nil, ""}, {nothing, nil, ""}, {write("b.json", manifest("new")), []string{"create", "start new"}, ""},
		},
		"touched": {{write("a.json", manifest("one")), nil, ""}, {touch("a.json"), again, ""}, {nothing, nil, ""}},
		"gone and back": {
			{write("a.json", manifest("one")), nil, ""}, {touch("a.json"), again, ""}, {remove("a.json"), nil, ""},
			{func(dir string) error {
				return errors.Join(write("a.json", manifest("one"))(dir), touch("a.json")(dir))
			}, again, ""},
		},
		"empty at first": {{nothing, nil, "No manifests found"}, {nothing, nil, ""}, {write("a.json", manifest("one")), again, ""}},
		"below": {
			{write("sub/a.json", manifest("one")), nil, "No manifests found"}, {nothing, nil, ""}, {touch("sub/a.json"), again, ""},
			{write("sub/sub/b.json", manifest("new")), []string{"create", "start new"}, ""},
		},
		"dangling link": {
			{func(dir string) error {
				return errors.Join(os.Symlink("nowhere", filepath.Join(dir, "a.json")), write("b.json", manifest("new"))(dir))
			}, []string{"create", "start new"}, "a.json"},
			{write("c.json", manifest("one")), again, "a.json"},
			{write("nowhere", manifest("other")), []string{"create", "start new"}, ""},
		},
		"no file": {
			{func(dir string) error {
				return errors.Join(os.Mkdir(filepath.Join(dir, "a.json"), 0o755), os.Symlink("a.json", filepath.Join(dir, "b.json")), unix.Mkfifo(filepath.Join(dir, "c.json"), 0o600))
			}, nil, "No manifests found"},
			{write("d.json", manifest("one")), again, ""},
		},
		"bad": {
			{func(dir string) error {
				return errors.Join(write("a.json", "{")(dir), write("b.json", manifest("new"))(dir))
			}, []string{"create", "start new"}, "a.json"},
			{write("a.json", manifest("one")), again, ""},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			client := cmapi.NewClient(serve(t, f))
			defer client.Close()
			dir := t.TempDir()
			d := &deployer{dir: dir, watch: true, tried: map[string]attempt{}, say: t.Logf}
			for i, step := range steps {
				f.calls = nil
				if err := step.do(dir); err != nil {
					t.Fatal(err)
				}
				err := d.deploy(t.Context(), client)
				if step.fails == "" && err != nil || step.fails != "" && (err == nil || !strings.Contains(err.Error(), step.fails)) {
					t.Errorf("step %d: %v, want %q", i, err, step.fails)
				}
				if !slices.EqualFunc(f.calls, step.calls, strings.HasPrefix) {
					t.Errorf("step %d: engine %q, want %q", i, f.calls, step.calls)
				}
			}
		})
	}
}

// What fails at the start is tried again as at the start.
func TestDeployerKeepsWhatWasThereWhenItStarted(t *testing.T) {
	f := newFake()
	all := f.all
	client := cmapi.NewClient(serve(t, f))
	defer client.Close()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.json"), []byte(`{"container_name":"one","image":{"name":"`+noImage+`"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	d := &deployer{dir: dir, watch: true, tried: map[string]attempt{}, say: t.Logf}
	f.all = nil
	if err := d.deploy(t.Context(), client); err == nil {
		t.Fatal("it was deployed")
	}
	f.all = all
	for file, last := range d.tried {
		last.next = time.Now()
		d.tried[file] = last
	}
	if err := d.deploy(t.Context(), client); err != nil || len(f.calls) > 0 {
		t.Errorf("%v, engine %q", err, f.calls)
	}
}

func TestAutoDeployerLooksAtFilesOfTheDirectoryOnly(t *testing.T) {
	f := newFake()
	host, dir := serve(t, f), t.TempDir()
	err := os.Mkdir(filepath.Join(dir, "sub"), 0o755)
	for name, text := range map[string]string{
		"a.json": manifest("new"), "sub/b.json": "{", "c.json.disabled": "{",
		"d.json": `{"container_name":"d","image":{"name":"host/d:1"},"host_config":{"log_config":{"driver_config":{"max_files":3,"max_size":"5M"}}}}`,
		"e.json": `{"container_name":"e","image":{"name":"host/e:1"},"host_config":{"log_config":{"driver_config":{"type":"none"}}}}`,
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	var out, stderr bytes.Buffer
	code := applet.Main([]applet.Command{AutoDeployer()}, []string{"kanto-auto-deployer", "-s", host, dir}, nil, &out, &stderr)
	if code != 0 || len(f.calls) != 6 {
		t.Fatalf("exit code %d, %s, engine %q", code, &stderr, f.calls)
	}
	for i, want := range map[int]string{
		0: `"driver_config":{"type":"json-file","max_files":2,"max_size":"1M"`, 2: `"max_files":3,"max_size":"5M"`, 4: `"driver_config":{"type":"none"}`,
	} {
		if !strings.Contains(f.calls[i], want) {
			t.Errorf("%s is not in %s", want, f.calls[i])
		}
	}
	out.Reset()
	stderr.Reset()
	code = applet.Main([]applet.Command{AutoDeployer()}, []string{"kanto-auto-deployer", "-s", host, "--output", "json", filepath.Join(dir, "sub")}, nil, &out, &stderr)
	if code != 1 || out.Len() > 0 || !strings.HasPrefix(stderr.String(), `{"error":`) || strings.Count(stderr.String(), "\n") != 1 {
		t.Errorf("--output json: exit code %d, %s%s", code, &out, &stderr)
	}
	for _, option := range []string{"-V", "--version"} {
		out.Reset()
		code := applet.Main([]applet.Command{AutoDeployer()}, []string{"kanto-auto-deployer", option}, nil, &out, &stderr)
		if code != 0 || out.String() != applet.Version+"\n" {
			t.Errorf("%s: exit code %d, %q", option, code, &out)
		}
	}
}
