// SPDX-License-Identifier: Apache-2.0

package protobuf

import (
	"bytes"
	"encoding/hex"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type colour int32

type point struct {
	X int32 `pb:"1"`
	Y int64 `pb:"2"`
}

type all struct {
	Text    string            `pb:"1"`
	Bytes   []byte            `pb:"2"`
	Yes     bool              `pb:"3"`
	Int32   int32             `pb:"4"`
	Int64   int64             `pb:"5"`
	Uint32  uint32            `pb:"6"`
	Uint64  uint64            `pb:"7"`
	Float   float64           `pb:"8"`
	Colour  colour            `pb:"9"`
	Point   *point            `pb:"10"`
	Texts   []string          `pb:"11"`
	Blobs   [][]byte          `pb:"12"`
	Ints    []int32           `pb:"13"`
	Floats  []float64         `pb:"14"`
	Colours []colour          `pb:"15"`
	Points  []*point          `pb:"16"`
	Labels  map[string]string `pb:"17"`
	Places  map[string]*point `pb:"18"`
	Counts  map[string]uint64 `pb:"19"`
	Maybe   *string           `pb:"20"`
	MayBe   *bool             `pb:"21"`
	Choice  *[]byte           `pb:"22"`
	High    uint32            `pb:"536870911"`
	Self    *all              `pb:"30"`
	When    *Timestamp        `pb:"31"`
	Ignored chan int
}

func ptr[T any](v T) *T { return &v }

// The bytes come from the encoding rules of protocol buffers, written out.
func TestWireFormatIsThatOfProtocolBuffers(t *testing.T) {
	for _, c := range []struct {
		name string
		v    any
		hex  string
	}{
		{"nothing", &all{}, ""},
		{"the documentation's 150", &all{Int32: 150}, "20 9601"},
		{"string", &all{Text: "testing"}, "0a 07 74657374696e67"},
		{"bytes", &all{Bytes: []byte{0, 255}}, "12 02 00ff"},
		{"empty bytes are absent", &all{Bytes: []byte{}, Ints: []int32{}, Labels: map[string]string{}, Points: []*point{}}, ""},
		{"true", &all{Yes: true}, "18 01"},
		{"negative int32 has ten bytes", &all{Int32: -1}, "20 ffffffffffffffffff01"},
		{"smallest int64", &all{Int64: math.MinInt64}, "28 80808080808080808001"},
		{"largest uint32", &all{Uint32: math.MaxUint32}, "30 ffffffff0f"},
		{"largest uint64", &all{Uint64: math.MaxUint64}, "38 ffffffffffffffffff01"},
		{"one and a half", &all{Float: 1.5}, "41 000000000000f83f"},
		{"enum", &all{Colour: 2}, "48 02"},
		{"message", &all{Point: &point{X: 1}}, "52 02 0801"},
		{"present empty message", &all{Point: &point{}}, "52 00"},
		{"strings, also empty ones", &all{Texts: []string{"a", ""}}, "5a 01 61 5a 00"},
		{"blobs, also empty ones", &all{Blobs: [][]byte{{1}, nil}}, "62 01 01 62 00"},
		{"packed numbers", &all{Ints: []int32{3, 270, 0}}, "6a 04 03 8e02 00"},
		{"packed floats", &all{Floats: []float64{1}}, "72 08 000000000000f03f"},
		{"packed enums", &all{Colours: []colour{1, -1}}, "7a 0b 01 ffffffffffffffffff01"},
		{"messages, nil as empty", &all{Points: []*point{{X: 1}, nil}}, "8201 02 0801 8201 00"},
		{"map in order, with zero values", &all{Labels: map[string]string{"b": "", "a": "1"}}, "8a01 06 0a0161 120131 8a01 05 0a0162 1200"},
		{"map of messages", &all{Places: map[string]*point{"p": {Y: 5}}}, "9201 07 0a0170 1202 1005"},
		{"map of numbers", &all{Counts: map[string]uint64{"": 7}}, "9a01 04 0a00 1007"},
		{"present zero values", &all{Maybe: ptr(""), MayBe: ptr(false), Choice: ptr([]byte(nil))}, "a201 00 a801 00 b201 00"},
		{"largest field number", &all{High: 1}, "f8ffffff0f 01"},
		{"timestamp before 1970", &all{When: NewTimestamp(time.Unix(-1, 5))}, "fa01 0d 08 ffffffffffffffffff01 10 05"},
	} {
		t.Run(c.name, func(t *testing.T) {
			want, err := hex.DecodeString(strings.ReplaceAll(c.hex, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			got, err := Marshal(c.v)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("marshalled %x, %v; expected %x", got, err, want)
			}
			var back all
			if err := Unmarshal(got, &back); err != nil {
				t.Fatal(err)
			}
			again, err := Marshal(&back)
			if err != nil || !bytes.Equal(again, want) {
				t.Fatalf("read as %+v, which is %x, expected %x; %v", back, again, want, err)
			}
		})
	}
}

func TestLongMessagesKeepTheirLength(t *testing.T) {
	for _, n := range []int{120, 127, 128, 129, 16383, 16384, 16390} {
		in := all{Text: "before", Self: &all{Text: "mid", Self: &all{Text: strings.Repeat("x", n)}}, Labels: map[string]string{"k": strings.Repeat("y", n)}}
		b, err := Append([]byte("head"), &in)
		if err != nil || !bytes.HasPrefix(b, []byte("head")) {
			t.Fatalf("%q, %v", b[:10], err)
		}
		var out all
		if err := Unmarshal(b[4:], &out); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(in, out); diff != "" {
			t.Error(diff)
		}
	}
}

func TestUnmarshalTakesWhatOthersMayWrite(t *testing.T) {
	for _, c := range []struct {
		name string
		hex  string
		want all
	}{
		{"unpacked numbers, mixed with packed", "68 03 6a 02 0405 68 06", all{Ints: []int32{3, 4, 5, 6}}},
		{"unpacked floats", "71 000000000000f03f", all{Floats: []float64{1}}},
		{"the last value wins", "20 01 20 02", all{Int32: 2}},
		{"messages merge", "52 02 0801 52 02 1002", all{Point: &point{X: 1, Y: 2}}},
		{"a map's last entry wins", "8a01 06 0a0161 120131 8a01 06 0a0161 120132", all{Labels: map[string]string{"a": "2"}}},
		{"map entry the other way round", "8a01 06 120131 0a0161", all{Labels: map[string]string{"a": "1"}}},
		{"map entry without value", "9201 03 0a0161", all{Places: map[string]*point{"a": {}}}},
		{"map entry without key", "8a01 03 120131", all{Labels: map[string]string{"": "1"}}},
		{"unknown numbers of each wire type", "e007 05 e107 0102030405060708 e207 02 6162 e507 01020304 20 01", all{Int32: 1}},
		{"unknown group with a group in it", "e307 08 01 eb07 ec07 e407 20 01", all{Int32: 1}},
		{"known number, other wire type", "25 01020304 0d 01020304 50 01 20 01 a001 05", all{Int32: 1}},
		{"number in more bytes than needed", "20 8100", all{Int32: 1}},
		{"bool that is not 1", "18 ff01", all{Yes: true}},
		{"too large for 32 bits", "20 8080808010 30 8180808010", all{Int32: 0, Uint32: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			data, err := hex.DecodeString(strings.ReplaceAll(c.hex, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			var got all
			if err := Unmarshal(data, &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestUnmarshalRefusesBadMessages(t *testing.T) {
	for name, text := range map[string]string{
		"cut in a tag":           "80",
		"cut in a number":        "20 80",
		"cut in a string":        "0a 05 6162",
		"cut in a fixed number":  "41 0102",
		"cut in packed floats":   "72 04 01020304",
		"cut in packed numbers":  "6a 01 80",
		"cut in a nested one":    "52 02 08",
		"longer than memory":     "0a ffffffffffffffffff01",
		"number of 11 bytes":     "20 ffffffffffffffffffff01",
		"field zero":             "00 01",
		"field number too large": "8080808010 01",
		"unknown wire type":      "26",
		"end without a group":    "e407",
		"end of another group":   "e307 ec07",
		"group without end":      "e307 08 01",
		"end in a message":       "52 02 e407",
		"no UTF-8":               "0a 01 ff",
		"no UTF-8 in a key":      "8a01 03 0a01ff",
	} {
		data, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		var got all
		if err := Unmarshal(data, &got); err == nil {
			t.Errorf("%s: read as %+v", name, got)
		} else if !strings.HasPrefix(err.Error(), "cannot decode *protobuf.all: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDepthIsLimited(t *testing.T) {
	deep := &all{}
	for range maxDepth {
		deep = &all{Self: deep}
	}
	b, err := Marshal(deep)
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmarshal(b, &all{}); err != nil {
		t.Error(err)
	}
	if _, err := Marshal(&all{Self: deep}); err == nil {
		t.Error("marshalled a message nested too deeply")
	}
	deeper, err := appendNested(nil, 30, func(outer []byte) ([]byte, error) { return append(outer, b...), nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmarshal(deeper, &all{}); err == nil {
		t.Error("unmarshalled a message nested too deeply")
	}
	if err := Unmarshal(bytes.Repeat([]byte{0xe3, 0x07}, 1<<20), &all{}); err == nil {
		t.Error("unmarshalled groups nested too deeply")
	}
}

func TestUnmarshalKeepsNoPartOfItsInput(t *testing.T) {
	data := []byte{0x12, 1, 'a', 0x62, 1, 'b', 0xb2, 1, 1, 'c'}
	var got all
	if err := Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	clear(data)
	if string(got.Bytes) != "a" || string(got.Blobs[0]) != "b" || string(*got.Choice) != "c" {
		t.Errorf("%+v", got)
	}
}

func TestBadGoValuesAreErrors(t *testing.T) {
	var none *all
	type cyclic struct {
		Next *cyclic `pb:"1"`
	}
	circle := &cyclic{}
	circle.Next = circle
	for _, v := range []any{
		nil, none, all{}, ptr(5), circle,
		&struct {
			F float32 `pb:"1"`
		}{1},
		&struct {
			F string `pb:"0"`
		}{"x"},
		&struct {
			F string `pb:"one"`
		}{"x"},
		&struct {
			f string `pb:"1"`
		}{"x"},
		&struct {
			F **point `pb:"1"`
		}{},
		&struct {
			F map[int32]string `pb:"1"`
		}{},
		&struct {
			F []point `pb:"1"`
		}{},
		&all{Text: "\xff"},
		&all{Labels: map[string]string{"\xff": ""}},
	} {
		if b, err := Marshal(v); err == nil {
			t.Errorf("%T marshalled as %x", v, b)
		}
	}
	if err := Unmarshal(nil, all{}); err == nil {
		t.Error("unmarshalled into a struct that is not pointed to")
	}
	if err := Unmarshal(nil, &struct {
		F float32 `pb:"1"`
	}{}); err == nil {
		t.Error("unmarshalled into a field without a wire format")
	}
}

func TestTimestamps(t *testing.T) {
	now := time.Date(2024, 5, 1, 8, 0, 0, 123456789, time.FixedZone("", 3600))
	if got := NewTimestamp(now).Time(); !got.Equal(now) || got.Location() != time.UTC {
		t.Errorf("%v became %v", now, got)
	}
	if got := (*Timestamp)(nil).Time(); !got.IsZero() {
		t.Errorf("no timestamp is %v", got)
	}
}

// What can be read can be written, and reading that again gives the same.
func FuzzUnmarshal(f *testing.F) {
	b, err := Marshal(&all{Text: "t", Ints: []int32{1, -1}, Floats: []float64{math.NaN()}, Labels: map[string]string{"a": "b"},
		Places: map[string]*point{"p": {X: 1}}, Points: []*point{{}, {Y: 2}}, Maybe: ptr(""), Self: &all{When: &Timestamp{}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0xe3, 0x07, 0xe4, 0x07})
	f.Fuzz(func(t *testing.T, data []byte) {
		var first, second all
		if Unmarshal(data, &first) != nil {
			return
		}
		b, err := Marshal(&first)
		if err != nil {
			t.Fatal(err)
		}
		if err := Unmarshal(b, &second); err != nil {
			t.Fatal(err)
		}
		again, err := Marshal(&second)
		if err != nil || !bytes.Equal(b, again) {
			t.Fatalf("%x, then %x, %v", b, again, err)
		}
	})
}

func BenchmarkChunk(b *testing.B) {
	m := &all{Text: "write", Bytes: make([]byte, 1<<20), When: &Timestamp{Seconds: 5}}
	b.SetBytes(1 << 20)
	var buf []byte
	for b.Loop() {
		var err error
		if buf, err = Append(buf[:0], m); err != nil {
			b.Fatal(err)
		}
		if err := Unmarshal(buf, &all{}); err != nil {
			b.Fatal(err)
		}
	}
}
