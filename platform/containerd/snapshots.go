// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"strings"
	"syscall"

	"sdvbox/platform/protobuf"
)

// Snapshots is the file systems of containers, and the layers of images.
type Snapshots struct {
	conn        *conn
	Snapshotter string // which makes them; New says overlayfs
}

// SnapshotKind is what can be done with a snapshot.
type SnapshotKind int32

// The kinds.
const (
	View      SnapshotKind = 1 // read
	Active    SnapshotKind = 2 // written
	Committed SnapshotKind = 3 // built upon
)

// Snapshot is what containerd knows of a snapshot.
type Snapshot struct {
	Name    string              `pb:"1"`
	Parent  string              `pb:"2"`
	Kind    SnapshotKind        `pb:"3"`
	Created *protobuf.Timestamp `pb:"4"`
	Updated *protobuf.Timestamp `pb:"5"`
	Labels  map[string]string   `pb:"6"`
}

// Mount says how a snapshot is mounted.
type Mount struct {
	Type    string   `pb:"1"`
	Source  string   `pb:"2"`
	Target  string   `pb:"3"` // below where the snapshot is mounted
	Options []string `pb:"4"`
}

type snapshotRequest struct {
	Snapshotter string            `pb:"1"`
	Key         string            `pb:"2"`
	Parent      string            `pb:"3"`
	Labels      map[string]string `pb:"4"`
}

func (s Snapshots) mounts(ctx context.Context, method string, req *snapshotRequest) ([]*Mount, error) {
	var resp struct {
		Mounts []*Mount `pb:"1"`
	}
	req.Snapshotter = s.Snapshotter
	err := s.conn.call(ctx, "snapshots.v1.Snapshots/"+method, req, &resp)
	return resp.Mounts, err
}

// Prepare makes an active snapshot on the parent, on nothing if that is "".
func (s Snapshots) Prepare(ctx context.Context, key, parent string, labels map[string]string) ([]*Mount, error) {
	return s.create(ctx, "Prepare", &snapshotRequest{Key: key, Parent: parent, Labels: labels})
}

// View makes a snapshot of the parent that is only read.
func (s Snapshots) View(ctx context.Context, key, parent string, labels map[string]string) ([]*Mount, error) {
	return s.create(ctx, "View", &snapshotRequest{Key: key, Parent: parent, Labels: labels})
}

// create makes a snapshot. If containerd was killed, or lost power, after it had made the directory of one and before it had
// written that down, it wants to give the same directory to the next one, fails, and removes it: then the second attempt works.
// It removes it when its transaction is over already, so that another snapshot may just have got it; hence one at a time.
func (s Snapshots) create(ctx context.Context, method string, req *snapshotRequest) ([]*Mount, error) {
	s.conn.making.Lock()
	defer s.conn.making.Unlock()
	mounts, err := s.mounts(ctx, method, req)
	if inTheWay(err) {
		mounts, err = s.mounts(ctx, method, req)
	}
	return mounts, err
}

// inTheWay reports whether a snapshot could not be made because its directory was there, in containerd's words
// "rename DIR/new-NUMBER DIR/NUMBER: file exists".
func inTheWay(err error) bool {
	return err != nil && strings.Contains(err.Error(), ": rename ") && strings.HasSuffix(err.Error(), ": "+syscall.EEXIST.Error())
}

// Mounts says how an active snapshot or a view is mounted.
func (s Snapshots) Mounts(ctx context.Context, key string) ([]*Mount, error) {
	return s.mounts(ctx, "Mounts", &snapshotRequest{Key: key})
}

// Commit makes an active snapshot one that can be built upon, with another name.
func (s Snapshots) Commit(ctx context.Context, name, key string, labels map[string]string) error {
	type request struct {
		Snapshotter string            `pb:"1"`
		Name        string            `pb:"2"`
		Key         string            `pb:"3"`
		Labels      map[string]string `pb:"4"`
	}
	return s.conn.call(ctx, "snapshots.v1.Snapshots/Commit", &request{s.Snapshotter, name, key, labels}, &empty{})
}

// Stat tells of a snapshot.
func (s Snapshots) Stat(ctx context.Context, key string) (*Snapshot, error) {
	var resp struct {
		Info *Snapshot `pb:"1"`
	}
	if err := s.conn.call(ctx, "snapshots.v1.Snapshots/Stat", &snapshotRequest{Snapshotter: s.Snapshotter, Key: key}, &resp); err != nil {
		return nil, err
	}
	return orZero(resp.Info), nil
}

// Remove removes a snapshot, on which there must not be another.
func (s Snapshots) Remove(ctx context.Context, key string) error {
	return s.conn.call(ctx, "snapshots.v1.Snapshots/Remove", &snapshotRequest{Snapshotter: s.Snapshotter, Key: key}, &empty{})
}

// List lists the snapshots that one of the filters matches, all if there is none.
func (s Snapshots) List(ctx context.Context, filters ...string) ([]*Snapshot, error) {
	type request struct {
		Snapshotter string   `pb:"1"`
		Filters     []string `pb:"2"`
	}
	type part struct {
		Info []*Snapshot `pb:"1"`
	}
	return collect(ctx, s.conn, "snapshots.v1.Snapshots/List", &request{s.Snapshotter, filters}, func(p *part) []*Snapshot { return p.Info })
}

// Apply unpacks a layer into mounts, and says what has been unpacked: its digest is that of the layer uncompressed.
func (c *Client) Apply(ctx context.Context, layer *Descriptor, mounts []*Mount) (*Descriptor, error) {
	type request struct {
		Diff   *Descriptor `pb:"1"`
		Mounts []*Mount    `pb:"2"`
	}
	var resp struct {
		Applied *Descriptor `pb:"1"`
	}
	if err := c.conn.call(ctx, "diff.v1.Diff/Apply", &request{layer, mounts}, &resp); err != nil {
		return nil, err
	}
	return orZero(resp.Applied), nil
}
