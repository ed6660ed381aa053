// SPDX-License-Identifier: Apache-2.0

package rescue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/applet"
	"sdvbox/platform/bootenv"
	"sdvbox/platform/durable"
	"sdvbox/platform/rauc"
	"sdvbox/platform/slots"
)

// repairMark is made before an automatic repair: a boot environment that is
// lost again and again must not become an endless loop of restarts.
const (
	repairMark   = "/data/sdvbox/rescue/repaired"
	pauseBetween = time.Hour
)

// defaultStore is the boot environment of a machine that has lost it.
const defaultStore = "grub:/grubenv/grubenv"

type repairOptions struct {
	Force  bool `long:"force" description:"re-create the environment although it is readable"`
	Reboot bool `long:"reboot" description:"boot again afterwards"`
}

func runRepair(ctx context.Context, c *applet.Call) error {
	if err := inRescue(); err != nil {
		return err
	}
	unlock, err := exclusive(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	o := c.Options.(*repairOptions)
	if _, _, err := loadState(); err == nil && !o.Force {
		return errors.New("the boot environment is readable; --force re-creates it all the same")
	}
	st, err := repair(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		err = writeJSON(c, st)
	} else {
		_, err = fmt.Fprintf(c.Stdout, "the boot environment is written anew, first to boot: %s\n", st.Order[0])
	}
	if err == nil && o.Reboot {
		err = signalInit(unix.SIGTERM)
	}
	return err
}

// repair writes the boot environment anew from what RAUC knows.
func repair(ctx context.Context) (slots.State, error) {
	// Without RAUC's knowledge every slot gets its chance.
	known, _, _ := raucSlots(ctx)
	st := rebuild(known)
	spec := defaultStore
	if store, err := bootenv.Open(""); err == nil {
		spec = store.String()
	}
	write := func() error { return create(ctx, spec, st) }
	if spec != defaultStore {
		return st, write()
	}
	return st, rewrite(write, func() error { return format(ctx, grubenvVolume()) })
}

// rewrite writes; when that fails, once more on a new file system.
func rewrite(write, format func() error) error {
	err := write()
	if err == nil {
		return nil
	}
	if failed := format(); failed != nil {
		return fmt.Errorf("%w; and to format its partition: %w", err, failed)
	}
	return write()
}

// create writes the boot environment anew and reads it back from the disk.
func create(ctx context.Context, spec string, st slots.State) error {
	if spec == defaultStore {
		if err := grubenvVolume().attach(ctx); err != nil {
			return err
		}
	}
	store, err := bootenv.Open(spec)
	if err != nil {
		return err
	}
	var vars bootenv.Vars
	st.Encode(&vars, store.Kind())
	if err := bootenv.Create(spec, &vars); err != nil {
		return fmt.Errorf("re-create the boot environment: %w", err)
	}
	return reread(ctx, &vars)
}

// format makes a new file system on the volume of GRUB's environment, which
// holds nothing else.
func format(ctx context.Context, v volume) error {
	dev := v.device()
	if _, err := os.Stat(dev); err != nil {
		return err
	}
	if mounted(v.dir) {
		if err := unix.Unmount(v.dir, 0); err != nil {
			return fmt.Errorf("unmount %s: %w", v.dir, err)
		}
	}
	return command(ctx, "mkfs.vfat", "-n", "GRUBENV", dev)
}

// reread fails unless the disk itself holds vars: after mounting again nothing
// comes from a cache.
func reread(ctx context.Context, vars *bootenv.Vars) error {
	v := grubenvVolume()
	if mounted(v.dir) {
		if err := unix.Unmount(v.dir, 0); err != nil {
			return fmt.Errorf("unmount %s: %w", v.dir, err)
		}
		if err := v.attach(ctx); err != nil {
			return err
		}
	}
	store, err := bootenv.Open("")
	if err != nil {
		return err
	}
	got, err := store.Load()
	if err != nil {
		return err
	}
	if !got.Equal(vars) {
		return fmt.Errorf("%s does not keep what is written to it", store)
	}
	return nil
}

// rebuild makes a boot state from what RAUC knows of the slots: those it wrote
// completely may boot, the one activated last at the end. A slot that RAUC has
// never written is one from the factory and may boot. When that leaves
// nothing, every slot gets its chance.
//
// RAUC does not know which slot was confirmed, and to it a slot that failed
// its trial is as good as any: written completely and activated last. The
// other one was running when it was written. If the newer one had proved
// itself, starting the older one costs another update; the other way round the
// vehicle would run what was given up.
func rebuild(known []rauc.Slot) slots.State {
	activated := map[string]string{} // RFC 3339 in UTC, so their order is that of the strings
	st := slots.New(slices.Clone(slots.Names[:])...)
	for _, k := range known {
		if !st.Has(k.Bootname) {
			continue
		}
		activated[k.Bootname] = k.Activated.Time
		if k.Status != "" && k.Status != "ok" {
			st.MarkBad(k.Bootname, "RAUC: "+k.Status)
		}
	}
	slices.SortStableFunc(st.Order, func(a, b string) int { return cmp.Compare(activated[a], activated[b]) })
	next, ok := st.Next()
	if !ok {
		st = slots.New(st.Order...)
		next = st.Order[0]
	}
	st.SetPrimary(next)
	st.Why = next + " the boot environment was lost and re-created by the rescue system"
	return st
}

// autoRepair repairs an environment that the boot loader could not read and
// reports whether to boot again.
func autoRepair(ctx context.Context, reason string) (bool, error) {
	_, _, err := loadState()
	if !shouldRepair(reason, err == nil) {
		return false, nil
	}
	if !mounted("/data") {
		return false, errors.New("no automatic repair without /data: rescue repair --reboot")
	}
	if first, err := claim(repairMark, time.Now()); err != nil {
		return false, err
	} else if !first {
		return false, errors.New("the boot environment was lost again soon after a repair: rescue repair --reboot")
	}
	if _, err := repair(ctx); err != nil {
		return false, err
	}
	return true, nil
}

// shouldRepair: only when boot loader and Linux agree that the environment is
// lost. If Linux can read it, writing it anew helps nothing.
func shouldRepair(reason string, readable bool) bool {
	return reason == "unreadable" && !readable
}

// claim makes a mark and reports whether that is the first time for a while.
func claim(mark string, now time.Time) (first bool, err error) {
	if fi, err := os.Stat(mark); err == nil && recent(fi.ModTime(), now) {
		return false, nil
	}
	return true, errors.Join(
		durable.MkdirAll(filepath.Dir(mark), 0o755),
		durable.Remove(mark),
		durable.WriteFile(mark, nil, 0o644),
	)
}

// recent reports whether a mark made at t is not old. A clock that was set
// back counts as recent: staying in the rescue system is the safe side.
func recent(t, now time.Time) bool { return now.Sub(t) < pauseBetween }
