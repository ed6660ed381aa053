// SPDX-License-Identifier: Apache-2.0

// Package rescue is the applet "rescue" and, under the name "init", the first
// process of the rescue system: an initramfs on a partition of its own that
// the boot loader starts when it has no slot left to boot. It says what is
// wrong, brings up disks, network and RAUC, gives a shell, and can re-install
// a slot and re-create a lost boot environment.
package rescue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/applet"
)

// runDir holds what the running rescue system knows; elsewhere there is none.
const runDir = "/run/rescue"

// device returns the partition of a slot, which has the same label on every
// machine: root_a for SDV_A.
func device(boot string) string {
	return filepath.Join(byLabel, "root_"+strings.ToLower(strings.TrimPrefix(boot, "SDV_")))
}

// Command describes the applet.
func Command() applet.Command {
	return applet.Command{
		Name:    "rescue",
		Summary: "say why the vehicle does not boot, and re-install it",
		Description: `The rescue system starts by itself when no slot can be booted. It reports what is wrong and gives a shell on every console.

Re-install a slot from a server, or from a stick with a bundle (*.raucb) at its top level, and start it:

  rescue install --reboot https://HOST/BUNDLE.raucb
  rescue install --reboot --usb

The bundle is verified and written by RAUC, with the keyring and the configuration of the vehicle.`,
		Sub: []applet.Command{
			{
				Name:        "report",
				Summary:     "say what is wrong and what to do",
				Description: "Shows why the rescue system was started, the state of each slot, of /data, of the network and of RAUC, and what to do about it. Nothing is changed.",
				Run:         runReport,
			},
			{
				Name:    "install",
				Summary: "write a bundle into a slot and make that slot the one to boot",
				Description: `SOURCE is a file or an http or https URL. Without --slot, an unreadable slot is preferred to a readable one, then one that cannot be booted; a slot that would boot is overwritten only when named.

A URL is downloaded to /data (to memory if /data is lost), and a broken download goes on where it stopped. Where that has no room, RAUC streams the bundle.`,
				Args:    "[SOURCE]",
				Options: func() any { return new(installOptions) },
				Run:     runInstall,
			},
			{
				Name:        "repair",
				Summary:     "re-create an unreadable boot environment",
				Description: "Writes both copies of the boot environment anew. Slots that RAUC knows as broken stay bad; of the others the one activated last comes last, as nothing says whether it passed its trial. When nothing is known, every slot may be booted. The rescue system does this by itself, and restarts, when the boot loader could not read the environment; at most once an hour.",
				Options:     func() any { return new(repairOptions) },
				Run:         runRepair,
			},
			{
				Name:        "stay",
				Summary:     "keep the rescue system from starting a slot again by itself",
				Description: "A slot that is not marked bad and has a kernel, but has used up its attempts, gets them back and is started when the rescue system has run for 5 minutes; at most once an hour. Not after this command, until the next start.",
				Run:         runStay,
			},
			{
				Name:    "reboot",
				Summary: "leave the rescue system and boot again",
				Run:     func(context.Context, *applet.Call) error { return signalInit(unix.SIGTERM) },
			},
			{
				Name:    "poweroff",
				Summary: "leave the rescue system and switch off",
				Run:     func(context.Context, *applet.Call) error { return signalInit(unix.SIGUSR2) },
			},
			{Name: "session", Summary: "run the rescue system, as a child of its init", Hidden: true, Daemon: true, Run: runSession},
		},
	}
}

// Init describes the first process of the initramfs, /init.
func Init() applet.Command {
	return applet.Command{Name: "init", Summary: "first process of the rescue system", Hidden: true, Raw: true, Run: runInit}
}

// inRescue fails unless the rescue system is running: what these commands do
// to the slots would be wrong under a system that was booted from one.
func inRescue() error {
	if _, err := os.Stat(runDir); err != nil {
		return errors.New("this is not the rescue system; a running vehicle is updated by its update agent or by RAUC")
	}
	return nil
}

// exclusive keeps the commands on different consoles from mounting and writing
// the same partitions at once.
func exclusive(ctx context.Context) (unlock func(), err error) {
	f, err := os.Create(filepath.Join(runDir, "lock"))
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if ctx.Err() != nil || time.Now().After(end) {
			f.Close()
			return nil, errors.New("an installation, a repair or a report is running on another console")
		}
	}
}

func signalInit(sig unix.Signal) error {
	if err := inRescue(); err != nil {
		return err
	}
	return unix.Kill(1, sig)
}

func writeJSON(c *applet.Call, v any) error {
	enc := json.NewEncoder(c.Stdout)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}
