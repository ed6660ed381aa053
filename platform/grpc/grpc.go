// SPDX-License-Identifier: Apache-2.0

// Package grpc is gRPC over the HTTP/2 of the standard library, client and server. Messages are structs of package
// protobuf, methods are paths like /containerd.services.version.v1.Version/Version. There is no compression, no
// TLS and no load balancing: the peers are on the same machine, behind a socket with permissions.
package grpc

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"sdvbox/platform/protobuf"
)

// Code is the status of a call.
type Code int

// The codes, with the numbers of the protocol.
const (
	OK Code = iota
	Canceled
	Unknown
	InvalidArgument
	DeadlineExceeded
	NotFound
	AlreadyExists
	PermissionDenied
	ResourceExhausted
	FailedPrecondition
	Aborted
	OutOfRange
	Unimplemented
	Internal
	Unavailable
	DataLoss
	Unauthenticated
)

func (c Code) String() string {
	names := [...]string{"OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists",
		"PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal",
		"Unavailable", "DataLoss", "Unauthenticated"}
	if c < 0 || int(c) >= len(names) {
		return "Code(" + strconv.Itoa(int(c)) + ")"
	}
	return names[c]
}

// Error is a call that failed, here or there.
type Error struct {
	Code    Code
	Message string

	lost bool // it is ErrLost, too
}

// ErrLost is in the error of a call if the server is not there, the connection to it is lost, or it is shutting down. Other
// errors of its code, Unavailable, are about something that the server needs itself.
var ErrLost = errors.New("the server is lost")

// Errorf makes an Error.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

func lost(format string, args ...any) *Error {
	return &Error{Unavailable, fmt.Sprintf(format, args...), true}
}

// Is reports whether target is ErrLost and the server is.
func (e *Error) Is(target error) bool { return target == ErrLost && e.lost }

func (e *Error) Error() string {
	if e.Message == "" {
		return "status " + e.Code.String()
	}
	return e.Message
}

// CodeOf is the code of an error: that of an Error in it, or of the end of a context. Anything else is Unknown.
func CodeOf(err error) Code {
	var e *Error
	switch {
	case err == nil:
		return OK
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return DeadlineExceeded
	}
	return Unknown
}

// maxMessage is how long a message may be, either way; containerd's own limit.
const maxMessage = 16 << 20

// frame is a message with the five bytes before it.
func frame(m any) ([]byte, error) {
	b, err := protobuf.Append(make([]byte, 5, 64), m)
	if err != nil {
		return nil, Errorf(Internal, "%v", err)
	}
	if len(b)-5 > maxMessage {
		return nil, Errorf(ResourceExhausted, "message of %d bytes is longer than %d", len(b)-5, maxMessage)
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-5))
	return b, nil
}

// body is the body of a request or a response. It tells the loss of the connection from an end that the peer has chosen.
type body struct{ io.Reader }

func (b body) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.ErrUnexpectedEOF {
		err = lost("connection lost")
	}
	return n, err
}

// readMessage reads a frame. The error is io.EOF if there is none, an Error if it is not one.
func readMessage(r io.Reader, m any) error {
	r = body{r}
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err == io.ErrUnexpectedEOF {
		return errTruncated
	} else if err != nil {
		return err
	}
	n := int64(binary.BigEndian.Uint32(head[1:]))
	switch {
	case head[0] == 1:
		return Errorf(Internal, "message is compressed, though nobody has agreed on how")
	case head[0] != 0:
		return Errorf(Internal, "frame has the flags %#x", head[0])
	case n > maxMessage:
		return Errorf(ResourceExhausted, "message of %d bytes is longer than %d", n, maxMessage)
	}
	// The length is a claim: believe no more of it than a megabyte.
	data := bytes.NewBuffer(make([]byte, 0, min(n, 1<<20)+bytes.MinRead))
	if _, err := io.CopyN(data, r, n); err == io.EOF {
		return errTruncated
	} else if err != nil {
		return err
	}
	if err := protobuf.Unmarshal(data.Bytes(), m); err != nil {
		return Errorf(Internal, "%v", err)
	}
	return nil
}

var errTruncated = Errorf(Internal, "message is cut off")

// maxStatus is how long a status message may be. Peers give up the connection, with all calls on it, if headers are too long:
// some at 8 KiB.
const maxStatus = 2 << 10

// encodeMessage makes a status message fit into a header.
func encodeMessage(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) > maxStatus {
		n := maxStatus
		for n > 0 && !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n] + "…"
	}
	var b strings.Builder
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// decodeMessage undoes encodeMessage, and leaves alone what is not encoded.
func decodeMessage(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return strings.ToValidUTF8(b.String(), "\uFFFD")
}

// status is what headers or trailers say of a call; ok tells whether they say anything.
func status(h http.Header) (err error, ok bool) {
	text := h.Get("Grpc-Status")
	if text == "" {
		return nil, false
	}
	n, convErr := strconv.Atoi(text)
	switch {
	case convErr != nil || n < 0:
		return Errorf(Unknown, "the status %q is no number", text), true
	case n == 0:
		return nil, true
	}
	e := Errorf(Code(n), "%s", decodeMessage(h.Get("Grpc-Message")))
	e.lost = e.Code == errStopping.Code && e.Message == errStopping.Message
	return e, true
}

// units are those of the header grpc-timeout, which has at most eight digits.
var units = []struct {
	letter byte
	d      time.Duration
}{{'n', time.Nanosecond}, {'u', time.Microsecond}, {'m', time.Millisecond}, {'S', time.Second}, {'M', time.Minute}, {'H', time.Hour}}

const maxTimeout = 99999999

func encodeTimeout(d time.Duration) string {
	d = max(d, 0)
	for _, u := range units {
		n := d / u.d
		if d%u.d > 0 { // rather late than early
			n++
		}
		if n <= maxTimeout {
			return strconv.FormatInt(int64(n), 10) + string(u.letter)
		}
	}
	return strconv.Itoa(maxTimeout) + "H"
}

func decodeTimeout(s string) (time.Duration, error) {
	if s != "" {
		for _, u := range units {
			if digits, ok := strings.CutSuffix(s, string(u.letter)); ok {
				n, err := strconv.ParseUint(digits, 10, 63)
				if err != nil || n > maxTimeout {
					break
				}
				if n > uint64(math.MaxInt64/u.d) {
					return math.MaxInt64, nil
				}
				return time.Duration(n) * u.d, nil
			}
		}
	}
	return 0, Errorf(Internal, "grpc-timeout %q is not understood", s)
}

type outgoing struct{}

// WithHeader adds metadata to the calls made with the context. The values of keys that end in -bin may be any bytes.
func WithHeader(ctx context.Context, key, value string) context.Context {
	h, _ := ctx.Value(outgoing{}).(http.Header)
	if h = h.Clone(); h == nil {
		h = http.Header{}
	}
	h.Add(key, encodeValue(key, value))
	return context.WithValue(ctx, outgoing{}, h)
}

func encodeValue(key, value string) string {
	if strings.HasSuffix(strings.ToLower(key), "-bin") {
		return base64.RawStdEncoding.EncodeToString([]byte(value))
	}
	return value
}
