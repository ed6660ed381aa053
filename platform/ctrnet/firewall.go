// SPDX-License-Identifier: Apache-2.0

package ctrnet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// All rules are in one table of ours, which is replaced as a whole in one transaction: nothing of an earlier container or agent
// can stay behind, and nobody else's rules are touched.

func (n *Network) tableName() string { return "sdvbox-" + n.cfg.Bridge }

// applyRules puts the rules for the present sandboxes in force.
func (n *Network) applyRules() error {
	var ports []published
	for _, s := range n.sorted() {
		ports = append(ports, s.Ports...)
	}
	want := fmt.Sprint(n.cfg.Rules, n.bridge, ports, n.ours)
	conn, err := nftables.New(nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		return errors.Join(c.SetReadBuffer(4<<20), c.SetWriteBuffer(4<<20)) // all rules and all answers at once
	}))
	if err != nil {
		return noFirewall(err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		if !n.cfg.Rules {
			return nil
		}
		return noFirewall(err)
	}
	there := slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == n.tableName() })
	if there == n.cfg.Rules && want == n.rules || !there && !n.cfg.Rules {
		return nil
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: n.tableName()})
	conn.DelTable(table)
	if n.cfg.Rules {
		n.addRules(&ruleWriter{conn: conn, table: conn.AddTable(table)}, ports)
	}
	if err := conn.Flush(); err != nil {
		return noFirewall(err)
	}
	if n.rules == "" && n.cfg.Rules {
		n.warnOfOthers(conn)
	}
	n.rules = want
	return nil
}

func noFirewall(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return fmt.Errorf("firewall: this kernel has no nf_tables, and iptables alone does not do: %w", err)
	}
	return fmt.Errorf("firewall: write rules for nf_tables: %w", err)
}

// warnOfOthers tells of rules that hold back what ours let pass: a packet needs the consent of all tables.
func (n *Network) warnOfOthers(conn *nftables.Conn) {
	chains, err := conn.ListChains()
	if err != nil {
		return
	}
	for _, c := range chains {
		if c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			n.cfg.Log.Warn("another firewall forwards only what it knows: let it accept what comes from and goes to the bridge",
				"bridge", n.cfg.Bridge, "table", c.Table.Name, "chain", c.Name)
		}
	}
}

// ruleWriter writes rules into one chain after the other.
type ruleWriter struct {
	conn  *nftables.Conn
	table *nftables.Table
	chain *nftables.Chain
}

func (w *ruleWriter) begin(name string, typ nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) {
	w.chain = w.conn.AddChain(&nftables.Chain{Name: name, Table: w.table, Type: typ, Hooknum: hook, Priority: priority})
}

func (w *ruleWriter) add(parts ...[]expr.Any) {
	w.conn.AddRule(&nftables.Rule{Table: w.table, Chain: w.chain, Exprs: slices.Concat(parts...)})
}

func (n *Network) addRules(w *ruleWriter, ports []published) {
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	in, out := device(expr.MetaKeyIIFNAME, expr.CmpOpEq, n.cfg.Bridge), device(expr.MetaKeyOIFNAME, expr.CmpOpEq, n.cfg.Bridge)

	// The host reaches published ports by its loopback address. Nobody else must, neither those nor the host's own ones.
	w.begin("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	w.add(device(expr.MetaKeyIIFNAME, expr.CmpOpNeq, "lo"), destination(loopback), verdict(expr.VerdictDrop))

	w.begin("published", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	for _, p := range ports {
		w.add(p.match(), p.redirect())
	}
	w.begin("published-local", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	for _, p := range ports {
		w.add(p.match(), p.redirect())
	}

	w.begin("source", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	w.add(out, source(loopback), masquerade())
	outside := device(expr.MetaKeyOIFNAME, expr.CmpOpNeq, n.cfg.Bridge)
	for _, own := range n.networks() {
		w.add(out, source(own), redirected(), masquerade()) // by a published port of a neighbour: answers have to come back this way
		if n.cfg.Masq {
			w.add(source(own), outside, masquerade())
		}
	}

	w.begin("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	w.add(out, answers(), verdict(expr.VerdictAccept))
	w.add(out, redirected(), verdict(expr.VerdictAccept))
	if !n.cfg.ICC {
		w.add(in, out, verdict(expr.VerdictDrop))
	}
	w.add(in, verdict(expr.VerdictAccept))
	w.add(out, verdict(expr.VerdictDrop)) // what no container has published
	// The rest has nothing to do with containers. A host that did not forward does not begin to because of us.
	if n.ours.IP4 {
		w.add(family(netip.IPv4Unspecified()), verdict(expr.VerdictDrop))
	}
	if n.ours.IP6 {
		w.add(family(netip.IPv6Unspecified()), verdict(expr.VerdictDrop))
	}
}

func device(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: padded}}
}

func family(ip netip.Addr) []expr.Any {
	f := byte(unix.NFPROTO_IPV4)
	if ip.Is6() {
		f = unix.NFPROTO_IPV6
	}
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f}}}
}

// Where the addresses are in the headers of both versions.
func source(p netip.Prefix) []expr.Any      { return inNetwork(p, 12, 8, expr.CmpOpEq) }
func destination(p netip.Prefix) []expr.Any { return inNetwork(p, 16, 24, expr.CmpOpEq) }

func inNetwork(p netip.Prefix, offset4, offset6 uint32, op expr.CmpOp) []expr.Any {
	offset, size := offset4, uint32(4)
	if p.Addr().Is6() {
		offset, size = offset6, 16
	}
	mask := net.CIDRMask(p.Bits(), int(size)*8)
	return append(family(p.Addr()),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: bytes.Repeat([]byte{0}, int(size))},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()})
}

// toHost matches what goes to any address of the host.
func toHost() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// match matches packets to a published port.
func (p published) match() []expr.Any {
	var match []expr.Any
	switch ip := p.Host.Addr(); {
	case !ip.IsUnspecified():
		match = destination(netip.PrefixFrom(ip, ip.BitLen()))
	case ip.Is4():
		match = append(family(ip), toHost()...)
	default: // the kernel does not let ::1 leave the host
		match = append(inNetwork(netip.MustParsePrefix("::1/128"), 8, 24, expr.CmpOpNeq), toHost()...)
	}
	return append(match,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocols[p.Proto]}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(p.Host.Port())})
}

// redirect sends them to the container.
func (p published) redirect() []expr.Any {
	f := uint32(unix.NFPROTO_IPV4)
	if p.Target.Addr().Is6() {
		f = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: p.Target.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(p.Target.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: f, RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

// answers matches packets of connections that have begun.
func answers() []expr.Any {
	return anyOf(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

// redirected matches packets of connections by a published port.
func redirected() []expr.Any {
	const dstNAT = 1 << 5 // IPS_DST_NAT
	return anyOf(expr.CtKeySTATUS, dstNAT)
}

func anyOf(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}
