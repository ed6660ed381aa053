// SPDX-License-Identifier: Apache-2.0

package rauchelper

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sdvbox/platform/slots"
	"sdvbox/testing/raucd"
)

// build returns a directory with the real binary as rauc-helper, and below it compat with the foreign names.
func build(t *testing.T) string {
	t.Helper()
	dir, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "rauc-helper")
	if err != nil {
		return "", err
	}
	for _, args := range [][]string{
		{"go", "build", "-o", dir + "/sdvbox", "sdvbox"},
		{dir + "/sdvbox", "--install", dir},
		{dir + "/sdvbox", "--install-compat", dir + "/compat"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return "", err
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := binary(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// vehicle is a rig with the real RAUC.
type vehicle struct {
	*rig
	raucd *raucd.Fixture
}

// newVehicle makes a vehicle that runs on SDV_A, confirmed.
func newVehicle(t *testing.T, o raucd.Options) vehicle {
	t.Helper()
	r := newRig(t, "rauc.slot=SDV_A sdvbox.boot=first", func(s *slots.State) { s.MarkGood("SDV_A") })
	o.NoActivate = true
	if o.Bootloader == "custom" {
		o.Backend = filepath.Join(build(t), "rauc-helper")
		o.Env = []string{"SDVBOX_BOOTENV=" + r.spec}
	}
	f := raucd.Start(t, o)
	r.bus = f.Address
	return vehicle{r, f}
}

// rauc runs the real client.
func (v vehicle) rauc(args ...string) string {
	v.t.Helper()
	cmd := exec.Command("rauc", append([]string{"-c", v.raucd.Config}, args...)...)
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+v.raucd.Address)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		v.t.Errorf("rauc %v: %v\n%s%s", args, err, out, stderr.Bytes())
	}
	return string(out)
}

// raucState writes RAUC's view as "rootfs.0=good rootfs.1=bad primary=rootfs.0".
func (v vehicle) raucState() string {
	v.t.Helper()
	var s struct {
		Primary string `json:"boot_primary"`
		Slots   []map[string]struct {
			BootStatus string `json:"boot_status"`
		}
	}
	if err := json.Unmarshal([]byte(v.rauc("status", "--output-format=json")), &s); err != nil {
		v.t.Fatal(err)
	}
	state := map[string]string{}
	for _, slot := range s.Slots {
		for name, x := range slot {
			state[name] = x.BootStatus
		}
	}
	return "rootfs.0=" + state["rootfs.0"] + " rootfs.1=" + state["rootfs.1"] + " primary=" + s.Primary
}

func (v vehicle) expectBoth(what, env, rauc string) {
	v.t.Helper()
	v.expect(what, env)
	if got := v.raucState(); got != rauc {
		v.t.Errorf("%s: RAUC says %s\nwant %s", what, got, rauc)
	}
}

func TestRAUCWorksWithUsAsItsCustomBackend(t *testing.T) {
	v := newVehicle(t, raucd.Options{Bootloader: "custom"})
	v.expectBoth("start", "SDV_A+0 SDV_B+0 good=SDV_A", "rootfs.0=good rootfs.1=good primary=rootfs.0")
	v.rauc("install", v.raucd.MakeBundle(t, raucd.BundleSpec{}))
	v.expectBoth("installed", "SDV_A+0 SDV_B-0 good=SDV_A", "rootfs.0=good rootfs.1=bad primary=rootfs.0")
	v.rauc("status", "mark-active", "other")
	v.expectBoth("activated", "SDV_B+0 SDV_A+0 good=SDV_A", "rootfs.0=good rootfs.1=good primary=rootfs.1")
	// Starts of B, counted by the boot loader, are no reason for RAUC to call it bad before they are used up.
	for _, want := range []string{"good", "good", "bad"} {
		if err := v.boot(); err != nil {
			t.Fatal(err)
		}
		if got := v.raucState(); !strings.Contains(got, "rootfs.1="+want) {
			t.Errorf("after a start: %s, want rootfs.1=%s", got, want)
		}
	}
	v.rauc("status", "mark-good", "rootfs.1")
	// This host's kernel command line does not say what runs, so RAUC is believed that it speaks of the running slot.
	v.expectBoth("confirmed", "SDV_B+0 SDV_A+0 good=SDV_B", "rootfs.0=good rootfs.1=good primary=rootfs.1")
}

// TestUpdateOverTheConfirmedSlotIsOnTrial: SDV_B runs unconfirmed, and RAUC writes SDV_A, which was confirmed.
func TestUpdateOverTheConfirmedSlotIsOnTrial(t *testing.T) {
	r := newRig(t, trialLine, trial)
	for _, args := range [][]string{{"set-state", "SDV_A", "bad"}, {"set-state", "SDV_A", "good"}, {"set-primary", "SDV_A"}} {
		r.call(0, args...)
		if !r.state().OnTrial("SDV_A") {
			t.Errorf("%v: what was written to SDV_A counts as confirmed: %s", args, r.summary())
		}
	}
	r.expect("after", "SDV_A+0 SDV_B+1")
}

// boot does what the boot script does.
func (v vehicle) boot() error {
	store, _, err := load(v.spec)
	if err != nil {
		return err
	}
	return change(store, func(s *slots.State) error { s.Boot(); return nil })
}

// TestManualOfRAUCSwitchesSlotsAndReachesRescue follows the chapter about RAUC of the public documentation.
func TestManualOfRAUCSwitchesSlotsAndReachesRescue(t *testing.T) {
	v := newVehicle(t, raucd.Options{Bootloader: "custom"})
	v.rauc("status", "mark-bad", "booted")
	v.rauc("status", "mark-active", "other")
	v.expectBoth("switched", "SDV_B+0 SDV_A-0", "rootfs.0=bad rootfs.1=good primary=rootfs.1")
	v.rauc("status", "mark-bad", "rootfs.0")
	v.rauc("status", "mark-bad", "rootfs.1")
	v.expectBoth("both bad", "SDV_B-0 SDV_A-0", "rootfs.0=bad rootfs.1=bad primary=")
	if next, ok := v.state().Next(); ok {
		t.Errorf("would boot %s", next)
	}
}

func TestMarkGoesThroughRAUCAndKeepsItsRecords(t *testing.T) {
	v := newVehicle(t, raucd.Options{Bootloader: "custom"})
	v.rauc("install", v.raucd.MakeBundle(t, raucd.BundleSpec{Version: "7.1"}))
	if out := v.call(0, "switch"); out != "SDV_B (rootfs.1) is marked active\n" {
		t.Errorf("switch: %q", out)
	}
	v.expectBoth("switched", "SDV_B+0 SDV_A+0 good=SDV_A", "rootfs.0=good rootfs.1=good primary=rootfs.1")
	if out := v.rauc("status", "--detailed", "--output-format=shell"); !strings.Contains(out, "ACTIVATED_COUNT") {
		t.Errorf("RAUC has no record of the activation:\n%s", out)
	}
	v.call(0, "mark", "bad", "SDV_B", "--reason", "test drive")
	v.expectBoth("bad", "SDV_B-0 SDV_A+0 good=SDV_A why=SDV_B test drive", "rootfs.0=good rootfs.1=bad primary=rootfs.0")
	if out := v.call(0, "mark", "active", "rootfs.0", "--output=json"); strings.Join(strings.Fields(out), "") !=
		`{"slot":"rootfs.0","bootname":"SDV_A","state":"active"}` {
		t.Errorf("JSON: %s", out)
	}
	if _, stderr := v.callBoth(1, "mark", "bad", "rootfs.7"); !strings.Contains(stderr, "rootfs.7") {
		t.Errorf("no such slot: %s", stderr)
	}

	out := v.call(0, "status")
	for _, want := range []string{
		`answers, compatible "test-machine"`, "SDV_B: test drive", "rootfs.1  bad", "7.1", v.raucd.Device("rootfs.1"), "* ",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("status has no %q:\n%s", want, out)
		}
	}
	v.raucd.StopService(t)
	v.call(0, "mark", "active", "SDV_B")
	v.expect("without RAUC", "SDV_B+0 SDV_A+0 good=SDV_A")
}

func TestMarkAndStatusRespectABusyRAUC(t *testing.T) {
	v := newVehicle(t, raucd.Options{Bootloader: "custom"})
	bundle := v.raucd.MakeBundle(t, raucd.BundleSpec{Hook: true})
	v.raucd.Hold(t, raucd.DuringInstall)
	done := make(chan string)
	go func() { done <- v.rauc("install", bundle) }()
	v.raucd.AwaitHold(t, raucd.DuringInstall)
	if _, stderr := v.callBoth(1, "mark", "active", "SDV_B"); !strings.Contains(stderr, "busy") {
		t.Errorf("mark: %s", stderr)
	}
	if out := v.call(0, "status"); !strings.Contains(out, "busy") || !strings.Contains(out, "SDV_B  -     bad") {
		t.Errorf("status:\n%s", out)
	}
	v.expect("during an installation", "SDV_A+0 SDV_B-0 good=SDV_A")
	v.raucd.Release(t, raucd.DuringInstall)
	<-done
}

// TestSlotWithoutBootNameIsNotMarked: RAUC 1.8 would write variables called (null)_OK.
func TestSlotWithoutBootNameIsNotMarked(t *testing.T) {
	v := newVehicle(t, raucd.Options{Slots: []raucd.Slot{
		{Name: "rootfs.0", Bootname: "SDV_A"}, {Name: "rootfs.1", Bootname: "SDV_B"}, {Name: "rescue.0"},
	}})
	if _, stderr := v.callBoth(1, "mark", "bad", "rescue.0"); !strings.Contains(stderr, "no boot name") {
		t.Errorf("%s", stderr)
	}
	if out := v.call(0, "status"); !strings.Contains(out, "rescue.0") {
		t.Errorf("status without the rescue slot:\n%s", out)
	}
}

// TestOwnBackendsOfRAUCWorkWithOurTools puts the compatible names first in the PATH of the service.
func TestOwnBackendsOfRAUCWorkWithOurTools(t *testing.T) {
	for _, loader := range []string{"grub", "uboot"} {
		t.Run(loader, func(t *testing.T) {
			r := newRig(t, "rauc.slot=SDV_A sdvbox.boot=first", nil)
			tools := t.TempDir()
			compat := filepath.Join(build(t), "compat")
			calls := filepath.Join(tools, "calls")
			f := raucd.Start(t, raucd.Options{Bootloader: loader, NoActivate: true, Stopped: true, Env: []string{"PATH=" + tools + ":" + os.Getenv("PATH")}})
			// The wrappers prove that it is ours that RAUC calls, and name the configuration, which in a vehicle is the default.
			write(t, filepath.Join(tools, "grub-editenv"), "#!/bin/sh\necho $2 >>"+calls+"\nexec "+compat+"/grub-editenv \"$@\"\n")
			for _, tool := range []string{"fw_printenv", "fw_setenv"} {
				write(t, filepath.Join(tools, tool), "#!/bin/sh\necho "+tool+" >>"+calls+"\nexec "+compat+"/"+tool+" -c "+f.FwEnv+" \"$@\"\n")
			}
			r.spec = "grub:" + f.GrubEnv
			if loader == "uboot" {
				r.spec = "uboot:" + f.FwEnv
			}
			t.Setenv("SDVBOX_BOOTENV", r.spec)
			r.call(0, "env", "repair") // the second copy of GRUB's
			f.RestartService(t)
			r.bus = f.Address
			v := vehicle{r, f}

			v.expectBoth("start", "SDV_A+0 SDV_B+0", "rootfs.0=good rootfs.1=good primary=rootfs.0")
			v.rauc("install", f.MakeBundle(t, raucd.BundleSpec{}))
			v.expectBoth("installed", "SDV_A+0 SDV_B-0", "rootfs.0=good rootfs.1=bad primary=rootfs.0")
			v.rauc("status", "mark-active", "other")
			v.expectBoth("activated", "SDV_B+0 SDV_A+0", "rootfs.0=good rootfs.1=good primary=rootfs.1")
			v.rauc("status", "mark-bad", "booted")
			v.expectBoth("booted bad", "SDV_B+0 SDV_A-0", "rootfs.0=bad rootfs.1=good primary=rootfs.1")
			v.rauc("status", "mark-bad", "rootfs.1")
			if next, ok := v.state().Next(); ok {
				t.Errorf("both bad, and would boot %s", next)
			}
			// Our own mark knows what RAUC's backends do not: which slot was confirmed.
			v.call(0, "mark", "active", "booted")
			v.call(0, "mark", "good", "booted")
			if s := v.state(); s.Good != "SDV_A" || s.Left("SDV_A") != slots.MaxTries || s.Left("SDV_B") != 0 {
				t.Errorf("marked good: %+v", s)
			}
			if log, _ := os.ReadFile(calls); len(log) == 0 {
				t.Error("RAUC has not called our tools")
			}
			if loader == "grub" {
				one, _ := os.ReadFile(f.GrubEnv)
				two, _ := os.ReadFile(f.GrubEnv + "2")
				if len(one) != 1024 || !bytes.Equal(one, two) {
					t.Error("the copies differ")
				}
			}
		})
	}
}
