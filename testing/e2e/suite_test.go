// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// suites are tests of containers that have to pass also in the vehicle, which has another containerd and another kernel than this
// machine may have, systemd, and control groups of version 2 only.
var suites = []struct {
	pkg   string
	short string // those of them that always run
}{
	{pkg: "platform/ocispec", short: "KeepsItsLimits|IsConfined"},
	{pkg: "platform/containerd"},
	{pkg: "platform/containers", short: "RealNetwork"},
	{pkg: "platform/ctrlog"},
	{pkg: "platform/ctrnet"},
	{pkg: "platform/images"},
	{pkg: "applets/container-agent"},
	{pkg: "applets/kanto-cm"},
	{pkg: "testing/killmatrix"},
	{pkg: "testing/fields"},
}

// The vehicle has no compiler: what those tests build has been built.
var (
	built   = []string{"sdvbox", "sdvbox/testing/fields/probe"}
	builtGo = `#!/bin/sh
while [ $# -gt 1 ]; do [ "$1" != -o ] || out=$2; shift; done
exec cp ` + suiteDir + `/built/"${1##*/}" "$out"
`
)

// tools are programs of this machine that the tests use and the vehicle does not have.
var tools = []string{"busybox", "crun", "ctr", "docker-registry", "nft"}

// buildSuite makes a disk with the tests.
func buildSuite(t *testing.T) string {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for _, sub := range []string{"bin", "built", "lib", "tmp"} {
		must(os.MkdirAll(filepath.Join(root, sub), 0o755))
	}
	if long { // one of their tests looks at the units of all
		must(os.CopyFS(filepath.Join(root, "src/applets"), os.DirFS("../../applets")))
	}
	for _, s := range suites {
		if s.short == "" && !long {
			continue
		}
		// The tests are where their files are.
		src := filepath.Join(root, "src", s.pkg)
		if _, err := os.Stat(src); err != nil {
			must(os.MkdirAll(src, 0o755))
			must(os.CopyFS(src, os.DirFS(filepath.Join("../..", s.pkg))))
		}
		run("go", "test", "-c", "-ldflags=-s -w", "-o", filepath.Join(root, "src", s.pkg, "suite.test"), "../../"+s.pkg)
	}
	if long {
		run("go", append([]string{"build", "-ldflags=-s -w", "-o", filepath.Join(root, "built") + "/"}, built...)...)
		must(os.WriteFile(filepath.Join(root, "bin/go"), []byte(builtGo), 0o755))
	}
	for _, name := range tools {
		addTool(t, root, name)
	}
	disk := filepath.Join(dir, "suite.img")
	must(os.WriteFile(disk, nil, 0o600))
	must(os.Truncate(disk, 3<<30))
	run("mkfs.ext4", "-q", "-F", "-L", "suite", "-O", "^has_journal", "-d", root, disk)
	return disk
}

const suiteDir = "/run/suite"

// addTool takes a program along, with the libraries that it needs.
func addTool(t *testing.T, root, name string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var file string
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/bin", "/sbin"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			file = filepath.Join(dir, name)
		}
	}
	if file == "" && !required {
		t.Logf("this machine has no %s, so some tests in the vehicle are skipped", name)
		return
	}
	program, err := os.ReadFile(file)
	must(err)
	f, err := elf.Open(file)
	must(err)
	defer f.Close()
	needs, err := f.ImportedLibraries()
	must(err)
	if needs == nil {
		must(os.WriteFile(filepath.Join(root, "bin", name), program, 0o755))
		return
	}
	out, err := exec.Command("ldd", file).Output()
	must(err)
	loader := ""
	for line := range strings.Lines(string(out)) {
		for _, word := range strings.Fields(line) {
			if !strings.HasPrefix(word, "/") {
				continue
			}
			data, err := os.ReadFile(word)
			must(err)
			must(os.WriteFile(filepath.Join(root, "lib", path.Base(word)), data, 0o755))
			if strings.HasPrefix(path.Base(word), "ld-linux") {
				loader = path.Base(word)
			}
		}
	}
	must(os.WriteFile(filepath.Join(root, "lib", name), program, 0o755))
	must(os.WriteFile(filepath.Join(root, "bin", name), fmt.Appendf(nil,
		"#!/bin/sh\nexec %[1]s/lib/%[2]s --library-path %[1]s/lib %[1]s/lib/%[3]s \"$@\"\n", suiteDir, loader, name), 0o755))
}

// passes runs the tests of containers in the vehicle.
func (c *car) passes() {
	c.run("mkdir -p " + suiteDir + " && mount LABEL=suite " + suiteDir + " && mount -t overlay -o lowerdir=" + suiteDir + "/bin:/usr/bin overlay /usr/bin")
	for _, s := range suites {
		if s.short == "" && !long {
			continue
		}
		c.t.Run(s.pkg, func(t *testing.T) {
			args := "-test.v -test.timeout 50m -test.parallel 1"
			if !long {
				args += " -test.run '" + s.short + "'"
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			out, err := c.vm.Run(ctx, fmt.Sprintf(`cd %[1]s/src/%[2]s
TMPDIR=%[1]s/tmp SDVBOX_REQUIRE=%[4]s SDVBOX_PATIENCE=5 ./suite.test %[3]s >../out 2>&1 && grep -E '^ *--- ' ../out || { cat ../out; exit 1; }`, suiteDir, s.pkg, args, os.Getenv("SDVBOX_REQUIRE")))
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s", out)
		})
	}
}
