// SPDX-License-Identifier: Apache-2.0

package ctrlog

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
)

// newConsole is a console in a directory of the test's own.
func newConsole(t *testing.T, change func(*Config)) *Console {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{Dir: filepath.Join(dir, "fifo"), File: filepath.Join(dir, "log/json.log"), MaxSize: 100 << 20, MaxFiles: 2}
	if change != nil {
		change(&cfg)
	}
	c := New(cfg)
	t.Cleanup(c.Leave)
	return c
}

// process is the other end of a console, as containerd's shim has it: it keeps the FIFOs open in both directions.
type process struct {
	t              *testing.T
	stdin          *os.File
	stdout, stderr *os.File
	keepIn         *os.File
	keep           []*os.File
}

func newProcess(t *testing.T, c *Console) *process {
	t.Helper()
	paths, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t}
	open := func(path string, flag int) *os.File {
		if path == "" {
			return nil
		}
		f, err := os.OpenFile(path, flag, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	p.stdout, p.stderr = open(paths.Stdout, os.O_WRONLY), open(paths.Stderr, os.O_WRONLY)
	p.keep = []*os.File{open(paths.Stdout, os.O_RDONLY), open(paths.Stderr, os.O_RDONLY)}
	if paths.Stdin != "" {
		p.stdin = open(paths.Stdin, os.O_RDONLY|syscall.O_NONBLOCK)
		p.keepIn = open(paths.Stdin, os.O_WRONLY)
	}
	t.Cleanup(p.end)
	return p
}

func (p *process) end() {
	for _, f := range append(p.keep, p.stdin, p.keepIn, p.stdout, p.stderr) {
		if f != nil {
			f.Close()
		}
	}
}

func (p *process) print(text string) {
	p.t.Helper()
	if _, err := p.stdout.WriteString(text); err != nil {
		p.t.Error(err)
	}
}

type logged struct {
	Stream, Log string
	Time        time.Time
}

// logs is what a console tells about its log.
func logs(t *testing.T, c *Console, tail int) []logged {
	t.Helper()
	var all []logged
	err := c.Logs(t.Context(), ctrmodel.LogOptions{Tail: tail}, func(line []byte) error {
		var l logged
		if err := json.Unmarshal(line, &l); err != nil {
			return fmt.Errorf("%s: %w", line, err)
		}
		all = append(all, l)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func texts(all []logged) string {
	var b strings.Builder
	for _, l := range all {
		b.WriteString(l.Log)
	}
	return b.String()
}

func closed(t *testing.T, c *Console) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOutputIsLogged(t *testing.T) {
	for _, buffer := range []int64{0, 1 << 20} {
		t.Run(fmt.Sprint(buffer), func(t *testing.T) {
			c := newConsole(t, func(cfg *Config) { cfg.Buffer = buffer })
			p := newProcess(t, c)
			long := strings.Repeat("ä", 10000)
			p.print("one\ntw")
			time.Sleep(10 * time.Millisecond)
			p.print("o\r\n\n<&>\x01\"ü\xff\n" + long + "\n")
			p.stderr.WriteString("wrong\n")
			time.Sleep(10 * time.Millisecond)
			p.print("not ended")
			p.end()
			closed(t, c)

			want := []string{"one\n", "two\n", "\n", "<&>\x01\"ü\ufffd\n", long[:maxLine], long[maxLine:] + "\n", "not ended"}
			all := logs(t, c, -1)
			var got []string
			for _, l := range all {
				if l.Stream == "stdout" {
					got = append(got, l.Log)
				} else if l.Stream != "stderr" || l.Log != "wrong\n" {
					t.Errorf("got %q of %s", l.Log, l.Stream)
				}
				if time.Since(l.Time) > time.Minute {
					t.Errorf("%q: time %v", l.Log, l.Time)
				}
			}
			if fmt.Sprint(len(all), got) != fmt.Sprint(len(want)+1, want) {
				t.Errorf("got %.200q", got)
			}
			if _, err := os.Stat(c.cfg.Dir); err == nil {
				t.Error("the FIFOs are left")
			}
		})
	}
}

func TestProcessMayComeLateAndSayNothing(t *testing.T) {
	c := newConsole(t, nil)
	if _, err := c.Open(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	p := newProcess(t, c)
	select {
	case <-c.Ended():
		t.Fatal("the output ended before it began")
	case <-time.After(20 * time.Millisecond):
	}
	p.end()
	select {
	case <-c.Ended():
	case <-time.After(5 * time.Second):
		t.Fatal("the end of the process was not noticed")
	}
}

func TestPartsOfALongLineHaveOneTime(t *testing.T) {
	c := newConsole(t, nil)
	p := newProcess(t, c)
	for range 3 {
		p.print(strings.Repeat("x", maxLine))
		time.Sleep(20 * time.Millisecond)
	}
	p.print("\nnext\n")
	p.end()
	closed(t, c)
	all := logs(t, c, -1)
	if len(all) != 4 || all[0].Time != all[1].Time || all[1].Time != all[2].Time || all[2].Time == all[3].Time || all[2].Log != strings.Repeat("x", maxLine)+"\n" {
		for _, l := range all {
			t.Error(len(l.Log), l.Time)
		}
	}
}

func TestLogIsRotated(t *testing.T) {
	for _, files := range []int{1, 2, 4} {
		c := newConsole(t, func(cfg *Config) { cfg.MaxSize, cfg.MaxFiles = 1000, files })
		p := newProcess(t, c)
		for i := range 500 {
			fmt.Fprintf(p.stdout, "line %d\n", i)
		}
		p.end()
		closed(t, c)
		all := logs(t, c, -1)
		for i, l := range all {
			if want := fmt.Sprintf("line %d\n", 500-len(all)+i); l.Log != want {
				t.Fatalf("got %q, want %q", l.Log, want)
			}
		}
		names, _ := filepath.Glob(c.cfg.File + "*")
		if len(names) != files {
			t.Errorf("%d files: got %q", files, names)
		}
		for _, name := range names {
			if fi, err := os.Stat(name); err != nil || fi.Size() > 1100 || name != c.cfg.File && fi.Size() < 1000 {
				t.Errorf("%s has %d bytes", name, fi.Size())
			}
		}
		if err := c.Remove(); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob(filepath.Dir(c.cfg.File)); len(left) != 0 {
			t.Errorf("left after removal: %q", left)
		}
	}
}

func TestLogHasNoMoreFilesThanCanBeLookedFor(t *testing.T) {
	for files, want := range map[int64]int{1: 1, 1000: 1000, 1001: 1000, 1 << 31: 1000, math.MaxInt64: 1000} {
		c := &ctrmodel.Container{Name: "radio", Image: ctrmodel.Image{Name: "radio:1"}}
		c.HostConfig.Log.Driver.MaxFiles = files
		c.Defaults(func() string { return "id" })
		if err := c.Validate(); err != nil { // as of a container that is there already
			t.Error(err)
		}
		var log bytes.Buffer
		cfg, err := ConfigOf(c, t.TempDir(), t.TempDir(), slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil || cfg.MaxFiles != want {
			t.Errorf("max_files %d: %d files, %v, want %d", files, cfg.MaxFiles, err, want)
		}
		if warned := strings.Contains(log.String(), "container=radio"); warned != (files > 1000) {
			t.Errorf("max_files %d: log %q", files, log.String())
		}
	}
}

func TestFilesThatNobodyWouldReadAreRemoved(t *testing.T) {
	c := newConsole(t, func(cfg *Config) { cfg.MaxFiles = 3; cfg.File = filepath.Join(t.TempDir(), "a[b]*/json.log") })
	others := []string{"json.log.", "json.log.03", "json.log.-3", "json.log.+3", "json.log.3.gz", "json.log.x", "json.log3", "3"}
	put := func(names ...string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(c.cfg.File), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if err := os.WriteFile(filepath.Join(filepath.Dir(c.cfg.File), name), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	left := func(want ...string) {
		t.Helper()
		entries, err := os.ReadDir(filepath.Dir(c.cfg.File))
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		slices.Sort(want)
		if err != nil || !slices.Equal(names, want) {
			t.Errorf("left: %q, %v, want %q", names, err, want)
		}
	}
	old := []string{"json.log.3", "json.log.4", "json.log.999", "json.log.1000", "json.log.4000"} // of a log of more files
	put(append(append(old, others...), "json.log", "json.log.1", "json.log.2")...)
	newProcess(t, c).end()
	left(append(others, "json.log", "json.log.1", "json.log.2")...)
	closed(t, c)
	put(old...)
	if err := c.Remove(); err != nil {
		t.Error(err)
	}
	left(others...)
}

func TestTail(t *testing.T) {
	c := newConsole(t, func(cfg *Config) { cfg.MaxSize, cfg.MaxFiles = 2000, 3 })
	p := newProcess(t, c)
	for i := range 60 {
		fmt.Fprintf(p.stdout, "Zeile %d äöü 日本語\n", i)
	}
	p.end()
	closed(t, c)
	all := logs(t, c, -1)
	if len(all) < 40 {
		t.Fatalf("only %d lines", len(all))
	}
	for _, n := range []int{0, 1, 2, 15, 16, 17, 18, 30, 31, 32, 33, len(all) - 1, len(all), len(all) + 1, 1000} {
		got, want := logs(t, c, n), all[max(0, len(all)-n):]
		if texts(got) != texts(want) {
			t.Errorf("tail %d: got %d lines, want %d", n, len(got), len(want))
		}
	}
}

// follower collects what it is told.
type follower struct {
	mu    sync.Mutex
	lines []string
	err   chan error
}

func follow(t *testing.T, c *Console, tail int) *follower {
	f := &follower{err: make(chan error, 1)}
	go func() {
		f.err <- c.Logs(t.Context(), ctrmodel.LogOptions{Tail: tail, Follow: true}, func(line []byte) error {
			var l logged
			if err := json.Unmarshal(line, &l); err != nil {
				return fmt.Errorf("%s: %w", line, err)
			}
			f.mu.Lock()
			f.lines = append(f.lines, l.Log)
			f.mu.Unlock()
			return nil
		})
	}()
	return f
}

func (f *follower) wait(t *testing.T, n int) []string {
	t.Helper()
	for range 500 {
		f.mu.Lock()
		lines := f.lines
		f.mu.Unlock()
		if len(lines) >= n {
			return lines
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("got %q, want %d", f.lines, n)
	return nil
}

func TestFollowGoesOnAcrossRotationAndRestartUntilTheEnd(t *testing.T) {
	c := newConsole(t, func(cfg *Config) { cfg.MaxSize, cfg.MaxFiles = 1000, 3 })
	early := follow(t, c, -1) // before there is a log
	p := newProcess(t, c)
	p.print("0\n1\n")
	early.wait(t, 2)
	late := follow(t, c, 1)
	late.wait(t, 1)
	n := 2
	for round := range 3 {
		for range 30 {
			p.print(fmt.Sprintf("%d\n", n))
			n++
			time.Sleep(time.Millisecond / 2)
		}
		early.wait(t, n)
		p.end()
		closed(t, c)
		if round < 2 {
			p = newProcess(t, c)
		}
	}
	for i, line := range early.wait(t, n) {
		if line != fmt.Sprintf("%d\n", i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
	if lines := late.wait(t, n-1); lines[0] != "1\n" || len(lines) != n-1 {
		t.Errorf("got %q", lines)
	}
	if err := c.Remove(); err != nil {
		t.Error(err)
	}
	for _, f := range []*follower{early, late} {
		select {
		case err := <-f.err:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("still follows a log that is removed")
		}
	}
}

func TestFollowMissesNothingThatIsStillThere(t *testing.T) {
	c := newConsole(t, func(cfg *Config) { cfg.MaxSize, cfg.MaxFiles = 200, 50 })
	p := newProcess(t, c)
	p.print("0\n")
	slow, got := make(chan struct{}), make(chan string, 100)
	go c.Logs(t.Context(), ctrmodel.LogOptions{Tail: -1, Follow: true}, func(line []byte) error {
		var l logged
		json.Unmarshal(line, &l)
		got <- l.Log
		<-slow
		return nil
	})
	<-got
	for i := range 30 { // many files later
		p.print(fmt.Sprintf("%d\n", i+1))
	}
	for len(logs(t, c, -1)) < 31 {
		time.Sleep(time.Millisecond)
	}
	close(slow)
	for i := range 30 {
		if line := <-got; line != fmt.Sprintf("%d\n", i+1) {
			t.Fatalf("line %d is %q", i+1, line)
		}
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	c := newConsole(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Logs(ctx, ctrmodel.LogOptions{Tail: -1, Follow: true}, nil); ctrmodel.KindOf(err) != ctrmodel.DeadlineExceeded {
		t.Error(err)
	}
}

func TestNoLog(t *testing.T) {
	c := newConsole(t, nil)
	if err := c.Logs(t.Context(), ctrmodel.LogOptions{Tail: -1}, nil); ctrmodel.KindOf(err) != ctrmodel.FailedPrecondition {
		t.Error(err)
	}
	c = newConsole(t, func(cfg *Config) { cfg.File = "" })
	p := newProcess(t, c)
	p.print(strings.Repeat("x\n", 1<<20)) // nobody has to wait
	p.end()
	closed(t, c)
	if err := c.Logs(t.Context(), ctrmodel.LogOptions{Tail: -1}, nil); ctrmodel.KindOf(err) != ctrmodel.FailedPrecondition {
		t.Error(err)
	}
}

const many = 200_000

// flood prints many lines and returns how long that takes.
func (p *process) flood() time.Duration {
	start := time.Now()
	var b bytes.Buffer
	for i := range many {
		fmt.Fprintf(&b, "line %d of the flood\n", i)
		if b.Len() > 8000 {
			p.stdout.Write(b.Bytes())
			b.Reset()
		}
	}
	p.stdout.Write(b.Bytes())
	return time.Since(start)
}

func TestManyLines(t *testing.T) {
	c := newConsole(t, nil)
	p := newProcess(t, c)
	took := p.flood()
	p.end()
	closed(t, c)
	start := time.Now()
	n := 0
	err := c.Logs(t.Context(), ctrmodel.LogOptions{Tail: -1}, func(line []byte) error {
		if want := fmt.Sprintf(`{"stream":"stdout","log":"line %d of the flood\n","time":"`, n); !strings.HasPrefix(string(line), want) {
			return fmt.Errorf("got %s, want %s", line, want)
		}
		n++
		return nil
	})
	if err != nil || n != many {
		t.Fatal(n, err)
	}
	read := time.Since(start)
	start = time.Now()
	if got := logs(t, c, 20_000); len(got) != 20_000 || got[0].Log != "line 180000 of the flood\n" {
		t.Errorf("got %d lines, first %q", len(got), got[0].Log)
	}
	t.Logf("%d lines: logged in %v, read in %v, tail of 20000 in %v", many, took, read, time.Since(start))
}

func TestNonBlockingLogIsBoundedAndIntact(t *testing.T) {
	c := newConsole(t, func(cfg *Config) { cfg.Buffer = 4096 })
	p := newProcess(t, c)
	c.log.mu.Lock() // a disk that does not answer
	p.flood()
	q := c.running.queue
	q.mu.Lock()
	if q.size > 4096 || len(q.entries) > 4096/64 {
		t.Errorf("%d bytes wait in %d lines", q.size, len(q.entries))
	}
	q.mu.Unlock()
	c.log.mu.Unlock()
	p.end()
	closed(t, c)
	all := logs(t, c, -1)
	last := -1
	for _, l := range all {
		var n int
		if _, err := fmt.Sscanf(l.Log, "line %d of the flood\n", &n); err != nil || n <= last {
			t.Fatalf("%q after %d: %v", l.Log, last, err)
		}
		last = n
	}
	if last != many-1 {
		t.Errorf("the last line is %d", last)
	}
}

func TestAttach(t *testing.T) {
	c := newConsole(t, func(cfg *Config) { cfg.Stdin = true })
	in, typed := io.Pipe()
	var out, errs bytes.Buffer
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- c.Attach(t.Context(), ctrmodel.Streams{Stdin: in, Stdout: &out, Stderr: &errs}, func() { close(ready) })
	}()
	<-ready
	go io.WriteString(typed, "hello\n") // before there is a process
	p := newProcess(t, c)
	buf := make([]byte, 100)
	if n, err := p.stdin.Read(buf); string(buf[:n]) != "hello\n" {
		t.Errorf("got %q, %v", buf[:n], err)
	}
	p.print("$ ")
	p.stderr.WriteString("no\n")
	p.end()
	closed(t, c)
	if err := <-ended; err != nil || out.String() != "$ " || errs.String() != "no\n" {
		t.Errorf("got %q, %q, %v", &out, &errs, err)
	}
}

func TestWhoAttachesAfterTheEndWaitsForTheNextProcess(t *testing.T) {
	c := newConsole(t, nil)
	newProcess(t, c).end()
	<-c.Ended()
	var out bytes.Buffer
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- c.Attach(t.Context(), ctrmodel.Streams{Stdout: &out}, func() { close(ready) }) }()
	<-ready
	closed(t, c)
	next := newProcess(t, c)
	next.print("next")
	next.end()
	closed(t, c)
	if err := <-ended; err != nil || out.String() != "next" {
		t.Errorf("got %q, %v", &out, err)
	}
	go func() { ended <- c.Attach(t.Context(), ctrmodel.Streams{}, nil) }()
	if err := c.Remove(); err != nil {
		t.Error(err)
	}
	<-ended // there is no next one
}

func TestEndOfInput(t *testing.T) {
	told, shim := make(chan struct{}), make(chan *process, 1)
	c := newConsole(t, func(cfg *Config) {
		cfg.Stdin = true
		cfg.StdinEnded = func() error { (<-shim).keepIn.Close(); close(told); return nil }
	})
	if _, err := c.Open(); err != nil {
		t.Fatal(err)
	}
	go c.Attach(t.Context(), ctrmodel.Streams{Stdin: strings.NewReader("all of it")}, nil)
	select {
	case <-told:
		t.Fatal("the input ended before there was a process to read it")
	case <-time.After(50 * time.Millisecond):
	}
	p := newProcess(t, c)
	shim <- p
	if text, err := io.ReadAll(p.stdin); string(text) != "all of it" || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
	<-told
}

func TestWhoIsAttachedCanLeave(t *testing.T) {
	c := newConsole(t, func(cfg *Config) { cfg.Stdin = true })
	p := newProcess(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Attach(ctx, ctrmodel.Streams{Stdin: endless{}}, nil) }()
	time.Sleep(50 * time.Millisecond) // the FIFO is full
	cancel()
	if err := <-ended; ctrmodel.KindOf(err) != ctrmodel.Cancelled {
		t.Error(err)
	}
	p.print("x\n")
	p.end()
	closed(t, c)
	if got := texts(logs(t, c, -1)); got != "x\n" {
		t.Errorf("got %q", got)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// stuck does not read.
type stuck chan struct{}

func (s stuck) Write(p []byte) (int, error) { <-s; return 0, io.ErrClosedPipe }

func TestWhoDoesNotReadIsCutOff(t *testing.T) {
	c := newConsole(t, nil)
	c.patience = 100 * time.Millisecond
	release := make(stuck)
	ended := make(chan error, 1)
	ready := make(chan struct{})
	go func() { ended <- c.Attach(t.Context(), ctrmodel.Streams{Stdout: release}, func() { close(ready) }) }()
	<-ready
	p := newProcess(t, c)
	if took := p.flood(); took > 20*time.Second {
		t.Errorf("the container had to wait for %v", took)
	}
	close(release)
	if err := <-ended; err != io.ErrClosedPipe {
		t.Error(err)
	}
	p.end()
	closed(t, c)
	if all := logs(t, c, 1); all[0].Log != fmt.Sprintf("line %d of the flood\n", many-1) {
		t.Errorf("the log ends with %q", all[0].Log)
	}
}
