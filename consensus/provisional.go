package consensus

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
)

// Provisional is what one node has heard signed and nobody has ordered yet: statements that
// only ever take away, or give back what a suspension took, and therefore act at once at
// whoever hears them. It is no part of the ordered state: epoch, base and digest do not know
// it, and nothing that Apply decides depends on it. A statement leaves it when it is ordered,
// when ordered time has passed its end, and when the ordered state would refuse it. While
// nothing is ordered time stands still, and so a narrowing stays in force.
//
// The zero value holds nothing. It is not safe for concurrent use, but for Over, All, Has and
// Empty among themselves.
type Provisional struct {
	all []*Heard // in the order they were heard: a lift comes after what it lifts
	// What the narrowings make of the policy that they were judged on last.
	base, narrowed *PolicyState
	steps          int
}

// StatementID is the SHA-256 of a statement's payload.
type StatementID [32]byte

// String returns lower-case hex.
func (id StatementID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText encodes id as lower-case hex.
func (id StatementID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText decodes 64 lower-case hex characters.
func (id *StatementID) UnmarshalText(text []byte) error {
	return (*ProposalID)(id).UnmarshalText(text)
}

// Heard is one statement that acts before it is ordered.
type Heard struct {
	ID   StatementID
	Kind Kind // of the command that orders it
	Raw  []byte
	// Says is what it does, for people, on one line.
	Says string
	// Ends is when ordered time ends it unless it is ordered before.
	Ends time.Time

	effect
}

// effect is what a statement does to a state that nobody else sees; nil does nothing.
type effect struct {
	policy      func(*PolicyState) (*PolicyState, error)
	suspensions func(map[SuspensionID]*suspended)
}

// provisional are the types of statements that act before they are ordered: the kind of
// command that orders one, and what decides whether it is good on a state.
var provisional = map[string]struct {
	kind  Kind
	judge func(*State, []byte) (Heard, error)
}{
	envelope.TypeProposal:       {KindProposal, (*State).hearNarrowing},
	envelope.TypeSuspension:     {KindSuspension, (*State).hearSuspension},
	envelope.TypeSuspensionLift: {KindLift, (*State).hearLift},
}

// Hear judges a statement on s and all that was heard before, and keeps it if it is good.
// fresh is false for one that is kept already. The error carries a Reason; see Later.
func (p *Provisional) Hear(s *State, raw []byte) (h *Heard, fresh bool, err error) {
	env, err := envelope.Parse(raw)
	if err != nil {
		return nil, false, refuseErr(attest.CodeMalformed, "statement", err)
	}
	if h := p.find(sha256.Sum256(env.Payload)); h != nil {
		return h, false, nil
	}
	if len(p.all) >= MaxProvisional {
		return nil, false, refuse(attest.CodeLimit, "statements that are not ordered yet", fmt.Sprint(len(p.all)), fmt.Sprintf("at most %d", MaxProvisional))
	}
	if h, err = p.judge(p.Over(s), raw, env); err != nil {
		return nil, false, err
	}
	p.all = append(p.all, h)
	p.base = nil
	p.rebase(s.PolicyState)
	return h, true, nil
}

func (p *Provisional) judge(over *State, raw []byte, env *envelope.Envelope) (*Heard, error) {
	kind, err := envelope.PredicateType(env.Payload)
	if err != nil {
		return nil, refuseErr(attest.CodeMalformed, "statement", err)
	}
	rule, ok := provisional[kind]
	if !ok {
		return nil, refuse(attest.CodeUnsupported, "statement", fmt.Sprintf("%.80q", kind), "one that acts before it is ordered")
	}
	h, err := rule.judge(over, raw)
	if err != nil {
		return nil, err
	}
	h.ID, h.Kind, h.Raw = sha256.Sum256(env.Payload), rule.kind, slices.Clone(raw)
	return &h, nil
}

// Settle judges everything again on s, after something was ordered. It returns how many
// statements are kept no longer, and how many of them were not ordered.
func (p *Provisional) Settle(s *State) (gone, lapsed int) {
	if len(p.all) == 0 {
		return 0, 0
	}
	kept := Provisional{}
	for _, h := range p.all {
		if _, _, err := kept.Hear(s, h.Raw); err != nil {
			gone++
			if ReasonOf(err).Code != attest.CodeReplayed {
				lapsed++
			}
		}
	}
	*p = kept
	return gone, lapsed
}

// Ended reports whether ordered time has ended something since it was settled.
func (p *Provisional) Ended(now time.Time) bool {
	return slices.ContainsFunc(p.all, func(h *Heard) bool { return !now.Before(h.Ends) })
}

// Over returns s as it is with everything that was heard: a view that shares the rest with s
// and lives no longer. With nothing heard it is s itself.
func (p *Provisional) Over(s *State) *State {
	if len(p.all) == 0 {
		return s
	}
	over := *s
	if over.PolicyState = p.narrowed; p.base != s.PolicyState || p.steps != len(s.chain) {
		over.PolicyState = p.narrow(s.PolicyState)
	}
	over.suspensions = maps.Clone(s.suspensions)
	for _, h := range p.all {
		if h.suspensions != nil {
			h.suspensions(over.suspensions)
		}
	}
	return &over
}

// rebase remembers what the narrowings make of a policy.
func (p *Provisional) rebase(s *PolicyState) {
	p.base, p.steps, p.narrowed = s, len(s.chain), p.narrow(s)
}

func (p *Provisional) narrow(s *PolicyState) *PolicyState {
	for _, h := range p.all {
		if h.policy == nil {
			continue
		}
		if next, err := h.policy(s); err == nil { // judged: only another base can refuse it
			s = next
		}
	}
	return s
}

// Empty reports whether nothing was heard.
func (p *Provisional) Empty() bool { return len(p.all) == 0 }

// All returns what was heard, in that order.
func (p *Provisional) All() []*Heard { return slices.Clone(p.all) }

// Has reports whether a statement is kept.
func (p *Provisional) Has(id StatementID) bool { return p.find(id) != nil }

func (p *Provisional) find(id StatementID) *Heard {
	if i := slices.IndexFunc(p.all, func(h *Heard) bool { return h.ID == id }); i >= 0 {
		return p.all[i]
	}
	return nil
}

// Later reports whether what was refused with err may be good at another time, so that
// whoever passed it on did nothing wrong: this node or that one is behind, or it is over.
func Later(err error) bool {
	r := ReasonOf(err)
	if r == nil {
		return false
	}
	switch r.Code {
	case attest.CodeBehind, attest.CodeNotStarted, attest.CodeUnknownEntry, attest.CodeUnknownNode, attest.CodeUnknownSuspension,
		attest.CodeReplayed, attest.CodeProposalExpired, attest.CodeSuspensionEnded, attest.CodeQuorumLoss, attest.CodeLimit:
		return true
	}
	return false
}

// WithPolicy returns s with another policy: a view that shares the rest with s.
func (s *State) WithPolicy(p *PolicyState) *State {
	other := *s
	other.PolicyState = p
	return &other
}

func (s *State) hearNarrowing(raw []byte) (Heard, error) {
	if !s.Started() {
		return Heard{}, refuse(attest.CodeNotStarted, "proposal", "before Bootstrap", "after Bootstrap")
	}
	c, err := s.judgeCounting(raw)
	if err != nil {
		return Heard{}, err
	}
	if c.class != ClassNarrow {
		return Heard{}, refuse(attest.CodeUnsupported, "proposal "+c.proposal.id.String(), "class "+string(c.class), "a narrowing: nothing else acts before it is ordered")
	}
	if _, err := s.keepsQuorum(c); err != nil {
		return Heard{}, err
	}
	says := make([]string, 0, len(c.proposal.Actions))
	for _, a := range c.proposal.Actions {
		if change, err := a.change(); err == nil {
			says = append(says, change.describe())
		}
	}
	return Heard{Says: fmt.Sprintf("proposal %s by %s: %s", c.proposal.id.String()[:16], c.orgs, strings.Join(says, "; ")), Ends: c.proposal.Expires,
		effect: effect{policy: func(s *PolicyState) (*PolicyState, error) { return s.after(c.proposal) }}}, nil
}

func (s *State) hearSuspension(raw []byte) (Heard, error) {
	x, err := s.judgeSuspension(raw)
	if err != nil {
		return Heard{}, err
	}
	return Heard{Says: InForce{x.Suspension, x.ends}.String(), Ends: x.ends,
		effect: effect{suspensions: func(m map[SuspensionID]*suspended) {
			if _, ordered := m[x.id]; !ordered {
				m[x.id] = x
			}
		}}}, nil
}

func (s *State) hearLift(raw []byte) (Heard, error) {
	x, orgs, err := s.judgeLift(raw)
	if err != nil {
		return Heard{}, err
	}
	id := x.id
	return Heard{Says: fmt.Sprintf("suspension %s lifted by %s", id.String()[:16], orgs), Ends: x.ends,
		effect: effect{suspensions: func(m map[SuspensionID]*suspended) {
			if x, ok := m[id]; ok {
				lifted := *x
				lifted.lifted = true
				m[id] = &lifted
			}
		}}}, nil
}
