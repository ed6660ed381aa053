// SPDX-License-Identifier: Apache-2.0

package bootenv

import (
	"os"
	"path/filepath"
	"testing"
)

func set(kv ...string) func(*Vars) error {
	return func(v *Vars) error {
		for i := 0; i < len(kv); i += 2 {
			v.Set(kv[i], kv[i+1])
		}
		return nil
	}
}

func TestGrubStoreKeepsTwoEqualCopies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "grubenv")
	if err := Create("grub:"+path, new(Vars)); err != nil {
		t.Fatal(err)
	}
	s, err := Open("grub:" + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Update(set("X", "1", "SDV_A_OK", "1", "ORDER", "SDV_A SDV_B")); err != nil {
		t.Fatal(err)
	}
	want := grubHeader + grubWarning + "SDV_SEQ=2\nORDER=SDV_A SDV_B\nSDV_A_OK=1\nX=1\nSDV_END=2\n####"
	for _, p := range []string{path, path + "2"} {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) != grubSize || string(b[:len(want)]) != want {
			t.Errorf("%s is %q, want %q", filepath.Base(p), b, want)
		}
	}
	if vars, err := s.Load(); err != nil || vars.Get("ORDER") != "SDV_A SDV_B" || vars.Has("SDV_SEQ") {
		t.Errorf("loaded %v, %v", vars, err)
	}
}
