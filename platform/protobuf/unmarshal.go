// SPDX-License-Identifier: Apache-2.0

package protobuf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"unicode/utf8"
)

// Unmarshal reads a message into the struct that v points to. It adds to what is there, and keeps no part of data.
func Unmarshal(data []byte, v any) error {
	m, err := message(v)
	if err == nil {
		err = readMessage(data, m, 0)
	}
	if err != nil {
		return fmt.Errorf("cannot decode %T: %w", v, err)
	}
	return nil
}

func readMessage(data []byte, m reflect.Value, depth int) error {
	if depth > maxDepth {
		return errDepth
	}
	fields, err := layout(m.Type())
	if err != nil {
		return err
	}
	for len(data) > 0 {
		var r record
		if r, data, err = next(data, depth); err != nil {
			return err
		}
		for _, f := range fields {
			if f.number == r.number {
				if err := r.read(m.Field(f.index), depth); err != nil {
					return fmt.Errorf("%s: %w", f.name, err)
				}
			}
		}
	}
	return nil
}

// A record is one field on the wire.
type record struct {
	number uint64
	wire   uint64
	bits   uint64 // varint and fixed
	bytes  []byte // length
}

// next splits the first record off data.
func next(data []byte, depth int) (r record, rest []byte, err error) {
	r, rest, err = scan(data, depth)
	if err == nil && r.wire == groupEnd {
		err = errors.New("group ends before it starts")
	}
	return r, rest, err
}

func scan(data []byte, depth int) (r record, rest []byte, err error) {
	tag, data, err := readVarint(data)
	if err != nil {
		return r, nil, err
	}
	r.number, r.wire = tag>>3, tag&7
	if r.number == 0 || r.number >= 1<<29 {
		return r, nil, fmt.Errorf("%d is no field number", r.number)
	}
	switch r.wire {
	case varint, fixed32, fixed64:
		r.bits, data, err = readBits(data, r.wire)
		return r, data, err
	case length:
		n, data, err := readVarint(data)
		if err != nil {
			return r, nil, err
		}
		if n > uint64(len(data)) {
			return r, nil, errTruncated
		}
		r.bytes = data[:n]
		return r, data[n:], nil
	case groupStart: // of old; skipped as a whole
		if depth >= maxDepth {
			return r, nil, errDepth
		}
		for {
			var inner record
			if inner, data, err = scan(data, depth+1); err != nil {
				return r, nil, err
			}
			if inner.wire == groupEnd {
				if inner.number != r.number {
					return r, nil, errors.New("groups overlap")
				}
				return r, data, nil
			}
		}
	case groupEnd:
		return r, data, nil
	}
	return r, nil, fmt.Errorf("unknown wire type %d", r.wire)
}

func readBits(data []byte, wire uint64) (bits uint64, rest []byte, err error) {
	switch {
	case wire == varint:
		return readVarint(data)
	case wire == fixed32 && len(data) >= 4:
		return uint64(binary.LittleEndian.Uint32(data)), data[4:], nil
	case wire == fixed64 && len(data) >= 8:
		return binary.LittleEndian.Uint64(data), data[8:], nil
	}
	return 0, nil, errTruncated
}

func readVarint(data []byte) (n uint64, rest []byte, err error) {
	n, size := binary.Uvarint(data)
	switch {
	case size == 0:
		return 0, nil, errTruncated
	case size < 0:
		return 0, nil, errors.New("number is too large")
	}
	return n, data[size:], nil
}

// read stores the record in v. A record of another wire type than v's is as unknown as one of another number.
func (r record) read(v reflect.Value, depth int) error {
	t := v.Type()
	switch {
	case t.Kind() == reflect.Slice && !isBytes(t):
		return r.readElement(v, depth)
	case t.Kind() == reflect.Pointer && !isMessage(t):
		if want, _ := wire(t.Elem()); r.wire != want {
			return nil
		}
		v.Set(reflect.New(t.Elem()))
		return r.read(v.Elem(), depth)
	}
	if want, _ := wire(t); r.wire != want {
		return nil
	}
	switch t.Kind() {
	case reflect.String:
		if !utf8.Valid(r.bytes) {
			return errUTF8
		}
		v.SetString(string(r.bytes))
	case reflect.Slice:
		v.SetBytes(append([]byte{}, r.bytes...))
	case reflect.Map:
		return r.readEntry(v, depth)
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(t.Elem()))
		}
		return readMessage(r.bytes, v.Elem(), depth+1)
	default:
		setNumber(v, r.bits)
	}
	return nil
}

// readElement appends to a list: one element, or any number of numbers.
func (r record) readElement(list reflect.Value, depth int) error {
	element := reflect.New(list.Type().Elem()).Elem()
	want, number := wire(element.Type())
	if r.wire == want {
		if err := r.read(element, depth); err != nil {
			return err
		}
		list.Set(reflect.Append(list, element))
		return nil
	}
	if !number || r.wire != length {
		return nil
	}
	for data := r.bytes; len(data) > 0; {
		var bits uint64
		var err error
		if bits, data, err = readBits(data, want); err != nil {
			return err
		}
		setNumber(element, bits)
		list.Set(reflect.Append(list, element))
	}
	return nil
}

func (r record) readEntry(m reflect.Value, depth int) error {
	t := m.Type()
	key, value := reflect.New(t.Key()).Elem(), reflect.New(t.Elem()).Elem()
	if isMessage(t.Elem()) { // an entry has a value, said or not
		value.Set(reflect.New(t.Elem().Elem()))
	}
	for data := r.bytes; len(data) > 0; {
		var part record
		var err error
		if part, data, err = next(data, depth+1); err != nil {
			return err
		}
		switch part.number {
		case 1:
			err = part.read(key, depth+1)
		case 2:
			err = part.read(value, depth+1)
		}
		if err != nil {
			return err
		}
	}
	if m.IsNil() {
		m.Set(reflect.MakeMap(t))
	}
	m.SetMapIndex(key, value)
	return nil
}

func setNumber(v reflect.Value, bits uint64) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(bits != 0)
	case reflect.Int32:
		v.SetInt(int64(int32(bits)))
	case reflect.Int64:
		v.SetInt(int64(bits))
	case reflect.Uint32:
		v.SetUint(uint64(uint32(bits)))
	case reflect.Uint64:
		v.SetUint(bits)
	case reflect.Float64:
		v.SetFloat(math.Float64frombits(bits))
	}
}
