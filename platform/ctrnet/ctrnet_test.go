// SPDX-License-Identifier: Apache-2.0

package ctrnet

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"sdvbox/platform/ctrmodel"
)

// All tests run in a host of their own: a namespace of networks and of mounts.
func TestMain(m *testing.M) {
	const inside = "CTRNET_TEST_INSIDE"
	switch {
	case slices.Contains(os.Args, "-test.fuzzworker"):
		os.Exit(m.Run())
	case os.Getenv(victimDir) != "":
		beKilled(os.Getenv(victimDir))
	case os.Getenv(inside) != "":
		os.Exit(setUpHost(m.Run))
	case os.Geteuid() != 0:
		if os.Getenv("SDVBOX_REQUIRE") == "1" {
			fmt.Println("making networks needs root")
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		os.Exit(max(exit.ExitCode(), 1))
	}
	if err != nil {
		fmt.Println("make a host for the test:", err)
		os.Exit(1)
	}
}

const (
	hostIP   = "10.9.0.1"
	worldIP  = "10.9.0.2"
	hostIP6  = "fd99::1"
	worldIP6 = "fd99::2"
)

var worldNS string // beyond the device out0 of the host

// setUpHost connects the host with a world outside.
func setUpHost(run func() int) int {
	dir, err := os.MkdirTemp("", "ctrnet-test-")
	check(err)
	defer os.RemoveAll(dir)
	worldNS = filepath.Join(dir, "world")
	check(makeNetNS(worldNS))
	defer removeNetNS(worldNS)
	fd, err := unix.Open(worldNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	check(err)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "out0"
	check(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "in0", PeerNamespace: netlink.NsFd(fd)}))
	here, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	check(err)
	there, err := netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
	check(err)
	check(os.WriteFile("/proc/sys/net/ipv6/conf/out0/accept_dad", []byte("0"), 0))
	up := func(h *netlink.Handle, name string, addrs ...string) {
		link, err := h.LinkByName(name)
		check(err)
		for _, a := range addrs {
			check(h.AddrAdd(link, address(netip.MustParsePrefix(a))))
		}
		check(h.LinkSetUp(link))
	}
	up(here, "lo")
	up(here, "out0", hostIP+"/24", hostIP6+"/64")
	up(there, "lo")
	up(there, "in0", worldIP+"/24", worldIP6+"/64")
	check(there.RouteAdd(&netlink.Route{Gw: net.ParseIP(hostIP)}))
	return run()
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making networks needs root")
	}
}

func config(dir string) Config {
	return Config{
		Dir: dir, Bridge: "kanto-test0", HostFiles: dir, ICC: true, Rules: true, Forward: true, Masq: true,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// newNetwork is a network like the one of an agent in its first start.
func newNetwork(t *testing.T, change func(*Config)) *Network {
	t.Helper()
	needRoot(t)
	cfg := config(t.TempDir())
	if change != nil {
		change(&cfg)
	}
	t.Cleanup(func() {
		next, err := New(cfg)
		check(err)
		check(next.Restore(t.Context(), nil))
		check(netlink.LinkDel(mustLink(cfg.Bridge)))
		next.cfg.Rules = false
		check(next.applyRules())
	})
	return restart(t, &Network{cfg: cfg})
}

// restart ends an agent by kill and starts the next one, which knows some containers to run.
func restart(t *testing.T, n *Network, ids ...string) *Network {
	t.Helper()
	n.kill()
	next, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(next.kill)
	if err := next.Restore(t.Context(), ids); err != nil {
		t.Fatal(err)
	}
	return next
}

// kill does what the kernel does when an agent has ended.
func (n *Network) kill() {
	for _, s := range n.sandboxes {
		s.release()
	}
}

func mustLink(name string) netlink.Link {
	link, err := netlink.LinkByName(name)
	check(err)
	return link
}

// container is one with some ports and extra hosts, which have a colon and no protocol.
func container(name string, more ...string) *ctrmodel.Container {
	c := &ctrmodel.Container{ID: "id-" + name, Name: name, HostName: name + "-host", DomainName: name + "-domain"}
	c.HostConfig.NetworkMode = ctrmodel.BridgeNetwork
	for _, m := range more {
		if p, err := ctrmodel.ParsePort(m); err == nil {
			c.HostConfig.Ports = append(c.HostConfig.Ports, p)
		} else {
			c.HostConfig.ExtraHosts = append(c.HostConfig.ExtraHosts, m)
		}
	}
	return c
}

func attach(t *testing.T, n *Network, c *ctrmodel.Container) (netNS string) {
	t.Helper()
	netNS, err := n.Attach(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return netNS
}

func detach(t *testing.T, n *Network, c *ctrmodel.Container) {
	t.Helper()
	if err := n.Detach(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
}

func ipOf(c *ctrmodel.Container) string { return c.NetworkSettings.Networks["bridge"].IPAddress }

// within calls f in a network namespace; in the host's if that is empty.
func within(netNS string, f func()) {
	if netNS == "" {
		f()
		return
	}
	inThread(func() error {
		ns, err := netns.GetFromPath(netNS)
		check(err)
		defer ns.Close()
		check(netns.Set(ns))
		f()
		return nil
	})
}

// serve answers in a namespace, with its name and by whom it was asked.
func serve(t *testing.T, netNS, name, network, at string) {
	t.Helper()
	within(netNS, func() {
		if strings.HasPrefix(network, "udp") {
			conn, err := net.ListenPacket(network, at)
			check(err)
			t.Cleanup(func() { conn.Close() })
			go func() {
				for b := make([]byte, 100); ; {
					_, from, err := conn.ReadFrom(b)
					if err != nil {
						return
					}
					conn.WriteTo([]byte(name+" "+from.(*net.UDPAddr).AddrPort().Addr().String()), from)
				}
			}()
			return
		}
		l, err := net.Listen(network, at)
		check(err)
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(conn, name, " ", conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
				conn.Close()
			}
		}()
	})
}

const (
	patience = 20 * time.Second       // with what comes at once, unless the machine is busy
	silence  = 300 * time.Millisecond // after which nobody answers
)

// ask is the answer that somebody in a namespace gets, or nothing.
func ask(netNS, network, at string, wait time.Duration) (answer string) {
	within(netNS, func() {
		conn, err := (&net.Dialer{Timeout: wait}).Dial(network, at)
		if err != nil {
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(wait))
		if network == "udp" {
			conn.Write([]byte("?"))
		}
		b := make([]byte, 100)
		n, _ := conn.Read(b)
		answer = string(b[:n])
	})
	return answer
}

// awaitAnswer waits for IPv6: the kernel takes up to a second to notice that a new bridge and the cable outside are connected.
func awaitAnswer(netNS, at string) {
	for begin := time.Now(); ask(netNS, "tcp", at, silence) == "" && time.Since(begin) < patience; {
		time.Sleep(20 * time.Millisecond)
	}
}

func wantAnswer(t *testing.T, netNS, network, at, want string) {
	t.Helper()
	wait := patience
	if want == "" {
		wait = silence
	}
	if got := ask(netNS, network, at, wait); got != want {
		t.Errorf("%s %s answers %q, want %q", network, at, got, want)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// traces are what networks of containers leave: links, mounts of namespaces, files and rules.
func traces(t *testing.T, n *Network) string {
	t.Helper()
	var b strings.Builder
	links, err := netlink.LinkList()
	check(err)
	for _, l := range links {
		fmt.Fprintln(&b, l.Attrs().Name)
	}
	for line := range strings.Lines(read(t, "/proc/self/mountinfo")) {
		if strings.Contains(line, n.cfg.Dir) {
			b.WriteString("mount " + line)
		}
	}
	filepath.WalkDir(n.cfg.Dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && filepath.Dir(filepath.Dir(path)) == n.cfg.Dir {
			fmt.Fprintln(&b, path)
		}
		return nil
	})
	b.WriteString(nft(t, "list", "table", "inet", n.tableName()))
	return b.String()
}

func nft(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("nft", args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) && os.Getenv("SDVBOX_REQUIRE") != "1" {
		t.Skip("nft is not installed")
	}
	if err != nil {
		t.Fatalf("nft %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestContainerReachesTheWorldInTheNameOfTheHost(t *testing.T) {
	n := newNetwork(t, nil)
	c := container("one")
	netNS := attach(t, n, c)
	serve(t, worldNS, "world", "tcp4", worldIP+":80")
	serve(t, worldNS, "world", "udp4", worldIP+":53")
	wantAnswer(t, netNS, "tcp", worldIP+":80", "world "+hostIP)
	wantAnswer(t, netNS, "udp", worldIP+":53", "world "+hostIP)
}

func TestContainersReachEachOther(t *testing.T) {
	n := newNetwork(t, nil)
	one, two := container("one"), container("two")
	first, second := attach(t, n, one), attach(t, n, two)
	serve(t, second, "two", "tcp4", ":80")
	wantAnswer(t, first, "tcp", ipOf(two)+":80", "two "+ipOf(one))
	serve(t, first, "loopback", "tcp4", "127.0.0.1:80")
	wantAnswer(t, first, "tcp", "127.0.0.1:80", "loopback 127.0.0.1")
}

func TestPublishedPortLeadsToTheContainer(t *testing.T) {
	n := newNetwork(t, nil)
	one, two := container("one", "8080:80", "8053:53/udp", hostIP+":8081:80", "127.0.0.1:8082:80"), container("two")
	first, second := attach(t, n, one), attach(t, n, two)
	serve(t, first, "one", "tcp4", ":80")
	serve(t, first, "one", "udp4", ":53")
	bridge := n.bridge.Addr().String()
	for _, filtered := range []string{"1", "0"} { // whether bridges ask the firewall, too, as other container engines have it
		const knob = "/proc/sys/net/bridge/bridge-nf-call-iptables"
		if err := os.WriteFile(knob, []byte(filtered), 0); err != nil && filtered == "1" {
			continue
		}
		wantPublished(t, first, second, bridge)
	}
	detach(t, n, one)
	wantAnswer(t, worldNS, "tcp", hostIP+":8080", "")
}

func wantPublished(t *testing.T, first, second, bridge string) {
	t.Helper()
	for _, test := range []struct{ from, network, at, want string }{
		{worldNS, "tcp", hostIP + ":8080", "one " + worldIP},
		{worldNS, "udp", hostIP + ":8053", "one " + worldIP},
		{"", "tcp", hostIP + ":8080", "one " + hostIP},
		{"", "tcp", "127.0.0.1:8080", "one " + bridge},
		{"", "udp", "127.0.0.1:8053", "one " + bridge},
		{"", "tcp", bridge + ":8080", "one " + bridge},
		{second, "tcp", bridge + ":8080", "one " + bridge},
		{second, "tcp", hostIP + ":8080", "one " + bridge},
		{first, "tcp", hostIP + ":8080", "one " + bridge},
		{worldNS, "tcp", hostIP + ":8081", "one " + worldIP},
		{"", "tcp", "127.0.0.1:8081", ""},
		{"", "tcp", "127.0.0.1:8082", "one " + bridge},
		{worldNS, "tcp", hostIP + ":8082", ""},
	} {
		wantAnswer(t, test.from, test.network, test.at, test.want)
	}
}

func TestTheWorldReachesNothingThatIsNotPublished(t *testing.T) {
	n := newNetwork(t, nil)
	c := container("one", "8080:80")
	netNS := attach(t, n, c)
	serve(t, netNS, "one", "tcp4", ":81")
	wantAnswer(t, "", "tcp", ipOf(c)+":81", "one "+n.bridge.Addr().String())
	wantAnswer(t, worldNS, "tcp", ipOf(c)+":81", "")
}

// The kernel must take packets from loopback addresses at the bridge, for published ports. What listens there is not for them.
func TestContainerDoesNotReachTheLoopbackOfTheHost(t *testing.T) {
	n := newNetwork(t, nil)
	netNS := attach(t, n, container("one"))
	serve(t, "", "secret", "tcp4", "127.0.0.1:7000")
	within(netNS, func() {
		check(os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0))
		check(netlink.AddrDel(mustLink("lo"), address(netip.MustParsePrefix("127.0.0.1/8"))))
		check(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("127.0.0.0/8")), Gw: n.gate4().AsSlice()}))
	})
	wantAnswer(t, netNS, "tcp", "127.0.0.1:7000", "")
	nft(t, "flush", "chain", "inet", n.tableName(), "guard")
	wantAnswer(t, netNS, "tcp", "127.0.0.1:7000", "secret "+n.sandboxes["id-one"].IP4.String()) // it was the guard
	n.cfg.Rules = false
	restart(t, n, "id-one")
	wantAnswer(t, netNS, "tcp", "127.0.0.1:7000", "")
}

func TestMakingANamespaceLeavesTheFirstThreadWhereItIs(t *testing.T) {
	needRoot(t)
	where := func() string {
		where, err := os.Readlink("/proc/self/ns/net") // that of the first thread
		check(err)
		return where
	}
	before := where()
	var all sync.WaitGroup
	over, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for over.Err() == nil { // each keeps a thread, until all are in use
		time.Sleep(10 * time.Millisecond) // wakes the one that waits for the network
		all.Go(func() {
			runtime.LockOSThread()
			if unix.Gettid() != unix.Getpid() {
				defer runtime.UnlockOSThread()
				<-over.Done()
				return
			}
			defer cancel()
			runtime.UnlockOSThread() // and it goes on with what is waited for
			for range 3 {
				path := filepath.Join(t.TempDir(), "ns")
				check(makeNetNS(path))
				check(removeNetNS(path))
			}
		})
	}
	all.Wait()
	if over.Err() != context.Canceled {
		t.Error("nothing has run in the first thread")
	}
	if after := where(); after != before {
		t.Errorf("the process is in %s, was in %s", after, before)
	}
}

func TestAddressesWithoutThatOfTheBridgeHaveNoEffect(t *testing.T) {
	var log bytes.Buffer
	n, err := New(Config{Bridge: "b", Fixed4: "172.18.0.0/24", Gate4: "x", Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil || n.fixed.IsValid() || n.gateway.IsValid() || !strings.Contains(log.String(), "172.18.0.0/24") {
		t.Errorf("%v, %v, %v, log %q", n.fixed, n.gateway, err, log.String())
	}
}

func TestManyCallersAtOnce(t *testing.T) {
	n := newNetwork(t, nil)
	before := traces(t, n)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			c := container(fmt.Sprint("many-", i), "9300-9320:80")
			for range 2 {
				if _, err := n.Attach(t.Context(), c); err != nil {
					t.Error(err)
				}
			}
			if err := n.Detach(t.Context(), c.ID); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if after := traces(t, n); after != before {
		t.Errorf("left:\n%s\nwant\n%s", after, before)
	}
}

func TestPortsAreClearlyTaken(t *testing.T) {
	n := newNetwork(t, nil)
	l, err := net.Listen("tcp4", ":9000")
	check(err)
	defer l.Close()
	udp, err := net.ListenPacket("udp4", hostIP+":9000")
	check(err)
	defer udp.Close()
	attach(t, n, container("owner", "9001:80"))
	before := traces(t, n)
	for _, test := range []struct{ port, want string }{
		{"9000:80", "port 0.0.0.0:9000/tcp of the host: address already in use"},
		{"9000:80/udp", "port 0.0.0.0:9000/udp of the host: address already in use"},
		{"9001:80", "container owner has port 0.0.0.0:9001/tcp of the host"},
		{hostIP + ":9001:80", "container owner has port 0.0.0.0:9001/tcp of the host"},
		{"9000-9001:80", "port"},
		{"10.1.1.1:9002:80", "cannot assign requested address"},
		{"[::1]:9002:80", "enable_ip6"},
	} {
		_, err := n.Attach(t.Context(), container("other", "9003:1", test.port))
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "container other") ||
			ctrmodel.KindOf(err) != ctrmodel.FailedPrecondition && ctrmodel.KindOf(err) != ctrmodel.InvalidArgument {
			t.Errorf("%s: %v, want %q", test.port, err, test.want)
		}
		if after := traces(t, n); after != before {
			t.Errorf("%s left something:\n%s", test.port, after)
		}
	}
	if _, err := net.Listen("tcp4", ":9001"); err == nil {
		t.Error("a program can listen on the port of a container")
	}
	// UDP and one more port are free.
	attach(t, n, container("other", "9001:80/udp", "9000-9005:80"))
	if p := n.sandboxes["id-other"].Ports[1]; p.Host.Port() != 9002 {
		t.Errorf("port %s of the range was taken, want 9002", p)
	}
}

func TestPortIsFreeAfterTheContainer(t *testing.T) {
	n := newNetwork(t, nil)
	c := container("one", "9100:80")
	for range 3 {
		attach(t, n, c)
		detach(t, n, c)
	}
	l, err := net.Listen("tcp4", ":9100")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestPortThatSomebodyTookWhileNoAgentWasThereIsHeldAgain(t *testing.T) {
	n := newNetwork(t, nil)
	c := container("one", "40100:80")
	serve(t, attach(t, n, c), "one", "tcp4", ":80")
	n.kill()
	serve(t, worldNS, "world", "tcp4", worldIP+":80")
	out, err := (&net.Dialer{LocalAddr: &net.TCPAddr{Port: 40100}}).Dial("tcp4", worldIP+":80") // as the kernel may choose
	check(err)
	n = restart(t, n, c.ID)
	wantAnswer(t, worldNS, "tcp", hostIP+":40100", "one "+worldIP)
	check(out.(*net.TCPConn).SetLinger(0))
	out.Close()
	check(n.repair())
	if l, err := net.Listen("tcp4", ":40100"); err == nil {
		l.Close()
		t.Error("a program can listen on the port of a container")
	}
}

func TestAttachFillsInWhereTheContainerIs(t *testing.T) {
	n := newNetwork(t, func(c *Config) { c.IP4, c.Fixed4, c.MTU = "10.77.0.1/16", "10.77.9.0/24", 1400 })
	c := container("one")
	netNS := attach(t, n, c)
	e := c.NetworkSettings.Networks["bridge"]
	if e.Gateway != "10.77.0.1" || !strings.HasPrefix(e.IPAddress, "10.77.9.") || c.NetworkSettings.SandboxKey != netNS || e.ID == "" || e.NetworkID == "" {
		t.Errorf("network settings %+v", c.NetworkSettings)
	}
	within(netNS, func() {
		eth, err := net.InterfaceByName("eth0")
		check(err)
		if eth.HardwareAddr.String() != e.MACAddress || eth.MTU != 1400 {
			t.Errorf("eth0 has %s and MTU %d, want %s and 1400", eth.HardwareAddr, eth.MTU, e.MACAddress)
		}
	})
	if text := read(t, c.HostnamePath); text != "one-host\n" {
		t.Errorf("hostname %q", text)
	}
	n = restart(t, n, c.ID)
	again := container("one")
	if n.Describe(again); !reflect.DeepEqual(again.NetworkSettings, c.NetworkSettings) || again.HostsPath != c.HostsPath {
		t.Errorf("after a restart: %+v", again)
	}
	detach(t, n, c)
	again = container("one")
	if n.Describe(again); again.NetworkSettings != nil || again.HostsPath != "" {
		t.Errorf("after its end: %+v", again)
	}
	again.ID = "another"
	if attach(t, n, again); ipOf(again) != e.IPAddress {
		t.Errorf("after an update the address is %s, want %s", ipOf(again), e.IPAddress)
	}
}

func TestNextAgentTakesOverWhatRuns(t *testing.T) {
	n := newNetwork(t, nil)
	one, two := container("one", "8080:80"), container("two", "8081:80")
	first := attach(t, n, one)
	empty := traces(t, n)
	attach(t, n, two)
	serve(t, first, "one", "tcp4", ":80")
	// What a killed agent may leave: a namespace, a cable, files without the rest.
	check(makeNetNS(n.netNS("half")))
	check(os.MkdirAll(n.file("quarter", ""), 0o755))
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = n.linkName("eighth"), mustLink(n.cfg.Bridge).Attrs().Index
	check(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}))

	n = restart(t, n, one.ID, "unknown")
	if after := traces(t, n); after != empty {
		t.Errorf("after the restart there is\n%s\nwant\n%s", after, empty)
	}
	wantAnswer(t, worldNS, "tcp", hostIP+":8080", "one "+worldIP)
	if _, err := n.Attach(t.Context(), container("three", "8080:80")); err == nil {
		t.Error("a port of a container that runs was given away")
	}
	three := container("three", "8081:80")
	three.Name = "one" // its address is taken
	if attach(t, n, three); ipOf(three) == ipOf(one) {
		t.Errorf("two containers have the address %s", ipOf(one))
	}
	detach(t, n, one)
	detach(t, n, three)
	wantAnswer(t, worldNS, "tcp", hostIP+":8080", "")
}

func TestNothingIsLeftAfterManyContainers(t *testing.T) {
	n := newNetwork(t, nil)
	before := traces(t, n)
	var all []*ctrmodel.Container
	taken := map[string]bool{}
	for i := range 15 {
		c := container(fmt.Sprint("many-", i), fmt.Sprintf("%d:80", 9200+i))
		attach(t, n, c)
		all, taken[ipOf(c)] = append(all, c), true
	}
	if len(taken) != len(all) {
		t.Errorf("%d containers have %d addresses", len(all), len(taken))
	}
	for _, c := range all {
		detach(t, n, c)
		detach(t, n, c) // what is done is no error
	}
	if after := traces(t, n); after != before {
		t.Errorf("left:\n%s\nwant\n%s", after, before)
	}
}

func TestNextStartRepairsWhatOthersHaveRemoved(t *testing.T) {
	n := newNetwork(t, nil)
	one := container("one", "8080:80")
	first := attach(t, n, one)
	serve(t, first, "one", "tcp4", ":80")
	three := container("three", "8083:80")
	serve(t, attach(t, n, three), "three", "tcp4", ":80")
	check(netlink.LinkDel(mustLink(n.cfg.Bridge)))
	check(netlink.LinkDel(mustLink(n.linkName(three.ID))))
	nft(t, "flush", "ruleset")
	wantAnswer(t, worldNS, "tcp", hostIP+":8080", "")
	attach(t, n, container("two"))
	wantAnswer(t, worldNS, "tcp", hostIP+":8080", "one "+worldIP)
	wantAnswer(t, worldNS, "tcp", hostIP+":8083", "three "+worldIP)
}

func TestWithoutBridgeThereIsStillTheNetworkOfTheHost(t *testing.T) {
	needRoot(t)
	var log bytes.Buffer
	n := restart(t, &Network{cfg: Config{
		Dir: t.TempDir(), Bridge: "out0", HostFiles: t.TempDir(), Rules: true, Log: slog.New(slog.NewTextHandler(&log, nil)),
	}})
	const want = "bridge out0: there is a device of this name that is no bridge but veth"
	if !strings.Contains(log.String(), want) {
		t.Errorf("log: %s", log.String())
	}
	if _, err := n.Attach(t.Context(), container("one", "8080:80")); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
	c := container("two")
	c.HostConfig.NetworkMode = ctrmodel.HostNetwork
	attach(t, n, c)
	wantHost(t, c, "localhost", "127.0.0.1 ::1")
	detach(t, n, c)
}

func TestBridgeTakesANetworkThatIsFree(t *testing.T) {
	prefixes := func(list ...string) (p []netip.Prefix) {
		for _, s := range list {
			p = append(p, netip.MustParsePrefix(s))
		}
		return p
	}
	for _, test := range []struct {
		used []netip.Prefix
		want string
	}{
		{nil, "172.17.0.1/16"},
		{prefixes("172.17.3.0/24", "172.18.0.5/32"), "172.19.0.1/16"},
		{prefixes("172.16.0.0/12"), "10.200.0.1/16"},
		{prefixes("172.16.0.0/12", "10.0.0.0/8"), "192.168.0.1/16"},
		{prefixes("172.16.0.0/12", "10.0.0.0/8", "192.168.4.0/24"), ""},
	} {
		got, err := freeNetwork(test.used)
		if (err != nil) != (test.want == "") || err == nil && got.String() != test.want {
			t.Errorf("beside %v: %v, %v, want %q", test.used, got, err, test.want)
		}
	}
	used, err := usedNetworks()
	if err != nil {
		t.Fatal(err)
	}
	if needRoot(t); !strings.Contains(fmt.Sprint(used), hostIP) {
		t.Errorf("networks in use are %v, want one with %s", used, hostIP)
	}
}

func TestNetworkThatIsChangedWaitsForContainersToEnd(t *testing.T) {
	for _, test := range []struct {
		what   string
		change func(*Config)
		now    string // network and gateway of the next container while another one runs
		then   string // and once none is there as the agent starts
		waits  bool
	}{
		{"nothing", func(*Config) {}, "10.77.0.128/25 10.77.0.5", "10.77.0.128/25 10.77.0.5", false},
		{"ip4", func(c *Config) { c.IP4, c.Fixed4, c.Gate4 = "10.78.0.1/24", "", "" }, "10.77.0.0/24 10.77.0.1", "10.78.0.0/24 10.78.0.1", true},
		{"all", func(c *Config) { c.IP4, c.Fixed4, c.Gate4 = "10.78.0.1/24", "10.78.0.128/25", "10.78.0.5" },
			"10.77.0.0/24 10.77.0.1", "10.78.0.128/25 10.78.0.5", true},
		{"address only", func(c *Config) { c.IP4, c.Gate4 = "10.77.0.5/24", "10.77.0.5" }, "10.77.0.0/24 10.77.0.1", "10.77.0.128/25 10.77.0.5", true},
		{"fcidr4", func(c *Config) { c.Fixed4 = "10.77.0.64/26" }, "10.77.0.64/26 10.77.0.5", "10.77.0.64/26 10.77.0.5", false},
		{"gwip4", func(c *Config) { c.Gate4 = "" }, "10.77.0.128/25 10.77.0.1", "10.77.0.128/25 10.77.0.1", false},
	} {
		t.Run(test.what, func(t *testing.T) {
			var log bytes.Buffer
			n := newNetwork(t, func(c *Config) {
				c.IP4, c.Fixed4, c.Gate4 = "10.77.0.1/24", "10.77.0.128/25", "10.77.0.5"
				c.Log = slog.New(slog.NewTextHandler(&log, nil))
			})
			runs := container("runs")
			attach(t, n, runs)
			want := func(when string, c *ctrmodel.Container, want string) {
				t.Helper()
				e := c.NetworkSettings.Networks["bridge"]
				network, gateway, _ := strings.Cut(want, " ")
				if e.Gateway != gateway || !netip.MustParsePrefix(network).Contains(netip.MustParseAddr(e.IPAddress)) {
					t.Errorf("%s: address %s, gateway %s, want %s", when, e.IPAddress, e.Gateway, want)
				}
			}
			test.change(&n.cfg)
			n = restart(t, n, runs.ID)
			one, two := container("one"), container("two")
			attach(t, n, one)
			attach(t, n, two)
			want("while another runs", one, test.now)
			want("while another runs", two, test.now)
			check(n.repair())
			warnings := 0
			if test.waits {
				warnings = 1
			}
			if got := strings.Count(log.String(), "keeps its network"); got != warnings {
				t.Errorf("%d warnings, want %d: %s", got, warnings, log.String())
			}
			for _, c := range []*ctrmodel.Container{runs, one, two} {
				detach(t, n, c)
			}
			log.Reset()
			n = restart(t, n)
			attach(t, n, one)
			want("when none is there", one, test.then)
			if strings.Contains(log.String(), "keeps its network") {
				t.Errorf("log: %s", log.String())
			}
		})
	}
}

func TestAddressesAreGivenUntilNoneIsLeft(t *testing.T) {
	network := netip.MustParsePrefix("10.5.0.1/29")
	taken := map[netip.Addr]bool{network.Addr(): true}
	for i := range 5 {
		ip, ok := pick(network, network, fmt.Sprint(i), taken)
		if !ok || taken[ip] || !network.Contains(ip) || ip.String() == "10.5.0.0" || ip.String() == "10.5.0.7" {
			t.Fatalf("address %d is %s, %v", i, ip, ok)
		}
		taken[ip] = true
	}
	if ip, ok := pick(network, network, "more", taken); ok {
		t.Errorf("there was one more: %s", ip)
	}
}

func TestWrongConfigurationIsExplained(t *testing.T) {
	for _, test := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "name"},
		{Config{Bridge: "sixteen-letters-"}, "name"},
		{Config{IP4: "172.17.0.1"}, "ip4"},
		{Config{IP4: "fd00::1/64"}, "ip4"},
		{Config{IP4: "172.17.0.0/16"}, "ip4"},
		{Config{IP4: "172.17.0.1/16", Fixed4: "172.18.0.0/24"}, "fcidr4"},
		{Config{IP4: "172.17.0.1/16", Gate4: "172.18.0.1"}, "gwip4"},
		{Config{IP4: "172.17.0.1/16", Gate4: "x"}, "gwip4"},
	} {
		if test.want != "name" {
			test.cfg.Bridge = cmp.Or(test.cfg.Bridge, "kanto-test0")
		}
		_, err := New(test.cfg)
		if err == nil || !strings.Contains(err.Error(), "network.default_bridge."+test.want+" ") || ctrmodel.KindOf(err) != ctrmodel.InvalidArgument {
			t.Errorf("%+v: %v", test.cfg, err)
		}
	}
}

func TestOtherFirewallIsMentioned(t *testing.T) {
	needRoot(t)
	nft(t, "add", "table", "ip", "other")
	defer nft(t, "delete", "table", "ip", "other")
	nft(t, "add", "chain", "ip", "other", "FORWARD", "{ type filter hook forward priority 0; policy drop; }")
	var log bytes.Buffer
	newNetwork(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	if !strings.Contains(log.String(), "another firewall") || !strings.Contains(log.String(), "chain=FORWARD") {
		t.Errorf("log: %s", log.String())
	}
}

func TestWithoutRulesTheFirewallIsLeftAlone(t *testing.T) {
	n := newNetwork(t, nil)
	n.cfg.Rules = false
	n = restart(t, n)
	if out := nft(t, "list", "ruleset"); strings.Contains(out, n.tableName()) {
		t.Error(out)
	}
}

func TestIPv6(t *testing.T) {
	n := newNetwork(t, func(c *Config) { c.IPv6 = true })
	one, two := container("one", "8080:80", "["+hostIP6+"]:8081:80"), container("two", "[::]:8082:80/udp")
	first, second := attach(t, n, one), attach(t, n, two)
	ip := n.sandboxes[one.ID].IP6.String()
	serve(t, first, "one", "tcp", ":80")
	serve(t, second, "two", "udp6", ":80")
	serve(t, worldNS, "world", "tcp6", "["+worldIP6+"]:80")
	bridge := n.map6(n.bridge.Addr()).String()
	awaitAnswer(first, "["+worldIP6+"]:80")
	for _, test := range []struct{ from, network, at, want string }{
		{first, "tcp", "[" + worldIP6 + "]:80", "world " + hostIP6},
		{second, "tcp", "[" + ip + "]:80", "one " + n.sandboxes[two.ID].IP6.String()},
		{worldNS, "tcp", "[" + hostIP6 + "]:8080", "one " + worldIP6},
		{worldNS, "tcp", hostIP + ":8080", "one " + worldIP},
		{worldNS, "tcp", "[" + hostIP6 + "]:8081", "one " + worldIP6},
		{worldNS, "tcp", hostIP + ":8081", ""},
		{worldNS, "udp", "[" + hostIP6 + "]:8082", "two " + worldIP6},
		{second, "tcp", "[" + hostIP6 + "]:8080", "one " + bridge},
		{first, "tcp", "[" + hostIP6 + "]:8080", "one " + bridge},
		{"", "tcp", "[" + hostIP6 + "]:8080", "one " + hostIP6},
		{"", "tcp", "localhost:8080", "one " + n.bridge.Addr().String()},
	} {
		wantAnswer(t, test.from, test.network, test.at, test.want)
	}
	if got := lookUp(t, two.HostsPath, "one"); got != ipOf(one)+" "+ip {
		t.Errorf("one is at %s", got)
	}
	n = restart(t, n, one.ID, two.ID)
	wantAnswer(t, worldNS, "tcp", "["+hostIP6+"]:8080", "one "+worldIP6)
}

func TestContainersAreKeptFromEachOther(t *testing.T) {
	n := newNetwork(t, func(c *Config) { c.ICC = false })
	one, two := container("one", "8080:80"), container("two")
	first, second := attach(t, n, one), attach(t, n, two)
	serve(t, first, "one", "tcp4", ":80")
	serve(t, worldNS, "world", "tcp4", worldIP+":81")
	for _, filtered := range []string{"1", "0"} {
		if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte(filtered), 0); err != nil && filtered == "1" {
			continue
		}
		wantAnswer(t, second, "tcp", ipOf(one)+":80", "")
		wantAnswer(t, second, "tcp", worldIP+":81", "world "+hostIP)
		wantAnswer(t, worldNS, "tcp", hostIP+":8080", "one "+worldIP)
		if filtered == "0" { // else it does not leave the bridge, and there they are apart
			wantAnswer(t, second, "tcp", hostIP+":8080", "one "+n.bridge.Addr().String())
		}
	}
}

func TestDatagramsThatCameTooEarlyDoNotHideTheContainer(t *testing.T) {
	n := newNetwork(t, nil)
	attach(t, n, container("other", "8054:53/udp")) // the kernel keeps track of flows
	var conn net.Conn
	within(worldNS, func() {
		var err error
		conn, err = net.Dial("udp", hostIP+":8053")
		check(err)
	})
	defer conn.Close()
	conn.Write([]byte("?"))
	conn.SetDeadline(time.Now().Add(silence))
	conn.Read(make([]byte, 1)) // nobody is there
	serve(t, attach(t, n, container("one", "8053:53/udp")), "one", "udp4", ":53")
	conn.SetDeadline(time.Now().Add(patience))
	conn.Write([]byte("?"))
	b := make([]byte, 100)
	if i, err := conn.Read(b); string(b[:i]) != "one "+worldIP {
		t.Errorf("answer %q, %v", b[:i], err)
	}
}

func TestDatagramsDoNotFollowAContainerThatHasEnded(t *testing.T) {
	for what, end := range map[string]func(t *testing.T, n *Network, c, other *ctrmodel.Container){
		"with the agent":    func(t *testing.T, n *Network, c, _ *ctrmodel.Container) { detach(t, n, c) },
		"without the agent": func(t *testing.T, n *Network, _, other *ctrmodel.Container) { restart(t, n, other.ID) },
	} {
		t.Run(what, func(t *testing.T) {
			n := newNetwork(t, func(c *Config) { c.IPv6 = true })
			c, other := container("one", "8055:53/udp"), container("other", "8056:53/udp")
			first, second := attach(t, n, c), attach(t, n, other)
			serve(t, worldNS, "world", "tcp6", "["+worldIP6+"]:80")
			awaitAnswer(first, "["+worldIP6+"]:80")
			for _, network := range []string{"udp4", "udp6"} {
				serve(t, first, "one", network, ":53")
				serve(t, second, "other", network, ":53")
			}
			type sender struct{ conn, toOther net.Conn }
			senders := map[string]sender{}
			for at, from := range map[string]string{hostIP: worldIP, "[" + hostIP6 + "]": worldIP6} {
				var s sender
				within(worldNS, func() {
					var err error
					s.conn, err = net.Dial("udp", at+":8055")
					check(err)
					s.toOther, err = net.Dial("udp", at+":8056")
					check(err)
				})
				t.Cleanup(func() { s.conn.Close(); s.toOther.Close() })
				if got := say(s.conn); got != "one "+from {
					t.Fatalf("answer %q", got)
				}
				if got := say(s.toOther); got != "other "+from {
					t.Fatalf("answer %q of the other one", got)
				}
				senders[from] = s
			}
			before := flowsTo(n.sandboxes[other.ID])
			end(t, n, c, other)
			if after := flowsTo(n.sandboxes[other.ID]); before != 2 || after != before {
				t.Errorf("%d flows to the other one, were %d, want 2", after, before)
			}
			serve(t, "", "host", "udp4", ":8055")
			serve(t, "", "host", "udp6", ":8055")
			for from, s := range senders {
				if got := say(s.conn); got != "host "+from {
					t.Errorf("who goes on sending from %s gets %q", from, got)
				}
			}
		})
	}
}

// say sends a datagram and returns the answer, or nothing.
func say(conn net.Conn) string {
	conn.Write([]byte("?"))
	conn.SetDeadline(time.Now().Add(patience))
	b := make([]byte, 100)
	i, _ := conn.Read(b)
	return string(b[:i])
}

// flowsTo is how many flows of datagrams the kernel knows that lead to a sandbox.
func flowsTo(s *sandbox) (count int) {
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		check(err)
		for _, f := range flows {
			ip, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
			if ip = ip.Unmap(); f.Forward.Protocol == unix.IPPROTO_UDP && (ip == s.IP4 || ip == s.IP6) {
				count++
			}
		}
	}
	return count
}

const victimDir = "CTRNET_TEST_VICTIM"

// beKilled is an agent that makes and clears away networks of containers until it is killed.
func beKilled(dir string) {
	n, err := New(config(dir))
	check(err)
	check(n.Restore(context.Background(), nil))
	for i := 0; ; i++ {
		_, err := n.Attach(context.Background(), container(fmt.Sprint("victim-", i%4), "9400-9410:80", "9400-9410:53/udp"))
		check(err)
		check(n.Detach(context.Background(), fmt.Sprint("id-victim-", (i+2)%4)))
	}
}

func TestNothingIsLeftByAnAgentThatIsKilled(t *testing.T) {
	n := newNetwork(t, nil)
	before := traces(t, n)
	rounds := 8
	if os.Getenv("SDVBOX_LONG") == "1" {
		rounds = 300
	}
	for range rounds {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), victimDir+"="+n.cfg.Dir)
		var out bytes.Buffer
		cmd.Stderr = &out
		check(cmd.Start())
		time.Sleep(30*time.Millisecond + rand.N(200*time.Millisecond))
		cmd.Process.Kill()
		cmd.Wait()
		if out.Len() > 0 {
			t.Fatal(out.String())
		}
		n = restart(t, n)
		if after := traces(t, n); after != before {
			t.Fatalf("left:\n%s\nwant\n%s", after, before)
		}
	}
}
