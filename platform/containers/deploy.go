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
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/durable"
)

// Deployment is where the descriptions of containers come from that are there without anybody asking.
type Deployment struct {
	Dirs     []string      // of *.json files, also below
	Archives []string      // directories of *.tar, *.tar.* and *.tgz files with images, which are imported first
	Init     bool          // only once in the life of the device, instead of whenever a file is new
	Period   time.Duration // between looks at the files; 0: only at the start
	Prune    bool          // remove the container whose file has been removed
}

const (
	maxDescriptor     = 1 << 20
	deploymentsAtOnce = 8
)

// descriptor is a file that describes a container.
type descriptor struct {
	file      string
	sum       string // of the content
	container *ctrmodel.Container
}

// deployer applies each content of a descriptor once: what has been done to the container since, by a user or an update, is
// not undone.
type deployer struct {
	mu       sync.Mutex
	applied  map[string]string // sum of the content that was applied last, by name of the container
	archives map[string]string // what the archives were like that have been imported, by file
	broken   map[string]string // those which could not be
	seen     string            // what the files looked like
	failed   bool              // some descriptor waits for another attempt
	pauses   pauses
	next     time.Time // of that attempt
}

func newDeployer() deployer { return deployer{} }

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
func deploymentFor(d descriptor, applied string, current *ctrmodel.Container, again bool) deployment {
	switch {
	case applied == d.sum && !again:
		return nothing
	case current == nil:
		return create
	}
	switch ctrmodel.Compare(current, d.container) {
	case ctrmodel.Recreate:
		return replace
	case ctrmodel.InPlace:
		return update
	}
	if current.ManuallyStopped && !again {
		return nothing
	}
	return ensure
}

// deploy keeps applying descriptors until ctx ends.
func (e *Engine) deploy(ctx context.Context) {
	d := &e.deployer
	for first := true; len(e.Deployment.Dirs)+len(e.Deployment.Archives) > 0; first = false {
		if err := e.connected(ctx); err == nil {
			once := e.Deployment.Init || e.Deployment.Period <= 0
			e.deployNew(ctx, first)
			if once && !d.failed {
				break
			}
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

// deployNew applies the descriptors that are new, if the files have changed or one has to be tried again.
func (e *Engine) deployNew(ctx context.Context, first bool) {
	d := &e.deployer
	d.mu.Lock()
	defer d.mu.Unlock()
	if first {
		known := e.readApplied()
		if e.Deployment.Init && (known || len(e.list()) > 0) {
			return
		}
		for _, a := range e.list() { // what they are has to be known first
			select {
			case <-a.looked:
			case <-a.gone:
			case <-ctx.Done():
				return
			}
		}
	}
	fresh := e.importArchives(ctx)
	found := e.findDescriptors()
	if found.seen == d.seen && !fresh && !(d.failed && time.Now().After(d.next)) {
		return
	}
	if found.seen != d.seen {
		d.pauses = pauses{}
	}
	d.seen = found.seen
	d.failed = e.applyAll(ctx, found, false) != nil
	d.next = time.Now().Add(d.pauses.next(0, 0))
}

// Deploy applies all descriptors again: containers that are missing, stopped or different from what they describe become as
// described.
func (e *Engine) Deploy(ctx context.Context) error {
	d := &e.deployer
	d.mu.Lock()
	defer d.mu.Unlock()
	e.readApplied()
	e.importArchives(ctx)
	found := e.findDescriptors()
	if len(found.files) == 0 {
		return ctrmodel.Errorf(ctrmodel.NotFound, "no descriptors of containers in %s", strings.Join(e.Deployment.Dirs, ", "))
	}
	return e.applyAll(ctx, found, true)
}

// importArchives imports the archives that are new, and reports whether there were any.
func (e *Engine) importArchives(ctx context.Context) (fresh bool) {
	d := &e.deployer
	file := filepath.Join(e.StateDir, "imported.json")
	if d.archives == nil {
		d.archives, d.broken = map[string]string{}, map[string]string{}
		if data, err := os.ReadFile(file); err == nil {
			json.Unmarshal(data, &d.archives) // what is not known is imported again; containers stay what they are made of
		}
	}
	for _, dir := range e.Deployment.Archives {
		entries, _ := os.ReadDir(dir) // may be there the next time
		for _, entry := range entries {
			name := entry.Name()
			info, err := entry.Info()
			if err != nil || !info.Mode().IsRegular() || !strings.Contains(name, ".tar") && !strings.HasSuffix(name, ".tgz") {
				continue
			}
			path, like := filepath.Join(dir, name), fmt.Sprint(info.Size(), " ", info.ModTime().UnixNano())
			if d.archives[path] == like || d.broken[path] == like {
				continue
			}
			e.Log.Info("importing images", "archive", path)
			if err := e.backend.Import(ctx, path); err != nil {
				e.Log.Error("cannot import images", "error", err)
				if ctrmodel.KindOf(err) != ctrmodel.Unavailable && ctx.Err() == nil {
					d.broken[path] = like
				}
				continue
			}
			d.archives[path], fresh = like, true
		}
	}
	if fresh {
		data, err := json.Marshal(d.archives)
		if err == nil {
			err = durable.WriteFile(file, data, 0o600)
		}
		if err != nil {
			e.Log.Error("cannot write down which images have been imported", "error", err)
		}
	}
	return fresh
}

// descriptors are the files that there are.
type descriptors struct {
	files []string
	seen  string // is another one if a file changes
	list  []descriptor
	whole bool // all could be read
}

func (e *Engine) findDescriptors() descriptors {
	found := descriptors{whole: true}
	var seen strings.Builder
	for _, dir := range e.Deployment.Dirs {
		filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil { // may be there the next time
				found.whole = false
				return nil
			}
			info, err := os.Stat(path)
			if err == nil && info.Mode().IsRegular() && filepath.Ext(path) == ".json" {
				found.files = append(found.files, path)
				fmt.Fprintln(&seen, path, info.Size(), info.ModTime().UnixNano())
			}
			return nil
		})
	}
	found.seen = seen.String()
	return found
}

func (e *Engine) readDescriptors(found *descriptors) {
	names := map[string]string{}
	for _, file := range found.files {
		log := e.Log.With("file", file)
		d, odd, err := readDescriptor(file)
		if err != nil {
			log.Error("cannot use the descriptor of a container", "error", err)
			found.whole = false
			continue
		}
		if odd != nil {
			log.Warn("descriptor of a container", "error", odd)
		}
		if other := names[d.container.Name]; other != "" {
			log.Error("descriptor of a container ignored: there is another one of that name", "name", d.container.Name, "other", other)
			continue
		}
		names[d.container.Name] = file
		found.list = append(found.list, d)
	}
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

// applyAll applies descriptors, some at a time. Its error is of those that are worth another attempt.
func (e *Engine) applyAll(ctx context.Context, found descriptors, again bool) error {
	e.readDescriptors(&found)
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		errs []error
		d    = &e.deployer
		slot = make(chan struct{}, deploymentsAtOnce)
	)
	before := maps.Clone(d.applied)
	for _, desc := range found.list {
		applied := before[desc.container.Name]
		slot <- struct{}{}
		all.Go(func() {
			defer func() { <-slot }()
			retry, err := e.apply(ctx, desc, applied, again)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				e.Log.Error("cannot deploy container", "container", desc.container.Name, "file", desc.file, "error", err)
			}
			if err != nil && (retry || again) {
				errs = append(errs, fmt.Errorf("%s: %w", desc.file, err))
			} else {
				d.applied[desc.container.Name] = desc.sum
			}
		})
	}
	all.Wait()
	if found.whole {
		e.forgetDescriptors(ctx, found.list)
	}
	if !maps.Equal(before, d.applied) {
		if err := e.saveApplied(); err != nil {
			e.Log.Error("cannot write down what has been deployed", "error", err)
		}
	}
	return errors.Join(errs...)
}

// apply says beside an error whether another attempt may help that does no harm meanwhile.
func (e *Engine) apply(ctx context.Context, d descriptor, applied string, again bool) (retry bool, err error) {
	current, err := e.ByName(ctx, d.container.Name)
	if err != nil && ctrmodel.KindOf(err) != ctrmodel.NotFound {
		return true, err
	}
	c := d.container.Clone()
	if _, err := e.actor(c.ID); err == nil {
		c.ID = "" // taken, if only by the one to be replaced
	}
	log := e.Log.With("container", c.Name, "file", d.file)
	what := deploymentFor(d, applied, current, again)
	if what > create && e.busy(current.ID) {
		return true, ctrmodel.Errorf(ctrmodel.FailedPrecondition, "an update of container %s is under way", c.Name)
	}
	switch what {
	case create:
		log.Info("deploying container")
		if current, err = e.Create(ctx, c); err != nil {
			return ctrmodel.KindOf(err) != ctrmodel.InvalidArgument, err
		}
	case replace:
		log.Info("replacing container by what its descriptor says now")
		fresh, err := e.Succeed(ctx, current.ID, deployOwner, c)
		if err != nil {
			return ctrmodel.KindOf(err) != ctrmodel.InvalidArgument, err
		}
		err = e.takeOver(ctx, fresh.ID)
		return err != nil && passing(err), err
	case update:
		log.Info("updating container to what its descriptor says now")
		c.Defaults(newID)
		h := &c.HostConfig
		err := e.Update(ctx, current.ID, ctrmodel.UpdateOptions{RestartPolicy: &h.RestartPolicy, Resources: &h.Resources})
		if err != nil {
			return true, err
		}
	case nothing:
		return false, nil
	}
	return true, e.Ensure(ctx, current.ID)
}

// forgetDescriptors deals with files that are gone.
func (e *Engine) forgetDescriptors(ctx context.Context, list []descriptor) {
	applied := e.deployer.applied
	for _, name := range slices.Collect(maps.Keys(applied)) {
		if slices.ContainsFunc(list, func(d descriptor) bool { return d.container.Name == name }) {
			continue
		}
		if e.Deployment.Prune {
			c, err := e.ByName(ctx, name)
			if err == nil {
				e.Log.Info("removing container, its descriptor is gone", "container", name)
				err = e.Remove(ctx, c.ID, true, ctrmodel.StopOptions{})
			}
			if err != nil && ctrmodel.KindOf(err) != ctrmodel.NotFound {
				e.Log.Error("cannot remove container, its descriptor is gone", "container", name, "error", err)
				continue
			}
		}
		delete(applied, name)
	}
}

func (e *Engine) appliedFile() string { return filepath.Join(e.StateDir, "deployed.json") }

// readApplied reports whether there has been a deployment before.
func (e *Engine) readApplied() bool {
	d := &e.deployer
	if d.applied != nil {
		return true
	}
	d.applied = map[string]string{}
	data, err := os.ReadFile(e.appliedFile())
	if err == nil {
		err = json.Unmarshal(data, &d.applied)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil || d.applied == nil {
		e.Log.Error("cannot read what has been deployed, deploying again what is different", slog.Any("error", err))
		d.applied = map[string]string{}
	}
	return true
}

func (e *Engine) saveApplied() error {
	data, err := json.Marshal(e.deployer.applied)
	if err != nil {
		return err
	}
	return durable.WriteFile(e.appliedFile(), data, 0o600)
}
