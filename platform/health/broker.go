// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
)

// Broker checks that an MQTT broker answers a connection request. The address is HOST:PORT, or a URL with one of the usual
// schemes; without a port it is 1883, with TLS 8883.
func Broker(address string) Check {
	return Check{
		Name:    "broker",
		Hint:    "systemctl status mosquitto, and the listener in its configuration",
		Timeout: patience,
		Run:     func(ctx context.Context) error { return askBroker(ctx, address) },
	}
}

func askBroker(ctx context.Context, address string) error {
	hostport, secure, err := brokerAddress(address)
	if err != nil {
		return err
	}
	conn, err := dial(ctx, hostport, secure)
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	// MQTT 3.1.1, section 3.1: clean session, keep alive 30 s, empty client identifier.
	if _, err := conn.Write([]byte("\x10\x0c\x00\x04MQTT\x04\x02\x00\x1e\x00\x00")); err != nil {
		return fmt.Errorf("%s: %w", hostport, err)
	}
	var ack [4]byte
	if _, err := io.ReadFull(conn, ack[:]); err != nil {
		return fmt.Errorf("%s: no answer to the connection request: %w", hostport, err)
	}
	if ack[0] != 0x20 || ack[1] != 2 {
		return fmt.Errorf("%s does not speak MQTT", hostport)
	}
	// 2, 4 and 5 refuse who is asking, not everybody: a broker that wants a name or a password is at work.
	if code := ack[3]; code != 0 && code != 2 && code != 4 && code != 5 {
		return fmt.Errorf("%s refuses connections with code %d", hostport, code)
	}
	conn.Write([]byte("\xe0\x00"))
	return nil
}

func dial(ctx context.Context, hostport string, secure bool) (net.Conn, error) {
	if !secure {
		return new(net.Dialer).DialContext(ctx, "tcp", hostport)
	}
	conn, err := (&tls.Dialer{Config: &tls.Config{
		// Nothing secret is said and nothing received is used. The question is whether the broker is at work; whom to
		// trust is decided by the daemons that talk to it.
		InsecureSkipVerify: true,
	}}).DialContext(ctx, "tcp", hostport)
	if err != nil {
		return nil, fmt.Errorf("TLS with %s: %w", hostport, err)
	}
	return conn, nil
}

func brokerAddress(address string) (hostport string, secure bool, err error) {
	if strings.Contains(address, "@") { // errors show what comes after this
		return "", false, errors.New("broker address: user name and password do not belong into it")
	}
	expected := fmt.Errorf("broker address %q: expected HOST:PORT or tcp://HOST:PORT or ssl://HOST:PORT", address)
	if !strings.Contains(address, "://") {
		address = "tcp://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" {
		return "", false, expected
	}
	port := "1883"
	switch u.Scheme {
	case "tcp", "mqtt":
	case "ssl", "tls", "mqtts", "tcps":
		secure, port = true, "8883"
	default:
		return "", false, expected
	}
	if u.Port() != "" {
		port = u.Port()
	}
	return net.JoinHostPort(u.Hostname(), port), secure, nil
}
