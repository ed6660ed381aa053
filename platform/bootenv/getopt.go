// SPDX-License-Identifier: Apache-2.0

package bootenv

import (
	"fmt"
	"strings"
)

// option is an option of a foreign command line.
type option struct {
	short byte
	long  string
	arg   bool // takes an argument
}

// getopt parses args as getopt_long of the C library does: options may follow
// the operands, short ones may be joined, "--" ends them. found holds the
// arguments by short name, rest the operands.
func getopt(args []string, options []option) (found map[byte]string, rest []string, err error) {
	found = make(map[byte]string)
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			return found, append(rest, args...), nil
		case arg == "-" || !strings.HasPrefix(arg, "-"):
			rest = append(rest, arg)
		case strings.HasPrefix(arg, "--"):
			name, value, hasValue := strings.Cut(arg[2:], "=")
			o := lookup(options, func(o option) bool { return o.long != "" && o.long == name })
			if o == nil || hasValue && !o.arg {
				return nil, nil, fmt.Errorf("unrecognized option '%s'", arg)
			}
			if o.arg && !hasValue {
				if len(args) == 0 {
					return nil, nil, fmt.Errorf("option '%s' requires an argument", arg)
				}
				value, args = args[0], args[1:]
			}
			found[o.short] = value
		default:
			for s := arg[1:]; s != ""; {
				c := s[0]
				s = s[1:]
				o := lookup(options, func(o option) bool { return o.short == c })
				if o == nil {
					return nil, nil, fmt.Errorf("invalid option -- '%c'", c)
				}
				value := ""
				if o.arg {
					if s == "" {
						if len(args) == 0 {
							return nil, nil, fmt.Errorf("option requires an argument -- '%c'", c)
						}
						s, args = args[0], args[1:]
					}
					value, s = s, ""
				}
				found[c] = value
			}
		}
	}
	return found, rest, nil
}

func lookup(options []option, match func(option) bool) *option {
	for i := range options {
		if match(options[i]) {
			return &options[i]
		}
	}
	return nil
}
