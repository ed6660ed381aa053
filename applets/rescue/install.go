// SPDX-License-Identifier: Apache-2.0

package rescue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"sdvbox/platform/applet"
	"sdvbox/platform/bootenv"
	"sdvbox/platform/durable"
	"sdvbox/platform/fetch"
	"sdvbox/platform/rauc"
	"sdvbox/platform/slots"
)

type installOptions struct {
	Slot   string `long:"slot" value-name:"SLOT" description:"slot to write: a or b"`
	USB    bool   `long:"usb" description:"take the first *.raucb at the top level of a stick or another disk"`
	Reboot bool   `long:"reboot" description:"boot the slot afterwards"`
	CA     string `long:"ca" value-name:"FILE" description:"certificates to trust as the server's, instead of the system's"`
	Cert   string `long:"cert" value-name:"FILE" description:"client certificate to show to the server"`
	Key    string `long:"key" value-name:"FILE" description:"private key of the client certificate"`
}

// An installed slot is the result of an installation.
type installed struct {
	Slot    string `json:"slot"`
	Version string `json:"version"`
	Source  string `json:"source"`
}

func runInstall(ctx context.Context, c *applet.Call) error {
	o := c.Options.(*installOptions)
	if o.USB != (len(c.Args) == 0) || len(c.Args) > 1 {
		return applet.Exit(2, errors.New("expected one SOURCE, or --usb and none"))
	}
	if err := inRescue(); err != nil {
		return err
	}
	unlock, err := exclusive(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	findDisk(true)
	report := gather(ctx)
	slot, err := choose(report.Slots, o.Slot)
	if err != nil {
		return err
	}
	log := c.Stdout
	if c.JSON {
		log = c.Stderr
	}
	in := installer{options: o, log: log}
	var source string
	write := func(bundle string) error {
		source = bundle
		return in.write(ctx, slot, bundle)
	}
	switch {
	case o.USB:
		err = in.fromStick(write)
	case isURL(c.Args[0]):
		err = in.fromURL(ctx, c.Args[0], report.Data.Mounted, write)
	default:
		if source, err = filepath.Abs(c.Args[0]); err == nil {
			err = write(source)
		}
	}
	if err != nil {
		return fmt.Errorf("install %s: %w", slot, err)
	}
	content, err := inspect(device(slot))
	if err == nil && !content.kernel {
		err = errors.New("no kernel in it")
	}
	if err != nil {
		return fmt.Errorf("RAUC has written %s, but it cannot boot: %w", slot, err)
	}
	if err := confirm(slot); err != nil {
		return err
	}
	if c.JSON {
		err = writeJSON(c, installed{slot, content.version, source})
	} else {
		_, err = fmt.Fprintf(c.Stdout, "%s holds version %s and boots next\n", slot, content.version)
	}
	if err == nil && o.Reboot {
		err = signalInit(unix.SIGTERM)
	}
	return err
}

// choose returns the slot to write: the named one, else the one with the
// least to lose.
func choose(list []Slot, want string) (string, error) {
	if want != "" {
		for _, s := range list {
			if strings.EqualFold(want, s.Name) || strings.EqualFold("SDV_"+want, s.Name) {
				return s.Name, nil
			}
		}
		return "", fmt.Errorf("--slot %s: expected a or b", want)
	}
	for _, worthless := range []func(Slot) bool{
		func(s Slot) bool { return !s.complete() },
		func(s Slot) bool { return s.Known && s.Left == 0 },
	} {
		if i := slices.IndexFunc(list, worthless); i >= 0 {
			return list[i].Name, nil
		}
	}
	return "", errors.New("every slot looks bootable; name the one to overwrite with --slot")
}

type installer struct {
	options *installOptions
	log     io.Writer
	shown   int // tenth of the progress shown last
}

func isURL(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

// fromURL downloads the bundle, to /data when it is there, so that a broken
// download can go on. When that fails, for want of space above all, RAUC may
// still be able to stream it.
func (in *installer) fromURL(ctx context.Context, url string, data bool, write func(string) error) error {
	dir := "/tmp"
	if data {
		dir = "/data/sdvbox/rescue"
	}
	file := filepath.Join(dir, "bundle.raucb")
	in.say("download %s", url)
	err := in.download(ctx, url, file)
	if err == nil {
		return errors.Join(write(file), fetch.Discard(file))
	}
	in.say("cannot download: %v; RAUC tries to stream it", err)
	if streamed := write(url); streamed != nil {
		// What there is of the file stays, for the next try.
		return fmt.Errorf("%w; and to stream it: %w", err, streamed)
	}
	return fetch.Discard(file)
}

func (in *installer) download(ctx context.Context, url, file string) error {
	o := in.options
	client, err := fetch.NewClient(fetch.TLS{CAFile: o.CA, CertFile: o.Cert, KeyFile: o.Key})
	if err != nil {
		return err
	}
	if err := durable.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	in.shown = 0
	result, err := fetch.Get(ctx, fetch.Request{
		URL: url, Path: file, Client: client,
		Progress: func(done, total int64) {
			if total > 0 {
				in.progress(int(done*100/total), "downloaded")
			}
		},
	})
	if result.ResumedAt > 0 {
		in.say("the first %d bytes were there from an earlier try", result.ResumedAt)
	}
	return err
}

// fromStick looks for a bundle on every disk but the vehicle's own.
func (in *installer) fromStick(write func(string) error) error {
	list, err := blocks(sysBlock)
	if err != nil {
		return err
	}
	for _, b := range foreign(list) {
		var bundle string
		var failed error
		err := view(b.device(), func(dir string) error {
			found, err := filepath.Glob(filepath.Join(dir, "*.raucb"))
			if err != nil || len(found) == 0 {
				return err
			}
			bundle = found[0]
			in.say("found %s on %s", filepath.Base(bundle), b.name)
			failed = write(bundle)
			return nil
		})
		if bundle != "" {
			return errors.Join(failed, err)
		}
	}
	return errors.New("no disk or stick with a bundle (*.raucb) at its top level")
}

// foreign returns what may hold a file system on the disks that are not the
// vehicle's own.
func foreign(list []block) []block {
	own := map[string]bool{}
	for _, b := range list {
		for _, name := range slots.Names {
			if b.label == filepath.Base(device(name)) {
				own[b.disk] = true
			}
		}
	}
	virtual := []string{"loop", "ram", "zram", "dm-", "nbd"}
	return slices.DeleteFunc(slices.Clone(list), func(b block) bool {
		return own[b.disk] || slices.ContainsFunc(virtual, func(p string) bool { return strings.HasPrefix(b.name, p) })
	})
}

// write lets RAUC verify the bundle and write it to the slot.
func (in *installer) write(ctx context.Context, slot, bundle string) error {
	return withTarget(ctx, slot, func(client *rauc.Client) error {
		before, err := rootfs(ctx, client, slot)
		if err != nil {
			return err
		}
		in.say("RAUC installs %s into %s (%s)", bundle, slot, before.Name)
		in.shown = 0
		o := rauc.InstallOptions{SourceOptions: rauc.SourceOptions{TLSCA: in.options.CA, TLSCert: in.options.Cert, TLSKey: in.options.Key}}
		if err := client.Install(ctx, bundle, o, in.progress); err != nil {
			return err
		}
		after, err := rootfs(ctx, client, slot)
		if err != nil {
			return err
		}
		if after.Installed.Count == before.Installed.Count {
			return fmt.Errorf("the bundle has no image for %s", before.Name)
		}
		// This makes RAUC note the time of activation.
		if _, _, err := client.Mark(ctx, "active", after.Name); err != nil {
			in.say("warning: %v", err)
		}
		return nil
	})
}

// progress shows every tenth part once.
func (in *installer) progress(percent int, text string) {
	if tenth := percent / 10; tenth > in.shown {
		in.shown = tenth
		in.say("%3d %% %s", percent, text)
	}
}

func (in *installer) say(format string, args ...any) { fmt.Fprintf(in.log, format+"\n", args...) }

// rootfs returns RAUC's slot with the boot name.
func rootfs(ctx context.Context, client *rauc.Client, boot string) (rauc.Slot, error) {
	list, err := client.Slots(ctx)
	if err != nil {
		return rauc.Slot{}, err
	}
	for _, s := range list {
		if s.Bootname == boot {
			return s, nil
		}
	}
	return rauc.Slot{}, fmt.Errorf("RAUC's configuration has no slot with the boot name %s", boot)
}

// withTarget runs f with a RAUC that can write only one slot. RAUC chooses the
// slot itself, any one that is not booted, so it is told that the other one
// is. It takes the place of the RAUC that the bus starts on demand.
func withTarget(ctx context.Context, slot string, f func(*rauc.Client) error) (err error) {
	other := slots.Names[0]
	if other == slot {
		other = slots.Names[1]
	}
	if err := stopRAUC(ctx); err != nil {
		return err
	}
	log, err := os.OpenFile(raucLog, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, "rauc", "--mount=/run/rauc", "service", "--override-boot-slot="+other)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		cmd.Process.Signal(unix.SIGTERM)
		cmd.Wait()
	}()
	if err := waitOwner(ctx, func(pid uint32) bool { return pid == uint32(cmd.Process.Pid) }); err != nil {
		return fmt.Errorf("RAUC does not start, see %s: %w", raucLog, err)
	}
	client, err := rauc.Dial(ctx, "")
	if err != nil {
		return err
	}
	defer client.Close()
	return f(client)
}

// stopRAUC ends the RAUC service if it runs.
func stopRAUC(ctx context.Context) error {
	return waitOwner(ctx, func(pid uint32) bool {
		if pid != 0 {
			unix.Kill(int(pid), unix.SIGTERM)
		}
		return pid == 0
	})
}

// waitOwner waits until done agrees with the process that is RAUC on the bus;
// 0 is none.
func waitOwner(ctx context.Context, done func(pid uint32) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("connect to the message bus: %w", err)
	}
	defer conn.Close()
	for {
		var pid uint32
		err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetConnectionUnixProcessID", 0, "de.pengutronix.rauc").Store(&pid)
		if e := (dbus.Error{}); err != nil && !(errors.As(err, &e) && e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner") {
			return err
		}
		if done(pid) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// confirm makes the slot the first to boot and good: what both slots held
// before is worse, so there is nothing to fall back to.
func confirm(slot string) error {
	store, err := bootenv.Open("")
	if err != nil {
		return err
	}
	if _, err := store.Load(); errors.Is(err, bootenv.ErrInvalid) {
		st := slots.New(slices.Clone(slots.Names[:])...)
		for _, name := range slots.Names {
			if name != slot {
				st.MarkBad(name, "the boot environment was lost")
			}
		}
		st.SetPrimary(slot)
		st.MarkGood(slot)
		var vars bootenv.Vars
		st.Encode(&vars, store.Kind())
		return bootenv.Create(store.String(), &vars)
	}
	return store.Update(func(v *bootenv.Vars) error {
		st, err := slots.Decode(v, store.Kind())
		if err != nil {
			return err
		}
		st.SetPrimary(slot)
		st.MarkGood(slot)
		st.Encode(v, store.Kind())
		return nil
	})
}
