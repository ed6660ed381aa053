// SPDX-License-Identifier: Apache-2.0

package ctrupdate

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/updateproto"
)

// wanted is a component as it is desired.
type wanted struct {
	*ctrmodel.Container
	version string
	proof   proof
	odd     []string // what has been left out because it makes no sense
}

// reported are keys of a current state that nobody can wish for.
var reported = []string{"status", "finishedAt", "exitCode", "created", "restartCount", "manuallyStopped", "startedSuccessfullyBefore"}

// parse reads a component. What does not make sense is left out, as by the agent of Eclipse Kanto, but listed; what makes no
// container is an error.
func parse(c updateproto.Component) (*wanted, error) {
	w := &wanted{Container: &ctrmodel.Container{Name: c.ID}, version: c.Version, proof: defaultProof()}
	host := &w.HostConfig
	var retries int64
	var timeout time.Duration
	for _, kv := range c.Config {
		value := kv.Value
		var err error
		switch kv.Key {
		case "image":
			w.Image.Name = value
		case "domainName":
			w.DomainName = value
		case "hostName":
			w.HostName = value
		case "terminal":
			w.IOConfig.TTY, err = parseBool(value)
		case "interactive":
			w.IOConfig.OpenStdin, err = parseBool(value)
		case "privileged":
			host.Privileged, err = parseBool(value)
		case "restartPolicy":
			host.RestartPolicy.Type = value
		case "restartMaxRetries":
			retries, err = strconv.ParseInt(value, 10, 32)
		case "restartTimeout":
			timeout, err = parseSeconds(value)
		case "device":
			err = add(&host.Devices, value, ctrmodel.ParseDevice)
		case "port":
			err = add(&host.Ports, value, ctrmodel.ParsePort)
		case "mount":
			err = add(&w.Mounts, value, ctrmodel.ParseMount)
		case "network":
			host.NetworkMode = value
		case "host":
			host.ExtraHosts = append(host.ExtraHosts, value)
		case "capability":
			host.ExtraCapabilities = append(host.ExtraCapabilities, value)
		case "env":
			w.Config.Env = append(w.Config.Env, value)
		case "cmd":
			w.Config.Cmd = append(w.Config.Cmd, value)
		case "logDriver":
			host.Log.Driver.Type = value
		case "logMaxFiles":
			host.Log.Driver.MaxFiles, err = strconv.ParseInt(value, 10, 32)
		case "logMaxSize":
			host.Log.Driver.MaxSize = value
		case "logPath":
			host.Log.Driver.RootDir = value
		case "logMode":
			host.Log.Mode.Mode = value
		case "logMaxBufferSize":
			host.Log.Mode.MaxBufferSize = value
		case "memory":
			host.Resources.Memory = value
		case "memoryReservation":
			host.Resources.MemoryReservation = value
		case "memorySwap":
			host.Resources.MemorySwap = value
		case "healthTime":
			err = set(&w.proof.time, value, 0)
		case "healthCmd":
			w.proof.cmd = append(w.proof.cmd, value)
		case "healthInterval":
			err = set(&w.proof.interval, value, 0)
		case "healthTimeout":
			err = set(&w.proof.timeout, value, time.Millisecond)
		case "healthRetries":
			var n uint64
			if n, err = strconv.ParseUint(value, 10, 32); err == nil && n > maxRetries {
				err = strconv.ErrRange
			} else if err == nil {
				w.proof.retries = int(n)
			}
		default:
			if !slices.Contains(reported, kv.Key) {
				w.odd = append(w.odd, fmt.Sprintf("unknown key %.40q", kv.Key))
			}
		}
		if err != nil {
			w.odd = append(w.odd, fmt.Sprintf("%s %.80q", kv.Key, value))
		}
	}
	if host.RestartPolicy.Type == ctrmodel.RestartOnFailure {
		host.RestartPolicy.MaxRetries, host.RestartPolicy.RetryTimeout = retries, timeout
	}
	if w.Image.Name == "" {
		w.Image.Name = strings.TrimSuffix(c.ID+":"+c.Version, ":")
	}
	whole := w.Clone()
	whole.Defaults(func() string { return "any" })
	if err := whole.Validate(); err != nil {
		return nil, fmt.Errorf("component %q: %w", c.ID, err)
	}
	return w, nil
}

func add[T any](list *[]T, text string, parse func(string) (T, error)) error {
	v, err := parse(text)
	if err == nil {
		*list = append(*list, v)
	}
	return err
}

// parseBool is true for what the agent of Eclipse Kanto takes for true.
func parseBool(text string) (bool, error) {
	if text == "" {
		return false, nil
	}
	return strconv.ParseBool(text)
}

// parseSeconds reads a duration, or a number of seconds.
func parseSeconds(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if n, e := strconv.ParseUint(text, 10, 31); e == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%.40q: expected a duration such as 30s, or seconds", text)
	}
	return d, nil
}

// Bounds of what a container may have to prove.
const (
	maxHealth  = time.Hour
	maxRetries = 100
)

// set reads a duration that belongs to a proof.
func set(d *time.Duration, text string, least time.Duration) error {
	v, err := parseSeconds(text)
	if err == nil && (v < least || v > maxHealth) {
		err = fmt.Errorf("%.40q: expected %v to %v", text, least, maxHealth)
	}
	if err == nil {
		*d = v
	}
	return err
}

// inherit gives a container what no key of a component can say from the one that it replaces.
func inherit(c, from *ctrmodel.Container) {
	from = from.Clone()
	c.Hooks, c.Image.Decrypt, c.HostConfig.Runtime = from.Hooks, from.Image.Decrypt, from.HostConfig.Runtime
	c.HostName, c.DomainName = cmp.Or(c.HostName, from.HostName), cmp.Or(c.DomainName, from.DomainName)
	tty, stdin := c.IOConfig.TTY, c.IOConfig.OpenStdin
	c.IOConfig = from.IOConfig
	c.IOConfig.TTY, c.IOConfig.OpenStdin = tty, stdin
}

// report describes a container with the keys of a component, in the order of the agent of Eclipse Kanto, and with what it is
// doing. Unless it is verbose, defaults are left out. Sent back, it says what the container is.
func report(c *ctrmodel.Container, verbose bool) []updateproto.KeyValue {
	base := ctrmodel.Container{Name: c.Name}
	base.Defaults(func() string { return "any" })
	var list []updateproto.KeyValue
	always := func(key, value string) { list = append(list, updateproto.KeyValue{Key: key, Value: value}) }
	pair := func(key string, value, usual any) {
		if verbose || value != usual {
			always(key, fmt.Sprint(value))
		}
	}
	h, b := &c.HostConfig, &base.HostConfig
	always("image", c.Image.Name)
	pair("domainName", c.DomainName, base.DomainName)
	pair("hostName", c.HostName, base.HostName)
	pair("terminal", c.IOConfig.TTY, false)
	pair("interactive", c.IOConfig.OpenStdin, false)
	pair("privileged", h.Privileged, false)
	pair("restartPolicy", h.RestartPolicy.Type, b.RestartPolicy.Type)
	pair("restartMaxRetries", h.RestartPolicy.MaxRetries, int64(0))
	pair("restartTimeout", seconds(h.RestartPolicy.RetryTimeout), "0")
	for _, d := range h.Devices {
		always("device", d.String())
	}
	for _, p := range h.Ports {
		always("port", p.String())
	}
	pair("network", h.NetworkMode, b.NetworkMode)
	for _, host := range h.ExtraHosts {
		always("host", host)
	}
	for _, name := range h.ExtraCapabilities {
		always("capability", name)
	}
	pair("logDriver", h.Log.Driver.Type, b.Log.Driver.Type)
	if h.Log.Driver.Type == ctrmodel.LogFile {
		pair("logMaxFiles", h.Log.Driver.MaxFiles, b.Log.Driver.MaxFiles)
		pair("logMaxSize", h.Log.Driver.MaxSize, b.Log.Driver.MaxSize)
		pair("logPath", h.Log.Driver.RootDir, "")
	}
	pair("logMode", h.Log.Mode.Mode, b.Log.Mode.Mode)
	if h.Log.Mode.Mode == ctrmodel.LogNonBlocking {
		pair("logMaxBufferSize", h.Log.Mode.MaxBufferSize, "1M")
	}
	pair("memory", h.Resources.Memory, "")
	pair("memoryReservation", h.Resources.MemoryReservation, "")
	pair("memorySwap", h.Resources.MemorySwap, "")
	for _, m := range c.Mounts {
		always("mount", m.String())
	}
	for _, entry := range c.Config.Env {
		always("env", entry)
	}
	for _, arg := range c.Config.Cmd {
		always("cmd", arg)
	}
	always("status", c.State.Status.String())
	running := c.State.Status == ctrmodel.Running
	pair("finishedAt", c.State.FinishedAt, hidden(running, c.State.FinishedAt, ""))
	pair("exitCode", c.State.ExitCode, hidden(running, c.State.ExitCode, 0))
	always("created", c.Created)
	pair("restartCount", c.RestartCount, int64(0))
	pair("manuallyStopped", c.ManuallyStopped, hidden(running, c.ManuallyStopped, false))
	pair("startedSuccessfullyBefore", c.StartedBefore, hidden(running, c.StartedBefore, false))
	return list
}

// hidden is the value that is not reported: any while a container runs.
func hidden[T any](running bool, value, usual T) T {
	if running {
		return value
	}
	return usual
}

// seconds writes a duration as a number of seconds, which is all that the agent of Eclipse Kanto takes, if it is one.
func seconds(d time.Duration) string {
	if d%time.Second == 0 {
		return strconv.FormatInt(int64(d/time.Second), 10)
	}
	return d.String()
}

// versionOf is what an image name says about the version: the digest, the tag, or nothing.
func versionOf(image string) string {
	last := image[strings.LastIndexByte(image, '/')+1:]
	if _, digest, ok := strings.Cut(last, "@"); ok {
		return digest
	}
	if _, tag, ok := strings.Cut(last, ":"); ok {
		return tag
	}
	return "n/a"
}
