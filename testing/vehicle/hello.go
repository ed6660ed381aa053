// SPDX-License-Identifier: Apache-2.0

package vehicle

import (
	"context"
	"os"
	"path/filepath"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"sdvbox/testing/ctragent"
)

// Host is the address of this machine's loopback interface, as the vehicle sees it.
const Host = "10.0.2.2"

// Hello returns an image of a container that says hello, library/hello-world:TAG as that in the documentation. Images of different
// tags differ. The vehicle asks registries of the host without encryption.
func (b *Builder) Hello(ctx context.Context, tag string) (*ctragent.Image, error) {
	dir, err := os.MkdirTemp("", "hello")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "hello")
	if err := run(ctx, "env", "CGO_ENABLED=0", "go", "build", "-C", b.Repo, "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", path, "./testing/vehicle/hello"); err != nil {
		return nil, err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	config := v1.ImageConfig{Entrypoint: []string{"/hello"}, Labels: map[string]string{"org.opencontainers.image.version": tag}}
	return ctragent.NewImage(Host+"/library/hello-world:"+tag, config, map[string][]byte{"hello": program}), nil
}
