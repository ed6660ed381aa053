// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"sdvbox/platform/mqttbus"
	"sdvbox/platform/orchestrator"
	"sdvbox/platform/twin"
	"sdvbox/platform/updateproto"
)

// maxHeld is how many commands wait until the twin's name is known. They are
// not acknowledged yet, and brokers deliver only so many messages at a time
// that are not: further ones must not keep the name itself from coming.
const maxHeld = 8

func (m *Manager) hold(msg *mqttbus.Message) error {
	if len(m.held) >= maxHeld {
		m.log.Warn("too many commands before the cloud connector has said which thing this is, one is ignored", "topic", msg.Topic)
		msg.Ack()
		return nil
	}
	m.held = append(m.held, msg)
	return nil
}

// identified takes the name of the twin.
func (m *Manager) identified(ctx context.Context, msg *mqttbus.Message) error {
	i, err := twin.DecodeIdentity(msg.Payload)
	if err != nil {
		m.malformed(msg, "", err)
		return nil
	}
	if n := m.north.Load(); n != nil && n.feature.Thing == i.Thing {
		return nil
	}
	m.log.Info("this is a thing", "thing", i.Thing)
	m.north.Store(&north{m.cfg.Domain, &twin.Feature{Thing: i.Thing, Name: featureName}})
	m.described = false
	m.describe()
	// What could not be said up to now is said like after a connect.
	m.current.connected(time.Now())
	if err := m.driver.Handle(ctx, orchestrator.Connected{}); err != nil {
		return err
	}
	for _, msg := range m.held {
		if err := m.operation(ctx, msg); err != nil {
			return err
		}
		msg.Ack()
	}
	m.held = nil
	return nil
}

// describe makes the feature of the twin, unless that has been done.
func (m *Manager) describe() {
	n := m.north.Load()
	if n == nil || m.described {
		return
	}
	data, err := n.feature.Describe(featureDefinition, struct {
		Domain string `json:"domain"`
	}{m.cfg.Domain})
	if err != nil {
		m.log.Error("cannot encode the feature", "error", err)
		return
	}
	m.queue(outgoing{topic: twin.EventTopic, data: data, done: func(ok bool) {
		m.described = ok && m.north.Load() == n
	}})
}

// operation takes what the feature is asked for.
func (m *Manager) operation(ctx context.Context, msg *mqttbus.Message) error {
	f := m.north.Load().feature
	r, err := f.Decode(msg.Topic, msg.Payload)
	if errors.Is(err, twin.ErrForeign) {
		return nil
	}
	if err != nil {
		m.malformed(msg, "", err)
		return nil
	}
	// The answer says that the request is understood. It comes before what follows from it.
	answer := func(id string, err error) {
		if err != nil {
			m.malformed(msg, id, err)
		}
		if !r.Answer {
			return
		}
		topic, data, encoding := f.Done(r)
		if err != nil {
			topic, data, encoding = f.Invalid(r, err)
		}
		if encoding != nil {
			m.log.Error("cannot encode an answer", "error", encoding)
			return
		}
		m.queue(outgoing{topic: topic, data: data})
	}
	e, desired, consent, err := decodeValue(r.Value)
	switch r.Subject {
	case operationApply:
		var ds updateproto.DesiredState
		if err == nil {
			e.Payload = desired
			ds, err = e.DesiredState()
		}
		answer(e.ActivityID, err)
		if err != nil {
			return m.driver.Handle(ctx, orchestrator.Refused{ID: e.ActivityID, Reason: "desired state: " + err.Error()})
		}
		return m.driver.Handle(ctx, orchestrator.Requested{ID: e.ActivityID, State: ds, Duplicate: msg.Duplicate})
	case operationRefresh:
		answer(e.ActivityID, err)
		if err == nil {
			m.current.refresh(time.Now(), e.ActivityID)
		}
	case operationConsent:
		var said updateproto.OwnerConsentFeedback
		if err == nil {
			e.Payload = consent
			err = e.DecodePayload(&said)
		}
		if err == nil {
			err = m.expects(e.ActivityID, r.CorrelationID)
		}
		answer(e.ActivityID, err)
		if err == nil {
			return m.answered(ctx, msg, e.ActivityID, said.Status == updateproto.ConsentApproved)
		}
	default:
		m.log.Warn(fmt.Sprintf("operation %.40q is unknown, expected apply, refresh or consent", r.Subject), "topic", msg.Topic)
	}
	return nil
}

// decodeValue decodes what is said to the feature: a message like those without
// a twin, but for the payload, which is in a member that depends on the
// operation. The activity id may be missing.
func decodeValue(data json.RawMessage) (e updateproto.Envelope, desired, consent json.RawMessage, err error) {
	e, err = updateproto.DecodeEnvelope(data)
	if errors.Is(err, updateproto.ErrNoActivityID) {
		err = nil
	}
	var v struct {
		DesiredState         json.RawMessage `json:"desiredState"`
		OwnerConsentFeedback json.RawMessage `json:"ownerConsentFeedback"`
	}
	if err == nil {
		err = json.Unmarshal(data, &v)
	}
	return e, v.DesiredState, v.OwnerConsentFeedback, err
}

// expects returns an error unless the owner has been asked for what an answer
// is about, and nothing else since.
func (m *Manager) expects(id, correlation string) error {
	commands := m.cfg.Orchestrator.Consent // after a restart any of them may have been asked for
	if q := m.asked.Load(); q != nil && q.id == id {
		commands = []string{q.command}
	}
	for _, c := range commands {
		if correlation == (question{id, c}).correlation() && m.driver.Status().ActivityID == id {
			return nil
		}
	}
	return errors.New("nobody has asked for the owner's consent with this activityId and correlation-id")
}

// question is what the owner is asked.
type question struct{ id, command string }

// correlation is the id that the answer has to carry. It is always the same,
// so that the answer to a question asked before a restart counts.
func (q question) correlation() string {
	sum := sha256.Sum256([]byte("owner consent\x00" + q.command + "\x00" + q.id))
	sum[6] = sum[6]&0x0f | 0x80 // version 8: made up by the application
	sum[8] = sum[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[0:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}
