// SPDX-License-Identifier: Apache-2.0

package kantocm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/applet"
	"sdvbox/platform/cmapi"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/terminal"
)

// The commands that start processes.

const leaving = `An interrupt ends only this command: the container goes on. With --i at the terminal of a container that has one, an interrupt is for the container, and Ctrl-P Ctrl-Q ends the command.

The container gets input if it was made with open_stdin, as create --i does. It is told of the end of the input only if it also has stdin_once, which is for a file to say; else the command goes on after that, as long as the container does.`

func (s *Access) start() applet.Command {
	type options struct {
		Target
		Attach      bool `long:"a" description:"show the output until it ends, and exit as the container does"`
		Interactive bool `long:"i" description:"the same, and pass on standard input"`
	}
	return applet.Command{
		Name:        "start",
		Summary:     "start a container",
		Description: "With --a or --i: " + leaving,
		Args:        "[ID]",
		Options:     func() any { return &options{Target: Target{Access: s}} },
		Exit:        []applet.ExitCode{{Code: 255, Meaning: "with --a and --i, 0 to 255: as the container"}},
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*options)
			return o.simple(ctx, c.Args, func(client *cmapi.Client, found *ctrmodel.Container) error {
				if !o.Attach && !o.Interactive {
					return client.Start(ctx, found.ID)
				}
				return attached(ctx, c, client, found, o.Interactive, true)
			})
		},
	}
}

func (s *Access) attach() applet.Command {
	type options struct {
		Target
		Interactive bool `long:"i" description:"pass on standard input"`
	}
	return applet.Command{
		Name:        "attach",
		Summary:     "show the output of a container that runs until it ends, and exit as the container does",
		Description: leaving,
		Args:        "[ID]",
		Options:     func() any { return &options{Target: Target{Access: s}} },
		Exit:        []applet.ExitCode{{Code: 255, Meaning: "0 to 255: as the container"}},
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*options)
			return o.simple(ctx, c.Args, func(client *cmapi.Client, found *ctrmodel.Container) error {
				if !found.State.HasProcess() {
					return fmt.Errorf("container %s does not run: start --a starts it", found.Name)
				}
				return attached(ctx, c, client, found, o.Interactive, false)
			})
		},
	}
}

// attached is not over before the output and the process have ended.
func attached(ctx context.Context, c *applet.Call, client *cmapi.Client, found *ctrmodel.Container, input, start bool) error {
	outer := ctx
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	exits, ready := make(chan int64, 1), make(chan error, 1)
	go func() {
		err := client.Events(ctx, func() { ready <- nil }, func(e ctrmodel.Event) error {
			switch {
			case e.Container.ID != found.ID:
			case e.Action == ctrmodel.ActionExited || e.Action == ctrmodel.ActionStopped:
				exits <- e.Container.State.ExitCode
				return errEnough
			case e.Action == ctrmodel.ActionRemoved: // by force, it has not ended before
				return fmt.Errorf("container %s was removed", found.Name)
			}
			return nil
		})
		if !errors.Is(err, errEnough) {
			ready <- err
		}
	}()
	if err := <-ready; err != nil {
		return err
	}
	if input && !found.IOConfig.OpenStdin {
		fmt.Fprintf(c.Stderr, "%s: container %s gets no input: it was made without open_stdin\n", c.Name, found.Name)
	}
	streams, restore := streams(ctx, c.Stdin, c.Stdout, c.Stderr, input, found.IOConfig.TTY)
	defer restore()
	if streams.Resize != nil { // our terminal is the container's
		fmt.Fprintf(c.Stderr, "%s: Ctrl-P Ctrl-Q leaves the container running\r\n", c.Name)
		streams.Stdin = &keys{Reader: c.Stdin, leave: func() { cancel(errEnough) }}
	}
	attached, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- client.Attach(ctx, found.ID, streams, func() { close(attached) }) }()
	select {
	case <-attached:
	case err := <-ended:
		return or(err, "the container does not let its output be seen")
	}
	if start {
		if err := client.Start(outer, found.ID); err != nil { // who leaves early lets it start
			return err
		}
	}
	_ = unix.Kill(os.Getpid(), unix.SIGWINCH) // only now there is a terminal to have a size
	if err := <-ended; context.Cause(ctx) == errEnough {
		return nil
	} else if err != nil {
		return err
	}
	select {
	case code := <-exits:
		return exit(int(code))
	case err := <-ready:
		return or(err, "nobody knows how the container ended")
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errEnough = errors.New("enough")

// or is err, or one with the text if that is nil.
func or(err error, text string) error {
	if err == nil {
		return errors.New(text)
	}
	return err
}

// exit ends the command as a process has ended.
func exit(code int) error {
	if code == 0 {
		return nil
	}
	return applet.Exit(code, nil)
}

type execOptions struct {
	Target
	Interactive bool     `short:"i" long:"interactive" description:"pass on standard input"`
	TTY         bool     `short:"t" long:"tty" description:"with a terminal"`
	Env         []string `short:"e" long:"env" value-name:"NAME=VALUE" description:"further environment"`
	Dir         string   `short:"w" long:"workdir" value-name:"DIR" description:"directory to start in"`
	User        string   `short:"u" long:"user" value-name:"USER" description:"user to run as"`
	Privileged  bool     `long:"privileged" description:"with all capabilities"`
}

func (o *execOptions) run(ctx context.Context, c *applet.Call) error {
	const command, most = "a command to run", 1 << 20
	id, args, err := o.split(c.Args, command, most)
	if err != nil {
		return err
	}
	if args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return usage("expected %s", command)
	}
	return o.with(ctx, id, func(client *cmapi.Client, found *ctrmodel.Container) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		streams, restore := streams(ctx, c.Stdin, c.Stdout, c.Stderr, o.Interactive, o.TTY)
		defer restore()
		if o.TTY && streams.Resize == nil { // ours shows it, even if it has no input
			for _, stream := range []any{c.Stdout, c.Stdin} {
				if fd, ours := terminal.Of(stream); ours {
					streams.Resize = sizes(ctx, fd)
					break
				}
			}
		}
		code, err := client.Exec(ctx, found.ID, ctrmodel.ExecOptions{
			Args: args, Env: o.Env, Dir: o.Dir, User: o.User, TTY: o.TTY, Privileged: o.Privileged,
		}, streams)
		if err != nil {
			return wrong(err)
		}
		return exit(code)
	})
}

func (s *Access) exec() applet.Command {
	return applet.Command{
		Name:        "exec",
		Summary:     "run a command in a container that runs, and exit as it does",
		Description: "Options go before the id, or the command with --name.",
		Args:        "[ID] COMMAND [ARGUMENT...]",
		Ahead:       true,
		Exit:        []applet.ExitCode{{Code: 255, Meaning: "0 to 255: as the command"}},
		Options:     func() any { return &execOptions{Target: Target{Access: s}} },
		Run: func(ctx context.Context, c *applet.Call) error {
			return c.Options.(*execOptions).run(ctx, c)
		},
	}
}

// CtrExec describes sdv-ctr-exec.
func CtrExec() applet.Command {
	type options struct {
		Target
		Usage bool `short:"?" hidden:"true"`
	}
	return applet.Command{
		Name:        "sdv-ctr-exec",
		Summary:     "run a command in a container, with its terminal",
		Description: "Takes the container by its id or, with -n, by its name. The command gets a terminal if this one has one.",
		Args:        "<container-id> <command> [ARGUMENT...]",
		Ahead:       true,
		Exit: []applet.ExitCode{
			{Code: exitNotFound, Meaning: "there is no such container"}, {Code: exitDown, Meaning: "the container agent does not answer"},
			{Code: 255, Meaning: "else 0 to 255: as the command"},
		},
		Options: func() any { return &options{Target: Target{Access: &Access{Host: defaultHost}}} },
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*options)
			if o.Usage || len(c.Args) == 0 && o.Name == "" {
				return applet.Help
			}
			_, in := terminal.Of(c.Stdin)
			_, out := terminal.Of(c.Stdout)
			return (&execOptions{Target: o.Target, Interactive: true, TTY: in && out}).run(ctx, c)
		},
	}
}

func (s *Access) logs() applet.Command {
	type options struct {
		Target
		Tail       *int  `short:"t" long:"tail" value-name:"N" description:"the last N lines, -1 for all; default: 100, or all with --since"`
		Since      since `long:"since" value-name:"TIME" description:"not what is older: 10m, or a time as 2024-05-01T10:00:00Z"`
		Follow     bool  `short:"f" long:"follow" description:"then show what comes until the container is removed"`
		Timestamps bool  `long:"timestamps" description:"with the time of each line"`
	}
	return applet.Command{
		Name:        "logs",
		Summary:     "show what a container has written",
		Description: `What it wrote to standard error is written there. With --output json the lines are as in the log file: objects with "stream", "log" and "time".`,
		Args:        "[ID]",
		Options:     func() any { return &options{Target: Target{Access: s}} },
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*options)
			tail := 100
			switch {
			case o.Tail != nil:
				tail = max(*o.Tail, -1)
			case !time.Time(o.Since).IsZero():
				tail = -1
			}
			return o.simple(ctx, c.Args, func(client *cmapi.Client, found *ctrmodel.Container) error {
				out := newLogWriter(c, o.Timestamps, o.Follow)
				out.since = time.Time(o.Since)
				err := client.Logs(ctx, found.ID, ctrmodel.LogOptions{Tail: tail, Follow: o.Follow}, out.line)
				return errors.Join(err, out.flush())
			})
		},
	}
}

func (s *Access) events() applet.Command {
	return applet.Command{
		Name:    "events",
		Summary: "show what happens to containers, from now on",
		Options: func() any { return &Target{Access: s} },
		Run: func(ctx context.Context, c *applet.Call) error {
			t := c.Options.(*Target)
			return s.run(ctx, func(client *cmapi.Client) error {
				return client.Events(ctx, func() {}, func(e ctrmodel.Event) error {
					switch {
					case t.Name != "" && e.Container.Name != t.Name:
						return nil
					case c.JSON:
						return printJSON(c, Event{e.Time, e.Action, e.Container})
					}
					var details []string
					if e.Action == ctrmodel.ActionExited || e.Action == ctrmodel.ActionStopped {
						details = append(details, fmt.Sprintf("exit code %d", e.Container.State.ExitCode))
					}
					if text := e.Container.State.Error; text != "" {
						details = append(details, plain(text))
					}
					_, err := fmt.Fprintf(c.Stdout, "%s  %-8s %s  %s  %s\n", e.Time.Local().Format("2006-01-02 15:04:05.000"), e.Action,
						e.Container.ID, plain(e.Container.Name), strings.Join(details, ", "))
					return err
				})
			})
		},
	}
}

// Event is a line of "events --output json".
type Event struct {
	Time      time.Time           `json:"time"`
	Action    ctrmodel.Action     `json:"action"`
	Container *ctrmodel.Container `json:"container"`
}
