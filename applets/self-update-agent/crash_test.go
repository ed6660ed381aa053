// SPDX-License-Identifier: Apache-2.0

package selfupdateagent

import (
	"os"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/bootenv"
	"sdvbox/platform/rauc"
	"sdvbox/testing/raucd"
)

// The agent is killed after each write of its journal in turn. Started again,
// it goes on by itself, and the update ends with one terminal status.
func TestKillAfterEachJournalWrite(t *testing.T) {
	spec := raucd.BundleSpec{Version: "2", SizeMiB: 8}
	for n := 1; ; n++ {
		r := newRig(t, raucd.Options{})
		r.serve(spec)
		crashed := r.drive(n)
		if t.Failed() {
			t.Fatalf("failed with a crash after journal write %d", n)
		}
		r.check(spec)
		if !crashed {
			if n < 10 {
				t.Errorf("a whole update has only %d journal writes", n-1)
			}
			t.Logf("%d journal writes, a crash after each", n-1)
			return
		}
		r.stop(syscall.SIGTERM)
	}
}

// drive acts as the update manager for one update with a reboot. The agent
// dies after journal write crash and is then started again as systemd would.
func (r *rig) drive(crash int) (crashed bool) {
	r.t.Helper()
	const id = "a"
	r.start(crash)
	r.awaitAgent()
	r.desire(id, "2")
	next := map[string]string{"IDENTIFIED": "DOWNLOAD", "DOWNLOAD_SUCCESS": "UPDATE", "UPDATE_SUCCESS": "ACTIVATE"}
	sent := map[string]bool{}
	rebooted := false
	deadline := time.After(20 * time.Second)
	for {
		select {
		case <-deadline:
			r.t.Errorf("no terminal status; heard %v", r.heard)
			return crashed
		case <-r.exited:
			if crashed {
				r.t.Fatal("the agent has ended by itself")
			}
			crashed = true
			r.agent = nil
			r.start(crash) // it does not die of the same write again
			continue
		case m := <-r.client.Messages():
			if m.Topic != "selfupdate/desiredstatefeedback" {
				continue
			}
			f := r.feedback(m.Payload)
			switch c := next[f.Status]; {
			case c != "" && !sent[c]:
				sent[c] = true
				r.command(id, c)
			case f.Status == "ACTIVATION_SUCCESS" && !rebooted:
				rebooted = true
				r.reboot("SDV_B")
				r.env(func(v *bootenv.Vars) { v.Set("SDV_B_TRY", "0"); v.Set("SDV_GOOD", "SDV_B") })
				r.start(crash)
			case f.Status == "ACTIVATION_SUCCESS" && rebooted && !sent["CLEANUP"]:
				sent["CLEANUP"] = true
				r.command(id, "CLEANUP")
			case f.Status == "COMPLETE":
				return crashed
			case f.Status == "INCOMPLETE" || f.Status == "IDENTIFICATION_FAILED" || len(f.Status) > 8 && f.Status[len(f.Status)-8:] == "_FAILURE":
				r.t.Errorf("%s: %s", f.Status, f.Message)
				return crashed
			}
		}
	}
}

// check looks at what an update has left behind.
func (r *rig) check(spec raucd.BundleSpec) {
	r.t.Helper()
	time.Sleep(300 * time.Millisecond)
	terminals := 0
	for _, f := range r.heard {
		switch f.Status {
		case "COMPLETE", "COMPLETED", "INCOMPLETE":
			terminals++
		}
	}
	if terminals != 1 {
		r.t.Errorf("%d terminal statuses", terminals)
	}
	info, err := os.Stat(r.bundle)
	if err != nil {
		r.t.Fatal(err)
	}
	if n := r.served.Load(); n < info.Size() || n > info.Size()+1<<20 {
		r.t.Errorf("%d bytes were sent of a bundle of %d: something was fetched twice", n, info.Size())
	}
	if !r.rauc.Holds(r.t, "rootfs.1", spec) {
		r.t.Error("the slot does not hold the image")
	}
	c, err := rauc.Dial(r.t.Context(), r.rauc.Address)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	slots, err := c.Slots(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range slots {
		if s.Name == "rootfs.1" && s.Installed.Count != 1 {
			r.t.Errorf("the slot was installed to %d times", s.Installed.Count)
		}
	}
}
