// SPDX-License-Identifier: Apache-2.0

package ctragent

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image in memory.
type Image struct {
	Ref      string
	Manifest v1.Descriptor
	Layer    v1.Descriptor // the only one
	Blobs    map[digest.Digest][]byte
}

// NewImage makes an image with some files, which are programs.
func NewImage(ref string, config v1.ImageConfig, files map[string][]byte) *Image {
	layer := pack(files)
	return LayerImage(ref, config, v1.MediaTypeImageLayer, layer, layer)
}

// LayerImage makes an image of a layer, which need not be what it claims to be.
func LayerImage(ref string, config v1.ImageConfig, mediaType string, packed, plain []byte) *Image {
	i := &Image{Ref: ref, Blobs: map[digest.Digest][]byte{}}
	i.Layer = i.add(mediaType, packed)
	i.Manifest = i.add(v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{i.Layer},
		Config: i.add(v1.MediaTypeImageConfig, v1.Image{
			Platform: v1.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}, Config: config,
			RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(plain)}},
		}),
	})
	return i
}

func (i *Image) add(mediaType string, v any) v1.Descriptor {
	data, ok := v.([]byte)
	if !ok {
		data, _ = json.Marshal(v)
	}
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	i.Blobs[d.Digest] = data
	return d
}

// Archive packs images as an OCI archive.
func Archive(images ...*Image) []byte {
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	for _, i := range images {
		d := i.Manifest
		d.Annotations = map[string]string{"io.containerd.image.name": i.Ref}
		index.Manifests = append(index.Manifests, d)
		for sum, data := range i.Blobs {
			files["blobs/sha256/"+sum.Encoded()] = data
		}
	}
	files["index.json"], _ = json.Marshal(index)
	return pack(files)
}

func pack(files map[string][]byte) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, data := range files {
		w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data))}) // into memory
		w.Write(data)
	}
	w.Close()
	return b.Bytes()
}

// Registry serves images, each under the path of its name, on loopback. It can be told to do otherwise.
type Registry struct {
	Host string

	images  []*Image
	instead func(w http.ResponseWriter, r *http.Request) bool
}

// NewRegistry returns a registry for a server of somebody else.
func NewRegistry(images ...*Image) *Registry { return &Registry{images: images} }

// Serve starts a registry. Requests for which instead returns true have been answered by it, as badly as it likes.
func Serve(tb testing.TB, instead func(w http.ResponseWriter, r *http.Request) bool, images ...*Image) *Registry {
	r := &Registry{images: images, instead: instead}
	s := httptest.NewServer(r)
	tb.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	r.Host = strings.TrimPrefix(s.URL, "http://")
	return r
}

// Name is what an image is called in this registry.
func (r *Registry) Name(i *Image) string {
	_, name, _ := strings.Cut(i.Ref, "/")
	return r.Host + "/" + name
}

// ServeHTTP answers as the distribution specification says.
func (r *Registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	if r.instead != nil && r.instead(w, q) {
		return
	}
	dir, last := path.Split(q.URL.Path)
	for _, i := range r.images {
		_, name, _ := strings.Cut(i.Ref, "/")
		repository, tag, _ := strings.Cut(name, ":")
		switch dir {
		case "/v2/" + repository + "/manifests/":
			if last == tag || last == i.Manifest.Digest.String() {
				w.Header().Set("Content-Type", i.Manifest.MediaType)
				w.Header().Set("Docker-Content-Digest", i.Manifest.Digest.String())
				w.Header().Set("Content-Length", fmt.Sprint(i.Manifest.Size))
				w.Write(i.Blobs[i.Manifest.Digest])
				return
			}
		case "/v2/" + repository + "/blobs/":
			if data, ok := i.Blobs[digest.Digest(last)]; ok {
				w.Write(data)
				return
			}
		}
	}
	if q.URL.Path != "/v2/" {
		http.NotFound(w, q)
	}
}
