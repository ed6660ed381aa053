// SPDX-License-Identifier: Apache-2.0

package ctrlog

import (
	"bytes"
	"encoding/json"
	"time"
	"unicode/utf8"
)

// maxLine is the longest text that is kept together.
const maxLine = 16 << 10

var streamNames = [...]string{"stdout", "stderr"}

// line makes lines of what is written. It holds the beginning of one whose end is to come.
type line struct {
	begun []byte
	first time.Time // of a line that is too long, when its first part was written; else 0
	out   []byte    // backs what cut has returned
	long  bool      // what cut has returned is not the end
}

// cut takes n bytes from the front of data. Text is a line with its end, or a part of one that is too long; nil if the end of
// the line is to come. It is valid until the next cut.
func (l *line) cut(data []byte) (text []byte, n int) {
	n = bytes.IndexByte(data, '\n') + 1
	ends := n > 0
	if !ends {
		n = len(data)
	}
	content := len(l.begun) + n
	if ends {
		content--
	}
	if content > maxLine {
		n = max(maxLine-len(l.begun), 0)
		l.begun = append(l.begun, data[:n]...)
		whole := wholeRunes(l.begun[:maxLine])
		l.out = append(l.out[:0], l.begun[:whole]...)
		l.begun = append(l.begun[:0], l.begun[whole:]...)
		l.long = true
		return l.out, n
	}
	if !ends {
		l.begun = append(l.begun, data...)
		return nil, n
	}
	text = data[:n]
	if len(l.begun) > 0 {
		l.out = append(append(l.out[:0], l.begun...), text...)
		l.begun, text = l.begun[:0], l.out
	}
	if bytes.HasSuffix(text, []byte("\r\n")) {
		l.out = append(append(l.out[:0], text[:len(text)-2]...), '\n')
		text = l.out
	}
	l.long = false
	return text, n
}

// end is what is left of a line that has no end.
func (l *line) end() []byte {
	text := l.begun
	l.begun, l.long = nil, false
	return text
}

// time is when the text that was cut has been written. It is the same for all parts of a long line.
func (l *line) time(now time.Time) time.Time {
	t := now
	if !l.first.IsZero() {
		t = l.first
	}
	l.first = time.Time{}
	if l.long {
		l.first = t
	}
	return t
}

// wholeRunes is the length of b without a character at its end of which a part is missing.
func wholeRunes(b []byte) int {
	for i := len(b) - 1; i >= 0 && i >= len(b)-utf8.UTFMax; i-- {
		if utf8.RuneStart(b[i]) {
			if !utf8.FullRune(b[i:]) {
				return i
			}
			break
		}
	}
	return len(b)
}

// appendLine appends the JSON of a line to b.
func appendLine(b []byte, stream int, text []byte, at time.Time) []byte {
	b = append(b, `{"stream":"`...)
	b = append(b, streamNames[stream]...)
	b = append(b, `","log":`...)
	b = appendString(b, text)
	b = append(b, `,"time":"`...)
	b = at.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, "\"}\n"...)
}

// appendString appends text as encoding/json writes it, which costs more time than most lines need.
func appendString(b, text []byte) []byte {
	content, ends := bytes.CutSuffix(text, []byte("\n"))
	for _, c := range content {
		if c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, _ := json.Marshal(string(text)) // strings always work
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, content...)
	if ends {
		b = append(b, `\n`...)
	}
	return append(b, '"')
}
