// SPDX-License-Identifier: Apache-2.0

// Package containers keeps containers as they are wanted to be.
//
// What is wanted of a container is written to the store before anything is done about it. One goroutine for each container
// then compares that with what there is and takes the steps between, see Reconcile. It does so when a client asks for
// something, when a process has ended, when a restart policy's pause is over, when the agent starts and whenever containerd
// comes back: no notification has to arrive for the outcome to be right. Containers do not need the agent to run; its end
// does not touch them.
package containers

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/images"
)

// Config is what an Engine needs to know.
type Config struct {
	StateDir    string        // of the engine's own files
	Original    string        // home of an original agent, whose containers are taken over by an engine that never had any
	StopTimeout time.Duration // between a signal and what comes next, if nobody says otherwise; 0: 30 s
	StopOnExit  bool          // stop the containers when the engine ends
	Deployment  Deployment
	Log         *slog.Logger
}

// Exit is how a process ended.
type Exit struct {
	Code int64
	At   time.Time
	OOM  bool // killed because memory was short
	Lost bool // nobody knows: the machine was restarted, or containerd has lost the process
}

// backend is what the engine works with: containerd, and the images, networks and logs around it. What is done already is no
// error to any method. Errors are of kind Unavailable when containerd does not answer.
type backend interface {
	// Connect returns when the connection to containerd has been lost, or cannot be made. In between it has called up, and
	// oom for containers that run out of memory. What no container of keep uses, and nobody else, may be cleared away.
	Connect(ctx context.Context, keep []*ctrmodel.Container, up func(), oom func(id string)) error

	Look(ctx context.Context, id string) (Actual, error)                                      // all but what only the engine knows
	Prepare(ctx context.Context, c *ctrmodel.Container) (digest string, err error)            // of the image
	Image(ctx context.Context, c *ctrmodel.Container, digest string) (images.Image, error)    // gets it once more if need be
	Launch(ctx context.Context, c *ctrmodel.Container, i images.Image) (pid int64, err error) // fills in network and paths
	Adopt(ctx context.Context, c *ctrmodel.Container) (pid int64, err error)                  // as well
	Wait(ctx context.Context, id string) (Exit, error)                                        // until the process has ended; one that is not there is lost
	Kill(ctx context.Context, id string, s syscall.Signal) error
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	Limit(ctx context.Context, c *ctrmodel.Container) error // of the running process
	Release(ctx context.Context, c *ctrmodel.Container) error
	Discard(ctx context.Context, c *ctrmodel.Container) error

	Attach(ctx context.Context, c *ctrmodel.Container, s ctrmodel.Streams, attached func()) error
	Exec(ctx context.Context, c *ctrmodel.Container, o ctrmodel.ExecOptions, s ctrmodel.Streams) (code int, err error)
	Logs(ctx context.Context, c *ctrmodel.Container, o ctrmodel.LogOptions, yield func([]byte) error) error
	Stats(ctx context.Context, c *ctrmodel.Container) (ctrmodel.Stats, error)

	Pull(ctx context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error)
	Refresh(ctx context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error)
	Resolve(ctx context.Context, name string) (digest string, err error)
	RemoveImage(ctx context.Context, name string) error
	Import(ctx context.Context, archive string) error
	Images(ctx context.Context) ([]ctrmodel.StoredImage, error)
	Collect(ctx context.Context, used map[string]bool) error // images of which neither name nor digest is used, if it is time

	Leave() // the agent ends, the containers go on
}

// Times that tests shorten.
type times struct {
	connect time.Duration // how long a call waits for containerd
	retry   time.Duration // between attempts at what failed for no fault of a container
	call    time.Duration // what containerd may take for one step, other than to get an image
}

// Engine keeps the containers of one store.
type Engine struct {
	Config
	store   store
	backend backend
	times   times
	events  hub

	life context.Context // of the containers' goroutines
	end  context.CancelFunc
	all  sync.WaitGroup

	launches chan struct{} // as many as may go on at a time
	removed  chan struct{} // a container has been
	deployer deployer
	boot     string // tells this run of the machine from others

	unreadable []string // ids of containers that are left alone, because nobody can tell what is wanted of them

	orphaned chan struct{} // there is one more of the orphans

	mu          sync.Mutex
	actors      map[string]*actor
	names       map[string]string     // id by name
	successions map[string]Succession // that are open, by the id of the new container
	orphans     map[string]bool       // successions of the engine's own that have been cut off
	up          chan struct{}         // closed while there is a connection to containerd
	down        error                 // why there is none
}

// New returns the engine of a store. It works with what is in the parts once it runs.
func New(cfg Config, p Parts) (*Engine, error) { return newEngine(cfg, newMachine(p)) }

func newEngine(cfg Config, b backend) (*Engine, error) {
	if cfg.StopTimeout <= 0 {
		cfg.StopTimeout = 30 * time.Second
	}
	s, err := openStore(filepath.Join(cfg.StateDir, "containers"), cfg.Original, cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("store of containers: %w", err)
	}
	records, unreadable, err := s.load(cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("store of containers: %w", err)
	}
	e := &Engine{
		Config: cfg, store: s, backend: b, unreadable: unreadable, deployer: newDeployer(),
		times:  times{connect: 3 * time.Second, retry: time.Second, call: time.Minute},
		actors: map[string]*actor{}, names: map[string]string{}, successions: map[string]Succession{},
		orphans: map[string]bool{}, orphaned: make(chan struct{}, 1),
		launches: make(chan struct{}, 4*runtime.NumCPU()),
		removed:  make(chan struct{}, 1),
		up:       make(chan struct{}), down: errors.New("not connected yet"),
	}
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		e.boot = strings.TrimSpace(string(id))
	}
	e.life, e.end = context.WithCancel(context.Background())
	for _, r := range records {
		if r.State.Status == ctrmodel.Creating { // whoever waited for it is gone
			r.State.SetDead()
		}
		a := newActor(e, r)
		a.size = sizeOf(&r.Container)
		e.actors[r.ID] = a
		if e.names[r.Name] == "" || r.State.Status != ctrmodel.Dead {
			e.names[r.Name] = r.ID
		}
	}
	for _, r := range records {
		e.note(r)
		if r.Replaces != "" && (r.Owner == "" || r.Owner == deployOwner) {
			e.orphans[r.ID] = true
		}
	}
	return e, nil
}

// Run keeps the containers until ctx ends. They go on then, unless the configuration says otherwise.
func (e *Engine) Run(ctx context.Context) error {
	e.mu.Lock()
	for _, a := range e.actors {
		e.all.Go(func() { a.loop(e.life, nil) })
	}
	e.mu.Unlock()
	e.all.Go(func() { e.connect(e.life) })
	e.all.Go(func() { e.collect(e.life) })
	e.all.Go(func() { e.resolve(e.life) })
	e.deploy(ctx)
	if e.StopOnExit {
		e.stopAll()
	}
	e.mu.Lock() // nothing is added any more
	e.end()
	e.mu.Unlock()
	e.all.Wait()
	e.backend.Leave()
	return ctx.Err()
}

// stopAll stops the containers, all at the same time, and keeps in mind which are to run again.
func (e *Engine) stopAll() {
	var all sync.WaitGroup
	for _, a := range e.list() {
		all.Go(func() {
			err := e.do(e.life, a.id, removing, (*actor).hold)
			if err := e.ifThere(a.id, err); err != nil {
				e.Log.Warn("cannot stop container", "container", a.id, "error", err)
			}
		})
	}
	all.Wait()
}

// connect keeps the connection to containerd.
func (e *Engine) connect(ctx context.Context) {
	for said := ""; ctx.Err() == nil; {
		var keep []*ctrmodel.Container
		for _, a := range e.list() {
			keep = append(keep, &a.view.Load().Container)
		}
		for _, id := range e.unreadable {
			keep = append(keep, &ctrmodel.Container{ID: id})
		}
		connected := false
		err := e.backend.Connect(ctx, keep, func() {
			connected = true
			e.Log.Info("connected to containerd")
			e.mu.Lock()
			close(e.up)
			e.mu.Unlock()
			for _, a := range e.list() {
				a.look()
			}
		}, e.noteOOM)
		if ctx.Err() != nil {
			return
		}
		e.mu.Lock()
		e.down = err
		if connected {
			e.up, said = make(chan struct{}), ""
		}
		e.mu.Unlock()
		if said != err.Error() {
			said = err.Error()
			e.Log.Warn("waiting for containerd; containers go on", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(e.times.retry):
		}
	}
}

// Ready says why the engine can do nothing, or nil.
func (e *Engine) Ready() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.up:
		return nil
	default:
		return ctrmodel.Errorf(ctrmodel.Unavailable, "containerd does not answer: %w", e.down)
	}
}

// connected waits a little for containerd.
func (e *Engine) connected(ctx context.Context) error {
	e.mu.Lock()
	up := e.up
	e.mu.Unlock()
	select {
	case <-up:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(e.times.connect):
		return e.Ready()
	}
}

func (e *Engine) noteOOM(id string) {
	if a, err := e.actor(id); err == nil {
		a.oom.Store(true)
	}
}

func (e *Engine) list() []*actor {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]*actor, 0, len(e.actors))
	for _, a := range e.actors {
		list = append(list, a)
	}
	return list
}

func (e *Engine) actor(id string) (*actor, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if a := e.actors[id]; a != nil {
		return a, nil
	}
	return nil, noContainer(id)
}

func stoppingError() error {
	return ctrmodel.Errorf(ctrmodel.Unavailable, "the container agent is stopping")
}

func noContainer(id string) error {
	return ctrmodel.Errorf(ctrmodel.NotFound, "no container with id %s", id)
}

// List returns all containers, the oldest first.
func (e *Engine) List(context.Context) ([]*ctrmodel.Container, error) {
	var list []*ctrmodel.Container
	for _, a := range e.list() {
		list = append(list, a.view.Load().Clone())
	}
	slices.SortFunc(list, func(a, b *ctrmodel.Container) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

// Get returns the container with an id.
func (e *Engine) Get(_ context.Context, id string) (*ctrmodel.Container, error) {
	a, err := e.actor(id)
	if err != nil {
		return nil, err
	}
	return a.view.Load().Clone(), nil
}

// ByName returns the container with a name.
func (e *Engine) ByName(ctx context.Context, name string) (*ctrmodel.Container, error) {
	e.mu.Lock()
	id := e.names[name]
	e.mu.Unlock()
	if id == "" {
		return nil, ctrmodel.Errorf(ctrmodel.NotFound, "no container with name %s", name)
	}
	return e.Get(ctx, id)
}

// Subscribe returns all events from now on, those of one container in order. The channel is closed when ctx ends, and when
// its reader is so far behind that events would be lost.
func (e *Engine) Subscribe(ctx context.Context) <-chan ctrmodel.Event { return e.events.subscribe(ctx) }

// Create gets the image of a container and prepares its file system. The end of ctx ends that, and nothing is left.
func (e *Engine) Create(ctx context.Context, c *ctrmodel.Container) (*ctrmodel.Container, error) {
	return e.create(ctx, c, Succession{})
}

func (e *Engine) create(ctx context.Context, c *ctrmodel.Container, s Succession) (*ctrmodel.Container, error) {
	c = c.Clone()
	c.Defaults(newID)
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if err := e.connected(ctx); err != nil {
		return nil, err
	}
	c.Created = ctrmodel.Time(time.Now())
	c.State = ctrmodel.State{PID: -1, Status: ctrmodel.Creating}
	c.NetworkSettings, c.RestartCount, c.ManuallyStopped, c.StartedBefore = nil, 0, false, false

	o := newOrder(creating, func(a *actor, inner context.Context) error { return a.create(inner, ctx) })
	if err := e.add(&record{Container: *c, Replaces: s.Replaces, Owner: s.Owner}, o); err != nil {
		return nil, err
	}
	if err := o.wait(ctx); err != nil {
		return nil, err
	}
	return e.Get(ctx, c.ID)
}

// maxContainers is how long the descriptions of all containers may be together: one message lists them, and many clients take no
// more than 4 MiB. The rest is for what comes later, such as states and addresses.
const maxContainers = 3 << 20

// sizeOf is how long the description of a container is, without what changes by itself.
func sizeOf(c *ctrmodel.Container) int {
	plain := *c
	plain.State, plain.NetworkSettings, plain.RestartCount, plain.ManuallyStopped, plain.StartedBefore = ctrmodel.State{}, nil, 0, false, false
	plain.ResolvConfPath, plain.HostsPath, plain.HostnamePath = "", "", ""
	data, _ := json.Marshal(&plain) // cannot fail
	return len(data)
}

// reserve makes sure that a container can be listed together with all others. What has been there before is not refused. The
// lock is held.
func (e *Engine) reserve(a *actor, size int) error {
	if size > a.size {
		if size > maxDescriptor {
			return ctrmodel.Errorf(ctrmodel.InvalidArgument, "container of %d bytes, expected at most %d", size, maxDescriptor)
		}
		sum := size
		for _, other := range e.actors {
			if other != a {
				sum += other.size
			}
		}
		if sum > maxContainers {
			return ctrmodel.Errorf(ctrmodel.ResourceExhausted, "the descriptions of all containers would have %d bytes, expected at most %d", sum, maxContainers)
		}
	}
	a.size = size
	return nil
}

// add begins with a container, and its first order. Only the one that it replaces may have its name.
func (e *Engine) add(r *record, first *order) error {
	size := sizeOf(&r.Container)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.actors[r.ID] != nil {
		return ctrmodel.Errorf(ctrmodel.AlreadyExists, "there is a container with id %s already", r.ID)
	}
	if slices.Contains(e.unreadable, r.ID) {
		return ctrmodel.Errorf(ctrmodel.AlreadyExists, "there is a container with id %s already, whose record cannot be read", r.ID)
	}
	if r.Replaces != "" {
		_, replaced := e.successor(r.Replaces)
		_, replaces := e.successions[r.Replaces]
		if replaced || replaces {
			return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "container %s is being replaced already", r.Name)
		}
	}
	if e.life.Err() != nil {
		return stoppingError()
	}
	a := newActor(e, r)
	if err := e.reserve(a, size); err != nil {
		return err
	}
	if err := e.claim(r.Name, r.ID, r.Replaces); err != nil {
		return err
	}
	a.settled() // nothing is there that is not known
	e.actors[r.ID] = a
	e.note(r)
	e.all.Go(func() { a.loop(e.life, first) })
	return nil
}

// claim gives a container its name unless another one has it. One that is being replaced keeps it until it is gone. The lock
// is held.
func (e *Engine) claim(name, id, replaces string) error {
	switch other := e.names[name]; other {
	case "":
		e.names[name] = id
	case replaces, id:
	default:
		return ctrmodel.Errorf(ctrmodel.AlreadyExists, "there is a container with name %s already, id %s", name, other)
	}
	return nil
}

// unclaim takes the name from a container, for the one that replaces it if there is one. The lock is held.
func (e *Engine) unclaim(name, id string) {
	if e.names[name] != id {
		return
	}
	delete(e.names, name)
	for other, a := range e.actors {
		if other != id && a.view.Load().Name == name {
			e.names[name] = other
		}
	}
}

func (e *Engine) drop(a *actor) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.actors, a.id)
	for _, s := range e.successions { // who waits for this one to go
		if other := e.actors[s.ID]; s.Replaces == a.id && other != nil {
			other.look()
		} else if other := e.actors[s.Replaces]; s.ID == a.id && other != nil {
			other.look()
		}
	}
	delete(e.successions, a.id)
	e.unclaim(a.rec.Name, a.id)
	select {
	case e.removed <- struct{}{}:
	default:
	}
}

// newID is a random UUID.
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Start gives a container a process. If that fails, it is tried again only if the container was to run before, and its restart
// policy says so.
func (e *Engine) Start(ctx context.Context, id string) error {
	return e.do(ctx, id, starting, (*actor).start)
}

// Stop ends the process of a container, for good: no restart policy brings it back. Without o.Force, one that does not heed
// the signal goes on.
func (e *Engine) Stop(ctx context.Context, id string, o ctrmodel.StopOptions) error {
	if err := o.Validate(); err != nil {
		return err
	}
	return e.do(ctx, id, stopping, func(a *actor, ctx context.Context) error { return a.stop(ctx, o) })
}

// Restart ends the process of a container, by force if need be, and starts another one.
func (e *Engine) Restart(ctx context.Context, id string, o ctrmodel.StopOptions) error {
	if err := o.Validate(); err != nil {
		return err
	}
	return e.do(ctx, id, starting, func(a *actor, ctx context.Context) error { return a.restart(ctx, o) })
}

// Pause freezes the processes of a container.
func (e *Engine) Pause(ctx context.Context, id string) error {
	return e.do(ctx, id, starting, (*actor).suspend)
}

// Unpause lets them go on.
func (e *Engine) Unpause(ctx context.Context, id string) error {
	return e.do(ctx, id, starting, (*actor).resume)
}

// Update changes what can be changed without a new container.
func (e *Engine) Update(ctx context.Context, id string, o ctrmodel.UpdateOptions) error {
	return e.do(ctx, id, starting, func(a *actor, ctx context.Context) error { return a.update(ctx, o) })
}

// Rename gives a container another name, which nobody else has.
func (e *Engine) Rename(ctx context.Context, id, name string) error {
	a, err := e.actor(id)
	if err != nil {
		return err
	}
	if name == "" || name == a.view.Load().Name {
		return nil
	}
	if err := ctrmodel.ValidateName(name); err != nil {
		return err
	}
	return e.do(ctx, id, starting, func(a *actor, _ context.Context) error { return a.rename(name) })
}

// Remove removes a container and all that belongs to it. One with a process has to be forced; that is stopped, then killed.
func (e *Engine) Remove(ctx context.Context, id string, force bool, o ctrmodel.StopOptions) error {
	if err := o.Validate(); err != nil {
		return err
	}
	r := starting
	if force {
		r = removing
	}
	remove := func(a *actor, ctx context.Context) error { return a.remove(ctx, force, o) }
	err := e.do(ctx, id, r, remove)
	for err == errInterrupted { // by another removal, most likely, whose end is what counts
		err = e.ifThere(id, e.do(ctx, id, starting, remove))
	}
	return err
}

// Attach connects to the standard streams of a container's process until their end. It calls attached once nothing of the
// output can be missed any more; the process may be started after that.
func (e *Engine) Attach(ctx context.Context, id string, s ctrmodel.Streams, attached func()) error {
	c, err := e.Get(ctx, id)
	if err != nil {
		return err
	}
	return e.backend.Attach(ctx, c, s, attached)
}

// Exec runs another process in a container and returns its exit code.
func (e *Engine) Exec(ctx context.Context, id string, o ctrmodel.ExecOptions, s ctrmodel.Streams) (code int, err error) {
	c, err := e.process(ctx, id)
	if err != nil {
		return 0, err
	}
	if len(o.Args) == 0 {
		return 0, ctrmodel.Errorf(ctrmodel.InvalidArgument, "nothing to execute")
	}
	return e.backend.Exec(ctx, c, o, s)
}

// Logs yields the lines of a container's log.
func (e *Engine) Logs(ctx context.Context, id string, o ctrmodel.LogOptions, yield func(line []byte) error) error {
	c, err := e.Get(ctx, id)
	if err != nil {
		return err
	}
	if c.HostConfig.Log.Driver.Type == ctrmodel.LogNone {
		return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "container %s keeps no log", c.Name)
	}
	return e.backend.Logs(ctx, c, o, yield)
}

// Stats returns what a container uses.
func (e *Engine) Stats(ctx context.Context, id string) (ctrmodel.Stats, error) {
	c, err := e.process(ctx, id)
	if err != nil {
		return ctrmodel.Stats{}, err
	}
	return e.backend.Stats(ctx, c)
}

// Pull makes sure that an image is here. It does not call progress after it has returned.
func (e *Engine) Pull(ctx context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error) {
	if err := e.connected(ctx); err != nil {
		return ctrmodel.StoredImage{}, err
	}
	image, err := e.backend.Pull(ctx, name, progress)
	image.Used = e.UsedImages()[name]
	return image, err
}

// Refresh is Pull that asks the registry what the name stands for now. Containers stay what they are made of, see ImageDigest.
func (e *Engine) Refresh(ctx context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error) {
	if err := e.connected(ctx); err != nil {
		return ctrmodel.StoredImage{}, err
	}
	image, err := e.backend.Refresh(ctx, name, progress)
	image.Used = e.UsedImages()[name]
	return image, err
}

// Resolve asks the registry for the digest of what the name stands for now, and gets nothing.
func (e *Engine) Resolve(ctx context.Context, name string) (digest string, err error) {
	return e.backend.Resolve(ctx, name)
}

// ImageDigest returns the digest of the image that a container is made of, empty if that is not known.
func (e *Engine) ImageDigest(id string) (string, error) {
	a, err := e.actor(id)
	if err != nil {
		return "", err
	}
	return a.view.Load().Digest, nil
}

// RemoveImage removes an image, unless containers are made of it: they have its name, or are to find it by its digest.
func (e *Engine) RemoveImage(ctx context.Context, name string) error {
	inUse := ctrmodel.Errorf(ctrmodel.FailedPrecondition, "image %s is used by a container", name)
	used := e.UsedImages()
	if used[name] {
		return inUse
	}
	list, err := e.Images(ctx)
	if err != nil {
		return err
	}
	names := map[string]int{}
	digest := ""
	for _, i := range list {
		names[i.Digest]++
		if i.Name == name {
			digest = i.Digest
		}
	}
	// The name with the digest is what is looked for when a tag stands for something else.
	if used[digest] && (strings.Contains(name, "@") || names[digest] == 1) {
		return inUse
	}
	return e.backend.RemoveImage(ctx, name)
}

// Images returns the images that are here.
func (e *Engine) Images(ctx context.Context) ([]ctrmodel.StoredImage, error) {
	if err := e.connected(ctx); err != nil {
		return nil, err
	}
	list, err := e.backend.Images(ctx)
	used := e.UsedImages()
	for i := range list {
		list[i].Used = used[list[i].Name] || used[list[i].Digest]
	}
	return list, err
}

// UsedImages are those that containers are made of, by name and by digest. One that is being replaced is a container like others.
func (e *Engine) UsedImages() map[string]bool {
	used := map[string]bool{}
	for _, a := range e.list() {
		r := a.view.Load()
		used[r.Image.Name] = true
		if r.Digest != "" {
			used[r.Digest] = true
		}
	}
	return used
}

// collect removes images that have not been used for long: at the start, when a container has been removed, and every hour.
func (e *Engine) collect(ctx context.Context) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		err := e.connected(ctx)
		if err == nil && len(e.unreadable) == 0 { // else nobody knows all that is used
			err = e.backend.Collect(ctx, e.UsedImages())
		}
		if err != nil && ctx.Err() == nil && ctrmodel.KindOf(err) != ctrmodel.Unavailable {
			e.Log.Warn("cannot remove images that are not used", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-e.removed:
		}
	}
}

// process returns a container that has a process.
func (e *Engine) process(ctx context.Context, id string) (*ctrmodel.Container, error) {
	c, err := e.Get(ctx, id)
	if err == nil && !c.State.HasProcess() {
		err = ctrmodel.Errorf(ctrmodel.FailedPrecondition, "container %s is not running but %s", c.Name, c.State.Status)
	}
	return c, err
}
