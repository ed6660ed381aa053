// SPDX-License-Identifier: Apache-2.0

package updatemanager

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"sdvbox/platform/applet"
	"sdvbox/platform/control"
	"sdvbox/platform/durable"
	"sdvbox/platform/orchestrator"
)

// Exit codes of the commands for operators.
const (
	exitUsage   = 2
	exitBusy    = 3 // status: an activity is under way
	exitNothing = 3 // cancel: there is nothing to cancel
	exitInvalid = 3 // validate: the message is not valid
	exitDown    = 4 // the daemon does not run
)

// access says where the daemon can be asked, and where its state is when it cannot.
type access struct {
	Socket   string `long:"control-socket" env:"UPDATE_MANAGER_CONTROL_SOCKET" value-name:"FILE" default:"/run/update-manager/control.sock" description:"where the daemon answers"`
	StateDir string `long:"state-dir" env:"UPDATE_MANAGER_STATE_DIR" value-name:"DIR" default:"/data/sdvbox/update-manager" description:"where its state is, to be read when it does not run"`
}

// Overview is what "status --output json" prints.
type Overview struct {
	Running bool   `json:"running"` // the daemon; else the rest is from its journal
	Version string `json:"version,omitempty"`
	orchestrator.Status
}

// Record is what "history --output json" prints.
type Record struct {
	Running    bool                 `json:"running"`
	Activities []orchestrator.Entry `json:"activities"` // newest last
}

func statusCommand() applet.Command {
	return applet.Command{
		Name:    "status",
		Summary: "show which activity is under way, how far each domain is and what is waited for",
		Description: `While the daemon runs it is asked; else its journal is read, which says where the daemon is going to go on.

The exit code tells which.`,
		Options: func() any { return new(access) },
		Exit: []applet.ExitCode{
			{Code: exitBusy, Meaning: "an activity is under way, or a reboot"},
			{Code: exitDown, Meaning: "the daemon does not run"},
		},
		Run: func(ctx context.Context, c *applet.Call) error {
			o, err := c.Options.(*access).overview(ctx)
			if err != nil {
				return err
			}
			if err := show(c, o); err != nil {
				return err
			}
			switch {
			case !o.Running:
				return applet.Exit(exitDown, nil)
			case o.ActivityID != "" || o.Phase != idle:
				return applet.Exit(exitBusy, nil)
			}
			return nil
		},
	}
}

const idle = "idle" // the phase without an activity

func historyCommand() applet.Command {
	type options struct {
		access
		Last int `short:"n" long:"last" value-name:"N" default:"100" description:"show no more than the last N"`
	}
	return applet.Command{
		Name:    "history",
		Summary: "show the activities that have ended, with duration and outcome",
		Description: `The last 100 activities are kept, over restarts and updates, and the newest is shown last. With an activity id only that one is shown.

While the daemon runs it is asked; else its journal is read.`,
		Args:    "[ACTIVITY]",
		Options: func() any { return new(options) },
		Exit: []applet.ExitCode{
			{Code: exitNothing, Meaning: "no activity with this id is known"},
			{Code: exitDown, Meaning: "the daemon does not run and has left no journal"},
		},
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*options)
			if len(c.Args) > 1 || o.Last < 0 {
				return applet.Exit(exitUsage, errors.New("expected at most one activity id, and not less than 0 activities"))
			}
			r, err := o.record(ctx)
			if err != nil {
				return err
			}
			if len(c.Args) == 1 {
				r.Activities = slices.DeleteFunc(r.Activities, func(e orchestrator.Entry) bool { return e.ID != c.Args[0] })
				if len(r.Activities) == 0 {
					return applet.Exit(exitNothing, fmt.Errorf("no activity %q has ended", c.Args[0]))
				}
			}
			r.Activities = r.Activities[max(0, len(r.Activities)-o.Last):]
			return show(c, r)
		},
	}
}

func cancelCommand() applet.Command {
	return applet.Command{
		Name:        "cancel",
		Summary:     "end the activity under way in the old state",
		Description: `What the domains have done is rolled back and cleaned up, and the activity ends as INCOMPLETE. An activity id guards against ending another activity than the one that was meant. The command returns when the daemon has noted the wish; "status" and the feedback tell the rest.`,
		Args:        "[ACTIVITY]",
		Options:     func() any { return new(access) },
		Exit: []applet.ExitCode{
			{Code: exitNothing, Meaning: "there is nothing to cancel, or something else"},
			{Code: exitDown, Meaning: "the daemon does not run"},
		},
		Run: func(ctx context.Context, c *applet.Call) error {
			if len(c.Args) > 1 {
				return applet.Exit(exitUsage, errors.New("expected at most one activity id"))
			}
			target := "/cancel"
			if len(c.Args) == 1 {
				target += "?" + url.Values{"activity": c.Args}.Encode()
			}
			var o Overview
			err := control.Ask(ctx, c.Options.(*access).Socket, "POST", target, &o)
			var refusal control.Refusal
			switch {
			case errors.Is(err, control.ErrDown):
				return applet.Exit(exitDown, fmt.Errorf("cannot cancel: %w", err))
			case errors.As(err, &refusal):
				return applet.Exit(exitNothing, fmt.Errorf("cannot cancel: %w", err))
			case err != nil:
				return fmt.Errorf("cannot cancel: %w", err)
			}
			return show(c, &o)
		},
	}
}

// overview asks the daemon, or else its journal.
func (a *access) overview(ctx context.Context) (*Overview, error) {
	o := new(Overview)
	err := control.Ask(ctx, a.Socket, "GET", "/status", o)
	if !errors.Is(err, control.ErrDown) {
		return o, err
	}
	s, err := a.journal()
	if err != nil {
		return nil, err
	}
	return &Overview{Status: orchestrator.NewMachine(orchestrator.Config{}, s).Snapshot()}, nil
}

func (a *access) record(ctx context.Context) (*Record, error) {
	r := new(Record)
	err := control.Ask(ctx, a.Socket, "GET", "/history", r)
	if !errors.Is(err, control.ErrDown) {
		return r, err
	}
	s, err := a.journal()
	if err != nil {
		return nil, err
	}
	return &Record{Activities: append([]orchestrator.Entry{}, s.History...)}, nil
}

// journal reads the state of a daemon that does not run.
func (a *access) journal() (orchestrator.State, error) {
	rec, err := durable.ReadJournal(filepath.Join(a.StateDir, journalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return orchestrator.State{}, applet.Exit(exitDown, fmt.Errorf("the daemon does not run, and has left no state in %s", a.StateDir))
	}
	if err != nil {
		return orchestrator.State{}, applet.Exit(exitDown, fmt.Errorf("the daemon does not run: %w", err))
	}
	return orchestrator.ParseState(rec)
}

// show prints a result for people or programs.
func show(c *applet.Call, result interface {
	write(io.Writer, time.Time) error
}) error {
	if c.JSON {
		return json.NewEncoder(c.Stdout).Encode(result)
	}
	return result.write(c.Stdout, time.Now())
}

func (o *Overview) write(out io.Writer, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	switch {
	case !o.Running:
		fmt.Fprint(w, "daemon:\tdoes not run; this is where it is going to go on\n")
	case o.Connected:
		fmt.Fprintf(w, "daemon:\truns (%s), connected to the bus\n", plain(o.Version))
	default:
		fmt.Fprintf(w, "daemon:\truns (%s), not connected to the bus\n", plain(o.Version))
	}
	if o.ActivityID == "" && o.Phase == idle {
		fmt.Fprint(w, "activity:\tnone (idle)\n")
		return w.Flush()
	}
	fmt.Fprintf(w, "activity:\t%s\n", cmp.Or(plain(o.ActivityID), `""`))
	fmt.Fprintf(w, "phase:\t%s\n", o.Phase)
	if o.Since != 0 {
		fmt.Fprintf(w, "for:\t%s\n", now.Sub(time.UnixMilli(o.Since)).Round(time.Second))
	}
	if o.Waiting != "" {
		fmt.Fprintf(w, "waits for:\t%s\n", plain(o.Waiting))
	}
	if o.Next != "" {
		fmt.Fprintf(w, "next:\t%s\n", plain(o.Next))
	}
	if len(o.Domains) > 0 {
		fmt.Fprint(w, "\nDOMAIN\tSTATE\tORDER\tPROGRESS\tMESSAGE\n")
	}
	for _, d := range o.Domains {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d%%\t%s\n", plain(d.ID), d.State, cmp.Or(d.Order, "-"), d.Progress, plain(d.Message))
	}
	return w.Flush()
}

func (r *Record) write(out io.Writer, _ time.Time) error {
	if !r.Running {
		fmt.Fprint(out, "The daemon does not run; this is from its journal.\n")
	}
	if len(r.Activities) == 0 {
		_, err := fmt.Fprint(out, "No activity has ended yet.\n")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "ENDED\tTOOK\tSTATUS\tACTIVITY\tMESSAGE\n")
	for _, e := range r.Activities {
		ended := time.UnixMilli(e.Ended)
		took := ended.Sub(time.UnixMilli(e.Started)).Round(time.Millisecond)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", ended.Format(time.DateTime), took, e.Status, cmp.Or(plain(e.ID), `""`), plain(e.Message))
		for _, d := range e.Domains {
			fmt.Fprintf(w, "\t\t%s\t%s\t%s\n", d.State, plain(d.ID), plain(d.Message))
		}
	}
	return w.Flush()
}

// plain is text from outside without what could fool a terminal or a table.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || !unicode.IsPrint(r) && r != ' ' {
			return '?'
		}
		return r
	}, text)
}
