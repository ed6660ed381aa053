// SPDX-License-Identifier: Apache-2.0

package orchestrator

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sdvbox/platform/updateproto"
)

// The stories in testdata are read and written by a script: lines that begin
// with > are events, the others the effects that have to follow, in order.
//
//	config all reboot consent=UPDATE resume=containers,self-update
//	> request ID DOMAIN... [baseline=DOMAIN,DOMAIN]
//	> DOMAIN STATUS [message] [+ for one action, progress as +40]
//	> wait DURATION       up to that deadline
//	> restart BOOT [version=N]  the process is a new one, the state went through JSON
//	> configure WORDS     as in config, for the next process; also noreboot, baseline, required=no, only=DOMAIN
//	> connected, disconnected, fresh DOMAIN, approved, denied, cancel ID, safe, unsafe REASON, rebootfailed
//	say STATUS [message] [actions=COMPONENT:STATUS,...]
//	DOMAIN: ORDER
//	ask COMMAND, refresh, gate, reboot
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.story")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".story"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want := strings.TrimSpace(string(data)) + "\n"
			got := tell(t, want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if os.Getenv("UPDATE_STORIES") == "1" {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// teller plays a story.
type teller struct {
	t   *testing.T
	c   Config
	m   *Machine
	now time.Time
	id  string
	out strings.Builder
}

func tell(t *testing.T, story string) string {
	s := &teller{t: t, now: time.UnixMilli(1_700_000_000_000)}
	s.c = Config{
		Agents: map[string]Agent{
			"containers":  {ReadTimeout: 30 * time.Second},
			"self-update": {ReadTimeout: 30 * time.Second, RebootRequired: true},
		},
		PhaseTimeout: 10 * time.Minute, VerifyTimeout: 20 * time.Minute, ConsentTimeout: 30 * time.Minute,
		RebootAfter: 30 * time.Second, GateTimeout: time.Hour,
	}
	for line := range strings.Lines(story) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "#"), line == "":
			fmt.Fprintln(&s.out, line)
		case strings.HasPrefix(line, "config"):
			s.config(strings.Fields(line)[1:])
			fmt.Fprintln(&s.out, line)
		case strings.HasPrefix(line, ">"):
			fmt.Fprintln(&s.out, line)
			s.event(strings.Fields(line)[1:])
		}
	}
	return s.out.String()
}

func (s *teller) config(words []string) {
	resumes := s.configure(words)
	s.m = NewMachine(s.c, State{})
	s.handle(Started{"boot1"})
	for _, d := range resumes {
		s.handle(Seen{Domain: d, Resumes: true})
	}
	s.handle(Connected{})
	s.out.Reset()
}

func (s *teller) configure(words []string) (resumes []string) {
	for _, w := range words {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "all":
			s.c.FailurePolicy = All
		case "baseline":
			s.c.FailurePolicy = Baseline
		case "reboot":
			s.c.RebootEnabled = true
		case "noreboot":
			s.c.RebootEnabled = false
		case "required":
			s.c.Agents = maps.Clone(s.c.Agents)
			s.c.Agents["self-update"] = Agent{ReadTimeout: 30 * time.Second}
		case "only":
			s.c.Agents = map[string]Agent{value: s.c.Agents[value]}
		case "consent":
			s.c.Consent = strings.Split(value, ",")
		case "resume":
			resumes = strings.Split(value, ",")
		default:
			s.t.Fatalf("config %q", w)
		}
	}
	return resumes
}

func (s *teller) event(words []string) {
	rest := strings.Join(words[1:], " ")
	switch words[0] {
	case "request":
		s.id = strings.Trim(words[1], `"`)
		var ds updateproto.DesiredState
		for _, w := range words[2:] {
			if members, yes := strings.CutPrefix(w, "baseline="); yes {
				b := updateproto.Baseline{Title: members}
				for _, d := range strings.Split(members, ",") {
					b.Components = append(b.Components, d+":x")
				}
				ds.Baselines = append(ds.Baselines, b)
			} else {
				ds.Domains = append(ds.Domains, updateproto.Domain{ID: w, Components: []updateproto.Component{{ID: "x", Version: "2"}}})
			}
		}
		s.handle(Requested{ID: s.id, State: ds})
	case "wait":
		d, err := time.ParseDuration(rest)
		if err != nil {
			s.t.Fatal(err)
		}
		end := s.now.Add(d)
		for next := s.m.Deadline(); !next.IsZero() && !next.After(end); next = s.m.Deadline() {
			if next.After(s.now) {
				s.now = next
			}
			s.handle(Tick{})
		}
		s.now = end
	case "restart":
		rec, err := json.Marshal(s.m.State)
		if err != nil {
			s.t.Fatal(err)
		}
		boot, version, foreign := strings.Cut(rest, " version=")
		if foreign {
			rec = bytes.Replace(rec, []byte(`"version":1,`), []byte(`"version":`+version+`,`), 1)
		}
		state, err := ParseState(rec)
		if err != nil {
			s.t.Fatal(err)
		}
		s.m = NewMachine(s.c, state)
		s.handle(Started{boot})
	case "configure":
		s.configure(words[1:])
	case "connected":
		s.handle(Connected{})
	case "disconnected":
		s.handle(Disconnected{})
	case "fresh":
		s.handle(Seen{Domain: rest, Resumes: s.m.Resumes[rest], Fresh: true})
	case "approved", "denied":
		s.handle(Answered{ID: s.id, Approved: words[0] == "approved", Fingerprint: s.now.String()})
	case "cancel":
		s.handle(Cancelled{ID: rest, By: "test"})
	case "refuse":
		s.handle(Refused{ID: words[1], Reason: strings.Join(words[2:], " ")})
	case "safe":
		s.handle(GateSaid{Safe: true})
	case "unsafe":
		s.handle(GateSaid{Reason: rest})
	case "rebootfailed":
		s.handle(RebootFailed{Reason: rest})
	case "containers", "self-update":
		f := updateproto.Feedback{Status: words[1]}
		id := s.id
		var text []string
		for _, w := range words[2:] {
			if p, yes := strings.CutPrefix(w, "+"); yes {
				progress, _ := strconv.Atoi(p)
				f.Actions = []updateproto.Action{{Component: updateproto.ComponentRef{ID: words[0] + ":x", Version: "2"}, Status: words[1], Progress: progress}}
			} else if other, yes := strings.CutPrefix(w, "id="); yes {
				id = other
			} else {
				text = append(text, w)
			}
		}
		f.Message = strings.Join(text, " ")
		s.handle(Reported{Domain: words[0], ID: id, Feedback: f})
	default:
		s.t.Fatalf("event %q", words)
	}
}

func (s *teller) handle(ev Event) {
	effects, _ := s.m.Handle(s.now, ev)
	for _, e := range effects {
		switch e := e.(type) {
		case Say:
			fmt.Fprintf(&s.out, "say %s", e.Feedback.Status)
			if e.ID != s.id {
				fmt.Fprintf(&s.out, " id=%s", e.ID)
			}
			if e.Feedback.Message != "" {
				fmt.Fprintf(&s.out, " %q", e.Feedback.Message)
			}
			for _, x := range e.Feedback.Actions {
				fmt.Fprintf(&s.out, " %s=%s", x.Component.ID, x.Status)
			}
			fmt.Fprintln(&s.out)
			if e.lasting() {
				s.handle(Delivered{Outgoing{ID: e.ID, At: e.At.UnixMilli()}})
			}
		case Send:
			order := e.Command
			if e.Desired != nil {
				order = "desired state"
				if len(e.Desired.Domains) != 1 || e.Desired.Domains[0].ID != e.Domain {
					s.t.Errorf("%s is sent %+v", e.Domain, e.Desired)
				}
			}
			fmt.Fprintf(&s.out, "%s: %s\n", e.Domain, order)
		case Ask:
			fmt.Fprintf(&s.out, "ask %s\n", e.Command)
		case Refresh:
			fmt.Fprintln(&s.out, "refresh")
		case CheckGate:
			fmt.Fprintln(&s.out, "gate")
		case Reboot:
			fmt.Fprintln(&s.out, "reboot")
		}
	}
}
