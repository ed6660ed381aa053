// SPDX-License-Identifier: Apache-2.0

//go:build !omit_containers

package main

import (
	containeragent "sdvbox/applets/container-agent"
	kantocm "sdvbox/applets/kanto-cm"
	"sdvbox/platform/applet"
)

// containers are the applets that the build tag omit_containers leaves out.
func containers() []applet.Command {
	return []applet.Command{
		containeragent.Command(),
		kantocm.Command(),
		containeragent.ControlCommand(),
		kantocm.CtrExec(),
		kantocm.AutoDeployer(),
	}
}
