// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"sdvbox/platform/durable"
)

// meta says what the bytes in a .part file are. It stays beside the finished
// file, so that a caller that died before it noted the success does not fetch
// the file a second time.
type meta struct {
	Source   string `json:"source"`             // SHA-256 of the URL, which may hold a secret
	ETag     string `json:"etag,omitempty"`     // as received, weak ones too
	Modified string `json:"modified,omitempty"` // Last-Modified as received
	Total    int64  `json:"total"`              // -1: unknown
	Synced   int64  `json:"synced"`             // bytes that survive a power cut
	Boot     string `json:"boot"`               // while it lasts, all bytes written are there
	Done     bool   `json:"done,omitempty"`     // complete and verified
}

const (
	maxMeta      = 16 << 10
	maxValidator = 4 << 10
)

func parseMeta(b []byte) (meta, error) {
	var m meta
	if len(b) > maxMeta {
		return meta{}, errors.New("too long")
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return meta{}, err
	}
	if len(m.Source) != 2*sha256.Size {
		return meta{}, errors.New("source is not a SHA-256")
	}
	if m.Total < -1 || m.Synced < 0 {
		return meta{}, errors.New("negative size")
	}
	for _, v := range []string{m.ETag, m.Modified} {
		if v != validator(v) {
			return meta{}, fmt.Errorf("%.40q cannot be a header", v)
		}
	}
	return m, nil
}

func loadMeta(path string) (meta, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return meta{}, err
	}
	m, err := parseMeta(b)
	if err != nil {
		return meta{}, fmt.Errorf("read %s: %w", path, err)
	}
	return m, nil
}

func (m meta) save(path string) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return durable.WriteFile(path, b, 0o600)
}

// describe takes over what h says of the file's identity.
func (m *meta) describe(h http.Header) {
	m.ETag = validator(h.Get("ETag"))
	m.Modified = validator(h.Get("Last-Modified"))
}

// ifRange is the validator that lets the server compare, "" when there is
// none: a weak ETag must not be used and also forbids a date (RFC 9110, 13.1.5).
func (m meta) ifRange() string {
	if m.ETag == "" {
		return m.Modified
	}
	if strings.HasPrefix(m.ETag, `"`) {
		return m.ETag
	}
	return ""
}

// same reports whether h may belong to the file described. Servers exist which
// ignore If-Range.
func (m meta) same(h http.Header) bool {
	tag, date := h.Get("ETag"), h.Get("Last-Modified")
	if m.ETag != "" && tag != "" {
		return strings.TrimPrefix(m.ETag, "W/") == strings.TrimPrefix(tag, "W/")
	}
	return m.Modified == "" || date == "" || m.Modified == date
}

// validator returns s if it can be sent as a header, else "".
func validator(s string) string {
	if len(s) > maxValidator {
		return ""
	}
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return ""
		}
	}
	return s
}

func digest(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

// bootID names the time between two starts of the kernel; see random(4).
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
