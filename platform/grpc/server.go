// SPDX-License-Identifier: Apache-2.0

package grpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"time"
)

// Server answers calls.
type Server struct {
	http     http.Server
	methods  map[string]func(*call) error
	stopping context.Context // ends the streams
	stop     context.CancelFunc
}

// NewServer returns a server without methods.
func NewServer() *Server {
	s := &Server{methods: map[string]func(*call) error{}}
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.http.Handler = s
	s.http.Protocols = new(http.Protocols)
	s.http.Protocols.SetUnencryptedHTTP2(true)
	// By default, one stream that is not read fills the connection, and no call on it goes on.
	s.http.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 4<<20 - 1}
	s.http.ReadHeaderTimeout = 30 * time.Second // for the greeting of a new connection
	s.http.ErrorLog = slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug)
	return s
}

// Unary adds a method with one request and one response. All methods are added before the server serves.
func (s *Server) Unary(method string, h func(ctx context.Context, decode func(any) error) (any, error)) {
	s.methods[method] = func(c *call) error {
		defer c.interrupt()()
		answer, err := h(c.ctx, func(m any) error {
			err := c.recv(m)
			if err == io.EOF {
				err = Errorf(InvalidArgument, "the request is missing")
			}
			return err
		})
		if err != nil {
			return s.unlessStopping(c.ctx, err)
		}
		return c.send(answer)
	}
}

// Stream adds a method with any number of messages either way. Its context ends when the server is shut down.
func (s *Server) Stream(method string, h func(ctx context.Context, st *ServerStream) error) {
	s.methods[method] = func(c *call) error {
		client := c.ctx
		ctx, cancel := context.WithCancelCause(client)
		defer cancel(nil)
		defer context.AfterFunc(s.stopping, func() { cancel(errStopping) })()
		c.ctx = ctx
		defer c.interrupt()()
		st := &ServerStream{call: c}
		defer st.finish()
		return s.unlessStopping(client, h(ctx, st))
	}
}

// unlessStopping is the error of a call, unless that comes of the end of the server: then who is still there is told that.
func (s *Server) unlessStopping(client context.Context, err error) error {
	if code := CodeOf(err); (code == Canceled || code == Unavailable) && s.stopping.Err() != nil && client.Err() == nil {
		return errStopping
	}
	return err
}

var errStopping = lost("the server is shutting down")

// Serve accepts connections until Shutdown, after which it returns nil.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Stop ends the streams. Clients of calls that end from now on without a result are told that the server is shutting down. So it
// comes before the end of what the handlers work with.
func (s *Server) Stop() { s.stop() }

// Shutdown stops the server, takes no more calls, and waits for those that there are until the context ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.Stop()
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.http.Close()
	}
	return err
}

// call is one call, as the server sees it.
type call struct {
	ctx  context.Context
	w    http.ResponseWriter
	body io.Reader
}

// farewell is how long the end of a call may take a client that does not receive.
const farewell = time.Second

// interrupt ends what waits for the client when the context ends, until it is told that the handler has returned.
func (c *call) interrupt() (returned func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(c.ctx, func() {
		defer close(done)
		response := http.NewResponseController(c.w)
		response.SetReadDeadline(time.Unix(1, 0))
		response.SetWriteDeadline(time.Now().Add(farewell))
	})
	return func() {
		if !stop() {
			<-done
		}
	}
}

// lost is the error for one of the connection.
func (c *call) lost(err error) error {
	if c.ctx.Err() != nil {
		return c.ctx.Err()
	}
	return Errorf(Canceled, "the client ended the call: %v", err)
}

func (c *call) recv(m any) error {
	err := readMessage(c.body, m)
	var e *Error
	if err == nil || err == io.EOF || errors.As(err, &e) {
		return err
	}
	return c.lost(err)
}

func (c *call) send(m any) error {
	b, err := frame(m)
	if err != nil {
		return err
	}
	if _, err := c.w.Write(b); err != nil {
		return c.lost(err)
	}
	return nil
}

// ServeHTTP is one call.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method != http.MethodPost:
		http.Error(w, "gRPC is spoken here: POST is expected", http.StatusMethodNotAllowed)
		return
	case !isGRPC(r.Header):
		http.Error(w, "gRPC is spoken here: content type application/grpc is expected", http.StatusUnsupportedMediaType)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	err := s.handle(&call{r.Context(), w, r.Body}, r)
	h.Set(http.TrailerPrefix+"Grpc-Status", strconv.Itoa(int(CodeOf(err))))
	if err != nil {
		h.Set(http.TrailerPrefix+"Grpc-Message", encodeMessage(err.Error()))
	}
}

func (s *Server) handle(c *call, r *http.Request) (err error) {
	method, ok := s.methods[r.URL.Path]
	if !ok {
		return Errorf(Unimplemented, "unknown method %s", r.URL.Path)
	}
	if e := r.Header.Get("Grpc-Encoding"); e != "" && e != "identity" {
		c.w.Header().Set("Grpc-Accept-Encoding", "identity")
		return Errorf(Unimplemented, "compression %q is not supported", e)
	}
	if timeout := r.Header.Get("Grpc-Timeout"); timeout != "" {
		d, err := decodeTimeout(timeout)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(c.ctx, d)
		defer cancel()
		if c.ctx = ctx; ctx.Err() != nil {
			return ctx.Err()
		}
	}
	defer func() {
		if p := recover(); p != nil {
			slog.Error("a call has panicked", "method", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			err = Errorf(Internal, "%s has failed in an unexpected way", r.URL.Path)
		}
	}()
	return method(c)
}

// ServerStream is a call with any number of messages either way. One goroutine may receive while others send, until the
// handler returns.
type ServerStream struct {
	call *call

	mu      sync.Mutex
	err     error         // why no more can be sent
	unsent  chan struct{} // wakes the flusher, which begins with the first message
	flushed chan struct{} // closed when the flusher has ended
}

// Recv waits for the next message. The error is io.EOF when the client has no more.
func (s *ServerStream) Recv(m any) error { return s.call.recv(m) }

// Send sends a message. It is an error once the handler has returned.
//
// What is sent while a flush goes on, goes out with the next: a hundred thousand lines of a log at once do not need
// a hundred thousand frames and system calls, and a single message does not wait.
func (s *ServerStream) Send(m any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if err := s.call.send(m); err != nil {
		return err
	}
	if s.unsent == nil {
		s.unsent, s.flushed = make(chan struct{}, 1), make(chan struct{})
		go s.flush()
	}
	select {
	case s.unsent <- struct{}{}:
	default:
	}
	return nil
}

func (s *ServerStream) flush() {
	defer close(s.flushed)
	response := http.NewResponseController(s.call.w)
	for range s.unsent {
		s.mu.Lock()
		if err := response.Flush(); err != nil && s.err == nil {
			s.err = s.call.lost(err)
		}
		s.mu.Unlock()
	}
}

func (s *ServerStream) finish() {
	s.mu.Lock()
	s.err = errReturned
	unsent := s.unsent
	s.mu.Unlock()
	if unsent != nil {
		close(unsent)
		<-s.flushed
	}
}

var errReturned = Errorf(Canceled, "the call is over: its handler has returned")
