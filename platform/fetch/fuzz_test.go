// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"sdvbox/platform/durable"
)

func TestContentRange(t *testing.T) {
	for s, want := range map[string]contentRange{
		"bytes 0-0/1":                   {0, 0, 1},
		"bytes 5-9/10":                  {5, 9, 10},
		"bytes 5-9/*":                   {5, 9, -1},
		"Bytes 5-9/10":                  {5, 9, 10},
		"bytes */10":                    {-1, -1, 10},
		"bytes */0":                     {-1, -1, 0},
		"bytes 0-4611686018427387902/*": {0, 1<<62 - 2, -1},
	} {
		if got, err := parseContentRange(s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{
		"", "bytes", "bytes ", "bytes */*", "bytes 5-9", "bytes 5-/10", "bytes -5/10", "bytes 9-5/10", "bytes 5-10/10",
		"bytes 5-9/9", "bytes +5-9/10", "bytes 5--9/10", "bytes 5-9/-1", "bytes 5-9/0x10", "bytes=5-9/10", "lines 5-9/10",
		"bytes  5-9/10", "bytes 5-9/10 ", "bytes 5-9/10/10", "bytes 0-9223372036854775807/*", "bytes 99999999999999999999-9/*",
	} {
		if got, err := parseContentRange(s); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 5-9/10", "bytes 5-9/*", "bytes */10", "bytes */*", "bytes 00-0/01", "x 1-2/3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseContentRange(s)
		if err != nil {
			if len(err.Error()) > 500 || strings.ContainsAny(err.Error(), "\n\x00") {
				t.Fatalf("unfit for a log: %q", err)
			}
			return
		}
		if r.first < -1 || r.last < r.first || r.total < -1 || r.total >= 0 && r.last >= r.total || r.first < 0 && r.total < 0 {
			t.Fatalf("%q: %+v", s, r)
		}
		if r.last-r.first+1 < 1 {
			t.Fatalf("%q: no bytes in %+v", s, r)
		}
		span, total := fmt.Sprintf("%d-%d", r.first, r.last), fmt.Sprint(r.total)
		if r.first < 0 {
			span = "*"
		}
		if r.total < 0 {
			total = "*"
		}
		if again, err := parseContentRange("bytes " + span + "/" + total); err != nil || again != r {
			t.Fatalf("%q: %+v, again %+v, %v", s, r, again, err)
		}
	})
}

func FuzzMeta(f *testing.F) {
	m := meta{Source: digest("x"), ETag: `"v1"`, Modified: "Mon, 02 Jan 2006 15:04:05 GMT", Total: 100, Synced: 50, Boot: "b"}
	b, err := json.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	for _, s := range []string{"", "{}", "null", "[]", `{"total":-1}`, `{"total":1e99}`, `{"etag":"a\r\nb"}`, strings.Replace(string(b), `v1`, `v\n1`, 1)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMeta(b)
		if err != nil {
			return
		}
		if m.Total < -1 || m.Synced < 0 {
			t.Fatalf("%+v", m)
		}
		if v := m.ifRange(); strings.ContainsAny(v, "\r\n\x00") || strings.HasPrefix(v, "W/") {
			t.Fatalf("If-Range %q", v)
		}
		h := http.Header{}
		if m.ETag != "" {
			h.Set("ETag", m.ETag)
		}
		if m.Modified != "" {
			h.Set("Last-Modified", m.Modified)
		}
		if !m.same(h) {
			t.Fatalf("%+v differs from itself", m)
		}
		out, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseMeta(out); err == nil && again != m {
			t.Fatalf("%+v, again %+v", m, again)
		}
	})
}

func TestMetaTakesNoHeaderThatCannotBeSent(t *testing.T) {
	var m meta
	m.describe(http.Header{"Etag": {"\"a\xe4\""}, "Last-Modified": {strings.Repeat("x", maxValidator+1)}})
	if m != (meta{}) {
		t.Errorf("%.200v", m)
	}
}

func TestLimiterDoesNotMakeUpForSilence(t *testing.T) {
	l := limiter{rate: 1000}
	l.wait(t.Context(), 10)
	time.Sleep(100 * time.Millisecond) // worth 100 bytes
	start := time.Now()
	l.wait(t.Context(), 50)
	if d := time.Since(start); d < 50*time.Millisecond {
		t.Errorf("50 bytes at 1000 B/s took %v", d)
	}
}

func TestMetaSurvivesSave(t *testing.T) {
	path := t.TempDir() + "/m"
	m := meta{Source: digest("x"), ETag: `"<&>"`, Total: -1, Synced: 7, Boot: bootID(), Done: true}
	if m.Boot == "" {
		t.Error("no boot id")
	}
	if err := m.save(path); err != nil {
		t.Fatal(err)
	}
	if got, err := loadMeta(path); err != nil || got != m {
		t.Errorf("%+v, %v", got, err)
	}
	if err := durable.WriteFile(path, []byte(strings.Repeat(" ", maxMeta+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadMeta(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
}
