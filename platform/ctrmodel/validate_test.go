// SPDX-License-Identifier: Apache-2.0

package ctrmodel

import (
	"strings"
	"testing"
	"time"
)

func wantError(t *testing.T, what string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", what, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: got error %v, want %q", what, err, want)
	case err != nil && KindOf(err) != InvalidArgument:
		t.Errorf("%s: %v has kind %d", what, err, KindOf(err))
	}
}

func TestFaultsOfAContainerAreNamed(t *testing.T) {
	type edit = func(c *Container)
	host := func(change func(h *HostConfig)) edit { return func(c *Container) { change(&c.HostConfig) } }
	policy := func(p RestartPolicy) edit { return host(func(h *HostConfig) { h.RestartPolicy = p }) }
	resources := func(r Resources) edit { return host(func(h *HostConfig) { h.Resources = r }) }
	env := func(entries ...string) edit { return func(c *Container) { c.Config.Env = entries } }
	name := func(name string) edit {
		return func(c *Container) { c.Name, c.HostName, c.DomainName = name, "h", "d" }
	}
	id := func(id string) edit { return func(c *Container) { c.ID = id } }
	for _, test := range []struct {
		what   string
		change edit
		err    string
	}{
		{"nothing", func(*Container) {}, ""},
		{"full", func(c *Container) {
			c.ID = "3f.B_x-9"
			c.Mounts = []Mount{{Source: "/a", Destination: "/b", Propagation: "slave"}}
			c.Hooks = []Hook{{Path: "/bin/x"}}
			c.Config = Config{Env: []string{"A=1", "_B=", "C"}, Cmd: []string{"-x"}}
			c.HostConfig.Devices = []Device{{OnHost: "/dev/x", Permissions: "r"}}
			c.HostConfig.ExtraHosts = []string{"broker:host_ip", "db:container_db-host", "six:fd00::1"}
			c.HostConfig.Ports = []Port{{Container: 80, HostPort: 8000, HostPortEnd: 8010, HostIP: "::1", Proto: "udp"}}
		}, ""},

		{"no image", func(c *Container) { c.Image.Name = "" }, "image.name is missing"},
		{"name", name("_Radio-1.x_"), ""},
		{"name of a file", name("../x"), `container_name "../x"`},
		{"name with a dash first", name("-x"), `container_name "-x"`},
		{"name with a letter that is not ASCII", name("über"), `container_name "über"`},
		{"id of a file", id("../x"), `container_id "../x"`},
		{"id with a slash", id("a/b"), `container_id "a/b"`},
		{"id with two dots", id("a..b"), `container_id "a..b"`},
		{"id with a dot last", id("a."), `container_id "a."`},
		{"long id", id(strings.Repeat("a", 77)), "up to 76"},
		{"UUID", id("c8f1a4f7-2f2b-4d2e-9b39-4f4b8b5f2b50"), ""},
		{"host name that forges a hosts file", func(c *Container) { c.HostName = "a\n1.2.3.4 b" }, "host_name"},
		{"long host name", func(c *Container) { c.HostName = strings.Repeat("h", 65) }, "host_name"},
		{"domain name", func(c *Container) { c.DomainName = "a b" }, "domain_name"},

		{"mount without source", func(c *Container) { c.Mounts = []Mount{{}, {Destination: "/b"}} }, "mount_points[0]"},
		{"mount without destination", func(c *Container) { c.Mounts = []Mount{{Source: "/a"}} }, "destination is missing"},
		{"mount mode", func(c *Container) { c.Mounts = []Mount{{Source: "/a", Destination: "/b", Propagation: "x"}} }, `propagation mode "x", expected one of rprivate`},
		{"hook", func(c *Container) { c.Hooks = []Hook{{}} }, "hooks[0]: path is missing"},

		{"environment", env("A=1", "=s3cret"), `config.env[1] "":`},
		{"empty environment", env(""), `config.env[0] "":`},
		{"environment with a digit", env("1A=s3cret"), `config.env[0] "1A":`},
		{"long environment", env("-" + strings.Repeat("x", 40) + "s3cret"), `config.env[0] "-xxx`},
		{"environment with a zero byte", env("B=", "A=s3cret\x00"), `config.env[1] "A" contains a zero byte`},
		{"command with a zero byte", func(c *Container) { c.Config.Cmd = []string{"a", "s3cret\x00"} }, "config.cmd[1] contains a zero byte"},

		{"privileged with devices", host(func(h *HostConfig) { h.Privileged, h.Devices = true, []Device{{OnHost: "/dev/x"}} }), "host_config: devices"},
		{"privileged with capabilities", host(func(h *HostConfig) { h.Privileged, h.ExtraCapabilities = true, []string{"CAP_X"} }), "host_config: extra_capabilities"},
		{"capabilities", host(func(h *HostConfig) { h.ExtraCapabilities = []string{"CAP_NET_ADMIN", "sys_time", "all", "CAP_ALL"} }), ""},
		{"no capability", host(func(h *HostConfig) { h.ExtraCapabilities = []string{"CAP_BPF", "CAP_FOO"} }), `host_config: extra_capabilities[1]: there is no capability "CAP_FOO"`},
		{"empty capability", host(func(h *HostConfig) { h.ExtraCapabilities = []string{""} }), `extra_capabilities[0]: there is no capability ""`},
		{"privileged with empty lists", host(func(h *HostConfig) { h.Privileged, h.Devices, h.ExtraCapabilities = true, []Device{}, []string{} }), ""},
		{"network", host(func(h *HostConfig) { h.NetworkMode = "nat" }), `network_mode "nat": expected bridge, host or none`},
		{"no network", host(func(h *HostConfig) { h.NetworkMode, h.ExtraHosts = "none", []string{"a:1.2.3.4"} }), ""},
		{"ports without a network", host(func(h *HostConfig) { h.NetworkMode, h.Ports = "none", []Port{{Container: 1, HostPort: 1}} }), "port_mappings"},
		{"host_ip without a network", host(func(h *HostConfig) { h.NetworkMode, h.ExtraHosts = "none", []string{"x:host_ip"} }), `extra_hosts[0] "x:host_ip"`},
		{"ports in the host's network", host(func(h *HostConfig) { h.NetworkMode, h.Ports = "host", []Port{{Container: 1, HostPort: 1}} }), "port_mappings"},
		{"host_ip in the host's network", host(func(h *HostConfig) { h.NetworkMode, h.ExtraHosts = "host", []string{"a:1.2.3.4", "x:host_ip"} }), `extra_hosts[1] "x:host_ip"`},
		{"runtime", host(func(h *HostConfig) { h.Runtime = "runc" }), `runtime "runc"`},
		{"device without path", host(func(h *HostConfig) { h.Devices = []Device{{InContainer: "/dev/x"}} }), "devices[0]: device: path_on_host is missing"},
		{"device permissions", host(func(h *HostConfig) { h.Devices = []Device{{OnHost: "/dev/x", Permissions: "rx"}} }), `permissions "rx"`},
		{"extra host", host(func(h *HostConfig) { h.ExtraHosts = []string{"a"} }), `host_config: extra_hosts[0]: extra host "a"`},
		{"port", host(func(h *HostConfig) { h.Ports = []Port{{HostPort: 1}} }), "the port in the container is missing"},
		{"host port", host(func(h *HostConfig) { h.Ports = []Port{{Container: 1}} }), "the port of the host is missing"},
		{"port range", host(func(h *HostConfig) { h.Ports = []Port{{Container: 1, HostPort: 9, HostPortEnd: 8}} }), "ends at 8 before it begins at 9"},
		{"protocol", host(func(h *HostConfig) { h.Ports = []Port{{Container: 1, HostPort: 9, Proto: "icmp"}} }), `protocol "icmp"`},
		{"host IP", host(func(h *HostConfig) { h.Ports = []Port{{Container: 1, HostPort: 9, HostIP: "lo"}} }), `"lo" is not an IP address`},

		{"restart policy", policy(RestartPolicy{Type: "sometimes"}), `restart_policy: type "sometimes": expected one of no always`},
		{"attempts", policy(RestartPolicy{Type: "on-failure", MaxRetries: 3, RetryTimeout: time.Minute}), ""},
		{"attempts that do not count", policy(RestartPolicy{Type: "always", MaxRetries: 1}), "only on-failure counts"},
		{"negative attempts", policy(RestartPolicy{Type: "on-failure", MaxRetries: -1}), "maximum_retry_count -1"},
		{"negative timeout", policy(RestartPolicy{Type: "on-failure", RetryTimeout: -1}), "retry_timeout"},

		{"log driver", host(func(h *HostConfig) { h.Log.Driver.Type = "syslog" }), `log_config: type "syslog"`},
		{"log files", host(func(h *HostConfig) { h.Log.Driver.MaxFiles = -1 }), "max_files -1"},
		{"log size", host(func(h *HostConfig) { h.Log.Driver.MaxSize = "10" }), `max_size: size "10"`},
		{"no log size", host(func(h *HostConfig) { h.Log.Driver.MaxSize = "0k" }), "more than nothing"},
		{"log directory", host(func(h *HostConfig) { h.Log.Driver.RootDir = "log" }), "root_dir"},
		{"log mode", host(func(h *HostConfig) { h.Log.Mode.Mode = "x" }), `mode "x"`},
		{"log buffer", host(func(h *HostConfig) { h.Log.Mode = LogMode{"non-blocking", "x"} }), `max_buffer_size: size "x"`},
		{"ignored log buffer", host(func(h *HostConfig) { h.Log.Mode = LogMode{"blocking", "x"} }), ""},

		{"memory", resources(Resources{"3M", "3072k", "3M"}), ""},
		{"too little memory", resources(Resources{Memory: "3071k"}), "memory 3071k: expected 3M or more"},
		{"memory without unit", resources(Resources{Memory: "5000000"}), `memory: size "5000000"`},
		{"only reservation", resources(Resources{MemoryReservation: "1M"}), ""},
		{"reservation above memory", resources(Resources{Memory: "8M", MemoryReservation: "9M"}), "memory_reservation 9M"},
		{"swap without memory", resources(Resources{MemorySwap: "9M"}), "needs memory"},
		{"swap below memory", resources(Resources{Memory: "8M", MemorySwap: "7M"}), "memory_swap 7M"},
		{"unlimited memory", resources(Resources{Memory: "-1"}), "only memory_swap can be -1"},
	} {
		err := valid(test.change).Validate()
		wantError(t, test.what, err, test.err)
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v tells secrets", test.what, err)
		}
	}
}

func TestFaultsOfStopOptionsAreNamed(t *testing.T) {
	for _, test := range []struct {
		o   StopOptions
		err string
	}{
		{StopOptions{}, ""},
		{StopOptions{Timeout: 5, Force: true, Signal: "SIGINT"}, ""},
		{StopOptions{Timeout: -1}, "timeout -1"},
		{StopOptions{Signal: "9"}, ""},
		{StopOptions{Signal: "0"}, "signal 0: expected 1 to 255"},
		{StopOptions{Signal: "256"}, "signal 256"},
		{StopOptions{Signal: "SIGNAL"}, `signal "SIGNAL"`},
	} {
		wantError(t, test.o.Signal, test.o.Validate(), test.err)
	}
}
