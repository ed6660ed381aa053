// SPDX-License-Identifier: Apache-2.0

// Command demo runs the main job before your eyes: a virtual vehicle starts
// version 1 of its operating system on slot A, is sent version 2 over MQTT,
// installs it on slot B through RAUC, reboots into it, proves its health and
// says so.
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
}

const activity = "demo"

func (d *demo) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	var disk, bundle string
	err := d.step("Build", "the vehicle's disk with version 1, and a signed bundle of version 2", func(note func(string)) error {
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
		disk, bundle, err = build(ctx, b, d.dir)
		return err
	})
	if err != nil {
		return err
	}
	url, err := serve(bundle)
	if err != nil {
		return err
	}

	err = d.step("Start", "the vehicle in QEMU: firmware, GRUB, Linux, systemd, mosquitto, RAUC, sdvbox", func(note func(string)) error {
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
	if err := d.status(ctx); err != nil {
		return err
	}

	if err := d.update(ctx, url); err != nil {
		return err
	}
	if err := d.status(ctx); err != nil {
		return err
	}
	d.summary()
	if d.keep {
		d.howTo()
	}
	return nil
}

// build makes what is needed; the disk is a copy in dir that this run may change.
func build(ctx context.Context, b *vehicle.Builder, dir string) (disk, bundle string, err error) {
	images := map[string]string{}
	for _, v := range []string{"1", "2"} {
		if images[v], err = b.Image(ctx, vehicle.Image{Version: v}); err != nil {
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

// serve offers the bundle to the vehicle, which sees this machine's loopback
// interface as 10.0.2.2.
func serve(bundle string) (url string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, bundle) }))
	_, port, err := net.SplitHostPort(l.Addr().String())
	return "http://10.0.2.2:" + port + "/" + filepath.Base(bundle), err
}

// ready waits until the vehicle has started the version and its agent answers.
func (d *demo) ready(ctx context.Context, version string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if got, err := d.vm.WaitReady(ctx); err != nil {
		return err
	} else if got != version {
		return fmt.Errorf("version %s was started, expected %s", got, version)
	}
	if d.bus != nil {
		d.bus.Close()
	}
	var err error
	if d.bus, err = ota.Dial(ctx, "tcp://"+d.vm.MQTT()); err != nil {
		return err
	}
	if got, err := d.bus.Version(ctx); err != nil || got != version {
		return fmt.Errorf("the agent reports version %q, expected %q: %w", got, version, err)
	}
	return nil
}

// update is what an update manager does.
func (d *demo) update(ctx context.Context, url string) error {
	phase := func(title, text, command string) error {
		return d.step(title, text, func(note func(string)) error {
			d.bus.OnFeedback = func(f ota.Feedback) {
				if f.ActivityID == activity {
					d.bar(f.Progress(), f.Detail())
				}
			}
			ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
			defer cancel()
			var f ota.Feedback
			var err error
			if command == "" {
				if err = d.bus.Request(ctx, activity, "2", url); err == nil {
					f, err = d.bus.Await(ctx, activity, "IDENTIFIED", "IDENTIFICATION_FAILED")
				}
			} else {
				f, err = d.bus.Step(ctx, activity, command)
			}
			if err == nil && f.Failed() {
				err = fmt.Errorf("%s: %s", f.Status, f.Detail())
			}
			note(f.Status)
			return err
		})
	}
	if err := phase("Request", "version 2 as desired state on selfupdate/desiredstate", ""); err != nil {
		return err
	}
	if err := phase("Download", "the bundle", "DOWNLOAD"); err != nil {
		return err
	}
	if err := phase("Update", "slot B through RAUC", "UPDATE"); err != nil {
		return err
	}
	if err := phase("Activate", "slot B for the next boot", "ACTIVATE"); err != nil {
		return err
	}
	err := d.step("Reboot", "into slot B", func(func(string)) error {
		vm, err := d.vm.Reboot(ctx)
		if err != nil {
			return err
		}
		d.vm = vm
		return d.ready(ctx, "2")
	})
	if err != nil {
		return err
	}
	err = d.step("Confirm", "slot B after its health is proven", func(note func(string)) error {
		return d.confirmed(ctx, "SDV_B", note)
	})
	if err != nil {
		return err
	}
	return phase("Clean up", "and hear how the update has ended", "CLEANUP")
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

func (d *demo) status(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := d.vm.Run(ctx, "rauc-helper status")
	if exit := (*vehicle.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return err
	}
	d.guest("rauc-helper status", out)
	return nil
}

func (d *demo) howTo() {
	mqtt, ssh := d.vm.MQTT(), d.vm.SSH()
	mqttHost, mqttPort, _ := net.SplitHostPort(mqtt)
	sshHost, sshPort, _ := net.SplitHostPort(ssh)
	serialHost, serialPort, _ := net.SplitHostPort(d.vm.Serial())
	pid := d.vm.PID()
	d.vm.Detach()
	sudo := "" // what root has started and made belongs to root
	if os.Getenv("SUDO_USER") != "" {
		sudo = "sudo "
	}
	fmt.Fprintf(d.out, `
The vehicle goes on running (QEMU is process %d; end it with: %skill %d).
  MQTT     mosquitto_sub -h %s -p %s -v -t 'selfupdate/#'
  Shell    %s
  Serial   %s
  Disk     %s
`, pid, sudo, pid, mqttHost, mqttPort, sudo+fmt.Sprintf("ssh -i %s -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -p %s root@%s", d.key, sshPort, sshHost), fmt.Sprintf("socat -,raw,echo=0 tcp:%s:%s", serialHost, serialPort), d.vm.Disk)
}
