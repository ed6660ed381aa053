// SPDX-License-Identifier: Apache-2.0

package ctrtwin

import (
	"slices"
	"strings"
	"time"

	"sdvbox/platform/ctrmodel"
)

// status is a container as its feature shows it.
type status struct {
	Name      string         `json:"name"`
	ImageRef  string         `json:"imageRef"`
	Config    *configuration `json:"config"`
	CreatedAt string         `json:"createdAt"`
	State     *state         `json:"state"`
}

type state struct {
	Status     string `json:"status"`
	PID        int64  `json:"pid,omitempty"`
	Error      string `json:"error,omitempty"`
	ExitCode   int64  `json:"exitCode,omitempty"`
	StartedAt  string `json:"startedAt,omitempty"`
	FinishedAt string `json:"finishedAt,omitempty"`
	OOMKilled  bool   `json:"oomKilled,omitempty"`
}

// configuration is what is wanted of a container.
type configuration struct {
	DomainName        string         `json:"domainName,omitempty"`
	HostName          string         `json:"hostName,omitempty"`
	MountPoints       []mount        `json:"mountPoints,omitempty"`
	Env               []string       `json:"env,omitempty"`
	Cmd               []string       `json:"cmd,omitempty"`
	Decryption        *decryption    `json:"decryption,omitempty"`
	Devices           []device       `json:"devices,omitempty"`
	Privileged        bool           `json:"privileged,omitempty"`
	RestartPolicy     *restartPolicy `json:"restartPolicy,omitempty"`
	ExtraHosts        []string       `json:"extraHosts,omitempty"`
	ExtraCapabilities []string       `json:"extraCapabilities,omitempty"`
	PortMappings      []port         `json:"portMappings,omitempty"`
	NetworkMode       string         `json:"networkMode,omitempty"`
	OpenStdin         bool           `json:"openStdin,omitempty"`
	TTY               bool           `json:"tty,omitempty"`
	Log               *logConfig     `json:"log,omitempty"`
	Resources         *resources     `json:"resources,omitempty"`
}

type mount struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Propagation string `json:"propagationMode,omitempty"`
	ReadOnly    bool   `json:"readOnly,omitempty"`
}

type decryption struct {
	Keys       []string `json:"keys,omitempty"`
	Recipients []string `json:"recipients,omitempty"`
}

type device struct {
	OnHost      string `json:"pathOnHost"`
	InContainer string `json:"pathInContainer"`
	Permissions string `json:"cgroupPermissions,omitempty"`
}

type restartPolicy struct {
	Type         string  `json:"type,omitempty"`
	MaxRetries   int64   `json:"maxRetryCount,omitempty"`
	RetryTimeout float64 `json:"retryTimeout,omitempty"` // seconds
}

type port struct {
	Proto       string `json:"proto,omitempty"`
	HostPort    uint16 `json:"hostPort"`
	HostPortEnd uint16 `json:"hostPortEnd,omitempty"`
	Container   uint16 `json:"containerPort"`
	HostIP      string `json:"hostIP,omitempty"`
}

type logConfig struct {
	Type          string `json:"type,omitempty"`
	MaxFiles      int64  `json:"maxFiles,omitempty"`
	MaxSize       string `json:"maxSize,omitempty"`
	RootDir       string `json:"rootDir,omitempty"`
	Mode          string `json:"mode,omitempty"`
	MaxBufferSize string `json:"maxBufferSize,omitempty"`
}

type resources struct {
	Memory            string `json:"memory,omitempty"`
	MemoryReservation string `json:"memoryReservation,omitempty"`
	MemorySwap        string `json:"memorySwap,omitempty"`
}

// loud and quiet translate between the words of the twin and those of ctrmodel: UNLESS_STOPPED and unless-stopped.
func loud(word string) string  { return strings.ToUpper(strings.ReplaceAll(word, "-", "_")) }
func quiet(word string) string { return strings.ToLower(strings.ReplaceAll(word, "_", "-")) }

func statusOf(c *ctrmodel.Container) *status {
	return &status{Name: c.Name, ImageRef: c.Image.Name, Config: configurationOf(c), CreatedAt: c.Created, State: stateOf(c)}
}

func stateOf(c *ctrmodel.Container) *state {
	s := c.State
	if !s.HasProcess() {
		s.PID = -1
	}
	return &state{
		Status: loud(s.Status.String()), PID: s.PID, Error: s.Error, ExitCode: s.ExitCode, StartedAt: s.StartedAt, FinishedAt: s.FinishedAt,
		OOMKilled: s.OOMKilled,
	}
}

func configurationOf(c *ctrmodel.Container) *configuration {
	h := c.HostConfig
	out := &configuration{
		DomainName: c.DomainName, HostName: c.HostName, Env: c.Config.Env, Cmd: c.Config.Cmd, Privileged: h.Privileged,
		RestartPolicy: &restartPolicy{loud(h.RestartPolicy.Type), h.RestartPolicy.MaxRetries, h.RestartPolicy.RetryTimeout.Seconds()},
		ExtraHosts:    h.ExtraHosts, ExtraCapabilities: h.ExtraCapabilities, NetworkMode: loud(h.NetworkMode),
		OpenStdin: c.IOConfig.OpenStdin, TTY: c.IOConfig.TTY,
	}
	for _, m := range c.Mounts {
		out.MountPoints = append(out.MountPoints, mount{m.Source, m.Destination, loud(m.Propagation), m.ReadOnly})
	}
	if d := c.Image.Decrypt; d != nil {
		out.Decryption = &decryption{Recipients: d.Recipients}
		for _, key := range d.Keys {
			file, _, _ := strings.Cut(key, ":") // the password stays here
			out.Decryption.Keys = append(out.Decryption.Keys, file)
		}
	}
	for _, d := range h.Devices {
		out.Devices = append(out.Devices, device(d))
	}
	for _, p := range h.Ports {
		out.PortMappings = append(out.PortMappings, port{p.Proto, p.HostPort, p.HostPortEnd, p.Container, p.HostIP})
	}
	if d, m := h.Log.Driver, h.Log.Mode; d.Type != "" {
		out.Log = &logConfig{loud(d.Type), d.MaxFiles, d.MaxSize, d.RootDir, loud(m.Mode), m.MaxBufferSize}
	}
	if h.Resources != (ctrmodel.Resources{}) {
		r := resources(h.Resources)
		out.Resources = &r
	}
	return out
}

// container is a container that is wanted like that. Nothing is checked or filled in.
func (in *configuration) container(name, image string) *ctrmodel.Container {
	c := &ctrmodel.Container{Name: name, Image: ctrmodel.Image{Name: image}}
	if in == nil {
		return c
	}
	c.DomainName, c.HostName = in.DomainName, in.HostName
	c.Config = ctrmodel.Config{Env: in.Env, Cmd: in.Cmd}
	c.IOConfig.OpenStdin, c.IOConfig.TTY = in.OpenStdin, in.TTY
	for _, m := range in.MountPoints {
		mode := quiet(m.Propagation)
		if !slices.Contains([]string{"rprivate", "private", "rshared", "shared", "rslave", "slave"}, mode) {
			mode = "rprivate"
		}
		c.Mounts = append(c.Mounts, ctrmodel.Mount{Source: m.Source, Destination: m.Destination, Propagation: mode, ReadOnly: m.ReadOnly})
	}
	if d := in.Decryption; d != nil {
		c.Image.Decrypt = &ctrmodel.Decrypt{Keys: d.Keys, Recipients: d.Recipients}
	}
	h := &c.HostConfig
	h.Privileged, h.ExtraHosts, h.NetworkMode = in.Privileged, in.ExtraHosts, quiet(in.NetworkMode)
	if !in.Privileged {
		h.ExtraCapabilities = in.ExtraCapabilities
	}
	for _, d := range in.Devices {
		h.Devices = append(h.Devices, ctrmodel.Device(d))
	}
	for _, p := range in.PortMappings {
		h.Ports = append(h.Ports, ctrmodel.Port{Proto: p.Proto, Container: p.Container, HostIP: p.HostIP, HostPort: p.HostPort, HostPortEnd: p.HostPortEnd})
	}
	if p := in.RestartPolicy; p != nil {
		h.RestartPolicy = p.model()
	}
	if l := in.Log; l != nil {
		h.Log.Driver = ctrmodel.LogDriver{Type: quiet(l.Type), MaxFiles: l.MaxFiles, MaxSize: l.MaxSize, RootDir: l.RootDir}
		h.Log.Mode = ctrmodel.LogMode{Mode: quiet(l.Mode), MaxBufferSize: l.MaxBufferSize}
	}
	if r := in.Resources; r != nil {
		h.Resources = ctrmodel.Resources(*r)
	}
	return c
}

func (p *restartPolicy) model() ctrmodel.RestartPolicy {
	return ctrmodel.RestartPolicy{Type: quiet(p.Type), MaxRetries: p.MaxRetries, RetryTimeout: ctrmodel.Seconds(int64(min(max(p.RetryTimeout, -1<<53), 1<<53)))}
}

// dependency is a container as SoftwareUpdatable knows it.
type dependency struct {
	Group   string `json:"group"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Type    string `json:"type,omitempty"`
}

// dependencyOf cuts the reference of the image at its first colon, also if that is the one of a registry's port.
func dependencyOf(c *ctrmodel.Container) dependency {
	group, version, _ := strings.Cut(c.Image.Name, ":")
	return dependency{Group: group, Name: c.ID, Version: version}
}

// key is where it is in a map of dependencies.
func (d dependency) key() string {
	return strings.ReplaceAll(d.Group+"."+d.Name+":"+d.Version, "/", "%2F")
}

// before is the order of containers: the oldest first.
func before(a, b *ctrmodel.Container) int {
	x, errX := time.Parse(time.RFC3339Nano, a.Created)
	y, errY := time.Parse(time.RFC3339Nano, b.Created)
	if errX == nil && errY == nil && !x.Equal(y) {
		return x.Compare(y)
	}
	return strings.Compare(a.ID, b.ID)
}
