// SPDX-License-Identifier: Apache-2.0

package orchestrator

import (
	"container/heap"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"sdvbox/platform/updateproto"
)

// Agents, owners, networks and power supplies of every kind of badness: whatever
// they do, an activity ends, with one terminal feedback, and no agent is told
// what is not its turn.

func TestEveryActivityEndsOnceWhateverTheAgentsDo(t *testing.T) {
	const runs, shards = 10000, 8
	for shard := range shards {
		t.Run(fmt.Sprint(shard), func(t *testing.T) {
			t.Parallel()
			for seed := shard; seed < runs && !t.Failed(); seed += shards {
				chaos(t, uint64(seed))
			}
		})
	}
}

// world is one run in virtual time.
type world struct {
	t    *testing.T
	seed uint64
	*rand.Rand
	c       Config
	m       *Machine
	saved   []byte
	crashes bool
	strict  bool // look whether the state changes without being dirty
	now     time.Time
	todo    agenda
	seq     int
	up      bool
	link    int // number of the connection
	life    int // of the manager
	boot    int
	waiting []Event // for the connection
	nasty   float64 // probability of misbehaviour of an agent
	fresh   map[string]bool
	log     []noted

	requested map[string]bool
	final     map[string]string          // terminal feedback by activity
	answered  map[string]bool            // activities with any terminal status
	ordered   map[string]string          // last order by activity and domain
	success   map[string]map[string]bool // orders that succeeded by the same
	domains   map[string]map[string]bool // of the activities
	stuck     int                        // ticks without progress of time
}

type task struct {
	at  time.Time
	seq int
	do  func()
}

type agenda []task

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	return a[i].at.Before(a[j].at) || a[i].at.Equal(a[j].at) && a[i].seq < a[j].seq
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(task)) }
func (a *agenda) Pop() any {
	last := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	return last
}

func (w *world) after(d time.Duration, do func()) {
	w.seq++
	heap.Push(&w.todo, task{w.now.Add(d), w.seq, do})
}

func (w *world) chance(p float64) bool { return w.Float64() < p }

// while is some time, mostly short.
func (w *world) while() time.Duration {
	longest := pick(w, time.Millisecond, time.Second, 10*time.Second, time.Minute)
	if w.chance(0.03) {
		longest = 20 * time.Minute
	}
	return time.Duration(1 + w.Int64N(int64(longest)))
}

func pick[T any](w *world, of ...T) T { return of[w.IntN(len(of))] }

func (w *world) failf(format string, args ...any) {
	w.t.Helper()
	var text string
	for _, n := range w.log[max(0, len(w.log)-80):] {
		text += n.String() + "\n"
	}
	w.t.Fatalf("seed %d: %s\nat the end of\n%s", w.seed, fmt.Sprintf(format, args...), text)
}

// note writes an event or effect down, or a text.
func (w *world) note(v any) { w.log = append(w.log, noted{w.now, v}) }

type noted struct {
	at time.Time
	v  any
}

func (n noted) String() string { return n.at.Format("15:04:05.000 ") + brief(n.v) }

// brief is an event or effect in few words.
func brief(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case Requested:
		var domains []string
		for _, d := range v.State.Domains {
			domains = append(domains, d.ID)
		}
		return fmt.Sprintf("requested %s %v, together %v", v.ID, domains, v.State.Baselines)
	case Reported:
		return fmt.Sprintf("%s says %s for %s", v.Domain, v.Feedback.Status, v.ID)
	case Say:
		return fmt.Sprintf("    say %s %s %q", v.ID, v.Feedback.Status, v.Feedback.Message)
	case Send:
		return fmt.Sprintf("    send %s %s %s", v.Domain, v.ID, orderOf(v))
	case Ask, Refresh, CheckGate, Reboot, Log:
		return fmt.Sprintf("    %T%v", v, v)
	}
	return fmt.Sprintf("%T%+v", v, v)
}

func orderOf(s Send) string {
	if s.Desired != nil {
		return orderDesired
	}
	return s.Command
}

func chaos(t *testing.T, seed uint64) {
	w := &world{
		t: t, seed: seed, Rand: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1700000000, 0),
		fresh: map[string]bool{}, requested: map[string]bool{}, final: map[string]string{}, answered: map[string]bool{},
		ordered: map[string]string{}, success: map[string]map[string]bool{}, domains: map[string]map[string]bool{},
	}
	w.nasty = pick(w, 0, 0, 0.02, 0.1, 0.3, 0.8)
	w.crashes, w.strict = w.chance(0.4), w.chance(0.1)
	w.c = Config{
		Agents:         map[string]Agent{},
		FailurePolicy:  pick(w, "", Baseline, All),
		PhaseTimeout:   pick(w, 20*time.Second, 10*time.Minute),
		VerifyTimeout:  20 * time.Minute,
		ConsentTimeout: 30 * time.Minute,
		RebootEnabled:  w.chance(0.7),
		RebootAfter:    pick(w, 0, 30*time.Second),
		GateTimeout:    pick(w, time.Minute, 24*time.Hour),
	}
	for _, command := range []string{"DOWNLOAD", "UPDATE", "ACTIVATE"} {
		if w.chance(0.2) {
			w.c.Consent = append(w.c.Consent, command)
		}
	}
	for i := range 1 + w.IntN(4) {
		w.c.Agents[fmt.Sprint("d", i)] = Agent{RebootRequired: w.chance(0.3), ReadTimeout: 30 * time.Second}
	}
	w.restart()
	for i := range 1 + w.IntN(3) {
		id := fmt.Sprint("a", i)
		ds := w.desired()
		w.domains[id] = map[string]bool{}
		for _, d := range ds.Domains {
			w.domains[id][d.ID] = true
		}
		at := time.Duration(0)
		if i > 0 {
			at = w.while() + w.while()
		}
		w.after(at, func() { w.deliver(Requested{ID: id, State: ds}) })
		if w.chance(0.2) {
			w.after(at+w.while(), func() { w.deliver(Requested{ID: id, State: ds, Duplicate: w.chance(0.5)}) })
		}
		if w.chance(0.1) {
			w.after(at+w.while(), func() { w.deliver(Cancelled{ID: pick(w, id, "", "other"), By: "a test"}) })
		}
	}
	for w.chance(0.3) {
		w.after(w.while(), func() {
			if w.up {
				w.up = false
				w.handle(Disconnected{})
				w.after(w.while(), w.connect)
			}
		})
	}
	for w.crashes && w.chance(0.5) {
		w.after(w.while(), w.crash)
	}
	w.run()
	for id := range w.requested {
		if !w.answered[id] {
			w.failf("%q was never answered", id)
		}
	}
	for _, e := range w.m.History {
		if !strings.Contains(w.final[e.ID], e.Status) {
			w.failf("history says %q of %q, which ended with %s", e.Status, e.ID, w.final[e.ID])
		}
	}
}

// desired is a request for some domains.
func (w *world) desired() (ds updateproto.DesiredState) {
	for domain := range w.c.Agents {
		if w.chance(0.8) {
			ds.Domains = append(ds.Domains, updateproto.Domain{ID: domain})
		}
	}
	slices.SortFunc(ds.Domains, func(a, b updateproto.Domain) int { return strings.Compare(a.ID, b.ID) })
	if w.chance(0.05) {
		ds.Domains = append(ds.Domains, updateproto.Domain{ID: "unknown"})
	}
	for w.chance(0.3) {
		b := updateproto.Baseline{Title: fmt.Sprint("b", len(ds.Baselines))}
		for _, d := range ds.Domains {
			if w.chance(0.5) {
				b.Components = append(b.Components, d.ID+":x")
			}
		}
		ds.Baselines = append(ds.Baselines, b)
	}
	return ds
}

// run lets time pass until nothing is left to do.
func (w *world) run() {
	end := w.now.Add(90 * 24 * time.Hour)
	for n := 0; ; n++ {
		if n > 50000 || w.now.After(end) {
			w.failf("no end: %+v", w.m.Snapshot())
		}
		next := w.m.Deadline()
		if len(w.todo) > 0 && (next.IsZero() || !next.Before(w.todo[0].at)) {
			t := heap.Pop(&w.todo).(task)
			w.now = t.at
			t.do()
			continue
		}
		if next.IsZero() {
			break
		}
		if next.After(w.now) {
			w.now, w.stuck = next, 0
		} else if w.stuck++; w.stuck > 20 {
			w.failf("ticks for ever")
		}
		w.handle(Tick{})
	}
	if w.m.Activity != nil || w.m.Next != nil || w.m.Reboot != nil || len(w.m.Unsent) > 0 {
		w.failf("nothing more happens, but there is %+v, unsent %v", w.m.Snapshot(), w.m.Unsent)
	}
}

// restart begins a life of the manager.
func (w *world) restart() {
	s, err := ParseState(w.saved)
	if err != nil {
		w.failf("%v", err)
	}
	w.life++
	w.up = false
	if w.crashes && w.chance(0.3) {
		w.configure()
	}
	w.m = NewMachine(w.c, s)
	w.note("manager starts")
	w.handle(Started{fmt.Sprint("boot", w.boot)})
	w.after(w.while(), w.connect)
}

func (w *world) connect() {
	if w.up {
		return
	}
	w.up = true
	w.link++
	w.handle(Connected{})
	for domain := range w.c.Agents {
		w.waiting = append(w.waiting, Seen{Domain: domain, Resumes: w.resumes(domain)})
	}
	for w.up && len(w.waiting) > 0 {
		ev := w.waiting[0]
		w.waiting = w.waiting[1:]
		w.handle(ev)
	}
}

// resumes is a trait of an agent.
func (w *world) resumes(domain string) bool {
	return (w.seed/7+uint64(domain[1]))%3 != 0
}

func (w *world) crash() {
	w.note("CRASH")
	w.restart()
}

// deliver brings a message to the manager, later if it is not connected.
func (w *world) deliver(ev Event) {
	if w.up {
		w.handle(ev)
	} else {
		w.waiting = append(w.waiting, ev)
	}
}

func key(id, domain string) string { return id + " " + domain }

// handle is the driver.
func (w *world) handle(ev Event) {
	w.note(ev)
	var id string
	gone := map[string]bool{}
	if a := w.m.Activity; a != nil {
		id = a.ID
		for _, d := range a.Domains {
			gone[d.ID] = d.State == done
		}
	}
	if r, ok := ev.(Reported); ok && success(w.ordered[key(r.ID, r.Domain)]) == r.Feedback.Status {
		k := key(r.ID, r.Domain)
		if w.success[k] == nil {
			w.success[k] = map[string]bool{}
		}
		w.success[k][w.ordered[k]] = true
	}
	if r, ok := ev.(Requested); ok {
		w.requested[r.ID] = true
	}
	var old string
	if w.strict {
		old = w.state()
	}
	effects, dirty := w.m.Handle(w.now, ev)
	w.invariants()
	if w.strict && !dirty && w.state() != old {
		w.failf("the state has changed without a word from\n%s\nto\n%s", old, w.state())
	}
	crash := w.crashes && w.chance(0.01)
	if crash && w.chance(0.3) { // before it was saved
		w.again(ev)
		w.crash()
		return
	}
	if dirty {
		var err error
		if w.saved, err = json.Marshal(w.m.State); err != nil {
			w.failf("%v", err)
		}
	}
	for _, e := range effects {
		if s, ok := e.(Send); ok {
			if gone[s.Domain] && s.ID == id {
				w.failf("%s is sent to %s, which has ended", s.Command, s.Domain)
			}
			w.turn(s)
		}
	}
	life := w.life
	for _, e := range effects {
		if crash && w.chance(0.3) {
			w.again(ev)
			w.crash()
			return
		}
		w.effect(e)
		if w.life != life {
			return
		}
	}
}

// again is what the broker does with a message that is not acknowledged.
func (w *world) again(ev Event) {
	switch ev := ev.(type) {
	case Requested:
		ev.Duplicate = true
		w.waiting = append([]Event{ev}, w.waiting...)
	case Answered:
		ev.Duplicate = true
		w.waiting = append([]Event{ev}, w.waiting...)
	case Reported, Cancelled:
		w.waiting = append([]Event{ev}, w.waiting...)
	}
}

// invariants hold after each event.
func (w *world) invariants() {
	a := w.m.Activity
	if a == nil {
		return
	}
	var together string
	for _, d := range a.Domains {
		if d.Order == "" || d.Back || d.FellBack || d.State == done || d.State == failed {
			continue
		}
		if together != "" && together != d.Order {
			w.failf("%s and %s at the same time", together, d.Order)
		}
		together = d.Order
	}
}

// turn judges whether it is the turn of what is sent.
func (w *world) turn(s Send) {
	if _, ok := w.c.Agents[s.Domain]; !ok || !w.domains[s.ID][s.Domain] {
		w.failf("%s for %s, which is not concerned", s.Command, s.Domain)
	}
	order := orderOf(s)
	k := key(s.ID, s.Domain)
	last := w.ordered[k]
	rank := []string{"", orderDesired, "DOWNLOAD", "UPDATE", "ACTIVATE", "ROLLBACK", "CLEANUP"}
	fellBack := last == "UPDATE" && order == "DOWNLOAD"
	if slices.Index(rank, order) < slices.Index(rank, last) && !fellBack {
		w.failf("%s for %s after %s", order, s.Domain, last)
	}
	if need := before(order); need != "" && order != last && !fellBack && !w.success[k][need] {
		w.failf("%s for %s without success of %s", order, s.Domain, need)
	}
	if w.final[s.ID] != "" && slices.Contains([]string{"DOWNLOAD", "UPDATE", "ACTIVATE"}, order) {
		w.failf("%s for %s after the terminal feedback", order, s.Domain)
	}
	w.ordered[k] = order
}

func terminal(status string) bool {
	return slices.Contains([]string{"COMPLETED", "INCOMPLETE", "IDENTIFICATION_FAILED"}, status)
}

func (w *world) effect(e Effect) {
	w.note(e)
	switch e := e.(type) {
	case Say:
		w.say(e)
	case Send:
		if w.up {
			w.agent(e)
		}
	case Ask:
		for p := 0.95; w.chance(p); p /= 3 {
			answer := Answered{ID: e.ID, Approved: w.chance(0.9), Fingerprint: fmt.Sprint(w.Int())}
			w.after(w.while(), func() { w.deliver(answer) })
		}
	case Refresh:
		life := w.life
		for domain := range w.c.Agents {
			if w.up && !w.chance(w.nasty/2) {
				w.after(w.while(), func() {
					if w.life == life && w.up {
						w.handle(Seen{Domain: domain, Resumes: w.resumes(domain), Fresh: true})
					}
				})
			}
		}
	case CheckGate:
		life, safe := w.life, w.chance(0.8)
		w.after(w.while(), func() {
			if w.life == life {
				w.handle(GateSaid{safe, "it is not parked"})
			}
		})
	case Reboot:
		if !w.c.RebootEnabled {
			w.failf("the vehicle reboots though it must not")
		}
		if a := w.m.Activity; a != nil {
			for _, d := range a.Domains {
				if d.Order != "" {
					w.failf("the vehicle reboots while %s has to %s", d.ID, d.Order)
				}
			}
		}
		life := w.life
		switch w.IntN(6) {
		case 0:
			w.after(w.while(), func() {
				if w.life == life {
					w.handle(RebootFailed{"no"})
				}
			})
		case 1: // nothing happens
		default:
			w.after(time.Second, func() {
				if w.life == life {
					w.note("REBOOT")
					w.boot++
					w.restart()
				}
			})
		}
	}
}

// state is what a restart has to find, but for the actions: progress is not
// worth a write.
func (w *world) state() string {
	rec, err := json.Marshal(w.m.State)
	if err != nil {
		w.failf("%v", err)
	}
	s, err := ParseState(rec)
	if err != nil {
		w.failf("%v", err)
	}
	if s.Activity != nil {
		for _, d := range s.Activity.Domains {
			d.Actions = nil
		}
	}
	if rec, err = json.Marshal(s); err != nil {
		w.failf("%v", err)
	}
	return string(rec)
}

// configure changes the configuration for the next process.
func (w *world) configure() {
	w.c.RebootEnabled = w.chance(0.5)
	w.c.FailurePolicy = pick(w, Baseline, All)
	w.c.Agents = maps.Clone(w.c.Agents)
	for id, a := range w.c.Agents {
		a.RebootRequired = w.chance(0.3)
		a.ReadTimeout = pick(w, 0, 30*time.Second)
		w.c.Agents[id] = a
	}
	w.note(fmt.Sprintf("another configuration: %+v", w.c))
}

func (w *world) say(s Say) {
	status := s.Feedback.Status
	if terminal(status) {
		if !s.lasting() {
			w.answered[s.ID] = true
		}
	} else if w.final[s.ID] != "" {
		w.failf("%s after %s", status, w.final[s.ID])
	}
	if !s.lasting() {
		return
	}
	data, err := json.Marshal(Outgoing{ID: s.ID, At: s.At.UnixMilli(), Feedback: s.Feedback})
	if err != nil {
		w.failf("%v", err)
	}
	if s.Kind == Final {
		if f := w.final[s.ID]; f != "" && f != string(data) {
			w.failf("two terminal feedbacks:\n%s\n%s", f, data)
		}
		w.final[s.ID] = string(data)
	}
	link, life := w.link, w.life
	w.after(w.while(), func() {
		switch {
		case w.life != life || w.link != link || !w.up:
		case w.chance(0.8):
			w.answered[s.ID] = true
			w.handle(Delivered{Outgoing{ID: s.ID, At: s.At.UnixMilli(), Feedback: s.Feedback}})
		default:
			w.say(s)
		}
	})
}

// agent answers an order, in its own way.
func (w *world) agent(s Send) {
	report := func(d time.Duration, status string, percent int) {
		f := updateproto.Feedback{Status: status, Message: "100%d of " + s.Domain}
		if percent >= 0 {
			f.Actions = []updateproto.Action{{Component: updateproto.ComponentRef{ID: s.Domain + ":x"}, Status: status, Progress: percent}}
		}
		id, domain := s.ID, s.Domain
		if w.chance(w.nasty / 10) {
			id, domain = pick(w, "a0", "a1", "", "other"), pick(w, "d0", "d1", "unknown")
		}
		w.after(d, func() { w.deliver(Reported{domain, id, f}) })
		for w.chance(w.nasty / 3) {
			w.after(d+w.while(), func() { w.deliver(Reported{domain, id, f}) })
		}
	}
	order := orderOf(s)
	progress := map[string]string{orderDesired: "IDENTIFYING", "DOWNLOAD": "DOWNLOADING", "UPDATE": "UPDATING",
		"ACTIVATE": "ACTIVATING", "ROLLBACK": "ROLLBACK", "CLEANUP": "CLEANUP"}[order]
	percent := 50
	if order == orderDesired && w.chance(0.1) {
		percent = -1
	}
	outcome := success(order)
	if w.chance(w.nasty / 4) {
		outcome = failure(order)
	}
	d := w.while()
	if !w.chance(w.nasty) {
		report(d, progress, percent)
		report(d+w.while(), outcome, percent)
		if order == "CLEANUP" {
			report(d+w.while(), pick(w, "COMPLETED", "COMPLETE", "INCOMPLETE"), percent)
		}
		return
	}
	switch w.IntN(8) {
	case 0: // silent
	case 1: // late
		report(time.Hour+d, outcome, percent)
	case 2: // bursting
		for i := range 30 {
			report(d+time.Duration(i), progress, i)
		}
		report(d+time.Second, outcome, percent)
	case 3: // out of order
		report(d+w.while(), progress, percent)
		report(d, outcome, percent)
	case 4: // lying
		for w.chance(0.8) {
			report(w.while(), pick(w, "IDENTIFYING", "IDENTIFIED", "IDENTIFICATION_FAILED", "DOWNLOADING", "DOWNLOAD_SUCCESS", "DOWNLOAD_FAILURE",
				"UPDATING", "UPDATE_SUCCESS", "UPDATE_FAILURE", "ACTIVATING", "ACTIVATION_SUCCESS", "ACTIVATION_FAILURE", "ROLLBACK", "ROLLBACK_SUCCESS",
				"ROLLBACK_FAILURE", "CLEANUP", "CLEANUP_SUCCESS", "CLEANUP_FAILURE", "COMPLETED", "COMPLETE", "INCOMPLETE", "RUNNING", "SUPERSEDED", "", "X"),
				w.IntN(102)-1)
		}
	case 5: // always about to be ready
		life := w.life
		var more func()
		more = func() {
			k := key(s.ID, s.Domain)
			if w.ordered[k] == order && w.life == life && w.m.Activity != nil {
				w.deliver(Reported{s.Domain, s.ID, updateproto.Feedback{Status: progress}})
				w.after(w.c.PhaseTimeout/2, more)
			}
		}
		more()
	case 6: // as if it was over
		report(d, pick(w, "COMPLETED", "INCOMPLETE"), percent)
	case 7: // for another activity
		w.after(d, func() { w.deliver(Reported{s.Domain, "other", updateproto.Feedback{Status: outcome}}) })
	}
}
