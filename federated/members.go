package federated

import (
	"bytes"
	"slices"

	"github.com/attestmesh/meshnode/federated/aggregate"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// The roles of a Credential that matter to rounds.
const (
	RoleTrainer    = "trainer"
	RoleAggregator = "aggregator"
)

// Member is a node that may take part in rounds, as the replicated state knows it.
type Member struct {
	Ref         identity.NodeRef `json:"node"`
	Peer        identity.PeerID  `json:"peer"`
	Roles       []string         `json:"roles"`
	Measurement string           `json:"measurement"`
	// Kind is the kind of its evidence: "sim" protects nothing from its host.
	Kind string `json:"kind"`
	// Affirming are the leaf indices of the attestation results that make it eligible.
	Affirming []uint64 `json:"affirming"`
}

// Has reports whether m has a role.
func (m Member) Has(role string) bool { return slices.Contains(m.Roles, role) }

func (m Member) clone() Member {
	m.Roles, m.Affirming = notNil(slices.Clone(m.Roles)), notNil(slices.Clone(m.Affirming))
	return m
}

// Members is the membership at one point of the command log, given to Apply by the owner
// of both state machines. All of it must follow from ordered commands alone, so that
// every replica gives the same answers; Apply keeps none of it but values.
type Members interface {
	// Epoch is the current policy epoch.
	Epoch() identity.Epoch
	// Node returns the member that peer is, and whether it may take part in rounds now:
	// Credential not retired, measurement allowed in this epoch, affirmed by enough others.
	Node(peer identity.PeerID) (Member, bool)
	// Eligible returns the members that may be in a new round, at most one for each NodeRef, in
	// any order: those for which Node reports true and that are not about to leave.
	Eligible() []Member
	// GovernKeys returns the organisations' govern keys.
	GovernKeys() []envelope.Key
}

// rank sorts members by rendezvous hash for one round, highest first. Leaving one out
// does not change the order of the others (Thaler and Ravishankar 1998).
func rank(label string, job JobID, round uint32, members []Member) []Member {
	type scored struct {
		score Digest
		m     Member
	}
	list := make([]scored, len(members))
	for i, m := range members {
		list[i] = scored{hashParts(label, []byte(job), u64(uint64(round)), []byte(m.Ref.Org), []byte(m.Ref.Name)), m}
	}
	slices.SortFunc(list, func(a, b scored) int {
		if c := bytes.Compare(b.score[:], a.score[:]); c != 0 {
			return c
		}
		return aggregate.CompareNodes(a.m.Ref, b.m.Ref)
	})
	out := make([]Member, len(list))
	for i, s := range list {
		out[i] = s.m
	}
	return out
}

// AggregatorOrder returns who of members would aggregate a round, in the order in which
// attempts that leave out earlier ones come to them. It does not look at roles.
func AggregatorOrder(job JobID, round uint32, members []Member) []Member {
	return rank("meshnode/v1 aggregator", job, round, members)
}

// candidates returns the participants and the aggregator's candidates of a round.
func candidates(job Job, round uint32, exclude []identity.PeerID, members []Member) (trainers, aggregators []Member) {
	for _, m := range members {
		if !job.SignedBy(m.Ref.Org) || slices.Contains(exclude, m.Peer) {
			continue
		}
		if m.Has(RoleTrainer) {
			trainers = append(trainers, m.clone())
		}
		if m.Has(RoleAggregator) {
			aggregators = append(aggregators, m.clone())
		}
	}
	if len(trainers) > MaxParticipants {
		trainers = rank("meshnode/v1 participant", job.ID, round, trainers)[:MaxParticipants]
	}
	slices.SortFunc(trainers, func(a, b Member) int { return aggregate.CompareNodes(a.Ref, b.Ref) })
	return trainers, AggregatorOrder(job.ID, round, aggregators)
}
