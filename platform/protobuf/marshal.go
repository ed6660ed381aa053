// SPDX-License-Identifier: Apache-2.0

package protobuf

import (
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"
)

// Marshal is the message that v, a pointer to a struct, holds. Equal messages have equal bytes.
func Marshal(v any) ([]byte, error) { return Append(nil, v) }

// Append appends the message that v holds to b.
func Append(b []byte, v any) ([]byte, error) {
	m, err := message(v)
	if err == nil {
		b, err = appendMessage(b, m, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot encode %T: %w", v, err)
	}
	return b, nil
}

func appendMessage(b []byte, m reflect.Value, depth int) ([]byte, error) {
	if depth > maxDepth {
		return nil, errDepth
	}
	fields, err := layout(m.Type())
	if err != nil {
		return nil, err
	}
	for _, f := range fields {
		v := m.Field(f.index)
		if !v.IsZero() && !(v.Kind() == reflect.Slice && v.Len() == 0) {
			if b, err = appendField(b, f.number, v, depth); err != nil {
				return nil, fmt.Errorf("%s: %w", f.name, err)
			}
		}
	}
	return b, nil
}

// appendField writes v, also if it is zero.
func appendField(b []byte, number uint64, v reflect.Value, depth int) ([]byte, error) {
	switch v.Kind() {
	case reflect.String:
		if !utf8.ValidString(v.String()) {
			return nil, errUTF8
		}
		b = appendTag(b, number, length)
		b = binary.AppendUvarint(b, uint64(v.Len()))
		return append(b, v.String()...), nil

	case reflect.Pointer:
		if !isMessage(v.Type()) {
			return appendField(b, number, v.Elem(), depth)
		}
		if v.IsNil() { // in a list
			return append(appendTag(b, number, length), 0), nil
		}
		return appendNested(b, number, func(b []byte) ([]byte, error) { return appendMessage(b, v.Elem(), depth+1) })

	case reflect.Slice:
		if isBytes(v.Type()) {
			b = appendTag(b, number, length)
			b = binary.AppendUvarint(b, uint64(v.Len()))
			return append(b, v.Bytes()...), nil
		}
		if _, isNumber := wire(v.Type().Elem()); isNumber {
			return appendNested(b, number, func(b []byte) ([]byte, error) {
				for i := range v.Len() {
					b = appendNumber(b, v.Index(i))
				}
				return b, nil
			})
		}
		for i := range v.Len() {
			var err error
			if b, err = appendField(b, number, v.Index(i), depth); err != nil {
				return nil, err
			}
		}
		return b, nil

	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, key := range keys {
			var err error
			b, err = appendNested(b, number, func(b []byte) ([]byte, error) {
				b, err := appendField(b, 1, key, depth)
				if err != nil {
					return nil, err
				}
				return appendField(b, 2, v.MapIndex(key), depth)
			})
			if err != nil {
				return nil, err
			}
		}
		return b, nil
	}
	w, _ := wire(v.Type())
	return appendNumber(appendTag(b, number, w), v), nil
}

// appendNested writes what content appends, and its length before it.
func appendNested(b []byte, number uint64, content func([]byte) ([]byte, error)) ([]byte, error) {
	b = appendTag(b, number, length)
	start := len(b)
	b, err := content(b)
	if err != nil {
		return nil, err
	}
	var size [binary.MaxVarintLen64]byte
	return slices.Insert(b, start, size[:binary.PutUvarint(size[:], uint64(len(b)-start))]...), nil
}

func appendTag(b []byte, number, wire uint64) []byte {
	return binary.AppendUvarint(b, number<<3|wire)
}

func appendNumber(b []byte, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.Bool:
		if v.Bool() {
			return append(b, 1)
		}
		return append(b, 0)
	case reflect.Int32, reflect.Int64:
		return binary.AppendUvarint(b, uint64(v.Int()))
	case reflect.Float64:
		return binary.LittleEndian.AppendUint64(b, math.Float64bits(v.Float()))
	}
	return binary.AppendUvarint(b, v.Uint())
}
