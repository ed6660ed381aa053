// SPDX-License-Identifier: Apache-2.0

package ctrmodel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func newID() string { return "1b2c" }

// valid is a container with its defaults, changed by all changes before that.
func valid(changes ...func(c *Container)) *Container {
	c := &Container{Name: "radio", Image: Image{Name: "registry.example/radio:1"}}
	for _, change := range changes {
		change(c)
	}
	c.Defaults(newID)
	return c
}

// full is a container of which no field is zero.
func full() *Container {
	c := new(Container)
	fill(reflect.ValueOf(c).Elem())
	return c
}

func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		e := reflect.New(v.Type().Elem()).Elem()
		fill(e)
		v.SetMapIndex(reflect.ValueOf("key"), e)
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(2)
	case reflect.Uint16:
		v.SetUint(2)
	default:
		panic("cannot fill a " + v.Type().String())
	}
}

func TestDefaultsFillInWhatIsMissing(t *testing.T) {
	c := &Container{
		Image:  Image{Name: "registry.example/radio:1"},
		Mounts: []Mount{{Source: "/a", Destination: "/b"}},
		HostConfig: HostConfig{
			Devices:   []Device{{OnHost: "/dev/x"}},
			Ports:     []Port{{Container: 80, HostPort: 8080}},
			Resources: Resources{Memory: "1.5g"},
		},
	}
	c.Defaults(newID)
	want := &Container{
		ID: "1b2c", Name: "1b2c", HostName: "1b2c-host", DomainName: "1b2c-domain",
		Image:  Image{Name: "registry.example/radio:1"},
		Mounts: []Mount{{Source: "/a", Destination: "/b", Propagation: "rprivate"}},
		HostConfig: HostConfig{
			Devices:       []Device{{"/dev/x", "/dev/x", "rwm"}},
			NetworkMode:   "bridge",
			RestartPolicy: RestartPolicy{Type: "unless-stopped"},
			Runtime:       "io.containerd.runc.v2",
			Ports:         []Port{{"tcp", 80, "0.0.0.0", 8080, 8080}},
			Log:           Log{LogDriver{Type: "json-file", MaxFiles: 2, MaxSize: "100M"}, LogMode{Mode: "blocking"}},
			Resources:     Resources{Memory: "1.5g", MemorySwap: "3g"},
		},
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Error(diff)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

func TestDefaultsOfLogsFollowTypeAndMode(t *testing.T) {
	for _, test := range []struct{ given, want Log }{
		{Log{LogDriver{Type: "none", MaxFiles: 5, MaxSize: "1M", RootDir: "/log"}, LogMode{}}, Log{LogDriver{Type: "none"}, LogMode{Mode: "blocking"}}},
		{Log{LogDriver{}, LogMode{Mode: "blocking", MaxBufferSize: "2M"}}, Log{LogDriver{Type: "json-file", MaxFiles: 2, MaxSize: "100M"}, LogMode{Mode: "blocking"}}},
		{Log{LogDriver{MaxSize: "1k"}, LogMode{Mode: "non-blocking"}}, Log{LogDriver{Type: "json-file", MaxFiles: 2, MaxSize: "1k"}, LogMode{"non-blocking", "1M"}}},
		{Log{LogDriver{MaxFiles: 1}, LogMode{"non-blocking", "4k"}}, Log{LogDriver{Type: "json-file", MaxFiles: 1, MaxSize: "100M"}, LogMode{"non-blocking", "4k"}}},
	} {
		c := valid(func(c *Container) { c.HostConfig.Log = test.given })
		if c.HostConfig.Log != test.want {
			t.Errorf("%+v: got %+v, want %+v", test.given, c.HostConfig.Log, test.want)
		}
	}
}

func TestSwapIsTwiceTheMemoryUnlessItIsSaid(t *testing.T) {
	for _, test := range []struct{ memory, swap, want string }{
		{"", "", ""},
		{"64M", "", "128M"},
		{"0.75 g", "", "1.5 g"},
		{"64M", "64M", "64M"},
		{"64M", "-1", "-1"},
	} {
		c := valid(func(c *Container) { c.HostConfig.Resources = Resources{Memory: test.memory, MemorySwap: test.swap} })
		if got := c.HostConfig.Resources.MemorySwap; got != test.want {
			t.Errorf("memory %q, swap %q: got %q, want %q", test.memory, test.swap, got, test.want)
		}
		if err := c.Validate(); err != nil {
			t.Error(err)
		}
	}
}

func TestDefaultsOfDefaultsAreTheSame(t *testing.T) {
	for _, c := range []*Container{full(), valid(), valid(func(c *Container) {
		c.HostConfig.Resources.Memory = "3M"
		c.HostConfig.Log.Mode.Mode = LogNonBlocking
		c.HostConfig.Ports = []Port{{HostPort: 7}}
	})} {
		c.Defaults(newID)
		again := c.Clone()
		again.Defaults(newID)
		if diff := cmp.Diff(c, again); diff != "" {
			t.Error(diff)
		}
	}
}

func TestLongNamesGetHostNamesThatLinuxTakes(t *testing.T) {
	c := valid(func(c *Container) { c.Name = strings.Repeat("n", 200) })
	if err := c.Validate(); err != nil || len(c.HostName) != 64 || !strings.HasSuffix(c.HostName, "n-host") || !strings.HasSuffix(c.DomainName, "n-domain") {
		t.Errorf("%v: host name %q, domain name %q", err, c.HostName, c.DomainName)
	}
}

func TestClonesShareNothing(t *testing.T) {
	c := full()
	d := c.Clone()
	if diff := cmp.Diff(c, d); diff != "" {
		t.Fatal(diff)
	}
	shares(t, "container", reflect.ValueOf(c), reflect.ValueOf(d))
	if diff := cmp.Diff(new(Container), new(Container).Clone()); diff != "" {
		t.Error(diff)
	}
}

func shares(t *testing.T, path string, a, b reflect.Value) {
	switch a.Kind() {
	case reflect.Pointer:
		if a.UnsafePointer() == b.UnsafePointer() {
			t.Errorf("%s is shared", path)
		}
		shares(t, path, a.Elem(), b.Elem())
	case reflect.Map:
		if a.UnsafePointer() == b.UnsafePointer() {
			t.Errorf("%s is shared", path)
		}
	case reflect.Slice:
		if a.UnsafePointer() == b.UnsafePointer() {
			t.Errorf("%s is shared", path)
		}
		for i := range a.Len() {
			shares(t, fmt.Sprintf("%s[%d]", path, i), a.Index(i), b.Index(i))
		}
	case reflect.Struct:
		for i := range a.NumField() {
			shares(t, path+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i))
		}
	}
}

// The files are what the original's kanto-cm prints, but for the read-only mounts.
func TestJSONIsAsItHasAlwaysBeen(t *testing.T) {
	for file, c := range map[string]*Container{"full": full(), "empty": {}} {
		want, err := os.ReadFile("testdata/" + file + ".json")
		if err != nil {
			t.Fatal(err)
		}
		got, err := json.MarshalIndent(c, "", "   ")
		if diff := cmp.Diff(string(want), string(got)+"\n"); err != nil || diff != "" {
			t.Error(file, err, diff)
		}
		var again Container
		err = json.Unmarshal(want, &again)
		if diff := cmp.Diff(c, &again); err != nil || diff != "" {
			t.Error(file, err, diff)
		}
	}
}

func TestStates(t *testing.T) {
	at := time.Date(2024, 5, 1, 10, 0, 0, 123, time.FixedZone("", 7200))
	const first, later = "2024-05-01T08:00:00.000000123Z", "2024-05-01T08:00:01.000000123Z"
	var s State
	for _, step := range []struct {
		name string
		set  func()
		want State
	}{
		{"created", s.SetCreated, State{PID: -1, Status: Created}},
		{"not started", func() { s.SetNotStarted("no such device") }, State{PID: -1, Error: "no such device", Status: Stopped}},
		{"running", func() { s.SetRunning(7, at) }, State{PID: 7, StartedAt: first, Running: true, Status: Running}},
		{"paused", s.SetPaused, State{PID: 7, StartedAt: first, Paused: true, Status: Paused}},
		{"resumed", s.SetResumed, State{PID: 7, StartedAt: first, Running: true, Status: Running}},
		{"exited", func() { s.SetExited(137, at, true, "no memory") },
			State{PID: -1, StartedAt: first, FinishedAt: first, ExitCode: 137, Exited: true, OOMKilled: true, Error: "no memory", Status: Exited}},
		{"running again", func() { s.SetRunning(8, at.Add(time.Second)) },
			State{PID: 8, StartedAt: later, FinishedAt: first, Running: true, Status: Running}},
		{"stopped", func() { s.SetStopped(3, at.Add(time.Second)) }, State{PID: -1, StartedAt: later, FinishedAt: later, ExitCode: 3, Status: Stopped}},
		{"dead", s.SetDead, State{PID: -1, StartedAt: later, FinishedAt: later, ExitCode: 3, Dead: true, Status: Dead}},
	} {
		step.set()
		if s != step.want {
			t.Errorf("%s: got %+v, want %+v", step.name, s, step.want)
		}
		if s.HasProcess() != (s.PID > 0) {
			t.Errorf("%s: HasProcess %v with PID %d", step.name, s.HasProcess(), s.PID)
		}
	}
}

func TestStatusesAndHooksHaveNames(t *testing.T) {
	for s, want := range map[Status]string{Creating: "Creating", Exited: "Exited", Unknown: "Unknown", -1: "Unknown", 99: "Unknown"} {
		if s.String() != want || ParseStatus(want).String() != want {
			t.Errorf("%d: %q, back %v, want %q", int(s), s, ParseStatus(want), want)
		}
	}
	for h, want := range map[HookType]string{Prestart: "Prestart", Poststop: "Poststop", 9: "Unknown"} {
		if h.String() != want || ParseHookType(want).String() != want {
			t.Errorf("%d: %q, want %q", int(h), h, want)
		}
	}
	if ParseStatus("running") != Unknown || ParseHookType("") != UnknownHook {
		t.Error("a text that is none has a value")
	}
}

func TestErrorsHaveTheKindGivenLast(t *testing.T) {
	inner := Errorf(NotFound, "no container %s", "x")
	for _, test := range []struct {
		err  error
		kind Kind
		text string
	}{
		{inner, NotFound, "no container x"},
		{fmt.Errorf("cannot start: %w", inner), NotFound, "cannot start: no container x"},
		{Errorf(Unavailable, "later: %w", inner), Unavailable, "later: no container x"},
		{errors.New("plain"), Internal, "plain"},
		{fmt.Errorf("pull: %w", context.Canceled), Cancelled, "pull: context canceled"},
		{fmt.Errorf("pull: %w", context.DeadlineExceeded), DeadlineExceeded, "pull: context deadline exceeded"},
		{Errorf(Unavailable, "stalled: %w", context.DeadlineExceeded), Unavailable, "stalled: context deadline exceeded"},
	} {
		if KindOf(test.err) != test.kind || test.err.Error() != test.text {
			t.Errorf("%v: kind %d, want %d and %q", test.err, KindOf(test.err), test.kind, test.text)
		}
	}
	if !errors.Is(Errorf(Unavailable, "a: %w", os.ErrNotExist), os.ErrNotExist) {
		t.Error("what is wrapped is lost")
	}
}
