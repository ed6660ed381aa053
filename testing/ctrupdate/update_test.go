// SPDX-License-Identifier: Apache-2.0

package ctrupdate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/agents"
	"sdvbox/testing/broker"
	"sdvbox/testing/ctragent"
	"sdvbox/testing/ctrd"
)

// The flows of the documentation, and what goes wrong in the field, on one device.
func TestUpdates(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	exec := func(name string, args ...string) string {
		t.Helper()
		list, err := r.List(t.Context())
		i := slices.IndexFunc(list, func(c *ctrmodel.Container) bool { return c.Name == name })
		if i < 0 {
			t.Fatalf("no container %s: %v", name, err)
		}
		var out bytes.Buffer
		if _, err := r.Exec(t.Context(), list[i].ID, ctrmodel.ExecOptions{Args: args}, ctrmodel.Streams{Stdout: &out}); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	pids := func() (text string) {
		t.Helper()
		list, err := r.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			text += fmt.Sprint(c.Name, "=", c.State.PID, " ")
		}
		return text
	}
	end := func(f agents.Feedback, want, why string) {
		t.Helper()
		if f.Status != want || !strings.Contains(f.Message, why) {
			t.Errorf("ends with %s %q, want %s %q", f.Status, f.Message, want, why)
		}
	}

	t.Run("CurrentStateIsThereFromTheBeginning", func(t *testing.T) {
		id, nodes := r.state()
		if !strings.HasPrefix(id, "initial-current-state-") || len(nodes) != 1 || nodes[0].ID != "containers-update-agent" ||
			!slices.Contains(nodes[0].Parameters, pair{"resumes", "true"}) {
			t.Errorf("%s: %+v", id, nodes)
		}
		late := r.broker.Client(t, "containersupdate/currentstate")
		if m := late.Next(limit); !m.Retained {
			t.Error("who comes late does not hear it")
		}
	})

	t.Run("HelloWorldOfTheDocumentation", func(t *testing.T) {
		ds := desire(r.component("hello-world", "latest", "env=FOO=BAR"))
		r.PublishRaw("containersupdate/desiredstate", mustJSON(t, map[string]any{"activityId": "test-correlation-activity-uuid", "payload": ds}))
		end(r.update("test-correlation-activity-uuid", ds, all, nil), "COMPLETED", "")
		r.runs("hello-world=latest")
		if env := exec("hello-world", "env"); !strings.Contains(env, "FOO=BAR\n") {
			t.Errorf("environment %q", env)
		}
		r.PublishRaw("containersupdate/currentstate/get", []byte(`{"activityId":"ask","timestamp":123456789,"payload":{}}`))
		r.Eventually(limit, "answer", func() bool { id, _ := r.state(); return id == "ask" })
		_, nodes := r.state()
		if len(nodes) != 2 || !slices.Contains(nodes[1].Parameters, pair{"env", "FOO=BAR"}) || !slices.Contains(nodes[1].Parameters, pair{"status", "Running"}) {
			t.Errorf("current state %+v", nodes)
		}
		n := -1
		for n != len(r.Messages()) { // what the agent says by itself comes 200 ms after a change
			n = len(r.Messages())
			time.Sleep(time.Second)
		}
		r.PublishRaw("containersupdate/currentstate/get", nil) // as the documentation has it in its text
		r.Eventually(limit, "answer to an empty message", func() bool {
			return slices.ContainsFunc(r.Messages()[n:], func(m agents.Message) bool { return m.Topic == "containersupdate/currentstate" })
		})
	})

	// Recreate, leave, create and remove at a time. The golden text is what the agent of Eclipse Kanto says.
	t.Run("FeedbackInTheOrderOfKanto", func(t *testing.T) {
		end(r.update("setup", desire(r.component("hvac", "1"), r.component("seats", "1"), r.component("hello-world", "latest")), all, nil), "COMPLETED", "")
		r.Forget()
		end(r.update("golden", desire(r.component("hvac", "2"), r.component("seats", "1"), r.component("radio", "1")), all, nil), "COMPLETED", "")
		want := "[IDENTIFYING IDENTIFIED DOWNLOADING DOWNLOAD_SUCCESS UPDATING UPDATE_SUCCESS ACTIVATING ACTIVATION_SUCCESS CLEANUP_SUCCESS COMPLETED]"
		if got := statuses(r.said("golden")); got != want {
			t.Errorf("said %s, want %s", got, want)
		}
		r.runs("hvac=2 radio=1 seats=1")
		r.Eventually(limit, "current state that nobody has asked for", func() bool {
			id, nodes := r.state()
			return id == "" && len(nodes) == 4 && nodes[1].ID == "containers:hvac" && nodes[1].Version == "2"
		})
	})

	t.Run("CurrentStateSentBack", func(t *testing.T) {
		_, nodes := r.state()
		f := r.update("back", back(nodes, func(_ string, config []pair) []pair { return config }), all, nil)
		end(f, "COMPLETED", "")
		identified := r.said("back")[1].Actions
		for i, a := range f.Actions {
			if len(identified) != 3 || !strings.Contains(identified[i].Message, "as desired") || a.Status != "ACTIVATION_SUCCESS" {
				t.Errorf("action %+v, identified as %+v", a, identified)
			}
		}
		before, _ := r.List(t.Context())
		end(r.update("edited", back(nodes, func(name string, config []pair) []pair {
			if name == "hvac" {
				config = append(slices.Clone(config), pair{"env", "A=1"})
			}
			return config
		}), all, nil), "COMPLETED", "")
		changed := 0
		list, _ := r.List(t.Context())
		for _, c := range list {
			if !slices.ContainsFunc(before, func(b *ctrmodel.Container) bool { return b.ID == c.ID && b.State.PID == c.State.PID }) {
				changed++
			}
		}
		if changed != 1 || !strings.Contains(exec("hvac", "env"), "A=1\n") {
			t.Errorf("%d containers are others now, want 1", changed)
		}
	})

	t.Run("CommandsBackToBack", func(t *testing.T) {
		r.Publish("containersupdate/desiredstate", "fast", desire(r.component("hvac", "1"), r.component("radio", "1")))
		for _, c := range append(slices.Clone(all), "CLEANUP") {
			r.order("fast", c)
		}
		end(r.answer("fast", 0, "COMPLETED", "INCOMPLETE"), "COMPLETED", "")
		r.runs("hvac=1 radio=1")
	})

	hvac := func(version string, config ...string) map[string]any {
		return desire(r.component("hvac", version, config...), r.component("radio", "1"))
	}
	for _, bad := range []struct {
		name, why string
		ds        map[string]any
	}{
		{"EndsAtOnce", "hvac: the container has ended with exit code 1", hvac("2", "cmd=false")},
		{"EndsAtOnceWithoutAnError", "hvac: the container has ended with exit code 0", hvac("2", "cmd=true")},
		{"DoesNotStart", "hvac: ", hvac("2", "cmd=nothing-there")},
		{"HealthCommandFails", "exit code 1", hvac("2", "healthCmd=sh", "healthCmd=-c", "healthCmd=exit 1", "healthInterval=10ms", "healthRetries=1")},
		{"ImageIsMissing", "hvac:3", hvac("3")},
	} {
		t.Run(bad.name, func(t *testing.T) {
			pid := exec("hvac", "sh", "-c", "echo up; cat /proc/1/stat")
			end(r.update(bad.name, bad.ds, all, nil), "INCOMPLETE", bad.why)
			r.runs("hvac=1 radio=1")
			if again := exec("hvac", "sh", "-c", "echo up; cat /proc/1/stat"); bad.name == "ImageIsMissing" && start0(again) != start0(pid) {
				t.Errorf("the old container has been restarted")
			}
			if n := r.terminals(bad.name); n != 1 {
				t.Errorf("%d terminal statuses", n)
			}
		})
	}

	t.Run("HealthCommandSucceeds", func(t *testing.T) {
		end(r.update("healthy", hvac("2", "healthCmd=sh", "healthCmd=-c", "healthCmd=exit 0"), all, nil), "COMPLETED", "")
		r.runs("hvac=2 radio=1")
	})

	t.Run("Rollbacks", func(t *testing.T) {
		for n := range all {
			id := "rollback after " + all[n]
			end(r.update(id, desire(r.component("hvac", "1", "memory=64M"), r.component("seats", "1")), append(slices.Clone(all[:n+1]), "ROLLBACK"), nil), "INCOMPLETE", "")
			r.runs("hvac=2 radio=1")
			if said := statuses(r.said(id)); !strings.HasSuffix(said, "ROLLBACK_SUCCESS CLEANUP_SUCCESS INCOMPLETE]") {
				t.Errorf("said %s", said)
			}
		}
		end(r.update("limit", hvac("2", "memory=64M"), append(slices.Clone(all), "ROLLBACK"), nil), "INCOMPLETE", "")
		list, _ := r.List(t.Context())
		for _, c := range list {
			if c.HostConfig.Resources.Memory != "" {
				t.Errorf("the limit of %s is still there", c.Name)
			}
		}
	})

	t.Run("WhatAnUpdateHasInstalledOutlivesItsDescriptor", func(t *testing.T) {
		r.Write("containers/hvac.json", mustJSON(t, map[string]any{"container_name": "hvac", "image": map[string]string{"name": r.registry.Host + "/hvac:1"}}))
		r.runs("hvac=1 radio=1")
		end(r.update("over", hvac("2"), all, nil), "COMPLETED", "")
		r.Kill()
		r.Launch()
		r.runs("hvac=2 radio=1")
		time.Sleep(500 * time.Millisecond)
		r.runs("hvac=2 radio=1")
	})

	// What cannot be downloaded leaves the old one alone.
	for _, tc := range []struct {
		name, section, key string
		value              any
		why                string
	}{
		{"DiskIsFull", "containers", "disk_reserve", "999999G", "not enough space"},
		{"SignatureIsWrong", "containers", "image_verifier_type", "notation", "signatures: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := maps.Clone(r.Config[tc.section])
			r.Terminate()
			r.Config[tc.section][tc.key] = tc.value
			r.Launch()
			r.runs("hvac=2 radio=1")
			pid := pids()
			end(r.update(tc.name, hvac("4"), all, nil), "INCOMPLETE", tc.why) // an image that has not been here before
			r.runs("hvac=2 radio=1")
			if now := pids(); now != pid {
				t.Errorf("processes have been %s and are %s", pid, now)
			}
			if f := r.said(tc.name); f[len(f)-3].Status != "DOWNLOAD_FAILURE" {
				t.Errorf("said %s", statuses(f))
			}
			r.Terminate()
			r.Config[tc.section] = before
			r.Launch()
		})
	}

	t.Run("CleanupComesAtOnce", func(t *testing.T) {
		r.Publish("containersupdate/desiredstate", "at once", desire(r.component("hvac", "1")))
		r.order("at once", "CLEANUP")
		end(r.answer("at once", 0, "COMPLETED", "INCOMPLETE"), "INCOMPLETE", "")
		r.runs("hvac=2 radio=1")
	})

	t.Run("NewContainerIsRemovedBeforeCleanup", func(t *testing.T) {
		f := r.update("harm", hvac("1"), all, func(at string) {
			if at != "ACTIVATION_SUCCESS" {
				return
			}
			list, err := r.List(t.Context())
			for _, c := range list {
				if c.Name == "hvac" && strings.HasSuffix(c.Image.Name, ":1") {
					err = r.Remove(t.Context(), c.ID, true, ctrmodel.StopOptions{})
				}
			}
			if err != nil {
				t.Error(err)
			}
		})
		end(f, "INCOMPLETE", "hvac: ")
		r.runs("hvac=2 radio=1")
	})

	t.Run("BaselinesOneByOne", func(t *testing.T) {
		ds := desire(r.component("hvac", "1"), r.component("radio", "1", "cmd=false", "restartPolicy=no"), r.component("seats", "2"))
		ds["baselines"] = []any{map[string]any{"title": "comfort", "components": []string{"containers:hvac", "containers:seats"}}}
		r.Publish("containersupdate/desiredstate", "baselines", ds)
		r.answer("baselines", 0, "IDENTIFIED")
		for _, title := range []string{"comfort", "containers:radio"} {
			for _, c := range append(slices.Clone(all), "CLEANUP") {
				r.Publish("containersupdate/desiredstate/command", "baselines", map[string]string{"command": c, "baseline": title})
			}
		}
		end(r.answer("baselines", 0, "COMPLETED", "INCOMPLETE"), "INCOMPLETE", "radio: the container has ended with exit code 1")
		for _, f := range r.said("baselines") {
			if f.Status == "ACTIVATION_SUCCESS" && f.Baseline != "comfort" || f.Status == "ACTIVATION_FAILURE" && f.Baseline != "containers:radio" {
				t.Errorf("%s of %q", f.Status, f.Baseline)
			}
		}
		r.runs("hvac=1 radio=1 seats=2")
	})

	t.Run("WrongMessages", func(t *testing.T) {
		n := len(r.Messages())
		for _, text := range []string{"", "hello", "[]", `{"activityId":`, "null"} {
			r.PublishRaw("containersupdate/desiredstate", []byte(text))
			r.PublishRaw("containersupdate/desiredstate/command", []byte(text))
		}
		domain := func(id string) map[string]any { return map[string]any{"id": id, "components": []any{}} }
		for id, tc := range map[string]struct {
			payload any
			want    string
		}{
			"none":      {map[string]any{"domains": []any{}}, "0 entries"},
			"two":       {map[string]any{"domains": []any{domain("containers"), domain("self-update")}}, "2 entries"},
			"other":     {map[string]any{"domains": []any{domain("self-update")}}, `"self-update", expected "containers"`},
			"nothing":   {nil, "missing"},
			"component": {desire(map[string]any{"id": "a b", "version": "1"}), `component "a b"`},
		} {
			r.Publish("containersupdate/desiredstate", id, tc.payload)
			if f := r.answer(id, 0, "IDENTIFICATION_FAILED"); !strings.Contains(f.Message, tc.want) || statuses(r.said(id)) != "[IDENTIFICATION_FAILED]" {
				t.Errorf("%s: said %s %q, want %q", id, statuses(r.said(id)), f.Message, tc.want)
			}
		}
		for _, m := range r.Messages()[n:] {
			if _, ok := m.Feedback(); ok && m.ID == "" {
				t.Errorf("said %s", m.Raw)
			}
		}
		r.PublishRaw("containersupdate/desiredstate", mustJSON(t, map[string]any{"payload": desire(r.component("hvac", "1"))}))
		r.answer("", 0, "IDENTIFIED")
		r.PublishRaw("containersupdate/desiredstate/command", []byte(`{"payload":{"command":"ROLLBACK"}}`))
		r.PublishRaw("containersupdate/desiredstate/command", []byte(`{"payload":{"command":"CLEANUP"}}`))
		r.answer("", 0, "INCOMPLETE")
	})

	t.Run("AnotherDesiredStateTakesThePlaceOfOneThatIsNotInUse", func(t *testing.T) {
		r.Publish("containersupdate/desiredstate", "given up", desire(r.component("hvac", "2"), r.component("radio", "1")))
		r.answer("given up", 0, "IDENTIFIED")
		r.order("given up", "DOWNLOAD")
		r.answer("given up", 0, "DOWNLOAD_SUCCESS")
		end(r.update("taken", desire(r.component("hvac", "2"), r.component("radio", "1")), all, nil), "COMPLETED", "")
		end(r.answer("given up", 0, "INCOMPLETE"), "INCOMPLETE", `given up for activity "taken"`)
		r.runs("hvac=2 radio=1")
	})

	t.Run("MovedTag", func(t *testing.T) {
		registry := ctragent.StartRegistry(t)
		name := registry.Push(t, box(t, "moving:latest"))
		r.Terminate()
		r.Config["update_agent"]["refresh_tags"] = true
		r.Config["containers"]["insecure_registries"] = []string{r.registry.Host, registry.Host}
		r.Launch()
		ds := desire(r.component("radio", "1"), map[string]any{"id": "moving", "version": "latest", "config": []pair{{"image", name}}})
		for _, want := range []string{"moving:latest", "moving:latest", "moved:latest"} {
			if strings.HasPrefix(want, "moved") {
				i := box(t, "moved:latest")
				i.Ref = "example.org/moving:latest"
				registry.Push(t, i)
			}
			end(r.update("refresh", ds, all, nil), "COMPLETED", "")
			if got := exec("moving", "cat", "/etc/name"); got != want {
				t.Errorf("%s runs, want %s", got, want)
			}
		}
	})

	t.Run("ScopeAndSystemContainers", func(t *testing.T) {
		ds := desire(r.component("seats", "1"))
		domain := ds["domains"].([]any)[0].(map[string]any)
		domain["config"] = []pair{{"scoped", "true"}}
		end(r.update("scoped", ds, all, nil), "COMPLETED", "")
		r.runs("moving=latest radio=1 seats=1")
		domain["config"] = []pair{{"systemContainers", "radio, nobody"}}
		end(r.update("system", ds, all, nil), "COMPLETED", "")
		r.runs("radio=1 seats=1")
	})
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// start0 is when a process was started, as its stat file says.
func start0(stat string) string {
	f := strings.Fields(stat)
	return f[len(f)-31]
}

// TLS settings have an effect.
func TestBrokerWantsCertificates(t *testing.T) {
	building.Lock()
	program := ctragent.Build(t)
	building.Unlock()
	b := broker.Start(t, broker.Options{MTLS: true})
	client := b.Client(t, "containersupdate/#")
	a := ctragent.New(t, program, ctrd.Start(t))
	a.Config["connection"] = ctragent.Section{"broker_url": b.URL(), "transport": map[string]string{"root_ca": b.CAFile, "client_cert": b.CertFile, "client_key": b.KeyFile}}
	a.Config["update_agent"] = ctragent.Section{"enable": true}
	a.Launch()
	if m := client.Next(limit); m.Topic != "containersupdate/currentstate" {
		t.Errorf("heard %+v", m)
	}
}
