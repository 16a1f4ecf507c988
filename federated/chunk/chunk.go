// Package chunk names a byte string by the root of a Merkle tree over its pieces, so that
// one piece can be shown to belong to it without the rest.
//
// The leaves are the consecutive pieces of Size bytes (1 MiB; the last may be shorter) and
// the tree is RFC 6962's (RFC 9162 §2.1): leaf SHA-256(0x00 piece), node SHA-256(0x01 left
// right). A string of at most Size bytes has the root SHA-256(0x00 string). The empty
// string has no root: nothing of value is empty.
package chunk

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// Size is the length of every piece but the last.
const Size = 1 << 20

// MaxChunks bounds the pieces of one string: 64 GiB.
const MaxChunks = 1 << 16

// Root names a byte string. The zero value names nothing.
type Root [32]byte

// String returns lower-case hex.
func (r Root) String() string { return hex.EncodeToString(r[:]) }

// IsZero reports whether r names nothing.
func (r Root) IsZero() bool { return r == Root{} }

// MarshalText encodes r as lower-case hex.
func (r Root) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText decodes 64 lower-case hex characters.
func (r *Root) UnmarshalText(text []byte) error {
	var out Root
	if len(text) != 2*len(out) || string(text) != strings.ToLower(string(text)) {
		return fmt.Errorf("root %.80q: want %d characters of lower-case hex", text, 2*len(out))
	}
	if _, err := hex.Decode(out[:], text); err != nil {
		return fmt.Errorf("root %.80q: %w", text, err)
	}
	*r = out
	return nil
}

// Count returns the number of pieces of a string of n bytes.
func Count(n int64) int64 { return (n + Size - 1) / Size }

// RootOf returns the root of data.
func RootOf(data []byte) (Root, error) {
	stored, n, err := store(data)
	if err != nil {
		return Root{}, err
	}
	h, err := tlog.TreeHash(n, stored)
	return Root(h), err
}

// Proof shows that a piece stands at Index of a string of Chunks pieces.
type Proof struct {
	Index  int64
	Chunks int64
	Path   [][32]byte
}

// Prove returns the proof of piece index of data.
func Prove(data []byte, index int64) (Proof, error) {
	stored, n, err := store(data)
	if err != nil {
		return Proof{}, err
	}
	if index < 0 || index >= n {
		return Proof{}, fmt.Errorf("chunk: piece %d of %d", index, n)
	}
	path, err := tlog.ProveRecord(n, index, stored)
	if err != nil {
		return Proof{}, err
	}
	p := Proof{Index: index, Chunks: n}
	for _, h := range path {
		p.Path = append(p.Path, h)
	}
	return p, nil
}

// Verify checks that piece stands where p says in the string that root names.
func (p Proof) Verify(root Root, piece []byte) error {
	switch {
	case p.Chunks < 1 || p.Chunks > MaxChunks || p.Index < 0 || p.Index >= p.Chunks:
		return fmt.Errorf("chunk: piece %d of %d", p.Index, p.Chunks)
	case len(piece) == 0 || len(piece) > Size || (len(piece) < Size && p.Index != p.Chunks-1):
		return fmt.Errorf("chunk: piece %d of %d has %d bytes, want %d", p.Index, p.Chunks, len(piece), Size)
	}
	path := make(tlog.RecordProof, len(p.Path))
	for i, h := range p.Path {
		path[i] = h
	}
	if err := tlog.CheckRecord(path, p.Chunks, tlog.Hash(root), p.Index, tlog.RecordHash(piece)); err != nil {
		return fmt.Errorf("chunk: piece %d of %d is not of %s: %w", p.Index, p.Chunks, root, err)
	}
	return nil
}

type hashes []tlog.Hash

func (h hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = h[x]
	}
	return out, nil
}

func store(data []byte) (hashes, int64, error) {
	n := Count(int64(len(data)))
	if n == 0 {
		return nil, 0, errors.New("chunk: the empty string has no root")
	}
	if n > MaxChunks {
		return nil, 0, fmt.Errorf("chunk: %d pieces, the limit is %d", n, MaxChunks)
	}
	var stored hashes
	for i := range n {
		piece := data[i*Size : min((i+1)*Size, int64(len(data)))]
		h, err := tlog.StoredHashes(i, piece, stored)
		if err != nil {
			return nil, 0, err
		}
		stored = append(stored, h...)
	}
	return stored, n, nil
}
