// SPDX-License-Identifier: Apache-2.0

package systemd

import (
	"bufio"
	"context"
	"encoding/binary"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// busyManager is the manager's own socket while the manager is busy: the first message of a connection is not seen before the
// second one comes. With never set it sees none at all.
func busyManager(t *testing.T, never bool) *dbus.Conn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "private")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			line = strings.Trim(line, "\x00\r\n")
			answer := map[string]string{"AUTH": "REJECTED EXTERNAL", "NEGOTIATE_UNIX_FD": "ERROR", "BEGIN": ""}[line]
			if strings.HasPrefix(line, "AUTH EXTERNAL") {
				answer = "OK 0123456789abcdef0123456789abcdef"
			}
			if line == "BEGIN" {
				break
			}
			conn.Write([]byte(answer + "\r\n"))
		}
		var first *dbus.Message
		for {
			m, err := dbus.DecodeMessage(r)
			if err != nil {
				return
			}
			if never || first == nil {
				first = m
				continue
			}
			reply := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{
				dbus.FieldReplySerial: dbus.MakeVariant(m.Serial()),
			}}
			if reply.EncodeTo(conn, binary.LittleEndian) != nil {
				return
			}
		}
	}()
	bus, err := dbus.Dial("unix:path=" + path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bus.Close() })
	if err := bus.Auth(nil); err != nil {
		t.Fatal(err)
	}
	return bus
}

func TestGreetMakesABusyManagerListen(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := greet(ctx, busyManager(t, false)); err != nil {
		t.Error(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := greet(ctx, busyManager(t, true)); err == nil {
		t.Error("a manager that never answers was taken for a listening one")
	}
}
