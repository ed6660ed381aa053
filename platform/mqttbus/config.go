// SPDX-License-Identifier: Apache-2.0

package mqttbus

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Config says how to reach the broker.
//
// The files are read at every attempt to connect, so that they may appear late
// and be renewed while the daemon runs.
type Config struct {
	// Broker is SCHEME://HOST:PORT with scheme tcp or mqtt, or for TLS ssl, tls,
	// mqtts, mqtt+ssl or tcps. Without a scheme it is tcp, without a port 1883,
	// or 8883 for TLS. IPv6 addresses are written in brackets.
	Broker string

	// ClientID is the name of the session that the broker keeps while the
	// client is away, so it has to be stable and used by one client only.
	ClientID string

	User         string
	Password     string
	PasswordFile string // used when Password is empty; line ends at its end do not count

	CAFile   string // PEM; empty: the certificates that the system trusts
	CertFile string // PEM, with KeyFile: client certificate
	KeyFile  string

	KeepAlive time.Duration // in seconds up to 65535, 30 s when zero

	// How long the broker may take to let the client in, to take a message
	// and to take the subscriptions; 10 s each when zero.
	ConnectTimeout, PublishTimeout, SubscribeTimeout time.Duration
}

// withDefaults returns the configuration with what is used instead of zeros,
// and of a keep-alive that MQTT cannot express.
func (c Config) withDefaults() Config {
	const second, most = time.Second, 65535 * time.Second
	c.KeepAlive = min(max(cmp.Or(c.KeepAlive, 30*second), second), most)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, timeout)
	c.PublishTimeout = cmp.Or(c.PublishTimeout, timeout)
	c.SubscribeTimeout = cmp.Or(c.SubscribeTimeout, timeout)
	return c
}

// Flags are the command line options for the parts of a Config that are
// the same in every daemon. The group they are in may put a name-space in front
// of the environment variables.
type Flags struct {
	ClientID     string `long:"mqtt-client-id" env:"MQTT_CLIENT_ID" value-name:"ID" description:"name of the session at the broker; one client only may use it"`
	User         string `long:"mqtt-user" env:"MQTT_USER" value-name:"NAME" description:"user name for the broker"`
	PasswordFile string `long:"mqtt-password-file" env:"MQTT_PASSWORD_FILE" value-name:"FILE" description:"file with the password for the broker"`
	CAFile       string `long:"mqtt-ca-file" env:"MQTT_CA_FILE" value-name:"FILE" description:"certificates (PEM) that may sign the broker's; default: those the system trusts"`
	CertFile     string `long:"mqtt-cert-file" env:"MQTT_CERT_FILE" value-name:"FILE" description:"client certificate (PEM) for the broker"`
	KeyFile      string `long:"mqtt-key-file" env:"MQTT_KEY_FILE" value-name:"FILE" description:"key (PEM) of the client certificate"`
}

// Config returns the configuration for a broker; clientID is the default.
func (f Flags) Config(broker, clientID string) Config {
	if f.ClientID != "" {
		clientID = f.ClientID
	}
	return Config{
		Broker:       broker,
		ClientID:     clientID,
		User:         f.User,
		PasswordFile: f.PasswordFile,
		CAFile:       f.CAFile,
		CertFile:     f.CertFile,
		KeyFile:      f.KeyFile,
	}
}

// Validate says what is wrong with a configuration without looking at the
// files it names.
func (c Config) Validate() error {
	_, secure, err := c.address()
	if err != nil {
		return err
	}
	switch {
	case c.ClientID == "":
		return errors.New("MQTT client id is empty")
	case len(c.ClientID) > 256 || strings.ContainsFunc(c.ClientID, unicode.IsControl):
		return fmt.Errorf("MQTT client id %.40q: expected at most 256 bytes without control characters", c.ClientID)
	case c.User == "" && (c.Password != "" || c.PasswordFile != ""):
		return errors.New("password for the broker without a user name")
	case (c.CertFile == "") != (c.KeyFile == ""):
		return errors.New("client certificate for the broker: certificate file and key file belong together")
	case !secure && (c.CAFile != "" || c.CertFile != ""):
		return fmt.Errorf("broker %q: certificates are given but the connection is not encrypted, expected mqtts://", c.Broker)
	case min(c.KeepAlive, c.ConnectTimeout, c.PublishTimeout, c.SubscribeTimeout) < 0:
		return errors.New("MQTT keep-alive and timeouts: expected positive durations")
	}
	return nil
}

// address returns what to dial.
func (c Config) address() (hostport string, secure bool, err error) {
	if strings.Contains(c.Broker, "@") { // errors show what comes after this
		return "", false, errors.New("broker: user name and password do not belong into the address")
	}
	scheme, rest, found := strings.Cut(c.Broker, "://")
	if !found {
		scheme, rest = "tcp", c.Broker
	}
	port := "1883"
	switch strings.ToLower(scheme) {
	case "tcp", "mqtt":
	case "ssl", "tls", "mqtts", "mqtt+ssl", "tcps":
		secure, port = true, "8883"
	default:
		return "", false, fmt.Errorf("broker %q: unknown scheme, expected tcp or mqtts", c.Broker)
	}
	rest = strings.TrimSuffix(rest, "/")
	host := strings.TrimSuffix(strings.TrimPrefix(rest, "["), "]")
	if h, p, err := net.SplitHostPort(rest); err == nil {
		host, port = h, p
	} else if strings.Contains(host, ":") != strings.HasPrefix(rest, "[") {
		return "", false, fmt.Errorf("broker %q: expected HOST:PORT, or [ADDRESS]:PORT for IPv6", c.Broker)
	}
	if host == "" || strings.ContainsAny(host, "[]/?# ") {
		return "", false, fmt.Errorf("broker %q: expected SCHEME://HOST:PORT", c.Broker)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", false, fmt.Errorf("broker %q: port %q is not a number from 1 to 65535", c.Broker, port)
	}
	return net.JoinHostPort(host, port), secure, nil
}

func (c Config) password() (string, error) {
	if c.Password != "" || c.PasswordFile == "" {
		return c.Password, nil
	}
	b, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("read password for the broker: %w", err)
	}
	return string(bytes.TrimRight(b, "\r\n")), nil
}

func (c Config) tls(hostport string) (*tls.Config, error) {
	host, _, _ := net.SplitHostPort(hostport)
	host, _, _ = strings.Cut(host, "%")
	t := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read CA file for the broker: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CA file for the broker: %s: no PEM certificate in it", c.CAFile)
		}
	}
	if c.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("load client certificate for the broker: %w", err)
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return t, nil
}
