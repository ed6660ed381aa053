// SPDX-License-Identifier: Apache-2.0

package orchestrator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sdvbox/platform/durable"
	"sdvbox/platform/updateproto"
)

// The manager of a vehicle is killed at each point at which something of it
// becomes visible: after each save of its journal, before and after each thing
// that it publishes, and before each acknowledgement. Whatever it had not
// acknowledged is delivered again. The outcome must be the one that there is
// without a kill. The same goes for an outage of the bus, and for a cut of the
// power of the whole vehicle as far as its agents go on after that.

// story is what happens to a vehicle with two domains, and how it has to end.
type story struct {
	name                string
	policy              Policy
	containers, os      plan
	consent             []string
	deny                string        // the command that the owner refuses
	reboot              bool          // self-update takes effect at the next boot
	cancel              time.Duration // after the request
	status              string        // how it ends
	domains             string        // what containers and self-update run then
	originals, withOnes string        // the same with agents of the original kind, if it differs
}

// plan is how an agent behaves.
type plan struct {
	fail    string // what it fails: DESIREDSTATE, a command, or BOOT
	hang    string // what it never ends
	quit    string // in which it says INCOMPLETE
	nothing bool   // there is nothing to do
}

// Activities: that of the story, and one after it, which everything has to be
// free for.
const storyID, nextID = "a1", "a2"

func stories() []story {
	return []story{
		{name: "happy", status: "COMPLETED", domains: "new new"},
		{name: "happy after a reboot", policy: All, reboot: true, status: "COMPLETED", domains: "new new"},
		{name: "identification fails", containers: plan{fail: orderDesired}, status: "IDENTIFICATION_FAILED", domains: "old old"},
		{name: "download fails", os: plan{fail: "DOWNLOAD"}, status: "INCOMPLETE", domains: "new old"},
		{name: "download fails, all or nothing", policy: All, os: plan{fail: "DOWNLOAD"}, status: "INCOMPLETE", domains: "old old"},
		{name: "update fails, all or nothing", policy: All, os: plan{fail: "UPDATE"}, status: "INCOMPLETE", domains: "old old"},
		{name: "activation fails", containers: plan{fail: "ACTIVATE"}, status: "INCOMPLETE", domains: "old new"},
		{name: "activation fails, all or nothing", policy: All, containers: plan{fail: "ACTIVATE"}, reboot: true, status: "INCOMPLETE", domains: "old old"},
		{name: "both fail", policy: All, containers: plan{fail: "UPDATE"}, os: plan{fail: "UPDATE"}, status: "INCOMPLETE", domains: "old old"},
		{name: "one gives up, all or nothing", policy: All, os: plan{quit: "UPDATE"}, status: "INCOMPLETE", domains: "old old"},
		{name: "cleanup fails", os: plan{fail: "CLEANUP"}, status: "COMPLETED", domains: "new new"},
		{name: "nothing to do in one domain", os: plan{nothing: true}, reboot: true, status: "COMPLETED", domains: "new old"},
		{name: "nothing to do", containers: plan{nothing: true}, os: plan{nothing: true}, status: "COMPLETED", domains: "old old"},
		{name: "owner agrees", consent: []string{"DOWNLOAD", "UPDATE", "ACTIVATE"}, status: "COMPLETED", domains: "new new"},
		{name: "owner refuses the download", consent: []string{"DOWNLOAD"}, deny: "DOWNLOAD", status: "INCOMPLETE", domains: "old old"},
		{name: "owner refuses the update", consent: []string{"DOWNLOAD", "UPDATE"}, deny: "UPDATE", status: "INCOMPLETE", domains: "old old"},
		{name: "owner refuses the activation", consent: []string{"UPDATE", "ACTIVATE"}, deny: "ACTIVATE", status: "INCOMPLETE", domains: "old old"},
		{name: "cancelled", cancel: 4 * time.Second, status: "INCOMPLETE", domains: "old old"},
		{name: "identification hangs", os: plan{hang: orderDesired}, status: "IDENTIFICATION_FAILED", domains: "old old"},
		{name: "update hangs, all or nothing", policy: All, os: plan{hang: "UPDATE"}, status: "INCOMPLETE", domains: "old old"},
		{name: "cleanup hangs", containers: plan{hang: "CLEANUP"}, status: "INCOMPLETE", domains: "new new"},
		{name: "new system does not boot, all or nothing", policy: All, os: plan{fail: "BOOT"}, reboot: true, status: "INCOMPLETE", domains: "old old",
			originals: "COMPLETED", withOnes: "new old"},
		{name: "silent after the reboot, all or nothing", policy: All, os: plan{hang: verifying}, reboot: true, status: "INCOMPLETE", domains: "old old",
			originals: "COMPLETED", withOnes: "new new"},
	}
}

// style is which agents a vehicle has.
type style string

const (
	resuming style = "resuming"
	original style = "original"      // as the containers' and the self-update agent of Kanto and Leda
	slow     style = "slow original" // their work takes longer than the manager waits for a sign of life
)

// fault is what goes wrong at a point.
type fault struct {
	at   int
	what trouble
}

type trouble string

const (
	kill   trouble = "KILL"
	outage trouble = "OUTAGE"
	cut    trouble = "POWER CUT"
)

func TestNoKillOutageOrPowerCutChangesAnOutcome(t *testing.T) {
	for _, sty := range []style{resuming, original, slow} {
		for _, s := range stories() {
			t.Run(string(sty)+"/"+s.name, func(t *testing.T) {
				t.Parallel()
				n := live(t, s, sty)
				for at := 1; at <= n && !t.Failed(); at++ {
					live(t, s, sty, fault{at, kill})
					live(t, s, sty, fault{at, kill}, fault{at + 1 + at%7, kill}) // and soon again
					live(t, s, sty, fault{at, outage})
					live(t, s, sty, fault{at, cut})
				}
				rounds := 10
				if os.Getenv("SDVBOX_LONG") == "1" {
					rounds = 1000
				}
				for seed := 0; seed < rounds && !t.Failed(); seed++ {
					live(t, s, sty, misfortune(uint64(seed), n)...)
				}
			})
		}
	}
}

// misfortune is a series of faults, mostly within the first n points.
func misfortune(seed uint64, n int) (faults []fault) {
	rng := rand.New(rand.NewPCG(seed, 0))
	at := 0
	for range 2 + rng.IntN(6) {
		at += 1 + rng.IntN(n/3+1)
		faults = append(faults, fault{at, []trouble{kill, kill, outage, cut}[rng.IntN(4)]})
	}
	return faults
}

// live runs a story to its end with the given faults and returns how many points
// there were.
func live(t *testing.T, s story, sty style, faults ...fault) (points int) {
	dir, err := os.MkdirTemp(shm(), "orchestrator")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	synctest.Test(t, func(t *testing.T) {
		v := newVehicle(t, s, sty, dir, faults)
		v.run()
		points = v.ours
	})
	return points
}

// shm is a place in memory, so that the disk does not count.
func shm() string {
	const dir = "/dev/shm"
	if _, err := os.Stat(dir); err != nil {
		return ""
	}
	return dir
}

// vehicle is everything around the manager: broker, agents, owner, backend.
type vehicle struct {
	t       *testing.T
	story   story
	style   style
	journal string
	agents  []*actor

	mu     sync.Mutex
	faults []fault
	fault  int // next of them
	points int
	ours   int     // points of the story
	then   bool    // there is to be another activity after it
	next   bool    // it is requested
	down   bool    // the bus
	inbox  []Event // what the broker has for the manager
	news   chan struct{}
	said   []Outgoing // what it has got for the north
	life   *life
	boot   int
	began  time.Time
	log    []string
}

// life is the manager from a start to a kill.
type life struct {
	v      *vehicle
	d      *Driver
	j      *durable.Journal
	ctx    context.Context
	cancel context.CancelFunc
	over   chan struct{} // closed at the kill
	dead   bool
	ended  chan struct{} // closed when nothing of it runs any more
}

var errGone = errors.New("killed or not connected")

func newVehicle(t *testing.T, s story, sty style, dir string, faults []fault) *vehicle {
	v := &vehicle{t: t, story: s, style: sty, journal: filepath.Join(dir, "journal"), faults: faults, news: make(chan struct{}, 1)}
	v.agents = []*actor{
		{v: v, domain: "containers", story: s.containers, pace: 3 * time.Second, runs: "old"},
		{v: v, domain: "self-update", story: s.os, pace: 5 * time.Second, runs: "old", reboots: s.reboot, mute: sty != resuming},
	}
	for _, a := range v.agents {
		a.works = map[string]int{}
		if sty == slow {
			a.pace *= 15
		}
	}
	return v
}

func (v *vehicle) config() Config {
	return Config{
		Agents: map[string]Agent{
			"containers":  {ReadTimeout: 30 * time.Second},
			"self-update": {ReadTimeout: 30 * time.Second, RebootRequired: v.story.reboot},
		},
		FailurePolicy:  v.story.policy,
		PhaseTimeout:   10 * time.Minute,
		VerifyTimeout:  20 * time.Minute,
		ConsentTimeout: 30 * time.Minute,
		Consent:        v.story.consent,
		RebootEnabled:  true,
		RebootAfter:    30 * time.Second,
		GateTimeout:    time.Hour,
	}
}

func (v *vehicle) notef(format string, args ...any) {
	v.log = append(v.log, fmt.Sprintf("%s ", time.Now().Format("15:04:05.000"))+fmt.Sprintf(format, args...))
}

func (v *vehicle) failf(format string, args ...any) {
	v.t.Helper()
	v.t.Errorf("%v: %s\n%s", v.faults, fmt.Sprintf(format, args...), strings.Join(v.log, "\n"))
	v.log = nil // once is enough
}

// run lives until nothing is left to do, and judges.
func (v *vehicle) run() {
	v.deliver(v.request(storyID))
	if v.story.cancel > 0 {
		time.AfterFunc(v.story.cancel, func() { v.deliver(Cancelled{ID: storyID, By: "a test"}) })
	}
	v.began = time.Now()
	v.start()
	for quiet := 0; quiet < 3; {
		select {
		case <-v.life.over:
			<-v.life.ended
			time.Sleep(2 * time.Second)
			v.start()
		case <-time.After(time.Minute):
			if v.quiet() {
				quiet++
			} else {
				quiet = 0
			}
		}
		if time.Since(v.began) > 12*time.Hour {
			v.failf("no end; the manager is %+v", v.life.d.Status())
			break
		}
	}
	v.mu.Lock()
	v.life.die()
	v.mu.Unlock()
	<-v.life.ended
	v.judge()
}

func (v *vehicle) request(id string) Requested {
	return Requested{ID: id, State: updateproto.DesiredState{Domains: []updateproto.Domain{
		{ID: "containers", Components: []updateproto.Component{{ID: "app", Version: "2"}}},
		{ID: "self-update", Components: []updateproto.Component{{ID: "os-image", Version: "2"}}},
	}}}
}

// ended is called when the story's terminal feedback is out. An agent that
// hangs for good is not asked again.
func (v *vehicle) ended() {
	if v.ours > 0 {
		return
	}
	v.ours = v.points
	if hang := cmp.Or(v.story.containers.hang, v.story.os.hang); hang != "" && (v.style != resuming || hang == "CLEANUP") {
		return
	}
	v.then = true
	// An agent that had ended before a crash may be looking once more.
	again := slices.ContainsFunc(v.agents, func(a *actor) bool { return a.story.nothing || a.story.fail == orderDesired })
	reboots := v.story.reboot && (v.style != resuming || v.story.os.hang == verifying)
	if len(v.faults) > 0 && v.faults[0].at%2 == 0 && !again && !reboots { // while agents are being released
		v.next = true
		v.push(v.request(nextID))
		return
	}
	time.AfterFunc(2*time.Hour, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.domains(v.story.domains, v.story.withOnes)
		v.next = true
		v.push(v.request(nextID))
	})
}

// domains compares what runs.
func (v *vehicle) domains(want, originals string) {
	if v.style != resuming && originals != "" {
		want = originals
	}
	if got := v.agents[0].runs + " " + v.agents[1].runs; got != want && !v.forgetful() {
		v.failf("domains run %q, want %q", got, want)
	}
}

// forgetful reports whether agents have forgotten all. Of them no more can be
// asked than that they are not reported as updated.
func (v *vehicle) forgetful() bool {
	return v.style != resuming && slices.ContainsFunc(v.faults, func(f fault) bool { return f.what == cut })
}

// quiet reports whether nothing is left to do.
func (v *vehicle) quiet() bool {
	d := v.life.d
	d.mu.Lock()
	idle := d.m.Activity == nil && d.m.Next == nil && d.m.Reboot == nil && len(d.m.Unsent) == 0
	d.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	return idle && len(v.inbox) == 0 && v.next == v.then
}

// judge compares the outcome with the story's.
func (v *vehicle) judge() {
	want := map[string]string{storyID: v.story.status}
	if v.style != resuming && v.story.originals != "" {
		want[storyID] = v.story.originals
	}
	if v.next {
		want[nextID] = "COMPLETED"
		v.domains("new new", "")
	} else {
		v.domains(v.story.domains, v.story.withOnes)
	}
	last := map[string]string{}
	for _, o := range v.said {
		status := o.Feedback.Status
		if !terminal(status) {
			if last[o.ID] != "" {
				v.failf("%s after the terminal feedback", status)
			}
			continue
		}
		data, err := json.Marshal(o)
		if err != nil {
			v.t.Fatal(err)
		}
		if last[o.ID] != "" && last[o.ID] != string(data) {
			v.failf("two terminal feedbacks:\n%s\n%s", last[o.ID], data)
		}
		last[o.ID] = string(data)
		if status != want[o.ID] && !(v.forgetful() && status != "COMPLETED") {
			v.failf("ended with %s, want %s", data, want[o.ID])
		}
	}
	if len(last) != len(want) {
		v.failf("%d activities have ended, want %d", len(last), len(want))
	}
	for _, a := range v.agents {
		for what, n := range a.works {
			if n > 1 && !v.forgetful() {
				v.failf("%s began %s %d times", a.domain, what, n)
			}
		}
		if a.id != "" && !a.released {
			v.failf("%s is left behind: %s %s", a.domain, a.phase, a.busy)
		}
	}
}

// start begins a life of the manager.
func (v *vehicle) start() {
	j, err := durable.OpenJournal(v.journal, 64<<10)
	if err != nil {
		v.t.Fatal(err)
	}
	l := &life{v: v, j: j, over: make(chan struct{}), ended: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	j.AfterSave = func(int) { l.point("save") }
	l.d = NewDriver(v.config(), time.Minute, j, l.ports(), slog.New(slog.DiscardHandler))
	v.mu.Lock()
	v.life = l
	boot := fmt.Sprint("boot", v.boot)
	v.mu.Unlock()
	go func() {
		defer close(l.ended)
		var wg sync.WaitGroup
		wg.Go(l.pump)
		if err := l.d.Run(l.ctx, boot); err != nil && !l.isDead() {
			v.t.Errorf("the driver has failed: %v", err)
		}
		wg.Wait()
	}()
}

// pump hands to the manager what the broker has for it, over one connection
// after the other.
func (l *life) pump() {
	for l.connection() {
		if l.d.Handle(l.ctx, Disconnected{}) != nil {
			return
		}
		for l.offline() {
			select {
			case <-l.v.news:
			case <-l.over:
				return
			}
		}
	}
}

// connection reports whether there may be another one.
func (l *life) connection() bool {
	v := l.v
	v.mu.Lock()
	for i := range v.inbox {
		switch r := v.inbox[i].(type) {
		case Requested:
			r.Duplicate = true
			v.inbox[i] = r
		case Answered:
			r.Duplicate = true
			v.inbox[i] = r
		}
	}
	v.mu.Unlock()
	if l.d.Handle(l.ctx, Connected{}) != nil {
		return false
	}
	for _, a := range v.agents { // retained
		if l.d.Handle(l.ctx, Seen{Domain: a.domain, Resumes: v.style == resuming}) != nil {
			return false
		}
	}
	for {
		v.mu.Lock()
		var ev Event
		if len(v.inbox) > 0 {
			ev = v.inbox[0]
		}
		v.mu.Unlock()
		if l.offline() {
			return true
		}
		if ev == nil {
			select {
			case <-v.news:
				continue
			case <-l.over:
				return false
			}
		}
		if l.d.Handle(l.ctx, ev) != nil {
			return false
		}
		if !l.point("ack") {
			continue
		}
		v.mu.Lock()
		v.inbox = v.inbox[1:]
		v.mu.Unlock()
	}
}

// point counts, and reports whether the manager is still alive and connected.
func (l *life) point(what string) bool {
	v := l.v
	v.mu.Lock()
	defer v.mu.Unlock()
	if l.dead || v.down {
		return false
	}
	v.points++
	if v.fault == len(v.faults) || v.points != v.faults[v.fault].at {
		return true
	}
	f := v.faults[v.fault]
	v.fault++
	v.notef("%s at %d: %s", f.what, f.at, what)
	switch f.what {
	case outage:
		v.down = true
		v.wake()
		time.AfterFunc(40*time.Second, func() {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.notef("the bus is back")
			v.down = false
			v.wake()
		})
	case cut:
		v.cutPower()
	default:
		l.die()
	}
	return false
}

// cutPower restarts the whole vehicle.
func (v *vehicle) cutPower() {
	v.boot++
	v.life.die()
	for _, a := range v.agents {
		a.reboot()
	}
}

func (l *life) offline() bool {
	l.v.mu.Lock()
	defer l.v.mu.Unlock()
	return l.v.down
}

func (l *life) isDead() bool {
	l.v.mu.Lock()
	defer l.v.mu.Unlock()
	return l.dead
}

// die is called with v.mu held.
func (l *life) die() {
	if l.dead {
		return
	}
	l.dead = true
	l.cancel()
	close(l.over)
	l.j.Close() // so that nothing is saved any more
}

// act is a publication or the like: the manager may die before and after it.
func (l *life) act(what string, effect func()) error {
	if !l.point(what) {
		return errGone
	}
	l.v.mu.Lock()
	if l.dead || l.v.down {
		l.v.mu.Unlock()
		return errGone
	}
	l.v.notef("manager: %s", what)
	effect()
	l.v.mu.Unlock()
	if !l.point(what) {
		return errGone
	}
	return nil
}

func (l *life) ports() Ports {
	v := l.v
	return Ports{
		Feedback: func(_ context.Context, id string, at time.Time, f updateproto.Feedback) error {
			return l.act("says "+f.Status+" "+f.Message, func() {
				v.said = append(v.said, Outgoing{ID: id, At: at.UnixMilli(), Feedback: f})
				if id == storyID && terminal(f.Status) {
					v.ended()
				}
			})
		},
		Desired: func(_ context.Context, domain, id string, _ time.Time, ds updateproto.DesiredState) error {
			return l.act(domain+" "+orderDesired, func() { v.agent(domain).take(id, orderDesired) })
		},
		Command: func(_ context.Context, domain, id string, _ time.Time, command string) error {
			return l.act(domain+" "+command, func() { v.agent(domain).take(id, command) })
		},
		Consent: func(_ context.Context, id string, at time.Time, command string) error {
			return l.act("asks for "+command, func() {
				time.AfterFunc(time.Second, func() {
					v.deliver(Answered{ID: id, Approved: id != storyID || command != v.story.deny, Fingerprint: fmt.Sprint(time.Now().UnixNano())})
				})
			})
		},
		Refresh: func(ctx context.Context, id string) {
			l.act("refresh", func() {})
			for _, a := range v.agents {
				time.AfterFunc(100*time.Millisecond, func() {
					v.mu.Lock()
					up := !a.down
					v.mu.Unlock()
					if up && !l.offline() {
						l.d.Handle(l.ctx, Seen{Domain: a.domain, Resumes: v.style == resuming, Fresh: true})
					}
				})
			}
		},
		Safe: func(context.Context) (bool, string) { return true, "" },
		Reboot: func(context.Context) error {
			l.point("reboot")
			v.mu.Lock()
			defer v.mu.Unlock()
			if l.dead {
				return errGone
			}
			v.notef("reboot")
			for _, a := range v.agents {
				if a.busy != "" {
					v.failf("the vehicle reboots while %s works on %s", a.domain, a.busy)
				}
			}
			v.cutPower()
			return nil
		},
	}
}

func (v *vehicle) agent(domain string) *actor {
	return v.agents[slices.IndexFunc(v.agents, func(a *actor) bool { return a.domain == domain })]
}

// deliver gives the broker a message for the manager.
func (v *vehicle) deliver(ev Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.push(ev)
}

func (v *vehicle) push(ev Event) {
	v.inbox = append(v.inbox, ev)
	v.wake()
}

func (v *vehicle) wake() {
	select {
	case v.news <- struct{}{}:
	default:
	}
}
