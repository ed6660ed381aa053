// SPDX-License-Identifier: Apache-2.0

package killmatrix

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sdvbox/platform/containerd"
)

// steps counts what can be seen of an order from outside as it is carried out: each event of containerd, and each change in the
// directories of the agent. They are the instants at which something is killed.
type steps struct {
	seen   chan struct{} // one for each
	watch  *os.File
	cancel context.CancelFunc
}

// watchSteps begins to count.
func (r *rig) watchSteps() *steps {
	r.t.Helper()
	s := &steps{seen: make(chan struct{}, 10000)}
	client := containerd.New(r.Containerd.Socket, r.namespace)
	ctx, cancel := context.WithCancel(r.t.Context())
	events, err := client.Subscribe(ctx)
	r.must(err)
	s.cancel = func() {
		cancel()
		events.Close()
		client.Close()
	}
	go func() {
		for {
			if _, err := events.Next(); err != nil {
				return
			}
			s.seen <- struct{}{}
		}
	}()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	r.must(err)
	s.watch = os.NewFile(uintptr(fd), "inotify")
	for _, top := range []string{"state", "run"} {
		r.must(filepath.WalkDir(filepath.Join(r.Dir, top), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || err == nil && !d.IsDir() {
				return nil
			}
			if err == nil {
				_, err = unix.InotifyAddWatch(fd, path, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE)
			}
			return err
		}))
	}
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := s.watch.Read(buf)
			if err != nil {
				return
			}
			for at := 0; at+unix.SizeofInotifyEvent <= n; {
				length := int(buf[at+12]) | int(buf[at+13])<<8 // of the name behind it
				at += unix.SizeofInotifyEvent + length
				s.seen <- struct{}{}
			}
		}
	}()
	return s
}

func (s *steps) close() {
	s.cancel()
	s.watch.Close()
}
