package federated

import (
	"fmt"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Outcome is what a command did.
type Outcome struct {
	// Leaves are to be appended to the log, in order.
	Leaves [][]byte
	// Reason is set if the command was refused; it then had no effect. A replica never
	// stops at a refused command: it was ordered too late, or its author is at fault.
	Reason *attest.Reason
	// Job is the job that the command changed; "" if none.
	Job JobID
}

func refused(r *attest.Reason) Outcome { return Outcome{Reason: r} }

func malformed(what string, err error) Outcome {
	return refused(reason(attest.CodeMalformed, what, err.Error(), "a well-formed "+what))
}

// Apply applies one ordered command. It is deterministic in the ledger, the command and
// members, and expects commands that passed CheckCommand: of signatures it checks the
// organisations' on jobs, whose keys are state, and not the nodes'.
func (l *Ledger) Apply(kind string, body []byte, members Members) Outcome {
	switch kind {
	case KindJob:
		return l.applyJob(body, members)
	case KindRoundOpen:
		return l.applyOpen(body, members)
	case KindRoundClose:
		return l.applyClose(body, members)
	case KindRoundCommit:
		return l.applyCommit(body, members)
	}
	return malformed("command kind", fmt.Errorf("%.40q", kind))
}

func (l *Ledger) applyJob(body []byte, members Members) Outcome {
	raw, err := decodeEnvelope(body)
	if err != nil {
		return malformed(KindJob, err)
	}
	job, err := ParseJob(raw)
	if err != nil {
		return malformed(KindJob, err)
	}
	if job.MeshID != l.mesh {
		return refused(reason(attest.CodeWrongMesh, "mesh_id", job.MeshID.String(), l.mesh.String()))
	}
	if l.find(job.ID) != nil {
		return refused(reason(attest.CodeDuplicate, "job", string(job.ID), "a job that was not submitted before"))
	}
	if len(l.jobs) == MaxJobs {
		return refused(reason(attest.CodeBusy, "jobs", fmt.Sprint(MaxJobs+1), fmt.Sprintf("at most %d", MaxJobs)))
	}
	job, err = job.Signed(members.GovernKeys())
	if err != nil {
		return refused(reason(attest.CodeJobNotSigned, "signatures", err.Error(), "valid signatures of the organisations' govern keys"))
	}
	l.jobs = append(l.jobs, &jobState{job: job, committed: l.takeUp(job.ID)})
	return Outcome{Job: job.ID}
}

func (l *Ledger) applyOpen(body []byte, members Members) Outcome {
	o, err := decodeOpen(body)
	if err != nil {
		return malformed(KindRoundOpen, err)
	}
	if j := l.find(o.Job); j != nil && l.exhausted(j, o) {
		j.failed = reason(attest.CodeRoundFailed, fmt.Sprintf("round %d", o.Round),
			fmt.Sprintf("%d attempts, the last ended: %s", MaxAttempts, o.Cause), "a committed round")
		j.open = nil
		return Outcome{Job: o.Job}
	}
	open, why := l.Plan(o, members)
	if why != nil {
		return refused(why)
	}
	l.find(o.Job).open = open
	return Outcome{Job: o.Job}
}

// exhausted reports whether o asks for one attempt more than a round gets.
func (l *Ledger) exhausted(j *jobState, o RoundOpen) bool {
	want, ok := j.status().Next()
	return ok && want.Round == o.Round && want.Attempt == o.Attempt && o.Attempt > MaxAttempts
}

// current returns the job whose open attempt is turn.
func (l *Ledger) current(turn Turn) (*jobState, *attest.Reason) {
	if turn.MeshID != l.mesh {
		return nil, reason(attest.CodeWrongMesh, "mesh_id", turn.MeshID.String(), l.mesh.String())
	}
	j := l.find(turn.Job)
	if j == nil {
		return nil, reason(attest.CodeUnknownJob, "job", string(turn.Job), "a submitted job")
	}
	if j.open == nil {
		return nil, reason(attest.CodeStaleRound, "round", fmt.Sprintf("round %d attempt %d", turn.Round, turn.Attempt), "an open round; none is")
	}
	if o := j.open; turn.Round != o.Round || turn.Attempt != o.Attempt {
		return nil, staleTurn(turn.Round, turn.Attempt, o.Round, o.Attempt)
	}
	if turn.BaseRoot != j.open.BaseRoot {
		return nil, reason(attest.CodeRootMismatch, "base_root", turn.BaseRoot.String(), j.open.BaseRoot.String())
	}
	return j, nil
}

// checkAggregator requires that the signer is the attempt's aggregator, and still may be.
func (o *OpenRound) checkAggregator(node identity.NodeRef, peer identity.PeerID, members Members) (Member, *attest.Reason) {
	if node != o.Aggregator.Ref || peer != o.Aggregator.Peer {
		return Member{}, reason(attest.CodeNotAggregator, "aggregator", node.String()+" "+peer.String(),
			o.Aggregator.Ref.String()+" "+o.Aggregator.Peer.String())
	}
	m, why := eligible(node, peer, RoleAggregator, members)
	return m, why
}

// eligible looks a node up in the current epoch.
func eligible(node identity.NodeRef, peer identity.PeerID, role string, members Members) (Member, *attest.Reason) {
	m, ok := members.Node(peer)
	if !ok || m.Ref != node || !m.Has(role) {
		return Member{}, reason(attest.CodeNotEligible, node.String(),
			fmt.Sprintf("peer %s not eligible in epoch %d", peer.Short(), members.Epoch()), "an eligible "+role)
	}
	return m.clone(), nil
}

// checkAccepted re-checks every accepted node against snapshot and current epoch, and
// returns them as they are now.
func (j *jobState) checkAccepted(accepted []Accepted, members Members) ([]Member, *attest.Reason) {
	var out []Member
	for _, a := range accepted {
		if p, ok := j.open.Participant(a.Peer); !ok || p.Ref != a.Node {
			return nil, reason(attest.CodeNotParticipant, a.Node.String(), "peer "+a.Peer.Short(), count(j.open.Participants, "participant"))
		}
		m, why := eligible(a.Node, a.Peer, RoleTrainer, members)
		if why != nil {
			return nil, why
		}
		out = append(out, m)
	}
	if least := j.job.Spec.MinParticipants; len(out) < least {
		return nil, reason(attest.CodeBelowMinimum, "accepted", count(out, "update"), fmt.Sprintf("at least %d", least))
	}
	return out, nil
}

func (l *Ledger) applyClose(body []byte, members Members) Outcome {
	c, err := decodeClose(body)
	if err != nil {
		return malformed(KindRoundClose, err)
	}
	p := c.predicate
	j, why := l.current(p.Turn)
	if why != nil {
		return refused(why)
	}
	if j.open.Closed != nil {
		return refused(reason(attest.CodeStaleRound, "round", fmt.Sprintf("round %d attempt %d", p.Round, p.Attempt), "an attempt that is not closed"))
	}
	if _, why := j.open.checkAggregator(p.Aggregator, p.Peer, members); why != nil {
		return refused(why)
	}
	now, why := j.checkAccepted(p.Accepted, members)
	if why != nil {
		return refused(why)
	}
	for i, u := range c.updates {
		if got := u.predicate; got.Measurement != now[i].Measurement || got.Trainer != TrainerBuiltIn {
			return refused(reason(attest.CodeMeasurementNotAllowed, got.Node.String(), got.Trainer+" on "+got.Measurement,
				TrainerBuiltIn+" on "+now[i].Measurement))
		}
	}
	for _, r := range p.Rejected {
		if m, ok := j.open.Participant(r.Peer); !ok || m.Ref != r.Node {
			return refused(reason(attest.CodeNotParticipant, r.Node.String(), "peer "+r.Peer.Short(), count(j.open.Participants, "participant")))
		}
	}
	// A copy: views of the open attempt that were handed out stay as they are.
	next := *j.open
	next.Closed = &ClosedRound{Accepted: p.Accepted, Rejected: p.Rejected, Envelope: c.raw, Updates: c.rawUpds}
	j.open = &next
	return Outcome{Job: p.Job}
}

func (l *Ledger) applyCommit(body []byte, members Members) Outcome {
	raw, err := decodeEnvelope(body)
	if err != nil {
		return malformed(KindRoundCommit, err)
	}
	st, err := parseRound(raw)
	if err != nil {
		return malformed(KindRoundCommit, err)
	}
	r := st.predicate
	j, why := l.current(r.Turn)
	if why != nil {
		return refused(why)
	}
	aggregator, why := j.open.checkAggregator(r.Aggregator, r.Peer, members)
	if why != nil {
		return refused(why)
	}
	if why := j.checkLeaf(r); why != nil {
		return refused(why)
	}
	now, why := j.checkAccepted(r.Accepted, members)
	if why != nil {
		return refused(why)
	}
	j.committed = append(j.committed, CommittedRound{
		OpenRound: *j.open, ResultRoot: r.ResultRoot, Leaf: raw, Members: now, AggregatorAt: aggregator,
	})
	j.open = nil
	return Outcome{Leaves: [][]byte{raw}, Job: r.Job}
}

// checkLeaf requires that a round statement says what was opened and closed.
func (j *jobState) checkLeaf(r Round) *attest.Reason {
	o := j.open
	if o.Closed == nil {
		return reason(attest.CodeStaleRound, "round", "a commit", "a close before it")
	}
	if !slices.Equal(r.Accepted, o.Closed.Accepted) || !slices.Equal(r.Rejected, o.Closed.Rejected) {
		return reason(attest.CodeProtocol, "accepted", "another list than the close's", "the list that was closed")
	}
	arithmetic, rule := j.job.Spec.arithmetic(r.Round)
	if r.Epoch != o.Epoch || r.Rule != rule || r.Arithmetic != arithmetic {
		return reason(attest.CodeProtocol, "rule", fmt.Sprintf("%s by %s in epoch %d", r.Rule, r.Arithmetic, r.Epoch),
			fmt.Sprintf("%s by %s in epoch %d", rule, arithmetic, o.Epoch))
	}
	return nil
}
