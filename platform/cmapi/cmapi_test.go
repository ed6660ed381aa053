// SPDX-License-Identifier: Apache-2.0

package cmapi

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/grpc"
	"sdvbox/platform/protobuf"
)

// fake is an engine that does what its fields say, and notes what it is asked.
type fake struct {
	mu         sync.Mutex
	calls      []string
	containers []*ctrmodel.Container
	err        error
	log        []string
	follow     chan string
	attach     func(s ctrmodel.Streams, attached func()) error
	exec       func(o ctrmodel.ExecOptions, s ctrmodel.Streams) (int, error)
	events     chan ctrmodel.Event
	pull       func(progress func(ctrmodel.Progress)) error
}

func (f *fake) note(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.err
}

func (f *fake) noted() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	return calls
}

func (f *fake) List(context.Context) ([]*ctrmodel.Container, error) {
	return f.containers, f.note("list")
}

func (f *fake) Get(_ context.Context, id string) (*ctrmodel.Container, error) {
	if err := f.note("get %s", id); err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(f.containers, func(c *ctrmodel.Container) bool { return c.ID == id }); i >= 0 {
		return f.containers[i].Clone(), nil
	}
	return nil, ctrmodel.Errorf(ctrmodel.NotFound, "no container %s", id)
}

func (f *fake) Create(_ context.Context, c *ctrmodel.Container) (*ctrmodel.Container, error) {
	if err := f.note("create"); err != nil {
		return nil, err
	}
	c.Defaults(func() string { return "1b2c" })
	f.containers = append(f.containers, c)
	return c.Clone(), nil
}

func (f *fake) Start(_ context.Context, id string) error { return f.note("start %s", id) }
func (f *fake) Stop(_ context.Context, id string, o ctrmodel.StopOptions) error {
	return f.note("stop %s %+v", id, o)
}
func (f *fake) Restart(_ context.Context, id string, o ctrmodel.StopOptions) error {
	return f.note("restart %s %+v", id, o)
}
func (f *fake) Pause(_ context.Context, id string) error   { return f.note("pause %s", id) }
func (f *fake) Unpause(_ context.Context, id string) error { return f.note("unpause %s", id) }
func (f *fake) Rename(_ context.Context, id, name string) error {
	return f.note("rename %s %s", id, name)
}
func (f *fake) Update(_ context.Context, id string, o ctrmodel.UpdateOptions) error {
	return f.note("update %s policy %+v resources %+v", id, o.RestartPolicy, o.Resources)
}
func (f *fake) Remove(_ context.Context, id string, force bool, o ctrmodel.StopOptions) error {
	return f.note("remove %s %v %+v", id, force, o)
}
func (f *fake) Attach(_ context.Context, id string, s ctrmodel.Streams, attached func()) error {
	if err := f.note("attach %s", id); err != nil {
		return err
	}
	return f.attach(s, attached)
}
func (f *fake) Exec(_ context.Context, id string, o ctrmodel.ExecOptions, s ctrmodel.Streams) (int, error) {
	if err := f.note("exec %s %+v", id, o); err != nil {
		return 0, err
	}
	return f.exec(o, s)
}

func (f *fake) Logs(ctx context.Context, id string, o ctrmodel.LogOptions, yield func(line []byte) error) error {
	if err := f.note("logs %s %+v", id, o); err != nil {
		return err
	}
	lines := f.log
	if o.Tail >= 0 {
		lines = lines[max(0, len(lines)-o.Tail):]
	}
	var line []byte
	for _, text := range lines {
		line = append(line[:0], text...) // as valid as long as promised
		if err := yield(line); err != nil {
			return err
		}
	}
	for o.Follow {
		select {
		case text, ok := <-f.follow:
			if !ok {
				return nil
			}
			if err := yield([]byte(text)); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (f *fake) Stats(_ context.Context, id string) (ctrmodel.Stats, error) {
	if id == "gone" {
		return ctrmodel.Stats{}, ctrmodel.Errorf(ctrmodel.NotFound, "no container gone")
	}
	return used, f.note("stats %s", id)
}

func (f *fake) Subscribe(ctx context.Context) <-chan ctrmodel.Event {
	_ = f.note("subscribe")
	events := make(chan ctrmodel.Event)
	go func() {
		defer close(events)
		for {
			select {
			case e, ok := <-f.events:
				if !ok {
					return
				}
				events <- e
			case <-ctx.Done():
				return
			}
		}
	}()
	return events
}

func (f *fake) Pull(_ context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error) {
	if err := f.note("pull %s", name); err != nil {
		return ctrmodel.StoredImage{}, err
	}
	return ctrmodel.StoredImage{Name: name, Digest: "sha256:1", Size: 7, Created: time.Unix(9, 0).UTC(), Used: true}, f.pull(progress)
}

func (f *fake) Refresh(_ context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error) {
	return ctrmodel.StoredImage{Name: name, Digest: "sha256:2"}, f.note("refresh %s", name)
}

func (f *fake) RemoveImage(_ context.Context, name string) error {
	return f.note("remove image %s", name)
}
func (f *fake) Deploy(context.Context) error { return f.note("deploy") }

func (f *fake) Images(context.Context) ([]ctrmodel.StoredImage, error) {
	return []ctrmodel.StoredImage{{Name: "a"}, {Name: "b", Size: 1}}, f.note("images")
}

// used is what each container uses.
var used = ctrmodel.Stats{
	Time: time.Unix(7, 8).UTC(), CPU: 1, SystemCPU: 2, Memory: 3, MemoryMax: 4, ReadBytes: 5, WriteBytes: 6, NetRead: 7, NetWritten: 8, PIDs: 9,
}

// start serves an engine, and returns a client of it.
func start(t *testing.T, f *fake) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "cm.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	Register(s, f, ProjectInfo{"1.2.3", "today", "1.0.0", "abc"})
	served := make(chan error)
	go func() { served <- s.Serve(l) }()
	c := NewClient(socket)
	t.Cleanup(func() {
		c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c
}

// full is a container of which every field has another value.
func full(n int) *ctrmodel.Container {
	c := new(ctrmodel.Container)
	fill(reflect.ValueOf(c).Elem(), &n)
	c.HostConfig.RestartPolicy.RetryTimeout = time.Duration(n) * time.Second
	c.Hooks[0].Type, c.Hooks[1].Type, c.State.Status = ctrmodel.Poststart, ctrmodel.Poststop, ctrmodel.Paused
	return c
}

func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n)
		fill(v.Index(1), n)
	case reflect.Map:
		e := reflect.New(v.Type().Elem()).Elem()
		fill(e, n)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key"), e)
	case reflect.String:
		v.SetString(fmt.Sprint("text", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint16:
		v.SetUint(uint64(*n))
	default:
		v.SetInt(int64(*n))
	}
}

func TestContainersComeAcrossWhole(t *testing.T) {
	stored := func(c *ctrmodel.Container) *ctrmodel.Container {
		c.StartedBefore = false // only in the store
		return c
	}
	f := &fake{containers: []*ctrmodel.Container{full(0), {}, full(1000)}}
	c := start(t, f)
	got, err := c.List(t.Context())
	if diff := cmp.Diff([]*ctrmodel.Container{stored(full(0)), {}, stored(full(1000))}, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	f.containers[1].ID = "x"
	for _, want := range f.containers {
		if got, err := c.Get(t.Context(), want.ID); err != nil || !cmp.Equal(got, stored(want.Clone())) {
			t.Error(err, cmp.Diff(stored(want.Clone()), got))
		}
	}
	if c, err := c.Get(t.Context(), "y"); c != nil || ctrmodel.KindOf(err) != ctrmodel.NotFound {
		t.Error(c, err)
	}
}

func TestCreateTakesWhatIsWantedOnly(t *testing.T) {
	f := &fake{}
	c := start(t, f)
	sent := full(0)
	want := sent.Clone()
	want.Forget()
	got, err := c.Create(t.Context(), sent)
	if diff := cmp.Diff(want, f.containers[0]); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got, err = c.Create(t.Context(), &ctrmodel.Container{}); err != nil || got.ID != "1b2c" || got.HostConfig.Runtime == "" {
		t.Error(err, got)
	}
}

// The other side may be another program: numbers that fit in its type, but are no ports.
func TestCreateRefusesWhatIsNoContainer(t *testing.T) {
	c := start(t, &fake{})
	for _, test := range []struct {
		request *containerMessage
		text    string
	}{
		{&containerMessage{}, "the container is missing"},
		{&containerMessage{&container{HostConfig: &hostConfig{Ports: []*port{{HostPort: 1}, {HostPort: 65536}}}}}, "host_config: port_mappings[1]: 65536 is not a port"},
		{&containerMessage{&container{HostConfig: &hostConfig{Ports: []*port{{Container: -1}}}}}, "-1 is not a port"},
		{&containerMessage{&container{HostConfig: &hostConfig{Ports: []*port{{HostPortEnd: math.MinInt64}}}}}, "is not a port"},
	} {
		err := c.grpc.Call(t.Context(), containersService+"Create", test.request, &containerMessage{})
		if grpc.CodeOf(err) != grpc.InvalidArgument || !strings.Contains(err.Error(), test.text) {
			t.Errorf("got %v, want %s", err, test.text)
		}
	}
}

func TestMessagesAlwaysHaveWhatClientsRelyOn(t *testing.T) {
	m := fromContainer(&ctrmodel.Container{})
	if m.Image == nil || m.HostConfig == nil || m.IOConfig == nil || m.State == nil {
		t.Errorf("%+v", m)
	}
	if m.Config != nil || m.NetworkSettings != nil || m.HostConfig.Resources != nil {
		t.Errorf("there is more than there was: %+v, %+v", m, m.HostConfig)
	}
}

func TestRetryTimeoutsAreSecondsRoundedUp(t *testing.T) {
	for d, want := range map[time.Duration]int64{0: 0, 1: 1, time.Second: 1, 1500 * time.Millisecond: 2, 30 * time.Second: 30, math.MaxInt64: 9223372037} {
		if got := fromRestartPolicy(ctrmodel.RestartPolicy{RetryTimeout: d}).RetryTimeout; got != want {
			t.Errorf("%v: got %d s, want %d", d, got, want)
		}
	}
}

// numbers lists the fields of a message with their numbers, as a person with the table of the interface would read it.
func numbers(t *testing.T, path string, data []byte, lines map[string]string) {
	for len(data) > 0 {
		tag, n := binary.Uvarint(data)
		data = data[n:]
		at := fmt.Sprintf("%s%d", path, tag>>3)
		v, n := binary.Uvarint(data)
		data = data[n:]
		switch tag & 7 {
		case 0:
			lines[at] = fmt.Sprint(v)
		case 2:
			if text := string(data[:v]); strings.HasPrefix(text, "text") || text == "key" || !strings.ContainsFunc(text, func(r rune) bool { return r < 'A' }) {
				lines[at] = text
			} else {
				numbers(t, at+".", data[:v], lines)
			}
			data = data[v:]
		default:
			t.Fatalf("%s: wire type %d", at, tag&7)
		}
	}
}

func TestFieldsHaveTheirNumbers(t *testing.T) {
	data, err := protobuf.Marshal(fromContainer(full(0)))
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]string{}
	numbers(t, "", data, lines)
	var got strings.Builder
	for _, at := range slices.Sorted(maps.Keys(lines)) {
		fmt.Fprintln(&got, at, lines[at])
	}
	want, err := os.ReadFile("testdata/numbers.txt")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Error(diff)
	}
}

func TestManualHasTheMessagesOfTheSecondService(t *testing.T) {
	manual, err := os.ReadFile("../../docs/containers-api.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, message := range map[string]any{
		"Event": event{}, "StatsRequest": statsRequest{}, "StatsResponse": statsResponse{}, "Stats": stats{},
		"ExecRequest": execRequest{}, "ExecResponse": execResponse{}, "PullRequest": pullRequest{}, "RemoveImageRequest": removeImageRequest{}, "PullResponse": pullResponse{},
		"ImagesResponse": imagesResponse{}, "Image": storedImage{}, "FollowLogsRequest": logsRequest{}, "FollowLogsResponse": logsResponse{},
	} {
		_, text, _ := strings.Cut(string(manual), "\nmessage "+name+" {\n")
		text, _, _ = strings.Cut(text, "\n}")
		var got, want []string
		for _, field := range regexp.MustCompile(`(?m)^ +((?:repeated )?)(?:optional )?(\S+) \w+ = (\d+);`).FindAllStringSubmatch(text, -1) {
			got = append(got, field[3]+" "+field[1]+field[2])
		}
		types := map[string]string{
			"[]string": "repeated string", "[]uint8": "bytes", "*int32": "int32", "*protobuf.Timestamp": "google.protobuf.Timestamp",
			"*cmapi.container": "Container", "*cmapi.windowSize": "WindowSize", "[]*cmapi.stats": "repeated Stats",
			"*cmapi.storedImage": "Image", "[]*cmapi.storedImage": "repeated Image",
		}
		for f := range reflect.TypeOf(message).Fields() {
			kind := f.Type.String()
			if known, ok := types[kind]; ok {
				kind = known
			}
			want = append(want, f.Tag.Get("pb")+" "+kind)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// Booleans all look the same: each is set alone.
func TestBooleansHaveTheirNumbers(t *testing.T) {
	for number, message := range map[int]any{
		3: &hostConfig{Privileged: true}, 17: &container{ManuallyStopped: true}, 100: &mount{ReadOnly: true},
	} {
		wantNumber(t, number, message)
	}
	for number, c := range map[int]ctrmodel.IOConfig{
		1: {AttachStderr: true}, 2: {AttachStdin: true}, 3: {AttachStdout: true}, 4: {OpenStdin: true}, 5: {StdinOnce: true}, 6: {TTY: true},
	} {
		wantNumber(t, number, (*ioConfig)(&c))
	}
	for number, s := range map[int]ctrmodel.State{
		6: {Exited: true}, 7: {Dead: true}, 8: {Restarting: true}, 9: {Paused: true}, 10: {Running: true}, 12: {OOMKilled: true},
	} {
		m := fromState(&s)
		m.Status = ""
		wantNumber(t, number, m)
	}
}

func wantNumber(t *testing.T, number int, message any) {
	t.Helper()
	got, err := protobuf.Marshal(message)
	if want := append(binary.AppendUvarint(nil, uint64(number)<<3), 1); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%+v: got %x, %v, want %x", message, got, err, want)
	}
}

// The requests and responses, by hand.
func TestRequestsHaveTheirNumbers(t *testing.T) {
	three := int32(3)
	for _, test := range []struct {
		message any
		want    string
	}{
		{&containerMessage{&container{ID: "a"}}, "\n\x03\n\x01a"},
		{&containersMessage{[]*container{{ID: "a"}, {}}}, "\n\x03\n\x01a\n\x00"},
		{&idRequest{"a"}, "\n\x01a"},
		{&stopRequest{"a", &stopOptions{5, true, "x"}}, "\n\x01a\x12\x07\x08\x05\x10\x01\x1a\x01x"},
		{&updateRequest{"a", &updateOptions{&restartPolicy{}, &resources{}}}, "\n\x01a\x12\x04\n\x00\x12\x00"},
		{&renameRequest{"a", "b"}, "\n\x01a\x12\x01b"},
		{&removeRequest{"a", true, &stopOptions{}}, "\n\x01a\x10\x01\x1a\x00"},
		{&logsRequest{"a", 7, true}, "\n\x01a\x10\x07\x18\x01"},
		{&logsRequest{Tail: -1}, "\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"},
		{&logsResponse{"a"}, "\n\x01a"},
		{&attachRequest{"a", true, true, []byte("b"), nil}, "\n\x01a\x10\x01 \x01R\x01b"},
		{&attachRequest{Window: &windowSize{1, 2}}, "\xa2\x06\x04\x08\x01\x10\x02"},
		{&attachResponse{"a", true, []byte("b"), true}, "\n\x01a\x10\x01R\x01b\xa0\x06\x01"},
		{&projectInfoResponse{&projectInfo{"a", "b", "c", "d"}}, "\n\x0c\n\x01a\x12\x01b\x1a\x01c\"\x01d"},

		{&event{&protobuf.Timestamp{Seconds: 1}, "b", &container{}}, "\n\x02\x08\x01\x12\x01b\x1a\x00"},
		{&statsRequest{[]string{"a", "b"}}, "\n\x01a\n\x01b"},
		{&statsResponse{[]*stats{{"a", &protobuf.Timestamp{}, 3, 4, 5, 6, 7, 8, 9, 10, 11}}},
			"\n\x17\n\x01a\x12\x00\x18\x03 \x04(\x050\x068\x07@\x08H\x09P\x0aX\x0b"},
		{&execRequest{"a", []string{"b"}, []string{"c"}, "d", "e", true, false, true, []byte("f"), false, nil},
			"\n\x01a\x12\x01b\x1a\x01c\"\x01d*\x01e0\x01@\x01R\x01f"},
		{&execRequest{Privileged: true, Finish: true, Window: &windowSize{}}, "8\x01X\x01b\x00"},
		{&execResponse{[]byte("a"), []byte("b"), &three}, "\n\x01a\x12\x01b\x18\x03"},
		{&pullRequest{"a", true}, "\n\x01a\x10\x01"},
		{&pullResponse{"a", 2, 3, &storedImage{"a", "b", 3, &protobuf.Timestamp{}, true}},
			"\n\x01a\x10\x02\x18\x03\"\x0c\n\x01a\x12\x01b\x18\x03\"\x00(\x01"},
		{&imagesResponse{[]*storedImage{{}}}, "\n\x00"},
	} {
		if got, err := protobuf.Marshal(test.message); err != nil || string(got) != test.want {
			t.Errorf("%+v: got %q, %v, want %q", test.message, got, err, test.want)
		}
	}
}

func TestCallsReachTheEngine(t *testing.T) {
	f := &fake{}
	c := start(t, f)
	ctx := t.Context()
	o := ctrmodel.StopOptions{Timeout: 5, Force: true, Signal: "SIGINT"}
	for _, test := range []struct {
		call func() error
		want string
	}{
		{func() error { return c.Start(ctx, "a") }, "start a"},
		{func() error { return c.Stop(ctx, "a", o) }, "stop a {Timeout:5 Force:true Signal:SIGINT}"},
		{func() error { return c.Restart(ctx, "a", o) }, "restart a {Timeout:5 Force:true Signal:SIGINT}"},
		{func() error { return c.Pause(ctx, "a") }, "pause a"},
		{func() error { return c.Unpause(ctx, "a") }, "unpause a"},
		{func() error { return c.Rename(ctx, "a", "b") }, "rename a b"},
		{func() error { return c.Rename(ctx, "a", "") }, ""},
		{func() error { return c.Remove(ctx, "a", true, o) }, "remove a true {Timeout:5 Force:true Signal:SIGINT}"},
		{func() error { return c.Update(ctx, "a", ctrmodel.UpdateOptions{}) }, "update a policy <nil> resources <nil>"},
		{func() error { return c.Update(ctx, "a", ctrmodel.UpdateOptions{Resources: &ctrmodel.Resources{}}) },
			"update a policy <nil> resources &{Memory: MemoryReservation: MemorySwap:}"},
		{func() error {
			return c.Update(ctx, "a", ctrmodel.UpdateOptions{RestartPolicy: &ctrmodel.RestartPolicy{Type: "no", RetryTimeout: time.Minute}})
		}, "update a policy &{MaxRetries:0 RetryTimeout:1m0s Type:no} resources <nil>"},

		// What older clients leave out.
		{func() error { return c.do(ctx, "Stop", &stopRequest{ID: "a"}) }, "stop a {Timeout:0 Force:false Signal:}"},
		{func() error { return c.do(ctx, "Restart", &stopRequest{ID: "a"}) }, "restart a {Timeout:0 Force:true Signal:}"},
		{func() error { return c.do(ctx, "Remove", &removeRequest{ID: "a", Force: true}) }, "remove a true {Timeout:0 Force:true Signal:}"},
		{func() error { return c.do(ctx, "Remove", &removeRequest{ID: "a"}) }, "remove a false {Timeout:0 Force:false Signal:}"},
		{func() error { return c.do(ctx, "Update", &updateRequest{ID: "a"}) }, ""},
	} {
		f.err = nil
		if err := test.call(); err != nil {
			t.Errorf("%s: %v", test.want, err)
		}
		if got := strings.Join(f.noted(), "\n"); got != test.want {
			t.Errorf("got %s, want %s", got, test.want)
		}
		if f.err = ctrmodel.Errorf(ctrmodel.FailedPrecondition, "not now"); test.want != "" {
			if err := test.call(); ctrmodel.KindOf(err) != ctrmodel.FailedPrecondition || err.Error() != "not now" {
				t.Errorf("%s: the engine's error becomes %v", test.want, err)
			}
			f.noted()
		}
	}
	info, err := c.ProjectInfo(ctx)
	if want := (ProjectInfo{"1.2.3", "today", "1.0.0", "abc"}); err != nil || info != want {
		t.Error(info, err)
	}
}

func TestErrorsKeepTheirKinds(t *testing.T) {
	f := &fake{}
	c := start(t, f)
	for k, code := range codes {
		f.err = fmt.Errorf("starting: %w", ctrmodel.Errorf(ctrmodel.Kind(k), "because"))
		err := c.Start(t.Context(), "a")
		if ctrmodel.KindOf(err) != ctrmodel.Kind(k) || grpc.CodeOf(err) != code || err.Error() != "starting: because" {
			t.Errorf("kind %d becomes %d with code %v: %v", k, ctrmodel.KindOf(err), grpc.CodeOf(err), err)
		}
	}
	for _, test := range []struct {
		err  error
		kind ctrmodel.Kind
	}{
		{errors.New("x"), ctrmodel.Internal},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), ctrmodel.DeadlineExceeded},
		{fmt.Errorf("containerd: %w", grpc.Errorf(grpc.Unavailable, "x")), ctrmodel.Unavailable},
		{fmt.Errorf("containerd: %w", grpc.Errorf(grpc.NotFound, "x")), ctrmodel.Internal}, // not what the client asked for
		{ctrmodel.Errorf(ctrmodel.AlreadyExists, "%w", grpc.Errorf(grpc.Unavailable, "x")), ctrmodel.AlreadyExists},
	} {
		f.err = test.err
		for _, method := range []func() error{
			func() error { return c.Start(t.Context(), "a") },
			func() error { _, err := c.List(t.Context()); return err },
			func() error { _, err := c.Get(t.Context(), "a"); return err },
			func() error { return c.Attach(t.Context(), "a", ctrmodel.Streams{}, nil) },
			func() error { return c.Logs(t.Context(), "a", ctrmodel.LogOptions{}, nil) },
			func() error { return c.Logs(t.Context(), "a", ctrmodel.LogOptions{Tail: -1}, nil) },
			func() error { return c.Logs(t.Context(), "a", ctrmodel.LogOptions{Follow: true}, nil) },
			func() error {
				_, err := c.Exec(t.Context(), "a", ctrmodel.ExecOptions{}, ctrmodel.Streams{})
				return err
			},
			func() error { _, err := c.Pull(t.Context(), "a", nil); return err },
			func() error { _, err := c.Refresh(t.Context(), "a", nil); return err },
			func() error { _, err := c.Images(t.Context()); return err },
			func() error { return c.RemoveImage(t.Context(), "a") },
			func() error { return c.Deploy(t.Context()) },
			func() error { _, err := c.Stats(t.Context(), "a"); return err },
			func() error { _, err := c.Stats(t.Context()); return err },
		} {
			if err := method(); ctrmodel.KindOf(err) != test.kind {
				t.Errorf("%v becomes %v of kind %d, want %d", test.err, err, ctrmodel.KindOf(err), test.kind)
			}
		}
	}
}

func TestNobodyThereIsUnavailable(t *testing.T) {
	for _, host := range []string{filepath.Join(t.TempDir(), "cm.sock"), "unix:///nowhere/cm.sock", "tcp://127.0.0.1:1"} {
		c := NewClient(host)
		defer c.Close()
		if err := c.Start(t.Context(), "a"); ctrmodel.KindOf(err) != ctrmodel.Unavailable {
			t.Errorf("%s: %v", host, err)
		}
	}
}

func collect(t *testing.T, c *Client, o ctrmodel.LogOptions) []string {
	t.Helper()
	var lines []string
	if err := c.Logs(t.Context(), "a", o, func(line []byte) error {
		lines = append(lines, string(line))
		return nil
	}); err != nil {
		t.Error(err)
	}
	return lines
}

func TestLogsHaveEachLine(t *testing.T) {
	f := &fake{}
	for i := range 100_000 {
		f.log = append(f.log, fmt.Sprintf(`{"stream":"stdout","log":"line %d of ünïcode\n","time":"2024-05-01T10:00:00.123456789Z"}`, i))
	}
	c := start(t, f)
	for _, test := range []struct{ tail, want int }{{-1, 100_000}, {0, 0}, {1, 1}, {7, 7}, {200_000, 100_000}} {
		if got := collect(t, c, ctrmodel.LogOptions{Tail: test.tail}); !slices.Equal(got, f.log[len(f.log)-test.want:]) {
			t.Errorf("tail %d: got %d lines, want %d", test.tail, len(got), test.want)
		}
	}
}

// The messages are as clients of the original know them.
func TestLogsAreChunksOrLines(t *testing.T) {
	f := &fake{log: slices.Repeat([]string{strings.Repeat("x", 1<<20)}, 7)}
	c := start(t, f)
	sizes := func(tail int32) (sizes []int) {
		if err := receive(t.Context(), c, containersService+"Logs", &logsRequest{ID: "a", Tail: tail}, func(r *logsResponse) error {
			sizes = append(sizes, len(r.Log))
			return nil
		}); err != nil {
			t.Error(err)
		}
		return sizes
	}
	const line = 1<<20 + 1
	if got, want := sizes(-1), []int{3 * line, 3 * line, line}; !slices.Equal(got, want) {
		t.Errorf("all: got %d, want %d", got, want)
	}
	if got, want := sizes(2), []int{1 << 20, 1 << 20}; !slices.Equal(got, want) {
		t.Errorf("two lines: got %d, want %d", got, want)
	}
	f.log = f.log[:6]
	if got, want := sizes(-1), []int{3 * line, 3 * line, 0}; !slices.Equal(got, want) {
		t.Errorf("all, with nothing after the last chunk: got %d, want %d", got, want)
	}
	f.log = nil
	if got, want := sizes(-1), []int{0}; !slices.Equal(got, want) {
		t.Errorf("empty: got %d, want %d", got, want)
	}
}

func TestDamagedLogsAreStillSent(t *testing.T) {
	c := start(t, &fake{log: []string{"a\xffb", "c"}})
	for _, tail := range []int{-1, 5} {
		if got, want := collect(t, c, ctrmodel.LogOptions{Tail: tail}), []string{"a\uFFFDb", "c"}; !slices.Equal(got, want) {
			t.Errorf("tail %d: got %q, want %q", tail, got, want)
		}
	}
}

func TestLogsAreFollowed(t *testing.T) {
	f := &fake{log: []string{"1", "2"}, follow: make(chan string)}
	c := start(t, f)
	enough := errors.New("enough")
	var got []string
	err := c.Logs(t.Context(), "a", ctrmodel.LogOptions{Tail: 1, Follow: true}, func(line []byte) error {
		got = append(got, string(line))
		switch len(got) {
		case 1:
			go func() { f.follow <- "3"; f.follow <- "4" }() // the first has to arrive without the second
		case 3:
			return enough
		}
		return nil
	})
	if want := []string{"2", "3", "4"}; err != enough || !slices.Equal(got, want) {
		t.Errorf("got %q and %v, want %q", got, err, want)
	}
	close(f.follow)
	if got := collect(t, c, ctrmodel.LogOptions{Tail: 2, Follow: true}); len(got) != 2 {
		t.Errorf("got %q of a log that has ended", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.follow = make(chan string)
	if err := c.Logs(ctx, "a", ctrmodel.LogOptions{Tail: 1, Follow: true}, func([]byte) error { cancel(); return nil }); ctrmodel.KindOf(err) != ctrmodel.Cancelled {
		t.Errorf("got %v", err)
	}
}

func TestAttachConnectsTheStreams(t *testing.T) {
	got := make(chan string, 1)
	f := &fake{attach: func(s ctrmodel.Streams, attached func()) error {
		attached()
		fmt.Fprint(s.Stdout, "out")
		fmt.Fprint(s.Stderr, "err")
		text, err := io.ReadAll(s.Stdin)
		got <- fmt.Sprint(<-s.Resize, len(text), err)
		_, err = s.Stdout.Write(bytes.Repeat([]byte("x"), 5<<20))
		return err
	}}
	c := start(t, f)
	var stdout, stderr bytes.Buffer
	resize := make(chan ctrmodel.WindowSize, 1)
	resize <- ctrmodel.WindowSize{Width: 80, Height: 25}
	attached := 0
	err := c.Attach(t.Context(), "a", ctrmodel.Streams{
		Stdin: strings.NewReader(strings.Repeat("y", 3<<20)), Stdout: &stdout, Stderr: &stderr, Resize: resize,
	}, func() {
		if attached++; stdout.Len() > 0 {
			t.Error("output before it is attached")
		}
	})
	if err != nil || attached != 1 {
		t.Errorf("%v, attached %d times", err, attached)
	}
	if got, want := <-got, "{80 25} 3145728 <nil>"; got != want {
		t.Errorf("the process got %s, want %s", got, want)
	}
	if stdout.Len() != 3+5<<20 || stderr.String() != "err" {
		t.Errorf("got %d bytes and %q", stdout.Len(), stderr.String())
	}
}

func TestProcessBeginsWithTheSizeThatIsKnown(t *testing.T) {
	f := &fake{exec: func(_ ctrmodel.ExecOptions, s ctrmodel.Streams) (int, error) {
		select {
		case size := <-s.Resize:
			return int(size.Width), nil
		default:
			return 0, nil
		}
	}}
	c := start(t, f)
	for range 20 { // what comes late is not always late
		resize := make(chan ctrmodel.WindowSize, 1)
		resize <- ctrmodel.WindowSize{Width: 101, Height: 23}
		if width, err := c.Exec(t.Context(), "a", ctrmodel.ExecOptions{TTY: true}, ctrmodel.Streams{Resize: resize}); width != 101 || err != nil {
			t.Fatalf("width %d, %v", width, err)
		}
	}
	closed := make(chan ctrmodel.WindowSize)
	close(closed)
	if width, err := c.Exec(t.Context(), "a", ctrmodel.ExecOptions{TTY: true}, ctrmodel.Streams{Resize: closed}); width != 0 || err != nil {
		t.Errorf("without a size: width %d, %v", width, err)
	}

	// Clients may tell it later, as they had to.
	f.exec = func(_ ctrmodel.ExecOptions, s ctrmodel.Streams) (int, error) { return int((<-s.Resize).Width), nil }
	resize := make(chan ctrmodel.WindowSize)
	go func() { resize <- ctrmodel.WindowSize{Width: 80, Height: 25} }()
	if width, err := c.Exec(t.Context(), "a", ctrmodel.ExecOptions{TTY: true}, ctrmodel.Streams{Resize: resize}); width != 80 || err != nil {
		t.Errorf("told later: width %d, %v", width, err)
	}
}

// A process that does not read, or is gone, must not hold up anybody.
func TestInputThatNobodyReadsIsDropped(t *testing.T) {
	ended := make(chan bool)
	f := &fake{attach: func(s ctrmodel.Streams, attached func()) error {
		attached()
		if s.Stdin != nil {
			t.Error("stdin is connected")
		}
		<-ended
		return nil
	}}
	c := start(t, f)
	st, err := c.grpc.Stream(t.Context(), containersService+"Attach")
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	for _, r := range []*attachRequest{{ID: "a"}, {Data: []byte("x")}, {Window: &windowSize{}}, {Window: &windowSize{}}, {Data: make([]byte, 4<<20)}} {
		if err := st.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	close(ended)
	if err := receiveAll(st, func(*attachResponse) error { return nil }); err != nil {
		t.Error(err)
	}
}

func TestClientThatGoesEndsTheInput(t *testing.T) {
	ended := make(chan error)
	f := &fake{attach: func(s ctrmodel.Streams, attached func()) error {
		attached()
		_, err := io.ReadAll(s.Stdin)
		ended <- err
		return err
	}}
	c := start(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	in, w := io.Pipe()
	defer w.Close()
	err := c.Attach(ctx, "a", ctrmodel.Streams{Stdin: in}, cancel)
	if ctrmodel.KindOf(err) != ctrmodel.Cancelled {
		t.Errorf("got %v", err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the input ends as if that were all")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the process still waits for input")
	}
}

func TestExecRunsAndSaysHowItEnds(t *testing.T) {
	f := &fake{exec: func(o ctrmodel.ExecOptions, s ctrmodel.Streams) (int, error) {
		text, _ := io.ReadAll(s.Stdin)
		fmt.Fprintf(s.Stdout, "%s!", text)
		fmt.Fprint(s.Stderr, "err")
		return 0x80 + len(o.Args), nil
	}}
	c := start(t, f)
	var stdout, stderr bytes.Buffer
	o := ctrmodel.ExecOptions{Args: []string{"sh", "-c"}, Env: []string{"A=1"}, Dir: "/d", User: "u:g", TTY: true, Privileged: true}
	code, err := c.Exec(t.Context(), "a", o, ctrmodel.Streams{Stdin: strings.NewReader("in"), Stdout: &stdout, Stderr: &stderr})
	if err != nil || code != 130 || stdout.String() != "in!" || stderr.String() != "err" {
		t.Errorf("%v: code %d, %q and %q", err, code, stdout.String(), stderr.String())
	}
	if got, want := f.noted(), []string{fmt.Sprintf("exec a %+v", o)}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	f.exec = func(ctrmodel.ExecOptions, ctrmodel.Streams) (int, error) { return 0, nil }
	if code, err := c.Exec(t.Context(), "a", o, ctrmodel.Streams{}); code != 0 || err != nil {
		t.Error(code, err)
	}
}

func TestEventsAreTold(t *testing.T) {
	f := &fake{events: make(chan ctrmodel.Event)}
	c := start(t, f)
	sent := ctrmodel.Event{Time: time.Unix(3, 4).UTC(), Action: ctrmodel.ActionExited, Container: full(0)}
	want := sent
	want.Container = sent.Container.Clone()
	want.Container.StartedBefore = false
	var got []ctrmodel.Event
	ready := false
	err := c.Events(t.Context(), func() {
		if ready = true; !slices.Equal(f.noted(), []string{"subscribe"}) {
			t.Error("ready without being subscribed")
		}
		go func() { f.events <- sent; f.events <- sent; close(f.events) }()
	}, func(e ctrmodel.Event) error {
		got = append(got, e)
		return nil
	})
	if ctrmodel.KindOf(err) != ctrmodel.ResourceExhausted || !ready { // the engine gave up
		t.Errorf("ready %v, %v", ready, err)
	}
	if diff := cmp.Diff([]ctrmodel.Event{want, want}, got); diff != "" {
		t.Error(diff)
	}
}

func TestStatsAreOfThoseThatRun(t *testing.T) {
	process := ctrmodel.State{Status: ctrmodel.Running}
	f := &fake{containers: []*ctrmodel.Container{{ID: "a", State: process}, {ID: "b"}, {ID: "gone", State: process}}}
	c := start(t, f)
	a, b := used, used
	a.ID, b.ID = "a", "b"
	if got, err := c.Stats(t.Context()); err != nil || !slices.Equal(got, []ctrmodel.Stats{a}) {
		t.Errorf("all: %+v, %v", got, err)
	}
	if got, err := c.Stats(t.Context(), "b", "a"); err != nil || !slices.Equal(got, []ctrmodel.Stats{b, a}) {
		t.Errorf("b and a: %+v, %v", got, err)
	}
	if _, err := c.Stats(t.Context(), "a", "gone"); ctrmodel.KindOf(err) != ctrmodel.NotFound {
		t.Errorf("gone: %v", err)
	}
}

func TestPullTellsHowFarItIs(t *testing.T) {
	f := &fake{pull: func(progress func(ctrmodel.Progress)) error {
		progress(ctrmodel.Progress{Phase: "downloading", Done: 1, Total: 2})
		progress(ctrmodel.Progress{Phase: "unpacking", Done: 2, Total: 2})
		return nil
	}}
	c := start(t, f)
	var got []string
	image, err := c.Pull(t.Context(), "registry.example/a:1", func(p ctrmodel.Progress) { got = append(got, fmt.Sprint(p)) })
	if want := []string{"{downloading 1 2}", "{unpacking 2 2}"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, got %q, want %q", err, got, want)
	}
	if want := (ctrmodel.StoredImage{Name: "registry.example/a:1", Digest: "sha256:1", Size: 7, Created: time.Unix(9, 0).UTC(), Used: true}); image != want {
		t.Errorf("got %+v, want %+v", image, want)
	}
	images, err := c.Images(t.Context())
	if want := []ctrmodel.StoredImage{{Name: "a"}, {Name: "b", Size: 1}}; err != nil || !slices.Equal(images, want) {
		t.Errorf("%v, got %+v, want %+v", err, images, want)
	}
	if image, err := c.Refresh(t.Context(), "registry.example/a:1", nil); err != nil || image.Digest != "sha256:2" {
		t.Errorf("%v, got %+v", err, image)
	}
	if err := errors.Join(c.RemoveImage(t.Context(), "registry.example/a:1"), c.Deploy(t.Context())); err != nil {
		t.Error(err)
	}
	if want := []string{"pull registry.example/a:1", "images", "refresh registry.example/a:1", "remove image registry.example/a:1", "deploy"}; !slices.Equal(f.noted(), want) {
		t.Errorf("the engine was asked %q, want %q", f.noted(), want)
	}
}

func TestListStreamHasAllContainers(t *testing.T) {
	c := start(t, &fake{containers: []*ctrmodel.Container{{ID: "a"}, {ID: "b"}}})
	var ids []string
	err := receive(t.Context(), c, containersService+"ListStream", &protobuf.Empty{}, func(m *containerMessage) error {
		ids = append(ids, m.Container.ID)
		return nil
	})
	if err != nil || !slices.Equal(ids, []string{"a", "b"}) {
		t.Errorf("%v, got %q", err, ids)
	}
}

func FuzzContainer(f *testing.F) {
	data, err := protobuf.Marshal(fromContainer(full(0)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		var m container
		if protobuf.Unmarshal(data, &m) != nil {
			return
		}
		c, err := m.model()
		if err != nil {
			return
		}
		again, err := fromContainer(c).model()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, again); diff != "" {
			t.Error(diff)
		}
	})
}
