// SPDX-License-Identifier: Apache-2.0

package grpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Client calls the methods of one server. It connects when it is used, and again when the connection is lost.
type Client struct {
	target    string
	transport *http.Transport

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]bool
}

// NewClient returns a client of the server at unix:PATH or tcp://HOST:PORT.
func NewClient(target string) *Client {
	c := &Client{target: target, conns: map[net.Conn]bool{}}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	c.transport = &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		Protocols:          protocols,
		DisableCompression: true,
	}
	return c
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	network, address := "unix", strings.TrimPrefix(strings.TrimPrefix(c.target, "unix:"), "//")
	if rest, ok := strings.CutPrefix(c.target, "tcp://"); ok {
		network, address = "tcp", rest
	}
	d := net.Dialer{Timeout: 10 * time.Second}
	conn, err := d.DialContext(ctx, network, address)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		if conn != nil {
			conn.Close()
		}
		return nil, errClosed
	case err != nil:
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return nil, lost("cannot connect to %s: %v", c.target, err)
	}
	c.conns[conn] = true
	return &clientConn{conn, c}, nil
}

var errClosed = Errorf(Canceled, "client is closed")

// clientConn is a connection that the client knows of for as long as it is open.
type clientConn struct {
	net.Conn
	client *Client
}

func (c *clientConn) Close() error {
	c.client.mu.Lock()
	delete(c.client.conns, c.Conn)
	c.client.mu.Unlock()
	return c.Conn.Close()
}

// Close ends the calls that are under way as if the connection were lost, and makes further ones fail.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	for conn := range c.conns {
		conn.Close()
	}
	c.mu.Unlock()
	c.transport.CloseIdleConnections()
	return nil
}

// Call sends req, and waits for resp.
func (c *Client) Call(ctx context.Context, method string, req, resp any) error {
	b, err := frame(req)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := c.request(ctx, method, bytes.NewReader(b))
	if err != nil {
		return err
	}
	answer, err := c.roundTrip(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if err := receive(answer, resp); err == io.EOF {
		return Errorf(Internal, "%s: the server sent no response", method)
	} else if err != nil {
		return err
	}
	var none struct{}
	switch err := receive(answer, &none); err {
	case io.EOF:
		return nil
	case nil:
		return Errorf(Internal, "%s: the server sent more than one response", method)
	default:
		return err
	}
}

func (c *Client) request(ctx context.Context, method string, body io.Reader) (*http.Request, error) {
	deadline, limited := ctx.Deadline()
	if ctx.Err() != nil || limited && !time.Now().Before(deadline) {
		return nil, fromTransport(ctx, ctx.Err())
	}
	// The authority that grpc-go uses for UNIX sockets. Not checked by anybody.
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost"+method, body)
	if err != nil {
		return nil, Errorf(Internal, "%v", err)
	}
	if h, ok := ctx.Value(outgoing{}).(http.Header); ok {
		for key, values := range h {
			for _, v := range values {
				if strings.ContainsFunc(v, func(c rune) bool { return c < ' ' || c > '~' }) {
					return nil, Errorf(InvalidArgument, "%q in %s is not plain text", v, strings.ToLower(key))
				}
			}
		}
		r.Header = h.Clone()
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("Te", "trailers")
	r.Header.Set("User-Agent", "grpc-sdvbox")
	if limited {
		r.Header.Set("Grpc-Timeout", encodeTimeout(time.Until(deadline)))
	}
	return r, nil
}

// roundTrip waits for the head of the answer.
func (c *Client) roundTrip(r *http.Request) (*http.Response, error) {
	answer, err := c.transport.RoundTrip(r)
	if err != nil {
		return nil, fromTransport(r.Context(), err)
	}
	err, ok := status(answer.Header) // nothing but a status
	switch {
	case ok:
	case answer.StatusCode != http.StatusOK:
		err = Errorf(fromHTTP(answer.StatusCode), "the server answered %s", answer.Status)
	case !isGRPC(answer.Header):
		err = Errorf(Unknown, "the server answered with content of type %q", answer.Header.Get("Content-Type"))
	}
	if err != nil {
		answer.Body.Close()
		return nil, err
	}
	return answer, nil
}

// receive reads a message. The error is io.EOF at an end with status OK, else an Error.
func receive(answer *http.Response, m any) error {
	err := readMessage(answer.Body, m)
	var e *Error
	switch {
	case err == nil || errors.As(err, &e):
		return err
	case err != io.EOF:
		return fromTransport(answer.Request.Context(), err)
	}
	for _, h := range []http.Header{answer.Trailer, answer.Header} {
		if err, ok := status(h); ok {
			if err == nil {
				err = io.EOF
			}
			return err
		}
	}
	return Errorf(Internal, "the server ended the call without a status")
}

func isGRPC(h http.Header) bool {
	t := h.Get("Content-Type")
	return t == "application/grpc" || strings.HasPrefix(t, "application/grpc+") || strings.HasPrefix(t, "application/grpc;")
}

func fromHTTP(code int) Code {
	switch code {
	case http.StatusBadRequest:
		return Internal
	case http.StatusUnauthorized:
		return Unauthenticated
	case http.StatusForbidden:
		return PermissionDenied
	case http.StatusNotFound:
		return Unimplemented
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return Unavailable
	}
	return Unknown
}

// streamError is the error of a stream that the peer has reset: net/http fills in any struct of this form.
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (e streamError) Error() string { return "stream error" }

// fromTransport is the Error for an error of net/http.
func fromTransport(ctx context.Context, err error) error {
	var e *Error
	var reset streamError
	deadline, limited := ctx.Deadline()
	switch {
	case errors.As(err, &e):
		return e
	// The clock is asked because the server, which knows the deadline, may end the call before our timer does.
	case limited && !time.Now().Before(deadline), errors.Is(err, context.DeadlineExceeded):
		return Errorf(DeadlineExceeded, "the deadline has passed")
	case ctx.Err() == context.Canceled, errors.Is(err, context.Canceled):
		return Errorf(Canceled, "the call was cancelled")
	case errors.As(err, &reset):
		code := Internal
		switch reset.Code {
		case 0x7: // REFUSED_STREAM
			code = Unavailable
		case 0x8: // CANCEL
			code = Canceled
		case 0xb: // ENHANCE_YOUR_CALM
			code = ResourceExhausted
		case 0xc: // INADEQUATE_SECURITY
			code = PermissionDenied
		}
		return Errorf(code, "the server reset the call with HTTP/2 error %d", reset.Code)
	}
	return lost("connection lost: %v", err)
}

// ClientStream is a call with any number of messages either way. One goroutine may send while another receives.
// It has to be received from until there is an error, or be closed.
type ClientStream struct {
	cancel  context.CancelFunc
	body    *io.PipeWriter
	started chan struct{} // closed when answer and err are set
	answer  *http.Response
	err     error
}

// Stream begins a call. That the server is not there, or does not want it, is said by Recv.
func (c *Client) Stream(ctx context.Context, method string) (*ClientStream, error) {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	request, err := c.request(ctx, method, r)
	if err != nil {
		cancel()
		return nil, err
	}
	context.AfterFunc(ctx, func() { r.CloseWithError(ctx.Err()) }) // while it reads, net/http does not look at the context
	s := &ClientStream{cancel: cancel, body: w, started: make(chan struct{})}
	go func() {
		s.answer, s.err = c.roundTrip(request)
		if s.err != nil {
			r.Close()
		}
		close(s.started)
		if ctx.Err() != nil {
			s.Close()
		}
	}()
	return s, nil
}

// Send sends a message. The error is io.EOF if the call is over: Recv says how it ended.
func (s *ClientStream) Send(m any) error {
	b, err := frame(m)
	if err != nil {
		return err
	}
	if _, err := s.body.Write(b); err != nil {
		return io.EOF
	}
	return nil
}

// CloseSend tells the server that there are no more messages.
func (s *ClientStream) CloseSend() error { return s.body.Close() }

// Recv waits for the next message. The error is io.EOF when the server has ended the call well.
func (s *ClientStream) Recv(m any) error {
	<-s.started
	if s.err == nil {
		s.err = receive(s.answer, m)
	}
	if s.err != nil {
		s.Close()
	}
	return s.err
}

// Close ends the call, if it has not ended.
func (s *ClientStream) Close() error {
	s.cancel()
	s.body.Close()
	select {
	case <-s.started:
		if s.answer != nil {
			s.answer.Body.Close()
		}
	default: // its goroutine does it
	}
	return nil
}
