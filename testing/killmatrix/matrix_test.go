// SPDX-License-Identifier: Apache-2.0

package killmatrix

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/census"
	"sdvbox/testing/ctragent"
	"sdvbox/testing/ctrd"
)

// subject is the container to which something is done as something is killed.
const (
	subject   = "subject"
	subjectID = subject + "-id"
	port      = 18080 // of the host, published
)

// An operation is what goes on as something is killed.
type operation struct {
	name  string
	begin func(m *matrix)                            // before
	order func(ctx context.Context, m *matrix) error // what is interrupted
	// check waits for the outcome. The order ended with an error, or it has to be as it says; record is what the agent had
	// written down by then.
	check func(m *matrix, err error, record *record)
	end   func(m *matrix) // leaves nothing
}

// record is what the store keeps of a container.
type record struct {
	Run   bool           `json:"desired_running"`
	State ctrmodel.State `json:"state"`
}

// readRecord returns nil if there is none.
func (r *rig) readRecord(id string) *record {
	r.t.Helper()
	data, err := os.ReadFile(filepath.Join(r.Dir, "state/containers", id, "config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r.must(err)
	rec := new(record)
	r.must(json.Unmarshal(data, rec))
	return rec
}

func operations() []operation {
	removeSubject := func(m *matrix) { m.remove(subjectID) }
	return []operation{
		{
			name: "create",
			begin: func(m *matrix) { // so that changes in it are seen
				m.must(os.Mkdir(filepath.Join(m.Dir, "state/containers", subjectID), 0o711))
			},
			order: func(ctx context.Context, m *matrix) error {
				_, err := m.Create(ctx, m.subject(ctrmodel.RestartAlways))
				return err
			},
			check: func(m *matrix, err error, rec *record) {
				there := rec != nil && rec.State.Status == ctrmodel.Created
				if err == nil && !there {
					m.t.Fatal("was created, but is not on record")
				}
				if there {
					m.awaitStatus(subjectID, ctrmodel.Created)
				} else {
					m.await("what was half created is gone", func() bool {
						_, err := m.Get(m.t.Context(), subjectID)
						return ctrmodel.KindOf(err) == ctrmodel.NotFound
					})
					m.create(m.subject(ctrmodel.RestartAlways))
				}
				m.must(m.Start(m.t.Context(), subjectID))
				m.awaitRunning(subjectID)
			},
			end: removeSubject,
		},
		{
			name:  "start",
			begin: func(m *matrix) { m.create(m.subject(ctrmodel.RestartUnlessStopped)) },
			order: func(ctx context.Context, m *matrix) error { return m.Start(ctx, subjectID) },
			check: func(m *matrix, err error, rec *record) {
				if err == nil && !rec.Run {
					m.t.Fatal("was started, but that is not on record")
				}
				if rec.Run {
					m.awaitRunning(subjectID)
				} else {
					m.awaitStatus(subjectID, ctrmodel.Created, ctrmodel.Stopped)
				}
			},
			end: removeSubject,
		},
		{
			name: "stop",
			begin: func(m *matrix) {
				m.run(m.subject(ctrmodel.RestartAlways))
				m.awaitReady(subjectID, 1)
			},
			order: func(ctx context.Context, m *matrix) error {
				return m.Stop(ctx, subjectID, ctrmodel.StopOptions{Timeout: 20})
			},
			check: func(m *matrix, err error, rec *record) {
				if err == nil && rec.Run {
					m.t.Fatal("was stopped, but that is not on record")
				}
				if rec.Run {
					m.awaitRunning(subjectID)
				} else {
					m.awaitStatus(subjectID, ctrmodel.Stopped)
				}
			},
			end: removeSubject,
		},
		{
			name:  "pull",
			begin: func(*matrix) {},
			order: func(ctx context.Context, m *matrix) error {
				_, err := m.Pull(ctx, m.remote, func(ctrmodel.Progress) {})
				return err
			},
			check: func(m *matrix, err error, _ *record) {
				if list, lerr := m.Images(m.t.Context()); err == nil && (lerr != nil || len(list) != 2) {
					m.t.Fatalf("was pulled, but there are only the images %v, %v", list, lerr)
				}
				c := m.subject(ctrmodel.RestartAlways)
				c.Image.Name = m.remote
				c.Config.Cmd = []string{"sh", "-c", "stat -c %s /ballast; " + sleeper}
				m.run(c) // whatever is missing is pulled now
				m.awaitReady(subjectID, 1)
				log, err := os.ReadFile(m.Dir + "/home/containers/" + subjectID + "/json.log")
				if err != nil || !strings.Contains(string(log), fmt.Sprintf(`"%d\n"`, ballast)) {
					m.t.Errorf("the image is not whole: %s, %v", log, err)
				}
			},
			end: func(m *matrix) {
				m.remove(subjectID)
				client := containerd.New(m.Containerd.Socket, m.namespace)
				defer client.Close()
				m.must(client.Images.Delete(m.t.Context(), m.remote, true))
			},
		},
		{
			name: "log writing",
			begin: func(m *matrix) {
				m.run(m.counting(subject, ctrmodel.RestartAlways))
			},
			order: func(ctx context.Context, m *matrix) error {
				time.Sleep(300 * time.Millisecond)
				return nil
			},
			check: func(m *matrix, _ error, _ *record) {
				m.awaitRunning(subjectID)
				time.Sleep(100 * time.Millisecond)
				m.must(m.Stop(m.t.Context(), subjectID, ctrmodel.StopOptions{Timeout: 20}))
				m.checkLog(m.hit)
			},
			end: func(m *matrix) {
				m.remove(subjectID)
				m.must(os.Remove(m.Dir + "/out/subject-host"))
			},
		},
		{
			name: "replacement by a descriptor",
			begin: func(m *matrix) {
				m.describe()
				m.await("it is deployed", m.asDescribed)
			},
			order: func(ctx context.Context, m *matrix) error {
				m.describe()
				for {
					if _, err := m.List(ctx); err != nil || m.asDescribed() {
						return err
					}
					time.Sleep(5 * time.Millisecond)
				}
			},
			check: func(m *matrix, _ error, _ *record) {
				m.await("it is replaced", m.asDescribed)
			},
			end: func(m *matrix) {
				m.must(os.Remove(m.descriptor()))
				m.remove(m.the(subject).ID)
			},
		},
	}
}

// subject sleeps, and has a port.
func (m *matrix) subject(policy string) *ctrmodel.Container {
	c := container(subject, policy, sleeper)
	c.HostConfig.Ports = []ctrmodel.Port{{Container: 80, HostPort: port}}
	return c
}

func (m *matrix) descriptor() string { return m.Dir + "/containers/subject.json" }

// describe writes the next version of the descriptor.
func (m *matrix) describe() {
	m.version++
	text := fmt.Sprintf(`{"container_name": %q, "image": {"name": %q}, "config": {"env": ["V=%d"], "cmd": ["sh", "-c", %q]},
		"host_config": {"network_mode": "bridge", "restart_policy": {"type": "always", "retry_timeout": 300000000},
		"port_mappings": [{"container_port": 80, "host_port": %d}]}}`, subject, image, m.version, sleeper, port)
	if err := errors.Join(os.WriteFile(m.descriptor()+".new", []byte(text), 0o644), os.Rename(m.descriptor()+".new", m.descriptor())); err != nil {
		m.t.Error(err)
	}
}

// the returns the container with a name, nil unless there is exactly one.
func (m *matrix) the(name string) (c *ctrmodel.Container) {
	list, _ := m.List(m.t.Context())
	for _, found := range list {
		if found.Name == name && c != nil {
			return nil
		} else if found.Name == name {
			c = found
		}
	}
	return c
}

// asDescribed reports whether the subject is alone, runs, and is of the version that was described last.
func (m *matrix) asDescribed() bool {
	c := m.the(subject)
	if c == nil {
		return false
	}
	_, pid, err := m.look(c.ID)
	return err == nil && pid != 0 && c.State.PID == pid && c.Config.Env[0] == fmt.Sprint("V=", m.version)
}

// checkLog makes sure that all is in the log that the subject has written, once.
func (m *matrix) checkLog(hit string) {
	m.t.Helper()
	last := m.complete(subjectID, hit == "shim")
	words := said(m.Dir + "/out/subject-host")
	if hit == "" && len(last) != 1 {
		m.t.Fatalf("there were %d processes, expected 1", len(last))
	}
	if hit != "" && len(last) < 2 {
		m.t.Fatalf("there was one process, although it was killed")
	}
	// What a shim had taken and not handed on is lost with it. Else, a process has written only what is in the log.
	next := 0
	for _, s := range words {
		for next < len(last) && (last[next] < s || last[next] > s+100) {
			next++
		}
		if next == len(last) && hit != "shim" {
			m.t.Fatalf("processes came to %v, but the log only to %v", words, last)
		}
	}
}

const ballast = 4 << 20

// victims are what is killed: the function returns what brings it back.
var victims = []struct {
	name string
	kill func(m *matrix) (again func())
}{
	{"agent", func(m *matrix) func() { m.kill(); return m.launch }},
	{"containerd", func(m *matrix) func() { m.Containerd.Kill(); return m.Containerd.Run }},
	{"agent and containerd", func(m *matrix) func() {
		m.kill()
		m.Containerd.Kill()
		return func() {
			if m.rand.IntN(2) == 0 {
				m.launch()
				m.pause()
				m.Containerd.Run()
			} else {
				m.Containerd.Run()
				m.pause()
				m.launch()
			}
		}
	}},
	{"shim", func(m *matrix) func() {
		m.kill9("shim", func(id string) (pid int) {
			for _, s := range m.Containerd.Shims() {
				if s.ID == id {
					pid = s.Pid
				}
			}
			return pid
		})
		return func() {}
	}},
	{"process", func(m *matrix) func() {
		m.kill9("process", func(id string) (pid int) {
			var state struct {
				PID int `json:"init_process_pid"`
			}
			data, _ := os.ReadFile("/run/containerd/runc/" + m.namespace + "/" + id + "/state.json")
			json.Unmarshal(data, &state)
			return state.PID
		})
		return func() {}
	}},
}

// kill9 kills something of the subject, if there is any of it before the order ends; else of the keeper.
func (m *matrix) kill9(what string, of func(id string) (pid int)) {
	ids := func() (list []string) {
		for _, s := range m.Containerd.Shims() {
			if !slices.Contains(m.bystanders, s.ID) {
				list = append(list, s.ID)
			}
		}
		return list
	}
	for ended := false; !ended; {
		select {
		case err := <-m.done:
			m.done <- err
			ended = true
		case <-time.After(time.Millisecond):
		}
		for _, id := range ids() {
			if pid := of(id); pid > 0 && syscall.Kill(pid, syscall.SIGKILL) == nil {
				m.hit = what
				return
			}
		}
	}
	pid := of("keeper-id")
	if pid <= 0 {
		m.t.Fatalf("no %s to kill, not even of the keeper", what)
	}
	m.must(syscall.Kill(pid, syscall.SIGKILL))
	m.hitKeeper = true
}

// matrix is a device with containers that nobody touches, and whatever happens to them is wrong.
type matrix struct {
	*rig
	rand       *rand.Rand
	remote     string // name of an image that can be pulled
	bystanders []string
	before     census.List
	keeper     int64 // process

	version int // of the descriptor

	// Of what goes on.
	done      chan error
	hit       string // what of the subject was killed
	hitKeeper bool
}

func newMatrix(t *testing.T, seed uint64) *matrix {
	r := running(t)
	m := &matrix{rig: r, rand: rand.New(rand.NewPCG(seed, 0)), bystanders: []string{"keeper-id", "halted-id", "once-id"}}
	m.run(container("keeper", ctrmodel.RestartAlways, sleeper))
	m.run(container("halted", ctrmodel.RestartAlways, sleeper))
	m.must(m.Stop(t.Context(), "halted-id", ctrmodel.StopOptions{Signal: "SIGKILL"}))
	m.run(container("once", ctrmodel.RestartNever, "exit 3"))
	m.awaitStatus("once-id", ctrmodel.Exited)
	m.keeper = m.awaitRunning("keeper-id")
	m.describe() // so that the store knows descriptors
	m.await("it is deployed", m.asDescribed)
	m.must(os.Remove(m.descriptor()))
	m.remove(m.the(subject).ID)
	m.before = m.place.Take(t)
	return m
}

// serveImage offers an image that takes its time.
func (m *matrix) serveImage() {
	data := make([]byte, ballast)
	rand.NewChaCha8([32]byte{}).Read(data)
	heavy := m.box("example.org/heavy:1", map[string][]byte{"ballast": data})
	m.inside(func() {
		r := ctragent.Serve(m.t, func(w http.ResponseWriter, r *http.Request) bool {
			layer := strings.HasSuffix(r.URL.Path, heavy.Layer.Digest.String())
			if layer {
				http.ServeContent(slowWriter{w}, r, "", time.Time{}, bytes.NewReader(heavy.Blobs[heavy.Layer.Digest]))
			}
			return layer
		}, heavy)
		m.remote = r.Name(heavy)
	})
}

// slowWriter lets a megabyte take 30 ms.
type slowWriter struct{ http.ResponseWriter }

func (w slowWriter) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(len(p)) * 30 * time.Millisecond / (1 << 20))
	return w.ResponseWriter.Write(p)
}

func (m *matrix) pause() { time.Sleep(time.Duration(m.rand.IntN(300)) * time.Millisecond) }

// instant is when something is killed: after so many steps, or after a time.
type instant struct {
	steps int // negative: never
	after time.Duration
}

func (i instant) String() string {
	if i.after > 0 {
		return "after " + i.after.Round(time.Millisecond).String()
	}
	return fmt.Sprintf("at step %d", i.steps)
}

// play lets an operation happen, has something killed meanwhile, and makes sure that all is well in the end. It returns how
// many steps there were, and how long they took.
func (m *matrix) play(op operation, at instant, kill func(*matrix) (again func())) (steps int, took time.Duration) {
	m.t.Helper()
	m.hit, m.hitKeeper = "", false
	op.begin(m)
	ctx, cancel := context.WithTimeout(m.t.Context(), ctrd.Patient(40*time.Second))
	defer cancel()
	watch := m.watchSteps()
	defer watch.close()
	begin := time.Now()
	m.done = make(chan error, 1)
	go func() { m.done <- op.order(ctx, m) }()

	var timer <-chan time.Time
	if at.after > 0 {
		timer = time.After(at.after)
	}
	var err error
	ended := false
	for due := at.after == 0 && at.steps == 0; !due && !ended; {
		select {
		case <-timer:
			due = true
		case <-watch.seen:
			steps++
			due = at.after == 0 && steps == at.steps
		case err = <-m.done:
			ended = true
			m.done <- err
		}
	}
	took = time.Since(begin)
	var rec *record
	if kill == nil {
		if err != nil {
			m.t.Fatalf("with nobody killed: %v", err)
		}
		rec = m.readRecord(subjectID)
	} else {
		again := kill(m)
		outcome := func() {
			err = <-m.done
			rec = m.readRecord(subjectID)
		}
		if m.down { // and writes no more
			outcome()
			outcome = func() {}
		}
		m.pause()
		again()
		outcome()
	}
	m.serving()
	op.check(m, err, rec)
	m.checkBystanders()
	op.end(m)
	m.tidyContainerd()
	m.place.Await(m.t, m.before, 15*time.Second)
	return steps, took
}

// tidyContainerd clears away what containerd is known to forget, and what nobody else looks for. When its client, the agent, is
// killed while it waits for the end of a shim, it gives up on that. When it is killed itself while it removes the directory
// of a task, which is called .ID by then, it cannot remove that of the next task of the container.
func (m *matrix) tidyContainerd() {
	m.t.Helper()
	halves, _ := filepath.Glob(m.Containerd.Dir + "/state/io.containerd.runtime.v2.task/*/.*")
	for _, dir := range halves {
		m.t.Logf("containerd has forgotten %s", filepath.Base(dir))
		m.must(os.RemoveAll(dir))
	}
	stray := func() (list []ctrd.Shim) {
		for _, s := range m.Containerd.Shims() {
			if !slices.ContainsFunc(m.before, func(line string) bool { return line == "shim of "+s.ID }) {
				list = append(list, s)
			}
		}
		return list
	}
	for end := time.Now().Add(ctrd.Patient(3 * time.Second)); len(stray()) > 0 && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	for _, s := range stray() {
		_, err := os.Stat(m.Containerd.Dir + "/state/io.containerd.runtime.v2.task/" + s.Namespace + "/" + s.ID)
		if err == nil {
			m.t.Errorf("there is still the task %s", s.ID)
		}
		m.t.Logf("containerd has forgotten shim %d of %s", s.Pid, s.ID)
		syscall.Kill(s.Pid, syscall.SIGKILL)
	}
}

// checkBystanders makes sure that all others are as they were.
func (m *matrix) checkBystanders() {
	m.t.Helper()
	old := m.keeper
	m.await("the keeper runs", func() bool {
		m.keeper = m.awaitRunning("keeper-id")
		return !m.hitKeeper || m.keeper != old
	})
	if !m.hitKeeper && m.keeper != old {
		m.t.Errorf("the keeper was started anew: process %d, before %d", m.keeper, old)
	}
	m.awaitStatus("halted-id", ctrmodel.Stopped)
	m.awaitStatus("once-id", ctrmodel.Exited)
	if c, _, err := m.look("once-id"); err != nil || c.State.ExitCode != 3 || c.RestartCount != 0 {
		m.t.Errorf("who ran once: %+v, %v", c, err)
	}
	list, err := m.List(m.t.Context())
	m.must(err)
	var names []string
	for _, c := range list {
		names = append(names, c.Name)
	}
	slices.Sort(names)
	if want := []string{"halted", "keeper", "once", subject}; !slices.Equal(names, want) {
		m.t.Errorf("there are the containers %v, expected %v", names, want)
	}
}

func TestWhoeverIsKilledAllIsAsWantedAgain(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SDVBOX_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal("SDVBOX_SEED:", err)
		}
		seed = n
	}
	t.Logf("for the same instants again: SDVBOX_SEED=%d", seed)
	for n, op := range operations() {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			m := newMatrix(t, seed+uint64(n))
			if op.name == "pull" {
				m.serveImage()
			}
			steps, took := m.play(op, instant{steps: -1}, nil)
			t.Logf("%d steps in %v", steps, took.Round(time.Millisecond))
			for _, v := range victims {
				for _, at := range m.instants(steps, took) {
					t.Run(fmt.Sprintf("%s %v", v.name, at), func(t *testing.T) {
						m.t = t
						m.play(op, at, v.kill)
					})
					if m.t = t; t.Failed() {
						return
					}
				}
			}
		})
	}
}

// instants are all steps and as many times, or one of either.
func (m *matrix) instants(steps int, took time.Duration) (list []instant) {
	moment := func() instant { return instant{after: 1 + time.Duration(m.rand.Int64N(int64(took)))} }
	if !long {
		if m.rand.IntN(2) == 0 {
			return []instant{moment()}
		}
		return []instant{{steps: m.rand.IntN(steps + 1)}}
	}
	for n := range steps + 1 {
		list = append(list, instant{steps: n}, moment())
	}
	return list
}
