// SPDX-License-Identifier: Apache-2.0

package kantocm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"sdvbox/platform/applet"
)

// logWriter writes lines of a log for people or for programs.
type logWriter struct {
	stdout, stderr *bufio.Writer
	last           *bufio.Writer // that was written to; the order of the two counts
	json, times    bool
	follow         bool // nothing waits for more
	since          time.Time
	begun          [2]bool // a line of stdout and of stderr that is not over
}

func newLogWriter(c *applet.Call, times, follow bool) *logWriter {
	out := bufio.NewWriterSize(c.Stdout, 64<<10)
	return &logWriter{stdout: out, stderr: bufio.NewWriter(c.Stderr), last: out, json: c.JSON, times: times, follow: follow}
}

// line takes one line of the log file.
func (w *logWriter) line(line []byte) error {
	var entry logEntry
	if !w.json || !w.since.IsZero() {
		if err := json.Unmarshal(line, &entry); err != nil { // damaged, and maybe what one looks for
			entry = logEntry{Log: plain(string(line)) + "\n", Time: "?"}
		}
	}
	if !w.since.IsZero() {
		if at, err := time.Parse(time.RFC3339, entry.Time); err == nil && at.Before(w.since) {
			return nil
		}
	}
	var err error
	if w.json {
		w.stdout.Write(line)
		err = w.stdout.WriteByte('\n')
	} else {
		err = w.text(entry)
	}
	if w.follow && err == nil {
		err = w.last.Flush()
	}
	return err
}

type logEntry struct{ Stream, Log, Time string }

func (w *logWriter) text(entry logEntry) error {
	out, begun := w.stdout, &w.begun[0]
	if entry.Stream == "stderr" {
		out, begun = w.stderr, &w.begun[1]
	}
	if out != w.last {
		if err := w.last.Flush(); err != nil {
			return err
		}
		w.last = out
	}
	if w.times && !*begun {
		out.WriteString(entry.Time)
		out.WriteByte(' ')
	}
	*begun = !strings.HasSuffix(entry.Log, "\n")
	_, err := out.WriteString(entry.Log)
	return err
}

func (w *logWriter) flush() error { return w.last.Flush() }

// since is a time, or how long ago that is.
type since time.Time

// UnmarshalFlag sets s from the command line.
func (s *since) UnmarshalFlag(text string) error {
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		*s = since(time.Now().Add(-d))
		return nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return fmt.Errorf("%q: expected 10m or 2024-05-01T10:00:00Z", text)
	}
	*s = since(at)
	return nil
}
