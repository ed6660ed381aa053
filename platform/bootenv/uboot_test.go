// SPDX-License-Identifier: Apache-2.0

package bootenv

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// Images that the tools of U-Boot accept.
func TestUBootImageHasKnownBytes(t *testing.T) {
	var vars Vars
	vars.Set("BOOT_ORDER", "A B")
	vars.Set("BOOT_A_LEFT", "3")
	vars.Set("BOOT_B_LEFT", "3")
	for _, test := range []struct {
		vars      *Vars
		size      int
		redundant bool
		head      string
	}{
		{&vars, 64, false, "8b766edc"},
		{&vars, 64, true, "083411b701"},
		{&vars, 4096, false, "3a0ec873"},
		{&vars, 4096, true, "a1c9721b01"},
		{new(Vars), 4096, false, "89043b60"},
	} {
		image, err := FormatUBoot(test.vars, test.size, test.redundant, 1)
		if err != nil {
			t.Fatal(err)
		}
		head, _ := hex.DecodeString(test.head)
		if !bytes.HasPrefix(image, head) {
			t.Errorf("size %d: image begins % x, want % x", test.size, image[:5], head)
		}
		got, _, err := ParseUBoot(image, test.redundant)
		if err != nil || !got.Equal(test.vars) {
			t.Errorf("size %d: parsed %v, %v", test.size, got, err)
		}
	}
}
