// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sdvbox/testing/ctragent"
	"sdvbox/testing/vehicle"
)

// origin is the server with the bundles and the images of containers. It runs on this machine, which the vehicle sees as 10.0.2.2.
type origin struct {
	addr  string
	ships *ctragent.Registry
	mu    sync.Mutex
	files map[string]file // by path
	asked []request
	open  *http.Server
	died  chan struct{} // closed when it dies in the middle of a file
}

// file is what the server has, with its manners.
type file struct {
	path string
	// noRange: the file always comes from its beginning, and the first time only half of it.
	noRange bool
	// dieAt: the whole server dies after so many bytes, once.
	dieAt int64
}

// request is one that came.
type request struct {
	path, rang string
	sent       int64
}

func newOrigin(t *testing.T, images ...*ctragent.Image) *origin {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &origin{addr: l.Addr().String(), ships: ctragent.NewRegistry(images...), files: map[string]file{}, died: make(chan struct{})}
	o.serve(l)
	t.Cleanup(func() { o.open.Close() })
	return o
}

func (o *origin) serve(l net.Listener) {
	o.open = &http.Server{Handler: o}
	go o.open.Serve(l)
}

// restart brings a server that died back to life.
func (o *origin) restart() error {
	l, err := net.Listen("tcp", o.addr)
	if err == nil {
		o.serve(l)
	}
	return err
}

// host is the server's address for the vehicle.
func (o *origin) host() string {
	_, port, _ := net.SplitHostPort(o.addr)
	return net.JoinHostPort(vehicle.Host, port)
}

// offer makes a file known and returns its URL.
func (o *origin) offer(name string, f file) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.files["/"+name] = f
	return "http://" + o.host() + "/" + name
}

// requests returns those for a file.
func (o *origin) requests(name string) []request {
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []request
	for _, r := range o.asked {
		if r.path == "/"+name {
			list = append(list, r)
		}
	}
	return list
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/v2/") {
		o.ships.ServeHTTP(w, r)
		return
	}
	o.mu.Lock()
	f, ok := o.files[r.URL.Path]
	n := len(o.asked)
	o.asked = append(o.asked, request{path: r.URL.Path, rang: r.Header.Get("Range")})
	first := true
	for _, before := range o.asked[:n] {
		first = first && before.path != r.URL.Path
	}
	o.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	c := &counter{ResponseWriter: w, limit: -1}
	defer func() {
		o.mu.Lock()
		o.asked[n].sent = c.sent
		o.mu.Unlock()
	}()
	src, err := os.Open(f.path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	switch {
	case f.noRange:
		w.Header().Set("Content-Length", strconv.FormatInt(info.Size(), 10))
		size := info.Size()
		if first {
			size /= 2
		}
		io.CopyN(c, src, size)
		if first {
			panic(http.ErrAbortHandler)
		}
		return
	case f.dieAt > 0 && first:
		c.limit = f.dieAt
	}
	w.Header().Set("ETag", fmt.Sprintf(`"%x-%x"`, info.Size(), info.ModTime().UnixNano()))
	http.ServeContent(c, r, "", time.Time{}, src)
	if c.limit == 0 {
		http.NewResponseController(w).Flush()
		// What is in the buffers between server and vehicle may still arrive.
		time.Sleep(time.Second)
		o.open.Close()
		close(o.died)
	}
}

// counter counts a body and refuses what goes beyond a limit.
type counter struct {
	http.ResponseWriter
	sent, limit int64
}

func (c *counter) Write(b []byte) (int, error) {
	if c.limit >= 0 && int64(len(b)) > c.limit {
		b = b[:c.limit]
	}
	n, err := c.ResponseWriter.Write(b)
	c.sent += int64(n)
	if c.limit >= 0 {
		if c.limit -= int64(n); c.limit == 0 && err == nil {
			err = io.ErrShortWrite
		}
	}
	return n, err
}

// from is where the range of a request begins.
func (r request) from() int64 {
	text, ok := strings.CutPrefix(r.rang, "bytes=")
	if !ok {
		return 0
	}
	text, _, _ = strings.Cut(text, "-")
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}
