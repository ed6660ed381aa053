// SPDX-License-Identifier: Apache-2.0

package killmatrix

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/ctrd"
)

// The original's daemon missed now and then that a process had ended, and waited for it until it gave up.
func TestStopsInARowNeverWedge(t *testing.T) {
	t.Parallel()
	r := running(t)
	before := r.place.Take(t)
	rounds := 6
	if long {
		rounds = 50
	}
	stops := []struct {
		container *ctrmodel.Container
		ready     bool // is waited for: process 1 is not sent a signal that it does not handle
		options   ctrmodel.StopOptions
	}{
		{container("obedient", ctrmodel.RestartAlways, sleeper), true, ctrmodel.StopOptions{Timeout: 20}},
		{container("instant", ctrmodel.RestartAlways, "trap 'exit 7' TERM; echo ready; sleep 1000000 & wait"), true, ctrmodel.StopOptions{Timeout: 20}},
		{container("killed", ctrmodel.RestartAlways, sleeper), false, ctrmodel.StopOptions{Signal: "SIGKILL"}},
		{container("short", ctrmodel.RestartAlways, "sleep 0.1"), false, ctrmodel.StopOptions{Timeout: 20}}, // ends by itself at that time
	}
	var longest time.Duration
	for _, s := range stops {
		c := s.container
		r.create(c)
		for n := range rounds {
			r.must(r.Start(t.Context(), c.ID))
			if s.ready {
				r.awaitReady(c.ID, n+1)
			}
			begin := time.Now()
			if err := r.Stop(t.Context(), c.ID, s.options); err != nil {
				t.Fatalf("stop %d of %s: %v", n, c.Name, err)
			}
			longest = max(longest, time.Since(begin))
			if got, pid, err := r.look(c.ID); err != nil || got.State.Status != ctrmodel.Stopped || pid != 0 {
				t.Fatalf("after stop %d of %s: %+v, process %d, %v", n, c.Name, got, pid, err)
			}
		}
	}
	t.Logf("%d stops, the longest took %v", rounds*len(stops), longest.Round(time.Millisecond))
	if longest > ctrd.Patient(10*time.Second) {
		t.Errorf("a stop took %v", longest)
	}

	// Who is stopped stays stopped, whoever else begins anew.
	time.Sleep(500 * time.Millisecond) // longer than any pause
	for _, end := range []func(){r.kill, r.Terminate, func() { r.Containerd.Kill(); r.Containerd.Run(); r.kill() }} {
		end()
		r.launch()
		r.serving()
		time.Sleep(500 * time.Millisecond)
		for _, s := range stops {
			c := s.container
			if got, pid, err := r.look(c.ID); err != nil || got.State.Status != ctrmodel.Stopped || pid != 0 {
				t.Errorf("%s does not stay stopped: %v, process %d, %v", c.Name, got, pid, err)
			}
		}
	}
	for _, s := range stops {
		r.remove(s.container.ID)
	}
	r.place.Await(t, before, 10*time.Second)
}

func TestTenStubbornContainersStopInOneTimeout(t *testing.T) {
	t.Parallel()
	timeout := stopTimeout()
	r := running(t, func(r *rig) { r.Config["manager"]["stop_containers_on_exit"] = true })
	before := r.place.Take(t)
	var ids []string
	for n := range 10 {
		ids = append(ids, r.run(container(fmt.Sprint("stubborn", n), ctrmodel.RestartAlways, stubborn)))
	}
	expect := func(what string, took time.Duration) {
		t.Helper()
		t.Logf("%s: %v", what, took.Round(time.Millisecond))
		if took < timeout || took > 5*timeout { // one after the other, they would take ten
			t.Errorf("%s took %v, expected a little more than %v", what, took, timeout)
		}
	}
	begin := time.Now()
	r.Terminate()
	expect("the end of the agent", time.Since(begin))
	for _, s := range r.Containerd.Shims() {
		t.Errorf("a process of %s is left", s.ID)
	}
	r.launch() // nobody has ordered them to stop
	for _, id := range ids {
		r.awaitRunning(id)
	}
	begin = time.Now()
	var all sync.WaitGroup
	for _, id := range ids {
		all.Go(func() {
			if err := r.Stop(t.Context(), id, ctrmodel.StopOptions{Force: true}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	expect("stops at the same time", time.Since(begin))
	for _, id := range ids {
		r.remove(id)
	}
	r.place.Await(t, before, 10*time.Second)
}
