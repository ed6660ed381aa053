// SPDX-License-Identifier: Apache-2.0

package updatemanager

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"sdvbox/platform/applet"
	"sdvbox/platform/config"
	"sdvbox/platform/mqttbus"
	"sdvbox/platform/orchestrator"
	"sdvbox/platform/rebootgate"
	"sdvbox/platform/updateproto"
)

// configFiles are looked for in this order when no other is named: as in images of Eclipse Leda, and as packaged by Eclipse Kanto.
func configFiles() []string {
	return []string{"/etc/update-manager/config.json", "/etc/kanto-update-manager/config.json"}
}

// options are the settings, and what only the command line says.
type options struct {
	CfgFile    string `long:"cfg-file" value-name:"FILE" description:"configuration file; default: /etc/update-manager/config.json, else /etc/kanto-update-manager/config.json, else none"`
	ConfigFile string `long:"config-file" value-name:"FILE" description:"the same as --cfg-file"`
	Domains    string `long:"domains" env:"DOMAINS" value-name:"LIST" description:"the domains to update, separated by commas, instead of those of the configuration file; each NAME has options --NAME-reboot-required and --NAME-read-timeout"`
	Version    bool   `long:"version" description:"print the version and exit"`

	settings
	loaded bool // the domains are known
}

// settings are all that can be configured. A setting that its file does not have is a default; the environment goes before the
// file, and the command line before both. The names are those of Eclipse Kanto's update manager, as far as it has them.
type settings struct {
	Log        logSettings        `json:"log" group:"Log options"`
	Connection connectionSettings `json:"connection" group:"Broker options"`

	Domain        string            `json:"domain" long:"domain" env:"DOMAIN" value-name:"NAME" description:"name of the update manager, which begins its topics"`
	ThingsEnabled bool              `json:"thingsEnabled" long:"things-enabled" env:"THINGS_ENABLED" description:"speak to Eclipse Ditto through Eclipse Hono instead of on plain topics"`
	Agents        map[string]*agent `json:"agents"`

	RebootEnabled          bool            `json:"rebootEnabled" long:"reboot-enabled" env:"REBOOT_ENABLED" description:"reboot after an update that needs it"`
	RebootAfter            config.Duration `json:"rebootAfter" long:"reboot-after" env:"REBOOT_AFTER" description:"time between an update and its reboot"`
	ReportFeedbackInterval interval        `json:"reportFeedbackInterval" long:"report-feedback-interval" env:"REPORT_FEEDBACK_INTERVAL" description:"least time between two messages of progress, 0s for none at all"`
	CurrentStateDelay      interval        `json:"currentStateDelay" long:"current-state-delay" env:"CURRENT_STATE_DELAY" description:"how long changes of the current state are collected before it is published"`
	PhaseTimeout           config.Duration `json:"phaseTimeout" long:"phase-timeout" env:"PHASE_TIMEOUT" description:"how long an agent may work without a word"`
	OwnerConsentCommands   commands        `json:"ownerConsentCommands" long:"owner-consent-commands" value-name:"LIST" description:"which of DOWNLOAD, UPDATE and ACTIVATE need the owner's consent, separated by commas"`
	OwnerConsentTimeout    config.Duration `json:"ownerConsentTimeout" long:"owner-consent-timeout" env:"OWNER_CONSENT_TIMEOUT" description:"how long the owner may take to consent"`

	// Not known to Eclipse Kanto.
	FailurePolicy  string          `json:"failurePolicy" long:"failure-policy" env:"UPDATE_MANAGER_FAILURE_POLICY" choice:"baseline" choice:"all" description:"which domains are rolled back when one fails: those that share a baseline, or all"`
	VerifyTimeout  config.Duration `json:"verifyTimeout" long:"verify-timeout" env:"UPDATE_MANAGER_VERIFY_TIMEOUT" description:"how long an agent may take after a reboot to say what runs"`
	RebootGate     gateSettings    `json:"rebootGate"`
	MetricsAddress string          `json:"metricsAddress" long:"metrics-address" env:"UPDATE_MANAGER_METRICS_ADDRESS" value-name:"ADDRESS" description:"where metrics are served: unix:PATH or HOST:PORT; default: nowhere"`
	StateDir       string          `json:"stateDir" long:"state-dir" env:"UPDATE_MANAGER_STATE_DIR" value-name:"DIR" description:"where the state of an update under way and the history are kept"`
	ControlSocket  string          `json:"controlSocket" long:"control-socket" env:"UPDATE_MANAGER_CONTROL_SOCKET" value-name:"FILE" description:"where status, history and cancel are answered"`
}

type logSettings struct {
	File   string `json:"logFile" long:"log-file" env:"LOG_FILE" value-name:"FILE" description:"log to this file instead of standard error"`
	Level  string `json:"logLevel" long:"log-level" env:"LOG_LEVEL" value-name:"LEVEL" description:"ERROR, WARN, INFO, DEBUG or TRACE"`
	Size   int    `json:"logFileSize" long:"log-file-size" env:"LOG_FILE_SIZE" value-name:"MB" description:"size of a log file before the next is begun"`
	Count  int    `json:"logFileCount" long:"log-file-count" env:"LOG_FILE_COUNT" value-name:"N" description:"how many old log files are kept"`
	MaxAge int    `json:"logFileMaxAge" long:"log-file-max-age" env:"LOG_FILE_MAX_AGE" value-name:"DAYS" description:"how long old log files are kept"`
}

type connectionSettings struct {
	Broker             string          `json:"broker" long:"mqtt-conn-broker" env:"MQTT_CONN_BROKER" value-name:"URL" description:"MQTT broker"`
	KeepAlive          config.Duration `json:"keepAlive" long:"mqtt-conn-keep-alive" env:"MQTT_CONN_KEEP_ALIVE" description:"time without traffic after which the broker is probed"`
	DisconnectTimeout  config.Duration `json:"disconnectTimeout" long:"mqtt-conn-disconnect-timeout" env:"MQTT_CONN_DISCONNECT_TIMEOUT" description:"has no effect"`
	Username           string          `json:"username" long:"mqtt-conn-username" env:"MQTT_CONN_USERNAME" value-name:"NAME" description:"user name for the broker"`
	Password           string          `json:"password" long:"mqtt-conn-password" env:"MQTT_CONN_PASSWORD" value-name:"PASSWORD" default-mask:"-" description:"password for the broker; others can see it here, better name a file"`
	PasswordFile       string          `json:"passwordFile" long:"mqtt-conn-password-file" env:"UPDATE_MANAGER_MQTT_CONN_PASSWORD_FILE" value-name:"FILE" description:"file with the password for the broker"`
	ClientID           string          `json:"clientId" long:"mqtt-conn-client-id" env:"UPDATE_MANAGER_MQTT_CONN_CLIENT_ID" value-name:"ID" description:"name of the session at the broker, which one client only may use; default: DOMAIN-update-manager"`
	ConnectTimeout     config.Duration `json:"connectTimeout" long:"mqtt-conn-connect-timeout" env:"MQTT_CONN_CONNECT_TIMEOUT" description:"how long an attempt to connect may take"`
	AcknowledgeTimeout config.Duration `json:"acknowledgeTimeout" long:"mqtt-conn-ack-timeout" env:"MQTT_CONN_ACK_TIMEOUT" description:"how long the broker may take to accept a message"`
	SubscribeTimeout   config.Duration `json:"subscribeTimeout" long:"mqtt-conn-sub-timeout" env:"MQTT_CONN_SUB_TIMEOUT" description:"how long the broker may take to accept the subscriptions"`
	UnsubscribeTimeout config.Duration `json:"unsubscribeTimeout" long:"mqtt-conn-unsub-timeout" env:"MQTT_CONN_UNSUB_TIMEOUT" description:"has no effect"`
	CACert             string          `json:"caCert" long:"mqtt-conn-ca-cert" env:"MQTT_CONN_CA_CERT" value-name:"FILE" description:"certificates (PEM) that may sign the broker's; default: those the system trusts"`
	Cert               string          `json:"cert" long:"mqtt-conn-cert" env:"MQTT_CONN_CERT" value-name:"FILE" description:"client certificate (PEM) for the broker"`
	Key                string          `json:"key" long:"mqtt-conn-key" env:"MQTT_CONN_KEY" value-name:"FILE" description:"key (PEM) of the client certificate"`
}

// gateSettings say when the vehicle may be rebooted.
type gateSettings struct {
	rebootgate.Config
	Timeout config.Duration `json:"timeout"` // an update whose reboot is unsafe for so long has failed
	Unclear bool            // something of it is not understood
}

// agent is one update agent.
type agent struct {
	Name           string          `json:"name"` // the key says it too
	RebootRequired bool            `json:"rebootRequired"`
	ReadTimeout    config.Duration `json:"readTimeout"`
}

// SetDefaults is for an agent that the configuration names.
func (a *agent) SetDefaults() { a.ReadTimeout = config.Duration(time.Minute) }

func newAgent() *agent {
	a := new(agent)
	a.SetDefaults()
	return a
}

func defaults() settings {
	return settings{
		Log: logSettings{Level: "INFO", Size: 2, Count: 5, MaxAge: 28},
		Connection: connectionSettings{
			Broker:             "tcp://localhost:1883",
			KeepAlive:          config.Duration(20 * time.Second),
			DisconnectTimeout:  config.Duration(250 * time.Millisecond),
			ConnectTimeout:     config.Duration(30 * time.Second),
			AcknowledgeTimeout: config.Duration(15 * time.Second),
			SubscribeTimeout:   config.Duration(15 * time.Second),
			UnsubscribeTimeout: config.Duration(5 * time.Second),
		},
		Domain:                 "device",
		ThingsEnabled:          true,
		Agents:                 map[string]*agent{"containers": newAgent()},
		RebootEnabled:          true,
		RebootAfter:            config.Duration(30 * time.Second),
		ReportFeedbackInterval: interval(time.Minute),
		CurrentStateDelay:      interval(30 * time.Second),
		PhaseTimeout:           config.Duration(10 * time.Minute),
		OwnerConsentTimeout:    config.Duration(30 * time.Minute),
		FailurePolicy:          string(orchestrator.Baseline),
		VerifyTimeout:          config.Duration(20 * time.Minute),
		RebootGate:             gateSettings{rebootgate.Config{DropIns: "/etc/sdvbox/reboot.d"}, config.Duration(24 * time.Hour), false},
		StateDir:               "/data/sdvbox/update-manager",
		ControlSocket:          "/run/update-manager/control.sock",
	}
}

// file is the configuration file that is named, if one is.
func (o *options) file() string { return cmp.Or(o.CfgFile, o.ConfigFile) }

func newOptions() *options { return &options{settings: defaults()} }

// load returns what the configuration file, the environment and the command line say, and what is odd about the file.
func load(c *applet.Call) (settings, []config.Warning, error) {
	given := c.Options.(*options)
	o := newOptions()
	o.loaded = true
	f, err := readFile(given.file(), &o.settings)
	if err != nil {
		return settings{}, nil, err
	}
	o.choose(given.Domains)
	o.environ(f)
	if err := c.Overlay(o); err != nil {
		return settings{}, nil, err
	}
	if err := o.check(f); err != nil {
		return settings{}, nil, err
	}
	return o.settings, f.Warnings, nil
}

// readFile reads the configuration file name or, when that is empty, the usual one.
func readFile(name string, s *settings) (*config.File, error) {
	if name == "" {
		return readFirst(configFiles(), s)
	}
	return config.Read(name, s)
}

// readFirst reads the first of the files that is there.
func readFirst(files []string, s *settings) (*config.File, error) {
	for _, name := range files {
		if f, err := config.Read(name, s); !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	return new(config.File), nil
}

// choose leaves only the domains of a list with commas, which may be new. An empty list leaves all.
func (s *settings) choose(list string) {
	agents := make(map[string]*agent)
	for domain := range strings.SplitSeq(list, ",") {
		if domain = strings.TrimSpace(domain); domain != "" {
			agents[domain] = cmp.Or(s.Agents[domain], newAgent())
		}
	}
	if len(agents) > 0 {
		s.Agents = agents
	}
}

// environ takes what the environment says about the agents.
func (s *settings) environ(f *config.File) {
	for _, domain := range slices.Sorted(maps.Keys(s.Agents)) {
		a := s.Agents[domain]
		prefix := strings.ToUpper(strings.ReplaceAll(domain, "-", "_"))
		for key, set := range map[string]func(string) error{
			prefix + "_REBOOT_REQUIRED": func(text string) error {
				v, err := strconv.ParseBool(text)
				if err == nil {
					a.RebootRequired = v
				}
				return err
			},
			prefix + "_READ_TIMEOUT": a.ReadTimeout.UnmarshalFlag,
		} {
			if text, ok := os.LookupEnv(key); ok {
				if err := set(text); err != nil {
					f.Warn(key, "environment variable is ignored: "+err.Error())
				}
			}
		}
	}
}

// Flag knows the options that each agent has. Before the domains are known, any name may be that of one.
func (o *options) Flag(name string) any {
	domain, reboot := strings.CutSuffix(name, "-reboot-required")
	domain, read := strings.CutSuffix(domain, "-read-timeout")
	if reboot == read {
		return nil
	}
	a := o.Agents[domain]
	if !o.loaded {
		a = newAgent()
	}
	switch {
	case a == nil:
		return nil
	case reboot:
		return &a.RebootRequired
	}
	return &a.ReadTimeout
}

// check makes good what can be, with a warning, and returns an error for what cannot.
func (s *settings) check(f *config.File) error {
	c, d := &s.Connection, defaults()
	scheme, _, found := strings.Cut(c.Broker, "://")
	if !found && c.Broker != "" {
		f.Warn("connection.broker", "no scheme, taken as tcp://")
	}
	if plain := strings.ToLower(scheme); (!found || plain == "tcp" || plain == "mqtt") && c.CACert+c.Cert+c.Key != "" {
		f.Warn("connection", "caCert, cert and key have no effect on a connection without encryption")
		c.CACert, c.Cert, c.Key = "", "", ""
	}
	if c.Username == "" && c.Password+c.PasswordFile != "" {
		f.Warn("connection.username", "empty, so that the password has no effect")
		c.Password, c.PasswordFile = "", ""
	}
	if !slices.Contains([]string{"ERROR", "WARN", "INFO", "DEBUG", "TRACE"}, strings.ToUpper(s.Log.Level)) {
		f.Warn("log.logLevel", "expected ERROR, WARN, INFO, DEBUG or TRACE; the default applies")
		s.Log.Level = d.Log.Level
	}
	for _, n := range []struct {
		key     string
		value   *int
		initial int
	}{
		{"log.logFileSize", &s.Log.Size, d.Log.Size},
		{"log.logFileCount", &s.Log.Count, d.Log.Count},
		{"log.logFileMaxAge", &s.Log.MaxAge, d.Log.MaxAge},
	} {
		if *n.value < 0 {
			f.Warn(n.key, "negative, the default applies")
			*n.value = n.initial
		}
	}
	for i, command := range s.OwnerConsentCommands {
		key := fmt.Sprintf("ownerConsentCommands[%d]", i)
		switch upper := strings.ToUpper(command); {
		case !slices.Contains([]string{"DOWNLOAD", "UPDATE", "ACTIVATE"}, upper):
			f.Warn(key, fmt.Sprintf("%q: expected DOWNLOAD, UPDATE or ACTIVATE", command))
		case upper != command:
			f.Warn(key, "taken as "+upper)
			s.OwnerConsentCommands[i] = upper
		}
	}
	if p := orchestrator.Policy(s.FailurePolicy); p != orchestrator.Baseline && p != orchestrator.All {
		f.Warn("failurePolicy", `expected "baseline" or "all"; the default applies`)
		s.FailurePolicy = d.FailurePolicy
	}
	s.checkGate(f)
	if err := s.checkDomains(f); err != nil {
		return err
	}
	return s.bus().Validate()
}

// checkGate lets nothing reboot the vehicle when it is not clear what may object.
func (s *settings) checkGate(f *config.File) {
	if _, err := rebootgate.New(s.RebootGate.Config); err != nil {
		f.Warn("rebootGate", err.Error())
	}
	s.RebootGate.Unclear = slices.ContainsFunc(f.Warnings, func(w config.Warning) bool {
		return strings.HasPrefix(w.Key, "rebootGate") && !strings.HasSuffix(strings.ToLower(w.Key), "timeout")
	})
	if s.RebootGate.Unclear && s.RebootEnabled {
		f.Warn("rebootEnabled", "taken as false, because rebootGate is not understood")
		s.RebootEnabled = false
	}
}

// gate returns who is asked before a reboot. Also with reboots off there may be one in the journal that was ordered before.
func (s *settings) gate() *rebootgate.Gate {
	g, err := rebootgate.New(s.RebootGate.Config)
	if err != nil || s.RebootGate.Unclear {
		return rebootgate.Closed("rebootGate in the configuration is not understood")
	}
	return g
}

// checkDomains makes sure that each domain has topics of its own.
func (s *settings) checkDomains(f *config.File) error {
	prefixes := map[string]string{}
	for _, domain := range append([]string{s.Domain}, slices.Sorted(maps.Keys(s.Agents))...) {
		if domain == "" || len(domain) > 200 || strings.ContainsAny(domain, "+#") || strings.ContainsFunc(domain, unicode.IsControl) {
			return fmt.Errorf("domain %.200q: expected a name that can be part of a topic, without + and #", domain)
		}
		prefix := updateproto.Prefix(domain)
		if other, taken := prefixes[prefix]; taken {
			return fmt.Errorf("domains %q and %q: expected different topics, both begin with %s", other, domain, prefix)
		}
		prefixes[prefix] = domain
		if a := s.Agents[domain]; a != nil && a.Name != "" && a.Name != domain {
			f.Warn("agents."+domain+".name", "has no effect, the agent is "+domain)
		}
	}
	return nil
}

// bus returns how to reach the broker.
func (s *settings) bus() mqttbus.Config {
	c := s.Connection
	return mqttbus.Config{
		Broker:           c.Broker,
		ClientID:         cmp.Or(c.ClientID, s.Domain+"-update-manager"),
		User:             c.Username,
		Password:         c.Password,
		PasswordFile:     c.PasswordFile,
		CAFile:           c.CACert,
		CertFile:         c.Cert,
		KeyFile:          c.Key,
		KeepAlive:        time.Duration(c.KeepAlive),
		ConnectTimeout:   time.Duration(c.ConnectTimeout),
		PublishTimeout:   time.Duration(c.AcknowledgeTimeout),
		SubscribeTimeout: time.Duration(c.SubscribeTimeout),
	}
}

// orchestrator returns how updates are done.
func (s *settings) orchestrator() orchestrator.Config {
	agents := make(map[string]orchestrator.Agent)
	for domain, a := range s.Agents {
		agents[domain] = orchestrator.Agent{RebootRequired: a.RebootRequired, ReadTimeout: time.Duration(a.ReadTimeout)}
	}
	return orchestrator.Config{
		Agents:         agents,
		FailurePolicy:  orchestrator.Policy(s.FailurePolicy),
		PhaseTimeout:   time.Duration(s.PhaseTimeout),
		VerifyTimeout:  time.Duration(s.VerifyTimeout),
		Consent:        s.OwnerConsentCommands,
		ConsentTimeout: time.Duration(s.OwnerConsentTimeout),
		RebootEnabled:  s.RebootEnabled,
		RebootAfter:    time.Duration(s.RebootAfter),
		GateTimeout:    time.Duration(s.RebootGate.Timeout),
	}
}

// interval is a duration that is 0 when it is empty.
type interval config.Duration

func (i interval) String() string { return time.Duration(i).String() }

// UnmarshalConfig implements config.Value.
func (i *interval) UnmarshalConfig(raw []byte) (odd string, err error) {
	if string(raw) == `""` {
		*i = 0
		return "empty, taken as 0s", nil
	}
	return (*config.Duration)(i).UnmarshalConfig(raw)
}

// UnmarshalFlag sets i from the command line or the environment.
func (i *interval) UnmarshalFlag(text string) error {
	return (*config.Duration)(i).UnmarshalFlag(cmp.Or(text, "0s"))
}

// commands is a list that is separated by commas on the command line.
type commands []string

// UnmarshalFlag sets c from the command line.
func (c *commands) UnmarshalFlag(text string) error {
	*c = nil
	for command := range strings.SplitSeq(text, ",") {
		if command = strings.ToUpper(strings.TrimSpace(command)); command != "" {
			*c = append(*c, command)
		}
	}
	return nil
}
