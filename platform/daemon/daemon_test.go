// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/logfile"
)

// manager is a service manager that listens to what it is told.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func listen(t *testing.T) manager {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return manager{t, conn}
}

// next returns what the service says next, "" for nothing within the time.
func (m manager) next(timeout time.Duration) string {
	m.t.Helper()
	if err := m.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		m.t.Fatal(err)
	}
	b := make([]byte, 1000)
	n, err := m.conn.Read(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		m.t.Fatal(err)
	}
	return string(b[:n])
}

func (m manager) expect(want string) {
	m.t.Helper()
	if got := m.next(5 * time.Second); got != want {
		m.t.Fatalf("the service says %q, want %q", got, want)
	}
}

func watchdog(t *testing.T, limit time.Duration) {
	t.Setenv("WATCHDOG_USEC", strconv.FormatInt(limit.Microseconds(), 10))
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
}

func TestServiceManagerHearsOfTheLife(t *testing.T) {
	m := listen(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- Run(ctx, Options{Name: "tested", Stderr: io.Discard}, func(ctx context.Context, _ *slog.Logger, n *Notifier) error {
			n.Ready()
			n.Status("waiting\nfor the end")
			<-ctx.Done()
			return fmt.Errorf("wait: %w", ctx.Err())
		})
	}()
	m.expect("READY=1")
	m.expect("STATUS=waiting for the end")
	stop()
	m.expect("STOPPING=1")
	if err := <-done; err != nil {
		t.Errorf("a service that was told to stop ends with %v", err)
	}
}

func TestFailureOfTheBodyIsReturned(t *testing.T) {
	broken := errors.New("broken")
	for _, want := range []error{broken, context.Canceled} { // canceled, but not told to stop
		err := Run(t.Context(), Options{Name: "tested"}, func(context.Context, *slog.Logger, *Notifier) error { return want })
		if !errors.Is(err, want) {
			t.Errorf("Run returns %v, want %v", err, want)
		}
	}
}

func TestWatchdogHearsOnlyOfTheLiving(t *testing.T) {
	m := listen(t)
	watchdog(t, 60*time.Millisecond)
	var log bytes.Buffer
	err := Run(t.Context(), Options{Name: "tested", Stderr: &log}, func(_ context.Context, _ *slog.Logger, n *Notifier) error {
		for range 3 {
			m.expect("WATCHDOG=1")
		}
		n.Watch(func() error { return nil })
		for range 3 {
			m.expect("WATCHDOG=1")
		}
		n.Watch(func() error { return errors.New("stuck") })
		m.next(50 * time.Millisecond) // one may be on its way
		if got := m.next(300 * time.Millisecond); got != "" {
			t.Errorf("a stuck service says %q, want silence", got)
		}
		n.Watch(nil)
		m.expect("WATCHDOG=1")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), "stuck"); n != 1 {
		t.Errorf("the reason is logged %d times, want once:\n%s", n, log.String())
	}
}

func TestNoWatchdogWithoutTheServiceManagersWish(t *testing.T) {
	m := listen(t)
	t.Setenv("WATCHDOG_USEC", "")
	err := Run(t.Context(), Options{Name: "tested"}, func(context.Context, *slog.Logger, *Notifier) error {
		if got := m.next(100 * time.Millisecond); got != "" {
			t.Errorf("the service says %q", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestLogForPeople(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "")
	var b bytes.Buffer
	log, err := newLog(&b, "tested", "WARN")
	if err != nil {
		t.Fatal(err)
	}
	log.Info("not wanted")
	log.With("a", 1).WithGroup("g").Error("it\nbroke\n", "msg", "why \"so\"")
	_, line, _ := strings.Cut(b.String(), " ") // the time
	if want := "ERROR tested: it broke a=1 g.msg=\"why \\\"so\\\"\"\n"; line != want {
		t.Errorf("logged %q, want %q", line, want)
	}
}

func TestLogForTheJournal(t *testing.T) {
	var st syscall.Stat_t
	if err := syscall.Fstat(2, &st); err != nil {
		t.Fatal(err)
	}
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", st.Dev, st.Ino))
	var b bytes.Buffer
	log, err := newLog(&b, "tested", "trace")
	if err != nil {
		t.Fatal(err)
	}
	log.Error("e")
	log.Warn("w", "k", "v")
	log.Info("i")
	log.Debug("d")
	log.Log(t.Context(), LevelTrace, "t")
	if want := "<3>e\n<4>w k=v\n<6>i\n<7>d\n<7>t\n"; b.String() != want {
		t.Errorf("logged %q, want %q", b.String(), want)
	}
}

func TestLogFileIsUsedAsLongAsItCanBeWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log", "x.log")
	run := func(path string) string {
		var stderr bytes.Buffer
		o := Options{Name: "tested", Stderr: &stderr, LogFile: logfile.Config{Path: path, Size: 1 << 20}}
		err := Run(t.Context(), o, func(_ context.Context, log *slog.Logger, _ *Notifier) error {
			log.Info("hello")
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return stderr.String()
	}
	if stderr := run(path); strings.Contains(stderr, "hello") || !strings.Contains(stderr, path) {
		t.Errorf("beside the file: %s", stderr)
	}
	text, err := os.ReadFile(path)
	if want := time.Now().Format("2006-01-02 "); !strings.HasPrefix(string(text), want) || !strings.Contains(string(text), "hello") {
		t.Errorf("log file %q, %v; want it to begin with %s", text, err, want)
	}
	if stderr := run(filepath.Join(path, "below a file")); !strings.Contains(stderr, "cannot write the log file") || !strings.Contains(stderr, "hello") {
		t.Errorf("without the file: %s", stderr)
	}
	if stderr := run("/dev/full"); !strings.Contains(stderr, "hello") {
		t.Errorf("with a full disk: %s", stderr)
	}
}

func TestUnknownLogLevelIsRefused(t *testing.T) {
	err := Run(t.Context(), Options{Name: "tested", LogLevel: "loud"}, nil)
	if want := `log level "loud": expected error, warn, info, debug or trace`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestStateDirWaitsForItsFileSystem(t *testing.T) {
	mount := filepath.Join(t.TempDir(), "data")
	dir := filepath.Join(mount, "sdvbox", "tested")
	var log bytes.Buffer
	go func() {
		time.Sleep(100 * time.Millisecond)
		os.Mkdir(mount, 0o755)
	}()
	got, err := stateDir(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), mount, dir, 10*time.Millisecond)
	if err != nil || got != dir {
		t.Fatalf("directory %q, error %v, want %q", got, err, dir)
	}
	if n := strings.Count(log.String(), "waiting"); n != 1 {
		t.Errorf("the wait is logged %d times, want once:\n%s", n, log.String())
	}
	fi, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, want 0700", fi.Mode())
	}
}

func TestStateDirWaitsWhileReadOnly(t *testing.T) {
	mount := t.TempDir()
	if err := unix.Mount("tmpfs", mount, "tmpfs", unix.MS_RDONLY, ""); errors.Is(err, unix.EPERM) {
		t.Skip("only root may mount")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(mount, unix.MNT_DETACH) })
	dir := filepath.Join(mount, "tested")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := stateDir(ctx, slog.New(slog.DiscardHandler), mount, dir, 10*time.Millisecond)
	if !errors.Is(err, syscall.EROFS) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v, want it to have waited", err)
	}
	if err := unix.Mount("", mount, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := stateDir(t.Context(), slog.New(slog.DiscardHandler), mount, dir, 10*time.Millisecond); err != nil {
		t.Fatal(err)
	}
}

func TestStateDirMayBeElsewhere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "tested")
	got, err := stateDir(t.Context(), slog.New(slog.DiscardHandler), filepath.Join(t.TempDir(), "absent"), dir, time.Second)
	if err != nil || got != dir {
		t.Errorf("directory %q, error %v, want %q", got, err, dir)
	}
}

func TestStateDirFailsWhenWaitingIsOfNoUse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := StateDir(t.Context(), slog.New(slog.DiscardHandler), "tested", filepath.Join(file, "state"))
	if err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("error %v, want one that names %s", err, file)
	}
}
