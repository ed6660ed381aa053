// SPDX-License-Identifier: Apache-2.0

package vehicle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Image describes the content of a slot.
type Image struct {
	Version string          // VERSION_ID of /etc/os-release
	Files   map[string]File // more files, by path below the root; they replace what is there
	Enable  []string        // units to enable
	Mask    []string        // units to mask
	Pad     int64           // bytes of noise, so that the image is that much larger
}

// File is one file of an image.
type File struct {
	Data   string
	Mode   os.FileMode // default 0644
	Link   string      // a symbolic link to this instead
	Remove bool        // no file instead
}

// enabled units are started at boot, besides those that Debian enables.
var enabled = []string{"systemd-networkd.service", "vehicle-console.service", "vehicle-ready.service", "vehicle-ssh.socket"}

// masked units cost time in an emulated machine, or want a root that can be written.
var masked = []string{
	"apt-daily-upgrade.timer", "apt-daily.timer", "dev-hugepages.mount", "dev-mqueue.mount", "dpkg-db-backup.timer",
	"e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "getty@tty1.service", "kmod-static-nodes.service", "ldconfig.service",
	"proc-sys-fs-binfmt_misc.automount", "modprobe@configfs.service", "modprobe@drm.service", "modprobe@efi_pstore.service", "modprobe@fuse.service",
	"rauc-mark-good.service", "serial-getty@ttyS0.service", "sys-fs-fuse-connections.mount", "sys-kernel-config.mount",
	"sys-kernel-debug.mount", "sys-kernel-tracing.mount", "systemd-firstboot.service", "systemd-hwdb-update.service",
	"systemd-journal-catalog-update.service", "systemd-journal-flush.service", "systemd-logind.service",
	"systemd-machine-id-commit.service", "systemd-network-generator.service",
	"systemd-networkd-persistent-storage.service", "systemd-networkd-wait-online.service", "systemd-pcrextend.socket", "systemd-pcrlock.socket",
	"systemd-pstore.service", "systemd-random-seed.service", "systemd-remount-fs.service", "systemd-sysusers.service",
	"systemd-tmpfiles-setup-dev-early.service", "systemd-tmpfiles-setup-dev.service", "systemd-udev-load-credentials.service",
	"systemd-user-sessions.service", "systemd-tpm2-setup-early.service",
	"systemd-tpm2-setup.service", "systemd-update-done.service",
}

// Image returns an ext4 file system image for a slot.
func (b *Builder) Image(ctx context.Context, i Image) (string, error) {
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
	files, err := i.files(keys)
	if err != nil {
		return "", err
	}
	own, err := filepath.Glob(filepath.Join(b.Repo, "meta-layer/recipes-*/*/files"))
	if err != nil {
		return "", err
	}
	own = append(own, filepath.Join(b.Repo, "testing/vehicle/rootfs"))
	sum, err := hashTree(own...)
	if err != nil {
		return "", err
	}
	return b.cached("image", ".ext4", func(tmp string) error {
		if os.Geteuid() != 0 {
			return errors.New("only root can give files their owners: try sudo")
		}
		b.Logf("building the image of version %s", i.Version)
		dir := tmp + ".d"
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		// Hard links: nothing below writes into a file of the tree.
		if err := run(ctx, "cp", "-al", tree, dir); err != nil {
			return err
		}
		if err := trim(ctx, tree, dir); err != nil {
			return fmt.Errorf("trim the tree: %w", err)
		}
		for _, src := range append([]string{sdvbox}, own...) {
			if err := overlay(src, dir); err != nil {
				return err
			}
		}
		if err := run(ctx, "chroot", dir, "systemd-sysusers"); err != nil {
			return err
		}
		if err := run(ctx, "chroot", dir, "sdv-kanto-ctl", "add-entry", "--no-reload", "containers.insecure_registries", Host); err != nil {
			return err
		}
		for _, name := range []string{"data", "grubenv"} {
			if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
				return err
			}
		}
		if err := enable(ctx, dir, sdvbox, slices.Concat(enabled, i.Enable)); err != nil {
			return err
		}
		for name, f := range files {
			if err := putFile(dir, name, f); err != nil {
				return err
			}
		}
		return mkfs(ctx, tmp, dir, 0, i.Pad)
	}, filepath.Base(tree), filepath.Base(sdvbox), sum, useless, kept, modules, containerModules, enabled, i, files)
}

// files are those that differ from image to image or from cache to cache.
func (i Image) files(k Keys) (map[string]File, error) {
	files := map[string]File{
		"etc/systemd/system/default.target": {Link: "/usr/lib/systemd/system/multi-user.target"},
		"usr/lib/os-release": {Data: fmt.Sprintf("ID=sdvbox\nID_LIKE=debian\nNAME=\"sdvbox vehicle\"\n"+
			"PRETTY_NAME=\"sdvbox vehicle %[1]s\"\nVERSION_ID=%[1]s\nIMAGE_VERSION=%[1]s\n", i.Version)},
	}
	for name, path := range map[string]string{
		"etc/rauc/ca.cert.pem":      k.Trusted.CA,
		"root/.ssh/authorized_keys": k.SSHPublic,
	} {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		files[name] = File{Data: string(data)}
	}
	for _, unit := range slices.Concat(masked, i.Mask) {
		files["etc/systemd/system/"+unit] = File{Link: "/dev/null"}
	}
	for name, f := range i.Files {
		files[name] = f
	}
	return files, nil
}

// enable starts units at boot: those named, and those of sdvbox as its presets say.
func enable(ctx context.Context, dir, sdvbox string, units []string) error {
	own, err := filepath.Glob(filepath.Join(sdvbox, "usr/lib/systemd/system/*.service"))
	if err != nil {
		return err
	}
	preset := []string{dir, "systemctl", "preset", "--quiet"}
	for _, unit := range own {
		text, err := os.ReadFile(unit)
		if err != nil {
			return err
		}
		if strings.Contains(string(text), "\n[Install]\n") {
			preset = append(preset, filepath.Base(unit))
		}
	}
	if err := run(ctx, "chroot", preset...); err != nil {
		return err
	}
	return run(ctx, "chroot", append([]string{dir, "systemctl", "enable", "--quiet"}, units...)...)
}

// install returns a directory with what "make install" puts on a vehicle.
func (b *Builder) install(ctx context.Context) (string, error) {
	if b.installed != "" {
		return b.installed, nil
	}
	tmp, err := os.MkdirTemp(b.Cache, "install-*.tmp")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := run(ctx, "make", "-s", "-C", b.Repo, "install", "DESTDIR="+tmp, "PREFIX=/usr"); err != nil {
		return "", err
	}
	sum, err := hashTree(tmp)
	if err != nil {
		return "", err
	}
	dir, err := b.cached("sdvbox", "", func(path string) error { return os.Rename(tmp, path) }, sum)
	if err == nil {
		b.installed = dir
	}
	return dir, err
}

// mkfs makes an ext4 image of size bytes with the content of dir. Size 0 is as much as dir needs, and pad bytes more
// that do not compress.
func mkfs(ctx context.Context, image, dir string, size, pad int64) error {
	if pad > 0 {
		if err := putNoise(filepath.Join(dir, "usr/share/noise"), pad); err != nil {
			return err
		}
	}
	if size == 0 {
		err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if info.Mode().IsRegular() {
				size += info.Size()
			}
			size += 4096 + 256 // half a block lost at the end and one for the inode, generously
			return nil
		})
		if err != nil {
			return err
		}
		size = roundUp(size+size/32+8<<20, 1<<20)
	}
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	// GRUB 2.06 cannot read metadata_csum_seed; a root that nobody writes needs no journal.
	return run(ctx, "mkfs.ext4", "-F", "-q", "-b", "4096", "-m", "0", "-O", "^has_journal,^metadata_csum_seed,^orphan_file",
		"-d", dir, image)
}
