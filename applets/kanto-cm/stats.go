// SPDX-License-Identifier: Apache-2.0

package kantocm

import (
	"context"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"sdvbox/platform/applet"
	"sdvbox/platform/cmapi"
	"sdvbox/platform/ctrmodel"
)

// Usage is what "stats --output json" prints of each container.
type Usage struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	Time       time.Time `json:"time"`
	CPUPercent float64   `json:"cpu_percent"` // of all CPUs together
	Memory     uint64    `json:"memory"`
	MemoryMax  uint64    `json:"memory_max"`
	ReadBytes  uint64    `json:"read_bytes"`
	WriteBytes uint64    `json:"write_bytes"`
	NetRead    uint64    `json:"net_read_bytes"`
	NetWritten uint64    `json:"net_write_bytes"`
	PIDs       uint64    `json:"pids"`
}

func (s *Access) stats() applet.Command {
	type options struct {
		Target
		Follow   bool          `short:"f" long:"follow" description:"again and again"`
		Interval time.Duration `long:"interval" value-name:"TIME" description:"over which the use of CPUs is measured"`
	}
	return applet.Command{
		Name:        "stats",
		Summary:     "show what containers use",
		Description: "Without an id, of all that run.",
		Args:        "[ID...]",
		Options:     func() any { return &options{Target: Target{Access: s}, Interval: time.Second} },
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*options)
			if o.Interval <= 0 {
				return usage("interval %v: expected a time above 0", o.Interval)
			}
			if slices.Contains(c.Args, "") {
				return usage("expected ids that are not empty")
			}
			return s.run(ctx, func(client *cmapi.Client) error {
				ids := c.Args
				if o.Name != "" {
					found, err := o.find(ctx, client, "")
					if err != nil {
						return err
					}
					ids = append(ids, found.ID)
				}
				before, err := client.Stats(ctx, ids...)
				if err != nil {
					return missing(err)
				}
				for {
					select {
					case <-ctx.Done():
						return ctx.Err()
					case <-time.After(o.Interval):
					}
					now, err := client.Stats(ctx, ids...)
					if err != nil {
						return missing(err)
					}
					list, err := client.List(ctx)
					if err != nil {
						return err
					}
					if err := showStats(c, usages(before, now, list)); err != nil || !o.Follow {
						return err
					}
					before = now
				}
			})
		},
	}
}

// usages puts together what was measured twice.
func usages(before, now []ctrmodel.Stats, list []*ctrmodel.Container) []Usage {
	names := map[string]string{}
	for _, c := range list {
		names[c.ID] = c.Name
	}
	old := map[string]ctrmodel.Stats{}
	for _, s := range before {
		old[s.ID] = s
	}
	all := []Usage{}
	for _, s := range now {
		u := Usage{ID: s.ID, Name: names[s.ID], Time: s.Time, Memory: s.Memory, MemoryMax: s.MemoryMax, ReadBytes: s.ReadBytes,
			WriteBytes: s.WriteBytes, NetRead: s.NetRead, NetWritten: s.NetWritten, PIDs: s.PIDs}
		if b, ok := old[s.ID]; ok && s.SystemCPU > b.SystemCPU && s.CPU >= b.CPU {
			u.CPUPercent = 100 * float64(s.CPU-b.CPU) / float64(s.SystemCPU-b.SystemCPU)
		}
		all = append(all, u)
	}
	return all
}

func showStats(c *applet.Call, all []Usage) error {
	if c.JSON {
		return printJSON(c, all)
	}
	return writeStats(c.Stdout, all)
}

func writeStats(out io.Writer, all []Usage) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "NAME\tID\tCPU\tMEMORY\tLIMIT\tREAD\tWRITTEN\tNET IN\tNET OUT\tPIDS\n")
	for _, u := range all {
		fmt.Fprintf(w, "%s\t%s\t%.1f %%\t%s\t%s\t%s\t%s\t%s\t%s\t%d\n", plain(u.Name), u.ID, u.CPUPercent, bytesText(int64(u.Memory)), bytesText(int64(u.MemoryMax)),
			bytesText(int64(u.ReadBytes)), bytesText(int64(u.WriteBytes)), bytesText(int64(u.NetRead)), bytesText(int64(u.NetWritten)), u.PIDs)
	}
	return w.Flush()
}
