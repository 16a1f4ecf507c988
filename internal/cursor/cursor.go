// Package cursor reads fixed-size integers and byte strings off the front of a slice, for
// the decoders of evidence, whose lengths come from strangers.
//
// A cursor that is asked for more than there is becomes short: it is empty from then on,
// every integer it yields is 0 and every byte string nil. A decoder therefore takes a whole
// structure and asks once, with Short, whether all of it was there; but it asks before it
// believes a value, because a missing one reads as 0. A length never allocates: what is
// taken are parts of the slice that was given, with no capacity beyond them.
//
// Whether bytes are left over is the decoder's to judge, by Rest or Len.
package cursor

import "encoding/binary"

// Cursor is a position in a slice. The zero value is an empty little-endian one.
type Cursor struct {
	rest  []byte
	big   bool
	short bool
}

// Little returns a cursor at the beginning of raw, whose integers are little-endian.
func Little(raw []byte) Cursor { return Cursor{rest: raw} }

// Big returns a cursor at the beginning of raw, whose integers are big-endian.
func Big(raw []byte) Cursor { return Cursor{rest: raw, big: true} }

// Take returns the next n bytes. A negative length that was converted is longer than any
// slice.
func (c *Cursor) Take(n uint64) []byte {
	if n > uint64(len(c.rest)) || c.short {
		c.Fail()
		return nil
	}
	out := c.rest[:n:n]
	c.rest = c.rest[n:]
	return out
}

// U8 returns the next byte.
func (c *Cursor) U8() uint8 {
	if b := c.Take(1); b != nil {
		return b[0]
	}
	return 0
}

// U16 returns the integer of the next two bytes.
func (c *Cursor) U16() uint16 {
	b := c.Take(2)
	switch {
	case b == nil:
		return 0
	case c.big:
		return binary.BigEndian.Uint16(b)
	}
	return binary.LittleEndian.Uint16(b)
}

// U32 returns the integer of the next four bytes.
func (c *Cursor) U32() uint32 {
	b := c.Take(4)
	switch {
	case b == nil:
		return 0
	case c.big:
		return binary.BigEndian.Uint32(b)
	}
	return binary.LittleEndian.Uint32(b)
}

// U64 returns the integer of the next eight bytes.
func (c *Cursor) U64() uint64 {
	b := c.Take(8)
	switch {
	case b == nil:
		return 0
	case c.big:
		return binary.BigEndian.Uint64(b)
	}
	return binary.LittleEndian.Uint64(b)
}

// Rest returns what was not taken yet, nil once the cursor is short.
func (c *Cursor) Rest() []byte { return c.rest }

// Len returns how many bytes were not taken yet, 0 once the cursor is short.
func (c *Cursor) Len() int { return len(c.rest) }

// Short reports whether more was asked for than there was, or Fail was called.
func (c *Cursor) Short() bool { return c.short }

// Fail makes the cursor short, for a decoder that met a value which ends its reading.
func (c *Cursor) Fail() { c.short, c.rest = true, nil }
