// SPDX-License-Identifier: Apache-2.0

package updatemanager

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"time"

	"sdvbox/platform/applet"
	"sdvbox/platform/control"
	"sdvbox/platform/daemon"
	"sdvbox/platform/durable"
	"sdvbox/platform/manager"
	"sdvbox/platform/metrics"
	"sdvbox/platform/mqttbus"
	"sdvbox/platform/orchestrator"
)

// run runs the daemon; reboot returns once a reboot is under way.
func run(ctx context.Context, c *applet.Call, reboot func(context.Context) error) error {
	if c.Options.(*options).Version {
		_, err := fmt.Fprintln(c.Stdout, applet.Version)
		return err
	}
	s, warnings, err := load(c)
	if err != nil {
		return err
	}
	return daemon.Run(ctx, daemon.Options{
		Name: name, LogLevel: s.Log.Level, LogFile: daemon.LogFile(s.Log.File, s.Log.Size, s.Log.Count, s.Log.MaxAge), Stderr: c.Stderr, Warnings: warnings,
	}, func(ctx context.Context, log *slog.Logger, n *daemon.Notifier) error {
		return s.serve(ctx, log, n, reboot)
	})
}

// serve runs the update manager until ctx ends.
func (s *settings) serve(ctx context.Context, log *slog.Logger, n *daemon.Notifier, reboot func(context.Context) error) error {
	dir, err := daemon.StateDir(ctx, log, name, s.StateDir)
	if err != nil {
		return err
	}
	journal, err := durable.OpenJournal(filepath.Join(dir, journalFile), orchestrator.Capacity)
	if err != nil {
		return err
	}
	defer journal.Close()
	o := s.orchestrator()
	c := manager.Config{
		Domain:            s.Domain,
		Things:            s.ThingsEnabled,
		Agents:            o.Agents,
		Orchestrator:      o,
		FeedbackInterval:  time.Duration(s.ReportFeedbackInterval),
		CurrentStateDelay: time.Duration(s.CurrentStateDelay),
		Version:           applet.Version,
		SafeTopic:         s.RebootGate.Topic,
	}
	// It ends after the manager, which takes a bus that is gone for a failure.
	bus, err := mqttbus.Connect(context.WithoutCancel(ctx), s.bus(), log, mqttbus.Options{Subscriptions: manager.Subscriptions(c)})
	if err != nil {
		return err
	}
	defer bus.Close()
	m := manager.New(c, journal, bus, s.gate(), reboot, log)
	watch := newObserver(m, applet.Version)

	ctx, cancel := context.WithCancel(ctx)
	var side sync.WaitGroup
	defer side.Wait()
	defer cancel()
	side.Go(func() { watch.run(ctx, n) })
	answer := func(address string, h control.Handlers) {
		if l := listen(address, log); l != nil {
			side.Go(func() { control.Serve(ctx, l, h) })
		}
	}
	answer("unix:"+s.ControlSocket, controls(m, watch))
	answer(s.MetricsAddress, control.Handlers{"GET /metrics": watch.serve})
	n.Watch(m.Alive)
	n.Ready()
	return m.Run(ctx)
}

// listen returns nil when the address is empty or cannot be used: updates do not depend on who looks at them.
func listen(address string, log *slog.Logger) net.Listener {
	if address == "" || address == "unix:" {
		return nil
	}
	l, err := control.Listen(address)
	if err != nil {
		log.Warn("nobody can ask here", "address", address, "error", err)
		return nil
	}
	return l
}

// controls answer at the control socket.
func controls(m *manager.Manager, watch *observer) control.Handlers {
	overview := func() (any, error) { return &Overview{true, applet.Version, m.Status()}, nil }
	return control.Handlers{
		"GET /status": func(context.Context, url.Values) (any, error) { return overview() },
		"GET /history": func(context.Context, url.Values) (any, error) {
			return &Record{true, append([]orchestrator.Entry{}, m.History()...)}, nil
		},
		"POST /cancel": func(ctx context.Context, q url.Values) (any, error) {
			if err := m.Cancel(ctx, q.Get("activity")); err != nil {
				if ctx.Err() != nil {
					return nil, err
				}
				return nil, control.Refusal(err.Error())
			}
			return overview()
		},
		"GET /metrics": watch.serve,
	}
}

func (o *observer) serve(context.Context, url.Values) (any, error) {
	return control.Text{Type: metrics.ContentType, Body: o.metrics(time.Now())}, nil
}
