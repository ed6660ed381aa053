// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"sdvbox/testing/agents"
	"sdvbox/testing/broker"
	"sdvbox/testing/ctragent"
	"sdvbox/testing/ctrd"
)

const (
	services = 3 // containers that are replaced by one update
	updates  = 10
)

// updated is an agent whose containers are replaced.
type updated struct {
	suffix string // of what is reported
	bus    *agents.Recorder
	port   int // of the first service
	gaps   []time.Duration
}

// BenchmarkUpdate measures how long a service is away when an update replaces its container, three at a time: the median and the
// worst. Each listens at a port of the host.
func BenchmarkUpdate(b *testing.B) {
	program := ctragent.Program(b, "sdvbox/testing/fields/probe")
	archive := ctragent.Archive(ctragent.NewImage(image, v1.ImageConfig{Entrypoint: []string{"/probe"}}, map[string][]byte{"probe": program}))
	list := []*updated{ourUpdates(b, archive)}
	if path := os.Getenv(peer); path != "" {
		list = append(list, originalUpdates(b, path, archive))
	} else {
		b.Logf("%s does not name the original, nothing to compare with", peer)
	}
	all := list
	for b.Loop() {
		for n := range updates {
			for _, u := range list {
				why := ""
				gaps := u.watch(func() { why = u.apply(b, n+1) })
				switch {
				case why == "":
					u.gaps = append(u.gaps, gaps...)
				case u.suffix == "":
					b.Fatal(why)
				default: // it cannot go on, nor be told to
					b.Logf("update %d of the original: %s", n+1, why)
					list = list[:1]
				}
			}
		}
	}
	for _, u := range all {
		if len(u.gaps) == 0 {
			continue
		}
		slices.Sort(u.gaps)
		b.ReportMetric(ms(u.gaps[len(u.gaps)/2]), "ms-down"+u.suffix)
		b.ReportMetric(ms(u.gaps[len(u.gaps)-1]), "ms-down-worst"+u.suffix)
	}
}

func ourUpdates(b *testing.B, archive []byte) *updated {
	u, mqtt, d := newUpdates(b, "", 7101, archive)
	a := ctragent.New(b, ctragent.Build(b), d)
	a.Config["log"]["log_level"] = "WARN"
	a.Config["connection"] = ctragent.Section{"broker_url": mqtt}
	a.Config["update_agent"] = ctragent.Section{"enable": true, "health_time": "500ms"}
	a.Launch()
	u.begin(b)
	return u
}

func originalUpdates(b *testing.B, path string, archive []byte) *updated {
	u, mqtt, d := newUpdates(b, "-original", 7201, archive)
	dir, err := os.MkdirTemp("", "kanto")
	check(b, err)
	cmd := exec.Command(path, "--conn-broker-url", mqtt, "--ua-enable", "--things-enable=false", "--deployment-enable=false", "--ccl-ap", d.Socket,
		"--ccl-home-dir", dir+"/home", "--ccl-exec-root-dir", dir+"/exec", "--cm-home-dir", dir+"/home", "--cm-exec-root-dir", dir+"/exec", "--net-home-dir", dir+"/home",
		"--net-exec-root-dir", dir+"/exec", "--grpc-serv-ap", dir+"/sock", "--log-file", dir+"/log", "--log-level", "WARN", "--net-br-name", "kantoupdate")
	check(b, cmd.Start())
	b.Cleanup(func() { // and its containers with it
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		os.RemoveAll(dir)
	})
	u.begin(b)
	return u
}

func newUpdates(b *testing.B, suffix string, port int, archive []byte) (u *updated, mqtt string, d *ctrd.Daemon) {
	mqtt = broker.Start(b, broker.Options{}).URL()
	u = &updated{suffix: suffix, bus: agents.Record(b, mqtt, "containersupdate/#"), port: port}
	d = ctrd.Start(b)
	load(b, d, "kanto-cm", archive)
	return u, mqtt, d
}

func (u *updated) begin(b *testing.B) {
	agents.Eventually(b, 20*time.Second, "current state of the agent", func() bool { return len(u.bus.Messages()) > 0 })
	if why := u.apply(b, 0); why != "" {
		b.Fatal(why)
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// watch returns for how long each service was away while something was done.
func (u *updated) watch(do func()) []time.Duration {
	end := make(chan struct{})
	result := make(chan time.Duration, services)
	for n := range services {
		go func() {
			var longest time.Duration
			for last := time.Now(); ; time.Sleep(2 * time.Millisecond) {
				if c, err := net.DialTimeout("tcp", fmt.Sprint("127.0.0.1:", u.port+n), time.Second); err == nil {
					c.Close()
					longest, last = max(longest, time.Since(last)), time.Now()
				}
				select {
				case <-end:
					result <- max(longest, time.Since(last))
					return
				default:
				}
			}
		}()
	}
	do()
	close(end)
	var list []time.Duration
	for range services {
		list = append(list, <-result)
	}
	return list
}

// apply drives an update that replaces all services, and says why that has failed.
func (u *updated) apply(b *testing.B, version int) (why string) {
	b.Helper()
	id, bus := fmt.Sprint("update", version), u.bus
	pair := func(key string, value any) map[string]string {
		return map[string]string{"key": key, "value": fmt.Sprint(value)}
	}
	var list []any
	for n := range services {
		list = append(list, map[string]any{"id": fmt.Sprint("service", n), "version": fmt.Sprint(version), "config": []any{
			pair("image", image), pair("network", "host"), pair("env", fmt.Sprint("V=", version)), pair("cmd", "serve"), pair("cmd", u.port+n)}})
	}
	bus.Publish("containersupdate/desiredstate", id, map[string]any{"domains": []any{map[string]any{"id": "containers", "components": list}}})
	for _, step := range []string{" IDENTIFIED", "DOWNLOAD DOWNLOAD_SUCCESS", "UPDATE UPDATE_SUCCESS", "ACTIVATE ACTIVATION_SUCCESS", "CLEANUP COMPLETED"} {
		command, want, _ := strings.Cut(step, " ")
		if command != "" {
			bus.Publish("containersupdate/desiredstate/command", id, map[string]string{"command": command})
		}
		agents.Eventually(b, 2*time.Minute, want, func() bool {
			for _, m := range bus.Of(id) {
				f, _ := m.Feedback()
				if strings.HasSuffix(f.Status, "_FAILURE") {
					why = fmt.Sprintf("%+v", f)
				}
				if f.Status == want || why != "" {
					return true
				}
			}
			return false
		})
		if why != "" {
			break
		}
	}
	return why
}
