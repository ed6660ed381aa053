// SPDX-License-Identifier: Apache-2.0

package rauc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"sdvbox/testing/raucd"
)

// fake is a RAUC service for what the real one at hand is too old or too well-behaved to do. It speaks the same
// protocol over a real bus.
type fake struct {
	conn      *dbus.Conn
	supported map[string]bool // option keys
	busy      atomic.Bool
	install   func()                   // runs before the answer to InstallBundle
	installed func(client dbus.Sender) // runs after it
	info      map[string]dbus.Variant  // answer of InspectBundle

	mu   sync.Mutex
	args map[string]dbus.Variant // of the last accepted call
}

func refuse(text string) *dbus.Error {
	return dbus.NewError("org.gtk.GDBus.UnmappedGError.Quark._g_2dio_2derror_2dquark.Code30", []any{text})
}

func (f *fake) accept(args map[string]dbus.Variant) *dbus.Error {
	for key := range args {
		if !f.supported[key] {
			return refuse("Unsupported key: " + key)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.args = args
	return nil
}

// accepted returns the options of the last accepted call.
func (f *fake) accepted() map[string]any {
	f.mu.Lock()
	defer f.mu.Unlock()
	args := make(map[string]any)
	for key, value := range f.args {
		args[key] = value.Value()
	}
	return args
}

func (f *fake) InstallBundle(client dbus.Sender, source string, args map[string]dbus.Variant) *dbus.Error {
	if err := f.accept(args); err != nil {
		return err
	}
	if f.install != nil {
		f.install()
	}
	if f.installed != nil {
		time.AfterFunc(50*time.Millisecond, func() { f.installed(client) })
	}
	return nil
}

func (f *fake) InspectBundle(source string, args map[string]dbus.Variant) (map[string]dbus.Variant, *dbus.Error) {
	return f.info, f.accept(args)
}

func (f *fake) GetPrimary() (string, *dbus.Error) {
	if f.busy.Load() {
		return "", refuse("already processing a different method")
	}
	return "rootfs.0", nil
}

// Get serves org.freedesktop.DBus.Properties.
func (f *fake) Get(iface, name string) (dbus.Variant, *dbus.Error) {
	if name == "Operation" {
		return dbus.MakeVariant("idle"), nil
	}
	return dbus.MakeVariant(""), nil
}

func (f *fake) completed(code int32) { f.conn.Emit("/", installer+".Completed", code) }

func (f *fake) change(name string, value any) {
	changed := map[string]dbus.Variant{name: dbus.MakeVariant(value)}
	f.conn.Emit("/", "org.freedesktop.DBus.Properties.PropertiesChanged", installer, changed, []string{})
}

type progressValue struct {
	Percent int32
	Text    string
	Depth   int32
}

// start makes f the service of a fixture. From then on it must not be changed.
func (f *fake) start(t *testing.T) *raucd.Fixture {
	t.Helper()
	bus := raucd.Start(t, raucd.Options{Stopped: true})
	conn, err := dbus.Connect(bus.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	f.conn = conn
	for _, iface := range []string{installer, "org.freedesktop.DBus.Properties"} {
		if err := conn.Export(f, "/", iface); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.RequestName(service, 0); err != nil {
		t.Fatal(err)
	}
	return bus
}

func TestInstallLeavesOutOnlyWhatIsNotSupported(t *testing.T) {
	f := &fake{supported: map[string]bool{"transaction-id": true, "tls-ca": true, "ignore-compatible": true}}
	f.installed = func(dbus.Sender) { f.completed(0) }
	o := InstallOptions{TransactionID: "id", IgnoreCompatible: true, SourceOptions: SourceOptions{
		TLSCert: "/cert", TLSKey: "/key", TLSCA: "/ca", TLSNoVerify: true, Headers: []string{"A: b"},
	}}
	if err := dial(t, f.start(t)).Install(t.Context(), "https://host/b", o, nil); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"transaction-id": "id", "tls-ca": "/ca", "ignore-compatible": true}
	if diff := cmp.Diff(want, f.accepted()); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
}

func TestInstallPassesFineGrainedProgressInOrder(t *testing.T) {
	f := new(fake)
	var want []int
	f.installed = func(dbus.Sender) {
		for i := range int32(101) {
			f.change("Progress", progressValue{i, "Copying image to rootfs.1", 3})
		}
		f.change("Progress", "nonsense")
		f.completed(0)
	}
	for i := range 101 {
		want = append(want, i)
	}
	var got []int
	err := dial(t, f.start(t)).Install(t.Context(), "b", InstallOptions{}, func(percent int, _ string) { got = append(got, percent) })
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
}

func TestInstallTakesNobodyElsesResult(t *testing.T) {
	f := new(fake)
	strangers := make(chan *dbus.Conn, 1)
	f.install = func() {
		f.change("LastError", "of the installation before")
		f.completed(0) // of the installation before
	}
	f.installed = func(client dbus.Sender) {
		stranger := <-strangers
		stranger.Send(&dbus.Message{
			Type: dbus.TypeSignal,
			Headers: map[dbus.HeaderField]dbus.Variant{
				dbus.FieldDestination: dbus.MakeVariant(string(client)),
				dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath("/")),
				dbus.FieldInterface:   dbus.MakeVariant(installer),
				dbus.FieldMember:      dbus.MakeVariant("Completed"),
				dbus.FieldSignature:   dbus.MakeVariant(dbus.SignatureOf(int32(0))),
			},
			Body: []any{int32(0)},
		}, nil)
		time.Sleep(50 * time.Millisecond)
		f.change("LastError", "disk\n  on fire\n")
		f.completed(1)
	}
	bus := f.start(t)
	stranger, err := dbus.Connect(bus.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	strangers <- stranger
	err = dial(t, bus).Install(t.Context(), "b", InstallOptions{}, nil)
	if err == nil || err.Error() != "disk on fire" {
		t.Errorf("%v, want disk on fire", err)
	}
}

func TestFailureWithoutReasonIsStillAFailure(t *testing.T) {
	f := new(fake)
	f.installed = func(dbus.Sender) { f.completed(7) }
	if err := dial(t, f.start(t)).Install(t.Context(), "b", InstallOptions{}, nil); err == nil {
		t.Error("success")
	}
}

func TestInstallEndsWhenTheNameIsGivenUp(t *testing.T) {
	f := new(fake)
	f.installed = func(dbus.Sender) { f.conn.ReleaseName(service) }
	c := dial(t, f.start(t))
	done := background(func() error { return c.Install(t.Context(), "b", InstallOptions{}, nil) })
	if err := within(t, "install", done); !errors.Is(err, ErrLost) {
		t.Errorf("%v, want %v", err, ErrLost)
	}
}

func TestWaitGivesUpWhenBusyWasNoInstallation(t *testing.T) {
	f := new(fake)
	f.busy.Store(true)
	c := dial(t, f.start(t))
	done := background(func() error { return c.Wait(t.Context(), nil) })
	select {
	case err := <-done:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(4 * pollDelay):
	}
	f.busy.Store(false)
	if err := within(t, "wait", done); !errors.Is(err, ErrIdle) {
		t.Errorf("%v, want %v", err, ErrIdle)
	}
}

func TestInspectTellsAllAboutABundle(t *testing.T) {
	f := &fake{info: bundleInfo(), supported: map[string]bool{"tls-ca": true}}
	got, err := dial(t, f.start(t)).Inspect(t.Context(), "b", SourceOptions{TLSCA: "/ca", TLSNoVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	want := Bundle{
		Compatible: "machine", Version: "2", Description: "text", Build: "b1", Format: "verity", Hash: "ab12",
		Images: []Image{{Class: "rootfs", Filename: "rootfs.img", Type: "ext4", Size: 1 << 33}, {Class: "efi"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("bundle (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]any{"tls-ca": "/ca"}, f.accepted()); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
}

// bundleInfo has the shape that RAUC 1.15 gives it, with one member of a wrong type.
func bundleInfo() map[string]dbus.Variant {
	type info = map[string]dbus.Variant
	v := func(x any) dbus.Variant { return dbus.MakeVariant(x) }
	return info{
		"manifest-hash": v("ab12"),
		"update":        v(info{"compatible": v("machine"), "version": v("2"), "description": v("text"), "build": v("b1")}),
		"bundle":        v(info{"format": v("verity"), "verity-size": v(uint64(4096))}),
		"images": v([]info{
			{"slot-class": v("rootfs"), "filename": v("rootfs.img"), "type": v("ext4"), "size": v(uint64(1 << 33)), "hooks": v([]string{})},
			{"slot-class": v("efi"), "size": v("large")},
		}),
	}
}

func slotStatus() [][]any {
	v := func(x any) dbus.Variant { return dbus.MakeVariant(x) }
	return [][]any{
		{"rootfs.1", map[string]dbus.Variant{
			"class": v("rootfs"), "bootname": v("B"), "size": v(uint64(math.MaxUint64)), "installed.count": v(uint32(3)),
			"installed.transaction": v("id"), "bundle.hash": v("ab12"), "status": v("pending"), "new": v([]string{"thing"}),
		}},
		{"rootfs.0", map[string]dbus.Variant{"class": v(int32(1)), "size": v("large")}},
	}
}

func TestSlotStatusOfNewerVersionsIsUnderstood(t *testing.T) {
	got, err := decodeSlots(slotStatus())
	if err != nil {
		t.Fatal(err)
	}
	want := []Slot{
		{Name: "rootfs.0"},
		{Name: "rootfs.1", Class: "rootfs", Bootname: "B", Size: math.MaxUint64, Status: "pending", BundleHash: "ab12",
			Installed: Event{Count: 3, Transaction: "id"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("slots (-want +got):\n%s", diff)
	}
}

func TestCauseOfKnowsTextsOfOtherVersions(t *testing.T) {
	for text, want := range map[string]Cause{
		"Slot (1024 bytes) is too small for image (2048 bytes).":                    CauseSpace,
		"Invalid bundle format: Signature size (123) exceeds bundle size":           CauseDamaged,
		"signature verification failed: Verify error: certificate has expired":      CauseSignature,
		"Compatible mismatch: Expected 'signature' but bundle manifest has 'space'": CauseCompatible,
		"Couldn't connect to server":                                                CauseOther,
	} {
		if got := CauseOf(&Error{Text: text}); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

// message encodes what a service would send.
func message(f *testing.F, body ...any) []byte {
	f.Helper()
	msg := &dbus.Message{
		Type: dbus.TypeMethodReply,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldReplySerial: dbus.MakeVariant(uint32(1)),
			dbus.FieldSignature:   dbus.MakeVariant(dbus.SignatureOf(body...)),
		},
		Body: body,
	}
	var b bytes.Buffer
	if err := msg.EncodeTo(&b, binary.LittleEndian); err != nil {
		f.Fatal(err)
	}
	return b.Bytes()
}

// FuzzSlotStatus decodes arbitrary answers to GetSlotStatus.
func FuzzSlotStatus(f *testing.F) {
	type slot struct {
		Name  string
		State map[string]dbus.Variant
	}
	var status []slot
	for _, s := range slotStatus() {
		status = append(status, slot{s[0].(string), s[1].(map[string]dbus.Variant)})
	}
	f.Add(message(f, status))
	f.Add(message(f, []string{"rootfs.0"}))
	f.Add(message(f, [][]any{}))
	f.Fuzz(func(t *testing.T, data []byte) {
		msg, err := dbus.DecodeMessage(bytes.NewReader(data))
		if err != nil || len(msg.Body) == 0 {
			return
		}
		slots, err := decodeSlots(msg.Body[0])
		if err != nil {
			return
		}
		if want := len(msg.Body[0].([][]any)); len(slots) != want {
			t.Errorf("%d slots of %d", len(slots), want)
		}
		if !slices.IsSortedFunc(slots, func(a, b Slot) int { return strings.Compare(a.Name, b.Name) }) {
			t.Errorf("not in the order of names: %v", slots)
		}
	})
}

// FuzzMessage decodes arbitrary bundle descriptions and arguments of signals.
func FuzzMessage(f *testing.F) {
	f.Add(message(f, bundleInfo()))
	f.Add(message(f, installer, map[string]dbus.Variant{"Progress": dbus.MakeVariant(progressValue{1, "x", 1})}, []string{}))
	f.Add(message(f, service, ":1.1", ""))
	f.Add(message(f, service, ":1.1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		msg, err := dbus.DecodeMessage(bytes.NewReader(data))
		if err != nil || len(msg.Body) == 0 {
			return
		}
		info, _ := msg.Body[0].(map[string]dbus.Variant)
		decodeBundle(info)
		decodeProgress(changedProperties(msg.Body)["Progress"])
		if lost(msg.Body, ":1.1") && len(msg.Body) != 3 {
			t.Errorf("%v taken for the loss of the service", msg.Body)
		}
	})
}
