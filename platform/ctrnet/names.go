// SPDX-License-Identifier: Apache-2.0

package ctrnet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sdvbox/platform/ctrmodel"
)

// refresh brings the generated files of all containers up to date.
func (n *Network) refresh() {
	list, owner := n.names()
	for _, s := range n.sorted() {
		outdated := ""
		if err := n.writeFiles(s, list, owner); err != nil {
			outdated = err.Error()
		}
		if outdated != "" && outdated != s.outdated { // say it once: a container can go on with a lease of its files
			n.cfg.Log.Warn("names that a container knows may be out of date", "container", s.Name, "err", outdated)
		}
		s.outdated = outdated
	}
}

func (n *Network) writeFiles(s *sandbox, names []string, owner map[string]*sandbox) error {
	return errors.Join(
		rewrite(n.file(s.ID, "hosts"), n.hosts(s, names, owner)),
		rewrite(n.file(s.ID, "hostname"), s.HostName+"\n"),
		rewrite(n.file(s.ID, "resolv.conf"), n.resolvConf(s)))
}

// rewrite changes a file that is mounted in a container, so it must stay the same file; and it is never seen empty. Who is root in
// the container can write to it, too.
func rewrite(path, text string) error {
	if holds(path, text) {
		return nil
	}
	f, err := openFile(path, os.O_WRONLY|os.O_CREATE)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(text), 0)
	return errors.Join(err, f.Truncate(int64(len(text))), f.Close())
}

// holds reports whether a file is just this text. It may have been made larger than all memory.
func holds(path, text string) bool {
	f, err := openFile(path, os.O_RDONLY)
	if err != nil {
		return false
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || fi.Size() != int64(len(text)) {
		return false
	}
	have := make([]byte, len(text))
	_, err = io.ReadFull(f, have)
	return err == nil && string(have) == text
}

// openFile opens a regular file without waiting for those who have a lease of it.
func openFile(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, errors.New(path+" is no file"))
	}
	return f, nil
}

// names are the sandboxes behind the bridge by what they are called: a name that several have means none of them. The list is of
// those that others are told: one that is only called www.example.com or localhost must not be taken for that by all. Who gives
// it the domain example.com means it, and could give others a hosts file as well.
func (n *Network) names() (list []string, owner map[string]*sandbox) {
	owner = map[string]*sandbox{}
	for _, s := range n.sorted() {
		if !s.bridged() {
			continue
		}
		for _, name := range s.names() {
			if _, twice := owner[name]; twice {
				owner[name] = nil
				continue
			}
			owner[name] = s
			if name == s.fullName() || !strings.Contains(name, ".") && !strings.EqualFold(name, "localhost") {
				list = append(list, name)
			}
		}
	}
	return list, owner
}

func (s *sandbox) fullName() string { return s.HostName + "." + s.DomainName }

// names are what others can call a container.
func (s *sandbox) names() []string {
	names := []string{s.fullName(), s.HostName, s.Name}
	slices.Sort(names[1:])
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool { return name == "" || strings.HasPrefix(name, ".") })
}

// hosts is the hosts file of a container: itself, what it was told, and its neighbours, if it has any.
func (n *Network) hosts(s *sandbox, names []string, owner map[string]*sandbox) string {
	var b strings.Builder
	if s.Mode == ctrmodel.HostNetwork {
		text, err := os.ReadFile(filepath.Join(n.cfg.HostFiles, "hosts"))
		if err != nil {
			text = []byte("127.0.0.1\tlocalhost\n::1\tlocalhost")
		}
		b.Write(bytes.TrimRight(text, "\n"))
		b.WriteByte('\n')
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
		for _, ip := range s.ips() {
			fmt.Fprintf(&b, "%s\t%s\n", ip, strings.Join(s.names(), " "))
		}
	}
	told := map[string]bool{}
	for _, entry := range s.ExtraHosts {
		name, value, err := ctrmodel.ParseExtraHost(entry)
		var ips []netip.Addr
		if err == nil {
			ips, err = n.resolve(value, owner)
		}
		if err != nil {
			if s.unresolved[entry] != err.Error() { // say it once
				n.cfg.Log.Warn("a container has an extra host that leads nowhere at present", "container", s.Name, "host", entry, "err", err)
				s.unresolved[entry] = err.Error()
			}
			continue
		}
		delete(s.unresolved, entry)
		told[name] = true
		for _, ip := range ips {
			fmt.Fprintf(&b, "%s\t%s\n", ip, name)
		}
	}
	if s.Mode == ctrmodel.NoNetwork {
		names = nil
	}
	for _, name := range names {
		if other := owner[name]; other != nil && other != s && !told[name] {
			for _, ip := range other.ips() {
				fmt.Fprintf(&b, "%s\t%s\n", ip, name)
			}
		}
	}
	return b.String()
}

// ips are the addresses that a container knows itself by.
func (s *sandbox) ips() []netip.Addr {
	switch {
	case s.Mode == ctrmodel.NoNetwork:
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	case s.IP6.IsValid():
		return []netip.Addr{s.IP4, s.IP6}
	}
	return []netip.Addr{s.IP4}
}

// resolve is what the value of an extra host stands for.
func (n *Network) resolve(value string, owner map[string]*sandbox) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(value); err == nil {
		return []netip.Addr{ip}, nil
	}
	device, ofDevice := strings.CutPrefix(value, ctrmodel.HostIPPrefix)
	host, ofContainer := strings.CutPrefix(value, ctrmodel.ContainerPrefix)
	switch {
	case value == ctrmodel.HostIP:
		return []netip.Addr{n.bridge.Addr()}, nil
	case ofDevice:
		if addrs := linkAddresses(device); len(addrs) > 0 {
			return []netip.Addr{addrs[0].Addr()}, nil
		}
		return nil, fmt.Errorf("network device %s has no address", device)
	case ofContainer:
		s, known := owner[host]
		switch {
		case s != nil:
			return s.ips(), nil
		case known:
			return nil, fmt.Errorf("several containers have the host name %s", host)
		}
		return nil, fmt.Errorf("no running container behind the bridge has the host name %s", host)
	}
	return nil, fmt.Errorf("%q is neither an address nor %s, %sDEVICE or %sHOSTNAME",
		value, ctrmodel.HostIP, ctrmodel.HostIPPrefix, ctrmodel.ContainerPrefix)
}

// hostResolvConf is how the host asks for names. The file may name nothing but a resolver on the host's loopback address,
// where containers do not reach it; systemd-resolved writes another file with those that it asks itself.
func (n *Network) hostResolvConf(bridged bool) string {
	text, _ := os.ReadFile(filepath.Join(n.cfg.HostFiles, "resolv.conf"))
	if bridged && len(nameservers(string(text))) == 0 && strings.Contains(string(text), "127.0.0.53") {
		if behind, err := os.ReadFile("/run/systemd/resolve/resolv.conf"); err == nil {
			text = behind
		}
	}
	return string(text)
}

// resolvConf is the resolv.conf of a container: the host's without servers that it does not reach.
func (n *Network) resolvConf(s *sandbox) string {
	text := n.hostResolvConf(s.bridged())
	switch s.Mode {
	case ctrmodel.HostNetwork:
		return text
	case ctrmodel.NoNetwork:
		return "# This container has no network.\n"
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		if ip, ok := nameserver(line); !ok || reachable(ip) && (ip.Is4() || s.IP6.IsValid()) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// nameserver reads a line of a resolv.conf.
func nameserver(line string) (ip netip.Addr, ok bool) {
	f := strings.Fields(line)
	if len(f) < 2 || f[0] != "nameserver" {
		return ip, false
	}
	ip, _ = netip.ParseAddr(f[1])
	return ip, true
}

func reachable(ip netip.Addr) bool {
	return ip.IsValid() && !ip.IsLoopback() && !ip.IsLinkLocalUnicast()
}

// nameservers are the servers of a resolv.conf that containers can reach.
func nameservers(text string) (list []netip.Addr) {
	for line := range strings.Lines(text) {
		if ip, ok := nameserver(line); ok && reachable(ip) {
			list = append(list, ip)
		}
	}
	return list
}

// nameservers are the servers that the network of the bridge must not hide.
func (n *Network) nameservers() (list []netip.Prefix) {
	for _, ip := range nameservers(n.hostResolvConf(true)) {
		list = append(list, netip.PrefixFrom(ip, ip.BitLen()))
	}
	return list
}
