// SPDX-License-Identifier: Apache-2.0

package vehicle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sdvbox/platform/bootenv"
	"sdvbox/platform/slots"
	"sdvbox/testing/rescue"
)

// Disk describes a disk of a vehicle.
type Disk struct {
	A, B     string            // file system images of the slots; no B: the same as A
	Env      map[string]string // boot environment; nil: as from the factory, all slots bootable and none confirmed
	Sizes    map[string]int64  // sizes of partitions by name, instead of the default ones
	NoRescue bool              // leave the rescue partition empty
	ESP      map[string]string // more files of the boot partition: name there, content
}

// Layout returns where the partitions of such a disk are.
func (b *Builder) Layout(d Disk) (Layout, error) {
	sizes := map[string]int64{
		"root_a": DefaultSlotSize, "root_b": DefaultSlotSize, "rescue": DefaultRescueSize, "data": DefaultDataSize,
	}
	maps.Copy(sizes, d.Sizes)
	return ReadLayout(filepath.Join(b.Repo, "wks/qemux86-64.wks"), sizes)
}

// Disk returns a disk. It is in the cache: run machines on a copy.
func (b *Builder) Disk(ctx context.Context, d Disk) (string, error) {
	if d.B == "" {
		d.B = d.A
	}
	l, err := b.Layout(d)
	if err != nil {
		return "", err
	}
	boot, err := hashTree(filepath.Join(b.Repo, "bootloader/grub"))
	if err != nil {
		return "", err
	}
	rescueImage := ""
	if !d.NoRescue {
		if rescueImage, err = b.Rescue(ctx); err != nil {
			return "", err
		}
	}
	return b.cached("disk", ".img", func(tmp string) error {
		b.Logf("assembling the disk")
		if err := l.format(ctx, tmp); err != nil {
			return err
		}
		for name, image := range map[string]string{"root_a": d.A, "root_b": d.B, "rescue": rescueImage} {
			if image == "" {
				continue
			}
			p, err := l.Partition(name)
			if err != nil {
				return err
			}
			if err := copyInto(tmp, image, p); err != nil {
				return err
			}
		}
		if err := b.fillBoot(ctx, tmp, l, d); err != nil {
			return err
		}
		if err := fillEnv(ctx, tmp, l, d.Env); err != nil {
			return err
		}
		data, err := l.Partition("data")
		if err != nil {
			return err
		}
		return run(ctx, "mkfs.ext4", "-F", "-q", "-b", "4096", "-m", "0", "-L", data.Label,
			"-E", fmt.Sprintf("offset=%d", data.Start), tmp, fmt.Sprintf("%dk", data.Size>>10))
	}, filepath.Base(d.A), filepath.Base(d.B), filepath.Base(rescueImage), l, boot, d.Env, d.ESP)
}

// format creates the disk with its partition table.
func (l Layout) format(ctx context.Context, disk string) error {
	f, err := os.Create(disk)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(l.Size()); err != nil {
		return err
	}
	args := []string{"--clear", "--set-alignment=1"}
	for _, p := range l {
		if p.Number == 0 {
			continue
		}
		typ := p.TypeGUID
		if typ == "" {
			typ = "8300"
		}
		args = append(args,
			fmt.Sprintf("--new=%d:%d:%d", p.Number, p.Start/sectorSize, p.End()/sectorSize-1),
			fmt.Sprintf("--change-name=%d:%s", p.Number, p.Name),
			fmt.Sprintf("--typecode=%d:%s", p.Number, typ))
	}
	return run(ctx, "sgdisk", append(args, disk)...)
}

// fillBoot makes the EFI boot partition.
func (b *Builder) fillBoot(ctx context.Context, disk string, l Layout, d Disk) error {
	p, err := l.Partition("boot")
	if err != nil {
		return err
	}
	grub := filepath.Join(b.Repo, "bootloader/grub")
	names, err := lines(filepath.Join(grub, "modules"))
	if err != nil {
		return err
	}
	files := map[string]string{}
	for _, name := range []string{"grub.cfg", "sdvbox.cfg"} {
		text, err := os.ReadFile(filepath.Join(grub, name))
		if err != nil {
			return err
		}
		files["grub/"+name] = string(text)
	}
	efi, err := grubImage(ctx, names)
	if err != nil {
		return err
	}
	files["EFI/BOOT/BOOTX64.EFI"] = efi
	maps.Copy(files, d.ESP)
	return makeFAT(ctx, disk, p, files)
}

// grubImage returns GRUB as an EFI program with the named modules. It looks for grub/grub.cfg on the partition it is
// started from.
func grubImage(ctx context.Context, modules []string) (string, error) {
	dir, err := os.MkdirTemp("", "grub")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "BOOTX64.EFI")
	args := []string{"-O", "x86_64-efi", "-d", "/usr/lib/grub/x86_64-efi", "-p", "/grub", "-o", out}
	if err := run(ctx, "grub-mkimage", append(args, modules...)...); err != nil {
		return "", err
	}
	data, err := os.ReadFile(out)
	return string(data), err
}

// fillEnv makes the partition of the boot environment.
func fillEnv(ctx context.Context, disk string, l Layout, env map[string]string) error {
	p, err := l.Partition("grubenv")
	if err != nil {
		return err
	}
	files, err := envFiles(env)
	if err != nil {
		return err
	}
	return makeFAT(ctx, disk, p, files)
}

// envFiles returns the two copies of a boot environment; nil is that from the factory.
func envFiles(env map[string]string) (map[string]string, error) {
	var vars bootenv.Vars
	if env == nil {
		slots.New(slots.Names[:]...).Encode(&vars, bootenv.GRUB)
	}
	for _, k := range slices.Sorted(maps.Keys(env)) {
		vars.Set(k, env[k])
	}
	dir, err := os.MkdirTemp("", "grubenv")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := bootenv.Create("grub:"+filepath.Join(dir, "grubenv"), &vars); err != nil {
		return nil, err
	}
	files := map[string]string{}
	for _, name := range []string{"grubenv", "grubenv2"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		files[name] = string(data)
	}
	return files, nil
}

// makeFAT makes a FAT file system in a partition of a disk image.
func makeFAT(ctx context.Context, disk string, p Partition, files map[string]string) error {
	// Made in a file of its own: mkfs.vfat chooses the width of the FAT by the size of the file.
	image := disk + ".fat"
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	defer os.Remove(image)
	defer f.Close()
	if err := f.Truncate(p.Size); err != nil {
		return err
	}
	if err := run(ctx, "mkfs.vfat", "-n", p.Label, image); err != nil {
		return err
	}
	var dirs []string
	for name := range files {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			dirs = append(dirs, "::"+dir)
		}
	}
	slices.Sort(dirs)
	if dirs = slices.Compact(dirs); dirs != nil {
		if err := run(ctx, "mmd", append([]string{"-i", image}, dirs...)...); err != nil {
			return err
		}
	}
	if err := PutFAT(ctx, image, Partition{}, files); err != nil {
		return err
	}
	return copyInto(disk, image, p)
}

// PutFAT writes files into the FAT file system of a partition.
func PutFAT(ctx context.Context, disk string, p Partition, files map[string]string) error {
	dir, err := os.MkdirTemp("", "fat")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// One call for each directory: mcopy is slow to start, and there may be hundreds of files.
	byDir := map[string][]string{}
	for name, data := range files {
		src := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(src), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(src, []byte(data), 0o644); err != nil {
			return err
		}
		byDir[path.Dir(name)] = append(byDir[path.Dir(name)], src)
	}
	for d, srcs := range byDir {
		args := append([]string{"-o", "-i", mtools(disk, p)}, srcs...)
		if err := run(ctx, "mcopy", append(args, "::"+d+"/")...); err != nil {
			return err
		}
	}
	return nil
}

// GetFAT reads a file from the FAT file system of a partition.
func GetFAT(ctx context.Context, disk string, p Partition, name string) ([]byte, error) {
	out, err := output(ctx, "mcopy", "-n", "-i", mtools(disk, p), "::"+name, "-")
	return []byte(out), err
}

// mtools names a partition of a disk image.
func mtools(disk string, p Partition) string { return fmt.Sprintf("%s@@%d", disk, p.Start) }

// Rescue returns the file system image of the rescue partition: a kernel and the initramfs.
func (b *Builder) Rescue(ctx context.Context) (string, error) {
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
	source, err := hashTree(filepath.Join(b.Repo, "testing/rescue"))
	if err != nil {
		return "", err
	}
	config := filepath.Join(b.Repo, "testing/vehicle/rootfs/etc/rauc/system.conf")
	sum, err := hashTree(config, keys.Trusted.CA)
	if err != nil {
		return "", err
	}
	return b.cached("rescue", ".ext4", func(tmp string) error {
		b.Logf("building the rescue system")
		release, err := kernel(tree)
		if err != nil {
			return err
		}
		dir := tmp + ".d"
		defer os.RemoveAll(dir)
		if err := os.MkdirAll(filepath.Join(dir, "boot"), 0o755); err != nil {
			return err
		}
		if err := run(ctx, "cp", filepath.Join(tree, "boot/vmlinuz-"+release), filepath.Join(dir, "boot/vmlinuz")); err != nil {
			return err
		}
		f, err := os.Create(filepath.Join(dir, "boot/initrd.img"))
		if err != nil {
			return err
		}
		defer f.Close()
		err = rescue.Build(ctx, rescue.Options{
			Tree:   tree,
			Binary: filepath.Join(sdvbox, "usr/bin/sdvbox"),
			Files:  map[string]string{"/etc/rauc/system.conf": config, "/etc/rauc/ca.cert.pem": keys.Trusted.CA},
			// The shell of the tests, as in vehicle-console.service.
			Consoles: []string{"ttyS1"},
		}, f)
		if err != nil {
			return err
		}
		return mkfs(ctx, tmp, dir, 0, 0)
	}, filepath.Base(tree), filepath.Base(sdvbox), source, sum)
}

// CopyDisk copies a disk, holes included.
func CopyDisk(dst, src string) error {
	in, err := os.Stat(src)
	if err != nil {
		return err
	}
	f, err := os.Create(dst)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(in.Size()); err != nil {
		return err
	}
	return copyInto(dst, src, Partition{Name: dst, Size: in.Size()})
}

// copyInto copies an image to a partition of a disk image and leaves out its holes.
func copyInto(disk, image string, p Partition) error {
	src, err := os.Open(image)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if info.Size() > p.Size {
		return fmt.Errorf("%s: %d bytes, but partition %s has only %d", image, info.Size(), p.Name, p.Size)
	}
	dst, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer dst.Close()
	fd := int(src.Fd())
	for end := int64(0); ; {
		start, err := unix.Seek(fd, end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return dst.Close()
		} else if err != nil {
			return fmt.Errorf("%s: %w", image, err)
		}
		if end, err = unix.Seek(fd, start, unix.SEEK_HOLE); err != nil {
			return fmt.Errorf("%s: %w", image, err)
		}
		_, err = io.Copy(io.NewOffsetWriter(dst, p.Start+start), io.NewSectionReader(src, start, end-start))
		if err != nil {
			return err
		}
	}
}

// Zero overwrites the first n bytes of a partition, the super block of its file system among them.
func Zero(disk string, p Partition, n int64) error {
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, min(n, p.Size)), p.Start); err != nil {
		return err
	}
	return f.Close()
}

// putNoise writes bytes that do not compress.
func putNoise(name string, n int64) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	noise := rand.NewChaCha8([32]byte([]byte(strings.Repeat("noise!!!", 4))))
	if _, err := io.CopyN(f, noise, n); err != nil {
		return err
	}
	return f.Close()
}
