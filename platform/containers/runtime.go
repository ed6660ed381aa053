// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/cgroups"
	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrlog"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/daemon"
	"sdvbox/platform/grpc"
	"sdvbox/platform/images"
	"sdvbox/platform/ocispec"
)

// Parts is what containers are made with.
type Parts struct {
	Client    *containerd.Client
	Images    *images.Store
	Network   Network
	Namespace string            // of containerd, as the client's
	Lease     string            // that keeps file systems from being collected as garbage; empty: kanto-cm.lease
	Runtime   string            // in place of any flavour of runc; empty: io.containerd.runc.v2
	Runc      string            // the program, empty: runc
	LogDir    string            // below which logs are, unless a container has another place for them
	ExecDir   string            // for what need not outlive the machine
	Files     *daemon.FileStore // keeps what containers say while no agent is there; may be nil
	Log       *slog.Logger

	abandoned time.Duration // of tests, as is
	kmsg      string
}

// Network gives containers their place in the network. What has been done already is no error.
type Network interface {
	Attach(ctx context.Context, c *ctrmodel.Container) (netNS string, err error) // fills in the files and the settings
	Describe(c *ctrmodel.Container)                                              // fills in the same, of one that is there
	Detach(ctx context.Context, id string) error
	Restore(ctx context.Context, ids []string) error // those that are there; what others have left is cleared away
}

// machine is the backend: containerd, with the images, the network and the logs of this machine.
type machine struct {
	Parts
	host     ocispec.Host
	restored bool // what an agent before has left is taken over, or cleared away

	mu        sync.Mutex
	consoles  map[string]*ctrlog.Console
	tasks     string              // containerd's directory with those of tasks, once it has been seen
	forgotten map[string]sighting // by id
}

func newMachine(p Parts) *machine {
	p.Lease, p.Runtime = cmp.Or(p.Lease, "kanto-cm.lease"), cmp.Or(p.Runtime, "io.containerd.runc.v2")
	p.abandoned, p.kmsg = cmp.Or(p.abandoned, abandoned), cmp.Or(p.kmsg, "/dev/kmsg")
	return &machine{Parts: p, host: ocispec.Probe(), consoles: map[string]*ctrlog.Console{}, forgotten: map[string]sighting{}}
}

const snapshotter = "overlayfs"

func snapshotOf(id string) string { return id + "-snapshot" }

// model gives an error of containerd its kind, if it is about circumstances and not about what containerd was asked.
func model(err error) error {
	if err == nil {
		return nil
	}
	kind := images.KindOf(err)
	if kind == ctrmodel.NotFound || kind == ctrmodel.InvalidArgument {
		kind = ctrmodel.Internal
	}
	return ctrmodel.Errorf(kind, "%w", err)
}

func gone(err error) bool { return grpc.CodeOf(err) == grpc.NotFound }

// unlessGone is err, unless what it is about is not there.
func unlessGone(err error) error {
	if gone(err) {
		return nil
	}
	return model(err)
}

func (m *machine) Connect(ctx context.Context, keep []*ctrmodel.Container, up func(), oom func(id string)) error {
	if err := m.prepareNamespace(ctx); err != nil {
		return model(err)
	}
	if !m.restored { // once: later, containers may be on their way
		if err := m.restore(ctx, keep); err != nil {
			return err
		}
	}
	events, err := m.Client.Subscribe(ctx, `topic=="/tasks/oom"`)
	if err != nil {
		return model(err)
	}
	defer events.Close()
	up()
	for {
		e, err := events.Next()
		if err != nil {
			return model(err)
		}
		if e, ok := e.Event.(*containerd.TaskOOM); ok {
			oom(e.ContainerID)
		}
	}
}

// prepareNamespace makes what containers are made in: the namespace, and the lease that keeps snapshots from being collected
// as garbage.
func (m *machine) prepareNamespace(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := m.Client.Version(ctx); err != nil {
		return err
	}
	if err := m.Client.CreateNamespace(ctx); err != nil && grpc.CodeOf(err) != grpc.AlreadyExists {
		return err
	}
	return m.holdLease(ctx)
}

// Look also clears away what is left of a task that containerd has forgotten. Until it can, nobody may take the container for one
// without a process.
func (m *machine) Look(ctx context.Context, id string) (is Actual, err error) {
	if _, err = m.Client.Snapshots.Stat(ctx, snapshotOf(id)); err == nil {
		is.Snapshot = true
	} else if !gone(err) {
		return is, model(err)
	}
	if _, err = m.Client.Containers.Get(ctx, id); err == nil {
		is.Object = true
	} else if !gone(err) {
		return is, model(err)
	}
	p, err := m.Client.Tasks.Get(ctx, id, "")
	if gone(err) {
		return is, m.reclaim(ctx, id)
	}
	if err != nil {
		return is, model(err)
	}
	m.remembered(id)
	switch p.Status {
	case containerd.Created:
		is.Task = TaskUnstarted
	case containerd.Running:
		is.Task = TaskRunning
	case containerd.Paused, containerd.Pausing:
		is.Task = TaskPaused
	case containerd.Stopped:
		is.Task = TaskEnded
	default:
		return is, ctrmodel.Errorf(ctrmodel.Unavailable, "containerd does not know the state of task %s", id)
	}
	return is, nil
}

func (m *machine) Wait(ctx context.Context, id string) (Exit, error) {
	exit, err := m.Client.Tasks.Wait(ctx, id, "")
	if gone(err) {
		return Exit{Lost: true, At: time.Now()}, nil
	}
	if err != nil {
		return Exit{}, model(err)
	}
	return Exit{Code: int64(exit.Status), At: exit.At, OOM: exit.Status == 128+uint32(syscall.SIGKILL) && m.shortOfMemory(ctx, id)}, nil
}

// shortOfMemory reports whether the kernel has killed the process of a container for want of memory, or others in it before. The
// event of it may come late, or while nobody listens. Where systemd makes the control groups, that of the container may be gone
// already, too, and a shim may be too busy to answer.
func (m *machine) shortOfMemory(ctx context.Context, id string) bool {
	const patience = 5 * time.Second
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if task, err := m.Client.Tasks.Get(short, id, ""); err == nil {
		killed, err := oomKilled(m.kmsg, id, task.Pid)
		if err != nil {
			m.Log.Debug("cannot ask the log of the kernel why a process was killed", "id", id, "error", err)
		}
		if killed {
			return true
		}
	}
	short, cancel = context.WithTimeout(ctx, patience)
	defer cancel()
	metrics, err := m.Client.Tasks.Metrics(short, id)
	return err == nil && len(metrics) == 1 && metrics[0].OOMKills > 0
}

// oomKilled reports whether the log of the kernel says that the process of a container has been killed for want of memory.
//
// As mm/oom_kill.c of Linux writes it, there are two lines about that. The first one tells the control group, which is called by
// the id, or by one of systemd's names with it. When many are killed it is left out, and the second one has to do.
func oomKilled(kmsg, id string, pid uint32) (killed bool, err error) {
	fd, err := unix.Open(kmsg, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, &os.PathError{Op: "open", Path: kmsg, Err: err}
	}
	defer unix.Close(fd)
	n := strconv.Itoa(int(pid))
	const kernel = `^[0-7],[^;]*;` // what others say has larger numbers
	first := regexp.MustCompile(kernel + `oom-kill:.*,task_memcg=([^,]*),task=.*,pid=` + n + `,uid=`)
	group := regexp.MustCompile(`[/-]` + regexp.QuoteMeta(id) + `(\.scope)?(/|$)`)
	second := regexp.MustCompile(kernel + `([^;:]*[Oo]ut of memory[^:]*: )?Killed process ` + n + `[ ,]`)
	told := false                  // by the first line, which the second one is still to follow
	record := make([]byte, 16<<10) // at least one, or the kernel refuses
	for {
		n, err := unix.Read(fd, record)
		switch {
		case err == unix.EPIPE || err == unix.EINTR: // the oldest ones have been overwritten meanwhile
			continue
		case err == unix.EAGAIN || err == nil && n == 0:
			return killed, nil
		case err != nil:
			return false, &os.PathError{Op: "read", Path: kmsg, Err: err}
		}
		if m := first.FindSubmatch(record[:n]); m != nil { // the last one counts: others may have had the number before
			killed, told = group.Match(m[1]), true
		} else if second.Match(record[:n]) {
			killed, told = killed || !told, false
		}
	}
}

func (m *machine) Kill(ctx context.Context, id string, s syscall.Signal) error {
	return unlessGone(m.Client.Tasks.Kill(ctx, id, "", s, s == syscall.SIGKILL))
}

func (m *machine) Pause(ctx context.Context, id string) error {
	return model(m.Client.Tasks.Pause(ctx, id))
}

func (m *machine) Resume(ctx context.Context, id string) error {
	return unlessGone(m.Client.Tasks.Resume(ctx, id))
}

func (m *machine) Stats(ctx context.Context, c *ctrmodel.Container) (s ctrmodel.Stats, err error) {
	t, err := cgroups.Host{}.Usage(c.State.PID, c.ID)
	if err != nil { // not all runtimes have the process where this one is
		if t, err = m.usage(ctx, c); err != nil {
			return s, err
		}
	}
	s = ctrmodel.Stats{
		Time: time.Now(), CPU: t.CPU, Memory: t.Memory - min(t.InactiveFile, t.Memory), MemoryMax: t.MemoryMax,
		ReadBytes: t.ReadBytes, WriteBytes: t.WriteBytes, PIDs: t.PIDs,
	}
	var up float64
	if text, err := os.ReadFile("/proc/uptime"); err == nil {
		fmt.Sscan(string(text), &up)
	}
	s.SystemCPU = time.Duration(up*float64(time.Second)) * time.Duration(runtime.NumCPU())
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err == nil {
		if total := uint64(info.Totalram) * uint64(info.Unit); s.MemoryMax == 0 || s.MemoryMax > total {
			s.MemoryMax = total
		}
	}
	if c.HostConfig.NetworkMode == ctrmodel.BridgeNetwork {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", c.State.PID))
		if err == nil {
			s.NetRead, s.NetWritten = netBytes(text)
		}
	}
	return s, nil
}

// usage has containerd tell what a container uses, which takes much longer.
func (m *machine) usage(ctx context.Context, c *ctrmodel.Container) (u cgroups.Usage, err error) {
	metrics, err := m.Client.Tasks.Metrics(ctx, c.ID)
	if err != nil {
		return u, model(err)
	}
	if len(metrics) != 1 {
		return u, ctrmodel.Errorf(ctrmodel.FailedPrecondition, "container %s has no process", c.Name)
	}
	t := metrics[0]
	return cgroups.Usage{
		CPU: t.CPU, Memory: t.Memory, MemoryMax: t.MemoryLimit, InactiveFile: t.InactiveFile, ReadBytes: t.ReadBytes, WriteBytes: t.WriteBytes, PIDs: t.Pids,
	}, nil
}

// netBytes adds up what all interfaces but loopback have received and sent, from /proc/net/dev.
func netBytes(text []byte) (read, written uint64) {
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		name, numbers, ok := strings.Cut(lines.Text(), ":")
		f := strings.Fields(numbers)
		if !ok || len(f) < 9 || strings.TrimSpace(name) == "lo" {
			continue
		}
		r, _ := strconv.ParseUint(f[0], 10, 64)
		w, _ := strconv.ParseUint(f[8], 10, 64)
		read, written = read+r, written+w
	}
	return read, written
}
