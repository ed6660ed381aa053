// SPDX-License-Identifier: Apache-2.0

// Package containers measures the container agent, in turn with the original if it is there.
package containers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"sdvbox/platform/cmapi"
	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/images"
	"sdvbox/testing/ctragent"
	"sdvbox/testing/ctrd"
)

func TestMain(m *testing.M) { ctragent.OwnHost(m) }

// The environment variables with the paths of the original daemon and of its command line. Nothing of them is part of sdvbox.
const (
	peer    = "PEER_KANTO_CM"
	peerCLI = "PEER_KANTO_CLI"
)

const (
	image = "example.org/probe:1"
	rounds,
	many, lines = 30, 100, 200000
)

// measured is an agent on a containerd of its own.
type measured struct {
	b      *testing.B
	suffix string // of what is reported
	client *cmapi.Client
	ctrd   *ctrd.Daemon
	pid    func() int
	logs   func(args ...string) *exec.Cmd // kanto-cm logs
	launch func(dir string)               // starts it again, with descriptors in a directory
}

// BenchmarkContainers measures, each in turn with the original: memory, the time from create to running, logs, and the time that
// many containers take which are wanted at once.
func BenchmarkContainers(b *testing.B) {
	var fs unix.Statfs_t
	check(b, unix.Statfs(b.TempDir(), &fs))
	if fs.Type == unix.TMPFS_MAGIC {
		b.Fatal("temporary files are kept in memory, expected TMPDIR to name a directory on a disk")
	}
	program := ctragent.Program(b, "sdvbox/testing/fields/probe")
	archive := ctragent.Archive(ctragent.NewImage(image, v1.ImageConfig{Entrypoint: []string{"/probe"}, Cmd: []string{"serve", "7000"}}, map[string][]byte{"probe": program}))
	list := []*measured{ours(b, archive)}
	if path := os.Getenv(peer); path != "" {
		list = append(list, original(b, path, archive))
	} else {
		b.Logf("%s does not name the original, nothing to compare with", peer)
	}
	for b.Loop() {
		time.Sleep(3 * time.Second)
		for _, m := range list {
			m.report(float64(ctragent.PSS(b, m.pid()))/(1<<20), "MiB-PSS-idle")
		}
		running(list)
		readLogs(list)
		for _, m := range list {
			m.hundred()
		}
	}
}

func (m *measured) report(n float64, unit string) {
	m.b.Logf("%.4g %s%s", n, unit, m.suffix) // even if it fails later
	m.b.ReportMetric(n, unit+m.suffix)
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// ours is sdvbox.
func ours(b *testing.B, archive []byte) *measured {
	d := ctrd.Start(b)
	a := ctragent.New(b, ctragent.Build(b), d)
	a.Config["log"]["log_level"] = "WARN"
	a.Config["deployment"] = ctragent.Section{"enable": false}
	load(b, d, "kanto-cm", archive)
	a.Launch()
	m := &measured{b: b, client: a.Client, ctrd: d, pid: a.Pid}
	m.logs = func(args ...string) *exec.Cmd { return a.Command("kanto-cm", append([]string{"logs"}, args...)...) }
	m.launch = func(dir string) {
		a.Terminate()
		a.Config["deployment"] = ctragent.Section{"ctr_dir": dir, "manifest_dirs": []string{}, "image_dirs": []string{}}
		a.Launch()
	}
	m.ready()
	return m
}

// original is Eclipse Kanto's container management.
func original(b *testing.B, path string, archive []byte) *measured {
	d := ctrd.Start(b)
	load(b, d, "kanto-cm", archive)
	dir, err := os.MkdirTemp("", "kanto")
	check(b, err)
	b.Cleanup(func() { os.RemoveAll(dir) })
	m := &measured{b: b, suffix: "-original", ctrd: d, client: cmapi.NewClient(dir + "/sock")}
	var cmd *exec.Cmd
	start := func(more ...string) {
		cmd = exec.Command(path, append([]string{"--things-enable=false", "--ua-enable=false", "--ccl-ap", d.Socket, "--ccl-home-dir", dir + "/home",
			"--ccl-exec-root-dir", dir + "/exec", "--cm-home-dir", dir + "/home", "--cm-exec-root-dir", dir + "/exec", "--net-home-dir", dir + "/home",
			"--net-exec-root-dir", dir + "/exec", "--grpc-serv-ap", dir + "/sock", "--log-file", dir + "/log", "--log-level", "WARN", "--net-br-name", "kantobench"}, more...)...)
		check(b, cmd.Start())
	}
	stop := func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	}
	b.Cleanup(func() {
		if b.Failed() {
			log, _ := os.ReadFile(dir + "/log")
			b.Logf("the original said:\n%s", log[max(0, len(log)-5000):])
		}
		cmd.Process.Kill()
		cmd.Wait()
		for _, s := range d.Shims() {
			syscall.Kill(s.Pid, syscall.SIGKILL)
		}
		mounts, _ := os.ReadFile("/proc/self/mounts")
		for line := range strings.Lines(string(mounts)) {
			if path := strings.Fields(line)[1]; strings.HasPrefix(path, dir+"/") {
				unix.Unmount(path, unix.MNT_DETACH)
			}
		}
	})
	m.pid = func() int { return cmd.Process.Pid }
	m.logs = func(args ...string) *exec.Cmd {
		return exec.Command(os.Getenv(peerCLI), append([]string{"--host", dir + "/sock", "logs"}, args...)...)
	}
	m.launch = func(descriptors string) {
		stop()
		start("--deployment-ctr-dir", descriptors, "--deployment-home-dir", dir+"/deployment")
	}
	start("--deployment-enable=false")
	m.ready()
	return m
}

// load gives containerd an image, as both expect it.
func load(b *testing.B, d *ctrd.Daemon, namespace string, archive []byte) {
	c := containerd.New(d.Socket, namespace)
	defer c.Close()
	file := b.TempDir() + "/image.tar"
	check(b, os.WriteFile(file, archive, 0o600))
	check(b, c.CreateNamespace(b.Context()))
	store, err := images.New(images.Config{Client: c, Root: d.Dir})
	check(b, err)
	_, err = store.Import(b.Context(), file)
	check(b, err)
}

// ready waits until it answers, and manages containers.
func (m *measured) ready() {
	m.b.Helper()
	m.eventually("it answers", func() bool {
		_, err := m.client.List(m.b.Context())
		return err == nil
	})
}

func (m *measured) eventually(what string, is func() bool) {
	m.b.Helper()
	for begin := time.Now(); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Since(begin) > 3*time.Minute {
			m.b.Fatalf("%s%s: not within 3 min", what, m.suffix)
		}
	}
}

// run creates and starts a container.
func (m *measured) run(args ...string) (id string) {
	m.b.Helper()
	c := &ctrmodel.Container{Image: ctrmodel.Image{Name: image}, Config: ctrmodel.Config{Cmd: args}}
	c.HostConfig.Log.Driver = ctrmodel.LogDriver{Type: ctrmodel.LogFile, MaxFiles: 2, MaxSize: "1G"}
	c.HostConfig.RestartPolicy.Type = ctrmodel.RestartNever
	c.Defaults(func() string { return fmt.Sprintf("bench-%d", time.Now().UnixNano()) })
	made, err := m.client.Create(m.b.Context(), c)
	check(m.b, err)
	check(m.b, m.client.Start(m.b.Context(), made.ID))
	return made.ID
}

func (m *measured) remove(id string) {
	m.b.Helper()
	err := m.client.Remove(m.b.Context(), id, true, ctrmodel.StopOptions{Signal: "SIGKILL", Force: true})
	if err != nil && m.suffix == "" {
		m.b.Fatal(err)
	}
	if err != nil { // now and then, the original misses that a container has ended
		m.b.Logf("remove%s: %v", m.suffix, err)
	}
}

// running measures create and start.
func running(list []*measured) {
	took := make([][]float64, len(list))
	for n := range rounds + 1 {
		for i, m := range list {
			begin := time.Now()
			id := m.run()
			if n > 0 { // the first is for caches
				took[i] = append(took[i], time.Since(begin).Seconds())
			}
			m.remove(id)
		}
	}
	for i, m := range list {
		m.report(milliseconds(took[i], 50), "ms-running-median")
		m.report(milliseconds(took[i], 99), "ms-running-p99")
	}
}

// milliseconds returns the percentile of times.
func milliseconds(seconds []float64, percent int) float64 {
	s := slices.Sorted(slices.Values(seconds))
	return 1000 * s[min(len(s)*percent/100, len(s)-1)]
}

// readLogs measures the writing and reading of many lines, and how late one is that is followed.
func readLogs(list []*measured) {
	ids := map[*measured]string{}
	for _, m := range list {
		begin := time.Now()
		id := m.run("lines", fmt.Sprint(lines), strings.Repeat("x", 40))
		m.eventually("the end of a container that writes", func() bool {
			c, err := m.client.Get(m.b.Context(), id)
			check(m.b, err)
			return c.State.Status == ctrmodel.Exited
		})
		m.report(time.Since(begin).Seconds(), "s-lines-written")
		if m.suffix == "" || os.Getenv(peerCLI) != "" {
			ids[m] = id
		} else {
			m.b.Logf("%s does not name the command line of the original", peerCLI)
		}
	}
	for _, what := range []struct {
		unit   string
		want   int
		args   string
		common bool // to both
	}{{"ms-logs-tail-10", 10, "--tail=10", true}, {"ms-logs-all", lines, "--tail=-1", true}, {"ms-logs-all-text", lines, "--tail=-1", false}} {
		took := map[*measured][]float64{}
		for range 7 {
			for m, id := range ids {
				args := []string{what.args}
				switch {
				case m.suffix == "" && what.common: // as the original cannot but show them
					args = append(args, "--output=json")
				case m.suffix != "" && !what.common:
					continue
				}
				var out bytes.Buffer
				cmd := m.logs(append(args, id)...)
				cmd.Stdout, cmd.Stderr = &out, os.Stderr
				begin := time.Now()
				check(m.b, cmd.Run())
				took[m] = append(took[m], time.Since(begin).Seconds())
				if got := bytes.Count(bytes.TrimSpace(out.Bytes()), []byte("\n")) + 1; got < what.want {
					m.b.Fatalf("logs %q%s: %d lines of %d", args, m.suffix, got, what.want)
				}
			}
		}
		for m, t := range took {
			m.report(milliseconds(t, 50), what.unit)
		}
	}
	for m, id := range ids {
		m.remove(id)
	}
	m := list[0] // the original cannot follow
	id := m.run("clock", "20ms")
	var late []float64
	ctx, cancel := context.WithCancel(m.b.Context())
	defer cancel()
	m.client.Logs(ctx, id, ctrmodel.LogOptions{Follow: true}, func(line []byte) error {
		now := time.Now()
		var l struct{ Log string }
		check(m.b, json.Unmarshal(line, &l))
		var said int64
		fmt.Sscan(l.Log, &said)
		late = append(late, now.Sub(time.Unix(0, said)).Seconds())
		if len(late) == 200 {
			cancel()
		}
		return nil
	})
	m.report(milliseconds(late, 50), "ms-follow-median")
	m.report(milliseconds(late, 99), "ms-follow-p99")
	m.remove(id)
}

// hundred measures how long many containers take that are wanted at once by their descriptors, and what they and the agent need.
func (m *measured) hundred() {
	dir := m.b.TempDir()
	for n := range many {
		text := fmt.Sprintf(`{"container_name": "many-%d", "image": {"name": %q}}`, n, image)
		check(m.b, os.WriteFile(fmt.Sprintf("%s/%d.json", dir, n), []byte(text), 0o644))
	}
	begin := time.Now()
	m.launch(dir)
	m.ready()
	m.eventually("many containers run", func() bool {
		time.Sleep(20 * time.Millisecond) // looking should not cost much
		list, _ := m.client.List(m.b.Context())
		run := 0
		for _, c := range list {
			if c.State.Running && strings.HasPrefix(c.Name, "many-") {
				run++
			}
		}
		return run == many
	})
	m.report(time.Since(begin).Seconds(), "s-hundred-running")
	time.Sleep(3 * time.Second)
	m.report(float64(ctragent.PSS(m.b, m.pid()))/(1<<20), "MiB-PSS-hundred")
	shims := 0
	for _, s := range m.ctrd.Shims() {
		shims += ctragent.PSS(m.b, s.Pid)
	}
	m.report(float64(shims)/many/(1<<20), "MiB-PSS-shim")
	time.Sleep(20 * time.Second) // bridges talk for a while
	before := cpu(m.b, m.pid())
	time.Sleep(20 * time.Second)
	m.report((cpu(m.b, m.pid())-before).Seconds()/20*100, "%CPU-hundred")
	if m.suffix == "" {
		const times = 10
		before, begin := cpu(m.b, m.pid()), time.Now()
		for range times {
			list, err := m.client.Stats(m.b.Context())
			check(m.b, err)
			if len(list) != many || list[0].Memory == 0 {
				m.b.Fatalf("stats %+v", list)
			}
		}
		m.report(float64(time.Since(begin).Milliseconds())/times, "ms-stats-of-hundred")
		m.report(float64((cpu(m.b, m.pid())-before).Milliseconds())/times, "ms-CPU-stats-of-hundred")
	}
}

// cpu is the time that a process has had.
func cpu(b *testing.B, pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	check(b, err)
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var user, system int64
	_, err = fmt.Sscan(f[11]+" "+f[12], &user, &system)
	check(b, err)
	return time.Duration(user+system) * time.Second / 100
}
