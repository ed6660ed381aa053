// SPDX-License-Identifier: Apache-2.0

package ocispec

import (
	_ "embed"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

//go:embed seccomp.txt
var syscalls string

// seccomp is the filter for a container with capabilities.
func seccomp(caps []string) *specs.LinuxSeccomp {
	allowed, denied := calls(caps)
	admin := slices.Contains(caps, "CAP_SYS_ADMIN")

	const eq, ne, masked = specs.OpEqualTo, specs.OpNotEqual, specs.OpMaskedEqual
	const allow, fail = specs.ActAllow, specs.ActErrno
	arg := func(op specs.LinuxSeccompOperator, value, mask uint64) []specs.LinuxSeccompArg {
		return []specs.LinuxSeccompArg{{Index: 0, Value: value, ValueTwo: mask, Op: op}}
	}
	rules := []specs.LinuxSyscall{
		{Names: allowed, Action: allow},
		{Names: denied, Action: fail, ErrnoRet: errno(syscall.EPERM)},
	}
	if admin {
		rules = append(rules, specs.LinuxSyscall{Names: []string{"clone", "socket"}, Action: allow})
	} else {
		// Processes, but no namespaces. The arguments of clone3 cannot be seen, so that it must look as if there was none.
		const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
			unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET
		rules = append(rules,
			specs.LinuxSyscall{Names: []string{"clone"}, Action: allow, Args: arg(masked, namespaces, 0)},
			// To the hypervisor, there are no namespaces.
			specs.LinuxSyscall{Names: []string{"socket"}, Action: allow, Args: arg(ne, unix.AF_VSOCK, 0)},
			specs.LinuxSyscall{Names: []string{"socket"}, Action: fail, ErrnoRet: errno(syscall.EPERM), Args: arg(eq, unix.AF_VSOCK, 0)})
	}
	const linux32, uname26, query = 0x8, 0x20000, 0xffffffff
	for _, persona := range []uint64{0, linux32, uname26, linux32 | uname26, query} {
		rules = append(rules, specs.LinuxSyscall{Names: []string{"personality"}, Action: allow, Args: arg(eq, persona, 0)})
	}
	return &specs.LinuxSeccomp{
		DefaultAction:   fail,
		DefaultErrnoRet: errno(syscall.ENOSYS),
		Architectures:   architectures(runtime.GOARCH),
		Syscalls:        rules,
	}
}

func errno(e syscall.Errno) *uint { return new(uint(e)) }

// calls reads the list.
func calls(caps []string) (allowed, denied []string) {
	group := ""
	for line := range strings.Lines(syscalls) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutSuffix(line, ":"); ok {
			group = name
			continue
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		if group == "allow" || slices.Contains(caps, group) {
			allowed = append(allowed, strings.Fields(line)...)
		} else {
			denied = append(denied, strings.Fields(line)...)
		}
	}
	// One of several capabilities may be enough.
	denied = slices.DeleteFunc(denied, func(name string) bool { return name == "clone3" || slices.Contains(allowed, name) })
	return compact(allowed), compact(denied)
}

func compact(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

// architectures are those of which a machine runs programs.
func architectures(goarch string) []specs.Arch {
	switch goarch {
	case "amd64":
		return []specs.Arch{specs.ArchX86_64, specs.ArchX86}
	case "386":
		return []specs.Arch{specs.ArchX86}
	case "arm64":
		return []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	case "arm":
		return []specs.Arch{specs.ArchARM}
	case "riscv64":
		return []specs.Arch{specs.ArchRISCV64}
	}
	return nil // the native one
}
