// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/durable"
)

// Deployment is where the descriptions of containers come from that are there without anybody asking.
type Deployment struct {
	Dirs     []string      // of *.json files, also below
	Archives []string      // directories of *.tar, *.tar.gz and *.tgz files with images, which are imported first
	Init     bool          // only once in the life of the device, instead of whenever a file is new
	Period   time.Duration // between looks at the files; 0: only at the start
	Prune    bool          // remove the container whose file has been removed
}

const (
	maxDescriptor     = 1 << 20
	deploymentsAtOnce = 8
	puzzledLooks      = 10 // until a file that cannot be used is not taken any more for one that has been renamed
)

// descriptor is a file that describes a container.
type descriptor struct {
	file      string
	sum       string // of the content
	container *ctrmodel.Container
}

// deployer applies each content of a descriptor once: what has been done to the container since, by a user or an update, is
// not undone. How far it has got is written down for each descriptor, and none waits for another one.
type deployer struct {
	files sem // who looks at the files
	pulls sem // what may take long

	// What only the one who looks at the files uses.
	found    descriptors
	names    map[string]string      // of the containers that the files describe, by file; nil: nobody has looked yet
	missed   map[string]bool        // those of the files that were not there at the last look
	archives map[string]string      // what the archives were like that have been imported, by file
	broken   map[string]string      // those which could not be
	imports  map[string]*attempts   // those which may be later
	warned   map[string]bool        // of directories
	homes    map[string]fs.FileInfo // directories that there have been descriptors in
	stores   map[string]fs.FileInfo // directories that there have been archives in
	puzzles  map[string]int         // looks at the files that cannot be used, and never could
	held     bool                   // there are descriptors that one of those may be

	mu      sync.Mutex
	deeds   deeds
	read    bool // the deeds have been
	first   bool // there were none
	unsaved bool
	tasks   map[string]*task // by name of the container
}

// deeds is what is kept of deployments.
type deeds struct {
	Initial bool                `json:"initial,omitempty"` // the one of the device's life is not over
	Applied map[string]progress `json:"applied"`           // by name of the container
}

// progress is how far a descriptor has got.
type progress struct {
	Sum   string `json:"sum"`             // of the content
	File  string `json:"file,omitempty"`  // empty if an agent of before has written this
	Start bool   `json:"start,omitempty"` // the container is as described, but may have to be started
}

// task is for what is done about one container, one after the other.
type task struct {
	turn     sem
	sum      string // of what it is about
	attempts attempts
}

// attempts are those at something that has not worked yet.
type attempts struct {
	pauses pauses
	next   time.Time
}

func (a *attempts) failed()   { a.next = time.Now().Add(a.pauses.next(0, 0)) }
func (a *attempts) due() bool { return !time.Now().Before(a.next) }

// sem lets in as many as its capacity.
type sem chan struct{}

func (s sem) enter(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s sem) try() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s sem) leave() { <-s }

func newDeployer() deployer {
	return deployer{
		files: make(sem, 1), pulls: make(sem, deploymentsAtOnce), missed: map[string]bool{},
		imports: map[string]*attempts{}, warned: map[string]bool{}, homes: map[string]fs.FileInfo{},
		stores: map[string]fs.FileInfo{}, tasks: map[string]*task{},
	}
}

// job is what is to be done about a container.
type job struct {
	name string
	sum  string // of the descriptor, empty if that is gone
	do   func(context.Context) error
}

// deployment is what to do about a descriptor.
type deployment int

const (
	nothing deployment = iota
	create
	ensure // that it runs
	update
	replace
)

// deploymentFor decides. Again means that the user asks for it: then nothing is taken to be on purpose.
func deploymentFor(d descriptor, applied progress, current *ctrmodel.Container, again bool) deployment {
	done := applied.Sum == d.sum && !again // whatever the container is now
	switch {
	case done && (current == nil || !applied.Start):
		return nothing
	case current == nil:
		return create
	}
	if !done {
		switch ctrmodel.Compare(current, d.container) {
		case ctrmodel.Recreate:
			return replace
		case ctrmodel.InPlace:
			return update
		}
	}
	if current.ManuallyStopped && !again {
		return nothing
	}
	return ensure
}

// deploy keeps applying descriptors until ctx ends.
func (e *Engine) deploy(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	for over := len(e.Deployment.Dirs)+len(e.Deployment.Archives) == 0; !over; {
		if err := e.connected(ctx); err == nil {
			over = e.deployNew(ctx, &all) && (e.Deployment.Init || e.Deployment.Period <= 0)
		}
		pause := e.Deployment.Period
		if pause <= 0 {
			pause = e.times.retry
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
	<-ctx.Done()
}

// deployNew begins to apply the descriptors that have not been, and reports whether there are none.
func (e *Engine) deployNew(ctx context.Context, all *sync.WaitGroup) (over bool) {
	d := &e.deployer
	if d.files.enter(ctx) != nil {
		return false
	}
	defer d.files.leave()
	if e.Deployment.Init && !e.initial() {
		return true
	}
	fresh, waits := e.importArchives(ctx)
	e.findDescriptors(false)
	jobs := e.jobs(false)
	over = !waits && len(d.missed) == 0 && !d.held
	for _, j := range jobs {
		over = false
		t := d.task(j.name)
		if !t.turn.try() {
			continue
		}
		if fresh || t.sum != j.sum {
			t.sum, t.attempts = j.sum, attempts{}
		}
		if !t.attempts.due() {
			t.turn.leave()
			continue
		}
		all.Go(func() {
			defer t.turn.leave()
			e.work(ctx, t, j)
		})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if over && d.deeds.Initial {
		d.deeds.Initial = false
		e.saveDeeds()
	} else if d.unsaved {
		e.saveDeeds()
	}
	return over && !d.unsaved
}

// initial reports whether the one deployment of the device's life is under way. That it has begun is written down before.
func (e *Engine) initial() bool {
	d := &e.deployer
	d.mu.Lock()
	defer d.mu.Unlock()
	e.readDeeds()
	if d.first {
		d.first, d.deeds.Initial = false, len(e.list()) == 0
		e.saveDeeds()
	}
	return d.deeds.Initial
}

// Deploy applies all descriptors again: containers that are missing, stopped or different from what they describe become as
// described.
func (e *Engine) Deploy(ctx context.Context) error {
	d := &e.deployer
	if err := d.files.enter(ctx); err != nil {
		return err
	}
	e.importArchives(ctx)
	e.findDescriptors(true)
	files, errs, jobs := d.found.files, d.found.errs, e.jobs(true)
	d.files.leave()
	if len(files) == 0 {
		return ctrmodel.Errorf(ctrmodel.NotFound, "no descriptors of containers in %s", strings.Join(e.Deployment.Dirs, ", "))
	}
	results := make([]error, len(jobs))
	var all sync.WaitGroup
	for i, j := range jobs {
		all.Go(func() {
			t := d.task(j.name)
			if results[i] = t.turn.enter(ctx); results[i] == nil {
				defer t.turn.leave()
				results[i] = e.work(ctx, t, j)
			}
		})
	}
	all.Wait()
	return errors.Join(append(results, errs...)...)
}

// jobs are what is to be done: about all descriptors again, or about those that are new or gone.
func (e *Engine) jobs(again bool) (jobs []job) {
	d := &e.deployer
	d.mu.Lock()
	defer d.mu.Unlock()
	e.readDeeds()
	there := map[string]bool{}
	for _, name := range d.names {
		there[name] = true
	}
	for _, desc := range d.found.list {
		name := desc.container.Name
		if again || d.deeds.Applied[name] != (progress{Sum: desc.sum, File: desc.file}) {
			jobs = append(jobs, job{name, desc.sum, func(ctx context.Context) error { return e.apply(ctx, desc, again) }})
		}
	}
	puzzle, held := d.puzzle(), false
	for name, p := range d.deeds.Applied {
		switch {
		case there[name] || p.File == "" || !below(d.found.dirs, p.File):
		case puzzle != "":
			if held = true; !d.held {
				e.Log.Warn("not taking the descriptor of a container to be gone for now, it may have become a file that cannot be used",
					"container", name, "descriptor", p.File, "file", puzzle)
				d.held = true
			}
		default:
			jobs = append(jobs, job{name, "", func(ctx context.Context) error { return e.withdraw(ctx, name) }})
		}
	}
	d.held = held
	return jobs
}

// puzzle is a file that may be a descriptor which has been renamed, and is just being written.
func (d *deployer) puzzle() string {
	for file, looks := range d.puzzles {
		if looks <= puzzledLooks {
			return file
		}
	}
	return ""
}

func (d *deployer) task(name string) *task {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tasks[name] == nil {
		d.tasks[name] = &task{turn: make(sem, 1)}
	}
	return d.tasks[name]
}

// work does a job in its turn.
func (e *Engine) work(ctx context.Context, t *task, j job) error {
	err := j.do(ctx)
	if err == nil {
		t.attempts = attempts{}
		return nil
	}
	t.attempts.failed()
	if ctx.Err() == nil {
		e.Log.Error("cannot deploy container", "container", j.name, "error", err)
	}
	return fmt.Errorf("container %s: %w", j.name, err)
}

var archiveSuffixes = [...]string{".tar", ".tar.gz", ".tgz", ".tar.zst"}

func isArchive(name string) bool {
	return slices.ContainsFunc(archiveSuffixes[:], func(s string) bool { return strings.HasSuffix(name, s) })
}

// importArchives imports the archives that are new, and reports whether there were any, and whether some are to be tried again.
func (e *Engine) importArchives(ctx context.Context) (fresh, waits bool) {
	d := &e.deployer
	if d.archives == nil {
		d.archives, d.broken = map[string]string{}, map[string]string{}
		if data, err := os.ReadFile(e.archivesFile()); err == nil {
			json.Unmarshal(data, &d.archives) // what is not known is imported again; containers stay what they are made of
		}
	}
	for _, dir := range e.Deployment.Archives {
		home, _ := os.Stat(dir)
		entries, err := os.ReadDir(dir)
		if err == nil && (len(entries) > 0 || os.SameFile(d.stores[dir], home)) { // else it may be mounted later
			e.forgetArchives(dir, entries)
		}
		for _, entry := range entries {
			info, err := entry.Info()
			if err != nil || !info.Mode().IsRegular() || !isArchive(entry.Name()) {
				continue
			}
			d.stores[dir] = home
			path, like := filepath.Join(dir, entry.Name()), fmt.Sprint(info.Size(), " ", info.ModTime().UnixNano())
			if d.archives[path] == like || d.broken[path] == like {
				continue
			}
			if a := d.imports[path]; a != nil && !a.due() {
				waits = true
				continue
			}
			e.Log.Info("importing images", "archive", path)
			err = e.backend.Import(ctx, path)
			switch {
			case err == nil:
				d.archives[path], fresh = like, true
				delete(d.imports, path)
				e.saveArchives() // the next one may take long
				continue
			case later(err):
				if d.imports[path] == nil {
					d.imports[path] = &attempts{}
				}
				d.imports[path].failed()
				waits = true
			default:
				d.broken[path] = like
			}
			e.Log.Error("cannot import images", "error", err)
		}
	}
	return fresh, waits
}

// forgetArchives forgets those that are gone from a directory. One that comes back is imported again: nothing has kept its images.
func (e *Engine) forgetArchives(dir string, entries []fs.DirEntry) {
	known := len(e.deployer.archives)
	maps.DeleteFunc(e.deployer.archives, func(path, _ string) bool {
		return filepath.Dir(path) == filepath.Clean(dir) &&
			!slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == filepath.Base(path) })
	})
	if len(e.deployer.archives) < known {
		e.saveArchives()
	}
}

func (e *Engine) archivesFile() string { return filepath.Join(e.StateDir, "imported.json") }

// saveArchives writes down which archives have been imported.
func (e *Engine) saveArchives() {
	data, err := json.Marshal(e.deployer.archives)
	if err == nil {
		err = durable.WriteFile(e.archivesFile(), data, 0o600)
	}
	if err != nil {
		e.Log.Error("cannot write down which images have been imported", "error", err)
	}
}

// later tells whether the same may work another time: a full disk does not stay that way.
func later(err error) bool {
	return passing(err) || ctrmodel.KindOf(err) == ctrmodel.ResourceExhausted ||
		errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// descriptors are the files that there are.
type descriptors struct {
	files   []string
	seen    string // is another one if a file changes
	list    []descriptor
	errs    []error  // about the files that are not in the list
	puzzles []string // the files that cannot be used, and never could
	dirs    []string // those that have been looked through: what has not been found below is gone
}

func below(dirs []string, file string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool {
		rel, err := filepath.Rel(dir, file)
		return err == nil && filepath.IsLocal(rel)
	})
}

// findDescriptors looks for the files, and reads them if they have changed or again is set.
func (e *Engine) findDescriptors(again bool) {
	d := &e.deployer
	var found descriptors
	var seen strings.Builder
	var paths []string
	for _, dir := range e.Deployment.Dirs {
		root, err := filepath.EvalSymlinks(dir)
		if err != nil { // may be there the next time
			if _, lerr := os.Lstat(dir); lerr == nil && !d.warned[dir] {
				e.Log.Warn("cannot look for descriptors of containers", "dir", dir, "error", err)
				d.warned[dir] = true
			}
			continue
		}
		delete(d.warned, dir)
		home, err := os.Stat(root)
		whole, empty := err == nil, true
		filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				whole = false
				return nil
			}
			if filepath.Ext(path) != ".json" {
				return nil
			}
			var like string
			if info, err := os.Stat(path); err != nil {
				if _, lerr := os.Lstat(path); errors.Is(lerr, fs.ErrNotExist) {
					return nil
				}
				like = err.Error() // it is there, if only as a link to what may be mounted later
			} else if info.Mode().IsRegular() {
				like, empty = fmt.Sprint(info.Size(), " ", info.ModTime().UnixNano()), false
			} else {
				return nil
			}
			if !slices.Contains(paths, path) {
				paths = append(paths, path)
				file := filepath.Join(dir, strings.TrimPrefix(path, root)) // wherever the directory is just now
				found.files = append(found.files, file)
				fmt.Fprintln(&seen, file, like)
			}
			return nil
		})
		switch {
		case !whole:
			continue
		case !empty:
			d.homes[dir] = home
		case d.homes[dir] == nil || !os.SameFile(d.homes[dir], home):
			continue // what has been in it may not be mounted
		}
		found.dirs = append(found.dirs, dir)
	}
	e.findMissing(&found, &seen, again)
	if found.seen = seen.String(); again || found.seen != d.found.seen {
		e.readDescriptors(&found)
		d.found = found
	}
	d.found.dirs = found.dirs
	puzzles := map[string]int{}
	for _, file := range d.found.puzzles {
		puzzles[file] = d.puzzles[file] + 1
	}
	d.puzzles = puzzles
}

// findMissing forgets the files that are gone. One is not if it has been there at the last look: an editor may be about to put
// another one in its place. Nor is one in a directory that could not be looked through. Who says that all is to be deployed
// again has finished, and means what is there.
func (e *Engine) findMissing(found *descriptors, seen *strings.Builder, again bool) {
	d := &e.deployer
	if d.names == nil {
		d.names = e.described()
	}
	for file := range d.names {
		switch {
		case slices.Contains(found.files, file):
			delete(d.missed, file)
		case !again && !below(found.dirs, file) && below(e.Deployment.Dirs, file):
			delete(d.missed, file)
		case again || d.missed[file]:
			delete(d.names, file)
			delete(d.missed, file)
		default:
			d.missed[file] = true
			fmt.Fprintln(seen, file, "missed")
		}
	}
}

// described are the names of the containers that files have described when the agent ended.
func (e *Engine) described() map[string]string {
	d := &e.deployer
	d.mu.Lock()
	defer d.mu.Unlock()
	e.readDeeds()
	names := map[string]string{}
	for name, p := range d.deeds.Applied {
		if p.File != "" {
			names[p.File] = name
		}
	}
	return names
}

// readDescriptors reads the files. The first with a name has it; it stays with one that is missed or in a directory that is
// away, or cannot be read because somebody is just writing it.
func (e *Engine) readDescriptors(found *descriptors) {
	d := &e.deployer
	owners := map[string]string{}
	for file, name := range d.names {
		if !slices.Contains(found.files, file) {
			owners[name] = file
		}
	}
	for _, file := range found.files {
		desc, odd, err := readDescriptor(file)
		if err != nil {
			if name := d.names[file]; name == "" {
				found.puzzles = append(found.puzzles, file)
			} else if owners[name] == "" {
				owners[name] = file
			}
		} else if other := owners[desc.container.Name]; d.missed[other] {
			continue
		} else if other != "" && (slices.Contains(found.files, other) || !e.passes(other, desc)) {
			err = fmt.Errorf("container %s is described by %s already", desc.container.Name, other)
		}
		if err != nil {
			found.errs = append(found.errs, ctrmodel.Errorf(ctrmodel.InvalidArgument, "%s: %w", file, err))
			e.Log.Error("cannot use the descriptor of a container", "file", file, "error", err)
			continue
		}
		if odd != nil {
			e.Log.Warn("descriptor of a container", "file", file, "error", odd)
		}
		owners[desc.container.Name] = file
		found.list = append(found.list, desc)
	}
	clear(d.names)
	for name, file := range owners {
		d.names[file] = name
	}
}

// passes reports whether a descriptor has the name that one in a directory that is away has had: it comes before that one, or
// is the same, which may have been moved.
func (e *Engine) passes(away string, d descriptor) bool {
	place := func(file string) int {
		return slices.IndexFunc(e.Deployment.Dirs, func(dir string) bool { return below([]string{dir}, file) })
	}
	return place(d.file) < place(away) || d.sum == e.applied(d.container.Name).Sum
}

func readDescriptor(file string) (d descriptor, odd, err error) {
	info, err := os.Stat(file)
	if err != nil {
		return d, nil, err
	}
	if info.Size() > maxDescriptor {
		return d, nil, fmt.Errorf("%d bytes, expected at most %d", info.Size(), maxDescriptor)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return d, nil, err
	}
	c, odd, err := ctrmodel.ParseDescriptor(data)
	if err != nil {
		return d, nil, err
	}
	if c.Name == "" { // the same at every start
		c.Name = strings.TrimSuffix(filepath.Base(file), ".json")
	}
	whole := c.Clone()
	whole.Defaults(newID)
	if err := whole.Validate(); err != nil {
		return d, nil, err
	}
	sum := sha256.Sum256(data)
	return descriptor{file, hex.EncodeToString(sum[:]), c}, odd, nil
}

// apply makes a container as described, if that has not been done.
func (e *Engine) apply(ctx context.Context, d descriptor, again bool) error {
	name := d.container.Name
	current, err := e.known(ctx, name)
	if err != nil && ctrmodel.KindOf(err) != ctrmodel.NotFound {
		return err
	}
	c := d.container.Clone()
	if _, err := e.actor(c.ID); err == nil {
		c.ID = "" // taken, if only by the one to be replaced
	}
	log := e.Log.With("container", name, "file", d.file)
	what, done := deploymentFor(d, e.applied(name), current, again), progress{Sum: d.sum, File: d.file}
	if what > create && e.busy(current.ID) {
		return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "an update of container %s is under way", name)
	}
	switch what {
	case create:
		log.Info("deploying container")
		current, err = e.pull(ctx, func() (*ctrmodel.Container, error) { return e.Create(ctx, c) })
	case replace:
		log.Info("replacing container by what its descriptor says now")
		var fresh *ctrmodel.Container
		fresh, err = e.pull(ctx, func() (*ctrmodel.Container, error) { return e.Succeed(ctx, current.ID, deployOwner, c) })
		if err == nil {
			if err = e.takeOver(ctx, fresh.ID); err != nil && later(err) {
				return err
			}
			e.setApplied(name, done) // it is what does not start, too
			return err
		}
	case update:
		log.Info("updating container to what its descriptor says now")
		c.Defaults(newID)
		h := &c.HostConfig
		err = e.Update(ctx, current.ID, ctrmodel.UpdateOptions{RestartPolicy: &h.RestartPolicy, Resources: &h.Resources})
	case nothing:
		e.setApplied(name, done)
		return nil
	}
	if err != nil {
		if ctrmodel.KindOf(err) == ctrmodel.InvalidArgument {
			e.setApplied(name, done)
		}
		return err
	}
	e.setApplied(name, progress{Sum: d.sum, File: d.file, Start: true})
	err = e.Ensure(ctx, current.ID)
	if err == nil || errors.As(err, new(notLaunched)) { // what comes then is a matter of the restart policy
		e.setApplied(name, done)
	}
	return err
}

// pull waits for its turn to do what may have to get an image.
func (e *Engine) pull(ctx context.Context, do func() (*ctrmodel.Container, error)) (*ctrmodel.Container, error) {
	if err := e.deployer.pulls.enter(ctx); err != nil {
		return nil, err
	}
	defer e.deployer.pulls.leave()
	return do()
}

// known is ByName that waits until the container has been looked at since the engine began, and for the end of one that is
// being removed.
func (e *Engine) known(ctx context.Context, name string) (*ctrmodel.Container, error) {
	for {
		c, err := e.ByName(ctx, name)
		if err != nil {
			return nil, err
		}
		a, err := e.actor(c.ID)
		if err != nil {
			return nil, err
		}
		looked := a.looked
		if c.State.Status == ctrmodel.Dead {
			looked = nil
		}
		select {
		case <-looked:
			return e.Get(ctx, c.ID)
		case <-a.gone:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// withdraw deals with a descriptor that is gone.
func (e *Engine) withdraw(ctx context.Context, name string) error {
	if e.Deployment.Prune {
		c, err := e.ByName(ctx, name)
		if err == nil && e.busy(c.ID) { // what takes the place of the old one may not work
			return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "its descriptor is gone, but an update of container %s is under way", name)
		}
		if err == nil {
			e.Log.Info("removing container, its descriptor is gone", "container", name)
			err = e.Remove(ctx, c.ID, true, ctrmodel.StopOptions{})
		}
		if err != nil && ctrmodel.KindOf(err) != ctrmodel.NotFound {
			return fmt.Errorf("remove it, its descriptor is gone: %w", err)
		}
	}
	e.setApplied(name, progress{})
	return nil
}

func (e *Engine) applied(name string) progress {
	e.deployer.mu.Lock()
	defer e.deployer.mu.Unlock()
	return e.deployer.deeds.Applied[name]
}

// setApplied writes down how far a descriptor has got. One that is gone has got nowhere.
func (e *Engine) setApplied(name string, p progress) {
	d := &e.deployer
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.deeds.Applied[name] == p:
		return
	case p == progress{}:
		delete(d.deeds.Applied, name)
	default:
		d.deeds.Applied[name] = p
	}
	e.saveDeeds()
}

func (e *Engine) deedsFile() string { return filepath.Join(e.StateDir, "deployed.json") }

// readDeeds reads what has been deployed before, once. The deployer's lock is held, as for saveDeeds.
func (e *Engine) readDeeds() {
	d := &e.deployer
	if d.read {
		return
	}
	d.read = true
	data, err := os.ReadFile(e.deedsFile())
	if err == nil {
		err = json.Unmarshal(data, &d.deeds)
	}
	if d.first = errors.Is(err, fs.ErrNotExist); err != nil && !d.first {
		e.Log.Error("cannot read what has been deployed, deploying again what is different", "error", err)
		d.deeds = deeds{}
	}
	if d.deeds.Applied == nil {
		d.deeds.Applied = map[string]progress{}
	}
}

// saveDeeds is tried again if it fails.
func (e *Engine) saveDeeds() {
	d := &e.deployer
	data, err := json.Marshal(d.deeds)
	if err == nil {
		err = durable.WriteFile(e.deedsFile(), data, 0o600)
	}
	if err != nil && !d.unsaved {
		e.Log.Error("cannot write down what has been deployed", "error", err)
	}
	d.unsaved = err != nil
}
