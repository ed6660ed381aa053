// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"sdvbox/platform/updateproto"
	"sdvbox/testing/ota"
	"sdvbox/testing/vehicle"
)

// The phases of an update in which the power is cut, in turn.
const (
	inDownload = iota
	inInstall
	inActivate
	inConfirm // the first boot of the new version
	phaseCount
)

var phaseNames = [phaseCount]string{"download", "install", "activate", "first boot"}

// result is what came of one cut.
type result struct {
	number   int
	phase    int
	after    time.Duration // since the phase began
	progress string        // last feedback before
	slot     string        // that booted after the cut, with what
	version  string
	back     time.Duration // until it had judged its boot
	end      string        // terminal status of the activity
	runs     string        // version at the end
	err      error
}

type results []result

// campaign updates a vehicle back and forth, n times, and kills QEMU once in each update.
func (l *lab) campaign(ctx context.Context, n int, seed uint64) (results, error) {
	factory, err := l.factory(ctx, nil)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return nil, err
	}
	disk := filepath.Join(l.dir, "campaign.img")
	defer os.Remove(disk)
	if err := vehicle.CopyDisk(disk, factory); err != nil {
		return nil, err
	}
	c := &campaign{
		lab: l, ctx: ctx, rng: rand.New(rand.NewPCG(seed, 0)), current: oldVersion,
		machine: machine(disk, filepath.Join(l.dir, serialFile)),
		// Measured on two cores without KVM; the campaign goes on to measure.
		length: [phaseCount]time.Duration{5 * time.Second, 10 * time.Second, time.Second, 12 * time.Second},
	}
	defer c.kill()
	if c.intact, err = c.reference(factory); err != nil {
		return nil, err
	}
	if _, err := c.boot(); err != nil {
		return nil, fmt.Errorf("first boot: %w", err)
	}
	var all results
	failures := 0
	for i := range n {
		r := c.update(i)
		all = append(all, r)
		l.logf("cut %d: %s", r.number, r)
		if r.err != nil {
			failures++
			if ctx.Err() != nil {
				break
			}
			// The next cut shall not suffer from this one.
			c.kill()
			if err := vehicle.CopyDisk(disk, factory); err != nil {
				return all, err
			}
			c.current = oldVersion
			if _, err := c.boot(); err != nil {
				return all, err
			}
		}
	}
	if failures > 0 {
		return all, fmt.Errorf("%d of %d cuts have failed", failures, len(all))
	}
	return all, nil
}

// campaign is a vehicle that suffers.
type campaign struct {
	*lab
	ctx     context.Context
	rng     *rand.Rand
	machine vehicle.Machine
	intact  *reference
	current string // version that runs
	length  [phaseCount]time.Duration
	vm      *vehicle.VM
	driver  *ota.Driver
	ends    []string // terminal statuses heard of the activity
	last    string   // feedback heard last
}

func (c *campaign) kill() {
	if c.driver != nil {
		c.driver.Close()
		c.driver = nil
	}
	if c.vm != nil {
		c.vm.Kill()
		c.vm = nil
	}
}

// start switches the vehicle on.
func (c *campaign) start() (err error) {
	c.vm, err = vehicle.Start(c.ctx, c.machine)
	return err
}

// connect waits for the agent of the running vehicle.
func (c *campaign) connect() (err error) {
	if c.driver, err = dial(c.ctx, c.vm); err != nil {
		return err
	}
	c.driver.OnFeedback = func(f ota.Feedback) {
		c.last = fmt.Sprintf("%s %d %%", f.Status, f.Progress())
		switch f.Status {
		case updateproto.StatusComplete, updateproto.StatusCompleted, updateproto.StatusIncomplete, updateproto.StatusIdentificationFailed:
			c.ends = append(c.ends, f.Status)
		}
	}
	return nil
}

// boot switches the vehicle on and waits until it can be updated.
func (c *campaign) boot() (booted, error) {
	if err := c.start(); err != nil {
		return booted{}, err
	}
	b, err := watch(c.ctx, c.vm)
	if err == nil {
		err = c.connect()
	}
	return b, err
}

// update makes one update with one cut.
func (c *campaign) update(number int) result {
	// One phase after the other, in the next round of updates the other way.
	r := result{number: number, phase: (number + number/phaseCount) % phaseCount}
	c.ends = nil
	target := newVersion
	if c.current == newVersion {
		target = oldVersion
	}
	// A quarter longer than the phase: the moment between success and the next command counts, too.
	share := 1.25 * c.rng.Float64()
	if r.err = c.run(&r, target, share); r.err == nil {
		c.current = target
	}
	return r
}

func (c *campaign) run(r *result, target string, share float64) error {
	id := fmt.Sprintf("cut-%d", r.number)
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Minute)
	defer cancel()
	if err := unless(c.driver.Update(ctx, id, target, c.bundle(target))); err != nil {
		return fmt.Errorf("desired state: %w", err)
	}
	for p, command := range []string{updateproto.CommandDownload, updateproto.CommandUpdate, updateproto.CommandActivate} {
		began := time.Now()
		if p != r.phase {
			if err := c.step(ctx, id, command); err != nil {
				return err
			}
			c.length[p] = time.Since(began)
			continue
		}
		until, cancel := context.WithTimeout(ctx, time.Duration(share*float64(c.length[p])))
		err := c.step(until, id, command)
		if until.Err() == nil && err != nil {
			cancel()
			return err
		}
		cancel()
		r.after, r.progress = time.Since(began), c.last
		if err := c.cut(r); err != nil {
			return err
		}
		// The manager finds the agent silent and repeats its command.
		if err := c.step(ctx, id, command); err != nil {
			return err
		}
	}
	running, err := c.driver.Version(ctx)
	if err != nil {
		return err
	}
	if running != target {
		if err := c.reboot(r, share); err != nil {
			return err
		}
	}
	if err := c.step(ctx, id, updateproto.CommandCleanup); err != nil {
		return err
	}
	return c.check(ctx, r, target)
}

// step sends a command and waits for its success.
func (c *campaign) step(ctx context.Context, id, command string) error {
	if err := unless(c.driver.Step(ctx, id, command)); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

// reboot starts the new version for the first time.
func (c *campaign) reboot(r *result, share float64) error {
	c.driver.Close()
	c.driver = nil
	if err := reset(c.ctx, c.vm); err != nil {
		return err
	}
	began := time.Now()
	if err := c.start(); err != nil {
		return err
	}
	if r.phase != inConfirm {
		if _, err := watch(c.ctx, c.vm); err != nil {
			return err
		}
		c.length[inConfirm] = time.Since(began)
		return c.connect()
	}
	select {
	case <-c.ctx.Done():
		return c.ctx.Err()
	case <-time.After(time.Duration(share * float64(c.length[inConfirm]))):
	}
	r.after, r.progress = time.Since(began), bootProgress(c.vm.Output())
	return c.cut(r)
}

// bootProgress says how far a boot has come.
func bootProgress(output string) string {
	for _, p := range []struct{ mark, name string }{
		{"VEHICLE-CONFIRM", "confirmed"}, {"VEHICLE-READY", "services start"}, {"starting SDV_", "kernel"},
	} {
		if bytes.Contains([]byte(output), []byte(p.mark)) {
			return p.name
		}
	}
	return "firmware, GRUB"
}

// cut cuts the power, judges what is left on the disk, and switches the vehicle on again.
func (c *campaign) cut(r *result) error {
	c.kill()
	v, err := c.judge()
	if err != nil {
		return err
	}
	if len(v.faults) > 0 {
		return fmt.Errorf("after the cut: %q", v.faults)
	}
	began := time.Now()
	b, err := c.boot()
	if err != nil {
		return fmt.Errorf("boot after the cut: %w", err)
	}
	r.slot, r.version, r.back = b.slot, b.version, time.Since(began)
	if b.slot != v.boots || b.version != v.version {
		return fmt.Errorf("%s with version %s has booted, expected %s with version %s", b.slot, b.version, v.boots, v.version)
	}
	return nil
}

// reference reads what a cut disk is compared with.
func (c *campaign) reference(disk string) (*reference, error) {
	m, err := openImage(disk)
	if err != nil {
		return nil, err
	}
	defer m.close()
	return newReference(m, c.layout)
}

// judge judges the disk of the vehicle.
func (c *campaign) judge() (*verdict, error) {
	m, err := openImage(c.machine.Disk)
	if err != nil {
		return nil, err
	}
	defer m.close()
	j, err := newJudge(m, c.intact, c.layout, c.images, nil, c.dir)
	if err != nil {
		return nil, err
	}
	return j.judge()
}

// check looks at what the update has come to.
func (c *campaign) check(ctx context.Context, r *result, target string) error {
	var err error
	if r.runs, err = c.driver.Version(ctx); err != nil {
		return err
	}
	if len(c.ends) != 1 {
		return fmt.Errorf("%d terminal statuses: %q", len(c.ends), c.ends)
	}
	if r.end = c.ends[0]; r.end != updateproto.StatusComplete || r.runs != target {
		return fmt.Errorf("the update to version %s has ended with %s, version %s runs", target, r.end, r.runs)
	}
	v, err := c.judge()
	if err != nil {
		return err
	}
	if len(v.faults) > 0 || v.version != target {
		return fmt.Errorf("at the end version %s would boot, faults %q", v.version, v.faults)
	}
	return c.settled(c.machine.Disk, v.boots)
}

func (r result) String() string {
	s := fmt.Sprintf("%s after %.1f s (%s), %s with version %s back after %.1f s, %s with version %s",
		phaseNames[r.phase], r.after.Seconds(), r.progress, r.slot, r.version, r.back.Seconds(), r.end, r.runs)
	if r.err != nil {
		s += fmt.Sprintf(" FAILED: %v", r.err)
	}
	return s
}

// print writes the table.
func (rs results) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "cut\tphase\tafter\tlast seen\tbooted\tafter\tend\truns")
	for _, r := range rs {
		fmt.Fprintf(t, "%d\t%s\t%.1f s\t%s\t%s, version %s\t%.1f s\t%s\tversion %s\n",
			r.number, phaseNames[r.phase], r.after.Seconds(), r.progress, r.slot, r.version, r.back.Seconds(), r.end, r.runs)
	}
	t.Flush()
	for _, r := range rs {
		if r.err != nil {
			fmt.Fprintf(w, "FAILED %d: %v\n", r.number, r.err)
		}
	}
}
