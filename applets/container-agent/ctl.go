// SPDX-License-Identifier: Apache-2.0

package containeragent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/platform/applet"
	"sdvbox/platform/config"
	"sdvbox/platform/durable"
	"sdvbox/platform/images"
)

const (
	exitUntold      = 3
	exitInterrupted = 130 // as a shell says it

	registriesKey = "containers.registry_configurations"
	insecureKey   = "containers.insecure_registries"
)

// Editor is the options of sdv-kanto-ctl.
type Editor struct {
	NoReload bool   `short:"r" long:"no-reload" description:"do not tell the container agent"`
	ANSI     bool   `long:"ansi" hidden:"true"`
	Verbose  bool   `short:"v" long:"verbose" description:"say more"`
	File     string `long:"config-file" value-name:"FILE" description:"configuration of the container agent"`
}

// ControlCommand describes sdv-kanto-ctl.
func ControlCommand() applet.Command {
	e := &Editor{File: configFile}
	initial := *e
	exits := []applet.ExitCode{
		{Code: exitUntold, Meaning: "the configuration is changed, but the container agent could not be told"},
		{Code: exitInterrupted, Meaning: "it was interrupted before it changed anything"},
	}
	c := applet.Command{
		Name:    "sdv-kanto-ctl",
		Summary: "edit the configuration of the container agent",
		Description: `Changes a key, if the agent would understand the value, in one step: the file is the old one or the new one. Then the agent is told. It reads registries again as it runs; for anything else it is restarted, which containers do not notice.

A key is given with those around it, as containers.image_expiry. Passwords are not shown.`,
		Options: func() any {
			*e = initial // the commands share it, but help shows the defaults
			return e
		},
		Exit: exits,
		Run:  func(context.Context, *applet.Call) error { return applet.Help },
		Sub: []applet.Command{
			e.addRegistry(), e.removeRegistry(),
			e.command("remove-all-registries", "forget all registries", "", func(c *applet.Call, f *edited) error {
				return f.remove(strings.Split(registriesKey, "."))
			}),
			e.listRegistries(),
			{Name: "show-config", Summary: "print the configuration", Options: e.options, Run: func(_ context.Context, c *applet.Call) error {
				f, err := e.read()
				if err != nil {
					return err
				}
				return f.show(c.Stdout)
			}},
			e.setValue("set-value", false), e.setValue("set", true),
			e.command("add-entry", "add a text to a list", "KEY TEXT", func(c *applet.Call, f *edited) error {
				return f.addEntry(c.Args[0], c.Args[1])
			}),
			e.command("remove-entry", "remove a text from a list", "KEY TEXT", func(c *applet.Call, f *edited) error {
				return f.removeEntry(c.Args[0], c.Args[1])
			}),
		},
	}
	for i := range c.Sub {
		c.Sub[i].Exit = exits
	}
	return c
}

func (e *Editor) options() any { return e }

// command is one that changes the configuration and shows it.
func (e *Editor) command(name, summary, args string, change func(*applet.Call, *edited) error) applet.Command {
	return applet.Command{
		Name: name, Summary: summary, Args: args, Options: e.options,
		Run: func(ctx context.Context, c *applet.Call) error {
			if len(c.Args) != len(strings.Fields(args)) {
				return applet.Exit(exitUsage, fmt.Errorf("expected %s", args))
			}
			if err := wellFormed(c.Args...); err != nil {
				return err
			}
			f, err := e.update(ctx, c, func(f *edited) error { return change(c, f) })
			if err != nil {
				return err
			}
			return f.show(c.Stdout)
		},
	}
}

// update reads, changes and writes the file, which nobody else does meanwhile, and lets the agent know.
func (e *Editor) update(ctx context.Context, c *applet.Call, change func(*edited) error) (*edited, error) {
	unlock, err := lockDir(ctx, filepath.Dir(target(e.File)), func() {
		fmt.Fprintf(c.Stderr, "%s: waiting for another edit of %s\n", c.Name, e.File)
	})
	if err != nil {
		return nil, fmt.Errorf("lock configuration: %w", remedy(err))
	}
	f, err := e.read()
	if err == nil {
		err = change(f)
	}
	if err == nil && ctx.Err() != nil {
		err = applet.Exit(exitInterrupted, errInterrupted)
	}
	if err == nil {
		err = e.save(c, f)
	}
	unlock()
	if err == nil {
		err = e.tell(ctx, f)
	}
	return f, err
}

// lockDir waits until nobody else has the directory, and says so if that takes a second.
func lockDir(ctx context.Context, dir string, say func()) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	const pause = 20 * time.Millisecond
	for waited := time.Duration(0); ; waited += pause {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			break
		}
		if waited == time.Second {
			say()
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, applet.Exit(exitInterrupted, errInterrupted)
		case <-time.After(pause):
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// target is the file that symbolic links lead to, which need not be there.
func target(file string) string {
	for range 40 {
		link, err := os.Readlink(file)
		if err != nil {
			break
		}
		if !filepath.IsAbs(link) {
			link = filepath.Join(filepath.Dir(file), link)
		}
		file = link
	}
	return file
}

func (e *Editor) setValue(name string, hidden bool) applet.Command {
	return applet.Command{
		Name: name, Summary: "set keys", Args: "KEY VALUE...", Options: e.options, Hidden: hidden, Ahead: true,
		Description: "Keys that belong together, such as connection.transport.client_cert and client_key, are given together. With - a value is read from standard input, which has a line for each if there are more of them. Options go before the first key: a value may begin with a dash.",
		Run: func(ctx context.Context, c *applet.Call) error {
			args := c.Args
			if i := slices.Index(args, "--"); i >= 0 && len(args)%2 != 0 { // is none of the pairs
				args = slices.Delete(slices.Clone(args), i, i+1)
			}
			if len(args) == 0 || len(args)%2 != 0 {
				return applet.Exit(exitUsage, errors.New("expected pairs of KEY and VALUE, and options before them"))
			}
			asked := 0
			for i := 1; i < len(args); i += 2 {
				if args[i] == "-" {
					asked++
				}
			}
			stdin := newSource(c, asked)
			var edits []assignment
			for pair := range slices.Chunk(args, 2) {
				key, value := pair[0], pair[1]
				switch {
				case strings.HasPrefix(key, "-"):
					return applet.Exit(exitUsage, errors.New("options go before the first KEY"))
				case value == "-":
					var err error
					if value, err = stdin.read(ctx, key, isSecret(key)); err != nil {
						return fmt.Errorf("%s: %w", key, err)
					}
				case isSecret(key):
					fmt.Fprintf(c.Stderr, "%s: warning: others can see a password on the command line, better give - and write it to standard input\n", c.Name)
				}
				if err := wellFormed(key, value); err != nil {
					return err
				}
				edits = append(edits, typed(key, value))
			}
			f, err := e.update(ctx, c, func(f *edited) error { return f.change(edits...) })
			if err != nil {
				return err
			}
			return f.show(c.Stdout)
		},
	}
}

func (e *Editor) addRegistry() applet.Command {
	type options struct {
		*Editor
		Host          string   `short:"h" long:"hostname" value-name:"HOST[:PORT]" required:"yes" description:"the registry"`
		User          string   `short:"u" long:"username" value-name:"NAME" required:"yes" unquote:"false" description:"user name there"`
		Password      verbatim `short:"p" long:"password" value-name:"PASSWORD" unquote:"false" description:"password there; others can see it here, better use one of the following"`
		PasswordFile  string   `long:"password-file" value-name:"FILE" unquote:"false" description:"file with the password"`
		PasswordStdin bool     `long:"password-stdin" description:"read the password from standard input"`
	}
	return applet.Command{
		Name: "add-registry", Summary: "set the credentials of a registry",
		Options: func() any { return &options{Editor: e} },
		Run: func(ctx context.Context, c *applet.Call) error {
			o := c.Options.(*options)
			if !isRegistry(o.Host) {
				return applet.Exit(exitUsage, fmt.Errorf("registry %q: %s", o.Host, expectedRegistry))
			}
			if o.User == "" {
				return applet.Exit(exitUsage, errors.New("the user name is empty"))
			}
			password, err := password(ctx, c, string(o.Password), o.PasswordFile, o.PasswordStdin)
			if err == nil {
				err = wellFormed(o.Host, o.User, password)
			}
			if err != nil {
				return err
			}
			f, err := e.update(ctx, c, func(f *edited) error {
				return f.put(append(strings.Split(registriesKey, "."), o.Host, "credentials"), images.Credentials{UserID: o.User, Password: password})
			})
			if err != nil {
				return err
			}
			return f.showRegistries(c, o.Host)
		},
	}
}

// verbatim is a text that may begin as an option does.
type verbatim string

// IsValidValue lets it.
func (*verbatim) IsValidValue(string) error { return nil }

// password returns the one that is given.
func password(ctx context.Context, c *applet.Call, argument, file string, stdin bool) (string, error) {
	given := 0
	for _, is := range []bool{argument != "", file != "", stdin} {
		if is {
			given++
		}
	}
	if given != 1 {
		return "", applet.Exit(exitUsage, errors.New("expected one of --password-stdin, --password-file and --password"))
	}
	text, err := argument, error(nil)
	switch {
	case argument != "":
		fmt.Fprintf(c.Stderr, "%s: warning: others can see a password on the command line, better use --password-stdin\n", c.Name)
	case stdin:
		text, err = newSource(c, 1).read(ctx, "Password", true)
	default:
		text, err = passwordFile(file)
	}
	if err != nil {
		err = fmt.Errorf("password: %w", err)
	}
	return text, err
}

func passwordFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxInput+1))
	if err != nil {
		return "", err
	}
	return secret(text)
}

func (e *Editor) removeRegistry() applet.Command {
	type options struct {
		*Editor
		Host string `short:"h" long:"hostname" value-name:"HOST[:PORT]" required:"yes" description:"the registry"`
	}
	return applet.Command{
		Name: "remove-registry", Summary: "forget a registry",
		Options: func() any { return &options{Editor: e} },
		Run: func(ctx context.Context, c *applet.Call) error {
			f, err := e.update(ctx, c, func(f *edited) error {
				return f.remove(append(strings.Split(registriesKey, "."), c.Options.(*options).Host))
			})
			if err != nil {
				return err
			}
			return f.showRegistries(c, "")
		},
	}
}

func (e *Editor) listRegistries() applet.Command {
	return applet.Command{
		Name: "list-registries", Summary: "print the registries that have a configuration",
		Options: e.options,
		Run: func(_ context.Context, c *applet.Call) error {
			f, err := e.read()
			if err != nil {
				return err
			}
			hosts := f.registries()
			if c.JSON {
				return json.NewEncoder(c.Stdout).Encode(hosts)
			}
			if len(hosts) == 0 {
				fmt.Fprintf(c.Stderr, "%s: no registry is configured\n", c.Name)
			}
			for _, host := range hosts {
				fmt.Fprintf(c.Stdout, "%q\n", host)
			}
			return nil
		},
	}
}

// edited is a configuration file under the hand.
type edited struct {
	name     string
	old, now []byte
	perm     os.FileMode
}

// read reads the file. One that is empty or not there has no keys.
func (e *Editor) read() (*edited, error) {
	f := &edited{name: target(e.File), perm: 0o644}
	data, err := os.ReadFile(f.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("read configuration: %w", remedy(err))
	default:
		if fi, err := os.Stat(f.name); err == nil {
			f.perm = fi.Mode().Perm()
		}
	}
	f.old = data
	if len(bytes.TrimSpace(data)) == 0 {
		data = []byte("{}")
	}
	f.now = data
	_, err = f.warnings()
	return f, err
}

// warnings are what the agent would say.
func (f *edited) warnings() ([]config.Warning, error) {
	s := defaults()
	file, err := config.Decode(f.name, f.now, &s)
	if err != nil {
		return nil, err
	}
	s.check(file)
	return file.Warnings, nil
}

// put sets a key. The agent must understand that.
func (f *edited) put(path []string, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return f.change(assignment{path, raw})
}

// remove takes a key away, if it is there.
func (f *edited) remove(path []string) error { return f.change(assignment{path, nil}) }

// An assignment gives the key at a path a value; nil takes the key away.
type assignment struct {
	path  []string
	value json.RawMessage
}

// change makes some edits, or none if the agent would not understand what they make together.
func (f *edited) change(edits ...assignment) error {
	before, err := f.warnings()
	if err != nil {
		return err
	}
	old := f.now
	for _, a := range edits {
		if f.now, err = edit(f.now, a.path, a.value); err != nil {
			f.now = old
			return err
		}
	}
	after, err := f.warnings()
	if err != nil {
		return err
	}
	for _, w := range after {
		known := func(old config.Warning) bool { return old.Key == w.Key && old.Text == w.Text }
		if !slices.ContainsFunc(before, known) && w.Text != noEffect {
			f.now = old
			return fmt.Errorf("%s: %s", w.Key, strings.TrimRight(strings.TrimSuffix(w.Text, "the default applies"), "; ,"))
		}
	}
	return nil
}

// typed gives a key the value text, which is a string if the agent takes one there, or else JSON if it can be that.
func typed(key, text string) assignment {
	path := strings.Split(key, ".")
	value, _ := json.Marshal(text)              // a string
	alone, _ := edit([]byte("{}"), path, value) // an object
	s := defaults()
	f, err := config.Decode("", alone, &s)
	if (err != nil || len(f.Warnings) > 0) && json.Valid([]byte(text)) {
		value = []byte(text)
	}
	return assignment{path, value}
}

// entries is the list of texts that a key has, or its default if it is not there. It is nil if there is none.
func (f *edited) entries(path []string) (list []string, there bool, err error) {
	raw := lookup(f.now, path)
	if there = raw != nil; !there {
		initial, err := json.Marshal(defaults())
		if err != nil {
			return nil, false, err
		}
		raw = lookup(initial, path)
		if json.Unmarshal(raw, &list) == nil && list == nil {
			list = []string{}
		}
		return list, false, nil // what the agent takes is for change to say
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, true, fmt.Errorf("%s: expected a list of texts", strings.Join(path, "."))
	}
	return append([]string{}, list...), true, nil
}

// addEntry adds a text to a list that has it not yet.
func (f *edited) addEntry(key, text string) error {
	path := strings.Split(key, ".")
	list, there, err := f.entries(path)
	if err != nil || slices.Contains(list, text) {
		return err
	}
	if !there && strings.EqualFold(key, insecureKey) {
		list = nil // who used the original looks for the first entry, and its file has no default
	}
	return f.put(path, append(list, text))
}

// removeEntry removes a text from a list, wherever it is there.
func (f *edited) removeEntry(key, text string) error {
	path := strings.Split(key, ".")
	list, _, err := f.entries(path)
	if err != nil || list != nil && !slices.Contains(list, text) {
		return err
	}
	return f.put(path, append([]string{}, slices.DeleteFunc(list, func(entry string) bool { return entry == text })...))
}

func (f *edited) registries() []string {
	hosts := []string{}
	for _, m := range members(lookup(f.now, strings.Split(registriesKey, "."))) {
		hosts = append(hosts, m.name)
	}
	return hosts
}

// differs reports whether the file is not as it was.
func (f *edited) differs() bool {
	var same bytes.Buffer
	return json.Compact(&same, f.old) != nil || !bytes.Equal(same.Bytes(), compact(f.now))
}

// save writes the file if that makes a difference.
func (e *Editor) save(c *applet.Call, f *edited) error {
	if !f.differs() {
		fmt.Fprintln(c.Stderr, "No difference to existing configuration.")
		return nil
	}
	if !bytes.Equal(compact(mask("", f.now)), compact(f.now)) {
		f.perm &= 0o600 // there are secrets in it
	}
	var text bytes.Buffer
	if err := json.Indent(&text, f.now, "", "  "); err != nil {
		return err
	}
	text.WriteByte('\n')
	err := durable.WriteFile(f.name, text.Bytes(), f.perm)
	if errors.Is(err, unix.EBUSY) { // it is mounted there
		err = f.overwrite(text.Bytes())
	}
	if err != nil {
		return fmt.Errorf("write configuration: %w", remedy(err))
	}
	if e.Verbose {
		fmt.Fprintf(c.Stderr, "%s: %s is written\n", c.Name, f.name)
	}
	return nil
}

// overwrite writes the file where it is. While it does there is a copy, for who has a power cut just then.
func (f *edited) overwrite(data []byte) error {
	file, err := os.OpenFile(f.name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	backup := f.name + ".backup"
	if err := durable.WriteFile(backup, f.old, f.perm&0o600); err != nil {
		return err
	}
	if err := file.Chmod(f.perm); err != nil {
		return errors.Join(err, durable.Remove(backup))
	}
	if _, err = file.Write(data); err == nil {
		err = errors.Join(file.Truncate(int64(len(data))), file.Sync())
	}
	if err != nil {
		return fmt.Errorf("%w; what it was is in %s", err, backup)
	}
	return durable.Remove(backup)
}

// remedy adds to an error what can be done about it.
func remedy(err error) error {
	switch {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: remount it writable, as mount -o remount,rw does", err)
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return fmt.Errorf("%w: run this as root", err)
	}
	return err
}

// tell lets the agent know of a difference.
func (e *Editor) tell(ctx context.Context, f *edited) error {
	if e.NoReload || !f.differs() {
		return nil
	}
	verb := "reload"
	if !bytes.Equal(withoutRegistries(f.old), withoutRegistries(f.now)) {
		verb = "try-restart"
	}
	if err := systemctl(ctx, verb); err != nil {
		return applet.Exit(exitUntold, fmt.Errorf("the configuration is changed, but the container agent does not know: %w", err))
	}
	return nil
}

// systemctl has the service manager tell the agent. One that is stopped reads its configuration when it starts; one that has failed,
// maybe because of its configuration, is started.
func systemctl(ctx context.Context, verb string) error {
	is := func(state string) bool {
		return exec.CommandContext(ctx, "systemctl", "is-"+state, "--quiet", name+".service").Run() == nil
	}
	if verb == "reload" && !is("active") {
		verb = "try-restart"
	}
	if verb == "try-restart" && is("failed") {
		verb = "restart"
	}
	out, err := exec.CommandContext(ctx, "systemctl", verb, name+".service").CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", verb, err, bytes.TrimSpace(out))
	}
	return nil
}

// withoutRegistries is the rest of a configuration.
func withoutRegistries(data []byte) []byte {
	if len(bytes.TrimSpace(data)) == 0 {
		data = []byte("{}")
	}
	for _, key := range []string{registriesKey, insecureKey} {
		if less, err := edit(data, strings.Split(key, "."), nil); err == nil {
			data = less
		}
	}
	if c := string(lookup(data, []string{"containers"})); c == "{}" || c == "null" {
		data, _ = edit(data, []string{"containers"}, nil)
	}
	return compact(data)
}

func compact(data []byte) []byte {
	var b bytes.Buffer
	_ = json.Compact(&b, data) // it is JSON
	return b.Bytes()
}

// show prints the configuration without its secrets.
func (f *edited) show(w io.Writer) error { return write(w, f.now) }

func (f *edited) showRegistries(c *applet.Call, like string) error {
	found := []byte("{}")
	for _, m := range members(lookup(f.now, strings.Split(registriesKey, "."))) {
		if strings.Contains(m.name, like) {
			found, _ = edit(found, []string{m.name}, m.value) // an object
		}
	}
	return write(c.Stdout, found)
}

func write(w io.Writer, data []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, mask("", data), "", "  "); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%s\n", &b)
	return err
}

const masked = "***"

// isSecret reports whether the value of a key is a password.
func isSecret(key string) bool { return strings.HasSuffix(strings.ToLower(key), "password") }

// mask replaces what is secret in the value of a key: passwords, those after the files of keys, and those in addresses.
func mask(key string, raw json.RawMessage) json.RawMessage {
	if isSecret(key) && string(raw) != `""` {
		return json.RawMessage(`"` + masked + `"`)
	}
	if list := members(raw); list != nil {
		for i, m := range list {
			list[i].value = mask(m.name, m.value)
		}
		return object(list)
	}
	var text string
	var entries []json.RawMessage
	switch {
	case json.Unmarshal(raw, &text) == nil:
		hidden := text
		if file, _, found := strings.Cut(text, ":"); found && strings.EqualFold(key, "image_dec_keys") {
			hidden = file + ":" + masked
		} else if scheme, rest, found := strings.Cut(text, "://"); found {
			authority, path, _ := strings.Cut(rest, "/")
			if i := strings.LastIndexByte(authority, '@'); i >= 0 {
				hidden = scheme + "://" + masked + strings.TrimSuffix(authority[i:]+"/"+path, "/")
			}
		}
		if hidden != text {
			raw, _ = json.Marshal(hidden) // a string
		}
	case json.Unmarshal(raw, &entries) == nil && entries != nil:
		for i := range entries {
			entries[i] = mask(key, entries[i])
		}
		raw, _ = json.Marshal(entries) // of JSON
	}
	return raw
}

// A member is a key of an object and its value. The order of keys is that of whoever wrote them.
type member struct {
	name  string
	value json.RawMessage
}

// members are those of an object, nil if raw is none.
func members(raw []byte) []member {
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil
	}
	list := []member{}
	for d.More() {
		var m member
		t, err := d.Token()
		if err == nil {
			m.name, _ = t.(string)
			err = d.Decode(&m.value)
		}
		if err != nil {
			return nil
		}
		if i := slices.IndexFunc(list, func(other member) bool { return other.name == m.name }); i >= 0 {
			list = slices.Delete(list, i, i+1) // the last one applies
		}
		list = append(list, m)
	}
	return list
}

func object(list []member) json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		key, _ := json.Marshal(m.name) // a string
		b.Write(key)
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes()
}

// lookup returns the value at a path, or nil.
func lookup(raw json.RawMessage, path []string) json.RawMessage {
	for _, name := range path {
		list := members(raw)
		i := slices.IndexFunc(list, func(m member) bool { return strings.EqualFold(m.name, name) })
		if i < 0 {
			return nil
		}
		raw = list[i].value
	}
	return raw
}

// edit sets the value at a path, or removes it if value is nil. Objects on the way are made, also of null.
func edit(raw json.RawMessage, path []string, value json.RawMessage) (json.RawMessage, error) {
	return editBelow(nil, raw, path, value)
}

// editBelow edits the value raw of the key above.
func editBelow(above []string, raw json.RawMessage, path []string, value json.RawMessage) (json.RawMessage, error) {
	if len(path) == 0 {
		return value, nil
	}
	list := members(raw)
	if list == nil && string(raw) != "null" {
		return nil, fmt.Errorf("%s: not an object", cmp.Or(strings.Join(above, "."), "the configuration"))
	}
	i := slices.IndexFunc(list, func(m member) bool { return strings.EqualFold(m.name, path[0]) })
	if i < 0 {
		if value == nil {
			return raw, nil
		}
		i, list = len(list), append(list, member{path[0], json.RawMessage("{}")})
	}
	inner, err := editBelow(append(above, path[0]), list[i].value, path[1:], value)
	if err != nil {
		return nil, err
	}
	if inner == nil {
		return object(slices.Delete(list, i, i+1)), nil
	}
	list[i].value = inner
	return object(list), nil
}
