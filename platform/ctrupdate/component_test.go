// SPDX-License-Identifier: Apache-2.0

package ctrupdate

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/updateproto"
)

// rich is a container that differs from the usual in everything.
func rich() *ctrmodel.Container {
	c := &ctrmodel.Container{
		ID: "1", Name: "hvac", Image: ctrmodel.Image{Name: "registry.example:5000/a/hvac:0.4"}, DomainName: "car", HostName: "air",
		Mounts:   []ctrmodel.Mount{{Source: "/data", Destination: "/d", Propagation: "rshared"}, {Source: "/etc", Destination: "/e", ReadOnly: true}},
		Hooks:    []ctrmodel.Hook{{Path: "/bin/hook"}},
		Config:   ctrmodel.Config{Env: []string{"A=1", "B", "C=x=y, z"}, Cmd: []string{"sh", "-c", "echo hello; sleep 5", ""}},
		IOConfig: ctrmodel.IOConfig{OpenStdin: true, TTY: true},
		HostConfig: ctrmodel.HostConfig{
			Devices:           []ctrmodel.Device{{OnHost: "/dev/null", InContainer: "/dev/none", Permissions: "rw"}},
			RestartPolicy:     ctrmodel.RestartPolicy{Type: "on-failure", MaxRetries: 3, RetryTimeout: 30 * time.Second},
			ExtraHosts:        []string{"db:container_db-host", "gate:10.0.0.1"},
			ExtraCapabilities: []string{"CAP_NET_ADMIN"},
			Ports:             []ctrmodel.Port{{HostPort: 80, Container: 8080}, {HostIP: "127.0.0.1", HostPort: 90, HostPortEnd: 95, Container: 90, Proto: "udp"}},
			Log:               ctrmodel.Log{Driver: ctrmodel.LogDriver{MaxFiles: 5, MaxSize: "1M", RootDir: "/var/log"}, Mode: ctrmodel.LogMode{Mode: "non-blocking", MaxBufferSize: "2M"}},
			Resources:         ctrmodel.Resources{Memory: "64M", MemoryReservation: "32M", MemorySwap: "-1"},
		},
		Created: "2024-05-01T08:00:00.1Z", RestartCount: 2,
	}
	c.Defaults(nil)
	c.State.SetExited(3, time.Unix(1e9, 0), false, "")
	return c
}

func plain(name string) *ctrmodel.Container {
	c := &ctrmodel.Container{ID: "2", Name: name, Image: ctrmodel.Image{Name: name + ":1"}, Created: "then"}
	c.Defaults(nil)
	c.State.SetRunning(1, time.Unix(1e9, 0))
	return c
}

// What is reported of a container, sent back, is that container.
func TestReportSentBackChangesNothing(t *testing.T) {
	private := rich()
	private.HostConfig.Devices, private.HostConfig.ExtraCapabilities, private.HostConfig.Privileged = nil, nil, true
	host := plain("host")
	host.HostConfig.NetworkMode, host.HostName = "host", "the-device"
	silent := plain("silent")
	silent.HostConfig.Log.Driver = ctrmodel.LogDriver{Type: "none"}
	fraction := rich()
	fraction.HostConfig.RestartPolicy.RetryTimeout = 1500 * time.Millisecond
	limited := plain("limited")
	limited.HostConfig.Resources.Memory = "64M" // and, by default, the double of it with swap
	limited.Defaults(nil)
	for _, c := range []*ctrmodel.Container{rich(), plain("plain"), private, host, silent, fraction, limited} {
		for _, verbose := range []bool{false, true} {
			// As it is on the wire: without empty values.
			raw, err := updateproto.Compact(updateproto.Component{ID: c.Name, Version: "1", Config: report(c, verbose)})
			if err != nil {
				t.Fatal(err)
			}
			var sent updateproto.Component
			if err := json.Unmarshal(raw, &sent); err != nil {
				t.Fatal(err)
			}
			w, err := parse(sent)
			if err != nil {
				t.Errorf("%s: %v", raw, err)
				continue
			}
			if k := difference(c, w, false); k != check || w.odd != nil {
				t.Errorf("%s:\n%s needs a %s, odd is %q", c.Name, raw, k, w.odd)
			}
			// A new one of it would be the same, too.
			inherit(w.Container, c)
			w.Defaults(func() string { return "any" })
			fresh := c.Clone()
			fresh.ID, fresh.State, fresh.Created, fresh.RestartCount = "", ctrmodel.State{}, "", 0
			w.ID = ""
			if d := cmp.Diff(fresh, w.Container); d != "" {
				t.Errorf("verbose %v: (-is +again)\n%s", verbose, d)
			}
		}
	}
}

func TestReport(t *testing.T) {
	lines := func(list []updateproto.KeyValue) (lines []string) {
		for _, kv := range list {
			lines = append(lines, kv.Key+"="+kv.Value)
		}
		return lines
	}
	for _, tc := range []struct {
		name    string
		c       *ctrmodel.Container
		verbose bool
		want    string
	}{{"Plain", plain("radio"), false, "image=radio:1 status=Running created=then"},
		{"Rich", rich(), false, "image=registry.example:5000/a/hvac:0.4 domainName=car hostName=air terminal=true interactive=true restartPolicy=on-failure " +
			"restartMaxRetries=3 restartTimeout=30 device=/dev/null:/dev/none:rw port=80:8080/tcp port=127.0.0.1:90-95:90/udp host=db:container_db-host " +
			"host=gate:10.0.0.1 capability=CAP_NET_ADMIN logMaxFiles=5 logMaxSize=1M logPath=/var/log logMode=non-blocking logMaxBufferSize=2M memory=64M " +
			"memoryReservation=32M memorySwap=-1 mount=/data:/d:rshared mount=/etc:/e:rprivate,ro env=A=1 env=B env=C=x=y,~z cmd=sh cmd=-c " +
			"cmd=echo~hello;~sleep~5 cmd= status=Exited finishedAt=2001-09-09T01:46:40Z exitCode=3 created=2024-05-01T08:00:00.1Z restartCount=2"},
		{"Verbose", plain("radio"), true, "image=radio:1 domainName=radio-domain hostName=radio-host terminal=false interactive=false privileged=false " +
			"restartPolicy=unless-stopped restartMaxRetries=0 restartTimeout=0 network=bridge logDriver=json-file logMaxFiles=2 logMaxSize=100M logPath= " +
			"logMode=blocking memory= memoryReservation= memorySwap= status=Running finishedAt= exitCode=0 created=then restartCount=0 manuallyStopped=false " +
			"startedSuccessfullyBefore=false"},
	} {
		if got := lines(report(tc.c, tc.verbose)); !slices.Equal(got, strings.Split(strings.NewReplacer(" ", "\n", "~", " ").Replace(tc.want), "\n")) {
			t.Errorf("%s:\n%s", tc.name, strings.Join(got, "\n"))
		}
	}
}

func TestVersionIsThatOfTheImage(t *testing.T) {
	for image, want := range map[string]string{
		"hvac:0.4": "0.4", "registry.example:5000/hvac": "n/a", "registry.example:5000/a/hvac:1": "1", "a/hvac@sha256:12": "sha256:12", "hvac:1@sha256:12": "sha256:12",
	} {
		if got := versionOf(image); got != want {
			t.Errorf("version of %s is %q, want %q", image, got, want)
		}
	}
}

func TestWhatMakesNoSenseIsLeftOutAndSaid(t *testing.T) {
	w, err := parse(component("hvac", "port=x", "device=", "mount=/a", "terminal=perhaps", "restartPolicy=on-failure", "restartMaxRetries=many",
		"restartTimeout=-3", "colour=red", "status=Running", "logMaxFiles=x", "restartTimeout=30s"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`port "x"`, `device ""`, `mount "/a"`, `terminal "perhaps"`, `restartMaxRetries "many"`, `restartTimeout "-3"`, `unknown key "colour"`, `logMaxFiles "x"`}
	if !slices.Equal(w.odd, want) {
		t.Errorf("odd is %q, want %q", w.odd, want)
	}
	if w.Image.Name != "hvac:2" || w.HostConfig.RestartPolicy.RetryTimeout != 30*time.Second || len(w.HostConfig.Ports) > 0 {
		t.Errorf("container %+v", w.Container)
	}
	list := plan("containers", &desired{wanted: []*wanted{w}}, nil, false, nil)
	if !strings.Contains(list[0].Message, `Ignored: port "x", `) {
		t.Errorf("said is %q", list[0].Message)
	}
}

func TestWhatMakesNoContainerIsRefused(t *testing.T) {
	b := &Backend{Config{Domain: "containers"}}
	two := desire(component("a"), component("b"))
	for _, tc := range []struct {
		ds   updateproto.DesiredState
		want string
	}{
		{desire(component("a b")), `component "a b"`},
		{desire(component("a", "network=moon")), `network_mode "moon"`},
		{desire(component("a", "network=host", "port=1:1")), "port_mappings"},
		{desire(component("a", "memory=1")), "memory"},
		{desire(component("a", "host=x")), "extra_hosts"},
		{desire(component("a", "env==x")), "config.env"},
		{desire(component("a", "privileged=true", "device=/dev/null:/dev/null")), "devices"},
		{desire(component("a", "restartPolicy=perhaps")), `"perhaps"`},
		{desire(component("a"), component("a")), `component "a" is there twice`},
		{desire(component("a", "port=80-90:80"), component("b", "port=127.0.0.1:85:80")), `components "a" and "b" want the same port of the host`},
		{desire(component("a", "port=80:80", "port=80:80", "port=80:81")), `component "a" wants port 80 of the host twice`},
		{desire(component("a", "port=80:80", "port=80:80", "port=80:80/udp")), ""},
		{desire(component("a", "port=80:80"), component("b", "port=80:80/udp")), ""},
		{updateproto.DesiredState{}, "0 domains"},
		{with(two, "x", "containers:c"), `baseline "x": there is no component "containers:c"`},
		{with(with(two, "x", "containers:a"), "y", "containers:b", "containers:a"), `baseline "y": component "containers:a" is in baseline "x" already`},
		{with(two, "x", "containers:a", "containers:a"), "already"},
		{with(two, "x", "self-update:os-image", "containers:a"), ""},
	} {
		if err := b.Check(tc.ds); tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("error %v, want %q", err, tc.want)
		}
	}
}

func with(ds updateproto.DesiredState, title string, components ...string) updateproto.DesiredState {
	ds.Baselines = append(slices.Clone(ds.Baselines), updateproto.Baseline{Title: title, Components: components})
	return ds
}

func TestContainersContendForPortsOfTheSameAddress(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want bool
	}{
		{"80:1", "80:2", true}, {"80:1", "81:1", false}, {"80:1", "80:1/udp", false}, {"80-90:1", "85:1", true}, {"85:1", "80-90:1", true}, {"80-84:1", "85-90:1", false},
		{"127.0.0.1:80:1", "80:1", true}, {"80:1", "10.0.0.1:80:1", true}, {"127.0.0.1:80:1", "10.0.0.1:80:1", false}, {"127.0.0.1:80:1", "127.0.0.1:80:1", true},
		{"[::]:80:1", "10.0.0.1:80:1", true}, {"[::1]:80:1", "80:1", true}, {"[::1]:80:1", "127.0.0.1:80:1", false},
	} {
		a, errA := parse(component("a", "port="+tc.a))
		b, errB := parse(component("b", "port="+tc.b))
		if errA != nil || errB != nil || a.odd != nil || b.odd != nil {
			t.Fatal(errA, errB, a.odd, b.odd)
		}
		if contend(a.Container, b.Container) != tc.want {
			t.Errorf("%s and %s contend: %v", tc.a, tc.b, !tc.want)
		}
	}
}

// Whoever does not know what to write does not block an update for ever.
func TestProofsHaveBounds(t *testing.T) {
	for config, odd := range map[string]bool{
		"healthTime=0": false, "healthTime=1h": false, "healthTime=99999h": true, "healthTime=-1s": true, "healthTime=soon": true,
		"healthInterval=0": false, "healthInterval=2h": true, "healthTimeout=0": true, "healthTimeout=2h": true, "healthTimeout=1ms": false,
		"healthRetries=0": false, "healthRetries=100": false, "healthRetries=101": true, "healthRetries=-1": true, "healthRetries=99999999999": true,
	} {
		w, err := parse(component("a", config))
		if err != nil {
			t.Fatal(err)
		}
		p, usual := w.proof, defaultProof()
		same := p.time == usual.time && p.interval == usual.interval && p.timeout == usual.timeout && p.retries == usual.retries
		if (w.odd != nil) != odd || same != odd {
			t.Errorf("%s: odd is %q, proof %+v", config, w.odd, p)
		}
	}
}

func TestDifferences(t *testing.T) {
	is := func(change func(*ctrmodel.Container)) *ctrmodel.Container {
		c := plain("a")
		change(c)
		c.Defaults(nil)
		return c
	}
	same := func(*ctrmodel.Container) {}
	for _, tc := range []struct {
		is     *ctrmodel.Container
		wanted updateproto.Component
		want   kind
	}{
		{is(same), component("a", "image=a:1"), check},
		{is(same), component("a", "image=a:2"), recreate},
		{is(same), component("a", "image=a:1", "env=A=1"), recreate},
		{is(same), component("a", "image=a:1", "capability=CAP_NET_ADMIN"), recreate},
		{is(same), component("a", "image=a:1", "hostName=b"), recreate},
		{is(same), component("a", "image=a:1", "domainName=b"), recreate},
		{is(same), component("a", "image=a:1", "memory=64M"), update},
		{is(same), component("a", "image=a:1", "restartPolicy=no"), update},
		{is(func(c *ctrmodel.Container) { c.HostConfig.Resources.Memory = "64M" }), component("a", "image=a:1", "memory=64M"), check},
		{is(func(c *ctrmodel.Container) { c.Hooks = []ctrmodel.Hook{{Path: "/x"}} }), component("a", "image=a:1"), check},
		{is(func(c *ctrmodel.Container) { c.HostName = "b" }), component("a", "image=a:1"), check},
	} {
		w, err := parse(tc.wanted)
		if err != nil {
			t.Fatal(err)
		}
		if got := difference(tc.is, w, false); got != tc.want {
			t.Errorf("%v: %s, want %s", tc.wanted.Config, got, tc.want)
		}
	}
}

func TestContainersComeAfterThoseTheyLookFor(t *testing.T) {
	d, err := read(desire(component("web", "host=db:container_base"), component("app", "host=w:container_web-host", "host=x:container_nobody"),
		component("db", "hostName=base", "host=a:container_ring-host"), component("ring", "host=a:container_base"), component("last")))
	if err != nil {
		t.Fatal(err)
	}
	wants := map[string]*wanted{}
	for _, w := range d.wanted {
		wants[w.Name] = w
	}
	var order []string
	for _, a := range inOrder(plan("containers", d, []*ctrmodel.Container{plain("gone")}, false, nil), wants) {
		order = append(order, a.Name)
	}
	if got, want := fmt.Sprint(order), "[ring db web app last gone]"; got != want {
		t.Errorf("order %s, want %s", got, want)
	}
}

func FuzzParse(f *testing.F) {
	seed, _ := json.Marshal(updateproto.Component{ID: "a", Config: report(rich(), true)})
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var c updateproto.Component
		if json.Unmarshal(data, &c) != nil {
			return
		}
		w, err := parse(c)
		if err != nil {
			return
		}
		whole := w.Clone()
		whole.Defaults(func() string { return "any" })
		again, err := parse(updateproto.Component{ID: c.ID, Config: report(whole, false)})
		if err != nil {
			t.Fatalf("cannot be sent back: %v", err)
		}
		if k := difference(whole, again, false); k != check {
			t.Fatalf("sent back, it needs a %s: %+v", k, whole)
		}
	})
}
