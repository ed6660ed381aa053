// SPDX-License-Identifier: Apache-2.0

package updateproto

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// Limits of a desired state, far above those of any vehicle.
const (
	MaxDomains   = 128
	MaxBaselines = 128
	MaxName      = 256 // bytes of the id of a domain and of the title of a baseline

	// MaxDesiredState is in bytes of JSON, without spaces and without members
	// that nobody reads: as it is kept until the update has ended.
	MaxDesiredState = 256<<10 - 1
)

// DecodeDesiredState decodes a desired state and checks that it can be kept,
// and that everything in it can be told apart and answered for: domains,
// components and settings have names, baselines are made of DOMAIN:COMPONENT.
// Of several entries for one domain the last one counts. No domains at all and
// a missing activity id are for the caller to judge.
//
// The activity id is returned whenever it can be read, as Decode does.
func DecodeDesiredState(data []byte) (activityID string, ds DesiredState, err error) {
	e, err := decodeAnonymous(data)
	if err == nil {
		ds, err = e.DesiredState()
	}
	return e.ActivityID, ds, err
}

// DesiredState decodes the payload as DecodeDesiredState does.
func (e Envelope) DesiredState() (DesiredState, error) {
	var ds DesiredState
	if err := e.DecodePayload(&ds); err != nil {
		return DesiredState{}, err
	}
	if err := ds.check(); err != nil {
		return DesiredState{}, fmt.Errorf("payload.%w", err)
	}
	last := make(map[string]int, len(ds.Domains))
	for i, d := range ds.Domains {
		last[d.ID] = i
	}
	var domains []Domain
	for i, d := range ds.Domains {
		if last[d.ID] == i {
			domains = append(domains, d)
		}
	}
	ds.Domains = domains
	if raw, err := marshal(ds); err != nil {
		return DesiredState{}, err
	} else if len(raw) > MaxDesiredState {
		return DesiredState{}, fmt.Errorf("payload: %d bytes, expected at most %d", len(raw), MaxDesiredState)
	}
	return ds, nil
}

// check returns an error that begins with the path of the culprit. An entry
// that is null looks like one without members.
func (ds DesiredState) check() error {
	if n := len(ds.Domains); n > MaxDomains {
		return fmt.Errorf("domains: %d entries, expected at most %d", n, MaxDomains)
	}
	if n := len(ds.Baselines); n > MaxBaselines {
		return fmt.Errorf("baselines: %d entries, expected at most %d", n, MaxBaselines)
	}
	for i, b := range ds.Baselines {
		if b.Title == "" && len(b.Components) == 0 {
			return fmt.Errorf("baselines[%d]: neither title nor components", i)
		}
		if err := checkName(b.Title); err != nil && b.Title != "" {
			return fmt.Errorf("baselines[%d].title: %w", i, err)
		}
		for k, c := range b.Components {
			if domain, component, _ := strings.Cut(c, ":"); domain == "" || component == "" {
				return fmt.Errorf("baselines[%d].components[%d]: %q, expected DOMAIN:COMPONENT", i, k, c)
			}
		}
	}
	for i, d := range ds.Domains {
		if err := checkName(d.ID); err != nil {
			return fmt.Errorf("domains[%d].id: %w", i, err)
		}
		if err := checkSettings(d.Config); err != nil {
			return fmt.Errorf("domains[%d].%w", i, err)
		}
		for k, c := range d.Components {
			if c.ID == "" {
				return fmt.Errorf("domains[%d].components[%d].id: missing or empty", i, k)
			}
			if err := checkSettings(c.Config); err != nil {
				return fmt.Errorf("domains[%d].components[%d].%w", i, k, err)
			}
		}
	}
	return nil
}

func checkName(s string) error {
	switch {
	case s == "":
		return errors.New("missing or empty")
	case len(s) > MaxName:
		return fmt.Errorf("%d bytes, expected at most %d", len(s), MaxName)
	case strings.ContainsFunc(s, unicode.IsControl):
		return errors.New("contains a control character")
	}
	return nil
}

func checkSettings(settings []KeyValue) error {
	for i, kv := range settings {
		if kv.Key == "" {
			return fmt.Errorf("config[%d].key: missing or empty", i)
		}
	}
	return nil
}

// Split returns what a desired state says about one domain: its entry, and
// the baselines that have components of it, reduced to these.
func Split(ds DesiredState, domain string) DesiredState {
	var own DesiredState
	for _, d := range ds.Domains {
		if d.ID == domain {
			own.Domains = []Domain{d}
		}
	}
	for _, b := range ds.Baselines {
		var components []string
		for _, c := range b.Components {
			if strings.HasPrefix(c, domain+":") {
				components = append(components, c)
			}
		}
		if b.Components = components; components != nil {
			own.Baselines = append(own.Baselines, b)
		}
	}
	return own
}
