package consensus

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/sigstore/sigstore/pkg/signature"
)

// Withdrawal is one organisation's word that its signature on a proposal is not to count,
// whether it has given one or somebody still has its key. Once it is ordered, the proposal
// needs enough others. It comes too late for one that is ordered already.
type Withdrawal struct {
	MeshID       identity.MeshID      `json:"mesh_id"`
	Incarnation  identity.Incarnation `json:"incarnation"`
	Organisation identity.OrgID       `json:"organisation"`
	Proposal     ProposalID           `json:"proposal"`
	// Expires is that of the proposal: until then the withdrawal is remembered, and one with
	// another time than the proposal's has no effect on it.
	Expires time.Time `json:"expires"`
	Issued  time.Time `json:"issued"`
}

// withdrawn names what a withdrawal takes back.
type withdrawn struct {
	proposal ProposalID
	org      identity.OrgID
}

// WithdrawalOf returns what org says to withdraw from p, for signing.
func WithdrawalOf(p *Proposal, org identity.OrgID, issued time.Time) Withdrawal {
	return Withdrawal{MeshID: p.MeshID, Incarnation: p.Incarnation, Organisation: org, Proposal: p.id, Expires: p.Expires, Issued: canonicalTime(issued)}
}

// SignWithdrawal signs w with a govern key of its organisation and returns the envelope.
func SignWithdrawal(s signature.Signer, w Withdrawal) ([]byte, error) {
	if err := w.check(); err != nil {
		return nil, fmt.Errorf("withdrawal: %w", err)
	}
	env, err := envelope.SignStatement(s, envelope.TypeWithdrawal, meshSubject(w.MeshID), w)
	if err != nil {
		return nil, fmt.Errorf("withdrawal: %w", err)
	}
	return env.Marshal(), nil
}

// ParseWithdrawal decodes an envelope of a withdrawal. Its signature is judged by Apply.
func ParseWithdrawal(raw []byte) (*Withdrawal, *envelope.Envelope, error) {
	st, env, err := parseStatement[Withdrawal](raw, envelope.TypeWithdrawal)
	w := &st.Predicate
	if err == nil {
		err = w.check()
	}
	if err == nil {
		err = checkSubject(st.Subject, meshSubject(w.MeshID))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("withdrawal: %w", err)
	}
	return w, env, nil
}

func (w *Withdrawal) check() error {
	if w.MeshID.IsZero() || w.Proposal == (ProposalID{}) {
		return fmt.Errorf("mesh_id or proposal is zero")
	}
	if err := w.Organisation.Validate(); err != nil {
		return err
	}
	if err := checkTime("expires", w.Expires); err != nil {
		return err
	}
	return checkTime("issued", w.Issued)
}

// Describe returns what w does, for people, one line each, made from the decoded payload and
// nothing else.
func (w *Withdrawal) Describe() []string {
	return []string{
		"withdrawal from proposal " + w.Proposal.String(),
		fmt.Sprintf("mesh %s incarnation %d", w.MeshID, w.Incarnation),
		fmt.Sprintf("by %s, issued %s; the proposal expires %s", w.Organisation, w.Issued.Format(time.RFC3339), w.Expires.Format(time.RFC3339)),
		fmt.Sprintf("- no signature of %s counts on it any more", w.Organisation),
	}
}

// orderWithdrawal decides about a withdrawal whether or not the time is known; without, neither
// its expiry nor the quota is judged, which depends on what has expired.
func (s *State) orderWithdrawal(raw []byte) (Outcome, error) {
	w, env, err := ParseWithdrawal(raw)
	if err != nil {
		return Outcome{}, refuseErr(attest.CodeMalformed, "withdrawal", err)
	}
	switch {
	case w.MeshID != s.genesis.meshID:
		return Outcome{}, refuse(attest.CodeWrongMesh, "withdrawal mesh_id", w.MeshID.Short(), s.genesis.meshID.Short())
	case w.Incarnation != s.incarnation:
		return Outcome{}, refuse(attest.CodeWrongIncarnation, "withdrawal incarnation", fmt.Sprint(w.Incarnation), fmt.Sprint(s.incarnation))
	case s.genesis.FSMVersion < fsmGovernance:
		return Outcome{}, s.genesis.tooEarly("withdrawal", fsmGovernance)
	}
	if _, err := env.Verify(slices.DeleteFunc(s.proposers(w.Expires), func(k envelope.Key) bool { return k.Org != w.Organisation })); err != nil {
		return Outcome{}, refuseErr(attest.CodeWrongSigner, "withdrawal by "+string(w.Organisation), err)
	}
	if _, ok := s.seen[w.Proposal]; ok {
		return Outcome{}, refuse(attest.CodeReplayed, "withdrawal", "proposal "+w.Proposal.String()+" is ordered already", "one that is not; propose the opposite")
	}
	key := withdrawn{w.Proposal, w.Organisation}
	if old, ok := s.withdrawals[key]; ok && old.Equal(w.Expires) {
		return Outcome{}, refuse(attest.CodeReplayed, "withdrawal", "ordered before", "a new withdrawal")
	}
	if err := s.checkWithdrawal(w); err != nil {
		return Outcome{}, err
	}
	s.withdrawals[key] = w.Expires
	return Outcome{Leaves: [][]byte{raw}}, nil
}

// checkWithdrawal judges a withdrawal by the time, where that is known.
func (s *State) checkWithdrawal(w *Withdrawal) error {
	if s.now.IsZero() {
		return nil
	}
	if !s.now.Before(w.Expires) {
		return refuse(attest.CodeProposalExpired, "withdrawal expires", w.Expires.Format(time.RFC3339), "later than "+s.now.Format(time.RFC3339))
	}
	if w.Expires.After(s.now.Add(MaxProposalLifetime)) {
		return refuse(attest.CodeProposalExpired, "withdrawal expires", w.Expires.Format(time.RFC3339), "at most 14 days after "+s.now.Format(time.RFC3339))
	}
	live := 0
	for k := range s.withdrawals {
		if k.org == w.Organisation {
			live++
		}
	}
	if live >= MaxWithdrawals {
		return refuse(attest.CodeLimit, "withdrawals by "+string(w.Organisation), fmt.Sprint(live), fmt.Sprintf("at most %d from proposals that have not expired", MaxWithdrawals))
	}
	return nil
}

// proposers are the keys whose signatures count on proposals that expire at end.
func (s *PolicyState) proposers(end time.Time) []envelope.Key {
	return s.orgs.keys(KeyGovern, true, end)
}

// judgeCounting is judge, and judge once more without the signatures of organisations that have
// withdrawn from the proposal. They stay in what is ordered, whose bytes are the leaf and a step of
// the chain: members judge those, and know no withdrawals.
func (s *State) judgeCounting(raw []byte) (*change, error) {
	c, err := s.judge(raw, s.now)
	if c == nil || err != nil && !lacksSignatures(raw, err) {
		return c, err
	}
	kept, gone := s.withoutWithdrawn(raw)
	if len(gone) == 0 {
		return c, err
	}
	c, err = s.judge(kept, s.now)
	if c == nil {
		return nil, err
	}
	c.proposal.raw = raw
	if err != nil && lacksSignatures(kept, err) {
		r := ReasonOf(err)
		err = refuse(attest.CodeThreshold, "proposal", fmt.Sprintf("%d organisations %s, without %s, which have withdrawn", len(c.orgs), c.orgs, gone), orElse(r.Want, "more"))
	}
	return c, err
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// withoutWithdrawn returns a proposal without the signatures of organisations that have
// withdrawn from it, and whose those are.
func (s *State) withoutWithdrawn(raw []byte) ([]byte, []identity.OrgID) {
	if len(s.withdrawals) == 0 {
		return raw, nil
	}
	p, env, err := ParseProposal(raw)
	if err != nil {
		return raw, nil // judge says why
	}
	owner := map[string]identity.OrgID{}
	for _, k := range s.proposers(p.Expires) {
		if id, err := envelope.KeyID(k.Public); err == nil {
			owner[id] = k.Org
		}
	}
	for org, keys := range p.brings() { // they sign for it after the change
		for _, k := range keys {
			owner[k.ID()] = org
		}
	}
	var gone []identity.OrgID
	env.Signatures = slices.DeleteFunc(env.Signatures, func(sig envelope.Signature) bool {
		org, known := owner[sig.KeyID]
		expires, withdrew := s.withdrawals[withdrawn{p.id, org}]
		if !known || !withdrew || !expires.Equal(p.Expires) {
			return false
		}
		if !slices.Contains(gone, org) {
			gone = append(gone, org)
		}
		return true
	})
	slices.Sort(gone)
	return env.Marshal(), gone
}

// withdrawnFrom returns the organisations that have withdrawn from p, sorted.
func (s *State) withdrawnFrom(p *Proposal) []identity.OrgID {
	out := []identity.OrgID{}
	for k, expires := range s.withdrawals {
		if k.proposal == p.id && expires.Equal(p.Expires) {
			out = append(out, k.org)
		}
	}
	slices.Sort(out)
	return out
}

// Withdrawn is a withdrawal that was ordered, from a proposal that has not expired.
type Withdrawn struct {
	Proposal     ProposalID     `json:"proposal"`
	Organisation identity.OrgID `json:"organisation"`
	Expires      time.Time      `json:"expires"`
}

// Withdrawals returns them, by proposal and organisation.
func (s *State) Withdrawals() []Withdrawn {
	out := []Withdrawn{}
	for k, expires := range s.withdrawals {
		out = append(out, Withdrawn{k.proposal, k.org, expires})
	}
	slices.SortFunc(out, func(a, b Withdrawn) int {
		if c := bytes.Compare(a.Proposal[:], b.Proposal[:]); c != 0 {
			return c
		}
		return strings.Compare(string(a.Organisation), string(b.Organisation))
	})
	return out
}

// expireWithdrawals forgets those from proposals that cannot be ordered any more.
func (s *State) expireWithdrawals() {
	for k, expires := range s.withdrawals {
		if !s.now.Before(expires) {
			delete(s.withdrawals, k)
		}
	}
}

// withdrawalImage is one withdrawal in the digest.
type withdrawalImage struct {
	_            struct{} `cbor:",toarray"`
	Proposal     []byte
	Organisation string
	Expires      int64 // Unix ms
}

func (s *State) withdrawalImages() []withdrawalImage {
	out := []withdrawalImage{}
	for _, w := range s.Withdrawals() {
		out = append(out, withdrawalImage{Proposal: w.Proposal[:], Organisation: string(w.Organisation), Expires: w.Expires.UnixMilli()})
	}
	return out
}

// withdrawalPart is the same in an encoded state.
func withdrawalPart() part {
	return part{"withdrawals",
		func(s *State) any { return s.withdrawalImages() },
		func(s *State, raw []byte) error {
			var im []withdrawalImage
			if err := images.decode(raw, &im); err != nil {
				return err
			}
			for _, w := range im {
				if len(w.Proposal) != len(ProposalID{}) {
					return fmt.Errorf("withdrawal from a proposal with an id of %d bytes", len(w.Proposal))
				}
				s.withdrawals[withdrawn{ProposalID(w.Proposal), identity.OrgID(w.Organisation)}] = timeOf(w.Expires)
			}
			return nil
		}}
}
