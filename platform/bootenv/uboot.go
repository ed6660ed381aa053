// SPDX-License-Identifier: Apache-2.0

package bootenv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

// ParseUBoot returns the variables in a U-Boot environment image, and the
// flags byte if the image is one of a redundant pair. Of a repeated name the
// last value counts; entries without '=' do not.
func ParseUBoot(image []byte, redundant bool) (vars *Vars, flags byte, err error) {
	n := headerLen(redundant)
	if len(image) <= n {
		return nil, 0, fmt.Errorf("%d bytes are too few for an environment", len(image))
	}
	data := image[n:]
	if want, got := binary.LittleEndian.Uint32(image), crc32.ChecksumIEEE(data); want != got {
		return nil, 0, fmt.Errorf("bad CRC: %08x, the data has %08x", want, got)
	}
	if redundant {
		flags = image[4]
	}
	vars = new(Vars)
	for len(data) > 0 && data[0] != 0 {
		var entry []byte
		entry, data, _ = bytes.Cut(data, []byte{0})
		if name, value, ok := strings.Cut(string(entry), "="); ok && name != "" {
			vars.Set(name, value)
		}
	}
	return vars, flags, nil
}

// FormatUBoot returns the environment image of size bytes with vars in their
// order, for one of a redundant pair with the flags byte.
func FormatUBoot(vars *Vars, size int, redundant bool, flags byte) ([]byte, error) {
	var b bytes.Buffer
	b.Write(make([]byte, headerLen(redundant)))
	for _, k := range vars.keys {
		value := vars.values[k]
		if k == "" || strings.ContainsAny(k, "=\x00") {
			return nil, fmt.Errorf("variable name %q: expected characters other than '=' and NUL", k)
		}
		if strings.Contains(value, "\x00") {
			return nil, fmt.Errorf("value of %s contains NUL", k)
		}
		b.WriteString(k + "=" + value + "\x00")
	}
	if len(vars.keys) == 0 {
		b.WriteByte(0)
	}
	b.WriteByte(0)
	if b.Len() > size {
		return nil, fmt.Errorf("%w: it needs %d bytes, there are %d", errTooSmall, b.Len(), size)
	}
	image := make([]byte, size)
	copy(image, b.Bytes())
	binary.LittleEndian.PutUint32(image, crc32.ChecksumIEEE(image[headerLen(redundant):]))
	if redundant {
		image[4] = flags
	}
	return image, nil
}

// headerLen is the length of the CRC and, in a redundant pair, the flags.
func headerLen(redundant bool) int {
	if redundant {
		return 5
	}
	return 4
}

// region is where one copy of the environment is, a line of fw_env.config.
type region struct {
	path   string
	offset int64 // negative: from the end
	size   int64
}

func (r region) overlaps(s region) bool {
	return r.path == s.path && (r.offset < 0) == (s.offset < 0) &&
		r.offset < s.offset+s.size && s.offset < r.offset+r.size
}

// maxUBoot limits the size of an environment, against nonsense in the file.
const maxUBoot = 16 << 20

// parseConfig reads an fw_env.config: one or two lines with the path of a file
// or device, the offset, in C notation and maybe negative, and the size, which
// the tools of U-Boot read as hexadecimal with or without 0x. The columns about
// flash sectors are ignored.
func parseConfig(config []byte) ([]region, error) {
	var regions []region
	for n, line := range strings.Split(string(config), "\n") {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		r, err := parseRegion(f)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
		regions = append(regions, r)
	}
	switch {
	case len(regions) == 0:
		return nil, errors.New("no environment: expected a line DEVICE OFFSET SIZE")
	case len(regions) > 2:
		return nil, fmt.Errorf("%d environments: expected one or two", len(regions))
	case len(regions) == 2 && regions[0].size != regions[1].size:
		return nil, fmt.Errorf("the two copies differ in size: %#x and %#x", regions[0].size, regions[1].size)
	case len(regions) == 2 && regions[0].overlaps(regions[1]):
		return nil, errors.New("the two copies overlap")
	}
	return regions, nil
}

func parseRegion(f []string) (r region, err error) {
	if len(f) < 3 {
		return r, fmt.Errorf("%q: expected DEVICE OFFSET SIZE", strings.Join(f, " "))
	}
	r.path = f[0]
	if r.offset, err = strconv.ParseInt(f[1], 0, 64); err != nil {
		return r, fmt.Errorf("offset %q: expected a number such as 0x1000", f[1])
	}
	digits := strings.TrimPrefix(strings.TrimPrefix(f[2], "0x"), "0X")
	size, err := strconv.ParseUint(digits, 16, 32)
	if err != nil || size < 8 || size > maxUBoot {
		return r, fmt.Errorf("size %q: expected a hexadecimal number from 8 to %x", f[2], maxUBoot)
	}
	r.size = int64(size)
	if r.offset < 0 && r.offset > -r.size {
		return r, fmt.Errorf("offset %s: %#x bytes do not fit there before the end", f[1], r.size)
	}
	return r, nil
}
