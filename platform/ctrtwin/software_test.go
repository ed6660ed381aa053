// SPDX-License-Identifier: Apache-2.0

package ctrtwin

import (
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
)

// server has descriptions of containers.
type server struct {
	*httptest.Server
	files map[string]string
	stall chan struct{} // closed to let go on what is in "stalls"
	asked atomic.Int32
}

func newServer(t *testing.T, files map[string]string) *server {
	s := &server{files: files, stall: make(chan struct{})}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		name := strings.TrimPrefix(r.URL.Path, "/")
		if name == "stalls" {
			select {
			case <-s.stall:
			case <-r.Context().Done():
			}
		}
		if text, ok := s.files[name]; ok {
			fmt.Fprint(w, text)
			return
		}
		http.NotFound(w, r)
	}))
	t.Cleanup(s.CloseClientConnections)
	t.Cleanup(s.Close)
	return s
}

// artifact is how an artifact is asked for; more is added to it.
func (s *server) artifact(name, more string) string {
	return fmt.Sprintf(`{"filename":%q,"download":{"HTTP":{"url":"%s/%s"}}%s}`, name, s.URL, name, more)
}

func installOf(id string, modules ...string) string {
	return fmt.Sprintf(`{"correlationId":%q,"softwareModules":[%s],"weight":10,"forced":false}`, id, strings.Join(modules, ","))
}

func moduleOf(name string, artifacts ...string) string {
	return fmt.Sprintf(`{"softwareModule":{"name":%q,"version":"1"},"metadata":{},"artifacts":[%s]}`, name, strings.Join(artifacts, ","))
}

// until waits for a message whose gist ends like that, and returns all messages until then. There is no bubble: the downloads
// are real.
func (r *rig) until(end string) []string {
	r.Helper()
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(time.Millisecond) {
		r.bus.mu.Lock()
		all := r.bus.said
		i := slices.IndexFunc(all, func(m string) bool { return strings.HasSuffix(gist(m), end) })
		r.bus.said = all[i+1:]
		r.bus.mu.Unlock()
		if i >= 0 {
			return all[:i+1]
		}
	}
	r.Fatalf("no message %q but\n%s", end, strings.Join(r.bus.take(), "\n"))
	return nil
}

// beginReal is begin without a bubble.
func (r *rig) beginReal() (described []string) {
	r.start()
	r.up()
	r.receive("edge/thing/response", fleetID)
	return r.until("Metrics")
}

// operations are the gists of what is said of the last operation and the last failed one.
func operations(said []string) (all []string) {
	for _, m := range said {
		if g, ok := strings.CutPrefix(gist(m), "SoftwareUpdatable/properties/status/last"); ok {
			all = append(all, g)
		}
	}
	return all
}

func wantOperations(t *testing.T, said []string, want ...string) {
	t.Helper()
	if got := operations(said); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

var successful = []string{"Operation STARTED", "Operation DOWNLOADING", "Operation DOWNLOADED", "Operation INSTALLING", "Operation INSTALLED", "Operation FINISHED_SUCCESS"}

const radioFile = `{"container_name": "radio", "image": {"name": "registry.example:5000/radio:1"}}`

func TestSoftwareIsInstalled(t *testing.T) {
	r := newRig(t)
	s := newServer(t, map[string]string{"radio.json": radioFile})
	r.beginReal()
	checksums := fmt.Sprintf(`,"size":%d,"checksums":{"MD5":"%x","SHA1":"%X","SHA256":"%x","CRC":"1"}`, len(radioFile), md5.Sum([]byte(radioFile)), sha1.Sum([]byte(radioFile)), sha256.Sum256([]byte(radioFile)))
	r.request("c1", "SoftwareUpdatable", "install", installOf("hb-9", moduleOf("radio", s.artifact("radio.json", checksums))))
	said := r.until("FINISHED_SUCCESS")
	got := gists(said)
	list, _ := r.engine.List(t.Context())
	if len(list) != 1 || list[0].State.Status != ctrmodel.Running {
		t.Fatalf("containers %+v", list)
	}
	feature := "Container:" + list[0].ID
	const last = "SoftwareUpdatable/properties/status/lastOperation "
	want := []string{
		"reply c1/204", last + "STARTED", last + "DOWNLOADING", last + "DOWNLOADED", last + "INSTALLING",
		feature, "SoftwareUpdatable/properties/status/installedDependencies", feature + "/properties/status/state CREATED", feature + "/properties/status/state RUNNING",
		last + "INSTALLED", last + "FINISHED_SUCCESS",
	}
	if !slices.Equal(got, want) {
		t.Fatalf("got %q\nwant %q", got, want)
	}
	property := func(name, value string) string {
		return events + `{"topic":"` + ditto + `twin/commands/modify","headers":{"response-required":false},"path":"/features/SoftwareUpdatable/properties/status/` + name + `","value":` + value + `}`
	}
	if want := property("lastOperation", `{"correlationId":"hb-9","status":"STARTED","softwareModule":{"name":"radio","version":"1"}}`); said[1] != want {
		t.Errorf("got  %s\nwant %s", said[1], want)
	}
	id := list[0].ID
	if want := property("installedDependencies", `{"registry.example.`+id+`:5000%2Fradio:1":{"group":"registry.example","name":"`+id+`","version":"5000/radio:1"}}`); said[6] != want {
		t.Errorf("got  %s\nwant %s", said[6], want)
	}

	r.request("c2", "SoftwareUpdatable", "remove", `{"correlationId":"hb-10","software":[{"group":"g","name":"`+id+`","version":"v"}],"forced":false}`)
	said = r.until("FINISHED_SUCCESS")
	wantOperations(t, said, "Operation REMOVING", "Operation REMOVED", "Operation FINISHED_SUCCESS")
	if want := property("lastOperation", `{"correlationId":"hb-10","status":"FINISHED_SUCCESS","software":[{"group":"g","name":"`+id+`","version":"v"}]}`); said[len(said)-1] != want {
		t.Errorf("got  %s\nwant %s", said[len(said)-1], want)
	}
	if len(r.engine.all) != 0 {
		t.Errorf("containers are left: %v", r.engine.all)
	}
}

func TestSoftwareThatCannotBeInstalledLeavesNothing(t *testing.T) {
	const download = 2 // how many steps come before
	s := newServer(t, map[string]string{
		"good.json": `{"container_name": "good", "image": {"name": "x:1"}}`, "fails.json": `{"container_name": "fails", "image": {"name": "x:1"}}`,
		"broken.json": `{`, "unnamed.json": `{"container_name": "a b", "image": {"name": "x:1"}}`,
		"large.json": strings.Repeat(" ", maxDescription+1), "twice.json": `{"container_id": "same", "container_name": "n", "image": {"name": "x:1"}}`,
		"taken.json": `{"container_id": "taken", "container_name": "n2", "image": {"name": "x:1"}}`,
	})
	good := s.artifact("good.json", "")
	for _, c := range []struct {
		name      string
		artifacts []string
		status    string
		steps     int
		message   string
	}{
		{"missing", []string{good, s.artifact("missing.json", "")}, "ERROR", download, "404 Not Found"},
		{"no server", []string{`{"download":{"HTTP":{"url":"http://127.0.0.1:1/x"}}}`}, "ERROR", download, "connection refused"},
		{"stalls", []string{s.artifact("stalls", "")}, "ERROR", download, "nothing for 1s"},
		{"other protocol", []string{`{"filename":"x","download":{"FTP":{"url":"ftp://127.0.0.1/x"}}}`}, "ERROR", download, "HTTP"},
		{"no link", []string{`{"filename":"x"}`}, "ERROR", download, "HTTP"},
		{"not http", []string{`{"filename":"x","download":{"HTTP":{"url":"file:///etc/passwd"}}}`}, "ERROR", download, "expected http or https"},
		{"MD5", []string{s.artifact("good.json", `,"checksums":{"MD5":"0cc175b9c0f1b6a831c399e269772661"}`)}, "REJECTED", download, "MD5"},
		{"SHA256 after MD5", []string{s.artifact("good.json", fmt.Sprintf(`,"checksums":{"MD5":"%x","SHA256":"00"}`, md5.Sum([]byte(s.files["good.json"]))))}, "REJECTED", download, "SHA256"},
		{"SHA1", []string{s.artifact("good.json", `,"checksums":{"SHA1":"x"}`)}, "REJECTED", download, "SHA1"},
		{"size", []string{s.artifact("good.json", `,"size":7`)}, "REJECTED", download, "expected 7"},
		{"too large", []string{s.artifact("large.json", "")}, "REJECTED", download, "1048576"},
		{"not JSON", []string{s.artifact("broken.json", "")}, "REJECTED", download, "JSON"},
		{"invalid", []string{s.artifact("unnamed.json", "")}, "REJECTED", download, "container_name"},
		{"does not start", []string{good, s.artifact("fails.json", "")}, "ERROR", 4, "fails.json: no such device"},
		{"id is taken", []string{good, s.artifact("taken.json", "")}, "ERROR", 3, "taken already"},
		{"id twice", []string{s.artifact("twice.json", ""), s.artifact("twice.json", "")}, "ERROR", 3, "same already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.engine.add("taken", "taken", "x:1", true)
			r.engine.before = func(_ context.Context, what, name string) error {
				if what == "running" && name == "fails" {
					return errors.New("no such device")
				}
				return nil
			}
			r.beginReal()
			// The module after it is tried nevertheless.
			r.request("1", "SoftwareUpdatable", "install", installOf("hb", moduleOf("bad", c.artifacts...), moduleOf("good", good)))
			said := r.until("FINISHED_SUCCESS")
			want := slices.Clone(successful[:c.steps])
			want = append(want, "FailedOperation FINISHED_"+c.status, "Operation FINISHED_"+c.status)
			wantOperations(t, said, append(want, successful...)...)
			for _, m := range said {
				if strings.HasSuffix(gist(m), "FINISHED_"+c.status) && !strings.Contains(m, c.message) {
					t.Errorf("%s\nwithout %q", m, c.message)
				}
			}
			var names []string
			list, _ := r.engine.List(t.Context())
			for _, x := range list {
				names = append(names, x.Name)
			}
			slices.Sort(names)
			if !slices.Equal(names, []string{"good", "taken"}) {
				t.Errorf("containers %q", names)
			}
		})
	}
}

func TestLastOperationOfARemovalThatFailsInPartIsAFailure(t *testing.T) {
	for _, c := range []struct {
		forced bool
		want   string
	}{
		{false, "Operation REMOVING, Operation REMOVED, Operation REMOVING, Operation FINISHED_SUCCESS, FailedOperation FINISHED_REJECTED, " +
			"Operation FINISHED_REJECTED, FailedOperation FINISHED_ERROR, Operation FINISHED_ERROR"},
		{true, "Operation REMOVING, Operation REMOVED, Operation REMOVING, Operation REMOVING, Operation REMOVED, Operation FINISHED_SUCCESS, " +
			"FailedOperation FINISHED_ERROR, Operation FINISHED_ERROR"},
	} {
		r := newRig(t)
		r.engine.add("a", "a", "x:1", true)
		r.engine.add("c", "c", "x:1", true)
		r.beginReal()
		r.request("1", "SoftwareUpdatable", "remove", fmt.Sprintf(`{"correlationId":"hb","forced":%v,"software":[{"name":"a"},{"name":"b"},{"name":"c"}]}`, c.forced))
		said := r.until("/lastOperation FINISHED_ERROR")
		if got := strings.Join(operations(said), ", "); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
		if !strings.Contains(said[len(said)-1], `"software":[{"group":"","name":"b","version":""}],"message":"no container with id b"`) {
			t.Error(said[len(said)-1])
		}
	}
}

func TestOperationsTakeTheirTurnOverTheEndOfTheAgent(t *testing.T) {
	r := newRig(t)
	s := newServer(t, map[string]string{
		"stalls": `{"container_name": "late", "image": {"name": "x:1"}}`, "slow.json": `{"container_name": "slow", "image": {"name": "x:1"}}`,
		"good.json": `{"container_name": "good", "image": {"name": "x:1"}}`,
	})
	r.cfg.GiveUp = time.Minute
	pulls := make(chan string, 10)
	hold := make(chan struct{})
	r.engine.before = func(ctx context.Context, what, name string) error {
		if what != "created" || name != "slow" {
			return nil
		}
		pulls <- name
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-hold:
			return nil
		}
	}
	r.beginReal()
	first := installOf("one", moduleOf("one", s.artifact("good.json", ""), s.artifact("slow.json", "")))
	r.request("1", "SoftwareUpdatable", "install", first)
	r.request("2", "SoftwareUpdatable", "install", installOf("two", moduleOf("two", s.artifact("stalls", ""))))
	r.request("3", "SoftwareUpdatable", "remove", `{"correlationId":"three","software":[{"name":"nobody"}]}`)
	<-pulls
	r.until("reply 3/204")
	r.stop() // while it pulls
	if made := len(r.engine.all); made != 1 {
		t.Fatalf("%d containers", made)
	}

	described := r.beginReal()
	if !strings.Contains(described[1], `"lastOperation":{"correlationId":"one","status":"`) {
		t.Errorf("the twin does not tell what is under way: %s", described[1])
	}
	<-pulls
	// The broker delivers it once more.
	r.receive("command//"+thing+"/req/1/install", requestOf("1", "SoftwareUpdatable", "install", first))
	close(hold)
	said := append(described, r.until("/lastOperation FINISHED_SUCCESS")...)
	if got := operations(said); !slices.Equal(got[max(0, len(got)-2):], successful[4:]) {
		t.Errorf("%q", got)
	}
	if len(r.engine.all) != 2 {
		t.Errorf("%d containers: it goes on with what there is", len(r.engine.all))
	}
	close(s.stall)
	said = r.until("/lastOperation FINISHED_ERROR")
	wantOperations(t, said, append(slices.Clone(successful), "Operation REMOVING", "FailedOperation FINISHED_ERROR", "Operation FINISHED_ERROR")...)
	left := -1
	r.twin.ask(t.Context(), func() { left = len(r.twin.software.Actions) })
	if len(r.engine.all) != 3 || left != 0 {
		t.Errorf("%d containers, %d operations wait", len(r.engine.all), left)
	}
	r.stop()
	if described := r.beginReal(); !strings.Contains(described[1], `"lastFailedOperation":{"correlationId":"three","status":"FINISHED_ERROR"`) || len(described) != 7 {
		t.Errorf("%q", described)
	}
}

func TestInstallationThatEndsTheAgentAgainAndAgainIsGivenUp(t *testing.T) {
	r := newRig(t)
	s := newServer(t, map[string]string{"bad.json": `{"container_name": "bad", "image": {"name": "x:1"}}`, "good.json": `{"container_name": "good", "image": {"name": "x:1"}}`})
	pulls := make(chan bool)
	r.engine.before = func(ctx context.Context, what, name string) error {
		if what == "created" && name == "bad" {
			pulls <- true
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	r.beginReal()
	r.request("1", "SoftwareUpdatable", "install", installOf("hb", moduleOf("m", s.artifact("good.json", ""), s.artifact("bad.json", ""))))
	for range maxTries {
		<-pulls
		r.stop()
		r.start()
		r.up()
		r.receive("edge/thing/response", fleetID)
	}
	var last operationStatus
	for begin := time.Now(); last.Status != failure && time.Since(begin) < 10*time.Second; time.Sleep(time.Millisecond) {
		r.twin.ask(t.Context(), func() { last = *r.twin.software.Last })
	}
	if last.Status != failure || !strings.Contains(last.Message, "given up") {
		t.Errorf("%+v", last)
	}
	if len(r.engine.all) != 0 {
		t.Errorf("containers are left: %v", r.engine.all)
	}
}

func TestRemovalThatTheEndOfTheAgentHasCutShortIsFinished(t *testing.T) {
	r := newRig(t)
	r.engine.add("a", "a", "x:1", true)
	asked := make(chan bool, 1)
	r.engine.before = func(ctx context.Context, what, _ string) error {
		if what == "removed" {
			asked <- true
			<-ctx.Done()
		}
		return ctx.Err()
	}
	r.beginReal()
	r.request("1", "SoftwareUpdatable", "remove", `{"correlationId":"hb","software":[{"name":"a"},{"name":"b"}]}`)
	<-asked
	r.stop()
	delete(r.engine.all, "a") // it was removed, but that could not be written down
	r.engine.known = make(chan struct{})
	described := r.beginReal()
	time.Sleep(50 * time.Millisecond)
	if said := r.bus.take(); len(said) != 0 {
		t.Errorf("while the engine can do nothing: %q", said)
	}
	close(r.engine.known)
	said := append(described, r.until("/lastOperation FINISHED_ERROR")...)
	wantOperations(t, said[len(said)-4:], "Operation REMOVING", "Operation FINISHED_SUCCESS", "FailedOperation FINISHED_ERROR", "Operation FINISHED_ERROR")
}

func TestTooManyInstallationsAreRefused(t *testing.T) {
	r := newRig(t)
	s := newServer(t, nil)
	r.cfg.GiveUp = time.Minute
	r.beginReal()
	for i := range maxActions + 1 {
		r.request(fmt.Sprint(i), "SoftwareUpdatable", "install", installOf(fmt.Sprint(i), moduleOf("m", s.artifact("stalls", ""))))
	}
	if said := r.until(fmt.Sprintf("reply %d/500", maxActions)); !strings.Contains(said[len(said)-1], "messages:execution.failed") {
		t.Error(said)
	}
}
