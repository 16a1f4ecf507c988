package consensus

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// An organisation has one seat, which is held by one boot of one of its nodes or vacant. The
// founders hold theirs from Bootstrap on. A holder that reboots, is evicted, drained or retired
// leaves it vacant, for ever as far as that boot is concerned: who has left the Raft
// configuration must not come back into it under the same id. A node of the organisation
// with the role seat takes a vacant seat by a Ready that others confirm.

// Ready says that a node has executed every command up to one, and to what effect. The node
// signs it with its peer key, and so does every holder of a seat whose own digest at that
// command is equal. With signatures of enough organisations it makes the node the holder of
// its organisation's vacant seat.
type Ready struct {
	MeshID      identity.MeshID      `json:"mesh_id"`
	Incarnation identity.Incarnation `json:"incarnation"`
	Node        identity.NodeRef     `json:"node"`
	Peer        identity.PeerID      `json:"peer"`
	// Seq is the number of a command, Digest the digest of everything after it, in hex: of
	// the ordered state, the rounds and the log (package node, Machine).
	Seq    uint64 `json:"seq"`
	Digest string `json:"digest"`
}

// Payload returns the bytes that the node and those who confirm it sign.
func (r Ready) Payload() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("ready: %w", err)
	}
	return envelope.NewPayload(envelope.TypeReady, nodeSubject(r.Node, r.Peer), r)
}

// DecodeReady decodes a payload.
func DecodeReady(payload []byte) (*Ready, error) {
	if len(payload) > MaxReady {
		return nil, fmt.Errorf("ready: %d bytes, the limit is %d", len(payload), MaxReady)
	}
	st, err := envelope.Decode[Ready](payload, envelope.TypeReady)
	if err != nil {
		return nil, fmt.Errorf("ready: %w", err)
	}
	r := &st.Predicate
	if err = r.check(); err == nil {
		err = checkSubject(st.Subject, nodeSubject(r.Node, r.Peer))
	}
	if err != nil {
		return nil, fmt.Errorf("ready: %w", err)
	}
	return r, nil
}

func (r *Ready) check() error {
	if r.MeshID.IsZero() || r.Seq == 0 {
		return fmt.Errorf("mesh_id or seq is zero")
	}
	if err := checkNodeOf(r.Node, r.Peer); err != nil {
		return err
	}
	return checkHex("digest", r.Digest, sha256.Size)
}

func checkNodeOf(ref identity.NodeRef, peer identity.PeerID) error {
	if err := ref.Validate(); err != nil {
		return err
	}
	return peer.Validate()
}

// parseSeatStatement decodes an envelope of at most MaxReady bytes.
func parseSeatStatement(raw []byte) (*envelope.Envelope, error) {
	if len(raw) > MaxReady {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(raw), MaxReady)
	}
	return envelope.Parse(raw)
}

// applyReady makes a node the holder of its organisation's vacant seat.
func (s *State) applyReady(raw []byte) (Outcome, error) {
	env, err := parseSeatStatement(raw)
	if err != nil {
		return Outcome{}, refuseErr(attest.CodeMalformed, "ready", err)
	}
	r, err := DecodeReady(env.Payload)
	if err != nil {
		return Outcome{}, refuseErr(attest.CodeMalformed, "ready", err)
	}
	if err := s.checkStatement("ready", r.MeshID, r.Incarnation, fsmGovernance); err != nil {
		return Outcome{}, err
	}
	n, err := s.current("ready", r.Node, r.Peer)
	if err != nil {
		return Outcome{}, err
	}
	if err := s.checkCandidate(n); err != nil {
		return Outcome{}, err
	}
	if err := s.checkConfirmed(env, n); err != nil {
		return Outcome{}, err
	}
	leaf, err := membershipLeaf(Membership{MeshID: s.genesis.meshID, Incarnation: s.incarnation, Epoch: s.epoch, Change: ChangeSeatTaken,
		Node: r.Node, Peer: r.Peer, Cause: "ready " + sha256Hex(raw)})
	if err != nil {
		return Outcome{}, err
	}
	n.seat = true
	return Outcome{Leaves: [][]byte{raw, leaf}, SeatsChanged: true}, nil
}

// current returns the node of which peer is the newest boot.
func (s *State) current(what string, ref identity.NodeRef, peer identity.PeerID) (*node, error) {
	if _, ok := s.retired[peer]; ok {
		return nil, refuse(attest.CodeRetired, what+" of "+ref.String(), peer.Short()+" is retired", "the newest boot of the node")
	}
	n, ok := s.nodes[ref]
	if !ok {
		return nil, refuse(attest.CodeUnknownNode, what+" of "+ref.String(), "no Credential in the log", "a node of this mesh")
	}
	if n.cred.Peer != peer {
		return nil, refuse(attest.CodeWrongPeer, what+" of "+ref.String(), peer.Short(), n.cred.Peer.Short())
	}
	return n, nil
}

// checkCandidate decides whether a node may take its organisation's seat.
func (s *State) checkCandidate(n *node) error {
	ref := n.cred.Ref()
	claim := "seat of " + string(ref.Org)
	switch {
	case !n.cred.HasRole(RoleSeat):
		return refuse(attest.CodeNotSeat, claim, ref.String()+" without the role", RoleSeat)
	case n.seat: // now, or before: a boot has one turn
		return refuse(attest.CodeSeatHeld, claim, "held before by this boot of "+ref.String(), "a boot that has held none")
	case n.drained:
		return refuse(attest.CodeDrained, claim, ref.String()+" is drained", "a node that goes on")
	case !s.stands(n.cred):
		return refuse(attest.CodeNoCredential, claim, ref.String()+" by a key that was removed", "a Credential by a key in force")
	case n.run == nil:
		return refuse(attest.CodeNotReady, claim, "no other organisation has affirmed "+ref.String(), "an affirming result in the log")
	}
	if code := s.allows(*n.run, n.cred.Roles, s.now); code != "" {
		return refuse(code, claim, n.run.Measurement, "an allowed measurement")
	}
	if n.contradicted != "" {
		return refuse(n.contradicted, claim, ref.String()+" is refused by enough other organisations", "a node that is not contradicted")
	}
	if _, ok := s.Organisation(ref.Org); !ok {
		return refuse(attest.CodeNotSeat, claim, "no organisation of this mesh", "an organisation of this mesh")
	}
	if holder, held := s.holder(ref.Org); held {
		return refuse(attest.CodeSeatHeld, claim, "held by "+holder.cred.Ref().String(), "a vacant seat")
	}
	return nil
}

// checkConfirmed demands the signatures of the node itself and of the holders of enough
// other seats.
func (s *State) checkConfirmed(env *envelope.Envelope, n *node) error {
	own, err := n.cred.Peer.PublicKey()
	if err != nil {
		return refuseErr(attest.CodeMalformed, "ready", err)
	}
	keys := []envelope.Key{{Org: n.cred.Organisation, Public: own}}
	for _, seat := range s.Seats() {
		k, err := seat.Peer.PublicKey()
		if err != nil {
			return refuseErr(attest.CodeMalformed, "ready", err)
		}
		keys = append(keys, envelope.Key{Org: seat.Ref.Org, Public: k})
	}
	orgs, err := env.Verify(keys)
	if err != nil {
		return refuseErr(attest.CodeWrongSigner, "ready of "+n.cred.Ref().String(), err)
	}
	others := 0
	self := false
	for _, org := range orgs {
		if org == n.cred.Organisation {
			self = true
		} else {
			others++
		}
	}
	if want := s.ReadyQuorum(); !self || others < want {
		return refuse(attest.CodeThreshold, "ready of "+n.cred.Ref().String(), fmt.Sprintf("signed by %v", orgs),
			fmt.Sprintf("the node itself and the seats of %d other organisations", want))
	}
	return nil
}

// ReadyQuorum is the number of seats of other organisations that must confirm a node before
// it takes a seat: ⌊n/2⌋+1, or all there are where seats are vacant beyond that.
func (s *State) ReadyQuorum() int { return min(s.Quorum(), max(1, len(s.Seats()))) }

// Holder returns the node that holds an organisation's seat; false says that it is vacant.
func (s *State) Holder(org identity.OrgID) (Node, bool) {
	n, ok := s.holder(org)
	if !ok {
		return Node{}, false
	}
	return n.view(), true
}

func (s *State) holder(org identity.OrgID) (*node, bool) {
	for ref, n := range s.nodes {
		if ref.Org == org && n.inRaft() {
			return n, true
		}
	}
	return nil, false
}

// Candidates returns the nodes that may take a vacant seat, sorted by name: those that the
// Raft configuration should have as non-voters, so that they catch up. None in a mesh whose
// fsm_version knows no Ready.
func (s *State) Candidates() []Node {
	var out []Node
	if s.genesis.FSMVersion < fsmGovernance {
		return nil
	}
	for _, ref := range s.refs() {
		if n := s.nodes[ref]; s.checkCandidate(n) == nil {
			out = append(out, n.view())
		}
	}
	return out
}

// IsCandidate reports whether peer is among Candidates.
func (s *State) IsCandidate(peer identity.PeerID) bool {
	ref, ok := s.peers[peer]
	return ok && s.genesis.FSMVersion >= fsmGovernance && s.checkCandidate(s.nodes[ref]) == nil
}

// SeatExpected reports whether a node of an organisation will be a candidate for its vacant
// seat once others have affirmed it.
func (s *State) SeatExpected(org identity.OrgID) bool {
	for ref, n := range s.nodes {
		if ref.Org == org && n.cred.HasRole(RoleSeat) && !n.seat && !n.drained && n.evicted == "" && s.genesis.FSMVersion >= fsmGovernance {
			return true
		}
	}
	return false
}

// NodeOf returns whose peer this is, or was before it retired.
func (s *State) NodeOf(peer identity.PeerID) (identity.NodeRef, bool) {
	if ref, ok := s.peers[peer]; ok {
		return ref, true
	}
	ref, ok := s.retired[peer]
	return ref, ok
}

// Vacant returns the organisations whose seat nobody holds, in order.
func (s *State) Vacant() []identity.OrgID {
	var out []identity.OrgID
	for _, o := range s.orgs {
		if _, held := s.holder(o.ID); !held {
			out = append(out, o.ID)
		}
	}
	return out
}

// checkStatement demands a statement of this mesh and incarnation, and of a genesis that
// knows its kind: an older release halts on it.
func (s *State) checkStatement(what string, mesh identity.MeshID, inc identity.Incarnation, since int) error {
	switch {
	case mesh != s.genesis.meshID:
		return refuse(attest.CodeWrongMesh, what+" mesh_id", mesh.Short(), s.genesis.meshID.Short())
	case inc != s.incarnation:
		return refuse(attest.CodeWrongIncarnation, what+" incarnation", fmt.Sprint(inc), fmt.Sprint(s.incarnation))
	case s.genesis.FSMVersion < since:
		return s.genesis.tooEarly(what, since)
	}
	return nil
}

// ConfirmReady returns an envelope with the signature of one peer key over a payload. Those of
// several are put together by Merge.
func ConfirmReady(key ed25519.PrivateKey, payload []byte) ([]byte, error) {
	if _, err := DecodeReady(payload); err != nil {
		return nil, err
	}
	signer, err := envelope.NewSigner(key)
	if err != nil {
		return nil, fmt.Errorf("ready: %w", err)
	}
	return Sign(payload, signer)
}

// seatsImage is what decides about seats and is not in nodeImage.
type seatsImage struct {
	_       struct{} `cbor:",toarray"`
	Drained []string
	Voided  []voidedImage
}

type voidedImage struct {
	_    struct{} `cbor:",toarray"`
	Ref  string
	Boot uint64
}

func (s *State) seatsImage() seatsImage {
	im := seatsImage{Drained: []string{}, Voided: []voidedImage{}}
	for _, ref := range s.refs() {
		if s.nodes[ref].drained {
			im.Drained = append(im.Drained, ref.String())
		}
	}
	for _, ref := range sortedRefs(s.voided) {
		im.Voided = append(im.Voided, voidedImage{Ref: ref.String(), Boot: uint64(s.voided[ref])})
	}
	return im
}

// seatsPart is the same in an encoded state.
func seatsPart() part {
	return part{"seats",
		func(s *State) any { return s.seatsImage() },
		func(s *State, raw []byte) error {
			var im seatsImage
			if err := images.decode(raw, &im); err != nil {
				return err
			}
			for _, name := range im.Drained {
				ref, err := identity.ParseNodeRef(name)
				if err != nil || s.nodes[ref] == nil {
					return fmt.Errorf("drained: %.80q is no node", name)
				}
				s.nodes[ref].drained = true
			}
			for _, v := range im.Voided {
				ref, err := identity.ParseNodeRef(v.Ref)
				if err != nil || s.nodes[ref] != nil {
					return fmt.Errorf("voided: %.80q is a node, or no name of one", v.Ref)
				}
				s.voided[ref] = identity.BootSeq(v.Boot)
			}
			return nil
		}}
}
