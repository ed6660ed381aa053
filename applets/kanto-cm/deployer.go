// SPDX-License-Identifier: Apache-2.0

package kantocm

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sdvbox/platform/applet"
	"sdvbox/platform/cmapi"
	"sdvbox/platform/ctrmodel"
)

const exitNoDir = 255

// AutoDeployer describes kanto-auto-deployer.
func AutoDeployer() applet.Command {
	type options struct {
		Socket  string `short:"s" long:"socket-cm" value-name:"FILE" description:"socket of the container agent"`
		Daemon  bool   `short:"d" long:"daemon" description:"go on, and deploy files that are new or written again, also in directories below"`
		MQTT    bool   `short:"m" long:"mqtt" description:"has no effect: the container agent coordinates updates itself"`
		Host    string `long:"mqtt-broker-host" hidden:"true"`
		Port    string `long:"mqtt-broker-port" hidden:"true"`
		Topic   string `long:"mqtt-topic" hidden:"true"`
		Version bool   `short:"V" long:"version" description:"show the version and exit"`
	}
	return applet.Command{
		Name:    "kanto-auto-deployer",
		Summary: "make the containers that the files of a directory describe",
		Description: `Asks the container agent to make and start the container of each *.json file in DIR that is not there, and to start each that does not run. One that is there stays as it is, unless with --daemon its file is written again, be it the same: then it is made anew.

For its own directories the container agent does the same by itself, and better: see kanto-cm deploy.`,
		Args: "[DIR]",
		Exit: []applet.ExitCode{
			{Code: exitDown, Meaning: "the container agent does not answer"}, {Code: exitNoDir, Meaning: "there is no such directory"},
		},
		Options: func() any { return &options{Socket: defaultHost} },
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*options)
			if o.Version {
				_, err := fmt.Fprintln(c.Stdout, applet.Version)
				return err
			}
			if len(c.Args) > 1 {
				return usage("unexpected argument %q", c.Args[1])
			}
			dir, err := filepath.Abs(append(c.Args, ".")[0])
			if err == nil {
				_, err = os.ReadDir(dir)
			}
			if err != nil {
				return applet.Exit(exitNoDir, err)
			}
			d := &deployer{dir: dir, watch: o.Daemon, tried: map[string]attempt{}, say: func(format string, args ...any) {
				fmt.Fprintf(c.Stderr, "%s: "+format+"\n", append([]any{c.Name}, args...)...)
			}}
			if c.JSON && !o.Daemon { // where only an error is to be
				d.say = func(string, ...any) {}
			}
			s := &Access{Host: o.Socket}
			d.say("Running initial deployment of %q", dir)
			err = s.run(ctx, func(client *cmapi.Client) error { return d.deploy(ctx, client) })
			if !o.Daemon {
				return err
			}
			d.say("Running in daemon mode. Continuously monitoring %q", dir)
			for said := error(nil); ; {
				if err != nil && (said == nil || err.Error() != said.Error()) {
					d.say("%v", err)
				}
				said = err
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(2 * time.Second):
				}
				err = s.run(ctx, func(client *cmapi.Client) error { return d.deploy(ctx, client) })
			}
		},
	}
}

// deployer makes containers of the files in a directory.
type deployer struct {
	dir   string
	watch bool               // to be called again, also for what comes below dir
	begun bool               // the files that were there at the start have been looked at
	tried map[string]attempt // by file
	say   func(format string, args ...any)
}

// attempt is the last one to deploy a file.
type attempt struct {
	content
	initial bool          // the file was there at the start
	pause   time.Duration // before the next one, 0 if it is deployed
	next    time.Time
}

// content is that of a file; one that is written again is new.
type content struct {
	sum  [sha256.Size]byte
	time int64
}

// deploy deploys the files that are new or were written since it did so before. At the start those below dir do not count.
func (d *deployer) deploy(ctx context.Context, client *cmapi.Client) error {
	dir, err := filepath.EvalSymlinks(d.dir)
	if err != nil {
		return err
	}
	var failed []error
	found, whole := 0, true
	there := map[string]bool{}
	err = filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil && file == dir:
			return err
		case err != nil: // is nothing to the others
			failed, whole = append(failed, err), false
			return nil
		case entry.IsDir() && file != dir && !d.watch:
			return fs.SkipDir
		case entry.IsDir() || filepath.Ext(file) != ".json":
			return nil
		}
		now, data, err := read(file)
		if err == nil && data == nil {
			return nil
		}
		top := filepath.Dir(file) == dir
		if top {
			found++
		}
		if err != nil {
			failed = append(failed, err)
			there[file] = !errors.Is(err, fs.ErrNotExist)
			return nil
		}
		there[file] = true
		last, known := d.tried[file]
		again := known && now == last.content
		if again && (last.pause == 0 || time.Now().Before(last.next)) {
			return nil
		}
		next := attempt{content: now, initial: !d.begun || again && last.initial}
		if d.begun || top {
			err = d.file(ctx, client, file, data, !again, next.initial)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", file, err))
			next.pause = time.Second
			if again {
				next.pause = min(2*last.pause, time.Minute)
			}
			next.next = time.Now().Add(next.pause)
		}
		d.tried[file] = next
		return ctx.Err()
	})
	if err != nil {
		return errors.Join(append(failed, err)...)
	}
	if found == 0 && !d.begun {
		failed = append(failed, fmt.Errorf("No manifests found in %s", d.dir)) // as scripts know it
	}
	if whole { // who comes back is new
		maps.DeleteFunc(d.tried, func(file string, _ attempt) bool { return !there[file] })
	}
	d.begun = true
	return errors.Join(failed...)
}

// read reads what is a file, also behind a link; else data is nil.
func read(file string) (c content, data []byte, err error) {
	fi, err := os.Stat(file)
	if err != nil || !fi.Mode().IsRegular() {
		return c, nil, err
	}
	if data, err = os.ReadFile(file); err != nil {
		return c, nil, err
	}
	return content{sha256.Sum256(data), fi.ModTime().UnixNano()}, data, nil
}

// file deploys one file. A container that is there already is made anew if the file was written since the start; when that is tried
// another time, only if it still is not as wanted.
func (d *deployer) file(ctx context.Context, client *cmapi.Client, file string, data []byte, written, initial bool) error {
	wanted, odd, err := ctrmodel.ParseDescriptor(data)
	if err != nil {
		return err
	}
	if odd != nil {
		d.say("%s: %v", file, odd)
	}
	wanted.Name = cmp.Or(wanted.Name, strings.TrimSuffix(filepath.Base(file), ".json"))
	defaultLog(&wanted.HostConfig.Log.Driver)
	if err := valid(wanted); err != nil {
		return err
	}
	current, err := (&Target{Name: wanted.Name}).find(ctx, client, "")
	switch {
	case ctrmodel.KindOf(err) == ctrmodel.NotFound && err != nil:
	case err != nil:
		return err
	case !initial && (written || ctrmodel.Compare(current, wanted) != ctrmodel.Same):
		if _, err := client.Pull(ctx, wanted.Image.Name, func(ctrmodel.Progress) {}); err != nil {
			return err // with the old container still there
		}
		d.say("Removing [%s]", wanted.Name)
		if err := client.Remove(ctx, current.ID, true, ctrmodel.StopOptions{Timeout: 1, Force: true}); err != nil {
			return err
		}
		current = nil
	default:
		d.say("Already exists [%s]", wanted.Name)
	}
	if current == nil {
		d.say("Creating [%s]", wanted.Name)
		if current, err = client.Create(ctx, wanted); err != nil {
			return err
		}
		d.say("Created [%s]", wanted.Name)
	}
	if current.State.HasProcess() {
		return nil
	}
	d.say("Starting [%s]", wanted.Name)
	if err := client.Start(ctx, current.ID); err != nil {
		return err
	}
	d.say("Started [%s]", wanted.Name)
	return nil
}

// defaultLog has the container log as little as the original's do; elsewhere the default is larger.
func defaultLog(d *ctrmodel.LogDriver) {
	if d.Type = cmp.Or(d.Type, ctrmodel.LogFile); d.Type == ctrmodel.LogFile {
		d.MaxFiles, d.MaxSize = cmp.Or(d.MaxFiles, 2), cmp.Or(d.MaxSize, "1M")
	}
}
