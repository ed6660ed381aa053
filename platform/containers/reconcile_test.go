// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"fmt"
	"slices"
	"testing"
)

func TestReconcile(t *testing.T) {
	atRest := Actual{Snapshot: true}
	running := Actual{Snapshot: true, Object: true, Task: TaskRunning, Watched: true, Recorded: true}
	for _, c := range []struct {
		name string
		want Goal
		is   Actual
		todo []Action
	}{
		{"running and wanted so", Running, running, nil},
		{"at rest and wanted so", AtRest, atRest, nil},
		{"start", Running, atRest, []Action{Launch}},
		{"start without its snapshot", Running, Actual{}, []Action{Prepare, Launch}},
		{"stop", AtRest, running, []Action{Kill, Collect, Release}},
		{"remove at rest", Gone, atRest, []Action{Release, Discard, Forget}},
		{"remove running", Gone, running, []Action{Kill, Collect, Release, Discard, Forget}},
		{"running, agent restarted", Running, Actual{Snapshot: true, Object: true, Task: TaskPaused, Recorded: true}, []Action{Adopt}},
		{"agent killed while it stopped it", AtRest, Actual{Snapshot: true, Object: true, Task: TaskRunning, Recorded: true},
			[]Action{Adopt, Kill, Collect, Release}},
		{"agent killed before it wrote that it runs", Running, Actual{Snapshot: true, Object: true, Task: TaskRunning}, []Action{Adopt}},
		{"agent killed between task and start", Running, Actual{Snapshot: true, Object: true, Task: TaskUnstarted}, []Action{Release, Launch}},
		{"agent killed between object and task", Running, Actual{Snapshot: true, Object: true}, []Action{Release, Launch}},
		{"ended while nobody looked", Running, Actual{Snapshot: true, Object: true, Task: TaskEnded, Recorded: true}, []Action{Collect, Release}},
		{"ended and written down, but not cleared away", Running, Actual{Snapshot: true, Object: true, Task: TaskEnded}, []Action{Release, Launch}},
		{"machine restarted", Running, Actual{Snapshot: true, Object: true, Recorded: true}, []Action{Collect, Release}},
		{"everything lost", Running, Actual{Recorded: true}, []Action{Collect, Release}},
		{"agent killed while it removed it", Gone, Actual{}, []Action{Release, Discard, Forget}},
	} {
		if todo := Reconcile(c.want, c.is); !slices.Equal(todo, c.todo) {
			t.Errorf("%s: %v, want %v", c.name, todo, c.todo)
		}
	}
}

// apply is what an action does when all goes well.
func apply(a Action, is Actual) Actual {
	switch a {
	case Prepare:
		is.Snapshot = true
	case Adopt:
		is.Watched, is.Recorded = true, true
	case Kill:
		is.Task = TaskEnded
	case Collect:
		is.Recorded, is.Watched = false, false
	case Release:
		is.Task, is.Object = NoTask, false
	case Launch:
		is.Object, is.Task, is.Watched, is.Recorded = true, TaskRunning, true, true
	case Discard:
		is.Snapshot = false
	}
	return is
}

func reached(want Goal, is Actual) bool {
	switch want {
	case Running:
		return is.Task.Live() && is.Watched && is.Recorded && is.Snapshot
	case Gone:
		return is == Actual{}
	}
	return is == Actual{Snapshot: is.Snapshot}
}

func TestEveryStateReachesEveryGoalWhereverTheAgentIsKilled(t *testing.T) {
	const states = 2 * 2 * 5 * 2 * 2
	for n := range states {
		start := Actual{n&1 != 0, n&2 != 0, Task(n >> 2 % 5), n/20&1 != 0, n/40&1 != 0}
		if start.Watched && !start.Task.Live() || start.Task != NoTask && !(start.Snapshot && start.Object) {
			continue // cannot be
		}
		for want := AtRest; want <= Gone; want++ {
			for cut := 0; ; cut++ {
				is, done := start, 0
				for pass := 0; !reached(want, is); pass++ {
					if pass > 3 {
						t.Fatalf("goal %v from %+v, killed after %d steps: not reached, at %+v", want, start, cut, is)
					}
					for _, a := range Reconcile(want, is) {
						is = apply(a, is)
						if done++; done == cut {
							is.Watched = false // the next agent knows the record, no more
							break
						}
					}
				}
				if todo := Reconcile(want, is); want != Gone && len(todo) > 0 {
					t.Fatalf("at the goal %v there is more to do: %v", want, fmt.Sprint(todo))
				}
				if cut > done {
					break
				}
			}
		}
	}
}
