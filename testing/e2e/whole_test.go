// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"sdvbox/platform/updateproto"
	"sdvbox/testing/ota"
)

// configure gives the update manager, until the next boot, its shipped configuration with other settings.
func (c *car) configure(settings string) {
	c.t.Helper()
	text, err := os.ReadFile("../../applets/update-manager/etc/update-manager/config.json")
	c.must(err)
	config := map[string]any{}
	c.must(json.Unmarshal(text, &config))
	c.must(json.Unmarshal([]byte(settings), &config))
	text, err = json.Marshal(config)
	c.must(err)
	c.run(fmt.Sprintf(`set -e
mkdir -p /run/e2e
echo '%s' >/run/e2e/config.json
update-manager check-config --strict /run/e2e/config.json
mount --bind /run/e2e/config.json /etc/update-manager/config.json
systemctl restart update-manager`, text))
}

// request publishes the combined message of Eclipse Leda's documentation, section "Combined update messages", in a shell of the
// vehicle, and waits until everybody knows what is to be done.
func (c *car) request(o *origin, id, version, url string) {
	c.t.Helper()
	text, err := os.ReadFile("testdata/combined.json")
	c.must(err)
	message := strings.NewReplacer("random-uuid-as-string", id, "${VERSION_ID}", version,
		"https://leda-bundle-server/sdv-rauc-bundle-minimal-qemux86-64.raucb", url, "docker.io/", o.host()+"/").Replace(string(text))
	c.run("echo '" + message + "' >/run/combined.json; mosquitto_pub -q 1 -t vehicleupdate/desiredstate -f /run/combined.json")
	f := c.hear(id, "IDENTIFIED")
	components := []string{}
	for _, a := range f.Actions {
		components = append(components, a.Component.ID+" "+a.Component.Version)
	}
	slices.Sort(components)
	if want := []string{"containers:hello-world latest", "self-update:os-image " + version}; !slices.Equal(components, want) {
		c.t.Fatalf("identified: %q, expected %q", components, want)
	}
}

// terminal are the statuses that end an activity of the vehicle.
func terminal() []string { return []string{"COMPLETED", "INCOMPLETE", "IDENTIFICATION_FAILED"} }

// hear waits for feedback about an activity of the vehicle; an end of it that is not waited for ends the story.
func (c *car) hear(id string, statuses ...string) ota.Feedback {
	c.t.Helper()
	f, err := c.fleet.Await(c.within(updateTime), id, append(terminal(), statuses...)...)
	c.must(err)
	if !slices.Contains(statuses, f.Status) {
		c.t.Fatalf("activity %s ends with %s: %s", id, f.Status, f.Message)
	}
	return f
}

// until waits for RUNNING feedback that is as wanted.
func (c *car) until(id, what string, ok func(ota.Feedback) bool) {
	c.t.Helper()
	for !ok(c.hear(id, "RUNNING")) {
	}
	c.took(what)
}

// ended checks that an activity of the vehicle ends once, in a status with all the parts in its message and actions of the same
// status.
func (c *car) ended(id, status, action string, parts ...string) {
	c.t.Helper()
	f := c.hear(id, terminal()...)
	c.took(id + " ends")
	if f.Status != status || len(f.Actions) != 2 {
		c.t.Errorf("activity %s ends with %s: %s: %+v", id, f.Status, f.Message, f.Actions)
	}
	c.expect("message of the end", f.Message, parts...)
	for _, a := range f.Actions {
		if a.Status != action {
			c.t.Errorf("%s ends with %s: %s", a.Component.ID, a.Status, a.Message)
		}
	}
	if f, err := c.fleet.Await(c.within(2*time.Second), id, terminal()...); err == nil {
		c.t.Errorf("it ends once more, with %s: %s", f.Status, f.Message)
	}
	c.expect("history", c.run("update-manager history"), id, status)
	c.expect("status", c.run("update-manager status"), "activity:  none")
}

// makes makes the container of the documentation's message by hand.
func (c *car) makes(o *origin, tag string) {
	c.run("kanto-cm create --name hello-world --e FOO=" + tag + " " + o.host() + "/library/hello-world:" + tag + ` && kanto-cm start -n hello-world
until kanto-cm logs -n hello-world | grep -q Hello; do sleep 0.5; done`)
	c.hellos(tag, tag)
}

// lastWords kills the container agent, and the container says goodbye and ends before the next agent is there.
func (c *car) lastWords(who string) {
	c.run("systemctl kill -s KILL container-agent && pkill -TERM -x hello")
	_, err := c.vm.Run(c.within(shortTime), `until [ "$(kanto-cm logs -n hello-world)" = "Hello, FOO=`+who+`!
Goodbye!
Hello, FOO=`+who+`!" ]; do sleep 0.5; done`)
	if err != nil {
		c.t.Fatalf("%v\nthe container said:\n%s", err, c.run("kanto-cm logs -n hello-world"))
	}
}

// hellos checks that this container is the only one, and runs and says hello.
func (c *car) hellos(tag, who string) {
	c.t.Helper()
	var list []struct {
		Name  string `json:"container_name"`
		Image struct {
			Name string `json:"name"`
		} `json:"image"`
		State struct {
			Running bool `json:"running"`
		} `json:"state"`
	}
	text := c.run("kanto-cm list --output json")
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		c.t.Fatalf("kanto-cm list: %v in:\n%s", err, text)
	}
	if len(list) != 1 || list[0].Name != "hello-world" || !strings.HasSuffix(list[0].Image.Name, "/library/hello-world:"+tag) || !list[0].State.Running {
		c.t.Errorf("containers: %s", text)
	}
	c.expect("log of the container", c.run("kanto-cm logs -n hello-world"), "Hello, FOO="+who+"!")
	// What it is after the last start of the vehicle, and not before it.
	c.expect("processes", c.run("ps -e -o comm="), "hello")
}

// asOne updates the vehicle by one message, with a manager that is killed on the way and a reboot that has to wait until the
// vehicle is safe.
func (c *car) asOne(o *origin, id, version, url, slot string) {
	c.configure(`{"rebootAfter":"2s","reportFeedbackInterval":"500ms","rebootGate":{"topic":true}}`)
	c.request(o, id, version, url)
	c.until(id, "the slot is being written", func(f ota.Feedback) bool {
		return slices.ContainsFunc(f.Actions, func(a updateproto.Action) bool { return a.Status == "UPDATING" })
	})
	c.run("systemctl kill -s KILL update-manager")
	waits := func(why string) func(f ota.Feedback) bool {
		return func(f ota.Feedback) bool {
			return strings.Contains(f.Message, "reboot") && strings.Contains(f.Message, why)
		}
	}
	c.until(id, "the reboot waits for a word of the vehicle", waits("no word"))
	c.expect("the manager has been killed", c.run("systemctl show -p NRestarts update-manager"), "NRestarts=1")
	c.safe(false, "driving")
	c.until(id, "the reboot waits for its end", waits("driving"))
	c.safe(true, "parked")
	c.next()
	c.grub(slot + " (first)")
	c.up(slot, version)
	c.ended(id, "COMPLETED", "UPDATE_SUCCESS")
	c.hellos("latest", "BAR")
}

// safe says what the integrator's program says that knows the vehicle, as docs/broker.md tells him to.
func (c *car) safe(safe bool, reason string) {
	c.t.Helper()
	c.run(fmt.Sprintf(`set -e
mkdir -p /run/e2e
(umask 077; printf -- '-u vehicle-state\n-P %%s\n' "$(cat /data/sdvbox/mqtt/vehicle-state)" >/run/e2e/mosquitto_pub)
XDG_CONFIG_HOME=/run/e2e mosquitto_pub -q 1 -r -t vehicleupdate/safetoreboot \
	-m '{"activityId":"","timestamp":0,"payload":{"safe":%t,"reason":"%s"}}'`, safe, reason))
}

// backAsOne updates the vehicle by one message to a system that does not prove its health, so that all of the vehicle goes back.
func (c *car) backAsOne(o *origin, id, version, url, why string) {
	c.configure(`{"rebootAfter":"2s"}`)
	c.request(o, id, version, url)
	c.next()
	c.grub("SDV_B (first)")
	c.next()
	c.grub("SDV_A (fallback)")
	s := c.up("SDV_A", "1")
	if s.LastFailure.Slot != "SDV_B" || !strings.Contains(s.LastFailure.Reason, why) {
		c.t.Errorf("status: %+v", s)
	}
	c.ended(id, "INCOMPLETE", "UPDATE_FAILURE", "rolled back", "SDV_B", why)
	c.hellos("old", "old")
}
