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

const chunkSize = 64 << 10 // as much as is in a FIFO at most

var (
	errEnded = errors.New("no more output")
	errLeft  = errors.New("left alone")
)

// stream is the FIFO of one output.
type stream struct {
	id   int // index of streamNames
	f    *os.File
	raw  syscall.RawConn
	copy [2]int           // a pipe, into which one can look without taking anything from the FIFO
	buf  *[chunkSize]byte // what peek has returned is in there; nil between chunks
	line line

	seen  bool // there is, or was, somebody at the other end
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
	s := &stream{id: id, f: f, copy: [2]int{-1, -1}}
	if s.raw, err = f.SyscallConn(); err == nil {
		err = unix.Pipe2(s.copy[:], unix.O_CLOEXEC|unix.O_NONBLOCK)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return s, nil
}

func (s *stream) close() {
	s.f.Close()
	for _, fd := range s.copy {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// peek waits for output and returns some. It stays in the FIFO.
func (s *stream) peek() ([]byte, error) {
	var chunk []byte
	var failure error
	err := s.raw.Read(func(fd uintptr) bool {
		var ended bool
		chunk, ended, failure = s.look(int(fd))
		if len(chunk) > 0 || failure != nil || ended && s.seen {
			return true
		}
		s.seen = s.seen || !ended
		if ended { // nobody has come so far: what wakes us is somebody
			s.seen = true
		}
		return false
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
	s.seen = true
	return chunk, nil
}

// look does not wait. Ended is that there is nothing and nobody at the other end.
func (s *stream) look(fd int) (chunk []byte, ended bool, err error) {
	n, err := retry(func() (int, error) {
		n, err := unix.Tee(fd, s.copy[1], chunkSize, unix.SPLICE_F_NONBLOCK)
		return int(n), err
	})
	if err == unix.EAGAIN {
		return nil, false, nil
	}
	if err != nil || n == 0 {
		return nil, err == nil, err
	}
	if s.buf == nil {
		s.buf = buffers.Get().(*[chunkSize]byte)
	}
	for got := 0; got < n; {
		m, err := retry(func() (int, error) { return unix.Read(s.copy[0], s.buf[got:n]) })
		if err != nil {
			return nil, false, err
		}
		got += m
	}
	return s.buf[:n], false, nil
}

// consume takes n bytes, at which peek has looked, from the FIFO.
func (s *stream) consume(n int) error {
	var failure error
	err := s.raw.Control(func(fd uintptr) {
		sink := buffers.Get().(*[chunkSize]byte)
		defer buffers.Put(sink)
		for n > 0 && failure == nil {
			var m int
			m, failure = retry(func() (int, error) { return unix.Read(int(fd), sink[:min(n, len(sink))]) })
			n -= m
		}
	})
	return errors.Join(err, failure)
}

// done gives back what peek has returned.
func (s *stream) done() {
	buffers.Put(s.buf)
	s.buf = nil
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

// finish ends peek, once the FIFO is empty or at once.
func (s *stream) finish(drain bool) {
	s.leave.Store(!drain)
	s.f.SetReadDeadline(time.Unix(1, 0))
}
