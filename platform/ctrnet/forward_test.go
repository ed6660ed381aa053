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
