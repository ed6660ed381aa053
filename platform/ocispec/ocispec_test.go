// SPDX-License-Identifier: Apache-2.0

package ocispec

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"sdvbox/platform/ctrmodel"
)

// full is a host that can do all.
var full = Host{Swap: true, Pids: true, Seccomp: true, Recursive: true, Capabilities: 1<<len(ctrmodel.Capabilities) - 1}

// build is the specification of a container with a change.
func build(t *testing.T, img v1.ImageConfig, host Host, change func(c *ctrmodel.Container)) (*specs.Spec, error) {
	t.Helper()
	c := &ctrmodel.Container{Image: ctrmodel.Image{Name: "image"}, Config: ctrmodel.Config{Cmd: []string{"run"}}}
	if change != nil {
		change(c)
	}
	c.Defaults(func() string { return "id" })
	return Build(c, img, Options{Namespace: "ns", NetNS: "/run/netns/x", Host: host})
}

func TestArgumentsComeFromImageAndContainer(t *testing.T) {
	for _, test := range []struct{ entrypoint, image, own, want []string }{
		{nil, []string{"a", "b"}, nil, []string{"a", "b"}},
		{[]string{"e"}, []string{"a"}, nil, []string{"e", "a"}},
		{[]string{"e", "f"}, []string{"a"}, []string{"x", "y"}, []string{"e", "f", "x", "y"}},
		{nil, nil, []string{"x"}, []string{"x"}},
	} {
		s, err := build(t, v1.ImageConfig{Entrypoint: test.entrypoint, Cmd: test.image}, full, func(c *ctrmodel.Container) { c.Config.Cmd = test.own })
		if err != nil || !slices.Equal(s.Process.Args, test.want) {
			t.Errorf("got %v, %v, want %q", s, err, test.want)
		}
	}
	_, err := build(t, v1.ImageConfig{}, full, func(c *ctrmodel.Container) { c.Config.Cmd = nil })
	if ctrmodel.KindOf(err) != ctrmodel.InvalidArgument || !strings.Contains(err.Error(), "what to run") {
		t.Error(err)
	}
}

func TestNetworks(t *testing.T) {
	for mode, want := range map[string]*specs.LinuxNamespace{
		"bridge": {Type: "network", Path: "/run/netns/x"}, "host": nil, "none": {Type: "network"},
	} {
		s, err := build(t, v1.ImageConfig{}, full, func(c *ctrmodel.Container) { c.HostConfig.NetworkMode = mode })
		if err != nil {
			t.Fatal(err)
		}
		var got *specs.LinuxNamespace
		for _, n := range s.Linux.Namespaces {
			if n.Type == specs.NetworkNamespace {
				got = &n
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v", mode, got)
		}
	}
}

func TestHostThatCannotDoAll(t *testing.T) {
	memory := func(c *ctrmodel.Container) { c.HostConfig.Resources.Memory = "64M" }
	s, err := build(t, v1.ImageConfig{}, Host{Systemd: true}, memory)
	if err != nil {
		t.Fatal(err)
	}
	r := s.Linux.Resources
	if s.Linux.Seccomp != nil || r.Pids != nil || r.Memory.Swap != nil || *r.Memory.Limit != 64<<20 || r.Memory.Reservation != nil {
		t.Errorf("%+v", r)
	}
	if s.Linux.CgroupsPath != "system.slice:ns:id" {
		t.Errorf("cgroup of systemd: %s", s.Linux.CgroupsPath)
	}
	if s, err = build(t, v1.ImageConfig{}, full, memory); err != nil || s.Linux.CgroupsPath != "/ns/id" || *s.Linux.Resources.Memory.Swap != 128<<20 {
		t.Error(s, err)
	}
	if s, err = build(t, v1.ImageConfig{}, full, nil); err != nil || s.Linux.Resources.Memory != nil {
		t.Errorf("limits that nobody has set: %+v, %v", s.Linux.Resources.Memory, err)
	}
}

func TestCapabilities(t *testing.T) {
	for _, test := range []struct {
		extra []string
		host  Host
		n     int // how many there are in the end
		err   string
		kind  ctrmodel.Kind
	}{
		{nil, full, 14, "", 0},
		{[]string{"CAP_NET_ADMIN", "net_raw"}, full, 15, "", 0},
		{[]string{"ALL"}, full, 41, "", 0},
		{nil, Host{Capabilities: 1}, 1, "", 0},
		{[]string{"CAP_NONSENSE"}, full, 0, `extra_capabilities[0]: there is no capability "CAP_NONSENSE"`, ctrmodel.InvalidArgument},
		{[]string{"CAP_KILL", "CAP_BPF"}, Host{Capabilities: 1 << 5}, 0, "extra_capabilities[1]: nobody", ctrmodel.FailedPrecondition},
	} {
		s, err := build(t, v1.ImageConfig{}, test.host, func(c *ctrmodel.Container) { c.HostConfig.ExtraCapabilities = test.extra })
		if err != nil {
			if test.err == "" || ctrmodel.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%q: %v", test.extra, err)
			}
			continue
		}
		caps := s.Process.Capabilities
		if len(caps.Bounding) != test.n || len(caps.Ambient) != 0 || !slices.Equal(caps.Effective, caps.Permitted) {
			t.Errorf("%q: got %+v", test.extra, caps)
		}
	}
}

func TestMountsOfAContainerReplaceTheUsualOnes(t *testing.T) {
	dir := t.TempDir()
	s, err := build(t, v1.ImageConfig{}, full, func(c *ctrmodel.Container) {
		c.HostsPath = dir
		c.Mounts = []ctrmodel.Mount{
			{Source: dir, Destination: "/dev/shm/"}, {Source: dir, Destination: "etc/hosts", ReadOnly: true},
			{Source: dir, Destination: "/x/../y", Propagation: "rslave"},
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for destination, options := range map[string][]string{
		"/dev/shm": {"rbind", "rprivate"}, "/etc/hosts": {"rbind", "rprivate", "ro", "rro"}, "/y": {"rbind", "rslave"},
	} {
		var got []specs.Mount
		for _, m := range s.Mounts {
			if m.Destination == destination {
				got = append(got, m)
			}
		}
		if len(got) != 1 || got[0].Source != dir || !slices.Equal(got[0].Options, options) {
			t.Errorf("%s: %+v", destination, got)
		}
	}
	if s.Linux.RootfsPropagation != "rslave" {
		t.Errorf("propagation %q", s.Linux.RootfsPropagation)
	}
	_, err = build(t, v1.ImageConfig{}, full, func(c *ctrmodel.Container) {
		c.Mounts = []ctrmodel.Mount{{Source: dir + "/not-there", Destination: "/x"}}
	})
	if ctrmodel.KindOf(err) != ctrmodel.FailedPrecondition || !strings.Contains(err.Error(), "mount "+dir+"/not-there") {
		t.Error(err)
	}
}

func TestReadOnlyMountIsSoWithAllThatIsMountedInIt(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"sub", "a/b"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		what    string
		host    Host
		runtime string
		more    []string // destinations of other mounts
		want    bool
	}{
		{"alone", full, "", nil, true},
		{"old kernel", Host{}, "", nil, false},
		{"old name of runc", full, "io.containerd.runtime.v1.linux", nil, true},
		{"kata", full, "io.containerd.kata.v2", nil, false},
		{"runsc", full, "io.containerd.runsc.v1", nil, false},
		{"others beside it", full, "", []string{"/mnt2", "/", "/mn", "/mnt/../x"}, true},
		{"others in it", full, "", []string{"/mnt/sub", "/mnt/a/b/", "mnt/a"}, true},
		{"one in it that has no place there", full, "", []string{"/mnt/sub", "mnt/a/c"}, false},
	} {
		s, err := build(t, v1.ImageConfig{}, test.host, func(c *ctrmodel.Container) {
			c.HostConfig.Runtime = test.runtime
			c.Mounts = []ctrmodel.Mount{{Source: dir, Destination: "/mnt/", ReadOnly: true}}
			for _, to := range test.more {
				c.Mounts = append(c.Mounts, ctrmodel.Mount{Source: dir, Destination: to})
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return slices.Contains(m.Options, "ro") && m.Source == dir })
		if i < 0 || slices.Contains(s.Mounts[i].Options, "rro") != test.want {
			t.Errorf("%s: %+v", test.what, s.Mounts)
		}
	}
}

// The place of a mount is in the one that is mounted there last.
func TestMountInAnotherOneHasItsPlaceThere(t *testing.T) {
	for _, test := range []struct {
		what         string
		dir, between string // what is there before
		want         bool
	}{
		{"in the one between only", "m", "deep", true},
		{"in the lower one only", "m/deep", "", false},
		{"nowhere for the one between", "", "deep", false},
	} {
		dir, between, in := t.TempDir(), t.TempDir(), t.TempDir()
		for _, path := range []string{filepath.Join(dir, test.dir), filepath.Join(between, test.between)} {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, readOnly := range []bool{false, true} { // the one between
			s, err := build(t, v1.ImageConfig{}, full, func(c *ctrmodel.Container) {
				c.Mounts = []ctrmodel.Mount{
					{Source: dir, Destination: "/mnt", ReadOnly: true}, {Source: between, Destination: "/mnt/m", ReadOnly: readOnly}, {Source: in, Destination: "/mnt/m/deep"},
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range s.Mounts {
				got := slices.Contains(m.Options, "rro")
				switch m.Source {
				case dir:
					if want := test.dir != ""; got != want {
						t.Errorf("%s: the lowest one: %q", test.what, m.Options)
					}
				case between:
					if want := readOnly && test.between != ""; got != want {
						t.Errorf("%s: the one between: %q", test.what, m.Options)
					}
				}
			}
		}
	}
}

func TestSystemCallsDependOnCapabilities(t *testing.T) {
	for _, test := range []struct {
		caps            []string
		allowed, denied []string
		unknown         []string // look as if the kernel did not have them
	}{
		{nil, []string{"read", "futex", "ptrace"}, []string{"mount", "chroot", "bpf", "keyctl", "syslog"}, []string{"clone3", "clone", "vm86", "nonsense"}},
		{[]string{"CAP_SYS_CHROOT"}, []string{"chroot"}, []string{"mount"}, nil},
		{[]string{"CAP_BPF"}, []string{"bpf"}, []string{"mount"}, nil},
		{[]string{"CAP_SYS_ADMIN"}, []string{"bpf", "mount", "clone3"}, []string{"keyctl"}, []string{"nonsense"}},
	} {
		allowed, denied := calls(test.caps)
		for _, name := range test.allowed {
			if !slices.Contains(allowed, name) || slices.Contains(denied, name) {
				t.Errorf("%q: %s is not allowed", test.caps, name)
			}
		}
		for _, name := range test.denied {
			if slices.Contains(allowed, name) || !slices.Contains(denied, name) {
				t.Errorf("%q: %s is not denied", test.caps, name)
			}
		}
		for _, name := range test.unknown {
			if slices.Contains(allowed, name) || slices.Contains(denied, name) {
				t.Errorf("%q: %s is known", test.caps, name)
			}
		}
	}
	for line := range strings.Lines(syscalls) {
		if name, ok := strings.CutSuffix(strings.TrimSpace(line), ":"); ok && strings.HasPrefix(name, "CAP_") {
			if !full.has(name[4:]) {
				t.Errorf("seccomp.txt: there is no capability %s", name)
			}
		}
	}
}

// image is a root file system with users.
func image(t testing.TB, passwd, group string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"etc/passwd": passwd, "etc/group": group} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestUsers(t *testing.T) {
	dir := image(t,
		"# users\nroot:x:0:0:root:/root:/bin/sh\nradio:x:1001:2001::/:\n77:x:1077:2077::/:\nbroken:x:a:b::/:\nshort:x\n:x:5:5::/:\nother:x:5001:6001::/:\n",
		"root:x:0:\nvideo:x:44:root,radio\naudio:x:45:radio\nbroken:x:a:radio\nshort:x\nradio:x:2001:radio\n")
	for _, test := range []struct {
		text   string
		uid    uint32
		groups []uint32 // the first is the user's own
		err    string
	}{
		{"", 0, []uint32{0}, ""},
		{"root", 0, []uint32{0, 44}, ""},
		{"radio", 1001, []uint32{2001, 44, 45}, ""},
		{"1001", 1001, []uint32{2001, 44, 45}, ""},
		{"77", 1077, []uint32{2077}, ""},
		{"123", 123, []uint32{0}, ""},
		{"123:456", 123, []uint32{456}, ""},
		{"123:video", 123, []uint32{44}, ""},
		{"radio:9", 1001, []uint32{9}, ""},
		{"radio:video", 1001, []uint32{44}, ""},
		{"nobody", 0, nil, `user "nobody" is not in /etc/passwd of the image`},
		{"broken", 0, nil, `user "broken"`},
		{"radio:nobody", 0, nil, `group "nobody" is not in /etc/group of the image`},
		{"4294967295", 0, nil, "user"},
		{"-1", 0, nil, "user"},
		{":video", 0, nil, "user"},
	} {
		u, err := lookUpUser(test.text, dir)
		switch {
		case test.err != "":
			if err == nil || !strings.Contains(err.Error(), test.err) || ctrmodel.KindOf(err) != ctrmodel.InvalidArgument {
				t.Errorf("%q: got %v, want %s", test.text, err, test.err)
			}
		case err != nil || u.UID != test.uid || u.GID != test.groups[0] || !slices.Equal(u.AdditionalGids, test.groups):
			t.Errorf("%q: got %+v, %v", test.text, u, err)
		}
	}
	for text, want := range map[string]bool{"": false, "1:2": false, "1": true, "root": true, "1:root": true, "root:1": true} {
		if NeedsRootfs(text) != want {
			t.Errorf("NeedsRootfs(%q) = %v", text, !want)
		}
	}
	if u, err := lookUpUser("5", t.TempDir()); err != nil || u.UID != 5 {
		t.Errorf("without files: %+v, %v", u, err)
	}
}

func TestImageCannotLeadOutOfItself(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("radio:x:1:1::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for what, make := range map[string]func(path string) error{
		"relative link": func(path string) error { return os.Symlink(strings.Repeat("../", 20)+secret[1:], path) },
		"absolute link": func(path string) error { return os.Symlink(secret, path) },
		"FIFO":          func(path string) error { return unix.Mkfifo(path, 0o644) },
		"directory":     func(path string) error { return os.Mkdir(path, 0o755) },
		"loop":          func(path string) error { return os.Symlink("passwd", path) },
	} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := make(filepath.Join(dir, "etc/passwd")); err != nil {
			t.Fatal(err)
		}
		if u, err := lookUpUser("radio", dir); err == nil {
			t.Errorf("%s: got %+v", what, u)
		}
	}
	dir := image(t, "", "")
	if err := os.Remove(filepath.Join(dir, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "users"), []byte("radio:x:1:1::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/users", filepath.Join(dir, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if u, err := lookUpUser("radio", dir); err != nil || u.UID != 1 {
		t.Errorf("absolute link within the image: %+v, %v", u, err)
	}
}

func FuzzUser(f *testing.F) {
	f.Add("radio:video", "radio:x:1:2::/:", "video:x:3:radio")
	f.Add("0", ":::\n\n:", "a:b:c")
	dir := image(f, "", "")
	f.Fuzz(func(t *testing.T, user, passwd, group string) {
		os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte(passwd), 0o644)
		os.WriteFile(filepath.Join(dir, "etc/group"), []byte(group), 0o644)
		u, err := lookUpUser(user, dir)
		if err == nil && (len(u.AdditionalGids) == 0 || u.AdditionalGids[0] != u.GID) {
			t.Errorf("%+v", u)
		}
	})
}
