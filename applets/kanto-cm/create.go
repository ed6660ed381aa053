// SPDX-License-Identifier: Apache-2.0

package kantocm

import (
	"context"
	"fmt"
	"io"
	"os"
	"reflect"

	"sdvbox/platform/applet"
	"sdvbox/platform/cmapi"
	"sdvbox/platform/ctrmodel"
)

const maxDescription = 2 << 20 // more than is accepted

type createOptions struct {
	Name              string   `short:"n" long:"name" value-name:"NAME" description:"name of the container; default: its id"`
	TTY               bool     `long:"t" description:"with a terminal"`
	Interactive       bool     `long:"i" description:"keep standard input open"`
	Privileged        bool     `long:"privileged" description:"with all devices and capabilities of the host"`
	RestartPolicy     string   `long:"rp" value-name:"POLICY" description:"when it is restarted: no, always, unless-stopped or on-failure; default: unless-stopped"`
	RetryCount        int64    `long:"rp-cnt" value-name:"N" description:"how many restarts on-failure tries, 0 for no limit"`
	RetryTimeout      int64    `long:"rp-to" value-name:"SECONDS" description:"the longest pause between restarts of on-failure"`
	Devices           list     `long:"devices" value-name:"HOST:CONTAINER[:rwm]" description:"devices of the host, with commas"`
	Ports             list     `long:"ports" value-name:"[IP:]HOST[-END]:CONTAINER[/PROTO]" description:"ports that the host listens on, with commas"`
	Network           string   `long:"network" choice:"bridge" choice:"host" choice:"none" description:"network: that of containers, that of the host, or only a loopback"`
	ExtraHosts        list     `long:"hosts" value-name:"NAME:ADDRESS" description:"lines for the hosts file, with commas; also NAME:host_ip, NAME:host_ip_INTERFACE and NAME:container_HOSTNAME"`
	ExtraCapabilities list     `long:"cap-add" value-name:"CAP_NAME" description:"further capabilities, with commas"`
	Mounts            list     `long:"mp" value-name:"SOURCE:DESTINATION[:MODE]" description:"directories and files of the host, with commas; the mode is ro or how mounts spread"`
	Env               []string `long:"e" value-name:"NAME=VALUE" description:"environment; NAME alone removes what the image sets"`
	LogDriver         string   `long:"log-driver" choice:"json-file" choice:"none" description:"where the output goes"`
	LogMaxFiles       int64    `long:"log-max-files" value-name:"N" description:"how many log files there are at most"`
	LogMaxSize        string   `long:"log-max-size" value-name:"SIZE" description:"size at which the next log file is begun"`
	LogPath           string   `long:"log-path" value-name:"DIR" description:"where the log files are, in a directory named as the id"`
	LogMode           string   `long:"log-mode" choice:"blocking" choice:"non-blocking" description:"whether the container waits for its log"`
	LogMaxBuffer      string   `long:"log-max-buffer-size" value-name:"SIZE" description:"what non-blocking holds back"`
	Memory            string   `short:"m" long:"memory" value-name:"SIZE" description:"most memory, as 64M"`
	MemoryReservation string   `long:"memory-reservation" value-name:"SIZE" description:"memory to shrink to when the host is short of it"`
	MemorySwap        size     `long:"memory-swap" value-name:"SIZE" description:"most memory and swap together, -1 for no limit"`
	Keys              list     `long:"dec-keys" value-name:"FILE[:PASSWORD]" description:"keys for an encrypted image, with commas"`
	Recipients        list     `long:"dec-recipients" value-name:"PROTOCOL:FILE" description:"certificates for an encrypted image, with commas"`
	File              string   `short:"f" long:"file" value-name:"FILE" description:"take all of it from a JSON file, - for standard input"`
	*Access
}

func (s *Access) newCreateOptions() *createOptions {
	return &createOptions{
		RetryTimeout: 30, Network: "bridge", LogDriver: "json-file", LogMaxFiles: 2, LogMaxSize: "100M",
		LogMode: "blocking", LogMaxBuffer: "1M", Access: s,
	}
}

func (s *Access) create() applet.Command {
	return applet.Command{
		Name:        "create",
		Summary:     "make a container from an image, which is pulled if it is not here, and print its id",
		Description: `Options go before the image. What follows the image replaces the command in it.`,
		Args:        "IMAGE [COMMAND [ARGUMENT...]]",
		Ahead:       true,
		Options:     func() any { return s.newCreateOptions() },
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*createOptions)
			wanted, err := o.container(ctx, c)
			if err != nil {
				return err
			}
			if err := valid(wanted); err != nil {
				return applet.Exit(exitUsage, err)
			}
			return s.run(ctx, func(client *cmapi.Client) error {
				made, err := client.Create(ctx, wanted)
				if err != nil {
					return wrong(err)
				}
				if c.JSON {
					return printJSON(c, made)
				}
				_, err = fmt.Fprintln(c.Stdout, made.ID)
				return err
			})
		},
	}
}

// valid is nil for a container that could be.
func valid(wanted *ctrmodel.Container) error {
	c := wanted.Clone()
	c.Defaults(func() string { return "id" })
	return c.Validate()
}

// container is what the options and arguments, or a file, describe.
func (o *createOptions) container(ctx context.Context, c *applet.Call) (*ctrmodel.Container, error) {
	if o.File != "" {
		return o.read(ctx, c)
	}
	if len(c.Args) == 0 {
		return nil, usage("expected an image")
	}
	return o.describe(c.Args[0], c.Args[1:])
}

func (o *createOptions) describe(image string, command []string) (*ctrmodel.Container, error) {
	w := &ctrmodel.Container{Name: o.Name}
	w.Image.Name = image
	if len(o.Keys)+len(o.Recipients) > 0 {
		w.Image.Decrypt = &ctrmodel.Decrypt{Keys: o.Keys, Recipients: o.Recipients}
	}
	w.Config = ctrmodel.Config{Env: some(o.Env), Cmd: some(command)}
	w.IOConfig.TTY, w.IOConfig.OpenStdin = o.TTY, o.Interactive
	h := &w.HostConfig
	h.Privileged, h.NetworkMode, h.ExtraHosts, h.ExtraCapabilities = o.Privileged, o.Network, some(o.ExtraHosts), some(o.ExtraCapabilities)
	h.RestartPolicy.Type = o.RestartPolicy
	if o.RestartPolicy == ctrmodel.RestartOnFailure {
		h.RestartPolicy.MaxRetries, h.RestartPolicy.RetryTimeout = o.RetryCount, ctrmodel.Seconds(o.RetryTimeout)
	}
	h.Log = ctrmodel.Log{
		Driver: ctrmodel.LogDriver{Type: o.LogDriver, MaxFiles: o.LogMaxFiles, MaxSize: o.LogMaxSize, RootDir: o.LogPath},
		Mode:   ctrmodel.LogMode{Mode: o.LogMode, MaxBufferSize: o.LogMaxBuffer},
	}
	h.Resources = ctrmodel.Resources{Memory: o.Memory, MemoryReservation: o.MemoryReservation, MemorySwap: string(o.MemorySwap)}
	var err error
	if h.Devices, err = parse(o.Devices, ctrmodel.ParseDevice); err != nil {
		return nil, err
	}
	if h.Ports, err = parse(o.Ports, ctrmodel.ParsePort); err != nil {
		return nil, err
	}
	if w.Mounts, err = parse(o.Mounts, ctrmodel.ParseMount); err != nil {
		return nil, err
	}
	return w, nil
}

// some is nil if there is nothing in a list, however that came about.
func some(l []string) []string {
	if len(l) == 0 {
		return nil
	}
	return l
}

func parse[T any](texts []string, one func(string) (T, error)) ([]T, error) {
	var all []T
	for _, text := range texts {
		v, err := one(text)
		if err != nil {
			return nil, applet.Exit(exitUsage, err)
		}
		all = append(all, v)
	}
	return all, nil
}

// read takes the description from a file.
func (o *createOptions) read(ctx context.Context, c *applet.Call) (*ctrmodel.Container, error) {
	given, err := o.describe("", c.Args)
	if err != nil {
		return nil, err
	}
	if nothing, _ := o.newCreateOptions().describe("", nil); !reflect.DeepEqual(given, nothing) {
		return nil, usage("expected either --file or a description on the command line, not both")
	}
	file := c.Stdin
	if o.File != "-" {
		f, err := os.Open(o.File)
		if err != nil {
			return nil, fmt.Errorf("description of the container: %w", err)
		}
		defer f.Close()
		file = f
	}
	type result struct {
		data []byte
		err  error
	}
	read := make(chan result, 1)
	go func() { // who types it may be interrupted
		data, err := io.ReadAll(io.LimitReader(file, maxDescription))
		read <- result{data, err}
	}()
	var data []byte
	select {
	case r := <-read:
		if r.err != nil {
			return nil, fmt.Errorf("description of the container: %w", r.err)
		}
		data = r.data
	case <-ctx.Done():
		return nil, applet.Exit(exitInterrupted, nil)
	}
	w, odd, err := ctrmodel.ParseDescriptor(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.File, err)
	}
	if odd != nil {
		fmt.Fprintf(c.Stderr, "%s: %s: %v\n", c.Name, o.File, odd)
	}
	return w, nil
}
