// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/ctrmodel"
)

// abandoned is how long what containerd has forgotten is left alone: containerd gives itself 5 s to clear up after a start that
// has been cut off (io.containerd.timeout.shim.cleanup).
const abandoned = 15 * time.Second

// sighting is what there was of a task that containerd does not know, and since when. No clock that can be set tells how old it is.
type sighting struct {
	dir   fs.FileInfo // nil: only processes
	since time.Time
}

// leftover returns the directory of a task that stands in the way of another task of the container, empty if err is about
// something else. There may be one that containerd has forgotten: because it has been killed while it deleted the task, or the
// machine was too slow for its clearing up.
func leftover(err error) (dir string) {
	if err == nil {
		return ""
	}
	// As version 2 says it; before, there is more in front of it.
	re := regexp.MustCompile(`mkdir (/[^:]+/io\.containerd\.runtime\.v2\.task/[^/:]+/[^/:]+): file exists`)
	if m := re.FindStringSubmatch(err.Error()); m != nil {
		return m[1]
	}
	return ""
}

// taskDir is where containerd has the directory of a task. It does not tell, so it is the usual one until another one is seen.
func (m *machine) taskDir(id string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return filepath.Join(cmp.Or(m.tasks, "/run/containerd/io.containerd.runtime.v2.task/"+m.Namespace), id)
}

// learn takes note of the directory of a task.
func (m *machine) learn(dir string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tasks = filepath.Dir(dir)
}

// due takes note of what is left of a task, and reports whether it has been so for long enough.
func (m *machine) due(id string, dir fs.FileInfo) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.forgotten[id]
	if !ok || (s.dir == nil) != (dir == nil) || dir != nil && !os.SameFile(s.dir, dir) {
		s = sighting{dir, time.Now()}
		m.forgotten[id] = s
	}
	return time.Since(s.since) >= m.abandoned
}

func (m *machine) processes(id string) []int {
	return processesOf("/proc", "/sys/fs/cgroup", m.Namespace, id)
}

// remembered is for a task that containerd knows, or of which nothing is left.
func (m *machine) remembered(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.forgotten, id)
}

// reclaim clears away what is left of a task that containerd does not know, processes included. Without it, they would go on
// although their container is said to have none, and it could not start before containerd starts anew, or even the machine. As
// long as containerd may be busy with it, that is an error of kind Unavailable.
func (m *machine) reclaim(ctx context.Context, id string) error {
	dir := m.taskDir(id)
	info, err := os.Stat(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if info == nil && len(m.processes(id)) == 0 {
		m.remembered(id)
		return nil
	}
	if !m.due(id, info) {
		return ctrmodel.Errorf(ctrmodel.Unavailable, "containerd does not know the task of container %s any more, and has not cleared it away yet", id)
	}
	ctx, cancel := whole(ctx)
	defer cancel()
	err = m.clear(ctx, id, dir)
	m.remembered(id) // if that has failed, it is tried again, but not at once
	if err != nil {
		m.due(id, info)
		return ctrmodel.Errorf(ctrmodel.Unavailable, "what containerd has left of the task of container %s: %w", id, err)
	}
	return nil
}

// clear is reclaim, when it is time.
func (m *machine) clear(ctx context.Context, id, dir string) error {
	program := "containerd-shim-" + strings.ReplaceAll(strings.TrimPrefix(m.Runtime, "io.containerd."), ".", "-")
	shims := shimsOf(m.Namespace, id, dir)
	if len(shims) > 0 {
		program = shims[0].program
		if own := strings.TrimSuffix(shims[0].dir, " (deleted)"); filepath.Base(own) == id {
			if _, err := os.Stat(dir); err != nil {
				dir = own
				m.learn(dir)
			}
		}
	}
	m.Log.Warn("clearing away what containerd has left of a task", "id", id, "dir", dir)
	// Shims first: one that is still at making the container would make it after that.
	err := killAll(func() (pids []int) {
		for _, s := range shimsOf(m.Namespace, id, dir) {
			pids = append(pids, s.pid)
		}
		return pids
	})
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) { // the program needs it, and what it reads there
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "runtime"), []byte(m.Runc), 0o600); err != nil {
			return err
		}
	}
	m.deleteShim(ctx, id, dir, program)
	if err := killAll(func() []int { return m.processes(id) }); err != nil {
		return err
	}
	hidden := filepath.Join(filepath.Dir(dir), "."+id) // as containerd calls one that it was deleting
	for _, dir := range []string{hidden, dir} {
		if err := unmountAll(filepath.Join(dir, "rootfs")); err != nil { // or its files went, too
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// deleteShim asks the shim's program to clear away what its runtime has made, as containerd does with a shim that does not
// answer (command delete of containerd's runtime v2). If that fails, the runtime tells at the next start.
func (m *machine) deleteShim(ctx context.Context, id, dir, program string) {
	if path, err := os.ReadFile(filepath.Join(dir, "shim-binary-path")); err == nil {
		program = string(path)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-namespace", m.Namespace, "-id", id, "-bundle", dir, "delete")
	cmd.Dir = dir
	cmd.WaitDelay = time.Second // for what it has started, which may hold its output open
	if out, err := cmd.CombinedOutput(); err != nil {
		m.Log.Warn("the shim could not clear up", "id", id, "error", err, "said", string(out))
	}
}

// shim is a process that stands between containerd and a container.
type shim struct {
	pid          int
	program, dir string
}

// shimsOf finds the shims of a container: they have its id among their arguments, and work in the directory of its task, if
// that is still there. A shim's program that is clearing up, for containerd perhaps, is none.
func shimsOf(namespace, id, dir string) (shims []shim) {
	info, _ := os.Stat(dir)
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		text, _ := os.ReadFile(file) // it may have ended
		args := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
		if !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim-") || args[len(args)-1] == "delete" ||
			flagOf(args, "-namespace") != namespace || flagOf(args, "-id") != id {
			continue
		}
		proc := filepath.Dir(file)
		// What containerd calls a directory may lead there by links.
		if cwd, err := os.Stat(filepath.Join(proc, "cwd")); err != nil || info != nil && !os.SameFile(info, cwd) {
			continue
		}
		s := shim{program: args[0]}
		s.pid, _ = strconv.Atoi(filepath.Base(proc))
		s.dir, _ = os.Readlink(filepath.Join(proc, "cwd"))
		shims = append(shims, s)
	}
	return shims
}

func flagOf(args []string, name string) string {
	for i, arg := range args[:len(args)-1] {
		if arg == name {
			return args[i+1]
		}
	}
	return ""
}

// killAll kills the processes that find finds, until it finds none.
func killAll(find func() []int) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		pids := find()
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("processes %v have been killed, but do not end", pids)
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
	}
}

// unmountAll removes all mounts from a directory, which need not be there.
func unmountAll(dir string) error {
	for {
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return &os.PathError{Op: "unmount", Path: dir, Err: err}
		}
	}
}
