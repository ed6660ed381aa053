// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sdvbox/platform/updateproto"
)

func application(id, domain string) updateproto.SoftwareNode {
	return updateproto.SoftwareNode{ID: id, Type: updateproto.TypeApplication, Parameters: []updateproto.KeyValue{{Key: "domain", Value: domain}}}
}

func TestInventoriesAreMergedBelowTheManager(t *testing.T) {
	manager := updateproto.SoftwareNode{ID: "vehicle-update-manager", Version: "1.2", Name: "Update Manager", Type: updateproto.TypeApplication}
	image := updateproto.SoftwareNode{ID: "self-update:os-image", Version: "7", Type: updateproto.TypeImage}
	nav := updateproto.SoftwareNode{ID: "containers:nav", Type: updateproto.TypeContainer}
	liar := application("liar", "self-update")
	liar.Type = updateproto.TypeContainer
	board, camera := updateproto.HardwareNode{ID: "board"}, updateproto.HardwareNode{ID: "camera", Addressable: true}
	link := func(from, to string) updateproto.Association {
		return updateproto.Association{SourceID: from, TargetID: to}
	}

	var c Cache
	c.Put("self-update", 1, updateproto.Inventory{
		SoftwareNodes: []updateproto.SoftwareNode{image, liar, application("other", "containers"), application("agent", "self-update"), application("later", "self-update")},
		HardwareNodes: []updateproto.HardwareNode{board},
		Associations:  []updateproto.Association{link("agent", image.ID)},
	})
	c.Put("containers", 1, updateproto.Inventory{
		SoftwareNodes: []updateproto.SoftwareNode{nav, application("other", "self-update")},
		Associations:  []updateproto.Association{link(nav.ID, "other")},
	})
	c.Put("hardware", 1, updateproto.Inventory{
		HardwareNodes: []updateproto.HardwareNode{camera},
		Associations:  []updateproto.Association{link("camera", "nothing")},
	})
	c.Put("stranger", 1, updateproto.Inventory{SoftwareNodes: []updateproto.SoftwareNode{{ID: "x"}}})

	want := updateproto.Inventory{
		SoftwareNodes: []updateproto.SoftwareNode{manager, nav, application("other", "self-update"),
			image, liar, application("other", "containers"), application("agent", "self-update"), application("later", "self-update")},
		HardwareNodes: []updateproto.HardwareNode{camera, board},
		Associations:  []updateproto.Association{link(manager.ID, nav.ID), link(nav.ID, "other"), link(manager.ID, "agent"), link("agent", image.ID)},
	}
	for _, domains := range [][]string{
		{"self-update", "containers", "hardware", "silent"},
		{"silent", "hardware", "containers", "self-update", "containers"},
	} {
		if d := cmp.Diff(want, c.Merge(manager.ID, "1.2", domains)); d != "" {
			t.Errorf("%v:\n%s", domains, d)
		}
	}
	if d := cmp.Diff(updateproto.Inventory{SoftwareNodes: []updateproto.SoftwareNode{manager}}, new(Cache).Merge(manager.ID, "1.2", []string{"silent"})); d != "" {
		t.Error(d)
	}
}

func TestOvertakenInventoryIsIgnoredButNotAClockSetBack(t *testing.T) {
	const at = 1700000000000
	minute := time.Minute.Milliseconds()
	for _, test := range []struct {
		name   string
		before int64
		at     int64
		want   bool
	}{
		{"first", 0, at, true},
		{"newer", at, at + 1, true},
		{"of the same time", at, at, true},
		{"just overtaken", at, at - 1, false},
		{"overtaken by a minute", at, at - minute, false},
		{"set back", at, at - minute - 1, true},
		{"set back from the far future", math.MaxInt64, at, true},
		{"set back as far as can be", math.MaxInt64, math.MinInt64, true},
		{"without a time", at, 0, true},
		{"after one without a time", 0, 1, true},
		{"before 1970", -1, -2, false},
	} {
		var c Cache
		node := func(id string) updateproto.Inventory {
			return updateproto.Inventory{SoftwareNodes: []updateproto.SoftwareNode{{ID: id}}}
		}
		if !c.Put("d", test.before, node("old")) {
			t.Errorf("%s: first inventory is ignored", test.name)
		}
		c.Put("other", math.MaxInt64, node("other"))
		if got := c.Put("d", test.at, node("new")); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
		if got := c.Merge("m", "", []string{"d"}).SoftwareNodes[1].ID; (got == "new") != test.want {
			t.Errorf("%s: %s inventory is kept", test.name, got)
		}
	}
}

// The agents answer all at the same time.
func TestCacheIsForManyGoroutines(t *testing.T) {
	var c Cache
	done := make(chan struct{})
	for _, domain := range []string{"a", "b", "c", "d"} {
		go func() {
			for i := range int64(1000) {
				c.Put(domain, i, updateproto.Inventory{SoftwareNodes: []updateproto.SoftwareNode{{ID: domain}}})
				c.Merge("m", "", []string{"a", "b"})
			}
			done <- struct{}{}
		}()
	}
	for range 4 {
		<-done
	}
	if got := len(c.Merge("m", "", []string{"a", "b", "c", "d"}).SoftwareNodes); got != 5 {
		t.Errorf("%d nodes, want 5", got)
	}
}
