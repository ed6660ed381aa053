// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"sdvbox/platform/mqttbus"
	"sdvbox/platform/twin"
	"sdvbox/platform/updateproto"
)

// north is where desired states come from, as far as it is spoken to.
type north struct {
	domain  string
	feature *twin.Feature // nil: a backend on this bus
}

// The feature of the twin, and the operations of its inbox and outbox.
const (
	featureName       = "UpdateManager"
	featureDefinition = "com.bosch.iot.suite.edge.update:UpdateManager:1.0.0"

	operationApply    = "apply"
	operationRefresh  = "refresh"
	operationConsent  = "consent"
	operationFeedback = "feedback"
)

// value is what the feature says. Which of the last four members are there
// depends on the message.
type value struct {
	ActivityID string          `json:"activityId"`
	Timestamp  int64           `json:"timestamp"`
	Domain     string          `json:"domain,omitempty"`
	Inventory  json.RawMessage `json:"inventory,omitempty"`
	Feedback   json.RawMessage `json:"desiredStateFeedback,omitempty"`
	Consent    json.RawMessage `json:"ownerConsent,omitempty"`
}

func (n *north) feedback(id string, at time.Time, f updateproto.Feedback) (outgoing, error) {
	if n.feature == nil {
		data, err := updateproto.EncodeCompact(id, at, f)
		return outgoing{topic: updateproto.Prefix(n.domain) + feedback, data: data}, err
	}
	raw, err := updateproto.Compact(f)
	if err != nil {
		return outgoing{}, err
	}
	data, err := n.feature.Message(operationFeedback, "", value{ActivityID: id, Timestamp: at.UnixMilli(), Feedback: raw})
	return outgoing{topic: twin.EventTopic, data: data}, err
}

func (n *north) consent(q question, at time.Time) (outgoing, error) {
	payload := updateproto.OwnerConsent{Command: q.command}
	if n.feature == nil {
		data, err := updateproto.EncodeCompact(q.id, at, payload)
		return outgoing{topic: updateproto.Prefix(n.domain) + ownerConsent, data: data}, err
	}
	raw, err := updateproto.Compact(payload)
	if err != nil {
		return outgoing{}, err
	}
	data, err := n.feature.Message(operationConsent, q.correlation(), value{ActivityID: q.id, Timestamp: at.UnixMilli(), Consent: raw})
	return outgoing{topic: twin.EventTopic, data: data}, err
}

func (n *north) current(id string, at time.Time, inv updateproto.Inventory) (outgoing, error) {
	if n.feature == nil {
		data, err := updateproto.EncodeCompact(id, at, inv)
		return outgoing{topic: updateproto.Prefix(n.domain) + currentState, retained: true, data: data}, err
	}
	raw, err := updateproto.Compact(inv)
	if err != nil {
		return outgoing{}, err
	}
	data, err := n.feature.Modify(value{ActivityID: id, Timestamp: at.UnixMilli(), Domain: n.domain, Inventory: raw})
	return outgoing{topic: twin.EventTopic, data: data}, err
}

// errNobody says that it is not known yet whom to tell.
var errNobody = fmt.Errorf("the cloud connector has not said which thing this is: %w", mqttbus.ErrDown)

// sayFeedback publishes the feedback of an activity.
func (m *Manager) sayFeedback(ctx context.Context, id string, at time.Time, f updateproto.Feedback) error {
	n := m.north.Load()
	if n == nil {
		return errNobody
	}
	o, err := n.feedback(id, at, f)
	if err != nil {
		return err
	}
	return m.bus.Publish(ctx, o.topic, o.retained, o.data)
}

// askOwner asks for consent.
func (m *Manager) askOwner(ctx context.Context, id string, at time.Time, command string) error {
	q := question{id, command}
	m.asked.Store(&q)
	n := m.north.Load()
	if n == nil {
		return errNobody
	}
	o, err := n.consent(q, at)
	if err != nil {
		return err
	}
	return m.bus.Publish(ctx, o.topic, o.retained, o.data)
}
