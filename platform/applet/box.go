// SPDX-License-Identifier: Apache-2.0

package applet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
)

// boxName is the name under which the binary shows all applets.
const boxName = "sdvbox"

type boxOptions struct {
	List          bool   `long:"list" description:"list the applets"`
	Version       bool   `long:"version" description:"show the version"`
	Install       string `long:"install" value-name:"DIR" description:"make a symlink to this binary in DIR for each applet"`
	InstallCompat string `long:"install-compat" value-name:"DIR" description:"the same for the names of the foreign tools that applets stand in for"`
	Target        string `long:"target" value-name:"PATH" description:"let the symlinks point to PATH instead"`
	Completion    string `long:"completion" choice:"bash" choice:"zsh" choice:"fish" description:"print the completion script for a shell"`
	Man           string `long:"man" value-name:"APPLET" description:"print the man page of an applet, or of sdvbox"`
}

// box describes the binary itself: a command whose sub-commands are the table.
func box(table []Command) Command {
	return Command{
		Name:    boxName,
		Summary: "updates, containers and cloud of a software-defined vehicle in one binary",
		Description: "Each applet is called as \"sdvbox APPLET\" or through a symlink with its name. " +
			"\"APPLET --help\" describes it.",
		Options: func() any { return new(boxOptions) },
		Sub:     append(slices.Clone(table), completer(table)),
		Exit:    []ExitCode{{exitUnknown, "there is no such applet"}},
		Run: func(_ context.Context, c *Call) error {
			o := c.Options.(*boxOptions)
			switch {
			case o.List:
				return list(c, table)
			case o.Version:
				return version(c)
			case o.Install != "":
				return install(o.Install, o.Target, names(table))
			case o.InstallCompat != "":
				var compat []string
				for _, cmd := range table {
					compat = append(compat, cmd.Compat...)
				}
				return install(o.InstallCompat, o.Target, compat)
			case o.Completion != "":
				return writeCompletion(c.Stdout, o.Completion, table)
			case o.Man != "":
				return man(c, table, o.Man)
			}
			return usage(boxName, errors.New("an applet is needed"))
		},
	}
}

func list(c *Call, table []Command) error {
	type item struct {
		Name    string `json:"name"`
		Summary string `json:"summary"`
	}
	items := []item{}
	for _, cmd := range table {
		if !cmd.Hidden {
			items = append(items, item{cmd.Name, cmd.Summary})
		}
	}
	if c.JSON {
		return json.NewEncoder(c.Stdout).Encode(items)
	}
	w := tabwriter.NewWriter(c.Stdout, 0, 0, 2, ' ', 0)
	for _, i := range items {
		fmt.Fprintf(w, "%s\t%s\n", i.Name, i.Summary)
	}
	return w.Flush()
}

func version(c *Call) error {
	if c.JSON {
		return json.NewEncoder(c.Stdout).Encode(struct {
			Version string `json:"version"`
			Commit  string `json:"commit"`
		}{Version, Commit})
	}
	_, err := fmt.Fprintf(c.Stdout, "%s %s\n", boxName, Version)
	return err
}

func man(c *Call, table []Command, name string) error {
	if name == boxName {
		root := box(table)
		return writeMan(c.Stdout, &root)
	}
	cmd := find(table, name)
	if cmd == nil || cmd.Raw {
		return fmt.Errorf("no man page for %q, the nearest is %q", name, nearest(name, table))
	}
	return writeMan(c.Stdout, cmd)
}

// install makes the symlinks names in dir. Without a target they point to the
// running binary by a relative path, so that a staged tree can be moved.
func install(dir, target string, names []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if target == "" {
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		if dir, err = filepath.Abs(dir); err != nil {
			return err
		}
		if dir, err = filepath.EvalSymlinks(dir); err != nil {
			return err
		}
		if target, err = filepath.Rel(dir, exe); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := link(target, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// link makes path a symlink to target. It replaces a link but never a file.
func link(target, path string) error {
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode()&os.ModeSymlink == 0 {
			return fmt.Errorf("cannot make the link %s: a file has this name", path)
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return os.Symlink(target, path)
}
