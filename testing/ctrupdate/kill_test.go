// SPDX-License-Identifier: Apache-2.0

package ctrupdate

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/census"
)

// Agent, containerd and a new container are killed in each phase of an update. It ends once, as it should, and leaves nothing.
func TestKills(t *testing.T) {
	r := start(t, nil)
	ids := regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}|rng-seed|\d+\.\d+\.\d+\.\d+`)
	place := census.Place{Daemon: r.Containerd, Namespace: namespace, Dirs: []string{r.Dir + "/run", r.Dir + "/state"}}
	count := func() census.List {
		// What containerd was about to remove when it was killed goes when the agent has it cleared away the next time.
		list := slices.DeleteFunc(place.Take(t), func(line string) bool { return strings.HasSuffix(line, "snapshots has an entry") })
		for i := range list {
			list[i] = ids.ReplaceAllString(list[i], "ID")
		}
		slices.Sort(list)
		return list
	}
	version := "1"
	ds := func(hvac string) map[string]any {
		return desire(r.component("hvac", hvac), r.component("seats", "1"), r.component("radio", "1", "memory="+hvac+"6M"))
	}
	for _, v := range []string{"2", "1"} { // so that all images are there
		if f := r.update("setup "+v, ds(v), all, nil); f.Status != "COMPLETED" {
			t.Fatalf("setup ends with %+v", f)
		}
	}
	quiet := count()

	agent := func() {
		r.Kill()
		r.Launch()
	}
	containerd := func() {
		r.Containerd.Kill()
		r.Containerd.Run()
	}
	container := func() {
		r.Eventually(limit, "the new container runs", func() bool {
			list, _ := r.List(t.Context())
			for _, c := range list {
				if c.Name == "hvac" && !strings.HasSuffix(c.Image.Name, ":"+version) && c.State.Status == ctrmodel.Running {
					return syscall.Kill(int(c.State.PID), syscall.SIGKILL) == nil
				}
			}
			return false
		})
	}
	rollback := append(slices.Clone(all), "ROLLBACK")
	type kill struct {
		name     string
		commands []string
		at       string
		delay    time.Duration
		do       func()
		good     bool
	}
	kills := []kill{
		{"AgentWhenIdentified", all, "IDENTIFIED", 0, agent, true},
		{"AgentWhenDownloading", all, "DOWNLOAD", 20 * time.Millisecond, agent, true},
		{"AgentWhenDownloaded", all, "DOWNLOAD_SUCCESS", 0, agent, true},
		{"AgentWhenUpdated", all, "UPDATE_SUCCESS", 0, agent, true},
		{"AgentWhenItBeginsToActivate", all, "ACTIVATE", 10 * time.Millisecond, agent, true},
		{"AgentWhenItWaitsForHealth", all, "ACTIVATE", 400 * time.Millisecond, agent, true},
		{"AgentWhenActivated", all, "ACTIVATION_SUCCESS", 0, agent, true},
		{"AgentWhenCleaningUp", all, "CLEANUP", 5 * time.Millisecond, agent, true},
		{"AgentWhenRollingBack", rollback, "ROLLBACK", 5 * time.Millisecond, agent, false},
		{"ContainerdWhenItDownloads", all, "DOWNLOAD", 10 * time.Millisecond, containerd, true},
		{"ContainerdWhenItActivates", all, "ACTIVATE", 10 * time.Millisecond, containerd, true},
		{"ContainerWhenItIsToProveItself", all, "ACTIVATE", 0, container, false},
	}
	if long {
		points := []string{"IDENTIFIED", "DOWNLOAD", "DOWNLOAD_SUCCESS", "UPDATE", "UPDATE_SUCCESS", "ACTIVATE", "ACTIVATION_SUCCESS", "CLEANUP"}
		for n := range 150 {
			k := kill{commands: all, at: points[rand.IntN(len(points))], delay: time.Duration(rand.IntN(1500)) * time.Millisecond, do: agent, good: true}
			if n%3 == 0 {
				k.commands, k.good = rollback, false
				k.at = append(points[:7:7], "ROLLBACK")[rand.IntN(8)]
			}
			if n%5 == 0 {
				k.do = containerd
			}
			k.name = fmt.Sprint("Random", n, k.at, k.delay)
			kills = append(kills, k)
		}
	}
	for _, k := range kills {
		t.Run(k.name, func(t *testing.T) {
			other := map[string]string{"1": "2", "2": "1"}[version]
			killed := make(chan struct{})
			f := r.update(k.name, ds(other), k.commands, func(at string) {
				if at == k.at {
					go func() {
						defer close(killed)
						time.Sleep(k.delay)
						k.do()
					}()
				}
			})
			<-killed
			want := "INCOMPLETE"
			if k.good {
				want = "COMPLETED"
			}
			if f.Status == "COMPLETED" {
				version = other
			}
			if n := r.terminals(k.name); f.Status != want || n != 1 {
				t.Errorf("ends %d times, with %s %q, want %s", n, f.Status, f.Message, want)
			}
			r.runs("hvac=" + version + " radio=1 seats=1")
			if list, _ := r.List(t.Context()); list != nil {
				for _, c := range list {
					if c.Name == "radio" && c.HostConfig.Resources.Memory != version+"6M" {
						t.Errorf("radio may have %s of memory, want %s6M", c.HostConfig.Resources.Memory, version)
					}
				}
			}
			diff := ""
			for begin := time.Now(); time.Since(begin) < 15*time.Second; time.Sleep(50 * time.Millisecond) {
				if diff = census.Diff(quiet, count()); diff == "" {
					return
				}
			}
			t.Errorf("left behind:\n%s", diff)
			quiet = count()
		})
	}
}
