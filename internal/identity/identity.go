// Package identity holds the names every other room of meshnode speaks of: meshes,
// organisations, nodes, peers, and the counters that order their lives.
//
// The types are distinct so that an organisation can never be passed where a node is
// meant. Zero values name nobody: they fail Validate and are refused by every decoder.
package identity

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// MeshID is the SHA-256 of the genesis DSSE payload bytes. It names one mesh for ever.
type MeshID [32]byte

// String returns lower-case hex.
func (m MeshID) String() string { return hex.EncodeToString(m[:]) }

// Short returns the first 16 hex characters, as used in log origins and protocol ids.
func (m MeshID) Short() string { return m.String()[:16] }

// IsZero reports whether m names no mesh.
func (m MeshID) IsZero() bool { return m == MeshID{} }

// MarshalText encodes m as lower-case hex.
func (m MeshID) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText decodes 64 lower-case hex characters.
func (m *MeshID) UnmarshalText(text []byte) error {
	var out MeshID
	if err := decodeHex(out[:], text); err != nil {
		return fmt.Errorf("mesh id: %w", err)
	}
	*m = out
	return nil
}

// ParseMeshID decodes the text form of a mesh id.
func ParseMeshID(s string) (MeshID, error) {
	var m MeshID
	return m, m.UnmarshalText([]byte(s))
}

// Incarnation counts the lives of a mesh: 0 from genesis, one more at every Recovery.
// A higher incarnation voids all below it.
type Incarnation uint64

// Epoch counts ordered policy changes; every HELLO, leaf and result names the one it was
// judged under.
type Epoch uint64

// BootSeq orders the boots of one (organisation, node name): max(last+1, Unix ms), kept by
// the organisation's enroller. The newest boot wins; older identities are retired for ever.
type BootSeq uint64

// OrgID names an organisation: [a-z0-9-]{1,32}.
type OrgID string

// NodeName names a node within its organisation: [a-z0-9-]{1,32}.
type NodeName string

// Validate reports whether o is a well-formed organisation name.
func (o OrgID) Validate() error { return validateName("organisation", string(o)) }

// Validate reports whether n is a well-formed node name.
func (n NodeName) Validate() error { return validateName("node", string(n)) }

// NodeRef is the stable name of a node: it survives reboots, the PeerID does not.
type NodeRef struct {
	Org  OrgID
	Name NodeName
}

// String returns "org/name".
func (r NodeRef) String() string { return string(r.Org) + "/" + string(r.Name) }

// Validate reports whether both halves are well-formed.
func (r NodeRef) Validate() error {
	if err := r.Org.Validate(); err != nil {
		return err
	}
	return r.Name.Validate()
}

// MarshalText encodes r as "org/name".
func (r NodeRef) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText decodes "org/name".
func (r *NodeRef) UnmarshalText(text []byte) error {
	out, err := ParseNodeRef(string(text))
	if err != nil {
		return err
	}
	*r = out
	return nil
}

// ParseNodeRef decodes "org/name".
func ParseNodeRef(s string) (NodeRef, error) {
	org, name, ok := strings.Cut(s, "/")
	if !ok {
		return NodeRef{}, fmt.Errorf("node %q: want organisation/name", s)
	}
	r := NodeRef{OrgID(org), NodeName(name)}
	return r, r.Validate()
}

func validateName(what, s string) error {
	if len(s) == 0 || len(s) > 32 {
		return fmt.Errorf("%s %q: want 1 to 32 characters of a-z, 0-9 and '-'", what, s)
	}
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("%s %q: character %q is not of a-z, 0-9 and '-'", what, s, c)
		}
	}
	return nil
}

func decodeHex(dst []byte, text []byte) error {
	if len(text) != 2*len(dst) {
		return fmt.Errorf("got %d characters, want %d of lower-case hex", len(text), 2*len(dst))
	}
	if string(text) != strings.ToLower(string(text)) {
		return fmt.Errorf("got upper-case hex, want lower-case")
	}
	_, err := hex.Decode(dst, text)
	return err
}
