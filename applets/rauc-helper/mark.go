// SPDX-License-Identifier: Apache-2.0

package rauchelper

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"sdvbox/platform/applet"
	"sdvbox/platform/rauc"
	"sdvbox/platform/slots"
)

type markOptions struct {
	storeOptions
	Reason string `long:"reason" value-name:"TEXT" default:"marked bad by hand" description:"why a slot is marked bad; shown by status"`
	Force  bool   `long:"force" description:"activate a slot even if RAUC has not finished writing it"`
}

func markCommand(m machine) applet.Command {
	return applet.Command{
		Name:    "mark",
		Summary: "mark a slot good, bad or active",
		Description: `good: the slot works; its attempts are restored. bad: it is not booted until it is marked otherwise. active: it is booted next, with all its attempts.

The slot is "booted" (the default), "other", a boot name such as SDV_B or a slot name such as rootfs.1. RAUC is told when it answers, so that its records are right; the boot environment is changed in any case.`,
		Args:    "good|bad|active [booted|other|SLOT|BOOTNAME]",
		Options: func() any { return new(markOptions) },
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*markOptions)
			if len(c.Args) < 1 || len(c.Args) > 2 || !slices.Contains([]string{"good", "bad", "active"}, c.Args[0]) {
				return usage("expected good, bad or active, and a slot")
			}
			which := "booted"
			if len(c.Args) == 2 {
				which = c.Args[1]
			}
			return m.mark(ctx, c, c.Args[0], which, *o)
		},
	}
}

type switchOptions struct {
	storeOptions
	Force  bool `long:"force" description:"even if RAUC has not finished writing the other slot"`
	Reboot bool `long:"reboot" description:"and boot it now"`
}

func switchCommand(m machine) applet.Command {
	return applet.Command{
		Name:        "switch",
		Summary:     "boot the other slot next",
		Description: `The same as "mark active other". The other slot starts on trial and has to be confirmed.`,
		Options:     func() any { return new(switchOptions) },
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*switchOptions)
			if err := m.mark(ctx, c, "active", "other", markOptions{storeOptions: o.storeOptions, Force: o.Force}); err != nil {
				return err
			}
			if o.Reboot {
				return m.reboot(ctx)
			}
			return nil
		},
	}
}

// marked is the outcome of mark.
type marked struct {
	Slot     string `json:"slot,omitempty"`
	Bootname string `json:"bootname"`
	State    string `json:"state"`
}

// mark lets RAUC mark the slot, if it answers, and then makes sure of the boot environment, which is what counts.
func (m machine) mark(ctx context.Context, c *applet.Call, state, which string, o markOptions) error {
	store, st, envErr := load(o.Bootenv)
	var target marked
	client, list, err := m.raucSlots(ctx)
	switch {
	case err == nil:
		defer client.Close()
		if target, err = markByRAUC(ctx, client, list, state, which, o.Force); err != nil {
			return err
		}
		if envErr != nil || !st.Has(target.Bootname) {
			// RAUC keeps its state elsewhere, and has marked the slot there.
			return report(c, target)
		}
	case errors.Is(err, rauc.ErrBusy), errors.Is(err, context.DeadlineExceeded):
		// It may be writing the very slot.
		return err
	case envErr != nil:
		return errors.Join(err, invalid(envErr))
	default:
		if target.Bootname, err = m.resolve(st, which); err != nil {
			return err
		}
	}
	target.State = state
	err = change(store, func(st *slots.State) error {
		switch state {
		case "good":
			m.markGood(st, target.Bootname)
		case "bad":
			st.MarkBad(target.Bootname, o.Reason)
		case "active":
			st.SetPrimary(target.Bootname)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return report(c, target)
}

func report(c *applet.Call, t marked) error {
	if c.JSON {
		return writeJSON(c.Stdout, t)
	}
	name := t.Bootname
	if t.Slot != "" {
		name += " (" + t.Slot + ")"
	}
	_, err := fmt.Fprintf(c.Stdout, "%s is marked %s\n", name, t.State)
	return err
}

// markByRAUC marks a slot through RAUC, whose refusal counts.
func markByRAUC(ctx context.Context, client *rauc.Client, list []rauc.Slot, state, which string, force bool) (marked, error) {
	if i := slices.IndexFunc(list, func(s rauc.Slot) bool { return s.Bootname == which && which != "" }); i >= 0 {
		which = list[i].Name
	}
	if state == "active" && !force {
		if s := chosen(list, which); s != nil && (s.Status == "pending" || s.Status == "failed") {
			return marked{}, fmt.Errorf("the installation into %s has not been finished (%s); --force activates it all the same", s.Name, s.Status)
		}
	}
	if i := slices.IndexFunc(list, func(s rauc.Slot) bool { return s.Name == which }); i >= 0 && list[i].Bootname == "" {
		return marked{}, fmt.Errorf("%s has no boot name, so it cannot be marked", which)
	}
	ctx, cancel := context.WithTimeout(ctx, raucPatience)
	defer cancel()
	name, _, err := client.Mark(ctx, state, which)
	if err != nil {
		return marked{}, fmt.Errorf("RAUC cannot mark %s %s: %w", which, state, err)
	}
	t := marked{Slot: name, State: state}
	for _, s := range list {
		if s.Name == name {
			t.Bootname = s.Bootname
		}
	}
	return t, nil
}

// chosen returns the slot that which means to RAUC, nil if that is none or several.
func chosen(list []rauc.Slot, which string) *rauc.Slot {
	booted := slices.IndexFunc(list, func(s rauc.Slot) bool { return s.State == "booted" })
	var found []*rauc.Slot
	for i := range list {
		s := &list[i]
		switch {
		case s.Name == which,
			which == "booted" && i == booted,
			which == "other" && booted >= 0 && i != booted && s.Class == list[booted].Class && s.Bootname != "" && s.Parent == "":
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		return nil
	}
	return found[0]
}

// resolve finds a slot without RAUC.
func (m machine) resolve(st slots.State, which string) (string, error) {
	booted, _ := m.booted()
	switch which {
	case "booted":
		if !st.Has(booted) {
			return "", errors.New("the kernel command line names no slot as booted; give a boot name")
		}
		return booted, nil
	case "other":
		others := slices.DeleteFunc(slices.Clone(st.Order), func(n string) bool { return n == booted })
		if !st.Has(booted) || len(others) != 1 {
			return "", errors.New("cannot tell which slot is the other one; give a boot name")
		}
		return others[0], nil
	}
	if err := known(st, which); err != nil {
		return "", fmt.Errorf("%w; RAUC, which knows slot names, does not answer", err)
	}
	return which, nil
}
