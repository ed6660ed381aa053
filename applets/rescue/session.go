// SPDX-License-Identifier: Apache-2.0

package rescue

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/u-root/u-root/pkg/watchdog"
	"golang.org/x/sys/unix"

	"sdvbox/platform/applet"
)

//go:embed files
var files embed.FS

const (
	busSocket = "/run/dbus/system_bus_socket"
	raucLog   = runDir + "/rauc.log"
)

// runSession brings the rescue system up and keeps it up. No step that fails
// stops the next one: whatever is left may be what helps. It may be started
// again at any time.
func runSession(ctx context.Context, c *applet.Call) error {
	if os.Getppid() != 1 {
		return errors.New("only the init of the rescue system starts this")
	}
	s := &session{log: c.Stdout, reported: make(chan struct{})}
	s.try("prepare", os.MkdirAll(runDir, 0o755))
	// Kernel messages below an error would bury what people type.
	s.try("prepare", os.WriteFile("/proc/sys/kernel/printk", []byte("4\n"), 0o644))
	go s.feedWatchdog(ctx)
	// BusyBox makes its links itself; those that exist are not overwritten.
	exec.CommandContext(ctx, "/usr/bin/busybox", "--install", "-s").Run()
	// The consoles come first: whatever hangs then is there to be looked at.
	for _, tty := range consoles() {
		go s.console(ctx, tty)
	}
	s.try("load modules", loadModules(ctx))
	s.try("disks", waitDisks(ctx, 15*time.Second))
	for _, v := range []volume{grubenvVolume(), dataVolume()} {
		_, err := within(attachLimit, func() (struct{}, error) { return struct{}{}, v.attach(ctx) })
		s.try("mount "+v.dir, err)
	}
	s.try("network", s.network(ctx))
	s.try("message bus", s.bus(ctx))
	s.awaitAddress(ctx, 5*time.Second)

	restart, err := autoRepair(ctx, bootReason())
	s.try("repair the boot environment", err)
	if restart {
		s.say("the boot environment was unreadable and is repaired; booting again")
		return unix.Kill(1, unix.SIGTERM)
	}
	s.greeting, err = s.report(ctx)
	s.try("report", err)
	close(s.reported)
	s.retryLater(ctx)
	<-ctx.Done()
	return nil
}

type session struct {
	log      io.Writer
	greeting []byte        // what the consoles show
	reported chan struct{} // closed when there is greeting
}

// patience is how long a console waits for the report before it has a shell.
const patience = 20 * time.Second

// greet shows the report if it is there in time.
func (s *session) greet(tty io.Writer, limit time.Duration) (bool, error) {
	select {
	case <-s.reported:
		_, err := tty.Write(s.greeting)
		return true, err
	case <-time.After(limit):
		_, err := fmt.Fprintln(tty, "\nrescue: still looking at disks and network, which may hang; the report follows")
		return false, err
	}
}

func (s *session) say(format string, args ...any) {
	fmt.Fprintf(s.log, "rescue: "+format+"\n", args...)
}

func (s *session) try(what string, err error) {
	if err != nil {
		s.say("%s: %v", what, err)
	}
}

// command runs a program; an error carries what it said.
func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// loadModules loads what /etc/modules names. A module that finds no hardware
// fails, so only a missing list is an error.
func loadModules(ctx context.Context) error {
	data, err := os.ReadFile("/etc/modules")
	if errors.Is(err, os.ErrNotExist) {
		return nil // everything is built in
	}
	for name := range strings.FieldsSeq(string(data)) {
		exec.CommandContext(ctx, "modprobe", "-q", name).Run()
	}
	return err
}

// run runs a program that dies with this process, whose successor starts its
// own.
func run(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	// The signal is sent at the death of the thread that started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// keep calls f again whenever it ends.
func (s *session) keep(ctx context.Context, name string, f func() error) {
	for {
		err := f()
		if ctx.Err() != nil {
			return
		}
		s.try(name, err)
		time.Sleep(time.Second)
	}
}

// network brings up loopback and runs a DHCP client for every interface, also
// for those that appear later. IPv6 addresses are the kernel's work.
func (s *session) network(ctx context.Context) error {
	script := filepath.Join(runDir, "udhcpc.sh")
	if err := extract("udhcpc.sh", script, 0o755); err != nil {
		return err
	}
	err := command(ctx, "ip", "link", "set", "lo", "up")
	served := map[string]bool{}
	serve := func() {
		for _, i := range interfaces() {
			if served[i.Name] {
				continue
			}
			served[i.Name] = true
			// Without its link up an interface gets no IPv6 address, either.
			s.try("network", command(ctx, "ip", "link", "set", i.Name, "up"))
			go s.keep(ctx, "udhcpc "+i.Name, func() error {
				return run(exec.CommandContext(ctx, "udhcpc", "-f", "-i", i.Name, "-s", script, "-T", "2", "-t", "5", "-A", "5"))
			})
		}
	}
	serve()
	go func() {
		for ctx.Err() == nil {
			time.Sleep(3 * time.Second)
			serve()
		}
	}()
	return err
}

// awaitAddress gives the network a moment, so that the first report is right.
func (s *session) awaitAddress(ctx context.Context, limit time.Duration) {
	for end := time.Now().Add(limit); ctx.Err() == nil && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if list := interfaces(); len(list) == 0 || connected(list) {
			return
		}
	}
}

// bus runs the message bus, which runs RAUC on demand, and waits for it.
func (s *session) bus(ctx context.Context) error {
	conf := filepath.Join(runDir, "bus.conf")
	err := errors.Join(
		os.MkdirAll(filepath.Dir(busSocket), 0o755),
		os.MkdirAll(filepath.Join(runDir, "services"), 0o755),
		extract("bus.conf", conf, 0o644),
		extract("rauc.service", filepath.Join(runDir, "services/de.pengutronix.rauc.service"), 0o644),
	)
	if err != nil {
		return err
	}
	go s.keep(ctx, "dbus-daemon", func() error {
		os.Remove(busSocket)
		return run(exec.CommandContext(ctx, "dbus-daemon", "--config-file="+conf, "--nofork", "--nopidfile", "--nosyslog"))
	})
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if conn, err := net.Dial("unix", busSocket); err == nil {
			return conn.Close()
		}
	}
	return errors.New("dbus-daemon does not start")
}

// extract writes one of the embedded files.
func extract(name, to string, perm os.FileMode) error {
	data, err := files.ReadFile("files/" + name)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, perm)
}

// consoles lists the terminals for shells: the kernel's consoles, with the
// first virtual terminal standing for the screen, and those that the file
// /etc/rescue/consoles names.
func consoles() []string {
	active, err := os.ReadFile("/sys/class/tty/console/active")
	if err != nil {
		active = []byte("console")
	}
	more, _ := os.ReadFile("/etc/rescue/consoles")
	return ttys(string(active) + " " + string(more))
}

func ttys(names string) []string {
	var list []string
	for name := range strings.FieldsSeq(names) {
		if name == "tty0" {
			name = "tty1"
		}
		if !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// report makes the text that greets on every console.
func (s *session) report(ctx context.Context) ([]byte, error) {
	unlock, err := exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var text bytes.Buffer
	err = gather(ctx).write(&text)
	return text.Bytes(), err
}

// console shows the greeting and runs a root shell on a terminal, for ever.
// Who has this console has the machine, so no password is asked.
func (s *session) console(ctx context.Context, name string) {
	limit, greeted := patience, false
	s.keep(ctx, "shell on "+name, func() error {
		tty, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer tty.Close()
		if !greeted {
			if greeted, err = s.greet(tty, limit); err != nil {
				return err
			}
			limit = 0
		}
		if !greeted {
			ended := make(chan struct{})
			defer close(ended)
			go func() {
				select {
				case <-s.reported:
					tty.Write(s.greeting)
				case <-ended:
				}
			}()
		}
		cmd := exec.CommandContext(ctx, "/bin/sh")
		cmd.Env = append(os.Environ(), `PS1=rescue:\w# `)
		cmd.Dir = "/root"
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		run(cmd) // whatever its last command returned
		return nil
	})
}

// feedWatchdog keeps a hardware watchdog, if there is one, from resetting the
// machine. It is never stopped: it also guards the way to the next boot.
func (s *session) feedWatchdog(ctx context.Context) {
	for ctx.Err() == nil {
		if dog, err := watchdog.Open(watchdog.Dev); err == nil {
			dog.SetTimeout(time.Minute)
			for ctx.Err() == nil && dog.KeepAlive() == nil {
				time.Sleep(5 * time.Second)
			}
			dog.Close()
		}
		time.Sleep(time.Second)
	}
}
