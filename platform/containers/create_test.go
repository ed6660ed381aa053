// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"sdvbox/platform/ctrmodel"
)

// What is left of a container whose record has been lost is not taken for a new one with its id.
func TestNewContainerIsNotMadeOfAnother(t *testing.T) {
	t.Parallel()
	const id = "fixed"
	for name, left := range map[string]func(r *rig){
		"process":           func(*rig) {},
		"paused process":    func(r *rig) { r.fake.boxes[id].task = TaskPaused },
		"ended process":     func(r *rig) { r.fake.exit(id, 0) },
		"unstarted process": func(r *rig) { r.fake.boxes[id].task = TaskUnstarted },
		"object":            func(r *rig) { r.fake.boxes[id].task = NoTask },
		"snapshot":          func(r *rig) { *r.fake.boxes[id] = box{snapshot: true} },
	} {
		r := newRig(t)
		r.running("seat", func(c *ctrmodel.Container) { c.ID = id })
		r.stop()
		r.must(os.RemoveAll(filepath.Join(r.cfg.StateDir, "containers")))
		left(r)
		before := r.fake.boxes[id]
		r.start()
		second := &ctrmodel.Container{ID: id, Name: "seat", Image: ctrmodel.Image{Name: "example.org/seat:2"}}
		_, err := r.Create(t.Context(), second)
		r.must(err)
		r.awaitStatus(id, ctrmodel.Created)
		r.must(r.Start(t.Context(), id))
		b := r.fake.boxes[id]
		digest, err := r.ImageDigest(id)
		r.must(err)
		if b == before || before.task != NoTask || b.launched != 1 || b.digest != digest {
			t.Errorf("%s: there is %+v, expected a new one of %s", name, *b, digest)
		}
		r.stop()
	}
}

// A creation that cannot clear the place fails, and goes on with that.
func TestPlaceThatCannotBeClearedAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fake.boxes["fixed"] = &box{snapshot: true, object: true, task: TaskRunning, end: &end{done: make(chan struct{})}}
	r.fake.release = func(string) error { return errors.New("device busy") }
	second := &ctrmodel.Container{ID: "fixed", Name: "seat", Image: ctrmodel.Image{Name: "example.org/seat:2"}}
	if _, err := r.Create(t.Context(), second); err == nil {
		t.Fatal("created")
	}
	r.fake.behave(func() { r.fake.release = nil })
	r.eventually("gone", func() bool { return len(r.list()) == 0 })
	if left := r.fake.left(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	r.make("seat", func(c *ctrmodel.Container) { c.ID = "fixed" })
}

// A client has to take a container in one message.
func TestLargeContainersAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx, id := t.Context(), r.make("small")
	large := func(size int) *ctrmodel.Container {
		return &ctrmodel.Container{Name: "large", Image: ctrmodel.Image{Name: busybox}, Config: ctrmodel.Config{Env: []string{"A=" + strings.Repeat("x", size)}}}
	}
	for name, order := range map[string]func(c *ctrmodel.Container) error{
		"create": func(c *ctrmodel.Container) error {
			_, err := r.Create(ctx, c)
			return err
		},
		"replace": func(c *ctrmodel.Container) error {
			_, err := r.Replace(ctx, id, c)
			return err
		},
		"rename": func(c *ctrmodel.Container) error { return r.Rename(ctx, id, strings.Repeat("x", len(c.Config.Env[0]))) },
		"update": func(c *ctrmodel.Container) error {
			memory := strings.Repeat("0", len(c.Config.Env[0])) + "64M"
			return r.Update(ctx, id, ctrmodel.UpdateOptions{Resources: &ctrmodel.Resources{Memory: memory}})
		},
	} {
		if err := order(large(maxDescriptor)); ctrmodel.KindOf(errors.Join(err)) != ctrmodel.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c := r.get(id); len(r.list()) != 1 || c.Name != "small" || c.HostConfig.Resources.Memory != "" {
		t.Errorf("%d containers, the name has %d bytes, the memory %d", len(r.list()), len(c.Name), len(c.HostConfig.Resources.Memory))
	}
	_, err := r.Create(ctx, large(maxDescriptor-10_000))
	r.must(err)
}

// One message has to hold all containers.
func TestContainersAreTooLargeTogether(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	large := func(name string) *ctrmodel.Container {
		env := "A=" + strings.Repeat("x", maxDescriptor-20_000)
		return &ctrmodel.Container{Name: name, Image: ctrmodel.Image{Name: busybox}, Config: ctrmodel.Config{Env: []string{env}}}
	}
	exhausted := func(what string, err error) {
		t.Helper()
		if ctrmodel.KindOf(errors.Join(err)) != ctrmodel.ResourceExhausted || !strings.Contains(err.Error(), strconv.Itoa(maxContainers)) {
			t.Errorf("%s: %v", what, err)
		}
	}
	id := r.make("small")
	for _, name := range []string{"a", "b", "c"} {
		_, err := r.Create(ctx, large(name))
		r.must(err)
	}
	refused := func() {
		t.Helper()
		_, err := r.Create(ctx, large("d"))
		exhausted("create", err)
		_, err = r.Replace(ctx, id, large("small"))
		exhausted("replace", err)
		memory := strings.Repeat("0", 100_000) + "64M"
		exhausted("update", r.Update(ctx, id, ctrmodel.UpdateOptions{Resources: &ctrmodel.Resources{Memory: memory}}))
		if c := r.get(id); c.HostConfig.Resources.Memory != "" || r.saved(id).HostConfig.Resources.Memory != "" {
			t.Error("updated")
		}
	}
	refused()
	r.must(r.Start(ctx, id))
	r.must(r.Rename(ctx, id, "tiny"))
	r.must(r.Rename(ctx, id, "small"))

	// An agent of before may have taken more.
	c := r.saved(id)
	r.stop()
	for _, name := range []string{"d", "e"} {
		c := c.clone()
		c.Container = *large(name)
		c.ID = name
		c.Defaults(newID)
		c.State.SetCreated()
		r.must(r.store.save(c))
	}
	r.start()
	r.must(r.Known(ctx))
	if n := len(r.list()); n != 6 {
		t.Errorf("%d containers", n)
	}
	refused()
	exhausted("rename", r.Rename(ctx, "d", "dd"))
	r.must(r.Rename(ctx, "d", "D"))
	never := ctrmodel.RestartPolicy{Type: ctrmodel.RestartNever}
	r.must(r.Update(ctx, id, ctrmodel.UpdateOptions{RestartPolicy: &never}))
	for _, id := range []string{"d", "e"} {
		r.must(r.Remove(ctx, id, true, force))
	}
	refused()
	a, err := r.ByName(ctx, "a")
	r.must(err)
	r.must(r.Remove(ctx, a.ID, true, force))
	_, err = r.Create(ctx, large("d"))
	r.must(err)
}

func TestRealNewContainerIsNotMadeOfAnother(t *testing.T) {
	t.Parallel()
	r, _ := newRealRig(t)
	named := func(c *ctrmodel.Container) { c.ID = "fixed" }
	r.running("old", named, cmd("/bin/sh", "-c", "trap 'echo bye; exit 0' TERM; touch /mine; while :; do sleep 0.05; done"))
	before := r.get("fixed").State.PID
	r.await("fixed", "writing", func(*ctrmodel.Container) bool {
		_, err := os.Stat(filepath.Join("/proc", strconv.FormatInt(before, 10), "root/mine"))
		return err == nil
	})
	r.stop()
	r.must(os.RemoveAll(filepath.Join(r.cfg.StateDir, "containers")))
	r.start()
	r.running("new", named, cmd("/bin/sh", "-c", "trap 'exit 0' TERM; echo /*; echo ready; while :; do sleep 0.05; done"))
	if syscall.Kill(int(before), 0) == nil {
		t.Error("the old process goes on")
	}
	var said strings.Builder
	r.await("fixed", "ready", func(*ctrmodel.Container) bool {
		said.Reset()
		r.must(r.Logs(t.Context(), "fixed", ctrmodel.LogOptions{Tail: -1}, func(line []byte) error {
			said.Write(line)
			return nil
		}))
		return strings.Contains(said.String(), "ready")
	})
	if s := said.String(); strings.Contains(s, "mine") || strings.Contains(s, "bye") {
		t.Errorf("the new one has what the old one has left:\n%s", s)
	}
	r.must(r.Remove(t.Context(), "fixed", true, force))
	r.clean()
}
