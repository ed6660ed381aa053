// SPDX-License-Identifier: Apache-2.0

// Command peer is grpc-go on the other side: "peer server PATH" serves t.T on a UNIX socket, "peer client PATH" calls it and
// prints what has come of it.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func main() {
	log.SetFlags(0)
	switch os.Args[1] {
	case "server":
		serve(os.Args[2])
	case "client":
		call(os.Args[2])
	}
}

func str(s string) *wrapperspb.StringValue { return wrapperspb.String(s) }

func serve(path string) {
	l, err := net.Listen("unix", path)
	if err != nil {
		log.Fatal(err)
	}
	s := grpc.NewServer()
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "t.T",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Echo", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			m := str("")
			if err := decode(m); err != nil {
				return nil, err
			}
			if rest, ok := strings.CutPrefix(m.Value, "fail "); ok {
				code, text, _ := strings.Cut(rest, " ")
				n, _ := strconv.Atoi(code)
				return nil, status.Error(codes.Code(n), text)
			}
			switch m.Value {
			case "sleep":
				<-ctx.Done()
				return nil, ctx.Err()
			case "metadata":
				md, _ := metadata.FromIncomingContext(ctx)
				return str(fmt.Sprintf("%q %q", md["key"], md["raw-bin"])), nil
			}
			return m, nil
		}}},
		Streams: []grpc.StreamDesc{
			{StreamName: "Down", ServerStreams: true, Handler: func(_ any, st grpc.ServerStream) error {
				m := str("")
				if err := st.RecvMsg(m); err != nil {
					return err
				}
				n, _ := strconv.Atoi(m.Value)
				for range make([]bool, n) {
					if err := st.SendMsg(wrapperspb.Bytes(make([]byte, 1<<20))); err != nil {
						return err
					}
				}
				return status.Error(codes.Aborted, "that was all")
			}},
			{StreamName: "Chat", ServerStreams: true, ClientStreams: true, Handler: func(_ any, st grpc.ServerStream) error {
				for {
					m := str("")
					if err := st.RecvMsg(m); err == io.EOF {
						return nil
					} else if err != nil {
						return err
					}
					if m.Value == "bye" {
						return status.Error(codes.Aborted, "bye")
					}
					if err := st.SendMsg(m); err != nil {
						return err
					}
				}
			}},
		},
	}, nil)
	log.Fatal(s.Serve(l))
}

func call(path string) {
	// The first name is a host name for grpc-go, the second one a socket.
	for _, target := range []string{path, "unix:" + path} {
		conn, err := grpc.Dial(target, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", path)
			}), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
		if err != nil {
			log.Fatal(err)
		}
		checks(conn)
		conn.Close()
	}
}

func checks(conn *grpc.ClientConn) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	echo := func(ctx context.Context, text string) {
		answer := str("")
		err := conn.Invoke(ctx, "/t.T/Echo", str(text), answer)
		fmt.Printf("echo %.20q: %.20q %d %s %q\n", text, answer.Value, len(answer.Value), status.Code(err), status.Convert(err).Message())
	}
	echo(ctx, "hello")
	echo(ctx, strings.Repeat("x", 8<<20))
	echo(ctx, "fail 5 100% weg, schön\nund gut")
	echo(ctx, "fail 99 unheard of")
	echo(metadata.AppendToOutgoingContext(ctx, "key", "a b%", "raw-bin", "\x00\xff"), "metadata")
	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	echo(short, "sleep")
	stop()
	gone, stop := context.WithCancel(ctx)
	time.AfterFunc(50*time.Millisecond, stop)
	echo(gone, "sleep")
	err := conn.Invoke(ctx, "/t.T/Nothing", str(""), str(""))
	fmt.Println("unknown method:", status.Code(err))

	down, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/t.T/Down")
	if err != nil {
		log.Fatal(err)
	}
	down.SendMsg(str("20"))
	down.CloseSend()
	n := 0
	for err = nil; err == nil; {
		m := wrapperspb.Bytes(nil)
		if err = down.RecvMsg(m); err == nil {
			n += len(m.Value)
		}
	}
	fmt.Println("down:", n, status.Code(err), status.Convert(err).Message())

	chat, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/t.T/Chat")
	if err != nil {
		log.Fatal(err)
	}
	for i := range make([]bool, 100) {
		m := str("")
		chat.SendMsg(str(fmt.Sprint("line ", i)))
		if err := chat.RecvMsg(m); err != nil || m.Value != fmt.Sprint("line ", i) {
			log.Fatal(i, m, err)
		}
	}
	chat.CloseSend()
	fmt.Println("chat:", chat.RecvMsg(str("")))

	chat, err = conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/t.T/Chat")
	if err != nil {
		log.Fatal(err)
	}
	chat.SendMsg(str("bye"))
	err = chat.RecvMsg(str(""))
	fmt.Println("server ends chat:", status.Code(err), status.Convert(err).Message())
	for err = nil; err == nil; {
		err = chat.SendMsg(str("still there?"))
	}
	fmt.Println("then send:", err)
	echo(ctx, "still works")
}
