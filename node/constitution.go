package node

import (
	"crypto"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// dismissed says why a peer has to go whatever it runs, or nil.
func (n *Node) dismissed(peer identity.PeerID, credential []byte) (why *attest.Reason) {
	n.machine.Agreed(func(s *consensus.State) { why = s.Dismissed(peer, credential) })
	return why
}

// enrollKeys are the enroll keys of this node's organisation, as far as it knows of changes;
// none before it knows any.
func (n *Node) enrollKeys() (out []crypto.PublicKey) {
	n.machine.Agreed(func(s *consensus.State) {
		for _, k := range s.OrgKeys(n.ref.Org, consensus.KeyEnroll) {
			out = append(out, k.Public)
		}
	})
	return out
}

// PartyView is one organisation in force.
type PartyView struct {
	ID    string    `json:"id"`
	Roles []string  `json:"roles"`
	Keys  []KeyView `json:"keys"`
}

// KeyView is one key in force of an organisation.
type KeyView struct {
	Role     string             `json:"role"`
	ID       string             `json:"id"`
	Public   envelope.PublicKey `json:"public"`
	NotAfter time.Time          `json:"not_after,omitzero"`
}

func partyViews(orgs []consensus.Organisation) []PartyView {
	out := []PartyView{}
	for _, o := range orgs {
		p := PartyView{ID: string(o.ID), Roles: o.Roles, Keys: []KeyView{}}
		for _, k := range o.Keys {
			p.Keys = append(p.Keys, KeyView{k.Role, k.ID(), k.Public, k.NotAfter})
		}
		out = append(out, p)
	}
	return out
}
