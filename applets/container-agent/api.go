// SPDX-License-Identifier: Apache-2.0

package containeragent

import (
	"context"

	"sdvbox/platform/containers"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/images"
)

// api is the engine with what its API also can do about images.
type api struct {
	*containers.Engine
	store *images.Store
}

func (a api) Refresh(ctx context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error) {
	i, err := a.store.Refresh(ctx, name, progress)
	return ctrmodel.StoredImage{Name: i.Ref, Digest: i.Digest, Size: i.Size, Created: i.Created, Used: used(a.Engine)[name]}, err
}

func (a api) RemoveImage(ctx context.Context, name string) error {
	if used(a.Engine)[name] {
		return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "image %s is that of a container", name)
	}
	return a.store.Remove(ctx, name)
}
