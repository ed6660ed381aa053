// SPDX-License-Identifier: Apache-2.0

package kantocm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"sdvbox/platform/applet"
	"sdvbox/platform/cmapi"
	"sdvbox/platform/ctrmodel"
)

// The commands that change containers. They say nothing when they have done it.

type stopOptions struct {
	Target
	Time   seconds `short:"t" long:"time" value-name:"TIME" description:"how long to wait after the signal, as 1m15s; default: as the agent is configured"`
	Force  bool    `short:"f" long:"force" description:"then kill it"`
	Signal string  `short:"s" long:"signal" value-name:"SIGNAL" description:"signal to begin with"`
}

// options also checks what was given.
func (o *stopOptions) options() (ctrmodel.StopOptions, error) {
	wanted := ctrmodel.StopOptions{Timeout: int64(o.Time), Force: o.Force, Signal: o.Signal}
	return wanted, wrong(wanted.Validate())
}

func (s *Access) stop() applet.Command {
	return applet.Command{
		Name:    "stop",
		Summary: "stop a container",
		Args:    "[ID]",
		Description: `It gets a signal and some time. With --force it is killed when it still runs after that, else this fails and the container goes on.

A container that was stopped stays so until it is started, whatever its restart policy.`,
		Options: func() any { return &stopOptions{Target: Target{Access: s}, Signal: "SIGTERM"} },
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*stopOptions)
			wanted, err := o.options()
			if err != nil {
				return err
			}
			return o.simple(ctx, c.Args, func(client *cmapi.Client, found *ctrmodel.Container) error {
				return wrong(client.Stop(ctx, found.ID, wanted))
			})
		},
	}
}

func (s *Access) restart() applet.Command {
	type options struct {
		Target
		Time   seconds `short:"t" long:"time" value-name:"TIME" description:"how long to wait after the signal, as 1m15s; default: as the agent is configured"`
		Signal string  `short:"s" long:"signal" value-name:"SIGNAL" description:"signal to begin with"`
	}
	return applet.Command{
		Name:        "restart",
		Summary:     "stop a container, if it runs, and start it",
		Description: "It gets a signal and some time and is then killed.",
		Args:        "[ID]",
		Options:     func() any { return &options{Target: Target{Access: s}, Signal: "SIGTERM"} },
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*options)
			wanted, err := (&stopOptions{Time: o.Time, Force: true, Signal: o.Signal}).options()
			if err != nil {
				return err
			}
			return o.simple(ctx, c.Args, func(client *cmapi.Client, found *ctrmodel.Container) error {
				return client.Restart(ctx, found.ID, wanted)
			})
		},
	}
}

// plainCommand is one about a container, without options and output.
func (s *Access) plainCommand(name, summary string, do func(client *cmapi.Client, ctx context.Context, id string) error) applet.Command {
	return applet.Command{
		Name: name, Summary: summary, Args: "[ID]",
		Options: func() any { return &Target{Access: s} },
		Run: func(ctx context.Context, c *applet.Call) error {
			return c.Options.(*Target).simple(ctx, c.Args, func(client *cmapi.Client, found *ctrmodel.Container) error {
				return do(client, ctx, found.ID)
			})
		},
	}
}

func (s *Access) pause() applet.Command {
	return s.plainCommand("pause", "freeze the processes of a container", (*cmapi.Client).Pause)
}

func (s *Access) unpause() applet.Command {
	return s.plainCommand("unpause", "let the processes of a paused container go on", (*cmapi.Client).Unpause)
}

func (s *Access) rename() applet.Command {
	return applet.Command{
		Name:    "rename",
		Summary: "give a container another name",
		Args:    "[ID] NAME",
		Options: func() any { return &Target{Access: s} },
		Run: func(ctx context.Context, c *applet.Call) error {
			t := c.Options.(*Target)
			id, rest, err := t.split(c.Args, "the new name", 1)
			if err != nil {
				return err
			}
			if err := ctrmodel.ValidateName(rest[0]); err != nil {
				return applet.Exit(exitUsage, err)
			}
			return t.with(ctx, id, func(client *cmapi.Client, found *ctrmodel.Container) error {
				return wrong(client.Rename(ctx, found.ID, rest[0]))
			})
		},
	}
}

func (s *Access) remove() applet.Command {
	type options struct {
		Target
		Force bool    `short:"f" long:"force" description:"also one that runs: it is stopped first"`
		Time  seconds `short:"t" long:"time" value-name:"TIME" description:"how long to wait for it to stop before it is killed, as 1m15s"`
	}
	return applet.Command{
		Name:    "remove",
		Summary: "remove containers, with all that they have written inside",
		Args:    "[ID...]",
		Options: func() any { return &options{Target: Target{Access: s}} },
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*options)
			ids := c.Args
			if o.Name != "" {
				ids = []string{""}
			}
			if len(ids) == 0 || o.Name != "" && len(c.Args) > 0 || slices.Contains(c.Args, "") {
				return usage("expected either ids or a name")
			}
			return s.run(ctx, func(client *cmapi.Client) error {
				var errs []error
				for _, id := range ids {
					found, err := o.find(ctx, client, id)
					if err == nil {
						err = client.Remove(ctx, found.ID, o.Force, ctrmodel.StopOptions{Timeout: int64(o.Time), Force: o.Force})
					}
					if err != nil && len(ids) > 1 {
						err = fmt.Errorf("%s: %w", id, err)
					}
					errs = append(errs, err)
				}
				return errors.Join(errs...)
			})
		},
	}
}

func (s *Access) deploy() applet.Command {
	return applet.Command{
		Name:        "deploy",
		Summary:     "apply the descriptors of containers again",
		Description: "Containers that are missing, stopped or different from their descriptor become as described there. Others stay as they are.",
		Options:     func() any { return &struct{ *Access }{s} },
		Run: func(ctx context.Context, c *applet.Call) error {
			if len(c.Args) > 0 {
				return usage("unexpected argument %q", c.Args[0])
			}
			return s.run(ctx, func(client *cmapi.Client) error { return client.Deploy(ctx) })
		},
	}
}

func (s *Access) update() applet.Command {
	type options struct {
		Target
		RestartPolicy     *string `long:"rp" value-name:"POLICY" choice:"no" choice:"always" choice:"unless-stopped" choice:"on-failure" description:"when it is restarted"`
		RetryCount        *int64  `long:"rp-cnt" value-name:"N" description:"how many restarts on-failure tries, 0 for no limit"`
		RetryTimeout      *int64  `long:"rp-to" value-name:"SECONDS" description:"the longest pause between restarts of on-failure"`
		Memory            *size   `short:"m" long:"memory" value-name:"SIZE" description:"most memory, as 64M; -1 for no limit"`
		MemoryReservation *size   `long:"memory-reservation" value-name:"SIZE" description:"memory to shrink to when the host is short of it; -1 for none"`
		MemorySwap        *size   `long:"memory-swap" value-name:"SIZE" description:"most memory and swap together; -1 for no limit"`
	}
	return applet.Command{
		Name:        "update",
		Summary:     "change limits and restart policy of a container, also while it runs",
		Description: "What is not given stays as it is.",
		Args:        "[ID]",
		Options:     func() any { return &options{Target: Target{Access: s}} },
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*options)
			restart := o.RestartPolicy != nil || o.RetryCount != nil || o.RetryTimeout != nil
			memory := o.Memory != nil || o.MemoryReservation != nil || o.MemorySwap != nil
			if !restart && !memory {
				return usage("expected an option that says what to change")
			}
			for name, value := range map[string]*size{"memory": o.Memory, "memory-reservation": o.MemoryReservation, "memory-swap": o.MemorySwap} {
				if value != nil && *value == "" {
					return usage("--%s: expected a size as 64M, or -1 for no limit", name)
				}
			}
			return o.simple(ctx, c.Args, func(client *cmapi.Client, found *ctrmodel.Container) error {
				var wanted ctrmodel.UpdateOptions
				if restart {
					policy := found.HostConfig.RestartPolicy
					if o.RestartPolicy != nil && policy.Type != *o.RestartPolicy {
						policy = ctrmodel.RestartPolicy{Type: *o.RestartPolicy}
					}
					if o.RetryCount != nil {
						policy.MaxRetries = *o.RetryCount
					}
					if o.RetryTimeout != nil {
						policy.RetryTimeout = ctrmodel.Seconds(*o.RetryTimeout)
					}
					wanted.RestartPolicy = &policy
				}
				if memory {
					limits := found.HostConfig.Resources
					if o.Memory != nil {
						limits.Memory = limit(*o.Memory)
					}
					if o.MemoryReservation != nil {
						limits.MemoryReservation = limit(*o.MemoryReservation)
					}
					if o.MemorySwap != nil {
						limits.MemorySwap = string(*o.MemorySwap)
					} else {
						fitSwap(&limits)
					}
					wanted.Resources = &limits
				}
				return wrong(client.Update(ctx, found.ID, wanted))
			})
		},
	}
}

// fitSwap gives up a limit of swap that makes no sense with the memory: with less than that it becomes what it is for a new
// container.
func fitSwap(r *ctrmodel.Resources) {
	memory, _, swap, err := r.Limits()
	switch {
	case r.Memory == "":
		r.MemorySwap = ""
	case err == nil && swap >= 0 && swap < memory: // what is no size is for the agent to complain about
		r.MemorySwap = ""
		r.Defaults()
	}
}

// limit is the size of a limit in the model, where none is empty.
func limit(s size) string {
	if s == ctrmodel.Unlimited {
		return ""
	}
	return string(s)
}
