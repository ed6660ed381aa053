// SPDX-License-Identifier: Apache-2.0

package containeragent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/applet"
	"sdvbox/platform/cmapi"
	"sdvbox/platform/config"
	"sdvbox/platform/containerd"
	"sdvbox/platform/containers"
	"sdvbox/platform/control"
	"sdvbox/platform/ctrnet"
	"sdvbox/platform/daemon"
	"sdvbox/platform/grpc"
	"sdvbox/platform/images"
)

const (
	farewell = 3 * time.Second // that calls under way get when the agent ends
)

func run(ctx context.Context, c *applet.Call) error {
	if c.Options.(*options).Version {
		_, err := fmt.Fprintln(c.Stdout, applet.Version)
		return err
	}
	s, file, err := load(c)
	if err != nil {
		return err
	}
	return daemon.Run(ctx, daemon.Options{
		Name: name, LogLevel: s.Log.Level, LogFile: daemon.LogFile(s.Log.File, s.Log.Size, s.Log.Count, s.Log.MaxAge), Stderr: c.Stderr, Warnings: file.Warnings,
	}, func(ctx context.Context, log *slog.Logger, n *daemon.Notifier) error {
		return s.serve(ctx, log, n, again(c, file.Name != ""))
	})
}

// serve keeps the containers until ctx ends.
func (s *settings) serve(ctx context.Context, log *slog.Logger, n *daemon.Notifier, load func() (settings, []config.Warning, error)) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	unlock, err := lock(filepath.Join(s.Manager.ExecRootDir, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	state, err := daemon.StateDir(ctx, log, name, s.Manager.StateDir)
	if err != nil {
		return err
	}
	client := containerd.New(s.Containers.Address, s.Containers.Namespace)
	defer client.Close()
	var engine *containers.Engine
	store, err := images.New(s.images(client, log, func() map[string]bool { return engine.UsedImages() }))
	if err != nil {
		return err
	}
	network, err := ctrnet.New(s.network(log))
	if err != nil {
		return err
	}
	engine, err = containers.New(s.engine(state, log), containers.Parts{
		Client: client, Images: store, Network: network, Namespace: s.Containers.Namespace, Lease: s.Containers.Lease,
		Runtime: s.Containers.Runtime, LogDir: s.Containers.HomeDir, ExecDir: s.Containers.ExecRootDir, Log: log,
		Files: daemon.OpenFileStore(os.Getenv("NOTIFY_SOCKET")),
	})
	if err != nil {
		return err
	}
	listener, err := s.listen(log)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	cmapi.Register(server, engine, cmapi.ProjectInfo{Version: applet.Version, APIVersion: cmapi.Version, GitCommit: applet.Commit, BuildTime: "unknown"})

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The server first: it tells its clients so, rather than what comes of an engine that has ended.
	working, end := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		server.Stop()
		end()
	})
	var side sync.WaitGroup
	defer side.Wait()
	defer cancel(nil)
	side.Go(func() {
		if err := server.Serve(listener); err != nil {
			cancel(fmt.Errorf("serve the API: %w", err))
		}
	})
	side.Go(func() {
		<-ctx.Done()
		last, done := context.WithTimeout(context.WithoutCancel(ctx), farewell)
		defer done()
		if err := server.Shutdown(last); err != nil {
			log.Warn("calls are broken off", "error", err)
		}
	})
	side.Go(func() {
		if err := network.Watch(ctx, networkPeriod); err != nil && ctx.Err() == nil {
			log.Error("the network is not watched any more", "error", err)
		}
	})
	side.Go(func() { reload(ctx, hangup, log, store, load) })
	side.Go(func() { watch(ctx, engine, n) })
	var alive checks
	alive.add(ctx, func() error {
		_, err := engine.List(ctx)
		return err
	})
	for _, serve := range services() {
		side.Go(func() {
			keep(ctx, time.Second, log, func(ctx context.Context) error {
				return serve(ctx, parts{engine, s, state, func(check func() error) { alive.add(ctx, check) }, log})
			})
		})
	}
	n.Watch(alive.all)
	n.Ready()
	err = engine.Run(working)
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// A service works beside the engine, as far as the settings want it, until ctx ends. It waits for what it needs, such as a
// broker. After an error, as when the disk is too full for its files, it is started again: the engine goes on without it.
type service func(ctx context.Context, p parts) error

// parts are what a service works with.
type parts struct {
	engine   *containers.Engine
	settings *settings
	state    string                   // directory for what has to outlive the agent, in files of the service's own
	watch    func(alive func() error) // has the watchdog ask this, too, until the service returns
	log      *slog.Logger
}

func services() []service { return []service{things, updateAgent} }

// keep starts a service again whenever it fails, after a pause that grows to a minute.
func keep(ctx context.Context, pause time.Duration, log *slog.Logger, serve func(context.Context) error) {
	for ; ; pause = min(2*pause, time.Minute) {
		attempt, end := context.WithCancel(ctx)
		err := serve(attempt)
		end()
		if err == nil || ctx.Err() != nil {
			return
		}
		log.Warn("a service has failed and is started again", "error", err, "after", pause)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// checks are what the watchdog asks.
type checks struct {
	mu   sync.Mutex
	list []check
}

// A check is of interest until its ctx ends.
type check struct {
	ctx   context.Context
	alive func() error
}

func (c *checks) add(ctx context.Context, alive func() error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(slices.DeleteFunc(c.list, func(old check) bool { return old.ctx.Err() != nil }), check{ctx, alive})
}

func (c *checks) all() error {
	c.mu.Lock()
	list := slices.Clone(c.list)
	c.mu.Unlock()
	for _, check := range list {
		if check.ctx.Err() != nil {
			continue
		}
		if err := check.alive(); err != nil && check.ctx.Err() == nil {
			return err
		}
	}
	return nil
}

const networkPeriod = 10 * time.Second

// lock makes sure that there is one agent only.
func lock(path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another container agent runs: %s is locked", path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

func (s *settings) images(client *containerd.Client, log *slog.Logger, used func() map[string]bool) images.Config {
	c := images.Config{
		Client: client, Registries: s.Containers.Registries, Insecure: s.Containers.Insecure, Expiry: time.Duration(s.Containers.Expiry),
		Root: s.Containers.ContainerdRoot, Reserve: int64(s.Containers.Reserve), Used: used, Log: log,
	}
	if s.Containers.NoExpiry {
		c.Expiry = 0
	}
	if c.Root == "" {
		if _, err := os.Stat(dataContainerd); err == nil {
			c.Root = dataContainerd
		}
	}
	// Whatever else it is meant to be, it is not meant to let anything run.
	if s.Containers.Verifier != verifyNothing {
		c.Verify = images.Notation(s.Containers.VerifierSetup["configDir"], s.Containers.VerifierSetup["libexecDir"])
	}
	return c
}

// dataContainerd is where containerd has its data on devices whose system is read-only.
const dataContainerd = "/data/var/containerd"

func (s *settings) network(log *slog.Logger) ctrnet.Config {
	b := s.Network.Bridge
	return ctrnet.Config{
		Dir: s.Network.ExecRootDir, Bridge: b.Name, IP4: b.IP4, Fixed4: b.Fixed4, Gate4: b.Gateway4, IPv6: b.IP6, MTU: b.MTU, ICC: b.ICC,
		Rules: b.IPTables, Forward: b.Forward, Masq: b.Masq, Log: log,
	}
}

func (s *settings) engine(state string, log *slog.Logger) containers.Config {
	c := containers.Config{
		StateDir: state, Original: s.Manager.HomeDir, StopTimeout: time.Duration(s.Manager.StopTimeout), StopOnExit: s.Manager.StopOnExit, Log: log,
	}
	if s.Deployment.Enable {
		c.Deployment = containers.Deployment{
			Dirs: append([]string{s.Deployment.Dir}, s.manifests(takenOver, log)...), Archives: s.Deployment.Archives,
			Init: s.Deployment.Mode == "init", Period: time.Duration(s.Deployment.Period), Prune: s.Deployment.Prune,
		}
	}
	return c
}

// takenOver is what the original kanto-auto-deployer leaves when updates by desired state take over: what the manifests describe
// is old then.
const takenOver = "/data/var/lib/kanto-auto-deployer/KAD.disabled"

// manifests are the further directories of descriptors, none if there is the file.
func (s *settings) manifests(file string, log *slog.Logger) []string {
	if _, err := os.Stat(file); err != nil || len(s.Deployment.Manifests) == 0 {
		return s.Deployment.Manifests
	}
	log.Info("manifests are not deployed any more, updates by desired state have taken over", "because", file)
	return nil
}

// listen opens the socket, for root and the group, or the port.
func (s *settings) listen(log *slog.Logger) (net.Listener, error) {
	g := s.GRPC
	if g.Protocol == "tcp" {
		log.Warn("whoever can reach this port may do anything on this device", "address", g.Address)
		return control.Listen(g.Address)
	}
	l, err := control.Listen("unix:" + g.Address)
	if err != nil || g.Group == "" {
		return l, err
	}
	group, err := user.LookupGroup(g.Group)
	if err != nil {
		log.Debug("only root may use the socket", "error", err)
		return l, nil
	}
	id, err := strconv.Atoi(group.Gid)
	if err == nil {
		err = os.Chown(g.Address, -1, id)
	}
	if err != nil {
		log.Warn("only root may use the socket", "error", err)
	}
	return l, nil
}

// reload takes registries from the configuration again whenever it is ordered to.
func reload(ctx context.Context, order <-chan os.Signal, log *slog.Logger, store *images.Store, load func() (settings, []config.Warning, error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-order:
		}
		s, warnings, err := load()
		if err != nil {
			log.Error("cannot read the configuration again, what was read before applies", "error", err)
			continue
		}
		for _, w := range warnings {
			log.Warn("configuration: " + w.String())
		}
		store.SetRegistries(s.Containers.Registries, s.Containers.Insecure)
		log.Info("read registries from the configuration again", "registries", len(s.Containers.Registries))
	}
}

// watch keeps the line that "systemctl status" shows.
func watch(ctx context.Context, engine *containers.Engine, n *daemon.Notifier) {
	for said := ""; ; {
		if line := statusLine(ctx, engine); line != said {
			said = line
			n.Status(line)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(2 * time.Second):
		}
	}
}

func statusLine(ctx context.Context, engine *containers.Engine) string {
	list, _ := engine.List(ctx) // cannot fail
	running := 0
	for _, c := range list {
		if c.State.HasProcess() {
			running++
		}
	}
	line := fmt.Sprintf("%d containers, %d of them running", len(list), running)
	if err := engine.Ready(); err != nil {
		line += ", waiting: " + err.Error()
	}
	return line
}
