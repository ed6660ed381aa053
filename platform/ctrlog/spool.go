// SPDX-License-Identifier: Apache-2.0

package ctrlog

import (
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// spool is where the output of a stream is between the FIFO and the log: in two files in turn. The kernel moves it there, so that
// each byte is in the FIFO or in the file, and never in both or none, whenever the agent is killed.
type spool struct {
	files  [2]*os.File
	turn   uint8 // the file that is in use; the other one is empty
	logged int   // bytes of it that are in the log already
	waits  bool  // there are more, from an agent before
	log    *slog.Logger
	failed bool
}

func openSpool(path string, log *slog.Logger) (*spool, error) {
	p := &spool{log: log}
	for i := range p.files {
		f, err := os.OpenFile(path+[...]string{".0", ".1"}[i], os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			p.close()
			return nil, err
		}
		p.files[i] = f
	}
	return p, nil
}

func (p *spool) close() {
	for _, f := range p.files {
		if f != nil {
			f.Close()
		}
	}
}

// recover goes on where an agent before has stopped.
func (p *spool) recover(turn uint8, logged int) error {
	p.turn = turn
	fi, err := p.files[turn].Stat()
	if err != nil {
		return err
	}
	p.logged = min(max(logged, 0), int(min(fi.Size(), chunkSize)))
	p.waits = fi.Size() > int64(p.logged)
	return p.files[turn^1].Truncate(0)
}

// take moves some output from the FIFO into the spool and reads it there. If that does not work, it is read from the FIFO: the
// container matters more.
func (p *spool) take(fifo int, buf []byte) ([]byte, error) {
	n, err := retry(func() (int, error) {
		var at int64
		n, err := unix.Splice(fifo, nil, int(p.files[p.turn].Fd()), &at, len(buf), unix.SPLICE_F_NONBLOCK)
		return int(n), err
	})
	switch {
	case err == nil && n > 0:
		p.failed = false
		return p.read(buf[:n])
	case err == nil || err == unix.EAGAIN:
		return nil, err
	}
	if !p.failed {
		p.failed = true
		p.log.Warn("output of a container may be lost if the agent is killed", "spool", p.files[p.turn].Name(), "error", err)
	}
	n, err = retry(func() (int, error) { return unix.Read(fifo, buf) })
	return buf[:max(n, 0)], err
}

// read reads what is in the spool and not in the log.
func (p *spool) read(buf []byte) ([]byte, error) {
	n, err := p.files[p.turn].ReadAt(buf, int64(p.logged))
	if n > 0 {
		return buf[:n], nil
	}
	return nil, err
}

// next is for when all of the spool is in the log, and the journal says so.
func (p *spool) next() {
	if err := p.files[p.turn].Truncate(0); err != nil {
		p.log.Warn("output of a container may be said twice", "error", err)
	}
	p.turn, p.logged = p.turn^1, 0
}
