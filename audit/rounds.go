package audit

import (
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// job is what the round leaves of one job have said so far. The job itself, its openings
// and closings are ordered, but they are no leaves.
type job struct {
	rounds           uint32
	result           chunk.Root
	epoch            identity.Epoch
	rule, arithmetic string // of the rounds after round 0, which has its own
}

// round replays the leaf of a committed round: who signed it and who took part, against
// the membership at its index, and how it continues the job. Whether the sum is right is
// what the job's certificates prove.
func (r *replayer) round(index uint64, e *entry) []transparency.Finding {
	round := e.round
	if e.roundErr != nil {
		return []transparency.Finding{finding(index, string(attest.CodeBadSignature), e.roundErr.Error())}
	}
	var out []transparency.Finding
	found := func(code attest.Code, format string, args ...any) {
		out = append(out, finding(index, string(code), fmt.Sprintf("job %s round %d: ", round.Job, round.Round)+fmt.Sprintf(format, args...)))
	}
	if round.MeshID != r.state.MeshID() {
		found(attest.CodeWrongMesh, "of mesh %s, the log is of %s", round.MeshID, r.state.MeshID())
		return out
	}
	if !r.eligible(round.Aggregator, round.Peer, consensus.RoleAggregator) {
		found(attest.CodeNotAggregator, "%s (peer %s) was no eligible aggregator", round.Aggregator, round.Peer.Short())
	}
	for _, a := range round.Accepted {
		if !r.eligible(a.Node, a.Peer, consensus.RoleTrainer) {
			found(attest.CodeNotEligible, "%s (peer %s) was no eligible trainer", a.Node, a.Peer.Short())
		}
	}
	if len(round.Accepted) == 0 {
		found(attest.CodeBelowMinimum, "nobody took part")
	}
	part := fmt.Sprintf("job %s round %d", round.Job, round.Round)
	out = append(out, r.suspect(index, round.Aggregator, part)...)
	for _, a := range round.Accepted {
		if a.Node != round.Aggregator {
			out = append(out, r.suspect(index, a.Node, part)...)
		}
	}
	j := r.jobs[round.Job]
	if j == nil {
		j = &job{}
		r.jobs[round.Job] = j
	}
	if round.Epoch > r.state.Epoch() || round.Epoch < j.epoch {
		found(attest.CodeBehind, "opened in epoch %d, after one in %d and before the present %d", round.Epoch, j.epoch, r.state.Epoch())
	}
	switch {
	case round.Round != j.rounds:
		found(attest.CodeStaleRound, "follows %d rounds", j.rounds)
	case round.BaseRoot != j.result:
		found(attest.CodeRootMismatch, "starts from %s, the round before ended in %s", round.BaseRoot, j.result)
	case j.rounds > 1 && (round.Rule != j.rule || round.Arithmetic != j.arithmetic):
		found(attest.CodeProtocol, "is %s by %s, the rounds before %s by %s", round.Rule, round.Arithmetic, j.rule, j.arithmetic)
	}
	*j = job{round.Round + 1, round.ResultRoot, max(j.epoch, round.Epoch), round.Rule, round.Arithmetic}
	r.rounds++
	return out
}

// eligible reports whether peer was node's identity, had role, and could take part at the
// earliest time that this leaf can have been ordered. Suspensions are judged by suspect.
func (r *replayer) eligible(node identity.NodeRef, peer identity.PeerID, role string) bool {
	n, ok := r.state.Node(peer)
	return ok && n.Ref == node && n.Credential.HasRole(role) && r.state.IsAffirmed(peer, r.lowerBound())
}

// lowerBound is earliest, unless an entry begins after it: the clock may have passed that
// beginning too, and what it allows must not be held against anybody.
func (r *replayer) lowerBound() time.Time {
	for _, e := range r.state.Entries() {
		if e.NotBefore.After(r.earliest) {
			return time.Time{}
		}
	}
	return r.earliest
}
