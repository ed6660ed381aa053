// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"
)

// Verifier says whether an image in a repository is one that may run here.
type Verifier func(ctx context.Context, repo *remote.Repository, image v1.Descriptor) error
