// SPDX-License-Identifier: Apache-2.0

package rauc

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sdvbox/testing/raucd"
)

func dial(t *testing.T, f *raucd.Fixture) *Client {
	t.Helper()
	c, err := Dial(t.Context(), f.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// within fails the test when what should end by itself does not.
func within(t *testing.T, what string, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatalf("%s does not end", what)
		return nil
	}
}

func background(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

func TestInstallWritesTheSlotAndActivatesIt(t *testing.T) {
	f := raucd.Start(t, raucd.Options{})
	c := dial(t, f)
	spec := raucd.BundleSpec{Version: "7.1"}
	var percents []int
	var texts []string
	// 1.8 knows neither the transaction id nor TLS options.
	o := InstallOptions{TransactionID: "abc", SourceOptions: SourceOptions{TLSCA: "/ca", Headers: []string{"A: b"}}}
	err := c.Install(t.Context(), f.MakeBundle(t, spec), o, func(percent int, text string) {
		percents = append(percents, percent)
		texts = append(texts, text)
	})
	if err != nil {
		t.Fatal(err)
	}
	if !f.Holds(t, "rootfs.1", spec) {
		t.Error("slot does not hold the image")
	}
	if len(percents) == 0 || percents[len(percents)-1] != 100 {
		t.Errorf("progress %v does not end at 100", percents)
	}
	if !strings.Contains(strings.Join(texts, "\n"), "Copying image to rootfs.1") {
		t.Errorf("progress texts do not mention the copy: %q", texts)
	}
	if primary, err := c.Primary(t.Context()); err != nil || primary != "rootfs.1" {
		t.Errorf("primary slot %q, %v; want rootfs.1", primary, err)
	}
	if text, err := c.LastError(t.Context()); err != nil || text != "" {
		t.Errorf("last error %q, %v; want none", text, err)
	}
}

func TestPropertiesDescribeTheMachine(t *testing.T) {
	f := raucd.Start(t, raucd.Options{Compatible: "some-machine", Boot: "SDV_B"})
	c := dial(t, f)
	for _, test := range []struct {
		name string
		get  func(context.Context) (string, error)
		want string
	}{
		{"Operation", c.Operation, "idle"},
		{"Compatible", c.Compatible, "some-machine"},
		{"BootSlot", c.BootSlot, "SDV_B"},
	} {
		if got, err := test.get(t.Context()); err != nil || got != test.want {
			t.Errorf("%s: %q, %v; want %q", test.name, got, err, test.want)
		}
	}
}

func TestFailedInstallReportsTheReasonAndDoesNotHinderTheNext(t *testing.T) {
	f := raucd.Start(t, raucd.Options{Loop: true})
	c := dial(t, f)
	for _, test := range []struct {
		name  string
		spec  raucd.BundleSpec
		cause Cause
		text  string
	}{
		{"stranger", raucd.BundleSpec{Stranger: true}, CauseSignature, "signature verification failed"},
		{"modified", raucd.BundleSpec{Modified: true}, CauseSignature, "signature verification failed"},
		{"compatible", raucd.BundleSpec{Compatible: "other"}, CauseCompatible, "'other'"},
		{"truncated", raucd.BundleSpec{Truncate: 4096}, CauseDamaged, "Invalid bundle format"},
		{"too large", raucd.BundleSpec{SizeMiB: 24}, CauseSpace, "No space left on device"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := c.Install(t.Context(), f.MakeBundle(t, test.spec), InstallOptions{}, nil)
			if err == nil {
				t.Fatal("installed")
			}
			if !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %q does not contain %q", err, test.text)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q has more than one line", err)
			}
			if got := CauseOf(err); got != test.cause {
				t.Errorf("cause %s, want %s: %v", got, test.cause, err)
			}
			if last, _ := c.LastError(t.Context()); last != err.Error() {
				t.Errorf("last error %q differs from %q", last, err)
			}
		})
	}
	if err := c.Install(t.Context(), f.Dir+"/missing", InstallOptions{}, nil); err == nil {
		t.Error("missing file installed")
	}
	good := raucd.BundleSpec{Version: "3"}
	if err := c.Install(t.Context(), f.MakeBundle(t, good), InstallOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	if !f.Holds(t, "rootfs.1", good) {
		t.Error("slot does not hold the image of the good bundle")
	}
}

func TestIgnoreCompatibleReachesRAUC(t *testing.T) {
	f := raucd.Start(t, raucd.Options{})
	bundle := f.MakeBundle(t, raucd.BundleSpec{Compatible: "other"})
	if err := dial(t, f).Install(t.Context(), bundle, InstallOptions{IgnoreCompatible: true}, nil); err != nil {
		t.Fatal(err)
	}
}

func TestBusyIsToldFromFailure(t *testing.T) {
	f := raucd.Start(t, raucd.Options{})
	first, second := dial(t, f), dial(t, f)
	bundle := f.MakeBundle(t, raucd.BundleSpec{})
	f.Hold(t, raucd.BeforeInstall)
	done := background(func() error { return first.Install(t.Context(), bundle, InstallOptions{}, nil) })
	f.AwaitHold(t, raucd.BeforeInstall)

	ctx := t.Context()
	for name, call := range map[string]func() error{
		"install, same client":  func() error { return first.Install(ctx, bundle, InstallOptions{}, nil) },
		"install, other client": func() error { return second.Install(ctx, bundle, InstallOptions{}, nil) },
		"slots":                 func() error { _, err := second.Slots(ctx); return err },
		"primary":               func() error { _, err := second.Primary(ctx); return err },
		"inspect":               func() error { _, err := second.Inspect(ctx, bundle, SourceOptions{}); return err },
		"mark":                  func() error { _, _, err := second.Mark(ctx, "good", "booted"); return err },
	} {
		if err := call(); !errors.Is(err, ErrBusy) || CauseOf(err) != CauseBusy {
			t.Errorf("%s: %v, want %v", name, err, ErrBusy)
		}
	}
	if operation, err := second.Operation(ctx); err != nil || operation != "installing" {
		t.Errorf("operation %q, %v; want installing: a refused call has disturbed it", operation, err)
	}
	f.Release(t, raucd.BeforeInstall)
	if err := within(t, "install", done); err != nil {
		t.Error(err)
	}
}

func TestWaitAttachesToRunningInstallation(t *testing.T) {
	for _, test := range []struct {
		name     string
		spec     raucd.BundleSpec
		confused bool
	}{
		{name: "success"},
		{name: "failure", spec: raucd.BundleSpec{SizeMiB: 24}},
		{name: "RAUC claims to be idle", confused: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := raucd.Start(t, raucd.Options{Loop: true})
			bundle := f.MakeBundle(t, test.spec)
			f.Hold(t, raucd.BeforeInstall)

			ctx, cancel := context.WithCancel(t.Context())
			gone := dial(t, f)
			left := background(func() error { return gone.Install(ctx, bundle, InstallOptions{}, nil) })
			f.AwaitHold(t, raucd.BeforeInstall)
			cancel()
			if err := within(t, "cancelled install", left); !errors.Is(err, context.Canceled) {
				t.Fatalf("cancelled install: %v", err)
			}

			c := dial(t, f)
			if test.confused {
				err := c.call(t.Context(), "InstallBundle", []any{bundle, InstallOptions{}.args()})
				if !errors.Is(err, ErrBusy) {
					t.Fatalf("second installation: %v, want %v", err, ErrBusy)
				}
				if operation, err := c.Operation(t.Context()); operation != "idle" {
					t.Fatalf("operation %q, %v; this RAUC has no such defect", operation, err)
				}
			}
			seen := make(chan struct{}, 100)
			done := background(func() error {
				return c.Wait(t.Context(), func(int, string) { seen <- struct{}{} })
			})
			select {
			case err := <-done:
				t.Fatalf("did not wait: %v", err)
			case <-time.After(4 * pollDelay):
			}
			f.Release(t, raucd.BeforeInstall)
			err := within(t, "wait", done)
			if test.spec.SizeMiB > 0 {
				if CauseOf(err) != CauseSpace {
					t.Errorf("error %v does not tell that the slot is too small", err)
				}
			} else if err != nil {
				t.Error(err)
			}
			if len(seen) == 0 {
				t.Error("no progress seen")
			}
		})
	}
}

func TestWaitKnowsWhenThereIsNothingToWaitFor(t *testing.T) {
	f := raucd.Start(t, raucd.Options{})
	c := dial(t, f)
	if err := c.Wait(t.Context(), nil); !errors.Is(err, ErrIdle) {
		t.Errorf("%v, want %v", err, ErrIdle)
	}
}

func TestDeathOfTheServiceEndsInstallAndWait(t *testing.T) {
	f := raucd.Start(t, raucd.Options{})
	c, other := dial(t, f), dial(t, f)
	bundle := f.MakeBundle(t, raucd.BundleSpec{Hook: true})
	f.Hold(t, raucd.DuringInstall)
	installed := background(func() error { return c.Install(t.Context(), bundle, InstallOptions{}, nil) })
	f.AwaitHold(t, raucd.DuringInstall)
	attached := make(chan struct{}, 1)
	waited := background(func() error {
		w, err := other.watch(t.Context())
		if err != nil {
			return err
		}
		defer w.conn.Close()
		attached <- struct{}{}
		return w.result(t.Context(), nil, nil)
	})
	<-attached
	f.KillService(t)
	for what, done := range map[string]<-chan error{"install": installed, "wait": waited} {
		if err := within(t, what, done); !errors.Is(err, ErrLost) {
			t.Errorf("%s: %v, want %v", what, err, ErrLost)
		}
	}
	if _, err := c.Slots(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("slots of a dead service: %v, want %v", err, ErrUnavailable)
	}

	f.Release(t, raucd.DuringInstall)
	f.RestartService(t)
	slots, err := c.Slots(t.Context())
	if err != nil {
		t.Fatalf("after restart of the service: %v", err)
	}
	if slots[1].BootStatus != "bad" {
		t.Errorf("half-written slot has boot status %q, want bad", slots[1].BootStatus)
	}
	if err := c.Install(t.Context(), bundle, InstallOptions{}, nil); err != nil {
		t.Errorf("install after restart: %v", err)
	}
}

func TestDeathOfTheBusEndsInstall(t *testing.T) {
	f := raucd.Start(t, raucd.Options{})
	c := dial(t, f)
	bundle := f.MakeBundle(t, raucd.BundleSpec{})
	f.Hold(t, raucd.BeforeInstall)
	done := background(func() error { return c.Install(t.Context(), bundle, InstallOptions{}, nil) })
	f.AwaitHold(t, raucd.BeforeInstall)
	f.StopBus(t)
	if err := within(t, "install", done); !errors.Is(err, ErrLost) {
		t.Errorf("%v, want %v", err, ErrLost)
	}
	if _, err := c.Slots(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("slots without a bus: %v, want %v", err, ErrUnavailable)
	}
	f.Release(t, raucd.BeforeInstall)
	f.StartBus(t)
	f.RestartService(t)
	if _, err := c.Slots(t.Context()); err != nil {
		t.Errorf("after restart of the bus: %v", err)
	}
}

func TestSlotsTellWhatRAUCKnows(t *testing.T) {
	f := raucd.Start(t, raucd.Options{Slots: []raucd.Slot{
		{Name: "rootfs.1", Bootname: "SDV_B"},
		{Name: "rescue.0"},
		{Name: "rootfs.0", Bootname: "SDV_A"},
	}, Boot: "SDV_A"})
	c := dial(t, f)
	before := time.Now().Truncate(time.Second)
	if err := c.Install(t.Context(), f.MakeBundle(t, raucd.BundleSpec{Version: "9"}), InstallOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	slots, err := c.Slots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(slots) == 3 {
		s := &slots[2]
		if at, err := time.Parse(time.RFC3339, s.Installed.Time); err != nil || at.Before(before) {
			t.Errorf("time of installation %q, %v; want one after %v", s.Installed.Time, err, before)
		}
		if len(s.SHA256) != 64 {
			t.Errorf("checksum %q is no SHA-256", s.SHA256)
		}
		s.Installed.Time, s.Activated.Time, s.SHA256 = "", "", ""
	}
	want := []Slot{
		{Name: "rescue.0", Class: "rescue", Device: f.Device("rescue.0"), Type: "raw", State: "inactive"},
		{Name: "rootfs.0", Class: "rootfs", Device: f.Device("rootfs.0"), Type: "raw", State: "booted", Bootname: "SDV_A", BootStatus: "good"},
		{Name: "rootfs.1", Class: "rootfs", Device: f.Device("rootfs.1"), Type: "raw", State: "inactive", Bootname: "SDV_B", BootStatus: "good",
			Status: "ok", Size: 8 << 20, Compatible: "test-machine", Version: "9",
			Installed: Event{Count: 1}, Activated: Event{Count: 1}},
	}
	if diff := cmp.Diff(want, slots); diff != "" {
		t.Errorf("slots (-want +got):\n%s", diff)
	}
}

func TestMarkReachesTheBootLoader(t *testing.T) {
	f := raucd.Start(t, raucd.Options{})
	c := dial(t, f)
	for _, test := range []struct{ state, slot, name, env string }{
		{"bad", "other", "rootfs.1", "SDV_B_OK=0"},
		{"active", "rootfs.1", "rootfs.1", "ORDER=SDV_B SDV_A"},
		{"bad", "booted", "rootfs.0", "SDV_A_OK=0"},
		{"good", "booted", "rootfs.0", "SDV_A_OK=1"},
	} {
		name, message, err := c.Mark(t.Context(), test.state, test.slot)
		if err != nil || name != test.name || message == "" {
			t.Errorf("mark %s %s: %q, %q, %v; want name %q", test.state, test.slot, name, message, err, test.name)
		}
		env, err := os.ReadFile(f.GrubEnv)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(env), test.env+"\n") {
			t.Errorf("mark %s %s: no %s in the environment:\n%s", test.state, test.slot, test.env, env)
		}
	}
	_, _, err := c.Mark(t.Context(), "good", "SDV_A")
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(err.Error(), "SDV_A") {
		t.Errorf("mark by boot name: %v, want RAUC's refusal", err)
	}
}

func TestInspectVerifies(t *testing.T) {
	f := raucd.Start(t, raucd.Options{})
	c := dial(t, f)
	for _, verity := range []bool{false, true} {
		bundle := f.MakeBundle(t, raucd.BundleSpec{Version: "5", Compatible: "other", Verity: verity})
		got, err := c.Inspect(t.Context(), bundle, SourceOptions{})
		if want := (Bundle{Compatible: "other", Version: "5"}); err != nil || !cmp.Equal(got, want) {
			t.Errorf("verity %t: %+v, %v; want %+v", verity, got, err, want)
		}
	}
	for _, spec := range []raucd.BundleSpec{{Stranger: true}, {Truncate: 4096}, {Modified: true}} {
		bundle := f.MakeBundle(t, spec)
		if got, err := c.Inspect(t.Context(), bundle, SourceOptions{}); err == nil || !strings.Contains(err.Error(), bundle) {
			t.Errorf("%+v: %+v, %v; want an error naming the file", spec, got, err)
		}
	}
}

func TestAvailableWaitsForTheService(t *testing.T) {
	f := raucd.Start(t, raucd.Options{Stopped: true})
	c := dial(t, f)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := c.Available(ctx); !errors.Is(err, ErrUnavailable) {
		t.Errorf("without service: %v, want %v", err, ErrUnavailable)
	}
	done := background(func() error { return c.Available(t.Context()) })
	f.RestartService(t)
	if err := within(t, "available", done); err != nil {
		t.Error(err)
	}
}

func TestAvailableDoesNotWaitForAHangingService(t *testing.T) {
	f := raucd.Start(t, raucd.Options{})
	c := dial(t, f)
	f.Signal(t, syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	done := background(func() error { return c.Available(ctx) })
	if err := within(t, "available", done); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v, want %v", err, ErrUnavailable)
	}
	f.Signal(t, syscall.SIGCONT)
	if err := c.Available(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestServiceIsStartedByTheBus(t *testing.T) {
	f := raucd.Start(t, raucd.Options{Stopped: true, Activatable: true})
	c := dial(t, f)
	spec := raucd.BundleSpec{}
	if err := c.Install(t.Context(), f.MakeBundle(t, spec), InstallOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	if !f.Holds(t, "rootfs.1", spec) {
		t.Error("slot does not hold the image")
	}
}

func TestDialReportsMissingBus(t *testing.T) {
	_, err := Dial(t.Context(), "unix:path="+t.TempDir()+"/bus")
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v, want %v", err, ErrUnavailable)
	}
}
