// SPDX-License-Identifier: Apache-2.0

package bootenv

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Images that the tools of U-Boot accept.
func TestUBootImageHasKnownBytes(t *testing.T) {
	var vars Vars
	set("BOOT_ORDER", "A B", "BOOT_A_LEFT", "3", "BOOT_B_LEFT", "3")(&vars)
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

// ubootImage is an image with data, which need not be well-formed.
func ubootImage(data string, flags byte) []byte {
	b := append(make([]byte, 4), flags)
	b = append(b, data...)
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[5:]))
	return b
}

func TestParseUBootReadsWhatTheCRCCovers(t *testing.T) {
	for data, want := range map[string]string{
		"a=1\x00b=x=y\x00\x00stale=1\x00\x00": "a=\"1\"\nb=\"x=y\"\n",
		"\x00\x00\x00":                        "",
		"\x00stale=1\x00":                     "",
		"a=\x00\x00":                          "a=\"\"\n",
		"a=1\x00noise\x00=2\x00b=3\x00\x00":   "a=\"1\"\nb=\"3\"\n",
		"a=1\x00a=2\x00\x00":                  "a=\"2\"\n",
		"a=1\x00b=unterminated":               "a=\"1\"\nb=\"unterminated\"\n",
	} {
		image := ubootImage(data, 7)
		v, flags, err := ParseUBoot(image, true)
		if err != nil || flags != 7 || text(v) != want {
			t.Errorf("%q: got %v, %d, %v, want %q", data, v, flags, err, want)
		}
		for _, i := range []int{0, 5, len(image) - 1} {
			bad := bytes.Clone(image)
			bad[i] ^= 1
			if _, _, err := ParseUBoot(bad, true); err == nil || !strings.Contains(err.Error(), "CRC") {
				t.Errorf("%q with a wrong byte %d: got %v", data, i, err)
			}
		}
	}
	if _, _, err := ParseUBoot([]byte{1, 2, 3, 4}, false); err == nil {
		t.Error("an image without data was accepted")
	}
}

func TestFormatUBootRefusesWhatDoesNotFit(t *testing.T) {
	for _, test := range []struct {
		name, value string
		size        int
		want        string
	}{
		{"a=b", "1", 64, "variable name"},
		{"", "1", 64, "variable name"},
		{"a", "1\x00", 64, "NUL"},
		{"a", "12345", 12, "it needs 13 bytes"},
	} {
		var v Vars
		v.Set(test.name, test.value)
		if _, err := FormatUBoot(&v, test.size, false, 0); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q=%q: got %v, want an error with %q", test.name, test.value, err, test.want)
		}
	}
	var v Vars
	v.Set("a", "12345")
	if b, err := FormatUBoot(&v, 13, false, 0); err != nil || string(b[4:]) != "a=12345\x00\x00" {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestConfigIsReadAsTheUBootToolsDo(t *testing.T) {
	for _, test := range []struct {
		config string
		want   []region
		err    string
	}{
		{config: "/dev/x 0x0 0x1000\n", want: []region{{"/dev/x", 0, 0x1000}}},
		{config: "# comment\n\n\t/x  010 4000 0x200 1 # end\n", want: []region{{"/x", 8, 0x4000}}},
		{config: "/x -0x2000 0X1000\n/x -0x1000 0x1000 0 0 1", want: []region{{"/x", -0x2000, 0x1000}, {"/x", -0x1000, 0x1000}}},
		{config: "/x 16 1000\r\n/y 16 1000\r\n", want: []region{{"/x", 16, 0x1000}, {"/y", 16, 0x1000}}},
		{config: "", err: "no environment"},
		{config: "/x 0x0\n", err: "line 1: \"/x 0x0\": expected DEVICE OFFSET SIZE"},
		{config: "\n/x zero 1000\n", err: "line 2: offset \"zero\""},
		{config: "/x 0 10g\n", err: "size \"10g\""},
		{config: "/x 0 4\n", err: "size \"4\""},
		{config: "/x 0 ffffffff\n", err: "size \"ffffffff\""},
		{config: "/x -0x10 0x1000\n", err: "do not fit"},
		{config: "/x 0 1000\n/y 0 2000\n", err: "differ in size"},
		{config: "/x 0 1000\n/x 0xfff 1000\n", err: "overlap"},
		{config: "/x 0 1000\n/y 0 1000\n/z 0 1000\n", err: "3 environments"},
	} {
		got, err := parseConfig([]byte(test.config))
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%q: got %v, want an error with %q", test.config, err, test.err)
			}
		} else if err != nil || fmt.Sprint(got) != fmt.Sprint(test.want) {
			t.Errorf("%q: got %v, %v, want %v", test.config, got, err, test.want)
		}
	}
}

// newUBoot returns a store with an empty file of 0x4000 bytes and one line of
// configuration, "OFFSET SIZE", for each copy.
func newUBoot(t *testing.T, lines ...string) (store *ubootStore, path string) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "env.bin")
	config := filepath.Join(dir, "fw_env.config")
	var b strings.Builder
	for _, line := range lines {
		fmt.Fprintln(&b, path, line)
	}
	err := errors.Join(os.WriteFile(path, make([]byte, 0x4000), 0o644), os.WriteFile(config, []byte(b.String()), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	if store, err = openUBoot(config); err != nil {
		t.Fatal(err)
	}
	return store, path
}

func TestUBootCopiesAreWrittenInTurn(t *testing.T) {
	store, path := newUBoot(t, "0x100 0x200", "-0x200 0x200")
	if _, err := store.Load(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "CRC") {
		t.Fatalf("got %v, want ErrInvalid with a cause", err)
	}
	if err := store.Update(set("a", "1")); !errors.Is(err, ErrInvalid) {
		t.Fatalf("update: got %v, want ErrInvalid", err)
	}
	if err := Create(store.String(), new(Vars)); err != nil {
		t.Fatal(err)
	}
	copies := func() [2][]byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) != 0x4000 {
			t.Fatalf("the file has %#x bytes", len(b))
		}
		return [2][]byte{b[0x100:0x300], b[0x3e00:]}
	}
	before := copies()
	// Twice around the flags.
	for i := range 600 {
		if err := store.Update(set("b", fmt.Sprint(i), "a", "1")); err != nil {
			t.Fatal(err)
		}
		after := copies()
		if bytes.Equal(after[0], before[0]) == bytes.Equal(after[1], before[1]) {
			t.Fatalf("update %d changed both copies or none", i)
		}
		if got := mustLoad(t, store).Get("b"); got != fmt.Sprint(i) {
			t.Fatalf("update %d: loaded %s", i, got)
		}
		if err := store.Update(set("b", fmt.Sprint(i))); err != nil || !equalCopies(after, copies()) {
			t.Fatalf("an update without change wrote something, or %v", err)
		}
		before = after
	}
	if last := "a=1\x00b=599\x00\x00"; !bytes.Contains(before[0], []byte(last)) && !bytes.Contains(before[1], []byte(last)) {
		t.Errorf("no copy contains %q", last)
	}
}

func equalCopies(a, b [2][]byte) bool { return bytes.Equal(a[0], b[0]) && bytes.Equal(a[1], b[1]) }

func TestHigherFlagsCount(t *testing.T) {
	for _, test := range []struct {
		first, second int // flags, -1: damaged
		want          string
	}{
		{1, 1, "1"}, {1, 2, "2"}, {2, 1, "1"}, {255, 0, "2"}, {0, 255, "1"}, {255, 1, "1"}, {1, 255, "2"}, {254, 255, "2"},
		{-1, 0, "2"}, {255, -1, "1"},
	} {
		store, path := newUBoot(t, "0 0x400", "0x400 0x400")
		file := make([]byte, 0x4000)
		for i, flags := range []int{test.first, test.second} {
			var v Vars
			v.Set("copy", fmt.Sprint(i+1))
			image, err := FormatUBoot(&v, 0x400, true, byte(max(flags, 0)))
			if err != nil {
				t.Fatal(err)
			}
			if flags < 0 {
				image[0x300] ^= 1
			}
			copy(file[i*0x400:], image)
		}
		if err := os.WriteFile(path, file, 0o644); err != nil {
			t.Fatal(err)
		}
		if got := mustLoad(t, store).Get("copy"); got != test.want {
			t.Errorf("flags %d and %d: loaded copy %s, want %s", test.first, test.second, got, test.want)
		}
		damaged := test.first < 0 || test.second < 0
		if changed, err := store.Repair(); changed != damaged || err != nil {
			t.Errorf("repair: %v, %v", changed, err)
		}
		copies, _, err := store.read()
		if err != nil || copies[0].err != nil || copies[1].err != nil {
			t.Errorf("after repair: %v", err)
		}
		if got := mustLoad(t, store).Get("copy"); got != test.want {
			t.Errorf("repaired copy %s, want %s", got, test.want)
		}
		if err := store.Update(set("copy", "new")); err != nil {
			t.Fatal(err)
		}
		if got := mustLoad(t, store).Get("copy"); got != "new" {
			t.Errorf("flags %d and %d: loaded copy %s after an update", test.first, test.second, got)
		}
	}
}

func TestSingleUBootEnvironmentIsCreatedAndUpdated(t *testing.T) {
	store, path := newUBoot(t, "0x10 0x100")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := Create(store.String(), new(Vars)); err != nil {
		t.Fatal(err)
	}
	if err := store.Update(set("a", "1")); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || len(b) != 0x110 || string(b[0x14:0x19]) != "a=1\x00\x00" {
		t.Errorf("the file is %q, %v", b, err)
	}
	if store.Kind() != UBoot || !strings.HasPrefix(store.String(), "uboot:") {
		t.Errorf("store is %v %v", store.Kind(), store)
	}
}

func TestRawFlashIsRefused(t *testing.T) {
	config := filepath.Join(t.TempDir(), "fw_env.config")
	if err := os.WriteFile(config, []byte("/dev/zero 0 0x1000\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := Open("uboot:" + config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(); err == nil || !strings.Contains(err.Error(), "raw flash") {
		t.Errorf("got %v", err)
	}
}

func FuzzParseUBoot(f *testing.F) {
	f.Add([]byte("a=1\x00b=x=y\x00\x00stale"), true)
	f.Add([]byte("\x00\x00"), false)
	f.Fuzz(func(t *testing.T, data []byte, redundant bool) {
		ParseUBoot(data, redundant) // must not panic, whatever the CRC
		image := append(make([]byte, headerLen(redundant)), data...)
		binary.LittleEndian.PutUint32(image, crc32.ChecksumIEEE(data))
		v, _, err := ParseUBoot(image, redundant)
		if err != nil {
			return
		}
		b, err := FormatUBoot(v, len(image)+2, redundant, 9)
		if err != nil {
			t.Fatalf("parsed %q, cannot format it: %v", data, err)
		}
		w, flags, err := ParseUBoot(b, redundant)
		if err != nil || !w.Equal(v) || redundant && flags != 9 {
			t.Fatalf("%v became %v, %d, %v", v, w, flags, err)
		}
	})
}

func FuzzFwEnvConfig(f *testing.F) {
	f.Add([]byte("# x\n/dev/mmcblk0 -0x8000 0x4000 0x200 1\n/dev/mmcblk0 -0x4000 4000\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		regions, err := parseConfig(data)
		if err != nil {
			return
		}
		var b strings.Builder
		for _, r := range regions {
			if r.size < 8 || r.size > maxUBoot || r.offset < 0 && r.offset+r.size > 0 {
				t.Fatalf("accepted %+v", r)
			}
			fmt.Fprintf(&b, "%s %#x %#x\n", r.path, r.offset, r.size)
		}
		again, err := parseConfig([]byte(b.String()))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(regions) {
			t.Fatalf("%v became %v, %v", regions, again, err)
		}
	})
}
