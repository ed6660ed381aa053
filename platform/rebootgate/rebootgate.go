// SPDX-License-Identifier: Apache-2.0

// Package rebootgate knows whether the vehicle may be rebooted now. Those who may object are the hours of maintenance, the
// vehicle's own word on its state, and programs that the vehicle's maker has put into a directory. All have to agree.
package rebootgate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"sdvbox/platform/dropin"
)

// Config says who is asked. The zero Config asks nobody: a reboot is always safe.
type Config struct {
	Topic   bool     `json:"topic"`   // the vehicle says when it is safe, see Gate.Said
	DropIns string   `json:"dropIns"` // directory of programs; one that does not exist has none
	Windows []Window `json:"windows"` // hours of maintenance; without one, any hour will do
	// DropInTimeout is how long each program may take. 0 stands for 30 s.
	DropInTimeout time.Duration `json:"dropInTimeout"`
}

// Gate keeps watch over reboots. Its methods may be called at the same time.
type Gate struct {
	config  Config
	windows []window
	closed  string // why it always objects; empty: it does not

	mu     sync.Mutex
	safe   bool
	reason string
}

// New returns the gate that c describes. The error names the key that is wrong.
func New(c Config) (*Gate, error) {
	g := &Gate{config: c, reason: "no word from it yet"}
	if c.DropIns != "" && !filepath.IsAbs(c.DropIns) {
		return nil, fmt.Errorf("dropIns: %q: expected an absolute path", c.DropIns)
	}
	if c.DropInTimeout < 0 {
		return nil, fmt.Errorf("dropInTimeout: %v: expected a positive duration", c.DropInTimeout)
	}
	if c.DropInTimeout == 0 {
		g.config.DropInTimeout = 30 * time.Second
	}
	for i, w := range c.Windows {
		parsed, err := w.parse()
		if err != nil {
			return nil, fmt.Errorf("windows[%d].%w", i, err)
		}
		g.windows = append(g.windows, parsed)
	}
	return g, nil
}

// Closed returns a gate that always objects, with this reason: for when it is not known who may object.
func Closed(reason string) *Gate { return &Gate{closed: reason} }

// Said takes the vehicle's word, which holds until the next. Before the first, the vehicle counts as not safe. A message that
// cannot be understood is best taken as a no.
func (g *Gate) Said(safe bool, reason string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.safe, g.reason = safe, reason
}

// Safe says whether all agree, else who objects and why. Windows are understood in the time zone of now. The programs are asked
// last, in the order of their names, up to the first that objects: one of them may well put the question to the driver.
func (g *Gate) Safe(ctx context.Context, now time.Time) (bool, string) {
	objections := strings.Join(nonempty(g.closed, g.hours(now), g.vehicle()), "; ")
	if objections == "" {
		objections = g.programs(ctx)
	}
	if objections == "" {
		objections = g.vehicle() // it may have driven off while the programs ran
	}
	return objections == "", objections
}

func nonempty(texts ...string) []string {
	var kept []string
	for _, t := range texts {
		if t != "" {
			kept = append(kept, t)
		}
	}
	return kept
}

// hours, vehicle and programs return the objection of each, "" for none.

func (g *Gate) hours(now time.Time) string {
	if len(g.windows) == 0 || open(g.windows, now) {
		return ""
	}
	return "outside of the hours of maintenance, which begin again on " + opening(g.windows, now).Format("Mon 2 Jan at 15:04 MST")
}

func (g *Gate) vehicle() string {
	if !g.config.Topic {
		return ""
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.safe:
		return ""
	case g.reason == "":
		return "the vehicle says that it is not safe"
	}
	return "the vehicle is not safe: " + g.reason
}

func (g *Gate) programs(ctx context.Context) string {
	if g.config.DropIns == "" {
		return ""
	}
	entries, err := os.ReadDir(g.config.DropIns)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		return err.Error()
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(g.config.DropIns, e.Name())
		if err := g.ask(ctx, path); err != nil {
			return path + ": " + err.Error()
		}
	}
	return ""
}

// ask asks one program. A file that should not be run is no reason to go without its answer.
func (g *Gate) ask(ctx context.Context, path string) error {
	fi, err := os.Stat(path)
	switch {
	case err != nil:
		return errors.Unwrap(err)
	case !fi.Mode().IsRegular():
		return errors.New("not a file")
	case fi.Mode()&0o111 == 0:
		return errors.New("not executable")
	case fi.Mode()&0o002 != 0:
		return errors.New("anybody may write to it, so it is not run")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, g.config.DropInTimeout, fmt.Errorf("no answer within %v", g.config.DropInTimeout))
	defer cancel()
	return dropin.Run(ctx, path)
}
