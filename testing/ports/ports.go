// SPDX-License-Identifier: Apache-2.0

// Package ports finds TCP ports for servers that a test starts, stops, and starts again at the same place.
package ports

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Linux gives outgoing connections ports from 32768 on, and with them those of a server that is away for a moment.
const (
	first = 15000
	last  = 32000
)

// Free returns ports of a host on which nobody listens, all of them different.
func Free(host string, n int) ([]int, error) {
	var ports []int
	for tries := 0; len(ports) < n; tries++ {
		p := first + rand.IntN(last-first)
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(p)))
		if err == nil {
			defer l.Close() // not before all are found
			ports = append(ports, p)
		} else if tries > 100 {
			return nil, fmt.Errorf("find a free port of %s: %w", host, err)
		}
	}
	return ports, nil
}
