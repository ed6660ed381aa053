// SPDX-License-Identifier: Apache-2.0

package rauc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

// InstallOptions are RAUC's options for an installation. Those that the running version does not know are left out.
type InstallOptions struct {
	TransactionID    string // stored with the slot; RAUC makes up its own if empty
	IgnoreCompatible bool
	SourceOptions
}

// SourceOptions say how to reach a bundle given by URL.
type SourceOptions struct {
	TLSCert, TLSKey, TLSCA string // files
	TLSNoVerify            bool
	Headers                []string // "Name: value"
}

func (o SourceOptions) args() map[string]dbus.Variant {
	args := make(map[string]dbus.Variant)
	for key, value := range map[string]string{"tls-cert": o.TLSCert, "tls-key": o.TLSKey, "tls-ca": o.TLSCA} {
		if value != "" {
			args[key] = dbus.MakeVariant(value)
		}
	}
	if o.TLSNoVerify {
		args["tls-no-verify"] = dbus.MakeVariant(true)
	}
	if len(o.Headers) > 0 {
		args["http-headers"] = dbus.MakeVariant(o.Headers)
	}
	return args
}

func (o InstallOptions) args() map[string]dbus.Variant {
	args := o.SourceOptions.args()
	if o.TransactionID != "" {
		args["transaction-id"] = dbus.MakeVariant(o.TransactionID)
	}
	if o.IgnoreCompatible {
		args["ignore-compatible"] = dbus.MakeVariant(true)
	}
	return args
}

// withoutUnsupported calls f, again without the option that RAUC says it does not know.
func withoutUnsupported(args map[string]dbus.Variant, f func() error) error {
	for {
		err := f()
		var e *Error
		if !errors.As(err, &e) {
			return err
		}
		_, key, found := strings.Cut(e.Text, "Unsupported key: ")
		if _, known := args[key]; !found || !known {
			return err
		}
		delete(args, key)
	}
}

// Install installs the bundle in a file or, where RAUC can do that, at a URL. It returns when the installation has
// ended, with RAUC's reason in an *Error if it failed. Progress is called from the goroutine of the caller; the
// percentage may stand still for the whole time of a copy. RAUC cannot be stopped: when ctx ends, Install returns
// and the installation goes on; Wait finds it.
func (c *Client) Install(ctx context.Context, source string, o InstallOptions, progress func(percent int, text string)) error {
	if !c.installing.TryLock() {
		return ErrBusy
	}
	defer c.installing.Unlock()
	ctx, cancel := limit(ctx, installLimit)
	defer cancel()
	w, err := c.watch(ctx)
	if err != nil {
		return fmt.Errorf("install: %w", err)
	}
	defer w.conn.Close()

	// To be refused would make RAUC report "idle" to everybody else. And as the end of somebody else's installation is
	// announced before it reports "idle", we cannot take that one for ours.
	operation, err := property(ctx, w.conn, "Operation")
	if err != nil {
		return fmt.Errorf("install: %w", err)
	}
	if operation == stateInstalling {
		return ErrBusy
	}
	args := o.args()
	err = withoutUnsupported(args, func() error {
		ctx, cancel := context.WithTimeout(ctx, callLimit)
		defer cancel()
		started := w.conn.Object(service, "/").CallWithContext(ctx, installer+".InstallBundle", 0, source, args)
		w.since = started.ResponseSequence
		return explain(started.Err)
	})
	if err != nil {
		return fmt.Errorf("install: %w", err)
	}
	return w.result(ctx, progress, nil)
}

// Wait waits for the end of an installation that somebody else has started, or that Install has left. It returns
// ErrIdle if there is none, nil if it succeeded.
func (c *Client) Wait(ctx context.Context, progress func(percent int, text string)) error {
	ctx, cancel := limit(ctx, installLimit)
	defer cancel()
	w, err := c.watch(ctx)
	if err != nil {
		return fmt.Errorf("wait for installation: %w", err)
	}
	defer w.conn.Close()
	operation, err := property(ctx, w.conn, "Operation")
	if err != nil {
		return fmt.Errorf("wait for installation: %w", err)
	}
	if operation == stateInstalling {
		return w.result(ctx, progress, nil)
	}
	// It may well be installing; a busy RAUC refuses to name the primary slot. But that may be for another call, too,
	// the end of which nobody announces.
	if !w.busy(ctx) {
		return ErrIdle
	}
	poll := time.NewTicker(pollDelay)
	defer poll.Stop()
	return w.result(ctx, progress, poll.C)
}

// watch follows one installation, on a connection of its own so that nothing else can come between.
type watch struct {
	conn    *dbus.Conn
	owner   string // unique bus name of the service
	signals chan *dbus.Signal
	since   dbus.Sequence // earlier signals are about something else
}

// watch subscribes to everything that tells about an installation, starting the service if need be.
func (c *Client) watch(ctx context.Context) (*watch, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	conn, err := connect(ctx, c.address)
	if err != nil {
		return nil, err
	}
	w := &watch{conn: conn, signals: make(chan *dbus.Signal, 16)}
	if err := w.subscribe(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return w, nil
}

func (w *watch) subscribe(ctx context.Context) error {
	w.conn.Signal(w.signals)
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchSender(service), dbus.WithMatchInterface(installer), dbus.WithMatchMember("Completed")},
		{dbus.WithMatchSender(service), dbus.WithMatchInterface("org.freedesktop.DBus.Properties"), dbus.WithMatchArg(0, installer)},
		{dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, service)},
	} {
		if err := w.conn.AddMatchSignalContext(ctx, match...); err != nil {
			return explain(err)
		}
	}
	bus := w.conn.BusObject()
	const getOwner = "org.freedesktop.DBus.GetNameOwner"
	if bus.CallWithContext(ctx, getOwner, 0, service).Store(&w.owner) == nil {
		return nil
	}
	if err := bus.CallWithContext(ctx, "org.freedesktop.DBus.StartServiceByName", 0, service, uint32(0)).Err; err != nil {
		return explain(err)
	}
	return explain(bus.CallWithContext(ctx, getOwner, 0, service).Store(&w.owner))
}

func (w *watch) busy(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return errors.Is(call(ctx, w.conn, installer+".GetPrimary", nil), ErrBusy)
}

// result waits for the end of the installation. With a poll channel it is not certain that there is one: when RAUC
// is no longer busy, and was not at the poll before, either, its end will not be announced any more.
func (w *watch) result(ctx context.Context, progress func(int, string), poll <-chan time.Time) error {
	var reason string
	var calm bool
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w before the end of the installation, which goes on", context.Cause(ctx))
		case <-poll:
			if w.busy(ctx) {
				calm = false
				continue
			}
			if calm {
				return ErrIdle
			}
			calm = true
		case s, ok := <-w.signals:
			switch {
			case !ok:
				return fmt.Errorf("%w, or the message bus did", ErrLost)
			case s.Name == "org.freedesktop.DBus.NameOwnerChanged" && s.Sender == "org.freedesktop.DBus":
				if lost(s.Body, w.owner) {
					return ErrLost
				}
			case s.Sender != w.owner || s.Sequence < w.since:
			case s.Name == "org.freedesktop.DBus.Properties.PropertiesChanged":
				changed := changedProperties(s.Body)
				if text, ok := changed["LastError"].Value().(string); ok {
					reason = oneLine(text)
				}
				if percent, text, ok := decodeProgress(changed["Progress"]); ok && progress != nil {
					progress(percent, text)
				}
			case s.Name == installer+".Completed":
				var code int32
				if err := dbus.Store(s.Body, &code); err != nil {
					return fmt.Errorf("result of the installation: %w", err)
				}
				if code == 0 {
					return nil
				}
				return w.failure(ctx, reason)
			}
		}
	}
}

// failure makes an error of the reason that was announced, or asks for it if it was announced before we came.
func (w *watch) failure(ctx context.Context, reason string) error {
	if reason == "" {
		ctx, cancel := context.WithTimeout(ctx, callLimit)
		defer cancel()
		text, err := property(ctx, w.conn, "LastError")
		reason = oneLine(text)
		if err != nil || reason == "" {
			reason = "RAUC gave no reason"
		}
	}
	return &Error{Text: reason}
}

// lost tells from the arguments of NameOwnerChanged whether the owner has gone.
func lost(body []any, owner string) bool {
	var name, from, to string
	return dbus.Store(body, &name, &from, &to) == nil && name == service && from == owner && to != owner
}

func changedProperties(body []any) map[string]dbus.Variant {
	if len(body) < 2 || body[0] != installer {
		return nil
	}
	changed, _ := body[1].(map[string]dbus.Variant)
	return changed
}

func decodeProgress(v dbus.Variant) (percent int, text string, ok bool) {
	fields, _ := v.Value().([]any)
	if len(fields) < 2 {
		return 0, "", false
	}
	p, ok1 := fields[0].(int32)
	text, ok2 := fields[1].(string)
	return int(p), text, ok1 && ok2
}
