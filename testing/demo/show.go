// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// show is what is seen of the demo: a line for each step, which on a terminal
// moves while the step runs, and the times in the end.
type show struct {
	out   io.Writer
	tty   bool
	begin time.Time
	title string
	since time.Time
	times []stepTime
}

type stepTime struct {
	title string
	took  time.Duration
}

func newShow(f *os.File) *show {
	info, err := f.Stat()
	return &show{out: f, tty: err == nil && info.Mode()&os.ModeCharDevice != 0, begin: time.Now()}
}

const (
	clearLine = "\r\x1b[K"
	barWidth  = 24
)

// step runs f as one step. What f notes last stands behind the step.
func (s *show) step(title, text string, f func(note func(string)) error) error {
	s.title, s.since = title, time.Now()
	fmt.Fprintf(s.out, "%-9s %s\n", title, text)
	last := ""
	err := f(func(note string) {
		last = note
		s.line(note)
	})
	took := time.Since(s.since)
	s.times = append(s.times, stepTime{title, took})
	mark := "ok"
	if err != nil {
		mark = "FAILED"
	}
	if s.tty {
		fmt.Fprint(s.out, clearLine)
	}
	fmt.Fprintf(s.out, "          %-6s %6.1fs  %s\n", mark, took.Seconds(), last)
	return err
}

// line shows where a step is, on a terminal only.
func (s *show) line(text string) {
	if s.tty {
		fmt.Fprintf(s.out, "%s          ...    %6.1fs  %.100s", clearLine, time.Since(s.since).Seconds(), text)
	}
}

// said shows what the vehicle has said.
func (s *show) said(text string) {
	if s.tty {
		fmt.Fprint(s.out, clearLine)
	}
	fmt.Fprintf(s.out, "          < %s\n", text)
}

// bar shows progress.
func (s *show) bar(percent int, text string) {
	full := min(percent, 100) * barWidth / 100
	s.line(fmt.Sprintf("[%s%s] %3d%%  %s", strings.Repeat("=", full), strings.Repeat(" ", barWidth-full), percent, text))
}

// guest shows what a command in the vehicle has printed.
func (s *show) guest(command, output string) {
	fmt.Fprintf(s.out, "\n  vehicle# %s\n", command)
	for line := range strings.Lines(strings.TrimSpace(output)) {
		fmt.Fprintf(s.out, "  | %s\n", strings.TrimRight(line, "\r\n"))
	}
}

func (s *show) summary() {
	fmt.Fprintln(s.out, "Times")
	for _, t := range s.times {
		fmt.Fprintf(s.out, "  %-9s %7.1f s\n", t.title, t.took.Seconds())
	}
	fmt.Fprintf(s.out, "  %-9s %7.1f s\n", "all", time.Since(s.begin).Seconds())
}
