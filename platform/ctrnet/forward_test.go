// SPDX-License-Identifier: Apache-2.0

package ctrnet

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	sideIP  = "10.10.0.2"
	sideIP6 = "fd98::2"
)

// newSide is another network that the host is in.
func newSide(t *testing.T) (netNS string) {
	t.Helper()
	netNS = filepath.Join(t.TempDir(), "side")
	check(makeNetNS(netNS))
	t.Cleanup(func() { removeNetNS(netNS) })
	fd, err := unix.Open(netNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	check(err)
	defer unix.Close(fd)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "side0"
	cable := &netlink.Veth{LinkAttrs: attrs, PeerName: "in0", PeerNamespace: netlink.NsFd(fd)}
	check(netlink.LinkAdd(cable))
	t.Cleanup(func() { netlink.LinkDel(cable) })
	check(os.WriteFile("/proc/sys/net/ipv6/conf/side0/accept_dad", []byte("0"), 0))
	h, err := netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
	check(err)
	defer h.Close()
	inside, err := h.LinkByName("in0")
	check(err)
	for _, at := range []string{"10.10.0.1/24", "fd98::1/64"} {
		check(netlink.AddrAdd(cable, address(netip.MustParsePrefix(at))))
	}
	for _, at := range []string{sideIP + "/24", sideIP6 + "/64"} {
		check(h.AddrAdd(inside, address(netip.MustParsePrefix(at))))
	}
	check(netlink.LinkSetUp(cable))
	check(h.LinkSetUp(inside))
	for _, gate := range []string{"10.10.0.1", "fd98::1"} {
		check(h.RouteAdd(&netlink.Route{Gw: net.ParseIP(gate)}))
	}
	within(worldNS, func() {
		route := &netlink.Route{Dst: ipNet(netip.MustParsePrefix("fd98::/64")), Gw: net.ParseIP(hostIP6)}
		check(netlink.RouteAdd(route))
		t.Cleanup(func() { within(worldNS, func() { netlink.RouteDel(route) }) })
	})
	return netNS
}

func TestHostDoesNotBecomeARouterBecauseOfContainers(t *testing.T) {
	needRoot(t)
	for _, test := range []struct {
		before, answer4, answer6 string
	}{
		{"0", "", ""},
		{"1", "side " + worldIP, "side " + worldIP6}, // it is one already
	} {
		t.Run(test.before, func(t *testing.T) {
			for _, name := range []string{forward4, forward6} {
				check(setSysctl(name, test.before))
			}
			side := newSide(t)
			for _, network := range []string{"tcp4", "tcp6"} {
				serve(t, side, "side", network, ":80")
				serve(t, worldNS, "world", network, ":81")
			}
			n := newNetwork(t, func(c *Config) { c.IPv6 = true })
			c := container("one", "8080:80")
			netNS := attach(t, n, c)
			serve(t, netNS, "one", "tcp4", ":80")
			six := func(from, at, want string) {
				t.Helper()
				if want != "" {
					awaitAnswer(from, at)
				}
				wantAnswer(t, from, "tcp", at, want)
			}
			for range 2 { // of two agents
				if !isSet(forward4, "1") || !isSet(forward6, "1") {
					t.Error("forwarding is not on")
				}
				wantAnswer(t, netNS, "tcp", worldIP+":81", "world "+hostIP)
				six(netNS, "["+worldIP6+"]:81", "world "+hostIP6)
				wantAnswer(t, worldNS, "tcp", hostIP+":8080", "one "+worldIP)
				wantAnswer(t, worldNS, "tcp", sideIP+":80", test.answer4)
				six(worldNS, "["+sideIP6+"]:80", test.answer6)
				n = restart(t, n, c.ID)
			}
		})
	}
}

func acceptRA(device string) string { return "ipv6/conf/" + device + "/accept_ra" }

// advertise says in a namespace, as a router does, that all that is for others is to be sent there.
func advertise(netNS string) {
	within(netNS, func() {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		check(err)
		defer unix.Close(fd)
		check(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255))
		eth, err := net.InterfaceByName("eth0")
		check(err)
		to := &unix.SockaddrInet6{ZoneId: uint32(eth.Index), Addr: netip.MustParseAddr("ff02::1").As16()}
		advertisement := []byte{134, 0, 0, 0, 64, 0x08, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0} // of high preference, for half an hour
		unix.Sendto(fd, advertisement, 0, to)                                         // fails until its address is sure to be the only one
	})
}

// defaultRoutes are those for IPv6 by a device to a router that has said so itself.
func defaultRoutes(netNS, device string) (list []netlink.Route) {
	within(netNS, func() {
		all, err := netlink.RouteList(mustLink(device), netlink.FAMILY_V6)
		check(err)
		for _, r := range all {
			if (r.Dst == nil || r.Dst.IP.IsUnspecified()) && r.Gw.IsLinkLocalUnicast() {
				list = append(list, r)
			}
		}
	})
	return list
}

func forgetRouters(netNS, device string) {
	for _, r := range defaultRoutes(netNS, device) {
		within(netNS, func() { check(netlink.RouteDel(&r)) })
	}
}

// awaitRouter waits until a router has got its way.
func awaitRouter(t *testing.T, router, netNS, device string) {
	t.Helper()
	forgetRouters(netNS, device)
	for begin := time.Now(); len(defaultRoutes(netNS, device)) == 0; time.Sleep(50 * time.Millisecond) {
		if advertise(router); time.Since(begin) > patience {
			t.Fatal("the container is not even taken for a router if it may be one")
		}
	}
}

// speakIPv6 makes a container do what one with the capability for that does.
func speakIPv6(netNS, acceptRA string) {
	within(netNS, func() {
		for _, knob := range []struct{ name, value string }{{"accept_dad", "0"}, {"accept_ra", acceptRA}, {"disable_ipv6", "0"}} {
			check(setSysctl("ipv6/conf/eth0/"+knob.name, knob.value))
		}
	})
}

func TestContainerDoesNotBecomeTheRouterOfTheHost(t *testing.T) {
	needRoot(t)
	for _, ip6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6 %v", ip6), func(t *testing.T) {
			check(setSysctl(forward6, "0"))
			check(setSysctl(acceptRA("out0"), "1"))
			n := newNetwork(t, func(c *Config) { c.IPv6 = ip6 })
			c := container("one")
			netNS := attach(t, n, c)
			speakIPv6(netNS, "0")
			cable := n.linkName(c.ID)
			for _, device := range []string{n.cfg.Bridge, cable} {
				if !isSet(acceptRA(device), "0") {
					t.Errorf("%s listens to routers: accept_ra is %s", device, read(t, "/proc/sys/net/"+acceptRA(device)))
				}
			}
			if ip6 && !isSet(acceptRA("out0"), "2") {
				t.Error("the host does not listen to routers in its own networks any more")
			}

			check(setSysctl(acceptRA(n.cfg.Bridge), "2"))
			awaitRouter(t, netNS, "", n.cfg.Bridge)
			n = restart(t, n, c.ID)
			speakIPv6(netNS, "0")
			forgetRouters("", n.cfg.Bridge)
			for range 10 {
				advertise(netNS)
				time.Sleep(20 * time.Millisecond)
			}
			if routes := defaultRoutes("", n.cfg.Bridge); len(routes) > 0 {
				t.Errorf("the host sends by the container: %v", routes)
			}
		})
	}
}

func TestContainerDoesNotBecomeTheRouterOfItsNeighbours(t *testing.T) {
	needRoot(t)
	for _, ip6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6 %v", ip6), func(t *testing.T) {
			n := newNetwork(t, func(c *Config) { c.IPv6 = ip6 })
			one, other := container("one"), container("other")
			router, netNS, wrong := attach(t, n, container("router")), attach(t, n, one), attach(t, n, other)
			for _, listens := range []string{"0", "1"} { // "1": as an agent before has left it
				if listens == "1" {
					speakIPv6(netNS, listens)
					n = restart(t, n, one.ID, other.ID, "id-router")
				}
				speakIPv6(router, "0")
				speakIPv6(wrong, "1")
				awaitRouter(t, router, wrong, "eth0") // the other one hears the same
				if routes := defaultRoutes(netNS, "eth0"); len(routes) > 0 {
					t.Errorf("accept_ra was %s: a container sends by its neighbour: %v", listens, routes)
				}
				within(netNS, func() {
					if !isSet(acceptRA("eth0"), "0") {
						t.Errorf("accept_ra was %s, is %s", listens, read(t, "/proc/sys/net/"+acceptRA("eth0")))
					}
					for device, want := range map[string]bool{"eth0": ip6, "lo": true} {
						addrs, err := netlink.AddrList(mustLink(device), netlink.FAMILY_V6)
						if err != nil || len(addrs) > 0 != want {
							t.Errorf("%s has the addresses %v, %v", device, addrs, err)
						}
					}
				})
			}
		})
	}
}

// Those of an agent before may still listen.
func TestOurOwnDevicesAreNotToldToListenToRouters(t *testing.T) {
	n := newNetwork(t, nil)
	c := container("one")
	attach(t, n, c)
	check(setSysctl(forward6, "0"))
	check(setSysctl(acceptRA(n.linkName(c.ID)), "1"))
	check(setSysctl(acceptRA("out0"), "1"))
	check(n.forwardIPv6())
	if !isSet(acceptRA(n.linkName(c.ID)), "1") || !isSet(acceptRA("out0"), "2") {
		t.Errorf("accept_ra: cable %s, host %s", read(t, "/proc/sys/net/"+acceptRA(n.linkName(c.ID))), read(t, "/proc/sys/net/"+acceptRA("out0")))
	}
}

func TestKernelWithoutIPv6NeedNotIgnoreRouters(t *testing.T) {
	if err := ignoreRouters("absent0"); err != nil {
		t.Error(err)
	}
	needRoot(t)
	path := filepath.Join(t.TempDir(), "empty") // has no eth0, so no files for it
	check(makeNetNS(path))
	defer removeNetNS(path)
	netNS, err := os.Open(path)
	check(err)
	defer netNS.Close()
	if err := limitIPv6(int(netNS.Fd()), &sandbox{}); err != nil {
		t.Error(err)
	}
}

func TestDescriptionOfForwardingThatIsBrokenHoldsBack(t *testing.T) {
	n := &Network{cfg: config(t.TempDir())}
	if got := n.loadForwarding(); got != (forwarding{}) {
		t.Errorf("without a file: %+v", got)
	}
	check(os.WriteFile(n.forwardingFile(), []byte(`{"IP4":`), 0o600))
	if got := n.loadForwarding(); got != (forwarding{true, true}) {
		t.Errorf("half a file: %+v", got)
	}
}

func TestNothingIsSaidOfContainersThatEndedWithTheMachine(t *testing.T) {
	var log bytes.Buffer
	n := newNetwork(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	log.Reset()
	c := container("one")
	n = restart(t, n, c.ID)
	if log.Len() > 0 {
		t.Errorf("log: %s", log.String())
	}
	attach(t, n, c)
	check(os.RemoveAll(n.file(c.ID, "")))
	n = restart(t, n, c.ID)
	if want := fmt.Sprint("container=", c.ID); !strings.Contains(log.String(), "has lost its network") || !strings.Contains(log.String(), want) {
		t.Errorf("log: %s", log.String())
	}
}
