// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// FileStore is files that systemd keeps open for a daemon while that is away, however it ended. What somebody has written to a
// pipe is not lost then, although for a while nobody reads it. The unit has to have FileDescriptorStoreMax=; for a
// daemon that is stopped, and started later, FileDescriptorStorePreserve=yes. Without systemd it does nothing; so does a nil one.
type FileStore struct {
	socket   string
	patience time.Duration // with a systemd that is busy

	mu    sync.Mutex
	names map[string]bool
}

// OpenFileStore finds out what the daemon before this one has left open. It is to be called once, at the start. The socket is
// that of systemd, $NOTIFY_SOCKET.
func OpenFileStore(socket string) *FileStore {
	s := &FileStore{socket: socket, patience: 5 * time.Second, names: map[string]bool{}}
	count, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		count = 0
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for i := range count {
		unix.Close(3 + i) // systemd has its own
		if i < len(names) {
			s.names[names[i]] = true
		}
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	return s
}

// Names are those of the files that are kept.
func (s *FileStore) Names() (names []string) {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.names {
		names = append(names, name)
	}
	return names
}

// Put has files kept under a name, unless there are some of that name already.
func (s *FileStore) Put(name string, files ...*os.File) error {
	if s == nil || s.socket == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names[name] {
		return nil
	}
	if len(files) == 0 {
		return fmt.Errorf("no files to keep under the name %s", name)
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	// The end of a pipe whose other end is closed is still of use.
	if err := s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, unix.UnixRights(fds...)); err != nil {
		return err
	}
	s.names[name] = true
	return nil
}

// Remove closes the files of a name.
func (s *FileStore) Remove(name string) error {
	if s == nil || s.socket == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.names[name] {
		return nil
	}
	err := s.send("FDSTOREREMOVE=1\nFDNAME="+name, nil)
	if err == nil {
		delete(s.names, name)
	}
	return err
}

func (s *FileStore) send(state string, rights []byte) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	patience := unix.NsecToTimeval(s.patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience); err != nil {
		return err
	}
	if err := unix.Sendmsg(fd, []byte(state), rights, &unix.SockaddrUnix{Name: s.socket}, 0); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return nil
}
