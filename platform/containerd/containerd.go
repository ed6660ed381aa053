// SPDX-License-Identifier: Apache-2.0

// Package containerd is the part of containerd's API that running containers needs, the same in containerd 1.6, 1.7
// and 2.
//
// A client sees one namespace. Errors keep their gRPC code: see grpc.CodeOf. When containerd is not there, methods
// fail with Unavailable; the next call connects again.
package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"sdvbox/platform/grpc"
	"sdvbox/platform/protobuf"
)

// Client calls containerd.
type Client struct {
	Leases     Leases
	Content    Content
	Images     Images
	Snapshots  Snapshots
	Containers Containers
	Tasks      Tasks

	conn *conn
}

type conn struct {
	grpc      *grpc.Client
	namespace string
	making    sync.Mutex // held to make a snapshot
}

// New returns a client for a namespace of the containerd that listens on the socket. It connects when it is used.
func New(socket, namespace string) *Client {
	c := &conn{grpc: grpc.NewClient("unix:" + socket), namespace: namespace}
	return &Client{
		Leases:     Leases{c},
		Content:    Content{c},
		Images:     Images{c},
		Snapshots:  Snapshots{c, "overlayfs"},
		Containers: Containers{c},
		Tasks:      Tasks{c},
		conn:       c,
	}
}

// Close ends the calls that are under way.
func (c *Client) Close() error { return c.conn.grpc.Close() }

const services = "/containerd.services."

func (c *conn) context(ctx context.Context) context.Context {
	return grpc.WithHeader(ctx, "containerd-namespace", c.namespace)
}

func (c *conn) call(ctx context.Context, method string, req, resp any) error {
	return wrap(c.grpc.Call(c.context(ctx), services+method, req, resp))
}

func (c *conn) stream(ctx context.Context, method string) (*grpc.ClientStream, error) {
	s, err := c.grpc.Stream(c.context(ctx), services+method)
	return s, wrap(err)
}

// receive begins a call that is answered with any number of messages.
func (c *conn) receive(ctx context.Context, method string, req any) (*grpc.ClientStream, error) {
	s, err := c.stream(ctx, method)
	if err != nil {
		return nil, err
	}
	if err := s.Send(req); err != nil && err != io.EOF { // at EOF, Recv says why
		s.Close()
		return nil, wrap(err)
	}
	s.CloseSend()
	return s, nil
}

// collect gathers the lists that a stream of T has.
func collect[T, E any](ctx context.Context, c *conn, method string, req any, list func(*T) []E) ([]E, error) {
	s, err := c.receive(ctx, method, req)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var all []E
	for {
		var part T
		if err := s.Recv(&part); err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, wrap(err)
		}
		all = append(all, list(&part)...)
	}
}

func wrap(err error) error {
	var e *grpc.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e) && e.Code == grpc.Unknown && strings.Contains(e.Message, context.DeadlineExceeded.Error()):
		// The deadline was told to containerd, which has noticed first, and does not know the code for it.
		err = &grpc.Error{Code: grpc.DeadlineExceeded, Message: e.Message}
	}
	return fmt.Errorf("containerd: %w", err)
}

// wrapEnd is wrap for a stream that is not to end.
func wrapEnd(err error) error {
	if err == io.EOF {
		err = grpc.Errorf(grpc.Unavailable, "the stream has ended")
	}
	return wrap(err)
}

type empty = protobuf.Empty

// byName and byID are requests about one thing.
type byName struct {
	Name string `pb:"1"`
}

type byID struct {
	ID string `pb:"1"`
}

type filtered struct {
	Filters []string `pb:"1"`
}

type fieldMask struct {
	Paths []string `pb:"1"`
}

func mask(paths []string) *fieldMask {
	if len(paths) == 0 {
		return nil
	}
	return &fieldMask{paths}
}

// ociURL begins the names of the types of OCI, which containerd stores as JSON.
const ociURL = "types.containerd.io/opencontainers/runtime-spec/1/"

func ociAny(name string, v any) (*protobuf.Any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("containerd: cannot encode the %s: %w", name, err)
	}
	return &protobuf.Any{TypeURL: ociURL + name, Value: b}, nil
}

// Version is that of the containerd that runs.
func (c *Client) Version(ctx context.Context) (version string, err error) {
	var resp struct {
		Version string `pb:"1"`
	}
	err = c.conn.call(ctx, "version.v1.Version/Version", &empty{}, &resp)
	return resp.Version, err
}

// CreateNamespace creates the client's namespace, unless it is there.
func (c *Client) CreateNamespace(ctx context.Context) error {
	type namespace struct {
		Name string `pb:"1"`
	}
	type message struct {
		Namespace *namespace `pb:"1"`
	}
	err := c.conn.call(ctx, "namespaces.v1.Namespaces/Create", &message{&namespace{c.conn.namespace}}, &message{})
	if grpc.CodeOf(err) == grpc.AlreadyExists {
		return nil
	}
	return err
}

// DeleteNamespace deletes the client's namespace, which has to be empty.
func (c *Client) DeleteNamespace(ctx context.Context) error {
	return c.conn.call(ctx, "namespaces.v1.Namespaces/Delete", &byName{c.conn.namespace}, &empty{})
}

// Leases keep things from being collected as garbage.
type Leases struct{ conn *conn }

// Lease is a lease.
type Lease struct {
	ID      string              `pb:"1"`
	Created *protobuf.Timestamp `pb:"2"`
	Labels  map[string]string   `pb:"3"`
}

// Resource is something that a lease holds.
type Resource struct {
	ID   string `pb:"1"`
	Type string `pb:"2"` // content, snapshots/overlayfs, ingests
}

// WithLease puts what is created with the context under the lease.
func WithLease(ctx context.Context, id string) context.Context {
	return grpc.WithHeader(ctx, "containerd-lease", id)
}

// ExpireLabel is the label of a lease that says when it ends, as RFC 3339.
const ExpireLabel = "containerd.io/gc.expire"

// ExpireAfter is the labels of a lease that ends by itself.
func ExpireAfter(d time.Duration) map[string]string {
	return map[string]string{ExpireLabel: time.Now().Add(d).UTC().Format(time.RFC3339)}
}

// Create creates a lease.
func (l Leases) Create(ctx context.Context, id string, labels map[string]string) error {
	type request struct {
		ID     string            `pb:"1"`
		Labels map[string]string `pb:"3"`
	}
	return l.conn.call(ctx, "leases.v1.Leases/Create", &request{id, labels}, &empty{})
}

// List lists the leases that one of the filters matches, all if there is none.
func (l Leases) List(ctx context.Context, filters ...string) ([]*Lease, error) {
	var resp struct {
		Leases []*Lease `pb:"1"`
	}
	err := l.conn.call(ctx, "leases.v1.Leases/List", &filtered{filters}, &resp)
	return resp.Leases, err
}

// Delete deletes a lease; with sync, what it alone has held is gone when Delete returns.
func (l Leases) Delete(ctx context.Context, id string, sync bool) error {
	type request struct {
		ID   string `pb:"1"`
		Sync bool   `pb:"2"`
	}
	return l.conn.call(ctx, "leases.v1.Leases/Delete", &request{id, sync}, &empty{})
}

type leaseResource struct {
	ID       string    `pb:"1"`
	Resource *Resource `pb:"2"`
}

// Add lets a lease hold something.
func (l Leases) Add(ctx context.Context, id string, r Resource) error {
	return l.conn.call(ctx, "leases.v1.Leases/AddResource", &leaseResource{id, &r}, &empty{})
}

// Resources lists what a lease holds.
func (l Leases) Resources(ctx context.Context, id string) ([]*Resource, error) {
	var resp struct {
		Resources []*Resource `pb:"1"`
	}
	err := l.conn.call(ctx, "leases.v1.Leases/ListResources", &byID{id}, &resp)
	return resp.Resources, err
}
