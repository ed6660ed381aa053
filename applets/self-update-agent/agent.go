// SPDX-License-Identifier: Apache-2.0

// Package selfupdateagent is the self-update-agent applet: it updates the
// operating system on the commands of an update manager, or of whoever else
// publishes them.
package selfupdateagent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"sdvbox/platform/applet"
	"sdvbox/platform/daemon"
	"sdvbox/platform/durable"
	"sdvbox/platform/fetch"
	"sdvbox/platform/mqttbus"
	"sdvbox/platform/rauc"
	"sdvbox/platform/selfupdate"
	"sdvbox/platform/updateagent"
)

const name = "self-update-agent"

// options are those of the agent of Eclipse Leda, in both of its spellings,
// and further ones. Each can be set in the environment, too.
type options struct {
	Installer   string `short:"i" long:"installer" env:"SUA_INSTALLER" choice:"download" choice:"stream" choice:"dummy" default:"download" description:"how a bundle gets to RAUC: downloaded first, streamed by RAUC with download to fall back to, or not at all"`
	Path        string `short:"p" long:"path" env:"SUA_PATH" value-name:"DIR" default:"/data/selfupdates" description:"where bundles are stored; RAUC has to see it under the same name"`
	Server      string `short:"s" long:"server" env:"SUA_SERVER" value-name:"URL" default:"tcp://mosquitto:1883" description:"MQTT broker"`
	CAPath      string `short:"c" long:"ca-path" env:"SUA_CA_PATH" value-name:"DIR" description:"directory of certificates that may sign those of bundle servers (/etc/ssl/certs)"`
	CADirectory string `long:"ca-directory" value-name:"DIR" description:"the same as --ca-path"`
	CAFile      string `short:"f" long:"ca-file" env:"SUA_CA_FILE" value-name:"FILE" description:"use this file instead of the directory"`
	CAFilepath  string `long:"ca-filepath" value-name:"FILE" description:"the same as --ca-file"`
	Version     bool   `short:"v" long:"version" description:"print build and commit, and exit"`

	CertFile string `long:"cert-file" env:"SUA_CERT_FILE" value-name:"FILE" description:"client certificate (PEM) for bundle servers"`
	KeyFile  string `long:"key-file" env:"SUA_KEY_FILE" value-name:"FILE" description:"key (PEM) of the client certificate"`

	Delay   float64       `long:"message-delay" env:"SUA_MESSAGE_DELAY" value-name:"SECONDS" default:"5" description:"least time between two progress messages"`
	Rate    int64         `long:"rate-limit" env:"SUA_RATE_LIMIT" value-name:"BYTES" default:"0" description:"most bytes to download in a second, 0 for no limit"`
	Reserve int64         `long:"reserve" env:"SUA_RESERVE" value-name:"BYTES" default:"16777216" description:"bytes that a download leaves free in --path"`
	Stall   time.Duration `long:"stall-timeout" env:"SUA_STALL_TIMEOUT" default:"30s" description:"a connection that sends nothing for so long is broken"`
	GiveUp  time.Duration `long:"download-timeout" env:"SUA_DOWNLOAD_TIMEOUT" default:"5m" description:"a download without any progress for so long has failed"`
	Install time.Duration `long:"install-timeout" env:"SUA_INSTALL_TIMEOUT" default:"1h" description:"an installation that takes longer has failed"`
	Confirm time.Duration `long:"confirm-timeout" env:"SUA_CONFIRM_TIMEOUT" default:"15m" description:"a new slot not confirmed for so long after its first boot counts as rolled back"`
	Command time.Duration `long:"command-timeout" env:"SUA_COMMAND_TIMEOUT" default:"24h" description:"an update that is not activated and has waited for its next command for so long is given up, 0 for never"`
	RAUC    time.Duration `long:"rauc-timeout" env:"SUA_RAUC_TIMEOUT" default:"30s" description:"how long a RAUC that does not answer is waited for"`

	StateDir string `long:"state-dir" env:"SUA_STATE_DIR" value-name:"DIR" default:"/data/sdvbox/self-update-agent" description:"where the state of an update under way is kept"`
	BootEnv  string `long:"bootenv" value-name:"SPEC" description:"boot environment, grub:FILE or uboot:FILE; default: $SDVBOX_BOOTENV, else the one that is found"`

	MQTT mqttbus.Flags `group:"Broker options" env-namespace:"SUA"`

	// For tests.
	root      string      // where /proc and /etc are
	afterSave func(n int) // called after each write of the journal
}

// Command describes the applet.
func Command() applet.Command {
	return applet.Command{
		Name:    name,
		Summary: "update the operating system through RAUC, driven over MQTT",
		Description: `Takes desired states and commands for the domain self-update from the topics selfupdate/desiredstate and selfupdate/desiredstate/command, answers on selfupdate/desiredstatefeedback and publishes what runs on selfupdate/currentstate.

An update goes through DOWNLOAD, UPDATE, ACTIVATE and CLEANUP; ROLLBACK undoes it at any time. Its state is kept in --state-dir before each step, so that it goes on after a crash, a reboot or a power cut and always ends with one terminal status.`,
		Options: func() any { return &options{} },
		Run:     run,
		Daemon:  true,
	}
}

func run(ctx context.Context, c *applet.Call) error {
	o := c.Options.(*options)
	if o.Version {
		fmt.Fprintf(c.Stdout, "%s\n%s\n", applet.Version, applet.Commit)
		return nil
	}
	return daemon.Run(ctx, daemon.Options{Name: name, Stderr: c.Stderr}, func(ctx context.Context, log *slog.Logger, n *daemon.Notifier) error {
		return o.serve(ctx, log, n)
	})
}

// serve runs the agent until ctx ends.
func (o *options) serve(ctx context.Context, log *slog.Logger, n *daemon.Notifier) error {
	if o.Delay < 0 || o.Rate < 0 || o.Reserve < 0 {
		return errors.New("--message-delay, --rate-limit and --reserve must not be negative")
	}
	tls := fetch.TLS{CAFile: cmp.Or(o.CAFilepath, o.CAFile), CertFile: o.CertFile, KeyFile: o.KeyFile}
	if tls.CAFile == "" {
		tls.CADir = cmp.Or(o.CADirectory, o.CAPath, defaultCAPath(log))
	}
	client, err := fetch.NewClient(tls)
	if err != nil {
		return err
	}
	dir, err := daemon.StateDir(ctx, log, name, o.StateDir)
	if err != nil {
		return err
	}
	journal, err := durable.OpenJournal(filepath.Join(dir, "journal"), updateagent.Capacity)
	if err != nil {
		return err
	}
	defer journal.Close()
	journal.AfterSave = o.afterSave
	// The bus outlives the agent, for which its end would be a failure.
	bus, err := mqttbus.Connect(context.WithoutCancel(ctx), o.MQTT.Config(o.Server, name), log, mqttbus.Options{
		Subscriptions: updateagent.Subscriptions(selfupdate.DomainID),
	})
	if err != nil {
		return err
	}
	defer bus.Close()
	agent := updateagent.New(updateagent.Config{
		Patience:    o.Command,
		Domain:      selfupdate.DomainID,
		Identifying: selfupdate.MsgIdentifying,
		Journal:     journal,
		Bus:         bus,
		Log:         log,
		Backend: &selfupdate.Backend{Config: selfupdate.Config{
			System:         o.system(tls),
			Mode:           selfupdate.Mode(o.Installer),
			Dir:            o.Path,
			Version:        applet.Version,
			Client:         client,
			Rate:           o.Rate,
			Reserve:        o.Reserve,
			Stall:          o.Stall,
			GiveUp:         o.GiveUp,
			Delay:          time.Duration(o.Delay * float64(time.Second)),
			InstallTimeout: o.Install,
			ConfirmTimeout: o.Confirm,
			Log:            log,
		}},
	})
	n.Watch(agent.Alive)
	n.Ready()
	return agent.Run(ctx)
}

// defaultCAPath is a directory that need not be there: plain http works without.
func defaultCAPath(log *slog.Logger) string {
	const dir = "/etc/ssl/certs"
	if _, err := fetch.NewClient(fetch.TLS{CADir: dir}); err != nil {
		log.Warn("bundles cannot be downloaded from https servers", "error", err)
		return ""
	}
	return dir
}

func (o *options) system(tls fetch.TLS) selfupdate.System {
	if o.Installer == "dummy" {
		return selfupdate.Dummy{}
	}
	return &selfupdate.RAUCSystem{
		Patience: o.RAUC,
		BootEnv:  o.BootEnv,
		Root:     o.root,
		Source:   rauc.SourceOptions{TLSCA: tls.CAFile, TLSCert: tls.CertFile, TLSKey: tls.KeyFile},
	}
}
