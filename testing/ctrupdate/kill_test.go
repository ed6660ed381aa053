// SPDX-License-Identifier: Apache-2.0

package ctrupdate

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/agents"
	"sdvbox/testing/census"
	"sdvbox/testing/ctragent"
)

// The agent is killed in each phase of an update that replaces, changes, removes and makes containers, of which one gets the port
// of one that goes; containerd as an image comes and as containers take their places; a new container as it is to prove itself. The
// update ends once, as it should, and leaves nothing.
func TestKills(t *testing.T) {
	t.Parallel()
	r := start(t, map[string]ctragent.Section{"update_agent": {"health_time": "250ms"}})
	ids := regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}|rng-seed|\d+\.\d+\.\d+\.\d+`)
	place := census.Place{Daemon: r.Containerd, Namespace: r.namespace, Dirs: []string{r.Dir + "/run", r.Dir + "/state", r.Dir + "/home"}}
	count := func() census.List {
		// What containerd was about to remove when it was killed goes when the agent has it cleared away the next time.
		list := slices.DeleteFunc(place.Take(t), func(line string) bool { return strings.HasSuffix(line, "snapshots has an entry") })
		list = append(list, r.network()...)
		for i := range list {
			list[i] = ids.ReplaceAllString(list[i], "ID")
		}
		slices.Sort(list)
		return list
	}
	version := "1"
	titles := []string{"containers:remove-components", "air", "rest"}
	ds := func(version string, hvac ...string) map[string]any {
		last := r.component("seats", "1", "port=4712:80")
		last["id"] = "only" + version
		ds := desire(r.component("hvac", version, append(hvac, "port=127.0.0.1:4711:80", "restartPolicy=always", "healthCmd=true")...), r.component("seats", "1"),
			r.component("radio", "1", "memory="+version+"6M"), last)
		ds["baselines"] = []any{
			map[string]any{"title": titles[1], "components": []string{"containers:hvac"}},
			map[string]any{"title": titles[2], "components": []string{"containers:seats", "containers:radio", "containers:only" + version}},
		}
		return ds
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
	const (
		halfway = "half of the image of hvac has come"
		proving = "ContainerWhenItIsToProveItself"
	)
	rollback := append(slices.Clone(all), "ROLLBACK")
	type kill struct {
		name     string
		commands []string
		at       string
		delay    time.Duration
		do       func()
		good     bool
		divided  bool
	}
	kills := []kill{
		{"AgentWhenIdentified", all, "IDENTIFIED", 0, agent, true, false},
		{"AgentWhenDownloading", all, halfway, 0, agent, true, false},
		{"AgentWhenDownloaded", all, "DOWNLOAD_SUCCESS", 0, agent, true, false},
		{"AgentWhenUpdated", all, "UPDATE_SUCCESS", 0, agent, true, false},
		{"AgentWhenItBeginsToActivate", all, "ACTIVATE", 10 * time.Millisecond, agent, true, false},
		{"AgentWhenItWaitsForHealth", all, "ACTIVATE", 150 * time.Millisecond, agent, true, false},
		{"AgentWhenActivated", all, "ACTIVATION_SUCCESS", 0, agent, true, false},
		{"AgentWhenCleaningUp", all, "CLEANUP", 5 * time.Millisecond, agent, true, false},
		{"AgentWhenRollingBack", rollback, "ROLLBACK", 5 * time.Millisecond, agent, false, false},
		{"ContainerdWhenItDownloads", all, halfway, 0, containerd, true, false},
		{"ContainerdWhenItActivates", all, "ACTIVATE", 10 * time.Millisecond, containerd, true, false},
		{proving, all, "ACTIVATE", 0, container, false, false},
		{"AgentWhenOneBaselineIsDownloaded", nil, "DOWNLOAD_SUCCESS air", 0, agent, true, true},
		{"AgentWhenOneBaselineActivates", nil, "ACTIVATE air", 50 * time.Millisecond, agent, true, true},
		{"AgentWhenOneBaselineIsActivated", nil, "ACTIVATION_SUCCESS air", 0, agent, true, true},
		{"AgentWhenOneBaselineIsCleanedUp", nil, "CLEANUP_SUCCESS air", 0, agent, true, true},
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
			at := func(at string) {
				if at == k.at {
					go func() {
						defer close(killed)
						time.Sleep(k.delay)
						k.do()
					}()
				}
			}
			if image := r.registry.Host + "/hvac:" + other; k.at == halfway || k.at == "DOWNLOAD" { // there is something to get
				if err := r.RemoveImage(t.Context(), image); err != nil {
					t.Fatal(err)
				}
				if k.at == halfway {
					r.halfway(image, func() {
						at(halfway)
						<-killed
					})
				}
			}
			desired := ds(other)
			if k.name == proving { // long enough for the kill, which ends it
				desired = ds(other, "healthTime=10s")
			}
			var f agents.Feedback
			if k.divided {
				f = r.divided(k.name, desired, titles, at)
			} else {
				f = r.update(k.name, desired, k.commands, at)
			}
			select {
			case <-killed:
			case <-time.After(limit):
				t.Fatal("nothing has been killed")
			}
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
			r.runs("hvac=" + version + " only" + version + "=1 radio=1 seats=1")
			list, err := r.List(t.Context())
			i := slices.IndexFunc(list, func(c *ctrmodel.Container) bool { return c.Name == "radio" })
			if err != nil || i < 0 || list[i].HostConfig.Resources.Memory != version+"6M" {
				t.Errorf("memory of radio, want %s6M: %v, %v", version, list, err)
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

// network is the cables to containers and the firewall rules of this device, with names of containers for their addresses. The
// other test has another device in the same network.
func (r *rig) network() (lines census.List) {
	r.t.Helper()
	var names []string
	list, _ := r.List(r.t.Context()) // the address of one that is missing stays
	for _, c := range list {
		if c.NetworkSettings != nil {
			for _, n := range c.NetworkSettings.Networks {
				names = append(names, " "+n.IPAddress+":", " "+strings.TrimRight(c.Name, "12")+":")
			}
		}
	}
	for kind, args := range map[string][]string{
		"link": {"ip", "-oneline", "link", "show", "master", r.Bridge},
		"rule": {"nft", "--stateless", "list", "table", "inet", "sdvbox-" + r.Bridge},
	} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			r.t.Fatalf("%s: %v: %s", args, err, out)
		}
		for line := range strings.Lines(string(out)) {
			line = strings.TrimSpace(line)
			if kind == "link" { // the rest are names and numbers that nobody has chosen
				line = "to a container"
			}
			if strings.Trim(line, "{}") != "" {
				lines = append(lines, kind+" "+strings.NewReplacer(names...).Replace(line))
			}
		}
	}
	return lines
}
