// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/ctrd"
)

// forget has containerd forget tasks whose processes go on. It finds their directories again if they are to be back.
func (r *rig) forget(d *ctrd.Daemon, back bool, ids ...string) (dirs []string) {
	r.t.Helper()
	d.Kill()
	aside := filepath.Join(d.Dir, "aside")
	r.must(os.MkdirAll(aside, 0o700))
	for _, id := range ids {
		dir := filepath.Join(d.Dir, "state/io.containerd.runtime.v2.task", r.parts.Namespace, id)
		r.must(os.Rename(dir, filepath.Join(aside, id)))
		dirs = append(dirs, dir)
	}
	d.Run()
	for i, id := range ids {
		if old := filepath.Join(aside, id); back {
			r.must(os.Rename(old, dirs[i]))
		} else {
			r.must(unmountAll(filepath.Join(old, "rootfs")))
			r.must(os.RemoveAll(old))
		}
	}
	return dirs
}

// A container must not pass for one without a process because containerd has forgotten its task.
func TestRealTaskIsForgotten(t *testing.T) {
	t.Parallel()
	r, d := newRealRig(t)
	ctx := t.Context()
	r.stop()
	r.parts.abandoned = time.Hour
	r.start()
	goesOn, stopped, removed := r.running("goes-on", obedient), r.running("stopped", obedient), r.running("removed", obedient)
	ids := []string{goesOn, stopped, removed}
	dirs := r.forget(d, true, ids...)
	hidden := filepath.Join(filepath.Dir(dirs[0]), "."+goesOn)
	r.must(os.MkdirAll(filepath.Join(hidden, "rootfs"), 0o700))
	var pids []int
	for _, id := range ids {
		pids = append(pids, int(r.get(id).State.PID))
	}
	lives := func(want bool) {
		t.Helper()
		for _, pid := range pids {
			if alive(pid) != want {
				t.Errorf("process %d lives: %v", pid, !want)
			}
		}
	}

	refused := func() {
		t.Helper()
		r.wantKind(r.Stop(ctx, stopped, force), ctrmodel.Unavailable)
		r.wantKind(r.Remove(ctx, removed, true, force), ctrmodel.Unavailable)
		c := r.get(goesOn)
		r.wantKind(r.backend.Release(ctx, c), ctrmodel.Unavailable)
		if !c.State.Running || c.RestartCount != 0 {
			t.Errorf("state %+v", c.State)
		}
		if c := r.get(stopped); !c.State.Running {
			t.Errorf("state %+v", c.State)
		}
		if _, err := r.parts.Client.Containers.Get(ctx, goesOn); err != nil {
			t.Error(err)
		}
		lives(true)
	}
	refused()
	r.restart()
	refused()

	r.stop()
	r.parts.abandoned = time.Nanosecond
	r.start()
	r.await(goesOn, "started anew", func(c *ctrmodel.Container) bool { return c.State.Running && c.State.PID != int64(pids[0]) })
	r.awaitStatus(stopped, ctrmodel.Stopped)
	for _, err := r.Get(ctx, removed); err == nil; _, err = r.Get(ctx, removed) {
		time.Sleep(time.Millisecond)
	}
	lives(false)
	if shims := d.Shims(); len(shims) != 1 {
		t.Errorf("there are the shims %+v, expected one", shims)
	}
	r.must(r.Stop(ctx, goesOn, force))
	if left, _ := filepath.Glob(filepath.Dir(dirs[0]) + "/*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := os.Stat(hidden); err == nil {
		t.Errorf("left behind: %s", hidden)
	}
	for _, id := range []string{goesOn, stopped} {
		r.must(r.Start(ctx, id)) // its files are all there
		r.must(r.Remove(ctx, id, true, force))
	}
	r.clean()
}

// Nor because containerd has removed the directory of the task, too.
func TestRealDirectoryOfATaskIsGone(t *testing.T) {
	t.Parallel()
	r, d := newRealRig(t)
	r.stop()
	r.parts.abandoned = time.Nanosecond
	r.start()
	id := r.running("a", obedient)
	before := int(r.get(id).State.PID)
	r.forget(d, false, id)
	c := r.await(id, "started anew", func(c *ctrmodel.Container) bool { return c.State.Running && int(c.State.PID) != before })
	if c.RestartCount != 1 {
		t.Errorf("started %d times: the runtime has not forgotten it", c.RestartCount)
	}
	if alive(before) {
		t.Error("the process that was forgotten goes on")
	}
	if shims := d.Shims(); len(shims) != 1 {
		t.Errorf("there are the shims %+v, expected one", shims)
	}
	r.must(r.Remove(t.Context(), id, true, force))
	r.clean()
}

// Nor does a directory without processes keep a container from starting for ever, wherever containerd has it.
func TestRealDirectoryIsInTheWay(t *testing.T) {
	t.Parallel()
	r, d := newRealRig(t)
	r.stop()
	r.parts.abandoned = time.Nanosecond
	r.start()
	id := r.make("a", obedient)
	dir := filepath.Join(d.Dir, "state/io.containerd.runtime.v2.task", r.parts.Namespace, id)
	r.must(os.MkdirAll(filepath.Join(dir, "rootfs"), 0o700))
	err := r.Start(t.Context(), id)
	r.wantKind(err, ctrmodel.Unavailable)
	if err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %v", err)
	}
	r.must(r.Start(t.Context(), id))
	r.must(r.Remove(t.Context(), id, true, force))
	r.clean()
}

// abandonedTask is a machine that finds the directory of a task, behind a symbolic link, and what the shim's program is to do there.
func abandonedTask(t *testing.T, script string) (m *machine, id, dir string) {
	t.Helper()
	id = fmt.Sprintf("task-%d-%d", os.Getpid(), time.Now().UnixNano())
	state := t.TempDir()
	dir = filepath.Join(state, "real", id)
	program := filepath.Join(state, "containerd-shim-test-v1")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "rootfs"), 0o700),
		os.Symlink("real", filepath.Join(state, "link")),
		os.WriteFile(program, []byte("#!/bin/sh\n"+script+"\n"), 0o700),
		os.WriteFile(filepath.Join(dir, "shim-binary-path"), []byte(program), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	m = newMachine(Parts{Namespace: "sdvbox-test", Log: slog.New(slog.NewTextHandler(t.Output(), nil)), abandoned: time.Nanosecond})
	m.learn(filepath.Join(state, "link", id))
	return m, id, dir
}

// sitter starts a process that does nothing in a directory, under any name, and returns what tells whether it still does.
func sitter(t *testing.T, dir string, args ...string) (pid int, lives func() bool) {
	t.Helper()
	cmd := exec.Command("/bin/sh")
	cmd.Args = append([]string{args[0], "-c", "read line"}, args[1:]...)
	cmd.Dir = dir
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	pid = cmd.Process.Pid
	return pid, func() bool { return alive(pid) }
}

// alive reports whether there is a process. One that has been killed has no arguments, whether somebody has waited for it or not.
func alive(pid int) bool {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return len(text) > 0
}

// putIntoGroup makes a control group with a process.
func putIntoGroup(t *testing.T, name string, pid int) {
	t.Helper()
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.procs"); err != nil { // version 1
		root += "/pids"
	}
	dir := filepath.Join(root, name)
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.WriteFile(dir+"/cgroup.procs", []byte(fmt.Sprint(pid)), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		os.WriteFile(root+"/cgroup.procs", []byte(fmt.Sprint(pid)), 0)
		os.Remove(dir)
		os.Remove(filepath.Dir(dir))
	})
}

// Nobody is killed but the shim, before its program clears up, and what that leaves of the container, whose files stay.
func TestReclaimWithAShimThatCannotClearUp(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	m, id, dir := abandonedTask(t, `grep -q . /proc/$(cat shim.pid)/cmdline && touch ../too-early; echo "$@" >../args; echo sorry; exit 1`)
	files := t.TempDir()
	if err := os.WriteFile(filepath.Join(files, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // one above the other
		if err := syscall.Mount(files, filepath.Join(dir, "rootfs"), "", syscall.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { unmountAll(filepath.Join(dir, "rootfs")) })
	const name = "/usr/bin/containerd-shim-test-v1"
	flags := []string{"-namespace", m.Namespace, "-id", id}
	start := func(dir, name string, args ...string) (lives func() bool) {
		pid, lives := sitter(t, dir, append([]string{name}, args...)...)
		if err := os.WriteFile(filepath.Join(dir, "shim.pid"), []byte(fmt.Sprint(pid)), 0o600); err != nil {
			t.Fatal(err)
		}
		return lives
	}
	spared := map[string]func() bool{
		"a shell":                   start(dir, "sh"),
		"an editor of its files":    start(dir, "vi", flags...),
		"containerd's own helper":   start(dir, name, append(slices.Clone(flags), "-bundle", dir, "delete")...),
		"the shim of another":       start(dir, name, "-namespace", m.Namespace, "-id", id+"2"),
		"one of another namespace":  start(dir, name, "-namespace", "other", "-id", id),
		"one of another containerd": start(t.TempDir(), name, flags...),
	}
	shim := start(dir, name, append(flags, "-address", "/run/containerd/containerd.sock")...)
	pid, inside := sitter(t, "/", "sh")
	putIntoGroup(t, filepath.Join(m.Namespace, id), pid)

	if err := m.reclaim(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if shim() {
		t.Error("the shim lives")
	}
	if inside() {
		t.Error("the process of the container lives")
	}
	for who, lives := range spared {
		if !lives() {
			t.Errorf("%s was killed", who)
		}
	}
	above := filepath.Dir(dir)
	if _, err := os.Stat(filepath.Join(above, "too-early")); err == nil {
		t.Error("cleared up while the shim still lived")
	}
	args, _ := os.ReadFile(filepath.Join(above, "args"))
	if want := strings.Join(append(flags[:4:4], "-bundle", m.taskDir(id), "delete\n"), " "); string(args) != want {
		t.Errorf("the shim's program got %q, expected %q", args, want)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the directory is still there")
	}
	if _, err := os.Stat(filepath.Join(files, "precious")); err != nil {
		t.Errorf("the files of the container are gone: %v", err)
	}
}

// What a shim's program leaves running may hold its output open.
func TestReclaimDoesNotWaitForOutput(t *testing.T) {
	m, id, _ := abandonedTask(t, "sleep 60 & echo $! >../sleep.pid")
	begin := time.Now()
	if err := m.reclaim(t.Context(), id); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
	var pid int
	text, _ := os.ReadFile(filepath.Join(m.taskDir(id), "../sleep.pid"))
	if fmt.Sscan(string(text), &pid); pid > 0 {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// How long something has been left alone is counted from when it was first seen, whatever the clock says.
func TestReclaimLeavesContainerdItsTime(t *testing.T) {
	m, id, dir := abandonedTask(t, "")
	m.abandoned = time.Hour
	refused := func(why string) {
		t.Helper()
		for range 2 {
			if err := m.reclaim(t.Context(), id); ctrmodel.KindOf(err) != ctrmodel.Unavailable {
				t.Errorf("%s: %v", why, err)
			}
		}
	}
	age := func() {
		s := m.forgotten[id]
		s.since = s.since.Add(-2 * m.abandoned)
		m.forgotten[id] = s
	}
	old := time.Now().Add(-24 * time.Hour)
	if err := os.Chtimes(dir, old, old); err != nil {
		t.Fatal(err)
	}
	refused("it has just been seen")
	age()
	for _, step := range []error{os.Rename(dir, dir+".old"), os.Mkdir(dir, 0o700)} {
		if step != nil {
			t.Fatal(step)
		}
	}
	refused("it is another one")
	age()
	m.remembered(id)
	refused("containerd has known the task meanwhile")
	age()
	if err := m.reclaim(t.Context(), id); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	if err := m.reclaim(t.Context(), id); err != nil || len(m.forgotten) > 0 {
		t.Errorf("nothing is left, but %v, %v", err, m.forgotten)
	}
}

func TestProcessesOfAContainer(t *testing.T) {
	t.Parallel()
	sys, proc := t.TempDir(), t.TempDir()
	put := func(file, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for group, procs := range map[string]string{
		"ns/a": "1\n2\n", "memory/ns/a": "3\n", "memory/ns/a/inner": "4\n0\n", "system.slice/ns-a.scope": "5\n",
		"pids/system.slice/ns-a.scope/x": "6\n", "ns/ab": "7\n", "memory/other/a": "8\n", "ns": "9\n", "system.slice/ns-a.scope2": "10\n",
		"unified/ns/a": "11\n12\n",
	} {
		put(filepath.Join(sys, group, "cgroup.procs"), procs)
	}
	for pid, group := range []string{1: "ns/a", 2: "ns/a", 3: "ns/a", 4: "ns/a/inner", 5: "system.slice/ns-a.scope", 6: "system.slice/ns-a.scope/x",
		7: "ns/ab", 8: "other/a", 9: "ns", 10: "system.slice/ns-a.scope2", 11: "other"} {
		if group != "" {
			put(filepath.Join(proc, fmt.Sprint(pid), "cgroup"), "4:memory:/"+group+"\n0::/\n")
		}
	}
	got := processesOf(proc, sys, "ns", "a")
	slices.Sort(got)
	if want := []int{1, 2, 3, 4, 5, 6}; !slices.Equal(got, want) {
		t.Errorf("processes %v, expected %v", got, want)
	}
}
