// SPDX-License-Identifier: Apache-2.0

// Package config reads the JSON configuration of a daemon the forgiving way: a file made for the program that the daemon
// replaces, or for another version of it, still loads. What is not understood keeps its default and is reported with file, line
// and key, for people to see; only a file that is not JSON is an error.
package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"time"
)

// ErrEmpty is the error of a file with nothing but white space in it.
var ErrEmpty = errors.New("empty")

// maxSize is far more than anybody writes by hand.
const maxSize = 4 << 20

// A Warning is about something that is not as expected, in a file unless that is empty. It never shows what may be a secret.
type Warning struct {
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
	Key  string `json:"key"` // with those of the objects around it: agents.containers.readTimeout
	Text string `json:"text"`
}

func (w Warning) String() string {
	if w.File == "" {
		return w.Key + ": " + w.Text
	}
	return fmt.Sprintf("%s:%d: %s: %s", w.File, w.Line, w.Key, w.Text)
}

// A Value knows more than one way to be written.
type Value interface {
	// UnmarshalConfig takes a JSON value other than null and leaves the old one where that is an error. What is odd about a
	// value that is taken all the same is returned for a warning.
	UnmarshalConfig(raw []byte) (odd string, err error)
}

// A File is a configuration file that has been read. The zero File is none.
type File struct {
	Name     string
	Warnings []Warning

	data     []byte
	lines    map[string]int // of the keys that are there
	at, line int            // where the last key was
}

// Read decodes a file into the struct that into points to, see Decode.
func Read(name string, into any) (*File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if len(data) > maxSize {
		return nil, fmt.Errorf("configuration %s: longer than %d bytes", name, maxSize)
	}
	return Decode(name, data, into)
}

// Decode decodes a JSON object into the struct that into points to. The values already there are the defaults. The fields are
// named by json tags, in any letter case; those without one are not for the file. Structs are merged key by key, lists and maps
// replace the default. An element of a map begins with what its method SetDefaults sets, if it has one.
//
// A time.Duration is written as in Go, 1m30s, or as a number of milliseconds, with a warning.
func Decode(name string, data []byte, into any) (*File, error) {
	f := &File{Name: name, data: data, lines: make(map[string]int), line: 1}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, fmt.Errorf("configuration %s:1: not JSON: %w", name, ErrEmpty)
	}
	var raw json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		if e := (*json.SyntaxError)(nil); errors.As(err, &e) {
			f.advance(max(0, int(e.Offset)-1)) // it has read the byte that is wrong
		}
		return nil, fmt.Errorf("configuration %s:%d: not JSON: %w", name, f.line, err)
	}
	if kind(raw) != "an object" {
		return nil, fmt.Errorf("configuration %s: expected an object, found %s", name, kind(raw))
	}
	f.object(reflect.ValueOf(into).Elem(), "", raw, bytes.IndexByte(data, '{'))
	return f, nil
}

// Has reports whether the file has a key that the struct knows.
func (f *File) Has(key string) bool { return f.lines[key] > 0 }

// Warn adds a warning about a key, with its line if the file has it.
func (f *File) Warn(key, text string) {
	w := Warning{Key: key, Text: text}
	if line, found := f.lines[key]; found {
		w.File, w.Line = f.Name, line
	}
	f.Warnings = append(f.Warnings, w)
}

// advance goes on to the byte at offset and returns the number of its line.
func (f *File) advance(offset int) int {
	f.line += bytes.Count(f.data[f.at:offset], []byte("\n"))
	f.at = offset
	return f.line
}

// set sets v from the JSON value raw, which is at offset. It reports whether it did.
func (f *File) set(v reflect.Value, key string, raw []byte, offset int) bool {
	if string(raw) == "null" {
		f.Warn(key, "null, the default applies")
		return false
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		return f.set(v.Elem(), key, raw, offset)
	}
	p := v.Addr().Interface()
	if d, ok := p.(*time.Duration); ok {
		p = (*Duration)(d)
	}
	if u, ok := p.(Value); ok {
		odd, err := u.UnmarshalConfig(raw)
		if err != nil {
			odd = err.Error() + ", the default applies"
		}
		if odd != "" {
			f.Warn(key, odd)
		}
		return err == nil
	}
	var expected string
	found := kind(raw)
	switch v.Kind() {
	case reflect.Struct:
		if expected = "an object"; found == expected {
			f.object(v, key, raw, offset)
			return true
		}
	case reflect.Map:
		if expected = "an object"; found == expected {
			f.entries(v, key, raw, offset)
			return true
		}
	case reflect.Slice:
		if expected = "a list"; found == expected {
			f.list(v, key, raw, offset)
			return true
		}
	case reflect.String:
		expected = "a string"
	case reflect.Bool:
		expected = "true or false"
	case reflect.Float32, reflect.Float64:
		expected = "a number"
	default:
		expected = "a whole number"
		if found == "a number" {
			found = fmt.Sprintf("%.20s", raw)
		}
	}
	if json.Unmarshal(raw, p) != nil {
		f.Warn(key, fmt.Sprintf("expected %s, found %s; the default applies", expected, found))
		return false
	}
	return true
}

// object sets the fields of v from a JSON object.
func (f *File) object(v reflect.Value, path string, raw []byte, offset int) {
	fields := make(map[string]reflect.StructField)
	for _, field := range reflect.VisibleFields(v.Type()) {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" && name != "-" {
			fields[strings.ToLower(name)] = field
		}
	}
	f.members(raw, offset, func(name string, raw []byte, at, offset int) {
		field, known := fields[strings.ToLower(name)]
		if known {
			name, _, _ = strings.Cut(field.Tag.Get("json"), ",")
		}
		key := f.found(path, name, at)
		if !known {
			f.Warn(key, "unknown key")
			return
		}
		f.set(v.FieldByIndex(field.Index), key, raw, offset)
	})
}

// entries sets the map v from a JSON object.
func (f *File) entries(v reflect.Value, path string, raw []byte, offset int) {
	v.Set(reflect.MakeMap(v.Type()))
	f.members(raw, offset, func(name string, raw []byte, at, offset int) {
		key := f.found(path, name, at)
		elem := reflect.New(v.Type().Elem()).Elem()
		target := elem
		if elem.Kind() == reflect.Pointer {
			elem.Set(reflect.New(elem.Type().Elem()))
			target = elem.Elem()
		}
		if d, ok := target.Addr().Interface().(interface{ SetDefaults() }); ok {
			d.SetDefaults()
		}
		if !f.set(target, key, raw, offset) && target.Kind() != reflect.Struct {
			return
		}
		v.SetMapIndex(reflect.ValueOf(name).Convert(v.Type().Key()), elem)
	})
}

// list sets the slice v from a JSON array, without the elements that do not fit.
func (f *File) list(v reflect.Value, path string, raw []byte, offset int) {
	list := reflect.MakeSlice(v.Type(), 0, 0)
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.Token()
	for i := 0; dec.More(); i++ {
		var value json.RawMessage
		dec.Decode(&value)
		at := offset + int(dec.InputOffset()) - len(value)
		key := fmt.Sprintf("%s[%d]", path, i)
		f.lines[key] = f.advance(at)
		elem := reflect.New(v.Type().Elem()).Elem()
		if f.set(elem, key, value, at) {
			list = reflect.Append(list, elem)
		}
	}
	v.Set(list)
}

// members calls yield for each member of a JSON object: its name, its value, and where in the file these are. That it is JSON
// has been checked.
func (f *File) members(raw []byte, offset int, yield func(name string, value []byte, at, offset int)) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.Token()
	for dec.More() {
		name, _ := dec.Token()
		at := offset + int(dec.InputOffset()) - 1
		var value json.RawMessage
		dec.Decode(&value)
		yield(name.(string), value, at, offset+int(dec.InputOffset())-len(value))
	}
}

// found notes that the file has a key and returns its full name.
func (f *File) found(path, name string, at int) string {
	key := name
	if path != "" {
		key = path + "." + name
	}
	again := f.Has(key)
	f.lines[key] = f.advance(at)
	if again {
		f.Warn(key, "given twice, the last one applies")
	}
	return key
}

// kind says for people what kind of JSON value raw is.
func kind(raw []byte) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "a string"
	case 't', 'f':
		return "true or false"
	case 'n':
		return "null"
	}
	return "a number"
}
