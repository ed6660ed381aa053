// SPDX-License-Identifier: Apache-2.0

package selfupdate

import (
	"context"
	"fmt"
	"time"

	"sdvbox/platform/fetch"
	"sdvbox/platform/updateagent"
	"sdvbox/platform/updateproto"
)

const mebibyte = 1 << 20

// inspectLimit is how long RAUC may take to read the manifest of a bundle.
const inspectLimit = 2 * time.Minute

// Download brings the bundle into Dir. In stream mode it only asks RAUC
// whether the server has the right bundle.
func (b *Backend) Download(ctx context.Context, job *updateagent.Job) []updateproto.Feedback {
	var n notes
	job.Load(&n)
	n.result("", "")
	percent, total := 0, int64(0)
	show := func(status, action string, progress int) updateproto.Feedback {
		verb := "Downloading"
		if action == updateproto.ActionDownloadSuccess {
			verb = "Downloaded"
		}
		return n.say(status, msgUpdating, action, progress, fmt.Sprintf("%s %.1f MiB...", verb, float64(total)/mebibyte))
	}
	failed := func(message string) []updateproto.Feedback {
		n.result(updateproto.ActionDownloadFailure, message)
		if err := job.Save(n); err != nil {
			b.Log.Error("cannot save the result of the download", "error", err)
		}
		return one(n.say(updateproto.StatusDownloadFailure, "Download failed.", updateproto.ActionDownloadFailure, percent, message))
	}

	if n.Keep {
		return one(show(updateproto.StatusDownloadSuccess, updateproto.ActionDownloadSuccess, 100))
	}
	if b.Mode == Stream {
		// A server that does not answer is left to the download, which is patient.
		inspect, cancel := context.WithTimeout(ctx, inspectLimit)
		bundle, err := b.System.Inspect(inspect, n.URL)
		cancel()
		switch {
		case err == nil && bundle.Version != n.Version:
			return failed(msgWrongVersion)
		case err == nil:
			job.Progress(show(updateproto.StatusDownloading, updateproto.ActionDownloading, 0))
			n.Streamed = true
			if err := job.Save(n); err != nil {
				return failed("Download failed: " + err.Error())
			}
			return one(show(updateproto.StatusDownloadSuccess, updateproto.ActionDownloadSuccess, 100))
		}
		b.Log.Warn("RAUC cannot stream the bundle, it is downloaded instead", "url", n.URL, "error", err)
	}

	gate := gate{delay: b.Delay, step: 10}
	first := true
	size, err := b.fetch(ctx, n.URL, func(done, all int64) {
		p := 0
		if all > 0 {
			total, p = all, int(min(done*100/all, 99))
		}
		if first || p > percent {
			percent = p
			if gate.open(p) {
				job.Progress(show(updateproto.StatusDownloading, updateproto.ActionDownloading, p))
			}
			first = false
		}
	})
	if err != nil {
		if first {
			job.Progress(show(updateproto.StatusDownloading, updateproto.ActionDownloading, 0))
		}
		return failed("Download failed: " + err.Error())
	}
	total = size
	if first {
		job.Progress(show(updateproto.StatusDownloading, updateproto.ActionDownloading, 0))
	}
	n.Streamed = false
	if err := job.Save(n); err != nil {
		return failed("Download failed: " + err.Error())
	}
	return one(show(updateproto.StatusDownloadSuccess, updateproto.ActionDownloadSuccess, 100))
}

func (b *Backend) fetch(ctx context.Context, url string, progress func(done, total int64)) (size int64, err error) {
	r, err := fetch.Get(ctx, fetch.Request{
		URL: url, Path: b.bundle(), Client: b.Client, Rate: b.Rate, Reserve: b.Reserve,
		Stall: b.Stall, GiveUp: b.GiveUp, Progress: progress, Log: b.Log,
	})
	return r.Size, err
}

// gate lets progress through at the wire's cadence: when the next multiple of
// step is reached, but not sooner than delay after the message before. The
// first is always let through.
type gate struct {
	delay time.Duration
	step  int
	next  int
	last  time.Time
}

func (g *gate) open(percent int) bool {
	if percent < g.next || !g.last.IsZero() && time.Since(g.last) < g.delay {
		return false
	}
	g.last = time.Now()
	g.next = percent - percent%g.step + g.step
	return true
}
