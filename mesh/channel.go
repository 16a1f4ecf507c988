package mesh

import (
	"sync/atomic"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// channel is what an attested connection hands upwards: the exporter of its secrets and the
// newest verdict about its peer. There is one for each connection, and every layer that asks
// the connection with As(**Session) reads the same one, so that a re-attestation replaces
// the verdict everywhere at once.
type channel struct {
	export exchange.Exporter
	newest atomic.Pointer[Session] // never nil
}

func newChannel(s *Session, export exchange.Exporter) *channel {
	c := &channel{export: export}
	c.newest.Store(s)
	return c
}

// session returns the newest verdict.
func (c *channel) session() *Session { return c.newest.Load() }

// params returns what an exchange with peer needs.
func (h *hub) params(purpose attest.Purpose, peer identity.PeerID, initiator bool, export exchange.Exporter) exchange.Params {
	c := &h.cfg
	return exchange.Params{
		Purpose: purpose, Self: h.self, Peer: peer, Initiator: initiator, MeshID: c.MeshID, Incarnation: c.Incarnation(), Epoch: c.Epoch(),
		Credential: c.Credential(), Prover: c.Quoter, Judge: c.Judge, Export: export, Pairs: h.pairs,
	}
}
