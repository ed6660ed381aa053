// SPDX-License-Identifier: Apache-2.0

package raucd

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// rauc runs the real command line client against the fixture.
func rauc(t *testing.T, f *Fixture, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("rauc", append([]string{"-c", f.Config}, args...)...)
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+f.Address)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestInstallAndRebootWithStockClient(t *testing.T) {
	for _, o := range []Options{{}, {Loop: true}, {Bootloader: "uboot"}} {
		t.Run(or(o.Bootloader, "grub"), func(t *testing.T) {
			f := Start(t, o)
			spec := BundleSpec{Version: "2.5"}
			if f.Holds(t, "rootfs.1", spec) {
				t.Fatal("slot holds the image before the installation")
			}
			if out, err := rauc(t, f, "install", f.MakeBundle(t, spec)); err != nil {
				t.Fatalf("install: %v\n%s", err, out)
			}
			if !f.Holds(t, "rootfs.1", spec) {
				t.Error("slot does not hold the image after the installation")
			}
			f.SimulateReboot(t, "SDV_B")
			out, err := rauc(t, f, "status", "--output-format=shell")
			if err != nil || !strings.Contains(out, "RAUC_SYSTEM_BOOTED_BOOTNAME='SDV_B'") {
				t.Errorf("status after reboot: %v\n%s", err, out)
			}
		})
	}
}

func TestBadBundlesAreRefused(t *testing.T) {
	f := Start(t, Options{})
	for _, spec := range []BundleSpec{{Stranger: true}, {Truncate: 5000}, {Modified: true}, {Compatible: "other"}} {
		if out, err := rauc(t, f, "install", f.MakeBundle(t, spec)); err == nil {
			t.Errorf("%+v: installed\n%s", spec, out)
		}
	}
}

func TestVerityBundleCanBeInspected(t *testing.T) {
	f := Start(t, Options{})
	bundle := f.MakeBundle(t, BundleSpec{Verity: true, Version: "3"})
	out, err := rauc(t, f, "info", bundle)
	if err != nil || !strings.Contains(out, "verity") || !strings.Contains(out, "'3'") {
		t.Errorf("info: %v\n%s", err, out)
	}
}

func TestHeldInstallationSurvivesUntilRelease(t *testing.T) {
	f := Start(t, Options{})
	spec := BundleSpec{Hook: true}
	bundle := f.MakeBundle(t, spec)
	for _, p := range []Point{BeforeInstall, DuringInstall, AfterInstall} {
		f.Hold(t, p)
		done := make(chan error)
		go func() {
			_, err := rauc(t, f, "install", bundle)
			done <- err
		}()
		f.AwaitHold(t, p)
		if p == BeforeInstall && f.Holds(t, "rootfs.1", spec) {
			t.Errorf("%s: slot already written", p)
		}
		f.Release(t, p)
		if err := <-done; err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func TestKilledServiceLeavesNothingBehind(t *testing.T) {
	var dir string
	t.Run("kill", func(t *testing.T) {
		f := Start(t, Options{Loop: true})
		dir = f.Dir
		bundle := f.MakeBundle(t, BundleSpec{Hook: true})
		for range 2 {
			f.Hold(t, DuringInstall)
			done := make(chan error)
			go func() {
				_, err := rauc(t, f, "install", bundle)
				done <- err
			}()
			f.AwaitHold(t, DuringInstall)
			f.KillService(t)
			if err := <-done; err == nil {
				t.Error("client of a killed service reports success")
			}
			f.startService(t)
		}
	})
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), dir) {
		t.Errorf("still mounted below %s:\n%s", dir, mounts)
	}
	if out := run(t, "losetup", "--all"); strings.Contains(out, dir) {
		t.Errorf("loop devices still attached below %s:\n%s", dir, out)
	}
}
