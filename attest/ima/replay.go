package ima

import (
	"bytes"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/attestmesh/meshnode/attest"
)

// Replayed is what a whole list extends.
type Replayed struct {
	Entries    int
	Violations int
	Unverified int // entries whose listed data do not hash to their listed digest
	// Registers are by name, "sha256:pcr10". A bank is left out where the list does not
	// hold the data that its digests are made of.
	Registers map[string]string
}

// Replay reads a list to its end.
func Replay(raw []byte) (Replayed, error) {
	out := Replayed{Registers: map[string]string{}}
	regs, missing := map[string][]byte{}, map[string]bool{}
	for e, err := range Entries(raw) {
		if err != nil {
			return Replayed{}, err
		}
		out.Entries++
		switch {
		case e.Violation:
			out.Violations++
		case !e.Verified:
			out.Unverified++
		}
		for name, hash := range banks {
			register := fmt.Sprintf("%s:pcr%d", name, e.PCR)
			digest, ok := e.extends(hash)
			if !ok {
				missing[register] = true
				continue
			}
			if regs[register] == nil {
				regs[register] = make([]byte, hash.Size())
			}
			extend(hash, regs[register], digest)
		}
	}
	for name, v := range regs {
		if !missing[name] {
			out.Registers[name] = hex.EncodeToString(v)
		}
	}
	return out, nil
}

// extends returns what an entry extends in a bank whose hash the kernel knows, false if
// the list does not say.
func (e *Entry) extends(bank crypto.Hash) ([]byte, bool) {
	switch {
	case e.Violation:
		return ones[:bank.Size()], true
	case len(e.Digest) == bank.Size():
		return e.Digest, true
	case e.Verified:
		return e.hash(bank), true
	}
	return nil, false
}

var (
	ones  = bytes.Repeat([]byte{0xff}, 64)
	zeros = make([]byte, 64)
)

// extend replaces a register's value by the hash of it and a digest.
func extend(bank crypto.Hash, register []byte, digest ...[]byte) {
	var buffer [128]byte
	joined := append(buffer[:0], register...)
	for _, d := range digest {
		joined = append(joined, d...)
	}
	switch bank { // without the memory that hash.Hash takes
	case crypto.SHA1:
		sum := sha1.Sum(joined)
		copy(register, sum[:])
	case crypto.SHA256:
		sum := sha256.Sum256(joined)
		copy(register, sum[:])
	default:
		h := bank.New()
		h.Write(joined)
		h.Sum(register[:0])
	}
}

// Mismatch is a list of which no prefix explains the quoted register.
type Mismatch struct {
	Entries   int
	Got, Want string // register 10 after the whole list, and as quoted
}

// Error implements error.
func (m *Mismatch) Error() string {
	return fmt.Sprintf("ima: none of the %d entries leads to the quoted register: got %s after the last, want %s", m.Entries, m.Got, m.Want)
}

// ways in which kernels extend a bank.
type way struct {
	register []byte
	// next is nil once an entry cannot be extended in this way.
	next func(w *way, e *Entry)
	dead bool
}

// waysOf returns the ways for one bank: hashed; SHA-1 and zeros, violations being 0xff in
// full, or in the first 20 bytes.
func waysOf(bank crypto.Hash) []*way {
	hashed := func(w *way, e *Entry) {
		digest, ok := e.extends(bank)
		if w.dead = !ok; ok {
			extend(bank, w.register, digest)
		}
	}
	padded := func(violation int) func(*way, *Entry) {
		return func(w *way, e *Entry) {
			digest, ok := e.extends(crypto.SHA1)
			if w.dead = !ok; !ok {
				return
			}
			if e.Violation {
				digest = ones[:violation]
			}
			extend(bank, w.register, digest, zeros[:bank.Size()-len(digest)])
		}
	}
	out := []*way{{next: hashed}}
	if bank != crypto.SHA1 {
		out = append(out, &way{next: padded(bank.Size())}, &way{next: padded(crypto.SHA1.Size())})
	}
	for _, w := range out {
		w.register = make([]byte, bank.Size())
	}
	return out
}

// Explain finds the shortest prefix of a list that replays to the quoted register 10 of a
// bank and returns what it says. quoted holds the values of that bank by register; 0 to 9
// serve to compare the boot aggregate. The error is a *Mismatch if there is no such prefix.
func Explain(raw []byte, bank string, quoted map[int][]byte) (*attest.IMAFacts, error) {
	hash, ok := banks[bank]
	want := quoted[Register]
	if !ok || len(want) != hash.Size() {
		return nil, fmt.Errorf("ima: register %d of bank %q is not quoted, or has %d bytes", Register, bank, len(want))
	}
	ways := waysOf(hash)
	facts := &gathered{IMAFacts: attest.IMAFacts{Bank: bank}, bank: bank, quoted: quoted, seen: map[key]struct{}{}}
	covered := bytes.Equal(ways[0].register, want) // nothing was measured yet
	for e, err := range Entries(raw) {
		if err != nil {
			return nil, err
		}
		if covered {
			facts.Beyond++
			continue
		}
		facts.add(e)
		if e.PCR != Register {
			continue
		}
		for _, w := range ways {
			if w.dead {
				continue
			}
			if w.next(w, e); !w.dead && bytes.Equal(w.register, want) {
				covered = true
			}
		}
	}
	if !covered {
		return nil, &Mismatch{Entries: facts.Entries, Got: hex.EncodeToString(ways[0].register), Want: hex.EncodeToString(want)}
	}
	return &facts.IMAFacts, nil
}
