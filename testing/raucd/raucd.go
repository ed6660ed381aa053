// SPDX-License-Identifier: Apache-2.0

// Package raucd runs the real RAUC service for tests: on a message bus of its own, with its own certificates,
// slots in files or loop devices, and bundles made on demand.
//
// Everything lives in one directory which goes away with the test. The service believes to run on a machine
// booted from the first slot; SimulateReboot changes that. Plain bundles can be installed anywhere; verity
// bundles need a device mapper and are there to be inspected and served.
package raucd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Options describe the machine to be simulated. The zero value is a machine with two 16 MiB root file system
// slots in files, booted by GRUB from SDV_A.
type Options struct {
	Compatible string   // default "test-machine"
	Slots      []Slot   // default rootfs.0 (SDV_A) and rootfs.1 (SDV_B)
	Boot       string   // boot name, slot name or _external_; default: boot name of the first slot
	Loop       bool     // slots are loop devices, which have an end; slots in files grow with the image
	Bootloader string   // grub (default), uboot, custom or noop
	Backend    string   // executable of the custom boot loader backend
	NoActivate bool     // activate-installed=false
	System     string   // further lines for section [system]
	Config     string   // further sections of system.conf
	Env        []string // further environment of the service, KEY=VALUE
	Stopped    bool     // start the bus only; RestartService starts the service

	Activatable bool // the bus starts the service when it is called and not there
}

// Slot is one slot of the simulated machine.
type Slot struct {
	Name     string // such as rootfs.0
	Bootname string // none for slots the boot loader does not choose
	SizeMiB  int    // default 16
}

// Fixture is a running RAUC service.
type Fixture struct {
	Dir     string // everything is below
	Address string // of the bus; what DBUS_SYSTEM_BUS_ADDRESS must be
	Config  string // system.conf
	GrubEnv string // GRUB environment block, with bootloader grub
	FwEnv   string // fw_env.config, with bootloader uboot
	Keyring string // certificate of the CA that the service trusts

	opts    Options
	boot    string
	devices map[string]string // slot name → device or file
	bundles map[BundleSpec]string
	trusted signer
	foreign signer
	bus     *process
	service *process
}

// Start starts a bus and the service, and ends both with the test.
func Start(tb testing.TB, o Options) *Fixture {
	tb.Helper()
	need(tb)
	o.Compatible = or(o.Compatible, "test-machine")
	o.Bootloader = or(o.Bootloader, "grub")
	if o.Slots == nil {
		o.Slots = []Slot{{Name: "rootfs.0", Bootname: "SDV_A"}, {Name: "rootfs.1", Bootname: "SDV_B"}}
	}
	o.Boot = or(o.Boot, o.Slots[0].Bootname)

	f := &Fixture{
		opts:    o,
		boot:    o.Boot,
		devices: make(map[string]string),
		bundles: make(map[BundleSpec]string),
	}
	f.Dir = shortTempDir(tb)
	tb.Cleanup(func() { f.cleanup(tb) })
	for _, dir := range []string{"bin", "data", "mnt", "services", "slots", "tmp"} {
		check(tb, os.Mkdir(f.path(dir), 0o755))
	}
	f.Address = "unix:path=" + f.path("bus.sock")
	f.makePKI(tb)
	f.makeSlots(tb)
	f.makeBootloader(tb)
	f.makeConfig(tb)
	if o.Activatable {
		f.makeActivation(tb)
	}
	f.StartBus(tb)
	if !o.Stopped {
		f.startService(tb)
	}
	return f
}

// need ends the test when the machine lacks what RAUC needs: quietly on a developer's machine, loudly where the
// complete test is asked for.
func need(tb testing.TB) {
	tb.Helper()
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "root (RAUC mounts its bundles)")
	}
	for _, tool := range []string{"rauc", "dbus-daemon", "mksquashfs", "losetup"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, tool)
		}
	}
	if missing == nil {
		return
	}
	text := "no real RAUC here, missing: " + strings.Join(missing, ", ")
	if os.Getenv("SDVBOX_REQUIRE") == "1" {
		tb.Fatal(text)
	}
	tb.Skip(text)
}

// shortTempDir keeps the path of the bus socket below the 108 bytes that a socket address can hold.
func shortTempDir(tb testing.TB) string {
	tb.Helper()
	parent := os.TempDir()
	if len(parent) > 60 {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "raucd")
	check(tb, err)
	return dir
}

func (f *Fixture) path(elem ...string) string {
	return filepath.Join(append([]string{f.Dir}, elem...)...)
}

func (f *Fixture) makeSlots(tb testing.TB) {
	tb.Helper()
	for i := range f.opts.Slots {
		s := &f.opts.Slots[i]
		if s.SizeMiB == 0 {
			s.SizeMiB = 16
		}
		file := f.path("slots", s.Name)
		check(tb, os.WriteFile(file, []byte("factory\n"), 0o600))
		check(tb, os.Truncate(file, int64(s.SizeMiB)<<20))
		f.devices[s.Name] = file
		if f.opts.Loop {
			f.devices[s.Name] = strings.TrimSpace(run(tb, "losetup", "--find", "--show", file))
		}
	}
}

// Device returns the file or loop device of a slot.
func (f *Fixture) Device(slot string) string { return f.devices[slot] }

func (f *Fixture) makeBootloader(tb testing.TB) {
	tb.Helper()
	var names []string
	for _, s := range f.opts.Slots {
		if s.Bootname != "" {
			names = append(names, s.Bootname)
		}
	}
	switch f.opts.Bootloader {
	case "grub":
		f.GrubEnv = f.path("grubenv")
		text := "# GRUB Environment Block\nORDER=" + strings.Join(names, " ") + "\n"
		for _, n := range names {
			text += n + "_OK=1\n" + n + "_TRY=0\n"
		}
		text += strings.Repeat("#", 1024-len(text))
		check(tb, os.WriteFile(f.GrubEnv, []byte(text), 0o644))
	case "uboot":
		f.FwEnv = f.path("fw_env.config")
		image := f.path("uboot.env")
		check(tb, os.WriteFile(image, make([]byte, 4096), 0o644))
		check(tb, os.WriteFile(f.FwEnv, []byte(image+" 0x0 0x1000\n"), 0o644))
		text := "BOOT_ORDER=" + strings.Join(names, " ") + "\n"
		for _, n := range names {
			text += "BOOT_" + n + "_LEFT=3\n"
		}
		check(tb, os.WriteFile(f.path("default.env"), []byte(text), 0o644))
		run(tb, "fw_setenv", "-c", f.FwEnv, "-f", f.path("default.env"), "-s", f.path("default.env"))
		for _, tool := range []string{"fw_printenv", "fw_setenv"} {
			full, err := exec.LookPath(tool)
			check(tb, err)
			f.script(tb, f.path("bin", tool), fmt.Sprintf("exec %s -c %s \"$@\"\n", full, f.FwEnv))
		}
	}
}

func (f *Fixture) makeConfig(tb testing.TB) {
	tb.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "[system]\ncompatible=%s\nbootloader=%s\n", f.opts.Compatible, f.opts.Bootloader)
	fmt.Fprintf(&b, "data-directory=%s\nmountprefix=%s\nbundle-formats=+plain\n", f.path("data"), f.path("mnt"))
	if f.GrubEnv != "" {
		fmt.Fprintf(&b, "grubenv=%s\n", f.GrubEnv)
	}
	if f.opts.NoActivate {
		b.WriteString("activate-installed=false\n")
	}
	fmt.Fprintf(&b, "%s\n\n[keyring]\npath=%s\n", f.opts.System, f.Keyring)
	b.WriteString("\n[handlers]\n")
	for _, p := range []Point{BeforeInstall, AfterInstall} {
		handler := f.path("bin", string(p))
		f.script(tb, handler, f.waitScript(p))
		fmt.Fprintf(&b, "%s=%s\n", p, handler)
	}
	if f.opts.Backend != "" {
		fmt.Fprintf(&b, "bootloader-custom-backend=%s\n", f.opts.Backend)
	}
	for _, s := range f.opts.Slots {
		fmt.Fprintf(&b, "\n[slot.%s]\ndevice=%s\ntype=raw\n", s.Name, f.devices[s.Name])
		if s.Bootname != "" {
			fmt.Fprintf(&b, "bootname=%s\n", s.Bootname)
		}
	}
	b.WriteString("\n" + f.opts.Config)
	f.Config = f.path("system.conf")
	check(tb, os.WriteFile(f.Config, []byte(b.String()), 0o644))
}

// Point is a moment of an installation.
type Point string

// Where Hold can stop an installation.
const (
	BeforeInstall Point = "pre-install"  // bundle verified, no slot touched
	DuringInstall Point = "slot-install" // target marked bad, nothing written; only bundles with BundleSpec.Hook
	AfterInstall  Point = "post-install" // target written and activated
)

// Hold makes the installations from now on stop at p until Release. An installation is too fast to be met half
// way by chance.
func (f *Fixture) Hold(tb testing.TB, p Point) {
	tb.Helper()
	os.Remove(f.path("reached-" + string(p)))
	check(tb, os.WriteFile(f.path("hold-"+string(p)), nil, 0o600))
}

// AwaitHold waits until an installation has stopped at p.
func (f *Fixture) AwaitHold(tb testing.TB, p Point) {
	tb.Helper()
	f.await(tb, "installation at "+string(p), func() bool {
		_, err := os.Stat(f.path("reached-" + string(p)))
		return err == nil
	})
}

// Release lets installations pass p again.
func (f *Fixture) Release(tb testing.TB, p Point) {
	tb.Helper()
	check(tb, os.Remove(f.path("hold-"+string(p))))
}

func (f *Fixture) waitScript(p Point) string {
	return fmt.Sprintf("while [ -e %[1]s/hold-%[2]s ]; do : > %[1]s/reached-%[2]s; sleep 0.02; done\n", f.Dir, p)
}

func (f *Fixture) script(tb testing.TB, path, body string) {
	tb.Helper()
	check(tb, os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755))
}

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>%s</listen>
  <servicedir>%s</servicedir>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
  </policy>
</busconfig>
`

// StartBus starts the message bus again after StopBus.
func (f *Fixture) StartBus(tb testing.TB) {
	tb.Helper()
	config := f.path("dbus.conf")
	check(tb, os.WriteFile(config, fmt.Appendf(nil, busConfig, f.Address, f.path("services")), 0o644))
	f.bus = f.start(tb, "dbus.log", nil, "dbus-daemon", "--config-file="+config, "--nofork", "--nopidfile", "--nosyslog")
	f.await(tb, "bus", func() bool {
		f.bus.check(tb)
		conn, err := dbus.Connect(f.Address)
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
}

// StopBus ends the message bus; its clients lose their connections.
func (f *Fixture) StopBus(tb testing.TB) {
	tb.Helper()
	f.bus.stop(syscall.SIGKILL)
	os.Remove(f.path("bus.sock"))
}

// command is what runs the service, and its additional environment.
func (f *Fixture) command() (args, env []string) {
	args = []string{"rauc", "-c", f.Config, "service", "--override-boot-slot=" + f.boot}
	env = append([]string{
		"DBUS_SYSTEM_BUS_ADDRESS=" + f.Address,
		"TMPDIR=" + f.path("tmp"),
		"PATH=" + f.path("bin") + ":" + os.Getenv("PATH"),
	}, f.opts.Env...)
	return args, env
}

// makeActivation tells the bus how to start the service. A service so started ends with its bus.
func (f *Fixture) makeActivation(tb testing.TB) {
	tb.Helper()
	args, env := f.command()
	text := "[D-BUS Service]\nName=de.pengutronix.rauc\nUser=root\nExec=/usr/bin/env"
	for _, arg := range append(env, args...) {
		text += ` "` + arg + `"`
	}
	check(tb, os.WriteFile(f.path("services", "de.pengutronix.rauc.service"), []byte(text+"\n"), 0o644))
}

func (f *Fixture) startService(tb testing.TB) {
	tb.Helper()
	args, env := f.command()
	f.service = f.start(tb, "rauc.log", env, args[0], args[1:]...)

	conn, err := dbus.Connect(f.Address)
	check(tb, err)
	defer conn.Close()
	f.await(tb, "RAUC service", func() bool {
		f.service.check(tb)
		var owned bool
		err := conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, "de.pengutronix.rauc").Store(&owned)
		return err == nil && owned
	})
}

// StopService ends the service as systemd would.
func (f *Fixture) StopService(tb testing.TB) {
	tb.Helper()
	f.service.stop(syscall.SIGTERM)
}

// KillService ends the service without a chance to clean up (SIGKILL).
func (f *Fixture) KillService(tb testing.TB) {
	tb.Helper()
	f.service.stop(syscall.SIGKILL)
}

// Signal sends the service a signal, such as SIGSTOP to make it hang.
func (f *Fixture) Signal(tb testing.TB, sig syscall.Signal) {
	tb.Helper()
	check(tb, f.service.cmd.Process.Signal(sig))
}

// RestartService ends the service if it runs, and starts it.
func (f *Fixture) RestartService(tb testing.TB) {
	tb.Helper()
	f.service.stop(syscall.SIGTERM)
	f.unmountBundles()
	f.startService(tb)
}

// SimulateReboot starts the service as if the machine had been booted from the slot with this boot name. What the
// boot loader itself would write, such as a counter, is left to the caller.
func (f *Fixture) SimulateReboot(tb testing.TB, bootname string) {
	tb.Helper()
	f.boot = bootname
	f.RestartService(tb)
}

// Log returns what the service has logged so far.
func (f *Fixture) Log() string {
	data, _ := os.ReadFile(f.path("rauc.log"))
	return string(data)
}

func (f *Fixture) cleanup(tb testing.TB) {
	if tb.Failed() {
		tb.Logf("log of the RAUC service:\n%s", f.Log())
	}
	for _, p := range []Point{BeforeInstall, DuringInstall, AfterInstall} {
		os.Remove(f.path("hold-" + string(p)))
	}
	f.service.stop(syscall.SIGTERM)
	f.bus.stop(syscall.SIGKILL)
	f.unmountBundles()
	for _, device := range f.devices {
		if strings.HasPrefix(device, "/dev/") {
			run(tb, "losetup", "--detach", device)
		}
	}
	check(tb, os.RemoveAll(f.Dir))
}

// unmountBundles removes what killed services left behind: each one a bundle, stacked on the same directory.
func (f *Fixture) unmountBundles() {
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		switch unix.Unmount(f.path("mnt", "bundle"), 0) {
		case nil:
		case unix.EBUSY: // a killed hook is on its way out
			time.Sleep(5 * time.Millisecond)
		default:
			return
		}
	}
}

func (f *Fixture) await(tb testing.TB, what string, done func() bool) {
	tb.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("%s: not there after 30 s", what)
		}
	}
}

// process is a daemon that dies with the test process.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

func (f *Fixture) start(tb testing.TB, log string, env []string, name string, args ...string) *process {
	tb.Helper()
	out, err := os.OpenFile(f.path(log), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	check(tb, err)
	defer out.Close()
	p := &process{cmd: exec.Command(name, args...), log: out.Name(), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The signal is sent when the thread ends which started the process, so it has to stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.cmd.Wait()
		}
	}()
	check(tb, <-started)
	return p
}

// check fails the test when the process has ended.
func (p *process) check(tb testing.TB) {
	tb.Helper()
	select {
	case <-p.done:
		data, _ := os.ReadFile(p.log)
		tb.Fatalf("%s ended early: %s\n%s", p.cmd.Args[0], p.cmd.ProcessState, data)
	default:
	}
}

// stop sends a signal and waits; SIGKILL follows after 10 s. Hooks and handlers go down with their service, as
// they do under systemd. A nil process has never been started.
func (p *process) stop(sig syscall.Signal) {
	if p == nil {
		return
	}
	group := -p.cmd.Process.Pid
	select {
	case <-p.done:
		return
	default:
		syscall.Kill(group, sig)
	}
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
	}
	syscall.Kill(group, syscall.SIGKILL)
	<-p.done
}

func run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, out, stderr.Bytes())
	}
	return string(out)
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
