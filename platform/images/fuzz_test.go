// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	digests "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"

	"sdvbox/platform/ctrmodel"
)

// says is a registry, or what gives tokens for it, with one answer to everything.
type says func(*http.Request) *http.Response

func (s says) RoundTrip(r *http.Request) (*http.Response, error) { return s(r), nil }

func FuzzRegistryAnswers(f *testing.F) {
	f.Add(200, "Content-Type: "+v1.MediaTypeImageManifest+"\nDocker-Content-Digest: "+digests.FromString("{}").String(), "{}", 0)
	f.Add(200, "Content-Type: "+v1.MediaTypeImageManifest+"\nDocker-Content-Digest: none", "{}", 0)
	f.Add(206, "Content-Range: bytes 1-1/2", "}", 1)
	f.Add(401, `Www-Authenticate: Bearer realm="http://r.example/token",service="s",scope="repository:a:pull"`, `{"token":"t"}`, 0)
	f.Add(401, `Www-Authenticate: Basic realm="x"`, `<html>`, 0)
	f.Add(429, "Retry-After: 1", `{"errors":[{"code":"TOOMANYREQUESTS"}]}`, 0)
	ref, err := parseRef("r.example/a:1")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, status int, headers, body string, offset int) {
		asked := 0
		client := &http.Client{Transport: says(func(r *http.Request) *http.Response {
			if asked++; asked > 20 {
				t.Fatalf("asks again and again: %s", r.URL)
			}
			resp := &http.Response{Request: r, StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: -1}
			if strings.Contains(r.URL.Path, "token") {
				resp.StatusCode = 200
			}
			for line := range strings.Lines(headers) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
				resp.Header.Add(key, value)
			}
			return resp
		})}
		base := &url.URL{Scheme: "http", Host: "r.example", Path: "/v2/a"}
		l := &login{Client: &auth.Client{Client: client}, ref: ref, base: base, password: basic(Credentials{"u", "p"})}
		r := &repository{ref, ref.Registry, base.String(), l, nil, time.Minute}
		if d, data, err := r.root(t.Context()); err == nil && (d.Digest != digests.FromBytes(data) || !isManifest(d.MediaType) && !isIndex(d.MediaType)) {
			t.Errorf("took %+v for %q", d, data)
		} else if err != nil && ctrmodel.KindOf(err) == ctrmodel.Internal {
			t.Errorf("%v has no kind", err)
		}
		want := v1.Descriptor{Digest: digests.FromString(body), Size: int64(len(body))}
		from := min(max(offset, 0), len(body))
		got, err := r.open(t.Context(), want, int64(from))
		if err != nil {
			return
		}
		defer got.Close()
		data, err := io.ReadAll(got)
		if err == nil && status == 200 && string(data) != body[from:] {
			t.Errorf("got %q from %d on, want %q", data, from, body)
		}
	})
}

func FuzzCompressedArchives(f *testing.F) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	w.WriteHeader(&tar.Header{Name: "index.json", Size: 2})
	w.Write([]byte("{}"))
	w.Close()
	z.Close()
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:b.Len()/2])
	s, err := New(Config{Platform: "linux/amd64", Root: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file := t.TempDir() + "/archive"
		ok(t, os.WriteFile(file, data, 0o600))
		a, err := s.openArchive(file)
		if err == nil {
			_, err = a.images()
			a.Close()
		}
		if err != nil && ctrmodel.KindOf(err) == ctrmodel.Internal {
			t.Errorf("error %v is not about the archive", err)
		}
	})
}

func FuzzImageDocuments(f *testing.F) {
	m := newImage(1)
	for _, data := range m.blobs {
		if len(data) < 10_000 {
			f.Add(data)
		}
	}
	f.Add([]byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","platform":{"os":"linux","architecture":"amd64"}}]}`))
	s, err := New(Config{Platform: "linux/amd64"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if d, err := s.choose(data); err == nil && d.Digest.Validate() != nil {
			t.Errorf("chose %+v", d)
		}
		config, layers, err := parseManifest(v1.MediaTypeImageManifest, data)
		if err != nil {
			return
		}
		p := &parts{config: config, layers: layers}
		for _, d := range append([]v1.Descriptor{config}, layers...) {
			if d.Digest.Validate() != nil || d.Size < 0 {
				t.Errorf("accepted %+v", d)
			}
		}
		if s.parseConfig(data, p) == nil {
			chainID(p.diffIDs)
		}
	})
}

func FuzzNames(f *testing.F) {
	for _, name := range []string{"registry.example/app:1", "localhost/a", "127.0.0.1:5000/a/b@" + digests.FromString("").String()} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if ref, err := parseRef(name); err == nil && (ref.Registry == "" || ref.Repository == "" || ref.Reference == "") {
			t.Errorf("%q is %+v", name, ref)
		}
	})
}

func FuzzArchives(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, file := range [][2]string{
		{"index.json", `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + digests.FromString("").String() + `","annotations":{"org.opencontainers.image.ref.name":"r.example/a:1"}}]}`},
		{"manifest.json", `[{"Config":"c","RepoTags":["r.example/a:1"],"Layers":["c"]}]`},
		{"c", "{}"},
	} {
		w.WriteHeader(&tar.Header{Name: file[0], Size: int64(len(file[1]))})
		w.Write([]byte(file[1]))
	}
	w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		files, err := newTarFS(bytes.NewReader(data))
		if err != nil {
			return
		}
		a := &archive{FS: files, made: map[digests.Digest][]byte{}, paths: map[digests.Digest]string{}}
		for _, list := range []func() ([]namedImage, error){a.images, a.dockerImages} {
			images, err := list()
			for _, i := range images {
				if err != nil || check(i.root) != nil {
					t.Errorf("%v, image %+v", err, i)
				}
				if r, err := a.source(t.Context(), i.root, 0); err == nil {
					io.Copy(io.Discard, r)
					r.Close()
				}
			}
		}
	})
}
