// SPDX-License-Identifier: Apache-2.0

// Package fields tests containers as they are seen from three sides: through the API of a container agent that runs as a process,
// through containerd, and by a process inside. It does so on a host of its own.
package fields

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/census"
	"sdvbox/testing/ctragent"
	"sdvbox/testing/ctrd"
	"sdvbox/testing/fields/inside"
)

func TestMain(m *testing.M) { ctragent.OwnHost(m) }

const (
	image     = "example.org/probe:1" // looks around and waits
	userImage = "example.org/probe:user"
	probe     = "sdvbox/testing/fields/probe"
)

// lab is an agent with images.
type lab struct {
	*ctragent.Agent
	containerd *containerd.Client
	place      census.Place
}

// newLab starts containerd, on a disk of its own if there is one, and the agent.
func newLab(t *testing.T, disk string, change map[string]ctragent.Section) *lab {
	usual := os.Getenv("TMPDIR")
	if disk != "" {
		t.Setenv("TMPDIR", disk)
	}
	namespace := fmt.Sprintf("fields-%d", os.Getpid())
	t.Cleanup(func() { // runc leaves the group of the namespace
		for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
			groups, _ := filepath.Glob(pattern + namespace)
			for _, g := range groups {
				os.Remove(g)
			}
		}
	})
	d := ctrd.Start(t)
	os.Setenv("TMPDIR", usual)
	if change["containers"] == nil {
		change["containers"] = ctragent.Section{}
	}
	change["containers"]["default_ns"] = namespace
	a := ctragent.Start(t, ctragent.Build(t), d, change)
	l := &lab{Agent: a, containerd: containerd.New(d.Socket, namespace)}
	t.Cleanup(func() { l.containerd.Close() })
	l.place = census.Place{
		Daemon: d, Namespace: namespace, Dirs: []string{a.Dir}, Inside: func(do func()) { do() },
		Except: []string{"log", "config.json", "images", "imported.json*"},
	}
	files := map[string][]byte{
		"probe":      ctragent.Program(t, probe),
		"etc/passwd": []byte("root:x:0:0::/:\nradio:x:77:78::/:\n"), "etc/group": []byte("audio:x:29:radio\n"),
		"work/empty": nil, "tmp/empty": nil,
	}
	config := v1.ImageConfig{
		Entrypoint: []string{"/probe"}, Cmd: []string{"wait", "image"}, Env: []string{"PATH=/bin", "A=image", "B=image"}, WorkingDir: "/work",
	}
	plain := ctragent.NewImage(image, config, files)
	config.User = "radio"
	l.Import(plain, ctragent.NewImage(userImage, config, files))
	return l
}

// box is a container.
type box struct {
	*lab
	t  *testing.T
	id string
}

// make makes a container.
func (l *lab) make(t *testing.T, name string, change func(*ctrmodel.Container)) *box {
	t.Helper()
	c := &ctrmodel.Container{Name: name, Image: ctrmodel.Image{Name: image}, Config: ctrmodel.Config{Cmd: []string{"wait", name}}}
	if change != nil {
		change(c)
	}
	made, err := l.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return &box{l, t, made.ID}
}

// run makes and starts a container.
func (l *lab) run(t *testing.T, name string, change func(*ctrmodel.Container)) *box {
	t.Helper()
	b := l.make(t, name, change)
	b.start()
	return b
}

func cmd(args ...string) func(*ctrmodel.Container) {
	return func(c *ctrmodel.Container) { c.Config.Cmd = args }
}

func (b *box) start() {
	b.t.Helper()
	if err := b.Start(b.t.Context(), b.id); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) stop() {
	b.t.Helper()
	if err := b.Stop(b.t.Context(), b.id, ctrmodel.StopOptions{Signal: "KILL"}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) get() *ctrmodel.Container {
	b.t.Helper()
	c, err := b.Get(b.t.Context(), b.id)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// await waits until something is so.
func (b *box) await(what string, is func() bool) {
	b.t.Helper()
	for range 1000 {
		if is() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.t.Fatalf("%s: not within 10 s", what)
}

// ends waits for the end of the process.
func (b *box) ends() *ctrmodel.Container {
	b.t.Helper()
	b.await("the end of a container", func() bool { return b.get().State.Status == ctrmodel.Exited })
	return b.get()
}

// lines is what is in the log.
func (b *box) lines() (lines []string) {
	b.t.Helper()
	text := ""
	if err := b.Logs(b.t.Context(), b.id, ctrmodel.LogOptions{Tail: -1}, func(line []byte) error {
		var l struct{ Log, Stream string }
		err := json.Unmarshal(line, &l)
		text += l.Log
		return err
	}); err != nil {
		b.t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		lines = append(lines, line)
	}
	return lines
}

// says waits for a line in the log.
func (b *box) says() (line string) {
	b.t.Helper()
	b.await("a line from the container", func() bool {
		lines := b.lines()
		if len(lines) > 0 && strings.HasSuffix(lines[0], "\n") {
			line = lines[0]
		}
		return line != ""
	})
	return line
}

// view is what the process sees.
func (b *box) view() (v inside.View) {
	b.t.Helper()
	if err := json.Unmarshal([]byte(b.says()), &v); err != nil {
		b.t.Fatal(err)
	}
	return v
}

// probe runs another process in the container.
func (b *box) probe(args ...string) (out string, code int) {
	b.t.Helper()
	var text bytes.Buffer
	code, err := b.Exec(b.t.Context(), b.id, ctrmodel.ExecOptions{Args: append([]string{"/probe"}, args...)}, ctrmodel.Streams{Stdout: &text})
	if err != nil {
		b.t.Fatalf("probe %q: %v", args, err)
	}
	return strings.TrimSpace(text.String()), code
}

// spec is what containerd knows about the container.
func (b *box) spec() (s specs.Spec) {
	b.t.Helper()
	c, err := b.containerd.Containers.Get(b.t.Context(), b.id)
	if err == nil {
		err = json.Unmarshal(c.Spec.Value, &s)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func equal[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestEachFieldIsSeenWithCrun(t *testing.T) {
	if os.Getenv("SDVBOX_LONG") != "1" {
		t.Skip("takes its time; set SDVBOX_LONG=1")
	}
	crun, err := exec.LookPath("crun")
	if err != nil && os.Getenv("SDVBOX_REQUIRE") != "1" {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// It takes the place of runc. It will not have control groups of both versions, which some hosts have, and would make directories
	// in place of those that are not there.
	cmd := exec.Command("unshare", "-m", "sh", "-c", `mount --bind "$1" "$(readlink -f "$(command -v runc)")" || exit
umount -l /sys/fs/cgroup/unified 2>/dev/null && mount -t tmpfs none /sys/fs/cgroup/unified
exec "$0" -test.run=^TestEachFieldIsSeenInside`, self, crun)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestEachFieldIsSeenInsideAndByContainerd(t *testing.T) {
	l := newLab(t, "", map[string]ctragent.Section{
		"network": {"default_bridge": ctragent.Section{"name": "fields0", "enable_ip6": true}},
	})
	// The first container brings the bridge, which stays.
	first := l.run(t, "first", nil)
	if err := l.Remove(t.Context(), first.id, true, ctrmodel.StopOptions{Signal: "KILL"}); err != nil {
		t.Fatal(err)
	}
	forget := func() { // what crun takes for groups where there are none
		if _, err := os.Stat("/sys/fs/cgroup/unified/cgroup.procs"); err != nil {
			os.RemoveAll("/sys/fs/cgroup/unified/" + l.place.Namespace)
		}
	}
	forget()
	before := l.place.Take(t)
	t.Run("fields", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, *lab){
			"Defaults": defaults, "Names": names, "Environment": environment, "User": user, "Mounts": mounts, "Devices": devices,
			"Privileged": privileged, "Capabilities": extraCapabilities, "Neighbours": neighbours, "Ports": ports, "HostNetwork": hostNetwork,
			"NoNetwork": noNetwork, "RestartPolicy": restartPolicy, "Streams": streams, "Terminal": terminal, "Log": logs, "Resources": resources,
			"Hooks": hooks, "Runtime": runtimes, "Decryption": decryption,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, l)
			})
		}
	})
	list, err := l.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if err := l.Remove(t.Context(), c.ID, true, ctrmodel.StopOptions{Signal: "KILL"}); err != nil {
			t.Error(err)
		}
	}
	forget()
	l.place.Await(t, before, 5*time.Second)
}

// usual is what a container that is not privileged can do.
var usual = map[string]string{
	"mount": "EPERM", "unshare": "EPERM", "kexec_load": "EPERM", "bpf": "EPERM", "keyctl": "EPERM", "io_uring_setup": "EPERM", "reboot": "EPERM",
	"settimeofday": "EPERM", "setns": "EPERM", "clone3": "ENOSYS", "tomorrow": "ENOSYS", "vsock": "EPERM", "net_admin": "EPERM", "nice": "EACCES", "sysctl": "EROFS",
	"chroot": "", "packet": "", "ptrace": "ESRCH", // of its own processes
}

// Devices that every container has, and those that it may have, too.
var (
	usualDevices    = []string{"/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"}
	terminalDevices = []string{"/dev/console", "/dev/ptmx", "/dev/pts/ptmx"}
)

func defaults(t *testing.T, l *lab) {
	b := l.run(t, "defaults", func(c *ctrmodel.Container) { c.Config.Cmd = nil })
	v, s, c := b.view(), b.spec(), b.get()
	equal(t, "arguments", v.Args, []string{"/probe", "wait", "image"})
	equal(t, "environment", v.Env, []string{"PATH=/bin", "A=image", "B=image", "HOSTNAME=defaults-host", "HOME=/"}) // the last from runc
	equal(t, "directory", v.Dir, "/work")
	equal(t, "host name", v.Hostname, "defaults-host")
	equal(t, "/etc/hostname", v.Files["/etc/hostname"], "defaults-host")
	equal(t, "domain", v.Domain, "defaults-domain")
	equal(t, "user", []int{v.UID, v.GID}, []int{0, 0})
	equal(t, "open files", s.Process.Rlimits[0].Soft, 1024)
	for key, want := range map[string]string{
		"CapEff": "00000000a80425fb", "CapPrm": "00000000a80425fb", "CapBnd": "00000000a80425fb", "CapInh": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2", "NSpid": "1",
	} {
		equal(t, key, v.Status[key], want)
	}
	equal(t, "system calls", v.Calls, usual)
	equal(t, "hidden entries", v.HiddenEntries, 0)
	equal(t, "devices", slices.DeleteFunc(slices.Clone(v.Devices), func(d string) bool { return slices.Contains(terminalDevices, d) }), usualDevices)
	equal(t, "most processes", v.Limits["pids.max"], "8192")
	equal(t, "terminal", v.TTY, false)
	if v.NetNS == netNS(t) {
		t.Error("the network is the host's")
	}
	for file, key := range map[string]string{"/etc/resolv.conf": c.ResolvConfPath, "/etc/hostname": c.HostnamePath} {
		text, err := os.ReadFile(key)
		if err != nil || strings.TrimSpace(string(text)) != v.Files[file] {
			t.Errorf("%s is not %s: %q, %v", file, key, text, err)
		}
	}
	equal(t, "arguments for containerd", s.Process.Args, v.Args)
	equal(t, "environment for containerd", s.Process.Env, v.Env[:4])
	equal(t, "default action", s.Linux.Seccomp.DefaultAction, specs.ActErrno)
	object, err := b.containerd.Containers.Get(t.Context(), b.id)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "image", object.Image, image)
	equal(t, "runtime", object.Runtime.Name, "io.containerd.runc.v2")
	equal(t, "snapshot", object.SnapshotKey, b.id+"-snapshot")
	task, err := b.containerd.Tasks.Get(t.Context(), b.id, "")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "process", int64(task.Pid), c.State.PID)
	equal(t, "restart policy", c.HostConfig.RestartPolicy, ctrmodel.RestartPolicy{Type: ctrmodel.RestartUnlessStopped})
	equal(t, "network mode", c.HostConfig.NetworkMode, ctrmodel.BridgeNetwork)
	equal(t, "log", c.HostConfig.Log, ctrmodel.Log{
		Driver: ctrmodel.LogDriver{Type: ctrmodel.LogFile, MaxFiles: 2, MaxSize: "100M"}, Mode: ctrmodel.LogMode{Mode: ctrmodel.LogBlocking},
	})
	if end := c.NetworkSettings.Networks["bridge"]; !strings.Contains(v.Files["/etc/hosts"], end.IPAddress+"\tdefaults-host.defaults-domain") {
		t.Errorf("not in its own /etc/hosts: %+v, %s", end, v.Files["/etc/hosts"])
	}
}

func netNS(t *testing.T) string {
	ns, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func names(t *testing.T, l *lab) {
	b := l.run(t, "names", func(c *ctrmodel.Container) {
		c.ID, c.HostName, c.DomainName = "an-id-of-its-own", "radio", "car.example"
	})
	v, s := b.view(), b.spec()
	equal(t, "id", b.id, "an-id-of-its-own")
	equal(t, "host name", v.Hostname, "radio")
	equal(t, "host name for containerd", s.Hostname, "radio")
	equal(t, "domain", v.Domain, "car.example")
	if !strings.Contains(v.Files["/etc/hosts"], "\tradio.car.example names radio\n") {
		t.Errorf("hosts %q", v.Files["/etc/hosts"])
	}
	if !slices.Contains(v.Env, "HOSTNAME=radio") {
		t.Errorf("environment %q", v.Env)
	}
	if err := l.Rename(t.Context(), b.id, "other-name"); err != nil || b.get().Name != "other-name" {
		t.Errorf("renamed: %q, %v", b.get().Name, err)
	}
}

func environment(t *testing.T, l *lab) {
	b := l.run(t, "environment", func(c *ctrmodel.Container) {
		c.Config.Env = []string{"A=own", "B", "C=", "D=x=y z", "PATH=/other"}
		c.Config.Cmd = []string{"wait", "two words", "", "$A"}
	})
	v := b.view()
	equal(t, "environment", v.Env, []string{"PATH=/other", "A=own", "HOSTNAME=environment-host", "C=", "D=x=y z", "HOME=/"})
	equal(t, "arguments", v.Args, []string{"/probe", "wait", "two words", "", "$A"})
	equal(t, "environment for containerd", b.spec().Process.Env, v.Env[:5])
}

func user(t *testing.T, l *lab) {
	v := l.run(t, "user", func(c *ctrmodel.Container) {
		c.Image.Name = userImage
		c.HostConfig.ExtraCapabilities = []string{"CAP_NET_ADMIN"}
	}).view()
	equal(t, "user", []int{v.UID, v.GID}, []int{77, 78})
	equal(t, "groups", v.Groups, []int{29, 78})
	equal(t, "system call with a capability", v.Calls["net_admin"], "")
	equal(t, "system call without", v.Calls["packet"], "EPERM")
}

// mounts has a mount appear on either side, and looks whether it is seen on the other.
func mounts(t *testing.T, l *lab) {
	dir := shared(t)
	var list []ctrmodel.Mount
	modes := []string{"", "private", "rprivate", "shared", "rshared", "slave", "rslave"}
	for _, mode := range modes {
		name := "default" + mode
		for _, sub := range []string{"/host", "/container"} {
			if err := os.MkdirAll(dir+"/"+name+sub, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		list = append(list, ctrmodel.Mount{Source: dir + "/" + name, Destination: "/m/" + name, Propagation: mode})
	}
	write(t, dir+"/file", "on the host")
	below := dir + "/below"
	if err := errors.Join(os.Mkdir(below, 0o755), unix.Mount("none", below, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	list = append(list, ctrmodel.Mount{Source: dir + "/file", Destination: "/etc/one-file"},
		ctrmodel.Mount{Source: dir, Destination: "/m/fixed", ReadOnly: true})
	b := l.run(t, "mounts", func(c *ctrmodel.Container) {
		c.Mounts = list
		c.HostConfig.ExtraCapabilities = []string{"CAP_SYS_ADMIN"}
	})
	v := b.view()
	for _, mode := range modes {
		name := "default" + mode
		if err := unix.Mount("none", dir+"/"+name+"/host", "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		write(t, dir+"/"+name+"/host/x", "from the host")
		out, _ := b.probe("read", "/m/"+name+"/host/x")
		toContainer := out == "from the host"
		if out, code := b.probe("mount", "/m/"+name+"/container"); code != 0 {
			t.Fatalf("mount inside: %s", out)
		}
		b.probe("write", "/m/"+name+"/container/x", "from inside")
		_, err := os.Stat(dir + "/" + name + "/container/x")
		toHost := err == nil
		equal(t, "mode "+mode+" shows the container what the host mounts", toContainer, strings.HasSuffix(mode, "shared") || strings.HasSuffix(mode, "slave"))
		equal(t, "mode "+mode+" shows the host what the container mounts", toHost, strings.HasSuffix(mode, "shared"))
		i := slices.IndexFunc(b.spec().Mounts, func(m specs.Mount) bool { return m.Destination == "/m/"+name })
		want := mode
		if mode == "" {
			want = "rprivate"
		}
		if m := b.spec().Mounts[i]; m.Source != dir+"/"+name || !slices.Contains(m.Options, "rbind") || !slices.Contains(m.Options, want) {
			t.Errorf("for containerd: %+v", m)
		}
	}
	if out, _ := b.probe("read", "/etc/one-file"); out != "on the host" {
		t.Errorf("file: %q", out)
	}
	if options := v.Mounts["/m/fixed"]; !strings.HasPrefix(options, "ro") {
		t.Errorf("mounted %q", options)
	}
	if out, code := b.probe("write", "/m/fixed/file", "x"); code == 0 || !strings.Contains(out, "read-only file system") {
		t.Errorf("written: %q", out)
	}
	if unix.MountSetattr(-1, "", 0, &unix.MountAttr{}) == nil {
		if out, code := b.probe("write", "/m/fixed/below/file", "x"); code == 0 || !strings.Contains(out, "read-only file system") {
			t.Errorf("written to what the host has mounted below a read-only mount: %q", out)
		}
	}
	if out, code := b.probe("write", "/m/default/new", "x"); code != 0 {
		t.Errorf("not written: %q", out)
	}
}

// shared is a directory with a shared mount of its own.
func shared(t *testing.T) string {
	dir := t.TempDir()
	if err := errors.Join(unix.Mount("none", dir, "tmpfs", 0, ""), unix.Mount("", dir, "", unix.MS_SHARED, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		mounts, _ := os.ReadFile("/proc/self/mounts")
		for line := range strings.Lines(string(mounts)) {
			if path := strings.Fields(line)[1]; strings.HasPrefix(path, dir) {
				unix.Unmount(dir, unix.MNT_DETACH)
			}
		}
	})
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// devices uses numbers that no driver has: to open them ends with ENXIO if it is allowed.
func devices(t *testing.T, l *lab) {
	dir := t.TempDir()
	const major = 240 // for experiments
	node := func(name string, minor uint32) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor)))); err != nil {
			t.Fatal(err)
		}
		return path
	}
	link := filepath.Join(dir, "link")
	node("bus/a/1", 201)
	node("bus/2", 202)
	if err := os.Symlink(node("real", 200), link); err != nil {
		t.Fatal(err)
	}
	b := l.run(t, "devices", func(c *ctrmodel.Container) {
		c.HostConfig.Devices = []ctrmodel.Device{
			{OnHost: node("read", 203), InContainer: "/dev/read", Permissions: "r"}, {OnHost: node("write", 204), InContainer: "/dev/write", Permissions: "w"},
			{OnHost: node("all", 205), InContainer: "/dev/all"}, {OnHost: link, InContainer: "/dev/linked", Permissions: "rw"},
			{OnHost: filepath.Join(dir, "bus"), InContainer: "/dev/bus", Permissions: "rw"}, {OnHost: node("same", 206), Permissions: "rw"},
		}
	})
	v, s := b.view(), b.spec()
	for path, want := range map[string][2]string{ // to read and to write
		"/dev/read": {"ENXIO", "EPERM"}, "/dev/write": {"EPERM", "ENXIO"}, "/dev/all": {"ENXIO", "ENXIO"}, "/dev/linked": {"ENXIO", "ENXIO"},
		"/dev/bus/a/1": {"ENXIO", "ENXIO"}, "/dev/bus/2": {"ENXIO", "ENXIO"}, dir + "/same": {"ENXIO", "ENXIO"}, "/dev/real": {"ENOENT", "ENOENT"},
	} {
		reading, _ := b.probe("open", "r", path)
		writing, _ := b.probe("open", "w", path)
		equal(t, path, [2]string{reading, writing}, want)
	}
	// It can make nodes, but not open what it was not given.
	if _, code := b.probe("mknod", "/tmp/stolen", "240", "207"); code != 0 {
		t.Error("no node can be made")
	}
	out, _ := b.probe("open", "r", "/tmp/stolen")
	equal(t, "a device of the host", out, "EPERM")
	for _, name := range []string{"/dev/read", "/dev/bus/a/1"} {
		if !slices.Contains(v.Devices, name) || !slices.ContainsFunc(s.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == name && d.Major == major }) {
			t.Errorf("%s is not there: %q, %+v", name, v.Devices, s.Linux.Devices)
		}
	}
	if i := slices.IndexFunc(s.Linux.Resources.Devices, func(d specs.LinuxDeviceCgroup) bool { return d.Minor != nil && *d.Minor == 203 }); i < 0 || s.Linux.Resources.Devices[i].Access != "r" {
		t.Errorf("rules %+v", s.Linux.Resources.Devices)
	}
}

func privileged(t *testing.T, l *lab) {
	b := l.run(t, "privileged", func(c *ctrmodel.Container) { c.HostConfig.Privileged = true })
	v, s := b.view(), b.spec()
	own, _ := os.ReadFile("/proc/1/status")
	if !strings.Contains(string(own), "CapBnd:\t"+v.Status["CapEff"]+"\n") {
		t.Errorf("capabilities %s", v.Status["CapEff"])
	}
	equal(t, "filter", []string{v.Status["Seccomp"], v.Status["NoNewPrivs"]}, []string{"0", "0"})
	for _, call := range []string{"mount", "unshare", "net_admin", "nice", "sysctl"} {
		equal(t, call, v.Calls[call], "")
	}
	for _, call := range []string{"kexec_load", "bpf", "reboot", "settimeofday", "setns"} {
		if v.Calls[call] == "EPERM" {
			t.Errorf("%s is not permitted", call)
		}
	}

	if len(s.Linux.MaskedPaths)+len(s.Linux.ReadonlyPaths) > 0 || s.Linux.Seccomp != nil || !s.Linux.Resources.Devices[0].Allow {
		t.Errorf("for containerd: %+v", s.Linux)
	}
	kmsg, err := os.Stat("/dev/kmsg")
	if err == nil && kmsg.Mode()&os.ModeDevice != 0 && !slices.Contains(v.Devices, "/dev/kmsg") {
		t.Errorf("devices %q", v.Devices)
	}
}

func extraCapabilities(t *testing.T, l *lab) {
	b := l.run(t, "capabilities", func(c *ctrmodel.Container) {
		c.HostConfig.ExtraCapabilities = []string{"CAP_NET_ADMIN", "sys_admin", "CAP_SYS_NICE"}
	})
	v := b.view()
	equal(t, "effective", v.Status["CapEff"], "00000000a8a435fb")
	want := map[string]string{}
	for call, errno := range usual {
		want[call] = errno
	}
	for _, call := range []string{"mount", "unshare", "net_admin", "nice", "vsock"} {
		want[call] = ""
	}
	want["setns"], want["bpf"], want["clone3"] = "EBADF", "EINVAL", "EINVAL"
	if fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0); err != nil { // not every kernel has that
		want["vsock"] = unix.ErrnoName(err.(unix.Errno))
	} else {
		unix.Close(fd)
	}
	equal(t, "system calls", v.Calls, want)
	if list := b.spec().Process.Capabilities.Bounding; !slices.Contains(list, "CAP_SYS_ADMIN") {
		t.Errorf("for containerd: %q", list)
	}
}

func serve(port string) func(*ctrmodel.Container) { return cmd("serve", port) }

// neighbours looks for other containers and the host by their names.
func neighbours(t *testing.T, l *lab) {
	server := l.run(t, "server", func(c *ctrmodel.Container) {
		c.Config.Cmd = []string{"serve", "7000"}
		c.HostName, c.DomainName = "radio-server", "car.example"
	})
	server.says()
	b := l.run(t, "neighbours", func(c *ctrmodel.Container) {
		c.HostConfig.ExtraHosts = []string{
			"one:192.0.2.1", "six:2001:db8::6", "bracket:[2001:db8::7]", "host:host_ip", "device:host_ip_fields0", "other:container_radio-server",
			"nobody:container_nobody",
		}
	})
	v := b.view()
	settings := b.get().NetworkSettings.Networks["bridge"]
	peer := server.get().NetworkSettings.Networks["bridge"]
	for name, want := range map[string]string{
		"one": "192.0.2.1", "six": "2001:db8::6", "bracket": "2001:db8::7", "host": settings.Gateway, "device": settings.Gateway, "neighbours-host": settings.IPAddress,
		"localhost": "127.0.0.1",
	} {
		out, _ := b.probe("lookup", name)
		if !slices.Contains(strings.Fields(out), want) {
			t.Errorf("%s is %s, want %s", name, out, want)
		}
	}
	var six string
	for _, name := range []string{"server", "radio-server", "radio-server.car.example", "other"} {
		out, _ := b.probe("lookup", name)
		list := strings.Fields(out)
		if len(list) != 2 || !slices.Contains(list, peer.IPAddress) {
			t.Errorf("%s is %s, want %s and an address of version 6", name, out, peer.IPAddress)
			continue
		}
		six = list[1-slices.Index(list, peer.IPAddress)]
		out, _ = b.probe("dial", "tcp", name+":7000")
		equal(t, "answer of "+name, out, "radio-server")
	}
	for _, network := range []string{"tcp4", "tcp6", "udp4", "udp6"} {
		out, _ := b.probe("dial", network, "server:7000")
		equal(t, "answer by "+network, out, "radio-server")
	}
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(six, "7000"), ctrd.Patient(2*time.Second))
	if err != nil {
		t.Errorf("from the host: %v", err)
	} else {
		conn.Close()
	}
	if out, code := b.probe("lookup", "nobody"); code == 0 {
		t.Errorf("nobody is %s", out)
	}
	// The address of a neighbour goes with it.
	server.stop()
	if out, code := b.probe("lookup", "other"); code == 0 {
		t.Errorf("found %s after its end", out)
	}
	if strings.Contains(v.Files["/etc/hosts"], "container_") {
		t.Error(v.Files["/etc/hosts"])
	}
}

func ask(network, address string) (string, error) {
	conn, err := net.DialTimeout(network, address, ctrd.Patient(time.Second))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(ctrd.Patient(time.Second)))
	fmt.Fprintln(conn, "hello")
	answer := make([]byte, 100)
	n, err := conn.Read(answer)
	return string(answer[:n]), err
}

func ports(t *testing.T, l *lab) {
	mapping := func(ip string, first, last uint16, proto string) ctrmodel.Port {
		return ctrmodel.Port{Proto: proto, Container: 7000, HostIP: ip, HostPort: first, HostPortEnd: last}
	}
	a := l.run(t, "ports-a", func(c *ctrmodel.Container) {
		serve("7000")(c)
		c.HostConfig.Ports = []ctrmodel.Port{mapping("", 20000, 0, ""), mapping("", 20000, 0, "udp"), mapping("127.0.0.1", 20001, 0, "tcp"), mapping("", 20010, 20012, "tcp")}
	})
	b := l.run(t, "ports-b", func(c *ctrmodel.Container) {
		serve("7000")(c)
		c.HostConfig.Ports = []ctrmodel.Port{mapping("", 20010, 20012, "tcp")}
	})
	a.says()
	b.says()
	bridge := a.get().NetworkSettings.Networks["bridge"].Gateway
	for _, p := range []struct{ network, address, want string }{
		{"tcp", "127.0.0.1:20000", "ports-a-host"}, {"tcp", bridge + ":20000", "ports-a-host"}, {"udp", bridge + ":20000", "ports-a-host"},
		{"tcp", "127.0.0.1:20001", "ports-a-host"}, {"tcp", "127.0.0.1:20010", "ports-a-host"}, {"tcp", "127.0.0.1:20011", "ports-b-host"},
	} {
		answer, err := ask(p.network, p.address)
		if err != nil || answer != p.want {
			t.Errorf("%s %s: %q, %v, want %q", p.network, p.address, answer, err, p.want)
		}
	}
	for _, address := range []string{bridge + ":20001", "127.0.0.1:20012", "127.0.0.1:7000"} {
		if _, err := ask("tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, want a refusal", address, err)
		}
	}
	// A neighbour reaches the port, too.
	if out, _ := b.probe("dial", "tcp", bridge+":20000"); out != "ports-a-host" {
		t.Errorf("from a neighbour: %q", out)
	}
	a.stop()
	for _, address := range []string{"127.0.0.1:20000", "127.0.0.1:20001", "127.0.0.1:20010"} {
		if _, err := ask("tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s after the stop: %v, want a refusal", address, err)
		}
	}
	if l, err := net.Listen("tcp", ":20000"); err != nil {
		t.Errorf("the port is not free again: %v", err)
	} else {
		l.Close()
	}
}

func hostNetwork(t *testing.T, l *lab) {
	b := l.run(t, "host-network", func(c *ctrmodel.Container) {
		c.HostConfig.NetworkMode = ctrmodel.HostNetwork
		c.HostConfig.ExtraHosts = []string{"one:192.0.2.1"}
	})
	v := b.view()
	host, _ := os.Hostname()
	equal(t, "network", v.NetNS, netNS(t))
	equal(t, "host name", v.Hostname, host)
	equal(t, "host name that is kept", b.get().HostName, host)
	if !strings.Contains(v.Files["/etc/hosts"], "192.0.2.1\tone") {
		t.Error(v.Files["/etc/hosts"])
	}
	for _, n := range b.spec().Linux.Namespaces {
		if n.Type == specs.NetworkNamespace {
			t.Errorf("a network namespace: %+v", n)
		}
	}
	if uts, _ := os.Readlink("/proc/self/ns/uts"); uts == v.UTSNS {
		t.Error("it could rename the host")
	}
}

func noNetwork(t *testing.T, l *lab) {
	b := l.run(t, "no-network", func(c *ctrmodel.Container) {
		c.HostConfig.NetworkMode = ctrmodel.NoNetwork
		c.HostConfig.ExtraHosts = []string{"one:192.0.2.1"}
	})
	v := b.view()
	if v.NetNS == netNS(t) {
		t.Error("the network is the host's")
	}
	equal(t, "addresses", v.Addresses, []string{"127.0.0.1/8", "::1/128"})
	out, _ := b.probe("lookup", "one")
	equal(t, "extra host", out, "192.0.2.1")
	equal(t, "host name", v.Hostname, "no-network-host")
}

// decryption is for images that are not encrypted, which need no keys.
func decryption(t *testing.T, l *lab) {
	b := l.make(t, "decryption", func(c *ctrmodel.Container) {
		c.Image.Decrypt = &ctrmodel.Decrypt{Keys: []string{"/etc/key.pem:password"}, Recipients: []string{"pkcs7:/etc/cert.pem"}}
	})
	equal(t, "keys", b.get().Image.Decrypt, &ctrmodel.Decrypt{Keys: []string{"/etc/key.pem:password"}, Recipients: []string{"pkcs7:/etc/cert.pem"}})
	b.start()
	b.view()
}

func restartPolicy(t *testing.T, l *lab) {
	policy := func(p ctrmodel.RestartPolicy, code string) func(*ctrmodel.Container) {
		return func(c *ctrmodel.Container) {
			c.HostConfig.RestartPolicy = p
			c.Config.Cmd = []string{"exit", code}
		}
	}
	never := l.run(t, "never", policy(ctrmodel.RestartPolicy{Type: ctrmodel.RestartNever}, "3"))
	fine := l.run(t, "fine", policy(ctrmodel.RestartPolicy{Type: ctrmodel.RestartOnFailure}, "0"))
	twice := l.run(t, "twice", policy(ctrmodel.RestartPolicy{Type: ctrmodel.RestartOnFailure, MaxRetries: 2}, "4"))
	capped := l.run(t, "capped", policy(ctrmodel.RestartPolicy{Type: ctrmodel.RestartOnFailure, RetryTimeout: time.Second}, "5"))
	always := l.run(t, "always", policy(ctrmodel.RestartPolicy{Type: ctrmodel.RestartAlways}, "0"))
	unless := l.run(t, "unless", policy(ctrmodel.RestartPolicy{Type: ctrmodel.RestartUnlessStopped}, "6"))
	for _, b := range []*box{capped, always, unless} {
		b.await("two restarts", func() bool { return b.get().RestartCount >= 2 })
	}
	equal(t, "pause at most", capped.get().HostConfig.RestartPolicy.RetryTimeout, time.Second)
	for b, want := range map[*box][2]int64{never: {3, 0}, fine: {0, 0}, twice: {4, 2}} {
		var c *ctrmodel.Container
		b.await("the last end", func() bool {
			c = b.get()
			return c.State.Status == ctrmodel.Exited && c.RestartCount == want[1]
		})
		equal(t, c.Name, c.State.ExitCode, want[0])
	}
	// A restart counts from the end of the process before it: the last one may be still to come, and must have none after it.
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for b, want := range map[*box]int64{never: 0, fine: 0, twice: 2} {
			if n := b.get().RestartCount; n != want {
				t.Fatalf("%d restarts, want %d", n, want)
			}
		}
	}
	for _, b := range []*box{never, fine, twice} {
		equal(t, "in the end", b.get().State.Status, ctrmodel.Exited)
	}
	// They would be restarted for ever.
	for _, b := range []*box{capped, always, unless} {
		if err := b.Remove(t.Context(), b.id, true, ctrmodel.StopOptions{Signal: "KILL"}); err != nil {
			t.Error(err)
		}
	}
}

// attach starts a container with somebody attached, who gets all it says.
func attach(b *box, input io.Reader) string {
	b.t.Helper()
	var out bytes.Buffer
	attached, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- b.Attach(b.t.Context(), b.id, ctrmodel.Streams{Stdin: input, Stdout: &out, Stderr: &out}, func() { close(attached) })
	}()
	<-attached
	b.start()
	if err := <-ended; err != nil {
		b.t.Error(err)
	}
	return out.String()
}

func once(c *ctrmodel.Container) {
	c.HostConfig.RestartPolicy.Type = ctrmodel.RestartNever
}

func streams(t *testing.T, l *lab) {
	echo := func(name string, io ctrmodel.IOConfig) *box {
		return l.make(t, name, func(c *ctrmodel.Container) {
			once(c)
			c.IOConfig, c.Config.Cmd = io, []string{"echo"}
		})
	}
	closed := echo("closed", ctrmodel.IOConfig{})
	equal(t, "without an input", attach(closed, strings.NewReader("unheard\n")), "end\n")
	open := echo("open", ctrmodel.IOConfig{OpenStdin: true, StdinOnce: true})
	equal(t, "with an input", attach(open, strings.NewReader("heard\n")), "<heard>\nend\n")
	equal(t, "in the log", open.lines(), []string{"<heard>\n", "end\n"})
	both := l.make(t, "both", func(c *ctrmodel.Container) {
		once(c)
		c.Config.Cmd = []string{"both"}
	})
	out := attach(both, nil)
	if out != "out\nerr\n" && out != "err\nout\n" {
		t.Errorf("both streams: %q", out)
	}
}

func terminal(t *testing.T, l *lab) {
	b := l.make(t, "terminal", func(c *ctrmodel.Container) {
		once(c)
		c.IOConfig = ctrmodel.IOConfig{TTY: true, OpenStdin: true}
	})
	b.start()
	v := b.view()
	equal(t, "terminal", v.TTY, true)
	equal(t, "terminal for containerd", b.spec().Process.Terminal, true)
	if !slices.Contains(v.Env, "TERM=xterm") {
		t.Errorf("environment %q", v.Env)
	}
	echo := l.make(t, "terminal-echo", func(c *ctrmodel.Container) {
		once(c)
		c.IOConfig = ctrmodel.IOConfig{TTY: true, OpenStdin: true}
		c.Config.Cmd = []string{"echo"}
	})
	out := attach(echo, strings.NewReader("typed\n\x04"))
	if !strings.Contains(out, "<typed>\r\nend\r\n") {
		t.Errorf("typed: %q", out)
	}
}

func logs(t *testing.T, l *lab) {
	elsewhere := t.TempDir()
	box := func(name string, log ctrmodel.Log, args ...string) *box {
		return l.run(t, name, func(c *ctrmodel.Container) {
			once(c)
			c.HostConfig.Log, c.Config.Cmd = log, args
		})
	}
	rotated := box("rotated", ctrmodel.Log{Driver: ctrmodel.LogDriver{Type: ctrmodel.LogFile, MaxFiles: 3, MaxSize: "100k", RootDir: elsewhere}}, "lines", "10000", strings.Repeat("x", 20))
	none := box("none", ctrmodel.Log{Driver: ctrmodel.LogDriver{Type: ctrmodel.LogNone}}, "lines", "10000")
	loose := box("loose", ctrmodel.Log{Mode: ctrmodel.LogMode{Mode: ctrmodel.LogNonBlocking, MaxBufferSize: "64k"}}, "lines", "10000")
	plain := box("plain", ctrmodel.Log{}, "lines", "10000")
	for _, b := range []interface{ ends() *ctrmodel.Container }{rotated, none, loose, plain} {
		equal(t, "exit code", b.ends().State.ExitCode, 0)
	}
	files, err := filepath.Glob(filepath.Join(elsewhere, rotated.id, "json.log*"))
	if err != nil || len(files) != 3 {
		t.Errorf("files %q", files)
	}
	for _, f := range files {
		if fi, err := os.Stat(f); err != nil || fi.Size() > 101<<10 {
			t.Errorf("%s: %v, %v", f, fi, err)
		}
	}
	lines := rotated.lines()
	if n := len(lines); n < 1000 || n >= 10000 || lines[n-1] != "line 9999 xxxxxxxxxxxxxxxxxxxx\n" {
		t.Errorf("%d lines of 10000 are left", n)
	}
	if err := l.Logs(t.Context(), none.id, ctrmodel.LogOptions{Tail: -1}, func([]byte) error { return nil }); ctrmodel.KindOf(err) != ctrmodel.FailedPrecondition {
		t.Errorf("logs of none: %v", err)
	}
	equal(t, "lines", len(plain.lines()), 10000)
	// Lines may be lost here, but none is garbled.
	last := -1
	for _, line := range loose.lines() {
		var n int
		if _, err := fmt.Sscanf(line, "line %d \n", &n); err != nil || n <= last {
			t.Fatalf("%q after line %d: %v", line, last, err)
		}
		last = n
	}
	if last < 0 {
		t.Error("no lines")
	}
}

// group is the control group of the process, on the host: of version 2, or of version 1 for a controller.
func (b *box) group(controller string) string {
	b.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", b.get().State.PID))
	if err != nil {
		b.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) { // NUMBER:CONTROLLER:PATH
		if _, path, found := strings.Cut(line, ":"+controller+":"); found {
			return filepath.Join("/sys/fs/cgroup", controller, strings.TrimSpace(path))
		}
	}
	b.t.Fatalf("no group of memory: %s", text)
	return ""
}

func resources(t *testing.T, l *lab) {
	b := l.run(t, "resources", func(c *ctrmodel.Container) {
		c.HostConfig.Resources = ctrmodel.Resources{Memory: "64M", MemoryReservation: "32M", MemorySwap: "96M"}
	})
	check := func(b *box, memory, reservation, swap int64) {
		t.Helper()
		text := func(n int64, none string) string {
			if n < 0 {
				return none
			}
			return strconv.FormatInt(n, 10)
		}
		want := map[string]string{"max": text(memory, "max"), "low": text(reservation, "0"), "swap.max": text(max(swap-memory, -1), "max")}
		dir, controller := "/sys/fs/cgroup/memory.", ""
		if _, code := b.probe("read", dir+"max"); code != 0 { // version 1 counts memory and swap together
			const none = "9223372036854771712"
			dir, controller = "/sys/fs/cgroup/memory/memory.", "memory"
			want = map[string]string{
				"limit_in_bytes": text(memory, none), "soft_limit_in_bytes": text(reservation, none), "memsw.limit_in_bytes": text(swap, none),
			}
		}
		for key, want := range want {
			if _, err := os.Stat(b.group(controller) + "/memory." + key); errors.Is(err, fs.ErrNotExist) && strings.Contains(key, "sw") {
				t.Log("not checked, for this kernel has no limits of swap: ", key)
				continue
			}
			have, code := b.probe("read", dir+key)
			equal(t, "exit code of reading "+key, code, 0)
			equal(t, key, have, want)
		}
	}
	check(b, 64<<20, 32<<20, 96<<20)
	m := b.spec().Linux.Resources.Memory
	equal(t, "for containerd", []int64{*m.Limit, *m.Reservation}, []int64{64 << 20, 32 << 20})
	if err := l.Update(t.Context(), b.id, ctrmodel.UpdateOptions{Resources: &ctrmodel.Resources{Memory: "48M", MemorySwap: "48M"}}); err != nil {
		t.Fatal(err)
	}
	check(b, 48<<20, -1, 48<<20)
	free := l.run(t, "no-swap-limit", func(c *ctrmodel.Container) {
		c.HostConfig.Resources = ctrmodel.Resources{Memory: "32M", MemorySwap: "-1"}
	})
	check(free, 32<<20, -1, -1)
	doubled := l.make(t, "doubled", func(c *ctrmodel.Container) { c.HostConfig.Resources.Memory = "32M" })
	equal(t, "swap by default", doubled.get().HostConfig.Resources.MemorySwap, "64M")
	greedy := l.run(t, "greedy", func(c *ctrmodel.Container) {
		once(c)
		c.HostConfig.Resources, c.Config.Cmd = ctrmodel.Resources{Memory: "16M", MemorySwap: "16M"}, []string{"eat"}
	})
	if s := greedy.ends().State; s.ExitCode != 137 || !s.OOMKilled || s.Error == "" {
		t.Errorf("state %+v", s)
	}
}

func hooks(t *testing.T, l *lab) {
	dir := t.TempDir()
	hook := func(kind ctrmodel.HookType) ctrmodel.Hook {
		return ctrmodel.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "echo $0 $WORD $(cat) >>" + dir + "/$0", kind.String()}, Env: []string{"WORD=env"}, Type: kind, Timeout: 5}
	}
	b := l.run(t, "hooks", func(c *ctrmodel.Container) {
		c.Hooks = []ctrmodel.Hook{hook(ctrmodel.Prestart), hook(ctrmodel.Poststart), hook(ctrmodel.Poststop)}
	})
	b.view()
	b.stop()
	for _, name := range []string{"Prestart", "Poststart", "Poststop"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.HasPrefix(string(text), name+" env {") || strings.Count(string(text), "\n") != 1 || !strings.Contains(string(text), b.id) {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	failing := l.make(t, "failing-hook", func(c *ctrmodel.Container) {
		c.Hooks = []ctrmodel.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo not today >&2; exit 1"}}}
	})
	err := l.Start(t.Context(), failing.id)
	if ctrmodel.KindOf(err) != ctrmodel.FailedPrecondition ||
		!strings.Contains(err.Error(), "not today") && !strings.Contains(err.Error(), "exit code: 1") { // crun has no ear for hooks
		t.Errorf("a hook that fails: %v", err)
	}
	hanging := l.make(t, "hanging-hook", func(c *ctrmodel.Container) {
		c.Hooks = []ctrmodel.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "1000"}, Timeout: 1}}
	})
	begin := time.Now()
	if err := l.Start(t.Context(), hanging.id); err == nil || time.Since(begin) > ctrd.Patient(10*time.Second) {
		t.Errorf("a hook that hangs: %v after %v", err, time.Since(begin))
	}
}

func runtimes(t *testing.T, l *lab) {
	b := l.run(t, "old-runtime", func(c *ctrmodel.Container) { c.HostConfig.Runtime = "io.containerd.runtime.v1.linux" })
	object, err := b.containerd.Containers.Get(t.Context(), b.id)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "runtime", object.Runtime.Name, "io.containerd.runc.v2")
	equal(t, "runtime that was asked for", b.get().HostConfig.Runtime, "io.containerd.runtime.v1.linux")
}
