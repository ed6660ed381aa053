// SPDX-License-Identifier: Apache-2.0

package kantocm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"strings"

	"sdvbox/platform/applet"
)

// logWriter writes lines of a log for people or for programs.
type logWriter struct {
	stdout, stderr *bufio.Writer
	last           *bufio.Writer // that was written to; the order of the two counts
	json, times    bool
	follow         bool    // nothing waits for more
	begun          [2]bool // a line of stdout and of stderr that is not over
}

func newLogWriter(c *applet.Call, times, follow bool) *logWriter {
	out := bufio.NewWriterSize(c.Stdout, 64<<10)
	return &logWriter{stdout: out, stderr: bufio.NewWriter(c.Stderr), last: out, json: c.JSON, times: times, follow: follow}
}

// line takes one line of the log file.
func (w *logWriter) line(line []byte) error {
	var err error
	if w.json {
		w.stdout.Write(line)
		err = w.stdout.WriteByte('\n')
	} else {
		err = w.text(line)
	}
	if w.follow && err == nil {
		err = w.last.Flush()
	}
	return err
}

func (w *logWriter) text(line []byte) error {
	var entry struct{ Stream, Log, Time string }
	if err := json.Unmarshal(line, &entry); err != nil {
		return fmt.Errorf("line of the log: %w", err)
	}
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
