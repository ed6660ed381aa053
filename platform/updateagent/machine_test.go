// SPDX-License-Identifier: Apache-2.0

package updateagent

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"sdvbox/platform/updateproto"
)

// script drives a machine by words and writes down what it does:
//
//	ds ID        a desired state           get ID     wanted inventory
//	CMD ID       a command                 up         connected
//	dup ID       it is delivered again     typo ID    a command that makes no sense
//	bad ID       one that makes no sense   restart    from the saved state
//	ok, fail     outcome of the work       expire     nobody has come for long
//	nothing      outcome of a verification, or an identification without work
//	only TITLE   outcome of a verification: this baseline has failed, the others have not
//	taken        the broker has all that was published
type script struct {
	t *testing.T
	m machine
	// saved is the state as it was last journaled.
	saved []byte
	work  Phase
	log   []string
	sent  []outgoing
	// repeated counts terminal statuses that were said again as nobody had
	// heard them.
	repeated int
	// titles are the baselines that identifications find.
	titles []string
}

func newScript(t *testing.T) *script {
	s := &script{t: t, m: machine{identifying: "Looking.", capacity: Capacity}}
	s.save()
	return s
}

func (s *script) save() {
	data, err := json.Marshal(s.m.State)
	if err != nil {
		s.t.Fatal(err)
	}
	s.saved = data
}

func (s *script) results(ok bool) []updateproto.Feedback {
	word := func(base string) updateproto.Feedback {
		return updateproto.Feedback{Status: base}
	}
	switch s.work {
	case Identifying:
		if !ok {
			return []updateproto.Feedback{word("IDENTIFICATION_FAILED")}
		}
		return []updateproto.Feedback{word("IDENTIFIED")}
	case RollingBack:
		if s.m.kanto && ok {
			return []updateproto.Feedback{word("ROLLBACK_SUCCESS")}
		}
		if !ok {
			return []updateproto.Feedback{word("ROLLBACK_FAILURE"), word("INCOMPLETE")}
		}
		return []updateproto.Feedback{word("ROLLBACK_SUCCESS"), word("INCOMPLETE")}
	case Cleaning:
		if s.m.Activity.Success {
			return []updateproto.Feedback{word("CLEANUP_SUCCESS"), word("COMPLETE")}
		}
		return []updateproto.Feedback{word("CLEANUP_SUCCESS"), word("INCOMPLETE")}
	}
	for _, st := range steps() {
		if st.work == s.work || st.done == s.work {
			if ok {
				return []updateproto.Feedback{word(st.success)}
			}
			return []updateproto.Feedback{word(st.failure)}
		}
	}
	s.t.Fatalf("no work runs")
	return nil
}

func (s *script) do(event string) {
	verb, id, _ := strings.Cut(event, " ")
	switch verb {
	case "ds", "dup":
		// Other content under the same id ends in a stroke.
		s.m.request(strings.TrimSuffix(id, "'"), json.RawMessage(`{"of":"`+id+`"}`), verb == "dup")
	case "get":
		s.m.inventoryWanted(id)
	case "bad":
		s.m.reject(id, "bad", true)
	case "typo":
		s.m.reject(id, "bad", false)
	case "expire":
		s.m.expire()
	case "up":
		for _, o := range s.m.Unsent {
			if strings.Contains("COMPLETED INCOMPLETE", o.Feedback.Status) {
				s.repeated++
			}
		}
		s.m.connected()
	case "ok", "fail":
		results := s.results(verb == "ok")
		s.work = ""
		s.m.divide(s.titles)
		s.m.done(results)
	case "nothing":
		if s.work == Identifying {
			s.m.done([]updateproto.Feedback{{Status: "IDENTIFIED"}, {Status: "COMPLETED"}})
		} else {
			s.work = ""
			s.m.done(nil)
		}
	case "only":
		var results []updateproto.Feedback
		for _, p := range s.m.Activity.at(Activated) {
			f := updateproto.Feedback{Status: "ACTIVATION_SUCCESS", Baseline: p.Title}
			if p.Title == id {
				f.Status = "ACTIVATION_FAILURE"
			}
			results = append(results, f)
		}
		s.work = ""
		s.m.done(results)
	case "taken":
		for _, o := range s.sent {
			s.m.sent(o)
		}
		s.sent = nil
	case "restart":
		s.m = machine{identifying: "Looking.", kanto: s.m.kanto, capacity: Capacity}
		s.work = ""
		if err := json.Unmarshal(s.saved, &s.m.State); err != nil {
			s.t.Fatal(err)
		}
		s.m.resume()
	default:
		id, baseline, _ := strings.Cut(id, "/")
		s.m.command(queued{ID: id, Command: verb, Baseline: baseline})
	}
	effects, dirty := s.m.take()
	if dirty {
		s.save()
	}
	for _, e := range effects {
		switch {
		case e.publish != nil:
			said := e.publish.ID + ":" + e.publish.Feedback.Status
			if b := e.publish.Feedback.Baseline; b != "" {
				said += "/" + b
			}
			s.log = append(s.log, said)
			if e.last {
				s.sent = append(s.sent, *e.publish)
			}
		case e.start != "":
			s.work = e.start
			s.log = append(s.log, "<"+string(e.start)+">")
		case e.inventory != nil:
			s.log = append(s.log, "inventory:"+*e.inventory)
		}
	}
}

func TestProtocol(t *testing.T) {
	for _, tc := range []struct {
		name, events, want string
	}{{
		"WholeUpdate",
		"ds a,ok,DOWNLOAD a,ok,UPDATE a,ok,ACTIVATE a,ok,CLEANUP a,ok",
		"a:IDENTIFYING <identifying> a:IDENTIFIED <downloading> a:DOWNLOAD_SUCCESS <updating> a:UPDATE_SUCCESS <activating> a:ACTIVATION_SUCCESS <cleaning> a:CLEANUP_SUCCESS a:COMPLETE inventory:a",
	}, {
		"NothingToDoLeavesTheAgentReady",
		"ds a,nothing,ds b,ok",
		"a:IDENTIFYING <identifying> a:IDENTIFIED a:COMPLETED inventory:a b:IDENTIFYING <identifying> b:IDENTIFIED",
	}, {
		"CommandIDIsAdoptedAsInTheTutorial",
		"ds uuid,ok,DOWNLOAD 123,ok,UPDATE 123",
		"uuid:IDENTIFYING <identifying> uuid:IDENTIFIED <downloading> 123:DOWNLOAD_SUCCESS <updating>",
	}, {
		"TutorialTwiceWithTheSameCommandFiles",
		"ds u,ok,DOWNLOAD 1,ok,ROLLBACK 1,ok,ds v,ok,DOWNLOAD 1,ok",
		"u:IDENTIFYING <identifying> u:IDENTIFIED <downloading> 1:DOWNLOAD_SUCCESS <rolling back> 1:ROLLBACK 1:ROLLBACK_SUCCESS 1:INCOMPLETE inventory:1 " +
			"v:IDENTIFYING <identifying> v:IDENTIFIED <downloading> 1:DOWNLOAD_SUCCESS",
	}, {
		"FiveMessagesAtOnceAreWorkedOffInOrder",
		"ds u,DOWNLOAD 1,UPDATE 1,ACTIVATE 1,CLEANUP 1,ok,ok,ok,ok,ok",
		"u:IDENTIFYING <identifying> u:IDENTIFIED <downloading> 1:DOWNLOAD_SUCCESS <updating> 1:UPDATE_SUCCESS <activating> 1:ACTIVATION_SUCCESS <cleaning> 1:CLEANUP_SUCCESS 1:COMPLETE inventory:1",
	}, {
		"QueuedStepsAreDroppedAfterAFailureButCleanupIsNot",
		"ds u,DOWNLOAD u,UPDATE u,ACTIVATE u,CLEANUP u,ok,fail,ok",
		"u:IDENTIFYING <identifying> u:IDENTIFIED <downloading> u:DOWNLOAD_FAILURE <cleaning> u:CLEANUP_SUCCESS u:INCOMPLETE inventory:u",
	}, {
		"QueueSurvivesARestart",
		"ds u,DOWNLOAD u,UPDATE u,restart,ok,ok",
		"u:IDENTIFYING <identifying> <identifying> u:IDENTIFIED <downloading> u:DOWNLOAD_SUCCESS <updating>",
	}, {
		"SecondRequestIsRefused",
		"ds a,ok,ds b,DOWNLOAD a",
		"a:IDENTIFYING <identifying> a:IDENTIFIED b:IDENTIFYING b:IDENTIFICATION_FAILED <downloading>",
	}, {
		"SameRequestAgainIsAnsweredWithTheLastWord",
		"ds a,ok,ds a",
		"a:IDENTIFYING <identifying> a:IDENTIFIED a:IDENTIFIED",
	}, {
		"OtherContentUnderTheSameIDChangesNothing",
		"ds a,ok,ds a',get z",
		"a:IDENTIFYING <identifying> a:IDENTIFIED a:IDENTIFIED inventory:z",
	}, {
		"RepeatedCommandIsAnsweredAndNotRepeated",
		"ds a,ok,DOWNLOAD a,DOWNLOAD a,ok,DOWNLOAD a",
		"a:IDENTIFYING <identifying> a:IDENTIFIED <downloading> a:IDENTIFIED a:DOWNLOAD_SUCCESS a:DOWNLOAD_SUCCESS",
	}, {
		"StepsOutOfOrderAreRefusedAndHarmless",
		"ds a,ok,ACTIVATE a,UPDATE a,DOWNLOAD a",
		"a:IDENTIFYING <identifying> a:IDENTIFIED a:ACTIVATION_FAILURE a:UPDATE_FAILURE <downloading>",
	}, {
		"CommandsWithoutAnActivityAreAnswered",
		"DOWNLOAD a,CLEANUP a,ROLLBACK a",
		"a:DOWNLOAD_FAILURE a:CLEANUP_SUCCESS a:ROLLBACK_FAILURE",
	}, {
		"BadMessageForARunningActivityDoesNotEndIt",
		"ds a,ok,bad a,bad b,DOWNLOAD a",
		"a:IDENTIFYING <identifying> a:IDENTIFIED a:IDENTIFIED b:IDENTIFYING b:IDENTIFICATION_FAILED <downloading>",
	}, {
		"RollbackWhileAStepRuns",
		"ds a,ok,DOWNLOAD a,ROLLBACK a,ROLLBACK a,ok,CLEANUP a,ROLLBACK a",
		"a:IDENTIFYING <identifying> a:IDENTIFIED <downloading> <rolling back> a:ROLLBACK a:ROLLBACK a:ROLLBACK_SUCCESS a:INCOMPLETE inventory:a a:CLEANUP_SUCCESS a:ROLLBACK_SUCCESS",
	}, {
		"CleanupDuringRollbackIsAnsweredAfterIt",
		"ds a,ok,ROLLBACK a,CLEANUP a,ok",
		"a:IDENTIFYING <identifying> a:IDENTIFIED <rolling back> a:ROLLBACK a:ROLLBACK_SUCCESS a:INCOMPLETE inventory:a a:CLEANUP_SUCCESS",
	}, {
		"EarlyCleanupAbandonsTheUpdate",
		"ds a,ok,DOWNLOAD a,CLEANUP a,ok,ds b",
		"a:IDENTIFYING <identifying> a:IDENTIFIED <downloading> <cleaning> a:CLEANUP_SUCCESS a:INCOMPLETE inventory:a b:IDENTIFYING <identifying>",
	}, {
		"CleanupAgainHasNoSecondTerminal",
		"ds a,nothing,CLEANUP a,CLEANUP a",
		"a:IDENTIFYING <identifying> a:IDENTIFIED a:COMPLETED inventory:a a:CLEANUP_SUCCESS a:CLEANUP_SUCCESS",
	}, {
		"IDOfAFinishedActivityIsRefusedForTheNext",
		"ds a,nothing,ds b,ok,DOWNLOAD a",
		"a:IDENTIFYING <identifying> a:IDENTIFIED a:COMPLETED inventory:a b:IDENTIFYING <identifying> b:IDENTIFIED a:DOWNLOAD_FAILURE",
	}, {
		"RebootIsVerifiedAndCleanupWaitsForIt",
		"ds a,ok,DOWNLOAD a,ok,UPDATE a,ok,ACTIVATE a,ok,restart,up,CLEANUP a,fail,ok",
		"a:IDENTIFYING <identifying> a:IDENTIFIED <downloading> a:DOWNLOAD_SUCCESS <updating> a:UPDATE_SUCCESS <activating> a:ACTIVATION_SUCCESS " +
			"<activated> inventory: a:ACTIVATING inventory:a a:ACTIVATION_FAILURE <cleaning> a:CLEANUP_SUCCESS a:INCOMPLETE inventory:a",
	}, {
		"RestartWithoutRebootSaysNothingNew",
		"ds a,ok,DOWNLOAD a,ok,UPDATE a,ok,ACTIVATE a,ok,restart,nothing,CLEANUP a,ok",
		"a:IDENTIFYING <identifying> a:IDENTIFIED <downloading> a:DOWNLOAD_SUCCESS <updating> a:UPDATE_SUCCESS <activating> a:ACTIVATION_SUCCESS " +
			"<activated> inventory: a:ACTIVATION_SUCCESS <cleaning> a:CLEANUP_SUCCESS a:COMPLETE inventory:a",
	}, {
		"ActivateAgainDuringVerificationIsNotAnsweredWithTheOldSuccess",
		"ds a,ok,DOWNLOAD a,ok,UPDATE a,ok,ACTIVATE a,ok,restart,ACTIVATE a,ok,ACTIVATE a",
		"a:IDENTIFYING <identifying> a:IDENTIFIED <downloading> a:DOWNLOAD_SUCCESS <updating> a:UPDATE_SUCCESS <activating> a:ACTIVATION_SUCCESS " +
			"<activated> a:ACTIVATING inventory: a:ACTIVATION_SUCCESS a:ACTIVATION_SUCCESS",
	}, {
		"RefusedRequesterCannotCommandTheOther",
		"ds a,ok,ds b,DOWNLOAD b,ROLLBACK b,CLEANUP b,DOWNLOAD a",
		"a:IDENTIFYING <identifying> a:IDENTIFIED b:IDENTIFYING b:IDENTIFICATION_FAILED b:DOWNLOAD_FAILURE b:ROLLBACK_FAILURE b:CLEANUP_SUCCESS <downloading>",
	}, {
		"CommandMayBeCorrected",
		"ds u,ok,typo 1,DOWNLOAD 1",
		"u:IDENTIFYING <identifying> u:IDENTIFIED 1:IDENTIFYING 1:IDENTIFICATION_FAILED <downloading>",
	}, {
		"FailedRollbackCanBeRepeatedAndEndsWithCleanup",
		"ds a,ok,ROLLBACK a,fail,ROLLBACK a,fail,CLEANUP a,ok",
		"a:IDENTIFYING <identifying> a:IDENTIFIED <rolling back> a:ROLLBACK a:ROLLBACK_FAILURE <rolling back> a:ROLLBACK a:ROLLBACK_FAILURE <cleaning> a:CLEANUP_SUCCESS a:INCOMPLETE inventory:a",
	}, {
		"RequestDeliveredAgainDoesNotBeginAgain",
		"ds a,nothing,dup a,ds a",
		"a:IDENTIFYING <identifying> a:IDENTIFIED a:COMPLETED inventory:a a:COMPLETED a:IDENTIFYING <identifying>",
	}, {
		"OriginIsKnownHoweverManyIDsAreAdopted",
		"ds a,ok,DOWNLOAD 1,DOWNLOAD 2,ok,DOWNLOAD 3,DOWNLOAD 4,DOWNLOAD 5,DOWNLOAD 6,ds a",
		"a:IDENTIFYING <identifying> a:IDENTIFIED <downloading> 2:DOWNLOAD_FAILURE 1:DOWNLOAD_SUCCESS 3:DOWNLOAD_SUCCESS 4:DOWNLOAD_SUCCESS 5:DOWNLOAD_SUCCESS 6:DOWNLOAD_SUCCESS 6:DOWNLOAD_SUCCESS",
	}, {
		"ForgottenActivityIsGivenUpUnlessItIsInUse",
		"ds a,expire,ok,expire,ok,ds b,ok,DOWNLOAD b,ok,UPDATE b,ok,ACTIVATE b,ok,expire,CLEANUP b",
		"a:IDENTIFYING <identifying> a:IDENTIFIED <cleaning> a:CLEANUP_SUCCESS a:INCOMPLETE inventory:a " +
			"b:IDENTIFYING <identifying> b:IDENTIFIED <downloading> b:DOWNLOAD_SUCCESS <updating> b:UPDATE_SUCCESS <activating> b:ACTIVATION_SUCCESS <cleaning>",
	}, {
		"LastWordsAreRepeatedUntilTheBrokerHasThem",
		"ds a,nothing,restart,up,taken,restart,up",
		"a:IDENTIFYING <identifying> a:IDENTIFIED a:COMPLETED inventory:a inventory:a a:IDENTIFIED a:COMPLETED inventory:a",
	}, {
		"InterruptedWorkBeginsAgain",
		"ds a,ok,DOWNLOAD a,restart,up,ok",
		"a:IDENTIFYING <identifying> a:IDENTIFIED <downloading> <downloading> inventory:a a:IDENTIFIED a:DOWNLOAD_SUCCESS",
	}} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScript(t)
			for _, e := range strings.Split(tc.events, ",") {
				s.do(e)
			}
			got := strings.Join(s.log, " ")
			// Ids in inventories after a restart are those last journaled; they are not the point here.
			if normal(got) != normal(tc.want) {
				t.Errorf("events %s\n got %s\nwant %s", tc.events, got, tc.want)
			}
		})
	}
}

func normal(s string) string {
	var w []string
	for f := range strings.FieldsSeq(s) {
		if strings.HasPrefix(f, "inventory:") {
			f = "inventory"
		}
		w = append(w, f)
	}
	return strings.Join(w, " ")
}

// Whatever comes in whatever order, with restarts anywhere: an activity ends
// with one terminal status, work is only begun in the right phase, and a new
// request is served in the end.
func TestAnyOrderOfEventsEndsEachActivityOnce(t *testing.T) {
	commands := []string{"DOWNLOAD", "UPDATE", "ACTIVATE", "CLEANUP", "ROLLBACK"}
	terminal := map[string]bool{"COMPLETE": true, "COMPLETED": true, "INCOMPLETE": true}
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := newScript(t)
		var events []string
		ends := 0 // activities that got beyond identification, or needed to go no further
		do := func(e string) {
			events = append(events, e)
			before := s.m.Activity != nil && !(s.work == Identifying && e == "fail")
			s.do(e)
			if before && s.m.Activity == nil {
				ends++
			}
		}
		for n := range 60 {
			switch k := r.IntN(10); {
			case k < 2:
				do(fmt.Sprintf("ds %d", n))
			case k < 5:
				id := fmt.Sprint(r.IntN(n + 1))
				if s.m.Activity != nil && r.IntN(3) > 0 {
					id = s.m.Activity.ID
				}
				do(commands[r.IntN(len(commands))] + " " + id)
			case k < 8 && s.work != "":
				do([]string{"ok", "ok", "fail"}[r.IntN(3)])
			case k == 8:
				do([]string{"restart", "up", "expire"}[r.IntN(3)])
			case k == 9:
				do("taken")
			}
			if a := s.m.Activity; a != nil && a.Phase.working() != (s.work != "" && !s.m.verifying) {
				t.Fatalf("seed %d: phase %q with work %q after %v", seed, a.Phase, s.work, events)
			}
		}
		terminals := -s.repeated
		for _, l := range s.log {
			if _, status, ok := strings.Cut(l, ":"); ok && terminal[status] {
				terminals++
			}
		}
		if terminals != ends {
			t.Fatalf("seed %d: %d terminal statuses for %d activities after %v\n%v", seed, terminals, ends, events, s.log)
		}
		// Whatever state it is in, ROLLBACK gets the agent ready for the next.
		for range 5 {
			if s.m.Activity == nil {
				break
			}
			if s.m.Activity.Phase != Cleaning {
				do("ROLLBACK " + s.m.Activity.ID)
			}
			do("ok")
		}
		if s.m.Activity != nil {
			t.Fatalf("seed %d: activity left in phase %s after %v", seed, s.m.Activity.Phase, events)
		}
	}
}

// Whatever a peer sends, the record fits into the journal and can be read back.
func TestEverythingAPeerCanSendFitsIntoTheJournal(t *testing.T) {
	s := newScript(t)
	long := func(n int) string { return fmt.Sprintf("%0*d", updateproto.MaxActivityID, n) }
	text := strings.Repeat("<", 1<<20)
	for n := range 100 {
		id := long(n)
		s.m.request(id, json.RawMessage(`"`+strings.Repeat("x", maxRequest-2)+`"`), false)
		s.m.note(json.RawMessage(`"` + strings.Repeat("x", maxNotes-2) + `"`))
		for k := range 20 {
			s.m.request(long(1000+k), nil, false)
			s.m.command(queued{ID: long(2000 + k), Command: "DOWNLOAD"})
			s.m.command(queued{ID: long(3000 + k), Command: "UPDATE"})
			s.m.reject(long(4000+k), text, true)
		}
		f := updateproto.Feedback{Status: "IDENTIFIED", Message: text}
		for range 500 {
			f.Actions = append(f.Actions, updateproto.Action{Message: text})
		}
		s.m.done([]updateproto.Feedback{f})
		s.m.progress(f)
		if n%2 == 0 {
			s.m.command(queued{ID: s.m.Activity.ID, Command: "ROLLBACK"})
			s.m.done([]updateproto.Feedback{{Status: "ROLLBACK_SUCCESS"}, {Status: "INCOMPLETE", Message: text, Actions: f.Actions}})
		}
		rec, err := s.m.encode()
		if err != nil || len(rec) > Capacity {
			t.Fatalf("record of %d bytes, at most %d fit: %v", len(rec), Capacity, err)
		}
		var back State
		if err := json.Unmarshal(rec, &back); err != nil {
			t.Fatal(err)
		}
		s.m.take()
	}
}
