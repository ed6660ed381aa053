// SPDX-License-Identifier: Apache-2.0

package ctrlog

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
	"unicode/utf8"
)

func TestLineIsWrittenAsTheOriginalDoes(t *testing.T) {
	at := time.Date(2024, 5, 1, 10, 0, 0, 123456789, time.FixedZone("", 7200))
	for text, want := range map[string]string{
		"ready\n": `{"stream":"stdout","log":"ready\n","time":"2024-05-01T08:00:00.123456789Z"}`,
		"<a&b>":   `{"stream":"stdout","log":"\u003ca\u0026b\u003e","time":"2024-05-01T08:00:00.123456789Z"}`,
	} {
		if got := string(appendLine(nil, 0, []byte(text), at)); got != want+"\n" {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// FuzzLine cuts output into chunks at the places that cuts says, which must not matter.
func FuzzLine(f *testing.F) {
	f.Add([]byte("one\r\ntwo\n\nthree"), []byte{1, 2})
	f.Add(bytes.Repeat([]byte("äß\xff"), 20000), []byte{255, 255})
	f.Add(append([]byte("a"), bytes.Repeat([]byte("ß"), 20000)...), []byte{255})
	f.Add(append(bytes.Repeat([]byte("x"), maxLine), '\n'), []byte{0})
	f.Fuzz(func(t *testing.T, data, cuts []byte) {
		split := func(cuts []byte) (all []byte, lines int) {
			var l line
			for rest := data; len(rest) > 0; {
				size := len(rest)
				if len(cuts) > 0 {
					size, cuts = min(size, 1+int(cuts[0])*100), cuts[1:]
				}
				for chunk := rest[:size]; len(chunk) > 0; {
					text, n := l.cut(chunk)
					if n > len(chunk) || n == 0 && text == nil {
						t.Fatalf("took %d of %d bytes", n, len(chunk))
					}
					if i := bytes.IndexByte(text, '\n'); i >= 0 && i < len(text)-1 || len(text) > maxLine+1 {
						t.Fatalf("line of %d bytes, end at %d", len(text), i)
					}
					if utf8.Valid(data) && !utf8.Valid(text) {
						t.Fatalf("%q is cut within a character", text)
					}
					all = append(all, text...)
					chunk = chunk[n:]
					if text != nil {
						lines++
					}
				}
				rest = rest[size:]
			}
			return append(all, l.end()...), lines
		}
		whole, lines := split(nil)
		pieces, lines2 := split(cuts)
		if bytes.Contains(data, []byte("\r")) { // one at the place of a cut may stay
			whole, pieces = bytes.ReplaceAll(whole, []byte("\r"), nil), bytes.ReplaceAll(pieces, []byte("\r"), nil)
			data = bytes.ReplaceAll(data, []byte("\r"), nil)
		} else if lines != lines2 {
			t.Fatalf("%d lines in one chunk, %d in several", lines, lines2)
		}
		if !bytes.Equal(whole, data) || !bytes.Equal(pieces, data) {
			t.Fatalf("%q became %q and %q", data, whole, pieces)
		}
		if want, _ := json.Marshal(string(data)); string(appendString(nil, data)) != string(want) {
			t.Fatalf("got %s, want %s", appendString(nil, data), want)
		}
	})
}
