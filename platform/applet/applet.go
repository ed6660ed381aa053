// SPDX-License-Identifier: Apache-2.0

// Package applet is the multi-call core: a table of commands, each described
// once. The description makes flag parsing, --help, shell completion, the man
// page and the list of symlinks; the command itself only runs.
package applet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Version and Commit name the build; the linker sets them (see Makefile).
var (
	Version = "devel"
	Commit  = "unknown"
)

// Exit codes that mean the same for every applet.
const (
	exitFailure = 1
	exitUsage   = 2
	exitUnknown = 127 // as a shell says "command not found"
)

// A Command describes one applet or one sub-command.
type Command struct {
	Name        string // as called
	Summary     string // one line, no full stop
	Description string // paragraphs of plain text; indented lines are kept as they are
	Args        string // usage of positional arguments, e.g. "FILE [KEY=VALUE...]"; empty: none are accepted

	// Options returns a pointer to a fresh struct with go-flags tags; values
	// already in it are the defaults. Nil: no options of its own.
	//
	// With GoFlagStyle, it may have a method Flag(name string) any that
	// returns a pointer to the value of an option without a field, or nil.
	Options func() any

	// Run does the work. It may be nil when one of Sub must be named.
	Run func(ctx context.Context, c *Call) error
	Sub []Command

	Exit        []ExitCode // documented exit codes beyond 0, 1 and 2
	GoFlagStyle bool       // as programs with Go's flag package: also -config-file=/x and --flag=false, and a wrong environment variable is ignored
	Raw         bool       // no flag parsing at all: Args are passed through
	Ahead       bool       // options go before the first argument: what follows may be the options of another program
	Daemon      bool       // runs until told to stop: no --output
	Hidden      bool       // works, but is not shown

	// Compat are further names of an applet that carry a foreign command
	// line: treated as Raw, Call.Name says which. They are linked apart from
	// the applets, by --install-compat.
	Compat []string
}

// ExitCode documents one exit code of a command.
type ExitCode struct {
	Code    int
	Meaning string
}

// A Call is one invocation of a command.
type Call struct {
	Name           string   // name of the applet as called
	Options        any      // what Command.Options returned, filled
	Above          any      // the same of the command that this one is a sub-command of
	Args           []string // positional arguments
	JSON           bool     // --output json
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	overlay func(options any) error
}

// Overlay sets what the environment and the command line say in options, which
// are of the type of c.Options. A command whose options have defaults from a
// file that only the command line names reads it and then calls Overlay.
func (c *Call) Overlay(options any) error {
	if c.overlay == nil { // not from a command line
		return nil
	}
	return c.overlay(options)
}

// Help is what a command returns to show its help instead of doing anything.
var Help = errors.New("help asked for")

type exitError struct {
	code int
	err  error
	hint string // further line for people
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// Exit returns an error that ends the command with the exit code. With a nil
// err nothing is printed.
func Exit(code int, err error) error { return &exitError{code: code, err: err} }

// Main runs the applet that args[0] names, or args[1] when called as sdvbox,
// and returns the exit code of the process. SIGINT and SIGTERM cancel the
// context of the command; a second signal kills.
func Main(table []Command, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	root := box(table)
	c := &Call{Name: boxName, Stdin: stdin, Stdout: stdout, Stderr: stderr}
	var words []string
	if len(args) > 0 {
		words = args[1:]
		// A renamed binary (sdvbox-arm64, sdvbox.new) is still the box.
		if name := filepath.Base(args[0]); !strings.HasPrefix(name, boxName) {
			words = append([]string{name}, words...)
		}
	}
	return report(c, dispatch(ctx, &root, boxName, c, words))
}

// dispatch parses args for cmd, which the user called as path, and runs it or
// the sub-command that args name.
func dispatch(ctx context.Context, cmd *Command, path string, c *Call, args []string) error {
	if cmd.Raw {
		c.Args = args
		return cmd.Run(ctx, c)
	}
	p, err := newParser(cmd, c.JSON)
	if err != nil {
		return err
	}
	rest, err := p.parse(args, cmd.Ahead || len(cmd.Sub) > 0)
	c.JSON = p.json()
	if err == nil && len(cmd.Sub) > 0 && len(rest) > 0 {
		if sub := find(cmd.Sub, rest[0]); sub != nil {
			if path == boxName {
				path, c.Name = rest[0], rest[0]
			} else {
				path += " " + rest[0]
			}
			c.Above = p.options
			return dispatch(ctx, sub, path, c, rest[1:])
		}
		if cmd.Args == "" {
			return unknown(cmd, path, rest[0])
		}
		// The first word is an argument, so options may still follow it.
		if p, err = newParser(cmd, c.JSON); err != nil {
			return err
		}
		rest, err = p.parse(args, false)
		c.JSON = p.json()
	}
	switch {
	case errors.Is(err, Help):
		return writeHelp(c.Stdout, cmd, path)
	case err != nil:
		return usage(path, err)
	case cmd.Run == nil:
		return usage(path, fmt.Errorf("a command is needed: %s", strings.Join(names(cmd.Sub), ", ")))
	case cmd.Args == "" && len(rest) > 0:
		return usage(path, fmt.Errorf("unexpected argument %q", rest[0]))
	}
	for _, text := range p.ignored {
		fmt.Fprintf(c.Stderr, "%s: %s\n", c.Name, text)
	}
	c.Options, c.Args = p.options, rest
	c.overlay = func(options any) error {
		over := *cmd
		over.Options = func() any { return options }
		p, err := newParser(&over, c.JSON)
		if err != nil {
			return err
		}
		if _, err := p.parse(args, cmd.Ahead); err != nil {
			return usage(path, err)
		}
		return nil
	}
	if err = cmd.Run(ctx, c); errors.Is(err, Help) {
		return writeHelp(c.Stdout, cmd, path)
	}
	return err
}

// report prints err as people or programs want it and returns the exit code.
func report(c *Call, err error) int {
	if err == nil {
		return 0
	}
	code, hint := exitFailure, ""
	if e := (*exitError)(nil); errors.As(err, &e) {
		if e.err == nil {
			return e.code
		}
		code, hint = e.code, e.hint
	}
	if c.JSON {
		json.NewEncoder(c.Stderr).Encode(struct {
			Error string `json:"error"`
			Code  int    `json:"code"`
		}{err.Error(), code})
		return code
	}
	fmt.Fprintf(c.Stderr, "%s: %v\n%s", c.Name, err, hint)
	return code
}

func usage(path string, err error) error {
	return &exitError{exitUsage, err, fmt.Sprintf("Try %q.\n", path+" --help")}
}

// unknown is the error for a word that names no sub-command of cmd.
func unknown(cmd *Command, path, word string) error {
	if path == boxName {
		err := fmt.Errorf("unknown applet %q, the nearest is %q", word, nearest(word, cmd.Sub))
		return &exitError{exitUnknown, err, fmt.Sprintf("Try %q.\n", boxName+" --list")}
	}
	return usage(path, fmt.Errorf("unknown command %q, the nearest is %q", word, nearest(word, cmd.Sub)))
}

// find returns the command called name. One found by a compatible name is raw.
func find(table []Command, name string) *Command {
	for i := range table {
		cmd := &table[i]
		if cmd.Name == name {
			return cmd
		}
		if slices.Contains(cmd.Compat, name) {
			raw := *cmd
			raw.Raw = true
			return &raw
		}
	}
	return nil
}

// names returns the names of the commands that are not hidden.
func names(table []Command) []string {
	var list []string
	for _, cmd := range table {
		if !cmd.Hidden {
			list = append(list, cmd.Name)
		}
	}
	return list
}

// nearest returns the name in table with the least edit distance to word.
func nearest(word string, table []Command) string {
	best, least := "", -1
	for _, name := range names(table) {
		if d := distance(word, name); least < 0 || d < least {
			best, least = name, d
		}
	}
	return best
}

// distance is the Levenshtein distance of two words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
