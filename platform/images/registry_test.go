// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/ctrd"
)

// root asks a registry for an image. Nothing is done with containerd.
func root(t testing.TB, c Config, host string) error {
	t.Helper()
	s := must(New(c))(t)
	repo, err := s.connect(t.Context(), must(parseRef(host+"/app:1"))(t))
	if err != nil {
		return err
	}
	defer repo.close()
	_, _, err = repo.root(t.Context())
	return err
}

// guarded is a registry with a password.
func guarded(w http.ResponseWriter, r *http.Request) {
	if u, p, _ := r.BasicAuth(); u != user || p != password {
		w.Header().Add("Www-Authenticate", `Basic realm="test"`)
		w.WriteHeader(401)
		return
	}
	w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
	w.Write([]byte("{}"))
}

// accepted is a listener for connections that another one has accepted.
type accepted struct {
	net.Listener
	conns chan net.Conn
}

func (a accepted) Accept() (net.Conn, error) {
	if c := <-a.conns; c != nil {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (a accepted) Close() error { return nil }

// begun is a connection of which something has been read.
type begun struct {
	net.Conn
	r *bufio.Reader
}

func (b begun) Read(p []byte) (int, error) { return b.r.Read(p) }

// serveBoth answers HTTP and HTTPS at one port. A handler that is nil never does.
func serveBoth(t testing.TB, plain, secure http.HandlerFunc) (host string) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	listener := func() accepted { return accepted{l, make(chan net.Conn)} }
	overTCP, overTLS := listener(), listener()
	open, sealed := httptest.NewUnstartedServer(plain), httptest.NewUnstartedServer(secure)
	open.Listener, sealed.Listener = overTCP, overTLS
	open.Start()
	sealed.StartTLS()
	t.Cleanup(func() {
		l.Close()
		close(overTCP.conns)
		close(overTLS.conns)
		open.Close()
		sealed.Close()
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r := bufio.NewReader(c)
			to, handler := overTCP, plain
			if first, _ := r.Peek(1); string(first) == "\x16" { // the handshake of TLS
				to, handler = overTLS, secure
			}
			if handler == nil {
				defer c.Close()
			} else {
				to.conns <- begun{c, r}
			}
		}
	}()
	return l.Addr().String()
}

func TestWhatAnInsecureRegistryTalks(t *testing.T) {
	t.Parallel()
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	redirect := func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://"+r.Host+r.URL.Path, http.StatusMovedPermanently)
	}
	for _, test := range []struct {
		name          string
		plain, secure http.HandlerFunc
		words         string // of the error
	}{
		{"HTTP", guarded, nil, ""},
		{"both", guarded, status(500), ""},
		{"HTTPS", status(400), guarded, ""},
		{"redirect", redirect, guarded, ""},
		{"silence", nil, guarded, ""},
		{"another server", status(404), guarded, ""},
		{"no registry", status(404), nil, "404"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			host := serveBoth(t, test.plain, test.secure)
			err := root(t, Config{Stall: ctrd.Patient(3 * time.Second), Insecure: []string{host}, Registries: map[string]Registry{host: {Credentials: Credentials{user, password}}}}, host)
			if test.words == "" {
				ok(t, err)
			} else if err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("error %v, expected one that says %q", err, test.words)
			}
		})
	}
}

func TestHostsThatAreInsecure(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		declared, registry string
		insecure           bool
	}{
		{"r.example", "r.example", true},
		{"r.example", "R.example:5000", true},
		{"r.example:5000", "r.example:5000", true},
		{"r.example:5000", "r.example:5001", false},
		{"r.example:5000", "r.example", false},
		{"example", "r.example", false},
		{"[fd00::1]", "[fd00::1]:5000", true},
		{"[fd00::1]:5000", "[fd00::1]:5000", true},
		{"[fd00::1]:5000", "[fd00::1]:5001", false},
		{"fd00::1", "[fd00::1]:5000", true},
		{"fd00::1", "[fd00::1]", true},
		{"FD00:0::1", "[fd00::1]", true},
		{"fd00::2", "[fd00::1]", false},
	} {
		ref, err := parseRef(test.registry + "/app:1")
		ok(t, err)
		if got := isInsecure([]string{"x", test.declared}, ref.Registry); got != test.insecure {
			t.Errorf("%s is insecure because of %s: %v", test.registry, test.declared, got)
		}
	}
	for host, want := range map[string]bool{"localhost": true, "localhost:5000": true, "127.0.0.1:5000": true, "127.1.2.3": true, "[::1]": true,
		"[::1]:5000": true, "[0:0::1]": true, "[fd00::1]": false, "10.0.0.1": false, "localhost.example": false} {
		if loopback(host) != want {
			t.Errorf("%s is this machine: %v", host, !want)
		}
	}
}

func TestACertificateOutOfItsTime(t *testing.T) {
	t.Parallel()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	now := time.Now()
	for _, from := range []time.Time{now.Add(time.Hour), now.Add(-3 * time.Hour)} {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: from.Add(2 * time.Hour),
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
		der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
		r := httptest.NewUnstartedServer(http.HandlerFunc(guarded))
		r.Config.ErrorLog = log.New(io.Discard, "", 0)
		r.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
		r.StartTLS()
		defer r.Close()
		ca := t.TempDir() + "/ca.crt"
		ok(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
		host := strings.TrimPrefix(r.URL, "https://")
		err := root(t, Config{Registries: map[string]Registry{host: {Credentials{user, password}, Transport{RootCA: ca}}}}, host)
		expect(t, err, ctrmodel.Unavailable, "certificate has expired or is not yet valid")
	}
}
