// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// makeLog writes entries as QEMU does.
func makeLog(entries ...entry) []byte {
	le := binary.LittleEndian
	sector := func(values ...uint64) []byte {
		b := make([]byte, 0, unit)
		for _, v := range values {
			b = le.AppendUint64(b, v)
		}
		return b[:unit]
	}
	log := sector(logMagic, logVersion, uint64(len(entries)), unit)
	for _, e := range entries {
		log = append(log, sector(uint64(e.off/unit), uint64(e.size/unit), e.flags, 0)...)
		log = append(log, e.data...)
	}
	return log
}

// put is a write of whole sectors, each filled with one byte.
func put(sector int64, text string) entry {
	e := entry{off: sector * unit, size: int64(len(text)) * unit}
	for _, c := range []byte(text) {
		e.data = append(e.data, bytes.Repeat([]byte{c}, unit)...)
	}
	return e
}

func TestParseLogReadsWhatIsWritten(t *testing.T) {
	fua := put(7, "x")
	fua.flags = flagFUA
	want := []entry{put(3, "ab"), {flags: flagFlush, data: []byte{}}, fua, {off: 9 * unit, size: 4 * unit, flags: flagDiscard}}
	log := makeLog(want...)
	got, err := parseLog(append(log, "what comes behind the last entry does not count"...))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(entry{})); d != "" {
		t.Error(d)
	}
}

func TestParseLogSaysWhatIsWrong(t *testing.T) {
	whole := makeLog(put(3, "ab"), put(5, "c"))
	with := func(at int, value byte) []byte {
		b := bytes.Clone(whole)
		b[at] = value
		return b
	}
	for _, test := range []struct {
		log  []byte
		want string
	}{
		{nil, "no super block"},
		{with(0, 1), "magic"},
		{with(8, 2), "version 2"},
		{with(25, 16), "sector size 4096"},
		{with(16, 3), "entry 3 of 3: no header"},
		{whole[:len(whole)-1], "entry 2 of 2: 512 bytes of data, 511 left"},
		{with(unit+16, 16), "entry 1 of 2: unknown flags 0x10"},
		{with(unit+7, 0xff), "beyond any disk"},
		{with(unit+15, 0x7f), "beyond any disk"},
		{with(unit+16, flagMark), "not a mark"},
	} {
		if _, err := parseLog(test.log); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got %v, want an error with %q", err, test.want)
		}
	}
}

func FuzzParseLog(f *testing.F) {
	f.Add([]byte{})
	f.Add(makeLog(put(3, "ab"), entry{flags: flagFlush}, entry{size: unit, flags: flagDiscard}))
	f.Fuzz(func(t *testing.T, log []byte) {
		entries, err := parseLog(log)
		if err != nil {
			return
		}
		m := newImage(make([]byte, 64*unit))
		r := m.watch(0, 8*unit)
		clean := r.sum
		err = replay(m, entries, func(e entry) weight { return torn }, len(entries) < 20, func(state) error { return nil })
		if err == nil && bytes.Equal(m.data[:8*unit], make([]byte, 8*unit)) != (r.sum == clean) {
			t.Error("the sum does not follow the content")
		}
	})
}
