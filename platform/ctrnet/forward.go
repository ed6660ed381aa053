// SPDX-License-Identifier: Apache-2.0

package ctrnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sdvbox/platform/durable"
)

// The kernel forwards between all devices or none. Where it was switched on for containers, the rules hold back everything else:
// a vehicle must not become a router between its other networks. Whoever wants one switches forwarding on before the agent
// starts, as with sysctl.d.

// forwarding tells where it was us who switched it on. It is kept in a file until the next start of the machine.
type forwarding struct{ IP4, IP6 bool }

const (
	forward4 = "ipv4/ip_forward"
	forward6 = "ipv6/conf/all/forwarding"
)

func (n *Network) forwardingFile() string { return filepath.Join(n.cfg.Dir, "forwarding.json") }

func (n *Network) loadForwarding() (f forwarding) {
	if text, err := os.ReadFile(n.forwardingFile()); err == nil {
		if err := json.Unmarshal(text, &f); err != nil { // rather too little than too much
			f = forwarding{true, true}
		}
	}
	return f
}

// passOn puts the rules in force, and then lets the kernel forward.
func (n *Network) passOn() error {
	before := n.ours
	if n.cfg.Forward {
		n.ours.IP4 = n.ours.IP4 || !isSet(forward4, "1")
		n.ours.IP6 = n.ours.IP6 || n.cfg.IPv6 && !isSet(forward6, "1")
	}
	if n.ours != before {
		if err := n.saveForwarding(); err != nil {
			n.ours = before
			return err
		}
		if n.cfg.Rules {
			n.cfg.Log.Info("forwarding is switched on for containers, and only for them")
		} else {
			n.cfg.Log.Warn("forwarding is switched on for containers, and without rules of ours it is so between all networks of the host")
		}
	}
	if err := n.applyRules(); err != nil {
		return errors.Join(err, n.routeLoopback("0"))
	}
	if n.cfg.Rules {
		if err := n.routeLoopback("1"); err != nil {
			return err
		}
	}
	if !n.cfg.Forward {
		return nil
	}
	if n.cfg.IPv6 {
		if err := n.forwardIPv6(); err != nil {
			return err
		}
	}
	return setSysctl(forward4, "1")
}

func (n *Network) saveForwarding() error {
	text, err := json.Marshal(n.ours)
	if err == nil {
		err = os.MkdirAll(n.cfg.Dir, 0o755)
	}
	if err == nil {
		err = durable.WriteFile(n.forwardingFile(), text, 0o600)
	}
	return err
}

// forwardIPv6 lets a host forward that goes on listening to routers, which it would not do unless told to.
func (n *Network) forwardIPv6() error {
	if isSet(forward6, "1") {
		return nil
	}
	devices, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	for _, path := range devices {
		if n.isOurs(filepath.Base(filepath.Dir(path))) {
			continue
		}
		if name := strings.TrimPrefix(path, "/proc/sys/net/"); isSet(name, "1") {
			err = errors.Join(err, setSysctl(name, "2"))
		}
	}
	return errors.Join(err, setSysctl(forward6, "1"))
}

// isOurs reports whether a device is the bridge or our end of a cable.
func (n *Network) isOurs(device string) bool {
	return device == n.cfg.Bridge || strings.HasPrefix(device, linkPrefix)
}

// ignoreRouters keeps those who have a device from sending by a container what is for others, only because it says that it is a router.
func ignoreRouters(device string) error { return setIPv6(device, "accept_ra", "0") }

// setIPv6 sets what a device does with IPv6, if the kernel has that.
func setIPv6(device, knob, value string) error {
	name := "ipv6/conf/" + device + "/" + knob
	if _, err := os.Stat("/proc/sys/net/" + name); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return setSysctl(name, value)
}

// routeLoopback lets, or does not let, packets pass from the host's own loopback address to a published port. It is the rules that
// keep containers from the way back.
func (n *Network) routeLoopback(value string) error {
	return setSysctl("ipv4/conf/"+n.cfg.Bridge+"/route_localnet", value)
}

// allowBridge prepares the bridge for what comes from and goes to containers.
func (n *Network) allowBridge() error {
	err := ignoreRouters(n.cfg.Bridge)
	if !n.cfg.Rules {
		err = errors.Join(err, n.routeLoopback("0")) // an agent before may have had rules
	}
	if n.cfg.IPv6 {
		conf := "ipv6/conf/" + n.cfg.Bridge
		// The kernel finds no neighbour to pass a packet on to before its own address is sure to be the only one.
		err = errors.Join(err, setSysctl(conf+"/accept_dad", "0"), setSysctl(conf+"/disable_ipv6", "0"))
	}
	return err
}

func isSet(name, value string) bool {
	text, err := os.ReadFile("/proc/sys/net/" + name)
	return err == nil && strings.TrimSpace(string(text)) == value
}

func setSysctl(name, value string) error {
	if isSet(name, value) {
		return nil // it may be read-only
	}
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
		return fmt.Errorf("set what the kernel passes on: %w", err)
	}
	return nil
}
