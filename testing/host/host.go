// SPDX-License-Identifier: Apache-2.0

// Host installs the Debian packages that a target of the Makefile needs and
// that the machine lacks:
//
//	go run ./testing/host [-dry-run] GROUP...
//
// It says each package and what it is for. Nothing that it installs is
// started: the tests run their own brokers and services on their own ports.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "host:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	set := flag.NewFlagSet("host", flag.ExitOnError)
	dry := set.Bool("dry-run", false, "say what is missing and install nothing")
	set.Usage = func() {
		fmt.Fprintln(set.Output(), "usage: go run ./testing/host [-dry-run] GROUP...\ngroups:", strings.Join(known(), " "))
	}
	set.Parse(args)
	wanted, err := collect(set.Args())
	if err != nil {
		return err
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("cannot install packages: this is not Debian or Ubuntu (no apt-get); needed are %s", strings.Join(nameList(wanted), " "))
	}
	present, err := installed(wanted)
	if err != nil {
		return err
	}
	missing := without(wanted, present)
	if len(missing) == 0 {
		return nil
	}
	if os.Getuid() != 0 && !*dry {
		return asRoot(args)
	}
	verb := "installing"
	if *dry {
		verb = "would install"
	}
	for _, p := range missing {
		fmt.Fprintf(out, "host: %s %s (%s)\n", verb, p.name, p.why)
	}
	if *dry {
		return nil
	}
	return install(nameList(missing), out)
}

// known returns the names of the groups.
func known() []string { return slices.Sorted(maps.Keys(groups)) }

// collect returns the packages of the groups, each once.
func collect(names []string) ([]pkg, error) {
	var list []pkg
	for _, name := range names {
		group, ok := groups[name]
		if !ok {
			return nil, fmt.Errorf("unknown group %q, want one of %s", name, strings.Join(known(), ", "))
		}
		list = append(list, without(group, nameList(list))...)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("name at least one group: %s", strings.Join(known(), ", "))
	}
	return list, nil
}

func nameList(list []pkg) []string {
	var names []string
	for _, p := range list {
		names = append(names, p.name)
	}
	return names
}

// without returns the packages of list that are not in names.
func without(list []pkg, names []string) []pkg {
	var rest []pkg
	for _, p := range list {
		if !slices.Contains(names, p.name) {
			rest = append(rest, p)
		}
	}
	return rest
}

// installed returns which of the packages the machine has.
func installed(list []pkg) ([]string, error) {
	cmd := exec.Command("dpkg-query", append([]string{"--show", "--showformat=${db:Status-Abbrev} ${Package}\n"}, nameList(list)...)...)
	out, err := cmd.Output()
	// dpkg-query ends with 1 when it does not know one of the packages.
	if exit := (*exec.ExitError)(nil); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		return nil, fmt.Errorf("ask dpkg-query for packages: %w", err)
	}
	return parseStatus(string(out)), nil
}

// parseStatus returns the packages that dpkg-query calls installed.
func parseStatus(out string) []string {
	var names []string
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "ii" {
			names = append(names, f[1])
		}
	}
	return names
}

// asRoot runs this program again through sudo.
func asRoot(args []string) error {
	if _, err := exec.LookPath("sudo"); err != nil {
		return errors.New("cannot install packages: not root, and there is no sudo")
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	return command("sudo", append([]string{exe}, args...)...)
}

const policyFile = "/usr/sbin/policy-rc.d"

// install installs the packages as root, without starting their services.
func install(names []string, out io.Writer) error {
	// invoke-rc.d and deb-systemd-invoke ask this program first; 101 means no.
	policy, err := os.OpenFile(policyFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	switch {
	case err == nil:
		defer os.Remove(policyFile)
		_, err = io.WriteString(policy, "#!/bin/sh\nexit 101\n")
		if err := errors.Join(err, policy.Close()); err != nil {
			return fmt.Errorf("write %s: %w", policyFile, err)
		}
	case !errors.Is(err, os.ErrExist):
		return err
	}
	apt := func() error {
		return command("apt-get", append([]string{"install", "-qq", "--yes", "--no-install-recommends", "-o=Dpkg::Use-Pty=0", "-o=DPkg::Lock::Timeout=300"}, names...)...)
	}
	// Lists that are missing or too old make the first attempt fail.
	if err := apt(); err != nil {
		fmt.Fprintln(out, "host: updating the lists of packages")
		if err := command("apt-get", "update", "-qq"); err != nil {
			return err
		}
		if err := apt(); err != nil {
			return err
		}
	}
	// A broker of the system would take the port at the next start.
	if slices.Contains(names, "mosquitto") {
		if _, err := exec.LookPath("systemctl"); err == nil {
			return command("systemctl", "disable", "mosquitto.service")
		}
	}
	return nil
}

// command runs a program with the output of this one.
func command(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return nil
}
