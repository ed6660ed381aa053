// SPDX-License-Identifier: Apache-2.0

package ctrmodel

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCompare(t *testing.T) {
	type edit = func(c *Container)
	host := func(change func(h *HostConfig)) edit { return func(c *Container) { change(&c.HostConfig) } }
	base := func(c *Container) {
		c.Mounts = []Mount{{Source: "/a", Destination: "/b"}, {Source: "/c", Destination: "/d"}}
		c.Config = Config{Env: []string{"A=1", "B=2"}, Cmd: []string{"x", "y"}}
		c.HostConfig.Ports = []Port{{HostPort: 80, Container: 80}, {HostPort: 81, Container: 81}}
		c.HostConfig.Resources.Memory = "64M"
	}
	for _, test := range []struct {
		what   string
		change edit
		want   Change
	}{
		{"nothing", func(*Container) {}, Same},
		{"what others do not know", func(c *Container) {
			c.ID, c.Name, c.HostName, c.DomainName = "2", "n", "h", "d"
			c.Hooks = []Hook{{Path: "/x"}}
			c.HostConfig.Runtime = "io.containerd.kata.v2"
			c.Image.Decrypt = &Decrypt{Keys: []string{"k"}}
			c.IOConfig.AttachStdin, c.IOConfig.StdinOnce = true, true
			c.State.Status, c.RestartCount, c.ManuallyStopped = Exited, 2, true
		}, Same},
		{"order", func(c *Container) {
			c.Mounts[0], c.Mounts[1] = c.Mounts[1], c.Mounts[0]
			c.Config.Env[0], c.Config.Env[1] = c.Config.Env[1], c.Config.Env[0]
			c.HostConfig.Ports[0], c.HostConfig.Ports[1] = c.HostConfig.Ports[1], c.HostConfig.Ports[0]
		}, Same},
		{"empty lists", host(func(h *HostConfig) { h.Devices, h.ExtraHosts, h.ExtraCapabilities = []Device{}, []string{}, []string{} }), Same},
		{"defaults said", func(c *Container) {
			c.Mounts[0].Propagation = "rprivate"
			c.HostConfig.NetworkMode, c.HostConfig.RestartPolicy.Type = "bridge", "unless-stopped"
			c.HostConfig.Resources.MemorySwap = "128M"
			c.HostConfig.Log.Driver.MaxFiles = 2
			c.HostConfig.Ports[0].HostPortEnd = 80
		}, Same},
		{"image", func(c *Container) { c.Image.Name = "registry.example/radio:2" }, Recreate},
		{"no mount", func(c *Container) { c.Mounts = c.Mounts[:1] }, Recreate},
		{"one more mount", func(c *Container) { c.Mounts = append(c.Mounts, Mount{Source: "/e", Destination: "/e"}) }, Recreate},
		{"mount mode", func(c *Container) { c.Mounts[0].Propagation = "shared" }, Recreate},
		{"read-only mount", func(c *Container) { c.Mounts[0].ReadOnly = true }, Recreate},
		{"no configuration", func(c *Container) { c.Config = Config{} }, Recreate},
		{"environment", func(c *Container) { c.Config.Env[1] = "B=3" }, Recreate},
		{"order of arguments", func(c *Container) { c.Config.Cmd = []string{"y", "x"} }, Recreate},
		{"stdin", func(c *Container) { c.IOConfig.OpenStdin = true }, Recreate},
		{"terminal", func(c *Container) { c.IOConfig.TTY = true }, Recreate},
		{"privileged", host(func(h *HostConfig) { h.Privileged = true }), Recreate},
		{"network", host(func(h *HostConfig) { h.NetworkMode = "host" }), Recreate},
		{"device", host(func(h *HostConfig) { h.Devices = []Device{{OnHost: "/dev/x"}} }), Recreate},
		{"extra host", host(func(h *HostConfig) { h.ExtraHosts = []string{"a:host_ip"} }), Recreate},
		{"capability", host(func(h *HostConfig) { h.ExtraCapabilities = []string{"CAP_SYS_TIME"} }), Recreate},
		{"port", host(func(h *HostConfig) { h.Ports[1].HostPortEnd = 82 }), Recreate},
		{"log files", host(func(h *HostConfig) { h.Log.Driver.MaxFiles = 3 }), Recreate},
		{"log mode", host(func(h *HostConfig) { h.Log.Mode.Mode = LogNonBlocking }), Recreate},
		{"memory", host(func(h *HostConfig) { h.Resources.Memory = "65M" }), InPlace},
		{"no memory", host(func(h *HostConfig) { h.Resources = Resources{} }), InPlace},
		{"unlimited swap", host(func(h *HostConfig) { h.Resources.MemorySwap = Unlimited }), InPlace},
		{"policy", host(func(h *HostConfig) { h.RestartPolicy.Type = RestartNever }), InPlace},
		{"retry timeout", host(func(h *HostConfig) { h.RestartPolicy.RetryTimeout = time.Minute }), InPlace},
		{"memory and image", func(c *Container) { c.HostConfig.Resources, c.Image.Name = Resources{}, "x" }, Recreate},
	} {
		desired := &Container{Name: "radio", Image: Image{Name: "registry.example/radio:1"}} // without defaults
		base(desired)
		test.change(desired)
		before := desired.Clone()
		current := valid(base)
		if got := Compare(current, desired); got != test.want {
			t.Errorf("%s: got %d, want %d", test.what, got, test.want)
		}
		if got := Compare(desired, current); got != test.want {
			t.Errorf("%s the other way round: got %d, want %d", test.what, got, test.want)
		}
		if diff := cmp.Diff(before, desired); diff != "" {
			t.Errorf("%s: comparing changes it: %s", test.what, diff)
		}
		if test.want == InPlace {
			desired.Defaults(newID)
			changed, err := current.Update(UpdateOptions{&desired.HostConfig.RestartPolicy, &desired.HostConfig.Resources})
			if again := Compare(current, desired); err != nil || !changed || again != Same {
				t.Errorf("%s: updated %v, %v, then still %d", test.what, changed, err, again)
			}
		}
	}
}

// wantStable checks that what may be left out of a valid container makes no difference, and that of two containers nothing is
// to be done once it has been.
func wantStable(t *testing.T, c *Container) {
	t.Helper()
	full := c.Clone()
	full.Defaults(newID)
	if Compare(c, full) != Same || Compare(full, c) != Same {
		t.Errorf("%+v is not the same with its defaults, %+v", c, full)
	}
	again := full.Clone()
	again.Defaults(newID)
	if diff := cmp.Diff(full, again); diff != "" {
		t.Errorf("the defaults of %+v have defaults: %s", c, diff)
	}
	current := full.Clone()
	current.HostConfig.RestartPolicy, current.HostConfig.Resources = RestartPolicy{Type: RestartNever}, Resources{}
	if Compare(current, c) == Same {
		return
	}
	if _, err := current.Update(UpdateOptions{&full.HostConfig.RestartPolicy, &full.HostConfig.Resources}); err != nil || Compare(current, c) != Same {
		t.Errorf("%+v stays different after an update, %v: %+v", c, err, current)
	}
}

func TestWhatMayBeLeftOutMakesNoDifference(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(choice ...string) string { return choice[random.IntN(len(choice))] }
	tried := 0
	for range 20_000 {
		c := &Container{Name: "radio", Image: Image{Name: "registry.example/radio:1"}}
		c.Mounts = []Mount{{Source: "/a", Destination: "/b", Propagation: pick("", "shared"), ReadOnly: random.IntN(2) == 0}}
		h := &c.HostConfig
		h.NetworkMode, h.Privileged = pick("", "bridge", "host", "none"), random.IntN(4) == 0
		h.Devices = []Device{{OnHost: "/dev/x", InContainer: pick("", "/dev/y"), Permissions: pick("", "r")}}[:random.IntN(2)]
		h.Ports = []Port{{Proto: pick("", "udp"), HostIP: pick("", "::1"), Container: 1, HostPort: 2, HostPortEnd: uint16(random.IntN(4))}}[:random.IntN(2)]
		h.RestartPolicy = RestartPolicy{Type: pick("", "no", "always", "on-failure"), MaxRetries: int64(random.IntN(2)), RetryTimeout: time.Duration(random.IntN(2))}
		h.Log.Driver = LogDriver{Type: pick("", "json-file", "none"), MaxFiles: int64(random.IntN(3)), MaxSize: pick("", "1M"), RootDir: pick("", "/x")}
		h.Log.Mode = LogMode{Mode: pick("", "blocking", "non-blocking"), MaxBufferSize: pick("", "1k")}
		h.Resources = Resources{Memory: pick("", "8M", "1.5 G"), MemoryReservation: pick("", "5m"), MemorySwap: pick("", "-1", "16M", "4g")}
		full := c.Clone()
		full.Defaults(newID)
		if full.Validate() != nil {
			continue
		}
		tried++
		wantStable(t, c)
	}
	if tried < 1000 {
		t.Errorf("only %d containers were valid", tried)
	}
}

func TestUpdate(t *testing.T) {
	policy, resources := RestartPolicy{Type: "no"}, Resources{Memory: "8M"}
	for _, test := range []struct {
		what    string
		o       UpdateOptions
		changed bool
		policy  string
		res     Resources
		err     string
	}{
		{"nothing", UpdateOptions{}, false, "unless-stopped", Resources{"64M", "", "128M"}, ""},
		{"policy", UpdateOptions{RestartPolicy: &policy}, true, "no", Resources{"64M", "", "128M"}, ""},
		{"the same policy", UpdateOptions{RestartPolicy: &RestartPolicy{}}, false, "unless-stopped", Resources{"64M", "", "128M"}, ""},
		{"resources without swap", UpdateOptions{Resources: &resources}, true, "unless-stopped", Resources{"8M", "", "-1"}, ""},
		{"no resources", UpdateOptions{Resources: &Resources{}}, true, "unless-stopped", Resources{}, ""},
		{"wrong policy", UpdateOptions{&RestartPolicy{Type: "x"}, &resources}, false, "unless-stopped", Resources{"64M", "", "128M"}, "restart_policy"},
		{"wrong resources", UpdateOptions{&policy, &Resources{Memory: "1M"}}, false, "unless-stopped", Resources{"64M", "", "128M"}, "resources: memory 1M"},
	} {
		c := valid(func(c *Container) { c.HostConfig.Resources.Memory = "64M" })
		changed, err := c.Update(test.o)
		wantError(t, test.what, err, test.err)
		if h := c.HostConfig; changed != test.changed || h.RestartPolicy.Type != test.policy || h.Resources != test.res {
			t.Errorf("%s: changed %v, now %+v and %+v", test.what, changed, h.RestartPolicy, h.Resources)
		}
	}
	if resources.MemorySwap != "" {
		t.Error("the options were changed")
	}
}

func TestLimits(t *testing.T) {
	for _, test := range []struct {
		r    Resources
		want [3]int64
	}{
		{Resources{}, [3]int64{-1, -1, -1}},
		{Resources{"64M", "1k", "1g"}, [3]int64{64 << 20, 1 << 10, 1 << 30}},
		{Resources{Memory: "64M", MemorySwap: Unlimited}, [3]int64{64 << 20, -1, -1}},
	} {
		memory, reservation, swap, err := test.r.Limits()
		if got := [3]int64{memory, reservation, swap}; err != nil || got != test.want {
			t.Errorf("%+v: got %d, %v, want %d", test.r, got, err, test.want)
		}
	}
	_, _, _, err := Resources{MemoryReservation: "x"}.Limits()
	wantError(t, "x", err, "memory_reservation: size")
}
