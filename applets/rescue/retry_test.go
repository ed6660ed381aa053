// SPDX-License-Identifier: Apache-2.0

package rescue

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sdvbox/platform/bootenv"
	"sdvbox/platform/slots"
)

func TestOnlyASlotThatLacksNothingButAttemptsIsStartedAgain(t *testing.T) {
	spent := func(r *Report, i int) {
		r.Slots[i] = intact(slots.Names[i])
		r.Slots[i].Left = 0
	}
	for _, test := range []struct {
		name   string
		change func(*Report)
		want   string
	}{
		{"A confirmed last, B bad", func(r *Report) {}, "SDV_A"},
		{"both used up, A confirmed last", func(r *Report) { spent(r, 1) }, "SDV_A"},
		{"both used up, none confirmed", func(r *Report) { spent(r, 1); r.Environment.Good = "" }, "SDV_B"},
		{"A confirmed last but bad", func(r *Report) { spent(r, 1); r.Slots[0].OK = false }, "SDV_B"},
		{"A without kernel", func(r *Report) { r.Slots[0].Kernel = false }, ""},
		{"A half written", func(r *Report) { r.Slots[0].Status = "pending" }, ""},
		{"A has attempts", func(r *Report) { r.Slots[0].Left = 1 }, ""},
		{"chosen by hand", func(r *Report) { r.Reason = "manual" }, ""},
		{"no environment", func(r *Report) { r.Environment.Error = "lost" }, ""},
		{"no /data", func(r *Report) { r.Data.Mounted = false }, ""},
		{"a person said stay", func(r *Report) { r.Stay = true }, ""},
	} {
		r := lost()
		spent(r, 0)
		test.change(r)
		r.Retry = r.retry()
		if r.Retry != test.want {
			t.Errorf("%s: %q, want %q", test.name, r.Retry, test.want)
		}
		if said := strings.Contains(strings.Join(r.advise(), "\n"), "rescue stay"); said != (test.want != "") {
			t.Errorf("%s: people are told: %v", test.name, said)
		}
	}
}

func TestARetryChangesNothingButTheAttempts(t *testing.T) {
	spec := "grub:" + filepath.Join(t.TempDir(), "grubenv")
	st := slots.New("SDV_B", "SDV_A")
	st.MarkGood("SDV_A")
	st.MarkBad("SDV_B", "broker: refused")
	st.Slots["SDV_A"] = slots.Slot{OK: true, Tries: slots.MaxTries}
	var vars bootenv.Vars
	st.Encode(&vars, bootenv.GRUB)
	if err := bootenv.Create(spec, &vars); err != nil {
		t.Fatal(err)
	}
	store, err := bootenv.Open(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := refresh(store, "SDV_A"); err != nil {
		t.Fatal(err)
	}
	got, err := store.Load()
	if err != nil {
		t.Fatal(err)
	}
	st.Slots["SDV_A"] = slots.Slot{OK: true}
	if after, err := slots.Decode(got, bootenv.GRUB); err != nil || !after.Equal(st) {
		t.Errorf("%+v, %v; want %+v", after, err, st)
	}
	if err := refresh(store, "SDV_B"); err == nil {
		t.Error("a slot marked bad is started again")
	}
}

func TestAMarkIsMadeOnceAnHour(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "dir/mark")
	now := time.Now()
	for _, test := range []struct {
		at   time.Duration
		want bool
	}{{0, true}, {50 * time.Minute, false}, {2 * time.Hour, true}} {
		if first, err := claim(mark, now.Add(test.at)); first != test.want || err != nil {
			t.Errorf("after %v: %v, %v", test.at, first, err)
		}
	}
}

func TestAFailedWriteIsRepeatedOnANewFileSystem(t *testing.T) {
	broken, formatted := true, 0
	write := func() error {
		if broken {
			return errors.New("no space")
		}
		return nil
	}
	format := func() error { broken = false; formatted++; return nil }
	for range 2 {
		if err := rewrite(write, format); err != nil || formatted != 1 {
			t.Errorf("formatted %d times, %v", formatted, err)
		}
	}
	broken = true
	if err := rewrite(write, func() error { return errors.New("dead") }); err == nil || !strings.Contains(err.Error(), "dead") || !strings.Contains(err.Error(), "space") {
		t.Errorf("a partition that cannot be formatted: %v", err)
	}
}

func TestADiskThatHangsIsGivenUp(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "e2fsck"), []byte("#!/bin/sh\nexec /bin/sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	start := time.Now()
	if err := fsck(context.Background(), "/dev/x", 50*time.Millisecond); !errors.Is(err, errHangs) || time.Since(start) > 10*time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}

func TestAConsoleDoesNotWaitForALateReport(t *testing.T) {
	s := &session{reported: make(chan struct{})}
	var tty bytes.Buffer
	if greeted, err := s.greet(&tty, time.Millisecond); greeted || err != nil || !strings.Contains(tty.String(), "follows") {
		t.Errorf("%v, %v, %q", greeted, err, tty.String())
	}
	s.greeting = []byte("REPORT")
	close(s.reported)
	tty.Reset()
	if greeted, err := s.greet(&tty, time.Minute); !greeted || err != nil || tty.String() != "REPORT" {
		t.Errorf("%v, %v, %q", greeted, err, tty.String())
	}
}

// disk makes a disk with partitions of these labels.
func disk(name string, labels ...string) []block {
	list := []block{{name: name, disk: name}}
	for i, l := range labels {
		list = append(list, block{name + string(rune('1'+i)), name, l})
	}
	return list
}

func TestAllLabelsAreThoseOfOneDisk(t *testing.T) {
	dir := t.TempDir()
	whole := []string{"grubenv", "rescue", "root_a", "root_b", "data"}
	stick := disk("sda", "root_a", "data")
	if err := linkLabels(stick, dir, false); err == nil {
		t.Error("a disk that lacks partitions is taken for the vehicle's")
	}
	both := append(stick, disk("vda", whole...)...)
	if err := linkLabels(both, dir, false); err != nil {
		t.Fatal(err)
	}
	// Another whole one, before it in the list, comes too late.
	if err := linkLabels(append(disk("nvme", whole...), both...), dir, false); err != nil {
		t.Fatal(err)
	}
	for i, label := range whole {
		if got, err := os.Readlink(filepath.Join(dir, label)); err != nil || got != "../../vda"+string(rune('1'+i)) {
			t.Errorf("%s leads to %s, %v", label, got, err)
		}
	}
	alone := t.TempDir()
	if err := linkLabels(stick, alone, true); err != nil {
		t.Error(err)
	}
	if got, _ := os.Readlink(filepath.Join(alone, "data")); got != "../../sda2" {
		t.Errorf("the only disk there is: data leads to %s", got)
	}
}
