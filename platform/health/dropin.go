// SPDX-License-Identifier: Apache-2.0

package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
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
			Run:     func(ctx context.Context) error { return execute(ctx, path) },
		})
	}
	return checks
}

// broken is a check that cannot be run.
func broken(path string, err error) Check {
	return Check{Name: path, Timeout: time.Second, Run: func(context.Context) error { return err }}
}

func execute(ctx context.Context, path string) error {
	var out firstLine
	cmd := exec.CommandContext(ctx, path)
	cmd.Stdout, cmd.Stderr = &out, &out
	// Its children must neither outlive it nor, by holding its output open, keep us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // the latter: it has left a child behind, but with exit code 0
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case out.String() != "":
		return errors.New(out.String())
	}
	return fmt.Errorf("failed without a word: %w", err)
}

// firstLine keeps the first line written to it, within limits.
type firstLine struct{ buf bytes.Buffer }

func (l *firstLine) Write(p []byte) (int, error) {
	l.buf.Write(p[:min(len(p), 4096-min(4096, l.buf.Len()))])
	return len(p), nil
}

func (l *firstLine) String() string {
	line, _, _ := strings.Cut(strings.TrimSpace(l.buf.String()), "\n")
	return strings.TrimSpace(line)
}
