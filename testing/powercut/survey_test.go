// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sdvbox/platform/bootenv"
	"sdvbox/platform/durable"
)

// survey replays writes on the bench's disk and returns the failures, without booting anything.
func (b *bench) survey(entries ...entry) findings {
	b.t.Helper()
	before := bytes.Clone(b.m.data)
	journal, err := readJournal(b.judge, entries)
	if err != nil {
		b.t.Fatal(err)
	}
	b.m.write(0, before)
	s := survey{
		judge: b.judge, journal: journal, place: func(int) int { return 0 },
		logf: func(string, ...any) {},
	}
	s.phases = []*tally{{phase: "all"}}
	if err := replay(b.m, entries, b.weigh, true, s.visit); err != nil {
		b.t.Fatal(err)
	}
	if n := s.phases[0].writes; n != len(entries) {
		b.t.Errorf("%d writes counted, expected %d", n, len(entries))
	}
	b.m.write(0, before)
	return s.findings
}

// A whole update of slot B in the order that RAUC and rauc-helper keep, and the same with one mistake after the other.
func TestSurveyFindsWhatAFlushIsFor(t *testing.T) {
	b := newBench(t, map[string]string{"ORDER": "SDV_A SDV_B", "SDV_B_OK": "0"})
	dir := t.TempDir()
	var vars bootenv.Vars
	vars.Set("ORDER", "SDV_B SDV_A")
	if err := bootenv.Create("grub:"+filepath.Join(dir, "grubenv"), &vars); err != nil {
		t.Fatal(err)
	}
	env, err := os.ReadFile(filepath.Join(dir, "grubenv"))
	if err != nil {
		t.Fatal(err)
	}
	// Newer than what the bench has.
	at := b.copies()
	old := b.m.data[at[0]:][:1024]
	seq := string(old[bytes.Index(old, []byte("SDV_SEQ="))+8])
	next := map[string]string{"0": "1", "1": "2", "2": "3", "3": "0"}[seq]
	for _, name := range []string{"SDV_SEQ=", "SDV_END="} {
		env[bytes.Index(env, []byte(name))+8] = next[0]
	}

	write := func(at int, data []byte) entry { return entry{off: int64(at), size: int64(len(data)), data: data} }
	flush := entry{flags: flagFlush, data: []byte{}}
	first, second := write(26<<20, b.images["1"][:32<<10]), write(26<<20+32<<10, b.images["1"][32<<10:])
	one, two := write(at[0], env), write(at[1], env)

	b.m.write(26<<20, bytes.Repeat([]byte("x"), 64<<10))
	if f := b.survey(first, second, flush, one, flush, two, flush); len(f.failures) > 0 {
		t.Errorf("the right order fails: %q", f.failures)
	}
	for _, test := range []struct {
		name    string
		entries []entry
		want    []string // in this order, possibly with others between them
	}{
		{"the environment before the slot is flushed", []entry{first, second, one, flush, two}, []string{"p0+2 (all): SDV_B may be booted", "p3-0 (all): SDV_B may be booted", "p3-1 (all)"}},
		{"the environment before the slot is written", []entry{first, flush, one, flush, two, flush, second}, []string{"p3 (all): SDV_B may be booted", "p6 (all)"}},
		{"both copies cleared", []entry{write(at[0], make([]byte, unit)), write(at[1], make([]byte, unit)), flush, one}, []string{"p2 (all): boot environment"}},
		{"the loader's file moved", []entry{write(1<<20+512*8, bytes.Repeat([]byte{0xff}, 64<<10))}, []string{"p0+0 (all): boot partition"}},
		{"a table written", []entry{write(unit, bytes.Repeat([]byte{1}, unit))}, []string{"p0+0 (all): the partition table has changed", "p1 (all)"}},
	} {
		f := b.survey(test.entries...)
		rest := f.failures
		for _, want := range test.want {
			i := 0
			for i < len(rest) && !strings.HasPrefix(rest[i], want) {
				i++
			}
			if i == len(rest) {
				t.Errorf("%s: no failure %q in %q", test.name, want, f.failures)
				break
			}
			rest = rest[i+1:]
		}
		if f.phases[0].failed != len(f.failures) {
			t.Errorf("%s: %d failures counted, %d listed", test.name, f.phases[0].failed, len(f.failures))
		}
	}
}

func TestSurveyFindsALostRecord(t *testing.T) {
	b := newBench(t, nil)
	path := filepath.Join(t.TempDir(), "journal")
	j, err := durable.OpenJournal(path, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	save := func(rec string) []byte {
		t.Helper()
		if err := j.Save([]byte(rec)); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	half := func(data []byte, i int) entry {
		e := b.journal[i]
		part := data[i*4096:][:4096]
		return entry{off: e.From, size: 4096, data: part}
	}
	// Records of more than a sector, so that they can be torn.
	one, two, three := save(strings.Repeat("one", 300)), save(strings.Repeat("two", 300)), save(strings.Repeat("333", 300))
	flush := entry{flags: flagFlush, data: []byte{}}
	if f := b.survey(half(one, 0), flush, half(two, 1), flush, half(three, 0), flush); len(f.failures) > 0 {
		t.Errorf("the right order fails: %q", f.failures)
	}
	if f := b.survey(half(one, 0), flush, half(two, 1), half(three, 0), flush); len(f.failures) == 0 {
		t.Error("the next record over the old one, before the new one is flushed, does not fail")
	}
	if f := b.survey(half(one, 0), flush, half(three, 0), flush); len(f.failures) == 0 {
		t.Error("a record over the only one does not fail")
	}
	gone := half(three, 0)
	gone.data = make([]byte, 4096)
	if f := b.survey(half(one, 0), flush, half(two, 1), flush, gone, flush); len(f.failures) > 0 {
		t.Errorf("the older record may go: %q", f.failures)
	}
}
