// SPDX-License-Identifier: Apache-2.0

// Package inventory knows what is installed in the vehicle: it keeps the
// newest inventory of every domain and merges them into one graph, with the
// update manager at its root, an application per domain below it, and the
// domain's own nodes below that.
package inventory

import (
	"slices"
	"sync"
	"time"

	"sdvbox/platform/updateproto"
)

// disorder is how much older than the one before an inventory may claim to be
// and still be taken for one that was overtaken on its way. MQTT keeps the
// order, so only an agent that publishes from two places at once overtakes
// itself. One that seems to be much older comes from an agent whose clock was
// set back: ignoring it would mean to ignore the agent until its clock is
// again where it was, which can take years.
const disorder = time.Minute

// Cache has the newest inventory of every domain. The zero Cache is empty and
// ready to use, by several goroutines at a time.
type Cache struct {
	mu     sync.Mutex
	newest map[string]entry
}

type entry struct {
	at int64
	updateproto.Inventory
}

// Put notes the inventory of a domain that was taken at this time, in
// milliseconds since 1970. It returns false and changes nothing if a newer one
// is known. A time of 0 says nothing; such an inventory is as new as it comes.
//
// A clock that is set back by more than a minute is noticed at once. If it is
// set back by less, inventories count again after that less.
func (c *Cache) Put(domain string, at int64, inv updateproto.Inventory) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.newest[domain].at; at != 0 && old != 0 && at < old && uint64(old)-uint64(at) <= uint64(disorder.Milliseconds()) {
		return false
	}
	if c.newest == nil {
		c.newest = map[string]entry{}
	}
	c.newest[domain] = entry{at, inv}
	return true
}

// Merge returns one inventory of these domains, ordered by their names, below
// the node of the update manager, which has the id root. Domains nothing is
// known of are left out. A domain without software has nothing to link to, so
// that only its hardware is listed.
func (c *Cache) Merge(root, version string, domains []string) updateproto.Inventory {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := updateproto.Inventory{SoftwareNodes: []updateproto.SoftwareNode{
		{ID: root, Version: version, Name: "Update Manager", Type: updateproto.TypeApplication},
	}}
	for _, domain := range slices.Compact(slices.Sorted(slices.Values(domains))) {
		inv := c.newest[domain]
		all.HardwareNodes = append(all.HardwareNodes, inv.HardwareNodes...)
		if len(inv.SoftwareNodes) > 0 {
			all.SoftwareNodes = append(all.SoftwareNodes, inv.SoftwareNodes...)
			all.Associations = append(all.Associations, updateproto.Association{SourceID: root, TargetID: top(domain, inv.SoftwareNodes)})
			all.Associations = append(all.Associations, inv.Associations...)
		}
	}
	return all
}

// top returns the id of the node that stands for the domain: the application
// that says so, else the first one.
func top(domain string, nodes []updateproto.SoftwareNode) string {
	said := updateproto.KeyValue{Key: "domain", Value: domain}
	for _, n := range nodes {
		if n.Type == updateproto.TypeApplication && slices.Contains(n.Parameters, said) {
			return n.ID
		}
	}
	return nodes[0].ID
}
