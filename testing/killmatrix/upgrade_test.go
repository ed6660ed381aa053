// SPDX-License-Identifier: Apache-2.0

package killmatrix

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
)

func TestContainersDoNotNoticeANewAgent(t *testing.T) {
	t.Parallel()
	rounds := 3
	if long {
		rounds = 30
	}
	r := running(t)
	before := r.place.Take(t)
	pids := map[string]int64{}
	var ids []string
	for n := range 3 {
		c := r.counting(fmt.Sprint("counting", n), ctrmodel.RestartAlways)
		if n == 2 { // its log has to be rotated meanwhile
			c.HostConfig.Log.Driver = ctrmodel.LogDriver{Type: ctrmodel.LogFile, MaxFiles: 200, MaxSize: "100k"}
		}
		id := r.run(c)
		ids, pids[id] = append(ids, id), r.awaitRunning(id)
	}
	for n := range rounds {
		time.Sleep(200 * time.Millisecond)
		switch n % 3 {
		case 0: // an update
			data, err := os.ReadFile(r.program)
			r.must(err)
			next := filepath.Join(t.TempDir(), "sdvbox")
			r.must(os.WriteFile(next, data, 0o755))
			r.install(next)
			r.Terminate()
		case 1:
			r.kill()
		case 2:
			r.Terminate()
			time.Sleep(time.Second) // until nothing fits between the containers and the agent any more
		}
		r.launch()
		for id, pid := range pids {
			if now := r.awaitRunning(id); now != pid {
				t.Fatalf("%s was started anew: process %d, before %d", id, now, pid)
			}
		}
	}
	for _, id := range ids {
		r.must(r.Stop(t.Context(), id, ctrmodel.StopOptions{Timeout: 20}))
		last := r.complete(id, false)
		words := said(r.Dir + "/out/" + id[:len(id)-len("-id")] + "-host")
		if len(last) != 1 || len(words) != 1 || last[0] < words[0] || last[0] > words[0]+50 {
			t.Errorf("%s: the log comes to %v, the process to %v", id, last, words)
		}
		var told bytes.Buffer
		r.must(r.Logs(t.Context(), id, ctrmodel.LogOptions{Tail: -1}, func(line []byte) error {
			told.Write(append(line, '\n'))
			return nil
		}))
		if all, err := lives(&told, false); err != nil || len(all) != 1 || all[0] != last[0] {
			t.Errorf("%s: the agent tells up to %v of %v, %v", id, all, last, err)
		}
		t.Logf("%s wrote %d lines", id, last[0])
		r.remove(id)
	}
	r.must(os.RemoveAll(r.Dir + "/out"))
	r.must(os.Mkdir(r.Dir+"/out", 0o777))
	r.place.Await(t, before, 10*time.Second)
}
