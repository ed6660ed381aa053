// SPDX-License-Identifier: Apache-2.0

package ctrupdate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"sdvbox/platform/ctrmodel"
	"sdvbox/platform/updateproto"
)

// kind is what is to be done about a container.
type kind string

const (
	create   kind = "create"
	recreate kind = "recreate" // another container takes its place
	update   kind = "update"   // as it runs
	check    kind = "check"    // that it runs
	destroy  kind = "destroy"
)

// desired is what a desired state says, as far as it makes sense without a look at the containers.
type desired struct {
	wanted    []*wanted // in the order of the message
	baselines []updateproto.Baseline
	system    []string // names of containers that are left alone, if the message has any to say about them
	hasSystem bool
	scoped    *bool // replaces what is configured
}

// read understands a desired state of a domain.
func read(ds updateproto.DesiredState) (*desired, error) {
	if len(ds.Domains) != 1 {
		return nil, fmt.Errorf("desired state: %d domains, expected one", len(ds.Domains))
	}
	domain := ds.Domains[0]
	d := &desired{baselines: ds.Baselines}
	for _, kv := range domain.Config {
		switch kv.Key {
		case "systemContainers":
			d.hasSystem, d.system = true, split(kv.Value)
		case "scoped":
			scoped, err := strconv.ParseBool(kv.Value)
			if err != nil {
				return nil, fmt.Errorf("desired state: scoped %.40q, expected true or false", kv.Value)
			}
			d.scoped = &scoped
		}
	}
	seen := map[string]bool{}
	for _, c := range domain.Components {
		w, err := parse(c)
		if err != nil {
			return nil, err
		}
		if seen[c.ID] {
			return nil, fmt.Errorf("component %q is there twice", c.ID)
		}
		seen[c.ID] = true
		d.wanted = append(d.wanted, w)
	}
	in := map[string]string{}
	for _, b := range ds.Baselines {
		for _, id := range b.Components {
			name, ok := strings.CutPrefix(id, domain.ID+":")
			switch other, used := in[name]; {
			case !ok:
			case !seen[name]:
				return nil, fmt.Errorf("baseline %q: there is no component %q", b.Title, id)
			case used:
				return nil, fmt.Errorf("baseline %q: component %q is in baseline %q already", b.Title, id, other)
			default:
				in[name] = b.Title
			}
		}
	}
	return d, nil
}

// split takes names apart that are separated by commas.
func split(text string) (names []string) {
	for name := range strings.SplitSeq(text, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// action is what is to be done about one container, and how far that is. All of it is kept with the activity.
type action struct {
	Name     string `json:"name"`
	Version  string `json:"version,omitempty"`
	Kind     kind   `json:"kind"`
	Baseline string `json:"baseline"`
	With     string `json:"with,omitempty"`   // the first baseline of those that have been activated together
	Old      string `json:"old,omitempty"`    // id of the container that is there
	New      string `json:"new,omitempty"`    // id of the one that is made
	Moved    bool   `json:"moved,omitempty"`  // the name of the image stands for another one than the old one was made of
	Steady   bool   `json:"steady,omitempty"` // the old one runs, as it has for some time
	Once     bool   `json:"once,omitempty"`   // the new one has done what it is for, and has ended
	Woken    bool   `json:"woken,omitempty"`  // the old one has been started, though somebody had stopped it
	Over     string `json:"over,omitempty"`   // how CLEANUP ends it
	// Before is what has been changed of the container as it runs.
	Before *settings `json:"before,omitempty"`

	Status   string `json:"status"`
	Message  string `json:"message,omitempty"`
	progress int
}

// The ways an action is over.
const (
	committed = "committed"
	undone    = "undone"
)

// stays reports whether CLEANUP makes an action last.
func (a *action) stays() bool { return a.Over == committed }

// id is the container that is to run in the end.
func (a *action) id() string {
	if a.New != "" {
		return a.New
	}
	return a.Old
}

// plan compares what is desired of a domain with the containers that are in charge. Moved tells of containers whose image is no
// longer the one that its name stands for.
func plan(domain string, d *desired, current []*ctrmodel.Container, scoped bool, moved map[string]bool) []*action {
	if d.scoped != nil {
		scoped = *d.scoped
	}
	there := map[string]*ctrmodel.Container{}
	for _, c := range current {
		there[c.Name] = c
	}
	var list []*action
	for _, w := range d.wanted {
		c := there[w.Name]
		delete(there, w.Name)
		if slices.Contains(d.system, w.Name) {
			continue
		}
		a := &action{Name: w.Name, Version: w.version, Kind: create, Baseline: baselineOf(domain, d.baselines, w.Name)}
		if c != nil {
			a.Old, a.Moved = c.ID, moved[c.ID]
			a.Kind = difference(c, w, a.Moved)
		}
		a.Message = intent(a.Kind, w.odd)
		list = append(list, a)
	}
	for _, c := range current {
		if there[c.Name] != nil && !slices.Contains(d.system, c.Name) && !scoped {
			list = append(list, &action{
				Name: c.Name, Version: versionOf(c.Image.Name), Kind: destroy, Baseline: domain + ":remove-components", Old: c.ID, Message: intent(destroy, nil),
			})
		}
	}
	for _, a := range list {
		a.Status = updateproto.ActionIdentified
	}
	return list
}

// difference says what it takes to make a container as wanted.
func difference(c *ctrmodel.Container, w *wanted, moved bool) kind {
	named := w.HostName != "" && w.HostName != c.HostName && c.HostConfig.NetworkMode != ctrmodel.HostNetwork ||
		w.DomainName != "" && w.DomainName != c.DomainName
	switch change := ctrmodel.Compare(c, w.Container); {
	case change == ctrmodel.Recreate || moved || named:
		return recreate
	case change == ctrmodel.InPlace:
		return update
	}
	return check
}

// intent says in words what is going to happen.
func intent(k kind, odd []string) string {
	text := map[kind]string{
		create:   "New container will be created and started.",
		recreate: "Existing container will be replaced by a new one.",
		update:   "Existing container will be updated as it runs.",
		check:    "Existing container is as desired, only checked to be running.",
		destroy:  "Existing container is no longer desired and will be removed.",
	}[k]
	if odd != nil {
		text += " Ignored: " + strings.Join(odd, ", ") + "."
	}
	return text
}

// baselineOf returns the title of the baseline that a container is in, its own if nobody has named one.
func baselineOf(domain string, baselines []updateproto.Baseline, name string) string {
	for _, b := range baselines {
		if b.Title != "" && b.Title != "*" && slices.Contains(b.Components, domain+":"+name) {
			return b.Title
		}
	}
	return domain + ":" + name
}

// titles returns the baselines of actions, in their order.
func titles(list []*action) (titles []string) {
	for _, a := range list {
		if !slices.Contains(titles, a.Baseline) {
			titles = append(titles, a.Baseline)
		}
	}
	return titles
}

// inOrder returns actions in the order of the message, except that a container comes after those whose names it wants to find.
func inOrder(list []*action, wants map[string]*wanted) []*action {
	byHost := map[string]*action{}
	for _, a := range list {
		if w := wants[a.Name]; w != nil {
			whole := w.Clone()
			whole.Defaults(func() string { return "any" })
			byHost[whole.HostName] = a
		}
	}
	var ordered []*action
	met := map[*action]bool{}
	var visit func(*action)
	visit = func(a *action) {
		if met[a] {
			return
		}
		met[a] = true
		if w := wants[a.Name]; w != nil {
			for _, entry := range w.HostConfig.ExtraHosts {
				_, value, _ := ctrmodel.ParseExtraHost(entry)
				if host, ok := strings.CutPrefix(value, ctrmodel.ContainerPrefix); ok && byHost[host] != nil {
					visit(byHost[host])
				}
			}
		}
		ordered = append(ordered, a)
	}
	for _, a := range list {
		visit(a)
	}
	return ordered
}

// contend reports whether two containers want the same port of the host.
func contend(a, b *ctrmodel.Container) bool {
	return slices.ContainsFunc(a.HostConfig.Ports, func(p ctrmodel.Port) bool {
		return slices.ContainsFunc(b.HostConfig.Ports, func(q ctrmodel.Port) bool { return overlap(p, q) })
	})
}

// overlap reports whether there is a port of the host that both say something of.
func overlap(p, q ctrmodel.Port) bool {
	return p.Proto == q.Proto && p.HostPort <= max(q.HostPort, q.HostPortEnd) && q.HostPort <= max(p.HostPort, p.HostPortEnd) &&
		(p.HostIP == q.HostIP || everywhere(p.HostIP) || everywhere(q.HostIP))
}

// everywhere reports whether an address stands for all that the host has.
func everywhere(ip string) bool { return ip == "" || ip == "0.0.0.0" || ip == "::" }

// clash says which containers cannot run at the same time.
func (d *desired) clash() error {
	for i, a := range d.wanted {
		ports := a.HostConfig.Ports
		for j, p := range ports {
			// The same twice does no harm.
			if slices.ContainsFunc(ports[:j], func(q ctrmodel.Port) bool { return p != q && overlap(p, q) }) {
				return fmt.Errorf("component %q wants port %d of the host twice", a.Name, p.HostPort)
			}
		}
		for _, b := range d.wanted[:i] {
			if contend(a.Container, b.Container) {
				return fmt.Errorf("components %q and %q want the same port of the host", b.Name, a.Name)
			}
		}
	}
	return nil
}
