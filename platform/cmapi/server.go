// SPDX-License-Identifier: Apache-2.0

package cmapi

import (
	"context"
	"io"
	"strings"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/grpc"
	"sdvbox/platform/protobuf"
)

// server is the API on top of an engine.
type server struct{ engine Engine }

// Register adds the API to a server.
func Register(s *grpc.Server, e Engine, info ProjectInfo) {
	v := server{e}
	for name, method := range map[string]func(context.Context, func(any) error) (any, error){
		"Create":  unary(v.create),
		"Get":     unary(v.get),
		"List":    unary(v.list),
		"Start":   unary(func(ctx context.Context, r *idRequest) (*protobuf.Empty, error) { return done(e.Start(ctx, r.ID)) }),
		"Stop":    unary(v.stop),
		"Restart": unary(v.restart),
		"Pause":   unary(func(ctx context.Context, r *idRequest) (*protobuf.Empty, error) { return done(e.Pause(ctx, r.ID)) }),
		"Unpause": unary(func(ctx context.Context, r *idRequest) (*protobuf.Empty, error) { return done(e.Unpause(ctx, r.ID)) }),
		"Update":  unary(v.update),
		"Rename":  unary(v.rename),
		"Remove":  unary(v.remove),
	} {
		s.Unary(containersService+name, method)
	}
	s.Stream(containersService+"ListStream", stream(v.listStream))
	s.Stream(containersService+"Logs", stream(v.logs))
	s.Stream(containersService+"Attach", stream(v.attach))
	s.Unary(sysinfoService+"ProjectInfo", unary(func(context.Context, *protobuf.Empty) (*projectInfoResponse, error) {
		return &projectInfoResponse{(*projectInfo)(&info)}, nil
	}))

	s.Unary(extraService+"Stats", unary(v.stats))
	s.Unary(extraService+"Images", unary(v.images))
	s.Unary(extraService+"RemoveImage", unary(func(ctx context.Context, r *removeImageRequest) (*protobuf.Empty, error) {
		return done(e.RemoveImage(ctx, r.Name))
	}))
	s.Unary(extraService+"Deploy", unary(func(ctx context.Context, _ *protobuf.Empty) (*protobuf.Empty, error) { return done(e.Deploy(ctx)) }))
	s.Stream(extraService+"Events", stream(v.events))
	s.Stream(extraService+"FollowLogs", stream(v.followLogs))
	s.Stream(extraService+"Exec", stream(v.exec))
	s.Stream(extraService+"Pull", stream(v.pull))
}

func unary[Request, Response any](h func(context.Context, *Request) (*Response, error)) func(context.Context, func(any) error) (any, error) {
	return func(ctx context.Context, decode func(any) error) (any, error) {
		r := new(Request)
		if err := decode(r); err != nil {
			return nil, err
		}
		answer, err := h(ctx, r)
		return answer, status(err)
	}
}

// stream is for methods with one request at first.
func stream[Request any](h func(context.Context, *Request, *grpc.ServerStream) error) func(context.Context, *grpc.ServerStream) error {
	return func(ctx context.Context, st *grpc.ServerStream) error {
		r := new(Request)
		if err := st.Recv(r); err == io.EOF {
			return grpc.Errorf(grpc.InvalidArgument, "the request is missing")
		} else if err != nil {
			return err
		}
		return status(h(ctx, r, st))
	}
}

func done(err error) (*protobuf.Empty, error) { return &protobuf.Empty{}, err }

func (v server) create(ctx context.Context, r *containerMessage) (*containerMessage, error) {
	if r.Container == nil {
		return nil, ctrmodel.Errorf(ctrmodel.InvalidArgument, "the container is missing")
	}
	c, err := r.Container.model()
	if err != nil {
		return nil, err
	}
	c.Forget()
	if c, err = v.engine.Create(ctx, c); err != nil {
		return nil, err
	}
	return &containerMessage{fromContainer(c)}, nil
}

// get does not complain about an unknown id: clients look whether there is a container.
func (v server) get(ctx context.Context, r *idRequest) (*containerMessage, error) {
	c, err := v.engine.Get(ctx, r.ID)
	switch {
	case err == nil:
		return &containerMessage{fromContainer(c)}, nil
	case ctrmodel.KindOf(err) == ctrmodel.NotFound:
		return &containerMessage{}, nil
	}
	return nil, err
}

func (v server) list(ctx context.Context, _ *protobuf.Empty) (*containersMessage, error) {
	list, err := v.engine.List(ctx)
	return &containersMessage{convert(list, fromContainer)}, err
}

func (v server) listStream(ctx context.Context, _ *protobuf.Empty, st *grpc.ServerStream) error {
	list, err := v.engine.List(ctx)
	if err != nil {
		return err
	}
	for _, c := range list {
		if err := st.Send(&containerMessage{fromContainer(c)}); err != nil {
			return err
		}
	}
	return nil
}

func (v server) stop(ctx context.Context, r *stopRequest) (*protobuf.Empty, error) {
	return done(v.engine.Stop(ctx, r.ID, ctrmodel.StopOptions(value(r.Options))))
}

func (v server) restart(ctx context.Context, r *stopRequest) (*protobuf.Empty, error) {
	o := ctrmodel.StopOptions{Force: true}
	if r.Options != nil {
		o = ctrmodel.StopOptions(*r.Options)
	}
	return done(v.engine.Restart(ctx, r.ID, o))
}

func (v server) update(ctx context.Context, r *updateRequest) (*protobuf.Empty, error) {
	if r.Options == nil {
		return done(nil)
	}
	return done(v.engine.Update(ctx, r.ID, r.Options.model()))
}

func (v server) rename(ctx context.Context, r *renameRequest) (*protobuf.Empty, error) {
	if r.Name == "" {
		return done(nil)
	}
	return done(v.engine.Rename(ctx, r.ID, r.Name))
}

func (v server) remove(ctx context.Context, r *removeRequest) (*protobuf.Empty, error) {
	o := ctrmodel.StopOptions{Force: r.Force}
	if r.Options != nil {
		o = ctrmodel.StopOptions(*r.Options)
	}
	return done(v.engine.Remove(ctx, r.ID, r.Force, o))
}

// chunk is from when on a part of a whole log is sent, as clients know it.
const chunk = 3 << 20

// logs sends the last lines one by one, the whole log in chunks of which the last may be empty.
func (v server) logs(ctx context.Context, r *logsRequest, st *grpc.ServerStream) error {
	if r.Tail >= 0 {
		return v.engine.Logs(ctx, r.ID, ctrmodel.LogOptions{Tail: int(r.Tail)}, func(line []byte) error {
			return st.Send(logLine(line))
		})
	}
	var text []byte
	err := v.engine.Logs(ctx, r.ID, ctrmodel.LogOptions{Tail: -1}, func(line []byte) error {
		text = append(append(text, line...), '\n')
		if len(text) <= chunk {
			return nil
		}
		err := st.Send(logLine(text))
		text = text[:0]
		return err
	})
	if err != nil {
		return err
	}
	return st.Send(logLine(text))
}

// logLine makes a message of what may come from a file that is damaged.
func logLine(text []byte) *logsResponse {
	return &logsResponse{strings.ToValidUTF8(string(text), "\uFFFD")}
}

// output sends what is written to it. The first error of the stream is the one of all further writes.
type output func(data []byte) error

func (o output) Write(data []byte) (int, error) {
	n := 0
	for n < len(data) {
		end := min(len(data), n+maxData)
		if err := o(data[n:end]); err != nil {
			return n, err
		}
		n = end
	}
	return n, nil
}

// A message is what the client of an open stream sends: input for a process, the size of its terminal, and whether there is
// no more input.
type message[M any] interface {
	*M
	input() (data []byte, window *windowSize, finish bool)
}

func (r *attachRequest) input() ([]byte, *windowSize, bool) { return r.Data, r.Window, r.Finish }

// streams are the ends of a process's streams whose other ends are with the client. They are to be closed.
func streams[M any, P message[M]](st *grpc.ServerStream, first P, stdin bool, answer func(data []byte, stderr bool) any) (ctrmodel.Streams, io.Closer) {
	resize := make(chan ctrmodel.WindowSize, 1)
	in, w := io.Pipe()
	s := ctrmodel.Streams{
		Stdin:  in,
		Stdout: output(func(data []byte) error { return st.Send(answer(data, false)) }),
		Stderr: output(func(data []byte) error { return st.Send(answer(data, true)) }),
		Resize: resize,
	}
	if !stdin {
		s.Stdin = nil
		in.Close() // so that input is dropped
	}
	if _, window, _ := first.input(); window != nil {
		resize <- ctrmodel.WindowSize(*window) // is there before anybody looks for it
	}
	go func() {
		for r := first; ; r = new(M) {
			if r != first {
				if err := st.Recv(r); err != nil {
					w.CloseWithError(err)
					return
				}
			}
			data, window, finish := r.input()
			if window != nil && r != first {
				select {
				case <-resize: // the size before that does not matter any more
				default:
				}
				resize <- ctrmodel.WindowSize(*window)
			}
			if len(data) > 0 {
				_, _ = w.Write(data) // the process may have closed its end
			}
			if finish {
				w.Close()
			}
		}
	}()
	return s, in
}

// attach has the first response say that nothing more will be missed.
func (v server) attach(ctx context.Context, first *attachRequest, st *grpc.ServerStream) error {
	s, end := streams(st, first, first.Stdin, func(data []byte, stderr bool) any { return &attachResponse{Data: data, Stderr: stderr} })
	defer end.Close()
	return v.engine.Attach(ctx, first.ID, s, func() {
		_ = st.Send(&attachResponse{ID: first.ID, Stdin: first.Stdin}) // whatever is sent next will fail, too
	})
}
