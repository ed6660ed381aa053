// SPDX-License-Identifier: Apache-2.0

package containeragent

import (
	"context"
	"fmt"
	"path/filepath"

	"sdvbox/platform/ctrtwin"
	"sdvbox/platform/mqttbus"
)

// things keeps the twin of the containers.
func things(ctx context.Context, p parts) error {
	s := p.settings.Things
	if !s.Enable || len(s.Features) == 0 {
		return nil
	}
	bus, err := mqttbus.Connect(ctx, p.settings.bus(name+"-things"), p.log, mqttbus.Options{Subscriptions: ctrtwin.Subscriptions()})
	if err != nil {
		return fmt.Errorf("twin of the containers: %w", err)
	}
	defer bus.Close()
	t, err := ctrtwin.New(ctrtwin.Config{Features: s.Features, Dir: filepath.Join(p.state, "things"), Original: s.HomeDir, Log: p.log}, p.engine, bus)
	if err != nil {
		return fmt.Errorf("twin of the containers: %w", err)
	}
	p.watch(func() error { return t.Alive(ctx) })
	return t.Run(ctx)
}
