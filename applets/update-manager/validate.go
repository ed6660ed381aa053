// SPDX-License-Identifier: Apache-2.0

package updatemanager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"sdvbox/platform/applet"
	"sdvbox/platform/schema"
	"sdvbox/platform/updateproto"
)

// Verdict is what "validate --output json" prints.
type Verdict struct {
	Kind    string   `json:"kind"`
	Valid   bool     `json:"valid"`
	Faults  []string `json:"faults,omitempty"`
	Unknown []string `json:"unknown,omitempty"` // members that nobody reads
}

func validateCommand() applet.Command {
	type options struct {
		Kind string `long:"kind" value-name:"KIND" description:"what kind of message it has to be, or a topic; default: what it looks like"`
	}
	return applet.Command{
		Name:    "validate",
		Summary: "check a message of the update protocol",
		Description: `Checks a message before it is sent, or one that was recorded, against its JSON Schema. What passes as a desired state is one that the update manager takes. The kinds are called like the topics, without the prefix:

  ` + strings.Join(schema.Kinds(), "\n  ") + `

A request for the owner's consent looks like a command. Members that no one reads, as misspelled ones, are shown but are no fault.`,
		Args:    "FILE",
		Options: func() any { return new(options) },
		Exit:    []applet.ExitCode{{Code: exitInvalid, Meaning: "the message is not valid"}},
		Run: func(_ context.Context, c *applet.Call) error {
			if len(c.Args) != 1 {
				return applet.Exit(exitUsage, errors.New("expected one file, or - for standard input"))
			}
			kind := c.Options.(*options).Kind
			if k := schema.OfTopic(kind); k != "" {
				kind = k
			}
			if _, err := schema.Text(kind); kind != "" && err != nil {
				return applet.Exit(exitUsage, err)
			}
			data, err := read(c.Args[0], c.Stdin)
			if err != nil {
				return err
			}
			v := judge(kind, data)
			if err := show(c, v); err != nil || v.Valid {
				return err
			}
			return applet.Exit(exitInvalid, nil)
		},
	}
}

// read returns at most a little more than a message may have.
func read(file string, stdin io.Reader) ([]byte, error) {
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		stdin = f
	}
	return io.ReadAll(io.LimitReader(stdin, updateproto.MaxSize+1))
}

func judge(kind string, data []byte) *Verdict {
	v := &Verdict{Kind: kind}
	if kind == "" {
		v.Kind = schema.Guess(data)
	}
	if v.Kind == "" {
		v.Kind = "desiredstate" // the one that people write
	}
	err := schema.Validate(v.Kind, data)
	v.Valid = err == nil
	if list, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range list.Unwrap() {
			v.Faults = append(v.Faults, e.Error())
		}
	} else if err != nil {
		v.Faults = []string{err.Error()}
	}
	v.Unknown, _ = schema.Unknown(v.Kind, data)
	return v
}

func (v *Verdict) write(out io.Writer, _ time.Time) error {
	for _, text := range v.Unknown {
		fmt.Fprintf(out, "%s: unknown, nobody reads it\n", plain(text))
	}
	for _, text := range v.Faults {
		fmt.Fprintln(out, plain(text))
	}
	verdict := "valid"
	if !v.Valid {
		verdict = "NOT valid"
	}
	_, err := fmt.Fprintf(out, "%s as %s\n", verdict, v.Kind)
	return err
}
