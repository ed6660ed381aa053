// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

func TestHundredContainersAtOnce(t *testing.T) {
	if os.Getenv("SDVBOX_LONG") != "1" {
		t.Skip("long")
	}
	r, _ := newRealRig(t)
	dir := t.TempDir()
	for n := range 100 {
		text := fmt.Sprintf(`{"container_name": "c%d", "image": {"name": %q}, "config": {"cmd": ["sleep", "100000"]}}`, n, busybox)
		r.must(os.WriteFile(filepath.Join(dir, fmt.Sprintf("c%d.json", n)), []byte(text), 0o644))
	}
	r.stop()
	r.cfg.Deployment = Deployment{Dirs: []string{dir}, Period: time.Second}
	begin := time.Now()
	r.start()
	for {
		running := 0
		list, _ := r.List(t.Context())
		for _, c := range list {
			if c.State.Running {
				running++
			}
		}
		if running == 100 {
			break
		}
		if time.Since(begin) > 3*time.Minute {
			t.Fatalf("%d run", running)
		}
		time.Sleep(50 * time.Millisecond)
	}
	var mem runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&mem)
	t.Logf("100 containers: %v, heap %d KiB, stacks %d KiB, %d goroutines", time.Since(begin), mem.HeapAlloc>>10, mem.StackInuse>>10, runtime.NumGoroutine())
	begin = time.Now()
	r.restart()
	for _, a := range r.list() {
		<-a.looked
	}
	t.Logf("adopted by the next agent: %v", time.Since(begin))
	begin = time.Now()
	r.StopOnExit, r.StopTimeout = true, time.Second
	r.stop()
	t.Logf("stopped: %v", time.Since(begin))
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("containers are not stopped side by side: %v", took)
	}
}
