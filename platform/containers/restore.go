// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/grpc"
)

// What an agent before this one has left, perhaps because it was killed.

const (
	execPrefix   = "exec-"   // of the id of a process that Exec has started, and of the directory with its streams
	rootfsPrefix = "rootfs-" // of a directory where the file system of a container is mounted for a look at it
	sweepTimeout = 10 * time.Second
)

// restore takes over what is left, and clears away what no container of keep has. Whether a container has a process is a
// question to containerd, too: an agent may have been killed before it could write that down.
func (m *machine) restore(ctx context.Context, keep []*ctrmodel.Container) error {
	tasks, err := m.Client.Tasks.List(ctx)
	if err != nil {
		return model(err)
	}
	live := map[string]bool{}
	for _, t := range tasks {
		live[t.ID] = true
	}
	known := map[string]bool{}
	var ids []string
	for _, c := range keep {
		known[c.ID] = true
		if live[c.ID] || c.State.HasProcess() {
			ids = append(ids, c.ID)
		}
	}
	short, cancel := context.WithTimeout(ctx, sweepTimeout) // frozen processes do not die
	defer cancel()
	if err := m.sweep(short, known, tasks); err != nil {
		m.Log.Warn("something is left of what an agent before has been doing", "error", err)
	}
	if err := m.Network.Restore(ctx, ids); err != nil { // not all containers need it
		m.Log.Error("cannot restore the network of containers", "error", err)
	}
	m.restored = true
	return nil
}

// sweep clears away what a killed agent has left below ExecDir: file systems that it looked at, the processes that it executed
// in containers, whose output nobody reads any more, and the streams of containers that are gone.
func (m *machine) sweep(ctx context.Context, known map[string]bool, tasks []*containerd.Process) error {
	var errs []error
	mounts, _ := filepath.Glob(filepath.Join(m.ExecDir, rootfsPrefix+"*"))
	for _, dir := range mounts {
		unix.Unmount(dir, unix.MNT_DETACH)
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	entries, err := os.ReadDir(m.fifos(""))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, e := range entries {
		switch id := e.Name(); {
		case known[id], holdsStreams(m.fifos(id), tasks): // an original agent has names of its own
			continue
		case strings.HasPrefix(id, execPrefix):
			// A shim that has not opened the streams yet waits for a reader, and answers nobody until it has one.
			streams, _ := filepath.Glob(filepath.Join(m.fifos(id), "*"))
			for _, path := range streams {
				if f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0); err == nil {
					defer f.Close()
				}
			}
			for _, t := range tasks {
				m.endExec(ctx, t.ID, id)
			}
		}
		errs = append(errs, os.RemoveAll(m.fifos(e.Name())))
	}
	for _, name := range m.Files.Names() {
		if id, ok := strings.CutPrefix(name, heldPrefix); ok && !known[id] {
			m.drop(id)
		}
	}
	return errors.Join(errs...)
}

// holdsStreams reports whether a task has a stream below a directory.
func holdsStreams(dir string, tasks []*containerd.Process) bool {
	return slices.ContainsFunc(tasks, func(t *containerd.Process) bool {
		return strings.HasPrefix(t.Stdin, dir+"/") || strings.HasPrefix(t.Stdout, dir+"/") || strings.HasPrefix(t.Stderr, dir+"/")
	})
}

// endExec ends a process that has been executed in a container, and removes what is left of it.
func (m *machine) endExec(ctx context.Context, id, execID string) {
	if _, err := m.Client.Tasks.Delete(ctx, id, execID); err == nil || gone(err) {
		return
	}
	m.Client.Tasks.Kill(ctx, id, execID, syscall.SIGKILL, false)
	m.Client.Tasks.Wait(ctx, id, execID)
	m.Client.Tasks.Delete(ctx, id, execID)
}

// holdLease makes the lease. That of an original agent may have an end, after which all file systems of stopped containers
// would be gone, and may hold parts of images that are never used again.
func (m *machine) holdLease(ctx context.Context) error {
	leases, err := m.Client.Leases.List(ctx)
	if err != nil {
		return err
	}
	moving := m.Lease + ".moving" // holds what the lease does while there is none
	var own, halfway *containerd.Lease
	for _, l := range leases {
		switch l.ID {
		case m.Lease:
			own = l
		case moving:
			halfway = l
		}
	}
	if own != nil && own.Labels[containerd.ExpireLabel] != "" {
		if err := m.moveLease(ctx, m.Lease, moving); err != nil {
			return err
		}
		own, halfway = nil, &containerd.Lease{}
	}
	if halfway != nil {
		return m.moveLease(ctx, moving, m.Lease)
	}
	if own == nil {
		return m.createLease(ctx, m.Lease)
	}
	return nil
}

func (m *machine) createLease(ctx context.Context, id string) error {
	err := m.Client.Leases.Create(ctx, id, nil)
	if grpc.CodeOf(err) == grpc.AlreadyExists {
		return nil
	}
	return err
}

// moveLease moves the file systems that one lease holds to another one.
func (m *machine) moveLease(ctx context.Context, from, to string) error {
	held, err := m.Client.Leases.Resources(ctx, from)
	if err != nil {
		return fmt.Errorf("lease %s: %w", from, err)
	}
	if err := m.createLease(ctx, to); err != nil {
		return err
	}
	for _, r := range held {
		if strings.HasPrefix(r.Type, "snapshots/") {
			if err := m.Client.Leases.Add(ctx, to, *r); err != nil && !gone(err) {
				return fmt.Errorf("lease %s: %w", to, err)
			}
		}
	}
	return m.Client.Leases.Delete(ctx, from, false)
}
