// SPDX-License-Identifier: Apache-2.0

package bootenv

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const sectorSize = 512

// A step is what the medium sees of a change: data written at off, the size
// set to off, or everything before made durable.
type step struct {
	path string
	op   string // "write", "resize" or "sync"
	off  int64
	data []byte
}

// watch is told about every step; tests cut the power there.
type watch func(step)

// writer changes a file in place. After an error it does nothing more.
type writer struct {
	f     *os.File
	watch watch
	err   error
}

// edit opens the file at path for change, creating it if create is set.
func edit(path string, create bool, watch watch, change func(*writer)) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if create && errors.Is(err, os.ErrNotExist) {
		f, err = createFile(path)
	}
	if err != nil {
		return err
	}
	w := writer{f: f, watch: watch}
	change(&w)
	return errors.Join(w.err, f.Close())
}

func createFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err == nil {
		err = errors.Join(dir.Sync(), dir.Close())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (w *writer) step(op string, off int64, data []byte, err error) {
	w.err = err
	if w.watch != nil && err == nil {
		w.watch(step{w.f.Name(), op, off, bytes.Clone(data)})
	}
}

// read returns up to limit bytes at off.
func (w *writer) read(off, limit int64) []byte {
	if w.err != nil {
		return nil
	}
	data, err := io.ReadAll(io.NewSectionReader(w.f, off, limit))
	w.err = err
	return data
}

func (w *writer) write(data []byte, off int64) {
	if w.err == nil {
		_, err := w.f.WriteAt(data, off)
		w.step("write", off, data, err)
	}
}

func (w *writer) resize(size int64) {
	if w.err == nil {
		w.step("resize", size, nil, w.f.Truncate(size))
	}
}

func (w *writer) sync() {
	if w.err == nil {
		w.step("sync", 0, nil, w.f.Sync())
	}
}

// verify compares what the medium, not the page cache, holds at off with data.
func (w *writer) verify(data []byte, off int64) {
	// Where the cache cannot be dropped, its content is compared.
	_ = unix.Fadvise(int(w.f.Fd()), off, int64(len(data)), unix.FADV_DONTNEED)
	if got := w.read(off, int64(len(data))); w.err == nil && !bytes.Equal(got, data) {
		w.err = errors.New("the medium does not hold what was written")
	}
}

// lockWait is how long to wait for another process to finish its change.
const lockWait = 10 * time.Second

// lock takes the advisory lock of f, shared or exclusive, until f is closed.
func lock(f *os.File, how int, wait time.Duration) error {
	for deadline := time.Now().Add(wait); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case err != unix.EWOULDBLOCK && err != unix.EINTR:
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		case time.Now().After(deadline):
			return fmt.Errorf("lock %s: another process held it for %v", f.Name(), wait)
		}
	}
}
