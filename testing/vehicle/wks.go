// SPDX-License-Identifier: Apache-2.0

package vehicle

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

const (
	sectorSize = 512
	gptSectors = 34 // protective MBR, header, 128 entries; without the MBR once more at the end
)

// Partition is one line of a kickstart file of wic, the image creator of OpenEmbedded, placed on the disk as wic does.
type Partition struct {
	Number   int    // in the partition table; 0: a reserved hole without entry
	Name     string // in the GPT
	Label    string // of the file system
	FSType   string
	TypeGUID string // of the GPT entry, empty: Linux data
	Start    int64  // bytes from the start of the disk
	Size     int64  // bytes
	align    int64
}

// End returns the first byte behind the partition.
func (p Partition) End() int64 { return p.Start + p.Size }

// Layout is a disk in the order of its partitions.
type Layout []Partition

// ReadLayout reads a kickstart file. Sizes, by partition name, replace those of the file.
func ReadLayout(path string, sizes map[string]int64) (Layout, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l, err := parseLayout(f)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", path, err)
	}
	for name, size := range sizes {
		p := l.find(name)
		if p == nil {
			return nil, fmt.Errorf("%s: no partition %q", path, name)
		}
		p.Size = size
	}
	l.place()
	return l, nil
}

// Partition returns the partition of that GPT name.
func (l Layout) Partition(name string) (Partition, error) {
	if p := l.find(name); p != nil {
		return *p, nil
	}
	return Partition{}, fmt.Errorf("no partition %q on the disk", name)
}

func (l Layout) find(name string) *Partition {
	for i := range l {
		if l[i].Name == name && l[i].Number > 0 {
			return &l[i]
		}
	}
	return nil
}

// Size returns the size of the whole disk.
func (l Layout) Size() int64 {
	end := l[len(l)-1].End() + (gptSectors-1)*sectorSize
	return roundUp(end, 1<<20)
}

// place computes where the partitions start: each behind the one before, rounded up to its alignment.
func (l Layout) place() {
	end := int64(gptSectors * sectorSize)
	for i := range l {
		l[i].Start = roundUp(end, l[i].align)
		end = l[i].End()
	}
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// flags are the options of a partition that take no value.
var flags = map[string]bool{"--active": true, "--no-table": true, "--use-uuid": true, "--use-label": true}

func parseLayout(r io.Reader) (Layout, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var l Layout
	number := 0
	for i, line := range strings.Split(string(text), "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		switch words[0] {
		case "bootloader":
		case "part", "partition":
			p, noTable, err := parsePart(words[1:])
			if err != nil {
				return nil, fmt.Errorf("%d: %w", i+1, err)
			}
			if !noTable {
				number++
				p.Number = number
			}
			l = append(l, p)
		default:
			return nil, fmt.Errorf("%d: unknown command %q, expected part or bootloader", i+1, words[0])
		}
	}
	if len(l) == 0 {
		return nil, fmt.Errorf(" no partitions")
	}
	return l, nil
}

func parsePart(words []string) (p Partition, noTable bool, err error) {
	p.align = sectorSize
	for i := 0; i < len(words); i++ {
		name, value, ok := strings.Cut(words[i], "=")
		if !strings.HasPrefix(name, "--") {
			if i == 0 {
				continue // the mount point
			}
			return p, false, fmt.Errorf("%q: expected an option", words[i])
		}
		if flags[name] {
			noTable = noTable || name == "--no-table"
			continue
		}
		if !ok {
			if i++; i == len(words) {
				return p, false, fmt.Errorf("%s: expected a value", name)
			}
			value = words[i]
		}
		switch name {
		case "--fixed-size":
			p.Size, err = parseSize(value)
		case "--align":
			p.align, err = strconv.ParseInt(value, 10, 32)
			p.align <<= 10
			if err == nil && p.align <= 0 {
				err = fmt.Errorf("expected KiB, a positive number")
			}
		case "--part-name":
			p.Name = value
		case "--label":
			p.Label = value
		case "--fstype":
			p.FSType = value
		case "--part-type":
			p.TypeGUID = value
		case "--source", "--rootfs-dir":
			// What wic fills it with.
		default:
			err = fmt.Errorf("unknown option")
		}
		if err != nil {
			return p, false, fmt.Errorf("%s: %w", name, err)
		}
	}
	if p.Size == 0 {
		return p, false, fmt.Errorf("no --fixed-size: a slot that grows with its first image has no room for the second")
	}
	return p, noTable, nil
}

// parseSize reads a size as wic does: M is the default unit.
func parseSize(s string) (int64, error) {
	unit := int64(1 << 20)
	digits := s
	if n := len(s); n > 0 {
		switch s[n-1] {
		case 'k', 'K':
			unit, digits = 1<<10, s[:n-1]
		case 'M':
			digits = s[:n-1]
		case 'G':
			unit, digits = 1<<30, s[:n-1]
		}
	}
	n, err := strconv.ParseInt(digits, 10, 32)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%q: expected a size such as 50M", s)
	}
	return n * unit, nil
}
