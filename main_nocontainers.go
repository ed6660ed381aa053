// SPDX-License-Identifier: Apache-2.0

//go:build omit_containers

package main

import "sdvbox/platform/applet"

func containers() []applet.Command { return nil }
