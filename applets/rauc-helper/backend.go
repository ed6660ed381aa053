// SPDX-License-Identifier: Apache-2.0

package rauchelper

import (
	"context"
	"errors"
	"fmt"

	"sdvbox/platform/applet"
	"sdvbox/platform/slots"
)

// backendCommands are the calls of RAUC's custom boot loader interface. Each prints exactly the answer.
func backendCommands(m machine) []applet.Command {
	call := func(name, args, summary string, n int, run func(c *applet.Call) error) applet.Command {
		return applet.Command{
			Name: name, Args: args, Summary: summary, Hidden: true,
			Options: func() any { return new(storeOptions) },
			Run: func(_ context.Context, c *applet.Call) error {
				if len(c.Args) != n {
					return usage("%s: expected arguments %s", name, args)
				}
				return run(c)
			},
		}
	}
	return []applet.Command{
		call("get-primary", "", "print the slot that boots next", 0, getPrimary),
		call("set-primary", "BOOTNAME", "make a slot good and the first choice", 1, func(c *applet.Call) error {
			return setSlot(c, (*slots.State).SetPrimary)
		}),
		call("get-state", "BOOTNAME", "print good or bad", 1, getState),
		call("set-state", "BOOTNAME good|bad", "mark a slot", 2, func(c *applet.Call) error {
			switch c.Args[1] {
			case "good":
				return setSlot(c, m.markGood)
			case "bad":
				// RAUC says so, too, of a slot that it is about to write; that is no reason to remember.
				return setSlot(c, func(st *slots.State, name string) { st.MarkBad(name, "") })
			}
			return usage("state %q: expected good or bad", c.Args[1])
		}),
		call("get-current", "", "print the slot that runs", 0, func(c *applet.Call) error {
			name, _ := m.booted()
			if name == "" {
				return errors.New("the kernel command line names no slot")
			}
			fmt.Fprintln(c.Stdout, name)
			return nil
		}),
	}
}

func getPrimary(c *applet.Call) error {
	_, st, err := load(c.Options.(*storeOptions).Bootenv)
	if err != nil {
		return err
	}
	name, ok := st.Next()
	if !ok {
		return errors.New("no slot may be booted")
	}
	fmt.Fprintln(c.Stdout, name)
	return nil
}

func getState(c *applet.Call) error {
	_, st, err := load(c.Options.(*storeOptions).Bootenv)
	if err != nil {
		return err
	}
	if err := known(st, c.Args[0]); err != nil {
		return err
	}
	answer := "bad"
	if st.Left(c.Args[0]) > 0 {
		answer = "good"
	}
	fmt.Fprintln(c.Stdout, answer)
	return nil
}

// setSlot applies f to the slot named by the first argument.
func setSlot(c *applet.Call, f func(*slots.State, string)) error {
	store, _, err := load(c.Options.(*storeOptions).Bootenv)
	if err != nil {
		return err
	}
	return change(store, func(st *slots.State) error {
		if err := known(*st, c.Args[0]); err != nil {
			return err
		}
		f(st, c.Args[0])
		return nil
	})
}
