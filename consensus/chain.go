package consensus

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/attestmesh/meshnode/attest"
)

// Append verifies steps that come after the policy chain of s and returns the policy they
// lead to; s stays as it is.
func (s *PolicyState) Append(steps [][]byte) (*PolicyState, error) {
	next, rest := s.clone(), steps
	if len(next.chain) == 0 && len(rest) > 0 {
		if len(rest) < 2 {
			return nil, refuse(attest.CodeMalformed, "policy chain", "1 step", "genesis and Bootstrap")
		}
		if err := next.start(rest[0], rest[1]); err != nil {
			return nil, err
		}
		rest = rest[2:]
	}
	for len(rest) > 0 {
		done, err := next.replayStep(rest)
		if err != nil {
			return nil, fmt.Errorf("policy chain step %d: %w", len(next.chain), err)
		}
		rest = rest[done:]
	}
	return next, nil
}

// Steps returns how many steps the policy chain has.
func (s *PolicyState) Steps() int { return len(s.chain) }

// StepsFrom returns the steps from number from on, counted from 0: as many as have limit
// bytes, but one at least if there is one.
func (s *PolicyState) StepsFrom(from, limit int) [][]byte {
	var out [][]byte
	for i := from; i >= 0 && i < len(s.chain); i++ {
		if limit -= len(s.chain[i]); limit < 0 && len(out) > 0 {
			break
		}
		out = append(out, s.chain[i])
	}
	return slices.Clip(out)
}

// ChainDigest names the first n steps of the policy chain: d(0) is 32 zero bytes, d(n) is
// SHA-256(d(n−1) ‖ SHA-256(step n−1)). It reports false if there are fewer.
func (s *PolicyState) ChainDigest(n int) ([32]byte, bool) {
	if n < 0 || n > len(s.chain) {
		return [32]byte{}, false
	}
	if n == 0 {
		return [32]byte{}, true
	}
	return s.links[n-1], true
}

// link extends the digests by a step.
func (s *PolicyState) link(raw []byte) {
	var before [32]byte
	if n := len(s.links); n > 0 {
		before = s.links[n-1]
	}
	step := sha256.Sum256(raw)
	s.links = append(s.links, sha256.Sum256(append(before[:], step[:]...)))
}

// BeginsWith reports whether the policy chain of s begins with that of other.
func (s *PolicyState) BeginsWith(other *PolicyState) bool {
	want, _ := other.ChainDigest(len(other.chain))
	got, ok := s.ChainDigest(len(other.chain))
	return ok && bytes.Equal(got[:], want[:])
}
