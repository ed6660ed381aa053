// SPDX-License-Identifier: Apache-2.0

package killmatrix

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/ctrd"
)

// shutDown ends all there is, as a device does that loses power, and what is only in memory goes with it.
func (r *rig) shutDown() {
	r.t.Helper()
	r.kill()
	r.Containerd.Kill()
	for _, s := range r.Containerd.Shims() { // first, as they would clear away
		syscall.Kill(s.Pid, syscall.SIGKILL)
	}
	r.await("no process is left", func() bool {
		left := false
		for _, group := range slices.Concat(controlGroups(r.namespace+"/*"), controlGroups("system.slice/"+r.namespace+"-*.scope")) {
			if fi, err := os.Stat(group); err != nil || !fi.IsDir() {
				continue
			}
			left = true
			pids, _ := os.ReadFile(group + "/cgroup.procs")
			for pid := range strings.FieldsSeq(string(pids)) {
				n, _ := strconv.Atoi(pid)
				syscall.Kill(n, syscall.SIGKILL)
			}
			os.WriteFile(group+"/freezer.state", []byte("THAWED"), 0)
			os.WriteFile(group+"/cgroup.freeze", []byte("0"), 0)
			os.Remove(group)
		}
		return !left
	})
	volatile := []string{r.Dir + "/run", r.Containerd.Dir + "/state", "/run/containerd/runc/" + r.namespace}
	r.await("all is unmounted", func() bool {
		mounts, _ := os.ReadFile("/proc/self/mounts")
		left := false
		for line := range strings.Lines(string(mounts)) {
			for _, dir := range volatile {
				if path := strings.Fields(line)[1]; strings.HasPrefix(path, dir+"/") {
					left = true
					unix.Unmount(path, unix.MNT_DETACH)
				}
			}
		}
		return !left
	})
	for _, dir := range volatile {
		r.must(os.RemoveAll(dir))
	}
	r.unshare() // neither links nor rules
}

func TestContainerdComesLateAfterALossOfPower(t *testing.T) {
	t.Parallel()
	late := time.Second
	if long {
		late = 10 * time.Second
	}
	r := running(t)
	before := r.place.Take(t)
	always := r.run(container("always", ctrmodel.RestartAlways, sleeper))
	faithful := r.run(container("faithful", ctrmodel.RestartUnlessStopped, sleeper))
	failing := r.run(container("failing", ctrmodel.RestartOnFailure, sleeper))
	once := r.run(container("once", ctrmodel.RestartNever, sleeper))
	halted := r.run(container("halted", ctrmodel.RestartAlways, sleeper))
	r.must(r.Stop(t.Context(), halted, ctrmodel.StopOptions{Signal: "SIGKILL"}))
	paused := r.run(container("paused", ctrmodel.RestartAlways, sleeper))
	r.must(r.Pause(t.Context(), paused))
	fresh := r.create(container("fresh", ctrmodel.RestartAlways, sleeper))

	r.shutDown()
	r.launch()
	r.await("the agent answers", func() bool {
		list, err := r.List(t.Context())
		return err == nil && len(list) == 7
	})
	begin := time.Now()
	if err := r.Start(t.Context(), fresh); ctrmodel.KindOf(err) != ctrmodel.Unavailable || time.Since(begin) > ctrd.Patient(5*time.Second) {
		t.Errorf("start without containerd: %v after %v", err, time.Since(begin))
	}
	if out, _, code := r.Run("kanto-cm", "list"); code != 0 || !strings.Contains(out, "faithful") {
		t.Errorf("kanto-cm list without containerd: %d, %s", code, out)
	}
	time.Sleep(late)
	r.Containerd.Run()
	for _, id := range []string{always, faithful, failing, paused} {
		r.awaitRunning(id)
	}
	r.awaitStatus(once, ctrmodel.Exited)
	r.awaitStatus(halted, ctrmodel.Stopped)
	r.awaitStatus(fresh, ctrmodel.Created)
	for _, id := range []string{faithful, failing, once, halted, paused, fresh} {
		r.remove(id)
	}
	// containerd has kept a directory of whoever was lost. The next time it starts, and with the next container, it sees to that.
	r.Containerd.Kill()
	r.Containerd.Run()
	r.awaitRunning(always)
	r.remove(always)
	r.place.Await(t, before, 10*time.Second)
}

func TestContainerdIsAwayForAWhile(t *testing.T) {
	t.Parallel()
	pauses := []time.Duration{0, time.Second}
	if long {
		pauses = []time.Duration{0, 5 * time.Second, 0, time.Second}
	}
	r := running(t)
	before := r.place.Take(t)
	counting := r.run(r.counting("counting", ctrmodel.RestartAlways))
	victim := r.run(container("victim", ctrmodel.RestartAlways, sleeper))
	once := r.run(container("once", ctrmodel.RestartNever, sleeper))
	pid := r.awaitRunning(counting)
	for n, pause := range pauses {
		killed := r.awaitRunning(victim)
		exited := n == len(pauses)-1
		r.Containerd.Kill()
		r.must(syscall.Kill(int(killed), syscall.SIGKILL))
		if exited {
			c, err := r.Get(t.Context(), once)
			r.must(err)
			r.must(syscall.Kill(int(c.State.PID), syscall.SIGTERM))
		}
		time.Sleep(pause)
		r.Containerd.Run()
		r.await("the victim runs again", func() bool {
			c, there, err := r.look(victim)
			return err == nil && there != 0 && there != killed && c.State.PID == there
		})
		if now := r.awaitRunning(counting); now != pid {
			t.Errorf("whoever counts was started anew: process %d, before %d", now, pid)
		}
		if exited {
			r.awaitStatus(once, ctrmodel.Exited)
			// From version 1.7 on, containerd may throw away at its start who has ended before, and with it the exit code.
			c, err := r.Get(t.Context(), once)
			lost := err == nil && r.Containerd.Version() != "1.6" && c.State.Error == "the process was lost, its exit code is not known"
			if err != nil || c.State.ExitCode != 0 || c.State.Error != "" && !lost {
				t.Errorf("who ended meanwhile: %+v, %v", c.State, err)
			}
		} else {
			r.awaitRunning(once)
		}
	}
	r.must(r.Stop(t.Context(), counting, ctrmodel.StopOptions{Timeout: 20}))
	if last := r.complete(counting, false); len(last) != 1 {
		t.Errorf("the log has %d processes, expected 1", len(last))
	}
	r.must(os.Remove(r.Dir + "/out/counting-host"))
	for _, id := range []string{counting, victim, once} {
		r.remove(id)
	}
	r.place.Await(t, before, 10*time.Second)
}

// A process that is frozen does not die, and its control group stays frozen.
func TestShimOfAPausedContainerIsKilled(t *testing.T) {
	t.Parallel()
	r := running(t)
	before := r.place.Take(t)
	id := r.run(container("paused", ctrmodel.RestartAlways, sleeper))
	old := r.awaitRunning(id)
	r.must(r.Pause(t.Context(), id))
	for _, s := range r.Containerd.Shims() {
		r.must(syscall.Kill(s.Pid, syscall.SIGKILL))
	}
	r.await("it runs again", func() bool {
		c, pid, err := r.look(id)
		return err == nil && pid != 0 && pid != old && c.State.PID == pid && c.State.Status == ctrmodel.Running
	})
	r.remove(id)
	r.place.Await(t, before, 10*time.Second)
}
