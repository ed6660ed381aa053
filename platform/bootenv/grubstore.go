// SPDX-License-Identifier: Apache-2.0

package bootenv

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The variables that number the copies. They are not part of Vars.
const (
	seqVar = "SDV_SEQ"
	endVar = "SDV_END"
)

// maxGrub limits what is read of a file that is no environment block.
const maxGrub = 64 << 10

// plain is the number of a copy without SDV_SEQ and SDV_END.
const plain = -1

// grubStore is a GRUB environment in two files, or in a single one.
type grubStore struct {
	paths []string
	watch watch
}

func newPair(path string) *grubStore { return &grubStore{paths: []string{path, path + "2"}} }

// grubCopy is the content of one file.
type grubCopy struct {
	vars *Vars
	seq  int
	err  error // not valid, and why
}

func (s *grubStore) Kind() Kind     { return GRUB }
func (s *grubStore) String() string { return "grub:" + s.paths[0] }

func (s *grubStore) Load() (*Vars, error) {
	l, err := s.lock(unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	_, cur, err := s.read()
	if err != nil {
		return nil, err
	}
	return cur.vars, nil
}

func (s *grubStore) Update(change func(*Vars) error) error {
	l, err := s.lock(unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer l.Close()
	copies, cur, err := s.read()
	if err != nil {
		return err
	}
	vars := cur.vars.Clone()
	if err := change(vars); err != nil {
		return err
	}
	vars.Delete(seqVar)
	vars.Delete(endVar)
	if vars.Equal(cur.vars) {
		return nil
	}
	return s.write(copies, cur, vars)
}

func (s *grubStore) create(vars *Vars) error {
	l, err := s.lock(unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer l.Close()
	copies, cur, err := s.read()
	if errors.Is(err, ErrInvalid) {
		cur = copies[0]
	} else if err != nil {
		return err
	}
	return s.write(copies, cur, vars)
}

func (s *grubStore) Repair() (bool, error) {
	l, err := s.lock(unix.LOCK_EX)
	if err != nil {
		return false, err
	}
	defer l.Close()
	copies, cur, err := s.read()
	if err != nil {
		return false, err
	}
	for i, c := range copies {
		if c.err == nil {
			continue
		}
		block, err := formatCopy(cur.vars, cur.seq)
		if err == nil {
			err = s.writeCopy(s.paths[i], block)
		}
		return err == nil, err
	}
	return false, nil
}

// lock locks the directory of the environment: that works on FAT, on a
// read-only file system and before the files exist.
func (s *grubStore) lock(how int) (*os.File, error) {
	dir, err := os.Open(filepath.Dir(s.paths[0]))
	if err != nil {
		return nil, err
	}
	if err := lock(dir, how, lockWait); err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// read returns all copies and the current one.
func (s *grubStore) read() ([]*grubCopy, *grubCopy, error) {
	var copies []*grubCopy
	for _, path := range s.paths {
		copies = append(copies, readCopy(path))
	}
	cur := newer(copies)
	if cur == nil {
		var errs []error
		for _, c := range copies {
			errs = append(errs, c.err)
		}
		return copies, nil, invalid(errs)
	}
	return copies, cur, nil
}

// newer returns the current copy, nil if none is valid.
func newer(copies []*grubCopy) *grubCopy {
	var cur *grubCopy
	for _, c := range copies {
		switch {
		case c.err != nil:
		case cur == nil,
			cur.seq == plain && c.seq != plain,
			cur.seq != plain && c.seq == next(cur.seq):
			cur = c
		}
	}
	return cur
}

func next(seq int) int { return (seq + 1) % 4 }

func readCopy(path string) *grubCopy {
	f, err := os.Open(path)
	if err != nil {
		return &grubCopy{err: err}
	}
	defer f.Close()
	block, err := io.ReadAll(io.LimitReader(f, maxGrub))
	if err != nil {
		return &grubCopy{err: err}
	}
	c := parseCopy(block)
	if c.err != nil {
		c.err = fmt.Errorf("%s: %w", path, c.err)
	}
	return c
}

func parseCopy(block []byte) *grubCopy {
	vars, err := ParseGrub(block)
	if err != nil {
		return &grubCopy{err: err}
	}
	c := &grubCopy{vars: vars, seq: plain}
	seq, end := vars.Get(seqVar), vars.Get(endVar)
	vars.Delete(seqVar)
	vars.Delete(endVar)
	switch {
	case seq == "" && end == "":
	case seq == end && len(seq) == 1 && seq[0] >= '0' && seq[0] <= '3':
		c.seq = int(seq[0] - '0')
	default:
		c.err = fmt.Errorf("half written: %s is %q and %s is %q", seqVar, seq, endVar, end)
	}
	return c
}

// formatCopy returns the block of a copy: numbered, the variables about the
// boot first.
func formatCopy(vars *Vars, seq int) ([]byte, error) {
	if seq == plain {
		return FormatGrub(vars)
	}
	keys := vars.Keys()
	slices.SortStableFunc(keys, func(a, b string) int { return rank(a) - rank(b) })
	var out Vars
	out.Set(seqVar, string(rune('0'+seq)))
	for _, k := range keys {
		if k != seqVar && k != endVar {
			out.Set(k, vars.Get(k))
		}
	}
	out.Set(endVar, string(rune('0'+seq)))
	return FormatGrub(&out)
}

// rank sorts the variables that RAUC and the boot script use to the front.
func rank(name string) int {
	switch {
	case name == "ORDER":
		return 0
	case strings.HasSuffix(name, "_OK"), strings.HasSuffix(name, "_TRY"):
		return 1
	case strings.HasPrefix(name, "SDV_"):
		return 2
	}
	return 3
}

// write stores vars as successor of the copy cur, which it replaces last. A
// medium on which only one of the two can be written still takes them: where
// that is the current one it keeps its number, as it does when the boot script
// has to save there: the other one, if it is whole, must stay the older.
func (s *grubStore) write(copies []*grubCopy, cur *grubCopy, vars *Vars) error {
	if len(copies) == 1 {
		block, err := FormatGrub(vars)
		if err != nil {
			return err
		}
		return s.writeSingle(s.paths[0], block)
	}
	seq := next(cur.seq)
	block, err := formatCopy(vars, seq)
	if err != nil {
		return err
	}
	spare, current := s.paths[1], s.paths[0]
	if cur == copies[1] {
		spare, current = current, spare
	}
	spareErr := s.writeCopy(spare, block)
	if spareErr == nil {
		// From now on the spare one counts, so the change is made.
		_ = s.writeCopy(current, block)
		return nil
	}
	if cur.err != nil {
		return errors.Join(spareErr, s.writeCopy(current, block))
	}
	if block, err = formatCopy(vars, cur.seq); err != nil {
		return err
	}
	// There is nothing to go back to, so the header is not blanked before.
	if err := s.writeSingle(current, block); err != nil {
		return errors.Join(spareErr, err)
	}
	return nil
}

// writeCopy replaces one of two copies. Whatever the file holds, at any time a
// reader finds the old copy, an invalid one or the new one.
func (s *grubStore) writeCopy(path string, block []byte) error {
	return edit(path, true, s.watch, func(w *writer) {
		head, tail := block[:sectorSize], block[sectorSize:]
		old := w.read(0, maxGrub)
		if len(old) != grubSize || !bytes.Equal(old[sectorSize:], tail) {
			w.write(bytes.Repeat([]byte("#"), sectorSize), 0)
			w.sync()
			w.write(tail, sectorSize)
			if len(old) > grubSize {
				w.resize(grubSize)
			}
			w.sync()
		}
		w.write(head, 0)
		w.sync()
		w.verify(block, 0)
	})
}

// writeSingle replaces a file that has no second copy, or none to rely on.
func (s *grubStore) writeSingle(path string, block []byte) error {
	return edit(path, true, s.watch, func(w *writer) {
		old := w.read(0, maxGrub)
		w.write(block, 0)
		if len(old) > grubSize {
			w.resize(grubSize)
		}
		w.sync()
		w.verify(block, 0)
	})
}

// absent reports whether the directory of the environment is only the place
// where its file system is still to be mounted.
func (s *grubStore) absent() bool {
	dir := filepath.Dir(s.paths[0])
	var here, above unix.Stat_t
	return unix.Stat(dir, &here) != nil || unix.Stat(filepath.Join(dir, ".."), &above) != nil || here.Dev == above.Dev
}
