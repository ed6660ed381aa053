// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/rauc"
	"sdvbox/platform/systemd"
)

// patience is how long a gate may take that talks to a local service.
const patience = 10 * time.Second

// Writable checks that dir takes a file and that the file reaches the medium.
func Writable(dir string) Check {
	return Check{
		Name:    "data",
		Hint:    "see the kernel messages about the disk, df " + dir + ", and whether it is mounted read-only",
		Timeout: 30 * time.Second,
		Run: func(context.Context) error {
			// Always the same name: a power cut leaves it behind.
			f, err := os.OpenFile(filepath.Join(dir, ".sdvbox-health"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
			if err != nil {
				return err
			}
			defer os.Remove(f.Name())
			defer f.Close()
			if _, err := f.WriteString("written by a health check\n"); err != nil {
				return err
			}
			return f.Sync()
		},
	}
}

// RAUC checks that the update service answers on the bus with the given address; "" is the system bus.
func RAUC(address string) Check {
	return Check{
		Name:    "rauc",
		Hint:    "systemctl status rauc, and /etc/rauc/system.conf",
		Timeout: patience,
		Run: func(ctx context.Context) error {
			c, err := rauc.Dial(ctx, address)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Compatible(ctx)
			return err
		},
	}
}

// BootGate is the name of the check that BootTarget returns.
const BootGate = "boot"

// BootTarget checks that the boot has come to its end: the default target is active. It would wait for ever for itself if a
// unit that belongs to the default target waited for this check.
func BootTarget(address string) Check {
	return Check{
		Name:    BootGate,
		Hint:    "systemctl list-jobs",
		Timeout: patience,
		Run: func(ctx context.Context) error {
			c, err := systemd.Dial(ctx, address)
			if err != nil {
				return err
			}
			defer c.Close()
			target, err := c.Unit(ctx, "default.target")
			if err != nil {
				return err
			}
			if target.Active == "active" {
				return nil
			}
			return fmt.Errorf("%s is %s%s", target.Name, target.Active, waitingFor(ctx, c))
		},
	}
}

// waitingFor names what systemd is busy with, as far as it says.
func waitingFor(ctx context.Context, c *systemd.Conn) string {
	jobs, err := c.Jobs(ctx)
	if err != nil {
		return ""
	}
	var names []string
	for _, j := range jobs {
		if j.Running && j.Type == "start" && j.Unit != ConfirmUnit {
			names = append(names, j.Unit)
		}
	}
	if names == nil {
		return ""
	}
	return ", waiting for " + strings.Join(names, ", ")
}

// ConfirmUnit runs the gates. It is still starting while they run, so no gate may ask for it.
const ConfirmUnit = "sdvbox-confirm.service"

// Units checks that the enabled services that match one of the patterns run, and have run for the time settled: one that
// dies and is restarted again and again is active now and then.
func Units(address string, patterns []string, settled time.Duration) Check {
	return Check{
		Name:    "units",
		Hint:    "systemctl --failed, and journalctl -u with the name of the unit",
		Timeout: patience,
		Run: func(ctx context.Context) error {
			c, err := systemd.Dial(ctx, address)
			if err != nil {
				return err
			}
			defer c.Close()
			names, err := c.Enabled(ctx, patterns)
			if err != nil {
				return err
			}
			var wrong []string
			for _, name := range names {
				// What an instance of a template is called is only known to those that want it.
				if name == ConfirmUnit || strings.Contains(name, "@.") {
					continue
				}
				u, err := c.Unit(ctx, name)
				if err != nil {
					return err
				}
				if text := complaint(u, settled); text != "" {
					wrong = append(wrong, name+" is "+text)
				}
			}
			if wrong == nil {
				return nil
			}
			return errors.New(strings.Join(wrong, ", "))
		},
	}
}

// complaint says what is wrong with a unit, "" if nothing is.
func complaint(u systemd.Unit, settled time.Duration) string {
	switch {
	case u.Skipped, u.Done:
		return ""
	case u.Active == "active":
		if u.ActiveFor < settled {
			return fmt.Sprintf("active for %v only", u.ActiveFor.Round(100*time.Millisecond))
		}
		return ""
	case u.Result != "" && u.Result != "success":
		return fmt.Sprintf("%s (%s, %s)", u.Active, u.Sub, u.Result)
	}
	return fmt.Sprintf("%s (%s)", u.Active, u.Sub)
}
