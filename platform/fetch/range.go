// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"fmt"
	"strconv"
	"strings"
)

// contentRange is a Content-Range header (RFC 9110, 14.4). An unsatisfied
// range, "bytes */total", has first = last = -1; an unknown total is -1.
type contentRange struct{ first, last, total int64 }

func parseContentRange(s string) (contentRange, error) {
	bad := fmt.Errorf("invalid Content-Range %.80q", s)
	unit, s, ok := strings.Cut(s, " ")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return contentRange{}, bad
	}
	span, size, ok := strings.Cut(s, "/")
	if !ok {
		return contentRange{}, bad
	}
	r := contentRange{-1, -1, -1}
	if size != "*" {
		if r.total, ok = parseSize(size); !ok {
			return contentRange{}, bad
		}
	}
	if span == "*" {
		if size == "*" {
			return contentRange{}, bad
		}
		return r, nil
	}
	first, last, _ := strings.Cut(span, "-")
	var ok1, ok2 bool
	r.first, ok1 = parseSize(first)
	r.last, ok2 = parseSize(last)
	if !ok1 || !ok2 || r.first > r.last || r.total >= 0 && r.last >= r.total {
		return contentRange{}, bad
	}
	return r, nil
}

// parseSize takes digits only, where ParseInt also takes a sign. Sizes near the
// limit are refused so that sums cannot overflow.
func parseSize(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 62)
	return int64(n), err == nil
}
