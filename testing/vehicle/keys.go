// SPDX-License-Identifier: Apache-2.0

package vehicle

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// Keys are those of the vehicle's maker. They are made once for a cache.
type Keys struct {
	Trusted    Signer // what the vehicle accepts bundles from
	Stranger   Signer // somebody it does not know
	SSHPrivate string // file with the key that opens the vehicle to ssh
	SSHPublic  string
}

// Signer names the files of a certificate that signs bundles.
type Signer struct{ Cert, Key, CA string }

// Keys returns the keys of this cache.
func (b *Builder) Keys() (Keys, error) {
	dir, err := b.cached("keys", "", func(tmp string) error {
		if err := os.Mkdir(tmp, 0o700); err != nil {
			return err
		}
		k := keysIn(tmp)
		if err := makeSigner(k.Trusted, "maker"); err != nil {
			return err
		}
		if err := makeSigner(k.Stranger, "stranger"); err != nil {
			return err
		}
		return makeSSH(k)
	}, "ECDSA P-256")
	return keysIn(dir), err
}

func keysIn(dir string) Keys {
	signer := func(name string) Signer {
		path := filepath.Join(dir, name)
		return Signer{Cert: path + ".crt", Key: path + ".key", CA: path + "-ca.crt"}
	}
	ssh := filepath.Join(dir, "ssh")
	return Keys{Trusted: signer("maker"), Stranger: signer("stranger"), SSHPrivate: ssh, SSHPublic: ssh + ".pub"}
}

func makeSigner(s Signer, name string) error {
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
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return err
	}
	if err := writePEM(s.CA, "CERTIFICATE", caDER); err != nil {
		return err
	}
	if err := writePEM(s.Cert, "CERTIFICATE", leafDER); err != nil {
		return err
	}
	return writeKey(s.Key, key)
}

// makeSSH makes a key pair for ssh; OpenSSH reads ECDSA keys in the PKCS 8 format, the public one has RFC 5656's.
func makeSSH(k Keys) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return err
	}
	var blob []byte
	for _, s := range [][]byte{[]byte("ecdsa-sha2-nistp256"), []byte("nistp256"), point} {
		blob = binary.BigEndian.AppendUint32(blob, uint32(len(s)))
		blob = append(blob, s...)
	}
	line := "ecdsa-sha2-nistp256 " + base64.StdEncoding.EncodeToString(blob) + " vehicle\n"
	if err := os.WriteFile(k.SSHPublic, []byte(line), 0o644); err != nil {
		return err
	}
	return writeKey(k.SSHPrivate, key)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, "PRIVATE KEY", der)
}

func writePEM(path, typ string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}), 0o600)
}
