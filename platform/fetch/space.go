// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// total is the size the file will have, -1 if unknown.
func (d *download) total() int64 {
	if d.meta.Total < 0 && d.Size > 0 {
		return d.Size
	}
	return d.meta.Total
}

// expect checks that a file of total bytes (-1: unknown) is wanted and fits.
func (d *download) expect(total int64) error {
	if d.Size > 0 && total >= 0 && total != d.Size {
		return fmt.Errorf("%w: size is %d bytes, should be %d", errMismatch, total, d.Size)
	}
	if d.complete() {
		return nil
	}
	return d.space(max(0, total-d.off))
}

func (d *download) space(need int64) error {
	dir := filepath.Dir(d.Path)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	has := int64(st.Bavail)*st.Bsize - d.Reserve
	if need > has || has < 0 {
		return d.noSpace(need, has)
	}
	return nil
}

func (d *download) noSpace(need, has int64) error {
	reserve := ""
	if d.Reserve > 0 {
		reserve = fmt.Sprintf(" beside a reserve of %d", d.Reserve)
	}
	needs := ""
	if need > 0 { // else not known yet
		needs = fmt.Sprintf("needs %d bytes, ", need)
	}
	return fmt.Errorf("not enough space in %s: %shas %d%s", filepath.Dir(d.Path), needs, max(0, has), reserve)
}

// explain turns the error of a full disk into numbers.
func (d *download) explain(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	return fmt.Errorf("%w (%w)", d.noSpace(max(1, d.total()-d.off), 0), err)
}
