// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
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
	share    float64       // of the length of the phase, after which the power is cut
	after    time.Duration // since the phase began
	progress string        // last feedback before
	late     bool          // the phase had ended
	slot     string        // that booted after the cut, with what
	version  string
	back     time.Duration // until it had judged its boot
	end      string        // terminal status of the activity
	runs     string        // version at the end
	err      error
}

type results []result

// campaign updates a vehicle back and forth and kills QEMU n times: in each update once, or in each of so many phases once.
func (l *lab) campaign(ctx context.Context, n, each int, seed uint64) (results, error) {
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
		length: [phaseCount]time.Duration{5 * time.Second, 5 * time.Second, 500 * time.Millisecond, 12 * time.Second},
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
	for len(all) < n {
		rs, err := c.update(len(all), min(each, n-len(all)))
		all = append(all, rs...)
		for _, r := range rs {
			l.logf("cut %d: %s", r.number, r)
		}
		if err != nil {
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
		return all, fmt.Errorf("%d updates with %d cuts have failed", failures, each)
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
	current string  // version that runs
	target  string  // version that shall
	first   *result // cut of its first boot that is to come, or nil
	length  [phaseCount]time.Duration
	vm      *vehicle.VM
	driver  *ota.Driver
	ends    []string // terminal statuses heard of the activity
	last    string   // feedback heard last
	heard   func(ota.Feedback)
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
		if c.heard != nil {
			c.heard(f)
		}
		switch f.Status {
		case updateproto.StatusComplete, updateproto.StatusCompleted, updateproto.StatusIncomplete, updateproto.StatusIdentificationFailed:
			c.ends = append(c.ends, f.Status)
		}
	}
	return nil
}

// boot switches the vehicle on and waits until it can be updated.
func (c *campaign) boot() (booted, error) {
	began := time.Now()
	if err := c.start(); err != nil {
		return booted{}, err
	}
	b, err := watch(c.ctx, c.vm)
	if err != nil {
		return b, err
	}
	c.length[inConfirm] = time.Since(began)
	return b, c.connect()
}

// update makes one update with n cuts, each in another phase.
func (c *campaign) update(first, n int) (results, error) {
	cuts := make(results, n)
	for i := range cuts {
		number := first + i
		cuts[i] = result{
			number: number,
			// One phase after the other, in the next round of updates the other way.
			phase: (number + number/phaseCount) % phaseCount,
			// A quarter longer than the phase: the moment between success and the next command counts, too.
			share: 1.25 * c.rng.Float64(),
		}
	}
	c.ends = nil
	c.target = newVersion
	if c.current == newVersion {
		c.target = oldVersion
	}
	err := c.run(cuts)
	if err != nil {
		cuts[n-1].err = err
		return cuts, err
	}
	c.current = c.target
	return cuts, nil
}

// in is the cut in a phase, or nil.
func (rs results) in(phase int) *result {
	for i := range rs {
		if rs[i].phase == phase {
			return &rs[i]
		}
	}
	return nil
}

func (c *campaign) run(cuts results) error {
	c.first = cuts.in(inConfirm)
	id := fmt.Sprintf("cut-%d", cuts[0].number)
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Minute)
	defer cancel()
	if err := unless(c.driver.Update(ctx, id, c.target, c.bundle(c.target))); err != nil {
		return fmt.Errorf("desired state: %w", err)
	}
	for p, command := range []string{updateproto.CommandDownload, updateproto.CommandUpdate, updateproto.CommandActivate} {
		began := time.Now()
		r := cuts.in(p)
		if r == nil {
			if err := c.step(ctx, id, command); err != nil {
				return err
			}
			c.length[p] = time.Since(began)
			continue
		}
		until, cancel := context.WithTimeout(ctx, time.Duration(r.share*float64(c.length[p])))
		// A machine may be faster than it was in the phases before.
		c.heard = func(f ota.Feedback) {
			if p := f.Progress(); p > 0 && float64(p) >= 100*r.share {
				cancel()
			}
		}
		err := c.step(until, id, command)
		c.heard = nil
		if until.Err() == nil && err != nil {
			cancel()
			return err
		}
		cancel()
		r.after, r.progress, r.late = time.Since(began), c.last, err == nil
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
	if running != c.target {
		if err := c.reboot(); err != nil {
			return err
		}
	}
	if err := c.step(ctx, id, updateproto.CommandCleanup); err != nil {
		return err
	}
	return c.check(ctx, cuts)
}

// step sends a command and waits for its success.
func (c *campaign) step(ctx context.Context, id, command string) error {
	if err := unless(c.driver.Step(ctx, id, command)); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

// reboot starts the new version for the first time.
func (c *campaign) reboot() error {
	c.driver.Close()
	c.driver = nil
	if err := reset(c.ctx, c.vm); err != nil {
		return err
	}
	if c.first != nil {
		return c.cutFirst()
	}
	_, err := c.boot()
	return err
}

// cutFirst starts the new version and cuts its first boot.
func (c *campaign) cutFirst() error {
	r := c.first
	c.first = nil
	began := time.Now()
	if err := c.start(); err != nil {
		return err
	}
	until, cancel := context.WithTimeout(c.ctx, time.Duration(r.share*float64(c.length[inConfirm])))
	defer cancel()
	r.progress = "firmware, GRUB"
	for _, m := range bootMarks {
		if _, err := c.vm.WaitFor(until, m.text); err != nil {
			break
		}
		r.progress, r.late = m.name, m.share == 1
		// A machine may be faster than it was in the boots before.
		if m.share >= r.share {
			break
		}
	}
	if r.share > 1 {
		<-until.Done()
	}
	if c.ctx.Err() != nil {
		return c.ctx.Err()
	}
	r.after = time.Since(began)
	return c.cut(r)
}

// bootMarks are what a boot shows on the serial port, with the shares of its length, as measured without KVM.
var bootMarks = []struct {
	text  string
	share float64
	name  string
}{
	{"starting SDV_", 0.4, "kernel"}, {"VEHICLE-READY", 0.8, "services start"}, {"VEHICLE-CONFIRM", 1, "confirmed"},
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
	if c.first != nil && v.version == c.target { // it was switched to before the cut
		first := c.first
		err := c.cutFirst()
		r.slot, r.version, r.back = first.slot, first.version, first.back
		return err
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
func (c *campaign) check(ctx context.Context, cuts results) error {
	runs, err := c.driver.Version(ctx)
	if err != nil {
		return err
	}
	if len(c.ends) != 1 {
		return fmt.Errorf("%d terminal statuses: %q", len(c.ends), c.ends)
	}
	if c.first != nil {
		return errors.New("the first boot has not been cut")
	}
	for i := range cuts {
		cuts[i].end, cuts[i].runs = c.ends[0], runs
	}
	if c.ends[0] != updateproto.StatusComplete || runs != c.target {
		return fmt.Errorf("the update to version %s has ended with %s, version %s runs", c.target, c.ends[0], runs)
	}
	v, err := c.judge()
	if err != nil {
		return err
	}
	if len(v.faults) > 0 || v.version != c.target {
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
