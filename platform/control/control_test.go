// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serve serves h at address and returns the listener and what ends it.
func serve(t *testing.T, address string, h Handlers) (net.Listener, func()) {
	t.Helper()
	l, err := Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- Serve(ctx, l, h) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Serve ends with %v", err)
		}
	})
	t.Cleanup(stop)
	return l, stop
}

func echo() Handlers {
	return Handlers{
		"GET /echo": func(_ context.Context, q url.Values) (any, error) { return q, nil },
		"GET /text": func(context.Context, url.Values) (any, error) {
			return Text{"text/plain", []byte("hello\n")}, nil
		},
		"GET /odd": func(context.Context, url.Values) (any, error) { return func() {}, nil },
		"POST /no": func(context.Context, url.Values) (any, error) {
			return nil, fmt.Errorf("stop: %w", Refusal("nothing runs"))
		},
		"POST /broken": func(context.Context, url.Values) (any, error) { return nil, errors.New("it broke") },
	}
}

func TestAskGetsTheAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "socket")
	serve(t, "unix:"+path, echo())
	var got map[string][]string
	if err := Ask(t.Context(), path, "GET", "/echo?a=1%262&b=", &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string][]string{"a": {"1&2"}, "b": {""}}, got); diff != "" {
		t.Error(diff)
	}
	var text Text
	if err := Ask(t.Context(), path, "GET", "/text", &text); err != nil || text.Type != "text/plain" || string(text.Body) != "hello\n" {
		t.Errorf("%q, %v", text, err)
	}
	for _, test := range []struct{ method, target, want string }{
		{"POST", "/no", "stop: nothing runs"},
		{"POST", "/broken", "it broke"},
		{"POST", "/echo", "no such request: POST /echo"},
		{"GET", "/odd", "the answer cannot be encoded"},
	} {
		err := Ask(t.Context(), path, test.method, test.target, nil)
		if err == nil || err.Error() != test.want {
			t.Errorf("%s: error %v, want %s", test.target, err, test.want)
		}
		var refusal Refusal
		if errors.As(err, &refusal) != (test.target == "/no") {
			t.Errorf("%s: error of type %T", test.target, err)
		}
	}
}

func TestSocketIsForOwnerAndGroupAndGoesWithItsServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	if err := Ask(t.Context(), path, "GET", "/echo", nil); !errors.Is(err, ErrDown) {
		t.Errorf("without a socket: %v", err)
	}
	_, stop := serve(t, "unix:"+path, echo())
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	stop()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the server: %v", err)
	}

	// A process that was killed leaves its socket behind.
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	if err := Ask(t.Context(), path, "GET", "/echo", nil); !errors.Is(err, ErrDown) {
		t.Errorf("with a dead socket: %v", err)
	}
	serve(t, "unix:"+path, echo())
	if err := Ask(t.Context(), path, "GET", "/echo", nil); err != nil {
		t.Error(err)
	}

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix:" + file); err == nil || !strings.Contains(err.Error(), "something else than a socket") {
		t.Errorf("over a file: %v", err)
	}
}

func TestOtherClientsOfHTTPAreServed(t *testing.T) {
	l, _ := serve(t, "127.0.0.1:0", echo())
	for range 3 { // a client that would like to keep the connection
		res, err := http.Get("http://" + l.Addr().String() + "/text")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != 200 || string(body) != "hello\n" || err != nil {
			t.Errorf("%s %q, %v", res.Status, body, err)
		}
	}
}

func TestSilentAndLoudClientsHinderNobody(t *testing.T) {
	l, _ := serve(t, "127.0.0.1:0", echo())
	for range maxClients - 1 {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	go io.WriteString(conn, "GET /text HTTP/1.1\r\nX: "+strings.Repeat("x", 2*maxRequest))
	if answer, _ := io.ReadAll(conn); len(answer) > 0 {
		t.Errorf("an endless request was answered with %q", answer)
	}
	conn.Close()
	res, err := http.Get("http://" + l.Addr().String() + "/text")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
}

func FuzzRequest(f *testing.F) {
	f.Add("GET /echo?a=b HTTP/1.1\r\nHost: x\r\n\r\n")
	f.Add("POST /no HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello")
	f.Add("GET http://[::1]:1/%2e?%zz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n")
	f.Fuzz(func(t *testing.T, request string) {
		var out strings.Builder
		echo().serve(t.Context(), struct {
			io.Reader
			io.Writer
		}{strings.NewReader(request), &out})
		if s := out.String(); s != "" && !strings.HasPrefix(s, "HTTP/1.1 ") {
			t.Errorf("answer %q", s)
		}
	})
}
