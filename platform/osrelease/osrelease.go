// SPDX-License-Identifier: Apache-2.0

// Package osrelease reads what an operating system says of itself, see os-release(5).
package osrelease

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
)

// Version returns the version of the system whose root is a directory: its EDITION_ID, else its VERSION_ID, else "". Files
// outside of the directory are not read, whatever links in it say.
func Version(root string) (string, error) {
	f, err := os.OpenInRoot(root, "etc/os-release")
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.OpenInRoot(root, "usr/lib/os-release")
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return "", err
	}
	return version(string(data)), nil
}

func version(text string) string {
	values := map[string]string{}
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[key] = strings.Trim(value, `"'`)
		}
	}
	return cmp.Or(values["EDITION_ID"], values["VERSION_ID"])
}
