// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"sdvbox/platform/mqttbus"
	"sdvbox/testing/ota"
	"sdvbox/testing/vehicle"
)

// A new vehicle has the old version in slot A; updates go back and forth between that and the new one.
const (
	oldVersion   = "1"
	newVersion   = "2"
	spareVersion = "0" // in the slot that the first update overwrites
)

// bootTime is more than any boot takes, on a busy machine without KVM.
const bootTime = 2 * time.Minute

// lab is what all experiments need: lean vehicles, bundles for them, and a server for the bundles.
type lab struct {
	dir     string // for disks
	builder *vehicle.Builder
	layout  vehicle.Layout
	images  map[string]string // file system images by version
	bundles map[string]string // files by version
	url     string            // of the bundle server, as the vehicle sees it; a file name comes behind it
	logf    func(string, ...any)
	server  *http.Server
}

// newLab builds what the lab needs. It works in dir, by default in the cache.
func newLab(ctx context.Context, dir string, logf func(string, ...any)) (*lab, error) {
	b, err := vehicle.NewBuilder()
	if err != nil {
		return nil, err
	}
	b.Logf = logf
	if dir == "" {
		dir = filepath.Join(b.Cache, "powercut")
	}
	l := &lab{dir: dir, builder: b, images: map[string]string{}, bundles: map[string]string{}, logf: logf}
	for _, v := range []string{oldVersion, newVersion, spareVersion} {
		if l.images[v], err = b.Lean(ctx, v); err != nil {
			return nil, err
		}
		if l.bundles[v], err = b.Bundle(ctx, vehicle.Bundle{Image: l.images[v], Version: v}); err != nil {
			return nil, err
		}
	}
	if l.layout, err = b.Layout(l.spec(nil)); err != nil {
		return nil, err
	}
	return l, l.serve()
}

// spec describes a disk with the old version in slot A and another one in slot B.
func (l *lab) spec(env map[string]string) vehicle.Disk {
	return vehicle.Disk{A: l.images[oldVersion], B: l.images[spareVersion], Env: env, NoRescue: true, Sizes: map[string]int64{
		"root_a": vehicle.LeanSlotSize, "root_b": vehicle.LeanSlotSize, "data": 128 << 20, "rescue": 1 << 20,
	}}
}

// factory returns a disk that has never booted, in the cache.
func (l *lab) factory(ctx context.Context, env map[string]string) (string, error) {
	return l.builder.Disk(ctx, l.spec(env))
}

// serve starts a server that has the bundle of each version as VERSION.raucb.
func (l *lab) serve() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	for v, file := range l.bundles {
		mux.HandleFunc("/"+v+".raucb", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) })
	}
	l.server = &http.Server{Handler: mux}
	go l.server.Serve(listener)
	_, port, err := net.SplitHostPort(listener.Addr().String())
	l.url = "http://10.0.2.2:" + port + "/"
	return err
}

func (l *lab) close() { l.server.Close() }

// bundle returns where the vehicle finds the bundle of a version.
func (l *lab) bundle(version string) string { return l.url + version + ".raucb" }

// machine returns a machine for a lean vehicle. With a second CPU Linux dies in one of thirty boots without KVM: QEMU 7.2 may
// still run the breakpoint of a jump label on one CPU when the other has removed it.
func machine(disk, log string) vehicle.Machine {
	return vehicle.Machine{Disk: disk, Log: log, CPUs: 1}
}

// booted is what a boot has shown on the serial port.
type booted struct {
	slot    string // that GRUB started last
	reason  string // why, by GRUB
	version string // of the system that came up
}

// watch waits until a boot has come to its verdict about itself.
func watch(ctx context.Context, v *vehicle.VM) (booted, error) {
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	m, err := v.WaitFor(ctx, `(?s).*sdvbox: starting (?:the )?(\S+)[^(]*\((\w+)\).*VEHICLE-CONFIRM code=(\d+) version=(\S+)\s`)
	if err != nil {
		return booted{}, err
	}
	b := booted{slot: m[1], reason: m[2], version: m[4]}
	if m[3] != "0" {
		return b, fmt.Errorf("rauc-helper confirm has failed with exit code %s in %s", m[3], b.slot)
	}
	return b, nil
}

// reset resets the vehicle in an instant: what has not been written to the disk by then never is. QEMU ends in good order.
func reset(ctx context.Context, v *vehicle.VM) error {
	_, err := v.Run(ctx, "(sleep 0.3; echo b >/proc/sysrq-trigger) >/dev/null 2>&1 &")
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if failed := v.Wait(ctx); failed != nil {
		return errors.Join(err, failed)
	}
	// The end may have overtaken the answer.
	return nil
}

// dial connects to the broker of a vehicle and waits for its agent.
func dial(ctx context.Context, v *vehicle.VM) (*ota.Driver, error) {
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	d, err := ota.Dial(ctx, "self-update", mqttbus.Config{Broker: v.MQTT()})
	if err != nil {
		return nil, err
	}
	if _, err := d.Version(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// unless returns an error unless a step has succeeded.
func unless(f ota.Feedback, err error) error {
	if err == nil && f.Failed() {
		err = fmt.Errorf("%s: %s", f.Status, f.Detail())
	}
	return err
}
