// SPDX-License-Identifier: Apache-2.0

package selfupdateagent

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/bootenv"
	"sdvbox/platform/updateproto"
	"sdvbox/testing/raucd"
)

// The documented tutorial, message by message.
func TestTutorialAsPrinted(t *testing.T) {
	r := newRig(t, raucd.Options{})
	r.serve(raucd.BundleSpec{Version: "2"})
	r.start(0)
	r.awaitAgent()
	if v := r.inventory("inv"); v != "1" {
		t.Errorf("inventory names version %q before the update, want 1", v)
	}
	r.desire("random-uuid-as-string", "2")
	r.await("IDENTIFIED")
	for _, c := range []string{"DOWNLOAD", "UPDATE", "ACTIVATE", "CLEANUP"} {
		r.command("1234567890", c)
		r.await(map[string]string{"DOWNLOAD": "DOWNLOAD_SUCCESS", "UPDATE": "UPDATE_SUCCESS", "ACTIVATE": "ACTIVATION_SUCCESS", "CLEANUP": "COMPLETE"}[c])
	}
	var got []string
	for i, f := range r.heard {
		a := updateproto.Action{}
		if len(f.Actions) > 0 {
			a = f.Actions[0]
			if a.Component.ID != "self-update:os-image" || a.Component.Version != "2" {
				t.Errorf("action is about %+v", a.Component)
			}
		}
		if f.Status == "DOWNLOADING" && a.Progress > 0 || a.Message == "RAUC install..." {
			continue // how many there are depends on the speed of the machine
		}
		got = append(got, fmt.Sprintf("%s|%s|%s|%s|%d|%s", r.ids[i], f.Status, f.Message, a.Status, a.Progress, a.Message))
	}
	info, err := os.Stat(r.bundle)
	if err != nil {
		t.Fatal(err)
	}
	mib := fmt.Sprintf("%.1f", float64(info.Size())/(1<<20))
	const updating = "Self-update agent is performing an OS image update."
	const activated = "Self-update agent has activated the new OS image."
	want := []string{
		"random-uuid-as-string|IDENTIFYING|Self-update agent has received new desired state request and is evaluating it.||0|",
		"random-uuid-as-string|IDENTIFIED|Self-update agent is about to perform an OS image update.|IDENTIFIED|0|Self-update agent is about to perform an OS image update.",
		"1234567890|DOWNLOADING|" + updating + "|DOWNLOADING|0|Downloading 0.0 MiB...",
		"1234567890|DOWNLOAD_SUCCESS|" + updating + "|DOWNLOAD_SUCCESS|100|Downloaded " + mib + " MiB...",
		"1234567890|UPDATING|" + updating + "|UPDATING|0|Checking bundle version and version in desired state request.",
		"1234567890|UPDATE_SUCCESS|Self-update completed, reboot required.|UPDATING|100|Writing partition completed, reboot required.",
		"1234567890|ACTIVATING|Self-update agent is performing an OS image activation.|UPDATING|0|Self-update agent is performing an OS image activation.",
		"1234567890|ACTIVATION_SUCCESS|" + activated + "|UPDATED|0|" + activated,
		"1234567890|CLEANUP_SUCCESS|Self-update agent has cleaned up after itself.|UPDATE_SUCCESS|0|" + activated,
		"1234567890|COMPLETE|Self-update completed.|UPDATE_SUCCESS|0|" + activated,
	}
	if !slices.Equal(got, want) {
		t.Errorf("feedback:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !r.rauc.Holds(t, "rootfs.1", raucd.BundleSpec{Version: "2"}) {
		t.Error("the other slot does not hold the image of the bundle")
	}
	if v := r.inventory("after"); v != "1" {
		t.Errorf("inventory names version %q although version 1 still runs", v)
	}
	if files, _ := os.ReadDir(r.path); len(files) > 0 {
		t.Errorf("left in the bundle directory: %v", files)
	}
}

func TestFiveMessagesAtOnce(t *testing.T) {
	r := newRig(t, raucd.Options{})
	r.serve(raucd.BundleSpec{Version: "2"})
	r.start(0)
	r.awaitAgent()
	r.desire("a", "2")
	for _, c := range []string{"DOWNLOAD", "UPDATE", "ACTIVATE", "CLEANUP"} {
		r.command("a", c)
	}
	r.await("COMPLETE")
}

func TestRequestedVersionRunsAlready(t *testing.T) {
	r := newRig(t, raucd.Options{})
	r.serve(raucd.BundleSpec{Version: "2"})
	r.start(0)
	r.awaitAgent()
	r.desire("a", "1")
	if f := r.await("IDENTIFIED"); len(f.Actions) != 0 {
		t.Errorf("IDENTIFIED has actions although there is nothing to do: %v", f.Actions)
	}
	r.await("COMPLETED")
	r.desire("b", "2")
	if f := r.await("IDENTIFIED"); len(f.Actions) != 1 {
		t.Errorf("the next request is not served: %+v", f)
	}
}

// Each bad bundle fails in its phase with its cause; the slot that runs stays
// the next to boot, and a good update follows without help.
func TestBadBundlesAreNamedAndHarmless(t *testing.T) {
	r := newRig(t, raucd.Options{Loop: true})
	r.start(0)
	r.awaitAgent()
	for i, tc := range []struct {
		name          string
		spec          raucd.BundleSpec
		url           string
		status, cause string
	}{
		{"stranger", raucd.BundleSpec{Version: "2", Stranger: true}, "", "UPDATE_FAILURE", "verification failed"},
		{"other machine", raucd.BundleSpec{Version: "2", Compatible: "toaster"}, "", "UPDATE_FAILURE", "toaster"},
		{"cut short", raucd.BundleSpec{Version: "2", Truncate: 1 << 20}, "", "UPDATE_FAILURE", "verification failed"},
		{"modified", raucd.BundleSpec{Version: "2", Modified: true}, "", "UPDATE_FAILURE", "verification failed"},
		{"too large", raucd.BundleSpec{Version: "2", SizeMiB: 24}, "", "UPDATE_FAILURE", "No space left"},
		{"other version", raucd.BundleSpec{Version: "3"}, "", "UPDATE_FAILURE", "Bundle version does not match version in desired state request."},
		{"other class", raucd.BundleSpec{Version: "2", Class: "rescue"}, "", "UPDATE_FAILURE", "class rescue"},
		{"not found", raucd.BundleSpec{}, r.server.URL + "/nothing", "DOWNLOAD_FAILURE", "404"},
		{"scheme", raucd.BundleSpec{}, "ftp://127.0.0.1/x", "DOWNLOAD_FAILURE", "ftp"},
	} {
		id := fmt.Sprint("bad", i)
		r.serve(tc.spec)
		url := tc.url
		if url == "" {
			url = r.server.URL + "/bundle.raucb"
		}
		r.desireURL(id, "2", url)
		r.await("IDENTIFIED")
		r.command(id, "DOWNLOAD")
		f := r.await("DOWNLOAD_SUCCESS", "DOWNLOAD_FAILURE")
		if tc.status == "UPDATE_FAILURE" {
			r.command(id, "UPDATE")
			f = r.await("UPDATE_SUCCESS", "UPDATE_FAILURE")
		}
		if f.Status != tc.status || !strings.Contains(f.Actions[0].Message, tc.cause) {
			t.Errorf("%s: %s, %s; want %s naming %q", tc.name, f.Status, f.Actions[0].Message, tc.status, tc.cause)
		}
		t.Logf("%s: %s: %s", tc.name, f.Status, f.Actions[0].Message)
		r.command(id, "CLEANUP")
		r.await("INCOMPLETE")
		if next := r.primary(); next != "SDV_A" {
			t.Errorf("%s: next to boot is %s", tc.name, next)
		}
	}
	r.serve(raucd.BundleSpec{Version: "2"})
	if f := r.update("good", "2", "DOWNLOAD", "UPDATE", "ACTIVATE", "CLEANUP"); f.Status != "COMPLETE" {
		t.Errorf("the good update ends with %s", f.Status)
	}
	if next := r.primary(); next != "SDV_B" {
		t.Errorf("after the good update %s is next", next)
	}
}

// primary is the first slot in the boot order that may be booted.
func (r *rig) primary() string {
	r.t.Helper()
	store, err := bootenv.Open("grub:" + r.rauc.GrubEnv)
	if err != nil {
		r.t.Fatal(err)
	}
	v, err := store.Load()
	if err != nil {
		r.t.Fatal(err)
	}
	for name := range strings.FieldsSeq(v.Get("ORDER")) {
		if v.Get(name+"_OK") == "1" && v.Get(name+"_TRY") == "0" {
			return name
		}
	}
	return ""
}

func TestRollbackUndoesEachStep(t *testing.T) {
	r := newRig(t, raucd.Options{})
	r.serve(raucd.BundleSpec{Version: "2"})
	r.start(0)
	r.awaitAgent()
	all := []string{"DOWNLOAD", "UPDATE", "ACTIVATE"}
	for n := range len(all) + 1 {
		id := fmt.Sprint("try", n)
		r.update(id, "2", all[:n]...)
		r.command(id, "ROLLBACK")
		r.await("ROLLBACK")
		r.await("ROLLBACK_SUCCESS")
		r.await("INCOMPLETE")
		if next := r.primary(); next != "SDV_A" {
			t.Errorf("after ROLLBACK of %v %s is next to boot", all[:n], next)
		}
		if files, _ := os.ReadDir(r.path); len(files) > 0 {
			t.Errorf("after ROLLBACK of %v there is still %v", all[:n], files)
		}
		r.command(id, "CLEANUP")
		r.await("CLEANUP_SUCCESS")
	}
}

func TestRollbackStopsADownloadAndOutlivesAnInstallation(t *testing.T) {
	r := newRig(t, raucd.Options{})
	r.args = []string{"--rate-limit", "1000000"}
	r.serve(raucd.BundleSpec{Version: "2"})
	r.start(0)
	r.awaitAgent()
	r.desire("a", "2")
	r.await("IDENTIFIED")
	r.command("a", "DOWNLOAD")
	r.await("DOWNLOADING")
	begin := time.Now()
	r.command("a", "ROLLBACK")
	r.await("INCOMPLETE")
	if d := time.Since(begin); d > 5*time.Second { // the download itself takes more
		t.Errorf("ROLLBACK took %s", d)
	}

	r.stop(syscall.SIGTERM)
	r.args = nil
	r.start(0)
	r.update("b", "2", "DOWNLOAD")
	r.rauc.Hold(t, raucd.BeforeInstall)
	r.command("b", "UPDATE")
	r.rauc.AwaitHold(t, raucd.BeforeInstall)
	if v := r.inventory("during"); v != "1" {
		t.Errorf("inventory during an installation names version %q", v)
	}
	r.desire("c", "3")
	r.await("IDENTIFICATION_FAILED")
	r.command("b", "ROLLBACK")
	r.await("ROLLBACK")
	r.rauc.Release(t, raucd.BeforeInstall)
	r.await("ROLLBACK_SUCCESS")
	r.await("INCOMPLETE")
	if next := r.primary(); next != "SDV_A" {
		t.Errorf("%s is next to boot", next)
	}
	r.serve(raucd.BundleSpec{Version: "2"})
	if f := r.update("d", "2", "DOWNLOAD", "UPDATE", "ACTIVATE", "CLEANUP"); f.Status != "COMPLETE" {
		t.Errorf("the next update ends with %s", f.Status)
	}
}

// The outcome of a reboot is found out, not assumed.
func TestOutcomeOfTheReboot(t *testing.T) {
	for _, tc := range []struct {
		name, slot    string
		loader        func(v *bootenv.Vars) // what boot loader and confirm do
		status, cause string
		end           string
	}{
		{"Confirmed", "SDV_B", func(v *bootenv.Vars) { v.Set("SDV_GOOD", "SDV_B") }, "ACTIVATION_SUCCESS", "", "COMPLETE"},
		{"GivenUp", "SDV_A", func(v *bootenv.Vars) { v.Set("SDV_B_OK", "0"); v.Set("SDV_WHY", "SDV_B gate broker: refused") }, "ACTIVATION_FAILURE", "rolled back: SDV_B gate broker: refused", "INCOMPLETE"},
		{"Exhausted", "SDV_A", func(v *bootenv.Vars) { v.Set("SDV_B_TRY", "3") }, "ACTIVATION_FAILURE", "rolled back: SDV_B was started as often as is allowed", "INCOMPLETE"},
		{"NoneConfirmed", "SDV_B", func(v *bootenv.Vars) { v.Set("SDV_GOOD", "none") }, "ACTIVATION_FAILURE", "not confirmed within 2s", "INCOMPLETE"},
		{"NeverConfirmed", "SDV_B", func(v *bootenv.Vars) { v.Set("SDV_B_TRY", "1") }, "ACTIVATION_FAILURE", "not confirmed within 2s", "INCOMPLETE"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, raucd.Options{})
			r.args = []string{"--confirm-timeout", "2s"}
			r.serve(raucd.BundleSpec{Version: "2"})
			r.start(0)
			r.awaitAgent()
			r.update("a", "2", "DOWNLOAD", "UPDATE", "ACTIVATE")
			r.reboot(tc.slot)
			r.env(tc.loader)
			r.start(0)
			f := r.await("ACTIVATION_SUCCESS", "ACTIVATION_FAILURE")
			if f.Status != tc.status || !strings.Contains(f.Message, tc.cause) {
				t.Errorf("after the reboot: %s %q, want %s %q", f.Status, f.Message, tc.status, tc.cause)
			}
			r.command("a", "CLEANUP")
			if f := r.await("COMPLETE", "INCOMPLETE"); f.Status != tc.end {
				t.Errorf("ends with %s, want %s", f.Status, tc.end)
			}
			if tc.slot == "SDV_B" {
				if v := r.inventory("z"); v != "2" {
					t.Errorf("inventory names version %q, want 2", v)
				}
			}
		})
	}
}

func TestMalformedMessagesAreAnsweredOrLogged(t *testing.T) {
	r := newRig(t, raucd.Options{})
	r.start(0)
	r.awaitAgent()
	r.inventory("up")
	answered := []string{
		`{"activityId":"%s"}`,
		`{"activityId":"%s","payload":null}`,
		`{"activityId":"%s","payload":[]}`,
		`{"activityId":"%s","payload":{"command":7}}`,
		`{"activityId":"%s","payload":{"command":"EXPLODE","domains":7}}`,
		`{"activityId":"%s","payload":{"domains":[{"id":"self-update","components":[{"id":"os-image","version":7}]}],"command":null}}`,
		`{"activityId":"%s","payload":{"domains":[{"id":"self-update","components":[]}],"command":""}}`,
		`{"activityId":"%s","payload":{"domains":[{"id":"self-update"}],"command":"download"}}`,
		`{"activityId":"%s","payload":{"domains":[{"id":"other"}],"command":"DOWNLOAD \u0000"}}`,
		`{"activityId":"%s \"quoted\" \\ ü","payload":7}`,
	}
	silent := []string{``, `{}`, `[]`, `null`, `7`, `"x"`, `{"activityId":7}`, `{"activityId":""}`, `{"activityId":null,"payload":{}}`, `{"activityId":["a"]}`,
		strings.Repeat("[", 100000), `{"activityId":{"a":1},"payload":{"command":"DOWNLOAD"}}`, "\xff\xfe", `{"activityId`}
	want := map[string]bool{}
	for n := range 3 {
		for i, m := range append(slices.Clone(answered), silent...) {
			for _, topic := range []string{"selfupdate/desiredstate", "selfupdate/desiredstate/command"} {
				id := fmt.Sprintf("%d-%d-%d", n, i, len(topic))
				if strings.Contains(m, "%s") {
					full := id
					if strings.Contains(m, "quoted") {
						full += ` "quoted" \ ü`
					}
					want[full] = true
					m := fmt.Sprintf(m, id)
					r.client.Publish(topic, m)
				} else {
					r.client.Publish(topic, m)
				}
			}
		}
	}
	for _, m := range silent {
		r.client.Publish("selfupdate/currentstate/get", m)
	}
	for len(want) > 0 {
		id, f := r.next(10 * time.Second)
		switch f.Status {
		case "IDENTIFYING":
		case "IDENTIFICATION_FAILED":
			if f.Message == "" {
				t.Errorf("no cause for %s", id)
			}
			delete(want, id)
		default:
			t.Errorf("answer to %s is %s", id, f.Status)
		}
	}
	r.serve(raucd.BundleSpec{Version: "2"})
	if f := r.update("good", "2", "DOWNLOAD", "UPDATE", "ACTIVATE", "CLEANUP"); f.Status != "COMPLETE" {
		t.Errorf("the good update ends with %s", f.Status)
	}
	log, err := os.ReadFile(r.log)
	if err != nil {
		t.Fatal(err)
	}
	for topic, n := range map[string]int{"selfupdate/desiredstate": 3 * len(silent), "selfupdate/desiredstate/command": 3 * len(silent), "selfupdate/currentstate/get": len(silent)} {
		got := 0
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "cannot be understood") && strings.Contains(line, "topic="+topic+" ") {
				got++
			}
		}
		if got != n {
			t.Errorf("%d log lines name %s, want %d", got, topic, n)
		}
	}
}

// A request that is as large as it may be, and would be larger in an error text,
// does not harm the journal; commands under ever new ids do not either.
func TestOversizedMessagesAreHarmless(t *testing.T) {
	r := newRig(t, raucd.Options{})
	r.start(0)
	r.awaitAgent()
	r.desireURL("long", "2", "ftp://h/"+strings.Repeat("{", 8000))
	r.await("IDENTIFIED")
	for n := range 200 {
		r.command(fmt.Sprintf("%0256d", n), "ACTIVATE")
	}
	r.command("long", "DOWNLOAD")
	r.await("DOWNLOAD_FAILURE")
	r.command("long", "CLEANUP")
	r.await("INCOMPLETE")
	r.desireURL("longer", "2", "ftp://h/"+strings.Repeat("{", 50000))
	r.await("IDENTIFICATION_FAILED")
	r.serve(raucd.BundleSpec{Version: "2"})
	if f := r.update("good", "2", "DOWNLOAD", "UPDATE", "ACTIVATE", "CLEANUP"); f.Status != "COMPLETE" {
		t.Errorf("the good update ends with %s", f.Status)
	}
}

// RAUC and the agent are stopped together by an orderly shutdown.
func TestShutdownDuringAnInstallationIsNoFailure(t *testing.T) {
	r := newRig(t, raucd.Options{})
	r.serve(raucd.BundleSpec{Version: "2"})
	r.start(0)
	r.awaitAgent()
	r.update("a", "2", "DOWNLOAD")
	r.rauc.Hold(t, raucd.BeforeInstall)
	r.command("a", "UPDATE")
	r.rauc.AwaitHold(t, raucd.BeforeInstall)
	r.stop(syscall.SIGTERM)
	r.rauc.Release(t, raucd.BeforeInstall)
	r.reboot("SDV_A")
	r.start(0)
	r.await("UPDATE_SUCCESS")
}

func TestBrokerMayComeLateAndGo(t *testing.T) {
	r := newRig(t, raucd.Options{})
	r.serve(raucd.BundleSpec{Version: "2"})
	r.broker.Stop()
	r.start(0)
	time.Sleep(500 * time.Millisecond)
	r.broker.Restart()
	r.client = r.broker.Client(t, "selfupdate/#")
	r.awaitAgent()
	r.update("a", "2", "DOWNLOAD")
	r.rauc.Hold(t, raucd.BeforeInstall)
	r.command("a", "UPDATE")
	r.rauc.AwaitHold(t, raucd.BeforeInstall)
	r.broker.Kill()
	r.rauc.Release(t, raucd.BeforeInstall)
	time.Sleep(time.Second)
	r.broker.Restart()
	r.client = r.broker.Client(t, "selfupdate/#")
	r.await("UPDATE_SUCCESS")
	r.command("a", "ACTIVATE")
	r.await("ACTIVATION_SUCCESS")
	r.command("a", "CLEANUP")
	r.await("COMPLETE")
}
