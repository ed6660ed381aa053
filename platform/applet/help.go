// SPDX-License-Identifier: Apache-2.0

package applet

import (
	"bytes"
	"fmt"
	"io"
	"reflect"
	"strings"

	"github.com/jessevdk/go-flags"
)

// An entry is one line of a list: a term and what it means.
type entry struct{ term, text string }

// A section of the description of a command, as help and man page show it.
type section struct {
	title   string
	entries []entry
}

// synopsis returns how path is called, a line for each form.
func synopsis(cmd *Command, path string) []string {
	var lines []string
	if cmd.Run != nil {
		lines = append(lines, strings.TrimSpace(path+" [OPTION...] "+cmd.Args))
	}
	if len(cmd.Sub) > 0 {
		word := "COMMAND"
		if path == boxName {
			word = "APPLET"
		}
		lines = append(lines, path+" [OPTION...] "+word+" [ARGUMENT...]")
	}
	return lines
}

// sections returns the lists that describe cmd.
func sections(cmd *Command, path string) ([]section, error) {
	p, err := newParser(cmd, false)
	if err != nil {
		return nil, err
	}
	var list []section
	var subs []entry
	for _, sub := range cmd.Sub {
		if !sub.Hidden {
			subs = append(subs, entry{sub.Name, sub.Summary})
		}
	}
	if len(subs) > 0 {
		title := "Commands"
		if path == boxName {
			title = "Applets"
		}
		list = append(list, section{title, subs})
	}
	var options []entry
	for _, o := range p.visible() {
		options = append(options, entry{spelling(o), meaning(o)})
	}
	exits := []entry{{"0", "success"}, {fmt.Sprint(exitFailure), "failure"}, {fmt.Sprint(exitUsage), "wrong usage"}}
	for _, e := range cmd.Exit {
		exits = append(exits, entry{fmt.Sprint(e.Code), e.Meaning})
	}
	return append(list, section{"Options", options}, section{"Exit codes", exits}), nil
}

// spelling returns an option as it is typed: "-p, --path=DIR".
func spelling(o *flags.Option) string {
	s := o.String()
	if !takesValue(o) {
		return s
	}
	value := o.ValueName
	switch {
	case value == "" && len(o.Choices) > 0:
		value = strings.Join(o.Choices, "|")
	case value == "":
		value = "VALUE"
	}
	if o.LongName == "" {
		return s + " " + value
	}
	return s + "=" + value
}

// meaning returns the description of an option with its default and the
// environment variable that sets it.
func meaning(o *flags.Option) string {
	s := o.Description
	def := strings.Join(o.Default, ", ")
	if v := reflect.ValueOf(o.Value()); def == "" && v.Kind() != reflect.Func && !v.IsZero() {
		def = fmt.Sprint(o.Value())
	}
	if o.DefaultMask != "" {
		def = strings.TrimPrefix(o.DefaultMask, "-") // "-" hides it, in go-flags too
	}
	if def != "" {
		s += " (default " + def + ")"
	}
	if key := o.EnvKeyWithNamespace(); key != "" {
		s += " [$" + key + "]"
	}
	return s
}

// writeHelp writes what --help shows.
func writeHelp(w io.Writer, cmd *Command, path string) error {
	list, err := sections(cmd, path)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	for i, line := range synopsis(cmd, path) {
		b.WriteString([]string{"Usage: ", "       "}[min(i, 1)] + line + "\n")
	}
	fmt.Fprintf(&b, "\n%s.\n", sentence(cmd.Summary))
	for _, p := range paragraphs(cmd.Description) {
		b.WriteByte('\n')
		for _, line := range p.lines(80) {
			b.WriteString(line + "\n")
		}
	}
	for _, s := range list {
		fmt.Fprintf(&b, "\n%s:\n", s.title)
		width := 0
		for _, e := range s.entries {
			width = max(width, min(len(e.term), 28))
		}
		indent := strings.Repeat(" ", width+4)
		for _, e := range s.entries {
			line := fmt.Sprintf("  %-*s", width, e.term)
			for i, text := range wrap(e.text, 80-len(indent)) {
				if i > 0 || len(e.term) > width {
					b.WriteString(line + "\n")
					line = indent[2:]
				}
				line += "  " + text
			}
			b.WriteString(strings.TrimRight(line, " ") + "\n")
		}
	}
	_, err = w.Write(b.Bytes())
	return err
}

// writeMan writes the man page of cmd and its sub-commands, for section 1.
func writeMan(w io.Writer, cmd *Command) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, ".TH %s 1 \"\" \"sdvbox %s\"\n", roff(strings.ToUpper(cmd.Name)), roff(Version))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(cmd.Name), roff(cmd.Summary))
	if err := manCommand(&b, cmd, cmd.Name, ".SH"); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

// manCommand writes the sections of one command, under headings of one level.
func manCommand(b *bytes.Buffer, cmd *Command, path, heading string) error {
	list, err := sections(cmd, path)
	if err != nil {
		return err
	}
	if heading == ".SH" {
		b.WriteString(".SH SYNOPSIS\n")
	} else {
		fmt.Fprintf(b, ".SH %s\n%s.\n.PP\n", roff(strings.ToUpper(path)), roff(sentence(cmd.Summary)))
	}
	fmt.Fprintf(b, ".B %s\n", strings.Join(roffs(synopsis(cmd, path)), "\n.br\n.B "))
	if cmd.Description != "" && heading == ".SH" {
		b.WriteString(".SH DESCRIPTION\n")
	}
	for _, p := range paragraphs(cmd.Description) {
		if p.verbatim {
			fmt.Fprintf(b, ".PP\n.nf\n%s\n.fi\n", strings.Join(roffs(p.text), "\n"))
		} else {
			fmt.Fprintf(b, ".PP\n%s\n", roff(strings.Join(p.text, " ")))
		}
	}
	for _, s := range list {
		if s.title == "Exit codes" && heading == ".SS" && len(cmd.Exit) == 0 {
			continue // as the applet's
		}
		fmt.Fprintf(b, "%s %s\n", heading, roff(strings.ToUpper(s.title)))
		for _, e := range s.entries {
			fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(e.term), roff(e.text))
		}
	}
	if path == boxName {
		return nil // its applets have pages of their own
	}
	for i := range cmd.Sub {
		if sub := &cmd.Sub[i]; !sub.Hidden && !sub.Raw {
			if err := manCommand(b, sub, path+" "+sub.Name, ".SS"); err != nil {
				return err
			}
		}
	}
	return nil
}

// roff escapes a line of text.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, `-`, `\-`, `"`, `\(dq`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

func roffs(lines []string) []string {
	var out []string
	for _, l := range lines {
		out = append(out, roff(l))
	}
	return out
}

// sentence returns s with a capital first letter.
func sentence(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// A paragraph of a description; a verbatim one is indented in the source.
type paragraph struct {
	text     []string
	verbatim bool
}

func paragraphs(s string) []paragraph {
	var list []paragraph
	open := false
	for line := range strings.Lines(s) {
		line = strings.TrimRight(line, " \t\n")
		verbatim := strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t")
		switch {
		case line == "":
			open = false
			continue
		case !open || list[len(list)-1].verbatim != verbatim:
			list = append(list, paragraph{verbatim: verbatim})
			open = true
		}
		last := &list[len(list)-1]
		last.text = append(last.text, line)
	}
	return list
}

// lines returns the paragraph for a terminal.
func (p paragraph) lines(width int) []string {
	if p.verbatim {
		return p.text
	}
	return wrap(strings.Join(p.text, " "), width)
}

// wrap breaks s at spaces so that lines have at most width characters.
func wrap(s string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(s) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
