// SPDX-License-Identifier: Apache-2.0

package vehicle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"sdvbox/testing/rescue"
)

// suite is Debian 13: RAUC 1.13 with streaming, systemd 257, mosquitto 2.0.
const suite = "trixie"

// packages make up the vehicle. The cloud kernel has NVMe and ext4 built in and needs no initramfs.
var packages = []string{
	"ca-certificates", "containerd", "curl", "dbus", "dosfstools", "dropbear-bin", "e2fsprogs", "iproute2", "kmod",
	"linux-image-cloud-amd64", "mosquitto", "mosquitto-clients", "procps", "rauc", "rauc-service", "runc", "systemd-sysv", "udev",
	"util-linux",
}

// useless is what a vehicle does not need, as patterns below the root: a smaller image is a faster test.
var useless = []string{
	"boot/*", "initrd*", "vmlinuz*", "etc/apt", "etc/cron*", "etc/init.d", "etc/rc?.d", "etc/dpkg", "etc/kernel",
	"etc/initramfs*",
	"usr/bin/*perl*", "usr/bin/apt*", "usr/bin/containerd-shim", "usr/bin/containerd-shim-runc-v1", "usr/bin/ctr", "usr/bin/dpkg*",
	"usr/bin/localedef", "usr/bin/x86_64-linux-gnu-*",
	"usr/lib/apt", "usr/lib/dpkg", "usr/lib/dracut", "usr/lib/klibc*", "usr/lib/locale/*", "usr/lib/initramfs-tools",
	"usr/lib/udev/hwdb.*", "usr/lib/systemd/boot", "usr/lib/systemd/catalog",
	"usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/perl*", "usr/lib/x86_64-linux-gnu/libperl*",
	"usr/lib/x86_64-linux-gnu/libapt-*", "usr/lib/x86_64-linux-gnu/libdb-5*",
	"usr/share/bash-completion", "usr/share/common-licenses", "usr/share/doc*", "usr/share/gcc", "usr/share/gdb",
	"usr/share/i18n", "usr/share/info", "usr/share/initramfs-tools", "usr/share/keyrings", "usr/share/lintian",
	"usr/share/locale", "usr/share/man", "usr/share/perl*", "usr/share/zoneinfo", "usr/share/zsh", "usr/share/bug",
	"var/cache/*", "var/lib/*", "var/log/*", "var/backups/*", "var/spool/*", "tmp/*", "run/*",
}

// kept are all files that stay in these directories. Every udev rule is looked at for every device and every generator is a
// program that runs at every boot: much, in an emulated machine.
var kept = map[string][]string{
	"usr/lib/systemd/system-generators": {"systemd-fstab-generator"},
	"usr/lib/udev/rules.d": {
		"50-udev-default.rules", "60-block.rules", "60-persistent-storage.rules", "80-drivers.rules",
		"80-net-setup-link.rules", "99-systemd.rules",
	},
}

// modules are the kernel modules that stay, with those they need.
var modules = []string{
	"autofs4", "dm_mod", "dm_verity", "i6300esb", "loop", "nbd", "nls_ascii", "nls_cp437", "nls_utf8", "overlay", "softdog", "squashfs",
	"vfat", "virtio_net", "virtio_rng",
}

// containerModules stay where there are containers: cables, the bridge, and the rules between them.
var containerModules = []string{"br_netfilter", "bridge", "nf_conntrack_netlink", "nft_chain_nat", "nft_ct", "nft_fib_inet", "nft_masq", "nft_nat", "veth"}

// Tree returns a directory with the unpacked packages, as they come from Debian.
func (b *Builder) Tree(ctx context.Context) (string, error) {
	include := slices.Compact(slices.Sorted(slices.Values(slices.Concat(packages, rescue.Packages()))))
	args := []string{
		"--mode=root", "--variant=apt", "--include=" + strings.Join(include, ","),
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		`--aptopt=APT::Install-Recommends "false"`,
		"--customize-hook=rm -f $1/boot/initrd.img-*",
	}
	return b.cached("tree", "", func(tmp string) error {
		if os.Geteuid() != 0 {
			return errors.New("only root can unpack packages: try sudo")
		}
		mirror, err := mirror(ctx)
		if err != nil {
			return err
		}
		b.Logf("unpacking Debian %s packages", suite)
		call := append(slices.Clone(args), suite, tmp)
		if mirror != "" {
			call = append(call, mirror)
		}
		return run(ctx, "mmdebstrap", call...)
	}, suite, args)
}

// mirror returns where packages come from: $DEBIAN_MIRROR, else where the host gets its own; empty: the default of
// mmdebstrap.
func mirror(ctx context.Context) (string, error) {
	if m := os.Getenv("DEBIAN_MIRROR"); m != "" {
		return m, nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return "", nil
	}
	out, err := output(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)",
		"Created-By: Packages", "Component: main", "Origin: Debian", "Label: Debian")
	if err != nil {
		return "", err
	}
	uri, _, _ := strings.Cut(out, "\n")
	return strings.TrimSuffix(uri, "/"), nil
}

// kernel returns the release of the kernel in a tree.
func kernel(tree string) (string, error) {
	found, err := filepath.Glob(filepath.Join(tree, "usr/lib/modules/*"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("%d kernels in %s, expected one", len(found), tree)
	}
	return filepath.Base(found[0]), nil
}

// trim removes from a copy of the tree what a vehicle does not need, and puts the kernel where GRUB looks.
func trim(ctx context.Context, tree, dir string) error {
	release, err := kernel(tree)
	if err != nil {
		return err
	}
	lib := filepath.Join(dir, "usr/lib/modules", release)
	if err := keepModules(lib, slices.Concat(modules, containerModules)); err != nil {
		return fmt.Errorf("select kernel modules: %w", err)
	}
	if err := unpackModules(ctx, lib); err != nil {
		return fmt.Errorf("unpack kernel modules: %w", err)
	}
	// udev would try each missing module that an index names. depmod replaces the indices, links and all.
	if err := run(ctx, "chroot", dir, "depmod", release); err != nil {
		return err
	}
	for _, pattern := range useless {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return fmt.Errorf("%s: %w", pattern, err)
		}
		for _, f := range found {
			if err := os.RemoveAll(f); err != nil {
				return err
			}
		}
	}
	for name, stay := range kept {
		entries, err := os.ReadDir(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !slices.Contains(stay, e.Name()) {
				if err := os.Remove(filepath.Join(dir, name, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return os.Link(filepath.Join(tree, "boot", "vmlinuz-"+release), filepath.Join(dir, "boot/vmlinuz"))
}

// keepModules removes all kernel modules but those wanted and those they need.
func keepModules(dir string, modules []string) error {
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return err
	}
	needs := map[string][]string{} // by path, as modules.dep has them
	byName := map[string]string{}
	for line := range strings.Lines(string(dep)) {
		file, rest, _ := strings.Cut(line, ":")
		needs[file] = strings.Fields(rest)
		name, _, _ := strings.Cut(path.Base(file), ".")
		byName[strings.ReplaceAll(name, "-", "_")] = file
	}
	keep := map[string]bool{}
	for _, m := range modules {
		file, ok := byName[m]
		if !ok {
			return fmt.Errorf("the kernel has no module %s", m)
		}
		keep[file] = true
		for _, f := range needs[file] {
			keep[f] = true
		}
	}
	for file := range needs {
		if !keep[file] {
			if err := os.Remove(filepath.Join(dir, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// unpackModules unpacks compressed modules: an emulated machine would need seconds for that, at each boot.
func unpackModules(ctx context.Context, dir string) error {
	args := []string{"--decompress", "--keep", "--force"} // they are links to the tree
	var packed []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".ko.xz") {
			packed = append(packed, path)
		}
		return err
	})
	if err != nil || packed == nil {
		return err
	}
	if err := run(ctx, "xz", append(args, packed...)...); err != nil {
		return err
	}
	for _, path := range packed {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// overlay copies the files below src into dir and replaces what is there: it never writes through a hard link.
func overlay(src, dir string) error {
	return filepath.WalkDir(src, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		dst := filepath.Join(dir, rel)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			if fi, err := os.Stat(dst); err == nil && fi.IsDir() {
				return nil
			}
			return os.MkdirAll(dst, 0o755)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			if err := os.RemoveAll(dst); err != nil {
				return err
			}
			return os.Symlink(target, dst)
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return putFile(dir, rel, File{Data: string(data), Mode: info.Mode().Perm()})
	})
}

// putFile replaces one file below dir.
func putFile(dir, name string, f File) error {
	dst := filepath.Join(dir, name)
	if f.Remove || f.Link != "" || exists(dst) {
		if err := os.RemoveAll(dst); err != nil {
			return err
		}
	}
	if f.Remove {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	if f.Link != "" {
		return os.Symlink(f.Link, dst)
	}
	mode := f.Mode
	if mode == 0 {
		mode = 0o644
	}
	if err := os.WriteFile(dst, []byte(f.Data), mode); err != nil {
		return err
	}
	// The umask must not decide.
	return os.Chmod(dst, mode)
}

// lines returns the words of a file without comments.
func lines(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var words []string
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(line, []byte("#")) {
			words = append(words, strings.Fields(string(line))...)
		}
	}
	return words, nil
}
