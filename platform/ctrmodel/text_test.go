// SPDX-License-Identifier: Apache-2.0

package ctrmodel

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"1k": 1024, "1K": 1024, "64M": 64 << 20, "2g": 2 << 30, "2 G": 2 << 30, "1.5m": 3 << 19, "0.5k": 512, "0k": 0, "8589934591g": 8589934591 << 30,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "k", " k", "1", "1b", "1kb", "-1k", "+1k", "1.k", ".5k", "1e3k", "0x1k", "1_0k", "1  k", " 1k", "1.2.3k", "infk", "nank", "1,5k", "8589934592g", strings.Repeat("9", 400) + "g"} {
		_, err := ParseSize(text)
		if err == nil {
			t.Errorf("%q is a size", text)
		} else {
			wantError(t, text, err, "size")
		}
	}
}

// A text is read by parse; then it is the string it is given back as, the same if that is empty.
type form struct{ text, back, err string }

func testForms[T fmt.Stringer](t *testing.T, parse func(string) (T, error), forms []form) {
	t.Helper()
	for _, form := range forms {
		v, err := parse(form.text)
		wantError(t, form.text, err, form.err)
		if form.back == "" {
			form.back = form.text
		}
		if err != nil || form.err != "" {
			continue
		}
		if v.String() != form.back {
			t.Errorf("%s: got %s, want %s", form.text, v, form.back)
		}
		if again, err := parse(v.String()); err != nil || !cmp.Equal(again, v) {
			t.Errorf("%s: read again it is %+v, %v, want %+v", form.text, again, err, v)
		}
	}
}

func TestDevicesAsText(t *testing.T) {
	testForms(t, ParseDevice, []form{
		{text: "/dev/a:/dev/b:rm"},
		{text: "/dev/a:/dev/b", back: "/dev/a:/dev/b:rwm"},
		{text: "/dev/a", back: "/dev/a:/dev/a:rwm"},
		{text: "", err: "expected HOST:CONTAINER"},
		{text: "bad", err: "expected an absolute path"},
		{text: "dev/a:/dev/b", err: "expected an absolute path"},
		{text: ":/dev/b", err: "expected HOST:CONTAINER"},
		{text: "/dev/a:/dev/b:", err: "expected HOST:CONTAINER"},
		{text: "/dev/a:/dev/b:r:w", err: "expected HOST:CONTAINER"},
		{text: "/dev/a:/dev/b:rwx", err: `permissions "rwx"`},
		{text: "/dev/a:/dev/b:rwmr", err: `permissions "rwmr"`},
	})
}

func TestMountsAsText(t *testing.T) {
	testForms(t, ParseMount, []form{
		{text: "/a:/b:rshared"},
		{text: "/a:/b", back: "/a:/b:rprivate"},
		{text: "/a:/b:ro", back: "/a:/b:rprivate,ro"},
		{text: "/a:/b:ro,slave", back: "/a:/b:slave,ro"},
		{text: "/a", err: "expected SOURCE:DESTINATION"},
		{text: "a:/b", err: "expected an absolute path"},
		{text: "/a:", err: "expected SOURCE:DESTINATION"},
		{text: "/a:/b:", err: "expected SOURCE:DESTINATION"},
		{text: "/a:/b:ro:ro", err: "expected SOURCE:DESTINATION"},
		{text: "/a:/b:rw", err: `mode "rw", expected ro or one of rprivate`},
		{text: "/a:/b:ro,", err: `mode "", expected ro or one of`},
	})
}

func TestPortsAsText(t *testing.T) {
	testForms(t, ParsePort, []form{
		{text: "8080:80/udp"},
		{text: "8080:80", back: "8080:80/tcp"},
		{text: "8080-8090:80/tcp"},
		{text: "8080-8080:80", back: "8080:80/tcp"},
		{text: "127.0.0.1:1-65535:80/sctp"},
		{text: "0.0.0.0:8080:80", back: "8080:80/tcp"},
		{text: "[::1]:8080:80/tcp"},
		{text: "", err: "expected [IP:]HOST"},
		{text: "80", err: "expected [IP:]HOST"},
		{text: "::1:8080:80", err: "expected [IP:]HOST"},
		{text: ":80", err: `"" is not a port`},
		{text: "80:", err: `"" is not a port`},
		{text: ":80:80", err: "not an IP address"},
		{text: "[]:80:80", err: "not an IP address"},
		{text: "host:80:80", err: `"host" is not an IP address`},
		{text: "0:80", err: "port of the host is missing"},
		{text: "80:0", err: "port in the container is missing"},
		{text: "65536:80", err: `"65536" is not a port`},
		{text: "-1:80", err: "is not a port"},
		{text: "+1:80", err: "is not a port"},
		{text: "9-8:80", err: "ends at 8"},
		{text: "9-:80", err: `"" is not a port`},
		{text: "80:80/", err: `protocol ""`},
		{text: "80:80/TCP", err: `protocol "TCP"`},
	})
}

func TestExtraHostsAsText(t *testing.T) {
	for _, test := range []struct{ text, name, value, err string }{
		{"broker:1.2.3.4", "broker", "1.2.3.4", ""},
		{"broker:host_ip", "broker", "host_ip", ""},
		{"broker:host_ip_br-0.1", "broker", "host_ip_br-0.1", ""},
		{"a.b:container_db-host", "a.b", "container_db-host", ""},
		{"six:fd00::1", "six", "fd00::1", ""},
		{"six:[fd00::1]", "six", "fd00::1", ""},
		{"later:something", "later", "something", ""},
		{"a", "", "", "expected NAME:VALUE"},
		{"a:", "", "", "expected NAME:VALUE"},
		{":1.2.3.4", "", "", "expected NAME:VALUE"},
		{"a b:1.2.3.4", "", "", "expected NAME:VALUE"},
		{"a:1.2.3.4\n5.6.7.8 b", "", "", "is not an IP address"},
		{"a:b:c", "", "", "is not an IP address"},
	} {
		name, value, err := ParseExtraHost(test.text)
		wantError(t, test.text, err, test.err)
		if name != test.name || value != test.value {
			t.Errorf("%s: got %q and %q, want %q and %q", test.text, name, value, test.name, test.value)
		}
	}
}

func TestSignalsAsText(t *testing.T) {
	for text, want := range map[string]syscall.Signal{
		"": syscall.SIGTERM, "SIGKILL": syscall.SIGKILL, "HUP": syscall.SIGHUP, "sigusr1": syscall.SIGUSR1, "34": 34,
	} {
		if got, err := ParseSignal(text); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
}

func TestLaterEnvironmentWins(t *testing.T) {
	image := []string{"PATH=/bin", "HOME=/root", "A=1", "A=2"}
	for _, test := range []struct{ own, want []string }{
		{nil, []string{"PATH=/bin", "HOME=/root", "A=2"}},
		{[]string{"HOME=/home", "B=b=c"}, []string{"PATH=/bin", "HOME=/home", "A=2", "B=b=c"}},
		{[]string{"HOME="}, []string{"PATH=/bin", "HOME=", "A=2"}},
		{[]string{"A", "HOME", "C"}, []string{"PATH=/bin"}},
		{[]string{"A", "A=3"}, []string{"PATH=/bin", "HOME=/root", "A=3"}},
		{[]string{"PAT"}, []string{"PATH=/bin", "HOME=/root", "A=2"}},
	} {
		if got := Environment(image, test.own); !slices.Equal(got, test.want) {
			t.Errorf("%q: got %q, want %q", test.own, got, test.want)
		}
	}
}

func FuzzText(f *testing.F) {
	for _, text := range []string{"[::1]:1-2:80/udp", "/a:/b:ro,shared", "/dev/a:/b:rw", "a:host_ip", "1.5 G", "SIGTERM"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := ParsePort(text); err == nil {
			same(t, p, ParsePort)
		}
		if m, err := ParseMount(text); err == nil {
			same(t, m, ParseMount)
		}
		if d, err := ParseDevice(text); err == nil {
			same(t, d, ParseDevice)
		}
		if n, err := ParseSize(text); err == nil && n < 0 {
			t.Errorf("%q: size %d", text, n)
		}
		if name, value, err := ParseExtraHost(text); err == nil && strings.ContainsAny(name+value, " \t\n#") {
			t.Errorf("%q: %q and %q in a hosts file", text, name, value)
		}
		if err := errors.Join(validateID(text), ValidateName(text)); err == nil && strings.ContainsAny(text, "/\x00 \n") {
			t.Errorf("%q is an id", text)
		}
		_, _ = ParseSignal(text)
		_ = double(text)
	})
}

func same[T interface {
	comparable
	fmt.Stringer
}](t *testing.T, v T, parse func(string) (T, error)) {
	if again, err := parse(v.String()); err != nil || again != v {
		t.Errorf("%+v as text is %q, that is %+v, %v", v, v, again, err)
	}
}
