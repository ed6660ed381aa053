// SPDX-License-Identifier: Apache-2.0

package grpc

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"
)

type message struct {
	Text   string `pb:"1"`
	Number int64  `pb:"2"`
	Data   []byte `pb:"3"`
}

// serve starts a server with what setup adds, and gives a client of it. In the end, no goroutine may be left.
func serve(t testing.TB, setup func(s *Server)) (*Client, *Server) {
	t.Helper()
	noLeaks(t)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "sock"))
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer()
	setup(s)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c := NewClient("unix:" + l.Addr().String())
	t.Cleanup(func() {
		c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return c, s
}

func noLeaks(t testing.TB) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		var n int
		for range 200 {
			if n = runtime.NumGoroutine(); n <= before {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		stacks := make([]byte, 1<<20)
		t.Errorf("%d goroutines before, %d after\n%s", before, n, stacks[:runtime.Stack(stacks, true)])
	})
}

func inTime(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func echo(_ context.Context, decode func(any) error) (any, error) {
	var m message
	if err := decode(&m); err != nil {
		return nil, err
	}
	return &m, nil
}

func TestCallsAndStreamsCarryMessages(t *testing.T) {
	c, _ := serve(t, func(s *Server) {
		s.Unary("/t.T/Echo", echo)
		s.Stream("/t.T/EchoAll", func(ctx context.Context, st *ServerStream) error {
			for {
				var m message
				if err := st.Recv(&m); err == io.EOF {
					return nil
				} else if err != nil {
					return err
				}
				if err := st.Send(&m); err != nil {
					return err
				}
			}
		})
	})
	ctx := inTime(t)
	var got message
	if err := c.Call(ctx, "/t.T/Echo", &message{Text: "hello", Number: 7}, &got); err != nil || got.Text != "hello" || got.Number != 7 {
		t.Fatalf("%+v, %v", got, err)
	}
	st, err := c.Stream(ctx, "/t.T/EchoAll")
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(1000) { // one at a time: a message never waits for the next
		var m message
		if err := st.Send(&message{Number: i}); err != nil {
			t.Fatal(err)
		}
		if err := st.Recv(&m); err != nil || m.Number != i {
			t.Fatalf("%d: %+v, %v", i, m, err)
		}
	}
	if err := st.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := st.Recv(&got); err != io.EOF {
			t.Fatalf("end of stream is %v", err)
		}
	}
}

func TestStatusGoesWithAnyMessage(t *testing.T) {
	c, _ := serve(t, func(s *Server) {
		s.Unary("/t.T/Fail", func(_ context.Context, decode func(any) error) (any, error) {
			var m message
			if err := decode(&m); err != nil {
				return nil, err
			}
			switch m.Number {
			case -1:
				return nil, context.DeadlineExceeded
			case -2:
				return nil, errors.New(m.Text)
			case -3:
				panic("on purpose")
			}
			return nil, fmt.Errorf("wrapped: %w", Errorf(Code(m.Number), "%s", m.Text))
		})
		s.Stream("/t.T/FailLate", func(_ context.Context, st *ServerStream) error {
			if err := st.Send(&message{Number: 1}); err != nil {
				return err
			}
			return Errorf(Aborted, "enough")
		})
	})
	var logged bytes.Buffer
	log.SetOutput(&logged)
	defer log.SetOutput(os.Stderr)
	ctx := inTime(t)
	for _, text := range []string{"plain", "", "100% of \u00e4\u00f6\u00fc \u65e5\u672c\nline two\ttab", "%41 is no A", strings.Repeat("long ", 400)} {
		for code := Canceled; code <= Unauthenticated; code++ {
			err := c.Call(ctx, "/t.T/Fail", &message{Number: int64(code), Text: text}, &message{})
			var e *Error
			if !errors.As(err, &e) || e.Code != code || e.Message != "wrapped: "+(&Error{Code: code, Message: text}).Error() {
				t.Fatalf("%s %q arrived as %#v", code, text, err)
			}
		}
	}
	for number, want := range map[int64]Code{-1: DeadlineExceeded, -2: Unknown, -3: Internal, 99: 99} {
		if err := c.Call(ctx, "/t.T/Fail", &message{Number: number, Text: "x"}, &message{}); CodeOf(err) != want {
			t.Errorf("%d arrived as %v, expected %s", number, err, want)
		}
	}
	if !strings.Contains(logged.String(), "on purpose") || !strings.Contains(logged.String(), "grpc_test.go") {
		t.Errorf("the panic has been logged as %q", &logged)
	}
	if err := c.Call(ctx, "/t.T/Other", &message{}, &message{}); CodeOf(err) != Unimplemented {
		t.Errorf("an unknown method: %v", err)
	}
	st, err := c.Stream(ctx, "/t.T/FailLate")
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	var m message
	if err := st.Recv(&m); err != nil || m.Number != 1 {
		t.Fatalf("%+v, %v", m, err)
	}
	if err := st.Recv(&m); CodeOf(err) != Aborted || err.Error() != "enough" {
		t.Errorf("end of stream is %v", err)
	}
	for range 100 { // one of them comes after the end has been noticed
		if err = st.Send(&m); err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err != io.EOF {
		t.Errorf("sending to a stream that has ended: %v", err)
	}
}

// raw serves HTTP/2 as it is, for answers that a proper server does not give.
func raw(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	noLeaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	s.Protocols.SetUnencryptedHTTP2(true)
	go s.Serve(l)
	c := NewClient("tcp://" + l.Addr().String())
	t.Cleanup(func() {
		c.Close()
		s.Close()
	})
	return c
}

func TestClientUnderstandsWhatServersAnswer(t *testing.T) {
	good, err := frame(&message{Text: "good"})
	if err != nil {
		t.Fatal(err)
	}
	type answer struct {
		head    map[string]string // :status, and headers
		body    string
		trailer map[string]string
		then    func(w http.ResponseWriter)
	}
	grpcHead := func(more ...string) map[string]string {
		h := map[string]string{"Content-Type": "application/grpc+proto"}
		for i := 0; i < len(more); i += 2 {
			h[more[i]] = more[i+1]
		}
		return h
	}
	ok := map[string]string{"Grpc-Status": "0"}
	for _, c := range []struct {
		name string
		answer
		want Code
		text string
	}{
		{name: "a message and status OK", answer: answer{head: grpcHead(), body: string(good), trailer: ok}, want: OK},
		{name: "nothing but a status", answer: answer{head: grpcHead("Grpc-Status", "5", "Grpc-Message", "no%20such%0Athing%")}, want: NotFound, text: "no such\nthing%"},
		{name: "nothing but a status that is not UTF-8", answer: answer{head: grpcHead("Grpc-Status", "5", "Grpc-Message", "a%FFb%4")}, want: NotFound, text: "a\uFFFDb%4"},
		{name: "nothing but status OK", answer: answer{head: grpcHead("Grpc-Status", "0")}, want: Internal},
		{name: "a status but no message", answer: answer{head: grpcHead(), trailer: map[string]string{"Grpc-Status": "14", "Grpc-Message": "later"}}, want: Unavailable, text: "later"},
		{name: "a status after the message", answer: answer{head: grpcHead(), body: string(good), trailer: map[string]string{"Grpc-Status": "10"}}, want: Aborted},
		{name: "a status that is no number", answer: answer{head: grpcHead(), body: string(good), trailer: map[string]string{"Grpc-Status": "fine"}}, want: Unknown},
		{name: "no status", answer: answer{head: grpcHead(), body: string(good)}, want: Internal},
		{name: "two messages", answer: answer{head: grpcHead(), body: string(good) + string(good), trailer: ok}, want: Internal},
		{name: "compressed message", answer: answer{head: grpcHead(), body: "\x01\x00\x00\x00\x01x", trailer: ok}, want: Internal},
		{name: "unknown flags", answer: answer{head: grpcHead(), body: "\x02\x00\x00\x00\x01x", trailer: ok}, want: Internal},
		{name: "message cut off in its head", answer: answer{head: grpcHead(), body: "\x00\x00\x00", trailer: ok}, want: Internal},
		{name: "message cut off", answer: answer{head: grpcHead(), body: "\x00\x00\x00\x00\x09x", trailer: ok}, want: Internal},
		{name: "message that is none", answer: answer{head: grpcHead(), body: "\x00\x00\x00\x00\x01\x80", trailer: ok}, want: Internal},
		{name: "message too long", answer: answer{head: grpcHead(), body: "\x00\xff\xff\xff\xff", trailer: ok}, want: ResourceExhausted},
		{name: "web page", answer: answer{head: map[string]string{"Content-Type": "text/html"}, body: "hello"}, want: Unknown},
		{name: "almost gRPC", answer: answer{head: map[string]string{"Content-Type": "application/grpc-web"}, body: "hello"}, want: Unknown},
		{name: "HTTP 400", answer: answer{head: map[string]string{":status": "400"}}, want: Internal},
		{name: "HTTP 401", answer: answer{head: map[string]string{":status": "401"}}, want: Unauthenticated},
		{name: "HTTP 403", answer: answer{head: map[string]string{":status": "403"}}, want: PermissionDenied},
		{name: "HTTP 404", answer: answer{head: map[string]string{":status": "404"}}, want: Unimplemented},
		{name: "HTTP 503", answer: answer{head: map[string]string{":status": "503"}}, want: Unavailable},
		{name: "HTTP 500", answer: answer{head: map[string]string{":status": "500"}}, want: Unknown},
		{name: "reset", answer: answer{head: grpcHead(), then: func(http.ResponseWriter) { panic(http.ErrAbortHandler) }}, want: Internal},
		{name: "reset in a message", answer: answer{head: grpcHead(), body: "\x00\x00\x00\x00\x09x", then: func(w http.ResponseWriter) {
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}}, want: Internal},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := raw(t, func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				status := http.StatusOK
				for key, value := range c.head {
					if key == ":status" {
						fmt.Sscan(value, &status)
					} else {
						w.Header().Set(key, value)
					}
				}
				w.WriteHeader(status)
				io.WriteString(w, c.body)
				for key, value := range c.trailer {
					w.Header().Set(http.TrailerPrefix+key, value)
				}
				if c.then != nil {
					c.then(w)
				}
			})
			var got message
			err := client.Call(inTime(t), "/t.T/M", &message{}, &got)
			if CodeOf(err) != c.want || c.text != "" && err.Error() != c.text || errors.Is(err, ErrLost) {
				t.Errorf("%s %v, expected %s %s", CodeOf(err), err, c.want, c.text)
			}
			if c.want == OK && got.Text != "good" {
				t.Errorf("message %+v", got)
			}
		})
	}
}

func TestServerUnderstandsWhatClientsAsk(t *testing.T) {
	var deadline atomic.Int64
	c, _ := serve(t, func(s *Server) {
		s.Unary("/t.T/Echo", func(ctx context.Context, decode func(any) error) (any, error) {
			d, _ := ctx.Deadline()
			deadline.Store(int64(time.Until(d)))
			return echo(ctx, decode)
		})
	})
	good, err := frame(&message{Text: "good"})
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []struct {
		name, method, path string
		head               map[string]string
		body               string
		http               int
		status             string
	}{
		{name: "a message", body: string(good), status: "0"},
		{name: "a message and more", body: string(good) + string(good), status: "0"},
		{name: "an empty message", body: "\x00\x00\x00\x00\x00", status: "0"},
		{name: "no message", status: "3"},
		{name: "another content type of gRPC", body: string(good), head: map[string]string{"Content-Type": "application/grpc+proto"}, status: "0"},
		// A client of a UNIX socket may say its path, as a host name.
		{name: "the path of a socket as authority", body: string(good), head: map[string]string{"Host": "%2Frun%2Fcontainer-management%2Fcontainer-management.sock"}, status: "0"},
		{name: "unknown method", path: "/t.T/Nope", body: string(good), status: "12"},
		{name: "compression", head: map[string]string{"Grpc-Encoding": "gzip"}, body: string(good), status: "12"},
		{name: "no compression", head: map[string]string{"Grpc-Encoding": "identity"}, body: string(good), status: "0"},
		{name: "compressed message", body: "\x01\x00\x00\x00\x01x", status: "13"},
		{name: "message cut off", body: "\x00\x00\x00\x00\x05x", status: "13"},
		{name: "message that is none", body: "\x00\x00\x00\x00\x01\x80", status: "13"},
		{name: "message too long", body: "\x00\xff\xff\xff\xff", status: "8"},
		{name: "deadline", head: map[string]string{"Grpc-Timeout": "2H"}, body: string(good), status: "0"},
		{name: "deadline that is over", head: map[string]string{"Grpc-Timeout": "0n"}, body: string(good), status: "4"},
		{name: "deadline without unit", head: map[string]string{"Grpc-Timeout": "5"}, body: string(good), status: "13"},
		{name: "deadline of nine digits", head: map[string]string{"Grpc-Timeout": "100000000n"}, body: string(good), status: "13"},
		{name: "deadline before now", head: map[string]string{"Grpc-Timeout": "-1S"}, body: string(good), status: "13"},
		{name: "GET", method: "GET", http: 405},
		{name: "other content type", head: map[string]string{"Content-Type": "application/json"}, body: "{}", http: 415},
	} {
		t.Run(q.name, func(t *testing.T) {
			deadline.Store(0)
			if q.method == "" {
				q.method = "POST"
			}
			if q.path == "" {
				q.path = "/t.T/Echo"
			}
			r, err := http.NewRequestWithContext(inTime(t), q.method, "http://localhost"+q.path, strings.NewReader(q.body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/grpc")
			for key, value := range q.head {
				r.Header.Set(key, value)
			}
			r.Host = q.head["Host"]
			answer, err := c.transport.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			body, err := io.ReadAll(answer.Body)
			if err != nil {
				t.Fatal(err)
			}
			if q.http != 0 {
				if answer.StatusCode != q.http {
					t.Errorf("%s, expected %d", answer.Status, q.http)
				}
				return
			}
			if answer.StatusCode != 200 || answer.Header.Get("Content-Type") != "application/grpc" || answer.Trailer.Get("Grpc-Status") != q.status {
				t.Errorf("%s, headers %v, trailers %v, expected status %s", answer.Status, answer.Header, answer.Trailer, q.status)
			}
			if q.status == "0" && len(body) < 5 {
				t.Errorf("body %q", body)
			}
			if d := time.Duration(deadline.Load()); q.name == "deadline" && (d < 2*time.Hour-time.Minute || d > 2*time.Hour) {
				t.Errorf("deadline in %v", d)
			}
		})
	}
}

func TestTimeoutsFitIntoTheHeader(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second:              "0n",
		0:                         "0n",
		1:                         "1n",
		99999999:                  "99999999n",
		100000000:                 "100000u",
		100000001:                 "100001u",
		5 * time.Second:           "5000000u",
		5*time.Minute + 1:         "300001m",
		48 * time.Hour:            "172800S",
		10000 * time.Hour * 24:    "14400000M",
		math.MaxInt64:             "2562048H",
		99999999*time.Second + 1:  "1666667M",
		math.MaxInt64 - time.Hour: "2562047H",
	} {
		got := encodeTimeout(d)
		back, err := decodeTimeout(got)
		if err != nil || back < d && d > 0 {
			t.Errorf("%v became %s, that is %v, %v", d, got, back, err)
		}
		if got != want {
			t.Errorf("%v became %s, expected %s", d, got, want)
		}
	}
	if d, err := decodeTimeout("99999999H"); err != nil || d != math.MaxInt64 {
		t.Errorf("longest timeout is %v, %v", d, err)
	}
}

func TestDeadlinesAndCancellationGoBothWays(t *testing.T) {
	ended := make(chan error, 10)
	block := func(ctx context.Context) error {
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	c, _ := serve(t, func(s *Server) {
		s.Unary("/t.T/Block", func(ctx context.Context, _ func(any) error) (any, error) { return nil, block(ctx) })
		s.Stream("/t.T/BlockStream", func(ctx context.Context, st *ServerStream) error {
			if err := st.Send(&message{}); err != nil {
				return err
			}
			return block(ctx)
		})
		s.Stream("/t.T/Silent", func(ctx context.Context, _ *ServerStream) error { return block(ctx) })
	})
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Call(short, "/t.T/Block", &message{}, &message{}); CodeOf(err) != DeadlineExceeded {
		t.Errorf("after the deadline: %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the handler has not been told")
	}
	if err := c.Call(short, "/t.T/Block", &message{}, &message{}); CodeOf(err) != DeadlineExceeded {
		t.Errorf("begun after the deadline: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := c.Call(ctx, "/t.T/Block", &message{}, &message{}); CodeOf(err) != Canceled {
		t.Errorf("after cancellation: %v", err)
	}
	if err := <-ended; err != context.Canceled {
		t.Errorf("the handler was told %v", err)
	}
	for _, end := range []func(*ClientStream, context.CancelFunc){
		func(st *ClientStream, _ context.CancelFunc) { st.Close() },
		func(_ *ClientStream, cancel context.CancelFunc) { cancel() },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		st, err := c.Stream(ctx, "/t.T/BlockStream")
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		if err := st.Recv(&message{}); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(20*time.Millisecond, func() { end(st, cancel) })
		if err := st.Recv(&message{}); CodeOf(err) != Canceled {
			t.Errorf("after the end of the stream: %v", err)
		}
		if err := <-ended; err != context.Canceled {
			t.Errorf("the handler was told %v", err)
		}
	}
	silent, cancel := context.WithCancel(t.Context())
	st, err := c.Stream(silent, "/t.T/Silent") // no answer, and nothing to send
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := st.Recv(&message{}); CodeOf(err) != Canceled {
		t.Errorf("after the end of a stream without an answer: %v", err)
	}
	if err := st.Send(&message{}); err != io.EOF {
		t.Errorf("sending after the end: %v", err)
	}
	if err := <-ended; err != context.Canceled {
		t.Errorf("the handler was told %v", err)
	}
	st, err = c.Stream(t.Context(), "/t.T/BlockStream") // closed at once
	if err != nil {
		t.Fatal(err)
	}
	st.Close()
	if err := st.Recv(&message{}); CodeOf(err) != Canceled {
		t.Errorf("receiving from a closed stream: %v", err)
	}
}

func TestHandlersDoNotWaitForClientsWhenTheirTimeIsUp(t *testing.T) {
	ended := make(chan error, 2)
	c, s := serve(t, func(s *Server) {
		s.Stream("/t.T/Down", func(_ context.Context, st *ServerStream) (err error) {
			for err == nil {
				err = st.Send(&message{Data: make([]byte, 1<<20)})
			}
			ended <- err
			return err
		})
		s.Stream("/t.T/Up", func(_ context.Context, st *ServerStream) error {
			err := st.Recv(&message{})
			ended <- err
			return err
		})
		s.Unary("/t.T/Large", func(context.Context, func(any) error) (any, error) { return &message{Data: make([]byte, 15<<20)}, nil })
	})
	begin := func(ctx context.Context, method string) *ClientStream {
		t.Helper()
		st, err := c.Stream(ctx, method)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { st.Close() })
		return st
	}
	wantEnd := func(want Code) {
		t.Helper()
		select {
		case err := <-ended:
			if CodeOf(err) != want {
				t.Errorf("the handler was told %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a handler waits for a client that stands still")
		}
	}
	// A client that forgets the deadline that it has told.
	late := WithHeader(t.Context(), "Grpc-Timeout", "100m")
	begin(late, "/t.T/Down")
	wantEnd(DeadlineExceeded)
	if err := begin(late, "/t.T/Up").Recv(&message{}); CodeOf(err) != DeadlineExceeded {
		t.Errorf("the client was told %v", err)
	}
	wantEnd(DeadlineExceeded)
	large := begin(late, "/t.T/Large")
	large.Send(&message{})
	large.CloseSend()

	begin(t.Context(), "/t.T/Down")
	up := begin(t.Context(), "/t.T/Up")
	time.Sleep(100 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	wantEnd(Canceled)
	wantEnd(Canceled)
	if err := up.Recv(&message{}); CodeOf(err) != Unavailable || !strings.Contains(err.Error(), "shutting down") {
		t.Errorf("the client was told %v", err)
	}
}

func TestALongErrorIsCutOffAndNothingElse(t *testing.T) {
	c, _ := serve(t, func(s *Server) {
		s.Unary("/t.T/Echo", echo)
		s.Unary("/t.T/Long", func(context.Context, func(any) error) (any, error) {
			return nil, Errorf(Aborted, "a%s", strings.Repeat("ä", 8<<20))
		})
	})
	err := c.Call(t.Context(), "/t.T/Long", &message{}, &message{})
	if CodeOf(err) != Aborted || len(err.Error()) > maxStatus+10 || !strings.HasPrefix(err.Error(), "aää") || !strings.HasSuffix(err.Error(), "ä…") {
		t.Errorf("%v: %.20q… of %d bytes", CodeOf(err), err, len(err.Error()))
	}
	if err := c.Call(t.Context(), "/t.T/Echo", &message{}, &message{}); err != nil {
		t.Error(err)
	}
}

// A receiver that does not receive stops its sender, and nobody else.
func TestFlowIsControlled(t *testing.T) {
	const size, count = 1 << 20, 64
	var sent, received atomic.Int64
	goOn := make(chan struct{})
	c, _ := serve(t, func(s *Server) {
		s.Unary("/t.T/Echo", echo)
		s.Stream("/t.T/Down", func(_ context.Context, st *ServerStream) error {
			for i := range int64(count) {
				if err := st.Send(&message{Number: i, Data: make([]byte, size)}); err != nil {
					return err
				}
				sent.Add(1)
			}
			return nil
		})
		s.Stream("/t.T/Up", func(_ context.Context, st *ServerStream) error {
			<-goOn
			for {
				var m message
				if err := st.Recv(&m); err == io.EOF {
					return st.Send(&message{Number: received.Load()})
				} else if err != nil {
					return err
				}
				received.Add(1)
			}
		})
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	down, err := c.Stream(ctx, "/t.T/Down")
	if err != nil {
		t.Fatal(err)
	}
	defer down.Close()
	up, err := c.Stream(ctx, "/t.T/Up")
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	var uploaded atomic.Int64
	go func() {
		for range count {
			if err := up.Send(&message{Data: make([]byte, size)}); err != nil {
				t.Error(err)
			}
			uploaded.Add(1)
		}
		up.CloseSend()
	}()
	time.Sleep(300 * time.Millisecond)
	if sent, uploaded := sent.Load(), uploaded.Load(); sent > count/2 || uploaded > count/2 {
		t.Errorf("%d and %d MB have been sent, though nobody receives", sent, uploaded)
	}
	for range 20 {
		if err := c.Call(ctx, "/t.T/Echo", &message{}, &message{}); err != nil {
			t.Fatalf("beside streams that stand still: %v", err)
		}
	}
	close(goOn)
	for i := range int64(count) {
		var m message
		if err := down.Recv(&m); err != nil || m.Number != i || len(m.Data) != size {
			t.Fatalf("message %d: %d, %d bytes, %v", i, m.Number, len(m.Data), err)
		}
	}
	var m message
	if err := up.Recv(&m); err != nil || m.Number != count {
		t.Errorf("%+v, %v", m.Number, err)
	}
}

func TestMessagesHaveALimit(t *testing.T) {
	c, _ := serve(t, func(s *Server) {
		s.Unary("/t.T/Echo", echo)
		s.Unary("/t.T/Big", func(context.Context, func(any) error) (any, error) {
			return &message{Data: make([]byte, maxMessage)}, nil
		})
	})
	ctx := inTime(t)
	var got message
	if err := c.Call(ctx, "/t.T/Echo", &message{Data: make([]byte, maxMessage-10)}, &got); err != nil || len(got.Data) != maxMessage-10 {
		t.Errorf("the longest message: %d bytes back, %v", len(got.Data), err)
	}
	if err := c.Call(ctx, "/t.T/Echo", &message{Data: make([]byte, maxMessage)}, &got); CodeOf(err) != ResourceExhausted {
		t.Errorf("a request that is too long: %v", err)
	}
	if err := c.Call(ctx, "/t.T/Big", &message{}, &got); CodeOf(err) != ResourceExhausted {
		t.Errorf("a response that is too long: %v", err)
	}
	if err := c.Call(ctx, "/t.T/Echo", &struct {
		F float32 `pb:"1"`
	}{}, &got); CodeOf(err) != Internal {
		t.Errorf("a request that is no message: %v", err)
	}
}

type incoming struct{}

func withHeaders(s *Server) {
	s.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), incoming{}, r.Header)))
	})
}

// header is metadata of the call that a handler has got the context for, if the server has been told by withHeaders.
func header(ctx context.Context, key string) string {
	h, _ := ctx.Value(incoming{}).(http.Header)
	value := h.Get(key)
	if strings.HasSuffix(key, "-bin") {
		b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
		if err != nil {
			return ""
		}
		return string(b)
	}
	return value
}

func TestMetadataArrives(t *testing.T) {
	c, _ := serve(t, func(s *Server) {
		withHeaders(s)
		s.Unary("/t.T/Echo", func(ctx context.Context, _ func(any) error) (any, error) {
			return &message{Text: header(ctx, "Key") + "|" + header(ctx, "other"), Data: []byte(header(ctx, "raw-bin"))}, nil
		})
	})
	ctx := WithHeader(WithHeader(inTime(t), "key", "v a%lue"), "raw-bin", "\x00\xff\n")
	_ = WithHeader(ctx, "other", "not in ctx")
	var got message
	if err := c.Call(ctx, "/t.T/Echo", &message{}, &got); err != nil || got.Text != "v a%lue|" || string(got.Data) != "\x00\xff\n" {
		t.Errorf("%q %q, %v", got.Text, got.Data, err)
	}
	if err := c.Call(WithHeader(ctx, "key", "a\nb"), "/t.T/Echo", &message{}, &got); CodeOf(err) != InvalidArgument {
		t.Errorf("a value of two lines: %v", err)
	}
}

func TestClientConnectsWhenTheServerComes(t *testing.T) {
	noLeaks(t)
	path := filepath.Join(t.TempDir(), "sock")
	c := NewClient("unix:" + path)
	ctx := inTime(t)
	st, err := c.Stream(ctx, "/t.T/Echo")
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Recv(&message{}); CodeOf(err) != Unavailable || !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), path) {
		t.Errorf("without a server: %v", err)
	}
	if err := st.Send(&message{}); err != io.EOF {
		t.Errorf("sending without a server: %v", err)
	}
	for range 3 {
		if err := c.Call(ctx, "/t.T/Echo", &message{}, &message{}); CodeOf(err) != Unavailable || !errors.Is(err, ErrLost) {
			t.Errorf("without a server: %v", err)
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		blocked := make(chan struct{})
		s := NewServer()
		s.Unary("/t.T/Echo", echo)
		s.Unary("/t.T/Block", func(ctx context.Context, _ func(any) error) (any, error) {
			close(blocked)
			<-ctx.Done()
			return nil, ctx.Err()
		})
		go s.Serve(l)
		if err := c.Call(ctx, "/t.T/Echo", &message{}, &message{}); err != nil {
			t.Fatal(err)
		}
		lost := make(chan error)
		go func() { lost <- c.Call(ctx, "/t.T/Block", &message{}, &message{}) }()
		<-blocked
		s.http.Close() // as if it had been killed
		if err := <-lost; CodeOf(err) != Unavailable || !errors.Is(err, ErrLost) {
			t.Errorf("the loss of the server: %v", err)
		}
	}
	c.Close()
	if err := c.Call(ctx, "/t.T/Echo", &message{}, &message{}); CodeOf(err) != Canceled {
		t.Errorf("a call after Close: %v", err)
	}
}

// costly is a context of which each child keeps a goroutine.
type costly struct {
	context.Context
	done chan struct{}
}

func (c costly) Done() <-chan struct{} { return c.done }

func TestAStreamThatDoesNotBeginLeavesNothing(t *testing.T) {
	noLeaks(t)
	c := NewClient("unix:" + filepath.Join(t.TempDir(), "absent"))
	defer c.Close()
	st, err := c.Stream(costly{t.Context(), make(chan struct{})}, "/t.T/Down")
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Recv(&message{}); CodeOf(err) != Unavailable {
		t.Error(err)
	}
}

func TestCloseEndsCalls(t *testing.T) {
	c, _ := serve(t, func(s *Server) {
		s.Stream("/t.T/Block", func(ctx context.Context, st *ServerStream) error {
			if err := st.Send(&message{}); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		})
	})
	st, err := c.Stream(inTime(t), "/t.T/Block")
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Recv(&message{}); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, func() { c.Close() })
	if err := st.Recv(&message{}); CodeOf(err) != Unavailable {
		t.Errorf("after Close: %v", err)
	}
}

func TestShutdownFinishesCallsAndEndsStreams(t *testing.T) {
	begun, finish := make(chan struct{}), make(chan struct{})
	c, s := serve(t, func(s *Server) {
		s.Unary("/t.T/Slow", func(context.Context, func(any) error) (any, error) {
			close(begun)
			<-finish
			return &message{Text: "done"}, nil
		})
		s.Stream("/t.T/Events", func(ctx context.Context, st *ServerStream) error {
			if err := st.Send(&message{}); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		})
	})
	ctx := inTime(t)
	st, err := c.Stream(ctx, "/t.T/Events")
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Recv(&message{}); err != nil {
		t.Fatal(err)
	}
	var got message
	called := make(chan error)
	go func() { called <- c.Call(ctx, "/t.T/Slow", &message{}, &got) }()
	<-begun
	down := make(chan error)
	go func() { down <- s.Shutdown(ctx) }()
	if err := st.Recv(&message{}); CodeOf(err) != Unavailable || !strings.Contains(err.Error(), "shutting down") {
		t.Errorf("the stream ended with %v", err)
	}
	select {
	case err := <-down:
		t.Fatalf("shut down with a call under way: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(finish)
	if err := <-called; err != nil || got.Text != "done" {
		t.Errorf("the call under way: %+v, %v", got, err)
	}
	if err := <-down; err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if err := c.Call(ctx, "/t.T/Slow", &message{}, &got); CodeOf(err) != Unavailable {
		t.Errorf("a call after shutdown: %v", err)
	}
}

// What handlers work with may end with the server, or know of its end.
func TestCallsThatEndWithTheServerSaySo(t *testing.T) {
	for _, test := range []struct {
		err  error // of the handler
		want string
	}{
		{context.Canceled, "shutting down"},
		{Errorf(Unavailable, "the engine is stopping"), "shutting down"},
		{Errorf(NotFound, "there is none"), "there is none"},
	} {
		begun, finish := make(chan struct{}, 2), make(chan struct{})
		c, s := serve(t, func(s *Server) {
			s.Unary("/t.T/Slow", func(context.Context, func(any) error) (any, error) {
				begun <- struct{}{}
				<-finish
				return nil, test.err
			})
			s.Stream("/t.T/Stream", func(context.Context, *ServerStream) error {
				begun <- struct{}{}
				<-finish
				return test.err
			})
		})
		ctx := inTime(t)
		st, err := c.Stream(ctx, "/t.T/Stream")
		if err != nil {
			t.Fatal(err)
		}
		called := make(chan error)
		go func() { called <- c.Call(ctx, "/t.T/Slow", &message{}, &message{}) }()
		<-begun
		<-begun
		s.Stop()
		close(finish)
		for what, err := range map[string]error{"call": <-called, "stream": st.Recv(&message{})} {
			if err == nil || !strings.Contains(err.Error(), test.want) || errors.Is(err, ErrLost) != (test.want == "shutting down") {
				t.Errorf("%s that ended with %v: %v, want %s", what, test.err, err, test.want)
			}
		}
	}
}

// A call that ends while the server goes on is not about the server.
func TestCancelledCallsOfAServerThatGoesOnAreThat(t *testing.T) {
	c, _ := serve(t, func(s *Server) {
		s.Unary("/t.T/Call", func(context.Context, func(any) error) (any, error) { return nil, context.Canceled })
	})
	if err := c.Call(inTime(t), "/t.T/Call", &message{}, &message{}); CodeOf(err) != Canceled {
		t.Error(err)
	}
}

func TestManyCallsAtOnce(t *testing.T) {
	gate := make(chan struct{})
	var waiting atomic.Int64
	c, _ := serve(t, func(s *Server) {
		s.Unary("/t.T/Wait", func(ctx context.Context, decode func(any) error) (any, error) {
			waiting.Add(1)
			<-gate
			return echo(ctx, decode)
		})
	})
	const n = 600 // more than fit on a connection
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for i := range int64(n) {
		all.Go(func() {
			var got message
			if err := c.Call(ctx, "/t.T/Wait", &message{Number: i}, &got); err != nil || got.Number != i {
				t.Errorf("call %d: %+v, %v", i, got, err)
			}
		})
	}
	for waiting.Load() < n && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	if got := waiting.Load(); got != n {
		t.Errorf("%d calls wait, expected %d", got, n)
	}
	close(gate)
	all.Wait()
}

func TestManyMayReceiveAndSendOnOneStream(t *testing.T) {
	const n = 2000
	c, _ := serve(t, func(s *Server) {
		s.Stream("/t.T/Mix", func(_ context.Context, st *ServerStream) error {
			var all sync.WaitGroup
			defer all.Wait()
			for range 2 {
				all.Go(func() {
					for range n {
						if err := st.Send(&message{Text: "from the server"}); err != nil {
							t.Error(err)
						}
					}
				})
			}
			for {
				if err := st.Recv(&message{}); err != nil {
					return nil
				}
			}
		})
	})
	st, err := c.Stream(inTime(t), "/t.T/Mix")
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	go func() {
		for range n {
			st.Send(&message{Text: "from the client"})
		}
		st.CloseSend()
	}()
	var m message
	for got := 0; ; got++ {
		if err := st.Recv(&m); err == io.EOF {
			if got != 2*n {
				t.Errorf("%d messages, expected %d", got, 2*n)
			}
			return
		} else if err != nil || m.Text != "from the server" {
			t.Fatalf("%+v, %v", m, err)
		}
	}
}

func TestSendingAfterTheHandlerHasReturnedIsAnError(t *testing.T) {
	late := make(chan error, 2)
	c, _ := serve(t, func(s *Server) {
		s.Stream("/t.T/Hasty", func(_ context.Context, st *ServerStream) error {
			sent, silent := make(chan bool), make(chan bool)
			go func() { // somebody who does not notice
				for {
					if err := st.Send(&message{Text: "more"}); err != nil {
						late <- err
						return
					}
					select {
					case sent <- true:
					case <-silent:
					}
				}
			}()
			<-sent
			close(silent)
			return nil
		})
		s.Stream("/t.T/Silent", func(_ context.Context, st *ServerStream) error {
			go func() {
				time.Sleep(time.Millisecond)
				late <- st.Send(&message{Text: "first"})
			}()
			return nil
		})
	})
	for range 100 {
		for _, method := range []string{"/t.T/Hasty", "/t.T/Silent"} {
			st, err := c.Stream(inTime(t), method)
			if err != nil {
				t.Fatal(err)
			}
			for err == nil {
				err = st.Recv(&message{})
			}
			if err != io.EOF {
				t.Fatal(err)
			}
			if err := <-late; CodeOf(err) != Canceled {
				t.Fatalf("sent late: %v", err)
			}
		}
	}
}

func FuzzReadMessage(f *testing.F) {
	good, _ := frame(&message{Text: "good"})
	f.Add(good)
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		for {
			err := readMessage(r, &message{})
			if err == io.EOF {
				return
			}
			if err != nil {
				var e *Error
				if !errors.As(err, &e) {
					t.Fatalf("error %v without a code", err)
				}
				return
			}
		}
	})
}

func FuzzMessageOfAStatus(f *testing.F) {
	f.Add("a%20b%")
	f.Add(strings.Repeat("ä", maxStatus))
	f.Add(strings.Repeat("\x91", 2*maxStatus))
	f.Fuzz(func(t *testing.T, s string) {
		encoded := encodeMessage(s)
		if strings.ContainsFunc(encoded, func(c rune) bool { return c < ' ' || c > '~' }) {
			t.Fatalf("%q does not fit into a header", encoded)
		}
		want, got := strings.ToValidUTF8(s, "\uFFFD"), decodeMessage(encoded)
		if len(want) > maxStatus { // of what is too long, all but perhaps a part of a character
			short, cut := strings.CutSuffix(got, "…")
			if !cut || len(short) <= maxStatus-utf8.UTFMax || len(short) > maxStatus {
				t.Fatalf("%d bytes became %q", len(want), got)
			}
			want, got = want[:len(short)], short
		}
		if got != want {
			t.Fatalf("%q became %q", s, got)
		}
		decodeMessage(s)
		if d, err := decodeTimeout(s); err == nil && d < 0 {
			t.Fatalf("%q is %v", s, d)
		}
		h := http.Header{"Grpc-Status": {s}, "Grpc-Message": {s}}
		if err, ok := status(h); ok && err != nil && CodeOf(err) == OK {
			t.Fatalf("%q is an error and none", s)
		}
	})
}

func BenchmarkCall(b *testing.B) {
	c, _ := serve(b, func(s *Server) { s.Unary("/t.T/Echo", echo) })
	var got message
	for b.Loop() {
		if err := c.Call(b.Context(), "/t.T/Echo", &message{Text: "hello"}, &got); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStream(b *testing.B) {
	c, _ := serve(b, func(s *Server) {
		s.Stream("/t.T/Lines", func(_ context.Context, st *ServerStream) error {
			m := &message{Text: strings.Repeat("x", 100)}
			for {
				if err := st.Send(m); err != nil {
					return err
				}
			}
		})
	})
	st, err := c.Stream(b.Context(), "/t.T/Lines")
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	b.SetBytes(100)
	for b.Loop() {
		if err := st.Recv(&message{}); err != nil {
			b.Fatal(err)
		}
	}
}
