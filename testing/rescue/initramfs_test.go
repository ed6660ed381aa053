// SPDX-License-Identifier: Apache-2.0

package rescue

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// names returns what is in the archive.
func names(a *archive) []string {
	var list []string
	for _, r := range a.records {
		list = append(list, r.Name)
	}
	return list
}

func TestAProgramBringsItsLoaderAndLibraries(t *testing.T) {
	a := &archive{tree: "/", seen: map[string]bool{}}
	if err := a.program("/bin/sh"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"/ld-linux", "/libc.so"} {
		if !slices.ContainsFunc(names(a), func(n string) bool { return strings.Contains(n, want) }) {
			t.Errorf("nothing like %s in %v", want, names(a))
		}
	}
}

func TestLinksAreFollowedInsideTheTree(t *testing.T) {
	tree := t.TempDir()
	for _, dir := range []string{"usr/bin", "etc/alternatives"} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"bin":                   "usr/bin",
		"usr/bin/tool":          "/etc/alternatives/tool",
		"etc/alternatives/tool": "../../bin/tool-2",
		"usr/bin/round":         "round",
	} {
		if err := os.Symlink(target, filepath.Join(tree, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(tree, "usr/bin/tool-2"), []byte("x"), 0o755); err != nil {
		t.Fatal(err)
	}
	a := &archive{tree: tree, seen: map[string]bool{}}
	if err := a.copy("/bin/tool"); err != nil {
		t.Fatal(err)
	}
	want := []string{"/usr/bin/tool", "/etc/alternatives/tool", "/usr/bin/tool-2"}
	if got := names(a); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if err := a.copy("/bin/round"); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("a link to itself: %v", err)
	}
	if err := a.copy("/bin/absent"); !os.IsNotExist(err) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestModulesAreListedAfterThoseTheyNeed(t *testing.T) {
	k := &kernel{byName: map[string]*module{}}
	for name, depends := range map[string][]string{
		"verity": {"mod", "bufio", "builtin"},
		"bufio":  {"mod"},
		"mod":    nil,
	} {
		k.byName[name] = &module{path: name + ".ko", depends: depends}
	}
	var got []string
	for _, m := range k.closure(k.byName["verity"]) {
		got = append(got, m.path)
	}
	// modprobe loads from the end of the list.
	if want := []string{"bufio.ko", "mod.ko"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestModuleNamesAreTheKernels(t *testing.T) {
	for file, want := range map[string]string{
		"kernel/drivers/md/dm-verity.ko.xz": "dm_verity",
		"kernel/fs/ext4/ext4.ko":            "ext4",
		"/x/nls_iso8859-1.ko.zst":           "nls_iso8859_1",
	} {
		if got := moduleName(file); got != want {
			t.Errorf("%s: %s, want %s", file, got, want)
		}
	}
}

func TestDependenciesComeFromTheModuleInformation(t *testing.T) {
	got := dependsOf("license=GPL\x00depends=dm-mod,dm-bufio\x00vermagic=6\x00")
	if want := []string{"dm_mod", "dm_bufio"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := dependsOf("depends=\x00"); got != nil {
		t.Errorf("no dependencies: %v", got)
	}
}
