// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The format of Linux' dm-log-writes, as QEMU's blklogwrites makes it: a super block with the magic, the version, the number
// of entries and the sector size; then each entry with a header (sector, number of sectors, flags, length of a mark), padded
// to a sector, and the data written. All numbers are little endian.
const (
	logMagic   = 0x6a736677736872
	logVersion = 1
	unit       = 512 // sector numbers are in units of the log's sector size; only this one is in use here

	flagFlush   = 1 // all writes completed before are on the medium
	flagFUA     = 2 // this write is on the medium when it is completed
	flagDiscard = 4 // no data follow; the sectors read as zeros
	flagMark    = 8 // a name, for people
	flagsKnown  = flagFlush | flagFUA | flagDiscard | flagMark
)

// entry is one write to the disk.
type entry struct {
	off   int64  // on the disk, in bytes
	size  int64  // in bytes
	flags uint64 // see above
	data  []byte // of size bytes; nil for a discard
}

// parseLog returns the writes recorded in a log.
func parseLog(log []byte) ([]entry, error) {
	le := binary.LittleEndian
	if len(log) < unit {
		return nil, errors.New("write log: no super block")
	}
	switch {
	case le.Uint64(log) != logMagic:
		return nil, fmt.Errorf("write log: magic %#x, expected %#x", le.Uint64(log), uint64(logMagic))
	case le.Uint64(log[8:]) != logVersion:
		return nil, fmt.Errorf("write log: version %d, expected %d", le.Uint64(log[8:]), logVersion)
	case le.Uint32(log[24:]) != unit:
		return nil, fmt.Errorf("write log: sector size %d, expected %d", le.Uint32(log[24:]), unit)
	}
	count := le.Uint64(log[16:])
	rest := log[unit:]
	var entries []entry
	for n := range count {
		if len(rest) < unit {
			return nil, fmt.Errorf("write log: entry %d of %d: no header", n+1, count)
		}
		sector, sectors, flags, mark := le.Uint64(rest), le.Uint64(rest[8:]), le.Uint64(rest[16:]), le.Uint64(rest[24:])
		rest = rest[unit:]
		const limit = 1 << 53 // sectors; in bytes that is still an int64
		switch {
		case flags&^flagsKnown != 0:
			return nil, fmt.Errorf("write log: entry %d of %d: unknown flags %#x", n+1, count, flags)
		case sector > limit || sectors > limit:
			return nil, fmt.Errorf("write log: entry %d of %d: %d sectors at %d are beyond any disk", n+1, count, sectors, sector)
		case flags&flagMark != 0 && (sectors != 0 || mark > unit-32):
			return nil, fmt.Errorf("write log: entry %d of %d: not a mark", n+1, count)
		}
		e := entry{off: int64(sector) * unit, size: int64(sectors) * unit, flags: flags}
		if flags&flagDiscard == 0 {
			if e.size > int64(len(rest)) {
				return nil, fmt.Errorf("write log: entry %d of %d: %d bytes of data, %d left", n+1, count, e.size, len(rest))
			}
			e.data, rest = rest[:e.size:e.size], rest[e.size:]
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// overlaps reports whether the entry writes between two offsets of the disk.
func (e entry) overlaps(from, to int64) bool { return e.off < to && from < e.off+e.size }
