// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// tool runs a program of the host.
func tool(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if cmd.Err != nil {
		cmd.Path, cmd.Err = "/usr/sbin/"+name, nil
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// makeFAT makes a file system with a file of many clusters, one of 1024 bytes below two directories, and an empty one.
func makeFAT(t testing.TB, bits, kib int) (image, large []byte) {
	t.Helper()
	dir := t.TempDir()
	large = make([]byte, 300_001)
	rand.NewChaCha8([32]byte{}).Read(large)
	for name, data := range map[string][]byte{"large.bin": large, "grubenv2": bytes.Repeat([]byte("#"), 1024), "empty": nil} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "fat.img")
	tool(t, "mkfs.vfat", "-F", strconv.Itoa(bits), "-C", path, strconv.Itoa(kib))
	tool(t, "mmd", "-i", path, "::EFI", "::EFI/BOOT")
	tool(t, "mcopy", "-i", path, filepath.Join(dir, "large.bin"), filepath.Join(dir, "empty"), "::")
	tool(t, "mcopy", "-i", path, filepath.Join(dir, "grubenv2"), "::EFI/BOOT")
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return image, large
}

func TestFATReadsWhatMtoolsWrites(t *testing.T) {
	for _, test := range []struct{ bits, kib int }{{12, 8 << 10}, {16, 50 << 10}, {32, 64 << 10}} {
		image, large := makeFAT(t, test.bits, test.kib)
		f, err := openFAT(image)
		if err != nil {
			t.Fatal(err)
		}
		if f.bits != test.bits {
			t.Errorf("FAT%d is taken for FAT%d", test.bits, f.bits)
		}
		for name, want := range map[string][]byte{"large.bin": large, "EFI/BOOT/grubenv2": bytes.Repeat([]byte("#"), 1024), "empty": nil} {
			if got, err := f.file(name); err != nil || !bytes.Equal(got, want) {
				t.Errorf("FAT%d: %s: %d bytes, %v", test.bits, name, len(got), err)
			}
		}
		for name, want := range map[string]string{"none": "no none", "EFI": "wrong kind", "large.bin/x": "wrong kind", "EFI/none": "no EFI/none"} {
			if _, err := f.file(name); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("FAT%d: %s: %v, want an error with %q", test.bits, name, err, want)
			}
		}
	}
}

func TestFATNoticesDamage(t *testing.T) {
	image, _ := makeFAT(t, 12, 8<<10)
	damage := func(change func(f *fat)) error {
		data := bytes.Clone(image)
		f, err := openFAT(data)
		if err != nil {
			t.Fatal(err)
		}
		change(f)
		if f, err = openFAT(data); err != nil {
			return err
		}
		_, err = f.file("large.bin")
		return err
	}
	entry := func(f *fat) []byte { return find(f.root, "large.bin") }
	for _, test := range []struct {
		name   string
		change func(*fat)
	}{
		{"boot sector", func(f *fat) { f.data[510] = 0 }},
		{"cluster size", func(f *fat) { f.data[13] = 0 }},
		{"free cluster in the chain", func(f *fat) { clear(f.table) }},
		{"first cluster", func(f *fat) { entry(f)[26], entry(f)[27] = 0xff, 0x0f }},
		{"no first cluster", func(f *fat) { entry(f)[26], entry(f)[27] = 0, 0 }},
		{"size", func(f *fat) { entry(f)[30] = 0x20 }},
		{"directory entry", func(f *fat) { entry(f)[0] = 0xe5 }},
	} {
		if err := damage(test.change); err == nil {
			t.Errorf("%s: no error", test.name)
		}
	}
	if err := damage(func(*fat) {}); err != nil {
		t.Error(err)
	}
}

func FuzzFAT(f *testing.F) {
	for bits, kib := range map[int]int{12: 2 << 10, 16: 16 << 10} {
		image, _ := makeFAT(f, bits, kib)
		f.Add(image[:64<<10])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		fs, err := openFAT(data)
		if err != nil {
			return
		}
		for _, name := range []string{"large.bin", "EFI/BOOT/grubenv2"} {
			if got, err := fs.file(name); err == nil && len(got) > len(data) {
				t.Errorf("%s is larger than its file system", name)
			}
		}
	})
}
