// SPDX-License-Identifier: Apache-2.0

package ctrlog

import (
	"encoding/binary"
	"hash/crc32"
	"log/slog"
	"os"
	"time"
)

// journal makes one of two steps: to write a chunk to the log and to take it from the FIFO. An agent that is killed between finds
// out which of them were done. It also keeps the lines whose end is to come.
//
// It need not survive a crash of the machine, which the FIFOs do not survive either.
type journal struct {
	f   *os.File
	log *logFile
	now journalHead
}

// journalHead is the beginning of the file. It is written with one system call.
type journalHead struct {
	Pending uint8    // a chunk is being written
	Stream  uint8    // of that chunk
	Slot    [2]uint8 // where the begun line of each stream is
	Size    uint32   // of the chunk
	Sum     uint32   // of the chunk
	_       uint32
	Offset  int64 // in the log, where the chunk begins
}

const slotSize = 4 + maxLine

func slotAt(stream int, slot uint8) int64 { return int64(64 + (stream*2+int(slot))*slotSize) }

func openJournal(path string, log *logFile, streams []*stream) (*journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	j := &journal{f: f, log: log}
	if err := j.recover(streams); err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

// recover finds out how far the last agent came.
func (j *journal) recover(streams []*stream) error {
	head := make([]byte, binary.Size(j.now))
	if n, _ := j.f.ReadAt(head, 0); n < len(head) {
		return nil // it is new
	}
	binary.Decode(head, binary.NativeEndian, &j.now)
	h := &j.now
	for _, s := range streams {
		if h.Pending == 0 || int(h.Stream) != s.id {
			continue
		}
		if waits, err := s.waits(int(h.Size), h.Sum); err != nil {
			return err
		} else if !waits { // it was taken, so that it is in the log
			h.Slot[s.id] ^= 1
			continue
		}
		j.log.mu.Lock()
		var err error
		if h.Offset < j.log.size {
			j.log.size = h.Offset
			err = j.log.f.Truncate(h.Offset)
		}
		j.log.mu.Unlock()
		if err != nil {
			return err
		}
	}
	h.Pending = 0
	if err := j.save(); err != nil {
		return err
	}
	for _, s := range streams {
		slot := make([]byte, slotSize)
		n, _ := j.f.ReadAt(slot, slotAt(s.id, h.Slot[s.id]))
		if n >= 4 {
			s.line.begun = slot[4 : 4+min(int(binary.NativeEndian.Uint32(slot)), n-4)]
		}
	}
	return nil
}

// waits reports whether the chunk is still in the FIFO.
func (s *stream) waits(size int, sum uint32) (waits bool, err error) {
	err2 := s.raw.Control(func(fd uintptr) {
		var chunk []byte
		if chunk, _, err = s.look(int(fd)); len(chunk) > 0 {
			waits = len(chunk) >= size && crc32.ChecksumIEEE(chunk[:size]) == sum
			s.done()
		}
	})
	if err == nil {
		err = err2
	}
	return waits, err
}

func (j *journal) save() error {
	var b [32]byte
	n, err := binary.Encode(b[:], binary.NativeEndian, &j.now)
	if err == nil {
		_, err = j.f.WriteAt(b[:n], 0)
	}
	return err
}

// saveBegun writes the line that has been begun where the last one is not.
func (j *journal) saveBegun(s *stream) error {
	slot := append(binary.NativeEndian.AppendUint32(make([]byte, 0, 4+len(s.line.begun)), uint32(len(s.line.begun))), s.line.begun...)
	_, err := j.f.WriteAt(slot, slotAt(s.id, j.now.Slot[s.id]^1))
	return err
}

// keep takes a chunk of a stream from the FIFO into the log.
func (j *journal) keep(s *stream, chunk []byte, log *slog.Logger) error {
	now := time.Now()
	var lines []byte
	for len(chunk) > 0 {
		j.log.mu.Lock()
		room := j.log.room(log)
		used := 0
		lines = lines[:0]
		for used < len(chunk) && int64(len(lines)) < room {
			text, n := s.line.cut(chunk[used:])
			if text != nil {
				lines = appendLine(lines, s.id, text, s.line.time(now))
			}
			used += n
		}
		err := j.move(s, chunk[:used], lines, log)
		j.log.mu.Unlock()
		if err != nil {
			return err
		}
		chunk = chunk[used:]
	}
	return nil
}

func (j *journal) move(s *stream, chunk, lines []byte, log *slog.Logger) error {
	h := &j.now
	err := j.saveBegun(s)
	h.Pending, h.Stream, h.Size, h.Sum, h.Offset = 1, uint8(s.id), uint32(len(chunk)), crc32.ChecksumIEEE(chunk), j.log.size
	if err == nil {
		err = j.save()
	}
	if err != nil { // the container matters more
		log.Warn("output of a container may be lost if the agent is killed", "journal", j.f.Name(), "error", err)
	}
	j.log.write(lines, log)
	if err := s.consume(len(chunk)); err != nil {
		return err
	}
	h.Pending = 0
	h.Slot[s.id] ^= 1
	j.save()
	return nil
}

// flush writes the last line, which has no end.
func (j *journal) flush(s *stream, text []byte, log *slog.Logger) {
	j.log.mu.Lock()
	defer j.log.mu.Unlock()
	j.log.room(log)
	j.saveBegun(s) // that there is none
	j.log.write(appendLine(nil, s.id, text, s.line.time(time.Now())), log)
	j.now.Slot[s.id] ^= 1
	j.save()
}
