// SPDX-License-Identifier: Apache-2.0

package rebootgate

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Window is a time of maintenance. It begins on each of the days, on every day if none is given, at From, and ends at To, on
// the next day if that is earlier. The clock on the wall decides, as set for summer and winter: an hour that is left out has
// no maintenance, one that comes twice has it twice.
type Window struct {
	Days []string `json:"days"` // mon, tue, wed, thu, fri, sat, sun
	From string   `json:"from"` // HH:MM, 00:00 to 23:59
	To   string   `json:"to"`   // HH:MM, 00:00 to 24:00
}

// window is a Window with times in minutes since midnight.
type window struct {
	days     [7]bool
	from, to int
}

func (w Window) parse() (window, error) {
	p := window{}
	for _, name := range w.Days {
		day := slices.Index([]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}, strings.ToLower(name))
		if day < 0 {
			return p, fmt.Errorf("days: %q: expected mon, tue, wed, thu, fri, sat or sun", name)
		}
		p.days[day] = true
	}
	if len(w.Days) == 0 {
		p.days = [7]bool{true, true, true, true, true, true, true}
	}
	var err error
	if p.from, err = minutes(w.From); err != nil {
		return p, fmt.Errorf("from: %w", err)
	}
	if w.To == "24:00" {
		p.to = 24 * 60
	} else if p.to, err = minutes(w.To); err != nil {
		return p, fmt.Errorf("to: %w", err)
	}
	if p.from == p.to {
		return p, fmt.Errorf("to: %q: expected another time than in from; a whole day is 00:00 to 24:00", w.To)
	}
	return p, nil
}

func minutes(text string) (int, error) {
	t, err := time.Parse("15:04", text)
	if err != nil || len(text) != len("15:04") {
		return 0, fmt.Errorf("%q: expected HH:MM", text)
	}
	return t.Hour()*60 + t.Minute(), nil
}

func (w window) open(t time.Time) bool {
	today, minute := t.Weekday(), t.Hour()*60+t.Minute()
	if w.from < w.to {
		return w.days[today] && w.from <= minute && minute < w.to
	}
	yesterday := (today + 6) % 7
	return w.days[today] && w.from <= minute || w.days[yesterday] && minute < w.to
}

func open(windows []window, t time.Time) bool {
	return slices.ContainsFunc(windows, func(w window) bool { return w.open(t) })
}

// opening returns the minute after t in which the first of the windows opens. It looks at every minute, since nothing simpler
// is right when the clocks change. The week after next is far enough: only once in a row can a window fall into an hour that
// is left out.
func opening(windows []window, t time.Time) time.Time {
	for range 15 * 24 * 60 {
		t = t.Add(time.Minute)
		if open(windows, t) {
			break
		}
	}
	return t
}
