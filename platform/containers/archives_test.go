// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sdvbox/platform/ctrmodel"
)

// archiveRig looks for archives whenever the test says so, with look. That gives what has been imported since the last look.
func archiveRig(t *testing.T, dir string) (r *rig, look func() string) {
	r = newRig(t)
	r.stop() // nobody else looks
	r.Deployment.Archives = []string{dir}
	return r, func() string {
		r.importArchives(t.Context())
		r.fake.mu.Lock()
		defer r.fake.mu.Unlock()
		defer func() { r.fake.imported = nil }()
		return strings.Join(r.fake.imported, " ")
	}
}

// known is the names of the archives that have been imported, as it is written down.
func (r *rig) known() (names []string) {
	data, err := os.ReadFile(filepath.Join(r.cfg.StateDir, "imported.json"))
	r.must(err)
	var archives map[string]string
	r.must(json.Unmarshal(data, &archives))
	for path := range archives {
		names = append(names, filepath.Base(path))
	}
	return names
}

func TestEachArchiveThatHasBeenImportedIsWrittenDown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "a.tar", "")
	write(t, dir, "b.tar", "")
	r, look := archiveRig(t, dir)
	var before []string
	r.fake.unpack = func(archive string) error {
		if filepath.Base(archive) == "b.tar" { // of which a power cut may be the end
			before = r.known()
		}
		return nil
	}
	if got := look(); got != "a.tar b.tar" || strings.Join(before, " ") != "a.tar" {
		t.Errorf("imported %s, before the last one %s was written down", got, before)
	}
}

func TestAnArchiveThatComesBackIsImportedAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	images, away := dir+"/images", dir+"/away"
	write(t, images, "a.tar", "")
	write(t, images, "b.tar", "")
	r, look := archiveRig(t, images+"/")
	expect := func(what, want string, known int) {
		t.Helper()
		if got := look(); got != want || len(r.known()) != known {
			t.Errorf("%s: imported %q, want %q; written down %q, want %d", what, got, want, r.known(), known)
		}
	}
	move := func(from, to string) {
		t.Helper()
		r.must(os.Rename(from, to))
	}
	expect("first", "a.tar b.tar", 2)
	expect("again", "", 2)
	move(images+"/a.tar", dir+"/a.tar")
	expect("one is gone", "", 1)
	move(dir+"/a.tar", images+"/a.tar")
	expect("it is back", "a.tar", 2)

	move(images, away)
	expect("no directory", "", 2)
	r.must(os.Mkdir(images, 0o755))
	expect("another directory, with nothing in it", "", 2)
	r.must(os.Remove(images))
	move(away, images)
	expect("the directory is back", "", 2)

	move(images+"/a.tar", dir+"/a.tar")
	move(images+"/b.tar", dir+"/b.tar")
	expect("all are gone", "", 0)
	move(dir+"/b.tar", images+"/b.tar")
	expect("one is back", "b.tar", 1)

	r.fake.unpack = func(string) error { return ctrmodel.Errorf(ctrmodel.Unavailable, "not yet") }
	move(dir+"/a.tar", images+"/a.tar")
	expect("one cannot be imported", "", 1)
}
