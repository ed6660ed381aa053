// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sdvbox/platform/bootenv"
	"sdvbox/platform/durable"
	"sdvbox/testing/vehicle"
)

// bench is a judge of a tiny disk, with versions 1 and 2 of slot images, 1 in slot A and 2 in slot B.
type bench struct {
	*judge
	t      *testing.T
	images map[string][]byte
}

func newBench(t *testing.T, env map[string]string) *bench {
	t.Helper()
	dir := t.TempDir()
	l := vehicle.Layout{
		{Number: 1, Name: "boot", Start: 1 << 20, Size: 16 << 20},
		{Number: 2, Name: "grubenv", Start: 17 << 20, Size: 8 << 20},
		{Number: 4, Name: "root_a", Start: 25 << 20, Size: 64 << 10},
		{Number: 5, Name: "root_b", Start: 26 << 20, Size: 64 << 10},
		{Number: 6, Name: "data", Start: 27 << 20, Size: 1 << 20},
	}
	disk := make([]byte, 29<<20)
	put := func(p vehicle.Partition, data []byte) { copy(disk[p.Start:p.End()], data) }

	fat := filepath.Join(dir, "fat")
	format := func(p vehicle.Partition) {
		os.Remove(fat)
		tool(t, "mkfs.vfat", "-C", fat, "16384")
		if p.Size < 16<<20 {
			os.Remove(fat)
			tool(t, "mkfs.vfat", "-C", fat, "8192")
		}
	}
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	take := func(p vehicle.Partition) {
		data, err := os.ReadFile(fat)
		if err != nil {
			t.Fatal(err)
		}
		put(p, data)
	}
	format(l[0])
	tool(t, "mmd", "-i", fat, "::EFI", "::EFI/BOOT", "::grub")
	for _, name := range bootFiles {
		tool(t, "mcopy", "-i", fat, file("x", strings.Repeat(name, 1000)), "::"+name)
	}
	take(l[0])

	var vars bootenv.Vars
	for _, k := range slices.Sorted(maps.Keys(env)) {
		vars.Set(k, env[k])
	}
	if err := bootenv.Create("grub:"+filepath.Join(dir, "grubenv"), &vars); err != nil {
		t.Fatal(err)
	}
	format(l[1])
	tool(t, "mcopy", "-i", fat, filepath.Join(dir, "grubenv"), filepath.Join(dir, "grubenv2"), "::")
	take(l[1])

	b := &bench{t: t, images: map[string][]byte{"1": bytes.Repeat([]byte("1"), 64<<10), "2": bytes.Repeat([]byte("2"), 64<<10)}}
	put(l[2], b.images["1"])
	put(l[3], b.images["2"])
	m := newImage(disk)
	intact, err := newReference(m, l)
	if err != nil {
		t.Fatal(err)
	}
	b.judge, err = newJudge(m, intact, l, map[string]string{"1": file("1", string(b.images["1"])), "2": file("2", string(b.images["2"]))},
		[]extent{{l[4].Start, l[4].Start + 4096}, {l[4].Start + 8192, l[4].Start + 12288}}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// copies returns where the two copies of the environment are on the disk.
func (b *bench) copies() (at []int) {
	b.t.Helper()
	p, err := b.layout.Partition("grubenv")
	if err != nil {
		b.t.Fatal(err)
	}
	header := []byte("# GRUB Environment Block\n")
	for from := int(p.Start); ; {
		i := bytes.Index(b.m.data[from:p.End()], header)
		if i < 0 {
			return at
		}
		at = append(at, from+i)
		from += i + 1
	}
}

func (b *bench) expect(boots, version string, faults ...string) *verdict {
	b.t.Helper()
	v, err := b.judge.judge()
	if err != nil {
		b.t.Fatal(err)
	}
	if v.boots != boots || v.version != version || len(v.faults) != len(faults) {
		b.t.Errorf("%q boots version %q, faults %q; expected %q, version %q, faults %q", v.boots, v.version, v.faults, boots, version, faults)
		return v
	}
	for i, f := range faults {
		if !strings.Contains(v.faults[i], f) {
			b.t.Errorf("fault %q, expected %q", v.faults[i], f)
		}
	}
	return v
}

func TestJudgeFollowsTheEnvironment(t *testing.T) {
	newBench(t, map[string]string{"ORDER": "SDV_A SDV_B"}).expect("SDV_A", "1")
	newBench(t, map[string]string{"ORDER": "SDV_B SDV_A"}).expect("SDV_B", "2")
	newBench(t, map[string]string{"ORDER": "SDV_B SDV_A", "SDV_B_TRY": "3"}).expect("SDV_A", "1")
	newBench(t, map[string]string{"SDV_A_OK": "0", "SDV_B_OK": "0"}).expect("", "", "no slot may be booted")
}

func TestJudgeKnowsCompleteSlots(t *testing.T) {
	b := newBench(t, map[string]string{"ORDER": "SDV_A SDV_B"})
	whole := b.expect("SDV_A", "1")
	// One sector of another version is enough.
	before := b.m.write(26<<20+unit, b.images["1"][:unit])
	partial := b.expect("SDV_A", "1", "SDV_B may be booted, but is not complete")
	b.m.write(26<<20+2*unit, b.images["1"][:unit])
	if other := b.expect("SDV_A", "1", "SDV_B may be booted"); other.key != partial.key || other.key == whole.key {
		t.Errorf("keys %s, %s, %s: only whole or not makes a difference", whole.key, partial.key, other.key)
	}
	b.m.write(26<<20+2*unit, before)
	b.m.write(26<<20+unit, before)
	if again := b.expect("SDV_A", "1"); again.key != whole.key {
		t.Error("the same disk has two keys")
	}
	// While it is marked bad a slot may be anything.
	b = newBench(t, map[string]string{"ORDER": "SDV_A SDV_B", "SDV_B_OK": "0"})
	b.m.write(26<<20, make([]byte, unit))
	b.expect("SDV_A", "1")
	// The other version in the place of this one is complete, too.
	b.m.write(25<<20, b.images["2"])
	b.expect("SDV_A", "2")
}

func TestJudgeLivesWithOneCopyOfTheEnvironment(t *testing.T) {
	env := map[string]string{"ORDER": "SDV_B SDV_A"}
	for i := range 2 {
		b := newBench(t, env)
		at := b.copies()
		if len(at) != 2 {
			t.Fatalf("%d copies", len(at))
		}
		b.m.write(int64(at[i]), make([]byte, unit))
		b.expect("SDV_B", "2")
		b.m.write(int64(at[1-i]), make([]byte, unit))
		b.expect("", "", "boot environment")
	}
}

func TestJudgeGuardsTableAndLoader(t *testing.T) {
	b := newBench(t, map[string]string{"ORDER": "SDV_A SDV_B"})
	for _, at := range []int64{unit, int64(len(b.m.data)) - unit} {
		before := b.m.write(at, []byte("x"))
		b.expect("SDV_A", "1", "the partition table has changed")
		b.m.write(at, before)
	}
	boot, err := b.layout.Partition("boot")
	if err != nil {
		t.Fatal(err)
	}
	cfg := boot.Start + int64(bytes.Index(b.m.data[boot.Start:boot.End()], []byte("grub/grub.cfg")))
	before := b.m.write(cfg, []byte("X"))
	b.expect("SDV_A", "1", "grub/grub.cfg has changed")
	b.m.write(cfg, before)
	b.m.write(boot.Start+510, []byte("x"))
	b.expect("SDV_A", "1", "boot partition")
}

func TestJudgeReadsTheJournal(t *testing.T) {
	b := newBench(t, nil)
	if v := b.expect("SDV_A", "1"); v.record != "" {
		t.Errorf("record %q of no journal", v.record)
	}
	path := filepath.Join(t.TempDir(), "journal")
	j, err := durable.OpenJournal(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	for _, rec := range []string{"one", "two", "three"} {
		if err := j.Save([]byte(rec)); err != nil {
			t.Fatal(err)
		}
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(file) != 8192 {
			t.Fatalf("journal of %d bytes", len(file))
		}
		b.m.write(b.journal[0].From, file[:4096])
		b.m.write(b.journal[1].From, file[4096:])
		if v := b.expect("SDV_A", "1"); v.record != rec {
			t.Errorf("record %q, expected %q", v.record, rec)
		}
	}
	// The newest, "three", is in the first half.
	b.m.write(b.journal[0].From+24, []byte("T"))
	if v := b.expect("SDV_A", "1"); v.record != "two" {
		t.Errorf("record %q, expected the one before", v.record)
	}
	for _, e := range b.journal {
		if b.weigh(entry{off: e.To - unit, size: 2 * unit}) != torn {
			t.Error("a write to the journal is taken lightly")
		}
	}
	if b.weigh(entry{off: b.journal[0].To, size: 4096}) != light || b.weigh(entry{off: b.journal[0].From}) != light {
		t.Error("what does not write to the journal has weight")
	}
	if b.weigh(entry{off: 26 << 20, size: unit}) != heavy {
		t.Error("a write to a slot is taken lightly")
	}
}
