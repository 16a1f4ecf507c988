package cursor

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"
)

func TestIntegersOfBothOrders(t *testing.T) {
	raw := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	for name, c := range map[string]struct {
		cursor Cursor
		u16    uint16
		u32    uint32
		u64    uint64
	}{
		"little": {Little(raw), 0x0302, 0x07060504, 0x0f0e0d0c0b0a0908},
		"big":    {Big(raw), 0x0203, 0x04050607, 0x08090a0b0c0d0e0f},
	} {
		u8, u16, u32, u64 := c.cursor.U8(), c.cursor.U16(), c.cursor.U32(), c.cursor.U64()
		if u8 != 1 || u16 != c.u16 || u32 != c.u32 || u64 != c.u64 {
			t.Errorf("%s: got %#x %#x %#x %#x, want 0x1 %#x %#x %#x", name, u8, u16, u32, u64, c.u16, c.u32, c.u64)
		}
		if c.cursor.Short() || c.cursor.Len() != 0 {
			t.Errorf("%s: short %t with %d bytes left after exactly all", name, c.cursor.Short(), c.cursor.Len())
		}
	}
}

// Each way to run short leaves a cursor that yields nothing, though bytes were left.
func TestShortForGood(t *testing.T) {
	for name, c := range map[string]struct {
		have int
		take func(c *Cursor) bool // reports whether it yielded something
	}{
		"u8":       {0, func(c *Cursor) bool { return c.U8() != 0 }},
		"u16":      {1, func(c *Cursor) bool { return c.U16() != 0 }},
		"u32":      {3, func(c *Cursor) bool { return c.U32() != 0 }},
		"u64":      {7, func(c *Cursor) bool { return c.U64() != 0 }},
		"one more": {5, func(c *Cursor) bool { return c.Take(6) != nil }},
		"huge":     {5, func(c *Cursor) bool { return c.Take(math.MaxUint64) != nil }},
		"negative": {5, func(c *Cursor) bool { n := -1; return c.Take(uint64(n)) != nil }},
		"fail":     {5, func(c *Cursor) bool { c.Fail(); return false }},
	} {
		raw := bytes.Repeat([]byte{0xff}, c.have)
		for _, r := range []Cursor{Little(raw), Big(raw)} {
			if r.Short() || c.take(&r) || !r.Short() {
				t.Errorf("%s: yielded something, or short is %t", name, r.Short())
			}
			if r.U8() != 0 || r.U16() != 0 || r.U32() != 0 || r.U64() != 0 || r.Take(0) != nil || r.Rest() != nil || r.Len() != 0 || !r.Short() {
				t.Errorf("%s: a short cursor yielded something", name)
			}
		}
	}
}

// A decoder tells an empty string that is there from one that is not.
func TestNothingTakenIsNotShort(t *testing.T) {
	c := Little([]byte{7})
	if c.Take(0) == nil || c.Short() || c.Len() != 1 {
		t.Errorf("taking nothing: short %t, %d bytes left", c.Short(), c.Len())
	}
	c.U8()
	if c.Take(0) == nil || c.Short() {
		t.Error("taking nothing at the end: short")
	}
	var zero Cursor
	if zero.Take(0); zero.Short() {
		t.Error("taking nothing of nothing: short")
	}
	if zero.Take(1) != nil || !zero.Short() {
		t.Error("the zero value has a byte")
	}
}

// Appending to what was taken must not write into what comes after it.
func TestTakenHasNoCapacityBeyondItself(t *testing.T) {
	raw := []byte{1, 2, 3, 4}
	c := Little(raw)
	if got := append(c.Take(2), 9); !bytes.Equal(got, []byte{1, 2, 9}) || raw[2] != 3 {
		t.Errorf("got %v, and the slice became %v", got, raw)
	}
	if got := c.Take(2); &got[0] != &raw[2] {
		t.Error("what was taken is a copy")
	}
}

// Whatever is asked for, a cursor yields what indexing yields as long as there is enough,
// and nothing from the first time there is not.
func TestAgreesWithIndexing(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 2000 {
		raw := make([]byte, rnd.IntN(64))
		for i := range raw {
			raw[i] = byte(rnd.Uint32())
		}
		order, c := binary.ByteOrder(binary.LittleEndian), Little(raw)
		if round%2 == 1 {
			order, c = binary.BigEndian, Big(raw)
		}
		for at, short := 0, false; !short || rnd.IntN(4) > 0; {
			n := []int{1, 2, 4, 8, rnd.IntN(12)}
			kind := rnd.IntN(len(n))
			short = short || at+n[kind] > len(raw)
			want := make([]byte, 8)
			if !short {
				want = raw[at : at+n[kind]]
				at += n[kind]
			}
			var same bool
			switch kind {
			case 0:
				same = c.U8() == want[0]
			case 1:
				same = c.U16() == order.Uint16(want)
			case 2:
				same = c.U32() == order.Uint32(want)
			case 3:
				same = c.U64() == order.Uint64(want)
			default:
				got := c.Take(uint64(n[kind]))
				same = short && got == nil || !short && got != nil && bytes.Equal(got, want)
			}
			if !same || c.Short() != short || !short && !bytes.Equal(c.Rest(), raw[at:]) || short && c.Len() != 0 {
				t.Fatalf("round %d: %d bytes at %d of %d: not what indexing yields, or short is %t, want %t", round, n[kind], at, len(raw), c.Short(), short)
			}
		}
	}
}

func TestNoAllocation(t *testing.T) {
	raw := make([]byte, 32)
	if n := testing.AllocsPerRun(100, func() {
		c := Big(raw)
		for !c.Short() {
			c.U8()
			c.U16()
			c.U32()
			c.U64()
			c.Take(uint64(c.U8()) + 1<<40)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
