package federated

import (
	"fmt"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/internal/identity"
)

// UpdateStatement returns what a participant signs and sends with its work in this
// attempt. Under another attempt the same work gets another statement and nothing else.
func (o *OpenRound) UpdateStatement(self Member, w Work, salt Digest) Update {
	return Update{
		Turn: o.Turn, Node: self.Ref, Peer: self.Peer, UpdateRoot: w.Root,
		Examples: Opening{w.Examples, salt}.Commit(o.Job, o.Round, self.Ref),
		Trainer:  TrainerBuiltIn, Measurement: self.Measurement,
	}
}

// Delivery is what a participant sends to the aggregator.
type Delivery struct {
	// Statement is the envelope of the Update statement.
	Statement []byte
	Opening   Opening
	// Update is the safetensors file.
	Update []byte
}

// Admit is the aggregator's judgement of a delivery by peer: the entry for its close
// statement, or the reason for leaving the node out. base is the model of the attempt's
// base root.
func (o *OpenRound) Admit(spec Spec, peer identity.PeerID, base []byte, d Delivery) (Accepted, *attest.Reason) {
	st, err := parseUpdate(d.Statement)
	if err != nil {
		return Accepted{}, reason(attest.CodeMalformed, "update statement", err.Error(), "a well-formed statement")
	}
	u := st.predicate
	member, ok := o.Participant(peer)
	if !ok || u.Peer != peer || u.Node != member.Ref {
		return Accepted{}, reason(attest.CodeNotParticipant, u.Node.String(), "peer "+peer.Short(), count(o.Participants, "participant"))
	}
	if err := st.env.VerifyPeer(peer); err != nil {
		return Accepted{}, reason(attest.CodeBadSignature, u.Node.String(), err.Error(), "a signature of the sending peer")
	}
	switch {
	case u.MeshID != o.MeshID || u.Job != o.Job || u.Round != o.Round || u.Attempt != o.Attempt:
		return Accepted{}, staleTurn(u.Round, u.Attempt, o.Round, o.Attempt)
	case u.BaseRoot != o.BaseRoot:
		return Accepted{}, reason(attest.CodeRootMismatch, "base_root", u.BaseRoot.String(), o.BaseRoot.String())
	case u.Trainer != TrainerBuiltIn || u.Measurement != member.Measurement:
		return Accepted{}, reason(attest.CodeMeasurementNotAllowed, u.Node.String(), u.Trainer+" on "+u.Measurement, TrainerBuiltIn+" on "+member.Measurement)
	case u.Examples != d.Opening.Commit(o.Job, o.Round, u.Node):
		return Accepted{}, reason(attest.CodeWeight, "n_examples", fmt.Sprintf("%d, which does not open the commitment", d.Opening.Examples), "what was committed to")
	}
	root, err := chunk.RootOf(d.Update)
	if err != nil || root != u.UpdateRoot {
		return Accepted{}, reason(attest.CodeRootMismatch, "update_root", root.String(), u.UpdateRoot.String())
	}
	if why := spec.CheckUpdate(o.Round, base, Contribution{u.Node, d.Opening.Examples, d.Update}); why != nil {
		return Accepted{}, why
	}
	return Accepted{u.Node, u.Peer, u.UpdateRoot, u.Examples, st.digest()}, nil
}

// CloseStatement returns what the aggregator signs to close the attempt; both lists are
// in node order.
func (o *OpenRound) CloseStatement(accepted []Accepted, rejected []Rejected) Close {
	return Close{Turn: o.Turn, Aggregator: o.Aggregator.Ref, Peer: o.Aggregator.Peer, Accepted: accepted, Rejected: rejected}
}

// RoundStatement returns what the aggregator signs to commit its closed attempt with a
// result.
func (s JobStatus) RoundStatement(result chunk.Root) (Round, error) {
	if s.Open == nil || s.Open.Closed == nil {
		return Round{}, fmt.Errorf("job %s: no attempt is closed", s.Job.ID)
	}
	o := s.Open
	arithmetic, rule := s.Job.Spec.arithmetic(o.Round)
	return Round{
		Turn: o.Turn, Epoch: o.Epoch, Rule: rule, Arithmetic: arithmetic, ResultRoot: result,
		Aggregator: o.Aggregator.Ref, Peer: o.Aggregator.Peer, Accepted: o.Closed.Accepted, Rejected: o.Closed.Rejected,
	}, nil
}
