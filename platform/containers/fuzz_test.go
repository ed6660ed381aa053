// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"sdvbox/platform/ctrmodel"
)

// Whatever is in the files of the store, there is an engine, and what it knows fits together.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"container_id":"next","container_name":"seat","image":{"name":"example.org/seat:2"},"replaces":"old","switched":true,"desired_running":true}`))
	f.Add([]byte(`{"container_id":"next","container_name":"seat","image":{"name":"x"},"replaces":"next","parked":true,"state":{"status":6}}`))
	f.Add([]byte(`{"container_id":"next","container_name":"next","image":{"name":"x"},"replaces":"nobody","replaces_for":"update"}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := memoryDir(t)
		for id, text := range map[string][]byte{"next": data, "old": []byte(`{"container_id":"old","container_name":"seat","image":{"name":"x"}}`)} {
			path := filepath.Join(dir, "containers", id, recordName)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		e, err := newEngine(Config{StateDir: dir, Log: slog.New(slog.DiscardHandler)}, newFake())
		if err != nil {
			t.Fatal(err)
		}
		if c, err := e.ByName(t.Context(), "seat"); err != nil || c.Name != "seat" {
			t.Errorf("nobody has the name of the good one: %v, %v", c, err)
		}
		for _, owner := range []string{"", deployOwner, "update"} {
			for _, s := range e.Successions(owner) {
				if a, err := e.actor(s.ID); err != nil || a.view.Load().State.Status == ctrmodel.Dead {
					t.Errorf("succession %+v of %v", s, err)
				}
			}
		}
	})
}
