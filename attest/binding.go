package attest

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// Purpose says what a binder is for; no purpose accepts another's evidence.
type Purpose uint8

// The purposes.
const (
	PurposeChannel         Purpose = 1 // a mesh connection
	PurposeReattest        Purpose = 2 // the same connection again
	PurposeRATLS           Purpose = 3 // an RA-TLS certificate
	PurposeClientChallenge Purpose = 4 // Alice's nonce on her connection
	PurposeEnrolment       Purpose = 5 // a node before its enroller
)

// Role is the attester's role in the TLS handshake.
type Role uint8

// The roles.
const (
	RoleClient Role = 1
	RoleServer Role = 2
)

// Binder holds every field that evidence is bound to. See the package comment for the
// layout; which fields are empty depends on the purpose.
type Binder struct {
	Purpose     Purpose
	Role        Role
	MeshID      [32]byte
	Incarnation uint64
	Attester    string // binary peer id
	Verifier    string // binary peer id, enroll key id, or ""
	HelloI      []byte
	HelloR      []byte
	SPKIHash    []byte // purpose 3
	EKM         []byte // TLS exporter value; empty for purpose 3
}

// Labels of the two hashes.
const (
	binderLabel = "meshnode-attest/v1 binder"
	reportLabel = "meshnode-attest/v1 report"
)

// LengthPrefixed appends u32 big-endian length and x to dst.
func LengthPrefixed(dst, x []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(x)))
	return append(dst, x...)
}

// Sum returns the 32-byte binder.
func (b Binder) Sum() [32]byte {
	buf := make([]byte, 0, 512+len(b.HelloI)+len(b.HelloR))
	for _, part := range [][]byte{
		[]byte(binderLabel), {byte(b.Purpose)}, {byte(b.Role)}, b.MeshID[:],
		binary.BigEndian.AppendUint64(nil, b.Incarnation), []byte(b.Attester), []byte(b.Verifier),
		b.HelloI, b.HelloR, b.SPKIHash, b.EKM,
	} {
		buf = LengthPrefixed(buf, part)
	}
	return sha256.Sum256(buf)
}

// NewReportData returns the report data over a root of binders.
func NewReportData(kind string, meshID [32]byte, attester string, runtimeHead, root [32]byte) ReportData {
	buf := make([]byte, 0, 256+len(attester))
	for _, part := range [][]byte{[]byte(reportLabel), []byte(kind), meshID[:], []byte(attester), runtimeHead[:], root[:]} {
		buf = LengthPrefixed(buf, part)
	}
	return sha512.Sum512(buf)
}

// MaxPath bounds a binder's Merkle path: at most 2^16 binders share a quote.
const MaxPath = 16

// Inclusion proves that a binder is a leaf of the tree under one quote.
type Inclusion struct {
	_     struct{} `cbor:",toarray"`
	Index uint64
	Size  uint64
	Path  [][]byte
}

// BatchRoot returns the RFC 6962 root of binders and one inclusion proof for each.
func BatchRoot(binders [][32]byte) ([32]byte, []Inclusion, error) {
	if len(binders) == 0 || len(binders) > 1<<MaxPath {
		return [32]byte{}, nil, fmt.Errorf("batch: %d binders, want 1 to %d", len(binders), 1<<MaxPath)
	}
	var stored []tlog.Hash
	read := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			out[i] = stored[x]
		}
		return out, nil
	})
	for i, b := range binders {
		h, err := tlog.StoredHashes(int64(i), b[:], read)
		if err != nil {
			return [32]byte{}, nil, err
		}
		stored = append(stored, h...)
	}
	n := int64(len(binders))
	root, err := tlog.TreeHash(n, read)
	if err != nil {
		return [32]byte{}, nil, err
	}
	proofs := make([]Inclusion, n)
	for i := range n {
		p, err := tlog.ProveRecord(n, i, read)
		if err != nil {
			return [32]byte{}, nil, err
		}
		proofs[i] = Inclusion{Index: uint64(i), Size: uint64(n)}
		for _, h := range p {
			proofs[i].Path = append(proofs[i].Path, h[:])
		}
	}
	return root, proofs, nil
}

// Root returns the only root under which p proves bind, or an error if p cannot be a
// proof of any tree.
func (p Inclusion) Root(bind [32]byte) ([32]byte, error) {
	if p.Size > 1<<MaxPath || p.Index >= p.Size || len(p.Path) > MaxPath {
		return [32]byte{}, fmt.Errorf("inclusion: index %d of %d with a path of %d", p.Index, p.Size, len(p.Path))
	}
	hash, index, last := tlog.RecordHash(bind[:]), p.Index, p.Size-1
	// RFC 9162 §2.1.3.2: walk from the leaf to the root, left or right by index.
	for _, raw := range p.Path {
		var sibling tlog.Hash
		if len(raw) != len(sibling) {
			return [32]byte{}, fmt.Errorf("inclusion: a path element of %d bytes", len(raw))
		}
		copy(sibling[:], raw)
		if last == 0 {
			return [32]byte{}, fmt.Errorf("inclusion: the path is longer than the tree is high")
		}
		if index&1 == 1 || index == last {
			hash = tlog.NodeHash(sibling, hash)
			for index&1 == 0 && index != 0 {
				index, last = index>>1, last>>1
			}
		} else {
			hash = tlog.NodeHash(hash, sibling)
		}
		index, last = index>>1, last>>1
	}
	if last != 0 {
		return [32]byte{}, fmt.Errorf("inclusion: the path ends below the root")
	}
	return hash, nil
}
