// SPDX-License-Identifier: Apache-2.0

// Package updatemanager is the update-manager applet: it takes one desired state for the whole vehicle, drives the agents of
// all domains through it, and gives one true answer.
package updatemanager

import (
	"sdvbox/platform/applet"
)

const name = "update-manager"

const journalFile = "journal"

// Command describes the applet.
func Command() applet.Command {
	return applet.Command{
		Name:        name,
		Summary:     "update all domains of the vehicle as one, driven over MQTT",
		Sub:         []applet.Command{statusCommand(), historyCommand(), cancelCommand(), validateCommand()},
		Daemon:      true,
		GoFlagStyle: true,
	}
}
