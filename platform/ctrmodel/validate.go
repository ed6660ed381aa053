// SPDX-License-Identifier: Apache-2.0

package ctrmodel

import (
	"fmt"
	"slices"
	"strings"
)

const minMemory = 3 << 20 // no process starts with less

// runtimes are the known ones. Only runc's flavours need no more than containerd.
var runtimes = []string{defaultRuntime, "io.containerd.runc.v1", "io.containerd.runtime.v1.linux", "io.containerd.kata.v2", "io.containerd.runsc.v1"}

// Validate says what is wrong with a container that has its defaults.
func (c *Container) Validate() error {
	if err := validateID(c.ID); err != nil {
		return err
	}
	if err := ValidateName(c.Name); err != nil {
		return err
	}
	if c.Image.Name == "" {
		return invalid("image.name is missing")
	}
	for _, host := range []struct{ key, name string }{{"host_name", c.HostName}, {"domain_name", c.DomainName}} {
		if !isHostName(host.name) || len(host.name) > maxHostName {
			return invalid("%s %q: expected 1 to %d letters, digits and any of . - _", host.key, host.name, maxHostName)
		}
	}
	for i, m := range c.Mounts {
		if err := m.validate(); err != nil {
			return fmt.Errorf("mount_points[%d]: %w", i, err)
		}
	}
	for i, h := range c.Hooks {
		if h.Path == "" {
			return invalid("hooks[%d]: path is missing", i)
		}
	}
	for i, entry := range c.Config.Env { // whose values are often secrets
		name, _, _ := strings.Cut(entry, "=")
		if name == "" || name[0] >= '0' && name[0] <= '9' || !isAlphanumeric(rune(name[0])) && name[0] != '_' {
			return invalid("config.env[%d] %.32q: expected NAME, NAME= or NAME=VALUE, the name with a letter or _ first", i, name)
		}
		if strings.Contains(entry, "\x00") {
			return invalid("config.env[%d] %.32q contains a zero byte", i, name)
		}
	}
	for i, arg := range c.Config.Cmd {
		if strings.Contains(arg, "\x00") {
			return invalid("config.cmd[%d] contains a zero byte", i)
		}
	}
	if err := c.HostConfig.validate(); err != nil {
		return fmt.Errorf("host_config: %w", err)
	}
	return nil
}

// validateID checks an id, which also names files, as containerd does.
func validateID(id string) error {
	rest := strings.TrimFunc(id, isAlphanumeric)
	parts := strings.FieldsFunc(id, isAlphanumeric)
	bad := id == "" || len(id) > 76 || rest != "" && (strings.HasPrefix(id, rest[:1]) || strings.HasSuffix(id, rest[len(rest)-1:]))
	if bad || slices.ContainsFunc(parts, func(p string) bool { return len(p) != 1 || !strings.Contains("._-", p) }) {
		return invalid("container_id %q: expected up to 76 letters and digits, with single . _ - between", id)
	}
	return nil
}

// ValidateName says what is wrong with the name of a container.
func ValidateName(name string) error {
	for i, r := range name {
		if !isAlphanumeric(r) && r != '_' && (i == 0 || r != '.' && r != '-') {
			return invalid("container_name %q: expected letters, digits and any of _ . -, the first two not at the start", name)
		}
	}
	if name == "" {
		return invalid("container_name is missing")
	}
	return nil
}

func (h *HostConfig) validate() error {
	switch {
	case h.Privileged && len(h.Devices) > 0:
		return invalid("devices: a privileged container has all already")
	case h.Privileged && len(h.ExtraCapabilities) > 0:
		return invalid("extra_capabilities: a privileged container has all already")
	case h.NetworkMode != BridgeNetwork && h.NetworkMode != HostNetwork && h.NetworkMode != NoNetwork:
		return invalid("network_mode %q: expected bridge, host or none", h.NetworkMode)
	case h.NetworkMode == HostNetwork && len(h.Ports) > 0:
		return invalid("port_mappings: a container in the host's network listens on the host already")
	case h.NetworkMode == NoNetwork && len(h.Ports) > 0:
		return invalid("port_mappings: a container without a network cannot be reached")
	case !slices.Contains(runtimes, h.Runtime):
		return invalid("runtime %q: expected one of %s", h.Runtime, strings.Join(runtimes, " "))
	}
	for i, d := range h.Devices {
		if err := d.validate(); err != nil {
			return fmt.Errorf("devices[%d]: %w", i, err)
		}
	}
	for i, name := range h.ExtraCapabilities {
		if _, err := ParseCapability(name); err != nil {
			return fmt.Errorf("extra_capabilities[%d]: %w", i, err)
		}
	}
	for i, entry := range h.ExtraHosts {
		_, value, err := ParseExtraHost(entry)
		if err != nil {
			return fmt.Errorf("extra_hosts[%d]: %w", i, err)
		}
		if h.NetworkMode != BridgeNetwork && strings.HasPrefix(value, HostIP) {
			return invalid("extra_hosts[%d] %q: the host has an address of its own for containers in the network bridge only", i, entry)
		}
	}
	for i, p := range h.Ports {
		if err := p.validate(); err != nil {
			return fmt.Errorf("port_mappings[%d]: %w", i, err)
		}
	}
	if err := h.RestartPolicy.validate(); err != nil {
		return fmt.Errorf("restart_policy: %w", err)
	}
	if err := h.Log.validate(); err != nil {
		return fmt.Errorf("log_config: %w", err)
	}
	if err := h.Resources.validate(); err != nil {
		return fmt.Errorf("resources: %w", err)
	}
	return nil
}

var restartTypes = []string{RestartNever, RestartAlways, RestartUnlessStopped, RestartOnFailure}

func (p RestartPolicy) validate() error {
	switch {
	case !slices.Contains(restartTypes, p.Type):
		return invalid("type %q: expected one of %s", p.Type, strings.Join(restartTypes, " "))
	case p.MaxRetries < 0:
		return invalid("maximum_retry_count %d: expected 0 or more", p.MaxRetries)
	case p.MaxRetries > 0 && p.Type != RestartOnFailure:
		return invalid("maximum_retry_count %d: only on-failure counts", p.MaxRetries)
	case p.RetryTimeout < 0:
		return invalid("retry_timeout %v: expected 0 or more", p.RetryTimeout)
	}
	return nil
}

func (l Log) validate() error {
	d := l.Driver
	switch {
	case d.Type != LogFile && d.Type != LogNone:
		return invalid("type %q: expected json-file or none", d.Type)
	case d.Type == LogFile && d.MaxFiles < 1:
		return invalid("max_files %d: expected 1 or more", d.MaxFiles)
	case d.RootDir != "" && d.RootDir[0] != '/':
		return invalid("root_dir %q: expected an absolute path", d.RootDir)
	case l.Mode.Mode != LogBlocking && l.Mode.Mode != LogNonBlocking:
		return invalid("mode %q: expected blocking or non-blocking", l.Mode.Mode)
	}
	if d.Type == LogFile {
		if err := validateSize("max_size", d.MaxSize); err != nil {
			return err
		}
	}
	if l.Mode.Mode == LogNonBlocking {
		return validateSize("max_buffer_size", l.Mode.MaxBufferSize)
	}
	return nil
}

func validateSize(key, text string) error {
	size, err := ParseSize(text)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	if size == 0 {
		return invalid("%s %q: expected more than nothing", key, text)
	}
	return nil
}

// Limits are the sizes in bytes, -1 for no limit.
func (r Resources) Limits() (memory, reservation, swap int64, err error) {
	for _, limit := range []struct {
		key, text string
		into      *int64
	}{{"memory", r.Memory, &memory}, {"memory_reservation", r.MemoryReservation, &reservation}, {"memory_swap", r.MemorySwap, &swap}} {
		*limit.into = -1
		if limit.text != "" && limit.text != Unlimited {
			if *limit.into, err = ParseSize(limit.text); err != nil {
				return 0, 0, 0, fmt.Errorf("%s: %w", limit.key, err)
			}
		}
	}
	return memory, reservation, swap, nil
}

func (r Resources) validate() error {
	memory, reservation, swap, err := r.Limits()
	switch {
	case err != nil:
		return err
	case r.Memory == Unlimited || r.MemoryReservation == Unlimited:
		return invalid("only memory_swap can be -1, leave out the others for no limit")
	case memory >= 0 && memory < minMemory:
		return invalid("memory %s: expected 3M or more", r.Memory)
	case r.MemorySwap != "" && memory < 0:
		return invalid("memory_swap %s: needs memory", r.MemorySwap)
	case swap >= 0 && swap < memory:
		return invalid("memory_swap %s: expected as much as memory, %s, or more", r.MemorySwap, r.Memory)
	case memory >= 0 && reservation > memory:
		return invalid("memory_reservation %s: expected as much as memory, %s, or less", r.MemoryReservation, r.Memory)
	}
	return nil
}

// Validate says what is wrong with options.
func (o StopOptions) Validate() error {
	if o.Timeout < 0 {
		return invalid("timeout %d: expected 0 or more seconds", o.Timeout)
	}
	_, err := ParseSignal(o.Signal)
	return err
}
