// SPDX-License-Identifier: Apache-2.0

package selfupdate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"sdvbox/platform/rauc"
	"sdvbox/platform/updateagent"
	"sdvbox/platform/updateproto"
)

// system is a System that does as the test says. The real one is tested with
// the agent.
type system struct {
	Dummy
	running Running
	other   Slot
	primary string
	inspect map[string]error // by source
	install map[string][]error
	busy    int // operations of others that Attach has to wait for
	calls   []string
}

func (s *system) call(format string, args ...any) {
	s.calls = append(s.calls, fmt.Sprintf(format, args...))
}

func (s *system) Current(context.Context) (Running, error)    { return s.running, nil }
func (s *system) Other(context.Context) (Slot, error)         { return s.other, nil }
func (s *system) Primary(context.Context) (string, error)     { return s.primary, nil }
func (s *system) Confirmed(context.Context) (bool, error)     { return true, nil }
func (s *system) BootID() (string, error)                     { return "boot", nil }
func (s *system) Reject(_ context.Context, slot string) error { s.call("reject %s", slot); return nil }

func (s *system) Activate(_ context.Context, slot string) error {
	s.call("activate %s", slot)
	return nil
}

func (s *system) Attach(context.Context, func(int)) error {
	if s.busy == 0 {
		return rauc.ErrIdle
	}
	s.busy--
	s.call("wait")
	return errors.New("failed")
}

func (s *system) Inspect(_ context.Context, source string) (rauc.Bundle, error) {
	if s.busy > 0 {
		return rauc.Bundle{}, rauc.ErrBusy
	}
	kind := kindOf(source)
	s.call("inspect %s", kind)
	return rauc.Bundle{Version: "2", Images: []rauc.Image{{Class: "rootfs"}}}, s.inspect[kind]
}

func (s *system) Install(_ context.Context, source, transaction string, _ func(int)) error {
	kind := kindOf(source)
	s.call("install %s", kind)
	if errs := s.install[kind]; len(errs) > 0 {
		s.install[kind] = errs[1:]
		return errs[0]
	}
	s.other.Version, s.other.Intact, s.other.Transaction = "2", true, transaction
	s.other.Count++
	return nil
}

func kindOf(source string) string {
	if strings.HasPrefix(source, "http") {
		return "url"
	}
	return "file"
}

func setUp(t *testing.T, s *system) (*Backend, *updateagent.Job) {
	t.Helper()
	if s.running.Slot == "" {
		s.running = Running{Version: "1", Slot: "rootfs.0"}
	}
	if s.primary == "" {
		s.primary = "rootfs.0"
	}
	s.other.Name, s.other.Class = "rootfs.1", "rootfs"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("bundle")) }))
	t.Cleanup(server.Close)
	b := &Backend{Config{
		System: s, Mode: Stream, Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
		InstallTimeout: 5 * time.Second, ConfirmTimeout: time.Second,
	}}
	job := updateagent.NewJob(updateproto.DesiredState{Domains: []updateproto.Domain{{
		ID: DomainID, Components: []updateproto.Component{{
			ID: componentID, Version: "2", Config: []updateproto.KeyValue{{Key: "image", Value: server.URL}},
		}},
	}}}, func(updateproto.Feedback) {})
	return b, job
}

func steps(b *Backend, job *updateagent.Job) (statuses []string, last updateproto.Feedback) {
	for _, step := range []func(context.Context, *updateagent.Job) []updateproto.Feedback{b.Identify, b.Download, b.Update, b.Activate} {
		results := step(context.Background(), job)
		last = results[len(results)-1]
		statuses = append(statuses, last.Status)
		if strings.HasSuffix(last.Status, "FAILURE") || strings.HasSuffix(last.Status, "FAILED") || len(results) > 1 {
			break
		}
	}
	return statuses, last
}

func TestStreamingFallsBackToADownloadWithinUpdate(t *testing.T) {
	gone := errors.New("Couldn't connect to server")
	for _, tc := range []struct {
		name   string
		system system
		calls  string
		end    string
	}{
		{"Streams", system{}, "inspect url, inspect url, install url, activate rootfs.1", "ACTIVATION_SUCCESS"},
		{"CannotStreamAtAll", system{inspect: map[string]error{"url": gone}}, "inspect url, inspect file, install file, activate rootfs.1", "ACTIVATION_SUCCESS"},
		{"InstallationBreaks", system{install: map[string][]error{"url": {gone}}}, "inspect url, inspect url, install url, inspect file, install file, activate rootfs.1", "ACTIVATION_SUCCESS"},
		{"BothFail", system{install: map[string][]error{"url": {gone}, "file": {gone}}}, "inspect url, inspect url, install url, inspect file, install file", "UPDATE_FAILURE"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, job := setUp(t, &tc.system)
			statuses, _ := steps(b, job)
			if got := strings.Join(tc.system.calls, ", "); got != tc.calls || statuses[len(statuses)-1] != tc.end {
				t.Errorf("calls %s, ends with %s\nwant  %s, %s", got, statuses, tc.calls, tc.end)
			}
		})
	}
}

func TestServerThatGoesAwayBeforeUpdateIsDownloadedFrom(t *testing.T) {
	s := &system{inspect: map[string]error{}}
	b, job := setUp(t, s)
	b.Identify(t.Context(), job)
	b.Download(t.Context(), job)
	s.inspect["url"] = errors.New("HTTP returned >=400")
	if f := b.Update(t.Context(), job)[0]; f.Status != updateproto.StatusUpdateSuccess {
		t.Errorf("%s: %v", f.Status, f.Actions)
	}
}

func TestStrangersBundleIsNotDownloadedAgain(t *testing.T) {
	s := &system{inspect: map[string]error{}}
	b, job := setUp(t, s)
	b.Identify(t.Context(), job)
	b.Download(t.Context(), job)
	s.inspect["url"] = &rauc.Error{Text: "signature verification failed: Verify error: self-signed certificate"}
	f := b.Update(t.Context(), job)[0]
	if f.Status != updateproto.StatusUpdateFailure || !strings.Contains(f.Actions[0].Message, "self-signed") || slices.Contains(s.calls, "inspect file") {
		t.Errorf("%s: %v after %v", f.Status, f.Actions, s.calls)
	}
}

func TestBusyOrRestartedRAUCIsTriedAgain(t *testing.T) {
	for name, s := range map[string]*system{
		"Busy":   {busy: 2},
		"Lost":   {install: map[string][]error{"file": {rauc.ErrLost}}},
		"BusyAt": {install: map[string][]error{"file": {rauc.ErrBusy}}},
	} {
		t.Run(name, func(t *testing.T) {
			b, job := setUp(t, s)
			b.Mode = Download
			if statuses, last := steps(b, job); last.Status != updateproto.StatusActivationSuccess {
				t.Errorf("%v: %v", statuses, last)
			}
		})
	}
}

// The version runs already, but an earlier update has made the other slot the
// next one: that is not "nothing to do".
func TestRunningVersionIsKeptWhenAnotherSlotIsNext(t *testing.T) {
	s := &system{running: Running{Version: "2", Slot: "rootfs.0"}, primary: "rootfs.1"}
	b, job := setUp(t, s)
	statuses, last := steps(b, job)
	if last.Status != updateproto.StatusActivationSuccess || !slices.Equal(s.calls, []string{"activate rootfs.0"}) {
		t.Errorf("%v after %v", statuses, s.calls)
	}
}

func TestOversizedRequestIsRefused(t *testing.T) {
	b, job := setUp(t, &system{})
	job.Request.Domains[0].Components[0].Version = strings.Repeat("9", maxVersion+1)
	if f := b.Identify(t.Context(), job)[0]; f.Status != updateproto.StatusIdentificationFailed {
		t.Errorf("version of %d bytes: %s", maxVersion+1, f.Status)
	}
}

func TestRollbackLeavesASlotAloneThatWasNotTouched(t *testing.T) {
	s := &system{install: map[string][]error{"file": {errors.New("refused"), errors.New("refused")}}}
	b, job := setUp(t, s)
	b.Mode = Download
	steps(b, job)
	s.calls = nil
	if f := b.Rollback(t.Context(), job)[0]; f.Status != updateproto.StatusRollbackSuccess || len(s.calls) > 0 {
		t.Errorf("%s after %v", f.Status, s.calls)
	}
}

func TestCleanupAfterAFailedActivationRestoresTheOrder(t *testing.T) {
	s := &system{}
	b, job := setUp(t, s)
	b.Mode = Download
	steps(b, job)
	s.calls = nil
	job.Success = false
	f := b.Cleanup(t.Context(), job)
	if want := []string{"activate booted", "reject rootfs.1"}; !slices.Equal(s.calls, want) || f[0].Status != updateproto.StatusCleanupSuccess || f[1].Status != updateproto.StatusIncomplete {
		t.Errorf("%v, %v", s.calls, f)
	}
}
