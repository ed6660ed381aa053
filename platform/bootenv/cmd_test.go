// SPDX-License-Identifier: Apache-2.0

package bootenv

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tool is a command line of a boot loader: the real one or ours.
type tool func(args ...string) (code int, stdout, stderr string)

// installed returns the installed program name.
func installed(t *testing.T, name string) tool {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("SDVBOX_REQUIRE") == "1" {
			t.Fatalf("%v: install grub-common and libubootenv-tool", err)
		}
		t.Skip(err)
	}
	return func(args ...string) (int, string, string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		cmd := exec.Command(path, args...)
		cmd.Args[0] = name // it is in the messages
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()
	}
}

func grubEditenv(args ...string) (int, string, string) {
	var stdout, stderr bytes.Buffer
	code := GrubEditenv(args, &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func fwPrintenv(args ...string) (int, string, string) {
	var stdout, stderr bytes.Buffer
	code := FwPrintenv(args, &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func fwSetenv(args ...string) (int, string, string) {
	var stdout, stderr bytes.Buffer
	code := FwSetenv(args, strings.NewReader(""), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// randomValue has all characters that matter to one of the formats.
func randomValue(rnd *rand.Rand, alphabet string, limit int) string {
	b := make([]byte, rnd.IntN(limit))
	for i := range b {
		b[i] = alphabet[rnd.IntN(len(alphabet))]
	}
	return string(b)
}

// The same calls leave the same bytes, print the same and exit alike.
func TestGrubEditenvEqualsTheOriginal(t *testing.T) {
	original := installed(t, "grub-editenv")
	dir := t.TempDir()
	ours, theirs := filepath.Join(dir, "ours"), filepath.Join(dir, "theirs")
	rnd := rand.New(rand.NewPCG(1, 2))
	refused := 0
	for i := range 400 {
		var args []string
		switch rnd.IntN(8) {
		case 0:
			for range rnd.IntN(3) {
				args = append(args, "V"+string('a'+rune(rnd.IntN(8))))
			}
			args = append([]string{"unset"}, args...)
		case 1:
			if args = []string{"list"}; i%50 == 1 {
				args = []string{"create"}
			}
		default:
			for range 1 + rnd.IntN(4) {
				args = append(args, fmt.Sprintf("V%c=%s", 'a'+rune(rnd.IntN(8)), randomValue(rnd, "ab =#\\\n\"'\xff$", 10<<rnd.IntN(6))))
			}
			args = append([]string{"set"}, args...)
		}
		code, stdout, stderr := grubEditenv(append([]string{ours}, args...)...)
		wantCode, wantOut, wantErr := original(append([]string{theirs}, args...)...)
		if code == 0 && wantCode == 1 && len(args) > 2 {
			// The original sets one after the other and gives up though the last makes room again.
			writeFile(t, theirs, readFile(t, ours))
			continue
		}
		if code != wantCode || stdout != wantOut || stderr != wantErr {
			t.Fatalf("%q:\ngot  %d %q %q\nwant %d %q %q", args, code, stdout, stderr, wantCode, wantOut, wantErr)
		}
		if got, want := readFile(t, ours), readFile(t, theirs); !bytes.Equal(got, want) {
			t.Fatalf("%q:\nwrote %q\nwant  %q", args, got, want)
		}
		if code != 0 {
			refused++
		}
	}
	if refused == 0 {
		t.Error("the block was never too small")
	}
}

func TestGrubEditenvFailsAsTheOriginal(t *testing.T) {
	original := installed(t, "grub-editenv")
	for _, content := range []string{"", "junk", strings.Repeat("#", 1024), string(block("A=1\n"))} {
		for _, args := range [][]string{
			{"list"}, {"set", "A=2"}, {"unset", "A"}, {"set"}, {"unset"}, {"set", "A=1", "B", "C=2"}, {"bogus"}, {"-v", "list"},
			{"list", "more"}, {"list", "-v"}, {"--bogus"}, {"-x"}, {"set", "A=" + strings.Repeat("a", 2000)}, {"--", "list"},
		} {
			path := filepath.Join(t.TempDir(), "env")
			writeFile(t, path, []byte(content))
			code, stdout, stderr := grubEditenv(append([]string{path}, args...)...)
			got := readFile(t, path)
			writeFile(t, path, []byte(content))
			wantCode, wantOut, wantErr := original(append([]string{path}, args...)...)
			want := readFile(t, path)
			if code != wantCode || stdout != wantOut || stderr != wantErr {
				t.Errorf("%.30q %.30q:\ngot  %d %q %q\nwant %d %q %q", content, args, code, stdout, stderr, wantCode, wantOut, wantErr)
			}
			if wantCode != 0 && !bytes.Equal(got, want) {
				t.Errorf("%.30q %.30q: the file became %q", content, args, got)
			}
		}
	}
	for _, args := range [][]string{nil, {"-"}, {"bogus"}, {"x", "list"}} {
		t.Chdir(t.TempDir())
		code, _, stderr := grubEditenv(args...)
		wantCode, _, wantErr := original(args...)
		if code != wantCode || stderr != wantErr {
			t.Errorf("%q: got %d %q, want %d %q", args, code, stderr, wantCode, wantErr)
		}
	}
	for _, option := range []string{"--help", "-?", "--usage", "-V", "--version"} {
		code, stdout, stderr := grubEditenv(option)
		if code != 0 || !strings.Contains(stdout, "grub-editenv") || stderr != "" {
			t.Errorf("%s: got %d %q %q", option, code, stdout, stderr)
		}
	}
	code, _, stderr := grubEditenv("/nonexistent/env", "list")
	if code != 1 || stderr != "grub-editenv: error: cannot open `/nonexistent': No such file or directory.\n" {
		t.Errorf("got %d %q", code, stderr)
	}
}

func TestGrubEditenvChangesBothCopies(t *testing.T) {
	s := pair(t, numbered(1, "1"), numbered(1, "1"))
	path := s.paths[0]
	if code, _, stderr := grubEditenv(path, "set", "X=2", "ORDER=SDV_B SDV_A"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if code, stdout, _ := grubEditenv(path, "list"); code != 0 || stdout != "ORDER=SDV_B SDV_A\nX=2\n" {
		t.Errorf("exit %d, listed %q", code, stdout)
	}
	first, second := readFile(t, path), readFile(t, path+"2")
	if c := parseCopy(first); !bytes.Equal(first, second) || c.err != nil || c.seq != 2 {
		t.Errorf("files hold\n%q\n%q", first, second)
	}

	// The second copy is recreated, so the first is no plain file now.
	if err := os.Remove(path + "2"); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := grubEditenv(path, "unset", "X"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if c := parseCopy(readFile(t, path+"2")); c.err != nil || c.seq != 3 || c.vars.Has("X") {
		t.Errorf("second copy: %+v", c)
	}

	if code, _, stderr := grubEditenv(path, "create"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if code, stdout, _ := grubEditenv(path, "list"); code != 0 || stdout != "" {
		t.Errorf("exit %d, listed %q", code, stdout)
	}

	writeFile(t, path, nil)
	writeFile(t, path+"2", nil)
	if code, _, stderr := grubEditenv(path, "set", "X=1"); code != 1 || stderr != "grub-editenv: error: invalid environment block.\n" {
		t.Errorf("two empty copies: exit %d: %s", code, stderr)
	}
}

// The original reads what the store writes, and the store what the original
// writes into the first copy.
func TestOriginalReadsAndWritesTheStore(t *testing.T) {
	original := installed(t, "grub-editenv")
	s := pair(t, block(""), nil)
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 100 {
		k, value := "V"+string('a'+rune(rnd.IntN(8))), randomValue(rnd, "ab =#\\\n", 60)
		if err := s.Update(set(k, value)); err != nil {
			t.Fatal(err)
		}
		seq := parseCopy(readFile(t, s.paths[0])).seq
		want := fmt.Sprintf("SDV_SEQ=%d\n", seq)
		for _, k := range mustLoad(t, s).Keys() {
			want += k + "=" + mustLoad(t, s).Get(k) + "\n"
		}
		want += fmt.Sprintf("SDV_END=%d\n", seq)
		for _, path := range s.paths {
			if code, stdout, stderr := original(path, "list"); code != 0 || seq != plain && stdout != want {
				t.Fatalf("original lists %q %s, want %q", stdout, stderr, want)
			}
		}
		value = randomValue(rnd, "ab =#\\\n", 60)
		if code, _, stderr := original(s.paths[0], "set", k+"="+value); code != 0 {
			t.Fatal(stderr)
		}
		if got := mustLoad(t, s).Get(k); got != value {
			t.Fatalf("loaded %q, the original wrote %q", got, value)
		}
	}
}

// The model of save_env, which the power-cut tests use, edits as GRUB does.
func TestModelOfSaveEnvEqualsTheOriginal(t *testing.T) {
	original := installed(t, "grub-editenv")
	path := filepath.Join(t.TempDir(), "env")
	rnd := rand.New(rand.NewPCG(5, 6))
	b := block("#a=x\\\nb=y\na=1\nb=2\n#c\na=3\n")
	writeFile(t, path, b)
	for range 200 {
		k, value := string('a'+rune(rnd.IntN(4))), randomValue(rnd, "ab=#\\\n", 30)
		if rnd.IntN(3) == 0 {
			b = envUnset(b, k)
			original(path, "unset", k)
		} else {
			b = envSet(b, k, value)
			original(path, "set", k+"="+value)
		}
		if want := readFile(t, path); !bytes.Equal(b, want) {
			t.Fatalf("model\n%q, original\n%q", b, want)
		}
	}
}

func TestFwToolsEqualTheOriginals(t *testing.T) {
	printenv, setenv := installed(t, "fw_printenv"), installed(t, "fw_setenv")
	for _, lines := range [][]string{{"0x10 0x400"}, {"0 0x400", "0x800 400"}} {
		ours, ourFile := newUBoot(t, lines...)
		theirs, theirFile := newUBoot(t, lines...)
		if err := errors.Join(ours.create(new(Vars)), theirs.create(new(Vars))); err != nil {
			t.Fatal(err)
		}
		rnd := rand.New(rand.NewPCG(7, 8))
		for range 150 {
			args := []string{"BOOT_" + string('a'+rune(rnd.IntN(8)))}
			if value := randomValue(rnd, "ab =#\\0$", 50); rnd.IntN(4) > 0 && value != "" && value[0] != '-' {
				args = append(args, value)
			}
			code, stdout, stderr := fwSetenv(append([]string{"-c", ours.config}, args...)...)
			if code != 0 || stdout != "" || stderr != "" {
				t.Fatalf("%q: %d %q %q", args, code, stdout, stderr)
			}
			if code, _, stderr := setenv(append([]string{"-c", theirs.config}, args...)...); code != 0 {
				t.Fatalf("%q: %d %q", args, code, stderr)
			}
			// The original also writes when nothing changes, hence only the variables.
			if !mustLoad(t, ours).Equal(mustLoad(t, theirs)) {
				t.Fatalf("%q: ours has %v, theirs %v", args, mustLoad(t, ours), mustLoad(t, theirs))
			}
			var dumps []string
			for _, config := range []string{ours.config, theirs.config} {
				for _, tool := range []tool{fwPrintenv, printenv} {
					code, stdout, stderr := tool("--config", config)
					if code != 0 || stderr != "" {
						t.Fatalf("%d %q", code, stderr)
					}
					dumps = append(dumps, stdout)
				}
			}
			for _, d := range dumps {
				if d != dumps[0] {
					t.Fatalf("%q: the listings differ: %q", args, dumps)
				}
			}
		}
		if len(lines) == 1 {
			// The original leaves old bytes behind the end.
			a, b := readFile(t, ourFile)[0x14:], readFile(t, theirFile)[0x14:]
			if end := []byte{0, 0}; !bytes.Equal(a[:bytes.Index(a, end)], b[:bytes.Index(b, end)]) {
				t.Errorf("files differ:\n%q\n%q", a, b)
			}
		}
		for _, args := range [][]string{{"BOOT_a"}, {"-n", "BOOT_a"}, {"-nc", ours.config, "BOOT_a", "BOOT_b"}, {"BOOT_b", "-n"}, {"--no-header", "BOOT_a"}} {
			if code, _, stderr := fwSetenv("-c", ours.config, "BOOT_a", "1 2"); code != 0 {
				t.Fatal(stderr)
			}
			fwSetenv("-c", ours.config, "BOOT_b", "b")
			args = append([]string{"--config=" + ours.config}, args...)
			code, stdout, stderr := fwPrintenv(args...)
			wantCode, wantOut, wantErr := printenv(args...)
			if code != wantCode || stdout != wantOut || stderr != wantErr {
				t.Errorf("%q: got %d %q %q, want %d %q %q", args, code, stdout, stderr, wantCode, wantOut, wantErr)
			}
		}
	}
}

func TestFwToolsExitAsTheOriginals(t *testing.T) {
	printenv, setenv := installed(t, "fw_printenv"), installed(t, "fw_setenv")
	good, _ := newUBoot(t, "0 0x400")
	if err := good.create(new(Vars)); err != nil {
		t.Fatal(err)
	}
	bad, _ := newUBoot(t, "0 0x400", "0x400 0x400")
	dir := t.TempDir()
	config := func(name, text string) string {
		path := filepath.Join(dir, name)
		writeFile(t, path, []byte(text))
		return path
	}
	defaults := config("defaults", "a=1\n# b=2\nc=x=y\n")
	for _, test := range []struct {
		ours, original tool
		args           []string
		want           string // in stderr
	}{
		{fwPrintenv, printenv, []string{"-c", "/nonexistent"}, "/nonexistent"},
		{fwPrintenv, printenv, []string{"-c", config("empty", "")}, "expected a line DEVICE OFFSET SIZE"},
		{fwPrintenv, printenv, []string{"-c", config("gone", "/nonexistent/env 0 1000")}, "/nonexistent/env"},
		{fwPrintenv, printenv, []string{"-c", bad.config, "a"}, "bad CRC"},
		{fwPrintenv, printenv, []string{"-c", bad.config, "-f", "/nonexistent"}, "/nonexistent"},
		{fwPrintenv, printenv, []string{"-c", bad.config, "-f", defaults, "c"}, "Cannot read environment, using default"},
		{fwPrintenv, printenv, []string{"-h"}, ""},
		{fwPrintenv, printenv, []string{"-V"}, ""},
		{fwSetenv, setenv, []string{"-c", bad.config, "a", "1"}, "bad CRC"},
		{fwSetenv, setenv, []string{"-c", "/nonexistent", "a", "1"}, "/nonexistent"},
		{fwSetenv, setenv, []string{"-c", good.config, "a=b", "1"}, "illegal character '=' in variable name \"a=b\""},
		{fwSetenv, setenv, []string{"-c", good.config, "a", strings.Repeat("x", 0x400)}, "Error storing the env"},
		{fwSetenv, setenv, []string{"-h"}, ""},
	} {
		code, stdout, stderr := test.ours(test.args...)
		wantCode, wantOut, _ := test.original(test.args...)
		if code != wantCode || !strings.Contains(stderr, test.want) || stdout != wantOut && wantOut == "" {
			t.Errorf("%.80q: got %d %q %q, want %d and %q", test.args, code, stdout, stderr, wantCode, test.want)
		}
	}
	if code, _, stderr := fwSetenv("-c", bad.config, "-f", defaults, "a", "9"); code != 0 {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if got, want := text(mustLoad(t, bad)), "a=\"9\"\nc=\"x=y\"\n"; got != want {
		t.Errorf("created from defaults: %q, want %q", got, want)
	}
	if code, stdout, stderr := printenv("-c", bad.config, "a"); code != 0 || stdout != "a=9\n" || stderr != "" {
		t.Errorf("original: %d %q %q", code, stdout, stderr)
	}
}

// What is done as in U-Boot's own tools, not as in libubootenv.
func TestFwToolsTellUnsetFromEmpty(t *testing.T) {
	s, _ := newUBoot(t, "0 0x400")
	if err := s.create(new(Vars)); err != nil {
		t.Fatal(err)
	}
	if err := s.Update(set("empty", "", "a", "1")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{"empty"}, 0, "empty=\n", ""},
		{[]string{"unset"}, 1, "", "## Error: \"unset\" not defined\n"},
		{[]string{"-n", "unset"}, 1, "", "## Error: \"unset\" not defined\n"},
		{[]string{"a", "unset", "a"}, 1, "a=1\na=1\n", "## Error: \"unset\" not defined\n"},
	} {
		code, stdout, stderr := fwPrintenv(append([]string{"-c", s.config}, test.args...)...)
		if code != test.code || stdout != test.stdout || stderr != test.stderr {
			t.Errorf("%q: got %d %q %q", test.args, code, stdout, stderr)
		}
	}
	for _, args := range [][]string{{"a", ""}, {"b", "1", "2"}} {
		if code, _, stderr := fwSetenv(append([]string{"-c", s.config}, args...)...); code != 0 {
			t.Errorf("%q: exit %d: %s", args, code, stderr)
		}
	}
	if got, want := text(mustLoad(t, s)), "b=\"1 2\"\nempty=\"\"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, args := range [][]string{{}, {"-x"}, {"-s"}, {"-s", "/nonexistent"}, {"--script=/nonexistent"}} {
		if code, _, stderr := fwSetenv(append([]string{"-c", s.config}, args...)...); code != 1 || stderr == "" {
			t.Errorf("%q: exit %d: %q", args, code, stderr)
		}
	}
}

func TestScriptIsOneWrite(t *testing.T) {
	s, _ := newUBoot(t, "0 0x400", "0x400 0x400")
	if err := s.create(new(Vars)); err != nil {
		t.Fatal(err)
	}
	if err := s.Update(set("gone1", "1", "gone2", "1", "gone3", "1")); err != nil {
		t.Fatal(err)
	}
	_, before, err := s.read()
	if err != nil {
		t.Fatal(err)
	}
	script := "# comment\n\nBOOT_ORDER=A B\nBOOT_A_LEFT 3\n  args\tconsole=ttyS0 x\ngone1\ngone2=\ngone3 \nvalue== =\r\nlast=# 1"
	var stdout, stderr bytes.Buffer
	if code := FwSetenv([]string{"-c", s.config, "-s", "-"}, strings.NewReader(script), &stdout, &stderr); code != 0 {
		t.Fatalf("exit %d: %s", code, &stderr)
	}
	_, after, err := s.read()
	if err != nil {
		t.Fatal(err)
	}
	want := "BOOT_A_LEFT=\"3\"\nBOOT_ORDER=\"A B\"\nargs=\"console=ttyS0 x\"\nlast=\"# 1\"\nvalue=\"= =\"\n"
	if got := text(after.vars); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if after.flags != before.flags+1 {
		t.Errorf("%d writes", after.flags-before.flags)
	}
}
