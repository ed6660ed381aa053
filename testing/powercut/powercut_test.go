// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"testing"
)

func newTestLab(t *testing.T, dir string) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("SDVBOX_REQUIRE") == "1" {
			t.Fatal("only root can build a vehicle")
		}
		t.Skip("only root can build a vehicle")
	}
	l, err := newLab(t.Context(), dir, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	return l
}

func long(t *testing.T) {
	t.Helper()
	if os.Getenv("SDVBOX_LONG") != "1" {
		t.Skip("only make test-long runs this")
	}
}

func testCampaign(t *testing.T, n, each int, seed uint64) results {
	t.Helper()
	all, err := newTestLab(t, t.TempDir()).campaign(t.Context(), n, each, seed)
	var table strings.Builder
	all.print(&table)
	t.Logf("seed %d\n%s", seed, table.String())
	if err != nil {
		t.Error(err)
	}
	return all
}

// One update is cut while its bundle is downloaded, while it is installed, while it is activated, and in its first boot. The seed
// puts the cuts well inside; only an activation may be too short for that.
func TestKilledVehicleEndsItsUpdate(t *testing.T) {
	for _, r := range testCampaign(t, phaseCount, phaseCount, 2002) {
		if r.late && r.phase != inActivate {
			t.Errorf("cut %d came after its phase", r.number)
		}
	}
}

func TestKilledVehicleEndsItsUpdateEachTime(t *testing.T) {
	long(t)
	testCampaign(t, 32, 1, 2)
}

func TestNoCutOfAnUpdateDoesHarm(t *testing.T) {
	long(t)
	l := newTestLab(t, "") // a state that fails can then be looked at with -state
	for _, env := range []string{"short", "long"} {
		r, err := l.record(t.Context(), env)
		if err != nil {
			t.Fatal(err)
		}
		f, err := l.exhaustive(t.Context(), r, "", true)
		if err != nil {
			t.Fatal(err)
		}
		var table strings.Builder
		f.print(&table)
		t.Logf("with a %s boot environment\n%s", env, table.String())
		if len(f.failures) > 0 {
			t.Errorf("%d states fail", len(f.failures))
		}
	}
}
