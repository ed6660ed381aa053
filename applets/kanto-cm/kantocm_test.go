// SPDX-License-Identifier: Apache-2.0

package kantocm

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/applet"
	"sdvbox/platform/cmapi"
	"sdvbox/platform/control"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/grpc"
)

// fake is an engine that notes what it is asked. What it does not know panics.
type fake struct {
	cmapi.Engine
	mu     sync.Mutex
	calls  []string
	all    []*ctrmodel.Container
	events chan ctrmodel.Event
	end    ctrmodel.Action // of what is started
	stats  uint64
}

func (f *fake) note(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return nil
}

func (f *fake) List(context.Context) ([]*ctrmodel.Container, error) { return f.all, nil }

func (f *fake) Get(_ context.Context, id string) (*ctrmodel.Container, error) {
	for _, c := range f.all {
		if c.ID == id {
			return c, nil
		}
	}
	return nil, ctrmodel.Errorf(ctrmodel.NotFound, "no container with id %s", id)
}

// noImage is nowhere.
const noImage = "host/none:1"

var errNoImage = ctrmodel.Errorf(ctrmodel.NotFound, "there is no image %s", noImage)

func (f *fake) Create(_ context.Context, c *ctrmodel.Container) (*ctrmodel.Container, error) {
	if c.Image.Name == noImage {
		return nil, errNoImage
	}
	text, _ := json.Marshal(c)
	c.Defaults(func() string { return "new" })
	return c, f.note("create %s", text)
}

// errStored is about a container that is as it should not be.
var errStored = ctrmodel.Errorf(ctrmodel.InvalidArgument, "container three makes no sense")

func (f *fake) Start(_ context.Context, id string) error {
	if id == "id3" {
		return errStored
	}
	if f.events != nil {
		ended, _ := f.Get(nil, id)
		ended = ended.Clone()
		ended.State.SetExited(7, time.Now(), false, "")
		f.events <- ctrmodel.Event{Time: time.Now(), Action: cmp.Or(f.end, ctrmodel.ActionExited), Container: ended}
	}
	return f.note("start %s", id)
}

func (f *fake) Stop(_ context.Context, id string, o ctrmodel.StopOptions) error {
	if id == "id2" {
		return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "container two does not run")
	}
	return f.note("stop %s %+v", id, o)
}

func (f *fake) Restart(_ context.Context, id string, o ctrmodel.StopOptions) error {
	if id == "id3" {
		return errStored
	}
	return f.note("restart %s %+v", id, o)
}
func (f *fake) Pause(_ context.Context, id string) error   { return f.note("pause %s", id) }
func (f *fake) Unpause(_ context.Context, id string) error { return f.note("unpause %s", id) }
func (f *fake) Rename(_ context.Context, id, name string) error {
	return f.note("rename %s %s", id, name)
}

func (f *fake) Update(_ context.Context, id string, o ctrmodel.UpdateOptions) error {
	if id == "id3" {
		return errStored
	}
	text, _ := json.Marshal(o)
	return f.note("update %s %s", id, text)
}

func (f *fake) Remove(_ context.Context, id string, force bool, o ctrmodel.StopOptions) error {
	return f.note("remove %s %t %+v", id, force, o)
}

func (f *fake) Attach(_ context.Context, _ string, s ctrmodel.Streams, attached func()) error {
	attached()
	if s.Stdin != nil {
		if _, err := io.Copy(s.Stdout, s.Stdin); err != nil {
			return err
		}
	}
	fmt.Fprint(s.Stdout, "out\n")
	fmt.Fprint(s.Stderr, "err\n")
	return nil
}

func (f *fake) Exec(_ context.Context, id string, o ctrmodel.ExecOptions, s ctrmodel.Streams) (int, error) {
	f.note("exec %s %+v", id, o)
	select {
	case size := <-s.Resize: // is that of a terminal, which does not end
		return 3, f.note("%+v", size)
	default:
	}
	if s.Stdin != nil {
		io.Copy(s.Stdout, s.Stdin)
	}
	fmt.Fprint(s.Stderr, "err\n")
	return 3, nil
}

func (f *fake) Logs(_ context.Context, id string, o ctrmodel.LogOptions, yield func([]byte) error) error {
	f.note("logs %s %+v", id, o)
	lines := []string{
		`{"stream":"stdout","log":"half ","time":"2024-05-01T10:00:00.1Z"}`, `{"stream":"stdout","log":"line\n","time":"2024-05-01T10:00:00.1Z"}`,
		`{"stream":"stderr","log":"grün \u003c\n","time":"2024-05-01T10:00:00.2Z"}`,
	}
	if id == "id3" {
		lines[1] = "\x00\x1b{\"stre"
	}
	for _, line := range lines {
		if err := yield([]byte(line)); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) Stats(_ context.Context, id string) (ctrmodel.Stats, error) {
	if _, err := f.Get(nil, id); err != nil {
		return ctrmodel.Stats{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stats++ // a quarter of the CPUs
	n := time.Duration(f.stats) * time.Second
	return ctrmodel.Stats{ID: id, Time: time.Now(), CPU: n, SystemCPU: 4 * n, Memory: 3 << 20, MemoryMax: 1 << 30, PIDs: 2}, nil
}

func (f *fake) Subscribe(context.Context) <-chan ctrmodel.Event { return f.events }

func (f *fake) Pull(_ context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error) {
	if name == noImage {
		return ctrmodel.StoredImage{}, errNoImage
	}
	progress(ctrmodel.Progress{Phase: "resolving"})
	if name != "host/one:1" {
		return ctrmodel.StoredImage{}, ctrmodel.Errorf(ctrmodel.Unauthenticated, "the registry wants other credentials")
	}
	progress(ctrmodel.Progress{Phase: "downloading", Done: 1, Total: 2})
	progress(ctrmodel.Progress{Phase: "unpacking"})
	return f.image(), nil
}

func (f *fake) image() ctrmodel.StoredImage {
	return ctrmodel.StoredImage{Name: "host/one:1", Digest: "sha256:0123456789abcdef", Size: 5 << 20, Created: time.Unix(0, 0), Used: true}
}

func (f *fake) Refresh(_ context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error) {
	return f.image(), f.note("refresh %s", name)
}

func (f *fake) RemoveImage(_ context.Context, name string) error {
	if name == noImage {
		return errNoImage
	}
	return f.note("remove image %s", name)
}
func (f *fake) Deploy(context.Context) error { return f.note("deploy") }

func (f *fake) Images(context.Context) ([]ctrmodel.StoredImage, error) {
	return []ctrmodel.StoredImage{f.image()}, nil
}

// newFake has five containers: id1 runs, id2 has ended, and id2 and id3 have one name; id4 is being replaced by id5, which runs.
func newFake() *fake {
	f := &fake{}
	for i, name := range []string{"one", "two", "two", "replaced", "replaced"} {
		c := &ctrmodel.Container{Name: name, Image: ctrmodel.Image{Name: "host/" + name + ":1"}}
		c.Defaults(func() string { return fmt.Sprintf("id%d", i+1) })
		c.State.SetCreated()
		f.all = append(f.all, c)
	}
	f.all[0].State.SetRunning(42, time.Unix(0, 0))
	f.all[0].HostConfig.Resources = ctrmodel.Resources{Memory: "64M", MemorySwap: "128M"}
	f.all[4].State.SetRunning(43, time.Unix(0, 0))
	f.all[1].State.SetExited(5, time.Unix(1, 0), false, "")
	return f
}

// serve lets an engine be asked, and returns where.
func serve(t *testing.T, e cmapi.Engine) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kcm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := control.Listen("unix:" + filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	cmapi.Register(s, e, cmapi.ProjectInfo{Version: "1.2", APIVersion: "1.0.0", GitCommit: "abc"})
	go s.Serve(l)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s.Shutdown(ctx)
	})
	return filepath.Join(dir, "sock")
}

// call runs a command line and returns what came of it.
func call(stdin string, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = applet.Main([]applet.Command{Command(), CtrExec()}, args, strings.NewReader(stdin), &out, &err)
	return code, out.String(), err.String()
}

func TestCommandsDoWhatTheyAreAskedTo(t *testing.T) {
	for _, test := range []struct {
		args string
		code int
		call string // of the engine
		out  string
		err  string // part of it
	}{
		{"start id1", 0, "start id1", "", ""},
		{"start -n one", 0, "start id1", "", ""},
		{"start nobody", 3, "", "", "nobody"},
		{"start -n nobody", 3, "", "", "nobody"},
		{"start -n two", 1, "", "", "more than one"},
		{"start -n replaced", 0, "start id5", "", ""},
		{"start", 2, "", "", "expected the id"},
		{"start id3", 1, "", "", "makes no sense"},
		{"restart id3", 1, "", "", "makes no sense"},
		{"update id3 -m 64M", 2, "", "", "makes no sense"},
		{"start id1 -n one", 2, "", "", "not both"},
		{"stop id1", 0, "stop id1 {Timeout:0 Force:false Signal:SIGTERM}", "", ""},
		{"stop -n one -t 1m15.4s -f -s KILL", 0, "stop id1 {Timeout:75 Force:true Signal:KILL}", "", ""},
		{"stop id1 -t 400ms", 0, "stop id1 {Timeout:1 Force:false Signal:SIGTERM}", "", ""},
		{"stop id1 -t 0s", 0, "stop id1 {Timeout:0 Force:false Signal:SIGTERM}", "", ""},
		{"stop id1 --time 7", 0, "stop id1 {Timeout:7 Force:false Signal:SIGTERM}", "", ""},
		{"stop id1 --time soon", 2, "", "", "1m15s"},
		{"stop id1 --signal SIGFOO", 2, "", "", "SIGFOO"},
		{"stop id2", 1, "", "", "container two does not run"},
		{"restart id1 -t 2s", 0, "restart id1 {Timeout:2 Force:true Signal:SIGTERM}", "", ""},
		{"pause id1", 0, "pause id1", "", ""},
		{"unpause -n one", 0, "unpause id1", "", ""},
		{"rename id1 neo", 0, "rename id1 neo", "", ""},
		{"rename -n one neo", 0, "rename id1 neo", "", ""},
		{"rename", 2, "", "", "id"},
		{"rename id1", 2, "", "", "expected the new name"},
		{"rename -n one", 2, "", "", "expected the new name"},
		{"rename id1 -x", 2, "", "", "x"},
		{"rename id1 .x", 2, "", "", "container_name"},
		{"remove id1", 0, "remove id1 false {Timeout:0 Force:false Signal:}", "", ""},
		{"remove -f -t 3s id1 id2", 0, "remove id1 true {Timeout:3 Force:true Signal:}; remove id2 true {Timeout:3 Force:true Signal:}", "", ""},
		{"remove nobody id1", 3, "remove id1 false {Timeout:0 Force:false Signal:}", "", "nobody"},
		{"remove", 2, "", "", "either"},
		{"remove --force=true id1", 0, "remove id1 true {Timeout:0 Force:true Signal:}", "", ""},
		{"remove -f=false id1", 0, "remove id1 false {Timeout:0 Force:false Signal:}", "", ""},
		{"remove --force=perhaps id1", 2, "", "", "perhaps"},
		{"update id1 --rp on-failure --rp-cnt 3", 0, `update id1 {"RestartPolicy":{"maximum_retry_count":3,"retry_timeout":0,"type":"on-failure"},"Resources":null}`, "", ""},
		{"update id1 -m 32M", 0, `update id1 {"RestartPolicy":null,"Resources":{"memory":"32M","memory_swap":"128M"}}`, "", ""},
		{"update id1 -m 96M", 0, `update id1 {"RestartPolicy":null,"Resources":{"memory":"96M","memory_swap":"128M"}}`, "", ""},
		{"update id1 -m 256M", 0, `update id1 {"RestartPolicy":null,"Resources":{"memory":"256M","memory_swap":"512M"}}`, "", ""},
		{"update id1 -m 256M --memory-swap -1", 0, `update id1 {"RestartPolicy":null,"Resources":{"memory":"256M","memory_swap":"-1"}}`, "", ""},
		{"update id1 --memory-reservation 32M", 0, `update id1 {"RestartPolicy":null,"Resources":{"memory":"64M","memory_reservation":"32M","memory_swap":"128M"}}`, "", ""},
		{"update id5 -m 32M", 0, `update id5 {"RestartPolicy":null,"Resources":{"memory":"32M"}}`, "", ""},
		{"update id1 --memory-swap -1", 0, `update id1 {"RestartPolicy":null,"Resources":{"memory":"64M","memory_swap":"-1"}}`, "", ""},
		{"update id1 -m -1", 0, `update id1 {"RestartPolicy":null,"Resources":null}`, "", ""},
		{"update id1", 2, "", "", "what to change"},
		{"update -n nobody", 2, "", "", "what to change"},
		{"update id1 --rp never", 2, "", "", "never"},
		{"list -q", 0, "", "id1 id2 id3 id4 id5\n", ""},
		{"list -q --filter status=RUNNING", 0, "", "id1 id5\n", ""},
		{"list -q -n two --filter exitcode=5,image=host/TWO:1", 0, "", "id2\n", ""},
		{"list -q --filter exitcode=1", 0, "", "", ""},
		{"list --filter exitcode=1", 0, "", "No containers found.\n", ""},
		{"list --filter colour=red", 2, "", "", "colour"},
		{"list -q --filter=", 0, "", "id1 id2 id3 id4 id5\n", ""},
		{"stats nobody", 3, "", "", "nobody"},
		{"stats id1 nobody", 3, "", "", "nobody"},
		{"logs id1", 0, "logs id1 {Tail:100 Follow:false}", "half line\n", "grün <\n"},
		{"logs id1 -t -1 -f --timestamps", 0, "logs id1 {Tail:-1 Follow:true}", "2024-05-01T10:00:00.1Z half line\n", "2024-05-01T10:00:00.2Z grün <\n"},
		{"logs id3", 0, "logs id3 {Tail:100 Follow:false}", "half ??{\"stre\n", "grün <\n"},
		{"logs id3 --since 2024-05-01T10:00:00.2Z", 0, "logs id3 {Tail:-1 Follow:false}", "??{\"stre\n", "grün <\n"},
		{"exec id1 ls -l", 3, "exec id1 {Args:[ls -l] Env:[] Dir: User: TTY:false Privileged:false}", "", "err\n"},
		{"exec -i -t -e A=1 -w /d -u me --privileged -n one -- ls -l", 3, "exec id1 {Args:[ls -l] Env:[A=1] Dir:/d User:me TTY:true Privileged:true}", "input", "err\n"},
		{"exec id1", 2, "", "", "expected a command to run"},
		{"exec -n one", 2, "", "", "expected a command to run"},
		{"pull host/one:1", 0, "", "host/one:1@sha256:0123456789abcdef\n", "resolving\ndownloading\nunpacking\n"},
		{"pull host/two:1", 1, "", "", "credentials"},
		{"pull host/none:1", 1, "", "", "no image"},
		{"create host/none:1", 1, "", "", "no image"},
		{"remove-image host/none:1", 1, "", "", "no image"},
		{"pull", 2, "", "", "one image"},
		{"pull --refresh host/one:1", 0, "refresh host/one:1", "host/one:1@sha256:0123456789abcdef\n", ""},
		{"remove-image host/a:1 host/b:1", 0, "remove image host/a:1; remove image host/b:1", "", ""},
		{"remove-image", 2, "", "", "an image"},
		{"deploy", 0, "deploy", "", ""},
		{"deploy id1", 2, "", "", "id1"},
		{"attach id2", 1, "", "", "does not run"},
		{"logs id1 --since 2024-05-01T10:00:00.2Z", 0, "logs id1 {Tail:-1 Follow:false}", "", "grün <\n"},
		{"logs id1 --since 1h -t 5", 0, "logs id1 {Tail:5 Follow:false}", "", ""},
		{"logs id1 --since yesterday", 2, "", "", "10m"},
		{"sysinfo", 0, "", "Engine v1.2, API v1.0.0, (build abc unknown) \nCLI vdevel, API v1.0.0, (build unknown unknown) \n", ""},
		{"create", 2, "", "", "image"},
		{"create -f /none host/one:1", 2, "", "", "not both"},
		{"create -f /none --rp always", 2, "", "", "not both"},
		{"create --ports 80 host/one:1", 2, "", "", "port mapping"},
		{"create --name .x host/one:1", 2, "", "", "container_name"},
		{"create --cap-add CAP_FOO host/one:1", 2, "", "", `no capability "CAP_FOO"`},
		{"create --network some host/one:1", 2, "", "", "none"},
		{"create --memory 1 host/one:1", 2, "", "", "size"},
		{"create --rp never host/one:1", 2, "", "", "unless-stopped"},
		{"bogus", 2, "", "", "bogus"},
	} {
		f := newFake()
		code, out, stderr := call("input", append([]string{"kanto-cm", "--host", serve(t, f)}, strings.Fields(test.args)...)...)
		if calls := strings.Join(f.calls, "; "); code != test.code || out != test.out || calls != test.call {
			t.Errorf("%s: exit code %d, engine %q, output %q, want %d, %q, %q\n%s", test.args, code, calls, out, test.code, test.call, test.out, stderr)
		}
		if test.err == "" && stderr != "" || !strings.Contains(stderr, test.err) {
			t.Errorf("%s: says %q, want %q", test.args, stderr, test.err)
		}
	}
}

func TestEmptyArgumentsAreWrongUsage(t *testing.T) {
	host := serve(t, newFake())
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"start", ""}, "expected the id"},
		{[]string{"start", "--name="}, "expected the id"},
		{[]string{"rename", "", "neo"}, "expected the id"},
		{[]string{"exec", "", "ls"}, "expected the id"},
		{[]string{"remove", "id1", ""}, "expected either ids"},
		{[]string{"stats", ""}, "expected ids"},
		{[]string{"pull", ""}, "expected one image"},
		{[]string{"remove-image", ""}, "expected an image"},
		{[]string{"update", "id1", "-m", ""}, "--memory: expected a size as 64M, or -1"},
		{[]string{"update", "id1", "--memory-swap="}, "--memory-swap: expected a size"},
		{[]string{"update", "id1", "--memory-reservation", ""}, "--memory-reservation: expected a size"},
	} {
		code, out, stderr := call("", append([]string{"kanto-cm", "--host", host}, test.args...)...)
		if code != 2 || out != "" || !strings.Contains(stderr, test.want) {
			t.Errorf("%q: exit code %d, %q, %s", test.args, code, out, stderr)
		}
	}
}

func TestDescriptionThatIsTooLargeIsSaidToBe(t *testing.T) {
	code, _, stderr := call(strings.Repeat(" ", 3<<20)+"{}", "kanto-cm", "create", "-f", "-")
	if code == 0 || stderr != "kanto-cm: -: larger than 1048576 bytes\n" {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

func TestCreateSendsWhatIsDescribed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.json")
	if err := os.WriteFile(file, []byte(`{"container_name":"web","image":{"name":"host/web:1"},"host_config":{"devices":[],"privileged":true}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args string
		want []string // parts of what the engine gets
	}{
		{"host/web:1", []string{`"name":"host/web:1"`, `"config":null`, `"network_mode":"bridge"`, `"privileged":false`, `"max_size":"100M"`}},
		{"--privileged=false --t=true --i=1 --ports= --hosts= --devices= --mp= --cap-add=,CAP_KILL, --rp= host/web:1", []string{
			`"privileged":false`, `"open_stdin":true`, `"tty":true`, `"port_mappings":null`, `"extra_hosts":null`, `"mount_points":null`, `["CAP_KILL"]`, `"restart_policy":{"maximum_retry_count":0,"retry_timeout":0,"type":""}`}},
		{"-n web --t --i --e A=1,2 --e B host/web:1 sh -c --e", []string{
			`"container_name":"web"`, `"env":["A=1,2","B"]`, `"cmd":["sh","-c","--e"]`, `"open_stdin":true`, `"tty":true`}},
		{"--rp on-failure --rp-to 5 --devices /dev/a:/dev/b:r,/dev/c:/dev/c --cap-add CAP_KILL,CAP_BPF host/web:1", []string{
			`"maximum_retry_count":0,"retry_timeout":5000000000,"type":"on-failure"`, `"path_on_host":"/dev/a","path_in_container":"/dev/b","cgroup_permissions":"r"`,
			`"path_in_container":"/dev/c","cgroup_permissions":"rwm"`, `["CAP_KILL","CAP_BPF"]`}},
		{"--rp always --rp-cnt 3 host/web:1", []string{`"maximum_retry_count":0,"retry_timeout":0,"type":"always"`}},
		{"--ports 80-90:8080/udp --ports [::1]:1:2 --hosts a:host_ip,b:1.2.3.4 --mp /a:/b:ro host/web:1", []string{
			`"container_port":8080,"host_ip":"0.0.0.0","host_port":80,"host_port_end":90`, `"host_ip":"::1","host_port":1`,
			`["a:host_ip","b:1.2.3.4"]`, `"read_only":true`}},
		{"-m 64M --memory-swap -1 --memory-reservation 32M --log-driver none --privileged host/web:1", []string{
			`{"memory":"64M","memory_reservation":"32M","memory_swap":"-1"}`, `"type":"none"`, `"privileged":true`}},
		{"--log-mode non-blocking --log-max-buffer-size 2M --log-max-files 3 --log-path /l --network host --dec-keys a:b host/web:1", []string{
			`"max_buffer_size":"2M"`, `"max_files":3`, `"root_dir":"/l"`, `"network_mode":"host"`, `{"keys":["a:b"]}`}},
		{"-f " + file, []string{`"container_name":"web"`, `"privileged":true`}},
	} {
		f := newFake()
		code, out, stderr := call("", append([]string{"kanto-cm", "--host", serve(t, f), "create"}, strings.Fields(test.args)...)...)
		if code != 0 || out != "new\n" || stderr != "" || len(f.calls) != 1 {
			t.Errorf("%s: exit code %d, output %q, %s, engine %q", test.args, code, out, stderr, f.calls)
			continue
		}
		for _, part := range test.want {
			if !strings.Contains(f.calls[0], part) {
				t.Errorf("%s: %s is not in %s", test.args, part, f.calls[0])
			}
		}
	}
}

func TestResultsAreTablesOrJSON(t *testing.T) {
	f := newFake()
	host := serve(t, f)
	_, out, _ := call("", "kanto-cm", "list", "--host", host)
	lines := strings.Split(out, "\n")
	if len(lines) != 10 || lines[0] != "" || lines[8] != "" {
		t.Fatalf("got %q", out)
	}
	for i, want := range map[int]string{
		1: "ID|Name|Image|Status|Finished At|Exit Code|", 3: "id1|one|host/one:1|Running||0|", 4: "id2|two|host/two:1|Exited|1970-01-01T00:00:01Z|5|",
	} {
		cells := strings.Split(lines[i], "|")
		for j := range cells {
			cells[j] = strings.TrimSpace(cells[j])
		}
		if got := strings.Join(cells, "|"); got != want {
			t.Errorf("line %d is %q, want %q", i, got, want)
		}
	}
	if !strings.HasPrefix(lines[3], fmt.Sprintf("%-37s\t|%-37s\t|", "id1", "one")) {
		t.Errorf("columns are at other places: %q", lines[3])
	}

	var all []ctrmodel.Container
	_, out, _ = call("", "kanto-cm", "--host", host, "--output", "json", "list")
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 5 || all[0].State.PID != 42 {
		t.Errorf("list: %v, %s", err, out)
	}
	_, out, _ = call("", "kanto-cm", "--host", host, "get", "id1")
	var one ctrmodel.Container
	if err := json.Unmarshal([]byte(out), &one); err != nil || !strings.Contains(out, "\n   \"container_name\": \"one\",") || !strings.Contains(out, `"status": 2`) {
		t.Errorf("get: %v, %s", err, out)
	}
	_, out, _ = call("", "kanto-cm", "--host", host, "logs", "id1", "--output", "json")
	if strings.Count(out, "\n") != 3 || !strings.HasPrefix(out, `{"stream":"stdout","log":"half "`) {
		t.Errorf("logs: %q", out)
	}
	_, out, _ = call("", "kanto-cm", "--host", host, "images")
	if !strings.Contains(out, "host/one:1  sha256:0123456789ab  5.0 MiB  1970-01-01") {
		t.Errorf("images: %s", out)
	}
	_, out, _ = call("", "kanto-cm", "--host", host, "stats", "--interval", "1ms")
	if !strings.Contains(out, "one       id1  25.0 %  3.0 MiB  1.0 GiB") || strings.Count(out, "\n") != 3 {
		t.Errorf("stats: %s", out)
	}
	for line, want := range map[string]int{"get nobody": 3, "pull host/two:1": 1, "stats nobody": 3} {
		code, out, stderr := call("", append([]string{"kanto-cm", "--host", host, "--output", "json"}, strings.Fields(line)...)...)
		if code != want || out != "" || !strings.HasPrefix(stderr, `{"error":`) {
			t.Errorf("%s: %d, %q, %s", line, code, out, stderr)
		}
	}
}

func TestAttachedStartEndsAsTheContainer(t *testing.T) {
	for open, said := range map[bool]string{true: "", false: "kanto-cm: container two gets no input: it was made without open_stdin\n"} {
		f := newFake()
		f.all[1].IOConfig.OpenStdin = open
		f.events = make(chan ctrmodel.Event, 1)
		code, out, stderr := call("input,", "kanto-cm", "--host", serve(t, f), "start", "--i", "id2")
		if code != 7 || out != "input,out\n" || stderr != said+"err\n" || !slices.Equal(f.calls, []string{"start id2"}) {
			t.Errorf("exit code %d, output %q, %q, engine %q", code, out, stderr, f.calls)
		}
	}
}

func TestAttachedCommandsEndWithTheirContainer(t *testing.T) {
	for line, started := range map[string][]string{"attach id1": nil, "start --a id2": {"start id2"}} {
		f := newFake()
		f.events, f.end = make(chan ctrmodel.Event, 2), ctrmodel.ActionRemoved
		if started == nil {
			f.events <- ctrmodel.Event{Time: time.Now(), Action: ctrmodel.ActionRemoved, Container: f.all[0]}
		}
		host, ended := serve(t, f), make(chan string)
		go func() {
			code, out, stderr := call("", append([]string{"kanto-cm", "--host", host}, strings.Fields(line)...)...)
			ended <- fmt.Sprint(code, out, stderr)
		}()
		select {
		case got := <-ended:
			if !strings.HasPrefix(got, "1out\nerr\n") || !strings.HasSuffix(got, "was removed\n") || !slices.Equal(f.calls, started) {
				t.Errorf("%s: %q, engine %q", line, got, f.calls)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s does not end", line)
		}
	}
}

// pty is a terminal and who looks at it.
func pty(t *testing.T, width, height uint16) (master, tty *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	err = errors.Join(err, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0),
		unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height}))
	if err != nil {
		t.Fatal(err)
	}
	if tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return master, tty
}

func TestProcessBeginsWithTheSizeOfTheTerminal(t *testing.T) {
	f := newFake()
	host := serve(t, f)
	_, tty := pty(t, 101, 23)
	pipe := strings.NewReader("")
	for _, test := range []struct {
		options string
		in      io.Reader
		out     io.Writer
		want    string
	}{
		{"-i -t", tty, tty, "{Width:101 Height:23}"},
		{"-t", tty, tty, "{Width:101 Height:23}"},
		{"-t", pipe, tty, "{Width:101 Height:23}"},
		{"-i -t", pipe, tty, "{Width:101 Height:23}"},
		{"-t", tty, io.Discard, "{Width:101 Height:23}"},
		{"-t", pipe, io.Discard, ""},
		{"", tty, tty, ""},
	} {
		for range 20 { // what comes late is not always late
			f.calls = nil
			var stderr bytes.Buffer
			args := append([]string{"kanto-cm", "--host", host, "exec"}, append(strings.Fields(test.options), "id1", "ls")...)
			code := applet.Main([]applet.Command{Command()}, args, test.in, test.out, &stderr)
			if got := strings.Join(f.calls[1:], "; "); code != 3 || got != test.want {
				t.Fatalf("exec %s from %T to %T: exit code %d, size %q, want %q: %s", test.options, test.in, test.out, code, got, test.want, &stderr)
			}
		}
	}
}

func TestDescriptionThatIsTypedCanBeInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	typed, keys := io.Pipe()
	defer keys.Close()
	cancel()
	ended := make(chan error, 1)
	go func() {
		o := new(Access).newCreateOptions()
		o.File = "-"
		_, err := o.container(ctx, &applet.Call{Stdin: typed})
		ended <- err
	}()
	select {
	case err := <-ended:
		if fmt.Sprint(err) != "exit code 130" {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
}

func TestEventsAreShown(t *testing.T) {
	f := newFake()
	f.events = make(chan ctrmodel.Event, 2)
	f.events <- ctrmodel.Event{Time: time.Now(), Action: ctrmodel.ActionExited, Container: f.all[1]}
	f.events <- ctrmodel.Event{Time: time.Now(), Action: ctrmodel.ActionRunning, Container: f.all[0]}
	close(f.events) // as for a client that is too slow
	code, out, stderr := call("", "kanto-cm", "--host", serve(t, f), "events", "-n", "two")
	if code != 1 || !strings.Contains(out, "exited   id2  two  exit code 5\n") || strings.Count(out, "\n") != 1 || !strings.Contains(stderr, "too many events") {
		t.Errorf("exit code %d, output %q, %s", code, out, stderr)
	}
}

func TestNobodyThereIsSaidAtOnce(t *testing.T) {
	for _, host := range []string{"/none/sock", "unix:///none/sock", "tcp://127.0.0.1:1"} {
		start := time.Now()
		code, _, stderr := call("", "kanto-cm", "--host", host, "list")
		if took := time.Since(start); code != 4 || took > time.Second || !strings.Contains(stderr, "does not answer at "+host) {
			t.Errorf("%s: exit code %d after %v: %s", host, code, took, stderr)
		}
	}
}

// dying is an engine whose server ends in the middle of a call, as it says or not.
type dying struct {
	*fake
	end func()
}

func (d *dying) Start(ctx context.Context, _ string) error {
	d.end()
	<-ctx.Done()
	return ctx.Err()
}

func (d *dying) Logs(ctx context.Context, _ string, _ ctrmodel.LogOptions, _ func([]byte) error) error {
	return d.Start(ctx, "")
}

func (d *dying) Stats(context.Context, string) (ctrmodel.Stats, error) {
	return ctrmodel.Stats{}, ctrmodel.Errorf(ctrmodel.Unavailable, "containerd does not answer")
}

func TestAgentThatIsLostIsSaid(t *testing.T) {
	for _, test := range []struct {
		line     string
		kill     bool
		code     int
		out, not string
	}{
		{"start id2", true, exitDown, "lost the container agent at unix:/", ""},
		{"logs id2 -f", true, exitDown, "lost the container agent at unix:/", ""},
		{"logs id2 -f", false, exitDown, "is shutting down", ""},
		{"stats id1", false, 1, "containerd does not answer", "lost"},
	} {
		d := &dying{fake: newFake()}
		s := grpc.NewServer()
		cmapi.Register(s, d, cmapi.ProjectInfo{})
		host := "unix:" + filepath.Join(t.TempDir(), "sock")
		l, err := control.Listen(host)
		if err != nil {
			t.Fatal(err)
		}
		go s.Serve(l)
		over, cancel := context.WithCancel(t.Context())
		defer cancel()
		d.end = func() {
			if test.kill {
				cancel()
			}
			go s.Shutdown(over)
		}
		code, _, stderr := call("", append([]string{"kanto-cm", "--host", host}, strings.Fields(test.line)...)...)
		if code != test.code || !strings.Contains(stderr, test.out) || test.not != "" && strings.Contains(stderr, test.not) {
			t.Errorf("%s: exit code %d, %s", test.line, code, stderr)
		}
	}
}

func TestAgentThatComesLateIsWaitedForIfAsked(t *testing.T) {
	host := serve(t, newFake())
	if err := os.Rename(host, host+".later"); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(150*time.Millisecond, func() { os.Rename(host+".later", host) })
	if code, out, stderr := call("", "kanto-cm", "--host", host, "--timeout", "10", "list", "-q"); code != 0 || out != "id1 id2 id3 id4 id5\n" {
		t.Errorf("exit code %d, %q, %s", code, out, stderr)
	}
}

func TestCtrExecRunsCommandsAndExplainsItself(t *testing.T) {
	for _, args := range [][]string{{}, {"-h"}, {"-?"}} {
		code, out, _ := call("", append([]string{"sdv-ctr-exec"}, args...)...)
		if code != 0 || !strings.Contains(out, "<container-id> <command>") {
			t.Errorf("%q: exit code %d, %s", args, code, out)
		}
	}
	for _, line := range []string{"-n one", "id1", "id1 --"} {
		if code, _, stderr := call("", append([]string{"sdv-ctr-exec"}, strings.Fields(line)...)...); code != 2 {
			t.Errorf("%s: exit code %d, %s", line, code, stderr)
		}
	}
	for _, line := range []string{"id1 ls -l", "-n one ls -l", "id1 -- ls -l", "-n one -- ls -l"} {
		f := newFake()
		code, out, stderr := call("in", append([]string{"sdv-ctr-exec", "--host", serve(t, f)}, strings.Fields(line)...)...)
		want := "exec id1 {Args:[ls -l] Env:[] Dir: User: TTY:false Privileged:false}"
		if code != 3 || out != "in" || stderr != "err\n" || !slices.Equal(f.calls, []string{want}) {
			t.Errorf("%s: exit code %d, %q, %q, engine %q", line, code, out, stderr, f.calls)
		}
	}
}

func TestHelpAndCompletionAreCommandsToo(t *testing.T) {
	for line, same := range map[string]string{"": "--help", "help": "--help", "help stop": "stop --help", "help completion bash": "completion bash --help"} {
		code, out, stderr := call("", append([]string{"kanto-cm"}, strings.Fields(line)...)...)
		_, want, _ := call("", append([]string{"kanto-cm"}, strings.Fields(same)...)...)
		if code != 0 || out != want || !strings.HasPrefix(out, "Usage: kanto-cm") {
			t.Errorf("%s: exit code %d, %s%s", line, code, out, stderr)
		}
	}
	if _, out, _ := call("", "kanto-cm", "help"); !strings.Contains(out, "3    there is no such container") || !strings.Contains(out, "\n  help ") {
		t.Errorf("help: %s", out)
	}
	for shell, want := range map[string]string{"bash": "-F _sdvbox sdvbox kanto-cm\n", "zsh": "#compdef sdvbox kanto-cm\n", "fish": "in sdvbox kanto-cm\n"} {
		if code, out, stderr := call("", "kanto-cm", "completion", shell); code != 0 || !strings.Contains(out, want) {
			t.Errorf("%s: exit code %d, %s%s", shell, code, out, stderr)
		}
	}
	for _, line := range []string{"help nonsense", "completion", "completion csh"} {
		if code, out, stderr := call("", append([]string{"kanto-cm"}, strings.Fields(line)...)...); code != 2 || out != "" || stderr == "" {
			t.Errorf("%s: exit code %d, %s", line, code, out)
		}
	}
}

func TestKeysToLeaveAreNotPassedOn(t *testing.T) {
	for _, test := range []struct {
		typed []string
		want  string
		left  bool
	}{
		{[]string{"ab", "c"}, "abc", false},
		{[]string{"ab\x10\x11c"}, "ab", true},
		{[]string{"ab\x10", "\x11c"}, "ab", true},
		{[]string{"\x10", "\x10", "x", "\x11"}, "\x10\x10x\x11", false},
		{[]string{"\x10", "\x10", "\x11"}, "\x10", true},
	} {
		var k keys
		got, left := "", false
		for _, text := range test.typed {
			var passed []byte
			passed, left = k.pass([]byte(text))
			got += string(passed)
		}
		if got != test.want || left != test.left {
			t.Errorf("%q: passed on %q, %t, want %q, %t", test.typed, got, left, test.want, test.left)
		}
	}
}

func TestBarFitsItsTerminal(t *testing.T) {
	p := ctrmodel.Progress{Phase: "downloading", Done: 5 << 20, Total: 10 << 20}
	if got, want := barLine(p, 2*time.Second, 68), "downloading [########        ]  50 %  5.0 MiB of 10.0 MiB  2.5 MiB/s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, width := range []int{5, 20, 50, 200} {
		if got := barLine(p, time.Second, width); len(got) > width {
			t.Errorf("%d characters are too many for %d: %q", len(got), width, got)
		}
	}
	for size, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1 << 10: "1.0 kiB", 1000 << 10: "1.0 MiB", 1 << 40: "1.0 TiB"} {
		if got := bytesText(size); got != want {
			t.Errorf("%d bytes are %q, want %q", size, got, want)
		}
	}
}
