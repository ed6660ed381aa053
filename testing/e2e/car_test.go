// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sdvbox/testing/ota"
	"sdvbox/testing/vehicle"
)

// What a loaded machine without KVM may take.
const (
	bootTime   = 3 * time.Minute
	updateTime = 5 * time.Minute
	shortTime  = time.Minute
)

// car is a vehicle that lives through a story; t is the step of the story that is being told.
type car struct {
	t       *testing.T
	dir     string
	disk    string
	env     vehicle.Partition // with the boot environment
	watched bool              // has a hardware watchdog
	second  string            // another disk, with tests
	vm      *vehicle.VM
	bus     *ota.Driver // by which one domain is driven, as a technician
	fleet   *ota.Driver // by which the vehicle is
	born    time.Time
	boots   int
	log     []string // how long each boot took
}

// status is the part of "rauc-helper status --output json" that is looked at.
type status struct {
	Booted      string `json:"booted"`
	Reason      string `json:"boot_reason"`
	OnTrial     bool   `json:"on_trial"`
	Next        string `json:"next"`
	Good        string `json:"good"`
	LastFailure struct {
		Slot   string `json:"slot"`
		Reason string `json:"reason"`
	} `json:"last_failure"`
	Environment struct {
		Store string `json:"store"`
		Error string `json:"error"`
	} `json:"environment"`
	RAUC struct {
		Reachable  bool   `json:"reachable"`
		Compatible string `json:"compatible"`
	} `json:"rauc"`
	Slots []struct {
		Bootname     string `json:"bootname"`
		Name         string `json:"name"`
		Booted       bool   `json:"booted"`
		State        string `json:"state"`
		AttemptsLeft int    `json:"attempts_left"`
		Version      string `json:"version"`
	} `json:"slots"`
}

// newCar makes a vehicle with a disk of its own.
func newCar(t *testing.T, p parts) *car {
	t.Helper()
	c := &car{t: t, dir: t.TempDir(), born: time.Now()}
	c.disk = filepath.Join(c.dir, "disk.img")
	c.must(vehicle.CopyDisk(c.disk, p.factory))
	var err error
	c.env, err = p.layout.Partition("grubenv")
	c.must(err)
	t.Cleanup(func() {
		for _, line := range c.log {
			t.Log(line)
		}
		t.Logf("%d boots in %.0f s", c.boots, time.Since(c.born).Seconds())
		if c.vm == nil {
			return
		}
		if t.Failed() {
			c.explain(t)
		}
		c.close()
		if c.fleet != nil {
			c.fleet.Close()
		}
		c.vm.Kill()
	})
	return c
}

// step tells one step of the story. What comes after a step that failed makes no sense.
func (c *car) step(name string, f func()) {
	outer := c.t
	outer.Helper()
	ok := outer.Run(name, func(t *testing.T) {
		c.t = t
		defer func() { c.t = outer }()
		f()
	})
	if !ok {
		outer.FailNow()
	}
}

// explain shows what the vehicle knows about a failure.
func (c *car) explain(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := c.vm.Run(ctx, "journalctl --no-pager -b -o short-monotonic -n 150 -u update-manager -u self-update-agent -u container-agent -u containerd -u sdvbox-confirm -u rauc -u mosquitto; update-manager status; update-manager history; rauc-helper status; kanto-cm list; systemctl --no-pager --failed list-units; systemctl --no-pager list-jobs")
	t.Logf("the vehicle says (%v):\n%s", err, out)
	for _, name := range []string{"grubenv", "grubenv2"} {
		env, err := vehicle.GetFAT(ctx, c.disk, c.env, name)
		t.Logf("%s (%v):\n%s", name, err, strings.TrimRight(string(env), "#"))
	}
}

// within returns the context for one thing that must not take longer.
func (c *car) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(c.t.Context(), d)
	c.t.Cleanup(cancel)
	return ctx
}

func (c *car) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// run runs a command in the vehicle and returns what it prints, without colours.
func (c *car) run(command string) string {
	c.t.Helper()
	out, err := c.vm.Run(c.within(shortTime), command)
	c.must(err)
	return regexp.MustCompile(`\x1b\[[0-9;]*m`).ReplaceAllString(out, "")
}

// expect checks that a text has all the parts.
func (c *car) expect(what, text string, parts ...string) {
	c.t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			c.t.Errorf("%s: no %q in:\n%s", what, p, text)
		}
	}
}

// status asks the vehicle; the exit code, which tells what runs, does not matter here.
func (c *car) status() status {
	c.t.Helper()
	out, err := c.vm.Run(c.within(shortTime), "rauc-helper status --output json")
	if exit := (*vehicle.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		c.t.Fatal(err)
	}
	var s status
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &s); err != nil {
		c.t.Fatalf("rauc-helper status: %v in:\n%s", err, out)
	}
	return s
}

// start switches the vehicle on.
func (c *car) start() {
	c.t.Helper()
	m := vehicle.Machine{Disk: c.disk, Log: filepath.Join(c.dir, "serial.log"), Watchdog: c.watched}
	if c.second != "" {
		m.Args = []string{"-drive", "if=none,id=second,format=raw,file=" + c.second, "-device", "nvme,drive=second,serial=second"}
	}
	vm, err := vehicle.Start(c.within(bootTime), m)
	c.must(err)
	c.vm = vm
	c.boots++
}

func (c *car) close() {
	if c.bus != nil {
		c.bus.Close()
		c.bus = nil
	}
}

// next waits until the vehicle has reset itself, and for how that boot begins.
func (c *car) next() {
	c.t.Helper()
	c.close()
	c.must(c.vm.Wait(c.within(bootTime)))
	c.took("reset")
	vm, err := c.vm.Next(c.within(bootTime))
	c.must(err)
	c.vm = vm
	c.boots++
}

// reboot is what a driver or an update manager does.
func (c *car) reboot() {
	c.t.Helper()
	c.command("systemctl reboot")
	c.next()
}

// command runs what ends the vehicle's shell.
func (c *car) command(line string) {
	c.t.Helper()
	c.run("(sleep 0.5; " + line + ") >/dev/null 2>&1 &")
}

// grub waits for the boot loader's choice.
func (c *car) grub(choice string) {
	c.t.Helper()
	m, err := c.vm.WaitFor(c.within(bootTime), `sdvbox: starting ((?:SDV_\w|the rescue system) \(\w+\))`)
	c.must(err)
	if m[1] != choice {
		c.t.Fatalf("the boot loader starts %q, expected %q", m[1], choice)
	}
	c.took("GRUB starts " + choice)
}

func (c *car) took(what string) {
	c.log = append(c.log, fmt.Sprintf("boot %d: %s after %.1f s", c.boots, what, time.Since(c.vm.Started).Seconds()))
}

// up waits until the boot has come to its end with this version on this slot, and the slot is confirmed.
func (c *car) up(slot, version string) status {
	c.t.Helper()
	ctx := c.within(bootTime)
	got, err := c.vm.WaitReady(ctx)
	c.must(err)
	c.took("version " + got + " ready")
	if got != version {
		c.t.Fatalf("version %s runs, expected %s", got, version)
	}
	c.connect(ctx)
	for {
		s := c.status()
		if s.Booted != slot {
			c.t.Fatalf("%s runs, expected %s: %+v", s.Booted, slot, s)
		}
		if !s.OnTrial && s.Good == slot {
			c.took(slot + " confirmed")
			if v, err := c.bus.Version(ctx); err != nil || v != version {
				c.t.Fatalf("the agent reports version %q, expected %s (%v)", v, version, err)
			}
			return s
		}
		select {
		case <-ctx.Done():
			c.t.Fatalf("%s is not confirmed: %+v\n%s", slot, s, c.run("journalctl --no-pager -b -u sdvbox-confirm"))
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// connect makes the connections to the vehicle's broker.
func (c *car) connect(ctx context.Context) {
	c.t.Helper()
	login, err := c.vm.Bus(ctx, "technician")
	c.must(err)
	c.bus, err = ota.Dial(ctx, "self-update", login)
	c.must(err)
	login, err = c.vm.Bus(ctx, "backend")
	c.must(err)
	if c.fleet == nil {
		c.fleet, err = ota.Dial(ctx, "vehicle", login)
	} else {
		err = c.fleet.Again(ctx, login)
	}
	c.must(err)
}

// update drives an activity through commands and returns the last answer.
func (c *car) update(id, version, url string, commands ...string) ota.Feedback {
	c.t.Helper()
	f, err := c.bus.Update(c.within(updateTime), id, version, url, commands...)
	c.must(err)
	return f
}

// activated drives an activity up to the reboot.
func (c *car) activated(id, version, url string) {
	c.t.Helper()
	if f := c.update(id, version, url, "DOWNLOAD", "UPDATE", "ACTIVATE"); f.Status != "ACTIVATION_SUCCESS" {
		c.t.Fatalf("%s: %s: %s", id, f.Status, f.Detail())
	}
}

// rolledBack is what a manager does that resumes after a reboot: it asks how the activation went, and then cleans up. It
// returns why the new slot was given up.
func (c *car) rolledBack(id string) string {
	c.t.Helper()
	f, err := c.bus.Step(c.within(shortTime), id, "ACTIVATE")
	c.must(err)
	why, ok := strings.CutPrefix(f.Message, "rolled back: ")
	if f.Status != "ACTIVATION_FAILURE" || !ok || f.Detail() != f.Message {
		c.t.Errorf("after the fallback the agent says %s: %q and %q", f.Status, f.Message, f.Detail())
	}
	c.cleanup(id, "INCOMPLETE", f.Message)
	return why
}

// cleanup ends an activity and checks how it ends.
func (c *car) cleanup(id, status, detail string) {
	c.t.Helper()
	f, err := c.bus.Step(c.within(shortTime), id, "CLEANUP")
	c.must(err)
	if f.Status != status || f.Detail() != detail || c.bus.Terminals(id) != 1 {
		c.t.Errorf("activity %s ends with %s: %s (%d terminal statuses)", id, f.Status, f.Detail(), c.bus.Terminals(id))
	}
}

// requireRoot skips what needs root, which "make test" has.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if required {
		t.Fatal("only root can build a vehicle")
	}
	t.Skip("only root can build a vehicle")
}
