// SPDX-License-Identifier: Apache-2.0

// Package managers runs update managers as processes for tests: the one of sdvbox and, where a peer is named, the original of
// Eclipse Kanto, both with the same configuration file.
package managers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sdvbox/testing/agents"
)

// Peer is the environment variable with the path of the original update manager. Nothing of it is part of sdvbox.
const Peer = "PEER_UPDATE_MANAGER"

// Original returns the path of the original update manager; without one the test is skipped.
func Original(tb testing.TB) string {
	tb.Helper()
	path := os.Getenv(Peer)
	if path == "" {
		tb.Skip(Peer + " does not name the original update manager, nothing to compare with")
	}
	return path
}

// Build builds sdvbox and returns the path under which it is an applet.
func Build(tb testing.TB, applet string, flags ...string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), applet)
	cmd := exec.Command("go", append(append([]string{"build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", path}, flags...), "sdvbox")...)
	if len(flags) == 0 {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return path
}

// Manager is a running update manager.
type Manager struct {
	tb     testing.TB
	path   string
	args   []string
	log    bytes.Buffer
	cmd    *exec.Cmd
	exited chan struct{}
	ready  *agents.Recorder
}

// Config is a configuration that suits a test: plain MQTT, no reboot, agents that need not be waited for long. What is in more
// comes on top. Durable state goes to the directory.
func Config(broker, dir string, domains []string, more map[string]any) map[string]any {
	list := map[string]any{}
	for _, d := range domains {
		list[d] = map[string]any{"readTimeout": "3s"}
	}
	c := map[string]any{
		"domain":            "vehicle",
		"thingsEnabled":     false,
		"connection":        map[string]any{"broker": broker},
		"agents":            list,
		"rebootEnabled":     false,
		"currentStateDelay": "1s",
		"log":               map[string]any{"logLevel": "DEBUG"},
		// What follows is of sdvbox; the original does not look at it.
		"stateDir":      dir,
		"controlSocket": filepath.Join(dir, "control"),
	}
	maps.Copy(c, more)
	return c
}

// Start starts a manager that ends with the test, and waits until it has published its first current state.
func Start(tb testing.TB, path, broker string, config map[string]any) *Manager {
	tb.Helper()
	data, err := json.Marshal(config)
	if err != nil {
		tb.Fatal(err)
	}
	file := filepath.Join(tb.TempDir(), "config.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		tb.Fatal(err)
	}
	m := &Manager{tb: tb, path: path, args: []string{"-config-file=" + file}}
	m.ready = agents.Record(tb, broker, agents.Prefix(fmt.Sprint(config["domain"]))+"/currentstate")
	tb.Cleanup(func() {
		m.Kill()
		if tb.Failed() {
			tb.Logf("%s:\n%s", path, &m.log)
		}
	})
	m.Launch()
	return m
}

// Launch starts the manager again after it has ended.
func (m *Manager) Launch() {
	m.tb.Helper()
	m.ready.Forget()
	m.cmd = exec.Command(m.path, m.args...)
	m.cmd.Stdout, m.cmd.Stderr = &m.log, &m.log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		m.tb.Fatal(err)
	}
	exited := make(chan struct{})
	m.exited = exited
	go func(c *exec.Cmd) {
		c.Wait()
		close(exited)
	}(m.cmd)
	agents.Eventually(m.tb, 30*time.Second, "current state of "+m.path, func() bool {
		select {
		case <-exited:
			m.tb.Fatalf("%s has ended:\n%s", m.path, &m.log)
		default:
		}
		for _, msg := range m.ready.Messages() {
			if !msg.Retained {
				return true
			}
		}
		return false
	})
}

// Kill ends the manager at once.
func (m *Manager) Kill() { m.end(syscall.SIGKILL) }

// Stop ends the manager in order.
func (m *Manager) Stop() { m.end(syscall.SIGTERM) }

func (m *Manager) end(sig syscall.Signal) {
	m.tb.Helper()
	m.cmd.Process.Signal(sig)
	select {
	case <-m.exited:
	case <-time.After(20 * time.Second):
		m.cmd.Process.Kill()
		<-m.exited
		m.tb.Errorf("%s did not end within 20 s of %v", m.path, sig)
	}
}

// PSS returns the memory that the manager has for itself, in bytes.
func (m *Manager) PSS() int {
	m.tb.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", m.cmd.Process.Pid))
	if err != nil {
		m.tb.Fatal(err)
	}
	match := regexp.MustCompile(`(?m)^Pss: +(\d+) kB`).FindStringSubmatch(string(text))
	if match == nil {
		m.tb.Fatalf("no Pss in %s", text)
	}
	kb, _ := strconv.Atoi(strings.TrimSpace(match[1]))
	return kb << 10
}
