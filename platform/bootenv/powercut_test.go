// SPDX-License-Identifier: Apache-2.0

package bootenv

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// medium is what a disk with a volatile cache holds: the content of files.
type medium map[string][]byte

func readMedium(t *testing.T, paths ...string) medium {
	t.Helper()
	m := make(medium)
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err == nil {
			m[p] = b
		} else if !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	return m
}

// store makes the files of paths what m says.
func (m medium) store(t *testing.T, paths ...string) {
	t.Helper()
	for _, p := range paths {
		err := os.Remove(p)
		if os.IsNotExist(err) {
			err = nil
		}
		if b, ok := m[p]; ok {
			err = os.WriteFile(p, b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (m medium) String() string {
	var b strings.Builder
	for _, p := range []string{"a", "b"} {
		for name, data := range m {
			if strings.HasSuffix(name, p) {
				fmt.Fprintf(&b, "%s: %q\n", filepath.Base(name), bytes.TrimRight(data, "#"))
			}
		}
	}
	return b.String()
}

// apply returns m after a write or a resize.
func (m medium) apply(s step) medium {
	m = maps.Clone(m)
	b := bytes.Clone(m[s.path])
	end := s.off
	if s.op == "write" {
		end = max(s.off+int64(len(s.data)), int64(len(b)))
	}
	if int64(len(b)) < end {
		b = append(b, make([]byte, end-int64(len(b)))...)
	}
	b = b[:end]
	copy(b[s.off:], s.data)
	m[s.path] = b
	return m
}

// sectors splits a write at multiples of 512 bytes.
func sectors(s step) []step {
	if s.op != "write" {
		return []step{s}
	}
	var out []step
	for len(s.data) > 0 {
		n := min(sectorSize-s.off%sectorSize, int64(len(s.data)))
		out = append(out, step{s.path, s.op, s.off, s.data[:n]})
		s.off, s.data = s.off+n, s.data[n:]
	}
	return out
}

// cuts calls visit with every state that a power cut during steps can leave:
// before every step and at the end, with every subset of the sectors since the
// last sync of their file.
func cuts(m medium, steps []step, visit func(medium)) {
	var pending []step
	subsets := func() {
		if len(pending) > 16 {
			panic("too many sectors between two syncs")
		}
		for set := range 1 << len(pending) {
			n := m
			for i, s := range pending {
				if set>>i&1 == 1 {
					n = n.apply(s)
				}
			}
			visit(n)
		}
	}
	subsets()
	for _, s := range steps {
		if s.op != "sync" {
			pending = append(pending, sectors(s)...)
			subsets()
			continue
		}
		var rest []step
		for _, p := range pending {
			if p.path == s.path {
				m = m.apply(p)
			} else {
				rest = append(rest, p)
			}
		}
		pending = rest
	}
	subsets()
}

// distinct calls visit once for every different state that cuts can leave.
func distinct(m medium, steps []step, visit func(medium)) {
	seen := make(map[string]bool)
	cuts(m, steps, func(m medium) {
		if key := fmt.Sprint(map[string][]byte(m)); !seen[key] {
			seen[key] = true
			visit(m)
		}
	})
}

// record runs change on the store that watch belongs to and returns the steps.
func record(t *testing.T, s Store, w *watch, change func(*Vars) error) []step {
	t.Helper()
	var steps []step
	*w = func(st step) { steps = append(steps, st) }
	defer func() { *w = nil }()
	if err := s.Update(change); err != nil {
		t.Fatal(err)
	}
	return steps
}

// bootVars are the variables that the boot script saves.
var bootVars = []string{"ORDER", "SDV_A_OK", "SDV_A_TRY", "SDV_B_OK", "SDV_B_TRY", "SDV_GOOD", "SDV_WHY"}

// text is the content of some variables, of all if no key is given.
func text(v *Vars, keys ...string) string {
	if keys == nil {
		keys = sortedKeys(v)
	}
	var b strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&b, "%s=%q\n", k, v.Get(k))
	}
	return b.String()
}

func others(v *Vars) string {
	v = v.Clone()
	for _, k := range bootVars {
		v.Delete(k)
	}
	return text(v)
}

// script is a model of the boot script: what it reads and what save_env makes
// of the files. It shares no code with the store but the parser.
type script struct {
	this, other string
	vars        *Vars
}

// readScriptCopy is load_env: the variables of a copy that counts, else nil.
func readScriptCopy(block []byte) *Vars {
	v, err := ParseGrub(block)
	if err != nil || v.Get("SDV_SEQ") != v.Get("SDV_END") || !strings.Contains("|0|1|2|3|", "|"+v.Get("SDV_SEQ")+"|") && v.Get("SDV_SEQ") != "" {
		return nil
	}
	return v
}

var successor = map[string]string{"": "0", "0": "1", "1": "2", "2": "3", "3": "0"}

// boot reads the environment, ok is false if the script would go to rescue.
func boot(m medium, first, second string) (s script, ok bool) {
	a, b := readScriptCopy(m[first]), readScriptCopy(m[second])
	useSecond := a == nil
	if a != nil && b != nil {
		as, bs := a.Get("SDV_SEQ"), b.Get("SDV_SEQ")
		useSecond = as == "" && bs != "" || as != "" && bs == successor[as]
	}
	if useSecond {
		return script{second, first, b}, b != nil
	}
	return script{first, second, a}, true
}

// save counts a start of the slot that is next and returns the write of
// save_env: into the other copy as successor, or where save_env refuses that
// one into the current copy under its old number.
func (s script) save(m medium) step {
	slot, _, _ := strings.Cut(s.vars.Get("ORDER"), " ")
	n, _ := strconv.Atoi(s.vars.Get(slot + "_TRY"))
	s.vars.Set(slot+"_TRY", strconv.Itoa((n+1)%10))
	target := s.this
	if bytes.HasPrefix(m[s.other], []byte(grubHeader)) {
		target = s.other
		seq := successor[s.vars.Get("SDV_SEQ")]
		s.vars.Set("SDV_SEQ", seq)
		s.vars.Set("SDV_END", seq)
	}
	block := m[target]
	for _, k := range append([]string{"SDV_SEQ", "SDV_END"}, bootVars...) {
		if s.vars.Has(k) {
			block = envSet(block, k, s.vars.Get(k))
		} else {
			block = envUnset(block, k)
		}
	}
	return step{target, "write", 0, block}
}

// envSet is how GRUB sets a variable: where the first one of that name is, else
// behind the last line; the block keeps its size.
func envSet(block []byte, name, value string) []byte {
	line := []byte(name + "=" + escape.Replace(value) + "\n")
	from, to := envFind(block, name)
	if from < 0 {
		from = len(bytes.TrimRight(block, "#"))
		to = from
	}
	return envReplace(block, from, to, line)
}

func envUnset(block []byte, name string) []byte {
	if from, to := envFind(block, name); from >= 0 {
		return envReplace(block, from, to, nil)
	}
	return block
}

func envFind(block []byte, name string) (from, to int) {
	for from = len(grubHeader); from < len(block); from = to {
		to = from + lineEnd(block[from:]) + 1
		if bytes.HasPrefix(block[from:], []byte(name+"=")) {
			return from, to
		}
	}
	return -1, -1
}

func envReplace(block []byte, from, to int, line []byte) []byte {
	out := append(bytes.Clone(block[:from]), line...)
	out = append(out, block[to:]...)
	out = append(bytes.TrimRight(out, "#"), bytes.Repeat([]byte("#"), len(block))...)
	return out[:len(block)]
}

// load is what the store reads from m.
func load(m medium, first, second string) *Vars {
	c := newer([]*grubCopy{parseCopy(m[first]), parseCopy(m[second])})
	if c == nil {
		return nil
	}
	return c.vars
}

// checkAgrees fails if the store and the boot script read different things.
func checkAgrees(t *testing.T, m medium, first, second string) *Vars {
	t.Helper()
	vars := load(m, first, second)
	s, ok := boot(m, first, second)
	if ok != (vars != nil) || ok && text(vars, bootVars...) != text(s.vars, bootVars...) {
		t.Fatalf("the store reads %v, the boot script %v from\n%v", vars, s.vars, m)
	}
	return vars
}

func initial(extra int) *Vars {
	v := new(Vars)
	set("ORDER", "SDV_A SDV_B", "SDV_A_OK", "1", "SDV_A_TRY", "0", "SDV_B_OK", "1", "SDV_B_TRY", "0",
		"SDV_GOOD", "SDV_A", "SDV_WHY", "")(v)
	for i := range extra {
		v.Set(fmt.Sprintf("extra%d", i), strings.Repeat("x", 30))
	}
	return v
}

// Environments within one sector, with the end of the first sector in each of
// the last lines, and far beyond it.
func sizes() map[string]*Vars {
	m := map[string]*Vars{"small": initial(0), "large": initial(12)}
	for n := range 14 {
		v := initial(0)
		block, _ := formatCopy(v, 0)
		used := len(bytes.TrimRight(block, "#"))
		v.Set("pad", strings.Repeat("p", sectorSize-used-len("pad=\n")-3+n))
		m[fmt.Sprintf("edge%+d", n-3)] = v
	}
	return m
}

var changes = map[string]func(*Vars) error{
	"same length": set("SDV_B_OK", "0"),
	"longer":      set("SDV_WHY", strings.Repeat("because ", 14), "ORDER", "SDV_B SDV_A"),
	"much longer": set("SDV_B_TRY", "1", "new", strings.Repeat("n", 120)),
	"shorter": func(v *Vars) error {
		v.Set("ORDER", "SDV_B SDV_A")
		for _, k := range v.Keys() {
			if rank(k) == 3 {
				v.Delete(k)
			}
		}
		return nil
	},
}

// After a cut anywhere in an update, another one is cut anywhere: what is read
// then is the content before or after one of the two, never anything else, and
// the boot script reads the same.
func TestUpdateSurvivesPowerCuts(t *testing.T) {
	paths := newPair(filepath.Join(t.TempDir(), "grubenv")).paths
	store := &grubStore{paths: paths}
	spec := store.String()
	states := 0
	for size, vars := range sizes() {
		for first, change1 := range changes {
			medium{}.store(t, paths...)
			if err := Create(spec, vars); err != nil {
				t.Fatal(err)
			}
			before := readMedium(t, paths...)
			old := text(load(before, paths[0], paths[1]))
			steps := record(t, store, &store.watch, change1)
			want := text(load(readMedium(t, paths...), paths[0], paths[1]))
			var after []medium
			distinct(before, steps, func(m medium) {
				if got := text(checkAgrees(t, m, paths[0], paths[1])); got != old && got != want {
					t.Fatalf("%s, %s: read\n%s, want\n%s or\n%s", size, first, got, old, want)
				}
				after = append(after, m)
			})
			for second, change2 := range changes {
				if strings.HasPrefix(size, "edge") && second != "same length" && second != "longer" {
					continue
				}
				for _, m := range after {
					m.store(t, paths...)
					old := text(load(m, paths[0], paths[1]))
					steps := record(t, store, &store.watch, change2)
					want := text(load(readMedium(t, paths...), paths[0], paths[1]))
					distinct(m, steps, func(m medium) {
						if got := text(checkAgrees(t, m, paths[0], paths[1])); got != old && got != want {
							t.Fatalf("%s, %s, %s: read\n%s, want\n%s or\n%s", size, first, second, got, old, want)
						}
						states++
					})
				}
			}
		}
	}
	if states < 1000 {
		t.Errorf("only %d states", states)
	}
}

// The boot script and the store write in turn, and any of them may be cut off.
func TestBootScriptAndUpdatesSurvivePowerCuts(t *testing.T) {
	paths := newPair(filepath.Join(t.TempDir(), "grubenv")).paths
	store := &grubStore{paths: paths}
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		medium{}.store(t, paths...)
		if err := Create(store.String(), initial(int(seed%2)*12)); err != nil {
			t.Fatal(err)
		}
		for range 60 {
			m := readMedium(t, paths...)
			was := load(m, paths[0], paths[1])
			kept := []string{others(was)}
			for _, p := range paths {
				if c := parseCopy(m[p]); c.err == nil {
					kept = append(kept, others(c.vars))
				}
			}
			var steps []step
			if rnd.IntN(2) == 0 {
				s, _ := boot(m, paths[0], paths[1])
				w := s.save(m)
				steps = []step{w, {path: w.path, op: "sync"}}
			} else {
				steps = record(t, store, &store.watch, func(v *Vars) error {
					v.Set(bootVars[rnd.IntN(2)+5], strings.Repeat("w", rnd.IntN(80)))
					v.Set([]string{"ORDER", "SDV_A_OK"}[rnd.IntN(2)], []string{"SDV_A SDV_B", "SDV_B SDV_A"}[rnd.IntN(2)])
					v.Set(fmt.Sprintf("extra%d", rnd.IntN(4)), strings.Repeat("y", rnd.IntN(60)))
					return nil
				})
			}
			done := m
			for _, s := range steps {
				if s.op != "sync" {
					done = done.apply(s)
				}
			}
			want := load(done, paths[0], paths[1])
			kept = append(kept, others(want))
			var states []medium
			cuts(m, steps, func(m medium) { states = append(states, m) })
			state := done
			if rnd.IntN(3) > 0 {
				state = states[rnd.IntN(len(states))]
			}
			for _, m := range states {
				got := checkAgrees(t, m, paths[0], paths[1])
				if got == nil {
					t.Fatalf("seed %d: nothing left of\n%v", seed, m)
				}
				if b := text(got, bootVars...); b != text(was, bootVars...) && b != text(want, bootVars...) {
					t.Fatalf("seed %d: read\n%swant\n%sor\n%s", seed, b, text(was, bootVars...), text(want, bootVars...))
				}
				if o := others(got); !strings.Contains(strings.Join(kept, "|"), o) {
					t.Fatalf("seed %d: read\n%swant one of\n%s", seed, o, strings.Join(kept, "or\n"))
				}
			}
			state.store(t, paths...)
		}
	}
}

// A single file is as safe as long as its variables are in one sector.
func TestSingleFileSurvivesPowerCuts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "grubenv")
	store := &grubStore{paths: []string{path}}
	if err := store.create(initial(0)); err != nil {
		t.Fatal(err)
	}
	m := readMedium(t, path)
	steps := record(t, store, &store.watch, changes["longer"])
	var want Vars
	changes["longer"](&want)
	distinct(m, steps, func(m medium) {
		v, err := ParseGrub(m[path])
		if err != nil {
			t.Fatal(err)
		}
		if v.Get("SDV_WHY") == want.Get("SDV_WHY") != (v.Get("ORDER") == want.Get("ORDER")) {
			t.Errorf("read %s", text(v))
		}
	})
}

func TestRedundantUBootSurvivesPowerCuts(t *testing.T) {
	store, path := newUBoot(t, "0x200 0x1000", "0x2200 0x1000")
	if err := store.create(initial(40)); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		m := readMedium(t, path)
		old, err := store.Load()
		if err != nil {
			t.Fatal(err)
		}
		steps := record(t, store, &store.watch, set("round", strconv.Itoa(round), "ORDER", strings.Repeat("z", 600*round)))
		want, err := store.Load()
		if err != nil {
			t.Fatal(err)
		}
		if n := len(steps); n != 2 {
			t.Errorf("%d steps: expected one write and one sync", n)
		}
		states := 0
		distinct(m, steps, func(m medium) {
			states++
			m.store(t, path)
			got, err := store.Load()
			if err != nil || !got.Equal(old) && !got.Equal(want) {
				t.Fatalf("loaded %v, %v", got, err)
			}
		})
		if states < 4 {
			t.Errorf("only %d states", states)
		}
		m.store(t, path)
		if err := store.Update(set("round", strconv.Itoa(round))); err != nil {
			t.Fatal(err)
		}
	}
}
