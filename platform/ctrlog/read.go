// SPDX-License-Identifier: Apache-2.0

package ctrlog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"sdvbox/platform/ctrmodel"
)

// part is a file of the log, up to where it was written.
type part struct {
	f          *os.File
	begin, end int64
}

// Logs yields lines of the log, without their end. They are valid until yield returns.
func (c *Console) Logs(ctx context.Context, o ctrmodel.LogOptions, yield func(line []byte) error) error {
	if c.log == nil {
		return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "the container has no log")
	}
	r := &reader{log: c.log, yield: yield}
	defer r.close()
	if err := r.open(); err != nil {
		return err
	}
	if len(r.parts) == 0 && !o.Follow {
		return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "the container has no log yet")
	}
	if o.Tail >= 0 {
		if err := r.tail(o.Tail); err != nil {
			return err
		}
	}
	for {
		if err := r.read(ctx); err != nil || !o.Follow {
			return err
		}
		if more, err := r.wait(ctx); err != nil || !more {
			return err
		}
	}
}

// reader reads a log while it is written.
type reader struct {
	log   *logFile
	yield func([]byte) error
	parts []part // oldest first
	turn  int    // of the log when the last part was the one that is written to
	buf   *bufio.Reader
}

func (r *reader) close() {
	for _, p := range r.parts {
		p.f.Close()
	}
}

// open opens what there is.
func (r *reader) open() error {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	r.turn = r.log.turns
	return r.add(r.log.maxFiles - 1)
}

// add adds the files that are not older than so many turns. The log is locked.
func (r *reader) add(age int) error {
	for ; age >= 0; age-- {
		f, err := os.Open(r.log.name(age))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		r.parts = append(r.parts, part{f: f})
		if err := r.measure(age == 0); err != nil {
			return err
		}
	}
	return nil
}

// measure looks how far the last part was written. The log is locked.
func (r *reader) measure(current bool) (err error) {
	p := &r.parts[len(r.parts)-1]
	if current && r.log.f != nil {
		p.end = r.log.size
		return nil
	}
	p.end, err = wholeLines(p.f) // an agent that was killed may have left half a line
	return err
}

// tail leaves out all but the last n lines.
func (r *reader) tail(n int) error {
	left := n
	for i := len(r.parts) - 1; i >= 0; i-- {
		p := &r.parts[i]
		var err error
		if p.begin, left, err = lastLines(p.f, p.end, left); err != nil {
			return err
		}
	}
	return nil
}

// lastLines is where the last n lines of a file begin, and how many of them it does not have.
func lastLines(f io.ReaderAt, end int64, n int) (begin int64, left int, err error) {
	if n == 0 {
		return end, 0, nil
	}
	buf := make([]byte, chunkSize)
	for at := end; at > 0; {
		block := buf[:min(at, chunkSize)]
		at -= int64(len(block))
		if _, err := f.ReadAt(block, at); err != nil {
			return 0, 0, err
		}
		for i := len(block) - 1; ; i-- {
			if i = bytes.LastIndexByte(block[:i+1], '\n'); i < 0 {
				break
			}
			if begin := at + int64(i) + 1; begin < end { // else it is the end of the last line
				if n--; n == 0 {
					return begin, 0, nil
				}
			}
		}
	}
	if end > 0 {
		n-- // the first line has no end of another before it
	}
	return 0, n, nil
}

// read yields what the parts have, and keeps only the last of them.
func (r *reader) read(ctx context.Context) error {
	for i := range r.parts {
		p := &r.parts[i]
		section := io.NewSectionReader(p.f, p.begin, p.end-p.begin)
		if r.buf == nil {
			r.buf = bufio.NewReaderSize(section, 2*chunkSize)
		} else {
			r.buf.Reset(section)
		}
		for {
			line, err := r.buf.ReadSlice('\n')
			if err == bufio.ErrBufferFull { // not from us
				line = bytes.Clone(line)
				var rest []byte
				rest, err = r.buf.ReadBytes('\n')
				line = append(line, rest...)
			}
			if err != nil && err != io.EOF {
				return err
			}
			if len(line) > 0 {
				if yerr := r.yield(bytes.TrimSuffix(line, []byte("\n"))); yerr != nil {
					return yerr
				}
			}
			if err != nil {
				break
			}
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
		}
		p.begin = p.end
		if i < len(r.parts)-1 {
			p.f.Close()
		}
	}
	if len(r.parts) > 1 {
		r.parts = r.parts[len(r.parts)-1:]
	}
	return nil
}

// wait waits for more. There is none once the log is removed.
func (r *reader) wait(ctx context.Context) (more bool, err error) {
	l := r.log
	for {
		l.mu.Lock()
		changed := l.changed
		turned := l.turns - r.turn
		if len(r.parts) > 0 {
			err = r.measure(turned == 0)
		}
		if err == nil && (turned > 0 || len(r.parts) == 0) {
			r.turn = l.turns
			age := min(turned, l.maxFiles) - 1
			if len(r.parts) == 0 {
				age = l.maxFiles - 1
			}
			err = r.add(age)
		}
		removed := l.removed
		l.mu.Unlock()
		if err != nil {
			return false, err
		}
		for _, p := range r.parts {
			more = more || p.begin < p.end
		}
		if more || removed {
			return more, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}
