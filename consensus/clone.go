package consensus

import (
	"maps"

	"github.com/attestmesh/meshnode/internal/identity"
)

// clone returns a state that can be changed without changing s. What was signed is shared: it
// is never modified. Every field of State, node and suspended must be copied here as deep as
// Apply writes to it; TestCloneKnowsEveryField holds the list.
func (s *State) clone() *State {
	next := *s
	next.PolicyState = s.PolicyState.clone()
	next.nodes = make(map[identity.NodeRef]*node, len(s.nodes))
	for ref, n := range s.nodes {
		copied := *n
		next.nodes[ref] = &copied
	}
	next.peers, next.retired = maps.Clone(s.peers), maps.Clone(s.retired)
	next.edges = make(map[identity.PeerID]map[identity.PeerID]*AttestationResult, len(s.edges))
	for subject, verifiers := range s.edges {
		next.edges[subject] = maps.Clone(verifiers)
	}
	next.suspensions = make(map[SuspensionID]*suspended, len(s.suspensions))
	for id, x := range s.suspensions {
		copied := *x
		next.suspensions[id] = &copied
	}
	next.used, next.voided, next.spared = maps.Clone(s.used), maps.Clone(s.voided), maps.Clone(s.spared)
	next.withdrawals = maps.Clone(s.withdrawals)
	return &next
}
