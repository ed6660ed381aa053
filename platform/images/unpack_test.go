// SPDX-License-Identifier: Apache-2.0

package images

import (
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
)

func TestWhatADiskCannotDoIsNotTheImagesFault(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, d := start(t)
	ref := r.push(t, newImage(1), "app:1")
	mounts := filepath.Join(d.Dir, "root/tmpmounts") // where containerd unpacks
	old := mounts + ".old"
	ok(t, os.Rename(mounts, old))
	ok(t, os.WriteFile(mounts, nil, 0o600))
	_, err := s.Pull(t.Context(), ref, nil)
	expect(t, err, ctrmodel.Internal, "cannot unpack layer")
	if len(must(s.Client.Leases.List(t.Context()))(t)) != 1 {
		t.Error("what has been downloaded is thrown away")
	}
	ok(t, os.Remove(mounts))
	ok(t, os.Rename(old, mounts))
	must(s.Pull(t.Context(), ref, nil))(t)
}

func TestARegistryIsNotSilentWhileNobodyReads(t *testing.T) {
	t.Parallel()
	const size = 8 << 20 // more than waits in sockets
	r := startRegistry(t, false).between(t, func(w http.ResponseWriter, _ *http.Request) bool {
		w.Write(make([]byte, size))
		return false
	})
	s := must(New(Config{Log: slog.New(slog.DiscardHandler)}))(t)
	repo := must(s.connect(t.Context(), must(parseRef(r.at("x/app:1")))(t)))(t)
	defer repo.close()
	repo.stall = 200 * time.Millisecond
	resp := must(repo.get(t.Context(), "/blobs/x", "", 0))(t)
	defer resp.Body.Close()
	for _, n := range []int64{1, size - 1} {
		time.Sleep(300 * time.Millisecond) // on a slow disk
		if got, err := io.Copy(io.Discard, io.LimitReader(resp.Body, n)); got != n || err != nil {
			t.Fatalf("%d of %d bytes, %v", got, n, err)
		}
	}
}
