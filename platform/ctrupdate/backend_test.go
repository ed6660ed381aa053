// SPDX-License-Identifier: Apache-2.0

package ctrupdate

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/updateagent"
	"sdvbox/platform/updateproto"
)

// activity is a backend on a fake engine, and who commands it as the update protocol wants it.
type activity struct {
	t       *testing.T
	f       *fake
	b       *Backend
	ds      updateproto.DesiredState
	notes   json.RawMessage
	mu      sync.Mutex
	said    []updateproto.Feedback
	titles  []string
	reboot  bool // instead of a mere restart of the agent
	crashes int
}

func newUpdate(t *testing.T, f *fake, ds updateproto.DesiredState) *activity {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if os.Getenv("DEBUG") != "" {
		log = slog.Default()
	}
	return &activity{t: t, f: f, ds: ds, b: &Backend{Config{
		Engine: f, Domain: "containers", Version: "1", Health: time.Millisecond, Downloads: 1, Patience: 100 * time.Millisecond, Pause: time.Millisecond, Log: log,
	}}}
}

// step runs one method of the backend, again if it is cut off.
func (u *activity) step(method func(*Backend, context.Context, *updateagent.Job) []updateproto.Feedback, success bool, titles ...string) []updateproto.Feedback {
	u.t.Helper()
	for {
		ctx, cancel := context.WithTimeout(u.t.Context(), 20*time.Second)
		save := func(notes json.RawMessage) error {
			if err := u.f.step(ctx, "before Save"); err != nil {
				return err
			}
			u.notes = notes
			return u.f.step(ctx, "after Save")
		}
		job := updateagent.ResumeJob(u.ds, u.notes, save, func(f updateproto.Feedback) {
			u.mu.Lock()
			defer u.mu.Unlock()
			u.said = append(u.said, f)
		})
		job.Success = success
		for _, title := range titles {
			job.Baselines = append(job.Baselines, updateagent.Baseline{Title: title, Success: success})
		}
		u.f.mu.Lock()
		dead := u.f.dead
		u.f.mu.Unlock()
		done := make(chan []updateproto.Feedback, 1)
		go func() { done <- method(u.b, ctx, job) }()
		select {
		case results := <-done:
			cancel()
			select {
			case <-dead: // at the last moment
			default:
				u.said = append(u.said, results...)
				if job.Titles() != nil {
					u.titles = job.Titles()
				}
				return results
			}
		case <-dead:
			cancel()
			<-done
		}
		u.crashes++
		u.f.revive(u.reboot)
	}
}

// run drives an update through commands and CLEANUP. After one that fails comes CLEANUP at once, as from an update manager.
func (u *activity) run(commands string, titles ...string) (terminal updateproto.Feedback) {
	u.t.Helper()
	r := u.step((*Backend).Identify, false)
	if r[0].Status != updateproto.StatusIdentified || len(r) > 1 {
		return r[len(r)-1]
	}
	return u.command(commands, titles...)
}

func (u *activity) command(commands string, titles ...string) updateproto.Feedback {
	success := false
	for c := range strings.FieldsSeq(commands) {
		var r []updateproto.Feedback
		switch c {
		case "DOWNLOAD":
			r = u.step((*Backend).Download, false, titles...)
		case "UPDATE":
			r = u.step((*Backend).Update, false, titles...)
		case "ACTIVATE":
			r = u.step((*Backend).Activate, false, titles...)
			success = r[0].Status == updateproto.StatusActivationSuccess
		case "RESTART", "REBOOT":
			u.f.revive(c == "REBOOT")
			r = u.step((*Backend).Verify, false, titles...)
			success = r[0].Status == updateproto.StatusActivationSuccess
		case "ROLLBACK":
			r = u.step((*Backend).Rollback, false, titles...)
			success = false
		}
		if strings.HasSuffix(r[0].Status, "_FAILURE") {
			break
		}
	}
	r := u.step((*Backend).Cleanup, success, titles...)
	return r[len(r)-1]
}

// component makes a component of words KEY=VALUE.
func component(id string, config ...string) updateproto.Component {
	c := updateproto.Component{ID: id, Version: "2"}
	for _, kv := range config {
		key, value, _ := strings.Cut(kv, "=")
		c.Config = append(c.Config, updateproto.KeyValue{Key: key, Value: value})
	}
	return c
}

func desire(components ...updateproto.Component) updateproto.DesiredState {
	return updateproto.DesiredState{Domains: []updateproto.Domain{{ID: "containers", Components: components}}}
}

// car is a device with some containers.
func car() *fake {
	f := newFake()
	for _, c := range []*ctrmodel.Container{
		{Name: "hvac", Image: ctrmodel.Image{Name: "hvac:1"}, HostConfig: ctrmodel.HostConfig{Ports: []ctrmodel.Port{{HostPort: 80, Container: 80}}}},
		{Name: "seats", Image: ctrmodel.Image{Name: "seats:1"}},
		{Name: "radio", Image: ctrmodel.Image{Name: "radio:1"}, HostConfig: ctrmodel.HostConfig{Resources: ctrmodel.Resources{Memory: "64M"}}},
		{Name: "old", Image: ctrmodel.Image{Name: "old:1"}, HostConfig: ctrmodel.HostConfig{Ports: []ctrmodel.Port{{HostPort: 90, Container: 90}}}},
	} {
		f.add(c, true)
	}
	return f
}

// whole is a desired state with a bit of everything. The images of hvac and navi are given.
func whole(hvac, navi string, more ...string) updateproto.DesiredState {
	return desire(
		component("hvac", append([]string{"image=" + hvac, "port=80:80"}, more...)...),
		component("seats", "image=seats:1"),
		component("navi", "image="+navi, "port=90:90"), // has been the port of the one that goes
		component("radio", "image=radio:1", "memory=128M", "restartPolicy=always"),
	)
}

const all = "DOWNLOAD UPDATE ACTIVATE"

var scenarios = []struct {
	name     string
	ds       updateproto.DesiredState
	commands string
	terminal string
	reason   string
}{
	{"Success", whole("hvac:2", "navi:1"), all, "COMPLETED", ""},
	{"SuccessWithHealthCommand", whole("hvac:2", "navi:1", "healthCmd=check"), all, "COMPLETED", ""},
	{"SuccessAfterRestart", whole("hvac:2", "navi:1"), all + " RESTART", "COMPLETED", ""},
	{"SuccessAfterReboot", whole("hvac:2", "navi:1"), all + " REBOOT", "COMPLETED", ""},
	{"NewVersionEndsAtOnce", whole("hvac:bad", "navi:1"), all, "INCOMPLETE", "hvac: the container has ended with exit code 1"},
	{"NewVersionOfAServiceEndsWithoutAnError", whole("hvac:once", "navi:1"), all, "INCOMPLETE", "hvac: the container has ended with exit code 0"},
	{"DiesBeforeTheLastIsThere", whole("hvac:frail", "navi:1"), all, "INCOMPLETE", "hvac: the container has ended with exit code 1"},
	{"IsKilledWhileItTakesItsPlace", whole("hvac:killed", "navi:1"), all, "INCOMPLETE", "hvac: the container has ended with exit code 137"},
	{"LastOneDoesNotStart", whole("hvac:2", "navi:stuck"), all, "INCOMPLETE", "navi: cannot start"},
	{"HealthCommandFails", whole("hvac:sick", "navi:1", "healthCmd=check", "healthRetries=1", "healthInterval=1ms"), all, "INCOMPLETE", "no answer from port 80"},
	{"ImageIsMissing", whole("hvac:2", "navi:missing"), all, "INCOMPLETE", "navi: image navi:missing: not found"},
	{"DiesAtTheReboot", whole("hvac:2", "navi:late"), all + " REBOOT", "INCOMPLETE", "navi: the container has ended with exit code 1"},
	{"AbandonedAfterIdentification", whole("hvac:2", "navi:1"), "", "INCOMPLETE", ""},
	{"AbandonedAfterDownload", whole("hvac:2", "navi:1"), "DOWNLOAD", "INCOMPLETE", ""},
	{"AbandonedAfterUpdate", whole("hvac:2", "navi:1"), "DOWNLOAD UPDATE", "INCOMPLETE", ""},
	{"RollbackAfterDownload", whole("hvac:2", "navi:1"), "DOWNLOAD ROLLBACK", "INCOMPLETE", ""},
	{"RollbackAfterUpdate", whole("hvac:2", "navi:1"), "DOWNLOAD UPDATE ROLLBACK", "INCOMPLETE", ""},
	{"RollbackAfterActivation", whole("hvac:2", "navi:1"), all + " ROLLBACK", "INCOMPLETE", ""},
	{"RollbackAfterReboot", whole("hvac:2", "navi:1"), all + " REBOOT ROLLBACK", "INCOMPLETE", ""},
}

const after = `hvac id=new image=hvac:2 Running [{"maximum_retry_count":0,"retry_timeout":0,"type":"unless-stopped"},null,null,[{"proto":"tcp","container_port":80,"host_ip":"0.0.0.0","host_port":80,"host_port_end":80}]]
navi id=new image=navi:1 Running [{"maximum_retry_count":0,"retry_timeout":0,"type":"unless-stopped"},null,null,[{"proto":"tcp","container_port":90,"host_ip":"0.0.0.0","host_port":90,"host_port_end":90}]]
radio id=radio image=radio:1 Running [{"maximum_retry_count":0,"retry_timeout":0,"type":"always"},{"memory":"128M","memory_swap":"256M"},null,null]
seats id=seats image=seats:1 Running [{"maximum_retry_count":0,"retry_timeout":0,"type":"unless-stopped"},null,null,null]`

func TestUpdatesEndAsTheyShould(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			f := car()
			before := f.world()
			u := newUpdate(t, f, s.ds)
			end := u.run(s.commands)
			if end.Status != s.terminal || !strings.Contains(end.Message, s.reason) {
				t.Errorf("ends with %s %q, want %s %q\n%s", end.Status, end.Message, s.terminal, s.reason, strings.Join(f.log, "\n"))
			}
			u.judge(before, s.terminal)
		})
	}
}

// judge compares what is left with what should be.
func (u *activity) judge(before, terminal string) {
	u.t.Helper()
	want := before
	if terminal == "COMPLETED" {
		want = after
	}
	if got := u.f.world(); got != want {
		u.t.Errorf("left behind:\n%s\nwant:\n%s\ncalls:\n%s", got, want, strings.Join(u.f.log, "\n"))
	}
	if u.f.twice != "" {
		u.t.Errorf("there were two processes of %s at the same time", u.f.twice)
	}
}

// The agent is cut off before and after each call of the engine and each write of the journal, in turn, and started again,
// alone or with the whole device.
func TestCutAtEveryStep(t *testing.T) {
	for _, reboot := range []bool{false, true} {
		for _, s := range scenarios {
			if s.name == "DiesBeforeTheLastIsThere" || s.name == "IsKilledWhileItTakesItsPlace" || reboot && s.name == "DiesAtTheReboot" { // of what a restart changes
				continue
			}
			t.Run(fmt.Sprint(s.name, "/reboot=", reboot), func(t *testing.T) {
				t.Parallel()
				for cut := 1; ; cut++ {
					f := car()
					before := f.world()
					u := newUpdate(t, f, s.ds)
					f.cut, u.reboot = cut, reboot
					end := u.run(s.commands)
					if end.Status != s.terminal || !reboot && !strings.Contains(end.Message, s.reason) {
						t.Errorf("cut at %d: ends with %s %q, want %s %q", cut, end.Status, end.Message, s.terminal, s.reason)
					}
					u.judge(before, s.terminal)
					if t.Failed() {
						t.Fatalf("cut at %d:\n%s", cut, strings.Join(f.log, "\n"))
					}
					if u.crashes == 0 {
						if cut < 3 {
							t.Errorf("only %d calls", cut-1)
						}
						return
					}
				}
			})
		}
	}
}

// The order of the feedback of a run is that of the agent of Eclipse Kanto.
func TestFeedbackComesInTheOrderOfKanto(t *testing.T) {
	f := newFake()
	for _, name := range []string{"hvac", "seats", "old"} {
		f.add(&ctrmodel.Container{Name: name, Image: ctrmodel.Image{Name: name + ":1"}}, true)
	}
	u := newUpdate(t, f, desire(component("hvac", "image=hvac:2"), component("seats", "image=seats:1"), component("radio", "image=radio:1")))
	u.run(all)
	want := `
IDENTIFIED hvac=IDENTIFIED seats=IDENTIFIED radio=IDENTIFIED old=IDENTIFIED
DOWNLOADING hvac=DOWNLOADING seats=IDENTIFIED radio=IDENTIFIED old=IDENTIFIED
DOWNLOADING hvac=DOWNLOAD_SUCCESS seats=IDENTIFIED radio=DOWNLOADING old=IDENTIFIED
DOWNLOAD_SUCCESS hvac=DOWNLOAD_SUCCESS seats=IDENTIFIED radio=DOWNLOAD_SUCCESS old=IDENTIFIED
UPDATING hvac=UPDATING seats=IDENTIFIED radio=DOWNLOAD_SUCCESS old=IDENTIFIED
UPDATING hvac=UPDATE_SUCCESS seats=IDENTIFIED radio=DOWNLOAD_SUCCESS old=UPDATING
UPDATE_SUCCESS hvac=UPDATE_SUCCESS seats=IDENTIFIED radio=DOWNLOAD_SUCCESS old=UPDATE_SUCCESS
ACTIVATING hvac=ACTIVATING seats=IDENTIFIED radio=DOWNLOAD_SUCCESS old=UPDATE_SUCCESS
ACTIVATING hvac=ACTIVATION_SUCCESS seats=ACTIVATING radio=DOWNLOAD_SUCCESS old=UPDATE_SUCCESS
ACTIVATING hvac=ACTIVATION_SUCCESS seats=ACTIVATION_SUCCESS radio=ACTIVATING old=UPDATE_SUCCESS
ACTIVATION_SUCCESS hvac=ACTIVATION_SUCCESS seats=ACTIVATION_SUCCESS radio=ACTIVATION_SUCCESS old=UPDATE_SUCCESS
CLEANUP_SUCCESS hvac=ACTIVATION_SUCCESS seats=ACTIVATION_SUCCESS radio=ACTIVATION_SUCCESS old=REMOVAL_SUCCESS
COMPLETED hvac=ACTIVATION_SUCCESS seats=ACTIVATION_SUCCESS radio=ACTIVATION_SUCCESS old=REMOVAL_SUCCESS`
	if got := u.story(); got != strings.TrimSpace(want) {
		t.Errorf("said\n%s\nwant%s", got, want)
	}
	if f.world() == "" || u.said[0].Actions[3].Component != (updateproto.ComponentRef{ID: "containers:old", Version: "1"}) {
		t.Errorf("the action of the one that goes is %+v", u.said[0].Actions[3])
	}
}

// story is what has been said, but for repetitions with other percentages.
func (u *activity) story() string {
	var lines []string
	for _, f := range u.said {
		line := f.Status
		for _, a := range f.Actions {
			line += " " + strings.TrimPrefix(a.Component.ID, "containers:") + "=" + a.Status
		}
		lines = append(lines, line)
	}
	return strings.Join(slices.Compact(lines), "\n")
}

func TestSecondTimeTheSameIsDesiredNothingChanges(t *testing.T) {
	f := car()
	ds := whole("hvac:2", "navi:1")
	newUpdate(t, f, ds).run(all)
	before := f.world()
	u := newUpdate(t, f, ds)
	f.log = nil
	if end := u.run(all); end.Status != "COMPLETED" {
		t.Fatalf("ends with %+v", end)
	}
	for _, line := range f.log {
		if !strings.HasPrefix(line, "Ensure ") {
			t.Errorf("the second time: %s", line)
		}
	}
	if got := f.world(); got != before {
		t.Errorf("has become\n%s\nof\n%s", got, before)
	}
}

// hello-world prints something and ends. That is no failure, unless a service has been there.
func TestContainersThatEndAsTheyShould(t *testing.T) {
	f := newFake()
	for _, tc := range []struct {
		name   string
		config []string
		want   string
	}{
		{"hello", []string{"image=hello:once"}, "COMPLETED"},
		{"hello", []string{"image=hello:once", "env=A=1"}, "COMPLETED"},
		{"hello", []string{"image=hello:bad"}, "INCOMPLETE"},
		{"hello", []string{"image=hello:2"}, "COMPLETED"},
		{"hello", []string{"image=hello:once"}, "INCOMPLETE"},
		{"hello", []string{"image=hello:once", "restartPolicy=no"}, "COMPLETED"},
	} {
		for _, commands := range []string{all + " REBOOT ROLLBACK", all + " REBOOT"} {
			u := newUpdate(t, f, desire(component(tc.name, tc.config...)))
			before, want := f.world(), tc.want
			if strings.HasSuffix(commands, "ROLLBACK") {
				want = "INCOMPLETE"
			}
			if end := u.run(commands); end.Status != want {
				t.Errorf("%q with %s ends with %s %q, want %s", tc.config, commands, end.Status, end.Message, want)
			}
			if got := f.world(); (got == before) != (want == "INCOMPLETE") || strings.Contains(got, "LEFT") {
				t.Errorf("%q with %s leaves\n%s\nof\n%s", tc.config, commands, got, before)
			}
		}
	}
}

func TestBaselinesGoTheirOwnWays(t *testing.T) {
	ds := whole("hvac:2", "navi:bad")
	ds.Baselines = []updateproto.Baseline{{Title: "air", Components: []string{"containers:hvac", "other:x", "containers:seats"}}}
	f := car()
	u := newUpdate(t, f, ds)
	u.step((*Backend).Identify, false)
	if want := []string{"air", "containers:navi", "containers:radio", "containers:remove-components"}; !slices.Equal(u.titles, want) {
		t.Fatalf("baselines %q, want %q", u.titles, want)
	}
	var ends []string
	for _, title := range u.titles {
		ends = append(ends, u.command(all, title).Status)
	}
	if ends[3] != "INCOMPLETE" {
		t.Errorf("ends of the baselines: %q", ends)
	}
	// Only navi has failed, for the port that it wants was not free yet, and it is no good anyhow.
	want := strings.Join(slices.DeleteFunc(strings.Split(after, "\n"), func(l string) bool { return strings.HasPrefix(l, "navi") }), "\n")
	if got := f.world(); got != want {
		t.Errorf("left behind:\n%s\nwant:\n%s", got, want)
	}
}

func TestSystemContainersAndScope(t *testing.T) {
	there := func(f *fake) (names []string) {
		list, _ := f.List(t.Context())
		for _, c := range list {
			names = append(names, c.Name)
		}
		return names
	}
	config := func(ds updateproto.DesiredState, key, value string) updateproto.DesiredState {
		ds.Domains[0].Config = []updateproto.KeyValue{{Key: key, Value: value}}
		return ds
	}
	one := func() updateproto.DesiredState {
		return desire(component("hvac", "image=hvac:2"), component("old", "image=old:2"))
	}
	for _, tc := range []struct {
		name   string
		system []string
		scoped bool
		ds     updateproto.DesiredState
		want   []string
		old    string // image of
	}{
		{"Default", nil, false, one(), []string{"hvac", "old"}, "old:2"},
		{"Configured", []string{"seats", "old"}, false, one(), []string{"hvac", "old", "seats"}, "old:1"},
		{"Replaced", []string{"seats", "old"}, false, config(one(), "systemContainers", " radio ,nobody"), []string{"hvac", "old", "radio"}, "old:2"},
		{"ReplacedByNone", []string{"seats", "old"}, false, config(one(), "systemContainers", ""), []string{"hvac", "old"}, "old:2"},
		{"Scoped", nil, true, one(), []string{"hvac", "old", "radio", "seats"}, "old:2"},
		{"ScopedForOnce", nil, false, config(one(), "scoped", "true"), []string{"hvac", "old", "radio", "seats"}, "old:2"},
		{"NotScopedForOnce", nil, true, config(one(), "scoped", "false"), []string{"hvac", "old"}, "old:2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := car()
			u := newUpdate(t, f, tc.ds)
			u.b.System, u.b.Scoped = tc.system, tc.scoped
			if end := u.run(all); end.Status != "COMPLETED" {
				t.Errorf("ends with %+v", end)
			}
			old, err := f.ByName(t.Context(), "old")
			if got := there(f); !slices.Equal(got, tc.want) || err != nil || old.Image.Name != tc.old {
				t.Errorf("there are %q with %v, want %q with %s", got, old, tc.want, tc.old)
			}
		})
	}
	f := car()
	u := newUpdate(t, f, desire())
	u.b.System = []string{"hvac", "seats", "radio", "old"}
	if u.run(all); u.story() != "IDENTIFIED\nCOMPLETED" {
		t.Errorf("with nothing to do: %s", u.story())
	}
}

func TestMovedTagsAreNoticedIfThatIsWanted(t *testing.T) {
	f := car()
	f.moved["seats:1"], f.moved["radio:1"] = true, true
	ds := desire(component("hvac", "image=hvac:1", "port=80:80"), component("seats", "image=seats:1"), component("radio", "image=radio:1"))
	ds.Domains[0].Config = []updateproto.KeyValue{{Key: "systemContainers", Value: "radio,old"}}
	for _, tc := range []struct {
		tags Tags
		want kind
		pull string // by DOWNLOAD
	}{{nil, check, ""}, {f, recreate, "Refresh seats:1"}} {
		u := newUpdate(t, f, ds)
		u.b.Tags = tc.tags
		f.log = nil
		u.step((*Backend).Identify, false)
		var n notes
		json.Unmarshal(u.notes, &n)
		if len(n.Actions) != 2 || n.Actions[0].Kind != check || n.Actions[1].Kind != tc.want {
			t.Errorf("with tags %v: %+v, want check and %s", tc.tags != nil, n.Actions, tc.want)
		}
		if log := strings.Join(f.log, "\n"); log != strings.Repeat("Resolve hvac:1\nResolve seats:1", len(tc.pull)/15) {
			t.Errorf("before anybody has agreed:\n%s", log)
		}
		f.log = nil
		u.step((*Backend).Download, false)
		if log := strings.Join(f.log, "\n"); !strings.HasPrefix(log, tc.pull) {
			t.Errorf("to download:\n%s", log)
		}
	}
}

func TestDownloadsGoOnAtTheSameTimeAndTellHowFarTheyAre(t *testing.T) {
	f := newFake()
	f.slow = 50 * time.Millisecond
	var list []updateproto.Component
	for i := range 6 {
		list = append(list, component(fmt.Sprint("c", i)))
	}
	u := newUpdate(t, f, desire(list...))
	u.b.Downloads, u.b.Often = 3, time.Millisecond
	if end := u.run(all); end.Status != "COMPLETED" {
		t.Fatalf("ends with %+v", end)
	}
	if f.pulledAtOnce != 3 {
		t.Errorf("%d downloads at the same time, want 3", f.pulledAtOnce)
	}
	if !slices.ContainsFunc(u.said, func(f updateproto.Feedback) bool {
		return f.Status == "DOWNLOADING" && slices.ContainsFunc(f.Actions, func(a updateproto.Action) bool { return a.Progress == 45 })
	}) {
		t.Error("nobody has heard of progress")
	}
}

func TestPausesOfContainerdDoNotFailAnUpdate(t *testing.T) {
	f := car()
	u := newUpdate(t, f, whole("hvac:2", "navi:1"))
	u.b.Patience = 10 * time.Second
	u.step((*Backend).Identify, false)
	f.down = 1
	if end := u.command(all); end.Status != "COMPLETED" {
		t.Errorf("ends with %+v", end)
	}
}

func TestStartDuringWhichContainerdIsLostIsRepeated(t *testing.T) {
	f := car()
	u := newUpdate(t, f, desire(component("hvac", "image=hvac:lost")))
	u.b.Patience = 10 * time.Second
	if end := u.run(all); end.Status != "COMPLETED" || !f.lost {
		t.Errorf("ends with %+v", end)
	}
}

func TestStartThatTheEngineRepeatsIsNoFailure(t *testing.T) {
	f := car()
	if end := newUpdate(t, f, whole("hvac:2", "navi:second")).run(all); end.Status != "COMPLETED" {
		t.Errorf("ends with %+v", end)
	}
}

func TestContainersMayExchangeTheirPorts(t *testing.T) {
	for image, want := range map[string]string{"b:2": "COMPLETED", "b:bad": "INCOMPLETE"} {
		f := newFake()
		for i, name := range []string{"a", "b"} {
			f.add(&ctrmodel.Container{Name: name, Image: ctrmodel.Image{Name: name + ":1"}, HostConfig: ctrmodel.HostConfig{Ports: []ctrmodel.Port{{HostPort: uint16(i + 1), Container: 1}}}}, true)
		}
		before := f.world()
		u := newUpdate(t, f, desire(component("a", "image=a:2", "port=2:1"), component("b", "image="+image, "port=1:1")))
		if end := u.run(all); end.Status != want {
			t.Errorf("ends with %+v, want %s", end, want)
		}
		if got := f.world(); (got == before) != (want == "INCOMPLETE") || strings.Contains(got, "LEFT") || strings.Count(got, "Running") != 2 {
			t.Errorf("left behind:\n%s", got)
		}
	}
}

func TestContainerThatCannotBeRemoved(t *testing.T) {
	f := car()
	f.boxes["old"].Image.Name = "old:stubborn"
	u := newUpdate(t, f, whole("hvac:2", "navi:1"))
	if end := u.run(all); end.Status != "INCOMPLETE" || !strings.Contains(end.Message, "old: container old does not end") || end.Actions[4].Status != "REMOVAL_FAILURE" {
		t.Errorf("ends with %+v", end)
	}
	if f := u.said[len(u.said)-2]; f.Status != "CLEANUP_FAILURE" {
		t.Errorf("before that %+v", f)
	}
}

func TestLeftoversOfALostJournalAreTidiedUp(t *testing.T) {
	for _, commands := range []string{"DOWNLOAD", "DOWNLOAD UPDATE", all} {
		f := car()
		u := newUpdate(t, f, whole("hvac:2", "navi:1"))
		u.step((*Backend).Identify, false)
		for c := range strings.FieldsSeq(commands) {
			u.step(map[string]func(*Backend, context.Context, *updateagent.Job) []updateproto.Feedback{
				"DOWNLOAD": (*Backend).Download, "UPDATE": (*Backend).Update, "ACTIVATE": (*Backend).Activate}[c], false)
		}
		if end := newUpdate(t, f, whole("hvac:2", "navi:1")).run(all); end.Status != "COMPLETED" {
			t.Errorf("after %s: ends with %+v", commands, end)
		}
		u.judge("", "COMPLETED")
	}
}

func TestChangesOfContainersAreToldOnceInAWhile(t *testing.T) {
	f := car()
	b := newUpdate(t, f, desire()).b
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan time.Time, 100)
	done := make(chan struct{})
	go func() {
		b.Watch(ctx, func() { told <- time.Now() })
		close(done)
	}()
	for heard := 0; heard == 0; time.Sleep(time.Millisecond) {
		f.mu.Lock()
		heard = len(f.subs)
		f.mu.Unlock()
	}
	for range 20 {
		f.Park(ctx, "hvac", owner)
		f.Unpark(ctx, "hvac")
	}
	last := time.Now()
	if at := <-told; at.Before(last) {
		t.Error("told before the last change")
	}
	time.Sleep(2 * pause)
	if len(told) > 0 {
		t.Errorf("told %d times more", len(told))
	}
	cancel()
	<-done
}

// A CLEANUP that comes before the identification has found anything out.
func TestUpdateThatHasNotBegunIsNoSuccess(t *testing.T) {
	f := car()
	before := f.world()
	u := newUpdate(t, f, whole("hvac:2", "navi:1"))
	if end := u.command(""); end.Status != "INCOMPLETE" || f.world() != before {
		t.Errorf("ends with %+v", end)
	}
}

// moody is an engine whose hvac cannot be seen to run while it fails.
type moody struct {
	*fake
	fails func() bool
}

func (m *moody) Ensure(ctx context.Context, id string) error {
	if m.fails() && m.name(id) == "hvac" {
		return ctrmodel.Errorf(ctrmodel.Internal, "no mood")
	}
	return m.fake.Ensure(ctx, id)
}

// What has been found to be no good after a restart stays so, even if the reason is gone after another one.
func TestFailureThatHealsWhileItIsTakenBack(t *testing.T) {
	failed := false
	for cut := 1; ; cut++ {
		f := car()
		before := f.world()
		u := newUpdate(t, f, whole("hvac:2", "navi:1"))
		u.step((*Backend).Identify, false)
		for _, step := range []func(*Backend, context.Context, *updateagent.Job) []updateproto.Feedback{(*Backend).Download, (*Backend).Update, (*Backend).Activate} {
			u.step(step, false)
		}
		u.b.Engine = &moody{f, func() bool { return u.crashes == 0 }}
		f.calls, f.cut = 0, cut
		end := u.command("RESTART")
		if end.Status == "INCOMPLETE" && end.Message != "hvac: no mood" {
			t.Errorf("cut at %d: ends with %q", cut, end.Message)
		} else if u.judge(before, end.Status); t.Failed() {
			t.Fatalf("cut at %d", cut)
		}
		// Cut off before it is found, it has never been; from then on it stays.
		if failed && end.Status != "INCOMPLETE" {
			t.Fatalf("cut at %d: ends with %s, as if the failure had not been found", cut, end.Status)
		}
		failed = end.Status == "INCOMPLETE"
		if u.crashes == 0 {
			break
		}
	}
	if !failed {
		t.Error("the failure was never found")
	}
}

// halving is an engine whose first container is half made when the connection to containerd is lost.
type halving struct {
	*fake
	done bool
}

func (h *halving) Create(ctx context.Context, c *ctrmodel.Container) (*ctrmodel.Container, error) {
	if h.done {
		return h.fake.Create(ctx, c)
	}
	h.done = true
	h.half(c)
	return nil, ctrmodel.Errorf(ctrmodel.Unavailable, "connection lost")
}

// half is what is left of a container for a while.
func (f *fake) half(c *ctrmodel.Container) {
	c = c.Clone()
	c.Defaults(nil)
	c.State.SetDead()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.boxes[c.ID] = &box{Container: c}
	time.AfterFunc(50*time.Millisecond, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.boxes, c.ID)
	})
}

func TestHalfOfAContainerIsNotTakenForOne(t *testing.T) {
	for _, killed := range []bool{true, false} { // the agent, or containerd
		f := car()
		u := newUpdate(t, f, whole("hvac:2", "navi:1"))
		u.b.Patience = 10 * time.Second
		u.step((*Backend).Identify, false)
		if killed {
			var n notes
			json.Unmarshal(u.notes, &n)
			f.half(&ctrmodel.Container{ID: n.Actions[2].New, Name: "navi", Image: ctrmodel.Image{Name: "navi:1"}})
		} else {
			u.b.Engine = &halving{fake: f}
		}
		if end := u.command(all); end.Status != "COMPLETED" {
			t.Errorf("agent killed: %v: ends with %+v", killed, end)
		}
	}
}

// A service has been one also if it has crashed before.
func TestServiceThatHasCrashedOnceIsNotReplacedByWhatEnds(t *testing.T) {
	for age, want := range map[time.Duration]string{time.Minute: "INCOMPLETE", 0: "COMPLETED"} {
		f := car()
		f.boxes["hvac"].RestartCount = 1
		f.boxes["hvac"].State.SetRunning(1, time.Now().Add(-age))
		u := newUpdate(t, f, whole("hvac:once", "navi:1"))
		u.b.Health = 30 * time.Second
		u.step((*Backend).Identify, false)
		u.b.Health = time.Millisecond
		if end := u.command(all); end.Status != want {
			t.Errorf("running for %v: ends with %+v, want %s", age, end, want)
		}
	}
}

// The way back is not given up for a container that is not there any more, or does not run.
func TestNewContainerComesToHarmBeforeCleanup(t *testing.T) {
	for name, harm := range map[string]func(*fake, *box){
		"Removed":     func(f *fake, b *box) { f.Remove(t.Context(), b.ID, true, ctrmodel.StopOptions{}) },
		"Stopped":     func(f *fake, b *box) { f.Stop(t.Context(), b.ID, ctrmodel.StopOptions{}) },
		"Crashed":     func(f *fake, b *box) { b.State.SetExited(1, time.Now(), false, "") },
		"CrashesLoop": func(f *fake, b *box) { b.RestartCount = 7; b.State.SetRunning(1, time.Now().Add(time.Hour)) },
		"CrashedOnce": func(f *fake, b *box) { b.RestartCount = 1; b.State.SetRunning(1, time.Now().Add(-time.Hour)) },
	} {
		for _, victim := range []string{"hvac", "navi"} {
			f := car()
			before := f.world()
			u := newUpdate(t, f, whole("hvac:2", "navi:1"))
			u.step((*Backend).Identify, false)
			u.step((*Backend).Download, false)
			u.step((*Backend).Update, false)
			u.step((*Backend).Activate, false)
			c, err := f.ByName(t.Context(), victim)
			if err != nil {
				t.Fatal(err)
			}
			harm(f, f.boxes[c.ID])
			r := u.step((*Backend).Cleanup, true)
			if name == "CrashedOnce" {
				if r[1].Status != "COMPLETED" {
					t.Errorf("%s: ends with %+v", name, r)
				}
				continue
			}
			if r[0].Status != "CLEANUP_FAILURE" || r[1].Status != "INCOMPLETE" || !strings.HasPrefix(r[1].Message, victim+": ") {
				t.Errorf("%s %s: ends with %+v", victim, name, r)
			}
			u.judge(before, r[1].Status)
		}
	}
}

// Baselines that have been activated one by one are not taken back because of another one.
func TestRestartFailsOneBaseline(t *testing.T) {
	ds := whole("hvac:2", "navi:late")
	f := car()
	u := newUpdate(t, f, ds)
	u.step((*Backend).Identify, false)
	for _, title := range u.titles {
		u.step((*Backend).Download, false, title)
		u.step((*Backend).Update, false, title)
	}
	for _, title := range []string{"containers:hvac", "containers:radio", "containers:remove-components", "containers:seats", "containers:navi"} {
		if r := u.step((*Backend).Activate, false, title); r[0].Status != "ACTIVATION_SUCCESS" {
			t.Fatal(r)
		}
	}
	f.revive(true)
	got := ""
	for _, r := range u.step((*Backend).Verify, false, u.titles...) {
		got += fmt.Sprintln(r.Baseline, r.Status)
	}
	if want := `containers:hvac ACTIVATION_SUCCESS
containers:seats ACTIVATION_SUCCESS
containers:navi ACTIVATION_FAILURE
containers:radio ACTIVATION_SUCCESS
containers:remove-components ACTIVATION_SUCCESS
`; got != want {
		t.Errorf("says\n%swant\n%s", got, want)
	}
	if w := f.world(); !strings.Contains(w, "image=hvac:2 Running") || strings.Contains(w, "navi") || !strings.Contains(w, `"memory":"128M"`) {
		t.Errorf("left behind:\n%s", w)
	}
}

// slowly is an engine whose download of one image does not end before others have failed.
type slowly struct{ *fake }

func (s *slowly) Pull(ctx context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error) {
	if name == "hvac:2" {
		<-ctx.Done()
		return ctrmodel.StoredImage{}, ctx.Err()
	}
	return s.fake.Pull(ctx, name, progress)
}

func TestFirstFailureIsTheReason(t *testing.T) {
	for _, commands := range []string{"DOWNLOAD", "DOWNLOAD ROLLBACK"} {
		f := car()
		u := newUpdate(t, f, whole("hvac:2", "navi:missing"))
		u.b.Downloads, u.b.Engine = 3, &slowly{f}
		u.step((*Backend).Identify, false)
		u.step((*Backend).Download, false)
		if commands == "DOWNLOAD ROLLBACK" {
			u.step((*Backend).Rollback, false)
		}
		if end := u.command(""); end.Message != "navi: image navi:missing: not found" {
			t.Errorf("after %s the reason is %q", commands, end.Message)
		}
	}
}

func TestContainerThatSomebodyHasStoppedIsStoppedAgain(t *testing.T) {
	for _, name := range []string{"seats", "radio"} { // which are checked, and changed
		f := car()
		f.Stop(t.Context(), name, ctrmodel.StopOptions{})
		before := f.world()
		u := newUpdate(t, f, whole("hvac:2", "navi:1"))
		if end := u.run(all + " ROLLBACK"); end.Status != "INCOMPLETE" || f.world() != before || !strings.Contains(before, "Stopped") {
			t.Errorf("%s: ends with %+v and\n%s\nof\n%s", name, end, f.world(), before)
		}
	}
}

// What has been activated last goes first.
func TestWayBackIsTheOtherWayRound(t *testing.T) {
	f := car()
	u := newUpdate(t, f, desire(component("hvac", "image=hvac:2", "host=x:container_seats-host"), component("seats", "image=seats:2")))
	u.b.Scoped = true
	f.log = nil
	u.run(all + " ROLLBACK")
	order := slices.DeleteFunc(slices.Clone(f.log), func(l string) bool { return !strings.HasPrefix(l, "Switch") && !strings.HasPrefix(l, "Abandon") })
	if got := strings.Join(order[:4], ", "); got != "Switch seats, Switch hvac, Abandon hvac, Abandon seats" {
		t.Errorf("order %s", got)
	}
}
