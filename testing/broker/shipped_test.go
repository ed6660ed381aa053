// SPDX-License-Identifier: Apache-2.0

package broker_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sdvbox/testing/broker"
)

// shipped is a broker with the vehicle's own configuration, at addresses of its own.
type shipped struct {
	*broker.Broker
	tb      testing.TB
	config  string // directory with the configuration, and one more user: tester
	network string // address of the network listener
	secrets string
}

// tester may say and hear everything, so that each right of the others can be tried.
const tester = "tester"

func startShipped(t *testing.T) shipped {
	t.Helper()
	for _, name := range []string{"mosquitto_passwd", "openssl"} {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("SDVBOX_REQUIRE") == "1" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	dir := t.TempDir()
	s := shipped{tb: t, config: filepath.Join(dir, "etc"), secrets: filepath.Join(dir, "secrets"), network: broker.FreeAddr(t, "127.0.0.1")}
	run, data := filepath.Join(dir, "run"), filepath.Join(dir, "data")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(s.config, name))
		must(err)
		return string(text)
	}
	must(os.CopyFS(s.config, os.DirFS("../../meta-layer/recipes-connectivity/mosquitto/files/etc/mosquitto")))
	must(os.WriteFile(filepath.Join(s.config, "acl"), []byte(read("acl")+"\nuser tester\ntopic readwrite #\n"), 0o600))
	must(os.Mkdir(data, 0o700))
	s.setup(run)
	s.Broker = broker.Start(t, broker.Options{Whole: func(addr string) string {
		listener := func(addr string) string {
			host, port, _ := strings.Cut(addr, ":")
			return "listener " + port + " " + host
		}
		text := replace(t, read("mosquitto.conf"), map[string]string{
			"/data/mosquitto/":                  data + "/",
			"/run/sdvbox-broker/":               run + "/",
			"include_dir /etc/mosquitto/conf.d": "",
		}) + replace(t, read("conf.d/device.conf"), map[string]string{
			"listener 1883 127.0.0.1": listener(addr),
		}) + replace(t, read("conf.d/network.conf"), map[string]string{
			"listener 8883":       listener(s.network),
			"/run/sdvbox-broker/": run + "/",
		})
		if os.Geteuid() == 0 {
			text += "user root\n" // else it changes to a user who may not read the test's files
		}
		return text
	}})
	return s
}

// setup does what happens before each start of mosquitto, or makes a client's certificate.
func (s shipped) setup(run string, args ...string) {
	s.tb.Helper()
	cmd := exec.Command("../../meta-layer/recipes-connectivity/mosquitto/files/usr/lib/sdvbox/broker-setup", args...)
	cmd.Env = append(os.Environ(), "SECRETS="+s.secrets, "RUN="+run, "CONFIG="+s.config)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.tb.Fatalf("broker-setup: %v\n%s", err, out)
	}
}

func replace(t *testing.T, text string, pairs map[string]string) string {
	t.Helper()
	for from, to := range pairs {
		if !strings.Contains(text, from) {
			t.Fatalf("the configuration has no %q:\n%s", from, text)
		}
		text = strings.ReplaceAll(text, from, to)
	}
	return text
}

// local is the login of a user on the device itself; without a name it is anybody.
func (s shipped) local(user string) broker.Login {
	s.tb.Helper()
	if user == anonymous {
		return broker.Login{Addr: s.Addr}
	}
	password, err := os.ReadFile(filepath.Join(s.secrets, user))
	if err != nil {
		s.tb.Fatal(err)
	}
	return broker.Login{Addr: s.Addr, User: user, Password: strings.TrimSpace(string(password))}
}

// remote is the login of a user on another machine.
func (s shipped) remote(user string) broker.Login {
	s.tb.Helper()
	s.setup("", "client", user)
	file := filepath.Join(s.secrets, user)
	pair, err := tls.LoadX509KeyPair(file+".crt", file+".key")
	if err != nil {
		s.tb.Fatal(err)
	}
	return broker.Login{Addr: s.network, TLS: s.trusting(pair)}
}

// trusting returns what a client needs to know that it talks to this broker.
func (s shipped) trusting(pairs ...tls.Certificate) *tls.Config {
	s.tb.Helper()
	pem, err := os.ReadFile(filepath.Join(s.secrets, "ca.crt"))
	if err != nil {
		s.tb.Fatal(err)
	}
	c := &tls.Config{RootCAs: x509.NewCertPool(), Certificates: pairs}
	c.RootCAs.AppendCertsFromPEM(pem)
	return c
}

const (
	technician = "technician"
	anonymous  = "" // on the device itself
)

// rights say who may publish and who may hear what. The technician and whoever is on the device hear everything.
var rights = []struct {
	topic         string
	writes, reads []string
}{
	{"vehicleupdate/desiredstate", drivers, manager},
	{"vehicleupdate/desiredstate/command", drivers, manager},
	{"vehicleupdate/currentstate/get", drivers, manager},
	{"vehicleupdate/desiredstatefeedback", manager, []string{"backend", "cloud-connector", "hmi"}},
	{"vehicleupdate/currentstate", manager, []string{"backend", "cloud-connector", "hmi"}},
	{"vehicleupdate/ownerconsent", manager, []string{"hmi"}},
	{"vehicleupdate/ownerconsentfeedback", []string{"hmi"}, manager},
	{"vehicleupdate/safetoreboot", []string{"vehicle-state"}, []string{"update-manager", "vehicle-state"}},

	{"selfupdate/desiredstate", byHand, []string{"self-update-agent"}},
	{"selfupdate/desiredstate/command", byHand, []string{"self-update-agent"}},
	{"selfupdate/currentstate/get", byHand, []string{"self-update-agent"}},
	{"selfupdate/desiredstatefeedback", []string{"self-update-agent"}, manager},
	{"selfupdate/currentstate", []string{"self-update-agent"}, manager},

	{"containersupdate/desiredstate", byHand, []string{"container-agent"}},
	{"containersupdate/desiredstate/command", byHand, []string{"container-agent"}},
	{"containersupdate/currentstate/get", byHand, []string{"container-agent"}},
	{"containersupdate/desiredstatefeedback", []string{"container-agent"}, manager},
	{"containersupdate/currentstate", []string{"container-agent"}, manager},

	{"edge/thing/request", []string{"update-manager", "container-agent", technician, anonymous}, []string{"cloud-connector"}},
	{"edge/thing/response", []string{"cloud-connector", technician, anonymous}, []string{"update-manager", "container-agent"}},
	{"edge/connection/remote/status", []string{"cloud-connector"}, nil},
	{"command///req/1/apply", []string{"cloud-connector", technician, anonymous}, []string{"update-manager", "container-agent"}},
	{"command//ns:name:edge:containers/req/1/apply", []string{"cloud-connector", technician, anonymous}, []string{"container-agent"}},
	{"command///res/1/204", []string{"update-manager", "container-agent"}, []string{"cloud-connector"}},
	{"command//ns:name:edge:containers/res/1/204", []string{"container-agent"}, []string{"cloud-connector"}},
	{"c//ns:name/q/1/apply", []string{"cloud-connector"}, nil},
	{"e", []string{"update-manager", "container-agent"}, []string{"cloud-connector"}},
	{"e/tenant/ns:name", []string{"container-agent"}, []string{"cloud-connector"}},

	{"vehicleupdate", nil, nil},
	{"vehicleupdate/currentstate/get/more", nil, nil},
	{"somethingelse", nil, nil},
	{"c//ns:name/s/1/204", nil, []string{"cloud-connector"}},
	{"event/tenant/thing", nil, []string{"cloud-connector"}},
	{"telemetry/tenant/thing", nil, []string{"cloud-connector"}},
	{"t/tenant/thing", nil, []string{"cloud-connector"}},
}

var (
	manager = []string{"update-manager"}
	drivers = []string{"backend", "cloud-connector", technician, anonymous}
	byHand  = []string{"update-manager", technician, anonymous}
)

// roles are all users of the shipped access list, and those without a name.
func (s shipped) roles() []string {
	entries, err := os.ReadDir(s.secrets)
	if err != nil {
		s.tb.Fatal(err)
	}
	roles := []string{anonymous}
	for _, e := range entries {
		if !strings.Contains(e.Name(), ".") && e.Name() != tester {
			roles = append(roles, e.Name())
		}
	}
	return roles
}

// logins are those of the roles, on the device and from elsewhere.
func (s shipped) logins() map[string][]broker.Login {
	logins := map[string][]broker.Login{}
	for _, role := range s.roles() {
		logins[role] = append(logins[role], s.local(role))
		if role != anonymous {
			logins[role] = append(logins[role], s.remote(role))
		}
	}
	return logins
}

func TestEachRoleSaysWhatItNeedsAndNothingElse(t *testing.T) {
	s := startShipped(t)
	all := broker.Connect(t, s.local(tester), "#")
	want := map[string][]string{}
	for role, logins := range s.logins() {
		for _, login := range logins {
			c := broker.Connect(t, login)
			for _, r := range rights {
				c.Publish(r.topic, role)
				if slices.Contains(r.writes, role) {
					want[role] = append(want[role], r.topic)
				}
			}
		}
	}
	broker.Connect(t, s.local(tester)).Publish("end", "")
	got := map[string][]string{}
	for m := all.Next(5 * time.Second); m.Topic != "end"; m = all.Next(5 * time.Second) {
		got[m.Payload] = append(got[m.Payload], m.Topic)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("who says what (-want +got):\n%s", diff)
	}
}

func TestEachRoleHearsWhatItNeedsAndNothingElse(t *testing.T) {
	s := startShipped(t)
	c := broker.Connect(t, s.local(tester))
	for role, logins := range s.logins() {
		for _, login := range logins {
			hears := broker.Connect(t, login, "#")
			var want []string
			for _, r := range rights {
				c.Publish(r.topic, "")
				if slices.Contains(append([]string{technician, anonymous}, r.reads...), role) {
					want = append(want, r.topic)
				}
			}
			// The broker forwards in order, so what comes after the last one would have come before its repetition.
			c.Publish(want[len(want)-1], "end")
			var got []string
			for m := hears.Next(5 * time.Second); m.Payload != "end"; m = hears.Next(5 * time.Second) {
				got = append(got, m.Topic)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%q at %s hears (-want +got):\n%s", role, login.Addr, diff)
			}
		}
	}
}

func TestNobodyGetsInWithoutCertificateOrWithAWrongPassword(t *testing.T) {
	s, other := startShipped(t), startShipped(t)
	good := s.remote(technician)
	if err := good.Try(); err != nil {
		t.Fatalf("with a certificate: %v", err)
	}
	password := s.local(technician)
	for what, l := range map[string]broker.Login{
		"without a certificate":                     {Addr: s.network, TLS: s.trusting()},
		"with a password instead":                   {Addr: s.network, TLS: s.trusting(), User: technician, Password: password.Password},
		"with the certificate of another vehicle":   {Addr: s.network, TLS: s.trusting(other.remote(technician).TLS.Certificates...)},
		"without encryption":                        {Addr: s.network, User: technician, Password: password.Password},
		"by those who expect another vehicle":       {Addr: s.network, TLS: other.trusting(good.TLS.Certificates...)},
		"on the device, with a wrong password":      {Addr: s.Addr, User: technician, Password: "wrong"},
		"on the device, without a password":         {Addr: s.Addr, User: technician},
		"on the device, as somebody unknown":        {Addr: s.Addr, User: "stranger", Password: password.Password},
		"on the device, with a password of another": {Addr: s.Addr, User: "hmi", Password: password.Password},
	} {
		if l.Try() == nil {
			t.Errorf("the broker can be entered %s", what)
		}
	}
}

func TestMessagesWaitForAClientThatIsAway(t *testing.T) {
	s := startShipped(t)
	login := s.local("self-update-agent")
	login.Session = "self-update-agent"
	broker.Connect(t, login, "selfupdate/desiredstate").Leave()
	broker.Connect(t, s.local(anonymous)).Publish("selfupdate/desiredstate", "before")
	s.Restart()
	broker.Connect(t, s.local(anonymous)).Publish("selfupdate/desiredstate", "after")
	c := broker.Connect(t, login)
	for _, want := range []string{"before", "after"} {
		if m := c.Next(5 * time.Second); m.Payload != want {
			t.Errorf("%q comes, expected %q", m.Payload, want)
		}
	}
}

// The names of the settings are the daemons' own; the drop-ins have to know them.
func TestTheDaemonsGetInAsTheirDropInsSay(t *testing.T) {
	s := startShipped(t)
	box := filepath.Join(t.TempDir(), "sdvbox")
	if out, err := exec.Command("go", "build", "-o", box, "../..").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	dir := t.TempDir()
	for name, d := range map[string]struct {
		prefix string
		args   []string
	}{
		"self-update-agent": {"selfupdate", []string{"--state-dir", dir + "/s", "--server", "tcp://" + s.Addr, "--installer", "dummy"}},
		"update-manager": {"vehicleupdate", []string{"--state-dir", dir + "/u", "--mqtt-conn-broker", "tcp://" + s.Addr,
			"--cfg-file", "../../applets/update-manager/etc/update-manager/config.json", "--control-socket", dir + "/u.sock"}},
		"container-agent": {"containersupdate", []string{"--ua-enable", "--conn-broker-url", "tcp://" + s.Addr, "--ccl-ap", dir + "/containerd.sock",
			"--cm-home-dir", dir + "/c", "--cm-state-dir", dir + "/c", "--cm-exec-root-dir", dir + "/c", "--ccl-home-dir", dir + "/c", "--ccl-exec-root-dir", dir + "/c",
			"--net-exec-root-dir", dir + "/c", "--grpc-serv-ap", dir + "/c.sock", "--deployment-enable=false"}},
	} {
		text, err := os.ReadFile("../../meta-layer/recipes-connectivity/mosquitto/files/usr/lib/systemd/system/" + name + ".service.d/broker.conf")
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		daemon := exec.Command(box, append([]string{name}, d.args...)...)
		daemon.Env = os.Environ()
		for line := range strings.Lines(strings.ReplaceAll(string(text), "/data/sdvbox/mqtt", s.secrets)) {
			if vars, ok := strings.CutPrefix(line, "Environment="); ok {
				daemon.Env = append(daemon.Env, strings.Fields(vars)...)
			}
			if args, ok := strings.CutPrefix(line, "ExecStart=/usr/bin/"+name+" "); ok {
				daemon.Args = append(daemon.Args, strings.Fields(args)...)
			}
		}
		daemon.Stdout, daemon.Stderr = &out, &out
		if err := daemon.Start(); err != nil {
			t.Fatal(err)
		}
		technician := broker.Connect(t, s.local(anonymous), d.prefix+"/desiredstatefeedback")
		answered := false
		for begin := time.Now(); !answered && time.Since(begin) < 10*time.Second; {
			technician.Publish(d.prefix+"/desiredstate", `{"activityId":"x","payload":{"domains":7}}`)
			select {
			case <-technician.Messages():
				answered = true
			case <-time.After(200 * time.Millisecond):
			}
		}
		daemon.Process.Signal(os.Interrupt)
		daemon.Wait()
		if !answered {
			t.Errorf("%s does not answer:\n%s", name, &out)
		}
	}
}

// What agents retain has to survive the broker, whose access list decides again when it delivers.
func TestRetainedStateSurvivesARestartOfTheBroker(t *testing.T) {
	s := startShipped(t)
	broker.Connect(t, s.local("self-update-agent")).Retain("selfupdate/currentstate", "local")
	broker.Connect(t, s.remote("container-agent")).Retain("containersupdate/currentstate", "remote")
	s.Restart()
	c := broker.Connect(t, s.local("update-manager"), "selfupdate/currentstate", "containersupdate/currentstate")
	got := []string{c.Next(5 * time.Second).Payload, c.Next(5 * time.Second).Payload}
	if slices.Sort(got); !slices.Equal(got, []string{"local", "remote"}) {
		t.Errorf("retained: %q", got)
	}
}

func TestSetupMakesSecretsOnceAndForRootOnly(t *testing.T) {
	s := startShipped(t)
	before := s.files(s.secrets)
	own := filepath.Join(s.secrets, "hmi")
	if err := os.WriteFile(own, []byte("chosen by the integrator\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	lost := filepath.Join(s.secrets, "backend")
	if err := os.Truncate(lost, 0); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(t.TempDir(), "run")
	s.setup(run)
	after := s.files(s.secrets)
	for name, text := range before {
		changed := !bytes.Equal(text, after[name])
		if changed != (name == "backend" || name == "hmi") {
			t.Errorf("%s: changed: %t", name, changed)
		}
	}
	if len(before["backend"]) < 30 || len(after["backend"]) < 30 || len(after) != len(before) {
		t.Errorf("before: %q\nafter: %q", before, after)
	}
	if string(after["hmi"]) != "chosen by the integrator\n" {
		t.Errorf("hmi: %q", after["hmi"])
	}
	for name, text := range s.files(run) {
		for role, secret := range after {
			if !strings.Contains(role, ".") && bytes.Contains(text, bytes.TrimSpace(secret)) {
				t.Errorf("%s has the password of %s", name, role)
			}
		}
	}
}

// files returns what is in a directory; nobody but the owner may read it.
func (s shipped) files(dir string) map[string][]byte {
	s.tb.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		s.tb.Fatal(err)
	}
	files := map[string][]byte{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			s.tb.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			s.tb.Errorf("%s: %s", e.Name(), info.Mode())
		}
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			s.tb.Fatal(err)
		}
	}
	return files
}
