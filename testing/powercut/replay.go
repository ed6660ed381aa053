// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
)

// A state is what a disk may hold after a power cut, by the part of the log that has reached it. Its name says which:
//
//	p7      the first 7 writes
//	p9-7    the first 9 without number 7, which was not flushed yet (the first write is number 0)
//	p7+9    the first 7, all that was flushed, and number 9 alone
//	p7/3    the first 7 and the first 3 sectors of number 7
//	p7/-3   the first 7 and the last 3 sectors of number 7
//	p7+9/3  the first 7, all that was flushed, and the first 3 sectors of number 9
type state struct {
	name    string
	entries int // at most these have been written
	flushed int // at least these have
	plain   bool
}

// weight is how closely a write is looked at.
type weight int

const (
	light weight = iota // only as one of the first n writes
	heavy               // also left out, and alone
	torn                // also in parts
)

// replay brings the image into every state that a power cut during the recorded writes may leave, one after the other, and
// calls visit in each. Without variants it visits the first kind of states only; the others are about the writes that have
// weight. At the end all writes are applied.
//
// It moves from one state to the next by writing and unwriting the difference.
func replay(m *image, entries []entry, weigh func(entry) weight, variants bool, visit func(state) error) error {
	for i, e := range entries {
		if size := int64(len(m.data)); e.off > size || e.size > size-e.off {
			return fmt.Errorf("write %d: %d bytes at %d are beyond the end of the disk", i, e.size, e.off)
		}
	}
	for start := 0; start < len(entries); {
		end := start + 1
		for end < len(entries) && entries[end].flags&flagFlush == 0 {
			end++
		}
		w := window{m, entries, start, end, weigh, visit}
		if variants {
			if err := w.alone(); err != nil {
				return err
			}
		}
		if err := w.all(variants); err != nil {
			return err
		}
		start = end
	}
	return nil
}

// window are the writes between two flushes. The one at end flushes those before it, and so on.
type window struct {
	m          *image
	entries    []entry
	start, end int
	weigh      func(entry) weight
	visit      func(state) error
}

// content returns what the entry writes.
func (e entry) content() []byte {
	if e.data == nil {
		return make([]byte, e.size)
	}
	return e.data
}

// alone visits the states with a single write of the window. Those with FUA are not in the disk's cache: they stay.
func (w window) alone() error {
	type undo struct {
		off    int64
		before []byte
	}
	var stay []undo
	for k := w.start; k < w.end; k++ {
		e := w.entries[k]
		weight, fua := w.weigh(e), e.flags&flagFUA != 0
		if weight == light && !fua {
			continue
		}
		if weight == torn {
			if err := w.tear(fmt.Sprintf("p%d+%d", w.start, k), k); err != nil {
				return err
			}
		}
		before := w.m.write(e.off, e.content())
		if weight != light {
			if err := w.visit(state{fmt.Sprintf("p%d+%d", w.start, k), k + 1, w.start, false}); err != nil {
				return err
			}
		}
		if fua {
			stay = append(stay, undo{e.off, before})
		} else {
			w.m.write(e.off, before)
		}
	}
	for i := len(stay) - 1; i >= 0; i-- {
		w.m.write(stay[i].off, stay[i].before)
	}
	return nil
}

// all applies the writes of the window one after the other and, if asked for, tears each and leaves each out.
func (w window) all(variants bool) error {
	without := map[int][]byte{} // what would be in the place of an unflushed write, had it not happened
	for i := w.start; i < w.end; i++ {
		e := w.entries[i]
		data, weight := e.content(), w.weigh(e)
		if variants && weight == torn {
			if err := w.tear(fmt.Sprintf("p%d", i), i); err != nil {
				return err
			}
		}
		before := w.m.write(e.off, data)
		if err := w.visit(state{fmt.Sprintf("p%d", i+1), i + 1, w.start, true}); err != nil {
			return err
		}
		if !variants {
			continue
		}
		for k := w.start; k < i; k++ {
			gone, ok := without[k]
			if !ok {
				continue
			}
			o := w.entries[k]
			if from, to := max(o.off, e.off), min(o.off+o.size, e.off+e.size); from < to {
				copy(gone[from-o.off:to-o.off], data[from-e.off:to-e.off])
			}
			real := w.m.write(o.off, gone)
			if err := w.visit(state{fmt.Sprintf("p%d-%d", i+1, k), i + 1, w.start, false}); err != nil {
				return err
			}
			w.m.write(o.off, real)
		}
		if weight != light && e.flags&flagFUA == 0 {
			without[i] = before
		}
	}
	return nil
}

// tear visits the states with a part of a write that is not applied yet: sectors are written as a whole, but not all at once.
func (w window) tear(name string, i int) error {
	off, data := w.entries[i].off, w.entries[i].content()
	for cut := int64(unit); cut < int64(len(data)); cut += unit {
		for _, part := range []struct {
			name     string
			from, to int64
		}{
			{fmt.Sprintf("%s/%d", name, cut/unit), 0, cut},
			{fmt.Sprintf("%s/-%d", name, (int64(len(data))-cut)/unit), cut, int64(len(data))},
		} {
			if bytes.Equal(w.m.data[off+part.from:off+part.to], data[part.from:part.to]) {
				continue
			}
			before := w.m.write(off+part.from, data[part.from:part.to])
			if err := w.visit(state{part.name, i + 1, w.start, false}); err != nil {
				return err
			}
			w.m.write(off+part.from, before)
		}
	}
	return nil
}
