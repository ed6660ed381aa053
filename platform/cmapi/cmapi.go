// SPDX-License-Identifier: Apache-2.0

// Package cmapi is the gRPC API of the container engine: the one of Eclipse Kanto's container management, with its names,
// numbers and habits, and a second service with what that one does not have. Server and client are of the same shape: the
// Client is an Engine that is elsewhere.
package cmapi

import (
	"errors"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/grpc"
)

// The services.
const (
	containersService = "/github.com.eclipse_kanto.container_management.containerm.api.services.containers.Containers/"
	sysinfoService    = "/github.com.eclipse_kanto.container_management.containerm.api.services.sysinfo.SystemInfo/"
	extraService      = "/sdvbox.containers.v1.Containers/"
)

// Version is that of the API.
const Version = "1.0.0"

// ProjectInfo is which engine it is.
type ProjectInfo struct {
	Version    string
	BuildTime  string
	APIVersion string
	GitCommit  string
}

// maxData is how much of a stream of bytes goes into one message.
const maxData = 1 << 20

var codes = [...]grpc.Code{
	ctrmodel.Internal:           grpc.Internal,
	ctrmodel.InvalidArgument:    grpc.InvalidArgument,
	ctrmodel.NotFound:           grpc.NotFound,
	ctrmodel.AlreadyExists:      grpc.AlreadyExists,
	ctrmodel.FailedPrecondition: grpc.FailedPrecondition,
	ctrmodel.ResourceExhausted:  grpc.ResourceExhausted,
	ctrmodel.Unavailable:        grpc.Unavailable,
	ctrmodel.DeadlineExceeded:   grpc.DeadlineExceeded,
	ctrmodel.PermissionDenied:   grpc.PermissionDenied,
	ctrmodel.Unauthenticated:    grpc.Unauthenticated,
	ctrmodel.Cancelled:          grpc.Canceled,
}

// status is the error of the engine as one of gRPC. An error without a kind may come from a call of somebody else's API; then
// its code is worth something if it is about circumstances, and not about what that call was asked.
func status(err error) error {
	if err == nil {
		return nil
	}
	code := codes[ctrmodel.KindOf(err)]
	if code == grpc.Internal {
		switch other := grpc.CodeOf(err); other {
		case grpc.Unavailable, grpc.Canceled, grpc.DeadlineExceeded, grpc.ResourceExhausted:
			code = other
		}
	}
	return grpc.Errorf(code, "%v", err)
}

// kind is the error of a call as one of the engine.
func kind(err error) error {
	var e *grpc.Error
	if !errors.As(err, &e) {
		return err
	}
	for k, code := range codes {
		if code == e.Code {
			return ctrmodel.Errorf(ctrmodel.Kind(k), "%w", err)
		}
	}
	return ctrmodel.Errorf(ctrmodel.Internal, "%w", err)
}
