// SPDX-License-Identifier: Apache-2.0

package ocispec

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"sdvbox/platform/ctrmodel"
)

// Host is what this machine is able to do.
type Host struct {
	CgroupV2     bool
	Systemd      bool   // has the cgroups; the runtime has to be told so, too
	Swap         bool   // can be limited
	Pids         bool   // can be limited
	Seccomp      bool   // filters system calls
	Recursive    bool   // makes a mount read-only with all that is mounted in it
	Capabilities uint64 // that anybody can have here
}

const cgroups = "/sys/fs/cgroup"

// Probe looks at this machine.
func Probe() Host {
	var h Host
	var fs unix.Statfs_t
	h.CgroupV2 = unix.Statfs(cgroups, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
	h.Systemd = exists("/run/systemd/system")
	h.Seccomp = exists("/proc/sys/kernel/seccomp/actions_avail")
	h.Recursive = unix.MountSetattr(-1, "", 0, &unix.MountAttr{}) == nil // asks for nothing; Linux has it since 5.12
	if h.CgroupV2 {
		// The root has no such file, and a kernel without it is rare.
		groups, _ := filepath.Glob(cgroups + "/*/memory.current")
		limits, _ := filepath.Glob(cgroups + "/*/memory.swap.max")
		h.Swap = len(groups) == 0 || len(limits) > 0
		controllers, _ := os.ReadFile(cgroups + "/cgroup.controllers")
		for c := range bytes.FieldsSeq(controllers) {
			h.Pids = h.Pids || string(c) == "pids"
		}
	} else {
		h.Swap = exists(cgroups + "/memory/memory.memsw.limit_in_bytes")
		h.Pids = exists(cgroups + "/pids")
	}
	status, _ := os.ReadFile("/proc/1/status")
	for line := range bytes.Lines(status) {
		if mask, ok := bytes.CutPrefix(line, []byte("CapBnd:")); ok {
			h.Capabilities, _ = strconv.ParseUint(string(bytes.TrimSpace(mask)), 16, 64)
		}
	}
	return h
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (h Host) cgroup(namespace, id string) string {
	if h.Systemd {
		return "system.slice:" + namespace + ":" + id
	}
	return filepath.Join("/", namespace, id)
}

// Limits is what makes a container that runs keep other limits.
func Limits(r ctrmodel.Resources, h Host) (*specs.LinuxResources, error) { return limits(r, h, true) }

// limits says no limit only if there may have been one. Not every kernel has every limit.
func limits(r ctrmodel.Resources, h Host, live bool) (*specs.LinuxResources, error) {
	memory, reservation, swap, err := r.Limits()
	if err != nil {
		return nil, err
	}
	all := &specs.LinuxResources{}
	if r == (ctrmodel.Resources{}) && !live {
		return all, nil
	}
	all.Memory = &specs.LinuxMemory{}
	set := func(to **int64, limit int64) {
		if limit >= 0 || live {
			*to = &limit
		}
	}
	set(&all.Memory.Limit, memory)
	if set(&all.Memory.Reservation, reservation); h.CgroupV2 && reservation < 0 && live {
		// There it is what the container is sure of, and no limit would be all that there is.
		all.Memory.Reservation, all.Unified = nil, map[string]string{"memory.low": "0"}
	}
	if h.Swap {
		set(&all.Memory.Swap, swap)
		if memory >= 0 {
			all.Memory.Swap = &swap
		}
	}
	return all, nil
}
