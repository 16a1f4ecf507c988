package consensus

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Proposal is a change to the policy. Approvals are signatures over its payload.
type Proposal struct {
	MeshID      identity.MeshID      `json:"mesh_id"`
	Incarnation identity.Incarnation `json:"incarnation"`
	// Base is the base it was made on; all but a narrowing must still find it.
	Base    uint64    `json:"base"`
	Nonce   string    `json:"nonce"` // 16 bytes in hex
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	// ConfirmQuorumLoss lets it evict a majority of the seats.
	ConfirmQuorumLoss bool     `json:"confirm_quorum_loss,omitempty"`
	Actions           []Action `json:"actions"`

	id  ProposalID
	raw []byte
}

// ProposalID is the SHA-256 of a proposal's payload.
type ProposalID [32]byte

// String returns lower-case hex.
func (id ProposalID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText encodes id as lower-case hex.
func (id ProposalID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText decodes 64 lower-case hex characters.
func (id *ProposalID) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != len(id) || hex.EncodeToString(raw) != string(text) {
		return fmt.Errorf("proposal id %.70q: want 64 characters of lower-case hex", text)
	}
	copy(id[:], raw)
	return nil
}

// Class of a proposal, computed from the state before and after.
type Class string

// The classes.
const (
	ClassNarrow       Class = "narrow"
	ClassWiden        Class = "widen"
	ClassConstitution Class = "constitution"
)

// widest returns the class that needs the most organisations.
func widest(classes ...Class) Class {
	order := []Class{ClassNarrow, ClassWiden, ClassConstitution}
	return slices.MaxFunc(classes, func(a, b Class) int { return slices.Index(order, a) - slices.Index(order, b) })
}

// ID returns the SHA-256 of the payload that was decoded.
func (p *Proposal) ID() ProposalID { return p.id }

// Raw returns the envelope that was parsed; nil for a payload alone.
func (p *Proposal) Raw() []byte { return p.raw }

// Payload encodes a proposal that was built in memory, after validating it.
func (p *Proposal) Payload() ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("proposal: %w", err)
	}
	return envelope.NewPayload(envelope.TypeProposal, meshSubject(p.MeshID), *p)
}

// DecodeProposal decodes and validates a proposal payload, whoever signed it.
func DecodeProposal(payload []byte) (*Proposal, error) {
	if len(payload) > envelope.MaxSize {
		return nil, fmt.Errorf("proposal: %d bytes, the limit is %d", len(payload), envelope.MaxSize)
	}
	st, err := envelope.Decode[Proposal](payload, envelope.TypeProposal)
	if err != nil {
		return nil, fmt.Errorf("proposal: %w", err)
	}
	p := &st.Predicate
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("proposal: %w", err)
	}
	if err := checkSubject(st.Subject, meshSubject(p.MeshID)); err != nil {
		return nil, fmt.Errorf("proposal: %w", err)
	}
	p.id = sha256.Sum256(payload)
	return p, nil
}

// ParseProposal decodes an envelope of a proposal. Signatures are judged by Apply, against
// the keys in force then.
func ParseProposal(raw []byte) (*Proposal, *envelope.Envelope, error) {
	env, err := envelope.Parse(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("proposal: %w", err)
	}
	p, err := DecodeProposal(env.Payload)
	if err != nil {
		return nil, nil, err
	}
	p.raw = raw
	return p, env, nil
}

func (p *Proposal) check() error {
	if p.MeshID.IsZero() {
		return fmt.Errorf("mesh_id is zero")
	}
	if err := checkHex("nonce", p.Nonce, 16); err != nil {
		return err
	}
	if err := checkTime("created", p.Created); err != nil {
		return err
	}
	if err := checkTime("expires", p.Expires); err != nil {
		return err
	}
	if life := p.Expires.Sub(p.Created); life <= 0 || life > MaxProposalLifetime {
		return fmt.Errorf("open for %s, want more than nothing and at most %s", life, MaxProposalLifetime)
	}
	if len(p.Actions) == 0 || len(p.Actions) > MaxActions {
		return fmt.Errorf("actions: %d, want 1 to %d", len(p.Actions), MaxActions)
	}
	for i, a := range p.Actions {
		if err := a.check(); err != nil {
			return fmt.Errorf("action %d: %w", i, err)
		}
	}
	return nil
}

// Class returns the class that these actions have on any state: Apply never computes a
// lower one. See the package comment.
func (p *Proposal) Class() Class {
	class := ClassNarrow
	for _, a := range p.Actions {
		if change, err := a.change(); err == nil {
			class = widest(class, change.class())
		}
	}
	return class
}

// Describe returns what p does, for people, one line each, made from the decoded payload
// and nothing else.
func (p *Proposal) Describe() []string {
	lines := []string{
		"proposal " + p.id.String(),
		fmt.Sprintf("mesh %s incarnation %d, made on base %d", p.MeshID, p.Incarnation, p.Base),
		fmt.Sprintf("created %s, expires %s", p.Created.Format(time.RFC3339), p.Expires.Format(time.RFC3339)),
		fmt.Sprintf("class %s (computed)", p.Class()),
	}
	if p.ConfirmQuorumLoss {
		lines = append(lines, "! evicts seats even where the rest is no quorum and the mesh stops")
	}
	for _, a := range p.Actions {
		if change, err := a.change(); err == nil {
			lines = append(lines, change.describe())
		}
	}
	return lines
}
