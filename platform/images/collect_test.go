// SPDX-License-Identifier: Apache-2.0

package images

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"sdvbox/platform/containerd"
)

func TestLeaseOfAPullThatWasKilledAtTheVeryEnd(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t)
	ctx := t.Context()
	name := r.push(t, newImage(1), "app:1")
	must(s.Pull(ctx, name, nil))(t)
	stored := must(s.Client.Images.Get(ctx, name))(t)

	const done, begun = "r.example/done:1", "r.example/begun:1"
	for _, name := range []string{done, begun} {
		ok(t, s.Client.Leases.Create(ctx, s.job(name, nil).lease, map[string]string{leaseLabel: name}))
	}
	must(s.Client.Images.Create(ctx, &containerd.Image{Name: done, Target: stored.Target}))(t)
	must(s.Collect(ctx, map[string]bool{name: true, done: true}))(t)
	leases := must(s.Client.Leases.List(ctx))(t)
	if len(leases) != 1 || leases[0].Labels[leaseLabel] != begun {
		t.Errorf("leases %+v, expected one of %s", leases, begun)
	}
}

func TestAnImageThatSomebodyHasJustWantedStays(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, d := start(t)
	ctx := t.Context()
	name := r.push(t, newImage(1), "app:1")
	img := must(s.Pull(ctx, name, nil))(t)
	begin := time.Now()
	later := func(d time.Duration) { s.now = func() time.Time { return begin.Add(d) } }
	var once sync.Once
	collect := func(want ...string) {
		t.Helper()
		if removed := must(s.Collect(ctx, nil))(t); !slices.Equal(removed, want) {
			t.Errorf("removed %q, want %q", removed, want)
		}
	}

	later(11 * time.Minute)
	s.available = func() (int64, error) { // the images have been listed
		once.Do(func() { must(s.Pull(ctx, name, nil))(t) })
		return -1, nil
	}
	collect()

	later(22 * time.Minute)
	used := map[string]bool{img.Digest: true}
	s.Used = func() map[string]bool { return used } // since the call
	collect()
	used = nil

	// What cannot be read may be anything.
	manifest := filepath.Join(d.Dir, "root/io.containerd.content.v1.content/blobs/sha256", strings.TrimPrefix(img.Digest, "sha256:"))
	ok(t, os.Rename(manifest, manifest+".old"))
	ok(t, os.Mkdir(manifest, 0o700))
	collect()
	ok(t, os.Remove(manifest))
	ok(t, os.Rename(manifest+".old", manifest))
	collect(name)
}

func TestImagesOfAnArchiveStayAsLongAsItDoes(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t, func(c *Config) { c.Expiry = 24 * time.Hour })
	ctx := t.Context()
	ref := r.push(t, newImage(2), "app:1")
	dir := t.TempDir()
	archive := func(seed uint64, name string) string {
		newImage(seed).layout(t, dir+"/"+name, map[string]string{v1.AnnotationRefName: name})
		return archiveOf(t, dir+"/"+name, dir+"/app.tar", func(w io.Writer) io.WriteCloser { return noClose{w} })
	}
	now := time.Now()
	s.now = func() time.Time { return now }
	collect := func(after time.Duration, want ...string) {
		t.Helper()
		now = now.Add(after)
		if removed := must(s.Collect(ctx, nil))(t); !slices.Equal(removed, want) {
			t.Errorf("removed %q, want %q", removed, want)
		}
	}
	const other = "registry.example/other:1"
	must(s.Import(ctx, archive(1, ref)))(t)
	collect(25 * time.Hour)
	s.available = func() (int64, error) { return -1, nil }
	collect(time.Hour)
	s.available = func() (int64, error) { return 1 << 40, nil }

	// Whatever its name stands for meanwhile.
	must(s.Refresh(ctx, ref, nil))(t)
	must(s.Refresh(ctx, ref, nil))(t)
	collect(25*time.Hour, strings.TrimSuffix(ref, ":1")+"@"+newImage(1).root.Digest.String())

	// One that takes its place has another image.
	must(s.Import(ctx, archive(3, other)))(t)
	collect(time.Hour)
	collect(24*time.Hour, ref)
	ok(t, s.Remove(ctx, other))
	collect(0)
	must(s.Import(ctx, dir+"/app.tar"))(t)
	collect(25 * time.Hour)
	ok(t, os.Remove(dir+"/app.tar"))
	collect(25*time.Hour, other)
	nothing(t, s)
}

func TestAnArchiveThatIsNotMountedIsNotGone(t *testing.T) {
	t.Parallel()
	s, _ := start(t, func(c *Config) { c.Expiry = 24 * time.Hour })
	ctx := t.Context()
	const ref = "registry.example/app:1"
	dir := t.TempDir()
	newImage(1).layout(t, dir+"/layout", map[string]string{v1.AnnotationRefName: ref})
	images, away := dir+"/images", dir+"/away"
	ok(t, os.Mkdir(images, 0o755))
	file := archiveOf(t, dir+"/layout", images+"/app.tar", func(w io.Writer) io.WriteCloser { return noClose{w} })
	begin, days := time.Now(), 0
	collect := func(what string, want ...string) { // two days later
		t.Helper()
		days += 2
		s.now = func() time.Time { return begin.Add(time.Duration(days) * 24 * time.Hour) }
		if removed := must(s.Collect(ctx, nil))(t); !slices.Equal(removed, want) {
			t.Errorf("%s: removed %q, want %q", what, removed, want)
		}
	}

	must(s.Import(ctx, file))(t)
	ok(t, os.Rename(images, away))
	collect("no directory")
	ok(t, os.Mkdir(images, 0o755))
	collect("another directory, with nothing in it")
	ok(t, os.Remove(images))
	ok(t, os.Rename(away, images))
	ok(t, os.Rename(file, file+".old"))
	ok(t, os.Symlink("app.tar", file))
	collect("an archive that cannot be looked at")
	ok(t, os.Rename(file+".old", file))
	collect("there again")
	ok(t, os.Rename(images, away))
	ok(t, os.Mkdir(images, 0o755))
	collect("another directory after that")
	ok(t, os.Remove(images))
	ok(t, os.Rename(away, images))
	ok(t, os.Remove(file))
	collect("removed from where it was seen", ref)

	archiveOf(t, dir+"/layout", file, func(w io.Writer) io.WriteCloser { return noClose{w} })
	must(s.Import(ctx, file))(t)
	s = must(New(s.Config))(t) // which has never seen it
	ok(t, os.Remove(file))
	collect("a directory with nothing in it")
	ok(t, os.WriteFile(images+"/other.tar", nil, 0o644))
	collect("missing where others are", ref)
}
