package consensus

import (
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Recover makes s, the state that the leaves of a log up to at lead to, the state in which
// the incarnation that raw starts is founded: the policy and what is suspended stay, every
// node, Credential, edge and retired peer of the lower incarnation is void. Epoch and base
// go on rising, by one, so that no proposal signed before can be ordered after. s is then
// not started, and the next command is KindRecovery. A zero at is unknown: whoever knows
// the log compares what Bootstrap names. A zero now does not judge expiry. The error
// carries a Reason, and s then stays as it is.
func (s *State) Recover(raw []byte, at CheckpointSeen, now time.Time) error {
	next := s.PolicyState.clone()
	if err := next.recover(raw, at, now); err != nil {
		return err
	}
	suspensions := s.suspensions
	*s = *NewState(s.genesis)
	s.PolicyState, s.suspensions = next, suspensions
	return nil
}

// Recovering reports whether s waits for the Bootstrap of an incarnation above 0.
func (s *PolicyState) Recovering() bool { return s.recovery != nil && s.bootstrap == nil }

// Recovery returns the Recovery that the present incarnation began with, or nil.
func (s *PolicyState) Recovery() *Recovery { return s.recovery }

// Continues returns where the log goes on from in the present incarnation; the zero value
// in incarnation 0, or if it is not known yet.
func (s *PolicyState) Continues() CheckpointSeen { return s.continues }

// Founders returns the organisations whose seats found the present incarnation, sorted.
func (s *PolicyState) Founders() []identity.OrgID {
	if s.recovery != nil {
		return slices.Clone(s.recovery.Organisations)
	}
	return s.OrganisationIDs()
}

// recover is Recover of the policy alone.
func (s *PolicyState) recover(raw []byte, at CheckpointSeen, now time.Time) error {
	r, env, err := ParseRecovery(raw)
	if err != nil {
		return refuseErr(attest.CodeMalformed, "recovery", err)
	}
	if err := s.CheckRecovery(r, at); err != nil {
		return err
	}
	if err := r.inTime(now); err != nil {
		return err
	}
	if _, err := s.RecoverySigners(env); err != nil {
		return err
	}
	if len(s.chain)+2 > MaxChain || s.chainBytes+len(raw) > MaxChainBytes {
		return refuse(attest.CodeLimit, "policy chain", fmt.Sprintf("%d changes in %d bytes", len(s.chain), s.chainBytes), fmt.Sprintf("at most %d in %d", MaxChain, MaxChainBytes))
	}
	s.incarnation, s.recovery, s.bootstrap, s.continues = r.Incarnation, r, nil, at
	s.epoch++
	s.base++
	clear(s.seen) // they bind the incarnation
	return nil
}

// CheckRecovery decides everything about a Recovery but who signed it and when: whether it
// may go on from s, the state at its checkpoint, or for a planned one at a later one. A
// zero at, the place in the log that s is the state of, is not compared.
func (s *PolicyState) CheckRecovery(r *Recovery, at CheckpointSeen) error {
	switch {
	case r.MeshID != s.genesis.meshID:
		return refuse(attest.CodeWrongMesh, "recovery mesh_id", r.MeshID.Short(), s.genesis.meshID.Short())
	case s.genesis.FSMVersion < fsmGovernance:
		return s.genesis.tooEarly("recovery", fsmGovernance)
	case s.bootstrap == nil:
		return refuse(attest.CodeNotStarted, "recovery", "before Bootstrap", "an incarnation that has started")
	case r.Incarnation <= s.incarnation:
		return refuse(attest.CodeWrongIncarnation, "recovery incarnation", fmt.Sprint(r.Incarnation), fmt.Sprintf("above %d", s.incarnation))
	case r.PreviousOrigin != s.Origin():
		return refuse(attest.CodeWrongIncarnation, "recovery previous_origin", r.PreviousOrigin, s.Origin())
	}
	if err := s.checkContinues(r, at); err != nil {
		return err
	}
	return s.checkRecoverers(r)
}

// checkContinues demands the state that the signers saw: a forged or an older one is
// refused, whatever its leaves say.
func (s *PolicyState) checkContinues(r *Recovery, at CheckpointSeen) error {
	digest := s.PolicyDigest()
	got := fmt.Sprintf("epoch %d, base %d, policy %.16s", s.epoch, s.base, hex.EncodeToString(digest[:]))
	want := fmt.Sprintf("epoch %d, base %d, policy %.16s", r.Epoch, r.Base, r.Policy)
	switch {
	case !r.Planned && (s.epoch != r.Epoch || s.base != r.Base || hex.EncodeToString(digest[:]) != r.Policy):
		return refuse(attest.CodeRolledBack, "state that the recovery goes on from", got, want)
	case r.Planned && s.epoch < r.Epoch:
		return refuse(attest.CodeRolledBack, "state that the recovery goes on from", got, want+" or later")
	case r.Planned && s.base != r.Base:
		return refuse(attest.CodeStaleBase, "recovery base", fmt.Sprint(r.Base), fmt.Sprint(s.base))
	}
	if at == (CheckpointSeen{}) {
		return nil
	}
	return r.checkPlace(at)
}

// checkPlace decides whether the log may go on from at.
func (r *Recovery) checkPlace(at CheckpointSeen) error {
	got, want := fmt.Sprintf("size %d, root %.16s", at.Size, at.Root), fmt.Sprintf("size %d, root %.16s", r.Checkpoint.Size, r.Checkpoint.Root)
	switch {
	case at == r.Checkpoint:
		return nil
	case r.Planned && at.Size > r.Checkpoint.Size:
		return nil // that the smaller tree is a part of it is for whoever has the leaves
	case r.Planned:
		want += ", or later"
	}
	return refuse(attest.CodeRolledBack, "log that the recovery goes on from", got, want)
}

// checkRecoverers demands that enough organisations found the incarnation: as few as would
// keep the mesh from publishing anything are none.
func (s *PolicyState) checkRecoverers(r *Recovery) error {
	members := 0
	for _, id := range r.Organisations {
		o, ok := s.Organisation(id)
		if !ok {
			return refuse(attest.CodeMalformed, "recovery organisations", string(id), "organisations in force")
		}
		if o.IsMember() {
			members++
		}
	}
	if want := floorHalf(s.N()); members < want {
		return refuse(attest.CodeThreshold, "recovery organisations", fmt.Sprintf("%d member organisations %s", members, r.Organisations), fmt.Sprintf("at least %d of %d", want, s.N()))
	}
	return nil
}

// RecoverySigners verifies every signature on a Recovery by the govern keys in force in s
// and demands enough distinct member organisations: as many as widen.
func (s *PolicyState) RecoverySigners(env *envelope.Envelope) ([]identity.OrgID, error) {
	want, n := WidenThreshold(s.N()), s.N()
	if len(env.Signatures) == 0 {
		return nil, refuse(attest.CodeThreshold, "recovery", "have 0 organisations", fmt.Sprintf("need %d of %d", want, n))
	}
	r, err := DecodeRecovery(env.Payload)
	if err != nil {
		return nil, refuseErr(attest.CodeMalformed, "recovery", err)
	}
	orgs, err := s.verify(env, s.orgs.keys(KeyGovern, true, r.Expires), "recovery", r.Expires)
	if err != nil {
		return nil, err
	}
	if len(orgs) < want {
		return orgs, refuse(attest.CodeThreshold, "recovery", fmt.Sprintf("have %d organisations %s", len(orgs), orgs), fmt.Sprintf("need %d of %d", want, n))
	}
	return orgs, nil
}

// begin verifies the Recovery as ordered and its Bootstrap: the first command of an
// incarnation above 0, on a state that Recover made. The Recovery is ordered too because
// its signatures, unlike its payload, may differ between two files.
func (s *PolicyState) begin(recoveryRaw, bootstrapRaw []byte) error {
	if s.recovery == nil {
		return refuse(attest.CodeWrongIncarnation, "recovery", fmt.Sprintf("on incarnation %d", s.incarnation), "a replica that was made from the log it goes on from")
	}
	if s.bootstrap != nil {
		return refuse(attest.CodeReplayed, "recovery", "a second Bootstrap", "one per incarnation")
	}
	r, env, err := ParseRecovery(recoveryRaw)
	if err != nil {
		return refuseErr(attest.CodeMalformed, "recovery", err)
	}
	if r.id != s.recovery.id {
		return refuse(attest.CodeReplayMismatch, "recovery", r.id.String(), s.recovery.id.String())
	}
	if _, err := s.RecoverySigners(env); err != nil {
		return err
	}
	b, err := s.ParseBootstrap(bootstrapRaw, time.Time{})
	if err != nil {
		return err
	}
	s.recovery, s.bootstrap, s.continues = r, b, b.Continues
	s.extend(recoveryRaw)
	s.extend(bootstrapRaw)
	return nil
}

// applyRecovery executes the first command of an incarnation above 0.
func (s *State) applyRecovery(recoveryRaw, bootstrapRaw []byte) (Outcome, error) {
	if err := s.begin(recoveryRaw, bootstrapRaw); err != nil {
		return Outcome{}, err
	}
	s.seatFounders()
	return Outcome{Leaves: [][]byte{recoveryRaw, bootstrapRaw}, EpochChanged: true, SeatsChanged: true}, nil
}

// seatFounders makes the seats of Bootstrap the nodes of this state.
func (s *State) seatFounders() {
	for _, c := range s.bootstrap.seats {
		s.nodes[c.Ref()] = &node{cred: c, seat: true}
		s.peers[c.Peer] = c.Ref()
	}
}

// replayRecovery is Replay of the leaves that an incarnation above 0 begins with: where in
// the log they stand only the caller knows.
func (s *State) replayRecovery(predicate string, leaf []byte) (Outcome, error) {
	switch {
	case predicate == envelope.TypeRecovery && s.Started():
		if err := s.Recover(leaf, CheckpointSeen{}, time.Time{}); err != nil {
			return Outcome{}, err
		}
		return Outcome{Leaves: [][]byte{leaf}, EpochChanged: true}, nil
	case predicate == envelope.TypeBootstrap && s.Recovering():
		out, err := s.applyRecovery(s.recovery.raw, leaf)
		if err == nil {
			out.Leaves = [][]byte{leaf}
		}
		return out, err
	case s.Recovering():
		return Outcome{}, refuse(attest.CodeNotStarted, "leaf", "after Recovery", "its Bootstrap")
	}
	return Outcome{}, refuse(attest.CodeNotStarted, "leaf", "before Bootstrap", "after Bootstrap")
}

// replayStep executes the next step of a policy chain and returns how many envelopes it was.
func (s *PolicyState) replayStep(rest [][]byte) (int, error) {
	env, err := envelope.Parse(rest[0])
	if err != nil {
		return 0, refuseErr(attest.CodeMalformed, "policy chain", err)
	}
	if predicate, err := envelope.PredicateType(env.Payload); err != nil || predicate != envelope.TypeRecovery {
		c, err := s.judgeStep(rest[0])
		if err != nil {
			return 0, err
		}
		s.commit(c)
		return 1, nil
	}
	if len(rest) < 2 {
		return 0, refuse(attest.CodeMalformed, "policy chain", "a Recovery without Bootstrap", "both")
	}
	if s.Recovering() { // by a file, before anybody had heard of the Bootstrap
		s.continues = CheckpointSeen{} // which founders choose where the Recovery is a planned one
		return 2, s.begin(rest[0], rest[1])
	}
	if err := s.recover(rest[0], CheckpointSeen{}, time.Time{}); err != nil {
		return 0, err
	}
	return 2, s.begin(rest[0], rest[1])
}

// judgeStep is judge of a step of a policy chain.
func (s *PolicyState) judgeStep(raw []byte) (*change, error) {
	if s.bootstrap == nil {
		return nil, refuse(attest.CodeNotStarted, "policy chain", "a proposal before Bootstrap", "Bootstrap first")
	}
	return s.judge(raw, time.Time{})
}

// checkRecovered demands that b is the Bootstrap that s waits for: of the Recovery that all
// founders hold, on the log that they have.
func (b *Bootstrap) checkRecovered(s *PolicyState) error {
	if s.recovery == nil {
		if b.Recovery != "" || b.Continues != (CheckpointSeen{}) {
			return refuse(attest.CodeMalformed, "bootstrap recovery", b.Recovery, "none in incarnation 0")
		}
		return nil
	}
	if b.Recovery != s.recovery.id.String() {
		return refuse(attest.CodeReplayMismatch, "bootstrap recovery", fmt.Sprintf("%.64s", b.Recovery), s.recovery.id.String())
	}
	if err := checkHex("continues root", b.Continues.Root, 32); err != nil {
		return refuseErr(attest.CodeMalformed, "bootstrap", err)
	}
	if err := s.recovery.checkPlace(b.Continues); err != nil {
		return err
	}
	if s.continues != (CheckpointSeen{}) && b.Continues != s.continues {
		return refuse(attest.CodeReplayMismatch, "bootstrap continues", fmt.Sprintf("size %d, root %.16s", b.Continues.Size, b.Continues.Root),
			fmt.Sprintf("size %d, root %.16s", s.continues.Size, s.continues.Root))
	}
	return nil
}

// OrganisationIDs returns the organisations in force, sorted: those whose seats can found.
func (s *PolicyState) OrganisationIDs() []identity.OrgID {
	var out []identity.OrgID
	for _, o := range s.orgs {
		out = append(out, o.ID)
	}
	return out
}
