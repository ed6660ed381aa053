// SPDX-License-Identifier: Apache-2.0

package raucd

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

// BundleSpec describes a bundle. The zero value is a good one of version 2.
type BundleSpec struct {
	Version     string // default "2"
	Compatible  string // default: that of the machine
	Description string
	Build       string
	Class       string // slot class of the image, default rootfs
	SizeMiB     int    // of the image and, as it does not compress, of the bundle; default 8
	Verity      bool   // format verity instead of plain
	Hook        bool   // with a hook that can be held at DuringInstall
	Stranger    bool   // signed by a CA that the machine does not know
	Truncate    int64  // bytes cut off the end
	Modified    bool   // one byte of the payload is changed after signing
}

func (f *Fixture) fill(s BundleSpec) BundleSpec {
	s.Version = or(s.Version, "2")
	s.Compatible = or(s.Compatible, f.opts.Compatible)
	s.Class = or(s.Class, "rootfs")
	if s.SizeMiB == 0 {
		s.SizeMiB = 8
	}
	return s
}

// MakeBundle returns the path of a bundle. Equal descriptions give the same file, which must not be changed.
func (f *Fixture) MakeBundle(tb testing.TB, spec BundleSpec) string {
	tb.Helper()
	spec = f.fill(spec)
	if path, ok := f.bundles[spec]; ok {
		return path
	}
	in := f.path("in")
	check(tb, os.Mkdir(in, 0o755))
	defer os.RemoveAll(in)

	image, err := os.Create(in + "/image.img")
	check(tb, err)
	_, err = io.Copy(image, spec.image())
	check(tb, err)
	check(tb, image.Close())

	var m strings.Builder
	fmt.Fprintf(&m, "[update]\ncompatible=%s\nversion=%s\n", spec.Compatible, spec.Version)
	if spec.Description != "" {
		fmt.Fprintf(&m, "description=%s\n", spec.Description)
	}
	if spec.Build != "" {
		fmt.Fprintf(&m, "build=%s\n", spec.Build)
	}
	format := "plain"
	if spec.Verity {
		format = "verity"
	}
	fmt.Fprintf(&m, "\n[bundle]\nformat=%s\n", format)
	if spec.Hook {
		m.WriteString("\n[hooks]\nfilename=hook\n")
		f.script(tb, in+"/hook", f.waitScript(DuringInstall))
	}
	fmt.Fprintf(&m, "\n[image.%s]\nfilename=image.img\n", spec.Class)
	if spec.Hook {
		m.WriteString("hooks=pre-install\n")
	}
	check(tb, os.WriteFile(in+"/manifest.raucm", []byte(m.String()), 0o644))

	s := f.trusted
	if spec.Stranger {
		s = f.foreign
	}
	path := f.path(fmt.Sprintf("%d.raucb", len(f.bundles)+1))
	run(tb, "rauc", "bundle", "--cert="+s.cert, "--key="+s.key, "--keyring="+s.ca,
		"--mksquashfs-args=-noI -noD -noF -noX -quiet", in, path)
	if spec.Truncate > 0 {
		info, err := os.Stat(path)
		check(tb, err)
		check(tb, os.Truncate(path, info.Size()-spec.Truncate))
	}
	if spec.Modified {
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		check(tb, err)
		b := make([]byte, 1)
		_, err = file.ReadAt(b, 1<<20)
		check(tb, err)
		_, err = file.WriteAt([]byte{^b[0]}, 1<<20)
		check(tb, err)
		check(tb, file.Close())
	}
	f.bundles[spec] = path
	return path
}

// image is the content of a slot: the version in the first line, then noise that
// differs from version to version.
func (s BundleSpec) image() io.Reader {
	head := s.Version + "\n"
	noise := mathrand.NewChaCha8(sha256.Sum256([]byte(s.Version)))
	return io.LimitReader(io.MultiReader(strings.NewReader(head), noise), int64(s.SizeMiB)<<20)
}

// Holds reports whether the slot contains the complete image of the bundle.
func (f *Fixture) Holds(tb testing.TB, slot string, spec BundleSpec) bool {
	tb.Helper()
	spec = f.fill(spec)
	file, err := os.Open(f.devices[slot])
	check(tb, err)
	defer file.Close()
	have, want := sha256.New(), sha256.New()
	_, err = io.CopyN(have, file, int64(spec.SizeMiB)<<20)
	if err == io.EOF {
		return false
	}
	check(tb, err)
	_, err = io.Copy(want, spec.image())
	check(tb, err)
	return bytes.Equal(have.Sum(nil), want.Sum(nil))
}

// signer names the files of a certificate, its key and the CA it comes from.
type signer struct{ cert, key, ca string }

func (f *Fixture) makePKI(tb testing.TB) {
	tb.Helper()
	f.trusted = f.makeSigner(tb, "maker")
	f.foreign = f.makeSigner(tb, "stranger")
	f.Keyring = f.trusted.ca
}

func (f *Fixture) makeSigner(tb testing.TB, name string) signer {
	tb.Helper()
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name + " CA"},
		NotBefore:             now.Add(-24 * time.Hour),
		NotAfter:              now.AddDate(10, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	// RAUC verifies with the purpose smimesign by default: of the extended key usages it wants emailProtection.
	leaf := &x509.Certificate{
		SerialNumber:          big.NewInt(2),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             ca.NotBefore,
		NotAfter:              ca.NotAfter,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection},
	}
	s := signer{cert: f.path(name + ".crt"), key: f.path(name + ".key"), ca: f.path(name + "-ca.crt")}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(tb, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(tb, err)
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	check(tb, err)
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	check(tb, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	check(tb, err)
	for path, block := range map[string]*pem.Block{
		s.ca:   {Type: "CERTIFICATE", Bytes: caDER},
		s.cert: {Type: "CERTIFICATE", Bytes: leafDER},
		s.key:  {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		check(tb, os.WriteFile(path, pem.EncodeToMemory(block), 0o600))
	}
	return s
}
