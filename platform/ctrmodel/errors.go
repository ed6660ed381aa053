// SPDX-License-Identifier: Apache-2.0

package ctrmodel

import (
	"context"
	"errors"
	"fmt"
)

// Kind is the kind of an error: what who asked can do about it.
type Kind int

// The kinds. Internal is that of errors which nobody gave one.
const (
	Internal           Kind = iota
	InvalidArgument         // what was asked for makes no sense
	NotFound                // there is no such thing
	AlreadyExists           // the name or id is taken
	FailedPrecondition      // not in this state
	ResourceExhausted       // no space, no address
	Unavailable             // try again later
	DeadlineExceeded        // the time is up
	PermissionDenied        // not allowed to
	Unauthenticated         // wrong or no credentials
	Cancelled               // nobody waits for it any more
)

type kindError struct {
	error
	kind Kind
}

func (e *kindError) Unwrap() error { return errors.Unwrap(e.error) }

// Errorf is fmt.Errorf with a kind. It replaces the kind of an error that it wraps.
func Errorf(kind Kind, format string, args ...any) error {
	return &kindError{fmt.Errorf(format, args...), kind}
}

// KindOf is the kind of an error that is not nil.
func KindOf(err error) Kind {
	var e *kindError
	switch {
	case errors.As(err, &e):
		return e.kind
	case errors.Is(err, context.Canceled):
		return Cancelled
	case errors.Is(err, context.DeadlineExceeded):
		return DeadlineExceeded
	}
	return Internal
}

func invalid(format string, args ...any) error { return Errorf(InvalidArgument, format, args...) }
