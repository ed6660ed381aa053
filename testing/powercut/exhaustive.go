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
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/slots"
	"sdvbox/testing/vehicle"
)

// tally counts what was found, by phase of the update.
type tally struct {
	phase                                string
	writes, judged, distinct, boots, bad int
}

// findings is the result of an exhaustive experiment.
type findings struct {
	phases   []*tally
	failures []string
	took     time.Duration
}

// exhaustive judges every state that a power cut during the recorded update may leave, and boots one of each kind. A name
// selects a single state.
func (l *lab) exhaustive(ctx context.Context, r *recording, only string) (*findings, error) {
	began := time.Now()
	m, err := openImage(filepath.Join(l.dir, baseFile))
	if err != nil {
		return nil, err
	}
	defer m.close()
	raw, err := mapFile(filepath.Join(l.dir, logFile))
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(raw)
	entries, err := parseLog(raw)
	if err != nil {
		return nil, err
	}
	j, err := newJudge(m, l.layout, l.images, r.Journal, l.dir)
	if err != nil {
		return nil, err
	}
	// First without variants: what the journal says between one flush and the next, and whether the recording is complete.
	records := map[int]map[string]bool{} // by the number of flushed entries
	sequence := []string{}
	last := 0
	note := func(flushed int) error {
		rec, err := j.record()
		if err != nil {
			return err
		}
		if records[flushed] == nil {
			records[flushed] = map[string]bool{}
		}
		records[flushed][rec] = true
		if n := len(sequence); n == 0 || sequence[n-1] != rec {
			sequence = append(sequence, rec)
		}
		return nil
	}
	if err := note(0); err != nil {
		return nil, err
	}
	err = replay(m, entries, j.matters, false, func(s state) error {
		if s.flushed != last {
			// What a window begins with is what the one before ended with.
			records[s.flushed] = map[string]bool{sequence[len(sequence)-1]: true}
			last = s.flushed
		}
		return note(s.flushed)
	})
	if err != nil {
		return nil, err
	}
	if err := sameAsFile(m, filepath.Join(l.dir, finalFile)); err != nil {
		return nil, err
	}
	if v, err := j.judge(); err != nil || v.version != newVersion || len(v.faults) > 0 {
		return nil, fmt.Errorf("the recording does not end with the new version: %+v %w", v, err)
	}
	l.logf("%d writes, %d records of the journal", len(entries), len(sequence))

	// Once more from the start.
	base, err := openImage(filepath.Join(l.dir, baseFile))
	if err != nil {
		return nil, err
	}
	defer base.close()
	if j, err = newJudge(base, l.layout, l.images, r.Journal, l.dir); err != nil {
		return nil, err
	}
	f := &findings{}
	place := phases(r, entries)
	for _, p := range r.Phases {
		f.phases = append(f.phases, &tally{phase: p.Name})
	}
	seen := map[string]bool{}
	visit := func(s state) error {
		if only != "" && s.name != only {
			return nil
		}
		v, err := j.judge()
		if err != nil {
			return err
		}
		t := f.phases[place(s.entries-1)]
		t.judged++
		if s.plain {
			t.writes++
		}
		faults := slices.Clip(v.faults)
		if !records[s.flushed][v.record] {
			faults = append(faults, "the agent's journal has neither the old record nor a new one")
		}
		if !seen[v.key] {
			seen[v.key] = true
			t.distinct++
			t.boots++
			err := l.boot(ctx, base, v)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				faults = append(faults, err.Error())
			}
			l.logf("%-22s %-12s kind %s: %s, version %s%s", t.phase, s.name, v.key, v.boots, v.version, failed(faults))
		}
		if len(faults) > 0 {
			t.bad++
			f.failures = append(f.failures, fmt.Sprintf("%s (%s): %v", s.name, t.phase, errors.New(fmt.Sprint(faults))))
		}
		return nil
	}
	if err := replay(base, entries, j.matters, true, visit); err != nil {
		return nil, err
	}
	f.took = time.Since(began)
	if only != "" && len(seen) == 0 {
		return nil, fmt.Errorf("the recording has no state %s", only)
	}
	return f, nil
}

func failed(faults []string) string {
	if len(faults) == 0 {
		return ""
	}
	return fmt.Sprintf(" FAILED: %q", faults)
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
func (l *lab) boot(ctx context.Context, m *image, want *verdict) error {
	disk := filepath.Join(l.dir, "state.img")
	defer os.Remove(disk)
	if err := m.save(disk); err != nil {
		return err
	}
	v, err := vehicle.Start(ctx, vehicle.Machine{Disk: disk, Log: filepath.Join(l.dir, "states.log")})
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
	j := &judge{m: m, layout: l.layout, scratch: l.dir}
	st, copies, err := j.state()
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
	fmt.Fprintln(t, "writes\tstates judged\tkinds\tbooted\tfailures\t phase")
	var total tally
	for _, p := range f.phases {
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t %s\n", p.writes, p.judged, p.distinct, p.boots, p.bad, p.phase)
		total.writes += p.writes
		total.judged += p.judged
		total.distinct += p.distinct
		total.boots += p.boots
		total.bad += p.bad
	}
	fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t total, in %v\n", total.writes, total.judged, total.distinct, total.boots, total.bad, f.took.Round(time.Second))
	t.Flush()
	for _, s := range f.failures {
		fmt.Fprintln(w, "FAILED", s)
	}
}
