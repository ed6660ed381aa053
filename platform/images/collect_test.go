// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	digests "github.com/opencontainers/go-digest"
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

func TestAPullIsThereForADayAfterItsLastProgress(t *testing.T) {
	t.Parallel()
	s, _ := start(t)
	ctx := t.Context()
	j := s.job("r.example/app:1", nil)
	ok(t, s.Client.Leases.Create(ctx, j.lease, map[string]string{leaseLabel: j.name}))
	collect := func(at time.Time, leases int) {
		t.Helper()
		s.now = func() time.Time { return at }
		must(s.Collect(ctx, nil))(t)
		if left := must(s.Client.Leases.List(ctx))(t); len(left) != leases {
			t.Fatalf("leases %+v, expected %d", left, leases)
		}
	}
	between := func(a, b time.Time) time.Time { // a day later
		t.Helper()
		if !b.After(a) {
			t.Fatalf("%v is not after %v", b, a)
		}
		return a.Add(b.Sub(a)/2 + abandoned)
	}
	created := must(s.Client.Leases.List(ctx))(t)[0].Created.Time()

	// A part that is complete.
	time.Sleep(50 * time.Millisecond) // the times of files are coarse
	data := []byte("first trip")
	whole := v1.Descriptor{Digest: digests.FromBytes(data), Size: int64(len(data))}
	ok(t, j.blob(containerd.WithLease(ctx, j.lease), whole, map[string]string{"a": "b"}, func(context.Context, v1.Descriptor, int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}, func(int64) {}))
	first := must(s.Client.Content.Info(ctx, whole.Digest.String()))(t).Updated.Time()
	collect(between(created, first), 1)

	// One that has begun to come.
	time.Sleep(50 * time.Millisecond) // the times of files are coarse
	half := v1.Descriptor{Digest: digests.FromString("second trip"), Size: 11}
	err := j.blob(containerd.WithLease(ctx, j.lease), half, nil, func(context.Context, v1.Descriptor, int64) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader("second"), iotest.ErrReader(io.ErrClosedPipe))), nil
	}, func(int64) {})
	if err == nil {
		t.Fatal("no error")
	}
	second := must(s.Client.Content.Ingests(ctx))(t)[0].Updated.Time()
	collect(between(first, second), 1)
	must(s.Client.Content.Info(ctx, whole.Digest.String()))(t)

	// The clock has been lost: a day passes by it.
	boot := time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, after := range []time.Duration{0, abandoned - time.Minute, abandoned} {
		s.ran = func() time.Duration { return after }
		collect(boot.Add(after), int(1-after/abandoned))
	}
	nothing(t, s)
}

func TestImagesAgeByAWrongClock(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t, func(c *Config) { c.Expiry = 24 * time.Hour })
	ctx := t.Context()
	at := func(now time.Time) { s.now = func() time.Time { return now } }
	collect := func(what string, want ...string) {
		t.Helper()
		if removed := must(s.Collect(ctx, nil))(t); !slices.Equal(removed, want) {
			t.Errorf("%s: removed %q, want %q", what, removed, want)
		}
	}
	right := time.Now().Truncate(time.Second)
	at(right)
	var refs []string
	for seed := range uint64(3) {
		at(right.Add(time.Duration(seed) * time.Minute))
		refs = append(refs, must(s.Pull(ctx, r.push(t, newImage(seed), fmt.Sprint("app:", seed)), nil))(t).Ref)
	}

	s = must(New(s.Config))(t) // has been started without a clock
	boot := time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC)
	after := func(d time.Duration) {
		at(boot.Add(d))
		s.ran = func() time.Duration { return d }
	}
	after(0)
	collect("at the start")
	after(9 * time.Minute)
	s.available = func() (int64, error) { return -1, nil }
	collect("the first two were wanted 10 minutes before", refs[0], refs[1])
	s.available = func() (int64, error) { return 1 << 40, nil }
	after(23 * time.Hour)
	refs = append(refs, must(s.Pull(ctx, r.push(t, newImage(3), "app:3"), nil))(t).Ref)
	after(24 * time.Hour)
	collect("a day after", refs[2])

	at(right.Add(25 * time.Hour))
	collect("the clock has been set")
	at(right.Add(48 * time.Hour))
	collect("a day after the last was wanted", refs[3])
}
