// SPDX-License-Identifier: Apache-2.0

package mqttbus

import (
	"strings"
	"testing"
	"time"
)

func TestBrokerAddresses(t *testing.T) {
	for broker, want := range map[string]string{
		"tcp://mosquitto:1883":      "mosquitto:1883",
		"mqtt://mosquitto":          "mosquitto:1883",
		"TCP://localhost:1/":        "localhost:1",
		"localhost":                 "localhost:1883",
		"localhost:18830":           "localhost:18830",
		"10.0.0.1:1883":             "10.0.0.1:1883",
		"[::1]":                     "[::1]:1883",
		"tcp://[fe80::1%eth0]:1883": "[fe80::1%eth0]:1883",
		"mqtts://broker.example":    "broker.example:8883 TLS",
		"ssl://broker.example:1":    "broker.example:1 TLS",
		"tls://[::1]:8883":          "[::1]:8883 TLS",
		"mqtt+ssl://b":              "b:8883 TLS",
		"tcps://b":                  "b:8883 TLS",
	} {
		got, secure, err := Config{Broker: broker}.address()
		if err != nil {
			t.Errorf("%s: %v", broker, err)
		}
		if secure {
			got += " TLS"
		}
		if got != want {
			t.Errorf("%s: address %s, want %s", broker, got, want)
		}
	}
}

func TestValidateNamesWhatIsWrong(t *testing.T) {
	for _, test := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "expected SCHEME://HOST:PORT"},
		{Config{Broker: "tcp://:1883"}, "expected SCHEME://HOST:PORT"},
		{Config{Broker: "tcp://host/path:1"}, "expected SCHEME://HOST:PORT"},
		{Config{Broker: "udp://host:1883"}, `broker "udp://host:1883": unknown scheme`},
		{Config{Broker: "tcp://::1"}, "[ADDRESS]:PORT for IPv6"},
		{Config{Broker: "tcp://::1:1883"}, "[ADDRESS]:PORT for IPv6"},
		{Config{Broker: "[localhost]"}, "[ADDRESS]:PORT for IPv6"},
		{Config{Broker: "tcp://host:mqtt"}, `port "mqtt" is not a number`},
		{Config{Broker: "tcp://host:65536"}, `port "65536" is not a number`},
		{Config{Broker: "tcp://host:0"}, `port "0" is not a number`},
		{Config{Broker: "tcp://me:secret@host"}, "do not belong into the address"},
		{Config{Broker: "wss://me:secret@host"}, "do not belong into the address"},
		{Config{Broker: "me:secret@host"}, "do not belong into the address"},
		{Config{Broker: "host"}, "client id is empty"},
		{Config{Broker: "host", ClientID: "a\x00"}, "client id"},
		{Config{Broker: "host", ClientID: "a", Password: "p"}, "without a user name"},
		{Config{Broker: "host", ClientID: "a", CAFile: "/ca.pem"}, "the connection is not encrypted"},
		{Config{Broker: "mqtts://host", ClientID: "a", CertFile: "/c.pem"}, "belong together"},
		{Config{Broker: "host", ClientID: "a", KeepAlive: -1}, "keep-alive"},
		{Config{Broker: "host", ClientID: "a", SubscribeTimeout: -1}, "timeouts"},
	} {
		err := test.cfg.Validate()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: error %v, want %q", test.cfg, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("error has the password: %v", err)
		}
	}
	good := Config{Broker: "mqtts://host", ClientID: "a", User: "u", PasswordFile: "/p", CAFile: "/ca", CertFile: "/c", KeyFile: "/k"}
	if err := good.Validate(); err != nil {
		t.Errorf("%+v: %v", good, err)
	}
}

func TestTimesAreWhatMQTTCanExpress(t *testing.T) {
	const s = time.Second
	for _, test := range []struct{ given, want Config }{
		{Config{}, Config{KeepAlive: 30 * s, ConnectTimeout: 10 * s, PublishTimeout: 10 * s, SubscribeTimeout: 10 * s}},
		{
			Config{KeepAlive: s / 2, ConnectTimeout: 1, PublishTimeout: 2, SubscribeTimeout: 3},
			Config{KeepAlive: s, ConnectTimeout: 1, PublishTimeout: 2, SubscribeTimeout: 3},
		},
		{
			Config{KeepAlive: 24 * time.Hour, ConnectTimeout: s, PublishTimeout: s, SubscribeTimeout: s},
			Config{KeepAlive: 65535 * s, ConnectTimeout: s, PublishTimeout: s, SubscribeTimeout: s},
		},
	} {
		if got := test.given.withDefaults(); got != test.want {
			t.Errorf("%+v becomes %+v, want %+v", test.given, got, test.want)
		}
	}
}

func TestFlagsOverrideTheDefaultClientID(t *testing.T) {
	if got := (Flags{}).Config("b", "sua").ClientID; got != "sua" {
		t.Errorf("client id %q, want the default", got)
	}
	if got := (Flags{ClientID: "x"}).Config("b", "sua").ClientID; got != "x" {
		t.Errorf("client id %q, want the flag's", got)
	}
}
