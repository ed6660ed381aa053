// SPDX-License-Identifier: Apache-2.0

package vehicle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

// LeanSlotSize is the size of a lean image, and that of the slots it is for: RAUC then has nothing to resize.
const LeanSlotSize = 80 << 20

// leanPrograms are all a lean vehicle has, besides sdvbox, with the libraries they need.
var leanPrograms = []string{
	"usr/bin/busybox", "usr/bin/dbus-daemon", "usr/bin/dbus-uuidgen", "usr/bin/kmod", "usr/bin/rauc",
	"usr/sbin/e2fsck", "usr/sbin/mosquitto", "usr/sbin/resize2fs", "usr/lib64/ld-linux-x86-64.so.2",
}

// leanFiles are taken from the tree as they are.
var leanFiles = []string{
	"etc/group", "etc/passwd", "etc/ssl/certs/ca-certificates.crt", "usr/share/dbus-1/system.conf", "usr/share/dbus-1/system.d/de.pengutronix.rauc.conf",
}

// leanConfig are files and directories below rootfs/ that a lean vehicle has, too.
var leanConfig = []string{"etc/rauc", "etc/hosts"}

// Lean returns an ext4 image of LeanSlotSize for a slot of a vehicle without systemd, for tests that boot hundreds of times:
// the real RAUC, broker and sdvbox, started by the script in lean/. Images of different versions differ in most blocks.
func (b *Builder) Lean(ctx context.Context, version string) (string, error) {
	tree, err := b.Tree(ctx)
	if err != nil {
		return "", err
	}
	sdvbox, err := b.install(ctx)
	if err != nil {
		return "", err
	}
	keys, err := b.Keys()
	if err != nil {
		return "", err
	}
	own := filepath.Join(b.Repo, "testing/vehicle/lean")
	sources := []string{own}
	for _, name := range leanConfig {
		sources = append(sources, filepath.Join(b.Repo, "testing/vehicle/rootfs", name))
	}
	sum, err := hashTree(sources...)
	if err != nil {
		return "", err
	}
	return b.cached("lean", ".ext4", func(tmp string) error {
		if os.Geteuid() != 0 {
			return errors.New("only root can give files their owners: try sudo")
		}
		b.Logf("building the lean image of version %s", version)
		dir := tmp + ".d"
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := b.fillLean(ctx, dir, tree, version); err != nil {
			return err
		}
		for _, src := range []string{sdvbox, own} {
			if err := overlay(src, dir); err != nil {
				return err
			}
		}
		ca, err := os.ReadFile(keys.Trusted.CA)
		if err != nil {
			return err
		}
		if err := putFile(dir, "etc/rauc/ca.cert.pem", File{Data: string(ca)}); err != nil {
			return err
		}
		return mkfs(ctx, tmp, dir, LeanSlotSize, 0)
	}, filepath.Base(tree), filepath.Base(sdvbox), keys.Trusted.CA, sum, leanPrograms, leanFiles, leanConfig, modules, version)
}

// fillLean makes the root of a lean vehicle, all but sdvbox and its init.
func (b *Builder) fillLean(ctx context.Context, dir, tree, version string) error {
	for _, name := range []string{"boot", "data", "dev", "grubenv", "proc", "root", "run", "sys", "tmp", "usr/bin",
		"usr/sbin", "usr/lib/modules", "usr/lib64", "var"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+name, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	seen := map[string]bool{}
	for _, name := range leanPrograms {
		if err := copyProgram(tree, dir, name, seen); err != nil {
			return err
		}
	}
	for _, name := range leanFiles {
		if err := linkFile(tree, dir, name, name); err != nil {
			return err
		}
	}
	release, err := kernel(tree)
	if err != nil {
		return err
	}
	if err := linkFile(tree, dir, "boot/vmlinuz-"+release, "boot/vmlinuz"); err != nil {
		return err
	}
	lib := filepath.Join(dir, "usr/lib/modules", release)
	if err := run(ctx, "cp", "-al", filepath.Join(tree, "usr/lib/modules", release), lib); err != nil {
		return err
	}
	if err := keepModules(lib, modules); err != nil {
		return err
	}
	applets, err := output(ctx, "chroot", dir, "/usr/bin/busybox", "--list")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(applets) {
		if path := filepath.Join(dir, "usr/bin", name); !exists(path) && !exists(filepath.Join(dir, "usr/sbin", name)) {
			if err := os.Symlink("busybox", path); err != nil {
				return err
			}
		}
	}
	if err := os.Symlink("../bin/kmod", filepath.Join(dir, "usr/sbin/modprobe")); err != nil {
		return err
	}
	for _, name := range leanConfig {
		src, dst := filepath.Join(b.Repo, "testing/vehicle/rootfs", name), filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			return err
		}
		if err := run(ctx, "cp", "-r", src, dst); err != nil {
			return err
		}
	}
	if err := putFile(dir, "etc/os-release", File{Data: "ID=sdvbox\nVERSION_ID=" + version + "\n"}); err != nil {
		return err
	}
	var noise bytes.Buffer
	if _, err := io.CopyN(&noise, rand.NewChaCha8(sha256.Sum256([]byte(version))), 2<<20); err != nil {
		return err
	}
	return putFile(dir, "boot/noise", File{Data: noise.String()})
}

// copyProgram links an ELF file of the tree and the libraries it needs into dir.
func copyProgram(tree, dir, name string, seen map[string]bool) error {
	if seen[name] {
		return nil
	}
	seen[name] = true
	if err := linkFile(tree, dir, name, name); err != nil {
		return err
	}
	f, err := elf.Open(filepath.Join(tree, name))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer f.Close()
	libs, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, lib := range libs {
		if err := copyProgram(tree, dir, "usr/lib/x86_64-linux-gnu/"+lib, seen); err != nil {
			return err
		}
	}
	return nil
}

// linkFile gives what from is in the tree, or is a symbolic link to, the name to in dir.
func linkFile(tree, dir, from, to string) error {
	src, err := filepath.EvalSymlinks(filepath.Join(tree, from))
	if err != nil {
		return err
	}
	dst := filepath.Join(dir, to)
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	return os.Link(src, dst)
}
