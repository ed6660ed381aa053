// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type tested struct {
	Name    string `json:"name"`
	On      bool   `json:"on"`
	Size    int    `json:"size"`
	Ratio   float64
	Load    float64       `json:"load"`
	After   time.Duration `json:"after"`
	Within  Duration      `json:"within,omitempty"`
	Colours []string      `json:"colours"`
	Colour  colour        `json:"colour"`
	Log     struct {
		File  string `json:"file"`
		Count uint8  `json:"count"`
	} `json:"log"`
	Agents map[string]*agent `json:"agents"`
	Labels map[string]string `json:"labels"`
	embedded
	hidden string
}

type embedded struct {
	Inner string `json:"inner"`
}

type agent struct {
	Timeout Duration `json:"timeout"`
	Reboot  bool     `json:"reboot"`
}

func (a *agent) SetDefaults() { a.Timeout = Duration(time.Minute) }

// colour is a Value that only red can be.
type colour string

func (c *colour) UnmarshalConfig(raw []byte) (string, error) {
	switch string(raw) {
	case `"red"`, `"RED"`:
		*c = "red"
		return map[bool]string{true: "loud"}[raw[1] == 'R'], nil
	}
	return "", errors.New("not red")
}

func defaults() tested {
	var t tested
	t.Name, t.On, t.Size, t.After, t.Within = "default", true, 2, time.Second, Duration(time.Hour)
	t.Colours, t.Colour = []string{"blue"}, "none"
	t.Log.File, t.Log.Count = "log", 5
	t.Agents = map[string]*agent{"first": {Timeout: 1}}
	return t
}

func TestValuesAreTakenOrKeepTheirDefaultsWithAWarning(t *testing.T) {
	for _, test := range []struct {
		file string
		want func(*tested)
		warn string
	}{
		{`{}`, func(*tested) {}, ""},
		{`{"name":"x","on":false,"size":3,"load":0.5}`, func(w *tested) { w.Name, w.On, w.Size, w.Load = "x", false, 3, 0.5 }, ""},
		{`{"NAME":"","inner":"i"}`, func(w *tested) { w.Name, w.Inner = "", "i" }, ""},
		{`{"after":"1m30s","within":"0s"}`, func(w *tested) { w.After, w.Within = 90*time.Second, 0 }, ""},
		{`{"log":{"count":6}}`, func(w *tested) { w.Log.Count = 6 }, ""},
		{`{"colours":[],"colour":"red"}`, func(w *tested) { w.Colours, w.Colour = []string{}, "red" }, ""},
		{`{"agents":{}}`, func(w *tested) { w.Agents = map[string]*agent{} }, ""},
		{`{"agents":{"b":{"reboot":true},"c":{}}}`, func(w *tested) {
			w.Agents = map[string]*agent{"b": {Duration(time.Minute), true}, "c": {Duration(time.Minute), false}}
		}, ""},

		{`{"nmae":"x","Ratio":1,"hidden":"x"}`, func(*tested) {},
			"f:1: nmae: unknown key\nf:1: Ratio: unknown key\nf:1: hidden: unknown key\n"},
		{"{\n\"log\":\n{ \"file\": \"a\",\n\"fiel\": [\n{}] } }", func(w *tested) { w.Log.File = "a" }, "f:4: log.fiel: unknown key\n"},
		{`{"name":null,"agents":null,"log":null,"after":null}`, func(*tested) {}, "f:1: name: null, the default applies\n" +
			"f:1: agents: null, the default applies\nf:1: log: null, the default applies\nf:1: after: null, the default applies\n"},
		{`{"name":7,"on":"true","size":2.5,"load":"1"}`, func(*tested) {}, "f:1: name: expected a string, found a number; the default applies\n" +
			"f:1: on: expected true or false, found a string; the default applies\n" +
			"f:1: size: expected a whole number, found 2.5; the default applies\n" +
			"f:1: load: expected a number, found a string; the default applies\n"},
		{`{"log":"x","agents":[],"colours":{},"labels":true}`, func(*tested) {},
			"f:1: log: expected an object, found a string; the default applies\n" +
				"f:1: agents: expected an object, found a list; the default applies\n" +
				"f:1: colours: expected a list, found an object; the default applies\n" +
				"f:1: labels: expected an object, found true or false; the default applies\n"},
		{`{"log":{"count":256},"size":"3"}`, func(*tested) {}, "f:1: log.count: expected a whole number, found 256; the default applies\n" +
			"f:1: size: expected a whole number, found a string; the default applies\n"},
		{`{"after":500,"within":"500"}`, func(w *tested) { w.After, w.Within = 500*time.Millisecond, Duration(500*time.Millisecond) },
			"f:1: after: number without a unit, taken as 500ms\nf:1: within: number without a unit, taken as 500ms\n"},
		{`{"after":"soon","within":-1}`, func(*tested) {},
			"f:1: after: \"soon\": expected a duration such as \"30s\", not negative, the default applies\n" +
				"f:1: within: \"-1\": expected a duration such as \"30s\", not negative, the default applies\n"},
		{`{"after":"","within":[]}`, func(*tested) {}, "f:1: after: empty, the default applies\n" +
			"f:1: within: expected a duration such as \"30s\", found a list, the default applies\n"},
		{`{"after":9000000000000,"within":"-1s"}`, func(*tested) {},
			"f:1: after: \"9000000000000\": expected a duration such as \"30s\", not negative, the default applies\n" +
				"f:1: within: \"-1s\": expected a duration such as \"30s\", not negative, the default applies\n"},
		{`{"colour":"RED"}`, func(w *tested) { w.Colour = "red" }, "f:1: colour: loud\n"},
		{`{"colour":"green"}`, func(*tested) {}, "f:1: colour: not red, the default applies\n"},
		{"{\"colours\":[\"a\",\n1,null,\n\"b\"]}", func(w *tested) { w.Colours = []string{"a", "b"} },
			"f:2: colours[1]: expected a string, found a number; the default applies\nf:2: colours[2]: null, the default applies\n"},
		{"{\"agents\":{\n\"a.b\":null,\n\"c\":1,\"d\":{\"timeout\":5}}}", func(w *tested) {
			w.Agents = map[string]*agent{"a.b": {Timeout: Duration(time.Minute)}, "c": {Timeout: Duration(time.Minute)},
				"d": {Timeout: Duration(5 * time.Millisecond)}}
		}, "f:2: agents.a.b: null, the default applies\nf:3: agents.c: expected an object, found a number; the default applies\n" +
			"f:3: agents.d.timeout: number without a unit, taken as 5ms\n"},
		{`{"labels":{"a":"b","c":1}}`, func(w *tested) { w.Labels = map[string]string{"a": "b"} },
			"f:1: labels.c: expected a string, found a number; the default applies\n"},
		{"{\"size\":3,\n\"Size\":4}", func(w *tested) { w.Size = 4 }, "f:2: size: given twice, the last one applies\n"},
	} {
		want, got := defaults(), defaults()
		test.want(&want)
		f, err := Decode("f", []byte(test.file), &got)
		if err != nil {
			t.Errorf("%s: %v", test.file, err)
			continue
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(tested{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.file, diff)
		}
		var warnings strings.Builder
		for _, w := range f.Warnings {
			warnings.WriteString(w.String() + "\n")
		}
		if diff := cmp.Diff(test.warn, warnings.String()); diff != "" {
			t.Errorf("warnings of %s (-want +got):\n%s", test.file, diff)
		}
	}
}

func TestWhatIsNotJSONIsAnErrorWithItsLine(t *testing.T) {
	for file, want := range map[string]string{
		"":                        "configuration f:1: not JSON: ",
		"{\n\"name\":\n}":         "configuration f:3: not JSON: ",
		"{\n\"name\": \"x\n\"}":   "configuration f:2: not JSON: ",
		"{\n\"name\": \"x\",\n":   "configuration f:2: not JSON: ",
		"{}\n{}":                  "configuration f:2: not JSON: ",
		"log:\n  file: x":         "configuration f:1: not JSON: ",
		"[]":                      "configuration f: expected an object, found a list",
		"null":                    "configuration f: expected an object, found null",
		" \n\"{\"":                "configuration f: expected an object, found a string",
		strings.Repeat("[", 2e4):  "configuration f:1: not JSON: ",
		"{\"x\":" + "\x00" + "1}": "configuration f:1: not JSON: ",
	} {
		got := defaults()
		_, err := Decode("f", []byte(file), &got)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.20q: error %v, want %q", file, err, want)
		}
		if diff := cmp.Diff(defaults(), got, cmp.AllowUnexported(tested{})); diff != "" {
			t.Errorf("%.20q has changed something:\n%s", file, diff)
		}
	}
}

func TestFileIsRead(t *testing.T) {
	name := filepath.Join(t.TempDir(), "config.json")
	if _, err := Read(name, new(tested)); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), name) {
		t.Errorf("error %v for a file that does not exist", err)
	}
	if err := os.WriteFile(name, []byte("{\n\"name\":\"x\",\n\"Size\":1}"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := defaults()
	f, err := Read(name, &got)
	if err != nil || got.Name != "x" || got.Size != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	if !f.Has("size") || f.Has("on") || f.Has("Size") {
		t.Error("which keys are there is not known")
	}
	f.Warn("size", "small")
	if want := (Warning{name, 3, "size", "small"}); len(f.Warnings) != 1 || f.Warnings[0] != want {
		t.Errorf("warnings %v, want %v", f.Warnings, want)
	}
	f.Warn("on", "not of the file")
	if got := f.Warnings[1].String(); got != "on: not of the file" {
		t.Errorf("a warning about something that is not in the file is %q", got)
	}
	if err := os.Truncate(name, maxSize+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(name, &got); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("error %v for an endless file", err)
	}
	if _, err := Read(t.TempDir(), &got); err == nil || !strings.Contains(err.Error(), "directory") {
		t.Errorf("error %v for a directory", err)
	}
}

func TestDurationIsSetByAFlag(t *testing.T) {
	for text, want := range map[string]Duration{
		"":     7,
		"1h":   Duration(time.Hour),
		"0":    0,
		"1500": Duration(1500 * time.Millisecond),
	} {
		d := Duration(7)
		if err := d.UnmarshalFlag(text); err != nil || d != want {
			t.Errorf("%q: %v, %v, want %v", text, d, err, want)
		}
	}
	for _, text := range []string{"x", "-1s", "-1", "1.5", " 1s"} {
		d := Duration(7)
		if err := d.UnmarshalFlag(text); err == nil || d != 7 {
			t.Errorf("%q: %v, %v, want an error and no change", text, d, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("{\"name\":\"x\",\n\"log\":{\"count\":1},\"agents\":{\"a\":{\"timeout\":5}},\"colours\":[\"a\",{}],\"after\":1e3}"))
	f.Add([]byte("{\"\\u00e9\":1,\"\":null,\"NAME\":{},\"name\":\"\xff\"}"))
	f.Add([]byte(" {\n}\n "))
	f.Fuzz(func(t *testing.T, data []byte) {
		got := defaults()
		file, err := Decode("f", data, &got)
		if err != nil {
			return
		}
		lines := 1 + strings.Count(string(data), "\n")
		for _, w := range file.Warnings {
			if w.Line < 1 || w.Line > lines || w.Text == "" {
				t.Errorf("warning %q about a file of %d lines", w, lines)
			}
		}
		if got.After < 0 || got.Within < 0 || got.Colour != "red" && got.Colour != "none" {
			t.Errorf("%+v", got)
		}
	})
}
