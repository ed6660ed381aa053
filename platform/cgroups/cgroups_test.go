// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"crypto/rand"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// host makes a host with some files. The process is number 7.
func host(t *testing.T, groups string, files map[string]string) Host {
	t.Helper()
	h := Host{Proc: t.TempDir(), Sys: t.TempDir()}
	write := func(name, text string) {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(h.Proc, "7", "cgroup"), groups)
	for name, text := range files {
		write(filepath.Join(h.Sys, name), text)
	}
	return h
}

// What Linux 6.1 shows on a host of version 1.
var files1 = map[string]string{
	"cpuacct/kanto-cm/5f0c/cpuacct.usage":        "5000000000\n",
	"memory/kanto-cm/5f0c/memory.usage_in_bytes": "4096000\n",
	"memory/kanto-cm/5f0c/memory.limit_in_bytes": "9223372036854771712\n",
	"memory/kanto-cm/5f0c/memory.stat":           "cache 135168\ninactive_file 1\ntotal_cache 135168\ntotal_inactive_file 1024\ntotal_unevictable 0\n",
	"pids/kanto-cm/5f0c/pids.current":            "3\n",
	"blkio/kanto-cm/5f0c/blkio.throttle.io_service_bytes_recursive": "254:0 Read 1000\n254:0 Write 20\n254:0 Sync 1020\n254:0 Async 0\n254:0 Discard 0\n254:0 Total 1020\n" +
		"8:0 Read 11\n8:0 Write 2\n8:0 Total 13\nTotal 1033\n",
}

const groups1 = `9:name=systemd:/
8:pids:/kanto-cm/5f0c
7:blkio:/kanto-cm/5f0c
4:memory:/kanto-cm/5f0c
2:cpu,cpuacct:/kanto-cm/5f0c
0::/
`

// And one of version 2, with systemd.
var files2 = map[string]string{
	"system.slice/kanto-cm-5f0c.scope/cpu.stat":       "usage_usec 5000000\nuser_usec 4000000\nsystem_usec 1000000\nnr_periods 0\n",
	"system.slice/kanto-cm-5f0c.scope/memory.current": "4096000\n",
	"system.slice/kanto-cm-5f0c.scope/memory.max":     "67108864\n",
	"system.slice/kanto-cm-5f0c.scope/memory.stat":    "anon 3000000\nfile 135168\ninactive_anon 0\ninactive_file 1024\nactive_file 0\n",
	"system.slice/kanto-cm-5f0c.scope/pids.current":   "3\n",
	"system.slice/kanto-cm-5f0c.scope/io.stat":        "254:0 rbytes=1000 wbytes=20 rios=3 wios=1 dbytes=0 dios=0\n8:0 rbytes=11 wbytes=2 rios=1 wios=1 dbytes=0 dios=0\n",
}

const groups2 = "0::/system.slice/kanto-cm-5f0c.scope\n"

func TestUsageOfBothVersions(t *testing.T) {
	want := Usage{CPU: 5 * time.Second, Memory: 4096000, InactiveFile: 1024, ReadBytes: 1011, WriteBytes: 22, PIDs: 3}
	for _, c := range []struct {
		name, groups string
		files        map[string]string
		max          uint64
	}{
		{"version 1", groups1, files1, 9223372036854771712},
		{"version 2", groups2, files2, 64 << 20},
		{"version 1, groups within", strings.ReplaceAll(groups1, "5f0c", "5f0c/init.scope"), files1, 9223372036854771712},
		{"version 2, groups within", "0::/system.slice/kanto-cm-5f0c.scope/system.slice/web\n", files2, 64 << 20},
	} {
		got, err := host(t, c.groups, c.files).Usage(7, "5f0c")
		want.MemoryMax = c.max
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", c.name, got, err, want)
		}
	}
}

func TestWithoutSomeControllers(t *testing.T) {
	got, err := host(t, groups2, map[string]string{"system.slice/kanto-cm-5f0c.scope/cpu.stat": "usage_usec 7\n"}).Usage(7, "5f0c")
	if want := (Usage{CPU: 7 * time.Microsecond}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = host(t, groups1, map[string]string{"cpuacct/kanto-cm/5f0c/cpuacct.usage": "7000\n"}).Usage(7, "5f0c")
	if want := (Usage{CPU: 7 * time.Microsecond}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	files := map[string]string{"system.slice/kanto-cm-5f0c.scope/cpu.stat": "usage_usec 7\n", "system.slice/kanto-cm-5f0c.scope/memory.max": "max\n"}
	if got, err = host(t, groups2, files).Usage(7, "5f0c"); err != nil || got.MemoryMax != 0 {
		t.Errorf("without a limit: %+v, %v", got, err)
	}
}

func TestWhatIsNotThereIsAnError(t *testing.T) {
	for _, c := range []struct {
		groups string
		pid    int64
	}{{groups1, 8}, {groups1, 7}, {groups2, 7}, {"", 7}, {"garbage\n", 7}, {strings.ReplaceAll(groups1, "5f0c", "5f0d"), 7}, {"0::/\n", 7}, {"0::/../other\n", 7}, {"0::relative\n", 7}} {
		if got, err := host(t, c.groups, nil).Usage(c.pid, "5f0c"); err == nil || got != (Usage{}) || !strings.HasPrefix(err.Error(), "control group") {
			t.Errorf("%q, %d: %+v, %v", c.groups, c.pid, got, err)
		}
	}
}

func TestOnlyTheGroupOfTheContainerCounts(t *testing.T) {
	for path, want := range map[string]string{
		"/kanto-cm/5f0c":                         "/kanto-cm/5f0c",
		"/kanto-cm/5f0c/init/5f0c":               "/kanto-cm/5f0c",
		"/system.slice/kanto-cm-5f0c.scope/init": "/system.slice/kanto-cm-5f0c.scope",
		"/kanto-cm/5f0c-2":                       "",
		"/kanto-cm/a5f0c":                        "",
		"/kanto-cm/a-5f0c":                       "",
		"/system.slice/kanto-cm-5f0c-2.scope":    "",
		"/system.slice/kanto-cm-a5f0c.scope":     "",
		"/":                                      "",
	} {
		if got := groupOf(path, "5f0c"); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	// What all the machine uses is nothing of the container's.
	files := map[string]string{"cpuacct/kanto-cm/5f0c/cpuacct.usage": "7000\n", "memory/memory.usage_in_bytes": "9\n", "pids/pids.current": "9\n",
		"memory/memory.stat": "total_inactive_file 9\n", "blkio/blkio.throttle.io_service_bytes_recursive": "8:0 Read 9\n"}
	got, err := host(t, "2:cpu,cpuacct:/kanto-cm/5f0c\n4:memory,pids,blkio:/\n", files).Usage(7, "5f0c")
	if want := (Usage{CPU: 7 * time.Microsecond}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestAFileThatIsTooLongIsAnError(t *testing.T) {
	files := maps.Clone(files2)
	files["system.slice/kanto-cm-5f0c.scope/io.stat"] = strings.Repeat("8:0 rbytes=1\n", 2000)
	if got, err := host(t, groups2, files).Usage(7, "5f0c"); err == nil || !strings.Contains(err.Error(), "io.stat") {
		t.Errorf("%+v, %v", got, err)
	}
}

// newGroup makes a group of the kernel's and puts a process that is busy into it.
func newGroup(t testing.TB) (pid int64, id string) {
	t.Helper()
	skip := func(what any) {
		t.Helper()
		if os.Getenv("SDVBOX_REQUIRE") == "1" {
			t.Fatal(what)
		}
		t.Skip(what)
	}
	roots := []string{"/sys/fs/cgroup"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		roots = []string{"/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/memory"}
	}
	id = "sdvbox-test-" + strings.ToLower(rand.Text())
	busy := exec.Command("sh", "-c", "while :; do :; done")
	if err := busy.Start(); err != nil {
		t.Fatal(err)
	}
	end := func() {
		busy.Process.Kill()
		busy.Wait()
	}
	t.Cleanup(end)
	for _, root := range roots {
		dir := filepath.Join(root, id)
		if err := os.Mkdir(dir, 0o755); err != nil {
			skip(err)
		}
		t.Cleanup(func() {
			end()
			for range 100 { // until the kernel has done away with the process
				if os.Remove(dir) == nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Errorf("%s is left", dir)
		})
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(busy.Process.Pid)), 0); err != nil {
			skip(err)
		}
	}
	return int64(busy.Process.Pid), id
}

func TestUsageOfAProcess(t *testing.T) {
	pid, id := newGroup(t)
	var u Usage
	var err error
	for begin := time.Now(); u.CPU < 20*time.Millisecond && time.Since(begin) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
		if u, err = (Host{}).Usage(pid, id); err != nil {
			t.Fatal(err)
		}
	}
	if u.CPU < 20*time.Millisecond || u.CPU > 10*time.Second {
		t.Errorf("%+v", u)
	}
}

func FuzzGroups(f *testing.F) {
	f.Add([]byte(groups1), "5f0c")
	f.Add([]byte(groups2), "5f0c")
	f.Add([]byte("0::/a/5f0c/b/5f0c/c\n"), "5f0c")
	f.Fuzz(func(t *testing.T, text []byte, id string) {
		groups, err := parseGroups(text, id)
		for controller, group := range groups {
			if err == nil && (!strings.HasPrefix(group, "/") || strings.Contains(group, "/..")) {
				t.Errorf("%q is in %q", controller, group)
			}
		}
	})
}

func FuzzFiles(f *testing.F) {
	for _, text := range files1 {
		f.Add(text)
	}
	for _, text := range files2 {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		files := map[string]string{}
		for name := range files2 {
			files[name] = text
		}
		for name := range files1 {
			files[name] = text
		}
		host(t, groups1, files).Usage(7, "5f0c")
		host(t, groups2, files).Usage(7, "5f0c")
	})
}

func BenchmarkUsage(b *testing.B) {
	pid, id := newGroup(b)
	for b.Loop() {
		Host{}.Usage(pid, id)
	}
}
