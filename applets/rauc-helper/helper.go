// SPDX-License-Identifier: Apache-2.0

// Package rauchelper is the applet "rauc-helper": it shows and switches the slots of an A/B system, confirms a slot that has
// just been started, reads and writes boot environments, and serves RAUC as boot loader backend, both by RAUC's "custom"
// interface and under the names of the tools that RAUC's own backends call.
package rauchelper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"sdvbox/platform/applet"
	"sdvbox/platform/bootenv"
	"sdvbox/platform/rauc"
	"sdvbox/platform/slots"
	"sdvbox/platform/systemd"
)

// machine is where the helper works; tests have another one.
type machine struct {
	cmdline string // file with the kernel command line
	root    string // of the running system
	bus     string // address of the message bus, "" for the system's
	reboot  func(context.Context) error
}

// Command describes the applet.
func Command() applet.Command {
	return command(machine{cmdline: "/proc/cmdline", root: "/", reboot: systemd.Reboot})
}

// Exit codes of status.
const (
	exitTrial    = 3
	exitFallback = 4
	exitRescue   = 5
)

func command(m machine) applet.Command {
	return applet.Command{
		Name:    "rauc-helper",
		Summary: "show, switch and confirm the slots of the system, and edit boot environments",
		Description: `A vehicle has two slots, SDV_A and SDV_B, each with a complete system. One runs; updates are written to the other one, which is then started on trial: it has to be confirmed within 3 starts, or the boot loader goes back. The state is kept in the environment of the boot loader, GRUB or U-Boot, and is read and written there; RAUC is asked for what only it knows.

The names grub-editenv, fw_printenv and fw_setenv take the command lines of these tools. As RAUC's boot loader backend (bootloader=custom, bootloader-custom-backend=/usr/bin/rauc-helper) it answers get-primary, set-primary, get-state, set-state and get-current.`,
		Compat: []string{"grub-editenv", "fw_printenv", "fw_setenv"},
		Run:    foreign,
		Sub: append([]applet.Command{
			statusCommand(m),
			markCommand(m),
			switchCommand(m),
			confirmCommand(m),
			envCommand(),
		}, backendCommands(m)...),
	}
}

// foreign runs the command line of another tool.
func foreign(_ context.Context, c *applet.Call) error {
	var code int
	switch c.Name {
	case "grub-editenv":
		code = bootenv.GrubEditenv(c.Args, c.Stdout, c.Stderr)
	case "fw_printenv":
		code = bootenv.FwPrintenv(c.Args, c.Stdout, c.Stderr)
	case "fw_setenv":
		code = bootenv.FwSetenv(c.Args, c.Stdin, c.Stdout, c.Stderr)
	default:
		return usage("a command is needed: status, mark, switch, confirm or env")
	}
	if code != 0 {
		return applet.Exit(code, nil)
	}
	return nil
}

func usage(format string, args ...any) error { return applet.Exit(2, fmt.Errorf(format, args...)) }

// storeOptions choose the boot environment.
type storeOptions struct {
	Bootenv string `long:"bootenv" value-name:"SPEC" description:"boot environment, grub:FILE or uboot:FW_ENV_CONFIG; else what SDVBOX_BOOTENV says, else /grubenv/grubenv or /etc/fw_env.config"`
}

// load opens the boot environment and decodes its state.
func load(spec string) (bootenv.Store, slots.State, error) {
	store, err := bootenv.Open(spec)
	if err != nil {
		return nil, slots.State{}, err
	}
	vars, err := store.Load()
	if err != nil {
		return store, slots.State{}, err
	}
	st, err := slots.Decode(vars, store.Kind())
	return store, st, err
}

// change changes the state in the boot environment.
func change(store bootenv.Store, f func(*slots.State) error) error {
	return store.Update(func(v *bootenv.Vars) error {
		st, err := slots.Decode(v, store.Kind())
		if err != nil {
			return err
		}
		if err := f(&st); err != nil {
			return err
		}
		st.Encode(v, store.Kind())
		return nil
	})
}

// known returns an error unless name is a slot of the state.
func known(st slots.State, name string) error {
	if st.Has(name) {
		return nil
	}
	return fmt.Errorf("no slot has the boot name %q, known are %s", name, strings.Join(st.Order, ", "))
}

// booted returns the boot name of the running slot and why the boot loader chose it. Both are empty where the kernel command
// line does not speak of slots.
func (m machine) booted() (name, reason string) {
	line, err := os.ReadFile(m.cmdline)
	if err != nil {
		return "", ""
	}
	return slots.Booted(string(line))
}

// trial reports whether the boot loader says that the running slot is on trial.
func (m machine) trial() bool {
	line, err := os.ReadFile(m.cmdline)
	return err == nil && slots.Trial(string(line))
}

// markGood marks a slot good. To have confirmed a slot is a statement about the system that runs: any other slot only gets its
// tries back. Where nothing says what runs, the caller is believed.
func (m machine) markGood(st *slots.State, name string) {
	if booted, reason := m.booted(); booted == name || booted == "" && reason == "" {
		st.MarkGood(name)
	} else {
		st.Refresh(name)
	}
}

// raucPatience is how long RAUC may take to answer; the bus may have to start it first.
const raucPatience = 15 * time.Second

// raucSlots asks RAUC. The client is for the caller to close if err is nil.
func (m machine) raucSlots(ctx context.Context) (*rauc.Client, []rauc.Slot, error) {
	ctx, cancel := context.WithTimeout(ctx, raucPatience)
	defer cancel()
	client, err := rauc.Dial(ctx, m.bus)
	if err != nil {
		return nil, nil, err
	}
	list, err := client.Slots(ctx)
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	return client, list, nil
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// invalid adds what helps when the environment is lost.
func invalid(err error) error {
	if errors.Is(err, bootenv.ErrInvalid) {
		return fmt.Errorf("%w (rauc-helper env create makes a new one)", err)
	}
	return err
}
