package consensus

import (
	"crypto"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Step is one change of the policy, as its signed chain tells it.
type Step struct {
	Epoch       identity.Epoch       `json:"epoch"` // after it
	Base        uint64               `json:"base"`
	Incarnation identity.Incarnation `json:"incarnation"`
	// Cause names what was ordered: "bootstrap", "proposal ID", or "recovery".
	Cause string `json:"cause"`
	// Class is that of a proposal, computed; empty for the others.
	Class Class `json:"class,omitempty"`
	// Organisations have signed it, distinct. They are those of genesis for a bootstrap.
	Organisations []identity.OrgID `json:"organisations"`
	// Created is when a proposal was made, by the clock of whoever made it. When it was ordered
	// no signature says.
	Created time.Time `json:"created,omitzero"`
	Changes []string  `json:"changes"`
	// Links are the indices in the chain that it takes.
	Links []int `json:"-"`
}

// History verifies a policy chain and returns its steps, the start first. Each step is judged
// on the policy before it, as ReplayPolicy does; visit, which may be nil, is shown the policy
// after it and must not keep it.
func History(g *Genesis, chain [][]byte, visit func(Step, *PolicyState)) ([]Step, error) {
	if visit == nil {
		visit = func(Step, *PolicyState) {}
	}
	s := newPolicyState(g)
	steps := []Step{}
	for at := 0; at < len(chain); {
		step, taken, err := s.step(chain, at)
		if err != nil {
			return nil, fmt.Errorf("policy chain step %d: %w", at, err)
		}
		step.Epoch, step.Base, step.Incarnation = s.epoch, s.base, s.incarnation
		for range taken {
			step.Links = append(step.Links, at)
			at++
		}
		steps = append(steps, step)
		visit(step, s)
	}
	return steps, nil
}

// step has the change at chain[at] take effect on s and returns how many links it takes.
func (s *PolicyState) step(chain [][]byte, at int) (Step, int, error) {
	if predicateOf(chain[at]) != envelope.TypeProposal {
		// Genesis with its Bootstrap, or a Recovery with its own.
		taken := min(2, len(chain)-at)
		if err := s.Extend(chain[:at+taken]); err != nil {
			return Step{}, 0, err
		}
		out := Step{Cause: "bootstrap", Changes: []string{}}
		if at > 0 {
			out.Cause = "recovery"
		}
		out.Organisations = s.Founders()
		return out, taken, nil
	}
	c, err := s.judgeStep(chain[at])
	if err != nil {
		return Step{}, 0, err
	}
	s.commit(c)
	return Step{Cause: "proposal " + c.proposal.id.String(), Class: c.class, Organisations: c.orgs, Created: c.proposal.Created, Changes: c.proposal.changes()}, 1, nil
}

// Next verifies the one change that comes after the policy chain of s, a proposal, or genesis or a
// Recovery with its Bootstrap, and returns it with the policy that it leads to; s stays as it is.
func (s *PolicyState) Next(links ...[]byte) (Step, *PolicyState, error) {
	var out Step
	next := s.clone()
	switch len(links) {
	case 1:
		c, err := next.judgeStep(links[0])
		if err != nil {
			return Step{}, nil, err
		}
		next.commit(c)
		out = Step{Cause: "proposal " + c.proposal.id.String(), Class: c.class, Organisations: c.orgs, Created: c.proposal.Created, Changes: c.proposal.changes()}
	case 2:
		var err error
		if next, err = s.Append(links); err != nil {
			return Step{}, nil, err
		}
		out = Step{Cause: "bootstrap", Changes: []string{}}
		if len(s.chain) > 0 {
			out.Cause = "recovery"
		}
		out.Organisations = next.Founders()
	default:
		return Step{}, nil, refuse(attest.CodeMalformed, "policy chain", fmt.Sprintf("%d links", len(links)), "one change")
	}
	out.Epoch, out.Base, out.Incarnation = next.epoch, next.base, next.incarnation
	return out, next, nil
}

// predicateOf returns the predicate type of an envelope, "" if it is none.
func predicateOf(raw []byte) string {
	env, err := envelope.Parse(raw)
	if err != nil {
		return ""
	}
	kind, err := envelope.PredicateType(env.Payload)
	if err != nil {
		return ""
	}
	return kind
}

// PolicyAt returns the policy in force in an epoch. The error carries a Reason where the chain
// does not reach it.
func PolicyAt(g *Genesis, chain [][]byte, epoch identity.Epoch) (*PolicyState, error) {
	var at *PolicyState
	last := newPolicyState(g).epoch
	_, err := History(g, chain, func(step Step, s *PolicyState) {
		last = step.Epoch
		if step.Epoch == epoch && at == nil {
			at = s.clone()
		}
	})
	if err == nil && at == nil && epoch == 0 {
		at = newPolicyState(g) // before the start
	}
	if err == nil && at == nil {
		err = refuse(attest.CodeBehind, "epoch", fmt.Sprint(epoch), fmt.Sprintf("at most %d, which is as far as the signed history goes", last))
	}
	return at, err
}

// Review is what a proposal does to a policy, for whoever is asked to sign it and has nothing
// but files: nodes and clocks are not known.
type Review struct {
	ID      ProposalID     `json:"id"`
	Epoch   identity.Epoch `json:"epoch"` // of the policy it is held against
	Base    uint64         `json:"base"`
	Class   Class          `json:"class,omitempty"`
	Changes []string       `json:"changes"`
	// Added and Removed are the entries that the policy gains and loses, whole: what an action
	// names by measurement alone is told here.
	Added      []Entry    `json:"added"`
	Removed    []Entry    `json:"removed"`
	Signatures Signatures `json:"signatures"`
	// Refused is why it could not take effect on this policy, whoever signs it.
	Refused *attest.Reason `json:"refused,omitempty"`
}

// Review holds the proposal in raw, which may lack signatures, against s: all that it says is
// computed from the signed bytes. A signature that does not hold is a refusal.
func (s *PolicyState) Review(raw []byte) Review {
	out := Review{Epoch: s.epoch, Base: s.base, Changes: []string{}, Added: []Entry{}, Removed: []Entry{},
		Signatures: Signatures{Organisations: []identity.OrgID{}}}
	c, err := s.judge(raw, time.Time{})
	if c == nil {
		out.Refused = ReasonOf(err)
		return out
	}
	out.ID, out.Class, out.Changes, out.Signatures = c.proposal.id, c.class, c.proposal.changes(), s.signatures(c, err)
	for _, e := range c.next.Entries() {
		if _, had := s.entries[e.ID]; !had {
			out.Added = append(out.Added, e)
		}
	}
	for _, e := range s.Entries() {
		if _, has := c.next.entries[e.ID]; !has {
			out.Removed = append(out.Removed, e)
		}
	}
	if err != nil && !lacksSignatures(raw, err) {
		out.Refused = ReasonOf(err)
	}
	return out
}

// Governs returns the organisation for which a key signs proposals now.
func (s *PolicyState) Governs(pub crypto.PublicKey) (identity.OrgID, bool) {
	id, err := envelope.KeyID(pub)
	if err != nil {
		return "", false
	}
	for _, k := range s.proposers(time.Time{}) {
		if own, err := envelope.KeyID(k.Public); err == nil && own == id {
			return k.Org, true
		}
	}
	return "", false
}

// Rebase returns the payload of a proposal with the actions of p on the present base: what has
// to be signed again where p has gone stale.
func (s *PolicyState) Rebase(p *Proposal, nonce string, created, expires time.Time) ([]byte, error) {
	next := Proposal{MeshID: s.genesis.meshID, Incarnation: s.incarnation, Base: s.base, Nonce: nonce,
		Created: canonicalTime(created), Expires: canonicalTime(expires), ConfirmQuorumLoss: p.ConfirmQuorumLoss, Actions: p.Actions}
	return next.Payload()
}
