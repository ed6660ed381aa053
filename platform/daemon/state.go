// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/durable"
)

// dataRoot is the file system that outlives updates of the system.
const dataRoot = "/data"

// StateDir returns the directory for the state of a service, which it creates
// if need be: dir, or /data/sdvbox/NAME when dir is empty.
//
// It waits until ctx ends for what may come late: a file system that is not
// mounted yet, read-only or full.
func StateDir(ctx context.Context, log *slog.Logger, name, dir string) (string, error) {
	if dir == "" {
		dir = filepath.Join(dataRoot, "sdvbox", name)
	}
	return stateDir(ctx, log, dataRoot, dir, time.Second)
}

func stateDir(ctx context.Context, log *slog.Logger, mount, dir string, pause time.Duration) (string, error) {
	if rel, err := filepath.Rel(mount, dir); err != nil || !filepath.IsLocal(rel) {
		mount = "/" // dir is elsewhere
	}
	for said := ""; ; {
		late, err := prepare(mount, dir)
		if err == nil {
			return dir, nil
		}
		err = fmt.Errorf("state directory %s: %w", dir, err)
		if !late {
			return "", err
		}
		if said != err.Error() {
			said = err.Error()
			log.Warn("waiting for the state directory", "error", err)
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%w: %w", err, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// prepare says beside an error whether waiting may help.
func prepare(mount, dir string) (late bool, err error) {
	// To create it would put the state into the slot that is running.
	if _, err := os.Stat(mount); err != nil {
		return errors.Is(err, fs.ErrNotExist), err
	}
	err = durable.MkdirAll(filepath.Dir(dir), 0o755)
	if err == nil {
		err = durable.MkdirAll(dir, 0o700)
	}
	if err == nil {
		// Not by creating a file: that would fail when the disk is full, and
		// what has to be written then has its space already.
		if err = unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			err = fmt.Errorf("not writable: %w", err)
		}
	}
	return errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.ENOSPC), err
}
