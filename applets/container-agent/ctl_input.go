// SPDX-License-Identifier: Apache-2.0

package containeragent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"sdvbox/platform/applet"
	"sdvbox/platform/terminal"
)

const maxInput = 64 << 10

var errInterrupted = errors.New("interrupted, nothing is changed")

// input is what standard input has until its end, or a line of a terminal, which does not show it if it is hidden.
func input(ctx context.Context, c *applet.Call, prompt string, hidden bool) (string, error) {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGHUP, unix.SIGQUIT) // would leave the terminal as it is
	defer stop()
	read := func() ([]byte, error) { return io.ReadAll(io.LimitReader(c.Stdin, maxInput+1)) }
	if fd, ok := terminal.Of(c.Stdin); ok {
		if hidden {
			restore, err := terminal.Hide(fd)
			if err != nil {
				return "", fmt.Errorf("standard input: %w", err)
			}
			defer fmt.Fprintln(c.Stderr)
			defer restore()
		}
		fmt.Fprintf(c.Stderr, "%s: ", prompt)
		read = func() ([]byte, error) {
			line, err := bufio.NewReader(c.Stdin).ReadBytes('\n')
			if err == io.EOF {
				err = nil
			}
			return line, err
		}
	}
	type result struct {
		text []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		text, err := read()
		done <- result{text, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return "", fmt.Errorf("standard input: %w", r.err)
		}
		return secret(r.text)
	case <-ctx.Done():
		return "", applet.Exit(exitInterrupted, errInterrupted)
	}
}

// secret is what a file or standard input has, without the end of its line.
func secret(text []byte) (string, error) {
	text = bytes.TrimRight(text, "\r\n")
	switch {
	case len(text) == 0:
		return "", errors.New("the value is empty")
	case len(text) > maxInput:
		return "", fmt.Errorf("the value has more than %d bytes", maxInput)
	}
	return string(text), nil
}

// wellFormed refuses what JSON would change silently.
func wellFormed(texts ...string) error {
	for _, text := range texts {
		if !utf8.ValidString(text) {
			return applet.Exit(exitUsage, errors.New("a value is not UTF-8"))
		}
	}
	return nil
}
