// SPDX-License-Identifier: Apache-2.0

package rauchelper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sdvbox/platform/health"
	"sdvbox/platform/slots"
	"sdvbox/platform/systemd/systemdtest"
	"sdvbox/testing/broker"
	"sdvbox/testing/raucd"
)

// trial is a vehicle that has been updated and started from SDV_B for the first time.
func trial(s *slots.State) { s.MarkGood("SDV_A"); s.SetPrimary("SDV_B"); s.Boot() }

const trialLine = "rauc.slot=SDV_B sdvbox.boot=first"

// judge runs a confirmation whose gate named "broker" fails for the first rounds.
func (r *rig) judge(rounds int, deadline time.Duration, each ...func(round int)) (Verdict, string, error) {
	r.t.Helper()
	var log bytes.Buffer
	var round atomic.Int32
	booted, reason := r.booted()
	k := &confirmation{
		booted: booted, reason: reason, trial: r.trial(), spec: r.spec, log: logger{w: &log}, reboot: r.reboot,
		deadline: deadline, interval: time.Millisecond,
		gates: func() []health.Check {
			n := int(round.Add(1))
			for _, f := range each {
				f(n)
			}
			return []health.Check{
				{Name: "boot", Timeout: time.Minute, Run: func(context.Context) error { return nil }},
				{Name: "broker", Timeout: time.Minute, Run: func(context.Context) error {
					if n <= rounds {
						return errors.New("connection refused")
					}
					return nil
				}},
			}
		},
	}
	v, err := k.run(r.t.Context())
	return v, log.String(), err
}

const (
	never = 1 << 30
	soon  = 500 * time.Millisecond // long enough for some rounds
	late  = time.Minute            // never reached
)

func TestSlotOnTrialIsConfirmedWhenItsGatesPass(t *testing.T) {
	r := newRig(t, trialLine, trial)
	v, log, err := r.judge(3, late, func(int) { r.expect("before all gates pass", "SDV_B+1 SDV_A+0 good=SDV_A") })
	if err != nil || v.Verdict != verdictGood || !v.OnTrial {
		t.Errorf("%+v, %v", v, err)
	}
	r.expect("after", "SDV_B+0 SDV_A+0 good=SDV_B")
	if r.reboots != 0 {
		t.Error("rebooted")
	}
	for _, want := range []string{"SDV_B is on trial, 2 of 3 attempts left", "waiting for broker: connection refused\n", "SDV_B is confirmed"} {
		if strings.Count(log, want) != 1 {
			t.Errorf("log has not one %q:\n%s", want, log)
		}
	}
}

func TestSickSlotOnTrialIsMarkedBadAndLeft(t *testing.T) {
	r := newRig(t, trialLine, trial)
	v, log, err := r.judge(never, soon)
	if err == nil || v.Verdict != verdictRejected {
		t.Errorf("%+v, %v", v, err)
	}
	r.expect("after", "SDV_B-0 SDV_A+0 good=SDV_A why=SDV_B broker: connection refused")
	if r.reboots != 1 || !strings.Contains(log, "rebooting into SDV_A") {
		t.Errorf("%d reboots; log:\n%s", r.reboots, log)
	}
	if next, _ := r.state().Next(); next != "SDV_A" {
		t.Errorf("next is %q", next)
	}
}

func TestGateThatNeverAnswersCannotOutliveTheDeadline(t *testing.T) {
	r := newRig(t, trialLine, trial)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	k := &confirmation{
		booted: "SDV_B", spec: r.spec, log: logger{w: new(bytes.Buffer)}, reboot: r.reboot,
		deadline: soon, interval: time.Millisecond,
		gates: func() []health.Check {
			return []health.Check{{Name: "data", Timeout: time.Hour, Run: func(context.Context) error { <-release; return nil }}}
		},
	}
	if v, _ := k.run(t.Context()); v.Verdict != verdictRejected {
		t.Errorf("%+v", v)
	}
	r.expect("after", "SDV_B-0 SDV_A+0 good=SDV_A why=SDV_B data: no answer before the deadline")
}

func TestCommittedSlotGetsItsAttemptsBackAtOnceAndIsNeverLeft(t *testing.T) {
	committed := func(s *slots.State) { s.MarkGood("SDV_A"); s.Boot(); s.Boot() }
	r := newRig(t, "rauc.slot=SDV_A sdvbox.boot=first", committed)
	v, _, err := r.judge(never, soon, func(int) { r.expect("while gates are asked", "SDV_A+0 SDV_B+0 good=SDV_A") })
	if err == nil || !strings.Contains(err.Error(), "broker: connection refused") || v.Verdict != verdictUnwell {
		t.Errorf("sick: %+v, %v", v, err)
	}
	r.expect("sick", "SDV_A+0 SDV_B+0 good=SDV_A")
	if v, _, err := r.judge(2, late); err != nil || v.Verdict != verdictGood || v.OnTrial {
		t.Errorf("healthy: %+v, %v", v, err)
	}
	if r.reboots != 0 {
		t.Error("rebooted")
	}
}

func TestSickSlotStaysWhereNoOtherCanBeBooted(t *testing.T) {
	r := newRig(t, trialLine, func(s *slots.State) { trial(s); s.MarkBad("SDV_A", "worn out") })
	v, _, err := r.judge(never, soon)
	if err == nil || !strings.Contains(err.Error(), "no other slot") || v.Verdict != verdictUnwell || r.reboots != 0 {
		t.Errorf("%+v, %v, %d reboots", v, err, r.reboots)
	}
	// It boots, so its attempts must not run out and leave the vehicle in the rescue system.
	r.expect("after", "SDV_B+0 SDV_A-0 why=SDV_A worn out")
}

func TestMarksBySomebodyElseAreRespected(t *testing.T) {
	for _, test := range []struct{ state, want string }{
		{"good", "SDV_B+0 SDV_A+0 good=SDV_B"},
		{"bad", "SDV_B-0 SDV_A+0 good=SDV_A why=SDV_B marked bad by hand"},
	} {
		for _, rounds := range []int{2, never} {
			r := newRig(t, trialLine, trial)
			v, _, _ := r.judge(rounds, late, func(round int) {
				if round == 2 {
					r.call(0, "mark", test.state)
				}
			})
			if r.reboots != 0 || v.Verdict == verdictRejected {
				t.Errorf("%s: %+v, %d reboots", test.state, v, r.reboots)
			}
			r.expect("marked "+test.state, test.want)
		}
	}
}

func TestVerdictGoodDoesNotOverruleAMarkInTheLastMoment(t *testing.T) {
	r := newRig(t, trialLine, trial)
	v, _, err := r.judge(0, late, func(int) { r.call(0, "mark", "bad") })
	if err == nil || v.Verdict == verdictGood {
		t.Error("confirmed a slot that had just been marked bad")
	}
	r.expect("after", "SDV_B-0 SDV_A+0 good=SDV_A why=SDV_B marked bad by hand")
}

func TestFallbackRecordsWhatTheBootLoaderSaw(t *testing.T) {
	for _, test := range []struct {
		name  string
		state func(*slots.State)
		want  string
	}{
		{"panics", func(s *slots.State) { s.Slots["SDV_B"] = slots.Slot{OK: true, Tries: 3} },
			"SDV_B-0 SDV_A+0 good=SDV_A why=SDV_B was started 3 times and never confirmed: panic, hang or power loss"},
		{"no kernel", func(s *slots.State) { s.Slots["SDV_B"] = slots.Slot{OK: true, Tries: 1} },
			"SDV_B-0 SDV_A+0 good=SDV_A why=SDV_B could not be loaded by the boot loader"},
		{"judged already", func(s *slots.State) { s.MarkBad("SDV_B", "broker: gone") },
			"SDV_B-0 SDV_A+0 good=SDV_A why=SDV_B broker: gone"},
		{"activated since", func(s *slots.State) { s.SetPrimary("SDV_B") }, "SDV_B+0 SDV_A+0 good=SDV_A"},
	} {
		r := newRig(t, "rauc.slot=SDV_A sdvbox.boot=fallback", func(s *slots.State) {
			s.MarkGood("SDV_A")
			s.SetPrimary("SDV_B")
			s.Slots["SDV_A"] = slots.Slot{OK: true, Tries: 1}
			test.state(s)
		})
		if _, _, err := r.judge(0, late); err != nil {
			t.Error(err)
		}
		r.expect(test.name, test.want)
	}
}

func TestRescueSystemIsNotJudged(t *testing.T) {
	r := newRig(t, "rauc.external sdvbox.boot=exhausted", trial)
	v, _, err := r.judge(never, soon)
	if err != nil || v.Verdict != verdictNone || r.reboots != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	r.expect("after", "SDV_B+1 SDV_A+0 good=SDV_A")
}

func TestDamagedEnvironmentIsRepairedAtTheStart(t *testing.T) {
	r := newRig(t, trialLine, trial)
	path := strings.TrimPrefix(r.spec, "grub:")
	write(t, path, "torn")
	_, log, err := r.judge(0, late)
	one, _ := os.ReadFile(path)
	two, _ := os.ReadFile(path + "2")
	if err != nil || !bytes.Equal(one, two) || !strings.Contains(log, "has been repaired") {
		t.Errorf("%v; copies equal: %v; log:\n%s", err, bytes.Equal(one, two), log)
	}
	r.expect("one copy", "SDV_B+0 SDV_A+0 good=SDV_B")

	// With both copies gone nothing is known, so nothing is held against the other slot: a sick one must not be all there is.
	write(t, path, "torn")
	write(t, path+"2", "")
	v, _, err := r.judge(never, soon, func(int) { r.expect("made anew", "SDV_B+0 SDV_A+0") })
	if err == nil || v.Verdict != verdictRejected || r.reboots != 1 {
		t.Errorf("%+v, %v, %d reboots", v, err, r.reboots)
	}
	r.expect("both copies", "SDV_B-0 SDV_A+0 why=SDV_B broker: connection refused")
}

// unusable makes a directory of each of the files, so that they can be neither read nor written.
func unusable(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if err := errors.Join(os.RemoveAll(path), os.Mkdir(path, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOneCopyIsEnoughToConfirm(t *testing.T) {
	for i := range 2 {
		r := newRig(t, trialLine, trial)
		path := strings.TrimPrefix(r.spec, "grub:")
		unusable(t, []string{path, path + "2"}[i])
		v, log, err := r.judge(2, late)
		if err != nil || v.Verdict != verdictGood || strings.Count(log, "repair "+r.spec) != 1 {
			t.Errorf("copy %d: %+v, %v; log:\n%s", i+1, v, err, log)
		}
		r.expect("after", "SDV_B+0 SDV_A+0 good=SDV_B")
	}
}

func TestTrialWithoutEnvironmentIsLeft(t *testing.T) {
	for _, test := range []struct {
		name, cmdline string
		reboots       int
		spoil         func(t *testing.T, path string)
	}{
		{"unreadable on trial", trialLine + " sdvbox.trial=1", 1, func(t *testing.T, path string) { unusable(t, path, path+"2") }},
		{"not mounted on trial", trialLine + " sdvbox.trial=1", 1, func(t *testing.T, path string) { os.Remove(path); os.Remove(path + "2") }},
		{"unreadable, confirmed", trialLine, 0, func(t *testing.T, path string) { unusable(t, path, path+"2") }},
	} {
		r := newRig(t, test.cmdline, trial)
		path := strings.TrimPrefix(r.spec, "grub:")
		test.spoil(t, path)
		v, _, err := r.judge(0, soon)
		if err == nil || r.reboots != test.reboots || (v.Verdict == verdictRejected) != (test.reboots == 1) {
			t.Errorf("%s: %+v, %v, %d reboots", test.name, v, err, r.reboots)
		}
		if fi, err := os.Stat(path); err == nil && !fi.IsDir() {
			t.Errorf("%s: an environment was made where its file system is not mounted", test.name)
		}
	}
}

func TestEnvironmentThatFailsInTheEndDoesNotKeepASickTrial(t *testing.T) {
	r := newRig(t, trialLine, trial)
	path := strings.TrimPrefix(r.spec, "grub:")
	v, log, err := r.judge(never, soon, func(round int) {
		if round == 2 {
			unusable(t, path, path+"2")
		}
	})
	if err == nil || v.Verdict != verdictRejected || r.reboots != 1 || !strings.Contains(log, "cannot be marked bad") {
		t.Errorf("%+v, %v, %d reboots; log:\n%s", v, err, r.reboots, log)
	}
}

func TestVerdictThatCannotBeSavedIsNotGood(t *testing.T) {
	r := newRig(t, trialLine, trial)
	path := strings.TrimPrefix(r.spec, "grub:")
	if v, _, err := r.judge(0, late, func(int) { unusable(t, path, path+"2") }); err == nil || v.Verdict == verdictGood {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestConfirmedSlotIsNotGivenUpForOneOnTrial: the boot loader has passed the confirmed slot over, say for one read error.
func TestConfirmedSlotIsNotGivenUpForOneOnTrial(t *testing.T) {
	for _, test := range []struct {
		rounds int
		want   string
	}{
		{0, "SDV_A+1 SDV_B+0 good=SDV_B why=SDV_A could not be loaded by the boot loader"},
		{never, "SDV_A+1 SDV_B-0 good=SDV_A why=SDV_B broker: connection refused"},
	} {
		r := newRig(t, "rauc.slot=SDV_B sdvbox.boot=fallback sdvbox.trial=1", func(s *slots.State) {
			s.MarkGood("SDV_A")
			s.Boot()
			s.Slots["SDV_B"] = slots.Slot{OK: true, Tries: 1}
		})
		r.judge(test.rounds, soon, func(int) {
			r.expect("before the verdict", "SDV_A+1 SDV_B+1 good=SDV_A why=SDV_A could not be loaded by the boot loader")
		})
		r.expect("after", test.want)
	}
}

func TestEnvironmentThatComesLateIsWaitedFor(t *testing.T) {
	r := newRig(t, trialLine, trial)
	path := strings.TrimPrefix(r.spec, "grub:")
	dir := filepath.Dir(path)
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	booted, reason := "SDV_B", "first"
	var log bytes.Buffer
	k := &confirmation{
		booted: booted, reason: reason, spec: r.spec, log: logger{w: &log}, reboot: r.reboot,
		deadline: late, interval: time.Millisecond, gates: func() []health.Check { return nil },
	}
	timer := time.AfterFunc(20*time.Millisecond, func() { os.Rename(dir+"-away", dir) })
	defer timer.Stop()
	if v, err := k.run(t.Context()); err != nil || v.Verdict != verdictGood {
		t.Errorf("%+v, %v; log:\n%s", v, err, log.String())
	}
	r.expect("after", "SDV_B+0 SDV_A+0 good=SDV_B")
}

func TestShutdownEndsTheJudgementWithoutAVerdict(t *testing.T) {
	r := newRig(t, trialLine, trial)
	ctx, cancel := context.WithCancel(t.Context())
	k := &confirmation{
		booted: "SDV_B", spec: r.spec, log: logger{w: new(bytes.Buffer)}, reboot: r.reboot, deadline: late, interval: time.Hour,
		gates: func() []health.Check {
			time.AfterFunc(10*time.Millisecond, cancel)
			return []health.Check{{Name: "boot", Timeout: time.Hour, Run: func(context.Context) error { return errors.New("no") }}}
		},
	}
	if v, err := k.run(ctx); err != nil || v.Verdict != verdictNone || r.reboots != 0 {
		t.Errorf("%+v, %v, %d reboots", v, err, r.reboots)
	}
	r.expect("after", "SDV_B+1 SDV_A+0 good=SDV_A")
}

func TestBriefReasonNamesEveryFailedGate(t *testing.T) {
	long := strings.Repeat("very ", 50)
	fail := func(name, reason string) health.Result { return health.Result{Name: name, Reason: reason} }
	for _, test := range []struct {
		results []health.Result
		want    []string
	}{
		{[]health.Result{fail("data", long), {Name: "x", OK: true}, fail("rauc", long), fail("units", "ü"+long)},
			[]string{"data: very", "; rauc: very", "; units: ü"}},
		{[]health.Result{fail("units", "none"), fail("health.d/brakes", "the brakes do not answer, neither on the left nor on the right side")},
			[]string{"units: none; health.d/brakes: the brakes", "right side"}},
		{[]health.Result{fail("boot", "multi-user.target is inactive, waiting for block.service"), fail("rauc", long), fail("broker", long), fail("units", long)},
			[]string{"boot: multi-user.target is inactive, waiting for block.service; rauc", "; broker", "; units: very"}},
		{[]health.Result{fail("boot", long), fail("rauc", long), fail("units", long)},
			[]string{"boot: very", "; rauc; units"}},
	} {
		got := brief(test.results)
		for _, want := range test.want {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in %q", want, got)
			}
		}
		if len(got) > 120 || strings.Contains(got, "x:") {
			t.Errorf("%d bytes: %q", len(got), got)
		}
	}
}

func TestConfigTakesWhatIsRightAndWarnsOfTheRest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "confirm.json")
	write(t, path, `{"deadline": "30s", "interval": 5, "units": ["a", 7], "skip": ["broker"], "colour": "red", "settled": "-1s", "broker": null}`)
	got, warnings := readConfig(path)
	want := defaults()
	want.Deadline, want.Skip = duration(30*time.Second), []string{"broker"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(warnings) != 4 {
		t.Errorf("warnings: %q", warnings)
	}
	for i, key := range []string{"colour", "interval", "settled", "units"} {
		if i < len(warnings) && !strings.HasPrefix(warnings[i], path+": "+key+": ") {
			t.Errorf("warning %q, want one about %s", warnings[i], key)
		}
	}
	write(t, path, `{"deadline": `)
	if got, warnings := readConfig(path); !cmp.Equal(got, defaults()) || len(warnings) != 1 {
		t.Errorf("cut short: %+v, %q", got, warnings)
	}
	if got, warnings := readConfig(path + ".none"); !cmp.Equal(got, defaults()) || warnings != nil {
		t.Errorf("missing: %+v, %q", got, warnings)
	}
}

// TestUnitWaitsForNothingAndComesBack: a check of a file system may take for ever, and a judge that was killed judges nobody.
func TestUnitWaitsForNothingAndComesBack(t *testing.T) {
	unit, err := os.ReadFile("sdvbox-confirm.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"DefaultDependencies=no", "TimeoutStartSec=infinity", "Restart=on-abnormal"} {
		if !bytes.Contains(unit, []byte("\n"+line+"\n")) {
			t.Errorf("no %s", line)
		}
	}
	for line := range strings.Lines(string(unit)) {
		if key, _, _ := strings.Cut(line, "="); key == "After" || key == "Requires" || key == "RequiresMountsFor" || key == "BindsTo" {
			t.Errorf("waits: %s", line)
		}
	}
}

func TestShippedConfigRepeatsTheDefaults(t *testing.T) {
	data, err := os.ReadFile("etc/sdvbox/confirm.json")
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.MarshalIndent(defaults(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	var a, b map[string]any
	if json.Unmarshal(data, &a) != nil || json.Unmarshal(want, &b) != nil {
		t.Fatal("not JSON")
	}
	got, warnings := readConfig("etc/sdvbox/confirm.json")
	if !cmp.Equal(got, defaults()) || warnings != nil || len(a) != len(b) {
		t.Errorf("shipped %s\nwant %s\n%q", data, want, warnings)
	}
}

// TestRealGatesJudgeARealMachine runs the command with its real gates: RAUC, a broker, a service manager's bus, drop-ins.
func TestRealGatesJudgeARealMachine(t *testing.T) {
	r := newRig(t, trialLine, trial)
	fake := systemdtest.Start(t)
	fake.Change(func() {
		fake.Alias["default.target"] = "multi-user.target"
		fake.Units["multi-user.target"] = systemdtest.Props{"ActiveState": "active"}
	})
	daemon := broker.Start(t, broker.Options{})
	dir := t.TempDir()
	gates := filepath.Join(dir, "health.d")
	if err := os.Mkdir(gates, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(gates, "10-camera"), "#!/bin/sh\n[ -e "+dir+"/camera ] || { echo no camera; exit 1; }\n")
	conf := filepath.Join(dir, "confirm.json")
	write(t, conf, `{"data": "`+dir+`", "gatesDir": "`+gates+`", "interval": "10ms"}`)
	r.bus = fake.Address
	args := []string{"confirm", "--config", conf, "--broker", "tcp://" + daemon.Addr, "--skip", "rauc"}

	out, _ := r.callBoth(1, append(args, "--deadline=2s", "--output=json")...)
	var v Verdict
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatal(err)
	}
	if got := health.Failed(v.Gates); got != "health.d/10-camera: no camera" || v.Verdict != verdictRejected || len(v.Gates) != 5 {
		t.Errorf("%s: failed %q of %d gates", v.Verdict, got, len(v.Gates))
	}
	r.expect("without camera", "SDV_B-0 SDV_A+0 good=SDV_A why=SDV_B health.d/10-camera: no camera")

	r.call(0, "mark", "active", "SDV_B")
	write(t, filepath.Join(dir, "camera"), "")
	if _, log := r.callBoth(0, append(args, "--deadline=1m")...); !strings.Contains(log, "SDV_B is confirmed") {
		t.Errorf("log:\n%s", log)
	}
	r.expect("with camera", "SDV_B+0 SDV_A+0 good=SDV_B")

	// Another machine, for RAUC has a bus of its own here.
	f := raucd.Start(t, raucd.Options{})
	r.bus = f.Address
	r.callBoth(0, "confirm", "--config", conf, "--skip", "boot", "--skip", "units", "--skip", "broker")
	f.StopService(t)
	_, log := r.callBoth(1, "confirm", "--config", conf, "--skip", "boot", "--skip", "units", "--skip", "broker", "--deadline", "1s")
	if !strings.Contains(log, "rauc: ") {
		t.Errorf("log without RAUC:\n%s", log)
	}
}
