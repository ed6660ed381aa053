// SPDX-License-Identifier: Apache-2.0

// Package control lets a running daemon be asked: short questions and answers over HTTP, on a UNIX socket for those whom the
// file system lets in, or on a TCP port. One request goes over one connection; that is all that curl, Prometheus and Ask
// need, and costs 25 kB of program where the server of net/http, with its HTTP/2, costs 380.
package control

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	patience   = 10 * time.Second // for a request to come, to be answered and to be taken
	maxRequest = 16 << 10
	maxAnswer  = 16 << 20
	maxClients = 16 // served at the same time; more have to wait
)

// ErrDown says that nobody answers.
var ErrDown = errors.New("not running")

// Handlers answer requests, by "METHOD /path". The answer is sent as JSON, a Text as it is. An error is sent with its
// text: a Refusal as a mistake of the one who asks, any other as one of ours.
type Handlers map[string]func(ctx context.Context, query url.Values) (any, error)

// Text is an answer that is not JSON.
type Text struct {
	Type string // such as text/plain
	Body []byte
}

// Refusal is an error of the one who asks.
type Refusal string

func (r Refusal) Error() string { return string(r) }

// Listen listens at unix:/PATH or HOST:PORT. The socket may be used by owner and group; what a process that was killed has
// left there is replaced.
func Listen(address string) (net.Listener, error) {
	path, ok := strings.CutPrefix(address, "unix:")
	if !ok {
		return net.Listen("tcp", address)
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("listen at %s: there is something else than a socket", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	// It gets its name when it has its permissions.
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(temp, 0o660); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		l.Close()
		os.Remove(temp)
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	return socket{l, path}, nil
}

// socket is a listener that takes its name away when it closes.
type socket struct {
	net.Listener
	path string
}

func (s socket) Close() error {
	os.Remove(s.path)
	return s.Listener.Close()
}

// Serve answers requests until ctx ends, and closes l.
func Serve(ctx context.Context, l net.Listener, h Handlers) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	free := make(chan struct{}, maxClients)
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // no file descriptor left: someone may close one
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			conn.Close()
			return ctx.Err()
		}
		go func() {
			defer func() { <-free }()
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			h.serve(ctx, conn)
		}()
	}
}

// serve answers one request. Who does not speak HTTP gets no answer.
func (h Handlers) serve(ctx context.Context, conn io.ReadWriter) {
	r, err := http.ReadRequest(bufio.NewReader(io.LimitReader(conn, maxRequest)))
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	code, answer := h.answer(ctx, r)
	io.Copy(conn, bytes.NewReader(encode(code, answer)))
}

func (h Handlers) answer(ctx context.Context, r *http.Request) (code int, answer any) {
	handle := h[r.Method+" "+r.URL.Path]
	if handle == nil {
		return http.StatusNotFound, failure{fmt.Sprintf("no such request: %s %s", r.Method, r.URL.Path)}
	}
	v, err := handle(ctx, r.URL.Query())
	var refusal Refusal
	switch {
	case errors.As(err, &refusal):
		return http.StatusConflict, failure{err.Error()}
	case err != nil:
		return http.StatusInternalServerError, failure{err.Error()}
	}
	return http.StatusOK, v
}

type failure struct {
	Error string `json:"error"`
}

func encode(code int, answer any) []byte {
	text, ok := answer.(Text)
	if !ok {
		body, err := json.Marshal(answer)
		if err != nil {
			code, body = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be encoded"}`)
		}
		text = Text{"application/json", append(body, '\n')}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		code, http.StatusText(code), text.Type, len(text.Body), text.Body)
	return b.Bytes()
}

// Ask sends a request to the daemon behind a socket and decodes the answer into v, which may be a *Text or nil. The error is
// ErrDown when there is no daemon, and a Refusal when it does not want to.
func Ask(ctx context.Context, path, method, target string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://localhost"+target, nil)
	if err != nil {
		return err
	}
	t := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}
	res, err := t.RoundTrip(r)
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nobody listens at %s", ErrDown, path)
	case err != nil:
		return fmt.Errorf("ask at %s: %w", path, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask at %s: %w", path, err)
	}
	if res.StatusCode != http.StatusOK {
		var f failure
		json.Unmarshal(body, &f)
		if res.StatusCode == http.StatusConflict {
			return Refusal(f.Error)
		}
		return errors.New(cmp.Or(f.Error, res.Status))
	}
	switch v := v.(type) {
	case nil:
		return nil
	case *Text:
		*v = Text{res.Header.Get("Content-Type"), body}
		return nil
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("ask at %s: %w", path, err)
	}
	return nil
}
