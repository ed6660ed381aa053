// SPDX-License-Identifier: Apache-2.0

package ctrmodel

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ParseSize is the number of bytes of a size: a number, perhaps with a fraction, and a unit of k, m or g in either case.
func ParseSize(text string) (int64, error) {
	wrong := invalid("size %q: expected a number and one of k, m and g, as in 64M", text)
	if text == "" {
		return 0, wrong
	}
	shift := strings.IndexByte("kmg", text[len(text)-1]|0x20)
	whole, fraction, point := strings.Cut(strings.TrimSuffix(text[:len(text)-1], " "), ".")
	if shift < 0 || !isNumber(whole) || point && !isNumber(fraction) {
		return 0, wrong
	}
	number, err := strconv.ParseFloat(whole+"."+fraction, 64)
	if err != nil {
		return 0, wrong
	}
	number *= float64(int64(1) << (10 * (shift + 1)))
	if number >= math.MaxInt64 {
		return 0, invalid("size %q: too large", text)
	}
	return int64(number), nil
}

func isNumber(text string) bool {
	return text != "" && strings.Trim(text, "0123456789") == ""
}

// ParseDevice reads HOST[:CONTAINER[:PERMISSIONS]].
func ParseDevice(text string) (Device, error) {
	parts := strings.Split(text, ":")
	if len(parts) > 3 || slices.Contains(parts, "") {
		return Device{}, invalid("device %q: expected HOST:CONTAINER[:PERMISSIONS]", text)
	}
	d := Device{OnHost: parts[0], InContainer: parts[0], Permissions: "rwm"}
	if len(parts) > 1 {
		d.InContainer = parts[1]
	}
	if len(parts) > 2 {
		d.Permissions = parts[2]
	}
	return d, d.validate()
}

func (d Device) String() string { return d.OnHost + ":" + d.InContainer + ":" + d.Permissions }

func (d Device) validate() error {
	switch {
	case d.OnHost == "":
		return invalid("device: path_on_host is missing")
	case d.OnHost[0] != '/':
		return invalid("device %s: expected an absolute path of the host", d.OnHost)
	case d.InContainer == "":
		return invalid("device %s: path_in_container is missing", d.OnHost)
	case d.Permissions == "" || len(d.Permissions) > 3 || strings.Trim(d.Permissions, "rwm") != "":
		return invalid("device %s: permissions %q, expected some of rwm", d.OnHost, d.Permissions)
	}
	return nil
}

var propagations = []string{"rprivate", "private", "rshared", "shared", "rslave", "slave"}

// ParseMount reads SOURCE:DESTINATION[:MODE], where the mode is a propagation mode, ro, or both with a comma between.
func ParseMount(text string) (Mount, error) {
	parts := strings.Split(text, ":")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return Mount{}, invalid("mount %q: expected SOURCE:DESTINATION[:MODE]", text)
	}
	m := Mount{Source: parts[0], Destination: parts[1], Propagation: "rprivate"}
	if len(parts) == 3 {
		for mode := range strings.SplitSeq(parts[2], ",") {
			switch {
			case mode == "ro":
				m.ReadOnly = true
			case slices.Contains(propagations, mode):
				m.Propagation = mode
			default:
				return Mount{}, invalid("mount %q: mode %q, expected ro or one of %s", text, mode, strings.Join(propagations, " "))
			}
		}
	}
	return m, m.validate()
}

func (m Mount) String() string {
	text := m.Source + ":" + m.Destination + ":" + m.Propagation
	if m.ReadOnly {
		text += ",ro"
	}
	return text
}

func (m Mount) validate() error {
	switch {
	case m.Source == "":
		return invalid("mount point %s: source is missing", m.Destination)
	case m.Source[0] != '/':
		return invalid("mount point %s: expected an absolute path of the host", m.Source)
	case m.Destination == "":
		return invalid("mount point %s: destination is missing", m.Source)
	case !slices.Contains(propagations, m.Propagation):
		return invalid("mount point %s: propagation mode %q, expected one of %s", m.Destination, m.Propagation, strings.Join(propagations, " "))
	}
	return nil
}

// ParsePort reads [IP:]HOST[-END]:CONTAINER[/PROTOCOL]. An IPv6 address is in brackets.
func ParsePort(text string) (Port, error) {
	wrong := invalid("port mapping %q: expected [IP:]HOST[-END]:CONTAINER[/PROTOCOL]", text)
	p := Port{Proto: "tcp", HostIP: "0.0.0.0"}
	rest, proto, ok := strings.Cut(text, "/")
	if ok {
		p.Proto = proto
	}
	rest, container, ok := cutLast(rest, ":")
	if !ok {
		return Port{}, wrong
	}
	ip, host, ok := cutLast(rest, ":")
	if !ok {
		host = rest
	} else if p.HostIP = ip; strings.HasPrefix(ip, "[") && strings.HasSuffix(ip, "]") {
		p.HostIP = ip[1 : len(ip)-1]
	} else if strings.Contains(ip, ":") {
		return Port{}, wrong
	}
	first, last, isRange := strings.Cut(host, "-")
	if !isRange {
		last = first
	}
	for _, port := range []struct {
		text string
		into *uint16
	}{{first, &p.HostPort}, {last, &p.HostPortEnd}, {container, &p.Container}} {
		n, err := strconv.ParseUint(port.text, 10, 16)
		if err != nil {
			return Port{}, invalid("port mapping %q: %q is not a port, expected 1 to 65535", text, port.text)
		}
		*port.into = uint16(n)
	}
	return p, p.validate()
}

func cutLast(text, sep string) (before, after string, found bool) {
	i := strings.LastIndex(text, sep)
	if i < 0 {
		return text, "", false
	}
	return text[:i], text[i+len(sep):], true
}

func (p Port) String() string {
	var ip, end string
	switch {
	case strings.Contains(p.HostIP, ":"):
		ip = "[" + p.HostIP + "]:"
	case p.HostIP != "0.0.0.0":
		ip = p.HostIP + ":"
	}
	if p.HostPortEnd != p.HostPort {
		end = fmt.Sprintf("-%d", p.HostPortEnd)
	}
	return fmt.Sprintf("%s%d%s:%d/%s", ip, p.HostPort, end, p.Container, p.Proto)
}

func (p Port) validate() error {
	_, err := netip.ParseAddr(p.HostIP)
	switch {
	case p.Proto != "tcp" && p.Proto != "udp" && p.Proto != "sctp":
		return invalid("port mapping of %d: protocol %q, expected tcp, udp or sctp", p.Container, p.Proto)
	case p.Container == 0:
		return invalid("port mapping %s: the port in the container is missing", p)
	case p.HostPort == 0:
		return invalid("port mapping of %d: the port of the host is missing", p.Container)
	case p.HostPortEnd < p.HostPort:
		return invalid("port mapping of %d: the range ends at %d before it begins at %d", p.Container, p.HostPortEnd, p.HostPort)
	case err != nil:
		return invalid("port mapping of %d: %q is not an IP address", p.Container, p.HostIP)
	}
	return nil
}

// What the value of an extra host may be instead of an address.
const (
	HostIP          = "host_ip"    // the host's address in the bridge
	HostIPPrefix    = "host_ip_"   // before the name of an interface: the host's address there
	ContainerPrefix = "container_" // before the host name of a container: its address
)

// ParseExtraHost reads NAME:VALUE, a line for the container's hosts file. The value is an address, IPv6 perhaps in brackets,
// or a word that stands for one. Values nobody knows yet are accepted.
func ParseExtraHost(text string) (name, value string, err error) {
	name, value, _ = strings.Cut(text, ":")
	if inner, ok := strings.CutPrefix(value, "["); ok {
		value = strings.TrimSuffix(inner, "]")
	}
	if !isHostName(name) || value == "" {
		return "", "", invalid("extra host %q: expected NAME:VALUE", text)
	}
	if _, err := netip.ParseAddr(value); err != nil && !isHostName(value) {
		return "", "", invalid("extra host %q: %q is not an IP address, host_ip, host_ip_INTERFACE or container_HOSTNAME", text, value)
	}
	return name, value, nil
}

// isHostName reports whether text can be in a hosts file.
func isHostName(text string) bool {
	return text != "" && strings.IndexFunc(text, func(r rune) bool {
		return !(isAlphanumeric(r) || r == '.' || r == '-' || r == '_')
	}) < 0
}

func isAlphanumeric(r rune) bool {
	return r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z'
}

// Capabilities are the names of the capabilities, each at the place of its bit in linux/capability.h.
var Capabilities = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
	NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT
	SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
	MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

// AllCapabilities stands for all that there can be on a host.
const AllCapabilities = "ALL"

// ParseCapability is the name of a capability as in Capabilities, or AllCapabilities. The text may have CAP_ before it, and be in
// either case.
func ParseCapability(text string) (string, error) {
	name := strings.TrimPrefix(strings.ToUpper(text), "CAP_")
	if name != AllCapabilities && !slices.Contains(Capabilities, name) {
		return "", invalid("there is no capability %q", text)
	}
	return name, nil
}

// ParseSignal is the signal with a name, with or without SIG, or number; SIGTERM if empty.
func ParseSignal(text string) (syscall.Signal, error) {
	if text == "" {
		return syscall.SIGTERM, nil
	}
	if n, err := strconv.Atoi(text); err == nil {
		if n < 1 || n > 255 {
			return 0, invalid("signal %d: expected 1 to 255", n)
		}
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(text)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if signal := unix.SignalNum(name); signal != 0 {
		return signal, nil
	}
	return 0, invalid("signal %q: expected a name as SIGTERM or a number", text)
}

// Environment puts lists of environment entries together, later ones first in rank: NAME=value sets, NAME= sets to nothing,
// NAME alone removes what an earlier entry has set.
func Environment(lists ...[]string) []string {
	var env []string
	for _, entry := range slices.Concat(lists...) {
		name, _, sets := strings.Cut(entry, "=")
		i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
		switch {
		case !sets && i >= 0:
			env = slices.Delete(env, i, i+1)
		case sets && i >= 0:
			env[i] = entry
		case sets:
			env = append(env, entry)
		}
	}
	return env
}
