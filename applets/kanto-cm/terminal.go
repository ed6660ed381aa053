// SPDX-License-Identifier: Apache-2.0

package kantocm

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/terminal"
)

// streams connects to a process: with a terminal of its own if tty, and then also with ours, raw, if it gets our input.
func streams(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, input, tty bool) (s ctrmodel.Streams, restore func()) {
	s = ctrmodel.Streams{Stdout: stdout, Stderr: stderr}
	restore = func() {}
	if input {
		s.Stdin = stdin
	}
	fd, ours := terminal.Of(stdin)
	if !tty || !input || !ours {
		return s, restore
	}
	if undo, err := terminal.Raw(fd); err == nil {
		restore = undo
	}
	s.Resize = sizes(ctx, fd)
	return s, restore
}

// keys is what is typed at a terminal that passes on everything but the keys to leave.
type keys struct {
	io.Reader
	leave func()
	held  bool // the first of the two
}

const leaveKeys = "\x10\x11" // Ctrl-P Ctrl-Q

func (k *keys) Read(p []byte) (int, error) {
	buf := make([]byte, len(p)-1) // and what is held back
	for {
		n, err := k.Reader.Read(buf)
		passed, left := k.pass(buf[:n])
		if left {
			k.leave()
			select {} // the end would be that of the container's input, too
		}
		if n = copy(p, passed); n > 0 || err != nil {
			return n, err
		}
	}
}

// pass returns what is to be passed on, and whether nothing is to follow.
func (k *keys) pass(data []byte) (passed []byte, left bool) {
	if k.held {
		data = append([]byte{leaveKeys[0]}, data...)
	}
	if passed, _, left = bytes.Cut(data, []byte(leaveKeys)); left {
		return passed, true
	}
	passed, k.held = bytes.CutSuffix(data, []byte(leaveKeys[:1]))
	return passed, false
}

// sizes tells the size of the terminal, now and when it changes.
func sizes(ctx context.Context, fd int) <-chan ctrmodel.WindowSize {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	out := make(chan ctrmodel.WindowSize, 1)
	tell := func() {
		size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		if err != nil {
			return
		}
		select {
		case <-out: // the size before that does not matter any more
		default:
		}
		out <- ctrmodel.WindowSize{Width: uint32(size.Col), Height: uint32(size.Row)}
	}
	tell() // at once, so that a process can begin with it
	go func() {
		defer signal.Stop(changed)
		for {
			select {
			case <-changed:
				tell()
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
