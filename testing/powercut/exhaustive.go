// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/slots"
	"sdvbox/testing/vehicle"
)

// tally counts what was found, by phase of the update.
type tally struct {
	phase                                 string
	writes, judged, kinds, booted, failed int
}

// findings is the result of an exhaustive experiment.
type findings struct {
	phases   []*tally
	failures []string
	took     time.Duration
}

// exhaustive judges every state that a power cut during the recorded update may leave, and may boot one of each kind. A name
// selects a single state.
func (l *lab) exhaustive(ctx context.Context, r *recording, only string, boot bool) (*findings, error) {
	began := time.Now()
	raw, err := mapFile(filepath.Join(r.dir, logFile))
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(raw)
	entries, err := parseLog(raw)
	if err != nil {
		return nil, err
	}
	open := func() (*judge, error) {
		m, err := openImage(filepath.Join(r.dir, baseFile))
		if err != nil {
			return nil, err
		}
		intact, err := newReference(m, l.layout)
		if err != nil {
			return nil, err
		}
		return newJudge(m, intact, l.layout, r.Images, r.Journal, r.dir)
	}

	// First without variants.
	j, err := open()
	if err != nil {
		return nil, err
	}
	defer j.m.close()
	journal, err := readJournal(j, entries)
	if err != nil {
		return nil, err
	}
	if err := sameAsFile(j.m, filepath.Join(r.dir, finalFile)); err != nil {
		return nil, err
	}
	v, err := j.judge()
	if err != nil {
		return nil, err
	}
	if v.version != newVersion || len(v.faults) > 0 {
		return nil, fmt.Errorf("the recording ends with version %q of %s, %q", v.version, v.boots, v.faults)
	}
	l.logf("%d writes, %d records of the journal", len(entries), journal.count)

	// Once more from the start.
	if j, err = open(); err != nil {
		return nil, err
	}
	defer j.m.close()
	s := survey{judge: j, journal: journal, place: phases(r, entries), only: only, logf: l.logf}
	if boot {
		s.boot = func(v *verdict) error { return l.boot(ctx, r.dir, j.m, v) }
	}
	for _, p := range r.Phases {
		s.phases = append(s.phases, &tally{phase: p.Name})
	}
	err = replay(j.m, entries, j.weigh, true, func(st state) error {
		if err := s.visit(st); err != nil {
			return err
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, err
	}
	if only != "" && len(s.seen) == 0 {
		return nil, fmt.Errorf("the recording has no state %s", only)
	}
	s.took = time.Since(began)
	return &s.findings, nil
}

// history is what the agent's journal said in the course of a recording.
type history struct {
	count   int
	records map[int]map[string]bool // from one flush to the next, by the number of writes flushed
}

// readJournal replays the writes and reads the journal after each.
func readJournal(j *judge, entries []entry) (*history, error) {
	h := &history{count: 1, records: map[int]map[string]bool{}}
	last, err := j.record()
	if err != nil {
		return nil, err
	}
	return h, replay(j.m, entries, j.weigh, false, func(s state) error {
		rec, err := j.record()
		if err != nil {
			return err
		}
		if h.records[s.flushed] == nil {
			// What there was before the first write after a flush.
			h.records[s.flushed] = map[string]bool{last: true}
		}
		h.records[s.flushed][rec] = true
		if rec != last {
			h.count++
		}
		last = rec
		return nil
	})
}

// survey judges one state after the other.
type survey struct {
	*judge
	findings
	journal *history
	place   func(int) int        // from the number of a write to that of its phase
	only    string               // name of the one state to judge
	boot    func(*verdict) error // boots the disk as it is and compares what happens with what was foretold; nil: no boots
	logf    func(string, ...any)
	seen    map[string]bool // kinds
}

func (s *survey) visit(st state) error {
	if s.only != "" && st.name != s.only {
		return nil
	}
	v, err := s.judge.judge()
	if err != nil {
		return err
	}
	t := s.phases[s.place(st.entries-1)]
	t.judged++
	if st.plain {
		t.writes++
	}
	faults := slices.Clip(v.faults)
	if !s.journal.records[st.flushed][v.record] {
		faults = append(faults, "the agent's journal has neither the old record nor the new one")
	}
	if !s.seen[v.key] {
		if s.seen == nil {
			s.seen = map[string]bool{}
		}
		s.seen[v.key] = true
		t.kinds++
		if s.boot != nil {
			t.booted++
			if err := s.boot(v); err != nil {
				faults = append(faults, err.Error())
			}
		}
		s.logf("%-22s %-12s kind %s: %s, version %s %s", t.phase, st.name, v.key, v.boots, v.version, strings.Join(faults, "; "))
	}
	if len(faults) > 0 {
		t.failed++
		s.failures = append(s.failures, fmt.Sprintf("%s (%s): %s", st.name, t.phase, strings.Join(faults, "; ")))
	}
	return nil
}

// phases returns a function from the number of a write to the number of its phase.
func phases(r *recording, entries []entry) func(int) int {
	ends := make([]int64, len(entries))
	at := int64(unit)
	for i, e := range entries {
		at += unit + int64(len(e.data))
		ends[i] = at
	}
	return func(i int) int {
		n := sort.Search(len(r.Phases), func(p int) bool { return r.Phases[p].At >= ends[i] })
		return max(0, n-1)
	}
}

// boot boots the disk as it is in an image and compares what happens with what was foretold.
func (l *lab) boot(ctx context.Context, dir string, m *image, want *verdict) error {
	disk := filepath.Join(dir, "state.img")
	defer os.Remove(disk)
	if err := m.save(disk); err != nil {
		return err
	}
	v, err := vehicle.Start(ctx, machine(disk, filepath.Join(dir, "states.log")))
	if err != nil {
		return err
	}
	defer v.Kill()
	got, err := watch(ctx, v)
	if err != nil {
		return err
	}
	if got.slot != want.boots || got.version != want.version {
		return fmt.Errorf("%s with version %s has booted, expected %s with version %q", got.slot, got.version, want.boots, want.version)
	}
	v.Kill()
	return l.settled(disk, got.slot)
}

// settled checks that a vehicle which has judged its boot has left both copies of the environment whole and equal, and the
// slot confirmed.
func (l *lab) settled(disk, slot string) error {
	m, err := openImage(disk)
	if err != nil {
		return err
	}
	defer m.close()
	st, copies, err := readEnv(m, l.layout, l.dir)
	if err != nil {
		return err
	}
	names := []string{"grubenv", "grubenv2"}
	if len(copies) != 2 || !bytes.Equal(copies[0][len(names[0]):], copies[1][len(names[1]):]) {
		return errors.New("the copies of the boot environment differ after the boot")
	}
	if st.Good != slot || st.Slots[slot] != (slots.Slot{OK: true}) {
		return fmt.Errorf("%s is not confirmed after the boot: %+v", slot, st)
	}
	return nil
}

func mapFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return data, nil
}

// sameAsFile tells whether the recording is complete: replayed, it must give the disk it was recorded from.
func sameAsFile(m *image, path string) error {
	data, err := mapFile(path)
	if err != nil {
		return err
	}
	defer unix.Munmap(data)
	if len(data) != len(m.data) {
		return fmt.Errorf("%s: %d bytes, expected %d", path, len(data), len(m.data))
	}
	for at := 0; at < len(data); at += unit {
		if !bytes.Equal(data[at:at+unit], m.data[at:at+unit]) {
			return fmt.Errorf("the replayed disk differs from %s in sector %d", path, at/unit)
		}
	}
	return nil
}

// print writes the table.
func (f *findings) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "writes\tstates judged\tkinds\tbooted\tfailed\t phase")
	total := tally{phase: fmt.Sprintf("total, in %v", f.took.Round(time.Second))}
	for _, p := range f.phases {
		total.writes += p.writes
		total.judged += p.judged
		total.kinds += p.kinds
		total.booted += p.booted
		total.failed += p.failed
	}
	for _, p := range append(f.phases, &total) {
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t %s\n", p.writes, p.judged, p.kinds, p.booted, p.failed, p.phase)
	}
	t.Flush()
	for _, s := range f.failures {
		fmt.Fprintln(w, "FAILED", s)
	}
}
