// SPDX-License-Identifier: Apache-2.0

package kantocm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/applet"
	"sdvbox/platform/cmapi"
	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/terminal"
)

// Image is what "images --output json" and "pull --output json" print of each image.
type Image struct {
	Name    string    `json:"name"`
	Digest  string    `json:"digest"`
	Size    int64     `json:"size"`
	Created time.Time `json:"created"`
	Used    bool      `json:"used"`
}

func (s *Access) images() applet.Command {
	return applet.Command{
		Name:    "images",
		Summary: "list the images that are on this device",
		Options: func() any { return &struct{ *Access }{s} },
		Run: func(ctx context.Context, c *applet.Call) error {
			return s.run(ctx, func(client *cmapi.Client) error {
				list, err := client.Images(ctx)
				if err != nil {
					return err
				}
				if c.JSON {
					images := []Image{}
					for _, i := range list {
						images = append(images, Image(i))
					}
					return printJSON(c, images)
				}
				w := tabwriter.NewWriter(c.Stdout, 0, 0, 2, ' ', 0)
				fmt.Fprint(w, "NAME\tDIGEST\tSIZE\tSINCE\tUSED\n")
				for _, i := range list {
					used := map[bool]string{true: "yes", false: "no"}[i.Used]
					fmt.Fprintf(w, "%s\t%.19s\t%s\t%s\t%s\n", plain(i.Name), i.Digest, bytesText(i.Size), i.Created.Local().Format(time.DateTime), used)
				}
				return w.Flush()
			})
		},
	}
}

func (s *Access) pull() applet.Command {
	type options struct {
		*Access
		Refresh bool `long:"refresh" description:"ask the registry also if the image is here: its name may stand for another one now"`
	}
	return applet.Command{
		Name:        "pull",
		Summary:     "get an image from its registry",
		Description: "An image that is here already is not asked for again. An interrupted pull goes on where it was when it is repeated.",
		Args:        "IMAGE",
		Options:     func() any { return &options{Access: s} },
		Run: func(ctx context.Context, c *applet.Call) error {
			if len(c.Args) != 1 || c.Args[0] == "" {
				return usage("expected one image")
			}
			return s.run(ctx, func(client *cmapi.Client) error {
				pull := client.Pull
				if c.Options.(*options).Refresh {
					pull = client.Refresh
				}
				progress := c.Stderr
				if c.JSON { // where only an error is to be
					progress = io.Discard
				}
				bar := newBar(progress)
				image, err := pull(ctx, c.Args[0], bar.show)
				bar.end()
				switch {
				case err != nil:
					return wrong(err)
				case c.JSON:
					return printJSON(c, Image(image))
				}
				_, err = fmt.Fprintf(c.Stdout, "%s@%s\n", image.Name, image.Digest)
				return err
			})
		},
	}
}

func (s *Access) removeImage() applet.Command {
	return applet.Command{
		Name:    "remove-image",
		Summary: "remove images that no container needs",
		Args:    "IMAGE...",
		Options: func() any { return &struct{ *Access }{s} },
		Run: func(ctx context.Context, c *applet.Call) error {
			if len(c.Args) == 0 || slices.Contains(c.Args, "") {
				return usage("expected an image")
			}
			return s.run(ctx, func(client *cmapi.Client) error {
				var errs []error
				for _, name := range c.Args {
					errs = append(errs, client.RemoveImage(ctx, name))
				}
				return wrong(errors.Join(errs...))
			})
		},
	}
}

// bar shows progress: in one line of a terminal, else a line for each phase.
type bar struct {
	w     io.Writer
	width int // of the terminal, 0 for none
	phase string
	shown time.Time
	begun time.Time
}

func newBar(w io.Writer) *bar {
	b := &bar{w: w, begun: time.Now()}
	if fd, ok := terminal.Of(w); ok {
		b.width = 80
		if size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ); err == nil && size.Col > 0 {
			b.width = int(size.Col)
		}
	}
	return b
}

func (b *bar) show(p ctrmodel.Progress) {
	next := p.Phase != b.phase
	if next {
		b.begun = time.Now()
	}
	switch {
	case b.width > 0 && (next || time.Since(b.shown) > 100*time.Millisecond || p.Done == p.Total):
		b.shown = time.Now()
		fmt.Fprintf(b.w, "\r\x1b[K%s", barLine(p, time.Since(b.begun), b.width-1))
	case b.width == 0 && next:
		fmt.Fprintln(b.w, plain(p.Phase))
	}
	b.phase = p.Phase
}

// barLine is at most width characters.
func barLine(p ctrmodel.Progress, took time.Duration, width int) string {
	text := fmt.Sprintf("%-12s", plain(p.Phase))
	if p.Total <= 0 {
		return fmt.Sprintf("%.*s", width, text)
	}
	numbers := fmt.Sprintf(" %3d %%  %s of %s", 100*p.Done/p.Total, bytesText(p.Done), bytesText(p.Total))
	if took >= time.Second {
		numbers += fmt.Sprintf("  %s/s", bytesText(int64(float64(p.Done)/took.Seconds())))
	}
	if room := width - len(text) - len(numbers) - 2; room >= 10 {
		full := int(int64(room) * min(p.Done, p.Total) / p.Total)
		text += "[" + strings.Repeat("#", full) + strings.Repeat(" ", room-full) + "]"
	}
	return fmt.Sprintf("%.*s", width, text+numbers)
}

func (b *bar) end() {
	if b.width > 0 && b.phase != "" {
		fmt.Fprint(b.w, "\r\x1b[K")
	}
}

// bytesText is a size for people.
func bytesText(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/(1<<10), 0
	for value >= 1000 && unit < 4 {
		value, unit = value/(1<<10), unit+1
	}
	return fmt.Sprintf("%.1f %ciB", value, "kMGTP"[unit])
}
