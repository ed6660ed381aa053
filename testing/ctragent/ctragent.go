// SPDX-License-Identifier: Apache-2.0

// Package ctragent runs the container agent as a process for tests, on a containerd, with directories, a bridge and firewall rules
// of its own; and makes images for it.
package ctragent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/cmapi"
	"sdvbox/testing/ctrd"
)

// OwnHost runs the tests of a package on a host of their own, as far as networks and mounts go. To be called by TestMain.
func OwnHost(m *testing.M) {
	if os.Geteuid() != 0 { // the tests say so
		os.Exit(m.Run())
	}
	if os.Getenv(ownHost) != "" {
		const leftovers = "/run/containerd" // of runc and shims
		err := os.MkdirAll(leftovers, 0o711)
		if err == nil {
			err = unix.Mount("none", leftovers, "tmpfs", 0, "mode=711")
		}
		if out, err2 := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil || err2 != nil {
			fmt.Printf("make a host for the test: %v, %v: %s\n", err, err2, out)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "ctragent")
	if err == nil {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), ownHost+"="+dir)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		err = cmd.Run()
		os.RemoveAll(dir)
	}
	if err != nil {
		fmt.Println("on the host of the test:", err)
		os.Exit(1)
	}
}

// ownHost is the environment variable with a directory for what is built for all tests of a package.
const ownHost = "CTRAGENT_OWN_HOST"

// Build builds sdvbox, once for a package with an own host.
func Build(tb testing.TB) (path string) {
	tb.Helper()
	return build(tb, "sdvbox")
}

// Program builds a program that needs nothing of the image it is in.
func Program(tb testing.TB, pkg string) []byte {
	tb.Helper()
	data, err := os.ReadFile(build(tb, pkg))
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

func build(tb testing.TB, pkg string) (path string) {
	tb.Helper()
	dir := os.Getenv(ownHost)
	if dir == "" {
		dir = tb.TempDir()
	}
	path = filepath.Join(dir, filepath.Base(pkg))
	if _, err := os.Stat(path); err == nil {
		return path
	}
	cmd := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return path
}

// Section is a part of the configuration file.
type Section map[string]any

// Agent is a container agent.
type Agent struct {
	*cmapi.Client
	Dir        string // all that it writes
	Socket     string
	Bridge     string
	Config     map[string]Section
	Containerd *ctrd.Daemon

	tb      testing.TB
	program string
	cmd     *exec.Cmd
	exited  chan struct{}
}

// New prepares an agent that is not started yet. It ends with the test, and its containers, too.
func New(tb testing.TB, program string, d *ctrd.Daemon) *Agent {
	tb.Helper()
	dir, err := os.MkdirTemp("", "cta") // short, for the names of sockets
	if err != nil {
		tb.Fatal(err)
	}
	a := &Agent{Dir: dir, Socket: dir + "/sock", Bridge: fmt.Sprintf("cta%x", rand.Uint32()), Containerd: d, tb: tb, program: program}
	for _, sub := range []string{"containers", "images"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	a.Config = map[string]Section{
		"log":     {"log_level": "DEBUG"},
		"manager": {"home_dir": dir + "/home", "state_dir": dir + "/state", "exec_root_dir": dir + "/run", "default_ctrs_stop_timeout": 5},
		"containers": {
			"address_path": d.Socket, "exec_root_dir": dir + "/run", "home_dir": dir + "/home", "containerd_root": d.Dir + "/root", "disk_reserve": "1M",
		},
		"network":      {"exec_root_dir": dir + "/run", "default_bridge": Section{"name": a.Bridge}},
		"grpc_server":  {"address_path": a.Socket},
		"deployment":   {"ctr_dir": dir + "/containers", "manifest_dirs": []string{}, "image_dirs": []string{dir + "/images"}, "period": "100ms"},
		"things":       {"enable": false},
		"update_agent": {"enable": false},
	}
	a.Client = cmapi.NewClient(a.Socket)
	tb.Cleanup(a.remove)
	return a
}

// Start starts an agent with some of the configuration changed, and waits until it answers.
func Start(tb testing.TB, program string, d *ctrd.Daemon, change map[string]Section) *Agent {
	tb.Helper()
	a := New(tb, program, d)
	for name, section := range change {
		maps.Copy(a.Config[name], section)
	}
	a.Launch()
	a.Eventually(20*time.Second, "the agent answers", func() bool {
		_, err := a.Images(tb.Context())
		return err == nil
	})
	return a
}

// Launch starts the agent, again after it has ended, and does not wait for it.
func (a *Agent) Launch() {
	a.tb.Helper()
	config, err := json.Marshal(a.Config)
	if err != nil {
		a.tb.Fatal(err)
	}
	a.Write("config.json", config)
	log, err := os.OpenFile(a.Dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		a.tb.Fatal(err)
	}
	defer log.Close()
	a.cmd = exec.Command(a.program, "container-agent", "--cfg-file", a.Dir+"/config.json")
	a.cmd.Stdout, a.cmd.Stderr = log, log
	if err := a.cmd.Start(); err != nil {
		a.tb.Fatal(err)
	}
	cmd, exited := a.cmd, make(chan struct{})
	a.exited = exited
	go func() {
		cmd.Wait()
		close(exited)
	}()
}

// Pid is the process of the agent.
func (a *Agent) Pid() int { return a.cmd.Process.Pid }

// Kill ends the agent at once.
func (a *Agent) Kill() { a.end(syscall.SIGKILL) }

// Terminate ends the agent in order.
func (a *Agent) Terminate() { a.end(syscall.SIGTERM) }

func (a *Agent) end(signal syscall.Signal) {
	a.tb.Helper()
	if a.cmd == nil {
		return
	}
	a.cmd.Process.Signal(signal)
	limit := ctrd.Patient(20 * time.Second)
	select {
	case <-a.exited:
	case <-time.After(limit):
		a.cmd.Process.Kill()
		<-a.exited
		a.tb.Errorf("the agent did not end within %v of %v", limit, signal)
	}
	a.cmd = nil
}

// Log is what the agent has said.
func (a *Agent) Log() string {
	text, _ := os.ReadFile(a.Dir + "/log")
	return string(text)
}

// Write writes a file in the directory of the agent, in one step.
func (a *Agent) Write(name string, data []byte) (path string) {
	a.tb.Helper()
	path = filepath.Join(a.Dir, name)
	part := filepath.Join(a.Dir, fmt.Sprintf("part-%x", rand.Uint64())) // not where the agent looks
	err := os.WriteFile(part, data, 0o644)
	if err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		a.tb.Fatal(err)
	}
	return path
}

// Import makes images known, as long as the agent runs.
func (a *Agent) Import(images ...*Image) {
	a.tb.Helper()
	a.Write("images/"+strconv.FormatUint(rand.Uint64(), 36)+".tar", Archive(images...))
	for _, i := range images {
		a.Eventually(20*time.Second, "image "+i.Ref, func() bool {
			list, _ := a.Images(a.tb.Context())
			for _, have := range list {
				if have.Name == i.Ref {
					return true
				}
			}
			return false
		})
	}
}

// Eventually waits until something is so, in the test that the agent is of.
func (a *Agent) Eventually(limit time.Duration, what string, is func() bool) {
	a.tb.Helper()
	limit = ctrd.Patient(limit)
	for begin := time.Now(); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > limit {
			a.tb.Fatalf("%s: not within %v", what, limit)
		}
		select {
		case <-a.exited:
			a.tb.Fatalf("%s: the agent has ended", what)
		default:
		}
	}
}

// Command is another applet of the same build, as kanto-cm, with this agent.
func (a *Agent) Command(applet string, args ...string) *exec.Cmd {
	return exec.CommandContext(a.tb.Context(), a.program, append([]string{applet, "--host", a.Socket}, args...)...)
}

// Run runs such a command.
func (a *Agent) Run(applet string, args ...string) (stdout, stderr string, code int) {
	a.tb.Helper()
	cmd := a.Command(applet, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		a.tb.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// PSS is the memory that a process has, with its share of what it has together with others, in bytes.
func PSS(tb testing.TB, pid int) int {
	tb.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		tb.Fatal(err)
	}
	match := regexp.MustCompile(`(?m)^Pss: +(\d+) kB`).FindStringSubmatch(string(text))
	if match == nil {
		tb.Fatalf("no Pss in %s", text)
	}
	kb, _ := strconv.Atoi(match[1])
	return kb << 10
}

// remove ends the agent and everything that it has begun.
func (a *Agent) remove() {
	if a.tb.Failed() {
		log := a.Log()
		a.tb.Logf("the agent said:\n%s", log[max(0, len(log)-20000):])
	}
	if a.cmd != nil {
		a.Terminate()
	}
	a.Client.Close()
	// Containers and networks outlive agents; the end of containerd sees to the former.
	for _, s := range a.Containerd.Shims() {
		syscall.Kill(s.Pid, syscall.SIGKILL)
	}
	exec.Command("ip", "link", "del", a.Bridge).Run()
	exec.Command("nft", "delete", "table", "inet", "sdvbox-"+a.Bridge).Run()
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if path := strings.Fields(line)[1]; strings.HasPrefix(path, a.Dir+"/") {
			unix.Unmount(path, unix.MNT_DETACH)
		}
	}
	if err := os.RemoveAll(a.Dir); err != nil {
		a.tb.Errorf("the agent has left something behind: %v", err)
	}
}
