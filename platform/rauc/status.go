// SPDX-License-Identifier: Apache-2.0

package rauc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
)

// Slot is what RAUC knows of a slot. What it does not know is left at the zero value: a slot written in the factory
// has nothing from Status on.
type Slot struct {
	Name        string // class.index
	Class       string
	Device      string
	Type        string
	Bootname    string
	State       string // booted, active (belongs to the booted slot) or inactive
	BootStatus  string // good or bad; "" without boot name
	Parent      string
	Mountpoint  string
	Description string

	Status     string // ok, and since RAUC 1.11 pending or failed; older ones leave ok after a killed installation
	SHA256     string // of the image written
	Size       uint64
	Compatible string // this and the following: of the bundle written
	Version    string
	BundleHash string
	Installed  Event
	Activated  Event
}

// Event is the last of Count times that something happened to a slot.
type Event struct {
	Time        string // ISO 8601
	Count       uint32
	Transaction string // only of installations
}

// Slots returns the state of all slots in the order of their names.
func (c *Client) Slots(ctx context.Context) ([]Slot, error) {
	var status any
	if err := c.call(ctx, "GetSlotStatus", nil, &status); err != nil {
		return nil, fmt.Errorf("get slot status: %w", err)
	}
	slots, err := decodeSlots(status)
	if err != nil {
		return nil, fmt.Errorf("get slot status: %w", err)
	}
	return slots, nil
}

// decodeSlots decodes an a(sa{sv}). Unknown keys, and known ones of another type than expected, are skipped.
func decodeSlots(status any) ([]Slot, error) {
	entries, ok := status.([][]any)
	if !ok {
		return nil, fmt.Errorf("not a list of slots but %T", status)
	}
	slots := make([]Slot, 0, len(entries))
	for _, entry := range entries {
		if len(entry) != 2 {
			return nil, fmt.Errorf("slot with %d members, not 2", len(entry))
		}
		name, ok1 := entry[0].(string)
		d, ok2 := entry[1].(map[string]dbus.Variant)
		if !ok1 || !ok2 {
			return nil, fmt.Errorf("slot is not a name and a dictionary but %T and %T", entry[0], entry[1])
		}
		slots = append(slots, decodeSlot(name, d))
	}
	slices.SortFunc(slots, func(a, b Slot) int { return strings.Compare(a.Name, b.Name) })
	return slots, nil
}

func decodeSlot(name string, d dict) Slot {
	return Slot{
		Name:        name,
		Class:       d.str("class"),
		Device:      d.str("device"),
		Type:        d.str("type"),
		Bootname:    d.str("bootname"),
		State:       d.str("state"),
		BootStatus:  d.str("boot-status"),
		Parent:      d.str("parent"),
		Mountpoint:  d.str("mountpoint"),
		Description: d.str("description"),
		Status:      d.str("status"),
		SHA256:      d.str("sha256"),
		Size:        d.uint("size"),
		Compatible:  d.str("bundle.compatible"),
		Version:     d.str("bundle.version"),
		BundleHash:  d.str("bundle.hash"),
		Installed: Event{
			Time:        d.str("installed.timestamp"),
			Count:       uint32(d.uint("installed.count")),
			Transaction: d.str("installed.transaction"),
		},
		Activated: Event{
			Time:  d.str("activated.timestamp"),
			Count: uint32(d.uint("activated.count")),
		},
	}
}

// Bundle is what a bundle says about itself. RAUC before 1.9 tells the first two members only.
type Bundle struct {
	Compatible  string
	Version     string
	Description string
	Build       string
	Format      string // plain, verity or crypt
	Hash        string // of the manifest
	Images      []Image
}

// Image is one image of a bundle.
type Image struct {
	Class    string // of the slots it is for
	Filename string
	Type     string // since RAUC 1.15
	Size     uint64
}

// Inspect verifies the signature of a bundle and returns its description.
func (c *Client) Inspect(ctx context.Context, bundle string, o SourceOptions) (Bundle, error) {
	ctx, cancel := limit(ctx, inspectLimit)
	defer cancel()
	var b Bundle
	args := o.args()
	err := withoutUnsupported(args, func() error {
		var info dict
		err := c.call(ctx, "InspectBundle", []any{bundle, args}, (*map[string]dbus.Variant)(&info))
		b = decodeBundle(info)
		return err
	})
	if isUnknownMethod(err) {
		err = c.call(ctx, "Info", []any{bundle}, &b.Compatible, &b.Version)
		if e, ok := err.(*Error); ok && e.Text == "rauc info error" {
			err = c.explainInfo(ctx, e)
		}
	}
	if err != nil {
		return Bundle{}, fmt.Errorf("inspect bundle %s: %w", bundle, err)
	}
	return b, nil
}

// explainInfo makes the most of the one answer that Info of RAUC 1.8 has for every failure.
func (c *Client) explainInfo(ctx context.Context, e *Error) error {
	if _, err := c.Primary(ctx); errors.Is(err, ErrBusy) {
		return ErrBusy
	}
	return &Error{Name: e.Name, Text: e.Text + " (not a bundle, damaged, or its signature is not trusted; the log of RAUC says which)"}
}

func decodeBundle(info dict) Bundle {
	update := info.dict("update")
	b := Bundle{
		Compatible:  update.str("compatible"),
		Version:     update.str("version"),
		Description: update.str("description"),
		Build:       update.str("build"),
		Format:      info.dict("bundle").str("format"),
		Hash:        info.str("manifest-hash"),
	}
	images, _ := info["images"].Value().([]map[string]dbus.Variant)
	for _, image := range images {
		i := dict(image)
		b.Images = append(b.Images, Image{
			Class:    i.str("slot-class"),
			Filename: i.str("filename"),
			Type:     i.str("type"),
			Size:     i.uint("size"),
		})
	}
	return b
}

// dict is an a{sv}, read without trust in its types.
type dict map[string]dbus.Variant

func (d dict) str(key string) string {
	s, _ := d[key].Value().(string)
	return s
}

func (d dict) uint(key string) uint64 {
	switch n := d[key].Value().(type) {
	case uint64:
		return n
	case uint32:
		return uint64(n)
	}
	return 0
}

func (d dict) dict(key string) dict {
	m, _ := d[key].Value().(map[string]dbus.Variant)
	return m
}
