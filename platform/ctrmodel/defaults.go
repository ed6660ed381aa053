// SPDX-License-Identifier: Apache-2.0

package ctrmodel

import (
	"strconv"
	"strings"
)

const (
	defaultRuntime       = "io.containerd.runc.v2"
	defaultLogFiles      = 2
	defaultLogSize       = "100M"
	defaultLogBufferSize = "1M"

	maxHostName = 64 // of Linux
)

// Defaults fills in what is missing. To do it again changes nothing.
func (c *Container) Defaults(newID func() string) {
	if c.ID == "" {
		c.ID = newID()
	}
	set(&c.Name, c.ID)
	set(&c.HostName, derived(c.Name, "-host"))
	set(&c.DomainName, derived(c.Name, "-domain"))
	for i := range c.Mounts {
		set(&c.Mounts[i].Propagation, "rprivate")
	}
	c.HostConfig.defaults()
}

// derived is name with a suffix, short enough for Linux.
func derived(name, suffix string) string {
	return name[:min(len(name), maxHostName-len(suffix))] + suffix
}

func (h *HostConfig) defaults() {
	for i := range h.Devices {
		d := &h.Devices[i]
		set(&d.InContainer, d.OnHost)
		set(&d.Permissions, "rwm")
	}
	for i := range h.Ports {
		p := &h.Ports[i]
		set(&p.Proto, "tcp")
		set(&p.HostIP, "0.0.0.0")
		set(&p.HostPortEnd, p.HostPort)
	}
	set(&h.NetworkMode, BridgeNetwork)
	set(&h.RestartPolicy.Type, RestartUnlessStopped)
	set(&h.Runtime, defaultRuntime)

	d := &h.Log.Driver
	set(&d.Type, LogFile)
	if d.Type == LogNone {
		*d = LogDriver{Type: LogNone}
	} else {
		set(&d.MaxFiles, defaultLogFiles)
		set(&d.MaxSize, defaultLogSize)
	}
	m := &h.Log.Mode
	set(&m.Mode, LogBlocking)
	if m.Mode == LogBlocking {
		m.MaxBufferSize = ""
	} else {
		set(&m.MaxBufferSize, defaultLogBufferSize)
	}
	h.Resources.Defaults()
}

// Defaults lets a container have as much swap as memory, if nothing is said of that.
func (r *Resources) Defaults() {
	if r.Memory != "" && r.MemorySwap == "" {
		r.MemorySwap = double(r.Memory)
	}
}

// double is twice the size, in the same unit. A size that is none is left for Validate to complain about.
func double(size string) string {
	if _, err := ParseSize(size); err != nil {
		return size
	}
	number := strings.TrimRight(size, " kKmMgG")
	n, _ := strconv.ParseFloat(number, 64)
	return strconv.FormatFloat(2*n, 'f', -1, 64) + size[len(number):]
}

// set gives v a value if it has none.
func set[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}
