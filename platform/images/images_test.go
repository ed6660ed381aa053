// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	digests "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/ctrd"
)

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		ok(t, err)
		return v
	}
}

// expect checks the kind of an error, and that it says all of the words.
func expect(t testing.TB, err error, kind ctrmodel.Kind, words ...string) {
	t.Helper()
	if err == nil || ctrmodel.KindOf(err) != kind {
		t.Fatalf("error %v is of kind %d, expected %d", err, ctrmodel.KindOf(err), kind)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q has several lines", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

// start gives a store on a containerd of its own.
func start(t testing.TB, change ...func(*Config)) (*Store, *ctrd.Daemon) {
	t.Helper()
	d := ctrd.Start(t)
	c := containerd.New(d.Socket, "sdvbox-images")
	t.Cleanup(func() { c.Close() })
	ok(t, c.CreateNamespace(t.Context()))
	config := Config{Client: c, Root: d.Dir, Stall: 10 * time.Second, Patience: 20 * time.Second, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, f := range change {
		f(&config)
	}
	return must(New(config))(t), d
}

// image is an image in memory.
type image struct {
	blobs map[digests.Digest][]byte
	root  v1.Descriptor
}

func (m *image) put(mediaType string, data []byte) v1.Descriptor {
	d := v1.Descriptor{MediaType: mediaType, Digest: digests.FromBytes(data), Size: int64(len(data))}
	m.blobs[d.Digest] = data
	return d
}

func (m *image) json(mediaType string, v any) v1.Descriptor {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return m.put(mediaType, data)
}

type layer struct{ plain, packed []byte }

var layers sync.Map // made once

// newLayer is a layer with one file, which has random bytes.
func newLayer(name string, size int, seed uint64) layer {
	key := fmt.Sprint(name, size, seed)
	if l, made := layers.Load(key); made {
		return l.(layer)
	}
	l := makeLayer(name, size, seed)
	layers.Store(key, l)
	return l
}

func makeLayer(name string, size int, seed uint64) layer {
	random := rand.NewChaCha8([32]byte{byte(seed)})
	content := make([]byte, size)
	random.Read(content)
	var plain, packed bytes.Buffer
	w := tar.NewWriter(&plain)
	w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(size)})
	w.Write(content)
	w.Close()
	z := gzip.NewWriter(&packed)
	z.Write(plain.Bytes())
	z.Close()
	return layer{plain.Bytes(), packed.Bytes()}
}

var here = v1.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}

// manifest adds an image of the layers to m.
func (m *image) manifest(p v1.Platform, config v1.ImageConfig, layers ...layer) v1.Descriptor {
	c := v1.Image{Platform: p, Config: config, RootFS: v1.RootFS{Type: "layers"}}
	manifest := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digests.FromBytes(l.plain))
		manifest.Layers = append(manifest.Layers, m.put(v1.MediaTypeImageLayerGzip, l.packed))
	}
	manifest.Config = m.json(v1.MediaTypeImageConfig, c)
	m.root = m.json(v1.MediaTypeImageManifest, manifest)
	m.root.Platform = &p
	return m.root
}

// newImage is an image of two layers, of which the second is different for each seed.
func newImage(seed uint64) *image {
	m := &image{blobs: map[digests.Digest][]byte{}}
	m.manifest(here, v1.ImageConfig{Cmd: []string{"/bin/app"}, Env: []string{fmt.Sprintf("SEED=%d", seed)}}, newLayer("base", 1000, 0), newLayer("app", 3<<20, seed))
	return m
}

// server is a real registry, on loopback.
type server struct {
	host string
	auth *auth.Client
	stop func()
}

const (
	user, password = "bob", "s3cret pa:ss"
	passwordHash   = `$2a$04$Om4w5lzWAftChAimW7bb2ePHmP9gAsWlkrjWh9x2rqbIW1podcxy.` // by bcrypt with the lowest cost
)

// startRegistry starts docker-registry, with the password if it is wanted.
func startRegistry(t testing.TB, protected bool) *server {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		if os.Getenv("SDVBOX_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip("docker-registry is not installed")
	}
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	r := &server{host: l.Addr().String(), auth: &auth.Client{Cache: auth.NewCache()}}
	l.Close()
	dir := t.TempDir()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}\nhttp: {addr: %q}\n", dir+"/data", r.host)
	if protected {
		ok(t, os.WriteFile(dir+"/users", []byte(user+":"+passwordHash+"\n"), 0o600))
		config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %q}}\n", dir+"/users")
		r.auth.Credential = auth.StaticCredential(r.host, auth.Credential{Username: user, Password: password})
	}
	ok(t, os.WriteFile(dir+"/config.yml", []byte(config), 0o600))
	cmd := exec.Command(program, "serve", dir+"/config.yml")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	ok(t, cmd.Start())
	r.stop = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			t.Logf("registry said:\n%s", &log)
		}
	})
	for range 500 {
		if resp, err := http.Get("http://" + r.host + "/v2/"); err == nil {
			resp.Body.Close()
			return r
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the registry does not listen")
	return nil
}

// push puts an image there, and returns its name.
func (r *server) push(t testing.TB, m *image, path string) string {
	t.Helper()
	name := r.host + "/" + path
	repo := must(remote.NewRepository(name))(t)
	repo.PlainHTTP, repo.Client = true, r.auth
	var push func(d v1.Descriptor)
	push = func(d v1.Descriptor) {
		var links struct {
			Config    *v1.Descriptor
			Layers    []v1.Descriptor
			Manifests []v1.Descriptor
		}
		if isManifest(d.MediaType) || isIndex(d.MediaType) {
			json.Unmarshal(m.blobs[d.Digest], &links)
		}
		for _, child := range append(links.Layers, links.Manifests...) {
			push(child)
		}
		if links.Config != nil {
			push(*links.Config)
		}
		if exists, err := repo.Exists(t.Context(), d); err == nil && !exists {
			ok(t, repo.Push(t.Context(), d, bytes.NewReader(m.blobs[d.Digest])))
		}
	}
	push(m.root)
	ok(t, repo.Tag(t.Context(), m.root, repo.Reference.Reference))
	return name
}

// between is a registry whose answers a test changes on the way. change returns false if it has answered itself.
func (r *server) between(t testing.TB, change func(w http.ResponseWriter, r *http.Request) bool) *server {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.host})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if change(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return &server{host: strings.TrimPrefix(s.URL, "http://")}
}

// at is the name of an image in another registry.
func (r *server) at(name string) string { return r.host + name[strings.Index(name, "/"):] }

// files is what can be seen in a snapshot on top of an image.
func files(t testing.TB, s *Store, img Image) map[string]int64 {
	t.Helper()
	key := "look at " + img.Ref
	mounts := must(s.Client.Snapshots.View(t.Context(), key, img.ChainID, map[string]string{"containerd.io/gc.root": "test"}))(t)
	defer s.Client.Snapshots.Remove(context.WithoutCancel(t.Context()), key)
	var dirs []string
	for _, o := range mounts[0].Options {
		if lower, found := strings.CutPrefix(o, "lowerdir="); found {
			dirs = strings.Split(lower, ":")
		}
	}
	if mounts[0].Type == "bind" {
		dirs = []string{mounts[0].Source}
	}
	found := map[string]int64{}
	for _, dir := range dirs {
		for _, e := range must(os.ReadDir(dir))(t) {
			found[e.Name()] = must(e.Info())(t).Size()
		}
	}
	return found
}

// nothing checks that containerd has nothing left.
func nothing(t testing.TB, s *Store) {
	t.Helper()
	ctx := t.Context()
	for range 50 {
		blobs := must(s.Client.Content.List(ctx))(t)
		ingests := must(s.Client.Content.Ingests(ctx))(t)
		snapshots := must(s.Client.Snapshots.List(ctx))(t)
		leases := must(s.Client.Leases.List(ctx))(t)
		names := must(s.Client.Images.List(ctx))(t)
		if len(blobs)+len(ingests)+len(snapshots)+len(leases)+len(names) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("left: blobs %v, ingests %v, snapshots %v, leases %v, images %v", must(s.Client.Content.List(ctx))(t), must(s.Client.Content.Ingests(ctx))(t),
		must(s.Client.Snapshots.List(ctx))(t), must(s.Client.Leases.List(ctx))(t), must(s.Client.Images.List(ctx))(t))
}

// collectGarbage lets containerd collect what nothing holds.
func collectGarbage(t testing.TB, s *Store) {
	t.Helper()
	ok(t, s.Client.Leases.Create(t.Context(), "garbage", nil))
	ok(t, s.Client.Leases.Delete(t.Context(), "garbage", true))
}

func TestPullWithAPasswordGivesAnImageToRun(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, true)
	s, d := start(t)
	m := newImage(1)
	ref := r.push(t, m, "team/app:1")
	ctx := t.Context()

	_, err := s.Pull(ctx, ref, nil)
	expect(t, err, ctrmodel.Unauthenticated, r.host)
	s.SetRegistries(map[string]Registry{r.host: {Credentials: Credentials{user, "wrong"}}}, nil)
	_, err = s.Pull(ctx, ref, nil)
	expect(t, err, ctrmodel.Unauthenticated, r.host)
	if strings.Contains(err.Error(), "wrong") {
		t.Errorf("the error tells the password: %v", err)
	}
	nothing(t, s)
	_, err = s.Get(ctx, ref)
	expect(t, err, ctrmodel.NotFound, ref)

	s.SetRegistries(map[string]Registry{r.host: {Credentials: Credentials{user, password}}}, nil)
	var phases []string
	var last ctrmodel.Progress
	img := must(s.Pull(ctx, ref, func(p ctrmodel.Progress) {
		if p.Phase != last.Phase {
			phases = append(phases, p.Phase)
		}
		last = p
	}))(t)
	if got := strings.Join(phases, " "); got != "resolving downloading unpacking" || last.Done != last.Total || last.Total < 3<<20 {
		t.Errorf("phases %s, at the end %+v", got, last)
	}
	if img.Ref != ref || img.Digest != m.root.Digest.String() || img.Config.Env[0] != "SEED=1" || img.Size < 3<<20 || time.Since(img.Created) > time.Minute {
		t.Errorf("image %+v", img)
	}
	if got := files(t, s, img); got["base"] != 1000 || got["app"] != 3<<20 {
		t.Errorf("files %v", got)
	}
	if again := must(s.Get(ctx, ref))(t); fmt.Sprint(again) != fmt.Sprint(img) {
		t.Errorf("got %+v, pulled %+v", again, img)
	}

	// It stays when garbage is collected, all of it, and another client agrees that it is complete.
	collectGarbage(t, s)
	if left := must(s.Client.Leases.List(ctx))(t); len(left) != 0 {
		t.Errorf("leases %+v", left[0])
	}
	if blobs := must(s.Client.Content.List(ctx))(t); len(blobs) != 4 {
		t.Errorf("%d blobs, expected 4", len(blobs))
	}
	if got := files(t, s, img); len(got) != 2 {
		t.Errorf("files %v", got)
	}
	if path, err := exec.LookPath("ctr"); err == nil {
		out, err := exec.Command(path, "-a", d.Socket, "-n", "sdvbox-images", "images", "check").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "complete (3/3)") || !strings.Contains(string(out), "true") {
			t.Errorf("ctr says %v:\n%s", err, out)
		}
	} else if os.Getenv("SDVBOX_REQUIRE") == "1" {
		t.Error(err)
	}
	if list := must(s.List(ctx))(t); len(list) != 1 || list[0].Digest != img.Digest {
		t.Errorf("list %+v", list)
	}

	ok(t, s.Remove(ctx, ref))
	expect(t, s.Remove(ctx, ref), ctrmodel.NotFound)
	nothing(t, s)
}

func TestAnImageThatIsHereIsNotAskedFor(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t)
	ref := r.push(t, newImage(1), "app:1")
	asked := 0
	counting := r.between(t, func(http.ResponseWriter, *http.Request) bool { asked++; return true })
	ref = counting.at(ref)
	first := must(s.Pull(t.Context(), ref, nil))(t)
	if asked == 0 {
		t.Fatal("nobody has been asked")
	}
	asked = 0
	r.push(t, newImage(2), "app:1")
	second := must(s.Pull(t.Context(), ref, nil))(t)
	if asked != 0 || second.Digest != first.Digest {
		t.Errorf("asked %d times, has %s, then %s", asked, first.Digest, second.Digest)
	}
	third := must(s.Refresh(t.Context(), ref, nil))(t)
	if third.Digest != newImage(2).root.Digest.String() || third.Config.Env[0] != "SEED=2" {
		t.Errorf("refreshed to %+v", third)
	}

	// What only other clients have brought here, and not unpacked, is unpacked.
	ok(t, s.Client.Snapshots.Remove(t.Context(), third.ChainID))
	asked = 0
	fourth := must(s.Pull(t.Context(), ref, nil))(t)
	if got := files(t, s, fourth); asked != 0 || got["app"] != 3<<20 {
		t.Errorf("asked %d times, files %v", asked, got)
	}

	// What has lost a part is completed.
	ok(t, s.Client.Snapshots.Remove(t.Context(), third.ChainID))
	ok(t, s.Client.Content.Delete(t.Context(), digests.FromBytes(newLayer("app", 3<<20, 2).packed).String()))
	fifth := must(s.Pull(t.Context(), ref, nil))(t)
	if got := files(t, s, fifth); got["app"] != 3<<20 {
		t.Errorf("files %v", got)
	}
}

// archive writes an image as a layout of OCI.
func (m *image) layout(t testing.TB, dir string, annotations map[string]string) {
	t.Helper()
	ok(t, os.MkdirAll(dir+"/blobs/sha256", 0o755))
	for d, data := range m.blobs {
		ok(t, os.WriteFile(dir+"/blobs/sha256/"+d.Encoded(), data, 0o644))
	}
	root := m.root
	root.Annotations = annotations
	ok(t, os.WriteFile(dir+"/index.json", must(json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []v1.Descriptor{root}}))(t), 0o644))
	ok(t, os.WriteFile(dir+"/oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
}

func archiveOf(t testing.TB, dir, file string, wrap func(io.Writer) io.WriteCloser) string {
	t.Helper()
	f := must(os.Create(file))(t)
	defer f.Close()
	w := wrap(f)
	tw := tar.NewWriter(w)
	ok(t, tw.AddFS(os.DirFS(dir)))
	ok(t, tw.Close())
	ok(t, w.Close())
	return file
}

type noClose struct{ io.Writer }

func (noClose) Close() error { return nil }

func TestArchivesAreImported(t *testing.T) {
	t.Parallel()
	s, _ := start(t)
	dir := t.TempDir()
	ctx := t.Context()
	m := newImage(3)
	m.layout(t, dir+"/layout", map[string]string{v1.AnnotationRefName: "registry.example/app:1"})
	saved := dir + "/saved"
	ok(t, os.MkdirAll(saved+"/abc", 0o755))
	l := newLayer("file", 500, 4)
	ok(t, os.WriteFile(saved+"/abc/layer.tar", l.plain, 0o644))
	ok(t, os.WriteFile(saved+"/config.json", must(json.Marshal(v1.Image{Platform: here, RootFS: v1.RootFS{Type: "layers", DiffIDs: []digests.Digest{digests.FromBytes(l.plain)}}}))(t), 0o644))
	ok(t, os.WriteFile(saved+"/manifest.json", []byte(`[{"Config":"config.json","RepoTags":["registry.example/app:1"],"Layers":["abc/layer.tar"]}]`), 0o644))
	plain := func(w io.Writer) io.WriteCloser { return noClose{w} }
	for _, test := range []struct {
		name, path string
		want       map[string]int64
	}{
		{"directory", dir + "/layout", map[string]int64{"base": 1000, "app": 3 << 20}},
		{"tar", archiveOf(t, dir+"/layout", dir+"/a.tar", plain), map[string]int64{"base": 1000, "app": 3 << 20}},
		{"tar.gz", archiveOf(t, dir+"/layout", dir+"/a.tar.gz", func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }), map[string]int64{"base": 1000, "app": 3 << 20}},
		{"docker save", archiveOf(t, saved, dir+"/b.tar", plain), map[string]int64{"file": 500}},
	} {
		t.Run(test.name, func(t *testing.T) {
			list := must(s.Import(ctx, test.path))(t)
			if len(list) != 1 || list[0].Ref != "registry.example/app:1" {
				t.Fatalf("imported %+v", list)
			}
			collectGarbage(t, s)
			img := must(s.Pull(ctx, list[0].Ref, nil))(t) // there is no such registry, but the image is here
			if got := files(t, s, img); fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("files %v, expected %v", got, test.want)
			}
			ok(t, s.Remove(ctx, img.Ref))
			nothing(t, s)
		})
	}
	if left := must(filepath.Glob(s.Root + "/.archive*"))(t); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestAnArchiveWithAnImageThatIsHereChangesNothing(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	var offline atomic.Bool
	s, _ := start(t, func(c *Config) {
		c.Verify = func(context.Context, *remote.Repository, v1.Descriptor) error {
			if offline.Load() {
				return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "nobody can tell")
			}
			return nil
		}
	})
	ctx := t.Context()
	ref := r.push(t, newImage(1), "app:1")
	img := must(s.Pull(ctx, ref, nil))(t)
	offline.Store(true)
	dir := t.TempDir()
	for seed := range uint64(2) {
		newImage(seed+1).layout(t, fmt.Sprint(dir, "/", seed+1), map[string]string{v1.AnnotationRefName: ref})
	}
	must(s.Import(ctx, dir+"/1"))(t)
	if again := must(s.ByDigest(ctx, ref, img.Digest))(t); again.ChainID != img.ChainID {
		t.Errorf("%+v, before %+v", again, img)
	}
	must(s.Import(ctx, dir+"/2"))(t) // of which nobody has seen a signature
	_, err := s.Pull(ctx, ref, nil)
	expect(t, err, ctrmodel.FailedPrecondition, "nobody can tell")
}

func TestArchivesThatAreWrongLeaveNothing(t *testing.T) {
	t.Parallel()
	s, _ := start(t)
	dir := t.TempDir()
	named := map[string]string{"io.containerd.image.name": "registry.example/app:1"}
	make := func(name string, annotations map[string]string, change func(dir string, m *image)) string {
		m := newImage(5)
		m.layout(t, dir+"/"+name, annotations)
		change(dir+"/"+name, m)
		return dir + "/" + name
	}
	blob := func(d digests.Digest) string { return "/blobs/sha256/" + d.Encoded() }
	app := digests.FromBytes(newLayer("app", 3<<20, 5).packed)
	ok(t, os.WriteFile(dir+"/text", []byte(strings.Repeat("no archive ", 100)), 0o644))
	ok(t, os.WriteFile(dir+"/app.tar.zst", []byte("\x28\xb5\x2f\xfd\x04\x00"), 0o644))
	ok(t, os.Mkdir(dir+"/empty", 0o755))
	for _, test := range []struct {
		path  string
		kind  ctrmodel.Kind
		words string
	}{
		{dir + "/missing", ctrmodel.NotFound, "no such file"},
		{dir + "/text", ctrmodel.FailedPrecondition, "tar"},
		{dir + "/app.tar.zst", ctrmodel.FailedPrecondition, "compressed with zstd"},
		{dir + "/empty", ctrmodel.FailedPrecondition, "neither index.json nor manifest.json"},
		{make("nameless", map[string]string{v1.AnnotationRefName: "latest"}, func(string, *image) {}), ctrmodel.FailedPrecondition, "full name"},
		{make("missing-layer", named, func(dir string, m *image) { os.Remove(dir + blob(app)) }), ctrmodel.FailedPrecondition, app.String()},
		{make("short-layer", named, func(dir string, m *image) { os.Truncate(dir+blob(app), 100) }), ctrmodel.FailedPrecondition, "100 bytes"},
		{make("wrong-layer", named, func(dir string, m *image) {
			os.WriteFile(dir+blob(app), bytes.Repeat([]byte("x"), len(m.blobs[app])), 0o644)
		}), ctrmodel.FailedPrecondition, app.String()},
		{make("wrong-manifest", named, func(dir string, m *image) {
			os.WriteFile(dir+blob(m.root.Digest), bytes.Repeat([]byte("x"), int(m.root.Size)), 0o644)
		}), ctrmodel.FailedPrecondition, "not what has been sent"},
	} {
		t.Run(filepath.Base(test.path), func(t *testing.T) {
			_, err := s.Import(t.Context(), test.path)
			expect(t, err, test.kind, test.words)
			nothing(t, s)
		})
	}
}
