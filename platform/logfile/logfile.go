// SPDX-License-Identifier: Apache-2.0

// Package logfile is a log in a file that does not grow for ever: a full one is compressed and put aside under its name and
// the time, as NAME-2006-01-02T15-04-05.000.EXT.gz, and the oldest of those are removed.
package logfile

import (
	"cmp"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config says where the log is and how much of it is kept.
type Config struct {
	Path  string
	Size  int64         // bytes of one file
	Count int           // full files that are kept; 0: all
	Age   time.Duration // for so long; 0: for ever
}

const stamp = "2006-01-02T15-04-05.000"

// File is an open log.
type File struct {
	cfg Config

	mu   sync.Mutex
	f    *os.File
	size int64
}

// Open opens the log for appending. It creates the directory if need be.
func Open(c Config) (*File, error) {
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o755); err != nil {
		return nil, err
	}
	l := &File{cfg: c}
	return l, l.open()
}

func (l *File) open() error {
	f, err := os.OpenFile(l.cfg.Path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	l.f, l.size = f, fi.Size()
	return nil
}

// Write writes one entry.
func (l *File) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(p)) > l.cfg.Size {
		if err := l.turn(time.Now()); err != nil {
			return 0, err
		}
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}

// Close closes the file.
func (l *File) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}

// turn puts the full file aside and begins a new one. What goes wrong with the old ones, on a full disk for instance, does
// not keep the log from going on.
func (l *File) turn(now time.Time) error {
	ext := filepath.Ext(l.cfg.Path)
	base := strings.TrimSuffix(l.cfg.Path, ext) + "-"
	aside := base + now.Format(stamp) + ext
	// Somebody else may have put it aside.
	if err := os.Rename(l.cfg.Path, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	full := l.f
	if err := l.open(); err != nil {
		return err
	}
	full.Close()
	if compress(aside) != nil {
		os.Remove(aside + ".gz")
	}
	l.prune(base, ext, now)
	return nil
}

// prune removes what is too old or too much.
func (l *File) prune(base, ext string, now time.Time) {
	type old struct {
		path string
		at   time.Time
	}
	var list []old
	entries, _ := os.ReadDir(filepath.Dir(base))
	for _, e := range entries {
		s, ok := strings.CutPrefix(e.Name(), filepath.Base(base))
		at, err := time.ParseInLocation(stamp, strings.TrimSuffix(strings.TrimSuffix(s, ".gz"), ext), now.Location())
		if ok && err == nil {
			list = append(list, old{filepath.Join(filepath.Dir(base), e.Name()), at})
		}
	}
	slices.SortFunc(list, func(a, b old) int { return b.at.Compare(a.at) })
	for i, o := range list {
		if l.cfg.Count > 0 && i >= l.cfg.Count || l.cfg.Age > 0 && now.Sub(o.at) > l.cfg.Age {
			os.Remove(o.path)
		}
	}
}

// compress replaces path by path.gz.
func compress(path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path+".gz", os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(0o640))
	if err != nil {
		return err
	}
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, in)
	if err = cmp.Or(err, z.Close(), out.Close()); err != nil {
		return err
	}
	return os.Remove(path)
}
