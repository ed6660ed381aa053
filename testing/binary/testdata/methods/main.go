// SPDX-License-Identifier: Apache-2.0

// Methods makes the linker keep every exported method.
package main

import (
	"os"
	"reflect"
)

func main() {
	reflect.ValueOf(os.Stdout).MethodByName(os.Args[0])
}
