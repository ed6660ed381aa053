// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"sdvbox/platform/ctrmodel"
)

// elsewhere is the address of a server by another name, which is one in a private network.
func elsewhere(s *httptest.Server) string {
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	return "http://localhost:" + port
}

// asking is a registry that asks with the challenges for the Authorization.
func asking(want *string, challenges ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == *want && r.Header.Get("User-Agent") == agent {
			w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
			w.Write([]byte("{}"))
			return
		}
		w.Header()["Www-Authenticate"] = challenges
		w.WriteHeader(401)
	}
}

func TestWaysToLogIn(t *testing.T) {
	t.Parallel()
	const good = "Bearer t1"
	known := Credentials{user, password}
	bob := basic(known)
	var strange http.HandlerFunc = func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "" {
			t.Errorf("a strange server is told %q", a)
		}
		w.Write([]byte(`{"token":"t1"}`))
	}
	other := httptest.NewServer(strange)
	defer other.Close()
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch q := r.URL.Query(); {
		case r.URL.Path == "/away":
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		case r.URL.Path == "/anonymous" && r.Header.Get("Authorization") == "", r.Header.Get("Authorization") == bob:
			if q.Get("service") == "s" && fmt.Sprint(q["scope"]) == "[repository:app:pull repository:b:pull,push]" {
				w.Write([]byte(`{"access_token":"t1"}`))
				return
			}
			w.WriteHeader(400)
		default:
			w.WriteHeader(401)
		}
	}))
	defer tokens.Close()
	bearer := func(path string) string {
		return `bearer realm="` + elsewhere(tokens) + path + `" , service=s, error="a \"b\", c", scope="repository:b:pull,push"`
	}
	for _, test := range []struct {
		name        string
		credentials Credentials
		challenges  []string
		want        string
		kind        ctrmodel.Kind // of the error
	}{
		{"none is known", known, []string{"Negotiate"}, "x", ctrmodel.Unauthenticated},
		{"no password", Credentials{}, []string{"Basic"}, "x", ctrmodel.Unauthenticated},
		{"the second is known", known, []string{"Negotiate", `BASIC realm="x"`}, bob, 0},
		{"wrong password", Credentials{user, "wrong"}, []string{`Basic realm="x"`}, bob, ctrmodel.Unauthenticated},
		{"token from a private network", known, []string{bearer("/token")}, good, 0},
		{"token for nobody", Credentials{}, []string{bearer("/anonymous")}, good, 0},
		{"no token for nobody", Credentials{}, []string{bearer("/token")}, good, ctrmodel.Unauthenticated},
		{"no token for this password", Credentials{user, "wrong"}, []string{bearer("/token")}, good, ctrmodel.Unauthenticated},
		{"token if there is a choice", known, []string{"Basic", bearer("/token")}, good, 0},
		{"token from where the server sends on to", known, []string{bearer("/away")}, good, 0},
		{"no address", known, []string{"Bearer"}, good, ctrmodel.FailedPrecondition},
		{"not the web", known, []string{`Bearer realm="file:///etc/passwd"`}, good, ctrmodel.FailedPrecondition},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewServer(asking(&test.want, test.challenges...))
			defer r.Close()
			host := strings.TrimPrefix(r.URL, "http://")
			err := root(t, Config{Registries: map[string]Registry{host: {Credentials: test.credentials}}}, host)
			if test.kind == 0 {
				ok(t, err)
			} else {
				expect(t, err, test.kind, host)
			}
		})
	}
}

func TestAPasswordGoesByHTTPOnlyIfTheRegistryDoes(t *testing.T) {
	t.Parallel()
	var told atomic.Value
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		told.Store(r.Header.Get("Authorization"))
		w.Write([]byte(`{"token":"t"}`))
	}))
	defer tokens.Close()
	want := "Bearer t"
	ask := asking(&want, `Bearer realm="`+elsewhere(tokens)+`"`)
	known := Registry{Credentials: Credentials{user, password}}

	verified := httptest.NewTLSServer(ask)
	defer verified.Close()
	ca := t.TempDir() + "/ca.crt"
	ok(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: verified.Certificate().Raw}), 0o600))
	host := strings.TrimPrefix(verified.URL, "https://")
	err := root(t, Config{Registries: map[string]Registry{host: {known.Credentials, Transport{RootCA: ca}}}}, host)
	expect(t, err, ctrmodel.FailedPrecondition, "not HTTPS")

	noRegistry := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(400) }
	host = serveBoth(t, noRegistry, ask)
	err = root(t, Config{Insecure: []string{host}, Registries: map[string]Registry{host: known}}, host)
	expect(t, err, ctrmodel.FailedPrecondition, "not HTTPS")
	if got := told.Load(); got != nil {
		t.Errorf("told %q by HTTP", got)
	}

	host = serveBoth(t, ask, noRegistry)
	ok(t, root(t, Config{Insecure: []string{host}, Registries: map[string]Registry{host: known}}, host))
	if got := told.Load(); got != basic(known.Credentials) {
		t.Errorf("told %q", got)
	}
}

// dialing lets a client find a server whatever host it looks for.
func dialing(c *http.Client, server *httptest.Server) {
	c.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
	}
}

func TestWhoGivesTokensProvesWhoItIs(t *testing.T) {
	t.Parallel()
	var told atomic.Value
	tokens := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		told.Store(r.Header.Get("Authorization"))
		w.Write([]byte(`{"token":"t"}`))
	}))
	tokens.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer tokens.Close()
	registry := httptest.NewServer(http.HandlerFunc(guarded))
	defer registry.Close()
	c := Credentials{user, password}
	for _, test := range []struct {
		name, realm string
		insecure    string
		want        bool
	}{
		{"another host", "https://tokens.example/", "r.example", false},
		{"another host with a port", "https://tokens.example:5001/", "tokens.example:5000", false},
		{"another host that is insecure, too", "https://tokens.example:5001/", "tokens.example", true},
		{"the host of the registry", "https://R.example:5001/", "r.example:5000", true},
		{"this machine", "https://127.0.0.2:5001/", "r.example", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			told = atomic.Value{}
			host := strings.TrimPrefix(registry.URL, "http://")
			s := must(New(Config{Insecure: []string{test.insecure}, Registries: map[string]Registry{host: {Credentials: c}}}))(t)
			repo := must(s.connect(t.Context(), must(parseRef(host+"/app:1"))(t)))(t)
			defer repo.close()
			l := repo.client.(*login)
			l.base.Host = "r.example:5000"
			dialing(l.elsewhere.Client, tokens)
			dialing(l.Client.Client, tokens)
			token, err := l.token(t.Context(), map[string]string{"realm": test.realm})
			if test.want {
				ok(t, err)
				if token != "t" || told.Load() != basic(c) {
					t.Errorf("token %q, told %q", token, told.Load())
				}
				return
			}
			if err != nil {
				err = repo.error(err)
			}
			expect(t, err, ctrmodel.FailedPrecondition, "certificate")
			if got := told.Load(); got != nil {
				t.Errorf("told %q", got)
			}
		})
	}
}

func TestWhereARegistrySendsOnToIsNotToldWhoAsks(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	strange := func(t *testing.T, r *http.Request) {
		asked.Add(1)
		if a := r.Header.Get("Authorization"); a != "" {
			t.Errorf("%s is told %q", r.URL, a)
		}
	}
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(`{"token":"good"}`)) }))
	defer tokens.Close()
	c := Credentials{user, password}
	for _, test := range []struct{ name, challenge, want string }{
		{"password", `Basic realm="x"`, basic(c)},
		{"token", `Bearer realm="` + elsewhere(tokens) + `"`, "Bearer good"},
	} {
		t.Run(test.name, func(t *testing.T) {
			asked.Store(0)
			thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				t.Error("a strange server has the password asked for")
				strange(t, r)
			}))
			defer thief.Close()
			other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				strange(t, r)
				w.Header().Set("Content-Type", v1.MediaTypeImageIndex)
				switch r.URL.Path {
				case "/first":
					w.Header().Set("Link", "</second>; rel=next")
				case "/second":
					w.Header()["Www-Authenticate"] = []string{"Basic", `Bearer realm="` + elsewhere(thief) + `"`}
					w.WriteHeader(401)
				}
				w.Write([]byte(`{"schemaVersion":2,"manifests":[],"tags":[]}`))
			}))
			defer other.Close()
			ask := asking(&test.want, test.challenge)
			registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != test.want || strings.Contains(r.URL.Path, "/manifests/") {
					ask(w, r)
					return
				}
				to := "/first"
				if strings.Contains(r.URL.Path, "/blobs/") {
					to = "/second"
				}
				http.Redirect(w, r, elsewhere(other)+to, http.StatusTemporaryRedirect)
			}))
			defer registry.Close()
			host := strings.TrimPrefix(registry.URL, "http://")
			s := must(New(Config{Registries: map[string]Registry{host: {Credentials: c}}}))(t)
			repo := must(s.connect(t.Context(), must(parseRef(host+"/app:1"))(t)))(t)
			defer repo.close()
			image, _, err := repo.root(t.Context())
			ok(t, err)
			_, fetched := repo.open(t.Context(), v1.Descriptor{Digest: image.Digest, Size: 2}, 0)
			for _, err := range []error{
				fetched,
				repo.oras().Referrers(t.Context(), image, "", func([]v1.Descriptor) error { return nil }),
				repo.oras().Tags(t.Context(), "", func([]string) error { return nil }),
			} {
				if err != nil {
					err = repo.error(err)
				}
				expect(t, err, ctrmodel.Unauthenticated)
			}
			if n := asked.Load(); n != 5 {
				t.Errorf("the other server was asked %d times", n)
			}
			_, _, err = repo.root(t.Context()) // still known here
			ok(t, err)
		})
	}
}

func TestARegistryDoesNotSendOnFromHTTPSToHTTP(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("asked by HTTP") }))
	defer other.Close()
	registry := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		http.Redirect(w, r, elsewhere(other), http.StatusTemporaryRedirect)
	}
	host := serveBoth(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(400) }, registry)
	err := root(t, Config{Insecure: []string{host}}, host)
	if err == nil || !strings.Contains(err.Error(), "redirect refused") {
		t.Errorf("error %v", err)
	}
}

func TestATokenThatIsOverIsReplaced(t *testing.T) {
	t.Parallel()
	given, want := 0, "Bearer before"
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		given++
		want = fmt.Sprint("Bearer t", given)
		fmt.Fprintf(w, `{"token":"t%d"}`, given)
	}))
	defer tokens.Close()
	r := httptest.NewServer(asking(&want, `Bearer realm="`+elsewhere(tokens)+`"`))
	defer r.Close()
	s := must(New(Config{}))(t)
	repo := must(s.connect(t.Context(), must(parseRef(strings.TrimPrefix(r.URL, "http://")+"/app:1"))(t)))(t)
	defer repo.close()
	ask := func(tokens int) {
		t.Helper()
		_, _, err := repo.root(t.Context())
		ok(t, err)
		if given != tokens {
			t.Errorf("%d tokens, expected %d", given, tokens)
		}
	}
	ask(1)
	ask(1)
	want = "Bearer another"
	ask(2)
}

func TestParametersOfAChallenge(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]map[string]string{
		"":                    {},
		"x":                   {},
		`realm="a b"`:         {"realm": "a b"},
		`Realm = a,b="c,\"d"`: {"realm": "a", "b": `c,"d`},
		`realm="",service="s`: {"realm": ""},
		`a="\\",b=c d=e ,`:    {"a": `\`, "b": "c", "d": "e"},
	} {
		if got := parameters(text); !maps.Equal(got, want) {
			t.Errorf("%s: %q, expected %q", text, got, want)
		}
	}
}
