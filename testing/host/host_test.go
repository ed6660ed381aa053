// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"
)

func TestGroupsNameEachPackageOnceWithAReason(t *testing.T) {
	for name, group := range groups {
		var seen []string
		for _, p := range group {
			if p.why == "" || slices.Contains(seen, p.name) {
				t.Errorf("group %s: %q is there twice or without a reason", name, p.name)
			}
			seen = append(seen, p.name)
		}
	}
}

func TestCollectJoinsGroupsWithoutDoubles(t *testing.T) {
	list, err := collect([]string{"test", "vehicle"})
	if err != nil {
		t.Fatal(err)
	}
	names := nameList(list)
	slices.Sort(names)
	if got := slices.Compact(slices.Clone(names)); len(got) != len(names) {
		t.Errorf("doubles in %q", names)
	}
	for _, want := range []string{"rauc", "qemu-system-x86"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is missing in %q", want, names)
		}
	}
	for _, bad := range [][]string{nil, {"nothing"}} {
		if _, err := collect(bad); err == nil || !strings.Contains(err.Error(), "lint, test, vehicle") {
			t.Errorf("collect(%q): %v, want an error that names the groups", bad, err)
		}
	}
}

func TestOnlyInstalledPackagesCountAsPresent(t *testing.T) {
	got := parseStatus("ii  rauc\nrc  mosquitto\nun  ovmf\niU  dbus\nii  gdisk\n")
	if want := []string{"rauc", "gdisk"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
