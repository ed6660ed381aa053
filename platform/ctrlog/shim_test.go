// SPDX-License-Identifier: Apache-2.0

package ctrlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/output"
)

// shim is a container in a containerd of the test's own.
type shim struct {
	t      *testing.T
	ctx    context.Context
	client *containerd.Client
	cfg    Config
	task   string
	rootfs string
}

func newShim(t *testing.T) *shim {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	for _, program := range []string{"containerd", "runc"} {
		_, missing := exec.LookPath(program)
		err = errors.Join(err, missing)
	}
	if err != nil || os.Getuid() != 0 {
		if os.Getenv("SDVBOX_REQUIRE") == "1" {
			t.Fatal("needs root, containerd, runc and busybox:", err)
		}
		t.Skip("needs root, containerd, runc and busybox:", err)
	}
	dir, err := os.MkdirTemp("/tmp", "ctrlog") // names of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		dir+"/root", dir+"/state", dir+"/sock")
	s := &shim{t: t, client: containerd.New(dir+"/sock", "ctrlog"), task: "c", rootfs: dir + "/rootfs"}
	s.cfg = Config{Dir: dir + "/fifo", File: dir + "/log/json.log", MaxSize: 100 << 20, MaxFiles: 2}
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	s.ok(errors.Join(os.WriteFile(dir+"/config.toml", []byte(config), 0o600), os.MkdirAll(s.rootfs+"/bin", 0o755),
		os.WriteFile(s.rootfs+"/bin/busybox", busybox, 0o755)))
	for _, d := range []string{"proc", "dev", "sys"} {
		s.ok(os.Mkdir(filepath.Join(s.rootfs, d), 0o755))
	}
	cmd := exec.Command("containerd", "-c", dir+"/config.toml")
	s.ok(cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	for {
		_, err := s.client.Version(s.ctx)
		if err == nil {
			break
		}
		if s.ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.ok(s.client.CreateNamespace(s.ctx))
	return s
}

func (s *shim) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// run starts a script in a container with a console.
func (s *shim) run(c *Console, script string) {
	s.t.Helper()
	type object = map[string]any
	spec, err := containerd.Spec(object{
		"ociVersion": "1.0.2",
		"process": object{"cwd": "/", "args": []string{"/bin/busybox", "sh", "-c", script}, "env": []string{"PATH=/bin"},
			"user": object{"uid": 0, "gid": 0}, "terminal": c.cfg.TTY},
		"root":   object{"path": "rootfs"},
		"mounts": []object{{"destination": "/proc", "type": "proc", "source": "proc"}, {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}, {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666"}}},
		"linux":  object{"cgroupsPath": "/ctrlog-test/" + s.task, "namespaces": []object{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}}},
	})
	s.ok(err)
	_, err = s.client.Containers.Create(s.ctx, &containerd.Container{ID: s.task, Runtime: &containerd.Runtime{Name: "io.containerd.runc.v2"}, Spec: spec})
	s.ok(err)
	paths, err := c.Open()
	s.ok(err)
	io := containerd.IO{Stdin: paths.Stdin, Stdout: paths.Stdout, Stderr: paths.Stderr, Terminal: c.cfg.TTY}
	_, err = s.client.Tasks.Create(s.ctx, s.task, []*containerd.Mount{{Type: "bind", Source: s.rootfs, Options: []string{"rbind", "rw"}}}, io, nil)
	s.ok(err)
	_, err = s.client.Tasks.Start(s.ctx, s.task, "")
	s.ok(err)
	s.t.Cleanup(func() {
		ctx := context.Background()
		s.client.Tasks.Kill(ctx, s.task, "", syscall.SIGKILL, true)
		s.client.Tasks.Wait(ctx, s.task, "")
		s.client.Tasks.Delete(ctx, s.task, "")
		s.client.Containers.Delete(ctx, s.task)
	})
}

// ended waits for the end of the container, and of its output.
func (s *shim) ended(c *Console) {
	s.t.Helper()
	exit, err := s.client.Tasks.Wait(s.ctx, s.task, "")
	s.ok(err)
	if exit.Status != 0 {
		s.t.Errorf("exit status %d", exit.Status)
	}
	_, err = s.client.Tasks.Delete(s.ctx, s.task, "")
	s.ok(err)
	s.ok(c.Close())
}

// A container with and one without a terminal is typed to, goes on when the agent goes, and is typed to again.
func TestContainerGoesOnWithoutTheAgent(t *testing.T) {
	for _, tty := range []bool{false, true} {
		t.Run(fmt.Sprintf("tty=%v", tty), func(t *testing.T) {
			s := newShim(t)
			s.cfg.Stdin, s.cfg.TTY = true, tty
			c := New(s.cfg)
			attach := func(c *Console) (*io.PipeWriter, *output.Buffer, chan error) {
				in, typed := io.Pipe()
				out, ended, ready := new(output.Buffer), make(chan error, 1), make(chan struct{})
				go func() {
					ended <- c.Attach(s.ctx, ctrmodel.Streams{Stdin: in, Stdout: out}, func() { close(ready) })
				}()
				<-ready
				return typed, out, ended
			}
			typed, out, ended := attach(c)
			go io.WriteString(typed, "first\n") // before there is a process
			s.run(c, `while read line; do test $line = end && exit 0; echo "got $line"; test $line = first && for i in 1 2 3 4 5; do busybox sleep 0.1; echo $i; done; done; exit 1`)
			out.Wait(t, "got first")
			c.Leave()
			if err := <-ended; ctrmodel.KindOf(err) != ctrmodel.Unavailable {
				t.Error(err)
			}
			time.Sleep(700 * time.Millisecond)

			c = New(s.cfg)
			_, err := c.Open()
			s.ok(err)
			typed, out, ended = attach(c)
			go io.WriteString(typed, "second\n")
			out.Wait(t, "got second")
			go io.WriteString(typed, "end\n")
			s.ended(c)
			if err := <-ended; err != nil {
				t.Error(err)
			}
			got := ""
			for _, l := range logs(t, c, -1) {
				if !slices.Contains([]string{"first\n", "second\n", "end\n"}, l.Log) { // the echo of a terminal
					got += l.Log
				}
			}
			if want := "got first\n1\n2\n3\n4\n5\ngot second\n"; got != want {
				t.Errorf("the log says %q, want %q", got, want)
			}
		})
	}
}

func TestOutputOfAContainerThatEndsIsComplete(t *testing.T) {
	s := newShim(t)
	c := New(s.cfg)
	s.run(c, "busybox seq 1 200000; echo -n end >&2")
	s.ended(c)
	s.counted(c, 200000)
}

// More than fits in the FIFO: some is with the shim, until the task is deleted.
func TestOutputOfAContainerThatEndsWithoutAnAgentIsComplete(t *testing.T) {
	s := newShim(t)
	c := New(s.cfg)
	s.run(c, "busybox sleep 0.2; busybox seq 1 20000")
	c.Leave()
	_, err := s.client.Tasks.Wait(s.ctx, s.task, "")
	s.ok(err)
	c = New(s.cfg)
	s.ok(c.Reopen())
	s.ended(c)
	s.counted(c, 20000)
	s.ok(c.Reopen())
	if c.Ended() != nil {
		t.Error("streams that are not there are open")
	}
}

func TestOutputIsCompleteWhileAgentsComeAndGo(t *testing.T) {
	s := newShim(t)
	s.cfg.Stdin = true
	c := New(s.cfg)
	s.run(c, "busybox seq 1 200000; read word")
	for range 10 {
		time.Sleep(5 * time.Millisecond)
		c.Leave()
		time.Sleep(time.Millisecond)
		c = New(s.cfg)
		_, err := c.Open()
		s.ok(err)
	}
	go c.Attach(s.ctx, ctrmodel.Streams{Stdin: strings.NewReader("word\n")}, nil)
	s.ended(c)
	s.counted(c, 200000)
}

func (s *shim) counted(c *Console, want int) {
	s.t.Helper()
	n := 0
	for _, l := range logs(s.t, c, -1) {
		if l.Stream == "stderr" {
			continue
		}
		if n++; l.Log != fmt.Sprintf("%d\n", n) {
			s.t.Fatalf("line %d is %q", n, l.Log)
		}
	}
	if n != want {
		s.t.Errorf("%d lines, want %d", n, want)
	}
}
