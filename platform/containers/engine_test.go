// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/cmapi"
	"sdvbox/platform/ctrmodel"
)

var _ cmapi.Engine = (*Engine)(nil)

func TestLifeOfAContainer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	events := r.Subscribe(ctx)
	id := r.make("radio")
	if c := r.get(id); c.State.Status != ctrmodel.Created || c.State.PID != -1 || c.Created == "" || c.HostName != "radio-host" {
		t.Errorf("created: %+v", c)
	}
	r.wantKind(r.Stop(ctx, id, force), ctrmodel.FailedPrecondition)
	r.wantKind(r.Pause(ctx, id), ctrmodel.FailedPrecondition)
	r.must(r.Start(ctx, id))
	if c := r.get(id); c.State.Status != ctrmodel.Running || c.State.PID != 4711 || c.NetworkSettings == nil || !c.StartedBefore {
		t.Errorf("running: %+v", c)
	}
	r.wantKind(r.Start(ctx, id), ctrmodel.FailedPrecondition)
	if s := r.get(id).State.Status; s != ctrmodel.Running {
		t.Errorf("start of a running container made it %v", s)
	}
	r.must(r.Pause(ctx, id))
	r.wantKind(r.Start(ctx, id), ctrmodel.FailedPrecondition)
	r.must(r.Unpause(ctx, id))
	r.wantKind(r.Remove(ctx, id, false, ctrmodel.StopOptions{}), ctrmodel.FailedPrecondition)
	r.must(r.Rename(ctx, id, "tuner"))
	r.must(r.Update(ctx, id, ctrmodel.UpdateOptions{Resources: &ctrmodel.Resources{Memory: "64M"}}))
	if got := r.fake.boxes[id].limits; got.Memory != "64M" {
		t.Errorf("live limits %+v", got)
	}
	r.must(r.Restart(ctx, id, ctrmodel.StopOptions{}))
	r.must(r.Stop(ctx, id, ctrmodel.StopOptions{}))
	c := r.get(id)
	if c.State.Status != ctrmodel.Stopped || c.State.ExitCode != 143 || !c.ManuallyStopped || c.State.PID != -1 || c.NetworkSettings != nil {
		t.Errorf("stopped: %+v", c)
	}
	r.must(r.Remove(ctx, id, false, ctrmodel.StopOptions{}))
	_, err := r.Get(ctx, id)
	r.wantKind(err, ctrmodel.NotFound)
	r.wantKind(r.Start(ctx, id), ctrmodel.NotFound)
	cancel()
	var got []string
	for e := range events {
		got = append(got, string(e.Action))
		if e.Container.ID != id {
			t.Errorf("event of %s", e.Container.ID)
		}
	}
	want := "created running paused resumed renamed updated stopped running stopped removed"
	if strings.Join(got, " ") != want {
		t.Errorf("events %v\n want %s", got, want)
	}
	if left, _ := filepath.Glob(filepath.Join(r.cfg.StateDir, "containers", "*")); len(left) > 0 || len(r.fake.left()) > 0 {
		t.Errorf("left behind: %v %v", left, r.fake.left())
	}
}

func TestTwoHundredStopsOfProcessesThatExitAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.make("quick", policy(ctrmodel.RestartAlways, 0))
	for n := range 200 {
		r.must(r.Start(t.Context(), id))
		begin := time.Now()
		if n%2 == 1 { // or even before they are told to
			go r.fake.exit(id, 0)
		}
		err := r.Stop(t.Context(), id, ctrmodel.StopOptions{Timeout: 20})
		if err != nil {
			t.Fatalf("stop %d: %v", n, err)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Fatalf("stop %d took %v", n, took)
		}
		if s := r.get(id).State.Status; s != ctrmodel.Stopped {
			t.Fatalf("stop %d left it %v", n, s)
		}
	}
}

func TestExplicitStopIsNotUndone(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{ctrmodel.RestartAlways, ctrmodel.RestartOnFailure, ctrmodel.RestartUnlessStopped} {
		r := newRig(t)
		id := r.running("a", policy(kind, 0))
		r.must(r.Stop(t.Context(), id, ctrmodel.StopOptions{Signal: "SIGKILL"}))
		r.steady(id, ctrmodel.Stopped)
		r.restart()
		r.steady(id, ctrmodel.Stopped)
		r.must(r.Start(t.Context(), id))
		r.fake.exit(id, 1)
		r.await(id, "restarted", func(c *ctrmodel.Container) bool { return c.RestartCount == 1 && c.State.Running })
	}
}

func TestRestartPoliciesAfterAnExit(t *testing.T) {
	for _, c := range []struct {
		kind    string
		retries int64
		code    int64
		again   bool
	}{
		{ctrmodel.RestartNever, 0, 1, false},
		{ctrmodel.RestartAlways, 0, 0, true},
		{ctrmodel.RestartUnlessStopped, 0, 0, true},
		{ctrmodel.RestartOnFailure, 0, 0, false},
		{ctrmodel.RestartOnFailure, 0, 3, true},
	} {
		t.Run(fmt.Sprint(c.kind, c.code), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			id := r.running("a", policy(c.kind, c.retries))
			r.fake.exit(id, c.code)
			if c.again {
				r.await(id, "restarted", func(c *ctrmodel.Container) bool { return c.RestartCount == 1 && c.State.Running })
				return
			}
			got := r.awaitStatus(id, ctrmodel.Exited)
			if got.State.ExitCode != c.code || !got.State.Exited {
				t.Errorf("state %+v", got.State)
			}
			r.steady(id, ctrmodel.Exited)
			r.restart() // the policy is asked once for each end of a process
			r.steady(id, ctrmodel.Exited)
		})
	}
}

func TestOnFailureGivesUpAfterItsRetries(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a", policy(ctrmodel.RestartOnFailure, 2))
	for n := range 3 {
		r.await(id, "running", func(c *ctrmodel.Container) bool { return c.RestartCount == int64(n) && c.State.Running })
		r.fake.exit(id, 1)
	}
	r.awaitStatus(id, ctrmodel.Exited)
	r.steady(id, ctrmodel.Exited)
	r.must(r.Start(t.Context(), id))
	if n := r.get(id).RestartCount; n != 0 {
		t.Errorf("after a start by hand the count is %d", n)
	}
}

func TestOOM(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a", policy(ctrmodel.RestartNever, 0))
	r.noteOOM(id)
	r.fake.exit(id, 137)
	if s := r.awaitStatus(id, ctrmodel.Exited).State; !s.OOMKilled || s.Error == "" {
		t.Errorf("state %+v", s)
	}
	r.must(r.Start(t.Context(), id))
	r.noteOOM(id) // of another process in the container, which the first one got over
	r.fake.exit(id, 0)
	if s := r.awaitStatus(id, ctrmodel.Exited).State; s.OOMKilled || s.Error != "" {
		t.Errorf("after a good end: %+v", s)
	}
	r.must(r.Start(t.Context(), id))
	if s := r.get(id).State; s.OOMKilled || s.Error != "" {
		t.Errorf("after the next start: %+v", s)
	}
}

func TestStopThatIsNotHeeded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fake.kill = func(string, syscall.Signal) bool { return false }
	id := r.running("deaf")
	r.wantKind(r.Stop(t.Context(), id, ctrmodel.StopOptions{Timeout: 1}), ctrmodel.DeadlineExceeded)
	if c := r.get(id); c.State.Status != ctrmodel.Running || c.ManuallyStopped {
		t.Errorf("without force: %+v", c)
	}
	r.fake.exit(id, 1)
	r.await(id, "restarted", func(c *ctrmodel.Container) bool { return c.RestartCount == 1 && c.State.Running })
	r.must(r.Stop(t.Context(), id, force))
	if c := r.get(id); c.State.ExitCode != 137 {
		t.Errorf("with force: %+v", c.State)
	}
}

func TestPausedContainerIsStopped(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fake.kill = func(id string, _ syscall.Signal) bool {
		go func() { // once it is no longer frozen
			for {
				if is, _ := r.fake.Look(context.Background(), id); is.Task == TaskRunning {
					r.fake.exit(id, 0)
					return
				}
			}
		}()
		return false
	}
	for _, end := range []func(id string) error{
		func(id string) error { return r.Stop(t.Context(), id, ctrmodel.StopOptions{}) },
		func(id string) error { return r.Remove(t.Context(), id, true, ctrmodel.StopOptions{}) },
	} {
		id := r.running("cold")
		r.must(r.Pause(t.Context(), id))
		r.must(end(id))
		if c, err := r.Get(t.Context(), id); err == nil && c.State.ExitCode != 0 {
			t.Errorf("had to be killed: %+v", c.State)
		}
		r.Remove(t.Context(), id, true, force)
	}
}

func TestTenStubbornContainersStopInOneTimeout(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"stopped by a client", "stopped with the agent"} {
		r := newRig(t, func(c *Config) { c.StopTimeout, c.StopOnExit = 500*time.Millisecond, true })
		r.fake.kill = func(string, syscall.Signal) bool { return false }
		var ids []string
		for n := range 10 {
			ids = append(ids, r.running(fmt.Sprint("deaf", n)))
		}
		begin := time.Now()
		if how == "stopped with the agent" {
			r.stop()
		} else {
			var all sync.WaitGroup
			for _, id := range ids {
				all.Go(func() {
					if err := r.Stop(context.Background(), id, force); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
		}
		if took := time.Since(begin); took > 4*time.Second { // one after the other, they would take 5 s
			t.Errorf("%s: took %v", how, took)
		}
		for _, id := range ids {
			if task := r.fake.boxes[id].task; task != NoTask {
				t.Errorf("%s: task %v is left", how, task)
			}
		}
		if how == "stopped with the agent" { // nobody wanted them to stay so
			r.start()
			for _, id := range ids {
				r.awaitStatus(id, ctrmodel.Running)
			}
		}
	}
}

func TestAgentRestartLeavesContainersRunning(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	running, paused := r.running("running"), r.running("paused")
	r.must(r.Pause(t.Context(), paused))
	started := r.get(running).State.StartedAt
	r.restart()
	c := r.await(running, "adopted", func(c *ctrmodel.Container) bool { return c.State.PID == 4712 })
	if c.State.StartedAt != started || c.State.Status != ctrmodel.Running {
		t.Errorf("state %+v", c.State)
	}
	c = r.await(paused, "adopted", func(c *ctrmodel.Container) bool { return c.State.PID == 4712 })
	if c.State.Status != ctrmodel.Paused {
		t.Errorf("state %+v", c.State)
	}
	if n := r.fake.launched(running); n != 1 {
		t.Errorf("launched %d times", n)
	}
	// The policy lives on.
	r.fake.exit(running, 1)
	r.await(running, "restarted", func(c *ctrmodel.Container) bool { return c.RestartCount == 1 && c.State.Running })
}

func TestContainerThatEndedWhileTheAgentWasAway(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	always, never := r.running("always"), r.running("never", policy(ctrmodel.RestartNever, 0))
	r.stop()
	r.fake.exit(always, 7)
	r.fake.exit(never, 7)
	r.start()
	r.await(always, "restarted", func(c *ctrmodel.Container) bool { return c.RestartCount == 1 && c.State.Running })
	if s := r.awaitStatus(never, ctrmodel.Exited).State; s.ExitCode != 7 {
		t.Errorf("state %+v", s)
	}
}

func TestContainersComeBackAfterTheMachine(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ids := map[string]string{}
	for _, kind := range []string{ctrmodel.RestartAlways, ctrmodel.RestartOnFailure, ctrmodel.RestartUnlessStopped, ctrmodel.RestartNever} {
		ids[kind] = r.running(kind, policy(kind, 0))
	}
	stopped := r.running("stopped")
	r.must(r.Stop(t.Context(), stopped, force))
	r.stop()
	r.boot = "another one"
	for _, b := range r.fake.boxes {
		b.task = NoTask
	}
	r.start()
	for kind, id := range ids {
		if kind == ctrmodel.RestartNever {
			if s := r.awaitStatus(id, ctrmodel.Exited).State; s.Error == "" {
				t.Errorf("nothing tells that the exit code is not known: %+v", s)
			}
			continue
		}
		if c := r.await(id, "running", func(c *ctrmodel.Container) bool { return c.State.PID == 4711 && r.fake.launched(id) == 2 }); c.RestartCount != 0 {
			t.Errorf("%s: %d restarts counted", kind, c.RestartCount)
		}
	}
	r.steady(stopped, ctrmodel.Stopped)
}

func TestContainerdRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	goesOn, ends, never := r.running("goes-on"), r.running("ends"), r.running("never", policy(ctrmodel.RestartNever, 0))
	r.fake.setDown(true)
	for r.Ready() == nil {
		time.Sleep(time.Millisecond)
	}
	begin := time.Now()
	r.wantKind(r.Stop(t.Context(), goesOn, force), ctrmodel.Unavailable)
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("a call took %v to say that containerd is away", took)
	}
	_, err := r.Create(t.Context(), &ctrmodel.Container{Image: ctrmodel.Image{Name: "x"}})
	r.wantKind(err, ctrmodel.Unavailable)
	if list, _ := r.List(t.Context()); len(list) != 3 {
		t.Errorf("%d containers listed without containerd", len(list))
	}
	r.fake.exit(ends, 3)
	r.fake.exit(never, 3)
	time.Sleep(20 * time.Millisecond)
	r.fake.setDown(false)
	r.await(ends, "restarted", func(c *ctrmodel.Container) bool { return c.RestartCount == 1 && c.State.Running })
	if s := r.awaitStatus(never, ctrmodel.Exited).State; s.ExitCode != 3 {
		t.Errorf("state %+v", s)
	}
	r.steady(goesOn, ctrmodel.Running)
	// It is watched as before.
	r.fake.exit(goesOn, 1)
	r.await(goesOn, "restarted", func(c *ctrmodel.Container) bool { return c.RestartCount == 1 && c.State.Running })
	r.must(r.Stop(t.Context(), goesOn, force))
}

func TestContainerdIsLate(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a")
	r.stop()
	r.fake.boxes[id].task = NoTask
	r.fake.setDown(true)
	r.start()
	time.Sleep(30 * time.Millisecond)
	if c := r.get(id); c.State.Status != ctrmodel.Running { // as far as anybody knows
		t.Errorf("state %+v", c.State)
	}
	if r.Ready() == nil {
		t.Error("ready without containerd")
	}
	r.fake.setDown(false)
	r.await(id, "started again", func(*ctrmodel.Container) bool { return r.fake.launched(id) == 2 })
}

func TestAutomaticStartIsTriedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("late-device", policy(ctrmodel.RestartUnlessStopped, 0))
	r.stop()
	r.fake.boxes[id].task = NoTask
	var missing atomic.Bool
	missing.Store(true)
	r.fake.launch = func(*ctrmodel.Container) error {
		if missing.Load() {
			return errors.New("no such device")
		}
		return nil
	}
	r.start()
	c := r.await(id, "tried three times", func(c *ctrmodel.Container) bool { return c.RestartCount >= 3 })
	if c.State.Status != ctrmodel.Stopped || c.State.Error != "no such device" {
		t.Errorf("state %+v", c.State)
	}
	r.must(r.Stop(t.Context(), id, force)) // calls the attempts off
	n := r.get(id).RestartCount
	r.steady(id, ctrmodel.Stopped)
	if got := r.get(id).RestartCount; got != n {
		t.Errorf("%d attempts after the stop", got-n)
	}
	r.wantKind(r.Stop(t.Context(), id, force), ctrmodel.FailedPrecondition)
	missing.Store(false)
	r.must(r.Start(t.Context(), id))
}

func TestStartByHandIsTriedOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	tries := 0
	r.fake.launch = func(*ctrmodel.Container) error {
		tries++
		return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "no such program")
	}
	id := r.make("a")
	r.wantKind(r.Start(t.Context(), id), ctrmodel.FailedPrecondition)
	r.steady(id, ctrmodel.Stopped)
	if s := r.get(id).State; tries != 1 || s.Error != "no such program" || s.ExitCode != 0 {
		t.Errorf("%d tries, state %+v", tries, s)
	}
	if b := r.fake.boxes[id]; b.task != NoTask {
		t.Errorf("the failed start left a task: %v", b.task)
	}
}

func TestCreateLeavesNothingWhenItFails(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	fail := errors.New("the registry lies")
	r.fake.prepare = func(context.Context, *ctrmodel.Container) error { return fail }
	if _, err := r.Create(t.Context(), &ctrmodel.Container{Name: "a", Image: ctrmodel.Image{Name: "x"}}); !errors.Is(err, fail) {
		t.Errorf("error %v", err)
	}
	// Nor when who waits for it goes away.
	begun := make(chan struct{})
	r.fake.prepare = func(ctx context.Context, _ *ctrmodel.Container) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	_, err := r.Create(ctx, &ctrmodel.Container{Name: "a", Image: ctrmodel.Image{Name: "x"}})
	r.wantKind(err, ctrmodel.Cancelled)
	for end := time.Now().Add(time.Second); len(r.list()) > 0; {
		if time.Now().After(end) {
			t.Fatal("container is left")
		}
	}
	if left, _ := filepath.Glob(filepath.Join(r.cfg.StateDir, "containers", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	r.fake.prepare = nil
	r.make("a")
}

func TestAgentKilledDuringCreate(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fake.prepare = func(ctx context.Context, c *ctrmodel.Container) error {
		r.fake.mu.Lock()
		r.fake.box(c.ID).snapshot = true // made, and then
		r.fake.mu.Unlock()
		<-ctx.Done()
		return ctx.Err()
	}
	go r.Create(context.Background(), &ctrmodel.Container{ID: "id", Image: ctrmodel.Image{Name: "x"}})
	file := filepath.Join(r.cfg.StateDir, "containers", "id", recordName)
	var kept []byte
	for kept == nil {
		kept, _ = os.ReadFile(file)
	}
	r.stop()
	os.MkdirAll(filepath.Dir(file), 0o700)
	if err := os.WriteFile(file, kept, 0o600); err != nil {
		t.Fatal(err)
	}
	r.fake.boxes["id"] = &box{snapshot: true}
	r.start()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := r.Get(t.Context(), "id"); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("half a container is left")
		}
	}
	if len(r.fake.left()) > 0 {
		t.Error("its snapshot is left")
	}
}

func TestNamesAndIDsAreUnique(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.make("a")
	b := r.make("b")
	_, err := r.Create(t.Context(), &ctrmodel.Container{Name: "a", Image: ctrmodel.Image{Name: "x"}})
	r.wantKind(err, ctrmodel.AlreadyExists)
	_, err = r.Create(t.Context(), &ctrmodel.Container{ID: a, Name: "c", Image: ctrmodel.Image{Name: "x"}})
	r.wantKind(err, ctrmodel.AlreadyExists)
	r.wantKind(r.Rename(t.Context(), b, "a"), ctrmodel.AlreadyExists)
	r.wantKind(r.Rename(t.Context(), b, "-"), ctrmodel.InvalidArgument)
	r.must(r.Rename(t.Context(), b, ""))
	r.must(r.Rename(t.Context(), a, "z"))
	r.must(r.Rename(t.Context(), b, "a"))
	if c, err := r.ByName(t.Context(), "a"); err != nil || c.ID != b {
		t.Errorf("by name: %v, %v", c, err)
	}
	_, err = r.ByName(t.Context(), "b")
	r.wantKind(err, ctrmodel.NotFound)
	r.must(r.Remove(t.Context(), b, false, force))
	r.make("a")
}

func TestRemoveInterruptsAPullAndAStop(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fake.prepare = func(ctx context.Context, _ *ctrmodel.Container) error {
		<-ctx.Done()
		return ctx.Err()
	}
	created := make(chan error)
	go func() {
		_, err := r.Create(context.Background(), &ctrmodel.Container{ID: "id", Image: ctrmodel.Image{Name: "x"}})
		created <- err
	}()
	for len(r.list()) == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := r.Remove(t.Context(), "id", true, force); err != nil && ctrmodel.KindOf(err) != ctrmodel.NotFound {
		t.Error(err)
	}
	r.wantKind(<-created, ctrmodel.Cancelled)

	r.fake.prepare = nil
	told := make(chan bool, 1)
	r.fake.kill = func(_ string, s syscall.Signal) bool {
		if s == syscall.SIGTERM {
			told <- true
		}
		return s != syscall.SIGTERM
	}
	id := r.running("deaf")
	stopped := make(chan error)
	go func() { stopped <- r.Stop(context.Background(), id, ctrmodel.StopOptions{Timeout: 60}) }()
	<-told
	r.must(r.Remove(t.Context(), id, true, ctrmodel.StopOptions{Signal: "SIGINT"}))
	r.wantKind(<-stopped, ctrmodel.Cancelled)
}

func TestRemovalThatFailsIsFinishedLater(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var stuck atomic.Bool
	stuck.Store(true)
	r.fake.release = func(string) error {
		if stuck.Load() {
			return errors.New("device busy")
		}
		return nil
	}
	id := r.running("a")
	if err := r.Remove(t.Context(), id, true, force); err == nil || !strings.Contains(err.Error(), "device busy") {
		t.Fatalf("error %v", err)
	}
	if s := r.get(id).State.Status; s != ctrmodel.Dead {
		t.Errorf("status %v", s)
	}
	r.wantKind(r.Start(t.Context(), id), ctrmodel.FailedPrecondition)
	r.restart()
	r.steady(id, ctrmodel.Dead)
	stuck.Store(false)
	for end := time.Now().Add(5 * time.Second); len(r.list()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not removed")
		}
	}
}

func TestNewPolicyCountsAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a", policy(ctrmodel.RestartNever, 0))
	r.fake.exit(id, 1)
	r.awaitStatus(id, ctrmodel.Exited)
	r.must(r.Update(t.Context(), id, ctrmodel.UpdateOptions{RestartPolicy: &ctrmodel.RestartPolicy{Type: ctrmodel.RestartAlways}}))
	r.awaitStatus(id, ctrmodel.Running)
	r.must(r.Stop(t.Context(), id, force))
	r.must(r.Update(t.Context(), id, ctrmodel.UpdateOptions{RestartPolicy: &ctrmodel.RestartPolicy{Type: ctrmodel.RestartUnlessStopped}}))
	r.steady(id, ctrmodel.Stopped)
	r.wantKind(r.Update(t.Context(), id, ctrmodel.UpdateOptions{RestartPolicy: &ctrmodel.RestartPolicy{Type: "sometimes"}}), ctrmodel.InvalidArgument)
}

func TestSubscriberThatDoesNotReadIsLeftBehind(t *testing.T) {
	t.Parallel()
	var h hub
	slow, quick := h.subscribe(t.Context()), h.subscribe(t.Context())
	for range backlog + 1 {
		h.publish(ctrmodel.Event{})
		<-quick
	}
	n := 0
	for range slow {
		n++
	}
	if n != backlog {
		t.Errorf("%d events", n)
	}
}

// A process that was lost while the machine ran on has ended somehow, and that is counted; one that ended with the machine has not
// failed.
func TestLostProcessIsToldFromARestartOfTheMachine(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	lost := r.running("lost", policy(ctrmodel.RestartAlways, 0))
	last := r.running("last", policy(ctrmodel.RestartOnFailure, 1))
	r.fake.exit(last, 1)
	r.await(last, "restarted", func(c *ctrmodel.Container) bool { return c.RestartCount == 1 && c.State.Running })
	r.stop()
	r.fake.boxes[lost].task, r.fake.boxes[last].task = NoTask, NoTask
	r.start()
	r.await(lost, "restarted", func(c *ctrmodel.Container) bool { return c.RestartCount == 1 && c.State.Running })
	if s := r.awaitStatus(last, ctrmodel.Exited).State; s.Error == "" {
		t.Errorf("nothing tells that the exit code is not known: %+v", s)
	}
	r.steady(last, ctrmodel.Exited)
	r.must(r.Start(t.Context(), last))
	r.restart() // what is adopted runs in this machine, too
	r.must(r.Known(t.Context()))
	r.stop()
	r.fake.boxes[lost].task, r.fake.boxes[last].task = NoTask, NoTask
	r.boot = "another one"
	r.start()
	for _, id := range []string{lost, last} {
		r.await(id, "running", func(c *ctrmodel.Container) bool { return c.State.PID == 4711 })
	}
	if n := r.get(last).RestartCount; n != 0 {
		t.Errorf("%d restarts counted", n)
	}
}

// The agent was killed after the process had been started, before that was written down.
func TestAdoptedContainerIsDescribedAsAnyOther(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.make("a")
	r.stop()
	killed := r.killed(2, true, false, func(e *Engine) error { return e.Start(context.Background(), id) })
	if !killed || r.fake.running() != 1 {
		t.Fatalf("killed: %v, %d processes", killed, r.fake.running())
	}
	r.start()
	c := r.awaitStatus(id, ctrmodel.Running)
	if c.State.PID != 4712 || c.NetworkSettings == nil || c.HostsPath == "" {
		t.Errorf("adopted: %+v", c)
	}
}

func TestContainerStaysWithItsImage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	id := r.running("a")
	first, err := r.ImageDigest(id)
	r.must(err)
	image, err := r.Refresh(ctx, busybox, nil)
	if err != nil || image.Digest == first || first == "" {
		t.Fatalf("refreshed: %+v, was %s, %v", image, first, err)
	}
	r.restart()
	r.must(r.Known(ctx))
	r.must(r.Restart(ctx, id, force))
	if got := r.fake.boxes[id].digest; got != first {
		t.Errorf("started from image %s, made of %s", got, first)
	}
	if used := r.UsedImages(); !used[first] || !used[busybox] || used[image.Digest] {
		t.Errorf("images in use: %v", used)
	}
	c, err := r.Replace(ctx, id, &ctrmodel.Container{Name: "a", Image: ctrmodel.Image{Name: busybox}})
	r.must(err)
	if got, _ := r.ImageDigest(c.ID); got != image.Digest {
		t.Errorf("made of %s, expected %s", got, image.Digest)
	}
	r.wantKind(r.RemoveImage(ctx, busybox), ctrmodel.FailedPrecondition)
	r.must(r.RemoveImage(ctx, "other"))
	if fmt.Sprint(r.fake.removed) != "[other]" {
		t.Errorf("removed %v", r.fake.removed)
	}
}

// Nothing is written or told of attempts that all fail in the same way.
func TestAttemptsThatFailAlikeAreNotWrittenDown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a")
	r.stop()
	r.fake.boxes[id].task = NoTask
	var tries atomic.Int32
	r.fake.launch = func(*ctrmodel.Container) error {
		tries.Add(1)
		return ctrmodel.Errorf(ctrmodel.Unavailable, "no answer")
	}
	r.start()
	r.await(id, "tried", func(c *ctrmodel.Container) bool { return c.State.Error == "no answer" })
	events := r.Subscribe(t.Context())
	file := filepath.Join(r.cfg.StateDir, "containers", id, recordName)
	before, err := os.Stat(file)
	r.must(err)
	for n := tries.Load(); tries.Load() < n+5; {
		time.Sleep(time.Millisecond)
	}
	if after, err := os.Stat(file); err != nil || !os.SameFile(before, after) {
		t.Errorf("written again, %v", err)
	}
	select {
	case e := <-events:
		t.Errorf("event %s", e.Action)
	default:
	}
}

// What could not be cleared away after a start that failed is cleared away before the next, and before the end.
func TestFailedStartIsClearedAwayLater(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.make("a")
	dirty := false // the network
	var busy atomic.Bool
	r.fake.launch = func(*ctrmodel.Container) error {
		if dirty {
			t.Error("started over what the start before has left")
		}
		dirty = true
		r.fake.boxes[id].object, r.fake.boxes[id].task = false, NoTask // containerd never had it
		return errDown
	}
	r.fake.release = func(string) error {
		if busy.Load() {
			return errDown
		}
		dirty = false
		return nil
	}
	for _, next := range []func() error{
		func() error { return r.Start(t.Context(), id) },
		func() error { return r.Remove(t.Context(), id, false, force) },
		func() error { return nil },
	} {
		if _, err := r.Get(t.Context(), id); err != nil {
			id = r.make("b")
		}
		busy.Store(true)
		r.wantKind(r.Start(t.Context(), id), ctrmodel.Unavailable)
		busy.Store(false)
		next()
		r.eventually("cleared away", func() bool {
			r.fake.mu.Lock()
			defer r.fake.mu.Unlock()
			return !dirty
		})
	}
}

func TestPauseThatHangsIsGivenUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a")
	r.fake.pause = func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	r.do(t.Context(), id, starting, func(a *actor, _ context.Context) error {
		r.Engine.times.call = 20 * time.Millisecond
		return nil
	})
	r.wantKind(r.Pause(t.Context(), id), ctrmodel.DeadlineExceeded)
	r.wantKind(r.Unpause(t.Context(), id), ctrmodel.FailedPrecondition)
	r.steady(id, ctrmodel.Running)
}
