// SPDX-License-Identifier: Apache-2.0

package vehicle

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"sdvbox/platform/mqttbus"
	"sdvbox/testing/ports"
)

// Machine describes a QEMU machine.
type Machine struct {
	Disk     string   // raw image, written to
	Log      string   // file for everything on the first serial port, appended to; default: Disk + ".log"
	Memory   int      // MiB, default 1024
	CPUs     int      // default 1: more are no faster under TCG, and QEMU 7.2 now and then trips over code patched by another CPU
	Watchdog bool     // with a hardware watchdog, an i6300esb
	WriteLog string   // record all writes to the disk in this file, in the format of dm-log-writes
	Append   bool     // continue WriteLog
	Keep     bool     // outlives this process
	Args     []string // more arguments for QEMU
}

// VM is a running machine. All methods that wait end with the context; their errors end with the tail of the serial log.
type VM struct {
	Machine
	Started time.Time

	cmd     *exec.Cmd
	stderr  bytes.Buffer
	exited  chan struct{}
	exitErr error
	ports   []int // of the host: serial, shell, ssh, MQTT without and with TLS
	serial  *port
	shell   *port
	synced  bool
	seq     int
}

// firmware are the places where distributions keep OVMF.
var firmware = []string{"/usr/share/ovmf/OVMF.fd", "/usr/share/qemu/OVMF.fd", "/usr/share/OVMF/OVMF.fd"}

// Start starts a machine. It does not wait for the guest.
func Start(ctx context.Context, m Machine) (*VM, error) {
	if m.Memory == 0 {
		m.Memory = 1024
	}
	if m.CPUs == 0 {
		m.CPUs = 1
	}
	if m.Log == "" {
		m.Log = m.Disk + ".log"
	}
	v := &VM{Machine: m, Started: time.Now(), exited: make(chan struct{})}
	var err error
	if v.ports, err = ports.Free("127.0.0.1", 5); err != nil {
		return nil, err
	}
	args, err := v.args()
	if err != nil {
		return nil, err
	}
	v.cmd = exec.Command("qemu-system-x86_64", args...)
	v.cmd.Stderr = &v.stderr
	if m.Keep {
		v.cmd.Stderr = nil
		v.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	} else {
		// A test that is killed must not leave machines behind.
		v.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	}
	started := make(chan error)
	go func() {
		// Pdeathsig means the thread that started the process: keep it.
		runtime.LockOSThread()
		err := v.cmd.Start()
		started <- err
		if err == nil {
			v.exitErr = v.cmd.Wait()
			close(v.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	log, err := os.OpenFile(m.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err == nil {
		// QEMU waits with the first instruction until both serial ports are connected.
		if v.serial, err = v.connect(ctx, v.ports[0], log); err == nil {
			v.shell, err = v.connect(ctx, v.ports[1], nil)
		}
	}
	if err != nil {
		v.Kill()
		return nil, fmt.Errorf("start QEMU: %w\n%s", err, v.stderr.String())
	}
	return v, nil
}

func (v *VM) args() ([]string, error) {
	var ovmf string
	for _, f := range firmware {
		if exists(f) {
			ovmf = f
			break
		}
	}
	if ovmf == "" {
		return nil, errors.New("no OVMF firmware: install the package ovmf")
	}
	args := []string{"-name", filepath.Base(v.Disk), "-machine", "q35", "-smp", strconv.Itoa(v.CPUs), "-m", strconv.Itoa(v.Memory)}
	if kvm() {
		args = append(args, "-accel", "kvm", "-cpu", "host")
	} else {
		// A large translation buffer makes resets slow. After cmpxchg16b QEMU 7.2 sometimes leaves garbage in the flags, and
		// Linux 6.12 dies of it with a double fault in kmalloc; without it the kernel goes another way.
		args = append(args, "-accel", "tcg,thread=multi,tb-size=128", "-cpu", "max,cx16=off")
	}
	args = append(args, "-display", "none", "-nodefaults", "-no-user-config", "-no-reboot", "-bios", ovmf)
	for i, name := range []string{"serial", "shell"} {
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=%s,host=127.0.0.1,port=%d,server=on,wait=on", name, v.ports[i]),
			"-serial", "chardev:"+name)
	}
	// A killed QEMU loses nothing that the host has in its page cache, so a guest's flush need not reach the disk.
	args = append(args, "-blockdev", "driver=file,node-name=f0,filename="+v.Disk+",cache.no-flush=on,discard=unmap")
	if v.WriteLog == "" {
		args = append(args, "-blockdev", "driver=raw,node-name=d0,file=f0")
	} else {
		how := ",log-append=on"
		if !v.Append {
			if err := os.WriteFile(v.WriteLog, nil, 0o644); err != nil {
				return nil, err
			}
			how = ",log-sector-size=512"
		}
		args = append(args,
			"-blockdev", "driver=file,node-name=l0,filename="+v.WriteLog+",cache.no-flush=on",
			"-blockdev", "driver=blklogwrites,node-name=d0,file=f0,log=l0"+how)
	}
	args = append(args, "-device", "nvme,drive=d0,serial=sdvbox,bootindex=0",
		"-netdev", fmt.Sprintf("user,id=n0,hostfwd=tcp:127.0.0.1:%d-:22,hostfwd=tcp:127.0.0.1:%d-:1883,hostfwd=tcp:127.0.0.1:%d-:8883",
			v.ports[2], v.ports[3], v.ports[4]),
		"-device", "virtio-net-pci,netdev=n0,romfile=", "-device", "virtio-rng-pci")
	if v.Watchdog {
		args = append(args, "-device", "i6300esb", "-action", "watchdog=reset")
	}
	return append(args, v.Args...), nil
}

// PID returns the process of QEMU.
func (v *VM) PID() int { return v.cmd.Process.Pid }

// Addresses on the host: MQTT is that of the guest's broker for everybody, which only a lean vehicle has, MQTTS that for those
// with a certificate (see [VM.Bus]), SSH that of its secure shell, and Serial that of the serial port for people once [VM.Detach]
// has freed it.
func (v *VM) MQTT() string   { return loopback(v.ports[3]) }
func (v *VM) MQTTS() string  { return loopback(v.ports[4]) }
func (v *VM) SSH() string    { return loopback(v.ports[2]) }
func (v *VM) Serial() string { return loopback(v.ports[0]) }

// Bus returns what a user of the vehicle's broker needs to get in. The files are next to the disk.
func (v *VM) Bus(ctx context.Context, user string) (mqttbus.Config, error) {
	ca, own := v.Disk+".ca.crt", v.Disk+"."+user+".pem"
	c := mqttbus.Config{Broker: "mqtts://" + v.MQTTS(), CAFile: ca, CertFile: own, KeyFile: own}
	for file, command := range map[string]string{
		ca:  "cat /data/sdvbox/mqtt/ca.crt",
		own: fmt.Sprintf("/usr/lib/sdvbox/broker-setup client %[1]s && cat /data/sdvbox/mqtt/%[1]s.crt /data/sdvbox/mqtt/%[1]s.key", user),
	} {
		pem, err := v.Run(ctx, command)
		if err != nil {
			return c, err
		}
		if err := os.WriteFile(file, []byte(pem), 0o600); err != nil {
			return c, err
		}
	}
	return c, nil
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Output returns what the guest has written to its first serial port: firmware, GRUB, kernel and /dev/console.
func (v *VM) Output() string { return v.serial.text() }

// Type sends keys to the first serial port.
func (v *VM) Type(keys string) error {
	_, err := io.WriteString(v.serial.conn, keys)
	return err
}

// WaitFor waits until the serial output of this boot matches the regular expression and returns match and submatches.
func (v *VM) WaitFor(ctx context.Context, pattern string) ([]string, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	m, _, err := v.serial.expect(ctx, re, 0)
	if err != nil {
		return nil, v.failed(fmt.Errorf("wait for %q on the serial port: %w", pattern, err))
	}
	return m, nil
}

// WaitReady waits until the boot is done and returns the version that runs.
func (v *VM) WaitReady(ctx context.Context) (version string, err error) {
	m, err := v.WaitFor(ctx, `VEHICLE-READY version=(\S+)`)
	if err != nil {
		return "", err
	}
	return m[1], nil
}

// ExitError says that a command in the guest ended with another code than 0.
type ExitError struct {
	Command string
	Code    int
	Output  string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit code %d\n%s", e.Command, e.Code, e.Output)
}

// Run runs a shell command in the guest as root, in a subshell without input, and returns what it writes, errors
// included. It waits for the shell, which is there early in the boot, before local file systems are mounted.
func (v *VM) Run(ctx context.Context, command string) (string, error) {
	if !v.synced {
		if err := v.sync(ctx); err != nil {
			return "", v.failed(fmt.Errorf("wait for a shell in the guest: %w", err))
		}
		v.synced = true
	}
	v.seq++
	from := v.shell.size()
	// Encoded, a command cannot disturb the shell that reads it.
	_, err := fmt.Fprintf(v.shell.conn, "(eval \"$(echo %s|base64 -d)\") </dev/null 2>&1; printf '\\n%%s-%d=%%d=\\n' DONE $?\n",
		base64.StdEncoding.EncodeToString([]byte(command)), v.seq)
	if err != nil {
		return "", v.failed(fmt.Errorf("%s: %w", command, err))
	}
	re := regexp.MustCompile(fmt.Sprintf(`\n?DONE-%d=(\d+)=\r?\n`, v.seq))
	m, end, err := v.shell.expect(ctx, re, from)
	if err != nil {
		v.synced = false
		return "", v.failed(fmt.Errorf("%s: %w; so far: %s", command, err, tail(v.shell.text()[from:], 5)))
	}
	out := strings.ReplaceAll(v.shell.text()[from:end-len(m[0])], "\r\n", "\n")
	if code, _ := strconv.Atoi(m[1]); code != 0 {
		return out, &ExitError{Command: command, Code: code, Output: out}
	}
	return out, nil
}

// sync asks until a shell answers.
func (v *VM) sync(ctx context.Context) error {
	for {
		v.seq++
		if _, err := fmt.Fprintf(v.shell.conn, "\nprintf '%%s-%d=0=\\n' SYNC\n", v.seq); err != nil {
			return err
		}
		again, cancel := context.WithTimeout(ctx, time.Second)
		_, _, err := v.shell.expect(again, regexp.MustCompile(fmt.Sprintf(`SYNC-%d=0=`, v.seq)), 0)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
}

// Kill cuts the power.
func (v *VM) Kill() {
	v.cmd.Process.Kill()
	<-v.exited
	v.Detach()
}

// Wait waits until the guest has switched itself off or, as there are no warm reboots, reset.
func (v *VM) Wait(ctx context.Context) error {
	select {
	case <-v.exited:
		v.Detach()
		if v.exitErr != nil {
			return v.failed(fmt.Errorf("QEMU: %w", v.exitErr))
		}
		return nil
	case <-ctx.Done():
		return v.failed(fmt.Errorf("wait for the end of the machine: %w", ctx.Err()))
	}
}

// Next waits for the end of this machine and starts it again: the second half of a reboot that the guest does itself.
func (v *VM) Next(ctx context.Context) (*VM, error) {
	if err := v.Wait(ctx); err != nil {
		return nil, err
	}
	m := v.Machine
	m.Append = m.WriteLog != ""
	return Start(ctx, m)
}

// Reboot shuts the guest down in good order and starts it again.
func (v *VM) Reboot(ctx context.Context) (*VM, error) {
	// By way of the target, as there is no logind to ask. The machine may be gone before the shell answers.
	_, err := v.Run(ctx, "systemctl start --no-block --job-mode=replace-irreversibly reboot.target")
	if err != nil {
		gone, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if v.Wait(gone) != nil {
			return nil, err
		}
	}
	return v.Next(ctx)
}

// Detach lets go of the serial ports; with [Machine.Keep] the machine goes on.
func (v *VM) Detach() {
	for _, p := range []*port{v.serial, v.shell} {
		if p != nil {
			p.conn.Close()
		}
	}
}

func (v *VM) failed(err error) error {
	select {
	case <-v.exited:
		err = fmt.Errorf("%w\n%s", err, v.stderr.String())
	default:
	}
	return fmt.Errorf("%w\n--- serial log %s ends:\n%s\n---", err, v.Log, tail(waiting.ReplaceAllString(v.Output(), ""), 25))
}

// waiting matches the animation of systemd while it waits for a job.
var waiting = regexp.MustCompile(`(?m)^.*\] (?:\(\d+ of \d+\) )?(?:A \w+ job is|Job \S+) running.*\n?`)

// port is the host's end of a serial port.
type port struct {
	conn net.Conn
	mu   sync.Mutex
	buf  []byte
	more chan struct{} // closed and replaced when buf grows
	done bool
}

func (v *VM) connect(ctx context.Context, number int, log *os.File) (*port, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", loopback(number))
		if err == nil {
			p := &port{conn: conn, more: make(chan struct{})}
			go p.read(log)
			return p, nil
		}
		select {
		case <-v.exited:
			return nil, errors.New("it ended at once")
		case <-ctx.Done():
			return nil, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (p *port) read(log *os.File) {
	if log != nil {
		defer log.Close()
	}
	chunk := make([]byte, 16<<10)
	for {
		n, err := p.conn.Read(chunk)
		if log != nil {
			log.Write(chunk[:n])
		}
		p.mu.Lock()
		p.buf = append(p.buf, chunk[:n]...)
		p.done = err != nil
		close(p.more)
		p.more = make(chan struct{})
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (p *port) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.buf)
}

func (p *port) size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.buf)
}

// expect waits for re in what came after the first from bytes and returns the match with its end.
func (p *port) expect(ctx context.Context, re *regexp.Regexp, from int) ([]string, int, error) {
	for {
		p.mu.Lock()
		loc := re.FindSubmatchIndex(p.buf[from:])
		var m []string
		if loc != nil {
			for i := 0; i < len(loc); i += 2 {
				if loc[i] < 0 {
					m = append(m, "")
				} else {
					m = append(m, string(p.buf[from+loc[i]:from+loc[i+1]]))
				}
			}
		}
		more, done := p.more, p.done
		p.mu.Unlock()
		switch {
		case m != nil:
			return m, from + loc[1], nil
		case done:
			return nil, 0, errors.New("the machine ended")
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// kvm reports whether KVM works, and quickly: there are machines whose /dev/kvm exists and hangs or crawls. The proof is a
// boot sector that does nothing but switch its machine off.
var kvm = sync.OnceValue(func() bool {
	switch os.Getenv("SDVBOX_ACCEL") {
	case "kvm":
		return true
	case "tcg":
		return false
	}
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	dev.Close()
	// mov dx, 0xf4; mov al, 16; out dx, al; hlt
	sector := make([]byte, 512)
	copy(sector, []byte{0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4})
	copy(sector[510:], []byte{0x55, 0xaa})
	f, err := os.CreateTemp("", "kvm")
	if err != nil {
		return false
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(sector); err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
	defer cancel()
	err = exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "kvm", "-machine", "pc", "-m", "16", "-nodefaults",
		"-display", "none", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
		"-drive", "if=ide,format=raw,file="+f.Name()).Run()
	var exit *exec.ExitError
	// The device turns 16 into 16*2+1.
	return errors.As(err, &exit) && exit.ExitCode() == 33
})
