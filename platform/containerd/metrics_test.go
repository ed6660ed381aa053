// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sdvbox/platform/protobuf"
)

func marshal(t testing.TB, v any) []byte { return must(protobuf.Marshal(v))(t) }

// Which version of control groups a machine has, the tests with containerd cannot choose.
func TestMetricsOfBothVersionsOfControlGroups(t *testing.T) {
	for _, c := range []struct {
		url  string
		data any
		want Metrics
	}{
		{"io.containerd.cgroups.v1.Metrics", &metrics1{
			Pids: &pids1{3}, CPU: &cpu1{&usage1{5e9}},
			Memory: &memory1{TotalInactiveFile: 1000, Usage: &memory1Entry{Limit: 9000, Usage: 4000}},
			Block:  &block1{[]*block1Entry{{"Read", 10}, {"Write", 20}, {"Sync", 30}, {"Total", 30}, {"Read", 1}}},
			OOM:    &oom1{2},
		}, Metrics{CPU: 5 * time.Second, Memory: 4000, MemoryLimit: 9000, InactiveFile: 1000, Pids: 3, ReadBytes: 11, WriteBytes: 20, OOMKills: 2}},
		{"type.googleapis.com/io.containerd.cgroups.v2.Metrics", &metrics2{
			Pids: &pids1{3}, CPU: &cpu2{5e6}, Memory: &memory2{1000, 4000, 9000},
			IO: &io2{[]*io2Entry{{10, 20}, {1, 0}}}, Events: &events2{2},
		}, Metrics{CPU: 5 * time.Second, Memory: 4000, MemoryLimit: 9000, InactiveFile: 1000, Pids: 3, ReadBytes: 11, WriteBytes: 20, OOMKills: 2}},
		{"io.containerd.cgroups.v1.Metrics", &metrics1{}, Metrics{}},
		{"io.containerd.cgroups.v2.Metrics", &metrics2{}, Metrics{}},
	} {
		got, err := decodeMetrics(&protobuf.Any{TypeURL: c.url, Value: marshal(t, c.data)})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.url, diff)
		}
	}
	for _, bad := range []protobuf.Any{{}, {TypeURL: "windows"}, {TypeURL: "io.containerd.cgroups.v1.Metrics", Value: []byte{0x80}}, {TypeURL: "io.containerd.cgroups.v2.Metrics", Value: []byte{0x80}}} {
		if m, err := decodeMetrics(&bad); err == nil {
			t.Errorf("%+v is %+v", bad, m)
		}
	}
}

func TestEventsAreOfTheirTypes(t *testing.T) {
	at := protobuf.NewTimestamp(time.Unix(5, 6))
	for url, want := range map[string]any{
		"containerd.events.TaskCreate":              &TaskCreate{"c", 1},
		"containerd.events.TaskStart":               &TaskStart{"c", 1},
		"containerd.events.TaskExit":                &TaskExit{"c", "e", 1, 137, at},
		"containerd.events.TaskDelete":              &TaskDelete{"c", 1, 137, at, "e"},
		"containerd.events.TaskOOM":                 &TaskOOM{"c"},
		"containerd.events.TaskExecAdded":           &TaskExecAdded{"c", "e"},
		"containerd.events.TaskExecStarted":         &TaskExecStarted{"c", "e", 1},
		"containerd.events.TaskPaused":              &TaskPaused{"c"},
		"containerd.events.TaskResumed":             &TaskResumed{"c"},
		"containerd.events.ContainerDelete":         &ContainerDelete{"c"},
		"containerd.services.images.v1.ImageDelete": &ImageDelete{"i"},
	} {
		for _, prefix := range []string{"", "type.googleapis.com/"} {
			got, err := decodeEvent(&protobuf.Any{TypeURL: prefix + url, Value: marshal(t, want)})
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("%s: %v, %s", url, err, diff)
			}
		}
	}
	if e, err := decodeEvent(&protobuf.Any{TypeURL: "containerd.events.New", Value: []byte{0x80}}); e != nil || err != nil {
		t.Errorf("an unknown event is %+v, %v", e, err)
	}
	if _, err := decodeEvent(&protobuf.Any{TypeURL: "containerd.events.TaskExit", Value: []byte{0x80}}); err == nil {
		t.Error("a broken event has been decoded")
	}
}

func FuzzEventsAndMetrics(f *testing.F) {
	f.Add("containerd.events.TaskExit", marshal(f, &TaskExit{"c", "e", 1, 137, protobuf.NewTimestamp(time.Unix(5, 6))}))
	f.Add("io.containerd.cgroups.v1.Metrics", marshal(f, &metrics1{Block: &block1{[]*block1Entry{{"Read", 10}, nil}}}))
	f.Add("io.containerd.cgroups.v2.Metrics", marshal(f, &metrics2{IO: &io2{[]*io2Entry{{10, 20}, nil}}}))
	f.Fuzz(func(t *testing.T, url string, data []byte) {
		decodeEvent(&protobuf.Any{TypeURL: url, Value: data})
		decodeMetrics(&protobuf.Any{TypeURL: url, Value: data})
	})
}
