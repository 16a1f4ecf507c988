package consensus

import (
	"crypto/ed25519"
	"fmt"

	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// StateDigest is what a seat signs with its peer key about its own machine: the digest it had
// before a digest command. Seats show it to each other; two that differ under one Seq are
// evidence that one machine is broken. It is never ordered.
type StateDigest struct {
	MeshID      identity.MeshID      `json:"mesh_id"`
	Incarnation identity.Incarnation `json:"incarnation"`
	Node        identity.NodeRef     `json:"node"`
	Peer        identity.PeerID      `json:"peer"`
	// Seq counts the commands ordered before.
	Seq    uint64 `json:"seq"`
	Digest string `json:"digest"` // hex
}

// MaxStateDigest bounds an encoded StateDigest.
const MaxStateDigest = 4 << 10

// SignStateDigest signs d with the seat's peer key and returns the envelope.
func SignStateDigest(key ed25519.PrivateKey, d StateDigest) ([]byte, error) {
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("state digest: %w", err)
	}
	raw, err := signPeer(key, d.Peer, envelope.TypeStateDigest, nodeSubject(d.Node, d.Peer), d)
	if err != nil {
		return nil, fmt.Errorf("state digest: %w", err)
	}
	return raw, nil
}

// ParseStateDigest decodes a StateDigest and checks that the peer it names signed it.
func ParseStateDigest(raw []byte) (*StateDigest, error) {
	if len(raw) > MaxStateDigest {
		return nil, fmt.Errorf("state digest: %d bytes, the limit is %d", len(raw), MaxStateDigest)
	}
	env, err := envelope.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("state digest: %w", err)
	}
	st, err := envelope.Decode[StateDigest](env.Payload, envelope.TypeStateDigest)
	if err != nil {
		return nil, fmt.Errorf("state digest: %w", err)
	}
	d := &st.Predicate
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("state digest: %w", err)
	}
	if err := checkSubject(st.Subject, nodeSubject(d.Node, d.Peer)); err != nil {
		return nil, fmt.Errorf("state digest: %w", err)
	}
	if err := env.VerifyPeer(d.Peer); err != nil {
		return nil, fmt.Errorf("state digest: %w", err)
	}
	return d, nil
}

func (d *StateDigest) check() error {
	if d.MeshID.IsZero() {
		return fmt.Errorf("mesh_id is zero")
	}
	if err := d.Node.Validate(); err != nil {
		return err
	}
	if err := d.Peer.Validate(); err != nil {
		return err
	}
	return checkHex("digest", d.Digest, 32)
}
