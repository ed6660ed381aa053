// SPDX-License-Identifier: Apache-2.0

package updateproto

import "strings"

// Prefix is the first part of the topics of a domain, such as vehicleupdate
// for vehicle and selfupdate for self-update.
func Prefix(domain string) string {
	p := strings.ReplaceAll(domain, "-", "")
	if !strings.HasSuffix(p, "update") {
		p += "update"
	}
	return p
}
