// SPDX-License-Identifier: Apache-2.0

package containeragent

import (
	"context"
	"encoding/json"
	"fmt"

	"sdvbox/platform/applet"
	"sdvbox/platform/config"
)

const (
	exitUsage = 2
	exitOdd   = 3 // check-config --strict: there are warnings
)

// CheckedConfig is what "check-config --output json" prints.
type CheckedConfig struct {
	File     string           `json:"file"`
	Warnings []config.Warning `json:"warnings"`
}

func checkConfigCommand() applet.Command {
	type options struct {
		Strict bool `long:"strict" description:"fail when there are warnings"`
	}
	return applet.Command{
		Name:        "check-config",
		Summary:     "check a configuration file",
		Args:        "[FILE]",
		Description: "Shows a line for each key of FILE that is unknown, is not as expected or has no effect. The agent starts with such a file nevertheless.",
		Options:     func() any { return new(options) },
		Exit:        []applet.ExitCode{{Code: exitOdd, Meaning: "there are warnings, with --strict"}},
		Run: func(_ context.Context, c *applet.Call) error {
			if len(c.Args) > 1 {
				return applet.Exit(exitUsage, fmt.Errorf("expected one FILE"))
			}
			file := configFile
			if len(c.Args) == 1 {
				file = c.Args[0]
			}
			s := defaults()
			f, err := config.Read(file, &s)
			if err != nil {
				return err
			}
			s.check(f)
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
