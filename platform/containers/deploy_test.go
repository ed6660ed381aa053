// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/output"
)

// deployRig is a rig that deploys from the directory it returns.
func deployRig(t *testing.T, files map[string]string, change ...func(*Config)) (*rig, string) {
	dir := t.TempDir()
	for name, text := range files {
		write(t, dir, name, text)
	}
	r := newRig(t, append(change, func(c *Config) {
		c.Deployment.Dirs = []string{dir}
		if c.Deployment.Period == 0 {
			c.Deployment.Period = 5 * time.Millisecond
		}
	})...)
	return r, dir
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) awaitName(name, what string, is func(*ctrmodel.Container) bool) *ctrmodel.Container {
	r.t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		c, err := r.ByName(r.t.Context(), name)
		if err == nil && is(c) {
			return c
		}
		if time.Now().After(end) {
			r.t.Fatalf("container %s is not %s: %v, %+v", name, what, err, c)
		}
	}
}

func isRunning(c *ctrmodel.Container) bool { return c.State.Running }

const seat1 = `{"container_name": "seat", "image": {"name": "example.org/seat:1"}}`

func TestDescriptorsAreDeployed(t *testing.T) {
	t.Parallel()
	r, dir := deployRig(t, map[string]string{
		"seat.json":           seat1,
		"below/nameless.json": `{"image": {"name": "example.org/n:1"}}`,
		"message.json":        `{"name": "message", "image": {"name": "example.org/m:1"}, "host_config": {"restart_policy": {"type": "no"}}}`,
		"empty-list.json":     `{"container_name": "privileged", "image": {"name": "x"}, "host_config": {"privileged": true, "devices": []}}`,
		"broken.json":         `{"container_name": "broken", `,
		"wrong.json":          `{"container_name": "wrong name", "image": {"name": "x"}}`,
		"twin.json":           seat1,
		"off.json.disabled":   `{"container_name": "off", "image": {"name": "x"}}`,
	})
	for _, name := range []string{"seat", "nameless", "message", "privileged"} {
		r.awaitName(name, "running", isRunning)
	}
	if c := r.awaitName("message", "", isRunning); c.HostConfig.RestartPolicy.Type != ctrmodel.RestartNever {
		t.Errorf("policy %+v", c.HostConfig.RestartPolicy)
	}
	r.restart()
	r.awaitName("nameless", "adopted", func(c *ctrmodel.Container) bool { return c.State.PID == 4712 })
	write(t, dir, "broken.json", `{"container_name": "broken", "image": {"name": "x"}}`)
	r.awaitName("broken", "running", isRunning)
	if list, _ := r.List(t.Context()); len(list) != 5 {
		t.Errorf("%d containers: %+v", len(list), list)
	}
}

func TestChangedDescriptorIsApplied(t *testing.T) {
	t.Parallel()
	r, dir := deployRig(t, map[string]string{"seat.json": `{"container_id": "fixed", "container_name": "seat", "image": {"name": "example.org/seat:1"}}`})
	first := r.awaitName("seat", "running", isRunning)
	if first.ID != "fixed" {
		t.Errorf("id %s", first.ID)
	}
	// In place.
	write(t, dir, "seat.json", `{"container_id": "fixed", "container_name": "seat", "image": {"name": "example.org/seat:1"},
		"host_config": {"restart_policy": {"type": "always"}, "resources": {"memory": "64M"}}}`)
	c := r.awaitName("seat", "updated", func(c *ctrmodel.Container) bool { return c.HostConfig.Resources.Memory == "64M" })
	if c.ID != first.ID || c.HostConfig.RestartPolicy.Type != "always" || r.fake.launched("fixed") != 1 {
		t.Errorf("updated: %+v", c)
	}
	// By another container, although the id is taken.
	write(t, dir, "seat.json", `{"container_id": "fixed", "container_name": "seat", "image": {"name": "example.org/seat:2"}}`)
	c = r.awaitName("seat", "replaced", func(c *ctrmodel.Container) bool { return c.Image.Name == "example.org/seat:2" && c.State.Running })
	if c.ID == first.ID {
		t.Error("replaced by itself")
	}
	r.await(c.ID, "alone", func(*ctrmodel.Container) bool { return len(r.list()) == 1 })
	// Without a word of difference.
	write(t, dir, "seat.json", `{ "container_id": "fixed", "container_name": "seat", "image": {"name": "example.org/seat:2"}}`)
	time.Sleep(50 * time.Millisecond)
	if again := r.awaitName("seat", "", isRunning); again.ID != c.ID || r.fake.launched(c.ID) != 1 {
		t.Errorf("touched: %+v", again)
	}
}

func TestDescriptorIsAppliedOnce(t *testing.T) {
	t.Parallel()
	r, dir := deployRig(t, map[string]string{"seat.json": seat1, "gone.json": `{"container_name": "gone", "image": {"name": "x"}}`,
		"stopped.json": `{"container_name": "stopped", "image": {"name": "x"}}`})
	gone, stopped := r.awaitName("gone", "running", isRunning), r.awaitName("stopped", "running", isRunning)
	old := r.awaitName("seat", "running", isRunning)
	// What an update and a user do is meant.
	fresh, err := r.Replace(t.Context(), old.ID, &ctrmodel.Container{Name: "seat", Image: ctrmodel.Image{Name: "example.org/seat:2"}})
	r.must(err)
	r.must(r.Stop(t.Context(), stopped.ID, force))
	r.must(r.Remove(t.Context(), gone.ID, true, force))
	for range 2 {
		r.restart()
		r.awaitName("seat", "running", isRunning)
		time.Sleep(50 * time.Millisecond)
		if c, _ := r.ByName(t.Context(), "seat"); c.ID != fresh.ID {
			t.Errorf("the update was undone: %+v", c)
		}
		if _, err := r.ByName(t.Context(), "gone"); err == nil {
			t.Error("the removed container is back")
		}
		r.steady(stopped.ID, ctrmodel.Stopped)
	}
	// Until somebody asks for it.
	r.must(r.Deploy(t.Context()))
	if c, _ := r.ByName(t.Context(), "seat"); c.Image.Name != "example.org/seat:1" || !c.State.Running {
		t.Errorf("deployed again: %+v", c)
	}
	for _, name := range []string{"gone", "stopped"} {
		if c, err := r.ByName(t.Context(), name); err != nil || !c.State.Running {
			t.Errorf("deployed again: %v, %+v", err, c)
		}
	}
	// A file that goes and comes again counts as new.
	r.must(r.Stop(t.Context(), stopped.ID, force))
	r.must(r.Remove(t.Context(), stopped.ID, false, force))
	r.must(os.Remove(filepath.Join(dir, "stopped.json")))
	r.eventually("seen to be gone", func() bool { return r.applied("stopped") == (progress{}) })
	write(t, dir, "stopped.json", `{"container_name": "stopped", "image": {"name": "x"}}`)
	r.awaitName("stopped", "running", isRunning)
}

func TestReplacementThatDoesNotStartIsTakenBack(t *testing.T) {
	t.Parallel()
	r, dir := deployRig(t, map[string]string{"seat.json": seat1})
	old := r.awaitName("seat", "running", isRunning)
	r.fake.mu.Lock()
	r.fake.launch = func(c *ctrmodel.Container) error {
		if strings.HasSuffix(c.Image.Name, ":2") {
			return errors.New("bad program")
		}
		return nil
	}
	r.fake.mu.Unlock()
	write(t, dir, "seat.json", `{"container_name": "seat", "image": {"name": "example.org/seat:2"}}`)
	r.await(old.ID, "started again", func(c *ctrmodel.Container) bool { return r.fake.launched(old.ID) == 2 && c.State.Running })
	r.steady(old.ID, ctrmodel.Running)
	if list, _ := r.List(t.Context()); len(list) != 1 {
		t.Errorf("%d containers", len(list))
	}
}

func TestDeploymentIsTriedAgain(t *testing.T) {
	t.Parallel()
	r, _ := deployRig(t, nil)
	r.fake.mu.Lock()
	tries := 0
	r.fake.prepare = func(context.Context, *ctrmodel.Container) error {
		if tries++; tries < 3 {
			return ctrmodel.Errorf(ctrmodel.Unavailable, "no network yet")
		}
		return nil
	}
	r.fake.mu.Unlock()
	write(t, r.cfg.Deployment.Dirs[0], "seat.json", seat1)
	r.awaitName("seat", "running", isRunning)
	if tries != 3 {
		t.Errorf("%d tries", tries)
	}
}

func TestInitialDeploymentHappensOnce(t *testing.T) {
	t.Parallel()
	r, dir := deployRig(t, map[string]string{"seat.json": seat1}, func(c *Config) { c.Deployment.Init = true })
	c := r.awaitName("seat", "running", isRunning)
	r.awaitOver()
	r.must(r.Remove(t.Context(), c.ID, true, force))
	write(t, dir, "other.json", `{"container_name": "other", "image": {"name": "x"}}`)
	r.restart()
	time.Sleep(50 * time.Millisecond)
	if list, _ := r.List(t.Context()); len(list) != 0 {
		t.Errorf("containers %+v", list)
	}
	// Nothing is a deployment, too.
	r, dir = deployRig(t, nil, func(c *Config) { c.Deployment.Init = true })
	r.awaitOver()
	write(t, dir, "seat.json", seat1)
	r.restart()
	time.Sleep(50 * time.Millisecond)
	if list, _ := r.List(t.Context()); len(list) != 0 {
		t.Errorf("containers %+v", list)
	}
}

// awaitOver waits until the deployment of the device's life is written down to be over.
func (r *rig) awaitOver() {
	r.t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		data, err := os.ReadFile(filepath.Join(r.cfg.StateDir, "deployed.json"))
		var d deeds
		if err == nil && json.Unmarshal(data, &d) == nil && !d.Initial {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("the deployment does not end: %s, %v", data, err)
		}
	}
}

const slow = `{"container_name": "slow", "image": {"name": "dead.example.org/slow:1"}}`

// hanging is a rig that deploys the seat and a container whose image nobody delivers.
func hanging(t *testing.T, change func(*Config)) (r *rig, dir string) {
	r, dir = newRig(t), t.TempDir()
	r.stop()
	r.fake.prepare = func(ctx context.Context, c *ctrmodel.Container) error {
		if c.Name == "slow" {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	r.cfg.Deployment = Deployment{Dirs: []string{dir}, Period: 5 * time.Millisecond}
	change(&r.cfg)
	write(t, dir, "seat.json", seat1)
	write(t, dir, "slow.json", slow)
	r.start()
	return r, dir
}

// cut takes the power away: what has not been written down by now is lost.
func (r *rig) cut() {
	r.t.Helper()
	dir := filepath.Join(memoryDir(r.t), "state")
	r.must(os.CopyFS(dir, os.DirFS(r.cfg.StateDir)))
	r.stop()
	r.cfg.StateDir = dir
}

func TestInitialDeploymentGoesOnAfterAPowerCut(t *testing.T) {
	t.Parallel()
	r, _ := hanging(t, func(c *Config) { c.Deployment.Init = true })
	r.awaitName("seat", "running", isRunning)
	r.cut()
	r.fake.prepare = nil
	r.start()
	r.awaitName("slow", "running", isRunning)
	r.awaitOver()
}

// One whose registry does not answer holds up nobody, and is no reason to forget what has been done.
func TestDescriptorsDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	r, dir := hanging(t, func(*Config) {})
	old := r.awaitName("seat", "running", isRunning)
	fresh, err := r.Replace(t.Context(), old.ID, &ctrmodel.Container{Name: "seat", Image: ctrmodel.Image{Name: "example.org/seat:2"}})
	r.must(err)
	write(t, dir, "new.json", `{"container_name": "new", "image": {"name": "x"}}`)
	r.awaitName("new", "running", isRunning)
	r.cut()
	r.start()
	for end := time.Now().Add(250 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if c, err := r.ByName(t.Context(), "seat"); err != nil || c.ID != fresh.ID {
			t.Fatalf("the update was undone: %v, %+v", err, c)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // enough for the seat
	defer cancel()
	begin := time.Now()
	r.wantKind(r.Deploy(ctx), ctrmodel.DeadlineExceeded)
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("gave up after %v", took)
	}
	r.awaitName("seat", "deployed again", func(c *ctrmodel.Container) bool { return c.Image.Name == "example.org/seat:1" && c.State.Running })
}

// How often a container is started is a matter of its restart policy; the descriptor has been applied.
func TestContainerThatDoesNotStartIsDeployed(t *testing.T) {
	t.Parallel()
	r, dir := deployRig(t, nil)
	var tries atomic.Int32
	r.fake.mu.Lock()
	r.fake.launch = func(c *ctrmodel.Container) error {
		if c.Image.Name == "example.org/seat:2" {
			return nil
		}
		tries.Add(1)
		return errors.New("no such device")
	}
	r.fake.mu.Unlock()
	write(t, dir, "seat.json", `{"container_name": "seat", "image": {"name": "example.org/seat:1"},
		"host_config": {"restart_policy": {"type": "on-failure", "maximum_retry_count": 1}}}`)
	old := r.awaitName("seat", "given up", func(*ctrmodel.Container) bool { return tries.Load() == 2 })
	time.Sleep(500 * time.Millisecond) // more than the first pauses of the deployer
	if n := tries.Load(); n != 2 {
		t.Errorf("%d tries, want one and one more", n)
	}
	fresh, err := r.Replace(t.Context(), old.ID, &ctrmodel.Container{Name: "seat", Image: ctrmodel.Image{Name: "example.org/seat:2"}})
	r.must(err)
	r.restart()
	time.Sleep(50 * time.Millisecond)
	r.steady(fresh.ID, ctrmodel.Running)
}

func TestWhatToDoAboutADescriptor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "seat.json", seat1)
	d, _, err := readDescriptor(filepath.Join(dir, "seat.json"))
	if err != nil {
		t.Fatal(err)
	}
	as := func(change func(*ctrmodel.Container)) *ctrmodel.Container {
		c := d.container.Clone()
		c.Defaults(newID)
		change(c)
		return c
	}
	same := as(func(*ctrmodel.Container) {})
	stopped := as(func(c *ctrmodel.Container) { c.ManuallyStopped = true })
	limited := as(func(c *ctrmodel.Container) { c.HostConfig.Resources.Memory = "64M" })
	other := as(func(c *ctrmodel.Container) { c.Image.Name = "example.org/seat:2" })
	before, made, done := progress{Sum: "before"}, progress{Sum: d.sum, Start: true}, progress{Sum: d.sum}
	for i, test := range []struct {
		applied     progress
		current     *ctrmodel.Container
		want, again deployment
	}{
		{progress{}, nil, create, create},
		{progress{}, same, ensure, ensure},
		{before, nil, create, create},
		{before, same, ensure, ensure},
		{before, stopped, nothing, ensure},
		{before, limited, update, update},
		{before, other, replace, replace},
		{made, nil, nothing, create},
		{made, same, ensure, ensure},
		{made, stopped, nothing, ensure},
		{made, limited, ensure, update},
		{made, other, ensure, replace},
		{done, nil, nothing, create},
		{done, same, nothing, ensure},
		{done, other, nothing, replace},
	} {
		if got, again := deploymentFor(d, test.applied, test.current, false), deploymentFor(d, test.applied, test.current, true); got != test.want || again != test.again {
			t.Errorf("%d: %v, and %v if the user asks, want %v and %v", i, got, again, test.want, test.again)
		}
	}
}

// An agent that is killed during a deployment leaves nothing that the next one does not bring to an end.
func TestAgentKilledAtEachStepOfADeployment(t *testing.T) {
	t.Parallel()
	for n := 1; ; n++ {
		r, dir := newRig(t), t.TempDir()
		r.stop()
		write(t, dir, "seat.json", seat1)
		r.cfg.Deployment = Deployment{Dirs: []string{dir}, Period: 5 * time.Millisecond}
		killed := r.killed(n, true, true, func(e *Engine) error {
			for {
				if c, err := e.ByName(t.Context(), "seat"); err == nil && c.State.Running && e.applied("seat") != (progress{}) && !e.applied("seat").Start {
					return nil
				}
				time.Sleep(time.Millisecond)
			}
		})
		r.start()
		r.awaitName("seat", "running", isRunning)
		r.stop()
		if !killed {
			if n < 5 {
				t.Errorf("a deployment has only %d steps", n)
			}
			return
		}
	}
}

func TestFullDiskUsesNoDescriptorUp(t *testing.T) {
	t.Parallel()
	r, dir := deployRig(t, map[string]string{"seat.json": seat1})
	old := r.awaitName("seat", "running", isRunning)
	var free atomic.Bool
	r.fake.mu.Lock()
	r.fake.launch = func(c *ctrmodel.Container) error {
		if c.Image.Name == "example.org/seat:2" && !free.Load() {
			return ctrmodel.Errorf(ctrmodel.ResourceExhausted, "no space left on device")
		}
		return nil
	}
	r.fake.mu.Unlock()
	write(t, dir, "seat.json", `{"container_name": "seat", "image": {"name": "example.org/seat:2"}}`)
	r.await(old.ID, "back", func(c *ctrmodel.Container) bool { return c.State.Running && r.fake.launched(old.ID) > 1 })
	free.Store(true)
	r.awaitName("seat", "replaced", func(c *ctrmodel.Container) bool { return c.Image.Name == "example.org/seat:2" && c.State.Running })
}

// One that is being removed is not what the descriptor describes.
func TestContainerIsDeployedAfterTheEndOfAnOldOne(t *testing.T) {
	t.Parallel()
	r, dir := deployRig(t, nil)
	old := r.running("seat", func(c *ctrmodel.Container) { c.Image.Name = "example.org/seat:1" })
	var free atomic.Bool
	r.fake.mu.Lock()
	r.fake.discard = func(string) error {
		if !free.Load() {
			return errors.New("still mounted")
		}
		return nil
	}
	r.fake.mu.Unlock()
	if err := r.Remove(t.Context(), old, true, force); err == nil {
		t.Fatal("removed")
	}
	write(t, dir, "seat.json", seat1)
	time.Sleep(50 * time.Millisecond)
	free.Store(true)
	r.awaitName("seat", "another one", func(c *ctrmodel.Container) bool { return c.ID != old && c.State.Running })
}

func TestDeployTellsWhichFilesItCannotUse(t *testing.T) {
	t.Parallel()
	r, dir := deployRig(t, map[string]string{"seat.json": seat1, "twin.json": seat1, "broken.json": `{"container_name": `})
	r.must(r.Remove(t.Context(), r.awaitName("seat", "running", isRunning).ID, true, force))
	err := r.Deploy(t.Context())
	r.wantKind(err, ctrmodel.InvalidArgument)
	for _, name := range []string{"broken.json", "twin.json"} {
		if !strings.Contains(err.Error(), filepath.Join(dir, name)) {
			t.Errorf("nothing about %s: %v", name, err)
		}
	}
	r.awaitName("seat", "running", isRunning)
}

func TestDirectoryOfDescriptorsMayBeALink(t *testing.T) {
	t.Parallel()
	var said output.Buffer
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Join(dir, "later"), link); err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	r.stop()
	r.cfg.Log = slog.New(slog.NewTextHandler(&said, nil))
	r.cfg.Deployment = Deployment{Dirs: []string{link, filepath.Join(dir, "nowhere")}, Period: 2 * time.Millisecond}
	r.start()
	said.Wait(t, "cannot look for descriptors")
	for range 3 { // more looks
		r.wantKind(r.Deploy(t.Context()), ctrmodel.NotFound)
	}
	write(t, filepath.Join(dir, "later"), "seat.json", seat1)
	r.awaitName("seat", "running", isRunning)
	r.stop()
	if n := strings.Count(said.String(), "cannot look for descriptors"); n != 1 {
		t.Errorf("said %d times that the link leads nowhere:\n%s", n, said.String())
	}
}

func TestContainerWithoutItsDescriptor(t *testing.T) {
	t.Parallel()
	for _, prune := range []bool{false, true} {
		r, dir := deployRig(t, map[string]string{"seat.json": seat1, "other.json": `{"container_name": "other", "image": {"name": "x"}}`},
			func(c *Config) { c.Deployment.Prune = prune })
		id := r.awaitName("seat", "running", isRunning).ID
		r.awaitName("other", "running", isRunning)
		own := r.running("own")
		write(t, dir, "seat.json", `{"container_name`) // half a file is not none
		time.Sleep(50 * time.Millisecond)
		r.steady(id, ctrmodel.Running)
		r.must(os.Remove(filepath.Join(dir, "seat.json")))
		if prune {
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
				if _, err := r.Get(t.Context(), id); err != nil {
					break
				}
				if time.Now().After(end) {
					t.Fatal("not removed")
				}
			}
			os.RemoveAll(dir)
		} else {
			r.steady(id, ctrmodel.Running)
		}
		r.steady(own, ctrmodel.Running)
		r.awaitName("other", "running", isRunning)
	}
}

// What a directory that is away has described is neither removed nor deployed once more when it is back.
func TestDirectoryOfDescriptorsIsAway(t *testing.T) {
	t.Parallel()
	for _, prune := range []bool{false, true} {
		for how, away := range map[string]func(r *rig, dir string){
			"not configured": func(r *rig, dir string) {
				r.stop()
				r.cfg.Deployment.Dirs = r.cfg.Deployment.Dirs[:1]
				r.start()
			},
			"not mounted yet": func(r *rig, dir string) {
				r.stop()
				r.must(errors.Join(os.Rename(dir, dir+".away"), os.Mkdir(dir, 0o755)))
				r.start()
			},
			"not mounted any more": func(r *rig, dir string) {
				r.must(errors.Join(os.Rename(dir, dir+".away"), os.Mkdir(dir, 0o755)))
			},
			"not there": func(r *rig, dir string) { r.must(os.Rename(dir, dir+".away")) },
		} {
			dir := filepath.Join(t.TempDir(), "manifests")
			write(t, dir, "below/seat.json", seat1)
			r, _ := lookRig(t, map[string]string{"other.json": `{"container_name": "other", "image": {"name": "x"}}`},
				func(c *Config) { c.Deployment.Prune = prune })
			r.stop()
			dirs := append(r.cfg.Deployment.Dirs, dir)
			r.cfg.Deployment.Dirs = dirs
			r.start()
			old := r.awaitDeployed("seat")
			fresh, err := r.Replace(t.Context(), old.ID, &ctrmodel.Container{Name: "seat", Image: ctrmodel.Image{Name: "example.org/seat:2"}})
			r.must(err)
			away(r, dir)
			same := func(when string) {
				t.Helper()
				r.look()
				r.look()
				if c, err := r.ByName(t.Context(), "seat"); err != nil || c.ID != fresh.ID {
					t.Errorf("%s, prune %v, %s: %v, %+v", how, prune, when, err, c)
				}
			}
			same("away")
			r.stop()
			if _, err := os.Stat(dir + ".away"); err == nil {
				os.Remove(dir)
				r.must(os.Rename(dir+".away", dir))
			}
			r.cfg.Deployment.Dirs = dirs
			r.start()
			same("back")
			r.stop()
		}
	}
}

// Nor does a twin take the place of what it has described, unless there is no doubt that this is meant.
func TestDirectoryOfADescriptorWithATwinIsAway(t *testing.T) {
	t.Parallel()
	const other = `{"container_name": "other", "image": {"name": "x"}}`
	type setup struct {
		*rig
		first, second string
	}
	away := func(s setup) { s.must(os.Rename(s.first, s.first+".away")) }
	back := func(s setup) {
		os.Remove(s.first)
		s.must(os.Rename(s.first+".away", s.first))
	}
	for how, test := range map[string]struct {
		do   func(s setup)
		twin bool // the other file counts in the end
	}{
		"not there": {func(s setup) { away(s) }, false},
		"not there at the start": {func(s setup) {
			away(s)
			s.restartLook(s.second)
		}, false},
		"not mounted at the start": {func(s setup) {
			away(s)
			s.must(os.Mkdir(s.first, 0o755))
			s.restartLook(s.second)
		}, false},
		"back": {func(s setup) {
			away(s)
			s.look()
			s.look()
			back(s)
		}, false},
		"not there between two looks that miss it": {func(s setup) {
			write(s.t, s.first, "other.json", other)
			s.must(os.Rename(filepath.Join(s.first, "seat.json"), filepath.Join(s.first, "seat.json~")))
			s.look()
			away(s)
			s.look()
			back(s)
			s.look()
			s.must(os.Rename(filepath.Join(s.first, "seat.json~"), filepath.Join(s.first, "seat.json")))
		}, false},
		"not configured": {func(s setup) {
			s.cfg.Deployment.Dirs = []string{s.second}
			s.restartLook(s.second)
		}, true},
		"after the other": {func(s setup) {
			away(s)
			s.cfg.Deployment.Dirs = []string{s.second, s.first}
			s.restartLook(s.second)
		}, true},
		"not there when all is deployed again": {func(s setup) {
			away(s)
			s.must(s.Deploy(s.t.Context()))
		}, true},
	} {
		r, second := lookRig(t, nil)
		s := setup{r, filepath.Join(t.TempDir(), "first"), second}
		write(t, s.first, "seat.json", seat1)
		r.stop()
		r.cfg.Deployment.Dirs = []string{s.first, s.second}
		r.start()
		id := r.awaitDeployed("seat").ID
		write(t, s.second, "seat.json", `{"container_name": "seat", "image": {"name": "example.org/seat:2"}}`)
		r.look()
		test.do(s)
		for range 3 {
			r.look()
		}
		if test.twin {
			r.awaitName("seat", "replaced when its file is "+how, func(c *ctrmodel.Container) bool { return c.Image.Name == "example.org/seat:2" })
		} else if c, err := r.ByName(t.Context(), "seat"); err != nil || c.ID != id {
			t.Errorf("%s: %v, %+v", how, err, c)
		}
		r.stop()
	}
}

// A directory that is empty at the start may not be mounted; what is in another one as it has been here has been moved.
func TestDescriptorIsMovedWhileTheAgentIsAway(t *testing.T) {
	t.Parallel()
	r, second := lookRig(t, nil)
	first := t.TempDir()
	write(t, first, "seat.json", seat1)
	r.stop()
	r.cfg.Deployment.Dirs = []string{first, second}
	r.start()
	fresh, err := r.Replace(t.Context(), r.awaitDeployed("seat").ID, &ctrmodel.Container{Name: "seat", Image: ctrmodel.Image{Name: "example.org/seat:2"}})
	r.must(err)
	file := filepath.Join(second, "seat.json")
	r.must(os.Rename(filepath.Join(first, "seat.json"), file))
	r.restartLook(second)
	r.look()
	r.look()
	r.eventually("found where it is now", func() bool { return r.applied("seat").File == file })
	r.steady(fresh.ID, ctrmodel.Running)
	write(t, second, "seat.json", `{"container_name": "seat", "image": {"name": "example.org/seat:3"}}`)
	r.look()
	if c, err := r.ByName(t.Context(), "seat"); err != nil || c.Image.Name != "example.org/seat:3" {
		t.Errorf("after it has changed there: %v, %+v", err, c)
	}
}

// awaitDeployed waits for all that is done about a descriptor.
func (r *rig) awaitDeployed(name string) *ctrmodel.Container {
	r.t.Helper()
	return r.awaitName(name, "deployed", func(c *ctrmodel.Container) bool {
		p := r.applied(name)
		return c.State.Running && p != (progress{}) && !p.Start
	})
}

// look looks at the files and does what is to be done about them.
func (r *rig) look() {
	var all sync.WaitGroup
	r.deployNew(r.t.Context(), &all)
	all.Wait()
}

// restartLook restarts the engine, and waits until it has looked at the files.
func (r *rig) restartLook(dir string) {
	r.t.Helper()
	mark := newID()
	write(r.t, dir, mark+".json", `{"image": {"name": "x"}}`)
	r.restart()
	r.awaitDeployed(mark)
}

// lookRig is a deployRig that looks at the files when it starts, and when it is told to.
func lookRig(t *testing.T, files map[string]string, change ...func(*Config)) (*rig, string) {
	return deployRig(t, files, append(change, func(c *Config) { c.Deployment.Period = time.Hour })...)
}

// Editors put another file in the place of the old one, or write the old one anew.
func TestDescriptorIsEdited(t *testing.T) {
	t.Parallel()
	for _, prune := range []bool{false, true} {
		r, dir := lookRig(t, map[string]string{"seat.json": seat1}, func(c *Config) { c.Deployment.Prune = prune })
		file := filepath.Join(dir, "seat.json")
		fresh, err := r.Replace(t.Context(), r.awaitDeployed("seat").ID, &ctrmodel.Container{Name: "seat", Image: ctrmodel.Image{Name: "example.org/seat:2"}})
		r.must(err)
		away := func() { r.must(os.Rename(file, file+"~")) }
		for i, edit := range []func(){
			func() { away(); r.look(); write(t, dir, "seat.json", seat1) },
			func() { write(t, dir, "seat.json", seat1[:9]); r.look(); r.look(); write(t, dir, "seat.json", seat1) },
			func() {
				away()
				r.look()
				write(t, dir, "seat.json", seat1[:9])
				r.look()
				write(t, dir, "seat.json", seat1)
			},
			func() {
				away()
				r.restartLook(dir)
				write(t, dir, "seat.json", seat1)
			},
			func() { r.must(os.Rename(file, filepath.Join(dir, "chair.json"))) },
		} {
			edit()
			for range 3 {
				r.look()
				if c, err := r.ByName(t.Context(), "seat"); err != nil || c.ID != fresh.ID {
					t.Fatalf("edit %d, prune %v: %v, %+v", i, prune, err, c)
				}
			}
		}
		r.must(os.Remove(filepath.Join(dir, "chair.json")))
		r.look()
		if _, err := r.ByName(t.Context(), "seat"); err != nil || r.applied("seat") == (progress{}) {
			t.Errorf("prune %v, missed once: %v, %+v", prune, err, r.applied("seat"))
		}
		r.look()
		if _, err := r.ByName(t.Context(), "seat"); prune == (err == nil) || r.applied("seat") != (progress{}) {
			t.Errorf("prune %v, gone: %v, %+v", prune, err, r.applied("seat"))
		}
	}
}

// What is there cannot be gone, even if nobody knows what it is.
func TestDescriptorIsALinkToWhatIsAway(t *testing.T) {
	t.Parallel()
	for _, prune := range []bool{false, true} {
		r, dir := lookRig(t, nil, func(c *Config) { c.Deployment.Prune = prune })
		target, link := filepath.Join(t.TempDir(), "target"), filepath.Join(dir, "seat.json")
		write(t, target, "seat.json", seat1)
		r.must(os.Symlink(filepath.Join(target, "seat.json"), link))
		r.look()
		fresh, err := r.Replace(t.Context(), r.awaitDeployed("seat").ID, &ctrmodel.Container{Name: "seat", Image: ctrmodel.Image{Name: "example.org/seat:2"}})
		r.must(err)
		for i, step := range []func(){
			func() { r.must(os.Rename(target, target+".away")) },
			func() { r.restartLook(dir) },
			func() { r.must(os.Rename(target+".away", target)) },
		} {
			step()
			for range puzzledLooks + 2 {
				r.look()
				if c, err := r.ByName(t.Context(), "seat"); err != nil || c.ID != fresh.ID || r.applied("seat") == (progress{}) {
					t.Fatalf("step %d, prune %v: %v, %+v", i, prune, err, c)
				}
			}
		}
		r.must(os.Rename(target, target+".away"))
		r.look()
		r.must(os.Remove(link))
		r.look()
		r.look()
		if _, err := r.ByName(t.Context(), "seat"); prune == (err == nil) || r.applied("seat") != (progress{}) {
			t.Errorf("prune %v, gone: %v, %+v", prune, err, r.applied("seat"))
		}
	}
}

// Nothing is known to be gone from a directory as long as one below cannot be read.
func TestPartOfADirectoryOfDescriptorsCannotBeRead(t *testing.T) {
	t.Parallel()
	r, dir := lookRig(t, map[string]string{"seat.json": seat1, "other.json": `{"container_name": "other", "image": {"name": "x"}}`},
		func(c *Config) { c.Deployment.Prune = true })
	r.awaitDeployed("other")
	id := r.awaitDeployed("seat").ID
	below, err := os.OpenRoot(dir)
	r.must(err)
	for range 20 { // until the path is too long, even for root
		name := strings.Repeat("x", 250)
		r.must(below.Mkdir(name, 0o755))
		next, err := below.OpenRoot(name)
		r.must(errors.Join(err, below.Close()))
		below = next
	}
	r.must(errors.Join(below.Close(), os.Remove(filepath.Join(dir, "seat.json"))))
	for range 3 {
		r.look()
	}
	r.steady(id, ctrmodel.Running)
	r.must(os.RemoveAll(filepath.Join(dir, strings.Repeat("x", 250))))
	r.look()
	r.look()
	if _, err := r.Get(t.Context(), id); err == nil {
		t.Error("not removed")
	}
}

// A file that cannot be used may be one that has been renamed, and is just being written. Nobody waits for that for ever.
func TestDescriptorIsRenamedAndEdited(t *testing.T) {
	t.Parallel()
	for _, prune := range []bool{false, true} {
		var said output.Buffer
		r, dir := lookRig(t, map[string]string{"seat.json": seat1}, func(c *Config) {
			c.Deployment.Prune = prune
			c.Log = slog.New(slog.NewTextHandler(&said, nil))
		})
		fresh, err := r.Replace(t.Context(), r.awaitDeployed("seat").ID, &ctrmodel.Container{Name: "seat", Image: ctrmodel.Image{Name: "example.org/seat:2"}})
		r.must(err)
		same := func(looks int) {
			t.Helper()
			for n := range looks {
				r.look()
				if c, err := r.ByName(t.Context(), "seat"); err != nil || c.ID != fresh.ID || r.applied("seat") == (progress{}) {
					t.Fatalf("prune %v, look %d: %v, %+v", prune, n+1, err, c)
				}
			}
		}
		r.must(os.Rename(filepath.Join(dir, "seat.json"), filepath.Join(dir, "chair.json")))
		write(t, dir, "chair.json", seat1[:9])
		same(puzzledLooks)
		write(t, dir, "chair.json", seat1)
		same(3)
		r.must(os.Rename(filepath.Join(dir, "chair.json"), filepath.Join(dir, "stool.json")))
		write(t, dir, "stool.json", seat1[:9])
		same(puzzledLooks)
		r.look()
		if _, err := r.ByName(t.Context(), "seat"); prune == (err == nil) || r.applied("seat") != (progress{}) {
			t.Errorf("prune %v, gone: %v, %+v", prune, err, r.applied("seat"))
		}
		if n := strings.Count(said.String(), "not taking the descriptor"); n != 2 {
			t.Errorf("said %d times that a file may be another one, want 2:\n%s", n, said.String())
		}
	}
}

// One that stays that way, or is known to have described another container, holds up nobody.
func TestDescriptorIsGoneAndAnotherOneIsBroken(t *testing.T) {
	t.Parallel()
	const other = `{"container_name": "other", "image": {"name": "x"}}`
	for how, breaks := range map[string]func(r *rig, dir string){
		"for good": func(r *rig, dir string) {
			write(r.t, dir, "broken.json", "{")
			for range puzzledLooks {
				r.look()
			}
		},
		"as it is edited": func(r *rig, dir string) { write(r.t, dir, "other.json", other[:9]) },
	} {
		r, dir := lookRig(t, map[string]string{"seat.json": seat1, "other.json": other})
		r.awaitDeployed("other")
		r.must(r.Remove(t.Context(), r.awaitDeployed("seat").ID, true, force))
		breaks(r, dir)
		r.must(os.Remove(filepath.Join(dir, "seat.json")))
		r.look()
		r.look()
		write(t, dir, "seat.json", seat1)
		r.look()
		if c, err := r.ByName(t.Context(), "seat"); err != nil || !c.State.Running {
			t.Errorf("another file is broken %s, put back: %v, %+v", how, err, c)
		}
		if _, err := r.ByName(t.Context(), "other"); err != nil {
			t.Error(err)
		}
		r.stop()
	}
}

// The name belongs to the first file, even if nobody can read that just now.
func TestDescriptorWithATwinIsEdited(t *testing.T) {
	t.Parallel()
	const first = `{"container_name": "seat", "image": {"name": "example.org/seat:2"}}`
	r, dir := lookRig(t, map[string]string{"a.json": first, "b.json": seat1})
	id := r.awaitDeployed("seat").ID
	file := filepath.Join(dir, "a.json")
	for i, edit := range []func(){
		func() { write(t, dir, "a.json", first[:9]) },
		func() { r.restartLook(dir) },
		func() { write(t, dir, "a.json", first) },
		func() { r.must(os.Rename(file, file+"~")); r.look(); write(t, dir, "a.json", first) },
		func() { r.must(os.Rename(file, file+"~")); r.restartLook(dir); write(t, dir, "a.json", first) },
	} {
		edit()
		for range 3 {
			r.look()
			if c, err := r.ByName(t.Context(), "seat"); err != nil || c.ID != id {
				t.Fatalf("edit %d: %v, %+v", i, err, c)
			}
		}
	}
	r.must(os.Remove(file))
	r.look()
	r.look()
	if c := r.awaitDeployed("seat"); c.Image.Name != "example.org/seat:1" {
		t.Errorf("after the first file is gone: %+v", c)
	}
	// Who asks for it has finished editing.
	r.must(os.Rename(filepath.Join(dir, "b.json"), filepath.Join(dir, "c.json")))
	r.must(r.Deploy(t.Context()))
	write(t, dir, "a.json", first)
	r.must(os.Remove(filepath.Join(dir, "c.json")))
	r.must(r.Deploy(t.Context()))
	if c := r.awaitDeployed("seat"); c.Image.Name != "example.org/seat:2" {
		t.Errorf("deployed again: %+v", c)
	}
}

// Even by who looks at the files only at the start.
func TestDescriptorIsGoneAtTheStart(t *testing.T) {
	t.Parallel()
	r, dir := deployRig(t, map[string]string{"seat.json": seat1, "other.json": `{"container_name": "other", "image": {"name": "x"}}`},
		func(c *Config) { c.Deployment.Prune = true })
	id := r.awaitDeployed("seat").ID
	other := r.awaitDeployed("other").ID
	r.stop()
	r.cfg.Deployment.Period = 0
	r.must(os.Remove(filepath.Join(dir, "seat.json")))
	write(t, dir, "broken.json", "{")
	r.start()
	r.eventually("removed", func() bool { _, err := r.Get(t.Context(), id); return err != nil })
	r.steady(other, ctrmodel.Running)
}

func TestLastDescriptorOfADirectoryGoes(t *testing.T) {
	t.Parallel()
	r, dir := deployRig(t, map[string]string{"seat.json": seat1}, func(c *Config) { c.Deployment.Prune = true })
	id := r.awaitDeployed("seat").ID
	r.must(os.Remove(filepath.Join(dir, "seat.json")))
	r.eventually("removed", func() bool { _, err := r.Get(t.Context(), id); return err != nil })
}

// An agent of before has not written down where the descriptors were.
func TestDescriptorsThatHaveBeenAppliedBefore(t *testing.T) {
	t.Parallel()
	r, dir := deployRig(t, map[string]string{"seat.json": seat1, "gone.json": `{"container_name": "gone", "image": {"name": "x"}}`},
		func(c *Config) { c.Deployment.Prune = true })
	seat, gone := r.awaitDeployed("seat").ID, r.awaitDeployed("gone").ID
	r.stop()
	old := fmt.Sprintf(`{"applied": {"seat": {"sum": %q}, "gone": {"sum": %q}}}`, r.applied("seat").Sum, r.applied("gone").Sum)
	r.must(os.WriteFile(filepath.Join(r.cfg.StateDir, "deployed.json"), []byte(old), 0o600))
	r.must(os.Remove(filepath.Join(dir, "gone.json")))
	r.start()
	r.eventually("known where it is", func() bool { return r.applied("seat").File == filepath.Join(dir, "seat.json") })
	write(t, dir, "other.json", `{"container_name": "other", "image": {"name": "x"}}`)
	r.awaitDeployed("other")
	r.steady(gone, ctrmodel.Running) // nobody knows why
	r.steady(seat, ctrmodel.Running)
	if n := r.fake.launched(seat); n != 1 {
		t.Errorf("launched %d times", n)
	}
}

func TestContainerThatIsUpdatedWithoutItsDescriptor(t *testing.T) {
	t.Parallel()
	for _, commit := range []bool{false, true} {
		r, dir := deployRig(t, map[string]string{"seat.json": seat1}, func(c *Config) { c.Deployment.Prune = true })
		ctx := t.Context()
		old := r.awaitDeployed("seat").ID
		_, err := r.Succeed(ctx, old, "update", next())
		r.must(err)
		r.must(os.Remove(filepath.Join(dir, "seat.json")))
		both := func() {
			t.Helper()
			time.Sleep(50 * time.Millisecond)
			for _, id := range []string{old, "next"} {
				if _, err := r.Get(ctx, id); err != nil {
					t.Fatalf("before the end: %v", err)
				}
			}
		}
		both()
		r.must(r.Switch(ctx, "next"))
		both()
		if commit {
			r.must(r.Commit(ctx, "next"))
		} else {
			r.must(r.Abandon(ctx, "next"))
		}
		r.eventually("removed when the update is over", func() bool { return len(r.list()) == 0 })
	}
}

// What fails as containerd goes away has not been tried, even if it fails for another reason before it can be tried again.
func TestReplacementIsTriedAgainAfterContainerdWasAway(t *testing.T) {
	t.Parallel()
	r, dir := deployRig(t, map[string]string{"seat.json": seat1})
	old := r.awaitName("seat", "running", isRunning)
	r.fake.mu.Lock()
	r.fake.launch = func(c *ctrmodel.Container) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		switch {
		case c.ID == old.ID || r.fake.boxes[old.ID].launched == 2: // it has come back
			return nil
		case len(r.orphans) > 0:
			return errors.New("no such device")
		}
		return errDown
	}
	r.fake.mu.Unlock()
	write(t, dir, "seat.json", `{"container_name": "seat", "image": {"name": "example.org/seat:2"}}`)
	c := r.awaitName("seat", "replaced", func(c *ctrmodel.Container) bool { return c.Image.Name == "example.org/seat:2" && c.State.Running })
	r.await(c.ID, "alone", func(*ctrmodel.Container) bool { return len(r.list()) == 1 })
}

// An update and a descriptor that changes do not get into each other's way: the one that comes last counts.
func TestDescriptorWaitsForTheEndOfAnUpdate(t *testing.T) {
	t.Parallel()
	r, dir := deployRig(t, map[string]string{"seat.json": seat1})
	ctx := t.Context()
	old := r.awaitName("seat", "running", isRunning)
	_, err := r.Succeed(ctx, old.ID, "update", next())
	r.must(err)
	write(t, dir, "seat.json", `{"container_name": "seat", "image": {"name": "example.org/seat:3"}, "host_config": {"resources": {"memory": "64M"}}}`)
	same := func(id string) {
		t.Helper()
		time.Sleep(50 * time.Millisecond)
		if c := r.awaitName("seat", "running", isRunning); c.ID != id || c.HostConfig.Resources.Memory != "" || len(r.list()) != 2 {
			t.Fatalf("touched: %+v", c)
		}
	}
	same(old.ID)
	r.must(r.Switch(ctx, "next"))
	same("next")
	r.wantKind(r.Deploy(ctx), ctrmodel.FailedPrecondition)
	r.must(r.Commit(ctx, "next"))
	c := r.awaitName("seat", "as described", func(c *ctrmodel.Container) bool { return c.Image.Name == "example.org/seat:3" && c.State.Running })
	r.await(c.ID, "alone", func(*ctrmodel.Container) bool { return len(r.list()) == 1 })
	r.must(r.Park(ctx, c.ID, "update"))
	write(t, dir, "seat.json", seat1)
	r.steady(c.ID, ctrmodel.Stopped)
	r.must(r.Unpark(ctx, c.ID))
	r.awaitName("seat", "as described", func(c *ctrmodel.Container) bool { return c.Image.Name == "example.org/seat:1" && c.State.Running })
}

func TestContainersOfTheOriginalAreTakenOver(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	for id, text := range map[string]string{
		"runs":    `"container_name": "a", "state": {"status": 2, "running": true, "pid": 77}, "started_successfully_before": true`,
		"ended":   `"container_name": "b", "state": {"status": 3, "exit_code": 137}, "started_successfully_before": true`,
		"stopped": `"container_name": "c", "state": {"status": 3}, "started_successfully_before": true, "manually_stopped": true`,
		"failed":  `"container_name": "d", "state": {"status": 5, "exit_code": 1}, "started_successfully_before": true, "host_config": {"network_mode": "bridge", "restart_policy": {"type": "no"}}`,
		"new":     `"container_name": "e", "state": {"status": 1}`,
		"twin":    `"container_name": "a", "state": {"status": 1}`,
	} {
		write(t, home, "containers/"+id+"/config.json", fmt.Sprintf(`{"container_id": %q, "image": {"name": "example.org/x:1"}, %s}`, id, text))
	}
	write(t, home, "containers/broken/config.json", `{"container_id": `)
	write(t, home, "containers/onlylogs/json.log", "")
	f := newFake()
	for _, id := range []string{"runs", "ended", "stopped", "failed", "new", "twin"} {
		f.boxes[id] = &box{snapshot: true}
	}
	r := newRig(t, func(c *Config) { c.Original = home })
	r.stop()
	r.must(os.RemoveAll(filepath.Join(r.cfg.StateDir, "containers")))
	r.fake = f
	r.start()
	for id, want := range map[string]ctrmodel.Status{"runs": ctrmodel.Running, "ended": ctrmodel.Running, "stopped": ctrmodel.Stopped,
		"failed": ctrmodel.Exited, "new": ctrmodel.Created, "twin": ctrmodel.Created} {
		r.awaitStatus(id, want)
	}
	if c := r.get("twin"); c.Name == r.get("runs").Name {
		t.Errorf("two containers have the name %s", c.Name)
	}
	// Only once.
	for _, a := range r.list() {
		r.must(r.Remove(t.Context(), a.id, true, force))
	}
	r.restart()
	if list, _ := r.List(t.Context()); len(list) > 0 {
		t.Errorf("taken over again: %+v", list)
	}
}

func TestUnreadableRecordHarmsNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	good, bad := r.running("good"), r.make("bad")
	r.stop()
	dir := filepath.Join(r.cfg.StateDir, "containers")
	r.must(os.WriteFile(filepath.Join(dir, bad, recordName), []byte(`{"container_id": "other"}`), 0o600))
	r.must(os.Mkdir(filepath.Join(dir, "empty"), 0o700))
	r.fake.used = nil
	r.start()
	r.awaitStatus(good, ctrmodel.Running)
	// It may run: what it has stays, and so does what it may be made of.
	r.fake.mu.Lock()
	kept := r.fake.kept
	r.fake.mu.Unlock()
	if !slices.Contains(kept, bad) || !slices.Contains(kept, good) {
		t.Errorf("only %v are kept", kept)
	}
	_, err := r.Create(t.Context(), &ctrmodel.Container{ID: bad, Image: ctrmodel.Image{Name: "other"}})
	r.wantKind(err, ctrmodel.AlreadyExists)
	r.must(r.Remove(t.Context(), r.make("short"), false, force)) // after which unused images are removed
	time.Sleep(50 * time.Millisecond)
	r.fake.mu.Lock()
	used := r.fake.used
	r.fake.mu.Unlock()
	if used != nil {
		t.Errorf("images are removed, only %v in use", used)
	}
	if _, err := r.Get(t.Context(), bad); err == nil {
		t.Error("there is a container with the record of another one")
	}
	if _, err := os.Stat(filepath.Join(dir, bad, recordName)); err != nil {
		t.Error("the evidence is gone")
	}
	if _, err := os.Stat(filepath.Join(dir, "empty")); err == nil {
		t.Error("what is left of a container that never came to be is still there")
	}
}

// An agent of before reads what this one writes.
func TestRecordIsTheOriginalsJSON(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a")
	data, err := os.ReadFile(filepath.Join(r.cfg.StateDir, "containers", id, "config.json"))
	r.must(err)
	var c struct {
		ID    string `json:"container_id"`
		State struct {
			Status int `json:"status"`
			PID    int `json:"pid"`
		} `json:"state"`
		Run bool `json:"desired_running"`
	}
	r.must(json.Unmarshal(data, &c))
	if c.ID != id || c.State.Status != 2 || c.State.PID != 4711 || !c.Run {
		t.Errorf("record %s", data)
	}
}

func TestArchivesAreImportedBeforeDescriptors(t *testing.T) {
	t.Parallel()
	archives := t.TempDir()
	write(t, archives, "seat.tar", "")
	write(t, archives, "radio.tar.gz", "")
	for _, name := range []string{"notes.txt", "half.tar~", "half.tar.part", "half.tar.gz.4Xw1"} {
		write(t, archives, name, "")
	}
	r, dir := newRig(t), t.TempDir()
	r.stop()
	r.cfg.Deployment = Deployment{Dirs: []string{dir}, Archives: []string{archives}, Period: 5 * time.Millisecond}
	var began, early atomic.Bool
	r.fake.prepare = func(context.Context, *ctrmodel.Container) error {
		began.Store(true)
		return nil
	}
	r.fake.unpack = func(string) error {
		time.Sleep(20 * time.Millisecond)
		if began.Load() {
			early.Store(true)
		}
		return nil
	}
	write(t, dir, "seat.json", seat1)
	r.start()
	imported := func() string {
		r.fake.mu.Lock()
		defer r.fake.mu.Unlock()
		slices.Sort(r.fake.imported)
		return strings.Join(r.fake.imported, " ")
	}
	r.awaitName("seat", "running", isRunning)
	if got := imported(); got != "radio.tar.gz seat.tar" || early.Load() {
		t.Errorf("imported %s; a container was made before that: %v", got, early.Load())
	}
	r.restart()
	write(t, dir, "other.json", `{"container_name": "other", "image": {"name": "x"}}`)
	r.awaitName("other", "running", isRunning)
	if got := imported(); got != "radio.tar.gz seat.tar" {
		t.Errorf("after a restart imported %s", got)
	}
	write(t, archives, "seat.tar", "another one")
	for end := time.Now().Add(5 * time.Second); imported() != "radio.tar.gz seat.tar seat.tar"; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after a change imported %s", imported())
		}
	}
}

// Even by who looks at the files only once.
func TestArchiveIsImportedOnceThatWorks(t *testing.T) {
	t.Parallel()
	for _, reason := range []error{
		fmt.Errorf("unpack: %w", syscall.ENOSPC), ctrmodel.Errorf(ctrmodel.ResourceExhausted, "not enough space"),
		ctrmodel.Errorf(ctrmodel.Unavailable, "no signature yet"),
	} {
		archives := t.TempDir()
		write(t, archives, "seat.tar", "")
		write(t, archives, "broken.tar", "")
		r := newRig(t)
		r.stop()
		r.cfg.Deployment = Deployment{Archives: []string{archives}}
		tries := map[string]int{}
		r.fake.unpack = func(archive string) error {
			name := filepath.Base(archive)
			if tries[name]++; name == "broken.tar" {
				return errors.New("no archive")
			}
			if tries[name] < 3 {
				return reason
			}
			return nil
		}
		r.start()
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			r.fake.mu.Lock()
			done, broken := len(r.fake.imported) == 1, tries["broken.tar"]
			r.fake.mu.Unlock()
			if done && broken == 1 {
				break
			}
			if time.Now().After(end) || broken > 1 {
				t.Fatalf("%v: tries %v", reason, tries)
			}
		}
		r.stop()
	}
}

func TestImagesInUseAreKept(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.make("a")
	list, err := r.Images(t.Context())
	if err != nil || !list[0].Used || list[1].Used {
		t.Errorf("images %+v, %v", list, err)
	}
	other := r.make("b", func(c *ctrmodel.Container) { c.Image.Name = "other" })
	r.must(r.Remove(t.Context(), other, false, force))
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		r.fake.mu.Lock()
		used := r.fake.used
		r.fake.mu.Unlock()
		if used != nil && used[busybox] && !used["other"] {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("collected with %v in use, of %s", used, id)
		}
	}
}
