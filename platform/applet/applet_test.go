// SPDX-License-Identifier: Apache-2.0

package applet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type slotOptions struct {
	Slot string        `short:"s" long:"slot" value-name:"SLOT" env:"APPLET_TEST_SLOT" description:"the slot to look at"`
	Wait time.Duration `long:"wait" description:"how long to wait"`
	Dry  bool          `long:"dry-run" description:"change nothing"`
	Old  string        `long:"old" hidden:"yes"`
}

type goOptions struct {
	Config string `long:"config-file" description:"the configuration"`
	Reboot bool   `long:"reboot-enabled" description:"reboot"`
	Host   string `short:"h" description:"the host"`
	Count  int    `long:"count"`
}

// testTable has one command of each kind. Those that take options print them.
func testTable() []Command {
	show := func(_ context.Context, c *Call) error {
		_, err := fmt.Fprintf(c.Stdout, "%s %+v %q json=%t\n", c.Name, c.Options, c.Args, c.JSON)
		return err
	}
	return []Command{
		{
			Name: "slots", Summary: "show and switch slots", Compat: []string{"grub-editenv"},
			Description: "A paragraph that is\nbroken over lines.\n\n  kept   as it is\n",
			Exit:        []ExitCode{{3, "slot is bad"}},
			Run: func(_ context.Context, c *Call) error {
				_, err := fmt.Fprintf(c.Stdout, "%s raw %q\n", c.Name, c.Args)
				return err
			},
			Sub: []Command{
				{Name: "show", Summary: "show a slot", Args: "[SLOT...]", Run: show,
					Options: func() any { return &slotOptions{Wait: 5 * time.Minute} }},
				{Name: "fail", Summary: "fail", Args: "[CODE]", Run: func(_ context.Context, c *Call) error {
					switch strings.Join(c.Args, "") {
					case "3":
						return fmt.Errorf("cannot switch: %w", Exit(3, errors.New("slot is bad")))
					case "silent":
						return Exit(4, nil)
					}
					return errors.New("it broke")
				}},
				{Name: "secret", Summary: "not shown", Hidden: true, Run: show},
				{Name: "raw", Summary: "take anything", Raw: true, Run: show},
				{Name: "run", Summary: "run a program", Args: "PROGRAM [ARGUMENT...]", Ahead: true, Hidden: true,
					Options: func() any { return new(slotOptions) },
					Run: func(ctx context.Context, c *Call) error {
						if len(c.Args) == 0 {
							return Help
						}
						return show(ctx, c)
					}},
			},
		},
		{Name: "agent", Summary: "run the agent", Daemon: true, GoFlagStyle: true, Run: show,
			Options: func() any { return &goOptions{Reboot: true} }},
		{Name: "copy", Summary: "copy input", Args: "[FILE]", Run: func(_ context.Context, c *Call) error {
			_, err := io.Copy(c.Stdout, c.Stdin)
			return err
		}},
	}
}

type result struct {
	Code           int
	Stdout, Stderr string
}

func call(args ...string) result {
	var out, err bytes.Buffer
	code := Main(testTable(), args, strings.NewReader("input\n"), &out, &err)
	return result{code, out.String(), err.String()}
}

func TestMain(m *testing.M) {
	Version, Commit = "1.2", "abc"
	os.Exit(m.Run())
}

func TestCallReachesTheRightCommand(t *testing.T) {
	const wait = " Wait:5m0s Dry:false Old:} "
	for _, test := range []struct {
		args string
		want result
	}{
		{"sdvbox copy", result{0, "input\n", ""}},
		{"/usr/bin/copy", result{0, "input\n", ""}},
		{"./sdvbox-arm64 copy", result{0, "input\n", ""}},
		{"slots show", result{0, "slots &{Slot:" + wait + `[] json=false` + "\n", ""}},
		{"slots show a -s x b", result{0, "slots &{Slot:x" + wait + `["a" "b"] json=false` + "\n", ""}},
		{"slots show --dry-run=true", result{0, "slots &{Slot: Wait:5m0s Dry:true Old:} [] json=false\n", ""}},
		{"slots show --dry-run --dry-run=false", result{0, "slots &{Slot:" + wait + `[] json=false` + "\n", ""}},
		{"slots show -- -s", result{0, "slots &{Slot:" + wait + `["-s"] json=false` + "\n", ""}},
		{"slots show --output json", result{0, "slots &{Slot:" + wait + `[] json=true` + "\n", ""}},
		{"slots --output=json show", result{0, "slots &{Slot:" + wait + `[] json=true` + "\n", ""}},
		{"sdvbox --output=json slots show", result{0, "slots &{Slot:" + wait + `[] json=true` + "\n", ""}},
		{"slots --output=json show --output=text", result{0, "slots &{Slot:" + wait + `[] json=false` + "\n", ""}},
		{"slots secret", result{0, "slots <nil> [] json=false\n", ""}},
		{"slots raw --help -x", result{0, `slots <nil> ["--help" "-x"] json=false` + "\n", ""}},
		{"slots run -s x ls -s y --help", result{0, `slots &{Slot:x Wait:0s Dry:false Old:} ["ls" "-s" "y" "--help"] json=false` + "\n", ""}},
		{"slots", result{0, "slots raw []\n", ""}},
		{"grub-editenv - set a=b --help", result{0, `grub-editenv raw ["-" "set" "a=b" "--help"]` + "\n", ""}},
		{"sdvbox grub-editenv list", result{0, `grub-editenv raw ["list"]` + "\n", ""}},
	} {
		if diff := cmp.Diff(test.want, call(strings.Fields(test.args)...)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.args, diff)
		}
	}
}

func TestCommandMayShowItsHelp(t *testing.T) {
	got := call("slots", "run")
	if diff := cmp.Diff(call("slots", "run", "--help"), got); diff != "" || !strings.HasPrefix(got.Stdout, "Usage: slots run ") {
		t.Errorf("got %+v", got)
	}
}

func TestHelpMayHaveAValueAndHasTheFirstWord(t *testing.T) {
	want := call("slots", "show", "--help")
	for args, code := range map[string]int{
		"-h": 0, "--help=true": 0, "--help --bogus": 0, "--help -s": 0, "-h --wait=x": 0, "--bogus --help": 2, "--help=perhaps": 2, "-h=x": 2,
	} {
		got := call(append([]string{"slots", "show"}, strings.Fields(args)...)...)
		if got.Code != code || code == 0 && got != want {
			t.Errorf("%s: %+v", args, got)
		}
	}
	if got := call("agent", "--help=x"); got.Code != 2 || !strings.Contains(got.Stderr, "help") {
		t.Errorf("agent --help=x: %+v", got)
	}
}

func TestGoFlagStyleIsUnderstoodWhereAskedFor(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"agent", "Config: Reboot:true Host: Count:0"},
		{"agent -config-file=/x", "Config:/x Reboot:true Host: Count:0"},
		{"agent -config-file /x", "Config:/x Reboot:true Host: Count:0"},
		{"agent --config-file /x", "Config:/x Reboot:true Host: Count:0"},
		{"agent -config-file -x", "Config:-x Reboot:true Host: Count:0"},
		{"agent -reboot-enabled=false", "Config: Reboot:false Host: Count:0"},
		{"agent --reboot-enabled=false -count -5", "Config: Reboot:false Host: Count:-5"},
		{"agent -reboot-enabled", "Config: Reboot:true Host: Count:0"},
		{"agent -h box", "Config: Reboot:true Host:box Count:0"},
		{"agent --h=box", "Config: Reboot:true Host:box Count:0"},
	} {
		want := result{0, "agent &{" + test.want + "} [] json=false\n", ""}
		if diff := cmp.Diff(want, call(strings.Fields(test.args)...)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.args, diff)
		}
	}
	if got := call("slots", "show", "-slot=a"); got.Code == 0 && strings.Contains(got.Stdout, "Slot:a ") {
		t.Error("a command without GoFlagStyle took a long name after one dash")
	}
}

// daemonOptions have defaults from a file and options for each wheel in it.
type daemonOptions struct {
	File   string   `long:"file"`
	Reboot bool     `long:"reboot" env:"APPLET_TEST_REBOOT"`
	Count  int      `long:"count" env:"APPLET_TEST_COUNT"`
	List   []string `long:"list"`
	wheels map[string]*bool
	spare  time.Duration
}

func (o *daemonOptions) Flag(name string) any {
	if name == "spare-since" {
		return &o.spare
	}
	name, ok := strings.CutSuffix(name, "-braked")
	switch {
	case !ok:
		return nil
	case o.wheels == nil: // the file has not been read yet
		return new(bool)
	case o.wheels[name] == nil:
		return nil
	}
	return o.wheels[name]
}

// car is a daemon whose options have defaults from a file.
func car() Command {
	return Command{
		Name: "car", GoFlagStyle: true, Daemon: true,
		Options: func() any { return &daemonOptions{Count: 1} },
		Run: func(_ context.Context, c *Call) error {
			o := &daemonOptions{Count: 2, Reboot: true, List: []string{"file"}, wheels: map[string]*bool{"front-left": new(bool), "rear": new(bool)}}
			if err := c.Overlay(o); err != nil {
				return err
			}
			fmt.Fprintln(c.Stdout, c.Options.(*daemonOptions).File, o.Reboot, o.Count, o.List, *o.wheels["front-left"], *o.wheels["rear"], o.spare)
			return nil
		},
		Sub: []Command{{Name: "wash", Run: func(_ context.Context, c *Call) error {
			_, err := fmt.Fprintln(c.Stdout, "washed", c.JSON)
			return err
		}}},
	}
}

func TestCommandLineIsLaidOverAFile(t *testing.T) {
	for _, test := range []struct {
		args, env string
		want      result
	}{
		{"", "", result{0, " true 2 [file] false false 0s\n", ""}},
		{"-file x -count=3 --reboot=false", "", result{0, "x false 3 [file] false false 0s\n", ""}},
		{"-list a -list b", "", result{0, " true 2 [a b] false false 0s\n", ""}},
		{"", "REBOOT=0 COUNT=4", result{0, " false 4 [file] false false 0s\n", ""}},
		{"-count 5 -reboot", "REBOOT=0 COUNT=4", result{0, " true 5 [file] false false 0s\n", ""}},
		{"", "REBOOT=maybe COUNT=", result{0, " true 2 [file] false false 0s\n",
			"car: environment variable APPLET_TEST_REBOOT is ignored: \"maybe\": expected true or false\n" +
				"car: environment variable APPLET_TEST_COUNT is ignored: \"\": expected a whole number\n"}},
		{"", "REBOOT=", result{0, " true 2 [file] false false 0s\n", "car: environment variable APPLET_TEST_REBOOT is ignored: empty\n"}},
		{"-front-left-braked --rear-braked=true", "", result{0, " true 2 [file] true true 0s\n", ""}},
		{"-front-left-braked=false -count 6", "", result{0, " true 6 [file] false false 0s\n", ""}},
		{"-spare-since 1h -count 7", "", result{0, " true 7 [file] false false 1h0m0s\n", ""}},
		{"--spare-since=2h", "", result{0, " true 2 [file] false false 2h0m0s\n", ""}},
		{"-spare-since", "", result{2, "", "car: expected argument for flag `--spare-since'\nTry \"car --help\".\n"}},
		{"wash -spare-since 1h", "", result{2, "", "car: unknown flag `s'\nTry \"car wash --help\".\n"}},
		{"- -rear-braked=true", "", result{2, "", "car: unknown command \"-\", the nearest is \"wash\"\nTry \"car --help\".\n"}},
		{"-side-braked", "", result{2, "", "car: unknown flag `side-braked'\nTry \"car --help\".\n"}},
		{"-rear-braked=soon", "", result{2, "", "car: --rear-braked: \"soon\": expected true or false\nTry \"car --help\".\n"}},
		{"wash --output json", "COUNT=x", result{0, "washed true\n", ""}},
		{"-rear-braked wash", "", result{0, "washed false\n", ""}},
	} {
		t.Run(test.args+" "+test.env, func(t *testing.T) {
			for _, e := range strings.Fields(test.env) {
				key, value, _ := strings.Cut(e, "=")
				t.Setenv("APPLET_TEST_"+key, value)
			}
			var out, err bytes.Buffer
			code := Main([]Command{car()}, append([]string{"car"}, strings.Fields(test.args)...), nil, &out, &err)
			if diff := cmp.Diff(test.want, result{code, out.String(), err.String()}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if err := new(Call).Overlay(nil); err != nil {
		t.Errorf("a call that does not come from a command line: %v", err)
	}
}

// even is a number with an opinion of its own.
type even int

func (*even) UnmarshalFlag(text string) error { return fmt.Errorf("%q: expected an even number", text) }

func TestWrongValueIsExplainedWithoutGo(t *testing.T) {
	command := Command{Name: "x", Summary: "x", Run: func(context.Context, *Call) error { return nil }, Options: func() any {
		return new(struct {
			Interval time.Duration `short:"i" long:"interval"`
			Times    []uint        `long:"times"`
			Share    float64       `long:"share"`
			Count    *int          `short:"n"`
			Byte     int8          `long:"byte"`
			Even     even          `long:"even"`
		})
	}}
	for args, want := range map[string]string{
		"--interval=5":      `-i, --interval: "5": expected a duration such as 5s`,
		"-i 5x":             `-i, --interval: "5x": expected a duration such as 5s`,
		`--interval=a"b\c`:  `-i, --interval: "a\"b\\c": expected a duration such as 5s`,
		"--times=1 --times": "expected argument for flag `--times'",
		"--times=1.5":       `--times: "1.5": expected a whole number`,
		"--share=half":      `--share: "half": expected a number`,
		"-n x":              `-n: "x": expected a whole number`,
		"--byte=128":        `--byte: "128": out of range`,
		"--even=3":          `--even: "3": expected an even number`,
	} {
		var out bytes.Buffer
		code := Main([]Command{command}, append([]string{"x"}, strings.Fields(args)...), nil, &out, &out)
		if want := "x: " + want + "\nTry \"x --help\".\n"; code != 2 || out.String() != want {
			t.Errorf("%s: exit code %d, %s, want %s", args, code, &out, want)
		}
	}
}

func TestErrorNamesTheAppletAndSetsTheExitCode(t *testing.T) {
	for _, test := range []struct {
		args string
		want result
	}{
		{"slots fail", result{1, "", "slots: it broke\n"}},
		{"slots fail 3", result{3, "", "slots: cannot switch: slot is bad\n"}},
		{"slots fail silent", result{4, "", ""}},
		{"slots fail 3 --output json", result{3, "", `{"error":"cannot switch: slot is bad","code":3}` + "\n"}},
		{"slots fial", result{2, "", "slots: unknown command \"fial\", the nearest is \"fail\"\nTry \"slots --help\".\n"}},
		{"slots show --bogus", result{2, "", "slots: unknown flag `bogus'\nTry \"slots show --help\".\n"}},
		{"slots show --wait soon", result{2, "", "slots: --wait: \"soon\": expected a duration such as 5s\nTry \"slots show --help\".\n"}},
		{"agent extra", result{2, "", "agent: unexpected argument \"extra\"\nTry \"agent --help\".\n"}},
		{"agent --output json", result{2, "", "agent: unknown flag `output'\nTry \"agent --help\".\n"}},
		{"sdvbox", result{2, "", "sdvbox: an applet is needed\nTry \"sdvbox --help\".\n"}},
		{"sdvbox solts", result{127, "", "sdvbox: unknown applet \"solts\", the nearest is \"slots\"\nTry \"sdvbox --list\".\n"}},
		{"/usr/bin/agnet --x", result{127, "", "sdvbox: unknown applet \"agnet\", the nearest is \"agent\"\nTry \"sdvbox --list\".\n"}},
		{"sdvbox --output json cp", result{127, "", `{"error":"unknown applet \"cp\", the nearest is \"copy\"","code":127}` + "\n"}},
		{"sdvbox --man cp", result{1, "", "sdvbox: no man page for \"cp\", the nearest is \"copy\"\n"}},
	} {
		if diff := cmp.Diff(test.want, call(strings.Fields(test.args)...)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.args, diff)
		}
	}
	if got := Main(testTable(), nil, nil, io.Discard, io.Discard); got != 2 {
		t.Errorf("without any argument: exit code %d, want 2", got)
	}
}

func TestListShowsWhatIsNotHidden(t *testing.T) {
	want := result{0, "slots  show and switch slots\nagent  run the agent\ncopy   copy input\n", ""}
	if diff := cmp.Diff(want, call("sdvbox", "--list")); diff != "" {
		t.Error(diff)
	}
	want.Stdout = `[{"name":"slots","summary":"show and switch slots"},{"name":"agent","summary":"run the agent"},` +
		`{"name":"copy","summary":"copy input"}]` + "\n"
	if diff := cmp.Diff(want, call("sdvbox", "--list", "--output=json")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(result{0, "sdvbox 1.2\n", ""}, call("sdvbox", "--version")); diff != "" {
		t.Error(diff)
	}
}

// The texts of help, man page and completion are compared as a whole, because
// their layout is what counts: set UPDATE=1 to accept a change after reading it.
func TestDescriptionsAreRendered(t *testing.T) {
	for _, test := range []struct{ file, args string }{
		{"box.help", "sdvbox --help"},
		{"slots.help", "slots --help"},
		{"show.help", "slots show -h --bogus"},
		{"agent.help", "agent --help"},
		{"slots.1", "sdvbox --man slots"},
		{"sdvbox.bash", "sdvbox --completion bash"},
		{"sdvbox.zsh", "sdvbox --completion zsh"},
		{"sdvbox.fish", "sdvbox --completion fish"},
	} {
		got := call(strings.Fields(test.args)...)
		if got.Code != 0 || got.Stderr != "" {
			t.Errorf("%s: exit code %d, %s", test.args, got.Code, got.Stderr)
		}
		file := filepath.Join("testdata", test.file)
		if os.Getenv("UPDATE") != "" {
			if err := os.WriteFile(file, []byte(got.Stdout), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got.Stdout); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.args, diff)
		}
	}
}

func TestCompletionKnowsCommandsOptionsAndChoices(t *testing.T) {
	root := box(testTable())
	for _, test := range []struct{ words, want string }{
		{"sdvbox |", "slots agent copy"},
		{"sdvbox s|", "slots"},
		{"sdvbox --man|", "--man"},
		{"sdvbox --completion |", "bash zsh fish"},
		{"sdvbox slots |", "show fail raw"},
		{"slots |", "show fail raw"},
		{"/usr/bin/slots --output json f|", "fail"},
		{"slots show --|", "--slot --wait --dry-run --output --help"},
		{"slots show --output |", "text json"},
		{"slots show --output=j|", "--output=json"},
		{"slots show --output = j|", "json"},
		{"slots show --output =|", "text json"},
		{"slots show -s --output|", ""},
		{"slots show -s x --o|", "--output"},
		{"slots raw --|", ""},
		{"grub-editenv |", ""},
		{"nothing |", ""},
		{"agent --out|", ""},
	} {
		words := strings.Split(strings.TrimSuffix(test.words, "|"), " ")
		list, err := complete(&root, words)
		var got []string
		for _, e := range list {
			got = append(got, e.term)
		}
		if s := strings.Join(got, " "); s != test.want || err != nil {
			t.Errorf("%s: %q, %v; want %q", test.words, s, err, test.want)
		}
	}
	got := call("sdvbox", "__complete", "slots", "sh")
	if diff := cmp.Diff(result{0, "show\tshow a slot\n", ""}, got); diff != "" {
		t.Error(diff)
	}
}

func TestInstallMakesLinksAndNeverReplacesFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "bin")
	for range 2 { // the second run replaces the links of the first
		if got := call("sdvbox", "--install", dir); got != (result{}) {
			t.Fatal(got)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"agent", "copy", "slots"}
	var links []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		links = append(links, e.Name())
		target, _ := os.Readlink(filepath.Join(dir, e.Name()))
		if filepath.IsAbs(target) || filepath.Join(dir, target) != exe {
			t.Errorf("%s points to %s, want a relative path to %s", e.Name(), target, exe)
		}
	}
	if diff := cmp.Diff(want, links); diff != "" {
		t.Error(diff)
	}

	compat := filepath.Join(dir, "compat")
	if got := call("sdvbox", "--install-compat", compat, "--target", "../sdvbox"); got != (result{}) {
		t.Fatal(got)
	}
	if target, err := os.Readlink(filepath.Join(compat, "grub-editenv")); target != "../sdvbox" {
		t.Errorf("link for the foreign name: %q, %v", target, err)
	}

	own := filepath.Join(dir, "copy")
	os.Remove(own)
	if err := os.WriteFile(own, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := call("sdvbox", "--install", dir); got.Code != 1 || !strings.Contains(got.Stderr, "a file has this name") {
		t.Errorf("over a file: %+v", got)
	}
	if b, _ := os.ReadFile(own); string(b) != "mine" {
		t.Error("the file was replaced")
	}
}

func TestSignalCancelsTheCommand(t *testing.T) {
	table := []Command{{Name: "wait", Daemon: true, Run: func(ctx context.Context, _ *Call) error {
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return Exit(5, nil)
		case <-time.After(5 * time.Second):
			return errors.New("not cancelled")
		}
	}}}
	var stderr bytes.Buffer
	if got := Main(table, []string{"wait"}, nil, nil, &stderr); got != 5 {
		t.Errorf("exit code %d, want 5; %s", got, &stderr)
	}
}

func TestWrongOptionTagsAreReported(t *testing.T) {
	table := []Command{{Name: "bad", Options: func() any {
		return &struct {
			A bool `long:"a" default:"true"`
		}{}
	}}}
	var stderr bytes.Buffer
	if got := Main(table, []string{"bad"}, nil, nil, &stderr); got != 1 || !strings.Contains(stderr.String(), "options of bad") {
		t.Errorf("exit code %d, %s", got, &stderr)
	}
}

func FuzzCommandLine(f *testing.F) {
	f.Add("slots", "show -s x --wait=1s --output json")
	f.Add("agent", "-config-file=/x --reboot-enabled=false -h b -- -")
	f.Add("car", "-front-braked - --rear-braked=true wash -spare-since 1s")
	f.Add("sdvbox", "__complete slots show --output = j")
	f.Fuzz(func(t *testing.T, name, line string) {
		if strings.Contains(line, "install") {
			t.Skip("would write links")
		}
		var out bytes.Buffer
		args := append([]string{name}, strings.Split(line, " ")...)
		code := Main(append(testTable(), car()), args, strings.NewReader(""), &out, &out)
		if code != 0 && out.Len() == 0 && code != 4 {
			t.Errorf("%q: exit code %d without a word", args, code)
		}
	})
}
