// SPDX-License-Identifier: Apache-2.0

// Package things tests the twin of the containers: the agent as a process, a real broker, containerd and runc, and the commands as
// they are printed in the documentation.
package things

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/broker"
	"sdvbox/testing/ctragent"
	"sdvbox/testing/ctrd"
)

func TestMain(m *testing.M) { ctragent.OwnHost(m) }

const (
	dummy  = "dummy-namespace:dummy-gateway:dummy-device-id:edge:containers"
	events = "e/dummy-tenant-id/" + dummy
)

// rig is a device whose cloud is the test.
type rig struct {
	*testing.T
	agent  *ctragent.Agent
	broker *broker.Broker
	cloud  *broker.Client
	seen   []message
}

// message is one that the cloud has seen.
type message struct {
	topic string
	data  string
	Path  string
	Value json.RawMessage
	at    time.Time
}

func newRig(t *testing.T, build string) *rig {
	t.Helper()
	d := ctrd.Start(t)
	r := &rig{T: t, broker: broker.Start(t, broker.Options{})}
	r.agent = ctragent.New(t, build, d)
	r.agent.Config["things"] = ctragent.Section{"enable": true, "home_dir": r.agent.Dir + "/home"}
	r.agent.Config["connection"] = ctragent.Section{"broker_url": "tcp://" + r.broker.Addr}
	r.cloud = r.broker.Client(t, "#")
	return r
}

// image has busybox in it.
func image(t *testing.T, name string) *ctragent.Image {
	t.Helper()
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		if os.Getenv("SDVBOX_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return ctragent.NewImage(name, v1.ImageConfig{Cmd: []string{"/bin/busybox", "sleep", "1000"}}, map[string][]byte{"bin/busybox": box, "name": []byte(name)})
}

// await returns the next message that is as wanted.
func (r *rig) await(limit time.Duration, what string, wanted func(m message) bool) message {
	r.Helper()
	deadline := time.After(limit)
	for {
		select {
		case got := <-r.cloud.Messages():
			m := message{topic: got.Topic, data: got.Payload, at: got.At}
			json.Unmarshal([]byte(got.Payload), &m)
			r.seen = append(r.seen, m)
			if wanted(m) {
				return m
			}
		case <-deadline:
			r.Fatalf("%s: not within %v; seen:\n%s", what, limit, r.text())
		}
	}
}

func (r *rig) text() string {
	var b strings.Builder
	for _, m := range r.seen {
		fmt.Fprintf(&b, "%s %.300s\n", m.topic, m.data)
	}
	return b.String()
}

// path wants a message of the twin about a feature or property.
func path(p string) func(message) bool {
	return func(m message) bool { return m.topic == events && m.Path == p }
}

// shell runs a printed command, with this broker instead of the usual one.
func (r *rig) shell(command string) {
	r.Helper()
	host, port, _ := net.SplitHostPort(r.broker.Addr)
	command = strings.Replace(command, "mosquitto_pub", "mosquitto_pub -h "+host+" -p "+port, 1)
	if out, err := exec.CommandContext(r.Context(), "sh", "-c", command).CombinedOutput(); err != nil {
		r.Fatalf("%s: %v: %s", command, err, out)
	}
}

// reconnect starts the broker again. The agent stands still until the cloud listens: what it asks first is asked once.
func (r *rig) reconnect() {
	r.Helper()
	if err := syscall.Kill(r.agent.Pid(), syscall.SIGSTOP); err != nil {
		r.Fatal(err)
	}
	defer syscall.Kill(r.agent.Pid(), syscall.SIGCONT)
	r.broker.Restart()
	r.cloud = r.broker.Client(r.T, "#")
}

// introduce waits until the agent asks who it is, and tells it.
func (r *rig) introduce() {
	r.Helper()
	r.await(20*time.Second, "the agent asks who it is", func(m message) bool {
		return m.topic == "edge/thing/request" && m.data == `{"topic":"","headers":null,"path":""}`
	})
	r.shell(trigger)
}

const trigger = `mosquitto_pub -t 'edge/thing/response' -m '{"deviceId":"dummy-namespace:dummy-gateway:dummy-device-id","tenantId":"dummy-tenant-id"}'`

// request asks for an operation.
func (r *rig) request(id, feature, operation string, value any) {
	r.Helper()
	topic := "dummy-namespace/dummy-gateway:dummy-device-id:edge:containers/things/live/messages/" + operation
	headers := map[string]any{"correlation-id": id, "response-required": true}
	m := map[string]any{"topic": topic, "headers": headers, "path": "/features/" + feature + "/inbox/messages/" + operation}
	if value != nil {
		headers["content-type"], m["value"] = "application/json", value
	}
	data, err := json.Marshal(m)
	if err != nil {
		r.Fatal(err)
	}
	r.cloud.Publish("command//"+dummy+"/req/"+id+"/"+operation, string(data))
}

// reply waits for the answer.
func (r *rig) reply(limit time.Duration, id, status string) message {
	r.Helper()
	m := r.await(limit, "answer to "+id, func(m message) bool { return strings.HasPrefix(m.topic, "command//"+dummy+"/res/"+id+"/") })
	if m.topic != "command//"+dummy+"/res/"+id+"/"+status {
		r.Fatalf("answer to %s: %s %s, want status %s", id, m.topic, m.data, status)
	}
	return m
}

func (r *rig) create(id string, value map[string]any) (container string) {
	r.Helper()
	r.request(id, "ContainerFactory", "createWithConfig", value)
	if err := json.Unmarshal(r.reply(20*time.Second, id, "200").Value, &container); err != nil {
		r.Fatal(err)
	}
	return container
}

func TestTwin(t *testing.T) {
	if _, err := exec.LookPath("mosquitto_pub"); err != nil {
		if os.Getenv("SDVBOX_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	build := ctragent.Build(t)
	t.Run("commands as they are printed", func(t *testing.T) { t.Parallel(); printed(t, build) })
	t.Run("nine commands", func(t *testing.T) { t.Parallel(); nine(t, build) })
	t.Run("installation", func(t *testing.T) { t.Parallel(); installation(t, build) })
}

func printed(t *testing.T, build string) {
	r := newRig(t, build)
	box := image(t, "example.org/box:1")
	r.broker.Stop() // comes later than the agent
	r.agent.Launch()
	r.agent.Import(box)
	r.agent.Write("containers/busy.json", []byte(`{"container_name": "busy", "image": {"name": "example.org/box:1"},
		"config": {"cmd": ["/bin/busybox", "sh", "-c", "while :; do :; done"]}, "host_config": {"resources": {"memory": "32M"}}}`))
	var busy *ctrmodel.Container
	for begin := time.Now(); busy == nil; time.Sleep(20 * time.Millisecond) {
		list, _ := r.agent.List(t.Context())
		for _, c := range list {
			if c.State.Status == ctrmodel.Running {
				busy = c
			}
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatal("busy does not run")
		}
	}
	r.reconnect()
	r.introduce()
	software := r.await(10*time.Second, "software", path("/features/SoftwareUpdatable"))
	if want := `"example.org%2Fbox.` + busy.ID + `:1":{"group":"example.org/box","name":"` + busy.ID + `","version":"1"}`; !strings.Contains(software.data, want) {
		t.Errorf("%s\nwithout %s", software.data, want)
	}
	feature := "Container:" + busy.ID
	container := r.await(10*time.Second, "container", path("/features/"+feature))
	state := fmt.Sprintf(`"state":{"status":"RUNNING","pid":%d,"startedAt":%q}`, busy.State.PID, busy.State.StartedAt)
	if !strings.Contains(container.data, state) || !strings.Contains(container.data, `"resources":{"memory":"32M","memorySwap":"64M"}`) {
		t.Errorf("%s\nwithout %s", container.data, state)
	}
	r.await(10*time.Second, "metrics", path("/features/Metrics"))

	const request = `mosquitto_pub -t command//dummy-namespace:dummy-gateway:dummy-device-id:edge:containers/req/3fdc463c-293c-4f39-ab19-24aef7944550/request -m '{"topic":"dummy-namespace/dummy-gateway:dummy-device-id:edge:containers/things/live/messages/request","headers":{"timeout":"10","response-required":true,"content-type":"application/json","correlation-id":"3fdc463c-293c-4f39-ab19-24aef7944550"},"path":"/features/Metrics/inbox/messages/request","value":{"frequency":"5s"}}'`
	r.shell(request)
	begin := r.reply(5*time.Second, "3fdc463c-293c-4f39-ab19-24aef7944550", "204").at
	data := r.await(10*time.Second, "figures", path("/features/Metrics/outbox/messages/data"))
	if took := data.at.Sub(begin); took < 4900*time.Millisecond {
		t.Errorf("the first figures have come after %v", took)
	}
	var v struct {
		Snapshot []struct {
			Originator   string
			Measurements []struct {
				ID    string
				Value float64
			}
		}
	}
	if err := json.Unmarshal(data.Value, &v); err != nil || len(v.Snapshot) != 1 || v.Snapshot[0].Originator != feature {
		t.Fatalf("%s, %v", data.data, err)
	}
	is := map[string]float64{}
	for _, m := range v.Snapshot[0].Measurements {
		is[m.ID] = m.Value
	}
	if is["cpu.utilization"] <= 1 || is["cpu.utilization"] > 100 || is["memory.total"] != 32<<20 || is["memory.used"] < 1 || is["memory.utilization"] <= 0 || is["pids"] != 1 {
		t.Errorf("%v", is)
	}
	for _, id := range []string{"io.readBytes", "io.writeBytes", "net.readBytes", "net.writeBytes"} {
		if _, ok := is[id]; !ok {
			t.Errorf("%s is missing: %v", id, is)
		}
	}
	r.shell(strings.Replace(request, `"5s"`, `"0s"`, 1))
	r.reply(5*time.Second, "3fdc463c-293c-4f39-ab19-24aef7944550", "204")
	end := len(r.seen)

	// Meanwhile, as it has to be quiet for a while: another name, and another connection, which begins from the start.
	r.request("rename", feature, "rename", "lazy")
	r.await(5*time.Second, "name", path("/features/"+feature+"/properties/status/name"))
	r.reply(5*time.Second, "rename", "204")
	r.reconnect()
	r.introduce()
	r.await(10*time.Second, "metrics again", path("/features/Metrics"))
	deadline := time.After(time.Until(r.seen[end-1].at.Add(5500 * time.Millisecond)))
	for quiet := false; !quiet; {
		select {
		case m := <-r.cloud.Messages():
			r.seen = append(r.seen, message{topic: m.Topic, data: m.Payload})
		case <-deadline:
			quiet = true
		}
	}
	if i := slices.IndexFunc(r.seen[end:], func(m message) bool { return strings.Contains(m.data, "outbox/messages/data") }); i >= 0 {
		t.Errorf("figures after the end: %s", r.seen[end+i].data)
	}

	// Only now: without containers there are no figures anyway.
	r.request("remove", feature, "remove", true)
	if dead := r.await(10*time.Second, "dead", func(m message) bool { return strings.Contains(m.data, `"DEAD"`) }); !strings.Contains(dead.data, `"pid":-1`) {
		t.Error(dead.data)
	}
	r.reply(10*time.Second, "remove", "204")
}

func nine(t *testing.T, build string) {
	r := newRig(t, build)
	slow := image(t, "example.org/slow:1")
	stalls := make(chan struct{})
	release := sync.OnceFunc(func() { close(stalls) })
	defer release()
	registry := ctragent.Serve(t, func(w http.ResponseWriter, q *http.Request) bool {
		if strings.HasSuffix(q.URL.Path, "/blobs/"+slow.Layer.Digest.String()) {
			<-stalls
		}
		return false
	}, slow)
	r.agent.Config["containers"]["insecure_registries"] = []string{registry.Host}
	r.agent.Launch()
	r.agent.Import(image(t, "example.org/box:1"))
	r.introduce()
	r.await(10*time.Second, "twin", path("/features/Metrics"))
	var ids []string
	for i := range 8 {
		ids = append(ids, r.create(fmt.Sprint("create", i), map[string]any{"imageRef": "example.org/box:1", "name": fmt.Sprint("box", i)}))
	}
	r.request("slow", "ContainerFactory", "create", map[string]any{"imageRef": registry.Name(slow), "start": true})
	for i, id := range ids {
		r.request(fmt.Sprint("start", i), "Container:"+id, "start", nil)
	}
	// The pull goes on once they are answered, and not before.
	for range ids {
		m := r.await(20*time.Second, "answers", func(m message) bool { return strings.HasPrefix(m.topic, "command//"+dummy+"/res/start") })
		if !strings.HasSuffix(m.topic, "/204") {
			t.Errorf("%s %s", m.topic, m.data)
		}
	}
	release()
	r.reply(20*time.Second, "slow", "200")
	running := 0
	for _, m := range r.seen {
		if strings.HasSuffix(m.Path, "/status/state") && bytes.Contains(m.Value, []byte(`"RUNNING"`)) {
			running++
		}
	}
	if running != 9 {
		t.Errorf("%d containers are told to run", running)
	}
	// Nothing of this ends the agent.
	for _, headers := range []string{`{"correlation-id":7,"response-required":true}`, `{"correlation-id":"x","response-required":"true"}`, `[]`, `null`} {
		r.cloud.Publish("command//"+dummy+"/req/bad/start", `{"topic":"dummy-namespace/dummy-gateway:dummy-device-id:edge:containers/things/live/messages/start","headers":`+headers+
			`,"path":"/features/Container:`+ids[0]+`/inbox/messages/start"}`)
	}
	r.reply(5*time.Second, "bad", "400")
	r.reply(5*time.Second, "bad", "400")
	r.request("again", "Container:"+ids[0], "start", nil)
	r.reply(5*time.Second, "again", "500")
}

func installation(t *testing.T, build string) {
	r := newRig(t, build)
	box, other, missing := image(t, "example.org/box:1"), image(t, "example.org/other:1"), image(t, "example.org/missing:1")
	stalls := make(chan struct{}, 10)
	var mu sync.Mutex
	stalled := true
	registry := ctragent.Serve(t, func(w http.ResponseWriter, q *http.Request) bool {
		mu.Lock()
		stall := stalled && strings.HasSuffix(q.URL.Path, "/blobs/"+other.Layer.Digest.String())
		mu.Unlock()
		if stall {
			stalls <- struct{}{}
			<-q.Context().Done()
			return true
		}
		return false
	}, other)
	r.agent.Config["containers"]["insecure_registries"] = []string{registry.Host}
	r.agent.Launch()
	r.agent.Import(box)
	files := map[string]string{
		"/one.json":     `{"container_name": "one", "image": {"name": "example.org/box:1"}}`,
		"/two.json":     `{"container_name": "two", "image": {"name": "` + registry.Name(other) + `"}}`,
		"/missing.json": `{"container_name": "missing", "image": {"name": "` + registry.Name(missing) + `"}}`,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { fmt.Fprint(w, files[q.URL.Path]) }))
	t.Cleanup(server.Close)
	artifact := func(name string) map[string]any {
		return map[string]any{"filename": name, "size": len(files["/"+name]), "download": map[string]any{"HTTP": map[string]any{"url": server.URL + "/" + name}}}
	}
	install := func(id string, names ...string) {
		var artifacts []any
		for _, name := range names {
			artifacts = append(artifacts, artifact(name))
		}
		r.request(id, "SoftwareUpdatable", "install", map[string]any{
			"correlationId": id, "softwareModules": []any{map[string]any{"softwareModule": map[string]any{"name": id, "version": "1"}, "artifacts": artifacts}},
		})
	}
	ended := func(id, status string) message {
		return r.await(30*time.Second, id+" "+status, func(m message) bool {
			return (m.Path == "/features/SoftwareUpdatable/properties/status/lastOperation" || m.Path == "/features/SoftwareUpdatable") &&
				strings.Contains(m.data, `"correlationId":"`+id+`","status":"`+status+`"`)
		})
	}
	r.introduce()
	r.await(10*time.Second, "twin", path("/features/Metrics"))

	// The second container cannot be made: the first one goes as well.
	install("bad", "one.json", "missing.json")
	ended("bad", "FINISHED_ERROR")
	if list, err := r.agent.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("containers %+v, %v", list, err)
	}

	// The agent is killed as it pulls, and goes on.
	install("good", "one.json", "two.json")
	select {
	case <-stalls:
	case <-time.After(20 * time.Second):
		t.Fatal("no image is pulled")
	}
	r.agent.Kill()
	mu.Lock()
	stalled = false
	mu.Unlock()
	r.agent.Launch()
	r.introduce()
	ended("good", "FINISHED_SUCCESS")
	list, err := r.agent.List(t.Context())
	if err != nil || len(list) != 2 || list[0].State.Status != ctrmodel.Running || list[1].State.Status != ctrmodel.Running {
		t.Fatalf("containers %+v, %v", list, err)
	}
	var software []any
	for _, c := range list {
		software = append(software, map[string]any{"group": "x", "name": c.ID, "version": "1"})
	}
	r.request("gone", "SoftwareUpdatable", "remove", map[string]any{"correlationId": "gone", "software": software})
	ended("gone", "FINISHED_SUCCESS")
	if list, err := r.agent.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("containers %+v, %v", list, err)
	}
}
