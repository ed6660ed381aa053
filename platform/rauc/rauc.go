// SPDX-License-Identifier: Apache-2.0

// Package rauc talks to the RAUC update service over D-Bus.
//
// It works with every RAUC since 1.4: what a version does not offer is left out of a request or asked for in an
// older way. It is written for a service that may be busy, be restarted, or die at any moment: each call ends at
// the deadline of its context, or at one of its own, and the result of an installation is only ever taken from
// the signal that announces it. The properties Operation and Progress do not tell: RAUC resets the former when it
// refuses a second installation while the first goes on, and moves the latter for other calls, too.
package rauc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	service   = "de.pengutronix.rauc"
	installer = "de.pengutronix.rauc.Installer"

	stateInstalling = "installing"
)

// How long a call may take when its context has no deadline. A status call may have to start the service, inspecting
// a plain bundle reads all of it, and installing may mean to fetch and to write gigabytes.
const (
	callLimit    = time.Minute
	inspectLimit = 15 * time.Minute
	installLimit = 3 * time.Hour
)

// pollDelay is the time between two looks at a state that nobody announces.
const pollDelay = 250 * time.Millisecond

// Client is a connection to the RAUC service. It may be used from several goroutines. A connection that broke is made
// again by the next call.
type Client struct {
	address    string
	installing sync.Mutex

	mu   sync.Mutex
	conn *dbus.Conn
}

// Dial connects to the message bus at address; "" is the system bus, or where DBUS_SYSTEM_BUS_ADDRESS says it is. The
// RAUC service itself need not be there yet.
func Dial(ctx context.Context, address string) (*Client, error) {
	ctx, cancel := limit(ctx, callLimit)
	defer cancel()
	c := &Client{address: address}
	if _, err := c.bus(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Close closes the connection.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return nil
	}
	return c.conn.Close()
}

// bus returns the connection for short calls.
func (c *Client) bus(ctx context.Context) (*dbus.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil && c.conn.Connected() {
		return c.conn, nil
	}
	conn, err := connect(ctx, c.address)
	if err != nil {
		return nil, err
	}
	c.conn = conn
	return conn, nil
}

// connect opens a connection; ctx limits the opening, not the life of the connection.
func connect(ctx context.Context, address string) (*dbus.Conn, error) {
	life, abort := context.WithCancel(context.Background())
	stop := context.AfterFunc(ctx, abort)
	open := func(o ...dbus.ConnOption) (*dbus.Conn, error) { return dbus.Connect(address, o...) }
	if address == "" {
		open = dbus.ConnectSystemBus
	}
	conn, err := open(dbus.WithContext(life), dbus.WithSignalHandler(dbus.NewSequentialSignalHandler()))
	if !stop() && err == nil {
		conn.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		abort()
		return nil, fmt.Errorf("connect to the message bus: %w: %w", ErrUnavailable, err)
	}
	return conn, nil
}

// limit gives ctx a deadline if it has none.
func limit(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

// call calls a method of RAUC and stores its results.
func (c *Client) call(ctx context.Context, method string, args []any, results ...any) error {
	ctx, cancel := limit(ctx, callLimit)
	defer cancel()
	conn, err := c.bus(ctx)
	if err != nil {
		return err
	}
	return call(ctx, conn, installer+"."+method, args, results...)
}

func call(ctx context.Context, conn *dbus.Conn, method string, args []any, results ...any) error {
	err := conn.Object(service, "/").CallWithContext(ctx, method, 0, args...).Store(results...)
	return explain(err)
}

func (c *Client) property(ctx context.Context, name string) (string, error) {
	ctx, cancel := limit(ctx, callLimit)
	defer cancel()
	conn, err := c.bus(ctx)
	if err != nil {
		return "", err
	}
	return property(ctx, conn, name)
}

func property(ctx context.Context, conn *dbus.Conn, name string) (string, error) {
	var v dbus.Variant
	if err := call(ctx, conn, "org.freedesktop.DBus.Properties.Get", []any{installer, name}, &v); err != nil {
		return "", fmt.Errorf("read RAUC property %s: %w", name, err)
	}
	s, ok := v.Value().(string)
	if !ok {
		return "", fmt.Errorf("read RAUC property %s: not a string but %s", name, v.Signature())
	}
	return s, nil
}

// Operation returns "idle" or "installing". "idle" is no proof: see the package comment.
func (c *Client) Operation(ctx context.Context) (string, error) { return c.property(ctx, "Operation") }

// Compatible returns the compatible string of this machine.
func (c *Client) Compatible(ctx context.Context) (string, error) {
	return c.property(ctx, "Compatible")
}

// BootSlot returns what the machine was booted from as the boot loader named it: a boot name, a slot name or a device.
func (c *Client) BootSlot(ctx context.Context) (string, error) { return c.property(ctx, "BootSlot") }

// LastError returns the reason why the last installation failed, in one line; "" if it did not.
func (c *Client) LastError(ctx context.Context) (string, error) {
	s, err := c.property(ctx, "LastError")
	return oneLine(s), err
}

// Primary returns the name of the slot that the boot loader will choose at the next boot.
func (c *Client) Primary(ctx context.Context) (string, error) {
	var name string
	if err := c.call(ctx, "GetPrimary", nil, &name); err != nil {
		return "", fmt.Errorf("get primary slot: %w", err)
	}
	return name, nil
}

// Mark sets the state ("good", "bad" or "active") of a slot: "booted", "other" or the name of a slot such as
// rootfs.0, not a boot name. It returns the name of the slot and RAUC's message about it.
func (c *Client) Mark(ctx context.Context, state, slot string) (name, message string, err error) {
	if err := c.call(ctx, "Mark", []any{state, slot}, &name, &message); err != nil {
		return "", "", fmt.Errorf("mark slot %s %s: %w", slot, state, err)
	}
	return name, oneLine(message), nil
}

// Available waits until the service answers. The bus starts it where it can; else somebody else has to.
func (c *Client) Available(ctx context.Context) error {
	ctx, cancel := limit(ctx, callLimit)
	defer cancel()
	// systemd gives up on a service that is asked to start too often.
	for delay := 100 * time.Millisecond; ; delay = min(2*delay, 5*time.Second) {
		_, err := c.Operation(ctx)
		switch {
		case errors.Is(err, ErrUnavailable):
		case err != nil && ctx.Err() != nil:
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(delay):
		}
	}
}

// oneLine makes a text of RAUC fit for a log line or a message.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
