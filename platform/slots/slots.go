// SPDX-License-Identifier: Apache-2.0

// Package slots is the boot logic of an A/B system as a pure model: which slots there are, which may boot, which boots
// next, and what marking one good, bad or primary means. State is read from and written to a boot environment; nothing
// here touches a disk. The GRUB and U-Boot scripts implement Boot; everything else happens in user space.
package slots

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"sdvbox/platform/bootenv"
)

// MaxTries is how often a slot may be started without being confirmed.
const MaxTries = 3

// maxReason bounds what is kept of a reason: the whole environment block of GRUB has 1024 bytes.
const maxReason = 120

// Names are the boot names of a vehicle.
var Names = [...]string{"SDV_A", "SDV_B"}

// Slot is what the boot loader knows of one slot.
type Slot struct {
	OK    bool // may be booted at all
	Tries int  // starts since it was last confirmed, 0 to MaxTries
}

// State is the boot state. Order names every member of Slots exactly once, the preferred slot first.
type State struct {
	Order []string
	Slots map[string]Slot
	Good  string // the slot confirmed last, as long as it has not been declared bad since; "" if there is none
	Why   string // "<slot> <reason>": why a slot was last given up
}

// New returns the state of a vehicle as it leaves the factory: every slot bootable, none confirmed.
func New(names ...string) State {
	s := State{Order: names, Slots: make(map[string]Slot, len(names))}
	for _, n := range names {
		s.Slots[n] = Slot{OK: true}
	}
	return s
}

// Decode reads the state from a boot environment. It is as tolerant as the boot scripts are: a missing variable has its
// default (bootable, no tries), a value that makes no sense counts as "do not boot", and Order is completed. An environment
// that speaks of SDV_A or SDV_B has these two slots and no other, as foreign names mean nothing to the boot scripts; one
// that has only other names has those.
//
// GRUB has ORDER, <name>_OK and <name>_TRY, which counts up. U-Boot has BOOT_ORDER and BOOT_<name>_LEFT, which counts down
// and is hexadecimal. Both have SDV_GOOD and SDV_WHY.
func Decode(v *bootenv.Vars, k bootenv.Kind) (State, error) {
	switch k {
	case bootenv.GRUB:
		return decodeGRUB(v), nil
	case bootenv.UBoot:
		return decodeUBoot(v), nil
	}
	return State{}, fmt.Errorf("cannot decode boot state: unknown kind %d of boot environment", k)
}

// Encode writes the state into a boot environment and leaves all other variables alone.
func (s State) Encode(v *bootenv.Vars, k bootenv.Kind) {
	if k == bootenv.UBoot {
		s.encodeUBoot(v)
	} else {
		s.encodeGRUB(v)
	}
	v.Set("SDV_GOOD", cmp.Or(s.Good, none))
	if s.Why == "" {
		v.Delete("SDV_WHY")
	} else {
		v.Set("SDV_WHY", s.Why)
	}
}

// none is SDV_GOOD where no slot is confirmed. It tells an environment in which confirmations are kept from one of foreign
// tools, and U-Boot has no empty variables.
const none = "none"

// KeepsGood reports whether an environment says which slot was confirmed, or that none was.
func KeepsGood(v *bootenv.Vars) bool { return v.Get("SDV_GOOD") != "" }

func decodeGRUB(v *bootenv.Vars) State {
	order := strings.Fields(v.Get("ORDER"))
	s := newState(v, order, "", "_OK", "_TRY")
	for name := range s.Slots {
		slot := Slot{OK: true}
		if v.Has(name + "_OK") {
			slot.OK = v.Get(name+"_OK") == "1"
		}
		if v.Has(name + "_TRY") {
			// The script counts by comparing strings: what is not 0, 1 or 2 is used up.
			slot.Tries = MaxTries
			for n := range MaxTries {
				if v.Get(name+"_TRY") == strconv.Itoa(n) {
					slot.Tries = n
				}
			}
		}
		s.Slots[name] = slot
	}
	return s
}

func (s State) encodeGRUB(v *bootenv.Vars) {
	v.Set("ORDER", strings.Join(s.Order, " "))
	for _, name := range s.Order {
		slot := s.Slots[name]
		ok := "0"
		if slot.OK {
			ok = "1"
		}
		v.Set(name+"_OK", ok)
		v.Set(name+"_TRY", strconv.Itoa(slot.Tries))
	}
}

// decodeUBoot takes a slot that is missing from BOOT_ORDER as bad, since that is how RAUC marks one.
func decodeUBoot(v *bootenv.Vars) State {
	order := strings.Fields(v.Get("BOOT_ORDER"))
	s := newState(v, order, "BOOT_", "_LEFT")
	listed := len(order) == 0 || !slices.ContainsFunc(order, func(n string) bool { _, ok := s.Slots[n]; return ok })
	for name := range s.Slots {
		left := uint64(MaxTries)
		if key := "BOOT_" + name + "_LEFT"; v.Has(key) {
			var err error
			if left, err = strconv.ParseUint(v.Get(key), 16, 32); err != nil {
				left = 0
			}
		}
		slot := Slot{OK: listed || slices.Contains(order, name)}
		if slot.OK {
			slot.Tries = MaxTries - int(min(left, MaxTries))
		}
		s.Slots[name] = slot
	}
	return s
}

func (s State) encodeUBoot(v *bootenv.Vars) {
	var order []string
	for _, name := range s.Order {
		slot := s.Slots[name]
		left := 0
		if slot.OK {
			order = append(order, name)
			left = MaxTries - slot.Tries
		}
		v.Set("BOOT_"+name+"_LEFT", strconv.FormatInt(int64(left), 16))
	}
	if order == nil {
		// U-Boot deletes an empty variable and would then try its default order; no slot has attempts left anyway.
		order = s.Order
	}
	v.Set("BOOT_ORDER", strings.Join(order, " "))
}

// newState finds the slots of an environment: those in order and those with a variable prefix+name+suffix.
func newState(v *bootenv.Vars, order []string, prefix string, suffixes ...string) State {
	var named []string
	for _, key := range v.Keys() {
		for _, suffix := range suffixes {
			name, ok := strings.CutPrefix(key, prefix)
			if !ok {
				continue
			}
			if name, ok = strings.CutSuffix(name, suffix); ok && name != "" {
				named = append(named, name)
			}
		}
	}
	found := slices.Concat(order, named)
	if len(found) == 0 || slices.ContainsFunc(found, isName) {
		found = slices.DeleteFunc(slices.Concat(order, Names[:]), func(n string) bool { return !isName(n) })
	}
	s := State{Slots: make(map[string]Slot), Good: v.Get("SDV_GOOD"), Why: v.Get("SDV_WHY")}
	if s.Good == none {
		s.Good = ""
	}
	for _, name := range found {
		if !s.Has(name) {
			s.Order = append(s.Order, name)
			s.Slots[name] = Slot{}
		}
	}
	return s
}

func isName(name string) bool { return slices.Contains(Names[:], name) }

// Equal reports whether two states are the same.
func (s State) Equal(t State) bool {
	return slices.Equal(s.Order, t.Order) && maps.Equal(s.Slots, t.Slots) && s.Good == t.Good && s.Why == t.Why
}

// Left returns how many more starts the named slot has: none when it is bad or unknown.
func (s State) Left(name string) int {
	if slot := s.Slots[name]; slot.OK {
		return max(0, MaxTries-slot.Tries)
	}
	return 0
}

// Next returns the slot that the boot loader would choose now; !ok means the rescue system.
func (s State) Next() (name string, ok bool) {
	for _, name := range s.Order {
		if s.Left(name) > 0 {
			return name, true
		}
	}
	return "", false
}

// Boot does what the boot script does: it chooses the next slot and counts the start. !ok means the rescue system.
func (s *State) Boot() (name string, ok bool) {
	name, ok = s.Next()
	if ok {
		slot := s.Slots[name]
		slot.Tries++
		s.Slots[name] = slot
	}
	return name, ok
}

// Alternative returns the slot that would boot if the named one could not.
func (s State) Alternative(name string) (other string, ok bool) {
	for _, n := range s.Order {
		if n != name && s.Left(n) > 0 {
			return n, true
		}
	}
	return "", false
}

// OnTrial reports whether the booted slot still has to prove itself.
func (s State) OnTrial(booted string) bool { return booted != s.Good }

// Has reports whether name is one of the slots. The methods that change a slot ignore names that are not.
func (s State) Has(name string) bool {
	_, ok := s.Slots[name]
	return ok
}

// Refresh makes a slot bootable with all its tries, without a claim about its health: one that was bad may have been written
// since, so it has to prove itself again.
func (s *State) Refresh(name string) {
	if !s.Has(name) {
		return
	}
	if !s.Slots[name].OK {
		s.forget(name)
	}
	s.Slots[name] = Slot{OK: true}
	if slot, _ := s.Reason(); slot == name {
		s.Why = ""
	}
}

// MarkGood confirms a slot.
func (s *State) MarkGood(name string) {
	s.Refresh(name)
	if s.Has(name) {
		s.Good = name
	}
}

// MarkBad makes sure a slot is not booted until it is marked otherwise. With a reason it also records why. RAUC marks a slot
// bad before it writes to it, so that the slot was confirmed means nothing from now on.
func (s *State) MarkBad(name, why string) {
	if !s.Has(name) {
		return
	}
	s.Slots[name] = Slot{}
	s.forget(name)
	s.Blame(name, why)
}

// Blame records why a slot was given up, if there is a reason, and leaves the slot as it is.
func (s *State) Blame(name, why string) {
	if why = clean(why); why != "" && s.Has(name) {
		s.Why = name + " " + why
	}
}

// forget makes sure that the slot does not count as confirmed.
func (s *State) forget(name string) {
	if s.Good == name {
		s.Good = ""
	}
}

// SetPrimary makes a slot bootable and the first choice.
func (s *State) SetPrimary(name string) {
	s.Refresh(name)
	if !s.Has(name) {
		return
	}
	s.Order = append([]string{name}, slices.DeleteFunc(slices.Clone(s.Order), func(n string) bool { return n == name })...)
}

// Reason splits Why.
func (s State) Reason() (slot, reason string) {
	slot, reason, _ = strings.Cut(s.Why, " ")
	return slot, reason
}

// clean makes a reason fit for a boot environment: one short line of printable ASCII.
func clean(why string) string {
	why = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		switch {
		case r < ' ' || r == 0x7f:
			return ' '
		case r > 0x7f:
			return '?'
		}
		return r
	}, why)), " ")
	return why[:min(len(why), maxReason)]
}

// Booted reads from a kernel command line which slot it started and why the boot loader chose it: "first", "fallback" or
// "unsaved" (the environment could not be written). In the rescue system there is no slot; the reason is "exhausted",
// "unreadable" or, when the boot loader gave none, "external".
func Booted(cmdline string) (name, reason string) {
	external := false
	for _, arg := range strings.Fields(cmdline) {
		key, value, _ := strings.Cut(arg, "=")
		switch {
		case key == "rauc.slot" && name == "":
			name = value
		case key == "rauc.external":
			external = true
		case key == "sdvbox.boot" && reason == "":
			reason = value
		}
	}
	if external {
		// RAUC, too, gives rauc.external precedence.
		name = ""
		if reason == "" {
			reason = "external"
		}
	}
	return name, reason
}

// Trial reports whether the boot loader says that it has started, and counted, a slot that is not the confirmed one. Where
// the environment cannot be read, only the command line tells.
func Trial(cmdline string) bool { return slices.Contains(strings.Fields(cmdline), "sdvbox.trial=1") }
