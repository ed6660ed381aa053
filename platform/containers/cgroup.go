// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"os"
	"path/filepath"
)

// removeCgroups removes the control groups of a container that has no process. runc, which makes them, forgets them when it is
// killed before it has written down what it has made.
func removeCgroups(root, namespace, id string) {
	all, _ := filepath.Glob(filepath.Join(root, namespace, id))       // version 2
	each, _ := filepath.Glob(filepath.Join(root, "*", namespace, id)) // version 1, one for each controller
	for _, group := range append(all, each...) {
		os.Remove(group) // which does nothing to one that is in use
	}
}
