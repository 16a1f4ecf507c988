package consensus

import (
	"crypto/ed25519"
	"fmt"
	"maps"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/sigstore/sigstore/pkg/signature"
)

// Drain is a node's own word that it is about to be stopped: it is in no new round from then
// on, and where it holds its organisation's seat it leaves that vacant, so that the others
// do not count on its vote. It is signed by its peer key and has no way back.
type Drain struct {
	MeshID      identity.MeshID      `json:"mesh_id"`
	Incarnation identity.Incarnation `json:"incarnation"`
	Node        identity.NodeRef     `json:"node"`
	Peer        identity.PeerID      `json:"peer"`
}

// Retirement is an organisation's word that one boot of its node is void for ever: the
// machine is lost or in other hands. It is signed by one of its enroll or govern keys. A later
// boot of the node needs a new Credential, with a higher boot_seq.
type Retirement struct {
	MeshID      identity.MeshID      `json:"mesh_id"`
	Incarnation identity.Incarnation `json:"incarnation"`
	Node        identity.NodeRef     `json:"node"`
	Peer        identity.PeerID      `json:"peer"`
}

// departure is what the two have in common.
type departure struct {
	mesh identity.MeshID
	inc  identity.Incarnation
	node identity.NodeRef
	peer identity.PeerID
}

func (d Drain) departure() departure      { return departure{d.MeshID, d.Incarnation, d.Node, d.Peer} }
func (r Retirement) departure() departure { return departure{r.MeshID, r.Incarnation, r.Node, r.Peer} }

func (d departure) check() error {
	if d.mesh.IsZero() {
		return fmt.Errorf("mesh_id is zero")
	}
	return checkNodeOf(d.node, d.peer)
}

// SignDrain signs a drain with the node's peer key and returns the envelope.
func SignDrain(key ed25519.PrivateKey, d Drain) ([]byte, error) {
	s, err := envelope.NewSigner(key)
	if err != nil {
		return nil, fmt.Errorf("drain: %w", err)
	}
	return signDeparture(s, "drain", envelope.TypeDrain, d)
}

// SignRetirement signs a retirement with an enroll or govern key of the node's organisation
// and returns the envelope.
func SignRetirement(s signature.Signer, r Retirement) ([]byte, error) {
	return signDeparture(s, "retirement", envelope.TypeRetirement, r)
}

func signDeparture[P interface{ departure() departure }](s signature.Signer, what, predicateType string, p P) ([]byte, error) {
	d := p.departure()
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	env, err := envelope.SignStatement(s, predicateType, nodeSubject(d.node, d.peer), p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return env.Marshal(), nil
}

// ParseDrain decodes an envelope of a drain. Its signature is judged by Apply.
func ParseDrain(raw []byte) (*Drain, *envelope.Envelope, error) {
	return parseDeparture[Drain](raw, "drain", envelope.TypeDrain)
}

// ParseRetirement decodes an envelope of a retirement. Its signature is judged by Apply.
func ParseRetirement(raw []byte) (*Retirement, *envelope.Envelope, error) {
	return parseDeparture[Retirement](raw, "retirement", envelope.TypeRetirement)
}

func parseDeparture[P interface{ departure() departure }](raw []byte, what, predicateType string) (*P, *envelope.Envelope, error) {
	env, err := parseSeatStatement(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", what, err)
	}
	st, err := envelope.Decode[P](env.Payload, predicateType)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", what, err)
	}
	d := st.Predicate.departure()
	if err = d.check(); err == nil {
		err = checkSubject(st.Subject, nodeSubject(d.node, d.peer))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", what, err)
	}
	return &st.Predicate, env, nil
}

// applyDrain takes a node out of new rounds and of its seat.
func (s *State) applyDrain(raw []byte) (Outcome, error) {
	d, env, err := ParseDrain(raw)
	if err != nil {
		return Outcome{}, refuseErr(attest.CodeMalformed, "drain", err)
	}
	if err := s.checkStatement("drain", d.MeshID, d.Incarnation, fsmGovernance); err != nil {
		return Outcome{}, err
	}
	n, err := s.current("drain", d.Node, d.Peer)
	if err != nil {
		return Outcome{}, err
	}
	if err := env.VerifyPeer(d.Peer); err != nil {
		return Outcome{}, refuseErr(attest.CodeWrongSigner, "drain of "+d.Node.String(), err)
	}
	if err := s.checkDrain(n); err != nil {
		return Outcome{}, err
	}
	out := Outcome{Leaves: [][]byte{raw}}
	if n.inRaft() {
		if err := s.removeSeat(&out, n, attest.CodeDrained, "drain "+sha256Hex(raw)); err != nil {
			return Outcome{}, err
		}
	}
	n.drained = true
	return out, nil
}

// checkDrain decides whether a node may leave.
func (s *State) checkDrain(n *node) error {
	claim := "drain of " + n.cred.Ref().String()
	if n.drained {
		return refuse(attest.CodeReplayed, claim, "drained before", "a node that takes part")
	}
	if left := len(s.Seats()) - 1; n.inRaft() && left < s.leastSeats() {
		return refuse(attest.CodeQuorumLoss, claim, fmt.Sprintf("leaves %d seats", left), fmt.Sprintf("at least %d", s.leastSeats()))
	}
	return nil
}

// DrainRefused says why a drain of peer would be refused now, or nil.
func (s *State) DrainRefused(peer identity.PeerID) *attest.Reason {
	if !s.Started() || !s.genesis.SeatsReturn() {
		return ReasonOf(s.genesis.tooEarly("drain", fsmGovernance))
	}
	ref, ok := s.peers[peer]
	if !ok {
		return ReasonOf(refuse(attest.CodeUnknownNode, "drain", peer.Short()+" has no Credential in the log", "a node of this mesh"))
	}
	if err := s.checkDrain(s.nodes[ref]); err != nil {
		return ReasonOf(err)
	}
	return nil
}

// leastSeats is how many seats a drain must leave: ⌊N/2⌋+1, except that one of two may go.
// A mesh of two has no other way to restart a node.
func (s *State) leastSeats() int {
	return min(floorHalf(s.N()), len(s.orgs)-1)
}

// applyRetirement puts one boot of a node out for ever. Who has no Credential in the log yet
// never gets one there.
func (s *State) applyRetirement(raw []byte) (Outcome, error) {
	r, env, err := ParseRetirement(raw)
	if err != nil {
		return Outcome{}, refuseErr(attest.CodeMalformed, "retirement", err)
	}
	if err := s.checkStatement("retirement", r.MeshID, r.Incarnation, fsmGovernance); err != nil {
		return Outcome{}, err
	}
	keys := slices.Concat(s.OrgKeys(r.Node.Org, KeyEnroll), s.OrgKeys(r.Node.Org, KeyGovern))
	if _, err := env.Verify(keys); err != nil {
		return Outcome{}, refuseErr(attest.CodeWrongSigner, "retirement by "+string(r.Node.Org), err)
	}
	out := Outcome{Leaves: [][]byte{raw}}
	ref, known := s.peers[r.Peer]
	switch _, gone := s.retired[r.Peer]; {
	case gone:
		return Outcome{}, refuse(attest.CodeReplayed, "retirement of "+r.Node.String(), r.Peer.Short()+" is retired", "a boot that is not")
	case known && ref != r.Node:
		return Outcome{}, refuse(attest.CodeWrongPeer, "retirement of "+r.Node.String(), r.Peer.Short()+" is "+ref.String(), "a peer of the node")
	case !known:
		if err := s.checkRetiredRoom(r.Node.Org); err != nil {
			return Outcome{}, err
		}
		// It is remembered like one that had a Credential, and costs as much.
		if err := s.checkQuota(quotaCredentials, r.Node.Org); err != nil {
			return Outcome{}, err
		}
		s.spend(quotaCredentials, r.Node.Org)
		s.retired[r.Peer] = r.Node
		return out, nil
	}
	n := s.nodes[ref]
	if n.inRaft() && len(s.Seats()) == 1 {
		return Outcome{}, refuse(attest.CodeQuorumLoss, "retirement of "+r.Node.String(), "the only seat that is held", "another one")
	}
	if err := s.retire(&out, n, "retirement "+sha256Hex(raw)); err != nil {
		return Outcome{}, err
	}
	s.voided[ref] = n.cred.BootSeq
	delete(s.nodes, ref)
	return out, nil
}

// Drained reports whether peer was taken out of new rounds by its operator.
func (s *State) Drained(peer identity.PeerID) bool {
	ref, ok := s.peers[peer]
	return ok && s.nodes[ref].drained
}

func sortedRefs[V any](m map[identity.NodeRef]V) []identity.NodeRef {
	return slices.SortedFunc(maps.Keys(m), compareRefs)
}
