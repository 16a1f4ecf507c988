package node

import (
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// SeatProtocols are the streams of a mesh that only seats may open, for whoever tests that.
func SeatProtocols(id identity.MeshID) []mesh.Protocol {
	p := newProtocols(id)
	return []mesh.Protocol{p.found, p.seat, p.raft, p.cosign, p.clock, p.digest, p.complain}
}
