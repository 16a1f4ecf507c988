package consensus

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Proposal is a change to the policy. Approvals are signatures over its payload.
type Proposal struct {
	MeshID      identity.MeshID      `json:"mesh_id"`
	Incarnation identity.Incarnation `json:"incarnation"`
	// Base is the base it was made on; a widening must still find it.
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

// Action is one change: exactly one field is set. All actions of a proposal take effect
// together or not at all.
type Action struct {
	AddEntry    *AddEntry    `json:"add_entry,omitempty"`
	RemoveEntry *RemoveEntry `json:"remove_entry,omitempty"`
}

// AddEntry allows one more entry.
type AddEntry struct {
	Entry
	// Readmit is demanded where the measurement was revoked before.
	Readmit bool `json:"readmit,omitempty"`
}

// RemoveEntry revokes one entry by id, or all entries of one measurement. Exactly one
// field is set. The target is absolute: what it names must have been allowed at some
// time, and after it is not, in whatever order removals come.
type RemoveEntry struct {
	ID          string `json:"id,omitempty"`
	Measurement string `json:"measurement,omitempty"`
}

// Class of a proposal, computed from the state before and after.
type Class string

// The classes.
const (
	ClassNarrow Class = "narrow"
	ClassWiden  Class = "widen"
)

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

func (a Action) check() error {
	switch {
	case a.AddEntry != nil && a.RemoveEntry == nil:
		return a.AddEntry.Entry.check()
	case a.RemoveEntry != nil && a.AddEntry == nil:
		return a.RemoveEntry.check()
	}
	return fmt.Errorf("want exactly one of add_entry and remove_entry")
}

func (r *RemoveEntry) check() error {
	switch {
	case r.ID != "" && r.Measurement == "":
		return checkHex("remove_entry id", r.ID, 8)
	case r.Measurement != "" && r.ID == "":
		return checkHex("remove_entry measurement", r.Measurement, 32, 48, 64)
	}
	return fmt.Errorf("remove_entry: want exactly one of id and measurement")
}

// names reports whether r targets e.
func (r *RemoveEntry) names(e *Entry) bool {
	return r.ID != "" && e.ID == r.ID || r.Measurement != "" && e.Measurement == r.Measurement
}

// Class returns the class that these actions have on any state. Additions always widen:
// see the package comment.
func (p *Proposal) Class() Class {
	for _, a := range p.Actions {
		if a.AddEntry != nil {
			return ClassWiden
		}
	}
	return ClassNarrow
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
		switch {
		case a.AddEntry != nil && a.AddEntry.Readmit:
			lines = append(lines, "+ allow again, though revoked: "+a.AddEntry.Describe())
		case a.AddEntry != nil:
			lines = append(lines, "+ allow "+a.AddEntry.Describe())
		case a.RemoveEntry.ID != "":
			lines = append(lines, "- revoke entry "+a.RemoveEntry.ID)
		default:
			lines = append(lines, "- revoke every entry with measurement "+a.RemoveEntry.Measurement)
		}
	}
	return lines
}

// applyActions returns the entries and revocations after p, sharing nothing with s.
func (s *PolicyState) applyActions(p *Proposal) (entries, revoked map[string]Entry, err error) {
	entries, revoked = cloneEntries(s.entries), cloneEntries(s.revoked)
	for i, a := range p.Actions {
		claim := fmt.Sprintf("action %d", i)
		if a.AddEntry != nil {
			err = s.genesis.addEntry(entries, revoked, a.AddEntry, claim)
		} else {
			err = removeEntry(entries, revoked, a.RemoveEntry, claim)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	if len(entries) > MaxEntries || len(revoked) > MaxRevoked {
		return nil, nil, refuse(attest.CodeLimit, "entries", fmt.Sprintf("%d and %d revoked", len(entries), len(revoked)), fmt.Sprintf("at most %d and %d", MaxEntries, MaxRevoked))
	}
	return entries, revoked, nil
}

func (g *Genesis) addEntry(entries, revoked map[string]Entry, add *AddEntry, claim string) error {
	e := add.Entry
	if _, ok := entries[e.ID]; ok {
		return refuse(attest.CodeReplayed, claim, "entry "+e.ID+" is allowed already", "a new entry")
	}
	if err := g.admitsEntry(&e); err != nil {
		return err
	}
	for _, id := range e.Supersedes {
		if _, ok := entries[id]; !ok && revoked[id].ID == "" {
			return refuse(attest.CodeUnknownEntry, claim+" supersedes", id, "an entry that is or was allowed")
		}
	}
	for id, r := range revoked {
		if r.Measurement != e.Measurement {
			continue
		}
		if !add.Readmit {
			return refuse(attest.CodeRevoked, claim, "measurement "+e.Measurement+" was revoked", "readmit: true, if it is meant")
		}
		delete(revoked, id)
	}
	entries[e.ID] = e
	return nil
}

func removeEntry(entries, revoked map[string]Entry, r *RemoveEntry, claim string) error {
	known := false
	for _, e := range revoked {
		known = known || r.names(&e)
	}
	for id, e := range entries {
		if r.names(&e) {
			known = true
			revoked[id] = e
			delete(entries, id)
		}
	}
	if !known {
		return refuse(attest.CodeUnknownEntry, claim, r.ID+r.Measurement, "an entry that is or was allowed")
	}
	return nil
}
