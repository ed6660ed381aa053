// SPDX-License-Identifier: Apache-2.0

// Package bench measures sdvbox in the virtual vehicle. Size and start-up are
// measured by testing/binary.
package bench

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sdvbox/testing/ota"
	"sdvbox/testing/vehicle"
)

// rounds is how often each of two things is measured, in turn.
const rounds = 5

// BenchmarkVehicle boots one vehicle and measures there: the memory of the
// idle daemons, and the time to install a bundle through the agent next to a
// bare "rauc install" of the same file to the same slot.
func BenchmarkVehicle(b *testing.B) {
	ctx, cancel := context.WithTimeout(b.Context(), 30*time.Minute)
	defer cancel()
	builder, err := vehicle.NewBuilder()
	check(b, err)
	builder.Logf = b.Logf
	var images []string
	for _, v := range []string{"1", "2"} {
		image, err := builder.Image(ctx, vehicle.Image{Version: v})
		check(b, err)
		images = append(images, image)
	}
	bundle, err := builder.Bundle(ctx, vehicle.Bundle{Image: images[1], Version: "2"})
	check(b, err)
	base, err := builder.Disk(ctx, vehicle.Disk{A: images[0]})
	check(b, err)
	disk := filepath.Join(b.TempDir(), "disk.img")
	check(b, vehicle.CopyDisk(disk, base))
	vm, err := vehicle.Start(ctx, vehicle.Machine{Disk: disk})
	check(b, err)
	defer vm.Kill()
	_, err = vm.WaitReady(ctx)
	check(b, err)
	login, err := vm.Bus(ctx, "technician")
	check(b, err)
	bus, err := ota.Dial(ctx, "self-update", login)
	check(b, err)
	defer bus.Close()
	_, err = bus.Version(ctx)
	check(b, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(b, err)
	defer l.Close()
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, bundle) }))
	_, port, _ := net.SplitHostPort(l.Addr().String())
	url := "http://10.0.2.2:" + port + "/bundle.raucb"
	_, err = vm.Run(ctx, "until test \"$(rauc-helper env get SDV_GOOD)\" = SDV_A; do sleep 1; done; curl -sSo /data/bundle.raucb "+url)
	check(b, err)

	b.Run("IdleMemory", func(b *testing.B) {
		for b.Loop() {
			_, err := vm.Run(ctx, "sleep 10")
			check(b, err)
			for _, daemon := range []string{"self-update-agent", "update-manager"} {
				out, err := vm.Run(ctx, "awk '/^Pss:/ {print $2}' /proc/$(systemctl show -p MainPID --value "+daemon+")/smaps_rollup")
				check(b, err)
				pss, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
				check(b, err)
				b.ReportMetric(pss/1024, "MiB-PSS/"+daemon)
			}
		}
	})

	b.Run("Install", func(b *testing.B) {
		for b.Loop() {
			var bare, agent, download []float64
			for n := range rounds {
				bare = append(bare, seconds(func() {
					_, err := vm.Run(ctx, "rauc install /data/bundle.raucb >/dev/null")
					check(b, err)
				}))
				id := fmt.Sprint("bench-", n)
				_, err := bus.Update(ctx, id, "2", url)
				check(b, err)
				download = append(download, seconds(func() { step(ctx, b, bus, id, "DOWNLOAD") }))
				agent = append(agent, seconds(func() { step(ctx, b, bus, id, "UPDATE") }))
				step(ctx, b, bus, id, "ROLLBACK")
			}
			b.ReportMetric(median(bare), "s/rauc-install")
			b.ReportMetric(median(agent), "s/agent-update")
			b.ReportMetric(median(download), "s/agent-download")
			b.ReportMetric(median(ratios(agent, bare)), "agent/rauc")
		}
	})
}

func step(ctx context.Context, b *testing.B, bus *ota.Driver, id, command string) {
	b.Helper()
	f, err := bus.Step(ctx, id, command)
	check(b, err)
	if f.Failed() && command != "ROLLBACK" {
		b.Fatalf("%s: %s: %s", command, f.Status, f.Detail())
	}
}

func seconds(f func()) float64 {
	begin := time.Now()
	f()
	return time.Since(begin).Seconds()
}

func ratios(a, b []float64) []float64 {
	r := make([]float64, len(a))
	for i := range a {
		r[i] = a[i] / b[i]
	}
	return r
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
