package misbehaviour

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/canonical"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// Version begins every file of this form.
const Version = "misbehaviour/v1"

const (
	// MaxFile bounds a file: a policy chain and little more.
	MaxFile = consensus.MaxChainBytes + 8<<20
	// MaxCredentials bounds the Credentials of one file: a note has at most 100 signatures.
	MaxCredentials = 200
	maxProof       = 64
)

// ErrMalformed is wrapped where bytes are no file of this form.
var ErrMalformed = errors.New("no misbehaviour file")

// file is what is written.
type file struct {
	Version     string              `json:"meshnode"`
	MeshID      identity.MeshID     `json:"mesh_id"`
	Chain       []string            `json:"chain"`
	Credentials []string            `json:"credentials"`
	Checkpoints [2]string           `json:"checkpoints"`
	Root        *transparency.Hash  `json:"root,omitempty"`
	Proof       []transparency.Hash `json:"proof,omitempty"`
}

// Is reports whether data begins as a file of this form does.
func Is(data []byte) bool {
	const head = `{"meshnode":"misbehaviour/`
	return len(data) >= len(head) && string(data[:len(head)]) == head
}

func parse(data []byte) (*file, error) {
	if len(data) > MaxFile {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrMalformed, len(data), MaxFile)
	}
	var f file
	if err := canonical.DecodeJSON(data, &f); err != nil {
		var other struct {
			Version string `json:"meshnode"`
		}
		if Is(data) && json.Unmarshal(data, &other) == nil && other.Version != Version {
			return nil, fmt.Errorf("%w: it is %.40q, this release reads %q", ErrMalformed, other.Version, Version)
		}
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	switch {
	case f.Version != Version:
		return nil, fmt.Errorf("%w: it is %.40q, want %q", ErrMalformed, f.Version, Version)
	case len(f.Chain) == 0 || len(f.Chain) > consensus.MaxChain:
		return nil, fmt.Errorf("%w: %d steps of the policy chain, want Bootstrap at least", ErrMalformed, len(f.Chain))
	case len(f.Credentials) > MaxCredentials || len(f.Proof) > maxProof:
		return nil, fmt.Errorf("%w: %d Credentials, %d hashes of a proof", ErrMalformed, len(f.Credentials), len(f.Proof))
	}
	return &f, nil
}

// History is the tree of one of the two histories: the one that its holder built.
type History interface {
	// RootAt returns the root at a size that the tree has reached.
	RootAt(size uint64) (transparency.Hash, error)
	// ConsistencyProof returns the RFC 6962 §2.1.2 proof from size a to size b.
	ConsistencyProof(a, b uint64) ([]transparency.Hash, error)
}

// ErrAhead is returned by New for a checkpoint that is larger than the one of one's own: what
// stands at its size in one's own history can be said once a checkpoint covers it.
var ErrAhead = errors.New("the other checkpoint is larger than the own one")

// New makes the file about two checkpoints that contradict each other: own, of the history that
// tree holds, and other, no larger. policy is that of their incarnation, credentials are those of the nodes
// that may have cosigned one of them, as far as they are known. The report is what Verify says about
// the file; New returns no file of which Verify would say that it proves nothing.
func New(policy *consensus.PolicyState, credentials [][]byte, tree History, own, other []byte) ([]byte, Report, error) {
	a, err := transparency.ParseCheckpoint(own)
	if err != nil {
		return nil, Report{}, err
	}
	b, err := transparency.ParseCheckpoint(other)
	if err != nil {
		return nil, Report{}, err
	}
	if b.Size > a.Size {
		return nil, Report{}, fmt.Errorf("%w: size %d, own %d", ErrAhead, b.Size, a.Size)
	}
	f := file{Version: Version, MeshID: policy.MeshID(), Chain: []string{}, Credentials: []string{}, Checkpoints: [2]string{string(other), string(own)}}
	for _, raw := range policy.StepsFrom(1, consensus.MaxChainBytes) {
		f.Chain = append(f.Chain, string(raw))
	}
	if b.Size < a.Size {
		root, err := tree.RootAt(b.Size)
		if err != nil {
			return nil, Report{}, err
		}
		if f.Proof, err = tree.ConsistencyProof(b.Size, a.Size); err != nil {
			return nil, Report{}, err
		}
		f.Root = &root
	}
	for _, raw := range credentials {
		if by, _, err := cosignerOf(policy, raw); err == nil && hasSigned(policy, by, own, other) {
			f.Credentials = append(f.Credentials, string(raw))
		}
	}
	data, err := canonical.JSON(f)
	if err != nil {
		return nil, Report{}, err
	}
	r, err := Verify(data, policy.Genesis())
	if err != nil {
		return nil, Report{}, err
	}
	return data, r, nil
}

// hasSigned reports whether by has cosigned one of the notes.
func hasSigned(policy *consensus.PolicyState, by transparency.Cosigner, notes ...[]byte) bool {
	for _, note := range notes {
		if s, err := transparency.Signers(note, policy.LogKey(), []transparency.Cosigner{by}, nil); err == nil && len(s.Cosigners) > 0 {
			return true
		}
	}
	return false
}

// cosignerOf returns the cosigner that a Credential names.
func cosignerOf(policy *consensus.PolicyState, raw []byte) (transparency.Cosigner, *enrolled, error) {
	c, stands, err := policy.EnrolledCredential(raw)
	if err != nil {
		return transparency.Cosigner{}, nil, err
	}
	key := append(ed25519.PublicKey(nil), c.CosignerKey()...)
	return transparency.Cosigner{Name: policy.CosignerName(c.Ref(), c.BootSeq), Org: c.Organisation, Key: key}, &enrolled{c, stands}, nil
}

// enrolled is a Credential and whether the key that signed it is in force.
type enrolled struct {
	*consensus.Credential
	stands bool
}
