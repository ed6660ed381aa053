// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/grpc"
)

// free is how many bytes may still be written where containerd keeps its data. Less than none: the reserve is in use.
func (s *Store) free() (int64, error) {
	n, err := s.available()
	if err != nil {
		return 0, ctrmodel.Errorf(ctrmodel.Internal, "free space: %w", err)
	}
	return n - s.Reserve, nil
}

// available is how many bytes are free on the file system of the directory.
func available(dir string) (int64, error) {
	var st unix.Statfs_t
	switch err := unix.Statfs(dir, &st); {
	case errors.Is(err, fs.ErrNotExist): // a containerd that was told to keep its data elsewhere
		return math.MaxInt64, nil
	case err != nil:
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// space makes sure that there is space for what has still to come, of this image and of others that are on their way.
func (j *job) space(ctx context.Context, p *parts) error {
	s := j.store
	unlock, err := s.locks.lock(ctx, "space")
	if err != nil {
		return err
	}
	defer unlock()
	need, others := s.missing(ctx, p), int64(0)
	for _, other := range s.underWay(j) {
		others += s.missing(ctx, other)
	}
	free, err := s.free()
	if err == nil && free < need+others && s.Used != nil {
		if _, err = s.makeRoom(ctx, s.Used(), need+others); err == nil {
			free, err = s.free()
		}
	}
	if err == nil && free < need+others {
		err = s.full(free-others, need)
	}
	if err == nil {
		s.mu.Lock()
		s.coming[j] = p
		s.mu.Unlock()
	}
	return err
}

// underWay is what other jobs are getting.
func (s *Store) underWay(but *job) (all []*parts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for j, p := range s.coming {
		if j != but {
			all = append(all, p)
		}
	}
	return all
}

// missing is about how many bytes have still to come of an image, and to be unpacked.
func (s *Store) missing(ctx context.Context, p *parts) (need int64) {
	for i, l := range p.layers {
		if _, err := s.Client.Snapshots.Stat(ctx, p.chainID(i+1)); grpc.CodeOf(err) == grpc.NotFound {
			need += 2 * l.Size // unpacked, it seldom is less
		}
		if _, err := s.Client.Content.Info(ctx, l.Digest.String()); grpc.CodeOf(err) == grpc.NotFound {
			need += l.Size
			if part, err := s.Client.Content.Status(ctx, "layer-"+l.Digest.String()); err == nil {
				need -= min(part.Offset, l.Size)
			}
		}
	}
	return need
}

func (s *Store) full(free, need int64) error {
	return ctrmodel.Errorf(ctrmodel.ResourceExhausted, "not enough space in %s: needs about %d bytes, has %d beside a reserve of %d and what is on its way",
		s.Root, need, max(0, free), s.Reserve)
}

// guard ends the context when space gets short.
func (s *Store) guard(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if free, err := s.free(); err == nil && free < 0 {
					cancel(s.full(free, 1))
				}
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-ended
	}
}
