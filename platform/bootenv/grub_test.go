// SPDX-License-Identifier: Apache-2.0

package bootenv

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func block(lines string) []byte {
	b := []byte(grubHeader + lines)
	return append(b, bytes.Repeat([]byte("#"), max(0, grubSize-len(b)))...)
}

// The readings are those of grub-editenv.
func TestParseGrubReadsAsGrub(t *testing.T) {
	for _, test := range []struct{ block, want string }{
		{string(block("")), ""},
		{string(block(grubWarning + "A=1\nB=\n")), "A=\"1\"\nB=\"\"\n"},
		{string(block("A=1\n#B=2\nC=#3\n")), "A=\"1\"\nC=\"#3\"\n"},
		{string(block("#c\\\nB=2\nC=3\n")), "C=\"3\"\n"},
		{string(block(`A=a\\b` + "\\\nc=d\nB=2\n")), "A=\"a\\\\b\\nc=d\"\nB=\"2\"\n"},
		{string(block(`A=\x` + "\n")), "A=\"x\"\n"},
		{string(block("A=1\nA=2\n")), "A=\"2\"\n"},
		{string(block("A=1=2\n")), "A=\"1=2\"\n"},
		{string(block("noise\nA=1\nB=2\n")), "B=\"2\"\n"},
		{string(block("=1\nB=2\n")), "B=\"2\"\n"},
		{string(block("A=1\nB=2")), "A=\"1\"\n"},
		{string(block("A=1\x00z\nB\x00c=2\n")), "A=\"1\"\nB=\"2\"\n"},
		{grubHeader + "A=1\n" + strings.Repeat("\x00", 40), "A=\"1\"\n"},
		{grubHeader + "A=1\n" + strings.Repeat("#", 4000) + "\nB=2\n", "A=\"1\"\nB=\"2\"\n"},
		{grubHeader + `A=1\`, ""},
		{grubHeader, ""},
	} {
		v, err := ParseGrub([]byte(test.block))
		if err != nil {
			t.Errorf("%.60q: %v", test.block, err)
		} else if got := text(v); got != test.want {
			t.Errorf("%.60q: got %q, want %q", test.block, got, test.want)
		}
	}
	for _, bad := range []string{"", "A=1\n", "# GRUB Environment Block", strings.Repeat("#", 1024), "# grub environment block\n"} {
		if v, err := ParseGrub([]byte(bad)); !errors.Is(err, errHeader) {
			t.Errorf("%q: got %v, %v, want %v", bad, v, err, errHeader)
		}
	}
}

func TestFormatGrubHasKnownBytes(t *testing.T) {
	var v Vars
	set("ORDER", "A B", "A_OK", "1", "A_TRY", "0", "X", `a\b`)(&v)
	b, err := FormatGrub(&v)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != 1024 || b[24] != '\n' || b[93] != '\n' || b[125] != '\n' || len(bytes.TrimRight(b, "#")) != 126 ||
		!bytes.Contains(b, []byte("\nX=a\\\\b\n")) {
		t.Errorf("got %q", b)
	}
}

func TestFormatGrubRefusesWhatGrubCannotRead(t *testing.T) {
	for _, test := range []struct{ name, value, want string }{
		{"", "1", "variable name"},
		{"#a", "1", "variable name"},
		{"a=b", "1", "variable name"},
		{"a\nb", "1", "variable name"},
		{"a", "1\x002", "NUL"},
		{"a", strings.Repeat("x", 1024), "too small"},
		{"a", strings.Repeat("\n", 500), "too small"},
	} {
		var v Vars
		v.Set(test.name, test.value)
		if b, err := FormatGrub(&v); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q=%.20q: got %.200q, %v, want an error with %q", test.name, test.value, b, err, test.want)
		}
	}
}

func FuzzParseGrub(f *testing.F) {
	f.Add([]byte(""))
	f.Add(block(grubWarning + "SDV_SEQ=1\nORDER=SDV_A SDV_B\nSDV_END=1\n"))
	f.Add(block("a\\=b\\\nc=\\\\\n#x\\\nnoise\n=1\nB\x00=2\x00\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := ParseGrub(data)
		if err != nil {
			return
		}
		b, err := FormatGrub(v)
		if err != nil {
			if !errors.Is(err, errTooSmall) {
				t.Fatalf("parsed %q, cannot format it: %v", data, err)
			}
			return
		}
		if len(b) != grubSize {
			t.Fatalf("%d bytes", len(b))
		}
		w, err := ParseGrub(b)
		if err != nil || !w.Equal(v) || strings.Join(w.keys, "=") != strings.Join(v.keys, "=") {
			t.Fatalf("%v became %v, %v", v, w, err)
		}
		for seq := range 4 {
			b, err := formatCopy(v, seq)
			if err != nil {
				continue
			}
			if c := parseCopy(b); c.err != nil || c.seq != seq {
				t.Fatalf("copy %q: %v", b, c.err)
			}
		}
	})
}
