// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestFileStoreHandsFilesToSystemd(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var pipe [2]int
	if err := unix.Pipe(pipe[:]); err != nil {
		t.Fatal(err)
	}
	out := os.NewFile(uintptr(pipe[0]), "")
	s := OpenFileStore(socket)
	for range 2 { // the second time, there is one
		if err := s.Put("a", out, out); err != nil {
			t.Fatal(err)
		}
	}
	out.Close()
	if err := s.Remove("a"); err != nil || s.Remove("a") != nil || len(s.Names()) != 0 {
		t.Errorf("removed: %v, still %v", err, s.Names())
	}
	text, rights := make([]byte, 1024), make([]byte, 1024)
	n, m, _, _, err := conn.ReadMsgUnix(text, rights)
	if err != nil || string(text[:n]) != "FDSTORE=1\nFDPOLL=0\nFDNAME=a" {
		t.Fatalf("told %q, %v", text[:n], err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:m])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 2 {
		t.Fatalf("files %v, %v", fds, err)
	}
	unix.Write(pipe[1], []byte("kept"))
	if n, err := unix.Read(fds[1], text); err != nil || string(text[:n]) != "kept" {
		t.Errorf("read %q, %v", text[:n], err)
	}
	if n, _, _, _, err := conn.ReadMsgUnix(text, rights); err != nil || string(text[:n]) != "FDSTOREREMOVE=1\nFDNAME=a" {
		t.Errorf("told %q, %v", text[:n], err)
	}
	var none *FileStore
	for _, s := range []*FileStore{none, OpenFileStore("")} {
		if err := s.Put("a"); err != nil || s.Remove("a") != nil || len(s.Names()) != 0 {
			t.Errorf("without systemd: %v", err)
		}
	}
}

func TestFileStoreKnowsWhatWasLeftOpen(t *testing.T) {
	if os.Getenv("LISTEN_FDS") != "" {
		s := OpenFileStore("")
		_, err := unix.FcntlInt(3, unix.F_GETFD, 0)
		fmt.Println("kept:", s.Names(), err, os.Getenv("LISTEN_FDS"))
		return
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for pid, want := range map[string]string{"$$": "kept: [a] bad file descriptor \n", "1": "kept: [] <nil> \n"} {
		cmd := exec.Command("sh", "-c", `LISTEN_PID=`+pid+` exec "$0" -test.run='^TestFileStoreKnowsWhatWasLeftOpen$'`, os.Args[0])
		cmd.Env = append(os.Environ(), "LISTEN_FDS=2", "LISTEN_FDNAMES=a:a")
		cmd.ExtraFiles = []*os.File{null, null}
		out, err := cmd.Output()
		if err != nil || !strings.HasPrefix(string(out), want) {
			t.Errorf("pid %s: %q, %v", pid, out, err)
		}
	}
}

func TestFileStoreWithSystemdThatDoesNotListen(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s := OpenFileStore(socket)
	s.patience = 10 * time.Millisecond
	if err := s.Put("none"); err == nil || len(s.Names()) != 0 {
		t.Errorf("put nothing: %v, kept %v", err, s.Names())
	}
	for n := 0; err == nil; n++ { // until systemd has as many messages as it takes
		if n > 100000 {
			t.Fatal("takes everything")
		}
		err = s.Put(fmt.Sprint(n), os.Stdout)
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	if err := s.Remove("0"); !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, conn)
	s.patience = time.Minute
	if err := s.Remove("0"); err != nil || slices.Contains(s.Names(), "0") {
		t.Errorf("removed later: %v, still %v", err, s.Names())
	}
	if err := s.Remove("1"); err != nil {
		t.Error(err)
	}
}
