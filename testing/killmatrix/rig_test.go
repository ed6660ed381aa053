// SPDX-License-Identifier: Apache-2.0

// Package killmatrix tests the container agent as a process, with a real containerd and runc, while they and the containers are
// killed, restarted and replaced.
package killmatrix

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/census"
	"sdvbox/testing/ctragent"
	"sdvbox/testing/ctrd"
)

var long = os.Getenv("SDVBOX_LONG") == "1"

// program is the environment variable with the path of sdvbox, which is built once, and says that the tests may begin.
const program = "KILLMATRIX_PROGRAM"

// All tests run in a namespace of mounts, and each agent in a namespace of networks: nothing of these stays behind, even of a
// test that is killed, and nobody else's is counted.
func TestMain(m *testing.M) {
	code, err := 0, error(nil)
	switch {
	case os.Geteuid() != 0: // the tests say so
		code = m.Run()
	case os.Getenv(program) != "":
		// What runc and shims keep there.
		if err = errors.Join(os.MkdirAll("/run/containerd", 0o711), unix.Mount("tmpfs", "/run/containerd", "tmpfs", 0, "")); err == nil {
			flag.Parse()
			asked := false
			flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "test.parallel" })
			if !asked {
				flag.Set("test.parallel", "4") // most of the time, all of them wait
			}
			code = m.Run()
		}
	default:
		err = buildAndRun()
	}
	if exit := exitCode(0); errors.As(err, &exit) {
		code = int(exit)
	} else if err != nil {
		fmt.Println(err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun() error {
	dir, err := os.MkdirTemp("", "killmatrix")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "sdvbox")
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", path, "sdvbox")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", build, err, out)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), program+"="+path)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	// Not every first process is as quick as systemd to reap what a killed shim orphans, and until then its control group stays.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of orphans: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for the tests: %w", err)
		case pid == cmd.Process.Pid && status.Signaled():
			return fmt.Errorf("the tests ended by signal %v", status.Signal())
		case pid == cmd.Process.Pid && status.ExitStatus() != 0:
			return exitCode(status.ExitStatus())
		case pid == cmd.Process.Pid:
			return nil
		}
	}
}

// exitCode is that of tests that have failed, and have said so.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprint("exit code ", int(c)) }

// rig is a device: a containerd, and an agent of which the test is the service manager.
type rig struct {
	*ctragent.Agent
	t         *testing.T
	namespace string         // of containerd
	network   netns.NsHandle // namespace of the agent
	place     census.Place
	program   string // link to what is installed
	down      bool   // the agent has been killed
}

var rigs atomic.Int32

// stopTimeout is how long the agent waits for a process to end.
func stopTimeout() time.Duration { return ctrd.Patient(3 * time.Second) }

// newRig starts containerd, and prepares an agent that is not yet started, in a network of its own.
func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, namespace: fmt.Sprintf("killmatrix-%d-%d", os.Getpid(), rigs.Add(1)), down: true}
	t.Cleanup(func() { // when all else has been cleaned up
		for _, group := range controlGroups(r.namespace) {
			os.Remove(group)
		}
	})
	d := ctrd.Start(t)
	r.unshare()
	r.program = filepath.Join(t.TempDir(), "sdvbox")
	r.install(os.Getenv(program))
	r.Agent = ctragent.New(t, r.program, d)
	r.must(errors.Join(os.Chmod(r.Dir, 0o755), os.Mkdir(r.Dir+"/out", 0o777), os.Chmod(r.Dir+"/out", 0o777)))
	r.Config["containers"]["default_ns"] = r.namespace
	r.Config["manager"]["default_ctrs_stop_timeout"] = int(stopTimeout() / time.Second)
	r.place = census.Place{
		Daemon: d, Namespace: r.namespace, Inside: r.inside,
		Dirs: []string{r.Dir + "/run", r.Dir + "/state", r.Dir + "/home", r.Dir + "/out"},
	}
	return r
}

// controlGroups lists those whose path matches a pattern: one each, those of version 1 for each controller. Where systemd makes
// them, they are scopes.
func controlGroups(pattern string) []string {
	one, _ := filepath.Glob("/sys/fs/cgroup/" + pattern)
	each, _ := filepath.Glob("/sys/fs/cgroup/*/" + pattern)
	return append(one, each...)
}

// install makes a program the one that runs from the next start on.
func (r *rig) install(path string) {
	r.t.Helper()
	r.must(errors.Join(os.Symlink(path, r.program+".new"), os.Rename(r.program+".new", r.program)))
}

// unshare makes the namespace of networks.
func (r *rig) unshare() {
	r.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	r.must(err)
	defer here.Close()
	r.network, err = netns.New()
	r.must(err)
	r.t.Cleanup(func() { r.network.Close() })
	lo, err := netlink.LinkByName("lo")
	r.must(errors.Join(err, netlink.LinkSetUp(lo), netns.Set(here)))
}

// inside runs something in the namespace of networks.
func (r *rig) inside(do func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	r.must(err)
	defer here.Close()
	r.must(netns.Set(r.network))
	defer netns.Set(here)
	do()
}

const image = "example.org/box:1"

// box is an image with busybox.
func (r *rig) box(name string, more map[string][]byte) *ctragent.Image {
	r.t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	r.must(err)
	files := map[string][]byte{"etc/passwd": []byte("radio:x:77:78::/:/bin/sh\n")}
	for _, name := range []string{"sh", "sleep", "stat"} {
		files["bin/"+name] = program
	}
	maps.Copy(files, more)
	return ctragent.NewImage(name, v1.ImageConfig{Env: []string{"PATH=/bin"}, User: "radio"}, files)
}

// running returns a device with the image on which an agent runs.
func running(t *testing.T, change ...func(*rig)) *rig {
	t.Helper()
	r := newRig(t)
	for _, f := range change {
		f(r)
	}
	r.launch()
	r.Import(r.box(image, nil))
	r.remove(r.run(container("first", ctrmodel.RestartNever, sleeper))) // makes what stays: bridge, directories
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// await waits until a condition is met.
func (r *rig) await(what string, met func() bool) {
	r.t.Helper()
	limit := ctrd.Patient(30 * time.Second)
	for end := time.Now().Add(limit); !met(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			list, err := r.List(r.t.Context())
			var all strings.Builder
			for _, c := range list {
				fmt.Fprintf(&all, "\n%s %s %+v", c.ID, c.Name, c.State)
			}
			r.t.Fatalf("%s: not within %v; there are%s %v", what, limit, &all, err)
		}
	}
}

// launch starts the agent. It does not wait until it is ready.
func (r *rig) launch() {
	r.t.Helper()
	r.inside(r.Launch)
	r.down = false
}

// kill kills the agent.
func (r *rig) kill() {
	r.Kill()
	r.down = true
}

// serving waits until the agent answers, and is connected to containerd.
func (r *rig) serving() {
	r.t.Helper()
	r.await("the agent answers", func() bool {
		_, err := r.Images(r.t.Context())
		return err == nil
	})
}

// container is one that sleeps, in the network of the bridge.
func container(name string, policy string, script string) *ctrmodel.Container {
	c := &ctrmodel.Container{ID: name + "-id", Name: name, Image: ctrmodel.Image{Name: image}}
	c.HostConfig.RestartPolicy = ctrmodel.RestartPolicy{Type: policy}
	if policy != ctrmodel.RestartNever {
		c.HostConfig.RestartPolicy.RetryTimeout = 300 * time.Millisecond // at most
	}
	c.Config.Cmd = []string{"sh", "-c", script}
	return c
}

// Scripts.
const (
	sleeper  = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done"
	stubborn = "trap '' TERM; while :; do sleep 1; done"
	// counter writes numbered lines as fast as can be, and after every fifty of them into a file how far it is.
	counter = `trap 'echo end; exit 0' TERM; i=0; n=0
while :; do i=$((i+1)); echo line $i; n=$((n+1)); if [ $n = 50 ]; then n=0; echo $i >>/out/$HOSTNAME; sleep 0.01; fi; done`
)

// counting is a container that counts.
func (r *rig) counting(name, policy string) *ctrmodel.Container {
	c := container(name, policy, counter)
	c.Mounts = []ctrmodel.Mount{{Source: r.Dir + "/out", Destination: "/out"}}
	return c
}

// create creates a container.
func (r *rig) create(c *ctrmodel.Container) (id string) {
	r.t.Helper()
	c, err := r.Create(r.t.Context(), c)
	r.must(err)
	return c.ID
}

// run creates a container and starts it.
func (r *rig) run(c *ctrmodel.Container) (id string) {
	r.t.Helper()
	id = r.create(c)
	r.must(r.Start(r.t.Context(), id))
	return id
}

// remove removes a container and whatever runs in it.
func (r *rig) remove(id string) {
	r.t.Helper()
	r.must(r.Remove(r.t.Context(), id, true, ctrmodel.StopOptions{Signal: "SIGKILL"}))
}

// look asks the agent for a container and containerd for its process, 0 if there is none.
func (r *rig) look(id string) (c *ctrmodel.Container, pid int64, err error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), ctrd.Patient(5*time.Second))
	defer cancel()
	if c, err = r.Get(ctx, id); err != nil {
		return nil, 0, err
	}
	d := containerd.New(r.Containerd.Socket, r.namespace)
	defer d.Close()
	tasks, err := d.Tasks.List(ctx)
	for _, task := range tasks {
		if task.ID == id && task.Status != containerd.Stopped && syscall.Kill(int(task.Pid), 0) == nil {
			pid = int64(task.Pid)
		}
	}
	return c, pid, err
}

// awaitRunning waits until a container runs, for the agent and for containerd, and returns its process.
func (r *rig) awaitRunning(id string) (pid int64) {
	r.t.Helper()
	r.await(id+" runs", func() bool {
		c, there, err := r.look(id)
		pid = there
		return err == nil && c.State.Status == ctrmodel.Running && there != 0 && c.State.PID == there
	})
	return pid
}

// awaitReady waits until the last process of a container has said that it is ready.
func (r *rig) awaitReady(id string, times int) {
	r.t.Helper()
	r.await(id+" is ready", func() bool {
		log, _ := os.ReadFile(r.Dir + "/home/containers/" + id + "/json.log")
		return strings.Count(string(log), `"ready\n"`) >= times
	})
}

// awaitStatus waits until a container without a process has a status.
func (r *rig) awaitStatus(id string, status ...ctrmodel.Status) {
	r.t.Helper()
	r.await(fmt.Sprintf("%s is %v", id, status), func() bool {
		c, pid, err := r.look(id)
		return err == nil && slices.Contains(status, c.State.Status) && pid == 0
	})
}

// lives reads the log of a container that counts: the last number of each of its processes. Nothing may be missing but what was
// still to come when a process ended; if its shim was killed, that may be a part of the last line, too.
func lives(log io.Reader, torn bool) (last []int, err error) {
	var text strings.Builder
	for d := json.NewDecoder(log); ; {
		var line struct{ Log string }
		if err := d.Decode(&line); err == io.EOF {
			break
		} else if err != nil {
			return nil, fmt.Errorf("log: %w", err)
		}
		text.WriteString(line.Log)
	}
	ended := false
	lines := strings.SplitAfter(text.String(), "\n")
	for i, line := range lines {
		n, n2 := 0, 1
		if len(last) > 0 {
			n = last[len(last)-1]
			n2 = n + 1
		}
		want := fmt.Sprintf("line %d\n", n2)
		begin := line == "line 1\n"
		switch {
		case line == "" && i == len(lines)-1:
		case !ended && len(last) > 0 && line == want:
			last[len(last)-1]++
		case begin:
			last, ended = append(last, 1), false
		case !ended && len(last) > 0 && line == "end\n":
			ended = true
		case torn && !ended && strings.HasPrefix(want, strings.TrimSuffix(line, "line 1\n")): // the next process begins behind it
			if strings.HasSuffix(line, "line 1\n") {
				last = append(last, 1)
			}
		default:
			return last, fmt.Errorf("%q follows %d, the last of %d processes", line, n, len(last))
		}
	}
	return last, nil
}

// said reads how far the processes of a container have come, by their own account.
func said(file string) (last []int) {
	text, _ := os.ReadFile(file)
	for _, word := range strings.Fields(string(text)) {
		n, _ := strconv.Atoi(word)
		if len(last) > 0 && n > last[len(last)-1] {
			last[len(last)-1] = n
		} else {
			last = append(last, n)
		}
	}
	return last
}

// complete makes sure that nothing is missing in the log of a container that has stopped, and returns the last number of each
// of its processes.
func (r *rig) complete(id string, torn bool) []int {
	r.t.Helper()
	path := filepath.Join(r.Dir, "home/containers", id, "json.log")
	var log bytes.Buffer
	older, _ := filepath.Glob(path + ".*")
	for n := len(older); n >= 0; n-- {
		file := path
		if n > 0 {
			file = fmt.Sprint(path, ".", n)
		}
		data, err := os.ReadFile(file)
		r.must(err)
		log.Write(data)
	}
	last, err := lives(&log, torn)
	if err != nil {
		r.t.Fatalf("log of %s: %v", id, err)
	}
	return last
}

// nothingInContainerd waits until there is nothing in containerd but the image.
func (r *rig) nothingInContainerd() {
	r.t.Helper()
	place := r.place
	place.Dirs, place.Inside = nil, nil
	r.await("nothing of containers is left in containerd", func() bool {
		for _, line := range place.Take(r.t) {
			kind, _, _ := strings.Cut(line, " ")
			if slices.Contains([]string{"container", "task", "shim", "bundle", "control", "processes", "mount"}, kind) ||
				kind == "snapshot" && strings.HasSuffix(line, "kind 2") || strings.Contains(line, "-snapshot") {
				return false
			}
		}
		return true
	})
}
