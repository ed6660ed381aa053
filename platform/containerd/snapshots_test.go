// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

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
}

func TestOnlyADirectoryInTheWayIsWorthAnotherAttempt(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"failed to rename: rename /c/snapshots/new-33 /c/snapshots/11: file exists":  true,
		"failed to rename: rename /c/snapshots/new-33 /c/snapshots/11: disk is full": false,
		"file exists": false,
	} {
		if got := inTheWay(fmt.Errorf("containerd: %s", text)); got != want {
			t.Errorf("%s: %v, expected %v", text, got, want)
		}
	}
}
