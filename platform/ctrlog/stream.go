// SPDX-License-Identifier: Apache-2.0

package ctrlog

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const chunkSize = 64 << 10 // as much as is in a FIFO as a rule

var (
	errEnded = errors.New("no more output")
	errLeft  = errors.New("left alone")
)

// stream is the FIFO of one output.
type stream struct {
	id    int // index of streamNames
	f     *os.File
	raw   syscall.RawConn
	spool *spool           // nil: what is taken is nowhere else until it is in the log
	buf   *[chunkSize]byte // what take has returned is in there; nil between chunks
	line  line

	leave atomic.Bool
}

func openStream(id int, path string) (*stream, error) {
	if err := makeFIFO(path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	s := &stream{id: id, f: f}
	if s.raw, err = f.SyscallConn(); err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return s, nil
}

func (s *stream) close() {
	s.f.Close()
	if s.spool != nil {
		s.spool.close()
	}
}

// take waits for output and takes some from the FIFO, into the spool if there is one. It is valid until done.
func (s *stream) take() ([]byte, error) {
	var chunk []byte
	var failure error
	if s.spool != nil && s.spool.waits {
		s.spool.waits = false
		s.buf = buffers.Get().(*[chunkSize]byte)
		return s.spool.read(s.buf[:])
	}
	err := s.raw.Read(func(fd uintptr) bool {
		var ended bool
		chunk, ended, failure = s.look(int(fd))
		return len(chunk) > 0 || failure != nil || ended
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if s.leave.Load() {
			return nil, errLeft
		}
		err = s.raw.Control(func(fd uintptr) { chunk, _, failure = s.look(int(fd)) })
	}
	switch {
	case err != nil:
		return nil, err
	case failure != nil:
		return nil, failure
	case len(chunk) == 0:
		return nil, errEnded
	}
	return chunk, nil
}

// look takes what is there. Ended is that there is nothing, and nobody at the other end any more.
func (s *stream) look(fd int) (chunk []byte, ended bool, err error) {
	s.buf = buffers.Get().(*[chunkSize]byte)
	if s.spool != nil {
		chunk, err = s.spool.take(fd, s.buf[:])
	} else {
		var n int
		n, err = retry(func() (int, error) { return unix.Read(fd, s.buf[:]) })
		chunk = s.buf[:max(n, 0)]
	}
	if len(chunk) > 0 {
		return chunk, false, nil
	}
	s.done()
	if err == unix.EAGAIN {
		return nil, false, nil
	}
	return nil, err == nil && left(fd), err
}

// left reports whether whoever was at the other end of a FIFO has gone. Linux hangs up only on those who have seen a writer come.
func left(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	n, err := retry(func() (int, error) { return unix.Poll(p, 0) })
	return err != nil || n == 1 && p[0].Revents&unix.POLLHUP != 0
}

// done gives back what take has returned.
func (s *stream) done() {
	if s.buf != nil {
		buffers.Put(s.buf)
		s.buf = nil
	}
}

// buffers are for chunks. Most containers are silent most of the time.
var buffers = sync.Pool{New: func() any { return new([chunkSize]byte) }}

func retry(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}

// finish ends take, once the FIFO is empty or at once.
func (s *stream) finish(drain bool) {
	s.leave.Store(!drain)
	s.f.SetReadDeadline(time.Unix(1, 0))
}
