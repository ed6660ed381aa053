// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	digests "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"sdvbox/platform/ctrmodel"
)

// Import takes the images of an archive: a tar file, perhaps compressed with gzip, or a directory, in the layout of OCI or of
// docker save. Those that have no name are left out; it is an error if none has. Signatures are not looked for: with a verifier,
// Pull asks the registry for that of an imported image.
func (s *Store) Import(ctx context.Context, file string) (list []Image, err error) {
	if file, err = filepath.Abs(file); err != nil {
		return nil, err
	}
	as, _ := identity(file) // else it cannot be opened, either
	from := map[string]string{broughtBy: as}
	a, err := s.openArchive(file)
	if err != nil {
		return nil, fmt.Errorf("archive %s: %w", file, err)
	}
	defer a.Close()
	named, err := a.images()
	if err != nil {
		return nil, fmt.Errorf("archive %s: %w", file, err)
	}
	for _, n := range named {
		img, err := s.importOne(ctx, a, n, from)
		if err != nil {
			return list, fmt.Errorf("archive %s: image %s: %w", file, n.name, err)
		}
		list = append(list, img)
	}
	return list, nil
}

func (s *Store) importOne(ctx context.Context, a *archive, n namedImage, labels map[string]string) (Image, error) {
	unlock, err := s.locks.lock(ctx, "image "+n.name)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	return s.job(n.name, nil).install(ctx, n.root, a.source, map[string]string{}, labels)
}

// archive is a file system with images in it.
type archive struct {
	fs.FS
	io.Closer
	made  map[digests.Digest][]byte // what is not in it as it should be
	paths map[digests.Digest]string // what is not where it should be
}

type namedImage struct {
	name string
	root v1.Descriptor
}

func (s *Store) openArchive(file string) (*archive, error) {
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ctrmodel.Errorf(ctrmodel.NotFound, "%w", err)
	} else if err != nil {
		return nil, err
	}
	a := &archive{made: map[digests.Digest][]byte{}, paths: map[digests.Digest]string{}}
	if info.IsDir() {
		root, err := os.OpenRoot(file)
		if err != nil {
			return nil, err
		}
		a.FS, a.Closer = root.FS(), root
		return a, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	magic := make([]byte, 4)
	n, _ := f.ReadAt(magic, 0)
	switch magic := string(magic[:n]); {
	case strings.HasPrefix(magic, "\x1f\x8b"):
		if f, err = s.gunzip(f); err != nil {
			return nil, err
		}
	case magic == "\x28\xb5\x2f\xfd":
		f.Close()
		return nil, unusable("it is compressed with zstd; of archives only those that are not compressed, or with gzip, are read")
	}
	if _, err = f.Seek(0, io.SeekStart); err == nil {
		a.FS, err = newTarFS(f)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	a.Closer = f
	return a, nil
}

// gunzip unpacks a file to where containerd has its data, because there is space for an image, and closes it. What it returns
// is gone when it is closed.
func (s *Store) gunzip(f *os.File) (_ *os.File, err error) {
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, unusable("%w", err)
	}
	dir := s.Root
	if _, err := os.Stat(dir); err != nil {
		dir = ""
	}
	to, err := os.CreateTemp(dir, ".archive")
	if err != nil {
		return nil, err
	}
	os.Remove(to.Name())
	buf := make([]byte, 1<<20)
	for err == nil {
		var n int
		if n, err = io.ReadFull(z, buf); err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			err = unusable("%w", err)
			break
		}
		if free, e := s.free(); e == nil && free < int64(n) {
			err = s.full(free, int64(n))
		} else if _, e := to.Write(buf[:n]); e != nil {
			err = model(e, "cannot unpack")
		}
	}
	if err != io.EOF && err != io.ErrUnexpectedEOF {
		to.Close()
		return nil, err
	}
	return to, nil
}

// tarFS is the files of a tar file that is not compressed. Only Open of names that are in it works.
type tarFS map[string]*io.SectionReader

func newTarFS(f io.ReadSeeker) (tarFS, error) {
	at, ok := f.(io.ReaderAt)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	files := tarFS{}
	links := map[string]string{}
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			return nil, unusable("%w", err)
		}
		switch name := path.Clean(h.Name); h.Typeflag {
		case tar.TypeReg:
			offset, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			files[name] = io.NewSectionReader(at, offset, h.Size)
		case tar.TypeLink:
			links[name] = path.Clean(h.Linkname)
		case tar.TypeSymlink: // docker save has them for layers that occur twice
			links[name] = path.Join(path.Dir(name), h.Linkname)
		}
	}
	for name, to := range links {
		if target := files[to]; target != nil && files[name] == nil {
			files[name] = target
		}
	}
	return files, nil
}

func (t tarFS) Open(name string) (fs.File, error) {
	s, ok := t[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return tarFile{io.NewSectionReader(s, 0, s.Size())}, nil
}

type tarFile struct{ *io.SectionReader }

func (tarFile) Stat() (fs.FileInfo, error) { return nil, errors.ErrUnsupported }
func (tarFile) Close() error               { return nil }

// source is that of the images in the archive.
func (a *archive) source(_ context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	if data, ok := a.made[d.Digest]; ok {
		return io.NopCloser(bytes.NewReader(data[offset:])), nil
	}
	name, ok := a.paths[d.Digest]
	if !ok {
		name = "blobs/sha256/" + d.Digest.Encoded()
	}
	f, err := a.Open(name)
	if err != nil {
		return nil, unusable("%s is not in it", d.Digest)
	}
	seek, ok := f.(io.Seeker)
	if !ok {
		f.Close()
		return nil, unusable("%s is not a file", name)
	}
	if size, err := seek.Seek(0, io.SeekEnd); err != nil || size != d.Size {
		f.Close()
		return nil, unusable("%s has %d bytes, expected %d", d.Digest, size, d.Size)
	}
	if _, err := seek.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (a *archive) document(name string) ([]byte, error) {
	f, err := a.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err == nil && len(data) > maxDocument {
		err = unusable("%s is longer than %d bytes", name, maxDocument)
	}
	return data, err
}

// images lists what is in the archive and has a name.
func (a *archive) images() ([]namedImage, error) {
	data, err := a.document(v1.ImageIndexFile)
	if errors.Is(err, fs.ErrNotExist) {
		return a.dockerImages()
	} else if err != nil {
		return nil, err
	}
	var index v1.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, unusable("%s: %w", v1.ImageIndexFile, err)
	}
	var list []namedImage
	for _, d := range index.Manifests {
		// The first is what containerd and docker write; the other one may be just a tag.
		name := d.Annotations["io.containerd.image.name"]
		if name == "" {
			name = d.Annotations[v1.AnnotationRefName]
		}
		if _, err := parseRef(name); err != nil || !isManifest(d.MediaType) && !isIndex(d.MediaType) {
			continue
		}
		if err := check(d); err != nil {
			return nil, fmt.Errorf("%s: %w", v1.ImageIndexFile, err)
		}
		list = append(list, namedImage{name, d})
	}
	if len(list) == 0 {
		return nil, unusable("%s has no image with a full name like registry.example/path:tag in the annotation io.containerd.image.name or %s",
			v1.ImageIndexFile, v1.AnnotationRefName)
	}
	return list, nil
}

// dockerImages is images for what docker save has written before it knew OCI.
func (a *archive) dockerImages() ([]namedImage, error) {
	data, err := a.document("manifest.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, unusable("it has neither %s nor manifest.json, so it is no archive of images", v1.ImageIndexFile)
	} else if err != nil {
		return nil, err
	}
	var saved []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(data, &saved); err != nil {
		return nil, unusable("manifest.json: %w", err)
	}
	var list []namedImage
	for _, m := range saved {
		var names []string
		for _, name := range m.RepoTags {
			if _, err := parseRef(name); err == nil {
				names = append(names, name)
			}
		}
		if len(names) == 0 {
			continue
		}
		config, err := a.add(m.Config)
		if err != nil {
			return nil, err
		}
		config.MediaType = v1.MediaTypeImageConfig
		manifest := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: config}
		for _, file := range m.Layers {
			l, err := a.add(file)
			if err != nil {
				return nil, err
			}
			manifest.Layers = append(manifest.Layers, l)
		}
		made, err := json.Marshal(manifest)
		if err != nil {
			return nil, err
		}
		root := v1.Descriptor{MediaType: manifest.MediaType, Digest: digests.FromBytes(made), Size: int64(len(made))}
		a.made[root.Digest] = made
		for _, name := range names {
			list = append(list, namedImage{name, root})
		}
	}
	if len(list) == 0 {
		return nil, unusable("manifest.json has no image with a full name like registry.example/path:tag")
	}
	return list, nil
}

// add finds out the digest of a file in the archive.
func (a *archive) add(file string) (v1.Descriptor, error) {
	file = filepath.ToSlash(path.Clean(file))
	f, err := a.Open(file)
	if err != nil {
		return v1.Descriptor{}, unusable("manifest.json: %w", err)
	}
	defer f.Close()
	var magic bytes.Buffer
	digester := digests.SHA256.Digester()
	size, err := io.Copy(digester.Hash(), io.TeeReader(io.LimitReader(f, 2), &magic))
	if err == nil {
		var n int64
		n, err = io.Copy(digester.Hash(), f)
		size += n
	}
	if err != nil {
		return v1.Descriptor{}, unusable("%s: %w", file, err)
	}
	d := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: digester.Digest(), Size: size}
	if strings.HasPrefix(magic.String(), "\x1f\x8b") {
		d.MediaType = v1.MediaTypeImageLayerGzip
	}
	a.paths[d.Digest] = file
	return d, nil
}
