// SPDX-License-Identifier: Apache-2.0

package containeragent

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"sdvbox/platform/applet"
	"sdvbox/platform/ctrupdate"
	"sdvbox/platform/durable"
	"sdvbox/platform/mqttbus"
	"sdvbox/platform/updateagent"
)

// updateCapacity is the size of the journal's record: a desired state of a vehicle, and as much beside it.
const updateCapacity = 1 << 20

// updateAgent brings the containers to desired states that come over MQTT.
func updateAgent(ctx context.Context, p parts) error {
	u := p.settings.UpdateAgent
	if !u.Enable {
		return nil
	}
	journal, err := durable.OpenJournal(filepath.Join(p.state, "update-journal"), updateCapacity)
	if err != nil {
		return fmt.Errorf("update agent: %w", err)
	}
	defer journal.Close()
	// The bus outlives the agent, for which its end would be a failure.
	bus, err := mqttbus.Connect(context.WithoutCancel(ctx), p.settings.bus("container-agent-update"), p.log, mqttbus.Options{
		Subscriptions: updateagent.Subscriptions(u.Domain),
	})
	if err != nil {
		return fmt.Errorf("update agent: %w", err)
	}
	defer bus.Close()
	backend := &ctrupdate.Backend{Config: ctrupdate.Config{
		Engine:    p.engine,
		Domain:    u.Domain,
		Version:   applet.Version,
		System:    u.System,
		Scoped:    u.Scoped,
		Verbose:   u.Verbose,
		Health:    time.Duration(u.HealthTime),
		Downloads: u.Downloads,
		Log:       p.log,
	}}
	if u.RefreshTags {
		backend.Tags = p.engine
	}
	agent := updateagent.New(updateagent.Config{
		Patience: time.Duration(u.CommandTimeout),
		Domain:   u.Domain,
		Journal:  journal,
		Bus:      bus,
		Backend:  backend,
		Log:      p.log,
		Capacity: updateCapacity,
		Kanto:    true,
		Check:    backend.Check,
	})
	p.watch(agent.Alive)
	go backend.Watch(ctx, agent.Changed)
	return agent.Run(ctx)
}
