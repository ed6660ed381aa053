// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func sha(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func TestDownloadMakesDirectoryAndReportsProgress(t *testing.T) {
	data := content(1 << 20)
	o := serve(t, data)
	r := o.request()
	r.Path = filepath.Join(filepath.Dir(r.Path), "missing", "dir", "file")
	r.SHA256, r.Size = strings.ToUpper(sha(data)), int64(len(data))
	var seen []int64
	r.Progress = func(done, total int64) {
		if total != int64(len(data)) {
			t.Errorf("total %d", total)
		}
		seen = append(seen, done)
	}
	wantResult(t, mustGet(t, r), Result{Size: 1 << 20, Fetched: 1 << 20})
	check(t, r, data)
	if len(seen) < 8 || seen[0] != 0 || seen[len(seen)-1] != 1<<20 {
		t.Errorf("progress %v", seen)
	}
	if fi, _ := os.Stat(r.Path); fi.Mode().Perm()&0o022 != 0 {
		t.Errorf("mode %v", fi.Mode()) // RAUC refuses bundles others can write
	}
}

func TestEmptyFile(t *testing.T) {
	o := serve(t, nil)
	r := o.request()
	wantResult(t, mustGet(t, r), Result{})
	check(t, r, nil)
}

// The server dies at 60 % and comes back: it is asked for the rest only.
func TestServerDeathCostsNoByteTwice(t *testing.T) {
	const size, dead = 10 << 20, 6 << 20
	data := content(size)
	o := serve(t, data)
	o.cut = dead
	away := make(chan time.Time, 1)
	o.atCut = func() {
		o.die()
		away <- time.Now()
		time.AfterFunc(300*time.Millisecond, o.back)
	}
	r := o.request()
	var last int64
	r.Progress = func(done, total int64) {
		if done < last {
			t.Errorf("progress went from %d back to %d", last, done)
		}
		last = done
	}
	wantResult(t, mustGet(t, r), Result{Size: size, Fetched: size})
	check(t, r, data)
	if time.Since(<-away) < 300*time.Millisecond {
		t.Error("finished while the server was away")
	}
	var sent int // the server counts what it has written only then
	for deadline := time.Now().Add(5 * time.Second); sent < size && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		o.set(func() { sent = o.sent })
	}
	if sent != size {
		t.Errorf("server sent %d bytes for a file of %d", sent, size)
	}
	wantRequests(t, o, "GET", fmt.Sprintf(`GET bytes=%d- "v1"`, dead))
}

// The process is killed again and again between any two writes.
func TestKilledProcessFetchesNoByteTwice(t *testing.T) {
	if url := os.Getenv("FETCH_TEST_URL"); url != "" {
		_, err := Get(context.Background(), Request{URL: url, Path: os.Getenv("FETCH_TEST_PATH")})
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	const size = 12 << 20
	data := content(size)
	o := serve(t, data)
	o.pace = 4 * time.Millisecond
	r := o.request()
	partSize := func() int64 {
		fi, err := os.Stat(r.Path + ".part")
		if err != nil {
			return 0
		}
		return fi.Size()
	}
	want := []string{"GET"}
	for round := range 4 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcessFetchesNoByteTwice$")
		cmd.Env = append(os.Environ(), "FETCH_TEST_URL="+r.URL, "FETCH_TEST_PATH="+r.Path)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stop := int64(round+1)*2<<20 + rand.Int64N(1<<20)
		for end := time.Now().Add(10 * time.Second); partSize() < stop; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("no progress")
			}
		}
		cmd.Process.Kill()
		cmd.Wait()
		want = append(want, fmt.Sprintf(`GET bytes=%d- "v1"`, partSize()))
	}
	o.set(func() { o.pace = 0 })
	at := partSize()
	first := int64(-1)
	r.Progress = func(done, total int64) {
		if first < 0 {
			first = done
		}
	}
	wantResult(t, mustGet(t, r), Result{Size: size, Fetched: size - at, ResumedAt: at})
	check(t, r, data)
	if first != at {
		t.Errorf("progress began at %d, not at %d", first, at)
	}
	// Each request begins where the file of the killed process ended, so what
	// the processes have received adds up to the file exactly.
	wantRequests(t, o, want...)
}

func TestPowerCutResumesAtLastSyncedByte(t *testing.T) {
	const size = 9 << 20
	data := content(size)
	o := serve(t, data)
	o.cut = 8<<20 + 300_000
	o.before = func(w http.ResponseWriter, _ *http.Request) bool {
		if len(o.log) > 1 {
			w.WriteHeader(503)
		}
		return len(o.log) > 1
	}
	r := o.request()
	var synced []int64
	r.Progress = func(done, total int64) {
		m, err := loadMeta(r.Path + ".meta")
		if err != nil {
			return // not accepted yet
		}
		if m.Synced > done || done-m.Synced > syncEvery+bufSize {
			t.Fatalf("%d bytes done, %d synced", done, m.Synced)
		}
		if n := len(synced); n == 0 || synced[n-1] != m.Synced {
			synced = append(synced, m.Synced)
		}
	}
	r.GiveUp = 50 * time.Millisecond
	failGet(t, r, "no progress for 50ms")
	if len(synced) < 3 {
		t.Errorf("synced at %v", synced)
	}

	// What the disk may hold after a power cut: the size is there, the last
	// bytes are not.
	m, err := loadMeta(r.Path + ".meta")
	if err != nil {
		t.Fatal(err)
	}
	m.Boot, m.Synced = "another", 5<<20
	if err := m.save(r.Path + ".meta"); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(r.Path+".part", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt(make([]byte, 3<<20), 5<<20)
	f.Close()
	o.set(func() { o.before, o.log = nil, nil })
	r.Progress = nil
	wantResult(t, mustGet(t, r), Result{Size: size, Fetched: 4 << 20, ResumedAt: 5 << 20})
	check(t, r, data)
	wantRequests(t, o, fmt.Sprintf(`GET bytes=%d- "v1"`, 5<<20))
}

func TestInterruptedDownload(t *testing.T) {
	const size, cut = 300_000, 200_000
	old := "Mon, 02 Jan 2006 15:04:05 GMT"
	whole := Result{Size: size, Fetched: size}
	twice := Result{Size: size, Fetched: size + cut}
	second := func(o *origin, f func(h http.Header, status int) int) func(http.Header, int) int {
		return func(h http.Header, status int) int {
			if len(o.log) == 2 {
				return f(h, status)
			}
			return status
		}
	}
	for _, tt := range []struct {
		name     string
		setup    func(o *origin)
		want     Result
		requests []string
	}{
		{"TruncatedBodyIsResumed", func(o *origin) {}, whole,
			[]string{"GET", `GET bytes=200000- "v1"`}},
		{"BodyWithoutLengthIsResumed", func(o *origin) { o.chunked = true }, whole,
			[]string{"GET", `GET bytes=200000- "v1"`}},
		{"LastModifiedServesWithoutETag", func(o *origin) { o.etag, o.date = "", old }, whole,
			[]string{"GET", "GET bytes=200000- " + old}},
		{"WeakETagIsNotSent", func(o *origin) { o.etag, o.date = `W/"v1"`, old }, whole,
			[]string{"GET", "GET bytes=200000-"}},
		{"NoValidatorResumesByLength", func(o *origin) { o.etag = "" }, whole,
			[]string{"GET", "GET bytes=200000-"}},
		{"ServerWithoutRangeStartsFromZero", func(o *origin) { o.noRange = true }, twice,
			[]string{"GET", `GET bytes=200000- "v1"`}},
		{"RangeInPiecesIsPutTogether", func(o *origin) {
			o.before = func(w http.ResponseWriter, r *http.Request) bool {
				first := 0
				fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &first)
				if first < cut || first >= 280_000 {
					return false
				}
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", first, first+39_999))
				w.WriteHeader(206)
				w.Write(o.data[first : first+40_000])
				return true
			}
		}, whole, []string{"GET", `GET bytes=200000- "v1"`, `GET bytes=240000- "v1"`, `GET bytes=280000- "v1"`}},
		{"ChangedETagStartsFromZero", func(o *origin) {
			o.before = func(http.ResponseWriter, *http.Request) bool {
				if len(o.log) == 2 {
					o.etag = `"v2"`
				}
				return false
			}
		}, twice, []string{"GET", `GET bytes=200000- "v1"`}},
		{"ChangedETagWithIgnoredIfRangeStartsFromZero", func(o *origin) {
			o.edit = second(o, func(h http.Header, status int) int { h.Set("ETag", `"v2"`); return status })
		}, twice, []string{"GET", `GET bytes=200000- "v1"`, "GET"}},
		{"ChangedWeakETagStartsFromZero", func(o *origin) {
			o.etag = `W/"v1"`
			o.edit = second(o, func(h http.Header, status int) int { h.Set("ETag", `W/"v2"`); return status })
		}, twice, []string{"GET", "GET bytes=200000-", "GET"}},
		{"ChangedLengthStartsFromZero", func(o *origin) {
			o.etag = ""
			o.edit = second(o, func(h http.Header, status int) int {
				h.Set("Content-Range", "bytes 200000-299999/300001")
				return status
			})
		}, twice, []string{"GET", "GET bytes=200000-", "GET"}},
		{"WrongStartInContentRangeStartsFromZero", func(o *origin) {
			o.edit = second(o, func(h http.Header, status int) int {
				h.Set("Content-Range", "bytes 199999-299999/300000")
				return status
			})
		}, twice, []string{"GET", `GET bytes=200000- "v1"`, "GET"}},
		{"MissingContentRangeStartsFromZero", func(o *origin) {
			o.edit = second(o, func(h http.Header, status int) int { h.Del("Content-Range"); return status })
		}, twice, []string{"GET", `GET bytes=200000- "v1"`, "GET"}},
		{"GarbledContentRangeStartsFromZero", func(o *origin) {
			o.edit = second(o, func(h http.Header, status int) int {
				h.Set("Content-Range", "bytes 200000-300000/300000")
				return status
			})
		}, twice, []string{"GET", `GET bytes=200000- "v1"`, "GET"}},
		{"UnsatisfiableRangeStartsFromZero", func(o *origin) {
			o.edit = second(o, func(h http.Header, status int) int {
				h.Set("Content-Range", "bytes */100000")
				return 416
			})
		}, twice, []string{"GET", `GET bytes=200000- "v1"`, "GET"}},
		{"ShrunkFileOfUnknownLengthStartsFromZero", func(o *origin) {
			o.chunked = true
			o.edit = second(o, func(h http.Header, status int) int {
				h.Set("Content-Range", "bytes */100000")
				return 416
			})
		}, twice, []string{"GET", `GET bytes=200000- "v1"`, "GET"}},
		{"UnavailableServerIsAskedAgain", func(o *origin) {
			o.before = func(w http.ResponseWriter, r *http.Request) bool {
				codes := []int{0, 503, 500, 502, 504, 429, 408, 425}
				if n := len(o.log) - 1; n > 0 && n < len(codes) {
					w.WriteHeader(codes[n])
					return true
				}
				return false
			}
		}, whole, append([]string{"GET"}, strings.Split(strings.Repeat(`GET bytes=200000- "v1",`, 8), ",")[:8]...)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data := content(size)
			o := serve(t, data)
			o.cut = cut
			tt.setup(o)
			r := o.request()
			wantResult(t, mustGet(t, r), tt.want)
			check(t, r, data)
			wantRequests(t, o, tt.requests...)
		})
	}
}

func TestRangeNotSatisfiableAtTheEndIsSuccess(t *testing.T) {
	data := content(100_000)
	o := serve(t, data)
	o.chunked, o.cut = true, len(data) // all bytes come, the end of the body does not
	r := o.request()
	wantResult(t, mustGet(t, r), Result{Size: 100_000, Fetched: 100_000})
	check(t, r, data)
	wantRequests(t, o, "GET", `GET bytes=100000- "v1"`)
}

func TestChangedFileIsFetchedWhole(t *testing.T) {
	o := serve(t, content(300_000))
	o.cut = 200_000
	r := o.request()
	r.GiveUp = time.Nanosecond
	failGet(t, r, "connection lost at byte 200000")
	r.GiveUp = time.Minute
	next := content(250_000)
	next[0]++
	o.set(func() { o.data, o.etag = next, `"v2"` })
	var seen []int64
	r.Progress = func(done, total int64) { seen = append(seen, done) }
	wantResult(t, mustGet(t, r), Result{Size: 250_000, Fetched: 250_000})
	check(t, r, next)
	if seen[0] != 200_000 || seen[1] != 0 {
		t.Errorf("progress %v", seen)
	}
}

func TestOtherURLIsNotResumed(t *testing.T) {
	data := content(300_000)
	o := serve(t, data)
	o.cut = 200_000
	r := o.request()
	r.GiveUp = time.Nanosecond
	failGet(t, r, "connection lost at byte 200000")
	r.URL += "&x=y"
	wantResult(t, mustGet(t, r), Result{Size: 300_000, Fetched: 300_000})
	wantRequests(t, o, "GET", "GET")
}

func TestDamagedMetaStartsFromZero(t *testing.T) {
	data := content(300_000)
	for _, damage := range []string{"", "{", "null", `{"source":"x","total":-7}`} {
		o := serve(t, data)
		o.cut = 200_000
		r := o.request()
		r.GiveUp = time.Nanosecond
		failGet(t, r)
		if err := os.WriteFile(r.Path+".meta", []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		wantResult(t, mustGet(t, r), Result{Size: 300_000, Fetched: 300_000})
		check(t, r, data)
	}
}

// A caller may die between Get's return and its own note of the success.
func TestFinishedFileIsNotFetchedAgain(t *testing.T) {
	data := content(300_000)
	done := Result{Size: 300_000, ResumedAt: 300_000}
	anew := Result{Size: 300_000, Fetched: 300_000}
	for _, tt := range []struct {
		name   string
		change func(o *origin, r *Request)
		want   Result
	}{
		{"SameRequest", func(o *origin, r *Request) {}, done},
		{"ServerGone", func(o *origin, r *Request) { o.die() }, done},
		{"FileGone", func(o *origin, r *Request) {
			o.before = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(404); return true }
		}, done},
		{"DigestAsExpected", func(o *origin, r *Request) { r.SHA256 = sha(data) }, done},
		{"KilledBeforeRename", func(o *origin, r *Request) {
			o.die() // and not needed
			os.Rename(r.Path, r.Path+".part")
		}, done},
		{"OtherFileOnServer", func(o *origin, r *Request) { o.etag = `"v2"` }, anew},
		{"OtherURL", func(o *origin, r *Request) { r.URL += "x" }, anew},
		{"Damaged", func(o *origin, r *Request) { os.Truncate(r.Path, 299_999) }, anew},
		{"DamagedInPlace", func(o *origin, r *Request) {
			r.SHA256 = sha(data)
			os.WriteFile(r.Path, make([]byte, 300_000), 0o644)
		}, anew},
		{"Foreign", func(o *origin, r *Request) { os.Remove(r.Path + ".meta") }, anew},
		{"Discarded", func(o *origin, r *Request) { Discard(r.Path) }, anew},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := serve(t, data)
			r := o.request()
			mustGet(t, r)
			o.set(func() { tt.change(o, &r) })
			var last int64
			r.Progress = func(done, _ int64) { last = done }
			wantResult(t, mustGet(t, r), tt.want)
			check(t, r, data)
			if last != 300_000 {
				t.Errorf("progress ended at %d", last)
			}
		})
	}
}

func TestRefusalsFailAtOnce(t *testing.T) {
	for _, code := range []int{204, 304, 400, 401, 403, 404, 410, 416} {
		o := serve(t, content(10))
		o.before = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
		failGet(t, o.request(), fmt.Sprintf("http://%s/bundle: %d %s", o.addr, code, http.StatusText(code)))
		wantRequests(t, o, "GET")
	}
}

func TestInvalidRequestsAreRefused(t *testing.T) {
	dir := t.TempDir()
	ok := Request{URL: "http://127.0.0.1:1/x", Path: filepath.Join(dir, "f")}
	for _, tt := range []struct {
		want   string
		change func(r *Request)
	}{
		{`unsupported scheme "ftp"`, func(r *Request) { r.URL = "ftp://h/x" }},
		{`unsupported scheme "file"`, func(r *Request) { r.URL = "file:///etc/passwd" }},
		{`unsupported scheme ""`, func(r *Request) { r.URL = "" }},
		{`unsupported scheme ""`, func(r *Request) { r.URL = "/just/a/path" }},
		{"without host", func(r *Request) { r.URL = "http:///x" }},
		{"invalid URL", func(r *Request) { r.URL = "http://h:port/" }},
		{"invalid URL", func(r *Request) { r.URL = "http://h/\x00" }},
		{"no path", func(r *Request) { r.Path = "" }},
		{"negative", func(r *Request) { r.Size = -1 }},
		{"64 hexadecimal digits", func(r *Request) { r.SHA256 = "abc" }},
		{"64 hexadecimal digits", func(r *Request) { r.SHA256 = "abcd" }},
	} {
		r := ok
		tt.change(&r)
		failGet(t, r, tt.want)
	}
	if files, _ := os.ReadDir(dir); len(files) != 0 {
		t.Errorf("left over: %v", files)
	}
}

func TestUnreachableServerGivesUpInTime(t *testing.T) {
	o := serve(t, nil)
	o.die()
	r := o.request()
	r.GiveUp = 200 * time.Millisecond
	start := time.Now()
	_, err := Get(t.Context(), r)
	if !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), "no progress for 200ms: ") {
		t.Errorf("error %v", err)
	}
	if d := time.Since(start); d < 200*time.Millisecond || d > 2*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestRetryAfterIsHonoured(t *testing.T) {
	for _, value := range []func() string{
		func() string { return "1" },
		func() string { return time.Now().Add(2 * time.Second).UTC().Format(http.TimeFormat) },
	} {
		o := serve(t, content(10))
		o.before = func(w http.ResponseWriter, _ *http.Request) bool {
			if len(o.log) > 1 {
				return false
			}
			w.Header().Set("Retry-After", value())
			w.WriteHeader(503)
			return true
		}
		start := time.Now()
		mustGet(t, o.request())
		if d := time.Since(start); d < 900*time.Millisecond {
			t.Errorf("asked again after %v", d)
		}
	}
}

func TestRetryAfterDoesNotOutlastGiveUp(t *testing.T) {
	o := serve(t, nil)
	o.before = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(503)
		return true
	}
	r := o.request()
	r.GiveUp = 100 * time.Millisecond
	start := time.Now()
	failGet(t, r, "503 Service Unavailable")
	if d := time.Since(start); d < r.GiveUp || d > time.Minute {
		t.Errorf("gave up after %v", d)
	}
}

func TestSilentServerIsLeftAndResumed(t *testing.T) {
	data := content(300_000)
	for _, hang := range []int{0, 200_000} {
		o := serve(t, data)
		o.hang = hang
		r := o.request()
		r.Stall = 100 * time.Millisecond
		wantResult(t, mustGet(t, r), Result{Size: 300_000, Fetched: 300_000})
		check(t, r, data)
	}
}

func TestStallIsNamed(t *testing.T) {
	for name, before := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"NoHeader": func(w http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true },
		"NoBody": func(w http.ResponseWriter, r *http.Request) bool {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := serve(t, content(10))
			o.before = before
			r := o.request()
			r.Stall, r.GiveUp = 50*time.Millisecond, 60*time.Millisecond
			failGet(t, r, "server sent nothing for 50ms")
		})
	}
}

func TestSlowServerIsNotStalled(t *testing.T) {
	o := serve(t, content(10))
	o.before = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", "10")
		for i := range 10 {
			w.Write(o.data[i : i+1])
			w.(http.Flusher).Flush()
			time.Sleep(60 * time.Millisecond)
		}
		return true
	}
	r := o.request()
	r.Stall = 500 * time.Millisecond
	mustGet(t, r)
	check(t, r, o.data)
	wantRequests(t, o, "GET")
}

func TestSlowCallerIsNoStall(t *testing.T) {
	o := serve(t, content(300_000))
	r := o.request()
	r.Stall = 300 * time.Millisecond
	slept := map[bool]bool{}
	r.Progress = func(done, _ int64) {
		if !slept[done > 0] { // at the header and in the body
			slept[done > 0] = true
			time.Sleep(400 * time.Millisecond)
		}
	}
	mustGet(t, r)
	check(t, r, o.data)
	wantRequests(t, o, "GET")
}

func TestCancelReturnsAtOnceAndKeepsBytes(t *testing.T) {
	data := content(300_000)
	o := serve(t, data)
	o.hang = 200_000
	r := o.request()
	r.Stall = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	var cancelled time.Time
	r.Progress = func(done, _ int64) {
		if done == 200_000 {
			time.AfterFunc(20*time.Millisecond, func() { cancelled = time.Now(); cancel() })
		}
	}
	_, err := Get(ctx, r)
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	if d := time.Since(cancelled); d > 5*time.Second {
		t.Errorf("returned %v after cancel", d)
	}
	if m, err := loadMeta(r.Path + ".meta"); err != nil || m.Synced != 200_000 {
		t.Errorf("%+v, %v: bytes not safe from a power cut", m, err)
	}
	r.Progress, r.SHA256 = nil, sha(data)
	wantResult(t, mustGet(t, r), Result{Size: 300_000, Fetched: 100_000, ResumedAt: 200_000})
	if _, err := Get(ctx, r); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	check(t, r, data) // a cancelled call takes nothing away
}

// Only the size expected tells that such a body, which ends with the
// connection, is not whole.
func TestBodyThatEndsWithTheConnection(t *testing.T) {
	data := content(300_000)
	o := serve(t, data)
	o.before = func(w http.ResponseWriter, r *http.Request) bool {
		if len(o.log) > 1 {
			return false
		}
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return true
		}
		fmt.Fprintf(c, "HTTP/1.0 200 OK\r\nETag: \"v1\"\r\n\r\n%s", data[:200_000])
		c.Close()
		return true
	}
	r := o.request()
	r.Size = 300_000
	wantResult(t, mustGet(t, r), Result{Size: 300_000, Fetched: 300_000})
	check(t, r, data)
	wantRequests(t, o, "GET", `GET bytes=200000- "v1"`)

	o.set(func() { o.log = nil })
	r.Size, r.Path = 0, r.Path+"2"
	wantResult(t, mustGet(t, r), Result{Size: 200_000, Fetched: 200_000})
}

// After progress the pauses begin short again.
func TestProgressShortensThePause(t *testing.T) {
	o := serve(t, content(10))
	o.before = func(w http.ResponseWriter, r *http.Request) bool {
		o.cut = len(o.log) // each brings one byte
		return false
	}
	var pauses []time.Duration
	r := o.request()
	r.Log = slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == "retry" {
				pauses = append(pauses, a.Value.Duration())
			}
			return a
		},
	}))
	mustGet(t, r)
	check(t, r, o.data)
	if len(pauses) != 9 || slices.Max(pauses) > r.Backoff {
		t.Errorf("pauses %v", pauses)
	}
}

func TestCancelEndsPauseBetweenTries(t *testing.T) {
	o := serve(t, nil)
	o.die()
	r := o.request()
	r.Backoff, r.GiveUp = time.Hour, 24*time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := Get(ctx, r); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Fatalf("%v after %v", err, time.Since(start))
	}
}

func TestUnexpectedContentIsRefused(t *testing.T) {
	data := content(100_000)
	for _, chunked := range []bool{false, true} {
		for _, size := range []int64{99_999, 100_001} {
			o := serve(t, data)
			o.chunked = chunked
			r := o.request()
			r.Size, r.GiveUp = size, 20*time.Millisecond
			failGet(t, r, "not the file expected: size is ", fmt.Sprint(size))
			if _, err := os.Stat(r.Path); err == nil {
				t.Error("file is there")
			}
		}
	}
	o := serve(t, data)
	r := o.request()
	r.SHA256 = strings.Repeat("0", 64)
	failGet(t, r, "SHA-256 is "+sha(data), "should be 0000")
	if files, _ := os.ReadDir(filepath.Dir(r.Path)); len(files) != 0 {
		t.Errorf("left over: %v", files)
	}
	r.SHA256 = sha(data)
	mustGet(t, r)
}

// Without a validator two files of one length can get mixed up; the digest
// finds out and one clean download follows.
func TestMixedFileIsFetchedWhole(t *testing.T) {
	data := content(300_000)
	o := serve(t, data)
	o.etag, o.cut = "", 200_000
	r := o.request()
	r.GiveUp = time.Nanosecond
	failGet(t, r)
	next := bytes.Clone(data)
	next[0]++
	o.set(func() { o.data, o.log = next, nil })
	r.GiveUp, r.SHA256 = time.Second, sha(next)
	wantResult(t, mustGet(t, r), Result{Size: 300_000, Fetched: 400_000})
	check(t, r, next)
	wantRequests(t, o, "GET bytes=200000-", "GET")
}

func TestSecondDownloadToSamePathIsRefused(t *testing.T) {
	o := serve(t, content(300_000))
	o.hang = 200_000
	r := o.request()
	second := r
	r.Progress = func(done, _ int64) {
		if done == 200_000 {
			failGet(t, second, "in use by another download")
		}
	}
	r.Stall = 100 * time.Millisecond
	mustGet(t, r)
	check(t, r, o.data)
}

func TestRateIsObeyed(t *testing.T) {
	data := content(100_000)
	o := serve(t, data)
	r := o.request()
	r.Rate = 200_000
	start := time.Now()
	mustGet(t, r)
	if d := time.Since(start); d < 450*time.Millisecond {
		t.Errorf("100 kB at 200 kB/s took %v", d)
	}
	check(t, r, data)
	wantRequests(t, o, "GET")
}

func TestReserveIsCheckedBeforeFirstByte(t *testing.T) {
	o := serve(t, content(100_000))
	r := o.request()
	r.Reserve = 1 << 60
	failGet(t, r, "not enough space in "+filepath.Dir(r.Path), "has 0", "reserve")
	wantRequests(t, o)

	r.Reserve, r.Size = 0, 1<<60
	failGet(t, r, "needs 1152921504606846976 bytes, has ")
	wantRequests(t, o)
}

func unable(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("SDVBOX_REQUIRE") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func mountAt(t *testing.T, dir string, args ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		unable(t, "mounting needs root")
	}
	if out, err := exec.Command("mount", append(args, dir)...).CombinedOutput(); err != nil {
		unable(t, fmt.Sprintf("mount: %v %s", err, out))
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// small mounts a file system of 1 MiB.
func small(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	mountAt(t, dir, "-t", "tmpfs", "-o", "size=1m", "tmpfs")
	return dir
}

// The file system is in an image; a copy of that, made while the download
// runs, is what a power cut leaves. There the download goes on.
func TestSyncedBytesSurvivePowerCut(t *testing.T) {
	const size = 9 << 20
	data := content(size)
	o := serve(t, data)
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 24<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
		unable(t, fmt.Sprintf("mkfs.ext4: %v %s", err, out))
	}
	dir := t.TempDir()
	mountAt(t, dir, "-o", "loop", image)
	r := o.request()
	r.Path = filepath.Join(dir, "file")
	var after []string // images
	cut := func() {
		b, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		after = append(after, filepath.Join(t.TempDir(), "image"))
		if err := os.WriteFile(after[len(after)-1], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.Progress = func(done, _ int64) {
		if done > int64(len(after)+1)*(syncEvery+bufSize) {
			cut()
		}
	}
	mustGet(t, r)
	cut()
	if len(after) != 3 {
		t.Fatalf("%d power cuts", len(after))
	}
	for i, image := range after {
		dir := t.TempDir()
		mountAt(t, dir, "-o", "loop", image)
		r.Path, r.Progress = filepath.Join(dir, "file"), nil
		m, err := loadMeta(r.Path + ".meta")
		if err != nil {
			t.Fatal(err)
		}
		if m.Synced < int64(i+1)*syncEvery && !m.Done {
			t.Errorf("cut %d: only %d bytes synced", i, m.Synced)
		}
		m.Boot = "before"
		if err := m.save(r.Path + ".meta"); err != nil {
			t.Fatal(err)
		}
		wantResult(t, mustGet(t, r), Result{Size: size, Fetched: size - m.Synced, ResumedAt: m.Synced})
		check(t, r, data)
	}
}

func TestSpaceIsCheckedBeforeFirstByte(t *testing.T) {
	const size = 2 << 20
	o := serve(t, content(size))
	r := o.request()
	r.Path = filepath.Join(small(t), "file")
	res := failGet(t, r, "not enough space in "+filepath.Dir(r.Path), "needs 2097152 bytes, has 1048576")
	if res.Fetched != 0 {
		t.Errorf("%d bytes fetched", res.Fetched)
	}
	wantRequests(t, o, "GET")
}

func TestFullDiskKeepsBytes(t *testing.T) {
	const size = 2 << 20
	data := content(size)
	o := serve(t, data)
	o.chunked = true // so the check beforehand cannot see it coming
	r := o.request()
	r.Path = filepath.Join(small(t), "file")
	res := failGet(t, r, "not enough space in "+filepath.Dir(r.Path), "has 0", "no space left on device")
	if res.Fetched < 900<<10 {
		t.Errorf("only %d bytes fetched", res.Fetched)
	}
	wantRequests(t, o, "GET")
	if err := syscall.Mount("tmpfs", filepath.Dir(r.Path), "tmpfs", syscall.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	wantResult(t, mustGet(t, r), Result{Size: size, Fetched: size - res.Fetched, ResumedAt: res.Fetched})
	check(t, r, data)
}

func TestSecretsOfTheURLStaySecret(t *testing.T) {
	var log bytes.Buffer
	data := content(300_000)
	o := serve(t, data)
	o.url = strings.Replace(o.url, "http://", "http://user:secret@", 1)
	o.cut = 200_000
	o.before = func(w http.ResponseWriter, r *http.Request) bool {
		if _, pw, _ := r.BasicAuth(); pw != "secret" {
			t.Error("password not sent")
		}
		return false
	}
	r := o.request()
	r.Log = slog.New(slog.NewTextHandler(&log, nil))
	mustGet(t, r)
	meta, err := os.ReadFile(r.Path + ".meta")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "connection lost") || strings.Contains(log.String()+string(meta), "secret") {
		t.Errorf("log %s meta %s", &log, meta)
	}
	o.die()
	Discard(r.Path)
	r.GiveUp = time.Millisecond
	failGet(t, r, "connection refused")
}

// A server that fails in every way it can, yet now and then moves on.
func TestFileIsRightWhateverTheServerDoes(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 0))
			data := content(20_000 + rnd.IntN(200_000))
			o := serve(t, data)
			o.etag = []string{"", `"e"`, `W/"e"`}[rnd.IntN(3)]
			o.chunked = rnd.IntN(2) == 0
			o.before = func(w http.ResponseWriter, r *http.Request) bool {
				o.noRange = rnd.IntN(4) == 0
				o.cut, o.hang = -1, -1
				o.edit = nil
				if len(o.log) > 30 {
					o.cut = -1
					o.noRange = false
					return false
				}
				switch rnd.IntN(7) {
				case 0:
					w.WriteHeader([]int{500, 503, 429}[rnd.IntN(3)])
					return true
				case 1, 2:
					o.cut = rnd.IntN(len(data))
				case 3:
					o.hang = rnd.IntN(len(data))
				case 4:
					o.edit = func(h http.Header, status int) int {
						if status == 206 {
							h.Set("Content-Range", []string{"", "bytes 1-2/3", "bytes 0-0/*", "x"}[rnd.IntN(4)])
						}
						return status
					}
				case 5:
					c, _, _ := w.(http.Hijacker).Hijack()
					c.Close()
					return true
				}
				return false
			}
			r := o.request()
			r.SHA256 = sha(data)
			r.Stall = 100 * time.Millisecond
			var last int64
			r.Progress = func(done, total int64) { last = done }
			for {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(20+rnd.IntN(400))*time.Millisecond)
				_, err := Get(ctx, r)
				cancel()
				if err == nil {
					break
				}
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Fatal(err)
				}
			}
			check(t, r, data)
			if last != int64(len(data)) {
				t.Errorf("progress ended at %d", last)
			}
		})
	}
}

func TestDiscardRemovesEverything(t *testing.T) {
	o := serve(t, content(300_000))
	r := o.request()
	mustGet(t, r)
	for _, suffix := range []string{".part", ".meta.tmp"} {
		if err := os.WriteFile(r.Path+suffix, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := Discard(r.Path); err != nil {
			t.Fatal(err)
		}
	}
	if files, _ := os.ReadDir(filepath.Dir(r.Path)); len(files) != 0 {
		t.Errorf("left over: %v", files)
	}
}

func TestIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here: ", err)
	}
	o := serve(t, content(1000))
	r := o.request()
	go o.srv.Serve(l)
	r.URL = "http://" + l.Addr().String() + "/x"
	mustGet(t, r)
	check(t, r, o.data)
}
