// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"io"

	"sdvbox/platform/grpc"
	"sdvbox/platform/protobuf"
)

// Content is the blobs by digest.
type Content struct{ conn *conn }

// Blob is what containerd knows of a blob.
type Blob struct {
	Digest  string              `pb:"1"`
	Size    int64               `pb:"2"`
	Created *protobuf.Timestamp `pb:"3"`
	Updated *protobuf.Timestamp `pb:"4"`
	Labels  map[string]string   `pb:"5"`
}

type blobMessage struct {
	Info *Blob      `pb:"1"`
	Mask *fieldMask `pb:"2"`
}

// Info tells of a blob.
func (c Content) Info(ctx context.Context, digest string) (*Blob, error) {
	var resp blobMessage
	if err := c.conn.call(ctx, "content.v1.Content/Info", &byName{digest}, &resp); err != nil {
		return nil, err
	}
	return orZero(resp.Info), nil
}

// List lists the blobs that one of the filters matches, all if there is none.
func (c Content) List(ctx context.Context, filters ...string) ([]*Blob, error) {
	type part struct {
		Info []*Blob `pb:"1"`
	}
	return collect(ctx, c.conn, "content.v1.Content/List", &filtered{filters}, func(p *part) []*Blob { return p.Info })
}

// SetLabels sets labels of a blob, and removes those which are set to "". Others stay.
func (c Content) SetLabels(ctx context.Context, digest string, labels map[string]string) error {
	var paths []string
	for key := range labels {
		paths = append(paths, "labels."+key)
	}
	return c.conn.call(ctx, "content.v1.Content/Update", &blobMessage{&Blob{Digest: digest, Labels: labels}, mask(paths)}, &empty{})
}

// Delete deletes a blob.
func (c Content) Delete(ctx context.Context, digest string) error {
	return c.conn.call(ctx, "content.v1.Content/Delete", &byName{digest}, &empty{})
}

// Open reads a blob from offset on. The reader has to be closed.
func (c Content) Open(ctx context.Context, digest string, offset int64) (io.ReadCloser, error) {
	type request struct {
		Digest string `pb:"1"`
		Offset int64  `pb:"2"`
	}
	s, err := c.conn.receive(ctx, "content.v1.Content/Read", &request{digest, offset})
	if err != nil {
		return nil, err
	}
	r := &blobReader{stream: s}
	if err := r.next(); err != nil && err != io.EOF { // that it is not there is said here
		s.Close()
		return nil, err
	}
	return r, nil
}

// Read reads a whole blob, which is at most limit long.
func (c Content) Read(ctx context.Context, digest string, limit int64) ([]byte, error) {
	r, err := c.Open(ctx, digest, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = wrap(grpc.Errorf(grpc.ResourceExhausted, "%s is longer than %d bytes", digest, limit))
	}
	return b, err
}

type blobReader struct {
	stream *grpc.ClientStream
	data   []byte
	err    error
}

func (r *blobReader) next() error {
	for len(r.data) == 0 && r.err == nil {
		var part struct {
			Data []byte `pb:"2"`
		}
		if r.err = r.stream.Recv(&part); r.err != io.EOF {
			r.err = wrap(r.err)
		}
		r.data = part.Data
	}
	if len(r.data) > 0 {
		return nil
	}
	return r.err
}

func (r *blobReader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if err := r.next(); err != nil {
		return 0, err
	}
	n := copy(b, r.data)
	r.data = r.data[n:]
	return n, nil
}

func (r *blobReader) Close() error { return r.stream.Close() }

// Ingest is a blob that is not complete.
type Ingest struct {
	Started  *protobuf.Timestamp `pb:"1"`
	Updated  *protobuf.Timestamp `pb:"2"`
	Ref      string              `pb:"3"`
	Offset   int64               `pb:"4"` // how much is there
	Total    int64               `pb:"5"`
	Expected string              `pb:"6"`
}

// Status tells of the ingest with the reference.
func (c Content) Status(ctx context.Context, ref string) (*Ingest, error) {
	var resp struct {
		Status *Ingest `pb:"1"`
	}
	if err := c.conn.call(ctx, "content.v1.Content/Status", &byName{ref}, &resp); err != nil {
		return nil, err
	}
	return orZero(resp.Status), nil
}

// Ingests lists the ingests.
func (c Content) Ingests(ctx context.Context, filters ...string) ([]*Ingest, error) {
	var resp struct {
		Statuses []*Ingest `pb:"1"`
	}
	err := c.conn.call(ctx, "content.v1.Content/ListStatuses", &filtered{filters}, &resp)
	return resp.Statuses, err
}

// Abort throws away an ingest.
func (c Content) Abort(ctx context.Context, ref string) error {
	return c.conn.call(ctx, "content.v1.Content/Abort", &byName{ref}, &empty{})
}

const (
	actionStat   int32 = 0
	actionWrite  int32 = 1
	actionCommit int32 = 2
)

type writeRequest struct {
	Action   int32             `pb:"1"`
	Ref      string            `pb:"2"`
	Total    int64             `pb:"3"`
	Expected string            `pb:"4"`
	Offset   int64             `pb:"5"`
	Data     []byte            `pb:"6"`
	Labels   map[string]string `pb:"7"`
}

// Writer writes a blob.
type Writer struct {
	stream *grpc.ClientStream
	last   writeRequest // what all requests have
	offset int64
}

// Writer goes on with the ingest of the reference, or begins one: Offset says where. Expected and total may be zero.
// The error is AlreadyExists if there is such a blob, Unavailable if another writer has the reference.
func (c Content) Writer(ctx context.Context, ref string, total int64, expected string) (*Writer, error) {
	s, err := c.conn.stream(ctx, "content.v1.Content/Write")
	if err != nil {
		return nil, err
	}
	w := &Writer{stream: s, last: writeRequest{Ref: ref, Total: total, Expected: expected}}
	if err := w.send(actionStat, nil, nil); err != nil {
		s.Close()
		return nil, err
	}
	return w, nil
}

func (w *Writer) send(action int32, data []byte, labels map[string]string) error {
	req := w.last
	req.Action, req.Data, req.Labels, req.Offset = action, data, labels, w.offset
	var resp struct {
		Offset int64 `pb:"4"`
	}
	if err := w.stream.Send(&req); err != nil && err != io.EOF { // at EOF, Recv says why
		return wrap(err)
	}
	if err := w.stream.Recv(&resp); err != nil {
		return wrapEnd(err)
	}
	w.offset = resp.Offset
	return nil
}

// Offset is how much of the blob containerd has.
func (w *Writer) Offset() int64 { return w.offset }

// chunk is how much is sent at once.
const chunk = 1 << 20

// Write appends to the blob.
func (w *Writer) Write(b []byte) (n int, err error) {
	for n < len(b) {
		part := b[n:min(len(b), n+chunk)]
		if err := w.send(actionWrite, part, nil); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// Truncate begins anew.
func (w *Writer) Truncate() error {
	if w.offset == 0 {
		return nil
	}
	w.offset = 0
	return w.send(actionWrite, nil, nil)
}

// Commit makes the ingest a blob. It fails with FailedPrecondition if it has another digest or size than expected.
func (w *Writer) Commit(labels map[string]string) error {
	defer w.Close()
	return w.send(actionCommit, nil, labels)
}

// Close lets go of the ingest, which stays if it has not been committed.
func (w *Writer) Close() error {
	w.stream.CloseSend()
	w.stream.Recv(&empty{}) // until containerd has let go, too
	return w.stream.Close()
}

func orZero[T any](p *T) *T {
	if p == nil {
		p = new(T)
	}
	return p
}
