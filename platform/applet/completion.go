// SPDX-License-Identifier: Apache-2.0

package applet

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/jessevdk/go-flags"
)

// completeName is the hidden command that the completion scripts call.
const completeName = "__complete"

// The scripts know no option of any applet: they ask the binary, which knows
// them all, and fall back to file names where it has nothing to say.
const (
	bashCompletion = `_sdvbox() {
	COMPREPLY=()
	local word
	while IFS=$'\t' read -r word _; do
		COMPREPLY+=("$word")
	done < <(sdvbox __complete "${COMP_WORDS[@]:0:COMP_CWORD+1}" 2>/dev/null)
}
complete -o default -F _sdvbox %s
`
	zshCompletion = `#compdef %s
_sdvbox() {
	local -a found
	found=(${(f)"$(sdvbox __complete "${(@)words[1,CURRENT]}" 2>/dev/null | sed 's/:/\\:/g; s/\t/:/')"})
	if (( $#found )); then
		_describe sdvbox found
	else
		_files
	fi
}
if [ "$funcstack[1]" = _sdvbox ]; then _sdvbox; else compdef _sdvbox %[1]s; fi
`
	fishCompletion = `for name in %s
	complete -c $name -a '(sdvbox __complete (commandline -opc) (commandline -ct) 2>/dev/null)'
end
`
)

// completer is the command behind the scripts: a candidate a line, a tab
// before its description.
func completer(table []Command) Command {
	return Command{
		Name:   completeName,
		Raw:    true,
		Hidden: true,
		Run: func(_ context.Context, c *Call) error {
			root := box(table)
			list, err := complete(&root, c.Args)
			for _, e := range list {
				fmt.Fprintf(c.Stdout, "%s\t%s\n", e.term, e.text)
			}
			return err
		},
	}
}

func writeCompletion(w io.Writer, shell string, table []Command) error {
	script := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[shell]
	all := strings.Join(append([]string{boxName}, names(table)...), " ")
	_, err := fmt.Fprintf(w, script, all)
	return err
}

// complete returns what can stand for the last of words, a command line as
// far as it is typed. A shell may have cut "--output=json" at the sign.
func complete(root *Command, words []string) ([]entry, error) {
	if len(words) < 2 {
		return nil, nil
	}
	cmd := root
	if name := filepath.Base(words[0]); name != boxName {
		cmd = find(root.Sub, name)
	}
	var p *parser
	var pending *flags.Option // waits for its value
	for _, word := range words[:len(words)-1] {
		switch {
		case p == nil: // the name of the command
		case pending != nil:
			if word != "=" {
				pending = nil
			}
			continue
		case strings.HasPrefix(word, "-"):
			name, _, joined := strings.Cut(strings.TrimLeft(word, "-"), "=")
			if o := p.lookup(name); o != nil && takesValue(o) && !joined {
				pending = o
			}
			continue
		default:
			sub := find(cmd.Sub, word)
			if sub == nil {
				continue
			}
			cmd = sub
		}
		if cmd == nil || cmd.Raw {
			return nil, nil
		}
		var err error
		if p, err = newParser(cmd, false); err != nil {
			return nil, err
		}
	}

	current := words[len(words)-1]
	var list []entry
	offer := func(term, text string) {
		if strings.HasPrefix(term, current) {
			list = append(list, entry{term, text})
		}
	}
	name, _, joined := strings.Cut(current, "=")
	switch {
	case pending != nil:
		current = strings.TrimPrefix(current, "=")
		for _, choice := range pending.Choices {
			offer(choice, "")
		}
	case joined:
		if o := p.lookup(strings.TrimLeft(name, "-")); o != nil {
			for _, choice := range o.Choices {
				offer(name+"="+choice, "")
			}
		}
	case strings.HasPrefix(current, "-"):
		for _, o := range p.visible() {
			if o.LongName != "" {
				offer("--"+o.LongNameWithNamespace(), o.Description)
			}
		}
	default:
		for _, sub := range cmd.Sub {
			if !sub.Hidden {
				offer(sub.Name, sub.Summary)
			}
		}
	}
	return list, nil
}

// WithHelp returns cmd with the commands help and completion, which programs with many commands often have.
func WithHelp(cmd Command) Command {
	completion := Command{Name: "completion", Summary: "print the completion script for a shell"}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		completion.Sub = append(completion.Sub, Command{
			Name: shell, Summary: "print that for " + shell,
			Run: func(_ context.Context, c *Call) error { return writeCompletion(c.Stdout, shell, []Command{cmd}) },
		})
	}
	help := Command{
		Name: "help", Summary: "describe a command", Args: "[COMMAND]",
		Run: func(_ context.Context, c *Call) error {
			about, path := &cmd, cmd.Name
			for _, word := range c.Args {
				sub := find(about.Sub, word)
				if sub == nil {
					return unknown(about, path, word)
				}
				about, path = sub, path+" "+word
			}
			return writeHelp(c.Stdout, about, path)
		},
	}
	cmd.Sub = append(cmd.Sub, help, completion)
	return cmd
}
