// SPDX-License-Identifier: Apache-2.0

// Package images gets the images of containers into containerd: from registries and from archives.
//
// What it leaves in containerd is what containerd's own client leaves there, labels included, so that other clients can use
// it. While an image is not complete a lease holds its parts, and a pull that breaks off goes on later where it was. Errors
// have the kinds of package ctrmodel; one of kind Unavailable may pass by itself.
package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"time"

	digests "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/grpc"
)

// Config is what a Store works with.
type Config struct {
	Client     *containerd.Client
	Registries map[string]Registry    // by host[:port] as images are named with
	Insecure   []string               // host or host:port that are asked by HTTP, then by HTTPS that is not verified
	Verify     Verifier               // nil: signatures are not looked at
	Platform   string                 // os/architecture[/variant], empty: that of this machine
	Expiry     time.Duration          // how long images stay that nothing uses; 0: as long as they like
	Root       string                 // where containerd keeps its data, empty: /var/lib/containerd
	Reserve    int64                  // bytes that stay free there
	Stall      time.Duration          // how long a registry may be silent, 0: 30 s
	Patience   time.Duration          // how long to try without any progress, 0: 1 min
	Used       func() map[string]bool // as for Collect: others may go when a pull needs space; nil: none goes
	Log        *slog.Logger           // nil: the default one
}

// Registry is how to talk to a registry.
type Registry struct {
	Credentials Credentials `json:"credentials"`
	Transport   Transport   `json:"transport"`
}

// Credentials are who we are to a registry.
type Credentials struct {
	UserID   string `json:"user_id"`
	Password string `json:"password"`
}

// Transport is the TLS of a registry: PEM files. What is empty is not used.
type Transport struct {
	RootCA     string `json:"root_ca"`
	ClientCert string `json:"client_cert"`
	ClientKey  string `json:"client_key"`
}

// Image is an image that is here.
type Image struct {
	Ref     string
	Digest  string         // of what Ref stands for, an index or a manifest
	ChainID string         // of the snapshot with all its layers
	Config  v1.ImageConfig // what its containers run
	Size    int64          // of all its parts, as they are transferred
	Created time.Time      // when it came here
}

// Store is the images of one namespace of containerd.
type Store struct {
	Config
	platforms []v1.Platform // best first
	locks     locks
	now       func() time.Time
	ran       func() time.Duration // since the store was made, however the clock was set
	available func() (int64, error)

	mu         sync.Mutex
	registries map[string]Registry
	insecure   []string
	coming     map[*job]*parts        // for which there is space
	homes      map[string]fs.FileInfo // directories that there have been archives in
	seen       time.Time              // the latest, see clock
	seenAt     time.Duration          // when that was
}

// New returns a store. Nothing is done until it is used.
func New(c Config) (*Store, error) {
	if c.Root == "" {
		c.Root = "/var/lib/containerd"
	}
	if c.Stall == 0 {
		c.Stall = 30 * time.Second
	}
	if c.Patience == 0 {
		c.Patience = time.Minute
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	platforms, err := platforms(c.Platform)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	s := &Store{Config: c, platforms: platforms, now: time.Now, ran: func() time.Duration { return time.Since(begin) },
		coming: map[*job]*parts{}, homes: map[string]fs.FileInfo{}, available: func() (int64, error) { return available(c.Root) }}
	s.SetRegistries(c.Registries, c.Insecure)
	return s, nil
}

// SetRegistries changes how registries are talked to, from the next pull on.
func (s *Store) SetRegistries(registries map[string]Registry, insecure []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.registries, s.insecure = registries, insecure
}

// Get finds an image that is here, and does nothing about it. Whether it may run here is not looked at, see Pull and ByDigest.
func (s *Store) Get(ctx context.Context, ref string) (Image, error) {
	stored, err := s.Client.Images.Get(ctx, ref)
	if err != nil {
		return Image{}, model(err, "image %s", ref)
	}
	img, _, err := s.read(ctx, stored)
	return img, err
}

// List lists the images that are here and complete enough to be known.
func (s *Store) List(ctx context.Context) ([]Image, error) {
	all, err := s.Client.Images.List(ctx)
	if err != nil {
		return nil, model(err, "list of images")
	}
	var list []Image
	for _, stored := range all {
		img, _, err := s.read(ctx, stored)
		if err != nil {
			switch ctrmodel.KindOf(err) {
			case ctrmodel.Unavailable, ctrmodel.Cancelled, ctrmodel.DeadlineExceeded:
				return nil, err
			}
		} // else it is of another platform, or half of it
		list = append(list, img)
	}
	return list, nil
}

// Remove removes an image. Containers that have been made of it keep what they need.
func (s *Store) Remove(ctx context.Context, ref string) error {
	unlock, err := s.locks.lock(ctx, "image "+ref)
	if err != nil {
		return err
	}
	defer unlock()
	looked, err := s.locks.lock(ctx, "look "+ref)
	if err != nil {
		return err
	}
	defer looked()
	return model(s.Client.Images.Delete(ctx, ref, true), "image %s", ref)
}

// parts is what an image is made of on one platform.
type parts struct {
	manifest    v1.Descriptor
	config      v1.Descriptor
	layers      []v1.Descriptor
	diffIDs     []digests.Digest
	imageConfig v1.ImageConfig
}

func (p *parts) chainID(layers int) string { return chainID(p.diffIDs[:layers]) }

// chainID names the snapshot of layers on top of each other.
func chainID(diffIDs []digests.Digest) string {
	var id digests.Digest
	for i, d := range diffIDs {
		if id = digests.FromString(id.String() + " " + d.String()); i == 0 {
			id = d
		}
	}
	return id.String()
}

// read finds out what an image that is here is made of.
func (s *Store) read(ctx context.Context, stored *containerd.Image) (Image, *parts, error) {
	img := Image{Ref: stored.Name, Created: stored.Created.Time()}
	if stored.Target == nil {
		return img, nil, ctrmodel.Errorf(ctrmodel.NotFound, "image %s stands for nothing", stored.Name)
	}
	img.Digest = stored.Target.Digest
	p, err := s.resolve(ctx, descriptor(stored.Target), func(ctx context.Context, d v1.Descriptor, _ map[string]string) ([]byte, error) {
		data, err := s.Client.Content.Read(ctx, d.Digest.String(), maxDocument)
		return data, model(err, "%s of image %s", d.Digest, stored.Name)
	}, nil)
	if err != nil {
		return img, nil, err
	}
	img.ChainID, img.Config = p.chainID(len(p.diffIDs)), p.imageConfig
	img.Size = p.manifest.Size + p.config.Size
	for _, l := range p.layers {
		img.Size += l.Size
	}
	return img, p, nil
}

// maxDocument is how long an index, a manifest or a configuration may be.
const maxDocument = 4 << 20

// resolve goes from what an image name stands for to the layers. get reads a document, and may put labels on it: source on all,
// and what it refers to.
func (s *Store) resolve(ctx context.Context, root v1.Descriptor, get getter, source map[string]string) (*parts, error) {
	p := &parts{manifest: root}
	if isIndex(root.MediaType) {
		data, err := get(ctx, root, nil)
		if err != nil {
			return nil, err
		}
		if p.manifest, err = s.choose(data); err != nil {
			return nil, err
		}
		if _, err := get(ctx, root, merge(source, map[string]string{gcContent + "m.0": p.manifest.Digest.String()})); err != nil {
			return nil, err
		}
	}
	data, err := get(ctx, p.manifest, nil)
	if err != nil {
		return nil, err
	}
	if p.config, p.layers, err = parseManifest(p.manifest.MediaType, data); err != nil {
		return nil, err
	}
	refs := map[string]string{gcContent + "config": p.config.Digest.String()}
	for i, l := range p.layers {
		refs[fmt.Sprintf("%sl.%d", gcContent, i)] = l.Digest.String()
	}
	if _, err := get(ctx, p.manifest, merge(source, refs)); err != nil {
		return nil, err
	}
	if data, err = get(ctx, p.config, source); err != nil {
		return nil, err
	}
	return p, s.parseConfig(data, p)
}

// getter reads a document. Labels that are not nil are put on it.
type getter func(ctx context.Context, d v1.Descriptor, labels map[string]string) ([]byte, error)

// The labels that containerd and its clients go by, and those of our own.
const (
	gcContent    = "containerd.io/gc.ref.content."
	gcSnapshot   = "containerd.io/gc.ref.snapshot."
	uncompressed = "containerd.io/uncompressed"
	distribution = "containerd.io/distribution.source."
	verified     = "sdvbox.verified" // of an image: the digest that a signature has been found for
	lastUse      = "sdvbox.used"     // of an image: when it was last wanted
	replaced     = "sdvbox.replaced" // of an image: the name that stands for another one now
	broughtBy    = "sdvbox.archive"  // of an image: the archive that has brought its name
	leaseLabel   = "sdvbox.image"    // of a lease: the image whose parts it holds
)

func merge(a, b map[string]string) map[string]string {
	m := map[string]string{}
	for k, v := range a {
		m[k] = v
	}
	for k, v := range b {
		m[k] = v
	}
	return m
}

func isIndex(mediaType string) bool {
	return mediaType == v1.MediaTypeImageIndex || mediaType == dockerIndex
}

func isManifest(mediaType string) bool {
	return mediaType == v1.MediaTypeImageManifest || mediaType == dockerManifest
}

// The types that Docker has given to what OCI has taken over.
const (
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs."
	ociLayer       = "application/vnd.oci.image.layer."
)

// parseManifest says what an image is made of. Nothing is left to ask containerd that cannot work.
func parseManifest(mediaType string, data []byte) (config v1.Descriptor, layers []v1.Descriptor, err error) {
	var m v1.Manifest
	switch err := json.Unmarshal(data, &m); {
	case !isManifest(mediaType):
		return config, nil, unusable("a manifest of type %q is not of an image", mediaType)
	case err != nil:
		return config, nil, unusable("manifest: %w", err)
	case m.Config.MediaType != v1.MediaTypeImageConfig && m.Config.MediaType != dockerConfig:
		return config, nil, unusable("something of type %q is not an image", m.Config.MediaType)
	case len(m.Layers) == 0 || len(m.Layers) > 500:
		return config, nil, unusable("manifest: %d layers, expected 1 to 500", len(m.Layers))
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := check(d); err != nil {
			return config, nil, fmt.Errorf("manifest: %w", err)
		}
	}
	for _, l := range m.Layers {
		switch {
		case strings.HasSuffix(l.MediaType, "+encrypted"):
			return config, nil, unusable("the image is encrypted, and decryption is not supported: layer %s is of type %q", l.Digest, l.MediaType)
		case !strings.HasPrefix(l.MediaType, ociLayer) && !strings.HasPrefix(l.MediaType, dockerLayer):
			return config, nil, unusable("layer %s is of unknown type %q", l.Digest, l.MediaType)
		}
	}
	return m.Config, m.Layers, nil
}

// check is about a descriptor that came from outside.
func check(d v1.Descriptor) error {
	if d.Digest.Validate() != nil || d.Digest.Algorithm() != digests.SHA256 {
		return unusable("%.100q is not a SHA-256 digest", d.Digest)
	}
	if d.Size < 0 {
		return unusable("%s has the size %d", d.Digest, d.Size)
	}
	return nil
}

// parseConfig fills in what the configuration of an image says.
func (s *Store) parseConfig(data []byte, p *parts) error {
	var c v1.Image
	if err := json.Unmarshal(data, &c); err != nil {
		return unusable("configuration: %w", err)
	}
	if len(c.RootFS.DiffIDs) != len(p.layers) {
		return unusable("configuration: %d layers, but the manifest has %d", len(c.RootFS.DiffIDs), len(p.layers))
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := check(v1.Descriptor{Digest: d}); err != nil {
			return fmt.Errorf("configuration: %w", err)
		}
	}
	if c.Architecture != "" && s.rank(c.Platform) < 0 {
		return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "the image is for %s, and this is %s", name(c.Platform), name(s.platforms[0]))
	}
	p.diffIDs, p.imageConfig = c.RootFS.DiffIDs, c.Config
	return nil
}

// unusable is an error about what is wrong with an image.
func unusable(format string, args ...any) error {
	return ctrmodel.Errorf(ctrmodel.FailedPrecondition, format, args...)
}

// model gives an error of containerd a kind, and says what it is about.
func model(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return ctrmodel.Errorf(KindOf(err), "%s: %w", fmt.Sprintf(format, args...), err)
}

// KindOf is the kind of an error of containerd.
func KindOf(err error) ctrmodel.Kind {
	if noSpace(err) {
		return ctrmodel.ResourceExhausted
	}
	switch grpc.CodeOf(err) {
	case grpc.NotFound:
		return ctrmodel.NotFound
	case grpc.Unavailable:
		return ctrmodel.Unavailable
	case grpc.Canceled:
		return ctrmodel.Cancelled
	case grpc.DeadlineExceeded:
		return ctrmodel.DeadlineExceeded
	case grpc.AlreadyExists:
		return ctrmodel.AlreadyExists
	case grpc.PermissionDenied:
		return ctrmodel.PermissionDenied
	case grpc.Unauthenticated:
		return ctrmodel.Unauthenticated
	case grpc.FailedPrecondition:
		return ctrmodel.FailedPrecondition
	case grpc.InvalidArgument:
		return ctrmodel.InvalidArgument
	case grpc.ResourceExhausted:
		return ctrmodel.ResourceExhausted
	}
	return ctrmodel.Internal
}

// noSpace tells whether an error, perhaps of containerd, is that of a full disk.
func noSpace(err error) bool {
	return err != nil && (errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), syscall.ENOSPC.Error()) ||
		strings.Contains(err.Error(), syscall.EDQUOT.Error()))
}

func descriptor(d *containerd.Descriptor) v1.Descriptor {
	return v1.Descriptor{MediaType: d.MediaType, Digest: digests.Digest(d.Digest), Size: d.Size}
}

// locks is one lock for each key.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// try takes the lock of the key. If it is taken, unlock is nil, and free is closed when it is worth to try again.
func (l *locks) try(key string) (unlock func(), free <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if held, taken := l.held[key]; taken {
		return nil, held
	}
	if l.held == nil {
		l.held = map[string]chan struct{}{}
	}
	mine := make(chan struct{})
	l.held[key] = mine
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.held, key)
		close(mine)
	}, nil
}

// lock waits until nobody holds the key, or for the end of ctx.
func (l *locks) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		unlock, free := l.try(key)
		if unlock != nil {
			return unlock, nil
		}
		select {
		case <-free:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
