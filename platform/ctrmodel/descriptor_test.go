// SPDX-License-Identifier: Apache-2.0

package ctrmodel

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDescriptors(t *testing.T) {
	gateway := &Container{
		ID: "7", Name: "gateway", Image: Image{Name: "registry.example/gateway:3.1"},
		Mounts: []Mount{{Source: "/data/gw", Destination: "/data", Propagation: "rprivate"}},
		Hooks:  []Hook{{Path: "/bin/x", Type: Poststop}},
		Config: Config{Env: []string{"MODE=car"}, Cmd: []string{"--verbose"}},
		HostConfig: HostConfig{
			NetworkMode:   "bridge",
			RestartPolicy: RestartPolicy{Type: "on-failure", MaxRetries: 3, RetryTimeout: 30 * time.Second},
			ExtraHosts:    []string{"broker:host_ip"},
			Ports:         []Port{{Proto: "tcp", Container: 8080, HostIP: "0.0.0.0", HostPort: 30080}},
			Log:           Log{LogDriver{Type: "json-file", MaxFiles: 2, MaxSize: "1M"}, LogMode{Mode: "blocking"}},
			Resources:     Resources{Memory: "64M"},
		},
		IOConfig: IOConfig{TTY: true},
	}
	for _, test := range []struct {
		what, text string
		want       *Container
		odd, err   string
	}{
		{"minimal", `{"container_name": "databroker", "image": {"name": "registry.example/databroker:1.2"}}`,
			&Container{Name: "databroker", Image: Image{Name: "registry.example/databroker:1.2"}}, "", ""},
		{"the engine's own", `{
			"container_id": "7", "container_name": "gateway", "image": {"name": "registry.example/gateway:3.1"},
			"mount_points": [{"source": "/data/gw", "destination": "/data", "propagation_mode": "rprivate"}],
			"hooks": [{"path": "/bin/x", "type": 2}],
			"config": {"env": ["MODE=car"], "cmd": ["--verbose"]},
			"host_config": {"network_mode": "bridge", "extra_hosts": ["broker:host_ip"],
				"port_mappings": [{"proto": "tcp", "container_port": 8080, "host_ip": "0.0.0.0", "host_port": 30080}],
				"restart_policy": {"type": "on-failure", "maximum_retry_count": 3, "retry_timeout": 30000000000},
				"log_config": {"driver_config": {"type": "json-file", "max_files": 2, "max_size": "1M"}, "mode_config": {"mode": "blocking"}},
				"resources": {"memory": "64M"}},
			"io_config": {"tty": true},
			"network_settings": {"sandbox_id": "x"}, "created": "2024", "restart_count": 9, "manually_stopped": true,
			"started_successfully_before": true, "hosts_path": "/x", "state": {"status": 2, "pid": 7}}`, gateway, "", ""},
		{"the API's message", `{
			"id": "7", "name": "gateway", "image": {"name": "registry.example/gateway:3.1", "decrypt_config": null}, "host_name": "", "domain_name": "",
			"resolv_conf_path": "", "hosts_path": "", "hostname_path": "",
			"mounts": [{"source": "/data/gw", "destination": "/data", "propagation_mode": "rprivate"}],
			"hooks": [{"path": "/bin/x", "type": "Poststop"}],
			"config": {"env": ["MODE=car"], "cmd": ["--verbose"]},
			"host_config": {"network_mode": "bridge", "extra_hosts": ["broker:host_ip"], "privileged": false,
				"port_mappings": [{"protocol": "tcp", "container_port": 8080, "host_ip": "0.0.0.0", "host_port": 30080}],
				"restart_policy": {"type": "on-failure", "maximum_retry_count": 3, "retry_timeout": 30},
				"log_config": {"driver_config": {"type": "json-file", "max_files": 2, "max_size": "1M"}, "mode_config": {"mode": "blocking"}},
				"resources": {"memory": "64M"}},
			"io_config": {"tty": true},
			"network_settings": null, "state": {"pid": -1, "status": "Running"}, "created": "2024", "manually_stopped": false, "restart_count": 0}`, gateway, "", ""},
		{"keys set to null", `{"container_name": "a", "image": {"name": "b"}, "config": null, "host_config": {"devices": null, "resources": null}, "io_config": null}`,
			&Container{Name: "a", Image: Image{Name: "b"}}, "", ""},
		{"unknown key", `{"container_name": "a", "labels": {}, "image": {"name": "b"}}`, &Container{Name: "a", Image: Image{Name: "b"}}, `unknown field "labels"`, ""},
		{"unknown key of a message", `{"name": "a", "labels": {}, "image": {"name": "b"}}`, &Container{Name: "a", Image: Image{Name: "b"}}, `unknown field "labels"`, ""},
		{"wrong kind", `{"container_name": "a", "host_config": {"port_mappings": [{"host_port": "x"}]}}`, nil, "", "host_config.port_mappings.host_port: unexpected string"},
		{"port too large", `{"container_name": "a", "host_config": {"port_mappings": [{"host_port": 65536}]}}`, nil, "", "host_config.port_mappings.host_port: unexpected number 65536"},
		{"half", `{"container_name": "a"`, nil, "", "unexpected end"},
		{"empty", ``, nil, "", "unexpected end"},
		{"null", `null`, nil, "", "expected an object"},
		{"list", `[]`, nil, "", "container: unexpected array"},
		{"two", `{} {}`, nil, "", "after top-level value"},
		{"large", strings.Repeat(" ", 1<<20) + "{}", nil, "", "larger than 1048576"},
	} {
		c, odd, err := ParseDescriptor([]byte(test.text))
		wantError(t, test.what, err, test.err)
		if test.err != "" {
			continue
		}
		if odd == nil && test.odd != "" || odd != nil && (test.odd == "" || !strings.Contains(odd.Error(), test.odd)) {
			t.Errorf("%s: odd is %v, want %q", test.what, odd, test.odd)
		}
		if diff := cmp.Diff(test.want, c); diff != "" {
			t.Errorf("%s: %s", test.what, diff)
		}
	}
}

func TestOriginalWithoutSwapHasNoLimitOfIt(t *testing.T) {
	for _, test := range []struct{ resources, want string }{
		{`{"memory": "64M"}`, "-1"},
		{`{"memory": "64M", "memory_swap": "100M"}`, "100M"},
		{`null`, ""},
	} {
		c, err := ParseOriginal([]byte(`{"container_id": "x", "state": {"status": 2, "pid": 7}, "host_config": {"resources": ` + test.resources + `}}`))
		if err != nil || c.HostConfig.Resources.MemorySwap != test.want || c.State.PID != 7 {
			t.Errorf("%s: %v, swap %q and PID %d", test.resources, err, c.HostConfig.Resources.MemorySwap, c.State.PID)
		}
	}
	_, err := ParseOriginal([]byte(`{`))
	wantError(t, "half", err, "not the JSON of a container")
}

func TestDurationsOfManySecondsStayDurations(t *testing.T) {
	for n, want := range map[int64]time.Duration{30: 30 * time.Second, -1: -time.Second, 1 << 62: 9223372036 * time.Second, -1 << 63: -9223372036 * time.Second} {
		if got := Seconds(n); got != want {
			t.Errorf("%d: got %v, want %v", n, got, want)
		}
	}
}

func FuzzParseOriginal(f *testing.F) {
	f.Add([]byte(`{"container_id": "x", "container_name": "a", "image": {"name": "b"}, "state": {"status": 2}, "host_config": {"resources": {"memory": "64M"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseOriginal(data)
		if err != nil {
			return
		}
		unlimited := c.HostConfig.Resources.Memory != "" && c.HostConfig.Resources.MemorySwap == Unlimited
		c.Defaults(newID)
		if r := c.HostConfig.Resources; unlimited && r.MemorySwap != Unlimited {
			t.Errorf("swap without limit becomes %q", r.MemorySwap)
		}
		if c.Validate() == nil {
			wantStable(t, c)
		}
	})
}

func FuzzParseDescriptor(f *testing.F) {
	f.Add([]byte(`{"container_name": "a", "image": {"name": "b"}, "host_config": {"resources": {"memory": "64M"}}}`))
	f.Add([]byte(`{"name": "a", "image": {"name": "b"}, "hooks": [{"type": "Poststop"}], "host_config": {"restart_policy": {"retry_timeout": 3}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, _, err := ParseDescriptor(data)
		if err != nil {
			return
		}
		bare := c.Clone()
		c.Defaults(newID)
		if c.Validate() != nil {
			return
		}
		wantStable(t, bare)
		stored, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, odd, err := ParseDescriptor(stored)
		if err != nil || odd != nil {
			t.Fatalf("%s: %v, %v", stored, err, odd)
		}
		if Compare(c, again) != Same {
			t.Errorf("%s becomes another container", stored)
		}
	})
}
