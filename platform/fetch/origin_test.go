// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// origin is a web server for one file, on a real socket, that can be told to
// misbehave. From the first call of request on its fields are guarded by mu,
// which is held while before and edit run.
type origin struct {
	t     *testing.T
	url   string
	addr  string
	srv   *http.Server
	start func()

	mu      sync.Mutex
	data    []byte
	etag    string
	date    string        // Last-Modified
	noRange bool          // answer 200 always
	chunked bool          // no Content-Length
	cut     int           // close the connection before this byte of the file, once
	hang    int           // go silent before this byte of the file, once
	pace    time.Duration // pause after each 64 KiB
	log     []string      // "METHOD range if-range" of each request
	sent    int           // bytes of bodies

	before func(w http.ResponseWriter, r *http.Request) bool // true: has answered
	edit   func(h http.Header, status int) (newStatus int)   // last change to the header
	atCut  func()                                            // called at cut, before the connection closes
}

func content(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func serve(t *testing.T, data []byte) *origin {
	t.Helper()
	o := &origin{t: t, data: data, etag: `"v1"`, cut: -1, hang: -1}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.addr = l.Addr().String()
	o.url = "http://" + o.addr + "/bundle?sig=secret"
	o.srv = &http.Server{Handler: o}
	o.start = sync.OnceFunc(func() { go o.srv.Serve(l) })
	t.Cleanup(func() { l.Close(); o.set(o.die) })
	return o
}

// die closes all connections and the listener.
func (o *origin) die() { o.srv.Close() }

// back starts the server again at the old address.
func (o *origin) back() {
	l, err := net.Listen("tcp", o.addr)
	if err != nil {
		o.t.Error(err)
		return
	}
	o.set(func() {
		o.srv = &http.Server{Handler: o}
		go o.srv.Serve(l)
	})
}

func (o *origin) set(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	data, first, pace := o.data, o.begin(w, r), o.pace
	cut, hang := o.cut, o.hang
	o.mu.Unlock()
	if first < 0 {
		return
	}
	w.(http.Flusher).Flush()
	for at := first; at < len(data); {
		end := min(at+64<<10, len(data))
		if cut >= at {
			end = min(end, cut)
		}
		if hang >= at {
			end = min(end, hang)
		}
		n, err := w.Write(data[at:end])
		w.(http.Flusher).Flush()
		o.set(func() { o.sent += n })
		if err != nil {
			return
		}
		at = end
		if at == cut {
			o.set(func() {
				o.cut = -1
				if o.atCut != nil {
					o.atCut()
				}
			})
			panic(http.ErrAbortHandler)
		}
		if at == hang {
			o.set(func() { o.hang = -1 })
			<-r.Context().Done()
			return
		}
		time.Sleep(pace)
	}
}

// begin writes the header and returns where the body begins in the file, -1 if
// there is nothing more to send.
func (o *origin) begin(w http.ResponseWriter, r *http.Request) int {
	o.log = append(o.log, strings.TrimSpace(r.Method+" "+r.Header.Get("Range")+" "+r.Header.Get("If-Range")))
	if o.before != nil && o.before(w, r) {
		return -1
	}
	h := w.Header()
	if o.etag != "" {
		h.Set("ETag", o.etag)
	}
	if o.date != "" {
		h.Set("Last-Modified", o.date)
	}
	first, status := 0, http.StatusOK
	ir := r.Header.Get("If-Range")
	v, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	if ok && !o.noRange && (ir == "" || ir == o.etag || ir == o.date) {
		first, _ = strconv.Atoi(strings.TrimSuffix(v, "-"))
		status = http.StatusPartialContent
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, len(o.data)-1, len(o.data)))
		if first >= len(o.data) {
			first, status = len(o.data), http.StatusRequestedRangeNotSatisfiable
			h.Set("Content-Range", fmt.Sprintf("bytes */%d", len(o.data)))
		}
	}
	if !o.chunked {
		h.Set("Content-Length", strconv.Itoa(len(o.data)-first))
	}
	if o.edit != nil {
		status = o.edit(h, status)
	}
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return -1
	}
	return first
}

// requests is what has been asked for so far, one line each.
func (o *origin) requests() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.log, "\n")
}

// request starts the server and is a Request for its file with short times.
func (o *origin) request() Request {
	o.start()
	return Request{
		URL:     o.url,
		Path:    filepath.Join(o.t.TempDir(), "file"),
		Stall:   5 * time.Second,
		GiveUp:  10 * time.Second,
		Backoff: time.Millisecond,
	}
}

func check(t *testing.T, r Request, want []byte) {
	t.Helper()
	got, err := os.ReadFile(r.Path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("file of %d bytes differs from the %d served", len(got), len(want))
	}
	if _, err := os.Stat(r.Path + ".part"); err == nil {
		t.Error(".part remains")
	}
}

func mustGet(t *testing.T, r Request) Result {
	t.Helper()
	res, err := Get(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// failGet wants an error with all the given texts, but not the URL's secret.
func failGet(t *testing.T, r Request, texts ...string) Result {
	t.Helper()
	res, err := Get(t.Context(), r)
	if err == nil {
		t.Fatal("no error")
	}
	for _, s := range texts {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q does not say %q", err, s)
		}
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("error %q gives a secret away", err)
	}
	return res
}

func wantResult(t *testing.T, got, want Result) {
	t.Helper()
	if got != want {
		t.Errorf("result %+v, want %+v", got, want)
	}
}

func wantRequests(t *testing.T, o *origin, want ...string) {
	t.Helper()
	if got := o.requests(); got != strings.Join(want, "\n") {
		t.Errorf("requests:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
}

// rerun runs the calling test in a process of its own with more environment.
func rerun(t *testing.T, env ...string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
