// SPDX-License-Identifier: Apache-2.0

package orchestrator

import (
	"slices"
	"time"

	"sdvbox/platform/updateproto"
)

// verifying is what an actor is busy with after a boot.
const verifying = "VERIFYING"

// actor is an agent of one domain, with all the manners of its kind, whose work
// is a matter of time only. It is called with vehicle.mu held.
type actor struct {
	v       *vehicle
	domain  string
	story   plan          // for the activity storyID
	pace    time.Duration // of a piece of work
	reboots bool          // activated is what runs after the next boot
	mute    bool          // answers neither ROLLBACK nor what does not fit, as the self-update agent of Leda

	runs     string      // "old" or "new"
	next     string      // activity whose outcome the next boot tries
	id       string      // of the activity; empty when idle
	phase    string      // the last order that succeeded; "failed", "rolled back"
	busy     string      // the order it works on
	last     string      // status said last
	inbox    [][2]string // ids and orders that the broker has for it
	waiting  [][2]string // orders that it has read and left for later
	ended    []string    // activities
	works    map[string]int
	released bool // it hangs, but was told to go back
	down     bool // between shutdown and boot
	run      int  // number of the work
}

// plan is how it behaves now.
func (a *actor) plan() plan {
	if a.id == storyID {
		return a.story
	}
	return plan{}
}

// take is a message from the broker. Agents need a moment to read it.
func (a *actor) take(id, order string) {
	a.inbox = append(a.inbox, [2]string{id, order})
	time.AfterFunc(10*time.Millisecond, a.read)
}

func (a *actor) read() {
	a.v.mu.Lock()
	defer a.v.mu.Unlock()
	if a.down || len(a.inbox) == 0 { // the broker keeps it
		return
	}
	m := a.inbox[0]
	a.inbox = a.inbox[1:]
	a.do(m[0], m[1])
}

func (a *actor) do(id, order string) {
	if a.busy != "" && a.plan().hang == a.busy && (order == "ROLLBACK" || order == "CLEANUP") {
		a.released = true
		if a.v.style != resuming {
			return
		}
	}
	if a.v.style == resuming {
		a.resuming(id, order)
	} else {
		a.original(id, order)
	}
}

// before is what has to have succeeded for a step forward.
func before(order string) string {
	switch order {
	case "DOWNLOAD":
		return orderDesired
	case "UPDATE":
		return "DOWNLOAD"
	case "ACTIVATE":
		return "UPDATE"
	}
	return ""
}

// resuming behaves like package updateagent.
func (a *actor) resuming(id, order string) {
	way := []string{orderDesired, "DOWNLOAD", "UPDATE", "ACTIVATE"}
	switch {
	case order == orderDesired && a.id == id:
		a.say(a.last)
	case order == orderDesired && a.id != "":
		a.sayFor(id, "IDENTIFICATION_FAILED")
	case order == orderDesired:
		a.id, a.phase = id, ""
		a.begin(order)
	case a.id == "":
		switch {
		case order == "CLEANUP":
			a.sayFor(id, "CLEANUP_SUCCESS")
		case order == "ROLLBACK" && slices.Contains(a.ended, id):
			a.sayFor(id, "ROLLBACK_SUCCESS")
		default:
			a.sayFor(id, failure(order))
		}
	case a.id != id:
		a.sayFor(id, failure(order))
	case order == "ROLLBACK":
		switch a.busy {
		case "ROLLBACK":
			a.say(a.last)
		case "CLEANUP":
			a.say("ROLLBACK_FAILURE")
		default:
			a.begin(order)
		}
	case order == "CLEANUP":
		switch a.busy {
		case "CLEANUP":
		case "ROLLBACK", "ACTIVATE", verifying:
			if m := [2]string{id, order}; !slices.Contains(a.waiting, m) {
				a.waiting = append(a.waiting, m)
			}
		default:
			a.begin(order)
		}
	case slices.Index(way, a.busy) >= slices.Index(way, order) || slices.Index(way, a.phase) >= slices.Index(way, order):
		a.say(a.last)
	case a.busy == "" && a.phase == before(order):
		a.begin(order)
	default:
		a.say(failure(order))
	}
}

// original behaves as the protocol's description says of the first agents: the
// containers' one refuses what does not fit, that of self-update is mute and
// reads nothing while it works.
func (a *actor) original(id, order string) {
	if a.busy != "" && (a.mute || a.v.style == slow) {
		a.waiting = append(a.waiting, [2]string{id, order})
		return
	}
	if order != orderDesired && (a.id != id || a.id == "") {
		return
	}
	fits := false
	switch {
	case a.busy != "":
	case order == orderDesired:
		fits = a.id == ""
	case order == "CLEANUP":
		fits = !a.mute || a.phase == "ACTIVATE" || a.phase == "failed"
	case order == "ROLLBACK" && a.mute:
		a.undo()
		a.idle()
		return
	case order == "ROLLBACK":
		fits = a.phase == "DOWNLOAD" || a.phase == "UPDATE" || a.phase == "ACTIVATE"
	default:
		fits = a.phase == before(order)
	}
	switch {
	case fits:
		if order == orderDesired {
			a.id, a.phase = id, ""
		}
		a.begin(order)
	case !a.mute:
		a.sayFor(id, failure(order))
	}
}

func success(order string) string {
	switch order {
	case orderDesired:
		return "IDENTIFIED"
	case "ACTIVATE":
		return "ACTIVATION_SUCCESS"
	}
	return order + "_SUCCESS"
}

func failure(order string) string {
	switch order {
	case orderDesired:
		return "IDENTIFICATION_FAILED"
	case "ACTIVATE":
		return "ACTIVATION_FAILURE"
	}
	return order + "_FAILURE"
}

// begin starts to work, in place of what it works on.
func (a *actor) begin(order string) {
	a.run++
	run := a.run
	if order != orderDesired || !slices.Contains(a.ended, a.id) { // to look again is no work
		a.works[a.id+" "+order]++
	}
	a.busy = order
	switch order {
	case orderDesired:
		a.say("IDENTIFYING")
	case "ROLLBACK":
		a.say("ROLLBACK")
	case "DOWNLOAD":
		a.say("DOWNLOADING")
	case "UPDATE":
		a.say("UPDATING")
	case "ACTIVATE":
		a.say("ACTIVATING")
	}
	if a.plan().hang == order {
		a.released = order == "CLEANUP"
		return
	}
	pace := a.pace
	if order == orderDesired || order == "CLEANUP" {
		pace = a.pace / 10
	}
	time.AfterFunc(pace, func() {
		a.v.mu.Lock()
		defer a.v.mu.Unlock()
		if a.run == run && !a.down {
			a.end(order)
		}
	})
}

// end is the end of a piece of work.
func (a *actor) end(order string) {
	a.busy = ""
	fails := a.plan().fail == order
	activated := a.phase == "ACTIVATE"
	switch {
	case order == "CLEANUP":
		if !activated {
			a.undo()
		}
		if fails {
			a.say("CLEANUP_FAILURE")
		} else {
			a.say("CLEANUP_SUCCESS")
		}
		switch {
		case !activated || fails:
			a.say("INCOMPLETE")
		case a.v.style == resuming:
			a.say("COMPLETED")
		default:
			a.say("COMPLETE")
		}
		a.idle()
	case order == orderDesired && a.plan().nothing:
		if !a.mute {
			a.say("IDENTIFIED")
			a.say("COMPLETED")
			a.idle()
			break
		}
		a.say("COMPLETED")
		a.phase = "failed" // until it is released
	case a.plan().quit == order:
		a.say("INCOMPLETE")
		a.idle()
	case fails:
		a.phase = "failed"
		a.say(failure(order))
		if order == orderDesired {
			a.idle()
		}
	case order == "ROLLBACK":
		a.phase = "rolled back"
		a.undo()
		a.say("ROLLBACK_SUCCESS")
		if a.v.style == resuming {
			a.say("INCOMPLETE")
			a.idle()
		}
	default:
		a.phase = order
		if order == "ACTIVATE" {
			if a.reboots {
				a.next = a.id
			} else {
				a.runs = "new"
			}
		}
		a.say(success(order))
	}
	waiting := a.waiting
	a.waiting = nil
	for i, m := range waiting {
		if a.busy != "" && a.v.style != resuming {
			a.waiting = append(a.waiting, waiting[i:]...)
			break
		}
		a.do(m[0], m[1])
	}
}

// undo makes the old version the one that runs, or that runs after the next boot.
func (a *actor) undo() {
	if a.reboots && a.runs == "new" {
		a.next = oldVersion
		return
	}
	a.runs, a.next = "old", ""
}

const oldVersion = "the old version"

func (a *actor) idle() {
	a.ended = append(a.ended, a.id)
	a.id, a.phase, a.busy = "", "", ""
	a.run++
}

// reboot takes the whole vehicle down and up again.
func (a *actor) reboot() {
	a.down = true
	a.run++
	off := a.run
	a.v.notef("%s: goes down", a.domain)
	time.AfterFunc(20*time.Second, func() {
		a.v.mu.Lock()
		defer a.v.mu.Unlock()
		if a.run != off {
			return // down again
		}
		a.down = false
		for range a.inbox {
			time.AfterFunc(10*time.Millisecond, a.read)
		}
		activated := a.phase == "ACTIVATE"
		if a.next == oldVersion {
			a.runs = "old"
		} else if a.next != "" && (a.next != storyID || a.story.fail != "BOOT") {
			a.runs = "new"
		}
		a.next = ""
		a.v.notef("%s: runs %s after the boot", a.domain, a.runs)
		switch {
		case a.v.style != resuming:
			a.id, a.phase, a.busy, a.waiting = "", "", "", nil
			return
		case a.id == "":
			return
		case a.busy != "" && a.busy != verifying: // it goes on with that
			a.works[a.id+" "+a.busy]--
			a.begin(a.busy)
			return
		case !a.reboots || !activated:
			a.say(a.last)
			return
		}
		a.busy = verifying
		a.run++
		run := a.run
		a.say("ACTIVATING")
		if a.plan().hang == verifying {
			return
		}
		time.AfterFunc(a.pace, func() {
			a.v.mu.Lock()
			defer a.v.mu.Unlock()
			if a.run != run {
				return
			}
			a.busy = ""
			if a.runs == "new" {
				a.say("ACTIVATION_SUCCESS")
			} else {
				a.phase = "failed"
				a.say("ACTIVATION_FAILURE")
			}
			waiting := a.waiting
			a.waiting = nil
			for _, m := range waiting {
				a.do(m[0], m[1])
			}
		})
	})
}

func (a *actor) say(status string) {
	a.last = status
	a.sayFor(a.id, status)
}

func (a *actor) sayFor(id, status string) {
	f := updateproto.Feedback{Status: status, Message: status + " of " + a.domain}
	if (id != storyID || !a.story.nothing) && status != "IDENTIFYING" && status != "IDENTIFICATION_FAILED" {
		f.Actions = []updateproto.Action{{Component: updateproto.ComponentRef{ID: a.domain + ":x", Version: "2"}, Status: status}}
	}
	a.v.notef("%s: %s", a.domain, status)
	a.v.push(Reported{Domain: a.domain, ID: id, Feedback: f})
}
