// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/grpc"
)

// abandoned is the age of a directory of a task in which containerd does no more: it gives itself 5 s to clear up after a start
// that has been cut off (io.containerd.timeout.shim.cleanup).
const abandoned = 15 * time.Second

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

// reclaim clears away what is left of a task of which containerd does not know, and reports whether it did. Without it, the
// container could not start before containerd starts anew, or even the machine.
func (m *machine) reclaim(ctx context.Context, id, dir string) (bool, error) {
	if _, err := m.Client.Tasks.Get(ctx, id, ""); grpc.CodeOf(err) != grpc.NotFound {
		return false, model(err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return false, err
	}
	if filepath.Base(dir) != id {
		return false, fmt.Errorf("%s is not the directory of task %s", dir, id)
	}
	if age := time.Since(info.ModTime()); age.Abs() < abandoned { // whose clock is set may have files of the future
		return false, nil
	}
	m.Log.Warn("clearing away what containerd has left of a task", "id", id, "dir", dir)
	m.deleteShim(ctx, id, dir)
	if err := killIn(dir); err != nil {
		return false, err
	}
	hidden := filepath.Join(filepath.Dir(dir), "."+id) // as containerd calls one that it was deleting
	for _, dir := range []string{hidden, dir} {
		if err := unmountAll(filepath.Join(dir, "rootfs")); err != nil { // or its files went, too
			return false, err
		}
		if err := os.RemoveAll(dir); err != nil {
			return false, err
		}
	}
	return true, nil
}

// deleteShim asks the shim's program to clear away what its runtime has made, as containerd does with a shim that does not
// answer (command delete of containerd's runtime v2). If that fails, the runtime tells at the next start.
func (m *machine) deleteShim(ctx context.Context, id, dir string) {
	program := "containerd-shim-" + strings.ReplaceAll(strings.TrimPrefix(m.Runtime, "io.containerd."), ".", "-")
	if path, err := os.ReadFile(filepath.Join(dir, "shim-binary-path")); err == nil {
		program = string(path)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-namespace", m.Namespace, "-id", id, "-bundle", dir, "delete")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		m.Log.Warn("the shim could not clear up", "id", id, "error", err, "said", string(out))
	}
}

// killIn kills the processes that work in a directory: of a task, that is its shim.
func killIn(dir string) error {
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		return err
	}
	for _, link := range links {
		if cwd, err := os.Readlink(link); err != nil || cwd != dir {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill process %s in %s: %w", link, dir, err)
		}
	}
	return nil
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
