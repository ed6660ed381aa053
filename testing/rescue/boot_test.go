// SPDX-License-Identifier: Apache-2.0

package rescue_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sdvbox/testing/vehicle"
)

// report is the part of "rescue report --output json" that the test looks at.
type report struct {
	Reason string
	Slots  []struct {
		Name    string
		OK      bool
		Error   string
		Version string
	}
	Data    struct{ Mounted bool }
	Network []struct{ Addresses []string }
	RAUC    struct{ Compatible, Error string }
}

// guest is a running machine with the test it fails.
type guest struct {
	*vehicle.VM
	t   *testing.T
	ctx context.Context
}

func (g guest) run(command string) string {
	g.t.Helper()
	start := time.Now()
	out, err := g.Run(g.ctx, command)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Logf("%s: %.1f s", command, time.Since(start).Seconds())
	return out
}

// fails runs a command that must not succeed.
func (g guest) fails(command string) string {
	g.t.Helper()
	out, err := g.Run(g.ctx, command)
	if err == nil {
		g.t.Fatalf("%s: succeeds:\n%s", command, out)
	}
	return out
}

func (g guest) report() report {
	g.t.Helper()
	out := g.run("rescue report --output json")
	var r report
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):strings.LastIndex(out, "}")+1]), &r); err != nil {
		g.t.Fatalf("%v in %s", err, out)
	}
	return r
}

// next waits for the reboot.
func (g guest) next() guest {
	g.t.Helper()
	v, err := g.Next(g.ctx)
	if err != nil {
		g.t.Fatal(err)
	}
	return guest{v, g.t, g.ctx}
}

// Both slots are destroyed: the rescue system comes up, says so, and brings
// back one slot from a stick and the other from a server. Then the boot
// environment is destroyed, too: the rescue system repairs that by itself and
// the slot installed last starts, as the other one has no real kernel.
func TestRescueBringsBackAVehicleThatLostEverything(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("SDVBOX_REQUIRE") == "1" {
			t.Fatal("only root can build a vehicle")
		}
		t.Skip("only root can build a vehicle")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	b, err := vehicle.NewBuilder()
	must(err)
	b.Logf = t.Logf
	image, err := b.Image(ctx, vehicle.Image{Version: "1"})
	must(err)
	bundle, err := b.Bundle(ctx, vehicle.Bundle{Image: image, Version: "1"})
	must(err)
	little := smallImage(t)
	small, err := b.Bundle(ctx, vehicle.Bundle{Image: little, Version: "0.1"})
	must(err)
	stranger, err := b.Bundle(ctx, vehicle.Bundle{Image: little, Version: "0.1", Stranger: true})
	must(err)

	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.img")
	factory, err := b.Disk(ctx, vehicle.Disk{A: image})
	must(err)
	must(vehicle.CopyDisk(disk, factory))
	layout, err := b.Layout(vehicle.Disk{A: image})
	must(err)
	for _, name := range []string{"root_a", "root_b"} {
		p, err := layout.Partition(name)
		must(err)
		must(vehicle.Zero(disk, p, p.Size))
	}

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if file, ok := map[string]string{"/good": bundle, "/small": small, "/stranger": stranger}[r.URL.Path]; ok {
			http.ServeFile(w, r, file)
		} else {
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	must(err)
	url := "http://10.0.2.2:" + port

	// The kernel has no USB: a second disk stands for the stick.
	stick := stickWith(t, small)
	v, err := vehicle.Start(ctx, vehicle.Machine{Disk: disk, Args: []string{
		"-blockdev", "driver=file,node-name=stick,filename=" + stick, "-device", "virtio-blk-pci,drive=stick",
	}})
	must(err)
	g := guest{v, t, ctx}
	defer func() { g.Kill() }()

	// On the console, for people.
	if _, err := g.WaitFor(ctx, `==== RESCUE SYSTEM ====[\s\S]*no slot could be started[\s\S]*SDV_A +[^\n]*UNREADABLE[\s\S]*SDV_B +[^\n]*UNREADABLE[\s\S]*rescue install[\s\S]*rescue:~# `); err != nil {
		t.Fatal(err)
	}
	t.Logf("rescue shell after %.1f s", time.Since(g.Started).Seconds())
	r := g.report()
	if r.Reason != "exhausted" || !r.Data.Mounted || r.RAUC.Compatible != vehicle.Compatible || len(r.Network) != 1 || len(r.Network[0].Addresses) == 0 {
		t.Errorf("report: %+v", r)
	}

	if out := g.fails("rescue install " + url + "/stranger"); !strings.Contains(out, "signature verification failed") {
		t.Errorf("a bundle signed by a stranger: %s", out)
	}
	if out := g.fails("rescue install " + url + "/absent"); !strings.Contains(out, "404") {
		t.Errorf("a bundle that is not there: %s", out)
	}
	if r := g.report(); r.Slots[0].Error == "" || r.Slots[1].Error == "" {
		t.Errorf("a refused bundle has been written: %+v", r.Slots)
	}

	// Not to lose time, what goes to slot B is only as much of a system as the rescue system looks at.
	g.run("rescue install --usb --slot b")
	if r := g.report(); r.Slots[1].Version != "0.1" || r.Slots[0].Error == "" {
		t.Errorf("after the installation of slot B: %+v", r.Slots)
	}
	g.run("fallocate -l $((($(df -kP /data | awk 'END {print $4}') - 1024) * 1024)) /data/full")
	if out := g.run("rescue install --slot b " + url + "/small"); !strings.Contains(out, "not enough space") || !strings.Contains(out, "stream") {
		t.Errorf("installation without space for a download: %s", out)
	}
	g.run("rm /data/full")
	// Now A is the only one with nothing to lose.
	if out := g.run("rescue install " + url + "/good"); !strings.Contains(out, "SDV_A holds version 1 and boots next") {
		t.Errorf("installation over the network: %s", out)
	}
	if out := g.fails("rescue install --usb"); !strings.Contains(out, "--slot") {
		t.Errorf("installation without need: %s", out)
	}
	env := g.run("grub-editenv /grubenv/grubenv list")
	for _, want := range []string{"ORDER=SDV_A SDV_B", "SDV_A_OK=1", "SDV_A_TRY=0", "SDV_GOOD=SDV_A"} {
		if !strings.Contains(env, want) {
			t.Errorf("no %s in the boot environment:\n%s", want, env)
		}
	}

	g.run("umount /grubenv && dd if=/dev/zero of=/dev/disk/by-partlabel/grubenv bs=1M count=8 && sync")
	g.run("(sleep 1; reboot) >/dev/null 2>&1 &")
	g = g.next()
	if _, err := g.WaitFor(ctx, `starting the rescue system \(unreadable\)[\s\S]*is repaired; booting again`); err != nil {
		t.Fatal(err)
	}
	g = g.next()
	version, err := g.WaitReady(ctx)
	must(err)
	if version != "1" {
		t.Errorf("version %s has started, want 1", version)
	}
	if out := g.run("cat /proc/cmdline"); !strings.Contains(out, "rauc.slot=SDV_A sdvbox.boot=fallback") {
		t.Errorf("command line: %s", out)
	}
	if out := g.fails("rescue install --usb"); !strings.Contains(out, "not the rescue system") {
		t.Errorf("installation in a running vehicle: %s", out)
	}
}

// smallImage makes a file system that looks like a slot from outside.
func smallImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	kernel := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{}).Read(kernel) // does not compress, so that the bundle has a size
	for name, data := range map[string]string{"boot/vmlinuz": string(kernel), "etc/os-release": "VERSION_ID=0.1\n"} {
		if err := os.MkdirAll(filepath.Join(dir, "root", filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "root", name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(dir, "small.ext4")
	if out, err := exec.CommandContext(t.Context(), "/sbin/mkfs.ext4", "-q", "-b", "4096", "-d", filepath.Join(dir, "root"), image, "16M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	return image
}

// stickWith makes the image of a FAT file system with a bundle in it.
func stickWith(t *testing.T, bundle string) string {
	t.Helper()
	info, err := os.Stat(bundle)
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "stick.img")
	for _, args := range [][]string{
		{"/sbin/mkfs.vfat", "-C", image, fmt.Sprint(info.Size()>>10 + 4096)},
		{"mcopy", "-i", image, bundle, "::update.raucb"},
	} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", args[0], err, out)
		}
	}
	return image
}
