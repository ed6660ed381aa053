// SPDX-License-Identifier: Apache-2.0

package ctrnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// linkPrefix is what the names of our ends of the cables to containers begin with.
const linkPrefix = "kcm"

func (n *Network) linkName(id string) string { return linkPrefix + digest(n.cfg.Bridge, id)[:11] }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func isAbsent(err error) bool { return errors.As(err, &netlink.LinkNotFoundError{}) }

// whole repeats a listing that others have changed meanwhile.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 10 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// raiseBridge sees to it that the bridge is there and up, with its addresses and what is connected to it.
func (n *Network) raiseBridge() error {
	if !n.bridge.IsValid() {
		p, err := n.elect()
		if err != nil {
			return err
		}
		n.bridge = p
	}
	link, err := netlink.LinkByName(n.cfg.Bridge)
	if isAbsent(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = n.cfg.Bridge, n.cfg.MTU
		attrs.HardwareAddr = mac(n.bridge.Addr()) // else it changes with what is connected
		if err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err == nil {
			link, err = netlink.LinkByName(n.cfg.Bridge)
		}
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", n.cfg.Bridge, err)
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("bridge %s: there is a device of this name that is no bridge but %s", n.cfg.Bridge, link.Type())
	}
	if err := errors.Join(n.allowBridge(), n.setUpBridge(link)); err != nil {
		return fmt.Errorf("bridge %s: %w", n.cfg.Bridge, err)
	}
	return nil
}

func (n *Network) setUpBridge(link netlink.Link) error {
	if link.Attrs().MTU != n.cfg.MTU {
		if err := netlink.LinkSetMTU(link, n.cfg.MTU); err != nil {
			return fmt.Errorf("set MTU: %w", err)
		}
	}
	for _, own := range n.networks() {
		if err := netlink.AddrAdd(link, address(own)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %s: %w", own, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, s := range n.sandboxes {
		if err := n.reconnect(s, link); err != nil {
			n.cfg.Log.Warn("a container is without network", "container", s.Name, "err", err)
		}
	}
	return nil
}

// reconnect connects a sandbox again if somebody has removed the bridge or the cable, or taken the cable away.
func (n *Network) reconnect(s *sandbox, bridge netlink.Link) error {
	if !isNetNS(n.netNS(s.ID)) { // not yet, or not at all
		return nil
	}
	end, err := netlink.LinkByName(n.linkName(s.ID))
	switch {
	case isAbsent(err):
		return n.plugIn(s)
	case err != nil:
		return err
	case end.Attrs().MasterIndex == bridge.Attrs().Index && end.Attrs().Flags&net.FlagUp != 0:
		return nil
	}
	return n.join(end, bridge)
}

// address can be used at once: nobody else has it, so nobody needs to be asked.
func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

// join connects our end of a cable to the bridge.
func (n *Network) join(end, bridge netlink.Link) error {
	if err := ignoreRouters(end.Attrs().Name); err != nil { // for when somebody takes it from the bridge
		return err
	}
	if err := netlink.LinkSetMaster(end, bridge); err != nil {
		return fmt.Errorf("connect %s: %w", end.Attrs().Name, err)
	}
	// Where bridges ask the firewall (br_netfilter), what a container sends to its own published port turns back here.
	if err := netlink.LinkSetHairpin(end, true); err != nil {
		return fmt.Errorf("let %s send back: %w", end.Attrs().Name, err)
	}
	if !n.cfg.ICC {
		if err := netlink.LinkSetIsolated(end, true); err != nil {
			return fmt.Errorf("keep containers from each other: %w", err)
		}
	}
	return netlink.LinkSetUp(end)
}

// plugIn connects the namespace of a sandbox to the bridge.
func (n *Network) plugIn(s *sandbox) error {
	fd, err := unix.Open(n.netNS(s.ID), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: n.netNS(s.ID), Err: err}
	}
	defer unix.Close(fd)
	bridge, err := netlink.LinkByName(n.cfg.Bridge)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = n.linkName(s.ID), n.cfg.MTU
	cable := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(fd), PeerHardwareAddr: mac(s.IP4)}
	if err := netlink.LinkAdd(cable); err != nil {
		return fmt.Errorf("add link %s: %w", attrs.Name, err)
	}
	if err := n.join(cable, bridge); err != nil {
		return err
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if err = limitIPv6(fd, s); err == nil {
		err = n.setUpInside(h, s)
	}
	if err != nil {
		return fmt.Errorf("set up the network inside: %w", err)
	}
	return nil
}

// limitIPv6 keeps a container from listening to neighbours that say they are routers. Without an address for IPv6 there is none at
// eth0, and neighbours cannot give it one; the loopback keeps its own.
func limitIPv6(netNS int, s *sandbox) error {
	return inThread(func() error {
		if err := unix.Setns(netNS, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the namespace: %w", err)
		}
		err := ignoreRouters("eth0")
		if !s.IP6.IsValid() {
			err = errors.Join(err, setIPv6("eth0", "disable_ipv6", "1"))
		}
		return err
	})
}

// setUpInside gives a namespace its addresses and routes.
func (n *Network) setUpInside(h *netlink.Handle, s *sandbox) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	eth, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	routes := map[netip.Prefix]netip.Addr{netip.PrefixFrom(s.IP4, n.bridge.Bits()): n.gate4()}
	if s.IP6.IsValid() {
		routes[netip.PrefixFrom(s.IP6, 64)] = n.map6(n.bridge.Addr())
	}
	for own := range routes {
		if err := h.AddrAdd(eth, address(own)); err != nil {
			return fmt.Errorf("address %s: %w", own, err)
		}
	}
	for _, link := range []netlink.Link{lo, eth} {
		if err := h.LinkSetUp(link); err != nil {
			return err
		}
	}
	for _, gate := range routes {
		if err := h.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: gate.AsSlice()}); err != nil {
			return fmt.Errorf("route by %s: %w", gate, err)
		}
	}
	return nil
}

// unplug removes the cable of a sandbox. The kernel does it, too, but later.
func (n *Network) unplug(id string) error {
	link, err := netlink.LinkByName(n.linkName(id))
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if isAbsent(err) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// sweepLinks removes cables at the bridge that belong to no sandbox, and the bridge if it has no purpose: the next one may
// choose its network anew.
func (n *Network) sweepLinks() error {
	bridge, err := netlink.LinkByName(n.cfg.Bridge)
	if isAbsent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	known, idle := map[string]bool{}, true
	for id, s := range n.sandboxes {
		known[n.linkName(id)] = s.bridged()
		idle = idle && !s.bridged()
	}
	links, err := whole(netlink.LinkList)
	if err != nil {
		return err
	}
	for _, l := range links {
		a := l.Attrs()
		switch {
		case a.MasterIndex != bridge.Attrs().Index || known[a.Name]:
		case l.Type() == "veth" && strings.HasPrefix(a.Name, linkPrefix):
			if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("remove link %s: %w", a.Name, err)
			}
		default: // somebody else's
			idle = false
		}
	}
	if idle && bridge.Type() == "bridge" {
		return netlink.LinkDel(bridge)
	}
	return nil
}

// makeNetNS makes a network namespace that has a name and needs no process.
func makeNetNS(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	err = inThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	if err != nil {
		os.Remove(path)
	}
	return err
}

// inThread runs f in a thread of its own that ends with it.
func inThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread must not serve others
		if unix.Gettid() == unix.Getpid() {
			// The first thread never ends, and is what others take the whole process for: keep it while f gets another one.
			defer runtime.UnlockOSThread()
			done <- inThread(f)
			return
		}
		done <- f()
	}()
	return <-done
}

func removeNetNS(path string) error {
	for { // until no mount is on top of the file
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			break
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func isNetNS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}
