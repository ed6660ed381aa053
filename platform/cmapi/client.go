// SPDX-License-Identifier: Apache-2.0

package cmapi

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/grpc"
	"sdvbox/platform/protobuf"
)

// ErrLost is in an error of a Client that has lost the process with the engine. Other errors of kind Unavailable are what the
// engine says.
var ErrLost = grpc.ErrLost

// Client is an engine in another process. Its methods are those of Engine, unless they say otherwise.
type Client struct{ grpc *grpc.Client }

// NewClient returns a client of the engine at a socket, PATH or unix:PATH, or at tcp://HOST:PORT.
func NewClient(host string) *Client {
	if !strings.HasPrefix(host, "tcp:") {
		host = "unix:" + strings.TrimPrefix(strings.TrimPrefix(host, "unix:"), "//")
	}
	return &Client{grpc.NewClient(host)}
}

// Close ends all calls.
func (c *Client) Close() error { return c.grpc.Close() }

func (c *Client) call(ctx context.Context, method string, request, response any) error {
	return kind(c.grpc.Call(ctx, method, request, response))
}

// do is a call without an answer but that it is done.
func (c *Client) do(ctx context.Context, method string, request any) error {
	return c.call(ctx, containersService+method, request, &protobuf.Empty{})
}

func (c *Client) List(ctx context.Context) ([]*ctrmodel.Container, error) {
	var answer containersMessage
	if err := c.call(ctx, containersService+"List", &protobuf.Empty{}, &answer); err != nil {
		return nil, err
	}
	list := make([]*ctrmodel.Container, len(answer.Containers))
	for i, m := range answer.Containers {
		var err error
		if list[i], err = m.model(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func (c *Client) Get(ctx context.Context, id string) (*ctrmodel.Container, error) {
	var answer containerMessage
	if err := c.call(ctx, containersService+"Get", &idRequest{id}, &answer); err != nil {
		return nil, err
	}
	if answer.Container == nil {
		return nil, ctrmodel.Errorf(ctrmodel.NotFound, "there is no container with the id %s", id)
	}
	return answer.Container.model()
}

func (c *Client) Create(ctx context.Context, container *ctrmodel.Container) (*ctrmodel.Container, error) {
	var answer containerMessage
	if err := c.call(ctx, containersService+"Create", &containerMessage{fromContainer(container)}, &answer); err != nil {
		return nil, err
	}
	return value(answer.Container).model()
}

func (c *Client) Start(ctx context.Context, id string) error {
	return c.do(ctx, "Start", &idRequest{id})
}

func (c *Client) Stop(ctx context.Context, id string, o ctrmodel.StopOptions) error {
	return c.do(ctx, "Stop", &stopRequest{id, (*stopOptions)(&o)})
}

func (c *Client) Restart(ctx context.Context, id string, o ctrmodel.StopOptions) error {
	return c.do(ctx, "Restart", &stopRequest{id, (*stopOptions)(&o)})
}

func (c *Client) Pause(ctx context.Context, id string) error {
	return c.do(ctx, "Pause", &idRequest{id})
}

func (c *Client) Unpause(ctx context.Context, id string) error {
	return c.do(ctx, "Unpause", &idRequest{id})
}

func (c *Client) Rename(ctx context.Context, id, name string) error {
	return c.do(ctx, "Rename", &renameRequest{id, name})
}

func (c *Client) Update(ctx context.Context, id string, o ctrmodel.UpdateOptions) error {
	return c.do(ctx, "Update", &updateRequest{id, fromUpdateOptions(o)})
}

func (c *Client) Remove(ctx context.Context, id string, force bool, o ctrmodel.StopOptions) error {
	return c.do(ctx, "Remove", &removeRequest{id, force, (*stopOptions)(&o)})
}

// ProjectInfo says which engine it is.
func (c *Client) ProjectInfo(ctx context.Context) (ProjectInfo, error) {
	var answer projectInfoResponse
	err := c.call(ctx, sysinfoService+"ProjectInfo", &protobuf.Empty{}, &answer)
	return ProjectInfo(value(answer.Info)), err
}

// receive calls yield with each response of a method that has one request and many responses.
func receive[Response any](ctx context.Context, c *Client, method string, request any, yield func(*Response) error) error {
	st, err := c.grpc.Stream(ctx, method)
	if err != nil {
		return kind(err)
	}
	defer st.Close()
	if st.Send(request) == nil { // else Recv says why
		_ = st.CloseSend()
	}
	return receiveAll(st, yield)
}

func receiveAll[Response any](st *grpc.ClientStream, yield func(*Response) error) error {
	for {
		r := new(Response)
		if err := st.Recv(r); err == io.EOF {
			return nil
		} else if err != nil {
			return kind(err)
		}
		if err := yield(r); err != nil {
			return err
		}
	}
}

func (c *Client) Logs(ctx context.Context, id string, o ctrmodel.LogOptions, yield func(line []byte) error) error {
	method := containersService + "Logs"
	request := &logsRequest{ID: id, Tail: int32(min(o.Tail, 1<<31-1)), Follow: o.Follow}
	if o.Follow {
		method = extraService + "FollowLogs"
	}
	return receive(ctx, c, method, request, func(r *logsResponse) error {
		for line := range bytes.Lines([]byte(r.Log)) {
			if err := yield(bytes.TrimSuffix(line, []byte("\n"))); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *Client) Attach(ctx context.Context, id string, s ctrmodel.Streams, attached func()) error {
	st, err := c.grpc.Stream(ctx, containersService+"Attach")
	if err != nil {
		return kind(err)
	}
	defer st.Close()
	defer send(st, &attachRequest{ID: id, Stdin: s.Stdin != nil}, s, func(data []byte, window *windowSize, finish bool) any {
		return &attachRequest{Data: data, Window: window, Finish: finish}
	})()
	return receiveAll(st, func(r *attachResponse) error {
		if attached != nil {
			attached()
			attached = nil
		}
		if r.Stderr {
			return write(s.Stderr, r.Data)
		}
		return write(s.Stdout, r.Data)
	})
}

func (c *Client) Exec(ctx context.Context, id string, o ctrmodel.ExecOptions, s ctrmodel.Streams) (code int, err error) {
	st, err := c.grpc.Stream(ctx, extraService+"Exec")
	if err != nil {
		return 0, kind(err)
	}
	defer st.Close()
	first := &execRequest{
		ID: id, Args: o.Args, Env: o.Env, Dir: o.Dir, User: o.User, TTY: o.TTY, Privileged: o.Privileged, Stdin: s.Stdin != nil,
	}
	select { // what is known is there when the process starts
	case size, ok := <-s.Resize:
		if ok {
			first.Window = (*windowSize)(&size)
		}
	default:
	}
	defer send(st, first, s, func(data []byte, window *windowSize, finish bool) any {
		return &execRequest{Data: data, Window: window, Finish: finish}
	})()
	ended := false
	err = receiveAll(st, func(r *execResponse) error {
		if r.ExitCode != nil {
			code, ended = int(*r.ExitCode), true
		}
		if err := write(s.Stdout, r.Stdout); err != nil {
			return err
		}
		return write(s.Stderr, r.Stderr)
	})
	if err == nil && !ended {
		err = ctrmodel.Errorf(ctrmodel.Internal, "the engine does not say how the process ended")
	}
	return code, err
}

func write(w io.Writer, data []byte) error {
	if w == nil || len(data) == 0 {
		return nil
	}
	_, err := w.Write(data)
	return err
}

// send sends the first message and then what the streams have, until stop is called. Only a read from stdin, which cannot be
// interrupted, may go on after that. Errors are left for who receives.
func send(st *grpc.ClientStream, first any, s ctrmodel.Streams, message func(data []byte, window *windowSize, finish bool) any) (stop func()) {
	var mu sync.Mutex
	stopped := make(chan struct{})
	next := func(m any) error {
		mu.Lock()
		defer mu.Unlock()
		return st.Send(m)
	}
	go func() {
		if next(first) != nil {
			return
		}
		if s.Resize != nil {
			go func() {
				for {
					select {
					case size, ok := <-s.Resize:
						if !ok || next(message(nil, (*windowSize)(&size), false)) != nil {
							return
						}
					case <-stopped:
						return
					}
				}
			}()
		}
		if s.Stdin != nil {
			_, _ = io.Copy(output(func(data []byte) error { return next(message(data, nil, false)) }), s.Stdin)
			_ = next(message(nil, nil, true))
		}
	}()
	return func() { close(stopped) }
}

// Events calls ready once no event is missed any more, and then yield with each, until one fails.
func (c *Client) Events(ctx context.Context, ready func(), yield func(ctrmodel.Event) error) error {
	return receive(ctx, c, extraService+"Events", &protobuf.Empty{}, func(m *event) error {
		if m.Container == nil {
			ready()
			return nil
		}
		container, err := m.Container.model()
		if err != nil {
			return err
		}
		return yield(ctrmodel.Event{Time: m.Time.Time(), Action: ctrmodel.Action(m.Action), Container: container})
	})
}

// Stats says what the containers use, without ids all that have a process.
func (c *Client) Stats(ctx context.Context, ids ...string) ([]ctrmodel.Stats, error) {
	var answer statsResponse
	err := c.call(ctx, extraService+"Stats", &statsRequest{ids}, &answer)
	return convert(answer.Stats, (*stats).model), err
}

func (c *Client) Pull(ctx context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error) {
	return c.pull(ctx, &pullRequest{Name: name}, progress)
}

func (c *Client) Refresh(ctx context.Context, name string, progress func(ctrmodel.Progress)) (ctrmodel.StoredImage, error) {
	return c.pull(ctx, &pullRequest{name, true}, progress)
}

func (c *Client) pull(ctx context.Context, r *pullRequest, progress func(ctrmodel.Progress)) (image ctrmodel.StoredImage, err error) {
	err = receive(ctx, c, extraService+"Pull", r, func(r *pullResponse) error {
		if r.Image != nil {
			image = r.Image.model()
		} else {
			progress(ctrmodel.Progress{Phase: r.Phase, Done: r.Done, Total: r.Total})
		}
		return nil
	})
	return image, err
}

func (c *Client) Images(ctx context.Context) ([]ctrmodel.StoredImage, error) {
	var answer imagesResponse
	err := c.call(ctx, extraService+"Images", &protobuf.Empty{}, &answer)
	return convert(answer.Images, (*storedImage).model), err
}

func (c *Client) RemoveImage(ctx context.Context, name string) error {
	return c.call(ctx, extraService+"RemoveImage", &removeImageRequest{name}, &protobuf.Empty{})
}

func (c *Client) Deploy(ctx context.Context) error {
	return c.call(ctx, extraService+"Deploy", &protobuf.Empty{}, &protobuf.Empty{})
}
