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

// A source is standard input, of which some values are read.
type source struct {
	c    *applet.Call
	text *bufio.Reader
	rest bool // all of it is one value
}

func newSource(c *applet.Call, values int) *source {
	limit := int64(values) * (maxInput + 2) // each with the end of its line
	return &source{c, bufio.NewReader(io.LimitReader(c.Stdin, limit)), values == 1}
}

// read reads a value: what standard input has until its end, or a line if there are more of them or it is a terminal, which does not
// show the line if it is hidden.
func (s *source) read(ctx context.Context, prompt string, hidden bool) (string, error) {
	c := s.c
	ctx, stop := signal.NotifyContext(ctx, unix.SIGHUP, unix.SIGQUIT) // would leave the terminal as it is
	defer stop()
	rest := s.rest
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
		rest = false
	}
	type result struct {
		text []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		if rest {
			r.text, r.err = io.ReadAll(s.text)
		} else if r.text, r.err = s.text.ReadBytes('\n'); r.err == io.EOF {
			r.err = nil
		}
		done <- r
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
