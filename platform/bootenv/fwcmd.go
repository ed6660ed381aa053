// SPDX-License-Identifier: Apache-2.0

package bootenv

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

const fwDefaults = "/etc/u-boot-initial-env"

// Exit codes of libubootenv: negative error numbers.
const (
	exitStore    = 256 - 1  // the environment cannot be written
	exitNoConfig = 256 - 9  // no configuration file
	exitTooSmall = 256 - 12 // the variables do not fit
	exitInvalid  = 256 - 13 // no valid environment and no defaults
	exitConfig   = 256 - 22 // no usable configuration
)

const fwHelp = ` -h, --help                       : print this help
 -c, --config <filename>          : configuration file (old fw_env.config)
 -f, --defenv <filename>          : default environment if no one found
 -V, --version                    : print version and exit
`

const fwPrintenvHelp = `Usage fw_printenv [OPTION] [NAME...]
` + fwHelp + ` -n, --no-header                  : do not print variable name
`

const fwSetenvHelp = `Usage fw_setenv [OPTION] NAME [VALUE...]
` + fwHelp + ` -s, --script <filename>          : read variables to be set from a script
`

var fwOptions = []option{
	{short: 'h', long: "help"}, {short: 'V', long: "version"},
	{short: 'c', long: "config", arg: true}, {short: 'f', long: "defenv", arg: true},
}

// FwPrintenv is the command line of fw_printenv as in libubootenv 0.3.2,
// except for a variable that is not set: as in U-Boot's own tool the exit code
// is 1 then. RAUC needs that to tell an order that is lost, which it builds
// anew, from an empty one.
func FwPrintenv(args []string, stdout, stderr io.Writer) int {
	f, code := newFw("fw_printenv", fwPrintenvHelp, args, option{short: 'n', long: "no-header"}, stdout, stderr)
	if f == nil {
		return code
	}
	vars, err := f.store.Load()
	if errors.Is(err, ErrInvalid) {
		if vars = f.defaults(err); vars == nil {
			return f.invalid(err)
		}
	} else if err != nil {
		return f.fail(1, f.name, err)
	}
	if len(f.rest) == 0 {
		for _, k := range sortedKeys(vars) {
			fmt.Fprintf(stdout, "%s=%s\n", k, vars.Get(k))
		}
		return 0
	}
	_, bare := f.opts['n']
	for _, k := range f.rest {
		switch {
		case !vars.Has(k):
			fmt.Fprintf(stderr, "## Error: \"%s\" not defined\n", k)
			code = 1
		case bare:
			fmt.Fprintln(stdout, vars.Get(k))
		default:
			fmt.Fprintf(stdout, "%s=%s\n", k, vars.Get(k))
		}
	}
	return code
}

// FwSetenv is the command line of fw_setenv as in libubootenv 0.3.2, with
// three differences that follow U-Boot's own tool: an empty value deletes the
// variable, for U-Boot knows no empty ones; several values are joined by
// spaces; and a script may hold lines NAME VALUE besides NAME=VALUE. All
// changes of a call are one write.
func FwSetenv(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	f, code := newFw("fw_setenv", fwSetenvHelp, args, option{short: 's', long: "script", arg: true}, stdout, stderr)
	if f == nil {
		return code
	}
	var changes [][2]string
	script, hasScript := f.opts['s']
	_, hasDefaults := f.opts['f']
	switch {
	case hasScript:
		var err error
		if changes, err = readScript(script, stdin); err != nil {
			return f.fail(1, f.name, err)
		}
	case len(f.rest) > 0:
		changes = [][2]string{{f.rest[0], strings.Join(f.rest[1:], " ")}}
	case !hasDefaults:
		fmt.Fprint(stderr, fwSetenvHelp)
		return 1
	}
	for _, c := range changes {
		if strings.Contains(c[0], "=") {
			fmt.Fprintf(stderr, "Error: illegal character '=' in variable name \"%s\"\n", c[0])
			return 1
		}
	}
	apply := func(v *Vars) error {
		for _, c := range changes {
			if c[1] == "" {
				v.Delete(c[0])
			} else {
				v.Set(c[0], c[1])
			}
		}
		return nil
	}
	err := f.store.Update(apply)
	if errors.Is(err, ErrInvalid) {
		vars := f.defaults(err)
		if vars == nil {
			return f.invalid(err)
		}
		apply(vars)
		err = f.store.create(vars)
	}
	switch {
	case errors.Is(err, errTooSmall):
		return f.fail(exitTooSmall, "Error storing the env", err)
	case err != nil:
		return f.fail(exitStore, "Error storing the env", err)
	}
	return 0
}

// fw is a call of one of the two tools.
type fw struct {
	name   string
	opts   map[byte]string
	rest   []string
	store  *ubootStore
	stderr io.Writer
}

// newFw parses the command line and opens the environment. It returns nil and
// an exit code if the call ends with that.
func newFw(name, help string, args []string, extra option, stdout, stderr io.Writer) (*fw, int) {
	f := &fw{name: name, stderr: stderr}
	var err error
	if f.opts, f.rest, err = getopt(args, append(slices.Clone(fwOptions), extra)); err != nil {
		fmt.Fprintf(stderr, "%s: %v\n%s", name, err, help)
		return nil, 1
	}
	if _, ok := f.opts['h']; ok {
		io.WriteString(stdout, help)
		return nil, 0
	}
	if _, ok := f.opts['V']; ok {
		fmt.Fprintln(stdout, "0.3.2 (sdvbox)")
		return nil, 0
	}
	config, ok := f.opts['c']
	if !ok {
		config = defaultConfig
	}
	f.store, err = openUBoot(config)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, f.fail(exitNoConfig, "Configuration file wrong or corrupted", err)
	case err != nil:
		return nil, f.fail(exitConfig, "Configuration file wrong or corrupted", err)
	}
	return f, 0
}

func (f *fw) fail(code int, what string, err error) int {
	fmt.Fprintf(f.stderr, "%s: %v\n", what, err)
	return code
}

// invalid ends a call that found neither an environment nor defaults.
func (f *fw) invalid(err error) int {
	if errors.Is(err, os.ErrNotExist) {
		return f.fail(exitConfig, "Configuration file wrong or corrupted", err)
	}
	return f.fail(exitInvalid, "Cannot read environment", err)
}

// defaults returns the variables to use where no copy is valid, nil if there
// are none.
func (f *fw) defaults(why error) *Vars {
	path, ok := f.opts['f']
	if !ok {
		path = fwDefaults
	}
	changes, err := readScript(path, nil)
	if err != nil {
		if ok {
			fmt.Fprintf(f.stderr, "Cannot read default environment from file: %v\n", err)
		}
		return nil
	}
	fmt.Fprintf(f.stderr, "Cannot read environment, using default: %v\n", why)
	vars := new(Vars)
	for _, c := range changes {
		if c[1] != "" {
			vars.Set(c[0], c[1])
		}
	}
	return vars
}

// readScript reads the variables in a file, "-" stands for stdin. A line is
// NAME=VALUE or NAME VALUE; without a value the variable is deleted.
func readScript(path string, stdin io.Reader) ([][2]string, error) {
	if path != "-" || stdin == nil {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		stdin = file
	}
	data, err := io.ReadAll(io.LimitReader(stdin, maxUBoot))
	if err != nil {
		return nil, err
	}
	var changes [][2]string
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(strings.TrimLeft(line, " \t"), "\r\n")
		if line == "" || line[0] == '#' {
			continue
		}
		name, value := line, ""
		if i := strings.IndexAny(line, "= \t"); i >= 0 {
			name, value = line[:i], line[i+1:]
			if line[i] != '=' {
				value = strings.TrimLeft(value, " \t")
			}
		}
		changes = append(changes, [2]string{name, value})
	}
	return changes, nil
}
