// SPDX-License-Identifier: Apache-2.0

package ctrtwin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/mqttbus"
)

const asked = `edge/thing/request {"topic":"","headers":null,"path":""}`

// radio is the container of the printed example.
func (r *rig) radio() {
	c := &ctrmodel.Container{ID: "5f0c", Name: "radio", Image: ctrmodel.Image{Name: "registry.example/radio:1"}}
	c.Defaults(newID)
	c.Created = "2024-05-01T08:00:00.1Z"
	c.State.SetCreated()
	r.engine.all[c.ID] = c
}

const (
	factoryMessage = events + `{"topic":"` + ditto + `twin/commands/modify","headers":{"response-required":false},"path":"/features/ContainerFactory",` +
		`"value":{"definition":["com.bosch.iot.suite.edge.containers:ContainerFactory:1.3.0"]}}`
	metricsMessage = events + `{"topic":"` + ditto + `twin/commands/modify","headers":{"response-required":false},"path":"/features/Metrics",` +
		`"value":{"definition":["com.bosch.iot.suite.edge.metric:Metrics:1.0.0"]}}`
	emptySoftware = events + `{"topic":"` + ditto + `twin/commands/modify","headers":{"response-required":false},"path":"/features/SoftwareUpdatable",` +
		`"value":{"definition":["org.eclipse.hawkbit.swupdatable:SoftwareUpdatable:2.0.0"],"properties":{"status":{"softwareModuleType":"oci:container"}}}}`
	radioMessage = `{"topic":"org.example/gateway:vehicle-7:edge:containers/things/twin/commands/modify","headers":{"response-required":false},` +
		`"path":"/features/Container:5f0c","value":{"definition":["com.bosch.iot.suite.edge.containers:Container:1.5.0"],` +
		`"properties":{"status":{"name":"radio","imageRef":"registry.example/radio:1","config":{"domainName":"radio-domain","hostName":"radio-host",` +
		`"restartPolicy":{"type":"UNLESS_STOPPED"},"networkMode":"BRIDGE","log":{"type":"JSON_FILE","maxFiles":2,"maxSize":"100M","mode":"BLOCKING"}},` +
		`"createdAt":"2024-05-01T08:00:00.1Z","state":{"status":"CREATED","pid":-1}}}}}`
)

func TestTwinIsDescribedOnceTheConnectorSaysWhoThisIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.radio()
		r.start()
		synctest.Wait()
		r.up()
		r.want(asked)
		r.receive("edge/thing/response", fleetID)
		r.want(
			events+`{"topic":"`+ditto+`twin/commands/modify","headers":{"response-required":false},"path":"/features/SoftwareUpdatable",`+
				`"value":{"definition":["org.eclipse.hawkbit.swupdatable:SoftwareUpdatable:2.0.0"],"properties":{"status":{"softwareModuleType":"oci:container",`+
				`"installedDependencies":{"registry.example%2Fradio.5f0c:1":{"group":"registry.example/radio","name":"5f0c","version":"1"}}}}}}`,
			events+radioMessage, factoryMessage, metricsMessage)
	})
}

func TestContainersAreDescribedTheOldestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		want := []string{"", "SoftwareUpdatable"}
		for i := range 10 {
			id := fmt.Sprint(20 - i)
			r.engine.add(id, id, "x:1", i%2 == 0)
			want = append(want, "Container:"+id)
			time.Sleep(time.Second)
		}
		r.start()
		r.up()
		r.receive("edge/thing/response", fleetID)
		r.wantGists(append(want, "ContainerFactory", "Metrics")...)
	})
}

func TestAnswersThatTheBrokerDoesNotTakeAreRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.radio()
		r.begin()
		r.bus.refuse(mqttbus.ErrDown)
		r.request("1", "Container:5f0c", "start", "")
		time.Sleep(time.Second)
		synctest.Wait()
		r.bus.refuse(nil)
		time.Sleep(time.Second)
		r.wantGists("reply 1/204")
	})
}

func TestRetainedCommandsAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.radio()
		r.begin()
		r.bus.events <- mqttbus.Event{Kind: mqttbus.Received, Message: &mqttbus.Message{
			Topic: "command//" + thing + "/req/1/remove", Payload: []byte(requestOf("1", "Container:5f0c", "remove", "true")), Retained: true,
		}}
		r.wantGists()
	})
}

func TestIdentityThatIsTheSameIsIgnoredAndOthersAreNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.begin()
		all := []string{"SoftwareUpdatable", "ContainerFactory", "Metrics"}
		r.receive("edge/thing/response", fleetID)
		r.wantGists()
		r.receive("edge/thing/response", strings.Replace(fleetID, "org.example:policy", "org.example:other", 1))
		r.wantGists(all...)
		r.receive("edge/thing/response", `{"deviceId":"dummy-namespace:dummy-gateway:dummy-device-id","tenantId":"dummy-tenant-id"}`)
		said := r.hear()
		const topic = "e/dummy-tenant-id/dummy-namespace:dummy-gateway:dummy-device-id:edge:containers "
		if len(said) != 3 || !strings.HasPrefix(said[0], topic+`{"topic":"dummy-namespace/dummy-gateway:dummy-device-id:edge:containers/things/`) {
			t.Errorf("%s", said)
		}
		r.request("1", "Metrics", "request", `{"frequency":"5s"}`) // to who it was before
		r.wantGists()
		for _, bad := range []string{
			"", "{}", `{"deviceId":"no-colon"}`, `{"deviceId":"a:b","tenantId":"x/y"}`, `{"deviceId":"a:b","tenantId":"#"}`, `{"deviceId":"a:+"}`, `{"deviceId":7}`,
		} {
			r.receive("edge/thing/response", bad)
		}
		r.wantGists()
	})
}

func TestExchangeStartsOverWithEachConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.begin()
		r.engine.before = func(context.Context, string, string) error { time.Sleep(time.Minute); return nil }
		r.request("1", "ContainerFactory", "create", `{"imageRef":"x:1"}`)
		synctest.Wait()
		r.down()
		r.receive("command//"+thing+"/req//created", "{}") // the broker's last words
		time.Sleep(2 * time.Minute)
		r.wantGists()
		r.up()
		said := r.hear()
		if len(said) != 2 || said[1] != asked || !strings.HasPrefix(said[0], "command//"+thing+"/res/1/200 ") {
			t.Errorf("an answer that was late, and a question: %s", said)
		}
		r.receive("edge/thing/response", fleetID)
		got := gists(r.hear())
		if len(got) != 4 || !strings.HasPrefix(got[1], "Container:") {
			t.Errorf("%q", got)
		}
	})
}

func TestCommandsWaitUntilItIsKnownWhoThisIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.radio()
		r.start()
		r.up()
		for i := range maxHeld + 2 {
			r.request(fmt.Sprint(i), "Container:5f0c", "start", "")
		}
		r.receive("command///req/1/apply", "{}") // is for others
		r.wantGists("")
		r.receive("edge/thing/response", fleetID)
		answers := 0
		for _, g := range gists(r.hear()) {
			if strings.HasPrefix(g, "reply ") {
				answers++
			}
		}
		if answers != maxHeld {
			t.Errorf("%d answers, want %d", answers, maxHeld)
		}
	})
}

func TestEventsBecomeMessagesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.begin()
		r.request("c1", "ContainerFactory", "createWithConfig", `{"imageRef":"registry.example/radio:1","name":"radio","start":true}`)
		said := r.hear()
		id := ""
		for id = range r.engine.all {
		}
		feature := "Container:" + id
		want := []string{feature, "SoftwareUpdatable/properties/status/installedDependencies", feature + "/properties/status/state CREATED", feature + "/properties/status/state RUNNING", "reply c1/200"}
		if got := gists(said); strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Fatalf("got %q\nwant %q", got, want)
		}
		const reply = `{"topic":"` + ditto + `live/messages/createWithConfig","headers":{"content-type":"application/json","correlation-id":"c1"},` +
			`"path":"/features/ContainerFactory/outbox/messages/createWithConfig","value":"ID","status":200}`
		if want := "command//" + thing + "/res/c1/200 " + strings.Replace(reply, "ID", id, 1); said[4] != want {
			t.Errorf("got  %s\nwant %s", said[4], want)
		}
		property := func(path, value string) string {
			return events + `{"topic":"` + ditto + `twin/commands/modify","headers":{"response-required":false},"path":"/features/` + feature + `/properties/status/` + path + `","value":` + value + `}`
		}
		state := func(text string) string {
			synctest.Wait()
			text = strings.Replace(text, "START", r.engine.all[id].State.StartedAt, 1)
			return property("state", strings.Replace(text, "END", ctrmodel.Time(time.Now()), 1))
		}
		done := func(id, name string) string {
			return "command//" + thing + "/res/" + id + "/204 " + `{"topic":"` + ditto + `live/messages/` + name + `","headers":{"correlation-id":"` + id +
				`"},"path":"/features/` + feature + `/outbox/messages/` + name + `","status":204}`
		}
		r.request("c2", feature, "pause", "")
		r.want(state(`{"status":"PAUSED","pid":4711,"startedAt":"START"}`), done("c2", "pause"))
		r.request("c3", feature, "resume", "")
		r.want(state(`{"status":"RUNNING","pid":4711,"startedAt":"START"}`), done("c3", "resume"))
		r.request("c4", feature, "rename", `"tuner"`)
		r.want(property("name", `"tuner"`), done("c4", "rename"))
		r.request("c5", feature, "update", `{"restartPolicy":{"type":"ON_FAILURE","maxRetryCount":3,"retryTimeout":1.9},"resources":{"memory":"64M"}}`)
		r.want(property("config", `{"domainName":"radio-domain","hostName":"radio-host","restartPolicy":{"type":"ON_FAILURE","maxRetryCount":3,"retryTimeout":1},`+
			`"networkMode":"BRIDGE","log":{"type":"JSON_FILE","maxFiles":2,"maxSize":"100M","mode":"BLOCKING"},"resources":{"memory":"64M"}}`), done("c5", "update"))
		const stopped = `{"status":"STOPPED","pid":-1,"exitCode":143,"startedAt":"START","finishedAt":"END"}`
		r.request("c6", feature, "stop", "")
		r.want(state(stopped), done("c6", "stop"))
		r.request("c7", feature, "stopWithOptions", `{"timeout":3,"signal":"SIGINT","force":true}`)
		r.want(state(stopped), done("c7", "stopWithOptions"))
		if want := (ctrmodel.StopOptions{Timeout: 3, Signal: "SIGINT", Force: true}); r.engine.stopped != want {
			t.Errorf("stopped with %+v, want %+v", r.engine.stopped, want)
		}
		dead := state(`{"status":"DEAD","pid":-1,"exitCode":143,"startedAt":"START","finishedAt":"END"}`)
		r.request("c8", feature, "remove", "true")
		r.want(dead,
			events+`{"topic":"`+ditto+`twin/commands/delete","headers":{"response-required":false},"path":"/features/`+feature+`"}`,
			events+`{"topic":"`+ditto+`twin/commands/modify","headers":{"response-required":false},"path":"/features/SoftwareUpdatable/properties/status/installedDependencies","value":null}`,
			done("c8", "remove"))
	})
}

func TestFeaturesOfContainersThatVanishedAreDeletedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.engine.add("a", "a", "x:1", false)
		time.Sleep(time.Second)
		r.engine.add("b", "b", "x:1", false)
		r.begin()
		r.stop()
		delete(r.engine.all, "a") // nobody is there to tell
		r.start()
		r.up()
		r.hear()
		r.bus.refuse(mqttbus.ErrDown) // the broker hears nothing of it
		r.receive("edge/thing/response", fleetID)
		time.Sleep(10 * time.Second)
		r.down()
		r.bus.refuse(nil)
		r.up()
		r.receive("edge/thing/response", fleetID)
		r.wantGists("", "SoftwareUpdatable", "Container:b", "delete Container:a", "ContainerFactory", "Metrics")
		r.stop()
		r.start()
		r.up()
		r.receive("edge/thing/response", fleetID)
		r.wantGists("", "SoftwareUpdatable", "Container:b", "ContainerFactory", "Metrics")
	})
}

func TestListOfFeaturesOfAnOriginalAgentIsTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.cfg.Original = filepath.Join(r.cfg.Dir, "original")
		if err := os.Mkdir(r.cfg.Original, 0o755); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(r.cfg.Original, "sup_back_org.example_gateway_vehicle-7_edge_containers.json")
		if err := os.WriteFile(name, []byte(`{"a":"Container:a","bad":"Other/x"}`), 0o644); err != nil {
			t.Fatal(err)
		}
		r.start()
		r.up()
		r.receive("edge/thing/response", fleetID)
		r.wantGists("", "SoftwareUpdatable", "delete Container:a", "ContainerFactory", "Metrics")
	})
}

func TestTwinIsDescribedAnewWhenEventsAreLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.begin()
		r.engine.add("a", "a", "x:1", false)
		r.engine.overrun()
		r.wantGists("SoftwareUpdatable", "Container:a", "ContainerFactory", "Metrics")
		r.engine.Start(t.Context(), "a")
		r.wantGists("Container:a/properties/status/state RUNNING")
	})
}

func TestOnlyChosenFeaturesAreThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.cfg.Features = []string{Metrics}
		r.radio()
		r.begin()
		r.engine.Start(t.Context(), "5f0c")
		r.wantGists()
		for _, f := range []string{"ContainerFactory", "Container:5f0c", "SoftwareUpdatable"} {
			r.request("1", f, "install", "{}")
			r.wantGists("reply 1/400")
		}
	})
	if _, err := New(Config{Features: []string{"Metric"}, Dir: t.TempDir()}, nil, nil); err == nil || !strings.Contains(err.Error(), `"Metric"`) {
		t.Errorf("a feature that nobody knows: %v", err)
	}
}

// As with the slow broker of the original, whose nine commands took 96 s.
func TestNineCommandsTakeTheSumOfTheirOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		for i := range 8 {
			r.engine.add(fmt.Sprint(i), fmt.Sprint(i), "x:1", false)
		}
		r.begin()
		r.bus.slow = 10 * time.Millisecond
		r.engine.before = func(_ context.Context, what, _ string) error {
			if what == "created" {
				time.Sleep(15 * time.Second) // pulls
			} else {
				time.Sleep(100 * time.Millisecond)
			}
			return nil
		}
		begin := time.Now()
		r.request("slow", "ContainerFactory", "create", `{"imageRef":"large:1"}`)
		for i := range 8 {
			r.request(fmt.Sprint(i), fmt.Sprintf("Container:%d", i), "start", "")
		}
		time.Sleep(time.Second)
		answers := 0
		for _, g := range gists(r.hear()) {
			if strings.HasPrefix(g, "reply ") {
				answers++
			}
		}
		if answers != 8 {
			t.Errorf("%d of the 8 short ones have been answered within %v", answers, time.Since(begin))
		}
		time.Sleep(15 * time.Second)
		if said := gists(r.hear()); len(said) == 0 || said[len(said)-1] != "reply slow/200" {
			t.Errorf("after %v: %q", time.Since(begin), said)
		}
	})
}

func TestOperationsOfOneContainerKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.radio()
		r.begin()
		r.engine.before = func(context.Context, string, string) error { time.Sleep(time.Second); return nil }
		for i, name := range []string{"start", "pause", "resume", "stop"} {
			r.request(fmt.Sprint(i), "Container:5f0c", name, "")
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := strings.Join(r.engine.calls, ", "); got != "running radio, paused radio, resumed radio, stopped radio" {
			t.Error(got)
		}
		for i := range maxWork + 1 {
			r.request(fmt.Sprint("n", i), "Container:5f0c", "start", "")
		}
		said := r.hear()
		if len(said) == 0 || gist(said[len(said)-1]) != fmt.Sprintf("reply n%d/500", maxWork) || !strings.Contains(said[len(said)-1], "too many") {
			t.Errorf("%q", said)
		}
	})
}

func TestMessagesThatAreDeliveredTwiceAreCarriedOutOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.begin()
		r.engine.before = func(context.Context, string, string) error { time.Sleep(5 * time.Second); return nil }
		make := func() { r.request("1", "ContainerFactory", "create", `{"imageRef":"x:1"}`) }
		make()
		make()
		time.Sleep(10 * time.Second)
		make()
		said := r.hear()
		var answers []string
		for _, m := range said {
			if strings.Contains(m, "/res/1/200 ") {
				answers = append(answers, m)
			}
		}
		if len(r.engine.all) != 1 || len(answers) != 2 || answers[0] != answers[1] {
			t.Errorf("%d containers, answers %q", len(r.engine.all), answers)
		}
		time.Sleep(redelivered)
		make()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(r.engine.all) != 2 {
			t.Errorf("%d containers: what is asked for later is meant", len(r.engine.all))
		}

		// One id for everything, as in printed examples.
		r.engine.before = func(context.Context, string, string) error { return nil }
		r.engine.add("a", "a", "x:1", false)
		r.engine.calls = nil
		r.engine.overrun()
		for _, name := range []string{"start", "stop", "start"} {
			synctest.Wait()
			r.request("same", "Container:a", name, "")
		}
		synctest.Wait()
		if got := strings.Join(r.engine.calls, ", "); got != "running a, stopped a, running a" {
			t.Error(got)
		}
	})
}

// The operation before may have undone what an operation was for.
func TestRepeatedOperationIsCarriedOutUnlessItIsTheLastOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.radio()
		r.begin()
		order := func(name string, duplicate bool) {
			id := "of " + name
			r.bus.events <- mqttbus.Event{Kind: mqttbus.Received, Message: &mqttbus.Message{
				Topic: "command//" + thing + "/req/" + id + "/" + name, Payload: []byte(requestOf(id, "Container:5f0c", name, "")), Duplicate: duplicate,
			}}
			synctest.Wait()
		}
		for _, name := range []string{"start", "stop", "stop", "start", "start"} {
			order(name, false)
		}
		order("stop", true)
		if got := strings.Join(r.engine.calls, ", "); got != "running radio, stopped radio, running radio" {
			t.Error(got)
		}
		// What makes containers undoes nothing.
		for _, id := range []string{"1", "2", "1"} {
			r.request(id, "ContainerFactory", "create", `{"imageRef":"x:1"}`)
			synctest.Wait()
		}
		if n := len(r.engine.all); n != 3 {
			t.Errorf("%d containers", n)
		}
	})
}

func TestWhatCannotBeDoneIsAnsweredWithItsCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.radio()
		r.begin()
		const radio, invalid, notFound, failed = "Container:5f0c", "messages:parameter.invalid", "messages:subject.notfound", "messages:execution.failed"
		for i, c := range []struct{ feature, operation, value, code string }{
			{"ContainerFactory", "destroy", "", notFound},
			{"ContainerFactory", "create", "", invalid},
			{"ContainerFactory", "create", `"x:1"`, invalid},
			{"ContainerFactory", "create", `{"imageRef":7}`, invalid},
			{"ContainerFactory", "create", `{"start":true}`, failed},
			{"ContainerFactory", "createWithConfig", `{"imageRef":"x:1","config":[]}`, invalid},
			{"ContainerFactory", "createWithConfig", `{"imageRef":"x:1","name":"a b"}`, failed},
			{"ContainerFactory", "createWithConfig", `{"imageRef":"x:1","config":{"resources":{"memory":"1"}}}`, failed},
			{radio, "resurrect", "", notFound},
			{radio, "rename", "", invalid},
			{radio, "rename", "7", invalid},
			{radio, "remove", `"true"`, invalid},
			{radio, "stopWithOptions", `{"timeout":"5"}`, invalid},
			{radio, "stopWithOptions", `{"signal":"SIGNOT"}`, failed},
			{radio, "update", `{"restartPolicy":"ALWAYS"}`, invalid},
			{"Container:none", "start", "", invalid},
			{"Nothing", "start", "", invalid},
			{"SoftwareUpdatable", "download", `{}`, notFound},
			{"SoftwareUpdatable", "cancel", `{}`, notFound},
			{"SoftwareUpdatable", "cancelRemove", `{}`, notFound},
			{"SoftwareUpdatable", "install", `{"correlationId":"1"}`, invalid},
			{"SoftwareUpdatable", "install", `{"softwareModules":[{}]}`, invalid},
			{"SoftwareUpdatable", "install", `{"softwareModules":{}}`, invalid},
			{"SoftwareUpdatable", "install", ``, invalid},
			{"SoftwareUpdatable", "remove", `{"software":[]}`, invalid},
			{"SoftwareUpdatable", "remove", `[]`, invalid},
			{"Metrics", "data", `{}`, notFound},
			{"Metrics", "request", ``, invalid},
			{"Metrics", "request", `{"frequency":"often"}`, invalid},
			{"Metrics", "request", `{"frequency":[]}`, invalid},
			{"Metrics", "request", `{"frequency":1,"filter":"all"}`, invalid},
		} {
			id := fmt.Sprint(i)
			r.request(id, c.feature, c.operation, c.value)
			said := r.hear()
			status := map[string]string{invalid: "400", notFound: "404", failed: "500"}[c.code]
			want := "command//" + thing + "/res/" + id + "/" + status + ` {"topic":"` + ditto + `live/messages/` + c.operation +
				`","headers":{"content-type":"application/json","correlation-id":"` + id + `"},"path":"/features/` + c.feature + `/outbox/messages/` + c.operation +
				`","value":{"error":"` + c.code + `","status":` + status + `,"message":"`
			if c.feature == "Nothing" || c.feature == "Container:none" {
				want = strings.Replace(want, "/outbox/", "/inbox/", 1) // nobody there to speak
			}
			if len(said) != 1 || !strings.HasPrefix(said[0], want) || !strings.HasSuffix(said[0], `"},"status":`+status+`}`) {
				t.Errorf("%s %s %s:\n got %s\nwant %s", c.feature, c.operation, c.value, said, want)
			}
		}
		// One-way messages are not answered.
		r.receive("command//"+thing+"/req//start", requestOf("x", radio, "resurrect", ""))
		r.receive("command//"+thing+"/req/77/start", strings.Replace(requestOf("y", radio, "resurrect", ""), `,"response-required":true`, "", 1))
		r.receive("command//"+thing+"/req//created", `{"topic":"`+ditto+`twin/events/created","headers":{},"path":"/features/`+radio+`","value":{}}`)
		r.wantGists()
	})
}

func TestStartThatFailsIsNoFailureOfCreate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.begin()
		r.engine.before = func(_ context.Context, what, _ string) error {
			if what == "running" {
				return errors.New("no such device")
			}
			return nil
		}
		r.request("1", "ContainerFactory", "create", `{"imageRef":"x:1","start":true}`)
		if said := gists(r.hear()); len(said) != 4 || said[3] != "reply 1/200" {
			t.Errorf("%q", said)
		}
	})
}
