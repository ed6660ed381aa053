// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
)

// move lets the name busybox stand for an image that has nothing in common with what it has stood for.
func (r *rig) move() (now string) {
	r.t.Helper()
	dir := r.t.TempDir()
	put := func(name string, data []byte) {
		r.t.Helper()
		r.must(os.WriteFile(dir+"/"+name, data, 0o644))
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	r.must(w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "other", Mode: 0o755}))
	r.must(w.Close())
	put("layer.tar", layer.Bytes())
	config, err := json.Marshal(v1.Image{Platform: v1.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer.Bytes())}}})
	r.must(err)
	put("config.json", config)
	put("manifest.json", []byte(`[{"Config":"config.json","RepoTags":["`+busybox+`"],"Layers":["layer.tar"]}]`))
	list, err := r.parts.Images.Import(r.t.Context(), dir)
	r.must(err)
	return list[0].Digest
}

func TestRealFileSystemTellsTheImage(t *testing.T) {
	t.Parallel()
	r, _ := newRealRig(t)
	ctx := t.Context()
	first, err := r.parts.Images.Get(ctx, busybox)
	r.must(err)
	taken := &ctrmodel.Container{ID: "taken", Image: ctrmodel.Image{Name: busybox}} // over from another agent
	_, err = r.parts.Client.Snapshots.Prepare(ctx, snapshotOf(taken.ID), first.ChainID, map[string]string{"containerd.io/gc.root": "test"})
	r.must(err)
	expect := func(c *ctrmodel.Container, want string) {
		t.Helper()
		if got, err := r.backend.Prepare(ctx, c); err != nil || got != want {
			t.Errorf("%s is made of %s, %v, expected %s", c.ID, got, err, want)
		}
	}
	expect(taken, first.Digest)
	second := r.move()
	expect(taken, first.Digest)
	fresh := &ctrmodel.Container{ID: "fresh", Image: taken.Image}
	expect(fresh, second)
	expect(fresh, second)
	r.must(r.parts.Images.Remove(ctx, "example.org/busybox@"+first.Digest))
	expect(taken, second) // nobody knows better
}

func TestRealImageOfAContainerIsNotRemoved(t *testing.T) {
	t.Parallel()
	r, _ := newRealRig(t)
	ctx := t.Context()
	const other, unused = "registry.example/other:1", "registry.example/unused:1"
	name := func(name, like string) {
		t.Helper()
		image, err := r.parts.Client.Images.Get(ctx, like)
		r.must(err)
		_, err = r.parts.Client.Images.Create(ctx, &containerd.Image{Name: name, Target: image.Target})
		r.must(err)
	}
	first, err := r.ImageDigest(r.make("a"))
	r.must(err)
	pinned := "example.org/busybox@" + first
	name(other, busybox)
	r.move()
	name(unused, busybox)
	list, err := r.Images(ctx)
	r.must(err)
	for _, i := range list {
		if i.Used != (i.Name != unused) {
			t.Errorf("%s, which is %s: used %v", i.Name, i.Digest, i.Used)
		}
	}
	for _, name := range []string{busybox, pinned} {
		r.wantKind(r.RemoveImage(ctx, name), ctrmodel.FailedPrecondition)
	}
	r.must(r.RemoveImage(ctx, unused))
	r.wantKind(r.RemoveImage(ctx, unused), ctrmodel.NotFound)
	r.must(r.RemoveImage(ctx, other)) // the image has another name
	name(other, pinned)
	r.must(r.parts.Images.Remove(ctx, pinned))
	r.wantKind(r.RemoveImage(ctx, other), ctrmodel.FailedPrecondition)
}
