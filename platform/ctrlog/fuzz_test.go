// SPDX-License-Identifier: Apache-2.0

package ctrlog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sdvbox/platform/ctrmodel"
)

// FuzzJournal starts an agent on whatever files another one may have left.
func FuzzJournal(f *testing.F) {
	j := journal{now: journalHead{Version: journalVersion, Pending: 1, Turn: [2]uint8{1, 0}, Logged: [2]uint32{3, 0}, Offset: 6}}
	file, err := os.Create(filepath.Join(f.TempDir(), "journal"))
	if err != nil {
		f.Fatal(err)
	}
	j.f = file
	s := &stream{line: line{begun: []byte("begun ")}}
	if err := errors.Join(j.save(), j.saveBegun(s)); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(file.Name())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole, []byte("one\ntwo\nthree"), []byte("line1\nline2\n"))
	f.Add(whole[:20], []byte{}, []byte("half a line"))
	f.Fuzz(func(t *testing.T, journal, spool, log []byte) {
		dir := t.TempDir()
		c := New(Config{Dir: filepath.Join(dir, "fifo"), File: filepath.Join(dir, "log"), MaxSize: 1 << 20, MaxFiles: 2})
		if err := errors.Join(os.Mkdir(c.cfg.Dir, 0o700), os.WriteFile(c.cfg.File, log, 0o600),
			os.WriteFile(filepath.Join(c.cfg.Dir, "journal"), journal, 0o600),
			os.WriteFile(filepath.Join(c.cfg.Dir, "stdout.spool.0"), spool, 0o600),
			os.WriteFile(filepath.Join(c.cfg.Dir, "stdout.spool.1"), spool, 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Open(); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(c.cfg.File)
		if err != nil || len(got) > 0 && got[len(got)-1] != '\n' {
			t.Errorf("the log is %q, %v", got, err)
		}
		if _, err := os.Stat(c.cfg.Dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the directory is left, %v", err)
		}
	})
}

// FuzzReader reads a log, of which all but the last lines may be in another file, as a whole and from the end.
func FuzzReader(f *testing.F) {
	f.Add([]byte("one\ntwo\n"), []byte("three\nfour\n"), 3)
	f.Add([]byte{}, []byte("\n\nhalf"), 1)
	f.Add([]byte("äöü"), bytes.Repeat([]byte("日本"), chunkSize), 2)
	f.Fuzz(func(t *testing.T, old, current []byte, n int) {
		c := New(Config{Dir: t.TempDir(), File: filepath.Join(t.TempDir(), "log"), MaxFiles: 2})
		if err := errors.Join(os.WriteFile(c.cfg.File+".1", old, 0o600), os.WriteFile(c.cfg.File, current, 0o600)); err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, part := range [][]byte{old, current} {
			for line := range strings.Lines(string(part)) {
				if line, whole := strings.CutSuffix(line, "\n"); whole { // an agent that was killed has left the rest
					want = append(want, line)
				}
			}
		}
		if n >= 0 {
			want = want[len(want)-min(n, len(want)):]
		}
		var got []string
		err := c.Logs(t.Context(), ctrmodel.LogOptions{Tail: n}, func(line []byte) error {
			got = append(got, string(line))
			return nil
		})
		if err != nil || fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
			t.Errorf("tail %d of %.100q and %.100q: got %.100q, %v", n, old, current, got, err)
		}
	})
}
