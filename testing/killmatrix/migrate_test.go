// SPDX-License-Identifier: Apache-2.0

package killmatrix

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"sdvbox/platform/cmapi"
	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/ocispec"
	"sdvbox/testing/ctragent"
	"sdvbox/testing/ctrd"
)

// peer is the environment variable with the path of the original container management. Nothing of it is part of sdvbox.
const peer = "PEER_KANTO_CM"

// The home directory, the names in containerd and the places of streams are as the original has them.
func TestContainersOfAnOriginalAreTakenOver(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	box := r.box(image, nil)
	r.launch()
	r.Import(box)
	r.Terminate()
	r.must(os.RemoveAll(r.Dir + "/state"))
	pids := map[string]int64{}
	for name, policy := range map[string]string{"always": ctrmodel.RestartAlways, "faithful": ctrmodel.RestartUnlessStopped, "once": ctrmodel.RestartNever} {
		pids[name+"-id"] = r.asOriginal(name, policy, box)
	}
	r.launch()
	for id, pid := range pids {
		if now := r.awaitRunning(id); now != pid {
			t.Errorf("%s was started anew: process %d, before %d", id, now, pid)
		}
		r.awaitReady(id, 1) // which it said when nobody was there
	}
	r.restartsAfterKill("always-id")
	r.restartsAfterKill("faithful-id")
	r.must(syscall.Kill(int(pids["once-id"]), syscall.SIGKILL))
	r.awaitStatus("once-id", ctrmodel.Exited)
	for id := range pids {
		r.remove(id)
	}
	r.nothingInContainerd()
	if left, _ := filepath.Glob(r.Dir + "/run/fifo/*"); len(left) > 1 { // the original's directory
		t.Errorf("there are still %s", left)
	}
}

// asOriginal starts a container in the way of the original.
func (r *rig) asOriginal(name, policy string, box *ctragent.Image) (pid int64) {
	r.t.Helper()
	ctx, id := r.t.Context(), name+"-id"
	client := containerd.New(r.Containerd.Socket, r.namespace)
	defer client.Close()
	rootfs, err := client.Snapshots.Prepare(containerd.WithLease(ctx, "kanto-cm.lease"), id+"-snapshot", box.Layer.Digest.String(), nil)
	r.must(err)
	c := container(name, policy, sleeper)
	c.HostConfig.NetworkMode = ctrmodel.HostNetwork
	c.Defaults(nil)
	spec, err := ocispec.Build(c, v1.ImageConfig{}, ocispec.Options{Namespace: r.namespace, Host: ocispec.Probe()})
	r.must(err)
	described, err := containerd.Spec(spec)
	r.must(err)
	_, err = client.Containers.Create(ctx, &containerd.Container{ID: id, Image: image, Runtime: &containerd.Runtime{Name: "io.containerd.runc.v2"},
		Spec: described, Snapshotter: "overlayfs", SnapshotKey: id + "-snapshot"})
	r.must(err)
	streams := containerd.IO{Stdout: r.Dir + "/run/fifo/1234567/" + id + "-stdout", Stderr: r.Dir + "/run/fifo/1234567/" + id + "-stderr"}
	r.must(errors.Join(os.MkdirAll(r.Dir+"/run/fifo/1234567", 0o700), unix.Mkfifo(streams.Stdout, 0o600), unix.Mkfifo(streams.Stderr, 0o600)))
	for _, path := range []string{streams.Stdout, streams.Stderr} { // who reads is there until the process is
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		r.must(err)
		defer f.Close()
	}
	_, err = client.Tasks.Create(ctx, id, rootfs, streams, nil)
	r.must(err)
	n, err := client.Tasks.Start(ctx, id, "")
	r.must(err)
	record, err := os.ReadFile("testdata/original.json")
	r.must(err)
	text := strings.NewReplacer("DIR", r.Dir, "NAME", name, "POLICY", policy, "PID", strconv.Itoa(int(n))).Replace(string(record))
	home := r.Dir + "/home/containers/" + id
	r.must(errors.Join(os.MkdirAll(home, 0o711), os.WriteFile(home+"/config.json", []byte(text), 0o644)))
	return int64(n)
}

func TestContainersOfTheRealOriginalAreTakenOver(t *testing.T) {
	program := os.Getenv(peer)
	if program == "" {
		t.Skip(peer + " does not name the original container management, nothing to take over from")
	}
	t.Parallel()
	for name, signal := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "stopped": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			// The image, and nothing else of ours.
			r.launch()
			r.Import(r.box(image, nil))
			r.Terminate()
			r.must(os.RemoveAll(r.Dir + "/state"))

			original, client := r.startOriginal(program)
			running := []string{"counting-id", "faithful-id", "once-id"}
			ctx, cancel := context.WithTimeout(t.Context(), ctrd.Patient(time.Minute))
			defer cancel()
			pids, address := map[string]int64{}, ""
			for _, c := range []*ctrmodel.Container{
				r.counting("counting", ctrmodel.RestartAlways), container("faithful", ctrmodel.RestartUnlessStopped, sleeper),
				container("once", ctrmodel.RestartNever, sleeper), container("halted", ctrmodel.RestartUnlessStopped, sleeper),
			} {
				_, err := client.Create(ctx, c)
				r.must(err)
				r.must(client.Start(ctx, c.ID))
			}
			r.must(client.Stop(ctx, "halted-id", ctrmodel.StopOptions{Force: true, Timeout: 5}))
			for _, id := range running {
				c, err := client.Get(ctx, id)
				r.must(err)
				pids[id], address = c.State.PID, c.NetworkSettings.Networks["bridge"].IPAddress
			}
			r.reachable(address)
			time.Sleep(time.Second)
			original.Process.Signal(signal)
			original.Wait()
			if signal == syscall.SIGTERM { // it has stopped them all
				running = running[:2]
				pids = nil
			}

			r.launch()
			for _, id := range running {
				if pid := r.awaitRunning(id); pids != nil && pid != pids[id] {
					t.Errorf("%s was started anew", id)
				}
			}
			r.awaitStatus("halted-id", ctrmodel.Stopped)
			if pids == nil {
				r.awaitStatus("once-id", ctrmodel.Stopped)
			}
			if pids != nil {
				r.reachable(address)
			}
			first := r.numbers("counting-id")
			r.await("the log goes on", func() bool { return len(r.numbers("counting-id")) > len(first)+100 })
			// Only what the original had in its hands when it was killed may be missing.
			gaps := 0
			for all, n := r.numbers("counting-id"), 1; n < len(all); n++ {
				if all[n] != all[n-1]+1 && all[n] != 1 {
					gaps++
				}
			}
			if gaps > 1 || pids == nil && gaps > 0 {
				t.Errorf("there are %d gaps in the log", gaps)
			}
			r.restartsAfterKill("counting-id")
			r.restartsAfterKill("faithful-id")
			list, err := r.List(t.Context())
			r.must(err)
			if len(list) != 4 {
				t.Errorf("%d containers", len(list))
			}
			for _, c := range list {
				r.remove(c.ID)
			}
			r.nothingInContainerd()
		})
	}
}

// reachable makes sure that a container has its address.
func (r *rig) reachable(address string) {
	r.t.Helper()
	r.inside(func() {
		conn, err := net.DialTimeout("tcp4", net.JoinHostPort(address, "9"), ctrd.Patient(3*time.Second))
		if err == nil {
			conn.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			r.t.Errorf("container at %q: %v, expected that it refuses", address, err)
		}
	})
}

// numbers is the lines that a container which counts has in its log.
func (r *rig) numbers(id string) (list []int) {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(r.Dir, "home/containers", id, "json.log"))
	r.must(err)
	for _, found := range regexp.MustCompile(`"log":"line (\d+)\\n"`).FindAllSubmatch(text, -1) {
		n, _ := strconv.Atoi(string(found[1]))
		list = append(list, n)
	}
	return list
}

// startOriginal starts the original where our agent is to be.
func (r *rig) startOriginal(program string) (*exec.Cmd, *cmapi.Client) {
	r.t.Helper()
	socket := r.Dir + "/original.sock"
	cmd := exec.Command(program, "--conn-broker-url", "tcp://127.0.0.1:1", "--things-enable=false", "--ua-enable=false", "--deployment-enable=false",
		"--ccl-ap", r.Containerd.Socket, "--ccl-default-ns", r.namespace, "--ccl-home-dir", r.Dir+"/home", "--ccl-exec-root-dir", r.Dir+"/run",
		"--cm-home-dir", r.Dir+"/home", "--cm-exec-root-dir", r.Dir+"/run", "--cm-deflt-ctrs-stop-timeout", "1",
		"--net-home-dir", r.Dir+"/home", "--net-exec-root-dir", r.Dir+"/run", "--net-br-name", r.Bridge,
		"--grpc-serv-ap", socket, "--log-file", r.Dir+"/original.log", "--log-level", "DEBUG")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r.inside(func() { r.must(cmd.Start()) })
	client := cmapi.NewClient(socket)
	r.t.Cleanup(func() {
		client.Close()
		cmd.Process.Kill()
		cmd.Wait()
		if log, err := os.ReadFile(r.Dir + "/original.log"); err == nil && r.t.Failed() {
			r.t.Logf("the original said:\n%s", log[max(0, len(log)-20000):])
		}
	})
	r.await("the original answers", func() bool {
		_, err := client.List(r.t.Context())
		return err == nil
	})
	return cmd, client
}

// restartsAfterKill kills the process of a container and waits for another one.
func (r *rig) restartsAfterKill(id string) {
	r.t.Helper()
	before := r.awaitRunning(id)
	r.must(syscall.Kill(int(before), syscall.SIGKILL))
	r.await(id+" runs again", func() bool {
		c, pid, err := r.look(id)
		return err == nil && pid != 0 && pid != before && c.State.PID == pid && c.State.Status == ctrmodel.Running
	})
}
