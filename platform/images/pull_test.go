// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	digests "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/ctrd"
)

// app is the layer of newImage that is large.
func app(seed uint64) digests.Digest { return digests.FromBytes(newLayer("app", 3<<20, seed).packed) }

func isBlob(r *http.Request, d digests.Digest) bool {
	return strings.HasSuffix(r.URL.Path, "/blobs/"+d.String())
}

// cut sends the first bytes of an answer that has more.
func cut(w http.ResponseWriter, data []byte, n int) {
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.Write(data[:n])
	w.(http.Flusher).Flush()
}

func TestAPullGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, d := start(t, func(c *Config) { c.Patience, c.Stall = 30*time.Second, 2*time.Second })
	ref := r.push(t, newImage(1), "app:1")
	data := newLayer("app", 3<<20, 1).packed
	var ranges []string
	var mu sync.Mutex
	broken := r.between(t, func(w http.ResponseWriter, req *http.Request) bool {
		if !isBlob(req, app(1)) {
			return true
		}
		mu.Lock()
		ranges = append(ranges, req.Header.Get("Range"))
		n := len(ranges)
		mu.Unlock()
		switch n {
		case 1: // the connection breaks
			cut(w, data, 1<<20)
			time.Sleep(200 * time.Millisecond) // so that this much has arrived
			panic(http.ErrAbortHandler)
		case 2: // a registry that knows no ranges, and stalls
			cut(w, data, 2<<20)
			<-req.Context().Done()
			return false
		case 3: // containerd dies
			go func() {
				d.Kill()
				d.Run()
			}()
		case 4:
			w.WriteHeader(http.StatusServiceUnavailable)
			return false
		}
		return true
	})
	var last ctrmodel.Progress
	img := must(s.Pull(t.Context(), broken.at(ref), func(p ctrmodel.Progress) {
		if p.Done > p.Total || p.Phase == "downloading" && p.Total < int64(len(data)) {
			t.Errorf("progress %+v", p)
		}
		if p.Phase == "downloading" {
			last = p
		}
	}))(t)
	if last.Done != last.Total {
		t.Errorf("at the end %+v", last)
	}
	if got := files(t, s, img); got["app"] != 3<<20 {
		t.Errorf("files %v", got)
	}
	if ranges[0] != "" || !slices.Contains(ranges, "bytes=2097152-") {
		t.Errorf("asked for %q", ranges)
	}
}

func TestAPullThatIsGivenUpIsGoneOnWithByTheNext(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t)
	ref := r.push(t, newImage(1), "app:1")
	data := newLayer("app", 3<<20, 1).packed
	var half atomic.Bool
	var ranged atomic.Value
	half.Store(true)
	broken := r.between(t, func(w http.ResponseWriter, req *http.Request) bool {
		if !isBlob(req, app(1)) {
			return true
		}
		ranged.Store(req.Header.Get("Range"))
		if half.Load() {
			cut(w, data, 2<<20)
			<-req.Context().Done()
			return false
		}
		return true
	})
	giveUp := func() {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { // until containerd has some of it
			for ctx.Err() == nil {
				ingests, _ := s.Client.Content.Ingests(ctx)
				if slices.ContainsFunc(ingests, func(i *containerd.Ingest) bool { return i.Offset >= 1<<20 }) {
					cancel()
				}
				time.Sleep(10 * time.Millisecond)
			}
		}()
		_, err := s.Pull(ctx, broken.at(ref), nil)
		expect(t, err, ctrmodel.Cancelled)
	}
	giveUp()
	collectGarbage(t, s)

	other := must(New(s.Config))(t) // an agent that has been started again
	half.Store(false)
	img := must(other.Pull(t.Context(), broken.at(ref), nil))(t)
	if got := ranged.Load(); got == "" {
		t.Error("began anew")
	}
	if got := files(t, s, img); got["app"] != 3<<20 {
		t.Errorf("files %v", got)
	}

	// One that nobody goes on with is thrown away.
	ok(t, s.Remove(t.Context(), img.Ref))
	half.Store(true)
	giveUp()
	must(s.Collect(t.Context(), nil))(t)
	if len(must(s.Client.Leases.List(t.Context()))(t)) != 1 {
		t.Error("thrown away too early")
	}
	s.now = func() time.Time { return time.Now().Add(25 * time.Hour) }
	must(s.Collect(t.Context(), nil))(t)
	nothing(t, s)
}

func TestRegistriesThatMisbehave(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t, func(c *Config) { c.Patience, c.Stall = 1500*time.Millisecond, 500*time.Millisecond })
	ref := r.push(t, newImage(1), "app:1")
	data := newLayer("app", 3<<20, 1).packed
	wrong := append([]byte("x"), data[1:]...)
	long := append(slices.Clone(data), 1)
	answer := func(path string, f func(w http.ResponseWriter)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, path) {
				f(w)
				return false
			}
			return true
		}
	}
	manifest := func(mediaType, text string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", mediaType)
			w.Write([]byte(text))
		}
	}
	config := `{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}`
	layer := func(mediaType, digest string, size int) string {
		return fmt.Sprintf(`{"config":%s,"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`, config, mediaType, digest, size)
	}
	const good = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
	for _, test := range []struct {
		name   string
		change func(http.ResponseWriter, *http.Request) bool
		kind   ctrmodel.Kind
		words  string
	}{
		{"wrong blob", answer(app(1).String(), func(w http.ResponseWriter) { w.Write(wrong) }), ctrmodel.FailedPrecondition, app(1).String()},
		{"long blob", answer(app(1).String(), func(w http.ResponseWriter) { cut(w, long, len(data)) }), ctrmodel.FailedPrecondition, "expected"},
		{"short blob", answer(app(1).String(), func(w http.ResponseWriter) { w.Write(data[:1000]) }), ctrmodel.FailedPrecondition, "expected"},
		{"cut blob", answer(app(1).String(), func(w http.ResponseWriter) { cut(w, data, 1000) }), ctrmodel.Unavailable, "unexpected EOF"},
		{"no blob", answer(app(1).String(), func(w http.ResponseWriter) { w.WriteHeader(404) }), ctrmodel.NotFound, "404"},
		{"silence", answer(app(1).String(), func(w http.ResponseWriter) { time.Sleep(700 * time.Millisecond) }), ctrmodel.Unavailable, "silent for 500ms"},
		{"broken for ever", answer("/manifests/", func(w http.ResponseWriter) { w.WriteHeader(500) }), ctrmodel.Unavailable, "500"},
		{"busy for ever", answer("/manifests/", func(w http.ResponseWriter) { w.WriteHeader(429) }), ctrmodel.Unavailable, "429"},
		{"locked", answer("/manifests/", func(w http.ResponseWriter) { w.WriteHeader(401) }), ctrmodel.Unauthenticated, "401"},
		{"odd challenge", answer("/manifests/", func(w http.ResponseWriter) {
			w.Header().Set("Www-Authenticate", `Bearer realm="::"`)
			w.WriteHeader(401)
		}), ctrmodel.FailedPrecondition, "realm"},
		{"odd token", func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/token") {
				w.Write([]byte("<html>"))
				return false
			}
			return answer("/manifests/", func(w http.ResponseWriter) {
				w.Header().Set("Www-Authenticate", `Bearer realm="http://`+r.Host+`/token"`)
				w.WriteHeader(401)
			})(w, r)
		}, ctrmodel.FailedPrecondition, "invalid character"},
		{"no digest", answer("/manifests/", func(w http.ResponseWriter) {
			w.Header().Set("Docker-Content-Digest", "none")
			manifest(v1.MediaTypeImageManifest, "{ }")(w)
		}), ctrmodel.FailedPrecondition, `digest "none"`},
		{"forbidden", answer("/manifests/", func(w http.ResponseWriter) { w.WriteHeader(403) }), ctrmodel.PermissionDenied, "403"},
		{"unknown", answer("/manifests/", func(w http.ResponseWriter) { w.WriteHeader(404) }), ctrmodel.NotFound, "404"},
		{"a page", answer("/manifests/", manifest("text/html", "<html>")), ctrmodel.FailedPrecondition, "text/html"},
		{"no JSON", answer("/manifests/", manifest(v1.MediaTypeImageManifest, "<html>")), ctrmodel.FailedPrecondition, "manifest"},
		{"nothing in it", answer("/manifests/", manifest(v1.MediaTypeImageManifest, "{}")), ctrmodel.FailedPrecondition, "not an image"},
		{"lie about the digest", answer("/manifests/", func(w http.ResponseWriter) {
			w.Header().Set("Docker-Content-Digest", good)
			manifest(v1.MediaTypeImageManifest, "{ }")(w)
		}), ctrmodel.FailedPrecondition, good},
		{"endless", answer("/manifests/", manifest(v1.MediaTypeImageManifest, strings.Repeat(" ", 5<<20))), ctrmodel.FailedPrecondition, "longer"},
		{"path as digest", answer("/manifests/", manifest(v1.MediaTypeImageManifest, layer(v1.MediaTypeImageLayer, "sha256:../../../etc/passwd", 1))), ctrmodel.FailedPrecondition, "not a SHA-256"},
		{"negative size", answer("/manifests/", manifest(v1.MediaTypeImageManifest, layer(v1.MediaTypeImageLayer, good, -1))), ctrmodel.FailedPrecondition, "size -1"},
		{"encrypted", answer("/manifests/", manifest(v1.MediaTypeImageManifest, layer(v1.MediaTypeImageLayerGzip+"+encrypted", good, 2))), ctrmodel.FailedPrecondition, "encrypted"},
		{"other thing", answer("/manifests/", manifest(v1.MediaTypeImageManifest, layer("application/x-chart", good, 2))), ctrmodel.FailedPrecondition, "application/x-chart"},
	} {
		t.Run(test.name, func(t *testing.T) {
			name := r.between(t, test.change).at(ref)
			begin := time.Now()
			_, err := s.Pull(t.Context(), name, nil)
			expect(t, err, test.kind, test.words, name)
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("took %v", took)
			}
			s.now = func() time.Time { return time.Now().Add(25 * time.Hour) }
			must(s.Collect(t.Context(), nil))(t)
			nothing(t, s)
		})
	}
}

func TestALayerThatIsNotWhatTheImageSaysIsNotUnpacked(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t)
	m := &image{blobs: map[digests.Digest][]byte{}}
	l := newLayer("app", 1000, 1)
	l.plain = append(slices.Clone(l.plain), 0)
	m.manifest(here, v1.ImageConfig{}, newLayer("base", 1000, 0), l)
	_, err := s.Pull(t.Context(), r.push(t, m, "app:1"), nil)
	expect(t, err, ctrmodel.FailedPrecondition, "is unpacked", "but the image says")
	nothing(t, s)

	m.manifest(here, v1.ImageConfig{}, layer{[]byte("no tar"), []byte("no gzip")})
	_, err = s.Pull(t.Context(), r.push(t, m, "app:2"), nil)
	expect(t, err, ctrmodel.FailedPrecondition, "app:2", "cannot unpack layer "+digests.FromString("no gzip").String())
	nothing(t, s)
}

// archived is a layer with the given entries.
func archived(t testing.TB, entries ...tar.Header) layer {
	t.Helper()
	var plain, packed bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, h := range entries {
		h.Mode |= 0o644
		ok(t, w.WriteHeader(&h))
		must(w.Write(make([]byte, h.Size)))(t)
	}
	ok(t, w.Close())
	z := gzip.NewWriter(&packed)
	must(z.Write(plain.Bytes()))(t)
	ok(t, z.Close())
	return layer{plain.Bytes(), packed.Bytes()}
}

func TestLayersStayInTheImage(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, d := start(t)
	outside := t.TempDir()
	dir := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755} }
	link := func(kind byte, name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: kind, Linkname: to}
	}
	m := &image{blobs: map[digests.Digest][]byte{}}
	m.manifest(here, v1.ImageConfig{}, archived(t, dir("d/"), tar.Header{Name: "d/hidden"}, tar.Header{Name: "gone"}, dir("o/"), tar.Header{Name: "o/old"}),
		archived(t, link(tar.TypeSymlink, "out", outside), tar.Header{Name: "out/escaped", Size: 1}, tar.Header{Name: "../../../../../../escaped", Size: 1},
			tar.Header{Name: "/absolute", Size: 1}, link(tar.TypeSymlink, "up", "../../../../.."), dir("up/escaped-dir/"),
			tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3},
			tar.Header{Name: ".wh.gone"}, tar.Header{Name: "d/.wh.hidden"}, tar.Header{Name: "o/.wh..wh..opq"}, tar.Header{Name: "o/new"}))
	img := must(s.Pull(t.Context(), r.push(t, m, "tricky:1"), nil))(t)

	mounts := must(s.Client.Snapshots.View(t.Context(), "look", img.ChainID, map[string]string{"containerd.io/gc.root": "test"}))(t)
	root := t.TempDir()
	ok(t, unix.Mount(mounts[0].Source, root, mounts[0].Type, unix.MS_RDONLY, strings.Join(mounts[0].Options, ",")))
	defer unix.Unmount(root, unix.MNT_DETACH)
	for path, want := range map[string]bool{"escaped": true, "absolute": true, "escaped-dir": true, outside + "/escaped": true, "null": true,
		"gone": false, "d": true, "d/hidden": false, "o/old": false, "o/new": true} {
		if _, err := os.Lstat(root + "/" + path); (err == nil) != want {
			t.Errorf("%s in the image: %v", path, err)
		}
	}
	for _, path := range []string{outside + "/escaped", "/escaped", "/absolute", "/escaped-dir", d.Dir + "/escaped"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was written", path)
		}
	}

	m.manifest(here, v1.ImageConfig{}, archived(t, link(tar.TypeLink, "users", "../../../../../../../../etc/passwd")))
	name := r.push(t, m, "tricky:2")
	_, err := s.Pull(t.Context(), name, nil)
	expect(t, err, ctrmodel.FailedPrecondition, name, "cannot unpack layer", "no such file")
	ok(t, unix.Unmount(root, 0))
	ok(t, s.Client.Snapshots.Remove(t.Context(), "look"))
	ok(t, s.Remove(t.Context(), img.Ref))
	nothing(t, s)
}

func TestTheDigestOfANameIsWhatIsPulled(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t)
	one, two := newImage(1), newImage(2)
	ref := r.push(t, one, "app:1")
	r.push(t, two, "app:1")
	for _, name := range []string{ref + "@" + one.root.Digest.String(), strings.TrimSuffix(ref, ":1") + "@" + one.root.Digest.String()} {
		if img := must(s.Pull(t.Context(), name, nil))(t); img.Digest != one.root.Digest.String() || img.Ref != name {
			t.Errorf("%s is %+v", name, img)
		}
	}
	liar := r.between(t, func(w http.ResponseWriter, req *http.Request) bool {
		req.URL.Path = strings.ReplaceAll(req.URL.Path, one.root.Digest.String(), two.root.Digest.String())
		return true
	})
	_, err := s.Pull(t.Context(), liar.at(ref)+"@"+one.root.Digest.String(), nil)
	expect(t, err, ctrmodel.FailedPrecondition, one.root.Digest.String(), two.root.Digest.String())
}

func TestThePlatformIsChosen(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	m := &image{blobs: map[digests.Digest][]byte{}}
	var index v1.Index
	index.Versioned, index.MediaType = specs.Versioned{SchemaVersion: 2}, v1.MediaTypeImageIndex
	for i, p := range []v1.Platform{{OS: "linux", Architecture: "arm", Variant: "v6"}, {OS: "linux", Architecture: "arm64"}, {OS: "linux", Architecture: "386"},
		{OS: "linux", Architecture: "arm", Variant: "v7"}, {OS: "unknown", Architecture: "unknown"}} {
		index.Manifests = append(index.Manifests, m.manifest(p, v1.ImageConfig{User: name(p)}, newLayer("x", 10, uint64(i))))
	}
	m.root = m.json(v1.MediaTypeImageIndex, index)
	ref := r.push(t, m, "many:1")
	s, _ := start(t)
	for platform, want := range map[string]string{"linux/arm64": "linux/arm64", "linux/arm/v7": "linux/arm/v7", "linux/arm": "linux/arm/v7",
		"linux/arm/v6": "linux/arm/v6", "linux/amd64": "linux/386", "linux/arm/v8": "linux/arm/v7"} {
		config := s.Config
		config.Platform = platform
		on := must(New(config))(t)
		if img := must(on.Refresh(t.Context(), ref, nil))(t); img.Config.User != want || img.Digest != m.root.Digest.String() {
			t.Errorf("%s gets %s", platform, img.Config.User)
		}
		collectGarbage(t, on)
		must(on.Get(t.Context(), ref))(t)
	}
	config := s.Config
	config.Platform = "linux/riscv64"
	on := must(New(config))(t)
	_, err := on.Refresh(t.Context(), ref, nil)
	expect(t, err, ctrmodel.FailedPrecondition, "linux/riscv64", "linux/386", "linux/arm64")
	single := &image{blobs: map[digests.Digest][]byte{}}
	single.manifest(v1.Platform{OS: "linux", Architecture: "s390x"}, v1.ImageConfig{}, newLayer("x", 10, 1))
	_, err = s.Pull(t.Context(), r.push(t, single, "single:1"), nil)
	expect(t, err, ctrmodel.FailedPrecondition, "single:1", "linux/s390x")
	if _, err := New(Config{Platform: "amd64"}); err == nil {
		t.Error("amd64 is not a platform")
	}
}

func TestManyPullAtOnce(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t)
	var blobs atomic.Int32
	counting := r.between(t, func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, "/blobs/") {
			blobs.Add(1)
		}
		return true
	})
	var refs []string
	for seed := range uint64(3) {
		refs = append(refs, counting.at(r.push(t, newImage(seed), fmt.Sprintf("app:%d", seed))))
	}
	var wait sync.WaitGroup
	for i := range 12 {
		wait.Go(func() {
			if img, err := s.Pull(t.Context(), refs[i%3], nil); err != nil || img.Config.Env[0] != fmt.Sprintf("SEED=%d", i%3) {
				t.Errorf("%v, image %+v", err, img)
			}
		})
	}
	wait.Wait()
	if n := blobs.Load(); n != 3*2+1 { // configuration and layer of each, and the base of all
		t.Errorf("asked for %d blobs, expected 7", n)
	}
	collectGarbage(t, s)
	for _, ref := range refs {
		img := must(s.Get(t.Context(), ref))(t)
		if got := files(t, s, img); len(got) != 2 {
			t.Errorf("files %v", got)
		}
	}
}

func TestWithoutSpaceNothingIsLeft(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t)
	ref := r.push(t, newImage(1), "app:1")
	var available atomic.Int64
	s.available = func() (int64, error) { return available.Load(), nil }
	s.Reserve = 1 << 30
	available.Store(s.Reserve + 6<<20) // enough for the layers, not for what they become
	_, err := s.Pull(t.Context(), ref, nil)
	expect(t, err, ctrmodel.ResourceExhausted, "not enough space", "reserve")
	nothing(t, s)

	// Two that fit only one after the other: the second is refused before it begins.
	available.Store(s.Reserve + 12<<20)
	begun, finish := make(chan bool), make(chan bool)
	held := r.between(t, func(_ http.ResponseWriter, req *http.Request) bool {
		if isBlob(req, app(1)) {
			close(begun)
			<-finish
		}
		return true
	})
	first := make(chan error)
	go func() {
		_, err := s.Pull(t.Context(), held.at(ref), nil)
		first <- err
	}()
	<-begun
	second := r.push(t, newImage(2), "app:2")
	_, err = s.Pull(t.Context(), second, nil)
	expect(t, err, ctrmodel.ResourceExhausted, "not enough space", "on its way")
	close(finish)
	ok(t, <-first)
	must(s.Pull(t.Context(), second, nil))(t)
	ok(t, s.Remove(t.Context(), held.at(ref)))
	ok(t, s.Remove(t.Context(), second))

	// It gets short on the way.
	available.Store(2 * s.Reserve)
	slow := r.between(t, func(w http.ResponseWriter, req *http.Request) bool {
		if isBlob(req, app(1)) {
			available.Store(s.Reserve - 1)
			cut(w, newLayer("app", 3<<20, 1).packed, 1<<20)
			<-req.Context().Done()
			return false
		}
		return true
	})
	_, err = s.Pull(t.Context(), slow.at(ref), nil)
	expect(t, err, ctrmodel.ResourceExhausted, "not enough space")
	nothing(t, s)
}

func TestAFullDiskLeavesNothing(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("SDVBOX_REQUIRE") == "1" {
			t.Fatal("a disk of its own needs root")
		}
		t.Skip("a disk of its own needs root")
	}
	r := startRegistry(t, false)
	m := &image{blobs: map[digests.Digest][]byte{}}
	var plain, packed bytes.Buffer // much that is packed well
	w := tar.NewWriter(&plain)
	ok(t, w.WriteHeader(&tar.Header{Name: "zeros", Mode: 0o644, Size: 64 << 20}))
	must(w.Write(make([]byte, 64<<20)))(t)
	ok(t, w.Close())
	z := gzip.NewWriter(&packed)
	must(z.Write(plain.Bytes()))(t)
	ok(t, z.Close())
	m.manifest(here, v1.ImageConfig{}, newLayer("base", 1000, 0), layer{plain.Bytes(), packed.Bytes()})
	ref := r.push(t, m, "zeros:1")

	disk := t.TempDir()
	ok(t, unix.Mount("disk", disk, "tmpfs", 0, "size=32m"))
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	t.Setenv("TMPDIR", disk)
	s, _ := start(t)
	s.available = func() (int64, error) { return 1 << 30, nil } // so that it is a surprise
	_, err := s.Pull(t.Context(), ref, nil)
	expect(t, err, ctrmodel.ResourceExhausted, "no space left")
	nothing(t, s)
	small := r.push(t, newImage(1), "app:1")
	must(s.Pull(t.Context(), small, nil))(t)
}

func TestImagesThatNothingUsesGo(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t, func(c *Config) { c.Expiry = 24 * time.Hour })
	ctx := t.Context()
	var refs []string
	for seed := range uint64(4) {
		img := must(s.Pull(ctx, r.push(t, newImage(seed), fmt.Sprintf("app:%d", seed)), nil))(t)
		refs = append(refs, img.Ref)
	}
	img := must(s.Get(ctx, refs[1]))(t)
	must(s.Client.Snapshots.Prepare(ctx, "c-snapshot", img.ChainID, map[string]string{"containerd.io/gc.root": "test"}))(t)
	used := map[string]bool{refs[0]: true}
	gone := func(want ...string) {
		t.Helper()
		removed := must(s.Collect(ctx, used))(t)
		if fmt.Sprint(removed) != fmt.Sprint(want) {
			t.Errorf("removed %q, expected %q", removed, want)
		}
	}
	gone()
	s.now = func() time.Time { return time.Now().Add(23 * time.Hour) }
	gone()
	unlock := must(s.locks.lock(ctx, "image "+refs[3]))(t)
	s.now = func() time.Time { return time.Now().Add(24 * time.Hour) }
	gone(refs[2]) // the others are used: by name, by a snapshot, by a pull
	unlock()
	unlock = must(s.locks.lock(ctx, "look "+refs[3]))(t)
	gone() // by somebody who has found it
	unlock()
	must(s.Pull(ctx, refs[3], nil))(t)
	s.Expiry = 0
	available := int64(-1)
	s.available = func() (int64, error) { return available, nil }
	gone() // there is no space, but it has just been wanted
	s.now = func() time.Time { return time.Now().Add(24*time.Hour + 11*time.Minute) }
	gone(refs[3])
	gone()
	for _, ref := range refs[:2] {
		if got := files(t, s, must(s.Get(ctx, ref))(t)); len(got) != 2 {
			t.Errorf("%s has the files %v", ref, got)
		}
	}

	// A pull that needs space makes room.
	available = 1 << 30
	third := must(s.Pull(ctx, refs[2], nil))(t)
	s.Used = func() map[string]bool { return used }
	s.now = func() time.Time { return time.Now().Add(24*time.Hour + 22*time.Minute) }
	available = 5 << 20
	_, err := s.Pull(ctx, refs[3], nil)
	expect(t, err, ctrmodel.ResourceExhausted) // it is not enough, but the try was worth it
	_, err = s.Get(ctx, third.Ref)
	expect(t, err, ctrmodel.NotFound)
}

func TestAnImageThatIsWantedAgainExpiresLater(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t, func(c *Config) { c.Expiry = 24 * time.Hour })
	ctx := t.Context()
	ref := r.push(t, newImage(1), "app:1")
	pulled := must(s.Pull(ctx, ref, nil))(t)
	begin := time.Now()
	for _, step := range []struct {
		after time.Duration
		do    func()
		used  map[string]bool
		gone  bool
	}{
		{23 * time.Hour, func() { must(s.Pull(ctx, ref, nil))(t) }, nil, false},
		{46 * time.Hour, func() { must(s.Refresh(ctx, ref, nil))(t) }, nil, false},
		{69 * time.Hour, func() { must(s.ByDigest(ctx, ref, pulled.Digest))(t) }, nil, false},
		{92 * time.Hour, func() {}, map[string]bool{ref: true}, false},
		{115 * time.Hour, func() {}, map[string]bool{pulled.Digest: true}, false},
		{138 * time.Hour, func() { s = must(New(s.Config))(t) }, nil, false}, // not wanted, but not for long
		{140 * time.Hour, func() {}, nil, true},
	} {
		s.now = func() time.Time { return begin.Add(step.after) }
		step.do()
		s.now = func() time.Time { return begin.Add(step.after) }
		if removed := must(s.Collect(ctx, step.used))(t); len(removed) > 0 != step.gone {
			t.Errorf("after %v removed %q", step.after, removed)
		}
	}
	nothing(t, s)
}

func TestWhatANameStoodForStaysForItsContainers(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t)
	ctx := t.Context()
	one, two := newImage(1).root.Digest.String(), newImage(2).root.Digest.String()
	asked, got := 0, 0
	counting := r.between(t, func(_ http.ResponseWriter, req *http.Request) bool {
		asked++
		if strings.Contains(req.URL.Path, "/app/") && req.Method == http.MethodGet {
			got++
		}
		return true
	})
	ref := counting.at(r.push(t, newImage(1), "team/app:1"))
	img := must(s.Pull(ctx, ref, nil))(t)
	must(s.Client.Snapshots.Prepare(ctx, "c-snapshot", img.ChainID, map[string]string{"containerd.io/gc.root": "test"}))(t)
	r.push(t, newImage(2), "team/app:1")
	got = 0
	if now := must(s.Resolve(ctx, ref))(t); now != two || got > 0 || must(s.Get(ctx, ref))(t).Digest != one {
		t.Errorf("%s stands for %s, want %s; %d documents asked for", ref, now, two, got)
	}
	if _, err := s.Resolve(ctx, ref+"9"); err == nil {
		t.Error("a tag that is not there stands for something")
	}
	must(s.Refresh(ctx, ref, nil))(t)
	asked = 0
	both := func() {
		t.Helper()
		for digest, env := range map[string]string{one: "SEED=1", two: "SEED=2"} {
			if img := must(s.ByDigest(ctx, ref, digest))(t); img.Digest != digest || img.Config.Env[0] != env {
				t.Errorf("%s is %+v", digest, img)
			}
		}
	}
	later := time.Now()
	collect := func(used map[string]bool, want ...string) {
		t.Helper()
		later = later.Add(11 * time.Minute)
		s.now = func() time.Time { return later }
		if removed := must(s.Collect(ctx, used))(t); fmt.Sprint(removed) != fmt.Sprint(want) {
			t.Errorf("removed %q, want %q", removed, want)
		}
	}
	collect(nil)
	collectGarbage(t, s)
	ok(t, s.Client.Snapshots.Remove(ctx, "c-snapshot"))
	collect(map[string]bool{one: true}) // an agent may want to go back to it
	both()
	if asked != 0 {
		t.Errorf("asked %d times for what is here", asked)
	}
	// It has been wanted by its digest: now it is an image like others.
	collect(nil)
	r.push(t, newImage(3), "team/app:1")
	must(s.Refresh(ctx, ref, nil))(t)
	pinned := counting.at(strings.TrimSuffix(ref, ":1")) + "@"
	collect(nil, pinned+two)
	ok(t, s.Remove(ctx, pinned+one))
	both() // from the registry, which has them still
	if asked == 0 {
		t.Error("where do they come from?")
	}
	_, err := s.ByDigest(ctx, ref, newImage(4).root.Digest.String())
	expect(t, err, ctrmodel.NotFound, newImage(4).root.Digest.String())
	if img := must(s.ByDigest(ctx, ref, ""))(t); img.Config.Env[0] != "SEED=3" {
		t.Errorf("without a digest: %+v", img)
	}
	_, err = s.ByDigest(ctx, ref, "sha256:1")
	expect(t, err, ctrmodel.InvalidArgument, "sha256:1")
}

// However slow the registry is, a container can be made of what is here, and started.
func TestAnImageThatIsBeingRefreshedCanBeUsed(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t, func(c *Config) { c.Expiry = time.Minute })
	begun, finish := make(chan bool), make(chan bool)
	held := r.between(t, func(_ http.ResponseWriter, req *http.Request) bool {
		if isBlob(req, app(2)) {
			close(begun)
			select {
			case <-finish:
			case <-req.Context().Done():
			}
		}
		return true
	})
	ref := held.at(r.push(t, newImage(1), "app:1"))
	old := must(s.Pull(t.Context(), ref, nil))(t)
	r.push(t, newImage(2), "app:1")
	refreshed := make(chan error)
	go func() {
		_, err := s.Refresh(t.Context(), ref, nil)
		refreshed <- err
	}()
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), ctrd.Patient(5*time.Second))
	defer cancel()
	for what, use := range map[string]func() (Image, error){
		"by its name":   func() (Image, error) { return s.Pull(ctx, ref, nil) },
		"by its digest": func() (Image, error) { return s.ByDigest(ctx, ref, old.Digest) },
	} {
		if img, err := use(); err != nil || img.ChainID != old.ChainID {
			t.Errorf("%s: %v, %+v", what, err, img)
		}
	}
	s.now = func() time.Time { return time.Now().Add(time.Hour) }
	if removed := must(s.Collect(t.Context(), nil))(t); len(removed) > 0 {
		t.Errorf("removed %q, of which another one is coming", removed)
	}
	close(finish)
	ok(t, <-refreshed)
	for digest, env := range map[string]string{old.Digest: "SEED=1", newImage(2).root.Digest.String(): "SEED=2"} {
		if img := must(s.ByDigest(t.Context(), ref, digest))(t); img.Config.Env[0] != env {
			t.Errorf("%s is %+v", digest, img)
		}
	}
}

func TestTLSOfARegistry(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t)
	ref := r.push(t, newImage(1), "app:1")
	secure := httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.host}))
	secure.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	secure.StartTLS()
	defer secure.Close()
	ca := t.TempDir() + "/ca.crt"
	ok(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600))
	host := strings.TrimPrefix(secure.URL, "https://")
	name := (&server{host: host}).at(ref)

	s.SetRegistries(map[string]Registry{host: {Transport: Transport{RootCA: ca + ".missing"}}}, nil)
	_, err := s.Pull(t.Context(), name, nil)
	expect(t, err, ctrmodel.FailedPrecondition, ca+".missing")
	other := t.TempDir() + "/other.crt"
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
	ok(t, os.WriteFile(other, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	s.SetRegistries(map[string]Registry{host: {Transport: Transport{RootCA: other}}}, nil)
	_, err = s.Pull(t.Context(), name, nil)
	expect(t, err, ctrmodel.FailedPrecondition, "certificate")
	s.SetRegistries(map[string]Registry{host: {Transport: Transport{RootCA: ca}}}, nil)
	img := must(s.Pull(t.Context(), name, nil))(t)
	ok(t, s.Remove(t.Context(), img.Ref))

	s.SetRegistries(nil, []string{"127.0.0.1"}) // TLS that is not verified
	must(s.Pull(t.Context(), name, nil))(t)
	// HTTP where TLS is expected is not fallen back to.
	s.SetRegistries(map[string]Registry{r.host: {Transport: Transport{RootCA: ca}}}, nil)
	_, err = s.Pull(t.Context(), ref, nil)
	expect(t, err, ctrmodel.FailedPrecondition, "does not talk TLS")
}

func TestARegistryWithTokens(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t)
	ref := r.push(t, newImage(1), "app:1")
	var host string
	guarded := r.between(t, func(w http.ResponseWriter, req *http.Request) bool {
		if req.URL.Path == "/token" {
			if u, p, _ := req.BasicAuth(); u != user || p != password {
				w.WriteHeader(401)
			} else if scope := req.URL.Query().Get("scope"); scope != "repository:app:pull" {
				w.WriteHeader(400)
			} else {
				w.Write([]byte(`{"token":"t1"}`))
			}
			return false
		}
		if req.Header.Get("Authorization") != "Bearer t1" {
			w.Header().Set("Www-Authenticate", `Bearer realm="http://`+host+`/token",service="test"`)
			w.WriteHeader(401)
			return false
		}
		return true
	})
	host = guarded.host
	_, err := s.Pull(t.Context(), guarded.at(ref), nil)
	expect(t, err, ctrmodel.Unauthenticated)
	s.SetRegistries(map[string]Registry{host: {Credentials: Credentials{user, password}}}, nil)
	must(s.Pull(t.Context(), guarded.at(ref), nil))(t)
}

func TestWhatIsNotThere(t *testing.T) {
	t.Parallel()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	closed := l.Addr().String()
	l.Close()
	s, d := start(t, func(c *Config) { c.Patience = time.Second })
	_, err := s.Pull(t.Context(), closed+"/app:1", nil)
	expect(t, err, ctrmodel.Unavailable, closed)
	for _, name := range []string{"", "busybox", "team/app:1", "registry.example/", "registry.example/App:1", "registry.example/app:", "registry.example/a@sha256:1", "registry.example/a b"} {
		_, err := s.Pull(t.Context(), name, nil)
		expect(t, err, ctrmodel.InvalidArgument, "image name")
	}
	d.Kill()
	for _, f := range []func() error{
		func() error { _, err := s.Pull(t.Context(), closed+"/app:1", nil); return err },
		func() error { _, err := s.Get(t.Context(), closed+"/app:1"); return err },
		func() error { _, err := s.List(t.Context()); return err },
		func() error { _, err := s.Collect(t.Context(), nil); return err },
	} {
		expect(t, f(), ctrmodel.Unavailable)
	}
}
