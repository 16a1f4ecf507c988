// Package envelope is the one shape in which meshnode signs things: a DSSE envelope over
// an in-toto Statement, both in strict JSON.
//
// # Envelope
//
// The bytes are exactly
//
//	{"payloadType":"application/vnd.in-toto+json","payload":"<base64>","signatures":[{"keyid":"<hex>","sig":"<base64>"},…]}
//
// with standard padded base64 and no white space. Parse refuses every other spelling of
// the same content (unknown, duplicate, missing or reordered fields, other base64), so
// that equal content has equal bytes and an envelope can be a log leaf as it is. What is
// signed is the DSSE pre-authentication encoding, "DSSEv1 LEN(type) type LEN(payload)
// payload" (secure-systems-lab/dsse, protocol.md).
//
// # Statement
//
// The payload is an in-toto Statement v1 (in-toto/attestation, spec/v1/statement.md) in
// the compact JSON that encoding/json gives the Go type of its predicate. Decode
// re-encodes what it read and refuses a difference: there is one JSON shape per type.
//
// # Keys
//
// A key id is the lower-case hex SHA-256 of the key's SubjectPublicKeyInfo DER. Verify
// refuses empty and repeated key ids and one key under two names, and returns the
// *distinct organisations* that signed: thresholds count those and never signatures.
// (The DSSE threshold of go-securesystemslib counts key ids.)
package envelope

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/attestmesh/meshnode/internal/canonical"
)

// PayloadType is the only payload type that meshnode signs or accepts.
const PayloadType = "application/vnd.in-toto+json"

// Limits on what Parse accepts.
const (
	// MaxSize bounds an envelope: C2SP entries are at most 65,535 bytes, and every
	// envelope may become one.
	MaxSize = 60 << 10
	// MaxSignatures bounds the signature list: seven organisations, each with a key in
	// rotation, and room to spare.
	MaxSignatures = 32
)

// Signature is one DSSE signature.
type Signature struct {
	KeyID string
	Sig   []byte
}

// Envelope is a parsed DSSE envelope. Its zero value has no payload and verifies nothing.
type Envelope struct {
	Payload    []byte
	Signatures []Signature
}

type wireSignature struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"`
}

type wireEnvelope struct {
	PayloadType string          `json:"payloadType"`
	Payload     string          `json:"payload"`
	Signatures  []wireSignature `json:"signatures"`
}

var b64 = base64.StdEncoding.Strict()

// Marshal returns the exact bytes that Parse accepts.
func (e *Envelope) Marshal() []byte {
	w := wireEnvelope{PayloadType: PayloadType, Payload: b64.EncodeToString(e.Payload), Signatures: []wireSignature{}}
	for _, s := range e.Signatures {
		w.Signatures = append(w.Signatures, wireSignature{s.KeyID, b64.EncodeToString(s.Sig)})
	}
	out, err := canonical.JSON(w)
	if err != nil { // strings only: cannot fail
		panic(err)
	}
	return out
}

// Parse decodes an envelope strictly. It checks no signature.
func Parse(raw []byte) (*Envelope, error) {
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("envelope: %d bytes, the limit is %d", len(raw), MaxSize)
	}
	if e := scan(raw); e != nil {
		return e, nil
	}
	return parse(raw)
}

// parse is Parse by way of encoding/json.
func parse(raw []byte) (*Envelope, error) {
	var w wireEnvelope
	if err := canonical.DecodeJSON(raw, &w); err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	if w.PayloadType != PayloadType {
		return nil, fmt.Errorf("envelope: payload type %q, want %q", w.PayloadType, PayloadType)
	}
	if len(w.Signatures) > MaxSignatures {
		return nil, fmt.Errorf("envelope: %d signatures, the limit is %d", len(w.Signatures), MaxSignatures)
	}
	payload, err := b64.DecodeString(w.Payload)
	if err != nil {
		return nil, fmt.Errorf("envelope: payload: %w", err)
	}
	e := &Envelope{Payload: payload}
	for i, s := range w.Signatures {
		sig, err := b64.DecodeString(s.Sig)
		if err != nil {
			return nil, fmt.Errorf("envelope: signature %d: %w", i, err)
		}
		e.Signatures = append(e.Signatures, Signature{s.KeyID, sig})
	}
	if !bytes.Equal(e.Marshal(), raw) {
		return nil, errors.New("envelope: not in canonical form")
	}
	return e, nil
}

// pae is the DSSE pre-authentication encoding of a payload of our type.
func pae(payload []byte) []byte { return appendPAE(nil, payload) }

func appendPAE(to, payload []byte) []byte {
	to = slices.Grow(to, len(paePrefix)+8+len(payload))
	to = strconv.AppendInt(append(to, paePrefix...), int64(len(payload)), 10)
	return append(append(to, ' '), payload...)
}

var paePrefix = fmt.Sprintf("DSSEv1 %d %s ", len(PayloadType), PayloadType)
