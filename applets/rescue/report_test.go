// SPDX-License-Identifier: Apache-2.0

package rescue

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the files in testdata anew")

// lost is a vehicle whose slots are both gone, otherwise well.
func lost() *Report {
	bad := destroyed("SDV_B")
	bad.OK = false
	return &Report{
		Reason:      "exhausted",
		Environment: Environment{Store: "grub:/grubenv/grubenv", Order: []string{"SDV_B", "SDV_A"}, Good: "SDV_A", Why: "SDV_B gate broker: connection refused"},
		Slots:       []Slot{destroyed("SDV_A"), bad},
		Data:        Volume{Mounted: true, Free: 412e6},
		Network:     []Interface{{Name: "eth0", Up: true, Addresses: []string{"10.0.2.15/24"}}},
		RAUC:        RAUC{Compatible: "sdvbox (qemux86-64)"},
	}
}

func TestReportNamesCausesAndCommands(t *testing.T) {
	dark := lost()
	dark.Reason = "unreadable"
	dark.Environment = Environment{Error: "no valid boot environment:\n/grubenv/grubenv: no header"}
	dark.Slots = []Slot{{Name: "SDV_A", Kernel: true, Version: "1.0"}, {Name: "SDV_B", Error: "half a file system", Status: "pending"}}
	dark.Data = Volume{Error: "no partition named data"}
	dark.Network = []Interface{{Name: "eth0"}}
	dark.RAUC = RAUC{Error: "RAUC service is not available"}

	spent := lost()
	a, b := intact("SDV_A"), intact("SDV_B")
	a.Left, a.Status, a.Bundle = 0, "ok", "1.0"
	spent.Slots = []Slot{a, b}

	for name, r := range map[string]*Report{"lost": lost(), "dark": dark, "spent": spent} {
		r.Advice = r.advise()
		var got bytes.Buffer
		if err := r.write(&got); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", name+".txt")
		if *update {
			if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got.String() != string(want) {
			t.Errorf("%s:\n%s\nwant:\n%s", name, got.String(), want)
		}
	}
}

func TestAdviceNeverSendsPeopleToABrokenSlot(t *testing.T) {
	r := lost()
	half := intact("SDV_A")
	half.Left, half.Status = 2, "failed"
	r.Slots[0] = half
	advice := strings.Join(r.advise(), "\n")
	if strings.Contains(advice, "can be booted") || strings.Contains(advice, "chance") || !strings.Contains(advice, "SDV_A and SDV_B must be installed again") {
		t.Errorf("advice for a slot that RAUC calls failed:\n%s", advice)
	}
}
