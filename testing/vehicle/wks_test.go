// SPDX-License-Identifier: Apache-2.0

package vehicle

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func wks(t *testing.T) Layout {
	t.Helper()
	l, err := ReadLayout("../../wks/qemux86-64.wks", nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLayoutSuitsRAUC(t *testing.T) {
	l := wks(t)
	// RAUC's slot type boot-gpt-switch: partition 1 is exactly the first half of the region, nothing else is in it, and
	// both start and size are multiples of the grain of 1 MiB.
	const start, size = 4 << 20, 100 << 20
	boot, err := l.Partition("boot")
	if err != nil {
		t.Fatal(err)
	}
	if boot.Number != 1 || boot.Start != start || boot.Size > size/2 {
		t.Errorf("boot is partition %d at %d, %d bytes: expected 1 at %d, at most %d", boot.Number, boot.Start, boot.Size, start, size/2)
	}
	for _, p := range l {
		if p.Number > 1 && p.Start < start+size {
			t.Errorf("%s starts at %d within the region of the boot loader", p.Name, p.Start)
		}
	}
	var names []string
	for _, p := range l {
		if p.Number == 0 {
			continue
		}
		names = append(names, p.Name)
		if p.Start%(1<<20) != 0 {
			t.Errorf("%s starts at %d: not aligned", p.Name, p.Start)
		}
		if p.Size%4096 != 0 {
			t.Errorf("%s has %d bytes: no multiple of 4096, which block-hash-index needs", p.Name, p.Size)
		}
	}
	if got, want := strings.Join(names, " "), "boot grubenv rescue root_a root_b data"; got != want {
		t.Errorf("partitions %q, expected %q", got, want)
	}
	a, _ := l.Partition("root_a")
	b, _ := l.Partition("root_b")
	if a.Size != b.Size {
		t.Errorf("slot A has %d bytes, slot B %d: what fits one must fit the other", a.Size, b.Size)
	}
}

// GRUB has the numbers of the partitions, everybody else their names.
func TestGRUBNumbersPartitionsAsTheLayout(t *testing.T) {
	l := wks(t)
	text, err := os.ReadFile("../../bootloader/grub/grub.cfg")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^set sdv_(?:part_)?(\w+)="\(\$sdv_disk,gpt(\d+)\)"`).FindAllStringSubmatch(string(text), -1)
	if len(found) != 4 {
		t.Errorf("grub.cfg numbers %d partitions, expected 4", len(found))
	}
	for _, m := range found {
		p, err := l.Partition(m[1])
		if err != nil {
			t.Error(err)
		} else if strconv.Itoa(p.Number) != m[2] {
			t.Errorf("grub.cfg: %s is partition %s, in the layout it is %d", m[1], m[2], p.Number)
		}
	}
}

func TestPartitionTableIsValid(t *testing.T) {
	need(t, "sgdisk")
	l, err := ReadLayout("../../wks/qemux86-64.wks", map[string]int64{"root_a": 64 << 20, "root_b": 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(t.TempDir(), "disk.img")
	if err := l.format(context.Background(), disk); err != nil {
		t.Fatal(err)
	}
	out, err := output(context.Background(), "sgdisk", "--verify", "--print", disk)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk finds problems:\n%s", out)
	}
	for _, p := range l {
		line := regexp.MustCompile(`(?m)^ +` + strconv.Itoa(p.Number) + ` +` + strconv.FormatInt(p.Start/sectorSize, 10) +
			` +` + strconv.FormatInt(p.End()/sectorSize-1, 10) + ` .* ` + p.Name + `$`)
		if p.Number > 0 && !line.MatchString(out) {
			t.Errorf("partition %d %q from %d to %d is not in the table:\n%s", p.Number, p.Name, p.Start, p.End(), out)
		}
	}
}

func TestBadLayoutsAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       "no partitions",
		"bootloader --ptable gpt":                "no partitions",
		"part --fixed-size":                      "1: --fixed-size: expected a value",
		"# note\npart --fixed-size=12X":          `2: --fixed-size: "12X": expected a size such as 50M`,
		"part --fixed-size=0":                    "expected a size",
		"part --fixed-size=1M --align 0":         "1: --align: expected KiB",
		"part --fixed-size=1M --color red":       "1: --color: unknown option",
		"part --part-name=a":                     "1: no --fixed-size",
		"part / --fixed-size=1M b":               `1: "b": expected an option`,
		"include common.wks":                     `1: unknown command "include"`,
		"part --fixed-size=99999999999999999999": "expected a size",
	} {
		if _, err := parseLayout(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error %v, expected %q", text, err, want)
		}
	}
}

func TestLayoutIsPlacedAsWicPlaces(t *testing.T) {
	l, err := parseLayout(strings.NewReader("part --fixed-size 1M --part-name a\n" +
		"part --no-table --fixed-size=3K\npart /x --part-name=b --align 1024 --fixed-size 1G --active\n"))
	if err != nil {
		t.Fatal(err)
	}
	l.place()
	// wic starts behind the 34 sectors of a GPT.
	if a := l[0]; a.Number != 1 || a.Start != 34*512 || a.Size != 1<<20 {
		t.Errorf("a is %+v", a)
	}
	if b := l[2]; b.Number != 2 || b.Name != "b" || b.Start != 2<<20 || b.Size != 1<<30 {
		t.Errorf("b is %+v", b)
	}
}
