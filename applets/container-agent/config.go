// SPDX-License-Identifier: Apache-2.0

package containeragent

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"sdvbox/platform/applet"
	"sdvbox/platform/config"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/ctrnet"
	"sdvbox/platform/images"
	"sdvbox/platform/mqttbus"
)

const (
	configFile   = "/etc/container-management/config.json"
	originalHome = "/var/lib/container-management"
	execRoot     = "/run/container-management"
)

// settings are what can be configured: keys and flags are those of Eclipse Kanto's container management, as far as it has them.
type settings struct {
	Log         logSettings        `json:"log" group:"Log options"`
	Manager     managerSettings    `json:"manager" group:"Options of the agent"`
	Containers  containerSettings  `json:"containers" group:"Options of containers and images"`
	Network     networkSettings    `json:"network" group:"Network options"`
	GRPC        grpcSettings       `json:"grpc_server" group:"Options of the API"`
	Deployment  deploymentSettings `json:"deployment" group:"Options of the deployment"`
	Things      thingsSettings     `json:"things" group:"Options of the digital twin"`
	UpdateAgent updateSettings     `json:"update_agent" group:"Options of the update agent"`
	Connection  connectionSettings `json:"connection" group:"Broker options"`
}

type logSettings struct {
	File   string `json:"log_file" long:"log-file" value-name:"FILE" description:"log to this file instead of standard error"`
	Level  string `json:"log_level" long:"log-level" value-name:"LEVEL" description:"ERROR, WARN, INFO, DEBUG or TRACE"`
	Size   int    `json:"log_file_size" long:"log-file-size" value-name:"MB" description:"size of a log file before the next is begun"`
	Count  int    `json:"log_file_count" long:"log-file-count" value-name:"N" description:"how many old log files are kept"`
	MaxAge int    `json:"log_file_max_age" long:"log-file-max-age" value-name:"DAYS" description:"how long old log files are kept"`
	Syslog bool   `json:"syslog" long:"log-syslog" hidden:"true"`
}

type managerSettings struct {
	HomeDir     string  `json:"home_dir" long:"cm-home-dir" value-name:"DIR" description:"home of an agent of Eclipse Kanto, whose containers are taken over once"`
	StateDir    string  `json:"state_dir" long:"cm-state-dir" value-name:"DIR" description:"where it is kept what is wanted of containers; default: /data/sdvbox/container-agent"`
	ExecRootDir string  `json:"exec_root_dir" long:"cm-exec-root-dir" value-name:"DIR" description:"where the lock is"`
	StopTimeout seconds `json:"default_ctrs_stop_timeout" long:"cm-deflt-ctrs-stop-timeout" value-name:"TIME" description:"how long a container may take to stop before it is killed, as 30s or in seconds"`
	StopOnExit  bool    `json:"stop_containers_on_exit" long:"cm-stop-containers-on-exit" description:"stop the containers when the agent stops"`
	ClientSID   string  `json:"container_client_sid" long:"cm-cc-sid" hidden:"true"`
	NetworkSID  string  `json:"network_manager_sid" long:"cm-net-sid" hidden:"true"`
}

type containerSettings struct {
	Namespace     string                     `json:"default_ns" long:"ccl-default-ns" value-name:"NAME" description:"namespace of containerd"`
	Address       string                     `json:"address_path" long:"ccl-ap" value-name:"FILE" description:"socket of containerd"`
	Registries    map[string]images.Registry `json:"registry_configurations"`
	Insecure      list                       `json:"insecure_registries" long:"ccl-insecure-registries" value-name:"LIST" description:"registries, HOST or HOST:PORT with commas, that are asked by HTTP, then by HTTPS that is not verified"`
	ExecRootDir   string                     `json:"exec_root_dir" long:"ccl-exec-root-dir" value-name:"DIR" description:"where the streams of containers are"`
	HomeDir       string                     `json:"home_dir" long:"ccl-home-dir" value-name:"DIR" description:"where the logs of containers are"`
	Runtime       string                     `json:"runc_runtime" long:"ccl-runc-runtime" value-name:"NAME" description:"containerd's name of the runtime"`
	Expiry        duration                   `json:"image_expiry" long:"ccl-image-expiry" value-name:"TIME" description:"age at which an image goes that no container uses"`
	NoExpiry      bool                       `json:"image_expiry_disable" long:"ccl-image-expiry-disable" description:"keep images whatever their age"`
	Lease         string                     `json:"lease_id" long:"ccl-lease-id" value-name:"ID" description:"lease that keeps containerd from clearing away what containers need"`
	Verifier      string                     `json:"image_verifier_type" long:"ccl-image-verifier-type" value-name:"TYPE" description:"none, or notation to run only images with a trusted signature"`
	VerifierSetup pairs                      `json:"image_verifier_config" long:"ccl-image-verifier-config" value-name:"KEY=VALUE" description:"configDir and libexecDir of notation"`
	DecKeys       list                       `json:"image_dec_keys" long:"ccl-image-dec-keys" hidden:"true"`
	DecRecipients list                       `json:"image_dec_recipients" long:"ccl-image-dec-recipients" hidden:"true"`

	// Not known to Eclipse Kanto.
	ContainerdRoot string `json:"containerd_root" long:"ccl-containerd-root" value-name:"DIR" description:"where containerd has its data; default: /data/var/containerd if it is there, or else /var/lib/containerd"`
	Reserve        size   `json:"disk_reserve" long:"ccl-disk-reserve" value-name:"SIZE" description:"space that images leave free there"`
}

type networkSettings struct {
	Type        string `json:"type" long:"net-type" hidden:"true"`
	HomeDir     string `json:"home_dir" long:"net-home-dir" hidden:"true"`
	ExecRootDir string `json:"exec_root_dir" long:"net-exec-root-dir" value-name:"DIR" description:"where namespaces and hosts files are"`
	Bridge      struct {
		Disable   bool   `json:"disable" long:"net-tbr-disable" hidden:"true"`
		Name      string `json:"name" long:"net-br-name" value-name:"NAME" description:"name of the bridge"`
		IP4       string `json:"ip4" long:"net-br-ip4" value-name:"ADDRESS/BITS" description:"address and network of the bridge; default: a network that nobody uses"`
		Fixed4    string `json:"fcidr4" long:"net-br-fcidr4" value-name:"NETWORK" description:"part of the network for containers; default: all of it"`
		Gateway4  string `json:"gwip4" long:"net-br-gwip4" value-name:"ADDRESS" description:"gateway of containers; default: the bridge"`
		IP6       bool   `json:"enable_ip6" long:"net-br-enable-ip6" description:"IPv6 addresses, too"`
		MTU       int    `json:"mtu" long:"net-br-mtu" value-name:"BYTES" description:"largest packet"`
		ICC       bool   `json:"icc" long:"net-br-icc" description:"let containers reach each other"`
		IPTables  bool   `json:"ip_tables" long:"net-br-ipt" description:"make firewall rules"`
		Forward   bool   `json:"ip_forward" long:"net-br-ipfw" description:"switch forwarding on"`
		Masq      bool   `json:"ip_masq" long:"net-br-ipmasq" description:"hide containers behind the addresses of the host"`
		UserProxy bool   `json:"userland_proxy" long:"net-br-ulp" hidden:"true"`
	} `json:"default_bridge" group:"Bridge options"`
}

type grpcSettings struct {
	Protocol string `json:"protocol" long:"grpc-serv-netp" value-name:"unix|tcp" description:"network"`
	Address  string `json:"address_path" long:"grpc-serv-ap" value-name:"ADDRESS" description:"path of the socket, or HOST:PORT where anybody may do anything"`
	Group    string `json:"group" long:"grpc-serv-group" value-name:"GROUP" description:"who may use the socket beside root, if there is such a group"`
}

type deploymentSettings struct {
	Enable  bool   `json:"enable" long:"deployment-enable" description:"make the containers that files describe"`
	Mode    string `json:"mode" long:"deployment-mode" value-name:"MODE" description:"update: whenever a file is new; init: once in the life of the device"`
	HomeDir string `json:"home_dir" long:"deployment-home-dir" hidden:"true"`
	Dir     string `json:"ctr_dir" long:"deployment-ctr-dir" value-name:"DIR" description:"where the files are"`

	// Not known to Eclipse Kanto, but what its kanto-auto-deployer does.
	Manifests list     `json:"manifest_dirs" long:"deployment-manifest-dirs" value-name:"DIRS" description:"further such directories, with commas"`
	Archives  list     `json:"image_dirs" long:"deployment-image-dirs" value-name:"DIRS" description:"where archives of images are that are imported, with commas"`
	Period    duration `json:"period" long:"deployment-period" value-name:"TIME" description:"how often is looked for new files, 0s for only at the start"`
	Prune     bool     `json:"prune" long:"deployment-prune" description:"remove the container whose file has been removed"`
}

type thingsSettings struct {
	Enable   bool   `json:"enable" long:"things-enable" description:"publish the containers as features of a digital twin, and take its commands"`
	HomeDir  string `json:"home_dir" long:"things-home-dir" hidden:"true"`
	Features list   `json:"features" long:"things-features" value-name:"LIST" description:"which of ContainerFactory, SoftwareUpdatable and Metrics, with commas"`
}

type updateSettings struct {
	Enable  bool   `json:"enable" long:"ua-enable" description:"be the update agent of a domain"`
	Domain  string `json:"domain" long:"ua-domain" value-name:"NAME" description:"the domain, which begins its topics"`
	System  list   `json:"system_containers" long:"ua-system-containers" value-name:"LIST" description:"names of containers that updates leave alone, with commas"`
	Verbose bool   `json:"verbose_inventory_report" long:"ua-verbose-inventory-report" description:"tell more of each container in the current state"`

	// Not known to Eclipse Kanto.
	Scoped         bool     `json:"scoped" long:"ua-scoped" description:"leave containers alone that a desired state does not name"`
	HealthTime     duration `json:"health_time" long:"ua-health-time" value-name:"TIME" description:"how long a new container has to run before the old one goes"`
	Downloads      int      `json:"parallel_downloads" long:"ua-parallel-downloads" value-name:"N" description:"how many images are downloaded at the same time"`
	CommandTimeout duration `json:"command_timeout" long:"ua-command-timeout" value-name:"TIME" description:"an update that is not activated and has waited for its next command for so long is given up, 0s for never"`
	RefreshTags    bool     `json:"refresh_tags" long:"ua-refresh-tags" description:"ask registries whether the names of images stand for others now"`
}

type connectionSettings struct {
	Broker             string   `json:"broker_url" long:"conn-broker-url" value-name:"URL" description:"MQTT broker"`
	KeepAlive          duration `json:"keep_alive" long:"conn-keep-alive" value-name:"TIME" description:"time without traffic after which the broker is probed"`
	DisconnectTimeout  duration `json:"disconnect_timeout" long:"conn-disconnect-timeout" hidden:"true"`
	Username           string   `json:"client_username" long:"conn-client-username" value-name:"NAME" description:"user name for the broker"`
	Password           string   `json:"client_password" long:"conn-client-password" value-name:"PASSWORD" default-mask:"-" description:"password for the broker; others can see it here, better name a file"`
	PasswordFile       string   `json:"client_password_file" long:"conn-client-password-file" value-name:"FILE" description:"file with the password for the broker"`
	ConnectTimeout     duration `json:"connect_timeout" long:"conn-connect-timeout" value-name:"TIME" description:"how long an attempt to connect may take"`
	AcknowledgeTimeout duration `json:"acknowledge_timeout" long:"conn-ack-timeout" value-name:"TIME" description:"how long the broker may take to accept a message"`
	SubscribeTimeout   duration `json:"subscribe_timeout" long:"conn-sub-timeout" value-name:"TIME" description:"how long the broker may take to accept the subscriptions"`
	UnsubscribeTimeout duration `json:"unsubscribe_timeout" long:"conn-unsub-timeout" hidden:"true"`
	Transport          struct {
		RootCA string `json:"root_ca" long:"conn-root-ca" value-name:"FILE" description:"certificates (PEM) that may sign the broker's; default: those the system trusts"`
		Cert   string `json:"client_cert" long:"conn-client-cert" value-name:"FILE" description:"client certificate (PEM) for the broker"`
		Key    string `json:"client_key" long:"conn-client-key" value-name:"FILE" description:"key (PEM) of the client certificate"`
	} `json:"transport" group:"Broker options: TLS"`
}

// bus says how one of the services reaches the broker; id is the name of its session there.
func (s *settings) bus(id string) mqttbus.Config {
	c := s.Connection
	return mqttbus.Config{
		Broker: c.Broker, ClientID: id, User: c.Username, Password: c.Password, PasswordFile: c.PasswordFile,
		CAFile: c.Transport.RootCA, CertFile: c.Transport.Cert, KeyFile: c.Transport.Key, KeepAlive: time.Duration(c.KeepAlive),
		ConnectTimeout: time.Duration(c.ConnectTimeout), PublishTimeout: time.Duration(c.AcknowledgeTimeout), SubscribeTimeout: time.Duration(c.SubscribeTimeout),
	}
}

func defaults() settings {
	var s settings
	s.Log = logSettings{Level: "INFO", Size: 2, Count: 5, MaxAge: 28}
	s.Manager = managerSettings{HomeDir: originalHome, ExecRootDir: execRoot, StopTimeout: seconds(30 * time.Second)}
	s.Containers = containerSettings{
		Namespace: "kanto-cm", Address: "/run/containerd/containerd.sock", Insecure: list{"localhost"}, ExecRootDir: execRoot,
		HomeDir: originalHome, Runtime: runcRuntime, Expiry: duration(744 * time.Hour), Lease: "kanto-cm.lease", Verifier: verifyNothing,
		Reserve: size(64 << 20),
	}
	s.Network.Type, s.Network.ExecRootDir = "bridge", execRoot
	b := &s.Network.Bridge
	b.Name, b.MTU, b.ICC, b.IPTables, b.Forward, b.Masq = "kanto-cm0", 1500, true, true, true, true
	s.GRPC = grpcSettings{Protocol: "unix", Address: execRoot + "/container-management.sock", Group: "containers"}
	s.Deployment = deploymentSettings{
		Enable: true, Mode: "update", Dir: "/etc/container-management/containers", Manifests: list{"/data/var/containers/manifests"},
		Archives: list{"/data/var/containers/images"}, Period: duration(2 * time.Second),
	}
	s.Things = thingsSettings{Enable: true, HomeDir: originalHome, Features: twinFeatures()}
	s.UpdateAgent = updateSettings{
		Domain: "containers", HealthTime: duration(2 * time.Second), Downloads: 3, CommandTimeout: duration(24 * time.Hour),
	}
	s.Connection = connectionSettings{
		Broker: "tcp://localhost:1883", KeepAlive: duration(20 * time.Second), ConnectTimeout: duration(30 * time.Second),
		AcknowledgeTimeout: duration(15 * time.Second), SubscribeTimeout: duration(15 * time.Second),
	}
	return s
}

func twinFeatures() list { return list{"ContainerFactory", "SoftwareUpdatable", "Metrics"} }

const (
	runcRuntime    = "io.containerd.runc.v2"
	verifyNothing  = "none"
	verifyNotation = "notation"

	noEffect = "has no effect in this version"

	letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
)

// options are the command line of the daemon.
type options struct {
	settings
	CfgFile string `long:"cfg-file" value-name:"FILE" description:"configuration file; default: /etc/container-management/config.json"`
	Version bool   `long:"version" description:"show the version and exit"`
}

func newOptions() *options { return &options{settings: defaults()} }

// load returns what the configuration file and the command line say, and the file, with what is odd about it. It has no name if it is
// not there.
func load(c *applet.Call) (settings, *config.File, error) {
	o := newOptions()
	f, err := readFile(c.Options.(*options).CfgFile, &o.settings)
	if err == nil {
		err = c.Overlay(o)
	}
	if err != nil {
		return settings{}, nil, err
	}
	o.check(f)
	return o.settings, f, nil
}

// again returns what is like load, but a file that is gone since it was there is an error: it is not meant to be none.
func again(c *applet.Call, there bool) func() (settings, []config.Warning, error) {
	return func() (settings, []config.Warning, error) {
		s, f, err := load(c)
		if err != nil {
			return settings{}, nil, err
		}
		if there && f.Name == "" {
			return settings{}, nil, fmt.Errorf("there is no %s any more", cmp.Or(c.Options.(*options).CfgFile, configFile))
		}
		there = f.Name != ""
		return s, f.Warnings, nil
	}
}

// readFile reads a configuration file. The usual one need not be there, and an empty one is as good as none.
func readFile(file string, s *settings) (*config.File, error) {
	path := cmp.Or(file, configFile)
	f, err := config.Read(path, s)
	switch {
	case errors.Is(err, config.ErrEmpty):
		f, err = &config.File{Name: path}, nil
		f.Warn(path, "empty, the defaults apply")
	case errors.Is(err, fs.ErrNotExist):
		f, err = new(config.File), nil
		if file != "" {
			f.Warn(path, "not there, the defaults apply")
		}
	}
	return f, err
}

// check makes good what can be, with a warning.
func (s *settings) check(f *config.File) {
	d := defaults()
	odd := func(key, text string) { f.Warn(key, text+"; the default applies") }
	if !slices.Contains([]string{"ERROR", "WARN", "INFO", "DEBUG", "TRACE"}, strings.ToUpper(s.Log.Level)) {
		odd("log.log_level", "expected ERROR, WARN, INFO, DEBUG or TRACE")
		s.Log.Level = d.Log.Level
	}
	for key, n := range map[string]*int{"log.log_file_size": &s.Log.Size, "log.log_file_count": &s.Log.Count, "log.log_file_max_age": &s.Log.MaxAge} {
		if *n < 0 {
			odd(key, "negative")
			*n = map[string]int{"log.log_file_size": d.Log.Size, "log.log_file_count": d.Log.Count, "log.log_file_max_age": d.Log.MaxAge}[key]
		}
	}
	choose := func(key string, value *string, initial string, choices ...string) {
		if !slices.Contains(choices, *value) {
			odd(key, fmt.Sprintf("%q: expected %s", *value, strings.Join(choices, " or ")))
			*value = initial
		}
	}
	choose("grpc_server.protocol", &s.GRPC.Protocol, "unix", "unix", "tcp")
	choose("deployment.mode", &s.Deployment.Mode, "update", "update", "init")
	choose("network.type", &s.Network.Type, "bridge", "bridge")
	for _, text := range []struct {
		key            string
		value, initial *string
	}{
		{"manager.exec_root_dir", &s.Manager.ExecRootDir, &d.Manager.ExecRootDir},
		{"containers.address_path", &s.Containers.Address, &d.Containers.Address},
		{"containers.exec_root_dir", &s.Containers.ExecRootDir, &d.Containers.ExecRootDir},
		{"containers.home_dir", &s.Containers.HomeDir, &d.Containers.HomeDir},
		{"containers.lease_id", &s.Containers.Lease, &d.Containers.Lease},
		{"network.exec_root_dir", &s.Network.ExecRootDir, &d.Network.ExecRootDir},
		{"grpc_server.address_path", &s.GRPC.Address, &d.GRPC.Address},
	} {
		if *text.value == "" {
			odd(text.key, "empty")
			*text.value = *text.initial
		}
	}
	if _, _, err := net.SplitHostPort(s.GRPC.Address); s.GRPC.Protocol == "tcp" && err != nil {
		odd("grpc_server.address_path", fmt.Sprintf("%.40q: expected HOST:PORT", s.GRPC.Address))
		s.GRPC = d.GRPC
	}
	if ns := s.Containers.Namespace; ns == "" || len(ns) > 76 || strings.Trim(ns, letters+"-_.") != "" {
		odd("containers.default_ns", fmt.Sprintf("%.40q: expected at most 76 letters, digits, - _ and .", ns))
		s.Containers.Namespace = d.Containers.Namespace
	}
	s.checkBridge(f)
	if old := s.Containers.Runtime; old == "io.containerd.runc.v1" || old == "io.containerd.runtime.v1.linux" {
		f.Warn("containers.runc_runtime", old+" is no longer part of containerd, taken as "+runcRuntime)
		s.Containers.Runtime = runcRuntime
	} else if !strings.HasPrefix(old, "io.containerd.") {
		odd("containers.runc_runtime", fmt.Sprintf("%.40q: expected a name such as %s", old, runcRuntime))
		s.Containers.Runtime = runcRuntime
	}
	for host, r := range s.Containers.Registries {
		if !isRegistry(host) {
			f.Warn("containers.registry_configurations."+host, fmt.Sprintf("%.40q: %s", host, expectedRegistry))
		}
		if t := r.Transport; (t.ClientCert == "") != (t.ClientKey == "") {
			f.Warn("containers.registry_configurations."+host+".transport", "expected both client_cert and client_key, or none")
		}
	}
	for _, host := range s.Containers.Insecure {
		if !isRegistry(host) {
			f.Warn(insecureKey, fmt.Sprintf("%.40q: %s", host, expectedRegistry))
		}
	}
	if v := s.Containers.Verifier; v != verifyNothing && v != verifyNotation {
		f.Warn("containers.image_verifier_type", fmt.Sprintf("%q: expected none or notation; taken as notation, so that nothing runs that should not", v))
		s.Containers.Verifier = verifyNotation
	}
	for key := range s.Containers.VerifierSetup {
		if key != "configDir" && key != "libexecDir" {
			f.Warn("containers.image_verifier_config."+key, "unknown key")
		}
	}
	for key, without := range map[string]bool{
		"log.syslog":                            s.Log.Syslog,
		"network.default_bridge.disable":        s.Network.Bridge.Disable,
		"network.default_bridge.userland_proxy": s.Network.Bridge.UserProxy,
		"containers.image_dec_keys":             len(s.Containers.DecKeys) > 0,
		"containers.image_dec_recipients":       len(s.Containers.DecRecipients) > 0,
	} {
		if without {
			f.Warn(key, noEffect)
		}
	}
	s.checkRemote(f)
	slices.SortStableFunc(f.Warnings, func(a, b config.Warning) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Key, b.Key))
	})
}

const expectedRegistry = "expected HOST or HOST:PORT, as images are named with"

// isRegistry tells whether the name of an image can begin with text. An address of IPv6 may do without brackets if it has no port.
func isRegistry(text string) bool {
	if ip, err := netip.ParseAddr(text); err == nil {
		return ip.Zone() == ""
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		host, port, err = net.SplitHostPort(text + ":443")
	}
	if n, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || n == 0 {
		return false
	}
	if strings.HasPrefix(text, "[") {
		ip, err := netip.ParseAddr(host)
		return err == nil && ip.Is6() && ip.Zone() == ""
	}
	return host != "" && !strings.ContainsFunc(host, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-_.", r)
	})
}

// checkBridge makes sure that there can be a network.
func (s *settings) checkBridge(f *config.File) {
	b, d := &s.Network.Bridge, defaults().Network.Bridge
	const key = "network.default_bridge."
	if b.MTU < 68 || b.MTU > 65535 {
		f.Warn(key+"mtu", "expected 68 to 65535; the default applies")
		b.MTU = d.MTU
	}
	if b.Name == "" || len(b.Name) > 15 || strings.Trim(b.Name, letters+"-_.") != "" {
		f.Warn(key+"name", fmt.Sprintf("%.40q: expected 1 to 15 letters, digits, - _ and .; the default applies", b.Name))
		b.Name = d.Name
	}
	if _, err := ctrnet.New(s.network(nil)); err != nil {
		at, text, _ := strings.Cut(err.Error(), " ")
		f.Warn(at, text+"; the addresses of the bridge are chosen by the agent")
		b.IP4, b.Fixed4, b.Gateway4 = "", "", ""
	}
}

// checkRemote makes sure that who works over the bus can: containers do not depend on that.
func (s *settings) checkRemote(f *config.File) {
	s.Things.Features = slices.DeleteFunc(s.Things.Features, func(feature string) bool {
		unknown := !slices.Contains(twinFeatures(), feature)
		if unknown {
			f.Warn("things.features", fmt.Sprintf("%.40q is no feature, expected %s", feature, strings.Join(twinFeatures(), ", ")))
		}
		return unknown
	})
	if d := s.UpdateAgent.Domain; d == "" || len(d) > 200 || strings.ContainsAny(d, "+#") || strings.ContainsFunc(d, unicode.IsControl) {
		f.Warn("update_agent.domain", "expected a name that can be part of a topic, without + and #; the default applies")
		s.UpdateAgent.Domain = defaults().UpdateAgent.Domain
	}
	if s.UpdateAgent.Downloads < 1 {
		f.Warn("update_agent.parallel_downloads", "less than 1; the default applies")
		s.UpdateAgent.Downloads = defaults().UpdateAgent.Downloads
	}
	c := &s.Connection
	scheme, _, found := strings.Cut(c.Broker, "://")
	if !found {
		f.Warn("connection.broker_url", "no scheme, taken as tcp://")
	}
	if plain := strings.ToLower(scheme); (!found || plain == "tcp" || plain == "mqtt") && c.Transport.RootCA+c.Transport.Cert+c.Transport.Key != "" {
		f.Warn("connection.transport", "has no effect on a connection without encryption")
		c.Transport.RootCA, c.Transport.Cert, c.Transport.Key = "", "", ""
	}
	if c.Username == "" && c.Password+c.PasswordFile != "" {
		f.Warn("connection.client_username", "empty, so that the password has no effect")
		c.Password, c.PasswordFile = "", ""
	}
	if err := s.bus(name).Validate(); err != nil {
		f.Warn("connection", err.Error()+"; things and update_agent are off")
		s.Things.Enable, s.UpdateAgent.Enable = false, false
	}
}

// list is separated by commas on the command line.
type list []string

// UnmarshalFlag adds what is between commas.
func (l *list) UnmarshalFlag(text string) error {
	if text != "" {
		*l = append(*l, strings.Split(text, ",")...)
	}
	return nil
}

// pairs are KEY=VALUE with commas on the command line.
type pairs map[string]string

// UnmarshalFlag adds what is between commas.
func (p *pairs) UnmarshalFlag(text string) error {
	if *p == nil {
		*p = pairs{}
	}
	for pair := range strings.SplitSeq(text, ",") {
		key, value, found := strings.Cut(pair, "=")
		if !found {
			return fmt.Errorf("%q: expected KEY=VALUE", pair)
		}
		(*p)[key] = value
	}
	return nil
}

// unquoted is the text of a JSON string, and any other value as it is.
func unquoted(raw []byte) string {
	text := string(raw)
	_ = json.Unmarshal(raw, &text) // leaves text as it is if it is none
	return text
}

// duration is one with a unit: what a plain number is meant to be, nobody knows.
type duration time.Duration

func (d duration) String() string { return time.Duration(d).String() }

// UnmarshalConfig implements config.Value.
func (d *duration) UnmarshalConfig(raw []byte) (odd string, err error) {
	return "", d.UnmarshalFlag(unquoted(raw))
}

// UnmarshalFlag sets d from the command line.
func (d *duration) UnmarshalFlag(text string) error {
	v, err := time.ParseDuration(text)
	if err != nil || v < 0 {
		return fmt.Errorf("%.40q: expected a duration with its unit, such as \"30s\"", text)
	}
	*d = duration(v)
	return nil
}

// seconds is a duration of which a plain number is seconds.
type seconds time.Duration

func (s seconds) String() string { return time.Duration(s).String() }

// UnmarshalConfig implements config.Value.
func (s *seconds) UnmarshalConfig(raw []byte) (odd string, err error) {
	return "", s.UnmarshalFlag(unquoted(raw))
}

// UnmarshalFlag sets s from the command line.
func (s *seconds) UnmarshalFlag(text string) error {
	d, err := time.ParseDuration(text)
	if n, e := strconv.ParseUint(text, 10, 31); e == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || d < 0 {
		return fmt.Errorf("%.40q: expected a duration such as \"30s\", or seconds", text)
	}
	*s = seconds(d)
	return nil
}

// size is a number of bytes, written as 64M.
type size int64

func (s size) String() string { return strconv.FormatInt(int64(s)>>20, 10) + "M" }

// UnmarshalConfig implements config.Value.
func (s *size) UnmarshalConfig(raw []byte) (odd string, err error) {
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return "", errors.New("expected a size such as \"64M\"")
	}
	return "", s.UnmarshalFlag(text)
}

// UnmarshalFlag sets s from the command line.
func (s *size) UnmarshalFlag(text string) error {
	n, err := ctrmodel.ParseSize(text)
	if err == nil {
		*s = size(n)
	}
	return err
}
