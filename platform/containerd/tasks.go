// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"sdvbox/platform/protobuf"
)

// Containers is what describes containers. That they run is their task.
type Containers struct{ conn *conn }

// Container is a container.
type Container struct {
	ID          string                   `pb:"1"`
	Labels      map[string]string        `pb:"2"`
	Image       string                   `pb:"3"`
	Runtime     *Runtime                 `pb:"4"`
	Spec        *protobuf.Any            `pb:"5"` // see Spec
	Snapshotter string                   `pb:"6"`
	SnapshotKey string                   `pb:"7"`
	Created     *protobuf.Timestamp      `pb:"8"`
	Updated     *protobuf.Timestamp      `pb:"9"`
	Extensions  map[string]*protobuf.Any `pb:"10"`
}

// Runtime is what runs a container.
type Runtime struct {
	Name    string        `pb:"1"` // io.containerd.runc.v2
	Options *protobuf.Any `pb:"2"` // see RuncOptions
}

// Spec is an OCI runtime specification as a container has it.
func Spec(s any) (*protobuf.Any, error) { return ociAny("Spec", s) }

// RuncOptions is what containerd's shim for runc and the like takes.
type RuncOptions struct {
	NoPivotRoot   bool   `pb:"1"`
	NoNewKeyring  bool   `pb:"2"`
	ShimCgroup    string `pb:"3"`
	IoUID         uint32 `pb:"4"`
	IoGID         uint32 `pb:"5"`
	BinaryName    string `pb:"6"` // runc, crun, or a path
	Root          string `pb:"7"` // where the runtime keeps its state
	SystemdCgroup bool   `pb:"9"`
}

// Any is the options as a task and a container have them.
func (o *RuncOptions) Any() (*protobuf.Any, error) {
	b, err := protobuf.Marshal(o)
	if err != nil {
		return nil, err
	}
	return &protobuf.Any{TypeURL: "containerd.runc.v1.Options", Value: b}, nil
}

type containerMessage struct {
	Container *Container `pb:"1"`
	Mask      *fieldMask `pb:"2"`
}

func (c Containers) container(ctx context.Context, method string, req any) (*Container, error) {
	var resp containerMessage
	if err := c.conn.call(ctx, "containers.v1.Containers/"+method, req, &resp); err != nil {
		return nil, err
	}
	return orZero(resp.Container), nil
}

// Get finds a container.
func (c Containers) Get(ctx context.Context, id string) (*Container, error) {
	return c.container(ctx, "Get", &byID{id})
}

// List lists the containers that one of the filters matches, all if there is none.
func (c Containers) List(ctx context.Context, filters ...string) ([]*Container, error) {
	type part struct {
		Container *Container `pb:"1"`
	}
	return collect(ctx, c.conn, "containers.v1.Containers/ListStream", &filtered{filters},
		func(p *part) []*Container { return []*Container{orZero(p.Container)} })
}

// Create creates a container.
func (c Containers) Create(ctx context.Context, container *Container) (*Container, error) {
	return c.container(ctx, "Create", &containerMessage{Container: container})
}

// Delete deletes a container. Containerd does not look whether it has a task.
func (c Containers) Delete(ctx context.Context, id string) error {
	return c.conn.call(ctx, "containers.v1.Containers/Delete", &byID{id}, &empty{})
}

// Tasks is the processes of containers.
type Tasks struct{ conn *conn }

// TaskStatus is how a process is.
type TaskStatus int32

// The states of a process.
const (
	Created TaskStatus = 1
	Running TaskStatus = 2
	Stopped TaskStatus = 3
	Paused  TaskStatus = 4
	Pausing TaskStatus = 5
)

func (s TaskStatus) String() string {
	switch s {
	case Created:
		return "created"
	case Running:
		return "running"
	case Stopped:
		return "stopped"
	case Paused:
		return "paused"
	case Pausing:
		return "pausing"
	}
	return fmt.Sprintf("unknown (%d)", int32(s))
}

// Process is a task, or another process in its container. In a list of tasks, ID is the container's.
type Process struct {
	ContainerID string              `pb:"1"`
	ID          string              `pb:"2"`
	Pid         uint32              `pb:"3"`
	Status      TaskStatus          `pb:"4"`
	Stdin       string              `pb:"5"`
	Stdout      string              `pb:"6"`
	Stderr      string              `pb:"7"`
	Terminal    bool                `pb:"8"`
	ExitStatus  uint32              `pb:"9"`
	ExitedAt    *protobuf.Timestamp `pb:"10"`
}

// IO is the FIFOs of a process, "" for none. A process has both outputs or neither; with a terminal, it has no Stderr.
type IO struct {
	Stdin, Stdout, Stderr string
	Terminal              bool
}

// Exit is the end of a process.
type Exit struct {
	Status uint32 // 128 and the signal, if it was one
	At     time.Time
}

// process addresses a task, or with a second id, another process in its container.
type process struct {
	ContainerID string `pb:"1"`
	ExecID      string `pb:"2"`
}

func (t Tasks) call(ctx context.Context, method string, req, resp any) error {
	return t.conn.call(ctx, "tasks.v1.Tasks/"+method, req, resp)
}

// Create makes the task of a container, whose process does not run yet. Options may be nil.
func (t Tasks) Create(ctx context.Context, id string, rootfs []*Mount, io IO, options *RuncOptions) (pid uint32, err error) {
	var req struct {
		ContainerID string        `pb:"1"`
		Rootfs      []*Mount      `pb:"3"`
		Stdin       string        `pb:"4"`
		Stdout      string        `pb:"5"`
		Stderr      string        `pb:"6"`
		Terminal    bool          `pb:"7"`
		Options     *protobuf.Any `pb:"9"`
	}
	req.ContainerID, req.Rootfs, req.Stdin, req.Stdout, req.Stderr, req.Terminal = id, rootfs, io.Stdin, io.Stdout, io.Stderr, io.Terminal
	if options != nil {
		if req.Options, err = options.Any(); err != nil {
			return 0, err
		}
	}
	var resp struct {
		Pid uint32 `pb:"2"`
	}
	err = t.call(ctx, "Create", &req, &resp)
	return resp.Pid, err
}

// Start starts a task, or a process that Exec has added.
func (t Tasks) Start(ctx context.Context, id, execID string) (pid uint32, err error) {
	var resp struct {
		Pid uint32 `pb:"1"`
	}
	err = t.call(ctx, "Start", &process{id, execID}, &resp)
	return resp.Pid, err
}

// Get tells of a task, or of a process that Exec has added.
func (t Tasks) Get(ctx context.Context, id, execID string) (*Process, error) {
	var resp struct {
		Process *Process `pb:"1"`
	}
	if err := t.call(ctx, "Get", &process{id, execID}, &resp); err != nil {
		return nil, err
	}
	return orZero(resp.Process), nil
}

// List lists the tasks.
func (t Tasks) List(ctx context.Context) ([]*Process, error) {
	var resp struct {
		Tasks []*Process `pb:"1"`
	}
	err := t.call(ctx, "List", &empty{}, &resp)
	return resp.Tasks, err
}

// Kill sends a signal to a process, with all to all processes of the container.
func (t Tasks) Kill(ctx context.Context, id, execID string, signal syscall.Signal, all bool) error {
	type request struct {
		ContainerID string `pb:"1"`
		ExecID      string `pb:"2"`
		Signal      uint32 `pb:"3"`
		All         bool   `pb:"4"`
	}
	return t.call(ctx, "Kill", &request{id, execID, uint32(signal), all}, &empty{})
}

// Delete deletes a task that has ended, or a process that Exec has added.
func (t Tasks) Delete(ctx context.Context, id, execID string) (Exit, error) {
	var resp struct {
		Status uint32              `pb:"3"`
		At     *protobuf.Timestamp `pb:"4"`
	}
	method := "Delete"
	if execID != "" {
		method = "DeleteProcess"
	}
	err := t.call(ctx, method, &process{id, execID}, &resp)
	return Exit{resp.Status, resp.At.Time()}, err
}

// Wait waits for the end of a process.
func (t Tasks) Wait(ctx context.Context, id, execID string) (Exit, error) {
	var resp struct {
		Status uint32              `pb:"1"`
		At     *protobuf.Timestamp `pb:"2"`
	}
	err := t.call(ctx, "Wait", &process{id, execID}, &resp)
	return Exit{resp.Status, resp.At.Time()}, err
}

// Exec adds a process to a container; spec is OCI's process. Start starts it.
func (t Tasks) Exec(ctx context.Context, id, execID string, spec any, io IO) error {
	type request struct {
		ContainerID string        `pb:"1"`
		Stdin       string        `pb:"2"`
		Stdout      string        `pb:"3"`
		Stderr      string        `pb:"4"`
		Terminal    bool          `pb:"5"`
		Spec        *protobuf.Any `pb:"6"`
		ExecID      string        `pb:"7"`
	}
	p, err := ociAny("Process", spec)
	if err != nil {
		return err
	}
	return t.call(ctx, "Exec", &request{id, io.Stdin, io.Stdout, io.Stderr, io.Terminal, p, execID}, &empty{})
}

// Resize sets the size of a process's terminal.
func (t Tasks) Resize(ctx context.Context, id, execID string, width, height uint32) error {
	type request struct {
		ContainerID string `pb:"1"`
		ExecID      string `pb:"2"`
		Width       uint32 `pb:"3"`
		Height      uint32 `pb:"4"`
	}
	return t.call(ctx, "ResizePty", &request{id, execID, width, height}, &empty{})
}

// CloseStdin tells the shim to close its end of a process's input.
func (t Tasks) CloseStdin(ctx context.Context, id, execID string) error {
	type request struct {
		ContainerID string `pb:"1"`
		ExecID      string `pb:"2"`
		Stdin       bool   `pb:"3"`
	}
	return t.call(ctx, "CloseIO", &request{id, execID, true}, &empty{})
}

// Pause freezes a container.
func (t Tasks) Pause(ctx context.Context, id string) error {
	return t.call(ctx, "Pause", &byID{id}, &empty{})
}

// Resume thaws a container.
func (t Tasks) Resume(ctx context.Context, id string) error {
	return t.call(ctx, "Resume", &byID{id}, &empty{})
}

// Update changes the limits of a container that runs; resources is OCI's.
func (t Tasks) Update(ctx context.Context, id string, resources any) error {
	type request struct {
		ContainerID string        `pb:"1"`
		Resources   *protobuf.Any `pb:"2"`
	}
	r, err := ociAny("LinuxResources", resources)
	if err != nil {
		return err
	}
	return t.call(ctx, "Update", &request{id, r}, &empty{})
}

// Metrics is what a container uses. A limit that there is not is 0 or larger than the machine.
type Metrics struct {
	ID           string
	Time         time.Time
	CPU          time.Duration // of all processors since the start
	Memory       uint64        // with the page cache
	MemoryLimit  uint64
	InactiveFile uint64 // part of the page cache that is free for the asking
	Pids         uint64
	ReadBytes    uint64 // from block devices
	WriteBytes   uint64
	OOMKills     uint64
}

// Metrics tells what containers use. Those without a task are left out.
func (t Tasks) Metrics(ctx context.Context, ids ...string) ([]Metrics, error) {
	var req filtered
	for _, id := range ids {
		req.Filters = append(req.Filters, "id=="+strconv.Quote(id))
	}
	type metric struct {
		Time *protobuf.Timestamp `pb:"1"`
		ID   string              `pb:"2"`
		Data *protobuf.Any       `pb:"3"`
	}
	var resp struct {
		Metrics []*metric `pb:"1"`
	}
	if err := t.call(ctx, "Metrics", &req, &resp); err != nil {
		return nil, err
	}
	var all []Metrics
	for _, m := range resp.Metrics {
		metrics, err := decodeMetrics(orZero(m.Data))
		if err != nil {
			return nil, wrap(fmt.Errorf("metrics of %s: %w", m.ID, err))
		}
		metrics.ID, metrics.Time = m.ID, m.Time.Time()
		all = append(all, metrics)
	}
	return all, nil
}
