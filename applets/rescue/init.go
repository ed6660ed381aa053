// SPDX-License-Identifier: Apache-2.0

package rescue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/u-root/u-root/pkg/mount"
	"golang.org/x/sys/unix"

	"sdvbox/platform/applet"
)

// path is the search path of everything in the rescue system; the names of
// foreign boot tools are sdvbox's own.
const path = "/usr/lib/sdvbox/compat:/usr/sbin:/usr/bin:/sbin:/bin"

// runInit is process 1. It does only what needs to be process 1: the first
// mounts, collecting dead orphans, and the shutdown. All else is done by a
// child, which is started again if it should die, because the death of
// process 1 is a kernel panic.
func runInit(_ context.Context, c *applet.Call) error {
	if os.Getpid() != 1 {
		return errors.New("only the kernel starts this, as process 1 of the rescue system")
	}
	if err := mountKernel(); err != nil {
		fmt.Fprintln(c.Stderr, "init:", err)
	}
	// Ctrl-Alt-Del arrives as SIGINT instead of resetting at once.
	unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)
	// The signals of BusyBox's init: its reboot, halt and poweroff send them.
	sigs := make(chan os.Signal, 8)
	signal.Notify(sigs, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCHLD)
	child := 0
	restart := time.After(0)
	for {
		select {
		case <-restart:
			var err error
			if child, err = startSession(); err != nil {
				fmt.Fprintln(c.Stderr, "init: start the rescue session:", err)
				restart = time.After(pause)
			}
		case s := <-sigs:
			if s != unix.SIGCHLD {
				shutdown(c.Stderr, s)
				continue
			}
			if status, ok := reap()[child]; ok {
				fmt.Fprintf(c.Stderr, "init: the rescue session has ended (exit code %d, signal %v) and is started again\n", status.ExitStatus(), status.Signal())
				child = 0
				restart = time.After(pause)
			}
		}
	}
}

// pause keeps a session that dies at once from eating the processor.
const pause = time.Second

// startSession returns the process id of the child that runs the system.
func startSession() (int, error) {
	return syscall.ForkExec("/proc/self/exe", []string{"rescue", "session"}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=" + path, "HOME=/root", "TERM=vt102"},
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

// reap collects every dead child.
func reap() map[int]unix.WaitStatus {
	dead := map[int]unix.WaitStatus{}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return dead
		}
		dead[pid] = status
	}
}

// mountKernel mounts the kernel's own file systems.
func mountKernel() error {
	var errs []error
	for _, m := range []struct {
		dir, fs, data string
		flags         uintptr
	}{
		{"/proc", "proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"/sys", "sysfs", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"/dev", "devtmpfs", "mode=0755", unix.MS_NOSUID},
		{"/dev/pts", "devpts", "mode=0620,gid=5", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"/run", "tmpfs", "mode=0755,size=20%", unix.MS_NOSUID | unix.MS_NODEV},
		{"/tmp", "tmpfs", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
		{"/sys/firmware/efi/efivars", "efivarfs", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	} {
		if strings.HasPrefix(m.dir, "/sys/") {
			if _, err := os.Stat(m.dir); err != nil {
				continue // no EFI
			}
		}
		_, err := mount.Mount(m.fs, m.dir, m.fs, m.data, m.flags, func() error { return os.MkdirAll(m.dir, 0o755) })
		if err != nil && !errors.Is(err, unix.EBUSY) && m.fs != "efivarfs" {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// shutdown ends everything and leaves the rescue system. It returns only if
// the kernel refuses.
func shutdown(log io.Writer, s os.Signal) {
	cmd, what := unix.LINUX_REBOOT_CMD_RESTART, "restarting"
	switch s {
	case unix.SIGUSR1:
		cmd, what = unix.LINUX_REBOOT_CMD_HALT, "halting"
	case unix.SIGUSR2:
		cmd, what = unix.LINUX_REBOOT_CMD_POWER_OFF, "switching off"
	}
	fmt.Fprintln(log, "init:", what)
	unix.Kill(-1, unix.SIGTERM)
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		reap()
		if err := unix.Kill(-1, 0); err == unix.ESRCH {
			break
		}
	}
	unix.Kill(-1, unix.SIGKILL)
	for _, m := range slices.Backward(mounts()) {
		if strings.HasPrefix(m.device, "/dev/") && unix.Unmount(m.dir, 0) != nil {
			unix.Mount("", m.dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
	}
	unix.Sync()
	if err := unix.Reboot(cmd); err != nil {
		fmt.Fprintln(log, "init: reboot:", err)
	}
}
