package consensus

import (
	"maps"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Standing says where a node stands in the ordered state.
type Standing string

// The standings.
const (
	// StandingCredentialed: a Credential is in the log, no affirming result yet.
	StandingCredentialed Standing = "credentialed"
	// StandingMeasured: other organisations found an allowed measurement.
	StandingMeasured Standing = "measured"
	// StandingEvicted: what they found is not allowed any more.
	StandingEvicted Standing = "evicted"
)

// Node is a view of the newest boot of one node.
type Node struct {
	Ref      identity.NodeRef
	Peer     identity.PeerID
	BootSeq  identity.BootSeq
	Roles    []string
	Standing Standing
	// Code says why a node is evicted or its seat was removed.
	Code attest.Code
	// Kind, Measurement and Reference are what other organisations found; empty before.
	Kind        string
	Measurement string
	Reference   string
	// Seat is set while the node holds its organisation's seat: it belongs into the Raft
	// configuration as a voter. Drained is set once its operator has taken it out.
	Seat       bool
	Drained    bool
	Credential *Credential
}

func (n *node) view() Node {
	v := Node{Ref: n.cred.Ref(), Peer: n.cred.Peer, BootSeq: n.cred.BootSeq, Roles: slices.Clone(n.cred.Roles),
		Standing: StandingCredentialed, Seat: n.inRaft(), Drained: n.drained, Credential: n.cred, Code: n.removed}
	if n.run != nil {
		v.Standing, v.Kind, v.Measurement, v.Reference = StandingMeasured, n.run.Kind, n.run.Measurement, n.run.Reference
	}
	if n.evicted != "" {
		v.Standing, v.Code = StandingEvicted, n.evicted
	}
	return v
}

// Now returns the ordered time; zero before the first tick.
func (s *State) Now() time.Time { return s.now }

// TickSeq returns the number of the newest tick.
func (s *State) TickSeq() uint64 { return s.tickSeq }

// Node returns the node that peer is the newest boot of.
func (s *State) Node(peer identity.PeerID) (Node, bool) {
	ref, ok := s.peers[peer]
	if !ok {
		return Node{}, false
	}
	return s.nodes[ref].view(), true
}

// NodeByRef returns the newest boot of a node.
func (s *State) NodeByRef(ref identity.NodeRef) (Node, bool) {
	n, ok := s.nodes[ref]
	if !ok {
		return Node{}, false
	}
	return n.view(), true
}

// Nodes returns every node, sorted by name.
func (s *State) Nodes() []Node {
	out := make([]Node, 0, len(s.nodes))
	for _, ref := range s.refs() {
		out = append(out, s.nodes[ref].view())
	}
	return out
}

// Disallowed returns why what others found the node of ref to run is not allowed now, or "".
func (s *State) Disallowed(ref identity.NodeRef) attest.Code {
	n := s.nodes[ref]
	if n == nil || n.run == nil {
		return ""
	}
	return s.allows(*n.run, n.cred.Roles, s.now)
}

// Allows returns why a node that was found to run a measurement, by a verifier that matched the
// entry called reference, may not hold all of roles under s; "" if it may. A zero now judges no
// entry's validity.
func (s *PolicyState) Allows(kind, measurement, reference string, roles []string, now time.Time) attest.Code {
	return s.allows(measured{kind, measurement, reference}, roles, now)
}

// Retired reports whether peer was the identity of an older boot.
func (s *State) Retired(peer identity.PeerID) bool {
	_, ok := s.retired[peer]
	return ok
}

// Seats returns the nodes that belong into the Raft configuration as voters now, sorted by
// name: at most one of each organisation, of Bootstrap or ready since, and neither evicted,
// retired nor drained.
func (s *State) Seats() []Node {
	var out []Node
	for _, ref := range s.refs() {
		if n := s.nodes[ref]; n.inRaft() {
			out = append(out, n.view())
		}
	}
	return out
}

// consensusN is n: organisations with a seat, never below ⌊N/2⌋+1.
func (s *State) consensusN() int { return max(len(s.Seats()), floorHalf(s.N())) }

// Quorum is the number of distinct seat organisations that publishes: ⌊n/2⌋+1.
func (s *State) Quorum() int { return floorHalf(s.consensusN()) }

// StrongQuorum is ⌊2n/3⌋+1.
func (s *State) StrongQuorum() int { return strong(s.consensusN()) }

// Credentials returns the Credential of every node, as ordered, sorted by node name.
func (s *State) Credentials() [][]byte {
	var out [][]byte
	for _, ref := range s.refs() {
		out = append(out, s.nodes[ref].cred.raw)
	}
	return out
}

// Edges returns the newest edges on subject, sorted by verifier.
func (s *State) Edges(subject identity.PeerID) []*AttestationResult {
	return slices.SortedFunc(maps.Values(s.edges[subject]), func(a, b *AttestationResult) int {
		return compareRefs(a.Verifier.Node, b.Verifier.Node)
	})
}

// AllEdges returns every edge, sorted by the names of subject and verifier.
func (s *State) AllEdges() []*AttestationResult {
	var out []*AttestationResult
	for _, ref := range s.refs() {
		out = append(out, s.Edges(s.nodes[ref].cred.Peer)...)
	}
	return out
}

// SnapshotQuorum is the number of distinct seat organisations whose cosignatures make a copy of
// the state believable: ⌊n/2⌋+1 of all that the policy names. Which of them still have a seat
// is said by the copy alone.
func (s *PolicyState) SnapshotQuorum() int { return floorHalf(len(s.orgs)) }

// Affirming returns the edges on subject that count for its eligibility at now: affirming,
// unexpired, by a node of another organisation whose own measurement is allowed and whose
// Credential is by a key in force, and with a finding that is allowed for the subject's roles.
func (s *State) Affirming(subject identity.PeerID, now time.Time) []*AttestationResult {
	ref, ok := s.peers[subject]
	if !ok {
		return nil
	}
	n := s.nodes[ref]
	var out []*AttestationResult
	for _, e := range s.Edges(subject) {
		if e.Verdict != attest.VerdictAffirming || e.Verifier.Node.Org == ref.Org || !now.Before(e.Expires) {
			continue
		}
		if s.allowed(s.nodes[e.Verifier.Node], now) && s.heard(e) && s.allows(edgeFinding(e), n.cred.Roles, now) == "" {
			out = append(out, e)
		}
	}
	return out
}

// allowed reports whether a node's own measurement is known and allowed at now.
func (s *State) allowed(n *node, now time.Time) bool {
	return n != nil && n.run != nil && n.contradicted == "" && s.allows(*n.run, n.cred.Roles, now) == ""
}

// Eligible returns the nodes that may take part in a round at now, sorted by name: their
// measurement is allowed, their Credential valid, verifiers of at least min(2, n−1) other
// organisations affirm them, and nobody suspends them.
func (s *State) Eligible(now time.Time) []Node {
	var out []Node
	for _, ref := range s.refs() {
		if n := s.nodes[ref]; s.eligible(n, now) {
			out = append(out, n.view())
		}
	}
	return out
}

func (s *State) eligible(n *node, now time.Time) bool {
	if _, spared := s.spared[n.cred.Ref()]; spared || !s.affirmed(n, now) {
		return false
	}
	_, suspended := s.SuspendedNode(n.cred.Ref(), now)
	return !suspended
}

// affirmed is eligible but for suspensions.
func (s *State) affirmed(n *node, now time.Time) bool {
	if !s.allowed(n, now) || !now.Before(n.cred.Expires) || !s.stands(n.cred) {
		return false
	}
	orgs := map[identity.OrgID]bool{}
	for _, e := range s.Affirming(n.cred.Peer, now) {
		orgs[e.Verifier.Node.Org] = true
	}
	return len(orgs) >= min(2, s.consensusN()-1)
}

// VerifiersNeeded is how many other organisations must affirm a node before it may take part
// in rounds.
func (s *State) VerifiersNeeded() int { return min(2, s.consensusN()-1) }

// IsAffirmed reports whether peer would be among Eligible(now) if nothing were suspended:
// for auditors, who do not know when a suspension ended.
func (s *State) IsAffirmed(peer identity.PeerID, now time.Time) bool {
	ref, ok := s.peers[peer]
	return ok && s.affirmed(s.nodes[ref], now)
}

// IsEligible reports whether peer is among Eligible(now).
func (s *State) IsEligible(peer identity.PeerID, now time.Time) bool {
	ref, ok := s.peers[peer]
	return ok && s.eligible(s.nodes[ref], now)
}
