// SPDX-License-Identifier: Apache-2.0

// Package ctrd runs a containerd of its own for a test: the one of this machine, or another version that is built from its Go
// module.
package ctrd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Env is the environment variable that names the version to test with: 1.7 or 2, or nothing for the one of this machine.
const Env = "SDVBOX_CONTAINERD"

// modules are the versions that can be built.
var modules = map[string]struct{ path, version string }{
	"1.7": {"github.com/containerd/containerd", "v1.7.35"},
	"2":   {"github.com/containerd/containerd/v2", "v2.4.2"},
}

// Daemon is a running containerd.
type Daemon struct {
	Socket string
	Dir    string // all that it writes, but for what runc writes below /run/containerd
	Log    string // file

	tb      testing.TB
	program string
	config  string
	cmd     *exec.Cmd
	exited  chan struct{}
}

// Start starts the containerd that $SDVBOX_CONTAINERD names. It ends with the test, and so do its containers.
func Start(tb testing.TB) *Daemon {
	tb.Helper()
	return StartVersion(tb, os.Getenv(Env))
}

// StartVersion starts a certain containerd: 1.7, 2, or "" for the one of this machine.
func StartVersion(tb testing.TB, version string) *Daemon {
	tb.Helper()
	if os.Getuid() != 0 {
		skip(tb, "containerd needs root")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		skip(tb, "runc is not installed")
	}
	program, err := exec.LookPath("containerd")
	if version != "" {
		var bin string
		bin, err = Build(version)
		program = filepath.Join(bin, "containerd")
	}
	if err != nil {
		skip(tb, fmt.Sprintf("no containerd: %v", err))
	}
	// Paths of sockets are short.
	dir, err := os.MkdirTemp("", "ctrd")
	if err != nil {
		tb.Fatal(err)
	}
	d := &Daemon{Socket: dir + "/sock", Dir: dir, Log: dir + "/log", tb: tb, program: program, config: dir + "/config.toml"}
	tb.Cleanup(d.remove)
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = %q
[ttrpc]
address = %q
`, dir+"/root", dir+"/state", d.Socket, d.Socket+".ttrpc")
	if err := os.WriteFile(d.config, []byte(config), 0o600); err != nil {
		tb.Fatal(err)
	}
	d.Run()
	return d
}

func skip(tb testing.TB, why string) {
	tb.Helper()
	if os.Getenv("SDVBOX_REQUIRE") == "1" {
		tb.Fatal(why)
	}
	tb.Skip(why)
}

// Run starts containerd again, after Kill.
func (d *Daemon) Run() {
	d.tb.Helper()
	log, err := os.OpenFile(d.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.tb.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command(d.program, "--config", d.config, "--log-level", "warn")
	d.cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(d.program)+":"+os.Getenv("PATH"))
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		d.tb.Fatal(err)
	}
	cmd, exited := d.cmd, make(chan struct{})
	d.exited = exited
	go func() {
		cmd.Wait()
		close(exited)
	}()
	for range 3000 {
		if conn, err := net.Dial("unix", d.Socket); err == nil {
			conn.Close()
			return
		}
		select {
		case <-exited:
			text, _ := os.ReadFile(d.Log)
			d.tb.Fatalf("containerd has ended, %v:\n%s", cmd.ProcessState, text)
		case <-time.After(10 * time.Millisecond):
		}
	}
	d.tb.Fatal("containerd does not listen")
}

// Kill kills containerd as if power had failed for it alone: shims and containers go on.
func (d *Daemon) Kill() {
	if d.cmd != nil {
		d.cmd.Process.Kill()
		<-d.exited
		d.cmd = nil
	}
}

// Version is that of containerd: 1.6, or one after it.
func (d *Daemon) Version() string {
	d.tb.Helper()
	out, err := exec.Command(d.program, "--version").Output()
	m := regexp.MustCompile(` v?(\d+\.\d+)\.`).FindSubmatch(out)
	if err != nil || m == nil {
		d.tb.Fatalf("version of containerd: %s, %v", out, err)
	}
	return string(m[1])
}

// Pid is the process of containerd.
func (d *Daemon) Pid() int { return d.cmd.Process.Pid }

// A Shim is what stands between containerd and a container.
type Shim struct {
	Pid           int
	Namespace, ID string
}

// Shims lists the shims of this containerd.
func (d *Daemon) Shims() []Shim {
	var shims []Shim
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range commands {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has just ended
		}
		args := strings.Split(string(text), "\x00")
		if !strings.Contains(args[0], "containerd-shim") || !slices.Contains(args, d.Socket) {
			continue
		}
		s := Shim{}
		s.Pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(file)))
		for i := range len(args) - 1 {
			switch args[i] {
			case "-namespace":
				s.Namespace = args[i+1]
			case "-id":
				s.ID = args[i+1]
			}
		}
		shims = append(shims, s)
	}
	return shims
}

// remove ends everything that this containerd has begun.
func (d *Daemon) remove() {
	if d.tb.Failed() {
		text, _ := os.ReadFile(d.Log)
		d.tb.Logf("containerd said:\n%s", text)
	}
	d.Kill()
	for _, s := range d.Shims() {
		syscall.Kill(s.Pid, syscall.SIGKILL)
	}
	// What runc knows, it can undo, control groups included.
	bundles, _ := filepath.Glob(d.Dir + "/state/io.containerd.runtime.v2.task/*/*")
	for _, b := range bundles {
		id, namespace := filepath.Base(b), filepath.Base(filepath.Dir(b))
		exec.Command("runc", "--root", "/run/containerd/runc/"+namespace, "delete", "--force", id).Run()
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	lines := bytes.Split(mounts, []byte("\n"))
	slices.Reverse(lines)
	for _, line := range lines {
		if f := strings.Fields(string(line)); len(f) > 1 && strings.HasPrefix(f[1], d.Dir+"/") {
			syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
	if err := os.RemoveAll(d.Dir); err != nil {
		d.tb.Errorf("containerd has left something behind: %v", err)
	}
}

// Build makes the programs of a version of containerd, 1.7 or 2, and returns their directory. What is there is taken.
func Build(version string) (dir string, err error) {
	module, ok := modules[version]
	if !ok {
		return "", fmt.Errorf("version %q of containerd is not one of 1.7 and 2", version)
	}
	top, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; top = filepath.Dir(top) {
		if _, err := os.Stat(filepath.Join(top, "go.mod")); err == nil {
			break
		} else if top == "/" {
			return "", errors.New("no go.mod here or above")
		}
	}
	dir = filepath.Join(top, "build", "containerd-"+module.version)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	// A module of its own: nothing of this gets into the go.mod of sdvbox.
	tmp, err := os.MkdirTemp("", "ctrd")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	mod := fmt.Sprintf("module throwaway\n\ngo 1.26\n\nrequire %s %s\n", module.path, module.version)
	if err := os.WriteFile(filepath.Join(tmp, "go.mod"), []byte(mod), 0o644); err != nil {
		return "", err
	}
	half := dir + ".new"
	if err := os.RemoveAll(half); err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-C", tmp, "-trimpath", "-tags", "no_btrfs no_aufs no_devmapper no_zfs no_cri",
		"-ldflags", "-s -w -X "+module.path+"/version.Version="+module.version, "-o", half+"/",
		module.path+"/cmd/containerd", module.path+"/cmd/containerd-shim-runc-v2")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", build, err, out)
	}
	return dir, os.Rename(half, dir)
}

// Patient is how long to wait on this machine, which is SDVBOX_PATIENCE times as slow as others, for what others have done within limit.
func Patient(limit time.Duration) time.Duration {
	n, _ := strconv.Atoi(os.Getenv("SDVBOX_PATIENCE"))
	return limit * time.Duration(max(n, 1))
}
