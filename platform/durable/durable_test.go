// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func mustOpen(t *testing.T, path string, capacity int) *Journal {
	t.Helper()
	j, err := OpenJournal(path, capacity)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func mustSave(t *testing.T, j *Journal, rec string) {
	t.Helper()
	if err := j.Save([]byte(rec)); err != nil {
		t.Fatal(err)
	}
}

func record(file []byte) string {
	_, _, rec := newest(file)
	return string(rec)
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestJournalKeepsLastRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := mustOpen(t, path, 100)
	if got := j.Load(); got != nil {
		t.Fatalf("new journal has record %q", got)
	}
	for _, rec := range []string{"one", "two, longer", "", "four", strings.Repeat("x", 100)} {
		mustSave(t, j, rec)
		if got := j.Load(); got == nil || string(got) != rec {
			t.Fatalf("loaded %q, saved %q", got, rec)
		}
		j.Close()
		j = mustOpen(t, path, 100)
		if got := j.Load(); got == nil || string(got) != rec {
			t.Fatalf("reopened: loaded %q, saved %q", got, rec)
		}
	}
	j.Load()[0] = 'y'
	if j.Load()[0] != 'x' {
		t.Error("Load gives away the journal's own bytes")
	}
}

func TestAfterSaveCountsSuccessfulSaves(t *testing.T) {
	j := mustOpen(t, filepath.Join(t.TempDir(), "j"), 5)
	var calls []string
	j.AfterSave = func(n int) { calls = append(calls, fmt.Sprintf("%d=%s", n, j.Load())) }
	mustSave(t, j, "a")
	j.Save([]byte("too long"))
	mustSave(t, j, "b")
	if got := fmt.Sprint(calls); got != "[1=a 2=b]" {
		t.Errorf("calls %s", got)
	}
}

func TestRecordOverCapacityIsRefused(t *testing.T) {
	j := mustOpen(t, filepath.Join(t.TempDir(), "j"), 5)
	mustSave(t, j, "12345")
	err := j.Save([]byte("123456"))
	if err == nil || !strings.Contains(err.Error(), "6 bytes exceeds the capacity of 5") {
		t.Fatalf("error %v", err)
	}
	if string(j.Load()) != "12345" {
		t.Fatal("record lost")
	}
}

func TestClosedJournalRefusesSave(t *testing.T) {
	j := mustOpen(t, filepath.Join(t.TempDir(), "j"), 5)
	j.Close()
	if err := j.Save(nil); !errors.Is(err, os.ErrClosed) {
		t.Fatalf("error %v", err)
	}
}

func TestReadJournalSeesWhatTheOwnerSaves(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	if _, err := ReadJournal(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a journal: %v", err)
	}
	j := mustOpen(t, path, 100)
	if rec, err := ReadJournal(path); rec != nil || err != nil {
		t.Errorf("of a new journal: %q, %v", rec, err)
	}
	for i := range 4 {
		want := fmt.Sprint("record ", i)
		mustSave(t, j, want)
		if rec, err := ReadJournal(path); string(rec) != want || err != nil {
			t.Errorf("got %q, %v; want %q", rec, err, want)
		}
	}
}

// torn returns the file before and after the n-th of a row of saves.
func torn(t *testing.T, n int) (before, after []byte, old, new string) {
	path := filepath.Join(t.TempDir(), "j")
	j := mustOpen(t, path, 300)
	recs := []string{"", "first", strings.Repeat("second ", 40), "third", strings.Repeat("4th ", 70)}
	for _, r := range recs[1:n] {
		mustSave(t, j, r)
	}
	before = readFile(t, path)
	mustSave(t, j, recs[n])
	return before, readFile(t, path), recs[n-1], recs[n]
}

func TestRecordSurvivesWriteCutAtEveryByte(t *testing.T) {
	for n := 1; n <= 4; n++ {
		before, after, old, new := torn(t, n)
		last := 0
		for i := range after {
			if before[i] != after[i] {
				last = i
			}
		}
		for cut := range last + 2 {
			file := append(bytes.Clone(after[:cut]), before[cut:]...)
			want := old
			if cut == last+1 {
				want = new
			}
			if got := record(file); got != want {
				t.Fatalf("save %d cut at byte %d: loaded %q, want %q", n, cut, got, want)
			}
		}
	}
}

// Disks write sectors in any order.
func TestRecordSurvivesAnySubsetOfSectors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := mustOpen(t, path, 4000)
	old, new := strings.Repeat("old ", 1000), strings.Repeat("NEW ", 1000)
	mustSave(t, j, strings.Repeat("gone", 1000))
	mustSave(t, j, old)
	before := readFile(t, path)
	mustSave(t, j, new)
	after := readFile(t, path)
	const sectors = 8
	for set := range 1 << sectors {
		file := bytes.Clone(before)
		for s := range sectors {
			if set&(1<<s) != 0 {
				copy(file[s*512:(s+1)*512], after[s*512:])
			}
		}
		want := old
		if set == 1<<sectors-1 {
			want = new
		}
		if got := record(file); got != want {
			t.Fatalf("sectors %#b: loaded %.20q", set, got)
		}
	}
}

func TestAnyCorruptByteLeavesAWholeRecord(t *testing.T) {
	_, file, old, new := torn(t, 3)
	for i := range file {
		for _, flip := range []byte{0x01, 0x80, 0xff} { // padding does not matter
			bad := bytes.Clone(file)
			bad[i] ^= flip
			inNew := i < header+len(new)
			want := new
			if inNew {
				want = old
			}
			if got := record(bad); got != want {
				t.Fatalf("byte %d ^ %#x: loaded %.20q, want %.20q", i, flip, got, want)
			}
		}
	}
}

func TestSaveAfterDamageKeepsTheGoodSlot(t *testing.T) {
	_, file, old, _ := torn(t, 3)
	path := filepath.Join(t.TempDir(), "j")
	file[header] ^= 1 // newest record, slot 0
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	j := mustOpen(t, path, 300)
	mustSave(t, j, "after")
	now := readFile(t, path)
	if !bytes.Equal(now[block:], file[block:]) {
		t.Fatal("Save wrote over the only whole record")
	}
	now[header] ^= 1
	if got := record(now); got != old {
		t.Fatalf("loaded %q", got)
	}
}

func TestForeignFilesGiveEmptyWorkingJournal(t *testing.T) {
	for _, content := range []string{"", "x", "{}", strings.Repeat("\x00", 2*block), strings.Repeat("\xff", 3*block+1)} {
		path := filepath.Join(t.TempDir(), "j")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		j := mustOpen(t, path, 10)
		if got := j.Load(); got != nil {
			t.Errorf("%d bytes: loaded %q", len(content), got)
		}
		mustSave(t, j, "a")
		mustSave(t, j, "b")
		j.Close()
		if got := mustOpen(t, path, 10).Load(); string(got) != "b" {
			t.Errorf("%d bytes: saved b, loaded %q", len(content), got)
		}
	}
}

func TestEnlargedJournalKeepsRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := mustOpen(t, path, 10)
	mustSave(t, j, "keep me")
	j.Close()
	j = mustOpen(t, path, 10000)
	if string(j.Load()) != "keep me" {
		t.Fatalf("loaded %q", j.Load())
	}
	if _, err := OpenJournal(path, 10); err == nil {
		t.Error("enlarged journal is not locked")
	}
	big := strings.Repeat("b", 10000)
	mustSave(t, j, big)
	j.Close()
	j = mustOpen(t, path, 10)
	if string(j.Load()) != big {
		t.Error("a smaller capacity lost the record")
	}
	mustSave(t, j, "small")
	if err := j.Save([]byte(big)); err == nil {
		t.Error("capacity not enforced")
	}
	if fi, _ := os.Stat(path); fi.Size() != 2*12288 {
		t.Errorf("size %d", fi.Size())
	}
}

func TestSecondOpenerIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := mustOpen(t, path, 10)
	_, err := OpenJournal(path, 10)
	if err == nil || !strings.Contains(err.Error(), path+" is in use by another process") {
		t.Fatalf("error %v", err)
	}
	j.Close()
	mustOpen(t, path, 10)
}

func TestOneOfManyOpenersGetsTheJournal(t *testing.T) {
	for range 20 {
		path := filepath.Join(t.TempDir(), "j")
		var mu sync.Mutex
		var won []*Journal
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if j, err := OpenJournal(path, 10); err == nil {
					mu.Lock()
					won = append(won, j)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("%d openers have the journal", len(won))
		}
		mustSave(t, won[0], "mine")
		won[0].Close()
		if got := mustOpen(t, path, 10).Load(); string(got) != "mine" {
			t.Fatalf("loaded %q", got)
		}
	}
}

// Each opener enlarges the file, and thereby replaces it, while others are
// about to open or lock the one before.
func TestEnlargingLosesNoRecordOfOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	const workers, rounds = 4, 10
	var capacity atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range rounds {
				size := int(capacity.Add(block))
				j, err := OpenJournal(path, size)
				for err != nil && strings.Contains(err.Error(), "in use") {
					time.Sleep(100 * time.Microsecond)
					j, err = OpenJournal(path, size)
				}
				if err != nil {
					t.Error(err)
					return
				}
				n := 0
				fmt.Sscan(string(j.Load()), &n)
				if err := j.Save(fmt.Append(nil, n+1)); err != nil {
					t.Error(err)
				}
				j.Close()
			}
		})
	}
	wg.Wait()
	if got := string(mustOpen(t, path, 10).Load()); got != fmt.Sprint(workers*rounds) {
		t.Errorf("%d records saved in turn, the last says %s", workers*rounds, got)
	}
}

func TestLeftOverTemporaryFileIsNoObstacle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path+".tmp", []byte("half a longer content"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("whole"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := readFile(t, path); string(got) != "whole" {
		t.Errorf("content %q", got)
	}
	if fi, _ := os.Stat(path); fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
	if _, err := os.Stat(path + ".tmp"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("temporary file remains: %v", err)
	}
}

func TestReplacedFileIsAlwaysOneOfThoseWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	content := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i)}, 1000*(i+1)) }
	if err := WriteFile(path, content(0), 0o644); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 20 {
				if err := WriteFile(path, content(i), 0o644); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for {
		b := readFile(t, path)
		if len(b) == 0 || !bytes.Equal(b, content(int(b[0]-'a'))) {
			t.Fatalf("mixed content, %d bytes", len(b))
		}
		select {
		case <-done:
			return
		default:
		}
	}
}

func TestFailedWriteKeepsOldFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "d", "child"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "d"), []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced by a file")
	}
	if _, err := os.Stat(filepath.Join(dir, "d.tmp")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("temporary file remains")
	}
	if err := WriteFile(filepath.Join(dir, "no", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestRenameReplaces(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	for path, content := range map[string]string{from: "new", to: "old"} {
		if err := WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Rename(from, to); err != nil {
		t.Fatal(err)
	}
	if got := readFile(t, to); string(got) != "new" {
		t.Errorf("content %q", got)
	}
	if err := Rename(from, to); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestRemoveTakesMissingFileAsDone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(path, "x"), nil, 0o600)
	if err := Remove(path); err == nil {
		t.Error("full directory removed")
	}
}

func TestMkdirAllMakesParents(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "b", "c")
	for range 2 {
		if err := MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := os.Stat(path); err != nil || !fi.IsDir() {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)
	if err := MkdirAll(filepath.Join(dir, "file", "x"), 0o755); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("error %v", err)
	}
}

// The process is killed at random moments while it creates, enlarges and saves.
// Records are numbered; none may be lost once Save has returned.
func TestJournalSurvivesKill(t *testing.T) {
	if path := os.Getenv("DURABLE_TEST_JOURNAL"); path != "" {
		saveUntilKilled(path)
	}
	path := filepath.Join(t.TempDir(), "j")
	last := 0
	for round := range 25 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestJournalSurvivesKill$")
		cmd.Env = append(os.Environ(), "DURABLE_TEST_JOURNAL="+path, fmt.Sprint("DURABLE_TEST_CAPACITY=", 100+round*1000))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var said int
		stop := last + rand.IntN(20)
		for said < stop {
			if _, err := fmt.Fscanln(out, &said); err != nil {
				t.Fatal(err)
			}
		}
		cmd.Process.Kill()
		for { // what it still said before it died
			if _, err := fmt.Fscanln(out, &said); err != nil {
				break
			}
		}
		cmd.Wait()
		j, err := OpenJournal(path, 100)
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		if rec := j.Load(); rec != nil {
			fmt.Sscan(string(rec), &got)
		}
		j.Close()
		if got < max(said, last) || got > said+1 && got > last+1 {
			t.Fatalf("round %d: %d was saved, loaded %d", round, max(said, last), got)
		}
		last = got
	}
	if last == 0 {
		t.Fatal("nothing was ever saved")
	}
}

func saveUntilKilled(path string) {
	var capacity, n int
	fmt.Sscan(os.Getenv("DURABLE_TEST_CAPACITY"), &capacity)
	j, err := OpenJournal(path, capacity)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if rec := j.Load(); rec != nil {
		fmt.Sscan(string(rec), &n)
	}
	for {
		n++
		if err := j.Save(fmt.Appendf(nil, "%d%*s", n, n%80, "")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(n)
	}
}

// mount mounts a small file system of the given type. The image it is in, if
// any, is what a power cut would leave.
func mount(t *testing.T, typ string) (dir, image string) {
	t.Helper()
	if os.Getuid() != 0 {
		unable(t, "mounting needs root")
	}
	dir = t.TempDir()
	if typ == "tmpfs" {
		mountAt(t, dir, "-t", "tmpfs", "-o", "size=256k", "tmpfs")
		return dir, ""
	}
	image = filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 4<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs."+typ, "-q", image).CombinedOutput(); err != nil {
		unable(t, fmt.Sprintf("mkfs.%s: %v %s", typ, err, out))
	}
	mountAt(t, dir, "-o", "loop", image)
	return dir, image
}

func mountAt(t *testing.T, dir string, args ...string) {
	t.Helper()
	if out, err := exec.Command("mount", append(args, dir)...).CombinedOutput(); err != nil {
		unable(t, fmt.Sprintf("mount: %v %s", err, out))
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func unable(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("SDVBOX_REQUIRE") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// After each step the power fails: what is in the image without any sync of
// the test's must show the step done.
func TestWhatIsDoneIsOnDisk(t *testing.T) {
	dir, image := mount(t, "ext4")
	in := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var j *Journal
	has := func(name, want string) func(dir string) error {
		return func(dir string) error {
			got, err := os.ReadFile(filepath.Join(dir, name))
			if err == nil && string(got) != want {
				err = fmt.Errorf("%s holds %.20q", name, got)
			}
			return err
		}
	}
	holds := func(want string) func(dir string) error {
		return func(dir string) error {
			file, err := os.ReadFile(filepath.Join(dir, "j"))
			if got := record(file); err == nil && got != want {
				err = fmt.Errorf("journal holds %q", got)
			}
			return err
		}
	}
	for _, step := range []struct {
		name  string
		do    func()
		check func(dir string) error
	}{
		{"write", func() { must(WriteFile(in("f"), []byte("one"), 0o600)) }, has("f", "one")},
		{"write over", func() { must(WriteFile(in("f"), []byte("two"), 0o600)) }, has("f", "two")},
		{"rename", func() { must(Rename(in("f"), in("g"))) }, has("g", "two")},
		{"remove", func() { must(Remove(in("g"))) }, func(dir string) error {
			if _, err := os.Lstat(filepath.Join(dir, "g")); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("file is there: %v", err)
			}
			return nil
		}},
		{"mkdir", func() { must(MkdirAll(in("a/b"), 0o755)) }, func(dir string) error {
			_, err := os.Stat(filepath.Join(dir, "a", "b"))
			return err
		}},
		{"open", func() { j = mustOpen(t, in("j"), 100) }, holds("")},
		{"save", func() { mustSave(t, j, "one") }, holds("one")},
		{"save again", func() { mustSave(t, j, "two") }, holds("two")},
		{"enlarge", func() { j.Close(); j = mustOpen(t, in("j"), 9000) }, holds("two")},
		{"save more", func() { mustSave(t, j, "three") }, holds("three")},
	} {
		step.do()
		after := filepath.Join(t.TempDir(), "image")
		must(os.WriteFile(after, readFile(t, image), 0o600))
		t.Run(step.name, func(t *testing.T) {
			dir := t.TempDir()
			mountAt(t, dir, "-o", "loop", after)
			if err := step.check(dir); err != nil {
				t.Error(err)
			}
		})
	}
	j.Close()
}

func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 64 << 10; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

func TestFullDiskDoesNotStopSave(t *testing.T) {
	for _, typ := range []string{"tmpfs", "ext4"} {
		t.Run(typ, func(t *testing.T) {
			dir, _ := mount(t, typ)
			path, file := filepath.Join(dir, "j"), filepath.Join(dir, "f")
			const capacity = 20000
			j := mustOpen(t, path, capacity)
			if err := WriteFile(file, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			fill(t, dir)
			var rec string
			for i := range 5 {
				rec = strings.Repeat(string(rune('a'+i)), capacity)
				mustSave(t, j, rec)
			}
			j.Close()
			j = mustOpen(t, path, 10*capacity) // cannot grow now
			if string(j.Load()) != rec {
				t.Error("record lost")
			}
			mustSave(t, j, rec)
			if err := j.Save(make([]byte, 10*capacity)); err == nil || !strings.Contains(err.Error(), "exceeds the capacity") {
				t.Errorf("too large: %v", err)
			}
			if err := WriteFile(file, make([]byte, 64<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("WriteFile: %v", err)
			}
			if got := readFile(t, file); string(got) != "old" {
				t.Errorf("file has %.10q", got)
			}
			if _, err := OpenJournal(filepath.Join(dir, "new"), capacity); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("new journal: %v", err)
			}
			j.Close()
			left, _ := filepath.Glob(filepath.Join(dir, "*.tmp"))
			if left != nil {
				t.Errorf("left over: %v", left)
			}
			if err := os.Remove(filepath.Join(dir, "fill")); err != nil {
				t.Fatal(err)
			}
			j = mustOpen(t, path, 2*capacity)
			if string(j.Load()) != rec {
				t.Error("record lost")
			}
			mustSave(t, j, strings.Repeat("z", 2*capacity))
			j.Close()
		})
	}
}

func FuzzSlot(f *testing.F) {
	b := make([]byte, header+8)
	putSlot(b, slot{7, []byte("record")})
	f.Add(b)
	f.Add(b[:header+6])
	f.Add(b[:header+5])
	f.Add(b[:header])
	f.Add([]byte(magic))
	f.Add(append([]byte(magic), bytes.Repeat([]byte{0xff}, 20)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := parseSlot(b)
		if !ok {
			if s.rec != nil {
				t.Fatal("record from an invalid slot")
			}
			return
		}
		again := make([]byte, header+len(s.rec))
		putSlot(again, s)
		if !bytes.Equal(again, b[:len(again)]) {
			t.Fatal("a valid slot does not come out as it went in")
		}
	})
}
