// SPDX-License-Identifier: Apache-2.0

package kantocm

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"sdvbox/platform/applet"
	"sdvbox/platform/cmapi"
	"sdvbox/platform/ctrmodel"
)

// The commands that show containers.

func (s *Access) get() applet.Command {
	return applet.Command{
		Name:    "get",
		Summary: "print all about a container, as JSON",
		Args:    "[ID]",
		Options: func() any { return &Target{Access: s} },
		Run: func(ctx context.Context, c *applet.Call) error {
			return c.Options.(*Target).simple(ctx, c.Args, func(_ *cmapi.Client, found *ctrmodel.Container) error {
				if c.JSON {
					return printJSON(c, found)
				}
				e := json.NewEncoder(c.Stdout)
				e.SetIndent("", "   ")
				return e.Encode(found)
			})
		},
	}
}

func (s *Access) list() applet.Command {
	type options struct {
		Target
		Quiet  bool `short:"q" long:"quiet" description:"only the ids, on one line"`
		Filter list `long:"filter" value-name:"KEY=VALUE" description:"only those whose status, image or exitcode is this; all of several filters have to fit"`
	}
	return applet.Command{
		Name:    "list",
		Summary: "list the containers",
		Options: func() any { return &options{Target: Target{Access: s}} },
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*options)
			keep, err := filter(o.Filter)
			if err != nil {
				return err
			}
			return s.run(ctx, func(client *cmapi.Client) error {
				all, err := client.List(ctx)
				if err != nil {
					return err
				}
				found := []*ctrmodel.Container{}
				for _, container := range all {
					if keep(container) && (o.Name == "" || container.Name == o.Name) {
						found = append(found, container)
					}
				}
				switch {
				case c.JSON:
					return printJSON(c, found)
				case o.Quiet:
					return writeIDs(c.Stdout, found)
				}
				return writeTable(c.Stdout, found)
			})
		},
	}
}

// filter returns what says whether a container fits all filters.
func filter(filters []string) (func(*ctrmodel.Container) bool, error) {
	var all []func(*ctrmodel.Container) bool
	for _, f := range filters {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "status":
			all = append(all, func(c *ctrmodel.Container) bool { return strings.EqualFold(c.State.Status.String(), value) })
		case "image":
			all = append(all, func(c *ctrmodel.Container) bool { return strings.EqualFold(c.Image.Name, value) })
		case "exitcode":
			code, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return nil, usage("filter %q: expected a number", f)
			}
			all = append(all, func(c *ctrmodel.Container) bool { return c.State.ExitCode == code })
		default:
			return nil, usage("filter %q: expected status=, image= or exitcode=", f)
		}
	}
	return func(c *ctrmodel.Container) bool {
		for _, fits := range all {
			if !fits(c) {
				return false
			}
		}
		return true
	}, nil
}

func writeIDs(w io.Writer, list []*ctrmodel.Container) error {
	if len(list) == 0 {
		return nil
	}
	var ids []string
	for _, c := range list {
		ids = append(ids, c.ID)
	}
	_, err := fmt.Fprintln(w, strings.Join(ids, " "))
	return err
}

// writeTable writes the table as it has always been: scripts cut it at its bars.
func writeTable(w io.Writer, list []*ctrmodel.Container) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "No containers found.")
		return err
	}
	var b strings.Builder
	row := func(cells ...string) {
		for i, width := range []int{37, 37, 60, 10, 32, 10} {
			fmt.Fprintf(&b, "%-*s%s|", width, cells[i], map[bool]string{true: "\t"}[width != 32])
		}
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	row("ID", "Name", "Image", "Status", "Finished At", "Exit Code")
	dash := func(n int) string { return strings.Repeat("-", n) }
	row(dash(37), dash(37), dash(60), dash(10), dash(30), dash(10))
	for _, c := range list {
		row(c.ID, plain(c.Name), plain(c.Image.Name), c.State.Status.String(), c.State.FinishedAt, strconv.FormatInt(c.State.ExitCode, 10))
	}
	b.WriteByte('\n')
	_, err := io.WriteString(w, b.String())
	return err
}

// About is what "sysinfo --output json" prints of one side.
type About struct {
	Version    string `json:"version"`
	APIVersion string `json:"api_version,omitempty"`
	Commit     string `json:"commit"`
	BuildTime  string `json:"build_time,omitempty"`
}

func (s *Access) sysinfo() applet.Command {
	return applet.Command{
		Name:    "sysinfo",
		Summary: "show the versions of the container agent and of this command",
		Options: func() any { return &struct{ *Access }{s} },
		Run: func(ctx context.Context, c *applet.Call) error {
			return s.run(ctx, func(client *cmapi.Client) error {
				i, err := client.ProjectInfo(ctx)
				if err != nil {
					return err
				}
				engine, cli := About{i.Version, i.APIVersion, i.GitCommit, i.BuildTime}, About{Version: applet.Version, APIVersion: cmapi.Version, Commit: applet.Commit}
				if c.JSON {
					return printJSON(c, map[string]About{"engine": engine, "cli": cli})
				}
				_, err = fmt.Fprintf(c.Stdout, "Engine %s\nCLI %s\n", engine, cli)
				return err
			})
		},
	}
}

func (a About) String() string {
	unknown := func(text string) string { return plain(cmp.Or(text, "unknown")) }
	return fmt.Sprintf("v%s, API v%s, (build %s %s) ", unknown(a.Version), unknown(a.APIVersion), unknown(a.Commit), unknown(a.BuildTime))
}
