// SPDX-License-Identifier: Apache-2.0

package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sdvbox/platform/durable"
	"sdvbox/platform/updateproto"
)

// rig is a driver between ports that write down what comes out of it.
type rig struct {
	*Driver
	t       *testing.T
	journal *durable.Journal
	stop    func() error // ends Run and returns its error

	mu  sync.Mutex
	out []string
	// Called when a feedback or an order is published, if set.
	feedback func(ctx context.Context, f updateproto.Feedback) error
	order    func(ctx context.Context, domain, order string) error
	safe     func(ctx context.Context) (bool, string)
	reboot   func(ctx context.Context) error
}

func testConfig() Config {
	return Config{
		Agents:         map[string]Agent{"a": {ReadTimeout: 30 * time.Second}, "b": {ReadTimeout: 30 * time.Second}},
		PhaseTimeout:   10 * time.Minute,
		VerifyTimeout:  10 * time.Minute,
		ConsentTimeout: 30 * time.Minute,
		RebootEnabled:  true,
		GateTimeout:    time.Hour,
	}
}

func newRig(t *testing.T, c Config) *rig {
	r := prepare(t, c, filepath.Join(t.TempDir(), "journal"))
	r.start()
	return r
}

func prepare(t *testing.T, c Config, path string) *rig {
	j, err := durable.OpenJournal(path, Capacity)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, journal: j}
	r.Driver = NewDriver(c, time.Minute, j, Ports{
		Feedback: func(ctx context.Context, id string, at time.Time, f updateproto.Feedback) error {
			if r.feedback != nil {
				if err := r.feedback(ctx, f); err != nil {
					return err
				}
			}
			r.notef("%s %s", id, f.Status)
			return nil
		},
		Desired: func(ctx context.Context, domain, id string, at time.Time, ds updateproto.DesiredState) error {
			return r.send(ctx, domain, id, orderDesired)
		},
		Command: func(ctx context.Context, domain, id string, at time.Time, command string) error {
			return r.send(ctx, domain, id, command)
		},
		Consent: func(ctx context.Context, id string, at time.Time, command string) error {
			r.notef("consent %s %s", id, command)
			return nil
		},
		Refresh: func(ctx context.Context, id string) {
			r.notef("refresh %s", id)
			select { // an agent does not answer
			case <-ctx.Done():
			case <-time.After(30 * time.Second):
			}
		},
		Safe: func(ctx context.Context) (bool, string) {
			r.notef("safe?")
			if r.safe != nil {
				return r.safe(ctx)
			}
			return true, ""
		},
		Reboot: func(ctx context.Context) error {
			r.notef("reboot")
			if r.reboot != nil {
				return r.reboot(ctx)
			}
			return nil
		},
	}, slog.New(slog.DiscardHandler))
	return r
}

func (r *rig) start() {
	ctx, cancel := context.WithCancel(r.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx, "boot") }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		err := <-ended
		r.journal.Close()
		return err
	})
	r.t.Cleanup(func() { r.stop() })
}

func (r *rig) send(ctx context.Context, domain, id, order string) error {
	if r.order != nil {
		if err := r.order(ctx, domain, order); err != nil {
			return err
		}
	}
	r.notef("%s %s %s", domain, id, order)
	return nil
}

func (r *rig) notef(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.out = append(r.out, fmt.Sprintf(format, args...))
}

// handle hands in events; each has to be taken.
func (r *rig) handle(events ...Event) {
	r.t.Helper()
	for _, ev := range events {
		if err := r.Handle(r.t.Context(), ev); err != nil {
			r.t.Fatalf("%s: %v", brief(ev), err)
		}
	}
}

// expect waits until nothing moves and compares what has come out since the last
// time. What goes to different receivers is in no order: it is sorted.
func (r *rig) expect(want ...string) {
	r.t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.out
	r.out = nil
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		r.t.Fatalf("published\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func request(id string, domains ...string) Requested {
	r := Requested{ID: id}
	for _, d := range domains {
		r.State.Domains = append(r.State.Domains, updateproto.Domain{ID: d})
	}
	return r
}

// says is an agent's feedback with one action.
func says(domain, id, status string) Reported {
	return Reported{Domain: domain, ID: id, Feedback: updateproto.Feedback{Status: status,
		Actions: []updateproto.Action{{Component: updateproto.ComponentRef{ID: domain + ":x"}, Status: status}}}}
}

func TestFirstFeedbackComesBeforeTheJournalAndOrdersAfterIt(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // the worst case
	dir, err := os.MkdirTemp(shm(), "orchestrator")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	r := prepare(t, testConfig(), filepath.Join(dir, "journal"))
	var identifying, orders atomic.Int32
	r.feedback = func(_ context.Context, f updateproto.Feedback) error {
		if f.Status == "IDENTIFYING" {
			identifying.Add(1)
		}
		return nil
	}
	r.order = func(context.Context, string, string) error { orders.Add(1); return nil }
	var begun, early, hasty int32 // activities; of those, answered and passed on before they were saved
	var last string
	r.journal.AfterSave = func(int) {
		a := r.m.Activity
		if a == nil || a.ID == last {
			return
		}
		last = a.ID
		begun++
		if identifying.Load() == begun {
			early++
		}
		if orders.Load() == begun {
			hasty++
		}
	}
	r.start()
	r.handle(Connected{})
	const requests = 50
	for i := range requests {
		id := fmt.Sprint(i)
		r.handle(request(id, "a"))
		for orders.Load() <= int32(i) {
			runtime.Gosched()
		}
		r.handle(says("a", id, "INCOMPLETE"))
	}
	r.stop()
	if early < requests/5 { // the scheduler is free to do otherwise, most of all with the race detector
		t.Errorf("%d of %d first feedbacks came before the journal was written", early, begun)
	}
	if hasty > 0 {
		t.Errorf("%d of %d orders went out before the journal was written", hasty, begun)
	}
}

func TestSlowAgentDelaysNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testConfig())
		free := make(chan struct{})
		r.order = func(_ context.Context, domain, order string) error {
			if domain == "a" {
				<-free
			}
			return nil
		}
		r.handle(Connected{}, request("1", "a", "b"))
		r.expect("1 IDENTIFYING", "b 1 DESIREDSTATE")
		r.handle(Cancelled{ID: "1"}, says("b", "1", "IDENTIFIED"))
		r.expect("1 INCOMPLETE", "b 1 ROLLBACK", "refresh 1")
		close(free)
		r.expect("a 1 DESIREDSTATE")
		r.stop()
	})
}

func TestRefreshDelaysNoFeedback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testConfig())
		r.handle(Connected{}, request("1"))
		r.expect("1 IDENTIFYING", "1 INCOMPLETE", "refresh 1") // and an agent does not answer to it
		r.handle(request("2", "a"))
		r.expect("2 IDENTIFYING", "a 2 DESIREDSTATE")
		r.stop()
	})
}

func TestTerminalFeedbackIsRepeatedUntilTheBrokerHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testConfig())
		var refuse atomic.Bool
		refuse.Store(true)
		r.feedback = func(_ context.Context, f updateproto.Feedback) error {
			if refuse.Load() {
				r.notef("refused %s", f.Status)
				return errors.New("refused")
			}
			return nil
		}
		r.handle(Connected{}, request("1"))
		r.expect("refused IDENTIFYING", "refused INCOMPLETE", "refresh 1")
		time.Sleep(retryAfter)
		r.expect("refused INCOMPLETE")

		// Without a connection it is of no use.
		r.handle(Disconnected{})
		time.Sleep(time.Minute)
		r.expect()
		r.handle(Connected{})
		r.expect("refused INCOMPLETE")
		refuse.Store(false)
		time.Sleep(retryAfter)
		r.expect("1 INCOMPLETE")

		// What the broker has is not said again.
		r.handle(Disconnected{}, Connected{})
		time.Sleep(time.Minute)
		r.expect()
		r.stop()
	})
}

func TestTerminalFeedbackIsNotRepeatedForAConnectionThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testConfig())
		var down atomic.Bool
		down.Store(true)
		r.feedback = func(context.Context, updateproto.Feedback) error {
			if down.Load() {
				return errors.New("down")
			}
			return nil
		}
		r.handle(Connected{}, request("1"))
		synctest.Wait()
		down.Store(false)
		r.handle(Disconnected{}, Connected{}) // says it again
		time.Sleep(10 * retryAfter)
		r.expect("1 INCOMPLETE", "refresh 1")
		r.stop()
	})
}

func TestDeadlineComesWithoutAnyEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testConfig())
		r.handle(Connected{}, request("1", "a"))
		r.expect("1 IDENTIFYING", "a 1 DESIREDSTATE")
		time.Sleep(10*time.Minute - time.Nanosecond)
		r.expect()
		time.Sleep(time.Nanosecond)
		r.expect("1 IDENTIFICATION_FAILED", "a 1 ROLLBACK", "refresh 1")
		r.stop()
	})
}

func TestRunningIsThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testConfig())
		r.handle(Connected{}, request("1", "a"))
		r.expect("1 IDENTIFYING", "a 1 DESIREDSTATE")
		r.handle(says("a", "1", "IDENTIFIED"))
		r.expect("1 IDENTIFIED", "1 RUNNING", "a 1 DOWNLOAD")
		for range 10 {
			time.Sleep(time.Second)
			r.handle(says("a", "1", "DOWNLOADING"))
		}
		r.expect()
		time.Sleep(time.Minute)
		r.expect("1 RUNNING")
		r.handle(says("a", "1", "DOWNLOADING"))
		r.expect("1 RUNNING")
		r.handle(Disconnected{}, Connected{}) // nobody knows what the north has got
		r.expect("1 RUNNING")
		r.handle(says("a", "1", "DOWNLOAD_FAILURE"), says("a", "1", "CLEANUP"), says("a", "1", "CLEANUP_SUCCESS"))
		r.expect("a 1 CLEANUP", "1 INCOMPLETE", "refresh 1")
		time.Sleep(time.Hour)
		r.expect() // the interval has ended with the activity
		r.stop()
	})
}

func TestGateIsAskedBeforeTheReboot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testConfig()
		c.Agents["a"] = Agent{RebootRequired: true, ReadTimeout: 30 * time.Second}
		c.RebootAfter = 30 * time.Second
		r := newRig(t, c)
		answer := make(chan bool)
		r.safe = func(context.Context) (bool, string) { return <-answer, "it moves" }
		r.reboot = func(context.Context) error { return errors.New("no") }
		r.handle(Connected{}, request("1", "a"))
		for _, s := range []string{"IDENTIFIED", "DOWNLOAD_SUCCESS", "UPDATE_SUCCESS", "ACTIVATION_SUCCESS", "CLEANUP_SUCCESS"} {
			r.handle(says("a", "1", s))
		}
		r.expect("1 IDENTIFYING", "a 1 DESIREDSTATE", "1 IDENTIFIED", "1 RUNNING", "a 1 DOWNLOAD", "a 1 UPDATE", "a 1 ACTIVATE",
			"a 1 CLEANUP", "1 COMPLETED", "refresh 1")
		time.Sleep(30 * time.Second)
		r.expect("safe?")
		time.Sleep(time.Minute) // it takes its time
		r.expect()
		answer <- false
		r.expect()
		time.Sleep(gatePause)
		r.expect("safe?")
		answer <- true
		r.expect("reboot") // which fails
		time.Sleep(rebootPause)
		r.expect("safe?")
		answer <- true
		r.expect("reboot")
		r.stop()
	})
}

func TestRunEndsAtOnceWhateverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testConfig()
		r := newRig(t, c)
		block := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		r.feedback = func(ctx context.Context, _ updateproto.Feedback) error { return block(ctx) }
		r.order = func(ctx context.Context, _, _ string) error { return block(ctx) }
		r.handle(Connected{}, request("1", "a", "b"))
		synctest.Wait()
		begin := time.Now()
		if err := r.stop(); err != nil {
			t.Errorf("error %v", err)
		}
		if d := time.Since(begin); d > 0 {
			t.Errorf("it took %v", d)
		}
		if err := r.Handle(t.Context(), Connected{}); err == nil || !strings.Contains(err.Error(), "has ended") {
			t.Errorf("Handle after the end: %v", err)
		}
		if err := r.Alive(); err == nil {
			t.Error("alive after the end")
		}
		r.expect()
	})
}

func TestUnwritableJournalEndsTheDriverAndNothingIsPromised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testConfig())
		r.handle(Connected{})
		r.journal.Close()
		if err := r.Handle(t.Context(), request("1", "a")); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Handle: %v", err)
		}
		if err := r.stop(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Run: %v", err)
		}
		if err := r.Handle(t.Context(), Connected{}); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Handle after the end: %v", err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if slices.Contains(r.out, "a 1 DESIREDSTATE") {
			t.Error("an order went out")
		}
	})
}

func TestDamagedJournalIsNoObstacle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "journal")
		j, err := durable.OpenJournal(path, 100)
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Save([]byte(`{"version":1,"activity":{"domains":[null]}}`)); err != nil {
			t.Fatal(err)
		}
		j.Close()
		r := prepare(t, testConfig(), path)
		r.start()
		r.handle(Connected{}, request("1", "a"))
		r.expect("1 IDENTIFYING", "a 1 DESIREDSTATE")
		r.stop()
	})
}

func TestOversizedRequestIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testConfig())
		big := request("1", "a")
		big.State.Domains[0].Config = []updateproto.KeyValue{{Key: "k", Value: strings.Repeat("x", maxRequest)}}
		r.handle(Connected{}, big)
		r.expect("1 IDENTIFICATION_FAILED")
		if s := r.Status(); s.Phase != "idle" {
			t.Errorf("status %+v", s)
		}
		big.State.Domains[0].Config[0].Value = strings.Repeat("<", maxRequest-1000)
		r.handle(big)
		r.expect("1 IDENTIFYING", "a 1 DESIREDSTATE")
		r.stop()
	})
}

func TestTalkativeAgentsDoNotOverfillTheJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testConfig())
		f := says("a", "1", "IDENTIFIED")
		for i := range maxActions {
			f.Feedback.Actions = append(f.Feedback.Actions, updateproto.Action{
				Component: updateproto.ComponentRef{ID: fmt.Sprintf("a:%d%s", i, strings.Repeat("y", 2000))}, Message: strings.Repeat("x", 10000)})
		}
		r.handle(Connected{}, request("1", "a"), f)
		r.expect("1 IDENTIFYING", "a 1 DESIREDSTATE", "1 IDENTIFIED", "1 RUNNING", "a 1 DOWNLOAD")
		r.handle(says("a", "1", "DOWNLOAD_SUCCESS"))
		r.expect("a 1 UPDATE")
		r.stop()
	})
}

func TestConsentDeliveredAgainIsNotTheNextOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testConfig()
		c.Consent = []string{"DOWNLOAD", "UPDATE"}
		r := newRig(t, c)
		r.handle(Connected{}, request("1", "a"), says("a", "1", "IDENTIFIED"))
		r.expect("1 IDENTIFYING", "a 1 DESIREDSTATE", "1 IDENTIFIED", "1 RUNNING", "consent 1 DOWNLOAD")
		r.handle(Answered{ID: "1", Approved: true, Fingerprint: "x"})
		r.expect("a 1 DOWNLOAD")
		r.handle(Answered{ID: "1", Approved: true, Fingerprint: "y"}) // nobody has asked
		r.handle(says("a", "1", "DOWNLOAD_SUCCESS"))
		r.expect("consent 1 UPDATE")
		r.handle(Answered{ID: "1", Approved: true, Fingerprint: "x", Duplicate: true}, Answered{ID: "2", Approved: true})
		r.expect()
		r.handle(Answered{ID: "1", Approved: true, Fingerprint: "z", Duplicate: true})
		r.expect("a 1 UPDATE")
		r.stop()
	})
}

func TestCancelSaysWhatItCannotCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testConfig())
		r.handle(Connected{})
		if err := r.Cancel(t.Context(), ""); err == nil || err.Error() != "no activity is under way" {
			t.Errorf("error %v", err)
		}
		r.handle(request("1", "a"))
		if err := r.Cancel(t.Context(), "2"); err == nil || !strings.Contains(err.Error(), `"1"`) {
			t.Errorf("error %v", err)
		}
		r.expect("1 IDENTIFYING", "a 1 DESIREDSTATE")
		if err := r.Cancel(t.Context(), ""); err != nil {
			t.Errorf("error %v", err)
		}
		r.expect("1 INCOMPLETE", "refresh 1")
		h := r.History()
		if len(h) != 1 || h[0].ID != "1" || !strings.Contains(h[0].Message, "cancelled") {
			t.Errorf("history %+v", h)
		}
		r.stop()
	})
}

func TestStatusMayBeAskedAtAnyTime(t *testing.T) {
	r := prepare(t, testConfig(), filepath.Join(t.TempDir(), "journal"))
	if s := r.Status(); s.Phase != "idle" {
		t.Errorf("status %+v", s)
	}
	r.start()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					r.Status()
					r.History()
				}
			}
		})
	}
	r.handle(Connected{})
	for i := range 20 {
		id := fmt.Sprint(i)
		r.handle(request(id, "a"), says("a", id, "IDENTIFIED"), says("a", id, "DOWNLOADING"), says("a", id, "INCOMPLETE"))
	}
	close(stop)
	wg.Wait()
	if err := r.Alive(); err != nil {
		t.Error(err)
	}
	r.stop()
	if h := r.History(); len(h) != 20 {
		t.Errorf("%d activities in the history", len(h))
	}
}
