// SPDX-License-Identifier: Apache-2.0

package ctrtwin

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sdvbox/platform/ctrmodel"
)

// full is a container with everything that the twin has a name for.
func full() *ctrmodel.Container {
	c := &ctrmodel.Container{
		Name: "radio", Image: ctrmodel.Image{Name: "registry.example/radio:1", Decrypt: &ctrmodel.Decrypt{Keys: []string{"/etc/key.pem"}, Recipients: []string{"pkcs7:/etc/cert.pem"}}},
		DomainName: "car", HostName: "radio-host",
		Mounts: []ctrmodel.Mount{{Source: "/data", Destination: "/d", Propagation: "rshared", ReadOnly: true}},
		Config: ctrmodel.Config{Env: []string{"A=1"}, Cmd: []string{"run", "-v"}},
	}
	c.IOConfig.OpenStdin, c.IOConfig.TTY = true, true
	c.HostConfig = ctrmodel.HostConfig{
		Devices:     []ctrmodel.Device{{OnHost: "/dev/tty0", InContainer: "/dev/tty1", Permissions: "rw"}},
		NetworkMode: "bridge", ExtraHosts: []string{"broker:host_ip"}, ExtraCapabilities: []string{"CAP_NET_ADMIN"},
		RestartPolicy: ctrmodel.RestartPolicy{Type: "on-failure", MaxRetries: 3, RetryTimeout: 30 * time.Second},
		Ports:         []ctrmodel.Port{{Proto: "tcp", Container: 80, HostIP: "0.0.0.0", HostPort: 8080, HostPortEnd: 8090}},
		Log: ctrmodel.Log{
			Driver: ctrmodel.LogDriver{Type: "json-file", MaxFiles: 2, MaxSize: "1M", RootDir: "/log"}, Mode: ctrmodel.LogMode{Mode: "non-blocking", MaxBufferSize: "1M"},
		},
		Resources: ctrmodel.Resources{Memory: "64M", MemoryReservation: "32M", MemorySwap: "-1"},
	}
	return c
}

const fullText = `{"domainName":"car","hostName":"radio-host","mountPoints":[{"source":"/data","destination":"/d","propagationMode":"RSHARED","readOnly":true}],` +
	`"env":["A=1"],"cmd":["run","-v"],"decryption":{"keys":["/etc/key.pem"],"recipients":["pkcs7:/etc/cert.pem"]},` +
	`"devices":[{"pathOnHost":"/dev/tty0","pathInContainer":"/dev/tty1","cgroupPermissions":"rw"}],` +
	`"restartPolicy":{"type":"ON_FAILURE","maxRetryCount":3,"retryTimeout":30},"extraHosts":["broker:host_ip"],"extraCapabilities":["CAP_NET_ADMIN"],` +
	`"portMappings":[{"proto":"tcp","hostPort":8080,"hostPortEnd":8090,"containerPort":80,"hostIP":"0.0.0.0"}],"networkMode":"BRIDGE","openStdin":true,"tty":true,` +
	`"log":{"type":"JSON_FILE","maxFiles":2,"maxSize":"1M","rootDir":"/log","mode":"NON_BLOCKING","maxBufferSize":"1M"},` +
	`"resources":{"memory":"64M","memoryReservation":"32M","memorySwap":"-1"}}`

func TestConfigurationIsWrittenAndRead(t *testing.T) {
	if got, err := json.Marshal(configurationOf(full())); err != nil || string(got) != fullText {
		t.Errorf("got  %s, %v\nwant %s", got, err, fullText)
	}
	var in configuration
	if err := json.Unmarshal([]byte(fullText), &in); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(full(), in.container("radio", "registry.example/radio:1")); diff != "" {
		t.Error(diff)
	}
	in = configuration{Privileged: true, ExtraCapabilities: []string{"CAP_X"}, MountPoints: []mount{{Source: "/a", Destination: "/b", Propagation: "WHATEVER"}}}
	c := in.container("", "x")
	if len(c.HostConfig.ExtraCapabilities) != 0 || !c.HostConfig.Privileged || c.Mounts[0].Propagation != "rprivate" {
		t.Errorf("%+v", c)
	}
}

func TestPasswordsStayOnTheDevice(t *testing.T) {
	c := full()
	c.Image.Decrypt.Keys = []string{"/etc/key.pem:secret"}
	if got, err := json.Marshal(statusOf(c)); err != nil || !strings.Contains(string(got), `"keys":["/etc/key.pem"]`) || strings.Contains(string(got), "secret") {
		t.Errorf("%s, %v", got, err)
	}
	if c.Image.Decrypt.Keys[0] != "/etc/key.pem:secret" { // is that of the engine
		t.Errorf("the container has lost its password: %q", c.Image.Decrypt.Keys)
	}
}

func TestStatesAreWritten(t *testing.T) {
	for _, c := range []struct {
		state ctrmodel.State
		want  string
	}{
		{ctrmodel.State{Status: ctrmodel.Creating, PID: -1}, `{"status":"CREATING","pid":-1}`},
		{ctrmodel.State{Status: ctrmodel.Running, PID: 7, StartedAt: "s", FinishedAt: "f"}, `{"status":"RUNNING","pid":7,"startedAt":"s","finishedAt":"f"}`},
		{ctrmodel.State{Status: ctrmodel.Paused, PID: 7}, `{"status":"PAUSED","pid":7}`},
		{ctrmodel.State{Status: ctrmodel.Exited, PID: -1, ExitCode: 137, Error: "no memory", OOMKilled: true, FinishedAt: "f"}, `{"status":"EXITED","pid":-1,"error":"no memory","exitCode":137,"finishedAt":"f","oomKilled":true}`},
		{ctrmodel.State{Status: ctrmodel.Dead, PID: 4711}, `{"status":"DEAD","pid":-1}`},
		{ctrmodel.State{Status: 99}, `{"status":"UNKNOWN","pid":-1}`},
	} {
		if got, err := json.Marshal(stateOf(&ctrmodel.Container{State: c.state})); err != nil || string(got) != c.want {
			t.Errorf("got %s, %v, want %s", got, err, c.want)
		}
	}
}

func TestDependenciesAreCutAtTheFirstColon(t *testing.T) {
	for image, want := range map[string]string{
		"registry.example/a/radio:1":    "registry.example%2Fa%2Fradio.5f0c:1",
		"registry.example:5000/radio:1": "registry.example.5f0c:5000%2Fradio:1",
		"radio":                         "radio.5f0c:",
		"radio@sha256:00":               "radio@sha256.5f0c:00",
	} {
		if got := dependencyOf(&ctrmodel.Container{ID: "5f0c", Image: ctrmodel.Image{Name: image}}).key(); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}
