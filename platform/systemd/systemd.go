// SPDX-License-Identifier: Apache-2.0

// Package systemd asks the service manager about units and tells it to reboot, over D-Bus. Names and semantics are those of
// org.freedesktop.systemd1(5).
package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	busName     = "org.freedesktop.systemd1"
	managerPath = "/org/freedesktop/systemd1"
	manager     = busName + ".Manager"
	private     = "/run/systemd/private"
)

// Conn is a connection to the service manager.
type Conn struct{ bus *dbus.Conn }

// Dial connects to the bus with the given address. With "" it prefers the manager's own socket, which only root may use but
// which works without a bus daemon, to the system bus. The connection ends with ctx.
func Dial(ctx context.Context, address string) (*Conn, error) {
	if address != "" {
		return connect(ctx, address)
	}
	if os.Getuid() == 0 && os.Getenv("DBUS_SYSTEM_BUS_ADDRESS") == "" {
		bus, err := dbus.Dial("unix:path="+private, dbus.WithContext(ctx))
		if err == nil {
			if err = bus.Auth(nil); err == nil {
				err = greet(ctx, bus)
			}
			if err == nil {
				return &Conn{bus}, nil
			}
			bus.Close()
		}
	}
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("connect to the system bus: %w", err)
	}
	return &Conn{bus}, nil
}

// greet makes the manager listen. When it is busy, as it is during boot, it reads the end of the authentication and the first
// message at once, and then does not look at that message before the next one arrives (seen with systemd 257).
func greet(ctx context.Context, bus *dbus.Conn) error {
	for wait := 100 * time.Millisecond; ; wait *= 2 {
		again, cancel := context.WithTimeout(ctx, wait)
		err := bus.Object(busName, managerPath).CallWithContext(again, "org.freedesktop.DBus.Peer.Ping", 0).Err
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
}

func connect(ctx context.Context, address string) (*Conn, error) {
	bus, err := dbus.Connect(address, dbus.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	return &Conn{bus}, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.bus.Close() }

// Unit is the state of a unit.
type Unit struct {
	Name      string
	Active    string        // active, activating, failed, inactive …
	Sub       string        // state of its type: running, exited, auto-restart …
	Result    string        // of a service: success, exit-code, timeout …
	ActiveFor time.Duration // how long it has been active without a break, 0 when it is not
	Skipped   bool          // not started because a condition does not hold
	Done      bool          // a service of type oneshot that has run with success and is gone
}

// Unit returns the state of a unit, which is loaded if need be.
func (c *Conn) Unit(ctx context.Context, name string) (Unit, error) {
	var unit dbus.ObjectPath
	if err := c.call(ctx, "LoadUnit", []any{name}, &unit); err != nil {
		return Unit{}, err
	}
	p, err := c.properties(ctx, unit, busName+".Unit")
	if err != nil {
		return Unit{}, fmt.Errorf("read state of %s: %w", name, err)
	}
	u := Unit{
		Name:    value[string](p, "Id"),
		Active:  value[string](p, "ActiveState"),
		Sub:     value[string](p, "SubState"),
		Skipped: value[uint64](p, "ConditionTimestampMonotonic") > 0 && !value[bool](p, "ConditionResult"),
	}
	if since := value[uint64](p, "ActiveEnterTimestampMonotonic"); u.Active == "active" && since > 0 {
		u.ActiveFor = max(0, monotonic()-time.Duration(since)*time.Microsecond)
	}
	// Other types than services have no such interface, and no result that would matter.
	if p, err := c.properties(ctx, unit, busName+".Service"); err == nil {
		u.Result = value[string](p, "Result")
		u.Done = u.Active == "inactive" && value[string](p, "Type") == "oneshot" && u.Result == "success" &&
			value[uint64](p, "ExecMainExitTimestampMonotonic") > 0
	}
	return u, nil
}

// Enabled returns the names of the enabled unit files that match one of the patterns.
func (c *Conn) Enabled(ctx context.Context, patterns []string) ([]string, error) {
	var files []struct{ Path, State string }
	args := []any{[]string{"enabled", "enabled-runtime"}, patterns}
	if err := c.call(ctx, "ListUnitFilesByPatterns", args, &files); err != nil {
		return nil, err
	}
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = path.Base(f.Path)
	}
	return names, nil
}

// Job is something that the manager is doing or still has to do.
type Job struct {
	Unit, Type string
	Running    bool
}

// Jobs returns the queued jobs.
func (c *Conn) Jobs(ctx context.Context) ([]Job, error) {
	var list []struct {
		ID                uint32
		Unit, Type, State string
		Job, UnitPath     dbus.ObjectPath
	}
	if err := c.call(ctx, "ListJobs", nil, &list); err != nil {
		return nil, err
	}
	jobs := make([]Job, len(list))
	for i, j := range list {
		jobs[i] = Job{Unit: j.Unit, Type: j.Type, Running: j.State == "running"}
	}
	return jobs, nil
}

// Reboot asks for an orderly reboot: services are stopped and file systems unmounted.
func (c *Conn) Reboot(ctx context.Context) error {
	// Not the method called Reboot, which skips all of the shutdown. "irreversibly": nobody's later start job may cancel it.
	var job dbus.ObjectPath
	return c.call(ctx, "StartUnit", []any{"reboot.target", "replace-irreversibly"}, &job)
}

func (c *Conn) call(ctx context.Context, method string, args []any, result any) error {
	call := c.bus.Object(busName, managerPath).CallWithContext(ctx, manager+"."+method, 0, args...)
	if err := call.Store(result); err != nil {
		return fmt.Errorf("ask systemd to %s: %w", method, err)
	}
	return nil
}

func (c *Conn) properties(ctx context.Context, path dbus.ObjectPath, iface string) (map[string]dbus.Variant, error) {
	var p map[string]dbus.Variant
	err := c.bus.Object(busName, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.GetAll", 0, iface).Store(&p)
	return p, err
}

// value returns a property, or zero when it is missing or of another type.
func value[T any](p map[string]dbus.Variant, name string) T {
	v, _ := p[name].Value().(T)
	return v
}

// monotonic is the clock of the manager's monotonic time stamps.
func monotonic() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
