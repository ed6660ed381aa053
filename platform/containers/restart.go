// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"time"

	"sdvbox/platform/ctrmodel"
)

const (
	firstPause   = 100 * time.Millisecond
	longestPause = time.Minute      // unless the policy has another one
	longRun      = 10 * time.Second // whoever ran that long gets the first pause again
)

// pauses are those before the attempts to have a process again, each twice the one before.
type pauses struct{ last time.Duration }

// next returns the pause after a process that ran for so long, 0 if it did not even start.
func (p *pauses) next(ran, longest time.Duration) time.Duration {
	if longest <= 0 {
		longest = longestPause
	}
	if p.last == 0 || ran >= longRun {
		p.last = firstPause
	} else {
		p.last *= 2
	}
	p.last = min(p.last, longest)
	return p.last
}

// again reports whether the policy wants another process after one that has ended by itself, or could not be started.
func again(p ctrmodel.RestartPolicy, failed bool, attempts int64) bool {
	switch p.Type {
	case ctrmodel.RestartAlways, ctrmodel.RestartUnlessStopped:
		return true
	case ctrmodel.RestartOnFailure:
		return failed && (p.MaxRetries == 0 || attempts < p.MaxRetries)
	}
	return false
}
