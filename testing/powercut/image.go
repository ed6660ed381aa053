// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"os"

	"golang.org/x/sys/unix"
)

// image is a disk image in memory, which writes can be applied to and taken back from. The file below it never changes.
type image struct {
	data    []byte
	seed    maphash.Seed
	regions []*region
}

// region is a part of the disk with a checksum that follows each write: equal sums, equal content.
type region struct {
	from, to int64
	sum      uint64   // of all hashes
	hashes   []uint64 // of each sector
}

func openImage(path string) (*image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return newImage(data), nil
}

func newImage(data []byte) *image { return &image{data: data, seed: maphash.MakeSeed()} }

func (m *image) close() error { return unix.Munmap(m.data) }

// watch adds a region.
func (m *image) watch(from, to int64) *region {
	r := &region{from: from, to: to, hashes: make([]uint64, (to-from)/unit)}
	m.regions = append(m.regions, r)
	for i := range r.hashes {
		r.hash(m, i)
	}
	return r
}

// hash brings the hash of a sector up to date. The sum of hashes that each depend on place and content does not depend on the
// order of the writes.
func (r *region) hash(m *image, i int) {
	at := r.from + int64(i)*unit
	h := maphash.Bytes(m.seed, m.data[at:at+unit])
	h = (h ^ uint64(i)) * 0x9e3779b97f4a7c15
	h ^= h >> 29
	r.sum += h - r.hashes[i]
	r.hashes[i] = h
}

// write writes data and returns what was there.
func (m *image) write(off int64, data []byte) (before []byte) {
	place := m.data[off:][:len(data)]
	before = bytes.Clone(place)
	copy(place, data)
	for _, r := range m.regions {
		from, to := max(off, r.from), min(off+int64(len(data)), r.to)
		for at := from; at < to; at += unit {
			r.hash(m, int((at-r.from)/unit))
		}
	}
	return before
}

// save writes the image to a file, without the zeros.
func (m *image) save(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(int64(len(m.data))); err != nil {
		return err
	}
	const chunk = 64 << 10
	zeros := make([]byte, chunk)
	for off := 0; off < len(m.data); off += chunk {
		part := m.data[off:min(off+chunk, len(m.data))]
		if !bytes.Equal(part, zeros[:len(part)]) {
			if _, err := f.WriteAt(part, int64(off)); err != nil {
				return err
			}
		}
	}
	return f.Close()
}
