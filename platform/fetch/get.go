// SPDX-License-Identifier: Apache-2.0

// Package fetch downloads one file over http or https. A download goes on
// where it was after the death of the server, the network or this process,
// and after a power cut from the last bytes known to be on the disk; what has
// been received is not asked for again. Space is checked before the first
// byte, size and SHA-256 after the last.
package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/durable"
)

const (
	bufSize   = 128 << 10
	syncEvery = 4 << 20 // bytes a power cut may cost
)

// Request describes a download.
type Request struct {
	URL  string
	Path string // of the finished file; Path.part and Path.meta hold what is needed to go on

	Client  *http.Client  // nil: NewClient(TLS{})
	Rate    int64         // bytes per second, 0: no limit
	Size    int64         // expected, 0: unknown
	SHA256  string        // expected, hexadecimal, "": unknown
	Reserve int64         // bytes that must stay free on the file system
	Stall   time.Duration // a connection without a byte for so long is broken; default 30 s
	GiveUp  time.Duration // no progress for so long is failure; default 5 min
	Backoff time.Duration // pause before the first retry, doubled up to 16-fold; default 1 s

	// Progress, if set, is called from Get's goroutine with the bytes there
	// are and the total, -1 while unknown. The numbers grow, beginning with
	// the offset resumed at; only a restart from zero sets them back.
	Progress func(done, total int64)
	Log      *slog.Logger // nil: no log
}

// Result tells how a download went.
type Result struct {
	Size      int64 // of the file
	Fetched   int64 // bytes received by this call
	ResumedAt int64 // bytes that were there before and have been kept
}

// Get downloads r.URL to r.Path. A file at r.Path that is not the finished
// result of the same request is removed first. After an error, cancellation
// included, the next Get for the same URL and Path goes on; Discard instead
// gives the space back.
func Get(ctx context.Context, r Request) (Result, error) {
	d, err := newDownload(r)
	if err != nil {
		return Result{}, err
	}
	if d.finished(ctx) {
		d.report()
		return d.res, nil
	}
	if ctx.Err() != nil {
		return Result{}, fmt.Errorf("%s: %w", d.name, context.Cause(ctx))
	}
	if err := d.open(); err != nil {
		return Result{}, err
	}
	defer d.part.Close()
	for {
		if err := d.run(ctx); err != nil {
			if err := d.checkpoint(); err != nil {
				d.Log.Warn("download state not saved", "error", err)
			}
			return d.res, fmt.Errorf("%s: %w", d.name, err)
		}
		err := d.finish(ctx)
		if err == nil {
			return d.res, nil
		}
		if !errors.Is(err, errMismatch) {
			return d.res, fmt.Errorf("%s: %w", d.name, err)
		}
		if d.res.ResumedAt == 0 {
			return d.res, errors.Join(fmt.Errorf("%s: %w", d.name, err), Discard(d.Path))
		}
		d.Log.Warn("resumed download is not the file expected, starting over", "url", d.name, "error", err)
		if err := d.restart(); err != nil {
			return d.res, err
		}
		d.high = 0
	}
}

// Discard removes all that Get left at path, also when it was killed.
func Discard(path string) error {
	var errs []error
	for _, suffix := range []string{".meta.tmp", ".meta", ".part", ""} {
		errs = append(errs, durable.Remove(path+suffix))
	}
	return errors.Join(errs...)
}

type download struct {
	Request
	name string // of the URL, fit for messages
	part *os.File
	meta meta
	off  int64 // bytes in part
	high int64 // highest off so far
	last time.Time
	lim  limiter
	res  Result
}

func newDownload(r Request) (*download, error) {
	u, err := url.Parse(r.URL)
	if err != nil {
		return nil, fmt.Errorf("invalid URL: %w", errors.Unwrap(err))
	}
	name := (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("%s: unsupported scheme %q, expected http or https", name, u.Scheme)
	case u.Hostname() == "":
		return nil, fmt.Errorf("%s: URL without host", name)
	case r.Path == "":
		return nil, errors.New("no path to download to")
	case r.Size < 0 || r.Rate < 0 || r.Reserve < 0:
		return nil, errors.New("size, rate and reserve must not be negative")
	}
	if b, err := hex.DecodeString(r.SHA256); err != nil || len(b) != sha256.Size && len(b) != 0 {
		return nil, fmt.Errorf("expected SHA-256 %.80q is not 64 hexadecimal digits", r.SHA256)
	}
	if r.Client == nil {
		if r.Client, err = NewClient(TLS{}); err != nil {
			return nil, err
		}
	}
	if r.Stall <= 0 {
		r.Stall = 30 * time.Second
	}
	if r.GiveUp <= 0 {
		r.GiveUp = 5 * time.Minute
	}
	if r.Backoff <= 0 {
		r.Backoff = time.Second
	}
	if r.Log == nil {
		r.Log = slog.New(slog.DiscardHandler)
	}
	r.SHA256 = strings.ToLower(r.SHA256)
	return &download{Request: r, name: name, lim: limiter{rate: r.Rate}}, nil
}

// finished reports whether an earlier call has completed this download and the
// server, if it can be asked, still has the same file.
func (d *download) finished(ctx context.Context) bool {
	m, err := loadMeta(d.Path + ".meta")
	fi, err2 := os.Stat(d.Path)
	if err != nil || err2 != nil || !m.Done || m.Source != digest(d.URL) || fi.Size() != m.Total {
		return false
	}
	d.meta, d.off = m, m.Total
	d.res = Result{Size: m.Total, ResumedAt: m.Total}
	return d.verify(ctx, d.Path) == nil && !d.changed(ctx)
}

// changed reports whether the server says that the file is another one now.
func (d *download) changed(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, min(d.Stall, d.GiveUp))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, d.URL, nil)
	if err != nil {
		return false
	}
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := d.Client.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	n := resp.ContentLength
	return resp.StatusCode == http.StatusOK && (!d.meta.same(resp.Header) || n >= 0 && n != d.meta.Total)
}

// open makes part and meta ready to go on where the last call was.
func (d *download) open() error {
	if err := durable.MkdirAll(filepath.Dir(d.Path), 0o755); err != nil {
		return err
	}
	if err := durable.Remove(d.Path); err != nil {
		return err
	}
	f, err := os.OpenFile(d.Path+".part", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	if err := d.resume(f); err != nil {
		f.Close()
		return err
	}
	d.part = f
	return nil
}

func (d *download) resume(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%s is in use by another download", f.Name())
	}
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	d.off = 0
	d.meta, err = loadMeta(d.Path + ".meta")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		d.Log.Warn("starting anew", "error", err)
	}
	boot := bootID()
	if err == nil && d.meta.Source == digest(d.URL) {
		d.off = fi.Size()
		if d.meta.Boot != boot || boot == "" {
			d.off = min(d.off, d.meta.Synced)
		}
		if t := d.meta.Total; t >= 0 && (d.off > t || d.Size > 0 && d.Size != t) {
			d.off = 0
		}
	}
	if d.off == 0 {
		d.meta = meta{Source: digest(d.URL), Total: -1}
	}
	d.meta.Boot, d.meta.Done = boot, false
	d.meta.Synced = min(d.meta.Synced, d.off)
	d.high, d.res = d.off, Result{ResumedAt: d.off}
	if err := f.Truncate(d.off); err != nil {
		return err
	}
	_, err = f.Seek(d.off, io.SeekStart)
	return err
}

// checkpoint makes the bytes received so far outlast a power cut.
func (d *download) checkpoint() error {
	if err := d.part.Sync(); err != nil {
		return d.explain(err)
	}
	d.meta.Synced = d.off
	if err := d.save(); err != nil {
		return err
	}
	return d.expect(d.total())
}

func (d *download) save() error {
	if err := d.meta.save(d.Path + ".meta"); err != nil {
		return d.explain(err)
	}
	return nil
}

func (d *download) complete() bool { return d.meta.Total >= 0 && d.off == d.meta.Total }

func (d *download) report() {
	if d.Progress != nil {
		d.Progress(d.off, d.total())
	}
}

// finish verifies the complete part and gives it its name. Should that end
// between its steps, the next Get only repeats them.
func (d *download) finish(ctx context.Context) error {
	d.res.Size = d.off
	if err := d.part.Sync(); err != nil {
		return d.explain(err)
	}
	if err := d.verify(ctx, d.part.Name()); err != nil {
		return err
	}
	d.meta.Synced, d.meta.Done = d.off, true
	if err := d.save(); err != nil {
		return err
	}
	return durable.Rename(d.part.Name(), d.Path)
}

var errMismatch = errors.New("not the file expected")

// verify compares the file at path with what the caller expects.
func (d *download) verify(ctx context.Context, path string) error {
	if d.Size > 0 && d.off != d.Size {
		return fmt.Errorf("%w: size is %d bytes, should be %d", errMismatch, d.off, d.Size)
	}
	if d.SHA256 == "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	for err == nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		_, err = io.CopyN(h, f, 1<<20)
	}
	if err != io.EOF {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != d.SHA256 {
		return fmt.Errorf("%w: SHA-256 is %s, should be %s", errMismatch, got, d.SHA256)
	}
	return nil
}
