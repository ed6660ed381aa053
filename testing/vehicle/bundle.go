// SPDX-License-Identifier: Apache-2.0

package vehicle

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// Bundle describes a signed RAUC bundle for slot class rootfs, in the verity format.
type Bundle struct {
	Image      string // file system image
	Version    string
	Compatible string // default: that of the vehicle
	Stranger   bool   // signed by somebody the vehicle does not know
}

// Bundle returns the path of a bundle.
func (b *Builder) Bundle(ctx context.Context, d Bundle) (string, error) {
	if d.Compatible == "" {
		d.Compatible = Compatible
	}
	keys, err := b.Keys()
	if err != nil {
		return "", err
	}
	signer := keys.Trusted
	if d.Stranger {
		signer = keys.Stranger
	}
	image := d.Image
	d.Image = filepath.Base(image)
	return b.cached("bundle", ".raucb", func(tmp string) error {
		b.Logf("signing the bundle of version %s", d.Version)
		dir := tmp + ".d"
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := os.Link(image, filepath.Join(dir, "rootfs.ext4")); err != nil {
			return err
		}
		manifest := fmt.Sprintf("[update]\ncompatible=%s\nversion=%s\n\n[bundle]\nformat=verity\n\n"+
			"[image.rootfs]\nfilename=rootfs.ext4\n", d.Compatible, d.Version)
		if err := os.WriteFile(filepath.Join(dir, "manifest.raucm"), []byte(manifest), 0o644); err != nil {
			return err
		}
		// The default level of zstd takes ten times as long and saves an eighth.
		return run(ctx, "rauc", "bundle", "--cert="+signer.Cert, "--key="+signer.Key, "--keyring="+signer.CA,
			"--mksquashfs-args=-comp zstd -Xcompression-level 3 -quiet", dir, tmp)
	}, d, filepath.Base(filepath.Dir(signer.Cert)))
}
