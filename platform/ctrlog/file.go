// SPDX-License-Identifier: Apache-2.0

package ctrlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// logFile is the log, which is in PATH, before that in PATH.1, and so on.
type logFile struct {
	path     string
	maxSize  int64
	maxFiles int

	mu      sync.Mutex
	f       *os.File // nil: not open
	size    int64
	turns   int           // counts the files; the one that is written to is the last
	changed chan struct{} // closed, and made anew, when there is more to read
	removed bool
	stuck   bool  // it cannot be rotated
	lost    int64 // lines that could not be written
}

func (l *logFile) name(age int) string {
	if age == 0 {
		return l.path
	}
	return fmt.Sprintf("%s.%d", l.path, age)
}

// open opens the log for writing. An agent that was killed may have left half a line.
func (l *logFile) open() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(l.path), 0o711); err != nil {
		return err
	}
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	if l.size, err = wholeLines(f); err == nil {
		err = f.Truncate(l.size)
	}
	if err != nil {
		f.Close()
		return err
	}
	l.f = f
	return nil
}

// wholeLines is the size of f without a line at the end that has no end.
func wholeLines(f *os.File) (int64, error) {
	end, err := f.Seek(0, io.SeekEnd)
	buf := make([]byte, 4096)
	for err == nil && end > 0 {
		block := buf[:min(end, int64(len(buf)))]
		if _, err = f.ReadAt(block, end-int64(len(block))); err != nil {
			break
		}
		if i := bytes.LastIndexByte(block, '\n'); i >= 0 {
			return end - int64(len(block)) + int64(i) + 1, nil
		}
		end -= int64(len(block))
	}
	return 0, err
}

// cut throws away what comes after a size. No agent has written down one in the middle of a line; nothing is lost for it.
func (l *logFile) cut(size int64) error {
	if size < 0 || size >= l.size {
		return nil
	}
	if size > 0 {
		var last [1]byte
		if _, err := l.f.ReadAt(last[:], size-1); err != nil || last[0] != '\n' {
			return err
		}
	}
	l.size = size
	return l.f.Truncate(size)
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
}

func (l *logFile) remove() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removed = true
	l.tell()
	os.Remove(l.path + ".new") // of a turn that was cut off
	err := l.removeFrom(1)
	if gone := os.Remove(l.path); !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	os.Remove(filepath.Dir(l.path)) // unless others have something there
	return err
}

// prune removes files that an agent before, or a log of more files, has left: nobody would read or rotate them.
func (l *logFile) prune() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.removeFrom(l.maxFiles)
}

// removeFrom removes the files of an age, which is not 0, and older ones.
func (l *logFile) removeFrom(age int) error {
	dir, base := filepath.Dir(l.path), filepath.Base(l.path)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		suffix, ok := strings.CutPrefix(e.Name(), base+".")
		n, _ := strconv.Atoi(suffix)
		if !ok || n < age || suffix != strconv.Itoa(n) {
			continue
		}
		if gone := os.Remove(filepath.Join(dir, e.Name())); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	return err
}

// tell wakes those who wait for more.
func (l *logFile) tell() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// room is how many bytes may be written before the next turn, which it takes if need be. At the limit there is room for a line.
func (l *logFile) room(log *slog.Logger) int64 {
	if l.size < l.maxSize {
		return l.maxSize - l.size
	}
	err := l.turn()
	if err == nil {
		l.stuck = false
		return l.maxSize
	}
	if !l.stuck {
		l.stuck = true
		log.Error("log of a container is not rotated", "file", l.path, "error", err)
	}
	return chunkSize
}

// turn begins a new file. Those who read the old ones go on.
func (l *logFile) turn() error {
	next := l.path + ".new"
	f, err := os.OpenFile(next, os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	for age := l.maxFiles - 1; age > 0 && err == nil; age-- {
		if err = os.Rename(l.name(age-1), l.name(age)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		err = os.Rename(next, l.path)
	}
	if err != nil {
		f.Close()
		return err
	}
	l.f.Close()
	l.f, l.size = f, 0
	l.turns++
	return nil
}

// write writes lines, all or none. A full disk does not stop the container.
func (l *logFile) write(lines []byte, log *slog.Logger) {
	if len(lines) == 0 {
		return
	}
	_, err := l.f.Write(lines)
	if err != nil {
		err = errors.Join(err, l.f.Truncate(l.size))
		if l.lost == 0 {
			log.Error("output of a container is not logged", "file", l.path, "error", err)
		}
		l.lost += int64(bytes.Count(lines, []byte("\n")))
		return
	}
	if l.lost > 0 {
		log.Warn("output of a container is logged again", "file", l.path, "lost_lines", l.lost)
		l.lost = 0
	}
	l.size += int64(len(lines))
	l.tell()
}
