// SPDX-License-Identifier: Apache-2.0

// Package protobuf is the wire format of protocol buffers for plain structs.
//
// A field says its number in a tag, as in
//
//	type Image struct {
//		Name   string            `pb:"1"`
//		Labels map[string]string `pb:"2"`
//		Target *Descriptor       `pb:"3"`
//	}
//
// and fields without a tag are left alone. The kinds are string, []byte, bool, int32, int64, uint32, uint64, float64
// (enums are named int32 types), pointers to structs, slices of all these, and maps with string keys. A pointer to a
// scalar is a field that knows whether it is present, as optional and oneof fields are; a oneof is several such
// fields of which the sender sets one. Everything else follows proto3: zero is not written, numbers in lists are
// written packed and read both ways, unknown fields are skipped, the last value of a field wins, strings are UTF-8.
package protobuf

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"sync"
	"time"
)

// Timestamp is google.protobuf.Timestamp.
type Timestamp struct {
	Seconds int64 `pb:"1"`
	Nanos   int32 `pb:"2"`
}

// NewTimestamp is t as a message.
func NewTimestamp(t time.Time) *Timestamp {
	return &Timestamp{Seconds: t.Unix(), Nanos: int32(t.Nanosecond())}
}

// Time is the time in UTC, the zero one if t is nil.
func (t *Timestamp) Time() time.Time {
	if t == nil {
		return time.Time{}
	}
	return time.Unix(t.Seconds, int64(t.Nanos)).UTC()
}

// Any is google.protobuf.Any: a message of a type that its URL names.
type Any struct {
	TypeURL string `pb:"1"`
	Value   []byte `pb:"2"`
}

// Empty is google.protobuf.Empty.
type Empty struct{}

// maxDepth is how deep messages may be nested, as in other implementations.
const maxDepth = 100

var (
	errDepth     = errors.New("messages nested too deeply")
	errTruncated = errors.New("message is cut off")
	errUTF8      = errors.New("string is not UTF-8")
)

// The wire types.
const (
	varint     = 0
	fixed64    = 1
	length     = 2
	groupStart = 3
	groupEnd   = 4
	fixed32    = 5
)

type field struct {
	number uint64
	index  int
	name   string
}

// layouts remembers what the tags of a struct say.
var layouts sync.Map // reflect.Type to []field

func layout(t reflect.Type) ([]field, error) {
	if known, ok := layouts.Load(t); ok {
		return known.([]field), nil
	}
	var fields []field
	for i := range t.NumField() {
		f := t.Field(i)
		tag, ok := f.Tag.Lookup("pb")
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(tag, 10, 29)
		switch {
		case err != nil || n == 0:
			return nil, fmt.Errorf("field %s has the tag %q, expected a field number", f.Name, tag)
		case !f.IsExported() || !supported(f.Type):
			return nil, fmt.Errorf("field %s of type %s has no wire format", f.Name, f.Type)
		}
		fields = append(fields, field{n, i, f.Name})
	}
	layouts.Store(t, fields)
	return fields, nil
}

func supported(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Pointer:
		return t.Elem().Kind() == reflect.Struct || single(t.Elem())
	case reflect.Map:
		return t.Key().Kind() == reflect.String && (single(t.Elem()) || isMessage(t.Elem()))
	case reflect.Slice:
		return isBytes(t) || single(t.Elem()) || isMessage(t.Elem())
	}
	return single(t)
}

// single says whether t is a string, bytes or a number.
func single(t reflect.Type) bool {
	_, number := wire(t)
	return number || t.Kind() == reflect.String || isBytes(t)
}

func isBytes(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8
}

func isMessage(t reflect.Type) bool {
	return t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct
}

// wire is how a value of this type is written alone, and whether it is a number.
func wire(t reflect.Type) (wire uint64, number bool) {
	switch t.Kind() {
	case reflect.Bool, reflect.Int32, reflect.Int64, reflect.Uint32, reflect.Uint64:
		return varint, true
	case reflect.Float64:
		return fixed64, true
	}
	return length, false
}

// message is the struct that v points to.
func message(v any) (reflect.Value, error) {
	p := reflect.ValueOf(v)
	if p.Kind() != reflect.Pointer || p.IsNil() || p.Elem().Kind() != reflect.Struct {
		return reflect.Value{}, fmt.Errorf("%T is not a pointer to a struct", v)
	}
	return p.Elem(), nil
}
