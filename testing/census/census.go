// SPDX-License-Identifier: Apache-2.0

// Package census counts what a container agent and its containerd have made on a machine, to find out whether something was left.
package census

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sdvbox/platform/containerd"
	"sdvbox/testing/ctrd"
)

// Place is where it is counted.
type Place struct {
	Daemon    *ctrd.Daemon
	Namespace string
	Dirs      []string        // everything in them counts, and what is mounted there
	Except    []string        // but not what has such a name, as filepath.Match has it
	Inside    func(do func()) // runs something in the network namespace all of whose links and firewall rules count; nil: none
}

// List is what there is, in order, one line each. Lines do not have process ids or times: they are the same after a restart.
type List []string

// Take counts. What containerd is about to clear away by itself does not count.
func (p Place) Take(tb testing.TB) List {
	tb.Helper()
	list, err := p.take(tb.Context())
	if err != nil {
		tb.Fatalf("census: %v", err)
	}
	return list
}

func (p Place) take(ctx context.Context) (list List, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if list, err = p.containerd(ctx); err != nil {
		return nil, err
	}
	list = append(list, p.processes()...)
	list = append(list, p.files()...)
	if p.Inside != nil {
		var links List
		p.Inside(func() { links, err = network(ctx) })
		if err != nil {
			return nil, err
		}
		list = append(list, links...)
	}
	slices.Sort(list)
	return list, nil
}

// Await waits until there is no more and no less than what is wanted: some things are cleared away in the background.
func (p Place) Await(tb testing.TB, want List, patience time.Duration) {
	tb.Helper()
	patience = ctrd.Patient(patience)
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		list, err := p.take(tb.Context())
		diff := ""
		if err == nil {
			if diff = Diff(want, list); diff == "" {
				return
			}
		}
		if time.Now().After(end) || tb.Context().Err() != nil {
			tb.Fatalf("census, %v later: %v\n%s", patience, err, diff)
		}
	}
}

// Diff says what has come (+) and gone (-), one line each; nothing if the lists are the same.
func Diff(before, after List) string {
	var b strings.Builder
	for len(before) > 0 || len(after) > 0 {
		switch {
		case len(after) == 0 || len(before) > 0 && before[0] < after[0]:
			fmt.Fprintln(&b, "-", before[0])
			before = before[1:]
		case len(before) == 0 || after[0] < before[0]:
			fmt.Fprintln(&b, "+", after[0])
			after = after[1:]
		default:
			before, after = before[1:], after[1:]
		}
	}
	return b.String()
}

// containerd is what containerd knows, and what it has on disk.
func (p Place) containerd(ctx context.Context) (list List, err error) {
	c := containerd.New(p.Daemon.Socket, p.Namespace)
	defer c.Close()
	// To delete a lease in step has it collect its garbage first.
	const lease = "census"
	if err := c.Leases.Create(ctx, lease, nil); err != nil {
		return nil, err
	}
	if err := c.Leases.Delete(ctx, lease, true); err != nil {
		return nil, err
	}
	add := func(kind string, name ...any) { list = append(list, fmt.Sprintln(append([]any{kind}, name...)...)) }
	leases, err := c.Leases.List(ctx)
	for _, l := range leases {
		add("lease", l.ID)
		resources, err := c.Leases.Resources(ctx, l.ID)
		if err != nil {
			return nil, err
		}
		for _, r := range resources {
			add("lease", l.ID, "holds", r.Type, r.ID)
		}
	}
	if err != nil {
		return nil, err
	}
	images, err := c.Images.List(ctx)
	for _, i := range images {
		add("image", i.Name)
	}
	if err != nil {
		return nil, err
	}
	blobs, err := c.Content.List(ctx)
	for _, b := range blobs {
		add("blob", b.Digest)
	}
	if err != nil {
		return nil, err
	}
	ingests, err := c.Content.Ingests(ctx)
	for _, i := range ingests {
		add("ingest", i.Ref)
	}
	if err != nil {
		return nil, err
	}
	snapshots, err := c.Snapshots.List(ctx)
	for _, s := range snapshots {
		add("snapshot", s.Name, "kind", s.Kind)
	}
	if err != nil {
		return nil, err
	}
	objects, err := c.Containers.List(ctx)
	for _, o := range objects {
		add("container", o.ID)
	}
	if err != nil {
		return nil, err
	}
	tasks, err := c.Tasks.List(ctx)
	for _, t := range tasks {
		add("task", t.ID, t.Status)
	}
	// The directories of snapshots have numbers, and nobody says whose they are.
	for _, pattern := range []string{"root/io.containerd.snapshotter.v1.overlayfs/snapshots/*", "root/io.containerd.content.v1.content/ingest/*"} {
		dirs, _ := filepath.Glob(filepath.Join(p.Daemon.Dir, pattern))
		for range dirs {
			add(filepath.Dir(pattern), "has an entry")
		}
	}
	for _, pattern := range []string{"root/io.containerd.runtime.v2.task/*/*", "state/io.containerd.runtime.v2.task/*/*"} {
		dirs, _ := filepath.Glob(filepath.Join(p.Daemon.Dir, pattern))
		for _, dir := range dirs {
			if filepath.Base(dir)[0] == '.' { // which containerd was removing when it was killed; it does not go on with that
				continue
			}
			add("bundle", strings.TrimPrefix(dir, p.Daemon.Dir))
		}
	}
	for i, line := range list {
		list[i] = strings.TrimSuffix(line, "\n")
	}
	return list, err
}

// processes is shims, and who is in the control groups of containers.
func (p Place) processes() (list List) {
	for _, s := range p.Daemon.Shims() {
		list = append(list, "shim of "+s.ID)
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/" + p.Namespace + "/*/cgroup.procs")        // version 2
	older, _ := filepath.Glob("/sys/fs/cgroup/*/" + p.Namespace + "/*/cgroup.procs")       // version 1, one in each hierarchy
	systemd, _ := filepath.Glob("/sys/fs/cgroup/system.slice/" + p.Namespace + "-*.scope") // what runc makes of it with systemd
	for _, file := range slices.Concat(groups, older) {
		list = append(list, "control group "+filepath.Dir(file))
		if pids, err := os.ReadFile(file); err == nil && len(pids) > 0 {
			list = append(list, "processes in "+filepath.Dir(file))
		}
	}
	for _, scope := range systemd {
		list = append(list, "control group "+scope)
	}
	return list
}

// files is what is in the directories, mounts included.
func (p Place) files() (list List) {
	except := func(path string) bool {
		return slices.ContainsFunc(p.Except, func(pattern string) bool {
			match, _ := filepath.Match(pattern, filepath.Base(path))
			return match
		})
	}
	for _, dir := range p.Dirs {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil: // it has just gone
				return nil
			case except(path):
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			list = append(list, d.Type().String()+" "+path)
			return nil
		})
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		for _, dir := range append([]string{p.Daemon.Dir}, p.Dirs...) {
			if len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
				list = append(list, "mount "+f[4])
				break
			}
		}
	}
	return list
}

// network is the links and the rules here.
func network(ctx context.Context) (list List, err error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		list = append(list, "link "+l.Name)
	}
	rules, err := exec.CommandContext(ctx, "nft", "--stateless", "list", "ruleset").Output()
	if err != nil {
		return nil, fmt.Errorf("nft list ruleset: %w", err)
	}
	for line := range strings.Lines(string(rules)) {
		if line = strings.TrimSpace(line); strings.Trim(line, "{}") != "" {
			list = append(list, "rule "+line)
		}
	}
	return list, nil
}
