// SPDX-License-Identifier: Apache-2.0

// Command hello is what runs in the container of that name: it says hello to whom it was told to, and stays until it is asked to
// end.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	fmt.Printf("Hello, FOO=%s!\n", os.Getenv("FOO"))
	<-end
	fmt.Println("Goodbye!")
}
