// SPDX-License-Identifier: Apache-2.0

package ocispec

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"sdvbox/platform/ctrmodel"
)

// Process returns the specification of another process in a container of the given one. Rootfs is as in Options, needed if
// NeedsRootfs(o.User); /proc/PID/root of the container's process will do.
func Process(s *specs.Spec, o ctrmodel.ExecOptions, h Host, rootfs string) (*specs.Process, error) {
	if len(o.Args) == 0 {
		return nil, ctrmodel.Errorf(ctrmodel.InvalidArgument, "nothing to execute")
	}
	p := *s.Process
	p.Args, p.Terminal, p.ConsoleSize = o.Args, o.TTY, nil
	var own []string
	if o.TTY {
		own = []string{"TERM=xterm"}
	}
	p.Env = ctrmodel.Environment(p.Env, own, o.Env)
	if o.Dir != "" {
		p.Cwd = filepath.Join("/", o.Dir)
	}
	if o.User != "" {
		var err error
		if p.User, err = lookUpUser(o.User, rootfs); err != nil {
			return nil, err
		}
	}
	if o.Privileged {
		p.NoNewPrivileges = false
		p.Capabilities = sets(h.all(), nil)
	}
	return &p, nil
}

// The usual capabilities: what a root in a file system and network of its own needs.
var defaultCapabilities = strings.Fields(`CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE
	SYS_CHROOT KILL AUDIT_WRITE`)

// has reports whether there can be a capability here.
func (h Host) has(name string) bool {
	i := slices.Index(ctrmodel.Capabilities, name)
	return i >= 0 && h.Capabilities>>i&1 == 1
}

func (h Host) all() []string { return h.some(ctrmodel.Capabilities) }

func (h Host) some(names []string) []string {
	var list []string
	for _, name := range names {
		if h.has(name) {
			list = append(list, "CAP_"+name)
		}
	}
	return list
}

// capabilities are the usual ones and the extra ones, of which a user other than root would get none if they were not ambient.
func capabilities(c *ctrmodel.HostConfig, uid uint32, h Host) (*specs.LinuxCapabilities, error) {
	if c.Privileged {
		return sets(h.all(), nil), nil
	}
	list, ambient := h.some(defaultCapabilities), []string(nil)
	for i, extra := range c.ExtraCapabilities {
		name, err := ctrmodel.ParseCapability(extra)
		if err != nil {
			return nil, fmt.Errorf("extra_capabilities[%d]: %w", i, err)
		}
		if name == ctrmodel.AllCapabilities {
			list = h.all()
			continue
		}
		if !h.has(name) {
			return nil, ctrmodel.Errorf(ctrmodel.FailedPrecondition, "extra_capabilities[%d]: nobody on this host can have %s", i, extra)
		}
		list = append(list, "CAP_"+name)
		if uid != 0 {
			ambient = append(ambient, "CAP_"+name)
		}
	}
	return sets(compact(list), compact(ambient)), nil
}

func sets(list, ambient []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: list, Effective: list, Permitted: list, Inheritable: ambient, Ambient: ambient}
}

// NeedsRootfs reports whether a user, as images name it, has to be looked up in the files of the root file system.
func NeedsRootfs(user string) bool {
	name, group, hasGroup := strings.Cut(user, ":")
	_, isUID := number(name)
	_, isGID := number(group)
	return user != "" && !(isUID && hasGroup && isGID)
}

func number(text string) (uint32, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil && n < math.MaxUint32 // that one is nobody at all
}

// lookUpUser is what USER[:GROUP] means, each a name or a number, with the files in rootfs. Without a group, it is all the groups
// of the user.
func lookUpUser(text, rootfs string) (specs.User, error) {
	u, err := lookUp(text, rootfs)
	// As login does. Files may be closed to a group, even if they are open to all others.
	u.AdditionalGids = slices.Insert(u.AdditionalGids, 0, u.GID)
	return u, err
}

func lookUp(text, rootfs string) (specs.User, error) {
	var u specs.User
	if text == "" {
		return u, nil
	}
	name, group, hasGroup := strings.Cut(text, ":")
	isUID, isGID := false, false
	u.UID, isUID = number(name)
	u.GID, isGID = number(group)
	if isUID && isGID {
		return u, nil
	}
	users, err := table(rootfs, "etc/passwd", 4)
	if err != nil {
		return u, err
	}
	i := slices.IndexFunc(users, func(f []string) bool { return f[0] == name })
	if i < 0 && isUID {
		i = slices.IndexFunc(users, func(f []string) bool { return f[2] == name })
	}
	switch {
	case i >= 0:
		uid, ok := number(users[i][2])
		gid, ok2 := number(users[i][3])
		if !ok || !ok2 {
			return u, unknown("user", name, "passwd")
		}
		name, u.UID = users[i][0], uid
		if !hasGroup {
			u.GID = gid
		}
	case !isUID:
		return u, unknown("user", name, "passwd")
	}
	if isGID {
		return u, nil
	}
	groups, err := table(rootfs, "etc/group", 3)
	if err != nil {
		return u, err
	}
	for _, f := range groups {
		gid, ok := number(f[2])
		switch {
		case !ok:
		case hasGroup && f[0] == group:
			u.GID = gid
			return u, nil
		case !hasGroup && len(f) > 3 && gid != u.GID && slices.Contains(strings.Split(f[3], ","), name):
			u.AdditionalGids = append(u.AdditionalGids, gid)
		}
	}
	if hasGroup {
		return u, unknown("group", group, "group")
	}
	return u, nil
}

func unknown(what, name, file string) error {
	return ctrmodel.Errorf(ctrmodel.InvalidArgument, "%s %q is not in /etc/%s of the image", what, name, file)
}

// table reads the lines of a file with at least so many fields. Images may lack it.
func table(rootfs, name string, fields int) ([][]string, error) {
	text, err := readIn(rootfs, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, ctrmodel.Errorf(ctrmodel.FailedPrecondition, "look up the user in the image: %w", err)
	}
	var lines [][]string
	for line := range strings.Lines(text) {
		if f := strings.Split(strings.TrimSpace(line), ":"); len(f) >= fields && f[0] != "" {
			lines = append(lines, f)
		}
	}
	return lines, nil
}

// readIn reads a file as who has dir as root sees it. Whoever made the image must not get us out of it, or make us wait.
func readIn(dir, name string) (string, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: "/" + name, Err: err}
	}
	f := os.NewFile(uintptr(fd), "/"+name)
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return "", errors.Join(err, errors.New("/"+name+" is no file"))
	}
	text, err := io.ReadAll(io.LimitReader(f, 1<<20))
	return string(text), err
}
