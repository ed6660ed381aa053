// SPDX-License-Identifier: Apache-2.0

package ctrnet

import "sdvbox/platform/ctrmodel"

// Describe says in c what and where the place of a container is that has one, as Attach has done: whoever asked that to do so may
// have been killed before it was written down. It does nothing to a container that has none.
func (n *Network) Describe(c *ctrmodel.Container) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.sandboxes[c.ID]
	if s == nil {
		return
	}
	c.HostsPath, c.HostnamePath, c.ResolvConfPath = n.file(s.ID, "hosts"), n.file(s.ID, "hostname"), n.file(s.ID, "resolv.conf")
	c.NetworkSettings = n.settings(s)
}
