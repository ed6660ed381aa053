// SPDX-License-Identifier: Apache-2.0

// Package dropin asks programs that others have put into a directory: each says yes by its exit code, or no with a reason.
package dropin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Run runs the program and returns nil if it exits with 0. Otherwise the first line it printed, on either output, is the error.
// When ctx ends, the cause is. None of the program's processes outlives it, except those that have left its process group.
func Run(ctx context.Context, path string) error {
	var out firstLine
	cmd := exec.Command(path)
	// Our environment may hold secrets, and the notification socket of the service manager.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// A child may have left the group and hold the output open.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		for unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		}
	}()
	select {
	case <-exited:
	case <-ctx.Done():
	}
	// It is not reaped yet, so the number of the group is still its own.
	unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	<-exited
	err := cmd.Wait()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // the latter: its output is still open, but it exited with 0
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
