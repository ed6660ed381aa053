// SPDX-License-Identifier: Apache-2.0

package images

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"sdvbox/platform/ctrmodel"
)

// platforms lists what can run on a platform, the best first.
func platforms(p string) ([]v1.Platform, error) {
	if p == "" {
		p = runtime.GOOS + "/" + runtime.GOARCH
		if runtime.GOARCH == "arm" {
			p += armVariant()
		}
	}
	part := strings.Split(p, "/")
	if len(part) < 2 || len(part) > 3 || part[0] == "" || part[1] == "" {
		return nil, ctrmodel.Errorf(ctrmodel.InvalidArgument, "platform %q is not like linux/arm64 or linux/arm/v7", p)
	}
	first := v1.Platform{OS: part[0], Architecture: part[1]}
	if len(part) == 3 {
		first.Variant = part[2]
	}
	first = normal(first)
	all := []v1.Platform{first}
	other := func(arch, variant string) {
		all = append(all, v1.Platform{OS: first.OS, Architecture: arch, Variant: variant})
	}
	switch first.Architecture {
	case "amd64":
		if first.Variant != "" {
			other("amd64", "")
		}
		other("386", "")
	case "arm64":
		if first.Variant != "v8" {
			other("arm64", "v8")
		}
		for _, v := range []string{"v8", "v7", "v6", "v5"} {
			other("arm", v)
		}
	case "arm":
		for _, v := range []string{"v7", "v6", "v5"} {
			if v < first.Variant {
				other("arm", v)
			}
		}
	}
	return all, nil
}

func armVariant() string {
	var u unix.Utsname
	if unix.Uname(&u) == nil && strings.HasPrefix(unix.ByteSliceToString(u.Machine[:]), "armv6") {
		return "/v6"
	}
	return "/v7"
}

// normal says what is meant by a platform that is not fully told.
func normal(p v1.Platform) v1.Platform {
	switch {
	case p.Architecture == "arm64" && p.Variant == "", p.Architecture == "arm64" && p.Variant == "8":
		p.Variant = "v8"
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	case p.Architecture == "amd64" && p.Variant == "v1":
		p.Variant = ""
	}
	return p
}

func name(p v1.Platform) string {
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}

// rank is how well a platform fits, 0 the best; -1 if it does not run here.
func (s *Store) rank(p v1.Platform) int {
	p = normal(p)
	for i, have := range s.platforms {
		if p.OS == have.OS && p.Architecture == have.Architecture && p.Variant == have.Variant {
			return i
		}
	}
	return -1
}

// choose finds the manifest in an index that fits this machine best.
func (s *Store) choose(data []byte) (v1.Descriptor, error) {
	var index v1.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return v1.Descriptor{}, unusable("index: %w", err)
	}
	best, at := -1, -1
	var there []string
	for i, m := range index.Manifests {
		if !isManifest(m.MediaType) || m.Platform == nil {
			continue
		}
		there = append(there, name(*m.Platform))
		if r := s.rank(*m.Platform); r >= 0 && (best < 0 || r < best) {
			best, at = r, i
		}
	}
	if at < 0 && len(index.Manifests) == 1 && index.Manifests[0].Platform == nil && isManifest(index.Manifests[0].MediaType) {
		at = 0 // the configuration tells
	}
	if at < 0 {
		return v1.Descriptor{}, unusable("the image is not for %s but for %s", name(s.platforms[0]), strings.Join(there, ", "))
	}
	if err := check(index.Manifests[at]); err != nil {
		return v1.Descriptor{}, fmt.Errorf("index: %w", err)
	}
	return index.Manifests[at], nil
}
