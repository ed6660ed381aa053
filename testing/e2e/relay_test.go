// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"sdvbox/platform/mqttbus"
	"sdvbox/testing/vehicle"
)

// relay lets clients of this machine into the vehicle's broker who know nothing of certificates, at an address
// that outlives the vehicle's reboots. The agent of the containers gets in as that, all others as technicians.
type relay struct {
	url    string
	mu     sync.Mutex
	logins map[string]mqttbus.Config
}

func newRelay(t *testing.T) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	r := &relay{url: "tcp://" + l.Addr().String(), logins: map[string]mqttbus.Config{}}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				r.serve(conn)
			}()
		}
	}()
	return r
}

// open lets clients in from now on.
func (r *relay) open(ctx context.Context, vm *vehicle.VM) error {
	for _, user := range []string{"container-agent", "technician"} {
		login, err := vm.Bus(ctx, user)
		if err != nil {
			return err
		}
		r.mu.Lock()
		r.logins[user] = login
		r.mu.Unlock()
	}
	return nil
}

// serve relays one connection. What goes wrong is an end of the connection, as with a broker that is away.
func (r *relay) serve(client net.Conn) error {
	first, err := packets.ReadPacket(client)
	if err != nil {
		return err
	}
	connect, ok := first.(*packets.ConnectPacket)
	if !ok {
		return errors.New("not a connection request")
	}
	user := "technician"
	if strings.HasPrefix(connect.ClientIdentifier, "agent-") {
		user = "container-agent"
	}
	r.mu.Lock()
	login := r.logins[user]
	r.mu.Unlock()
	pem, err := os.ReadFile(login.CAFile)
	if err != nil {
		return err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(pem)
	pair, err := tls.LoadX509KeyPair(login.CertFile, login.KeyFile)
	if err != nil {
		return err
	}
	config.Certificates = []tls.Certificate{pair}
	broker, err := tls.Dial("tcp", strings.TrimPrefix(login.Broker, "mqtts://"), config)
	if err != nil {
		return err
	}
	defer broker.Close()
	if err := connect.Write(broker); err != nil {
		return err
	}
	go func() {
		io.Copy(broker, client)
		broker.Close()
	}()
	_, err = io.Copy(client, broker)
	return err
}
