package node

import (
	"fmt"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
)

// PlatformsView is what the policy demands of hardware, for people.
type PlatformsView struct {
	Floors []attest.Floor   `json:"floors"`
	Denied []attest.Product `json:"denied"`
	// Hardware are the lists of chips, as commitments.
	Hardware []consensus.HardwareList `json:"hardware"`
	// Spared are the seats that do not meet it by now and keep their vote, because nothing
	// could be ordered without them.
	Spared []string `json:"spared"`
}

func platformsView(s *consensus.State) PlatformsView {
	v := PlatformsView{Floors: notNil(s.Floors()), Denied: notNil(s.Denied()), Hardware: s.HardwareLists(), Spared: []string{}}
	for _, ref := range s.Spared() {
		v.Spared = append(v.Spared, ref.String())
	}
	return v
}

// spared returns the seats that stay though a demand came due that they do not meet.
func (n *Node) spared() (out []identity.NodeRef) {
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { out = s.Spared() })
	return out
}

// platformWarnings says what the operator must do about hardware before others do.
func (n *Node) platformWarnings() (out []string) {
	var orgs []string
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		for _, e := range s.Edges(n.self) {
			if org := string(e.Verifier.Node.Org); slices.Contains(e.Codes, attest.CodeFloorAhead) && !slices.Contains(orgs, org) {
				orgs = append(orgs, org)
			}
		}
	})
	if len(orgs) > 0 {
		out = append(out, fmt.Sprintf("this node's platform is below a floor that comes into force later (meshnode policy show), by the findings of %d organisations: "+
			"update firmware and microcode before and start the guest again", len(orgs)))
	}
	for _, seat := range n.spared() {
		out = append(out, fmt.Sprintf("%s does not meet what is demanded of it by now; it keeps its vote because nothing could be ordered without it: replace it", seat))
	}
	return out
}
