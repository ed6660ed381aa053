// SPDX-License-Identifier: Apache-2.0

// Command cmd builds and runs the virtual vehicle by hand.
//
//	go run ./testing/vehicle/cmd build [VERSION]    build the disk, print its path
//	go run ./testing/vehicle/cmd bundle [VERSION]   build a signed bundle, print its path
//	go run ./testing/vehicle/cmd run [DISK]         run a copy of the disk until it is stopped
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"sdvbox/testing/vehicle"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "vehicle: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	b, err := vehicle.NewBuilder()
	if err != nil {
		return err
	}
	start := time.Now()
	b.Logf = func(format string, a ...any) {
		fmt.Fprintf(os.Stderr, "%5.1fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, a...))
	}
	arg := func(i int, otherwise string) string {
		if len(args) > i {
			return args[i]
		}
		return otherwise
	}
	switch arg(0, "") {
	case "build":
		disk, err := build(ctx, b, arg(1, "1"))
		if err == nil {
			fmt.Println(disk)
		}
		return err
	case "bundle":
		version := arg(1, "2")
		image, err := b.Image(ctx, vehicle.Image{Version: version})
		if err != nil {
			return err
		}
		bundle, err := b.Bundle(ctx, vehicle.Bundle{Image: image, Version: version})
		if err == nil {
			fmt.Println(bundle)
		}
		return err
	case "run":
		disk := arg(1, "")
		if disk == "" {
			if disk, err = build(ctx, b, "1"); err != nil {
				return err
			}
		}
		return drive(ctx, b, disk)
	}
	return fmt.Errorf("expected build [VERSION], bundle [VERSION] or run [DISK]")
}

func build(ctx context.Context, b *vehicle.Builder, version string) (string, error) {
	image, err := b.Image(ctx, vehicle.Image{Version: version})
	if err != nil {
		return "", err
	}
	return b.Disk(ctx, vehicle.Disk{A: image})
}

// drive runs a machine until it or the user ends it. The guest may reboot.
func drive(ctx context.Context, b *vehicle.Builder, disk string) error {
	keys, err := b.Keys()
	if err != nil {
		return err
	}
	copied := filepath.Join(b.Cache, "run.img")
	if err := vehicle.CopyDisk(copied, disk); err != nil {
		return err
	}
	vm, err := vehicle.Start(ctx, vehicle.Machine{Disk: copied})
	for err == nil {
		fmt.Printf("serial log  %s\nMQTTS       %s\nssh         ssh -i %s -p %s root@127.0.0.1\n", vm.Log, vm.MQTTS(), keys.SSHPrivate, vm.SSH()[len("127.0.0.1:"):])
		if vm, err = vm.Next(ctx); ctx.Err() != nil {
			return nil
		}
	}
	return err
}
