// SPDX-License-Identifier: Apache-2.0

package images

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"

	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// login talks to a registry that the user knows. Its tokens may come from a server in a private network, and it may offer ways
// to log in that are not ours before those that are: an auth.Client by itself takes neither.
type login struct {
	*auth.Client // sends an Authorization as it is, and does not take it along to another host
	ref          registry.Reference
	base         *url.URL     // of the registry: who else is asked is not told who asks
	password     string       // as an Authorization, empty if there is none
	elsewhere    *auth.Client // for tokens from a host that has to prove who it is, if the registry has not
	trusted      func(host string) bool

	mu            sync.Mutex
	authorization string // that of the last request
}

// Do sends a request that has no body, and again if the registry wants to know who asks. Where the registry sends on to may
// have named what is asked for next: then it is asked like by a stranger.
func (l *login) Do(req *http.Request) (*http.Response, error) {
	if !sameOrigin(req.URL, l.base) {
		return send(l.Client, req, "")
	}
	l.mu.Lock()
	authorization := l.authorization
	l.mu.Unlock()
	resp, err := send(l.Client, req, authorization)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || !sameOrigin(resp.Request.URL, l.base) {
		return resp, err
	}
	authorization, err = l.authorize(req.Context(), resp.Header.Values("Www-Authenticate"))
	if err == nil && authorization == "" {
		return resp, nil
	}
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.authorization = authorization
	l.mu.Unlock()
	return send(l.Client, req, authorization)
}

func sameOrigin(a, b *url.URL) bool {
	port := func(u *url.URL) string {
		return cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	}
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

// basic is the Authorization of a password.
func basic(c Credentials) string {
	if c == (Credentials{}) {
		return ""
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.UserID+":"+c.Password))
}

func send(client *auth.Client, req *http.Request, authorization string) (*http.Response, error) {
	req = req.Clone(req.Context())
	if authorization == "" { // which auth.Client would look for itself
		req.Header.Set("User-Agent", agent)
		return client.Client.Do(req)
	}
	req.Header.Set("Authorization", authorization)
	return client.Do(req)
}

// authorize answers the challenges of a registry, with a token if there is a choice. It may be that it has no answer.
func (l *login) authorize(ctx context.Context, challenges []string) (answer string, err error) {
	for _, c := range challenges {
		switch scheme, rest, _ := strings.Cut(c, " "); strings.ToLower(scheme) {
		case "bearer":
			token, err := l.token(ctx, parameters(rest))
			return "Bearer " + token, err
		case "basic":
			answer = l.password
		}
	}
	return answer, nil
}

var (
	parameter = regexp.MustCompile(`([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))`)
	escaped   = regexp.MustCompile(`\\(.)`)
)

// parameters takes those of a challenge apart.
func parameters(s string) map[string]string {
	m := map[string]string{}
	for _, p := range parameter.FindAllStringSubmatch(s, -1) {
		m[strings.ToLower(p[1])] = cmp.Or(escaped.ReplaceAllString(p[2], "$1"), p[3])
	}
	return m
}

// token asks who gives the tokens of the registry for one.
func (l *login) token(ctx context.Context, challenge map[string]string) (string, error) {
	realm := challenge["realm"]
	u, err := url.Parse(realm)
	if err == nil && u.Scheme != "https" && (u.Scheme != "http" || l.base.Scheme != "http") {
		err = errors.New("not HTTPS")
	}
	if err != nil {
		return "", fmt.Errorf("realm %.200q: %w", realm, err)
	}
	q := u.Query()
	if s := challenge["service"]; s != "" {
		q.Set("service", s)
	}
	q["scope"] = auth.CleanScopes(append(strings.Fields(challenge["scope"]), auth.ScopeRepository(l.ref.Repository, auth.ActionPull)))
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", err
	}
	client := l.Client
	if l.elsewhere != nil && !strings.EqualFold(u.Hostname(), l.base.Hostname()) && !l.trusted(u.Host) {
		client = l.elsewhere
	}
	resp, err := send(client, req, l.password)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", &errcode.ErrorResponse{Method: req.Method, URL: u, StatusCode: resp.StatusCode}
	}
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 128<<10)).Decode(&answer); err != nil {
		return "", fmt.Errorf("token from %s: %w", u.Host, err)
	}
	token := cmp.Or(answer.AccessToken, answer.Token)
	if token == "" {
		return "", fmt.Errorf("token from %s: it is empty", u.Host)
	}
	return token, nil
}
