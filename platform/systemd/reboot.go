// SPDX-License-Identifier: Apache-2.0

package systemd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// patience is how long one way of rebooting may take to accept the request.
const patience = 20 * time.Second

// Reboot restarts the machine by the gentlest way that works: an orderly shutdown by the service manager, by logind, or else
// the kernel at once. It returns once the reboot is under way, with an error only if every way has failed.
func Reboot(ctx context.Context) error {
	var errs []error
	for _, way := range []func(context.Context) error{byManager, byLogind, byKernel} {
		err := within(ctx, patience, way)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("cannot reboot: %w", errors.Join(errs...))
}

// within gives up waiting for f after d even if f does not heed its context: a peer that hangs during authentication would
// otherwise hold us for ever.
func within(ctx context.Context, d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func byManager(ctx context.Context) error {
	c, err := Dial(ctx, "")
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Reboot(ctx)
}

func byLogind(ctx context.Context) error {
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("connect to the system bus: %w", err)
	}
	defer bus.Close()
	const interactive = false
	call := bus.Object("org.freedesktop.login1", "/org/freedesktop/login1").
		CallWithContext(ctx, "org.freedesktop.login1.Manager.Reboot", 0, interactive)
	if call.Err != nil {
		return fmt.Errorf("ask logind to reboot: %w", call.Err)
	}
	return nil
}

func byKernel(ctx context.Context) error {
	// A dead disk must not keep the machine up.
	within(ctx, patience/2, func(context.Context) error { unix.Sync(); return nil })
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		return fmt.Errorf("reboot by the kernel: %w", err)
	}
	return nil
}
