// SPDX-License-Identifier: Apache-2.0

package ctrlog

import (
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// journal makes one of two steps: to write what is in a spool to the log, and to empty the spool. An agent that is killed between
// finds out which of them were done. It also keeps the lines whose end is to come.
//
// It need not survive a crash of the machine, which the FIFOs do not survive either.
type journal struct {
	f   *os.File
	log *logFile
	say *slog.Logger
	now journalHead
}

// journalHead is the beginning of the file. It is written with one system call.
type journalHead struct {
	Version uint32
	Pending uint8     // lines are being written
	Slot    [2]uint8  // where the begun line of each stream is
	Turn    [2]uint8  // which file of its spool is in use
	Logged  [2]uint32 // bytes of that which are in the log
	Offset  int64     // in the log, where the lines begin
}

const journalVersion = 0x4c4f4702

const slotSize = 4 + maxLine

func slotAt(stream int, slot uint8) int64 { return int64(64 + (stream*2+int(slot))*slotSize) }

func openJournal(dir string, log *logFile, streams []*stream, say *slog.Logger) (*journal, error) {
	f, err := os.OpenFile(filepath.Join(dir, "journal"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	j := &journal{f: f, log: log, say: say}
	for _, s := range streams {
		if s.spool, err = openSpool(filepath.Join(dir, streamNames[s.id]+".spool"), say); err != nil {
			break
		}
	}
	if err == nil {
		err = j.recover(streams)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

// recover finds out how far the last agent came.
func (j *journal) recover(streams []*stream) error {
	h := &j.now
	head := make([]byte, binary.Size(h))
	if n, _ := j.f.ReadAt(head, 0); n == len(head) {
		binary.Decode(head, binary.NativeEndian, h)
	}
	if h.Version != journalVersion { // it is new
		*h = journalHead{Version: journalVersion}
	}
	if h.Pending != 0 {
		j.log.mu.Lock()
		err := j.log.cut(h.Offset)
		j.log.mu.Unlock()
		if err != nil {
			return err
		}
	}
	h.Pending = 0
	for _, s := range streams {
		h.Slot[s.id] &= 1
		h.Turn[s.id] &= 1
		if err := s.spool.recover(h.Turn[s.id], int(h.Logged[s.id])); err != nil {
			return err
		}
		slot := make([]byte, slotSize)
		n, _ := j.f.ReadAt(slot, slotAt(s.id, h.Slot[s.id]))
		if n >= 4 {
			s.line.begun = slot[4 : 4+min(int(binary.NativeEndian.Uint32(slot)), n-4)]
		}
	}
	return j.save()
}

func (j *journal) save() error {
	b, err := binary.Append(make([]byte, 0, 64), binary.NativeEndian, &j.now)
	if err == nil {
		_, err = j.f.WriteAt(b, 0)
	}
	return err
}

// saveBegun writes the line that has been begun where the last one is not.
func (j *journal) saveBegun(s *stream) error {
	slot := append(binary.NativeEndian.AppendUint32(make([]byte, 0, 4+len(s.line.begun)), uint32(len(s.line.begun))), s.line.begun...)
	_, err := j.f.WriteAt(slot, slotAt(s.id, j.now.Slot[s.id]^1))
	return err
}

// keep takes a chunk, which is what is in the spool of the stream, into the log.
func (j *journal) keep(s *stream, chunk []byte) {
	now := time.Now()
	var lines []byte
	for used := 0; used < len(chunk); {
		j.log.mu.Lock()
		room := j.log.room(j.say)
		lines = lines[:0]
		begin := used
		for used < len(chunk) && int64(len(lines)) < room {
			text, n := s.line.cut(chunk[used:])
			if text != nil {
				lines = appendLine(lines, s.id, text, s.line.time(now))
			}
			used += n
		}
		j.move(s, lines, used-begin, used == len(chunk))
		j.log.mu.Unlock()
	}
}

// flush writes the last line, which has no end.
func (j *journal) flush(s *stream, text []byte) {
	j.log.mu.Lock()
	defer j.log.mu.Unlock()
	j.log.room(j.say)
	j.move(s, appendLine(nil, s.id, text, s.line.time(time.Now())), 0, false)
}

// move writes lines made of n bytes of the spool, which may be all. The log is locked.
func (j *journal) move(s *stream, lines []byte, n int, all bool) {
	h := &j.now
	err := j.saveBegun(s)
	h.Pending, h.Offset = 1, j.log.size
	if err == nil {
		err = j.save()
	}
	if err != nil { // the container matters more
		j.say.Warn("output of a container may be lost if the agent is killed", "journal", j.f.Name(), "error", err)
	}
	j.log.write(lines, j.say)
	s.spool.logged += n
	h.Pending, h.Logged[s.id] = 0, uint32(s.spool.logged)
	h.Slot[s.id] ^= 1
	if all {
		h.Turn[s.id], h.Logged[s.id] = s.spool.turn^1, 0
	}
	j.save()
	if all {
		s.spool.next()
	}
}
