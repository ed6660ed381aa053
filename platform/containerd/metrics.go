// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"fmt"
	"strings"
	"time"

	"sdvbox/platform/protobuf"
)

// metrics1 and metrics2 are what shims say of control groups of version 1 and 2, as far as needed here.
type metrics1 struct {
	Pids   *pids1   `pb:"2"`
	CPU    *cpu1    `pb:"3"`
	Memory *memory1 `pb:"4"`
	Block  *block1  `pb:"5"`
	OOM    *oom1    `pb:"9"`
}

type pids1 struct {
	Current uint64 `pb:"1"`
}

type cpu1 struct {
	Usage *usage1 `pb:"1"`
}

type usage1 struct {
	Total uint64 `pb:"1"`
}

type memory1 struct {
	TotalInactiveFile uint64        `pb:"29"`
	Usage             *memory1Entry `pb:"33"`
}

type memory1Entry struct {
	Limit uint64 `pb:"1"`
	Usage uint64 `pb:"2"`
}

type block1 struct {
	ServiceBytes []*block1Entry `pb:"1"`
}

type block1Entry struct {
	Op    string `pb:"1"`
	Value uint64 `pb:"5"`
}

type oom1 struct {
	Kills uint64 `pb:"3"`
}

type metrics2 struct {
	Pids   *pids1   `pb:"1"`
	CPU    *cpu2    `pb:"2"`
	Memory *memory2 `pb:"4"`
	IO     *io2     `pb:"6"`
	Events *events2 `pb:"8"`
}

type cpu2 struct {
	UsageMicroseconds uint64 `pb:"1"`
}

type memory2 struct {
	InactiveFile uint64 `pb:"13"`
	Usage        uint64 `pb:"32"`
	UsageLimit   uint64 `pb:"33"`
}

type io2 struct {
	Usage []*io2Entry `pb:"1"`
}

type io2Entry struct {
	ReadBytes  uint64 `pb:"3"`
	WriteBytes uint64 `pb:"4"`
}

type events2 struct {
	OOMKills uint64 `pb:"5"`
}

func decodeMetrics(data *protobuf.Any) (m Metrics, err error) {
	switch {
	case strings.HasSuffix(data.TypeURL, "io.containerd.cgroups.v1.Metrics"):
		var v1 metrics1
		if err := protobuf.Unmarshal(data.Value, &v1); err != nil {
			return m, err
		}
		memory := orZero(v1.Memory)
		usage := orZero(memory.Usage)
		m = Metrics{
			CPU:          time.Duration(orZero(orZero(v1.CPU).Usage).Total),
			Memory:       usage.Usage,
			MemoryLimit:  usage.Limit,
			InactiveFile: memory.TotalInactiveFile,
			Pids:         orZero(v1.Pids).Current,
			OOMKills:     orZero(v1.OOM).Kills,
		}
		for _, e := range orZero(v1.Block).ServiceBytes {
			switch strings.ToLower(e.Op) {
			case "read":
				m.ReadBytes += e.Value
			case "write":
				m.WriteBytes += e.Value
			}
		}
		return m, nil

	case strings.HasSuffix(data.TypeURL, "io.containerd.cgroups.v2.Metrics"):
		var v2 metrics2
		if err := protobuf.Unmarshal(data.Value, &v2); err != nil {
			return m, err
		}
		memory := orZero(v2.Memory)
		m = Metrics{
			CPU:          time.Duration(orZero(v2.CPU).UsageMicroseconds) * time.Microsecond,
			Memory:       memory.Usage,
			MemoryLimit:  memory.UsageLimit,
			InactiveFile: memory.InactiveFile,
			Pids:         orZero(v2.Pids).Current,
			OOMKills:     orZero(v2.Events).OOMKills,
		}
		for _, e := range orZero(v2.IO).Usage {
			m.ReadBytes += e.ReadBytes
			m.WriteBytes += e.WriteBytes
		}
		return m, nil
	}
	return m, fmt.Errorf("type %q is not known", data.TypeURL)
}
