// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sdvbox/testing/ctrd"
)

func TestDirectoryInTheWayOfSnapshots(t *testing.T) {
	t.Parallel()
	d := ctrd.Start(t)
	c := New(d.Socket, "stale")
	defer c.Close()
	if err := c.CreateNamespace(t.Context()); err != nil {
		t.Fatal(err)
	}
	// As left by a containerd that was killed: what the next snapshot is called is there already.
	dir := filepath.Join(d.Dir, "root", "io.containerd.snapshotter.v1.overlayfs", "snapshots")
	if err := os.MkdirAll(filepath.Join(dir, "1", "fs"), 0o755); err != nil {
		t.Fatal(err)
	}
	for n := range 2 {
		if _, err := c.Snapshots.Prepare(t.Context(), fmt.Sprint(n), "", map[string]string{"containerd.io/gc.root": "now"}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, fmt.Sprint(n+1), "work")); err != nil {
			t.Error(err)
		}
	}
	if err := c.Snapshots.Remove(t.Context(), "0"); err != nil {
		t.Error(err)
	}
	if err := c.Leases.Create(t.Context(), "gc", nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Leases.Delete(t.Context(), "gc", true); err != nil {
		t.Fatal(err)
	}
	var left []os.DirEntry
	for range 500 { // in the background
		var err error
		if left, err = os.ReadDir(dir); err != nil {
			t.Fatal(err)
		}
		if len(left) == 1 && left[0].Name() == "2" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("of the snapshots and what was put away there are %v, want the second snapshot", left)
}

func TestOnlyWhatIsInTheWayIsPutAway(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"failed to rename: rename /c/snapshots/new-33 /c/snapshots/11: file exists":  "/c/snapshots/11",
		"failed to rename: rename /c/snapshots/new-33 /c/snapshots/11: disk is full": "",
		"failed to rename: rename /c/snapshots/new-33 /d/snapshots/11: file exists":  "",
		"failed to rename: rename /c/snapshots/old-33 /c/snapshots/11: file exists":  "",
		"failed to rename: rename /c/snapshots/new-33 /c/snapshots/new: file exists": "",
		"failed to rename: rename c/new-33 c/11: file exists":                        "",
		"file exists": "",
	} {
		if dir := inTheWay(fmt.Errorf("containerd: %s", text)); dir != want {
			t.Errorf("%s: %q, expected %q", text, dir, want)
		}
	}
}
