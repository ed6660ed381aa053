// SPDX-License-Identifier: Apache-2.0

package containeragent

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sdvbox/platform/applet"
	"sdvbox/platform/config"
	"sdvbox/platform/images"
)

// configure loads what a file, unless it is empty, and arguments say.
func configure(t *testing.T, file string, args ...string) (s settings, warnings string, code int, output string) {
	t.Helper()
	if file != "" {
		path := filepath.Join(t.TempDir(), "c.json")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--cfg-file", path) // at any position
	}
	command := Command()
	command.Run = func(_ context.Context, c *applet.Call) error {
		var err error
		var f *config.File
		if s, f, err = load(c); err != nil {
			return err
		}
		for _, w := range f.Warnings {
			if w.File != "" {
				w.File = filepath.Base(w.File)
			}
			warnings += w.String() + "\n"
		}
		return err
	}
	var out bytes.Buffer
	code = applet.Main([]applet.Command{command}, append([]string{name}, args...), nil, &out, &out)
	return s, warnings, code, out.String()
}

func TestConfigurationOfLedaIsUnderstood(t *testing.T) {
	s, warnings, code, output := configure(t, `{
		"manager": {"default_ctrs_stop_timeout": 5}, "log": {"log_file": "/var/log/cm.log"}, "things": {"enable": false},
		"update_agent": {"enable": true, "system_containers": ["sua"], "verbose_inventory_report": false}}`)
	if code != 0 || output != "" || warnings != "" {
		t.Fatalf("exit code %d, %q, %q", code, warnings, output)
	}
	want := defaults()
	want.Manager.StopTimeout, want.Log.File = seconds(5*time.Second), "/var/log/cm.log"
	want.Things.Enable = false
	want.UpdateAgent.Enable, want.UpdateAgent.System = true, list{"sua"}
	if diff := cmp.Diff(want, s, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestFileAndFlagsSetWhatTheyName(t *testing.T) {
	for _, test := range []struct {
		file, args string
		want       func(*settings)
	}{
		{`{}`, "", func(*settings) {}},
		{`{"manager":{"default_ctrs_stop_timeout":"7"}}`, "", func(s *settings) { s.Manager.StopTimeout = seconds(7 * time.Second) }},
		{`{"manager":{"default_ctrs_stop_timeout":"1m"}}`, "--cm-deflt-ctrs-stop-timeout 90", func(s *settings) { s.Manager.StopTimeout = seconds(90 * time.Second) }},
		{`{"containers":{"insecure_registries":["a:1"],"image_expiry":"24h","disk_reserve":"1g"}}`, "",
			func(s *settings) {
				s.Containers.Insecure, s.Containers.Expiry, s.Containers.Reserve = list{"a:1"}, duration(24*time.Hour), 1<<30
			}},
		{`{"containers":{"insecure_registries":["a:1"]}}`, "--ccl-insecure-registries b,c:2", func(s *settings) { s.Containers.Insecure = list{"b", "c:2"} }},
		{`{"containers":{"registry_configurations":{"r.example:5000":{"credentials":{"user_id":"bob","password":"secret"},
			"transport":{"root_ca":"/a.crt","client_cert":"/c.cert","client_key":"/c.key"}}}}}`, "", func(s *settings) {
			s.Containers.Registries = map[string]images.Registry{"r.example:5000": {
				Credentials: images.Credentials{UserID: "bob", Password: "secret"},
				Transport:   images.Transport{RootCA: "/a.crt", ClientCert: "/c.cert", ClientKey: "/c.key"}}}
		}},
		{`{"containers":{"image_verifier_type":"notation","image_verifier_config":{"configDir":"/n"}}}`, "", func(s *settings) {
			s.Containers.Verifier, s.Containers.VerifierSetup = "notation", pairs{"configDir": "/n"}
		}},
		{`{}`, "--ccl-image-verifier-config configDir=/n,libexecDir=/l", func(s *settings) { s.Containers.VerifierSetup = pairs{"configDir": "/n", "libexecDir": "/l"} }},
		{`{"network":{"default_bridge":{"name":"br","mtu":1400,"icc":false}}}`, "--net-br-icc --net-br-ipmasq=false -net-br-ip4=172.20.0.1/16", func(s *settings) {
			b := &s.Network.Bridge
			b.Name, b.MTU, b.Masq, b.IP4 = "br", 1400, false, "172.20.0.1/16"
		}},
		{`{"deployment":{"mode":"init","ctr_dir":"/c","manifest_dirs":[],"period":"0s"}}`, "--deployment-image-dirs /a,/b", func(s *settings) {
			s.Deployment.Mode, s.Deployment.Dir, s.Deployment.Manifests, s.Deployment.Period = "init", "/c", list{}, 0
			s.Deployment.Archives = list{"/a", "/b"}
		}},
		{`{"grpc_server":{"protocol":"tcp","address_path":"127.0.0.1:1"}}`, "--log-level DEBUG", func(s *settings) {
			s.GRPC.Protocol, s.GRPC.Address, s.Log.Level = "tcp", "127.0.0.1:1", "DEBUG"
		}},
		{`{"things":{"features":["Metrics"]},"connection":{"broker_url":"mqtts://b:1","keep_alive":"5s","transport":{"root_ca":"/ca"}}}`, "--ua-domain d", func(s *settings) {
			s.Things.Features, s.Connection.Broker, s.Connection.KeepAlive, s.UpdateAgent.Domain = list{"Metrics"}, "mqtts://b:1", duration(5*time.Second), "d"
			s.Connection.Transport.RootCA = "/ca"
		}},
	} {
		got, warnings, code, output := configure(t, test.file, strings.Fields(test.args)...)
		want := defaults()
		test.want(&want)
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" || code != 0 || warnings != "" || output != "" {
			t.Errorf("%s %s: exit code %d, %s%s(-want +got):\n%s", test.file, test.args, code, warnings, output, diff)
		}
	}
}

func TestOddConfigurationIsReportedAndMadeGood(t *testing.T) {
	for _, test := range []struct{ file, warnings string }{
		{`{"update_agent":{"verbose_inventory":true}}`, "c.json:1: update_agent.verbose_inventory: unknown key\n"},
		{`{"manager":{"default_ctrs_stop_timeout":"soon"}}`,
			"c.json:1: manager.default_ctrs_stop_timeout: \"soon\": expected a duration such as \"30s\", or seconds, the default applies\n"},
		{`{"log":{"log_level":"LOUD","log_file_size":-1}}`, "c.json:1: log.log_file_size: negative; the default applies\n" +
			"c.json:1: log.log_level: expected ERROR, WARN, INFO, DEBUG or TRACE; the default applies\n"},
		{`{"deployment":{"mode":"always"},"grpc_server":{"protocol":"udp"},"network":{"type":"macvlan"}}`,
			"c.json:1: deployment.mode: \"always\": expected update or init; the default applies\n" +
				"c.json:1: grpc_server.protocol: \"udp\": expected unix or tcp; the default applies\n" +
				"c.json:1: network.type: \"macvlan\": expected bridge; the default applies\n"},
		{`{"network":{"default_bridge":{"disable":true}}}`, "c.json:1: network.default_bridge.disable: has no effect in this version\n"},
		{`{"things":{"features":["ContainerFactory","SoftwareUpdatable","Metrics","metrics"]}}`,
			"c.json:1: things.features: \"metrics\" is no feature, expected ContainerFactory, SoftwareUpdatable, Metrics\n"},
		{`{"update_agent":{"domain":"a/#"}}`,
			"c.json:1: update_agent.domain: expected a name that can be part of a topic, without + and #; the default applies\n"},
		{`{"grpc_server":{"protocol":"tcp","address_path":"9000"}}`,
			"c.json:1: grpc_server.address_path: \"9000\": expected HOST:PORT; the default applies\n"},
		{`{"containers":{"default_ns":"a/b","runc_runtime":"crun","home_dir":""}}`,
			"c.json:1: containers.default_ns: \"a/b\": expected at most 76 letters, digits, - _ and .; the default applies\n" +
				"c.json:1: containers.home_dir: empty; the default applies\n" +
				"c.json:1: containers.runc_runtime: \"crun\": expected a name such as io.containerd.runc.v2; the default applies\n"},
		{`{"network":{"default_bridge":{"name":"much too long a name","mtu":20,"ip4":"172.17.0.1"}}}`,
			"c.json:1: network.default_bridge.ip4: \"172.17.0.1\": expected an address and bits, as in 172.17.0.1/16; the addresses of the bridge are chosen by the agent\n" +
				"c.json:1: network.default_bridge.mtu: expected 68 to 65535; the default applies\n" +
				"c.json:1: network.default_bridge.name: \"much too long a name\": expected 1 to 15 letters, digits, - _ and .; the default applies\n"},
		{`{"containers":{"image_expiry":744},"connection":{"connect_timeout":"30"}}`,
			"c.json:1: connection.connect_timeout: \"30\": expected a duration with its unit, such as \"30s\", the default applies\n" +
				"c.json:1: containers.image_expiry: \"744\": expected a duration with its unit, such as \"30s\", the default applies\n"},
		{`{"update_agent":{"parallel_downloads":0}}`, "c.json:1: update_agent.parallel_downloads: less than 1; the default applies\n"},
		{`{"containers":{"disk_reserve":5}}`, "c.json:1: containers.disk_reserve: expected a size such as \"64M\", the default applies\n"},
	} {
		got, warnings, code, output := configure(t, test.file)
		if warnings != test.warnings || code != 0 || output != "" {
			t.Errorf("%s: exit code %d, %s%s, want %s", test.file, code, warnings, output, test.warnings)
		}
		want := defaults()
		got.Network.Bridge.Disable = false
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.file, diff)
		}
	}
	const expected = ": expected HOST or HOST:PORT, as images are named with\n"
	if s, warnings, code, _ := configure(t, `{"containers":{"insecure_registries":["http://reg:5000","reg"],"registry_configurations":{"https:reg":{},"reg:5000":{}}}}`); code != 0 ||
		warnings != `c.json:1: containers.insecure_registries: "http://reg:5000"`+expected+`c.json:1: containers.registry_configurations.https:reg: "https:reg"`+expected ||
		len(s.Containers.Insecure) != 2 || len(s.Containers.Registries) != 2 {
		t.Errorf("registries that cannot be: exit code %d, %s%+v", code, warnings, s.Containers)
	}
	if s, warnings, _, _ := configure(t, `{"containers":{"image_verifier_type":"Notation","runc_runtime":"io.containerd.runc.v1"}}`); s.Containers.Verifier != verifyNotation ||
		s.Containers.Runtime != runcRuntime || strings.Count(warnings, "\n") != 2 {
		t.Errorf("verifier %q, runtime %q, %s", s.Containers.Verifier, s.Containers.Runtime, warnings)
	}
	if s, warnings, code, _ := configure(t, `{"update_agent":{"enable":true},"connection":{"broker_url":"wss://b"}}`); code != 0 || s.Things.Enable || s.UpdateAgent.Enable ||
		warnings != "c.json:1: connection: broker \"wss://b\": unknown scheme, expected tcp or mqtts; things and update_agent are off\n" {
		t.Errorf("a broker that cannot be reached: exit code %d, %s", code, warnings)
	}
	if s, warnings, _, _ := configure(t, `{"connection":{"broker_url":"b","client_password":"secret","transport":{"root_ca":"/ca"}}}`); s.bus("id").Validate() != nil ||
		s.Connection.Password != "" || !s.Things.Enable || strings.Count(warnings, "\n") != 3 || strings.Contains(warnings, "secret") {
		t.Errorf("%+v, %s", s.Connection, warnings)
	}
	if _, warnings, code, _ := configure(t, "", "--cfg-file", "/none"); code != 0 || warnings != "/none: not there, the defaults apply\n" {
		t.Errorf("no file: exit code %d, %s", code, warnings)
	}
	if _, warnings, code, _ := configure(t, " \n"); code != 0 || !strings.HasSuffix(warnings, "c.json: empty, the defaults apply\n") {
		t.Errorf("an empty file: exit code %d, %s", code, warnings)
	}
	for file, part := range map[string]string{`{`: "c.json:1: not JSON", `[]`: "expected an object"} {
		if _, _, code, output := configure(t, file); code != 1 || !strings.Contains(output, part) {
			t.Errorf("%s: exit code %d, %s", file, code, output)
		}
	}
}

func TestFileThatIsGoneIsNoneOnlyIfItWasNeverThere(t *testing.T) {
	o := newOptions()
	o.CfgFile = filepath.Join(t.TempDir(), "c.json")
	load := again(&applet.Call{Options: o}, false)
	if _, warnings, err := load(); err != nil || len(warnings) != 1 {
		t.Errorf("none: %v, %v", warnings, err)
	}
	if err := os.WriteFile(o.CfgFile, []byte(`{"containers":{"registry_configurations":{"reg":{}}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, _, err := load(); err != nil || len(s.Containers.Registries) != 1 {
		t.Errorf("one that has come: %v, %v", s.Containers, err)
	}
	if err := os.Remove(o.CfgFile); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, _, err := load(); err == nil || !strings.Contains(err.Error(), o.CfgFile) {
			t.Errorf("one that is gone: %v", err)
		}
	}
}

func TestRegistriesAreAsInNamesOfImages(t *testing.T) {
	for text, want := range map[string]bool{
		"localhost": true, "reg.example:5000": true, "10.0.2.2": true, "10.0.2.2:80": true, "my_reg-1": true, "bücher.example": true, "reg:65535": true,
		"fd00::1": true, "[fd00::1]": true, "[fd00::1]:5000": true, "::1": true,
		"": false, "http://reg:5000": false, "https:reg": false, "reg:5000/": false, "reg/path": false, "a b": false, "a\nb": false, "a\"b": false, " reg": false,
		"reg:": false, ":5000": false, "reg:0": false, "reg:65536": false, "reg:99999999": false, "reg:-1": false, "reg:5000:5000": false, "user@reg": false,
		"*.example": false, "[reg]": false, "[reg]:5000": false, "[10.0.2.2]": false, "[fd00::1": false, "fd00::1]": false, "[fd00::1]:x": false, "[fd00::1]5000": false,
		"fe80::1%eth0": false, "[fe80::1%eth0]:1": false, "[]": false, "[": false,
	} {
		if got := isRegistry(text); got != want {
			t.Errorf("%q: %t", text, got)
		}
	}
}

func TestManifestsAreOldWhenUpdatesHaveTakenOver(t *testing.T) {
	s, file, log := defaults(), filepath.Join(t.TempDir(), "KAD.disabled"), slog.New(slog.DiscardHandler)
	if got := s.manifests(file, log); len(got) != 1 {
		t.Errorf("before: %q", got)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := s.manifests(file, log); len(got) != 0 {
		t.Errorf("after: %q", got)
	}
}

// leaves calls visit for each setting that is no group of others.
func leaves(t reflect.Type, path string, visit func(path string, f reflect.StructField)) {
	for f := range t.Fields() {
		key := strings.TrimPrefix(path+"."+f.Tag.Get("json"), ".")
		if f.Tag.Get("group") != "" {
			leaves(f.Type, key, visit)
		} else {
			visit(key, f)
		}
	}
}

func TestWrongTypesAreReportedByKeyAndFlag(t *testing.T) {
	n := 0
	leaves(reflect.TypeFor[settings](), "", func(path string, f reflect.StructField) {
		n++
		wrong := `{"x":1}`
		if f.Type.Kind() == reflect.Map {
			wrong = `7`
		}
		groups := strings.Split(path, ".")
		s, warnings, code, output := configure(t, `{"`+strings.Join(groups, `":{"`)+`":`+wrong+strings.Repeat("}", len(groups)))
		if diff := cmp.Diff(defaults(), s, cmpopts.EquateEmpty()); diff != "" || code != 0 || !strings.HasPrefix(warnings, "c.json:1: "+path+": ") || !strings.Contains(warnings, "expected ") || strings.Count(warnings, "\n") != 1 {
			t.Errorf("%s: exit code %d, %s%s%s", path, code, warnings, output, diff)
		}
		flag := f.Tag.Get("long")
		if kind := f.Type; flag == "" || kind.Kind() == reflect.String || kind == reflect.TypeFor[list]() {
			return // any text will do
		}
		if _, _, code, output := configure(t, "", "--"+flag+"=?"); code != 2 || !strings.Contains(output, flag) {
			t.Errorf("--%s=?: exit code %d, %s", flag, code, output)
		}
	})
	if n < 60 {
		t.Errorf("only %d settings were found", n)
	}
}

func TestCheckFindsWhatTheAgentFinds(t *testing.T) {
	for _, test := range []struct {
		file string // "" for none
		code int
		out  string
	}{
		{" \n", 3, "empty, the defaults apply"},
		{`{"log":{"level":"INFO"}}`, 3, "log.level: unknown key"},
		{`{`, 1, "not JSON"},
		{``, 1, "there is no configuration file"},
	} {
		path := filepath.Join(t.TempDir(), "c.json")
		if test.file != "" {
			if err := os.WriteFile(path, []byte(test.file), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, args := range [][]string{
			{name, "check-config", "--strict", path},
			{name, "--log-level=DEBUG", "-cfg-file", path, "check-config", "--strict"}, // behind the command line of the service
		} {
			var out bytes.Buffer
			if code := applet.Main([]applet.Command{Command()}, args, nil, &out, &out); code != test.code || !strings.Contains(out.String(), test.out) ||
				!strings.Contains(out.String(), path) {
				t.Errorf("%q, %q: exit code %d, %s", test.file, args, code, &out)
			}
		}
	}
	var out bytes.Buffer
	if code := applet.Main([]applet.Command{Command()}, []string{name, "--cfg-file=a", "check-config", "b"}, nil, &out, &out); code != 2 ||
		!strings.Contains(out.String(), "expected one FILE") {
		t.Errorf("two files: exit code %d, %s", code, &out)
	}
}

func TestShippedConfigurationHasNoWarnings(t *testing.T) {
	var out bytes.Buffer
	args := []string{name, "check-config", "--strict", "etc/container-management/config.json"}
	if code := applet.Main([]applet.Command{Command()}, args, nil, &out, &out); code != 0 {
		t.Errorf("exit code %d: %s", code, &out)
	}
}
