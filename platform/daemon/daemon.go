// SPDX-License-Identifier: Apache-2.0

// Package daemon is the life of a service: its log, what it tells the service
// manager, its watchdog and the directory for its state.
package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"sdvbox/platform/config"
	"sdvbox/platform/logfile"
)

// Options describe a service.
type Options struct {
	Name     string
	LogLevel string    // error, warn, info, debug or trace; empty: info
	Stderr   io.Writer // of the log; nil: standard error

	// LogFile is where the log is if it has a path. What cannot be written there goes to Stderr.
	LogFile logfile.Config

	Warnings []config.Warning // about the configuration, to be logged first
}

// LogFile is a log file as it is configured: its size in megabytes and its age in days.
func LogFile(path string, size, count, age int) logfile.Config {
	return logfile.Config{Path: path, Size: int64(size) << 20, Count: count, Age: time.Duration(age) * 24 * time.Hour}
}

// Run runs body until it returns. The end of ctx is the order to stop; a body
// that ends because of it has succeeded.
func Run(ctx context.Context, o Options, body func(context.Context, *slog.Logger, *Notifier) error) error {
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	log, err := newLog(o.Stderr, o.Name, o.LogLevel)
	if err != nil {
		return err
	}
	if path := o.LogFile.Path; path != "" {
		file, err := logfile.Open(o.LogFile)
		if err != nil {
			log.Warn("cannot write the log file, logging here", "error", err)
		} else {
			defer file.Close()
			log.Info("logging to a file", "path", path)
			if log, err = newFileLog(file, o.Stderr, o.Name, o.LogLevel); err != nil {
				return err
			}
		}
	}
	for _, w := range o.Warnings {
		log.Warn("configuration: " + w.String())
	}
	n := &Notifier{log: log}
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("no watchdog", "error", err)
	}
	running, ended := context.WithCancel(context.Background())
	defer ended()
	if interval > 0 {
		go n.watchdog(running, interval/3)
	}
	stop := context.AfterFunc(ctx, func() { n.send(daemon.SdNotifyStopping) })
	defer stop()

	err = body(ctx, log, n)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Notifier tells the service manager how the service is. Without one, nothing
// happens.
type Notifier struct {
	log *slog.Logger

	mu    sync.Mutex
	alive func() error
}

// Ready says that the service has started.
func (n *Notifier) Ready() { n.send(daemon.SdNotifyReady) }

// Status says in one line what the service is doing.
func (n *Notifier) Status(text string) {
	n.send("STATUS=" + strings.ReplaceAll(text, "\n", " "))
}

// Watch makes the watchdog ask alive before it reports life. The service
// manager restarts a service whose alive fails or does not return.
func (n *Notifier) Watch(alive func() error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.alive = alive
}

func (n *Notifier) watchdog(ctx context.Context, interval time.Duration) {
	var sick bool
	for {
		n.mu.Lock()
		alive := n.alive
		n.mu.Unlock()
		var err error
		if alive != nil {
			err = alive()
		}
		if err == nil {
			n.send(daemon.SdNotifyWatchdog)
		} else if !sick {
			n.log.Error("not alive, the watchdog is going to end the service", "error", err)
		}
		sick = err != nil
		select {
		case <-ctx.Done():
			return
		case <-time.After(interval):
		}
	}
}

func (n *Notifier) send(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		n.log.Debug("cannot notify the service manager", "error", err)
	}
}
