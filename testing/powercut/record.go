// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sdvbox/platform/updateproto"
	"sdvbox/testing/vehicle"
)

// journalPath is where the agent keeps its journal, below /data.
const journalPath = "/sdvbox/self-update-agent/journal"

// recording is the disk before an update and all writes of it, in files of its directory.
type recording struct {
	dir     string
	Images  map[string]string // of the slots, by version; they are in the cache
	Journal []extent
	Phases  []phase
}

// phase is a part of the update, by the length that the log had when it began.
type phase struct {
	Name string
	At   int64
}

const (
	baseFile      = "base.img"
	finalFile     = "final.img"
	logFile       = "writes.log"
	recordingFile = "recording.json"
	serialFile    = "serial.log"
)

func loadRecording(dir string) (*recording, error) {
	data, err := os.ReadFile(filepath.Join(dir, recordingFile))
	if err != nil {
		return nil, err
	}
	r := &recording{dir: dir}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, recordingFile), err)
	}
	return r, nil
}

// environments are those that a vehicle may have before the update: one that fits in a sector of the disk, as usual, and one
// that fills two, which are not written at once.
var environments = map[string]map[string]string{
	"short": nil,
	"long": {
		"ORDER": "SDV_A SDV_B", "SDV_A_OK": "1", "SDV_A_TRY": "0", "SDV_B_OK": "0", "SDV_B_TRY": "0", "SDV_GOOD": "SDV_A",
		"SDV_WHY":  "SDV_B " + strings.Repeat("was not well; ", 8),
		"SDV_ARGS": "sdvbox.none=" + strings.Repeat("0123456789", 35),
	},
}

// record updates a vehicle with such an environment from the old version to the new one and records the writes to its disk.
func (l *lab) record(ctx context.Context, env string) (*recording, error) {
	factory, err := l.factory(ctx, environments[env])
	if err != nil {
		return nil, err
	}
	r := &recording{dir: filepath.Join(l.dir, env), Images: l.images}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(r.dir, name) }
	if err := vehicle.CopyDisk(file(baseFile), factory); err != nil {
		return nil, err
	}
	l.logf("first boot of the vehicle")
	if err := l.settle(ctx, machine(file(baseFile), file(serialFile))); err != nil {
		return nil, err
	}
	if r.Journal, err = l.blocks(ctx, file(baseFile), journalPath); err != nil {
		return nil, err
	}
	if err := vehicle.CopyDisk(file(finalFile), file(baseFile)); err != nil {
		return nil, err
	}
	m := machine(file(finalFile), file(serialFile))
	m.WriteLog = file(logFile)
	if err := l.update(ctx, r, m); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return nil, err
	}
	return r, os.WriteFile(file(recordingFile), append(data, '\n'), 0o644)
}

// settle boots a vehicle for the first time and ends it with clean file systems.
func (l *lab) settle(ctx context.Context, m vehicle.Machine) error {
	v, err := vehicle.Start(ctx, m)
	if err != nil {
		return err
	}
	defer v.Kill()
	if _, err := watch(ctx, v); err != nil {
		return err
	}
	d, err := dial(ctx, v)
	if err != nil {
		return err
	}
	d.Close()
	if _, err := v.Run(ctx, "sync; echo u >/proc/sysrq-trigger; sleep 1"); err != nil {
		return err
	}
	return reset(ctx, v)
}

// update is what is recorded.
func (l *lab) update(ctx context.Context, r *recording, m vehicle.Machine) error {
	const id = "recorded"
	begin := func(name string) error {
		info, err := os.Stat(m.WriteLog)
		if err == nil {
			r.Phases = append(r.Phases, phase{name, info.Size()})
			l.logf("recording: %s", name)
		}
		return err
	}
	v, err := vehicle.Start(ctx, m)
	if err != nil {
		return err
	}
	defer func() { v.Kill() }()
	if err := begin("boot of the old version"); err != nil {
		return err
	}
	if _, err := watch(ctx, v); err != nil {
		return err
	}
	d, err := dial(ctx, v)
	if err != nil {
		return err
	}
	if err := unless(d.Update(ctx, id, newVersion, l.bundle(newVersion))); err != nil {
		return fmt.Errorf("desired state: %w", err)
	}
	for _, command := range []string{updateproto.CommandDownload, updateproto.CommandUpdate, updateproto.CommandActivate} {
		if err := begin(command); err != nil {
			return err
		}
		if err := unless(d.Step(ctx, id, command)); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
	}
	d.Close()
	if err := reset(ctx, v); err != nil {
		return err
	}
	if err := begin("boot of the new version"); err != nil {
		return err
	}
	next, err := v.Next(ctx)
	if err != nil {
		return err
	}
	v = next
	if _, err := watch(ctx, v); err != nil {
		return err
	}
	if d, err = dial(ctx, v); err != nil {
		return err
	}
	defer d.Close()
	if err := begin(updateproto.CommandCleanup); err != nil {
		return err
	}
	if err := unless(d.Step(ctx, id, updateproto.CommandCleanup)); err != nil {
		return fmt.Errorf("%s: %w", updateproto.CommandCleanup, err)
	}
	// The agent notes that the broker has the last message.
	time.Sleep(time.Second)
	return reset(ctx, v)
}

// blocks returns where a file of the data partition is on the disk.
func (l *lab) blocks(ctx context.Context, disk, path string) ([]extent, error) {
	p, err := l.layout.Partition("data")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "debugfs", "-R", "blocks "+path, fmt.Sprintf("%s?offset=%d", disk, p.Start))
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if cmd.Err != nil {
		cmd.Path, cmd.Err = "/usr/sbin/debugfs", nil
	}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("debugfs: %w", err)
	}
	const block = 4096
	var found []extent
	for word := range strings.FieldsSeq(string(out)) {
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("debugfs: %s: %q is no block number", path, word)
		}
		at := p.Start + n*block
		if last := len(found) - 1; last >= 0 && found[last].To == at {
			found[last].To += block
		} else {
			found = append(found, extent{at, at + block})
		}
	}
	if found == nil {
		return nil, fmt.Errorf("debugfs: %s is not on the disk", path)
	}
	return found, nil
}
