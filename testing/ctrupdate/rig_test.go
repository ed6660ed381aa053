// SPDX-License-Identifier: Apache-2.0

// Package ctrupdate tests updates of containers with all that is real about them: the agent as a process, containerd, a broker, a
// registry, and somebody who commands it.
package ctrupdate

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/agents"
	"sdvbox/testing/broker"
	"sdvbox/testing/ctragent"
	"sdvbox/testing/ctrd"
)

func TestMain(m *testing.M) { ctragent.OwnHost(m) }

var long = os.Getenv("SDVBOX_LONG") == "1"

const limit = 30 * time.Second

// building is so that only one test does it.
var building sync.Mutex

// rig is a device with a broker and a registry.
type rig struct {
	*ctragent.Agent
	*agents.Recorder
	t        *testing.T
	broker   *broker.Broker
	registry *ctragent.Registry
	images   []*ctragent.Image
	halves   atomic.Pointer[half]
	// namespace is also that of control groups, which all tests on this machine share.
	namespace string
}

// box makes an image with busybox. The files differ by name, so that each has a layer of its own.
func box(t testing.TB, name string) *ctragent.Image {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"etc/name": []byte(name)}
	for _, name := range []string{"sh", "sleep", "env", "false", "true", "cat"} {
		files["bin/"+name] = program
	}
	return ctragent.NewImage("example.org/"+name, v1.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"}}, files)
}

// start starts a device, whose registry has versions 1 and 2 of three containers.
func start(t *testing.T, change map[string]ctragent.Section) *rig {
	t.Helper()
	r := &rig{t: t, broker: broker.Start(t, broker.Options{}), namespace: fmt.Sprint("ctrupdate-", os.Getpid(), t.Name())}
	for _, name := range []string{"hello-world:latest", "hvac:1", "hvac:2", "hvac:4", "seats:1", "seats:2", "radio:1"} {
		r.images = append(r.images, box(t, name))
	}
	r.registry = ctragent.Serve(t, r.answerHalf, r.images...)
	r.Recorder = agents.Record(t, r.broker.URL(), "containersupdate/#")
	sections := map[string]ctragent.Section{
		"connection":   {"broker_url": r.broker.URL()},
		"update_agent": {"enable": true, "health_time": "500ms"},
		"containers":   {"insecure_registries": []string{r.registry.Host}, "default_ns": r.namespace},
		"manager":      {"default_ctrs_stop_timeout": 1},
	}
	for name, section := range change {
		maps.Copy(sections[name], section)
	}
	building.Lock()
	program := ctragent.Build(t)
	building.Unlock()
	r.Agent = ctragent.New(t, program, ctrd.Start(t))
	r.Config["connection"] = ctragent.Section{}
	for name, section := range sections {
		maps.Copy(r.Config[name], section)
	}
	r.Launch()
	t.Cleanup(func() {
		if t.Failed() {
			for _, m := range r.Messages() {
				t.Log(m.At.Format("05.000"), m.ID, string(m.Raw[:min(len(m.Raw), 700)]))
			}
		}
	})
	agents.Eventually(t, limit, "current state of the agent", func() bool { return len(r.Messages()) > 0 })
	return r
}

// half is an image of whose layer the registry sends, once, only a half before it does something.
type half struct {
	*ctragent.Image
	do func()
}

// halfway has something done when containerd has a part of the layer of an image. The rest comes when that has been done.
func (r *rig) halfway(name string, do func()) {
	r.t.Helper()
	i := slices.IndexFunc(r.images, func(i *ctragent.Image) bool { return r.registry.Name(i) == name })
	if i < 0 {
		r.t.Fatalf("no image %s", name)
	}
	r.halves.Store(&half{r.images[i], do})
}

func (r *rig) answerHalf(w http.ResponseWriter, q *http.Request) bool {
	h := r.halves.Load()
	if h == nil || !strings.HasSuffix(q.URL.Path, "/blobs/"+h.Layer.Digest.String()) || !r.halves.CompareAndSwap(h, nil) {
		return false
	}
	data := h.Blobs[h.Layer.Digest]
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	w.Write(data[:len(data)/2])
	w.(http.Flusher).Flush()
	client := containerd.New(r.Containerd.Socket, r.namespace)
	defer client.Close()
	agents.Eventually(r.t, limit, "a part of the image is there", func() bool {
		list, _ := client.Content.Ingests(r.t.Context())
		return slices.ContainsFunc(list, func(i *containerd.Ingest) bool { return i.Offset > 0 })
	})
	h.do()
	w.Write(data[len(data)/2:]) // to nobody, if who asked has been killed
	return true
}

// component is a container of a desired state, with an image of the registry and further configuration as KEY=VALUE.
func (r *rig) component(name, version string, config ...string) map[string]any {
	list := []map[string]string{{"key": "image", "value": r.registry.Host + "/" + name + ":" + version}}
	for _, kv := range config {
		key, value, _ := strings.Cut(kv, "=")
		list = append(list, map[string]string{"key": key, "value": value})
	}
	return map[string]any{"id": name, "version": version, "config": list}
}

func desire(components ...map[string]any) map[string]any {
	return map[string]any{"domains": []any{map[string]any{"id": "containers", "config": []any{}, "components": components}}}
}

func (r *rig) order(id, command string) {
	r.t.Helper()
	r.Publish("containersupdate/desiredstate/command", id, map[string]string{"command": command})
}

// said is the feedback on an activity.
func (r *rig) said(id string) (list []agents.Feedback) {
	for _, m := range r.Of(id) {
		if f, ok := m.Feedback(); ok {
			list = append(list, f)
		}
	}
	return list
}

// answer waits for one of some statuses of an activity, from the message with a number on.
func (r *rig) answer(id string, from int, statuses ...string) agents.Feedback {
	r.t.Helper()
	return r.answerFor(id, "", from, statuses...)
}

// answerFor is answer about a baseline, or any.
func (r *rig) answerFor(id, baseline string, from int, statuses ...string) agents.Feedback {
	r.t.Helper()
	for begin := time.Now(); time.Since(begin) < limit; time.Sleep(2 * time.Millisecond) {
		for _, f := range r.said(id)[from:] {
			if slices.Contains(statuses, f.Status) && (baseline == "" || f.Baseline == baseline) {
				return f
			}
		}
	}
	r.t.Fatalf("no %q of %s %s within %v", statuses, id, baseline, limit)
	return agents.Feedback{}
}

// divided drives an update baseline by baseline, each command for all before the next one. At is called after each command, and its
// answer, with the title of the baseline behind it.
func (r *rig) divided(id string, ds any, titles []string, at func(string)) agents.Feedback {
	r.t.Helper()
	r.Publish("containersupdate/desiredstate", id, ds)
	r.answer(id, 0, "IDENTIFIED")
	for _, c := range []struct{ command, word string }{{"DOWNLOAD", "DOWNLOAD"}, {"UPDATE", "UPDATE"}, {"ACTIVATE", "ACTIVATION"}, {"CLEANUP", "CLEANUP"}} {
		for _, title := range titles {
			heard := len(r.said(id))
			r.Publish("containersupdate/desiredstate/command", id, map[string]string{"command": c.command, "baseline": title})
			at(c.command + " " + title)
			f := r.answerFor(id, title, heard, c.word+"_SUCCESS", c.word+"_FAILURE")
			at(f.Status + " " + title)
		}
	}
	return r.answer(id, 0, "COMPLETED", "INCOMPLETE")
}

var all = []string{"DOWNLOAD", "UPDATE", "ACTIVATE"}

// update drives an update as an update manager does, and returns how it has ended. After each status it calls at.
func (r *rig) update(id string, ds any, commands []string, at func(status string)) agents.Feedback {
	r.t.Helper()
	heard := len(r.said(id))
	r.Publish("containersupdate/desiredstate", id, ds)
	f := r.answer(id, heard, "IDENTIFIED", "IDENTIFICATION_FAILED")
	for _, c := range append(slices.Clone(commands), "CLEANUP") {
		if at != nil {
			at(f.Status)
		}
		if f.Status == "IDENTIFICATION_FAILED" || strings.HasSuffix(f.Status, "_FAILURE") && c != "CLEANUP" {
			continue
		}
		heard := len(r.said(id))
		r.order(id, c)
		if at != nil {
			at(c)
		}
		word := map[string]string{"ACTIVATE": "ACTIVATION"}[c]
		if word == "" {
			word = c
		}
		if c == "CLEANUP" {
			f = r.answer(id, heard, "COMPLETED", "INCOMPLETE")
		} else {
			f = r.answer(id, heard, word+"_SUCCESS", word+"_FAILURE")
		}
	}
	return f
}

// running returns the containers with a process, as NAME=VERSION.
func (r *rig) running() string {
	r.t.Helper()
	list, err := r.List(r.t.Context())
	if err != nil {
		return err.Error()
	}
	var words []string
	for _, c := range list {
		word := c.Name + "=" + c.Image.Name[strings.LastIndexByte(c.Image.Name, ':')+1:]
		if c.State.Status != ctrmodel.Running {
			word += "(" + c.State.Status.String() + ")"
		}
		words = append(words, word)
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

func (r *rig) runs(want string) {
	r.t.Helper()
	got := ""
	for begin := time.Now(); got != want && time.Since(begin) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
		got = r.running()
	}
	if got != want {
		r.t.Errorf("there are %s, want %s", got, want)
	}
}

// state is the newest current state.
func (r *rig) state() (id string, nodes []node) {
	for _, m := range r.Messages() {
		if m.Topic == "containersupdate/currentstate" {
			var inventory struct{ SoftwareNodes []node }
			if err := json.Unmarshal(m.Payload, &inventory); err != nil {
				r.t.Fatal(err)
			}
			id, nodes = m.ID, inventory.SoftwareNodes
		}
	}
	return id, nodes
}

type pair struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

type node struct {
	ID, Version, Type string
	Parameters        []pair
}

// back makes a desired state of a current state, with a change.
func back(nodes []node, change func(name string, config []pair) []pair) map[string]any {
	var list []map[string]any
	for _, n := range nodes {
		if name, ok := strings.CutPrefix(n.ID, "containers:"); ok && n.Type == "CONTAINER" {
			list = append(list, map[string]any{"id": name, "version": n.Version, "config": change(name, n.Parameters)})
		}
	}
	return desire(list...)
}

// terminals counts the ends of an activity.
func (r *rig) terminals(id string) (n int) {
	for _, f := range r.said(id) {
		if f.Terminal() {
			n++
		}
	}
	return n
}

// statuses are what has been said, once each: how often one is repeated depends on the time it takes.
func statuses(list []agents.Feedback) string {
	var words []string
	for _, f := range list {
		words = append(words, f.Status)
	}
	return fmt.Sprint(slices.Compact(words))
}
