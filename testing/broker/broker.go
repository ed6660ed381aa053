// SPDX-License-Identifier: Apache-2.0

// Package broker runs a private mosquitto for tests: on a loopback port of its
// own, with the means to stop, kill, freeze and restart it.
package broker

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sdvbox/testing/ports"
)

// Options choose what the broker asks of its clients.
type Options struct {
	TLS      bool   // mqtts with a certificate that CAFile has signed
	MTLS     bool   // and clients need a certificate, such as CertFile
	User     string // clients need this user name and Password
	Password string
	IPv6     bool                     // listen on ::1 instead of 127.0.0.1
	ACL      string                   // contents of mosquitto's acl_file
	Volatile bool                     // forget sessions and retained messages at a restart
	Config   string                   // more lines of configuration
	Whole    func(addr string) string // all of the configuration instead, for a broker at addr
}

// Broker is a running mosquitto.
type Broker struct {
	Addr   string // HOST:PORT
	CAFile string // certificate authority, with TLS
	// CertFile and KeyFile are a client certificate, with MTLS.
	CertFile, KeyFile string

	tb  testing.TB
	dir string
	opt Options
	cmd *exec.Cmd
}

// Start starts a broker that ends with the test.
func Start(tb testing.TB, o Options) *Broker {
	tb.Helper()
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto" // not in everybody's PATH
		if _, err := os.Stat(path); err != nil {
			if os.Getenv("SDVBOX_REQUIRE") == "1" {
				tb.Fatal("mosquitto is not installed")
			}
			tb.Skip("mosquitto is not installed")
		}
	}
	b := &Broker{tb: tb, dir: tb.TempDir(), opt: o}
	b.opt.TLS = o.TLS || o.MTLS
	if b.opt.TLS {
		b.makeCertificates()
	}
	host := "127.0.0.1"
	if o.IPv6 {
		host = "::1"
	}
	b.Addr = FreeAddr(tb, host)
	if o.Whole != nil {
		b.write("mosquitto.conf", o.Whole(b.Addr))
	} else {
		b.configure()
	}
	b.cmd = exec.Command(path, "-c", b.file("mosquitto.conf"))
	tb.Cleanup(func() {
		b.Kill()
		if tb.Failed() {
			log, _ := os.ReadFile(b.file("log"))
			tb.Logf("broker:\n%s", log)
		}
	})
	b.Restart()
	return b
}

// FreeAddr returns a HOST:PORT where nobody listens, for instance a broker that
// is absent. The port can be taken by somebody else at any time.
func FreeAddr(tb testing.TB, host string) string {
	tb.Helper()
	free, err := ports.Free(host, 1)
	if err != nil {
		tb.Fatal(err)
	}
	return net.JoinHostPort(host, strconv.Itoa(free[0]))
}

// URL returns the address as the --server option of a client takes it.
func (b *Broker) URL() string {
	if b.opt.TLS {
		return "mqtts://" + b.Addr
	}
	return "tcp://" + b.Addr
}

// Stop ends the broker in order.
func (b *Broker) Stop() { b.end(syscall.SIGTERM) }

// Kill ends the broker at once; what it has not saved is lost.
func (b *Broker) Kill() { b.end(syscall.SIGKILL) }

// Freeze stops the broker without closing any connection, until Thaw.
func (b *Broker) Freeze() { b.signal(syscall.SIGSTOP) }

// Thaw ends a Freeze.
func (b *Broker) Thaw() { b.signal(syscall.SIGCONT) }

// Restart starts the broker again at the same address, after Stop if it runs.
func (b *Broker) Restart() {
	b.tb.Helper()
	b.Stop()
	cmd := exec.Command(b.cmd.Path, b.cmd.Args[1:]...)
	log, err := os.OpenFile(b.file("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		b.tb.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		b.tb.Fatal(err)
	}
	b.cmd = cmd
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", b.Addr)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(b.file("log"))
			b.tb.Fatalf("broker does not start: %v\n%s", err, text)
		}
	}
}

// Log returns what the broker has logged.
func (b *Broker) Log() string {
	log, err := os.ReadFile(b.file("log"))
	if err != nil {
		b.tb.Fatal(err)
	}
	return string(log)
}

func (b *Broker) end(sig syscall.Signal) {
	if b.cmd.Process == nil {
		return
	}
	b.signal(sig)
	b.signal(syscall.SIGCONT)
	b.cmd.Wait()
	b.cmd.Process = nil
}

func (b *Broker) signal(sig syscall.Signal) {
	if b.cmd.Process != nil {
		b.cmd.Process.Signal(sig)
	}
}

func (b *Broker) file(name string) string { return filepath.Join(b.dir, name) }

func (b *Broker) write(name, text string) string {
	path := b.file(name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		b.tb.Fatal(err)
	}
	return path
}

func (b *Broker) configure() {
	var c strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&c, format+"\n", args...) }
	host, number, _ := net.SplitHostPort(b.Addr)
	line("listener %s %s", number, host)
	if os.Geteuid() == 0 {
		line("user root") // else it changes to a user who may not read the test's files
	}
	line("log_type all")
	line("set_tcp_nodelay true")
	if !b.opt.Volatile {
		line("persistence true\npersistence_location %s/\nautosave_on_changes true\nautosave_interval 1", b.dir)
	}
	if b.opt.TLS {
		line("cafile %s\ncertfile %s\nkeyfile %s", b.CAFile, b.file("server.pem"), b.file("server.key"))
	}
	if b.opt.MTLS {
		line("require_certificate true")
	}
	if b.opt.ACL != "" {
		line("acl_file %s", b.write("acl", b.opt.ACL))
	}
	if b.opt.User != "" {
		file := b.write("passwords", "")
		if out, err := exec.Command("mosquitto_passwd", "-b", file, b.opt.User, b.opt.Password).CombinedOutput(); err != nil {
			b.tb.Fatalf("mosquitto_passwd: %v: %s", err, out)
		}
		line("allow_anonymous false\npassword_file %s", file)
	} else {
		line("allow_anonymous true")
	}
	line("%s", b.opt.Config)
	b.write("mosquitto.conf", c.String())
}

func (b *Broker) makeCertificates() {
	ca := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "test authority"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	caKey := b.certify("ca", ca, ca, nil)
	b.CAFile = b.file("ca.pem")
	b.certify("server", &x509.Certificate{
		Subject:     pkix.Name{CommonName: "test broker"},
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, caKey)
	if b.opt.MTLS {
		b.certify("client", &x509.Certificate{
			Subject:     pkix.Name{CommonName: "test client"},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}, ca, caKey)
		b.CertFile, b.KeyFile = b.file("client.pem"), b.file("client.key")
	}
}

// certify writes NAME.pem and NAME.key. Without a key of the parent the
// certificate signs itself.
func (b *Broker) certify(name string, cert, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.tb.Fatal(err)
	}
	if parentKey == nil {
		parentKey = key
	}
	cert.SerialNumber = big.NewInt(time.Now().UnixNano())
	cert.NotBefore = time.Now().Add(-time.Hour)
	cert.NotAfter = time.Now().Add(24 * time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, &key.PublicKey, parentKey)
	if err != nil {
		b.tb.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		b.tb.Fatal(err)
	}
	b.write(name+".pem", block("CERTIFICATE", der))
	b.write(name+".key", block("PRIVATE KEY", keyDER))
	return key
}

func block(kind string, der []byte) string {
	var b bytes.Buffer
	pem.Encode(&b, &pem.Block{Type: kind, Bytes: der})
	return b.String()
}
