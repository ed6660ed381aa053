// SPDX-License-Identifier: Apache-2.0

package vehicle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestCacheMakesOnceForEqualInputs(t *testing.T) {
	b := &Builder{Cache: t.TempDir()}
	made := 0
	get := func(inputs ...any) string {
		t.Helper()
		path, err := b.cached("thing", ".x", func(path string) error {
			made++
			return os.WriteFile(path, fmt.Append(nil, inputs...), 0o600)
		}, inputs...)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	one := get("a", 1)
	if again := get("a", 1); again != one || made != 1 {
		t.Errorf("equal inputs gave %s and %s, made %d times", one, again, made)
	}
	if other := get("a", 2); other == one || made != 2 {
		t.Errorf("other inputs gave %s after %s, made %d times", other, one, made)
	}
}

func TestCacheKeepsNothingHalfMade(t *testing.T) {
	b := &Builder{Cache: t.TempDir()}
	broken := errors.New("broken")
	for _, fail := range []error{broken, nil} {
		_, err := b.cached("thing", "", func(path string) error {
			// Fails when the remains of the first attempt are still there.
			return errors.Join(os.Mkdir(path, 0o700), fail)
		})
		if !errors.Is(err, fail) {
			t.Fatalf("got %v, expected %v", err, fail)
		}
	}
}

func TestCacheForgetsWhatNobodyWants(t *testing.T) {
	b := &Builder{Cache: t.TempDir()}
	long := time.Now().Add(-2 * keepTime)
	for i := range keepFiles + 3 {
		path, err := b.cached("thing", "", func(path string) error { return os.WriteFile(path, nil, 0o600) }, i)
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 { // number 0 was wanted just now
			if err := os.Chtimes(path, long, long.Add(time.Duration(i)*time.Second)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := b.forget("thing"); err != nil {
		t.Fatal(err)
	}
	for i, want := range map[int]bool{0: true, 1: false, 2: false, 3: false, 4: true, keepFiles + 2: true} {
		key, err := hash(i)
		if err != nil {
			t.Fatal(err)
		}
		if got := exists(filepath.Join(b.Cache, "thing-"+key)); got != want {
			t.Errorf("file %d is there: %v, expected %v", i, got, want)
		}
	}
}

func TestImagesThatDoNotFitAreRefused(t *testing.T) {
	dir := t.TempDir()
	disk, image := filepath.Join(dir, "disk"), filepath.Join(dir, "image")
	if err := errors.Join(os.WriteFile(disk, make([]byte, 100), 0o600), os.WriteFile(image, make([]byte, 11), 0o600)); err != nil {
		t.Fatal(err)
	}
	err := copyInto(disk, image, Partition{Name: "root_a", Start: 50, Size: 10})
	if err == nil || !strings.Contains(err.Error(), "11 bytes, but partition root_a has only 10") {
		t.Errorf("got error %v", err)
	}
}

func TestCopiesHaveTheirHoles(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 64 << 20
	_, err1 := f.WriteAt([]byte("in the middle"), size/2)
	if err := errors.Join(err1, f.Truncate(size), CopyDisk(dst, src)); err != nil {
		t.Fatal(err)
	}
	a, err1 := os.ReadFile(src)
	b, err2 := os.ReadFile(dst)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if string(a) != string(b) {
		t.Error("the copy differs")
	}
	blocks, err := output(context.Background(), "stat", "--format=%b", dst)
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(blocks) == fmt.Sprint(size/512) {
		t.Error("the copy has no holes")
	}
}
