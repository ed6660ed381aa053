// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// show writes a small disk as one letter for each sector.
func show(m *image) string {
	var b strings.Builder
	for at := 0; at < len(m.data); at += unit {
		if m.data[at] == 0 {
			b.WriteByte('.')
		} else {
			b.WriteByte(m.data[at])
		}
	}
	return b.String()
}

func visited(t *testing.T, m *image, entries []entry, variants bool) []string {
	t.Helper()
	var got []string
	weigh := func(e entry) weight {
		if e.size > 0 && e.overlaps(0, 3*unit) {
			return torn
		}
		if e.size > 0 && e.overlaps(3*unit, 4*unit) {
			return heavy
		}
		return light
	}
	err := replay(m, entries, weigh, variants, func(s state) error {
		got = append(got, s.name+" "+show(m))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestReplayVisitsEveryStateOfACut(t *testing.T) {
	flush := entry{flags: flagFlush, data: []byte{}}
	fua := put(2, "f")
	fua.flags = flagFUA
	discard := entry{off: 0, size: unit, flags: flagDiscard}
	for _, test := range []struct {
		name    string
		entries []entry
		want    []string
	}{
		{"an overwritten write", []entry{put(0, "a"), put(0, "b")}, []string{
			"p0+0 a.....", "p0+1 b.....",
			"p1 a.....",
			"p2 b.....", "p2-0 b.....",
		}},
		{"a flush", []entry{put(0, "a"), flush, put(1, "b")}, []string{
			"p0+0 a.....",
			"p1 a.....",
			"p1+2 ab....",
			"p2 a.....", "p3 ab....",
		}},
		{"several sectors", []entry{put(1, "ab")}, []string{
			"p0+0/1 .a....", "p0+0/-1 ..b...", "p0+0 .ab...",
			"p0/1 .a....", "p0/-1 ..b...",
			"p1 .ab...",
		}},
		{"an overlap", []entry{put(0, "ab"), put(1, "c")}, []string{
			"p0+0/1 a.....", "p0+0/-1 .b....", "p0+0 ab....", "p0+1 .c....",
			"p0/1 a.....", "p0/-1 .b....",
			"p1 ab....",
			"p2 ac....", "p2-0 .c....",
		}},
		{"writes that do not matter", []entry{put(4, "x"), put(0, "a"), put(5, "y")}, []string{
			"p0+1 a.....",
			"p1 ....x.",
			"p2 a...x.",
			"p3 a...xy", "p3-1 ....xy",
		}},
		{"a write that cannot be torn", []entry{put(3, "ab"), put(0, "c")}, []string{
			"p0+0 ...ab.", "p0+1 c.....",
			"p1 ...ab.",
			"p2 c..ab.", "p2-0 c.....",
		}},
		{"a write past the cache", []entry{put(0, "a"), fua, put(1, "b")}, []string{
			"p0+0 a.....", "p0+1 ..f...", "p0+2 .bf...",
			"p1 a.....",
			"p2 a.f...", "p2-0 ..f...",
			"p3 abf...", "p3-0 .bf...",
		}},
		{"a discard", []entry{put(0, "a"), flush, discard}, []string{
			"p0+0 a.....", "p1 a.....", "p1+2 ......", "p2 a.....", "p3 ......",
		}},
	} {
		got := visited(t, newImage(make([]byte, 6*unit)), test.entries, true)
		if d := cmp.Diff(test.want, got); d != "" {
			t.Errorf("%s: %s", test.name, d)
		}
	}
}

// However it gets there, each state must be what its name says, computed from nothing.
func TestReplayedStatesAreWhatTheirNamesSay(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 0))
		base := make([]byte, 6*unit)
		for i := range base {
			base[i] = '0'
		}
		var entries []entry
		for range 1 + rng.IntN(9) {
			at := rng.Int64N(6)
			e := put(at, strings.Repeat(string(rune('a'+len(entries))), 1+rng.IntN(int(6-at))))
			switch rng.IntN(6) {
			case 0:
				e = entry{flags: flagFlush}
			case 1:
				e.flags = flagFUA
			case 2:
				e.flags, e.data = flagDiscard, nil
			}
			entries = append(entries, e)
		}
		m := newImage(bytes.Clone(base))
		region := m.watch(unit, 5*unit)
		sums := map[string]uint64{}
		err := replay(m, entries, func(e entry) weight { return torn }, true, func(s state) error {
			want := bytes.Clone(base)
			apply := func(k int, from, to int64) { copy(want[entries[k].off+from:], entries[k].content()[from:to]) }
			numbers := strings.FieldsFunc(s.name, func(r rune) bool { return strings.ContainsRune("p+-/", r) })
			number := func(i int) int {
				n, err := strconv.Atoi(numbers[i])
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			head, tear, torn := strings.Cut(s.name, "/")
			dropped, last := -1, number(0)
			switch {
			case strings.Contains(head, "-"):
				dropped, last = number(1), -1
			case strings.Contains(head, "+"):
				last = number(1)
			case !torn:
				last = -1
			}
			for i := range number(0) {
				if i != dropped {
					apply(i, 0, entries[i].size)
				}
			}
			for i := number(0); i < last; i++ {
				if entries[i].flags == flagFUA {
					apply(i, 0, entries[i].size)
				}
			}
			if last >= 0 {
				from, to := int64(0), entries[last].size
				if n, err := strconv.ParseInt(tear, 10, 64); n < 0 {
					from = to + n*unit
				} else if err == nil {
					to = n * unit
				}
				apply(last, from, to)
			}
			if !bytes.Equal(want, m.data) {
				t.Fatalf("seed %d, %s: got %s, want %s", seed, s.name, show(m), show(newImage(want)))
			}
			content := string(m.data[unit : 5*unit])
			if old, ok := sums[content]; ok && old != region.sum {
				t.Fatalf("seed %d, %s: one content has two sums", seed, s.name)
			}
			sums[content] = region.sum
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		distinct := map[uint64]bool{}
		for _, s := range sums {
			distinct[s] = true
		}
		if len(distinct) != len(sums) {
			t.Fatalf("seed %d: two contents have one sum", seed)
		}
	}
}

func TestReplayRefusesWritesBehindTheDisk(t *testing.T) {
	for _, e := range []entry{put(5, "ab"), put(6, "a"), put(7, "a")} {
		err := replay(newImage(make([]byte, 6*unit)), []entry{e}, func(entry) weight { return torn }, true, func(state) error { return nil })
		if err == nil || !strings.Contains(err.Error(), "beyond the end") {
			t.Errorf("write at %d: %v", e.off/unit, err)
		}
	}
}

func TestImageIsACopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	before := slices.Concat(bytes.Repeat([]byte{'a'}, unit), make([]byte, 200<<10))
	if err := os.WriteFile(path, before, 0o644); err != nil {
		t.Fatal(err)
	}
	m, err := openImage(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	m.write(150<<10, []byte("b"))
	saved := path + ".saved"
	if err := m.save(saved); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file below has changed, %v", err)
	}
	want := bytes.Clone(before)
	want[150<<10] = 'b'
	if after, err := os.ReadFile(saved); err != nil || !bytes.Equal(want, after) {
		t.Errorf("the saved file differs from the image, %v", err)
	}
}
