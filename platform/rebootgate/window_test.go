// SPDX-License-Identifier: Apache-2.0

package rebootgate

import (
	"testing"
	"time"
	_ "time/tzdata" // the clocks of two places, whatever this machine knows
)

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func mustNew(t *testing.T, c Config) *Gate {
	t.Helper()
	g, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

const layout = "2006-01-02 15:04 MST"

func TestWindowsFollowTheClockOnTheWall(t *testing.T) {
	var (
		daily   = []Window{{From: "01:00", To: "05:00"}}
		weekend = []Window{{Days: []string{"Sat", "SUN"}, From: "12:30", To: "24:00"}}
		nights  = []Window{{Days: []string{"mon", "fri"}, From: "22:00", To: "05:00"}}
		both    = []Window{{Days: []string{"wed"}, From: "08:00", To: "09:00"}, {Days: []string{"wed"}, From: "06:00", To: "08:30"}}
		early   = []Window{{From: "01:30", To: "02:30"}}
		left    = []Window{{Days: []string{"sun"}, From: "02:15", To: "02:45"}} // left out once a year
	)
	for _, test := range []struct {
		name    string
		windows []Window
		zone    string
		utc     string // now
		next    string // when the next one opens; "" stands for open now
	}{
		// 2026-11-21 is a Saturday.
		{"before", daily, "UTC", "2026-11-21T00:59:59Z", "2026-11-21 01:00 UTC"},
		{"first moment", daily, "UTC", "2026-11-21T01:00:00Z", ""},
		{"last moment", daily, "UTC", "2026-11-21T04:59:59Z", ""},
		{"after", daily, "UTC", "2026-11-21T05:00:00Z", "2026-11-22 01:00 UTC"},
		{"days", weekend, "UTC", "2026-11-20T13:00:00Z", "2026-11-21 12:30 UTC"},
		{"end of a day", weekend, "UTC", "2026-11-21T23:59:59Z", ""},
		{"after the end of a day", weekend, "UTC", "2026-11-22T00:00:00Z", "2026-11-22 12:30 UTC"},
		{"a week later", weekend, "UTC", "2026-11-23T00:00:00Z", "2026-11-28 12:30 UTC"},
		{"over midnight, evening", nights, "UTC", "2026-11-20T22:00:00Z", ""},
		{"over midnight, morning", nights, "UTC", "2026-11-21T04:59:00Z", ""},
		{"over midnight, end", nights, "UTC", "2026-11-21T05:00:00Z", "2026-11-23 22:00 UTC"},
		{"over midnight, morning of the first day", nights, "UTC", "2026-11-20T04:00:00Z", "2026-11-20 22:00 UTC"},
		{"two windows", both, "UTC", "2026-11-25T08:45:00Z", ""},
		{"before the second of two", both, "UTC", "2026-11-25T05:59:59.5Z", "2026-11-25 06:00 UTC"},
		{"in another zone", nights, "Europe/Berlin", "2026-11-20T21:00:00Z", ""},
		{"in another zone, too early", nights, "America/New_York", "2026-11-20T22:00:00Z", "2026-11-20 22:00 EST"},

		// Berlin: on 2026-03-29 at 02:00 CET (01:00 UTC) it becomes 03:00 CEST, on 2026-10-25 at 03:00 CEST 02:00 CET.
		{"winter", daily, "Europe/Berlin", "2026-03-28T00:00:00Z", ""},
		{"winter, over", daily, "Europe/Berlin", "2026-03-28T04:00:00Z", "2026-03-29 01:00 CET"},
		{"clocks go forward", daily, "Europe/Berlin", "2026-03-29T02:59:00Z", ""},
		{"clocks have gone forward", daily, "Europe/Berlin", "2026-03-29T03:00:00Z", "2026-03-30 01:00 CEST"},
		{"cut short", early, "Europe/Berlin", "2026-03-29T00:59:00Z", ""},
		{"cut short, over", early, "Europe/Berlin", "2026-03-29T01:00:00Z", "2026-03-30 01:30 CEST"},
		{"left out", left, "Europe/Berlin", "2026-03-22T02:00:00Z", "2026-04-05 02:15 CEST"},
		{"comes first", early, "Europe/Berlin", "2026-10-25T00:29:00Z", ""},
		{"between", early, "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25 02:00 CET"},
		{"comes again", early, "Europe/Berlin", "2026-10-25T01:29:00Z", ""},
		{"came twice", early, "Europe/Berlin", "2026-10-25T01:30:00Z", "2026-10-26 01:30 CET"},
		{"night of seven hours and one", nights, "Europe/Berlin", "2026-10-23T20:00:00Z", ""},

		// New York: on 2026-03-08 at 02:00 EST (07:00 UTC) it becomes 03:00 EDT, on 2026-11-01 at 02:00 EDT 01:00 EST.
		{"clocks go forward", daily, "America/New_York", "2026-03-08T08:59:00Z", ""},
		{"clocks have gone forward", daily, "America/New_York", "2026-03-08T09:00:00Z", "2026-03-09 01:00 EDT"},
		{"left out", left, "America/New_York", "2026-03-08T06:59:00Z", "2026-03-15 02:15 EDT"},
		{"clocks go back", daily, "America/New_York", "2026-11-01T09:59:00Z", ""},
		{"clocks have gone back", daily, "America/New_York", "2026-11-01T10:00:00Z", "2026-11-02 01:00 EST"},
		{"comes first", early, "America/New_York", "2026-11-01T05:59:00Z", ""},
		{"between", early, "America/New_York", "2026-11-01T06:00:00Z", "2026-11-01 01:30 EST"},
		{"comes again", early, "America/New_York", "2026-11-01T06:30:00Z", ""},

		// Cairo: on 2026-04-24 at 00:00 EET it becomes 01:00 EEST; the morning still belongs to the night before.
		{"midnight left out", []Window{{Days: []string{"thu"}, From: "23:30", To: "01:30"}}, "Africa/Cairo", "2026-04-23T22:29:00Z", ""},
		{"midnight left out, over", []Window{{Days: []string{"thu"}, From: "23:30", To: "01:30"}}, "Africa/Cairo", "2026-04-23T22:30:00Z", "2026-04-30 23:30 EEST"},
	} {
		now, err := time.Parse(time.RFC3339, test.utc)
		if err != nil {
			t.Fatal(err)
		}
		now = now.In(zone(t, test.zone))
		g := mustNew(t, Config{Windows: test.windows})
		safe, reason := g.Safe(t.Context(), now)
		if safe != (test.next == "") || safe != (reason == "") {
			t.Errorf("%s, %s: %v, %q", test.name, test.zone, safe, reason)
			continue
		}
		if !safe {
			if got := opening(g.windows, now).Format(layout); got != test.next {
				t.Errorf("%s, %s: opens %s, want %s", test.name, test.zone, got, test.next)
			}
		}
	}
}

func TestReasonNamesTheNextWindow(t *testing.T) {
	g := mustNew(t, Config{Windows: []Window{{Days: []string{"sun"}, From: "02:00", To: "05:00"}}})
	_, reason := g.Safe(t.Context(), time.Date(2026, 11, 21, 9, 30, 12, 0, zone(t, "Europe/Berlin")))
	if want := "outside of the hours of maintenance, which begin again on Sun 22 Nov at 02:00 CET"; reason != want {
		t.Errorf("got %q, want %q", reason, want)
	}
}
