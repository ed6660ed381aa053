// SPDX-License-Identifier: Apache-2.0

// Pause is what runs in the containers of a test: it does nothing until it is told to end, and then takes its time, because the
// original container management loses sight of a program that ends at once.
package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	<-told
	time.Sleep(500 * time.Millisecond)
}
