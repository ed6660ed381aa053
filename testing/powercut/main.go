// SPDX-License-Identifier: Apache-2.0

// Command powercut cuts the power of virtual vehicles while they are updated, in two ways.
//
// By itself it kills QEMU at random moments and looks whether the vehicle comes back and brings the update to its end:
//
//	go run ./testing/powercut -n 30 -seed 1
//
// With -exhaustive it records all writes to the disk of one update, once with a boot environment in one sector and once with one
// in two, and judges every state of the disk that a power cut could have left, a lost cache of the disk included. One state of
// each kind that the boot loader could tell apart is booted:
//
//	go run ./testing/powercut -exhaustive
//	go run ./testing/powercut -exhaustive -state long:p7    only that state, of the last recording
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "powercut: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	n := flag.Int("n", 4, "how often to cut the power")
	seed := flag.Uint64("seed", 1, "chooses the moments")
	all := flag.Bool("exhaustive", false, "record one update and judge every cut of it")
	dir := flag.String("dir", "", "directory for disks, logs and recordings; default: powercut in the cache of the vehicle")
	only := flag.String("state", "", "judge and boot only this state, such as short:p7")
	boot := flag.Bool("boot", true, "boot one state of each kind")
	flag.Parse()
	if flag.NArg() > 0 || *n < 1 {
		return errors.New("expected no arguments, and at least one cut; see -h")
	}
	start := time.Now()
	l, err := newLab(ctx, *dir, func(format string, a ...any) {
		fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, a...))
	})
	if err != nil {
		return err
	}
	defer l.close()
	if !*all {
		results, err := l.campaign(ctx, *n, 1, *seed)
		results.print(os.Stdout)
		return err
	}
	envs := []string{"short", "long"}
	name := ""
	if *only != "" {
		var env string
		env, name, _ = strings.Cut(*only, ":")
		if !slices.Contains(envs, env) || name == "" {
			return fmt.Errorf("state %q: expected short: or long: and the name of a state", *only)
		}
		envs = []string{env}
	}
	failures := 0
	for _, env := range envs {
		var r *recording
		if name != "" {
			r, err = loadRecording(filepath.Join(l.dir, env))
		} else {
			r, err = l.record(ctx, env)
		}
		if err != nil {
			return err
		}
		f, err := l.exhaustive(ctx, r, name, *boot)
		if err != nil {
			return err
		}
		fmt.Printf("\nwith a %s boot environment\n", env)
		f.print(os.Stdout)
		failures += len(f.failures)
	}
	if failures > 0 {
		return fmt.Errorf("%d states fail", failures)
	}
	return nil
}
