// SPDX-License-Identifier: Apache-2.0

package ctrmodel

import (
	"fmt"
	"slices"
)

// Change is what it takes to make one container of another.
type Change int

// The changes, each more than the one before.
const (
	Same     Change = iota
	InPlace         // Update is enough
	Recreate        // a new container has to take its place
)

// Compare says what it takes to make a container that is as desired of the current one. What the field may leave out counts
// as its default. Names, hooks, runtime and keys do not count: not everybody who desires knows them.
func Compare(current, desired *Container) Change {
	a, b := compared(current), compared(desired)
	g, h := &a.HostConfig, &b.HostConfig
	switch {
	case a.Image.Name != b.Image.Name,
		!sameSet(a.Mounts, b.Mounts),
		!slices.Equal(a.Config.Cmd, b.Config.Cmd),
		!sameSet(a.Config.Env, b.Config.Env),
		a.IOConfig.OpenStdin != b.IOConfig.OpenStdin,
		a.IOConfig.TTY != b.IOConfig.TTY,
		g.Privileged != h.Privileged,
		g.NetworkMode != h.NetworkMode,
		!sameSet(g.Devices, h.Devices),
		!sameSet(g.ExtraHosts, h.ExtraHosts),
		!sameSet(g.ExtraCapabilities, h.ExtraCapabilities),
		!sameSet(g.Ports, h.Ports),
		g.Log != h.Log:
		return Recreate
	case g.Resources != h.Resources, g.RestartPolicy != h.RestartPolicy:
		return InPlace
	}
	return Same
}

func compared(c *Container) *Container {
	c = c.Clone()
	c.Defaults(func() string { return "" })
	return c
}

func sameSet[T comparable](a, b []T) bool {
	in := func(list []T) func(T) bool { return func(v T) bool { return !slices.Contains(list, v) } }
	return !slices.ContainsFunc(a, in(b)) && !slices.ContainsFunc(b, in(a))
}

// Update changes what can be changed as the container runs. If that is not valid, nothing is changed.
func (c *Container) Update(o UpdateOptions) (changed bool, err error) {
	policy, resources := c.HostConfig.RestartPolicy, c.HostConfig.Resources
	if o.RestartPolicy != nil {
		policy = *o.RestartPolicy
		set(&policy.Type, RestartUnlessStopped)
		if err := policy.validate(); err != nil {
			return false, fmt.Errorf("restart_policy: %w", err)
		}
	}
	if o.Resources != nil {
		resources = *o.Resources
		resources.unlimitedSwap()
		if err := resources.validate(); err != nil {
			return false, fmt.Errorf("resources: %w", err)
		}
	}
	changed = policy != c.HostConfig.RestartPolicy || resources != c.HostConfig.Resources
	c.HostConfig.RestartPolicy, c.HostConfig.Resources = policy, resources
	return changed, nil
}

// unlimitedSwap is for resources from where no swap means no limit, and not the default.
func (r *Resources) unlimitedSwap() {
	if r.Memory != "" {
		set(&r.MemorySwap, Unlimited)
	}
}
