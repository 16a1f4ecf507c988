package ima

import (
	"bytes"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
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
	appendSum(register[:0], bank, joined)
}

// appendSum appends a bank's digest of data, without the memory that hash.Hash takes.
func appendSum(dst []byte, bank crypto.Hash, data []byte) []byte {
	switch bank {
	case crypto.SHA1:
		s := sha1.Sum(data)
		return append(dst, s[:]...)
	case crypto.SHA256:
		s := sha256.Sum256(data)
		return append(dst, s[:]...)
	case crypto.SHA384:
		s := sha512.Sum384(data)
		return append(dst, s[:]...)
	}
	s := sha512.Sum512(data)
	return append(dst, s[:]...)
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

// way is one in which kernels extend a bank: it returns what an entry extends, in parts,
// false if the list does not say.
type way func(e *Entry) ([2][]byte, bool)

// waysOf returns the ways for one bank, the usual one first: hashed; SHA-1 and zeros,
// violations being 0xff in full, or in the first 20 bytes.
func waysOf(bank crypto.Hash) []way {
	padded := func(violation int) way {
		return func(e *Entry) ([2][]byte, bool) {
			digest, ok := e.extends(crypto.SHA1)
			if e.Violation {
				digest = ones[:violation]
			}
			return [2][]byte{digest, zeros[:bank.Size()-len(digest)]}, ok
		}
	}
	out := []way{func(e *Entry) ([2][]byte, bool) {
		digest, ok := e.extends(bank)
		return [2][]byte{digest}, ok
	}}
	if bank != crypto.SHA1 {
		out = append(out, padded(bank.Size()), padded(crypto.SHA1.Size()))
	}
	return out
}

// Explain finds the shortest prefix of a list that replays to the quoted register 10 of a
// bank and returns what it says. quoted holds the values of that bank by register; 0 to 9
// serve to compare the boot aggregate. The error is a *Mismatch if there is no such prefix.
func Explain(raw []byte, bank string, quoted map[int][]byte) (*attest.IMAFacts, error) {
	hash, ok := banks[bank]
	if !ok || len(quoted[Register]) != hash.Size() {
		return nil, fmt.Errorf("ima: register %d of bank %q is not quoted, or has %d bytes", Register, bank, len(quoted[Register]))
	}
	var first error
	for _, extends := range waysOf(hash) {
		facts, err := explainBy(extends, raw, hash, bank, quoted)
		if err == nil {
			return facts, nil
		}
		var m *Mismatch
		if !errors.As(err, &m) {
			return nil, err
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// usualEntry is the least size of most entries.
const usualEntry = 110

// explainBy replays a list in one way.
func explainBy(extends way, raw []byte, hash crypto.Hash, bank string, quoted map[int][]byte) (*attest.IMAFacts, error) {
	register, want := make([]byte, hash.Size()), quoted[Register]
	facts := &gathered{IMAFacts: attest.IMAFacts{Bank: bank}, bank: bank, quoted: quoted}
	facts.Files = make([]attest.IMAFile, 0, len(raw)/usualEntry)
	covered := bytes.Equal(register, want) // nothing was measured yet
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
		parts, ok := extends(e)
		if !ok {
			break
		}
		extend(hash, register, parts[0], parts[1])
		covered = bytes.Equal(register, want)
	}
	if !covered {
		return nil, &Mismatch{Entries: facts.Entries, Got: hex.EncodeToString(register), Want: hex.EncodeToString(want)}
	}
	return &facts.IMAFacts, nil
}
