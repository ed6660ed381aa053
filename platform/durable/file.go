// SPDX-License-Identifier: Apache-2.0

// Package durable writes the files that matter: those which must be whole
// whenever the power fails. A file is either replaced in one step (WriteFile)
// or is a Journal, which keeps one record in space it owns beforehand.
//
// When a function returns without error, its effect has reached the disk.
package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// WriteFile replaces path by a file with the given content and permission
// bits. After a crash at any moment path holds the old content or the new.
// A symbolic link at path is replaced, not followed. The owner of a file stays,
// if the process may give files away.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	t, err := openTemp(path, perm, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer t.Close()
	var old unix.Stat_t
	if unix.Lstat(path, &old) == nil && old.Mode&unix.S_IFMT == unix.S_IFREG {
		_ = t.Chown(int(old.Uid), int(old.Gid))
	}
	return replace(t, path, data)
}

// Remove removes path for good. A missing file is no error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	return syncDir(filepath.Dir(path))
}

// Rename gives a file, whose content the caller has synced, the name to.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

// MkdirAll creates the directory path and its missing parents such that a
// power cut cannot take them away again.
func MkdirAll(path string, perm os.FileMode) error {
	path = filepath.Clean(path)
	if fi, err := os.Stat(path); err == nil {
		if !fi.IsDir() {
			return &os.PathError{Op: "mkdir", Path: path, Err: unix.ENOTDIR}
		}
		return nil
	}
	parent := filepath.Dir(path)
	if err := MkdirAll(parent, perm); err != nil {
		return err
	}
	if err := os.Mkdir(path, perm); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return syncDir(parent)
}

// openTemp opens the file that is to become path. Its name is fixed, so that
// crashes leave at most one behind; the lock, taken as how says, keeps two
// writers apart.
func openTemp(path string, perm os.FileMode, how int) (*os.File, error) {
	name := path + ".tmp"
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, perm)
		if err != nil {
			return nil, err
		}
		if err := flock(f, how); err != nil {
			f.Close()
			return nil, err
		}
		if !isAt(f, name) { // the writer before us renamed it
			f.Close()
			continue
		}
		if err := errors.Join(f.Chmod(perm), f.Truncate(0)); err != nil {
			f.Close()
			return nil, err
		}
		return f, nil
	}
}

// replace fills t, which is from openTemp, and gives it the name path.
func replace(t *os.File, path string, data []byte) error {
	_, err := t.Write(data)
	if err == nil {
		err = t.Sync()
	}
	if err == nil {
		err = os.Rename(t.Name(), path)
	}
	if err != nil {
		os.Remove(t.Name()) // still ours: the lock is held
		return err
	}
	return syncDir(filepath.Dir(path))
}

// isAt reports whether name still refers to the open file f.
func isAt(f *os.File, name string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(name)
	return err == nil && os.SameFile(a, b)
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EWOULDBLOCK:
			return fmt.Errorf("%s is in use by another process", f.Name())
		case err != nil:
			return &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
		return nil
	}
}

// syncDir makes the names in a directory durable. File systems that cannot
// (some network and FUSE ones) say EINVAL or ENOTSUP: nothing more can be done.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}
