// SPDX-License-Identifier: Apache-2.0

// Package ctrlog is the standard streams of containers: the FIFOs that connect the agent with what runs a container, the log file
// that the output goes to, and the clients that are attached.
//
// A container goes on when the agent ends, even if it is killed, and its output waits in the FIFOs. What is taken out of a FIFO
// goes into files next to it first, and a journal tells the next agent how far the last one came, so that nothing is lost or
// said twice. Not so if the log must not keep the container waiting: then what waits in memory is lost with an agent that is
// killed, and what there is no room for is left out.
package ctrlog

import (
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/ctrmodel"
)

// Config says where the streams of a container go.
type Config struct {
	Dir   string // for the FIFOs, of this container only, which outlives the agent but not the machine
	Stdin bool
	TTY   bool // has no stderr

	File     string // the log; empty: none
	MaxSize  int64  // bytes of a file
	MaxFiles int    // with the one that is written to
	Buffer   int64  // bytes that wait for the log while the container goes on; 0: the container waits

	Patient    bool         // output waits for all that are attached, not just for a while
	StdinEnded func() error // tells the other end of stdin that there is no more; nil: others may attach, and go on
	Log        *slog.Logger
}

// maxFiles is how many files a log has at most: each of them is looked for when the log is read or rotated, and nobody else gets at
// the log meanwhile.
const maxFiles = 1000

// ConfigOf is how a container wants its streams. Logs without a place of their own are below home.
func ConfigOf(c *ctrmodel.Container, home, dir string, log *slog.Logger) (Config, error) {
	l := c.HostConfig.Log
	cfg := Config{Dir: dir, Stdin: c.IOConfig.OpenStdin, TTY: c.IOConfig.TTY, Log: log}
	if l.Driver.Type != ctrmodel.LogFile {
		return cfg, nil
	}
	cfg.File = filepath.Join(home, "containers", c.ID, "json.log")
	if l.Driver.RootDir != "" {
		cfg.File = filepath.Join(l.Driver.RootDir, c.ID, "json.log")
	}
	cfg.MaxFiles = int(min(l.Driver.MaxFiles, maxFiles))
	if l.Driver.MaxFiles > maxFiles && log != nil {
		// There may be such a container already, so it is too late to refuse it.
		log.Warn("a container wants more log files than there can be", "container", c.Name, "max_files", l.Driver.MaxFiles, "files", maxFiles)
	}
	var err error
	if cfg.MaxSize, err = ctrmodel.ParseSize(l.Driver.MaxSize); err != nil {
		return cfg, err
	}
	if l.Mode.Mode == ctrmodel.LogNonBlocking {
		cfg.Buffer, err = ctrmodel.ParseSize(l.Mode.MaxBufferSize)
	}
	return cfg, err
}

// Paths are the FIFOs of a process, empty for a stream that it does not have.
type Paths struct{ Stdin, Stdout, Stderr string }

// Console is the streams of one container, as long as there is the container. Open and Close are for each process.
type Console struct {
	cfg   Config
	paths Paths
	log   *logFile // nil: none

	patience time.Duration // with somebody who is attached and does not read

	mu       sync.Mutex
	running  *session // nil: no process
	attached map[*attachment]bool
	removed  bool
}

// session is the streams of one process.
type session struct {
	journal *journal // nil unless the container waits for the log
	queue   *queue   // nil unless the log waits for the container
	streams []*stream
	done    sync.WaitGroup
	ended   chan struct{} // closed when there is no more output
}

// New returns the console of a container that need not run.
func New(cfg Config) *Console {
	c := &Console{cfg: cfg, patience: 5 * time.Second, attached: map[*attachment]bool{}}
	c.paths.Stdout = filepath.Join(cfg.Dir, "stdout")
	if cfg.Stdin {
		c.paths.Stdin = filepath.Join(cfg.Dir, "stdin")
	}
	if !cfg.TTY {
		c.paths.Stderr = filepath.Join(cfg.Dir, "stderr")
	}
	if cfg.Log == nil {
		c.cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.File != "" {
		c.log = &logFile{path: cfg.File, maxSize: cfg.MaxSize, maxFiles: max(cfg.MaxFiles, 1), changed: make(chan struct{})}
		if cfg.MaxSize <= 0 {
			c.log.maxSize = math.MaxInt64
		}
	}
	return c
}

// Open prepares the streams for a process that is about to be created, or connects to those of a process that an agent has left
// behind. It does nothing if they are open.
func (c *Console) Open() (Paths, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running != nil {
		return c.paths, nil
	}
	s, err := c.open()
	if err != nil {
		return Paths{}, err
	}
	c.running = s
	for _, st := range s.streams {
		s.done.Go(func() { c.copy(s, st) })
	}
	go func() {
		s.done.Wait()
		if s.queue != nil {
			s.queue.close()
		}
		c.endAttached(nil) // before there may be another process
		close(s.ended)
	}()
	return c.paths, nil
}

func (c *Console) open() (s *session, err error) {
	s = &session{ended: make(chan struct{})}
	defer func() {
		if err != nil {
			s.closeFiles()
		}
	}()
	if err := os.MkdirAll(c.cfg.Dir, 0o711); err != nil {
		return s, err
	}
	if c.log != nil {
		if err := c.log.open(); err != nil {
			return s, err
		}
		if err := c.log.prune(); err != nil {
			c.cfg.Log.Warn("old files of a container's log are left", "file", c.log.path, "error", err)
		}
	}
	if c.cfg.Stdin {
		if err := makeFIFO(c.paths.Stdin); err != nil {
			return s, err
		}
	}
	for i, path := range []string{c.paths.Stdout, c.paths.Stderr} {
		if path == "" {
			continue
		}
		st, err := openStream(i, path)
		if err != nil {
			return s, err
		}
		s.streams = append(s.streams, st)
	}
	switch {
	case c.log == nil:
	case c.cfg.Buffer > 0:
		s.queue = newQueue(c.cfg.Buffer, c.log, c.cfg.Log)
	default:
		s.journal, err = openJournal(c.cfg.Dir, c.log, s.streams, c.cfg.Log)
	}
	return s, err
}

func makeFIFO(path string) error {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return &fs.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	return nil
}

func (s *session) closeFiles() {
	for _, st := range s.streams {
		st.close()
	}
	if s.journal != nil {
		s.journal.f.Close()
	}
}

// Reopen is Open for a process that has perhaps ended while no agent was there. What it has said last may be in FIFOs that only
// the shim holds, until the task is deleted.
func (c *Console) Reopen() error {
	if _, err := os.Stat(c.paths.Stdout); err != nil {
		return nil // there are none
	}
	_, err := c.Open()
	return err
}

// Close is for when the process has ended. What it has left in the FIFOs is written, and the FIFOs are removed.
func (c *Console) Close() error {
	err := c.Reopen()
	if !c.finish(true) {
		c.endAttached(nil)
	}
	return errors.Join(err, os.RemoveAll(c.cfg.Dir))
}

// Leave is for when the agent ends and the process does not.
func (c *Console) Leave() {
	c.endAttached(ctrmodel.Errorf(ctrmodel.Unavailable, "the agent ends"))
	c.finish(false)
}

// finish ends the session, and those who are attached with it. It reports whether there was one.
func (c *Console) finish(drain bool) bool {
	c.mu.Lock()
	s := c.running
	c.running = nil
	c.mu.Unlock()
	if s == nil {
		return false
	}
	for _, st := range s.streams {
		st.finish(drain)
	}
	<-s.ended
	s.closeFiles()
	if c.log != nil {
		c.log.close()
	}
	return true
}

// Remove is for when there is no container any more. It removes the log, too.
func (c *Console) Remove() error {
	c.mu.Lock()
	c.removed = true
	c.mu.Unlock()
	err := c.Close()
	c.endAttached(nil) // those who wait for a next process, too
	if c.log != nil {
		err = errors.Join(err, c.log.remove())
	}
	return err
}

// Ended is closed when the process has no more output. It is nil if the streams are not open.
func (c *Console) Ended() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == nil {
		return nil
	}
	return c.running.ended
}

// copy takes the output of a stream to where it goes until there is no more.
func (c *Console) copy(s *session, st *stream) {
	for {
		chunk, err := st.take()
		if err != nil {
			if err != errLeft || s.queue != nil { // the journal keeps it
				c.flush(s, st)
			}
			if err != errLeft && err != errEnded {
				c.cfg.Log.Error("output of a container cannot be read", "fifo", st.f.Name(), "error", err)
			}
			return
		}
		c.keep(s, st, chunk)
		c.fanOut(st.id, chunk)
		st.done()
	}
}

// keep lets a chunk get into the log.
func (c *Console) keep(s *session, st *stream, chunk []byte) {
	switch {
	case s.journal != nil:
		s.journal.keep(st, chunk)
	case s.queue != nil:
		now := time.Now()
		for rest := chunk; len(rest) > 0; {
			text, n := st.line.cut(rest)
			if text != nil {
				s.queue.add(entry{st.id, st.line.time(now), append([]byte(nil), text...)})
			}
			rest = rest[n:]
		}
	}
}

// flush writes a last line that was not ended.
func (c *Console) flush(s *session, st *stream) {
	text := st.line.end()
	switch {
	case len(text) == 0:
	case s.journal != nil:
		s.journal.flush(st, text)
	case s.queue != nil:
		s.queue.add(entry{st.id, st.line.time(time.Now()), text})
	}
}
