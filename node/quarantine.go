package node

import (
	"fmt"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// A verdict admits a peer at once, so that a log that is slow for a moment holds up nobody.
// But a verdict that never becomes public could be anything, so its proof must follow: this
// node's own result on the peer, in a log that a quorum of organisations has published,
// within proofWithin of ordered time. Until then it is pending; after that the peer is in
// quarantine, which withholds data and ends when the proof is there. Before the mesh has
// started there is no log to be in.
//
// Ordered time stands still without ticks and leaps when a node catches up, so time counts
// only while the peer is linked and this node itself is fresh.

// proofWithin is how long the proof of a verdict may take, in ordered time.
const proofWithin = 10 * time.Second

// Proof says whether the log holds this node's verdict about a peer.
type Proof string

// The proofs.
const (
	ProofPending     Proof = "pending"     // not yet
	ProofProven      Proof = "proven"      // in a published log
	ProofQuarantined Proof = "quarantined" // not in time: no data until it is
)

// pendingProofs are the verdicts whose proof is awaited.
type pendingProofs struct {
	mu     sync.Mutex
	byPeer map[identity.PeerID]*pendingProof // guarded by mu
}

// pendingProof is how much ordered time the proof of one verdict has taken so far.
type pendingProof struct {
	spent time.Duration
	seen  time.Time // ordered time when it was looked at last; zero while time does not count
	gaps  uint64    // how many gaps this node had seen then
}

func newPendingProofs() *pendingProofs {
	return &pendingProofs{byPeer: map[identity.PeerID]*pendingProof{}}
}

// look returns what is known about a peer's proof at the ordered time now. Time since the
// last look counts if this node is fresh and has come through no gap since.
func (p *pendingProofs) look(peer identity.PeerID, proven, fresh bool, gaps uint64, now time.Time) (Proof, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if proven {
		delete(p.byPeer, peer)
		return ProofProven, 0
	}
	w := p.byPeer[peer]
	if w == nil {
		w = &pendingProof{}
		if len(p.byPeer) < maxPeers {
			p.byPeer[peer] = w
		}
	}
	if fresh && gaps == w.gaps && !w.seen.IsZero() && now.After(w.seen) {
		w.spent += now.Sub(w.seen)
	}
	w.seen, w.gaps = now, gaps
	if w.spent > proofWithin {
		return ProofQuarantined, w.spent
	}
	return ProofPending, w.spent
}

// pause stops the time of peers that are not linked. It does not begin anew when they
// return: that would be a way around it.
func (p *pendingProofs) pause(linked func(identity.PeerID) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for peer, w := range p.byPeer {
		if linked(peer) {
			continue
		}
		w.seen = time.Time{}
		if len(p.byPeer) >= maxPeers {
			delete(p.byPeer, peer)
		}
	}
}

// watchProofs lets time pass for every linked peer's proof.
func (n *Node) watchProofs() {
	for _, l := range n.links() {
		n.proofOf(l.Session())
	}
	n.proofs.pause(n.hasLink)
}

// proofOf returns what is known about the proof of the verdict of s, and how long it has
// been awaited.
func (n *Node) proofOf(s *mesh.Session) (Proof, time.Duration) {
	published, _ := n.lastPublished()
	now, proven := n.machine.logged(n.self, s, published.Size)
	return n.proofs.look(s.Peer, proven, n.stale() == nil, n.machine.Gaps(), now)
}

// quarantined says that the proof of the verdict of s is overdue, or nil.
func (n *Node) quarantined(s *mesh.Session) *attest.Reason {
	proof, after := n.proofOf(s)
	if proof != ProofQuarantined {
		return nil
	}
	return reason(attest.CodeQuarantined, "verdict on "+s.Node.String(), fmt.Sprintf("in no published log after %s", after), "its proof within "+proofWithin.String())
}

// logged returns the ordered time, zero before the first tick, and whether the verdict of s
// by self is among the first size leaves. One organisation's nodes log at most
// consensus.MaxVerifiers results on one subject; where they have done so, theirs stand for
// those of the others.
func (m *Machine) logged(self identity.PeerID, s *mesh.Session, size uint64) (now time.Time, proven bool) {
	m.View(func(st *consensus.State, _ *federated.Ledger) {
		now = st.Now()
		own, _ := st.Node(self)
		members, siblings := m.members(st), 0
		for _, e := range st.Edges(s.Peer) {
			if e.Verifier.Node.Org != own.Ref.Org || !saysSame(e, s) || !now.Before(e.Expires) {
				continue
			}
			if i, ok := members.leafOf(e.Raw()); !ok || i >= size {
				continue
			}
			siblings++
			proven = proven || e.Verifier.Peer == self
		}
		proven = proven || siblings >= consensus.MaxVerifiers
	})
	return now, proven
}

// saysSame reports whether a logged result is the verdict of s.
func saysSame(e *consensus.AttestationResult, s *mesh.Session) bool {
	return e.Verdict == s.Result.Verdict && e.Kind == s.Result.Kind && e.Measurement == s.Result.Measurement
}
