// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/grpc"
)

const (
	abandoned = 24 * time.Hour   // when nobody has gone on with a pull for so long, nobody will
	fresh     = 10 * time.Minute // an image that has just been wanted is there for somebody
)

// Collect removes images that have expired, those that a name no longer stands for, and, if the reserve of disk space is in use,
// others, the one that was not wanted for longest first. An image stays if used has its name or its digest, which are those
// of all containers and of those to roll back to, if there is a container's file system on its layers, or if it has come from an
// archive that is still there: that is for when there is no network, and is not imported again. What pulls have left that nobody
// has gone on with for a day goes, too.
//
// An image expires when it has been neither pulled nor used for long. The time of that is kept with the image, for which
// Collect has to be called now and then while it is used.
func (s *Store) Collect(ctx context.Context, used map[string]bool) (removed []string, err error) {
	if err := s.endLeases(ctx); err != nil {
		return nil, err
	}
	expired := func(img *containerd.Image) bool {
		unwanted := s.clock().Sub(wantedAt(img))
		return s.Expiry > 0 && unwanted >= s.Expiry || img.Labels[replaced] != "" && unwanted >= fresh
	}
	removed, err = s.removeUnused(ctx, used, expired)
	if err != nil {
		return removed, err
	}
	more, err := s.makeRoom(ctx, used, 0)
	return append(removed, more...), err
}

// makeRoom removes images that nobody uses until so many bytes are free.
func (s *Store) makeRoom(ctx context.Context, used map[string]bool, need int64) (removed []string, err error) {
	return s.removeUnused(ctx, used, func(img *containerd.Image) bool {
		free, err := s.free()
		return err == nil && free < need && s.clock().Sub(wantedAt(img)) >= fresh
	})
}

// wantedAt is when an image was last pulled or used.
func wantedAt(img *containerd.Image) time.Time {
	if t, err := time.Parse(time.RFC3339, img.Labels[lastUse]); err == nil {
		return t
	}
	return img.Updated.Time() // another client has brought it
}

// clock is the time that images age by. It is never before a time that has been seen: a clock that was set back, or has not been
// set yet, is wrong. Then the time goes on from there, as long as the agent runs.
func (s *Store) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if t := s.seen.Add(s.ran() - s.seenAt); t.After(now) {
		return t
	}
	return now
}

// see is about a time that has been written down.
func (s *Store) see(t time.Time) {
	if !t.After(s.clock()) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen, s.seenAt = t, s.ran()
}

// want remembers that an image is wanted now, and puts labels on it.
func (s *Store) want(ctx context.Context, img *containerd.Image, labels map[string]string) error {
	s.see(wantedAt(img))
	now := s.clock()
	if now.Sub(wantedAt(img)) < fresh/2 && len(labels) == 0 {
		return nil
	}
	labels = merge(labels, map[string]string{lastUse: now.UTC().Format(time.RFC3339)})
	var fields []string
	for key := range labels {
		fields = append(fields, "labels."+key)
	}
	// From version 1.7 on, containerd looks at the target although it is not to change.
	_, err := s.Client.Images.Update(ctx, &containerd.Image{Name: img.Name, Target: img.Target, Labels: labels}, fields...)
	return model(err, "image %s", img.Name)
}

// removeUnused goes through the images that nobody uses, the one not wanted for longest first, and removes those that have to go.
func (s *Store) removeUnused(ctx context.Context, used map[string]bool, goes func(*containerd.Image) bool) (removed []string, err error) {
	all, err := s.Client.Images.List(ctx)
	if err != nil {
		return nil, model(err, "list of images")
	}
	slices.SortFunc(all, func(a, b *containerd.Image) int { return wantedAt(a).Compare(wantedAt(b)) })
	if len(all) > 0 {
		s.see(wantedAt(all[len(all)-1]))
	}
	for _, stored := range all {
		if s.uses(used, stored) {
			if err := s.want(ctx, stored, nil); err != nil && ctrmodel.KindOf(err) != ctrmodel.NotFound {
				return removed, err
			}
			continue
		}
		if !goes(stored) {
			continue
		}
		gone, err := s.removeIfUnused(ctx, stored.Name, goes)
		if err != nil {
			return removed, err
		}
		if gone {
			s.Log.Info("removed an image that nothing uses", "image", stored.Name)
			removed = append(removed, stored.Name)
		}
	}
	return removed, nil
}

func (s *Store) uses(used map[string]bool, img *containerd.Image) bool {
	return used[img.Name] || img.Target != nil && used[img.Target.Digest] || s.fromArchive(img)
}

// fromArchive tells whether the archive that has brought the name of the image is there, and still the same. It is only gone if
// it is missing where others are, or where it was seen: else it may not be mounted, or cannot be read for now.
func (s *Store) fromArchive(img *containerd.Image) bool {
	part := strings.SplitN(img.Labels[broughtBy], " ", 3)
	if len(part) != 3 {
		return false
	}
	file := part[2]
	is, err := identity(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return true
	}
	dir := filepath.Dir(file)
	home, _ := os.Stat(dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.homes[dir] = home
		return is == img.Labels[broughtBy]
	}
	others, _ := os.ReadDir(dir)
	return len(others) == 0 && (s.homes[dir] == nil || !os.SameFile(s.homes[dir], home))
}

// identity is what tells an archive from another one in its place. It ends with the file.
func identity(file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	return strings.ToValidUTF8(fmt.Sprint(info.Size(), " ", info.ModTime().UnixNano(), " ", file), "?"), nil // containerd wants that of labels
}

// removeIfUnused removes an image, unless it is in use or has been wanted since somebody looked, or nobody can tell.
func (s *Store) removeIfUnused(ctx context.Context, name string, goes func(*containerd.Image) bool) (gone bool, err error) {
	for _, key := range []string{"image ", "look "} {
		unlock, _ := s.locks.try(key + name)
		if unlock == nil { // somebody is about to use it
			return false, nil
		}
		defer unlock()
	}
	stored, err := s.Client.Images.Get(ctx, name)
	if grpc.CodeOf(err) == grpc.NotFound {
		return false, nil
	} else if err != nil {
		return false, model(err, "image %s", name)
	}
	if s.Used != nil && s.uses(s.Used(), stored) || !goes(stored) {
		return false, nil
	}
	img, _, err := s.read(ctx, stored)
	switch kind := ctrmodel.KindOf(err); {
	case err == nil:
	case kind == ctrmodel.Unavailable:
		return false, err
	case kind != ctrmodel.NotFound && kind != ctrmodel.FailedPrecondition: // else it is half an image, or none for this machine
		s.Log.Warn("an image stays because it cannot be read", "image", name, "error", err)
		return false, nil
	}
	if img.ChainID != "" {
		children, err := s.Client.Snapshots.List(ctx, fmt.Sprintf("parent==%q", img.ChainID))
		if err != nil {
			return false, model(err, "list of snapshots")
		}
		if slices.ContainsFunc(children, func(sn *containerd.Snapshot) bool { return sn.Kind != containerd.Committed }) {
			return false, nil
		}
	}
	err = s.Client.Images.Delete(ctx, name, true)
	if err != nil && grpc.CodeOf(err) != grpc.NotFound {
		return false, model(err, "image %s", name)
	}
	return true, nil
}

// endLeases ends the leases of pulls that nobody has gone on with, or that were killed when all was done but for that.
func (s *Store) endLeases(ctx context.Context) error {
	leases, err := s.Client.Leases.List(ctx)
	if err != nil {
		return model(err, "list of leases")
	}
	var failed []error
	for _, l := range leases {
		if !strings.HasPrefix(l.ID, leasePrefix) {
			continue
		}
		img, err := s.Client.Images.Get(ctx, l.Labels[leaseLabel])
		if err != nil || img.Created.Time().Before(l.Created.Time()) {
			last, err := s.progress(ctx, l)
			if err != nil {
				failed = append(failed, err)
				continue
			}
			s.see(last)
			if s.clock().Sub(last) < abandoned {
				continue
			}
		}
		if unlock, _ := s.locks.try("image " + l.Labels[leaseLabel]); unlock != nil {
			if err := s.Client.Leases.Delete(ctx, l.ID, true); err != nil && grpc.CodeOf(err) != grpc.NotFound {
				failed = append(failed, model(err, "lease %s", l.ID))
			}
			unlock()
		}
	}
	return errors.Join(failed...)
}

// progress is when a pull last got on with what its lease holds.
func (s *Store) progress(ctx context.Context, l *containerd.Lease) (last time.Time, err error) {
	held, err := s.Client.Leases.Resources(ctx, l.ID)
	if err != nil && grpc.CodeOf(err) != grpc.NotFound {
		return last, model(err, "lease %s", l.ID)
	}
	last = l.Created.Time()
	for _, r := range held {
		var t time.Time
		var err error
		switch r.Type {
		case "content":
			var blob *containerd.Blob
			if blob, err = s.Client.Content.Info(ctx, r.ID); err == nil {
				t = blob.Updated.Time()
			}
		case "ingests":
			var part *containerd.Ingest
			if part, err = s.Client.Content.Status(ctx, r.ID); err == nil {
				t = part.Updated.Time()
			}
		}
		switch KindOf(err) {
		case ctrmodel.Unavailable, ctrmodel.Cancelled, ctrmodel.DeadlineExceeded:
			return last, model(err, "%s", r.ID)
		} // else it is not there, or broken
		if t.After(last) {
			last = t
		}
	}
	return last, nil
}
