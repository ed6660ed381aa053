// SPDX-License-Identifier: Apache-2.0

package containeragent

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestUnitsStartTogether also with the deployer of Eclipse Leda, which may still be on an image and requires the original by name.
func TestUnitsStartTogether(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil && os.Getenv("SDVBOX_REQUIRE") != "1" {
		t.Skip(err)
	}
	const original = `[Unit]
Description=Kanto auto deployer
After=network-online.target container-management.service
Wants=network-online.target container-management.service
Requires=container-management.service
ConditionPathExists=/data/var/lib/kanto-auto-deployer/KAD.enabled
[Service]
ExecStart=/usr/bin/kanto-auto-deployer --daemon --mqtt /data/var/containers/manifests
Restart=on-failure
RestartSec=5
[Install]
WantedBy=multi-user.target
`
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	ours := read("../kanto-cm/kanto-auto-deployer.service")
	for name, deployer := range map[string]string{"ours": ours, "original": original} {
		dir := t.TempDir()
		for unit, text := range map[string]string{"container-agent.service": read("container-agent.service"), "kanto-auto-deployer.service": deployer} {
			text = regexp.MustCompile(`(?m)^(ExecStart=)\S+`).ReplaceAllString(text, "$1/bin/true")
			if err := os.WriteFile(filepath.Join(dir, unit), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("container-agent.service", filepath.Join(dir, "container-management.service")); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("systemd-analyze", "verify", "--man=no", dir+"/container-agent.service", dir+"/kanto-auto-deployer.service")
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":/usr/lib/systemd/system")
		// What an older systemd does not know is no mistake.
		if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "/start: ") {
			t.Errorf("with the deployer %s: %v\n%s", name, err, out)
		}
	}
}

func TestUnitsAreStartedAgainHoweverOftenTheyFail(t *testing.T) {
	units, err := filepath.Glob("../*/*.service")
	if err != nil {
		t.Fatal(err)
	}
	missing := map[string]bool{"container-agent.service": true, "self-update-agent.service": true, "update-manager.service": true}
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "\nRestart=always\n") {
			continue
		}
		delete(missing, filepath.Base(unit))
		if !strings.Contains(string(text), "\nStartLimitIntervalSec=0\n") {
			t.Errorf("%s: systemd gives it up", unit)
		}
	}
	for unit := range missing {
		t.Errorf("%s: systemd does not start it again", unit)
	}
}
