// SPDX-License-Identifier: Apache-2.0

package ctrnet

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"

	"sdvbox/platform/ctrmodel"
)

// parse reads the addresses of the configuration.
func (n *Network) parse() error {
	const key = "network.default_bridge."
	if n.cfg.Bridge == "" || len(n.cfg.Bridge) > 15 {
		return ctrmodel.Errorf(ctrmodel.InvalidArgument, "%sname %q: expected 1 to 15 characters", key, n.cfg.Bridge)
	}
	var err error
	if n.cfg.IP4 != "" {
		n.wanted, err = netip.ParsePrefix(n.cfg.IP4)
		if err != nil || !n.wanted.Addr().Is4() || n.wanted.Bits() > 30 {
			return ctrmodel.Errorf(ctrmodel.InvalidArgument, "%sip4 %q: expected an address and bits, as in 172.17.0.1/16", key, n.cfg.IP4)
		}
		if n.wanted.Addr() == n.wanted.Masked().Addr() {
			return ctrmodel.Errorf(ctrmodel.InvalidArgument, "%sip4 %q: this is the network; expected an address in it", key, n.cfg.IP4)
		}
	}
	if n.cfg.IP4 == "" && (n.cfg.Fixed4 != "" || n.cfg.Gate4 != "") {
		n.cfg.Log.Warn("addresses in the network of the bridge have no effect without that of the bridge", "missing", key+"ip4",
			"fcidr4", n.cfg.Fixed4, "gwip4", n.cfg.Gate4)
		return nil
	}
	if n.cfg.Fixed4 != "" {
		n.fixed, err = netip.ParsePrefix(n.cfg.Fixed4)
		if err != nil || n.fixed.Bits() < n.wanted.Bits() || !n.wanted.Contains(n.fixed.Addr()) {
			return ctrmodel.Errorf(ctrmodel.InvalidArgument, "%sfcidr4 %q: expected a part of the network of ip4 %q", key, n.cfg.Fixed4, n.cfg.IP4)
		}
	}
	if n.cfg.Gate4 != "" {
		if n.gateway, err = netip.ParseAddr(n.cfg.Gate4); err != nil || !n.wanted.Contains(n.gateway) {
			return ctrmodel.Errorf(ctrmodel.InvalidArgument, "%sgwip4 %q: expected an address in the network of ip4 %q", key, n.cfg.Gate4, n.cfg.IP4)
		}
	}
	return nil
}

// elect chooses the network of the bridge: the one of sandboxes that are there, the configured one, or one that is not in use.
func (n *Network) elect() (netip.Prefix, error) {
	for _, s := range n.sandboxes {
		if s.Bridge.IsValid() {
			if n.wanted.IsValid() && n.wanted != s.Bridge {
				n.cfg.Log.Warn("the bridge keeps its network until the agent starts when no container is behind it",
					"bridge", n.cfg.Bridge, "network", s.Bridge, "wanted", n.wanted)
			}
			return s.Bridge, nil
		}
	}
	if n.wanted.IsValid() {
		return n.wanted, nil
	}
	if own := linkAddresses(n.cfg.Bridge); len(own) > 0 {
		return own[0], nil
	}
	used, err := usedNetworks()
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("look which networks are in use: %w", err)
	}
	used = append(used, n.nameservers()...)
	return freeNetwork(used)
}

// freeNetwork is the first of the usual private networks that overlaps with no other, as the address of a bridge in it.
func freeNetwork(used []netip.Prefix) (netip.Prefix, error) {
	next := func(a, b byte, bits int) (netip.Prefix, bool) {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{a, b, 0, 1}), bits)
		for _, u := range used {
			if u.Overlaps(p) {
				return p, false
			}
		}
		return p, true
	}
	for b := byte(17); b < 32; b++ {
		if p, free := next(172, b, 16); free {
			return p, nil
		}
	}
	for b := byte(200); b < 232; b++ {
		if p, free := next(10, b, 16); free {
			return p, nil
		}
	}
	if p, free := next(192, 168, 16); free {
		return p, nil
	}
	return netip.Prefix{}, ctrmodel.Errorf(ctrmodel.ResourceExhausted,
		"no private network is free for containers: set network.default_bridge.ip4 to one")
}

// usedNetworks are the networks of the host's addresses and routes.
func usedNetworks() (used []netip.Prefix, err error) {
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		used = appendPrefix(used, a.IPNet)
	}
	routes, err := whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		used = appendPrefix(used, r.Dst)
	}
	return used, nil
}

// linkAddresses are the IPv4 addresses of a device that others can reach, none if there is no such device.
func linkAddresses(name string) (list []netip.Prefix) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_V4) })
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if !a.IP.IsLoopback() {
			list = appendPrefix(list, a.IPNet)
		}
	}
	return list
}

// appendPrefix appends a network, unless it is everything.
func appendPrefix(list []netip.Prefix, n *net.IPNet) []netip.Prefix {
	if n == nil {
		return list
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	if !ok || bits == 0 {
		return list
	}
	return append(list, netip.PrefixFrom(ip.Unmap(), bits))
}

// assign gives a sandbox its addresses.
func (n *Network) assign(s *sandbox) error {
	taken := map[netip.Addr]bool{n.bridge.Addr(): true, n.gate4(): true}
	for _, other := range n.sandboxes {
		taken[other.IP4] = true
	}
	pool := n.bridge
	if n.fixed.IsValid() && n.bridge == n.wanted {
		pool = n.fixed
	}
	ip, ok := pick(pool, n.bridge, s.Name, taken)
	if !ok {
		return ctrmodel.Errorf(ctrmodel.ResourceExhausted, "no address is left in %s", pool.Masked())
	}
	s.Bridge, s.IP4 = n.bridge, ip
	if n.cfg.IPv6 {
		s.IP6 = n.map6(ip)
	}
	return nil
}

// pick chooses the address for a name from a pool that is part of a network: always the same one, as long as it is free.
func pick(pool, network netip.Prefix, name string, taken map[netip.Addr]bool) (netip.Addr, bool) {
	size := uint32(1) << (32 - pool.Bits())
	h := fnv.New32a()
	h.Write([]byte(name))
	start := h.Sum32()
	for i := range size {
		ip := addTo(pool.Masked().Addr(), (start+i)%size)
		first, last := network.Masked().Addr(), addTo(network.Masked().Addr(), uint32(1)<<(32-network.Bits())-1)
		if ip != first && ip != last && !taken[ip] {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

func addTo(ip netip.Addr, i uint32) netip.Addr {
	b := ip.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+i)
	return netip.AddrFrom4(b)
}

// gate4 is the gateway of containers.
func (n *Network) gate4() netip.Addr {
	if n.gateway.IsValid() && n.bridge == n.wanted {
		return n.gateway
	}
	return n.bridge.Addr()
}

// networks are the addresses of the bridge with the networks they are in.
func (n *Network) networks() []netip.Prefix {
	list := []netip.Prefix{n.bridge}
	if n.cfg.IPv6 {
		list = append(list, netip.PrefixFrom(n.map6(n.bridge.Addr()), 64))
	}
	return list
}

// map6 is the IPv6 address that goes with an IPv4 one, in a network that this machine keeps and others hardly have: a unique
// local one (RFC 4193).
func (n *Network) map6(ip netip.Addr) netip.Addr {
	id, _ := os.ReadFile("/etc/machine-id")
	sum := sha256.Sum256(append(id, n.cfg.Bridge...))
	b := [16]byte{0xfd}
	copy(b[1:6], sum[:])
	v4 := ip.As4()
	copy(b[12:], v4[:])
	return netip.AddrFrom16(b)
}

// mac is the hardware address that goes with an address. Neighbours who remember it stay right.
func mac(ip netip.Addr) net.HardwareAddr {
	b := ip.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
}

func digest(kind, text string) string {
	sum := sha256.Sum256([]byte(kind + "\x00" + text))
	return hex.EncodeToString(sum[:])
}
