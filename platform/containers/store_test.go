// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sdvbox/platform/ctrmodel"
)

func TestOddRecords(t *testing.T) {
	t.Parallel()
	const host = `"host_config": {"network_mode": "host"}`
	for text, want := range map[string]struct{ odd, bad bool }{
		`{"container_id": "id", "image": {"name": "x"}}`:                                      {},
		`{"container_id": "id", "image": {"name": "x"}, "host_name": "(none)", ` + host + `}`: {},
		`{"container_id": "id", "image": {"name": "x"}, "host_name": "(none)"}`:               {odd: true},
		`{"container_id": "id"}`:               {odd: true},
		`{"container_id": "id", ` + host + `}`: {odd: true},
		`{"container_id": "id", "image": {"name": "x"}, "host_config": {"network_mode": "token-ring"}}`:          {odd: true},
		`{"container_id": "id", "image": {"name": "x"}, "host_config": {"restart_policy": {"type": "perhaps"}}}`: {odd: true},
		`{"container_id": "other", "image": {"name": "x"}}`:                                                      {bad: true},
		`{"container_id": "id", "image": {"name": "x"}, "container_name": "no name"}`:                            {bad: true},
		`{"container_id": "id", "image": `:                                                                       {bad: true},
	} {
		dir, home := t.TempDir(), t.TempDir()
		write(t, dir, "id/config.json", text)
		write(t, home, "containers/id/config.json", text)
		var said strings.Builder
		log := slog.New(slog.NewTextHandler(&said, nil))
		records, unreadable, err := store{dir: dir}.load(log)
		if err != nil || len(records)+len(unreadable) != 1 || len(unreadable) == 1 != want.bad || said.Len() > 0 != (want.odd || want.bad) {
			t.Errorf("%s: %d records, %d unreadable, %v, log %q", text, len(records), len(unreadable), err, said.String())
		}
		said.Reset()
		records, err = original2records(home, log)
		if err != nil || len(records) == 0 != want.bad || said.Len() > 0 != (want.odd || want.bad) {
			t.Errorf("%s: %d records of the original, %v, log %q", text, len(records), err, said.String())
		}
	}
}

// Whatever an agent before has written: what runs can be stopped and removed.
func TestContainerWithAnOddRecordIsUnderControl(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.running("a")
	r.stop()
	file := filepath.Join(r.cfg.StateDir, "containers", id, recordName)
	data, err := os.ReadFile(file)
	r.must(err)
	text := strings.Replace(string(data), `"network_mode":"bridge"`, `"network_mode":"token-ring"`, 1)
	if text == string(data) {
		t.Fatalf("no network mode in %s", data)
	}
	r.must(os.WriteFile(file, []byte(text), 0o600))
	r.start()
	r.must(r.Known(t.Context()))
	r.awaitStatus(id, ctrmodel.Running)
	r.must(r.Stop(t.Context(), id, force))
	err = r.Start(t.Context(), id)
	r.wantKind(err, ctrmodel.InvalidArgument)
	if c := r.get(id); !strings.Contains(err.Error(), "token-ring") || c.State.Error != err.Error() || r.fake.launched(id) != 1 {
		t.Errorf("started: %v, state %+v", err, c.State)
	}
	r.must(r.Remove(t.Context(), id, false, force))
	if left := r.fake.left(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestHostNameThatNoContainerMayHave(t *testing.T) {
	for name, want := range map[string]string{"car-7": "car-7", "(none)": "a-host", "": "a-host", "my car": "a-host"} {
		c := &ctrmodel.Container{ID: "a", Image: ctrmodel.Image{Name: "x"}, HostConfig: ctrmodel.HostConfig{NetworkMode: ctrmodel.HostNetwork}}
		c.Defaults(nil)
		if setHostName(c, name); c.HostName != want {
			t.Errorf("host %q: container %q, expected %q", name, c.HostName, want)
		}
	}
}
