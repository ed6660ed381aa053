// SPDX-License-Identifier: Apache-2.0

package containers

// Goal is what a container is wanted to be.
type Goal int

// The goals.
const (
	AtRest  Goal = iota // there, without a process
	Running             // with a process, which may be paused
	Gone                // nothing of it is left
)

// Task is what containerd knows of a container's process.
type Task int

// The tasks.
const (
	NoTask Task = iota
	TaskUnstarted
	TaskRunning
	TaskPaused
	TaskEnded
)

// Live reports whether there is a process.
func (t Task) Live() bool { return t == TaskRunning || t == TaskPaused }

// Actual is what there is of a container.
type Actual struct {
	Snapshot bool // its file system
	Object   bool // containerd's description of it
	Task     Task
	Watched  bool // the end of its process is going to be noticed
	Recorded bool // the record says that it has a process
}

// Action is one step towards a goal. Each can be repeated: what is done already is no error.
type Action int

// The actions.
const (
	Prepare Action = iota // get the image, make the snapshot
	Adopt                 // watch the process that is there, take up its output
	Kill                  // end the process and wait for that
	Collect               // write down how the process has ended
	Release               // remove what a process needs: task, object, network
	Launch                // start a process
	Discard               // remove the snapshot and the files
	Forget                // remove the record
)

var actionNames = []string{"Prepare", "Adopt", "Kill", "Collect", "Release", "Launch", "Discard", "Forget"}

func (a Action) String() string { return actionNames[a] }

// Reconcile returns the steps, in order, that take a container from what there is to its goal. At the goal there are none,
// except that a process which has ended is only cleared away: whether there is to be another one is the restart policy's
// decision, and when it is taken Reconcile is asked again.
func Reconcile(want Goal, is Actual) []Action {
	var steps []Action
	ended := false
	if is.Task.Live() {
		if !is.Watched || !is.Recorded {
			steps = append(steps, Adopt)
		}
		if want == Running {
			return steps
		}
		steps = append(steps, Kill)
		ended = true
	}
	if is.Recorded || ended {
		steps = append(steps, Collect)
		ended = true
	}
	if ended || is.Object || is.Task != NoTask || want == Gone {
		steps = append(steps, Release)
	}
	switch {
	case want == Gone:
		steps = append(steps, Discard, Forget)
	case want == Running && !ended:
		if !is.Snapshot {
			steps = append(steps, Prepare)
		}
		steps = append(steps, Launch)
	}
	return steps
}
