// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// TLS says whom to trust and who we are. The zero value trusts the system's
// certificate authorities.
type TLS struct {
	CAFile   string // PEM file; when set CADir is not used
	CADir    string // directory of PEM files, hashed names or not
	CertFile string // client certificate, PEM
	KeyFile  string // its key, PEM
}

// NewClient returns a client for http and https that uses the proxies of the
// environment and follows redirects, but never from https to http.
func NewClient(t TLS) (*http.Client, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	switch {
	case t.CAFile != "":
		conf.RootCAs = x509.NewCertPool()
		err = addCerts(conf.RootCAs, t.CAFile)
	case t.CADir != "":
		conf.RootCAs, err = poolFromDir(t.CADir)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot load CA certificates: %w", err)
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		return nil, errors.New("client certificate and key must be given together")
	}
	if t.CertFile != "" {
		c, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("cannot load client certificate: %w", err)
		}
		conf.Certificates = []tls.Certificate{c}
	}
	return &http.Client{
		// HTTP/2 stays off, which it does with an own TLSClientConfig: it
		// would put the retry after a stall on the same dead connection.
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
			TLSClientConfig:     conf,
			TLSHandshakeTimeout: 30 * time.Second,
			IdleConnTimeout:     30 * time.Second,
			DisableCompression:  true,
		},
		CheckRedirect: checkRedirect,
	}, nil
}

// errRedirect marks redirects that a retry would only meet again.
var errRedirect = errors.New("redirect refused")

func checkRedirect(req *http.Request, via []*http.Request) error {
	from, to := via[len(via)-1].URL.Scheme, req.URL.Scheme
	switch {
	case len(via) >= 10:
		return fmt.Errorf("%w: more than 10 in a row", errRedirect)
	case to != "http" && to != "https", from == "https" && to == "http":
		return fmt.Errorf("%w: from %s to %s", errRedirect, from, to)
	}
	return nil
}

func addCerts(pool *x509.CertPool, file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if !pool.AppendCertsFromPEM(b) {
		return fmt.Errorf("no certificate in %s", file)
	}
	return nil
}

func poolFromDir(dir string) (*x509.CertPool, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	found := false
	for _, f := range files { // keys, CRLs and dangling links may lie there too
		found = addCerts(pool, filepath.Join(dir, f.Name())) == nil || found
	}
	if !found {
		return nil, fmt.Errorf("no certificate in %s", dir)
	}
	return pool, nil
}
