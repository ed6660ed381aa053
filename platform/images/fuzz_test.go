// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"io"
	"testing"

	digests "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

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
