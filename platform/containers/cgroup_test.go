// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestControlGroupsThatRuncHasLeft(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, group := range []string{"ns/a", "memory/ns/a", "pids/ns/a/inner", "memory/ns/b", "memory/other/a"} {
		if err := os.MkdirAll(filepath.Join(root, group), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	removeCgroups(root, "ns", "a")
	var left []string
	for _, pattern := range []string{"ns/*", "*/ns/*", "*/other/*"} {
		found, _ := filepath.Glob(filepath.Join(root, pattern))
		for _, group := range found {
			name, _ := filepath.Rel(root, group)
			left = append(left, name)
		}
	}
	if want := []string{"memory/ns/b", "pids/ns/a", "memory/other/a"}; !slices.Equal(left, want) {
		t.Errorf("left are %v, expected %v", left, want)
	}
}
