// SPDX-License-Identifier: Apache-2.0

package ocispec

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"sdvbox/platform/ctrmodel"
)

// devices is the node that d is, or those in the directory that it is, also behind symbolic links.
func devices(d ctrmodel.Device) ([]specs.LinuxDevice, error) {
	real, err := filepath.EvalSymlinks(d.OnHost)
	if err != nil {
		return nil, ctrmodel.Errorf(ctrmodel.FailedPrecondition, "device %s: %w", d.OnHost, err)
	}
	var nodes []specs.LinuxDevice
	err = filepath.WalkDir(real, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if n, ok := device(path); ok {
			n.Path = filepath.Join("/", d.InContainer, path[len(real):])
			nodes = append(nodes, n)
		}
		return nil
	})
	if err != nil {
		return nil, ctrmodel.Errorf(ctrmodel.FailedPrecondition, "device %s: %w", d.OnHost, err)
	}
	if len(nodes) == 0 {
		return nil, ctrmodel.Errorf(ctrmodel.FailedPrecondition, "device %s: expected a device, or a directory with devices", d.OnHost)
	}
	return nodes, nil
}

// hostDevices is all that a container does not have of its own.
func hostDevices() ([]specs.LinuxDevice, error) {
	own := []string{"/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/console", "/dev/ptmx"}
	var nodes []specs.LinuxDevice
	err := filepath.WalkDir("/dev", func(path string, e fs.DirEntry, err error) error {
		switch {
		case slices.Contains(own, path) && (e == nil || e.IsDir()):
			return fs.SkipDir
		case err != nil && path == "/dev":
			return err
		case err != nil || slices.Contains(own, path) || e.Type()&fs.ModeDevice == 0: // or it was unplugged this moment
			return nil
		}
		if n, ok := device(path); ok {
			nodes = append(nodes, n)
		}
		return nil
	})
	return nodes, err
}

func device(path string) (specs.LinuxDevice, bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return specs.LinuxDevice{}, false
	}
	var kind string
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		kind = "b"
	case unix.S_IFCHR:
		kind = "c"
	default:
		return specs.LinuxDevice{}, false
	}
	number := uint64(st.Rdev)
	return specs.LinuxDevice{
		Path: path, Type: kind, Major: int64(unix.Major(number)), Minor: int64(unix.Minor(number)),
		FileMode: new(os.FileMode(st.Mode & 0o777)), UID: &st.Uid, GID: &st.Gid,
	}, true
}
