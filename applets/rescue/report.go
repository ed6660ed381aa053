// SPDX-License-Identifier: Apache-2.0

package rescue

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/applet"
	"sdvbox/platform/bootenv"
	"sdvbox/platform/rauc"
	"sdvbox/platform/slots"
)

// A Report says why the vehicle does not boot and what can be done.
type Report struct {
	Reason      string      `json:"reason"` // sdvbox.boot of the kernel command line
	Environment Environment `json:"environment"`
	Slots       []Slot      `json:"slots"`
	Data        Volume      `json:"data"`
	Network     []Interface `json:"network"`
	RAUC        RAUC        `json:"rauc"`
	Stay        bool        `json:"stay"`            // a person wants no retry
	Retry       string      `json:"retry,omitempty"` // slot that is started again by itself
	Advice      []string    `json:"advice"`
}

// Environment is the state of the boot environment.
type Environment struct {
	Store string   `json:"store,omitempty"`
	Error string   `json:"error,omitempty"` // why Linux cannot read it
	Order []string `json:"order,omitempty"`
	Good  string   `json:"good,omitempty"` // slot confirmed last
	Why   string   `json:"why,omitempty"`  // why a slot was given up last
}

// Slot is all that is known about a slot.
type Slot struct {
	Name    string `json:"name"`
	Known   bool   `json:"known"` // the boot environment tells OK and Left
	OK      bool   `json:"ok"`
	Left    int    `json:"attempts_left"`
	Error   string `json:"error,omitempty"` // why its file system cannot be read
	Kernel  bool   `json:"kernel"`
	Version string `json:"version,omitempty"`
	Status  string `json:"rauc_status,omitempty"` // ok, pending or failed
	Bundle  string `json:"rauc_version,omitempty"`
}

// complete reports whether the slot can be hoped to start.
func (s Slot) complete() bool {
	return s.Error == "" && s.Kernel && s.Status != "pending" && s.Status != "failed"
}

// Volume is the state of a mounted partition.
type Volume struct {
	Mounted bool   `json:"mounted"`
	Free    uint64 `json:"free_bytes"`
	Error   string `json:"error,omitempty"`
}

// Interface is a network interface and its addresses.
type Interface struct {
	Name      string   `json:"name"`
	Up        bool     `json:"up"`
	Addresses []string `json:"addresses"` // that reach beyond the link
}

// RAUC tells whether bundles can be installed.
type RAUC struct {
	Compatible string `json:"compatible,omitempty"`
	Error      string `json:"error,omitempty"`
}

func runReport(ctx context.Context, c *applet.Call) error {
	if inRescue() == nil {
		unlock, err := exclusive(ctx)
		if err != nil {
			return err
		}
		defer unlock()
		findDisk(true)
	}
	r := gather(ctx)
	if c.JSON {
		return writeJSON(c, r)
	}
	return r.write(c.Stdout)
}

// gather looks at everything. What cannot be found out is part of the report.
func gather(ctx context.Context) *Report {
	r := &Report{Reason: bootReason(), Data: dataState(), Network: interfaces()}
	var st slots.State
	var err error
	if r.Environment.Store, st, err = loadState(); err != nil {
		r.Environment.Error = err.Error()
		if note := grubenvVolume().trouble(); note != "" {
			r.Environment.Error += "; " + note
		}
	} else {
		r.Environment.Order, r.Environment.Good, r.Environment.Why = st.Order, st.Good, st.Why
	}
	status, compatible, err := raucSlots(ctx)
	r.RAUC.Compatible = compatible
	if err != nil {
		r.RAUC.Error = err.Error()
	}
	for _, name := range slots.Names {
		s := Slot{Name: name, Known: st.Has(name), OK: st.Slots[name].OK, Left: st.Left(name)}
		c, err := within(viewLimit, func() (content, error) { return inspect(device(name)) })
		s.Kernel, s.Version = c.kernel, c.version
		if err != nil {
			s.Error = err.Error()
		}
		for _, rs := range status {
			if rs.Bootname == name {
				s.Status, s.Bundle = rs.Status, rs.Version
			}
		}
		r.Slots = append(r.Slots, s)
	}
	_, err = os.Stat(stayMark)
	r.Stay = err == nil
	r.Retry = r.retry()
	r.Advice = r.advise()
	return r
}

// bootReason returns what the boot loader said when it started the kernel.
func bootReason() string {
	line, _ := os.ReadFile("/proc/cmdline")
	_, reason := slots.Booted(string(line))
	return reason
}

// loadState reads the boot environment. The name of the store is known even
// when its content is not.
func loadState() (string, slots.State, error) {
	store, err := bootenv.Open("")
	if err != nil {
		return "", slots.State{}, err
	}
	vars, err := store.Load()
	if err != nil {
		return store.String(), slots.State{}, err
	}
	st, err := slots.Decode(vars, store.Kind())
	return store.String(), st, err
}

// raucSlots asks RAUC for what it knows of its slots.
func raucSlots(ctx context.Context) ([]rauc.Slot, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	client, err := rauc.Dial(ctx, "")
	if err != nil {
		return nil, "", err
	}
	defer client.Close()
	list, err := client.Slots(ctx)
	if err != nil {
		return nil, "", err
	}
	compatible, err := client.Compatible(ctx)
	return list, compatible, err
}

func dataState() Volume {
	if !mounted("/data") {
		return Volume{Error: cmp.Or(dataVolume().trouble(), "not mounted")}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/data", &fs); err != nil {
		return Volume{Mounted: true, Error: err.Error()}
	}
	return Volume{Mounted: true, Free: fs.Bavail * uint64(fs.Bsize)}
}

// interfaces lists the network interfaces other than loopback.
func interfaces() []Interface {
	list := []Interface{}
	all, _ := net.Interfaces()
	for _, i := range all {
		if i.Flags&net.FlagLoopback != 0 || len(i.HardwareAddr) != 6 {
			continue
		}
		out := Interface{Name: i.Name, Up: i.Flags&net.FlagRunning != 0, Addresses: []string{}}
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
				out.Addresses = append(out.Addresses, n.String())
			}
		}
		list = append(list, out)
	}
	return list
}

// connected reports whether an interface has an address.
func connected(list []Interface) bool {
	return slices.ContainsFunc(list, func(i Interface) bool { return len(i.Addresses) > 0 })
}

// explain turns the boot loader's word into a sentence.
func explain(reason string) string {
	switch reason {
	case "exhausted":
		return "no slot could be started: each is marked bad, has used up its attempts or cannot be loaded"
	case "unreadable":
		return "the boot loader could not read the boot environment"
	case "unsaved":
		return "the boot loader cannot save the boot environment, and the slot confirmed last does not start"
	case "manual":
		return "chosen by hand in the boot menu"
	case "external":
		return "the boot loader gave no reason"
	}
	return reason
}

// advise says what a person can do about what was found.
func (r *Report) advise() []string {
	var list []string
	add := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	switch {
	case r.Environment.Error != "":
		add("re-create the boot environment: rescue repair")
	case r.Reason == "unsaved":
		add("re-create the boot environment: rescue repair --force")
	}
	if r.Retry != "" {
		add("to stay here: rescue stay; else %s gets its attempts back and is started %v after the rescue system, at most once an hour", r.Retry, retryAfter)
	}
	var broken []string
	for _, s := range r.Slots {
		switch {
		case !s.complete():
			broken = append(broken, s.Name)
		case s.Left > 0:
			add("%s can be booted: rescue reboot", s.Name)
		case s.Known:
			add("%s looks complete; to give it another chance: rauc-helper mark active %s && rescue reboot", s.Name, s.Name)
		}
	}
	if len(broken) > 0 {
		add("%s must be installed again", strings.Join(broken, " and "))
	}
	if r.RAUC.Error != "" {
		add("RAUC must answer before anything can be installed: see %s", raucLog)
	}
	if connected(r.Network) {
		add("install over the network: rescue install --reboot https://HOST/BUNDLE.raucb")
	} else {
		add("there is no network: connect a cable, the address comes by DHCP or IPv6 autoconfiguration")
	}
	add("install from a stick with a bundle (*.raucb) at its top level: rescue install --reboot --usb")
	if !r.Data.Mounted {
		add("/data could not be mounted; to repair it: e2fsck -y %s/data", byLabel)
	}
	add("boot again: rescue reboot; look again: rescue report")
	return list
}

// write prints the report for people.
func (r *Report) write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", name, strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " "))
	}
	fmt.Fprintf(t, "\n==== RESCUE SYSTEM ====\n")
	row("reason", "%s", explain(r.Reason))
	if e := r.Environment; e.Error != "" {
		row("environment", "UNREADABLE: %s", e.Error)
	} else {
		row("environment", "readable (%s), order %s", e.Store, strings.Join(e.Order, " "))
		if e.Why != "" {
			row("given up", "%s", e.Why)
		}
	}
	for _, s := range r.Slots {
		row(s.Name, "%s", s)
	}
	if d := r.Data; d.Error != "" {
		row("/data", "LOST: %s", d.Error)
	} else {
		row("/data", "mounted, %d MB free", d.Free/1e6)
	}
	for _, i := range r.Network {
		switch {
		case len(i.Addresses) > 0:
			row(i.Name, "%s", strings.Join(i.Addresses, ", "))
		case i.Up:
			row(i.Name, "connected, no address yet")
		default:
			row(i.Name, "not connected")
		}
	}
	if len(r.Network) == 0 {
		row("network", "no interface found")
	}
	if r.RAUC.Error != "" {
		row("RAUC", "DOES NOT ANSWER: %s", r.RAUC.Error)
	} else {
		row("RAUC", "answers, for bundles compatible with %q", r.RAUC.Compatible)
	}
	fmt.Fprintf(t, "What to do:\n")
	for _, a := range r.Advice {
		fmt.Fprintf(t, "  - %s\n", a)
	}
	return t.Flush()
}

// String describes the slot in one line.
func (s Slot) String() string {
	var parts []string
	switch {
	case !s.Known:
		parts = append(parts, "boot state unknown")
	case !s.OK:
		parts = append(parts, "MARKED BAD")
	case s.Left == 0:
		parts = append(parts, fmt.Sprintf("ALL %d ATTEMPTS USED", slots.MaxTries))
	default:
		parts = append(parts, fmt.Sprintf("%d attempts left", s.Left))
	}
	switch {
	case s.Error != "":
		parts = append(parts, "UNREADABLE: "+s.Error)
	case !s.Kernel:
		parts = append(parts, "NO KERNEL")
	default:
		parts = append(parts, "file system and kernel readable")
	}
	if s.Version != "" {
		parts = append(parts, "version "+s.Version)
	}
	if s.Status != "" {
		parts = append(parts, "RAUC says "+strings.TrimSpace(s.Status+" "+s.Bundle))
	}
	return strings.Join(parts, ", ")
}
