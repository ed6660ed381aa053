// SPDX-License-Identifier: Apache-2.0

package cmapi

import (
	"fmt"
	"math"
	"time"

	"sdvbox/platform/ctrmodel"
)

// The messages about containers. Those with the fields of a type of package ctrmodel, in its order, are converted by Go.
type (
	container struct {
		ID              string           `pb:"1"`
		Name            string           `pb:"2"`
		Image           *image           `pb:"3"`
		HostName        string           `pb:"4"`
		DomainName      string           `pb:"5"`
		ResolvConfPath  string           `pb:"6"`
		HostsPath       string           `pb:"7"`
		HostnamePath    string           `pb:"8"`
		Mounts          []*mount         `pb:"9"`
		Hooks           []*hook          `pb:"10"`
		HostConfig      *hostConfig      `pb:"11"`
		IOConfig        *ioConfig        `pb:"12"`
		Config          *config          `pb:"13"`
		NetworkSettings *networkSettings `pb:"14"`
		State           *state           `pb:"15"`
		Created         string           `pb:"16"`
		ManuallyStopped bool             `pb:"17"`
		RestartCount    int64            `pb:"18"`
	}
	image struct {
		Name    string   `pb:"1"`
		Decrypt *decrypt `pb:"2"`
	}
	decrypt struct {
		Keys       []string `pb:"1"`
		Recipients []string `pb:"2"`
	}
	config struct {
		Env []string `pb:"1"`
		Cmd []string `pb:"2"`
	}
	mount struct {
		Destination string `pb:"1"`
		Source      string `pb:"2"`
		Propagation string `pb:"3"`
		ReadOnly    bool   `pb:"100"`
	}
	hook struct {
		Path    string   `pb:"1"`
		Args    []string `pb:"2"`
		Env     []string `pb:"3"`
		Timeout int32    `pb:"4"`
		Type    string   `pb:"5"`
	}
	hostConfig struct {
		Devices           []*device      `pb:"1"`
		NetworkMode       string         `pb:"2"`
		Privileged        bool           `pb:"3"`
		RestartPolicy     *restartPolicy `pb:"4"`
		Runtime           string         `pb:"5"`
		ExtraHosts        []string       `pb:"6"`
		Ports             []*port        `pb:"7"`
		Log               *logConfig     `pb:"8"`
		Resources         *resources     `pb:"9"`
		ExtraCapabilities []string       `pb:"10"`
	}
	device struct {
		OnHost      string `pb:"1"`
		InContainer string `pb:"2"`
		Permissions string `pb:"3"`
	}
	port struct {
		Proto       string `pb:"1"`
		HostIP      string `pb:"2"`
		HostPort    int64  `pb:"3"`
		HostPortEnd int64  `pb:"4"`
		Container   int64  `pb:"5"`
	}
	restartPolicy struct {
		MaxRetries   int64  `pb:"1"`
		RetryTimeout int64  `pb:"2"` // seconds
		Type         string `pb:"3"`
	}
	logConfig struct {
		Driver *logDriver `pb:"1"`
		Mode   *logMode   `pb:"2"`
	}
	logDriver struct {
		Type     string `pb:"1"`
		MaxFiles int64  `pb:"2"`
		MaxSize  string `pb:"3"`
		RootDir  string `pb:"4"`
	}
	logMode struct {
		Mode          string `pb:"1"`
		MaxBufferSize string `pb:"2"`
	}
	resources struct {
		Memory            string `pb:"1"`
		MemoryReservation string `pb:"2"`
		MemorySwap        string `pb:"3"`
	}
	ioConfig struct {
		AttachStderr bool `pb:"1"`
		AttachStdin  bool `pb:"2"`
		AttachStdout bool `pb:"3"`
		OpenStdin    bool `pb:"4"`
		StdinOnce    bool `pb:"5"`
		TTY          bool `pb:"6"`
	}
	networkSettings struct {
		Networks     map[string]*endpoint `pb:"1"`
		SandboxID    string               `pb:"2"`
		SandboxKey   string               `pb:"3"`
		ControllerID string               `pb:"4"`
	}
	endpoint struct {
		ID         string `pb:"1"`
		Gateway    string `pb:"2"`
		IPAddress  string `pb:"3"`
		MACAddress string `pb:"4"`
		NetworkID  string `pb:"5"`
	}
	state struct {
		PID        int64  `pb:"1"`
		StartedAt  string `pb:"2"`
		Error      string `pb:"3"`
		ExitCode   int64  `pb:"4"`
		FinishedAt string `pb:"5"`
		Exited     bool   `pb:"6"`
		Dead       bool   `pb:"7"`
		Restarting bool   `pb:"8"`
		Paused     bool   `pb:"9"`
		Running    bool   `pb:"10"`
		OOMKilled  bool   `pb:"12"`
		Status     string `pb:"11"`
	}
	stopOptions struct {
		Timeout int64  `pb:"1"`
		Force   bool   `pb:"2"`
		Signal  string `pb:"3"`
	}
	updateOptions struct {
		RestartPolicy *restartPolicy `pb:"1"`
		Resources     *resources     `pb:"2"`
	}
)

// The requests and responses of the original service.
type (
	containerMessage struct { // also the response of Get without a container, if there is none
		Container *container `pb:"1"`
	}
	containersMessage struct {
		Containers []*container `pb:"1"`
	}
	idRequest struct {
		ID string `pb:"1"`
	}
	stopRequest struct { // also to restart
		ID      string       `pb:"1"`
		Options *stopOptions `pb:"2"`
	}
	updateRequest struct {
		ID      string         `pb:"1"`
		Options *updateOptions `pb:"2"`
	}
	renameRequest struct {
		ID   string `pb:"1"`
		Name string `pb:"2"`
	}
	removeRequest struct {
		ID      string       `pb:"1"`
		Force   bool         `pb:"2"`
		Options *stopOptions `pb:"3"`
	}
	logsRequest struct {
		ID     string `pb:"1"`
		Tail   int32  `pb:"2"`
		Follow bool   `pb:"3"` // only of FollowLogs
	}
	logsResponse struct {
		Log string `pb:"1"`
	}
	attachRequest struct { // offsets and limits are of no use
		ID     string      `pb:"1"`
		Stdin  bool        `pb:"2"`
		Finish bool        `pb:"4"`
		Data   []byte      `pb:"10"`
		Window *windowSize `pb:"100"`
	}
	attachResponse struct {
		ID     string `pb:"1"`
		Stdin  bool   `pb:"2"`
		Data   []byte `pb:"10"`
		Stderr bool   `pb:"100"` // where the data is from
	}
	windowSize struct {
		Width  uint32 `pb:"1"`
		Height uint32 `pb:"2"`
	}
	projectInfoResponse struct {
		Info *projectInfo `pb:"1"`
	}
	projectInfo struct {
		Version    string `pb:"1"`
		BuildTime  string `pb:"2"`
		APIVersion string `pb:"3"`
		GitCommit  string `pb:"4"`
	}
)

func fromContainer(c *ctrmodel.Container) *container {
	m := &container{
		ID:              c.ID,
		Name:            c.Name,
		Image:           &image{Name: c.Image.Name, Decrypt: (*decrypt)(c.Image.Decrypt)},
		HostName:        c.HostName,
		DomainName:      c.DomainName,
		ResolvConfPath:  c.ResolvConfPath,
		HostsPath:       c.HostsPath,
		HostnamePath:    c.HostnamePath,
		Mounts:          convert(c.Mounts, func(v ctrmodel.Mount) *mount { return (*mount)(&v) }),
		Hooks:           convert(c.Hooks, fromHook),
		HostConfig:      fromHostConfig(&c.HostConfig),
		IOConfig:        (*ioConfig)(&c.IOConfig),
		State:           fromState(&c.State),
		Created:         c.Created,
		ManuallyStopped: c.ManuallyStopped,
		RestartCount:    c.RestartCount,
	}
	if c.Config.Env != nil || c.Config.Cmd != nil {
		m.Config = (*config)(&c.Config)
	}
	if n := c.NetworkSettings; n != nil {
		m.NetworkSettings = &networkSettings{map[string]*endpoint{}, n.SandboxID, n.SandboxKey, n.ControllerID}
		for name, e := range n.Networks {
			m.NetworkSettings.Networks[name] = (*endpoint)(&e)
		}
	}
	return m
}

// model is the container. What makes none is the error.
func (m container) model() (*ctrmodel.Container, error) {
	h, err := value(m.HostConfig).model()
	if err != nil {
		return nil, fmt.Errorf("host_config: %w", err)
	}
	c := &ctrmodel.Container{
		ID:              m.ID,
		Name:            m.Name,
		Image:           ctrmodel.Image{Name: value(m.Image).Name, Decrypt: (*ctrmodel.Decrypt)(value(m.Image).Decrypt)},
		HostName:        m.HostName,
		DomainName:      m.DomainName,
		ResolvConfPath:  m.ResolvConfPath,
		HostsPath:       m.HostsPath,
		HostnamePath:    m.HostnamePath,
		Mounts:          convert(m.Mounts, func(v *mount) ctrmodel.Mount { return ctrmodel.Mount(*v) }),
		Hooks:           convert(m.Hooks, (*hook).model),
		HostConfig:      h,
		IOConfig:        ctrmodel.IOConfig(value(m.IOConfig)),
		Config:          ctrmodel.Config(value(m.Config)),
		State:           value(m.State).model(),
		Created:         m.Created,
		ManuallyStopped: m.ManuallyStopped,
		RestartCount:    m.RestartCount,
	}
	if n := m.NetworkSettings; n != nil {
		c.NetworkSettings = &ctrmodel.NetworkSettings{
			Networks: map[string]ctrmodel.Endpoint{}, SandboxID: n.SandboxID, SandboxKey: n.SandboxKey, ControllerID: n.ControllerID,
		}
		for name, e := range n.Networks {
			c.NetworkSettings.Networks[name] = ctrmodel.Endpoint(value(e))
		}
	}
	return c, nil
}

func fromHook(h ctrmodel.Hook) *hook {
	return &hook{h.Path, h.Args, h.Env, int32(h.Timeout), h.Type.String()}
}

func (m *hook) model() ctrmodel.Hook {
	return ctrmodel.Hook{Path: m.Path, Args: m.Args, Env: m.Env, Timeout: int(m.Timeout), Type: ctrmodel.ParseHookType(m.Type)}
}

func fromHostConfig(h *ctrmodel.HostConfig) *hostConfig {
	m := &hostConfig{
		Devices:           convert(h.Devices, func(v ctrmodel.Device) *device { return (*device)(&v) }),
		NetworkMode:       h.NetworkMode,
		Privileged:        h.Privileged,
		RestartPolicy:     fromRestartPolicy(h.RestartPolicy),
		Runtime:           h.Runtime,
		ExtraHosts:        h.ExtraHosts,
		Ports:             convert(h.Ports, fromPort),
		Log:               &logConfig{(*logDriver)(&h.Log.Driver), (*logMode)(&h.Log.Mode)},
		ExtraCapabilities: h.ExtraCapabilities,
	}
	if h.Resources != (ctrmodel.Resources{}) {
		m.Resources = (*resources)(&h.Resources)
	}
	return m
}

func (m hostConfig) model() (ctrmodel.HostConfig, error) {
	h := ctrmodel.HostConfig{
		Devices:           convert(m.Devices, func(v *device) ctrmodel.Device { return ctrmodel.Device(*v) }),
		NetworkMode:       m.NetworkMode,
		Privileged:        m.Privileged,
		RestartPolicy:     value(m.RestartPolicy).model(),
		Runtime:           m.Runtime,
		ExtraHosts:        m.ExtraHosts,
		ExtraCapabilities: m.ExtraCapabilities,
		Log:               ctrmodel.Log{Driver: ctrmodel.LogDriver(value(value(m.Log).Driver)), Mode: ctrmodel.LogMode(value(value(m.Log).Mode))},
		Resources:         ctrmodel.Resources(value(m.Resources)),
	}
	for i, p := range m.Ports {
		for _, n := range []int64{p.HostPort, p.HostPortEnd, p.Container} {
			if n < 0 || n > math.MaxUint16 {
				return h, ctrmodel.Errorf(ctrmodel.InvalidArgument, "port_mappings[%d]: %d is not a port, expected 1 to 65535", i, n)
			}
		}
		h.Ports = append(h.Ports, ctrmodel.Port{
			Proto: p.Proto, Container: uint16(p.Container), HostIP: p.HostIP, HostPort: uint16(p.HostPort), HostPortEnd: uint16(p.HostPortEnd),
		})
	}
	return h, nil
}

func fromPort(p ctrmodel.Port) *port {
	return &port{p.Proto, p.HostIP, int64(p.HostPort), int64(p.HostPortEnd), int64(p.Container)}
}

// fromRestartPolicy rounds up: 0 seconds have a meaning of their own.
func fromRestartPolicy(p ctrmodel.RestartPolicy) *restartPolicy {
	seconds := p.RetryTimeout / time.Second
	if p.RetryTimeout%time.Second > 0 {
		seconds++
	}
	return &restartPolicy{p.MaxRetries, int64(seconds), p.Type}
}

func (m restartPolicy) model() ctrmodel.RestartPolicy {
	return ctrmodel.RestartPolicy{MaxRetries: m.MaxRetries, RetryTimeout: ctrmodel.Seconds(m.RetryTimeout), Type: m.Type}
}

func fromState(s *ctrmodel.State) *state {
	return &state{s.PID, s.StartedAt, s.Error, s.ExitCode, s.FinishedAt, s.Exited, s.Dead, s.Restarting, s.Paused, s.Running, s.OOMKilled, s.Status.String()}
}

func (m state) model() ctrmodel.State {
	return ctrmodel.State{
		PID: m.PID, StartedAt: m.StartedAt, FinishedAt: m.FinishedAt, Error: m.Error, ExitCode: m.ExitCode, Exited: m.Exited, Dead: m.Dead,
		Restarting: m.Restarting, Paused: m.Paused, Running: m.Running, OOMKilled: m.OOMKilled, Status: ctrmodel.ParseStatus(m.Status),
	}
}

func fromUpdateOptions(o ctrmodel.UpdateOptions) *updateOptions {
	m := &updateOptions{Resources: (*resources)(o.Resources)}
	if o.RestartPolicy != nil {
		m.RestartPolicy = fromRestartPolicy(*o.RestartPolicy)
	}
	return m
}

func (m *updateOptions) model() ctrmodel.UpdateOptions {
	o := ctrmodel.UpdateOptions{Resources: (*ctrmodel.Resources)(m.Resources)}
	if m.RestartPolicy != nil {
		p := m.RestartPolicy.model()
		o.RestartPolicy = &p
	}
	return o
}

// convert converts each element. No elements are nil, for comparing.
func convert[A, B any](list []A, f func(A) B) []B {
	var out []B
	for _, v := range list {
		out = append(out, f(v))
	}
	return out
}

// value is what p points to, zero if it is nil.
func value[T any](p *T) T {
	if p == nil {
		return *new(T)
	}
	return *p
}
