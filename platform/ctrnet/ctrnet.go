// SPDX-License-Identifier: Apache-2.0

// Package ctrnet gives containers their place in the network: a namespace, an address behind a bridge, ports of the host, and
// names for each other.
//
// All that containers need as they run is in the kernel and in files, so they go on when the agent ends; names are in their
// hosts files for the same reason, not in a name server of ours. What is there is described below Config.Dir, where the next
// agent finds it (Restore). Addresses follow from the names of containers, so they stay the same over restarts and updates.
package ctrnet

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/durable"
)

// Config is how the network is made.
type Config struct {
	Dir    string // for what need not outlive the machine: namespaces, generated files
	Bridge string // name of the device

	IP4     string // address of the bridge and bits of its network, as in 172.17.0.1/16; empty: a network nobody else uses
	Fixed4  string // part of the network that addresses of containers are from; empty: all of it
	Gate4   string // what containers have as their gateway; empty: the bridge
	IPv6    bool   // addresses of this kind, too
	MTU     int    // 0: 1500
	ICC     bool   // containers reach each other
	Rules   bool   // make firewall rules; without them there is no way in, and only one out if others make it
	Forward bool   // switch forwarding on, if it is not; with rules, only for containers
	Masq    bool   // hide containers behind the addresses of the host

	HostFiles string // directory of the host's hosts and resolv.conf; empty: /etc
	Log       *slog.Logger
}

// Network is the network of the containers of one agent.
type Network struct {
	cfg     Config
	wanted  netip.Prefix // for the bridge; fixed and gateway are in it
	fixed   netip.Prefix
	gateway netip.Addr

	mu        sync.Mutex
	bridge    netip.Prefix // address of the bridge and its network, once it is there
	sandboxes map[string]*sandbox
	rules     string // a description of those that are in force
	ours      forwarding
}

// sandbox is the place of one container. It is kept in a file.
type sandbox struct {
	ID         string
	Name       string
	HostName   string
	DomainName string
	Mode       string
	Bridge     netip.Prefix `json:",omitzero"`
	IP4        netip.Addr   `json:",omitzero"`
	IP6        netip.Addr   `json:",omitzero"`
	ExtraHosts []string     `json:",omitempty"`
	Ports      []published  `json:",omitempty"`

	held       map[published]int // sockets that keep the ports from others
	unresolved map[string]string // extra hosts that lead nowhere, and why
	outdated   string            // why its files are, as it was said
}

// New checks a configuration. It changes nothing.
func New(cfg Config) (*Network, error) {
	cfg.MTU = cmp.Or(cfg.MTU, 1500)
	cfg.HostFiles = cmp.Or(cfg.HostFiles, "/etc")
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	n := &Network{cfg: cfg, sandboxes: map[string]*sandbox{}}
	return n, n.parse()
}

// Attach makes the place of a container that is about to start, and says in c what and where it is. The namespace is empty for
// a container that is not behind the bridge.
func (n *Network) Attach(ctx context.Context, c *ctrmodel.Container) (netNS string, err error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.remove(c.ID); err != nil { // what a start that was cut off has left
		return "", err
	}
	s := &sandbox{
		ID: c.ID, Name: c.Name, HostName: c.HostName, DomainName: c.DomainName,
		Mode: c.HostConfig.NetworkMode, ExtraHosts: c.HostConfig.ExtraHosts,
		unresolved: map[string]string{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("network of container %s: %w", c.Name, err), n.remove(c.ID))
		}
	}()
	n.sandboxes[s.ID] = s
	if s.bridged() {
		if err := n.connect(s, c.HostConfig.Ports); err != nil {
			return "", err
		}
		netNS = n.netNS(s.ID)
	}
	if err := n.save(s); err != nil {
		return "", err
	}
	list, owner := n.names()
	if err := n.writeFiles(s, list, owner); err != nil {
		return "", err
	}
	n.refresh()
	n.describe(s, c)
	return netNS, nil
}

// Describe says in c what and where the place of a container is that has one, as Attach has done: whoever asked that to do so may
// have been killed before it was written down. It does nothing to a container that has none.
func (n *Network) Describe(c *ctrmodel.Container) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.sandboxes[c.ID]; s != nil {
		n.describe(s, c)
	}
}

func (n *Network) describe(s *sandbox, c *ctrmodel.Container) {
	c.HostsPath, c.HostnamePath, c.ResolvConfPath = n.file(s.ID, "hosts"), n.file(s.ID, "hostname"), n.file(s.ID, "resolv.conf")
	c.NetworkSettings = n.settings(s)
}

// connect puts a sandbox behind the bridge.
func (n *Network) connect(s *sandbox, ports []ctrmodel.Port) error {
	if err := n.raiseBridge(); err != nil {
		return err
	}
	if err := n.assign(s); err != nil {
		return err
	}
	if err := n.publish(s, ports); err != nil {
		return err
	}
	if err := makeNetNS(n.netNS(s.ID)); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	if err := n.plugIn(s); err != nil {
		return err
	}
	if err := n.passOn(); err != nil {
		return err
	}
	n.forgetFlows(s, toHostPort)
	return nil
}

// Detach clears away the place of a container that has ended.
func (n *Network) Detach(ctx context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	err := n.remove(id)
	n.refresh()
	if err != nil {
		return fmt.Errorf("network of container %s: %w", id, err)
	}
	return nil
}

// remove leaves nothing of a sandbox but its name in the files of others.
func (n *Network) remove(id string) error {
	s := n.sandboxes[id]
	delete(n.sandboxes, id)
	var err error
	if s != nil {
		s.release()
		if len(s.Ports) > 0 {
			err = n.applyRules()
			n.forgetFlows(s, toContainer)
		}
	}
	return errors.Join(err, n.unplug(id), removeNetNS(n.netNS(id)), os.RemoveAll(n.file(id, "")))
}

// Restore takes over what an agent before has left. Containers that are not among ids have ended: what is left of them is
// cleared away. What does not work then is tried again when a container needs it, so that others need not wait.
func (n *Network) Restore(ctx context.Context, ids []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.sandboxes {
		s.release()
	}
	clear(n.sandboxes)
	n.bridge, n.rules, n.ours = netip.Prefix{}, "", n.loadForwarding()
	for _, id := range ids {
		s, err := n.load(id)
		if errors.Is(err, fs.ErrNotExist) && !isNetNS(n.netNS(id)) { // the machine has been started since
			continue
		}
		if err == nil && s.bridged() && !isNetNS(n.netNS(id)) {
			err = errors.New("its namespace is gone")
		}
		if err != nil {
			n.cfg.Log.Warn("a container has lost its network until it is started again", "container", id, "err", err)
			continue
		}
		n.sandboxes[id] = s
		if err := n.harden(s); err != nil {
			n.cfg.Log.Warn("a container that runs is not kept apart as one that starts now", "container", s.Name, "err", err)
		}
	}
	ended, err := n.sweep()
	if err != nil {
		n.cfg.Log.Warn("something is left of networks of containers that have ended", "err", err)
	}
	for _, s := range n.sandboxes {
		if err := s.holdAgain(); err != nil {
			n.cfg.Log.Warn("another program has a port that leads to a container", "container", s.Name, "err", err)
		}
	}
	if err := n.raiseBridge(); err != nil {
		n.cfg.Log.Error("containers have no network", "err", err)
	} else if err := n.passOn(); err != nil {
		n.cfg.Log.Error("containers have no network beyond the host", "err", err)
	}
	for _, s := range ended { // the rules do not lead there any more
		n.forgetFlows(s, toContainer)
	}
	n.refresh()
	return nil
}

// harden does to a sandbox what an agent before may have left undone.
func (n *Network) harden(s *sandbox) error {
	if err := n.makeDir(s.ID); err != nil || !s.bridged() {
		return err
	}
	netNS, err := os.Open(n.netNS(s.ID))
	if err != nil {
		return err
	}
	defer netNS.Close()
	return limitIPv6(int(netNS.Fd()), s)
}

// sweep removes what belongs to no sandbox. It returns the sandboxes that are known of that.
func (n *Network) sweep() (ended []*sandbox, err error) {
	var stale []string
	for _, dir := range []string{filepath.Dir(n.netNS("x")), filepath.Dir(n.file("x", ""))} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if n.sandboxes[e.Name()] == nil {
				stale = append(stale, e.Name())
			}
		}
	}
	errs := []error{n.sweepLinks()}
	for _, id := range stale {
		if s, err := n.load(id); err == nil {
			ended = append(ended, s)
		}
		errs = append(errs, n.remove(id))
	}
	return ended, errors.Join(errs...)
}

func (s *sandbox) bridged() bool { return s.Mode == ctrmodel.BridgeNetwork }

func (n *Network) netNS(id string) string { return filepath.Join(n.cfg.Dir, "netns", id) }

func (n *Network) file(id, name string) string {
	return filepath.Join(n.cfg.Dir, "containers", id, name)
}

// makeDir makes the directory of a sandbox. Who is root in the container can make a program that runs as root of a file that is
// mounted there, so nobody else on the host may get at it.
func (n *Network) makeDir(id string) error {
	dir := n.file(id, "")
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(dir, 0o700)
}

func (n *Network) save(s *sandbox) error {
	if err := n.makeDir(s.ID); err != nil {
		return err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return durable.WriteFile(n.file(s.ID, "sandbox.json"), text, 0o600)
}

func (n *Network) load(id string) (*sandbox, error) {
	text, err := os.ReadFile(n.file(id, "sandbox.json"))
	if err != nil {
		return nil, err
	}
	s := &sandbox{unresolved: map[string]string{}}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("%s: %w", n.file(id, "sandbox.json"), err)
	}
	if s.ID != id || s.bridged() && !s.addressed() {
		return nil, fmt.Errorf("%s: not of this container, or without its addresses", n.file(id, "sandbox.json"))
	}
	return s, nil
}

// addressed reports whether a sandbox has all that rules are made of.
func (s *sandbox) addressed() bool {
	for _, p := range s.Ports {
		if !p.Host.IsValid() || !p.Target.IsValid() || p.Host.Addr().Is4() != p.Target.Addr().Is4() || protocols[p.Proto] == 0 {
			return false
		}
	}
	return s.Bridge.IsValid() && s.Bridge.Addr().Is4() && s.Bridge.Bits() <= 30 && s.IP4.Is4() && (s.IP6 == netip.Addr{} || s.IP6.Is6())
}

// settings is what a sandbox is for the world outside.
func (n *Network) settings(s *sandbox) *ctrmodel.NetworkSettings {
	set := &ctrmodel.NetworkSettings{SandboxID: digest("sandbox", s.ID), ControllerID: digest("controller", n.cfg.Bridge)}
	e := ctrmodel.Endpoint{ID: digest("endpoint", s.ID), NetworkID: digest("network", s.Mode)}
	if s.bridged() {
		set.SandboxKey = n.netNS(s.ID)
		e.NetworkID = digest("network", n.cfg.Bridge)
		e.Gateway, e.IPAddress, e.MACAddress = n.gate4().String(), s.IP4.String(), mac(s.IP4).String()
	}
	set.Networks = map[string]ctrmodel.Endpoint{s.Mode: e}
	return set
}

// sorted are the sandboxes in an order that stays the same.
func (n *Network) sorted() []*sandbox {
	list := make([]*sandbox, 0, len(n.sandboxes))
	for _, s := range n.sandboxes {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *sandbox) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return list
}
