// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"sdvbox/platform/updateproto"
)

// The tutorial of Eclipse Leda's documentation, section "Self Update Tutorial". Its addresses are those of a bridge on the
// host; here all of it happens in the vehicle, whose loopback interface gets them.
var tutorialFiles = []string{
	"start-update-example.json", "download-command.json", "update-command.json", "activate-command.json", "cleanup-command.json",
}

const (
	tutorialSubscribe = `mosquitto_sub -h 192.168.7.2 -p 1883 -t "selfupdate/#"`
	tutorialPublish   = `mosquitto_pub -h 192.168.7.2 -p 1883 -t "selfupdate/desiredstate" -f start-update-example.json
mosquitto_pub -h 192.168.7.2 -p 1883 -t "selfupdate/desiredstate/command" -f download-command.json
mosquitto_pub -h 192.168.7.2 -p 1883 -t "selfupdate/desiredstate/command" -f update-command.json
mosquitto_pub -h 192.168.7.2 -p 1883 -t "selfupdate/desiredstate/command" -f activate-command.json
mosquitto_pub -h 192.168.7.2 -p 1883 -t "selfupdate/desiredstate/command" -f cleanup-command.json`
	tutorialBundle = "sdv-rauc-bundle-minimal-qemux86-64.raucb"

	// In the tutorial's files the update is asked for under one id and commanded under another.
	tutorialRequestID = "random-uuid-as-string"
	tutorialCommandID = "1234567890"
)

// said is one feedback message, as far as the documentation shows it.
type said struct {
	ActivityID, Status, Message string
	Component, Version          string
	ActionStatus                string
	Progress                    int
	ActionMessage               string
}

// tutorial follows the documentation to the letter for an update to the version, and compares what it shows.
func (c *car) tutorial(o *origin, bundle, version string) {
	c.t.Helper()
	info, err := os.Stat(bundle)
	c.must(err)
	o.offer(tutorialBundle, file{path: bundle})

	// The name leda-bundle-server, and a server at port 80 of it.
	c.run(`set -e
ip address add 192.168.7.1/32 dev lo
ip address add 192.168.7.2/32 dev lo
mkdir /tmp/tutorial
sed 's/^[0-9.]* *leda-bundle-server/192.168.7.1 leda-bundle-server/' /etc/hosts >/tmp/tutorial/hosts
mount --bind /tmp/tutorial/hosts /etc/hosts
systemd-run --quiet --unit=tutorial-http --socket-property=ListenStream=192.168.7.1:80 /usr/lib/systemd/systemd-socket-proxyd ` + o.host())
	for _, name := range tutorialFiles {
		text, err := os.ReadFile(filepath.Join("testdata/tutorial", name))
		c.must(err)
		c.run(fmt.Sprintf("cat >/tmp/tutorial/%s <<'EOF'\n%sEOF\n", name, strings.ReplaceAll(string(text), "${VERSION_ID}", version)))
	}

	c.run("cd /tmp/tutorial && { " + tutorialSubscribe + " >seen 2>&1 & }; until grep -q softwareNodes seen; do sleep 0.1; done")
	c.run("cd /tmp/tutorial && set -e\n" + tutorialPublish)
	_, err = c.vm.Run(c.within(updateTime), `until grep -Eq '"status":"(IN)?COMPLETE' /tmp/tutorial/seen; do sleep 0.5; done`)
	c.must(err)
	heard, progress := c.transcript(c.run("cat /tmp/tutorial/seen"))

	const (
		performing = "Self-update agent is performing an OS image update."
		planned    = "Self-update agent is about to perform an OS image update."
		activating = "Self-update agent is performing an OS image activation."
		activated  = "Self-update agent has activated the new OS image."
		image      = "self-update:os-image"
	)
	size := fmt.Sprintf("%.1f MiB...", float64(info.Size())/(1<<20))
	id := tutorialCommandID
	want := []said{
		{tutorialRequestID, "IDENTIFYING", "Self-update agent has received new desired state request and is evaluating it.", "", "", "", 0, ""},
		{tutorialRequestID, "IDENTIFIED", planned, image, version, "IDENTIFIED", 0, planned},
		{id, "DOWNLOADING", performing, image, version, "DOWNLOADING", 0, "Downloading 0.0 MiB..."},
		{id, "DOWNLOAD_SUCCESS", performing, image, version, "DOWNLOAD_SUCCESS", 100, "Downloaded " + size},
		{id, "UPDATING", performing, image, version, "UPDATING", 0, "Checking bundle version and version in desired state request."},
		{id, "UPDATE_SUCCESS", "Self-update completed, reboot required.", image, version, "UPDATING", 100, "Writing partition completed, reboot required."},
		{id, "ACTIVATING", activating, image, version, "UPDATING", 0, activating},
		{id, "ACTIVATION_SUCCESS", activated, image, version, "UPDATED", 0, activated},
		{id, "CLEANUP_SUCCESS", "Self-update agent has cleaned up after itself.", image, version, "UPDATE_SUCCESS", 0, activated},
		{id, "COMPLETE", "Self-update completed.", image, version, "UPDATE_SUCCESS", 0, activated},
	}
	if diff := cmp.Diff(want, heard); diff != "" {
		c.t.Errorf("the messages are not those of the documentation (-want +got):\n%s", diff)
	}
	last := 0
	for _, p := range progress {
		switch {
		case p.Status == "DOWNLOADING" && p.ActionMessage == "Downloading "+size:
		case p.Status == "UPDATING" && p.ActionMessage == "RAUC install..." && p.Progress > last:
			last = p.Progress
		default:
			c.t.Errorf("unexpected progress: %+v", p)
		}
		if p.Message != performing || p.ActionStatus != p.Status || p.Progress > 99 {
			c.t.Errorf("unexpected progress: %+v", p)
		}
	}
	if last == 0 {
		c.t.Error("no percentage of the installation was shown")
	}
	c.expect("rauc status --detailed", c.run("rauc status --detailed"), "Activated: rootfs.1 (SDV_B)", "Booted from: rootfs.0 (SDV_A)",
		"version="+version, "compatible="+compatible)
}

// transcript takes the feedback from the output of mosquitto_sub, intermediate progress apart.
func (c *car) transcript(text string) (steps, progress []said) {
	c.t.Helper()
	begin := time.Now().Add(-24 * time.Hour)
	for dec := json.NewDecoder(strings.NewReader(text)); ; {
		var m updateproto.Envelope
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			return steps, progress
		} else if err != nil {
			c.t.Fatalf("not JSON, one after the other: %v in:\n%s", err, text)
		}
		var f updateproto.Feedback
		if m.DecodePayload(&f) != nil || f.Status == "" {
			continue // a request, a command or the inventory
		}
		if at := time.UnixMilli(m.Timestamp); at.Before(begin) || at.After(time.Now().Add(24*time.Hour)) {
			c.t.Errorf("timestamp %d of %s is not now in milliseconds", m.Timestamp, f.Status)
		}
		s := said{ActivityID: m.ActivityID, Status: f.Status, Message: f.Message}
		if f.Actions == nil || len(f.Actions) > 1 {
			c.t.Errorf("%s: %d actions (%v)", f.Status, len(f.Actions), f.Actions)
		}
		for _, a := range f.Actions {
			s.Component, s.Version = a.Component.ID, a.Component.Version
			s.ActionStatus, s.Progress, s.ActionMessage = a.Status, a.Progress, a.Message
		}
		if s.Progress > 0 && (s.Status == "DOWNLOADING" || s.Status == "UPDATING") {
			progress = append(progress, s)
		} else {
			steps = append(steps, s)
		}
	}
}
