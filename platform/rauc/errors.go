// SPDX-License-Identifier: Apache-2.0

package rauc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/godbus/dbus/v5"
)

// What callers may want to tell apart.
var (
	// ErrBusy: RAUC works on something else and answers no other call in the meantime, not even for its status.
	ErrBusy = errors.New("RAUC is busy with another operation")
	// ErrIdle: there is no installation to wait for.
	ErrIdle = errors.New("no installation is running")
	// ErrUnavailable: the service or the message bus cannot be reached.
	ErrUnavailable = errors.New("RAUC service is not available")
	// ErrLost: the service or the message bus went away during an installation. What was written is unknown; the
	// target slot is to be taken for incomplete.
	ErrLost = errors.New("RAUC service ended during the installation")
)

// Error is RAUC's own reason for refusing a call or for a failed installation.
type Error struct {
	Name string // of the D-Bus error; "" for installations. RAUC uses one name for nearly everything.
	Text string // one line; not stable across versions of RAUC
}

func (e *Error) Error() string { return e.Text }

// Cause is a rough classification of RAUC's errors.
type Cause string

// The causes that CauseOf tells apart.
const (
	CauseBusy       Cause = "busy"
	CauseSignature  Cause = "signature"  // signed by nobody we trust, or changed after signing
	CauseCompatible Cause = "compatible" // made for another machine
	CauseDamaged    Cause = "damaged"    // not a complete bundle
	CauseSpace      Cause = "space"      // image larger than the slot
	CauseOther      Cause = "other"
)

// CauseOf guesses the cause of an error. RAUC gives no codes, only texts, which differ from version to version: the
// answer serves a hint to a human and must not decide anything.
func CauseOf(err error) Cause {
	if errors.Is(err, ErrBusy) {
		return CauseBusy
	}
	var e *Error
	if !errors.As(err, &e) {
		return CauseOther
	}
	text := strings.ToLower(e.Text)
	for _, rule := range []struct {
		part  string
		cause Cause
	}{
		{"invalid bundle format", CauseDamaged}, // "... Signature size (1) exceeds bundle size"
		{"invalid bundle identifier", CauseDamaged},
		{"compatible mismatch", CauseCompatible},
		{"no space left", CauseSpace},
		{"is too small", CauseSpace},
		{"signature", CauseSignature},
		{"verify error", CauseSignature},
		{"verification fail", CauseSignature},
	} {
		if strings.Contains(text, rule.part) {
			return rule.cause
		}
	}
	return CauseOther
}

// explain turns what the D-Bus library reports into the errors of this package.
func explain(err error) error {
	var ne *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer from RAUC: %w", err)
	case errors.Is(err, dbus.ErrClosed), errors.Is(err, io.EOF), errors.As(err, &ne):
		return fmt.Errorf("%w: connection to the message bus lost", ErrUnavailable)
	}
	var de dbus.Error
	if !errors.As(err, &de) {
		return err
	}
	text := oneLine(de.Error())
	switch name := de.Name; {
	case strings.Contains(text, "lready processing a different method"):
		return ErrBusy
	case name == "org.freedesktop.DBus.Error.ServiceUnknown",
		name == "org.freedesktop.DBus.Error.NameHasNoOwner",
		name == "org.freedesktop.DBus.Error.NoReply", // it died before it could answer
		name == "org.freedesktop.DBus.Error.Disconnected",
		name == "org.freedesktop.DBus.Error.TimedOut",
		strings.HasPrefix(name, "org.freedesktop.DBus.Error.Spawn."),
		strings.HasPrefix(name, "org.freedesktop.systemd1."): // activation through systemd failed
		return fmt.Errorf("%w: %s", ErrUnavailable, text)
	}
	return &Error{Name: de.Name, Text: text}
}

func isUnknownMethod(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Name == "org.freedesktop.DBus.Error.UnknownMethod"
}
