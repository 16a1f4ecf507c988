package transparency

import (
	"encoding/hex"
	"fmt"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"
)

// Hash is a node or root of the tree. Its text form is lower-case hex; checkpoints and
// proofs write base64, as their formats say.
type Hash [32]byte

// String returns lower-case hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText encodes h as lower-case hex.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText decodes 64 hex characters.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != 2*len(h) {
		return fmt.Errorf("hash: got %d characters, want %d of hex", len(text), 2*len(h))
	}
	var out Hash
	if _, err := hex.Decode(out[:], text); err != nil {
		return fmt.Errorf("hash: %w", err)
	}
	*h = out
	return nil
}

// LeafHash returns the hash under which a leaf is in the tree.
func LeafHash(leaf []byte) Hash { return Hash(tlog.RecordHash(leaf)) }

func fromTlog(in []tlog.Hash) []Hash {
	out := make([]Hash, len(in))
	for i, h := range in {
		out[i] = Hash(h)
	}
	return out
}

func toTlog(in []Hash) []tlog.Hash {
	out := make([]tlog.Hash, len(in))
	for i, h := range in {
		out[i] = tlog.Hash(h)
	}
	return out
}

// Accumulator computes the root of leaves as they come, like the seats' trees but by other
// code; it keeps the right edge only. The zero value is not ready: see NewAccumulator.
type Accumulator struct{ tree *compact.Range }

// NewAccumulator returns an accumulator of no leaves.
func NewAccumulator() *Accumulator { return &Accumulator{rangeFactory.NewEmptyRange(0)} }

// Append adds a leaf.
func (a *Accumulator) Append(leaf []byte) error {
	return a.AppendHash(Hash(rfc6962.DefaultHasher.HashLeaf(leaf)))
}

// AppendHash adds a leaf whose LeafHash is known.
func (a *Accumulator) AppendHash(h Hash) error {
	if err := a.tree.Append(h[:], nil); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	return nil
}

// Size returns how many leaves there are.
func (a *Accumulator) Size() uint64 { return a.tree.End() }

// Root returns the root of the leaves so far.
func (a *Accumulator) Root() (Hash, error) { return rootOf(a.tree) }
