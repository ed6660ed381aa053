// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	digests "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/fetch"
)

// repository is where a registry keeps an image.
type repository struct {
	ref    registry.Reference
	host   string // as images are named with
	base   string // URL
	client remote.Client
	close  func()
	stall  time.Duration
}

const agent = "sdvbox"

// parseRef takes an image name apart. Without tag and digest it is the tag latest.
func parseRef(name string) (registry.Reference, error) {
	ref, err := registry.ParseReference(name)
	if err == nil && strings.HasSuffix(name, ":") {
		err = errors.New("the tag is empty")
	} else if err == nil && !strings.ContainsAny(ref.Registry, ".:") && ref.Registry != "localhost" {
		err = fmt.Errorf("%q is not a registry", ref.Registry)
	}
	if err != nil {
		return ref, ctrmodel.Errorf(ctrmodel.InvalidArgument, "image name %.300q is not like registry.example/path:tag or registry.example/path@sha256:…: %w", name, err)
	}
	if ref.Reference == "" {
		ref.Reference = "latest"
	}
	if d, err := ref.Digest(); err == nil && d.Algorithm() != digests.SHA256 {
		return ref, ctrmodel.Errorf(ctrmodel.InvalidArgument, "image name %.300q: the digest is not SHA-256", name)
	}
	return ref, nil
}

// connect prepares to talk to the registry of an image.
func (s *Store) connect(ctx context.Context, ref registry.Reference) (*repository, error) {
	s.mu.Lock()
	config, known := s.registries[ref.Registry]
	declared := s.insecure
	s.mu.Unlock()
	insecure := isInsecure(declared, ref.Registry) || (!known || config.Transport == Transport{}) && loopback(ref.Registry)
	t := config.Transport
	if insecure {
		t = Transport{}
	}
	for _, file := range []string{t.RootCA, t.ClientCert, t.ClientKey} {
		if file != "" && !filepath.IsAbs(file) {
			return nil, ctrmodel.Errorf(ctrmodel.FailedPrecondition, "registry %s: %q is not an absolute path", ref.Registry, file)
		}
	}
	client, err := fetch.NewClient(fetch.TLS{CAFile: t.RootCA, CertFile: t.ClientCert, KeyFile: t.ClientKey})
	if err != nil {
		return nil, ctrmodel.Errorf(ctrmodel.FailedPrecondition, "registry %s: %w", ref.Registry, err)
	}
	scheme := "https"
	if insecure {
		client.Transport.(*http.Transport).TLSClientConfig.InsecureSkipVerify = true
		if scheme, err = s.scheme(ctx, client, ref.Host()); err != nil {
			return nil, ctrmodel.Errorf(ctrmodel.Unavailable, "registry %s: %w", ref.Registry, err)
		}
	}
	base := &url.URL{Scheme: scheme, Host: ref.Host(), Path: "/v2/" + ref.Repository}
	a := newClient(client)
	r := &repository{ref, ref.Registry, base.String(), a, client.CloseIdleConnections, s.Stall}
	if !known && !insecure {
		return r, nil
	}
	l := &login{Client: a, ref: ref, base: base, password: basic(config.Credentials)}
	r.client = l
	if insecure {
		verifying, err := fetch.NewClient(fetch.TLS{})
		if err != nil {
			return nil, ctrmodel.Errorf(ctrmodel.FailedPrecondition, "registry %s: %w", ref.Registry, err)
		}
		l.elsewhere = newClient(verifying)
		l.trusted = func(host string) bool { return isInsecure(declared, host) || loopback(host) }
		r.close = func() {
			client.CloseIdleConnections()
			verifying.CloseIdleConnections()
		}
	}
	return r, nil
}

func newClient(c *http.Client) *auth.Client {
	a := &auth.Client{Client: c, Cache: auth.NewCache()}
	a.SetUserAgent(agent)
	return a
}

// isInsecure tells whether a host[:port] is among those that have been declared insecure, with or without the port.
func isInsecure(declared []string, registry string) bool {
	host, port := hostPort(registry)
	return slices.ContainsFunc(declared, func(d string) bool {
		h, p := hostPort(d)
		return h == host && (p == "" || p == port)
	})
}

// hostPort takes a host[:port] apart. An address of IPv6 comes in many ways, with and without brackets, and goes in one.
func hostPort(registry string) (host, port string) {
	host, port, err := net.SplitHostPort(registry)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(registry, "["), "]"), ""
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.String()
	}
	return strings.ToLower(host), port
}

func loopback(registry string) bool {
	host, _ := hostPort(registry)
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// scheme finds out what an insecure registry talks. HTTP is not, if it leads to HTTPS or if what answers is no registry.
func (s *Store) scheme(ctx context.Context, client *http.Client, host string) (string, error) {
	ask := func(scheme string, patience time.Duration) (*http.Response, error) {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+host+"/v2/", nil)
		if err != nil {
			return nil, err
		}
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		return resp, err
	}
	resp, err := ask("http://", s.Stall/3) // a firewall may swallow it
	if err == nil {
		from := resp.Request.URL
		if from.Host == host && (resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusUnauthorized) {
			return from.Scheme, nil
		}
		err = fmt.Errorf("%s: %s", from, resp.Status)
	}
	if _, again := ask("https://", s.Stall); again != nil {
		return "", fmt.Errorf("%w; %w", err, again)
	}
	return "https", nil
}

// oras is the repository for those who need more of a registry.
func (r *repository) oras() *remote.Repository {
	return &remote.Repository{Client: r.client, Reference: r.ref, PlainHTTP: strings.HasPrefix(r.base, "http:")}
}

// root asks what the image name stands for now.
func (r *repository) root(ctx context.Context) (v1.Descriptor, []byte, error) {
	resp, err := r.get(ctx, "/manifests/"+r.ref.Reference, v1.MediaTypeImageIndex+", "+v1.MediaTypeImageManifest+", "+dockerIndex+", "+dockerManifest, 0)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return v1.Descriptor{}, nil, r.error(err)
	}
	if len(data) > maxDocument {
		return v1.Descriptor{}, nil, unusable("registry %s: the manifest is longer than %d bytes", r.host, maxDocument)
	}
	d := v1.Descriptor{Digest: digests.FromBytes(data), Size: int64(len(data))}
	want := digests.Digest(resp.Header.Get("Docker-Content-Digest"))
	if pinned, err := r.ref.Digest(); err == nil {
		want = pinned
	}
	if want != "" && want.Validate() != nil {
		return d, nil, unusable("registry %s has sent the digest %.100q, which is none", r.host, want)
	}
	if want != "" && want.Algorithm() == digests.SHA256 && want != d.Digest {
		return d, nil, unusable("registry %s has sent a manifest with digest %s for %s", r.host, d.Digest, want)
	}
	d.MediaType, _, _ = mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if !isManifest(d.MediaType) && !isIndex(d.MediaType) {
		return d, nil, unusable("registry %s has sent something of type %.100q, not the manifest of an image", r.host, d.MediaType)
	}
	return d, data, nil
}

// open is the source of what the image is made of.
func (r *repository) open(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	path, accept := "/blobs/", ""
	if isManifest(d.MediaType) {
		path, accept = "/manifests/", d.MediaType
	}
	resp, err := r.get(ctx, path+d.Digest.String(), accept, offset)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		if resp.ContentLength >= 0 && resp.ContentLength != d.Size {
			resp.Body.Close()
			return nil, unusable("registry %s: %s has %d bytes, expected %d", r.host, d.Digest, resp.ContentLength, d.Size)
		}
		if _, err := io.CopyN(io.Discard, resp.Body, offset); err != nil {
			resp.Body.Close()
			return nil, r.error(err)
		}
	} else if want := fmt.Sprintf("bytes %d-%d/", offset, d.Size-1); !strings.HasPrefix(resp.Header.Get("Content-Range"), want) {
		resp.Body.Close()
		return nil, unusable("registry %s has sent the part %.100q of %s instead of %s", r.host, resp.Header.Get("Content-Range"), d.Digest, want)
	}
	return resp.Body, nil
}

// get asks for something, from offset on if the registry can. The answer ends with an error when the registry is silent.
func (r *repository) get(ctx context.Context, path, accept string, offset int64) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	watch := time.AfterFunc(r.stall, func() {
		cancel(ctrmodel.Errorf(ctrmodel.Unavailable, "registry %s has been silent for %v", r.host, r.stall))
	})
	end := func() {
		watch.Stop()
		cancel(nil)
	}
	req, err := http.NewRequestWithContext(auth.AppendRepositoryScope(ctx, r.ref, auth.ActionPull), http.MethodGet, r.base+path, nil)
	if err != nil {
		end()
		return nil, ctrmodel.Errorf(ctrmodel.InvalidArgument, "registry %s: %w", r.host, err)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := r.client.Do(req)
	watch.Stop()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		end()
		return nil, r.error(err)
	}
	if resp.StatusCode != http.StatusOK && (resp.StatusCode != http.StatusPartialContent || offset == 0) {
		resp.Body.Close()
		end()
		return nil, r.error(&errcode.ErrorResponse{Method: http.MethodGet, URL: req.URL, StatusCode: resp.StatusCode})
	}
	resp.Body = &watched{resp.Body, ctx, watch, end, r}
	return resp, nil
}

// watched is the body of an answer. The time that passes between reads is not the registry's.
type watched struct {
	io.ReadCloser
	ctx   context.Context
	watch *time.Timer
	end   func()
	from  *repository
}

func (w *watched) Read(b []byte) (int, error) {
	w.watch.Reset(w.from.stall)
	n, err := w.ReadCloser.Read(b)
	w.watch.Stop()
	if err != nil && err != io.EOF {
		if cause := context.Cause(w.ctx); cause != nil {
			err = cause
		}
		err = w.from.error(err)
	}
	return n, err
}

func (w *watched) Close() error {
	w.end()
	return w.ReadCloser.Close()
}

// error gives what has gone wrong with the registry a kind. If nothing else is known, it has answered something odd.
func (r *repository) error(err error) error {
	kind := ctrmodel.KindOf(err)
	var status *errcode.ErrorResponse
	var cert *tls.CertificateVerificationError
	var invalid x509.CertificateInvalidError
	switch {
	case kind != ctrmodel.Internal:
		return err
	case errors.As(err, &status):
		switch code := status.StatusCode; {
		case code == http.StatusUnauthorized:
			kind = ctrmodel.Unauthenticated
		case code == http.StatusForbidden:
			kind = ctrmodel.PermissionDenied
		case code == http.StatusNotFound:
			kind = ctrmodel.NotFound
		case unavailable(err):
			kind = ctrmodel.Unavailable
		default:
			kind = ctrmodel.FailedPrecondition
		}
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		kind = ctrmodel.Unauthenticated
	case strings.Contains(err.Error(), http.ErrSchemeMismatch.Error()):
		return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "registry %s does not talk TLS, and is not among the insecure registries: %w", r.host, err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired: // or the clock has not been set yet
		kind = ctrmodel.Unavailable
	case !errors.As(err, &cert) && unavailable(err):
		kind = ctrmodel.Unavailable
	default:
		kind = ctrmodel.FailedPrecondition
	}
	return ctrmodel.Errorf(kind, "registry %s: %w", r.host, err)
}

// unavailable tells whether an error is about the way to the registry, or that it cannot for now.
func unavailable(err error) bool {
	var status *errcode.ErrorResponse
	var network net.Error
	var address *url.Error
	if errors.As(err, &address) && address.Op == "parse" { // it counts as of the network, too
		return false
	}
	if errors.As(err, &status) {
		return status.StatusCode == http.StatusTooManyRequests || status.StatusCode == http.StatusRequestTimeout || status.StatusCode >= 500
	}
	return errors.As(err, &network) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)
}
