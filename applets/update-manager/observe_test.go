// SPDX-License-Identifier: Apache-2.0

package updatemanager

import (
	"strings"
	"testing"
	"time"

	"sdvbox/platform/manager"
	"sdvbox/platform/orchestrator"
)

func TestEndedActivitiesAreCountedOnce(t *testing.T) {
	list := entries(5)
	list[2].Status = "COMPLETED"
	list[3].ID, list[3].Ended = list[1].ID, list[1].Ended+1 // the same id again
	o := &observer{ended: map[string]uint64{}, last: list[1]}
	o.count(list[:2])
	o.count(list[:4])
	o.count(list[:4])
	o.count(list[4:]) // the older ones have been forgotten
	if o.ended["COMPLETED"] != 1 || o.ended["INCOMPLETE"] != 2 || len(o.ended) != 2 {
		t.Errorf("counted %v", o.ended)
	}
	if o.seconds != 2*61.5 { // the clock was set back in the third one
		t.Errorf("took %v s", o.seconds)
	}
	o = &observer{ended: map[string]uint64{}}
	o.count(nil)
	o.count(list[:1])
	if o.ended["INCOMPLETE"] != 1 {
		t.Errorf("counted %v of the first one", o.ended)
	}
}

func TestMetricsShowTheRunningActivity(t *testing.T) {
	s := busy()
	got := string(text(s, manager.Counters{Up: true, Connects: 3}, nil, 0, "1.2", time.UnixMilli(s.Since+1500)))
	for _, want := range []string{
		"update_manager_info{version=\"1.2\"} 1\n", "update_manager_bus_connects_total 3\n", "update_manager_phase{phase=\"idle\"} 0\n",
		"update_manager_phase{phase=\"download\"} 1\n", "update_manager_activity_running_seconds 1.5\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in:\n%s", want, got)
		}
	}
}

func TestStatusLineSaysWhatIsWaitedFor(t *testing.T) {
	for _, test := range []struct {
		status orchestrator.Status
		want   string
	}{
		{busy(), `activity "a1": download, waits for self-update (DOWNLOAD)`},
		{orchestrator.Status{Phase: idle}, "not connected to the bus, no activity"},
		{orchestrator.Status{Phase: "update", Connected: true}, `activity "": update`}, // an id may be empty
	} {
		if got := statusLine(test.status); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}
