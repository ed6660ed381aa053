// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// Duration is a time.Duration that a flag and a variable of the environment can set as a file can: in the spelling of Go, or as
// a number of milliseconds. The empty string leaves the default.
type Duration time.Duration

func (d Duration) String() string { return time.Duration(d).String() }

// UnmarshalConfig implements Value.
func (d *Duration) UnmarshalConfig(raw []byte) (odd string, err error) {
	var text string
	if json.Unmarshal(raw, &text) != nil {
		if kind(raw) != "a number" {
			return "", fmt.Errorf("expected a duration such as %q, found %s", "30s", kind(raw))
		}
		text = string(raw)
	}
	if text == "" {
		return "empty, the default applies", nil
	}
	if err := d.UnmarshalFlag(text); err != nil {
		return "", err
	}
	if _, err := strconv.ParseUint(text, 10, 64); err == nil {
		odd = fmt.Sprintf("number without a unit, taken as %v", *d)
	}
	return odd, nil
}

// UnmarshalFlag sets d from the command line or the environment.
func (d *Duration) UnmarshalFlag(text string) error {
	if text == "" {
		return nil
	}
	v, err := time.ParseDuration(text)
	if n, e := strconv.ParseUint(text, 10, 43); e == nil { // at most 278 years
		v, err = time.Duration(n)*time.Millisecond, nil
	}
	if err != nil || v < 0 {
		return fmt.Errorf("%.40q: expected a duration such as %q, not negative", text, "30s")
	}
	*d = Duration(v)
	return nil
}
