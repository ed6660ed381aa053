// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sdvbox/platform/dropin"
)

// DropIns returns a check for each executable in dir: it passes when the program exits with 0 within the timeout, and the
// first line it prints is the reason if not. Files that are hidden or not executable are no checks. A directory that does not
// exist has none; one that cannot be read is a failed check.
func DropIns(dir string, timeout time.Duration) []Check {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return []Check{broken(dir, err)}
	}
	var checks []Check
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		fi, err := os.Stat(path)
		if err != nil {
			checks = append(checks, broken(path, err))
			continue
		}
		if !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0 || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		checks = append(checks, Check{
			Name:    filepath.Base(dir) + "/" + e.Name(),
			Hint:    "run " + path,
			Timeout: timeout,
			Run:     func(ctx context.Context) error { return dropin.Run(ctx, path) },
		})
	}
	return checks
}

// broken is a check that cannot be run.
func broken(path string, err error) Check {
	return Check{Name: path, Timeout: time.Second, Run: func(context.Context) error { return err }}
}
