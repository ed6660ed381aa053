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

// One message has to hold all containers.
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
