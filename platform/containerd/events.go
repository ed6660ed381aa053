// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"sdvbox/platform/grpc"
	"sdvbox/platform/protobuf"
)

// Event is something that has happened. Event is a pointer to one of the types below, nil if it is of another type.
type Event struct {
	Time  time.Time
	Topic string // like /tasks/exit
	Event any
}

// The events.
type (
	// TaskCreate says that a task has been created.
	TaskCreate struct {
		ContainerID string `pb:"1"`
		Pid         uint32 `pb:"6"`
	}
	// TaskStart says that a task has been started.
	TaskStart struct {
		ContainerID string `pb:"1"`
		Pid         uint32 `pb:"2"`
	}
	// TaskExit says that a process has ended: the task itself if ID is the container's.
	TaskExit struct {
		ContainerID string              `pb:"1"`
		ID          string              `pb:"2"`
		Pid         uint32              `pb:"3"`
		ExitStatus  uint32              `pb:"4"`
		ExitedAt    *protobuf.Timestamp `pb:"5"`
	}
	// TaskDelete says that a process has been deleted, the task itself if ID is "". Now and then there is none for a
	// task: the shim, which says it, has ended before it was heard.
	TaskDelete struct {
		ContainerID string              `pb:"1"`
		Pid         uint32              `pb:"2"`
		ExitStatus  uint32              `pb:"3"`
		ExitedAt    *protobuf.Timestamp `pb:"4"`
		ID          string              `pb:"5"`
	}
	// TaskOOM says that the kernel has killed a process of the container for want of memory.
	TaskOOM struct {
		ContainerID string `pb:"1"`
	}
	// TaskExecAdded says that a process has been added.
	TaskExecAdded struct {
		ContainerID string `pb:"1"`
		ExecID      string `pb:"2"`
	}
	// TaskExecStarted says that an added process has been started.
	TaskExecStarted struct {
		ContainerID string `pb:"1"`
		ExecID      string `pb:"2"`
		Pid         uint32 `pb:"3"`
	}
	// TaskPaused says that a container has been frozen.
	TaskPaused struct {
		ContainerID string `pb:"1"`
	}
	// TaskResumed says that a container has been thawed.
	TaskResumed struct {
		ContainerID string `pb:"1"`
	}
	// ContainerDelete says that a container has been deleted.
	ContainerDelete struct {
		ID string `pb:"1"`
	}
	// ImageDelete says that the name of an image has been deleted.
	ImageDelete struct {
		Name string `pb:"1"`
	}
)

func decodeEvent(a *protobuf.Any) (any, error) {
	var e any
	switch a.TypeURL[strings.LastIndexByte(a.TypeURL, '/')+1:] {
	case "containerd.events.TaskCreate":
		e = &TaskCreate{}
	case "containerd.events.TaskStart":
		e = &TaskStart{}
	case "containerd.events.TaskExit":
		e = &TaskExit{}
	case "containerd.events.TaskDelete":
		e = &TaskDelete{}
	case "containerd.events.TaskOOM":
		e = &TaskOOM{}
	case "containerd.events.TaskExecAdded":
		e = &TaskExecAdded{}
	case "containerd.events.TaskExecStarted":
		e = &TaskExecStarted{}
	case "containerd.events.TaskPaused":
		e = &TaskPaused{}
	case "containerd.events.TaskResumed":
		e = &TaskResumed{}
	case "containerd.events.ContainerDelete":
		e = &ContainerDelete{}
	case "containerd.services.images.v1.ImageDelete":
		e = &ImageDelete{}
	default:
		return nil, nil
	}
	return e, protobuf.Unmarshal(a.Value, e)
}

// Subscription is a stream of events. It has to be closed.
type Subscription struct {
	stream *grpc.ClientStream
	marker string
	first  *envelope
}

type envelope struct {
	Time  *protobuf.Timestamp `pb:"1"`
	Topic string              `pb:"3"`
	Event *protobuf.Any       `pb:"4"`
}

// Subscribe begins to receive the events of the client's namespace that one of the filters matches, like
// topic=="/tasks/exit", or all if there is none. When it returns, no further event is missed.
func (c *Client) Subscribe(ctx context.Context, filters ...string) (*Subscription, error) {
	// containerd does not say when it has begun. So an event of our own is sent until it comes back.
	s := &Subscription{marker: "/sdvbox/subscribed/" + strings.ToLower(rand.Text())}
	namespace := fmt.Sprintf("namespace==%q", c.conn.namespace)
	req := filtered{[]string{fmt.Sprintf("%s,topic==%q", namespace, s.marker)}}
	if len(filters) == 0 {
		req.Filters = []string{namespace}
	}
	for _, f := range filters {
		req.Filters = append(req.Filters, namespace+","+f)
	}
	var err error
	if s.stream, err = c.conn.receive(ctx, "events.v1.Events/Subscribe", &req); err != nil {
		return nil, err
	}
	first := make(chan error, 1)
	s.first = &envelope{}
	go func() { first <- s.stream.Recv(s.first) }()
	for wait := time.Millisecond; ; wait *= 2 {
		if err = c.publish(ctx, s.marker); err == nil {
			select {
			case err = <-first:
				if err == nil {
					return s, nil
				}
				s.Close()
				return nil, wrapEnd(err)
			case <-time.After(wait):
				continue
			}
		}
		s.Close()
		<-first
		return nil, err
	}
}

func (c *Client) publish(ctx context.Context, topic string) error {
	type request struct {
		Topic string        `pb:"1"`
		Event *protobuf.Any `pb:"2"`
	}
	return c.conn.call(ctx, "events.v1.Events/Publish", &request{topic, &protobuf.Any{TypeURL: "google.protobuf.Empty"}}, &empty{})
}

// Next waits for the next event.
func (s *Subscription) Next() (Event, error) {
	for {
		e := s.first
		if s.first = nil; e == nil {
			e = &envelope{}
			if err := s.stream.Recv(e); err != nil {
				return Event{}, wrapEnd(err)
			}
		}
		if e.Topic == s.marker {
			continue
		}
		event, err := decodeEvent(orZero(e.Event))
		if err != nil {
			return Event{}, wrap(fmt.Errorf("event %s: %w", e.Topic, err))
		}
		return Event{e.Time.Time(), e.Topic, event}, nil
	}
}

// Close ends the subscription.
func (s *Subscription) Close() error { return s.stream.Close() }
