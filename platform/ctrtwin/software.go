// SPDX-License-Identifier: Apache-2.0

package ctrtwin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"sdvbox/platform/durable"
	"sdvbox/platform/twin"
)

// What hawkBit's SoftwareUpdatable says of an operation.
const (
	started     = "STARTED"
	downloading = "DOWNLOADING"
	downloaded  = "DOWNLOADED"
	installing  = "INSTALLING"
	installed   = "INSTALLED"
	removing    = "REMOVING"
	removed     = "REMOVED"
	success     = "FINISHED_SUCCESS"
	failure     = "FINISHED_ERROR"
	rejected    = "FINISHED_REJECTED"
)

const (
	maxActions  = 16        // that wait for their turn
	maxSoftware = 128 << 10 // bytes of all that is remembered
	maxTries    = 10        // of a module, when the end of the agent cuts its installation short
)

// softwareStatus is what the feature shows.
type softwareStatus struct {
	ModuleType   string                `json:"softwareModuleType"`
	Last         *operationStatus      `json:"lastOperation,omitempty"`
	LastFailed   *operationStatus      `json:"lastFailedOperation,omitempty"`
	Dependencies map[string]dependency `json:"installedDependencies,omitempty"`
}

type operationStatus struct {
	CorrelationID string       `json:"correlationId"`
	Status        string       `json:"status"`
	Module        *moduleID    `json:"softwareModule,omitempty"`
	Software      []dependency `json:"software,omitempty"`
	Message       string       `json:"message,omitempty"`
}

func (s *operationStatus) failed() bool { return s.Status == failure || s.Status == rejected }

type moduleID struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// installation is the value of the operation install.
type installation struct {
	CorrelationID string   `json:"correlationId"`
	Modules       []module `json:"softwareModules"`
}

type module struct {
	ID        moduleID   `json:"softwareModule"`
	Artifacts []artifact `json:"artifacts"`
}

// artifact is a file with the description of a container.
type artifact struct {
	Name     string `json:"filename"`
	Size     int64  `json:"size"`
	Download map[string]struct {
		URL string `json:"url"`
	} `json:"download"` // by protocol
	Checksums map[string]string `json:"checksums"` // by algorithm
}

// removal is the value of the operation remove.
type removal struct {
	CorrelationID string       `json:"correlationId"`
	Software      []dependency `json:"software"`
	Forced        bool         `json:"forced"`
}

// action is one of the two, and how far it is.
type action struct {
	Name  string          `json:"name"` // of the operation
	Value json.RawMessage `json:"value"`

	Next  int      `json:"next,omitempty"`  // module, or entry
	Begun bool     `json:"begun,omitempty"` // that one has been
	Tries int      `json:"tries,omitempty"` // of that module
	Made  []string `json:"made,omitempty"`  // containers of that module, perhaps not there yet

	// Of a removal: what became of its entries.
	Removed  []dependency `json:"removed,omitempty"`
	Rejected []dependency `json:"rejected,omitempty"`
	Failed   []dependency `json:"failed,omitempty"`
	Reason   string       `json:"reason,omitempty"` // why they failed
}

// record is what is remembered over the end of the process.
type record struct {
	Last       *operationStatus `json:"last,omitempty"`
	LastFailed *operationStatus `json:"lastFailed,omitempty"`
	Actions    []*action        `json:"actions,omitempty"` // the first one is under way
}

// software is what the goroutine of Run knows of the feature.
type software struct {
	record
	journal *durable.Journal
	wake    chan struct{} // there may be an action to begin with
}

func (t *Twin) openSoftware() error {
	j, err := durable.OpenJournal(filepath.Join(t.Dir, "software"), maxSoftware)
	if err != nil {
		return err
	}
	t.software = software{journal: j, wake: make(chan struct{}, 1)}
	if data := j.Load(); data != nil {
		if err := json.Unmarshal(data, &t.software.record); err != nil {
			t.Log.Error("installations under way are forgotten", "error", err)
			t.software.record = record{}
		}
	}
	t.software.poke()
	return nil
}

func (s *software) close() {
	if s.journal != nil {
		s.journal.Close()
	}
}

func (s *software) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *software) save() error {
	data, err := json.Marshal(s.record)
	if err != nil {
		return err
	}
	return s.journal.Save(data)
}

func (t *Twin) softwareStatus() softwareStatus {
	return softwareStatus{"oci:container", t.software.Last, t.software.LastFailed, t.dependencies()}
}

// order takes an operation. It is carried out once the ones before it have been, even by the agent's next process.
func (t *Twin) order(op twin.Operation) error {
	switch op.Name {
	case "install":
		var v installation
		if err := value(op, &v); err != nil {
			return err
		}
		if len(v.Modules) == 0 {
			return twin.Invalid("softwareModules: expected at least one")
		}
		for i, m := range v.Modules {
			if len(m.Artifacts) == 0 {
				return twin.Invalid("softwareModules[%d]: expected at least one of artifacts", i)
			}
		}
	case "remove":
		var v removal
		if err := value(op, &v); err != nil {
			return err
		}
		if len(v.Software) == 0 {
			return twin.Invalid("software: expected at least one")
		}
	default:
		return unknown(op)
	}
	s := &t.software
	for _, a := range s.Actions { // after a restart, a broker may deliver again what has begun already
		if a.Name == op.Name && bytes.Equal(a.Value, compact(op.Value)) {
			return nil
		}
	}
	if len(s.Actions) >= maxActions {
		return errors.New("too many operations wait for their turn, try again later")
	}
	s.Actions = append(s.Actions, &action{Name: op.Name, Value: compact(op.Value)})
	if err := s.save(); err != nil {
		s.Actions = s.Actions[:len(s.Actions)-1]
		return fmt.Errorf("the operation cannot be remembered: %w", err)
	}
	s.poke()
	return nil
}

// compact is JSON as it is in the journal.
func compact(data json.RawMessage) json.RawMessage {
	var b bytes.Buffer
	if json.Compact(&b, data) != nil {
		return data
	}
	return b.Bytes()
}

// note keeps and publishes what becomes of an operation.
func (t *Twin) note(all ...operationStatus) {
	s := &t.software
	for _, status := range all {
		s.Last = &status
		if status.failed() {
			s.LastFailed = &status
		}
	}
	if err := s.save(); err != nil {
		t.Log.Error("how far an operation is is not kept", "error", err)
	}
	if !t.live {
		return
	}
	f := t.feature(SoftwareUpdatable)
	for _, status := range all {
		if status.failed() {
			t.say(f.Set("status/lastFailedOperation", status))
		}
		t.say(f.Set("status/lastOperation", status))
	}
}
