// SPDX-License-Identifier: Apache-2.0

package applet

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/jessevdk/go-flags"
)

// The options that the core adds to those of a command.
type (
	outputOption struct {
		Output string `long:"output" choice:"text" choice:"json" description:"how to print results and errors"`
	}
	helpOption struct {
		Help bool `short:"h" long:"help" description:"show this help and exit"`
	}
	// Where -h means something else, as the host of a registry.
	longHelpOption struct {
		Help bool `long:"help" description:"show this help and exit"`
	}
)

// A parser parses the options of one command.
type parser struct {
	flags   *flags.Parser
	options any // what Command.Options returned
	output  outputOption
	goStyle bool
	ignored []string // what the environment says and cannot be
}

// newParser returns the parser of cmd; json is the default of --output. An
// error means wrong tags in the options, which is a mistake of the program.
func newParser(cmd *Command, json bool) (*parser, error) {
	p := &parser{
		flags:   flags.NewNamedParser(cmd.Name, flags.PassDoubleDash|flags.AllowBoolValues),
		output:  outputOption{"text"},
		goStyle: cmd.GoFlagStyle,
	}
	if json {
		p.output.Output = "json"
	}
	var groups []any
	if cmd.Options != nil {
		p.options = cmd.Options()
		groups = append(groups, p.options)
	}
	if !cmd.Daemon {
		groups = append(groups, &p.output)
	}
	for _, g := range groups {
		if err := p.add(cmd, g); err != nil {
			return nil, err
		}
	}
	if p.flags.FindOptionByShortName('h') != nil {
		return p, p.add(cmd, &longHelpOption{})
	}
	return p, p.add(cmd, &helpOption{})
}

func (p *parser) add(cmd *Command, group any) error {
	if _, err := p.flags.AddGroup("Options", "", group); err != nil {
		return fmt.Errorf("options of %s: %w", cmd.Name, err)
	}
	return nil
}

// parse fills the options and returns the positional arguments. With stop it
// ends at the first of them, so that a sub-command can parse what follows.
func (p *parser) parse(args []string, stop bool) ([]string, error) {
	if stop {
		p.flags.Options |= flags.PassAfterNonOption
	}
	if p.goStyle {
		p.environ()
		args = p.rewrite(args, stop)
	}
	rest, err := p.flags.ParseArgs(args)
	if p.flags.FindOptionByLongName("help").Value().(bool) { // whatever else is missing or wrong after it
		return nil, Help
	}
	return rest, p.explain(err)
}

// explain words an error about the value of an option for those who do not know the types and functions of Go, which go-flags names.
func (p *parser) explain(err error) error {
	e := (*flags.Error)(nil)
	if !errors.As(err, &e) || e.Type != flags.ErrMarshal {
		return err
	}
	spelled, text, _ := strings.Cut(strings.TrimPrefix(e.Message, "invalid argument for flag `"), "'")
	_, text, _ = strings.Cut(text, ": ") // the type is before it
	o := p.lookup(strings.TrimLeft(spelled[strings.LastIndexByte(spelled, ' ')+1:], "-"))
	if o == nil {
		return err
	}
	return fmt.Errorf("%s: %s", o, wrong(o, text))
}

// wrong is what is wrong with a value that o cannot have, of which an error says text.
func wrong(o *flags.Option, text string) string {
	value := lastQuoted(text)
	if value == "" || !strings.HasPrefix(text, "strconv.") && !strings.HasPrefix(text, "time: ") {
		return text // of a type that knows better
	}
	if strings.HasSuffix(text, strconv.ErrRange.Error()) {
		return value + ": out of range"
	}
	t := valueType(o)
	expected := "a number"
	switch {
	case t == reflect.TypeFor[time.Duration]():
		expected = "a duration such as 5s"
	case t.Kind() == reflect.Bool:
		expected = "true or false"
	case t.Kind() != reflect.Float32 && t.Kind() != reflect.Float64:
		expected = "a whole number"
	}
	return value + ": expected " + expected
}

// lastQuoted returns the last string in quotes, as errors of strconv and time have it, with its quotes.
func lastQuoted(text string) (last string) {
	for {
		_, rest, _ := strings.Cut(text, `"`)
		next, err := strconv.QuotedPrefix(`"` + rest)
		if err != nil {
			return last
		}
		last, text = next, rest[len(next)-1:]
	}
}

func (p *parser) json() bool { return p.output.Output == "json" }

// environ sets the options from the environment but, unlike go-flags, only
// notes a value that cannot be: programs in the style of Go's flag package
// start nevertheless.
func (p *parser) environ() {
	p.each(func(o *flags.Option) {
		key := o.EnvKeyWithNamespace()
		value, set := os.LookupEnv(key)
		if key == "" || !set {
			return
		}
		err := errors.New("empty") // for go-flags that is true
		if value != "" || takesValue(o) {
			err = o.Set(&value)
		}
		if err != nil {
			o.EnvDefaultKey = ""
			p.ignored = append(p.ignored, fmt.Sprintf("environment variable %s is ignored: %s", key, wrong(o, err.Error())))
		}
	})
}

// A flagger knows further options by their names, which depend on what is
// configured. Flag returns a pointer to the value of one, nil for none.
type flagger interface{ Flag(name string) any }

// adopt adds the option that only a flagger knows.
func (p *parser) adopt(name string) *flags.Option {
	f, ok := p.options.(flagger)
	if !ok {
		return nil
	}
	value := f.Flag(name)
	if value == nil {
		return nil
	}
	// It is on the command line, so the default is not used; without one,
	// go-flags would ask for the field, which this option does not have.
	o := &flags.Option{LongName: name, Default: []string{""}}
	p.flags.AddOption(o, value)
	return o
}

// rewrite turns the spellings of Go's flag package into those of go-flags: one
// dash before a long name, two before a short one, and any next argument as
// the value, also one that begins with a dash. With stop it leaves alone what
// follows the first positional argument.
func (p *parser) rewrite(args []string, stop bool) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		name, dashed := strings.CutPrefix(arg, "-")
		dashed = dashed && name != "" // as go-flags takes a single dash
		if arg == "--" || stop && !dashed {
			return append(out, args[i:]...)
		}
		name, _ = strings.CutPrefix(name, "-")
		name, value, joined := strings.Cut(name, "=")
		opt := p.lookup(name)
		if dashed && opt == nil {
			opt = p.adopt(name)
		}
		if !dashed || opt == nil {
			if len(name) > 1 && !strings.HasPrefix(arg, "--") && dashed {
				arg = "-" + arg // unknown, but not as a bundle of short options
			}
			out = append(out, arg)
			continue
		}
		if !joined && takesValue(opt) && i+1 < len(args) {
			i++
			value, joined = args[i], true
		}
		dashes := "--"
		if len(name) == 1 {
			dashes = "-"
		}
		if joined {
			name += "=" + value
		}
		out = append(out, dashes+name)
	}
	return out
}

// lookup returns the option with the long or short name, or nil.
func (p *parser) lookup(name string) *flags.Option {
	switch len(name) {
	case 0:
		return nil // go-flags would find an option without a long name
	case 1:
		return p.flags.FindOptionByShortName(rune(name[0]))
	}
	return p.flags.FindOptionByLongName(name)
}

// visible returns the options to show.
func (p *parser) visible() []*flags.Option {
	var list []*flags.Option
	p.each(func(o *flags.Option) {
		if !o.Hidden {
			list = append(list, o)
		}
	})
	return list
}

// each calls yield for the options in the order of their fields.
func (p *parser) each(yield func(*flags.Option)) {
	var walk func(groups []*flags.Group)
	walk = func(groups []*flags.Group) {
		for _, g := range groups {
			for _, o := range g.Options() {
				yield(o)
			}
			walk(g.Groups())
		}
	}
	walk(p.flags.Groups())
}

// takesValue reports whether an option needs a value, as --path=DIR does.
func takesValue(o *flags.Option) bool {
	t := valueType(o)
	return t.Kind() != reflect.Bool && !(t.Kind() == reflect.Func && t.NumIn() == 0)
}

// valueType is the type of a value of o, of which there may be a list.
func valueType(o *flags.Option) reflect.Type {
	t := reflect.TypeOf(o.Value())
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}
