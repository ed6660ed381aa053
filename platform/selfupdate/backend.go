// SPDX-License-Identifier: Apache-2.0

// Package selfupdate updates the operating system: it is the backend of the
// self-update domain, between the update protocol above it and, below it, the
// download and RAUC, which owns the slots.
//
// What must be remembered across a restart (which slot is written, under which
// transaction, in which boot it was activated) is kept as notes with the
// activity. Every step can be entered again after a crash at any instant: it
// first looks at what is already true.
package selfupdate

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"time"

	"sdvbox/platform/fetch"
	"sdvbox/platform/updateagent"
	"sdvbox/platform/updateproto"
)

// Names on the wire, as the self-update agent of Eclipse Leda uses them.
const (
	DomainID    = "self-update"
	componentID = "os-image"
	nodeAgent   = "self-update-agent"
	nodeImage   = DomainID + ":" + componentID
)

// Bounds of a request, in bytes.
const (
	maxVersion = 256
	maxURL     = 8192
)

// Messages on the wire that Eclipse Leda documents, to the letter.
const (
	MsgIdentifying  = "Self-update agent has received new desired state request and is evaluating it."
	msgIdentified   = "Self-update agent is about to perform an OS image update."
	msgUpToDate     = "Current OS image is equal to the target one from desired state."
	msgUpdating     = "Self-update agent is performing an OS image update."
	msgChecking     = "Checking bundle version and version in desired state request."
	msgInstalling   = "RAUC install..."
	msgInstalled    = "Self-update completed, reboot required."
	msgWritten      = "Writing partition completed, reboot required."
	msgRejected     = "Update rejected."
	msgWrongVersion = "Bundle version does not match version in desired state request."
	msgActivating   = "Self-update agent is performing an OS image activation."
	msgActivated    = "Self-update agent has activated the new OS image."
	msgNotActivated = "Self-update agent has failed to activate the new OS image."
	msgCleaned      = "Self-update agent has cleaned up after itself."
	msgComplete     = "Self-update completed."
	msgIncomplete   = "Self-update incomplete."
)

// Mode is how a bundle gets to RAUC.
type Mode string

// The modes. Stream lets RAUC read the bundle from the server while it
// installs and falls back to Download when that fails.
const (
	Download Mode = "download"
	Stream   Mode = "stream"
)

// Config is what a Backend works with. System, Dir and Version are required.
type Config struct {
	System  System
	Mode    Mode
	Dir     string        // where bundles are stored while an update is under way
	Version string        // of this agent, for the inventory
	Client  *http.Client  // for downloads; nil is fetch's default
	Rate    int64         // bytes per second, 0 for no limit
	Reserve int64         // bytes to leave free in Dir
	Stall   time.Duration // a connection that sends nothing for so long is broken; 0 is fetch's default
	GiveUp  time.Duration // a download without progress for so long has failed; 0 is fetch's default
	Delay   time.Duration // least time between two progress messages
	// InstallTimeout bounds one installation, ConfirmTimeout the time a new
	// slot may stay unconfirmed after its first boot.
	InstallTimeout, ConfirmTimeout time.Duration
	Log                            *slog.Logger
}

// Backend implements updateagent.Backend for the operating system.
type Backend struct {
	Config
}

var _ updateagent.Backend = (*Backend)(nil)

// notes are kept with the activity.
type notes struct {
	Version     string `json:"version"`               // desired
	URL         string `json:"url"`                   // of the bundle
	From        string `json:"from"`                  // version that ran before
	Streamed    bool   `json:"streamed,omitempty"`    // DOWNLOAD fetched nothing
	Transaction string `json:"transaction,omitempty"` // RAUC's name for the installation
	Count       uint32 `json:"count,omitempty"`       // installations the slot had seen before
	Slot        string `json:"slot,omitempty"`        // RAUC's name of the slot being written
	Boot        string `json:"boot,omitempty"`        // boot id under which the slot was activated
	Loader      string `json:"loader,omitempty"`      // what the boot environment said of the slot just before
	Keep        bool   `json:"keep,omitempty"`        // the version runs already, but another slot is the next to boot
	// LastStatus and LastMessage are the action that CLEANUP reports again.
	LastStatus  string `json:"lastStatus,omitempty"`
	LastMessage string `json:"lastMessage,omitempty"`
}

func (n *notes) result(status, message string) {
	n.LastStatus, n.LastMessage = status, message
}

func (b *Backend) bundle() string { return filepath.Join(b.Dir, "bundle.raucb") }

// say makes a feedback with the one action this domain has.
func (n *notes) say(status, message, actionStatus string, progress int, actionMessage string) updateproto.Feedback {
	return updateproto.Feedback{Status: status, Message: message, Actions: []updateproto.Action{{
		Component: updateproto.ComponentRef{ID: nodeImage, Version: n.Version},
		Status:    actionStatus,
		Progress:  progress,
		Message:   actionMessage,
	}}}
}

func one(f updateproto.Feedback) []updateproto.Feedback { return []updateproto.Feedback{f} }

// target finds version and URL in a request; the error says what is missing.
func target(r *updateproto.DesiredState) (version, url string, err error) {
	for _, d := range r.Domains {
		if d.ID != DomainID {
			continue
		}
		for _, c := range d.Components {
			if c.ID != componentID {
				continue
			}
			for _, kv := range c.Config {
				if kv.Key != "image" {
					continue
				}
				switch {
				case len(c.Version) > maxVersion || len(kv.Value) > maxURL:
					return "", "", fmt.Errorf("desired state: version of %d and URL of %d bytes, expected at most %d and %d", len(c.Version), len(kv.Value), maxVersion, maxURL)
				case c.Version == "":
					return "", "", fmt.Errorf("desired state: component %q in domain %q has no version", componentID, DomainID)
				case kv.Value == "":
					return "", "", fmt.Errorf("desired state: config entry \"image\" of component %q is empty, expected the URL of a bundle", componentID)
				}
				return c.Version, kv.Value, nil
			}
			return "", "", fmt.Errorf("desired state: component %q has no config entry with the key \"image\"", componentID)
		}
		return "", "", fmt.Errorf("desired state: domain %q has no component with the id %q", DomainID, componentID)
	}
	return "", "", fmt.Errorf("desired state: there is no domain with the id %q", DomainID)
}

// Identify compares the requested version with the running one.
func (b *Backend) Identify(ctx context.Context, job *updateagent.Job) []updateproto.Feedback {
	failed := func(err error) []updateproto.Feedback {
		return one(updateproto.Feedback{Status: updateproto.StatusIdentificationFailed, Message: err.Error()})
	}
	n := notes{}
	var err error
	if n.Version, n.URL, err = target(&job.Request); err != nil {
		return failed(err)
	}
	now, err := b.System.Current(ctx)
	if err != nil {
		return failed(fmt.Errorf("cannot tell which OS image runs: %w", err))
	}
	if now.Version == n.Version {
		if next, err := b.System.Primary(ctx); err != nil || next == now.Slot {
			return []updateproto.Feedback{
				{Status: updateproto.StatusIdentified, Message: msgUpToDate},
				{Status: updateproto.StatusCompleted, Message: msgUpToDate},
			}
		}
		// An earlier update has chosen the other slot for the next boot.
		n.Keep, n.Slot = true, now.Slot
	}
	n.From = now.Version
	if err := job.Save(n); err != nil {
		return failed(err)
	}
	return one(n.say(updateproto.StatusIdentified, msgIdentified, updateproto.ActionIdentified, 0, msgIdentified))
}

// Cleanup removes the bundle and says how the activity ended. After a failed
// activation it makes sure that the slot which runs is also the next one.
func (b *Backend) Cleanup(ctx context.Context, job *updateagent.Job) []updateproto.Feedback {
	var n notes
	job.Load(&n)
	status, message := updateproto.StatusCleanupSuccess, msgCleaned
	end, endMessage := updateproto.StatusIncomplete, msgIncomplete
	if job.Success {
		end, endMessage = updateproto.StatusComplete, msgComplete
	} else if n.Boot != "" {
		var note string
		if err := b.rollback(ctx, &n, &note); err != nil {
			status, message = updateproto.StatusCleanupFailure, "Self-update agent cannot make the running slot the next one: "+err.Error()
		}
	}
	if err := fetch.Discard(b.bundle()); err != nil {
		b.Log.Warn("cannot remove the bundle", "error", err)
	}
	return []updateproto.Feedback{
		n.say(status, message, n.LastStatus, 0, n.LastMessage),
		n.say(end, endMessage, n.LastStatus, 0, n.LastMessage),
	}
}

// Inventory is what runs.
func (b *Backend) Inventory(ctx context.Context) (updateproto.Inventory, error) {
	now, err := b.System.Current(ctx)
	inv := updateproto.Inventory{
		SoftwareNodes: []updateproto.SoftwareNode{{
			ID: nodeAgent, Version: b.Version, Name: "OTA NG Self Update Agent", Type: updateproto.TypeApplication,
			Parameters: []updateproto.KeyValue{{Key: "domain", Value: DomainID}, {Key: "resumes", Value: "true"}},
		}, {
			ID: nodeImage, Version: now.Version, Name: "Official Leda device image", Type: updateproto.TypeImage,
		}},
		Associations: []updateproto.Association{{SourceID: nodeAgent, TargetID: nodeImage}},
	}
	image := &inv.SoftwareNodes[1]
	for _, kv := range []updateproto.KeyValue{
		{Key: "slot", Value: now.Bootname},
		{Key: "bootReason", Value: now.BootReason},
		{Key: "lastFallback", Value: now.Why},
	} {
		if kv.Value != "" {
			image.Parameters = append(image.Parameters, kv)
		}
	}
	return inv, err
}
