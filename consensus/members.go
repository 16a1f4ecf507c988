package consensus

import (
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Changes that a Membership statement names.
const (
	ChangeSeatRemoved = "seat-removed"
	ChangeSeatTaken   = "seat-taken"
)

// Membership is a statement that Apply derives and nobody signs: whoever replays the log
// derives the same.
type Membership struct {
	MeshID      identity.MeshID      `json:"mesh_id"`
	Incarnation identity.Incarnation `json:"incarnation"`
	Epoch       identity.Epoch       `json:"epoch"`
	Change      string               `json:"change"`
	Node        identity.NodeRef     `json:"node"`
	Peer        identity.PeerID      `json:"peer"`
	// Code says why a seat was removed; it is empty where one was taken.
	Code attest.Code `json:"code"`
	// Cause is "proposal ID", "tick SEQ" or "credential", "ready", "drain" or "retirement"
	// with the SHA-256 of the envelope.
	Cause string `json:"cause"`
}

func membershipLeaf(m Membership) ([]byte, error) {
	payload, err := envelope.NewPayload(envelope.TypeMembership, nodeSubject(m.Node, m.Peer), m)
	if err != nil {
		return nil, fmt.Errorf("membership: %w", err)
	}
	return (&envelope.Envelope{Payload: payload}).Marshal(), nil
}

// ParseMembership decodes a derived membership leaf, which carries no signature.
func ParseMembership(raw []byte) (*Membership, error) {
	env, err := envelope.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("membership: %w", err)
	}
	if len(env.Signatures) != 0 {
		return nil, fmt.Errorf("membership: %d signatures, want none", len(env.Signatures))
	}
	st, err := envelope.Decode[Membership](env.Payload, envelope.TypeMembership)
	if err != nil {
		return nil, fmt.Errorf("membership: %w", err)
	}
	m := &st.Predicate
	if err := checkSubject(st.Subject, nodeSubject(m.Node, m.Peer)); err != nil {
		return nil, fmt.Errorf("membership: %w", err)
	}
	if m.Change != ChangeSeatRemoved && m.Change != ChangeSeatTaken {
		return nil, fmt.Errorf("membership: change %.40q", m.Change)
	}
	if (m.Change == ChangeSeatTaken) != (m.Code == "") {
		return nil, fmt.Errorf("membership: %s with code %.40q", m.Change, m.Code)
	}
	return m, nil
}

// VerifyCredential decides whether raw is a Credential of this mesh at now and of no boot
// older than the newest one ordered. The error carries a Reason.
func (s *State) VerifyCredential(raw []byte, now time.Time) (*Credential, error) {
	c, err := s.PolicyState.VerifyCredential(raw, now)
	if err != nil {
		return nil, err
	}
	if _, ok := s.retired[c.Peer]; ok {
		return nil, refuse(attest.CodeRetired, "peer "+c.Peer.Short(), "retired", "a newer boot of "+c.Ref().String())
	}
	if last, ok := s.voided[c.Ref()]; ok && c.BootSeq <= last {
		return nil, refuse(attest.CodeRetired, c.Ref().String()+" boot_seq", fmt.Sprint(c.BootSeq), fmt.Sprintf("newer than %d, which its organisation retired", last))
	}
	if ref, ok := s.peers[c.Peer]; ok && ref != c.Ref() {
		return nil, refuse(attest.CodeRetired, "peer "+c.Peer.Short(), "known as "+ref.String(), c.Ref().String())
	}
	n, ok := s.nodes[c.Ref()]
	// What a key signed that was removed since binds nobody: whoever had stolen it may have
	// used up all numbers.
	if !ok || c.BootSeq > n.cred.BootSeq || !s.stands(n.cred) && c.Peer != n.cred.Peer {
		return c, nil
	}
	if c.BootSeq < n.cred.BootSeq || c.Peer != n.cred.Peer {
		return nil, refuse(attest.CodeRetired, c.Ref().String()+" boot_seq", fmt.Sprint(c.BootSeq), fmt.Sprintf("newer than %d", n.cred.BootSeq))
	}
	return c, nil
}

// applyCredential registers a new boot of a node, or a renewal for the same boot.
func (s *State) applyCredential(raw []byte) (Outcome, error) {
	c, err := s.VerifyCredential(raw, s.now)
	if err != nil {
		return Outcome{}, err
	}
	old := s.nodes[c.Ref()]
	if old == nil {
		if err := s.checkRoom(c.Organisation); err != nil {
			return Outcome{}, err
		}
	}
	if err := s.checkKeys(c); err != nil {
		return Outcome{}, err
	}
	if err := s.checkQuota(quotaCredentials, c.Organisation); err != nil {
		return Outcome{}, err
	}
	out := Outcome{Leaves: [][]byte{raw}}
	switch {
	case old != nil && old.cred.Peer == c.Peer:
		if c.BootSeq != old.cred.BootSeq || !c.CosignerKey().Equal(old.cred.CosignerKey()) {
			return Outcome{}, refuse(attest.CodeRetired, "credential of "+c.Ref().String(), "the same peer with another boot_seq or cosigner key", "a new identity at every boot")
		}
		if !c.Expires.After(old.cred.Expires) && s.stands(old.cred) {
			return Outcome{}, refuse(attest.CodeReplayed, "credential of "+c.Ref().String(), c.Expires.Format(time.RFC3339), "a later expiry than "+old.cred.Expires.Format(time.RFC3339))
		}
		if old.inRaft() && !c.HasRole(RoleSeat) {
			return Outcome{}, refuse(attest.CodeNotSeat, "credential of "+c.Ref().String(), "a seat's renewal without the role", RoleSeat)
		}
		s.spend(quotaCredentials, c.Organisation)
		old.cred = c
		return out, nil
	case old != nil:
		if old.inRaft() && len(s.Seats()) == 1 && s.genesis.SeatsReturn() {
			// Were it gone, nobody could order this: it lives, and somebody has started it twice.
			return Outcome{}, refuse(attest.CodeQuorumLoss, "credential of "+c.Ref().String(), "a newer boot of the only seat that is held", "another seat")
		}
		if err := s.retire(&out, old, "credential "+sha256Hex(raw)); err != nil {
			return Outcome{}, err
		}
	}
	s.spend(quotaCredentials, c.Organisation)
	s.nodes[c.Ref()] = &node{cred: c}
	s.peers[c.Peer] = c.Ref()
	delete(s.voided, c.Ref())
	return out, nil
}

// checkRoom enforces the quotas of one organisation.
func (s *State) checkRoom(org identity.OrgID) error {
	nodes := 0
	for ref := range s.nodes {
		if ref.Org == org {
			nodes++
		}
	}
	if limit := s.limits.Nodes; nodes >= limit {
		return refuse(attest.CodeLimit, "nodes of "+string(org), fmt.Sprint(nodes), fmt.Sprintf("at most %d", limit))
	}
	return nil
}

// checkKeys demands that no other node has either key of c, and no organisation.
func (s *State) checkKeys(c *Credential) error {
	peerKey, err := c.Peer.PublicKey()
	if err != nil {
		return refuseErr(attest.CodeMalformed, "credential", err)
	}
	for ref, n := range s.nodes {
		if ref == c.Ref() {
			continue
		}
		otherPeer, err := n.cred.Peer.PublicKey()
		if err != nil {
			return refuseErr(attest.CodeMalformed, "credential", err)
		}
		if c.CosignerKey().Equal(n.cred.CosignerKey()) || c.CosignerKey().Equal(otherPeer) || peerKey.Equal(n.cred.CosignerKey()) {
			return refuse(attest.CodeDuplicate, "credential of "+c.Ref().String(), "a key in use by another node", "keys of its own")
		}
	}
	if _, _, ok := s.KeyOwner(c.CosignerKey()); ok || c.CosignerKey().Equal(s.LogKey()) {
		return refuse(attest.CodeDuplicate, "credential of "+c.Ref().String(), "a key of an organisation or the log as cosigner key", "keys of its own")
	}
	if _, _, ok := s.KeyOwner(peerKey); ok || peerKey.Equal(s.LogKey()) {
		return refuse(attest.CodeDuplicate, "credential of "+c.Ref().String(), "a key of an organisation or the log as peer key", "keys of its own")
	}
	return nil
}

// checkRetiredRoom bounds how many peer ids of one organisation are remembered.
func (s *State) checkRetiredRoom(org identity.OrgID) error {
	retired := 0
	for _, r := range s.retired {
		if r.Org == org {
			retired++
		}
	}
	if retired >= MaxRetired {
		return refuse(attest.CodeLimit, "retired peers of "+string(org), fmt.Sprint(retired), fmt.Sprintf("at most %d", MaxRetired))
	}
	return nil
}

// retire puts a boot out for ever, with its edges: a newer one is known, or its organisation
// says so.
func (s *State) retire(out *Outcome, old *node, cause string) error {
	ref, peer := old.cred.Ref(), old.cred.Peer
	if err := s.checkRetiredRoom(ref.Org); err != nil {
		return err
	}
	if old.inRaft() {
		if err := s.removeSeat(out, old, attest.CodeRetired, cause); err != nil {
			return err
		}
	}
	s.bury(peer, ref)
	out.Retired = append(out.Retired, peer)
	return nil
}

// bury keeps a peer out for ever, with its edges.
func (s *State) bury(peer identity.PeerID, ref identity.NodeRef) {
	s.retired[peer] = ref
	delete(s.peers, peer)
	delete(s.spared, ref) // a newer boot is judged by itself
	delete(s.edges, peer)
	for _, verifiers := range s.edges {
		delete(verifiers, peer)
	}
}

// dropOrganisations removes the nodes of organisations that are in force no more. What those
// organisations suspended stays so until it ends or others lift it.
func (s *State) dropOrganisations(out *Outcome, cause string) error {
	for _, ref := range s.refs() {
		if _, ok := s.orgs.find(ref.Org); ok {
			continue
		}
		n := s.nodes[ref]
		if n.inRaft() {
			if err := s.removeSeat(out, n, attest.CodeOrganisationRemoved, cause); err != nil {
				return err
			}
		}
		s.bury(n.cred.Peer, ref)
		delete(s.nodes, ref)
		out.Evicted = append(out.Evicted, n.cred.Peer)
	}
	return nil
}

// Stands reports whether peer is the newest boot of a node and its Credential in the log is by
// a key in force.
func (s *State) Stands(peer identity.PeerID) bool {
	ref, known := s.peers[peer]
	return known && s.stands(s.nodes[ref].cred)
}

// Dismissed says why a peer that was let in by a Credential has to go, whatever it runs: a newer
// boot of its node is known, its organisation is out, or the key that signed its newest
// Credential was removed. Nil if nothing is against it. The time is not judged.
func (s *State) Dismissed(peer identity.PeerID, credential []byte) *attest.Reason {
	if s.Stands(peer) {
		return nil
	}
	var err error
	if ref, out := s.retired[peer]; !out {
		_, err = s.signedCredential(credential)
	} else if _, in := s.orgs.find(ref.Org); !in {
		err = refuse(attest.CodeOrganisationRemoved, "organisation", string(ref.Org), "an organisation of this mesh")
	} else {
		err = refuse(attest.CodeRetired, "peer", peer.Short(), "the newest boot of its node")
	}
	if err == nil {
		return nil
	}
	return ReasonOf(err)
}

// checkOrganisationKeys demands that no key that next adds is one of a node.
func (s *State) checkOrganisationKeys(next *PolicyState) error {
	if sameOrganisations(s.orgs, next.orgs) {
		return nil
	}
	for _, ref := range s.refs() {
		c := s.nodes[ref].cred
		peerKey, err := c.Peer.PublicKey()
		if err != nil {
			return refuseErr(attest.CodeMalformed, "credential", err)
		}
		for _, key := range []ed25519.PublicKey{peerKey, c.CosignerKey()} {
			if org, k, ok := next.orgs.owner(key); ok {
				return refuse(attest.CodeDuplicate, k.Describe()+" of "+string(org), "a key of the node "+ref.String(), "a key of its own")
			}
		}
	}
	return nil
}
