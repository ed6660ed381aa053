// SPDX-License-Identifier: Apache-2.0

//go:build !omit_containers

package main

import (
	kantocm "sdvbox/applets/kanto-cm"
	"sdvbox/platform/applet"
)

// containers are the applets that the build tag omit_containers leaves out.
func containers() []applet.Command {
	return []applet.Command{
		kantocm.Command(),
		kantocm.CtrExec(),
	}
}
