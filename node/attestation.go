package node

import (
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh"
)

// AttestationStatus is how and when the peer of a live link proved what it runs.
type AttestationStatus struct {
	Mode       string    `json:"mode,omitempty"`       // "full" or "fast"
	AttestedAt time.Time `json:"attested_at,omitzero"` // the evidence is younger
	NotAfter   time.Time `json:"not_after,omitzero"`   // by then it is attested again, or its link closed
}

// The modes: fresh evidence on this connection, or a MAC under the key of one with evidence.
const (
	ModeFull = "full"
	ModeFast = "fast"
)

func attestationStatus(s *mesh.Session) AttestationStatus {
	out := AttestationStatus{Mode: ModeFull, AttestedAt: s.AttestedAt.UTC(), NotAfter: s.NotAfter.UTC()}
	if s.Fast {
		out.Mode = ModeFast
	}
	return out
}

// describeLinks adds to each connected peer what the newest verdict about it says, and the
// mesh's counters.
func (n *Node) describeLinks(s *Status) {
	links := map[string]mesh.Link{}
	for _, l := range n.links() {
		links[l.Peer().String()] = l
	}
	for i := range s.Peers {
		if l := links[s.Peers[i].Peer]; l != nil && s.Peers[i].State == PeerConnected {
			n.describeLink(&s.Peers[i], l)
		}
	}
	s.Counters = map[string]uint64{}
	if n.meshUp.Load() {
		s.Counters = n.mesh.Counters()
	}
}

func (n *Node) describeLink(p *PeerStatus, l mesh.Link) {
	v := l.Session()
	p.Kind, p.Measurement, p.Verdict = v.Claims.Kind, v.Claims.Measurement, v.Result.Verdict
	p.AttestationStatus = attestationStatus(v)
	p.Proof, _ = n.proofOf(v)
	p.Epoch = l.PeerEpoch()
	if why := n.withheld(v); why != nil && why.Code != attest.CodeStale {
		p.Code, p.Reason = why.Code, why // staleness is this node's own, and in its phase
	}
}
