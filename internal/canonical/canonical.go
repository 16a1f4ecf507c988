// Package canonical encodes values in exactly one way, and decodes only what is encoded in
// that way: what is hashed, signed or compared has no second form.
//
// A decoder reads, encodes again and demands the same bytes. Trailing bytes, other widths and
// orders, unknown, duplicate and missing fields do not survive that, whatever the library
// thinks of them.
package canonical

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// ErrForm is returned for bytes that decode but are not the encoding of what they decode to.
var ErrForm = errors.New("not in canonical form")

// CBOR is deterministic CBOR (RFC 8949 §4.2) without tags and indefinite lengths. Null does
// not exist in it: what is empty is encoded as such.
type CBOR struct {
	enc cbor.EncMode
	dec cbor.DecMode
}

// maxNested is how deep arrays may lie in each other.
const maxNested = 4

// NewCBOR returns the codec for arrays of at most maxElements. It panics if the library does
// not take that for a limit, as it does below 16.
func NewCBOR(maxElements int) CBOR {
	o := cbor.CoreDetEncOptions()
	o.NilContainers = cbor.NilContainerAsEmpty
	enc, err := o.EncMode()
	if err != nil {
		panic(err)
	}
	dec, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxArrayElements: maxElements,
		MaxNestedLevels:  maxNested,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return CBOR{enc, dec}
}

// Encode returns the encoding of v.
func (c CBOR) Encode(v any) ([]byte, error) { return c.enc.Marshal(v) }

// Decode decodes raw into out, a pointer. Where it fails *out is not to be used. The caller
// has looked at the size of raw before.
func (c CBOR) Decode(raw []byte, out any) error {
	if err := c.dec.Unmarshal(raw, out); err != nil {
		return err
	}
	same := comparison{raw}
	if err := c.enc.NewEncoder(&same).Encode(out); err != nil || len(same.rest) != 0 {
		return ErrForm
	}
	return nil
}

// Peek decodes raw without demanding its form: for the part that says how to read the rest.
func (c CBOR) Peek(raw []byte, out any) error { return c.dec.Unmarshal(raw, out) }

// comparison is a writer that accepts the bytes of rest, in order. It spares the copy of
// what may be megabytes.
type comparison struct{ rest []byte }

// Write implements io.Writer.
func (c *comparison) Write(p []byte) (int, error) {
	if !bytes.HasPrefix(c.rest, p) {
		return 0, ErrForm
	}
	c.rest = c.rest[len(p):]
	return len(p), nil
}

// JSON returns v as compact JSON, fields in their order, without HTML escapes.
func JSON(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// DecodeJSON decodes raw into v, a pointer, if raw is what JSON returns for it.
func DecodeJSON(raw []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	back, err := JSON(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(back, raw) {
		return fmt.Errorf("%w (re-encoded to %d bytes, got %d)", ErrForm, len(back), len(raw))
	}
	return nil
}
