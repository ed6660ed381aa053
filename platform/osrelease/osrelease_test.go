// SPDX-License-Identifier: Apache-2.0

package osrelease

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestVersionIsThatOfTheFile(t *testing.T) {
	for text, want := range map[string]string{
		"":                                   "",
		"VERSION_ID=1.2":                     "1.2",
		"VERSION_ID=\"1.2\"\n":               "1.2",
		"VERSION_ID='1.2'\r\nNAME=x\r\n":     "1.2",
		"VERSION_ID=1\nEDITION_ID=2\n":       "2",
		"EDITION_ID=\nVERSION_ID=3\n":        "3",
		"#VERSION_ID=4\nBUILD_ID=5\nnot one": "",
		"MY_VERSION_ID=6\n":                  "",
	} {
		if got := version(text); got != want {
			t.Errorf("version of %q is %q, want %q", text, got, want)
		}
	}
}

func TestOnlyFilesOfTheSystemAreRead(t *testing.T) {
	root := t.TempDir()
	if _, err := Version(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a system without the file: %v", err)
	}
	outside := filepath.Join(t.TempDir(), "os-release")
	for _, dir := range []string{"etc", "usr/lib"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(file, text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(outside, "VERSION_ID=outside\n")
	link := filepath.Join(root, "etc/os-release")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	if v, err := Version(root); err == nil {
		t.Errorf("a link to the outside: version %q", v)
	}
	os.Remove(link)
	write(filepath.Join(root, "usr/lib/os-release"), "VERSION_ID=7\n")
	if v, err := Version(root); v != "7" || err != nil {
		t.Errorf("only in /usr/lib: %q, %v", v, err)
	}
	if err := os.Symlink("../usr/lib/os-release", link); err != nil {
		t.Fatal(err)
	}
	if v, err := Version(root); v != "7" || err != nil {
		t.Errorf("linked as usual: %q, %v", v, err)
	}
}
