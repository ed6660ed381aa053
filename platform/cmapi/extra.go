// SPDX-License-Identifier: Apache-2.0

package cmapi

import (
	"context"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/grpc"
	"sdvbox/platform/protobuf"
)

// The messages of the second service, which docs/containers-api.md describes.
type (
	event struct {
		Time      *protobuf.Timestamp `pb:"1"`
		Action    string              `pb:"2"`
		Container *container          `pb:"3"`
	}
	statsRequest struct {
		IDs []string `pb:"1"`
	}
	statsResponse struct {
		Stats []*stats `pb:"1"`
	}
	stats struct {
		ID         string              `pb:"1"`
		Time       *protobuf.Timestamp `pb:"2"`
		CPU        uint64              `pb:"3"` // nanoseconds
		SystemCPU  uint64              `pb:"4"` // nanoseconds
		Memory     uint64              `pb:"5"`
		MemoryMax  uint64              `pb:"6"`
		ReadBytes  uint64              `pb:"7"`
		WriteBytes uint64              `pb:"8"`
		NetRead    uint64              `pb:"9"`
		NetWritten uint64              `pb:"10"`
		PIDs       uint64              `pb:"11"`
	}
	execRequest struct {
		ID         string      `pb:"1"`
		Args       []string    `pb:"2"`
		Env        []string    `pb:"3"`
		Dir        string      `pb:"4"`
		User       string      `pb:"5"`
		TTY        bool        `pb:"6"`
		Privileged bool        `pb:"7"`
		Stdin      bool        `pb:"8"`
		Data       []byte      `pb:"10"`
		Finish     bool        `pb:"11"`
		Window     *windowSize `pb:"12"`
	}
	execResponse struct {
		Stdout   []byte `pb:"1"`
		Stderr   []byte `pb:"2"`
		ExitCode *int32 `pb:"3"` // in the last one
	}
	pullRequest struct {
		Name    string `pb:"1"`
		Refresh bool   `pb:"2"`
	}
	removeImageRequest struct {
		Name string `pb:"1"`
	}
	pullResponse struct {
		Phase string       `pb:"1"`
		Done  int64        `pb:"2"`
		Total int64        `pb:"3"`
		Image *storedImage `pb:"4"` // in the last one
	}
	imagesResponse struct {
		Images []*storedImage `pb:"1"`
	}
	storedImage struct {
		Name    string              `pb:"1"`
		Digest  string              `pb:"2"`
		Size    int64               `pb:"3"`
		Created *protobuf.Timestamp `pb:"4"`
		Used    bool                `pb:"5"`
	}
)

// subscribed is the action of the first event.
const subscribed = "subscribed"

func (v server) events(ctx context.Context, _ *protobuf.Empty, st *grpc.ServerStream) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := v.engine.Subscribe(ctx)
	if err := st.Send(&event{Time: protobuf.NewTimestamp(time.Now()), Action: subscribed}); err != nil {
		return err
	}
	for e := range events {
		if err := st.Send(&event{protobuf.NewTimestamp(e.Time), string(e.Action), fromContainer(e.Container)}); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return ctrmodel.Errorf(ctrmodel.ResourceExhausted, "too many events wait for the client")
}

// stats without ids is about all containers that have a process, of which some may end meanwhile.
func (v server) stats(ctx context.Context, r *statsRequest) (*statsResponse, error) {
	answer := &statsResponse{}
	ids := r.IDs
	if len(ids) == 0 {
		list, err := v.engine.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, c := range list {
			if c.State.HasProcess() {
				ids = append(ids, c.ID)
			}
		}
	}
	for _, id := range ids {
		s, err := v.engine.Stats(ctx, id)
		switch {
		case err == nil:
			s.ID = id
			answer.Stats = append(answer.Stats, fromStats(s))
		case len(r.IDs) > 0 || ctx.Err() != nil:
			return nil, err
		}
	}
	return answer, nil
}

func fromStats(s ctrmodel.Stats) *stats {
	return &stats{s.ID, protobuf.NewTimestamp(s.Time), uint64(s.CPU), uint64(s.SystemCPU), s.Memory, s.MemoryMax,
		s.ReadBytes, s.WriteBytes, s.NetRead, s.NetWritten, s.PIDs}
}

func (m *stats) model() ctrmodel.Stats {
	return ctrmodel.Stats{ID: m.ID, Time: m.Time.Time(), CPU: time.Duration(m.CPU), SystemCPU: time.Duration(m.SystemCPU), Memory: m.Memory, MemoryMax: m.MemoryMax,
		ReadBytes: m.ReadBytes, WriteBytes: m.WriteBytes, NetRead: m.NetRead, NetWritten: m.NetWritten, PIDs: m.PIDs}
}

func (v server) followLogs(ctx context.Context, r *logsRequest, st *grpc.ServerStream) error {
	return v.engine.Logs(ctx, r.ID, ctrmodel.LogOptions{Tail: int(r.Tail), Follow: r.Follow}, func(line []byte) error {
		return st.Send(logLine(line))
	})
}

func (r *execRequest) input() ([]byte, *windowSize, bool) { return r.Data, r.Window, r.Finish }

func (v server) exec(ctx context.Context, first *execRequest, st *grpc.ServerStream) error {
	s, end := streams(st, first, first.Stdin, func(data []byte, stderr bool) any {
		if stderr {
			return &execResponse{Stderr: data}
		}
		return &execResponse{Stdout: data}
	})
	defer end.Close()
	code, err := v.engine.Exec(ctx, first.ID, ctrmodel.ExecOptions{
		Args: first.Args, Env: first.Env, Dir: first.Dir, User: first.User, TTY: first.TTY, Privileged: first.Privileged,
	}, s)
	if err != nil {
		return err
	}
	exit := int32(code)
	return st.Send(&execResponse{ExitCode: &exit})
}

func (v server) pull(ctx context.Context, r *pullRequest, st *grpc.ServerStream) error {
	pull := v.engine.Pull
	if r.Refresh {
		pull = v.engine.Refresh
	}
	image, err := pull(ctx, r.Name, func(p ctrmodel.Progress) {
		_ = st.Send(&pullResponse{Phase: p.Phase, Done: p.Done, Total: p.Total}) // a client that is gone ends the context
	})
	if err != nil {
		return err
	}
	return st.Send(&pullResponse{Image: fromStoredImage(image)})
}

func (v server) images(ctx context.Context, _ *protobuf.Empty) (*imagesResponse, error) {
	list, err := v.engine.Images(ctx)
	return &imagesResponse{convert(list, fromStoredImage)}, err
}

func fromStoredImage(i ctrmodel.StoredImage) *storedImage {
	m := &storedImage{Name: i.Name, Digest: i.Digest, Size: i.Size, Used: i.Used}
	if !i.Created.IsZero() {
		m.Created = protobuf.NewTimestamp(i.Created)
	}
	return m
}

func (m *storedImage) model() ctrmodel.StoredImage {
	return ctrmodel.StoredImage{Name: m.Name, Digest: m.Digest, Size: m.Size, Created: m.Created.Time(), Used: m.Used}
}
