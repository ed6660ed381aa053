// SPDX-License-Identifier: Apache-2.0

package rescue

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sdvbox/platform/applet"
	"sdvbox/platform/bootenv"
	"sdvbox/platform/rauc"
	"sdvbox/platform/slots"
)

func call(args ...string) (code int, stderr string) {
	var out, errs bytes.Buffer
	code = applet.Main([]applet.Command{Command(), Init()}, args, strings.NewReader(""), &out, &errs)
	return code, errs.String()
}

func TestCommandsThatWriteRefuseOutsideTheRescueSystem(t *testing.T) {
	for _, args := range []string{"install /x.raucb", "install --usb", "repair --force", "stay", "reboot", "poweroff"} {
		code, stderr := call(append([]string{"rescue"}, strings.Fields(args)...)...)
		if code != 1 || !strings.Contains(stderr, "not the rescue system") {
			t.Errorf("rescue %s: exit code %d, %q", args, code, stderr)
		}
	}
	if code, stderr := call("init"); code != 1 || !strings.Contains(stderr, "process 1") {
		t.Errorf("init: exit code %d, %q", code, stderr)
	}
	if code, stderr := call("rescue", "session"); code != 1 || !strings.Contains(stderr, "init") {
		t.Errorf("rescue session: exit code %d, %q", code, stderr)
	}
}

func TestInstallWantsExactlyOneSource(t *testing.T) {
	for _, args := range []string{"install", "install a b", "install --usb a"} {
		if code, stderr := call(append([]string{"rescue"}, strings.Fields(args)...)...); code != 2 {
			t.Errorf("rescue %s: exit code %d, %q", args, code, stderr)
		}
	}
}

// intact is a slot that would boot.
func intact(name string) Slot {
	return Slot{Name: name, Known: true, OK: true, Left: 3, Kernel: true, Version: "1.0"}
}

// destroyed has no file system.
func destroyed(name string) Slot {
	return Slot{Name: name, Known: true, OK: true, Error: "no readable file system"}
}

func TestTheSlotWithTheLeastToLoseIsWritten(t *testing.T) {
	exhausted := func(name string) Slot {
		s := intact(name)
		s.Left = 0
		return s
	}
	failed := func(name string) Slot {
		s := exhausted(name)
		s.Status = "failed"
		return s
	}
	noKernel := func(name string) Slot {
		s := intact(name)
		s.Kernel = false
		return s
	}
	for _, test := range []struct {
		name, named string
		a, b        func(string) Slot
		want        string
	}{
		{"both destroyed", "", destroyed, destroyed, "SDV_A"},
		{"only B destroyed", "", exhausted, destroyed, "SDV_B"},
		{"B without kernel", "", exhausted, noKernel, "SDV_B"},
		{"B half written", "", exhausted, failed, "SDV_B"},
		{"A boots, B does not", "", intact, exhausted, "SDV_B"},
		{"both used up", "", exhausted, exhausted, "SDV_A"},
		{"both boot", "", intact, intact, ""},
		{"named though it boots", "a", intact, destroyed, "SDV_A"},
		{"named by boot name", "sdv_b", destroyed, intact, "SDV_B"},
		{"named wrongly", "c", destroyed, destroyed, ""},
	} {
		got, err := choose([]Slot{test.a("SDV_A"), test.b("SDV_B")}, test.named)
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%s: %q, %v; want %q", test.name, got, err, test.want)
		}
	}
}

func TestRebuiltEnvironmentFollowsWhatRAUCKnows(t *testing.T) {
	slot := func(boot, status, activated string) rauc.Slot {
		return rauc.Slot{Bootname: boot, Status: status, Activated: rauc.Event{Time: activated}}
	}
	for _, test := range []struct {
		name  string
		known []rauc.Slot
		order string
		bad   []string
	}{
		{"nothing known", nil, "SDV_A SDV_B", nil},
		{"from the factory", []rauc.Slot{slot("SDV_B", "", ""), slot("SDV_A", "", "")}, "SDV_A SDV_B", nil},
		{"B activated after A", []rauc.Slot{slot("SDV_A", "ok", "2026-01-02T03:04:05Z"), slot("SDV_B", "ok", "2026-01-10T00:00:00Z")}, "SDV_A SDV_B", nil},
		{"A activated after B", []rauc.Slot{slot("SDV_A", "ok", "2026-01-10T00:00:00Z"), slot("SDV_B", "ok", "2026-01-02T03:04:05Z")}, "SDV_B SDV_A", nil},
		{"A activated, B from the factory", []rauc.Slot{slot("SDV_A", "ok", "2026-01-10T00:00:00Z"), slot("SDV_B", "", "")}, "SDV_B SDV_A", nil},
		{"B activated, then half written", []rauc.Slot{slot("SDV_A", "ok", "2026-01-02T03:04:05Z"), slot("SDV_B", "pending", "2026-01-10T00:00:00Z")}, "SDV_A SDV_B", []string{"SDV_B"}},
		{"both failed", []rauc.Slot{slot("SDV_A", "failed", ""), slot("SDV_B", "failed", "2026-01-10T00:00:00Z")}, "SDV_A SDV_B", nil},
		{"a slot without boot name", []rauc.Slot{slot("", "failed", "2026-01-10T00:00:00Z")}, "SDV_A SDV_B", nil},
	} {
		st := rebuild(test.known)
		if got := strings.Join(st.Order, " "); got != test.order {
			t.Errorf("%s: order %s, want %s", test.name, got, test.order)
		}
		for _, name := range slots.Names {
			if bad := slices.Contains(test.bad, name); st.Slots[name] != (slots.Slot{OK: !bad}) {
				t.Errorf("%s: %s is %+v, bad must be %v", test.name, name, st.Slots[name], bad)
			}
		}
		// It must fit into an environment and come back the same.
		var vars bootenv.Vars
		st.Encode(&vars, bootenv.GRUB)
		if back, err := slots.Decode(&vars, bootenv.GRUB); err != nil || !back.Equal(st) {
			t.Errorf("%s: stored %+v, read %+v, %v", test.name, st, back, err)
		}
	}
}

func TestOnlyAnEnvironmentThatNobodyCanReadIsRepairedUnasked(t *testing.T) {
	for _, test := range []struct {
		reason   string
		readable bool
		want     bool
	}{
		{"unreadable", false, true},
		{"unreadable", true, false},
		{"exhausted", false, false},
		{"manual", false, false},
		{"unsaved", true, false},
	} {
		if got := shouldRepair(test.reason, test.readable); got != test.want {
			t.Errorf("%s, readable %v: %v", test.reason, test.readable, got)
		}
	}
}

func TestASecondRepairWithinTheHourIsLeftToPeople(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, test := range []struct {
		age  time.Duration
		want bool
	}{
		{time.Minute, true},
		{59 * time.Minute, true},
		{61 * time.Minute, false},
		{-time.Hour, true}, // the clock was set back
	} {
		if got := recent(now.Add(-test.age), now); got != test.want {
			t.Errorf("repaired %v ago: %v", test.age, got)
		}
	}
}

// sysfs makes a tree as below /sys: block devices with their uevent.
func sysfs(t *testing.T) string {
	root := t.TempDir()
	class := filepath.Join(root, "class/block")
	if err := os.MkdirAll(class, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, uevent := range map[string]string{
		"devices/pci/nvme0n1":           "DEVNAME=nvme0n1\nDEVTYPE=disk\n",
		"devices/pci/nvme0n1/nvme0n1p4": "DEVNAME=nvme0n1p4\nDEVTYPE=partition\nPARTN=4\nPARTNAME=root_a\n",
		"devices/pci/nvme0n1/nvme0n1p5": "DEVNAME=nvme0n1p5\nDEVTYPE=partition\nPARTN=5\nPARTNAME=root_b\n",
		"devices/usb/sda":               "DEVNAME=sda\nDEVTYPE=disk\n",
		"devices/usb/sda/sda1":          "DEVNAME=sda1\nDEVTYPE=partition\nPARTN=1\nPARTNAME=../../etc\n",
		"devices/virtual/loop0":         "DEVNAME=loop0\nDEVTYPE=disk\n",
	} {
		dir := filepath.Join(root, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "uevent"), []byte(uevent), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../../"+path, filepath.Join(class, filepath.Base(path))); err != nil {
			t.Fatal(err)
		}
	}
	return class
}

func TestPartitionsAreFoundWithLabelAndDisk(t *testing.T) {
	got, err := blocks(sysfs(t))
	if err != nil {
		t.Fatal(err)
	}
	want := []block{
		{"loop0", "loop0", ""},
		{"nvme0n1", "nvme0n1", ""},
		{"nvme0n1p4", "nvme0n1", "root_a"},
		{"nvme0n1p5", "nvme0n1", "root_b"},
		{"sda", "sda", ""},
		{"sda1", "sda", ""}, // its label is no file name
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(block{})); diff != "" {
		t.Error(diff)
	}
}

func TestAStickIsEveryDiskButTheVehiclesOwn(t *testing.T) {
	list, err := blocks(sysfs(t))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range foreign(list) {
		got = append(got, b.device())
	}
	if want := []string{"/dev/sda", "/dev/sda1"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestShellsRunOnTheKernelsConsoles(t *testing.T) {
	for active, want := range map[string][]string{
		"tty0 ttyS0\n":   {"tty1", "ttyS0"},
		"ttyAMA0\n":      {"ttyAMA0"},
		"tty0 tty1 hvc0": {"tty1", "hvc0"},
		"":               nil,
	} {
		if got := ttys(active); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", active, got, want)
		}
	}
}
