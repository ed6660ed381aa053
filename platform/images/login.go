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
	password     string // as an Authorization, empty if there is none
	insecure     bool   // tokens, too, may come by HTTP

	mu            sync.Mutex
	authorization string // that of the last request
}

// Do sends a request that has no body, and again if the registry wants to know who asks.
func (l *login) Do(req *http.Request) (*http.Response, error) {
	l.mu.Lock()
	authorization := l.authorization
	l.mu.Unlock()
	resp, err := l.send(req, authorization)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	if at := resp.Request.URL; at.Scheme != req.URL.Scheme || at.Host != req.URL.Host { // where it has been sent on to
		return resp, nil
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
	return l.send(req, authorization)
}

// basic is the Authorization of a password.
func basic(c Credentials) string {
	if c == (Credentials{}) {
		return ""
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.UserID+":"+c.Password))
}

func (l *login) send(req *http.Request, authorization string) (*http.Response, error) {
	req = req.Clone(req.Context())
	if authorization == "" {
		req.Header.Set("User-Agent", agent)
		return l.Client.Client.Do(req)
	}
	req.Header.Set("Authorization", authorization)
	return l.Client.Do(req)
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
	if err == nil && u.Scheme != "https" && (u.Scheme != "http" || !l.insecure) {
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
	resp, err := l.send(req, l.password)
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
