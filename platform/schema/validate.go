// SPDX-License-Identifier: Apache-2.0

package schema

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// most is how many faults and unknown members of one message are told.
const most = 20

// node is a schema, with the keywords that ours use.
type node struct {
	Ref        string           `json:"$ref"` // only #/$defs/NAME
	Defs       map[string]*node `json:"$defs"`
	Type       types            `json:"type"`
	Enum       []string         `json:"enum"` // only of strings
	Required   []string         `json:"required"`
	Properties map[string]*node `json:"properties"`
	Items      *node            `json:"items"`
	MinItems   int              `json:"minItems"`
	MaxItems   *int             `json:"maxItems"`
	MinLength  int              `json:"minLength"`
	MaxLength  *int             `json:"maxLength"`
	Minimum    *float64         `json:"minimum"`
	Maximum    *float64         `json:"maximum"`
}

// types are one or several names of types.
type types []string

func (t *types) UnmarshalJSON(data []byte) error {
	if data[0] == '"' {
		*t = types{""}
		return json.Unmarshal(data, &(*t)[0])
	}
	return json.Unmarshal(data, (*[]string)(t))
}

type checker struct {
	defs    map[string]*node
	faults  []error
	unknown []string
}

func (c *checker) fault(path, format string, args ...any) {
	if len(c.faults) < most {
		c.faults = append(c.faults, fmt.Errorf("%s: %s", cmp.Or(path, "message"), fmt.Sprintf(format, args...)))
	}
}

func (c *checker) check(path string, n *node, value any) {
	if n.Ref != "" {
		n = c.defs[strings.TrimPrefix(n.Ref, "#/$defs/")]
	}
	if got := typeOf(value); n.Type != nil && !slices.Contains(n.Type, got) {
		c.fault(path, "expected %s, got %s", names(n.Type), names(types{got}))
		return
	}
	switch v := value.(type) {
	case string:
		switch length := utf8.RuneCountInString(v); {
		case n.Enum != nil && !slices.Contains(n.Enum, v):
			c.fault(path, "expected one of %s, got %.40q", strings.Join(n.Enum, ", "), v)
		case length < n.MinLength:
			c.fault(path, "too short: %d characters, expected at least %d", length, n.MinLength)
		case n.MaxLength != nil && length > *n.MaxLength:
			c.fault(path, "too long: %d characters, expected at most %d", length, *n.MaxLength)
		}
	case float64:
		switch {
		case n.Minimum != nil && v < *n.Minimum:
			c.fault(path, "too small: %v, expected at least %v", v, *n.Minimum)
		case n.Maximum != nil && v > *n.Maximum:
			c.fault(path, "too big: %v, expected at most %v", v, *n.Maximum)
		}
	case []any:
		switch {
		case len(v) < n.MinItems:
			c.fault(path, "too few: %d entries, expected at least %d", len(v), n.MinItems)
		case n.MaxItems != nil && len(v) > *n.MaxItems:
			c.fault(path, "too many: %d entries, expected at most %d", len(v), *n.MaxItems)
		}
		for i := 0; n.Items != nil && i < len(v); i++ {
			c.check(fmt.Sprintf("%s[%d]", path, i), n.Items, v[i])
		}
	case map[string]any:
		c.members(path, n, v)
	}
}

func (c *checker) members(path string, n *node, object map[string]any) {
	if path != "" {
		path += "."
	}
	for _, name := range n.Required {
		if _, ok := object[name]; !ok {
			c.fault(path+name, "missing")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		if property := n.Properties[name]; property != nil {
			c.check(path+name, property, object[name])
		} else if n.Properties != nil && len(c.unknown) < most {
			quoted := strconv.Quote(name) // it may have anything in it
			c.unknown = append(c.unknown, path+quoted[1:len(quoted)-1])
		}
	}
}

func typeOf(value any) string {
	switch v := value.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case float64:
		if v == math.Trunc(v) {
			return "integer"
		}
		return "number"
	case []any:
		return "array"
	default:
		return "object"
	}
}

// names puts types into words.
func names(types types) string {
	var words []string
	for _, t := range types {
		switch t {
		case "null":
		case "integer":
			t = "a whole number"
		case "array", "object":
			t = "an " + t
		default:
			t = "a " + t
		}
		words = append(words, t)
	}
	return strings.Join(words, " or ")
}
