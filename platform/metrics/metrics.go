// SPDX-License-Identifier: Apache-2.0

// Package metrics writes numbers in the text format of Prometheus, version 0.0.4. It keeps none: who has them says them when
// he is asked.
package metrics

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// ContentType is that of the text.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Text is a text under construction. The samples of one metric have to follow each other.
type Text struct {
	b    bytes.Buffer
	last string
}

// Counter adds a number that only grows, and begins at zero when the process does. Labels are names and values in turn.
func (t *Text) Counter(name, help string, value float64, labels ...string) {
	t.sample(name, "counter", help, "", value, labels)
}

// Gauge adds a number that goes up and down.
func (t *Text) Gauge(name, help string, value float64, labels ...string) {
	t.sample(name, "gauge", help, "", value, labels)
}

// Summary adds the sum and the number of what has been observed.
func (t *Text) Summary(name, help string, sum float64, count uint64, labels ...string) {
	t.sample(name, "summary", help, "_sum", sum, labels)
	t.sample(name, "summary", help, "_count", float64(count), labels)
}

// Bytes returns the text.
func (t *Text) Bytes() []byte { return t.b.Bytes() }

func (t *Text) sample(name, kind, help, suffix string, value float64, labels []string) {
	if name != t.last {
		t.last = name
		fmt.Fprintf(&t.b, "# HELP %s %s\n# TYPE %s %s\n", name, strings.NewReplacer(`\`, `\\`, "\n", `\n`).Replace(help), name, kind)
	}
	t.b.WriteString(name + suffix)
	between := byte('{')
	for i := 0; i+1 < len(labels); i += 2 {
		quoted := strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`).Replace(strings.ToValidUTF8(labels[i+1], "?"))
		fmt.Fprintf(&t.b, `%c%s="%s"`, between, labels[i], quoted)
		between = ','
	}
	if between == ',' {
		t.b.WriteByte('}')
	}
	t.b.WriteByte(' ')
	t.b.WriteString(strconv.FormatFloat(value, 'g', -1, 64))
	t.b.WriteByte('\n')
}
