// SPDX-License-Identifier: Apache-2.0

package logfile

import (
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func open(t *testing.T, c Config) *File {
	t.Helper()
	l, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func write(t *testing.T, l *File, text string) {
	t.Helper()
	if _, err := io.WriteString(l, text); err != nil {
		t.Fatal(err)
	}
}

func aside(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "x-*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestFullFileIsCompressedAndOldOnesAreRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	c := Config{Path: filepath.Join(dir, "x.log"), Size: 20, Count: 2, Age: time.Hour}
	l := open(t, c)
	write(t, l, "0 before a restart\n")
	l.Close()
	l = open(t, c)
	foreign := filepath.Join(dir, "x-files.log.gz")
	ancient := filepath.Join(dir, "x-"+time.Now().Add(-2*time.Hour).Format(stamp)+".log.gz")
	for _, name := range []string{foreign, ancient} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := 1; i <= 4; i++ {
		write(t, l, fmt.Sprintf("%d line\n", i)+strings.Repeat("x", 10))
		time.Sleep(2 * time.Millisecond) // another name
	}
	if got, err := os.ReadFile(c.Path); string(got) != "4 line\nxxxxxxxxxx" || err != nil {
		t.Errorf("log %q, %v", got, err)
	}
	list := aside(t, dir)
	if len(list) != 3 || list[2] != foreign {
		t.Fatalf("put aside: %q", list)
	}
	for i, want := range []string{"2 line\nxxxxxxxxxx", "3 line\nxxxxxxxxxx"} {
		f, err := os.Open(list[i])
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(z); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v", list[i], got, err)
		}
		f.Close()
	}
}

func TestAgeAloneRemoves(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Config{Path: filepath.Join(dir, "x"), Size: 1, Age: time.Hour})
	ancient := filepath.Join(dir, "x-"+time.Now().Add(-2*time.Hour).Format(stamp))
	if err := os.WriteFile(ancient, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, l, "larger than a file may be")
	write(t, l, "2")
	list := aside(t, dir)
	if len(list) != 1 || list[0] == ancient {
		t.Errorf("put aside: %q", list)
	}
}

func TestDirectoryThatCannotBeMadeIsAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Path: filepath.Join(file, "x.log")}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("error %v", err)
	}
}

func TestLogGoesOnWhenItsFileIsTakenAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	l := open(t, Config{Path: path, Size: 10})
	write(t, l, "1 too large for it")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(t, l, "2")
	if got, err := os.ReadFile(path); string(got) != "2" || err != nil {
		t.Errorf("log %q, %v", got, err)
	}
}
