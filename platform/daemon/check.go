// SPDX-License-Identifier: Apache-2.0

package daemon

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

const (
	exitUsage = 2
	exitOdd   = 3
)

// CheckedConfig is what "check-config --output json" prints.
type CheckedConfig struct {
	File     string           `json:"file"`
	Warnings []config.Warning `json:"warnings"`
}

// CheckConfig describes the command check-config of a service. Read reads a file, or the one that the service takes by itself if
// the name is empty, and warns about what is odd in it. Named is the file that the options of the service name, given before the
// command: who checks the command line of a service means that one.
func CheckConfig(description string, named func(options any) string, read func(name string) (*config.File, error)) applet.Command {
	type options struct {
		Strict bool `long:"strict" description:"fail when there are warnings"`
	}
	return applet.Command{
		Name:        "check-config",
		Summary:     "check a configuration file",
		Args:        "[FILE]",
		Description: description,
		Options:     func() any { return new(options) },
		Exit:        []applet.ExitCode{{Code: exitOdd, Meaning: "there are warnings, with --strict"}},
		Run: func(_ context.Context, c *applet.Call) error {
			if len(c.Args) > 1 {
				return applet.Exit(exitUsage, errors.New("expected one FILE"))
			}
			name := append(c.Args, "")[0]
			if before := named(c.Above); before != "" {
				if name != "" {
					return applet.Exit(exitUsage, fmt.Errorf("expected one FILE, found %s before the command, too", before))
				}
				name = before
			}
			f, err := read(name)
			if err != nil {
				return err
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
			if err == nil && c.Options.(*options).Strict && len(f.Warnings) > 0 {
				return applet.Exit(exitOdd, nil)
			}
			return err
		},
	}
}
