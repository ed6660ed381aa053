// SPDX-License-Identifier: Apache-2.0

package ctrlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/ctrmodel"
)

// attachedChunks may wait for somebody who is attached.
const attachedChunks = 32

// attachment is somebody who gets the output as it comes.
type attachment struct {
	chunks chan chunk
	gone   chan struct{} // closed by who is attached
	ended  chan struct{} // closed by the console
	err    error         // why it was ended
}

type chunk struct {
	stream int
	data   []byte
}

// Attach connects streams with the process that runs, or with the next one, until its output ends. It calls attached once nothing
// of the output can be missed any more. Whoever does not read is cut off, rather than that the container has to wait.
func (c *Console) Attach(ctx context.Context, s ctrmodel.Streams, attached func()) error {
	a := &attachment{chunks: make(chan chunk, attachedChunks), gone: make(chan struct{}), ended: make(chan struct{})}
	c.mu.Lock()
	if c.removed {
		c.mu.Unlock()
		return ctrmodel.Errorf(ctrmodel.NotFound, "the container is removed")
	}
	c.attached[a] = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.attached, a)
		c.mu.Unlock()
		close(a.gone)
	}()
	if attached != nil {
		attached()
	}
	failed := make(chan error, 1)
	if s.Stdin != nil && c.cfg.Stdin {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			if err := c.feed(ctx, s.Stdin); err != nil {
				failed <- err
			}
		}()
	}
	out := [2]io.Writer{s.Stdout, s.Stderr}
	write := func(k chunk) error {
		if out[k.stream] == nil {
			return nil
		}
		_, err := out[k.stream].Write(k.data)
		return err
	}
	for {
		select {
		case k := <-a.chunks:
			if err := write(k); err != nil {
				return err
			}
		case err := <-failed:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-a.ended:
			for {
				select {
				case k := <-a.chunks:
					if err := write(k); err != nil {
						return err
					}
				default:
					return a.err
				}
			}
		}
	}
}

// feed copies what is typed to the process.
func (c *Console) feed(ctx context.Context, in io.Reader) error {
	f, err := c.openInput(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	// A process that does not read must not keep who is attached from going.
	defer context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })()
	_, err = io.Copy(f, in)
	switch {
	case ctx.Err() != nil, errors.Is(err, unix.EPIPE): // the process may have said something before it ended
		return nil
	case err != nil:
		return fmt.Errorf("input: %w", err)
	case c.cfg.StdinEnded != nil:
		return c.cfg.StdinEnded()
	}
	return nil
}

// openInput waits until somebody is there to read. Before that, whatever is written is lost when it is closed.
func (c *Console) openInput(ctx context.Context) (*os.File, error) {
	for {
		f, err := os.OpenFile(c.paths.Stdin, os.O_WRONLY|unix.O_NONBLOCK, 0)
		if !errors.Is(err, unix.ENXIO) && !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// fanOut gives output to all who are attached.
func (c *Console) fanOut(stream int, data []byte) {
	c.mu.Lock()
	var all []*attachment
	for a := range c.attached {
		all = append(all, a)
	}
	c.mu.Unlock()
	if len(all) == 0 {
		return
	}
	k := chunk{stream, append([]byte(nil), data...)}
	for _, a := range all {
		select {
		case a.chunks <- k:
			continue
		default:
		}
		var late <-chan time.Time
		if !c.cfg.Patient {
			late = time.After(c.patience)
		}
		select {
		case a.chunks <- k:
		case <-a.gone:
		case <-a.ended:
		case <-late:
			c.end(a, ctrmodel.Errorf(ctrmodel.ResourceExhausted, "cut off: the output was not read for %v", c.patience))
		}
	}
}

// end ends an attachment, after what it has got so far.
func (c *Console) end(a *attachment, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.attached[a] {
		delete(c.attached, a)
		a.err = err
		close(a.ended)
	}
}

func (c *Console) endAttached(err error) {
	c.mu.Lock()
	var all []*attachment
	for a := range c.attached {
		all = append(all, a)
	}
	c.mu.Unlock()
	for _, a := range all {
		c.end(a, err)
	}
}
