// SPDX-License-Identifier: Apache-2.0

package ctrnet

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sdvbox/platform/ctrmodel"
)

// published is a port of the host that leads to a container.
type published struct {
	Proto  string
	Host   netip.AddrPort
	Target netip.AddrPort
}

func (p published) String() string { return fmt.Sprintf("%s/%s", p.Host, p.Proto) }

var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// publish finds the ports of the host for a sandbox and holds them.
func (n *Network) publish(s *sandbox, ports []ctrmodel.Port) error {
	for _, p := range ports {
		ips, err := s.hostIPs(p)
		if err != nil {
			return err
		}
		if err := n.publishOne(s, p, ips); err != nil {
			return err
		}
	}
	return nil
}

// hostIPs are the addresses of the host that a port is published at. The default address means all of them.
func (s *sandbox) hostIPs(p ctrmodel.Port) ([]netip.Addr, error) {
	ip, err := netip.ParseAddr(p.HostIP)
	if err != nil {
		return nil, ctrmodel.Errorf(ctrmodel.InvalidArgument, "port mapping %s: %q is not an IP address", p, p.HostIP)
	}
	ip = ip.Unmap().WithZone("")
	switch {
	case ip.Is6() && !s.IP6.IsValid():
		return nil, ctrmodel.Errorf(ctrmodel.InvalidArgument, "port mapping %s: containers have no IPv6 unless network.default_bridge.enable_ip6 is set", p)
	case ip == netip.IPv4Unspecified() && s.IP6.IsValid():
		return []netip.Addr{ip, netip.IPv6Unspecified()}, nil
	}
	return []netip.Addr{ip}, nil
}

// publishOne takes the first port of a range that is free at all addresses.
func (n *Network) publishOne(s *sandbox, p ctrmodel.Port, ips []netip.Addr) error {
	var err error
	for port := uint32(p.HostPort); port <= uint32(max(p.HostPort, p.HostPortEnd)); port++ {
		var list []published
		for _, ip := range ips {
			target := s.IP4
			if ip.Is6() {
				target = s.IP6
			}
			one := published{p.Proto, netip.AddrPortFrom(ip, uint16(port)), netip.AddrPortFrom(target, p.Container)}
			if err = n.take(s, one); err != nil {
				break
			}
			list = append(list, one)
		}
		if err == nil {
			s.Ports = append(s.Ports, list...)
			return nil
		}
		for _, one := range list {
			s.letGo(one)
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "port mapping %s: %w", p, err)
}

// take holds a port, unless it is another container's.
func (n *Network) take(s *sandbox, p published) error {
	for _, other := range n.sorted() {
		for _, q := range other.Ports {
			if q.Proto == p.Proto && q.Host.Port() == p.Host.Port() && sameHost(q.Host.Addr(), p.Host.Addr()) {
				return fmt.Errorf("container %s has port %s of the host: %w", other.Name, q, unix.EADDRINUSE)
			}
		}
	}
	return s.hold(p)
}

// sameHost reports whether something sent to one of the addresses may be meant for both.
func sameHost(a, b netip.Addr) bool {
	return a.BitLen() == b.BitLen() && (a == b || a.IsUnspecified() || b.IsUnspecified())
}

// hold keeps a port from other programs, and from being the near end of their connections, by a socket that is bound and does
// not listen. SCTP is seldom in the kernel; there nobody is kept away.
func (s *sandbox) hold(p published) error {
	if _, held := s.held[p]; held || p.Proto == "sctp" {
		return nil
	}
	fd, err := bind(p)
	if err != nil {
		return fmt.Errorf("port %s of the host: %w", p, err)
	}
	if s.held == nil {
		s.held = map[published]int{}
	}
	s.held[p] = fd
	return nil
}

func bind(p published) (fd int, err error) {
	typ := unix.SOCK_STREAM
	if p.Proto == "udp" {
		typ = unix.SOCK_DGRAM
	}
	domain, at := unix.AF_INET, unix.Sockaddr(nil)
	if ip := p.Host.Addr(); ip.Is4() {
		at = &unix.SockaddrInet4{Port: int(p.Host.Port()), Addr: ip.As4()}
	} else {
		domain, at = unix.AF_INET6, &unix.SockaddrInet6{Port: int(p.Host.Port()), Addr: ip.As16()}
	}
	if fd, err = unix.Socket(domain, typ|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	if domain == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	// A connection of the host's that is long over is no obstacle, but others who bind later shall meet one.
	reuse := func(on int) {
		if err == nil && typ == unix.SOCK_STREAM {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, on)
		}
	}
	reuse(1)
	if err == nil {
		err = unix.Bind(fd, at)
	}
	reuse(0)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// holdAgain holds the ports of a sandbox that are not held, because its agent has ended or somebody else has got them since.
func (s *sandbox) holdAgain() error {
	var errs []error
	for _, p := range s.Ports {
		errs = append(errs, s.hold(p))
	}
	return errors.Join(errs...)
}

// release lets go of all ports.
func (s *sandbox) release() {
	for p := range s.held {
		s.letGo(p)
	}
}

func (s *sandbox) letGo(p published) {
	if fd, held := s.held[p]; held {
		unix.Close(fd)
		delete(s.held, p)
	}
}

// forgetFlows makes the kernel decide anew about datagrams that it has decided about: those that came to the ports of a sandbox
// before they were published, or to a container that has ended.
func (n *Network) forgetFlows(s *sandbox, which func(*netlink.ConntrackFilter, published) error) {
	for _, p := range s.Ports {
		if p.Proto != "udp" {
			continue
		}
		f := &netlink.ConntrackFilter{}
		family := netlink.InetFamily(unix.AF_INET)
		if p.Host.Addr().Is6() {
			family = unix.AF_INET6
		}
		err := errors.Join(f.AddProtocol(unix.IPPROTO_UDP), which(f, p))
		if err == nil {
			_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f)
		}
		if err != nil {
			n.cfg.Log.Warn("datagrams may go where they have gone before", "container", s.Name, "port", p, "err", err)
		}
	}
}

func toHostPort(f *netlink.ConntrackFilter, p published) error {
	return f.AddPort(netlink.ConntrackOrigDstPort, p.Host.Port())
}

func toContainer(f *netlink.ConntrackFilter, p published) error {
	return f.AddIP(netlink.ConntrackReplySrcIP, p.Target.Addr().AsSlice())
}
