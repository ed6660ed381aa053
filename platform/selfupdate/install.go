// SPDX-License-Identifier: Apache-2.0

package selfupdate

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sdvbox/platform/fetch"
	"sdvbox/platform/rauc"
	"sdvbox/platform/updateagent"
	"sdvbox/platform/updateproto"
)

// Update verifies the bundle and has RAUC write it to the other slot.
func (b *Backend) Update(ctx context.Context, job *updateagent.Job) []updateproto.Feedback {
	var n notes
	job.Load(&n)
	percent := 0
	failed := func(message, actionMessage string) []updateproto.Feedback {
		n.result(updateproto.ActionUpdateFailure, actionMessage)
		if err := job.Save(n); err != nil {
			b.Log.Error("cannot save the result of the update", "error", err)
		}
		return one(n.say(updateproto.StatusUpdateFailure, message, updateproto.ActionUpdateFailure, percent, actionMessage))
	}
	gate := gate{delay: b.Delay, step: 1}
	progress := func(p int) {
		if p > percent && p < 100 {
			percent = p
			if gate.open(p) {
				job.Progress(n.say(updateproto.StatusUpdating, msgUpdating, updateproto.ActionUpdating, p, msgInstalling))
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, b.InstallTimeout)
	defer cancel()

	job.Progress(n.say(updateproto.StatusUpdating, msgUpdating, updateproto.ActionUpdating, 0, msgChecking))
	gate.last = time.Now()
	source := b.bundle()
	if n.Streamed {
		source = n.URL
	}
	done, err := b.resume(ctx, &n, progress)
	if err != nil {
		return failed("Install failed.", err.Error())
	}
	if !done {
		if why := b.reject(ctx, source, &n); why != "" {
			return failed(msgRejected, why)
		}
		err = b.install(ctx, job, source, &n, progress)
		if err != nil && n.Streamed && ctx.Err() == nil {
			b.Log.Warn("installation from the server failed, the bundle is downloaded", "error", err)
			job.Progress(n.say(updateproto.StatusUpdating, msgUpdating, updateproto.ActionUpdating, percent, "Streaming failed, downloading the bundle: "+err.Error()))
			err = b.downloadAndInstall(ctx, job, &n, progress)
		}
		if err != nil {
			return failed("Install failed.", err.Error())
		}
	}
	if err := b.undoActivation(ctx, n.Slot); err != nil {
		return failed("Install failed.", err.Error())
	}
	return one(n.say(updateproto.StatusUpdateSuccess, msgInstalled, updateproto.ActionUpdating, 100, msgWritten))
}

// resume deals with an installation begun before a restart: it may run on in
// RAUC, may have ended meanwhile, or may have died with it.
func (b *Backend) resume(ctx context.Context, n *notes, progress func(int)) (done bool, err error) {
	if n.Transaction == "" {
		return false, nil
	}
	err = b.System.Attach(ctx, progress)
	if err != nil && !errors.Is(err, rauc.ErrIdle) {
		b.Log.Warn("the installation that was under way has failed", "error", err)
	}
	slot, err := b.System.Other(ctx)
	if err != nil {
		return false, err
	}
	return n.holds(slot), nil
}

// holds reports whether the slot contains just what this activity installed.
// RAUC before 1.10 keeps no transaction; there the count of installations must
// have grown.
func (n *notes) holds(s Slot) bool {
	if !s.Intact || s.Version != n.Version || s.Name != n.Slot {
		return false
	}
	if s.Transaction != "" {
		return s.Transaction == n.Transaction
	}
	return s.Count > n.Count
}

// reject returns why a bundle must not be installed, or nothing.
func (b *Backend) reject(ctx context.Context, source string, n *notes) string {
	bundle, err := b.System.Inspect(ctx, source)
	if err != nil {
		why := "Bundle verification failed: " + err.Error()
		if strings.Contains(why, "Invalid bundle format") {
			why += " (the file is cut short, or it is no bundle)"
		}
		return why
	}
	if bundle.Version != n.Version {
		b.Log.Warn("bundle has another version than was requested", "bundle", bundle.Version, "requested", n.Version)
		return msgWrongVersion
	}
	slot, err := b.System.Other(ctx)
	if err != nil {
		return err.Error()
	}
	// RAUC before 1.9 does not tell the images of a bundle.
	if len(bundle.Images) > 0 && !slices.ContainsFunc(bundle.Images, func(i rauc.Image) bool { return i.Class == slot.Class }) {
		return fmt.Sprintf("The bundle has no image for slots of class %q.", slot.Class)
	}
	return ""
}

// install has RAUC write the bundle and checks that it did.
func (b *Backend) install(ctx context.Context, job *updateagent.Job, source string, n *notes, progress func(int)) error {
	slot, err := b.System.Other(ctx)
	if err != nil {
		return err
	}
	n.Slot, n.Count, n.Transaction = slot.Name, slot.Count, rand.Text()
	if err := job.Save(*n); err != nil {
		return err
	}
	err = b.System.Install(ctx, source, n.Transaction, progress)
	if errors.Is(err, rauc.ErrBusy) {
		b.Log.Warn("RAUC is busy with something else, waiting for its end")
		if err := b.System.Attach(ctx, func(int) {}); err != nil && ctx.Err() != nil {
			return err
		}
		err = b.System.Install(ctx, source, n.Transaction, progress)
	}
	if err != nil {
		return err
	}
	if slot, err = b.System.Other(ctx); err != nil {
		return err
	}
	if slot.Version != n.Version {
		return fmt.Errorf("slot %s has version %q after the installation, expected %q", slot.Name, slot.Version, n.Version)
	}
	return nil
}

// downloadAndInstall is what streaming falls back to.
func (b *Backend) downloadAndInstall(ctx context.Context, job *updateagent.Job, n *notes, progress func(int)) error {
	if _, err := b.fetch(ctx, n.URL, func(int64, int64) {}); err != nil {
		return fmt.Errorf("download failed: %w", err)
	}
	n.Streamed = false
	if why := b.reject(ctx, b.bundle(), n); why != "" {
		return errors.New(why)
	}
	return b.install(ctx, job, b.bundle(), n, progress)
}

// undoActivation takes back what a RAUC without activate-installed=false did
// on its own: only ACTIVATE may choose the next slot.
func (b *Backend) undoActivation(ctx context.Context, slot string) error {
	primary, err := b.System.Primary(ctx)
	if err == nil && primary == slot {
		b.Log.Warn("RAUC has activated the slot by itself; set activate-installed=false in its system.conf", "slot", slot)
		return b.System.Activate(ctx, "booted")
	}
	return nil
}

// Activate makes the slot that Update wrote the next one to boot.
func (b *Backend) Activate(ctx context.Context, job *updateagent.Job) []updateproto.Feedback {
	var n notes
	job.Load(&n)
	job.Progress(n.say(updateproto.StatusActivating, msgActivating, updateproto.ActionUpdating, 0, msgActivating))
	if boot, err := b.System.BootID(); err == nil && n.Boot != "" && n.Boot != boot && b.tried(ctx, n.Slot) {
		return b.Verify(ctx, job) // the reboot came before the answer
	}
	err := b.activate(ctx, job, &n)
	if err != nil {
		b.Log.Error("activation failed", "error", err)
		n.result(updateproto.ActionUpdateFailure, msgNotActivated)
		if err := job.Save(n); err != nil {
			b.Log.Error("cannot save the result of the activation", "error", err)
		}
		return one(n.say(updateproto.StatusActivationFailure, msgNotActivated, updateproto.ActionUpdateFailure, 0, msgNotActivated+" "+err.Error()))
	}
	return one(n.say(updateproto.StatusActivationSuccess, msgActivated, updateproto.ActionUpdated, 0, msgActivated))
}

func (b *Backend) activate(ctx context.Context, job *updateagent.Job, n *notes) error {
	boot, err := b.System.BootID()
	if err != nil {
		return err
	}
	slot, err := b.System.Other(ctx)
	if err != nil {
		return err
	}
	if slot.Name != n.Slot || slot.Version != n.Version {
		return fmt.Errorf("slot %s holds version %q, not the %q that was installed to %s", slot.Name, slot.Version, n.Version, n.Slot)
	}
	n.Boot = boot
	n.result(updateproto.ActionUpdateSuccess, msgActivated)
	if err := job.Save(*n); err != nil {
		return err
	}
	if err := b.System.Activate(ctx, n.Slot); err != nil {
		return errors.Join(err, b.System.Activate(ctx, "booted"))
	}
	return nil
}

// tried reports whether the boot loader has started the slot since it was
// activated. If not, the power was cut before the activation took effect.
func (b *Backend) tried(ctx context.Context, slot string) bool {
	now, err := b.System.Current(ctx)
	if err != nil || now.Slot == slot {
		return err == nil
	}
	other, err := b.System.Other(ctx)
	return err == nil && (other.Exhausted || hasPrefixWord(now.Why, other.Bootname))
}

// Verify tells after a restart what became of an activated slot. As long as
// the vehicle has not been rebooted there is nothing to say.
func (b *Backend) Verify(ctx context.Context, job *updateagent.Job) []updateproto.Feedback {
	var n notes
	job.Load(&n)
	boot, err := b.System.BootID()
	if err == nil && boot == n.Boot {
		return nil
	}
	rolledBack := func(why string) []updateproto.Feedback {
		message := "rolled back: " + why
		n.result(updateproto.ActionUpdateFailure, message)
		if err := job.Save(n); err != nil {
			b.Log.Error("cannot save the outcome of the reboot", "error", err)
		}
		return one(n.say(updateproto.StatusActivationFailure, message, updateproto.ActionUpdateFailure, 0, message))
	}
	ctx, cancel := context.WithTimeout(ctx, b.ConfirmTimeout)
	defer cancel()
	for {
		now, err := b.System.Current(ctx)
		switch {
		case err != nil:
			b.Log.Warn("cannot tell yet which slot was booted", "error", err)
		case now.Slot != n.Slot:
			return rolledBack(b.fallbackReason(ctx, now, n))
		case now.Version != n.Version:
			return rolledBack(fmt.Sprintf("slot %s runs version %q instead of %q", now.Slot, now.Version, n.Version))
		default:
			ok, err := b.System.Confirmed(ctx)
			if err != nil {
				b.Log.Warn("cannot tell yet whether the slot is confirmed", "error", err)
			} else if ok {
				return one(n.say(updateproto.StatusActivationSuccess, msgActivated, updateproto.ActionUpdated, 0, msgActivated))
			}
		}
		select {
		case <-ctx.Done():
			return rolledBack(fmt.Sprintf("slot %s was not confirmed within %s of the reboot", n.Slot, b.ConfirmTimeout))
		case <-time.After(time.Second):
		}
	}
}

// fallbackReason says why the vehicle runs now although the slot in n had been
// activated.
func (b *Backend) fallbackReason(ctx context.Context, now Running, n notes) string {
	slot, err := b.System.Other(ctx)
	switch {
	case err == nil && now.Why != "" && hasPrefixWord(now.Why, slot.Bootname):
		return now.Why
	case err == nil && slot.Exhausted:
		return fmt.Sprintf("%s was started as often as is allowed without being confirmed (kernel panic, hang or power loss)", slot.Bootname)
	case now.BootReason != "":
		return fmt.Sprintf("the vehicle started %s instead of %s (boot loader: %s)", now.Slot, n.Slot, now.BootReason)
	}
	return fmt.Sprintf("the vehicle started %s instead of %s", now.Slot, n.Slot)
}

func hasPrefixWord(s, word string) bool {
	return len(s) > len(word) && word != "" && s[:len(word)] == word && s[len(word)] == ' '
}

// Rollback undoes what the activity has done so far.
func (b *Backend) Rollback(ctx context.Context, job *updateagent.Job) []updateproto.Feedback {
	var n notes
	job.Load(&n)
	status, message := updateproto.StatusRollbackSuccess, "The update has been rolled back."
	if err := b.rollback(ctx, &n, &message); err != nil {
		status, message = updateproto.StatusRollbackFailure, "Rollback failed: "+err.Error()
	}
	n.result(updateproto.ActionUpdateFailure, message)
	return []updateproto.Feedback{
		n.say(status, message, n.LastStatus, 0, n.LastMessage),
		n.say(updateproto.StatusIncomplete, msgIncomplete, n.LastStatus, 0, n.LastMessage),
	}
}

func (b *Backend) rollback(ctx context.Context, n *notes, message *string) error {
	if err := fetch.Discard(b.bundle()); err != nil {
		b.Log.Warn("cannot remove the bundle", "error", err)
	}
	if n.Transaction == "" {
		return nil // no slot has been touched
	}
	// RAUC cannot be stopped in the middle of a slot; what it writes there
	// is never booted, so it may as well finish.
	ctx, cancel := context.WithTimeout(ctx, b.InstallTimeout)
	defer cancel()
	if err := b.System.Attach(ctx, func(int) {}); err != nil && ctx.Err() != nil {
		return err
	}
	now, err := b.System.Current(ctx)
	if err != nil {
		return err
	}
	if now.Slot == n.Slot {
		// The new slot runs already: the way back is another reboot.
		other, err := b.System.Other(ctx)
		if err != nil {
			return err
		}
		*message = fmt.Sprintf("Slot %s with version %q is next, reboot required.", other.Name, other.Version)
		return b.System.Activate(ctx, other.Name)
	}
	if n.Boot != "" {
		if err := b.System.Activate(ctx, "booted"); err != nil {
			return err
		}
	}
	return b.System.Reject(ctx, n.Slot)
}
