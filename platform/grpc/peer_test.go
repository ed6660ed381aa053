// SPDX-License-Identifier: Apache-2.0

package grpc

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// peers are the versions of grpc-go to get along with: that of the original container management, and a recent one.
var peers = []string{"v1.59.0", "v1.83.2"}

// build makes testdata/peer with a version of grpc-go, in a module that has nothing to do with that of sdvbox.
func build(t *testing.T, version string) (program string) {
	t.Helper()
	if os.Getenv("SDVBOX_LONG") != "1" {
		t.Skip("builds grpc-go; set SDVBOX_LONG=1 to run")
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/peer")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"get", "google.golang.org/grpc@" + version}, {"mod", "tidy"}, {"build", "-o", "peer", "."}} {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
	return filepath.Join(dir, "peer")
}

type text struct {
	Value string `pb:"1"`
}

type data struct {
	Value []byte `pb:"1"`
}

func TestServerGetsAlongWithClientsOfGrpcGo(t *testing.T) {
	for _, version := range peers {
		t.Run(version, func(t *testing.T) {
			program := build(t, version)
			path := filepath.Join(t.TempDir(), "container management.sock")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			s := NewServer()
			withHeaders(s)
			defer s.Shutdown(t.Context())
			ended := make(chan error, 10)
			s.Unary("/t.T/Echo", func(ctx context.Context, decode func(any) error) (any, error) {
				var m text
				if err := decode(&m); err != nil {
					return nil, err
				}
				if rest, ok := strings.CutPrefix(m.Value, "fail "); ok {
					code, text, _ := strings.Cut(rest, " ")
					n, _ := strconv.Atoi(code)
					return nil, Errorf(Code(n), "%s", text)
				}
				switch m.Value {
				case "sleep":
					<-ctx.Done()
					ended <- ctx.Err()
					return nil, ctx.Err()
				case "metadata":
					m.Value = fmt.Sprintf("%q %q", header(ctx, "key"), header(ctx, "raw-bin"))
				}
				return &m, nil
			})
			s.Stream("/t.T/Down", func(_ context.Context, st *ServerStream) error {
				var m text
				if err := st.Recv(&m); err != nil {
					return err
				}
				n, _ := strconv.Atoi(m.Value)
				for range n {
					if err := st.Send(&data{make([]byte, 1<<20)}); err != nil {
						return err
					}
				}
				return Errorf(Aborted, "that was all")
			})
			s.Stream("/t.T/Chat", func(_ context.Context, st *ServerStream) error {
				for {
					var m text
					if err := st.Recv(&m); err == io.EOF {
						return nil
					} else if err != nil {
						return err
					}
					if m.Value == "bye" {
						return Errorf(Aborted, "bye")
					}
					if err := st.Send(&m); err != nil {
						return err
					}
				}
			})
			go s.Serve(l)
			out, err := exec.Command(program, "client", path).CombinedOutput()
			once := `echo "hello": "hello" 5 OK ""
echo "xxxxxxxxxxxxxxxxxxxx": "xxxxxxxxxxxxxxxxxxxx" 8388608 OK ""
echo "fail 5 100% weg, sch": "" 0 NotFound "100% weg, schön\nund gut"
echo "fail 99 unheard of": "" 0 Code(99) "unheard of"
echo "metadata": "\"a b%\" \"\\x00\\xff\"" 17 OK ""
echo "sleep": "" 0 DeadlineExceeded "context deadline exceeded"
echo "sleep": "" 0 Canceled "context canceled"
unknown method: Unimplemented
down: 20971520 Aborted that was all
chat: EOF
server ends chat: Aborted bye
then send: EOF
echo "still works": "still works" 11 OK ""
`
			if err != nil || string(out) != once+once {
				t.Errorf("%v, output:\n%s", err, out)
			}
			for range 4 {
				if err := <-ended; err == nil {
					t.Error("a handler has not been told of the end")
				}
			}
		})
	}
}

func TestClientGetsAlongWithServersOfGrpcGo(t *testing.T) {
	for _, version := range peers {
		t.Run(version, func(t *testing.T) {
			program := build(t, version)
			path := filepath.Join(t.TempDir(), "sock")
			server := exec.Command(program, "server", path)
			server.Stderr = os.Stderr
			if err := server.Start(); err != nil {
				t.Fatal(err)
			}
			defer server.Wait()
			defer server.Process.Kill()
			noLeaks(t)
			c := NewClient("unix:" + path)
			defer c.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			for CodeOf(c.Call(ctx, "/t.T/Echo", &text{}, &text{})) == Unavailable {
				time.Sleep(10 * time.Millisecond)
			}

			for _, ask := range []string{"hello", strings.Repeat("x", 3<<20)} {
				var got text
				if err := c.Call(ctx, "/t.T/Echo", &text{ask}, &got); err != nil || got.Value != ask {
					t.Errorf("echo of %d bytes: %d, %v", len(ask), len(got.Value), err)
				}
			}
			for ask, want := range map[string]Error{
				"fail 5 100% weg, schön\nund gut": {Code: NotFound, Message: "100% weg, schön\nund gut"},
				"fail 99 unheard of":              {Code: 99, Message: "unheard of"},
			} {
				if err := c.Call(ctx, "/t.T/Echo", &text{ask}, &text{}); CodeOf(err) != want.Code || err.Error() != want.Message {
					t.Errorf("%s: %v", ask, err)
				}
			}
			if err := c.Call(ctx, "/t.T/Nothing", &text{}, &text{}); CodeOf(err) != Unimplemented {
				t.Errorf("unknown method: %v", err)
			}
			var got text
			md := WithHeader(WithHeader(ctx, "key", "a b%"), "raw-bin", "\x00\xff")
			if err := c.Call(md, "/t.T/Echo", &text{"metadata"}, &got); err != nil || got.Value != `["a b%"] ["\x00\xff"]` {
				t.Errorf("metadata %s, %v", got.Value, err)
			}
			for range 50 {
				short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
				if err := c.Call(short, "/t.T/Echo", &text{"sleep"}, &text{}); CodeOf(err) != DeadlineExceeded {
					t.Errorf("after the deadline: %v", err)
				}
				cancel()
				gone, cancel := context.WithCancel(ctx)
				time.AfterFunc(5*time.Millisecond, cancel)
				if err := c.Call(gone, "/t.T/Echo", &text{"sleep"}, &text{}); CodeOf(err) != Canceled {
					t.Errorf("after cancellation: %v", err)
				}
			}

			down, err := c.Stream(ctx, "/t.T/Down")
			if err != nil {
				t.Fatal(err)
			}
			defer down.Close()
			if err := down.Send(&text{"20"}); err != nil {
				t.Fatal(err)
			}
			down.CloseSend()
			n := 0
			for err = nil; err == nil; {
				var m data
				if err = down.Recv(&m); err == nil {
					n += len(m.Value)
				}
			}
			if n != 20<<20 || CodeOf(err) != Aborted || err.Error() != "that was all" {
				t.Errorf("%d bytes came down, %v", n, err)
			}
			chat, err := c.Stream(ctx, "/t.T/Chat")
			if err != nil {
				t.Fatal(err)
			}
			defer chat.Close()
			for i := range 100 {
				var m text
				if err := chat.Send(&text{fmt.Sprint(i)}); err != nil {
					t.Fatal(err)
				}
				if err := chat.Recv(&m); err != nil || m.Value != fmt.Sprint(i) {
					t.Fatalf("%+v, %v", m, err)
				}
			}
			if err := chat.Send(&text{"bye"}); err != nil {
				t.Fatal(err)
			}
			if err := chat.Recv(&got); CodeOf(err) != Aborted {
				t.Errorf("chat ended with %v", err)
			}
			for err = nil; err == nil; {
				err = chat.Send(&text{"still there?"})
			}
			if err != io.EOF {
				t.Errorf("then sending: %v", err)
			}
		})
	}
}
