// SPDX-License-Identifier: Apache-2.0

package bootenv

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// fwLock is the lock file that the tools of libubootenv take.
const fwLock = "/var/lock/fw_printenv.lock"

// ubootStore is a U-Boot environment in one or two copies.
type ubootStore struct {
	config  string
	regions []region
	watch   watch
}

func openUBoot(config string) (*ubootStore, error) {
	data, err := os.ReadFile(config)
	if err != nil {
		return nil, err
	}
	regions, err := parseConfig(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", config, err)
	}
	return &ubootStore{config: config, regions: regions}, nil
}

// ubootCopy is the content of one region.
type ubootCopy struct {
	vars  *Vars
	flags byte
	err   error // not valid, and why
}

func (s *ubootStore) Kind() Kind     { return UBoot }
func (s *ubootStore) String() string { return "uboot:" + s.config }

func (s *ubootStore) redundant() bool { return len(s.regions) == 2 }

func (s *ubootStore) Load() (*Vars, error) {
	l, err := s.lock(unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	_, cur, err := s.read()
	if err != nil {
		return nil, err
	}
	return cur.vars, nil
}

func (s *ubootStore) Update(change func(*Vars) error) error {
	l, err := s.lock(unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer l.Close()
	copies, cur, err := s.read()
	if err != nil {
		return err
	}
	vars := cur.vars.Clone()
	if err := change(vars); err != nil {
		return err
	}
	if vars.Equal(cur.vars) {
		return nil
	}
	target := 0
	if s.redundant() && cur == copies[0] {
		target = 1
	}
	return s.write(target, vars, cur.flags+1)
}

func (s *ubootStore) Repair() (bool, error) {
	l, err := s.lock(unix.LOCK_EX)
	if err != nil {
		return false, err
	}
	defer l.Close()
	copies, cur, err := s.read()
	if err != nil {
		return false, err
	}
	for i, c := range copies {
		if c.err != nil {
			err := s.write(i, cur.vars, cur.flags)
			return err == nil, err
		}
	}
	return false, nil
}

func (s *ubootStore) create(vars *Vars) error {
	l, err := s.lock(unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer l.Close()
	copies, cur, err := s.read()
	if errors.Is(err, ErrInvalid) {
		cur = copies[0]
	} else if err != nil {
		return err
	}
	flags, last := cur.flags+1, slices.Index(copies, cur)
	for i := range copies {
		if i != last {
			if err := s.write(i, vars, flags); err != nil {
				return err
			}
		}
	}
	return s.write(last, vars, flags)
}

// lock takes the lock of the U-Boot tools, or where there is no directory for
// it that of the configuration file.
func (s *ubootStore) lock(how int) (*os.File, error) {
	f, err := os.Open(fwLock)
	if errors.Is(err, os.ErrNotExist) {
		f, err = os.OpenFile(fwLock, os.O_RDONLY|os.O_CREATE, 0o666)
	}
	if err != nil {
		f, err = os.Open(s.config)
	}
	if err != nil {
		return nil, err
	}
	if err := lock(f, how, lockWait); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// read returns all copies and the current one.
func (s *ubootStore) read() ([]*ubootCopy, *ubootCopy, error) {
	var copies []*ubootCopy
	for _, r := range s.regions {
		copies = append(copies, s.readCopy(r))
	}
	var cur *ubootCopy
	for _, c := range copies {
		if c.err == nil && (cur == nil || follows(c.flags, cur.flags)) {
			cur = c
		}
	}
	if cur == nil {
		var errs []error
		for _, c := range copies {
			errs = append(errs, c.err)
		}
		return copies, nil, invalid(errs)
	}
	return copies, cur, nil
}

// follows reports whether a copy with flags a is newer than one with flags b.
// As in U-Boot only 0 after 255 wraps around.
func follows(a, b byte) bool {
	switch {
	case a == 0 && b == 255:
		return true
	case a == 255 && b == 0:
		return false
	}
	return a > b
}

func (s *ubootStore) readCopy(r region) *ubootCopy {
	image, err := readRegion(r)
	if err != nil {
		return &ubootCopy{err: err}
	}
	vars, flags, err := ParseUBoot(image, s.redundant())
	if err != nil {
		return &ubootCopy{err: fmt.Errorf("%s at %#x: %w", r.path, r.offset, err)}
	}
	return &ubootCopy{vars: vars, flags: flags}
}

func readRegion(r region) ([]byte, error) {
	f, err := os.Open(r.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	off, err := r.start(f)
	if err != nil {
		return nil, err
	}
	image := make([]byte, r.size)
	if _, err := f.ReadAt(image, off); err == io.EOF {
		return nil, fmt.Errorf("%s ends before %#x", r.path, off+r.size)
	} else if err != nil {
		return nil, err
	}
	return image, nil
}

// start returns the offset of the region in the opened file or block device.
func (r region) start(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if st.Mode()&os.ModeCharDevice != 0 {
		return 0, fmt.Errorf("%s is a character device: environments in raw flash are not supported", r.path)
	}
	if r.offset >= 0 {
		return r.offset, nil
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	if end+r.offset < 0 {
		return 0, fmt.Errorf("%s is smaller than %#x", r.path, -r.offset)
	}
	return end + r.offset, nil
}

// write replaces copy i with one write. The order is that of libubootenv.
func (s *ubootStore) write(i int, vars *Vars, flags byte) error {
	r := s.regions[i]
	var sorted Vars
	for _, k := range sortedKeys(vars) {
		sorted.Set(k, vars.Get(k))
	}
	image, err := FormatUBoot(&sorted, int(r.size), s.redundant(), flags)
	if err != nil {
		return err
	}
	return edit(r.path, r.offset >= 0, s.watch, func(w *writer) {
		off, err := r.start(w.f)
		if err != nil {
			w.err = err
			return
		}
		w.write(image, off)
		w.sync()
		w.verify(image, off)
	})
}
