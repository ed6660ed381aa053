// SPDX-License-Identifier: Apache-2.0

package slots

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sdvbox/platform/bootenv"
)

// vars makes an environment from words KEY=VALUE, with '_' for a blank in ORDER lists written as "SDV_A,SDV_B".
func vars(text string) *bootenv.Vars {
	v := new(bootenv.Vars)
	for word := range strings.FieldsSeq(text) {
		key, value, _ := strings.Cut(word, "=")
		v.Set(key, strings.ReplaceAll(value, ",", " "))
	}
	return v
}

func text(v *bootenv.Vars) string {
	var words []string
	for _, k := range v.Keys() {
		words = append(words, k+"="+strings.ReplaceAll(v.Get(k), " ", ","))
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

// short writes a state as "SDV_A+0 SDV_B-0 good=SDV_A": order, OK or not, tries.
func short(s State) string {
	var words []string
	for _, n := range s.Order {
		sign := "-"
		if s.Slots[n].OK {
			sign = "+"
		}
		words = append(words, fmt.Sprintf("%s%s%d", n, sign, s.Slots[n].Tries))
	}
	if s.Good != "" {
		words = append(words, "good="+s.Good)
	}
	return strings.Join(words, " ")
}

func TestDecodeIsAsTolerantAsTheBootScript(t *testing.T) {
	const both = "SDV_A_OK=1 SDV_A_TRY=0 SDV_B_OK=1 SDV_B_TRY=0 "
	for _, test := range []struct{ name, env, want string }{
		{"nothing", "", "SDV_A+0 SDV_B+0"},
		{"complete", both + "ORDER=SDV_B,SDV_A SDV_GOOD=SDV_A", "SDV_B+0 SDV_A+0 good=SDV_A"},
		{"counting", both + "ORDER=SDV_A,SDV_B SDV_A_TRY=2 SDV_B_TRY=3", "SDV_A+2 SDV_B+3"},
		{"bad", both + "ORDER=SDV_A,SDV_B SDV_A_OK=0", "SDV_A-0 SDV_B+0"},
		{"half an order", both + "ORDER=SDV_B", "SDV_B+0 SDV_A+0"},
		{"empty order", both + "ORDER=", "SDV_A+0 SDV_B+0"},
		{"order with a repeated name", both + "ORDER=SDV_B,SDV_B,SDV_A", "SDV_B+0 SDV_A+0"},
		{"foreign name in order", both + "ORDER=SDV_R,SDV_B,SDV_A SDV_R_OK=1", "SDV_B+0 SDV_A+0"},
		{"variables of one slot missing", "ORDER=SDV_A,SDV_B SDV_A_OK=0 SDV_A_TRY=1", "SDV_A-1 SDV_B+0"},
		{"senseless flag", both + "ORDER=SDV_A,SDV_B SDV_A_OK=yes", "SDV_A-0 SDV_B+0"},
		{"senseless counter", both + "ORDER=SDV_A,SDV_B SDV_A_TRY=01 SDV_B_TRY=-1", "SDV_A+3 SDV_B+3"},
		{"empty counter", both + "ORDER=SDV_A,SDV_B SDV_A_TRY=", "SDV_A+3 SDV_B+0"},
		{"no order, variables the other way round", "SDV_B_OK=1 SDV_A_OK=1", "SDV_A+0 SDV_B+0"},
		{"counter too high", both + "ORDER=SDV_A,SDV_B SDV_A_TRY=9", "SDV_A+3 SDV_B+0"},
		{"only other names", "ORDER=B,A A_OK=1 A_TRY=1 B_OK=0", "B-0 A+1"},
	} {
		s, err := Decode(vars(test.env), bootenv.GRUB)
		if got := short(s); got != test.want || err != nil {
			t.Errorf("%s: %s, %v; want %s", test.name, got, err, test.want)
		}
	}
}

func TestDecodeOfUBootTakesAnUnlistedSlotAsBad(t *testing.T) {
	const both = "BOOT_SDV_A_LEFT=3 BOOT_SDV_B_LEFT=3 "
	for _, test := range []struct{ name, env, want string }{
		{"nothing", "", "SDV_A+0 SDV_B+0"},
		{"complete", both + "BOOT_ORDER=SDV_B,SDV_A", "SDV_B+0 SDV_A+0"},
		{"counting", "BOOT_ORDER=SDV_A,SDV_B BOOT_SDV_A_LEFT=1 BOOT_SDV_B_LEFT=0", "SDV_A+2 SDV_B+3"},
		{"hexadecimal", "BOOT_ORDER=SDV_A,SDV_B BOOT_SDV_A_LEFT=a BOOT_SDV_B_LEFT=0x3", "SDV_A+0 SDV_B+3"},
		{"as RAUC marks bad", "BOOT_ORDER=SDV_A BOOT_SDV_A_LEFT=3 BOOT_SDV_B_LEFT=0", "SDV_A+0 SDV_B-0"},
		{"cut between two writes of RAUC", "BOOT_ORDER=SDV_A BOOT_SDV_A_LEFT=3 BOOT_SDV_B_LEFT=3", "SDV_A+0 SDV_B-0"},
		{"both bad", "BOOT_ORDER= BOOT_SDV_A_LEFT=0 BOOT_SDV_B_LEFT=0", "SDV_A+3 SDV_B+3"},
		{"only foreign names", both + "BOOT_ORDER=SDV_R", "SDV_A+0 SDV_B+0"},
		{"other names", "BOOT_ORDER=system1,system0 BOOT_system0_LEFT=2", "system1+0 system0+1"},
	} {
		s, err := Decode(vars(test.env), bootenv.UBoot)
		if got := short(s); got != test.want || err != nil {
			t.Errorf("%s: %s, %v; want %s", test.name, got, err, test.want)
		}
	}
	if _, err := Decode(vars(""), 7); err == nil {
		t.Error("an unknown kind of environment was decoded")
	}
}

func TestEncodeWritesTheVariablesOfRAUC(t *testing.T) {
	s := New("SDV_A", "SDV_B")
	s.MarkGood("SDV_A")
	s.SetPrimary("SDV_B")
	s.Boot()
	for _, test := range []struct {
		kind bootenv.Kind
		want string
	}{
		{bootenv.GRUB, "ORDER=SDV_B,SDV_A SDV_A_OK=1 SDV_A_TRY=0 SDV_B_OK=1 SDV_B_TRY=1 SDV_GOOD=SDV_A other=x"},
		{bootenv.UBoot, "BOOT_ORDER=SDV_B,SDV_A BOOT_SDV_A_LEFT=3 BOOT_SDV_B_LEFT=2 SDV_GOOD=SDV_A other=x"},
	} {
		v := vars("other=x SDV_WHY=SDV_B,old")
		s.Encode(v, test.kind)
		if got := text(v); got != test.want {
			t.Errorf("%v: %s\nwant %s", test.kind, got, test.want)
		}
	}
	s.MarkBad("SDV_A", "")
	s.MarkBad("SDV_B", "no broker")
	v := new(bootenv.Vars)
	s.Encode(v, bootenv.UBoot)
	// Never an empty BOOT_ORDER: U-Boot would take its default and boot slots that were declared bad.
	want := "BOOT_ORDER=SDV_B,SDV_A BOOT_SDV_A_LEFT=0 BOOT_SDV_B_LEFT=0 SDV_GOOD=none SDV_WHY=SDV_B,no,broker"
	if got := text(v); got != want {
		t.Errorf("both bad: %s\nwant %s", got, want)
	}
}

func TestTriesRunOutAndFallBackThenRescue(t *testing.T) {
	s := New("SDV_A", "SDV_B")
	s.MarkGood("SDV_A")
	s.SetPrimary("SDV_B")
	var got []string
	for range 8 {
		name, _ := s.Boot()
		got = append(got, name)
	}
	want := []string{"SDV_B", "SDV_B", "SDV_B", "SDV_A", "SDV_A", "SDV_A", "", ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("boots (-want +got):\n%s", diff)
	}
}

func TestMarkingChangesWhatBootsNext(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(*State)
		want string
		next string
	}{
		{"good", func(s *State) { s.MarkGood("SDV_B") }, "SDV_A+1 SDV_B+0 good=SDV_B", "SDV_A"},
		{"refresh", func(s *State) { s.Refresh("SDV_B") }, "SDV_A+1 SDV_B+0 good=SDV_A", "SDV_A"},
		{"bad", func(s *State) { s.MarkBad("SDV_B", "x") }, "SDV_A+1 SDV_B-0 good=SDV_A", "SDV_A"},
		{"confirmed one bad", func(s *State) { s.MarkBad("SDV_A", "x") }, "SDV_A-0 SDV_B+2", "SDV_B"},
		{"confirmed one written", func(s *State) { s.MarkBad("SDV_A", ""); s.SetPrimary("SDV_A") }, "SDV_A+0 SDV_B+2", "SDV_A"},
		{"confirmed one bad by foreign tools", func(s *State) { s.Slots["SDV_A"] = Slot{}; s.SetPrimary("SDV_A") }, "SDV_A+0 SDV_B+2", "SDV_A"},
		{"confirmed one bad, then good", func(s *State) { s.MarkBad("SDV_A", ""); s.MarkGood("SDV_A") }, "SDV_A+0 SDV_B+2 good=SDV_A", "SDV_A"},
		{"confirmed one primary", func(s *State) { s.SetPrimary("SDV_A") }, "SDV_A+0 SDV_B+2 good=SDV_A", "SDV_A"},
		{"blamed", func(s *State) { s.Blame("SDV_A", "x") }, "SDV_A+1 SDV_B+2 good=SDV_A", "SDV_A"},
		{"both bad", func(s *State) { s.MarkBad("SDV_A", ""); s.MarkBad("SDV_B", "") }, "SDV_A-0 SDV_B-0", ""},
		{"primary", func(s *State) { s.SetPrimary("SDV_B") }, "SDV_B+0 SDV_A+1 good=SDV_A", "SDV_B"},
		{"primary after bad", func(s *State) { s.MarkBad("SDV_B", ""); s.SetPrimary("SDV_B") }, "SDV_B+0 SDV_A+1 good=SDV_A", "SDV_B"},
		{"unknown", func(s *State) { s.MarkGood("x"); s.MarkBad("x", "x"); s.SetPrimary("x") }, "SDV_A+1 SDV_B+2 good=SDV_A", "SDV_A"},
	} {
		s := New("SDV_A", "SDV_B")
		s.Slots["SDV_A"], s.Slots["SDV_B"] = Slot{true, 1}, Slot{true, 2}
		s.Good = "SDV_A"
		test.do(&s)
		next, _ := s.Next()
		if got := short(s); got != test.want || next != test.next {
			t.Errorf("%s: %s, next %q; want %s, next %q", test.name, got, next, test.want, test.next)
		}
	}
}

func TestReasonStaysUntilItsSlotGetsAnotherChance(t *testing.T) {
	s := New("SDV_A", "SDV_B")
	s.MarkBad("SDV_B", " gate broker:\n\tconnection refused \x1b[31m ü "+strings.Repeat("x", 200))
	slot, reason := s.Reason()
	if want := "gate broker: connection refused [31m ? xxx"; slot != "SDV_B" || !strings.HasPrefix(reason, want) || len(reason) != maxReason {
		t.Errorf("reason of %s: %q (%d bytes)", slot, reason, len(reason))
	}
	s.MarkBad("SDV_B", "")
	s.MarkGood("SDV_A")
	if got, _ := s.Reason(); got != "SDV_B" {
		t.Error("marking the other slot good, or this one bad once more, has lost the reason")
	}
	s.SetPrimary("SDV_B")
	if s.Why != "" {
		t.Errorf("a new trial of SDV_B begins with the old reason %q", s.Why)
	}
}

func TestBootedReadsTheKernelCommandLine(t *testing.T) {
	for _, test := range []struct{ line, name, reason string }{
		{"root=PARTLABEL=root_a rauc.slot=SDV_A sdvbox.boot=first quiet\n", "SDV_A", "first"},
		{"sdvbox.boot=fallback rauc.slot=SDV_B", "SDV_B", "fallback"},
		{"rauc.slot=SDV_A rauc.slot=SDV_B", "SDV_A", ""},
		{"rauc.external sdvbox.boot=exhausted", "", "exhausted"},
		{"rauc.slot=SDV_A rauc.external", "", "external"},
		{"nfsroot=x xrauc.slot=SDV_A", "", ""},
	} {
		if name, reason := Booted(test.line); name != test.name || reason != test.reason {
			t.Errorf("%q: %q, %q; want %q, %q", test.line, name, reason, test.name, test.reason)
		}
	}
}

func TestTrialIsReadFromTheKernelCommandLine(t *testing.T) {
	for line, want := range map[string]bool{
		"rauc.slot=SDV_B sdvbox.boot=first sdvbox.trial=1 quiet\n": true,
		"rauc.slot=SDV_B sdvbox.boot=first\n":                      false,
		"rauc.slot=SDV_B sdvbox.trial=10 xsdvbox.trial=1":          false,
	} {
		if got := Trial(line); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
}

func TestConfirmationOfNoneIsKeptApartFromNoWordOfIt(t *testing.T) {
	for _, kind := range []bootenv.Kind{bootenv.GRUB, bootenv.UBoot} {
		v := vars("SDV_A_OK=1 BOOT_ORDER=SDV_A,SDV_B")
		if KeepsGood(v) {
			t.Errorf("%v: an environment of foreign tools says what was confirmed", kind)
		}
		New(Names[:]...).Encode(v, kind)
		if s, err := Decode(v, kind); err != nil || s.Good != "" || !KeepsGood(v) {
			t.Errorf("%v: confirmed %q, %v", kind, s.Good, err)
		}
	}
}

// TestNoSequenceOfOperationsLosesABootableSlot lets an update client, the confirmation and the boot loader act in any order
// and checks what must hold after each step, also after a way through either environment.
func TestNoSequenceOfOperationsLosesABootableSlot(t *testing.T) {
	for _, kind := range []bootenv.Kind{bootenv.GRUB, bootenv.UBoot} {
		for seed := range uint64(500) {
			r := rand.New(rand.NewPCG(seed, uint64(kind)))
			s := New(Names[:]...)
			var log []string
			for range 40 {
				name := Names[r.IntN(2)]
				before := State{Order: s.Order, Slots: maps.Clone(s.Slots), Good: s.Good, Why: s.Why}
				op := []string{"boot", "good", "bad", "primary", "refresh"}[r.IntN(5)]
				log = append(log, op+" "+name)
				switch op {
				case "boot":
					want, ok := s.Next()
					if got, booted := s.Boot(); got != want || booted != ok {
						t.Fatalf("seed %d, %v: booted %q, announced %q", seed, log, got, want)
					}
					if ok && s.Left(want) != before.Left(want)-1 {
						t.Fatalf("seed %d, %v: start of %s was not counted", seed, log, want)
					}
				case "good":
					s.MarkGood(name)
				case "bad":
					s.MarkBad(name, "reason")
				case "primary":
					s.SetPrimary(name)
				case "refresh":
					s.Refresh(name)
				}
				if op != "boot" && op != "bad" && s.Left(name) != MaxTries {
					t.Fatalf("seed %d, %v: %s has %d tries left", seed, log, name, s.Left(name))
				}
				if !before.Slots[s.Good].OK && !(op == "good" && s.Good == name) && s.Good != "" {
					t.Fatalf("seed %d, %v: %s counts as confirmed after it was bad", seed, log, s.Good)
				}
				if op == "bad" && s.Good == name {
					t.Fatalf("seed %d, %v: %s is bad and counts as confirmed", seed, log, name)
				}
				if next, _ := s.Next(); op == "primary" && next != name {
					t.Fatalf("seed %d, %v: next is %q", seed, log, next)
				}
				for _, other := range Names {
					if op != "boot" && other != name && s.Slots[other] != before.Slots[other] {
						t.Fatalf("seed %d, %v: changed %s as well", seed, log, other)
					}
				}
				// The documents' way to the other slot: mark-bad booted, mark-active other, reboot.
				way := State{Order: s.Order, Slots: maps.Clone(s.Slots), Good: s.Good}
				other := Names[0]
				if name == other {
					other = Names[1]
				}
				way.MarkBad(name, "")
				way.SetPrimary(other)
				for range MaxTries {
					if got, ok := way.Boot(); got != other || !ok {
						t.Fatalf("seed %d, %v: switched from %s to %s, but started %q", seed, log, name, other, got)
					}
				}
				if got, ok := way.Boot(); ok {
					t.Fatalf("seed %d, %v: started %s, which was marked bad", seed, log, got)
				}

				next, ok := s.Next()
				if bootable := s.Left(Names[0]) > 0 || s.Left(Names[1]) > 0; ok != bootable || ok && s.Left(next) == 0 {
					t.Fatalf("seed %d, %v: next %q, bootable slot exists: %v", seed, log, next, bootable)
				}

				v := new(bootenv.Vars)
				s.Encode(v, kind)
				d, err := Decode(v, kind)
				if err != nil {
					t.Fatal(err)
				}
				if got, _ := d.Next(); got != next || d.Good != s.Good || d.Why != s.Why || len(d.Order) != 2 {
					t.Fatalf("seed %d, %v: %v read back from %v as %+v", seed, log, s, kind, d)
				}
				for _, n := range Names {
					if d.Left(n) != s.Left(n) {
						t.Fatalf("seed %d, %v: %v read back from %v as %+v", seed, log, s, kind, d)
					}
				}
				if kind == bootenv.GRUB && !d.Equal(s) {
					t.Fatalf("seed %d, %v: %v read back as %v", seed, log, s, d)
				}
			}
		}
	}
}

// FuzzDecode feeds arbitrary values: the model must stay whole, and what it writes must mean the same to the boot loader.
func FuzzDecode(f *testing.F) {
	f.Add("SDV_A SDV_B", "1", "0", "SDV_A", "SDV_B no broker", false)
	f.Add("", "x", "-1", "", "", true)
	f.Add("A B A", "", "0x2", "A", " ", true)
	f.Fuzz(func(t *testing.T, order, ok, try, good, why string, uboot bool) {
		kind, v := bootenv.GRUB, new(bootenv.Vars)
		if uboot {
			kind = bootenv.UBoot
		}
		for key, value := range map[string]string{
			"ORDER": order, "SDV_A_OK": ok, "SDV_B_TRY": try, "x_OK": ok, "_OK": ok,
			"BOOT_ORDER": order, "BOOT_SDV_A_LEFT": try, "BOOT__LEFT": try, "SDV_GOOD": good, "SDV_WHY": why,
		} {
			v.Set(key, value)
		}
		s, err := Decode(v, kind)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Order) != len(s.Slots) || !s.Has("SDV_A") || !s.Has("SDV_B") {
			t.Fatalf("broken state %+v", s)
		}
		next, _ := s.Next()
		s.Encode(v, kind)
		d, _ := Decode(v, kind)
		if again, _ := d.Next(); again != next || !slices.Equal(slices.Sorted(slices.Values(d.Order)), slices.Sorted(slices.Values(s.Order))) {
			t.Fatalf("%+v written and read back is %+v", s, d)
		}
	})
}
