// SPDX-License-Identifier: Apache-2.0

package updatemanager

import (
	"fmt"

	"sdvbox/platform/applet"
	"sdvbox/platform/config"
	"sdvbox/platform/daemon"
)

func checkConfigCommand() applet.Command {
	return daemon.CheckConfig(`Shows a line for each key of FILE that is unknown, is not as expected or has no effect. The update manager starts with such a file nevertheless: what it does not understand keeps its default. Without FILE, it is the one of --cfg-file or --config-file before the command, or else the one that the update manager takes by itself.

Neither the environment nor other options are looked at.`, func(o any) string { return o.(*options).file() }, checkConfig)
}

func checkConfig(name string) (*config.File, error) {
	s := defaults()
	f, err := readFile(name, &s)
	if err != nil {
		return nil, err
	}
	if f.Name == "" {
		return nil, fmt.Errorf("there is no configuration file %s", configFiles()[0])
	}
	if err := s.check(f); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", f.Name, err)
	}
	for _, key := range []string{"connection.disconnectTimeout", "connection.unsubscribeTimeout"} {
		if f.Has(key) {
			f.Warn(key, "has no effect")
		}
	}
	return f, nil
}
