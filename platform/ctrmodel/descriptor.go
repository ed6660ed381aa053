// SPDX-License-Identifier: Apache-2.0

package ctrmodel

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// maxDescriptor is more than any description of a container needs.
const maxDescriptor = 1 << 20

// ParseDescriptor reads the description of a container that is wanted: this package's JSON, or that of the API's message,
// which has other keys and units. What the engine decides, such as the state, is left out, and nothing is checked or
// filled in. Odd tells of keys that nobody knows.
func ParseDescriptor(data []byte) (c *Container, odd, err error) {
	if len(data) > maxDescriptor {
		return nil, nil, invalid("larger than %d bytes", maxDescriptor)
	}
	var keys struct {
		ID       json.RawMessage `json:"id"`
		Name     json.RawMessage `json:"name"`
		FullName json.RawMessage `json:"container_name"`
	}
	if err := decode(data, &keys); err != nil {
		return nil, nil, err
	}
	c = new(Container)
	if keys.FullName == nil && (keys.Name != nil || keys.ID != nil) {
		var m message
		odd, err = known(data, new(message)), decode(data, &m)
		c = m.container()
	} else {
		odd, err = known(data, new(Container)), decode(data, c)
	}
	if err != nil {
		return nil, nil, err
	}
	c.Forget()
	return c, odd, nil
}

// Forget takes away what is for the engine to say, and not for who wants a container.
func (c *Container) Forget() {
	c.State, c.NetworkSettings, c.Created, c.RestartCount, c.ManuallyStopped, c.StartedBefore = State{}, nil, "", 0, false, false
	c.ResolvConfPath, c.HostsPath, c.HostnamePath = "", "", ""
}

// ParseOriginal reads a container from the store of Eclipse Kanto's container management, where memory without swap means
// that swap has no limit. Nothing is checked, and only that is filled in.
func ParseOriginal(data []byte) (*Container, error) {
	c := new(Container)
	if err := decode(data, c); err != nil {
		return nil, err
	}
	c.HostConfig.Resources.unlimitedSwap()
	return c, nil
}

// message is the JSON of the API's message. Its fields hide those that are written differently.
type message struct {
	Container
	ID     string  `json:"id"`
	Name   string  `json:"name"`
	Mounts []Mount `json:"mounts"`
	Hooks  []struct {
		Hook
		Type string `json:"type"`
	} `json:"hooks"`
	HostConfig struct {
		HostConfig
		Ports []struct {
			Port
			Proto string `json:"protocol"`
		} `json:"port_mappings"`
		RestartPolicy struct {
			RestartPolicy
			RetryTimeout int64 `json:"retry_timeout"` // seconds
		} `json:"restart_policy"`
	} `json:"host_config"`
	State json.RawMessage `json:"state"`
}

func (m *message) container() *Container {
	c := m.Container
	c.ID, c.Name, c.Mounts, c.HostConfig = m.ID, m.Name, m.Mounts, m.HostConfig.HostConfig
	for _, h := range m.Hooks {
		h.Hook.Type = ParseHookType(h.Type)
		c.Hooks = append(c.Hooks, h.Hook)
	}
	for _, p := range m.HostConfig.Ports {
		p.Port.Proto = p.Proto
		c.HostConfig.Ports = append(c.HostConfig.Ports, p.Port)
	}
	c.HostConfig.RestartPolicy = m.HostConfig.RestartPolicy.RestartPolicy
	c.HostConfig.RestartPolicy.RetryTimeout = Seconds(m.HostConfig.RestartPolicy.RetryTimeout)
	return &c
}

// Seconds is n seconds, or the longest duration there is.
func Seconds(n int64) time.Duration {
	const most = int64(1<<63-1) / int64(time.Second)
	return time.Duration(min(max(n, -most), most)) * time.Second
}

func decode(data []byte, into any) error {
	err := json.Unmarshal(data, into)
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return invalid("%s: unexpected %s", cmp.Or(wrong.Field, "not the JSON of a container"), wrong.Value)
	}
	if err != nil {
		return invalid("not the JSON of a container: %w", err)
	}
	if data = bytes.TrimSpace(data); data[0] != '{' {
		return invalid("not the JSON of a container: expected an object")
	}
	return nil
}

// known tells of keys that are not in into.
func known(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil && err != io.EOF {
		return fmt.Errorf("ignored what is not known: %w", err)
	}
	return nil
}
