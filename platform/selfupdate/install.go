// SPDX-License-Identifier: Apache-2.0

package selfupdate

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
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
	if n.Keep {
		return one(n.say(updateproto.StatusUpdateSuccess, msgInstalled, updateproto.ActionUpdating, 100, msgWritten))
	}
	job.Progress(n.say(updateproto.StatusUpdating, msgUpdating, updateproto.ActionUpdating, 0, msgChecking))
	gate.last = time.Now()
	done, err := b.resume(ctx, &n, progress)
	if err != nil {
		return failed("Install failed.", err.Error())
	}
	if !done && n.Streamed {
		if err = b.install(ctx, job, n.URL, &n, progress); err == nil {
			done = true
		} else if ctx.Err() == nil && !hopeless(err) {
			b.Log.Warn("installation from the server failed, the bundle is downloaded", "error", err)
			job.Progress(n.say(updateproto.StatusUpdating, msgUpdating, updateproto.ActionUpdating, percent, "Streaming failed, downloading the bundle: "+err.Error()))
			n.Streamed = false
			_, err = b.fetch(ctx, n.URL, func(int64, int64) {})
		}
		if err != nil {
			return b.notInstalled(err, failed)
		}
	}
	if !done {
		if err := b.install(ctx, job, b.bundle(), &n, progress); err != nil {
			return b.notInstalled(err, failed)
		}
	}
	if err := b.undoActivation(ctx, n.Slot); err != nil {
		return failed("Install failed.", err.Error())
	}
	return one(n.say(updateproto.StatusUpdateSuccess, msgInstalled, updateproto.ActionUpdating, 100, msgWritten))
}

// rejected is the reason why a bundle that could be read must not be installed.
type rejected string

func (r rejected) Error() string { return string(r) }

// hopeless reports whether a bundle would be refused also after a download.
func hopeless(err error) bool {
	cause := rauc.CauseOf(err)
	return errors.As(err, new(rejected)) || cause == rauc.CauseSignature || cause == rauc.CauseCompatible
}

// notInstalled tells a bundle that is not acceptable from one that could not be
// installed.
func (b *Backend) notInstalled(err error, failed func(message, actionMessage string) []updateproto.Feedback) []updateproto.Feedback {
	var why rejected
	var inspect *inspectError
	if errors.As(err, &why) || errors.As(err, &inspect) {
		return failed(msgRejected, err.Error())
	}
	return failed("Install failed.", err.Error())
}

// resume waits for whatever RAUC is doing, and tells whether it has installed
// what this activity wants: an installation begun before a restart may run on
// in RAUC, may have ended meanwhile, or may have died with it.
func (b *Backend) resume(ctx context.Context, n *notes, progress func(int)) (done bool, err error) {
	if err := b.settle(ctx, progress); err != nil || n.Transaction == "" {
		return false, err
	}
	slot, err := b.System.Other(ctx)
	if err != nil {
		return false, err
	}
	return n.holds(slot), nil
}

// settle waits until RAUC is idle. How what it did has ended is no matter.
func (b *Backend) settle(ctx context.Context, progress func(int)) error {
	ctx, cancel := context.WithTimeout(ctx, b.InstallTimeout)
	defer cancel()
	for failures := 0; ; {
		err := b.System.Attach(ctx, progress)
		switch {
		case errors.Is(err, rauc.ErrIdle):
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("wait for another operation of RAUC: %w", ctx.Err())
		case errors.Is(err, rauc.ErrUnavailable), failures == 10:
			return err
		case err != nil:
			failures++
			b.Log.Warn("an installation that was under way has failed", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
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

// inspectError is what RAUC says of a bundle that it does not take or cannot
// read.
type inspectError struct{ err error }

func (e *inspectError) Error() string {
	why := "Bundle verification failed: " + e.err.Error()
	if rauc.CauseOf(e.err) == rauc.CauseDamaged {
		why += " (the file is cut short, or it is no bundle)"
	}
	return why
}

func (e *inspectError) Unwrap() error { return e.err }

// verify fails unless the bundle is what was asked for.
func (b *Backend) verify(ctx context.Context, source string, n *notes, slot Slot) error {
	bundle, err := b.System.Inspect(ctx, source)
	if err != nil {
		return &inspectError{err}
	}
	if bundle.Version != n.Version {
		b.Log.Warn("bundle has another version than was requested", "bundle", bundle.Version, "requested", n.Version)
		return rejected(msgWrongVersion)
	}
	// RAUC before 1.9 does not tell the images of a bundle.
	if len(bundle.Images) > 0 && !slices.ContainsFunc(bundle.Images, func(i rauc.Image) bool { return i.Class == slot.Class }) {
		return rejected(fmt.Sprintf("The bundle has no image for slots of class %q.", slot.Class))
	}
	return nil
}

// install verifies the bundle, has RAUC write it, and checks that it did. RAUC
// may be doing something else, or end in the middle of it: then it is tried
// once more.
func (b *Backend) install(ctx context.Context, job *updateagent.Job, source string, n *notes, progress func(int)) error {
	ctx, cancel := context.WithTimeout(ctx, b.InstallTimeout)
	defer cancel()
	for again := false; ; again = true {
		err := b.installOnce(ctx, job, source, n, progress)
		if again || !errors.Is(err, rauc.ErrBusy) && !errors.Is(err, rauc.ErrLost) {
			return err
		}
		b.Log.Warn("trying the installation once more", "error", err)
		if err := b.settle(ctx, func(int) {}); err != nil {
			return err
		}
	}
}

func (b *Backend) installOnce(ctx context.Context, job *updateagent.Job, source string, n *notes, progress func(int)) error {
	slot, err := b.System.Other(ctx)
	if err != nil {
		return err
	}
	if err := b.verify(ctx, source, n, slot); err != nil {
		return err
	}
	n.Slot, n.Count, n.Transaction = slot.Name, slot.Count, rand.Text()
	if err := job.Save(*n); err != nil {
		return err
	}
	if err := b.System.Install(ctx, source, n.Transaction, progress); err != nil {
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
	if boot, err := b.System.BootID(); err == nil && n.Boot != "" && n.Boot != boot && b.tried(ctx, n) {
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
	if !n.Keep {
		slot, err := b.System.Other(ctx)
		if err != nil {
			return err
		}
		if slot.Name != n.Slot || slot.Version != n.Version {
			return fmt.Errorf("slot %s holds version %q, not the %q that was installed to %s", slot.Name, slot.Version, n.Version, n.Slot)
		}
		n.Loader = slot.Loader
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

// tried reports whether the activation had taken effect when the vehicle was
// started again. If not, the power was cut just before.
func (b *Backend) tried(ctx context.Context, n notes) bool {
	now, err := b.System.Current(ctx)
	if err != nil || now.Slot == n.Slot {
		return err == nil
	}
	slot, err := b.System.Other(ctx)
	return err == nil && slot.Loader != n.Loader
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
	if n.Transaction == "" && !n.Keep {
		return nil // no slot has been touched
	}
	// RAUC cannot be stopped in the middle of a slot; what it writes there
	// is never booted, so it may as well finish.
	if err := b.settle(ctx, func(int) {}); err != nil {
		return err
	}
	now, err := b.System.Current(ctx)
	if err != nil {
		return err
	}
	if n.Keep {
		return nil // the slot that runs is the next one, or was not chosen
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
	slot, err := b.System.Other(ctx)
	if err != nil {
		return err
	}
	if n.Boot == "" && slot.Count == n.Count && slot.Transaction != n.Transaction {
		// The installation has not got as far as the slot, or RAUC has marked
		// it bad and has not finished.
		return nil
	}
	return b.System.Reject(ctx, n.Slot)
}
