package exchange

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/canonical"
)

// FrameType is the first byte of a frame.
type FrameType uint8

// The frames. 7, 8 and 11 are used on streams of an attested connection, not in the exchange.
const (
	FrameHelloI  FrameType = 1
	FrameHelloR  FrameType = 2
	FrameAttI    FrameType = 3
	FrameAttR    FrameType = 4
	FrameAck     FrameType = 5
	FrameRefusal FrameType = 6
	FrameAccept  FrameType = 7 // a stream was accepted, or a farewell heard; empty
	FrameClose   FrameType = 8 // why the connection is being closed; a REFUSAL body
	FrameFastI   FrameType = 9
	FrameFastR   FrameType = 10
	FrameEpoch   FrameType = 11 // the policy epoch that the sender judges under from now on; EncodeEpoch
)

// String returns the frame's name.
func (t FrameType) String() string {
	switch t {
	case FrameHelloI:
		return "HELLO_I"
	case FrameHelloR:
		return "HELLO_R"
	case FrameAttI:
		return "ATT_I"
	case FrameAttR:
		return "ATT_R"
	case FrameAck:
		return "ACK"
	case FrameRefusal:
		return "REFUSAL"
	case FrameAccept:
		return "ACCEPT"
	case FrameClose:
		return "CLOSE"
	case FrameFastI:
		return "FAST_I"
	case FrameFastR:
		return "FAST_R"
	case FrameEpoch:
		return "EPOCH"
	}
	return fmt.Sprintf("frame type %d", uint8(t))
}

const frameHeader = 5

// FrameError is a frame that the reader did not expect or that is above its limit.
type FrameError struct{ Got, Want string }

// Error implements error.
func (e *FrameError) Error() string { return "frame: got " + e.Got + ", want " + e.Want }

// RefusedError is a REFUSAL received instead of the expected frame.
type RefusedError struct{ Reasons []attest.Reason }

// Error implements error.
func (e *RefusedError) Error() string { return "refused: " + joinReasons(e.Reasons) }

// WriteFrame writes one frame in one Write.
func WriteFrame(w io.Writer, kind FrameType, body []byte) error {
	buf := make([]byte, frameHeader, frameHeader+len(body))
	buf[0] = byte(kind)
	binary.BigEndian.PutUint32(buf[1:], uint32(len(body)))
	_, err := w.Write(append(buf, body...))
	return err
}

// ReadFrame reads exactly one frame of type want with a body of at most limit bytes.
// Errors: *RefusedError for a REFUSAL, *FrameError for another type or a larger body, else
// the reader's.
func ReadFrame(r io.Reader, want FrameType, limit int) ([]byte, error) {
	_, body, err := ReadFrameOf(r, Expected{want, limit})
	return body, err
}

// Expected is a frame that may come, and the limit of its body.
type Expected struct {
	Type  FrameType
	Limit int
}

// ReadFrameOf is ReadFrame where one of several types may come; it returns which one did.
func ReadFrameOf(r io.Reader, expected ...Expected) (FrameType, []byte, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	kind, size := FrameType(header[0]), binary.BigEndian.Uint32(header[1:])
	limit, known := MaxRefusal, kind == FrameRefusal
	var names []string
	for _, e := range expected {
		names = append(names, e.Type.String())
		if e.Type == kind && !known {
			limit, known = e.Limit, true
		}
	}
	if !known {
		return 0, nil, &FrameError{kind.String(), strings.Join(names, " or ")}
	}
	body, err := readBody(r, kind, size, limit)
	return kind, body, err
}

// readBody reads what follows a frame's header.
func readBody(r io.Reader, kind FrameType, size uint32, limit int) ([]byte, error) {
	if uint64(size) > uint64(limit) {
		return nil, &FrameError{fmt.Sprintf("%s of %d bytes", kind, size), fmt.Sprintf("at most %d", limit)}
	}
	var body []byte
	for read := 0; read < int(size); read = len(body) {
		next := min(int(size), max(growFirst, 2*read))
		body = append(slices.Grow(body, next-read), make([]byte, next-read)...)
		if _, err := io.ReadFull(r, body[read:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	if kind == FrameRefusal {
		reasons, err := DecodeReasons(body)
		if err != nil {
			return nil, &FrameError{err.Error(), "a canonical REFUSAL"}
		}
		return nil, &RefusedError{reasons}
	}
	return body, nil
}

type wireReason struct {
	_                      struct{} `cbor:",toarray"`
	Code, Claim, Got, Want string
}

// EncodeReasons returns the body of a REFUSAL or CLOSE. Longer lists and texts are cut.
func EncodeReasons(reasons []attest.Reason) []byte {
	wire := make([]wireReason, 0, len(reasons))
	for _, r := range reasons[:min(len(reasons), MaxReasons)] {
		if !validCode(string(r.Code)) {
			r.Code = attest.CodeProtocol
		}
		wire = append(wire, wireReason{Code: string(r.Code), Claim: printable(r.Claim), Got: printable(r.Got), Want: printable(r.Want)})
	}
	out, err := codec.Encode(wire)
	if err != nil {
		panic(err) // strings always encode
	}
	return out
}

// DecodeReasons reads the body of a REFUSAL or CLOSE. Remedies come from the code, never
// from the peer.
func DecodeReasons(body []byte) ([]attest.Reason, error) {
	if len(body) > MaxRefusal {
		return nil, fmt.Errorf("reasons: %d bytes, the limit is %d", len(body), MaxRefusal)
	}
	var wire []wireReason
	if err := codec.Decode(body, &wire); err != nil {
		return nil, fmt.Errorf("reasons: %w", err)
	}
	if len(wire) > MaxReasons {
		return nil, fmt.Errorf("reasons: %d, the limit is %d", len(wire), MaxReasons)
	}
	var out []attest.Reason
	for _, w := range wire {
		if !validCode(w.Code) {
			return nil, fmt.Errorf("reasons: a code of %d bytes, want snake_case", len(w.Code))
		}
		for _, s := range []string{w.Claim, w.Got, w.Want} {
			if printable(s) != s {
				return nil, fmt.Errorf("reasons: code %s has text that is too long or not printable", w.Code)
			}
		}
		out = append(out, attest.NewReason(attest.Code(w.Code), w.Claim, w.Got, w.Want))
	}
	return out, nil
}

func validCode(s string) bool {
	if s == "" || len(s) > maxCode {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// printable cuts s and keeps printable ASCII only: what a peer says may reach a terminal.
func printable(s string) string {
	n := 0
	return strings.Map(func(r rune) rune {
		if n++; n > maxReasonText {
			return -1
		}
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// codec is the encoding of every body but FAST and ACK.
var codec = canonical.NewCBOR(16)
