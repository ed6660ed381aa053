// SPDX-License-Identifier: Apache-2.0

package vehicle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sdvbox/platform/bootenv"
	"sdvbox/platform/slots"
)

// grubTest replaces grub.cfg: it calls the real choice for many environments and says what would be started.
const grubTest = `
serial --unit=0 --speed=115200
terminal_output serial
function sdv_start {
  echo "CASE $case start $1 $2" $sdv_trial $SDV_ARGS
  if [ "$broken" = "$1" -o "$broken" = both ]; then return 1; fi
}
function sdv_rescue { echo "CASE $case rescue $1"; }
function auto {
  set case=$1
  set broken=$2
  set sdv_dir="(hd0,gpt2)/$1"
  sdv_auto
}
function manual {
  set case=$1
  set broken=none
  set sdv_dir="(hd0,gpt2)/$1"
  sdv_manual $2
}
source $prefix/sdvbox.cfg
`

// grubCase is one environment, what happens with it, and what must come of it.
type grubCase struct {
	copies [2][]byte // nil: no such file
	broken string    // slot whose kernel cannot be loaded, "both" or "none"
	manual string    // slot chosen by a technician
	full   bool      // save_env cannot add a variable: nothing can be saved
}

// load returns the environment as everything but the boot loader reads it.
func load(t *testing.T, copies [2][]byte) (*bootenv.Vars, slots.State, bool) {
	t.Helper()
	dir := t.TempDir()
	for i, block := range copies {
		if block == nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, []string{"grubenv", "grubenv2"}[i]), block, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	store, err := bootenv.Open("grub:" + filepath.Join(dir, "grubenv"))
	if err != nil {
		t.Fatal(err)
	}
	vars, err := store.Load()
	if errors.Is(err, bootenv.ErrInvalid) {
		return nil, slots.State{}, false
	} else if err != nil {
		t.Fatal(err)
	}
	state, err := slots.Decode(vars, bootenv.GRUB)
	if err != nil {
		t.Fatal(err)
	}
	return vars, state, true
}

// want is the model: the lines that the script must print and the state it must leave behind.
func (c grubCase) want(t *testing.T) (events []string, after slots.State) {
	vars, s, ok := load(t, c.copies)
	start := func(slot, reason string) bool {
		words := []string{"start", slot, reason}
		if slot != s.Good && reason != "unsaved" {
			words = append(words, "sdvbox.trial=1")
		}
		if vars != nil {
			words = append(words, strings.Fields(vars.Get("SDV_ARGS"))...)
		}
		events = append(events, strings.Join(words, " "))
		return c.broken != slot && c.broken != "both"
	}
	rescue := func(reason string) { events = append(events, "rescue "+reason) }
	count := func(slot string) {
		if !c.full {
			s.Slots[slot] = slots.Slot{OK: s.Slots[slot].OK, Tries: min(s.Slots[slot].Tries+1, slots.MaxTries)}
		}
	}
	if c.manual != "" {
		if ok && !c.full {
			count(c.manual)
			start(c.manual, "manual")
		} else {
			start(c.manual, "unsaved")
		}
		return events, s
	}
	if !ok {
		rescue("unreadable")
		return events, s
	}
	reason := "first"
	for _, slot := range s.Order {
		if s.Left(slot) > 0 {
			if c.full {
				if good, ok := s.Slots[s.Good]; !ok || good != (slots.Slot{OK: true}) || !start(s.Good, "unsaved") {
					rescue("unsaved")
				}
				return events, s
			}
			count(slot)
			if start(slot, reason) {
				return events, s
			}
		}
		reason = "fallback"
	}
	rescue("exhausted")
	return events, s
}

// atomic reports whether save_env can write to both copies, so that it need not touch the current one.
func (c grubCase) atomic(t *testing.T) bool {
	for _, block := range c.copies {
		if _, err := bootenv.ParseGrub(block); err != nil || len(block) != 1024 {
			return false
		}
	}
	_, _, ok := load(t, c.copies)
	return ok && !c.full
}

// keptIn reports whether one of the copies still is the environment from before.
func (c grubCase) keptIn(t *testing.T, copies [2][]byte) bool {
	before, _, _ := load(t, c.copies)
	for i := range copies {
		alone := [2][]byte{}
		alone[i] = c.copies[i]
		if vars, _, ok := load(t, alone); ok && vars.Equal(before) && bytes.Equal(copies[i], c.copies[i]) {
			return true
		}
	}
	return false
}

// block is an environment block with vars, numbered seq and end; an empty number is left out.
func block(t *testing.T, seq, end string, vars ...string) []byte {
	t.Helper()
	var v bootenv.Vars
	if seq != "" {
		v.Set("SDV_SEQ", seq)
	}
	for _, kv := range vars {
		k, value, _ := strings.Cut(kv, "=")
		v.Set(k, value)
	}
	if end != "" {
		v.Set("SDV_END", end)
	}
	b, err := bootenv.FormatGrub(&v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// torn is a block as bootenv leaves it when the power fails between its two sectors.
func torn(b []byte) []byte {
	b = slices.Clone(b)
	copy(b, bytes.Repeat([]byte("#"), 512))
	return b
}

func grubCases(t *testing.T) []grubCase {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	vars := func() []string {
		var v []string
		if o := pick("SDV_A SDV_B", "SDV_B SDV_A", "SDV_A", "SDV_B", "SDV_B SDV_B", "", "other SDV_B", "-"); o != "-" {
			v = append(v, "ORDER="+o)
		}
		for _, s := range slots.Names {
			if ok := pick("1", "1", "1", "0", "", "yes", "-"); ok != "-" {
				v = append(v, s+"_OK="+ok)
			}
			if try := pick("0", "0", "1", "2", "2", "3", "4", "", "x", "-"); try != "-" {
				v = append(v, s+"_TRY="+try)
			}
		}
		if good := pick("SDV_A", "SDV_B", "other", "-"); good != "-" {
			v = append(v, "SDV_GOOD="+good)
		}
		if r.IntN(3) == 0 {
			v = append(v, "SDV_WHY=SDV_B broker: said \\\"no\" $HOME; "+strings.Repeat("w", 60))
		}
		if r.IntN(5) == 0 {
			v = append(v, "SDV_ARGS=init=/sbin/lean quiet")
		}
		// Must not reach the boot loader's own variables.
		return append(v, "prefix=(hd9)/nowhere", "sdv_dir=/nowhere")
	}
	factory := []string{"ORDER=SDV_A SDV_B", "SDV_A_OK=1", "SDV_A_TRY=0", "SDV_B_OK=1", "SDV_B_TRY=0", "SDV_GOOD=SDV_A"}
	full := func(vars ...string) [2][]byte {
		b := block(t, "", "", append(vars, "filler=")...)
		space := bytes.Count(b, []byte("#")) - 2 // those of the two comment lines
		b = block(t, "", "", append(vars, "filler="+strings.Repeat("f", space))...)
		return [2][]byte{b, b}
	}
	one := block(t, "1", "1", factory...)
	two := block(t, "2", "2", append(slices.Clone(factory), "ORDER=SDV_B SDV_A")...)
	cases := []grubCase{
		{},
		{copies: [2][]byte{one, one}},
		{copies: [2][]byte{one, two}},
		{copies: [2][]byte{two, one}},
		{copies: [2][]byte{one, nil}},
		{copies: [2][]byte{nil, two}},
		{copies: [2][]byte{torn(one), two}},
		{copies: [2][]byte{one, torn(two)}},
		{copies: [2][]byte{torn(one), torn(two)}},
		{copies: [2][]byte{{}, two}},
		{copies: [2][]byte{one, {}}},
		{copies: [2][]byte{{}, {}}},
		{copies: [2][]byte{make([]byte, 1024), make([]byte, 1024)}},
		{copies: [2][]byte{one[:600], one[:700]}, full: false},
		{copies: [2][]byte{block(t, "3", "3", factory...), block(t, "0", "0", "SDV_A_OK=0")}},
		{copies: [2][]byte{block(t, "0", "0", factory...), block(t, "3", "3", "SDV_A_OK=0")}},
		{copies: [2][]byte{block(t, "0", "0", factory...), block(t, "2", "2", "SDV_A_OK=0")}},
		{copies: [2][]byte{block(t, "1", "", factory...), block(t, "", "1", factory...)}},
		{copies: [2][]byte{block(t, "4", "4", factory...), block(t, "10", "10", factory...)}},
		{copies: [2][]byte{block(t, "", ""), block(t, "", "")}},
		{copies: [2][]byte{block(t, "", "", "SDV_A_OK=0"), one}},
		{copies: [2][]byte{one, block(t, "", "", "SDV_A_OK=0")}},
		{copies: full(factory...), full: true},
		{copies: full(factory...), full: true, broken: "SDV_A"},
		{copies: full("ORDER=SDV_B SDV_A", "SDV_GOOD=SDV_A"), full: true},
		{copies: full("SDV_GOOD=SDV_A", "SDV_A_TRY=1"), full: true},
		{copies: full("SDV_GOOD=SDV_A", "SDV_A_OK=0"), full: true},
		{copies: full("SDV_A_OK=1"), full: true},
		{copies: full("SDV_A_OK=0", "SDV_B_TRY=3"), full: true},
		{manual: "SDV_B"},
		{copies: [2][]byte{one, one}, manual: "SDV_B"},
		{copies: [2][]byte{one, block(t, "2", "2", "SDV_B_OK=0", "SDV_B_TRY=3")}, manual: "SDV_B"},
		{copies: full(factory...), full: true, manual: "SDV_A"},
	}
	for range 200 {
		seq := r.IntN(4)
		number := func(n int) (string, string) {
			s := fmt.Sprint(n % 4)
			return s, pick(s, s, s, s, s, fmt.Sprint((n+1)%4), "")
		}
		var c grubCase
		s, e := number(seq)
		c.copies[0] = block(t, s, e, vars()...)
		s, e = number(seq + r.IntN(3) + 3)
		c.copies[1] = block(t, s, e, vars()...)
		if n := r.IntN(10); n < 2 {
			c.copies[n] = torn(c.copies[n])
		}
		c.broken = pick("none", "none", "none", "SDV_A", "SDV_B", "both")
		cases = append(cases, c)
	}
	for i := range cases {
		if cases[i].broken == "" {
			cases[i].broken = "none"
		}
	}
	return cases
}

// One boot of GRUB judges all environments, and saves into them.
func TestGRUBChoosesAsTheModelSays(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cases := grubCases(t)
	var script strings.Builder
	script.WriteString(grubTest)
	files := map[string]string{}
	for i, c := range cases {
		dir := fmt.Sprintf("%03d", i)
		for j, name := range []string{"grubenv", "grubenv2"} {
			if c.copies[j] != nil {
				files[dir+"/"+name] = string(c.copies[j])
			} else {
				files[dir+"/none"] = ""
			}
		}
		if c.manual != "" {
			fmt.Fprintf(&script, "manual %s %s\n", dir, c.manual)
		} else {
			fmt.Fprintf(&script, "auto %s %s\n", dir, c.broken)
		}
	}
	script.WriteString("echo ALL DONE\nhalt\n")

	disk, grubenv := grubDisk(t, files, script.String())
	vm, err := Start(ctx, Machine{Disk: disk, Memory: 256})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill()
	if _, err := vm.WaitFor(ctx, "ALL DONE"); err != nil {
		t.Fatal(err)
	}
	if err := vm.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for line := range strings.Lines(vm.Output()) {
		if _, rest, ok := strings.Cut(line, "CASE "); ok {
			dir, event, _ := strings.Cut(strings.TrimSpace(rest), " ")
			got[dir] = append(got[dir], event)
		}
	}
	after := filepath.Join(t.TempDir(), "after")
	if err := errors.Join(os.Mkdir(after, 0o755), run(ctx, "mcopy", "-s", "-n", "-i", mtools(disk, grubenv), "::*", after)); err != nil {
		t.Fatal(err)
	}
	for i, c := range cases {
		dir := fmt.Sprintf("%03d", i)
		events, state := c.want(t)
		var copies [2][]byte
		for j, name := range []string{"grubenv", "grubenv2"} {
			if copies[j], err = os.ReadFile(filepath.Join(after, dir, name)); errors.Is(err, os.ErrNotExist) {
				copies[j] = nil
			} else if err != nil {
				t.Fatal(err)
			}
		}
		_, left, _ := load(t, copies)
		if c.atomic(t) && len(events) == 1 && !c.keptIn(t, copies) {
			t.Errorf("case %s: the one save has replaced the copy that was current", dir)
		}
		if !slices.Equal(got[dir], events) || !sameState(left, state) {
			t.Errorf("case %s, broken %s:\n got %q\nwant %q\n got %+v\nwant %+v\ncopies:\n%s\n%s", dir, c.broken, got[dir], events, left, state,
				readable(c.copies[0]), readable(c.copies[1]))
		}
	}
	t.Logf("%d environments in %.1f s", len(cases), time.Since(vm.Started).Seconds())
}

// grubDisk returns a disk without slots and rescue system. A script, if there is one, replaces grub.cfg.
func grubDisk(t *testing.T, env map[string]string, script string) (disk string, grubenv Partition) {
	t.Helper()
	need(t, "qemu-system-x86_64", "grub-mkimage", "sgdisk", "mkfs.vfat", "mcopy")
	ctx := t.Context()
	l, err := ReadLayout("../../wks/qemux86-64.wks", map[string]int64{"root_a": 1 << 20, "root_b": 1 << 20, "data": 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if grubenv, err = l.Partition("grubenv"); err != nil {
		t.Fatal(err)
	}
	var d Disk
	if script != "" {
		d.ESP = map[string]string{"grub/grub.cfg": script}
	}
	disk = filepath.Join(t.TempDir(), "disk.img")
	err = errors.Join(l.format(ctx, disk), builder(t).fillBoot(ctx, disk, l, d), makeFAT(ctx, disk, grubenv, env))
	if err != nil {
		t.Fatal(err)
	}
	return disk, grubenv
}

// A technician gets a choice. With nothing left to start, GRUB says so on both consoles and stops: it does not start all over.
func TestGRUBObeysAndGivesUpAloud(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	env, err := envFiles(nil)
	if err != nil {
		t.Fatal(err)
	}
	disk, grubenv := grubDisk(t, env, "")
	vm, err := Start(ctx, Machine{Disk: disk, Memory: 256})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill()
	for _, prompt := range []string{"ESC for a choice", "seconds: automatic", "seconds: SDV_A"} {
		if _, err := vm.WaitFor(ctx, prompt); err != nil {
			t.Fatal(err)
		}
		if err := vm.Type("\x1b"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := vm.WaitFor(ctx, `(?s)starting SDV_B \(manual\).*kernel of SDV_B cannot be loaded.*starting SDV_A \(first\)`); err != nil {
		t.Fatal(err)
	}
	// OVMF shows its console on the serial port, too.
	const last = `NO SLOT AND NO RESCUE SYSTEM CAN BE STARTED \(exhausted\)`
	if _, err := vm.WaitFor(ctx, `(?s)kernel of SDV_A cannot.*starting SDV_B \(fallback\).*`+last+`.*`+last); err != nil {
		t.Fatal(err)
	}
	vm.Kill()
	var copies [2][]byte
	for i, name := range []string{"grubenv", "grubenv2"} {
		if copies[i], err = GetFAT(ctx, disk, grubenv, name); err != nil {
			t.Fatal(err)
		}
	}
	if _, s, _ := load(t, copies); s.Slots["SDV_A"].Tries != 1 || s.Slots["SDV_B"].Tries != 2 {
		t.Errorf("starts are not counted, one of slot A and two of slot B: %+v", s.Slots)
	}
}

// A line that never falls silent does not keep the vehicle from starting.
func TestNoiseDoesNotKeepGRUBFromStarting(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	env, err := envFiles(nil)
	if err != nil {
		t.Fatal(err)
	}
	disk, _ := grubDisk(t, env, "")
	vm, err := Start(ctx, Machine{Disk: disk, Memory: 256})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill()
	if _, err := vm.WaitFor(ctx, "ESC for a choice"); err != nil {
		t.Fatal(err)
	}
	go func() {
		for ctx.Err() == nil && vm.Type("\x1b x\re\x1b[Ac") == nil {
			time.Sleep(100 * time.Millisecond)
		}
	}()
	began := time.Now()
	if _, err := vm.WaitFor(ctx, `seconds: SDV_A[\s\S]*sdvbox: starting `); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("started after %v", took)
	}
}

func sameState(a, b slots.State) bool {
	return slices.Equal(a.Order, b.Order) && maps.Equal(a.Slots, b.Slots) && a.Good == b.Good && a.Why == b.Why
}

func readable(block []byte) string { return strings.TrimRight(string(block), "#\x00") }

// need skips a test for which the host lacks programs, unless it must not be skipped.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := lookPath(p); err == nil {
			continue
		} else if os.Getenv("SDVBOX_REQUIRE") == "1" {
			t.Fatal(err)
		} else {
			t.Skip(err)
		}
	}
}

// builder returns a builder that tells the test what it does.
func builder(t *testing.T) *Builder {
	t.Helper()
	b, err := NewBuilder()
	if err != nil {
		t.Fatal(err)
	}
	b.Logf = t.Logf
	return b
}
