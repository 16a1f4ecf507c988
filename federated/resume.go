package federated

import (
	"fmt"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// resumed is a job of which a log tells no more than its committed rounds: the job itself is
// no leaf. It goes on once the job is submitted again, under the same id because its bytes
// are the same.
type resumed struct {
	id        JobID
	committed []CommittedRound
}

// Resume takes up a round leaf of the log that this ledger, which has applied nothing yet,
// goes on from. It is a round of a log whose members and order others have verified; here
// it must be signed by the peer it names and continue the round before. Attempts that were
// open, and jobs that had failed, left no leaf: they begin anew after the last committed
// round.
func (l *Ledger) Resume(leaf []byte) error {
	r, err := ParseRound(leaf)
	if err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	if r.MeshID != l.mesh {
		return fmt.Errorf("resume: a round of mesh %s, want %s", r.MeshID, l.mesh)
	}
	if len(l.jobs) > 0 {
		return fmt.Errorf("resume: job %s after commands were applied", r.Job)
	}
	i := slices.IndexFunc(l.resumed, func(j resumed) bool { return j.id == r.Job })
	if i < 0 {
		if len(l.resumed) == MaxJobs {
			return fmt.Errorf("resume: more than %d jobs", MaxJobs)
		}
		i, l.resumed = len(l.resumed), append(l.resumed, resumed{id: r.Job})
	}
	j := &l.resumed[i]
	last := JobStatus{Committed: j.committed}
	if int(r.Round) != len(j.committed) || r.BaseRoot != last.ModelRoot() {
		return fmt.Errorf("resume: job %s round %d from %s, want round %d from %s", r.Job, r.Round, r.BaseRoot, len(j.committed), last.ModelRoot())
	}
	party := func(ref identity.NodeRef, peer identity.PeerID) Member { return Member{Ref: ref, Peer: peer} }
	c := CommittedRound{ResultRoot: r.ResultRoot, Leaf: slices.Clone(leaf), AggregatorAt: party(r.Aggregator, r.Peer),
		OpenRound: OpenRound{Turn: r.Turn, Epoch: r.Epoch, Aggregator: party(r.Aggregator, r.Peer), Closed: &ClosedRound{Accepted: r.Accepted, Rejected: r.Rejected}}}
	for _, a := range r.Accepted {
		c.Members = append(c.Members, party(a.Node, a.Peer))
	}
	c.Participants = slices.Clone(c.Members)
	j.committed = append(j.committed, c)
	return nil
}

// takeUp returns the rounds that were committed of a job before the log went on.
func (l *Ledger) takeUp(id JobID) []CommittedRound {
	i := slices.IndexFunc(l.resumed, func(j resumed) bool { return j.id == id })
	if i < 0 {
		return nil
	}
	committed := l.resumed[i].committed
	l.resumed = slices.Delete(l.resumed, i, i+1)
	return committed
}

// resumedBytes is what the digest takes of jobs that were not submitted again.
func (l *Ledger) resumedBytes() []byte {
	var buf []byte
	for _, j := range l.resumed {
		buf = attest.LengthPrefixed(buf, []byte(j.id))
		for _, c := range j.committed {
			buf = attest.LengthPrefixed(buf, c.Leaf)
		}
	}
	return buf
}
