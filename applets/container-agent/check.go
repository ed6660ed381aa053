// SPDX-License-Identifier: Apache-2.0

package containeragent

import (
	"cmp"
	"fmt"

	"sdvbox/platform/applet"
	"sdvbox/platform/config"
	"sdvbox/platform/daemon"
)

func checkConfigCommand() applet.Command {
	return daemon.CheckConfig(`Shows a line for each key of FILE that is unknown, is not as expected or has no effect. The agent starts with such a file nevertheless. Without FILE, it is the one of --cfg-file before the command, or else the usual one.

Other options before the command are not looked at.`, func(o any) string { return o.(*options).CfgFile }, checkConfig)
}

func checkConfig(file string) (*config.File, error) {
	s := defaults()
	f, err := readFile(file, &s)
	if err != nil {
		return nil, err
	}
	if f.Name == "" {
		return nil, fmt.Errorf("there is no configuration file %s", cmp.Or(file, configFile))
	}
	s.check(f)
	for _, key := range []string{
		"manager.container_client_sid", "manager.network_manager_sid", "network.home_dir", "deployment.home_dir",
		"connection.disconnect_timeout", "connection.unsubscribe_timeout",
	} {
		if f.Has(key) {
			f.Warn(key, "has no effect")
		}
	}
	return f, nil
}
