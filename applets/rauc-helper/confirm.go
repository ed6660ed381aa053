// SPDX-License-Identifier: Apache-2.0

package rauchelper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"sdvbox/platform/applet"
	"sdvbox/platform/bootenv"
	"sdvbox/platform/health"
	"sdvbox/platform/slots"
)

type confirmOptions struct {
	storeOptions
	Config   string        `long:"config" value-name:"FILE" default:"/etc/sdvbox/confirm.json" description:"configuration; the options below come before it"`
	Deadline time.Duration `long:"deadline" value-name:"TIME" description:"how long the gates may take to pass (5m)"`
	Interval time.Duration `long:"interval" value-name:"TIME" description:"pause between two attempts (2s)"`
	GatesDir string        `long:"gates-dir" value-name:"DIR" description:"programs that must exit with 0 (/etc/sdvbox/health.d)"`
	Broker   string        `long:"broker" value-name:"URL" description:"MQTT broker that must accept connections (tcp://127.0.0.1:1883)"`
	Skip     []string      `long:"skip" value-name:"GATE" description:"a gate not to ask; repeatable"`
}

func confirmCommand(m machine) applet.Command {
	return applet.Command{
		Name:    "confirm",
		Summary: "judge a slot on trial by its health: make it good, or go back to the other one",
		Description: `Runs once in each boot, as sdvbox-confirm.service. A slot on trial is confirmed as soon as all gates pass at the same time. If they do not until the deadline, and another slot can be booted, the slot is marked bad with the reason, and the machine reboots into the other one; if none can be booted, the slot keeps running. A slot that cannot use the boot environment until the deadline, but was started on trial as the boot loader says on the kernel command line, is left by a reboot as well: the boot loader counts the starts. A slot that has been confirmed before gets its attempts back at once; gates that fail there are reported and have no other consequence. The command fails when gates did not pass, or when the verdict could not be saved.

The gates:

  boot      the default target of systemd is reached
  data      a file can be written to /data
  rauc      RAUC answers
  broker    the MQTT broker accepts connections
  units     the enabled units of sdvbox run, for some seconds already
  health.d  each executable in /etc/sdvbox/health.d exits with 0; the first line it prints is the reason if not

The configuration is a JSON object; all members are optional:

  deadline, interval     as the options, such as "90s"
  broker, gatesDir       as the options
  gateTimeout            how long one program in gatesDir may take, "30s"
  data                   directory that must be writable, "/data"
  units                  patterns of unit names
  settled                how long a unit must have run, "3s"
  skip                   gates not to ask: boot, data, rauc, broker, units, or health.d/NAME`,
		Options: func() any { return new(confirmOptions) },
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*confirmOptions)
			log := logger{c.Stderr, os.Getenv("JOURNAL_STREAM") != ""}
			conf, warnings := readConfig(o.Config)
			for _, w := range warnings {
				log.warn("%s", w)
			}
			o.apply(&conf)
			booted, reason := m.booted()
			k := &confirmation{
				booted: booted, reason: reason, trial: m.trial(), spec: o.Bootenv, log: log, reboot: m.reboot,
				deadline: time.Duration(conf.Deadline), interval: time.Duration(conf.Interval),
				gates: func() []health.Check { return m.gates(conf) },
			}
			verdict, err := k.run(ctx)
			if c.JSON {
				return errors.Join(writeJSON(c.Stdout, verdict), err)
			}
			return err
		},
	}
}

func (o *confirmOptions) apply(c *config) {
	if o.Deadline > 0 {
		c.Deadline = duration(o.Deadline)
	}
	if o.Interval > 0 {
		c.Interval = duration(o.Interval)
	}
	if o.GatesDir != "" {
		c.GatesDir = o.GatesDir
	}
	if o.Broker != "" {
		c.Broker = o.Broker
	}
	c.Skip = append(c.Skip, o.Skip...)
}

// gates returns the checks that a slot has to pass. The directory is read each time: it may appear late.
func (m machine) gates(c config) []health.Check {
	gates := []health.Check{
		health.BootTarget(m.bus),
		health.Writable(c.Data),
		health.RAUC(m.bus),
		health.Broker(c.Broker),
		health.Units(m.bus, c.Units, time.Duration(c.Settled)),
	}
	gates = append(gates, health.DropIns(c.GatesDir, time.Duration(c.GateTime))...)
	return slices.DeleteFunc(gates, func(g health.Check) bool { return slices.Contains(c.Skip, g.Name) })
}

// confirmation is the judgement of one boot.
type confirmation struct {
	booted, reason     string // by the kernel command line
	trial              bool   // so says the boot loader, and that it counts starts
	spec               string // of the boot environment
	deadline, interval time.Duration
	gates              func() []health.Check
	reboot             func(context.Context) error
	log                logger
	said               string // the last warning
}

// Verdict is what confirm --output json prints.
type Verdict struct {
	Slot    string          `json:"slot"`
	OnTrial bool            `json:"on_trial"` // when the judgement began
	Verdict string          `json:"verdict"`  // one of the constants below
	Gates   []health.Result `json:"gates,omitempty"`
}

// The verdicts.
const (
	verdictNone     = "none"     // nothing to judge, somebody else has judged, or the verdict could not be saved
	verdictGood     = "good"     // all gates have passed
	verdictUnwell   = "unwell"   // gates fail, and there is nothing to be done about it
	verdictRejected = "rejected" // gates fail, or the boot environment cannot be used, and the machine reboots
)

func (k *confirmation) run(ctx context.Context) (v Verdict, err error) {
	v = Verdict{Slot: k.booted, Verdict: verdictNone}
	if k.booted == "" {
		k.log.info("no slot was booted (%s): nothing to confirm", k.reason)
		return v, nil
	}
	begin := time.Now()
	limit, cancel := context.WithTimeoutCause(ctx, k.deadline, errors.New("no answer before the deadline"))
	defer cancel()
	store, st, err := k.prepare(limit)
	if err != nil {
		err = fmt.Errorf("confirm %s: %w", k.booted, err)
		if !k.trial || ctx.Err() != nil {
			return v, err
		}
		v.OnTrial = true
		k.log.warn("%s is on trial and cannot use the boot environment; rebooting", k.booted)
		v, rebootErr := k.leave(ctx, v)
		return v, errors.Join(err, rebootErr)
	}
	v.OnTrial = st.OnTrial(k.booted)
	if v.OnTrial {
		k.log.info("%s is on trial, %d of %d attempts left; it has %v to pass all gates", k.booted, st.Left(k.booted), slots.MaxTries, k.deadline)
	} else {
		k.log.info("%s has been confirmed before", k.booted)
	}
	for said := ""; ; {
		results := health.Run(limit, k.gates())
		if ctx.Err() != nil {
			k.log.info("stopped before a verdict")
			return v, nil
		}
		failed := health.Failed(results)
		if limit.Err() == nil || failed == "" || v.Gates == nil {
			// A round that the deadline has cut says less than the one before.
			v.Gates = results
		}
		if failed == "" {
			break
		}
		if limit.Err() == nil {
			if failed != said {
				k.log.info("waiting for %s", failed)
				said = failed
			}
			select {
			case <-limit.Done():
			case <-time.After(k.interval):
			}
		}
		if v.OnTrial && k.judged(store) {
			return v, nil
		}
		if limit.Err() != nil && ctx.Err() == nil {
			return k.fail(ctx, store, st, v)
		}
	}
	if !v.OnTrial {
		v.Verdict = verdictGood
		k.log.info("%s is healthy", k.booted)
		return v, nil
	}
	err = change(store, func(st *slots.State) error {
		if !st.Slots[k.booted].OK {
			return fmt.Errorf("%s has been marked bad in the meantime, and stays so", k.booted)
		}
		st.MarkGood(k.booted)
		return nil
	})
	if err != nil {
		return v, fmt.Errorf("%s is healthy, but cannot be confirmed: %w", k.booted, err)
	}
	v.Verdict = verdictGood
	k.log.info("%s is confirmed, %v after the judgement began", k.booted, time.Since(begin).Round(100*time.Millisecond))
	return v, nil
}

// prepare opens the environment as soon as it can be read, makes it whole, and settles what the start itself has shown: a
// confirmed slot has its attempts back, and slots that the boot loader tried in vain before are bad.
func (k *confirmation) prepare(ctx context.Context) (store bootenv.Store, st slots.State, err error) {
	for {
		if store, err = k.open(); err == nil {
			err = change(store, func(s *slots.State) error {
				if err := known(*s, k.booted); err != nil {
					return err
				}
				k.settle(s)
				st = *s
				return nil
			})
		}
		if err == nil || ctx.Err() != nil {
			return store, st, err
		}
		k.warn(err)
		select {
		case <-ctx.Done():
		case <-time.After(k.interval):
		}
	}
}

// warn says what keeps the judgement from its work, once as long as it stays the same.
func (k *confirmation) warn(err error) {
	if text := err.Error(); text != k.said {
		k.log.warn("%s", text)
		k.said = text
	}
}

// open opens and repairs the environment. A lost one is made anew with the running slot as the first one; that nothing is
// known of the other is no reason to do without it.
func (k *confirmation) open() (bootenv.Store, error) {
	store, err := bootenv.Open(k.spec)
	if err != nil {
		return nil, err
	}
	changed, err := repair(store)
	if bootenv.Lost(store, err) {
		st := slots.New(slots.Names[:]...)
		st.SetPrimary(k.booted)
		var vars bootenv.Vars
		st.Encode(&vars, store.Kind())
		changed, err = true, bootenv.Create(store.String(), &vars)
	}
	if err != nil {
		err = fmt.Errorf("repair %s: %w", store, err)
		if _, loadErr := store.Load(); loadErr != nil {
			return nil, err
		}
		// One copy is enough to go on.
		k.warn(err)
	} else if changed {
		k.log.warn("%s was damaged and has been repaired", store)
	}
	return store, nil
}

// settle also keeps the confirmed slot as it is when the boot loader has passed it over: the running one has proven nothing
// yet. Once it has, the next start finds that the other is not the confirmed one any more.
func (k *confirmation) settle(st *slots.State) {
	if !st.OnTrial(k.booted) && st.Slots[k.booted].OK {
		st.MarkGood(k.booted)
	}
	if k.reason != "fallback" {
		return
	}
	for _, name := range st.Order {
		if name == k.booted {
			return
		}
		// No attempts used means that it was made the first choice after this boot.
		slot := st.Slots[name]
		if !slot.OK || slot.Tries == 0 {
			continue
		}
		why := "could not be loaded by the boot loader"
		if slot.Tries == slots.MaxTries {
			why = fmt.Sprintf("was started %d times and never confirmed: panic, hang or power loss", slots.MaxTries)
		}
		if name == st.Good {
			st.Blame(name, why)
		} else {
			st.MarkBad(name, why)
		}
		k.log.warn("fallback to %s: %s %s", k.booted, name, why)
	}
}

// judged reports whether somebody else has confirmed or rejected the slot.
func (k *confirmation) judged(store bootenv.Store) bool {
	vars, err := store.Load()
	if err != nil {
		return false
	}
	st, err := slots.Decode(vars, store.Kind())
	switch {
	case err != nil:
		return false
	case !st.OnTrial(k.booted):
		k.log.info("%s has been confirmed by somebody else", k.booted)
	case !st.Slots[k.booted].OK:
		k.log.info("%s has been marked bad by somebody else", k.booted)
	default:
		return false
	}
	return true
}

// fail ends a judgement whose gates did not pass; st is what the environment said when it began.
func (k *confirmation) fail(ctx context.Context, store bootenv.Store, st slots.State, v Verdict) (Verdict, error) {
	v.Verdict = verdictUnwell
	why := fmt.Sprintf("not healthy after %v: %s", k.deadline, health.Failed(v.Gates))
	if !v.OnTrial {
		return v, fmt.Errorf("%s is %s; it keeps running, as it has been confirmed before", k.booted, why)
	}
	other, _ := st.Alternative(k.booted)
	err := change(store, func(st *slots.State) error {
		if other, _ = st.Alternative(k.booted); other != "" {
			st.MarkBad(k.booted, brief(v.Gates))
		} else if passed(v.Gates, health.BootGate) {
			// A sick system that boots is of more use than the rescue system, where its attempts would end.
			st.Refresh(k.booted)
		}
		return nil
	})
	if other == "" {
		return v, errors.Join(fmt.Errorf("%s is %s; it keeps running, as no other slot can be booted", k.booted, why), err)
	}
	if err != nil {
		// The boot loader counts attempts by itself, so this cannot go on for ever.
		k.log.warn("%s cannot be marked bad: %v", k.booted, err)
	}
	k.log.warn("%s is %s; rebooting into %s", k.booted, why, other)
	return k.leave(ctx, v)
}

// leave reboots.
func (k *confirmation) leave(ctx context.Context, v Verdict) (Verdict, error) {
	v.Verdict = verdictRejected
	if err := k.reboot(context.WithoutCancel(ctx)); err != nil {
		return v, err
	}
	return v, fmt.Errorf("%s is rejected", k.booted)
}

// passed reports whether the named gate did.
func passed(results []health.Result, name string) bool {
	return slices.ContainsFunc(results, func(r health.Result) bool { return r.Name == name && r.OK })
}

// brief names all failed gates with as much of their reasons as a boot environment holds. What blocks the boot has precedence:
// the other gates fail because of it.
func brief(results []health.Result) string {
	const sep = "; "
	left := 120
	failed := slices.DeleteFunc(slices.Clone(results), func(r health.Result) bool { return r.OK })
	parts := make([]string, len(failed))
	for i, r := range failed {
		others := failed[i+1:]
		share := left / (1 + len(others))
		if r.Name == health.BootGate {
			share = left
			for _, o := range others {
				share -= len(sep + o.Name)
			}
		}
		part := r.Name + ": " + r.Reason
		parts[i] = strings.TrimRight(strings.ToValidUTF8(part[:min(len(part), max(share-len(sep), 0))], ""), ": ")
		left -= len(parts[i] + sep)
	}
	return strings.Join(parts, sep)
}

// logger writes lines as the journal takes them, with the priority in front.
type logger struct {
	w       io.Writer
	journal bool
}

func (l logger) info(format string, args ...any) { l.print("<6>", format, args...) }
func (l logger) warn(format string, args ...any) { l.print("<4>", format, args...) }

func (l logger) print(priority, format string, args ...any) {
	if !l.journal {
		priority = ""
	}
	fmt.Fprintf(l.w, priority+format+"\n", args...)
}
