package identity

import (
	"bytes"
	"crypto/ed25519"
	"fmt"

	"github.com/mr-tron/base58"
)

// peerPrefix starts the binary libp2p peer id of an Ed25519 key: identity multihash
// (0x00), 36 bytes long (0x24), of the protobuf PublicKey{Type: Ed25519 (0x08 0x01),
// Data: 32 bytes (0x12 0x20)}. Source: libp2p specs, peer-ids/peer-ids.md.
var peerPrefix = []byte{0x00, 0x24, 0x08, 0x01, 0x12, 0x20}

// PeerID is the binary libp2p peer id of an Ed25519 key (38 bytes). It is made anew at
// every boot and inlines the public key, so whoever holds it can check its signatures
// without libp2p. Other key types are not peers of a mesh.
type PeerID string

// PeerIDFromKey returns the peer id of an Ed25519 public key.
func PeerIDFromKey(pub ed25519.PublicKey) PeerID {
	return PeerID(string(peerPrefix) + string(pub))
}

// ParsePeerID decodes the base58 text form ("12D3KooW…").
func ParsePeerID(s string) (PeerID, error) {
	raw, err := base58.Decode(s)
	if err != nil {
		return "", fmt.Errorf("peer id %.64q: %w", s, err)
	}
	p := PeerID(raw)
	return p, p.Validate()
}

// Validate reports whether p is the peer id of an Ed25519 key.
func (p PeerID) Validate() error {
	if len(p) != len(peerPrefix)+ed25519.PublicKeySize || !bytes.HasPrefix([]byte(p), peerPrefix) {
		return fmt.Errorf("peer id: want the 38 bytes of an Ed25519 peer, got %d bytes", len(p))
	}
	return nil
}

// PublicKey returns the Ed25519 key that p inlines.
func (p PeerID) PublicKey() (ed25519.PublicKey, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return ed25519.PublicKey(p[len(peerPrefix):]), nil
}

// String returns the base58 text form; "" for the zero value.
func (p PeerID) String() string { return base58.Encode([]byte(p)) }

// Short returns the last eight characters of the text form, for people.
func (p PeerID) Short() string {
	s := p.String()
	if len(s) <= 8 {
		return s
	}
	return s[len(s)-8:]
}

// MarshalText encodes p as base58.
func (p PeerID) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText decodes base58 and refuses anything but an Ed25519 peer.
func (p *PeerID) UnmarshalText(text []byte) error {
	out, err := ParsePeerID(string(text))
	if err != nil {
		return err
	}
	*p = out
	return nil
}
