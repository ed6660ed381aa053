// SPDX-License-Identifier: Apache-2.0

package updatemanager

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"sdvbox/platform/applet"
	"sdvbox/platform/config"
)

// exitOdd is the exit code of "check-config --strict" for a file with warnings.
const exitOdd = 3

type checkOptions struct {
	Strict bool `long:"strict" description:"fail when there are warnings"`
}

// CheckedConfig is what "check-config --output json" prints.
type CheckedConfig struct {
	File     string           `json:"file"`
	Warnings []config.Warning `json:"warnings"`
}

func checkConfigCommand() applet.Command {
	return applet.Command{
		Name:    "check-config",
		Summary: "check a configuration file",
		Args:    "[FILE]",
		Description: `Shows a line for each key of FILE that is unknown, is not as expected or has no effect. The update manager starts with such a file nevertheless: what it does not understand keeps its default. Without FILE, the one is checked that the update manager takes without --cfg-file.

Neither the environment nor other options are looked at.`,
		Options: func() any { return new(checkOptions) },
		Exit:    []applet.ExitCode{{Code: exitOdd, Meaning: "there are warnings, with --strict"}},
		Run:     checkConfig,
	}
}

func checkConfig(_ context.Context, c *applet.Call) error {
	if len(c.Args) > 1 {
		return applet.Exit(exitUsage, errors.New("expected one FILE"))
	}
	s := defaults()
	f, err := readFile(slices.Concat(c.Args, []string{""})[0], &s)
	if err != nil {
		return err
	}
	if f.Name == "" {
		return fmt.Errorf("there is no configuration file %s", configFiles()[0])
	}
	if err := s.check(f); err != nil {
		return fmt.Errorf("configuration %s: %w", f.Name, err)
	}
	for _, key := range []string{"connection.disconnectTimeout", "connection.unsubscribeTimeout"} {
		if f.Has(key) {
			f.Warn(key, "has no effect")
		}
	}
	slices.SortStableFunc(f.Warnings, func(a, b config.Warning) int { return cmp.Compare(a.Line, b.Line) })
	if c.JSON {
		err = json.NewEncoder(c.Stdout).Encode(CheckedConfig{f.Name, append([]config.Warning{}, f.Warnings...)})
	} else {
		for _, w := range f.Warnings {
			fmt.Fprintln(c.Stdout, w)
		}
		_, err = fmt.Fprintf(c.Stdout, "%s: %d warnings\n", f.Name, len(f.Warnings))
	}
	if err == nil && c.Options.(*checkOptions).Strict && len(f.Warnings) > 0 {
		return applet.Exit(exitOdd, nil)
	}
	return err
}
