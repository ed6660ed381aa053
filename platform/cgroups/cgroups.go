// SPDX-License-Identifier: Apache-2.0

// Package cgroups tells what the processes of a container use, from the kernel's control groups, version 1 or 2. To read the files
// takes a tenth of what it takes to ask containerd, which has a process for each container do it.
package cgroups

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what a control group uses. What the kernel does not tell is 0.
type Usage struct {
	CPU          time.Duration // of all processors, since the group was made
	Memory       uint64        // bytes, with the page cache
	MemoryMax    uint64        // larger than the machine, or 0: no limit
	InactiveFile uint64        // part of the page cache that is free for the asking
	ReadBytes    uint64        // from block devices
	WriteBytes   uint64
	PIDs         uint64
}

// Host is where the kernel's files are; the zero value is where they usually are.
type Host struct{ Proc, Sys string }

// Usage returns what a container uses, given one of its processes and its id. Groups that it may have made within its own are
// part of it.
func (h Host) Usage(pid int64, id string) (Usage, error) {
	if h.Proc == "" {
		h.Proc = "/proc"
	}
	if h.Sys == "" {
		h.Sys = "/sys/fs/cgroup"
	}
	var r reader
	text, err := r.file(path.Join(h.Proc, strconv.FormatInt(pid, 10), "cgroup"))
	if err != nil {
		return Usage{}, fmt.Errorf("control group: %w", err)
	}
	groups, err := parseGroups(text, id)
	if err != nil {
		return Usage{}, err
	}
	var u Usage
	if cpu, ok := groups["cpuacct"]; ok {
		u, err = r.version1(h.Sys, cpu, groups)
	} else if all, ok := groups[""]; ok {
		u, err = r.version2(path.Join(h.Sys, all))
	} else {
		err = fmt.Errorf("process %d is not one of %s", pid, id)
	}
	if err != nil {
		return Usage{}, fmt.Errorf("control group: %w", err)
	}
	return u, nil
}

// parseGroups reads /proc/PID/cgroup: the group of a container by controller, where "" is that of version 2. Groups without the id
// are left out, and one that the container has made within its own counts as the one around it.
func parseGroups(text []byte, id string) (map[string]string, error) {
	groups := map[string]string{}
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "/") || strings.Contains(parts[2], "/..") {
			return nil, fmt.Errorf("control group %.100q: expected NUMBER:CONTROLLERS:PATH below this one", line)
		}
		group := groupOf(parts[2], id)
		if group == "" {
			continue // of a process that is not the container's, or a controller that is not used
		}
		for controller := range strings.SplitSeq(parts[1], ",") {
			groups[controller] = group
		}
	}
	return groups, nil
}

// groupOf is the part of a path up to the group of the container, which is called ID, or PREFIX-ID.scope by systemd. It is "" if
// the path leads elsewhere.
func groupOf(path, id string) string {
	for end := range len(path) + 1 {
		if end < len(path) && path[end] != '/' {
			continue
		}
		name := path[strings.LastIndexByte(path[:end], '/')+1 : end]
		if name != "" && (name == id || strings.HasSuffix(name, "-"+id+".scope")) {
			return path[:end]
		}
	}
	return ""
}

func (r *reader) version1(sys, cpu string, groups map[string]string) (u Usage, err error) {
	nanoseconds, err := r.number(path.Join(sys, "cpuacct", cpu, "cpuacct.usage"))
	if err != nil {
		return u, err
	}
	u.CPU = time.Duration(nanoseconds)
	file := func(controller, name string) string {
		group, ok := groups[controller]
		if !ok {
			return "" // which is not there, rather than that of all the machine
		}
		return path.Join(sys, controller, group, controller+"."+name)
	}
	err = errors.Join(
		r.optional(&u.Memory, file("memory", "usage_in_bytes")),
		r.optional(&u.MemoryMax, file("memory", "limit_in_bytes")),
		r.optional(&u.PIDs, file("pids", "current")),
		r.lines(file("memory", "stat"), func(f [][]byte) {
			if len(f) == 2 && string(f[0]) == "total_inactive_file" {
				u.InactiveFile = number(f[1])
			}
		}),
		r.lines(file("blkio", "throttle.io_service_bytes_recursive"), func(f [][]byte) { // DEVICE OPERATION BYTES
			switch {
			case len(f) != 3:
			case string(f[1]) == "Read":
				u.ReadBytes += number(f[2])
			case string(f[1]) == "Write":
				u.WriteBytes += number(f[2])
			}
		}))
	return u, err
}

func (r *reader) version2(dir string) (u Usage, err error) {
	known := false
	err = errors.Join(
		r.lines(path.Join(dir, "cpu.stat"), func(f [][]byte) {
			if len(f) == 2 && string(f[0]) == "usage_usec" {
				u.CPU, known = time.Duration(number(f[1]))*time.Microsecond, true
			}
		}),
		r.optional(&u.Memory, path.Join(dir, "memory.current")),
		r.optional(&u.MemoryMax, path.Join(dir, "memory.max")),
		r.optional(&u.PIDs, path.Join(dir, "pids.current")),
		r.lines(path.Join(dir, "memory.stat"), func(f [][]byte) {
			if len(f) == 2 && string(f[0]) == "inactive_file" {
				u.InactiveFile = number(f[1])
			}
		}),
		r.lines(path.Join(dir, "io.stat"), func(f [][]byte) { // DEVICE KEY=VALUE…
			for _, field := range f {
				switch key, value, _ := bytes.Cut(field, []byte("=")); string(key) {
				case "rbytes":
					u.ReadBytes += number(value)
				case "wbytes":
					u.WriteBytes += number(value)
				}
			}
		}))
	if err == nil && !known {
		err = fmt.Errorf("%s: no processor time", dir)
	}
	return u, err
}

// reader reads small files one after the other, without the cost of os.ReadFile.
type reader struct {
	buf  [16 << 10]byte // more than any of the files has
	list [32][]byte
}

// file returns the content of a file, until the next call.
func (r *reader) file(name string) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	for n := 0; n < len(r.buf); {
		m, err := unix.Read(fd, r.buf[n:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: name, Err: err}
		case m == 0:
			return r.buf[:n], nil
		default:
			n += m
		}
	}
	return nil, &fs.PathError{Op: "read", Path: name, Err: unix.EFBIG}
}

// lines calls f with the words of each line of a file, up to 32. A file that is not there has none: not all kernels have all
// controllers.
func (r *reader) lines(name string, f func(fields [][]byte)) error {
	text, err := r.file(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for line := range bytes.Lines(text) {
		fields := r.list[:0]
		for field := range bytes.FieldsSeq(line) {
			if len(fields) < cap(fields) {
				fields = append(fields, field)
			}
		}
		f(fields)
	}
	return err
}

func (r *reader) number(name string) (uint64, error) {
	text, err := r.file(name)
	return number(bytes.TrimSpace(text)), err
}

func (r *reader) optional(into *uint64, name string) error {
	n, err := r.number(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	*into = n
	return err
}

// number is 0 for what is none, such as "max".
func number(text []byte) uint64 {
	n, _ := strconv.ParseUint(string(text), 10, 64)
	return n
}
