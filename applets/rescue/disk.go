// SPDX-License-Identifier: Apache-2.0

package rescue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/u-root/u-root/pkg/mount"
	"golang.org/x/sys/unix"

	"sdvbox/platform/osrelease"
	"sdvbox/platform/slots"
)

// A block is one disk or partition.
type block struct {
	name  string // as in /dev
	disk  string // the disk it is on; its own name for a whole disk
	label string // GPT partition label
}

func (b block) device() string { return "/dev/" + b.name }

// blocks lists the disks and partitions that the kernel has found, from
// /sys/class/block, sorted by name.
func blocks(dir string) ([]block, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var list []block
	for _, e := range entries {
		uevent, err := os.ReadFile(filepath.Join(dir, e.Name(), "uevent"))
		if err != nil {
			continue // unplugged meanwhile
		}
		b := block{name: e.Name(), disk: e.Name()}
		for line := range strings.Lines(string(uevent)) {
			switch key, value, _ := strings.Cut(strings.TrimSpace(line), "="); {
			case key == "PARTNAME" && !strings.Contains(value, "/"):
				b.label = value
			case key == "DEVTYPE" && value == "partition":
				// The entry is a link to .../DISK/PARTITION.
				real, err := filepath.EvalSymlinks(filepath.Join(dir, e.Name()))
				if err != nil {
					return nil, err
				}
				b.disk = filepath.Base(filepath.Dir(real))
			}
		}
		list = append(list, b)
	}
	return list, nil
}

const (
	sysBlock = "/sys/class/block"
	byLabel  = "/dev/disk/by-partlabel"
)

// labels are the partitions that the vehicle's disk has.
func labels() []string {
	list := []string{grubenvVolume().label, dataVolume().label}
	for _, name := range slots.Names {
		list = append(list, filepath.Base(device(name)))
	}
	return list
}

// vehicleDisk returns the disk with the most of the vehicle's partitions, and
// whether it has all of them. A disk that is already in use stays the one.
// Among equals the first wins; "" is none.
func vehicleDisk(list []block, used string) (disk string, whole bool) {
	found := map[string]map[string]bool{}
	for _, b := range list {
		if slices.Contains(labels(), b.label) {
			if found[b.disk] == nil {
				found[b.disk] = map[string]bool{}
			}
			found[b.disk][b.label] = true
		}
	}
	disk = used
	if len(found[used]) == 0 {
		disk = ""
		for _, b := range list {
			if len(found[b.disk]) > len(found[disk]) {
				disk = b.disk
			}
		}
	}
	return disk, len(found[disk]) == len(labels())
}

// linkLabels makes the links that RAUC's configuration and the mounts name;
// there is no udev here. All of them lead to one disk, in dir: another one
// with the same names must not lend its partitions. Only when told so it makes
// do with a disk that lacks some.
func linkLabels(list []block, dir string, partial bool) error {
	var used string
	for _, b := range list {
		if to, err := os.Readlink(filepath.Join(dir, b.label)); b.label != "" && err == nil && filepath.Base(to) == b.name {
			used = b.disk
		}
	}
	disk, whole := vehicleDisk(list, used)
	switch {
	case disk == "":
		return errors.New("the vehicle's disk does not appear: no partition has one of its names")
	case !whole && !partial:
		return fmt.Errorf("the disk %s lacks some of the partitions %s", disk, strings.Join(labels(), ", "))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var errs []error
	for _, b := range list {
		if b.label == "" || b.disk != disk {
			continue
		}
		if err := os.Symlink("../../"+b.name, filepath.Join(dir, b.label)); err != nil && !errors.Is(err, os.ErrExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// findDisk makes the links for the disks that are there now.
func findDisk(partial bool) error {
	list, err := blocks(sysBlock)
	if err != nil {
		return err
	}
	return linkLabels(list, byLabel, partial)
}

// waitDisks makes the links as soon as the vehicle's disk is there: disks
// appear some time after their driver. A disk that lacks partitions is taken
// when no better one has appeared.
func waitDisks(ctx context.Context, limit time.Duration) error {
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		err := findDisk(false)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(end) {
			if partial := findDisk(true); partial != nil {
				return partial
			}
			return err
		}
	}
}

// A volume is a partition that the rescue system mounts for good.
type volume struct {
	label, dir, fs string
	flags          uintptr
}

// grubenvVolume is where GRUB keeps its variables, dataVolume what outlives the
// slots.
func grubenvVolume() volume {
	return volume{"grubenv", "/grubenv", "vfat", unix.MS_NOATIME | unix.MS_SYNCHRONOUS | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC}
}

func dataVolume() volume {
	return volume{"data", "/data", "ext4", unix.MS_NOATIME | unix.MS_NOSUID | unix.MS_NODEV}
}

// attach checks and mounts a volume. The error is also left in runDir for the
// reports to come.
func (v volume) attach(ctx context.Context) (err error) {
	if mounted(v.dir) {
		return nil
	}
	defer func() {
		if err != nil {
			os.WriteFile(v.note(), []byte(err.Error()), 0o644)
		} else {
			os.Remove(v.note())
		}
	}()
	dev := v.device()
	if _, err := os.Stat(dev); err != nil {
		return fmt.Errorf("no partition named %s", v.label)
	}
	var checked error
	if v.fs == "ext4" {
		checked = fsck(ctx, dev, fsckLimit)
		if errors.Is(checked, errHangs) {
			return checked // and so would the mount
		}
	}
	if _, err := mount.Mount(dev, v.dir, v.fs, "", v.flags, func() error { return os.MkdirAll(v.dir, 0o755) }); err != nil {
		return errors.Join(err, checked)
	}
	return nil
}

func (v volume) device() string { return filepath.Join(byLabel, v.label) }

func (v volume) note() string { return filepath.Join(runDir, v.label+".error") }

// trouble says why the volume could not be mounted.
func (v volume) trouble() string {
	text, _ := os.ReadFile(v.note())
	return string(text)
}

// What works on a disk that hangs is given up after these.
const (
	fsckLimit   = 5 * time.Minute
	attachLimit = fsckLimit + time.Minute
	viewLimit   = time.Minute
)

var errHangs = errors.New("no answer: the disk hangs")

// within gives f up when it takes too long: a process that waits for a disk
// cannot be killed. f then runs on, and its result is lost.
func within[T any](limit time.Duration, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := f()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-time.After(limit):
		var none T
		return none, fmt.Errorf("%w (waited %v)", errHangs, limit)
	}
}

// fsck lets e2fsck repair what is safe to repair without asking.
func fsck(ctx context.Context, dev string, limit time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a check that still runs is killed, if it can be
	out, err := within(limit, exec.CommandContext(ctx, "e2fsck", "-p", dev).CombinedOutput)
	// 1: errors were corrected, 2: and the system should be rebooted, which
	// matters only for a mounted file system.
	if e := (*exec.ExitError)(nil); errors.As(err, &e) && e.ExitCode() > 0 && e.ExitCode() <= 3 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("e2fsck %s: %w: %s", dev, err, strings.TrimSpace(string(out)))
	}
	return nil
}

type mounting struct{ device, dir string }

// mounts lists what is mounted, in the order of mounting.
func mounts() []mounting {
	data, _ := os.ReadFile("/proc/self/mounts")
	var list []mounting
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 {
			list = append(list, mounting{f[0], f[1]})
		}
	}
	return list
}

func mounted(dir string) bool {
	return slices.ContainsFunc(mounts(), func(m mounting) bool { return m.dir == dir })
}

// view mounts the file system of a device read-only for the time of f. The journal of an ext4 is not replayed: nothing is written.
func view(dev string, f func(dir string) error) (err error) {
	dir, err := os.MkdirTemp("", "rescue-view")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if _, err := os.Stat(dev); err != nil {
		return err
	}
	for _, fs := range []struct{ name, data string }{{"ext4", "noload"}, {"squashfs", ""}, {"vfat", ""}, {"exfat", ""}} {
		m, err := mount.Mount(dev, dir, fs.name, fs.data, unix.MS_RDONLY|unix.MS_SILENT|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
			continue // another file system, or one that this kernel does not know
		}
		if err != nil {
			return err
		}
		return errors.Join(f(dir), m.Unmount(unix.MNT_DETACH))
	}
	return errors.New("no readable file system")
}

// content is what can be seen of a slot without booting it.
type content struct {
	kernel  bool
	version string // of os-release
}

// inspect looks into the file system of a slot.
func inspect(dev string) (c content, err error) {
	err = view(dev, func(dir string) error {
		for _, name := range []string{"boot/vmlinuz", "boot/bzImage", "boot/Image"} {
			// Stat would follow an absolute link out of the slot.
			if fi, err := os.Lstat(filepath.Join(dir, name)); err == nil && fi.Size() > 0 {
				c.kernel = true
			}
		}
		var err error
		if c.version, err = osrelease.Version(dir); err != nil {
			return fmt.Errorf("the file system is damaged or is not a root file system: %w", err)
		}
		return nil
	})
	return c, err
}
