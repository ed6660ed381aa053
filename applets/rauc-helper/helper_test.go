// SPDX-License-Identifier: Apache-2.0

package rauchelper

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sdvbox/platform/applet"
	"sdvbox/platform/bootenv"
	"sdvbox/platform/slots"
)

// rig is a machine without a message bus, with a GRUB environment in a file.
type rig struct {
	machine
	t       *testing.T
	spec    string
	reboots int
}

// newRig makes a machine started with the words of a kernel command line; state changes the boot state from the factory.
func newRig(t *testing.T, cmdline string, state func(*slots.State)) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, spec: "grub:" + filepath.Join(dir, "grubenv")}
	r.machine = machine{
		cmdline: filepath.Join(dir, "cmdline"),
		root:    dir,
		bus:     "unix:path=" + filepath.Join(dir, "no-bus"),
		reboot:  func(context.Context) error { r.reboots++; return nil },
	}
	write(t, r.cmdline, "quiet "+cmdline+"\n")
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "etc/os-release"), "NAME=x\nVERSION_ID=\"1.5\"\n")
	st := slots.New(slots.Names[:]...)
	if state != nil {
		state(&st)
	}
	var vars bootenv.Vars
	st.Encode(&vars, bootenv.GRUB)
	if err := bootenv.Create(r.spec, &vars); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SDVBOX_BOOTENV", r.spec)
	return r
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// call runs rauc-helper and returns its standard output.
func (r *rig) call(code int, args ...string) string {
	r.t.Helper()
	out, errors := r.callBoth(code, args...)
	if code == 0 && errors != "" {
		r.t.Errorf("%v: %s", args, errors)
	}
	return out
}

func (r *rig) callBoth(code int, args ...string) (stdout, stderr string) {
	r.t.Helper()
	var out, errors bytes.Buffer
	table := []applet.Command{command(r.machine)}
	if got := applet.Main(table, append([]string{"rauc-helper"}, args...), strings.NewReader(""), &out, &errors); got != code {
		r.t.Errorf("%v: exit code %d, want %d\n%s%s", args, got, code, out.String(), errors.String())
	}
	return out.String(), errors.String()
}

func (r *rig) state() slots.State {
	r.t.Helper()
	_, st, err := load(r.spec)
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

// summary writes the boot state as "SDV_B+0 SDV_A-0 good=SDV_A why=…": order, OK or not, tries.
func (r *rig) summary() string {
	r.t.Helper()
	st := r.state()
	var words []string
	for _, n := range st.Order {
		sign := "-"
		if st.Slots[n].OK {
			sign = "+"
		}
		words = append(words, n+sign+string(rune('0'+st.Slots[n].Tries)))
	}
	if st.Good != "" {
		words = append(words, "good="+st.Good)
	}
	if st.Why != "" {
		words = append(words, "why="+st.Why)
	}
	return strings.Join(words, " ")
}

func (r *rig) expect(what, want string) {
	r.t.Helper()
	if got := r.summary(); got != want {
		r.t.Errorf("%s: %s\nwant %s", what, got, want)
	}
}

func TestStatusWithoutRAUCTellsWhatRunsAndWhy(t *testing.T) {
	for _, test := range []struct {
		name, cmdline string
		state         func(*slots.State)
		code          int
		want          []string
	}{
		{"confirmed", "rauc.slot=SDV_A sdvbox.boot=first", func(s *slots.State) { s.MarkGood("SDV_A") }, 0,
			[]string{"Running:      SDV_A, the preferred slot", "Next:         SDV_A", "* SDV_A - good 3 1.5 -", " SDV_B - bootable 3 - -"}},
		{"trial", "rauc.slot=SDV_B sdvbox.boot=first", func(s *slots.State) { s.MarkGood("SDV_A"); s.SetPrimary("SDV_B"); s.Boot() }, exitTrial,
			[]string{"Next:         SDV_B", "Confirmed:    SDV_A", "* SDV_B - on trial 2 1.5 -"}},
		{"fallback", "rauc.slot=SDV_A sdvbox.boot=fallback", func(s *slots.State) {
			s.MarkGood("SDV_A")
			s.SetPrimary("SDV_B")
			s.MarkBad("SDV_B", "broker: refused")
		}, exitFallback,
			[]string{"Running:      SDV_A, a fallback", "Last failure: SDV_B: broker: refused", " SDV_B - bad 0 - -"}},
		{"rescue", "rauc.external sdvbox.boot=exhausted", func(s *slots.State) { s.MarkBad("SDV_A", ""); s.Boot(); s.Boot(); s.Boot() }, exitRescue,
			[]string{"Running:      rescue system, because no slot is good", "Next:         rescue system", " SDV_B - exhausted 0 - -"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, test.cmdline, test.state)
			out := r.call(test.code, "status")
			var lines []string
			for line := range strings.Lines(out) {
				if strings.Contains(line, ":  ") || strings.HasPrefix(line, "Last") {
					lines = append(lines, strings.TrimSpace(line))
				} else {
					lines = append(lines, strings.Join(strings.Fields(line), " "))
				}
			}
			for _, want := range test.want {
				if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, strings.TrimSpace(want)) }) {
					t.Errorf("no line %q in\n%s", want, out)
				}
			}
			if !strings.Contains(out, "RAUC:") || !strings.Contains(out, "not available") {
				t.Errorf("does not say that RAUC is away:\n%s", out)
			}
		})
	}
}

func TestStatusAsJSON(t *testing.T) {
	r := newRig(t, "rauc.slot=SDV_B sdvbox.boot=first", func(s *slots.State) {
		s.MarkGood("SDV_A")
		s.MarkBad("SDV_B", "older trouble")
		s.Order = []string{"SDV_B", "SDV_A"}
		s.Slots["SDV_B"] = slots.Slot{OK: true, Tries: 1}
	})
	var got Status
	if err := json.Unmarshal([]byte(r.call(exitTrial, "status", "--output", "json")), &got); err != nil {
		t.Fatal(err)
	}
	got.RAUC.Error = ""
	want := Status{
		Booted: "SDV_B", Reason: "first", OnTrial: true, Next: "SDV_B", Good: "SDV_A",
		LastFailure: &Failure{"SDV_B", "older trouble"},
		Environment: Environment{Store: r.spec},
		Slots: []Slot{
			{Bootname: "SDV_A", State: "good", AttemptsLeft: 3},
			{Bootname: "SDV_B", State: "on trial", AttemptsLeft: 2, Booted: true, Version: "1.5"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestStatusOfALostEnvironmentSaysSo(t *testing.T) {
	r := newRig(t, "rauc.slot=SDV_A", nil)
	path := strings.TrimPrefix(r.spec, "grub:")
	write(t, path, "")
	write(t, path+"2", "")
	if out := r.call(0, "status"); !strings.Contains(out, "env create") {
		t.Errorf("no hint in\n%s", out)
	}
}

func TestMarkWithoutRAUCChangesTheEnvironment(t *testing.T) {
	trial := func(s *slots.State) { s.MarkGood("SDV_A"); s.SetPrimary("SDV_B"); s.Boot() }
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"mark", "good"}, "SDV_B+0 SDV_A+0 good=SDV_B"},
		{[]string{"mark", "good", "other"}, "SDV_B+1 SDV_A+0 good=SDV_A"},
		{[]string{"mark", "bad"}, "SDV_B-0 SDV_A+0 good=SDV_A why=SDV_B marked bad by hand"},
		{[]string{"mark", "bad", "other", "--reason", "it leaks"}, "SDV_B+1 SDV_A-0 why=SDV_A it leaks"},
		{[]string{"mark", "active", "SDV_A"}, "SDV_A+0 SDV_B+1 good=SDV_A"},
		{[]string{"switch"}, "SDV_A+0 SDV_B+1 good=SDV_A"},
	} {
		r := newRig(t, "rauc.slot=SDV_B sdvbox.boot=first", trial)
		r.call(0, test.args...)
		r.expect(strings.Join(test.args, " "), test.want)
		if r.reboots != 0 {
			t.Errorf("%v: rebooted", test.args)
		}
	}
	r := newRig(t, "rauc.slot=SDV_B", trial)
	r.call(0, "switch", "--reboot")
	if r.reboots != 1 {
		t.Errorf("switch --reboot: %d reboots", r.reboots)
	}
}

func TestMarkGoodOfAnotherSlotDoesNotConfirmIt(t *testing.T) {
	r := newRig(t, "rauc.slot=SDV_A", func(s *slots.State) { s.MarkGood("SDV_A"); s.MarkBad("SDV_B", "x") })
	r.call(0, "mark", "good", "SDV_B")
	r.expect("other slot", "SDV_A+0 SDV_B+0 good=SDV_A")
	r = newRig(t, "rauc.external sdvbox.boot=exhausted", func(s *slots.State) { s.MarkBad("SDV_A", "x") })
	r.call(0, "mark", "good", "SDV_A")
	r.expect("in the rescue system", "SDV_A+0 SDV_B+0")
}

func TestWrongCallsSayWhatWasExpected(t *testing.T) {
	r := newRig(t, "rauc.slot=SDV_A", nil)
	for _, test := range []struct {
		code int
		want string
		args []string
	}{
		{2, "expected good, bad or active", []string{"mark"}},
		{2, "expected good, bad or active", []string{"mark", "fine"}},
		{1, "known are SDV_A, SDV_B", []string{"mark", "bad", "SDV_C"}},
		{1, "RAUC, which knows slot names, does not answer", []string{"mark", "bad", "rootfs.1"}},
		{2, "status, mark, switch, confirm or env", nil},
		{2, "expected good or bad", []string{"set-state", "SDV_A", "active"}},
		{2, "expected arguments BOOTNAME", []string{"get-state"}},
		{1, "known are SDV_A, SDV_B", []string{"get-state", "A"}},
		{1, "known are SDV_A, SDV_B", []string{"set-primary", "A"}},
		{2, "expected KEY=VALUE", []string{"env", "set", "x"}},
		{2, "expected KEY=VALUE", []string{"env", "set"}},
		{1, "not set: y", []string{"env", "get", "ORDER", "y"}},
		{1, "expected grub:PATH", []string{"env", "list", "--bootenv", "file"}},
		{1, "--force", []string{"env", "create"}},
	} {
		if _, stderr := r.callBoth(test.code, test.args...); !strings.Contains(stderr, test.want) {
			t.Errorf("%v: %q, want %q", test.args, stderr, test.want)
		}
	}
	r.expect("after wrong calls", "SDV_A+0 SDV_B+0")
	r = newRig(t, "root=/dev/sda1", nil)
	if _, stderr := r.callBoth(1, "mark", "bad"); !strings.Contains(stderr, "give a boot name") {
		t.Errorf("unknown booted slot: %s", stderr)
	}
	r.callBoth(1, "get-current")
}

func TestBackendAnswersAsRAUCAsks(t *testing.T) {
	r := newRig(t, "rauc.slot=SDV_A sdvbox.boot=first", func(s *slots.State) { s.MarkGood("SDV_A"); s.MarkBad("SDV_B", "old") })
	ask := func(want string, args ...string) {
		t.Helper()
		if got := r.call(0, args...); got != want {
			t.Errorf("%v: %q, want %q", args, got, want)
		}
	}
	ask("SDV_A\n", "get-current")
	ask("SDV_A\n", "get-primary")
	ask("bad\n", "get-state", "SDV_B")
	// An installation.
	ask("", "set-state", "SDV_B", "bad")
	r.expect("while it is written", "SDV_A+0 SDV_B-0 good=SDV_A why=SDV_B old")
	ask("", "set-primary", "SDV_B")
	r.expect("activated", "SDV_B+0 SDV_A+0 good=SDV_A")
	ask("SDV_B\n", "get-primary")
	ask("good\n", "get-state", "SDV_B")
	// The booted slot may be confirmed through RAUC as well.
	write(t, r.cmdline, "rauc.slot=SDV_B")
	ask("", "set-state", "SDV_B", "good")
	r.expect("confirmed", "SDV_B+0 SDV_A+0 good=SDV_B")
	ask("", "set-state", "SDV_A", "bad")
	ask("", "set-state", "SDV_B", "bad")
	r.callBoth(1, "get-primary")
}

func TestEnvReadsAndWritesVariables(t *testing.T) {
	r := newRig(t, "", nil)
	r.call(0, "env", "set", "a=1", "b=x = y\\z", "c=")
	if got := r.call(0, "env", "get", "a", "b", "c"); got != "1\nx = y\\z\n\n" {
		t.Errorf("get: %q", got)
	}
	r.call(0, "env", "unset", "a", "c", "never-there")
	if got := r.call(0, "env", "list"); !strings.HasSuffix(got, "SDV_B_TRY=0\nSDV_GOOD=none\nb=x = y\\z\n") || strings.Contains(got, "SDV_SEQ") {
		t.Errorf("list: %q", got)
	}
	var all map[string]string
	if err := json.Unmarshal([]byte(r.call(0, "env", "list", "--output=json")), &all); err != nil || all["b"] != `x = y\z` || len(all) != 7 {
		t.Errorf("list as JSON: %v, %v", all, err)
	}
	if got := r.call(0, "env", "get", "--output=json", "b"); strings.Join(strings.Fields(got), "") != `{"b":"x=y\\z"}` {
		t.Errorf("get as JSON: %s", got)
	}
}

func TestEnvRepairAndCreate(t *testing.T) {
	r := newRig(t, "", func(s *slots.State) { s.MarkGood("SDV_B") })
	if got := r.call(0, "env", "repair"); !strings.Contains(got, "in order") {
		t.Errorf("healthy: %s", got)
	}
	path := strings.TrimPrefix(r.spec, "grub:")
	write(t, path, "torn")
	r.call(0, "env", "set", "ORDER=SDV_R SDV_B")
	r.call(0, "env", "unset", "SDV_A_OK")
	write(t, path+"2", "torn")
	if got := r.call(0, "env", "repair"); !strings.Contains(got, "repaired") {
		t.Errorf("torn: %s", got)
	}
	if got := r.call(0, "env", "get", "ORDER", "SDV_A_OK"); got != "SDV_B SDV_A\n1\n" {
		t.Errorf("repaired to %q", got)
	}
	one, _ := os.ReadFile(path)
	two, _ := os.ReadFile(path + "2")
	if !bytes.Equal(one, two) || len(one) != 1024 {
		t.Error("the copies differ after the repair")
	}
	write(t, path, "torn")
	write(t, path+"2", "torn")
	if _, stderr := r.callBoth(1, "env", "repair"); !strings.Contains(stderr, "env create") {
		t.Errorf("lost: %s", stderr)
	}
	r.call(0, "env", "create", "SDV_GOOD=SDV_A", "SDV_B_OK=0")
	r.expect("created", "SDV_A+0 SDV_B-0 good=SDV_A")
	r.callBoth(1, "env", "create")
	r.call(0, "env", "create", "--force")
	r.expect("created by force", "SDV_A+0 SDV_B+0")
}

func TestUBootEnvironmentsWorkAlike(t *testing.T) {
	r := newRig(t, "rauc.slot=SDV_A", nil)
	config := filepath.Join(t.TempDir(), "fw_env.config")
	write(t, config, config+".1 0 0x1000\n"+config+".2 0 0x1000\n")
	r.spec = "uboot:" + config
	t.Setenv("SDVBOX_BOOTENV", r.spec)
	r.call(0, "env", "create")
	r.call(0, "mark", "good")
	r.call(0, "switch")
	if got := r.call(0, "env", "get", "BOOT_ORDER", "BOOT_SDV_B_LEFT", "SDV_GOOD"); got != "SDV_B SDV_A\n3\nSDV_A\n" {
		t.Errorf("environment: %q", got)
	}
	r.expect("switched", "SDV_B+0 SDV_A+0 good=SDV_A")
}

func TestForeignNamesRunForeignCommandLines(t *testing.T) {
	r := newRig(t, "", nil)
	path := strings.TrimPrefix(r.spec, "grub:")
	var out, errors bytes.Buffer
	run := func(args ...string) int {
		out.Reset()
		return applet.Main([]applet.Command{command(r.machine)}, args, strings.NewReader(""), &out, &errors)
	}
	if code := run("grub-editenv", path, "set", "x=1"); code != 0 {
		t.Errorf("grub-editenv set: exit code %d, %s", code, errors.String())
	}
	if code := run("/usr/lib/sdvbox/compat/grub-editenv", path, "list"); code != 0 || !strings.Contains(out.String(), "x=1\n") {
		t.Errorf("grub-editenv list: exit code %d, %q", code, out.String())
	}
	if code := run("grub-editenv", r.cmdline, "list"); code != 1 {
		t.Errorf("grub-editenv of another file: exit code %d", code)
	}
	config := filepath.Join(t.TempDir(), "fw_env.config")
	write(t, config, config+".1 0 0x1000\n")
	r.call(0, "env", "create", "--bootenv", "uboot:"+config)
	if code := run("fw_setenv", "-c", config, "BOOT_ORDER", "SDV_B SDV_A"); code != 0 {
		t.Errorf("fw_setenv: exit code %d, %s", code, errors.String())
	}
	if code := run("fw_printenv", "-c", config, "BOOT_ORDER"); code != 0 || out.String() != "BOOT_ORDER=SDV_B SDV_A\n" {
		t.Errorf("fw_printenv: exit code %d, %q", code, out.String())
	}
}
