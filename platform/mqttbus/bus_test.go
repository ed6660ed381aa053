// SPDX-License-Identifier: Apache-2.0

package mqttbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"sdvbox/testing/broker"
	"sdvbox/testing/output"
)

const topic = "vehicle/test"

func connect(t *testing.T, cfg Config, o Options) (*Bus, *output.Buffer) {
	t.Helper()
	if cfg.ClientID == "" {
		cfg.ClientID = "tested"
	}
	if o.Subscriptions == nil {
		o.Subscriptions = []string{topic}
	}
	log := new(output.Buffer)
	b, err := Connect(t.Context(), cfg, slog.New(slog.NewTextHandler(log, nil)), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b, log
}

func next(t *testing.T, b *Bus, want Kind) *Message {
	t.Helper()
	select {
	case ev, ok := <-b.Events():
		if !ok || ev.Kind != want {
			t.Fatalf("event %v, want kind %v", ev, want)
		}
		return ev.Message
	case <-time.After(15 * time.Second):
		t.Fatalf("no event, want kind %v", want)
		return nil
	}
}

func receive(t *testing.T, b *Bus, want string) *Message {
	t.Helper()
	m := next(t, b, Received)
	if string(m.Payload) != want {
		t.Fatalf("received %q, want %q", m.Payload, want)
	}
	return m
}

func TestMessagesAndPublicationsPass(t *testing.T) {
	for _, o := range []broker.Options{
		{},
		{IPv6: true},
		{User: "vehicle", Password: "pass word"},
		{TLS: true},
		{TLS: true, IPv6: true},
		{MTLS: true},
	} {
		t.Run(fmt.Sprintf("TLS=%v,MTLS=%v,IPv6=%v,User=%s", o.TLS, o.MTLS, o.IPv6, o.User), func(t *testing.T) {
			t.Parallel()
			br := broker.Start(t, o)
			flags := Flags{User: o.User, CAFile: br.CAFile, CertFile: br.CertFile, KeyFile: br.KeyFile}
			if o.Password != "" {
				flags.PasswordFile = filepath.Join(t.TempDir(), "password")
				if err := os.WriteFile(flags.PasswordFile, []byte(o.Password+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			b, _ := connect(t, flags.Config(br.URL(), "tested"), Options{})
			next(t, b, Up)
			peer := br.Client(t, "vehicle/answer")
			peer.Publish(topic, "hello")
			m := receive(t, b, "hello")
			if m.Topic != topic || m.Retained || m.Duplicate {
				t.Errorf("received %+v", m)
			}
			m.Ack()
			if err := b.Publish(t.Context(), "vehicle/answer", true, []byte("hi")); err != nil {
				t.Fatal(err)
			}
			if m := peer.Next(5 * time.Second); m.Payload != "hi" {
				t.Errorf("peer received %q", m.Payload)
			}
			late := br.Client(t, "vehicle/answer")
			if m := late.Next(5 * time.Second); m.Payload != "hi" || !m.Retained {
				t.Errorf("late peer received %+v, want it retained", m)
			}
		})
	}
}

func TestBrokerMayComeLate(t *testing.T) {
	t.Parallel()
	br := broker.Start(t, broker.Options{})
	br.Stop()
	b, log := connect(t, Config{Broker: br.Addr}, Options{})
	log.Wait(t, "cannot connect")
	if err := b.Publish(t.Context(), topic, false, nil); !errors.Is(err, ErrDown) {
		t.Errorf("publish without a broker: %v, want %v", err, ErrDown)
	}
	time.Sleep(time.Second) // some attempts
	br.Restart()
	next(t, b, Up)
	if n := strings.Count(log.String(), "cannot connect"); n != 1 {
		t.Errorf("the outage is logged %d times, want once:\n%s", n, log)
	}
}

func TestUnacknowledgedMessagesComeAgainAfterBrokerRestart(t *testing.T) {
	t.Parallel()
	br := broker.Start(t, broker.Options{})
	b, log := connect(t, Config{Broker: br.URL()}, Options{})
	next(t, b, Up)
	peer := br.Client(t)
	for _, text := range []string{"1", "2", "3"} {
		peer.Publish(topic, text)
	}
	receive(t, b, "1").Ack()
	late := receive(t, b, "2")
	receive(t, b, "3")
	if err := b.Publish(t.Context(), "other", false, nil); err != nil { // the broker has the Ack
		t.Fatal(err)
	}
	br.Restart()
	next(t, b, Down)
	next(t, b, Up)
	late.Ack() // of a connection that is gone: no effect
	for _, text := range []string{"2", "3"} {
		m := receive(t, b, text)
		if !m.Duplicate {
			t.Errorf("message %s is not marked as a duplicate", text)
		}
		m.Ack()
	}
	br.Client(t).Publish(topic, "4")
	receive(t, b, "4").Ack()
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("the outage is logged %d times, want once:\n%s", n, log)
	}
}

func TestSessionOutlivesTheClient(t *testing.T) {
	t.Parallel()
	br := broker.Start(t, broker.Options{})
	b, _ := connect(t, Config{Broker: br.URL()}, Options{})
	next(t, b, Up)
	peer := br.Client(t)
	peer.Publish(topic, "before")
	receive(t, b, "before")
	b.Close()
	if _, ok := <-b.Events(); ok {
		t.Error("an event after Close")
	}
	peer.Publish(topic, "meanwhile")

	b, _ = connect(t, Config{Broker: br.URL()}, Options{})
	next(t, b, Up)
	receive(t, b, "before").Ack()
	receive(t, b, "meanwhile").Ack()
}

func TestOrderIsKept(t *testing.T) {
	t.Parallel()
	const n = 300
	br := broker.Start(t, broker.Options{})
	b, _ := connect(t, Config{Broker: br.URL()}, Options{})
	next(t, b, Up)
	peer := br.Client(t)
	for i := range n {
		peer.Publish(topic, fmt.Sprint(i))
	}
	for i := range n {
		receive(t, b, fmt.Sprint(i)).Ack()
	}
}

// The broker sends without limit here. What the queue cannot hold must neither
// be lost nor change places.
func TestOverflowIsDeliveredLater(t *testing.T) {
	t.Parallel()
	const n = 50
	br := broker.Start(t, broker.Options{Config: "max_inflight_messages 0"})
	b, log := connect(t, Config{Broker: br.URL()}, Options{queue: 20})
	next(t, b, Up)
	peer := br.Client(t)
	for i := range n {
		peer.Publish(topic, fmt.Sprint(i))
	}
	for want := 0; want < n; {
		select {
		case ev := <-b.Events():
			if ev.Kind != Received {
				continue
			}
			ev.Message.Ack()
			var got int
			fmt.Sscan(string(ev.Message.Payload), &got)
			switch {
			case got == want:
				want++
			case got > want:
				t.Fatalf("message %d before message %d", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("message %d is lost:\n%s", want, log)
		}
	}
	if !strings.Contains(log.String(), "too many messages at once") {
		t.Error("there was no overflow")
	}
}

func TestRefusalIsExplained(t *testing.T) {
	t.Parallel()
	password := broker.Start(t, broker.Options{User: "vehicle", Password: "secret-1"})
	tls := broker.Start(t, broker.Options{MTLS: true})
	other := broker.Start(t, broker.Options{TLS: true})
	for name, test := range map[string]struct {
		cfg  Config
		want string
	}{
		"WrongPassword":      {Config{Broker: password.URL(), User: "vehicle", Password: "secret-2"}, `the broker refuses user \"vehicle\", or the password is wrong`},
		"NoPassword":         {Config{Broker: password.URL()}, "the broker wants a user name and password"},
		"PasswordFileAbsent": {Config{Broker: password.URL(), User: "vehicle", PasswordFile: "/nonexistent"}, "open /nonexistent: no such file"},
		"NoTLS":              {Config{Broker: tls.Addr}, "cannot connect"},
		"UnknownAuthority":   {Config{Broker: tls.URL(), CAFile: other.CAFile}, "unknown authority"},
		"SystemAuthorities":  {Config{Broker: tls.URL()}, "unknown authority"},
		"CAFileAbsent":       {Config{Broker: tls.URL(), CAFile: "/nonexistent"}, "open /nonexistent: no such file"},
		"CAFileIsNone":       {Config{Broker: tls.URL(), CAFile: tls.KeyFile}, "no PEM certificate in it"},
		"NoCertificate":      {Config{Broker: tls.URL(), CAFile: tls.CAFile}, "certificate required"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, log := connect(t, test.cfg, Options{})
			log.Wait(t, test.want)
			if strings.Contains(log.String(), "secret") {
				t.Errorf("the log has the password:\n%s", log)
			}
			time.Sleep(500 * time.Millisecond) // some attempts
			if n := strings.Count(log.String(), test.want); n != 1 {
				t.Errorf("the refusal is logged %d times, want once:\n%s", n, log)
			}
		})
	}
}

func TestPasswordMayComeLate(t *testing.T) {
	t.Parallel()
	br := broker.Start(t, broker.Options{User: "vehicle", Password: "secret"})
	file := filepath.Join(t.TempDir(), "password")
	b, log := connect(t, Config{Broker: br.URL(), User: "vehicle", PasswordFile: file}, Options{})
	log.Wait(t, "no such file")
	if err := os.WriteFile(file, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	next(t, b, Up)
}

func TestPublishEndsWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	br := broker.Start(t, broker.Options{})
	b, _ := connect(t, Config{Broker: br.URL()}, Options{})
	next(t, b, Up)
	br.Freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := b.Publish(ctx, topic, false, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("publish to a frozen broker: %v, want %v", err, context.DeadlineExceeded)
	}
	done := make(chan error)
	go func() { done <- b.Publish(t.Context(), topic, false, nil) }()
	time.Sleep(50 * time.Millisecond)
	br.Kill()
	if err := <-done; !errors.Is(err, ErrDown) {
		t.Errorf("publish to a broker that dies: %v, want %v", err, ErrDown)
	}
}

func TestPublishGivesUpOnABrokerThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	br := broker.Start(t, broker.Options{})
	b, log := connect(t, Config{
		Broker: br.URL(), KeepAlive: time.Hour, PublishTimeout: 200 * time.Millisecond, ConnectTimeout: 300 * time.Millisecond,
	}, Options{})
	next(t, b, Up)
	br.Freeze()
	began := time.Now()
	if err := b.Publish(t.Context(), topic, false, nil); !errors.Is(err, ErrDown) {
		t.Errorf("publish to a frozen broker: %v, want %v", err, ErrDown)
	}
	next(t, b, Down)
	log.Wait(t, "cannot connect to the bus")
	if d := time.Since(began); d > timeout/2 {
		t.Errorf("it takes %s to notice that the broker lets nobody in", d)
	}
	br.Thaw()
	next(t, b, Up)
}

func TestFrozenBrokerIsNoticed(t *testing.T) {
	t.Parallel()
	br := broker.Start(t, broker.Options{})
	b, _ := connect(t, Config{Broker: br.URL(), KeepAlive: time.Second}, Options{})
	next(t, b, Up)
	br.Freeze()
	next(t, b, Down)
	br.Thaw()
	next(t, b, Up)
}

func TestTwoClientsOfOneSessionAreToldSo(t *testing.T) {
	t.Parallel()
	br := broker.Start(t, broker.Options{})
	b, log := connect(t, Config{Broker: br.URL()}, Options{})
	next(t, b, Up)
	connect(t, Config{Broker: br.URL()}, Options{})
	log.Wait(t, "is there another client with the id")
}

// An access list of mosquitto does not refuse subscriptions; other brokers do.
func TestRefusedSubscriptionIsAnOutage(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		var code byte = 0x80 // the second time it is allowed
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			for {
				p, err := packets.ReadPacket(conn)
				if err != nil {
					break
				}
				switch p := p.(type) {
				case *packets.ConnectPacket:
					packets.NewControlPacket(packets.Connack).Write(conn)
				case *packets.SubscribePacket:
					ack := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
					ack.MessageID = p.MessageID
					ack.ReturnCodes = []byte{code}
					ack.Write(conn)
					code = 1
				}
			}
			conn.Close()
		}
	}()
	b, log := connect(t, Config{Broker: l.Addr().String()}, Options{})
	next(t, b, Up)
	if want := "the broker does not allow " + topic; !strings.Contains(log.String(), want) {
		t.Errorf("log does not say %q:\n%s", want, log)
	}
}

func TestCloseDoesNotWaitForABroker(t *testing.T) {
	t.Parallel()
	br := broker.Start(t, broker.Options{})
	br.Freeze() // the kernel still accepts the connection
	b, _ := connect(t, Config{Broker: br.URL()}, Options{})
	time.Sleep(100 * time.Millisecond)
	began := time.Now()
	b.Close()
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("Close takes %s", d)
	}
}

func TestUnseenLinkChangesDoNotPileUp(t *testing.T) {
	b := &Bus{wake: make(chan struct{}, 1)}
	for range 10 {
		l := &link{down: make(chan struct{})}
		b.setUp(l)
		b.setDown(l)
	}
	if len(b.queue) != 0 {
		t.Errorf("%d events wait, want none", len(b.queue))
	}
}
