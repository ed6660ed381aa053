// SPDX-License-Identifier: Apache-2.0

package ctrmodel

import (
	"io"
	"time"
)

// Action is what happened to a container.
type Action string

// The actions.
const (
	ActionCreated Action = "created"
	ActionRunning Action = "running"
	ActionPaused  Action = "paused"
	ActionResumed Action = "resumed"
	ActionStopped Action = "stopped"
	ActionExited  Action = "exited"
	ActionRenamed Action = "renamed"
	ActionUpdated Action = "updated"
	ActionRemoved Action = "removed"
)

// Event tells what happened to a container, and how it is after that.
type Event struct {
	Time      time.Time
	Action    Action
	Container *Container // not shared with anybody who changes it
}

// Stats is what a container uses. What is not known is 0.
type Stats struct {
	ID         string
	Time       time.Time
	CPU        time.Duration // used since it was started, all CPUs together
	SystemCPU  time.Duration // that all CPUs could have given since the host was started
	Memory     uint64        // bytes without the cache of files that is free to go
	MemoryMax  uint64        // bytes, the memory of the host if there is no lower limit
	ReadBytes  uint64        // from block devices
	WriteBytes uint64
	NetRead    uint64 // bytes, all interfaces but loopback
	NetWritten uint64
	PIDs       uint64
}

// ExecOptions is a process to run in a container beside its own.
type ExecOptions struct {
	Args       []string // the program and its arguments
	Env        []string // added to what the container's process has
	Dir        string   // empty: that of the container's process
	User       string   // as in images, empty: that of the container's process
	TTY        bool
	Privileged bool // with all capabilities
}

// Streams are the other ends of a process's standard streams. Nil ones are not connected.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan WindowSize // of the terminal
}

// WindowSize is the size of a terminal in characters.
type WindowSize struct {
	Width, Height uint32
}

// LogOptions is which part of a log to read.
type LogOptions struct {
	Tail   int  // the last lines, negative: all
	Follow bool // then wait for what comes until the container is removed
}

// Progress is how far the pull of an image is.
type Progress struct {
	Phase string // resolving, verifying, downloading or unpacking
	Done  int64  // bytes, of the phase
	Total int64  // 0: not known
}

// StoredImage is an image on this device.
type StoredImage struct {
	Name    string
	Digest  string // of the manifest or index that the name stands for
	Size    int64  // bytes, of all that it takes to make a container of it
	Created time.Time
	Used    bool // by a container
}
