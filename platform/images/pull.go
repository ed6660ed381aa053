// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	digests "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/registry"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/grpc"
)

// Pull makes sure that an image is here, and that a container can be made of it. One that is here is not asked for again. With
// a verifier, it has to be one that a signature has been found for: that is asked for once, and remembered with the image, so
// that no network is needed after that. Progress may be nil; it is called by one goroutine at a time, and no more when Pull has
// returned.
func (s *Store) Pull(ctx context.Context, ref string, progress func(ctrmodel.Progress)) (Image, error) {
	return s.pull(ctx, ref, progress, false)
}

// Refresh is Pull that asks the registry whether the name stands for something else now, and for its signature. The image
// that it stood for stays, named by its digest, as long as a container is made of it.
func (s *Store) Refresh(ctx context.Context, ref string, progress func(ctrmodel.Progress)) (Image, error) {
	return s.pull(ctx, ref, progress, true)
}

// Resolve asks the registry for the digest of what the name stands for now. Nothing is downloaded.
func (s *Store) Resolve(ctx context.Context, name string) (string, error) {
	ref, err := parseRef(name)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, s.Stall)
	defer cancel()
	repo, err := s.connect(ctx, ref)
	if err != nil {
		return "", err
	}
	defer repo.close()
	d, err := repo.oras().Resolve(ctx, ref.Reference)
	if err != nil {
		return "", repo.error(err)
	}
	return d.Digest.String(), nil
}

// ByDigest is Pull of the image that the name stood for when it had the digest, whatever it stands for now. An empty digest is
// that of now.
func (s *Store) ByDigest(ctx context.Context, ref, digest string) (Image, error) {
	if digest == "" {
		return s.Pull(ctx, ref, nil)
	}
	r, err := parseRef(ref)
	if err != nil {
		return Image{}, err
	}
	img, err := s.named(ctx, ref, digest)
	if ctrmodel.KindOf(err) == ctrmodel.NotFound && err != nil {
		return s.Pull(ctx, pin(r, digest), nil)
	}
	return img, err
}

// ByLayers is the image with these layers that the name stands for, or stood for when a container was made of it.
func (s *Store) ByLayers(ctx context.Context, ref, chainID string) (Image, error) {
	r, err := parseRef(ref)
	if err != nil {
		return Image{}, err
	}
	all, err := s.List(ctx)
	if err != nil {
		return Image{}, err
	}
	for _, i := range all {
		if i.ChainID == chainID && (i.Ref == ref || i.Ref == pin(r, i.Digest)) {
			return i, nil
		}
	}
	return Image{}, ctrmodel.Errorf(ctrmodel.NotFound, "image %s has never had the layers %s here", ref, chainID)
}

// named is the image that the name stands for, if it has the digest, is verified and complete.
func (s *Store) named(ctx context.Context, ref, digest string) (Image, error) {
	img, rest, err := s.look(ctx, ref, digest)
	if err != nil || rest == nil {
		return img, err
	}
	unlock, err := s.locks.lock(ctx, "image "+ref)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	return s.job(ref, nil).present(ctx, digest)
}

// look finds an image that is here, has the digest unless that is empty, and is verified, and what it is made of if that has
// still to be unpacked. Else the error is NotFound. It does not wait for a pull: what the name stands for now is whole, whatever
// comes in its place. Only who removes images has to wait, so that this one stays for some time.
func (s *Store) look(ctx context.Context, ref, digest string) (img Image, rest *parts, err error) {
	unlock, err := s.locks.lock(ctx, "look "+ref)
	if err != nil {
		return Image{}, nil, err
	}
	defer unlock()
	stored, err := s.Client.Images.Get(ctx, ref)
	switch {
	case err != nil:
		return Image{}, nil, model(err, "image %s", ref)
	case digest != "" && (stored.Target == nil || stored.Target.Digest != digest):
		return Image{}, nil, ctrmodel.Errorf(ctrmodel.NotFound, "image %s is not %s any more", ref, digest)
	case s.Verify != nil && (stored.Target == nil || stored.Labels[verified] != stored.Target.Digest):
		return Image{}, nil, ctrmodel.Errorf(ctrmodel.NotFound, "image %s is here, but no signature of it has been seen", ref)
	}
	img, p, err := s.read(ctx, stored)
	if err != nil {
		return Image{}, nil, err
	}
	var labels map[string]string
	if stored.Labels[replaced] != "" {
		labels = map[string]string{replaced: ""} // which removes it
	}
	if err := s.want(ctx, stored, labels); err != nil {
		return Image{}, nil, err
	}
	_, err = s.Client.Snapshots.Stat(ctx, img.ChainID)
	if grpc.CodeOf(err) == grpc.NotFound {
		return img, p, nil
	}
	return img, nil, model(err, "image %s", ref)
}

// pin is the name of what an image name stands for now.
func pin(r registry.Reference, digest string) string {
	return r.Registry + "/" + r.Repository + "@" + digest
}

func (s *Store) pull(ctx context.Context, name string, progress func(ctrmodel.Progress), again bool) (Image, error) {
	ref, err := parseRef(name)
	if err != nil {
		return Image{}, err
	}
	digest := ""
	if pinned, err := ref.Digest(); err == nil {
		digest = pinned.String()
	}
	if !again {
		if img, rest, err := s.look(ctx, name, digest); err == nil && rest == nil {
			return img, nil
		}
	}
	unlock, err := s.locks.lock(ctx, "image "+name)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	j := s.job(name, progress)
	defer j.end()

	if !again { // somebody else may have pulled it
		img, err := j.present(ctx, digest)
		if err == nil || ctrmodel.KindOf(err) != ctrmodel.NotFound {
			return img, err
		}
	}
	j.report("resolving", 0, 0)
	var repo *repository
	defer func() {
		if repo != nil {
			repo.close()
		}
	}()
	var root v1.Descriptor
	var data []byte
	if err := s.retry(ctx, min(s.Patience, 10*time.Second), func(func()) (err error) {
		if repo == nil {
			repo, err = s.connect(ctx, ref)
		}
		if err == nil {
			root, data, err = repo.root(ctx)
		}
		return err
	}); err != nil {
		return Image{}, fmt.Errorf("image %s: %w", name, err)
	}
	labels := map[string]string{}
	if s.Verify != nil {
		j.report("verifying", 0, 0)
		if err := s.verify(ctx, repo, root); err != nil {
			return Image{}, fmt.Errorf("image %s: %w", name, err)
		}
		labels[verified] = root.Digest.String()
	}
	source := func(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
		if d.Digest == root.Digest { // what has been verified, and nothing else
			return io.NopCloser(bytes.NewReader(data[offset:])), nil
		}
		return repo.open(ctx, d, offset)
	}
	img, err := j.install(ctx, root, source, map[string]string{distribution + repo.host: ref.Repository}, labels)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", name, err)
	}
	return img, nil
}

// verify lets the verifier look at the image in the repository.
func (s *Store) verify(ctx context.Context, repo *repository, root v1.Descriptor) error {
	ctx, cancel := context.WithTimeout(ctx, s.Patience)
	defer cancel()
	return s.retry(ctx, min(s.Patience, 10*time.Second), func(func()) error {
		if err := s.Verify(ctx, repo.oras(), root); err != nil {
			return repo.error(err)
		}
		return nil
	})
}

// present is look that unpacks the image.
func (j *job) present(ctx context.Context, digest string) (Image, error) {
	img, rest, err := j.store.look(ctx, j.name, digest)
	if err != nil || rest == nil {
		return img, err
	}
	for _, l := range rest.layers {
		if _, err := j.store.Client.Content.Info(ctx, l.Digest.String()); err != nil {
			return Image{}, model(err, "layer %s", l.Digest)
		}
	}
	return img, j.leased(ctx, func(ctx context.Context) error { return j.unpack(ctx, rest) })
}

// source is where the parts of an image come from. What is read begins at the offset.
type source func(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error)

// job is the way of one image into the store.
type job struct {
	store *Store
	name  string
	lease string

	mu          sync.Mutex
	progress    func(ctrmodel.Progress)
	last        ctrmodel.Progress
	told        time.Time
	done, total int64 // bytes of layers
}

func (s *Store) job(name string, progress func(ctrmodel.Progress)) *job {
	return &job{store: s, name: name, progress: progress, lease: fmt.Sprintf("%s%x", leasePrefix, sha256.Sum256([]byte(name)))[:len(leasePrefix)+16]}
}

// leasePrefix begins the names of the leases that hold what is not complete. The same name has the same lease, so that a pull
// finds what one before it has left.
const leasePrefix = "sdvbox-pull-"

func (j *job) end() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.progress = nil
}

// report tells how far the job is, often enough for people.
func (j *job) report(phase string, done, total int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	p := ctrmodel.Progress{Phase: phase, Done: done, Total: total}
	if j.progress == nil || p == j.last || p.Phase == j.last.Phase && done < total && time.Since(j.told) < 100*time.Millisecond {
		return
	}
	j.last, j.told = p, time.Now()
	j.progress(p)
}

// downloaded counts bytes; less than none if they have turned out to be wrong.
func (j *job) downloaded(n int64) {
	j.mu.Lock()
	j.done += n
	done, total := j.done, j.total
	j.mu.Unlock()
	j.report("downloading", done, total)
}

// leased does something under the lease of the job, and while there is space on the disk. What it has made is thrown away if
// there is no use in going on later.
func (j *job) leased(ctx context.Context, do func(context.Context) error) (err error) {
	s := j.store
	if err := s.Client.Leases.Create(ctx, j.lease, map[string]string{leaseLabel: j.name}); err != nil && grpc.CodeOf(err) != grpc.AlreadyExists {
		return model(err, "lease")
	}
	defer func() {
		if err != nil {
			switch ctrmodel.KindOf(err) {
			case ctrmodel.Unavailable, ctrmodel.Cancelled, ctrmodel.DeadlineExceeded, ctrmodel.Internal: // not the image's fault
				return
			}
		}
		ctx, cancel := cleanup(ctx)
		defer cancel()
		if e := s.Client.Leases.Delete(ctx, j.lease, err != nil); e != nil {
			s.Log.Warn("cannot end the lease of an image", "image", j.name, "lease", j.lease, "error", e)
		}
	}()
	guarded, stop := s.guard(ctx)
	defer stop()
	err = do(containerd.WithLease(guarded, j.lease))
	if cause := context.Cause(guarded); err != nil && cause != nil {
		err = cause
	}
	return err
}

// cleanup is a context for what has to be done even when the time is up.
func cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
}

// install gets what an image is made of, unpacks it and gives it its name.
func (j *job) install(ctx context.Context, root v1.Descriptor, from source, origin, labels map[string]string) (img Image, err error) {
	s := j.store
	defer func() {
		s.mu.Lock()
		delete(s.coming, j)
		s.mu.Unlock()
	}()
	err = j.leased(ctx, func(ctx context.Context) error {
		p, err := s.resolve(ctx, root, func(ctx context.Context, d v1.Descriptor, labels map[string]string) ([]byte, error) {
			return j.document(ctx, d, labels, from)
		}, origin)
		if err != nil {
			return err
		}
		if err := j.download(ctx, p, from, origin); err != nil {
			return err
		}
		if err := j.unpack(ctx, p); err != nil {
			return err
		}
		stored, err := j.tag(ctx, root, labels)
		if err != nil {
			return err
		}
		img, _, err = s.read(ctx, stored)
		return err
	})
	return img, err
}

// tag lets the name stand for the image.
func (j *job) tag(ctx context.Context, root v1.Descriptor, labels map[string]string) (*containerd.Image, error) {
	s := j.store
	labels = merge(labels, map[string]string{lastUse: s.clock().UTC().Format(time.RFC3339)})
	image := &containerd.Image{Name: j.name, Labels: labels,
		Target: &containerd.Descriptor{MediaType: root.MediaType, Digest: root.Digest.String(), Size: root.Size}}
	stored, err := s.Client.Images.Create(ctx, image)
	if grpc.CodeOf(err) == grpc.AlreadyExists {
		if err = j.keepReplaced(ctx, image); err == nil {
			stored, err = s.Client.Images.Update(ctx, image, "target", "labels")
		}
	}
	return stored, model(err, "image %s", j.name)
}

// keepReplaced gives what the name stands for, if that is something else, a name of its own: containers may be made of it. What is
// known of it otherwise, like that a signature has been seen, stays known. It stays the name that an archive has brought.
func (j *job) keepReplaced(ctx context.Context, by *containerd.Image) error {
	s := j.store
	old, err := s.Client.Images.Get(ctx, j.name)
	if err != nil {
		return err
	}
	if archive := old.Labels[broughtBy]; archive != "" && by.Labels[broughtBy] == "" {
		by.Labels[broughtBy] = archive
	}
	if old.Target == nil {
		return nil
	}
	if old.Target.Digest == by.Target.Digest {
		by.Labels = merge(old.Labels, by.Labels)
		delete(by.Labels, replaced)
		return nil
	}
	ref, err := parseRef(j.name)
	if err != nil {
		return err
	}
	old.Name, old.Labels = pin(ref, old.Target.Digest), merge(old.Labels, map[string]string{replaced: j.name})
	delete(old.Labels, broughtBy)
	if _, err = s.Client.Images.Create(ctx, old); grpc.CodeOf(err) == grpc.AlreadyExists {
		err = nil
	}
	return err
}

// document gets a short part of the image. It becomes content when it is given labels.
func (j *job) document(ctx context.Context, d v1.Descriptor, labels map[string]string, from source) (data []byte, err error) {
	if d.Size > maxDocument {
		return nil, unusable("%s has %d bytes, which are too many for its type %q", d.Digest, d.Size, d.MediaType)
	}
	s := j.store
	if data, err = s.Client.Content.Read(ctx, d.Digest.String(), maxDocument); grpc.CodeOf(err) == grpc.NotFound {
		err = s.retry(ctx, s.Patience, func(func()) error {
			r, err := from(ctx, d, 0)
			if err != nil {
				return err
			}
			defer r.Close()
			if data, err = io.ReadAll(io.LimitReader(r, maxDocument+1)); err != nil {
				return err
			}
			if int64(len(data)) != d.Size || digests.FromBytes(data) != d.Digest {
				return unusable("%s is not what has been sent for it", d.Digest)
			}
			return nil
		})
	} else if err != nil {
		err = model(err, "%s", d.Digest)
	}
	if err != nil || labels == nil {
		return data, err
	}
	return data, j.blob(ctx, d, labels, func(_ context.Context, _ v1.Descriptor, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data[offset:])), nil
	}, func(int64) {})
}

// download gets the layers.
func (j *job) download(ctx context.Context, p *parts, from source, origin map[string]string) error {
	j.total = 0
	for _, l := range p.layers {
		j.total += l.Size
	}
	if err := j.space(ctx, p); err != nil {
		return err
	}
	j.report("downloading", 0, j.total)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(3)
	for _, l := range p.layers {
		g.Go(func() error { return j.blob(ctx, l, origin, from, j.downloaded) })
	}
	return g.Wait()
}

// blob gets a part of the image and puts labels on it. One that has begun to come is gone on with.
func (j *job) blob(ctx context.Context, d v1.Descriptor, labels map[string]string, from source, count func(int64)) error {
	s := j.store
	digest := d.Digest.String()
	unlock, err := s.locks.lock(ctx, digest)
	if err != nil {
		return err
	}
	defer unlock()
	there := func() error {
		count(d.Size)
		return model(s.Client.Content.SetLabels(ctx, digest, labels), "%s", digest)
	}
	again := true // what was here before may have been wrong
	return s.retry(ctx, s.Patience, func(alive func()) (err error) {
		// First the lease, so that it does not go away when it is there.
		if err := s.Client.Leases.Add(ctx, j.lease, containerd.Resource{ID: digest, Type: "content"}); err != nil {
			return model(err, "lease")
		}
		if _, err := s.Client.Content.Info(ctx, digest); err == nil {
			return there()
		} else if grpc.CodeOf(err) != grpc.NotFound {
			return model(err, "%s", digest)
		}
		w, err := s.Client.Content.Writer(ctx, "layer-"+digest, d.Size, digest)
		if grpc.CodeOf(err) == grpc.AlreadyExists { // in another namespace
			return there()
		} else if err != nil {
			return model(err, "%s", digest)
		}
		defer w.Close()
		offset := w.Offset()
		if offset > d.Size {
			if err := w.Truncate(); err != nil {
				return model(err, "%s", digest)
			}
			offset = 0
		}
		counted := offset
		count(counted)
		defer func() {
			if err != nil {
				count(-counted)
			}
		}()
		if offset < d.Size {
			r, err := from(ctx, d, offset)
			if err != nil {
				return err
			}
			defer r.Close()
			n, err := transfer(w, io.LimitReader(r, d.Size-offset), func(n int64) {
				counted += n
				count(n)
				alive()
			})
			if err == nil && n < d.Size-offset {
				err = ctrmodel.Errorf(ctrmodel.Unavailable, "%s has ended after %d of %d bytes", digest, offset+n, d.Size)
			}
			if err != nil {
				return err
			}
		}
		err = w.Commit(labels)
		switch grpc.CodeOf(err) {
		case grpc.AlreadyExists:
			return model(s.Client.Content.SetLabels(ctx, digest, labels), "%s", digest)
		case grpc.FailedPrecondition:
			if e := s.Client.Content.Abort(ctx, "layer-"+digest); e != nil && grpc.CodeOf(e) != grpc.NotFound {
				return model(e, "%s", digest)
			}
			if offset > 0 && again {
				again = false
				return ctrmodel.Errorf(ctrmodel.Unavailable, "%s has come in parts that do not fit: %w", digest, err)
			}
			return unusable("%s is not what has been sent for it: %w", digest, err)
		}
		return model(err, "%s", digest)
	})
}

// transfer copies to containerd in large pieces. What has arrived is there even if it ends with an error.
func transfer(w *containerd.Writer, r io.Reader, count func(int64)) (n int64, err error) {
	var writing error
	b := bufio.NewWriterSize(writer(func(p []byte) (int, error) {
		n, err := w.Write(p)
		count(int64(n))
		writing = err
		return n, err
	}), 256<<10)
	n, err = io.Copy(b, r)
	if flush := b.Flush(); err == nil {
		err = flush
	}
	if writing != nil {
		err = model(writing, "cannot write")
	}
	return n, err
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// retry tries what may become possible until there has been no progress for a time.
func (s *Store) retry(ctx context.Context, patience time.Duration, try func(alive func()) error) error {
	var mu sync.Mutex
	last, pause := time.Now(), s.Patience/60
	for {
		err := try(func() {
			mu.Lock()
			defer mu.Unlock()
			last, pause = time.Now(), s.Patience/60
		})
		if err == nil || ctrmodel.KindOf(err) != ctrmodel.Unavailable {
			return err
		}
		mu.Lock()
		left := patience - time.Since(last)
		wait := pause/2 + rand.N(pause/2+1)
		pause = min(2*pause, s.Patience/4)
		mu.Unlock()
		if left <= wait {
			return err
		}
		s.Log.Info("interrupted", "error", err, "retry", wait)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return context.Cause(ctx)
		}
	}
}
