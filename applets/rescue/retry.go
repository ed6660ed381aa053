// SPDX-License-Identifier: Apache-2.0

package rescue

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/applet"
	"sdvbox/platform/bootenv"
	"sdvbox/platform/slots"
)

const (
	// A few short interruptions of the power use up the attempts of a healthy
	// slot. Power that has lasted for retryAfter is worth a retry.
	retryAfter = 5 * time.Minute
	retryMark  = "/data/sdvbox/rescue/retried" // made before a retry
	stayMark   = runDir + "/stay"
)

// retry returns the slot that should get its attempts back without being
// asked, if any: the one confirmed last, else the first one that lacks nothing
// but attempts. Without /data nothing bounds how often.
func (r *Report) retry() string {
	if r.Reason != "exhausted" || r.Environment.Error != "" || r.Stay || !r.Data.Mounted {
		return ""
	}
	for _, name := range append([]string{r.Environment.Good}, r.Environment.Order...) {
		if slices.ContainsFunc(r.Slots, func(s Slot) bool {
			return s.Name == name && s.Known && s.OK && s.Left == 0 && s.complete()
		}) {
			return name
		}
	}
	return ""
}

// retryLater gives a slot its attempts back and boots it, as soon as the
// rescue system has run long enough and the last retry was long enough ago.
func (s *session) retryLater(ctx context.Context) {
	for wait := retryAfter; ; wait = time.Minute {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		slot, err := retryNow(ctx)
		s.try("start a slot again", err)
		if slot != "" && err == nil {
			s.say("%s has its attempts back; booting again", slot)
			s.try("boot again", unix.Kill(1, unix.SIGTERM))
			return
		}
	}
}

// retryNow returns the slot that it has made bootable, "" if it is not yet
// time or there is none.
func retryNow(ctx context.Context) (string, error) {
	if bootReason() != "exhausted" {
		return "", nil
	}
	unlock, err := exclusive(ctx)
	if err != nil {
		return "", nil // somebody is at work
	}
	defer unlock()
	slot := gather(ctx).Retry
	if slot == "" {
		return "", nil
	}
	if first, err := claim(retryMark, time.Now()); err != nil || !first {
		return "", err
	}
	store, err := bootenv.Open("")
	if err != nil {
		return "", err
	}
	return slot, refresh(store, slot)
}

// refresh gives the slot its attempts back, and nothing else.
func refresh(store bootenv.Store, slot string) error {
	return store.Update(func(v *bootenv.Vars) error {
		st, err := slots.Decode(v, store.Kind())
		if err != nil {
			return err
		}
		if !st.Slots[slot].OK {
			return errors.New(slot + " has been marked bad")
		}
		st.Refresh(slot)
		st.Encode(v, store.Kind())
		return nil
	})
}

// runStay keeps retryNow from acting until the next boot.
func runStay(context.Context, *applet.Call) error {
	if err := inRescue(); err != nil {
		return err
	}
	return os.WriteFile(stayMark, nil, 0o644)
}
