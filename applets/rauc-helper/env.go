// SPDX-License-Identifier: Apache-2.0

package rauchelper

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"sdvbox/platform/applet"
	"sdvbox/platform/bootenv"
	"sdvbox/platform/slots"
)

func envCommand() applet.Command {
	options := func() any { return new(storeOptions) }
	return applet.Command{
		Name:    "env",
		Summary: "read and write the boot environment",
		Description: "Works on GRUB's environment block and on the environment of U-Boot, in the format of the boot loader's own tools. " +
			"Each call changes everything or nothing, also when the power fails.",
		Sub: []applet.Command{
			{Name: "get", Args: "KEY...", Summary: "print values, one a line", Options: options, Run: envGet,
				Description: "Fails when a variable is not set."},
			{Name: "set", Args: "KEY=VALUE...", Summary: "set variables", Options: options, Run: envSet},
			{Name: "unset", Args: "KEY...", Summary: "delete variables", Options: options, Run: envUnset},
			{Name: "list", Summary: "print all variables", Options: options, Run: envList},
			{Name: "repair", Summary: "make all copies whole and complete the boot state", Options: options, Run: envRepair,
				Description: "Rewrites copies that are missing or damaged from the good one, sets variables of the boot state that are missing to their defaults, and removes what makes no sense from the order of slots."},
			{Name: "create", Args: "[KEY=VALUE...]", Summary: "make a new environment", Options: func() any { return new(createOptions) }, Run: envCreate,
				Description: "The new environment says that both slots may boot, SDV_A first, and that none is confirmed yet; KEY=VALUE changes that."},
		},
	}
}

func openStore(c *applet.Call) (bootenv.Store, error) {
	return bootenv.Open(c.Options.(*storeOptions).Bootenv)
}

func envGet(_ context.Context, c *applet.Call) error {
	if len(c.Args) == 0 {
		return usage("expected the names of variables")
	}
	vars, err := loadVars(c)
	if err != nil {
		return err
	}
	var missing []string
	found := map[string]string{}
	for _, key := range c.Args {
		if !vars.Has(key) {
			missing = append(missing, key)
			continue
		}
		found[key] = vars.Get(key)
		if !c.JSON {
			fmt.Fprintln(c.Stdout, vars.Get(key))
		}
	}
	if c.JSON {
		if err := writeJSON(c.Stdout, found); err != nil {
			return err
		}
	}
	if missing != nil {
		return fmt.Errorf("not set: %s", strings.Join(missing, ", "))
	}
	return nil
}

func envList(_ context.Context, c *applet.Call) error {
	vars, err := loadVars(c)
	if err != nil {
		return err
	}
	all := map[string]string{}
	for _, key := range vars.Keys() {
		all[key] = vars.Get(key)
		if !c.JSON {
			fmt.Fprintf(c.Stdout, "%s=%s\n", key, vars.Get(key))
		}
	}
	if c.JSON {
		return writeJSON(c.Stdout, all)
	}
	return nil
}

func loadVars(c *applet.Call) (*bootenv.Vars, error) {
	store, err := openStore(c)
	if err != nil {
		return nil, err
	}
	vars, err := store.Load()
	return vars, invalid(err)
}

func envSet(_ context.Context, c *applet.Call) error {
	pairs, err := assignments(c.Args)
	if err != nil {
		return err
	}
	if pairs == nil {
		return usage("expected KEY=VALUE")
	}
	return update(c, func(v *bootenv.Vars) error {
		for _, p := range pairs {
			v.Set(p[0], p[1])
		}
		return nil
	})
}

func envUnset(_ context.Context, c *applet.Call) error {
	if len(c.Args) == 0 {
		return usage("expected the names of variables")
	}
	return update(c, func(v *bootenv.Vars) error {
		for _, key := range c.Args {
			v.Delete(key)
		}
		return nil
	})
}

func update(c *applet.Call, f func(*bootenv.Vars) error) error {
	store, err := openStore(c)
	if err != nil {
		return err
	}
	return invalid(store.Update(f))
}

func assignments(args []string) (pairs [][2]string, err error) {
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if !ok || key == "" {
			return nil, usage("argument %q: expected KEY=VALUE", arg)
		}
		pairs = append(pairs, [2]string{key, value})
	}
	return pairs, nil
}

func envRepair(_ context.Context, c *applet.Call) error {
	store, err := openStore(c)
	if err != nil {
		return err
	}
	changed, err := repair(store)
	if err != nil {
		return invalid(err)
	}
	if c.JSON {
		return writeJSON(c.Stdout, map[string]bool{"changed": changed})
	}
	if changed {
		fmt.Fprintf(c.Stdout, "%s repaired\n", store)
	} else {
		fmt.Fprintf(c.Stdout, "%s is in order\n", store)
	}
	return nil
}

// repair makes the copies of the environment whole and its boot state complete.
func repair(store bootenv.Store) (changed bool, err error) {
	if changed, err = store.Repair(); err != nil {
		return changed, err
	}
	before, err := store.Load()
	if err != nil {
		return changed, err
	}
	if err := change(store, func(*slots.State) error { return nil }); err != nil {
		return changed, err
	}
	after, err := store.Load()
	return changed || err == nil && !after.Equal(before), err
}

type createOptions struct {
	storeOptions
	Force bool `long:"force" description:"also in place of a valid environment"`
}

func envCreate(_ context.Context, c *applet.Call) error {
	o := c.Options.(*createOptions)
	pairs, err := assignments(c.Args)
	if err != nil {
		return err
	}
	store, err := bootenv.Open(o.Bootenv)
	if err != nil {
		return err
	}
	if _, err := store.Load(); err == nil && !o.Force {
		return fmt.Errorf("%s is valid: replace it only with --force", store)
	} else if err != nil && !errors.Is(err, bootenv.ErrInvalid) && !o.Force {
		return err
	}
	var vars bootenv.Vars
	slots.New(slots.Names[:]...).Encode(&vars, store.Kind())
	for _, p := range pairs {
		vars.Set(p[0], p[1])
	}
	return bootenv.Create(store.String(), &vars)
}
