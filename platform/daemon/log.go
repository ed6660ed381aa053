// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/journal"
)

// LevelTrace is for what even a debug log does not want.
const LevelTrace = slog.LevelDebug - 4

func newLog(w io.Writer, name, level string) (*slog.Logger, error) {
	// The journal has time and name already and wants the priority in front.
	forJournal, _ := journal.StderrIsJournalStream()
	return makeLog(&output{w: w, name: name, journal: forJournal, time: "15:04:05.000"}, level)
}

// newFileLog logs to a file, and elsewhere what the file does not take.
func newFileLog(file, elsewhere io.Writer, name, level string) (*slog.Logger, error) {
	return makeLog(&output{w: either{file, elsewhere}, name: name, time: "2006-01-02 15:04:05.000"}, level)
}

type either [2]io.Writer

func (e either) Write(p []byte) (int, error) {
	if n, err := e[0].Write(p); err == nil {
		return n, nil
	}
	return e[1].Write(p)
}

func makeLog(out *output, level string) (*slog.Logger, error) {
	l := slog.LevelInfo
	switch strings.ToLower(level) {
	case "", "info":
	case "error":
		l = slog.LevelError
	case "warn", "warning":
		l = slog.LevelWarn
	case "debug":
		l = slog.LevelDebug
	case "trace":
		l = LevelTrace
	default:
		return nil, fmt.Errorf("log level %q: expected error, warn, info, debug or trace", level)
	}
	attrs := slog.NewTextHandler(&out.b, &slog.HandlerOptions{
		Level: l,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
				return slog.Attr{}
			}
			return a
		},
	})
	return slog.New(handler{attrs, out}), nil
}

// handler writes lines for people: the message and then the attributes, which
// the embedded handler formats.
type handler struct {
	slog.Handler
	out *output
}

type output struct {
	w       io.Writer
	name    string
	journal bool
	time    string // layout

	mu sync.Mutex
	b  bytes.Buffer // one line
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs), h.out}
}

func (h handler) WithGroup(name string) slog.Handler {
	return handler{h.Handler.WithGroup(name), h.out}
}

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	o := h.out
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b.Reset()
	if o.journal {
		fmt.Fprintf(&o.b, "<%d>", priority(r.Level))
	} else {
		fmt.Fprintf(&o.b, "%s %-5s %s: ", r.Time.Format(o.time), levelName(r.Level), o.name)
	}
	// A line break would make two entries of one, the second without a priority.
	o.b.WriteString(strings.ReplaceAll(strings.TrimSpace(r.Message), "\n", " "))
	o.b.WriteByte(' ')
	if err := h.Handler.Handle(ctx, r); err != nil {
		return err
	}
	_, err := fmt.Fprintf(o.w, "%s\n", bytes.TrimRight(o.b.Bytes(), " \n"))
	return err
}

// priority is the level in the numbers of syslog.
func priority(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	default:
		return 7
	}
}

func levelName(l slog.Level) string {
	if l == LevelTrace {
		return "TRACE"
	}
	return l.String()
}
