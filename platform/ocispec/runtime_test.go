// SPDX-License-Identifier: Apache-2.0

package ocispec

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"sdvbox/platform/ctrmodel"
)

// box is a container that runc or another runtime runs.
type box struct {
	t       *testing.T
	runtime string
	id      string
	bundle  string
	rootfs  string
	c       *ctrmodel.Container
	img     v1.ImageConfig
	host    Host
}

func newBox(t *testing.T, runtime string, cmd ...string) *box {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err == nil {
		_, err = exec.LookPath(runtime)
	}
	if err == nil && os.Getuid() != 0 {
		err = os.ErrPermission
	}
	if err != nil {
		if os.Getenv("SDVBOX_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	bundle := t.TempDir()
	b := &box{t: t, runtime: runtime, bundle: bundle, rootfs: filepath.Join(bundle, "rootfs"), host: Probe()}
	b.id = fmt.Sprintf("ocispec-%d-%d", os.Getpid(), time.Now().UnixNano())
	for _, dir := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(b.rootfs, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.file("bin/busybox", string(busybox))
	if err := os.Chmod(filepath.Join(b.rootfs, "bin/busybox"), 0o755); err != nil {
		t.Fatal(err)
	}
	for tool := range strings.FieldsSeq("sh cat id mount head dd ls grep sleep test unshare stty hostname dnsdomainname env pwd od touch readlink chroot nice sed") {
		if err := os.Symlink("busybox", filepath.Join(b.rootfs, "bin", tool)); err != nil {
			t.Fatal(err)
		}
	}
	b.c = &ctrmodel.Container{Image: ctrmodel.Image{Name: "test"}, Config: ctrmodel.Config{Cmd: cmd}}
	b.img.Env = []string{"PATH=/bin"}
	return b
}

// sh is a box that runs a script.
func sh(t *testing.T, script string) *box {
	t.Helper()
	return newBox(t, "runc", "sh", "-c", script)
}

func (b *box) file(name, text string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.rootfs, name), []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// spec writes the specification where a runtime looks for it.
func (b *box) spec() *specs.Spec {
	b.t.Helper()
	b.c.Defaults(func() string { return b.id })
	if err := b.c.Validate(); err != nil {
		b.t.Fatal(err)
	}
	s, err := Build(b.c, b.img, Options{Namespace: "ocispec-test", Rootfs: b.rootfs, Host: b.host})
	if err != nil {
		b.t.Fatal(err)
	}
	b.json("config.json", s)
	return s
}

func (b *box) json(name string, v any) string {
	b.t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		b.t.Fatal(err)
	}
	path := filepath.Join(b.bundle, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// command lets the runtime do something.
func (b *box) command(args ...string) *exec.Cmd {
	args = append([]string{b.runtime, "--root", filepath.Join(b.bundle, "state")}, args...)
	if b.runtime == "crun" { // it does not like both versions of cgroups at a time
		args = append([]string{"unshare", "-m", "sh", "-c", `umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"`, "sh"}, args...)
	}
	cmd := exec.CommandContext(b.t.Context(), args[0], args[1:]...)
	cmd.Dir = b.bundle
	return cmd
}

func (b *box) do(args ...string) string {
	b.t.Helper()
	out, err := b.command(args...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("%s %q: %v\n%s", b.runtime, args, err, out)
	}
	return string(out)
}

// run is what the container says. It fails the test if the container does not end well.
func (b *box) run() string {
	b.t.Helper()
	b.spec()
	return b.do("run", b.id)
}

// start leaves the container running.
func (b *box) start() *specs.Spec {
	b.t.Helper()
	s := b.spec()
	b.t.Cleanup(func() {
		exec.Command(b.runtime, "--root", filepath.Join(b.bundle, "state"), "delete", "-f", b.id).Run()
	})
	cmd := b.command("run", "-d", b.id)
	if err := cmd.Run(); err != nil { // not its output, which the container has, too
		b.t.Fatal(err)
	}
	return s
}

// runTTY runs the container at a terminal.
func (b *box) runTTY() string {
	b.t.Helper()
	b.spec()
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	defer pty.Close()
	unix.IoctlSetPointerInt(int(pty.Fd()), unix.TIOCSPTLCK, 0)
	n, err := unix.IoctlGetInt(int(pty.Fd()), unix.TIOCGPTN)
	if err != nil {
		b.t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	cmd := b.command("run", b.id)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	err = cmd.Start()
	tty.Close()
	if err != nil {
		b.t.Fatal(err)
	}
	var out strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := pty.Read(buf)
		out.Write(buf[:n])
		if err != nil { // EIO once nobody has the terminal
			break
		}
	}
	if err := cmd.Wait(); err != nil {
		b.t.Fatalf("%v\n%s", err, out.String())
	}
	return out.String()
}

// want checks the lines KEY VALUE of an output. A key may be followed by a colon.
func want(t *testing.T, out string, wanted map[string]string) {
	t.Helper()
	got := map[string]string{}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":\t"); ok {
			key, value = k, v
		}
		got[key] = strings.TrimSpace(value)
	}
	for key, value := range wanted {
		if got[key] != value {
			t.Errorf("%s: got %q, want %q", key, got[key], value)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

func TestContainerSeesWhatItWasGiven(t *testing.T) {
	b := sh(t, `
echo hostname $(hostname)
echo domain $(cat /proc/sys/kernel/domainname)
echo cwd $(pwd)
echo A=$A. B=${B-unset} C=$C HOSTNAME=$HOSTNAME TERM=${TERM-unset}
echo resolv $(cat /etc/resolv.conf)
echo hosts $(cat /etc/hosts)
echo data $(cat /data/x /data/deep/y)
echo write $(touch /data/z 2>&1)
echo read-only $(touch /fixed/z 2>&1)
echo shm $(touch /dev/shm/x 2>&1)
echo run $(ls /run 2>&1)
echo cgroup $(head -n 1 /proc/self/cgroup | sed 's/.*://')
echo loopback $(cat /sys/class/net/*/address)
`)
	dir := t.TempDir()
	for name, text := range map[string]string{"resolv": "nameserver 1.2.3.4", "hosts": "1.2.3.4 me", "x": "X", "y": "Y"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	deep := t.TempDir()
	if err := os.WriteFile(filepath.Join(deep, "y"), []byte("Y"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := b.c
	c.Name, c.HostName, c.DomainName = "n", "me", "example.org"
	c.ResolvConfPath, c.HostsPath = filepath.Join(dir, "resolv"), filepath.Join(dir, "hosts")
	c.Config.Env = []string{"A=", "B", "C=c"}
	c.Mounts = []ctrmodel.Mount{
		{Source: deep, Destination: "/data/deep/"}, // before what it is in
		{Source: dir, Destination: "/data"}, {Source: deep, Destination: "/fixed", ReadOnly: true},
	}
	b.img.Env = append(b.img.Env, "A=a", "B=b")
	b.img.WorkingDir = "/tmp/new"
	b.img.Cmd = []string{"not", "this"}
	want(t, b.run(), map[string]string{
		"hostname": "me", "domain": "example.org", "cwd": "/tmp/new",
		"A=.": "B=unset C=c HOSTNAME=me TERM=unset", "resolv": "nameserver 1.2.3.4", "hosts": "1.2.3.4 me", "data": "XY",
		"write": "", "read-only": "touch: /fixed/z: Read-only file system", "shm": "", "run": "ls: /run: No such file or directory",
		"cgroup": "/", "loopback": "00:00:00:00:00:00",
	})
}

func TestNothingBelowAReadOnlyMountIsWritten(t *testing.T) {
	for _, runtime := range []string{"runc", "crun"} {
		for _, propagation := range []string{"rprivate", "rslave", "shared"} {
			t.Run(runtime+" "+propagation, func(t *testing.T) {
				b := newBox(t, runtime, "sh", "-c", `
echo top $(touch /mnt/x 2>&1)
echo sub $(touch /mnt/sub/x 2>&1)
echo deep $(touch /mnt/sub/deep/x 2>&1)
echo own $(touch /mnt/own/x 2>&1)
`)
				if !b.host.Recursive {
					t.Skip("a kernel before 5.12")
				}
				dir, own := t.TempDir(), t.TempDir()
				for _, sub := range []string{".", "sub", "sub/deep"} {
					at := filepath.Join(dir, sub)
					err := os.MkdirAll(at, 0o755)
					if err == nil {
						err = unix.Mount("none", at, "tmpfs", 0, "")
					}
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
				}
				if err := os.Mkdir(filepath.Join(dir, "own"), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
					t.Fatal(err)
				}
				b.c.Mounts = []ctrmodel.Mount{{Source: dir, Destination: "/mnt", Propagation: propagation, ReadOnly: true}, {Source: own, Destination: "/mnt/own"}}
				want(t, b.run(), map[string]string{
					"top": "touch: /mnt/x: Read-only file system", "sub": "touch: /mnt/sub/x: Read-only file system",
					"deep": "touch: /mnt/sub/deep/x: Read-only file system", "own": "",
				})
				if err := os.WriteFile(filepath.Join(dir, "sub/deep/host"), nil, 0o644); err != nil {
					t.Errorf("the host cannot write there any more: %v", err)
				}
			})
		}
	}
}

// That makes no difference if there is no place in the one between either.
func TestNothingBelowIsWrittenIfAMountInAnotherOneHasItsPlaceThere(t *testing.T) {
	for _, runtime := range []string{"runc", "crun"} {
		for _, deep := range []string{".", "deep"} {
			t.Run(runtime+" "+deep, func(t *testing.T) {
				b := newBox(t, runtime, "sh", "-c", `
echo sub $(touch /mnt/sub/x 2>&1)
echo between $(touch /mnt/m/x 2>&1)
echo deep $(touch /mnt/m/deep/x 2>&1)
`)
				if !b.host.Recursive {
					t.Skip("a kernel before 5.12")
				}
				dir, between := t.TempDir(), t.TempDir()
				for _, path := range []string{filepath.Join(dir, "m"), filepath.Join(dir, "sub"), filepath.Join(between, deep)} {
					if err := os.MkdirAll(path, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				sub := filepath.Join(dir, "sub")
				if err := unix.Mount("none", sub, "tmpfs", 0, ""); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { unix.Unmount(sub, unix.MNT_DETACH) })
				b.c.Mounts = []ctrmodel.Mount{
					{Source: dir, Destination: "/mnt", ReadOnly: true}, {Source: between, Destination: "/mnt/m"}, {Source: t.TempDir(), Destination: "/mnt/m/deep"},
				}
				want(t, b.run(), map[string]string{"sub": "touch: /mnt/sub/x: Read-only file system", "between": "", "deep": ""})
			})
		}
	}
}

// crun makes the place for a mount in a read-only one if there is none.
func TestContainerStartsThatHasAMountInAReadOnlyOne(t *testing.T) {
	b := newBox(t, "crun", "sh", "-c", "echo new $(touch /mnt/new/x 2>&1); echo top $(touch /mnt/x 2>&1)")
	b.c.Mounts = []ctrmodel.Mount{{Source: t.TempDir(), Destination: "/mnt", ReadOnly: true}, {Source: t.TempDir(), Destination: "/mnt/new"}}
	want(t, b.run(), map[string]string{"new": "", "top": "touch: /mnt/x: Read-only file system"})
}

func TestContainerIsConfined(t *testing.T) {
	for _, runtime := range []string{"runc", "crun"} {
		t.Run(runtime, func(t *testing.T) {
			b := newBox(t, runtime, "sh", "-c", `
cat /proc/self/status
echo kcore $(head -c 1 /proc/kcore | od)
echo firmware $(ls /sys/firmware)
echo sys $(echo 1 2>&1 >/proc/sys/kernel/panic)
echo namespace $(unshare -U true 2>&1)
echo chroot $(chroot / cat /etc/word)
echo mount $(mount -t tmpfs x /tmp 2>&1)
echo cgroup $(cd /sys/fs/cgroup; cd memory 2>/dev/null; touch x 2>&1)
echo files $(ulimit -S -n)
echo pids $(cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null)
echo null $(echo x >/dev/null && head -c 1 /dev/zero | od -An -b)
`)
			b.file("etc/word", "fine")
			want(t, b.run(), map[string]string{
				"CapInh": "0000000000000000", "CapPrm": "00000000a80425fb", "CapEff": "00000000a80425fb", "CapBnd": "00000000a80425fb",
				"CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
				"kcore": "0000000", "firmware": "", "sys": "sh: can't create /proc/sys/kernel/panic: Read-only file system",
				"namespace": "unshare: unshare(0x10000000): Operation not permitted", "chroot": "fine",
				"mount": "mount: permission denied (are you root?)", "cgroup": "touch: x: Read-only file system",
				"files": "1024", "pids": "8192", "null": "000",
			})
		})
	}
}

func TestContainerWithoutANetworkHasItsLoopback(t *testing.T) {
	for _, runtime := range []string{"runc", "crun"} {
		t.Run(runtime, func(t *testing.T) {
			b := newBox(t, runtime, "sh", "-c", `
echo own $(readlink /proc/self/ns/net)
echo lo $(cat /sys/class/net/lo/flags)
echo up $(grep -L -i '^0x.*[02468ace]$' /sys/class/net/*/flags)
`)
			b.c.HostConfig.NetworkMode = ctrmodel.NoNetwork
			out := b.run()
			want(t, out, map[string]string{"lo": "0x9", "up": "/sys/class/net/lo/flags"})
			if host, err := os.Readlink("/proc/self/ns/net"); err != nil || strings.Contains(out, host) {
				t.Errorf("it is in the host's network %s, %v", host, err)
			}
		})
	}
}

func TestPrivilegedContainerHasAll(t *testing.T) {
	b := sh(t, `
cat /proc/self/status
echo sys $(echo 7 2>&1 >/proc/sys/kernel/msgmax; cat /proc/sys/kernel/msgmax)
mount -t tmpfs x /shared/in && touch /shared/in/seen || exit 1
ls /dev
`)
	shared := t.TempDir()
	if err := os.Mkdir(filepath.Join(shared, "in"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Unmount(filepath.Join(shared, "in"), unix.MNT_DETACH)
		unix.Unmount(shared, unix.MNT_DETACH)
	})
	if err := unix.Mount(shared, shared, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", shared, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	b.c.HostConfig.Privileged = true
	b.c.Mounts = []ctrmodel.Mount{{Source: shared, Destination: "/shared", Propagation: "rshared"}}
	out := b.run()
	all := fmt.Sprintf("%016x", b.host.Capabilities)
	want(t, out, map[string]string{
		"CapEff": all, "CapBnd": all, "NoNewPrivs": "0", "Seccomp": "0", "sys": "7", "kmsg": "", "ptmx": "", "full": "",
	})
	if !strings.Contains(out, "\nkmsg\n") {
		t.Error("the devices of the host are not there")
	}
	if _, err := os.Stat(filepath.Join(shared, "in/seen")); err != nil {
		t.Errorf("a shared mount is not seen by the host: %v", err)
	}
}

func TestContainerRunsAsTheUserOfItsImage(t *testing.T) {
	for user, id := range map[string]string{
		"radio": "uid=1001(radio) gid=2001(radio) groups=44(video),2001(radio)", "radio:video": "uid=1001(radio) gid=44(video) groups=44(video)",
		"7:8": "uid=7 gid=8 groups=8",
	} {
		b := sh(t, "echo $(id); grep Cap /proc/self/status; unshare -n sh -c 'echo got network'")
		b.img.User = user
		b.file("etc/passwd", "root:x:0:0::/:/bin/sh\nradio:x:1001:2001::/home:/bin/sh\n")
		b.file("etc/group", "root:x:0:\nvideo:x:44:other,radio\nradio:x:2001:radio\n")
		b.c.HostConfig.ExtraCapabilities = []string{"CAP_SYS_ADMIN", "net_admin"}
		out := b.run()
		want(t, out, map[string]string{"CapAmb": "0000000000201000", "CapEff": "0000000000201000", "CapBnd": "00000000a82435fb", "got": "network"})
		if !strings.HasPrefix(out, id+"\n") {
			t.Errorf("%s: got %s, want %s", user, out, id)
		}
	}
}

func TestContainerHasTheDevicesItWasGiven(t *testing.T) {
	blocks, _ := filepath.Glob("/sys/class/block/*/dev")
	if len(blocks) == 0 {
		t.Skip("no block device")
	}
	number, err := os.ReadFile(blocks[0])
	if err != nil {
		t.Fatal(err)
	}
	var major, minor uint32
	fmt.Sscanf(string(number), "%d:%d", &major, &minor)

	b := sh(t, `
head -c 1 /dev/mine/a/disk >/dev/null && echo read ok
echo write $(dd of=/dev/mine/a/disk conv=notrunc count=0 </dev/null 2>&1)
echo names $(ls -1 /dev/mine/a)
`)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	node := filepath.Join(dir, "a/disk")
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor))); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"link": dir, "a/again": "disk", "a/broken": "nothing"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "a/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	b.c.HostConfig.Devices = []ctrmodel.Device{{OnHost: dir + "/link", InContainer: "/dev/mine", Permissions: "r"}}
	want(t, b.run(), map[string]string{
		"read": "ok", "write": "dd: can't open '/dev/mine/a/disk': Operation not permitted", "names": "again disk",
	})
	for path, message := range map[string]string{
		"/dev/not-there": "no such file", dir + "/a/file": "expected a device", t.TempDir(): "expected a device",
	} {
		b.c.HostConfig.Devices = []ctrmodel.Device{{OnHost: path, InContainer: "/x", Permissions: "r"}}
		wantKind(t, b, ctrmodel.FailedPrecondition, message)
	}
}

func TestContainerKeepsItsLimits(t *testing.T) {
	const show = `cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes memory/memory.soft_limit_in_bytes 2>/dev/null ||
cat memory.max memory.swap.max memory.low`
	b := sh(t, "sleep 60")
	b.c.HostConfig.Resources = ctrmodel.Resources{Memory: "32M", MemoryReservation: "16M"}
	b.start()
	check := func(v1, v2 string) {
		t.Helper()
		want := v1
		if b.host.CgroupV2 {
			want = v2
		}
		if got := strings.Join(strings.Fields(b.do("exec", b.id, "sh", "-c", show)), " "); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	// Version 1 counts memory and swap together.
	check("33554432 67108864 16777216", "33554432 33554432 16777216")
	const unlimited = "9223372036854771712"
	for _, test := range []struct {
		r      ctrmodel.Resources
		v1, v2 string
	}{
		{ctrmodel.Resources{Memory: "128M", MemorySwap: "128M"}, "134217728 134217728 " + unlimited, "134217728 0 0"},
		{ctrmodel.Resources{Memory: "16M", MemorySwap: "-1"}, "16777216 " + unlimited + " " + unlimited, "16777216 max 0"},
		{ctrmodel.Resources{}, unlimited + " " + unlimited + " " + unlimited, "max max 0"},
	} {
		r, err := Limits(test.r, b.host)
		if err != nil {
			t.Fatal(err)
		}
		b.do("update", "-r", b.json("limits.json", r), b.id)
		check(test.v1, test.v2)
	}
}

func TestContainerWithTerminal(t *testing.T) {
	b := sh(t, "test -t 0 && echo TERM=$TERM; stty -a | head -n 1; readlink /dev/ptmx")
	b.c.IOConfig.TTY = true
	if out := b.runTTY(); !strings.Contains(out, "TERM=xterm\r\n") || !strings.Contains(out, "speed") || !strings.Contains(out, "pts/ptmx") {
		t.Error(out)
	}
}

func TestHooksRunAtTheirMoments(t *testing.T) {
	b := sh(t, "exit 0")
	log := filepath.Join(t.TempDir(), "log")
	for i, text := range []string{"prestart", "poststart", "poststop"} {
		b.c.Hooks = append(b.c.Hooks, ctrmodel.Hook{
			Path: "/bin/sh", Args: []string{"sh", "-c", "echo $WORD >>" + log}, Env: []string{"WORD=" + text}, Type: ctrmodel.HookType(i),
		})
	}
	b.run()
	if got, _ := os.ReadFile(log); string(got) != "prestart\npoststart\npoststop\n" {
		t.Errorf("%s", got)
	}
	b.c.Hooks[1].Type = ctrmodel.UnknownHook
	wantKind(t, b, ctrmodel.InvalidArgument, "hooks[1]: type 3")
}

func TestAnotherProcess(t *testing.T) {
	b := sh(t, "sleep 60")
	b.file("etc/passwd", "root:x:0:0::/:/bin/sh\nradio:x:1001:2001::/home:/bin/sh\n")
	b.c.Config.Env = []string{"A=a", "B=b"}
	s := b.start()
	for _, test := range []struct {
		o    ctrmodel.ExecOptions
		want map[string]string
	}{
		{ctrmodel.ExecOptions{}, map[string]string{"uid": "0", "A=a": "B=b", "cwd": "/", "NoNewPrivs": "1", "CapEff": "00000000a80425fb", "Seccomp": "2"}},
		{ctrmodel.ExecOptions{Env: []string{"A=x", "B"}, Dir: "/tmp", User: "radio"}, map[string]string{"uid": "1001", "A=x": "B=", "cwd": "/tmp"}},
		{ctrmodel.ExecOptions{Privileged: true}, map[string]string{"NoNewPrivs": "0", "CapEff": fmt.Sprintf("%016x", b.host.Capabilities)}},
	} {
		test.o.Args = []string{"sh", "-c", "echo uid $(id -u); echo A=$A B=$B; echo cwd $(pwd); cat /proc/self/status"}
		p, err := Process(s, test.o, b.host, b.rootfs)
		if err != nil {
			t.Fatal(err)
		}
		want(t, b.do("exec", "-p", b.json("process.json", p), b.id), test.want)
	}
}

// wantKind expects the specification to fail.
func wantKind(t *testing.T, b *box, kind ctrmodel.Kind, message string) {
	t.Helper()
	_, err := Build(b.c, b.img, Options{Namespace: "n", Rootfs: b.rootfs, Host: b.host})
	if err == nil || ctrmodel.KindOf(err) != kind || !strings.Contains(err.Error(), message) {
		t.Errorf("got error %v, want %q and kind %d", err, message, kind)
	}
}
