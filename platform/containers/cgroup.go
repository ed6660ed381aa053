// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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

// processesOf returns the processes of a container: those in its control groups, which are called by the id, or by systemd's name
// with it. What is below /sys/fs/cgroup need not be a control group: where there is none, crun makes plain files. So the processes
// have to say the same.
func processesOf(proc, sys, namespace, id string) (pids []int) {
	for _, name := range []string{filepath.Join(namespace, id), filepath.Join("system.slice", namespace+"-"+id+".scope")} {
		all, _ := filepath.Glob(filepath.Join(sys, name))       // version 2
		each, _ := filepath.Glob(filepath.Join(sys, "*", name)) // version 1
		for _, group := range append(all, each...) {
			filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error { // it may have groups of its own
				if err != nil || d.Name() != "cgroup.procs" {
					return nil // it goes just now
				}
				text, _ := os.ReadFile(path)
				for _, field := range strings.Fields(string(text)) {
					own, _ := os.ReadFile(filepath.Join(proc, field, "cgroup"))
					if pid, err := strconv.Atoi(field); err == nil && strings.Contains(string(own), ":/"+name) {
						pids = append(pids, pid)
					}
				}
				return nil
			})
		}
	}
	return pids
}
