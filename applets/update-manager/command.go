// SPDX-License-Identifier: Apache-2.0

// Package updatemanager is the update-manager applet: it takes one desired state for the whole vehicle, drives the agents of
// all domains through it, and gives one true answer.
package updatemanager

import (
	"context"

	"sdvbox/platform/applet"
	"sdvbox/platform/systemd"
)

const (
	name        = "update-manager"
	journalFile = "journal" // in the state directory
)

// Command describes the applet.
func Command() applet.Command {
	return applet.Command{
		Name:    name,
		Summary: "update all domains of the vehicle as one, driven over MQTT",
		Description: `Takes a desired state for the whole vehicle from the topic DOMAINupdate/desiredstate, or from the vehicle's digital twin, drives the agents of its domains through DOWNLOAD, UPDATE, ACTIVATE and CLEANUP, reboots when that is needed and safe, and says on DOMAINupdate/desiredstatefeedback how it has ended: COMPLETED, INCOMPLETE or IDENTIFICATION_FAILED, once. What is installed is on DOMAINupdate/currentstate.

What is under way is kept in --state-dir before each step, so that it goes on after a crash, a reboot or a power cut.

Without a command the daemon runs. Its options go before its configuration file, of which unknown keys and odd values are warnings; each agent has two more, --NAME-reboot-required and --NAME-read-timeout.`,
		Options: func() any { return &options{settings: defaults()} },
		Run:     func(ctx context.Context, c *applet.Call) error { return run(ctx, c, systemd.Reboot) },
		Sub: []applet.Command{
			statusCommand(), historyCommand(), cancelCommand(), validateCommand(), checkConfigCommand(),
		},
		Daemon:      true,
		GoFlagStyle: true,
	}
}
