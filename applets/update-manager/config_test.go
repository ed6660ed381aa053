// SPDX-License-Identifier: Apache-2.0

package updatemanager

import (
	"bytes"
	"context"
	"fmt"
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
	"sdvbox/platform/mqttbus"
	"sdvbox/platform/orchestrator"
	"sdvbox/platform/rebootgate"
)

// variables are those that the settings without an agent's name in them are taken from.
const variables = `LOG_LEVEL LOG_FILE LOG_FILE_SIZE LOG_FILE_COUNT LOG_FILE_MAX_AGE MQTT_CONN_BROKER MQTT_CONN_KEEP_ALIVE
MQTT_CONN_DISCONNECT_TIMEOUT MQTT_CONN_USERNAME MQTT_CONN_PASSWORD MQTT_CONN_CONNECT_TIMEOUT MQTT_CONN_ACK_TIMEOUT
MQTT_CONN_SUB_TIMEOUT MQTT_CONN_UNSUB_TIMEOUT MQTT_CONN_CA_CERT MQTT_CONN_CERT MQTT_CONN_KEY DOMAIN THINGS_ENABLED DOMAINS
REBOOT_ENABLED REBOOT_AFTER REPORT_FEEDBACK_INTERVAL CURRENT_STATE_DELAY PHASE_TIMEOUT OWNER_CONSENT_TIMEOUT`

// loaded is what came of a start with a configuration file, an environment and a command line.
type loaded struct {
	settings
	warnings []string
	code     int
	output   string
}

// start loads the configuration as the daemon does. file is the text of a file, or empty for the one that args name.
func start(t *testing.T, file, env string, args ...string) loaded {
	t.Helper()
	for _, key := range strings.Fields(variables) {
		t.Setenv(key, "") // so that it is restored
		os.Unsetenv(key)
	}
	for _, pair := range strings.Fields(env) {
		key, value, _ := strings.Cut(pair, "=")
		t.Setenv(key, value)
		defer os.Unsetenv(key)
	}
	if file != "" {
		path := filepath.Join(t.TempDir(), "c.json")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"--cfg-file", path}, args...)
	}
	var l loaded
	var out bytes.Buffer
	command := applet.Command{
		Name: name, Daemon: true, GoFlagStyle: true,
		Options: func() any { return newOptions() },
		Run: func(_ context.Context, c *applet.Call) error {
			s, warnings, err := load(c)
			l.settings = s
			for _, w := range warnings {
				if w.File != "" {
					w.File = filepath.Base(w.File)
				}
				l.warnings = append(l.warnings, w.String())
			}
			return err
		},
	}
	l.code = applet.Main([]applet.Command{command}, append([]string{name}, args...), nil, &out, &out)
	l.output = out.String()
	return l
}

func seconds(n int) config.Duration { return config.Duration(n) * config.Duration(time.Second) }

func TestFileOfLedaLoadsUnchanged(t *testing.T) {
	got := start(t, "", "", "--cfg-file", "testdata/minimal.json")
	if got.code != 0 || got.output != "" || got.warnings != nil {
		t.Fatalf("exit code %d, %q, warnings %q", got.code, got.output, got.warnings)
	}
	want := defaults()
	want.Log.File = "/var/log/update-manager/update-manager.log"
	want.Domain = "vehicle"
	want.ThingsEnabled = false
	want.Agents = map[string]*agent{
		"containers":  {Name: "containers", ReadTimeout: seconds(30)},
		"self-update": {Name: "self-update", ReadTimeout: seconds(30), RebootRequired: true},
	}
	if diff := cmp.Diff(want, got.settings); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPrintedExampleWithAllOptionsLoadsUnchanged(t *testing.T) {
	got := start(t, "", "", "-config-file=testdata/full.json")
	const ms = config.Duration(500 * time.Millisecond)
	want := defaults()
	want.Log = logSettings{File: "log/update-manager.log", Level: "ERROR", Size: 3, Count: 6, MaxAge: 29}
	want.Connection = connectionSettings{Broker: "www", KeepAlive: ms, DisconnectTimeout: ms, Username: "username", Password: "pass",
		ConnectTimeout: ms, AcknowledgeTimeout: ms, SubscribeTimeout: ms, UnsubscribeTimeout: ms}
	want.Domain = "vehicle"
	want.ThingsEnabled = false
	want.RebootAfter, want.ReportFeedbackInterval = seconds(60), interval(seconds(120))
	want.CurrentStateDelay, want.PhaseTimeout = interval(seconds(60)), seconds(120)
	want.Agents = map[string]*agent{
		"self-update": {ReadTimeout: seconds(20)},
		"containers":  {ReadTimeout: seconds(30), RebootRequired: true},
	}
	if diff := cmp.Diff(want, got.settings); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	wantWarnings := []string{
		"full.json:11: connection.keepAlive: number without a unit, taken as 500ms",
		"full.json:12: connection.disconnectTimeout: number without a unit, taken as 500ms",
		"full.json:15: connection.connectTimeout: number without a unit, taken as 500ms",
		"full.json:16: connection.acknowledgeTimeout: number without a unit, taken as 500ms",
		"full.json:17: connection.subscribeTimeout: number without a unit, taken as 500ms",
		"full.json:18: connection.unsubscribeTimeout: number without a unit, taken as 500ms",
		"full.json:10: connection.broker: no scheme, taken as tcp://",
	}
	if diff := cmp.Diff(wantWarnings, got.warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
	wantBus := mqttbus.Config{Broker: "www", ClientID: "vehicle-update-manager", User: "username", Password: "pass",
		KeepAlive: time.Duration(ms), ConnectTimeout: time.Duration(ms), PublishTimeout: time.Duration(ms), SubscribeTimeout: time.Duration(ms)}
	if diff := cmp.Diff(wantBus, got.bus()); diff != "" {
		t.Errorf("broker (-want +got):\n%s", diff)
	}
}

func TestDefaultsAreThoseOfTheOriginal(t *testing.T) {
	got := start(t, "{}", "")
	wantOrchestrator := orchestrator.Config{
		Agents:         map[string]orchestrator.Agent{"containers": {ReadTimeout: time.Minute}},
		FailurePolicy:  orchestrator.Baseline,
		PhaseTimeout:   10 * time.Minute,
		VerifyTimeout:  20 * time.Minute,
		ConsentTimeout: 30 * time.Minute,
		RebootEnabled:  true,
		RebootAfter:    30 * time.Second,
		GateTimeout:    24 * time.Hour,
	}
	if diff := cmp.Diff(wantOrchestrator, got.orchestrator(), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("orchestrator (-want +got):\n%s", diff)
	}
	wantBus := mqttbus.Config{Broker: "tcp://localhost:1883", ClientID: "device-update-manager", KeepAlive: 20 * time.Second,
		ConnectTimeout: 30 * time.Second, PublishTimeout: 15 * time.Second, SubscribeTimeout: 15 * time.Second}
	if diff := cmp.Diff(wantBus, got.bus()); diff != "" {
		t.Errorf("broker (-want +got):\n%s", diff)
	}
	if !got.ThingsEnabled || got.Domain != "device" || time.Duration(got.ReportFeedbackInterval) != time.Minute ||
		time.Duration(got.CurrentStateDelay) != 30*time.Second || got.Log != (logSettings{"", "INFO", 2, 5, 28}) {
		t.Errorf("%+v", got.settings)
	}
}

// Every setting can come from the file, from the environment and from the command line, and the later goes first.
func TestCommandLineGoesBeforeEnvironmentBeforeFile(t *testing.T) {
	const base = `{"connection":{"broker":"mqtts://b","username":"u","cert":"c","key":"k"},"agents":{"self-update":{}},`
	for _, test := range []struct {
		flag, env string
		file      string
		values    string // what the file, the environment and the command line say
		get       func(settings) any
	}{
		{"log-file", "LOG_FILE", `"log":{"logFile":"a"}`, "a b c", func(s settings) any { return s.Log.File }},
		{"log-level", "LOG_LEVEL", `"log":{"logLevel":"warn"}`, "warn Debug TRACE", func(s settings) any { return s.Log.Level }},
		{"log-file-size", "LOG_FILE_SIZE", `"log":{"logFileSize":3}`, "3 4 0", func(s settings) any { return s.Log.Size }},
		{"log-file-count", "LOG_FILE_COUNT", `"log":{"logFileCount":3}`, "3 4 0", func(s settings) any { return s.Log.Count }},
		{"log-file-max-age", "LOG_FILE_MAX_AGE", `"log":{"logFileMaxAge":3}`, "3 4 0", func(s settings) any { return s.Log.MaxAge }},
		{"mqtt-conn-broker", "MQTT_CONN_BROKER", `"connection":{"broker":"tcp://a"}`, "tcp://a tcp://b tcp://c",
			func(s settings) any { return s.bus().Broker }},
		{"mqtt-conn-keep-alive", "MQTT_CONN_KEEP_ALIVE", `"connection":{"keepAlive":"1s"}`, "1s 2m0s 3h0m0s",
			func(s settings) any { return s.bus().KeepAlive }},
		{"mqtt-conn-disconnect-timeout", "MQTT_CONN_DISCONNECT_TIMEOUT", `"connection":{"disconnectTimeout":"1s"}`, "1s 2s 3s",
			func(s settings) any { return s.Connection.DisconnectTimeout }},
		{"mqtt-conn-username", "MQTT_CONN_USERNAME", `"connection":{"username":"a"}`, "a b c", func(s settings) any { return s.bus().User }},
		{"mqtt-conn-password", "MQTT_CONN_PASSWORD", `"connection":{"password":"a"}`, "a b c", func(s settings) any { return s.bus().Password }},
		{"mqtt-conn-password-file", "UPDATE_MANAGER_MQTT_CONN_PASSWORD_FILE", `"connection":{"passwordFile":"a"}`, "a b c",
			func(s settings) any { return s.bus().PasswordFile }},
		{"mqtt-conn-client-id", "UPDATE_MANAGER_MQTT_CONN_CLIENT_ID", `"connection":{"clientId":"a"}`, "a b c",
			func(s settings) any { return s.bus().ClientID }},
		{"mqtt-conn-connect-timeout", "MQTT_CONN_CONNECT_TIMEOUT", `"connection":{"connectTimeout":"1s"}`, "1s 2s 3s",
			func(s settings) any { return s.bus().ConnectTimeout }},
		{"mqtt-conn-ack-timeout", "MQTT_CONN_ACK_TIMEOUT", `"connection":{"acknowledgeTimeout":"1s"}`, "1s 2s 3s",
			func(s settings) any { return s.bus().PublishTimeout }},
		{"mqtt-conn-sub-timeout", "MQTT_CONN_SUB_TIMEOUT", `"connection":{"subscribeTimeout":"1s"}`, "1s 2s 3s",
			func(s settings) any { return s.bus().SubscribeTimeout }},
		{"mqtt-conn-unsub-timeout", "MQTT_CONN_UNSUB_TIMEOUT", `"connection":{"unsubscribeTimeout":"1s"}`, "1s 2s 3s",
			func(s settings) any { return s.Connection.UnsubscribeTimeout }},
		{"mqtt-conn-ca-cert", "MQTT_CONN_CA_CERT", `"connection":{"caCert":"a"}`, "a b c", func(s settings) any { return s.bus().CAFile }},
		{"mqtt-conn-cert", "MQTT_CONN_CERT", `"connection":{"cert":"a"}`, "a b c", func(s settings) any { return s.bus().CertFile }},
		{"mqtt-conn-key", "MQTT_CONN_KEY", `"connection":{"key":"a"}`, "a b c", func(s settings) any { return s.bus().KeyFile }},
		{"domain", "DOMAIN", `"domain":"a"`, "a b c", func(s settings) any { return s.Domain }},
		{"things-enabled", "THINGS_ENABLED", `"thingsEnabled":false`, "false true false", func(s settings) any { return s.ThingsEnabled }},
		{"self-update-reboot-required", "SELF_UPDATE_REBOOT_REQUIRED", `"agents":{"self-update":{"rebootRequired":true}}`, "true false true",
			func(s settings) any { return s.orchestrator().Agents["self-update"].RebootRequired }},
		{"self-update-read-timeout", "SELF_UPDATE_READ_TIMEOUT", `"agents":{"self-update":{"readTimeout":"1s"}}`, "1s 2s 3s",
			func(s settings) any { return s.orchestrator().Agents["self-update"].ReadTimeout }},
		{"reboot-enabled", "REBOOT_ENABLED", `"rebootEnabled":false`, "false true false", func(s settings) any { return s.orchestrator().RebootEnabled }},
		{"reboot-after", "REBOOT_AFTER", `"rebootAfter":"1s"`, "1s 2s 3s", func(s settings) any { return s.orchestrator().RebootAfter }},
		{"report-feedback-interval", "REPORT_FEEDBACK_INTERVAL", `"reportFeedbackInterval":"1s"`, "1s 0s 3s",
			func(s settings) any { return s.ReportFeedbackInterval }},
		{"current-state-delay", "CURRENT_STATE_DELAY", `"currentStateDelay":"1s"`, "1s 2s 0s", func(s settings) any { return s.CurrentStateDelay }},
		{"phase-timeout", "PHASE_TIMEOUT", `"phaseTimeout":"1s"`, "1s 2s 0s", func(s settings) any { return s.orchestrator().PhaseTimeout }},
		{"owner-consent-commands", "", `"ownerConsentCommands":["DOWNLOAD"]`, "DOWNLOAD DOWNLOAD UPDATE",
			func(s settings) any { return strings.Join(s.orchestrator().Consent, " ") }},
		{"owner-consent-timeout", "OWNER_CONSENT_TIMEOUT", `"ownerConsentTimeout":"1s"`, "1s 2s 3s",
			func(s settings) any { return s.orchestrator().ConsentTimeout }},
		{"failure-policy", "UPDATE_MANAGER_FAILURE_POLICY", `"failurePolicy":"all"`, "all baseline all",
			func(s settings) any { return s.orchestrator().FailurePolicy }},
		{"verify-timeout", "UPDATE_MANAGER_VERIFY_TIMEOUT", `"verifyTimeout":"1s"`, "1s 2s 3s",
			func(s settings) any { return s.orchestrator().VerifyTimeout }},
		{"metrics-address", "UPDATE_MANAGER_METRICS_ADDRESS", `"metricsAddress":"a"`, "a b c", func(s settings) any { return s.MetricsAddress }},
		{"state-dir", "UPDATE_MANAGER_STATE_DIR", `"stateDir":"a"`, "a b c", func(s settings) any { return s.StateDir }},
		{"control-socket", "UPDATE_MANAGER_CONTROL_SOCKET", `"controlSocket":"a"`, "a b c", func(s settings) any { return s.ControlSocket }},
	} {
		t.Run(test.flag, func(t *testing.T) {
			values := strings.Fields(test.values)
			file, env := base+test.file+"}", test.env+"="+values[1]
			if test.env == "" {
				env = ""
			}
			for i, got := range []loaded{
				start(t, file, ""),
				start(t, file, env),
				start(t, file, env, "-"+test.flag+"="+values[2]),
			} {
				if got.code != 0 || fmt.Sprint(test.get(got.settings)) != values[i] {
					t.Errorf("source %d: %v, want %s; %s", i, test.get(got.settings), values[i], got.output)
				}
			}
		})
	}
}

func TestListOfDomainsIsFinal(t *testing.T) {
	const file = `{"agents":{"a":{"readTimeout":"1s"},"b":{"readTimeout":"2s"}}}`
	timeouts := func(l loaded) string {
		text := ""
		for _, domain := range []string{"a", "b", "c", "containers"} {
			if a := l.Agents[domain]; a != nil {
				text += domain + "=" + a.ReadTimeout.String() + " "
			}
		}
		return strings.TrimSpace(text)
	}
	for _, test := range []struct{ file, env, args, want string }{
		{file, "", "", "a=1s b=2s"},
		{file, "", "--domains=b,c", "b=2s c=1m0s"},
		{file, "DOMAINS=a", "", "a=1s"},
		{file, "DOMAINS=a", "--domains=c", "c=1m0s"},
		{file, "DOMAINS=", "--domains=,", "a=1s b=2s"},
		{file, "C_READ_TIMEOUT=3s B_READ_TIMEOUT=4s", "--domains=,c,,a --a-read-timeout=5s", "a=5s c=3s"},
		{`{"agents":{}}`, "", "", ""},
		{`{"agents":null}`, "", "", "containers=1m0s"},
		{`{"agents":{"b":null}}`, "", "", "b=1m0s"},
		{`{}`, "", "-containers-read-timeout 7s", "containers=7s"},
	} {
		got := start(t, test.file, test.env, strings.Fields(test.args)...)
		if s := timeouts(got); s != test.want || got.code != 0 {
			t.Errorf("%s %s %s: %s, want %s; %s", test.file, test.env, test.args, s, test.want, got.output)
		}
	}
	got := start(t, file, "", "--domains", "a", "-b-read-timeout=1s")
	if got.code != 2 || !strings.Contains(got.output, "unknown flag `b-read-timeout'") {
		t.Errorf("an option of a domain that is not listed: exit code %d, %s", got.code, got.output)
	}
}

func TestOddSettingsAreMadeGoodWithAWarning(t *testing.T) {
	for _, test := range []struct {
		file, env, args string
		want            func(*settings)
		warnings        string
	}{
		{`{"log":null,"connection":null,"domain":null}`, "", "", func(*settings) {},
			"c.json:1: log: null, the default applies|c.json:1: connection: null, the default applies|c.json:1: domain: null, the default applies"},
		{`{"reportFeedbackInterval":"","currentStateDelay":""}`, "", "", func(w *settings) { w.ReportFeedbackInterval, w.CurrentStateDelay = 0, 0 },
			"c.json:1: reportFeedbackInterval: empty, taken as 0s|c.json:1: currentStateDelay: empty, taken as 0s"},
		{`{"rebootAfter":"","phaseTimeout":"-1s","currentStateDelay":"x"}`, "", "", func(*settings) {},
			`c.json:1: rebootAfter: empty, the default applies|` +
				`c.json:1: phaseTimeout: "-1s": expected a duration such as "30s", not negative, the default applies|` +
				`c.json:1: currentStateDelay: "x": expected a duration such as "30s", not negative, the default applies`},
		{`{}`, "REBOOT_AFTER= CURRENT_STATE_DELAY=", "-phase-timeout= -report-feedback-interval=",
			func(w *settings) { w.ReportFeedbackInterval, w.CurrentStateDelay = 0, 0 }, ""},
		{`{}`, "REBOOT_AFTER=90000", "-phase-timeout 500",
			func(w *settings) { w.RebootAfter, w.PhaseTimeout = seconds(90), seconds(1)/2 }, ""},
		{`{"log":{"logLevel":"loud","logFileSize":-1,"logFileCount":-1,"logFileMaxAge":-1}}`, "", "", func(*settings) {},
			"c.json:1: log.logLevel: expected ERROR, WARN, INFO, DEBUG or TRACE; the default applies|" +
				"c.json:1: log.logFileSize: negative, the default applies|c.json:1: log.logFileCount: negative, the default applies|" +
				"c.json:1: log.logFileMaxAge: negative, the default applies"},
		{`{"log":{"logLevel":"trace"}}`, "", "", func(w *settings) { w.Log.Level = "trace" }, ""},
		{`{"connection":{"caCert":"a","cert":"b","key":"c","password":"d"}}`, "", "", func(*settings) {},
			"c.json:1: connection: caCert, cert and key have no effect on a connection without encryption|" +
				"connection.username: empty, so that the password has no effect"},
		{"{\n\"ownerConsentCommands\":[\"ACTIVATE\",\n\"download\", \"INSTALL\", 7]}", "", "",
			func(w *settings) { w.OwnerConsentCommands = commands{"ACTIVATE", "DOWNLOAD", "INSTALL"} },
			"c.json:3: ownerConsentCommands[3]: expected a string, found a number; the default applies|" +
				"c.json:3: ownerConsentCommands[1]: taken as DOWNLOAD|" +
				`c.json:3: ownerConsentCommands[2]: "INSTALL": expected DOWNLOAD, UPDATE or ACTIVATE`},
		{`{}`, "", "--owner-consent-commands=update,_Activate,", func(w *settings) { w.OwnerConsentCommands = commands{"UPDATE", "_ACTIVATE"} },
			`ownerConsentCommands[1]: "_ACTIVATE": expected DOWNLOAD, UPDATE or ACTIVATE`},
		{`{"failurePolicy":"none"}`, "", "", func(*settings) {}, `c.json:1: failurePolicy: expected "baseline" or "all"; the default applies`},
		{`{"agents":{"containers":{"name":"other"}}}`, "", "", func(w *settings) { w.Agents["containers"].Name = "other" },
			"c.json:1: agents.containers.name: has no effect, the agent is containers"},
		{`{}`, "CONTAINERS_REBOOT_REQUIRED=yes CONTAINERS_READ_TIMEOUT=5", "", func(w *settings) { w.Agents["containers"].ReadTimeout = seconds(1) / 200 },
			`CONTAINERS_REBOOT_REQUIRED: environment variable is ignored: strconv.ParseBool: parsing "yes": invalid syntax`},

		{`{"rebootGate":{"topic":true,"windows":[{"days":["mon"],"from":"22:00","to":"05:00"}],"dropInTimeout":"5s","timeout":"1h"}}`, "", "",
			func(w *settings) {
				w.RebootGate = gateSettings{rebootgate.Config{Topic: true, DropIns: "/etc/sdvbox/reboot.d", DropInTimeout: 5 * time.Second,
					Windows: []rebootgate.Window{{Days: []string{"mon"}, From: "22:00", To: "05:00"}}}, seconds(3600), false}
			}, ""},
		{`{"rebootGate":{"windows":[{"from":"22:00","to":"25:00"}],"timeout":"x"}}`, "", "-reboot-enabled",
			func(w *settings) {
				w.RebootEnabled, w.RebootGate.Unclear = false, true
				w.RebootGate.Windows = []rebootgate.Window{{From: "22:00", To: "25:00"}}
			},
			`c.json:1: rebootGate.timeout: "x": expected a duration such as "30s", not negative, the default applies|` +
				`c.json:1: rebootGate: windows[0].to: "25:00": expected HH:MM|` +
				"rebootEnabled: taken as false, because rebootGate is not understood"},
		{`{"rebootGate":{"whenParked":true}}`, "", "", func(w *settings) { w.RebootEnabled, w.RebootGate.Unclear = false, true },
			"c.json:1: rebootGate.whenParked: unknown key|rebootEnabled: taken as false, because rebootGate is not understood"},
		{`{"rebootGate":{"windows":["night"]},"rebootEnabled":false}`, "", "", func(w *settings) {
			w.RebootEnabled, w.RebootGate.Unclear = false, true
			w.RebootGate.Windows = []rebootgate.Window{}
		}, "c.json:1: rebootGate.windows[0]: expected an object, found a string; the default applies"},
		{`{"rebootGate":{"dropIns":"","timeout":1000}}`, "", "", func(w *settings) { w.RebootGate.DropIns, w.RebootGate.Timeout = "", seconds(1) },
			"c.json:1: rebootGate.timeout: number without a unit, taken as 1s"},
	} {
		want := defaults()
		test.want(&want)
		got := start(t, test.file, test.env, strings.Fields(test.args)...)
		if got.code != 0 || got.output != "" {
			t.Errorf("%s: exit code %d, %s", test.file, got.code, got.output)
			continue
		}
		if diff := cmp.Diff(want, got.settings); diff != "" {
			t.Errorf("%s %s %s (-want +got):\n%s", test.file, test.env, test.args, diff)
		}
		if diff := cmp.Diff(test.warnings, strings.Join(got.warnings, "|")); diff != "" {
			t.Errorf("warnings of %s (-want +got):\n%s", test.file, diff)
		}
	}
}

func TestAGateThatIsNotUnderstoodStaysShut(t *testing.T) {
	for gate, safe := range map[string]bool{
		`{}`: true, `{"topic":false,"windows":[{"from":"00:00","to":"24:00"}]}`: true, `{"timeout":7,"dropInTimeout":null}`: true,
		`null`: false, `7`: false, `[]`: false, `{"topc":true}`: false, `{"topic":"yes"}`: false, `{"windows":null}`: false,
		`{"windows":[null]}`: false, `{"windows":[{"from":"22:00","to":"25:00"}]}`: false, `{"dropIns":"reboot.d"}`: false,
	} {
		for _, enabled := range []string{"", `,"rebootEnabled":false`} {
			got := start(t, `{"rebootGate":`+gate+enabled+"}", "")
			if got.RebootGate.DropIns == defaults().RebootGate.DropIns {
				got.RebootGate.DropIns = t.TempDir() // not what this machine has there
			}
			if ok, reason := got.gate().Safe(t.Context(), time.Now()); ok != safe || safe != (reason == "") {
				t.Errorf("%s%s: safe %v, %s", gate, enabled, ok, reason)
			}
		}
	}
}

func TestWhatCannotWorkIsRefused(t *testing.T) {
	for _, test := range []struct {
		file, args string
		code       int
		want       string
	}{
		{"", "--cfg-file /does/not/exist", 1, "/does/not/exist: no such file"},
		{"{\n\"domain\" \"x\"}", "", 1, "c.json:2: not JSON"},
		{`{"domain":""}`, "", 1, `domain "": expected a name that can be part of a topic`},
		{`{}`, "--domains=a,b/#", 1, `domain "b/#": expected a name that can be part of a topic`},
		{`{}`, "--domains=self-update,selfupdate", 1, `domains "self-update" and "selfupdate": expected different topics, both begin with selfupdate`},
		{`{"agents":{"deviceupdate":{}}}`, "", 1, `domains "device" and "deviceupdate": expected different topics`},
		{`{"connection":{"broker":"wss://x"}}`, "", 1, `broker "wss://x": unknown scheme`},
		{`{"connection":{"broker":"mqtts://x","cert":"c"}}`, "", 1, "belong together"},
		{`{}`, "--bogus", 2, "unknown flag `bogus'"},
		{`{}`, "-reboot-enabled=maybe", 2, `--reboot-enabled: "maybe": expected true or false`},
		{`{}`, "-reboot-after=soon", 2, `"soon": expected a duration such as "30s"`},
		{`{}`, "-failure-policy=none", 2, "Invalid value `none'"},
		{`{}`, "-containers-reboot-required=x", 2, `--containers-reboot-required: "x": expected true or false`},
		{`{}`, "-h", 0, "--NAME-reboot-required"},
	} {
		got := start(t, test.file, "", strings.Fields(test.args)...)
		if got.code != test.code || !strings.Contains(got.output, test.want) {
			t.Errorf("%s %s: exit code %d, %s, want %d, %s", test.file, test.args, got.code, got.output, test.code, test.want)
		}
	}
}

func TestOddEnvironmentIsIgnored(t *testing.T) {
	got := start(t, `{"rebootEnabled":false}`, "REBOOT_ENABLED=perhaps LOG_FILE_SIZE=big PHASE_TIMEOUT=long THINGS_ENABLED= DOMAIN=car")
	want := defaults()
	want.RebootEnabled, want.Domain = false, "car"
	if diff := cmp.Diff(want, got.settings); diff != "" || got.code != 0 {
		t.Errorf("exit code %d, (-want +got):\n%s", got.code, diff)
	}
	for _, key := range []string{"REBOOT_ENABLED", "LOG_FILE_SIZE", "PHASE_TIMEOUT", "THINGS_ENABLED"} {
		if !strings.Contains(got.output, "environment variable "+key+" is ignored: ") {
			t.Errorf("nothing is said about %s:\n%s", key, got.output)
		}
	}
}

func TestPasswordIsNeverShown(t *testing.T) {
	const password = "5ecret"
	for _, test := range []struct{ file, env, args string }{
		{`{"connection":{"username":"u","password":"5ecret"}}`, "", "-h"},
		{`{}`, "MQTT_CONN_PASSWORD=5ecret MQTT_CONN_USERNAME=u REBOOT_ENABLED=x", ""},
		{`{}`, "MQTT_CONN_PASSWORD=5ecret", "-h"},
		{`{}`, "", "-mqtt-conn-password=5ecret -bogus"},
		{`{}`, "", "-mqtt-conn-password=5ecret"},
		{`{"connection":{"password":["5ecret"]}}`, "", ""},
		{`{"connection":{"broker":"tcp://u:5ecret@host"}}`, "", ""},
		{`{"connection":{"broker":"u:5ecret@host"}}`, "", ""},
		{`{"connection":{"username":"u","password":"5ecret}}`, "", ""},
	} {
		got := start(t, test.file, test.env, strings.Fields(test.args)...)
		if text := got.output + strings.Join(got.warnings, "\n"); strings.Contains(text, password) {
			t.Errorf("%s %s %s shows the password:\n%s", test.file, test.env, test.args, text)
		}
	}
}

func TestUsualFilesAreLookedForInOrder(t *testing.T) {
	dir := t.TempDir()
	files := []string{filepath.Join(dir, "first"), filepath.Join(dir, "second")}
	for i, want := range []string{"", "second", "first"} {
		if i > 0 {
			if err := os.WriteFile(files[2-i], []byte(`{"domain":"x"}`), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s := defaults()
		f, err := readFirst(files, &s)
		if err != nil || want != "" && (filepath.Base(f.Name) != want || s.Domain != "x") || want == "" && f.Name != "" {
			t.Errorf("with %d files: %+v, %v, want %q", i, f, err, want)
		}
	}
	if err := os.WriteFile(files[0], []byte("domain: x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := defaults()
	if _, err := readFirst(files, &s); err == nil || !strings.Contains(err.Error(), "first:1: not JSON") {
		t.Errorf("error %v, want the broken file not to be passed over", err)
	}
}

func TestEverySettingIsInTheManual(t *testing.T) {
	b, err := os.ReadFile("../../docs/update-manager.md")
	if err != nil {
		t.Fatal(err)
	}
	manual := string(b)
	var walk func(s reflect.Type, path string)
	walk = func(s reflect.Type, path string) {
		for _, field := range reflect.VisibleFields(s) {
			key, flag, env := field.Tag.Get("json"), field.Tag.Get("long"), field.Tag.Get("env")
			if field.Anonymous || key == "" { // its fields are visible themselves, or it is not to be set
				continue
			}
			if field.Type.Kind() == reflect.Struct {
				walk(field.Type, path+key+".")
				continue
			}
			if !strings.Contains(manual, "`"+path+key+"`") && !strings.Contains(manual, "`."+key+"`") {
				t.Errorf("the manual lacks the key %s", path+key)
			}
			short := strings.TrimPrefix(flag, "mqtt-conn")
			if flag != "" && !strings.Contains(manual, "`--"+flag+"`") && !strings.Contains(manual, "`"+short+"`") {
				t.Errorf("the manual lacks the flag --%s", flag)
			}
			if usual := strings.ToUpper(strings.ReplaceAll(flag, "-", "_")); env != "" && strings.TrimPrefix(env, "UPDATE_MANAGER_") != usual {
				t.Errorf("the variable of --%s is %s, other than the manual says", flag, env)
			}
		}
	}
	walk(reflect.TypeFor[settings](), "")
	walk(reflect.TypeFor[agent](), "agents.NAME.")
}
