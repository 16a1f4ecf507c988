package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
)

// endOfTime is later than every time that checkTime admits.
var endOfTime = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)

// Replay executes the command that a log leaf came from, on a State that has only ever
// been replayed: for auditors, who have the leaves but not the ticks between them. Every
// signature is verified, those of results too. The time stays unknown, so no expiry is
// judged and no removal is derived from one; a membership leaf that says "expired" is
// accepted where the entries in question do expire, and whoever knows the time judges
// when. The first leaves of Outcome is the given one; the log must go on with the others.
// An incarnation above 0 begins with two leaves, Recovery and Bootstrap; the caller compares
// State.Continues with the place at which the first of them stands.
// The error carries a Reason. Whoever takes part in a mesh uses Apply.
func (s *State) Replay(leaf []byte) (Outcome, error) { return s.ReplayLeaf(ParseLeaf(leaf)) }

// ReplayLeaf is Replay of a leaf that was read before: nothing that is known of it is looked at
// again.
func (s *State) ReplayLeaf(l *Leaf) (Outcome, error) {
	if l == nil || l.err != nil || l.kind == "" {
		err := errors.New("no leaf")
		if l != nil && l.err != nil {
			err = l.err
		}
		return Outcome{}, refuseErr(attest.CodeMalformed, "leaf", err)
	}
	predicate, leaf := l.kind, l.raw
	if !s.Started() || predicate == envelope.TypeRecovery {
		return s.replayRecovery(predicate, leaf)
	}
	switch predicate {
	case envelope.TypeCredential:
		return s.applyCredential(leaf)
	case envelope.TypeAttestationResult:
		r, err := l.Result()
		if err != nil {
			return Outcome{}, err
		}
		out, err := s.takeResults([]*AttestationResult{r})
		if err == nil && out.Reason != nil {
			err = &attest.Error{Reason: *out.Reason}
		}
		return out, err
	case envelope.TypeProposal:
		return s.orderProposal(leaf)
	case envelope.TypeMembership:
		return s.replayExpiry(leaf)
	case envelope.TypeSuspension:
		return s.orderSuspension(leaf)
	case envelope.TypeSuspensionLift:
		return s.orderLift(leaf)
	case envelope.TypeState:
		return s.replayState(leaf)
	case envelope.TypeReady:
		return s.applyReady(leaf)
	case envelope.TypeDrain:
		return s.applyDrain(leaf)
	case envelope.TypeRetirement:
		return s.applyRetirement(leaf)
	case envelope.TypeWithdrawal:
		return s.orderWithdrawal(leaf)
	}
	return Outcome{}, refuse(attest.CodeMalformed, "leaf", fmt.Sprintf("predicate type %.100q", predicate), "a kind of leaf that governance writes")
}

// replayExpiry executes the removal of a seat whose measurement's entries have expired.
func (s *State) replayExpiry(leaf []byte) (Outcome, error) {
	m, err := ParseMembership(leaf)
	if err != nil {
		return Outcome{}, refuseErr(attest.CodeMalformed, "membership", err)
	}
	claim := "removal of the seat " + m.Node.String()
	n := s.nodes[m.Node]
	if n == nil || n.cred.Peer != m.Peer || !n.inRaft() {
		return Outcome{}, refuse(attest.CodeNotSeat, claim, "peer "+m.Peer.Short()+" has no seat", "a seat")
	}
	if n.run == nil || m.Code != attest.CodeExpired || s.allows(*n.run, n.cred.Roles, endOfTime) != attest.CodeExpired {
		return Outcome{}, refuse(attest.CodeMalformed, claim, "code "+string(m.Code)+", for which the log gives no cause", "a removal that follows from the leaves before it")
	}
	if !strings.HasPrefix(m.Cause, "tick ") && !strings.HasPrefix(m.Cause, "proposal ") {
		return Outcome{}, refuse(attest.CodeMalformed, claim, fmt.Sprintf("cause %.40q", m.Cause), "a tick or a proposal")
	}
	var out Outcome
	if err := s.removeSeat(&out, n, attest.CodeExpired, m.Cause); err != nil {
		return Outcome{}, err
	}
	if !bytes.Equal(out.Leaves[0], leaf) {
		n.removed = ""
		return Outcome{}, refuse(attest.CodeMalformed, claim, "another leaf than the state derives", "the derived leaf")
	}
	n.evicted = attest.CodeExpired
	out.Evicted = append(out.Evicted, n.cred.Peer)
	return out, nil
}
