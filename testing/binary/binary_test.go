// SPDX-License-Identifier: Apache-2.0

// Package binary tests what "make build" and "make install" make.
package binary

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	repo    = "../.."
	maxSize = 20_000_000            // bytes of one binary
	maxSlim = 9_000_000             // without containers
	maxWait = 15 * time.Millisecond // for the help of an applet
)

// output runs a program in dir and returns what it says on standard output.
func output(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, out, &stderr)
	}
	return string(out)
}

// binaries builds the tree at dir into a directory and returns its path.
func binaries(t testing.TB, dir string, args ...string) string {
	t.Helper()
	build := t.TempDir()
	output(t, dir, "make", append([]string{"-s", "build", "BUILD=" + build, "VERSION=1.2.3", "COMMIT=abc"}, args...)...)
	return build
}

func TestBinariesAreStaticStrippedAndSmall(t *testing.T) {
	build := binaries(t, repo)
	for _, test := range []struct {
		arch    string
		machine elf.Machine
	}{{"amd64", elf.EM_X86_64}, {"arm64", elf.EM_AARCH64}} {
		path := filepath.Join(build, "linux-"+test.arch, "sdvbox")
		f, err := elf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if f.Machine != test.machine {
			t.Errorf("%s is for %v", path, f.Machine)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
				t.Errorf("%s is not static: it has a segment %v", path, p.Type)
			}
		}
		if f.Section(".symtab") != nil || f.Section(".debug_info") != nil {
			t.Errorf("%s is not stripped", path)
		}
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes", test.arch, fi.Size())
		if fi.Size() > maxSize {
			t.Errorf("%s has %d bytes, want at most %d", path, fi.Size(), maxSize)
		}
	}
}

func TestContainersCanBeLeftOut(t *testing.T) {
	for _, pkg := range strings.Fields(output(t, repo, "go", "list", "-deps", "-tags", "omit_containers", ".")) {
		if strings.HasPrefix(pkg, "sdvbox/platform/c") && !slices.Contains([]string{"config", "control"}, strings.TrimPrefix(pkg, "sdvbox/platform/")) ||
			strings.Contains(pkg, "opencontainers") || strings.Contains(pkg, "sdvbox/platform/images") || strings.Contains(pkg, "/netlink") {
			t.Errorf("%s is in a build without containers", pkg)
		}
	}
	build := binaries(t, repo, "TAGS=omit_containers")
	for _, arch := range []string{"amd64", "arm64"} {
		fi, err := os.Stat(filepath.Join(build, "linux-"+arch, "sdvbox"))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes", arch, fi.Size())
		if fi.Size() > maxSlim {
			t.Errorf("without containers the binary for %s has %d bytes, want at most %d", arch, fi.Size(), maxSlim)
		}
	}
	slim := filepath.Join(t.TempDir(), "root")
	output(t, repo, "make", "-s", "install", "TAGS=omit_containers", "DESTDIR="+slim, "BUILD="+build)
	for _, name := range []string{"usr/bin/container-agent", "usr/lib/systemd/system/container-agent.service", "etc/container-management"} {
		if _, err := os.Lstat(filepath.Join(slim, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is installed without containers: %v", name, err)
		}
		if _, err := os.Lstat(filepath.Join(root, name)); err != nil {
			t.Errorf("%s is not even installed with containers: %v", name, err)
		}
	}
}

// The second build is made of a copy of the source elsewhere, so that a path of
// the machine in the binary shows.
func TestTwoBuildsAreByteIdentical(t *testing.T) {
	copied := t.TempDir()
	source := os.DirFS(repo)
	err := fs.WalkDir(source, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case slices.Contains([]string{".git", "build", "testing"}, name):
			return fs.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		data, err := fs.ReadFile(source, name)
		if err != nil {
			return err
		}
		path := filepath.Join(copied, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, data, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	here, there := binaries(t, repo), binaries(t, copied)
	for _, arch := range []string{"amd64", "arm64"} {
		name := filepath.Join("linux-"+arch, "sdvbox")
		a, err := os.ReadFile(filepath.Join(here, name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(there, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("two builds of %s differ", name)
		}
	}
}

// A call of reflect's Method or MethodByName that is reachable makes the linker
// keep all exported methods of all types, which is megabytes.
func TestLinkerMayDropUnusedMethods(t *testing.T) {
	users := func(pkg string) []string {
		cmd := exec.Command("go", "build", "-ldflags=-dumpdep", "-o", os.DevNull, pkg)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
		var found []string
		for line := range strings.Lines(string(out)) {
			if name, _, ok := strings.Cut(line, " <ReflectMethod> ->"); ok && !slices.Contains(found, name) {
				found = append(found, name)
			}
		}
		return found
	}
	if got := users("./testdata/methods"); !slices.Contains(got, "main.main") {
		t.Fatalf("in a program that uses MethodByName the linker reports %q: its output has changed", got)
	}
	for _, name := range users(repo) {
		t.Errorf("%s uses reflection on methods", name)
	}
}

func TestForbiddenPackagesStayOutOfTheBinary(t *testing.T) {
	for _, dep := range strings.Fields(output(t, repo, "go", "list", "-deps", ".")) {
		for _, bad := range []string{
			"testing", "sdvbox/testing", "net/http/httptest", "net/http/pprof", // of tests
			"text/template", "html/template", // reflection on methods
			"github.com/mochi-mqtt", "github.com/google/go-cmp", // of tests
			"google.golang.org/grpc", "github.com/containerd", // megabytes, see docs/dependencies.md
			"plugin", // impossible in a static binary
		} {
			if dep == bad || strings.HasPrefix(dep, bad+"/") {
				t.Errorf("the binary contains %s", dep)
			}
		}
	}
}

// root is the tree that "make install" makes.
var root string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sdvbox-install-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	root = filepath.Join(dir, "root")
	cmd := exec.Command("make", "-s", "-C", repo, "install", "DESTDIR="+root, "BUILD="+filepath.Join(dir, "build"))
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n%s", cmd, err, out)
		return 1
	}
	return m.Run()
}

// applets returns the names of the applets of the installed binary.
func applets(t testing.TB) []string {
	t.Helper()
	var items []struct{ Name string }
	out := output(t, root, filepath.Join(root, "usr/bin/sdvbox"), "--list", "--output", "json")
	if err := json.Unmarshal([]byte(out), &items); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range items {
		names = append(names, i.Name)
	}
	if len(names) == 0 {
		t.Fatal("the binary has no applets")
	}
	return names
}

func TestInstallLinksAndDocumentsEveryApplet(t *testing.T) {
	for _, name := range applets(t) {
		if help := output(t, root, filepath.Join(root, "usr/bin", name), "--help"); !strings.HasPrefix(help, "Usage: "+name) {
			t.Errorf("%s --help: %s", name, help)
		}
		page, err := os.ReadFile(filepath.Join(root, "usr/share/man/man1", name+".1"))
		if err != nil || !strings.HasPrefix(string(page), ".TH ") {
			t.Errorf("man page of %s: %q, %v", name, page, err)
		}
		for _, file := range []string{"bash-completion/completions/" + name, "fish/vendor_completions.d/" + name + ".fish"} {
			if b, err := os.ReadFile(filepath.Join(root, "usr/share", file)); err != nil || !strings.Contains(string(b), name) {
				t.Errorf("%s does not complete %s: %v", file, name, err)
			}
		}
	}
	links, err := filepath.Glob(filepath.Join(root, "usr/lib/sdvbox/compat/*"))
	if err != nil || len(links) == 0 {
		t.Fatalf("no names of foreign tools: %v", err)
	}
	for _, link := range links {
		if path, err := filepath.EvalSymlinks(link); err != nil || path != filepath.Join(root, "usr/bin/sdvbox") {
			t.Errorf("%s leads to %s, %v", link, path, err)
		}
		if _, err := os.Lstat(filepath.Join(root, "usr/bin", filepath.Base(link))); err == nil {
			t.Errorf("%s is in /usr/bin, where it would hide the real one", filepath.Base(link))
		}
	}
}

func TestInstallTakesTheFilesNextToApplets(t *testing.T) {
	for pattern, dir := range map[string]string{
		"*.service":  "usr/lib/systemd/system",
		"*.d/*.conf": "usr/lib/systemd/system",
		"*.preset":   "usr/lib/systemd/system-preset",
		"etc/*/*":    "etc",
	} {
		files, err := filepath.Glob(filepath.Join(repo, "applets/*", pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			parts := strings.Split(strings.TrimPrefix(file, repo+"/applets/"), "/")[1:]
			if dir == "etc" {
				parts = parts[1:]
			}
			if _, err := os.Stat(filepath.Join(root, dir, filepath.Join(parts...))); err != nil {
				t.Errorf("%s is not installed: %v", file, err)
			}
		}
	}
}

func TestUnitsStartWhatIsInstalled(t *testing.T) {
	units, err := filepath.Glob(filepath.Join(root, "usr/lib/systemd/system/*.service"))
	if err != nil || len(units) == 0 {
		t.Fatalf("no units: %v", err)
	}
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if key, value, _ := strings.Cut(line, "="); strings.HasPrefix(key, "Exec") {
				program := strings.TrimLeft(strings.Fields(value)[0], "-@:+!|")
				if program == "/bin/kill" { // of the system
					continue
				}
				if _, err := os.Stat(filepath.Join(root, program)); err != nil {
					t.Errorf("%s: %s: %v", filepath.Base(unit), key, err)
				}
			}
		}
	}
}

func TestBashCompletesAnApplet(t *testing.T) {
	const script = `source "$1/usr/share/bash-completion/completions/sdvbox"
COMP_WORDS=(sdvbox "$2") COMP_CWORD=1
_sdvbox
echo "${COMPREPLY[*]}"`
	name := applets(t)[0]
	cmd := exec.Command("bash", "-c", script, "bash", root, name[:len(name)-1])
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(root, "usr/bin")+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != name {
		t.Errorf("%q, %v; want %q", got, err, name)
	}
}

// The quickest of several starts counts: the others measure what else the
// machine does.
func TestAppletsStartQuickly(t *testing.T) {
	for _, name := range applets(t) {
		path := filepath.Join(root, "usr/bin", name)
		best := time.Hour
		for range 20 {
			start := time.Now()
			output(t, root, path, "--help")
			best = min(best, time.Since(start))
		}
		t.Logf("%s: %v", name, best)
		if best > maxWait {
			t.Errorf("%s --help takes %v, want at most %v", name, best, maxWait)
		}
	}
}

func BenchmarkStart(b *testing.B) {
	for _, name := range applets(b) {
		b.Run(name, func(b *testing.B) {
			path := filepath.Join(root, "usr/bin", name)
			for b.Loop() {
				if err := exec.Command(path, "--help").Run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
