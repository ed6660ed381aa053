// SPDX-License-Identifier: Apache-2.0

package ctrtwin

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/mqttbus"
	"sdvbox/platform/twin"
)

const (
	maxWork     = 128         // operations under way or waiting for one of the same container
	maxAnswers  = 256         // that are remembered
	redelivered = time.Minute // how long the same message counts as the same order
)

// work is what has been asked for.
type work struct {
	lines   map[string][]func() // what waits for the operation under way, by container
	size    int
	answers []*answer // the latest, the oldest first
	nobody  int       // makes keys for operations that wait for no other
}

func newWork() work { return work{lines: map[string][]func(){}} }

// answer is what became of an operation.
type answer struct {
	id      string // of the correlation
	feature string // whose operations undo each other; empty: none do
	sum     [sha256.Size]byte
	at      time.Time
	said    func() // again; nil: under way, or nobody wants to know
}

// forget takes no message for the same as an earlier one any more.
func (w *work) forget() { w.answers = nil }

// remember returns the answer to an operation, and whether it is one that there has been already. It has if the last message
// with this correlation id was the same, and the last one of its feature: brokers, and those who carry messages to them, deliver
// some twice. Who uses an id for several operations in turn is served nevertheless. Of a message that is said to be delivered
// again it does not matter what has come in between.
func (w *work) remember(id, feature string, msg *mqttbus.Message, now time.Time) (a *answer, again bool) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s", msg.Topic, msg.Payload))
	for i := len(w.answers) - 1; i >= 0; i-- {
		a := w.answers[i]
		if a.id == id && a.sum == sum && now.Sub(a.at) < redelivered {
			return a, true
		}
		if a.id == id || feature != "" && a.feature == feature && !msg.Duplicate {
			break
		}
	}
	if len(w.answers) == maxAnswers {
		w.answers = w.answers[1:]
	}
	a = &answer{id: id, feature: feature, sum: sum, at: now}
	w.answers = append(w.answers, a)
	return a, false
}

// call does what an operation is for. The result may be nil.
type call func(ctx context.Context) (result any, err error)

// operate takes a message to one of the features.
func (t *Twin) operate(ctx context.Context, msg *mqttbus.Message) {
	op, err := t.who.Thing.Decode(msg.Topic, msg.Payload)
	if err == nil {
		err = t.missing(op)
	}
	var f *twin.Failure
	switch {
	case errors.Is(err, twin.ErrForeign):
		return
	case errors.As(err, &f):
		t.Log.Warn("operation is refused", "topic", msg.Topic, "error", err)
		if op.Answer {
			t.reply(op.Refuse(f))
		}
		return
	case err != nil:
		t.Log.Warn("message cannot be understood", "topic", msg.Topic, "error", err)
		return
	}
	feature := op.Feature
	if feature == ContainerFactory { // no container that it makes undoes another one
		feature = ""
	}
	a, again := t.work.remember(op.CorrelationID, feature, msg, time.Now())
	if again {
		if a.said != nil {
			a.said()
		}
		return
	}
	end := func(result any, err error) {
		if err != nil {
			t.Log.Warn("operation has failed", "feature", op.Feature, "operation", op.Name, "error", err)
		}
		if op.Answer {
			a.said = func() { t.reply(op.Reply(result, err)) }
			a.said()
		}
	}
	do, line, err := t.understand(ctx, op)
	if err != nil || do == nil {
		end(nil, err)
		return
	}
	if t.work.size >= maxWork {
		end(nil, errors.New("too many operations wait for their turn, try again later"))
		return
	}
	t.Log.Info("operation", "feature", op.Feature, "operation", op.Name)
	t.begin(ctx, line, func() {
		t.others.Go(func() {
			result, err := do(ctx)
			t.do(ctx, func() {
				end(result, err)
				t.next(line)
			})
		})
	})
}

// begin starts something when what is before it in its line has ended.
func (t *Twin) begin(ctx context.Context, line string, start func()) {
	w := &t.work
	w.size++
	waiting, busy := w.lines[line]
	if busy {
		w.lines[line] = append(waiting, start)
		return
	}
	w.lines[line] = nil
	start()
}

// next starts the next one of a line.
func (t *Twin) next(line string) {
	w := &t.work
	w.size--
	waiting := w.lines[line]
	if len(waiting) == 0 {
		delete(w.lines, line)
		return
	}
	w.lines[line] = waiting[1:]
	waiting[0]()
}

func (t *Twin) reply(topic string, data []byte, err error) {
	t.put(outgoing{topic: topic, data: data, keep: true}, err)
}

// missing says that there is no such feature.
func (t *Twin) missing(op twin.Operation) error {
	id, ok := strings.CutPrefix(op.Feature, containerPrefix)
	if ok && t.has(ContainerFactory) && t.containers[id] != nil || t.has(op.Feature) {
		return nil
	}
	return twin.Invalid("there is no feature %.100q", op.Feature)
}

// understand returns what an operation is to do, and after which others: those with the same line. Without anything to do it
// has been done.
func (t *Twin) understand(ctx context.Context, op twin.Operation) (do call, line string, err error) {
	switch op.Feature {
	case ContainerFactory:
		t.work.nobody++
		do, err = t.factory(op)
		return do, fmt.Sprint(t.work.nobody), err
	case SoftwareUpdatable:
		return nil, "", t.order(op)
	case Metrics:
		return nil, "", t.request(ctx, op)
	}
	do, err = t.container(op)
	return do, op.Feature, err
}

func unknown(op twin.Operation) error {
	return twin.NotFound("feature %s has no operation %.40q", op.Feature, op.Name)
}

// value reads what is given to an operation.
func value(op twin.Operation, into any) error {
	if op.Value == nil {
		return twin.Invalid("value is missing")
	}
	err := json.Unmarshal(op.Value, into)
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong) && wrong.Field != "":
		return twin.Invalid("%s: unexpected %s", wrong.Field, wrong.Value)
	case errors.As(err, &wrong):
		return twin.Invalid("value: unexpected %s", wrong.Value)
	case err != nil:
		return twin.Invalid("value: %v", err)
	}
	return nil
}

// factory makes containers.
func (t *Twin) factory(op twin.Operation) (call, error) {
	var v struct {
		ImageRef string         `json:"imageRef"`
		Start    bool           `json:"start"`
		Name     string         `json:"name"`
		Config   *configuration `json:"config"`
	}
	switch op.Name {
	default:
		return nil, unknown(op)
	case "create", "createWithConfig":
	}
	if err := value(op, &v); err != nil {
		return nil, err
	}
	if op.Name == "create" {
		v.Name, v.Config = "", nil
	}
	return func(ctx context.Context) (any, error) {
		if v.ImageRef == "" {
			return nil, errors.New("imageRef is missing")
		}
		c, err := t.engine.Create(ctx, v.Config.container(v.Name, v.ImageRef))
		if err != nil {
			return nil, err
		}
		if v.Start {
			if err := t.engine.Start(ctx, c.ID); err != nil {
				t.Log.Warn("container does not start", "container", c.ID, "error", err)
			}
		}
		return c.ID, nil
	}, nil
}

// container does something with a container.
func (t *Twin) container(op twin.Operation) (call, error) {
	id := strings.TrimPrefix(op.Feature, containerPrefix)
	e := t.engine
	var do func(ctx context.Context) error
	var err error
	switch op.Name {
	case "start":
		do = func(ctx context.Context) error { return e.Start(ctx, id) }
	case "pause":
		do = func(ctx context.Context) error { return e.Pause(ctx, id) }
	case "resume":
		do = func(ctx context.Context) error { return e.Unpause(ctx, id) }
	case "stop":
		do = func(ctx context.Context) error { return e.Stop(ctx, id, ctrmodel.StopOptions{}) }
	case "stopWithOptions":
		var v struct {
			Force   bool   `json:"force"`
			Timeout int64  `json:"timeout"`
			Signal  string `json:"signal"`
		}
		err = value(op, &v)
		do = func(ctx context.Context) error {
			return e.Stop(ctx, id, ctrmodel.StopOptions{Timeout: v.Timeout, Force: v.Force, Signal: v.Signal})
		}
	case "rename":
		var name string
		err = value(op, &name)
		do = func(ctx context.Context) error { return e.Rename(ctx, id, name) }
	case "remove":
		var force bool
		err = value(op, &force)
		do = func(ctx context.Context) error { return e.Remove(ctx, id, force, ctrmodel.StopOptions{Force: force}) }
	case "update":
		var v struct {
			RestartPolicy *restartPolicy `json:"restartPolicy"`
			Resources     *resources     `json:"resources"`
		}
		err = value(op, &v)
		do = func(ctx context.Context) error {
			var o ctrmodel.UpdateOptions
			if v.RestartPolicy != nil {
				p := v.RestartPolicy.model()
				o.RestartPolicy = &p
			}
			if v.Resources != nil {
				r := ctrmodel.Resources(*v.Resources)
				o.Resources = &r
			}
			return e.Update(ctx, id, o)
		}
	default:
		err = unknown(op)
	}
	return func(ctx context.Context) (any, error) { return nil, do(ctx) }, err
}
