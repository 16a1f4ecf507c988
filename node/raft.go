package node

import (
	"context"
	"fmt"
	"io"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// newReplica starts Raft over attested streams, as one of the founding servers or to be added
// later. The caller holds n.mu.
func (n *Node) newReplica(servers []identity.PeerID, join bool) (*replica.Replica, error) {
	store, err := replica.OpenStore(n.genesis.StoreKind, n.raftDir)
	if err != nil {
		return nil, err
	}
	founders := map[identity.PeerID]bool{}
	for _, s := range servers {
		founders[s] = true
	}
	return replica.New(replica.Config{
		Self: n.self, Peers: raftPeers{n}, Machine: n.machine, Store: store, Servers: servers, Join: join, Trailing: n.keep, Log: n.log,
		Member:  func(p identity.PeerID) bool { return n.mayVote(p, founders) },
		Learner: n.mayLearn,
		Fatal:   func(err error) { n.fail(fmt.Errorf("raft: %w", err)) },
		Refused: func(p identity.PeerID, why error) {
			n.noteNewer(p, why)
			n.log.Warn("raft request refused", "peer", n.nameOf(p), "error", why)
		},
	})
}

// mayVote is the transport's guard: before Bootstrap is applied the founders it names,
// afterwards whoever holds a seat in the ordered state.
func (n *Node) mayVote(p identity.PeerID, founders map[identity.PeerID]bool) bool {
	if !n.machine.Started() {
		return founders[p]
	}
	return n.holdsSeat(p)
}

// mayLearn says to whom a leader may send the log beside those: who may take a vacant seat, and
// whose seat was drained, so that it hears that and when its server has left the configuration.
func (n *Node) mayLearn(p identity.PeerID) (ok bool) {
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { ok = s.IsCandidate(p) || s.Drained(p) })
	return ok
}

func (n *Node) isCandidate(p identity.PeerID) (ok bool) {
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { ok = s.IsCandidate(p) })
	return ok
}

// raftPeers gives Raft streams on the links that exist; the dialler makes links.
type raftPeers struct{ n *Node }

// Open implements replica.Peers.
func (r raftPeers) Open(ctx context.Context, peer identity.PeerID) (io.ReadWriteCloser, error) {
	link, ok := r.n.linkTo(peer)
	if !ok {
		return nil, fmt.Errorf("no link to %s", r.n.nameOf(peer))
	}
	s, err := link.Open(ctx, r.n.protocols.raft)
	if err != nil {
		return nil, err
	}
	return raftStream{s}, nil
}

// raftStream closes by reset, so that pending reads and writes of both ends return.
type raftStream struct{ mesh.Stream }

// Close implements io.Closer.
func (s raftStream) Close() error { return s.Reset() }

func (n *Node) handleRaft(link mesh.Link, s mesh.Stream) {
	r := n.raft()
	if r == nil {
		_ = s.Reset()
		return
	}
	r.Serve(link.Peer(), raftStream{s})
}
