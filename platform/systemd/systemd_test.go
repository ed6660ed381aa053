// SPDX-License-Identifier: Apache-2.0

package systemd

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sdvbox/platform/systemd/systemdtest"
)

func dialFake(t *testing.T, f *systemdtest.Fake) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), f.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestUnitTellsStatesApart(t *testing.T) {
	f := systemdtest.Start(t)
	entered := uint64((monotonic() - time.Minute) / time.Microsecond)
	units := map[string]systemdtest.Props{
		"multi-user.target": {"ActiveState": "active", "SubState": "active", "ActiveEnterTimestampMonotonic": entered},
		"loop.service":      {"ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code", "ActiveEnterTimestampMonotonic": entered},
		"skipped.service":   {"ActiveState": "inactive", "SubState": "dead", "ConditionResult": false, "ConditionTimestampMonotonic": entered, "Result": "success"},
		"once.service": {"ActiveState": "inactive", "SubState": "dead", "ConditionResult": true, "ConditionTimestampMonotonic": entered, "Result": "success",
			"Type": "oneshot", "ExecMainExitTimestampMonotonic": entered},
		"later.service": {"ActiveState": "inactive", "SubState": "dead", "Result": "success", "Type": "oneshot"},
	}
	f.Change(func() { f.Alias["default.target"], f.Units = "multi-user.target", units })
	c := dialFake(t, f)
	for _, test := range []struct {
		name string
		want Unit
	}{
		{"default.target", Unit{Name: "multi-user.target", Active: "active", Sub: "active", ActiveFor: time.Minute}},
		{"loop.service", Unit{Name: "loop.service", Active: "activating", Sub: "auto-restart", Result: "exit-code"}},
		{"skipped.service", Unit{Name: "skipped.service", Active: "inactive", Sub: "dead", Result: "success", Skipped: true}},
		{"once.service", Unit{Name: "once.service", Active: "inactive", Sub: "dead", Result: "success", Done: true}},
		{"later.service", Unit{Name: "later.service", Active: "inactive", Sub: "dead", Result: "success"}},
		{"missing.service", Unit{Active: "inactive", Sub: "dead"}},
	} {
		got, err := c.Unit(t.Context(), test.name)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if got.ActiveFor >= time.Minute && got.ActiveFor < 2*time.Minute {
			got.ActiveFor = time.Minute
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestJobsAndEnabledUnitsAreListed(t *testing.T) {
	f := systemdtest.Start(t)
	f.Change(func() {
		f.Jobs = [][3]string{{"block.service", "start", "running"}, {"multi-user.target", "start", "waiting"}}
		f.Enabled = []string{"/usr/lib/systemd/system/sdvbox-x.service", "/etc/systemd/system/other.service"}
	})
	c := dialFake(t, f)
	jobs, err := c.Jobs(t.Context())
	if diff := cmp.Diff([]Job{{"block.service", "start", true}, {"multi-user.target", "start", false}}, jobs); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	names, err := c.Enabled(t.Context(), []string{"sdvbox-*.service"})
	if diff := cmp.Diff([]string{"sdvbox-x.service"}, names); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestRebootIsOrderly(t *testing.T) {
	f := systemdtest.Start(t)
	if err := dialFake(t, f).Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.Change(func() {
		if diff := cmp.Diff([]string{"reboot.target replace-irreversibly"}, f.Started); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestHangingManagerIsGivenUp(t *testing.T) {
	f := systemdtest.Start(t)
	f.Change(func() { f.Hang = true })
	t.Cleanup(func() { f.Change(func() { f.Hang = false }) })
	c := dialFake(t, f)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Reboot(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	// Even what does not look at its context is left behind.
	err := within(t.Context(), 10*time.Millisecond, func(context.Context) error { select {} })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
