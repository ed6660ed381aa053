// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// issuer is a certificate with its key, as PEM files in dir.
type issuer struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes a certificate called name, signed by ca or, if that is nil, by itself.
func issue(t *testing.T, dir, name string, ca *issuer, from, to time.Time) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             from,
		NotAfter:              to,
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		BasicConstraintsValid: true,
		IsCA:                  ca == nil,
	}
	parent, signer := c, key
	if ca != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".pem": {Type: "CERTIFICATE", Bytes: der},
		name + ".key": {Type: "PRIVATE KEY", Bytes: kder},
	} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &issuer{dir, c, key}
}

func valid(t *testing.T, dir, name string, ca *issuer) *issuer {
	t.Helper()
	return issue(t, dir, name, ca, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
}

func pair(t *testing.T, dir, name string) tls.Certificate {
	t.Helper()
	c, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// serveTLS answers "hello" to clients which conf accepts and counts requests.
func serveTLS(t *testing.T, conf *tls.Config) (url string, count *int) {
	count = new(int)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*count++
		io.WriteString(w, "hello")
	}))
	s.TLS = conf
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL, count
}

func mustClient(t *testing.T, opts TLS) *http.Client {
	t.Helper()
	c, err := NewClient(opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func quick(t *testing.T, url string, c *http.Client) Request {
	return Request{URL: url, Path: filepath.Join(t.TempDir(), "f"), Client: c, GiveUp: time.Minute, Backoff: time.Millisecond}
}

func TestServerCertificateIsChecked(t *testing.T) {
	dir, cadir, hashed := t.TempDir(), t.TempDir(), t.TempDir()
	ca := valid(t, dir, "ca", nil)
	valid(t, dir, "server", ca)
	valid(t, dir, "stranger", nil)
	valid(t, cadir, "other", nil)
	for name, content := range map[string]string{"README": "text", "empty": ""} {
		os.WriteFile(filepath.Join(cadir, name), []byte(content), 0o600)
	}
	os.Mkdir(filepath.Join(cadir, "sub"), 0o755)
	os.Symlink("nowhere", filepath.Join(cadir, "00000000.0"))
	pem, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(cadir, "any-name"), pem, 0o600)
	os.Symlink(filepath.Join(dir, "ca.pem"), filepath.Join(hashed, "5f5e1a2b.0"))
	url, _ := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{pair(t, dir, "server")}})

	for name, opts := range map[string]TLS{
		"File":          {CAFile: filepath.Join(dir, "ca.pem")},
		"Directory":     {CADir: cadir},
		"HashedNames":   {CADir: hashed},
		"FileBeforeDir": {CAFile: filepath.Join(dir, "ca.pem"), CADir: "/nonexistent"},
	} {
		t.Run(name, func(t *testing.T) {
			r := quick(t, url, mustClient(t, opts))
			mustGet(t, r)
			check(t, r, []byte("hello"))
		})
	}
	for name, opts := range map[string]TLS{
		"System":           {},
		"Stranger":         {CAFile: filepath.Join(dir, "stranger.pem")},
		"StrangerDespiteD": {CAFile: filepath.Join(dir, "stranger.pem"), CADir: cadir},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			failGet(t, quick(t, url, mustClient(t, opts)), "certificate signed by unknown authority")
			if time.Since(start) > 5*time.Second {
				t.Error("tried again")
			}
		})
	}
	t.Run("OtherHost", func(t *testing.T) {
		r := quick(t, strings.Replace(url, "127.0.0.1", "localhost", 1), mustClient(t, TLS{CAFile: filepath.Join(dir, "ca.pem")}))
		failGet(t, r, "localhost")
	})
	t.Run("PlainServer", func(t *testing.T) {
		o := serve(t, content(10))
		r := o.request()
		r.URL = strings.Replace(r.URL, "http:", "https:", 1)
		r.GiveUp = time.Minute
		failGet(t, r, "server gave HTTP response to HTTPS client")
	})
}

// A vehicle's clock may be set only after the network is up.
func TestCertificateOutOfItsTimeIsTriedAgain(t *testing.T) {
	dir := t.TempDir()
	ca := valid(t, dir, "ca", nil)
	from := time.Now().Truncate(time.Second).Add(time.Second) // certificates count whole seconds
	issue(t, dir, "server", ca, from, from.Add(time.Hour))
	url, _ := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{pair(t, dir, "server")}})
	r := quick(t, url, mustClient(t, TLS{CAFile: filepath.Join(dir, "ca.pem")}))
	r.Backoff = 20 * time.Millisecond
	mustGet(t, r)
	if time.Now().Before(from) {
		t.Error("certificate accepted before its time")
	}
	issue(t, dir, "server", ca, time.Now().Add(-time.Hour), time.Now().Add(-time.Minute))
	url, _ = serveTLS(t, &tls.Config{Certificates: []tls.Certificate{pair(t, dir, "server")}})
	r = quick(t, url, r.Client)
	r.GiveUp = 100 * time.Millisecond
	failGet(t, r, "no progress for 100ms", "expired")
}

func TestClientCertificateIsShown(t *testing.T) {
	dir := t.TempDir()
	ca := valid(t, dir, "ca", nil)
	valid(t, dir, "server", ca)
	valid(t, dir, "client", ca)
	valid(t, dir, "stranger", nil)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		url, count := serveTLS(t, &tls.Config{
			Certificates: []tls.Certificate{pair(t, dir, "server")},
			ClientAuth:   tls.RequireAndVerifyClientCert,
			ClientCAs:    pool,
			MaxVersion:   version,
		})
		opts := TLS{CAFile: filepath.Join(dir, "ca.pem")}
		r := quick(t, url, mustClient(t, opts))
		failGet(t, r, "tls: ") // TLS 1.2: bad certificate, 1.3: certificate required
		opts.CertFile, opts.KeyFile = filepath.Join(dir, "stranger.pem"), filepath.Join(dir, "stranger.key")
		r.Client = mustClient(t, opts)
		failGet(t, r, "tls: ")
		if *count != 0 {
			t.Fatal("server took a client it should refuse")
		}
		opts.CertFile, opts.KeyFile = filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key")
		r.Client = mustClient(t, opts)
		mustGet(t, r)
		check(t, r, []byte("hello"))
	}
}

func TestClientOptionsAreChecked(t *testing.T) {
	dir := t.TempDir()
	ca := valid(t, dir, "ca", nil)
	valid(t, dir, "a", ca)
	valid(t, dir, "b", ca)
	in := func(name string) string { return filepath.Join(dir, name) }
	os.WriteFile(in("text"), []byte("text"), 0o600)
	empty := t.TempDir()
	for _, tt := range []struct {
		opts TLS
		want []string
	}{
		{TLS{CAFile: in("missing")}, []string{"CA", in("missing"), "no such file"}},
		{TLS{CAFile: in("text")}, []string{"no certificate in " + in("text")}},
		{TLS{CADir: in("missing")}, []string{"CA", in("missing"), "no such file"}},
		{TLS{CADir: empty}, []string{"no certificate in " + empty}},
		{TLS{CertFile: in("a.pem")}, []string{"together"}},
		{TLS{KeyFile: in("a.key")}, []string{"together"}},
		{TLS{CertFile: in("a.pem"), KeyFile: in("missing")}, []string{"client certificate", in("missing")}},
		{TLS{CertFile: in("a.pem"), KeyFile: in("b.key")}, []string{"client certificate", "does not match"}},
	} {
		_, err := NewClient(tt.opts)
		if err == nil {
			t.Errorf("%+v: no error", tt.opts)
			continue
		}
		for _, s := range tt.want {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%+v: error %q does not say %q", tt.opts, err, s)
			}
		}
	}
}

func TestRedirects(t *testing.T) {
	dir := t.TempDir()
	ca := valid(t, dir, "ca", nil)
	valid(t, dir, "server", ca)
	secure, _ := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{pair(t, dir, "server")}})
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "hello")
	}))
	t.Cleanup(plain.Close)
	redirect := func(to string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if to == "" { // to itself
				to = r.URL.Path
			}
			http.Redirect(w, r, to, http.StatusFound)
		})
	}
	for _, tt := range []struct {
		name, to, want string
		tls            bool
	}{
		{"SecureToSecure", secure, "", true},
		{"PlainToSecure", secure, "", false},
		{"PlainToPlain", plain.URL, "", false},
		{"SecureToPlainIsRefused", plain.URL, "redirect refused: from https to http", true},
		{"OtherSchemeIsRefused", "ftp://127.0.0.1/x", "redirect refused: from http to ftp", false},
		{"FileIsRefused", "file:///etc/passwd", "redirect refused", true},
		{"CircleIsRefused", "", "redirect refused: more than 10", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(redirect(tt.to))
			if tt.tls {
				s.TLS = &tls.Config{Certificates: []tls.Certificate{pair(t, dir, "server")}}
				s.StartTLS()
			} else {
				s.Start()
			}
			t.Cleanup(s.Close)
			r := quick(t, s.URL, mustClient(t, TLS{CAFile: filepath.Join(dir, "ca.pem")}))
			if tt.want != "" {
				failGet(t, r, tt.want)
				return
			}
			mustGet(t, r)
			check(t, r, []byte("hello"))
		})
	}
}

// The rest of a redirected file is asked for where the redirect leads.
func TestRedirectedDownloadIsResumed(t *testing.T) {
	data := content(300_000)
	o := serve(t, data)
	o.cut = 200_000
	r := o.request()
	s := httptest.NewServer(http.RedirectHandler(r.URL, http.StatusTemporaryRedirect))
	t.Cleanup(s.Close)
	r.URL = s.URL
	wantResult(t, mustGet(t, r), Result{Size: 300_000, Fetched: 300_000})
	check(t, r, data)
	wantRequests(t, o, "GET", `GET bytes=200000- "v1"`)
}

func TestProxyOfTheEnvironmentIsUsed(t *testing.T) {
	if os.Getenv("FETCH_TEST_PROXY") == "" {
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, r.URL.String())
		}))
		t.Cleanup(proxy.Close)
		// net/http reads the environment once, so this takes a process of its own.
		rerun(t, "FETCH_TEST_PROXY=1", "http_proxy="+proxy.URL, "HTTP_PROXY="+proxy.URL, "no_proxy=", "NO_PROXY=")
		return
	}
	r := quick(t, "http://bundles.invalid/x", nil)
	mustGet(t, r)
	check(t, r, []byte("http://bundles.invalid/x"))
}
