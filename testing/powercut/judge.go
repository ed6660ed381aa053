// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"sdvbox/platform/bootenv"
	"sdvbox/platform/durable"
	"sdvbox/platform/slots"
	"sdvbox/testing/vehicle"
)

// verdict is what a disk is worth.
type verdict struct {
	boots   string // slot that the boot logic chooses
	version string // of the system in it
	faults  []string
	key     string // states with the same key are the same to the boot loader
	record  string // of the agent's journal
}

// extent is a part of the disk, in bytes.
type extent struct{ From, To int64 }

// judge looks at the disk in an image as the boot loader and the agent would.
type judge struct {
	m       *image
	layout  vehicle.Layout
	journal []extent
	scratch string // directory

	table, esp, env, agent []*region
	slots                  map[string]*region           // by boot name
	whole                  map[string]map[uint64]string // by boot name: the sums of complete contents, with their versions
	intact                 *reference

	verdicts map[[5]uint64]*verdict // by sums of table, ESP, environment, slots
	records  map[uint64]string      // by sum of the journal
}

// bootFiles are what the firmware and GRUB read from the boot partition.
var bootFiles = []string{"EFI/BOOT/BOOTX64.EFI", "grub/grub.cfg", "grub/sdvbox.cfg"}

// reference is what no update may change.
type reference struct {
	table  []byte            // partition table, at both ends of the disk
	loader map[string][]byte // boot files
}

func newReference(m *image, l vehicle.Layout) (*reference, error) {
	loader, err := readFAT(m, l, "boot", bootFiles...)
	return &reference{table(m), loader}, err
}

// tableSize is the size of the partition table at the end of the disk; at its start there is an MBR in front.
const tableSize = 33 * unit

func table(m *image) []byte {
	return slices.Concat(m.data[:unit+tableSize], m.data[len(m.data)-tableSize:])
}

// newJudge makes a judge of the disk in m. The slots may hold the named file system images, journal is where the agent's
// journal is.
func newJudge(m *image, intact *reference, l vehicle.Layout, images map[string]string, journal []extent, scratch string) (*judge, error) {
	j := &judge{
		m: m, intact: intact, layout: l, journal: journal, scratch: scratch,
		slots: map[string]*region{}, whole: map[string]map[uint64]string{},
		verdicts: map[[5]uint64]*verdict{}, records: map[uint64]string{},
	}
	size := int64(len(m.data))
	j.table = []*region{m.watch(0, unit+tableSize), m.watch(size-tableSize, size)}
	for name, to := range map[string]*[]*region{"boot": &j.esp, "grubenv": &j.env} {
		p, err := l.Partition(name)
		if err != nil {
			return nil, err
		}
		*to = []*region{m.watch(p.Start, p.End())}
	}
	for _, e := range journal {
		j.agent = append(j.agent, m.watch(e.From, e.To))
	}
	for i, name := range []string{"root_a", "root_b"} {
		p, err := l.Partition(name)
		if err != nil {
			return nil, err
		}
		r := m.watch(p.Start, p.End())
		j.slots[slots.Names[i]] = r
		whole := map[uint64]string{}
		for version, path := range images {
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			if int64(len(data)) != p.Size {
				return nil, fmt.Errorf("%s: %d bytes, expected %d as in partition %s", path, len(data), p.Size, name)
			}
			before := m.write(p.Start, data)
			whole[r.sum] = version
			m.write(p.Start, before)
		}
		j.whole[slots.Names[i]] = whole
	}
	return j, nil
}

// sum combines the sums of regions.
func sum(regions []*region) (s uint64) {
	for _, r := range regions {
		s = s*31 + r.sum
	}
	return s
}

// weigh says how closely a write is to be looked at: most of all where it touches what decides about the boot, or the agent's
// journal.
func (j *judge) weigh(e entry) weight {
	touches := func(r *region) bool { return e.size > 0 && e.overlaps(r.from, r.to) }
	for _, list := range [][]*region{j.table, j.esp, j.env, j.agent} {
		if slices.ContainsFunc(list, touches) {
			return torn
		}
	}
	for _, r := range j.slots {
		if touches(r) {
			return heavy
		}
	}
	return light
}

// judge returns what the disk is worth as it is now.
func (j *judge) judge() (*verdict, error) {
	a, b := slots.Names[0], slots.Names[1]
	sums := [5]uint64{sum(j.table), sum(j.esp), sum(j.env), j.slots[a].sum, j.slots[b].sum}
	// What is in an incomplete slot makes no difference.
	for i, name := range slots.Names {
		if _, ok := j.whole[name][sums[3+i]]; !ok {
			sums[3+i] = 0
		}
	}
	v := j.verdicts[sums]
	if v == nil {
		v = &verdict{}
		if err := j.boot(v); err != nil {
			return nil, err
		}
		j.verdicts[sums] = v
	}
	record, err := j.record()
	if err != nil {
		return nil, err
	}
	with := *v
	with.record = record
	return &with, nil
}

// boot fills in all but the record.
func (j *judge) boot(v *verdict) error {
	fault := func(format string, args ...any) { v.faults = append(v.faults, fmt.Sprintf(format, args...)) }
	h := sha256.New()
	if now := table(j.m); !bytes.Equal(now, j.intact.table) {
		fault("the partition table has changed")
		h.Write(now)
	}
	loader, err := readFAT(j.m, j.layout, "boot", bootFiles...)
	if err != nil {
		fault("boot partition: %v", err)
	}
	for _, name := range bootFiles {
		if err == nil && !bytes.Equal(loader[name], j.intact.loader[name]) {
			fault("%s has changed", name)
		}
		h.Write(loader[name])
	}
	version := map[string]string{}
	for _, name := range slots.Names {
		version[name] = j.whole[name][j.slots[name].sum]
		fmt.Fprintf(h, "%s %q", name, version[name])
	}
	st, copies, err := readEnv(j.m, j.layout, j.scratch)
	for _, c := range copies {
		h.Write(c)
	}
	v.key = fmt.Sprintf("%x", h.Sum(nil)[:8])
	if err != nil {
		fault("boot environment: %v", err)
		return nil
	}
	ok := false
	if v.boots, ok = st.Next(); !ok {
		fault("no slot may be booted")
		return nil
	}
	v.version = version[v.boots]
	for _, name := range slots.Names {
		if st.Left(name) > 0 && version[name] == "" {
			fault("%s may be booted, but is not complete", name)
		}
	}
	return nil
}

// readFAT reads files from a FAT partition.
func readFAT(m *image, l vehicle.Layout, partition string, names ...string) (map[string][]byte, error) {
	p, err := l.Partition(partition)
	if err != nil {
		return nil, err
	}
	f, err := openFAT(m.data[p.Start:p.End()])
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	var errs []error
	for _, name := range names {
		data, err := f.file(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		files[name] = data
	}
	return files, errors.Join(errs...)
}

// readEnv reads the boot environment. It also returns its copies, as far as they can be read.
func readEnv(m *image, l vehicle.Layout, scratch string) (st slots.State, copies [][]byte, err error) {
	names := []string{"grubenv", "grubenv2"}
	// A copy that is lost is no fault as long as there is the other one.
	files, _ := readFAT(m, l, "grubenv", names...)
	for _, name := range names {
		path := filepath.Join(scratch, name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return st, nil, err
		}
		if files[name] == nil {
			continue
		}
		copies = append(copies, append([]byte(name), files[name]...))
		if err := os.WriteFile(path, files[name], 0o600); err != nil {
			return st, nil, err
		}
	}
	store, err := bootenv.Open("grub:" + filepath.Join(scratch, names[0]))
	if err != nil {
		return st, copies, err
	}
	vars, err := store.Load()
	if err != nil {
		return st, copies, err
	}
	st, err = slots.Decode(vars, store.Kind())
	return st, copies, err
}

// record returns the newest record in the agent's journal.
func (j *judge) record() (string, error) {
	key := sum(j.agent)
	if rec, ok := j.records[key]; ok {
		return rec, nil
	}
	var file bytes.Buffer
	for _, e := range j.journal {
		file.Write(j.m.data[e.From:e.To])
	}
	path := filepath.Join(j.scratch, "journal")
	if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
		return "", err
	}
	journal, err := durable.OpenJournal(path, 0)
	if err != nil {
		return "", err
	}
	defer journal.Close()
	rec := string(journal.Load())
	j.records[key] = rec
	return rec, nil
}
