// SPDX-License-Identifier: Apache-2.0

package updateproto

// Statuses of a whole domain, the "status" of a Feedback.
const (
	StatusIdentifying          = "IDENTIFYING"
	StatusIdentified           = "IDENTIFIED"
	StatusIdentificationFailed = "IDENTIFICATION_FAILED"

	StatusRunning = "RUNNING"

	StatusDownloading     = "DOWNLOADING"
	StatusDownloadSuccess = "DOWNLOAD_SUCCESS"
	StatusDownloadFailure = "DOWNLOAD_FAILURE"

	StatusUpdating      = "UPDATING"
	StatusUpdateSuccess = "UPDATE_SUCCESS"
	StatusUpdateFailure = "UPDATE_FAILURE"

	StatusActivating        = "ACTIVATING"
	StatusActivationSuccess = "ACTIVATION_SUCCESS"
	StatusActivationFailure = "ACTIVATION_FAILURE"

	StatusRollback        = "ROLLBACK"
	StatusRollbackSuccess = "ROLLBACK_SUCCESS"
	StatusRollbackFailure = "ROLLBACK_FAILURE"

	StatusCleanup        = "CLEANUP"
	StatusCleanupSuccess = "CLEANUP_SUCCESS"
	StatusCleanupFailure = "CLEANUP_FAILURE"

	StatusCompleted              = "COMPLETED"
	StatusIncomplete             = "INCOMPLETE"
	StatusIncompleteInconsistent = "INCOMPLETE_INCONSISTENT"
	StatusSuperseded             = "SUPERSEDED"

	// StatusComplete is how the self-update agent of Eclipse Leda spells COMPLETED at the end of an update.
	StatusComplete = "COMPLETE"
)

// Statuses of one component, the "status" of an Action. The ones that are
// also statuses of a domain are written the same.
const (
	ActionIdentified = "IDENTIFIED"

	ActionDownloading     = "DOWNLOADING"
	ActionDownloadSuccess = "DOWNLOAD_SUCCESS"
	ActionDownloadFailure = "DOWNLOAD_FAILURE"

	ActionUpdating      = "UPDATING"
	ActionUpdateSuccess = "UPDATE_SUCCESS"
	ActionUpdateFailure = "UPDATE_FAILURE"

	ActionRemoving       = "REMOVING"
	ActionRemovalSuccess = "REMOVAL_SUCCESS"
	ActionRemovalFailure = "REMOVAL_FAILURE"

	ActionActivating        = "ACTIVATING"
	ActionActivationSuccess = "ACTIVATION_SUCCESS"
	ActionActivationFailure = "ACTIVATION_FAILURE"

	// ActionUpdated is what the self-update agent of Eclipse Leda says after an activation.
	ActionUpdated = "UPDATED"
)

// The commands of a Command.
const (
	CommandDownload = "DOWNLOAD"
	CommandUpdate   = "UPDATE"
	CommandActivate = "ACTIVATE"
	CommandCleanup  = "CLEANUP"
	CommandRollback = "ROLLBACK"
)

// The answers of an OwnerConsentFeedback.
const (
	ConsentApproved = "APPROVED"
	ConsentDenied   = "DENIED"
)

// The types of a SoftwareNode.
const (
	TypeImage       = "IMAGE"
	TypeRaw         = "RAW"
	TypeData        = "DATA"
	TypeApplication = "APPLICATION"
	TypeContainer   = "CONTAINER"
)

// KeyValue is a setting that the protocol does not interpret.
type KeyValue struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// DesiredState is the request to bring the listed domains to the listed versions.
type DesiredState struct {
	Baselines []Baseline `json:"baselines,omitempty"`
	Domains   []Domain   `json:"domains"`
}

// Baseline names components, as DOMAIN:COMPONENT, that depend on each other.
type Baseline struct {
	Title         string   `json:"title"`
	Description   string   `json:"description,omitempty"`
	Preconditions string   `json:"preconditions,omitempty"`
	Components    []string `json:"components,omitempty"`
}

// Domain is the part of a desired state that one agent is responsible for.
type Domain struct {
	ID         string      `json:"id"`
	Config     []KeyValue  `json:"config,omitempty"`
	Components []Component `json:"components"`
}

// Component is one thing to update and the version it shall have.
type Component struct {
	ID      string     `json:"id"`
	Version string     `json:"version"`
	Config  []KeyValue `json:"config,omitempty"`
}

// Command starts the next step of an update. An empty Baseline, or "*", is
// everything in the domain.
type Command struct {
	Baseline string `json:"baseline,omitempty"`
	Command  string `json:"command"`
}

// OwnerConsent asks the owner of the vehicle whether a step may begin.
type OwnerConsent struct {
	Command string `json:"command"`
}

// OwnerConsentFeedback is the answer of the owner.
type OwnerConsentFeedback struct {
	Status string `json:"status"`
}

// Feedback reports progress and result. All members but the baseline are
// always on the wire, as Eclipse Leda documents them.
type Feedback struct {
	Status   string   `json:"status"`
	Baseline string   `json:"baseline,omitempty"`
	Message  string   `json:"message"`
	Actions  []Action `json:"actions"`
}

// Action is the progress of one component, in percent.
type Action struct {
	Component ComponentRef `json:"component"`
	Status    string       `json:"status"`
	Progress  int          `json:"progress"`
	Message   string       `json:"message"`
}

// ComponentRef names a component, as DOMAIN:COMPONENT, and its desired version.
type ComponentRef struct {
	ID      string `json:"id"`
	Version string `json:"version"`
}

// Inventory is the current state: what is installed, as a graph of nodes.
type Inventory struct {
	SoftwareNodes []SoftwareNode `json:"softwareNodes"`
	HardwareNodes []HardwareNode `json:"hardwareNodes"`
	Associations  []Association  `json:"associations"`
}

// SoftwareNode is an installed piece of software.
type SoftwareNode struct {
	ID         string     `json:"id"`
	Version    string     `json:"version"`
	Name       string     `json:"name"`
	Type       string     `json:"type"`
	Parameters []KeyValue `json:"parameters,omitempty"`
}

// HardwareNode is a device.
type HardwareNode struct {
	ID          string     `json:"id"`
	Version     string     `json:"version"`
	Name        string     `json:"name"`
	Parameters  []KeyValue `json:"parameters,omitempty"`
	Addressable bool       `json:"addressable,omitempty"`
}

// Association is a directed link between two nodes of an inventory.
type Association struct {
	SourceID string `json:"sourceId"`
	TargetID string `json:"targetId"`
}
