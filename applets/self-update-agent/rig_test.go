// SPDX-License-Identifier: Apache-2.0

package selfupdateagent

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sdvbox/platform/applet"
	"sdvbox/platform/bootenv"
	"sdvbox/platform/updateproto"
	"sdvbox/testing/broker"
	"sdvbox/testing/raucd"
)

// With this variable set the test binary is the agent itself, so that it can
// be killed like one. Its value is where /proc and /etc are.
const agentEnv = "SDVBOX_TEST_AGENT"

// crashEnv makes the agent kill itself after so many writes of its journal,
// counted over all its lives.
const crashEnv = "SDVBOX_TEST_CRASH"

func TestMain(m *testing.M) {
	root := os.Getenv(agentEnv)
	if root == "" {
		os.Exit(m.Run())
	}
	crash, _ := strconv.Atoi(os.Getenv(crashEnv))
	cmd := Command()
	cmd.Options = func() any {
		return &options{root: root, afterSave: func(int) {
			count := filepath.Join(root, "saves")
			saves, _ := os.ReadFile(count)
			if err := os.WriteFile(count, append(saves, '.'), 0o644); err != nil {
				panic(err)
			}
			if len(saves)+1 == crash {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}}
	}
	os.Exit(applet.Main([]applet.Command{cmd}, append([]string{name}, os.Args[1:]...), os.Stdin, os.Stdout, os.Stderr))
}

// rig is a vehicle on this machine: the real RAUC with two slots, a broker, a
// server with a bundle, the agent in a process of its own, and somebody who
// commands it.
type rig struct {
	t      *testing.T
	rauc   *raucd.Fixture
	broker *broker.Broker
	client *broker.Client
	root   string
	state  string
	path   string
	args   []string // further arguments of the agent
	agent  *exec.Cmd
	exited chan error
	log    string
	served atomic.Int64 // bytes of bundles sent
	server *httptest.Server
	bundle string // file that the server has
	heard  []updateproto.Feedback
	ids    []string
	boots  int
}

func newRig(t *testing.T, o raucd.Options) *rig {
	t.Helper()
	o.NoActivate = true
	r := &rig{t: t, rauc: raucd.Start(t, o), broker: broker.Start(t, broker.Options{}), root: t.TempDir()}
	r.state, r.path = filepath.Join(r.root, "state"), filepath.Join(r.root, "bundles")
	r.log = filepath.Join(r.root, "log")
	r.client = r.broker.Client(t, "selfupdate/#")
	r.write("etc/os-release", "NAME=\"Test\"\nVERSION_ID=\"1\"\n")
	r.boot("SDV_A")
	r.env(func(v *bootenv.Vars) { v.Set("SDV_GOOD", "SDV_A") })
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/bundle.raucb" {
			http.NotFound(w, req)
			return
		}
		f, err := os.Open(r.bundle)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer f.Close()
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(counter{w, &r.served}, req, "", time.Unix(1e9, 0), f)
	}))
	t.Cleanup(r.server.Close)
	t.Cleanup(func() {
		r.stop(syscall.SIGKILL)
		if t.Failed() {
			log, _ := os.ReadFile(r.log)
			t.Logf("log of the agent:\n%s\nlog of RAUC:\n%s", log, r.rauc.Log())
		}
	})
	return r
}

// counter counts the bytes of a body.
type counter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.n.Add(int64(n))
	return n, err
}

func (r *rig) write(name, text string) {
	r.t.Helper()
	p := filepath.Join(r.root, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// boot makes the world look as after a boot from the slot.
func (r *rig) boot(bootname string) {
	r.t.Helper()
	r.boots++
	r.write("proc/cmdline", "root=PARTLABEL=x rauc.slot="+bootname+" sdvbox.boot=first\n")
	r.write("proc/sys/kernel/random/boot_id", fmt.Sprintf("boot-%d\n", r.boots))
}

// reboot ends the agent and boots from the slot.
func (r *rig) reboot(bootname string) {
	r.t.Helper()
	r.stop(syscall.SIGKILL)
	r.boot(bootname)
	r.rauc.SimulateReboot(r.t, bootname)
}

// env changes the boot environment as the boot loader or rauc-helper would.
func (r *rig) env(change func(*bootenv.Vars)) {
	r.t.Helper()
	store, err := bootenv.Open("grub:" + r.rauc.GrubEnv)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := store.Update(func(v *bootenv.Vars) error { change(v); return nil }); err != nil {
		r.t.Fatal(err)
	}
}

// start starts the agent; crash is the journal write after which it dies, 0
// for never.
func (r *rig) start(crash int) {
	r.t.Helper()
	log, err := os.OpenFile(r.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	r.agent = exec.Command(os.Args[0], append([]string{
		"-s", r.broker.URL(), "-p", r.path, "--state-dir", r.state, "--message-delay", "0",
		"--bootenv", "grub:" + r.rauc.GrubEnv, "--confirm-timeout", "20s", "--download-timeout", "20s",
	}, r.args...)...)
	r.agent.Env = append(os.Environ(), agentEnv+"="+r.root, crashEnv+"="+strconv.Itoa(crash), "DBUS_SYSTEM_BUS_ADDRESS="+r.rauc.Address)
	r.agent.Stdout, r.agent.Stderr = log, log
	r.agent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.agent.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.exited = make(chan error, 1)
	go func(c *exec.Cmd, exited chan error) { exited <- c.Wait() }(r.agent, r.exited)
}

// awaitAgent waits until the agent is on the bus; from then on the broker
// keeps messages for it.
func (r *rig) awaitAgent() {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if m := r.client.Next(time.Until(deadline)); m.Topic == "selfupdate/currentstate" {
			return
		}
	}
}

// stop ends the agent if it runs.
func (r *rig) stop(sig syscall.Signal) {
	if r.agent == nil {
		return
	}
	r.agent.Process.Signal(sig)
	select {
	case <-r.exited:
	case <-time.After(10 * time.Second):
		r.agent.Process.Kill()
		<-r.exited
		r.t.Errorf("agent did not end within 10 s of %v", sig)
	}
	r.agent = nil
}

func (r *rig) serve(spec raucd.BundleSpec) { r.bundle = r.rauc.MakeBundle(r.t, spec) }

func (r *rig) desire(id, version string) {
	r.t.Helper()
	r.desireURL(id, version, r.server.URL+"/bundle.raucb")
}

func (r *rig) desireURL(id, version, url string) {
	r.t.Helper()
	r.client.Publish("selfupdate/desiredstate", fmt.Sprintf(`{"activityId":%q,"timestamp":123456789,"payload":{"domains":[{"id":"self-update","components":[{"id":"os-image","version":%q,"config":[{"key":"image","value":%q}]}]}]}}`, id, version, url))
}

func (r *rig) command(id, command string) {
	r.t.Helper()
	r.client.Publish("selfupdate/desiredstate/command", fmt.Sprintf(`{"activityId":%q,"timestamp":1687510087,"payload":{"baseline":"BASELINE NAME","command":%q}}`, id, command))
}

// next returns the next feedback; it passes over everything else.
func (r *rig) next(timeout time.Duration) (id string, f updateproto.Feedback) {
	r.t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		if m := r.client.Next(time.Until(deadline)); m.Topic == "selfupdate/desiredstatefeedback" {
			f := r.feedback(m.Payload)
			return r.ids[len(r.ids)-1], f
		}
	}
}

// feedback checks the form of a feedback and takes it down.
func (r *rig) feedback(payload string) updateproto.Feedback {
	r.t.Helper()
	var e struct {
		ActivityID *string               `json:"activityId"`
		Timestamp  *int64                `json:"timestamp"`
		Payload    *updateproto.Feedback `json:"payload"`
	}
	dec := json.NewDecoder(strings.NewReader(payload))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil || e.ActivityID == nil || e.Timestamp == nil || e.Payload == nil || e.Payload.Actions == nil {
		r.t.Fatalf("feedback %s: not of the documented form: %v", payload, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		r.t.Fatalf("feedback %s: more than one document", payload)
	}
	r.heard, r.ids = append(r.heard, *e.Payload), append(r.ids, *e.ActivityID)
	return *e.Payload
}

// await returns the first feedback with one of the statuses.
func (r *rig) await(statuses ...string) updateproto.Feedback {
	r.t.Helper()
	for {
		_, f := r.next(15 * time.Second)
		for _, s := range statuses {
			if f.Status == s {
				return f
			}
		}
	}
}

// update goes through an update up to the answer to the last command.
func (r *rig) update(id, version string, commands ...string) updateproto.Feedback {
	r.t.Helper()
	r.desire(id, version)
	f := r.await("IDENTIFIED", "IDENTIFICATION_FAILED")
	for _, c := range commands {
		r.command(id, c)
		switch c {
		case "DOWNLOAD":
			f = r.await("DOWNLOAD_SUCCESS", "DOWNLOAD_FAILURE")
		case "UPDATE":
			f = r.await("UPDATE_SUCCESS", "UPDATE_FAILURE")
		case "ACTIVATE":
			f = r.await("ACTIVATION_SUCCESS", "ACTIVATION_FAILURE")
		default:
			f = r.await("COMPLETE", "INCOMPLETE")
		}
	}
	return f
}

// inventory asks for the inventory and returns the version of the OS image.
func (r *rig) inventory(id string) (version string) {
	r.t.Helper()
	r.client.Publish("selfupdate/currentstate/get", fmt.Sprintf(`{"activityId":%q,"timestamp":1}`, id))
	for {
		m := r.client.Next(20 * time.Second)
		if m.Topic != "selfupdate/currentstate" {
			continue
		}
		var inv updateproto.Inventory
		got, err := updateproto.Decode([]byte(m.Payload), &inv)
		if got != id {
			continue
		}
		if err != nil || len(inv.SoftwareNodes) != 2 {
			r.t.Fatalf("inventory %s: %v", m.Payload, err)
		}
		return inv.SoftwareNodes[1].Version
	}
}
