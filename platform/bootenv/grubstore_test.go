// SPDX-License-Identifier: Apache-2.0

package bootenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func set(kv ...string) func(*Vars) error {
	return func(v *Vars) error {
		for i := 0; i < len(kv); i += 2 {
			v.Set(kv[i], kv[i+1])
		}
		return nil
	}
}

// pair returns a store with the given files; nil stands for none.
func pair(t *testing.T, first, second []byte) *grubStore {
	t.Helper()
	s := newPair(filepath.Join(t.TempDir(), "grubenv"))
	m := make(medium)
	if first != nil {
		m[s.paths[0]] = first
	}
	if second != nil {
		m[s.paths[1]] = second
	}
	m.store(t, s.paths...)
	return s
}

// numbered is a copy that holds X=value.
func numbered(seq int, value string) []byte {
	var v Vars
	v.Set("X", value)
	b, err := formatCopy(&v, seq)
	if err != nil {
		panic(err)
	}
	return b
}

func mustLoad(t *testing.T, s Store) *Vars {
	t.Helper()
	v, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestGrubStoreKeepsTwoEqualCopies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "grubenv")
	var dump Vars // made from a listing of another block
	set("SDV_SEQ", "3", "SDV_END", "3")(&dump)
	if err := Create("grub:"+path, &dump); err != nil {
		t.Fatal(err)
	}
	s, err := Open("grub:" + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Update(set("X", "1", "SDV_A_OK", "1", "SDV_SEQ", "9", "ORDER", "SDV_A SDV_B")); err != nil {
		t.Fatal(err)
	}
	want := grubHeader + grubWarning + "SDV_SEQ=2\nORDER=SDV_A SDV_B\nSDV_A_OK=1\nX=1\nSDV_END=2\n####"
	for _, p := range []string{path, path + "2"} {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) != grubSize || !strings.HasPrefix(string(b), want) {
			t.Errorf("%s is %q, want %q", filepath.Base(p), b, want)
		}
	}
	if vars := mustLoad(t, s); vars.Get("ORDER") != "SDV_A SDV_B" || vars.Has("SDV_SEQ") || vars.Has("SDV_END") {
		t.Errorf("loaded %v", vars)
	}
	if s.String() != "grub:"+path || s.Kind() != GRUB {
		t.Errorf("store is %v %v", s.Kind(), s)
	}
}

func TestBootVariablesAreInTheFirstSector(t *testing.T) {
	v := new(Vars)
	for i := range 11 {
		v.Set(fmt.Sprintf("extra%d", i), strings.Repeat("x", 30))
	}
	set("SDV_WHY", strings.Repeat("w", 120), "SDV_GOOD", "SDV_A", "SDV_A_TRY", "0", "SDV_B_TRY", "0", "SDV_A_OK", "1",
		"SDV_B_OK", "1", "ORDER", "SDV_A SDV_B")(v)
	b, err := formatCopy(v, 3)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseGrub(append([]byte(nil), b[:sectorSize]...))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range bootVars {
		if !got.Has(k) {
			t.Errorf("%s is not in the first sector", k)
		}
	}
	if keys := parseCopy(b).vars.Keys(); keys[0] != "ORDER" || keys[len(keys)-1] != "extra10" {
		t.Errorf("order is %v", keys)
	}
}

func TestNewerCopyCounts(t *testing.T) {
	torn := numbered(1, "torn")
	copy(torn[strings.Index(string(torn), "SDV_END=1"):], "SDV_END=0")
	half := block("SDV_SEQ=0\nX=half\n")
	odd := block("SDV_SEQ=4\nX=odd\nSDV_END=4\n")
	plain := block("X=plain\n")
	for _, test := range []struct {
		name          string
		first, second []byte
		want          string // "": none valid
	}{
		{"equal", numbered(2, "1"), numbered(2, "2"), "1"},
		{"first newer", numbered(2, "1"), numbered(1, "2"), "1"},
		{"second newer", numbered(1, "1"), numbered(2, "2"), "2"},
		{"first newer, wrapped", numbered(0, "1"), numbered(3, "2"), "1"},
		{"second newer, wrapped", numbered(3, "1"), numbered(0, "2"), "2"},
		{"far apart", numbered(3, "1"), numbered(1, "2"), "1"},
		{"first torn", torn, numbered(0, "2"), "2"},
		{"second torn", numbered(0, "1"), torn, "1"},
		{"first without end", half, numbered(3, "2"), "2"},
		{"odd number", odd, numbered(3, "2"), "2"},
		{"first empty", []byte{}, numbered(3, "2"), "2"},
		{"first missing", nil, numbered(3, "2"), "2"},
		{"second missing", numbered(3, "1"), nil, "1"},
		{"first plain", plain, numbered(3, "2"), "2"},
		{"second plain", numbered(3, "1"), plain, "1"},
		{"both plain", block("X=1\n"), plain, "1"},
		{"only plain", plain, nil, "plain"},
		{"large file", append(numbered(1, "1"), numbered(1, "tail")...), nil, "tail"},
		{"nothing", nil, nil, ""},
		{"both torn", torn, half, ""},
		{"both empty", []byte{}, []byte{}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := pair(t, test.first, test.second)
			before := readMedium(t, s.paths...)
			v, err := s.Load()
			switch {
			case test.want == "":
				if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), s.paths[0]) || !strings.Contains(err.Error(), s.paths[1]) {
					t.Fatalf("got %v, want ErrInvalid that names the files", err)
				}
				if err := s.Update(set("X", "new")); !errors.Is(err, ErrInvalid) {
					t.Errorf("update: got %v, want ErrInvalid", err)
				}
				if _, err := s.Repair(); !errors.Is(err, ErrInvalid) {
					t.Errorf("repair: got %v, want ErrInvalid", err)
				}
				if got := readMedium(t, s.paths...); got.String() != before.String() {
					t.Errorf("files became %v", got)
				}
				if err := Create(s.String(), v.orEmpty()); err != nil {
					t.Fatal(err)
				}
			case err != nil || v.Get("X") != test.want:
				t.Fatalf("got %v, %v, want %s", v, err, test.want)
			}
			if err := s.Update(set("X", "new")); err != nil {
				t.Fatal(err)
			}
			after := readMedium(t, s.paths...)
			if a, b := string(after[s.paths[0]]), string(after[s.paths[1]]); a != b || len(a) != grubSize {
				t.Errorf("the copies differ after an update:\n%v", after)
			}
			if got := mustLoad(t, s).Get("X"); got != "new" {
				t.Errorf("loaded %q after an update", got)
			}
		})
	}
}

func (v *Vars) orEmpty() *Vars {
	if v == nil {
		return new(Vars)
	}
	return v
}

func TestNothingIsWrittenWithoutChange(t *testing.T) {
	s := pair(t, numbered(1, "1"), numbered(2, "2"))
	failed := errors.New("no")
	var steps int
	s.watch = func(step) { steps++ }
	if err := s.Update(set("X", "2")); err != nil {
		t.Error(err)
	}
	if err := s.Update(func(v *Vars) error { v.Set("X", "3"); return failed }); err != failed {
		t.Errorf("got %v, want the error of the change", err)
	}
	if err := s.Update(set("Y", strings.Repeat("y", 1000))); !errors.Is(err, errTooSmall) {
		t.Errorf("got %v, want %v", err, errTooSmall)
	}
	if changed, err := s.Repair(); changed || err != nil {
		t.Errorf("repair: %v, %v", changed, err)
	}
	if steps > 0 {
		t.Errorf("%d writes or syncs", steps)
	}
}

func TestRepairRewritesTheBadCopy(t *testing.T) {
	for _, bad := range [][]byte{nil, {}, block("SDV_SEQ=3\n"), []byte(strings.Repeat("junk", 1000))} {
		for i := range 2 {
			files := [][]byte{numbered(2, "good"), numbered(2, "good")}
			files[i] = bad
			s := pair(t, files[0], files[1])
			if changed, err := s.Repair(); !changed || err != nil {
				t.Fatalf("repair: %v, %v", changed, err)
			}
			m := readMedium(t, s.paths...)
			if want := string(numbered(2, "good")); string(m[s.paths[0]]) != want || string(m[s.paths[1]]) != want {
				t.Errorf("repaired to\n%v", m)
			}
		}
	}
}

// A copy that cannot be written, here for being a directory, costs the safety
// against power cuts but not the change. Which file it is makes no difference,
// nor which one is current.
func TestUpdateDoesWithOneWritableCopy(t *testing.T) {
	for broken := range 2 {
		for _, seq := range []int{plain, 0, 3} {
			for _, large := range []string{"", strings.Repeat("l", 600)} {
				files := [][]byte{numbered(seq, "old"), numbered(seq, "old")}
				files[broken] = nil
				s := pair(t, files[0], files[1])
				if err := os.Mkdir(s.paths[broken], 0o755); err != nil {
					t.Fatal(err)
				}
				if _, err := s.Repair(); err == nil {
					t.Error("a directory was repaired")
				}
				for _, value := range []string{"new", "newer"} {
					if err := s.Update(set("X", value, "large", large)); err != nil {
						t.Fatalf("copy %d broken: %v", broken+1, err)
					}
					c := parseCopy(readFile(t, s.paths[1-broken]))
					if c.err != nil || c.seq != seq || c.vars.Get("X") != value || mustLoad(t, s).Get("X") != value {
						t.Errorf("copy %d broken: number %d became %+v", broken+1, seq, c)
					}
				}
			}
		}
	}
	// The other copy is whole but older, and stays what it is.
	s := pair(t, numbered(1, "old"), numbered(2, "current"))
	s.watch = func(st step) {
		if st.path == s.paths[0] {
			t.Error("wrote to the first copy")
		}
	}
	if err := unwritable(t, s.paths[0], func() error { return s.Update(set("X", "new")) }); err != nil {
		t.Fatal(err)
	}
	if got := mustLoad(t, s).Get("X"); got != "new" {
		t.Errorf("loaded %q", got)
	}
	// Neither can be written.
	err := unwritable(t, s.paths[0], func() error {
		return unwritable(t, s.paths[1], func() error { return s.Update(set("X", "newest")) })
	})
	if err == nil || !strings.Contains(err.Error(), s.paths[0]) || !strings.Contains(err.Error(), s.paths[1]) {
		t.Errorf("got %v, want an error about both copies", err)
	}
}

// unwritable calls f while path is, even for root, read-only: it is mounted so.
func unwritable(t *testing.T, path string, f func() error) error {
	t.Helper()
	err := unix.Mount(path, path, "", unix.MS_BIND, "")
	if err == nil {
		defer unix.Unmount(path, unix.MNT_DETACH)
		err = unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	if errors.Is(err, unix.EPERM) && os.Getenv("SDVBOX_REQUIRE") != "1" {
		t.Skipf("cannot make a file read-only: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f()
}

func TestLostIsOnlyWhatCouldBeRead(t *testing.T) {
	for _, test := range []struct {
		name          string
		first, second []byte
		directory     bool // in place of the first file: reading it is an I/O error
		want          bool
	}{
		{"both torn", []byte("torn"), []byte{}, false, true},
		{"one torn, one missing", nil, []byte("torn"), false, true},
		{"one torn, one unreadable", nil, []byte("torn"), true, false},
		{"one missing, one unreadable", nil, nil, true, false},
		{"both missing where nothing is mounted", nil, nil, false, false},
		{"valid", numbered(1, "1"), nil, false, false},
	} {
		s := pair(t, test.first, test.second)
		if test.directory {
			if err := os.Mkdir(s.paths[0], 0o755); err != nil {
				t.Fatal(err)
			}
		}
		_, err := s.Load()
		if got := Lost(s, err); got != test.want {
			t.Errorf("%s: %v (%v)", test.name, got, err)
		}
	}
	mounted := newPair("/proc/grubenv") // a mount point without these files
	if _, err := mounted.Load(); !Lost(mounted, err) {
		t.Errorf("both missing on a mounted file system: %v", err)
	}
	u, path := newUBoot(t, "0 0x400", "0x400 0x400")
	if _, err := u.Load(); !Lost(u, err) {
		t.Errorf("U-Boot, wrong sum: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Load(); Lost(u, err) {
		t.Errorf("U-Boot, no device: %v", err)
	}
}

// The file keeps its place on the medium: a boot loader that knows the blocks
// finds the new content.
func TestFilesAreWrittenInPlace(t *testing.T) {
	s := pair(t, numbered(0, "1"), numbered(0, "1"))
	f, err := os.Open(s.paths[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Update(set("X", strings.Repeat("x", 700))); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, grubSize)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if c := parseCopy(b); c.err != nil || len(c.vars.Get("X")) != 700 {
		t.Errorf("the opened file holds %q", b)
	}
}

func TestConcurrentUpdatesAllCount(t *testing.T) {
	uboot, _ := newUBoot(t, "0 0x1000", "0x1000 0x1000")
	if err := uboot.create(new(Vars)); err != nil {
		t.Fatal(err)
	}
	for _, spec := range []string{pair(t, numbered(0, "0"), nil).String(), uboot.String()} {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				s, err := Open(spec)
				if err != nil {
					t.Error(err)
					return
				}
				for range 5 {
					err := s.Update(func(v *Vars) error {
						n, _ := strconv.Atoi(v.Get("X"))
						v.Set("X", strconv.Itoa(n+1))
						return nil
					})
					if err != nil {
						t.Error(err)
					}
					if _, err := s.Load(); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		s, err := Open(spec)
		if err != nil {
			t.Fatal(err)
		}
		if got := mustLoad(t, s).Get("X"); got != "40" {
			t.Errorf("%s: counted %s, want 40", s.Kind(), got)
		}
	}
}

func TestOpenNamesWhatItExpects(t *testing.T) {
	for _, spec := range []string{"grub", "grub:", "efi:/x", "/grubenv/grubenv"} {
		if _, err := Open(spec); err == nil || !strings.Contains(err.Error(), "expected grub:PATH or uboot:") {
			t.Errorf("%q: got %v", spec, err)
		}
	}
	if _, err := Open("uboot:/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	s := pair(t, numbered(0, "1"), nil)
	t.Setenv(specVariable, s.String())
	if got, err := Open(""); err != nil || got.String() != s.String() {
		t.Errorf("got %v, %v, want %v", got, err, s)
	}
}

func TestLockGivesUp(t *testing.T) {
	dir := t.TempDir()
	open := func() *os.File {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	reader := open()
	for _, f := range []*os.File{reader, open()} {
		if err := lock(f, unix.LOCK_SH, 0); err != nil {
			t.Fatalf("readers exclude each other: %v", err)
		}
	}
	if err := lock(open(), unix.LOCK_EX, 30*time.Millisecond); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v, want an error that names the directory", err)
	}
}
