// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"crypto/rand"
	"strings"
	"syscall"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/grpc"
)

// unpack makes a snapshot of the layers, each on top of the one before.
func (j *job) unpack(ctx context.Context, p *parts) error {
	s := j.store
	// Images that have layers in common wait for each other.
	unlock, err := s.locks.lock(ctx, "unpack "+p.diffIDs[0].String())
	if err != nil {
		return err
	}
	defer unlock()
	var done, total int64
	for _, l := range p.layers {
		total += l.Size
	}
	parent := ""
	for i, l := range p.layers {
		j.report("unpacking", done, total)
		if err := j.layer(ctx, p, i, parent); err != nil {
			return err
		}
		parent = p.chainID(i + 1)
		done += l.Size
	}
	j.report("unpacking", total, total)
	err = s.Client.Content.SetLabels(ctx, p.config.Digest.String(),
		map[string]string{gcSnapshot + s.Client.Snapshots.Snapshotter: parent})
	return model(err, "%s", p.config.Digest)
}

// layer unpacks one layer, unless that has been done.
func (j *job) layer(ctx context.Context, p *parts, i int, parent string) (err error) {
	s := j.store
	l, chain := p.layers[i], p.chainID(i+1)
	if err := s.Client.Leases.Add(ctx, j.lease, containerd.Resource{ID: chain, Type: "snapshots/" + s.Client.Snapshots.Snapshotter}); err != nil {
		return model(err, "lease")
	}
	if _, err := s.Client.Snapshots.Stat(ctx, chain); err == nil {
		return nil
	} else if grpc.CodeOf(err) != grpc.NotFound {
		return model(err, "snapshot %s", chain)
	}
	key := "extract-" + rand.Text() + " " + chain
	mounts, err := s.Client.Snapshots.Prepare(ctx, key, parent, nil)
	if err != nil {
		return model(err, "cannot prepare a snapshot for layer %s", l.Digest)
	}
	defer func() {
		if err != nil {
			ctx, cancel := cleanup(ctx)
			defer cancel()
			if e := s.Client.Snapshots.Remove(ctx, key); e != nil && grpc.CodeOf(e) != grpc.NotFound {
				s.Log.Warn("cannot remove half a layer", "snapshot", key, "error", e)
			}
		}
	}()
	applied, err := s.Client.Apply(ctx, &containerd.Descriptor{MediaType: l.MediaType, Digest: l.Digest.String(), Size: l.Size}, mounts)
	if err != nil && KindOf(err) == ctrmodel.Internal && corrupt(err) {
		return unusable("cannot unpack layer %s: %w", l.Digest, err)
	} else if err != nil {
		return model(err, "cannot unpack layer %s", l.Digest)
	}
	if applied.Digest != p.diffIDs[i].String() {
		return unusable("layer %s is unpacked %s, but the image says %s", l.Digest, applied.Digest, p.diffIDs[i])
	}
	err = s.Client.Snapshots.Commit(ctx, chain, key, nil)
	if grpc.CodeOf(err) == grpc.AlreadyExists { // another client of containerd was faster
		if err = s.Client.Snapshots.Remove(ctx, key); grpc.CodeOf(err) == grpc.NotFound {
			err = nil
		}
	}
	if err != nil {
		return model(err, "snapshot %s", chain)
	}
	err = s.Client.Content.SetLabels(ctx, l.Digest.String(), map[string]string{uncompressed: applied.Digest})
	return model(err, "layer %s", l.Digest)
}

// corrupt tells whether an error of containerd, which has no code for that, is about what is in a layer rather than about where
// it is unpacked.
func corrupt(err error) bool {
	text := err.Error()
	for _, sign := range []string{"archive/tar: ", "gzip: ", "flate: ", "unpigz: ", "zstd", "magic number mismatch", "unexpected EOF", "unhandled tar header"} {
		if strings.Contains(text, sign) {
			return true
		}
	}
	return strings.Contains(text, ": link ") && strings.HasSuffix(text, syscall.ENOENT.Error()) // a second name of what is not there
}
