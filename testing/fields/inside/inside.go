// SPDX-License-Identifier: Apache-2.0

// Package inside is what a process finds out about the container that it is in.
package inside

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// View is what there is to be seen.
type View struct {
	Args, Env     []string
	Dir           string
	UID, GID      int
	Groups        []int
	Hostname      string
	Domain        string
	Files         map[string]string // the text of some
	Status        map[string]string // of /proc/self/status
	Mounts        map[string]string // options by mount point
	Devices       []string          // all below /dev
	Limits        map[string]string // of the control group
	Addresses     []string
	NetNS, UTSNS  string
	TTY           bool              // standard output is a terminal
	Calls         map[string]string // errors of system calls, empty for none
	HiddenEntries int               // in directories that are hidden
}

// Look looks around.
func Look() View {
	v := View{
		Args: os.Args, Env: os.Environ(), UID: os.Getuid(), GID: os.Getgid(), Domain: text("/proc/sys/kernel/domainname"), Files: map[string]string{},
		Status: map[string]string{}, Mounts: map[string]string{}, Limits: map[string]string{}, Calls: map[string]string{},
	}
	v.Dir, _ = os.Getwd()
	v.Groups, _ = os.Getgroups()
	v.Hostname, _ = os.Hostname()
	for _, name := range []string{"/etc/hosts", "/etc/resolv.conf", "/etc/hostname"} {
		v.Files[name] = text(name)
	}
	for line := range strings.Lines(text("/proc/self/status")) {
		key, value, _ := strings.Cut(line, ":")
		v.Status[key] = strings.TrimSpace(value)
	}
	for line := range strings.Lines(text("/proc/self/mountinfo")) {
		f := strings.Fields(line)
		v.Mounts[f[4]] = f[5]
	}
	filepath.WalkDir("/dev", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeDevice != 0 {
			v.Devices = append(v.Devices, path)
		}
		return nil
	})
	for _, pattern := range []string{"memory.*", "memory/memory.*", "pids.*", "pids/pids.*"} {
		files, _ := filepath.Glob("/sys/fs/cgroup/" + pattern)
		for _, f := range files {
			v.Limits[filepath.Base(f)] = text(f)
		}
	}
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		v.Addresses = append(v.Addresses, a.String())
	}
	v.NetNS, _ = os.Readlink("/proc/self/ns/net")
	v.UTSNS, _ = os.Readlink("/proc/self/ns/uts")
	_, err := unix.IoctlGetTermios(1, unix.TCGETS)
	v.TTY = err == nil
	for name, call := range calls {
		v.Calls[name] = Errno(call())
	}
	v.Calls["sysctl"] = Open("/proc/sys/kernel/msgmax", unix.O_WRONLY)
	for _, dir := range []string{"/sys/firmware", "/proc/acpi", "/proc/scsi"} {
		entries, _ := os.ReadDir(dir)
		v.HiddenEntries += len(entries)
	}
	return v
}

func text(path string) string {
	data, _ := os.ReadFile(path)
	return strings.TrimSpace(string(data))
}

// Open opens a file and returns the name of the error, empty for none.
func Open(path string, flags int) string {
	fd, err := unix.Open(path, flags|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err == nil {
		unix.Close(fd)
	}
	return Errno(err)
}

// Errno is the name of an error, empty for none.
func Errno(err error) string {
	if err == nil {
		return ""
	}
	if e, ok := err.(unix.Errno); ok && e != 0 {
		return unix.ErrnoName(e)
	} else if ok {
		return ""
	}
	return err.Error()
}

// calls do nothing that lasts if they are allowed. Of those with wrong arguments, the kernel looks at the permission first.
var calls = map[string]func() error{
	"mount": func() error {
		if err := unix.Mount("none", "/tmp", "tmpfs", 0, ""); err != nil {
			return err
		}
		return unix.Unmount("/tmp", 0)
	},
	"unshare": func() error {
		failed := make(chan error)
		go func() { // in a thread of its own, which ends with it
			runtime.LockOSThread()
			failed <- unix.Unshare(unix.CLONE_NEWUTS)
		}()
		return <-failed
	},
	"kexec_load":     raw(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0xffff),
	"ptrace":         raw(unix.SYS_PTRACE, unix.PTRACE_SEIZE, 1<<22+1), // no such process
	"bpf":            raw(unix.SYS_BPF, 9999, 0, 0),
	"keyctl":         raw(unix.SYS_KEYCTL, 9999),
	"io_uring_setup": raw(unix.SYS_IO_URING_SETUP, 0, 0),
	"reboot":         raw(unix.SYS_REBOOT, 0, 0, 0),
	"settimeofday":   raw(unix.SYS_SETTIMEOFDAY, 0, 0),
	"setns":          raw(unix.SYS_SETNS, ^uintptr(0), 0),
	"clone3":         raw(unix.SYS_CLONE3, 0, 0),
	"tomorrow":       raw(9999), // a call that is yet to be invented
	"chroot":         func() error { return unix.Chroot("/") },
	"vsock":          socket(unix.AF_VSOCK, unix.SOCK_STREAM, nil),
	"packet":         socket(unix.AF_PACKET, unix.SOCK_RAW, nil),
	"net_admin":      socket(unix.AF_INET, unix.SOCK_DGRAM, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<16) }),
	"nice":           func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -5) },
}

func raw(number uintptr, args ...uintptr) func() error {
	return func() error {
		var a [4]uintptr
		copy(a[:], args)
		_, _, e := unix.Syscall6(number, a[0], a[1], a[2], a[3], 0, 0)
		return e
	}
}

func socket(domain, kind int, use func(fd int) error) func() error {
	return func() error {
		fd, err := unix.Socket(domain, kind, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if use != nil {
			return use(fd)
		}
		return nil
	}
}
