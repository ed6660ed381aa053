// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// fat reads a FAT file system as the boot loader does, without its long names.
type fat struct {
	data    []byte
	bits    int    // of an entry of the allocation table: 12, 16 or 32
	table   []byte // the first allocation table
	root    []byte // directory with a place of its own; nil for FAT32
	first   uint32 // cluster of the root directory of FAT32
	area    []byte // cluster 2 and those behind it
	cluster int    // bytes
}

func openFAT(data []byte) (*fat, error) {
	le := binary.LittleEndian
	if len(data) < 512 || data[510] != 0x55 || data[511] != 0xaa {
		return nil, errors.New("FAT: no boot sector")
	}
	sector := int(le.Uint16(data[11:]))
	f := &fat{data: data, cluster: sector * int(data[13])}
	reserved, tables, entries := int(le.Uint16(data[14:])), int(data[16]), int(le.Uint16(data[17:]))
	size := int(le.Uint16(data[22:]))
	if size == 0 {
		size, f.bits, f.first = int(le.Uint32(data[36:])), 32, le.Uint32(data[44:])
	}
	if sector < 512 || f.cluster == 0 || reserved == 0 || tables == 0 || size == 0 || size > len(data)/sector {
		return nil, errors.New("FAT: boot sector makes no sense")
	}
	rootAt := (reserved + tables*size) * sector
	areaAt := rootAt + (entries*32+sector-1)/sector*sector
	if areaAt > len(data) {
		return nil, errors.New("FAT: boot sector makes no sense")
	}
	f.table, f.area = data[reserved*sector:][:size*sector], data[areaAt:]
	if f.bits == 0 {
		f.root = data[rootAt:areaAt]
		f.bits = 16
		if len(f.area)/f.cluster < 4085 {
			f.bits = 12
		}
	}
	return f, nil
}

// next returns the cluster that follows in a chain; !ok is its end.
func (f *fat) next(c uint32) (n uint32, ok bool, err error) {
	le := binary.LittleEndian
	at := int(c) * f.bits / 8
	if at+max(2, f.bits/8) > len(f.table) {
		return 0, false, fmt.Errorf("FAT: cluster %d is not in the table", c)
	}
	var end uint32
	switch f.bits {
	case 12:
		v := uint32(le.Uint16(f.table[at:]))
		if c%2 == 1 {
			v >>= 4
		}
		n, end = v&0xfff, 0xff8
	case 16:
		n, end = uint32(le.Uint16(f.table[at:])), 0xfff8
	default:
		n, end = le.Uint32(f.table[at:])&0xfffffff, 0xffffff8
	}
	return n, n < end, nil
}

// chain returns the content of the clusters from c on.
func (f *fat) chain(c uint32) ([]byte, error) {
	var all []byte
	for ok := true; ok; {
		at := (int(c) - 2) * f.cluster
		if c < 2 || at+f.cluster > len(f.area) {
			return nil, fmt.Errorf("FAT: cluster %d does not exist", c)
		}
		if all = append(all, f.area[at:][:f.cluster]...); len(all) > len(f.area) {
			return nil, errors.New("FAT: a chain of clusters has no end")
		}
		var err error
		if c, ok, err = f.next(c); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// file returns the content of the file with that path.
func (f *fat) file(path string) ([]byte, error) {
	dir := f.root
	if dir == nil {
		var err error
		if dir, err = f.chain(f.first); err != nil {
			return nil, err
		}
	}
	names := strings.Split(path, "/")
	for i, name := range names {
		e := find(dir, name)
		if e == nil {
			return nil, fmt.Errorf("FAT: no %s", path)
		}
		le := binary.LittleEndian
		first, size := uint32(le.Uint16(e[26:])), int(le.Uint32(e[28:]))
		if f.bits == 32 {
			first |= uint32(le.Uint16(e[20:])) << 16
		}
		isDir, last := e[11]&0x10 != 0, i == len(names)-1
		if isDir == last {
			return nil, fmt.Errorf("FAT: %s is the wrong kind of file", name)
		}
		if last && size == 0 {
			return nil, nil
		}
		var err error
		if dir, err = f.chain(first); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if last {
			if size > len(dir) {
				return nil, fmt.Errorf("FAT: %s has %d bytes and clusters for %d", path, size, len(dir))
			}
			dir = dir[:size]
		}
	}
	return dir, nil
}

// find returns the directory entry of a file with a short name.
func find(dir []byte, name string) []byte {
	base, ext, _ := strings.Cut(strings.ToUpper(name), ".")
	want := fmt.Sprintf("%-8s%-3s", base, ext)
	for ; len(dir) >= 32 && dir[0] != 0; dir = dir[32:] {
		const volume = 0x08 // label, or part of a long name
		if dir[0] != 0xe5 && dir[11]&volume == 0 && string(dir[:11]) == want {
			return dir[:32]
		}
	}
	return nil
}
