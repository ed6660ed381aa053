// SPDX-License-Identifier: Apache-2.0

package ctrlog

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestFullDiskStopsTheLogButNotTheContainer(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1m"); err != nil {
		if os.Getenv("SDVBOX_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	c := newConsole(t, func(cfg *Config) { cfg.File = filepath.Join(disk, "log/json.log") })
	p := newProcess(t, c)
	wait := func(done func(size int64) bool) {
		t.Helper()
		for range 500 {
			c.log.mu.Lock()
			ok := done(c.log.size)
			c.log.mu.Unlock()
			if ok {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatal("not in 5 s")
	}
	p.flood()
	wait(func(int64) bool { return c.log.lost > 0 })
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		p.print(fmt.Sprintf("again %d\n", i))
		time.Sleep(time.Millisecond)
		c.log.mu.Lock()
		lost := c.log.lost
		c.log.mu.Unlock()
		if lost == 0 {
			break
		}
	}
	p.end()
	closed(t, c)
	all := logs(t, c, -1) // whole lines only
	if len(all) < 100 || all[0].Log != "line 0 of the flood\n" || !strings.HasPrefix(all[len(all)-1].Log, "again") {
		t.Errorf("got %d lines, the first %q, the last %q", len(all), all[0].Log, all[len(all)-1].Log)
	}
}

func TestHalfALineOfADeadMachineIsRemoved(t *testing.T) {
	c := newConsole(t, nil)
	line := appendLine(nil, 0, []byte("whole\n"), time.Now())
	for _, rest := range []string{"", `{"stream":`, string(bytes.Repeat([]byte("x"), 10000))} {
		if err := os.MkdirAll(filepath.Dir(c.cfg.File), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(c.cfg.File, append(bytes.Clone(line), rest...), 0o644); err != nil {
			t.Fatal(err)
		}
		p := newProcess(t, c)
		p.print("next\n")
		p.end()
		closed(t, c)
		if got := texts(logs(t, c, -1)); got != "whole\nnext\n" {
			t.Errorf("%.20q: got %q", rest, got)
		}
	}
}
