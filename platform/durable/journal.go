// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A journal file is two slots of equal size, each a multiple of block so that
// writing one never touches a disk sector of the other. A slot begins with a
// header, all numbers little endian:
//
//	 0  magic
//	 8  sequence: the record with the higher one is the newer
//	16  length of the record
//	20  CRC-32C of bytes 0 to 19 and the record
//	24  record
const (
	magic  = "sdvjrnl1"
	header = 24
	block  = 4096
)

var le = binary.LittleEndian

// Journal keeps one record in a file. Save replaces the record; a crash during
// Save leaves the old one or the new one. All space is allocated when the
// journal is created, so a full disk does not stop Save.
type Journal struct {
	// AfterSave, when set, is called after each Save that succeeded, with the
	// number of those so far. Tests end the process here.
	AfterSave func(n int)

	path     string
	mu       sync.Mutex
	f        *os.File
	capacity int
	size     int // of a slot
	current  int // which slot holds rec
	seq      uint64
	rec      []byte
	saves    int
}

// OpenJournal opens the journal at path for records of up to capacity bytes,
// creating it if need be. The journal belongs to the caller until Close: others
// who open it get an error at once. A journal that was made for smaller records
// is enlarged; if the disk is too full for that, it stays as it was.
func OpenJournal(path string, capacity int) (*Journal, error) {
	if capacity < 0 || capacity > 1<<30 {
		return nil, fmt.Errorf("open journal %s: capacity %d out of range", path, capacity)
	}
	j, err := openJournal(path, capacity)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return j, nil
}

func openJournal(path string, capacity int) (*Journal, error) {
	j := &Journal{path: path, capacity: capacity}
	for {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			if err = j.create(nil); errors.Is(err, os.ErrExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			return j, nil
		}
		if err != nil {
			return nil, err
		}
		if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, err
		}
		if !isAt(f, path) { // enlarged or removed since we opened it
			f.Close()
			continue
		}
		if err := j.adopt(f); err != nil {
			f.Close()
			return nil, err
		}
		return j, nil
	}
}

// ReadJournal returns the record of the journal at path, nil if there is none, whoever has it open, and changes nothing.
func ReadJournal(path string) ([]byte, error) {
	var rec []byte
	for range 3 { // two Saves during one read can spoil what is read of both slots
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read journal: %w", err)
		}
		if _, _, rec = newest(data); rec != nil {
			break
		}
	}
	return rec, nil
}

// adopt takes the existing journal file f, whose lock is held.
func (j *Journal) adopt(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	data := make([]byte, fi.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return err
	}
	j.f, j.size = f, len(data)/2
	j.current, j.seq, j.rec = newest(data)
	j.rec = bytes.Clone(j.rec) // not to keep the whole file in memory
	if len(data)%(2*block) == 0 && j.size >= slotSize(j.capacity) {
		return nil
	}
	err = j.create(f)
	full := errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
	if full && len(data) > 0 && len(data)%(2*block) == 0 {
		j.capacity = j.size - header
		return nil
	}
	return err
}

// create makes a new file with the record j.rec, locked from before it has its
// name. It replaces old, or nothing if old is nil.
func (j *Journal) create(old *os.File) error {
	t, err := openTemp(j.path, 0o600, unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return err
	}
	if old == nil {
		if _, err := os.Lstat(j.path); err == nil {
			os.Remove(t.Name())
			t.Close()
			return os.ErrExist
		}
	}
	size := slotSize(max(j.capacity, len(j.rec)))
	data := make([]byte, 2*size) // zeros are written, not skipped: that allocates
	current := 1
	if j.rec != nil {
		current = 0
		putSlot(data, slot{j.seq, j.rec})
	}
	if err := replace(t, j.path, data); err != nil {
		t.Close()
		return err
	}
	if old != nil {
		old.Close()
	}
	j.f, j.size, j.current = t, size, current
	return nil
}

// Load returns the record last saved, nil if there is none.
func (j *Journal) Load() []byte {
	j.mu.Lock()
	defer j.mu.Unlock()
	return bytes.Clone(j.rec)
}

// Save replaces the record. After an error the journal still has the record it
// had before; the one that failed may appear when the journal is opened again.
func (j *Journal) Save(rec []byte) error {
	n, err := j.save(rec)
	if err != nil {
		return fmt.Errorf("save journal %s: %w", j.path, err)
	}
	if j.AfterSave != nil {
		j.AfterSave(n)
	}
	return nil
}

func (j *Journal) save(rec []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return 0, os.ErrClosed
	}
	if len(rec) > j.capacity {
		return 0, fmt.Errorf("record of %d bytes exceeds the capacity of %d", len(rec), j.capacity)
	}
	next := 1 - j.current
	buf := make([]byte, header+len(rec))
	putSlot(buf, slot{j.seq + 1, rec})
	if _, err := j.f.WriteAt(buf, int64(next*j.size)); err != nil {
		return 0, err
	}
	if err := fdatasync(j.f); err != nil {
		return 0, err
	}
	j.current, j.seq, j.rec = next, j.seq+1, buf[header:]
	j.saves++
	return j.saves, nil
}

// Close gives the journal free for others.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return nil
	}
	err := j.f.Close()
	j.f = nil
	return err
}

type slot struct {
	seq uint64
	rec []byte
}

func slotSize(capacity int) int {
	return (header + capacity + block - 1) / block * block
}

func putSlot(b []byte, s slot) {
	copy(b, magic)
	le.PutUint64(b[8:], s.seq)
	le.PutUint32(b[16:], uint32(len(s.rec)))
	copy(b[header:], s.rec)
	le.PutUint32(b[20:], checksum(b[:header+len(s.rec)]))
}

// newest finds the record of a journal file and which slot it is in. Without
// one, that is the slot which the first Save leaves alone.
func newest(file []byte) (current int, seq uint64, rec []byte) {
	size := len(file) / 2
	a, aok := parseSlot(file[:size])
	b, bok := parseSlot(file[size:])
	if aok && !(bok && b.seq > a.seq) {
		return 0, a.seq, a.rec
	}
	return 1, b.seq, b.rec
}

// parseSlot returns the record in a slot, or false if there is no whole one.
func parseSlot(b []byte) (slot, bool) {
	if len(b) < header || string(b[:8]) != magic {
		return slot{}, false
	}
	n := le.Uint32(b[16:])
	if uint64(n) > uint64(len(b)-header) {
		return slot{}, false
	}
	b = b[:header+int(n)]
	if checksum(b) != le.Uint32(b[20:]) {
		return slot{}, false
	}
	return slot{le.Uint64(b[8:]), bytes.Clone(b[header:])}, true
}

// checksum is over all of b but the place for the checksum itself.
func checksum(b []byte) uint32 {
	t := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(b[:20], t), t, b[header:])
}

func fdatasync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return err
		}
	}
}
