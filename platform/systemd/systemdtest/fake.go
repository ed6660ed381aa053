// SPDX-License-Identifier: Apache-2.0

// Package systemdtest stands in for the service manager in tests: the part of its D-Bus interface that sdvbox uses, on a
// message bus of its own.
package systemdtest

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// Props are the properties of a unit by their D-Bus names, those of its type included.
type Props map[string]any

// Fake is a service manager. Once it runs, Change changes what it says.
type Fake struct {
	mu      sync.Mutex
	Address string           // of the bus
	Units   map[string]Props // by name
	Alias   map[string]string
	Enabled []string    // paths of unit files
	Jobs    [][3]string // unit, type, state
	Started []string    // what StartUnit was asked for: unit and mode
	Hang    bool        // do not answer
}

// Start starts a bus with a fake service manager on it and ends both with the test.
func Start(tb testing.TB) *Fake {
	tb.Helper()
	f := &Fake{Address: startBus(tb), Units: map[string]Props{}, Alias: map[string]string{}}
	conn, err := dbus.Connect(f.Address)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	const root = dbus.ObjectPath("/org/freedesktop/systemd1")
	for _, err := range []error{
		conn.Export(manager{f}, root, "org.freedesktop.systemd1.Manager"),
		conn.ExportSubtree(properties{f}, root+"/unit", "org.freedesktop.DBus.Properties"),
	} {
		if err != nil {
			tb.Fatal(err)
		}
	}
	if _, err := conn.RequestName("org.freedesktop.systemd1", 0); err != nil {
		tb.Fatal(err)
	}
	return f
}

// Change calls f while the manager is not looking.
func (f *Fake) Change(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func startBus(tb testing.TB) string {
	tb.Helper()
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		if os.Getenv("SDVBOX_REQUIRE") == "1" {
			tb.Fatal(err)
		}
		tb.Skip(err)
	}
	// Not below the directory of the test, whose name may be too long for a socket address.
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	address := "unix:path=" + filepath.Join(dir, "bus")
	cmd := exec.Command(daemon, "--session", "--address="+address, "--nofork", "--nopidfile", "--nosyslog")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := dbus.Connect(address)
		if err == nil {
			conn.Close()
			return address
		}
		if time.Now().After(end) {
			tb.Fatalf("no bus: %v", err)
		}
	}
}

type manager struct{ f *Fake }

func unitPath(name string) dbus.ObjectPath {
	return dbus.ObjectPath("/org/freedesktop/systemd1/unit/" + strings.NewReplacer(".", "_2e", "-", "_2d").Replace(name))
}

// LoadUnit loads any unit, as the real one does.
func (m manager) LoadUnit(name string) (dbus.ObjectPath, *dbus.Error) {
	defer m.enter()()
	if target, ok := m.f.Alias[name]; ok {
		name = target
	}
	return unitPath(name), nil
}

type unitFile struct{ Path, State string }

func (m manager) ListUnitFilesByPatterns(states, patterns []string) ([]unitFile, *dbus.Error) {
	defer m.enter()()
	list := []unitFile{}
	for _, file := range m.f.Enabled {
		for _, p := range patterns {
			if ok, _ := path.Match(p, path.Base(file)); ok {
				list = append(list, unitFile{file, states[0]})
				break
			}
		}
	}
	return list, nil
}

type job struct {
	ID                uint32
	Unit, Type, State string
	Job, UnitPath     dbus.ObjectPath
}

func (m manager) ListJobs() ([]job, *dbus.Error) {
	defer m.enter()()
	list := []job{}
	for i, j := range m.f.Jobs {
		list = append(list, job{uint32(i), j[0], j[1], j[2], "/", "/"})
	}
	return list, nil
}

func (m manager) StartUnit(name, mode string) (dbus.ObjectPath, *dbus.Error) {
	defer m.enter()()
	m.f.Started = append(m.f.Started, name+" "+mode)
	return "/", nil
}

// enter waits until the manager answers and returns what ends the answer.
func (m manager) enter() func() {
	for {
		m.f.mu.Lock()
		if !m.f.Hang {
			return m.f.mu.Unlock
		}
		m.f.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
}

type properties struct{ f *Fake }

// GetAll answers for a unit that does not exist as the real one does: with an inactive one.
func (p properties) GetAll(msg dbus.Message, iface string) (map[string]dbus.Variant, *dbus.Error) {
	asked := msg.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
	all := map[string]dbus.Variant{}
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	for name, props := range p.f.Units {
		if unitPath(name) != asked {
			continue
		}
		if strings.HasSuffix(iface, ".Service") && !strings.HasSuffix(name, ".service") {
			return nil, dbus.NewError("org.freedesktop.DBus.Error.UnknownInterface", nil)
		}
		all["Id"] = dbus.MakeVariant(name)
		for key, value := range props {
			all[key] = dbus.MakeVariant(value)
		}
	}
	if len(all) == 0 {
		all["ActiveState"], all["SubState"] = dbus.MakeVariant("inactive"), dbus.MakeVariant("dead")
	}
	return all, nil
}
