// SPDX-License-Identifier: Apache-2.0

// Package bootenv reads and writes the environments in which a boot loader
// keeps its variables: GRUB's environment block and the U-Boot environment.
// Both formats are byte exact, so the tools of the boot loaders read what this
// package writes and the other way round, and every change survives a power
// cut: after it either the old or the new variables are loaded, never a mix
// and never nothing.
//
// # GRUB
//
// An environment block starts with the line "# GRUB Environment Block",
// followed by lines NAME=VALUE. In values a backslash and a newline are each
// preceded by a backslash. Lines starting with '#' are comments, and '#' fills
// the block up to 1024 bytes. GRUB rewrites the two sectors in place and there
// is no checksum. grub-editenv truncates the file first, so that a power cut
// leaves an empty one.
//
// The store therefore keeps two files, PATH and PATH+"2". The variable SDV_SEQ
// is the first and SDV_END the last one of each; both hold the same digit,
// which counts 0, 1, 2, 3, 0 … A copy is valid when its header is right and
// SDV_SEQ equals SDV_END. A copy with neither, made by stock tools, is valid
// too, but older than any numbered one. Of two numbered copies the one whose
// number is the successor of the other's is newer; otherwise the first file
// counts. The variables that decide about the boot come first, within the
// first sector.
//
// A writer never touches the current copy before the other one is complete and
// on the medium. Within a copy the first 512 bytes, which hold the header, are
// written last and in one sector. When the second sector changes as well, the
// first is blanked before: a half-written copy has no header, so nobody reads
// it and GRUB's save_env refuses to build on it. The boot script saves into
// the copy that is not the current one and lists SDV_SEQ and SDV_END; as GRUB
// writes both sectors as it likes, the two must agree for the copy to count.
// Where only the current copy can be written, script and
// writer change that one in place under its old number.
// A variable which the script does not list keeps the value it has in that
// copy: the one from before the last update if the power failed between the
// two copies of it. Where only the current copy can be written, script and
// writer change that one in place and leave its number.
//
// A file without a second copy, as in a stock installation, is written in
// place without truncation. That is as safe as one file can be: atomic as long
// as the variables fit in the first sector.
//
// # U-Boot
//
// The image is a CRC-32 in little endian, in redundant pairs a flags byte,
// then NAME=VALUE strings, each ended by NUL, the list ended by an empty one.
// The rest up to the configured size is arbitrary but covered by the CRC. Of
// two valid copies the one with the higher flags byte is current (0 follows
// 255); the writer replaces the other one, so a torn write destroys nothing.
// With a single copy a torn write loses the environment; U-Boot then uses its
// built-in default.
package bootenv

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
)

// Kind tells the boot loaders apart.
type Kind int

// The kinds of environments.
const (
	GRUB Kind = iota
	UBoot
)

func (k Kind) String() string {
	if k == UBoot {
		return "uboot"
	}
	return "grub"
}

// ErrInvalid means that no copy of an environment can be used.
var ErrInvalid = errors.New("no valid boot environment")

// invalidError is ErrInvalid with the error of each copy.
type invalidError []error

func invalid(copies []error) error { return invalidError(copies) }

func (e invalidError) Error() string {
	text, sep := ErrInvalid.Error(), ": "
	for _, err := range e {
		text, sep = text+sep+err.Error(), "; "
	}
	return text
}

func (e invalidError) Unwrap() []error { return append([]error{ErrInvalid}, e...) }

// Lost reports whether err, from a method of s, says that the environment is
// gone for good: the copies could be read and hold nonsense. Copies that the
// medium does not give out may come back. Files that are all missing are lost
// only where the file system that GRUB keeps them on is mounted.
func Lost(s Store, err error) bool {
	var copies invalidError
	if !errors.As(err, &copies) {
		return false
	}
	missing := 0
	for _, err := range copies {
		if errors.Is(err, fs.ErrNotExist) {
			missing++
		} else if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
			return false
		}
	}
	if missing < len(copies) {
		return true
	}
	g, ok := s.(*grubStore)
	return ok && !g.absent()
}

// Store is a boot environment on a medium.
type Store interface {
	// Load returns the current variables.
	Load() (*Vars, error)
	// Update changes the variables: all changes together or none, durable on
	// return. Nothing is written when change fails or changes nothing.
	Update(change func(*Vars) error) error
	// Repair rewrites copies that are missing or invalid from the valid one.
	Repair() (changed bool, err error)
	// Kind tells which boot loader reads the environment.
	Kind() Kind
	// String returns the specification Open takes.
	String() string
}

// Where Open looks when it is not told.
const (
	specVariable  = "SDVBOX_BOOTENV"
	defaultGrub   = "/grubenv/grubenv"
	defaultConfig = "/etc/fw_env.config"
)

// Open returns the store for spec: "grub:" and the path of the environment
// block, or "uboot:" and the path of an fw_env.config. An empty spec stands
// for the value of the variable SDVBOX_BOOTENV if that is set, else for
// whichever of /grubenv/grubenv and /etc/fw_env.config exists.
func Open(spec string) (Store, error) {
	if spec == "" {
		spec = os.Getenv(specVariable)
	}
	if spec == "" {
		switch {
		case exists(defaultGrub), exists(defaultGrub + "2"):
			spec = "grub:" + defaultGrub
		case exists(defaultConfig):
			spec = "uboot:" + defaultConfig
		default:
			return nil, fmt.Errorf("no boot environment: neither %s nor %s exists and %s is not set",
				defaultGrub, defaultConfig, specVariable)
		}
	}
	switch kind, path, _ := strings.Cut(spec, ":"); {
	case path == "":
	case kind == "grub":
		return newPair(path), nil
	case kind == "uboot":
		return openUBoot(path)
	}
	return nil, fmt.Errorf("boot environment %q: expected grub:PATH or uboot:FW_ENV_CONFIG", spec)
}

// Create makes all copies of the environment spec anew, with vars as content.
// The files of a U-Boot environment are created in the configured size;
// devices are overwritten.
func Create(spec string, vars *Vars) error {
	s, err := Open(spec)
	if err != nil {
		return err
	}
	return s.(interface{ create(*Vars) error }).create(vars)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Vars are variables in the order of their first appearance. The zero value
// is empty and ready to use.
type Vars struct {
	keys   []string
	values map[string]string
}

// Get returns the value of key, "" if it is not set.
func (v *Vars) Get(key string) string { return v.values[key] }

// Has reports whether key is set.
func (v *Vars) Has(key string) bool {
	_, ok := v.values[key]
	return ok
}

// Set sets key to value. A new key goes to the end.
func (v *Vars) Set(key, value string) {
	if v.values == nil {
		v.values = make(map[string]string)
	}
	if !v.Has(key) {
		v.keys = append(v.keys, key)
	}
	v.values[key] = value
}

// Delete removes key.
func (v *Vars) Delete(key string) {
	if v.Has(key) {
		delete(v.values, key)
		v.keys = slices.DeleteFunc(v.keys, func(k string) bool { return k == key })
	}
}

// Keys returns the names of all variables in order.
func (v *Vars) Keys() []string { return slices.Clone(v.keys) }

// Clone returns an independent copy.
func (v *Vars) Clone() *Vars {
	return &Vars{keys: slices.Clone(v.keys), values: maps.Clone(v.values)}
}

// Equal reports whether both hold the same variables, in any order.
func (v *Vars) Equal(w *Vars) bool { return maps.Equal(v.values, w.values) }

func sortedKeys(v *Vars) []string { return slices.Sorted(slices.Values(v.keys)) }
