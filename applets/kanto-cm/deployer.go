// SPDX-License-Identifier: Apache-2.0

package kantocm

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
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
		Socket string `short:"s" long:"socket-cm" value-name:"FILE" description:"socket of the container agent"`
		Daemon bool   `short:"d" long:"daemon" description:"go on, and deploy files that are new or change"`
		MQTT   bool   `short:"m" long:"mqtt" description:"has no effect: the container agent coordinates updates itself"`
		Host   string `long:"mqtt-broker-host" hidden:"true"`
		Port   string `long:"mqtt-broker-port" hidden:"true"`
		Topic  string `long:"mqtt-topic" hidden:"true"`
	}
	return applet.Command{
		Name:    "kanto-auto-deployer",
		Summary: "make the containers that the files of a directory describe",
		Description: `Asks the container agent to make and start the container of each *.json file in DIR that is not there, and to start each that does not run. One that is there stays as it is, unless with --daemon its file changes.

For its own directories the container agent does the same by itself, and better: see kanto-cm deploy.`,
		Args: "[DIR]",
		Exit: []applet.ExitCode{
			{Code: exitDown, Meaning: "the container agent does not answer"}, {Code: exitNoDir, Meaning: "there is no such directory"},
		},
		Options: func() any { return &options{Socket: defaultHost} },
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*options)
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
			d := &deployer{dir: dir, tried: map[string]attempt{}, say: func(format string, args ...any) {
				fmt.Fprintf(c.Stderr, "%s: "+format+"\n", append([]any{c.Name}, args...)...)
			}}
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
	begun bool               // the files that were there at the start have been looked at
	tried map[string]attempt // by file
	say   func(format string, args ...any)
}

// attempt is the last one to deploy a file.
type attempt struct {
	sum   [sha256.Size]byte // of its contents
	pause time.Duration     // before the next one, 0 if it is deployed
	next  time.Time
}

// deploy deploys the files that are new or have changed since it did so before.
func (d *deployer) deploy(ctx context.Context, client *cmapi.Client) error {
	var failed []error
	found := false
	dir, err := filepath.EvalSymlinks(d.dir)
	if err != nil {
		return err
	}
	err = filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(file) != ".json" {
			return err
		}
		found = true
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		now, last := attempt{sum: sha256.Sum256(data)}, d.tried[file]
		if now.sum == last.sum && (last.pause == 0 || time.Now().Before(last.next)) {
			return nil
		}
		if err := d.file(ctx, client, file, data); err != nil {
			failed = append(failed, fmt.Errorf("%s: %v", file, err))
			now.pause = time.Second
			if now.sum == last.sum {
				now.pause = min(2*last.pause, time.Minute)
			}
			now.next = time.Now().Add(now.pause)
		}
		d.tried[file] = now
		return ctx.Err()
	})
	if err == nil && !found {
		return fmt.Errorf("No manifests found in %s", d.dir) // as scripts know it
	}
	d.begun = d.begun || err == nil
	return errors.Join(append(failed, err)...)
}

// file deploys one file. A container that is there already is made anew only if the file has come or changed since the start.
func (d *deployer) file(ctx context.Context, client *cmapi.Client, file string, data []byte) error {
	wanted, odd, err := ctrmodel.ParseDescriptor(data)
	if err != nil {
		return err
	}
	if odd != nil {
		d.say("%s: %v", file, odd)
	}
	wanted.Name = cmp.Or(wanted.Name, strings.TrimSuffix(filepath.Base(file), ".json"))
	if err := valid(wanted); err != nil {
		return err
	}
	current, err := (&Target{Name: wanted.Name}).find(ctx, client, "")
	switch {
	case ctrmodel.KindOf(err) == ctrmodel.NotFound && err != nil:
	case err != nil:
		return err
	case d.begun && ctrmodel.Compare(current, wanted) != ctrmodel.Same:
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
