// SPDX-License-Identifier: Apache-2.0

package grpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

type message struct {
	Text   string `pb:"1"`
	Number int64  `pb:"2"`
	Data   []byte `pb:"3"`
}

// serve starts a server with what setup adds, and gives a client of it. In the end, no goroutine may be left.
func serve(t testing.TB, setup func(s *Server)) (*Client, *Server) {
	t.Helper()
	noLeaks(t)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "sock"))
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer()
	setup(s)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c := NewClient("unix:" + l.Addr().String())
	t.Cleanup(func() {
		c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return c, s
}

func noLeaks(t testing.TB) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		var n int
		for range 200 {
			if n = runtime.NumGoroutine(); n <= before {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		stacks := make([]byte, 1<<20)
		t.Errorf("%d goroutines before, %d after\n%s", before, n, stacks[:runtime.Stack(stacks, true)])
	})
}

func context5s(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func echo(_ context.Context, decode func(any) error) (any, error) {
	var m message
	if err := decode(&m); err != nil {
		return nil, err
	}
	return &m, nil
}

func TestCallsAndStreamsCarryMessages(t *testing.T) {
	c, _ := serve(t, func(s *Server) {
		s.Unary("/t.T/Echo", echo)
		s.Stream("/t.T/EchoAll", func(ctx context.Context, st *ServerStream) error {
			for {
				var m message
				if err := st.Recv(&m); err == io.EOF {
					return nil
				} else if err != nil {
					return err
				}
				if err := st.Send(&m); err != nil {
					return err
				}
			}
		})
	})
	ctx := context5s(t)
	var got message
	if err := c.Call(ctx, "/t.T/Echo", &message{Text: "hello", Number: 7}, &got); err != nil || got.Text != "hello" || got.Number != 7 {
		t.Fatalf("%+v, %v", got, err)
	}
	st, err := c.Stream(ctx, "/t.T/EchoAll")
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(1000) { // one at a time: a message never waits for the next
		var m message
		if err := st.Send(&message{Number: i}); err != nil {
			t.Fatal(err)
		}
		if err := st.Recv(&m); err != nil || m.Number != i {
			t.Fatalf("%d: %+v, %v", i, m, err)
		}
	}
	if err := st.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := st.Recv(&got); err != io.EOF {
			t.Fatalf("end of stream is %v", err)
		}
	}
}

// dummies for imports while growing
var _ = []any{bytes.NewReader, binary.BigEndian, errors.New, fmt.Sprint, math.MaxInt64, http.StatusOK, strings.Repeat, sync.Mutex{}, atomic.Int32{}}
