// SPDX-License-Identifier: Apache-2.0

package ctrnet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
)

// settle is how long changes are gathered, which come in swarms.
const settle = time.Second

// Watch keeps the network right while the host changes, until ctx ends: the addresses that host_ip_DEVICE stands for, the name
// servers, and what others take away of bridge and rules. It looks at what nobody tells of each time the interval is over.
func (n *Network) Watch(ctx context.Context, interval time.Duration) error {
	changes, links := make(chan netlink.AddrUpdate, 64), make(chan netlink.LinkUpdate, 64)
	if err := netlink.AddrSubscribe(changes, ctx.Done()); err != nil {
		return fmt.Errorf("listen to changes of addresses: %w", err)
	}
	if err := netlink.LinkSubscribe(links, ctx.Done()); err != nil {
		return fmt.Errorf("listen to changes of devices: %w", err)
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-changes:
			if !ok {
				changes = nil // the ticks are left
			}
			if settled == nil {
				settled = time.After(settle)
			}
			continue
		case update, ok := <-links:
			if !ok {
				links = nil
			} else if settled == nil && n.isOurs(update.Attrs().Name) {
				settled = time.After(settle)
			}
			continue
		case <-settled:
			settled = nil
		case <-tick.C:
		}
		if err := n.repair(); err != nil {
			n.cfg.Log.Warn("the network of containers is not whole", "err", err)
		}
	}
}

// repair makes anew what is missing.
func (n *Network) repair() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.bridge.IsValid() { // nothing has been made yet
		return nil
	}
	n.refresh()
	for _, s := range n.sandboxes {
		s.holdAgain() // has been said
	}
	return errors.Join(n.raiseBridge(), n.passOn())
}
