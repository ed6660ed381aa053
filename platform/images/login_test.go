// SPDX-License-Identifier: Apache-2.0

package images

import (
	"encoding/pem"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
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
	tokens := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("asked by HTTP") }))
	defer tokens.Close()
	want := "Bearer t"
	r := httptest.NewTLSServer(asking(&want, `Bearer realm="`+elsewhere(tokens)+`"`))
	defer r.Close()
	ca := t.TempDir() + "/ca.crt"
	ok(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw}), 0o600))
	host := strings.TrimPrefix(r.URL, "https://")
	err := root(t, Config{Registries: map[string]Registry{host: {Credentials{user, password}, Transport{RootCA: ca}}}}, host)
	expect(t, err, ctrmodel.FailedPrecondition, "not HTTPS")
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
