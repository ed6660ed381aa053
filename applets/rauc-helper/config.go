// SPDX-License-Identifier: Apache-2.0

package rauchelper

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"
)

// config says which gates a slot has to pass, and how long it may take.
type config struct {
	Deadline duration `json:"deadline"`
	Interval duration `json:"interval"`
	Data     string   `json:"data"`
	Broker   string   `json:"broker"`
	Units    []string `json:"units"`
	Settled  duration `json:"settled"`
	GatesDir string   `json:"gatesDir"`
	GateTime duration `json:"gateTimeout"`
	Skip     []string `json:"skip"`
}

// defaults are the values of what no file and no option says; the shipped file repeats them.
func defaults() config {
	return config{
		Deadline: duration(5 * time.Minute),
		Interval: duration(2 * time.Second),
		Data:     "/data",
		Broker:   "tcp://127.0.0.1:1883",
		Units: []string{
			"sdvbox-*.service", "self-update-agent.service", "update-manager.service", "container-agent.service",
			"cloud-connector.service",
		},
		Settled:  duration(3 * time.Second),
		GatesDir: "/etc/sdvbox/health.d",
		GateTime: duration(30 * time.Second),
		Skip:     []string{},
	}
}

// duration is a positive time.Duration, in JSON a string such as "90s".
type duration time.Duration

func (d *duration) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return errors.New(`expected a duration such as "90s"`)
	}
	v, err := time.ParseDuration(text)
	if err != nil || v <= 0 {
		return fmt.Errorf(`%q: expected a positive duration such as "90s"`, text)
	}
	*d = duration(v)
	return nil
}

func (d duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// readConfig reads a configuration. A slot must not stay unconfirmed for a typing error, or for a key that only a later
// version knows: what is wrong is a warning and leaves the default. A missing file is none.
func readConfig(path string) (c config, warnings []string) {
	c = defaults()
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	var members map[string]json.RawMessage
	if err == nil {
		err = json.Unmarshal(data, &members)
	}
	if err != nil {
		return c, []string{fmt.Sprintf("%s: %v; the defaults apply", path, err)}
	}
	for _, key := range slices.Sorted(maps.Keys(members)) {
		// Each key for itself, into a copy: a list that is wrong in its middle must not leave its beginning.
		try := c
		try.Units, try.Skip = slices.Clone(c.Units), slices.Clone(c.Skip)
		one, err := json.Marshal(map[string]json.RawMessage{key: members[key]})
		if err == nil {
			d := json.NewDecoder(bytes.NewReader(one))
			d.DisallowUnknownFields()
			err = d.Decode(&try)
		}
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("%s: %s: %v; ignored", path, key, err))
			continue
		}
		c = try
	}
	return c, warnings
}
