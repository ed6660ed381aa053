// SPDX-License-Identifier: Apache-2.0

// Package vehicle is a virtual vehicle: the disk that Yocto would build, built from Debian packages instead, and a QEMU
// machine to run it, with everything a test needs to drive it.
//
// A [Builder] makes images, bundles and disks. Whatever it makes is kept in a cache under a name derived from all it was
// made of, so that asking again costs nothing; the results are shared and must not be changed. The chain is
//
//	tree    Debian trixie packages, unpacked (mmdebstrap), and the rescue system
//	image   ext4 file system of a slot: the tree without what a vehicle does not need, sdvbox as "make install"
//	        installs it, broker and containerd as in meta-layer/, rootfs/, and what [Image] says
//	bundle  signed RAUC bundle of an image
//	disk    partitions as in wks/qemux86-64.wks, GRUB with the files in bootloader/grub, two slots, rescue, data
//
// A [Machine] with a copy of a disk ([CopyDisk]) is started by [Start]; the [VM] that comes of it has a shell ([VM.Run]),
// a way to its broker ([VM.Bus]), a forwarded port ([VM.SSH]), a serial log ([VM.WaitFor]) and a power plug ([VM.Kill]). A guest never reboots by
// itself: [VM.Reboot] and [VM.Next] start a new QEMU process on the same disk, which is much faster than a warm reset of an
// emulated machine.
//
// Building needs root, because the files of the vehicle have owners. Running does not.
package vehicle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Compatible is what bundles for this vehicle must say.
const Compatible = "sdvbox (qemux86-64)"

// Sizes of the partitions when nothing else is asked for. Those in the .wks file are for production: here each slot is
// written many times, slowly.
const (
	DefaultSlotSize   = 320 << 20
	DefaultRescueSize = 96 << 20
	DefaultDataSize   = 512 << 20
)

// Builder makes images, bundles and disks.
type Builder struct {
	Repo  string                           // top of the repository
	Cache string                           // directory for everything made
	Logf  func(format string, args ...any) // told about everything that takes long

	installed string // key of the sdvbox installation, once made
}

// NewBuilder returns a builder for the repository around the working directory. The cache is $SDVBOX_CACHE, by default
// build/vehicle in the repository.
func NewBuilder() (*Builder, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	for ; !exists(filepath.Join(dir, "go.mod")); dir = filepath.Dir(dir) {
		if dir == "/" {
			return nil, errors.New("cannot find the repository: no go.mod here or above")
		}
	}
	cache := os.Getenv("SDVBOX_CACHE")
	if cache == "" {
		cache = filepath.Join(dir, "build", "vehicle")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	return &Builder{Repo: dir, Cache: cache, Logf: func(string, ...any) {}}, nil
}

// cached returns the path of a file or directory in the cache that make fills under a temporary name, unless it is there.
// The inputs make the name: equal inputs, equal content. Another process that makes the same is waited for.
func (b *Builder) cached(kind, suffix string, make func(path string) error, inputs ...any) (string, error) {
	key, err := hash(inputs...)
	if err != nil {
		return "", err
	}
	path := filepath.Join(b.Cache, kind+"-"+key+suffix)
	now := time.Now()
	if exists(path) {
		return path, os.Chtimes(path, now, now)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if exists(path) {
		return path, nil
	}
	tmp := path + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := make(tmp); err != nil {
		return "", fmt.Errorf("make %s: %w", kind, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return "", err
	}
	if err := os.Chtimes(path, now, now); err != nil {
		return "", err
	}
	return path, errors.Join(os.Remove(lock.Name()), b.forget(kind))
}

// The cache keeps this many files of a kind, and whatever was wanted lately.
const (
	keepFiles = 16
	keepTime  = time.Hour
)

// forget removes from the cache what was not wanted for the longest time.
func (b *Builder) forget(kind string) error {
	found, err := filepath.Glob(filepath.Join(b.Cache, kind+"-*"))
	if err != nil {
		return err
	}
	used := map[string]time.Time{}
	for _, path := range found {
		// Somebody else may be renaming or removing.
		if info, err := os.Stat(path); err == nil && filepath.Ext(path) != ".lock" {
			used[path] = info.ModTime()
		}
	}
	paths := slices.SortedFunc(maps.Keys(used), func(a, b string) int { return used[b].Compare(used[a]) })
	for _, path := range paths[min(keepFiles, len(paths)):] {
		if time.Since(used[path]) > keepTime {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// hash returns a short digest of values.
func hash(values ...any) (string, error) {
	text, err := json.Marshal(values)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8]), nil
}

// hashTree returns a digest of all names, modes and contents below the paths.
func hashTree(paths ...string) (string, error) {
	h := sha256.New()
	for _, top := range paths {
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(top, path)
			if err != nil {
				return err
			}
			fmt.Fprintf(h, "%q %v ", rel, info.Mode())
			switch {
			case info.Mode().IsRegular():
				f, err := os.Open(path)
				if err != nil {
					return err
				}
				defer f.Close()
				fmt.Fprintf(h, "%d ", info.Size())
				if _, err := io.Copy(h, f); err != nil {
					return err
				}
			case info.Mode()&fs.ModeSymlink != 0:
				target, err := os.Readlink(path)
				if err != nil {
					return err
				}
				fmt.Fprintf(h, "%q ", target)
			}
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// run runs a program on the host; what it says is in the error when it fails.
func run(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, name, args...)
	return err
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	// Administrators' tools are not in everybody's PATH.
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "LC_ALL=C")
	if path, err := lookPath(name); err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	var out, both strings.Builder
	cmd.Stdout = io.MultiWriter(&out, &both)
	cmd.Stderr = &both
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail(both.String(), 20))
	}
	return out.String(), nil
}

func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil && !strings.Contains(name, "/") {
		for _, dir := range []string{"/usr/sbin", "/sbin"} {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path, nil
			}
		}
	}
	return path, err
}

// tail returns the last n lines.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
