// SPDX-License-Identifier: Apache-2.0

package updateagent

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"sdvbox/platform/updateproto"
)

// An agent of the kind of Kanto, with the baselines x and y.
func TestBaselinesAreCommandedOnTheirOwn(t *testing.T) {
	const begin = "a:IDENTIFYING <identifying> a:IDENTIFIED "
	for _, tc := range []struct {
		name, events, want string
	}{{
		"AllAtOnce",
		"ds a,ok,DOWNLOAD a,ok,UPDATE a/*,ok,ACTIVATE a,ok,CLEANUP a,ok",
		begin + "<downloading> a:DOWNLOAD_SUCCESS <updating> a:UPDATE_SUCCESS/* <activating> a:ACTIVATION_SUCCESS <cleaning> a:CLEANUP_SUCCESS a:COMPLETE inventory:",
	}, {
		"OneAfterTheOther",
		"ds a,ok,DOWNLOAD a/x,ok,UPDATE a/x,ok,ACTIVATE a/x,ok,CLEANUP a/x,ok,DOWNLOAD a/y,ok,UPDATE a/y,ok,ACTIVATE a/y,ok,CLEANUP a/y,ok",
		begin + "<downloading> a:DOWNLOAD_SUCCESS/x <updating> a:UPDATE_SUCCESS/x <activating> a:ACTIVATION_SUCCESS/x <cleaning> a:CLEANUP_SUCCESS/x " +
			"<downloading> a:DOWNLOAD_SUCCESS/y <updating> a:UPDATE_SUCCESS/y <activating> a:ACTIVATION_SUCCESS/y <cleaning> a:CLEANUP_SUCCESS/y a:COMPLETE inventory:",
	}, {
		"SideBySide",
		"ds a,ok,DOWNLOAD a/x,DOWNLOAD a/y,UPDATE a/x,UPDATE a/y,ok,ok,ok,ok",
		begin + "<downloading> a:DOWNLOAD_SUCCESS/x <downloading> a:DOWNLOAD_SUCCESS/y <updating> a:UPDATE_SUCCESS/x <updating> a:UPDATE_SUCCESS/y",
	}, {
		"CommandsSentBackToBackAreCarriedOutInOrder",
		"ds a,DOWNLOAD a,UPDATE a,ACTIVATE a,CLEANUP a,ok,ok,ok,ok,ok",
		begin + "<downloading> a:DOWNLOAD_SUCCESS <updating> a:UPDATE_SUCCESS <activating> a:ACTIVATION_SUCCESS <cleaning> a:CLEANUP_SUCCESS a:COMPLETE inventory:",
	}, {
		"FailureOfOneLeavesTheOther",
		"ds a,ok,DOWNLOAD a/x,fail,UPDATE a/x,DOWNLOAD a/y,ok,CLEANUP a/x,ok,UPDATE a/y,ok,ACTIVATE a/y,ok,CLEANUP a/y,ok",
		begin + "<downloading> a:DOWNLOAD_FAILURE/x a:UPDATE_FAILURE/x <downloading> a:DOWNLOAD_SUCCESS/y <cleaning> a:CLEANUP_SUCCESS/x " +
			"<updating> a:UPDATE_SUCCESS/y <activating> a:ACTIVATION_SUCCESS/y <cleaning> a:CLEANUP_SUCCESS/y a:COMPLETE inventory:",
	}, {
		"AllTakesThoseWhoseTurnItIs",
		"ds a,ok,DOWNLOAD a/x,ok,DOWNLOAD a,ok,UPDATE a,ok,ROLLBACK a,ok",
		begin + "<downloading> a:DOWNLOAD_SUCCESS/x <downloading> a:DOWNLOAD_SUCCESS <updating> a:UPDATE_SUCCESS <rolling back> a:ROLLBACK a:ROLLBACK_SUCCESS",
	}, {
		"UnknownBaselineIsRefusedInTheWordsOfTheCommand",
		"ds a,ok,DOWNLOAD a/z,CLEANUP a/z,ROLLBACK a/z,ACTIVATE a/z",
		begin + "a:DOWNLOAD_FAILURE/z a:CLEANUP/z a:ROLLBACK_FAILURE/z a:ACTIVATION_FAILURE/z",
	}, {
		"CommandThatIsNotAllowedIsRefused",
		"ds a,ok,UPDATE a/x,DOWNLOAD a,fail,UPDATE a,ACTIVATE a,DOWNLOAD a",
		begin + "a:UPDATE_FAILURE/x <downloading> a:DOWNLOAD_FAILURE a:UPDATE_FAILURE a:ACTIVATION_FAILURE a:DOWNLOAD_FAILURE",
	}, {
		"RepeatedCommandIsAnsweredForItsBaseline",
		"ds a,ok,DOWNLOAD a/x,ok,DOWNLOAD a/y,fail,DOWNLOAD a/x,DOWNLOAD a/y",
		begin + "<downloading> a:DOWNLOAD_SUCCESS/x <downloading> a:DOWNLOAD_FAILURE/y a:DOWNLOAD_SUCCESS/x a:DOWNLOAD_FAILURE/y",
	}, {
		"RollbackWaitsForCleanup",
		"ds a,ok,DOWNLOAD a,ok,ROLLBACK a,ok,ROLLBACK a,DOWNLOAD a,restart,up,CLEANUP a,ok,CLEANUP a",
		begin + "<downloading> a:DOWNLOAD_SUCCESS <rolling back> a:ROLLBACK a:ROLLBACK_SUCCESS a:ROLLBACK_SUCCESS a:DOWNLOAD_FAILURE inventory: a:ROLLBACK_SUCCESS " +
			"<cleaning> a:CLEANUP_SUCCESS a:INCOMPLETE inventory: a:CLEANUP_SUCCESS",
	}, {
		"RollbackAfterFailure",
		"ds a,ok,DOWNLOAD a,fail,ROLLBACK a,ok,expire,ok",
		begin + "<downloading> a:DOWNLOAD_FAILURE <rolling back> a:ROLLBACK a:ROLLBACK_SUCCESS <cleaning> a:CLEANUP_SUCCESS a:INCOMPLETE inventory:",
	}, {
		"RollbackOfOneWaitsForTheWorkOfTheOther",
		"ds a,ok,DOWNLOAD a/x,ROLLBACK a/y,ok,ok,CLEANUP a/y,ok,UPDATE a/x",
		begin + "<downloading> a:DOWNLOAD_SUCCESS/x <rolling back> a:ROLLBACK/y a:ROLLBACK_SUCCESS/y <cleaning> a:CLEANUP_SUCCESS/y <updating>",
	}, {
		"RollbackOfAllInterruptsTheWorkOfOne",
		"ds a,ok,DOWNLOAD a/x,DOWNLOAD a/y,ROLLBACK a,ok,CLEANUP a,ok",
		begin + "<downloading> <rolling back> a:ROLLBACK a:ROLLBACK_SUCCESS <cleaning> a:CLEANUP_SUCCESS a:INCOMPLETE inventory:",
	}, {
		"CommandForACleanedBaseline",
		"ds a,ok,CLEANUP a/x,ok,CLEANUP a/x,ROLLBACK a/x,DOWNLOAD a/x",
		begin + "<cleaning> a:CLEANUP_SUCCESS/x a:CLEANUP_SUCCESS/x a:ROLLBACK_FAILURE/x a:DOWNLOAD_FAILURE/x",
	}, {
		"ForeignIDIsNotAdopted",
		"ds a,ok,DOWNLOAD b,CLEANUP b,DOWNLOAD a",
		begin + "b:DOWNLOAD_FAILURE b:CLEANUP <downloading>",
	}, {
		"OtherDesiredStateTakesThePlaceOfOneThatIsNotInUse",
		"ds a,ok,DOWNLOAD a,ok,ds b,ds b,ok,ok",
		begin + "<downloading> a:DOWNLOAD_SUCCESS <cleaning> a:CLEANUP_SUCCESS a:INCOMPLETE inventory: b:IDENTIFYING <identifying> b:IDENTIFIED",
	}, {
		"OtherDesiredStateWaitsForTheEnd",
		"ds a,ok,DOWNLOAD a,ok,UPDATE a,ok,ACTIVATE a,ok,CLEANUP a,ds b,ok,ok",
		begin + "<downloading> a:DOWNLOAD_SUCCESS <updating> a:UPDATE_SUCCESS <activating> a:ACTIVATION_SUCCESS <cleaning> a:CLEANUP_SUCCESS a:COMPLETE inventory: " +
			"b:IDENTIFYING <identifying> b:IDENTIFIED",
	}, {
		"OtherDesiredStateIsRefusedWhileOneIsInUse",
		"ds a,ok,DOWNLOAD a,ds b,ok,UPDATE a,ok,ACTIVATE a,ok,ds c,CLEANUP a,ok",
		begin + "<downloading> b:IDENTIFICATION_FAILED a:DOWNLOAD_SUCCESS <updating> a:UPDATE_SUCCESS <activating> a:ACTIVATION_SUCCESS c:IDENTIFICATION_FAILED " +
			"<cleaning> a:CLEANUP_SUCCESS a:COMPLETE inventory:",
	}, {
		"CommandsForTheOneThatTakesOverWaitForIt",
		"ds a,ok,DOWNLOAD a,ok,ds b,DOWNLOAD b,restart,UPDATE b,ok,ok,ok,ok",
		begin + "<downloading> a:DOWNLOAD_SUCCESS <cleaning> <cleaning> a:CLEANUP_SUCCESS a:INCOMPLETE inventory: " +
			"b:IDENTIFYING <identifying> b:IDENTIFIED <downloading> b:DOWNLOAD_SUCCESS <updating> b:UPDATE_SUCCESS",
	}, {
		"CommandThatMakesNoSenseIsDropped",
		"ds a,typo a,ok,typo b,CLEANUP a,ok,typo a",
		begin + "<cleaning> a:CLEANUP_SUCCESS a:INCOMPLETE inventory:",
	}, {
		"RestartVerifiesWhatIsActivated",
		"ds a,ok,DOWNLOAD a/x,ok,UPDATE a/x,ok,ACTIVATE a/x,ok,restart,DOWNLOAD a/y,CLEANUP a/x,fail,ok,ok,CLEANUP a,ok",
		begin + "<downloading> a:DOWNLOAD_SUCCESS/x <updating> a:UPDATE_SUCCESS/x <activating> a:ACTIVATION_SUCCESS/x <activated> inventory: a:ACTIVATION_FAILURE/x " +
			"<downloading> a:DOWNLOAD_SUCCESS/y <cleaning> a:CLEANUP_SUCCESS/x <cleaning> a:CLEANUP_SUCCESS a:INCOMPLETE inventory:",
	}, {
		"RestartVerifiesEachBaseline",
		"ds a,ok,DOWNLOAD a,ok,UPDATE a,ok,ACTIVATE a,ok,restart,only y,ACTIVATE a,ACTIVATE a/y,ACTIVATE a/x,restart,only z,CLEANUP a/y,ok,CLEANUP a,ok",
		begin + "<downloading> a:DOWNLOAD_SUCCESS <updating> a:UPDATE_SUCCESS <activating> a:ACTIVATION_SUCCESS " +
			"<activated> inventory: a:ACTIVATION_FAILURE a:ACTIVATION_FAILURE a:ACTIVATION_FAILURE/y a:ACTIVATION_SUCCESS/x " +
			"<activated> inventory: a:ACTIVATION_SUCCESS <cleaning> a:CLEANUP_SUCCESS/y <cleaning> a:CLEANUP_SUCCESS a:COMPLETE inventory:",
	}, {
		"RestartVerifiesEachBaselineThatWasCommandedOnItsOwn",
		"ds a,ok,DOWNLOAD a,ok,UPDATE a,ok,ACTIVATE a/x,ok,ACTIVATE a/y,ok,restart,only y,ACTIVATE a/y,ACTIVATE a/x,ACTIVATE a,CLEANUP a/y,ok,CLEANUP a/x,ok",
		begin + "<downloading> a:DOWNLOAD_SUCCESS <updating> a:UPDATE_SUCCESS <activating> a:ACTIVATION_SUCCESS/x <activating> a:ACTIVATION_SUCCESS/y " +
			"<activated> inventory: a:ACTIVATION_SUCCESS/x a:ACTIVATION_FAILURE/y a:ACTIVATION_FAILURE/y a:ACTIVATION_SUCCESS/x a:ACTIVATION_FAILURE " +
			"<cleaning> a:CLEANUP_SUCCESS/y <cleaning> a:CLEANUP_SUCCESS/x a:COMPLETE inventory:",
	}, {
		"OutcomeOfARestartIsForEachBaselineThatWasCommandedOnItsOwn",
		"ds a,ok,DOWNLOAD a,ok,UPDATE a,ok,ACTIVATE a/x,ok,ACTIVATE a/y,ok,restart,ok,restart,fail,CLEANUP a,ok",
		begin + "<downloading> a:DOWNLOAD_SUCCESS <updating> a:UPDATE_SUCCESS <activating> a:ACTIVATION_SUCCESS/x <activating> a:ACTIVATION_SUCCESS/y " +
			"<activated> inventory: a:ACTIVATION_SUCCESS/x a:ACTIVATION_SUCCESS/y <activated> inventory: a:ACTIVATION_FAILURE/x a:ACTIVATION_FAILURE/y " +
			"<cleaning> a:CLEANUP_SUCCESS a:INCOMPLETE inventory:",
	}, {
		"RestartFindsThatNothingWorks",
		"ds a,ok,DOWNLOAD a/x,ok,UPDATE a/x,ok,ACTIVATE a/x,ok,restart,only x,expire,ok",
		begin + "<downloading> a:DOWNLOAD_SUCCESS/x <updating> a:UPDATE_SUCCESS/x <activating> a:ACTIVATION_SUCCESS/x <activated> inventory: " +
			"a:ACTIVATION_FAILURE/x <cleaning> a:CLEANUP_SUCCESS a:INCOMPLETE inventory:",
	}} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScript(t)
			s.m.kanto, s.titles = true, []string{"x", "y"}
			for e := range strings.SplitSeq(tc.events, ",") {
				s.do(e)
			}
			if got := strings.Join(s.log, " "); got != strings.TrimSpace(tc.want) {
				t.Errorf("events %s\n got %s\nwant %s", tc.events, got, tc.want)
			}
		})
	}
}

// One baseline that has been rolled back does not hurry the others.
func TestActivityWaitsAsLongAsAnyOfItsBaselinesDoes(t *testing.T) {
	for events, want := range map[string]time.Duration{
		"":                        0,
		"ds a":                    0,
		"ds a,ok":                 time.Hour,
		"ds a,ok,ROLLBACK a":      0,
		"ds a,ok,ROLLBACK a,ok":   rest,
		"ds a,ok,ROLLBACK a/x,ok": time.Hour,
		"ds a,ok,DOWNLOAD a/y,fail,ROLLBACK a/x,ok":                                            time.Hour,
		"ds a,ok,ROLLBACK a/x,ok,CLEANUP a/y,ok":                                               rest,
		"ds a,ok,DOWNLOAD a/y,ok,UPDATE a/y,ok,ACTIVATE a/y,ok,ROLLBACK a/x,ok":                0,
		"ds a,ok,DOWNLOAD a/y,ok,UPDATE a/y,ok,ACTIVATE a/y,ok,ROLLBACK a/x,ok,CLEANUP a/y,ok": rest,
	} {
		s := newScript(t)
		s.m.kanto, s.titles = true, []string{"x", "y"}
		for e := range strings.SplitSeq(events, ",") {
			if e != "" {
				s.do(e)
			}
		}
		if got := s.m.Activity.patience(time.Hour); got != want {
			t.Errorf("after %s: %v, want %v", events, got, want)
		}
	}
}

func TestActivityThatGivesWayToAnotherSaysSoUnlessThereIsAReason(t *testing.T) {
	for _, tc := range []struct{ events, reason, want string }{
		{"ds a,ok,ds b", "", `given up for activity "b"`},
		{"ds a,ok,ds b,restart", "", `given up for activity "b"`},
		{"ds a,ok,DOWNLOAD a,fail,ds b", "the disk is full", "the disk is full"},
		{"ds a,ok,DOWNLOAD a,fail,CLEANUP a,ds b", "the disk is full", "the disk is full"},
		{"ds a,ok,CLEANUP a,ds b", "", ""},
		{"ds a,ok,ROLLBACK a,ds b,ok", "", `given up for activity "b"`},
	} {
		s := newScript(t)
		s.m.kanto = true
		for e := range strings.SplitSeq(tc.events, ",") {
			s.do(e)
		}
		s.m.done([]updateproto.Feedback{{Status: "CLEANUP_SUCCESS"}, {Status: "INCOMPLETE", Message: tc.reason}})
		if got := s.m.Unsent[len(s.m.Unsent)-1]; got.Feedback.Status != "INCOMPLETE" || got.Feedback.Message != tc.want {
			t.Errorf("after %s: %v, want %q", tc.events, got, tc.want)
		}
	}
}

// What takes most is written as six characters for each.
func TestEverythingForBaselinesFitsIntoTheJournal(t *testing.T) {
	const capacity = 1 << 20
	name := func(n int) string { return fmt.Sprintf("%03d", n) + strings.Repeat("<", updateproto.MaxName-3) }
	most := json.RawMessage(`"` + strings.Repeat("x", capacity/4-2) + `"`)
	text := strings.Repeat("<", capacity)
	s := newScript(t)
	s.m.kanto, s.m.capacity = true, capacity
	for n := range 2 * maxUnsent {
		s.m.request(name(n), most, false)
		s.m.done([]updateproto.Feedback{{Status: "IDENTIFIED"}, {Status: "INCOMPLETE", Message: text, Actions: []updateproto.Action{{Message: text}}}})
	}
	s.m.request(name(100), most, false)
	var titles []string
	for n := range updateproto.MaxBaselines {
		titles = append(titles, name(n))
	}
	s.m.divide(titles)
	s.m.note(most)
	s.m.done([]updateproto.Feedback{{Status: "IDENTIFIED", Message: text, Actions: []updateproto.Action{{Message: text}}}})
	s.m.command(queued{ID: name(100), Command: "ROLLBACK"})
	s.m.request(name(101), most, false)
	for n := range 2 * maxPartQueue {
		s.m.command(queued{ID: name(100), Command: "DOWNLOAD", Baseline: name(n)})
		s.m.command(queued{ID: name(101), Command: "DOWNLOAD", Baseline: name(n)})
	}
	a := s.m.Activity
	if len(a.Queue) != maxPartQueue || len(a.Next.Queue) != maxPartQueue {
		t.Errorf("%d and %d commands wait", len(a.Queue), len(a.Next.Queue))
	}
	if rec, err := s.m.encode(); err != nil || len(rec) > capacity {
		t.Errorf("record of %d bytes, at most %d fit: %v", len(rec), capacity, err)
	}
}

// Whatever comes in whatever order: an activity ends once, and an agent can be
// made ready for the next one.
func TestAnyOrderOfCommandsForBaselinesEndsEachActivityOnce(t *testing.T) {
	commands := []string{"DOWNLOAD", "DOWNLOAD", "UPDATE", "ACTIVATE", "CLEANUP", "ROLLBACK"}
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 2))
		s := newScript(t)
		s.m.kanto, s.titles = true, []string{"x", "y", "z"}
		var events []string
		failed := 0
		do := func(e string) {
			events = append(events, e)
			if s.work == Identifying && e == "fail" {
				failed++
			}
			s.do(e)
		}
		for n := range 80 {
			switch k := r.IntN(10); {
			case k < 1:
				do(fmt.Sprintf("ds %d", n))
			case k < 6 && s.m.Activity != nil:
				baseline := []string{"", "/x", "/y", "/z", "/*"}[r.IntN(5)]
				id := s.m.Activity.ID
				if next := s.m.Activity.Next; next != nil && r.IntN(2) == 0 {
					id = next.ID
				}
				do(commands[r.IntN(len(commands))] + " " + id + baseline)
			case k < 9 && s.m.verifying && r.IntN(2) == 0:
				do("only y")
			case k < 9 && s.work != "":
				do([]string{"ok", "ok", "ok", "fail"}[r.IntN(4)])
			case k == 9:
				do([]string{"restart", "expire"}[r.IntN(2)])
			}
			if a := s.m.Activity; a != nil && a.Phase.working() != (s.work != "" && !s.m.verifying) {
				t.Fatalf("seed %d: phase %q with work %q after %v", seed, a.Phase, s.work, events)
			}
		}
		for range 10 {
			if s.m.Activity == nil {
				break
			}
			if s.work == "" {
				do("CLEANUP " + s.m.Activity.ID)
			}
			do("ok")
		}
		if s.m.Activity != nil {
			t.Fatalf("seed %d: activity left in phase %s after %v", seed, s.m.Activity.Phase, events)
		}
		began := map[string]bool{}
		ended := 0
		for _, l := range s.log {
			if id, ok := strings.CutSuffix(l, ":IDENTIFYING"); ok {
				began[id] = true
			}
			if strings.HasSuffix(l, ":COMPLETE") || strings.HasSuffix(l, ":INCOMPLETE") {
				ended++
			}
		}
		if len(began)-failed != ended {
			t.Fatalf("seed %d: %d activities, %d of them not identified, and %d terminal statuses after %v\n%v", seed, len(began), failed, ended, events, s.log)
		}
	}
}
