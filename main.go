// SPDX-License-Identifier: Apache-2.0

// Sdvbox is updates, containers and cloud of a software-defined vehicle in one
// binary: the name of the call selects the applet.
package main

import (
	"os"
	"slices"

	rauchelper "sdvbox/applets/rauc-helper"
	"sdvbox/applets/rescue"
	selfupdateagent "sdvbox/applets/self-update-agent"
	updatemanager "sdvbox/applets/update-manager"
	"sdvbox/platform/applet"
)

// table lists the applets in the order of --list.
func table() []applet.Command {
	return slices.Concat([]applet.Command{
		updatemanager.Command(),
		selfupdateagent.Command(),
		rauchelper.Command(),
	}, containers(), []applet.Command{
		rescue.Command(),
		rescue.Init(),
	})
}

func main() {
	os.Exit(applet.Main(table(), os.Args, os.Stdin, os.Stdout, os.Stderr))
}
