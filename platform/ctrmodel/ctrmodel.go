// SPDX-License-Identifier: Apache-2.0

// Package ctrmodel is what a container is: what is wanted of it, what it is doing, the rules it has to keep, and how all
// that is written in JSON and on a command line. It does nothing with containers, and needs nothing that does.
//
// The JSON is the one of descriptors, of the files in the store and of what kanto-cm prints. The messages of the gRPC API
// are not this JSON, see package cmapi.
package ctrmodel

import (
	"encoding/json"
	"maps"
	"slices"
	"time"
)

// Container is one container. The zero value of a field means its default until Defaults has filled it in.
type Container struct {
	ID              string           `json:"container_id"`
	Name            string           `json:"container_name"`
	Image           Image            `json:"image"`
	DomainName      string           `json:"domain_name"`
	HostName        string           `json:"host_name"`
	ResolvConfPath  string           `json:"resolv_conf_path,omitempty"`
	HostsPath       string           `json:"hosts_path,omitempty"`
	HostnamePath    string           `json:"hostname_path,omitempty"`
	Mounts          []Mount          `json:"mount_points"`
	Hooks           []Hook           `json:"hooks"`
	Config          Config           `json:"config"`
	HostConfig      HostConfig       `json:"host_config"`
	IOConfig        IOConfig         `json:"io_config"`
	NetworkSettings *NetworkSettings `json:"network_settings"` // nil unless it runs
	State           State            `json:"state"`
	Created         string           `json:"created,omitempty"`
	RestartCount    int64            `json:"restart_count"`    // automatic ones since the last start by hand
	ManuallyStopped bool             `json:"manually_stopped"` // whoever stopped it wants it to stay so
	StartedBefore   bool             `json:"started_successfully_before"`
}

// Image is what a container is made from.
type Image struct {
	Name    string   `json:"name"`
	Decrypt *Decrypt `json:"decrypt_config,omitempty"` // kept for others; encrypted images do not run here
}

// Decrypt is what an encrypted image would be opened with.
type Decrypt struct {
	Keys       []string `json:"keys,omitempty"`       // FILE[:PASSWORD]
	Recipients []string `json:"recipients,omitempty"` // PROTOCOL:FILE
}

// Config is what differs from the configuration in the image.
type Config struct {
	Env []string `json:"env,omitempty"` // see Environment
	Cmd []string `json:"cmd,omitempty"` // replaces the arguments of the image
}

// MarshalJSON makes nothing of no configuration.
func (c Config) MarshalJSON() ([]byte, error) {
	type plain Config
	return orNull(plain(c), c.Env == nil && c.Cmd == nil)
}

func orNull(v any, null bool) ([]byte, error) {
	if null {
		v = nil
	}
	return json.Marshal(v)
}

// Mount is a part of the host's file system that the container sees, always with what is mounted below it.
type Mount struct {
	Destination string `json:"destination"`
	Source      string `json:"source"`
	Propagation string `json:"propagation_mode"`
	ReadOnly    bool   `json:"read_only,omitempty"`
}

// Hook is a program of the host to run at a moment of the container's life.
type Hook struct {
	Path    string   `json:"path"`
	Args    []string `json:"args"`
	Env     []string `json:"env"`
	Timeout int      `json:"timeout"`
	Type    HookType `json:"type"`
}

// HookType is the moment of a hook.
type HookType int

// The moments of hooks.
const (
	Prestart HookType = iota
	Poststart
	Poststop
	UnknownHook
)

var hookTypes = []string{"Prestart", "Poststart", "Poststop", "Unknown"}

func (t HookType) String() string { return name(hookTypes, int(t)) }

// ParseHookType is the type with the given text, UnknownHook if there is none.
func ParseHookType(text string) HookType { return HookType(index(hookTypes, text)) }

// name is the text of n, the last one if n has none.
func name(names []string, n int) string {
	if n < 0 || n >= len(names) {
		return names[len(names)-1]
	}
	return names[n]
}

// index is where text is, or the last.
func index(names []string, text string) int {
	if i := slices.Index(names, text); i >= 0 {
		return i
	}
	return len(names) - 1
}

// HostConfig is how a container is connected to the host.
type HostConfig struct {
	Devices           []Device      `json:"devices"`
	NetworkMode       string        `json:"network_mode"`
	Privileged        bool          `json:"privileged"`
	RestartPolicy     RestartPolicy `json:"restart_policy"`
	Runtime           string        `json:"runtime"`
	ExtraHosts        []string      `json:"extra_hosts"` // see ParseExtraHost
	ExtraCapabilities []string      `json:"extra_capabilities"`
	Ports             []Port        `json:"port_mappings"`
	Log               Log           `json:"log_config"`
	Resources         Resources     `json:"resources"`
}

// The networks a container can be in.
const (
	BridgeNetwork = "bridge"
	HostNetwork   = "host"
	NoNetwork     = "none" // but its own loopback
)

// Device is a device node of the host, or a directory of them.
type Device struct {
	OnHost      string `json:"path_on_host"`
	InContainer string `json:"path_in_container"`
	Permissions string `json:"cgroup_permissions"`
}

// Port is a port of a container that the host listens on. If the host has a range for it, the first free one is taken.
type Port struct {
	Proto       string `json:"proto"`
	Container   uint16 `json:"container_port"`
	HostIP      string `json:"host_ip"`
	HostPort    uint16 `json:"host_port"`
	HostPortEnd uint16 `json:"host_port_end"`
}

// RestartPolicy says what to do when a container has ended.
type RestartPolicy struct {
	MaxRetries   int64         `json:"maximum_retry_count"` // 0: no limit
	RetryTimeout time.Duration `json:"retry_timeout"`       // the longest pause between attempts, 0: the usual one
	Type         string        `json:"type"`
}

// The types of a restart policy.
const (
	RestartNever         = "no"
	RestartAlways        = "always"
	RestartUnlessStopped = "unless-stopped"
	RestartOnFailure     = "on-failure"
)

// Log is what happens to the output of a container.
type Log struct {
	Driver LogDriver `json:"driver_config"`
	Mode   LogMode   `json:"mode_config"`
}

// LogDriver is where the output goes.
type LogDriver struct {
	Type     string `json:"type,omitempty"`
	MaxFiles int64  `json:"max_files,omitempty"`
	MaxSize  string `json:"max_size,omitempty"`
	RootDir  string `json:"root_dir,omitempty"`
}

// LogMode is whether the container waits for its log.
type LogMode struct {
	Mode          string `json:"mode,omitempty"`
	MaxBufferSize string `json:"max_buffer_size,omitempty"`
}

// The drivers and modes of logs.
const (
	LogFile        = "json-file"
	LogNone        = "none"
	LogBlocking    = "blocking"
	LogNonBlocking = "non-blocking"
)

// Resources limits the memory of a container. An empty size is no limit; only MemorySwap gets a default once Memory is set,
// and there Unlimited means none.
type Resources struct {
	Memory            string `json:"memory,omitempty"`
	MemoryReservation string `json:"memory_reservation,omitempty"`
	MemorySwap        string `json:"memory_swap,omitempty"` // memory and swap together
}

// MarshalJSON makes nothing of no limits.
func (r Resources) MarshalJSON() ([]byte, error) {
	type plain Resources
	return orNull(plain(r), r == Resources{})
}

// Unlimited is the size of no limit.
const Unlimited = "-1"

// IOConfig is how a container's standard streams are connected.
type IOConfig struct {
	AttachStderr bool `json:"attach_stderr"`
	AttachStdin  bool `json:"attach_stdin"`
	AttachStdout bool `json:"attach_stdout"`
	OpenStdin    bool `json:"open_stdin"`
	StdinOnce    bool `json:"stdin_once"`
	TTY          bool `json:"tty"`
}

// NetworkSettings is what the network gave a running container.
type NetworkSettings struct {
	Networks     map[string]Endpoint `json:"networks"` // by network mode
	SandboxID    string              `json:"sandbox_id"`
	SandboxKey   string              `json:"sandbox_key"`
	ControllerID string              `json:"network_controller_id"`
}

// Endpoint is a container's place in a network.
type Endpoint struct {
	ID         string `json:"id"`
	Gateway    string `json:"gateway"`
	IPAddress  string `json:"ip_address"`
	MACAddress string `json:"mac_address"`
	NetworkID  string `json:"network_id"`
}

// StopOptions is how to stop a container.
type StopOptions struct {
	Timeout int64  // seconds, 0: the one of the daemon
	Force   bool   // kill it when the time is up, else it goes on
	Signal  string // empty: SIGTERM
}

// UpdateOptions is what to change of a container as it runs. Nil is left as it is.
type UpdateOptions struct {
	RestartPolicy *RestartPolicy
	Resources     *Resources
}

// Clone is a copy that shares nothing with c.
func (c *Container) Clone() *Container {
	d := *c
	if c.Image.Decrypt != nil {
		d.Image.Decrypt = &Decrypt{slices.Clone(c.Image.Decrypt.Keys), slices.Clone(c.Image.Decrypt.Recipients)}
	}
	d.Mounts = slices.Clone(c.Mounts)
	d.Hooks = slices.Clone(c.Hooks)
	for i := range d.Hooks {
		d.Hooks[i].Args = slices.Clone(d.Hooks[i].Args)
		d.Hooks[i].Env = slices.Clone(d.Hooks[i].Env)
	}
	d.Config = Config{slices.Clone(c.Config.Env), slices.Clone(c.Config.Cmd)}
	h := &d.HostConfig
	h.Devices = slices.Clone(h.Devices)
	h.ExtraHosts = slices.Clone(h.ExtraHosts)
	h.ExtraCapabilities = slices.Clone(h.ExtraCapabilities)
	h.Ports = slices.Clone(h.Ports)
	if c.NetworkSettings != nil {
		n := *c.NetworkSettings
		n.Networks = maps.Clone(n.Networks)
		d.NetworkSettings = &n
	}
	return &d
}
