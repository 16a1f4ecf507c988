package consensus

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Recovery starts an incarnation above 0 on what is left of the one before. Govern keys of
// as many member organisations as widen sign it, by the keys in force at its checkpoint.
//
// A Recovery that is not planned names the very checkpoint that the log goes on from. A
// planned one is signed before the mesh is stopped: its checkpoint, and its epoch, are the
// oldest that it lets the mesh go on from, and it is void once the base has moved, so that
// the organisations and keys that it was signed under are those in force.
type Recovery struct {
	MeshID identity.MeshID `json:"mesh_id"`
	// Incarnation is the one that starts: higher than the one whose log goes on, and than
	// that of every other Recovery its signers have signed.
	Incarnation identity.Incarnation `json:"incarnation"`
	// PreviousOrigin is the origin of the log that goes on.
	PreviousOrigin string         `json:"previous_origin"`
	Checkpoint     CheckpointSeen `json:"checkpoint"`
	// Epoch, Base and Policy (PolicyDigest in hex) are those of the state at Checkpoint.
	Epoch  identity.Epoch `json:"epoch"`
	Base   uint64         `json:"base"`
	Policy string         `json:"policy"`
	// Organisations are those whose seats found the incarnation, sorted. All of their
	// enrollers sign its Bootstrap: with fewer, two halves could both begin.
	Organisations []identity.OrgID `json:"organisations"`
	Planned       bool             `json:"planned,omitempty"`
	Nonce         string           `json:"nonce"` // 16 bytes in hex
	Created       time.Time        `json:"created"`
	Expires       time.Time        `json:"expires"`

	id  RecoveryID
	raw []byte
}

// RecoveryID is the SHA-256 of a Recovery's payload.
type RecoveryID [sha256.Size]byte

// String returns lower-case hex.
func (id RecoveryID) String() string { return hex.EncodeToString(id[:]) }

// Limits of a Recovery. MaxRecovery and MaxPlannedRecovery are the longest times from
// creation to the last moment at which it can start an incarnation.
const (
	MaxRecovery        = 24 * time.Hour
	MaxPlannedRecovery = 30 * 24 * time.Hour
	MaxRecoverySize    = 32 << 10
)

// ID returns the SHA-256 of the payload that was decoded.
func (r *Recovery) ID() RecoveryID { return r.id }

// Raw returns the envelope that was parsed; nil for a payload alone.
func (r *Recovery) Raw() []byte { return slices.Clone(r.raw) }

// Payload encodes a Recovery that was built in memory, after validating it.
func (r *Recovery) Payload() ([]byte, error) {
	out := *r
	out.Created, out.Expires = canonicalTime(r.Created), canonicalTime(r.Expires)
	if err := out.check(); err != nil {
		return nil, fmt.Errorf("recovery: %w", err)
	}
	return envelope.NewPayload(envelope.TypeRecovery, meshSubject(r.MeshID), out)
}

// DecodeRecovery decodes and validates a payload, whoever signed it.
func DecodeRecovery(payload []byte) (*Recovery, error) {
	if len(payload) > MaxRecoverySize {
		return nil, fmt.Errorf("recovery: %d bytes, the limit is %d", len(payload), MaxRecoverySize)
	}
	st, err := envelope.Decode[Recovery](payload, envelope.TypeRecovery)
	if err != nil {
		return nil, fmt.Errorf("recovery: %w", err)
	}
	r := &st.Predicate
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("recovery: %w", err)
	}
	if err := checkSubject(st.Subject, meshSubject(r.MeshID)); err != nil {
		return nil, fmt.Errorf("recovery: %w", err)
	}
	r.id = sha256.Sum256(payload)
	return r, nil
}

// ParseRecovery decodes an envelope. Who signed it is judged on the state that it goes on
// from.
func ParseRecovery(raw []byte) (*Recovery, *envelope.Envelope, error) {
	env, err := envelope.Parse(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("recovery: %w", err)
	}
	r, err := DecodeRecovery(env.Payload)
	if err != nil {
		return nil, nil, err
	}
	r.raw = slices.Clone(raw)
	return r, env, nil
}

func (r *Recovery) check() error {
	if r.MeshID.IsZero() {
		return fmt.Errorf("mesh_id is zero")
	}
	if r.Incarnation == 0 {
		return fmt.Errorf("incarnation is 0, which genesis starts")
	}
	if r.PreviousOrigin == "" || len(r.PreviousOrigin) > 200 {
		return fmt.Errorf("previous_origin: %d bytes, want 1 to 200", len(r.PreviousOrigin))
	}
	if r.Checkpoint.Size < 2 {
		return fmt.Errorf("checkpoint size: %d, a log begins with genesis and Bootstrap", r.Checkpoint.Size)
	}
	if err := checkHex("checkpoint root", r.Checkpoint.Root, sha256.Size); err != nil {
		return err
	}
	if err := checkHex("policy", r.Policy, sha256.Size); err != nil {
		return err
	}
	if len(r.Organisations) == 0 || len(r.Organisations) > MaxOrganisations {
		return fmt.Errorf("organisations: %d, want 1 to %d", len(r.Organisations), MaxOrganisations)
	}
	for i, org := range r.Organisations {
		if err := org.Validate(); err != nil {
			return fmt.Errorf("organisations: %w", err)
		}
		if i > 0 && r.Organisations[i-1] >= org {
			return fmt.Errorf("organisations: %q after %q, want distinct ids in order", org, r.Organisations[i-1])
		}
	}
	if err := checkHex("nonce", r.Nonce, 16); err != nil {
		return err
	}
	if err := checkTime("created", r.Created); err != nil {
		return err
	}
	if err := checkTime("expires", r.Expires); err != nil {
		return err
	}
	limit := MaxRecovery
	if r.Planned {
		limit = MaxPlannedRecovery
	}
	if life := r.Expires.Sub(r.Created); life <= 0 || life > limit {
		return fmt.Errorf("open for %s, want more than nothing and at most %s", life, limit)
	}
	return nil
}

// Describe returns what r does, for people, one line each, made from the decoded payload
// and nothing else.
func (r *Recovery) Describe() []string {
	kind, from, at := "recovery", "goes on from the log", "in force there:"
	if r.Planned {
		kind, from, at = "planned recovery", "goes on from the log, no older than", "in force there, or later on the same base:"
	}
	var orgs []string
	for _, o := range r.Organisations {
		orgs = append(orgs, string(o))
	}
	return []string{
		kind + " " + r.id.String(),
		"mesh " + r.MeshID.String(),
		fmt.Sprintf("! starts incarnation %d: all nodes, Credentials and links of lower ones are void", r.Incarnation),
		fmt.Sprintf("! %s %s at size %d, root %s", from, r.PreviousOrigin, r.Checkpoint.Size, r.Checkpoint.Root),
		"! what was ordered after that size is given up",
		fmt.Sprintf("  %s epoch %d, base %d, policy %s", at, r.Epoch, r.Base, r.Policy),
		"  founded by the seats of " + strings.Join(orgs, ", "),
		fmt.Sprintf("  created %s, starts nothing after %s", r.Created.Format(time.RFC3339), r.Expires.Format(time.RFC3339)),
	}
}

// inTime refuses a Recovery that may not start anything at now; a zero now, of replay, is
// any time.
func (r *Recovery) inTime(now time.Time) error {
	switch {
	case now.IsZero():
	case !now.Before(r.Expires):
		return refuse(attest.CodeRecoveryExpired, "recovery expires", r.Expires.Format(time.RFC3339), "later than "+now.UTC().Format(time.RFC3339))
	case r.Created.After(now.Add(ClockSkew)):
		return refuse(attest.CodeRecoveryExpired, "recovery created", r.Created.Format(time.RFC3339), "not after "+now.UTC().Format(time.RFC3339))
	}
	return nil
}
