// SPDX-License-Identifier: Apache-2.0

// Package containeragent is the container-agent applet, which keeps the containers of a device, and sdv-kanto-ctl, which edits
// its configuration.
package containeragent

import (
	"sdvbox/platform/applet"
)

const (
	name      = "container-agent"
	exitUsage = 2
)

// Command describes the daemon.
func Command() applet.Command {
	return applet.Command{
		Name:    name,
		Summary: "keep the containers of this device as they are wanted",
		Description: `Runs containers with containerd and answers kanto-cm, at the socket of Eclipse Kanto's container management, whose configuration it takes. What is wanted of a container is kept in its state directory, so that it outlives a crash and a power cut.

Over MQTT it is the update agent of the domain containers, with update_agent in the configuration, and keeps the digital twin of the containers, with things.

Containers do not need it to run: they go on while it is stopped, killed or updated. It does not need containerd to be there either: it waits, and says so.

The options go before the configuration file. SIGHUP has it read the file again for registries and their credentials.`,
		Options:     func() any { return newOptions() },
		Run:         run,
		Sub:         []applet.Command{checkConfigCommand()},
		Daemon:      true,
		GoFlagStyle: true,
	}
}
