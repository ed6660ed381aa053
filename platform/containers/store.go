// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/durable"
)

// record is what the store keeps of a container. What is wanted is written before it is done, so that it is done even if
// the agent is killed half-way.
type record struct {
	ctrmodel.Container
	Run      bool   `json:"desired_running"`    // there should be a process, now or when the restart policy says so
	Parked   bool   `json:"parked,omitempty"`   // but not for now
	Parker   string `json:"parker,omitempty"`   // who said that
	Replaces string `json:"replaces,omitempty"` // see Succession
	Owner    string `json:"replaces_for,omitempty"`
	Switched bool   `json:"switched,omitempty"`
	Digest   string `json:"image_digest,omitempty"` // of the image that it is made of, whatever the name stands for now
	Boot     string `json:"boot,omitempty"`         // the machine's, in which the last process was started
	Relimit  bool   `json:"relimit,omitempty"`      // the process may still have other limits
}

// store keeps one directory for each container.
type store struct {
	dir   string
	guard func(room bool, write func() error) error // each write goes through it, needs room or not; nil: it is just done
}

func (s store) write(room bool, f func() error) error {
	if s.guard != nil {
		return s.guard(room, f)
	}
	return f()
}

const recordName = "config.json"

// openStore opens the store in dir. If there is none yet, it takes over the containers in the home of an original agent.
func openStore(dir, original string, log *slog.Logger) (store, error) {
	s := store{dir: dir}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	if err := durable.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return s, err
	}
	next := store{dir: dir + ".new"} // the directory appears whole or not at all
	if err := errors.Join(os.RemoveAll(next.dir), durable.MkdirAll(next.dir, 0o711)); err != nil {
		return s, err
	}
	records, err := original2records(original, log)
	if err != nil {
		return s, fmt.Errorf("take over the containers of %s: %w", original, err)
	}
	for _, r := range records {
		if err := next.save(r); err != nil {
			return s, err
		}
	}
	if len(records) > 0 {
		log.Info("took over the containers of the original agent", "from", original, "containers", len(records))
	}
	return s, durable.Rename(next.dir, dir)
}

// load returns the records. One that cannot be read is left where it is; there is only its id.
func (s store) load(log *slog.Logger) (records []*record, unreadable []string, err error) {
	dirs, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, err
	}
	for _, d := range dirs {
		path := filepath.Join(s.dir, d.Name(), recordName)
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) { // of a container that is gone, or never came to be
			if err := os.RemoveAll(filepath.Dir(path)); err != nil {
				log.Warn("cannot clear away what is left of a container", "error", err)
			}
			continue
		}
		r := new(record)
		if err == nil {
			err = json.Unmarshal(data, r)
		}
		var odd error
		if err == nil {
			odd, err = r.check(d.Name())
		}
		if err != nil {
			log.Error("cannot read the record of a container, left alone", "file", path, "error", err)
			unreadable = append(unreadable, d.Name())
			continue
		}
		if odd != nil {
			log.Error("container makes no sense, it can only be stopped and removed", "file", path, "error", odd)
		}
		records = append(records, r)
	}
	return records, unreadable, nil
}

// check says why a record cannot be that of the container with an id. What else is odd about it only keeps it from being
// started: whatever runs has to be stopped and removed by somebody.
func (r *record) check(id string) (odd, err error) {
	if r.ID != id {
		return nil, fmt.Errorf("container_id %q, expected %q as the directory says", r.ID, id)
	}
	fill := func() error {
		r.Defaults(func() string { return id })
		return r.Validate()
	}
	odd = fill()
	if odd != nil && r.HostConfig.NetworkMode == ctrmodel.HostNetwork {
		r.HostName = "" // was the machine's, whatever that was
		odd = fill()
	}
	if odd == nil {
		return nil, nil
	}
	plain := ctrmodel.Container{ID: id, Name: r.Name, Image: ctrmodel.Image{Name: id}}
	plain.Defaults(nil)
	return odd, plain.Validate()
}

func (s store) save(r *record) error {
	dir := filepath.Join(s.dir, r.ID)
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return s.write(true, func() error {
		if err := durable.MkdirAll(dir, 0o711); err != nil {
			return err
		}
		return durable.WriteFile(filepath.Join(dir, recordName), data, 0o600) // the environment may hold secrets
	})
}

// forget removes a record for good, and then what else is in its directory.
func (s store) forget(id string) error {
	dir := filepath.Join(s.dir, id)
	return s.write(false, func() error {
		if err := durable.Remove(filepath.Join(dir, recordName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return os.RemoveAll(dir)
	})
}

// original2records reads the containers of an original agent. Its containers and ours have the same names in containerd, so
// that the records are all there is to move.
func original2records(home string, log *slog.Logger) ([]*record, error) {
	if home == "" {
		return nil, nil
	}
	dirs, err := os.ReadDir(filepath.Join(home, "containers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var records []*record
	names := map[string]bool{}
	for _, d := range dirs {
		path := filepath.Join(home, "containers", d.Name(), recordName)
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // only logs
		}
		var c *ctrmodel.Container
		if err == nil {
			c, err = ctrmodel.ParseOriginal(data)
		}
		r := &record{}
		var odd error
		if err == nil {
			r.Container = *c
			odd, err = r.check(d.Name())
		}
		if err != nil {
			log.Error("cannot take over a container of the original agent", "file", path, "error", err)
			continue
		}
		if odd != nil {
			log.Error("container of the original agent makes no sense, it can only be stopped and removed", "file", path, "error", odd)
		}
		if names[r.Name] { // were allowed
			r.Name += "-" + r.ID
			log.Warn("two containers of the original agent have the same name, renamed one", "id", r.ID, "name", r.Name)
		}
		names[r.Name] = true
		// Its sandbox and its generated files end with the original agent.
		r.NetworkSettings, r.ResolvConfPath, r.HostsPath, r.HostnamePath = nil, "", "", ""
		r.Run = r.HasProcess() || r.StartedBefore && !r.ManuallyStopped && r.State.Status != ctrmodel.Dead &&
			again(r.HostConfig.RestartPolicy, r.State.ExitCode != 0 || r.State.Error != "", r.RestartCount)
		records = append(records, r)
	}
	return records, nil
}

// HasProcess reports whether the record says that there is a process.
func (r *record) HasProcess() bool { return r.State.HasProcess() }

// clone is a record that shares nothing with the other one.
func (r *record) clone() *record {
	c := *r
	c.Container = *r.Container.Clone()
	return &c
}
