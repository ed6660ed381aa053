// SPDX-License-Identifier: Apache-2.0

// Package ocispec writes down a container as the runtimes of the Open Container Initiative, like runc and crun, want it.
//
// A container that is not privileged gets few capabilities and system calls, and cannot get more: see seccomp.txt.
package ocispec

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"sdvbox/platform/ctrmodel"
)

// Options is what does not follow from a container and its image.
type Options struct {
	Namespace string // of containerd; names the parent of the cgroup
	NetNS     string // path of the network namespace behind the bridge; a container without a network gets one from the runtime
	Rootfs    string // directory that shows the root file system, only if NeedsRootfs
	Host      Host
}

const (
	version = "1.1.0" // of the runtime specification; enough for all of it, and older than the runtimes

	maxFiles  = 1024   // that a process can have open, as select wants it
	moreFiles = 524288 // that it can ask for
	maxPids   = 8192   // no fork bomb stops the vehicle

	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Build returns the specification of a container, which has its defaults and is valid. That a device or a file to mount is not
// there is a FailedPrecondition.
func Build(c *ctrmodel.Container, img v1.ImageConfig, o Options) (*specs.Spec, error) {
	h := &c.HostConfig
	user, err := lookUpUser(img.User, o.Rootfs)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(h, user.UID, o.Host)
	if err != nil {
		return nil, err
	}
	args := slices.Concat(img.Entrypoint, img.Cmd)
	if len(c.Config.Cmd) > 0 {
		args = slices.Concat(img.Entrypoint, c.Config.Cmd)
	}
	if len(args) == 0 {
		return nil, ctrmodel.Errorf(ctrmodel.InvalidArgument, "image %s does not say what to run: config.cmd is missing", c.Image.Name)
	}
	mounts, propagation, err := mounts(c, o.Host)
	if err != nil {
		return nil, err
	}
	hooks, err := hooks(c.Hooks)
	if err != nil {
		return nil, err
	}
	resources, err := limits(h.Resources, o.Host, false)
	if err != nil {
		return nil, err
	}
	own := []string{"HOSTNAME=" + c.HostName}
	if c.IOConfig.TTY {
		own = append(own, "TERM=xterm")
	}
	s := &specs.Spec{
		Version: version,
		Process: &specs.Process{
			Terminal:        c.IOConfig.TTY,
			User:            user,
			Args:            args,
			Env:             ctrmodel.Environment([]string{defaultPath}, img.Env, own, c.Config.Env),
			Cwd:             filepath.Join("/", img.WorkingDir),
			Capabilities:    caps,
			Rlimits:         rlimits(),
			NoNewPrivileges: !h.Privileged,
		},
		Root:     &specs.Root{Path: "rootfs"}, // where containerd puts it
		Hostname: c.HostName,
		Mounts:   mounts,
		Hooks:    hooks,
		Linux: &specs.Linux{
			// There is a field for this, but old runtimes do not read it.
			Sysctl:            map[string]string{"kernel.domainname": c.DomainName},
			Resources:         resources,
			CgroupsPath:       o.Host.cgroup(o.Namespace, c.ID),
			Namespaces:        namespaces(h.NetworkMode, o.NetNS),
			RootfsPropagation: propagation,
		},
	}
	l := s.Linux
	if h.Privileged {
		l.Devices, err = hostDevices()
		resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		return s, err
	}
	l.MaskedPaths, l.ReadonlyPaths = maskedPaths, readonlyPaths
	if o.Host.Seccomp {
		l.Seccomp = seccomp(caps.Bounding)
	}
	if o.Host.Pids {
		resources.Pids = &specs.LinuxPids{Limit: new(int64(maxPids))}
	}
	resources.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}} // runtimes add /dev/null and the like
	for _, d := range h.Devices {
		nodes, err := devices(d)
		if err != nil {
			return nil, err
		}
		for _, n := range nodes {
			l.Devices = append(l.Devices, n)
			resources.Devices = append(resources.Devices, specs.LinuxDeviceCgroup{
				Allow: true, Type: n.Type, Major: &n.Major, Minor: &n.Minor, Access: d.Permissions,
			})
		}
	}
	return s, nil
}

func namespaces(mode, netNS string) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
		{Type: specs.CgroupNamespace},
	}
	switch mode {
	case ctrmodel.BridgeNetwork:
		list = append(list, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: netNS})
	case ctrmodel.NoNetwork:
		list = append(list, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	return list
}

// rlimits are what systemd gives to services. A hard limit above our own takes a capability that perhaps nobody has.
func rlimits() []specs.POSIXRlimit {
	soft, hard := uint64(maxFiles), uint64(moreFiles)
	var own syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &own) == nil {
		hard = min(hard, own.Max)
	}
	return []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: min(soft, hard), Hard: hard}}
}

func hooks(list []ctrmodel.Hook) (*specs.Hooks, error) {
	if len(list) == 0 {
		return nil, nil
	}
	var hooks specs.Hooks
	for i, h := range list {
		hook := specs.Hook{Path: h.Path, Args: h.Args, Env: h.Env}
		if h.Timeout > 0 {
			hook.Timeout = &h.Timeout
		}
		switch h.Type {
		case ctrmodel.Prestart:
			hooks.Prestart = append(hooks.Prestart, hook)
		case ctrmodel.Poststart:
			hooks.Poststart = append(hooks.Poststart, hook)
		case ctrmodel.Poststop:
			hooks.Poststop = append(hooks.Poststop, hook)
		default:
			return nil, ctrmodel.Errorf(ctrmodel.InvalidArgument, "hooks[%d]: type %d: expected 0 (prestart), 1 (poststart) or 2 (poststop)", i, h.Type)
		}
	}
	return &hooks, nil
}

// What of /proc and /sys tells too much of the host, or changes it.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// mounts are the usual ones, those of the container, and the files of its network. What comes later hides what was there.
func mounts(c *ctrmodel.Container, host Host) (list []specs.Mount, propagation string, err error) {
	access := "ro"
	if c.HostConfig.Privileged {
		access = "rw"
	}
	list = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
	}
	own := []ctrmodel.Mount{}
	for _, f := range []struct{ source, destination string }{
		{c.ResolvConfPath, "/etc/resolv.conf"}, {c.HostnamePath, "/etc/hostname"}, {c.HostsPath, "/etc/hosts"},
	} {
		if f.source != "" {
			own = append(own, ctrmodel.Mount{Source: f.source, Destination: f.destination, Propagation: "rprivate"})
		}
	}
	own = append(own, c.Mounts...)
	// A directory has to be mounted before what is mounted in it.
	slices.SortStableFunc(own, func(a, b ctrmodel.Mount) int { return cmp.Compare(depth(a.Destination), depth(b.Destination)) })
	for _, m := range own {
		bound, err := bind(m)
		if err != nil {
			return nil, "", err
		}
		if m.ReadOnly && host.Recursive && isRunc(c.HostConfig.Runtime) && hasPlaces(m, own) {
			bound.Options = append(bound.Options, "rro")
		}
		list = slices.DeleteFunc(list, func(other specs.Mount) bool { return other.Destination == bound.Destination })
		list = append(list, bound)
		// What is to be passed on has to get into the container's mount namespace in the first place.
		switch shared := strings.HasSuffix(m.Propagation, "shared"); {
		case shared:
			propagation = "rshared"
		case strings.HasSuffix(m.Propagation, "slave") && propagation == "":
			propagation = "rslave"
		}
	}
	return list, propagation, nil
}

// isRunc reports whether a runtime knows the option rro, as runc does since 1.1 and crun since 1.4, or takes no offence at it, as
// those before do. Others refuse what they do not know.
func isRunc(runtime string) bool {
	return strings.HasPrefix(runtime, "io.containerd.runc.") || runtime == "io.containerd.runtime.v1.linux"
}

// hasPlaces reports whether what a mount shows has a place for each mount in it. Else crun makes one, unless the option rro keeps it
// from that, and the container from starting. A mount that is in another one in there has its place in that.
func hasPlaces(m ctrmodel.Mount, all []ctrmodel.Mount) bool {
	for _, in := range all {
		place, ok := within(m, in)
		covered := slices.ContainsFunc(all, func(between ctrmodel.Mount) bool {
			_, inside := within(m, between)
			_, around := within(between, in)
			return inside && around
		})
		if ok && !covered && !exists(filepath.Join(m.Source, place)) {
			return false
		}
	}
	return true
}

// within is where in a mount the place of another one is.
func within(m, in ctrmodel.Mount) (place string, ok bool) {
	place, err := filepath.Rel(filepath.Join("/", m.Destination), filepath.Join("/", in.Destination))
	return place, err == nil && place != "." && filepath.IsLocal(place)
}

func depth(path string) int { return strings.Count(filepath.Join("/", path), "/") }

func bind(m ctrmodel.Mount) (specs.Mount, error) {
	if _, err := os.Stat(m.Source); err != nil {
		return specs.Mount{}, ctrmodel.Errorf(ctrmodel.FailedPrecondition, "mount %s: %w", m.Source, err)
	}
	options := []string{"rbind", m.Propagation}
	if m.ReadOnly {
		options = append(options, "ro")
	}
	return specs.Mount{Destination: filepath.Join("/", m.Destination), Type: "bind", Source: m.Source, Options: options}, nil
}
