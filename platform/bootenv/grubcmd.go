// SPDX-License-Identifier: Apache-2.0

package bootenv

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

const grubDefault = "/boot/grub/grubenv"

const grubUsage = `Usage: grub-editenv [OPTION...] FILENAME COMMAND
`

const grubTry = "Try 'grub-editenv --help' or 'grub-editenv --usage' for more information.\n"

const grubHelp = grubUsage + `
Tool to edit environment block.

 Commands:
  create                     Create a blank environment block file.
  list                       List the current variables.
  set [NAME=VALUE ...]       Set variables.
  unset [NAME ...]           Delete variables.

 Options:
  -?, --help                 give this help list
      --usage                give a short usage message
  -v, --verbose              print verbose messages.
  -V, --version              print program version

If FILENAME is '-', the default value ` + grubDefault + ` is used.

A file FILENAME with a second copy FILENAME2 is changed together with it so
that a power cut does no harm.
`

// GrubEditenv is the command line of grub-editenv as in GRUB 2.06, with its
// messages and exit codes. A file that has a second copy is read and changed
// with it, any other one by itself, in place.
func GrubEditenv(args []string, stdout, stderr io.Writer) int {
	opts, rest, err := getopt(args, []option{
		{short: '?', long: "help"}, {short: 'u', long: "usage"}, {short: 'v', long: "verbose"}, {short: 'V', long: "version"},
	})
	if err != nil {
		fmt.Fprintf(stderr, "grub-editenv: %v\n%s", err, grubTry)
		return 64
	}
	for _, o := range []struct {
		short byte
		text  string
	}{{'?', grubHelp}, {'u', grubUsage}, {'V', "grub-editenv (sdvbox, as GRUB 2.06)\n"}} {
		if _, ok := opts[o.short]; ok {
			io.WriteString(stdout, o.text)
			return 0
		}
	}
	path := "-"
	switch len(rest) {
	case 0:
		fmt.Fprint(stderr, "You need to specify at least one command.\n", grubUsage, grubTry)
		return 64
	case 1:
	default:
		path, rest = rest[0], rest[1:]
	}
	if path == "-" {
		path = grubDefault
	}
	command, operands := rest[0], rest[1:]
	s := openGrubFile(path)
	switch command {
	case "create":
		err = s.create(new(Vars))
	case "list":
		err = s.list(stdout)
	case "set":
		err = s.set(operands)
	case "unset":
		err = s.change(func(v *Vars) error {
			for _, k := range operands {
				v.Delete(k)
			}
			return nil
		})
	default:
		fmt.Fprintf(stderr, "Unknown command `%s'.\n%s%s", command, grubUsage, grubTry)
		return 1
	}
	if err != nil {
		fmt.Fprintf(stderr, "grub-editenv: error: %s.\n", grubMessage(err))
		return 1
	}
	return 0
}

// grubMessage is GRUB's text where it has one.
func grubMessage(err error) string {
	var path *os.PathError
	switch {
	case errors.Is(err, errHeader):
		return errHeader.Error()
	case errors.Is(err, errTooSmall):
		return errTooSmall.Error()
	case errors.As(err, &path) && path.Op == "open":
		return fmt.Sprintf("cannot open `%s': %s", path.Path, sentence(path.Err))
	}
	return err.Error()
}

// sentence starts the text of a system error with a capital, as C does.
func sentence(err error) string {
	s := err.Error()
	return strings.ToUpper(s[:1]) + s[1:]
}

// openGrubFile returns the store of two copies if path has or had a second
// one, else that of a single file.
func openGrubFile(path string) *grubStore {
	pair := newPair(path)
	if exists(pair.paths[1]) {
		return pair
	}
	if c := readCopy(path); c.err == nil && c.seq != plain {
		return pair
	}
	return &grubStore{paths: []string{path}}
}

// createMissing makes a single file if there is none, as grub-editenv does even to list.
func (s *grubStore) createMissing() error {
	if len(s.paths) > 1 || exists(s.paths[0]) {
		return nil
	}
	return s.create(new(Vars))
}

func (s *grubStore) list(stdout io.Writer) error {
	if err := s.createMissing(); err != nil {
		return err
	}
	vars, err := s.Load()
	if err != nil {
		return err
	}
	for _, k := range vars.Keys() {
		fmt.Fprintf(stdout, "%s=%s\n", k, vars.Get(k))
	}
	return nil
}

func (s *grubStore) set(operands []string) error {
	return s.change(func(v *Vars) error {
		for _, o := range operands {
			k, value, ok := strings.Cut(o, "=")
			if !ok || checkGrub(k, value) != nil {
				return fmt.Errorf("invalid parameter %s", o)
			}
			v.Set(k, value)
		}
		return nil
	})
}

func (s *grubStore) change(change func(*Vars) error) error {
	if err := s.createMissing(); err != nil {
		return err
	}
	return s.Update(change)
}
