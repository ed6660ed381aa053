// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// run fetches until the file is complete.
func (d *download) run(ctx context.Context) error {
	if err := d.expect(d.total()); err != nil {
		return err
	}
	d.report()
	d.last = time.Now()
	pause := d.Backoff
	for !d.complete() {
		before := d.high
		err := d.once(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if d.high > before {
			pause = d.Backoff
		}
		if err == nil {
			continue
		}
		var again *temporary
		if !errors.As(err, &again) {
			return err
		}
		left := time.Until(d.last.Add(d.GiveUp))
		if left <= 0 {
			return fmt.Errorf("no progress for %v: %w", d.GiveUp, err)
		}
		wait := max(again.after, pause/2+rand.N(pause/2+1))
		d.Log.Info("download interrupted", "url", d.name, "at", d.off, "error", err, "retry", wait)
		if err := sleep(ctx, min(wait, left)); err != nil {
			return err
		}
		pause = min(2*pause, 16*d.Backoff)
	}
	return nil
}

// temporary is an error that may pass.
type temporary struct {
	error
	after time.Duration // the server's wish, Retry-After
}

func (t *temporary) Unwrap() error { return t.error }

// once makes one request and stores what it brings. Without an error there has
// been progress.
func (d *download) once(ctx context.Context) error {
	stalled := fmt.Errorf("server sent nothing for %v", d.Stall)
	conn, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(d.Stall, func() { cancel(stalled) })
	defer watch.Stop()

	req, err := http.NewRequestWithContext(conn, http.MethodGet, d.URL, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept-Encoding", "identity") // offsets are of the file itself
	if d.off > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.off))
		if v := d.meta.ifRange(); v != "" {
			req.Header.Set("If-Range", v)
		}
	}
	resp, err := d.Client.Do(req)
	watch.Stop() // what the disk or the caller takes is no stall
	if err != nil {
		var ue *url.Error // repeats the URL, secrets in its query included
		if errors.As(err, &ue) {
			err = ue.Err
		}
		if conn.Err() != nil {
			err = context.Cause(conn)
		}
		if hopeless(err) {
			return err
		}
		return &temporary{error: err}
	}
	defer resp.Body.Close()
	want, err := d.accept(resp)
	if err != nil || d.complete() {
		return err
	}

	buf := make([]byte, d.lim.chunk(bufSize))
	start := d.off
	for unsynced := int64(0); want < 0 || d.off-start < want; {
		watch.Reset(d.Stall)
		n, rerr := resp.Body.Read(buf)
		watch.Stop()
		if want >= 0 {
			n = int(min(int64(n), want-(d.off-start)))
		}
		if err := d.write(buf[:n]); err != nil {
			return err
		}
		if unsynced += int64(n); unsynced >= syncEvery {
			if err := d.checkpoint(); err != nil {
				return err
			}
			unsynced = 0
		}
		if rerr == io.EOF && want < 0 && d.off >= d.Size {
			d.meta.Total = d.off // the end of a body without length
			break
		}
		if rerr != nil && (want < 0 || d.off-start < want) {
			if rerr == io.EOF {
				rerr = io.ErrUnexpectedEOF
			}
			if conn.Err() != nil {
				rerr = context.Cause(conn)
			}
			return &temporary{error: fmt.Errorf("connection lost at byte %d: %w", d.off, rerr)}
		}
		if err := d.lim.wait(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// accept decides from a response's header what its body is: want bytes (-1:
// all there are) that belong at d.off.
func (d *download) accept(resp *http.Response) (want int64, err error) {
	cr, rangeErr := parseContentRange(resp.Header.Get("Content-Range"))
	switch resp.StatusCode {
	case http.StatusOK:
		if d.off > 0 {
			d.Log.Info("server sends the file from its beginning", "url", d.name, "lost", d.off)
			if err := d.restart(); err != nil {
				return 0, err
			}
		}
		d.meta.describe(resp.Header)
		want, d.meta.Total = resp.ContentLength, resp.ContentLength

	case http.StatusPartialContent:
		if rangeErr == nil && cr.first != d.off {
			rangeErr = fmt.Errorf("asked for bytes from %d, got Content-Range %q", d.off, resp.Header.Get("Content-Range"))
		}
		if d.off == 0 && rangeErr != nil {
			return 0, rangeErr
		}
		if rangeErr != nil {
			return 0, d.again(rangeErr)
		}
		if !d.isSame(resp, cr.total) {
			return 0, d.again(errors.New("file changed on the server"))
		}
		if d.off == 0 {
			d.meta.describe(resp.Header)
		}
		want = cr.last - cr.first + 1
		if cr.total >= 0 {
			d.meta.Total = cr.total
		}

	case http.StatusRequestedRangeNotSatisfiable:
		if d.off == 0 {
			return 0, errors.New(resp.Status)
		}
		if rangeErr != nil || cr.total != d.off || !d.isSame(resp, cr.total) {
			return 0, d.again(errors.New("file changed on the server"))
		}
		d.meta.Total = d.off

	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return 0, &temporary{errors.New(resp.Status), retryAfter(resp.Header)}

	default:
		err := errors.New(resp.Status)
		if resp.StatusCode >= 500 {
			return 0, &temporary{err, retryAfter(resp.Header)}
		}
		return 0, err
	}

	if err := d.expect(d.meta.Total); err != nil {
		return 0, err
	}
	if err := d.save(); err != nil {
		return 0, err
	}
	d.report()
	return want, nil
}

func (d *download) isSame(resp *http.Response, total int64) bool {
	return d.off == 0 || d.meta.same(resp.Header) && (total < 0 || d.meta.Total < 0 || total == d.meta.Total)
}

// again throws away what there is and asks for another request because of why.
func (d *download) again(why error) error {
	if err := d.restart(); err != nil {
		return err
	}
	return &temporary{error: why}
}

func (d *download) restart() error {
	if err := d.part.Truncate(0); err != nil {
		return err
	}
	if _, err := d.part.Seek(0, io.SeekStart); err != nil {
		return err
	}
	d.meta = meta{Source: d.meta.Source, Boot: d.meta.Boot, Total: -1}
	d.off, d.res.ResumedAt = 0, 0
	return d.save()
}

func (d *download) write(b []byte) error {
	if d.Size > 0 && d.off+int64(len(b)) > d.Size {
		return fmt.Errorf("%w: size is more than %d bytes", errMismatch, d.Size)
	}
	n, err := d.part.Write(b)
	d.off += int64(n)
	d.res.Fetched += int64(n)
	if d.off > d.high {
		d.high, d.last = d.off, time.Now()
	}
	if err != nil {
		return d.explain(err)
	}
	if n > 0 {
		d.report()
	}
	return nil
}

// hopeless reports whether the same request would fail the same way again. A
// certificate out of its time is not: the clock may not have been set yet.
func hopeless(err error) bool {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return false
	}
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var op *net.OpError // crypto/tls gives this name to alerts from the server
	return errors.As(err, &cert) || errors.As(err, &record) ||
		errors.As(err, &op) && op.Op == "remote error" ||
		errors.Is(err, errRedirect) || errors.Is(err, http.ErrSchemeMismatch)
}

// retryAfter reads the header of that name: seconds or a date (RFC 9110, 10.2.3).
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}
