// SPDX-License-Identifier: Apache-2.0

// Package kantocm is the tools for the containers of a device: kanto-cm, with the commands of Eclipse Kanto's and some more,
// and sdv-ctr-exec. They ask the container agent at its socket.
package kantocm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"sdvbox/platform/applet"
	"sdvbox/platform/cmapi"
	"sdvbox/platform/ctrmodel"
)

const (
	defaultHost = "/run/container-management/container-management.sock"
	patience    = 5 * time.Second // with an agent that is there and does not answer

	exitUsage    = 2
	exitNotFound = 3
	exitDown     = 4

	exitInterrupted = 130 // as a shell says it
)

// Access is the options that may be before a command and after it.
type Access struct {
	Host    string `long:"host" value-name:"ADDRESS" description:"where the container agent is: a socket's path, unix:PATH or tcp://HOST:PORT"`
	Timeout int    `long:"timeout" value-name:"SECONDS" description:"how long to wait for an agent that is not there; default: not at all"`
	Debug   bool   `long:"debug" hidden:"true" description:"has no effect"`
}

// Command describes kanto-cm.
func Command() applet.Command {
	s := &Access{Host: defaultHost}
	commands := []applet.Command{
		s.create(), s.get(), s.list(), s.logs(), s.remove(), s.rename(), s.start(), s.attach(), s.stop(), s.restart(), s.pause(), s.unpause(),
		s.update(), s.exec(), s.stats(), s.events(), s.pull(), s.images(), s.removeImage(), s.deploy(), s.sysinfo(),
	}
	exits := []applet.ExitCode{
		{Code: exitNotFound, Meaning: "there is no such container"}, {Code: exitDown, Meaning: "the container agent does not answer"},
		{Code: exitInterrupted, Meaning: "it was interrupted"},
	}
	for i := range commands {
		commands[i].Exit = append(exits, commands[i].Exit...)
	}
	return applet.WithHelp(applet.Command{
		Name:    "kanto-cm",
		Summary: "manage the containers of this device",
		Description: `Asks the container agent. Most commands take a container by its id or, with --name, by its name.

With --output json results are JSON: what is listed is one array, and what comes bit by bit, as events and logs, is a line for each.`,
		Options: func() any { return s },
		Run:     func(context.Context, *applet.Call) error { return applet.Help },
		Exit:    exits,
		Sub:     commands,
	})
}

// run connects, does what a command is for and makes exit codes of errors.
func (s *Access) run(ctx context.Context, do func(*cmapi.Client) error) error {
	client := cmapi.NewClient(s.Host)
	defer client.Close()
	err := s.wait(ctx, client)
	if err == nil {
		if err = do(client); errors.Is(err, cmapi.ErrLost) {
			err = applet.Exit(exitDown, fmt.Errorf("lost the container agent at %s: %w", s.Host, err))
		}
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return applet.Exit(exitInterrupted, nil)
	}
	return err
}

// wait returns nil when the agent answers.
func (s *Access) wait(ctx context.Context, client *cmapi.Client) error {
	limit := time.Duration(s.Timeout) * time.Second
	start := time.Now()
	for {
		call, cancel := context.WithTimeout(ctx, max(patience, limit-time.Since(start)))
		_, err := client.ProjectInfo(call)
		cancel()
		switch kind := ctrmodel.KindOf(err); {
		case err == nil || ctx.Err() != nil:
			return err
		case kind != ctrmodel.Unavailable && kind != ctrmodel.DeadlineExceeded:
			return err
		case denied(s.Host) != nil: // and will be
			return applet.Exit(exitDown, denied(s.Host))
		case time.Since(start) >= limit:
			return applet.Exit(exitDown, fmt.Errorf("the container agent does not answer at %s: %w", s.Host, err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// denied is not nil if a socket is there that is not for this user.
func denied(host string) error {
	file := strings.TrimPrefix(strings.TrimPrefix(host, "unix:"), "//")
	if strings.HasPrefix(host, "tcp:") || unix.Access(file, unix.W_OK) != unix.EACCES {
		return nil
	}
	who := "root"
	var fi unix.Stat_t
	if unix.Stat(file, &fi) == nil && fi.Mode&unix.S_IWGRP != 0 {
		if group, err := user.LookupGroupId(strconv.Itoa(int(fi.Gid))); err == nil && group.Name != who {
			who += " or the group " + group.Name
		}
	}
	return fmt.Errorf("the container agent at %s needs %s: %w", host, who, unix.EACCES)
}

// Target is the container that a command is about.
type Target struct {
	*Access
	Name string `short:"n" long:"name" value-name:"NAME" description:"the container with this name"`
}

func usage(format string, args ...any) error {
	return applet.Exit(exitUsage, fmt.Errorf(format, args...))
}

// split takes the id from the arguments, unless there is a name, and leaves at most so many others. What has to be among them is
// said in needed, if anything.
func (t *Target) split(args []string, needed string, most int) (id string, rest []string, err error) {
	if t.Name == "" {
		if len(args) == 0 || args[0] == "" {
			return "", nil, usage("expected the id of a container, or its name with --name")
		}
		id, args = args[0], args[1:]
	}
	switch {
	case needed != "" && len(args) == 0:
		return "", nil, usage("expected %s", needed)
	case len(args) > most && t.Name != "" && most == 0:
		return "", nil, usage("expected either an id or a name, not both")
	case len(args) > most:
		return "", nil, usage("unexpected argument %q", args[most])
	}
	return id, args, nil
}

// find returns the container that split has found an id or a name of.
func (t *Target) find(ctx context.Context, client *cmapi.Client, id string) (*ctrmodel.Container, error) {
	var found *ctrmodel.Container
	var err error
	if id != "" {
		found, err = client.Get(ctx, id)
	} else {
		found, err = t.named(ctx, client)
	}
	return found, missing(err)
}

// missing gives the error about a container that is not there its exit code.
func missing(err error) error {
	if err != nil && ctrmodel.KindOf(err) == ctrmodel.NotFound {
		return applet.Exit(exitNotFound, err)
	}
	return err
}

// wrong gives the error about what was asked for its exit code. It is not for commands that only say which container: what is wrong
// with that, somebody else wrote.
func wrong(err error) error {
	if err != nil && ctrmodel.KindOf(err) == ctrmodel.InvalidArgument {
		return applet.Exit(exitUsage, err)
	}
	return err
}

// named returns the container with the name. While one takes the place of another there are two: it is the one that has a process.
func (t *Target) named(ctx context.Context, client *cmapi.Client) (*ctrmodel.Container, error) {
	list, err := client.List(ctx)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(c *ctrmodel.Container) bool { return c.Name != t.Name })
	if len(list) > 1 {
		if run := slices.DeleteFunc(slices.Clone(list), func(c *ctrmodel.Container) bool { return !c.State.HasProcess() }); len(run) == 1 {
			list = run
		}
	}
	switch len(list) {
	case 0:
		return nil, ctrmodel.Errorf(ctrmodel.NotFound, "there is no container with the name %s", t.Name)
	case 1:
		return list[0], nil
	}
	return nil, fmt.Errorf("more than one container has the name %s: use an id", t.Name)
}

// simple is the Run of a command that does one thing to one container and says nothing.
func (t *Target) simple(ctx context.Context, args []string, do func(*cmapi.Client, *ctrmodel.Container) error) error {
	id, _, err := t.split(args, "", 0)
	if err != nil {
		return err
	}
	return t.with(ctx, id, do)
}

func (t *Target) with(ctx context.Context, id string, do func(*cmapi.Client, *ctrmodel.Container) error) error {
	return t.run(ctx, func(client *cmapi.Client) error {
		c, err := t.find(ctx, client, id)
		if err != nil {
			return err
		}
		return do(client, c)
	})
}

// list is an option that can be given more than once, and with commas.
type list []string

// UnmarshalFlag adds what is between commas, if it is anything.
func (l *list) UnmarshalFlag(text string) error {
	for entry := range strings.SplitSeq(text, ",") {
		if entry != "" {
			*l = append(*l, entry)
		}
	}
	return nil
}

// seconds is a time as 1m15s, or as a number of seconds.
type seconds int64

// UnmarshalFlag sets s from the command line.
func (s *seconds) UnmarshalFlag(text string) error {
	if text == "" {
		return nil
	}
	d, err := time.ParseDuration(text)
	if n, e := strconv.ParseInt(text, 10, 32); e == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || d < 0 {
		return fmt.Errorf("%q: expected a time as 1m15s", text)
	}
	if d > 0 {
		d = max(d, time.Second) // 0 is the default
	}
	*s = seconds(d.Round(time.Second) / time.Second)
	return nil
}

// printJSON prints one result on a line.
func printJSON(c *applet.Call, v any) error { return json.NewEncoder(c.Stdout).Encode(v) }

// plain is text from outside without what could fool a terminal or a table.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// size is that of memory, of which -1 is one.
type size string

// IsValidValue lets a size begin as an option does.
func (*size) IsValidValue(string) error { return nil }
