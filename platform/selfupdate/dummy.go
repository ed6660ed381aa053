// SPDX-License-Identifier: Apache-2.0

package selfupdate

import (
	"context"

	"sdvbox/platform/rauc"
)

// Dummy is a System without slots, to try the protocol on a machine that has
// no RAUC: version dummy_version0 runs, every bundle has dummy_version, and
// whatever is asked of it succeeds. Downloads are real.
type Dummy struct{}

func (Dummy) Current(context.Context) (Running, error) {
	return Running{Version: "dummy_version0", Slot: "dummy.0"}, nil
}

func (Dummy) Other(context.Context) (Slot, error) {
	return Slot{Name: "dummy.1", Class: "dummy", Version: "dummy_version", Intact: true, Count: 1}, nil
}

func (Dummy) Inspect(context.Context, string) (rauc.Bundle, error) {
	return rauc.Bundle{Version: "dummy_version", Images: []rauc.Image{{Class: "dummy"}}}, nil
}

func (Dummy) Install(_ context.Context, _, _ string, progress func(int)) error {
	for p := 20; p < 100; p += 20 {
		progress(p)
	}
	return nil
}

func (Dummy) Attach(context.Context, func(int)) error { return rauc.ErrIdle }

func (Dummy) Activate(context.Context, string) error { return nil }

func (Dummy) Reject(context.Context, string) error { return nil }

func (Dummy) Confirmed(context.Context) (bool, error) { return true, nil }

func (Dummy) BootID() (string, error) { return "dummy", nil }

func (Dummy) Primary(context.Context) (string, error) { return "dummy.0", nil }
