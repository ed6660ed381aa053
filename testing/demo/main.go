// SPDX-License-Identifier: Apache-2.0

// Command demo runs the main job before your eyes: a virtual vehicle starts
// version 1 of its operating system on slot A, is sent one message that asks for
// version 2 and for a container, installs the one on slot B through RAUC and
// pulls the other, reboots, proves its health and says so.
//
// It needs root, to build the vehicle's images, and the packages that "make
// demo" installs. With KEEP=1 the vehicle is left running.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sdvbox/testing/ctragent"
	"sdvbox/testing/ota"
	"sdvbox/testing/vehicle"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	d := &demo{show: newShow(os.Stdout), keep: os.Getenv("KEEP") == "1"}
	err := d.run(ctx)
	if err != nil || !d.keep {
		if d.vm != nil {
			d.vm.Kill()
		}
		os.RemoveAll(d.dir)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

type demo struct {
	*show
	keep bool
	dir  string // of this run: an earlier vehicle may still be running
	key  string // opens the vehicle to ssh
	vm   *vehicle.VM
	bus  *ota.Driver

	heard string // the last line of feedback
}

const (
	activity = "demo"
	list     = "kanto-cm list | tr -s ' -'" // a table of many columns
)

func (d *demo) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	var disk, bundle string
	var hello *ctragent.Image
	err := d.step("Build", "the vehicle's disk with version 1, a signed bundle of version 2, and the image of a container", func(note func(string)) error {
		b, err := vehicle.NewBuilder()
		if err != nil {
			return err
		}
		b.Logf = func(format string, args ...any) { note(fmt.Sprintf(format, args...)) }
		keys, err := b.Keys()
		if err != nil {
			return err
		}
		d.key = keys.SSHPrivate
		if d.dir, err = os.MkdirTemp(b.Cache, "demo-"); err != nil {
			return err
		}
		if hello, err = b.Hello(ctx, "latest"); err != nil {
			return err
		}
		disk, bundle, err = build(ctx, b, d.dir)
		return err
	})
	if err != nil {
		return err
	}
	host, err := serve(bundle, hello)
	if err != nil {
		return err
	}

	err = d.step("Start", "the vehicle in QEMU: firmware, GRUB, Linux, systemd, mosquitto, RAUC, containerd, sdvbox", func(note func(string)) error {
		d.vm, err = vehicle.Start(ctx, vehicle.Machine{Disk: disk, Keep: d.keep})
		if err != nil {
			return err
		}
		if err := d.ready(ctx, "1"); err != nil {
			return err
		}
		return d.confirmed(ctx, "SDV_A", note)
	})
	if err != nil {
		return err
	}
	if err := d.ask(ctx, "rauc-helper status", list); err != nil {
		return err
	}

	message := fmt.Sprintf(combined, "http://"+host+"/"+filepath.Base(bundle), host)
	if err := d.update(ctx, message); err != nil {
		return err
	}
	if err := d.ask(ctx, "rauc-helper status", list, "kanto-cm logs -n hello-world", "update-manager history"); err != nil {
		return err
	}
	d.summary()
	if d.keep {
		return d.howTo(ctx)
	}
	return nil
}

// build makes what is needed; the disk is a copy in dir that this run may change.
func build(ctx context.Context, b *vehicle.Builder, dir string) (disk, bundle string, err error) {
	images := map[string]string{}
	hurry := vehicle.File{Data: "# SPDX-License-Identifier: Apache-2.0\n[Service]\nEnvironment=REBOOT_AFTER=2s REPORT_FEEDBACK_INTERVAL=1s\n"}
	for _, v := range []string{"1", "2"} {
		files := map[string]vehicle.File{"etc/systemd/system/update-manager.service.d/hurry.conf": hurry}
		if images[v], err = b.Image(ctx, vehicle.Image{Version: v, Files: files}); err != nil {
			return "", "", err
		}
	}
	if bundle, err = b.Bundle(ctx, vehicle.Bundle{Image: images["2"], Version: "2"}); err != nil {
		return "", "", err
	}
	base, err := b.Disk(ctx, vehicle.Disk{A: images["1"]})
	if err != nil {
		return "", "", err
	}
	disk = filepath.Join(dir, "disk.img")
	return disk, bundle, vehicle.CopyDisk(disk, base)
}

// combined is the message, as in the documentation of Eclipse Leda: an image of the system, and one of a container.
const combined = `{"activityId":"` + activity + `","timestamp":0,"payload":{"domains":[
  {"id":"self-update","components":[{"id":"os-image","version":"2","config":[{"key":"image","value":"%s"}]}]},
  {"id":"containers","config":[],"components":[{"id":"hello-world","version":"latest","config":[
    {"key":"image","value":"%s/library/hello-world:latest"},{"key":"env","value":"FOO=BAR"}]}]}]}}`

// serve offers the bundle and the image to the vehicle. It returns where.
func serve(bundle string, image *ctragent.Image) (host string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	files := http.NewServeMux()
	files.Handle("/v2/", ctragent.NewRegistry(image))
	files.HandleFunc("/"+filepath.Base(bundle), func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, bundle) })
	go http.Serve(l, files)
	_, port, err := net.SplitHostPort(l.Addr().String())
	return net.JoinHostPort(vehicle.Host, port), err
}

// ready waits until the vehicle has started the version, and connects to its broker.
func (d *demo) ready(ctx context.Context, version string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if got, err := d.vm.WaitReady(ctx); err != nil {
		return err
	} else if got != version {
		return fmt.Errorf("version %s was started, expected %s", got, version)
	}
	login, err := d.vm.Bus(ctx, "backend")
	if err != nil {
		return err
	}
	if d.bus != nil {
		return d.bus.Again(ctx, login)
	}
	if d.bus, err = ota.Dial(ctx, "vehicle", login); err != nil {
		return err
	}
	d.bus.OnFeedback = func(f ota.Feedback) {
		if f.ActivityID == activity {
			d.feedback(f)
		}
	}
	return nil
}

// update publishes one message, and then looks on until the vehicle says how it has ended.
func (d *demo) update(ctx context.Context, message string) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	err := d.step("Update", "to version 2 and a container, by one message on vehicleupdate/desiredstate", func(note func(string)) error {
		if err := d.request(ctx, message); err != nil {
			return err
		}
		// The vehicle reboots when it is ready to, and not before.
		working, rebooted := context.WithCancel(ctx)
		defer rebooted()
		go func() {
			d.vm.Wait(ctx)
			rebooted()
		}()
		f, err := d.bus.Await(working, activity, terminal()...)
		switch {
		case err == nil:
			return fmt.Errorf("%s before the reboot: %s", f.Status, f.Message)
		case working.Err() == nil || ctx.Err() != nil:
			return err
		}
		note("the vehicle reboots")
		return nil
	})
	if err != nil {
		return err
	}
	err = d.step("Reboot", "into slot B", func(func(string)) error {
		vm, err := d.vm.Next(ctx)
		if err != nil {
			return err
		}
		d.vm = vm
		return d.ready(ctx, "2")
	})
	if err != nil {
		return err
	}
	return d.step("Confirm", "slot B after its health is proven, and then the update", func(note func(string)) error {
		if err := d.confirmed(ctx, "SDV_B", note); err != nil {
			return err
		}
		f, err := d.bus.Await(ctx, activity, terminal()...)
		if err == nil && f.Status != "COMPLETED" {
			err = fmt.Errorf("%s: %s", f.Status, f.Message)
		}
		note(f.Status)
		return err
	})
}

// request publishes the message again until the update manager answers: it may not listen yet. The same activity twice is one.
func (d *demo) request(ctx context.Context, message string) error {
	for {
		if err := d.bus.Send(ctx, []byte(message)); err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := d.bus.Await(wait, activity, "IDENTIFYING")
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

func terminal() []string { return []string{"COMPLETED", "INCOMPLETE", "IDENTIFICATION_FAILED"} }

// feedback shows what the vehicle says: a line for each thing that is new, a bar for progress.
func (d *demo) feedback(f ota.Feedback) {
	line := f.Status
	for _, a := range f.Actions {
		line += fmt.Sprintf("  %s %s %s", a.Component.ID, a.Component.Version, a.Status)
	}
	if line != d.heard {
		d.heard = line
		d.said(line)
	}
	d.bar(f.Progress(), f.Detail())
}

// confirmed waits until the slot that runs is no longer on trial.
func (d *demo) confirmed(ctx context.Context, slot string, note func(string)) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		out, err := d.vm.Run(ctx, "rauc-helper env get SDV_GOOD")
		if err == nil && strings.TrimSpace(out) == slot {
			note(slot + " is confirmed")
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s is not confirmed: %w", slot, ctx.Err()), err)
		case <-time.After(time.Second):
		}
	}
}

// ask shows what commands in the vehicle say; their exit codes do not matter.
func (d *demo) ask(ctx context.Context, commands ...string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, command := range commands {
		out, err := d.vm.Run(ctx, command)
		if exit := (*vehicle.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			return err
		}
		d.guest(command, out)
	}
	fmt.Fprintln(d.out)
	return nil
}

func (d *demo) howTo(ctx context.Context) error {
	login, err := d.vm.Bus(ctx, "technician")
	if err != nil {
		return err
	}
	mqttHost, mqttPort, _ := net.SplitHostPort(d.vm.MQTTS())
	sshHost, sshPort, _ := net.SplitHostPort(d.vm.SSH())
	serialHost, serialPort, _ := net.SplitHostPort(d.vm.Serial())
	pid := d.vm.PID()
	d.vm.Detach()
	sudo := "" // what root has started and made belongs to root
	if os.Getenv("SUDO_USER") != "" {
		sudo = "sudo "
	}
	fmt.Fprintf(d.out, `
The vehicle goes on running (QEMU is process %d; end it with: %skill %d).
  MQTT     %smosquitto_sub -h %s -p %s --cafile %s --cert %s --key %s -v -t 'vehicleupdate/#'
  Shell    %sssh -i %s -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -p %s root@%s
  Serial   socat -,raw,echo=0 tcp:%s:%s
  Disk     %s
`, pid, sudo, pid, sudo, mqttHost, mqttPort, login.CAFile, login.CertFile, login.KeyFile, sudo, d.key, sshPort, sshHost, serialHost, serialPort, d.vm.Disk)
	return nil
}
