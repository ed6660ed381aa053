// SPDX-License-Identifier: Apache-2.0

package ctrtwin

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/fetch"
)

const maxDescription = 1 << 20 // bytes

// ask has the goroutine of Run do something and waits for it. It reports whether it has.
func (t *Twin) ask(ctx context.Context, f func()) bool {
	done := make(chan struct{})
	return t.do(ctx, func() { f(); close(done) }) && func() bool { <-done; return true }()
}

// install carries out what SoftwareUpdatable is asked for, one after the other. The end of ctx interrupts it; what is to be
// done is remembered.
func (t *Twin) install(ctx context.Context) {
	for {
		var a *action
		if !t.ask(ctx, func() {
			if all := t.software.Actions; len(all) > 0 {
				copied := *all[0]
				a = &copied
			}
		}) {
			return
		}
		if a == nil {
			select {
			case <-ctx.Done():
				return
			case <-t.software.wake:
			}
			continue
		}
		if t.engine.Known(ctx) != nil { // after a boot, containerd may be later than the agent
			return
		}
		j := &job{t: t, ctx: ctx, action: a}
		if a.Name == "install" {
			j.install()
		} else {
			j.remove()
		}
	}
}

// job carries out an action. Its methods return once its context has ended.
type job struct {
	*action
	t   *Twin
	ctx context.Context
}

// note keeps how far the action is, and publishes what that means. Without an action left it has ended.
func (j *job) note(ended bool, all ...operationStatus) {
	kept := *j.action
	j.t.ask(j.ctx, func() {
		s := &j.t.software
		if s.Actions[0] = &kept; ended {
			s.Actions = s.Actions[1:]
		}
		j.t.note(all...)
	})
}

// refusal is the error of what would not be right another time either.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

func (j *job) install() {
	var v installation
	if err := json.Unmarshal(j.Value, &v); err != nil { // cannot be: it has been understood before
		j.note(true, operationStatus{Status: failure, Message: err.Error()})
		return
	}
	for j.ctx.Err() == nil && j.Next < len(v.Modules) {
		m := v.Modules[j.Next]
		id := v.Modules[j.Next].ID
		is := operationStatus{CorrelationID: v.CorrelationID, Module: &id}
		j.Tries++
		say := func(status string) {
			is.Status = status
			j.note(false, is)
		}
		err := fmt.Errorf("given up: the agent has ended %d times while this was installed", maxTries)
		if j.Tries <= maxTries {
			err = j.module(m, say)
		}
		if j.ctx.Err() != nil {
			return
		}
		is.Status = success
		if err != nil {
			is.Status = failure
			if errors.As(err, new(refusal)) {
				is.Status = rejected
			}
			is.Message = errors.Join(err, j.undo()).Error()
			j.t.Log.Warn("software is not installed", "module", m.ID.Name, "version", m.ID.Version, "error", is.Message)
		}
		if j.ctx.Err() != nil {
			return
		}
		j.Next, j.Tries, j.Made = j.Next+1, 0, nil
		j.note(j.Next == len(v.Modules), is)
	}
}

// module installs one module, or goes on with it.
func (j *job) module(m module, say func(status string)) error {
	say(started)
	say(downloading)
	var all []*ctrmodel.Container
	for _, a := range m.Artifacts {
		c, err := j.description(a)
		if err != nil {
			return fmt.Errorf("%s: %w", a.Name, err)
		}
		all = append(all, c)
	}
	say(downloaded)
	if len(j.Made) != len(all) { // else it goes on
		made := make([]string, len(all))
		for i, c := range all {
			if c.ID == "" {
				c.ID = newID()
			} else if _, err := j.t.engine.Get(j.ctx, c.ID); err == nil || slices.Contains(made, c.ID) {
				return fmt.Errorf("%s: there is a container with id %s already", m.Artifacts[i].Name, c.ID)
			}
			made[i] = c.ID
		}
		j.Made = made
	}
	say(installing)
	for i, c := range all {
		c.ID = j.Made[i]
		there, err := j.there(c.ID)
		if err == nil && !there {
			_, err = j.t.engine.Create(j.ctx, c)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", m.Artifacts[i].Name, err)
		}
	}
	for i, c := range all {
		is, err := j.t.engine.Get(j.ctx, c.ID)
		if err == nil && !is.State.HasProcess() {
			err = j.t.engine.Start(j.ctx, c.ID)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", m.Artifacts[i].Name, err)
		}
	}
	say(installed)
	return nil
}

// there reports whether a container is there. It waits until one is gone whose making had been interrupted.
func (j *job) there(id string) (bool, error) {
	for {
		c, err := j.t.engine.Get(j.ctx, id)
		switch {
		case err != nil && ctrmodel.KindOf(err) == ctrmodel.NotFound:
			return false, nil
		case err != nil:
			return false, err
		case c.State.Status != ctrmodel.Dead && c.State.Status != ctrmodel.Creating:
			return true, nil
		}
		select {
		case <-j.ctx.Done():
			return false, j.ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// undo removes what a module that failed has made.
func (j *job) undo() error {
	var errs []error
	for _, id := range j.Made {
		if err := j.t.engine.Remove(j.ctx, id, true, ctrmodel.StopOptions{Force: true}); err != nil && ctrmodel.KindOf(err) != ctrmodel.NotFound {
			errs = append(errs, fmt.Errorf("container %s is left: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// description gets the file of an artifact and reads it.
func (j *job) description(a artifact) (*ctrmodel.Container, error) {
	data, err := j.download(a)
	if err != nil {
		return nil, err
	}
	if err := a.check(data); err != nil {
		return nil, refusal{err}
	}
	c, odd, err := ctrmodel.ParseDescriptor(data)
	if err == nil {
		whole := c.Clone()
		whole.Defaults(newID)
		err = whole.Validate()
	}
	if err != nil {
		return nil, refusal{err}
	}
	if odd != nil {
		j.t.Log.Warn("description of a container", "file", a.Name, "odd", odd)
	}
	if len(a.Checksums) == 0 {
		j.t.Log.Warn("description of a container without a checksum", "file", a.Name)
	}
	return c, nil
}

func (j *job) download(a artifact) ([]byte, error) {
	url := a.Download["HTTP"].URL
	if url == "" {
		url = a.Download["HTTPS"].URL
	}
	if url == "" {
		return nil, errors.New("no link of HTTP or HTTPS to download it from")
	}
	tooLarge := fmt.Errorf("more than %d bytes, expected the description of a container", maxDescription)
	ctx, cancel := context.WithCancelCause(j.ctx)
	defer cancel(nil)
	path := filepath.Join(j.t.Dir, "artifact")
	giveUp := j.t.GiveUp
	if giveUp <= 0 {
		giveUp = time.Minute
	}
	_, err := fetch.Get(ctx, fetch.Request{
		URL: url, Path: path, Client: j.t.Client, GiveUp: giveUp, Stall: min(giveUp, 30*time.Second), Log: j.t.Log,
		Progress: func(done, total int64) {
			if max(done, total) > maxDescription {
				cancel(refusal{tooLarge})
			}
		},
	})
	var data []byte
	if err == nil {
		data, err = os.ReadFile(path)
	}
	return data, errors.Join(err, fetch.Discard(path))
}

// check compares a file with all that is known of it.
func (a artifact) check(data []byte) error {
	if a.Size > 0 && int64(len(data)) != a.Size {
		return fmt.Errorf("size is %d bytes, expected %d", len(data), a.Size)
	}
	for _, h := range []struct {
		name string
		hash hash.Hash
	}{{"MD5", md5.New()}, {"SHA1", sha1.New()}, {"SHA256", sha256.New()}} {
		h.hash.Write(data)
		want := a.Checksums[h.name]
		if got := hex.EncodeToString(h.hash.Sum(nil)); want != "" && !strings.EqualFold(got, want) {
			return fmt.Errorf("%s is %s, expected %.80s", h.name, got, want)
		}
	}
	return nil
}

func (j *job) remove() {
	var v removal
	if err := json.Unmarshal(j.Value, &v); err != nil { // cannot be: it has been understood before
		j.note(true, operationStatus{Status: failure, Message: err.Error()})
		return
	}
	is := func(status string, software []dependency, message string) operationStatus {
		return operationStatus{CorrelationID: v.CorrelationID, Status: status, Software: software, Message: message}
	}
	for ; j.Next < len(v.Software); j.Next++ {
		entry := v.Software[j.Next : j.Next+1]
		if len(j.Failed) > 0 && !v.Forced {
			j.Rejected = append(j.Rejected, entry...)
			continue
		}
		again := j.Begun
		j.Begun = true
		j.note(false, is(removing, entry, ""))
		err := j.t.engine.Remove(j.ctx, entry[0].Name, true, ctrmodel.StopOptions{Force: true})
		if j.ctx.Err() != nil {
			return
		}
		j.Begun = false
		if err == nil || again && ctrmodel.KindOf(err) == ctrmodel.NotFound {
			j.Removed = append(j.Removed, entry...)
			j.Next++ // as the loop does
			j.note(false, is(removed, entry, ""))
			j.Next--
			continue
		}
		j.t.Log.Warn("software is not removed", "container", entry[0].Name, "error", err)
		j.Failed = append(j.Failed, entry...)
		j.Reason = strings.TrimPrefix(j.Reason+"; "+err.Error(), "; ")
	}
	var all []operationStatus
	if len(j.Removed) > 0 {
		all = append(all, is(success, j.Removed, ""))
	}
	if len(j.Rejected) > 0 {
		all = append(all, is(rejected, j.Rejected, "not tried, another one could not be removed"))
	}
	if len(j.Failed) > 0 {
		all = append(all, is(failure, j.Failed, j.Reason))
	}
	j.note(true, all...)
}

// newID is a random UUID.
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
