// SPDX-License-Identifier: Apache-2.0

// Package soak lets one update manager do many updates, good and bad ones, while the broker comes and goes, and looks at what it
// leaves behind. Agents, manager and test share a process, so that the race detector sees all of them; the broker is mosquitto.
package soak
