// SPDX-License-Identifier: Apache-2.0

package cmapi

import (
	"context"

	"sdvbox/platform/ctrmodel"
)

// Engine is what the API needs of the container engine. Containers that it returns belong to the caller. Errors have the
// kinds of package ctrmodel; an id that nobody has is NotFound.
type Engine interface {
	List(ctx context.Context) ([]*ctrmodel.Container, error)
	Get(ctx context.Context, id string) (*ctrmodel.Container, error)
	Create(ctx context.Context, c *ctrmodel.Container) (*ctrmodel.Container, error)
	Start(ctx context.Context, id string) error
	Stop(ctx context.Context, id string, o ctrmodel.StopOptions) error
	Restart(ctx context.Context, id string, o ctrmodel.StopOptions) error
	Pause(ctx context.Context, id string) error
	Unpause(ctx context.Context, id string) error
	Rename(ctx context.Context, id, name string) error
	Update(ctx context.Context, id string, o ctrmodel.UpdateOptions) error
	Remove(ctx context.Context, id string, force bool, o ctrmodel.StopOptions) error

	// Attach copies until the container's output ends. It calls attached once nothing of the output can be missed any more,
	// which may be before the container is started.
	Attach(ctx context.Context, id string, s ctrmodel.Streams, attached func()) error
	// Exec returns the exit code of the process.
	Exec(ctx context.Context, id string, o ctrmodel.ExecOptions, s ctrmodel.Streams) (code int, err error)
	// Logs yields each line as it is in the log file, a JSON object without the newline. The line is valid until yield returns.
	Logs(ctx context.Context, id string, o ctrmodel.LogOptions, yield func(line []byte) error) error
	Stats(ctx context.Context, id string) (ctrmodel.Stats, error)
	// Subscribe returns all events from now on. The channel is closed when the context ends, and when too many events wait
	// in it.
	Subscribe(ctx context.Context) <-chan ctrmodel.Event

	// Pull makes sure that an image is here. It does not call progress after it has returned.
	Pull(ctx context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error)
	// Refresh is Pull that asks the registry what the name stands for now.
	Refresh(ctx context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error)
	Images(ctx context.Context) ([]ctrmodel.StoredImage, error)
	// RemoveImage removes an image that no container needs.
	RemoveImage(ctx context.Context, name string) error

	// Deploy applies all descriptors of containers again.
	Deploy(ctx context.Context) error
}
