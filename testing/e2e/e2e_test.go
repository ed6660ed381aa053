// SPDX-License-Identifier: Apache-2.0

// Package e2e tells the lives of vehicles: their updates, good and bad, their
// ways back from systems that do not work, and their end in the rescue system.
// Everything is real but the hardware; a life happens on one disk, one step after
// the other, because what matters most is that an update succeeds after
// whatever has gone wrong before it.
package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sdvbox/testing/ctragent"
	"sdvbox/testing/vehicle"
)

const compatible = vehicle.Compatible

// long also runs what costs more time than it is likely to find faults.
var long = os.Getenv("SDVBOX_LONG") == "1"

// required is nothing skipped for want of something.
var required = os.Getenv("SDVBOX_REQUIRE") == "1"

// parts are what every life needs.
type parts struct {
	factory string // disk with version 1
	layout  vehicle.Layout
	two     string // bundle of version 2, which has faults on demand
	// Images of the container of the documentation's message.
	old, latest *ctragent.Image
}

// bundles are those that only the first life needs.
type bundles struct {
	one    string // bundle of version 1
	panics string // of a system without init
	// Bundles that must be refused.
	stranger, other, short, damaged, huge, small string
}

// fault switches on a fault of version 2, and gives it only so long to prove its health.
func (c *car) fault(name, deadline string) {
	c.t.Helper()
	c.run("rm -rf /data/e2e && mkdir /data/e2e && touch /data/e2e/" + name + ` && echo '{"deadline":"` + deadline + `"}' >/data/e2e/confirm.json && sync`)
}

// two is version 2. Its faults are switched on by files on the data partition: so it is the same bundle that fails in one
// way, then in another, and in the end not at all.
func two() vehicle.Image {
	unit := func(text string) vehicle.File {
		return vehicle.File{Data: "# SPDX-License-Identifier: Apache-2.0\n" + text}
	}
	const dir = "etc/systemd/system/"
	return vehicle.Image{Version: "2", Files: map[string]vehicle.File{
		"etc/sdvbox/confirm.json":                    {Link: "/data/e2e/confirm.json"},
		"etc/sdvbox/health.d/brakes":                 {Mode: 0o755, Data: "#!/bin/sh\n[ ! -e /data/e2e/brakes ] || { echo no brakes; exit 1; }\n"},
		dir + "sdvbox-confirm.service.d/config.conf": unit("[Unit]\nAfter=data.mount\n"),
		dir + "block.service": unit("[Unit]\nDefaultDependencies=no\nConditionPathExists=/data/e2e/block\nAfter=data.mount\n" +
			"Before=sysinit.target\n[Service]\nType=oneshot\nExecStart=/usr/bin/sleep infinity\n"),
		dir + "sysinit.target.wants/block.service": {Link: "/" + dir + "block.service"},
		dir + "freeze.service": unit("[Unit]\nConditionPathExists=/data/e2e/freeze\n" +
			"[Service]\nType=oneshot\nExecStart=/usr/bin/sh -c 'echo 1 >/sys/fs/cgroup/init.scope/cgroup.freeze'\n"),
		dir + "multi-user.target.wants/freeze.service": {Link: "/" + dir + "freeze.service"},
	}}
}

// builder makes what lives need, or ends the test.
type builder struct {
	*vehicle.Builder
	t *testing.T
}

func newBuilder(t *testing.T) builder {
	t.Helper()
	requireRoot(t)
	b, err := vehicle.NewBuilder()
	if err != nil {
		t.Fatal(err)
	}
	b.Logf = t.Logf
	return builder{b, t}
}

func (b builder) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b builder) image(i vehicle.Image) string {
	b.t.Helper()
	path, err := b.Image(b.t.Context(), i)
	b.must(err)
	return path
}

func (b builder) bundle(d vehicle.Bundle) string {
	b.t.Helper()
	path, err := b.Bundle(b.t.Context(), d)
	b.must(err)
	return path
}

func (b builder) parts() (p parts) {
	b.t.Helper()
	ctx := b.t.Context()
	disk := vehicle.Disk{A: b.image(vehicle.Image{Version: "1"})}
	var err error
	p.factory, err = b.Disk(ctx, disk)
	b.must(err)
	p.layout, err = b.Layout(disk)
	b.must(err)
	p.two = b.bundle(vehicle.Bundle{Image: b.image(two()), Version: "2"})
	p.old, err = b.Hello(ctx, "old")
	b.must(err)
	p.latest, err = b.Hello(ctx, "latest")
	b.must(err)
	return p
}

func (b builder) bundles() (all bundles) {
	b.t.Helper()
	// What is refused before anything is written needs no system inside. The builder links images, so these are in its cache.
	blank := func(name string, noise, size int64) string {
		path := filepath.Join(b.Cache, name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
		data := make([]byte, noise)
		rand.NewChaCha8([32]byte{}).Read(data)
		b.must(os.WriteFile(path+".tmp", data, 0o644))
		b.must(os.Truncate(path+".tmp", size))
		b.must(os.Rename(path+".tmp", path))
		return path
	}
	small := blank("e2e-small.img", 1<<20, 1<<20)
	all = bundles{
		one:      b.bundle(vehicle.Bundle{Image: b.image(vehicle.Image{Version: "1"}), Version: "1"}),
		stranger: b.bundle(vehicle.Bundle{Image: small, Version: "2", Stranger: true}),
		other:    b.bundle(vehicle.Bundle{Image: small, Version: "2", Compatible: "toaster"}),
		huge:     b.bundle(vehicle.Bundle{Image: blank("e2e-huge.img", 1<<20, vehicle.DefaultSlotSize+1<<20), Version: "2"}),
		small:    b.bundle(vehicle.Bundle{Image: small, Version: "7"}),
		panics: b.bundle(vehicle.Bundle{Version: "2-panic", Image: b.image(vehicle.Image{Version: "2-panic", Files: map[string]vehicle.File{
			"etc": {Remove: true}, "usr": {Remove: true}, "var": {Remove: true},
		}})}),
	}
	edit := func(name string, f func([]byte) []byte) string {
		data, err := os.ReadFile(all.small)
		b.must(err)
		path := filepath.Join(b.t.TempDir(), name)
		b.must(os.WriteFile(path, f(data), 0o644))
		return path
	}
	all.short = edit("short", func(data []byte) []byte { return data[:len(data)*3/4] })
	all.damaged = edit("damaged", func(data []byte) []byte {
		data[len(data)/2] ^= 1
		return data
	})
	return all
}

// The first life goes from the factory through bad bundles and a system that panics to a good update and back, and ends in the
// rescue system.
func TestFirstLife(t *testing.T) {
	b := newBuilder(t)
	p, all := b.parts(), b.bundles()
	c, o := newCar(t, p), newOrigin(t, p.latest)
	c.start()
	c.step("ANewVehicleConfirmsItsFirstSlot", func() {
		c.grub("SDV_A (first)")
		c.isNew(c.up("SDV_A", "1"))
	})
	c.step("BadBundlesAreRefusedForTheRightReason", func() { c.badBundles(o, p, all) })
	c.step("MalformedMessagesAreAnsweredOrLogged", c.malformed)
	c.step("ADownloadGoesOnWhereTheServerDied", func() { c.dyingServer(o, all.panics, "2-panic") })
	c.step("AKernelThatPanicsIsGivenUpAfterThreeStarts", c.panics)
	c.step("TheTutorialWorksAsPrinted", func() { c.tutorial(o, p.two, "2") })
	c.step("TheNewSystemIsConfirmed", func() {
		c.reboot()
		c.grub("SDV_B (first)")
		c.updated(c.up("SDV_B", "2"))
	})
	c.step("OneMessageUpdatesTheWholeVehicle", func() { c.asOne(o, "whole", "1", o.offer("one", file{path: all.one}), "SDV_A") })
	if long {
		c.step("TheNextUpdateIsActivatedByHand", func() { c.byHand("hand", "2", o.offer("two", file{path: p.two})) })
	}
	c.step("WithoutAGoodSlotTheRescueSystemStarts", func() {
		c.run("rauc status mark-bad rootfs.0")
		c.run("rauc status mark-bad rootfs.1")
		c.command("reboot now")
		c.next()
		c.rescued()
	})
	if long {
		c.step("TheRescueSystemBringsBackADestroyedSlot", func() { c.reinstall(o.offer("two", file{path: p.two})) })
	}
}

// The second life is one of updates that start and then do not prove themselves.
func TestSecondLife(t *testing.T) {
	p := newBuilder(t).parts()
	c, o := newCar(t, p), newOrigin(t, p.old, p.latest)
	c.watched, c.second = long, buildSuite(t)
	c.start()
	c.up("SDV_A", "1")
	c.step("AContainerIsMadeByHand", func() { c.makes(o, "old") })
	c.step("ItsLastWordsAreNotLostWithTheAgent", func() { c.lastWords("old") })
	c.step("TheWholeVehicleGoesBackWithAnUnhealthySlot", func() {
		c.fault("brakes", "30s")
		c.backAsOne(o, "range", "2", o.offer("range", file{path: p.two, noRange: true}), "brakes: no brakes")
	})
	c.step("ADownloadWithoutRangesHasStartedAnew", func() { c.noRanges(o, p.two) })
	url := o.offer("two", file{path: p.two})
	c.step("ABootThatBlocksIsGivenUpAtTheDeadline", func() {
		c.activated("block", "2", url)
		c.fault("block", "30s")
		c.fallsBack("block", "boot: multi-user.target is inactive, waiting for block.service")
	})
	if long {
		c.step("AStoppedInitIsGivenUpByTheWatchdog", func() {
			c.activated("freeze", "2", url)
			c.fault("freeze", "5m")
			c.freezes("freeze")
		})
		c.step("TheSameBundleWithoutAFaultSucceeds", func() {
			c.run("rm -r /data/e2e")
			c.activated("good", "2", url)
			c.reboot()
			c.up("SDV_B", "2")
			c.cleanup("good", "COMPLETE", "Self-update agent has activated the new OS image.")
		})
	}
	c.step("TestsOfContainersPassInTheVehicle", c.passes)
}

// isNew checks what a vehicle from the factory says about itself.
func (c *car) isNew(s status) {
	c.t.Helper()
	if s.Reason != "first" || s.Next != "SDV_A" || s.Environment.Error != "" || !strings.HasPrefix(s.Environment.Store, "grub:") ||
		!s.RAUC.Reachable || s.RAUC.Compatible != compatible || len(s.Slots) < 2 {
		c.t.Fatalf("status: %+v", s)
	}
	for i, want := range []string{"SDV_A rootfs.0 true good 3 1", "SDV_B rootfs.1 false bootable 3 "} {
		slot := s.Slots[i]
		if got := fmt.Sprint(slot.Bootname, " ", slot.Name, " ", slot.Booted, " ", slot.State, " ", slot.AttemptsLeft, " ", slot.Version); got != want {
			c.t.Errorf("slot: %s, expected %s", got, want)
		}
	}
	c.expect("rauc-helper status", c.run("rauc-helper status"), "SDV_A, the preferred slot", `compatible "`+compatible+`"`)
	c.expect("rauc status", c.run("rauc status"), "Booted from: rootfs.0 (SDV_A)", "Activated: rootfs.0 (SDV_A)")
	c.expect("retained inventory", c.run("mosquitto_sub -t selfupdate/currentstate -C 1 -W 10 -F '%r %p'"),
		`1 {`, `"id":"self-update-agent"`, `"id":"self-update:os-image","version":"1"`)
	c.expect("state of the system", c.run("systemctl is-system-running --wait || systemctl --failed --no-pager"), "running")
}

// badBundles tries bundles that must be refused. Each time the running slot stays the next one.
func (c *car) badBundles(o *origin, p parts, all bundles) {
	for _, bad := range []struct {
		name, bundle, status string
		says                 string
		before, after        string
	}{
		{name: "stranger", bundle: all.stranger, status: "UPDATE_FAILURE", says: "signature verification failed"},
		{name: "compatible", bundle: all.other, status: "UPDATE_FAILURE", says: `the bundle is for "toaster"`},
		{name: "short", bundle: all.short, status: "UPDATE_FAILURE", says: "cut short"},
		{name: "damaged", bundle: all.damaged, status: "UPDATE_FAILURE", says: "Input/output error"},
		{name: "huge", bundle: all.huge, status: "UPDATE_FAILURE", says: "Slot (335544320 bytes) is too small for image"},
		{name: "version", bundle: all.small, status: "UPDATE_FAILURE", says: "Bundle version does not match version in desired state request."},
		{name: "absent", status: "DOWNLOAD_FAILURE", says: "404 Not Found"},
		{name: "full", bundle: p.two, status: "DOWNLOAD_FAILURE", says: "not enough space in /data/selfupdates: needs " + size(p.two) + " bytes, has ",
			before: "fallocate -l $(($(df --output=avail -B1 /data | tail -n 1) - 32000000)) /data/filler", after: "rm /data/filler"},
	} {
		c.t.Run(bad.name, func(t *testing.T) {
			defer func(outer *testing.T) { c.t = outer }(c.t)
			c.t = t
			url := "http://" + o.host() + "/absent"
			if bad.bundle != "" {
				url = o.offer(bad.name, file{path: bad.bundle})
			}
			c.run(bad.before + "\n:")
			id := "bad-" + bad.name
			version := "2"
			if bad.name == "damaged" {
				version = "7"
			}
			heard := len(c.bus.Heard)
			end := c.update(id, version, url, "DOWNLOAD", "UPDATE", "ACTIVATE", "CLEANUP")
			found := false
			for _, f := range c.bus.Heard[heard:] {
				if f.Failed() && f.Status != "INCOMPLETE" {
					t.Logf("%s: %s", f.Status, f.Detail())
					found = f.Status == bad.status && strings.Contains(f.Detail(), bad.says)
				}
			}
			if !found {
				t.Errorf("no %s that says %q", bad.status, bad.says)
			}
			if end.Status != "INCOMPLETE" || !strings.Contains(end.Detail(), bad.says) || c.bus.Terminals(id) != 1 {
				t.Errorf("it ends with %s: %s (%d terminal statuses)", end.Status, end.Detail(), c.bus.Terminals(id))
			}
			if s := c.status(); s.Next != "SDV_A" || s.Good != "SDV_A" {
				t.Errorf("afterwards: %+v", s)
			}
			if left := c.run("ls /data/selfupdates"); left != "" {
				t.Errorf("files left: %s", left)
			}
			if bad.after != "" {
				c.run(bad.after)
			}
		})
	}
}

func size(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(info.Size())
}

// malformed sends messages that make no sense over the vehicle's own broker.
func (c *car) malformed() {
	c.run(`set -e
for topic in selfupdate/desiredstate selfupdate/desiredstate/command; do
	mosquitto_pub -q 1 -t $topic -l <<'EOF'
{"activityId":"broken-1"
{"activityId":"broken-2","payload":{"domains":7,"command":["DOWNLOAD"]}}
{"activityId":"broken-3","payload":{"domains":[{"id":"self-update"}],"command":"EXPLODE"}}
{"payload":{}}
[[[[
EOF
done`)
	for range 2 {
		_, err := c.bus.Await(c.within(shortTime), "broken-3", "IDENTIFICATION_FAILED")
		c.must(err)
	}
	answers := map[string]int{}
	for _, f := range c.bus.Heard {
		if f.Status == "IDENTIFICATION_FAILED" && f.Message != "" {
			answers[f.ActivityID]++
		}
	}
	if diff := cmp.Diff(map[string]int{"broken-1": 2, "broken-2": 2, "broken-3": 2}, answers); diff != "" {
		c.t.Errorf("answers (-want +got):\n%s", diff)
	}
	for _, topic := range []string{"selfupdate/desiredstate", "selfupdate/desiredstate/command"} {
		if n := c.run("journalctl -b -u self-update-agent | grep -c 'topic=" + topic + " '"); strings.TrimSpace(n) != "2" {
			c.t.Errorf("%s lines in the log name %s, expected 2", strings.TrimSpace(n), topic)
		}
	}
}

// dyingServer fetches a bundle from a server that dies at 60 % and comes back, and activates it.
func (c *car) dyingServer(o *origin, bundle, version string) {
	info, err := os.Stat(bundle)
	c.must(err)
	size := info.Size()
	url := o.offer("dying", file{path: bundle, dieAt: size * 6 / 10})
	ctx := c.within(updateTime)
	c.must(c.bus.Request(ctx, "dying", version, url))
	_, err = c.bus.Await(ctx, "dying", "IDENTIFIED")
	c.must(err)
	c.must(c.bus.Command(ctx, "dying", "DOWNLOAD"))
	select {
	case <-o.died:
	case <-ctx.Done():
		c.t.Fatal("the download never came to 60 %")
	}
	outage := 5 * time.Second
	if long {
		outage = 30 * time.Second
	}
	back := time.After(outage)
	time.Sleep(2 * time.Second)
	var kept int64
	fmt.Sscan(c.run("stat -c %s /data/selfupdates/bundle.raucb.part"), &kept)
	<-back
	c.must(o.restart())
	f, err := c.bus.Await(ctx, "dying", "DOWNLOAD_SUCCESS", "DOWNLOAD_FAILURE")
	c.must(err)
	if f.Failed() {
		c.t.Fatal(f.Detail())
	}
	asked := o.requests("dying")
	if len(asked) != 2 || kept < size/2 || asked[1].from() != kept || asked[1].sent != size-kept {
		c.t.Errorf("of %d bytes the vehicle had %d when the server died; its requests: %+v", size, kept, asked)
	}
	for _, command := range []string{"UPDATE", "ACTIVATE"} {
		if f, err := c.bus.Step(ctx, "dying", command); err != nil || f.Failed() {
			c.t.Fatalf("%s: %s: %s (%v)", command, f.Status, f.Detail(), err)
		}
	}
}

// panics starts the slot that dyingServer has activated.
func (c *car) panics() {
	// The five seconds before a reset are for readers.
	c.run("rauc-helper env set SDV_ARGS=panic=1")
	c.reboot()
	for range 3 {
		c.grub("SDV_B (first)")
		_, err := c.vm.WaitFor(c.within(bootTime), `Kernel panic - not syncing: [^\r\n]*`)
		c.must(err)
		c.took("kernel panic")
		c.next()
	}
	c.grub("SDV_A (fallback)")
	s := c.up("SDV_A", "1")
	if s.Reason != "fallback" || s.LastFailure.Slot != "SDV_B" {
		c.t.Errorf("status: %+v", s)
	}
	c.expect("reason", c.rolledBack("dying"), "SDV_B", "started 3 times", "panic")
}

// noRanges looks at how the bundle has been fetched from a server that knows no ranges and breaks off once.
func (c *car) noRanges(o *origin, bundle string) {
	info, err := os.Stat(bundle)
	c.must(err)
	asked := o.requests("range")
	if len(asked) != 2 || asked[1].from() == 0 || asked[1].sent != info.Size() {
		c.t.Errorf("a bundle of %d bytes; requests: %+v", info.Size(), asked)
	}
}

// fallsBack reboots into a slot that is given up, and comes back.
func (c *car) fallsBack(id, why string) {
	c.reboot()
	c.grub("SDV_B (first)")
	c.next()
	c.grub("SDV_A (fallback)")
	s := c.up("SDV_A", "1")
	if s.LastFailure.Slot != "SDV_B" || !strings.Contains(s.LastFailure.Reason, why) {
		c.t.Errorf("status: %+v", s)
	}
	c.expect("reason", c.rolledBack(id), "SDV_B", why)
}

// freezes reboots into a slot whose init stops: the watchdog resets the vehicle until its attempts are used up.
func (c *car) freezes(id string) {
	c.reboot()
	for range 3 {
		c.grub("SDV_B (first)")
		_, err := c.vm.WaitFor(c.within(bootTime), `freeze\.service`)
		c.must(err)
		c.next()
	}
	c.grub("SDV_A (fallback)")
	c.up("SDV_A", "1")
	c.expect("reason", c.rolledBack(id), "SDV_B", "started 3 times", "hang")
}

// updated checks what the vehicle says after the tutorial.
func (c *car) updated(s status) {
	if s.Reason != "first" || s.Next != "SDV_B" || s.LastFailure.Slot != "" || len(s.Slots) < 2 || s.Slots[1].Version != "2" || s.Slots[1].State != "good" {
		c.t.Errorf("status: %+v", s)
	}
	c.expect("rauc status", c.run("rauc status"), "Booted from: rootfs.1 (SDV_B)", "Activated: rootfs.1 (SDV_B)", "boot status: good")
	c.expect("journal", c.run("journalctl --no-pager -b -u sdvbox-confirm"), "SDV_B is on trial, 2 of 3 attempts left", "SDV_B is confirmed")
}

// byHand installs an update to slot B, and then forces the vehicle to boot the other slot as the documentation says.
func (c *car) byHand(id, version, url string) {
	c.activated(id, version, url)
	if next := c.status().Next; next != "SDV_B" {
		c.t.Errorf("next after the activation: %s", next)
	}
	c.run("rauc-helper mark active booted")
	if next := c.status().Next; next != "SDV_A" {
		c.t.Errorf("next after that was taken back: %s", next)
	}
	c.run("rauc status mark-bad booted")
	c.run("rauc status mark-active other")
	c.command("reboot now")
	c.next()
	c.grub("SDV_B (first)")
	if s := c.up("SDV_B", version); len(s.Slots) == 0 || s.Slots[0].State != "bad" {
		c.t.Errorf("status: %+v", s)
	}
	c.cleanup(id, "COMPLETE", "Self-update agent has activated the new OS image.")
}

// rescued checks what the rescue system says.
func (c *car) rescued() {
	_, err := c.vm.WaitFor(c.within(bootTime), `sdvbox: starting the rescue system \(exhausted\)[\s\S]*==== RESCUE SYSTEM ====[\s\S]*no slot could be started[\s\S]*rescue:~# `)
	c.must(err)
	c.took("rescue system ready")
	c.expect("report", c.run("rescue report"), "SDV_A", "SDV_B", "bad", "rescue install")
}

// reinstall destroys both slots and has the rescue system bring one back.
func (c *car) reinstall(url string) {
	for _, label := range []string{"root_a", "root_b"} {
		c.run("dd if=/dev/zero of=/dev/disk/by-partlabel/" + label + " bs=1M count=4 conv=fsync")
	}
	out, err := c.vm.Run(c.within(updateTime), "rescue install --slot a "+url)
	c.must(err)
	c.expect("rescue install", out, "SDV_A holds version 2 and boots next")
	c.command("reboot")
	c.next()
	c.grub("SDV_A (first)")
	c.up("SDV_A", "2")
}
