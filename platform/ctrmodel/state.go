// SPDX-License-Identifier: Apache-2.0

package ctrmodel

import "time"

// Status is what a container is doing. In JSON it is a number, in the API its text.
type Status int

// The statuses.
const (
	Creating Status = iota
	Created
	Running
	Stopped // by who wanted it, or it could not start
	Paused
	Exited // by itself
	Dead   // about to be gone
	Unknown
)

var statuses = []string{"Creating", "Created", "Running", "Stopped", "Paused", "Exited", "Dead", "Unknown"}

func (s Status) String() string { return name(statuses, int(s)) }

// ParseStatus is the status with the given text, Unknown if there is none.
func ParseStatus(text string) Status { return Status(index(statuses, text)) }

// State is what a container is doing, and how its last process ended.
type State struct {
	PID        int64  `json:"pid"` // -1: no process
	StartedAt  string `json:"started_at"`
	Error      string `json:"error"`
	ExitCode   int64  `json:"exit_code"`
	FinishedAt string `json:"finished_at"`
	Exited     bool   `json:"exited"`
	Dead       bool   `json:"dead"`
	Restarting bool   `json:"restarting"`
	Paused     bool   `json:"paused"`
	Running    bool   `json:"running"`
	OOMKilled  bool   `json:"oomKilled"`
	Status     Status `json:"status"`
}

// Time is how times are written: to the nanosecond, in UTC.
func Time(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// HasProcess reports whether there is a process, which may be paused.
func (s *State) HasProcess() bool { return s.Status == Running || s.Status == Paused }

// SetCreated is the state of a container that never ran.
func (s *State) SetCreated() { *s = State{PID: -1, Status: Created} }

// SetRunning is the state once the process has been started.
func (s *State) SetRunning(pid int64, at time.Time) {
	*s = State{PID: pid, StartedAt: Time(at), FinishedAt: s.FinishedAt, Running: true, Status: Running}
}

// SetNotStarted is the state after a start that failed.
func (s *State) SetNotStarted(reason string) {
	*s = State{PID: -1, StartedAt: s.StartedAt, FinishedAt: s.FinishedAt, Error: reason, Status: Stopped}
}

// SetPaused is the state of a process that is paused.
func (s *State) SetPaused() { s.Paused, s.Running, s.Status = true, false, Paused }

// SetResumed is the state of a process that goes on.
func (s *State) SetResumed() { s.Paused, s.Running, s.Status = false, true, Running }

// SetStopped is the state of a container that was told to stop, and did.
func (s *State) SetStopped(code int64, at time.Time) {
	*s = State{PID: -1, StartedAt: s.StartedAt, FinishedAt: Time(at), ExitCode: code, Status: Stopped}
}

// SetExited is the state of a container whose process ended by itself, or was lost. The reason may be empty.
func (s *State) SetExited(code int64, at time.Time, oom bool, reason string) {
	*s = State{PID: -1, StartedAt: s.StartedAt, FinishedAt: Time(at), ExitCode: code, Exited: true, OOMKilled: oom, Error: reason, Status: Exited}
}

// SetDead is the last state of a container.
func (s *State) SetDead() {
	*s = State{PID: -1, StartedAt: s.StartedAt, FinishedAt: s.FinishedAt, ExitCode: s.ExitCode, Dead: true, Status: Dead}
}
