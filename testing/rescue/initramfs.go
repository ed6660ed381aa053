// SPDX-License-Identifier: Apache-2.0

// Package rescue packs the initramfs of the rescue system: sdvbox as its
// init, and beside it the real RAUC, dbus-daemon, BusyBox, the tools of ext4
// and the kernel modules they need, all taken from an unpacked Debian tree.
package rescue

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// Options says what the initramfs is made of.
type Options struct {
	Tree    string            // unpacked Debian root with Packages in it, and a kernel's modules
	Release string            // kernel release below Tree/usr/lib/modules; "" when there is just one
	Binary  string            // the sdvbox binary
	Files   map[string]string // further files, path inside → path on the host: RAUC's system.conf, its keyring

	Consoles []string // terminals for a shell besides the kernel's consoles
}

// Packages lists the Debian packages that a tree must contain, besides a
// kernel, to build the initramfs from it.
func Packages() []string {
	return []string{"busybox-static", "ca-certificates", "dbus-daemon", "dosfstools", "e2fsprogs", "rauc"}
}

// HostTools lists the programs that Build runs on the host.
func HostTools() []string { return []string{"xz", "zstd"} }

// programs are copied together with the shared libraries they name.
var programs = []string{
	"/usr/bin/busybox",
	"/usr/bin/dbus-daemon",
	"/usr/bin/rauc",
	"/usr/sbin/e2fsck",
	"/usr/sbin/mke2fs",
	"/usr/sbin/mkfs.vfat",
	"/usr/sbin/resize2fs",
}

// optional files are copied when the tree has them.
var optional = []string{
	"/etc/mke2fs.conf",
	"/etc/ssl/certs/ca-certificates.crt",
}

// needed modules carry RAUC's bundles and the boot environment; the kernel
// has them built in or the tree must have them.
var needed = []string{"loop", "squashfs", "dm_mod", "dm_verity", "vfat", "nls_cp437", "nls_ascii", "ext4"}

// hardware modules are taken when the kernel has them.
var hardware = []string{
	"nbd", "nls_iso8859_1", "nls_utf8", "sha256_ssse3",
	"nvme", "virtio_blk", "virtio_scsi", "virtio_pci", "sd_mod", "ahci",
	"xhci_pci", "ehci_pci", "usb_storage", "uas", "sdhci_pci", "sdhci_acpi", "mmc_block",
	"virtio_net", "virtio_rng", "e1000", "e1000e", "igb", "igc", "r8169", "vmxnet3",
	"i6300esb", "iTCO_wdt",
}

// Build writes the initramfs, a zstd-compressed newc archive, to w. The same
// input gives the same bytes.
func Build(ctx context.Context, o Options, w io.Writer) error {
	a := &archive{tree: o.Tree, seen: map[string]bool{}}
	if err := a.fill(ctx, o); err != nil {
		return fmt.Errorf("rescue initramfs: %w", err)
	}
	return a.write(ctx, w)
}

type archive struct {
	tree    string
	records []cpio.Record
	seen    map[string]bool
}

func (a *archive) fill(ctx context.Context, o Options) error {
	for _, d := range []string{"data", "dev", "etc/rauc", "grubenv", "mnt", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib/sdvbox/compat", "usr/sbin", "var"} {
		a.put(cpio.Directory(d, 0o755))
	}
	// The kernel opens the console before init can mount /dev.
	a.put(cpio.CharDev("dev/console", 0o600, 5, 1))
	a.put(cpio.CharDev("dev/null", 0o666, 1, 3))
	for name, target := range map[string]string{
		"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "var/run": "/run",
		"init":                               "usr/bin/sdvbox",
		"usr/bin/rescue":                     "sdvbox",
		"usr/bin/rauc-helper":                "sdvbox",
		"usr/lib/sdvbox/compat/grub-editenv": "../../../bin/sdvbox",
		"usr/lib/sdvbox/compat/fw_printenv":  "../../../bin/sdvbox",
		"usr/lib/sdvbox/compat/fw_setenv":    "../../../bin/sdvbox",
		"etc/mtab":                           "/proc/self/mounts",
	} {
		a.put(cpio.Symlink(name, target))
	}
	a.put(cpio.StaticFile("etc/passwd", "root::0:0:root:/root:/bin/sh\nnobody:*:65534:65534:nobody:/:/bin/false\n", 0o644))
	a.put(cpio.StaticFile("etc/group", "root:x:0:\nnogroup:x:65534:\n", 0o644))
	a.put(cpio.StaticFile("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", 0o644))
	if len(o.Consoles) > 0 {
		a.put(cpio.StaticFile("etc/rescue/consoles", strings.Join(o.Consoles, "\n")+"\n", 0o644))
	}

	if err := a.file("usr/bin/sdvbox", o.Binary, 0o755); err != nil {
		return err
	}
	for name, host := range o.Files {
		if err := a.file(name, host, 0o644); err != nil {
			return err
		}
	}
	for _, p := range programs {
		if err := a.program(p); err != nil {
			return err
		}
	}
	for _, p := range optional {
		if err := a.copy(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return a.modules(ctx, o.Release)
}

func (a *archive) put(r cpio.Record) {
	name := cpio.Normalize(r.Name)
	if a.seen[name] {
		return
	}
	a.seen[name] = true
	a.records = append(a.records, r)
}

// file adds one file of the host.
func (a *archive) file(name, host string, perm uint64) error {
	data, err := os.ReadFile(host)
	if err != nil {
		return err
	}
	a.put(cpio.StaticFile(name, string(data), perm))
	return nil
}

// copy adds a file of the tree and every symbolic link on the way to it.
func (a *archive) copy(p string) error {
	p, err := a.resolve(p)
	if err != nil {
		return err
	}
	fi, err := os.Stat(filepath.Join(a.tree, p))
	if err != nil {
		return err
	}
	return a.file(p, filepath.Join(a.tree, p), uint64(fi.Mode().Perm()))
}

// resolve follows the links of a path inside the tree, which are relative to
// the tree and not to the host's root, and adds those below its top level:
// the merged /bin, /lib … are added once by fill.
func (a *archive) resolve(p string) (string, error) {
	done, rest := "/", strings.Split(strings.Trim(p, "/"), "/")
	for hops := 0; len(rest) > 0; {
		next := path.Join(done, rest[0])
		rest = rest[1:]
		target, err := os.Readlink(filepath.Join(a.tree, next))
		if err != nil {
			if _, err := os.Lstat(filepath.Join(a.tree, next)); err != nil {
				return "", err
			}
			done = next
			continue
		}
		if hops++; hops > 20 {
			return "", fmt.Errorf("%s: too many symbolic links", p)
		}
		if path.Dir(next) != "/" {
			a.put(cpio.Symlink(next, target))
		}
		if path.IsAbs(target) {
			done = "/"
		}
		rest = append(strings.Split(strings.Trim(target, "/"), "/"), rest...)
	}
	return done, nil
}

// program adds an executable or a library, its interpreter and, in turn, the
// libraries it needs.
func (a *archive) program(p string) error {
	real, err := a.resolve(p)
	if err != nil {
		return err
	}
	if a.seen[cpio.Normalize(real)] {
		return nil
	}
	if err := a.copy(real); err != nil {
		return err
	}
	f, err := elf.Open(filepath.Join(a.tree, real))
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	defer f.Close()
	if s := f.Section(".interp"); s != nil {
		name, err := s.Data()
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		if err := a.program(string(bytes.TrimRight(name, "\x00"))); err != nil {
			return err
		}
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	for _, lib := range libs {
		at, err := a.library(lib)
		if err != nil {
			return fmt.Errorf("%s needs %s: %w", p, lib, err)
		}
		if err := a.program(at); err != nil {
			return err
		}
	}
	return nil
}

// library finds a shared library where Debian's loader looks without an
// ld.so.cache.
func (a *archive) library(name string) (string, error) {
	for _, dir := range []string{"usr/lib/*-linux-gnu*", "usr/lib64", "usr/lib"} {
		found, err := filepath.Glob(filepath.Join(a.tree, dir, name))
		if err != nil {
			return "", err
		}
		if len(found) > 0 {
			return strings.TrimPrefix(found[0], filepath.Clean(a.tree)), nil
		}
	}
	return "", fs.ErrNotExist
}

// modules adds the kernel modules, unpacked because the whole archive is
// compressed anyway, with a modules.dep of just these and the list of what
// to load, /etc/modules.
func (a *archive) modules(ctx context.Context, release string) error {
	if release == "" {
		found, err := filepath.Glob(filepath.Join(a.tree, "usr/lib/modules/*"))
		if err != nil {
			return err
		}
		if len(found) != 1 {
			return fmt.Errorf("%d kernels in %s: name the release", len(found), filepath.Join(a.tree, "usr/lib/modules"))
		}
		release = filepath.Base(found[0])
	}
	k, err := indexKernel(filepath.Join(a.tree, "usr/lib/modules", release))
	if err != nil {
		return err
	}
	var load []string
	for _, name := range slices.Concat(needed, hardware) {
		switch {
		case k.builtin[name]:
		case k.files[name] != "":
			if err := k.add(ctx, name); err != nil {
				return err
			}
			load = append(load, name)
		case slices.Contains(needed, name):
			return fmt.Errorf("kernel %s has no module %s", release, name)
		}
	}
	base := path.Join("usr/lib/modules", release)
	var dep strings.Builder
	for _, m := range k.chosen {
		a.put(cpio.StaticFile(path.Join(base, m.path), string(m.code), 0o644))
		fmt.Fprintf(&dep, "%s:", m.path)
		for _, d := range k.closure(m) {
			fmt.Fprintf(&dep, " %s", d.path)
		}
		dep.WriteByte('\n')
	}
	a.put(cpio.StaticFile(path.Join(base, "modules.dep"), dep.String(), 0o644))
	a.put(cpio.StaticFile("etc/modules", strings.Join(load, "\n")+"\n", 0o644))
	return nil
}

type module struct {
	path    string // below the release's directory, unpacked
	code    []byte
	depends []string
}

type kernel struct {
	dir     string
	files   map[string]string // module name → packed file
	builtin map[string]bool
	chosen  []*module // in the order of need: dependencies first
	byName  map[string]*module
}

// indexKernel lists the modules of one release.
func indexKernel(dir string) (*kernel, error) {
	k := &kernel{dir: dir, files: map[string]string{}, builtin: map[string]bool{}, byName: map[string]*module{}}
	data, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		k.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	return k, filepath.WalkDir(filepath.Join(dir, "kernel"), func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
			k.files[moduleName(p)] = p
		}
		return err
	})
}

// moduleName is the kernel's name for a module file: without directory and
// extensions, and dashes are underscores.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// add reads a module and, before it, those it depends on.
func (k *kernel) add(ctx context.Context, name string) error {
	if k.builtin[name] || k.byName[name] != nil {
		return nil
	}
	file, ok := k.files[name]
	if !ok {
		return fmt.Errorf("no module %s in %s", name, k.dir)
	}
	code, err := unpack(ctx, file)
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(k.dir, file)
	if err != nil {
		return err
	}
	rel, _, _ = strings.Cut(rel, ".ko")
	m := &module{path: rel + ".ko", code: code}
	if m.depends, err = moduleDepends(code); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	k.byName[name] = m
	for _, d := range m.depends {
		if err := k.add(ctx, d); err != nil {
			return err
		}
	}
	k.chosen = append(k.chosen, m)
	return nil
}

// closure lists what must be loaded before m, nearest first, as depmod does.
func (k *kernel) closure(m *module) []*module {
	var all []*module
	for _, d := range m.depends {
		dm := k.byName[d]
		if dm == nil {
			continue // built in
		}
		for _, x := range append([]*module{dm}, k.closure(dm)...) {
			// A later place in the list means loaded earlier.
			if i := slices.Index(all, x); i >= 0 {
				all = slices.Delete(all, i, i+1)
			}
			all = append(all, x)
		}
	}
	return all
}

// moduleDepends reads the "depends" entry of the module information that the
// kernel build puts into each module.
func moduleDepends(code []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(code))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no .modinfo section")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	return dependsOf(string(info)), nil
}

func dependsOf(info string) []string {
	var names []string
	for entry := range strings.SplitSeq(info, "\x00") {
		list, ok := strings.CutPrefix(entry, "depends=")
		if !ok {
			continue
		}
		for n := range strings.SplitSeq(list, ",") {
			if n != "" {
				names = append(names, strings.ReplaceAll(n, "-", "_"))
			}
		}
	}
	return names
}

// unpack returns the ELF file inside a compressed module.
func unpack(ctx context.Context, file string) ([]byte, error) {
	var tool string
	switch path.Ext(file) {
	case ".ko":
		return os.ReadFile(file)
	case ".xz":
		tool = "xz"
	case ".zst":
		tool = "zstd"
	default:
		return nil, fmt.Errorf("%s: unknown compression", file)
	}
	out, err := exec.CommandContext(ctx, tool, "-dcq", file).Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return out, nil
}

// write sorts the records, so that directories come before what is in them,
// and compresses the archive.
func (a *archive) write(ctx context.Context, w io.Writer) error {
	cpio.MakeAllReproducible(a.records)
	slices.SortFunc(a.records, func(x, y cpio.Record) int { return strings.Compare(x.Name, y.Name) })
	cmd := exec.CommandContext(ctx, "zstd", "-q", "-9", "-c")
	cmd.Stdout = w
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	rw := cpio.NewDedupWriter(cpio.Newc.Writer(in))
	err = writeAll(rw, a.records)
	in.Close()
	return errors.Join(err, cmd.Wait())
}

// writeAll writes each record after the directories above it: the kernel
// makes none on its own.
func writeAll(w cpio.RecordWriter, records []cpio.Record) error {
	for _, r := range records {
		for i, c := range r.Name {
			if c == '/' {
				if err := w.WriteRecord(cpio.Directory(r.Name[:i], 0o755)); err != nil {
					return err
				}
			}
		}
		if err := w.WriteRecord(r); err != nil {
			return err
		}
	}
	return cpio.WriteTrailer(w)
}
