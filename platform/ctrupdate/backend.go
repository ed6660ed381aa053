// SPDX-License-Identifier: Apache-2.0

// Package ctrupdate brings the containers of a device to a desired state: it is the backend of the domain of containers, between
// the update protocol above it and the engine below it.
//
// New containers are made beside the old ones, take their places one by one, and have to prove themselves; until CLEANUP there
// is a way back. What an update is about (which container is replaced by which, what has been changed of one that runs) is kept
// as notes with the activity before it is done. The engine remembers what has become of it, so that every step can be entered
// again after a crash at any instant: it looks first at what is true already.
package ctrupdate

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"sdvbox/platform/containers"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/updateagent"
	"sdvbox/platform/updateproto"
)

// Engine keeps the containers.
type Engine interface {
	Known(ctx context.Context) error
	List(ctx context.Context) ([]*ctrmodel.Container, error)
	Get(ctx context.Context, id string) (*ctrmodel.Container, error)
	ByName(ctx context.Context, name string) (*ctrmodel.Container, error) // the one in charge
	Subscribe(ctx context.Context) <-chan ctrmodel.Event

	Pull(ctx context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error)

	Create(ctx context.Context, c *ctrmodel.Container) (*ctrmodel.Container, error)
	Ensure(ctx context.Context, id string) error
	Update(ctx context.Context, id string, o ctrmodel.UpdateOptions) error
	Remove(ctx context.Context, id string, force bool, o ctrmodel.StopOptions) error
	Stop(ctx context.Context, id string, o ctrmodel.StopOptions) error
	Exec(ctx context.Context, id string, o ctrmodel.ExecOptions, s ctrmodel.Streams) (int, error)

	Succeed(ctx context.Context, id, owner string, c *ctrmodel.Container) (*ctrmodel.Container, error)
	Switch(ctx context.Context, id string) error
	Commit(ctx context.Context, id string) error
	Abandon(ctx context.Context, id string) error
	Park(ctx context.Context, id, owner string) error
	Unpark(ctx context.Context, id string) error
	Parked(owner string) []string
	Successions(owner string) []containers.Succession
}

// Tags finds out what the names of images stand for.
type Tags interface {
	// Resolve asks the registry for the digest, and gets nothing.
	Resolve(ctx context.Context, name string) (digest string, err error)
	// Refresh asks the registry, and gets the image if it is another one now.
	Refresh(ctx context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error)
	// ImageDigest is of the image that a container was made of.
	ImageDigest(id string) (string, error)
}

// owner is the engine's name for who replaces and parks containers.
const owner = "update"

// Config is what a Backend works with.
type Config struct {
	Engine    Engine
	Domain    string        // such as containers
	Version   string        // of this agent, for the inventory
	System    []string      // names of containers that are left alone
	Scoped    bool          // leave containers alone that are not mentioned
	Verbose   bool          // report defaults, too
	Tags      Tags          // to notice names of images that stand for others now, or nil
	Health    time.Duration // that a new container has to run without being restarted
	Downloads int           // images to get at the same time
	Patience  time.Duration // how long containerd is waited for; 0: a minute
	Ask       time.Duration // how long registries may take to say what names stand for; 0: 15 seconds
	Pause     time.Duration // before a start that has failed is tried once more; 0: a second
	Often     time.Duration // between two words of progress; 0: a second
	Log       *slog.Logger
}

// Backend implements updateagent.Backend for containers.
type Backend struct {
	Config
}

var _ updateagent.Backend = (*Backend)(nil)

// Check says what is wrong with a desired state, whatever containers there are.
func (b *Backend) Check(ds updateproto.DesiredState) error {
	d, err := read(ds)
	if err == nil {
		err = d.clash()
	}
	return err
}

// notes are kept with the activity.
type notes struct {
	Actions []*action `json:"actions"`
	Cause   string    `json:"cause,omitempty"` // of the first failure
}

// work is one step of an update.
type work struct {
	*Backend
	job   *updateagent.Job
	all   []*action // of the activity
	mine  []*action // those that the step is about
	wants map[string]*wanted
	cause string // why the first action has failed that has

	mu   sync.Mutex
	told time.Time // when somebody has heard of progress
}

// work finds out what a step is about.
func (b *Backend) work(job *updateagent.Job) *work {
	w := &work{Backend: b, job: job, wants: map[string]*wanted{}, told: time.Now()}
	var n notes
	job.Load(&n)
	w.all, w.cause = n.Actions, n.Cause
	for _, a := range w.all {
		if len(job.Baselines) == 0 || slices.ContainsFunc(job.Baselines, func(t updateagent.Baseline) bool { return t.Title == a.Baseline }) {
			w.mine = append(w.mine, a)
		}
	}
	if d, err := read(job.Request); err == nil { // which Identify has seen to
		for _, c := range d.wanted {
			w.wants[c.Name] = c
		}
	}
	return w
}

// save keeps the actions as they are.
func (w *work) save() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.job.Save(notes{w.all, w.cause})
}

// set says how far an action is.
func (w *work) set(a *action, status, message string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a.Status, a.Message, a.progress = status, clip(message), 0
}

func clip(text string) string {
	const most = 400
	if len(text) > most {
		text = text[:most] + "..."
	}
	return text
}

// feedback tells of all actions.
func (w *work) feedback(status, message string) updateproto.Feedback {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := updateproto.Feedback{Status: status, Message: message}
	for _, a := range w.all {
		f.Actions = append(f.Actions, updateproto.Action{
			Component: updateproto.ComponentRef{ID: w.Domain + ":" + a.Name, Version: a.Version},
			Status:    a.Status, Message: a.Message, Progress: a.progress,
		})
	}
	return f
}

func (w *work) progress(status string) { w.job.Progress(w.feedback(status, "")) }

// end returns the outcome of a step, which is kept to be told in later ones.
func (w *work) end(status, message string) []updateproto.Feedback {
	if err := w.save(); err != nil && !errors.Is(err, context.Canceled) {
		w.Log.Warn("how far the update is will not be remembered", "error", err)
	}
	return []updateproto.Feedback{w.feedback(status, message)}
}

// fail takes down why an action has failed, and returns what to say of the whole.
func (w *work) fail(a *action, status string, err error) string {
	w.Log.Error("update of containers has failed", "container", a.Name, "status", status, "error", err)
	w.set(a, status, err.Error())
	why := a.Name + ": " + err.Error()
	w.cause = cmp.Or(w.cause, clip(why))
	return why
}

// Identify decides what has to be done.
func (b *Backend) Identify(ctx context.Context, job *updateagent.Job) []updateproto.Feedback {
	failed := func(err error) []updateproto.Feedback {
		return []updateproto.Feedback{{Status: updateproto.StatusIdentificationFailed, Message: err.Error()}}
	}
	d, err := read(job.Request)
	if err == nil {
		err = d.clash()
	}
	if err != nil {
		return failed(err)
	}
	known, cancel := context.WithTimeout(ctx, b.patience())
	defer cancel()
	if err := b.Engine.Known(known); err != nil {
		return failed(fmt.Errorf("cannot tell which containers there are: %w", err))
	}
	if err := b.tidy(ctx); err != nil {
		return failed(fmt.Errorf("cannot undo what an earlier update has left: %w", err))
	}
	current, err := b.inCharge(ctx)
	if err != nil {
		return failed(fmt.Errorf("cannot tell which containers there are: %w", err))
	}
	w := &work{Backend: b, job: job}
	if !d.hasSystem {
		d.system = b.System
	}
	w.all = plan(b.Domain, d, current, b.Scoped, b.moved(ctx, d, current))
	for _, want := range d.wanted {
		for _, odd := range want.odd {
			b.Log.Warn("component of a desired state", "component", want.Name, "ignored", odd)
		}
	}
	if len(w.all) == 0 {
		return []updateproto.Feedback{{Status: updateproto.StatusIdentified}, {Status: updateproto.StatusCompleted}}
	}
	for _, a := range w.all {
		if a.Kind == create || a.Kind == recreate {
			a.New = newID()
		}
		if i := slices.IndexFunc(current, func(c *ctrmodel.Container) bool { return c.ID == a.Old }); i >= 0 {
			a.Steady = current[i].State.HasProcess() && current[i].RestartCount == 0 || runsFor(current[i], b.Health)
		}
	}
	if err := w.save(); err != nil {
		return failed(err)
	}
	job.Divide(titles(w.all))
	return []updateproto.Feedback{w.feedback(updateproto.StatusIdentified, "Waiting for the command DOWNLOAD.")}
}

// newID is a random UUID.
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

func (b *Backend) patience() time.Duration {
	if b.Patience == 0 {
		return time.Minute
	}
	return b.Patience
}

// inCharge returns the containers, by name, that are neither replaced by another one nor to replace one, and not about to go.
func (b *Backend) inCharge(ctx context.Context) ([]*ctrmodel.Container, error) {
	list, err := b.Engine.List(ctx)
	slices.SortStableFunc(list, func(a, b *ctrmodel.Container) int { return cmp.Compare(a.Name, b.Name) })
	return slices.DeleteFunc(list, func(c *ctrmodel.Container) bool {
		first, err := b.Engine.ByName(ctx, c.Name)
		return c.State.Status == ctrmodel.Dead || c.State.Status == ctrmodel.Creating || err != nil || first.ID != c.ID
	}), err
}

// moved returns the ids of containers whose image is no longer the one that its name stands for, if that is to be found out.
func (b *Backend) moved(ctx context.Context, d *desired, current []*ctrmodel.Container) map[string]bool {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(b.Ask, 15*time.Second))
	defer cancel()
	moved := map[string]bool{}
	for _, w := range d.wanted {
		i := slices.IndexFunc(current, func(c *ctrmodel.Container) bool { return c.Name == w.Name && c.Image.Name == w.Image.Name })
		if b.Tags == nil || i < 0 || slices.Contains(d.system, w.Name) {
			continue
		}
		made, err := b.Tags.ImageDigest(current[i].ID)
		if err == nil {
			var now string
			now, err = b.Tags.Resolve(ctx, w.Image.Name)
			moved[current[i].ID] = err == nil && now != made
		}
		if err != nil {
			b.Log.Warn("cannot tell whether the image is still the one that its name stands for", "image", w.Image.Name, "error", err)
		}
	}
	return moved
}

// tidy ends what belongs to no activity, because the journal has been lost or containers could not be removed.
func (b *Backend) tidy(ctx context.Context) error {
	var errs []error
	for _, s := range b.Engine.Successions(owner) {
		b.Log.Warn("a replacement of a container belongs to no update", "id", s.ID, "switched", s.Switched)
		if s.Switched && b.Engine.Ensure(ctx, s.ID) == nil {
			errs = append(errs, b.Engine.Commit(ctx, s.ID))
		} else {
			errs = append(errs, b.Engine.Abandon(ctx, s.ID))
		}
	}
	for _, id := range b.Engine.Parked(owner) {
		errs = append(errs, unlessGone(b.Engine.Unpark(ctx, id)))
	}
	return errors.Join(errs...)
}

func unlessGone(err error) error {
	if err != nil && ctrmodel.KindOf(err) == ctrmodel.NotFound {
		return nil
	}
	return err
}

// persist does something again as long as containerd does not answer.
func (b *Backend) persist(ctx context.Context, do func() error) error {
	for end := time.Now().Add(b.patience()); ; {
		err := do()
		if err == nil || ctrmodel.KindOf(err) != ctrmodel.Unavailable || time.Now().After(end) {
			return err
		}
		b.Log.Info("waiting for containerd", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// Inventory describes the containers.
func (b *Backend) Inventory(ctx context.Context) (updateproto.Inventory, error) {
	agent := b.Domain + "-update-agent"
	inv := updateproto.Inventory{SoftwareNodes: []updateproto.SoftwareNode{{
		ID: agent, Version: b.Version, Name: "Eclipse Kanto Containers Update Agent", Type: updateproto.TypeApplication,
		Parameters: []updateproto.KeyValue{{Key: "domain", Value: b.Domain}, {Key: "resumes", Value: "true"}},
	}}}
	list, err := b.inCharge(ctx)
	for _, c := range list {
		id := b.Domain + ":" + c.Name
		inv.SoftwareNodes = append(inv.SoftwareNodes, updateproto.SoftwareNode{
			ID: id, Version: versionOf(c.Image.Name), Type: updateproto.TypeContainer, Parameters: report(c, b.Verbose),
		})
		inv.Associations = append(inv.Associations, updateproto.Association{SourceID: agent, TargetID: id})
	}
	return inv, err
}

// Watch calls changed a little after containers have changed, until ctx ends.
func (b *Backend) Watch(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		events := b.Engine.Subscribe(ctx)
		for range events { // until there are more than anybody can take: of them only the last matters
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			for more := true; more; {
				select {
				case _, more = <-events:
				default:
					more = false
				}
			}
			changed()
		}
	}
}

const pause = 200 * time.Millisecond
