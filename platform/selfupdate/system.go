// SPDX-License-Identifier: Apache-2.0

package selfupdate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"sdvbox/platform/bootenv"
	"sdvbox/platform/osrelease"
	"sdvbox/platform/rauc"
	"sdvbox/platform/slots"
)

// Running is the system that runs now.
type Running struct {
	Version    string // of the OS image
	Slot       string // RAUC's name, such as rootfs.0
	Bootname   string // the boot loader's name
	BootReason string // why the boot loader chose it
	Why        string // why another slot was last given up, with its boot name
}

// Slot is the slot an update is written to.
type Slot struct {
	Name        string // RAUC's name
	Bootname    string
	Class       string
	Version     string // of what is installed
	Intact      bool   // RAUC finished writing it
	Count       uint32 // installations it has seen
	Transaction string // of the last one
	Exhausted   bool   // it was started as often as is allowed without being confirmed
	Loader      string // all that the boot environment says of it, to compare
}

// System is the A/B system under an update: RAUC with its slots and the boot
// environment, or a dummy.
type System interface {
	// Current tells what runs. Beside an error it still returns what is known.
	Current(ctx context.Context) (Running, error)
	// Other returns the slot that the next update goes to.
	Other(ctx context.Context) (Slot, error)
	// Inspect verifies the signature of a bundle and reads its manifest.
	Inspect(ctx context.Context, source string) (rauc.Bundle, error)
	// Install writes a bundle and returns when that has ended.
	Install(ctx context.Context, source, transaction string, progress func(percent int)) error
	// Attach waits for the end of an installation that already runs;
	// rauc.ErrIdle says that there is none.
	Attach(ctx context.Context, progress func(percent int)) error
	// Primary names the slot to boot next.
	Primary(ctx context.Context) (string, error)
	// Activate makes a slot the one to boot next; "booted" is the one that runs.
	Activate(ctx context.Context, slot string) error
	// Reject marks a slot as not bootable.
	Reject(ctx context.Context, slot string) error
	// Confirmed reports whether the running slot has passed its trial.
	Confirmed(ctx context.Context) (bool, error)
	// BootID names this boot of the kernel.
	BootID() (string, error)
}

// RAUCSystem is the System of a vehicle.
type RAUCSystem struct {
	Address  string        // of the D-Bus; "" is the system bus
	Patience time.Duration // how long a RAUC that does not answer is waited for
	BootEnv  string        // where the boot environment is, as bootenv.Open takes it
	Root     string        // where /etc and /proc are, for tests; "" is /
	Source   rauc.SourceOptions

	mu      sync.Mutex
	client  *rauc.Client
	running Running // the slot part of it cannot change while the system runs
}

// dial returns a client whose RAUC answers. Several calls may wait at once.
func (s *RAUCSystem) dial(ctx context.Context) (*rauc.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, s.Patience)
	defer cancel()
	for {
		c, err := s.connect(ctx)
		if err == nil {
			err = c.Available(ctx)
		}
		if err == nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("RAUC does not answer: %w", err)
		case <-time.After(time.Second):
		}
	}
}

// connect returns the one client there is; it finds a restarted bus by itself.
func (s *RAUCSystem) connect(ctx context.Context) (*rauc.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		c, err := rauc.Dial(ctx, s.Address)
		if err != nil {
			return nil, err
		}
		s.client = c
	}
	return s.client, nil
}

// Current asks RAUC and the boot environment. What it found once about the
// booted slot it does not ask again, since RAUC does not answer while it
// installs.
func (s *RAUCSystem) Current(ctx context.Context) (Running, error) {
	s.mu.Lock()
	now := s.running
	s.mu.Unlock()
	if data, err := os.ReadFile(s.Root + "/proc/cmdline"); err == nil {
		if name, reason := slots.Booted(string(data)); name != "" {
			now.Bootname, now.BootReason = name, reason
		}
	}
	if st, _, err := s.state(); err == nil {
		now.Why = st.Why
	}
	if now.Slot != "" {
		return now, nil
	}
	booted, _, err := s.slots(ctx)
	if err != nil {
		now.Version = s.release()
		return now, err
	}
	now.Slot, now.Version = booted.Name, booted.Version
	now.Bootname = cmp.Or(booted.Bootname, now.Bootname)
	if now.Version == "" { // a slot that was flashed in the factory
		now.Version = s.release()
	}
	s.mu.Lock()
	s.running = now
	s.mu.Unlock()
	return now, nil
}

// slots returns the booted slot and the other one of its class.
func (s *RAUCSystem) slots(ctx context.Context) (booted rauc.Slot, other *rauc.Slot, err error) {
	c, err := s.dial(ctx)
	if err != nil {
		return booted, nil, err
	}
	all, err := c.Slots(ctx)
	if err != nil {
		return booted, nil, err
	}
	i := slices.IndexFunc(all, func(r rauc.Slot) bool { return r.State == "booted" })
	if i < 0 {
		return booted, nil, errors.New("RAUC names no slot as booted")
	}
	booted = all[i]
	for _, r := range all {
		if r.Class == booted.Class && r.Name != booted.Name && r.Bootname != "" && r.Parent == "" {
			if other != nil {
				return booted, nil, fmt.Errorf("RAUC has more than two slots of class %q: cannot tell which one an update goes to", booted.Class)
			}
			other = &r
		}
	}
	return booted, other, nil
}

// release is the version that os-release names, for a system RAUC has not
// installed.
func (s *RAUCSystem) release() string {
	v, err := osrelease.Version(cmp.Or(s.Root, "/"))
	if err != nil || v == "" {
		return "bundle_version_not_available"
	}
	return v
}

func (s *RAUCSystem) Other(ctx context.Context) (Slot, error) {
	_, other, err := s.slots(ctx)
	if err != nil {
		return Slot{}, err
	}
	if other == nil {
		return Slot{}, errors.New("RAUC has no second slot to install to")
	}
	slot := Slot{
		Name: other.Name, Bootname: other.Bootname, Class: other.Class, Version: other.Version,
		Intact: other.Status == "ok", Count: other.Installed.Count, Transaction: other.Installed.Transaction,
	}
	if st, _, err := s.state(); err == nil {
		b, known := st.Slots[other.Bootname]
		slot.Exhausted = known && b.OK && st.Left(other.Bootname) == 0
		first := len(st.Order) > 0 && st.Order[0] == other.Bootname
		slot.Loader = fmt.Sprintf("first=%t ok=%t tries=%d why=%s", first, b.OK, b.Tries, st.Why)
	}
	return slot, nil
}

func (s *RAUCSystem) Inspect(ctx context.Context, source string) (rauc.Bundle, error) {
	c, err := s.dial(ctx)
	if err != nil {
		return rauc.Bundle{}, err
	}
	b, err := c.Inspect(ctx, source, s.Source)
	if err != nil {
		return b, err
	}
	// Later this would cost a slot its bootability before it fails.
	if want, err := c.Compatible(ctx); err == nil && want != b.Compatible {
		return b, fmt.Errorf("the bundle is for %q, this vehicle is %q (compatible mismatch)", b.Compatible, want)
	}
	return b, nil
}

func (s *RAUCSystem) Install(ctx context.Context, source, transaction string, progress func(int)) error {
	c, err := s.dial(ctx)
	if err != nil {
		return err
	}
	return c.Install(ctx, source, rauc.InstallOptions{TransactionID: transaction, SourceOptions: s.Source},
		func(percent int, _ string) { progress(percent) })
}

func (s *RAUCSystem) Attach(ctx context.Context, progress func(int)) error {
	c, err := s.dial(ctx)
	if err != nil {
		return err
	}
	return c.Wait(ctx, func(percent int, _ string) { progress(percent) })
}

func (s *RAUCSystem) Activate(ctx context.Context, slot string) error {
	return s.mark(ctx, "active", slot)
}

func (s *RAUCSystem) Reject(ctx context.Context, slot string) error {
	return s.mark(ctx, "bad", slot)
}

func (s *RAUCSystem) mark(ctx context.Context, state, slot string) error {
	c, err := s.dial(ctx)
	if err != nil {
		return err
	}
	_, _, err = c.Mark(ctx, state, slot)
	return err
}

// Confirmed believes the boot environment; a vehicle whose boot loader keeps
// no SDV_GOOD has RAUC's word.
func (s *RAUCSystem) Confirmed(ctx context.Context) (bool, error) {
	now, err := s.Current(ctx)
	if err != nil {
		return false, err
	}
	if st, known, err := s.state(); err == nil && known {
		return !st.OnTrial(now.Bootname), nil
	}
	booted, _, err := s.slots(ctx)
	return err == nil && booted.BootStatus == "good", err
}

// state reads the boot environment; known says whether it tells which slot was
// confirmed, be it none.
func (s *RAUCSystem) state() (st slots.State, known bool, err error) {
	store, err := bootenv.Open(s.BootEnv)
	if err != nil {
		return st, false, err
	}
	vars, err := store.Load()
	if err != nil {
		return st, false, err
	}
	st, err = slots.Decode(vars, store.Kind())
	return st, slots.KeepsGood(vars), err
}

func (s *RAUCSystem) BootID() (string, error) {
	id, err := os.ReadFile(s.Root + "/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

func (s *RAUCSystem) Primary(ctx context.Context) (string, error) {
	c, err := s.dial(ctx)
	if err != nil {
		return "", err
	}
	return c.Primary(ctx)
}
