package node

import (
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
)

// PolicyHistory is the signed history of the policy, which verifies itself, and where each link
// of it stands in the log.
type PolicyHistory struct {
	PolicyDocument
	// Leaves are the indices of the links; of a link that this node has no leaf of there is none,
	// nor of those after it.
	Leaves []uint64 `json:"leaves"`
}

func (n *Node) policyHistory() PolicyHistory {
	out := PolicyHistory{Leaves: []uint64{}}
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		out.Chain = s.PolicyChain()
		leafOf := n.machine.members(s).leafOf
		for _, link := range out.Chain {
			i, ok := leafOf(link)
			if !ok {
				return
			}
			out.Leaves = append(out.Leaves, i)
		}
	})
	return out
}
