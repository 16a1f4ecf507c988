package consensus

import (
	"bytes"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/internal/identity"
)

// Suspensions returns what is in force at a time, sorted by id.
func (s *State) Suspensions(at time.Time) []InForce {
	return s.suspensionsWhere(at, func(*suspended) bool { return true })
}

// SuspendedNode returns the suspension that ends last of those that hit a node at a time:
// itself by name, or an entry that allows what others found it to run.
func (s *State) SuspendedNode(ref identity.NodeRef, at time.Time) (InForce, bool) {
	n := s.nodes[ref]
	return lastOf(s.suspensionsWhere(at, func(x *suspended) bool {
		return x.Node != nil && *x.Node == ref || n != nil && n.run != nil && x.hits(s.PolicyState, *n.run)
	}))
}

// SuspendedRun returns the suspension that ends last of those of entries that allow what
// somebody found on a connection: kind, measurement and the entry that matched.
func (s *State) SuspendedRun(kind, measurement, reference string, at time.Time) (InForce, bool) {
	return lastOf(s.suspensionsWhere(at, func(x *suspended) bool { return x.hits(s.PolicyState, measured{kind, measurement, reference}) }))
}

func (s *State) suspensionsWhere(at time.Time, hit func(*suspended) bool) []InForce {
	var out []InForce
	for _, x := range s.suspensions {
		if x.inForce(at) && hit(x) {
			out = append(out, InForce{x.Suspension, x.ends})
		}
	}
	slices.SortFunc(out, func(a, b InForce) int { return bytes.Compare(a.id[:], b.id[:]) })
	return out
}

func lastOf(all []InForce) (InForce, bool) {
	if len(all) == 0 {
		return InForce{}, false
	}
	return slices.MaxFunc(all, func(a, b InForce) int { return a.Ends.Compare(b.Ends) }), true
}
