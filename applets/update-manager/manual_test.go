// SPDX-License-Identifier: Apache-2.0

package updatemanager

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const repo = "../.."

func repoFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(repo, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestManualNamesTestsThatExist(t *testing.T) {
	manual := repoFile(t, "docs/update-manager.md")
	known := map[string]bool{}
	err := filepath.WalkDir(repo, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.Name() == "build" || d.Name() == ".git":
			return fs.SkipDir
		case strings.HasSuffix(path, ".story"), strings.HasSuffix(path, "_test.go"):
			known[d.Name()] = true
		}
		if strings.HasSuffix(path, "_test.go") {
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(repoFile(t, path[len(repo):]), -1) {
				known[m[1]] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`\bTest[A-Z]\w+|[\w-]+\.story|\w+_test\.go`).FindAllString(manual, -1)
	if len(named) < 25 {
		t.Errorf("the manual names %d tests only", len(named))
	}
	for _, name := range named {
		if !known[name] {
			t.Errorf("the manual names %s, which there is not", name)
		}
	}
}

func TestExitCodesAreThoseOfTheManual(t *testing.T) {
	manual := repoFile(t, "docs/update-manager.md")
	for _, c := range Command().Sub {
		row := regexp.MustCompile("(?m)^\\| `" + c.Name + `\b.*\| (.*) \|$`).FindStringSubmatch(manual)
		if row == nil {
			t.Errorf("the manual has no exit codes of %s", c.Name)
			continue
		}
		documented := regexp.MustCompile(`\b\d\b`).FindAllString(row[1], -1)
		var known []string
		for _, e := range c.Exit {
			known = append(known, strconv.Itoa(e.Code))
		}
		if !slices.Equal(documented, known) {
			t.Errorf("%s: the manual has exit codes %v, the help has %v", c.Name, documented, known)
		}
	}
}

func TestUnitsSetVariablesThatAreKnown(t *testing.T) {
	known := map[string]bool{}
	var walk func(reflect.Type)
	walk = func(s reflect.Type) {
		for _, field := range reflect.VisibleFields(s) {
			if env := field.Tag.Get("env"); env != "" {
				known[env] = true
			} else if field.Type.Kind() == reflect.Struct && !field.Anonymous {
				walk(field.Type)
			}
		}
	}
	walk(reflect.TypeFor[options]())
	set := 0
	for _, unit := range []string{
		"applets/update-manager/update-manager.service", "meta-layer/recipes-connectivity/mosquitto/files/usr/lib/systemd/system/update-manager.service.d/broker.conf",
	} {
		for line := range strings.Lines(repoFile(t, unit)) {
			list, ok := strings.CutPrefix(line, "Environment=")
			if !ok {
				continue
			}
			for _, pair := range strings.Fields(list) {
				set++
				if key, _, _ := strings.Cut(pair, "="); !known[key] {
					t.Errorf("%s sets %s, which is not known", unit, key)
				}
			}
		}
	}
	if set == 0 || !known["LOG_LEVEL"] {
		t.Errorf("%d variables are set, known are %v", set, known)
	}
}
